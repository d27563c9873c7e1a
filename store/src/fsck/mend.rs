//! Hides what goes with what is broken: in which order, and how little.

use std::collections::{BTreeSet, HashSet};
use std::fs;

use kiln_oci::config::ImageConfig;
use kiln_oci::digest::{DiffId, Digest};
use kiln_oci::manifest::Raw;

use super::survey::{Survey, title};
use super::{Finding, Found, Object, Present, blobs};
use crate::Store;
use crate::error::Result;
use crate::image::ImageRecord;
use crate::layer::compress::{Compression, EncodeOptions};
use crate::layer::pack_compressed;
use crate::record;
use crate::remove;
use crate::snapshot::{LayerId, Part};

/// The most that is read of a configuration.
const MAX_DOCUMENT: u64 = 8 << 20;

/// See [`super::Fsck::mend`]; the store is ours alone.
pub(super) fn mend(store: &Store, findings: &[Finding]) -> Result<Vec<String>> {
    let mut mend = Mend { store, lost: BTreeSet::new(), done: Vec::new() };
    let now = Survey::of(store, &mut Found::new())?;
    for finding in findings {
        mend.one(&now, &finding.object)?;
    }
    // What is left says what is of use still.
    let now = Survey::of(store, &mut Found::new())?;
    let present = now.present(store);
    mend.lose_what_stands_on(&now);
    mend.records(&now, &present)?;
    mend.images(&now, &present)?;
    mend.layers(&now)?;
    mend.facts(&now)?;
    mend.packed(&now)?;
    Ok(mend.done)
}

struct Mend<'a> {
    store: &'a Store,
    /// Layers that nothing can be made of.
    lost: BTreeSet<LayerId>,
    done: Vec<String>,
}

impl Mend<'_> {
    /// Takes the broken file itself away, unless it was replaced since it was found.
    fn one(&mut self, now: &Survey, object: &Object) -> Result<()> {
        let layout = self.store.layout();
        match object {
            Object::Blob(digest) => {
                if blobs::damage(self.store, digest).is_some() {
                    self.remove(&layout.blob(digest), object)?;
                }
            }
            Object::CacheRecord(key) => {
                if !now.records.contains_key(key) {
                    self.remove(&layout.cache_record(key), object)?;
                }
            }
            Object::Image(path, _) => {
                let mut found = Found::new();
                Survey::of(self.store, &mut found)?;
                if found.contains_key(object) {
                    self.remove(path, object)?;
                    record::sync_parent(path)?;
                }
            }
            Object::Memo(path) | Object::CacheMount(path) => self.remove(path, object)?,
            Object::Layer(id, part) => self.layer(now, id, *part, object)?,
        }
        Ok(())
    }

    fn layer(&mut self, now: &Survey, id: &LayerId, part: Part, object: &Object) -> Result<()> {
        let dir = self.store.layout().layer(id);
        let is_base = id.chain_id().is_some();
        let is_sick = |part| now.layers.get(id).is_some_and(|layer| layer.sick.iter().any(|(sick, _)| *sick == part));
        match part {
            Part::Usage => self.remove(&dir.usage(), object)?,
            Part::Facts if is_sick(part) => self.remove(&dir.facts(), object)?,
            Part::Facts => {}
            Part::Record => {
                if now.layers.get(id).is_none_or(|layer| layer.is_unknown()) {
                    self.lost.insert(id.clone());
                }
            }
            // It is unpacked again when it is next needed.
            Part::Tree | Part::Mark if is_base => {
                for file in [dir.unpacked(), dir.durable(), dir.usage(), dir.owners()] {
                    record::remove(&file)?;
                }
                remove::discard(&dir.diff(), self.store.layout())?;
                self.done.push(format!("removed the tree of layer {id}; it is unpacked again when it is needed"));
            }
            Part::Tree | Part::Mark => drop(self.lost.insert(id.clone())),
        }
        Ok(())
    }

    fn remove(&mut self, path: &std::path::Path, object: &Object) -> Result<()> {
        if record::remove(path)? {
            self.done.push(format!("removed {object}"));
        }
        Ok(())
    }

    /// A layer is the difference to those below it.
    fn lose_what_stands_on(&mut self, now: &Survey) {
        loop {
            let before = self.lost.len();
            for (id, layer) in &now.layers {
                if layer.parent.as_ref().is_some_and(|parent| self.is_gone(now, parent)) {
                    self.lost.insert(id.clone());
                }
            }
            if self.lost.len() == before {
                return;
            }
        }
    }

    fn is_gone(&self, now: &Survey, id: &LayerId) -> bool {
        self.lost.contains(id) || !now.layers.contains_key(id)
    }

    fn records(&mut self, now: &Survey, present: &Present) -> Result<()> {
        let mut removed = 0;
        for (key, known) in &now.records {
            let lacks_layer = known.layer.as_ref().is_some_and(|id| self.is_gone(now, id));
            if lacks_layer || known.blobs.iter().any(|digest| !present.contains(digest)) {
                self.store.cache().remove(key)?;
                removed += 1;
            }
        }
        if removed > 0 {
            self.done.push(format!("removed {removed} cache records of what is gone; those steps are done again"));
        }
        Ok(())
    }

    fn images(&mut self, now: &Survey, present: &Present) -> Result<()> {
        for image in &now.images {
            let title = title(image);
            if let Some(what) = self.lacks(now, image, present)? {
                match &image.name {
                    Some(name) => self.store.images().remove(name)?,
                    None => self.store.images().remove_nameless(&image.config)?,
                };
                self.done.push(format!("removed the image name {title}, which {what}: build or pull it again"));
            } else if image.manifest.as_ref().is_some_and(|manifest| !present.contains(&manifest.digest)) {
                let blobs = image.blobs.iter().filter(|digest| present.contains(digest)).copied().collect();
                self.store.images().set(&ImageRecord { manifest: None, blobs, ..image.clone() })?;
                self.done.push(format!("the manifest of {title} is gone; it is made anew when the image is exported"));
            }
        }
        Ok(())
    }

    /// What the image lacks that only a build or a pull can bring.
    fn lacks(&self, now: &Survey, image: &ImageRecord, present: &Present) -> Result<Option<String>> {
        if let Some(id) = image.needed_layers().find(|id| self.is_gone(now, id)) {
            return Ok(Some(format!("lacks layer {id}")));
        }
        for id in image.needed_layers() {
            let Some(layer) = now.layers.get(id) else { continue };
            let Some(base) = layer.base.as_ref().filter(|_| !layer.has_tree) else { continue };
            let is_fetchable = self.store.layers().get(id)?.is_some_and(|record| has_source(&record.kind));
            if !is_fetchable && !present.contains(&base.blob.digest) {
                return Ok(Some(format!("lacks layer {id}, which is in no registry that is known")));
            }
        }
        let of_layers: HashSet<Digest> = image
            .needed_layers()
            .filter_map(|id| now.layers.get(id))
            .flat_map(|layer| {
                layer.packed.iter().map(|packed| packed.descriptor.digest).chain(layer.base.iter().map(|b| b.blob.digest))
            })
            .collect();
        let manifest = image.manifest.as_ref().filter(|_| image.index.is_none()).map(|manifest| manifest.digest);
        let documents = image.needed_blobs().filter(|digest| !of_layers.contains(digest) && Some(*digest) != manifest);
        let gone = documents.into_iter().find(|digest| !present.contains(digest));
        Ok(gone.map(|digest| format!("lacks {digest}")))
    }

    fn layers(&mut self, now: &Survey) -> Result<()> {
        // Those above first, so that stopping anywhere leaves no layer without its parent.
        let mut ids: Vec<&LayerId> = self.lost.iter().collect();
        ids.sort_by_key(|id| std::cmp::Reverse(height(now, id)));
        for id in ids {
            let dir = self.store.layout().layer(id);
            if fs::symlink_metadata(dir.path()).is_ok() {
                remove::discard(dir.path(), self.store.layout())?;
                self.done.push(format!("removed layer {id}"));
            }
        }
        Ok(())
    }

    /// A packed form that is gone is made again when it is next needed.
    fn packed(&mut self, now: &Survey) -> Result<()> {
        let gone = |digest: &Digest| !self.store.layout().blob(digest).is_file();
        for (id, layer) in now.layers.iter().filter(|(id, _)| !self.lost.contains(*id)) {
            if layer.packed.iter().any(|packed| packed.diff_id.is_none() && gone(&packed.descriptor.digest)) {
                self.store.layers().forget_packed(id, gone)?;
                self.done.push(format!("forgot a packed form of layer {id}; it is packed again when it is needed"));
            }
        }
        Ok(())
    }

    /// Learns again what was known of the layers of images that are left: the digests of their tars, if the image confirms them.
    fn facts(&mut self, now: &Survey) -> Result<()> {
        let mut seen = HashSet::new();
        for image in &now.images {
            let said = self.diff_ids(&image.config);
            for id in image.needed_layers().filter(|id| !self.lost.contains(*id)) {
                let Some(layer) = now.layers.get(id) else { continue };
                if layer.has_facts || layer.base.is_some() || !layer.has_tree || !seen.insert(id.clone()) {
                    continue;
                }
                let tree = self.store.tree(&self.store.layers().diff_dir(id))?;
                let (plain, options) = (Compression::None, EncodeOptions::default());
                let packed = pack_compressed(&tree, &mut std::io::sink(), plain, options, &self.store.packing());
                let packed = packed.ok().filter(|packed| said.contains(&packed.tar.diff_id));
                self.store.layers().relearn(id, packed.map(|packed| packed.tar))?;
                self.done.push(format!("learnt the facts of layer {id} again"));
            }
        }
        Ok(())
    }

    fn diff_ids(&self, config: &Digest) -> Vec<DiffId> {
        let bytes = self.store.blobs().read(config, MAX_DOCUMENT).ok();
        let config = bytes.and_then(|bytes| Raw::<ImageConfig>::parse(bytes).ok());
        config.map_or(Vec::new(), |config| config.value().rootfs.diff_ids.clone())
    }
}

fn has_source(kind: &crate::snapshot::LayerKind) -> bool {
    matches!(kind, crate::snapshot::LayerKind::Base(base) if !base.sources.is_empty())
}

/// How many layers lie below.
fn height(now: &Survey, id: &LayerId) -> usize {
    let parents = std::iter::successors(Some(id), |id| now.layers.get(id)?.parent.as_ref());
    parents.take(now.layers.len() + 1).count()
}
