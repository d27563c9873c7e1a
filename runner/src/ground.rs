//! What can be mounted where a store's layers lie: hides how that is tried, and where it is remembered.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{AtFlags, Mode as Bits, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsOpenFlags, MountPropagationFlags};
use rustix::thread::UnshareFlags;
use serde::{Deserialize, Serialize};

use crate::mode::Mode;
use crate::mount::try_overlay;
use crate::plan::Overlay;
use crate::sys;
use crate::userns::Entered;

/// What can be mounted of directories on one file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ground {
    /// How the tree that a command sees is made of layers here.
    pub snapshots: Snapshots,
    /// How overlays are mounted.
    pub overlay: OverlayApi,
    /// Whether overlays keep their marks in `user.` attributes.
    pub user_xattr: bool,
    /// Whether overlays can be told that nothing of theirs has to reach the disk.
    pub volatile: bool,
    /// Why there are no overlays, where there are none.
    pub refusal: Option<String>,
}

/// How the tree that a command sees is made of layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Snapshots {
    /// Mounted as an overlay; what changed is in the upper directory.
    Overlay,
    /// Copied together; what changed is found by comparing ([`crate::RootFs::Dir`]).
    Copy,
}

/// How overlays are mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OverlayApi {
    /// Layers one by one, by descriptor (Linux 6.13).
    Descriptors,
    /// Layers one by one, by path (Linux 6.8).
    Paths,
    /// All in one string, a page at most.
    Classic,
}

/// Under what an answer holds: it depends on the kernel, on the file system, and on who asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Circumstances {
    version: String,
    boot: String,
    kernel: String,
    device: u64,
    mode: String,
}

impl Ground {
    /// Tries it below `folder`, which has to be on the file system of the layers, and where what was found out is remembered for
    /// as long as the machine runs.
    pub fn probe(entered: &Entered, folder: &Path) -> Ground {
        if !entered.mode.is_available() || entered.mode == Mode::Chroot {
            return Ground::without_overlays("nothing can be mounted".to_owned());
        }
        let Some(now) = circumstances(entered, folder) else { return Ground::try_below(entered, folder) };
        let file = folder.join(format!("ground-{}", if entered.mode == Mode::Root { "root" } else { "user" }));
        let remembered = fs::read(&file).ok().and_then(|bytes| postcard::from_bytes::<(Circumstances, Ground)>(&bytes).ok());
        if let Some((_, ground)) = remembered.filter(|(then, _)| *then == now) {
            return ground;
        }
        let ground = Ground::try_below(entered, folder);
        // It is tried again next time if this fails.
        let _ = remember(&file, &(now, ground.clone()));
        ground
    }

    fn without_overlays(refusal: String) -> Ground {
        Ground {
            snapshots: Snapshots::Copy,
            overlay: OverlayApi::Classic,
            user_xattr: false,
            volatile: false,
            refusal: Some(refusal),
        }
    }

    /// In a thread of its own, for mounts are made in a namespace that ends with it.
    fn try_below(entered: &Entered, folder: &Path) -> Ground {
        let api = probe_api();
        let is_root = entered.mode == Mode::Root;
        let attempt = || -> Result<Ground, io::Error> {
            sys::unshare(UnshareFlags::NEWNS)?;
            rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
            let mut last = io::Error::from(io::ErrorKind::Unsupported);
            for (user_xattr, volatile) in [(!is_root, true), (!is_root, false)] {
                let ground = Ground { snapshots: Snapshots::Overlay, overlay: api, user_xattr, volatile, refusal: None };
                match works_below(folder, &ground) {
                    Ok(()) => return Ok(ground),
                    Err(error) => last = error,
                }
            }
            Err(last)
        };
        let found = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("probe".to_owned()).spawn_scoped(scope, attempt)?;
            thread.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
        });
        found.unwrap_or_else(|error| Ground::without_overlays(format!("an overlay doesn't work here: {error}")))
    }
}

fn circumstances(entered: &Entered, folder: &Path) -> Option<Circumstances> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let kernel = rustix::system::uname();
    let words = [kernel.release(), kernel.version()].map(|word| word.to_string_lossy().into_owned());
    Some(Circumstances {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        boot: boot.trim().to_owned(),
        kernel: words.join(" "),
        device: fs::metadata(folder).ok()?.dev(),
        mode: entered.mode.name().to_owned(),
    })
}

fn remember(file: &Path, what: &(Circumstances, Ground)) -> io::Result<()> {
    let bytes = postcard::to_stdvec(what).map_err(io::Error::other)?;
    let draft = file.with_extension(std::process::id().to_string());
    fs::write(&draft, bytes)?;
    fs::rename(&draft, file)
}

/// Which form of layer does the overlay file system take?
fn probe_api() -> OverlayApi {
    let Ok(context) = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC) else { return OverlayApi::Classic };
    let by_descriptor = File::open("/").is_ok_and(|root| rustix::mount::fsconfig_set_fd(&context, "lowerdir+", root).is_ok());
    if by_descriptor {
        return OverlayApi::Descriptors;
    }
    match rustix::mount::fsconfig_set_string(&context, "lowerdir+", "/") {
        Ok(()) => OverlayApi::Paths,
        Err(_) => OverlayApi::Classic,
    }
}

/// Mounts an overlay and replaces a directory of its lower layer: where the marks of an opaque directory can't be written, that
/// fails, though the mount did not (seen without `userxattr` in a user namespace).
fn works_below(folder: &Path, ground: &Ground) -> io::Result<()> {
    let place = Place::make(folder)?;
    let at = |name: &str| place.0.join(name);
    for name in ["lower", "lower/kept", "lower/replaced", "upper", "work", "merged"] {
        fs::create_dir(at(name))?;
    }
    fs::write(at("lower/replaced/old"), b"")?;
    fs::write(at("lower/gone"), b"")?;
    let overlay = Overlay {
        lowers: vec![at("lower").into()],
        upper: Some((at("upper").into(), at("work").into())),
        api: ground.overlay,
        user_xattr: ground.user_xattr,
        volatile: ground.volatile,
    };
    let merged = open(&at("merged"))?;
    let root = try_overlay(&overlay, merged)?;
    let said = |what: &'static str| move |errno: Errno| io::Error::new(io::Error::from(errno).kind(), format!("{what}: {errno}"));
    let remove = |name: &str, flags| rustix::fs::unlinkat(&root, name, flags);
    remove("replaced/old", AtFlags::empty()).map_err(said("deleting a file of a lower layer"))?;
    remove("gone", AtFlags::empty()).map_err(said("deleting a file of a lower layer"))?;
    remove("replaced", AtFlags::REMOVEDIR).map_err(said("deleting a directory of a lower layer"))?;
    rustix::fs::mkdirat(&root, "replaced", Bits::from_raw_mode(0o755)).map_err(said("replacing a directory of a lower layer"))?;
    match rustix::fs::statat(&root, "replaced/old", AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        _ => Err(io::Error::other("a directory that was replaced shows what was in it before")),
    }
}

fn open(path: &Path) -> Result<OwnedFd, Errno> {
    crate::walk::open_directory(rustix::fs::CWD.as_fd(), path.as_os_str()).and_then(|fd| {
        // As bare a place as mount points are elsewhere.
        rustix::fs::openat(&fd, ".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Bits::empty())
    })
}

/// A directory for trying, removed with the value.
struct Place(std::path::PathBuf);

impl Place {
    fn make(folder: &Path) -> io::Result<Place> {
        let path = folder.join(format!("try-{}", std::process::id()));
        // Of a process with the same number that was killed.
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path)?;
        Ok(Place(path))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
