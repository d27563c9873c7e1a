//! What kiln puts into a root directory that nothing can be mounted on: hides how it gets there and leaves no trace.
//!
//! Whatever stands in a place gives way by a rename into a directory aside, and comes back by another; each change is written down
//! before the next, by open directories and names, so that nothing the command does to paths misleads the way back. Times of
//! directories stay as they are, and after the command as it left them.

use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Uid};
use rustix::io::Errno;

use crate::plan::Put;
use crate::walk::{Links, WalkError, keeping_mtime, open_directory, open_inside, walk};

/// A root directory with things of kiln's in it.
#[derive(Debug)]
pub(crate) struct InPlace {
    root: OwnedFd,
    aside: OwnedFd,
    /// How many names were used in `aside`.
    used: u32,
    undo: Vec<Undo>,
    /// What could not be made.
    pub(crate) lacks: Vec<String>,
}

/// How one thing is taken back.
#[derive(Debug)]
enum Undo {
    /// A directory on the way to a place: goes if nothing was put into it.
    Way { directory: OwnedFd, name: OsString, inode: u64 },
    /// What stands in a place goes, whatever it is by now.
    Made { directory: OwnedFd, name: OsString },
    /// A file of kiln's, by a descriptor that nothing can be written by, or no program in it could be executed: if the command gave
    /// it another name, nothing is in it there.
    File { file: OwnedFd },
    /// What gave way comes back.
    Aside { directory: OwnedFd, name: OsString, aside: String },
    /// What was lent goes home.
    Lent { directory: OwnedFd, name: OsString, home: OwnedFd, home_name: OsString, kind: FileType },
}

type Result<T> = std::result::Result<T, WalkError>;

impl InPlace {
    pub(crate) fn open(root: &OsStr, aside: &OsStr) -> Result<InPlace> {
        let open = |path| open_directory(rustix::fs::CWD, path);
        Ok(InPlace { root: open(root)?, aside: open(aside)?, used: 0, undo: Vec::new(), lacks: Vec::new() })
    }

    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Puts an empty directory in the place of one; no link on the way is followed (CVE-2023-27561).
    pub(crate) fn cover(&mut self, path: &str, mode: u32) -> Result<()> {
        let (directory, name, _) = self.clear(Path::new(path), Links::Refuse, FileType::Directory)?;
        self.make_directory(&directory, &name, mode)
    }

    pub(crate) fn put(&mut self, put: &Put, target: &OsStr) -> Result<()> {
        let target = Path::new(target);
        match put {
            Put::File { data, mode, uid, gid } => {
                let (directory, name, _) = self.clear(target, Links::Follow, FileType::RegularFile)?;
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = keeping_mtime(directory.as_fd(), || {
                    rustix::fs::openat(&directory, &name, flags, Mode::from_raw_mode(0o600))
                })?;
                let mut file = std::fs::File::from(file);
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let held = rustix::fs::openat(&directory, &name, flags, Mode::empty());
                self.undo.extend(held.map(|file| Undo::File { file }));
                self.undo.push(Undo::Made { directory, name });
                file.write_all(data).map_err(errno)?;
                rustix::fs::fchown(&file, Some(Uid::from_raw(*uid)), Some(Gid::from_raw(*gid)))?;
                rustix::fs::fchmod(&file, Mode::from_raw_mode(*mode))?;
            }
            Put::Folder => {
                let (directory, name, covered) = self.clear(target, Links::Follow, FileType::Directory)?;
                self.make_directory(&directory, &name, covered.unwrap_or(0o1777))?;
            }
            Put::Link { to } => {
                let (directory, name, _) = self.clear(target, Links::Follow, FileType::Directory)?;
                keeping_mtime(directory.as_fd(), || rustix::fs::symlinkat(to.as_os_str(), &directory, &name))?;
                self.undo.push(Undo::Made { directory, name });
            }
            Put::Moved { from, subpath } => self.lend(Path::new(from), Path::new(subpath), target)?,
        }
        Ok(())
    }

    /// Moves something of the host's to `target` until the end.
    fn lend(&mut self, from: &Path, subpath: &Path, target: &Path) -> Result<()> {
        let (Some(parent), Some(name)) = (from.parent(), from.file_name()) else { return Err(Errno::INVAL.into()) };
        let mut home = open_directory(rustix::fs::CWD, parent.as_os_str())?;
        let mut home_name = name.to_owned();
        if !subpath.as_os_str().is_empty() {
            let whole = open_directory(home.as_fd(), &home_name)?;
            let place = walk(whole.as_fd(), subpath, Links::Follow)?;
            // A path that leads to the source itself means the whole.
            if !place.missing().is_empty() {
                return Err(Errno::NOENT.into());
            }
            if let Some((directory, name, _)) = place.into_entry() {
                (home, home_name) = (directory, name);
            }
        }
        let stat = rustix::fs::statat(&home, &home_name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Symlink {
            return Err(Errno::LOOP.into());
        }
        let (directory, name, _) = self.clear(target, Links::Follow, kind)?;
        keeping_mtime(directory.as_fd(), || rustix::fs::renameat(&home, &home_name, &directory, &name))?;
        self.undo.push(Undo::Lent { directory, name, home, home_name, kind });
        Ok(())
    }

    fn make_directory(&mut self, directory: &OwnedFd, name: &OsStr, mode: u32) -> Result<()> {
        keeping_mtime(directory.as_fd(), || rustix::fs::mkdirat(directory, name, Mode::from_raw_mode(0o700)))?;
        self.undo.push(Undo::Made { directory: copy(directory)?, name: name.to_owned() });
        rustix::fs::chmodat(directory, name, Mode::from_raw_mode(mode), AtFlags::empty())?;
        Ok(())
    }

    /// Clears the place `path` for something that is a directory or not, as `kind` says: what is there gives way, and the way there
    /// is made. Answers the directory and the name, and the mode of what gave way.
    fn clear(&mut self, path: &Path, links: Links, kind: FileType) -> Result<(OwnedFd, OsString, Option<u32>)> {
        let blocked = |reason: &str| WalkError::Blocked { path: path.to_owned(), reason: reason.to_owned() };
        let mut place = walk(self.root.as_fd(), path, links)?;
        if place.missing().is_empty() {
            let Some((directory, name, found)) = place.into_entry() else { return Err(blocked("it is the root directory")) };
            let stat = rustix::fs::fstat(&found)?;
            match (kind == FileType::Directory, FileType::from_raw_mode(stat.st_mode) == FileType::Directory) {
                (true, false) => return Err(blocked("it is not a directory")),
                (false, true) => return Err(blocked("it is a directory")),
                _ => {}
            }
            let aside = self.fresh_name();
            keeping_mtime(directory.as_fd(), || rustix::fs::renameat(&directory, &name, &self.aside, aside.as_str()))?;
            self.undo.push(Undo::Aside { directory: copy(&directory)?, name: name.clone(), aside });
            return Ok((directory, name, Some(stat.st_mode & 0o7777)));
        }
        while let [name, _, ..] = place.missing() {
            let name = name.clone();
            let made = keeping_mtime(place.directory(), || {
                rustix::fs::mkdirat(place.directory(), &name, Mode::from_raw_mode(0o755))?;
                open_directory(place.directory(), &name)
            })?;
            let (inode, directory) = (rustix::fs::fstat(&made)?.st_ino, place.directory().try_clone_to_owned().map_err(errno)?);
            self.undo.push(Undo::Way { directory, name, inode });
            place.made_directory(made);
        }
        let name = place.missing().first().cloned().ok_or(Errno::NOENT)?;
        let directory = place.into_directory().ok_or(Errno::NOENT)?;
        Ok((directory, name, None))
    }

    fn fresh_name(&mut self) -> String {
        loop {
            self.used += 1;
            let name = format!("aside-{}", self.used);
            // An earlier run may have left something here.
            if rustix::fs::statat(&self.aside, name.as_str(), AtFlags::SYMLINK_NOFOLLOW).err() == Some(Errno::NOENT) {
                return name;
            }
        }
    }

    /// Makes a device; where that is refused, or devices can't be opened on this file system, says so. Only `/dev/null` has a
    /// stand-in: a file that fills. One of zeros or of random bytes would lie.
    pub(crate) fn node(&mut self, path: &str, major: u32, minor: u32) -> Result<()> {
        let (parent, name) = path.rsplit_once('/').ok_or(Errno::INVAL)?;
        let directory = open_inside(self.root.as_fd(), Path::new(parent), OFlags::PATH | OFlags::DIRECTORY)?;
        let device = rustix::fs::makedev(major, minor);
        let made = rustix::fs::mknodat(&directory, name, FileType::CharacterDevice, Mode::from_raw_mode(0o666), device);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match made.and_then(|()| rustix::fs::openat(&directory, name, flags, Mode::empty())) {
            // The terminal can't be opened by a process that has none.
            Ok(_) | Err(Errno::NXIO) => return Ok(()),
            Err(Errno::PERM | Errno::ACCESS) => {}
            Err(errno) => return Err(errno.into()),
        }
        self.lacks.push(path.to_owned());
        match rustix::fs::unlinkat(&directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
        if name == "null" {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            rustix::fs::openat(&directory, name, flags, Mode::from_raw_mode(0o666))?;
        }
        Ok(())
    }

    /// Copies a file of kiln's own `/proc` to the same path of the root; one that isn't there or can't be read is left out.
    pub(crate) fn host_file(&mut self, path: &str) -> Result<()> {
        let Ok(data) = std::fs::read(path) else { return Ok(()) };
        self.put(&Put::File { data, mode: 0o444, uid: 0, gid: 0 }, OsStr::new(path))
    }

    /// Takes everything back, in the opposite order; goes on after an error, and answers the first.
    pub(crate) fn restore(&mut self) -> std::result::Result<(), Errno> {
        let mut first = Ok(());
        while let Some(undo) = self.undo.pop() {
            match self.take_back(undo) {
                // The command took the directory away in which it was.
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => first = first.and(Err(errno)),
            }
        }
        first
    }

    fn take_back(&mut self, undo: Undo) -> std::result::Result<(), Errno> {
        match undo {
            Undo::Way { directory, name, inode } => {
                let stat = rustix::fs::statat(&directory, &name, AtFlags::SYMLINK_NOFOLLOW)?;
                if stat.st_ino != inode || FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                    return Ok(());
                }
                match keeping_mtime(directory.as_fd(), || rustix::fs::unlinkat(&directory, &name, AtFlags::REMOVEDIR)) {
                    Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
                    done => done,
                }
            }
            Undo::Made { directory, name } => self.remove(&directory, &name),
            Undo::File { file } => match rustix::fs::fstat(&file)?.st_nlink {
                0 => Ok(()),
                _ => {
                    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
                    let flags = OFlags::WRONLY | OFlags::TRUNC | OFlags::CLOEXEC;
                    rustix::fs::open(path, flags, Mode::empty()).map(drop)
                }
            },
            Undo::Aside { directory, name, aside } => keeping_mtime(directory.as_fd(), || {
                rustix::fs::renameat_with(&self.aside, aside.as_str(), &directory, &name, RenameFlags::NOREPLACE)
            }),
            Undo::Lent { directory, name, home, home_name, kind } => {
                let stat = rustix::fs::statat(&directory, &name, AtFlags::SYMLINK_NOFOLLOW)?;
                if FileType::from_raw_mode(stat.st_mode) != kind {
                    return self.remove(&directory, &name);
                }
                let back = keeping_mtime(directory.as_fd(), || {
                    rustix::fs::renameat_with(&directory, &name, &home, &home_name, RenameFlags::NOREPLACE)
                });
                // Another one has been made there meanwhile.
                back.or_else(|_| self.remove(&directory, &name))
            }
        }
    }

    /// Takes away what has the name. A directory goes aside with all that the command put into it, and is removed with that.
    fn remove(&mut self, directory: &OwnedFd, name: &OsStr) -> std::result::Result<(), Errno> {
        let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let aside = self.fresh_name();
        keeping_mtime(directory.as_fd(), || match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => rustix::fs::renameat(directory, name, &self.aside, aside.as_str()),
            _ => rustix::fs::unlinkat(directory, name, AtFlags::empty()),
        })
    }
}

fn copy(fd: &OwnedFd) -> std::result::Result<OwnedFd, Errno> {
    fd.try_clone().map_err(errno)
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}
