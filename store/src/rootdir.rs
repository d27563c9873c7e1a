//! Hides how a file below a directory is reached: by descriptors and single names, so that nothing can lead outside.
//!
//! A name is one path component. It's never joined into a path string, so a tree deeper than `PATH_MAX` is as good as
//! any other, and no `..`, absolute name or symbolic link leaves the directory. Modes don't depend on the umask.

mod acl;
mod copy;
mod meta;
mod recorded;
mod table;

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use kiln_oci::path::ImagePath;
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, RawDir, ResolveFlags, Uid, XattrFlags};
use rustix::io::Errno;

use crate::owner::Ownership;
use recorded::{At, Records, on_disk};

pub use copy::{copy_file, copy_reader};
pub use meta::{Attrs, Kind, Meta, Timestamp, Xattrs};

/// A file operation that the system refused.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} `{}`", path.display())]
pub struct FsError {
    /// What was tried, as in "cannot open".
    pub operation: &'static str,
    /// Where: the path of the directory as it was opened, and the names below it. For display only.
    pub path: PathBuf,
    /// The system's answer.
    #[source]
    pub source: io::Error,
}

impl FsError {
    /// Whether the thing isn't there.
    pub fn is_not_found(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }

    /// The error number, if the system gave one.
    pub fn errno(&self) -> Option<Errno> {
        Errno::from_io_error(&self.source)
    }
}

type Result<T> = std::result::Result<T, FsError>;

/// A directory, held by its descriptor; every name is looked up below it and never through a symbolic link.
#[derive(Debug)]
pub struct RootDir {
    fd: OwnedFd,
    shown: PathBuf,
    /// Where owners aren't those on disk.
    records: Option<Records>,
}

impl AsFd for RootDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl RootDir {
    /// Opens a directory of the host by its path; symbolic links in it are followed, as it's the caller's own word.
    pub fn open(path: &Path) -> Result<Self> {
        let fd = rustix::fs::openat(CWD, path, DIR, Mode::empty()).map_err(|e| FsError {
            operation: "open directory",
            path: path.to_owned(),
            source: e.into(),
        })?;
        Ok(Self { fd, shown: path.to_owned(), records: None })
    }

    /// The same of a tree whose owners are as `owners` says.
    pub fn open_as(path: &Path, owners: Ownership) -> Result<Self> {
        let records = match owners {
            Ownership::Real => None,
            Ownership::Mapped | Ownership::Recorded => Some(Records::beside(path, owners)),
        };
        Ok(Self { records, ..Self::open(path)? })
    }

    /// Wraps a directory that is open already; `shown` is what errors call it.
    pub fn from_fd(fd: OwnedFd, shown: &Path) -> Self {
        Self { fd, shown: shown.to_owned(), records: None }
    }

    /// A second descriptor of the same directory.
    pub fn try_clone(&self) -> Result<Self> {
        let fd = self.fd.try_clone().map_err(|e| self.error("duplicate the descriptor of", b"", e))?;
        Ok(Self { fd, shown: self.shown.clone(), records: self.records.clone() })
    }

    /// What errors call this directory. Never open anything by it.
    pub fn shown(&self) -> &Path {
        &self.shown
    }

    /// Opens the directory `name`; a symbolic link is an error (`ENOTDIR`).
    pub fn child(&self, name: &[u8]) -> Result<Self> {
        self.check(name, "open directory")?;
        let fd = rustix::fs::openat(&self.fd, name, DIR | OFlags::NOFOLLOW, Mode::empty())
            .map_err(|e| self.error("open directory", name, e))?;
        let records = self.records.as_ref().map(|records| records.below(name));
        Ok(Self { fd, shown: self.shown_child(name), records })
    }

    /// Opens the directory above this one. The caller must know that this one isn't the root of its tree.
    pub(crate) fn parent(&self) -> Result<Self> {
        let fd = rustix::fs::openat(&self.fd, "..", DIR, Mode::empty()).map_err(|e| self.error("open the parent of", b"", e))?;
        let records = self.records.as_ref().map(Records::above);
        Ok(Self { fd, shown: self.shown.parent().unwrap_or(&self.shown).to_owned(), records })
    }

    /// Opens the directory at `path`, none of whose names may be a symbolic link; of any length.
    pub fn walk(&self, path: &ImagePath) -> Result<Self> {
        let mut at = self.try_clone()?;
        let mut rest = path.relative();
        while !rest.is_empty() {
            // As much at once as the kernel takes (PATH_MAX is 4096).
            let cut = match rest.len() {
                0..WALK_AT_ONCE => rest.len(),
                _ => rest[..WALK_AT_ONCE].iter().rposition(|b| *b == b'/').unwrap_or(rest.len()),
            };
            let shown = at.shown_child(&rest[..cut]);
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
            match rustix::fs::openat2(&at.fd, &rest[..cut], DIR, Mode::empty(), resolve) {
                Ok(fd) => {
                    let records = at.records.as_ref().map(|records| records.below(&rest[..cut]));
                    at = Self { fd, shown, records };
                }
                Err(e) => return Err(FsError { operation: "open directory", path: shown, source: e.into() }),
            }
            rest = rest.get(cut + 1..).unwrap_or_default();
        }
        Ok(at)
    }

    /// What `name` is, without following a symbolic link; `None` if it isn't there.
    pub fn stat(&self, name: &[u8]) -> Result<Option<Meta>> {
        self.check(name, "stat")?;
        match rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => self.seen(None, name, Meta::from(&stat)).map(Some),
            Err(Errno::NOENT | Errno::NAMETOOLONG) => Ok(None),
            Err(e) => Err(self.error("stat", name, e)),
        }
    }

    /// What the directory itself is.
    pub fn meta(&self) -> Result<Meta> {
        let stat = rustix::fs::fstat(&self.fd).map_err(|e| self.error("stat", b"", e))?;
        self.seen(Some(self.fd.as_fd()), b"", Meta::from(&stat))
    }

    fn seen(&self, fd: Option<BorrowedFd<'_>>, name: &[u8], meta: Meta) -> Result<Meta> {
        match &self.records {
            Some(records) => self.recorded_meta(records, At { fd, name, kind: meta.kind }, meta),
            None => Ok(meta),
        }
    }

    /// The bytes that are free on its file system, those kept for root among them.
    pub fn room(&self) -> Result<u64> {
        let found = rustix::fs::fstatvfs(&self.fd).map_err(|e| self.error("ask for the room at", b"", e))?;
        Ok(found.f_bfree.saturating_mul(found.f_frsize))
    }

    /// When the directory itself was made, which tells it from another that was given its inode; `None` where the file system
    /// doesn't say.
    pub fn born(&self) -> Result<Option<Timestamp>> {
        self.birth(b"")
    }

    /// When `name` was made; `None` where the file system doesn't say.
    pub(crate) fn born_of(&self, name: &[u8]) -> Result<Option<Timestamp>> {
        self.check(name, "stat")?;
        self.birth(name)
    }

    fn birth(&self, name: &[u8]) -> Result<Option<Timestamp>> {
        let asked = rustix::fs::StatxFlags::BTIME;
        match rustix::fs::statx(&self.fd, name, AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW, asked) {
            Ok(stat) if stat.stx_mask & asked.bits() != 0 => {
                Ok(Some(Timestamp { secs: stat.stx_btime.tv_sec, nanos: stat.stx_btime.tv_nsec }))
            }
            Ok(_) | Err(Errno::NOSYS | Errno::PERM) => Ok(None),
            Err(e) => Err(self.error("stat", name, e)),
        }
    }

    /// The names in the directory, sorted bytewise, without `.` and `..`.
    pub fn names(&self) -> Result<Vec<Vec<u8>>> {
        // A descriptor of its own, so that two threads that list one directory don't share a position.
        let fd = rustix::fs::openat(&self.fd, ".", DIR, Mode::empty()).map_err(|e| self.error("open directory", b"", e))?;
        let mut buffer = Vec::with_capacity(32 << 10);
        let mut names = Vec::new();
        let spare: &mut [MaybeUninit<u8>] = buffer.spare_capacity_mut();
        let mut entries = RawDir::new(&fd, spare);
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(|e| self.error("read directory", b"", e))?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(name.to_vec());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Opens the file `name` for reading: never through a symbolic link, and never waiting for a fifo's other end.
    pub fn open_file(&self, name: &[u8]) -> Result<File> {
        self.check(name, "open")?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        // The first look at a new file would write its time of access, which costs more than the look.
        let fd = match rustix::fs::openat(&self.fd, name, flags | OFlags::NOATIME, Mode::empty()) {
            // It's another user's.
            Err(Errno::PERM) => rustix::fs::openat(&self.fd, name, flags, Mode::empty()),
            opened => opened,
        };
        fd.map(File::from).map_err(|e| self.error("open", name, e))
    }

    /// The target of the symbolic link `name`.
    pub fn read_link(&self, name: &[u8]) -> Result<Vec<u8>> {
        self.check(name, "read link")?;
        let target = rustix::fs::readlinkat(&self.fd, name, Vec::with_capacity(256));
        target.map(|t| t.into_bytes()).map_err(|e| self.error("read link", name, e))
    }

    /// Creates the file `name` for writing; it must not exist. Nobody but its owner has any right to it.
    pub fn create_file(&self, name: &[u8]) -> Result<File> {
        self.create_file_for(name, 0o600)
    }

    /// The same with at most the permissions of `mode`: [`RootDir::set_attrs_of_file`] then finds little left to do. For a tree that
    /// no one else can reach.
    pub(crate) fn create_file_for(&self, name: &[u8], mode: u32) -> Result<File> {
        self.check(name, "create")?;
        let mode = if self.records.is_some() { 0o600 } else { mode & 0o777 };
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd =
            rustix::fs::openat(&self.fd, name, flags, Mode::from_raw_mode(mode)).map_err(|e| self.error("create", name, e))?;
        Ok(File::from(fd))
    }

    /// Creates the directory `name`, mode 0700 until [`RootDir::set_attrs_of_self`] says otherwise.
    pub fn mkdir(&self, name: &[u8]) -> Result<()> {
        self.check(name, "create directory")?;
        rustix::fs::mkdirat(&self.fd, name, Mode::from_raw_mode(0o700)).map_err(|e| self.error("create directory", name, e))
    }

    /// Creates the symbolic link `name` that says `target`.
    pub fn symlink(&self, name: &[u8], target: &[u8]) -> Result<()> {
        self.check(name, "create symbolic link")?;
        rustix::fs::symlinkat(target, &self.fd, name).map_err(|e| self.error("create symbolic link", name, e))
    }

    /// Makes `name` here one more name of `from`'s `from_name`, which isn't followed if it's a symbolic link.
    pub fn link(&self, name: &[u8], from: &RootDir, from_name: &[u8]) -> Result<()> {
        self.check(name, "link")?;
        from.check(from_name, "link")?;
        rustix::fs::linkat(&from.fd, from_name, &self.fd, name, AtFlags::empty()).map_err(|e| self.error("link", name, e))?;
        from.link_records(from_name, self, name)
    }

    /// Creates the fifo or device node `name`; `rdev` is (major, minor).
    pub fn mknod(&self, name: &[u8], kind: Kind, rdev: (u32, u32)) -> Result<()> {
        self.check(name, "create node")?;
        if let Some(records) = &self.records
            && matches!(kind, Kind::Char | Kind::Block)
            && (kind, rdev) != (Kind::Char, (0, 0))
        {
            return self.stand_in(records, name, kind, rdev);
        }
        let device = rustix::fs::makedev(rdev.0, rdev.1);
        rustix::fs::mknodat(&self.fd, name, kind.file_type(), Mode::from_raw_mode(0o600), device)
            .map_err(|e| self.error("create node", name, e))
    }

    /// Removes `name`, which isn't a directory.
    pub fn unlink(&self, name: &[u8]) -> Result<()> {
        self.check(name, "remove")?;
        rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()).map_err(|e| self.error("remove", name, e))?;
        self.drop_records(name)
    }

    /// Removes the empty directory `name`.
    pub fn rmdir(&self, name: &[u8]) -> Result<()> {
        self.check(name, "remove directory")?;
        rustix::fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR).map_err(|e| self.error("remove directory", name, e))?;
        self.drop_records(name)
    }

    /// Renames `name` here to `to_name` in `to`, replacing what was there.
    pub fn rename(&self, name: &[u8], to: &RootDir, to_name: &[u8]) -> Result<()> {
        self.check(name, "rename")?;
        to.check(to_name, "rename")?;
        rustix::fs::renameat(&self.fd, name, &to.fd, to_name).map_err(|e| self.error("rename", name, e))?;
        self.move_records(name, to, to_name)
    }

    /// Removes `name` and all below it; nothing there is fine. Works at any depth with a handful of descriptors.
    pub fn remove_all(&self, name: &[u8]) -> Result<()> {
        match self.unlink(name) {
            Ok(()) => return Ok(()),
            Err(e) if e.is_not_found() => return Ok(()),
            // unlink(2) says EISDIR on Linux, POSIX wants EPERM.
            Err(e) if matches!(e.errno(), Some(Errno::ISDIR | Errno::PERM)) => {}
            Err(e) => return Err(e),
        }
        self.drop_records(name)?;
        // A directory is emptied name by name; a directory found inside is first moved up, beside `name`, and emptied
        // in its turn, so that depth costs neither stack nor descriptors.
        let mut waiting = vec![name.to_vec()];
        let mut serial = 0u64;
        while let Some(name) = waiting.last().cloned() {
            let dir = self.child(&name)?;
            // A directory without write or search permission can't be emptied by other than root.
            let _ = rustix::fs::fchmod(&dir.fd, Mode::from_raw_mode(0o700));
            let before = waiting.len();
            for inner in dir.names()? {
                match dir.unlink(&inner) {
                    Ok(()) => continue,
                    Err(e) if e.is_not_found() => continue,
                    Err(e) if matches!(e.errno(), Some(Errno::ISDIR | Errno::PERM)) => {}
                    Err(e) => return Err(e),
                }
                if dir.rmdir(&inner).is_ok() {
                    continue;
                }
                loop {
                    let aside = format!(".kiln-removing-{}-{serial}", std::process::id()).into_bytes();
                    serial += 1;
                    match rustix::fs::renameat_with(&dir.fd, &inner[..], &self.fd, &aside[..], rustix::fs::RenameFlags::NOREPLACE)
                    {
                        Ok(()) => {
                            waiting.push(aside);
                            break;
                        }
                        Err(Errno::EXIST) => {}
                        Err(e) => return Err(dir.error("remove", &inner, e)),
                    }
                }
            }
            if waiting.len() == before {
                self.rmdir(&name)?;
                waiting.pop();
            }
        }
        Ok(())
    }

    /// Sets owner, extended attributes, mode and mtime of this directory, in the order in which they don't undo one another.
    pub fn set_attrs_of_self(&self, attrs: &Attrs) -> Result<()> {
        if let Some(records) = &self.records {
            return self.record_attrs(records, At { fd: Some(self.fd.as_fd()), name: b"", kind: Kind::Dir }, attrs);
        }
        set_attrs(&self.fd, attrs).map_err(|(operation, e)| self.error(operation, b"", e))
    }

    /// Sets the mtime of this directory, and nothing else.
    pub fn set_mtime_of_self(&self, mtime: Timestamp) -> Result<()> {
        rustix::fs::futimens(&self.fd, &mtime.both()).map_err(|e| self.error("set the time of", b"", e))
    }

    /// Sets owner, extended attributes, mode and mtime of the open file `file`, which errors call `name`.
    pub fn set_attrs_of_file(&self, file: &File, name: &[u8], attrs: &Attrs) -> Result<()> {
        if let Some(records) = &self.records {
            return self.record_attrs(records, At { fd: Some(file.as_fd()), name, kind: Kind::File }, attrs);
        }
        set_attrs(file.as_fd(), attrs).map_err(|(operation, e)| self.error(operation, name, e))
    }

    /// Sets owner, extended attributes, mode (unless it's a symbolic link) and mtime of `name`, which was created just
    /// now in a tree that no one else can reach: there's no descriptor to do it by.
    pub fn set_attrs_of_node(&self, name: &[u8], kind: Kind, attrs: &Attrs) -> Result<()> {
        self.check(name, "change")?;
        if let Some(records) = &self.records {
            return self.record_attrs(records, At { fd: None, name, kind: on_disk(kind) }, attrs);
        }
        let (uid, gid) = (Uid::from_raw(attrs.uid), Gid::from_raw(attrs.gid));
        rustix::fs::chownat(&self.fd, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| self.error("change the owner of", name, e))?;
        for (key, value) in &attrs.xattrs {
            rustix::fs::lsetxattr(self.proc_path(name), &key[..], value, XattrFlags::empty())
                .map_err(|e| self.error(SET_XATTR, name, xattr_error(e)))?;
        }
        if kind != Kind::Symlink {
            rustix::fs::chmodat(&self.fd, name, Mode::from_raw_mode(attrs.mode & 0o7777), AtFlags::empty())
                .map_err(|e| self.error("change the mode of", name, e))?;
        }
        if let Some(mtime) = attrs.mtime {
            rustix::fs::utimensat(&self.fd, name, &mtime.both(), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|e| self.error("set the time of", name, e))?;
        }
        Ok(())
    }

    /// The extended attributes of `name` (sorted by name), which isn't followed if it's a symbolic link.
    pub fn xattrs(&self, name: &[u8]) -> Result<Xattrs> {
        self.check(name, "read extended attributes of")?;
        let path = self.proc_path(name);
        let list = grow(|buffer| rustix::fs::llistxattr(&path, buffer));
        let read =
            list.and_then(|list| meta::collect_xattrs(&list, |key| grow(|buffer| rustix::fs::lgetxattr(&path, key, buffer))));
        match read {
            Ok(xattrs) => self.with_recorded(name, xattrs),
            Err(Errno::NOTSUP) => self.with_recorded(name, Xattrs::new()),
            // There's no /proc here: files and directories can still be asked by descriptor, and the others hold none that
            // an image could carry.
            Err(Errno::NOENT) => match self.stat(name)?.map(|m| on_disk(m.kind)) {
                Some(Kind::File) => self.xattrs_of_fd(self.open_file(name)?.as_fd(), name),
                Some(Kind::Dir) => self.child(name)?.xattrs_of_self(),
                _ => self.with_recorded(name, Xattrs::new()),
            },
            Err(e) => Err(self.error("read extended attributes of", name, e)),
        }
    }

    fn with_recorded(&self, name: &[u8], all: Xattrs) -> Result<Xattrs> {
        match &self.records {
            Some(records) => self.recorded_xattrs(records, name, all),
            None => Ok(all),
        }
    }

    /// The extended attributes of this directory, sorted by name.
    pub fn xattrs_of_self(&self) -> Result<Xattrs> {
        self.xattrs_of_fd(self.fd.as_fd(), b"")
    }

    /// The extended attributes of the open file `file`, which errors call `name`.
    pub fn xattrs_of_file(&self, file: &File, name: &[u8]) -> Result<Xattrs> {
        self.xattrs_of_fd(file.as_fd(), name)
    }

    fn xattrs_of_fd(&self, fd: BorrowedFd<'_>, name: &[u8]) -> Result<Xattrs> {
        let list = grow(|buffer| rustix::fs::flistxattr(fd, buffer));
        match list.and_then(|list| meta::collect_xattrs(&list, |key| grow(|b| rustix::fs::fgetxattr(fd, key, b)))) {
            Ok(xattrs) => self.with_recorded(name, xattrs),
            Err(Errno::NOTSUP) => self.with_recorded(name, Xattrs::new()),
            Err(e) => Err(self.error("read extended attributes of", name, e)),
        }
    }

    /// One extended attribute of this directory, if it has it.
    pub fn xattr_of_self(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        match grow(|buffer| rustix::fs::fgetxattr(&self.fd, key, buffer)) {
            Ok(value) => Ok(Some(value)),
            Err(Errno::NODATA | Errno::NOTSUP | Errno::PERM) => Ok(None),
            Err(e) => Err(self.error("read extended attributes of", b"", e)),
        }
    }

    /// Sets one extended attribute of this directory.
    pub fn set_xattr_of_self(&self, key: &[u8], value: &[u8]) -> Result<()> {
        rustix::fs::fsetxattr(&self.fd, key, value, XattrFlags::empty()).map_err(|e| self.error(SET_XATTR, b"", xattr_error(e)))
    }

    /// Takes one extended attribute of this directory away, if it has it.
    pub fn remove_xattr_of_self(&self, key: &[u8]) -> Result<()> {
        match rustix::fs::fremovexattr(&self.fd, key) {
            Ok(()) | Err(Errno::NODATA | Errno::NOTSUP) => Ok(()),
            Err(e) => Err(self.error("remove an extended attribute of", b"", e)),
        }
    }

    /// An error of `operation` on `name` in this directory (the directory itself when `name` is empty).
    pub fn error(&self, operation: &'static str, name: &[u8], source: impl Into<io::Error>) -> FsError {
        let path = if name.is_empty() { self.shown.clone() } else { self.shown_child(name) };
        FsError { operation, path, source: source.into() }
    }

    fn shown_child(&self, name: &[u8]) -> PathBuf {
        self.shown.join(OsStr::from_bytes(name))
    }

    /// The calls on extended attributes have no fd-relative form before Linux 6.13; this path is one, and its last name
    /// isn't followed.
    fn proc_path(&self, name: &[u8]) -> Vec<u8> {
        let mut path = format!("/proc/self/fd/{}/", self.fd.as_raw_fd()).into_bytes();
        path.extend_from_slice(name);
        path
    }

    fn check(&self, name: &[u8], operation: &'static str) -> Result<()> {
        if name.is_empty() || name == b"." || name == b".." || name.iter().any(|b| matches!(b, b'/' | 0)) {
            return Err(self.error(operation, name, Errno::INVAL));
        }
        Ok(())
    }
}

const DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const WALK_AT_ONCE: usize = 3000;
const SET_XATTR: &str = "set an extended attribute of";

fn set_attrs(fd: impl AsFd, attrs: &Attrs) -> std::result::Result<(), (&'static str, io::Error)> {
    let fd = fd.as_fd();
    // To ask what stands there is five times as fast as to write it again.
    let now = rustix::fs::fstat(fd).map_err(|e| ("stat", e.into()))?;
    let has_owner = (now.st_uid, now.st_gid) == (attrs.uid, attrs.gid);
    // chown clears set-id bits and file capabilities, so it goes first; an ACL changes the mode, so the mode goes after.
    if !has_owner {
        rustix::fs::fchown(fd, Some(Uid::from_raw(attrs.uid)), Some(Gid::from_raw(attrs.gid)))
            .map_err(|e| ("change the owner of", e.into()))?;
    }
    for (key, value) in &attrs.xattrs {
        rustix::fs::fsetxattr(fd, &key[..], value, XattrFlags::empty()).map_err(|e| (SET_XATTR, xattr_error(e)))?;
    }
    if !has_owner || !attrs.xattrs.is_empty() || now.st_mode & 0o7777 != attrs.mode & 0o7777 {
        rustix::fs::fchmod(fd, Mode::from_raw_mode(attrs.mode & 0o7777)).map_err(|e| ("change the mode of", e.into()))?;
    }
    if let Some(mtime) = attrs.mtime {
        rustix::fs::futimens(fd, &mtime.both()).map_err(|e| ("set the time of", e.into()))?;
    }
    Ok(())
}

/// ext4 answers ENOSPC when the attributes outgrow their block, on a disk that isn't full at all.
fn xattr_error(e: Errno) -> io::Error {
    match e {
        Errno::NOSPC | Errno::TOOBIG | Errno::RANGE => {
            io::Error::new(io::ErrorKind::InvalidInput, "the extended attributes are too large for this file system")
        }
        e => e.into(),
    }
}

/// Calls `read` with a larger buffer until the answer fits.
fn grow(mut read: impl FnMut(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    let mut small = [0; 512];
    match read(&mut small) {
        Ok(n) => return Ok(small[..n].to_vec()),
        Err(Errno::RANGE) => {}
        Err(e) => return Err(e),
    }
    // 64 KiB is the kernel's XATTR_SIZE_MAX and XATTR_LIST_MAX.
    let mut buffer = vec![0; 64 << 10];
    let n = read(&mut buffer)?;
    buffer.truncate(n);
    Ok(buffer)
}

#[cfg(test)]
mod tests;
