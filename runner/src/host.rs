//! What this host offers: hides the probes, which find out by doing.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags};
use rustix::thread::UnshareFlags;
use serde::{Deserialize, Serialize};

use crate::cgroup;
use crate::ground::Ground;
use crate::idmap::IdMaps;
use crate::mode::Mode;
use crate::network;
use crate::spec::GroupLimits;
use crate::sys;
use crate::userns::Entered;

/// What the host offers to the sandbox.
#[derive(Debug, Clone)]
pub struct Host {
    /// The way in which sandboxes are made here.
    pub mode: Mode,
    /// What can be mounted where the layers lie.
    pub ground: Ground,
    /// Where `/proc` comes from.
    pub proc: SystemFiles,
    /// Where `/sys` comes from when the command has the network of kiln; with one of its own it is fresh if it can be.
    pub sys: SystemFiles,
    /// Whether `/sys` can be mounted afresh by who has made the network.
    pub own_sys: bool,
    /// Where device nodes come from.
    pub devices: Devices,
    /// Whether pseudo-terminals can belong to the group 5, as distributions have it.
    pub terminal_group: bool,
    /// Whether a network namespace can be made.
    pub own_network: bool,
    /// The ids that a command can be given.
    pub ids: IdMaps,
    /// The host's `/etc/resolv.conf`.
    pub(crate) resolv_conf: Vec<u8>,
    /// What the host's own resolver asks, where that is systemd's.
    pub(crate) upstream_resolv_conf: Vec<u8>,
    /// The program that connects private networks.
    pub(crate) pasta: Option<PathBuf>,
    /// Further files of `/sys` to hide, which differ by machine.
    pub(crate) masked: Vec<String>,
    /// Where control groups can be made.
    pub(crate) group: Option<cgroup::Hierarchies>,
    /// A layer of the usual mount points, see [`Host::keep_mount_points`].
    pub(crate) mount_points: Option<PathBuf>,
    /// kiln's own program, through a mount that nobody can write to (CVE-2019-5736).
    pub(crate) program: Option<Arc<OwnedFd>>,
    /// Whether commands get the huge pages that this process does without ([`Entered::huge_pages`]).
    pub(crate) huge_pages: bool,
}

/// Where the command's `/proc` or `/sys` comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SystemFiles {
    /// Mounted afresh.
    Fresh,
    /// The one that kiln sees, mounted once more with all that is mounted below it.
    Outer,
    /// An empty directory.
    Absent,
}

/// Where the nodes in the command's `/dev` come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Devices {
    /// Made.
    Made,
    /// Those that kiln sees, mounted.
    Bound,
}

impl Host {
    /// Finds out by trying what `entered` and `ground` leave open. Takes well under a millisecond; meant to be called once a process.
    pub fn probe(entered: &Entered, ground: &Ground) -> Host {
        let is_root = entered.mode == Mode::Root;
        let mut tried = Tried::default();
        let mut mode = entered.mode.clone();
        if mode.is_available() && mode != Mode::Chroot {
            match try_namespaces(is_root) {
                Ok(found) => tried = found,
                Err(reason) => {
                    let remedy = "start the container with `--privileged`, or kiln outside of it".to_owned();
                    mode = Mode::Unavailable { reason, remedy };
                }
            }
        }
        let usable = mode.is_available();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Host {
            mode,
            ground: ground.clone(),
            proc: if is_root || shows_all_of_proc(&mounts) { SystemFiles::Fresh } else { SystemFiles::Outer },
            sys: match (is_root, tried.outer_system) {
                (true, _) => SystemFiles::Fresh,
                (false, true) => SystemFiles::Outer,
                (false, false) => SystemFiles::Absent,
            },
            own_sys: tried.own_sys,
            devices: if is_root { Devices::Made } else { Devices::Bound },
            terminal_group: is_root || entered.ids.has_group(5),
            own_network: tried.own_network,
            ids: entered.ids.clone(),
            resolv_conf: fs::read("/etc/resolv.conf").unwrap_or_default(),
            upstream_resolv_conf: fs::read("/run/systemd/resolve/resolv.conf").unwrap_or_default(),
            pasta: network::find_program(),
            masked: throttle_files(),
            group: usable.then(cgroup::find).flatten(),
            mount_points: None,
            program: usable.then(sealed_program).flatten().map(Arc::new),
            huge_pages: entered.huge_pages,
        }
    }
}

impl Host {
    /// What of `limits` can't be enforced here, by the names of their flags.
    pub fn lacks(&self, limits: &GroupLimits) -> Vec<&'static str> {
        let nowhere = cgroup::Hierarchies::default();
        self.group.as_ref().unwrap_or(&nowhere).lacks(limits)
    }

    /// Can commands be run at all?
    pub fn mode_is_usable(&self) -> bool {
        !matches!(self.mode, Mode::Unavailable { .. })
    }

    /// Does a control group count the processes of a run with these limits? Else only RLIMIT_NPROC does, which is by user, and which
    /// the kernel doesn't hold against the root of the machine.
    pub fn counts_processes(&self, limits: &GroupLimits) -> bool {
        self.group.as_ref().is_some_and(|group| group.counts_processes(limits))
    }

    /// Fills `directory`, once, with the empty mount points that every run needs, and has them lie below all other layers from now on.
    ///
    /// An image without `/proc`, `/etc/hosts` and so on otherwise gets them made and removed again for each run: a dozen inodes,
    /// which on a busy ext4 is half of a step's cost. Nothing of this directory gets into a layer. It is never written to again and
    /// may be shared by processes; it has to be on the layers' file system, for the command sees the inode numbers of its files only
    /// as long as all layers are on one.
    ///
    /// # Errors
    /// When the directory can't be filled.
    pub fn keep_mount_points(&mut self, directory: &Path) -> io::Result<()> {
        for name in ["proc", "sys", "dev", "etc"] {
            fs::create_dir_all(directory.join(name))?;
        }
        for name in ["etc/hosts", "etc/resolv.conf"] {
            File::options().create(true).append(true).open(directory.join(name))?;
        }
        // Where the image has no /etc, the command sees this one, so that it is the same on each machine.
        for name in ["proc", "sys", "dev", "etc", ""] {
            let path = directory.join(name);
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
            File::open(&path)?.set_times(fs::FileTimes::new().set_modified(SystemTime::UNIX_EPOCH))?;
        }
        self.mount_points = Some(directory.to_owned());
        Ok(())
    }
}

/// What a thread of its own found out, whose namespaces end with it.
#[derive(Debug, Default)]
struct Tried {
    own_network: bool,
    own_sys: bool,
    outer_system: bool,
}

/// Makes the namespaces of a sandbox.
fn try_namespaces(is_root: bool) -> Result<Tried, String> {
    let attempt = move || -> Result<Tried, String> {
        let failed = |what: &str, error: io::Error| format!("{what} is refused here ({error})");
        let flags = UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS | UnshareFlags::NEWPID;
        sys::unshare(flags).map_err(|error| failed("making namespaces (`unshare`)", error))?;
        let tmpfs = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)
            .map_err(|errno| failed("mounting (`fsopen`)", errno.into()))?;
        rustix::mount::fsconfig_create(&tmpfs)
            .and_then(|()| rustix::mount::fsmount(&tmpfs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()))
            .map_err(|errno| failed("mounting (`fsmount`)", errno.into()))?;
        if is_root {
            return Ok(Tried { own_network: true, own_sys: true, outer_system: true });
        }
        let all = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
        let outer_system = rustix::mount::open_tree(rustix::fs::CWD, "/sys", all).is_ok();
        let own_network = sys::unshare(UnshareFlags::NEWNET).is_ok();
        let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let sysfs = || {
            let sysfs = rustix::mount::fsopen("sysfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
            rustix::mount::fsconfig_create(&sysfs)?;
            rustix::mount::fsmount(&sysfs, FsMountFlags::FSMOUNT_CLOEXEC, read_only)
        };
        Ok(Tried { own_network, own_sys: own_network && sysfs().is_ok(), outer_system })
    };
    let thread = std::thread::Builder::new().name("probe".to_owned()).spawn(attempt).map_err(|error| error.to_string())?;
    thread.join().unwrap_or_else(|_| Err("the probe failed".to_owned()))
}

/// Whether a fresh proc file system may be mounted in a user namespace: where parts of the one that is there are covered, the kernel
/// refuses to show what is below (`mount_too_revealing` of its fs/namespace.c). Directories that exist only to be mounted on may be.
fn shows_all_of_proc(mounts: &str) -> bool {
    let points = || mounts.lines().filter_map(|line| line.split(' ').nth(4));
    let covered = |point: &str| {
        point.starts_with("/proc/") && !matches!(point, "/proc/sys/fs/binfmt_misc" | "/proc/fs/nfsd" | "/proc/fs/nfs")
    };
    points().any(|point| point == "/proc") && !points().any(covered)
}

/// Podman hides the thermal counters of each processor, which tell what the neighbours do.
fn throttle_files() -> Vec<String> {
    let Ok(entries) = fs::read_dir("/sys/devices/system/cpu") else { return Vec::new() };
    let mut paths: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.path().join("thermal_throttle").to_str().map(str::to_owned))
        .filter(|path| fs::exists(path).unwrap_or(false))
        .collect();
    paths.sort();
    paths
}

/// kiln's program by way of a read-only mount that is attached nowhere.
fn sealed_program() -> Option<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let link = "/proc/self/exe";
    let program = rustix::mount::open_tree(rustix::fs::CWD, link, flags).or_else(|_| {
        // It is reached through a mount of the namespace that kiln has left; the same file has a path in this one.
        let path = rustix::fs::readlink(link, Vec::new())?;
        let program = rustix::mount::open_tree(rustix::fs::CWD, path, flags)?;
        let (found, own) = (rustix::fs::fstat(&program)?, rustix::fs::stat(link)?);
        let same = (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino);
        if same { Ok(program) } else { Err(rustix::io::Errno::NOENT) }
    });
    let program = program.ok()?;
    sys::add_mount_attributes(program.as_fd(), MountAttrFlags::MOUNT_ATTR_RDONLY, false).ok()?;
    Some(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn covered_proc() {
        let line = |point: &str| format!("30 25 0:26 / {point} rw,nosuid - proc proc rw\n");
        let rows: &[(&[&str], bool)] = &[
            (&["/", "/proc", "/sys"], true),
            (&["/proc", "/proc/sys/fs/binfmt_misc"], true),
            (&["/proc", "/proc/kcore"], false),
            (&["/proc", "/proc/sys"], false),
            (&["/", "/process/x"], false),
        ];
        for (points, expected) in rows {
            let mounts: String = points.iter().map(|point| line(point)).collect();
            assert_eq!(shows_all_of_proc(&mounts), *expected, "{points:?}");
        }
    }
}
