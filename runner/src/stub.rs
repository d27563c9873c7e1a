//! Mount points that an image lacks: hides how they are made for a run and leave no trace in the layer.
//!
//! Making `/etc/hosts` on an overlay leaves three traces in the upper directory: the file, a copy of `/etc`, and a fresh
//! modification time. What was made is written down with its inode number, and after the run only that inode is removed, by walking
//! the bare upper directory without following a link (CVE-2024-23652).

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::error::RunError;
use crate::walk::{Links, Place, WalkError, keeping_mtime, open_directory, remove_quietly, walk};
use crate::wire::PathBytes;

/// Something in the layer's directory that comes from kiln and not from the command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Stub {
    /// An empty file or directory.
    Made { path: PathBytes, inode: u64 },
    /// A directory of a lower layer that the overlay copied, because something was made in it.
    Copied { path: PathBytes, inode: u64, before: Metadata },
}

/// What makes two directories the same for a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Metadata {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: (i64, i64),
    /// Sorted; without overlay's own.
    xattrs: Vec<Attribute>,
}

/// Name and value of an extended attribute.
type Attribute = (Vec<u8>, Vec<u8>);

/// What a mount needs to be attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File,
}

/// Opens the place `path` below `root` to mount a `kind` on, made when it is missing. What was made in `layer`, the directory that
/// takes the root's changes, is added to `stubs`.
pub(crate) fn mount_point(
    root: BorrowedFd<'_>,
    layer: BorrowedFd<'_>,
    path: &Path,
    links: Links,
    kind: Kind,
    stubs: &mut Vec<Stub>,
) -> Result<OwnedFd, WalkError> {
    let mut place = walk(root, path, links)?;
    if place.missing().is_empty() {
        let found = match place.existing() {
            Some(fd) => fd.try_clone_to_owned().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?,
            None => return Err(Errno::NOENT.into()),
        };
        let is_directory = file_type(&rustix::fs::fstat(&found)?) == FileType::Directory;
        return match (kind, is_directory) {
            (Kind::Directory, true) | (Kind::File, false) => Ok(found),
            (Kind::Directory, false) => {
                Err(WalkError::Blocked { path: path.to_owned(), reason: "it is not a directory".to_owned() })
            }
            (Kind::File, true) => Err(WalkError::Blocked { path: path.to_owned(), reason: "it is a directory".to_owned() }),
        };
    }
    let copied = not_in_layer(&place, layer)?;
    let mut made: Vec<PathBuf> = Vec::new();
    while let Some(name) = place.missing().first().cloned() {
        made.push(place.directory_path().join(&name));
        let is_last = place.missing().len() == 1;
        if is_last && kind == Kind::File {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let fd = keeping_mtime(place.directory(), || {
                rustix::fs::openat(place.directory(), &name, flags, Mode::from_raw_mode(0o644))
            })?;
            place.made_file(fd);
        } else {
            let fd = keeping_mtime(place.directory(), || {
                rustix::fs::mkdirat(place.directory(), &name, Mode::from_raw_mode(0o755))?;
                open_directory(place.directory(), &name)
            })?;
            place.made_directory(fd);
        }
    }
    for (path, before) in copied {
        if let Some(stat) = in_layer(layer, &path)? {
            stubs.push(Stub::Copied { path: path.into(), inode: stat.st_ino, before });
        }
    }
    for path in made {
        // What lies in another mount, as /dev/pipes does, is not in the layer.
        if let Some(stat) = in_layer(layer, &path)? {
            stubs.push(Stub::Made { path: path.into(), inode: stat.st_ino });
        }
    }
    // Opened again without a mode, for a mount point is given to the kernel as a bare place.
    let place = walk(root, path, links)?;
    let fd = place.existing().ok_or(Errno::NOENT)?;
    fd.try_clone_to_owned().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO).into())
}

/// The directories on the way that the overlay will copy when something is made below them.
fn not_in_layer(place: &Place, layer: BorrowedFd<'_>) -> Result<Vec<(PathBuf, Metadata)>, Errno> {
    let mut absent = Vec::new();
    for (fd, path) in place.directories() {
        if in_layer(layer, &path)?.is_none() {
            let metadata = metadata(open_directory(fd, OsStr::new("."))?.as_fd())?;
            absent.push((path, metadata));
        }
    }
    Ok(absent)
}

/// Looks at `path` in the bare layer directory.
fn in_layer(layer: BorrowedFd<'_>, path: &Path) -> Result<Option<Stat>, Errno> {
    match open_bare(layer, path, OFlags::PATH | OFlags::NOFOLLOW) {
        Ok(fd) => rustix::fs::fstat(&fd).map(Some),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Opens `path` below `layer`; a link anywhere in it is an error.
fn open_bare(layer: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(layer, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

fn metadata(directory: BorrowedFd<'_>) -> Result<Metadata, Errno> {
    let stat = rustix::fs::fstat(directory)?;
    Ok(Metadata {
        mode: stat.st_mode,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: (stat.st_mtime as i64, stat.st_mtime_nsec as i64),
        xattrs: xattrs(directory)?,
    })
}

/// The extended attributes that a layer would hold.
fn xattrs(directory: BorrowedFd<'_>) -> Result<Vec<Attribute>, Errno> {
    let mut names = vec![0u8; 64 << 10];
    let length = match rustix::fs::flistxattr(directory, &mut names[..]) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => 0,
        Err(errno) => return Err(errno),
    };
    let mut found = Vec::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if !name.starts_with(b"trusted.overlay.") && !name.starts_with(b"user.overlay.") {
            found.push((name.to_vec(), xattr(directory, name)?.unwrap_or_default()));
        }
    }
    found.sort();
    Ok(found)
}

fn xattr(directory: BorrowedFd<'_>, name: &[u8]) -> Result<Option<Vec<u8>>, Errno> {
    let mut value = vec![0u8; 64 << 10];
    match rustix::fs::fgetxattr(directory, name, &mut value[..]) {
        Ok(length) => {
            value.truncate(length);
            Ok(Some(value))
        }
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Removes from the directory `layer` what was made for a run that is over.
///
/// What the command changed stays: a directory that is no longer empty, an inode that is not ours any more.
pub(crate) fn remove(layer: &Path, stubs: &[Stub]) -> Result<(), RunError> {
    if stubs.is_empty() {
        return Ok(());
    }
    let failed = |path: &Path, errno: Errno| RunError::Cleanup { path: path.to_owned(), source: errno.into() };
    let root = open_directory(rustix::fs::CWD, layer.as_os_str()).map_err(|errno| failed(layer, errno))?;
    for stub in stubs.iter().rev() {
        let (Stub::Made { path, .. } | Stub::Copied { path, .. }) = stub;
        let path = PathBuf::from(path.clone());
        remove_one(root.as_fd(), &path, stub).map_err(|errno| failed(&path, errno))?;
    }
    Ok(())
}

fn remove_one(layer: BorrowedFd<'_>, path: &Path, stub: &Stub) -> Result<(), Errno> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let parent = match open_bare(layer, parent, OFlags::RDONLY | OFlags::DIRECTORY) {
        Ok(parent) => parent,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    let stat = match rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    let is_directory = file_type(&stat) == FileType::Directory;
    let untouched = match stub {
        Stub::Made { inode, .. } => {
            stat.st_ino == *inode && (is_directory || (file_type(&stat) == FileType::RegularFile && stat.st_size == 0))
        }
        Stub::Copied { inode, before, .. } => {
            stat.st_ino == *inode && is_directory && is_plain_copy(parent.as_fd(), name, before)?
        }
    };
    if !untouched {
        return Ok(());
    }
    match remove_quietly(parent.as_fd(), name, if is_directory { AtFlags::REMOVEDIR } else { AtFlags::empty() }) {
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
        result => result,
    }
}

/// Does the directory say nothing that the one below it doesn't?
fn is_plain_copy(parent: BorrowedFd<'_>, name: &OsStr, before: &Metadata) -> Result<bool, Errno> {
    let directory = open_directory(parent, name)?;
    // An opaque directory hides what is below, so that it says something even when it is empty.
    let opaque = xattr(directory.as_fd(), b"trusted.overlay.opaque")?.is_some()
        || xattr(directory.as_fd(), b"user.overlay.opaque")?.is_some();
    Ok(!opaque && metadata(directory.as_fd())? == *before)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The inode decides: what stands in the place of a stub is left alone (C03).
    #[test]
    fn only_the_stubs_own_inode_is_removed() {
        let base = std::env::temp_dir().join(format!("kiln-stub-{}", std::process::id()));
        let layer = base.join("layer");
        let canary = base.join("canary");
        std::fs::create_dir_all(layer.join("etc")).unwrap();
        std::fs::create_dir_all(&canary).unwrap();
        std::fs::write(canary.join("hosts"), b"").unwrap();
        let root = open_directory(rustix::fs::CWD, layer.as_os_str()).unwrap();
        let mut stubs = Vec::new();
        for path in ["/etc/hosts", "/etc/resolv.conf", "/srv/deep/file"] {
            let root = root.as_fd();
            mount_point(root, root, Path::new(path), Links::Follow, Kind::File, &mut stubs).unwrap();
        }
        assert_eq!(stubs.len(), 5, "{stubs:?}");
        let etc = layer.join("etc");
        let before = std::fs::metadata(&etc).unwrap().modified().unwrap();
        // The command replaced a stub, and a parent of one by a link to the outside.
        std::fs::remove_file(etc.join("resolv.conf")).unwrap();
        std::fs::write(etc.join("resolv.conf"), b"").unwrap();
        std::fs::remove_dir_all(layer.join("srv/deep")).unwrap();
        std::os::unix::fs::symlink(&canary, layer.join("srv/deep")).unwrap();
        let file = std::fs::File::open(&etc).unwrap();
        file.set_times(std::fs::FileTimes::new().set_modified(before)).unwrap();
        remove(&layer, &stubs).unwrap();
        assert!(!etc.join("hosts").exists(), "the stub is gone");
        assert_eq!(std::fs::metadata(&etc).unwrap().modified().unwrap(), before, "its directory's time is kept");
        assert!(canary.join("hosts").exists());
        assert!(layer.join("srv/deep").is_symlink(), "what the command made stays");
        std::fs::remove_dir_all(&base).unwrap();
    }
}
