//! Hides how a tree comes into being apart from all others, and appears at its place as a whole.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use kiln_oci::path::ImagePath;

use super::made::Made;
use super::{Known, LayerId, Layers, Stored};
use crate::Store;
use crate::error::{Error, Result};
use crate::flat::{self, Tree};
use crate::layer::whiteout::WhiteoutStyle;
use crate::layer::xattr;
use crate::layout::LayerDir;
use crate::lock::{TransientLock, WaitFor};
use crate::owner::{Owner, Ownership};
use crate::record::{self, Durability};
use crate::remove;
use crate::rootdir::{Attrs, FsError, Kind};
use crate::session::{self, DraftDir};
use crate::view::{View, ViewError};

/// Whether a base layer still has to be unpacked.
#[derive(Debug)]
pub enum Unpack {
    /// Its tree is there (another thread or process may have made it while this one waited).
    Ready(PathBuf),
    /// It is for the caller to fill [`Prepared::upper`] and to commit. No other process unpacks this layer meanwhile.
    Needed(Box<Prepared>),
}

/// A tree that is being made. Dropping it without [`Prepared::commit`] removes it.
#[derive(Debug)]
pub struct Prepared {
    /// The trees below, top first.
    pub lowers: Vec<PathBuf>,
    /// The tree that is being made: empty, with mode, owner, times and attributes of the tree below (0755 and the process's
    /// owner at the bottom).
    pub upper: PathBuf,
    /// overlayfs' working directory: empty, on the same file system.
    pub work: PathBuf,
    /// When the layer was made, for [`LayerRecord::created`](super::LayerRecord::created): set it before the commit.
    pub created: Option<String>,
    target: Target,
    draft: DraftDir,
    tree: Option<Tree>,
    store: Store,
}

/// A copy of files of a stack of layers, which goes away when this is dropped.
#[derive(Debug)]
pub struct Copied {
    path: PathBuf,
    _draft: DraftDir,
}

impl Copied {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[derive(Debug)]
enum Target {
    Built { parent: Option<LayerId> },
    Base { id: LayerId, _lock: TransientLock },
}

impl Layers<'_> {
    /// Prepares a layer on `parent` (none: on nothing), all of whose layers are unpacked.
    ///
    /// # Errors
    /// [`Error::NotUnpacked`] (use [`Layers::unpack`] first), [`Error::LayerMissing`], [`Error::Io`].
    pub fn prepare(&self, parent: Option<&LayerId>) -> Result<Prepared> {
        let lowers = match parent {
            Some(parent) => self.lowers(parent)?,
            None => Vec::new(),
        };
        self.begin(lowers, |_| Ok(Target::Built { parent: parent.cloned() }))
    }

    /// Prepares a layer on `parent` without the trees below: for a step that only writes, so that a base that is only
    /// pushed is never unpacked. [`Prepared::lowers`] is empty.
    ///
    /// # Errors
    /// [`Error::LayerMissing`], [`Error::LayerCycle`], [`Error::Io`].
    pub fn prepare_apart(&self, parent: Option<&LayerId>) -> Result<Prepared> {
        if let Some(parent) = parent {
            self.ancestry(parent)?;
        }
        self.begin(Vec::new(), |_| Ok(Target::Built { parent: parent.cloned() }))
    }

    /// Prepares a layer on `parent` with a copy of the merged tree, for where no overlay can be had: the command changes
    /// [`Prepared::tree`], and [`Prepared::collect`] makes [`Prepared::upper`] of what it did.
    ///
    /// The tree of a step that this process has just done is taken over, if this one stands on it.
    ///
    /// # Errors
    /// Those of [`Layers::prepare`].
    pub fn prepare_copy(&self, parent: Option<&LayerId>) -> Result<Prepared> {
        let mut prepared = self.prepare(parent)?;
        let style = self.store.form().whiteouts;
        let ids = match parent {
            Some(parent) => self.ancestry(parent)?,
            None => Vec::new(),
        };
        let tree = match self.store.flats().take(&ids) {
            Some((has, mut tree)) => {
                let missing: Result<Vec<_>, _> = ids[has..].iter().map(|id| self.store.tree(&self.diff_dir(id))).collect();
                let dir = self.store.tree(&tree.path())?;
                tree.advance(&dir, &missing?, style)?;
                dir.save_records().map_err(ViewError::from)?;
                tree
            }
            None => {
                let draft = super::new_draft(self.store)?;
                let path = LayerDir(draft.path().to_owned()).tree();
                session::make_dir(&path, 0o755)?;
                let dir = self.store.tree(&path)?;
                let index = flat::copy(&self.store.view(&prepared.lowers)?, &dir)?;
                dir.save_records().map_err(ViewError::from)?;
                Tree::new(draft, index)
            }
        };
        prepared.tree = Some(tree);
        Ok(prepared)
    }

    /// Copies the file or directory `path` of the merged tree of `layer` and all below it; symbolic links in `path` are followed.
    ///
    /// # Errors
    /// [`Error::Io`] with `ENOENT` when there is none; those of [`Layers::prepare`].
    pub fn copy_out(&self, layer: Option<&LayerId>, path: &ImagePath) -> Result<Copied> {
        let lowers = match layer {
            Some(layer) => self.lowers(layer)?,
            None => Vec::new(),
        };
        let view = self.store.view(&lowers)?;
        let draft = super::new_draft(self.store)?;
        let to = LayerDir(draft.path().to_owned()).tree();
        let found = view.resolve(path)?.node;
        match found {
            Some(node) if node.kind() != Kind::Dir => {
                let dir = self.store.tree(draft.path())?;
                flat::copy_file(&node, &dir, to.file_name().unwrap_or_default().as_encoded_bytes())?;
            }
            Some(node) => {
                session::make_dir(&to, 0o755)?;
                flat::copy_below(&node.opened()?, &self.store.tree(&to)?)?;
            }
            None if path.is_root() => session::make_dir(&to, 0o755)?,
            None => return Err(Error::io("find", Path::new(path.as_os_str()))(rustix::io::Errno::NOENT)),
        }
        Ok(Copied { path: to, _draft: draft })
    }

    /// Begins to unpack a base layer, whose parents are unpacked, unless its tree is there. Waits for another process that
    /// unpacks the same layer as long as the handle's [`Store::on_wait`] lets it.
    ///
    /// # Errors
    /// [`Error::NotUnpacked`] for a parent, [`Error::LayerMissing`], [`Error::Interrupted`], [`Error::Io`].
    pub fn unpack(&self, id: &LayerId) -> Result<Unpack> {
        let missing = || Error::LayerMissing { id: id.clone() };
        if self.known(id)?.ok_or_else(missing)?.unpacked {
            return Ok(Unpack::Ready(self.diff_dir(id)));
        }
        let lock_path = self.store.layout().layer_lock(id);
        let lock = TransientLock::acquire(&lock_path, &WaitFor::Unpack(id.clone()), self.store.waiter())?;
        let known = self.known(id)?.ok_or_else(missing)?;
        if known.unpacked {
            return Ok(Unpack::Ready(self.diff_dir(id)));
        }
        let lowers = match &known.stored.parent {
            Some(parent) => self.lowers(parent)?,
            None => Vec::new(),
        };
        Ok(Unpack::Needed(Box::new(self.begin(lowers, |_| Ok(Target::Base { id: id.clone(), _lock: lock }))?)))
    }

    fn begin(&self, lowers: Vec<PathBuf>, target: impl FnOnce(&DraftDir) -> Result<Target>) -> Result<Prepared> {
        let draft = super::new_draft(self.store)?;
        let dir = LayerDir(draft.path().to_owned());
        let (upper, work) = (dir.diff(), dir.work());
        session::make_dir(&upper, 0o755)?;
        session::make_dir(&work, 0o700)?;
        // The top of the merged tree has the attributes of the uppermost directory, so they must not be lost here.
        if let Some(below) = lowers.first() {
            match self.store.form().owners {
                Ownership::Real => copy_attributes(below, &upper)?,
                Ownership::Mapped | Ownership::Recorded => copy_recorded(self.store, below, &upper)?,
            }
        }
        let target = target(&draft)?;
        Ok(Prepared { lowers, upper, work, created: None, target, draft, tree: None, store: self.store.clone() })
    }
}

impl Prepared {
    /// Writes down what a command that just ended did to owners, in a store of [`Ownership::Recorded`] (in others it does
    /// nothing). `seen` are inodes in [`Prepared::upper`] of symbolic links and fifos with the user and group that the command
    /// gave them, the latest last: those can't hold an attribute of their own. What the command made and gave to nobody is
    /// `maker`'s: the user that it ran as. Call it once, before the tree is read.
    ///
    /// # Errors
    /// What the file system answers.
    pub fn record_owners(&self, seen: &[(u64, u32, u32)], maker: Owner) -> std::result::Result<(), ViewError> {
        if self.store.form().owners != Ownership::Recorded {
            return Ok(());
        }
        let (written, style, since) = match &self.tree {
            Some(copy) => (copy.path(), WhiteoutStyle::Device, Some(copy.began())),
            None => (self.upper.clone(), self.store.form().whiteouts, None),
        };
        let made = Made::new(style, since, seen, maker);
        made.record(&self.store.tree(&written)?, &self.store.view(&self.lowers)?)
    }

    /// Whose the symbolic links, fifos and sockets below are, by path, where that stands in no attribute of theirs: those of
    /// others than root. For a command that asks.
    ///
    /// # Errors
    /// What the file system answers.
    pub fn known_owners(&self) -> std::result::Result<Vec<(Vec<u8>, u32, u32)>, ViewError> {
        if self.store.form().owners != Ownership::Recorded {
            return Ok(Vec::new());
        }
        let trees: std::result::Result<Vec<_>, _> = self.lowers.iter().map(|path| self.store.tree(path)).collect();
        let trees = trees?;
        let mut paths = BTreeSet::new();
        for tree in &trees {
            paths.extend(tree.recorded_paths()?);
        }
        let view = View::from_roots(trees, self.store.form().whiteouts)?;
        let mut known = Vec::new();
        for path in paths {
            let Some(node) = view.lookup(&ImagePath::new(path.clone()))? else { continue };
            let meta = node.meta();
            if matches!(meta.kind, Kind::Symlink | Kind::Fifo | Kind::Socket) && (meta.uid, meta.gid) != (0, 0) {
                known.push((path, meta.uid, meta.gid));
            }
        }
        Ok(known)
    }

    /// The copy of the merged tree, if there is one ([`Layers::prepare_copy`]).
    pub fn tree(&self) -> Option<PathBuf> {
        self.tree.as_ref().map(Tree::path)
    }

    /// Moves what the command changed in the copy of the merged tree, if there is one, to [`Prepared::upper`]. Once, when nothing
    /// writes any more.
    ///
    /// # Errors
    /// [`Error::Unfit`], [`Error::Io`].
    pub fn collect(&mut self) -> Result<()> {
        let Some(tree) = &mut self.tree else { return Ok(()) };
        let store = &self.store;
        let dir = store.tree(&tree.path())?;
        let upper = store.tree(&self.upper)?;
        tree.collect(&dir, &store.view(&self.lowers)?, &upper, store.form().whiteouts)?;
        // What is in neither is lost, what is in both is the upper's.
        upper.save_records().and_then(|()| dir.save_records()).map_err(ViewError::from)?;
        Ok(())
    }

    /// Gives the tree its place in the store. Relaxed: it costs no sync; see [`Store::make_durable`].
    ///
    /// Nothing may be mounted on it or write into it any more.
    ///
    /// # Errors
    /// [`Error::Io`]; the tree is removed then.
    pub fn commit(self) -> Result<LayerId> {
        let Self { work, target, draft, store, upper, created, tree, .. } = self;
        remove::tree(&work, &store.layout().trash())?;
        match target {
            Target::Built { parent } => {
                let id = LayerId::random()?;
                let stored = Stored { boot: store.boot().to_owned(), parent, base: None, created };
                let path = LayerDir(draft.path().to_owned()).record();
                fs::write(&path, record::seal(&stored, &path)?).map_err(Error::io("write", &path))?;
                draft.rename_to(store.layout().layer(&id).path())?;
                store.memory().put(&id, Known { stored: stored.into(), unpacked: true });
                store.memory().note_made(id.clone());
                if let Some(tree) = tree {
                    store.flats().put(id.clone(), tree);
                }
                Ok(id)
            }
            Target::Base { id, _lock } => {
                let dir = store.layout().layer(&id);
                // A tree that was made under another boot id and never synced. Its mark, if any, must not vouch for ours.
                remove::discard(&dir.diff(), store.layout())?;
                record::remove(&dir.durable())?;
                record::remove(&dir.owners())?;
                // In this order: without the tree the file says nothing.
                record::write(&*store.session()?, &dir.unpacked(), &store.boot(), Durability::Relaxed)?;
                let owners = LayerDir(draft.path().to_owned()).owners();
                match fs::rename(&owners, dir.owners()) {
                    Err(error) if error.kind() != ErrorKind::NotFound => {
                        return Err(Error::io("rename to", &dir.owners())(error));
                    }
                    _ => {}
                }
                fs::rename(&upper, dir.diff()).map_err(Error::io("rename to", &dir.diff()))?;
                Ok(id)
            }
        }
    }
}

/// Copies what an image holds of one directory to another.
fn copy_recorded(store: &Store, from: &Path, to: &Path) -> Result<()> {
    let copy = || {
        let (from, to) = (store.tree(from)?, store.tree(to)?);
        to.set_attrs_of_self(&Attrs::of(&from.meta()?, xattr::portable(from.xattrs_of_self()?)))?;
        to.save_records()
    };
    copy().map_err(|e: FsError| Error::Io { op: e.operation, path: e.path, source: e.source })
}

/// Copies mode, owner, extended attributes and times of one directory to another.
fn copy_attributes(from: &Path, to: &Path) -> Result<()> {
    let meta = fs::symlink_metadata(from).map_err(Error::io("stat", from))?;
    let fresh = fs::symlink_metadata(to).map_err(Error::io("stat", to))?;
    if (meta.uid(), meta.gid()) != (fresh.uid(), fresh.gid()) {
        std::os::unix::fs::lchown(to, Some(meta.uid()), Some(meta.gid())).map_err(Error::io("set the owner of", to))?;
    }
    if meta.mode() & 0o7777 != fresh.mode() & 0o7777 {
        let mode = fs::Permissions::from_mode(meta.mode() & 0o7777);
        fs::set_permissions(to, mode).map_err(Error::io("set the mode of", to))?;
    }
    copy_xattrs(from, to)?;
    let times = fs::FileTimes::new()
        .set_accessed(meta.accessed().map_err(Error::io("stat", from))?)
        .set_modified(meta.modified().map_err(Error::io("stat", from))?);
    fs::File::open(to).and_then(|dir| dir.set_times(times)).map_err(Error::io("set the times of", to))
}

fn copy_xattrs(from: &Path, to: &Path) -> Result<()> {
    let fail = |errno: rustix::io::Errno| Error::io("copy the attributes of", from)(errno);
    let length = match rustix::fs::llistxattr_query(from) {
        Ok(0) | Err(rustix::io::Errno::NOTSUP) => return Ok(()),
        length => length.map_err(fail)?,
    };
    let mut names = vec![0u8; length];
    let length = rustix::fs::llistxattr(from, &mut names[..]).map_err(fail)?;
    for name in names[..length].split(|&b| b == 0).filter(|name| !name.is_empty()) {
        // overlayfs' own notes are about that one directory.
        if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
            continue;
        }
        let size = rustix::fs::lgetxattr_query(from, name).map_err(fail)?;
        let mut value = vec![0u8; size];
        let size = rustix::fs::lgetxattr(from, name, &mut value[..]).map_err(fail)?;
        rustix::fs::lsetxattr(to, name, &value[..size], rustix::fs::XattrFlags::empty()).map_err(fail)?;
    }
    Ok(())
}
