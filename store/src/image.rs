//! Hides how an image name is kept: one small file a name, durable before the call returns.

use std::collections::BTreeMap;
use std::fs;

use kiln_oci::descriptor::Descriptor;
use kiln_oci::digest::Digest;
use kiln_oci::platform::Platform;
use kiln_oci::reference::Reference;
use serde::{Deserialize, Serialize};

use crate::Store;
use crate::error::{Error, Result};
use crate::lock::{TransientLock, WaitFor};
use crate::record::{self, Durability, Found};
use crate::snapshot::LayerId;

/// An image that the store keeps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Its name; none for an image that was built without one.
    pub name: Option<Reference>,
    /// The digest of its configuration, which is also its id. The blob is in the store.
    pub config: Digest,
    /// Its layers, bottom first.
    pub layers: Vec<LayerId>,
    /// Its manifest, when it has one: an image that was never packed has none yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<Descriptor>,
    /// Other blobs that belong to it (an index, attestations): they are kept as long as the name is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blobs: Vec<Digest>,
    /// When it was made, as its configuration says (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// The platform that it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// What joins the images of several platforms (or an image and what is said about it). What stands above is then the image
    /// that is meant when nobody names a platform.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<Descriptor>,
    /// The images that the index joins and the store has, in its order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub platforms: Vec<PlatformImage>,
}

/// One image of an index.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlatformImage {
    /// The platform, as the index names it.
    pub platform: Platform,
    /// The digest of its configuration.
    pub config: Digest,
    /// Its layers, bottom first.
    pub layers: Vec<LayerId>,
    /// Its manifest.
    pub manifest: Descriptor,
}

impl ImageRecord {
    /// The record of one image of an index, under the same name; the record itself for any other image.
    #[must_use]
    pub fn for_platform(&self, platform: &Platform) -> Option<Self> {
        let score = |image: &&PlatformImage| image.platform.serves(platform);
        let image = self.platforms.iter().filter(|image| score(image).is_some()).max_by_key(score)?;
        Some(self.single(image))
    }

    /// The record of one image of an index as if it stood alone.
    #[must_use]
    pub fn single(&self, image: &PlatformImage) -> Self {
        Self {
            config: image.config,
            layers: image.layers.clone(),
            manifest: Some(image.manifest.clone()),
            platform: Some(image.platform.clone()),
            index: None,
            platforms: Vec::new(),
            ..self.clone()
        }
    }

    /// The digest that the name stands for in a registry, as far as it is known.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.index.as_ref().or(self.manifest.as_ref()).map(|descriptor| descriptor.digest)
    }

    /// Every layer that the record needs (some name their parents only), some more than once.
    pub fn needed_layers(&self) -> impl DoubleEndedIterator<Item = &LayerId> {
        self.layers.iter().chain(self.platforms.iter().flat_map(|image| &image.layers))
    }

    /// Every blob that the record needs by itself, some more than once.
    pub fn needed_blobs(&self) -> impl Iterator<Item = Digest> {
        let own = [self.config].into_iter().chain([&self.manifest, &self.index].into_iter().flatten().map(|d| d.digest));
        let images = self.platforms.iter().flat_map(|image| [image.config, image.manifest.digest]);
        own.chain(images).chain(self.blobs.iter().copied())
    }
}

/// Image names.
#[derive(Debug, Clone, Copy)]
pub struct Images<'a> {
    store: &'a Store,
}

impl<'a> Images<'a> {
    pub(crate) fn new(store: &'a Store) -> Self {
        Self { store }
    }

    /// The image with this name.
    ///
    /// # Errors
    /// [`Error::BadRecord`]: names are durable, so one that is torn is damage and not absence. [`Error::Io`].
    pub fn get(&self, name: &Reference) -> Result<Option<ImageRecord>> {
        let path = self.store.layout().image(&name.to_string());
        match record::read(&path)? {
            Found::Whole(record) => Ok(Some(record)),
            Found::Absent => Ok(None),
            Found::Broken(reason) => Err(Error::BadRecord { path, reason }),
        }
    }

    /// Makes the image and all that it needs durable, and then gives it its name (or none: `record.name`). Returns the
    /// record that had the name before, if that was another image.
    ///
    /// `record.layers` is completed with parents that are missing from it.
    ///
    /// # Errors
    /// [`Error::BlobMissing`], [`Error::LayerMissing`], [`Error::Sync`], [`Error::Io`]; the old name stands then.
    pub fn set(&self, record: &ImageRecord) -> Result<Option<ImageRecord>> {
        let mut record = record.clone();
        for digest in record.needed_blobs() {
            self.store.blobs().size(&digest)?;
        }
        record.layers = self.store.layers().close(&record.layers)?;
        for image in &mut record.platforms {
            image.layers = self.store.layers().close(&image.layers)?;
        }
        let (path, label) = match &record.name {
            Some(name) => (self.store.layout().image(&name.to_string()), name.to_string()),
            None => (self.store.layout().nameless_image(&record.config), record.config.to_string()),
        };
        self.make_durable(&record, &path)?;
        // For the old record to be the one that ours replaces.
        let lock_path = self.store.layout().name_lock(&label);
        let _lock = TransientLock::acquire(&lock_path, &WaitFor::Name(label), self.store.waiter())?;
        let old = record::read::<ImageRecord>(&path)?.or_lost();
        record::write(&*self.store.session()?, &path, &record, Durability::Durable)?;
        Ok(old.filter(|old| (old.config, &old.index) != (record.config, &record.index)))
    }

    /// Brings to the disk what the record needs. Where its file names the same layers already they are there, and only blobs can be
    /// missing: a push, which has packed hundreds of megabytes that no name needs, adds a manifest.
    fn make_durable(&self, record: &ImageRecord, path: &std::path::Path) -> Result<()> {
        let layers: Vec<LayerId> = record.needed_layers().cloned().collect();
        let old = record::read::<ImageRecord>(path)?.or_lost();
        match old {
            Some(old) if old.needed_layers().eq(&layers) && self.store.layers().are_durable(&layers)? => {
                self.store.blobs().sync(&record.needed_blobs().collect())
            }
            _ => self.store.make_durable(&layers),
        }
    }

    /// Takes a name away; its image goes with the next prune that finds no other use of it. False when there is no such name.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove(&self, name: &Reference) -> Result<bool> {
        self.remove_file(&self.store.layout().image(&name.to_string()))
    }

    /// Takes an image away that has no name.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove_nameless(&self, config: &Digest) -> Result<bool> {
        self.remove_file(&self.store.layout().nameless_image(config))
    }

    fn remove_file(&self, path: &std::path::Path) -> Result<bool> {
        let removed = record::remove(path)?;
        if removed {
            record::sync_parent(path)?;
        }
        Ok(removed)
    }

    /// All images, those with names first, by name.
    ///
    /// # Errors
    /// [`Error::BadRecord`], [`Error::Io`].
    pub fn list(&self) -> Result<Vec<ImageRecord>> {
        let root = self.store.layout().images();
        let mut images: Vec<ImageRecord> = Vec::new();
        for entry in fs::read_dir(&root).map_err(Error::io("list", &root))? {
            let path = entry.map_err(Error::io("list", &root))?.path();
            match record::read(&path)? {
                Found::Whole(record) => images.push(record),
                // Removed between the listing and the reading.
                Found::Absent => {}
                Found::Broken(reason) => return Err(Error::BadRecord { path, reason }),
            }
        }
        images.sort_by(|a, b| (a.name.is_none(), &a.name, a.config).cmp(&(b.name.is_none(), &b.name, b.config)));
        Ok(images)
    }

    /// All records of the one image whose id begins with `prefix`: `sha256:abc…` or `abc…`, at least one digit.
    /// Empty when there is none.
    ///
    /// # Errors
    /// [`Error::AmbiguousId`] when several images fit; those of [`Images::list`].
    pub fn by_id(&self, prefix: &str) -> Result<Vec<ImageRecord>> {
        let digits = prefix.strip_prefix("sha256:").unwrap_or(prefix);
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if digits.is_empty() || digits.len() > 64 || !digits.bytes().all(hex) {
            return Ok(Vec::new());
        }
        let mut found: BTreeMap<Digest, Vec<ImageRecord>> = BTreeMap::new();
        for image in self.list()? {
            if image.config.hex().starts_with(digits) {
                found.entry(image.config).or_default().push(image);
            }
        }
        if found.len() > 1 {
            return Err(Error::AmbiguousId { prefix: prefix.to_owned(), count: found.len() });
        }
        Ok(found.into_values().next().unwrap_or_default())
    }

    /// The image that a person means by `text`: one with that name, else one with that (beginning of an) id.
    ///
    /// # Errors
    /// Those of [`Images::get`] and [`Images::by_id`].
    pub fn find(&self, text: &str) -> Result<Option<ImageRecord>> {
        if let Ok(name) = Reference::parse(text)
            && let Some(record) = self.get(&name)?
        {
            return Ok(Some(record));
        }
        Ok(self.by_id(text)?.into_iter().next())
    }
}
