//! Hides how everything in the store is found, with its size and what it needs.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use kiln_oci::digest::Digest;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::size;
use crate::Store;
use crate::cache::CacheKey;
use crate::error::{Error, Result};
use crate::image::ImageRecord;
use crate::layout::{LayerDir, Layout, MountDir};
use crate::record;
use crate::snapshot::{LayerId, LayerKind, LayerRecord};

/// Size and age of one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Weight {
    /// Disk space in bytes.
    pub(super) size: u64,
    pub(super) last_used: SystemTime,
}

#[derive(Debug, Clone)]
pub(super) struct ImageNode {
    pub(super) record: ImageRecord,
    pub(super) weight: Weight,
}

impl ImageNode {
    pub(super) fn blobs(&self) -> impl Iterator<Item = Digest> {
        self.record.needed_blobs()
    }
}

#[derive(Debug, Clone)]
pub(super) struct LayerNode {
    pub(super) parent: Option<LayerId>,
    pub(super) blobs: Vec<Digest>,
    /// Whether it and all below it are there and can be believed.
    pub(super) usable: bool,
    /// How many layers lie below.
    pub(super) depth: usize,
    pub(super) weight: Weight,
}

#[derive(Debug, Clone)]
pub(super) struct RecordNode {
    pub(super) key: CacheKey,
    pub(super) layer: Option<LayerId>,
    pub(super) blobs: Vec<Digest>,
    /// Whether it was whole.
    pub(super) whole: bool,
    pub(super) weight: Weight,
}

#[derive(Debug, Clone)]
pub(super) struct MountNode {
    pub(super) id: String,
    pub(super) path: PathBuf,
    pub(super) weight: Weight,
}

/// All that is in the store.
#[derive(Debug, Clone, Default)]
pub(super) struct Scan {
    pub(super) images: Vec<ImageNode>,
    pub(super) layers: BTreeMap<LayerId, LayerNode>,
    pub(super) records: Vec<RecordNode>,
    pub(super) mounts: Vec<MountNode>,
    pub(super) blobs: BTreeMap<Digest, Weight>,
    pub(super) memos: Vec<MemoNode>,
}

#[derive(Debug, Clone)]
pub(super) struct MemoNode {
    pub(super) id: String,
    pub(super) path: PathBuf,
    pub(super) weight: Weight,
}

impl Scan {
    pub(super) fn of(store: &Store) -> Result<Self> {
        let mut scan = Self {
            images: images(store)?,
            layers: layers(store)?,
            records: records(store)?,
            mounts: mounts(store)?,
            blobs: blobs(store)?,
            memos: memos(store)?,
        };
        for record in &scan.records {
            if let Some(layer) = record.layer.as_ref().and_then(|layer| scan.layers.get_mut(layer)) {
                layer.weight.last_used = layer.weight.last_used.max(record.weight.last_used);
            }
        }
        Ok(scan)
    }
}

fn images(store: &Store) -> Result<Vec<ImageNode>> {
    let mut nodes = Vec::new();
    for record in store.images().list()? {
        let path = match &record.name {
            Some(name) => store.layout().image(&name.to_string()),
            None => store.layout().nameless_image(&record.config),
        };
        if let Some(weight) = weigh_file(&path)? {
            nodes.push(ImageNode { record, weight });
        }
    }
    Ok(nodes)
}

fn layers(store: &Store) -> Result<BTreeMap<LayerId, LayerNode>> {
    let ids: Vec<LayerId> = names(&store.layout().layers())?.iter().filter_map(|name| LayerId::parse(name)).collect();
    let nodes: Result<Vec<_>> = ids
        .into_par_iter()
        .map(|id| {
            let record = store.layers().get(&id)?;
            let weight = weigh_layer(&store.layout().layer(&id), record.as_ref())?;
            Ok((id, record, weight))
        })
        .collect();
    let nodes = nodes?;
    let parents: HashMap<&LayerId, Option<&LayerId>> =
        nodes.iter().filter_map(|(id, record, _)| record.as_ref().map(|r| (id, r.parent.as_ref()))).collect();
    let mut depths = HashMap::new();
    for (id, _, _) in &nodes {
        depth(id, &parents, &mut depths);
    }
    let node = |(id, record, weight): &(LayerId, Option<LayerRecord>, Weight)| {
        let depth = depths.get(id).copied().flatten();
        let blobs = record.as_ref().map_or(Vec::new(), blobs_of);
        let parent = record.as_ref().and_then(|r| r.parent.clone());
        let node = LayerNode { parent, blobs, usable: depth.is_some(), depth: depth.unwrap_or(0), weight: *weight };
        (id.clone(), node)
    };
    Ok(nodes.iter().map(node).collect())
}

/// How many layers lie below `id`; none if one of them is missing or they form a ring.
fn depth<'a>(
    id: &'a LayerId,
    parents: &HashMap<&'a LayerId, Option<&'a LayerId>>,
    depths: &mut HashMap<&'a LayerId, Option<usize>>,
) {
    let mut path = Vec::new();
    let mut next = Some(id);
    // What the walk ends on: the ground, a layer whose depth is known, one that is missing, or one of its own (a ring).
    let mut below = loop {
        let Some(id) = next else { break Some(0) };
        if let Some(known) = depths.get(id) {
            break known.map(|depth| depth + 1);
        }
        let Some(parent) = parents.get(id) else { break None };
        if path.len() > parents.len() {
            break None;
        }
        path.push(id);
        next = *parent;
    };
    for id in path.into_iter().rev() {
        depths.insert(id, below);
        below = below.map(|depth| depth + 1);
    }
}

fn blobs_of(record: &LayerRecord) -> Vec<Digest> {
    let mut blobs: Vec<Digest> = record.blobs.iter().map(|packed| packed.descriptor.digest).collect();
    if let LayerKind::Base(base) = &record.kind {
        blobs.push(base.blob.digest);
    }
    blobs.sort();
    blobs.dedup();
    blobs
}

fn records(store: &Store) -> Result<Vec<RecordNode>> {
    let root = store.layout().cache();
    let shards: Result<Vec<Vec<RecordNode>>> = names(&root)?
        .into_par_iter()
        .map(|shard| {
            let mut nodes = Vec::new();
            for name in names(&root.join(&shard))? {
                let Some(key) = Layout::cache_key(&shard, &name) else { continue };
                let path = store.layout().cache_record(&key);
                let Some(weight) = weigh_file(&path)? else { continue };
                let stored = store.cache().peek(&key)?;
                let whole = stored.is_some();
                let (layer, blobs) = stored.unwrap_or_default();
                nodes.push(RecordNode { key, layer, blobs, whole, weight });
            }
            Ok(nodes)
        })
        .collect();
    Ok(shards?.into_iter().flatten().collect())
}

fn mounts(store: &Store) -> Result<Vec<MountNode>> {
    let root = store.layout().mounts();
    let mut nodes = Vec::new();
    for name in names(&root)? {
        let dir = MountDir(root.join(&name));
        // The locks of the slots are touched at every use.
        let mut last_used = SystemTime::UNIX_EPOCH;
        for entry in names(dir.path())?.iter().filter(|entry| entry.ends_with(".lock")) {
            if let Some(weight) = weigh_file(&dir.path().join(entry))? {
                last_used = last_used.max(weight.last_used);
            }
        }
        let id = fs::read(dir.id()).map_or(name, |id| String::from_utf8_lossy(&id).into_owned());
        let weight = Weight { size: size::of_tree(dir.path())?, last_used };
        nodes.push(MountNode { id, path: dir.path().to_owned(), weight });
    }
    Ok(nodes)
}

fn blobs(store: &Store) -> Result<BTreeMap<Digest, Weight>> {
    let root = store.layout().blobs();
    let mut found = BTreeMap::new();
    for name in names(&root)? {
        let Some(digest) = Digest::from_hex(&name) else { continue };
        if let Some(weight) = weigh_file(&store.layout().blob(&digest))? {
            found.insert(digest, weight);
        }
    }
    Ok(found)
}

fn memos(store: &Store) -> Result<Vec<MemoNode>> {
    let root = store.layout().memos();
    let mut nodes = Vec::new();
    for id in names(&root)? {
        let path = root.join(&id);
        if let Some(weight) = weigh_file(&path)? {
            nodes.push(MemoNode { id, path, weight });
        }
    }
    Ok(nodes)
}

/// What lies in a store and is none of the things above, folders included.
pub(super) fn overhead(layout: &Layout) -> Result<u64> {
    let mut total = 0;
    for path in layout.own_files() {
        total += weigh_file(&path)?.map_or(0, |weight| weight.size);
    }
    for path in layout.own_trees() {
        total += size::of_tree(&path)?;
    }
    for shard in names(&layout.cache())? {
        total += weigh_file(&layout.cache().join(shard))?.map_or(0, |weight| weight.size);
    }
    for layer in names(&layout.layers())? {
        total += weigh_file(&layout.layers().join(layer))?.map_or(0, |weight| weight.size);
    }
    Ok(total)
}

/// The names in a folder of the store; all names that kiln gives are text, and others are none of its business.
fn names(dir: &Path) -> Result<Vec<String>> {
    let list = match fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        list => list.map_err(Error::io("list", dir))?,
    };
    let mut names = Vec::new();
    for entry in list {
        if let Ok(name) = entry.map_err(Error::io("list", dir))?.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn weigh_file(path: &Path) -> Result<Option<Weight>> {
    match fs::symlink_metadata(path) {
        Ok(meta) => {
            let last_used = meta.modified().map_err(Error::io("stat", path))?;
            Ok(Some(Weight { size: size::of_file(&meta), last_used }))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("stat", path)(error)),
    }
}

/// `usage`: the disk space of a tree that doesn't change any more.
#[derive(Serialize, Deserialize)]
struct Usage {
    bytes: u64,
}

fn weigh_layer(dir: &LayerDir, record: Option<&LayerRecord>) -> Result<Weight> {
    let used = weigh_file(&dir.record())?.or(weigh_file(dir.path())?);
    let last_used = used.map_or(SystemTime::UNIX_EPOCH, |weight| weight.last_used);
    let finished = record.is_some_and(|record| record.unpacked);
    let remembered = if finished { record::read::<Usage>(&dir.usage())?.or_lost() } else { None };
    let tree = match remembered {
        Some(usage) => usage.bytes,
        None => {
            let bytes = size::of_tree(&dir.diff())?;
            if finished && let Ok(sealed) = record::seal(&Usage { bytes }, &dir.usage()) {
                // In place and without care: a torn one is measured again, and a full disk must not stop `prune`.
                let _ = fs::write(dir.usage(), sealed);
            }
            bytes
        }
    };
    // Last, since `usage` may only be there now.
    let mut size = tree;
    for path in [dir.record(), dir.facts(), dir.unpacked(), dir.durable(), dir.usage(), dir.owners()] {
        size += weigh_file(&path)?.map_or(0, |weight| weight.size);
    }
    Ok(Weight { size, last_used })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::depth;
    use crate::snapshot::LayerId;

    #[test]
    fn depths_of_chains_rings_and_orphans() {
        let id = |n: u32| LayerId::parse(&format!("n{n:032x}")).unwrap();
        let ids: Vec<LayerId> = (0..7).map(id).collect();
        // 0 <- 1 <- 2; 3 <-> 4; 5 on one that is missing.
        let parents = HashMap::from([
            (&ids[0], None),
            (&ids[1], Some(&ids[0])),
            (&ids[2], Some(&ids[1])),
            (&ids[3], Some(&ids[4])),
            (&ids[4], Some(&ids[3])),
            (&ids[5], Some(&ids[6])),
        ]);
        for order in [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]] {
            let mut depths = HashMap::new();
            for n in order {
                depth(&ids[n], &parents, &mut depths);
            }
            let found: Vec<_> = (0..6).map(|n| depths[&ids[n]]).collect();
            assert_eq!(found, [Some(0), Some(1), Some(2), None, None, None]);
        }
    }
}
