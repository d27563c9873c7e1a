//! Hides how a step's key leads to its result: one small file a key, read once.

use std::fs;

use kiln_oci::digest::Digest;
use serde::{Deserialize, Serialize};

use crate::Store;
use crate::error::Result;
use crate::lock::{TransientLock, WaitFor};
use crate::record::{self, Durability, Found};
use crate::snapshot::LayerId;

/// The key of a step: what its result depends on, folded to 32 bytes by the builder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CacheKey(pub [u8; 32]);

impl CacheKey {
    /// 64 hexadecimal digits.
    pub fn hex(&self) -> String {
        Digest::from_bytes(self.0).hex()
    }
}

/// The result of a step.
#[derive(Debug, Clone, PartialEq)]
pub struct CacheRecord {
    /// The layer that the step made; none when it made no change, or when the record is about something else than a layer.
    pub layer: Option<LayerId>,
    /// What the result is, for content keys: equal trees may have equal identities.
    pub identity: [u8; 32],
    /// Blobs that `data` speaks of: they are kept as long as the record is.
    pub blobs: Vec<Digest>,
    /// Whatever the builder wants back.
    pub data: serde_json::Value,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    /// Under which boot id the record was written; with its layer that id decides whether it counts.
    boot: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    layer: Option<LayerId>,
    identity: Digest,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    blobs: Vec<Digest>,
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    data: serde_json::Value,
}

/// What a record needs.
#[derive(Debug)]
pub(crate) struct Needs {
    pub(crate) layer: Option<LayerId>,
    pub(crate) blobs: Vec<Digest>,
    /// Whether the machine wasn't started anew since: then nothing may be absent.
    pub(crate) of_this_boot: bool,
}

/// Cache records.
#[derive(Debug, Clone, Copy)]
pub struct Cache<'a> {
    store: &'a Store,
}

impl<'a> Cache<'a> {
    pub(crate) fn new(store: &'a Store) -> Self {
        Self { store }
    }

    /// The result that is known for `key`, and marks it as used.
    ///
    /// None when there is none, when it is torn, and when its layer is gone or can't be trusted since the machine crashed.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    pub fn get(&self, key: &CacheKey) -> Result<Option<CacheRecord>> {
        let path = self.store.layout().cache_record(key);
        let Some(file) = record::open(&path)? else { return Ok(None) };
        let Some(stored) = record::read_from::<Stored>(&file, &path)?.or_lost() else { return Ok(None) };
        if let Some(layer) = &stored.layer {
            let usable = if stored.boot == self.store.boot() {
                // The record was written after the layer, and nothing but prune takes a layer away: its folder is proof.
                fs::symlink_metadata(self.store.layout().layer(layer).path()).is_ok()
            } else {
                self.store.layers().is_usable(layer)?
            };
            if !usable {
                return Ok(None);
            }
        }
        record::touch(&file);
        let Stored { layer, identity, blobs, data, .. } = stored;
        Ok(Some(CacheRecord { layer, identity: *identity.as_bytes(), blobs, data }))
    }

    /// Writes the result for `key`, in place of what was known. Relaxed: it costs no sync, and a crash of the machine may
    /// lose it.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    pub fn put(&self, key: &CacheKey, record: &CacheRecord) -> Result<()> {
        let CacheRecord { layer, identity, blobs, data } = record.clone();
        let stored = Stored { boot: self.store.boot().to_owned(), layer, identity: Digest::from_bytes(identity), blobs, data };
        record::write(&*self.store.session()?, &self.store.layout().cache_record(key), &stored, Durability::Relaxed)
    }

    /// Forgets the result for `key`.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    pub fn remove(&self, key: &CacheKey) -> Result<()> {
        record::remove(&self.store.layout().cache_record(key)).map(drop)
    }

    /// Locks `key` against all other threads and processes, so that equal steps run once: lock, [`Cache::get`] again, run,
    /// [`Cache::put`], unlock. Waits as long as the handle's [`Store::on_wait`] lets it.
    ///
    /// # Errors
    /// [`crate::Error::Interrupted`], [`crate::Error::Io`].
    pub fn lock(&self, key: &CacheKey) -> Result<KeyLock> {
        let path = self.store.layout().step_lock(key);
        let lock = TransientLock::acquire(&path, &WaitFor::Step(*key), self.store.waiter())?;
        Ok(KeyLock { _lock: lock, _store: self.store.clone() })
    }

    /// The same without waiting; none when another holds it.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    pub fn try_lock(&self, key: &CacheKey) -> Result<Option<KeyLock>> {
        let lock = TransientLock::try_acquire(&self.store.layout().step_lock(key))?;
        Ok(lock.map(|lock| KeyLock { _lock: lock, _store: self.store.clone() }))
    }

    /// Layer and blobs that the record for `key` needs, and whether it was written since the machine was started.
    pub(crate) fn examine(&self, key: &CacheKey) -> Result<Found<Needs>> {
        Ok(match record::read::<Stored>(&self.store.layout().cache_record(key))? {
            Found::Whole(stored) => {
                let of_this_boot = stored.boot == self.store.boot();
                Found::Whole(Needs { layer: stored.layer, blobs: stored.blobs, of_this_boot })
            }
            Found::Absent => Found::Absent,
            Found::Broken(reason) => Found::Broken(reason),
        })
    }

    /// What the record for `key` needs, without counting it as a use; none when there is none or it is torn.
    pub(crate) fn peek(&self, key: &CacheKey) -> Result<Option<(Option<LayerId>, Vec<Digest>)>> {
        let stored = record::read::<Stored>(&self.store.layout().cache_record(key))?.or_lost();
        Ok(stored.map(|stored| (stored.layer, stored.blobs)))
    }
}

/// The right to run a step, until it is dropped or the process ends.
#[derive(Debug)]
pub struct KeyLock {
    _lock: TransientLock,
    /// The lease must outlive the lock.
    _store: Store,
}
