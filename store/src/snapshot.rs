//! Hides where a layer's tree and record lie, and whether they can be believed after a crash.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use kiln_oci::descriptor::Descriptor;
use kiln_oci::digest::{ChainId, DiffId, Digest};
use serde::{Deserialize, Deserializer, Serialize};

use crate::Store;
use crate::error::{Error, Result};
use crate::layer::KnownTar;
use crate::lock::{TransientLock, WaitFor};
use crate::record::{self, Durability, Found};
use crate::session::{self, DraftDir};

mod examine;
mod made;
mod prepare;

pub use examine::Part;
pub(crate) use examine::{Examined, sum_of_tree};
pub use prepare::{Copied, Prepared, Unpack};

/// The name of a layer: `chain-<hex>` for one that an image brought (the hex digits are its chain id), `n<hex>`, random, for
/// one that kiln built.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct LayerId(String);

impl LayerId {
    /// The name of the base layer with this chain id.
    pub fn of_chain(chain: ChainId) -> Self {
        Self(format!("chain-{}", chain.digest().hex()))
    }

    /// Parses either form; the text becomes a file name, so nothing else is let in.
    pub fn parse(text: &str) -> Option<Self> {
        let hex = |digits: &str, length| {
            digits.len() == length && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        let good = match text.strip_prefix("chain-") {
            Some(digits) => hex(digits, 64),
            None => text.strip_prefix('n').is_some_and(|digits| hex(digits, 32)),
        };
        good.then(|| Self(text.to_owned()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The chain id, of a base layer.
    pub fn chain_id(&self) -> Option<ChainId> {
        self.0.strip_prefix("chain-").and_then(Digest::from_hex).map(ChainId::new)
    }

    fn random() -> Result<Self> {
        Ok(Self(format!("n{}", session::nonce()?)))
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for LayerId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom(format!("`{text}` is not a layer id")))
    }
}

/// What is known of a layer that an image brought, before any of it is fetched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BaseLayer {
    /// The digest of its uncompressed tar.
    pub diff_id: DiffId,
    /// Its chain id: what `diff_id` gives on top of the parent.
    pub chain_id: ChainId,
    /// Its blob as the image's manifest names it. It need not be in the store.
    pub blob: Descriptor,
    /// `domain/path` of the repositories that it can be fetched from, the latest last; or places of shared caches.
    pub sources: Vec<String>,
    /// When the step was run that made it, of a layer that a shared cache told of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
}

/// Where a layer came from.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "there are as many as layers in an image, and a box would only be in the way")]
pub enum LayerKind {
    /// An image brought it, or a shared cache.
    Base(BaseLayer),
    /// A step made it.
    Built,
}

/// A packed form of a layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PackedBlob {
    /// The blob. It may be gone: look before use.
    pub descriptor: Descriptor,
    /// How it was compressed, format and level (`gzip:6`), compared as text.
    pub compression: String,
    /// The digest of the tar in it, where that is another than the layer's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diff_id: Option<DiffId>,
}

/// All that the store knows of a layer.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerRecord {
    /// Its name.
    pub id: LayerId,
    /// The layer below.
    pub parent: Option<LayerId>,
    /// Where it came from.
    pub kind: LayerKind,
    /// When a built layer was made, as the builder said it ([`Prepared::created`]); or one of a shared cache.
    pub created: Option<String>,
    /// Whether its tree is there; always true of a built layer.
    pub unpacked: bool,
    /// The digest of its uncompressed tar, once known.
    pub diff_id: Option<DiffId>,
    /// The size of its uncompressed tar in bytes, once known.
    pub tar_size: Option<u64>,
    /// The CRC-32 of its uncompressed tar, once it was packed here.
    pub tar_crc: Option<u32>,
    /// Packed forms that were made here; a base layer's own blob is in its kind.
    pub blobs: Vec<PackedBlob>,
}

impl LayerRecord {
    /// What its tar was when it was last packed from its files.
    pub fn known_tar(&self) -> Option<KnownTar> {
        Some(KnownTar { diff_id: self.diff_id?, size: self.tar_size?, crc: self.tar_crc })
    }
}

/// `record.json`: what never changes.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Stored {
    boot: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parent: Option<LayerId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    base: Option<BaseLayer>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    created: Option<String>,
}

/// `facts.json`: what was learnt later, and may be lost.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Facts {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    sources: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    created: Option<String>,
    /// The blob that an image has for a layer of which a shared cache told first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    own_blob: Option<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    diff_id: Option<DiffId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tar_size: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tar_crc: Option<u32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    blobs: Vec<PackedBlob>,
    /// What its tree was when it was made, where no `diff_id` says it ([`Layers::sum_made`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sum: Option<Digest>,
}

impl Facts {
    fn keep(&mut self, blob: PackedBlob) {
        self.blobs.retain(|old| old.compression != blob.compression);
        self.blobs.push(blob);
    }
}

/// What this process has read already and can't change under its lease.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    layers: RwLock<HashMap<LayerId, Known>>,
    /// Layers that image names vouch for, read once when a record of another boot is met.
    named: OnceLock<HashSet<LayerId>>,
    /// Layers that this process made.
    made: Mutex<Vec<LayerId>>,
}

#[derive(Debug, Clone)]
struct Known {
    stored: Arc<Stored>,
    unpacked: bool,
}

impl Memory {
    fn get(&self, id: &LayerId) -> Option<Known> {
        self.layers.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    fn put(&self, id: &LayerId, known: Known) {
        self.layers.write().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), known);
    }

    fn note_made(&self, id: LayerId) {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).push(id);
    }

    fn take_made(&self) -> Vec<LayerId> {
        std::mem::take(&mut *self.made.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// For whoever took layers away.
    pub(crate) fn forget(&self) {
        self.layers.write().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// Layers: their records and their trees.
///
/// A layer is there in up to two forms, packed (a blob) and unpacked (a tree); the record is there before either.
#[derive(Debug, Clone, Copy)]
pub struct Layers<'a> {
    store: &'a Store,
}

impl<'a> Layers<'a> {
    pub(crate) fn new(store: &'a Store) -> Self {
        Self { store }
    }

    /// What is known of the layer. None when it isn't there, or can't be believed since the machine crashed.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn get(&self, id: &LayerId) -> Result<Option<LayerRecord>> {
        let Some(known) = self.known(id)? else { return Ok(None) };
        let facts = self.facts(id)?;
        let mut record = LayerRecord {
            id: id.clone(),
            parent: known.stored.parent.clone(),
            kind: LayerKind::Built,
            created: known.stored.created.clone(),
            unpacked: known.unpacked,
            diff_id: facts.diff_id,
            tar_size: facts.tar_size,
            tar_crc: facts.tar_crc,
            blobs: facts.blobs,
        };
        if let Some(base) = &known.stored.base {
            let mut base = base.clone();
            for source in facts.sources {
                base.sources.retain(|known| *known != source);
                base.sources.push(source);
            }
            base.blob = facts.own_blob.unwrap_or(base.blob);
            base.created = base.created.or(facts.created);
            record.created.clone_from(&base.created);
            record.diff_id = Some(base.diff_id);
            record.kind = LayerKind::Base(base);
        }
        Ok(Some(record))
    }

    /// The layer and all those below it, bottom first.
    ///
    /// # Errors
    /// [`Error::LayerMissing`], [`Error::LayerCycle`], [`Error::Io`].
    pub fn chain(&self, id: &LayerId) -> Result<Vec<LayerRecord>> {
        let ids = self.ancestry(id)?;
        ids.iter().map(|id| self.get(id)?.ok_or_else(|| Error::LayerMissing { id: id.clone() })).collect()
    }

    /// Those of the layer and all below it whose tree isn't there, bottom first. Unlike [`Layers::chain`] it reads of the others nothing
    /// but what this process knows already: a step on a thousand layers asks for it.
    ///
    /// # Errors
    /// [`Error::LayerMissing`], [`Error::LayerCycle`], [`Error::Io`].
    pub fn packed(&self, id: &LayerId) -> Result<Vec<LayerRecord>> {
        let mut packed = Vec::new();
        for id in self.ancestry(id)? {
            if !self.known(&id)?.is_some_and(|known| known.unpacked) {
                packed.push(self.get(&id)?.ok_or(Error::LayerMissing { id })?);
            }
        }
        Ok(packed)
    }

    /// The trees of the layer and of all those below it, top first: what overlayfs wants as lower directories.
    ///
    /// # Errors
    /// [`Error::NotUnpacked`] with the lowest layer whose tree isn't there; those of [`Layers::chain`].
    pub fn lowers(&self, id: &LayerId) -> Result<Vec<PathBuf>> {
        let ids = self.ancestry(id)?;
        for id in &ids {
            if !self.known(id)?.is_some_and(|known| known.unpacked) {
                return Err(Error::NotUnpacked { id: id.clone() });
            }
        }
        Ok(ids.iter().rev().map(|id| self.diff_dir(id)).collect())
    }

    /// Where the tree of the layer is, or will be.
    pub fn diff_dir(&self, id: &LayerId) -> PathBuf {
        self.store.layout().layer(id).diff()
    }

    /// Writes down a layer that an image has, without fetching it. One that is known already learns the new
    /// sources, and when it was made.
    ///
    /// # Errors
    /// [`Error::ChainMismatch`] when `base.chain_id` doesn't follow from parent and diff id; [`Error::Io`].
    pub fn add_base(&self, parent: Option<&LayerId>, base: &BaseLayer) -> Result<LayerId> {
        let computed = match parent {
            None => Some(ChainId::extend(None, base.diff_id)),
            Some(parent) => parent.chain_id().map(|parent| ChainId::extend(Some(parent), base.diff_id)),
        };
        let Some(computed) = computed else {
            return Err(Error::NotABase { id: parent.cloned().unwrap_or_else(|| LayerId::of_chain(base.chain_id)) });
        };
        if computed != base.chain_id {
            return Err(Error::ChainMismatch { announced: base.chain_id, computed });
        }
        let id = LayerId::of_chain(base.chain_id);
        if let Some(known) = self.known(&id)? {
            record::touch_path(&self.store.layout().layer(&id).record());
            self.learn_base(&id, &known, base)?;
            return Ok(id);
        }
        let dir = self.store.layout().layer(&id);
        // Under the lock of the layer, because a torn record may have to make room.
        let what = WaitFor::Unpack(id.clone());
        let _lock = TransientLock::acquire(&self.store.layout().layer_lock(&id), &what, self.store.waiter())?;
        if self.known(&id)?.is_some() {
            return Ok(id);
        }
        crate::remove::discard(dir.path(), self.store.layout())?;
        let session = self.store.session()?;
        let draft = session.draft_dir()?;
        let stored =
            Stored { boot: self.store.boot().to_owned(), parent: parent.cloned(), base: Some(base.clone()), created: None };
        let path = crate::layout::LayerDir(draft.path().to_owned()).record();
        fs::write(&path, record::seal(&stored, &path)?).map_err(Error::io("write", &path))?;
        draft.rename_to(dir.path())?;
        Ok(id)
    }

    fn learn_base(&self, id: &LayerId, known: &Known, new: &BaseLayer) -> Result<()> {
        let Some(old) = &known.stored.base else { return Ok(()) };
        let created = new.created.as_ref().filter(|_| old.created.is_none());
        // Whoever writes a cache can name any blob; an image that has the layer must not fail for that.
        let own_blob =
            (new.created.is_none() && old.created.is_some() && new.blob.digest != old.blob.digest).then_some(&new.blob);
        if created.is_none() && own_blob.is_none() && new.sources.iter().all(|source| old.sources.contains(source)) {
            return Ok(());
        }
        self.learn(id, |facts| {
            // The first one counts: what stands on the layer has told of it already.
            facts.created = facts.created.take().or_else(|| created.cloned());
            facts.own_blob = own_blob.cloned().or(facts.own_blob.take());
            for source in &new.sources {
                if !old.sources.contains(source) && !facts.sources.contains(source) {
                    facts.sources.push(source.clone());
                }
            }
        })
    }

    /// Writes down what packing the layer gave. A packed form of the same compression replaces the old one.
    ///
    /// # Errors
    /// [`Error::LayerMissing`], [`Error::Io`].
    pub fn set_packed(&self, id: &LayerId, tar: KnownTar, blob: Option<PackedBlob>) -> Result<()> {
        if self.known(id)?.is_none() {
            return Err(Error::LayerMissing { id: id.clone() });
        }
        self.learn(id, |facts| {
            facts.diff_id = Some(tar.diff_id);
            facts.tar_size = Some(tar.size);
            facts.tar_crc = tar.crc;
            if let Some(blob) = blob {
                facts.keep(blob);
            }
        })
    }

    /// Writes down a packed form whose tar is another than the layer's own.
    ///
    /// # Errors
    /// [`Error::LayerMissing`], [`Error::Io`].
    pub fn add_packed(&self, id: &LayerId, blob: PackedBlob) -> Result<()> {
        if self.known(id)?.is_none() {
            return Err(Error::LayerMissing { id: id.clone() });
        }
        self.learn(id, |facts| facts.keep(blob))
    }

    fn learn(&self, id: &LayerId, change: impl FnOnce(&mut Facts)) -> Result<()> {
        // Two processes may learn different things at once; the lock keeps both.
        let what = WaitFor::Unpack(id.clone());
        let lock_path = self.store.layout().facts_lock(id);
        let _lock = TransientLock::acquire(&lock_path, &what, self.store.waiter())?;
        let before = self.facts(id)?;
        let mut facts = before.clone();
        change(&mut facts);
        if facts == before {
            return Ok(());
        }
        record::write(&*self.store.session()?, &self.store.layout().layer(id).facts(), &facts, Durability::Relaxed)
    }

    fn facts(&self, id: &LayerId) -> Result<Facts> {
        Ok(record::read(&self.store.layout().layer(id).facts())?.or_lost().unwrap_or_default())
    }

    /// The layer and all those below it by name, bottom first. Reads each record once in the life of the process.
    fn ancestry(&self, id: &LayerId) -> Result<Vec<LayerId>> {
        let mut seen = HashSet::new();
        let mut ids = Vec::new();
        let mut next = Some(id.clone());
        while let Some(current) = next {
            let known = self.known(&current)?.ok_or_else(|| Error::LayerMissing { id: current.clone() })?;
            if !seen.insert(current.clone()) {
                return Err(Error::LayerCycle { id: id.clone() });
            }
            next = known.stored.parent.clone();
            ids.push(current);
        }
        ids.reverse();
        Ok(ids)
    }

    /// Whether the layer and all those below it are there.
    pub(crate) fn is_usable(&self, id: &LayerId) -> Result<bool> {
        match self.ancestry(id) {
            Ok(_) => Ok(true),
            Err(Error::LayerMissing { .. } | Error::LayerCycle { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// `layers` with every parent that is missing from it, parents before children.
    pub(crate) fn close(&self, layers: &[LayerId]) -> Result<Vec<LayerId>> {
        let mut seen = HashSet::new();
        let mut closed = Vec::new();
        for layer in layers {
            if seen.contains(layer) {
                continue;
            }
            for id in self.ancestry(layer)? {
                if seen.insert(id.clone()) {
                    closed.push(id);
                }
            }
        }
        Ok(closed)
    }

    /// Whether all of the layers that are unpacked outlive a crash of the machine as they are.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn are_durable(&self, layers: &[LayerId]) -> Result<bool> {
        Ok(self.unmarked(layers)?.is_empty())
    }

    /// Those of `layers` whose tree is there and has no durable mark.
    pub(crate) fn unmarked(&self, layers: &[LayerId]) -> Result<Vec<LayerId>> {
        let mut unmarked = Vec::new();
        for id in layers {
            let unpacked = self.known(id)?.is_some_and(|known| known.unpacked);
            if unpacked && !exists(&self.store.layout().layer(id).durable())? {
                unmarked.push(id.clone());
            }
        }
        Ok(unmarked)
    }

    /// Marks layers whose trees are on disk.
    pub(crate) fn mark(&self, layers: &[LayerId]) -> Result<()> {
        for id in layers {
            let path = self.store.layout().layer(id).durable();
            File::create(&path).map_err(Error::io("create", &path))?;
        }
        Ok(())
    }

    /// What is known of a layer that is there and can be believed.
    fn known(&self, id: &LayerId) -> Result<Option<Known>> {
        let memory = self.store.memory();
        let stored = match memory.get(id) {
            Some(known) if known.unpacked => return Ok(Some(known)),
            Some(known) => known.stored,
            None => match record::read::<Stored>(&self.store.layout().layer(id).record())?.or_lost() {
                Some(stored) => Arc::new(stored),
                None => return Ok(None),
            },
        };
        let unpacked = self.has_tree(id, &stored)?;
        if stored.base.is_none() && !unpacked {
            return Ok(None);
        }
        let known = Known { stored, unpacked };
        memory.put(id, known.clone());
        Ok(Some(known))
    }

    /// Whether the tree is there and was not at the mercy of a crash.
    fn has_tree(&self, id: &LayerId, stored: &Stored) -> Result<bool> {
        self.has_tree_if(id, stored, || self.is_named(id))
    }

    fn has_tree_if(&self, id: &LayerId, stored: &Stored, is_named: impl FnOnce() -> Result<bool>) -> Result<bool> {
        let dir = self.store.layout().layer(id);
        if stored.base.is_some() {
            // Under `unpacked` the tree was renamed to its place after that file was.
            let boot = match record::read::<String>(&dir.unpacked())? {
                Found::Whole(boot) => boot,
                Found::Absent => return Ok(false),
                // Torn; or of a kiln that didn't seal it.
                Found::Broken(_) => self.plain_mark(id)?.unwrap_or_default(),
            };
            return Ok(exists(&dir.diff())? && (boot == self.store.boot() || exists(&dir.durable())?));
        }
        // A built layer came to its place as a whole, so the record stands for the tree.
        Ok(stored.boot == self.store.boot() || exists(&dir.durable())? || is_named()?)
    }

    /// The mark of a tree as the first kilns made it: a boot id and nothing else.
    fn plain_mark(&self, id: &LayerId) -> Result<Option<String>> {
        let path = self.store.layout().layer(id).unpacked();
        let is_mark = |c: char| c.is_ascii_hexdigit() || c == '-';
        match fs::read_to_string(&path) {
            Ok(text) if text.len() >= 32 && text.trim_start_matches("unknown-").chars().all(is_mark) => Ok(Some(text)),
            Ok(_) => Ok(None),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidData) => Ok(None),
            Err(error) => Err(Error::io("read", &path)(error)),
        }
    }

    /// Whether an image names this built layer: names are written after a barrier, so it is on disk even if its mark isn't.
    fn is_named(&self, id: &LayerId) -> Result<bool> {
        let named = &self.store.memory().named;
        if let Some(named) = named.get() {
            return Ok(named.contains(id));
        }
        let images = self.store.images().list()?;
        let layers = images.iter().flat_map(|image| image.needed_layers().cloned()).collect();
        Ok(named.get_or_init(|| layers).contains(id))
    }
}

fn exists(path: &Path) -> Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("stat", path)(error)),
    }
}

/// The rest of a layer's making is in [`prepare`].
fn new_draft(store: &Store) -> Result<DraftDir> {
    store.session()?.draft_dir()
}
