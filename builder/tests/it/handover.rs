//! `--load` gives an image to Docker and to podman, and moves only the layers that they lack: real daemons behind a socket that
//! counts.

use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;
use std::process::Command;

use crate::support::counted::Counted;
use crate::support::home::{Home, Outcome, finish};
use crate::support::host::Person;
use crate::support::lab;
use crate::support::skip::skipped;

/// The size of the layer that doesn't change; random, so that no compression makes it small.
const BIG: usize = 5_000_000;
/// What may move for an image of which one small layer changed.
const SMALL: u64 = 50_000;

/// A daemon, as far as these tests use it.
struct Target {
    name: &'static str,
    socket: PathBuf,
    client: Box<dyn Fn() -> Command + Send + Sync>,
}

impl Target {
    fn docker() -> Result<Target, &'static str> {
        let dockerd = lab::dockerd()?;
        Ok(Target { name: "docker", socket: dockerd.socket(), client: Box::new(|| dockerd.docker()) })
    }

    fn podman() -> Result<Target, &'static str> {
        let podman = lab::podman()?;
        Ok(Target { name: "podman", socket: podman.socket(), client: Box::new(|| podman.podman()) })
    }

    fn run(&self, args: &[&str]) -> Outcome {
        finish((self.client)().args(args))
    }

    /// The id and the digests of the layers' tars of an image, and that its files can be read.
    fn image(&self, name: &str) -> (String, String) {
        let format = "{{.Id}} {{range .RootFS.Layers}}{{.}} {{end}}";
        let told = self.run(&["image", "inspect", "--format", format, name]).ok().stdout;
        let (id, layers) = told.trim().split_once(' ').expect("an id and layers");
        (id.trim_start_matches("sha256:").to_owned(), layers.trim().to_owned())
    }

    fn remove(&self, names: &[&str]) {
        self.run(&[&["rmi", "-f"], names].concat());
    }
}

/// Those of this machine; each that is missing is told.
fn targets(test: &str) -> Vec<Target> {
    let found = [Target::docker(), Target::podman()];
    found.into_iter().filter_map(|target| target.map_err(|reason| skipped(test, reason)).ok()).collect()
}

/// A context with a big file, whose image says `word`.
fn context(home: &Home, word: &str) -> PathBuf {
    // The same random bytes in each context of a test.
    let big = home.path("big");
    if !big.exists() {
        // Of each test's own: the daemons are shared, and what another test just loaded would not move.
        let mut bytes = vec![0; BIG];
        File::open("/dev/urandom").and_then(|mut noise| noise.read_exact(&mut bytes)).unwrap();
        std::fs::write(&big, bytes).unwrap();
    }
    let context = home.context(
        &format!("context-{word}"),
        &format!("FROM busybox\nCOPY big /big\nRUN echo {word} > /word\nCMD [\"cat\", \"/word\"]\n"),
    );
    std::fs::copy(&big, context.join("big")).unwrap();
    context
}

/// Builds and loads the image under `names`; its id, which is the digest of its configuration or, for containerd's store, of its
/// manifest.
fn load(home: &Home, host: &str, word: &str, names: &[&str]) -> [String; 2] {
    let metadata = home.path("metadata.json");
    let mut command = home.command();
    command.env("DOCKER_HOST", host).args(["build", "--load", "--progress=plain", "--metadata-file"]).arg(&metadata);
    command.args(names.iter().flat_map(|name| ["-t", name]));
    finish(command.arg(context(home, word))).ok();
    let told: serde_json::Value = serde_json::from_slice(&std::fs::read(metadata).unwrap()).unwrap();
    ["containerimage.config.digest", "containerimage.digest"].map(|key| {
        let digest = told[key].as_str().unwrap_or_else(|| panic!("no {key}: {told}"));
        digest.trim_start_matches("sha256:").to_owned()
    })
}

/// The images of one target, loaded through a counting socket.
fn check(target: &Target, home: &Home) {
    let name = target.name;
    let counted = Counted::new(&home.path(&format!("{name}.sock")), target.socket.clone());
    let tags = [format!("handover/{name}:1"), format!("handover/{name}-too:2")];
    let names = [tags[0].as_str(), tags[1].as_str()];
    let first = load(home, &counted.host(), "one", &names);
    assert!(counted.sent() > BIG as u64, "{name}: the first image is complete");
    assert!(first.contains(&target.image(names[0]).0) && first.contains(&target.image(names[1]).0), "{name}");
    // The same image again: no layer at all.
    assert_eq!(load(home, &counted.host(), "one", &names), first);
    let again = counted.sent();
    assert!(again < SMALL, "{name}: {again} bytes for an image that is there");
    let second = load(home, &counted.host(), "two", &names);
    let moved = counted.sent();
    assert!(moved < SMALL, "{name}: {moved} bytes for one small layer");
    assert_ne!(first, second);
    let (id, layers) = target.image(names[0]);
    assert!(second.contains(&id) && layers.split(' ').count() == 3, "{name}: {id} {layers}");
    let told = home.run(["inspect", "--format", "{{json .RootFS.Layers}}", names[0]]).ok().stdout;
    assert!(layers.split(' ').all(|layer| told.contains(layer)), "{name}: {layers}, not {told}");
    // What is there when kiln asks may be gone when the image comes.
    let client = (target.client)();
    let (program, environment) = (client.get_program().to_owned(), client.get_envs().map(own).collect::<Vec<_>>());
    let (gone, ids) = (names.map(str::to_owned), [first, second].concat());
    counted.before_load(move || {
        let mut command = Command::new(program);
        command.envs(environment.into_iter().filter_map(|(name, value)| Some((name, value?))));
        finish(command.args(["rmi", "-f"]).args(gone).args(ids));
    });
    let third = load(home, &counted.host(), "three", &names);
    assert!(counted.sent() > BIG as u64, "{name}: the whole image was sent");
    assert!(third.contains(&target.image(names[1]).0), "{name}");
    target.remove(&names);
}

fn own((name, value): (&std::ffi::OsStr, Option<&std::ffi::OsStr>)) -> (std::ffi::OsString, Option<std::ffi::OsString>) {
    (name.to_owned(), value.map(ToOwned::to_owned))
}

#[test]
fn a_changed_layer_is_all_that_moves() {
    let test = "handover::a_changed_layer_is_all_that_moves";
    for target in targets(test) {
        let Some(home) = Home::in_mode(test) else { return };
        check(&target, &home);
    }
}

/// The same for Debian sid's dockerd with both of its ways to keep images.
#[test]
fn a_changed_layer_is_all_that_moves_to_a_newer_docker() {
    let test = "handover::a_changed_layer_is_all_that_moves_to_a_newer_docker";
    if std::env::var_os("KILN_TEST_FULL").is_none() {
        return skipped(test, "it takes 1.5 GB (KILN_TEST_FULL=1)");
    }
    for containerd in [true, false] {
        let dockerd = lab::newest_dockerd(containerd);
        let name = if containerd { "containerd" } else { "driver" };
        check(&Target { name, socket: dockerd.socket(), client: Box::new(|| dockerd.docker()) }, &Home::new());
    }
}

#[test]
fn what_podman_has_in_another_form_stays_there() {
    let test = "handover::what_podman_has_in_another_form_stays_there";
    let target = match Target::podman() {
        Ok(target) => target,
        Err(reason) => return skipped(test, reason),
    };
    let home = Home::new();
    let folder = context(&home, "form");
    // Plain tars, of which kiln's manifest of the next image says nothing.
    let file = home.path("plain.tar");
    let output = format!("type=docker,dest={},compression=uncompressed", file.display());
    home.run(["build", "-t", "handover/form:1", "--output", &output, folder.to_str().unwrap()]).ok();
    target.run(&["load", "-q", "-i", file.to_str().unwrap()]).ok();
    let counted = Counted::new(&home.path("form.sock"), target.socket.clone());
    let id = load(&home, &counted.host(), "reform", &["handover/form:2"]);
    let moved = counted.sent();
    assert!(moved < SMALL, "{moved} bytes");
    assert!(id.contains(&target.image("handover/form:2").0));
    target.remove(&["handover/form:1", "handover/form:2"]);
}

#[test]
fn a_named_daemon_has_to_be_there() {
    let home = Home::new();
    let folder = home.context("c", "FROM busybox\nRUN echo ran\n");
    let nowhere = home.path("nowhere.sock");
    // What is asked for, the variable that names a daemon, and what the error says.
    let rows = [
        ("--load", "DOCKER_HOST", format!("unix://{}", nowhere.display()), 4, "cannot use the daemon that DOCKER_HOST names"),
        ("--load", "CONTAINER_HOST", format!("unix://{}", nowhere.display()), 4, "that CONTAINER_HOST names"),
        ("--load", "DOCKER_HOST", "tcp://127.0.0.1:1".to_owned(), 4, "tcp://127.0.0.1:1"),
        ("--load", "DOCKER_HOST", "ssh://nobody@nowhere".to_owned(), 125, "ssh -L"),
        (
            "--output=type=docker,context=nowhere",
            "DOCKER_CONFIG",
            home.path("").display().to_string(),
            125,
            "`nowhere` can't be read",
        ),
    ];
    for (flag, variable, value, code, said) in rows {
        let outcome = finish(home.command().env(variable, &value).args(["build", "--progress=plain", flag]).arg(&folder));
        let outcome = outcome.fails(code).says(&[said]);
        assert!(!outcome.stderr.contains("RUN echo ran"), "it is said before the build: {outcome:?}");
    }
}

#[test]
fn without_a_daemon_the_image_stays_in_the_store() {
    let test = "handover::without_a_daemon_the_image_stays_in_the_store";
    for socket in ["/var/run/docker.sock", "/run/podman/podman.sock"] {
        if std::path::Path::new(socket).exists() {
            return skipped(test, &format!("this machine has {socket}"));
        }
    }
    let home = Home::new();
    let folder = home.context("c", "FROM busybox\nRUN echo ran\n");
    let built = home.run(["build", "--load", "-t", "lonely:1", folder.to_str().unwrap()]).ok();
    assert_eq!(built.stderr.matches("no Docker or podman answers here").count(), 1, "{built:?}");
    home.run(["inspect", "lonely:1"]).ok();
}

/// A socket is reached from within a user namespace by the rights that its user has outside.
#[test]
fn an_ordinary_user_loads_what_their_rights_allow() {
    let test = "handover::an_ordinary_user_loads_what_their_rights_allow";
    for person in [Person::with_ids(test), Person::plain(test)].into_iter().flatten() {
        let target = match Target::podman() {
            Ok(target) => target,
            Err(reason) => return skipped(test, reason),
        };
        let home = Home::of(person);
        let counted = Counted::new(&home.path("own.sock"), target.socket.clone());
        let name = format!("handover/{}:1", person.name);
        let id = load(&home, &counted.host(), person.name, &[&name]);
        assert!(id.contains(&target.image(&name).0));
        target.remove(&[&name]);
        let refused = format!("unix://{}", target.socket.display());
        let mut command = home.command();
        command.env("DOCKER_HOST", refused).args(["build", "--load"]).arg(context(&home, person.name));
        finish(&mut command).fails(4).says(&["Permission denied", "see to it that this user may speak to it"]);
    }
}
