//! Hides how files are written onto a tree that may have others by their names, by many hands, with hard links among them.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use kiln_oci::path::ImagePath;
use rayon::prelude::*;
use rustix::io::Errno;

use super::leaf::Leaf;
use super::{Entry, Index, Seen, vanished};
use crate::layer::whiteout::{self, Listed, WhiteoutStyle};
use crate::layer::xattr::portable;
use crate::rootdir::{Attrs, Kind, Meta, RootDir, Xattrs};
use crate::view::{Node, View, ViewError};

type Result<T> = std::result::Result<T, ViewError>;

/// Fewer entries than this are one thread's.
const FEW: usize = 16;

/// A file with several names, to be written when all others are.
struct Linked {
    path: ImagePath,
    group: (u64, u64),
}

type Waiting = Mutex<Vec<Linked>>;

/// Copies all that `view` shows into the empty directory `to`.
pub(crate) fn copy(view: &View, to: &RootDir) -> Result<Index> {
    let Some(root) = view.root()? else { return Ok(Index { seen: Some(Seen::of(to)?), ..Index::empty() }) };
    copy_below(&root.opened()?, to)
}

/// Copies the file `node`, which is no directory, to `name` in `to`.
pub(crate) fn copy_file(node: &Node, to: &RootDir, name: &[u8]) -> Result<()> {
    Leaf::of_node(node)?.write(to, name)?;
    Ok(())
}

/// Copies the directory `node` and all below it into the empty directory `to`.
pub(crate) fn copy_below(node: &Node, to: &RootDir) -> Result<Index> {
    let waiting = Waiting::default();
    let mut index = directory(node, to, &ImagePath::root(), &waiting)?;
    let again = |path: &ImagePath| {
        let mut at = node.clone();
        for name in path.components() {
            at = at.child(name)?.ok_or_else(|| vanished(to, name))?;
        }
        Leaf::of_node(&at)
    };
    link(waiting, to, &mut index, &again)?;
    Ok(index)
}

fn directory(from: &Node, to: &RootDir, path: &ImagePath, waiting: &Waiting) -> Result<Index> {
    let entry = |node: &Node| -> Result<Option<(Box<[u8]>, Entry)>> {
        let name = node.name();
        let made = if node.kind() == Kind::Dir {
            to.mkdir(name)?;
            Entry::Dir(directory(&node.opened()?, &to.child(name)?, &path.join(name), waiting)?)
        } else {
            match new_leaf(to, path, name, node.meta(), || Leaf::of_node(node), waiting)? {
                Some(seen) => Entry::Leaf(seen),
                None => return Ok(None),
            }
        };
        Ok(Some((name.into(), made)))
    };
    let nodes = from.read_dir()?;
    let entries = spread(&nodes, entry)?;
    let seen = finish(to, from.meta(), from.xattrs()?)?;
    Ok(Index { seen: Some(seen), entries: entries.into_iter().flatten().collect() })
}

/// Writes the layer at `from` onto the tree, of which `index` says what it was; what it says afterwards is true.
pub(crate) fn grow(from: &RootDir, to: &RootDir, index: &mut Index, style: WhiteoutStyle) -> Result<()> {
    let waiting = Waiting::default();
    layer(from, &from.meta()?, to, &ImagePath::root(), index, style, &waiting)?;
    let again = |path: &ImagePath| {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(vanished(from, b"").into()) };
        let dir = from.walk(&parent)?;
        let meta = dir.stat(name)?.ok_or_else(|| vanished(from, name))?;
        Ok(Leaf::of_entry(&dir, name, &meta)?)
    };
    link(waiting, to, index, &again)
}

fn layer(
    from: &RootDir,
    meta: &Meta,
    to: &RootDir,
    path: &ImagePath,
    index: &mut Index,
    style: WhiteoutStyle,
    waiting: &Waiting,
) -> Result<()> {
    if whiteout::is_opaque(from, style)? {
        for name in to.names()? {
            to.remove_all(&name)?;
        }
        index.entries.clear();
    }
    let listed = whiteout::list(from, style)?;
    // Each entry takes with it what the index knows of the name, and brings what is true then.
    let work: Vec<(&Listed, Mutex<Option<Entry>>)> =
        listed.iter().map(|listed| (listed, Mutex::new(index.entries.remove(&listed.name[..])))).collect();
    let entry = |(listed, known): &(&Listed, Mutex<Option<Entry>>)| -> Result<Option<(Box<[u8]>, Entry)>> {
        let known = known.lock().unwrap_or_else(PoisonError::into_inner).take();
        let name = &listed.name[..];
        let found = if listed.is_marker { None } else { from.stat(name)? };
        if whiteout::whiteout_entry(from, listed, found.as_ref(), style)? {
            to.remove_all(name)?;
            return Ok(None);
        }
        let found = found.ok_or_else(|| vanished(from, name))?;
        let made = if found.kind == Kind::Dir {
            let mut below = match (known, to.stat(name)?) {
                (Some(Entry::Dir(below)), Some(there)) if there.kind == Kind::Dir => below,
                (_, there) => {
                    if there.is_some() {
                        to.remove_all(name)?;
                    }
                    to.mkdir(name)?;
                    Index::empty()
                }
            };
            layer(&from.child(name)?, &found, &to.child(name)?, &path.join(name), &mut below, style, waiting)?;
            Entry::Dir(below)
        } else {
            to.remove_all(name)?;
            match new_leaf(to, path, name, &found, || Ok(Leaf::of_entry(from, name, &found)?), waiting)? {
                Some(seen) => Entry::Leaf(seen),
                None => return Ok(None),
            }
        };
        Ok(Some((name.into(), made)))
    };
    index.entries.extend(spread(&work, entry)?.into_iter().flatten());
    index.seen = Some(finish(to, meta, from.xattrs_of_self()?)?);
    Ok(())
}

/// Does it for each, on several threads where there are many.
fn spread<T: Sync, R: Send>(items: &[T], act: impl Fn(&T) -> Result<R> + Sync + Send) -> Result<Vec<R>> {
    if items.len() < FEW { items.iter().map(act).collect() } else { items.par_iter().map(act).collect() }
}

/// Writes a file, unless it has several names; `None` when it wasn't (yet).
fn new_leaf(
    to: &RootDir,
    path: &ImagePath,
    name: &[u8],
    meta: &Meta,
    leaf: impl FnOnce() -> Result<Leaf>,
    waiting: &Waiting,
) -> Result<Option<Meta>> {
    if meta.nlink > 1 {
        let linked = Linked { path: path.join(name), group: (meta.dev, meta.ino) };
        waiting.lock().unwrap_or_else(PoisonError::into_inner).push(linked);
        return Ok(None);
    }
    if !leaf()?.write(to, name)? {
        return Ok(None);
    }
    Ok(Some(to.stat(name)?.ok_or_else(|| vanished(to, name))?))
}

/// Gives a directory its attributes, in place of any that it had.
fn finish(to: &RootDir, meta: &Meta, xattrs: Xattrs) -> Result<Seen> {
    let wanted = portable(xattrs);
    for key in portable(to.xattrs_of_self()?).into_keys().filter(|key| !wanted.contains_key(key)) {
        to.remove_xattr_of_self(&key)?;
    }
    to.set_attrs_of_self(&Attrs::of(meta, wanted))?;
    Ok(Seen::of(to)?)
}

/// Writes the files that have several names, and leaves no trace on the directories that they are in.
fn link(waiting: Waiting, to: &RootDir, index: &mut Index, again: &dyn Fn(&ImagePath) -> Result<Leaf>) -> Result<()> {
    let mut waiting = waiting.into_inner().unwrap_or_else(PoisonError::into_inner);
    waiting.sort_by(|a, b| a.path.cmp(&b.path));
    let mut firsts: HashMap<(u64, u64), ImagePath> = HashMap::new();
    for Linked { path, group } in &waiting {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { continue };
        let dir = to.walk(&parent)?;
        let before = dir.meta()?.mtime;
        let linked = match firsts.get(group) {
            Some(first) => {
                let (Some(at), Some(of)) = (first.parent(), first.file_name()) else { continue };
                match dir.link(name, &to.walk(&at)?, of) {
                    // As many names as the file system allows.
                    Err(e) if e.errno() == Some(Errno::MLINK) => false,
                    done => done.map(|()| true)?,
                }
            }
            None => false,
        };
        if !linked && again(path)?.write(&dir, name)? {
            firsts.insert(*group, path.clone());
        }
        dir.set_mtime_of_self(before)?;
    }
    // Only now, for each further name changed the file once more.
    for Linked { path, .. } in &waiting {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { continue };
        let dir = to.walk(&parent)?;
        let Some(known) = find(index, &parent) else { continue };
        known.seen = Some(Seen::of(&dir)?);
        if let Some(meta) = dir.stat(name)? {
            known.entries.insert(name.into(), Entry::Leaf(meta));
        }
    }
    Ok(())
}

/// What is known of a directory.
pub(super) fn find<'a>(index: &'a mut Index, path: &ImagePath) -> Option<&'a mut Index> {
    let mut at = index;
    for name in path.components() {
        match at.entries.get_mut(name) {
            Some(Entry::Dir(below)) => at = below,
            _ => return None,
        }
    }
    Some(at)
}
