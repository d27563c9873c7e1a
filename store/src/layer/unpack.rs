//! Hides how a layer's tar, from whoever made it, becomes an overlay directory that holds nothing but what the layer may say.

use std::io::{self, Read, Write};

use kiln_oci::path::ImagePath;
use rustix::fs::SeekFrom;

use super::upper::{Content, UpperError, UpperWriter, implied_dir};
use super::whiteout::{self, WhiteoutStyle};
use super::xattr;
use crate::rootdir::{Attrs, Kind, RootDir, Timestamp};
use crate::tar::{Entry, EntryKind, Reader, TarError};
use crate::view::View;

/// Longest path of an entry in bytes, and the most names in it. Linux itself takes 4096 bytes at once, but deeper trees exist.
const MAX_PATH: usize = 64 << 10;
const MAX_DEPTH: usize = 4096;
/// Content up to this size is written with one call.
const BUFFER: usize = 256 << 10;

/// Why a layer can't be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The tar can't be read.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// The system refused, or the entry can't be written where it says.
    #[error("cannot unpack `{}`", String::from_utf8_lossy(path))]
    Write {
        /// The entry.
        path: Vec<u8>,
        /// Why.
        #[source]
        source: UpperError,
    },
    /// The root directory can't be prepared or finished.
    #[error(transparent)]
    Upper(#[from] UpperError),
    /// The entry says something that no layer may say.
    #[error("the layer's entry `{}` is refused: {reason}", String::from_utf8_lossy(path))]
    Refused {
        /// The entry.
        path: Vec<u8>,
        /// Why.
        reason: &'static str,
    },
    /// It holds more than it may.
    #[error("the layer unpacks to more than {max} bytes")]
    TooLarge {
        /// The limit in bytes.
        max: u64,
    },
}

/// How to unpack.
#[derive(Debug, Clone, Copy, Default)]
pub struct UnpackOptions {
    /// How whiteouts stand on disk. But with [`WhiteoutStyle::Device`], devices that may not be made are skipped, as there's no
    /// way to make them in a user namespace or a container without the right to.
    pub style: WhiteoutStyle,
    /// The most bytes of file content to write, against decompression bombs.
    pub max_bytes: Option<u64>,
}

/// What was unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UnpackStats {
    /// Entries in the tar.
    pub entries: u64,
    /// Bytes of content written.
    pub bytes: u64,
    /// Entries that replaced an earlier one of the same name, which a layer should not have.
    pub duplicates: u64,
    /// Extended attributes that were not set: labels, `trusted.*`, the overlay's own.
    pub xattrs_skipped: u64,
    /// Devices that may not be made here, and leftovers of aufs.
    pub entries_skipped: u64,
}

type Result<T> = std::result::Result<T, UnpackError>;

/// Unpacks the layer `tar` (not compressed) into the empty directory `dest`, for an overlay above the layers of `parent`.
///
/// The tar is read to its end, so that a hasher in front of it has seen every byte. After an error `dest` holds a part of the
/// layer and must be thrown away.
///
/// An entry's parents are looked up in what was unpacked so far and in `parent`, symbolic links followed inside of it: where
/// `lib` links to `usr/lib`, the entry `lib/x` is `usr/lib/x`, as containerd does it. Opaque marks count as if they came first,
/// whiteouts hit only `parent`, and of two entries of one name the last counts.
pub fn unpack(tar: &mut dyn Read, dest: &RootDir, parent: &View, options: &UnpackOptions) -> Result<UnpackStats> {
    let mut unpacker = Unpacker {
        tar: Reader::new(tar),
        upper: UpperWriter::new(dest.try_clone().map_err(UpperError::from)?, parent.clone(), options.style)?,
        options,
        buffer: vec![0; BUFFER],
        stats: UnpackStats::default(),
    };
    while let Some(entry) = unpacker.tar.next_entry()? {
        unpacker.stats.entries += 1;
        unpacker.entry(entry)?;
    }
    unpacker.tar.drain()?;
    unpacker.stats.duplicates = unpacker.upper.replaced();
    unpacker.upper.finish()?;
    Ok(unpacker.stats)
}

struct Unpacker<'a> {
    tar: Reader<&'a mut dyn Read>,
    upper: UpperWriter,
    options: &'a UnpackOptions,
    buffer: Vec<u8>,
    stats: UnpackStats,
}

/// What the name of an entry means.
enum Meaning {
    Path(ImagePath),
    Whiteout(ImagePath),
    Opaque(ImagePath),
    /// aufs kept its own files in layers.
    Ignored,
}

impl Unpacker<'_> {
    fn entry(&mut self, mut entry: Entry) -> Result<()> {
        let refused = |reason| UnpackError::Refused { path: entry.path.clone(), reason };
        let meaning = meaning(&entry.path).map_err(refused)?;
        // Written by nobody: a parent that the layer doesn't describe.
        let missing = implied_dir(Some(Timestamp::default()));
        let write = |source| UnpackError::Write { path: entry.path.clone(), source };
        let path = match meaning {
            Meaning::Ignored => {
                self.stats.entries_skipped += 1;
                return Ok(());
            }
            Meaning::Opaque(dir) => {
                let dir = self.upper.resolve(&dir).map_err(write)?;
                self.upper.ensure_dir(&dir, &missing).map_err(write)?;
                return self.upper.opaque(&dir).map_err(write);
            }
            Meaning::Whiteout(path) => {
                let path = self.upper.resolve_parent(&path).map_err(write)?;
                self.upper.ensure_parents(&path, &missing).map_err(write)?;
                return self.upper.whiteout(&path).map_err(write);
            }
            Meaning::Path(path) => path,
        };
        if path.is_root() && entry.kind != EntryKind::Node(Kind::Dir) {
            return Err(refused("the root can only be a directory"));
        }
        let path = self.upper.resolve_parent(&path).map_err(write)?;
        self.upper.ensure_parents(&path, &missing).map_err(write)?;
        if entry.kind == EntryKind::HardLink {
            let target = match meaning_of_link(&entry.link) {
                Some(target) => self.upper.resolve_parent(&target).map_err(write)?,
                None => return Err(refused("it is a hard link that leads out of the layer")),
            };
            return self.upper.link(&path, &target).map_err(write);
        }
        let given = entry.xattrs.len() as u64;
        let xattrs = xattr::portable(std::mem::take(&mut entry.xattrs));
        self.stats.xattrs_skipped += given - xattrs.len() as u64;
        let attrs = Attrs { uid: entry.uid, gid: entry.gid, mode: entry.mode, mtime: Some(entry.mtime), xattrs };
        match entry.kind {
            EntryKind::Node(Kind::File) => return self.file(&path, &entry, &attrs),
            EntryKind::Node(Kind::Dir) => self.upper.mkdir(&path, &attrs),
            EntryKind::Node(Kind::Symlink) => self.upper.symlink(&path, &entry.link, &attrs),
            EntryKind::Node(Kind::Char) if entry.rdev == (0, 0) => {
                return Err(UnpackError::Refused {
                    path: entry.path,
                    reason: "the device 0:0 means a deleted file to an overlay",
                });
            }
            EntryKind::Node(kind) => match self.upper.mknod(&path, kind, entry.rdev, &attrs) {
                Err(UpperError::Fs(e))
                    if self.options.style != WhiteoutStyle::Device
                        && kind != Kind::Fifo
                        && e.source.kind() == io::ErrorKind::PermissionDenied =>
                {
                    self.stats.entries_skipped += 1;
                    Ok(())
                }
                done => done,
            },
            EntryKind::HardLink => Ok(()),
        }
        .map_err(|source| UnpackError::Write { path: entry.path, source })
    }

    fn file(&mut self, path: &ImagePath, entry: &Entry, attrs: &Attrs) -> Result<()> {
        let write = |source| UnpackError::Write { path: entry.path.clone(), source };
        let stored = entry.stored();
        self.stats.bytes = self.stats.bytes.saturating_add(stored);
        if let Some(max) = self.options.max_bytes.filter(|max| self.stats.bytes > *max) {
            return Err(UnpackError::TooLarge { max });
        }
        self.upper.check_room(path, stored).map_err(write)?;
        if entry.sparse.is_none() && entry.size <= BUFFER as u64 {
            let size = entry.size as usize;
            let mut filled = 0;
            while filled < size {
                filled += self.tar.read_stored(&mut self.buffer[filled..size])?;
            }
            self.upper.put_file(path, Content::Bytes(&self.buffer[..size]), attrs).map_err(write)?;
            return Ok(());
        }
        let new = self.upper.create(path, attrs).map_err(write)?;
        let failed = |e: io::Error| UnpackError::Write { path: entry.path.clone(), source: new.error("write", e).into() };
        let whole = [crate::tar::Region { offset: 0, length: entry.size }];
        for region in entry.sparse.as_deref().unwrap_or(&whole) {
            if entry.sparse.is_some() {
                rustix::fs::seek(new.file(), SeekFrom::Start(region.offset)).map_err(|e| failed(e.into()))?;
            }
            let mut left = region.length;
            while left > 0 {
                let want = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                let n = self.tar.read_stored(&mut self.buffer[..want])?;
                new.file().write_all(&self.buffer[..n]).map_err(failed)?;
                left -= n as u64;
            }
        }
        if entry.sparse.is_some() {
            rustix::fs::ftruncate(new.file(), entry.size).map_err(|e| failed(e.into()))?;
        }
        new.finish(attrs).map_err(write)
    }
}

/// Reads the name of an entry; `Err` says why it's none.
fn meaning(name: &[u8]) -> std::result::Result<Meaning, &'static str> {
    let Some(names) = clean(name)? else { return Err("it leads out of the layer") };
    let Some((last, parents)) = names.split_last() else { return Ok(Meaning::Path(ImagePath::root())) };
    if parents.iter().chain([last]).any(|n| n.starts_with(b".wh..wh.") && *n != whiteout::OPAQUE) {
        return Ok(Meaning::Ignored);
    }
    if parents.iter().any(|n| n.starts_with(whiteout::PREFIX)) {
        return Err("it lies inside a whiteout");
    }
    let parent = ImagePath::new(parents.join(&b'/'));
    if *last == whiteout::OPAQUE {
        return Ok(Meaning::Opaque(parent));
    }
    match last.strip_prefix(whiteout::PREFIX) {
        Some(b"" | b"." | b"..") => Err("it is a whiteout of no name"),
        Some(hidden) => Ok(Meaning::Whiteout(parent.join(hidden))),
        None => Ok(Meaning::Path(parent.join(last))),
    }
}

/// The target of a hard link, which some archivers write as an absolute path; `None` if it's none.
fn meaning_of_link(link: &[u8]) -> Option<ImagePath> {
    match clean(link) {
        Ok(Some(names)) if !names.is_empty() => Some(ImagePath::new(names.join(&b'/'))),
        _ => None,
    }
}

/// The names of a path without `.` and `..`, which undoes the name before it as every Go program does; `None` if it goes above the root.
fn clean(path: &[u8]) -> std::result::Result<Option<Vec<&[u8]>>, &'static str> {
    if path.is_empty() {
        return Err("it has no name");
    }
    if path.len() > MAX_PATH {
        return Err("its name is longer than 64 KiB");
    }
    let mut names = Vec::new();
    for name in path.split(|b| *b == b'/') {
        match name {
            b"" | b"." => {}
            b".." if names.pop().is_none() => return Ok(None),
            b".." => {}
            name => names.push(name),
        }
    }
    if names.len() > MAX_DEPTH {
        return Err("it lies deeper than 4096 directories");
    }
    Ok(Some(names))
}
