//! Acts on the steps of a plan that make file systems: hides the mount calls.
//!
//! Everything is attached by descriptor: a mount is made detached, its place is found by [`crate::walk`], and `move_mount` joins the
//! two, so that no path is resolved twice.

use std::ffi::{CString, OsStr};
use std::fmt::Write as _;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};
use rustix::pty::OpenptFlags;

use crate::ground::OverlayApi;
use crate::in_place::InPlace;
use crate::plan::{Attributes, Overlay, Source, Step, Virtual};
use crate::stub::{Kind, Stub, mount_point};
use crate::sys;
use crate::walk::{Links, WalkError, open_directory, open_inside};
use crate::wire::Failure;

/// What has been made so far.
#[derive(Debug, Default)]
pub(crate) struct Sandbox {
    /// Root of the scratch file system.
    scratch: Option<OwnedFd>,
    /// The directory that takes the changes, as it is below all mounts.
    layer: Option<OwnedFd>,
    /// Root of the root file system.
    root: Option<OwnedFd>,
    proc: Option<OwnedFd>,
    sys: Option<OwnedFd>,
    pts: Option<OwnedFd>,
    /// The command's standard input, where it is somebody else's.
    pub(crate) input: Option<OwnedFd>,
    /// The command's terminal.
    pub(crate) terminal: Option<Terminal>,
    /// The root file system where nothing is mounted.
    pub(crate) in_place: Option<InPlace>,
    /// How many overlays were attached to the scratch file system.
    attached: u32,
    /// Mount points that were made in the layer.
    pub(crate) stubs: Vec<Stub>,
}

/// Both ends of a pseudo-terminal of the sandbox's own.
#[derive(Debug)]
pub(crate) struct Terminal {
    /// Goes to kiln.
    pub(crate) master: Option<OwnedFd>,
    /// Goes to the command.
    pub(crate) slave: OwnedFd,
}

/// Why a step failed, without its name.
#[derive(Debug)]
enum StepError {
    Walk(WalkError),
    Feature {
        feature: String,
        errno: Errno,
    },
    /// The kernel's own words, besides the number.
    Told {
        words: String,
        errno: Errno,
    },
}

impl From<Errno> for StepError {
    fn from(errno: Errno) -> StepError {
        StepError::Walk(WalkError::System(errno))
    }
}

impl From<WalkError> for StepError {
    fn from(error: WalkError) -> StepError {
        StepError::Walk(error)
    }
}

impl Sandbox {
    /// Does one step.
    pub(crate) fn act(&mut self, step: &Step) -> Result<(), Failure> {
        self.try_act(step).map_err(|error| match error {
            StepError::Walk(WalkError::Blocked { path, reason }) => Failure::Target { path: path.into(), reason },
            StepError::Walk(WalkError::System(errno)) => {
                Failure::Setup { operation: step.to_string(), errno: errno.raw_os_error() }
            }
            StepError::Feature { feature, errno } => {
                Failure::KernelFeature { operation: step.to_string(), feature, errno: errno.raw_os_error() }
            }
            StepError::Told { words, errno } => {
                Failure::Setup { operation: format!("{step} (the kernel says: {words})"), errno: errno.raw_os_error() }
            }
        })
    }

    /// Root of the root file system, once it is mounted.
    pub(crate) fn root(&self) -> Result<BorrowedFd<'_>, Errno> {
        match &self.in_place {
            Some(in_place) => Ok(in_place.root()),
            None => self.root.as_ref().map(AsFd::as_fd).ok_or(Errno::NOENT),
        }
    }

    fn in_place(&mut self) -> Result<&mut InPlace, Errno> {
        self.in_place.as_mut().ok_or(Errno::NOENT)
    }

    /// The directory that takes the changes of the root file system, or that is it.
    pub(crate) fn layer(&self) -> Result<BorrowedFd<'_>, Errno> {
        self.layer.as_ref().map(AsFd::as_fd).ok_or(Errno::NOENT)
    }

    fn scratch(&self) -> Result<BorrowedFd<'_>, Errno> {
        self.scratch.as_ref().map(AsFd::as_fd).ok_or(Errno::NOENT)
    }

    fn try_act(&mut self, step: &Step) -> Result<(), StepError> {
        match step {
            Step::KeepMountsPrivate => {
                rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
            }
            // Podman's seccomp profile refuses it without CAP_SYS_ADMIN in the first user namespace: the container's name stays.
            Step::Hostname(name) => match rustix::system::sethostname(name.as_bytes()) {
                Err(Errno::PERM) => {}
                done => done?,
            },
            Step::LoopbackUp => sys::loopback_up().map_err(errno)?,
            Step::Scratch { at } => self.make_scratch(at)?,
            Step::ScratchFile { name, data, mode, uid, gid } => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let file = rustix::fs::openat(self.scratch()?, name.as_str(), flags, Mode::from_raw_mode(0o600))?;
                let mut file = std::fs::File::from(file);
                std::io::Write::write_all(&mut file, data).map_err(errno)?;
                // In this order, for a change of owner takes set-user-id bits away.
                rustix::fs::fchown(&file, Some(Uid::from_raw(*uid)), Some(Gid::from_raw(*gid)))?;
                rustix::fs::fchmod(&file, Mode::from_raw_mode(*mode))?;
            }
            Step::Root { source, layer } => self.mount_root(source, layer)?,
            Step::MountPoint { target } => drop(self.standard_place(target)?),
            Step::Standard { source, target } => self.mount_standard(source, target)?,
            Step::Mount { source, subpath, attributes, target } => self.mount_extra(source, subpath, *attributes, target)?,
            Step::Outer { path, attributes } => {
                let mount = clone_all(rustix::fs::CWD, path)?;
                add_attributes_below(mount.as_fd(), *attributes)?;
                let place = self.standard_place(path)?;
                attach(mount.as_fd(), place.as_fd())?;
                self.keep_system(path, mount);
            }
            Step::BoundDevice { path, major, minor, required } => match clone_mount(rustix::fs::CWD, path) {
                Err(StepError::Walk(WalkError::System(Errno::NOENT))) if !required => {}
                device => {
                    let device = device?;
                    let stat = rustix::fs::fstat(&device)?;
                    let is_it = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
                        && stat.st_rdev == rustix::fs::makedev(*major, *minor);
                    if !is_it && !required {
                        return Ok(());
                    }
                    if !is_it {
                        return Err(StepError::Told { words: format!("`{path}` is another thing"), errno: Errno::NODEV });
                    }
                    let (directory, name) = self.own_directory(path)?;
                    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                    rustix::fs::openat(&directory, name, flags, Mode::from_raw_mode(0o666))?;
                    let place =
                        rustix::fs::openat(&directory, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
                    add_attributes(device.as_fd(), Attributes { readonly: false, nosuid: true, nodev: false, noexec: true })?;
                    attach(device.as_fd(), place.as_fd())?;
                }
            },
            Step::Device { path, major, minor } => {
                let (directory, name) = self.own_directory(path)?;
                let device = rustix::fs::makedev(*major, *minor);
                rustix::fs::mknodat(directory, name, FileType::CharacterDevice, Mode::from_raw_mode(0o666), device)?;
            }
            Step::Directory { path } => {
                let (directory, name) = self.own_directory(path)?;
                rustix::fs::mkdirat(directory, name, Mode::from_raw_mode(0o755))?;
            }
            Step::Terminal { console } => self.make_terminal(console)?,
            Step::Link { path, to } => {
                let (directory, name) = self.own_directory(path)?;
                rustix::fs::symlinkat(to.as_str(), directory, name)?;
            }
            Step::Mask { path } => {
                if let Some(place) = self.in_system(path)? {
                    let directory = FileType::from_raw_mode(rustix::fs::fstat(&place)?.st_mode) == FileType::Directory;
                    let cover = clone_mount(self.scratch()?, if directory { "empty" } else { "nothing" })?;
                    add_attributes(cover.as_fd(), Attributes { readonly: true, nosuid: true, nodev: true, noexec: true })?;
                    attach(cover.as_fd(), place.as_fd())?;
                }
            }
            Step::ReadOnly { path } => {
                if let Some(place) = self.in_system(path)? {
                    // Of a container's own `/proc` parts are covered already, and can't be uncovered.
                    let same = clone_all(place.as_fd(), "")?;
                    add_attributes_below(same.as_fd(), Attributes { readonly: true, nosuid: true, nodev: true, noexec: true })?;
                    attach(same.as_fd(), place.as_fd())?;
                }
            }
            Step::ReadOnlyRoot => add_attributes(self.root()?, Attributes { readonly: true, ..Attributes::default() })?,
            Step::OpenRoot { root, aside } => self.in_place = Some(InPlace::open(root, aside)?),
            Step::Cover { path, mode } => self.in_place()?.cover(path, *mode)?,
            Step::Put { put, target } => self.in_place()?.put(put, target)?,
            Step::Node { path, major, minor } => self.in_place()?.node(path, *major, *minor)?,
            Step::HostFile { path } => self.in_place()?.host_file(path)?,
            Step::ChangeRoot => {
                rustix::process::fchdir(self.root()?)?;
                rustix::process::chroot(".")?;
                rustix::process::chdir("/")?;
            }
            Step::EnterRoot => {
                rustix::process::fchdir(self.root()?)?;
                // The old root ends up on top of the new one, at the same place (pivot_root(2), NOTES).
                rustix::process::pivot_root(".", ".")?;
                rustix::mount::unmount(".", UnmountFlags::DETACH)?;
                rustix::process::chdir("/")?;
            }
        }
        Ok(())
    }

    fn make_scratch(&mut self, at: &OsStr) -> Result<(), StepError> {
        let place = open_directory(rustix::fs::CWD, at)?;
        let options = vec![("mode".to_owned(), "755".to_owned())];
        let attributes = Attributes { readonly: false, nosuid: true, nodev: true, noexec: false };
        let mut kind = Virtual { kind: "tmpfs".to_owned(), options, attributes };
        // Secrets must not reach the disk by way of swap; Linux 6.4 can keep them from it, but not in a user namespace. There the
        // older kind, which knows no swap and no limit, serves as well: the command can write to none of it.
        kind.options.push(("noswap".to_owned(), String::new()));
        let scratch = make_virtual(&kind).or_else(|_| {
            kind.options.pop();
            make_virtual(&Virtual { kind: "ramfs".to_owned(), ..kind.clone() }).or_else(|_| make_virtual(&kind))
        })?;
        attach(scratch.as_fd(), place.as_fd())?;
        for directory in ["root", "empty"] {
            rustix::fs::mkdirat(&scratch, directory, Mode::from_raw_mode(0o755))?;
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        rustix::fs::openat(&scratch, "nothing", flags, Mode::from_raw_mode(0o444))?;
        self.layer = Some(place);
        self.scratch = Some(scratch);
        Ok(())
    }

    /// Opens a new pair in the sandbox's own devpts, by its descriptor, and shows the command's end also as `console`.
    fn make_terminal(&mut self, console: &str) -> Result<(), StepError> {
        let pts = self.pts.as_ref().ok_or(Errno::NOENT)?;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let master = rustix::fs::openat(pts, "ptmx", flags, Mode::empty())?;
        rustix::pty::unlockpt(&master)?;
        // Of the master itself and not by name, so that it can't be another's.
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        let (directory, name) = self.own_directory(console)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        drop(rustix::fs::openat(&directory, name, flags, Mode::from_raw_mode(0o600))?);
        let place = rustix::fs::openat(&directory, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        attach(clone_mount(slave.as_fd(), "")?.as_fd(), place.as_fd())?;
        self.terminal = Some(Terminal { master: Some(master), slave });
        Ok(())
    }

    fn mount_root(&mut self, source: &Source, layer: &OsStr) -> Result<(), StepError> {
        let place = open_directory(self.scratch()?, OsStr::new("root"))?;
        // Device nodes that the command makes, or that the image brought, can't be opened; the real ones are on /dev.
        let attributes = Attributes { readonly: false, nosuid: false, nodev: true, noexec: false };
        let root = match source {
            Source::Overlay(overlay) => self.make_overlay(overlay, attributes, Some(place))?,
            _ => {
                // The scratch file system covers the path by now, so that it is reached by the descriptor from before.
                debug_assert!(matches!(source, Source::Host(path) if path == layer));
                let root = clone_mount(self.layer.as_ref().ok_or(Errno::NOENT)?.as_fd(), "")?;
                add_attributes(root.as_fd(), attributes)?;
                attach(root.as_fd(), place.as_fd())?;
                root
            }
        };
        self.root = Some(root);
        Ok(())
    }

    fn mount_standard(&mut self, source: &Virtual, target: &str) -> Result<(), StepError> {
        let mount = match make_virtual(source) {
            // Nothing that a build does needs message queues, and small kernels leave them out.
            Err(StepError::Feature { .. }) if source.kind == "mqueue" => return Ok(()),
            mount => mount?,
        };
        let place = self.standard_place(target)?;
        attach(mount.as_fd(), place.as_fd())?;
        self.keep_system(target, mount);
        Ok(())
    }

    fn keep_system(&mut self, target: &str, mount: OwnedFd) {
        match target {
            "/proc" => self.proc = Some(mount),
            "/sys" => self.sys = Some(mount),
            "/dev/pts" => self.pts = Some(mount),
            _ => {}
        }
    }

    /// A mount point that has to be a real directory (CVE-2023-27561).
    fn standard_place(&mut self, target: &str) -> Result<OwnedFd, StepError> {
        self.place(Path::new(target), Links::Refuse, Kind::Directory)
    }

    /// A tmpfs has the mode of the directory that it covers, if there is one (as with runc).
    fn with_covered_mode(&self, source: &Virtual, target: &OsStr) -> Virtual {
        let mut source = source.clone();
        let stat = |root| open_inside(root, Path::new(target), OFlags::PATH).and_then(rustix::fs::fstat);
        if let Some(stat) = self.root().ok().and_then(|root| stat(root).ok()) {
            for (_, value) in source.options.iter_mut().filter(|(key, _)| key == "mode") {
                *value = format!("{:o}", stat.st_mode & 0o7777);
            }
        }
        source
    }

    fn place(&mut self, target: &Path, links: Links, kind: Kind) -> Result<OwnedFd, StepError> {
        let root = self.root.as_ref().ok_or(Errno::NOENT)?.as_fd();
        let layer = self.layer.as_ref().ok_or(Errno::NOENT)?.as_fd();
        Ok(mount_point(root, layer, target, links, kind, &mut self.stubs)?)
    }

    fn mount_extra(&mut self, source: &Source, subpath: &OsStr, attributes: Attributes, target: &OsStr) -> Result<(), StepError> {
        let mount = match source {
            Source::Virtual(source) => make_virtual(&self.with_covered_mode(source, target))?,
            Source::Scratch(name) => clone_mount(self.scratch()?, name)?,
            Source::Host(path) => {
                let path = Path::new(path);
                let whole =
                    rustix::fs::openat(rustix::fs::CWD, path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
                if FileType::from_raw_mode(rustix::fs::fstat(&whole)?.st_mode) == FileType::Symlink {
                    return Err(Errno::LOOP.into());
                }
                clone_below(whole, subpath)?
            }
            Source::Overlay(overlay) if subpath.is_empty() => self.make_overlay(overlay, attributes, None)?,
            Source::Overlay(overlay) => {
                // Older kernels can't copy a mount that isn't attached somewhere.
                self.attached += 1;
                let name = format!("mount-{}", self.attached);
                rustix::fs::mkdirat(self.scratch()?, name.as_str(), Mode::from_raw_mode(0o755))?;
                let place = open_directory(self.scratch()?, OsStr::new(&name))?;
                clone_below(self.make_overlay(overlay, attributes, Some(place))?, subpath)?
            }
        };
        add_attributes(mount.as_fd(), attributes)?;
        let directory = FileType::from_raw_mode(rustix::fs::fstat(&mount)?.st_mode) == FileType::Directory;
        let kind = if directory { Kind::Directory } else { Kind::File };
        let place = self.place(Path::new(target), Links::Follow, kind)?;
        attach(mount.as_fd(), place.as_fd())
    }

    /// Mounts an overlay and answers its root, attached to `place` if there is one.
    fn make_overlay(&mut self, overlay: &Overlay, attributes: Attributes, place: Option<OwnedFd>) -> Result<OwnedFd, StepError> {
        let mut layers = Vec::with_capacity(overlay.lowers.len());
        for path in &overlay.lowers {
            layers.push(open_layer(path)?);
        }
        if overlay.upper.is_none() && layers.len() == 1 {
            // The kernel wants two when there is no upper.
            layers.push(open_directory(self.scratch()?, OsStr::new("empty"))?);
        }
        let upper = match &overlay.upper {
            Some((upper, work)) => Some((self.open_upper(upper)?, open_layer(work)?)),
            None => None,
        };
        let layers = OverlayLayers { lowers: layers, upper, user_xattr: overlay.user_xattr, volatile: overlay.volatile };
        match (overlay.api, place) {
            (OverlayApi::Classic, place) => {
                let place = match place {
                    Some(place) => place,
                    None => {
                        self.attached += 1;
                        let name = format!("mount-{}", self.attached);
                        rustix::fs::mkdirat(self.scratch()?, name.as_str(), Mode::from_raw_mode(0o755))?;
                        open_directory(self.scratch()?, OsStr::new(&name))?
                    }
                };
                layers.mount_classic(place.as_fd(), attributes)
            }
            (api, place) => {
                let mount = layers.mount(api, attributes)?;
                if let Some(place) = place {
                    attach(mount.as_fd(), place.as_fd())?;
                }
                Ok(mount)
            }
        }
    }

    /// Opens an upper directory; the root's own is covered by the scratch file system and was opened before.
    fn open_upper(&self, path: &OsStr) -> Result<OwnedFd, StepError> {
        match &self.layer {
            Some(layer) if self.root.is_none() => Ok(open_directory(layer.as_fd(), OsStr::new("."))?),
            _ => open_layer(path),
        }
    }

    /// Splits the path of something in a file system of kiln's own into its open directory and its name.
    fn own_directory<'a>(&self, path: &'a str) -> Result<(OwnedFd, &'a str), StepError> {
        let (directory, name) = path.rsplit_once('/').ok_or(Errno::INVAL)?;
        Ok((open_inside(self.root()?, Path::new(directory), OFlags::PATH | OFlags::DIRECTORY)?, name))
    }

    /// Opens a place in kiln's own `/proc` or `/sys` by the descriptor of that mount, so that nothing can stand in for it
    /// (CVE-2025-31133); `None` when this kernel doesn't have it.
    fn in_system(&self, path: &str) -> Result<Option<OwnedFd>, StepError> {
        let (mount, below) = match (path.strip_prefix("/proc/"), path.strip_prefix("/sys/")) {
            (Some(below), _) => (&self.proc, below),
            (_, Some(below)) => (&self.sys, below),
            _ => return Err(Errno::INVAL.into()),
        };
        let mount = mount.as_ref().ok_or(Errno::NOENT)?;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        match rustix::fs::openat2(mount, below, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// The directories of an overlay, open.
struct OverlayLayers {
    /// Top first.
    lowers: Vec<OwnedFd>,
    /// Upper and work directory.
    upper: Option<(OwnedFd, OwnedFd)>,
    user_xattr: bool,
    volatile: bool,
}

/// Mounts an overlay, whose directories are named by paths, on `place` or nowhere: for whoever only wants to know whether that works.
pub(crate) fn try_overlay(overlay: &Overlay, place: OwnedFd) -> io::Result<OwnedFd> {
    let open = |path: &OsStr| open_directory(rustix::fs::CWD, path);
    let lowers: Result<Vec<OwnedFd>, Errno> = overlay.lowers.iter().map(|path| open(path)).collect();
    let upper = match &overlay.upper {
        Some((upper, work)) => Some((open(upper)?, open(work)?)),
        None => None,
    };
    let layers = OverlayLayers { lowers: lowers?, upper, user_xattr: overlay.user_xattr, volatile: overlay.volatile };
    let attributes = Attributes { readonly: false, nosuid: false, nodev: true, noexec: false };
    let mounted = match overlay.api {
        OverlayApi::Classic => layers.mount_classic(place.as_fd(), attributes),
        api => layers.mount(api, attributes),
    };
    mounted.map_err(|error| match error {
        StepError::Told { words, errno } => io::Error::new(io::Error::from(errno).kind(), format!("the kernel says: {words}")),
        StepError::Feature { feature, .. } => io::Error::new(io::ErrorKind::Unsupported, format!("the kernel lacks {feature}")),
        StepError::Walk(WalkError::System(errno)) => errno.into(),
        StepError::Walk(WalkError::Blocked { reason, .. }) => io::Error::other(reason),
    })
}

/// Keeps to what every reader of a layer understands: no renamed directories, no files without their data, no index; and follows no
/// redirection that a layer might have been made with.
const OVERLAY_OPTIONS: &[(&str, &str)] = &[("redirect_dir", "nofollow"), ("metacopy", "off"), ("index", "off")];

impl OverlayLayers {
    fn mount(self, api: OverlayApi, attributes: Attributes) -> Result<OwnedFd, StepError> {
        let context = open_file_system("overlay")?;
        let configure = || -> Result<(), Errno> {
            rustix::mount::fsconfig_set_string(&context, "source", "overlay")?;
            let set = |key: &str, directory: &OwnedFd| match api {
                OverlayApi::Descriptors => rustix::mount::fsconfig_set_fd(&context, key, directory),
                _ => rustix::mount::fsconfig_set_string(&context, key, descriptor_path(directory.as_fd())),
            };
            for lower in &self.lowers {
                set("lowerdir+", lower)?;
            }
            if let Some((upper, work)) = &self.upper {
                set("upperdir", upper)?;
                set("workdir", work)?;
                // The upper directory is either committed, and then synced by whoever makes it durable, or thrown away. Without
                // this the end of each mount would sync the whole file system.
                if self.volatile {
                    rustix::mount::fsconfig_set_flag(&context, "volatile")?;
                }
            }
            if self.user_xattr {
                rustix::mount::fsconfig_set_flag(&context, "userxattr")?;
            }
            for (key, value) in OVERLAY_OPTIONS {
                rustix::mount::fsconfig_set_string(&context, *key, *value)?;
            }
            rustix::mount::fsconfig_create(&context)
        };
        configure().map_err(|errno| told(context.as_fd(), errno))?;
        Ok(rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attribute_flags(attributes))?)
    }

    /// The way before Linux 6.8: one string of options, a page at most.
    fn mount_classic(self, place: BorrowedFd<'_>, attributes: Attributes) -> Result<OwnedFd, StepError> {
        let mut options = String::from("lowerdir=");
        for (index, lower) in self.lowers.iter().enumerate() {
            let colon = if index == 0 { "" } else { ":" };
            // Writing to a string can't fail.
            let _ = write!(options, "{colon}{}", descriptor_path(lower.as_fd()));
        }
        if let Some((upper, work)) = &self.upper {
            let _ = write!(
                options,
                ",upperdir={},workdir={}{}",
                descriptor_path(upper.as_fd()),
                descriptor_path(work.as_fd()),
                if self.volatile { ",volatile" } else { "" }
            );
        }
        if self.user_xattr {
            options.push_str(",userxattr");
        }
        for (key, value) in OVERLAY_OPTIONS {
            let _ = write!(options, ",{key}={value}");
        }
        if options.len() > 4095 {
            let feature = format!("overlay mounts of {} layers (Linux 6.8)", self.lowers.len());
            return Err(StepError::Feature { feature, errno: Errno::TOOBIG });
        }
        let options = CString::new(options).map_err(|_| Errno::INVAL)?;
        let at = descriptor_path(place);
        rustix::mount::mount("overlay", at.as_str(), "overlay", MountFlags::empty(), Some(options.as_c_str()))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(rustix::fs::CWD, at.as_str(), flags, Mode::empty())?;
        // Through the descriptor the place below the new mount is seen, so it is entered by its name.
        let root = if same_place(root.as_fd(), place)? { reopen_covered(place)? } else { root };
        add_attributes(root.as_fd(), attributes)?;
        Ok(root)
    }
}

fn same_place(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> Result<bool, Errno> {
    let (one, other) = (rustix::fs::fstat(one)?, rustix::fs::fstat(other)?);
    Ok(one.st_dev == other.st_dev && one.st_ino == other.st_ino)
}

/// Opens what is mounted over `place`, by going up and down again.
fn reopen_covered(place: BorrowedFd<'_>) -> Result<OwnedFd, StepError> {
    let path = rustix::fs::readlinkat(rustix::fs::CWD, descriptor_path(place), Vec::new())?;
    let name = Path::new(OsStr::from_bytes(path.as_bytes())).file_name().ok_or(Errno::INVAL)?;
    let parent = rustix::fs::openat(place, "..", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(rustix::fs::openat(parent, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

fn open_layer(path: &OsStr) -> Result<OwnedFd, StepError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(rustix::fs::CWD, path, flags, Mode::empty())
        .map_err(|errno| StepError::Told { words: format!("no layer directory `{}`", path.display()), errno })
}

/// A name for an open directory that is short, whatever its path is: the kernel takes 255 bytes for each.
pub(crate) fn descriptor_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

fn make_virtual(source: &Virtual) -> Result<OwnedFd, StepError> {
    let context = open_file_system(&source.kind)?;
    let configure = || -> Result<(), Errno> {
        rustix::mount::fsconfig_set_string(&context, "source", source.kind.as_str())?;
        for (key, value) in &source.options {
            match value.as_str() {
                "" => rustix::mount::fsconfig_set_flag(&context, key.as_str())?,
                value => rustix::mount::fsconfig_set_string(&context, key.as_str(), value)?,
            }
        }
        rustix::mount::fsconfig_create(&context)
    };
    configure().map_err(|errno| told(context.as_fd(), errno))?;
    Ok(rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attribute_flags(source.attributes))?)
}

fn open_file_system(kind: &str) -> Result<OwnedFd, StepError> {
    rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).map_err(|errno| match errno {
        Errno::NODEV => StepError::Feature { feature: format!("the file system `{kind}`"), errno },
        Errno::NOSYS => StepError::Feature { feature: "the mount calls of Linux 5.2 (`fsopen`)".to_owned(), errno },
        _ => errno.into(),
    })
}

/// Adds what the kernel wrote into the log of a file system context.
fn told(context: BorrowedFd<'_>, errno: Errno) -> StepError {
    let mut words = String::new();
    let mut line = [0u8; 1024];
    while let Ok(length) = rustix::io::read(context, &mut line) {
        let text = String::from_utf8_lossy(&line[..length]);
        if !words.is_empty() {
            words.push_str("; ");
        }
        // Each begins with its kind: `e `, `w ` or `i `.
        words.push_str(text.get(2..).unwrap_or(&text).trim_end());
    }
    if words.is_empty() { errno.into() } else { StepError::Told { words, errno } }
}

/// A detached copy of the mount at `name` below `directory`, with `name` as its root; of `directory` itself when `name` is empty.
fn clone_mount(directory: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, StepError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    Ok(rustix::mount::open_tree(directory, name, flags)?)
}

/// The same with all that is mounted below it.
fn clone_all(directory: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, StepError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    Ok(rustix::mount::open_tree(directory, name, flags)?)
}

/// The same for a path below `whole` that can't lead out of it.
fn clone_below(whole: OwnedFd, subpath: &OsStr) -> Result<OwnedFd, StepError> {
    if subpath.is_empty() {
        return clone_mount(whole.as_fd(), "");
    }
    let below = open_inside(whole.as_fd(), Path::new(subpath), OFlags::PATH)?;
    clone_mount(below.as_fd(), "")
}

fn attach(mount: BorrowedFd<'_>, place: BorrowedFd<'_>) -> Result<(), StepError> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(mount, "", place, "", flags)?)
}

fn add_attributes(mount: BorrowedFd<'_>, attributes: Attributes) -> Result<(), StepError> {
    let flags = attribute_flags(attributes);
    if flags.is_empty() {
        return Ok(());
    }
    sys::add_mount_attributes(mount, flags, false).map_err(lacks_setattr)
}

/// To a mount and all below it.
fn add_attributes_below(mount: BorrowedFd<'_>, attributes: Attributes) -> Result<(), StepError> {
    sys::add_mount_attributes(mount, attribute_flags(attributes), true).map_err(lacks_setattr)
}

fn lacks_setattr(error: io::Error) -> StepError {
    match errno(error) {
        errno @ Errno::NOSYS => StepError::Feature { feature: "`mount_setattr` (Linux 5.12)".to_owned(), errno },
        errno => errno.into(),
    }
}

fn attribute_flags(attributes: Attributes) -> MountAttrFlags {
    let mut flags = MountAttrFlags::empty();
    flags.set(MountAttrFlags::MOUNT_ATTR_RDONLY, attributes.readonly);
    flags.set(MountAttrFlags::MOUNT_ATTR_NOSUID, attributes.nosuid);
    flags.set(MountAttrFlags::MOUNT_ATTR_NODEV, attributes.nodev);
    flags.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, attributes.noexec);
    flags
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}
