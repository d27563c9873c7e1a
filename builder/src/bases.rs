//! Hides how an image name becomes a pinned manifest and configuration; no layer is fetched here.

use kiln_frontend::{BaseImage, BaseRequest, Bases};
use kiln_oci::config::ImageConfig;
use kiln_oci::descriptor::Descriptor;
use kiln_oci::digest::{ChainId, Digest};
use kiln_oci::manifest::{Index, Manifest, Raw};
use kiln_oci::media_type;
use kiln_oci::platform::Platform;
use kiln_oci::reference::Reference;
use kiln_registry_client::Repository;
use kiln_store::CacheRecord;
use kiln_store::{BaseLayer, LayerId};

use crate::cache_key::{Identity, memo_key};
use crate::engine::Engine;
use crate::error::{Error, ImageError};
use crate::event::Task;
use crate::export::layout::{self, Layouts};
use crate::pins::{Pins, Sort};

/// An image whose manifest and configuration are in the store, and whose layers are known by record.
#[derive(Debug, Clone)]
pub struct Image {
    /// What the name stands for: an index, or the manifest itself.
    pub pinned: Digest,
    /// The manifest for the platform; `None` for an image that was built here and never packed.
    pub manifest: Option<Descriptor>,
    /// The configuration's exact bytes.
    pub config: Raw<ImageConfig>,
    /// The topmost layer; `None` for an image without layers.
    pub layer: Option<LayerId>,
    /// What its file tree is.
    pub identity: Identity,
}

/// A base that could not be had, and who asked for it.
#[derive(Debug)]
pub struct Missing {
    /// Who.
    pub request: BaseRequest,
    /// Why.
    pub error: Error,
}

/// The bases of a build, as both the frontend and the solver see them.
#[derive(Debug, Default)]
pub struct ResolvedBases {
    /// For the frontend.
    pub known: Bases,
    /// Whether the names of tasks tell the platform.
    pub(crate) several_platforms: bool,
    /// Where to look before any registry.
    pub(crate) layouts: Layouts,
    images: Vec<(Reference, Platform, Image)>,
}

impl ResolvedBases {
    /// None yet; `several_platforms` are built.
    pub(crate) fn new(several_platforms: bool) -> Self {
        Self { several_platforms, ..Self::default() }
    }

    /// The image behind a name that was resolved.
    pub fn image(&self, reference: &Reference, platform: &Platform) -> Option<&Image> {
        self.images.iter().find(|(r, p, _)| r == reference && p == platform).map(|(_, _, image)| image)
    }

    /// Resolves what the frontend asked for, side by side.
    pub fn resolve(&mut self, engine: &Engine, requests: &[BaseRequest], pull: bool, pins: &Pins) -> Result<(), Box<Missing>> {
        let layouts = &self.layouts;
        let results: Vec<Result<Image, Error>> = std::thread::scope(|scope| {
            let work = |request: &BaseRequest| {
                let platform = if self.several_platforms { format!("{} ", request.platform) } else { String::new() };
                let task = engine.events.start(format!("[{platform}internal] load metadata for {}", request.reference));
                let layout = request.reference.digest().and_then(|pinned| Some((pinned, layouts.get(&pinned)?)));
                let image = match layout {
                    Some((pinned, folder)) => layout::image(engine, folder, pinned, &request.platform),
                    None => pinned(engine, (&request.reference, &request.platform), pull, pins, &task),
                };
                task.end_with(image)
            };
            match requests {
                [one] => vec![work(one)],
                many => {
                    let threads: Vec<_> = many.iter().map(|request| scope.spawn(move || work(request))).collect();
                    threads.into_iter().map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
                }
            }
        });
        for (request, image) in requests.iter().zip(results) {
            let image = image.map_err(|error| Box::new(Missing { request: request.clone(), error }))?;
            let base = BaseImage { digest: image.pinned, config: image.config.value().clone() };
            self.known.insert(request.reference.clone(), request.platform.clone(), base);
            self.images.push((request.reference.clone(), request.platform.clone(), image));
        }
        Ok(())
    }
}

/// Pins a name: an image of that name in the store unless `pull`, and else what the registry says now.
pub fn resolve(engine: &Engine, reference: &Reference, platform: &Platform, pull: bool, task: &Task) -> Result<Image, Error> {
    if !pull && let Some(image) = in_store(engine, reference, platform)? {
        return Ok(image);
    }
    from_registry(engine, reference, platform, task)
}

/// The same by what a lock file says, or as it is to say from now on.
fn pinned(
    engine: &Engine,
    (reference, platform): (&Reference, &Platform),
    pull: bool,
    pins: &Pins,
    task: &Task,
) -> Result<Image, Error> {
    let name = reference.to_string();
    // A name with a digest can't come to mean something else.
    if reference.digest().is_some() {
        return resolve(engine, reference, platform, pull, task);
    }
    if let Some(locked) = pins.pin(Sort::Image, &name)? {
        let digest = Digest::parse(&locked).map_err(Error::internal("read a digest of the lock file"))?;
        // One that was built here is in no registry.
        if let Some(image) = in_store(engine, reference, platform)?.filter(|image| image.pinned == digest) {
            return Ok(image);
        }
        let found = from_registry(engine, &reference.with_digest(digest), platform, task);
        return found.map_err(|error| match &error {
            Error::Registry(cause) if !cause.is_temporary() => pins.gone(&reference.familiar(), &locked, error),
            _ => error,
        });
    }
    if !pins.is_written() {
        return resolve(engine, reference, platform, pull, task);
    }
    // What the name means to everybody is what counts, not what was pulled here some day.
    let image = match from_registry(engine, reference, platform, task) {
        Ok(image) => image,
        Err(error) => in_store(engine, reference, platform)?.ok_or(error)?,
    };
    pins.found(Sort::Image, &name, &image.pinned.to_string());
    Ok(image)
}

/// An image that was built, pulled or loaded under this name, if it is for this platform.
pub fn in_store(engine: &Engine, reference: &Reference, platform: &Platform) -> Result<Option<Image>, Error> {
    let Some(record) = engine.store.images().get(reference)? else { return Ok(None) };
    let whole = record.digest();
    let record = record.for_platform(platform).unwrap_or(record);
    let config = read_config(engine, &record.config)?;
    if config.value().platform().serves(platform).is_none() {
        return Ok(None);
    }
    let identity = match record.layers.last() {
        None => Identity::scratch(),
        Some(_) => Identity::image(chain_id(config.value())),
    };
    let pinned = whole.unwrap_or(record.config);
    Ok(Some(Image { pinned, manifest: record.manifest, config, layer: record.layers.last().cloned(), identity }))
}

fn from_registry(engine: &Engine, reference: &Reference, platform: &Platform, task: &Task) -> Result<Image, Error> {
    let name_key = memo_key("name", &format!("{reference} {platform}"));
    let pinned = match reference.digest() {
        Some(digest) => digest,
        None => match engine.registry.resolve(reference) {
            Ok(descriptor) => descriptor.digest,
            Err(error) if error.is_temporary() => {
                // Better the image of yesterday, said aloud, than no build while a registry rests.
                let known = engine.store.cache().get(&name_key)?.and_then(|record| digest_in(&record, "pinned"));
                let Some(known) = known else { return Err(error.into()) };
                task.warn(format!("{error}; building on {known}, which {} stood for before", reference.familiar()));
                known
            }
            Err(error) => return Err(error.into()),
        },
    };
    let pinned_key = memo_key("pinned", &format!("{} {pinned} {platform}", reference.repository()));
    let manifest = match remembered_manifest(engine, &pinned_key)? {
        Some(manifest) => manifest,
        None => {
            let manifest = fetch(engine, &reference.with_digest(pinned), platform)?;
            let data = serde_json::json!({ "manifest": manifest.0 });
            let blobs = vec![manifest.0.digest, manifest.1.value().config.digest];
            engine.store.cache().put(&pinned_key, &remembered(data, blobs))?;
            manifest
        }
    };
    let data = serde_json::json!({ "pinned": pinned });
    engine.store.cache().put(&name_key, &remembered(data, Vec::new()))?;
    let (descriptor, manifest) = manifest;
    let config = read_config(engine, &manifest.value().config.digest)?;
    let layer = add_layers(engine, manifest.value(), config.value(), Some(&reference.repository()))?;
    let identity = Identity::image(chain_id(config.value()));
    Ok(Image { pinned, manifest: Some(descriptor), config, layer, identity })
}

/// A record that speaks of no layer.
pub(crate) fn remembered(data: serde_json::Value, blobs: Vec<Digest>) -> CacheRecord {
    CacheRecord { layer: None, identity: [0; 32], blobs, data }
}

fn digest_in(record: &CacheRecord, field: &str) -> Option<Digest> {
    Digest::parse(record.data.get(field)?.as_str()?).ok()
}

fn remembered_manifest(engine: &Engine, key: &kiln_store::CacheKey) -> Result<Option<(Descriptor, Raw<Manifest>)>, Error> {
    let Some(record) = engine.store.cache().get(key)? else { return Ok(None) };
    let Some(descriptor) = record.data.get("manifest").and_then(|d| serde_json::from_value::<Descriptor>(d.clone()).ok()) else {
        return Ok(None);
    };
    let blobs = engine.store.blobs();
    if !blobs.has(&descriptor.digest) {
        return Ok(None);
    }
    let Ok(manifest) = Raw::<Manifest>::parse(blobs.read(&descriptor.digest, MAX_DOCUMENT)?) else { return Ok(None) };
    if !blobs.has(&manifest.value().config.digest) {
        return Ok(None);
    }
    Ok(Some((descriptor, manifest)))
}

/// Manifests and configurations are small; more than this is an attack or a mistake (reliability: C80).
pub(crate) const MAX_DOCUMENT: u64 = 8 << 20;
/// No image that a kernel can mount has more layers.
const MAX_LAYERS: usize = 1000;

/// Fetches manifest and configuration of the image for `platform` into the store.
fn fetch(engine: &Engine, reference: &Reference, platform: &Platform) -> Result<(Descriptor, Raw<Manifest>), Error> {
    let invalid = |reason: String| Error::Image(ImageError::Invalid { name: reference.to_string(), reason });
    let (mut descriptor, mut bytes) = engine.registry.fetch_manifest(reference)?;
    if media_type::is_index(&descriptor.media_type) {
        let index = Raw::<Index>::parse(bytes).map_err(|e| invalid(format!("its index can't be read: {e}")))?;
        let entry = choose(index.value(), platform).ok_or_else(|| {
            let mut offered: Vec<String> =
                index.value().manifests.iter().filter_map(|m| m.platform.as_ref()).map(ToString::to_string).collect();
            offered.retain(|p| p != "unknown/unknown");
            Error::Image(ImageError::NoPlatform { name: reference.to_string(), wanted: platform.to_string(), offered })
        })?;
        (descriptor, bytes) = engine.registry.fetch_manifest(&reference.with_digest(entry.digest))?;
        if media_type::is_index(&descriptor.media_type) {
            return Err(invalid("its index points to another index".to_owned()));
        }
        // What the index says of it is what counts (C75): whoever checked the index has seen nothing else.
        if (&descriptor.media_type, descriptor.size) != (&entry.media_type, entry.size) {
            let (said, is) = ((&entry.media_type, entry.size), (&descriptor.media_type, descriptor.size));
            return Err(invalid(format!("its index says `{}` of {} bytes of what is `{}` of {}", said.0, said.1, is.0, is.1)));
        }
    }
    let manifest = Raw::<Manifest>::parse(bytes).map_err(|e| invalid(format!("its manifest can't be read: {e}")))?;
    if manifest.value().layers.len() > MAX_LAYERS {
        return Err(invalid(format!("it has {} layers, more than {MAX_LAYERS}", manifest.value().layers.len())));
    }
    let config = &manifest.value().config;
    let is_image = matches!(config.media_type.as_str(), media_type::OCI_CONFIG | media_type::DOCKER_CONFIG);
    if !is_image {
        return Err(invalid(format!("it is no image but an artifact: its configuration is `{}`", config.media_type)));
    }
    if config.size > MAX_DOCUMENT {
        return Err(invalid(format!("its configuration has {} bytes, more than {MAX_DOCUMENT}", config.size)));
    }
    fetch_blob(engine, &Repository::from(reference), config, &|_| {})?;
    engine.store.blobs().put_bytes(manifest.bytes())?;
    Ok((descriptor, manifest))
}

/// Fetches a blob into the store unless it is there. Of several who want it at the same time one fetches it.
pub(crate) fn fetch_blob(
    engine: &Engine,
    repository: &Repository,
    descriptor: &Descriptor,
    progress: &dyn Fn(u64),
) -> Result<(), Error> {
    let blobs = engine.store.blobs();
    if blobs.has_sized(&descriptor.digest, descriptor.size) {
        return Ok(());
    }
    let _lock = blobs.lock(&descriptor.digest)?;
    if blobs.has_sized(&descriptor.digest, descriptor.size) {
        return Ok(());
    }
    let mut writer = blobs.verified_writer()?;
    engine.registry.fetch_blob(repository, descriptor, &mut writer, progress)?;
    writer.commit(&descriptor.digest, descriptor.size)?;
    Ok(())
}

pub(crate) fn choose<'a>(index: &'a Index, wanted: &Platform) -> Option<&'a Descriptor> {
    let mut best: Option<(u32, &Descriptor)> = None;
    for entry in &index.manifests {
        // An entry without a platform serves everybody, but only when nothing better is there.
        let score = match &entry.platform {
            None if media_type::is_manifest(&entry.media_type) => Some(0),
            None => None,
            Some(platform) => platform.serves(wanted),
        };
        if let Some(score) = score
            && best.is_none_or(|(have, _)| score > have)
        {
            best = Some((score, entry));
        }
    }
    best.map(|(_, entry)| entry)
}

pub(crate) fn read_config(engine: &Engine, digest: &Digest) -> Result<Raw<ImageConfig>, Error> {
    let bytes = engine.store.blobs().read(digest, MAX_DOCUMENT)?;
    Raw::parse(bytes).map_err(|e| {
        Error::Image(ImageError::Invalid { name: digest.to_string(), reason: format!("its configuration can't be read: {e}") })
    })
}

pub(crate) fn chain_id(config: &ImageConfig) -> Option<ChainId> {
    config.rootfs.diff_ids.iter().fold(None, |chain, diff| Some(ChainId::extend(chain, *diff)))
}

/// Writes down the layers of an image, unfetched; the id of the topmost.
pub(crate) fn add_layers(
    engine: &Engine,
    manifest: &Manifest,
    config: &ImageConfig,
    repository: Option<&str>,
) -> Result<Option<LayerId>, Error> {
    let diff_ids = &config.rootfs.diff_ids;
    if diff_ids.len() != manifest.layers.len() {
        let reason = format!("its manifest has {} layers, its configuration {}", manifest.layers.len(), diff_ids.len());
        return Err(Error::Image(ImageError::Invalid { name: repository.unwrap_or("the image").to_owned(), reason }));
    }
    let mut parent = None;
    let mut chain = None;
    for (diff_id, blob) in diff_ids.iter().zip(&manifest.layers) {
        let chain_id = ChainId::extend(chain, *diff_id);
        chain = Some(chain_id);
        let base = BaseLayer {
            diff_id: *diff_id,
            chain_id,
            blob: blob.clone(),
            sources: repository.map(str::to_owned).into_iter().collect(),
            created: None,
        };
        parent = Some(engine.store.layers().add_base(parent.as_ref(), &base)?);
    }
    Ok(parent)
}
