//! Hides how a tar archive is written down: reads every dialect strictly, writes one of them.
//!
//! There are several answers to a tar whose headers contradict one another, and four of Rust's readers were given another
//! one than their neighbours within a year (CVE-2025-62518 and its kin). This reader takes what GNU tar, Go and Python take
//! alike, and refuses what they read differently.

mod header;
mod pax;
mod reader;
mod sparse;
mod writer;

use crate::rootdir::{Kind, Timestamp, Xattrs};

pub use reader::{Reader, TarError};
pub use sparse::Region;
pub use writer::{WriteError, Writer};

/// What an entry of an archive is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// A file of its own.
    Node(Kind),
    /// One more name of an earlier entry, which [`Entry::link`] names.
    HardLink,
}

/// One entry's header, with all its extensions applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name as it stands in the archive: any bytes but NUL, not made safe in any way.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// The target of a symbolic or hard link, else empty.
    pub link: Vec<u8>,
    /// Permission, set-id and sticky bits (07777).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of content; of a sparse file, with its holes. 0 for all but files.
    pub size: u64,
    /// Modification time.
    pub mtime: Timestamp,
    /// Major and minor number of a device.
    pub rdev: (u32, u32),
    /// `SCHILY.xattr.*`.
    pub xattrs: Xattrs,
    /// Where the data of a sparse file lies; `None` for any other.
    pub sparse: Option<Vec<Region>>,
}

impl Entry {
    /// A regular file of root's with mode 0644 and the time 0.
    pub fn file(path: impl Into<Vec<u8>>, size: u64) -> Self {
        Self {
            path: path.into(),
            kind: EntryKind::Node(Kind::File),
            link: Vec::new(),
            mode: 0o644,
            uid: 0,
            gid: 0,
            size,
            mtime: Timestamp::default(),
            rdev: (0, 0),
            xattrs: Xattrs::new(),
            sparse: None,
        }
    }

    /// How many bytes of content the archive holds for it: of a sparse file, without the holes.
    pub fn stored(&self) -> u64 {
        self.sparse.as_ref().map_or(self.size, |regions| regions.iter().map(|region| region.length).sum())
    }

    /// A directory of root's with mode 0755 and the time 0; its name ends in a slash by custom.
    pub fn dir(path: impl Into<Vec<u8>>) -> Self {
        Self { kind: EntryKind::Node(Kind::Dir), mode: 0o755, ..Self::file(path, 0) }
    }
}

#[cfg(test)]
mod tests;
