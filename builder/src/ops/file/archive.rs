//! Hides how ADD knows an archive and what it makes of one: by content, below the destination as if that were the root.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};

use kiln_frontend::graph::CopyOp;
use kiln_oci::path::ImagePath;
use kiln_store::layer::compress::Decoder;
use kiln_store::layer::upper::{Content, UpperError, UpperWriter};
use kiln_store::layer::{whiteout, xattr};
use kiln_store::owner::Owner;
use kiln_store::rootdir::{Attrs, Kind, Xattrs};
use kiln_store::tar::{Entry, EntryKind, Reader, TarError};
use kiln_store::view::ViewError;
use rustix::fs::SeekFrom;

use super::FileError;
use super::copy::CopyStats;
use super::select::Item;
use super::source::{Place, Reader as SourceReader};
use crate::context::ContextNode;

const MAX_LINKS: usize = 40;
/// Names that the links on the way to an entry may have in all, as where layers are unpacked.
const MAX_LINKED_NAMES: usize = 4096;

/// Why an archive can't be unpacked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// It isn't what a tar archive should be.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// An entry can't be written.
    #[error(transparent)]
    Write(#[from] UpperError),
    /// The image can't be read.
    #[error(transparent)]
    Tree(#[from] ViewError),
    /// An entry with a name that means "this file is gone" in a layer.
    #[error("the entry `{0}` begins with `.wh.`, which marks a deleted file in a layer")]
    ReservedName(ImagePath),
    /// An entry below something that is no directory.
    #[error("`{path}` lies below `{at}`, which is not a directory")]
    NotADirectory {
        /// The entry.
        path: ImagePath,
        /// What is no directory, in the image.
        at: ImagePath,
    },
    /// More than 40 symbolic links on the way to an entry.
    #[error("`{0}` has too many levels of symbolic links")]
    TooManyLinks(ImagePath),
    /// A name with more `..` than folders before them (refused as by BuildKit's unpacker).
    #[error("the entry `{0}` leads out of the archive")]
    Outside(String),
    /// The destination itself can only be a directory.
    #[error("the archive makes its own root something else than a directory")]
    Root,
}

/// Whether `item` is to be unpacked: ADD of a local file whose content is an archive, unless `--unpack` says otherwise. What
/// can't be read as an archive from the start is none.
pub(super) fn is_archive(op: &CopyOp, item: &Item<'_>) -> Result<bool, FileError> {
    let wanted = match item {
        Item::Tree(selected) => op.is_add && op.unpack != Some(false) && selected.place.kind() == Kind::File,
        Item::Fetched(_) => op.is_add && op.unpack == Some(true),
        Item::Inline { .. } | Item::Repository(_) => false,
    };
    if !wanted {
        return Ok(false);
    }
    with_file(item, |file| Ok(begins_as_archive(file)))
}

/// Unpacks `item` below `dest`, which is a directory without symbolic links in its path. Owners are the archive's unless
/// `owner` is given; directories that it doesn't mention are like `made_up`.
pub(super) fn unpack(
    item: &Item<'_>,
    dest: &ImagePath,
    upper: &UpperWriter,
    owner: Option<Owner>,
    made_up: &Attrs,
) -> Result<CopyStats, FileError> {
    with_file(item, |file| {
        let failed = |cause| FileError::Archive { from: item.shown(), cause };
        let (_, decoder) = Decoder::detect(file).map_err(|e| failed(TarError::Io(e).into()))?;
        let mut unpacker = Unpacker {
            dest,
            upper,
            owner,
            made_up,
            links: HashMap::new(),
            parents: HashMap::new(),
            stats: CopyStats::default(),
            newest: None,
        };
        unpacker.run(&mut Reader::new(decoder)).map_err(failed)?;
        Ok(unpacker.stats)
    })
}

/// Unpacks all of `archive`, which may be compressed, into the root of `upper`; everything belongs to `owner`. Answers the time of
/// the newest file, in seconds since 1970.
pub(crate) fn unpack_all(archive: impl Read, upper: &UpperWriter, owner: Owner) -> Result<Option<i64>, ArchiveError> {
    let (_, decoder) = Decoder::detect(archive).map_err(TarError::Io)?;
    let (dest, made_up) = (ImagePath::root(), Attrs { uid: owner.uid, gid: owner.gid, mode: 0o755, ..Attrs::default() });
    let mut unpacker = Unpacker {
        dest: &dest,
        upper,
        owner: Some(owner),
        made_up: &made_up,
        links: HashMap::new(),
        parents: HashMap::new(),
        stats: CopyStats::default(),
        newest: None,
    };
    unpacker.run(&mut Reader::new(decoder))?;
    Ok(unpacker.newest)
}

/// Whether `file` begins as an archive does, compressed or not.
pub(crate) fn begins_as_archive(file: impl Read) -> bool {
    let Ok((_, decoder)) = Decoder::detect(file) else { return false };
    // What is refused has a header of an archive, and one that should be told about.
    matches!(Reader::new(decoder).next_entry(), Ok(Some(_)) | Err(TarError::Refused { .. } | TarError::UnknownType { .. }))
}

fn with_file<T>(item: &Item<'_>, mut work: impl FnMut(&File) -> Result<T, FileError>) -> Result<T, FileError> {
    match item {
        Item::Fetched(file) => work(&file.open()?),
        Item::Tree(selected) => match (&selected.place, selected.place.reader()) {
            (Place::View(node), _) => work(&node.open()?),
            (Place::Context(_, ContextNode::Leaf { name, leaf, .. }), SourceReader::Context(reader)) => {
                reader.read(name, leaf, |file, _| work(file)).map(|(value, ..)| value)
            }
            _ => Err(FileError::NotFound { path: selected.shown.clone(), hint: None }),
        },
        Item::Inline { .. } | Item::Repository(_) => Err(FileError::NotFound { path: ImagePath::root(), hint: None }),
    }
}

struct Unpacker<'u> {
    dest: &'u ImagePath,
    upper: &'u UpperWriter,
    owner: Option<Owner>,
    made_up: &'u Attrs,
    /// The symbolic links that came out of the archive so far.
    links: HashMap<ImagePath, Vec<u8>>,
    /// Where directories of the archive really are; forgotten when something changes its type.
    parents: HashMap<ImagePath, ImagePath>,
    stats: CopyStats,
    /// The time of the newest file so far.
    newest: Option<i64>,
}

type Result2<T> = std::result::Result<T, ArchiveError>;

impl Unpacker<'_> {
    fn run(&mut self, reader: &mut Reader<impl std::io::Read>) -> Result2<()> {
        while let Some(entry) = reader.next_entry()? {
            self.entry(&entry, reader)?;
        }
        // The checksum of a compressed stream is at its end.
        reader.drain()?;
        Ok(())
    }

    fn entry(&mut self, entry: &Entry, content: &mut Reader<impl std::io::Read>) -> Result2<()> {
        if leads_out(&entry.path) {
            return Err(ArchiveError::Outside(entry.path.escape_ascii().to_string()));
        }
        let inner = ImagePath::new([b"/", &entry.path[..]].concat());
        let (Some(parent), Some(name)) = (inner.parent(), inner.file_name()) else {
            // The destination keeps its own attributes (moby pkg/archive skips the entry).
            return if entry.kind == EntryKind::Node(Kind::Dir) { Ok(()) } else { Err(ArchiveError::Root) };
        };
        if inner.components().any(|name| name.starts_with(whiteout::PREFIX)) {
            return Err(ArchiveError::ReservedName(inner));
        }
        let path = self.real(&parent, &inner)?.join(name);
        self.upper.ensure_parents(&path, self.made_up)?;
        let there = self.upper.lookup(&path)?.map(|meta| meta.kind);
        let is_dir = entry.kind == EntryKind::Node(Kind::Dir);
        if there.is_some_and(|kind| kind == Kind::Symlink || (kind == Kind::Dir) != is_dir)
            || entry.kind == EntryKind::Node(Kind::Symlink)
        {
            self.parents.clear();
            self.links.remove(&path);
        }
        let attrs = self.attrs(entry);
        if entry.kind == EntryKind::Node(Kind::File) {
            self.upper.check_room(&path, entry.stored())?;
            self.newest = self.newest.max(attrs.mtime.map(|time| time.secs));
        }
        match entry.kind {
            EntryKind::HardLink => {
                let target = ImagePath::new([b"/", &entry.link[..]].concat());
                let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
                    return Err(ArchiveError::Root);
                };
                let target = self.real(&parent, &target)?.join(name);
                self.upper.link(&path, &target)?;
                if let Some(link) = self.links.get(&target).cloned() {
                    self.links.insert(path, link);
                }
            }
            EntryKind::Node(Kind::Dir) => {
                self.upper.mkdir(&path, &attrs)?;
                self.stats.dirs += 1;
                return Ok(());
            }
            EntryKind::Node(Kind::File) if entry.sparse.is_some() => self.sparse(&path, entry, content, &attrs)?,
            EntryKind::Node(Kind::File) => {
                self.stats.bytes += self.upper.put_file(&path, Content::Reader(content), &attrs)?;
            }
            EntryKind::Node(Kind::Symlink) => {
                self.upper.symlink(&path, &entry.link, &attrs)?;
                self.links.insert(path, entry.link.clone());
            }
            EntryKind::Node(kind) => self.upper.mknod(&path, kind, entry.rdev, &attrs)?,
        }
        self.stats.files += 1;
        Ok(())
    }

    /// Puts the data of a sparse file where it belongs; what lies between stays a hole.
    fn sparse(&mut self, path: &ImagePath, entry: &Entry, content: &mut Reader<impl Read>, attrs: &Attrs) -> Result2<()> {
        let new = self.upper.create(path, attrs)?;
        let failed = |e: io::Error| ArchiveError::Write(new.error("write", e).into());
        let mut buffer = vec![0; 64 << 10];
        for region in entry.sparse.iter().flatten() {
            rustix::fs::seek(new.file(), SeekFrom::Start(region.offset)).map_err(|e| failed(e.into()))?;
            let mut left = region.length;
            while left > 0 {
                let want = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                let n = content.read_stored(&mut buffer[..want])?;
                new.file().write_all(&buffer[..n]).map_err(failed)?;
                left -= n as u64;
                self.stats.bytes += n as u64;
            }
        }
        rustix::fs::ftruncate(new.file(), entry.size).map_err(|e| failed(e.into()))?;
        Ok(new.finish(attrs)?)
    }

    fn attrs(&self, entry: &Entry) -> Attrs {
        let owner = self.owner.unwrap_or(Owner { uid: entry.uid, gid: entry.gid });
        let xattrs: Xattrs = xattr::portable(entry.xattrs.clone());
        Attrs { uid: owner.uid, gid: owner.gid, mode: entry.mode, mtime: Some(entry.mtime), xattrs }
    }

    /// Where the directory `dir` of the archive is in the image: symbolic links are followed as if the destination were the
    /// root, which is what unpacking in a chroot comes to.
    fn real(&mut self, dir: &ImagePath, path: &ImagePath) -> Result2<ImagePath> {
        if let Some(known) = self.parents.get(dir) {
            return Ok(known.clone());
        }
        let mut waiting: Vec<Vec<u8>> = dir.components().rev().map(<[u8]>::to_vec).collect();
        let mut at = ImagePath::root();
        let (mut links, mut added) = (0, 0);
        let below = |at: &ImagePath| self.dest.join(at.relative());
        while let Some(name) = waiting.pop() {
            if name == b".." {
                at = at.parent().unwrap_or(at);
                continue;
            }
            let next = at.join(&name);
            let real = below(&next);
            match self.upper.lookup(&real)?.map(|meta| meta.kind) {
                Some(Kind::Symlink) => {
                    links += 1;
                    if links > MAX_LINKS || added > MAX_LINKED_NAMES {
                        return Err(ArchiveError::TooManyLinks(path.clone()));
                    }
                    let target = match self.links.get(&real) {
                        Some(target) => target.clone(),
                        None => match self.upper.parent().lookup(&real)? {
                            Some(node) => node.read_link()?,
                            None => return Err(ArchiveError::NotADirectory { path: path.clone(), at: real }),
                        },
                    };
                    if target.first() == Some(&b'/') {
                        at = ImagePath::root();
                    }
                    let names = target.split(|b| *b == b'/').rev().filter(|n| !n.is_empty() && *n != b".");
                    let before = waiting.len();
                    waiting.extend(names.map(<[u8]>::to_vec));
                    added += waiting.len() - before;
                }
                None | Some(Kind::Dir) => at = next,
                Some(_) => return Err(ArchiveError::NotADirectory { path: path.clone(), at: real }),
            }
        }
        let real = below(&at);
        self.parents.insert(dir.clone(), real.clone());
        Ok(real)
    }
}

/// Whether `..` takes the relative name `path` above where it begins. At the root of an absolute one `..` stays there.
fn leads_out(path: &[u8]) -> bool {
    let mut depth = 0usize;
    for name in path.split(|b| *b == b'/') {
        match name {
            b"" | b"." => {}
            b".." if depth == 0 => return !path.starts_with(b"/"),
            b".." => depth -= 1,
            _ => depth += 1,
        }
    }
    false
}
