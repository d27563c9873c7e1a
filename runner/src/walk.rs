//! Paths inside a root: hides how they are followed without ever leaving it.
//!
//! Every step is one name below an open directory; `..` and symbolic links are worked out here, so that at no moment the kernel
//! resolves a path of the image's making against kiln's own root, and what was looked at is what is used.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Why a path could not be followed.
#[derive(Debug)]
pub(crate) enum WalkError {
    /// Something is in the way.
    Blocked {
        /// Which path, without links.
        path: PathBuf,
        /// What it is.
        reason: String,
    },
    /// The kernel refused.
    System(Errno),
}

impl From<Errno> for WalkError {
    fn from(errno: Errno) -> WalkError {
        WalkError::System(errno)
    }
}

/// What to do with symbolic links on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Links {
    /// Follow them inside the root.
    Follow,
    /// They are in the way.
    Refuse,
}

/// Where a path leads.
#[derive(Debug)]
pub(crate) struct Place {
    /// Open directories from the root down to the last existing one.
    directories: Vec<(OwnedFd, OsString)>,
    /// What is at the path, opened with `O_PATH`, unless it is a directory or missing.
    leaf: Option<(OwnedFd, OsString)>,
    /// Names that don't exist yet.
    missing: Vec<OsString>,
}

impl Place {
    /// The directory or file at the path, when it exists.
    pub(crate) fn existing(&self) -> Option<BorrowedFd<'_>> {
        if !self.missing.is_empty() {
            return None;
        }
        match &self.leaf {
            Some((fd, _)) => Some(fd.as_fd()),
            None => Some(self.directory()),
        }
    }

    /// The last existing directory on the way.
    pub(crate) fn directory(&self) -> BorrowedFd<'_> {
        // The root itself is always there and is never popped.
        self.directories[self.directories.len() - 1].0.as_fd()
    }

    /// The directory and the name of what is at the path, and what that is; `None` for the root itself, or when something is missing.
    pub(crate) fn into_entry(mut self) -> Option<(OwnedFd, OsString, OwnedFd)> {
        if !self.missing.is_empty() {
            return None;
        }
        let (found, name) = match self.leaf.take() {
            Some(leaf) => leaf,
            None if self.directories.len() > 1 => self.directories.pop()?,
            None => return None,
        };
        Some((self.directories.pop()?.0, name, found))
    }

    /// The last existing directory on the way.
    pub(crate) fn into_directory(mut self) -> Option<OwnedFd> {
        self.directories.pop().map(|(fd, _)| fd)
    }

    /// Each existing directory on the way, with its path without links.
    pub(crate) fn directories(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PathBuf)> {
        let mut path = PathBuf::from("/");
        self.directories.iter().map(move |(fd, name)| {
            path.push(name);
            (fd.as_fd(), path.clone())
        })
    }

    /// The path of the last existing directory, without links.
    pub(crate) fn directory_path(&self) -> PathBuf {
        self.directories.iter().fold(PathBuf::from("/"), |path, (_, name)| path.join(name))
    }

    /// The names that don't exist yet, from the top.
    pub(crate) fn missing(&self) -> &[OsString] {
        &self.missing
    }

    /// Notes that the first missing name is now the directory `fd`.
    pub(crate) fn made_directory(&mut self, fd: OwnedFd) {
        let name = self.missing.remove(0);
        self.directories.push((fd, name));
    }

    /// Notes that the first missing name is now the file `fd`.
    pub(crate) fn made_file(&mut self, fd: OwnedFd) {
        let name = self.missing.remove(0);
        self.leaf = Some((fd, name));
    }
}

/// Follows `path` below `root`, as far as it exists.
pub(crate) fn walk(root: BorrowedFd<'_>, path: &Path, links: Links) -> Result<Place, WalkError> {
    let mut place =
        Place { directories: vec![(open_directory(root, OsStr::new("."))?, OsString::new())], leaf: None, missing: vec![] };
    let mut todo: Vec<OsString> = names(path.as_os_str());
    let mut followed = 0;
    while let Some(name) = todo.pop() {
        if name == ".." {
            match place.missing.pop() {
                Some(_) => {}
                None if place.leaf.is_some() => return Err(blocked(&place, None, "not a directory")),
                None if place.directories.len() > 1 => drop(place.directories.pop()),
                None => {}
            }
            continue;
        }
        if !place.missing.is_empty() {
            place.missing.push(name);
            continue;
        }
        if place.leaf.is_some() {
            return Err(blocked(&place, None, "not a directory"));
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match rustix::fs::openat(place.directory(), &name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => {
                place.missing.push(name);
                continue;
            }
            Err(errno) => return Err(errno.into()),
        };
        match FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) {
            FileType::Directory => place.directories.push((fd, name)),
            FileType::Symlink if links == Links::Refuse => {
                return Err(blocked(&place, Some(&name), "it is a symbolic link"));
            }
            FileType::Symlink => {
                followed += 1;
                if followed > 40 {
                    return Err(blocked(&place, Some(&name), "too many symbolic links"));
                }
                let target = rustix::fs::readlinkat(&fd, "", Vec::new())?;
                let target = OsString::from_vec(target.into_bytes());
                if target.as_bytes().starts_with(b"/") {
                    place.directories.truncate(1);
                }
                todo.extend(names(&target));
            }
            _ => place.leaf = Some((fd, name)),
        }
    }
    Ok(place)
}

/// The names of a path, last first.
fn names(path: &OsStr) -> Vec<OsString> {
    path.as_bytes()
        .rsplit(|byte| *byte == b'/')
        .filter(|name| !name.is_empty() && *name != b".")
        .map(|name| OsString::from_vec(name.to_vec()))
        .collect()
}

fn blocked(place: &Place, name: Option<&OsStr>, reason: &str) -> WalkError {
    let mut path = place.directory_path();
    path.extend(name.or(place.leaf.as_ref().map(|(_, name)| name.as_os_str())));
    WalkError::Blocked { path, reason: reason.to_owned() }
}

/// Opens the directory `name` below `parent`, without following it.
pub(crate) fn open_directory(parent: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// Opens what is at `path` below `root`, links followed inside it and magic links refused, with the kernel's own resolver.
pub(crate) fn open_inside(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    for _ in 1..TRIES {
        match rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => std::thread::yield_now(),
            result => return result,
        }
    }
    rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// How often a path is tried: when anything on the machine is renamed or mounted while the kernel resolves a `..`, it can't tell
/// whether the path got out of the root, and says EAGAIN (openat2(2)). Steps that start side by side do that to one another.
const TRIES: u32 = 256;

/// Removes `name` below `parent` and leaves the parent's modification time as it was.
pub(crate) fn remove_quietly(parent: BorrowedFd<'_>, name: &OsStr, flags: AtFlags) -> Result<(), Errno> {
    keeping_mtime(parent, || rustix::fs::unlinkat(parent, name, flags))
}

/// Runs `change` and gives the directory its modification time back.
pub(crate) fn keeping_mtime<T>(directory: BorrowedFd<'_>, change: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
    let before = rustix::fs::fstat(directory)?;
    let result = change()?;
    let times = rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        last_modification: rustix::fs::Timespec { tv_sec: before.st_mtime as _, tv_nsec: before.st_mtime_nsec as _ },
    };
    // By a descriptor that may be O_PATH, which futimens refuses.
    rustix::fs::utimensat(directory, "", &times, AtFlags::EMPTY_PATH)?;
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn paths_stay_inside() {
        let base = std::env::temp_dir().join(format!("kiln-walk-{}", std::process::id()));
        let root = base.join("root");
        std::fs::create_dir_all(root.join("usr/etc")).unwrap();
        std::fs::write(root.join("usr/etc/hosts"), b"").unwrap();
        symlink("usr/etc", root.join("etc")).unwrap();
        symlink("/../../../run/x/resolv.conf", root.join("usr/etc/resolv.conf")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        symlink(&base, root.join("out")).unwrap();
        let rows: &[(&str, Links, &str)] = &[
            ("/", Links::Follow, "/ + []"),
            ("/etc", Links::Follow, "/usr/etc + []"),
            ("/etc/hosts", Links::Follow, "/usr/etc leaf + []"),
            ("/etc/resolv.conf", Links::Follow, "/ + [\"run\", \"x\", \"resolv.conf\"]"),
            ("/../../usr/./etc/../new//deep", Links::Follow, "/usr + [\"new\", \"deep\"]"),
            ("/new/../usr", Links::Follow, "/usr + []"),
            ("/loop", Links::Follow, "/loop: too many symbolic links"),
            ("/etc/hosts/x", Links::Follow, "/usr/etc/hosts: not a directory"),
            ("/etc", Links::Refuse, "/etc: it is a symbolic link"),
        ];
        let fd = open_directory(rustix::fs::CWD, root.as_os_str()).unwrap();
        for (path, links, expected) in rows {
            let seen = match walk(fd.as_fd(), Path::new(path), *links) {
                Ok(place) => format!(
                    "{}{} + {:?}",
                    place.directory_path().display(),
                    if place.leaf.is_some() { " leaf" } else { "" },
                    place.missing()
                ),
                Err(WalkError::Blocked { path, reason }) => format!("{}: {reason}", path.display()),
                Err(WalkError::System(errno)) => format!("{errno}"),
            };
            assert_eq!(seen, *expected, "{path}");
        }
        let place = walk(fd.as_fd(), Path::new("/out/root"), Links::Follow).unwrap();
        assert!(place.existing().is_none(), "an absolute link starts at the root, where the host's path does not exist");
        std::fs::remove_dir_all(&base).unwrap();
    }
}
