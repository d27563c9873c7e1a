//! `kiln.lock`: what `--lock` writes, and that `--locked` builds from nothing else, whatever moved meanwhile.

use std::path::{Path, PathBuf};

use crate::contexts::sh;
use crate::support::home::{Home, Outcome, finish};
use crate::support::lab::{self, FolderServer};

const DOCKERFILE: i32 = 3;
const USAGE: i32 = 125;

/// A base in a registry, a file on a server and a repository, all of which can move.
struct World {
    home: Home,
    files: FolderServer,
    git: FolderServer,
    base: String,
}

impl World {
    fn new(name: &str) -> World {
        let home = Home::new();
        for folder in ["files", "served"] {
            std::fs::create_dir_all(home.path(folder)).unwrap();
        }
        sh(&home.path("served"), "git init -q -b main repo");
        let files = FolderServer::files(&home.path("files"));
        let git = FolderServer::git(&home.path("served"));
        let base = format!("{}/lock/{name}:1", lab::registry().host());
        let world = World { home, files, git, base };
        world.set("one");
        world
    }

    /// Gives everything this content.
    fn set(&self, text: &str) {
        self.home.build(&self.base, &format!("FROM busybox\nRUN echo base-{text} > /v\n")).ok();
        self.home.run(["push", &self.base]).ok();
        self.home.run(["rmi", &self.base]).ok();
        self.home.write("files/f", format!("file-{text}\n"));
        sh(&self.home.path("served/repo"), &format!("echo git-{text} > f && git add f && git commit -qm {text}"));
    }

    fn url(&self) -> String {
        format!("http://user:canary@{}/f?access_token=parameter", self.files.host())
    }

    fn context(&self) -> PathBuf {
        let git = format!("git://{}/repo", self.git.host());
        let text = format!(
            "FROM {}\nADD {} /f\nADD {git}#main /r/\nCOPY --from=named f /n\nRUN cat /v /f /r/f /n\n",
            self.base,
            self.url()
        );
        self.home.context("c", &text)
    }

    /// Builds with a store of its own, so that nothing is known from before.
    fn build(&self, store: &str, args: &[&str]) -> Outcome {
        let named = format!("named=git://{}/repo", self.git.host());
        let mut command = self.home.command();
        command.env("KILN_ROOT", self.home.path(store)).args(["build", "--no-cache", "--build-context", &named]);
        finish(command.args(args).arg(self.context()))
    }
}

fn lines(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().filter(|line| line.starts_with('"')).map(str::to_owned).collect()
}

#[test]
fn what_is_locked_stays() {
    let world = World::new("stays");
    let lock = world.context().join("kiln.lock");
    world.build("first", &["--locked"]).fails(DOCKERFILE).says(&["there is no lock file", "c/kiln.lock", "kiln build --lock"]);
    world.build("first", &["--lock"]).ok().says(&["base-one", "file-one", "git-one"]);
    let text = std::fs::read_to_string(&lock).unwrap();
    assert!(
        text.starts_with("# ") && text.contains("\nversion = 1\n") && !text.contains("canary") && !text.contains("parameter"),
        "{text}"
    );
    let old = lines(&lock);
    let names: Vec<&str> = old.iter().map(|line| line.split('"').nth(1).unwrap()).collect();
    let git = format!("git://{}/repo", world.git.host());
    let url = format!("http://{}/f?access_token=xxxxx", world.files.host());
    assert_eq!(names, [&world.base, &url, &git, &format!("{git}#main")]);

    world.set("two");
    let asked = |before: usize| lab::registry().requests("lock/stays").split_off(before).join("\n");
    let before = lab::registry().requests("lock/stays").len();
    let changed = world.build("second", &["--locked"]).fails(DOCKERFILE);
    changed.says(&["expected sha256:", "got sha256:", "kiln build --lock", "ADD "]);
    world.home.write("files/f", "file-one\n");
    let locked = world.build("third", &["--locked"]).ok().says(&["base-one", "file-one", "git-one"]);
    assert!(!locked.stderr.contains("-two") && !locked.stderr.contains("canary"), "{}", locked.stderr);
    assert!(!asked(before).contains("manifests/1 "), "nobody asks what the tag means: {}", asked(before));
    world.build("third", &[]).ok().says(&["base-two", "file-one", "git-two"]);
    assert_eq!(std::fs::read_to_string(&lock).unwrap(), text, "only --lock writes");

    // Again: only what changed changes, and where nothing did the file is not touched.
    world.build("third", &["--lock"]).ok().says(&["base-two", "git-two"]);
    let new = lines(&lock);
    let same: Vec<bool> = old.iter().zip(&new).map(|(old, new)| old == new).collect();
    assert_eq!((same, new.len()), (vec![false, true, false, false], 4));
    let inode = || std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&lock).unwrap());
    let untouched = inode();
    world.build("third", &["--lock"]).ok();
    assert_eq!(inode(), untouched);
}

#[test]
fn what_a_lock_file_may_not_say_or_lack() {
    let home = Home::new();
    let context = home.context("c", "FROM busybox\nRUN true\n");
    let build = |args: &[&str]| finish(home.command().args(["build"]).args(args).arg(&context));
    build(&["--lock"]).ok();
    let lock = context.join("kiln.lock");
    let text = std::fs::read_to_string(&lock).unwrap();
    let digest = "0".repeat(64);
    // An entry that nobody needs is told, and stays.
    std::fs::write(&lock, format!("{text}\"example.test/gone:1\" = \"sha256:{digest}\"\n")).unwrap();
    build(&["--locked"]).ok().says(&["WARN", "has no use for", "example.test/gone:1"]);
    build(&["--lock"]).ok();
    assert!(std::fs::read_to_string(&lock).unwrap().contains("example.test/gone:1"));

    home.context("c", "FROM busybox\nCOPY --from=debian:bookworm /etc/os-release /\n");
    build(&["--locked"]).fails(DOCKERFILE).says(&[
        "the image `docker.io/library/debian:bookworm` is not in the lock file",
        "COPY --from",
        "kiln build --lock",
    ]);
    // What names itself needs no line.
    let pinned = text.lines().find(|line| line.starts_with('"')).unwrap().split('"').nth(3).unwrap().to_owned();
    home.context("c", &format!("FROM busybox@{pinned}\nRUN true\n"));
    std::fs::write(&lock, "version = 1\n").unwrap();
    build(&["--locked"]).ok();

    let named = format!("{}/library/busybox", lab::registry().host());
    home.context("c", &format!("FROM {named}\nRUN true\n"));
    for (content, want) in [
        ("version = 2\n", "has version 2"),
        ("[images]\n", "it has no version"),
        ("<<<<<<< HEAD\n", "can't be understood: line 1"),
        ("version = 1\n[images]\n\"x:latest\" = \"latest\"\n", "neither a digest"),
    ] {
        std::fs::write(&lock, content).unwrap();
        build(&["--locked"]).fails(DOCKERFILE).says(&[want, "hint:"]);
        build(&["--lock"]).fails(DOCKERFILE).says(&[want]);
    }
    let lost = format!("version = 1\n[images]\n\"{named}:latest\" = \"sha256:{digest}\"\n");
    std::fs::write(&lock, lost).unwrap();
    build(&["--locked"]).fails(DOCKERFILE).says(&["as the lock file", "has it (sha256:0000", "kiln build --lock"]);

    build(&["--lock", "--locked"]).fails(USAGE).says(&["--lock and --locked"]);
    home.run_with_input(["build", "--lock", "-"], "FROM busybox\n").fails(USAGE).says(&["--lock=kiln.lock"]);
    let elsewhere = home.path("e.lock");
    home.run_with_input(["build", &format!("--lock={}", elsewhere.display()), "-"], "FROM busybox\n").ok();
    assert_eq!(lines(&elsewhere), [text.lines().find(|line| line.starts_with('"')).unwrap()]);
    std::fs::remove_file(context.join("Dockerfile")).unwrap();
    std::fs::write(context.join("web.Dockerfile"), "FROM busybox\n").unwrap();
    build(&["--lock", "-f", context.join("web.Dockerfile").to_str().unwrap()]).ok();
    assert_eq!(lines(&context.join("web.Dockerfile.lock")), lines(&elsewhere));
}

#[test]
fn one_line_serves_all_platforms() {
    let home = Home::new();
    let context = home.context("c", "FROM multiarch\nCOPY Dockerfile /\n");
    let build = |args: &[&str]| finish(home.command().args(["build"]).args(args).arg(&context));
    build(&["--lock", "--platform", "linux/amd64"]).ok();
    let first = lines(&context.join("kiln.lock"));
    build(&["--locked", "--platform", "linux/arm64"]).ok();
    build(&["--lock", "--platform", "linux/arm64"]).ok();
    assert_eq!((lines(&context.join("kiln.lock")), first.len()), (first.clone(), 1));
    // What was built here and is nowhere else is pinned, too.
    let name = format!("{}/lock/only-here:1", lab::registry().host());
    home.build(&name, "FROM busybox\nRUN echo x > /x\n").ok();
    home.context("c", &format!("FROM {name}\nRUN cat /x\n"));
    std::fs::remove_file(context.join("kiln.lock")).unwrap();
    build(&["--lock"]).ok();
    build(&["--locked"]).ok();
    home.build(&name, "FROM busybox\nRUN echo y > /x\n").ok();
    build(&["--locked"]).fails(DOCKERFILE).says(&["only-here"]);
}
