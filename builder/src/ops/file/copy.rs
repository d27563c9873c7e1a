//! Hides how a selection gets into an upper directory: where each file goes, what stands in its way, and that many are
//! written at once.

use std::time::SystemTime;

use kiln_frontend::graph::CopyOp;
use kiln_frontend::ignore::PatternMatcher;
use kiln_oci::path::ImagePath;
use kiln_store::descriptors::directories_at_once;
use kiln_store::layer::upper::{Content, UpperError, UpperWriter};
use kiln_store::layer::whiteout;
use kiln_store::owner::Owner;
use kiln_store::rootdir::{Attrs, Kind, Meta, Timestamp, Xattrs};
use kiln_store::view::View;
use rayon::prelude::*;

use super::chmod::Chmod;
use super::select::{Item, Selected, excludes, items};
use super::source::{Place, Reader, SourceTree};
use super::walk::{Visit, Walk};
use super::{FileError, archive, owner};
use crate::context::ContextNode;
use crate::ops::Fetched;

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CopyStats {
    /// Files, links and nodes.
    pub files: u64,
    /// Directories that were made or got new attributes.
    pub dirs: u64,
    /// Bytes of content.
    pub bytes: u64,
}

/// Does a COPY or ADD on the tree of `parent` by writing into `upper`, which stands on the same tree (both on the empty one
/// with `--link`). `fetched` holds what the addresses among the sources gave; what is made up (directories, here-documents)
/// gets the time of `clock`; `warn` is told what's odd but no error.
///
/// # Errors
/// [`FileError`]; the upper directory is then of no use.
pub fn copy(
    op: &CopyOp,
    source: &SourceTree<'_>,
    parent: &View,
    upper: &mut UpperWriter,
    fetched: &[Fetched],
    clock: SystemTime,
    warn: &mut dyn FnMut(String),
) -> Result<CopyStats, FileError> {
    let items = items(op, source, fetched)?;
    if items.is_empty() {
        return Ok(CopyStats::default());
    }
    let owner = op.chown.as_deref().map(|spec| owner::of_chown(spec, parent)).transpose()?;
    let chmod = match &op.chmod {
        Some(spec) => Some(Chmod::parse(spec).ok_or_else(|| FileError::Mode { spec: spec.clone() })?),
        None => None,
    };
    let mut copier = Copier {
        op,
        upper,
        exclude: excludes(op)?,
        owner,
        chmod,
        clock: super::timestamp(clock),
        warn,
        stats: CopyStats::default(),
    };
    let mut dest = copier.dest(parent, &items)?;
    for item in &items {
        copier.item(item, &mut dest)?;
    }
    Ok(copier.stats)
}

struct Copier<'c> {
    op: &'c CopyOp,
    upper: &'c UpperWriter,
    exclude: PatternMatcher,
    owner: Option<Owner>,
    chmod: Option<Chmod>,
    clock: Timestamp,
    warn: &'c mut dyn FnMut(String),
    stats: CopyStats,
}

/// Where a step copies to.
struct Dest {
    /// Without symbolic links.
    path: ImagePath,
    /// What is there now.
    kind: Option<Kind>,
    /// Whether a file goes into it, by its name.
    into: bool,
}

/// A file to be written.
struct Job<'a, 'v> {
    reader: &'v Reader<'a>,
    place: &'v Place<'a>,
    dest: ImagePath,
}

impl<'c> Copier<'c> {
    fn dest(&mut self, parent: &View, items: &[Item<'_>]) -> Result<Dest, FileError> {
        let resolved = parent.resolve(&self.op.dest)?;
        let kind = resolved.node.map(|node| node.kind());
        let files = items.iter().filter(|item| !item.is_dir()).count();
        let mut into = self.op.dest_is_dir || self.op.parents || kind == Some(Kind::Dir) || self.op.dest.is_root();
        if !into && items.len() > 1 && files > 0 {
            into = true;
            (self.warn)(format!(
                "`{}` has several sources but does not end with a slash; it is taken as a directory (write `{}/`)",
                self.op.dest, self.op.dest
            ));
        }
        Ok(Dest { path: resolved.path, kind, into })
    }

    fn item(&mut self, item: &Item<'_>, dest: &mut Dest) -> Result<(), FileError> {
        if let Item::Repository(repository) = item {
            let context = repository.context()?;
            if let Some(root) = context.root_node() {
                let place = Place::Context(context, root);
                let all = Selected { name: Vec::new(), under: Vec::new(), place, shown: ImagePath::root() };
                let fresh = self.open_dest(&item.shown(), dest)?;
                self.tree(&all, &dest.path, fresh)?;
            }
            return Ok(());
        }
        if let Item::Tree(selected) = item {
            if self.op.parents {
                return self.with_parents(selected, dest);
            }
            if selected.place.kind() == Kind::Dir {
                let fresh = self.open_dest(&item.shown(), dest)?;
                return self.tree(selected, &dest.path, fresh);
            }
        }
        if archive::is_archive(self.op, item)? {
            // `--chmod` is not for archives, so not for the folders that are made for them either.
            let chmod = self.chmod.take();
            self.open_dest(&item.shown(), dest)?;
            // `--chown` is for what the archive holds and for the destination, not for folders that it only implies.
            let implied = Attrs { uid: 0, gid: 0, ..self.made_up() };
            let stats = archive::unpack(item, &dest.path, self.upper, self.owner, &implied)?;
            self.chmod = chmod;
            self.stats.add(stats);
            return Ok(());
        }
        let path = match dest.into {
            true => {
                self.open_dest(&item.shown(), dest)?;
                dest.path.join(item.name())
            }
            false => {
                let made = self.upper.ensure_parents(&dest.path, &self.made_up());
                made.map_err(|cause| write_error(&item.shown(), &dest.path, cause))?;
                dest.path.clone()
            }
        };
        match item {
            Item::Tree(selected) => self.tree(selected, &path, false)?,
            Item::Inline { data, .. } => {
                let attrs = self.attrs_of_new(0o644, self.clock);
                self.single(&item.shown(), &path, Content::Bytes(data), &attrs)?;
            }
            // That was done above.
            Item::Repository(_) => {}
            Item::Fetched(file) => {
                // A server that doesn't say when is taken to mean 1970 (BuildKit source/http).
                let mtime = file.last_modified.map(super::timestamp).unwrap_or_default();
                let attrs = self.attrs_of_new(0o600, mtime);
                let mut body = file.open()?;
                self.single(&item.shown(), &path, Content::Reader(&mut body), &attrs)?;
            }
        }
        if !dest.into {
            dest.kind = Some(Kind::File);
        }
        Ok(())
    }

    /// Makes the destination a directory unless it is one; says whether it's new.
    fn open_dest(&mut self, from: &str, dest: &mut Dest) -> Result<bool, FileError> {
        match dest.kind {
            Some(Kind::Dir) => Ok(false),
            Some(_) => Err(FileError::DirectoryOverFile { from: from.to_owned(), dest: dest.path.clone() }),
            None => {
                let made = self.upper.ensure_dir(&dest.path, &self.made_up());
                let made = made.map_err(|cause| FileError::MakeDir { dest: dest.path.clone(), cause })?;
                self.stats.dirs += made as u64;
                dest.kind = Some(Kind::Dir);
                Ok(true)
            }
        }
    }

    fn with_parents(&mut self, selected: &Selected<'_>, dest: &mut Dest) -> Result<(), FileError> {
        // Nothing is made for what `--exclude` leaves nothing of.
        let mut visits = Walk::new(selected, &self.exclude, true)?.peekable();
        if visits.peek().is_none() {
            return Ok(());
        }
        drop(visits);
        let shown = selected.shown.to_string();
        let mut fresh = self.open_dest(&shown, dest)?;
        let mut path = dest.path.clone();
        for dir in &selected.under {
            path = path.join(dir.name());
            fresh = self.passed(&shown, dir, &path, fresh)?;
        }
        if selected.place.kind() == Kind::Dir {
            if !selected.name.is_empty() {
                path = path.join(&selected.name);
                fresh = self.dir(&shown, &selected.place, &path, fresh)?;
            }
            return self.tree(selected, &path, fresh);
        }
        self.tree(selected, &path.join(&selected.name), fresh)
    }

    /// Places what is selected at `target`: a file as that, of a directory what it holds. `fresh` says that the merged tree
    /// had nothing there.
    fn tree(&mut self, selected: &Selected<'_>, target: &ImagePath, fresh: bool) -> Result<(), FileError> {
        let shown = selected.shown.to_string();
        let exclude = std::mem::take(&mut self.exclude);
        let mut walk = Walk::new(selected, &exclude, self.op.parents)?;
        // The topmost directory, on the way to where we are, that was not there before.
        let mut fresh_root = fresh.then(|| target.clone());
        let mut batch: Vec<(Visit<'_>, ImagePath)> = Vec::new();
        // The files that have more than one name, by number.
        let mut firsts = std::collections::HashMap::new();
        let mut links: Vec<(ImagePath, usize)> = Vec::new();
        let (mut files, directories) = (0, directories_at_once(64));
        loop {
            let visit = walk.next().transpose()?;
            let done = visit.is_none();
            if let Some(visit) = visit {
                let at = if visit.rel.is_empty() { target.clone() } else { target.join(&visit.rel) };
                if fresh_root.as_ref().is_some_and(|root| !at.starts_with(root)) {
                    fresh_root = None;
                }
                if let Some(dir) = &visit.dir
                    && !visit.rel.is_empty()
                    && self.dir(&shown, dir, &at, fresh_root.is_some())?
                    && fresh_root.is_none()
                {
                    fresh_root = Some(at.clone());
                }
                for leaf in &visit.leaves {
                    let dest = if visit.dir.is_some() { at.join(leaf.place.name()) } else { at.clone() };
                    self.check(&shown, &dest, fresh_root.is_some())?;
                    match leaf.link_to {
                        Some(first) => links.push((dest, first)),
                        None if leaf.place.meta().nlink > 1 => {
                            firsts.insert(leaf.number, dest);
                        }
                        None => {}
                    }
                }
                files += visit.leaves.len();
                batch.push((visit, at));
            }
            if done || files >= 1024 || batch.len() >= directories {
                self.write(&shown, &batch)?;
                batch.clear();
                files = 0;
            }
            if done {
                break;
            }
        }
        for (path, first) in links {
            let Some(first) = firsts.get(&first) else { continue };
            self.upper.link(&path, first).map_err(|cause| write_error(&shown, &path, cause))?;
            self.stats.files += 1;
        }
        drop(walk);
        self.exclude = exclude;
        Ok(())
    }

    /// Writes the files of several directories at once.
    fn write(&mut self, shown: &str, batch: &[(Visit<'_>, ImagePath)]) -> Result<(), FileError> {
        let mut jobs = Vec::new();
        for (visit, at) in batch {
            for leaf in &visit.leaves {
                if leaf.place.kind() == Kind::Socket && matches!(leaf.place, Place::View(_)) {
                    let name = String::from_utf8_lossy(leaf.place.name()).into_owned();
                    (self.warn)(format!("the socket `{name}` in `{shown}` was left out: an image can't hold one"));
                } else if leaf.link_to.is_none() {
                    let dest = if visit.dir.is_some() { at.join(leaf.place.name()) } else { at.clone() };
                    jobs.push(Job { reader: &visit.reader, place: &leaf.place, dest });
                }
            }
        }
        let shared = Shared { upper: self.upper, owner: self.owner, chmod: self.chmod.as_ref() };
        let bytes: Result<Vec<u64>, FileError> = jobs.par_iter().with_min_len(16).map(|job| shared.place(shown, job)).collect();
        self.stats.bytes += bytes?.iter().sum::<u64>();
        self.stats.files += jobs.len() as u64;
        Ok(())
    }

    fn single(&mut self, from: &str, dest: &ImagePath, content: Content<'_>, attrs: &Attrs) -> Result<(), FileError> {
        self.check(from, dest, false)?;
        let written = self.upper.put_file(dest, content, attrs).map_err(|cause| write_error(from, dest, cause))?;
        self.stats.files += 1;
        self.stats.bytes += written;
        Ok(())
    }

    /// Makes a directory that is like `dir`, or gives one that is there already its owner, mode and time. Says whether it's
    /// new; `fresh` says that the one above is.
    fn dir(&mut self, from: &str, dir: &Place<'_>, dest: &ImagePath, fresh: bool) -> Result<bool, FileError> {
        check_name(from, dest)?;
        let there = if fresh { None } else { self.lookup(from, dest)? };
        if there.is_some_and(|meta| meta.kind != Kind::Dir) {
            return Err(FileError::DirectoryOverFile { from: from.to_owned(), dest: dest.clone() });
        }
        let attrs = attrs(&dir.meta(), dir.xattrs()?, self.owner, self.chmod.as_ref());
        self.upper.mkdir(dest, &attrs).map_err(|cause| write_error(from, dest, cause))?;
        self.stats.dirs += 1;
        Ok(there.is_none())
    }

    /// As [`Self::dir`] for a directory above what `--parents` selects: one that is there keeps its owner (fsutil copy
    /// createParentDirs).
    fn passed(&mut self, from: &str, dir: &Place<'_>, dest: &ImagePath, fresh: bool) -> Result<bool, FileError> {
        let there = if fresh { None } else { self.lookup(from, dest)?.filter(|meta| meta.kind == Kind::Dir) };
        let Some(there) = there else { return self.dir(from, dir, dest, fresh) };
        let new = attrs(&dir.meta(), dir.xattrs()?, self.owner, self.chmod.as_ref());
        let xattrs = match self.upper.parent().lookup(dest)? {
            Some(node) => node.xattrs()?,
            None => new.xattrs,
        };
        let kept = Attrs { uid: there.uid, gid: there.gid, xattrs, ..new };
        self.upper.mkdir(dest, &kept).map_err(|cause| write_error(from, dest, cause))?;
        self.stats.dirs += 1;
        Ok(false)
    }

    /// Whether a file can be placed at `dest`.
    fn check(&self, from: &str, dest: &ImagePath, fresh: bool) -> Result<(), FileError> {
        check_name(from, dest)?;
        if !fresh && self.lookup(from, dest)?.is_some_and(|meta| meta.kind == Kind::Dir) {
            return Err(FileError::FileOverDirectory { from: from.to_owned(), dest: dest.clone() });
        }
        Ok(())
    }

    fn lookup(&self, from: &str, dest: &ImagePath) -> Result<Option<Meta>, FileError> {
        self.upper.lookup(dest).map_err(|cause| write_error(from, dest, cause))
    }

    /// The attributes of a directory that no source describes.
    fn made_up(&self) -> Attrs {
        let owner = self.owner.unwrap_or_default();
        let mode = self.chmod.as_ref().map_or(0o755, Chmod::of_made_up);
        Attrs { uid: owner.uid, gid: owner.gid, mode, mtime: Some(self.clock), xattrs: Xattrs::new() }
    }

    fn attrs_of_new(&self, mode: u32, mtime: Timestamp) -> Attrs {
        let mode = self.chmod.as_ref().map_or(mode, |chmod| chmod.apply(mode, false));
        Attrs { mode, mtime: Some(mtime), ..self.made_up() }
    }
}

/// What the threads that write have in common.
struct Shared<'s> {
    upper: &'s UpperWriter,
    owner: Option<Owner>,
    chmod: Option<&'s Chmod>,
}

impl Shared<'_> {
    /// Writes one file; gives the bytes of its content.
    fn place(&self, from: &str, job: &Job<'_, '_>) -> Result<u64, FileError> {
        let Job { reader, place, dest } = job;
        let failed = |cause| write_error(from, dest, cause);
        let meta = place.meta();
        if meta.kind == Kind::File {
            return match (reader, place) {
                (Reader::Context(reader), Place::Context(_, ContextNode::Leaf { name, leaf, .. })) => {
                    let written = reader.read(name, leaf, |file, meta| {
                        let meta = Meta { uid: 0, gid: 0, ..*meta };
                        let attrs = attrs(&meta, reader.xattrs(name, file)?, self.owner, self.chmod);
                        self.upper.put_file(dest, Content::File { file, meta: &meta }, &attrs).map_err(failed)
                    });
                    written.map(|(bytes, ..)| bytes)
                }
                (_, Place::View(node)) => {
                    let attrs = attrs(&meta, node.xattrs()?, self.owner, self.chmod);
                    let file = node.open()?;
                    self.upper.put_file(dest, Content::File { file: &file, meta: &meta }, &attrs).map_err(failed)
                }
                (_, Place::Context(..)) => Ok(0),
            };
        }
        let attrs = attrs(&meta, place.xattrs()?, self.owner, self.chmod);
        match meta.kind {
            // BuildKit's context transfer knows no sockets: they arrive as empty files.
            Kind::Socket => {
                self.upper.put_file(dest, Content::Bytes(&[]), &attrs).map_err(failed)?;
            }
            Kind::Symlink => self.upper.symlink(dest, &place.read_link()?, &attrs).map_err(failed)?,
            kind => self.upper.mknod(dest, kind, meta.rdev, &attrs).map_err(failed)?,
        }
        Ok(0)
    }
}

/// The attributes of what is copied. `--chmod` doesn't concern symbolic links.
fn attrs(meta: &Meta, xattrs: Xattrs, owner: Option<Owner>, chmod: Option<&Chmod>) -> Attrs {
    let mut attrs = Attrs::of(meta, xattrs);
    if let Some(owner) = owner {
        (attrs.uid, attrs.gid) = (owner.uid, owner.gid);
    }
    if let Some(chmod) = chmod
        && meta.kind != Kind::Symlink
    {
        attrs.mode = chmod.apply(meta.mode, meta.kind == Kind::Dir);
    }
    attrs
}

fn check_name(from: &str, dest: &ImagePath) -> Result<(), FileError> {
    match dest.file_name() {
        Some(name) if name.starts_with(whiteout::PREFIX) => {
            Err(FileError::ReservedName { from: from.to_owned(), dest: dest.clone() })
        }
        _ => Ok(()),
    }
}

fn write_error(from: &str, dest: &ImagePath, cause: UpperError) -> FileError {
    FileError::Write { from: from.to_owned(), dest: dest.clone(), cause }
}

impl Item<'_> {
    fn is_dir(&self) -> bool {
        match self {
            Item::Tree(selected) => selected.place.kind() == Kind::Dir,
            Item::Repository(_) => true,
            Item::Inline { .. } | Item::Fetched(_) => false,
        }
    }

    /// The name in a destination directory.
    fn name(&self) -> &[u8] {
        match self {
            Item::Tree(selected) => &selected.name,
            Item::Inline { name, .. } => name.as_bytes(),
            Item::Fetched(file) => &file.name,
            Item::Repository(_) => b"",
        }
    }

    /// What messages call it.
    pub(super) fn shown(&self) -> String {
        match self {
            Item::Tree(selected) => selected.shown.to_string(),
            Item::Inline { name, .. } => format!("<<{name}"),
            Item::Fetched(file) => file.shown.clone(),
            Item::Repository(repository) => repository.shown().to_owned(),
        }
    }
}

impl CopyStats {
    /// About what it takes on a disk.
    pub(crate) fn on_disk(&self) -> u64 {
        const BLOCK: u64 = 4096;
        self.bytes.saturating_add(self.files.saturating_add(self.dirs).saturating_mul(BLOCK))
    }

    fn add(&mut self, other: CopyStats) {
        self.files += other.files;
        self.dirs += other.dirs;
        self.bytes += other.bytes;
    }
}
