//! Hides how the kernel tells the kind, owner, times and attributes of a file.

use std::collections::BTreeMap;

use rustix::fs::{FileType, Stat, Timespec, Timestamps};
use rustix::io::Errno;

/// Extended attributes by name.
pub type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// What a directory entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A character device.
    Char,
    /// A block device.
    Block,
    /// A socket, which no layer can hold.
    Socket,
}

impl Kind {
    pub(crate) fn file_type(self) -> FileType {
        match self {
            Kind::File => FileType::RegularFile,
            Kind::Dir => FileType::Directory,
            Kind::Symlink => FileType::Symlink,
            Kind::Fifo => FileType::Fifo,
            Kind::Char => FileType::CharacterDevice,
            Kind::Block => FileType::BlockDevice,
            Kind::Socket => FileType::Socket,
        }
    }
}

/// Seconds and nanoseconds since 1970; negative seconds count back, nanoseconds always forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp {
    /// Seconds since 1970-01-01T00:00:00Z.
    pub secs: i64,
    /// 0 to 999,999,999.
    pub nanos: u32,
}

impl Timestamp {
    /// A time of whole seconds.
    pub fn from_secs(secs: i64) -> Self {
        Self { secs, nanos: 0 }
    }

    /// Access and modification time set to this one.
    pub(crate) fn both(self) -> Timestamps {
        let time = Timespec { tv_sec: self.secs, tv_nsec: self.nanos.into() };
        Timestamps { last_access: time, last_modification: time }
    }
}

/// What `lstat` says of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta {
    /// What it is.
    pub kind: Kind,
    /// Permission, set-id and sticky bits (07777).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Major and minor number of a device node.
    pub rdev: (u32, u32),
    /// Length in bytes; of a symbolic link, of its target.
    pub size: u64,
    /// 512-byte blocks in use, fewer than `size` needs in a sparse file.
    pub blocks: u64,
    /// Modification time.
    pub mtime: Timestamp,
    /// Change time, which no program can set.
    pub ctime: Timestamp,
    /// Number of names.
    pub nlink: u64,
    /// Device of the file system.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
}

impl Meta {
    /// Whether this is how an overlay records "the name below is gone".
    pub fn is_whiteout_device(&self) -> bool {
        self.kind == Kind::Char && self.rdev == (0, 0)
    }
}

impl From<&Stat> for Meta {
    fn from(stat: &Stat) -> Self {
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Kind::Dir,
            FileType::Symlink => Kind::Symlink,
            FileType::Fifo => Kind::Fifo,
            FileType::CharacterDevice => Kind::Char,
            FileType::BlockDevice => Kind::Block,
            FileType::Socket => Kind::Socket,
            _ => Kind::File,
        };
        // The widths of these fields differ between architectures.
        #[allow(clippy::unnecessary_cast)]
        Self {
            kind,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            rdev: (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)),
            size: stat.st_size as u64,
            blocks: stat.st_blocks as u64,
            mtime: Timestamp { secs: stat.st_mtime as i64, nanos: stat.st_mtime_nsec as u32 },
            ctime: Timestamp { secs: stat.st_ctime as i64, nanos: stat.st_ctime_nsec as u32 },
            nlink: stat.st_nlink as u64,
            dev: stat.st_dev as u64,
            ino: stat.st_ino as u64,
        }
    }
}

/// What to set on a new file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attrs {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission, set-id and sticky bits (07777); of no meaning to a symbolic link.
    pub mode: u32,
    /// Modification (and access) time; `None` leaves the present moment.
    pub mtime: Option<Timestamp>,
    /// Extended attributes to set.
    pub xattrs: Xattrs,
}

impl Attrs {
    /// The same owner, mode and time as `meta`, with the attributes given.
    pub fn of(meta: &Meta, xattrs: Xattrs) -> Self {
        Self { uid: meta.uid, gid: meta.gid, mode: meta.mode, mtime: Some(meta.mtime), xattrs }
    }
}

/// Reads each attribute of a NUL-separated list.
pub(super) fn collect_xattrs(
    list: &[u8],
    mut get: impl FnMut(&[u8]) -> rustix::io::Result<Vec<u8>>,
) -> rustix::io::Result<Xattrs> {
    let mut out = Xattrs::new();
    for key in list.split(|b| *b == 0).filter(|k| !k.is_empty()) {
        match get(key) {
            Ok(value) => {
                out.insert(key.to_vec(), value);
            }
            // Gone since it was listed, or not ours to read.
            Err(Errno::NODATA | Errno::NOTSUP) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(out)
}
