//! Whom files belong to: hides where that is noted, at the file itself or, for what can have no attribute, in memory.

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Statx, StatxFlags, Uid, XattrFlags};
use rustix::io::Errno;

use super::Reply;
use super::caller::{Caller, Object};
use super::identity::Identity;
use crate::seccomp::Call;
use crate::spec::Recorder;
use crate::sys::Notification;

/// The notes of a run.
#[derive(Debug)]
pub(super) struct Owners {
    recorder: Recorder,
    /// Whom belongs what the run makes and nobody gives away.
    maker: (u32, u32),
    /// Of the sandbox.
    root: OwnedFd,
    /// The device of the root file system.
    device: u64,
    /// The directory that takes the changes.
    upper: OwnedFd,
    /// Of symbolic links, fifos and sockets.
    by_inode: HashMap<Inode, (u32, u32)>,
    /// Of those that the run found, by path.
    known: HashMap<Vec<u8>, (u32, u32)>,
}

/// An inode of the upper directory, and when it was made, so that a later one of the same number inherits nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Inode {
    number: u64,
    born: (i64, u32),
}

impl Owners {
    pub(super) fn new(
        mut recorder: Recorder,
        maker: (u32, u32),
        root: BorrowedFd<'_>,
        upper: BorrowedFd<'_>,
    ) -> Result<Owners, Errno> {
        let known = recorder.known.drain(..).map(|(path, uid, gid)| (path, (uid, gid))).collect();
        let device = rustix::fs::fstat(root)?.st_dev;
        let [root, upper] = [root, upper].map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, 3));
        Ok(Owners { recorder, maker, root: root?, device, upper: upper?, by_inode: HashMap::new(), known })
    }

    /// `chown` of an object.
    pub(super) fn give(
        &mut self,
        object: &Object,
        identity: &Identity,
        uid: Option<u32>,
        gid: Option<u32>,
    ) -> Result<Reply, Errno> {
        // Before the object is copied up, and looks as if it were made here.
        let (uid, gid) = match (uid, gid, identity.is_root()) {
            (Some(_), Some(_), true) | (None, None, _) => (uid, gid),
            _ => {
                let present = self.true_owner(object)?;
                if !identity.may_give(present, uid, gid) {
                    return Err(Errno::PERM);
                }
                (uid.or(Some(present.0)), gid.or(Some(present.1)))
            }
        };
        // A real one, by which the object gets into the upper directory and loses its set-id bits and capabilities as ever.
        let real = |id: Option<u32>| id.map(|_| 0);
        match rustix::fs::chownat(&object.fd, "", real(uid).map(Uid::from_raw), real(gid).map(Gid::from_raw), AtFlags::EMPTY_PATH)
        {
            Ok(()) => {}
            // The devices, which are the host's.
            Err(Errno::PERM) if object.kind().is_char_device() => return Ok(Reply::Value(0)),
            Err(errno) => return Err(errno),
        }
        if let (Some(uid), Some(gid)) = (uid, gid) {
            self.note(object, (uid, gid))?;
        }
        Ok(Reply::Value(0))
    }

    /// Whom an object belongs to by the notes; what has none is taken for root's.
    pub(super) fn owner(&self, object: &Object) -> Result<(u32, u32), Errno> {
        Ok(self.noted(object)?.unwrap_or((0, 0)))
    }

    /// The same, but what has none and was made by this run is its maker's.
    fn true_owner(&self, object: &Object) -> Result<(u32, u32), Errno> {
        match self.noted(object)? {
            Some(owner) => Ok(owner),
            None => Ok(self.made(object).unwrap_or((0, 0))),
        }
    }

    fn noted(&self, object: &Object) -> Result<Option<(u32, u32)>, Errno> {
        if !has_attributes(object.kind()) {
            if self.by_inode.is_empty() && self.known.is_empty() {
                return Ok(None);
            }
            return Ok(match self.in_upper(object) {
                Some(inode) => self.by_inode.get(&inode).copied(),
                // As it is below.
                None => path_of(object).and_then(|path| self.known.get(path.as_os_str().as_bytes()).copied()),
            });
        }
        let mut text = [0u8; 24];
        match rustix::fs::getxattr(object.path(), self.recorder.owner_attribute.as_str(), &mut text[..]) {
            Ok(length) => Ok(parse(&text[..length])),
            // Longer than any that was written here.
            Err(Errno::NODATA | Errno::NOTSUP | Errno::PERM | Errno::RANGE) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Whom an object without a note belongs to, if this run made it; `None` if it comes from a layer below.
    fn made(&self, object: &Object) -> Option<(u32, u32)> {
        let path = path_of(object)?;
        if object.stat.st_dev == self.device {
            let fd = self.open_in_upper(&path)?;
            // An overlay marks so what it copied up.
            let origin = |name: &str| rustix::fs::getxattr(fd.as_raw_fd().to_string(), name, &mut [0u8; 0][..]).is_ok();
            if has_attributes(object.kind()) && (origin("user.overlay.origin") || origin("trusted.overlay.origin")) {
                return None;
            }
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let parent = Object::new(rustix::fs::openat(&self.root, parent, flags, Mode::empty()).ok()?).ok()?;
        // What is made in such a folder has its group.
        let group = match parent.stat.st_mode & libc::S_ISGID {
            0 => self.maker.1,
            _ => self.true_owner(&parent).ok()?.1,
        };
        Some((self.maker.0, group))
    }

    /// Notes whom an object belongs to.
    fn note(&mut self, object: &Object, owner: (u32, u32)) -> Result<(), Errno> {
        if !has_attributes(object.kind()) {
            if let Some(inode) = self.in_upper(object) {
                self.by_inode.insert(inode, owner);
            }
            return Ok(());
        }
        let attribute = self.recorder.owner_attribute.as_str();
        let text = format!("{}:{}", owner.0, owner.1);
        let noted = rustix::fs::setxattr(object.path(), attribute, text.as_bytes(), XattrFlags::empty());
        match noted {
            // What is mounted here takes none and gets into no layer.
            Err(Errno::NOTSUP | Errno::PERM) => Ok(()),
            noted => noted,
        }
    }

    /// Notes at an empty file which device it stands for.
    fn note_device(&self, object: &Object, kind: FileType, device: u64) -> Result<(), Errno> {
        let letter = if kind == FileType::BlockDevice { 'b' } else { 'c' };
        let text = format!("{letter} {}:{}", rustix::fs::major(device), rustix::fs::minor(device));
        let attribute = self.recorder.node_attribute.as_str();
        match rustix::fs::setxattr(object.path(), attribute, text.as_bytes(), XattrFlags::empty()) {
            Err(Errno::NOTSUP) => Ok(()),
            noted => noted,
        }
    }

    /// Which device an object stands for.
    pub(super) fn device(&self, object: &Object) -> Option<(FileType, u32, u32)> {
        if object.kind() != FileType::RegularFile || object.stat.st_size != 0 {
            return None;
        }
        let mut text = [0u8; 32];
        let length = rustix::fs::getxattr(object.path(), self.recorder.node_attribute.as_str(), &mut text[..]).ok()?;
        let (letter, numbers) = std::str::from_utf8(&text[..length]).ok()?.split_once(' ')?;
        let (major, minor) = numbers.split_once(':')?;
        let kind = if letter == "b" { FileType::BlockDevice } else { FileType::CharacterDevice };
        Some((kind, major.parse().ok()?, minor.parse().ok()?))
    }

    /// An object's inode in the upper directory: the overlay has numbers of its own.
    fn in_upper(&self, object: &Object) -> Option<Inode> {
        if object.stat.st_dev != self.device {
            return None;
        }
        let fd = self.open_in_upper(&path_of(object)?)?;
        inode(&rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::INO | StatxFlags::BTIME).ok()?)
    }

    /// What is in the upper directory at the path of an object.
    fn open_in_upper(&self, path: &Path) -> Option<OwnedFd> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        // A path that ends in a link is refused where links are, so its folder is looked for.
        let (parent, name) = (path.parent()?, path.file_name()?);
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        let parent = rustix::fs::openat2(&self.upper, parent, flags | OFlags::DIRECTORY, Mode::empty(), resolve).ok()?;
        rustix::fs::openat(parent, name, flags, Mode::empty()).ok()
    }

    /// What was noted in memory of inodes that still are what they were.
    pub(super) fn finish(self) -> Vec<(u64, u32, u32)> {
        let mut found = Vec::new();
        let mut todo = if self.by_inode.is_empty() { vec![] } else { vec![PathBuf::from(".")] };
        while let Some(directory) = todo.pop() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let Ok(fd) = rustix::fs::openat(&self.upper, &directory, flags, Mode::empty()) else { continue };
            let Ok(entries) = rustix::fs::Dir::read_from(&fd) else { continue };
            for entry in entries.flatten() {
                let name = OsStr::from_bytes(entry.file_name().to_bytes());
                match entry.file_type() {
                    _ if name == "." || name == ".." => {}
                    FileType::Directory => todo.push(directory.join(name)),
                    FileType::RegularFile => {}
                    _ => {
                        let mask = StatxFlags::INO | StatxFlags::BTIME;
                        let stat = rustix::fs::statx(&fd, name, AtFlags::SYMLINK_NOFOLLOW, mask).ok();
                        let Some(inode) = stat.and_then(|stat| inode(&stat)) else { continue };
                        found.extend(self.by_inode.get(&inode).map(|(uid, gid)| (inode.number, *uid, *gid)));
                    }
                }
            }
        }
        // One inode may have several names.
        found.sort_unstable();
        found.dedup();
        found
    }
}

/// Where an object is, from the sandbox's root.
fn path_of(object: &Object) -> Option<PathBuf> {
    let path = rustix::fs::readlink(object.path(), Vec::new()).ok()?;
    Some(Path::new(OsStr::from_bytes(path.as_bytes())).strip_prefix("/").ok()?.to_owned())
}

fn inode(stat: &Statx) -> Option<Inode> {
    let born = (stat.stx_mask & StatxFlags::BTIME.bits() != 0).then_some((stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec));
    Some(Inode { number: stat.stx_ino, born: born.unwrap_or_default() })
}

fn has_attributes(kind: FileType) -> bool {
    matches!(kind, FileType::RegularFile | FileType::Directory)
}

fn parse(text: &[u8]) -> Option<(u32, u32)> {
    let (uid, gid) = std::str::from_utf8(text).ok()?.split_once(':')?;
    Some((uid.parse().ok()?, gid.parse().ok()?))
}

/// A file that is to be made.
pub(super) struct Wish {
    directory: i32,
    path: CString,
    what: New,
}

/// `__O_TMPFILE`: `O_TMPFILE` without `O_DIRECTORY`, which others have as well.
const TMPFILE: u32 = 0x40_0000;

/// What kind of file.
enum New {
    /// Opened with these flags.
    File(OFlags, Mode),
    Directory(Mode),
    Link(CString),
    Node(FileType, Mode, u64),
}

impl Owners {
    /// A call that makes a file, by a process whose identity is the run's own (`is_base`) or another. The file is made here when its
    /// owner or kind has to be noted, and else by the kernel.
    pub(super) fn create(
        &mut self,
        wish: &Wish,
        caller: &Caller<'_>,
        identity: &Identity,
        is_base: bool,
    ) -> Result<Reply, Errno> {
        let device = match wish.what {
            New::Node(kind, _, device) if kind.is_char_device() || kind.is_block_device() => Some((kind, device)),
            _ => None,
        };
        if device.is_some() && !identity.is_root() {
            return Err(Errno::PERM);
        }
        // An overlay takes that for a deletion, and has none made.
        if device == Some((FileType::CharacterDevice, 0)) {
            return Err(Errno::PERM);
        }
        // What the command's own user makes is known to be its.
        if is_base && device.is_none() {
            return Ok(Reply::Continue);
        }
        let group = match self.inherited_group(caller, wish) {
            Ok(group) => group,
            // The kernel knows which error comes first.
            Err(_) if device.is_none() => return Ok(Reply::Continue),
            Err(errno) => return Err(errno),
        };
        let (uid, gid) = identity.owner();
        let owner = (uid, group.unwrap_or(gid));
        let made = caller.with_umask(|| caller.at(wish.directory, &wish.path, |from| make(from, wish)))?;
        let file = match made {
            Ok(file) => file,
            Err(errno) if device.is_some() => return Err(errno),
            Err(_) => return Ok(Reply::Continue),
        };
        let New::File(flags, _) = wish.what else {
            let object = caller.find(wish.directory, &wish.path, AtFlags::SYMLINK_NOFOLLOW)?;
            if let Some((kind, device)) = device {
                self.note_device(&object, kind, device)?;
            }
            if !is_base {
                self.note(&object, owner)?;
            }
            return Ok(Reply::Value(0));
        };
        let Some(file) = file else { return Ok(Reply::Continue) };
        let object = Object::new(file)?;
        self.note(&object, owner)?;
        Ok(Reply::File(object.fd, flags.contains(OFlags::CLOEXEC)))
    }

    /// The group that a file gets from a folder with the set-group-id bit.
    fn inherited_group(&self, caller: &Caller<'_>, wish: &Wish) -> Result<Option<u32>, Errno> {
        let path = wish.path.to_bytes();
        let trimmed = path.iter().rposition(|byte| *byte != b'/').map_or(&path[..0], |last| &path[..=last]);
        let is_tmpfile = matches!(wish.what, New::File(flags, _) if flags.bits() & TMPFILE != 0);
        let parent = match trimmed.iter().rposition(|byte| *byte == b'/') {
            _ if is_tmpfile => path,
            Some(0) => b"/",
            Some(slash) => &trimmed[..slash],
            None => b".",
        };
        let parent = CString::new(parent).map_err(|_| Errno::INVAL)?;
        let stat = caller.at(wish.directory, &parent, |from| rustix::fs::statat(from, &parent, AtFlags::empty()))?;
        if stat.st_mode & libc::S_ISGID == 0 {
            return Ok(None);
        }
        let object = caller.find(wish.directory, &parent, AtFlags::empty())?;
        Ok(Some(self.true_owner(&object)?.1))
    }
}

impl Wish {
    /// What the arguments ask for; `None` when no file can come of it.
    pub(super) fn of(call: Call, notification: &Notification, caller: &Caller<'_>) -> Result<Option<Wish>, Errno> {
        let a = notification.arguments;
        let here = libc::AT_FDCWD;
        let mode = |index: usize| Mode::from_raw_mode(a[index] as u32 & 0o7777);
        let flags = |bits: u64| OFlags::from_bits_retain(bits as u32);
        let (directory, path, what) = match call {
            Call::Open => (here, a[0], New::File(flags(a[1]), mode(2))),
            Call::Creat => (here, a[0], New::File(OFlags::CREATE | OFlags::WRONLY | OFlags::TRUNC, mode(1))),
            Call::Openat => (a[0] as i32, a[1], New::File(flags(a[2]), mode(3))),
            Call::Openat2 => {
                // `struct open_how`: flags, mode, and how links are followed, which is left to the kernel.
                let how = caller.bytes(a[2], 24)?;
                let word = |index: usize| u64::from_le_bytes(std::array::from_fn(|at| how[8 * index + at]));
                if word(2) != 0 || !flags(word(0)).intersects(OFlags::CREATE | OFlags::from_bits_retain(TMPFILE)) {
                    return Ok(None);
                }
                (a[0] as i32, a[1], New::File(flags(word(0)), Mode::from_raw_mode(word(1) as u32 & 0o7777)))
            }
            Call::Mkdir => (here, a[0], New::Directory(mode(1))),
            Call::Mkdirat => (a[0] as i32, a[1], New::Directory(mode(2))),
            Call::Symlink => (here, a[1], New::Link(caller.path(a[0])?)),
            Call::Symlinkat => (a[1] as i32, a[2], New::Link(caller.path(a[0])?)),
            Call::Mknod | Call::Mknodat => {
                let first = if call == Call::Mknodat { 1 } else { 0 };
                let bits = a[first + 1] as u32;
                let kind = if bits & libc::S_IFMT == 0 { FileType::RegularFile } else { FileType::from_raw_mode(bits) };
                // The kernel takes 32 bits of it: 12 of the major number, 20 of the minor one.
                let device = a[first + 2] as u32;
                let (major, minor) = ((device & 0xf_ff00) >> 8, (device & 0xff) | ((device >> 12) & 0xf_ff00));
                let node = New::Node(kind, Mode::from_raw_mode(bits & 0o7777), rustix::fs::makedev(major, minor));
                (if first == 1 { a[0] as i32 } else { here }, a[first], node)
            }
            _ => return Ok(None),
        };
        Ok(Some(Wish { directory, path: caller.path(path)?, what }))
    }
}

/// Makes the file; `None` when the kernel is to do it.
fn make(from: BorrowedFd<'_>, wish: &Wish) -> Result<Option<OwnedFd>, Errno> {
    let path = &wish.path;
    match &wish.what {
        New::File(flags, mode) => {
            // Only a new file is ever opened here, for that can't block.
            let nameless = flags.bits() & TMPFILE != 0;
            let exclusive = if nameless { *flags & OFlags::EXCL } else { OFlags::EXCL };
            rustix::fs::openat(from, path, *flags | OFlags::CLOEXEC | exclusive, *mode).map(Some)
        }
        New::Directory(mode) => rustix::fs::mkdirat(from, path, *mode).map(|()| None),
        New::Link(to) => rustix::fs::symlinkat(to, from, path).map(|()| None),
        New::Node(FileType::CharacterDevice | FileType::BlockDevice, mode, _) => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            match rustix::fs::openat(from, path, flags, *mode) {
                // What `mknod` says of a path with a slash at its end.
                Err(Errno::ISDIR) if rustix::fs::statat(from, path, AtFlags::empty()).is_ok() => Err(Errno::EXIST),
                Err(Errno::ISDIR) => Err(Errno::NOENT),
                file => file.map(Some),
            }
        }
        New::Node(kind, mode, device) => rustix::fs::mknodat(from, path, *kind, *mode, *device).map(|()| None),
    }
}
