//! Hides what needs what: sizes for `du`, and the collection of what nothing needs.

use std::time::{Duration, SystemTime};

use crate::Store;
use crate::error::{Error, Result};
use crate::lock::{self, Mode, TransientLock, WaitFor};
use crate::{record, remove};

mod plan;
mod scan;
mod size;

pub(crate) use size::of_tree as size_of_tree;

use plan::{Needs, Plan};
use scan::{Scan, Weight};

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

    /// One row for each thing in the store: images, layers, cache records, cache mounts, blobs.
    ///
    /// The size of a layer's tree is measured once and remembered beside it.
    ///
    /// # Errors
    /// [`Error::BadRecord`] for a damaged image name, [`Error::Io`].
    pub fn usage(&self) -> Result<Vec<UsageRow>> {
        Ok(rows(&Scan::of(self.store)?))
    }

    /// Removes what neither an image with a name nor, unless `all` is said, a recent use needs.
    ///
    /// Without `all`, `filter_until` and `keep_storage`, recent means the last 48 hours. Waits until no other process uses
    /// the store, as long as the handle's [`Store::on_wait`] lets it; this process may not use it meanwhile either, except
    /// for what it began in [`Store::layers`], [`Store::blobs`] and so on and has not committed, which stays. What is removed is
    /// gone for every process by one rename each; the deletion itself happens after others were let in again.
    ///
    /// # Errors
    /// [`Error::Interrupted`]; [`Error::BadRecord`] for a damaged image name, since what it needs isn't known;
    /// [`Error::Io`]. Whatever was removed until then stays removed, and the store is whole.
    pub fn prune(&self, options: &PruneOptions) -> Result<PruneReport> {
        if options.dry_run {
            let scan = Scan::of(self.store)?;
            return Ok(report(&scan, &plan::plan(&scan, options)));
        }
        // Measures what wasn't measured yet while builds may still run beside us.
        Scan::of(self.store)?;
        let path = self.store.layout().lease();
        let exclusive = lock::lock_lasting(self.store.lease(), &path, Mode::Exclusive, &WaitFor::Users, self.store.waiter());
        let outcome = exclusive.and_then(|()| self.collect(options));
        // Even after an error: the lease was given up to wait for the exclusive one.
        let shared = lock::lock_lasting(self.store.lease(), &path, Mode::Shared, &WaitFor::Prune, self.store.waiter());
        let report = outcome?;
        shared?;
        remove::empty_trash(&self.store.layout().trash())?;
        Ok(report)
    }

    fn collect(&self, options: &PruneOptions) -> Result<PruneReport> {
        // Another prune may have run while we waited.
        self.store.memory().forget();
        let scan = Scan::of(self.store)?;
        let plan = plan::plan(&scan, options);
        let outcome = self.carry_out(&scan, &plan);
        self.store.memory().forget();
        outcome?;
        Ok(report(&scan, &plan))
    }

    fn carry_out(&self, scan: &Scan, plan: &Plan) -> Result<()> {
        let layout = self.store.layout();
        for &index in &plan.records {
            self.store.cache().remove(&scan.records[index].key)?;
        }
        for &index in &plan.images {
            self.store.images().remove_nameless(&scan.images[index].record.config)?;
        }
        for id in &plan.layers {
            remove::discard(layout.layer(id).path(), layout)?;
        }
        for digest in &plan.blobs {
            record::remove(&layout.blob(digest))?;
        }
        for &index in &plan.mounts {
            remove::discard(&scan.mounts[index].path, layout)?;
        }
        // Lock files of processes that were killed while they held them.
        for entry in std::fs::read_dir(layout.locks()).map_err(Error::io("list", &layout.locks()))? {
            let path = entry.map_err(Error::io("list", &layout.locks()))?.path();
            drop(TransientLock::try_acquire(&path)?);
        }
        Ok(())
    }
}

fn rows(scan: &Scan) -> Vec<UsageRow> {
    let needs = Needs::of(scan);
    let row = |kind, id: String, weight: &Weight, users: usize| {
        let Weight { size, last_used } = *weight;
        UsageRow { kind, id, size, shared: users > 1, reclaimable: users == 0, last_used }
    };
    let mut rows = Vec::new();
    for image in &scan.images {
        let name = &image.record.name;
        let id = name.as_ref().map_or_else(|| image.record.config.to_string(), ToString::to_string);
        rows.push(row(Kind::Image, id, &image.weight, usize::from(name.is_some())));
    }
    for (id, node) in &scan.layers {
        rows.push(row(Kind::Layer, id.to_string(), &node.weight, needs.layers.get(id).copied().unwrap_or(0)));
    }
    for record in &scan.records {
        rows.push(row(Kind::CacheRecord, record.key.hex(), &record.weight, 0));
    }
    for mount in &scan.mounts {
        rows.push(row(Kind::CacheMount, mount.id.clone(), &mount.weight, 0));
    }
    for (digest, weight) in &scan.blobs {
        rows.push(row(Kind::Blob, digest.to_string(), weight, needs.blobs.get(digest).copied().unwrap_or(0)));
    }
    rows
}

fn report(scan: &Scan, plan: &Plan) -> PruneReport {
    use std::collections::HashSet;
    let records: HashSet<String> = plan.records.iter().map(|&index| scan.records[index].key.hex()).collect();
    let images: HashSet<String> = plan.images.iter().map(|&index| scan.images[index].record.config.to_string()).collect();
    let layers: HashSet<String> = plan.layers.iter().map(ToString::to_string).collect();
    let blobs: HashSet<String> = plan.blobs.iter().map(ToString::to_string).collect();
    let mounts: HashSet<String> = plan.mounts.iter().map(|&index| scan.mounts[index].id.clone()).collect();
    let removed = rows(scan).into_iter().filter(|row| match row.kind {
        Kind::CacheRecord => records.contains(&row.id),
        Kind::Image => images.contains(&row.id),
        Kind::Layer => layers.contains(&row.id),
        Kind::Blob => blobs.contains(&row.id),
        Kind::CacheMount => mounts.contains(&row.id),
    });
    PruneReport { removed: removed.collect(), freed: plan.freed }
}

/// The disk space of a tree, for the tests of the store.
#[cfg(test)]
pub(crate) fn measure(path: &std::path::Path) -> u64 {
    size::of_tree(path).unwrap()
}
