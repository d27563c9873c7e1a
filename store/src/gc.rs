//! Hides what needs what: sizes for `du`, and the collection of what nothing needs.

use std::time::{Duration, SystemTime};

use crate::Store;
use crate::error::{Error, Result};
use crate::lock::{self, Mode, TransientLock, WaitFor};
use crate::snapshot::LayerId;
use crate::{record, remove};

mod filter;
mod plan;
mod scan;
mod size;
mod space;

pub use filter::{Filter, FilterError};
pub(crate) use size::of_tree as size_of_tree;
pub use space::{Disk, Space};

use filter::Subject;
use plan::{Needs, Plan};
use scan::{Scan, Weight};

/// How often a store is looked through for what can be collected, and how often when the disk is nearly full.
const OFTEN: Duration = Duration::from_hours(1);
const OFTEN_WHEN_PRESSED: Duration = Duration::from_mins(1);

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
    /// What is remembered of a context's files.
    Memo,
    /// The store's own folders, locks, and what is unfinished or on its way out.
    Internal,
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
    /// Remove only what one of these admits with all its conditions; everything when there is none.
    pub filters: Vec<Vec<Filter>>,
    /// Stop as soon as what no image needs is within these limits; the least recently used goes first.
    pub space: Space,
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

    /// One row for each thing in the store: images, layers, cache records, cache mounts, blobs, memos.
    ///
    /// The size of a layer's tree is measured once and remembered beside it.
    ///
    /// # Errors
    /// [`Error::BadRecord`] for a damaged image name, [`Error::Io`].
    pub fn usage(&self) -> Result<Vec<UsageRow>> {
        Ok(rows(&Scan::of(self.store)?))
    }

    /// What the store takes besides: with this row, sizes add up to what the disk says.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn overhead(&self) -> Result<UsageRow> {
        let size = scan::overhead(self.store.layout())?;
        let id = "store".to_owned();
        Ok(UsageRow { kind: Kind::Internal, id, size, shared: false, reclaimable: false, last_used: SystemTime::now() })
    }

    /// Those of the rows that the filters admit all together.
    pub fn filtered(&self, rows: Vec<UsageRow>, filters: &[Filter]) -> Vec<UsageRow> {
        let admitted = |row: &UsageRow| {
            let parent = LayerId::parse(&row.id).filter(|_| row.kind == Kind::Layer);
            let parent = parent.and_then(|id| self.store.layers().get(&id).ok().flatten()).and_then(|record| record.parent);
            let subject = Subject {
                ids: vec![row.id.clone()],
                kinds: vec![row.kind],
                parent: parent.map(|id| id.to_string()),
                shared: row.shared,
                in_use: !row.reclaimable,
            };
            filters.iter().all(|filter| filter.admits(&subject))
        };
        rows.into_iter().filter(admitted).collect()
    }

    /// The disk that the store is on.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn disk(&self) -> Result<Disk> {
        let root = self.store.layout().root();
        let told = rustix::fs::statvfs(root).map_err(Error::io("ask for the free space of", root))?;
        Ok(Disk { size: told.f_blocks * told.f_frsize, free: told.f_bavail * told.f_frsize })
    }

    /// Whether [`Gc::collect_by`] should be called: an hour after the last time, or a minute if less is free than `min_free`. A
    /// store that was never looked through begins to count now.
    pub fn is_due(&self, min_free: Option<u64>, now: SystemTime) -> bool {
        let stamp = self.store.layout().collected();
        let Ok(last) = std::fs::metadata(&stamp).and_then(|meta| meta.modified()) else {
            // A full disk must not stop it, and a store that can't be written isn't collected either.
            return std::fs::File::create(&stamp).is_err() && self.disk().is_ok_and(|disk| disk.free == 0);
        };
        // A stamp of the future is another process's of this moment, or the clock was set back.
        let since = now
            .duration_since(last)
            .unwrap_or_else(|ahead| if ahead.duration() < OFTEN_WHEN_PRESSED { Duration::ZERO } else { OFTEN });
        since >= OFTEN
            || since >= OFTEN_WHEN_PRESSED && min_free.is_some_and(|wanted| self.disk().is_ok_and(|disk| disk.free < wanted))
    }

    /// Carries out each of the policies in turn, unless another process (or another handle of this one) uses the store; then none.
    /// What another process uses can't be told from what it doesn't, but it will collect when it ends.
    ///
    /// # Errors
    /// Those of [`Gc::prune`].
    pub fn collect_by(&self, policies: &[PruneOptions]) -> Result<Option<PruneReport>> {
        let stamp = self.store.layout().collected();
        // Says that this was done even if nothing is found; on a full disk it is done the next time, too.
        let _ = std::fs::File::create(&stamp);
        record::touch_path(&stamp);
        let scan = Scan::of(self.store)?;
        let mut wanted = Vec::new();
        for policy in policies {
            if !plan::plan(&scan, policy, self.disk()?).is_empty() {
                wanted.push(policy);
            }
        }
        if wanted.is_empty() {
            return Ok(Some(PruneReport::default()));
        }
        let path = self.store.layout().lease();
        let outcome = match lock::try_lock(self.store.lease(), &path, Mode::Exclusive)? {
            true => self.carry_out_all(&wanted).map(Some),
            false => Ok(None),
        };
        // The attempt gave the shared lease up, too.
        lock::lock_lasting(self.store.lease(), &path, Mode::Shared, &WaitFor::Prune, self.store.waiter())?;
        outcome
    }

    /// Removes what neither an image with a name nor, unless `all` is said, a recent use needs.
    ///
    /// Without `all`, `filter_until`, `filters` and `space`, recent means the last 48 hours. Waits until no other process uses
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
            return Ok(report(&scan, &plan::plan(&scan, options, self.disk()?)));
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

    fn carry_out_all(&self, policies: &[&PruneOptions]) -> Result<PruneReport> {
        let mut all = PruneReport::default();
        for policy in policies {
            let PruneReport { removed, freed } = self.collect(policy)?;
            all.removed.extend(removed);
            all.freed += freed;
            // The next policy asks the disk what is free now.
            remove::empty_trash(&self.store.layout().trash())?;
        }
        Ok(all)
    }

    fn collect(&self, options: &PruneOptions) -> Result<PruneReport> {
        // Another prune may have run while we waited.
        self.store.memory().forget();
        let scan = Scan::of(self.store)?;
        let plan = plan::plan(&scan, options, self.disk()?);
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
        for &index in &plan.memos {
            record::remove(&scan.memos[index].path)?;
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
    for memo in &scan.memos {
        rows.push(row(Kind::Memo, memo.id.clone(), &memo.weight, 0));
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
    let memos: HashSet<String> = plan.memos.iter().map(|&index| scan.memos[index].id.clone()).collect();
    let removed = rows(scan).into_iter().filter(|row| match row.kind {
        Kind::CacheRecord => records.contains(&row.id),
        Kind::Image => images.contains(&row.id),
        Kind::Layer => layers.contains(&row.id),
        Kind::Blob => blobs.contains(&row.id),
        Kind::CacheMount => mounts.contains(&row.id),
        Kind::Memo => memos.contains(&row.id),
        Kind::Internal => false,
    });
    PruneReport { removed: removed.collect(), freed: plan.freed }
}

/// The disk space of a tree, for the tests of the store.
#[cfg(test)]
pub(crate) fn measure(path: &std::path::Path) -> u64 {
    size::of_tree(path).unwrap()
}
