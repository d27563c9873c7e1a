//! Hides which small files there are, what each says that it needs, and which of them can't be read.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use kiln_oci::digest::Digest;

use super::{Found, Object, Present};
use crate::Store;
use crate::cache::{CacheKey, Needs};
use crate::error::{Error, Result};
use crate::image::ImageRecord;
use crate::layout::{Layout, MountDir};
use crate::memo::Memo;
use crate::record;
use crate::snapshot::{Examined, LayerId, Part};

/// All small files of the store.
#[derive(Debug)]
pub(super) struct Survey {
    pub(super) images: Vec<ImageRecord>,
    pub(super) layers: BTreeMap<LayerId, Examined>,
    pub(super) records: BTreeMap<CacheKey, Needs>,
}

impl Survey {
    /// Reads them; what needs something comes before it, so that what is added meanwhile is no gap.
    pub(super) fn of(store: &Store, found: &mut Found) -> Result<Self> {
        let images = images(store, found)?;
        let records = records(store, found)?;
        memos(store, found)?;
        mounts(store, found)?;
        let named: HashSet<LayerId> = images.iter().flat_map(|image| image.needed_layers().cloned()).collect();
        let mut layers = BTreeMap::new();
        for name in names(&store.layout().layers())? {
            let Some(id) = LayerId::parse(&name) else { continue };
            let Some(examined) = store.layers().examine(&id, &named)? else { continue };
            for (part, reason) in &examined.sick {
                found.entry(Object::Layer(id.clone(), *part)).or_insert_with(|| reason.clone());
            }
            layers.insert(id, examined);
        }
        Ok(Self { images, layers, records })
    }

    /// Notes what should be there and isn't.
    pub(super) fn missing(&self, store: &Store, present: &Present, found: &mut Found) -> Result<()> {
        let mut blobs: BTreeSet<Digest> = self.images.iter().flat_map(ImageRecord::needed_blobs).collect();
        let mut layers: BTreeSet<&LayerId> = self.images.iter().flat_map(ImageRecord::needed_layers).collect();
        for image in &self.images {
            // A layer of an image was packed once, or its configuration couldn't name it.
            for id in image.needed_layers() {
                if self.layers.get(id).is_some_and(|layer| layer.base.is_none() && !layer.has_facts && !layer.is_unknown()) {
                    let facts = Object::Layer(id.clone(), Part::Facts);
                    found.entry(facts).or_insert_with(|| "it is missing".to_owned());
                }
            }
        }
        for layer in self.layers.values() {
            layers.extend(&layer.parent);
            // One with a tar of its own says how it is made again, so it is never forgotten.
            let packed = layer.packed.iter().filter(|packed| packed.diff_id.is_none());
            blobs.extend(packed.map(|packed| packed.descriptor.digest));
            // What was unpacked was there, and stays.
            blobs.extend(layer.base.iter().filter(|_| layer.has_tree && !layer.has_own_blob).map(|base| base.blob.digest));
        }
        for known in self.records.values().filter(|known| known.of_this_boot) {
            blobs.extend(&known.blobs);
            layers.extend(&known.layer);
        }
        let gone = |path: &Path| fs::symlink_metadata(path).is_err_and(|error| error.kind() == ErrorKind::NotFound);
        for digest in blobs.difference(present).filter(|digest| gone(&store.layout().blob(digest))) {
            found.entry(Object::Blob(*digest)).or_insert_with(|| "it is missing".to_owned());
        }
        for id in layers.into_iter().filter(|id| gone(store.layout().layer(id).path())) {
            found.entry(Object::Layer(id.clone(), Part::Record)).or_insert_with(|| "it is missing".to_owned());
        }
        Ok(())
    }

    /// Those blobs that something speaks of and that are there.
    pub(super) fn present(&self, store: &Store) -> Present {
        let of_images = self.images.iter().flat_map(ImageRecord::needed_blobs);
        let of_records = self.records.values().flat_map(|known| known.blobs.iter().copied());
        let bases = self.layers.values().filter_map(|layer| layer.base.as_ref()).map(|base| base.blob.digest);
        of_images.chain(of_records).chain(bases).filter(|digest| store.layout().blob(digest).is_file()).collect()
    }

    /// The images that need it.
    pub(super) fn dependents(&self, object: &Object) -> Vec<String> {
        let needs = |image: &&ImageRecord| match object {
            Object::Blob(digest) => {
                image.needed_blobs().any(|needed| needed == *digest)
                    || image.needed_layers().filter_map(|id| self.layers.get(id)).any(|layer| has_blob(layer, digest))
            }
            Object::Layer(id, _) => image.needed_layers().any(|needed| needed == id),
            Object::Image(..) | Object::CacheRecord(_) | Object::Memo(_) | Object::CacheMount(_) => false,
        };
        self.images.iter().filter(needs).map(title).collect()
    }
}

fn has_blob(layer: &Examined, digest: &Digest) -> bool {
    let packed = layer.packed.iter().any(|packed| packed.descriptor.digest == *digest);
    packed || layer.base.as_ref().is_some_and(|base| base.blob.digest == *digest)
}

/// What a person calls the image.
pub(super) fn title(image: &ImageRecord) -> String {
    image.name.as_ref().map_or_else(|| image.config.to_string(), |name| name.familiar())
}

pub(super) fn images(store: &Store, found: &mut Found) -> Result<Vec<ImageRecord>> {
    let (layout, mut images) = (store.layout(), Vec::new());
    for name in names(&layout.images())? {
        let path = layout.images().join(&name);
        let reason = match record::read::<ImageRecord>(&path) {
            Ok(record::Found::Whole(image)) => {
                let ours = match &image.name {
                    Some(name) => layout.image(&name.to_string()),
                    None => layout.nameless_image(&image.config),
                };
                if ours == path {
                    images.push(image);
                    continue;
                }
                "it is about another image".to_owned()
            }
            Ok(record::Found::Absent) => continue,
            Ok(record::Found::Broken(reason)) => reason,
            Err(error) => error.to_string(),
        };
        let known = name_in(&fs::read(&path).unwrap_or_default(), |text| layout.image(text) == path);
        found.insert(Object::Image(path, known), reason);
    }
    Ok(images)
}

/// The image name that can still be read in what is left of a record; its file is called after it, which proves it.
fn name_in(bytes: &[u8], proves: impl Fn(&str) -> bool) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    let name = text.split("\"name\":\"").nth(1)?.split('"').next()?;
    proves(name).then(|| name.to_owned())
}

fn records(store: &Store, found: &mut Found) -> Result<BTreeMap<CacheKey, Needs>> {
    let (root, mut records) = (store.layout().cache(), BTreeMap::new());
    for shard in names(&root)? {
        for name in names(&root.join(&shard))? {
            let Some(key) = Layout::cache_key(&shard, &name) else { continue };
            match store.cache().examine(&key) {
                Ok(record::Found::Whole(needs)) => drop(records.insert(key, needs)),
                Ok(record::Found::Absent) => {}
                Ok(record::Found::Broken(reason)) => drop(found.insert(Object::CacheRecord(key), reason)),
                Err(error) => drop(found.insert(Object::CacheRecord(key), error.to_string())),
            }
        }
    }
    Ok(records)
}

fn memos(store: &Store, found: &mut Found) -> Result<()> {
    let root = store.layout().memos();
    for name in names(&root)? {
        let path = root.join(&name);
        // What another process is writing has another ending.
        if path.extension().is_none() && !Memo::is_whole(&path) {
            found.insert(Object::Memo(path), "it is not whole".to_owned());
        }
    }
    Ok(())
}

fn mounts(store: &Store, found: &mut Found) -> Result<()> {
    let root = store.layout().mounts();
    for name in names(&root)? {
        let dir = MountDir(root.join(&name));
        match fs::read(dir.id()) {
            Ok(id) if store.layout().mount(&id).path() == dir.path() => {}
            // It is written after the folder was made.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Ok(_) => drop(found.insert(Object::CacheMount(dir.id()), "it names another cache mount".to_owned())),
            Err(error) => drop(found.insert(Object::CacheMount(dir.id()), format!("it can't be read: {error}"))),
        }
    }
    Ok(())
}

/// The names in a folder that are text, sorted; none in one that isn't there.
pub(super) fn names(dir: &Path) -> Result<Vec<String>> {
    let list = match fs::read_dir(dir) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(Vec::new()),
        list => list.map_err(Error::io("list", dir))?,
    };
    let mut names = Vec::new();
    for entry in list {
        names.extend(entry.map_err(Error::io("list", dir))?.file_name().into_string());
    }
    names.sort();
    Ok(names)
}
