//! Hides in what order and form the files of an overlay directory become a layer's tar: the same directory gives the same bytes.

use std::collections::HashMap;
use std::io::{self, BufWriter, Read, Write};
use std::sync::mpsc::{self, SyncSender};
use std::thread::{Scope, ScopedJoinHandle};

use kiln_oci::digest::{DiffId, Hasher};

use super::compress::{Compression, EncodeOptions, Encoder};
use super::estargz;
use super::whiteout::{self, Listed, WhiteoutStyle};
use super::xattr;
use crate::rootdir::{FsError, Kind, Meta, RootDir, Timestamp, Xattrs};
use crate::tar::{Entry, EntryKind, WriteError, Writer};

/// Directories that are kept open while those below them are walked; above that many, the way back is `..`.
const MAX_OPEN: usize = 64;

/// Why a directory can't be packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The system refused.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// The tar can't be written, or can't hold the file.
    #[error(transparent)]
    Tar(#[from] WriteError),
    /// The name of a file would mean a whiteout in a layer (image-spec layer.md: "files with the prefix `.wh.` are reserved").
    #[error("`{}` cannot stand in a layer: names that begin with `.wh.` mean deleted files there", String::from_utf8_lossy(path))]
    ReservedName {
        /// The file, relative to the root of the layer.
        path: Vec<u8>,
    },
    /// The file became shorter, or was replaced, while it was read.
    #[error("`{}` changed while it was read", String::from_utf8_lossy(path))]
    Changed {
        /// The file, relative to the root of the layer.
        path: Vec<u8>,
    },
}

/// What the bytes of a packed layer depend on beside the directory.
#[derive(Debug, Clone, Copy, Default)]
pub struct PackOptions {
    /// How whiteouts stand in the directory.
    pub style: WhiteoutStyle,
    /// Later times are written as this one (seconds since 1970, as in `SOURCE_DATE_EPOCH`).
    pub latest_mtime: Option<i64>,
    /// Write an entry `./` for the root itself, first. Docker doesn't; it's needed only where a step changed the root's mode.
    pub root_entry: bool,
    /// What the tar was when it was packed before. [`pack_compressed`] then sees by its check that it is the same, and doesn't hash it
    /// again, which costs as much as hashing the blob: three seconds of 800 MB where the processor has no instructions for it.
    pub known: Option<KnownTar>,
}

/// The tar of a layer, with a check by which it is known again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownTar {
    /// The digest of the tar.
    pub diff_id: DiffId,
    /// Its size in bytes.
    pub size: u64,
    /// Its CRC-32 (that of gzip, RFC 1952 8), where that was made with the digest. It guards against what a disk or a hand did to the
    /// files by mistake; who means harm to a store of their own can write the record as well.
    pub crc: Option<u32>,
}

/// What was packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PackStats {
    /// Entries in the tar.
    pub entries: u64,
    /// Bytes of the tar.
    pub tar_size: u64,
    /// Sockets, which no tar can hold.
    pub sockets_skipped: u64,
}

/// Writes the overlay directory `diff` to `out` as a layer's tar.
///
/// A parent comes before its children, names in bytewise order. Whiteouts become `.wh.NAME`, an opaque directory gets
/// `.wh..wh..opq`. Files with several names become hard links to the first. File capabilities, ACLs and `user.*` are kept,
/// times cut to whole seconds (as containerd does, for readers that know only USTAR).
pub fn pack(diff: &RootDir, out: &mut dyn Write, options: &PackOptions) -> Result<PackStats, PackError> {
    // The headers of small files come in pieces of 512 bytes.
    let (tar, mut stats) = pack_into(diff, Writer::new(BufWriter::with_capacity(128 << 10, out)), options)?;
    let (mut out, tar_size) = tar.finish()?;
    out.flush().map_err(WriteError::from)?;
    stats.tar_size = tar_size;
    Ok(stats)
}

fn pack_into<S: Sink>(diff: &RootDir, tar: S, options: &PackOptions) -> Result<(S, PackStats), PackError> {
    let (path, buffer, stats) = (Vec::new(), vec![0; 128 << 10], PackStats::default());
    let mut packer = Packer { tar, options, names: HashMap::new(), path, buffer, stats };
    packer.tree(diff)?;
    Ok((packer.tar, packer.stats))
}

/// What takes the entries of a layer.
pub(super) trait Sink {
    fn start(&mut self, entry: &Entry) -> Result<(), WriteError>;
    fn content(&mut self, bytes: &[u8]) -> Result<(), WriteError>;
}

impl<W: Write> Sink for Writer<W> {
    fn start(&mut self, entry: &Entry) -> Result<(), WriteError> {
        self.start(entry)
    }

    fn content(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.content(bytes)
    }
}

impl<W: Write> Sink for estargz::Writer<W> {
    fn start(&mut self, entry: &Entry) -> Result<(), WriteError> {
        self.start(entry)
    }

    fn content(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.content(bytes)
    }
}

/// A layer's tar was packed and compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packed {
    /// The tar before compression.
    pub tar: KnownTar,
    /// What was packed.
    pub stats: PackStats,
}

/// Why [`pack_compressed`] failed.
#[derive(Debug, thiserror::Error)]
pub enum PackedError {
    /// The directory can't be packed, or the sink failed meanwhile.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// The codec or the sink failed at the end.
    #[error("cannot write the compressed layer")]
    Compress(#[from] io::Error),
}

/// Packs `diff` and compresses it into `sink` in one pass. Of a large layer, hashing and compressing run on threads beside the one that reads; the
/// sink (which hashes what it gets if anyone needs that digest) is written to on the caller's.
pub fn pack_compressed(
    diff: &RootDir,
    sink: &mut dyn Write,
    compression: Compression,
    encode: EncodeOptions,
    options: &PackOptions,
) -> Result<Packed, PackedError> {
    let encoder = Encoder::new(sink, compression, encode)?;
    let Some(KnownTar { diff_id, size, crc: Some(crc) }) = options.known else {
        return hashed(diff, encoder, options);
    };
    let mut tee = Tee { sink: encoder, crc: crc32fast::Hasher::new(), hash: None };
    let stats = pack(diff, &mut tee, options)?;
    let found = tee.crc.finalize();
    tee.sink.finish()?;
    if (found, stats.tar_size) == (crc, size) {
        return Ok(Packed { tar: KnownTar { diff_id, size, crc: Some(crc) }, stats });
    }
    // Whoever asked has to know what it is now.
    let nowhere: &mut dyn Write = &mut io::sink();
    hashed(diff, Encoder::new(nowhere, Compression::None, encode)?, options)
}

/// Packs and compresses, and hashes; what is large with a thread beside that does.
fn hashed(diff: &RootDir, encoder: Encoder<&mut dyn Write>, options: &PackOptions) -> Result<Packed, PackedError> {
    std::thread::scope(|scope| {
        let mut tee = Tee { sink: encoder, crc: crc32fast::Hasher::new(), hash: Some(Hash::Here(Box::default(), scope)) };
        let stats = pack(diff, &mut tee, options)?;
        let Tee { sink, crc, hash } = tee;
        let hash = hash.map(Hash::close);
        sink.finish()?;
        let diff_id = hash.map_or_else(|| Err(ended()), Hash::finish)?;
        Ok(Packed { tar: KnownTar { diff_id, size: stats.tar_size, crc: Some(crc.finalize()) }, stats })
    })
}

/// Packs `diff` into `sink` as an eStargz blob, whose tar has a table of contents that [`pack`] doesn't write.
pub fn pack_estargz(
    diff: &RootDir,
    sink: &mut dyn Write,
    encode: EncodeOptions,
    options: &PackOptions,
) -> Result<(estargz::Made, PackStats), PackError> {
    let (tar, mut stats) = pack_into(diff, estargz::Writer::new(sink, encode)?, options)?;
    let (_, made) = tar.finish()?;
    stats.tar_size = made.tar_size;
    Ok((made, stats))
}

/// A layer up to this size is hashed before a thread for that would have begun.
const SMALL: u64 = 512 << 10;

/// Checks what's written, and hashes it. The writes are those of `pack`'s buffer, so they're large.
struct Tee<'scope, 'env, W> {
    sink: W,
    crc: crc32fast::Hasher,
    hash: Option<Hash<'scope, 'env>>,
}

/// Where the hashing is done.
enum Hash<'scope, 'env> {
    /// With the bytes so far, and where a thread can be begun.
    Here(Box<(Hasher, u64)>, &'scope Scope<'scope, 'env>),
    Beside(SyncSender<Vec<u8>>, ScopedJoinHandle<'scope, Hasher>),
    /// There is no more to come.
    Closed(ScopedJoinHandle<'scope, Hasher>),
}

impl Hash<'_, '_> {
    fn update(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Self::Here(here, scope) = self {
            if here.1 < SMALL {
                here.0.update(bytes);
                here.1 += bytes.len() as u64;
                return Ok(());
            }
            let mut hasher = std::mem::take(&mut here.0);
            let (send, receive) = mpsc::sync_channel::<Vec<u8>>(4);
            let thread = scope.spawn(move || {
                while let Ok(piece) = receive.recv() {
                    hasher.update(&piece);
                }
                hasher
            });
            *self = Self::Beside(send, thread);
        }
        match self {
            Self::Beside(send, _) => send.send(bytes.to_vec()).map_err(|_| ended()),
            _ => Err(ended()),
        }
    }

    fn close(self) -> Self {
        match self {
            Self::Beside(_, thread) => Self::Closed(thread),
            other => other,
        }
    }

    fn finish(self) -> io::Result<DiffId> {
        let hasher = match self.close() {
            Self::Here(here, _) => here.0,
            Self::Closed(thread) => thread.join().map_err(|_| ended())?,
            Self::Beside(..) => return Err(ended()),
        };
        Ok(DiffId::new(hasher.finish()))
    }
}

fn ended() -> io::Error {
    io::Error::other("the hashing thread ended unexpectedly")
}

impl<W: Write> Write for Tee<'_, '_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.sink.write(bytes)?;
        self.crc.update(&bytes[..taken]);
        if let Some(hash) = &mut self.hash {
            hash.update(&bytes[..taken])?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

struct Packer<'a, S> {
    tar: S,
    options: &'a PackOptions,
    /// The first name of each file that has several, by device and inode.
    names: HashMap<(u64, u64), Vec<u8>>,
    /// The directory being walked, with a slash at its end; empty for the root.
    path: Vec<u8>,
    buffer: Vec<u8>,
    stats: PackStats,
}

/// A directory whose entries are being written.
struct Level {
    /// `None` while it's closed for the sake of those below.
    dir: Option<RootDir>,
    id: (u64, u64),
    names: std::vec::IntoIter<Listed>,
    path_length: usize,
}

impl<S: Sink> Packer<'_, S> {
    fn tree(&mut self, root: &RootDir) -> Result<(), PackError> {
        let mut levels = vec![self.enter(root.try_clone()?, root.meta()?)?];
        while let Some(level) = levels.last_mut() {
            let Some(dir) = &level.dir else { return Err(PackError::Changed { path: self.path.clone() }) };
            if let Some(name) = level.names.next() {
                let Some((child, meta)) = self.entry(dir, &name)? else { continue };
                self.path.extend_from_slice(&name.name);
                self.path.push(b'/');
                let next = self.enter(child, meta)?;
                levels.push(next);
                if levels.len() > MAX_OPEN {
                    let shut = levels.len() - MAX_OPEN;
                    levels[shut].dir = None;
                }
                continue;
            }
            let done = levels.pop();
            if let (Some(done), Some(above)) = (done, levels.last_mut()) {
                self.path.truncate(above.path_length);
                if above.dir.is_none()
                    && let Some(dir) = done.dir
                {
                    let parent = dir.parent()?;
                    let meta = parent.meta()?;
                    if (meta.dev, meta.ino) != above.id {
                        return Err(PackError::Changed { path: self.path.clone() });
                    }
                    above.dir = Some(parent);
                }
            }
        }
        Ok(())
    }

    /// Writes what a directory is, and that it's opaque.
    fn enter(&mut self, dir: RootDir, meta: Meta) -> Result<Level, PackError> {
        let xattrs = dir.xattrs_of_self()?;
        let is_root = self.path.is_empty();
        if !is_root || self.options.root_entry {
            let path = if is_root { b"./".to_vec() } else { self.path.clone() };
            let entry = self.describe(path, &meta, xattr::portable(xattrs));
            self.start(&entry)?;
        }
        if whiteout::is_opaque(&dir, self.options.style)? {
            self.start(&removal([&self.path, whiteout::OPAQUE].concat()))?;
        }
        let names = whiteout::list(&dir, self.options.style)?.into_iter();
        Ok(Level { dir: Some(dir), id: (meta.dev, meta.ino), names, path_length: self.path.len() })
    }

    /// Writes the entry `name`, or opens it if it's a directory.
    fn entry(&mut self, dir: &RootDir, listed: &Listed) -> Result<Option<(RootDir, Meta)>, PackError> {
        let name = &listed.name[..];
        let path = [&self.path, name].concat();
        if listed.is_marker {
            self.start(&removal([&self.path, whiteout::PREFIX, name].concat()))?;
            return Ok(None);
        }
        if name.starts_with(whiteout::PREFIX) {
            return Err(PackError::ReservedName { path });
        }
        let Some(meta) = dir.stat(name)? else { return Err(PackError::Changed { path }) };
        if meta.kind == Kind::Dir {
            return Ok(Some((dir.child(name)?, meta)));
        }
        if meta.kind == Kind::Socket {
            self.stats.sockets_skipped += 1;
            return Ok(None);
        }
        if whiteout::is_whiteout(dir, name, &meta, self.options.style)? {
            self.start(&removal([&self.path, whiteout::PREFIX, name].concat()))?;
            return Ok(None);
        }
        if meta.nlink > 1 {
            if let Some(first) = self.names.get(&(meta.dev, meta.ino)) {
                let link = first.clone();
                let mut entry = self.describe(path, &meta, Xattrs::new());
                (entry.kind, entry.link, entry.rdev) = (EntryKind::HardLink, link, (0, 0));
                self.start(&entry)?;
                return Ok(None);
            }
            self.names.insert((meta.dev, meta.ino), path.clone());
        }
        if meta.kind == Kind::File {
            self.file(dir, name, path, &meta)?;
        } else {
            let mut entry = self.describe(path, &meta, xattr::portable(dir.xattrs(name)?));
            if meta.kind == Kind::Symlink {
                entry.link = dir.read_link(name)?;
            }
            self.start(&entry)?;
        }
        Ok(None)
    }

    fn file(&mut self, dir: &RootDir, name: &[u8], path: Vec<u8>, meta: &Meta) -> Result<(), PackError> {
        let mut file = dir.open_file(name)?;
        let xattrs = xattr::portable(dir.xattrs_of_file(&file, name)?);
        let entry = self.describe(path, meta, xattrs);
        self.start(&entry)?;
        let mut left = meta.size;
        while left > 0 {
            let want = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            match file.read(&mut self.buffer[..want]) {
                Ok(0) => return Err(PackError::Changed { path: entry.path }),
                Ok(n) => {
                    self.tar.content(&self.buffer[..n])?;
                    left -= n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(dir.error("read", name, e).into()),
            }
        }
        Ok(())
    }

    fn start(&mut self, entry: &Entry) -> Result<(), PackError> {
        self.tar.start(entry)?;
        self.stats.entries += 1;
        Ok(())
    }

    fn describe(&self, path: Vec<u8>, meta: &Meta, xattrs: Xattrs) -> Entry {
        let secs = self.options.latest_mtime.map_or(meta.mtime.secs, |latest| meta.mtime.secs.min(latest));
        let is_device = matches!(meta.kind, Kind::Char | Kind::Block);
        Entry {
            path,
            kind: EntryKind::Node(meta.kind),
            link: Vec::new(),
            // A symbolic link has no mode of its own.
            mode: if meta.kind == Kind::Symlink { 0o777 } else { meta.mode },
            uid: meta.uid,
            gid: meta.gid,
            size: if meta.kind == Kind::File { meta.size } else { 0 },
            mtime: Timestamp::from_secs(secs),
            rdev: if is_device { meta.rdev } else { (0, 0) },
            xattrs,
            sparse: None,
        }
    }
}

/// An entry that takes away: empty, and without a time of its own.
fn removal(path: Vec<u8>) -> Entry {
    Entry { mode: 0, ..Entry::file(path, 0) }
}
