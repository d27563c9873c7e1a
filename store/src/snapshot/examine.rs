//! Hides how a layer is looked at without being healed or believed too much: for whoever checks the store.

use std::collections::HashSet;
use std::path::Path;

use kiln_oci::digest::{DiffId, Digest};

use super::{BaseLayer, Facts, LayerId, Layers, PackedBlob, Stored, exists};
use crate::Store;
use crate::error::Result;
use crate::layer::{KnownTar, PackError, PackOptions, pack};
use crate::lock::{TransientLock, WaitFor};
use crate::record::{self, Durability, Found};

/// A part of a layer, in the order in which they depend on one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// What the layer is.
    Record,
    /// What was learnt of it later.
    Facts,
    /// Under which start of the machine its tree was made.
    Mark,
    /// How large its tree is.
    Usage,
    /// Its files.
    Tree,
}

/// What stands on disk of one layer.
#[derive(Debug)]
pub(crate) struct Examined {
    pub(crate) parent: Option<LayerId>,
    pub(crate) base: Option<BaseLayer>,
    /// Whether there is a tree that can be believed.
    pub(crate) has_tree: bool,
    /// Whether anything was learnt of it.
    pub(crate) has_facts: bool,
    pub(crate) diff_id: Option<DiffId>,
    pub(crate) sum: Option<Digest>,
    /// Its packed forms.
    pub(crate) packed: Vec<PackedBlob>,
    /// Whether an image has another blob for it than the one that it was told of first.
    pub(crate) has_own_blob: bool,
    /// What can't be read, and why.
    pub(crate) sick: Vec<(Part, String)>,
}

impl Examined {
    /// Whether it can't be said what the layer is.
    pub(crate) fn is_unknown(&self) -> bool {
        self.sick.iter().any(|(part, _)| *part == Part::Record)
    }
}

/// A record, or why it can't be had: here no error ends everything.
fn look<T: serde::de::DeserializeOwned>(path: &Path) -> Found<T> {
    record::read(path).unwrap_or_else(|error| Found::Broken(error.to_string()))
}

const MISSING: &str = "it is missing";

impl Layers<'_> {
    /// Looks at a layer; `named` are those that images vouch for. None when there is nothing.
    pub(crate) fn examine(&self, id: &LayerId, named: &HashSet<LayerId>) -> Result<Option<Examined>> {
        let found = self.glance(id, named)?;
        if found.as_ref().is_none_or(|found| found.sick.is_empty()) {
            return Ok(found);
        }
        // Another process may be putting something in its place.
        let (path, what) = (self.store.layout().layer_lock(id), WaitFor::Unpack(id.clone()));
        let _lock = TransientLock::acquire(&path, &what, self.store.waiter())?;
        self.glance(id, named)
    }

    fn glance(&self, id: &LayerId, named: &HashSet<LayerId>) -> Result<Option<Examined>> {
        let dir = self.store.layout().layer(id);
        if !exists(dir.path())? {
            return Ok(None);
        }
        let mut sick = Vec::new();
        let facts = match look::<Facts>(&dir.facts()) {
            Found::Whole(facts) => Some(facts),
            Found::Absent => None,
            Found::Broken(reason) => {
                sick.push((Part::Facts, reason));
                None
            }
        };
        if let Found::Broken(reason) = look::<serde_json::Value>(&dir.usage()) {
            sick.push((Part::Usage, reason));
        }
        let stored = match look::<Stored>(&dir.record()) {
            Found::Whole(stored) if stored.base.as_ref().map(|base| base.chain_id) == id.chain_id() => Some(stored),
            Found::Whole(_) => {
                sick.push((Part::Record, "it is about another layer".to_owned()));
                None
            }
            Found::Absent => {
                sick.push((Part::Record, MISSING.to_owned()));
                None
            }
            Found::Broken(reason) => {
                sick.push((Part::Record, reason));
                None
            }
        };
        let mut has_tree = false;
        if let Some(stored) = &stored {
            has_tree = self.has_tree_if(id, stored, || Ok(named.contains(id)))?;
            if stored.base.is_some() {
                match look::<String>(&dir.unpacked()) {
                    Found::Absent if exists(&dir.diff())? => sick.push((Part::Mark, MISSING.to_owned())),
                    Found::Broken(reason) if self.plain_mark(id)?.is_none() => sick.push((Part::Mark, reason)),
                    _ => {}
                }
            }
        }
        let has_facts = facts.is_some();
        let facts = facts.unwrap_or_default();
        let (parent, base) = stored.map(|stored| (stored.parent, stored.base)).unwrap_or_default();
        Ok(Some(Examined {
            parent,
            base,
            has_tree,
            has_facts,
            diff_id: facts.diff_id,
            sum: facts.sum,
            packed: facts.blobs,
            has_own_blob: facts.own_blob.is_some(),
            sick,
        }))
    }

    /// Writes down that of a layer nothing more is known than this.
    pub(crate) fn relearn(&self, id: &LayerId, tar: Option<KnownTar>) -> Result<()> {
        record::write(&*self.store.session()?, &self.store.layout().layer(id).facts(), &Facts::default(), Durability::Relaxed)?;
        tar.map_or(Ok(()), |tar| self.set_packed(id, tar, None))
    }

    /// Forgets the packed forms of a layer that are gone, but for those with a tar of their own: they say how it is made again.
    pub(crate) fn forget_packed(&self, id: &LayerId, gone: impl Fn(&Digest) -> bool) -> Result<()> {
        self.learn(id, |facts| facts.blobs.retain(|blob| blob.diff_id.is_some() || !gone(&blob.descriptor.digest)))
    }

    /// Notes what the trees of those layers are that this process made and that nothing else could be compared with: an
    /// image has the digests of its layers, a stage on the way to it has none.
    ///
    /// # Errors
    /// [`crate::Error::Io`], for the notes; a tree that no sum can be made of goes without.
    pub fn sum_made(&self) -> Result<()> {
        use rayon::prelude::*;
        let made = self.store.memory().take_made();
        made.into_par_iter().try_for_each(|id| {
            let facts = self.facts(&id)?;
            if facts.diff_id.is_some() || facts.sum.is_some() {
                return Ok(());
            }
            let Ok(sum) = sum_of_tree(self.store, &self.diff_dir(&id), true) else { return Ok(()) };
            self.learn(&id, |facts| facts.sum = Some(sum))
        })
    }
}

/// The sum of all that a layer can say of the tree at `path`, or of all below it; no digest that anybody else knows.
pub(crate) fn sum_of_tree(store: &Store, path: &Path, root_entry: bool) -> Result<Digest, PackError> {
    let mut hasher = blake3::Hasher::new();
    pack(&store.tree(path)?, &mut hasher, &PackOptions { root_entry, ..store.packing() })?;
    Ok(Digest::from_bytes(*hasher.finalize().as_bytes()))
}
