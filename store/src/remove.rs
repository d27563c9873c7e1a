//! Hides how a tree is deleted that may be deeper than a path can say, has any modes, and points anywhere.
//!
//! Only directory descriptors are used and no symbolic link is followed. Descriptors don't grow with the depth: a folder
//! that lies deeper than [`DEPTH`] is renamed up into the trash and deleted from there.

use std::cell::Cell;
use std::ffi::{CStr, CString};
use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, IFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::session::nonce;

/// How many directories are open at once; well below the smallest limit that people set (64).
const DEPTH: usize = 24;

/// Takes `path` out of sight by a rename into the trash; when not even that is possible (a full disk can refuse to let a
/// folder grow), deletes it where it is. What is not there is no error.
pub(crate) fn discard(path: &Path, layout: &Layout) -> Result<()> {
    match fs::rename(path, layout.trash_entry(&nonce()?)) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(_) => tree(path, &layout.trash()),
    }
}

/// Deletes all that is in the trash. Several processes may do so at once.
pub(crate) fn empty_trash(trash: &Path) -> Result<()> {
    let fail = |errno: Errno| Error::io("empty", trash)(errno);
    let dir = open_dir(CWD, &c_path(trash)?).map_err(fail)?;
    Remover::new(dir.as_fd()).empty(dir.as_fd(), 0).map_err(fail)
}

/// Deletes the file or tree at `path`; `trash` lies on the same file system.
pub(crate) fn tree(path: &Path, trash: &Path) -> Result<()> {
    let fail = |errno: Errno| Error::io("remove", path)(errno);
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(fail(Errno::INVAL)) };
    let name = CString::new(name.as_encoded_bytes()).map_err(|_| fail(Errno::INVAL))?;
    let parent = match open_dir(CWD, &c_path(parent)?) {
        Err(Errno::NOENT) => return Ok(()),
        parent => parent.map_err(fail)?,
    };
    let spare = open_dir(CWD, &c_path(trash)?).map_err(|errno| Error::io("open", trash)(errno))?;
    let remover = Remover::new(spare.as_fd());
    remover.entry(parent.as_fd(), &name, FileType::Unknown, 0).map_err(fail)?;
    if remover.moved.get() {
        remover.empty(spare.as_fd(), 0).map_err(fail)?;
    }
    Ok(())
}

fn c_path(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| Error::io("open", path)(Errno::INVAL))
}

fn open_dir(at: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(at, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

struct Remover<'a> {
    trash: BorrowedFd<'a>,
    /// Whether something deep was renamed into the trash.
    moved: Cell<bool>,
}

impl<'a> Remover<'a> {
    fn new(trash: BorrowedFd<'a>) -> Self {
        Self { trash, moved: Cell::new(false) }
    }

    /// Deletes all that is in `dir`; goes on after an error, and then returns the first.
    fn empty(&self, dir: BorrowedFd<'_>, depth: usize) -> rustix::io::Result<()> {
        // Deleting while listing may skip entries on some file systems, and deep folders land in the trash while it is
        // listed: list until nothing is left. Every round deletes something, or fails.
        loop {
            let mut seen = false;
            let mut first = Ok(());
            let list = match Dir::read_from(dir) {
                Err(Errno::NOENT) => return Ok(()),
                list => list?,
            };
            for item in list {
                let item = item?;
                let name = item.file_name();
                if name == c"." || name == c".." {
                    continue;
                }
                seen = true;
                let outcome = self.entry(dir, name, item.file_type(), depth);
                first = first.and(outcome);
            }
            first?;
            if !seen {
                return Ok(());
            }
        }
    }

    /// Deletes one name in `dir` and all below it.
    fn entry(&self, dir: BorrowedFd<'_>, name: &CStr, kind: FileType, depth: usize) -> rustix::io::Result<()> {
        let kind = if kind == FileType::Unknown { kind_of(dir, name) } else { kind };
        if kind != FileType::Directory {
            return persist(dir, name, || rustix::fs::unlinkat(dir, name, AtFlags::empty()));
        }
        // Empty folders are frequent: try without opening first, and leave what goes wrong to the way below.
        if matches!(rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR), Ok(()) | Err(Errno::NOENT)) {
            return Ok(());
        }
        if depth >= DEPTH {
            let up = format!("d{}", nonce().map_err(|_| Errno::IO)?);
            self.moved.set(true);
            return persist(dir, name, || rustix::fs::renameat(dir, name, self.trash, up.as_str()));
        }
        let child = match open_dir(dir, name) {
            Err(Errno::NOENT) => return Ok(()),
            Err(Errno::ACCESS) => {
                rustix::fs::chmodat(dir, name, Mode::RWXU, AtFlags::empty())?;
                open_dir(dir, name)?
            }
            child => child?,
        };
        match self.empty(child.as_fd(), depth + 1) {
            // Readable, but not writable or not searchable: only a process that is not root gets here.
            Err(Errno::ACCESS) => {
                rustix::fs::fchmod(&child, Mode::RWXU)?;
                self.empty(child.as_fd(), depth + 1)?;
            }
            outcome => outcome?,
        }
        persist(dir, name, || rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR))
    }
}

fn kind_of(dir: BorrowedFd<'_>, name: &CStr) -> FileType {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
        .map_or(FileType::Unknown, |stat| FileType::from_raw_mode(stat.st_mode))
}

/// Does it, and once more after taking away what may forbid it: the mode of a folder that is moved (its `..` is written),
/// and the immutable and append-only flags (chattr(1)) of the entry and of the folder that it is in.
fn persist(dir: BorrowedFd<'_>, name: &CStr, act: impl Fn() -> rustix::io::Result<()>) -> rustix::io::Result<()> {
    match act() {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::PERM | Errno::ACCESS) => {}
        Err(errno) => return Err(errno),
    }
    let kind = kind_of(dir, name);
    if kind == FileType::Directory {
        let _ = rustix::fs::chmodat(dir, name, Mode::RWXU, AtFlags::empty());
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let free = |name: &CStr| {
        let Ok(fd) = rustix::fs::openat(dir, name, flags, Mode::empty()) else { return };
        if let Ok(flags) = rustix::fs::ioctl_getflags(&fd) {
            let _ = rustix::fs::ioctl_setflags(&fd, flags - (IFlags::IMMUTABLE | IFlags::APPEND));
        }
    };
    free(c".");
    // Never open a device or a fifo, not even to ask for its flags.
    if matches!(kind, FileType::Directory | FileType::RegularFile) {
        free(name);
    }
    match act() {
        Err(Errno::NOENT) => Ok(()),
        outcome => outcome,
    }
}
