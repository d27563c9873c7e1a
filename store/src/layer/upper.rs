//! Hides how a change to the merged tree is written as an overlay's upper directory: parents copied up, whiteouts, opaque marks.
//!
//! Paths given here are paths of the merged tree without symbolic links in them, as [`UpperWriter::resolve`] or
//! [`View::resolve`](crate::view::View::resolve) give them. Directories get their attributes in [`UpperWriter::finish`], so
//! that neither their mode nor their time stands in the way of what's written into them.

mod state;

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kiln_oci::path::ImagePath;
use rustix::io::Errno;

use self::state::{Dir, Entry, Open, ROOT, State};
use super::whiteout::{self, WhiteoutStyle};
use crate::rootdir::{self, Attrs, FsError, Kind, Meta, RootDir, Timestamp};
use crate::view::{Node, View, ViewError};

/// Descriptors that the writer keeps open at most, beside the one being used; fewer where few can be had.
const MAX_DESCRIPTORS: usize = 96;

/// Files of so many bytes are written only where there's room for them.
const WORTH_ASKING: u64 = 32 << 20;

/// Why a change can't be written.
#[derive(Debug, thiserror::Error)]
pub enum UpperError {
    /// The system refused.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// The layers below can't be read.
    #[error(transparent)]
    View(#[from] ViewError),
    /// A parent of the path is a file or a symbolic link.
    #[error("`{path}` lies below `{at}`, which is not a directory")]
    NotADirectory {
        /// The path to write.
        path: ImagePath,
        /// The part of it that is no directory.
        at: ImagePath,
    },
    /// More than 40 symbolic links, most likely a loop.
    #[error("`{0}` has too many levels of symbolic links")]
    TooManyLinks(ImagePath),
    /// The root can only be a directory.
    #[error("`/` can only be a directory")]
    Root,
    /// A hard link to nothing.
    #[error("hard link `{path}` points to `{target}`, which does not exist")]
    LinkTargetMissing {
        /// The link.
        path: ImagePath,
        /// What it should be another name of.
        target: ImagePath,
    },
    /// A hard link to itself or to a directory.
    #[error("hard link `{path}` points to `{target}`, which is {what}")]
    LinkTargetUnfit {
        /// The link.
        path: ImagePath,
        /// What it should be another name of.
        target: ImagePath,
        /// Why that can't be.
        what: &'static str,
    },
    /// The bytes of a file could not be read from where they come.
    #[error("cannot read the content of `{path}`")]
    Content {
        /// The file to write.
        path: ImagePath,
        /// What the source said.
        #[source]
        source: io::Error,
    },
    /// The name means a deleted file in a layer.
    #[error("`{0}` cannot stand in a layer: names that begin with `.wh.` mean deleted files there")]
    ReservedName(ImagePath),
    /// A character device 0:0.
    #[error("`{0}` is the device 0:0, which means a deleted file to an overlay")]
    WhiteoutDevice(ImagePath),
    /// A file that can't be written whole.
    #[error("`{path}` has {needed} bytes, and the disk has room for {room}")]
    NoRoom {
        /// The file.
        path: ImagePath,
        /// Its bytes.
        needed: u64,
        /// The bytes that are free where the store is.
        room: u64,
    },
    /// uid or gid 4294967295, which chown(2) reads as "leave it".
    #[error("`{0}` is owned by user or group 4294967295, which is no owner")]
    NoOwner(ImagePath),
}

type Result<T> = std::result::Result<T, UpperError>;

/// The bytes of a file to write.
pub enum Content<'a> {
    /// Bytes in memory.
    Bytes(&'a [u8]),
    /// All of a file, of the size it had when it was looked at, by shared blocks or in the kernel where that's possible.
    File {
        /// Open for reading, at its beginning.
        file: &'a File,
        /// Its `stat`: size and blocks say how to copy.
        meta: &'a Meta,
    },
    /// Whatever the reader gives until its end.
    Reader(&'a mut dyn Read),
}

impl std::fmt::Debug for Content<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Content::Bytes(bytes) => write!(f, "Bytes({})", bytes.len()),
            Content::File { meta, .. } => write!(f, "File({})", meta.size),
            Content::Reader(_) => f.write_str("Reader"),
        }
    }
}

/// Writes changes to the tree of `parent` into an upper directory. All methods take `&self`; threads may write at once as long
/// as no two write the same name.
#[derive(Debug)]
pub struct UpperWriter {
    parent: View,
    style: WhiteoutStyle,
    state: Mutex<State>,
    replaced: AtomicU64,
}

/// A regular file being written.
#[derive(Debug)]
pub struct NewFile {
    dir: Arc<RootDir>,
    name: Box<[u8]>,
    file: File,
}

impl NewFile {
    /// The file, open for writing.
    pub fn file(&self) -> impl Write + AsFd + '_ {
        &self.file
    }

    /// An error of an `operation` on it.
    pub fn error(&self, operation: &'static str, source: impl Into<io::Error>) -> FsError {
        self.dir.error(operation, &self.name, source)
    }

    /// Gives it its attributes, which writing into it would have changed.
    pub fn finish(self, attrs: &Attrs) -> Result<()> {
        Ok(self.dir.set_attrs_of_file(&self.file, &self.name, attrs)?)
    }
}

/// The attributes of a directory that nobody described: 0755, root's.
pub fn implied_dir(mtime: Option<Timestamp>) -> Attrs {
    Attrs { mode: 0o755, mtime, ..Attrs::default() }
}

impl UpperWriter {
    /// Writes into `upper`, over the tree that `parent` shows. The upper's root takes the attributes of the parent's root, over
    /// an empty parent those of [`implied_dir`].
    pub fn new(upper: RootDir, parent: View, style: WhiteoutStyle) -> Result<Self> {
        let attrs = match parent.root()? {
            Some(node) => attrs_of(&node)?,
            None => implied_dir(None),
        };
        let root = Dir {
            up: ROOT,
            name: (*b"").into(),
            children: HashMap::new(),
            attrs,
            explicit: false,
            opaque: false,
            removed: false,
        };
        let below = parent.root_dir().clone();
        let open = Open { dir: Arc::new(upper), below: (below.descriptors() > 0).then_some(below) };
        let state = State {
            dirs: vec![root],
            open: HashMap::from([(ROOT, open)]),
            order: VecDeque::new(),
            descriptors: 0,
            last: (ImagePath::root(), ROOT),
        };
        Ok(Self { parent, style, state: Mutex::new(state), replaced: AtomicU64::new(0) })
    }

    /// The tree below.
    pub fn parent(&self) -> &View {
        &self.parent
    }

    /// Follows every symbolic link of `path` in the merged tree (what was written so far, and the parent). Names that don't
    /// exist are kept; a file in the middle is an error.
    pub fn resolve(&self, path: &ImagePath) -> Result<ImagePath> {
        let mut state = self.lock();
        if state.find(path).is_some() {
            return Ok(path.clone());
        }
        state.resolve(path, self.style)
    }

    /// Follows every symbolic link of `path` but the last name.
    pub fn resolve_parent(&self, path: &ImagePath) -> Result<ImagePath> {
        match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => Ok(self.resolve(&parent)?.join(name)),
            _ => Ok(path.clone()),
        }
    }

    /// What's at `path` in the merged tree, not followed.
    pub fn lookup(&self, path: &ImagePath) -> Result<Option<Meta>> {
        Ok(self.lock().merged(path, self.style)?.map(|entry| entry.meta()))
    }

    /// Makes the directories above `path` exist in the upper: those of the parent keep owner, mode, time and attributes, the
    /// others get `missing`. Gives the number of directories that existed nowhere before.
    pub fn ensure_parents(&self, path: &ImagePath, missing: &Attrs) -> Result<usize> {
        match path.parent() {
            Some(parent) => self.ensure_dir(&parent, missing),
            None => Ok(0),
        }
    }

    /// Makes the directory `path` and those above it exist in the upper, as [`UpperWriter::ensure_parents`] does.
    pub fn ensure_dir(&self, path: &ImagePath, missing: &Attrs) -> Result<usize> {
        check_owner(path, missing)?;
        let mut state = self.lock();
        Ok(state.enter(path, missing, self.style)?.1)
    }

    /// Makes `path` a directory with these attributes. One that exists (in the upper or below) is kept with all that's in it;
    /// anything else of that name is replaced, and what was below it stays hidden.
    pub fn mkdir(&self, path: &ImagePath, attrs: &Attrs) -> Result<()> {
        check_owner(path, attrs)?;
        let mut state = self.lock();
        let id = match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => {
                if self.style.reserves(name) {
                    return Err(UpperError::ReservedName(path.clone()));
                }
                let up = state.enter(&parent, &implied_dir(attrs.mtime), self.style)?.0;
                state.make_dir(up, name, attrs, self.style)?
            }
            _ => ROOT,
        };
        let dir = &mut state.dirs[id];
        dir.attrs = attrs.clone();
        dir.explicit = true;
        Ok(())
    }

    /// Writes a regular file, in place of whatever has the name in the upper; says how many bytes it has.
    ///
    /// Missing parents are created as [`implied_dir`]; call [`UpperWriter::ensure_parents`] first to have them otherwise.
    pub fn put_file(&self, path: &ImagePath, content: Content<'_>, attrs: &Attrs) -> Result<u64> {
        let new = self.create(path, attrs)?;
        let size = write_content(&new, content, path)?;
        new.finish(attrs)?;
        Ok(size)
    }

    /// Creates a regular file to be written and then finished with the same attributes, for content that [`Content`] doesn't know.
    pub fn create(&self, path: &ImagePath, attrs: &Attrs) -> Result<NewFile> {
        check_owner(path, attrs)?;
        let (dir, name) = self.place(path, attrs)?;
        let file = match dir.create_file_for(name, attrs.mode) {
            Err(e) if e.errno() == Some(Errno::EXIST) => {
                self.clear(path)?;
                dir.create_file_for(name, attrs.mode)?
            }
            done => done?,
        };
        Ok(NewFile { dir, name: name.into(), file })
    }

    /// Writes a symbolic link, in place of whatever has the name in the upper.
    pub fn symlink(&self, path: &ImagePath, target: &[u8], attrs: &Attrs) -> Result<()> {
        check_owner(path, attrs)?;
        let (dir, name) = self.place(path, attrs)?;
        self.replacing(path, || dir.symlink(name, target))?;
        Ok(dir.set_attrs_of_node(name, Kind::Symlink, attrs)?)
    }

    /// Writes a fifo or device node. The device 0:0 is a whiteout to an overlay, so that one is refused.
    pub fn mknod(&self, path: &ImagePath, kind: Kind, rdev: (u32, u32), attrs: &Attrs) -> Result<()> {
        check_owner(path, attrs)?;
        let (dir, name) = self.place(path, attrs)?;
        if kind == Kind::Char && rdev == (0, 0) {
            return Err(UpperError::WhiteoutDevice(path.clone()));
        }
        if !matches!(kind, Kind::Fifo | Kind::Char | Kind::Block) {
            return Err(dir.error("create node", name, Errno::INVAL).into());
        }
        self.replacing(path, || dir.mknod(name, kind, rdev))?;
        Ok(dir.set_attrs_of_node(name, kind, attrs)?)
    }

    /// Makes `path` one more name of `target`. One that is only in the parent is copied up first; where the file system allows
    /// no further link, a copy takes its place.
    pub fn link(&self, path: &ImagePath, target: &ImagePath) -> Result<()> {
        let unfit = |what| UpperError::LinkTargetUnfit { path: path.clone(), target: target.clone(), what };
        if path == target {
            return Err(unfit("itself"));
        }
        let (from, from_name) = self.copy_up(path, target)?;
        let meta = from.stat(&from_name)?;
        if meta.is_none_or(|m| m.kind == Kind::Dir) {
            return Err(unfit("a directory"));
        }
        let (dir, name) = self.place(path, &implied_dir(None))?;
        match self.replacing(path, || dir.link(name, &from, &from_name)) {
            Err(UpperError::Fs(e)) if e.errno() == Some(Errno::MLINK) => {}
            done => return done,
        }
        let meta = meta.ok_or_else(|| unfit("gone"))?;
        let attrs = Attrs::of(&meta, super::xattr::portable(from.xattrs(&from_name)?));
        match meta.kind {
            Kind::Symlink => self.symlink(path, &from.read_link(&from_name)?, &attrs),
            Kind::File => {
                let file = from.open_file(&from_name)?;
                self.put_file(path, Content::File { file: &file, meta: &meta }, &attrs).map(|_| ())
            }
            kind => self.mknod(path, kind, meta.rdev, &attrs),
        }
    }

    /// Says that what the parent has at `path` is gone. What this writer put there stays, and nothing below shows through it.
    pub fn whiteout(&self, path: &ImagePath) -> Result<()> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(UpperError::Root) };
        let mut state = self.lock();
        let up = state.enter(&parent, &implied_dir(None), self.style)?.0;
        if let Some(&id) = state.dirs[up].children.get(name) {
            return state.set_opaque(id, true, self.style);
        }
        let open = state.open(up)?;
        match whiteout::create(&open.dir, name, self.style) {
            Err(e) if e.errno() == Some(Errno::EXIST) => Ok(()),
            done => Ok(done?),
        }
    }

    /// Says that nothing of what the parent has in the directory `path` shows through. What this writer put there stays.
    pub fn opaque(&self, path: &ImagePath) -> Result<()> {
        let mut state = self.lock();
        let id = state.enter(path, &implied_dir(None), self.style)?.0;
        state.set_opaque(id, false, self.style)
    }

    /// Refuses a file for which there's no room, before the disk is full of the first part of it: a kilobyte of an archive can say
    /// that it holds a petabyte. Small files aren't worth the question.
    pub fn check_room(&self, path: &ImagePath, needed: u64) -> Result<()> {
        if needed < WORTH_ASKING {
            return Ok(());
        }
        let room = self.lock().open_upper(ROOT)?.room()?;
        if needed <= room { Ok(()) } else { Err(UpperError::NoRoom { path: path.clone(), needed, room }) }
    }

    /// How many times something this upper had was replaced by something else of the same name.
    pub fn replaced(&self) -> u64 {
        self.replaced.load(Ordering::Relaxed)
    }

    /// Gives every directory its attributes, and writes down what no file could be given. Without it the upper isn't finished.
    pub fn finish(self) -> Result<()> {
        let mut state = self.lock();
        let mut alive = vec![true; state.dirs.len()];
        for (id, dir) in state.dirs.iter().enumerate() {
            alive[id] = alive[dir.up] && !dir.removed;
        }
        // Children come after their parents, so going backwards a mode that shuts a directory comes after all inside it.
        for id in (0..alive.len()).rev().filter(|id| alive[*id]) {
            let dir = state.open_upper(id)?;
            dir.set_attrs_of_self(&state.dirs[id].attrs)?;
        }
        Ok(state.open_upper(ROOT)?.save_records()?)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The directory and name to write `path` by.
    fn place<'p>(&self, path: &'p ImagePath, attrs: &Attrs) -> Result<(Arc<RootDir>, &'p [u8])> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(UpperError::Root) };
        if self.style.reserves(name) {
            return Err(UpperError::ReservedName(path.clone()));
        }
        let mut state = self.lock();
        let id = state.enter(&parent, &implied_dir(attrs.mtime), self.style)?.0;
        let dir = state.open(id)?.dir;
        whiteout::unmark(&dir, name, self.style)?;
        Ok((dir, name))
    }

    fn replacing(&self, path: &ImagePath, create: impl Fn() -> std::result::Result<(), FsError>) -> Result<()> {
        match create() {
            Err(e) if e.errno() == Some(Errno::EXIST) => {
                self.clear(path)?;
                Ok(create()?)
            }
            done => Ok(done?),
        }
    }

    /// Removes what the upper has at `path`.
    fn clear(&self, path: &ImagePath) -> Result<()> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(UpperError::Root) };
        let mut state = self.lock();
        let up = state.enter(&parent, &implied_dir(None), self.style)?.0;
        if !state.open_upper(up)?.stat(name)?.is_some_and(|m| m.is_whiteout_device()) {
            self.replaced.fetch_add(1, Ordering::Relaxed);
        }
        state.clear(up, name)
    }

    /// Makes sure that the upper has `target`, copying it from the parent if need be; `path` is the link that wants it.
    fn copy_up(&self, path: &ImagePath, target: &ImagePath) -> Result<(Arc<RootDir>, Vec<u8>)> {
        let missing = || UpperError::LinkTargetMissing { path: path.clone(), target: target.clone() };
        let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
            return Err(UpperError::LinkTargetUnfit { path: path.clone(), target: target.clone(), what: "a directory" });
        };
        let found = self.lock().merged(target, self.style)?;
        let node = match found.ok_or_else(missing)? {
            Entry::Upper(_) => {
                let mut state = self.lock();
                let id = state.enter(&parent, &implied_dir(None), self.style)?.0;
                return Ok((state.open(id)?.dir, name.to_vec()));
            }
            Entry::Below(node) => node,
        };
        let attrs = attrs_of(&node)?;
        match node.kind() {
            Kind::File => {
                let file = node.open()?;
                self.put_file(target, Content::File { file: &file, meta: node.meta() }, &attrs)?;
            }
            Kind::Symlink => self.symlink(target, &node.read_link()?, &attrs)?,
            Kind::Dir => {
                return Err(UpperError::LinkTargetUnfit { path: path.clone(), target: target.clone(), what: "a directory" });
            }
            kind => self.mknod(target, kind, node.meta().rdev, &attrs)?,
        }
        let (dir, name) = self.place(target, &attrs)?;
        Ok((dir, name.to_vec()))
    }
}

fn attrs_of(node: &Node) -> Result<Attrs> {
    Ok(Attrs::of(node.meta(), node.xattrs()?))
}

fn check_owner(path: &ImagePath, attrs: &Attrs) -> Result<()> {
    if attrs.uid == u32::MAX || attrs.gid == u32::MAX { Err(UpperError::NoOwner(path.clone())) } else { Ok(()) }
}

fn write_content(new: &NewFile, content: Content<'_>, path: &ImagePath) -> Result<u64> {
    let error = |operation, e: io::Error| new.error(operation, e);
    let file = &new.file;
    match content {
        Content::Bytes(bytes) => {
            (&*file).write_all(bytes).map_err(|e| error("write", e))?;
            Ok(bytes.len() as u64)
        }
        Content::File { file: from, meta } => {
            let sparse = meta.blocks.saturating_mul(512) < meta.size;
            Ok(rootdir::copy_file(from, file, meta.size, sparse).map_err(|e| error("copy into", e))?)
        }
        Content::Reader(reader) => {
            let mut buffer = vec![0; 64 << 10];
            let mut total = 0;
            loop {
                let n = match reader.read(&mut buffer) {
                    Ok(0) => return Ok(total),
                    Ok(n) => n,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    Err(source) => return Err(UpperError::Content { path: path.clone(), source }),
                };
                (&*file).write_all(&buffer[..n]).map_err(|e| error("write", e))?;
                total += n as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests;
