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
use kiln_oci::reference::Reference;
use kiln_store::ImageRecord;
use kiln_store::layer::compress::{Compression, Decoder};
use kiln_store::rootdir::Kind;
use kiln_store::tar::{EntryKind, Reader};

use crate::bases::{MAX_DOCUMENT, add_layers, read_config};
use crate::engine::Engine;
use crate::error::{Error, ImageError};
use crate::export::pack;

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
                    let mut writer = engine.store.blobs().writer()?;
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
            loaded.push(self.keep(engine, &raw, &manifest, names)?);
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
        let mut images: BTreeMap<Digest, (Descriptor, Vec<Reference>)> = BTreeMap::new();
        let mut order = Vec::new();
        let mut open: Vec<(Descriptor, u32)> = index.manifests.into_iter().map(|m| (m, 0)).rev().collect();
        while let Some((descriptor, depth)) = open.pop() {
            if media_type::is_index(&descriptor.media_type) {
                if depth >= 2 {
                    return Err(self.invalid("its indexes are nested deeper than two levels"));
                }
                let inner: Index = self.json(engine, &blob_path(&descriptor))?;
                open.extend(inner.manifests.into_iter().map(|m| (m, depth + 1)).rev());
                continue;
            }
            if !media_type::is_manifest(&descriptor.media_type) || is_attestation(&descriptor) {
                continue;
            }
            let names = names_of(&descriptor);
            let entry = images.entry(descriptor.digest).or_insert_with(|| {
                order.push(descriptor.digest);
                (descriptor, Vec::new())
            });
            entry.1.extend(names);
        }
        let mut loaded = Vec::new();
        for digest in order {
            let Some((descriptor, names)) = images.remove(&digest) else { continue };
            let stored = self.find(&blob_path(&descriptor))?;
            if stored.digest != descriptor.digest {
                return Err(self.invalid(format!("the manifest `{}` has another digest", descriptor.digest)));
            }
            let bytes = engine.store.blobs().read(&stored.digest, MAX_DOCUMENT)?;
            let manifest = Raw::<Manifest>::parse(bytes).map_err(|e| self.invalid(format!("a manifest can't be read: {e}")))?;
            for blob in manifest.value().layers.iter().chain([&manifest.value().config]) {
                if self.find(&blob_path(blob))?.digest != blob.digest {
                    return Err(self.invalid(format!("the blob `{}` has another digest", blob.digest)));
                }
            }
            let config = read_config(engine, &manifest.value().config.digest)?;
            loaded.push(self.keep(engine, &config, &manifest, names)?);
        }
        Ok(loaded)
    }

    fn keep(
        &self,
        engine: &Engine,
        config: &Raw<ImageConfig>,
        manifest: &Raw<Manifest>,
        names: Vec<Reference>,
    ) -> Result<Loaded, Error> {
        add_layers(engine, manifest.value(), config.value(), None)?;
        engine.store.blobs().put_bytes(manifest.bytes())?;
        let descriptor =
            Descriptor::of(manifest.value().media_type.as_deref().unwrap_or(media_type::OCI_MANIFEST), manifest.bytes());
        let image_id = config.digest();
        let top = crate::bases::chain_id(config.value()).map(kiln_store::LayerId::of_chain);
        let mut record = ImageRecord {
            name: None,
            config: image_id,
            layers: top.into_iter().collect(),
            manifest: Some(descriptor),
            blobs: manifest.value().layers.iter().map(|layer| layer.digest).collect(),
            created: config.value().created.clone(),
            platform: Some(config.value().platform()),
        };
        if names.is_empty() {
            engine.store.images().set(&record)?;
        }
        for name in &names {
            record.name = Some(name.clone());
            engine.store.images().set(&record)?;
        }
        Ok(Loaded { names, image_id })
    }
}

fn blob_path(descriptor: &Descriptor) -> String {
    format!("blobs/sha256/{}", descriptor.digest.hex())
}

fn is_attestation(descriptor: &Descriptor) -> bool {
    descriptor.annotations.get("vnd.docker.reference.type").is_some_and(|t| t == "attestation-manifest")
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
