//! Other people's programs read every image that kiln makes of `testdata/conformance`, and kiln reads what they write.
//!
//! One image in 32, or all with `KILN_TEST_FULL=1` (`make readers`), and then also by Debian sid's dockerd. Each program reads each
//! form to its last byte: as OCI archive and layout, as Docker's archive and from a registry, its layers gzip and zstd.

use std::collections::BTreeSet;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use kiln_oci::digest::Digest;
use serde_json::Value;

use crate::support::archive::Image;
use crate::support::case;
use crate::support::compare::{Tree, merge};
use crate::support::home::{Home, finish};
use crate::support::host::own_uid;
use crate::support::lab::{self, Dockerd};
use crate::support::skip::{needs, skipped};

// Known of other programs, and looked at where they stand below: dockerd 20.10 and umoci 0.4.7 have no zstd, and `umoci unpack`
// (not `raw unpack`) makes a runtime's configuration, too, and so refuses users that are in no passwd and variables without a value.

/// Of how many cases one is read when not all are.
const ONE_IN: u8 = 32;
const CODECS: [&str; 2] = ["gzip", "zstd"];

/// An image that kiln made.
struct Made {
    name: String,
    /// Where its files are: `CODEC.oci.tar`, `CODEC.docker.tar` and `layout`.
    folder: PathBuf,
    /// The digest of its configuration.
    id: String,
    /// The digests of its layers' tars.
    layers: Vec<String>,
    tree: Tree,
}

impl Made {
    fn file(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// Its name in the registry.
    fn pushed(&self, codec: &str) -> String {
        format!("{}/readers/{}:{codec}", lab::registry().host(), self.name)
    }

    /// Its name in archives.
    fn named(&self, codec: &str) -> String {
        format!("readers/{}:{codec}", self.name)
    }

    /// What is wrong with what a program says that it read: its id and its layers.
    fn judge(&self, told: &Value) -> Option<String> {
        let id = told["Id"].as_str().unwrap_or_default().trim_start_matches("sha256:");
        let layers: Vec<&str> = told["RootFS"]["Layers"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        match id == self.id.trim_start_matches("sha256:") && layers == self.layers {
            true => None,
            false => Some(format!("{id} {layers:?} instead of {} {:?}", self.id, self.layers)),
        }
    }
}

fn full() -> bool {
    std::env::var_os("KILN_TEST_FULL").is_some()
}

/// Builds the cases, two at a time, each once for all forms.
fn make(home: &Home) -> Vec<Made> {
    let only = std::env::var("KILN_CASE").ok();
    let wanted = |name: &String| match &only {
        Some(part) => name.contains(part),
        None => full() || Digest::of(name.as_bytes()).as_bytes()[0].is_multiple_of(ONE_IN),
    };
    let names: Vec<String> = case::names().into_iter().filter(wanted).collect();
    let (next, made) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let built = make_one(home, name).unwrap_or_else(|e| panic!("{name}: {e}"));
                    made.lock().expect("no builder panicked").extend(built);
                }
            });
        }
    });
    let mut made = made.into_inner().expect("no builder panicked");
    made.sort_by(|a, b| a.name.cmp(&b.name));
    made
}

fn make_one(home: &Home, name: &str) -> Result<Option<Made>, String> {
    let case = case::prepare(name)?;
    if case.fails.is_some() {
        return Ok(None);
    }
    let folder = home.path(&format!("made/{name}"));
    std::fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
    let mut made = Made { name: name.to_owned(), folder, id: String::new(), layers: Vec::new(), tree: Tree::new() };
    let mut command = home.command();
    command.args(["build", "--progress=plain"]);
    for codec in CODECS {
        let form = format!("compression={codec},force-compression=true");
        for kind in ["oci", "docker"] {
            let dest = made.file(&format!("{codec}.{kind}.tar"));
            command.arg(format!("--output=type={kind},dest={dest},name={},{form}", made.named(codec)));
        }
        command.arg(format!("--output=type=registry,name={},{form}", made.pushed(codec)));
    }
    command.arg(format!("--output=type=oci,tar=false,dest={},name={}", made.file("layout"), made.named("x")));
    let outcome = finish(command.args(&case.args).arg(&case.context));
    if !outcome.status.success() {
        return Err(outcome.stderr);
    }
    let image = Image::read(&made.folder.join("gzip.oci.tar"))?;
    made.id = Digest::of(&image.config_bytes).to_string();
    let ids = image.config["rootfs"]["diff_ids"].as_array().cloned().unwrap_or_default();
    made.layers = ids.iter().filter_map(Value::as_str).map(str::to_owned).collect();
    made.tree = merge(&image.layers)?;
    for other in ["zstd.oci.tar", "zstd.docker.tar", "gzip.docker.tar"] {
        if Image::read(&made.folder.join(other))?.config_bytes != image.config_bytes {
            return Err(format!("the configuration in {other} is another"));
        }
    }
    Ok(Some(made))
}

/// Runs a program; what it says if it fails.
fn attempt(command: &mut Command) -> Result<String, String> {
    let outcome = finish(command.stdin(Stdio::null()));
    match outcome.status.success() {
        true => Ok(outcome.stdout),
        false => Err(format!("{} {}", outcome.stdout.trim(), outcome.stderr.trim())),
    }
}

/// Copies each form of each image, which reads and hashes all of it.
fn skopeo(home: &Home, images: &[Made], found: &mut Vec<String>) {
    for made in images {
        for codec in CODECS {
            for source in [
                format!("oci-archive:{}", made.file(&format!("{codec}.oci.tar"))),
                format!("docker-archive:{}", made.file(&format!("{codec}.docker.tar"))),
                format!("docker://{}", made.pushed(codec)),
            ] {
                let copy = home.path("skopeo");
                let _ = std::fs::remove_dir_all(&copy);
                let mut command = Command::new("skopeo");
                command.args(["copy", "-q", "--src-tls-verify=false", &source, &format!("dir:{}", copy.display())]);
                let config = attempt(&mut command).and_then(|_| {
                    let manifest = std::fs::read(copy.join("manifest.json")).map_err(|e| e.to_string())?;
                    let manifest: Value = serde_json::from_slice(&manifest).map_err(|e| e.to_string())?;
                    Ok(manifest["config"]["digest"].as_str().unwrap_or_default().to_owned())
                });
                match config {
                    Ok(config) if config == made.id => {}
                    Ok(config) => found.push(format!("skopeo {source}: the configuration is {config}")),
                    Err(error) => found.push(format!("skopeo {source}: {error}")),
                }
            }
        }
    }
}

/// Unpacks each layout and looks at every file.
fn umoci(home: &Home, images: &[Made], found: &mut Vec<String>) {
    for made in images {
        let root = home.path("umoci");
        let mut command = Command::new("umoci");
        command.args(["raw", "unpack", "--image", &format!("{}:x", made.file("layout"))]).arg(&root);
        match attempt(&mut command) {
            Ok(_) => found.extend(unlike(&root, &made.tree).into_iter().take(5).map(|d| format!("umoci {}: {d}", made.name))),
            Err(error) => found.push(format!("umoci {}: {error}", made.name)),
        }
        let _ = std::fs::remove_dir_all(root);
    }
}

/// Where the files below `root` are not those of the layers.
fn unlike(root: &Path, tree: &Tree) -> Vec<String> {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let mut found = Vec::new();
    let mut seen: BTreeSet<Vec<u8>> = BTreeSet::new();
    let mut open = vec![root.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open.push(entry.path());
            }
            let path = entry.path();
            seen.insert(path.strip_prefix(root).unwrap_or(&path).as_os_str().to_owned().into_vec());
        }
    }
    for (path, node) in tree.iter().filter(|(path, _)| !path.is_empty()) {
        let shown = path.escape_ascii();
        if !seen.remove(path) {
            found.push(format!("/{shown} is missing"));
            continue;
        }
        let Ok(meta) = std::fs::symlink_metadata(root.join(std::ffi::OsStr::from_bytes(path))) else { continue };
        let kind = match meta.file_type() {
            kind if kind.is_dir() => "directory",
            kind if kind.is_symlink() => "symlink",
            kind if kind.is_fifo() => "fifo",
            kind if kind.is_char_device() => "character device",
            kind if kind.is_block_device() => "block device",
            _ => "file",
        };
        let is = (kind, (u64::from(meta.uid()), u64::from(meta.gid())));
        if is != (node.kind, node.owner) || kind != "symlink" && meta.mode() & 0o7777 != node.mode {
            found.push(format!("/{shown} is {is:?} {:o}, not {:?} {:o}", meta.mode(), (node.kind, node.owner), node.mode));
        }
        if kind == "file" && meta.len() != node.size as u64 {
            found.push(format!("/{shown} has {} bytes, not {}", meta.len(), node.size));
        }
    }
    found.extend(seen.iter().map(|path| format!("/{} is in no layer", path.escape_ascii())));
    found
}

/// Has one daemon read all images in one form, then looks at what it has, and takes it away: what is there isn't read again.
fn round(
    what: &str,
    images: &[Made],
    read: &dyn Fn(&Made) -> Result<String, String>,
    client: &dyn Fn() -> Command,
    found: &mut Vec<String>,
) {
    let mut names = Vec::new();
    for made in images {
        match read(made) {
            Ok(name) => names.push((made, name)),
            Err(error) => found.push(format!("{what} {}: {error}", made.name)),
        }
    }
    let told = attempt(client().args(["image", "inspect"]).args(names.iter().map(|(_, name)| name)));
    match told.and_then(|told| serde_json::from_str::<Vec<Value>>(&told).map_err(|e| e.to_string())) {
        Ok(told) if told.len() == names.len() => {
            let judged = names.iter().zip(&told).filter_map(|((made, _), told)| Some((made, made.judge(told)?)));
            found.extend(judged.map(|(made, why)| format!("{what} {}: {why}", made.name)));
        }
        Ok(told) => found.push(format!("{what}: {} of {} images", told.len(), names.len())),
        Err(error) => found.push(format!("{what}: {error}")),
    }
    let _ = attempt(client().args(["rmi", "-f"]).args(names.iter().map(|(_, name)| name)));
}

fn podman(images: &[Made], found: &mut Vec<String>) {
    let podman = match lab::podman() {
        Ok(podman) => podman,
        Err(reason) => return skipped("readers::podman", reason),
    };
    for codec in CODECS {
        for kind in ["oci", "docker"] {
            let read = |made: &Made| {
                let file = made.file(&format!("{codec}.{kind}.tar"));
                attempt(podman.podman().args(["load", "-q", "-i", &file])).map(|_| made.named(codec))
            };
            round(&format!("podman load {kind} {codec}"), images, &read, &|| podman.podman(), found);
        }
        let read = |made: &Made| {
            let name = made.pushed(codec);
            attempt(podman.podman().args(["pull", "-q", "--tls-verify=false", &name])).map(|_| name)
        };
        round(&format!("podman pull {codec}"), images, &read, &|| podman.podman(), found);
    }
}

fn docker(dockerd: &Dockerd, images: &[Made], found: &mut Vec<String>) {
    let version = finish(dockerd.docker().args(["version", "--format", "{{.Server.Version}}"])).ok().stdout;
    let version = version.trim();
    let load = |made: &Made, codec: &str| {
        let file = made.file(&format!("{codec}.docker.tar"));
        attempt(dockerd.docker().args(["load", "-q", "-i", &file])).map(|_| made.named(codec))
    };
    for codec in CODECS {
        if codec == "zstd" && version.starts_with("20.") {
            let refused = images.iter().find(|made| !made.layers.is_empty()).and_then(|made| load(made, codec).err());
            // What it takes for a tar is none.
            let is_no_tar = |error: String| error.contains("invalid tar header") || error.contains("unexpected EOF");
            if refused.is_some_and(is_no_tar) {
                skipped("readers::docker zstd", &format!("dockerd {version} can't read zstd layers"));
                continue;
            }
        }
        round(&format!("docker {version} load {codec}"), images, &|made| load(made, codec), &|| dockerd.docker(), found);
        let pull = |made: &Made| {
            let name = made.pushed(codec);
            attempt(dockerd.docker().args(["pull", "-q", &name])).map(|_| name)
        };
        round(&format!("docker {version} pull {codec}"), images, &pull, &|| dockerd.docker(), found);
    }
}

#[test]
fn every_image_is_read_by_other_programs() {
    const TEST: &str = "readers::every_image_is_read_by_other_programs";
    let home = Home::new();
    let images = make(&home);
    let lists = std::thread::scope(|scope| {
        let (home, images) = (&home, &images);
        let tools = scope.spawn(move || {
            let mut found = Vec::new();
            if needs(TEST, "skopeo") {
                skopeo(home, images, &mut found);
            }
            if own_uid() != 0 {
                skipped(&format!("{TEST} (umoci)"), "only root can give files to others");
            } else if needs(TEST, "umoci") {
                umoci(home, images, &mut found);
            }
            found
        });
        let mut found = Vec::new();
        podman(images, &mut found);
        match lab::dockerd() {
            Ok(dockerd) => docker(dockerd, images, &mut found),
            Err(reason) => skipped(&format!("{TEST} (dockerd)"), reason),
        }
        // With containerd's store an id is the digest of a manifest, which the tests of `--load` look at.
        if full() {
            docker(lab::newest_dockerd(false), images, &mut found);
        }
        [tools.join().expect("the tools' thread ends"), found]
    });
    let found = lists.concat();
    assert!(found.is_empty(), "{} of {} images:\n{}", found.len(), images.len(), found.join("\n"));
    println!("{} images read", images.len());
}
