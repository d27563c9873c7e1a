//! `kiln verify`: an image that is what its sources build, and images that other tools changed in one place each.

use std::path::{Path, PathBuf};

use crate::contexts::sh;
use crate::support::home::{Home, Outcome, finish};
use crate::support::lab::{self, FolderServer};

const USAGE: i32 = 125;

/// Changes one thing of an OCI layout, and every digest that follows from it.
const PATCH: &str = r#"
import hashlib, gzip, io, json, os, sys, tarfile
layout, what = sys.argv[1:]
blob = lambda digest: os.path.join(layout, "blobs", *digest.split(":"))
load = lambda digest: json.load(open(blob(digest)))
def put(data):
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    open(blob(digest), "wb").write(data)
    return {"digest": digest, "size": len(data)}
index = json.load(open(os.path.join(layout, "index.json")))
manifest = load(index["manifests"][0]["digest"])
config = load(manifest["config"]["digest"])
def layer(number, change):
    old = tarfile.open(fileobj=io.BytesIO(gzip.decompress(open(blob(manifest["layers"][number]["digest"]), "rb").read())))
    out = io.BytesIO()
    new = tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT)
    for member in old:
        data = old.extractfile(member).read() if member.isfile() else None
        data = change(member, data) or data
        new.addfile(member, io.BytesIO(data) if data is not None else None)
    new.close()
    config["rootfs"]["diff_ids"][number] = "sha256:" + hashlib.sha256(out.getvalue()).hexdigest()
    manifest["layers"][number].update(put(gzip.compress(out.getvalue())))
def changed(name, **to):
    def change(member, data):
        if member.name.rstrip("/") == name:
            for key, value in to.items(): setattr(member, key, value)
    return change
if what == "nothing": layer(-1, lambda member, data: None)
if what == "byte": layer(-2, lambda member, data: data.replace(b"good", b"gopd") if data and member.name == "app/f" else None)
if what == "mtime": layer(-2, changed("app/f", mtime=7))
if what == "mode": layer(-2, changed("app/f", mode=0o4755))
if what == "owner": layer(-2, changed("app/f", uid=1000))
if what == "xattr": layer(-2, changed("app/f", pax_headers={"SCHILY.xattr.user.note": "x"}))
if what == "env": config["config"]["Env"][-1] = "MODE=debug"
if what == "layer":
    config["rootfs"]["diff_ids"].append(config["rootfs"]["diff_ids"][0]); manifest["layers"].append(manifest["layers"][0])
manifest["config"].update(put(json.dumps(config).encode()))
index["manifests"][0].update(put(json.dumps(manifest).encode()))
json.dump(index, open(os.path.join(layout, "index.json"), "w"))
"#;

/// A context whose image is the same each time, and the image in a layout.
struct World {
    home: Home,
    context: PathBuf,
}

const SOURCES: &str = "FROM busybox\nENV MODE=fast\nWORKDIR /app\nCOPY f sub /app/\nRUN echo made > /made && touch -d @5 /made\n";

impl World {
    fn new() -> World {
        let home = Home::new();
        let context = home.context("c", SOURCES);
        home.write("c/f", "all is good\n");
        home.write("c/sub/g", "g\n");
        sh(&context, "touch -d @1600000000 f sub/g sub");
        World { home, context }
    }

    fn build(&self, args: &[&str]) -> Outcome {
        let mut command = self.home.command();
        finish(command.env("SOURCE_DATE_EPOCH", "1650000000").arg("build").args(args).arg(&self.context))
    }

    fn verify(&self, image: &str, args: &[&str]) -> Outcome {
        let mut command = self.home.command();
        finish(command.env("SOURCE_DATE_EPOCH", "1650000000").args(["verify", image]).args(args).arg(&self.context))
    }

    /// An image that somebody changed on its way, in a registry.
    fn changed(&self, what: &str) -> String {
        let name = format!("{}/verify/{what}:1", lab::registry().host());
        let (folder, script) = (self.home.path(what), self.home.write("patch.py", PATCH));
        std::fs::create_dir(&folder).unwrap();
        let layout = folder.join("layout");
        let archive = self.home.path("o.tar");
        if !archive.exists() {
            self.build(&["-o", &format!("type=oci,dest={}", archive.display())]).ok();
        }
        sh(&folder, "mkdir layout && tar -xf ../o.tar -C layout");
        let shown = |path: &Path| path.display().to_string();
        sh(&folder, &format!("python3 {} {} {what}", shown(&script), shown(&layout)));
        sh(&folder, &format!("skopeo copy -q --dest-tls-verify=false oci:{} docker://{name}", shown(&layout)));
        name
    }
}

#[test]
fn what_was_changed_on_the_way_is_named() {
    let world = World::new();
    let g = "layer 3 of 4 (COPY f sub /app/ # buildkit): ";
    for (what, said) in [
        ("byte", format!("{g}/app/f: content: image 12 bytes, sha256:")),
        ("mtime", format!("{g}/app/f: time: image 1970-01-01T00:00:07Z, rebuilt 2020-09-13T12:26:40Z\n")),
        ("mode", format!("{g}/app/f: mode: image 4755, rebuilt 0644\n")),
        ("owner", format!("{g}/app/f: owner: image 1000:0, rebuilt 0:0\n")),
        ("xattr", format!("{g}/app/f: attribute user.note: image \"x\", rebuilt nothing\n")),
        ("env", "configuration: config.Env[1]: image \"MODE=debug\", rebuilt \"MODE=fast\"\n".to_owned()),
        ("layer", "layer 5 of 5: layer: image a layer, rebuilt none\n".to_owned()),
    ] {
        let image = world.changed(what);
        let outcome = world.verify(&image, &["--ignore-timestamps"][..usize::from(what == "env")]).fails(1);
        assert!(outcome.stdout.contains(&said), "{what}: {}\n{}", outcome.stdout, outcome.stderr);
        assert_eq!(outcome.stdout.lines().count(), if what == "mtime" { 3 } else { 2 }, "{what}: {}", outcome.stdout);
        if what == "mtime" {
            assert!(outcome.stdout.contains("hint: nothing but times differs"), "{}", outcome.stdout);
            world.verify(&image, &["--ignore-timestamps"]).ok();
        }
    }
    // A tar that spells the same entries otherwise is no difference.
    world.verify(&world.changed("nothing"), &[]).ok();
}

#[test]
fn what_was_not_changed_is_the_same() {
    let world = World::new();
    world.build(&["-t", "x"]).ok();
    let same = world.verify("x", &[]).ok();
    assert_eq!(same.stdout, "x is what its sources build\n");
    assert_eq!(same.cached(), 0, "{}", same.stderr);
    let id = world.home.run(["images", "-q", "--no-trunc"]).ok().stdout;
    world.verify(id.trim(), &["--format", "json"]).ok();
    assert_eq!(world.home.run(["images", "-q", "--no-trunc"]).ok().stdout, id, "no image is left behind");

    // Other sources than those of the image: a file, an argument of the file, the base.
    world.home.write("c/sub/g", "h\n");
    sh(&world.context, "touch -d @1600000000 sub/g sub");
    let file = world.verify("x", &["--format", "json"]).fails(1).json().remove(0);
    assert_eq!((&file["layer"]["path"], &file["layer"]["number"]), (&"/app/g".into(), &3.into()), "{file}");
    assert_eq!(file["layer"]["differences"][0]["field"], "content");
    world.home.context("c", &SOURCES.replace("busybox", "debian:bookworm"));
    let base = world.verify("x", &[]).fails(1).stdout;
    assert!(base.contains("layer 1 of 4") && base.contains("more paths differ"), "{base}");

    // Without a fixed time: what a command makes is as old as the build.
    let plain = world.home.context("p", "FROM busybox\nRUN echo x > /made\n");
    finish(world.home.command().args(["build", "-t", "p"]).arg(&plain)).ok();
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let verify = |more: &[&str]| finish(world.home.command().args(["verify", "p"]).args(more).arg(&plain));
    let times = verify(&[]).fails(1).stdout;
    assert!(times.contains("/made: time: image ") && times.contains("hint: nothing but times differs"), "{times}");
    assert!(!times.contains("configuration:"), "the build's clock is the image's: {times}");
    verify(&["--ignore-timestamps"]).ok();

    verify(&["-t", "y"]).fails(USAGE).says(&["--tag has no place here"]);
    finish(world.home.command().args(["verify", "no/such:1"]).arg(&plain)).fails(4);
    verify(&["--target", "none"]).fails(3);
}

#[test]
fn the_provenance_says_what_to_build() {
    let home = Home::new();
    let served = home.path("served");
    std::fs::create_dir_all(&served).unwrap();
    let dockerfile =
        "ARG WHICH=busybox\nFROM $WHICH\nARG WORD\nCOPY f /f\nRUN echo $WORD > /word && cat /f\nFROM busybox AS other\n";
    home.write("served/Dockerfile.in", dockerfile);
    let script = "git init -q -b main repo && cd repo && mkdir docker && mv ../Dockerfile.in docker/Dockerfile && echo one > f && \
                  git add . && git commit -qm one";
    sh(&served, script);
    let server = FolderServer::git(&served);
    let url = format!("git://{}/repo#main", server.host());
    let image = format!("{}/verify/provenance:1", lab::registry().host());
    let base = format!("{}/verify/base:1", lab::registry().host());
    home.build(&base, "FROM busybox\nRUN echo first > /v\n").ok();
    home.run(["push", &base]).ok();
    let (word, which) = ("WORD=said", format!("WHICH={base}"));
    let flags = ["--build-arg", word, "--build-arg", &which, "--target", "0", "-f", "docker/Dockerfile"];
    let mut build = home.command();
    build.args(["build", "--push", "-t", &image, "--provenance=mode=max"]).args(flags).arg(&url);
    finish(&mut build).ok();

    // All that has a name moves on; the image is verified where nobody has built it.
    home.build(&base, "FROM busybox\nRUN echo second > /v\n").ok();
    home.run(["push", &base]).ok();
    sh(&served, "cd repo && echo two > f && git commit -qam two");
    let verify = |args: &[&str]| {
        let mut command = home.command();
        finish(command.env("KILN_ROOT", home.path("elsewhere")).args(["verify", "--ignore-timestamps"]).args(args))
    };
    let same = verify(&[&image]).ok().says(&["one"]);
    assert!(same.stdout.contains("is what its sources build"), "{}", same.stdout);
    let other = verify(&[&image, "--build-arg", "WORD=other"]).fails(1).stdout;
    assert!(other.contains("/word: content: image 5 bytes"), "{other}");
    let today = verify(&[&[image.as_str()], &flags[..], &[&url]].concat()).fails(1).stdout;
    assert!(today.contains("/v: content: image 6 bytes"), "{today}");
    verify(&[&base]).fails(USAGE).says(&["has no provenance", "CONTEXT"]);
}
