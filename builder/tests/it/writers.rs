//! kiln reads the images that other people's programs write, in each of the forms that they have.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::home::{Home, finish};
use crate::support::lab;
use crate::support::skip::{needs, skipped};

/// What every image is made of. The last two steps do the same, so that two layers may be one file.
const DOCKERFILE: &str = "FROM busybox\nLABEL made=by-kiln\nRUN mkdir /data && echo content > /data/file && ln /data/file /data/hard && ln -s file /data/soft \
    && chown 5:6 /data/file && chmod 4750 /data/file\nRUN rm -r /home\nUSER app\n";

/// What a RUN on the image sees, whoever wrote it.
const CHECK: &str =
    "test \"$(stat -c '%a %u %g %h' /data/file)\" = '4750 5 6 2' && test \"$(readlink /data/soft)\" = file && test ! -e /home";

/// How kiln reads what was written.
enum Read {
    /// `kiln load` of this file.
    Load(&'static str),
    /// `oci-layout://` of this.
    Layout(&'static str),
    /// `FROM` of this name in the registry.
    Pull(&'static str),
}

/// Whether the image is the one that went in: the same configuration.
#[derive(PartialEq)]
enum Is {
    Same,
    Another,
}

/// The program, and what it is asked to write. `$SRC` is a layout with the image `x`, `$REG` a registry that has it as
/// `writers/src:1`, and the current folder is the row's own. `$PODMAN` and `$DOCKER` have it under that name.
type Row = (&'static str, &'static str, Read, Is);

const ROWS: &[Row] = &[
    ("skopeo", "skopeo copy -q oci:$SRC:x oci:l:y", Read::Layout("l:y"), Is::Same),
    ("skopeo", "skopeo copy -q oci:$SRC:x oci-archive:a.tar:docker.io/back/a:1", Read::Load("a.tar"), Is::Same),
    ("skopeo", "skopeo copy -q oci:$SRC:x docker-archive:a.tar:back/a:1", Read::Load("a.tar"), Is::Same),
    // The archive was no file of Docker's: its layers are gzip all the same.
    ("skopeo", "skopeo copy -q oci:$SRC:x docker-archive:a.tar:back/a:1 && gzip a.tar", Read::Load("a.tar.gz"), Is::Same),
    (
        "skopeo",
        "skopeo copy -q --dest-compress-format zstd --dest-compress oci:$SRC:x oci-archive:a.tar:back:1",
        Read::Load("a.tar"),
        Is::Same,
    ),
    (
        "skopeo",
        "skopeo copy -q --dest-tls-verify=false --format v2s2 oci:$SRC:x docker://$REG/writers/v2s2:1",
        Read::Pull("writers/v2s2:1"),
        Is::Same,
    ),
    (
        "skopeo",
        "skopeo copy -q --dest-tls-verify=false --format v2s2 --dest-compress-format zstd oci:$SRC:x docker://$REG/writers/v2s2:2",
        Read::Pull("writers/v2s2:2"),
        Is::Same,
    ),
    // Layers that may not be distributed; the registry need not have them, a layout does.
    (
        "skopeo",
        "skopeo copy -q oci:$SRC:x oci:l:y && python3 - <<'END'\n\
         import hashlib, json\n\
         index = json.load(open('l/index.json')); entry = index['manifests'][0]\n\
         path = lambda d: 'l/blobs/' + d.replace(':', '/')\n\
         manifest = json.load(open(path(entry['digest'])))\n\
         for layer in manifest['layers']:\n \
         layer['mediaType'] = 'application/vnd.oci.image.layer.nondistributable.v1.tar+gzip'\n \
         layer['urls'] = ['http://127.0.0.1:1/layer']\n\
         data = json.dumps(manifest).encode(); digest = 'sha256:' + hashlib.sha256(data).hexdigest()\n\
         open(path(digest), 'wb').write(data); entry.update(digest=digest, size=len(data)); json.dump(index, open('l/index.json', 'w'))\n\
         END",
        Read::Layout("l:y"),
        Is::Same,
    ),
    (
        "umoci",
        "cp -r $SRC l && umoci unpack --image l:x b && echo new > b/rootfs/new && umoci repack --image l:y b",
        Read::Layout("l:y"),
        Is::Another,
    ),
    ("umoci", "cp -r $SRC l && umoci config --image l:x --tag y --config.label more=1", Read::Layout("l:y"), Is::Another),
    (
        "umoci",
        "cp -r $SRC l && echo new > f && umoci insert --image l:x --tag y f /new && tar cf a.tar -C l .",
        Read::Load("a.tar"),
        Is::Another,
    ),
    ("podman", "$PODMAN save -q -o a.tar $REG/writers/src:1", Read::Load("a.tar"), Is::Same),
    ("podman", "$PODMAN save -q --format oci-archive -o a.tar $REG/writers/src:1", Read::Load("a.tar"), Is::Same),
    (
        "podman",
        "$PODMAN tag $REG/writers/src:1 back/other:1 && $PODMAN save -q -m -o a.tar $REG/writers/src:1 $REG/writers/busybox:1",
        Read::Load("a.tar"),
        Is::Same,
    ),
    ("podman", "$PODMAN save -q --format oci-dir -o l $REG/writers/src:1", Read::Layout("l"), Is::Same),
    (
        "podman",
        "$PODMAN push -q --tls-verify=false $REG/writers/src:1 docker://$REG/writers/podman:1",
        Read::Pull("writers/podman:1"),
        Is::Same,
    ),
    (
        "podman",
        "$PODMAN push -q --tls-verify=false --format v2s2 $REG/writers/src:1 docker://$REG/writers/podman:2",
        Read::Pull("writers/podman:2"),
        Is::Same,
    ),
    (
        "podman",
        "$PODMAN push -q --tls-verify=false --compression-format zstd $REG/writers/src:1 docker://$REG/writers/podman:3",
        Read::Pull("writers/podman:3"),
        Is::Same,
    ),
    (
        "buildah",
        "c=$($BUILDAH from -q --pull-never $REG/writers/src:1) && $BUILDAH config --label more=1 $c \
         && $BUILDAH commit -q --format docker $c oci-archive:a.tar:back/a:1 && $BUILDAH rm $c",
        Read::Load("a.tar"),
        Is::Another,
    ),
    ("docker", "$DOCKER save -o a.tar $REG/writers/src:1", Read::Load("a.tar"), Is::Same),
    // What two images have in common is there once, and linked to.
    (
        "docker",
        "$DOCKER save -o a.tar $REG/writers/src:1 $REG/writers/busybox:1 && tar tvf a.tar | grep -q ' -> '",
        Read::Load("a.tar"),
        Is::Same,
    ),
    (
        "docker",
        "$DOCKER tag $REG/writers/src:1 $REG/writers/docker:1 && $DOCKER push -q $REG/writers/docker:1",
        Read::Pull("writers/docker:1"),
        Is::Same,
    ),
    ("newest docker", "$NEWEST save -o a.tar $REG/writers/src:1", Read::Load("a.tar"), Is::Same),
    ("newest docker", "$NEWEST save -o a.tar $REG/writers/src:1 $REG/writers/busybox:1", Read::Load("a.tar"), Is::Same),
    (
        "newest docker",
        "$NEWEST tag $REG/writers/src:1 $REG/writers/docker:2 && $NEWEST push -q $REG/writers/docker:2",
        Read::Pull("writers/docker:2"),
        Is::Same,
    ),
];

/// A command line of a client, for a shell.
fn line(command: &Command) -> String {
    let environment = command.get_envs().filter_map(|(name, value)| Some(format!("{}={} ", name.to_str()?, value?.to_str()?)));
    format!("env {}{}", environment.collect::<String>(), command.get_program().display())
}

/// Has each client that there is pull the images, and gives each its variable.
fn clients(test: &str, registry: &str) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    match lab::podman() {
        Ok(podman) => {
            let line = line(&podman.podman());
            // The same storage: its arguments are those of podman.
            let buildah = format!("{line}.buildah");
            found.extend([("PODMAN", line), ("BUILDAH", buildah)]);
        }
        Err(reason) => skipped(test, reason),
    }
    match lab::dockerd() {
        Ok(dockerd) => found.push(("DOCKER", line(&dockerd.docker()))),
        Err(reason) => skipped(test, reason),
    }
    if std::env::var_os("KILN_TEST_FULL").is_some() {
        found.push(("NEWEST", line(&lab::newest_dockerd(true).docker())));
    }
    for (name, client) in found.iter().filter(|(name, _)| *name != "BUILDAH") {
        let flag = if *name == "PODMAN" { "--tls-verify=false" } else { "" };
        for image in ["src", "busybox"] {
            let script = format!("{client} pull -q {flag} {registry}/writers/{image}:1");
            finish(Command::new("sh").args(["-c", &script]).stdin(Stdio::null())).ok();
        }
    }
    found
}

#[test]
fn what_others_write_is_read() {
    const TEST: &str = "writers::what_others_write_is_read";
    if !needs(TEST, "skopeo") || !needs(TEST, "umoci") || !needs(TEST, "buildah") {
        return;
    }
    let home = Home::new();
    let registry = lab::registry().host();
    let context = home.context("source", DOCKERFILE);
    let layout = home.path("layout");
    home.run([
        "build",
        &format!("--output=type=oci,tar=false,dest={},name=writers/src:x", layout.display()),
        &format!("--output=type=registry,name={registry}/writers/src:1"),
        "--output=type=image,name=source:1",
        context.to_str().unwrap(),
    ])
    .ok();
    let busybox = home.context("busybox", "FROM busybox\nLABEL x=1\n");
    home.run(["build", &format!("--output=type=registry,name={registry}/writers/busybox:1"), busybox.to_str().unwrap()]).ok();
    let source = identity(&home, "source:1");
    let clients = clients(TEST, registry);
    let mut found = Vec::new();
    for (number, (program, script, read, is)) in ROWS.iter().enumerate() {
        let needed = [("podman", "PODMAN"), ("buildah", "BUILDAH"), ("docker", "DOCKER"), ("newest docker", "NEWEST")];
        let variable = needed.iter().find(|(name, _)| name == program).map(|(_, variable)| *variable);
        if variable.is_some_and(|variable| clients.iter().all(|(name, _)| *name != variable)) {
            skipped(&format!("{TEST} ({program})"), "it is not here, or takes 1.5 GB (KILN_TEST_FULL=1)");
            continue;
        }
        let folder = home.path(&format!("row-{number}"));
        std::fs::create_dir(&folder).unwrap();
        let mut shell = Command::new("sh");
        shell.args(["-euc", script]).current_dir(&folder).stdin(Stdio::null());
        shell.env("SRC", &layout).env("REG", registry).env("TMPDIR", &folder).envs(clients.clone());
        let written = finish(&mut shell);
        if !written.status.success() {
            found.push(format!("{program} can't write it: {script}\n{}", written.stderr));
            continue;
        }
        if let Err(error) = read_back(&folder, registry, read, (*is == Is::Same).then_some(&source)) {
            found.push(format!("{script}\n{error}"));
        }
    }
    assert!(found.is_empty(), "{} of {}:\n{}", found.len(), ROWS.len(), found.join("\n"));
}

/// An image's id, and the digests of its layers' tars.
fn identity(home: &Home, name: &str) -> (String, String) {
    let told = |field: &str| home.run(["inspect", "--format", &format!("{{{{json .{field}}}}}"), name]).ok().stdout;
    (told("Id"), told("RootFS.Layers"))
}

/// Reads the image with a store of its own, looks whether it is this one, and builds on it.
fn read_back(folder: &Path, registry: &str, read: &Read, source: Option<&(String, String)>) -> Result<(), String> {
    let home = Home::new();
    let run = |args: &[&str]| {
        let outcome = home.run(args);
        if outcome.status.success() { Ok(outcome.stdout) } else { Err(format!("kiln {args:?}: {}", outcome.stderr)) }
    };
    let mut context = None;
    let base = match read {
        Read::Load(file) => {
            let told = run(&["load", "-i", folder.join(file).to_str().unwrap_or_default()])?;
            // Of several images `docker save` writes now this, now that one first.
            let line = told
                .lines()
                .find(|line| line.contains("writers/src:"))
                .or(told.lines().next())
                .ok_or("kiln load says nothing")?;
            // An id is no name that FROM knows.
            let name = line.strip_prefix("Loaded image: ").or(line.strip_prefix("Loaded image ID: ")).unwrap_or(line);
            run(&["tag", name, "base:1"])?;
            "base:1".to_owned()
        }
        Read::Layout(place) => {
            context = Some(format!("--build-context=base=oci-layout://{}/{place}", folder.display()));
            "base".to_owned()
        }
        Read::Pull(name) => {
            let name = format!("{registry}/{name}");
            run(&["pull", &name])?;
            name
        }
    };
    let build = |tag: &str, more: &str| {
        let folder = home.context(tag, &format!("FROM {base}\n{more}\n"));
        let args = [Some("build"), context.as_deref(), Some("-t"), Some(tag), folder.to_str()];
        run(&args.into_iter().flatten().collect::<Vec<_>>())
    };
    build("same", "")?;
    build("check", &format!("USER root\nRUN {CHECK}"))?;
    let Some(source) = source else { return Ok(()) };
    // What is in a layout has no name in the store.
    let found = if context.is_some() { (source.0.clone(), identity(&home, "same").1) } else { identity(&home, &base) };
    if found == *source { Ok(()) } else { Err(format!("it is {found:?}, not {source:?}")) }
}
