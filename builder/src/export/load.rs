//! Hides in which of the forms that people hand around an archive of images is: an OCI image layout, or what `docker save` writes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use kiln_oci::config::ImageConfig;
use kiln_oci::descriptor::Descriptor;
use kiln_oci::digest::Digest;
use kiln_oci::manifest::{Index, Manifest, Raw};
use kiln_oci::media_type;
use kiln_oci::platform::Platform;
use kiln_oci::reference::Reference;
use kiln_store::layer::compress::{Compression, Decoder};
use kiln_store::rootdir::Kind;
use kiln_store::tar::{EntryKind, Reader};
use kiln_store::{ImageRecord, PlatformImage};

use crate::bases::{MAX_DOCUMENT, add_layers, read_config};
use crate::engine::Engine;
use crate::error::{Error, ImageError};
use crate::export::{pack, stored};

/// An image that was loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// Its names; none if the archive has none.
    pub names: Vec<Reference>,
    /// Its id: the digest of its configuration.
    pub image_id: Digest,
}

/// Reads an archive, compressed or not, from a file or from standard input. Every blob is hashed on its way in; an image appears
/// when all of it is there.
pub fn load(engine: &Engine, source: Option<&Path>) -> Result<Vec<Loaded>, Error> {
    let task = engine.events.start("loading images");
    let shown = source.unwrap_or(Path::new("-"));
    let reader: Box<dyn Read + Send> = match source {
        None => Box::new(io::stdin()),
        Some(path) => {
            Box::new(File::open(path).map_err(|cause| Error::ReadInput { what: "archive", path: path.to_owned(), cause })?)
        }
    };
    let loaded = Archive::read(engine, reader, shown).and_then(|archive| archive.images(engine));
    task.end_with(loaded)
}

/// A file of the archive, in the store.
#[derive(Debug, Clone)]
struct Stored {
    digest: Digest,
    size: u64,
}

#[derive(Debug)]
struct Archive {
    shown: String,
    files: BTreeMap<String, Stored>,
    /// `docker save` writes a layer once and links to it.
    links: BTreeMap<String, String>,
}

impl Archive {
    fn read(engine: &Engine, reader: Box<dyn Read + Send>, shown: &Path) -> Result<Self, Error> {
        let fail = |e: io::Error| Error::ReadInput { what: "archive", path: shown.to_owned(), cause: e };
        let (_, decoder) = Decoder::detect(BufReader::with_capacity(256 << 10, reader)).map_err(fail)?;
        let mut tar = Reader::new(decoder);
        let mut archive = Self { shown: shown.display().to_string(), files: BTreeMap::new(), links: BTreeMap::new() };
        while let Some(entry) = tar.next_entry().map_err(|cause| Error::Archive { path: shown.to_owned(), cause })? {
            engine.check()?;
            let Ok(path) = String::from_utf8(entry.path.clone()) else { continue };
            let path = path.trim_start_matches("./").trim_end_matches('/').to_owned();
            match entry.kind {
                EntryKind::Node(Kind::File) => {
                    let mut writer = engine.store.blobs().writer()?.fitting(entry.size)?;
                    io::copy(&mut tar, &mut writer).map_err(fail)?;
                    let (digest, size) = writer.commit(None)?;
                    archive.files.insert(path, Stored { digest, size });
                }
                EntryKind::Node(Kind::Symlink) | EntryKind::HardLink => {
                    let Ok(target) = String::from_utf8(entry.link) else { continue };
                    let base =
                        if entry.kind == EntryKind::HardLink { "" } else { path.rsplit_once('/').map_or("", |(dir, _)| dir) };
                    let target = clean(base, &target);
                    archive.links.insert(path, target);
                }
                EntryKind::Node(_) => {}
            }
        }
        Ok(archive)
    }

    fn invalid(&self, reason: impl Into<String>) -> Error {
        Error::Image(ImageError::Invalid { name: self.shown.clone(), reason: reason.into() })
    }

    fn find(&self, path: &str) -> Result<&Stored, Error> {
        let path = self.links.get(path).map_or(path, String::as_str);
        self.files.get(path).ok_or_else(|| self.invalid(format!("`{path}` is missing in it")))
    }

    fn json<T: serde::de::DeserializeOwned>(&self, engine: &Engine, path: &str) -> Result<T, Error> {
        let stored = self.find(path)?;
        let bytes = engine.store.blobs().read(&stored.digest, MAX_DOCUMENT)?;
        serde_json::from_slice(&bytes).map_err(|e| self.invalid(format!("`{path}` can't be read: {e}")))
    }

    fn images(&self, engine: &Engine) -> Result<Vec<Loaded>, Error> {
        // Docker's own list comes first where both are there: it holds the names that a person typed.
        if self.files.contains_key("manifest.json") {
            self.docker_images(engine)
        } else if self.files.contains_key("index.json") {
            self.oci_images(engine)
        } else {
            Err(self.invalid("it has neither `manifest.json` nor `index.json`, so it is no archive of images"))
        }
    }

    fn docker_images(&self, engine: &Engine) -> Result<Vec<Loaded>, Error> {
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Item {
            config: String,
            #[serde(default)]
            repo_tags: Option<Vec<String>>,
            #[serde(default)]
            layers: Option<Vec<String>>,
        }
        let mut loaded = Vec::new();
        for item in self.json::<Vec<Item>>(engine, "manifest.json")? {
            let config = self.find(&item.config)?;
            let mut layers = Vec::new();
            for path in item.layers.unwrap_or_default() {
                layers.push(self.layer(engine, &path)?);
            }
            let raw = read_config(engine, &config.digest)?;
            let manifest = pack::manifest(&raw, &layers, BTreeMap::new())?;
            let mut names = Vec::new();
            for tag in item.repo_tags.unwrap_or_default() {
                names.push(Reference::parse(&tag).map_err(|e| self.invalid(e.to_string()))?);
            }
            loaded.push(keep(engine, record(engine, &raw, &manifest)?, names)?);
        }
        Ok(loaded)
    }

    /// The descriptor of a layer file, told by its first bytes whether it is compressed.
    fn layer(&self, engine: &Engine, path: &str) -> Result<Descriptor, Error> {
        let stored = self.find(path)?;
        let file = engine.store.blobs().open_sized(&stored.digest, stored.size)?;
        let (compression, _) = Decoder::detect(BufReader::new(file)).map_err(|e| self.invalid(format!("`{path}`: {e}")))?;
        let media_type = match compression {
            Compression::None => media_type::OCI_LAYER,
            Compression::Gzip => media_type::OCI_LAYER_GZIP,
            Compression::Zstd => media_type::OCI_LAYER_ZSTD,
            Compression::Bzip2 | Compression::Xz => {
                return Err(self.invalid(format!("`{path}` is compressed in a way that no layer may be")));
            }
        };
        Ok(Descriptor::new(media_type, stored.digest, stored.size))
    }

    fn oci_images(&self, engine: &Engine) -> Result<Vec<Loaded>, Error> {
        let index: Index = self.json(engine, "index.json")?;
        // The same image may stand there once for each of its names.
        let mut entries: Vec<(Descriptor, Vec<Reference>)> = Vec::new();
        for entry in index.manifests {
            let names = names_of(&entry);
            match entries.iter_mut().find(|(known, _)| known.digest == entry.digest) {
                Some((_, known)) => known.extend(names),
                None => entries.push((entry, names)),
            }
        }
        let mut loaded = Vec::new();
        for (entry, names) in entries {
            if media_type::is_index(&entry.media_type) {
                loaded.extend(self.index(engine, &entry, names)?);
            } else if media_type::is_manifest(&entry.media_type) && !stored::is_attached(&entry) {
                let record = self.image(engine, &entry)?;
                loaded.push(keep(engine, record, names)?);
            }
        }
        Ok(loaded)
    }

    /// The images behind an index. If the archive has all that it joins it stays one image; else its names go to the one that
    /// serves this machine best.
    fn index(&self, engine: &Engine, entry: &Descriptor, names: Vec<Reference>) -> Result<Vec<Loaded>, Error> {
        let stored = self.proved(entry)?;
        let bytes = engine.store.blobs().read(&stored.digest, MAX_DOCUMENT)?;
        let index = Raw::<Index>::parse(bytes).map_err(|e| self.invalid(format!("an index can't be read: {e}")))?;
        let (mut images, mut attached, mut complete) = (Vec::new(), Vec::new(), true);
        for inner in &index.value().manifests {
            if media_type::is_index(&inner.media_type) {
                return Err(self.invalid("it has an index in an index"));
            } else if !media_type::is_manifest(&inner.media_type) || !self.files.contains_key(&blob_path(inner)) {
                complete = false;
            } else if stored::is_attached(inner) {
                attached.extend(self.attached(engine, inner)?);
            } else {
                let record = self.image(engine, inner)?;
                let platform = inner.platform.clone().or(record.platform.clone()).unwrap_or_else(Platform::host);
                images.push((platform, record));
            }
        }
        let host = Platform::host();
        let best = (0..images.len()).max_by_key(|at| (images[*at].0.serves(&host), std::cmp::Reverse(*at)));
        let Some(best) = best else { return Ok(Vec::new()) };
        if !complete {
            let mut loaded = Vec::new();
            for (at, (_, record)) in images.into_iter().enumerate() {
                loaded.push(keep(engine, record, if at == best { names.clone() } else { Vec::new() })?);
            }
            return Ok(loaded);
        }
        let platforms = images.iter().filter_map(|(platform, record)| {
            let (config, layers, manifest) = (record.config, record.layers.clone(), record.manifest.clone()?);
            Some(PlatformImage { platform: platform.clone(), config, layers, manifest })
        });
        let mut whole = ImageRecord {
            index: Some(Descriptor { platform: None, annotations: BTreeMap::new(), ..entry.clone() }),
            platforms: platforms.collect(),
            ..images[best].1.clone()
        };
        whole.blobs = images.iter().flat_map(|(_, record)| record.blobs.iter().copied()).chain(attached).collect();
        Ok(vec![keep(engine, whole, names)?])
    }

    /// The record of one image, without a name.
    fn image(&self, engine: &Engine, entry: &Descriptor) -> Result<ImageRecord, Error> {
        let stored = self.proved(entry)?;
        let bytes = engine.store.blobs().read(&stored.digest, MAX_DOCUMENT)?;
        let manifest = Raw::<Manifest>::parse(bytes).map_err(|e| self.invalid(format!("a manifest can't be read: {e}")))?;
        for blob in manifest.value().layers.iter().chain([&manifest.value().config]) {
            self.proved(blob)?;
        }
        let config = read_config(engine, &manifest.value().config.digest)?;
        let mut record = record(engine, &config, &manifest)?;
        // As the index has it: with its platform.
        record.manifest = record.manifest.map(|found| Descriptor { platform: entry.platform.clone(), ..found });
        Ok(record)
    }

    /// The blobs of what is said about an image.
    fn attached(&self, engine: &Engine, entry: &Descriptor) -> Result<Vec<Digest>, Error> {
        let stored = self.proved(entry)?;
        let bytes = engine.store.blobs().read(&stored.digest, MAX_DOCUMENT)?;
        let manifest: Manifest =
            serde_json::from_slice(&bytes).map_err(|e| self.invalid(format!("a manifest can't be read: {e}")))?;
        let mut blobs = vec![entry.digest];
        for blob in manifest.layers.iter().chain([&manifest.config]) {
            blobs.push(self.proved(blob)?.digest);
        }
        Ok(blobs)
    }

    /// A blob that has the digest that its descriptor says.
    fn proved(&self, blob: &Descriptor) -> Result<&Stored, Error> {
        let stored = self.find(&blob_path(blob))?;
        if stored.digest != blob.digest {
            return Err(self.invalid(format!("the blob `{}` has another digest", blob.digest)));
        }
        if stored.size != blob.size {
            return Err(self.invalid(format!("the blob `{}` has another size than is said of it", blob.digest)));
        }
        Ok(stored)
    }
}

/// The record of an image whose blobs are in the store.
fn record(engine: &Engine, config: &Raw<ImageConfig>, manifest: &Raw<Manifest>) -> Result<ImageRecord, Error> {
    add_layers(engine, manifest.value(), config.value(), None)?;
    engine.store.blobs().put_bytes(manifest.bytes())?;
    let media_type = manifest.value().media_type.as_deref().unwrap_or(media_type::OCI_MANIFEST);
    let top = crate::bases::chain_id(config.value()).map(kiln_store::LayerId::of_chain);
    Ok(ImageRecord {
        name: None,
        config: config.digest(),
        layers: top.into_iter().collect(),
        manifest: Some(Descriptor::of(media_type, manifest.bytes())),
        blobs: manifest.value().layers.iter().map(|layer| layer.digest).collect(),
        created: config.value().created.clone(),
        platform: Some(config.value().platform()),
        index: None,
        platforms: Vec::new(),
    })
}

fn keep(engine: &Engine, mut record: ImageRecord, names: Vec<Reference>) -> Result<Loaded, Error> {
    let image_id = record.config;
    if names.is_empty() {
        engine.store.images().set(&record)?;
    }
    for name in &names {
        record.name = Some(name.clone());
        engine.store.images().set(&record)?;
    }
    Ok(Loaded { names, image_id })
}

fn blob_path(descriptor: &Descriptor) -> String {
    format!("blobs/sha256/{}", descriptor.digest.hex())
}

/// The full name that containerd and BuildKit write; a bare tag is no name.
fn names_of(descriptor: &Descriptor) -> Vec<Reference> {
    let full = descriptor.annotations.get("io.containerd.image.name");
    let reference = descriptor.annotations.get("org.opencontainers.image.ref.name").filter(|name| name.contains(['/', ':']));
    full.or(reference).and_then(|name| Reference::parse(name).ok()).into_iter().collect()
}

/// `target` seen from the folder `base`, both inside the archive.
fn clean(base: &str, target: &str) -> String {
    let path = kiln_oci::path::ImagePath::new(base).join(target);
    String::from_utf8_lossy(path.relative()).into_owned()
}
