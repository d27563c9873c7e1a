//! Decides, without touching anything, what a `prune` removes and in which order.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

use kiln_oci::digest::Digest;

use super::filter::Subject;
use super::scan::{Scan, Weight};
use super::{Disk, Kind, PruneOptions};
use crate::snapshot::LayerId;

/// What was not used for so long goes when `prune` is told nothing else.
const RECENT: Duration = Duration::from_hours(48);

/// Indices into, and names of, what a [`Scan`] found; to be removed in the order of the fields. Layers come with children
/// before parents, so that stopping anywhere leaves no layer without its parent.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan {
    pub(super) records: Vec<usize>,
    pub(super) images: Vec<usize>,
    pub(super) layers: Vec<LayerId>,
    pub(super) blobs: Vec<Digest>,
    pub(super) mounts: Vec<usize>,
    pub(super) memos: Vec<usize>,
    pub(super) freed: u64,
}

impl Plan {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Something whose going is decided by itself; layers and blobs go with the last that needs them.
#[derive(Debug, Clone)]
enum Unit {
    Record(usize),
    Nameless(usize),
    Mount(usize),
    Memo(usize),
    Layer(LayerId),
    Blob(Digest),
}

/// What images with names need.
#[derive(Debug, Default)]
pub(super) struct Needs {
    /// How many different images need each layer.
    pub(super) layers: HashMap<LayerId, usize>,
    /// How many different images need each blob.
    pub(super) blobs: HashMap<Digest, usize>,
}

impl Needs {
    pub(super) fn of(scan: &Scan) -> Self {
        let mut needs = Self::default();
        let mut seen = HashSet::new();
        for image in scan.images.iter().filter(|image| image.record.name.is_some()) {
            let (layers, blobs) = closure(scan, image.record.needed_layers(), image.blobs());
            // Two names of one image share nothing with one another; but their records may know different blobs.
            let first = seen.insert(image.record.config);
            for layer in layers {
                let count = needs.layers.entry(layer).or_default();
                *count = (*count + usize::from(first)).max(1);
            }
            for blob in blobs {
                let count = needs.blobs.entry(blob).or_default();
                *count = (*count + usize::from(first)).max(1);
            }
        }
        needs
    }
}

/// The layers, those below them, and all their blobs.
fn closure<'a>(
    scan: &'a Scan,
    layers: impl Iterator<Item = &'a LayerId>,
    blobs: impl Iterator<Item = Digest>,
) -> (HashSet<LayerId>, HashSet<Digest>) {
    let mut all_layers = HashSet::new();
    let mut all_blobs: HashSet<Digest> = blobs.collect();
    for layer in layers {
        let mut next = Some(layer);
        while let Some(id) = next {
            if !all_layers.insert(id.clone()) {
                break;
            }
            let node = scan.layers.get(id);
            all_blobs.extend(node.into_iter().flat_map(|node| node.blobs.iter().copied()));
            next = node.and_then(|node| node.parent.as_ref());
        }
    }
    (all_layers, all_blobs)
}

/// Counts who needs what, and takes away what nobody needs any more.
struct Ledger<'a> {
    scan: &'a Scan,
    layers: HashMap<LayerId, usize>,
    blobs: HashMap<Digest, usize>,
    plan: Plan,
}

impl Ledger<'_> {
    fn retain(&mut self, layer: Option<&LayerId>, blobs: impl IntoIterator<Item = Digest>) {
        if let Some(layer) = layer {
            *self.layers.entry(layer.clone()).or_default() += 1;
        }
        for blob in blobs {
            *self.blobs.entry(blob).or_default() += 1;
        }
    }

    fn release(&mut self, layer: Option<&LayerId>, blobs: impl IntoIterator<Item = Digest>) {
        for blob in blobs {
            if self.blobs.get_mut(&blob).is_some_and(|count| {
                *count -= 1;
                *count == 0
            }) {
                self.drop_blob(blob);
            }
        }
        let mut next = layer.cloned();
        while let Some(layer) = next.take() {
            if self.layers.get_mut(&layer).is_some_and(|count| {
                *count -= 1;
                *count == 0
            }) {
                next = self.drop_layer(&layer);
            }
        }
    }

    /// Returns the parent, which its caller releases.
    fn drop_layer(&mut self, id: &LayerId) -> Option<LayerId> {
        let node = self.scan.layers.get(id)?;
        self.plan.freed += node.weight.size;
        self.plan.layers.push(id.clone());
        if !node.usable {
            return None;
        }
        self.release(None, node.blobs.iter().copied());
        node.parent.clone()
    }

    fn drop_blob(&mut self, digest: Digest) {
        if let Some(weight) = self.scan.blobs.get(&digest) {
            self.plan.freed += weight.size;
            self.plan.blobs.push(digest);
        }
    }

    fn drop_unit(&mut self, unit: &Unit) {
        match unit {
            Unit::Record(index) => {
                let record = &self.scan.records[*index];
                self.plan.freed += record.weight.size;
                self.plan.records.push(*index);
                self.release(record.layer.as_ref(), record.blobs.iter().copied());
            }
            Unit::Nameless(index) => {
                let image = &self.scan.images[*index];
                self.plan.freed += image.weight.size;
                self.plan.images.push(*index);
                self.release(None, image.blobs());
                for layer in image.record.needed_layers().rev() {
                    self.release(Some(layer), None);
                }
            }
            Unit::Mount(index) => {
                self.plan.freed += self.scan.mounts[*index].weight.size;
                self.plan.mounts.push(*index);
            }
            Unit::Memo(index) => {
                self.plan.freed += self.scan.memos[*index].weight.size;
                self.plan.memos.push(*index);
            }
            Unit::Layer(id) => {
                let parent = self.drop_layer(id);
                self.release(parent.as_ref(), None);
            }
            Unit::Blob(digest) => self.drop_blob(*digest),
        }
    }
}

/// The plan for `options`.
pub(super) fn plan(scan: &Scan, options: &PruneOptions, disk: Disk) -> Plan {
    let usable = |layer: &LayerId| scan.layers.get(layer).is_some_and(|node| node.usable);
    let alive = |index: usize| {
        let record = &scan.records[index];
        record.whole && record.layer.as_ref().is_none_or(usable)
    };
    let mut ledger = Ledger { scan, layers: HashMap::new(), blobs: HashMap::new(), plan: Plan::default() };
    for image in &scan.images {
        ledger.retain(None, image.blobs());
        for layer in image.record.needed_layers() {
            ledger.retain(Some(layer), None);
        }
    }
    for (index, record) in scan.records.iter().enumerate() {
        if alive(index) {
            ledger.retain(record.layer.as_ref(), record.blobs.iter().copied());
        }
    }
    for node in scan.layers.values().filter(|node| node.usable) {
        ledger.retain(node.parent.as_ref(), node.blobs.iter().copied());
    }

    let mut units: Vec<(Weight, usize, Unit)> = Vec::new();
    for (index, record) in scan.records.iter().enumerate() {
        if alive(index) {
            let depth = record.layer.as_ref().and_then(|layer| scan.layers.get(layer)).map_or(0, |node| node.depth);
            units.push((record.weight, depth, Unit::Record(index)));
        } else {
            // It counts as absent already, and so does its layer.
            ledger.plan.freed += record.weight.size;
            ledger.plan.records.push(index);
        }
    }
    for (index, image) in scan.images.iter().enumerate().filter(|(_, image)| image.record.name.is_none()) {
        units.push((image.weight, 0, Unit::Nameless(index)));
    }
    for (index, mount) in scan.mounts.iter().enumerate() {
        units.push((mount.weight, 0, Unit::Mount(index)));
    }
    for (index, memo) in scan.memos.iter().enumerate() {
        units.push((memo.weight, 0, Unit::Memo(index)));
    }
    let mut dead: Vec<&LayerId> = Vec::new();
    for (id, node) in scan.layers.iter().filter(|(id, _)| !ledger.layers.contains_key(*id)) {
        if node.usable {
            units.push((node.weight, node.depth, Unit::Layer(id.clone())));
        } else {
            dead.push(id);
        }
    }
    for (digest, weight) in scan.blobs.iter().filter(|(digest, _)| !ledger.blobs.contains_key(*digest)) {
        units.push((*weight, 0, Unit::Blob(*digest)));
    }
    for id in dead {
        ledger.drop_layer(id);
    }
    units.sort_by_key(|(weight, depth, _)| (minute(weight.last_used), Reverse(*depth)));

    let unlimited = options.all || options.space.is_limited() || !options.filters.is_empty();
    let spare = options.filter_until.unwrap_or(if unlimited { Duration::ZERO } else { RECENT });
    let reclaimable = reclaimable(scan);
    let keep = options.space.keep(reclaimable, disk);
    let needs = Needs::of(scan);
    for (weight, _, unit) in &units {
        if keep.is_some_and(|keep| reclaimable.saturating_sub(ledger.plan.freed) <= keep) {
            break;
        }
        if is_old(weight.last_used, options.now, spare) && is_admitted(scan, &needs, options, unit) {
            ledger.drop_unit(unit);
        }
    }
    ledger.plan
}

fn is_admitted(scan: &Scan, needs: &Needs, options: &PruneOptions, unit: &Unit) -> bool {
    if options.filters.is_empty() {
        return true;
    }
    let subject = subject(scan, needs, unit);
    options.filters.iter().any(|all| all.iter().all(|filter| filter.admits(&subject)))
}

/// What filters see of it. Nothing that can go is in use.
fn subject(scan: &Scan, needs: &Needs, unit: &Unit) -> Subject {
    let mut subject = Subject { ids: Vec::new(), kinds: Vec::new(), parent: None, shared: false, in_use: false };
    let mut add = |kind: Kind, id: String| {
        subject.kinds.push(kind);
        subject.ids.push(id);
    };
    let layer = match unit {
        Unit::Record(index) => {
            let record = &scan.records[*index];
            add(Kind::CacheRecord, record.key.hex());
            record.layer.clone()
        }
        Unit::Nameless(index) => {
            add(Kind::Image, scan.images[*index].record.config.to_string());
            None
        }
        Unit::Mount(index) => {
            add(Kind::CacheMount, scan.mounts[*index].id.clone());
            None
        }
        Unit::Memo(index) => {
            add(Kind::Memo, scan.memos[*index].id.clone());
            None
        }
        Unit::Layer(id) => Some(id.clone()),
        Unit::Blob(digest) => {
            add(Kind::Blob, digest.to_string());
            None
        }
    };
    if let Some(id) = layer {
        add(Kind::Layer, id.to_string());
        subject.shared = needs.layers.get(&id).is_some_and(|users| *users > 1);
        subject.parent = scan.layers.get(&id).and_then(|node| node.parent.as_ref()).map(ToString::to_string);
    }
    subject
}

/// How much the things take that no named image needs.
fn reclaimable(scan: &Scan) -> u64 {
    let needs = Needs::of(scan);
    let nameless = scan.images.iter().filter(|image| image.record.name.is_none()).map(|image| image.weight.size);
    let layers = scan.layers.iter().filter(|(id, _)| !needs.layers.contains_key(*id)).map(|(_, node)| node.weight.size);
    let blobs = scan.blobs.iter().filter(|(digest, _)| !needs.blobs.contains_key(*digest)).map(|(_, weight)| weight.size);
    let records = scan.records.iter().map(|record| record.weight.size);
    let mounts = scan.mounts.iter().map(|mount| mount.weight.size);
    let memos = scan.memos.iter().map(|memo| memo.weight.size);
    nameless.chain(layers).chain(blobs).chain(records).chain(mounts).chain(memos).sum()
}

/// What was used in the future (the clock was set back) was used just now.
fn is_old(last_used: SystemTime, now: SystemTime, spare: Duration) -> bool {
    spare.is_zero() || now.duration_since(last_used).is_ok_and(|age| age >= spare)
}

/// The steps of one build are used within moments of one another: within a minute, the later step goes first, since what
/// is left of the build is still of use then.
fn minute(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs() / 60)
}
