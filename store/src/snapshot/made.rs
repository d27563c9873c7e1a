//! Hides whose the files are that a command made where owners are recorded: the kernel thinks that all are one user's.

use std::collections::HashMap;

use crate::layer::whiteout::{self, WhiteoutStyle};
use crate::owner::Owner;
use crate::rootdir::{Kind, Meta, RootDir, Timestamp, Xattrs};
use crate::view::{Node, View, ViewError};

/// An overlay marks so what it copied up from below (empty where it may not say from where).
const COPIED_UP: [&[u8]; 2] = [b"user.overlay.origin", b"trusted.overlay.origin"];
/// The bit of a directory that gives its group to what is made in it (inode(7)).
const SET_GROUP: u32 = 0o2000;

/// What is known of a command that has ended.
pub(super) struct Made {
    style: WhiteoutStyle,
    /// Where it ran in a copy: when it began.
    since: Option<Timestamp>,
    seen: HashMap<u64, Owner>,
    maker: Owner,
}

impl Made {
    /// It ran as `maker`, and gave symbolic links and fifos to the owners of `seen`, by inode. `since` is when it began, where
    /// it wrote into a copy of the merged tree.
    pub(super) fn new(style: WhiteoutStyle, since: Option<Timestamp>, seen: &[(u64, u32, u32)], maker: Owner) -> Self {
        let seen = seen.iter().map(|&(inode, uid, gid)| (inode, Owner { uid, gid })).collect();
        Self { style, since, seen, maker }
    }

    /// Writes down the owners of all in `written`, an overlay's upper directory or a copy, over `parent`: those that it gave, those
    /// that came up from below with a file that has no room for a record, and its own for all that is new.
    pub(super) fn record(&self, written: &RootDir, parent: &View) -> Result<(), ViewError> {
        self.directory(written, &written.meta()?, parent.root()?.as_ref())?;
        Ok(written.save_records()?)
    }

    /// Goes through a directory whose own owner is known.
    fn directory(&self, dir: &RootDir, meta: &Meta, below: Option<&Node>) -> Result<(), ViewError> {
        // A new file has the group of a directory that says so, and the others' is their maker's.
        let group = if meta.mode & SET_GROUP != 0 { meta.gid } else { self.maker.gid };
        let maker = Owner { gid: group, ..self.maker };
        let below = below.filter(|_| !whiteout::is_opaque(dir, self.style).unwrap_or(false)).map(Node::opened).transpose()?;
        // What the directory below has of files that hold no record; read once, and seldom.
        let mut links: Option<Vec<Node>> = None;
        for listed in whiteout::list(dir, self.style)? {
            let name = &listed.name[..];
            let meta = if listed.is_marker { None } else { dir.stat(name)? };
            if whiteout::whiteout_entry(dir, &listed, meta.as_ref(), self.style)? {
                continue;
            }
            let Some(meta) = meta else { continue };
            let old = below.as_ref().map(|below| below.child(name)).transpose()?.flatten();
            let beside = || {
                if links.is_none() {
                    let all = below.as_ref().map(Node::read_dir).transpose()?.unwrap_or_default();
                    links = Some(all.into_iter().filter(|node| matches!(node.kind(), Kind::Symlink | Kind::Fifo)).collect());
                }
                Ok(links.iter().flatten().filter(|node| node.meta().mtime == meta.mtime).cloned().collect())
            };
            let owner = self.owner((dir, name, &meta), old.as_ref(), beside, maker)?;
            if let Some(owner) = owner.filter(|owner| (owner.uid, owner.gid) != (meta.uid, meta.gid)) {
                dir.set_owner(name, meta.kind, owner)?;
            }
            if meta.kind == Kind::Dir {
                let child = dir.child(name)?;
                self.directory(&child, &child.meta()?, old.as_ref().filter(|old| old.kind() == Kind::Dir))?;
            }
        }
        Ok(())
    }

    /// Whose the file is; `None` if that stands there already. `old` has its name below.
    fn owner(
        &self,
        (dir, name, meta): (&RootDir, &[u8], &Meta),
        old: Option<&Node>,
        beside: impl FnOnce() -> Result<Vec<Node>, ViewError>,
        maker: Owner,
    ) -> Result<Option<Owner>, ViewError> {
        let born = if self.since.is_some() { dir.born_of(name)? } else { None };
        // In a copy it is known, and a record of what had the name before says nothing.
        let is_new = born.map(|born| Some(born) >= self.since);
        if matches!(meta.kind, Kind::Symlink | Kind::Fifo | Kind::Socket) {
            if let Some(owner) = self.seen.get(&meta.ino) {
                return Ok(Some(*owner));
            }
            if is_new == Some(true) {
                return Ok(Some(maker));
            }
            if dir.has_record(name, meta.kind)? {
                return Ok(None);
            }
            if let Some(old) = old
                && is_same(dir, name, meta, old)?
            {
                return Ok(Some(owner_of(old)));
            }
            // Given another name, or one more: it has its time to the nanosecond.
            for node in beside()? {
                if is_same(dir, name, meta, &node)? {
                    return Ok(Some(owner_of(&node)));
                }
            }
            return Ok(Some(maker));
        }
        if maker == Owner::ROOT || dir.has_record(name, meta.kind)? {
            return Ok(None);
        }
        if let Some(is_new) = is_new {
            return Ok(is_new.then_some(maker));
        }
        let xattrs: Xattrs = dir.xattrs(name)?;
        if COPIED_UP.iter().any(|key| xattrs.contains_key(*key)) {
            return Ok(None);
        }
        // A file with several names leaves none of these marks, and not every overlay makes them.
        let came_up = match old {
            Some(old) if meta.kind == Kind::Dir && old.kind() == Kind::Dir => {
                !whiteout::is_opaque(&dir.child(name)?, self.style)?
            }
            Some(old) => is_same(dir, name, meta, old)?,
            None => false,
        };
        Ok((!came_up).then_some(maker))
    }
}

fn owner_of(node: &Node) -> Owner {
    Owner { uid: node.meta().uid, gid: node.meta().gid }
}

/// Whether the file is most likely the one below, copied up: what tells two files from each other but their owner is the same.
fn is_same(dir: &RootDir, name: &[u8], meta: &Meta, old: &Node) -> Result<bool, ViewError> {
    let was = old.meta();
    if (meta.kind, meta.size, meta.mtime) != (was.kind, was.size, was.mtime) {
        return Ok(false);
    }
    Ok(meta.kind != Kind::Symlink || dir.read_link(name)? == old.read_link()?)
}

#[cfg(test)]
mod tests;
