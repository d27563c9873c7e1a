//! Hides which directories an upper has, what each is, and which of their descriptors are open.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use kiln_oci::path::ImagePath;
use rustix::io::Errno;

use super::super::whiteout::{self, WhiteoutStyle};
use super::{MAX_DESCRIPTORS, Result, UpperError, attrs_of, implied_dir};
use crate::descriptors::directories_at_once;
use crate::rootdir::{Attrs, Kind, Meta, RootDir, Timestamp};
use crate::view::{MergedDir, Node, Steps, join};

#[derive(Debug)]
pub(super) struct State {
    pub(super) dirs: Vec<Dir>,
    pub(super) open: HashMap<usize, Open>,
    /// The order in which `open` was filled, without the root.
    pub(super) order: VecDeque<usize>,
    pub(super) descriptors: usize,
    /// The directory that was used last: most writes go to the same one.
    pub(super) last: (ImagePath, usize),
}

/// A directory that exists in the upper.
#[derive(Debug)]
pub(super) struct Dir {
    pub(super) up: usize,
    pub(super) name: Box<[u8]>,
    pub(super) children: HashMap<Box<[u8]>, usize>,
    pub(super) attrs: Attrs,
    /// The attributes were asked for, not copied up or made up for a missing parent.
    pub(super) explicit: bool,
    /// What the layers below have at this path doesn't show through.
    pub(super) opaque: bool,
    pub(super) removed: bool,
}

/// The descriptors of a directory in the upper and of the same path below.
#[derive(Debug, Clone)]
pub(super) struct Open {
    pub(super) dir: Arc<RootDir>,
    pub(super) below: Option<Arc<MergedDir>>,
}

pub(super) const ROOT: usize = 0;

/// A name of the merged tree.
pub(super) enum Entry {
    Upper(Meta),
    Below(Node),
}

impl Entry {
    pub(super) fn meta(&self) -> Meta {
        match self {
            Entry::Upper(meta) => *meta,
            Entry::Below(node) => *node.meta(),
        }
    }
}

impl State {
    /// The directory `path`, if the upper has it and this writer knows.
    pub(super) fn find(&mut self, path: &ImagePath) -> Option<usize> {
        if self.last.0 == *path {
            return Some(self.last.1);
        }
        let mut id = ROOT;
        for name in path.components() {
            id = *self.dirs[id].children.get(name)?;
        }
        self.last = (path.clone(), id);
        Some(id)
    }

    /// Makes `path` a directory of the upper; `missing` is for what exists nowhere. Gives it, and how many existed nowhere.
    pub(super) fn enter(&mut self, path: &ImagePath, missing: &Attrs, style: WhiteoutStyle) -> Result<(usize, usize)> {
        if let Some(id) = self.find(path) {
            return Ok((id, 0));
        }
        let (mut id, mut created) = (ROOT, 0);
        for (depth, name) in path.components().enumerate() {
            if let Some(&child) = self.dirs[id].children.get(name) {
                id = child;
                continue;
            }
            let not_a_directory = || {
                let names: Vec<_> = path.components().take(depth + 1).map(<[u8]>::to_vec).collect();
                UpperError::NotADirectory { path: path.clone(), at: join(&names) }
            };
            if style.reserves(name) {
                return Err(UpperError::ReservedName(path.clone()));
            }
            match self.entry(id, name, style)? {
                Some(entry) if entry.meta().kind != Kind::Dir => return Err(not_a_directory()),
                Some(_) => {}
                None => created += 1,
            }
            id = self.make_dir(id, name, missing, style)?;
        }
        self.last = (path.clone(), id);
        Ok((id, created))
    }

    /// Makes `name` in `up` a directory of the upper: known already, adopted, copied up, or new with the attributes `missing`.
    pub(super) fn make_dir(&mut self, up: usize, name: &[u8], missing: &Attrs, style: WhiteoutStyle) -> Result<usize> {
        if let Some(&id) = self.dirs[up].children.get(name) {
            return Ok(id);
        }
        let Open { dir, below } = self.open(up)?;
        let below = match below {
            Some(below) => below.lookup(name)?.filter(|n| n.kind() == Kind::Dir),
            None => None,
        };
        let mut opaque = false;
        let mut attrs = match &below {
            Some(node) => attrs_of(node)?,
            None => missing.clone(),
        };
        match dir.mkdir(name) {
            Ok(()) => {
                if whiteout::unmark(&dir, name, style)? {
                    attrs = missing.clone();
                    if below.is_some() {
                        whiteout::set_opaque(&dir.child(name)?, style)?;
                        opaque = true;
                    }
                }
            }
            Err(e) if e.errno() == Some(Errno::EXIST) => match dir.stat(name)? {
                // It was there before this writer.
                Some(meta) if meta.kind == Kind::Dir => {
                    let child = dir.child(name)?;
                    opaque = whiteout::is_opaque(&child, style)?;
                    attrs = Attrs::of(&meta, super::super::xattr::portable(child.xattrs_of_self()?));
                }
                // A file or a whiteout hid what's below, and the directory that replaces it must go on hiding it.
                _ => {
                    dir.unlink(name)?;
                    dir.mkdir(name)?;
                    attrs = missing.clone();
                    if below.is_some() {
                        whiteout::set_opaque(&dir.child(name)?, style)?;
                        opaque = true;
                    }
                }
            },
            Err(e) => return Err(e.into()),
        }
        let id = self.dirs.len();
        self.dirs.push(Dir { up, name: name.into(), children: HashMap::new(), attrs, explicit: false, opaque, removed: false });
        self.dirs[up].children.insert(name.into(), id);
        Ok(id)
    }

    /// What `name` in the directory `id` is in the merged tree.
    pub(super) fn entry(&mut self, id: usize, name: &[u8], style: WhiteoutStyle) -> Result<Option<Entry>> {
        // A marker is a file of the tree and none of the image: nothing can be linked to it.
        if style.reserves(name) {
            return Ok(None);
        }
        let Open { dir, below } = self.open(id)?;
        if let Some(meta) = dir.stat(name)? {
            return Ok((!whiteout::is_whiteout(&dir, name, &meta, style)?).then_some(Entry::Upper(meta)));
        }
        if whiteout::is_marked(&dir, name, style)? {
            return Ok(None);
        }
        match below {
            Some(below) => Ok(below.lookup(name)?.map(Entry::Below)),
            None => Ok(None),
        }
    }

    /// What `path` is in the merged tree; a path through a symbolic link or a file leads nowhere.
    pub(super) fn merged(&mut self, path: &ImagePath, style: WhiteoutStyle) -> Result<Option<Entry>> {
        let mut id = ROOT;
        let mut names = path.components().peekable();
        while let Some(name) = names.next() {
            if let Some(&child) = self.dirs[id].children.get(name) {
                id = child;
                continue;
            }
            let entry = self.entry(id, name, style)?;
            if names.peek().is_none() {
                return Ok(entry);
            }
            match entry {
                Some(Entry::Upper(meta)) if meta.kind == Kind::Dir => {
                    id = self.make_dir(id, name, &implied_dir(None), style)?;
                }
                Some(Entry::Below(mut node)) => {
                    for name in names {
                        match (node.kind() == Kind::Dir).then(|| node.child(name)).transpose()?.flatten() {
                            Some(child) => node = child,
                            None => return Ok(None),
                        }
                    }
                    return Ok(Some(Entry::Below(node)));
                }
                _ => return Ok(None),
            }
        }
        Ok(Some(Entry::Upper(self.open_upper(id)?.meta()?)))
    }

    /// Hides what lies below the directory `id`, and the directory below itself if it's `gone`.
    pub(super) fn set_opaque(&mut self, id: usize, gone: bool, style: WhiteoutStyle) -> Result<()> {
        whiteout::set_opaque(&*self.open_upper(id)?, style)?;
        self.dirs[id].opaque = true;
        // What lies below no longer shows through, here or in any directory inside.
        self.open.retain(|open, _| *open == ROOT);
        self.order.clear();
        self.descriptors = 0;
        // The mark counts as if it had come first (image-spec layer.md, "Opaque Whiteout"), so the attributes that were copied
        // from below before it came are forgotten.
        let mut hidden = vec![false; self.dirs.len()];
        hidden[id] = true;
        for at in id..self.dirs.len() {
            if at != id {
                hidden[at] = hidden[self.dirs[at].up];
            }
            if hidden[at] && !self.dirs[at].explicit && (at != id || gone) {
                self.dirs[at].attrs = implied_dir(Some(Timestamp::default()));
            }
        }
        if id == ROOT
            && let Some(root) = self.open.get_mut(&ROOT)
        {
            root.below = None;
        }
        Ok(())
    }

    pub(super) fn clear(&mut self, up: usize, name: &[u8]) -> Result<()> {
        if let Some(id) = self.dirs[up].children.remove(name) {
            self.dirs[id].removed = true;
            self.last = (ImagePath::root(), ROOT);
        }
        Ok(self.open_upper(up)?.remove_all(name)?)
    }

    /// Opens the directory `id` here and below.
    pub(super) fn open(&mut self, id: usize) -> Result<Open> {
        let mut chain = Vec::new();
        let mut at = id;
        let mut open = loop {
            match self.open.get(&at) {
                Some(open) => break open.clone(),
                None => chain.push(at),
            }
            at = self.dirs[at].up;
        };
        for &at in chain.iter().rev() {
            let dir = open.dir.child(&self.dirs[at].name)?;
            let below = match &open.below {
                Some(below) if !self.dirs[at].opaque => match below.lookup(&self.dirs[at].name)? {
                    Some(node) if node.kind() == Kind::Dir => Some(node.open_dir()?),
                    _ => None,
                },
                _ => None,
            };
            open = Open { dir: Arc::new(dir), below };
            self.descriptors += open.descriptors();
            self.open.insert(at, open.clone());
            self.order.push_back(at);
            while self.descriptors > directories_at_once(MAX_DESCRIPTORS) && self.order.len() > 1 {
                if let Some(gone) = self.order.pop_front().and_then(|id| self.open.remove(&id)) {
                    self.descriptors -= gone.descriptors();
                }
            }
        }
        Ok(open)
    }

    /// Opens the directory `id` here only.
    pub(super) fn open_upper(&mut self, id: usize) -> Result<Arc<RootDir>> {
        if let Some(open) = self.open.get(&id) {
            return Ok(open.dir.clone());
        }
        let mut names = Vec::new();
        let mut at = id;
        while at != ROOT {
            names.push(self.dirs[at].name.to_vec());
            at = self.dirs[at].up;
        }
        names.reverse();
        let root = self.open(ROOT)?.dir;
        Ok(Arc::new(root.walk(&join(&names))?))
    }

    /// Follows the symbolic links of `path`: where this writer has a directory there, else below.
    pub(super) fn resolve(&mut self, path: &ImagePath, style: WhiteoutStyle) -> Result<ImagePath> {
        #[derive(Clone)]
        enum At {
            Upper(usize),
            Below(Arc<MergedDir>),
            Missing,
        }
        let mut steps = Steps::new(path);
        let mut done: Vec<Vec<u8>> = Vec::new();
        let mut trail = vec![At::Upper(ROOT)];
        while let Some(name) = steps.next() {
            if name == b".." {
                done.pop();
                trail.truncate(done.len() + 1);
                continue;
            }
            // `trail` is one longer than `done`: it begins with the root.
            let at = trail.last().cloned().unwrap_or(At::Upper(ROOT));
            let (next, link) = match at {
                At::Missing => (At::Missing, None),
                At::Upper(id) => match self.dirs[id].children.get(&name[..]) {
                    Some(&child) => (At::Upper(child), None),
                    None => match self.entry(id, &name, style)? {
                        None => (At::Missing, None),
                        Some(Entry::Upper(meta)) if meta.kind == Kind::Symlink => {
                            (At::Missing, Some(self.open_upper(id)?.read_link(&name)?))
                        }
                        Some(Entry::Upper(meta)) if meta.kind == Kind::Dir => {
                            (At::Upper(self.make_dir(id, &name, &implied_dir(None), style)?), None)
                        }
                        Some(Entry::Upper(_)) => return Err(not_a_directory(path, &done, name)),
                        Some(Entry::Below(node)) => below(&node, path, &done, &name)?,
                    },
                },
                At::Below(dir) => match dir.lookup(&name)? {
                    None => (At::Missing, None),
                    Some(node) => below(&node, path, &done, &name)?,
                },
            };
            let Some(target) = link else {
                done.push(name);
                trail.push(next);
                continue;
            };
            if !steps.follow(&target) {
                return Err(UpperError::TooManyLinks(path.clone()));
            }
            if target.first() == Some(&b'/') {
                done.clear();
                trail.truncate(1);
            }
        }
        return Ok(join(&done));

        fn below(node: &Node, path: &ImagePath, done: &[Vec<u8>], name: &[u8]) -> Result<(At, Option<Vec<u8>>)> {
            match node.kind() {
                Kind::Dir => Ok((At::Below(node.open_dir()?), None)),
                Kind::Symlink => Ok((At::Missing, Some(node.read_link()?))),
                _ => Err(not_a_directory(path, done, name.to_vec())),
            }
        }

        fn not_a_directory(path: &ImagePath, done: &[Vec<u8>], name: Vec<u8>) -> UpperError {
            UpperError::NotADirectory { path: path.clone(), at: join(&[done, &[name]].concat()) }
        }
    }
}

impl Open {
    pub(super) fn descriptors(&self) -> usize {
        1 + self.below.as_ref().map_or(0, |b| b.descriptors())
    }
}
