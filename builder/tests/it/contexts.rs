//! Where a build's files come from: standard input, addresses, repositories, and contexts with names. Repositories are
//! real ones, made by git and served by its own daemon or as plain files.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::home::{Home, Outcome, finish, outcome};
use crate::support::lab::{FolderServer, registry};

const BUILD: i32 = 1;
const USAGE: i32 = 125;

/// Runs a shell script in `folder`, with a git that knows nothing of whoever runs the tests.
#[track_caller]
pub(crate) fn sh(folder: &Path, script: &str) -> String {
    let mut command = Command::new("sh");
    command.args(["-euc", script]).current_dir(folder).stdin(Stdio::null());
    command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null").env("HOME", folder);
    for who in ["AUTHOR", "COMMITTER"] {
        command.env(format!("GIT_{who}_NAME"), "t").env(format!("GIT_{who}_EMAIL"), "t@example.invalid");
        command.env(format!("GIT_{who}_DATE"), "1700000000 +0000");
    }
    command.env("GIT_ALLOW_PROTOCOL", "file");
    finish(&mut command).ok().stdout.trim().to_owned()
}

/// Repositories with two commits, a tag, a branch, a submodule, a link out, a hook and a subdirectory.
pub(crate) struct Repositories {
    pub(crate) home: Home,
    server: FolderServer,
    pub(crate) first: String,
    pub(crate) second: String,
}

impl Repositories {
    pub(crate) fn new() -> Repositories {
        let home = Home::new();
        let served = home.path("served");
        std::fs::create_dir_all(&served).unwrap();
        let first = sh(
            &served,
            "git init -q -b main sub && cd sub && echo inner > inner && git add . && git commit -qm sub && cd ..
             git init -q -b main repo && cd repo
             printf 'FROM busybox\\nCOPY . /src/\\nRUN grep -qx one /src/f\\n' > Dockerfile
             echo one > f; echo x > run; chmod 755 run; mkdir -p dir/deep; echo deep > dir/deep/g; ln -s /etc out; ln -s dir alias
             printf 'FROM busybox\\nCOPY deep/g /g\\nRUN grep -qx deep /g\\n' > dir/Dockerfile
             git add . && git commit -qm one && git tag -a v1 -m v1 && git tag light && git rev-parse HEAD",
        );
        let second = sh(
            &served,
            "cd repo && git submodule -q add ../sub mod && echo two > f && git add . && git commit -qm two
             git branch other && git rev-parse HEAD",
        );
        let server = FolderServer::git(&served);
        Repositories { home, server, first, second }
    }

    fn url(&self, name: &str) -> String {
        format!("git://{}/{name}", self.server.host())
    }

    #[track_caller]
    fn add(&self, line: &str, check: &str) -> Outcome {
        let line = line.replace("REPO", &self.url("repo"));
        self.home.build("add", &format!("FROM busybox\n{line}\nRUN {check}\n"))
    }
}

fn build<S: AsRef<OsStr>>(home: &Home, args: &[S]) -> Outcome {
    let args = args.iter().map(AsRef::as_ref);
    home.run([OsStr::new("build")].into_iter().chain(args))
}

/// `kiln build -` with a file on standard input, through a pipe as in `tar c . | kiln build -`.
fn build_stdin(home: &Home, file: &Path, args: &[&str]) -> Outcome {
    let mut cat = Command::new("cat").arg(file).stdout(Stdio::piped()).spawn().unwrap();
    let mut command = home.command();
    command.arg("build").args(args).arg("-").stdin(cat.stdout.take().unwrap());
    let outcome = finish(&mut command);
    cat.wait().unwrap();
    outcome
}

const WHOLE: &str =
    "FROM busybox\nCOPY . /c/\nRUN grep -qx hello /c/d/f && test -x /c/run && test \"$(stat -c %u:%g /c/d/f)\" = 0:0\n";

/// A folder with a Dockerfile whose RUN is the check, as a tar in the compression of its name.
fn archive(home: &Home, name: &str) -> PathBuf {
    home.write("tarred/Dockerfile", WHOLE);
    home.write("tarred/sub/Other", "FROM busybox\nCOPY d/f /f\nRUN grep -qx hello /f\n");
    // In an archive it is a file like others.
    home.write("tarred/.dockerignore", "d\n");
    home.write("tarred/d/f", "hello\n");
    home.write("tarred/run", "x");
    let flag = match name.rsplit('.').next() {
        Some("gz") => "-z",
        Some("bz2") => "-j",
        Some("xz") => "-J",
        Some("zst") => "--zstd",
        _ => "--format=pax",
    };
    sh(&home.path("."), &format!("chmod 755 tarred/run && tar -c {flag} --owner=7 --group=8 -C tarred -f {name} ."));
    home.path(name)
}

#[test]
fn an_archive_on_standard_input() {
    let home = Home::new();
    for name in ["c.tar", "c.tar.gz", "c.tar.bz2", "c.tar.xz", "c.tar.zst"] {
        let file = archive(&home, name);
        build_stdin(&home, &file, &[]).ok();
        let other = build_stdin(&home, &file, &["-f", "sub/Other"]).ok();
        assert_eq!(other.cached() > 0, name != "c.tar", "{name}: {}", other.stderr);
    }
    let file = home.path("c.tar");
    build_stdin(&home, &file, &["-f", "nope"]).fails(3).says(&["nope"]);
    // A link in an archive leads nowhere but into it.
    sh(
        &home.path("."),
        "mkdir evil && ln -s /etc/passwd evil/Dockerfile && tar -c -C evil -f evil.tar . && head -c 5000 c.tar.gz > cut.tar.gz",
    );
    build_stdin(&home, &home.path("evil.tar"), &[]).fails(3).says(&["Dockerfile"]);
    sh(&home.path("."), "head -c 120 c.tar.gz > cut.tar.gz");
    build_stdin(&home, &home.path("cut.tar.gz"), &[]).fails(BUILD).says(&["cannot unpack the build context"]);
}

/// Names that climb, links that lead out: nothing is written outside of the store.
#[test]
fn a_hostile_archive_stays_inside() {
    let home = Home::new();
    let script = r#"
import io, tarfile
def add(t, name, data=b"", **more):
    i = tarfile.TarInfo(name); i.size = len(data)
    for k, v in more.items(): setattr(i, k, v)
    t.addfile(i, io.BytesIO(data))
for file in "links.tar", "climbs.tar":
    with tarfile.open(file, "w") as t:
        add(t, "Dockerfile", b"FROM busybox\nCOPY . /c/\nRUN test -L /c/out\n")
        add(t, "out", type=tarfile.SYMTYPE, linkname="/tmp")
        add(t, "out/kiln-escaped-from-context", b"x")
        if file == "climbs.tar":
            add(t, "../../climbed", b"x")
"#;
    let made = Command::new("python3").args(["-c", script]).current_dir(home.path(".")).status().unwrap();
    assert!(made.success());
    build_stdin(&home, &home.path("climbs.tar"), &[]).fails(BUILD).says(&["../../climbed", "leads out of the archive"]);
    // Links are followed inside.
    build_stdin(&home, &home.path("links.tar"), &[]).ok();
    assert!(!Path::new("/tmp/kiln-escaped-from-context").exists());
}

#[test]
fn an_address_of_an_archive_or_a_dockerfile() {
    let home = Home::new();
    archive(&home, "c.tar.gz");
    home.write("text", "FROM busybox\nRUN true\n");
    home.write("other", "FROM busybox\nCOPY d/f /f\nRUN grep -qx hello /f\n");
    let server = FolderServer::files(&home.path("."));
    let url = |name: &str| format!("http://{}/{name}", server.host());
    build(&home, &[url("c.tar.gz")]).ok();
    build(&home, &["-f".to_owned(), "sub/Other".to_owned(), url("c.tar.gz")]).ok();
    build(&home, &[url("text")]).ok();
    build(&home, &["-f".to_owned(), url("other"), home.path("tarred").display().to_string()]).fails(BUILD).says(&["/d"]);
    std::fs::remove_file(home.path("tarred/.dockerignore")).unwrap();
    build(&home, &["-f".to_owned(), url("other"), home.path("tarred").display().to_string()]).ok();
    home.run_with_input(["build", "-f", "-", &url("c.tar.gz")], "FROM busybox\nCOPY d/f /f\nRUN grep -qx hello /f\n").ok();
    let with_secret = url("nope.tar").replace("http://", "http://user:canary@");
    let outcome = build(&home, &[with_secret]).fails(BUILD).says(&["404"]);
    assert!(!outcome.stderr.contains("canary"), "{}", outcome.stderr);
}

#[test]
fn a_dockerfile_from_elsewhere() {
    let home = Home::new();
    let context = home.context("c", "FROM busybox\nRUN false\n");
    home.write("c/f", "hello\n");
    home.write("c/secret", "x");
    let outside = home.write("outside/My.Dockerfile", "FROM busybox\nCOPY . /c/\nRUN test -e /c/f && test ! -e /c/secret\n");
    home.write("outside/My.Dockerfile.dockerignore", "secret\n");
    let (context, outside) = (context.to_str().unwrap(), outside.to_str().unwrap());
    build(&home, &["-f", outside, context]).ok();
    home.run_with_input(["build", "-f", "-", context], "FROM busybox\nCOPY f /f\nRUN test -e /f\n").ok();
    home.run_with_input(["build", "-"], "FROM busybox\nRUN true\n").ok();
    home.run_with_input(["build", "-f", "x", "-"], "FROM busybox\n").fails(USAGE);
}

#[test]
fn a_repository_as_context() {
    let r = Repositories::new();
    let url = r.url("repo");
    build(&r.home, &[format!("{url}#v1")]).ok();
    build(&r.home, &[format!("{url}#light:dir")]).ok();
    build(&r.home, &[format!("{url}?ref={}&subdir=dir/", r.first)]).ok();
    build(&r.home, &[format!("{url}?tag=v1&checksum={}", &r.first[..9])]).ok();
    // Its second commit fails on purpose: the file says two.
    build(&r.home, std::slice::from_ref(&url)).fails(BUILD).says(&["grep -qx one"]);
    let check = "FROM busybox\nCOPY . /s/\nRUN grep -qx two /s/f && grep -qx inner /s/mod/inner && test ! -e /s/.git && \
                 test ! -e /s/mod/.git && test \"$(stat -c '%a %Y' /s/run /s/f | tr '\\n' ' ')\" = '755 1700000000 644 1700000000 '\n";
    r.home.run_with_input(["build", "-f", "-", &url], check).ok();
    r.home
        .run_with_input(
            ["build", "-f", "-", &format!("{url}?branch=other&submodules=false")],
            "FROM busybox\nCOPY . /s/\nRUN test ! -e /s/mod/inner\n",
        )
        .ok();
    let kept = "FROM busybox\nCOPY . /s/\nRUN test -f /s/.git/HEAD\n";
    r.home.run_with_input(["build", "--build-arg", "BUILDKIT_CONTEXT_KEEP_GIT_DIR=1", "-f", "-", &url], kept).ok();
    // A repository of this machine, because a person says so.
    build(&r.home, &[format!("file://{}#v1", r.home.path("served/repo").display())]).ok();
}

/// `SOURCE_DATE_EPOCH=context`: the commit's time, an archive's newest file, and nothing for a folder.
#[test]
fn a_context_tells_the_time_of_the_build() {
    let r = Repositories::new();
    let dockerfile = "ARG SOURCE_DATE_EPOCH=context\nFROM busybox\nARG SOURCE_DATE_EPOCH\nRUN echo \"[$SOURCE_DATE_EPOCH]\"\n";
    let context = r.home.context("times", dockerfile);
    sh(&r.home.path("."), "touch -d @77 times/Dockerfile && tar -c --format=pax -C times -f times.tar .");
    let said = |outcome: Outcome, seconds: &str| {
        outcome.ok().says(&[&format!("[{seconds}]")]);
        let text = r.home.run(["inspect", "times"]).ok().stdout;
        for (of, written) in [("77", "\"1970-01-01T00:01:17Z\""), ("1700000000", "\"2023-11-14T22:13:20Z\"")] {
            assert_eq!(text.contains(written), of == seconds, "{text}");
        }
    };
    said(build_stdin(&r.home, &r.home.path("times.tar"), &["-t", "times"]), "77");
    let given = |argument: &str, context: &str| {
        r.home.run_with_input(["build", "--no-cache", "-t", "times", "--build-arg", argument, "-f", "-", context], dockerfile)
    };
    said(given("SOURCE_DATE_EPOCH=context", &r.url("repo")), "1700000000");
    said(given("SOURCE_DATE_EPOCH=77", &r.url("repo")), "77");
    said(given("SOURCE_DATE_EPOCH=context", context.to_str().unwrap()), "");
    given("SOURCE_DATE_EPOCH=other", context.to_str().unwrap()).fails(3).says(&["SOURCE_DATE_EPOCH", "other", "context"]);
}

/// `SOURCE_DATE_EPOCH=NAME`: the time of a named context, or of what a stage fetches.
#[test]
fn a_source_tells_the_time_of_the_build() {
    let r = Repositories::new();
    let tail = "FROM busybox\nARG SOURCE_DATE_EPOCH\nRUN echo \"[$SOURCE_DATE_EPOCH]\"\n";
    let files = r.home.path("files");
    std::fs::create_dir_all(&files).unwrap();
    sh(&files, "echo x > f && touch -d @77 f && tar -cf t.tar f && gzip -k t.tar && touch -d @88 f t.tar t.tar.gz");
    let server = FolderServer::files(&files);
    let build = |value: &str, stage: &str, context: Option<&str>| {
        let stage = if stage.is_empty() { String::new() } else { format!("FROM scratch AS times\nADD {stage} /\n") };
        let context = context.map(|source| format!("sources={source}"));
        let mut args = vec!["build", "--no-cache", "-t", "times", "--build-arg", value];
        args.extend(context.iter().flat_map(|context| ["--build-context", context]));
        args.push("-");
        r.home.run_with_input(&args, &format!("ARG SOURCE_DATE_EPOCH=named\n{stage}{tail}"))
    };
    let (f, archive) = (format!("http://{}/f", server.host()), format!("http://{}/t.tar.gz", server.host()));
    let folder = files.display().to_string();
    for (value, stage, context, seconds) in [
        ("SOURCE_DATE_EPOCH=sources", "", Some(r.url("repo")), "1700000000"),
        ("SOURCE_DATE_EPOCH=sources", "", Some(archive), "88"),
        ("SOURCE_DATE_EPOCH=sources", "", Some(folder), ""),
        ("SOURCE_DATE_EPOCH=times", &r.url("repo#v1"), None, "1700000000"),
        ("SOURCE_DATE_EPOCH=times", &f, None, "88"),
    ] {
        build(value, stage, context.as_deref()).ok().says(&[&format!("[{seconds}]")]);
        let text = r.home.run(["inspect", "times"]).ok().stdout;
        for (of, written) in [("88", "\"1970-01-01T00:01:28Z\""), ("1700000000", "\"2023-11-14T22:13:20Z\"")] {
            assert_eq!(text.contains(written), of == seconds, "{value} {stage}: {text}");
        }
    }
    let lost = build("SOURCE_DATE_EPOCH=times", &format!("{f}-lost"), None).fails(BUILD);
    lost.says(&["404", ">>> ADD http", "resolve SOURCE_DATE_EPOCH"]);
}

#[test]
fn a_repository_without_a_git_server() {
    let r = Repositories::new();
    sh(&r.home.path("served"), "git clone -q --bare repo plain.git && cd plain.git && git update-server-info");
    let server = FolderServer::files(&r.home.path("served"));
    let url = format!("http://{}/plain.git", server.host());
    build(&r.home, &[format!("{url}#v1:dir")]).ok();
    build(&r.home, &[format!("{url}#{}:dir", r.first)]).ok();
    let with_secret = url.replace("http://", "http://user:canary@");
    let outcome = build(&r.home, &[format!("{with_secret}#v1:dir")]).ok();
    assert!(!outcome.stderr.contains("canary"), "{}", outcome.stderr);
    let outcome = build(&r.home, &[format!("{with_secret}#nope")]).fails(BUILD).says(&["does not contain the reference `nope`"]);
    assert!(!outcome.stderr.contains("canary"), "{}", outcome.stderr);
    let outcome = r.home.build("secret", &format!("FROM busybox\nADD {with_secret}#v1 /x\nRUN test -e /x/f\n")).ok();
    assert!(!outcome.stderr.contains("canary"), "{}", outcome.stderr);
    let history = r.home.run(["history", "--no-trunc", "secret"]).ok();
    assert!(!history.stdout.contains("canary") && history.stdout.contains("ADD http://xxxxx:xxxxx@"), "{}", history.stdout);
    let image = r.home.run(["inspect", "secret"]).ok();
    assert!(!image.stdout.contains("canary"), "{}", image.stdout);
}

#[test]
fn add_of_a_repository() {
    let r = Repositories::new();
    let rows = [
        (
            "ADD REPO#v1 /x",
            "grep -qx one /x/f && test ! -e /x/.git && test -L /x/out && test \"$(stat -c %u:%a /x/run)\" = 0:755".to_owned(),
        ),
        ("ADD REPO /x/", "grep -qx two /x/f && grep -qx inner /x/mod/inner".to_owned()),
        ("ADD REPO#main:dir /x", "grep -qx deep /x/deep/g && test ! -e /x/f".to_owned()),
        ("ADD REPO?branch=other&submodules=0 /x", "grep -qx two /x/f && test ! -e /x/mod/inner".to_owned()),
        ("ADD --keep-git-dir=true REPO#v1 /x", format!("grep -q {} /x/.git/HEAD", r.first)),
        (
            "ADD --keep-git-dir REPO /x",
            "test ! -e /x/.git/logs && test ! -e /x/.git/FETCH_HEAD && test ! -e /x/.git/modules/mod/logs && \
          test \"$(find /x/.git/objects -type f -perm 444 | wc -l)\" -gt 5 && test -f /x/.git/modules/mod/HEAD"
                .to_owned(),
        ),
        ("ADD REPO?keep-git-dir=true&ref=light /x", format!("grep -q {} /x/.git/HEAD", r.first)),
        ("ADD --chown=5:6 --chmod=600 REPO#v1 /x", "test \"$(stat -c %u:%g:%a /x/f)\" = 5:6:600".to_owned()),
        ("ADD --link REPO#v1:dir /x/y/", "test -e /x/y/deep/g".to_owned()),
        ("ADD --exclude=d* REPO#v1 /x", "test -e /x/f && test ! -e /x/dir".to_owned()),
    ];
    for (line, check) in &rows {
        r.add(line, check).ok();
    }
    r.add(&format!("ADD --checksum={} REPO#main /x", &r.second[..12]), "true").ok();
    let tag = sh(&r.home.path("served/repo"), "git rev-parse v1");
    r.add(&format!("ADD --checksum={tag} REPO#v1 /x"), "grep -qx one /x/f").ok();
    r.add(&format!("ADD --checksum={} REPO#v1 /x", r.first), "grep -qx one /x/f").ok();
    r.add(&format!("ADD REPO#{} /x", r.first), "grep -qx one /x/f").ok();
    let refused = [
        (format!("ADD --checksum={} REPO#main /x", &r.first[..12]), vec!["commit mismatch", "Dockerfile:2"]),
        ("ADD REPO#nope /x".to_owned(), vec!["does not contain the reference `nope`", "Dockerfile:2"]),
        ("ADD REPO#main:alias/deep /x".to_owned(), vec!["symbolic link"]),
        ("ADD REPO#main:out /x".to_owned(), vec!["symbolic link"]),
        ("ADD REPO#main:dir/nope /x".to_owned(), vec!["not in the repository"]),
        ("ADD REPO#main:f /x".to_owned(), vec!["not a directory"]),
        ("ADD REPO#main:dir/../.. /x".to_owned(), vec!["leads out"]),
        ("ADD REPO#main:/dir /x".to_owned(), vec!["absolute"]),
        ("ADD REPO#--upload-pack=touch${IFS}pwned /x".to_owned(), vec!["can't be the name of a reference"]),
    ];
    for (line, texts) in &refused {
        let outcome = r.add(line, "true").says(texts);
        assert_eq!(outcome.status.code(), Some(BUILD), "{line}: {}", outcome.stderr);
    }
}

/// The commit is the key: a branch that moves misses, one that moves back hits, and a hit fetches nothing.
#[test]
fn a_repository_is_cached_by_its_commit() {
    let r = Repositories::new();
    let served = r.home.path("served/repo");
    r.add("ADD REPO#other /x", "grep -qx two /x/f").ok();
    let again = r.add("ADD REPO#other /x", "grep -qx two /x/f").ok();
    assert_eq!(again.cached(), 2, "{}", again.stderr);
    let by_id = r.add(&format!("ADD REPO#{} /x", r.second), "grep -qx two /x/f").ok();
    assert_eq!(by_id.cached(), 2, "{}", by_id.stderr);
    sh(&served, &format!("git branch -f other {}", r.first));
    r.add("ADD REPO#other /x", "grep -qx two /x/f").fails(BUILD);
    sh(&served, &format!("git branch -f other {}", r.second));
    let back = r.add("ADD REPO#other /x", "grep -qx two /x/f").ok();
    assert_eq!(back.cached(), 2, "{}", back.stderr);
    // Whole commit ids need no server.
    sh(&served, "rm -rf .git/refs .git/packed-refs .git/objects");
    let gone = r.add(&format!("ADD REPO#{} /x", r.second), "grep -qx two /x/f").ok();
    assert_eq!(gone.cached(), 2, "{}", gone.stderr);
}

/// What whoever runs kiln has configured, and hooks of any kind, do nothing (CVE-2019-13139, CVE-2024-32002).
#[test]
fn git_knows_only_what_it_is_told() {
    let r = Repositories::new();
    let mark = r.home.path("mark");
    let hook = r.home.write("hooks/post-checkout", format!("#!/bin/sh\ntouch {}\n", mark.display()));
    sh(&r.home.path("."), &format!("chmod 755 {}", hook.display()));
    r.home.write(
        ".gitconfig",
        format!(
            "[core]\nhooksPath = {0}\nfsmonitor = touch {1}\n[init]\ntemplateDir = {0}\n",
            hook.parent().unwrap().display(),
            mark.display()
        ),
    );
    let context = r.home.context("c", &format!("FROM busybox\nADD {} /x\n", r.url("repo")));
    let mut command = r.home.command();
    command.args(["build", context.to_str().unwrap()]).env("GIT_CONFIG_GLOBAL", r.home.path(".gitconfig"));
    command.env("GIT_SSH_COMMAND", format!("touch {}", mark.display())).env("GIT_EXEC_PATH", "/nonexistent");
    finish(&mut command).ok();
    assert!(!mark.exists());
    // A submodule may not be a folder of this machine, whoever asks.
    sh(
        &r.home.path("served"),
        "git init -q -b main local && cd local && printf 'FROM scratch\\nCOPY . /\\n' > Dockerfile
         git -c protocol.file.allow=always submodule -q add \"file://$HOME/sub\" mod && git add . && git commit -qm x",
    );
    let outcome = r.home.build("local", &format!("FROM busybox\nADD {} /x\n", r.url("local")));
    outcome.fails(BUILD).says(&["cannot fetch the submodules of", "Dockerfile:2"]);
    build(&r.home, &[format!("file://{}", r.home.path("served/local").display())]).fails(BUILD).says(&["submodules"]);
    let dockerfile = format!("FROM busybox\nADD file://{}/repo /x\n", r.home.path("served").display());
    assert!(!r.home.build("file", &dockerfile).status.success());
}

#[test]
fn a_host_without_git_says_so() {
    let home = Home::new();
    let context = home.context("c", "FROM busybox\nADD git://127.0.0.1:9/x /x\n");
    let mut command = home.command();
    command.args(["build", context.to_str().unwrap()]).env("PATH", home.path("empty"));
    finish(&mut command).says(&["there is no `git` on this host", "Dockerfile:2"]);
    let mut command = home.command();
    command.args(["build", "git://127.0.0.1:9/x"]).env("PATH", home.path("empty"));
    finish(&mut command).says(&["there is no `git` on this host"]);
}

#[test]
fn a_build_that_waits_for_git_can_be_ended() {
    let home = Home::new();
    // It accepts and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("git://{}/x", silent.local_addr().unwrap());
    let mut child = home.command().args(["build", &url]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (_peer, _) = silent.accept().unwrap();
    let ended = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(ended.success());
    let begun = std::time::Instant::now();
    while child.try_wait().unwrap().is_none() {
        assert!(begun.elapsed().as_secs() < 20, "it goes on");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    outcome("build", child.wait_with_output().unwrap()).fails(130);
}

#[test]
fn named_folders() {
    let home = Home::new();
    home.write("lib/f", "lib\n");
    home.write("lib/ignored", "x");
    home.write("lib/.dockerignore", "ignored\n");
    home.write("lib/etc/deep", "x");
    let context = home.context(
        "c",
        "FROM busybox AS stage\nRUN echo stage > /f\nFROM busybox\nCOPY --from=lib . /all/\nCOPY --from=lib f /one/\n\
         COPY --from=stage f /stage\n\
         RUN --mount=from=lib,target=/m,rw grep -qx lib /m/f && test ! -e /m/ignored && touch /m/new\n\
         RUN test ! -e /all/ignored && grep -qx lib /one/f && grep -qx \"${want:-stage}\" /stage\n",
    );
    home.write("c/.dockerignore", "f\n");
    let context = context.to_str().unwrap();
    build(&home, &["--build-context", "lib=lib", context]).ok();
    let again = build(&home, &["--build-context", "lib=lib", context]).ok();
    assert_eq!(again.cached(), 6, "{}", again.stderr);
    // Without the context it's an image, which there isn't.
    assert!(!build(&home, &[context]).status.success());
    // A context comes before a stage, whose instructions then do nothing.
    let dockerfile = home.write(
        "d/Dockerfile",
        "FROM busybox AS stage\nRUN false\nFROM busybox AS two\nRUN true\nFROM busybox\nCOPY --from=Stage f /f\nCOPY --from=0 f /g\n\
         RUN grep -qx lib /f && grep -qx lib /g\n",
    );
    let d = dockerfile.parent().unwrap().to_str().unwrap();
    build(&home, &["--build-context", "stage=lib", d]).ok();
    let miss = build(&home, &["--build-context", "lib=nope", context]).fails(BUILD);
    miss.says(&["nope"]);
}

/// A folder, an archive or a repository as the root file system of a stage.
#[test]
fn from_a_named_context() {
    let r = Repositories::new();
    let home = &r.home;
    home.write("root/hello", "hello\n");
    home.write("root/etc/passwd", "root:x:0:0::/:/bin/sh\n");
    archive(home, "c.tar.gz");
    let server = FolderServer::files(&home.path("."));
    let c = home.context(
        "c",
        "FROM root AS r\nCOPY extra /extra\nFROM busybox\nCOPY --from=r / /r/\nRUN test -e /r/$file && grep -q x /r/extra\n",
    );
    home.write("c/extra", "x\n");
    let c = c.to_str().unwrap();
    for (source, file) in [
        ("root".to_owned(), "hello"),
        (format!("http://{}/c.tar.gz", server.host()), "d/f"),
        (format!("http://{}/root/hello", server.host()), "hello"),
        (format!("{}#v1:dir", r.url("repo")), "deep/g"),
    ] {
        let dockerfile = format!(
            "FROM root AS r\nCOPY extra /extra\nFROM busybox\nCOPY --from=r / /r/\nRUN test -e /r/{file} && grep -q x /r/extra\n"
        );
        home.write("c/Dockerfile", dockerfile);
        build(home, &["--build-context", &format!("root={source}"), c]).ok();
    }
    home.write("c/Dockerfile", "FROM root\nCOPY extra /extra\n");
    build(home, &["--build-context", "root=root", "-t", "from-context", c]).ok();
    let image = home.run(["inspect", "from-context"]).ok().json();
    assert_eq!(image[0]["RootFS"]["Layers"].as_array().unwrap().len(), 2, "{image:?}");
    // All its files count, and only they.
    let again = build(home, &["--build-context", "root=root", c]).ok();
    assert_eq!(again.cached(), 2, "{}", again.stderr);
    sh(&home.path("."), "cp -r root moved && touch moved/hello");
    let moved = build(home, &["--build-context", "root=moved", c]).ok();
    assert_eq!(moved.cached(), 2, "{}", moved.stderr);
    home.write("moved/new", "x");
    let changed = build(home, &["--build-context", "root=moved", c]).ok();
    assert_eq!(changed.cached(), 0, "{}", changed.stderr);
    let history = home.run(["history", "from-context"]).ok();
    assert!(history.stdout.contains("[context root] load from client"), "{}", history.stdout);
}

#[test]
fn named_images_and_layouts() {
    let home = Home::new();
    home.build("one", "FROM busybox\nRUN echo one > /mark\n").ok();
    home.build("two", "FROM busybox\nRUN echo two > /mark\n").ok();
    sh(&home.path("."), "mkdir layout");
    home.run(["save", "--format", "oci", "-o", "two.tar", "two"]).ok();
    sh(&home.path("."), "tar -xf two.tar -C layout");
    home.run(["rmi", "two"]).ok();
    let context = home.context(
        "c",
        "FROM base:1 AS b\nRUN cp /mark /seen\nFROM busybox\nCOPY --from=other /mark /m\nCOPY --from=b /seen /s\nRUN cat /m /s\n",
    );
    let context = context.to_str().unwrap();
    let index = std::fs::read_to_string(home.path("layout/index.json")).unwrap();
    let digest =
        serde_json::from_str::<serde_json::Value>(&index).unwrap()["manifests"][0]["digest"].as_str().unwrap().to_owned();
    for layout in
        ["oci-layout://layout".to_owned(), "oci-layout://layout:latest".to_owned(), format!("oci-layout://layout@{digest}")]
    {
        let outcome = build(
            &home,
            &[
                "--build-context",
                "base:1=docker-image://one",
                "--build-context",
                &format!("other={layout}"),
                "--no-cache",
                "--progress",
                "plain",
                context,
            ],
        )
        .ok();
        assert!(outcome.stderr.contains("two") && outcome.stderr.contains("one"), "{}", outcome.stderr);
    }
    let wrong = format!("other=oci-layout://layout@sha256:{}", "0".repeat(64));
    let all = ["--build-context", "base:1=docker-image://one", "--build-context"];
    build(&home, &[&all[..], &[&wrong, context]].concat()).says(&["does not hold"]);
    build(&home, &[&all[..], &["other=oci-layout://layout:nope", context]].concat()).says(&["no image with the tag `nope`"]);
    // A registry's image under the name of another, which isn't asked for.
    home.write("c/Dockerfile", "FROM example.invalid/x:1\nRUN test -e /bin/busybox\n");
    build(&home, &["--build-context", "example.invalid/x:1=docker-image://busybox", context]).ok();
    let before = registry().requests("library/never-asked").len();
    home.write("c/Dockerfile", "FROM never-asked AS n\nRUN false\nFROM n\nRUN test -e /mark\n");
    build(&home, &["--build-context", "n=docker-image://one", context]).ok();
    assert_eq!(registry().requests("library/never-asked").len(), before);
}
