//! Hides what a command did to a tree: finds it without reading what it left alone, and moves it into an upper directory.
//!
//! The result is what an overlay would have left, as `settle` in the builder makes it one. Where the two can't be the same, for a
//! plain directory keeps the names of a file together and an overlay parts them, the overlay is followed: of a changed file with
//! several names each changed name is a file of its own, unless names were added to it.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

use kiln_oci::path::ImagePath;
use rayon::prelude::*;

use super::leaf::Leaf;
use super::{Below, Entry, Index, Seen, is_same_file, vanished};
use crate::layer::same::{is_same, same_attributes};
use crate::layer::whiteout::{self, WhiteoutStyle};
use crate::layer::xattr::portable;
use crate::rootdir::{Attrs, FsError, Kind, Meta, RootDir, Timestamp};
use crate::view::{View, ViewError};

/// Why the changes can't be had.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// The tree can't be read.
    #[error(transparent)]
    View(#[from] ViewError),
    /// The command made something that no layer can hold.
    #[error("`{path}` cannot stand in a layer: {reason}")]
    Unfit {
        /// What it made.
        path: ImagePath,
        /// Why not.
        reason: &'static str,
    },
}

impl From<FsError> for CollectError {
    fn from(error: FsError) -> Self {
        ViewError::from(error).into()
    }
}

type Result<T> = std::result::Result<T, CollectError>;

/// A file by device and inode.
type Inode = (u64, u64);

/// What became of a directory that is still the same one.
struct DirChange {
    meta: Meta,
    /// It is another, and after [`DirChange::find_changes`], or something in it.
    changed: bool,
    entries: Vec<(Box<[u8]>, Change)>,
}

impl DirChange {
    /// Finds out which directories something has changed in, which only those know who know all names of each file.
    fn find_changes(&mut self, groups: &HashMap<Inode, Group>, path: &ImagePath) -> bool {
        for (name, change) in &mut self.entries {
            let here = path.join(&name[..]);
            self.changed |= match change {
                Change::Same(_) => false,
                Change::Dir(dir) => dir.find_changes(groups, &here),
                Change::Linked { inode, original, changed, .. } => {
                    *changed |= !*original || groups.get(inode).is_some_and(|group| group.joins(&here));
                    *changed
                }
                Change::Gone | Change::Leaf | Change::Fresh => true,
            };
        }
        self.changed
    }
}

enum Change {
    /// It isn't there any more.
    Gone,
    /// Nothing: it was touched and is as it was.
    Same(Meta),
    /// It is new, or another.
    Leaf,
    /// A directory that wasn't there.
    Fresh,
    Dir(DirChange),
    /// A file with several names, of which `original` says that it was this one before, and `changed` that it was different then.
    Linked {
        inode: Inode,
        meta: Meta,
        original: bool,
        changed: bool,
    },
}

/// The names of one file.
#[derive(Debug, Default)]
struct Group {
    fresh: BTreeSet<ImagePath>,
    originals: BTreeSet<ImagePath>,
    /// How many names it lost.
    lost: usize,
    /// Its first name in the upper, once it is there, when the inode itself has to stay in the tree.
    copied: Option<ImagePath>,
}

impl Group {
    /// The old name that goes with the new ones, if one does: names that were lost became new ones by renaming.
    fn leader(&self) -> Option<&ImagePath> {
        self.originals.first().filter(|_| self.fresh.len() > self.lost)
    }

    /// Whether the name is one of those that go into the layer together.
    fn joins(&self, path: &ImagePath) -> bool {
        self.fresh.contains(path) || (!self.fresh.is_empty() && self.leader() == Some(path))
    }

    /// Whether all names that there are go together, so that the file itself can be moved.
    fn moves(&self) -> bool {
        !self.fresh.is_empty() && self.originals.iter().all(|path| self.joins(path))
    }
}

/// Moves what differs from `parent`, of which `tree` was a copy as `index` says, into the empty directory `upper`. `since` is the
/// earliest time that a change may have.
///
/// The tree then lacks what was moved, and the layer that `upper` is put into has to be written back ([`super::grow`]).
pub(super) fn collect(
    tree: &RootDir,
    index: &mut Index,
    since: Timestamp,
    parent: &View,
    upper: &RootDir,
    style: WhiteoutStyle,
) -> Result<()> {
    let below = Below::root(parent)?;
    let scan = Scan { since, style, groups: Mutex::default() };
    let mut change = scan.directory(tree, &tree.meta()?, index, &below, &ImagePath::root())?;
    let groups = scan.groups.into_inner().unwrap_or_else(PoisonError::into_inner);
    change.find_changes(&groups, &ImagePath::root());
    let mut mover = Mover { style, groups, upper };
    mover.directory(change, tree, index, Some(upper), &below, &ImagePath::root())
}

struct Scan {
    since: Timestamp,
    style: WhiteoutStyle,
    groups: Mutex<HashMap<Inode, Group>>,
}

impl Scan {
    fn is_untouched(&self, was: &Meta, now: &Meta) -> bool {
        // On a file system that knows only seconds a time says nothing of what was done within one.
        let is_coarse = was.ctime.nanos == 0 && was.ctime.secs + 1 >= self.since.secs;
        is_same_file(was, now) && was.ctime == now.ctime && was.ctime < self.since && !is_coarse
    }

    fn directory(&self, dir: &RootDir, meta: &Meta, index: &Index, below: &Below<'_>, path: &ImagePath) -> Result<DirChange> {
        let untouched = index.seen.is_some_and(|was| self.is_untouched(&was.meta, meta));
        let attributes = match (&index.seen, below.dir()) {
            _ if untouched => false,
            (Some(was), below) if same_attributes(&was.meta, meta) => match below? {
                Some(below) => portable(dir.xattrs_of_self()?) != below.xattrs()?,
                None => false,
            },
            _ => true,
        };
        // A directory that is as it was has the names that it had.
        let names: Vec<Box<[u8]>> = match untouched {
            true => index.entries.keys().cloned().collect(),
            false => dir.names()?.into_iter().map(Vec::into_boxed_slice).collect(),
        };
        let entry = |name: &[u8]| -> Result<Option<(Box<[u8]>, Change)>> {
            let change = self.entry(dir, name, index.entries.get(name), below, path)?;
            Ok(change.map(|change| (name.into(), change)))
        };
        let found: Result<Vec<_>> = match names.len() < 16 {
            true => names.iter().map(|name| entry(name)).collect(),
            false => names.par_iter().map(|name| entry(name)).collect(),
        };
        let mut entries: Vec<_> = found?.into_iter().flatten().collect();
        if !untouched {
            let there: BTreeSet<&[u8]> = names.iter().map(|name| &name[..]).collect();
            for (name, was) in index.entries.iter().filter(|(name, _)| !there.contains(&name[..])) {
                self.lose(was);
                entries.push((name.clone(), Change::Gone));
            }
        }
        Ok(DirChange { meta: *meta, changed: attributes, entries })
    }

    fn entry(
        &self,
        dir: &RootDir,
        name: &[u8],
        was: Option<&Entry>,
        below: &Below<'_>,
        parent: &ImagePath,
    ) -> Result<Option<Change>> {
        let Some(now) = dir.stat(name)? else {
            if let Some(was) = was {
                self.lose(was);
            }
            return Ok(was.map(|_| Change::Gone));
        };
        let path = parent.join(name);
        let original = match was {
            Some(Entry::Dir(was)) if was.seen.is_some_and(|seen| is_same_file(&seen.meta, &now)) => {
                let inner = dir.child(name)?;
                let is_untouched = was.seen.is_some_and(|seen| self.is_untouched(&seen.meta, &now));
                if !is_untouched && was.seen.is_some_and(|seen| inner.born().ok() != Some(seen.born)) {
                    was.entries.values().for_each(|entry| self.lose(entry));
                    self.fresh(&inner, &path)?;
                    return Ok(Some(Change::Fresh));
                }
                let change = self.directory(&inner, &now, was, &below.child(name), &path)?;
                // Nothing at all, or only what need not be remembered.
                let nothing =
                    !change.changed && change.entries.is_empty() && was.seen.is_some_and(|seen| seen.meta.ctime == now.ctime);
                return Ok((!nothing).then_some(Change::Dir(change)));
            }
            Some(Entry::Leaf(was)) if self.is_untouched(was, &now) => return Ok(None),
            Some(Entry::Leaf(was)) if is_same_file(was, &now) => Some(was),
            Some(was) => {
                self.lose(was);
                None
            }
            None => None,
        };
        self.check(&path, name, &now)?;
        if now.kind == Kind::Dir {
            self.fresh(&dir.child(name)?, &path)?;
            return Ok(Some(Change::Fresh));
        }
        let is_linked = now.nlink > 1 || original.is_some_and(|was| was.nlink > 1);
        let same = match below.entry(name)? {
            // A new name of a file is a change even where the bytes are the same: another name goes with it.
            Some(old) if original.is_some() || now.nlink == 1 => is_same(dir, name, &now, &old)?,
            _ => false,
        };
        if !is_linked {
            return Ok(Some(if same { Change::Same(now) } else { Change::Leaf }));
        }
        let inode = (now.dev, now.ino);
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        let group = groups.entry(inode).or_default();
        let names = if original.is_some() { &mut group.originals } else { &mut group.fresh };
        names.insert(path);
        Ok(Some(Change::Linked { inode, meta: now, original: original.is_some(), changed: !same }))
    }

    /// Looks through a directory that will be moved as a whole.
    fn fresh(&self, dir: &RootDir, path: &ImagePath) -> Result<()> {
        self.strip(dir)?;
        for name in dir.names()? {
            let now = dir.stat(&name)?.ok_or_else(|| vanished(dir, &name))?;
            let path = path.join(&name);
            self.check(&path, &name, &now)?;
            if now.kind == Kind::Dir {
                self.fresh(&dir.child(&name)?, &path)?;
            } else if now.nlink > 1 {
                let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
                groups.entry((now.dev, now.ino)).or_default().fresh.insert(path);
            }
        }
        Ok(())
    }

    /// A directory that says to an overlay what no command may say.
    fn strip(&self, dir: &RootDir) -> Result<()> {
        let prefix: &[u8] = match self.style {
            WhiteoutStyle::Device => b"trusted.overlay.",
            WhiteoutStyle::UserXattr => b"user.overlay.",
            WhiteoutStyle::Names => return Ok(()),
        };
        for key in dir.xattrs_of_self()?.into_keys().filter(|key| key.starts_with(prefix)) {
            dir.remove_xattr_of_self(&key)?;
        }
        Ok(())
    }

    fn check(&self, path: &ImagePath, name: &[u8], now: &Meta) -> Result<()> {
        let unfit = |reason| Err(CollectError::Unfit { path: path.clone(), reason });
        if self.style.reserves(name) {
            return unfit("names that begin with `.wh.` mean deleted files there");
        }
        if now.is_whiteout_device() {
            return unfit("the device 0:0 means a deleted file there");
        }
        Ok(())
    }

    /// Notes that names of files with several are gone.
    fn lose(&self, was: &Entry) {
        match was {
            Entry::Dir(dir) => dir.entries.values().for_each(|entry| self.lose(entry)),
            Entry::Leaf(was) if was.nlink > 1 => {
                let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
                groups.entry((was.dev, was.ino)).or_default().lost += 1;
            }
            Entry::Leaf(_) => {}
        }
    }
}

struct Mover<'a> {
    style: WhiteoutStyle,
    groups: HashMap<Inode, Group>,
    upper: &'a RootDir,
}

impl Mover<'_> {
    fn directory(
        &mut self,
        change: DirChange,
        tree: &RootDir,
        index: &mut Index,
        upper: Option<&RootDir>,
        below: &Below<'_>,
        path: &ImagePath,
    ) -> Result<()> {
        for (name, change) in change.entries {
            let here = path.join(&name);
            match (change, upper) {
                (Change::Same(meta), _) => drop(index.entries.insert(name, Entry::Leaf(meta))),
                (Change::Dir(inner), upper) => {
                    let Some(Entry::Dir(known)) = index.entries.get_mut(&name) else { continue };
                    let made = match upper {
                        Some(upper) if inner.changed => {
                            upper.mkdir(&name)?;
                            Some(upper.child(&name)?)
                        }
                        _ => None,
                    };
                    self.directory(inner, &tree.child(&name)?, known, made.as_ref(), &below.child(&name), &here)?;
                }
                (Change::Linked { inode, meta, original, changed }, upper) => {
                    let joins = self.groups.get(&inode).is_some_and(|group| group.joins(&here));
                    let Some(upper) = upper.filter(|_| changed) else {
                        index.entries.insert(name, Entry::Leaf(meta));
                        continue;
                    };
                    if original && !joins {
                        Leaf::of_entry(tree, &name, &meta)?.write(upper, &name)?;
                        tree.unlink(&name)?;
                    } else {
                        tree.rename(&name, upper, &name)?;
                        self.part(inode, &here)?;
                    }
                    index.entries.remove(&name);
                }
                (Change::Gone, Some(upper)) => {
                    whiteout::create(upper, &name, self.style)?;
                    index.entries.remove(&name);
                }
                (Change::Leaf, Some(upper)) => {
                    tree.rename(&name, upper, &name)?;
                    index.entries.remove(&name);
                }
                (Change::Fresh, Some(upper)) => {
                    tree.rename(&name, upper, &name)?;
                    index.entries.remove(&name);
                    let dir = upper.child(&name)?;
                    if below.entry(&name)?.is_some_and(|old| old.kind() == Kind::Dir) {
                        let time = dir.meta()?.mtime;
                        whiteout::set_opaque(&dir, self.style)?;
                        dir.set_mtime_of_self(time)?;
                    }
                    self.part_all(&here)?;
                }
                // A directory without a change has none in it.
                (Change::Gone | Change::Leaf | Change::Fresh, None) => {}
            }
        }
        match upper {
            Some(upper) => upper.set_attrs_of_self(&Attrs::of(&change.meta, portable(tree.xattrs_of_self()?)))?,
            None => {
                // A time alone is no change, and must not come into the next layer either.
                if let Some(was) = index.seen.filter(|was| was.meta.mtime != change.meta.mtime) {
                    tree.set_mtime_of_self(was.meta.mtime)?;
                }
                index.seen = Some(Seen::of(tree)?);
            }
        }
        Ok(())
    }

    /// The file `path` of the upper, just moved there, gets an inode of its own if that of the tree has to stay there.
    fn part(&mut self, inode: Inode, path: &ImagePath) -> Result<()> {
        let (Some(group), Some(parent), Some(name)) = (self.groups.get_mut(&inode), path.parent(), path.file_name()) else {
            return Ok(());
        };
        if group.moves() {
            return Ok(());
        }
        let dir = self.upper.walk(&parent)?;
        let before = dir.meta()?;
        let meta = dir.stat(name)?.ok_or_else(|| vanished(&dir, name))?;
        let leaf = Leaf::of_entry(&dir, name, &meta)?;
        dir.unlink(name)?;
        match &group.copied {
            Some(first) => {
                let (Some(at), Some(of)) = (first.parent(), first.file_name()) else { return Ok(()) };
                dir.link(name, &self.upper.walk(&at)?, of)?;
            }
            None => {
                leaf.write(&dir, name)?;
                group.copied = Some(path.clone());
            }
        }
        Ok(dir.set_mtime_of_self(before.mtime)?)
    }

    /// The same for all files below a directory that was moved as a whole.
    fn part_all(&mut self, dir: &ImagePath) -> Result<()> {
        let all: Vec<(Inode, ImagePath)> = self
            .groups
            .iter()
            .filter(|(_, group)| !group.moves())
            .flat_map(|(inode, group)| group.fresh.iter().filter(|path| path.starts_with(dir)).map(|path| (*inode, path.clone())))
            .collect();
        all.into_iter().try_for_each(|(inode, path)| self.part(inode, &path))
    }
}
