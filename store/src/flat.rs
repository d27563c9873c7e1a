//! Hides that a root file system can be had without an overlay: as a copy of the merged tree, and later as what differs from it.
//!
//! [`grow`] writes layers onto a tree (all of them onto an empty one is the copy), and keeps of each file what `lstat` said when
//! it was done. [`changes::collect`] compares that with what is there after a command, without reading any file that the command
//! left alone, and moves what differs into an upper directory. The tree that is left is the next step's, once the layer that was
//! just taken from it has been written back: [`Pool`] keeps it, so that a row of steps costs one copy.

mod changes;
mod grow;
mod leaf;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::layer::whiteout::WhiteoutStyle;
use crate::layout::LayerDir;
use crate::rootdir::{FsError, Kind, Meta, RootDir, Timestamp};
use crate::session::DraftDir;
use crate::snapshot::LayerId;
use crate::view::{Node, View, ViewError};

pub(crate) use changes::CollectError;
use changes::collect;
use grow::grow;
pub(crate) use grow::{copy, copy_below, copy_file};

/// How long the kernel may give one time to all changes of a file; a tick, of which there are at least a hundred a second.
const TICK: Duration = Duration::from_millis(20);

/// Most trees that wait for a next step.
const MOST_WAITING: usize = 4;

/// Waits until the kernel's clock for files is past this moment (some milliseconds), so that what is made from now on was born later
/// than all there is. Answers the earliest time of a change that is surely seen by its time.
fn next_tick() -> Timestamp {
    // The exact time: the coarse clock may be behind what files get, which since Linux 6.13 is exact where somebody looked.
    let this = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let coarse = || rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    let is_past = |now: rustix::time::Timespec| (now.tv_sec, now.tv_nsec) > (this.tv_sec, this.tv_nsec);
    let began = Instant::now();
    while !is_past(coarse()) && began.elapsed() < 2 * TICK {
        std::thread::sleep(Duration::from_micros(500));
    }
    let now = SystemTime::now() - TICK;
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp { secs: i64::try_from(since.as_secs()).unwrap_or(i64::MAX), nanos: since.subsec_nanos() }
}

/// The clock that files are born by.
fn coarse_now() -> Timestamp {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    Timestamp { secs: now.tv_sec, nanos: u32::try_from(now.tv_nsec).unwrap_or_default() }
}

/// Whether `now` is the file that `was` was, whatever was done to it.
fn is_same_file(was: &Meta, now: &Meta) -> bool {
    (was.dev, was.ino, was.kind) == (now.dev, now.ino, now.kind)
}

/// What a tree was when it was finished.
#[derive(Debug)]
pub(crate) struct Index {
    /// Of the directory itself.
    seen: Option<Seen>,
    entries: BTreeMap<Box<[u8]>, Entry>,
}

/// What a directory was.
#[derive(Debug, Clone, Copy)]
struct Seen {
    meta: Meta,
    /// Removed and made again it may have the same inode number.
    born: Option<Timestamp>,
}

impl Seen {
    fn of(dir: &RootDir) -> Result<Seen, FsError> {
        Ok(Seen { meta: dir.meta()?, born: dir.born()? })
    }
}

#[derive(Debug)]
enum Entry {
    Dir(Index),
    Leaf(Meta),
}

impl Index {
    /// That of a tree which is not there yet.
    pub(crate) fn empty() -> Index {
        Index { seen: None, entries: BTreeMap::new() }
    }

    /// How many files and directories.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.entries.values().map(|entry| if let Entry::Dir(dir) = entry { 1 + dir.len() } else { 1 }).sum()
    }
}

/// A directory below the tree that is changed, opened when somebody asks for it.
struct Below<'a> {
    parent: Option<&'a Below<'a>>,
    name: &'a [u8],
    node: std::sync::OnceLock<Option<Node>>,
}

impl<'a> Below<'a> {
    fn root(view: &View) -> Result<Below<'static>, ViewError> {
        let node = view.root()?.map(|root| root.opened()).transpose()?;
        Ok(Below { parent: None, name: b"", node: std::sync::OnceLock::from(node) })
    }

    fn child(&'a self, name: &'a [u8]) -> Below<'a> {
        Below { parent: Some(self), name, node: std::sync::OnceLock::new() }
    }

    /// The directory, if there is one.
    fn dir(&self) -> Result<Option<&Node>, ViewError> {
        if let Some(node) = self.node.get() {
            return Ok(node.as_ref());
        }
        let found = match self.parent {
            Some(parent) => parent.entry(self.name)?.filter(|node| node.kind() == Kind::Dir),
            None => None,
        };
        let opened = found.map(|node| node.opened()).transpose()?;
        Ok(self.node.get_or_init(|| opened).as_ref())
    }

    /// What it has by this name.
    fn entry(&self, name: &[u8]) -> Result<Option<Node>, ViewError> {
        match self.dir()? {
            Some(dir) => dir.child(name),
            None => Ok(None),
        }
    }
}

/// A tree for a command to change.
#[derive(Debug)]
pub(crate) struct Tree {
    /// Where it is.
    pub(crate) draft: DraftDir,
    /// What it was.
    pub(crate) index: Index,
    /// Change times from here on say nothing.
    since: Timestamp,
    /// What was born from here on is not a copy.
    began: Timestamp,
}

impl Tree {
    /// A tree in its draft, of which `index` says what it is.
    pub(crate) fn new(draft: DraftDir, index: Index) -> Tree {
        Tree { draft, index, since: next_tick(), began: coarse_now() }
    }

    /// Brings a tree that waited up to date: it has all below `layers`, the bottom first.
    pub(crate) fn advance(&mut self, tree: &RootDir, layers: &[RootDir], style: WhiteoutStyle) -> Result<(), ViewError> {
        for layer in layers {
            grow(layer, tree, &mut self.index, style)?;
        }
        self.since = next_tick();
        self.began = coarse_now();
        Ok(())
    }

    /// When the command could begin: all that is older was there before.
    pub(crate) fn began(&self) -> Timestamp {
        self.began
    }

    /// Where it is.
    pub(crate) fn path(&self) -> PathBuf {
        LayerDir(self.draft.path().to_owned()).tree()
    }

    /// Moves what differs from `parent` into `upper` ([`collect`]).
    pub(crate) fn collect(
        &mut self,
        tree: &RootDir,
        parent: &View,
        upper: &RootDir,
        style: WhiteoutStyle,
    ) -> Result<(), CollectError> {
        collect(tree, &mut self.index, self.since, parent, upper, style)
    }
}

/// Trees that wait for their next step. A tree is for one step at a time, so it is taken out.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    /// Each with the layer that was taken from it and has to be written back first; the oldest first.
    waiting: Mutex<Vec<(LayerId, Tree)>>,
}

impl Pool {
    /// Keeps the tree of which `layer` was made.
    pub(crate) fn put(&self, layer: LayerId, tree: Tree) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.push((layer, tree));
        let gone = if waiting.len() > MOST_WAITING { Some(waiting.remove(0)) } else { None };
        drop(waiting);
        // Deleting takes a while, and others need the lock.
        drop(gone);
    }

    /// The tree from which the fewest layers are missing of those in `ids` (the bottom first), and how many of them it has.
    pub(crate) fn take(&self, ids: &[LayerId]) -> Option<(usize, Tree)> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let place = |layer: &LayerId| ids.iter().position(|id| id == layer);
        let (at, has) =
            waiting.iter().enumerate().filter_map(|(at, (layer, _))| Some((at, place(layer)?))).max_by_key(|(_, has)| *has)?;
        Some((has, waiting.remove(at).1))
    }
}

/// An entry that is gone by now.
fn vanished(dir: &RootDir, name: &[u8]) -> FsError {
    dir.error("find", name, rustix::io::Errno::NOENT)
}

#[cfg(test)]
mod tests;
