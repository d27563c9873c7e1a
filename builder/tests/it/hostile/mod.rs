//! Archives that want to do harm, and odd ones that must not be refused: each row is an archive and what kiln makes of it, a tree
//! or a refusal. Each goes through the command, in every mode, beside a folder of the host that nothing may touch.
//!
//! By root every second row is done, in the other modes every twelfth; all of them with `KILN_TEST_FULL=1`. `KILN_CASE` is a part of
//! the names of those to do.

mod bytes;
mod craft;
mod fine;
mod marks;
mod measured;
mod metadata;
mod names;
mod told;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use kiln_oci::digest::Digest;
use serde_json::json;

use self::craft::{device, dir, file, item, symlink, tar};
use self::measured::Measured;
use crate::support::home::Home;
use crate::support::host::Person;
use crate::support::tar::entries;

/// The most memory that any archive may cost, and the processor time until its end (on a machine that others use, too).
const MAX_KB: u64 = 256 << 10;
const MAX_SECONDS: f64 = 2.0;

/// How an archive comes to kiln.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// As the upper layer of an image, which a RUN then looks at.
    Layer,
    /// The same without RUN, for what leaves no shell to run.
    Still,
    /// `ADD`, into the folder `/dest`.
    Add,
    /// `COPY --from` the image of which it is the upper layer, of this path.
    Copy(&'static str),
    /// As what `kiln load` reads.
    Load,
}

/// What becomes of it.
#[derive(Debug, Clone)]
enum Outcome {
    /// An error that says all of these.
    Refused(&'static [&'static str]),
    /// The base with these lines changed: `path kind words…`, of which each must be true (see [`told`]); `-path` is gone.
    Tree(Vec<String>),
}

#[derive(Debug, Clone)]
struct Row {
    name: String,
    way: Way,
    archive: Vec<u8>,
    /// The tar in the archive, where that is compressed.
    plain: Option<Vec<u8>>,
    outcome: Outcome,
}

fn refused(name: impl Into<String>, archive: Vec<u8>, says: &'static [&'static str]) -> Row {
    Row { name: name.into(), way: Way::Layer, archive, plain: None, outcome: Outcome::Refused(says) }
}

fn tree(name: impl Into<String>, archive: Vec<u8>, lines: &[&str]) -> Row {
    let lines = lines.iter().map(|line| (*line).to_owned()).collect();
    Row { name: name.into(), way: Way::Layer, archive, plain: None, outcome: Outcome::Tree(lines) }
}

impl Row {
    fn by(mut self, way: Way) -> Row {
        self.way = way;
        self
    }

    fn of(mut self, plain: Vec<u8>) -> Row {
        self.plain = Some(plain);
        self
    }
}

fn rows(canary: &str) -> Vec<Row> {
    [names::rows(canary), marks::rows(), metadata::rows(), bytes::rows(), fine::rows()].concat()
}

/// The lower layer of every row.
fn base(canary: &str) -> Vec<u8> {
    let shell = fs::read("/bin/busybox").or_else(|_| fs::read("/usr/bin/busybox")).expect("busybox-static is installed");
    let plain = |name: &str| dir(name).mode(0o755).at(5);
    tar(&[
        plain("./"),
        plain("bin/"),
        file("bin/busybox").data(shell).mode(0o755),
        plain("d/"),
        plain("d/e/").mode(0o750),
        file("d/e/g").data("y"),
        file("d/f").data("x"),
        plain("dest/"),
        symlink("dest/out", canary),
        symlink("dest/up", format!("../../../../../..{canary}")),
        plain("dev/"),
        plain("etc/"),
        file("etc/hostname").data(""),
        file("etc/hosts").data(""),
        file("etc/passwd").data("root:x:0:0::/:/bin/sh\n"),
        file("etc/resolv.conf").data(""),
        item(b'5', "proc/").mode(0o755),
        item(b'5', "sys/").mode(0o755),
        plain("usr/"),
        plain("usr/lib/"),
        file("usr/lib/so").data("library"),
        symlink("lib", "usr/lib"),
        symlink("out", canary),
        symlink("up", format!("../../../../../../../../..{canary}")),
        symlink("file-out", format!("{canary}/file")),
        symlink("loop", "loop"),
        symlink("abs", "/etc"),
        symlink("dots", "usr/../etc"),
        device(b'3', "null", (1, 3)).mode(0o666),
        file("tell").data(told::SCRIPT),
    ])
}

/// A way of running kiln.
struct Mode {
    name: &'static str,
    home: Home,
    copies: bool,
}

impl Mode {
    fn command(&self) -> Command {
        let mut command = self.home.command();
        if self.copies {
            command.env("KILN_SNAPSHOTS", "copy");
        }
        command
    }

    fn canary(&self) -> String {
        self.home.path("canary").to_str().expect("a temporary folder's name is text").to_owned()
    }
}

/// The home of a mode, with its canary: kiln may write there, so that it would if it could be led to.
fn mode(name: &'static str, home: Home) -> Mode {
    let home_of = home.path("canary");
    for (path, text) in [("canary/file", "precious"), ("canary/dir/inner", "precious, too")] {
        home.write(path, text);
    }
    home.adopt(&home_of);
    Mode { name, home, copies: name == "copies" }
}

/// A layout of one image with these layers, the first of which is the base.
fn layout(mode: &Mode, name: &str, base: &[u8], upper: Option<(&[u8], &[u8])>) -> PathBuf {
    let folder = mode.home.path(name);
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("folders can be made");
    let put = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        fs::write(blobs.join(digest.hex()), bytes).expect("a file can be written");
        json!({"digest": digest.to_string(), "size": bytes.len()})
    };
    let mut layers = Vec::new();
    let mut ids = Vec::new();
    for (blob, plain) in [(base, base)].into_iter().chain(upper) {
        let mut layer = put(blob);
        layer["mediaType"] = match blob {
            [0x1f, 0x8b, ..] => "application/vnd.oci.image.layer.v1.tar+gzip",
            [0x28, 0xb5, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => "application/vnd.oci.image.layer.v1.tar+zstd",
            _ => "application/vnd.oci.image.layer.v1.tar",
        }
        .into();
        layers.push(layer);
        ids.push(Digest::of(plain).to_string());
    }
    let arch = if std::env::consts::ARCH == "aarch64" { "arm64" } else { "amd64" };
    let config = json!({"architecture": arch, "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": ids}});
    let mut config = put(config.to_string().as_bytes());
    config["mediaType"] = "application/vnd.oci.image.config.v1+json".into();
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers});
    let mut manifest = put(manifest.to_string().as_bytes());
    manifest["mediaType"] = kind.into();
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "latest"});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(folder.join("index.json"), index.to_string()).expect("a file can be written");
    fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("a file can be written");
    mode.home.adopt(&folder);
    folder
}

/// Runs kiln on a row; what it made, if anything, is in the file.
fn run(mode: &Mode, number: usize, base: &[u8], row: &Row) -> (Measured, PathBuf) {
    let name = format!("rows/{number}");
    let out = mode.home.path(&name).join("out.tar");
    let plain = row.plain.as_deref().unwrap_or(&row.archive);
    let in_image = matches!(row.way, Way::Layer | Way::Still | Way::Copy(_));
    let image = layout(mode, &name, base, in_image.then_some((&row.archive, plain)));
    let mut args: Vec<OsString> = Vec::new();
    let dockerfile = match row.way {
        Way::Layer => "FROM hostile\nRUN [\"/bin/busybox\", \"sh\", \"/tell\"]\n".to_owned(),
        Way::Still => "FROM hostile\n".to_owned(),
        Way::Add => "FROM hostile\nADD archive /dest/\n".to_owned(),
        Way::Copy(path) => format!("FROM hostile AS upper\nFROM lower\nCOPY --from=upper {path} /dest/\n"),
        Way::Load => String::new(),
    };
    let context = mode.home.path(&name).join("context");
    fs::create_dir(&context).expect("folders can be made");
    fs::write(context.join("Dockerfile"), dockerfile).expect("a file can be written");
    fs::write(context.join("archive"), &row.archive).expect("a file can be written");
    mode.home.adopt(&context);
    if row.way == Way::Load {
        args.extend(["load".into(), "-i".into(), context.join("archive").into()]);
    } else {
        args.extend(["build", "--progress=plain", "--build-context"].map(OsString::from));
        args.push(format!("hostile=oci-layout://{}", image.display()).into());
        args.push("--build-context".into());
        args.push(format!("lower=oci-layout://{}", mode.home.path("rows/base").display()).into());
        args.push("--output".into());
        args.push(format!("type=tar,dest={}", out.display()).into());
        args.push(context.into());
    }
    let mut command = mode.command();
    command.args(args);
    (measured::run(command, &mode.home.path(&format!("{name}.usage"))), out)
}

/// The difference between what was and what should be; nothing if there is none.
fn judge(mode: &Mode, row: &Row, base: &BTreeMap<String, String>, done: &Measured, out: &Path) -> Result<(), String> {
    let said = &done.stderr;
    if said.contains("panicked") || !matches!(done.code, Some(0..=6)) {
        return Err(format!("ended with {:?}:\n{said}", done.code));
    }
    if done.kilobytes > MAX_KB || done.seconds > MAX_SECONDS {
        return Err(format!("cost {} KiB and {:.2} s", done.kilobytes, done.seconds));
    }
    match &row.outcome {
        Outcome::Refused(_) if done.code == Some(0) => Err("was not refused".to_owned()),
        Outcome::Refused(words) => match words.iter().find(|word| !said.contains(**word)) {
            Some(word) => Err(format!("does not say {word:?}:\n{said}")),
            None => Ok(()),
        },
        Outcome::Tree(_) if done.code != Some(0) => Err(format!("was refused:\n{said}")),
        Outcome::Tree(_) if row.way == Way::Load => Ok(()),
        Outcome::Tree(lines) => {
            let archive = fs::read(out).map_err(|e| e.to_string())?;
            let found = entries(&archive)?;
            told::compare(base, lines, &told::tell(&found))?;
            match row.way {
                Way::Layer => told::seen_by_run(&found, mode.name == "root" || mode.name == "copies"),
                _ => Ok(()),
            }
        }
    }
}

/// Everything on the host that an archive might have reached.
fn outside(mode: &Mode) -> String {
    let script = "find . -printf '%p %y %m %U:%G %l %n %s %T@\\n' | sort; find . -type f | sort | xargs sha256sum; \
                  getfattr -R -d -m - . 2>/dev/null; true";
    let output = Command::new("sh").args(["-c", script]).current_dir(mode.home.path("canary")).output().expect("sh runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn every(mode: &Mode, step: usize) {
    let canary = mode.canary();
    let (base, rows) = (base(&canary), rows(&canary));
    layout(mode, "rows/base", &base, None);
    let untouched = outside(mode);
    let plain = tree("the base alone", tar(&[]), &[]);
    let (first, out) = run(mode, rows.len(), &base, &plain);
    assert_eq!(first.code, Some(0), "{}", first.stderr);
    let archive = fs::read(out).expect("the base was written");
    let base_told = told::tell(&entries(&archive).expect("kiln writes archives"));
    let wanted = std::env::var("KILN_CASE").unwrap_or_default();
    let chosen: Vec<usize> = (0..rows.len()).step_by(step).filter(|at| rows[*at].name.contains(&wanted)).collect();
    let (next, wrong, most) = (AtomicUsize::new(0), Mutex::new(Vec::new()), Mutex::new((0, 0.0f64)));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(&number) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let row = &rows[number];
                    let (done, out) = run(mode, number, &base, row);
                    if let Err(why) = judge(mode, row, &base_told, &done, &out) {
                        println!("{}: {} ({:?}) {why}", mode.name, row.name, row.way);
                        wrong.lock().unwrap().push(row.name.clone());
                    }
                    let mut most = most.lock().unwrap();
                    *most = (most.0.max(done.kilobytes), most.1.max(done.seconds));
                    let _ = fs::remove_dir_all(mode.home.path(&format!("rows/{number}")));
                }
            });
        }
    });
    let (kilobytes, seconds) = *most.lock().unwrap();
    println!("{}: {} archives of {}, at most {kilobytes} KiB and {seconds:.2} s each", mode.name, chosen.len(), rows.len());
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), chosen.len(), wrong.join("\n"));
    assert_eq!(outside(mode), untouched, "{}: the host was reached", mode.name);
    for place in [PathBuf::from("/"), std::env::temp_dir(), mode.home.path("")] {
        assert!(!place.join("kiln-escaped").exists(), "{}: something was written into {}", mode.name, place.display());
    }
    mode.home.left_nothing();
}

/// One row in so many.
fn of(short: usize) -> usize {
    if std::env::var_os("KILN_TEST_FULL").is_some() { 1 } else { short }
}

#[test]
fn every_archive_by_root() {
    every(&mode("root", Home::offline()), of(2));
}

#[test]
fn on_copies() {
    every(&mode("copies", Home::offline()), of(12));
}

#[test]
fn rootless() {
    if let Some(person) = Person::with_ids("hostile::rootless") {
        every(&mode("rootless", Home::of(person)), of(12));
    }
}

#[test]
fn with_one_id() {
    if let Some(person) = Person::plain("hostile::with_one_id") {
        every(&mode("one id", Home::of(person)), of(12));
    }
}
