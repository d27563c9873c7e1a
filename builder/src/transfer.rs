//! Hides in which order an image travels: a push sends layers before the configuration before the manifest, and only what the
//! registry lacks; a pull names the image when everything is there.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Seek as _, SeekFrom};
use std::sync::Mutex;

use kiln_oci::config::ImageConfig;
use kiln_oci::descriptor::Descriptor;
use kiln_oci::digest::Digest;
use kiln_oci::manifest::{Index, Manifest, Raw};
use kiln_oci::media_type;
use kiln_oci::platform::Platform;
use kiln_oci::reference::Reference;
use kiln_registry_client::{Client, ManifestName, Pushed, Repository};
use kiln_store::{BaseLayer, LayerKind, LayerRecord};
use kiln_store::{ImageRecord, PlatformImage};

use crate::bases::{self, MAX_DOCUMENT};
use crate::engine::Engine;
use crate::error::{Error, ImageError};
use crate::event::Task;
use crate::export::assemble::Assembled;
use crate::export::form::Form;
use crate::export::pack::{self, Ready, Wanted};
use crate::export::stored;
use crate::ops::source::fetch_layer;
use crate::remote_cache::backend::Open;

/// How many blobs travel at once, as Docker does it.
pub(crate) const TRANSFERS: usize = 5;

/// What a pull did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullOutcome {
    /// The image's id: the digest of its configuration.
    pub image_id: Digest,
    /// What the name stands for in the registry.
    pub digest: Digest,
    /// Whether the store had it already.
    pub up_to_date: bool,
}

/// Fetches an image with all its layers and gives it its name; durable when this returns.
pub fn pull(engine: &Engine, reference: &Reference, platform: &Platform) -> Result<PullOutcome, Error> {
    let task = engine.events.start(format!("pulling {reference}"));
    let outcome = pull_in(engine, reference, platform, &task);
    task.end_with(outcome)
}

fn pull_in(engine: &Engine, reference: &Reference, platform: &Platform, task: &Task) -> Result<PullOutcome, Error> {
    let image = bases::resolve(engine, reference, platform, true, task)?;
    let image_id = image.config.digest();
    let layers = match &image.layer {
        Some(top) => engine.store.layers().chain(top)?,
        None => Vec::new(),
    };
    let before = engine.store.images().get(reference)?;
    let complete = layers.iter().all(|layer| match &layer.kind {
        LayerKind::Base(BaseLayer { blob, .. }) => engine.store.blobs().has_sized(&blob.digest, blob.size),
        LayerKind::Built => true,
    });
    if complete && before.as_ref().is_some_and(|record| record.config == image_id && record.manifest == image.manifest) {
        return Ok(PullOutcome { image_id, digest: image.pinned, up_to_date: true });
    }
    side_by_side(&layers, |layer| {
        engine.check()?;
        fetch_layer(engine, layer, task)
    })?;
    let config = image.config.value();
    engine.store.images().set(&ImageRecord {
        name: Some(reference.clone()),
        config: image_id,
        layers: layers.iter().map(|layer| layer.id.clone()).collect(),
        manifest: image.manifest,
        blobs: layers.iter().filter_map(blob_of).map(|blob| blob.digest).collect(),
        created: config.created.clone(),
        platform: Some(config.platform()),
        index: None,
        platforms: Vec::new(),
    })?;
    Ok(PullOutcome { image_id, digest: image.pinned, up_to_date: false })
}

fn blob_of(layer: &LayerRecord) -> Option<&Descriptor> {
    match &layer.kind {
        LayerKind::Base(BaseLayer { blob, .. }) => Some(blob),
        LayerKind::Built => None,
    }
}

/// Fetches all images of an index, with what is said about them, and gives the index its name; what is no index is pulled as
/// the one image that it is.
pub fn pull_all(engine: &Engine, reference: &Reference) -> Result<PullOutcome, Error> {
    let task = engine.events.start(format!("pulling {reference}"));
    let outcome = pull_all_in(engine, reference, &task);
    task.end_with(outcome)
}

fn pull_all_in(engine: &Engine, reference: &Reference, task: &Task) -> Result<PullOutcome, Error> {
    let (descriptor, bytes) = engine.registry.fetch_manifest(reference)?;
    if !media_type::is_index(&descriptor.media_type) {
        return pull_in(engine, reference, &Platform::host(), task);
    }
    let invalid = |reason: String| Error::Image(ImageError::Invalid { name: reference.to_string(), reason });
    let index = Raw::<Index>::parse(bytes).map_err(|e| invalid(format!("its index can't be read: {e}")))?;
    let (mut platforms, mut blobs, mut layers, mut created) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for entry in &index.value().manifests {
        engine.check()?;
        let named = reference.with_digest(entry.digest);
        if stored::is_attached(entry) {
            blobs.extend(fetch_attached(engine, &named, entry)?);
            continue;
        }
        let platform = entry.platform.clone().unwrap_or_else(Platform::host);
        let image = bases::resolve(engine, &named, &platform, true, task)?;
        let chain = match &image.layer {
            Some(top) => engine.store.layers().chain(top)?,
            None => Vec::new(),
        };
        platforms.push(PlatformImage {
            platform,
            config: image.config.digest(),
            layers: chain.iter().map(|layer| layer.id.clone()).collect(),
            manifest: entry.clone(),
        });
        created.push(image.config.value().created.clone());
        layers.extend(chain);
    }
    side_by_side(&layers, |layer| {
        engine.check()?;
        fetch_layer(engine, layer, task)
    })?;
    engine.store.blobs().put_bytes(index.bytes())?;
    blobs.extend(layers.iter().filter_map(blob_of).map(|blob| blob.digest));
    let host = Platform::host();
    let best = (0..platforms.len()).max_by_key(|at| (platforms[*at].platform.serves(&host), std::cmp::Reverse(*at)));
    let best = best.ok_or_else(|| invalid("its index joins no image".to_owned()))?;
    let main = platforms[best].clone();
    let record = ImageRecord {
        name: Some(reference.clone()),
        config: main.config,
        layers: main.layers,
        manifest: Some(main.manifest),
        blobs,
        created: created.swap_remove(best),
        platform: Some(main.platform),
        index: Some(Descriptor { platform: None, annotations: BTreeMap::new(), ..descriptor.clone() }),
        platforms,
    };
    let before = engine.store.images().get(reference)?;
    let up_to_date = before.is_some_and(|before| before.index == record.index);
    engine.store.images().set(&record)?;
    Ok(PullOutcome { image_id: record.config, digest: descriptor.digest, up_to_date })
}

/// Fetches what is said about an image; the digests of all its blobs.
pub(crate) fn fetch_attached(engine: &Engine, named: &Reference, entry: &Descriptor) -> Result<Vec<Digest>, Error> {
    let (_, bytes) = engine.registry.fetch_manifest(named)?;
    let invalid = |e: serde_json::Error| ImageError::Invalid { name: named.to_string(), reason: e.to_string() };
    let manifest = Raw::<Manifest>::parse(bytes).map_err(|e| Error::Image(invalid(e)))?;
    let mut blobs = vec![entry.digest];
    for blob in manifest.value().layers.iter().chain([&manifest.value().config]) {
        bases::fetch_blob(engine, &Repository::from(named), blob, &|_| {})?;
        blobs.push(blob.digest);
    }
    engine.store.blobs().put_bytes(manifest.bytes())?;
    Ok(blobs)
}

/// Sends an image of the store to its registry: all platforms of an index, unless one is named.
pub fn push(engine: &Engine, reference: &Reference, platform: Option<&Platform>) -> Result<Descriptor, Error> {
    let task = engine.events.start(format!("pushing {reference}"));
    let ahead = Ahead::default();
    let repository = Repository::from(reference);
    let ready = |layer: &LayerRecord, blob: &Descriptor| {
        push_layer(engine, &engine.registry, &repository, layer, blob, &task)?;
        ahead.note(&repository, blob);
        Ok(())
    };
    let pushed = stored::find(engine, reference, platform, &task, Some(&ready)).and_then(|image| {
        let name = reference.tag().map_or(ManifestName::Digest, ManifestName::Tag);
        push_image(engine, &engine.registry, &image, (&repository, name), &ahead, &task)?;
        Ok(image.descriptor)
    });
    task.end_with(pushed)
}

/// The layers that were sent while others were still packed.
#[derive(Debug, Default)]
pub(crate) struct Ahead(Mutex<BTreeSet<(Repository, Digest)>>);

impl Ahead {
    /// This layer is there.
    pub(crate) fn note(&self, repository: &Repository, blob: &Descriptor) {
        let mut sent = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        sent.insert((repository.clone(), blob.digest));
    }

    fn has(&self, repository: &Repository, blob: &Descriptor) -> bool {
        let sent = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        sent.contains(&(repository.clone(), blob.digest))
    }
}

/// Sends a whole image: all that a manifest names is there before the manifest is, and all manifests before the index.
pub(crate) fn push_image(
    engine: &Engine,
    client: &Client,
    image: &Assembled,
    (repository, name): (&Repository, ManifestName<'_>),
    ahead: &Ahead,
    task: &Task,
) -> Result<(), Error> {
    let mut seen = BTreeSet::new();
    let layers = image.images.iter().flat_map(|image| &image.layers);
    let layers: Vec<&(LayerRecord, Descriptor)> =
        layers.filter(|(_, blob)| seen.insert(blob.digest) && !ahead.has(repository, blob)).collect();
    task.status("pushing layers", 0, None);
    side_by_side(&layers, |(layer, blob)| {
        engine.check()?;
        push_layer(engine, client, repository, layer, blob, task)
    })?;
    task.status_done("pushing layers", 0, None);
    for image in &image.images {
        push_stored(engine, client, repository, &image.manifest.value().config)?;
    }
    for attached in &image.attached {
        let manifest = attached.manifest.value();
        for blob in manifest.layers.iter().chain([&manifest.config]) {
            push_stored(engine, client, repository, blob)?;
        }
    }
    let whole = match name {
        ManifestName::Tag(tag) => format!("{repository}:{tag}@{}", image.descriptor.digest),
        ManifestName::Digest => format!("{repository}@{}", image.descriptor.digest),
    };
    let status = format!("pushing manifest for {whole}");
    task.status(&status, 0, None);
    let send =
        |name, descriptor: &Descriptor, bytes: &[u8]| client.push_manifest(repository, name, &descriptor.media_type, bytes);
    match (&image.index, image.images.as_slice()) {
        (None, images) => {
            for image in images {
                send(name, &image.descriptor, image.manifest.bytes())?;
            }
        }
        (Some(index), images) => {
            for image in images {
                send(ManifestName::Digest, &image.descriptor, image.manifest.bytes())?;
            }
            for attached in &image.attached {
                let (kind, bytes) = (&attached.descriptor.media_type, attached.manifest.bytes());
                match attached.manifest.value().extra.contains_key("subject") {
                    // What refers to an image is found by that, also in registries that keep no list themselves.
                    true => drop(client.push_referrer(repository, kind, bytes)?),
                    false => drop(send(ManifestName::Digest, &attached.descriptor, bytes)?),
                }
            }
            send(name, &image.descriptor, index.bytes())?;
        }
    }
    task.status_done(&status, 0, None);
    Ok(())
}

/// Sends a small blob of the store.
fn push_stored(engine: &Engine, client: &Client, repository: &Repository, blob: &Descriptor) -> Result<(), Error> {
    let open = |from| -> std::io::Result<Box<dyn Read + Send>> {
        let mut file = engine.store.blobs().open_sized(&blob.digest, blob.size).map_err(std::io::Error::other)?;
        file.seek(SeekFrom::Start(from))?;
        Ok(Box::new(file))
    };
    client.push_blob(repository, blob, &open, &|_| {})?;
    Ok(())
}

/// An image of which every blob is known (those of lazy base layers may still be in their registry).
#[derive(Debug)]
pub(crate) struct PackedImage {
    pub(crate) config: Raw<ImageConfig>,
    pub(crate) manifest: Raw<Manifest>,
    pub(crate) descriptor: Descriptor,
    pub(crate) layers: Vec<(LayerRecord, Descriptor)>,
}

/// Packs what isn't packed yet and writes the manifest down, so that the next push or save finds both. Annotations that an
/// earlier manifest of the image has stay.
///
/// The forms of its layers stay, too: what the configuration says of their tars holds for those alone. `ready` gets each layer that
/// has to be packed as soon as it is.
pub(crate) fn packed_image(
    engine: &Engine,
    record: &mut ImageRecord,
    form: &Form,
    task: &Task,
    ready: Option<Ready<'_>>,
) -> Result<PackedImage, Error> {
    let config = bases::read_config(engine, &record.config)?;
    let layers: Vec<LayerRecord> = match record.layers.last() {
        Some(top) => engine.store.layers().chain(top)?,
        None => Vec::new(),
    };
    let (mut in_manifest, mut in_descriptor) = (BTreeMap::new(), BTreeMap::new());
    if let Some(descriptor) = &record.manifest
        && engine.store.blobs().has(&descriptor.digest)
        && let Ok(manifest) = Raw::<Manifest>::parse(engine.store.blobs().read(&descriptor.digest, MAX_DOCUMENT)?)
    {
        if manifest.value().layers.len() == layers.len() && fits(engine, &manifest, &layers) {
            let descriptor = descriptor.clone();
            let layers = layers.into_iter().zip(manifest.value().layers.clone()).collect();
            return Ok(PackedImage { config, manifest, descriptor, layers });
        }
        in_manifest.clone_from(&manifest.value().annotations);
        in_descriptor.clone_from(&descriptor.annotations);
    }
    task.status("exporting layers", 0, None);
    let diff_ids = &config.value().rootfs.diff_ids;
    let wanted = layers.iter().zip(diff_ids).map(|(layer, diff_id)| {
        let force = layer.diff_id.is_some_and(|own| own != *diff_id);
        Wanted { layer, form: pack::form_of(layer, *diff_id, form), force }
    });
    let made = pack::all(engine, &wanted.collect::<Vec<_>>(), task, ready)?;
    if !made.iter().map(|layer| &layer.diff_id).eq(diff_ids) {
        let reason = "its layers are not those that its configuration names".to_owned();
        return Err(Error::Image(ImageError::Invalid { name: record.config.to_string(), reason }));
    }
    let blobs: Vec<Descriptor> = made.into_iter().map(|layer| layer.descriptor).collect();
    task.status_done("exporting layers", 0, None);
    let manifest = pack::manifest(&config, &blobs, in_manifest)?;
    let mut descriptor = Descriptor::of(media_type::OCI_MANIFEST, manifest.bytes());
    descriptor.annotations = in_descriptor;
    engine.store.blobs().put_bytes(manifest.bytes())?;
    task.status_done(&format!("exporting manifest {}", descriptor.digest), 0, None);
    record.manifest = Some(descriptor.clone());
    if record.name.is_some() {
        engine.store.images().set(record)?;
    }
    Ok(PackedImage { config, manifest, descriptor, layers: layers.into_iter().zip(blobs).collect() })
}

/// Whether the manifest's blobs can be had: in the store, or where a base came from.
fn fits(engine: &Engine, manifest: &Raw<Manifest>, layers: &[LayerRecord]) -> bool {
    layers.iter().zip(&manifest.value().layers).all(|(layer, blob)| {
        is_own(layer, blob)
            || layer.blobs.iter().any(|b| b.descriptor.digest == blob.digest)
                && engine.store.blobs().has_sized(&blob.digest, blob.size)
    })
}

/// Whether the blob is the one that a base brought the layer in.
pub(crate) fn is_own(layer: &LayerRecord, blob: &Descriptor) -> bool {
    matches!(&layer.kind, LayerKind::Base(base) if base.blob.digest == blob.digest)
}

pub(crate) fn push_layer(
    engine: &Engine,
    client: &Client,
    repository: &Repository,
    layer: &LayerRecord,
    blob: &Descriptor,
    task: &Task,
) -> Result<(), Error> {
    let send = || {
        lend(engine, layer, blob, task, |sources, open, progress| {
            Ok(client.push_blob_from(repository, blob, sources, open, progress)?)
        })
    };
    let Err(error) = send() else { return Ok(()) };
    engine.check()?;
    // The registry is who proves what is sent. What is damaged here would be refused for ever.
    let is_refused = matches!(&error, Error::Registry(cause) if !cause.is_temporary());
    if !is_refused || !engine.store.fsck().drop_damaged(&blob.digest)? {
        return Err(error);
    }
    task.warn(format!("the blob {} was damaged in the store and was removed", blob.digest));
    // That of a base is fetched once more; what was packed here is packed again.
    if is_own(layer, blob) || pack::again(engine, layer, blob, task)? { send() } else { Err(error) }
}

/// Lends the blob of a layer to `send`, which may find that it is there already: it is told which repositories have the blob, how
/// it is opened, and whom to tell how far it is.
pub(crate) fn lend(
    engine: &Engine,
    layer: &LayerRecord,
    blob: &Descriptor,
    task: &Task,
    send: impl FnOnce(&[Repository], &Open<'_>, &dyn Fn(u64)) -> Result<Pushed, Error>,
) -> Result<(), Error> {
    let sources: Vec<Repository> = match &layer.kind {
        LayerKind::Base(BaseLayer { sources, .. }) if is_own(layer, blob) => {
            sources.iter().filter_map(|s| Reference::parse(s).ok()).map(|r| Repository::from(&r)).collect()
        }
        _ => Vec::new(),
    };
    let name = blob.digest.to_string();
    // A lazy base layer is fetched only when the registry turns out to lack it. An error on the way there must reach the
    // person as what it was, so it is kept beside the reader's.
    let fetch_error = Mutex::new(None);
    let open = |from| -> std::io::Result<Box<dyn Read + Send>> {
        if is_own(layer, blob)
            && let Err(error) = fetch_layer(engine, layer, task)
        {
            let text = error.to_string();
            *fetch_error.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error);
            return Err(std::io::Error::other(text));
        }
        let mut file = engine.store.blobs().open_sized(&blob.digest, blob.size).map_err(std::io::Error::other)?;
        file.seek(SeekFrom::Start(from))?;
        Ok(Box::new(file))
    };
    task.status(&name, 0, Some(blob.size));
    let pushed = send(&sources, &open, &|sent| task.status(&name, sent, Some(blob.size)));
    match pushed {
        Ok(pushed) => {
            let note = match pushed {
                Pushed::Uploaded => name,
                Pushed::Existed => format!("{name} exists already"),
                Pushed::Mounted => format!("{name} mounted from another repository"),
            };
            task.status_done(&note, blob.size, Some(blob.size));
            Ok(())
        }
        Err(error) => Err(fetch_error.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).unwrap_or(error)),
    }
}

/// Does `work` for each item, a few at a time; the first error ends the rest.
pub(crate) fn side_by_side<T: Sync>(items: &[T], work: impl Fn(&T) -> Result<(), Error> + Sync) -> Result<(), Error> {
    use std::sync::atomic::{AtomicUsize, Ordering};
    if let [one] = items {
        return work(one);
    }
    let next = AtomicUsize::new(0);
    let failure = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..TRANSFERS.min(items.len()) {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = work(item) {
                        next.store(items.len(), Ordering::Relaxed);
                        failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(error);
                        return;
                    }
                }
            });
        }
    });
    match failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}
