//! Every mode builds the same five images: those of `testdata/modes`. One module a mode.

mod chroot;
mod nested;
mod none;
mod one_id;
mod outer;
mod root;
mod rootless;
mod written;

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{LazyLock, OnceLock};
use std::time::Instant;

use crate::support::alike;
use crate::support::archive::Image;
use crate::support::case;
use crate::support::container::Container;
use crate::support::home::{Home, Outcome, finish};
use crate::support::host::own_uid;
use crate::support::lab::{Registry, RegistryOptions, workspace};
use crate::support::skip::skipped;

/// The folders of `testdata/modes`.
const IMAGES: [&str; 5] = ["busybox", "torture", "compile", "users", "apt"];

/// The same, and one for modes that can make device nodes.
const WITH_DEVICES: [&str; 6] = ["busybox", "torture", "compile", "users", "apt", "devices"];

/// And one without RUN, for [`written`].
const ALL: [&str; 7] = ["busybox", "torture", "compile", "users", "apt", "devices", "written"];

/// How near an image must come to that of mode A.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Alike {
    /// The same digest of the manifest.
    Same,
    /// At least 99.9 % of the files have the same owner, mode, type, device number and capabilities.
    Owners,
}

/// The bases of the images.
static BASES: LazyLock<Registry> = LazyLock::new(|| {
    Registry::start(&RegistryOptions { seeds: &["busybox", "debian", "buildpack-deps"], ..RegistryOptions::default() })
});

/// What mode A made of an image; built when it is first asked for.
fn reference(name: &str) -> &'static Made {
    static MADE: [OnceLock<Made>; ALL.len()] = [const { OnceLock::new() }; ALL.len()];
    let number = ALL.iter().position(|known| *known == name).expect("an image of `ALL`");
    MADE[number].get_or_init(|| {
        let home = Home::new();
        home.mirror(BASES.host());
        build(&home, ALL[number], "root", |args| home.run(args))
    })
}

/// An image that was built.
#[derive(Debug)]
struct Made {
    /// Of its manifest.
    digest: String,
    /// An OCI archive that has no name any more, so that nothing is left of it when the tests end.
    archive: File,
}

impl Made {
    fn image(&self) -> Image {
        use std::os::fd::AsRawFd;
        Image::read(Path::new(&format!("/proc/self/fd/{}", self.archive.as_raw_fd()))).expect("kiln writes archives")
    }
}

/// The context of an image in a folder of the home.
fn context(home: &Home, name: &str) -> PathBuf {
    let (folder, source) = (home.path(&format!("context-{name}")), workspace().join("testdata/modes"));
    case::copy(&source.join(name), &folder).expect("a context can be copied");
    case::copy_file(&source.join("settle"), &folder.join("settle")).expect("a script can be copied");
    // COPY of a folder gives its time.
    let touch = ["-type", "d", "-exec", "touch", "-d", "@1600000000", "{}", "+"];
    finish(Command::new("find").arg(&folder).args(touch)).ok();
    folder
}

/// Builds an image by `kiln`, which is given kiln's arguments, in `mode`.
fn build(home: &Home, name: &str, mode: &str, kiln: impl Fn(Vec<OsString>) -> Outcome) -> Made {
    let (out, began) = (home.path("run"), Instant::now());
    if !out.exists() {
        fs::create_dir(&out).expect("folders can be made");
    }
    let (archive, metadata) = (out.join(format!("{name}.tar")), out.join(format!("{name}.json")));
    let mut output = OsString::from("type=oci,dest=");
    output.push(&archive);
    let args = ["build", "--progress=plain", "--build-arg=SOURCE_DATE_EPOCH=1700000000", "--metadata-file"].map(OsString::from);
    let more = [metadata.clone().into(), OsString::from("--output"), output, context(home, name).into()];
    kiln(args.into_iter().chain(more).collect()).ok();
    println!("{mode}: {name} in {:.1} s", began.elapsed().as_secs_f32());
    let metadata: serde_json::Value = serde_json::from_slice(&fs::read(metadata).expect("metadata")).expect("metadata is JSON");
    assert_eq!(metadata["kiln.sandbox"], mode, "{name}");
    let made = Made {
        digest: metadata["containerimage.digest"].as_str().expect("an archive has a manifest").to_owned(),
        archive: File::open(&archive).expect("the archive can be read"),
    };
    fs::remove_file(&archive).expect("the archive can be removed");
    made
}

/// Builds the images by `kiln` in `mode` and compares each with that of mode A.
fn every(home: &Home, mode: &str, alike: Alike, images: &[&str], kiln: impl Fn(Vec<OsString>) -> Outcome) {
    let made: Vec<_> = images.iter().map(|name| build(home, name, mode, &kiln)).collect();
    home.left_nothing();
    let mut wrong = Vec::new();
    for (name, made) in images.iter().zip(&made) {
        let reference = reference(name);
        if made.digest == reference.digest {
            continue;
        }
        let (theirs, ours) = (reference.image(), made.image());
        let found = match alike {
            Alike::Same => Err(alike::difference(&theirs, &ours)),
            Alike::Owners => alike::ownership(&theirs, &ours),
        };
        match found {
            Ok(paths) => {
                let all = alike::difference(&theirs, &ours);
                println!("{mode}: {name} has another digest than by root; owners and rights differ for {paths:#?}; in all {all}");
            }
            Err(text) => wrong.push(format!("{name}, by root and in mode {mode}:\n{text}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Builds `images` by root of a container, with `options` before the command and `store` (a path, or one below the home), and
/// compares the bytes.
fn contained(
    test: &str,
    container: Result<Container<'_>, String>,
    mode: &str,
    (images, options, store): (&[&str], &[&str], &str),
) {
    if !comparable(test) {
        return;
    }
    let container = match container {
        Ok(container) => container,
        Err(reason) => return skipped(test, &reason),
    };
    let home = Home::new();
    home.mirror(BASES.host());
    every(&home, mode, Alike::Same, images, |args| {
        let before = ["kiln"].iter().chain(options).chain(&["--root"]).map(OsString::from);
        container.run(&home, before.chain([home.path(store).into_os_string()]).chain(args))
    });
}

/// Whether there is a mode A to compare with; says that the test is skipped when there is none.
fn comparable(test: &str) -> bool {
    let root = own_uid() == 0;
    if !root {
        skipped(test, "only root can build the images to compare with");
    }
    root
}
