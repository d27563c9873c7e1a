//! Hides what needs what: sizes for `du`, and the collection of what nothing needs.

use std::time::{Duration, SystemTime};

use crate::Store;
use crate::error::Result;

/// What a row of `du` is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// An image name.
    Image,
    /// The tree and the record of a layer.
    Layer,
    /// A cache record.
    CacheRecord,
    /// The folders of a cache mount.
    CacheMount,
    /// A blob.
    Blob,
}

/// One thing in the store. The sizes of all rows add up to what the store takes.
#[derive(Debug, Clone, PartialEq)]
pub struct UsageRow {
    /// What it is.
    pub kind: Kind,
    /// Its name: of an image its reference (or id), of a layer its id, of a record its key, of a blob its digest.
    pub id: String,
    /// The disk space that it takes, in bytes; nothing is counted twice.
    pub size: u64,
    /// Whether more than one image needs it.
    pub shared: bool,
    /// Whether no image needs it.
    pub reclaimable: bool,
    /// When it was last used.
    pub last_used: SystemTime,
}

/// What `prune` is asked to do.
#[derive(Debug, Clone)]
pub struct PruneOptions {
    /// Remove everything that no image needs, however recently it was used.
    pub all: bool,
    /// Remove only what was not used for this long.
    pub filter_until: Option<Duration>,
    /// Stop as soon as what no image needs takes no more than so many bytes; the least recently used goes first.
    pub keep_storage: Option<u64>,
    /// Only say what would be removed.
    pub dry_run: bool,
    /// What time it is.
    pub now: SystemTime,
}

/// What `prune` did.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PruneReport {
    /// What was removed.
    pub removed: Vec<UsageRow>,
    /// How many bytes that freed.
    pub freed: u64,
}

/// Sizes, and collection of what nothing needs.
#[derive(Debug, Clone, Copy)]
pub struct Gc<'a> {
    store: &'a Store,
}

impl<'a> Gc<'a> {
    pub(crate) fn new(store: &'a Store) -> Self {
        Self { store }
    }

    /// One row for each thing in the store.
    ///
    /// # Errors
    /// [`crate::Error::BadRecord`] for a damaged image name, [`crate::Error::Io`].
    pub fn usage(&self) -> Result<Vec<UsageRow>> {
        let _ = self.store;
        Ok(Vec::new())
    }

    /// Removes what nothing needs.
    ///
    /// # Errors
    /// [`crate::Error::Interrupted`], [`crate::Error::BadRecord`] for a damaged image name, [`crate::Error::Io`].
    pub fn prune(&self, options: &PruneOptions) -> Result<PruneReport> {
        let _ = (self.store, options);
        Ok(PruneReport::default())
    }
}
