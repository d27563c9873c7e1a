//! The forms that layers leave in: every compression, forced on a base or not, times rewritten; read by other people's programs.

use std::path::{Path, PathBuf};
use std::process::Command;

use kiln_oci::digest::Digest;
use serde_json::Value;

use crate::support::home::{Home, finish};
use crate::support::lab;
use crate::support::skip::needs;

const DOCKERFILE: &str = "FROM busybox\nCOPY data /data\nRUN mkdir /d && cp /data /d/copy && ln -s copy /d/link && rm /bin/ls\n";

/// A layout that a build wrote into a tar, unpacked.
struct Layout(PathBuf);

impl Layout {
    fn build(home: &Home, name: &str, options: &str, more: &[&str]) -> Layout {
        let context = home.context("context", DOCKERFILE);
        if !home.path("context/data").exists() {
            let data: Vec<u8> = (0..6_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 20) as u8 & 0x1f).collect();
            home.write("context/data", data);
        }
        let tar = home.path(&format!("{name}.tar"));
        let output = format!("type=oci,dest={},{options}", tar.display());
        home.run(
            ["build", "-t", name, "-o", &output].iter().copied().chain(more.iter().copied()).chain([context.to_str().unwrap()]),
        )
        .ok();
        let folder = home.path(name);
        std::fs::create_dir(&folder).unwrap();
        finish(Command::new("tar").arg("-xf").arg(&tar).arg("-C").arg(&folder)).ok();
        Layout(folder)
    }

    fn blob(&self, descriptor: &Value) -> Vec<u8> {
        let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        std::fs::read(self.0.join("blobs/sha256").join(digest)).unwrap()
    }

    fn json(&self, descriptor: &Value) -> Value {
        serde_json::from_slice(&self.blob(descriptor)).unwrap()
    }

    fn descriptor(&self) -> Value {
        let index: Value = serde_json::from_slice(&std::fs::read(self.0.join("index.json")).unwrap()).unwrap();
        index["manifests"][0].clone()
    }

    fn manifest(&self) -> Value {
        self.json(&self.descriptor())
    }

    fn layers(&self) -> Vec<Value> {
        self.manifest()["layers"].as_array().unwrap().clone()
    }

    /// The tars of the layers, as Python and zstd(1) see them.
    fn tars(&self) -> Vec<Vec<u8>> {
        let plain = |layer: &Value| {
            let path = self.0.join("blobs/sha256").join(&layer["digest"].as_str().unwrap()["sha256:".len()..]);
            let program = match layer["mediaType"].as_str().unwrap().rsplit(['+', '.']).next().unwrap() {
                "gzip" => "gzip",
                "zstd" => "zstd",
                _ => return self.blob(layer),
            };
            let output = Command::new(program).arg("-dc").stdin(std::fs::File::open(path).unwrap()).output().unwrap();
            assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
            output.stdout
        };
        self.layers().iter().map(plain).collect()
    }

    /// Every layer is the one that the configuration names.
    fn is_sound(&self) {
        let config = self.json(&self.manifest()["config"]);
        let found: Vec<String> = self.tars().iter().map(|tar| Digest::of(tar).to_string()).collect();
        assert_eq!(config["rootfs"]["diff_ids"], serde_json::json!(found));
    }
}

/// Name and time of each entry.
fn times(tar: &Path) -> Vec<(String, i64)> {
    let script = "import sys,tarfile\nfor m in tarfile.open(sys.argv[1]): print(m.name, int(m.mtime))";
    let output = finish(Command::new("python3").args(["-c", script]).arg(tar)).ok();
    let line = |line: &str| line.rsplit_once(' ').map(|(name, time)| (name.to_owned(), time.parse().unwrap())).unwrap();
    output.stdout.lines().map(line).collect()
}

#[test]
fn every_compression_is_read_by_others() {
    if ["skopeo", "zstd", "umoci"].iter().any(|program| !needs("every_compression_is_read_by_others", program)) {
        return;
    }
    let home = Home::new();
    const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
    const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";
    let mut sizes = Vec::new();
    for (name, options, own, base) in [
        ("gzip", "compression=gzip", GZIP, GZIP),
        ("gzip0", "compression=gzip,compression-level=0", GZIP, GZIP),
        ("gzip9", "compression=gzip,compression-level=9", GZIP, GZIP),
        ("plain", "compression=uncompressed", PLAIN, GZIP),
        ("zstd", "compression=zstd", ZSTD, GZIP),
        ("zstd19", "compression=zstd,compression-level=19,force-compression=true", ZSTD, ZSTD),
        ("estargz", "compression=estargz,force-compression=true", GZIP, GZIP),
        ("bare", "compression=uncompressed,force-compression=true", PLAIN, PLAIN),
    ] {
        let layout = Layout::build(&home, name, options, &[]);
        let layers = layout.layers();
        let types: Vec<&str> = layers.iter().map(|layer| layer["mediaType"].as_str().unwrap()).collect();
        assert_eq!(types, [base, own, own], "{name}");
        layout.is_sound();
        let is_indexed = |layer: &Value| layer["annotations"]["containerd.io/snapshot/stargz/toc.digest"].is_string();
        assert!(layers.iter().all(|layer| is_indexed(layer) == (name == "estargz")), "{name}");
        sizes.push((name, layers[1]["size"].as_u64().unwrap()));
        // skopeo proves each digest that it copies, and each diff_id where it decompresses.
        let source = format!("oci-archive:{}", home.path(&format!("{name}.tar")).display());
        let copy = home.path(&format!("{name}.copy"));
        let copy = match options.contains("zstd") {
            true => format!("dir:{}", copy.display()),
            false => format!("docker-archive:{}:{name}:latest", copy.display()),
        };
        finish(Command::new("skopeo").args(["copy", "-q", &source, &copy])).ok();
        if !options.contains("zstd") {
            let tag = layout.descriptor()["annotations"]["org.opencontainers.image.ref.name"].as_str().unwrap().to_owned();
            let image = format!("{}:{tag}", layout.0.display());
            let bundle = home.path(&format!("{name}.bundle"));
            finish(Command::new("umoci").args(["unpack", "--rootless", "--image", &image]).arg(&bundle)).ok();
            assert!(std::fs::read(bundle.join("rootfs/d/copy")).unwrap() == std::fs::read(home.path("context/data")).unwrap());
        }
        // And back, as the base of a build that needs its files.
        let other = Home::offline();
        other.run(["load", "-i", home.path(&format!("{name}.tar")).to_str().unwrap()]).ok();
        other.build("child", &format!("FROM {name}\nRUN cmp /data /d/copy && [ ! -e /bin/ls ]\n")).ok();
    }
    let size = |wanted: &str| sizes.iter().find(|(name, _)| *name == wanted).unwrap().1;
    assert!(size("gzip9") <= size("gzip") && size("gzip") < size("gzip0") && size("gzip0") < size("plain") + 10_000, "{sizes:?}");
    assert!(size("zstd19") < size("zstd") && size("estargz") < size("plain"), "{sizes:?}");
    // An image that was exported so keeps its form: it is saved again with the same manifest.
    let again = home.path("again.tar");
    home.run(["save", "--format", "oci", "-o", again.to_str().unwrap(), "estargz"]).ok();
    let index = finish(Command::new("tar").arg("-xOf").arg(&again).arg("index.json")).ok();
    let before = Layout(home.path("estargz")).descriptor();
    assert!(index.stdout.contains(before["digest"].as_str().unwrap()), "{}", index.stdout);
}

#[test]
fn rewritten_times_make_images_the_same() {
    if !needs("rewritten_times_make_images_the_same", "python3") {
        return;
    }
    const EPOCH: i64 = 1_600_000_000;
    let (one, other) = (Home::new(), Home::new());
    let epoch = format!("SOURCE_DATE_EPOCH={EPOCH}");
    let more = ["--build-arg", epoch.as_str()];
    for kind in ["gzip", "estargz"] {
        let options = format!("compression={kind},rewrite-timestamp=true");
        let (first, second) = (Layout::build(&one, kind, &options, &more), Layout::build(&other, kind, &options, &more));
        assert_eq!(first.descriptor(), second.descriptor(), "{kind}");
        first.is_sound();
    }
    let rewritten = Layout(one.path("gzip"));
    // The base is left as it is (its files are newer than this epoch), what was built isn't newer.
    let kept = Layout::build(&one, "kept", "rewrite-timestamp=false", &more);
    assert_eq!(rewritten.layers()[0], kept.layers()[0]);
    assert_ne!(rewritten.layers()[2], kept.layers()[2]);
    let (before, after) = (kept.tars(), rewritten.tars());
    for (number, (before, after)) in before.iter().zip(&after).enumerate().skip(1) {
        let (old, new) = (one.write("old.tar", before), one.write("new.tar", after));
        let expected: Vec<(String, i64)> = times(&old).into_iter().map(|(name, time)| (name, time.min(EPOCH))).collect();
        assert_eq!(times(&new), expected, "layer {number}");
        assert!(expected.iter().any(|(_, time)| *time == EPOCH), "layer {number}");
    }
    // Such an image is a base like any other: its layers are the same in what is built on it.
    one.context("child", "FROM gzip\nRUN echo child > /child\n");
    let dest = one.path("child.tar");
    let output = format!("type=oci,dest={},rewrite-timestamp=true", dest.display());
    one.run(["build", "-t", "child", "-o", &output, one.path("child").to_str().unwrap()]).ok();
    std::fs::create_dir(one.path("child-layout")).unwrap();
    finish(Command::new("tar").arg("-xf").arg(&dest).arg("-C").arg(one.path("child-layout"))).ok();
    let child = Layout(one.path("child-layout"));
    child.is_sound();
    assert_eq!(child.layers()[..3], rewritten.layers()[..]);
}

/// With the same epoch a newer BuildKit leaves the base as it is, too, and gives every file the same time.
#[test]
#[ignore = "needs Debian sid's docker.io, which `make record` makes"]
fn buildkit_rewrites_the_same_times() {
    let (docker, _) = lab::newest();
    let home = Home::new();
    let dockerfile = "FROM busybox\nRUN mkdir /d && echo x > /d/f && touch -d @1000000000 /d/old && ln -s f /d/l && rm /bin/ls\n";
    let build = |program: &str, name: &str| {
        let dest = home.path(&format!("{name}.tar"));
        let output = format!("type=oci,dest={},rewrite-timestamp=true", dest.display());
        let words = ["--network=host", "--build-arg", "SOURCE_DATE_EPOCH=1600000000", "-o", &output, "-f", "-"];
        let context = home.context("empty", dockerfile);
        let mut command = if name == "kiln" { home.command() } else { Command::new(program) };
        if name != "kiln" {
            command.arg("buildx");
        }
        command.arg("build").args(words).arg(context).stdin(std::fs::File::open(home.path("empty/Dockerfile")).unwrap());
        finish(&mut command).ok();
        let folder = home.path(name);
        std::fs::create_dir(&folder).unwrap();
        finish(Command::new("tar").arg("-xf").arg(&dest).arg("-C").arg(&folder)).ok();
        Layout(folder)
    };
    let theirs = build(docker.to_str().unwrap(), "buildkit");
    let ours = build("", "kiln");
    assert_eq!(theirs.layers()[0]["digest"], ours.layers()[0]["digest"]);
    let [theirs, ours] = [theirs, ours].map(|layout| times(&home.write("layer.tar", &layout.tars()[1])));
    assert_eq!(theirs, ours);
}
