//! Hides how documents are made of what was solved: configuration, manifest and, where there is more than one image, the index.

use std::time::{Duration, UNIX_EPOCH};

use kiln_frontend::ImageTemplate;
use kiln_oci::config::ImageConfig;
use kiln_oci::descriptor::Descriptor;
use kiln_oci::digest::{DiffId, Digest};
use kiln_oci::manifest::{Index, Manifest, Raw};
use kiln_oci::media_type;
use kiln_oci::platform::Platform;
use kiln_oci::reference::Reference;
use kiln_store::{ImageRecord, LayerRecord, PlatformImage};

use crate::attest::attach;
use crate::attest::provenance::Facts;
use crate::attest::sbom::Inventory;
use crate::engine::Engine;
use crate::error::Error;
use crate::event::Task;
use crate::export::form::Form;
use crate::export::pack::{self, PackedLayer, Ready, Wanted};
use crate::image::{self, NewLayer};
use crate::remote_cache::session::Inline;
use crate::request::{BuildRequest, ImageOptions, Scope};
use crate::transfer::PackedImage;

/// What a build gave for one platform: layers, and a configuration that lacks only what depends on how they are packed.
#[derive(Debug)]
pub struct Built {
    /// The platform that was asked for.
    pub platform: Platform,
    /// The configuration and the history that were lowered.
    pub template: ImageTemplate,
    /// The layers, the lowest first.
    pub layers: Vec<LayerRecord>,
    /// The build's clock, RFC 3339.
    pub now: String,
    /// `SOURCE_DATE_EPOCH`, if it was given.
    pub epoch: Option<u64>,
    /// What a provenance tells of it, where one is wanted.
    pub facts: Option<Facts>,
    /// The packages in it, where they are wanted.
    pub packages: Option<Inventory>,
    /// The steps that the image is made of, if its configuration is to hold them.
    pub inline: Option<Inline>,
}

impl Built {
    /// The configuration of an image with these layers. An output that has an `epoch` of its own is as old as that.
    pub(crate) fn config(&self, diff_ids: &[DiffId], epoch: Option<u64>) -> Result<Raw<ImageConfig>, Error> {
        let base = self.template.config.rootfs.diff_ids.len();
        let mut template = self.template.clone();
        // Those of the base too: they are others when its layers were packed anew.
        template.config.rootfs.diff_ids = diff_ids.iter().take(base).copied().collect();
        let then = epoch.map(|seconds| humantime::format_rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)).to_string());
        let now = then.as_ref().unwrap_or(&self.now);
        if then.is_some() {
            template.history.iter_mut().for_each(|entry| entry.created = Some(now.clone()));
        }
        let new = diff_ids.iter().zip(&self.layers).skip(base);
        let new: Vec<NewLayer> = new
            .map(|(diff_id, layer)| NewLayer { diff_id: *diff_id, created: layer.created.clone().unwrap_or_else(|| now.clone()) })
            .collect();
        let mut config = image::complete(&template, &new, now);
        let embedded = self.inline.as_ref().map(|inline| inline.embed(&self.layers, &mut config));
        embedded.transpose().and_then(|_| Raw::write(config)).map_err(Error::internal("write the image configuration"))
    }
}

/// A whole image: every document is in the store.
#[derive(Debug)]
pub(crate) struct Assembled {
    /// The images, one a platform.
    pub(crate) images: Vec<PackedImage>,
    /// What is said about them, in manifests of its own.
    pub(crate) attached: Vec<Attached>,
    /// What joins them all, if there is more than one manifest.
    pub(crate) index: Option<Raw<Index>>,
    /// What a name of it stands for: the index, or else the manifest.
    pub(crate) descriptor: Descriptor,
}

/// A manifest about an image, in the index beside that image's. It and its blobs are in the store.
#[derive(Debug)]
pub(crate) struct Attached {
    /// As the index has it.
    pub(crate) descriptor: Descriptor,
    /// The manifest.
    pub(crate) manifest: Raw<Manifest>,
}

/// Makes an image of what was solved for its platforms; `ready` gets each layer when it is packed.
pub(crate) fn assemble(
    engine: &Engine,
    request: &BuildRequest,
    built: &[Built],
    options: &ImageOptions,
    task: &Task,
    ready: Option<Ready<'_>>,
) -> Result<Assembled, Error> {
    let types = match request.attestations.is_empty() {
        true => Types::of(options),
        // Docker's types know nothing of statements.
        false => Types::Oci,
    };
    let images = built.iter().map(|built| one(engine, built, options, types, task, ready));
    let images = images.collect::<Result<Vec<_>, Error>>()?;
    let attached =
        images.iter().zip(built).map(|(image, built)| attach::to_image(engine, request, built, image, options.oci_artifact));
    let attached: Vec<Attached> = attached.filter_map(Result::transpose).collect::<Result<_, Error>>()?;
    for attached in &attached {
        task.status_done(&format!("exporting attestation manifest {}", attached.descriptor.digest), 0, None);
    }
    match images.as_slice() {
        [only] if attached.is_empty() => {
            let descriptor = only.descriptor.clone();
            Ok(Assembled { images, attached, index: None, descriptor })
        }
        _ => join(engine, images, attached, options, types, task),
    }
}

/// Whose media types the documents have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Types {
    Oci,
    Docker,
}

impl Types {
    /// What Docker's types can't say needs OCI's, as BuildKit decides it.
    fn of(options: &ImageOptions) -> Self {
        let manifests_only = options.annotations.items.iter().all(|(scope, ..)| *scope == Scope::Manifest);
        match options.oci_types {
            Some(false) if options.compression.kind.fits_docker_types() && manifests_only => Self::Docker,
            _ => Self::Oci,
        }
    }

    fn manifest(self) -> &'static str {
        match self {
            Self::Oci => media_type::OCI_MANIFEST,
            Self::Docker => media_type::DOCKER_MANIFEST,
        }
    }

    fn config(self) -> &'static str {
        match self {
            Self::Oci => media_type::OCI_CONFIG,
            Self::Docker => media_type::DOCKER_CONFIG,
        }
    }

    fn index(self) -> &'static str {
        match self {
            Self::Oci => media_type::OCI_INDEX,
            Self::Docker => media_type::DOCKER_MANIFEST_LIST,
        }
    }

    /// A layer as a manifest of these types names it.
    fn layer(self, layer: &Descriptor, options: &ImageOptions) -> Descriptor {
        let mut layer = layer.clone();
        if !options.prefer_nondist_layers {
            layer.media_type = media_type::layer_to_distributable(&layer.media_type).to_owned();
            layer.urls.clear();
        }
        layer.media_type = match self {
            Self::Oci => media_type::layer_to_oci(&layer.media_type).to_owned(),
            Self::Docker => media_type::layer_to_docker(&layer.media_type).to_owned(),
        };
        if self == Self::Docker {
            layer.annotations.clear();
        }
        layer
    }
}

/// The image of one platform.
fn one(
    engine: &Engine,
    built: &Built,
    options: &ImageOptions,
    types: Types,
    task: &Task,
    ready: Option<Ready<'_>>,
) -> Result<PackedImage, Error> {
    task.status("exporting layers", 0, None);
    let epoch =
        options.epoch.or(built.epoch).filter(|_| options.rewrite_timestamp).map(|epoch| i64::try_from(epoch).unwrap_or(i64::MAX));
    let form = Form::new(options.compression, epoch);
    // As they are now: another output may have packed them already.
    let layers = match built.layers.last() {
        Some(top) => engine.store.layers().chain(&top.id)?,
        None => Vec::new(),
    };
    let packed: Vec<PackedLayer> = while_syncing(engine, &layers, || {
        let base = &built.template.config.rootfs.diff_ids;
        let wanted = layers.iter().enumerate().map(|(at, layer)| Wanted {
            layer,
            form: base.get(at).map_or(form, |diff_id| pack::form_in_base(layer, *diff_id, &form)),
            force: options.compression.force,
        });
        pack::all(engine, &wanted.collect::<Vec<_>>(), task, ready)
    })?;
    task.status_done("exporting layers", 0, None);
    let diff_ids: Vec<DiffId> = packed.iter().map(|layer| layer.diff_id).collect();
    let config = built.config(&diff_ids, options.epoch)?;
    engine.store.blobs().put_bytes(config.bytes())?;
    let blobs: Vec<Descriptor> = packed.iter().map(|layer| types.layer(&layer.descriptor, options)).collect();
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(types.manifest().to_owned()),
        config: Descriptor::new(types.config(), config.digest(), config.bytes().len() as u64),
        layers: blobs.clone(),
        annotations: options.annotations.of(Scope::Manifest, Some(&built.platform)),
        extra: serde_json::Map::new(),
    };
    let manifest = Raw::write(manifest).map_err(Error::internal("write a manifest"))?;
    let mut descriptor = Descriptor::of(types.manifest(), manifest.bytes());
    descriptor.annotations = options.annotations.of(Scope::ManifestDescriptor, Some(&built.platform));
    descriptor.platform = Some(index_platform(&built.platform, &config));
    engine.store.blobs().put_bytes(manifest.bytes())?;
    task.status_done(&format!("exporting manifest {}", descriptor.digest), 0, None);
    task.status_done(&format!("exporting config {}", config.digest()), 0, None);
    Ok(PackedImage { config, manifest, descriptor, layers: layers.into_iter().zip(blobs).collect() })
}

/// The platform that was asked for, with what only the configuration knows of Windows.
fn index_platform(asked: &Platform, config: &Raw<ImageConfig>) -> Platform {
    let own = config.value().platform();
    Platform { os_version: own.os_version, os_features: own.os_features, ..asked.clone() }
}

fn join(
    engine: &Engine,
    images: Vec<PackedImage>,
    attached: Vec<Attached>,
    options: &ImageOptions,
    types: Types,
    task: &Task,
) -> Result<Assembled, Error> {
    let manifests = images.iter().map(|image| &image.descriptor).chain(attached.iter().map(|attached| &attached.descriptor));
    let index = Index {
        schema_version: 2,
        media_type: Some(types.index().to_owned()),
        manifests: manifests.cloned().collect(),
        annotations: options.annotations.of(Scope::Index, None),
        extra: serde_json::Map::new(),
    };
    let index = Raw::write(index).map_err(Error::internal("write an index"))?;
    let mut descriptor = Descriptor::of(types.index(), index.bytes());
    descriptor.annotations = options.annotations.of(Scope::IndexDescriptor, None);
    engine.store.blobs().put_bytes(index.bytes())?;
    task.status_done(&format!("exporting manifest list {}", descriptor.digest), 0, None);
    Ok(Assembled { images, attached, index: Some(index), descriptor })
}

/// Does `work` while what new layers hold gets to the disk, where it has to be before the image has a name.
fn while_syncing<T>(engine: &Engine, layers: &[LayerRecord], work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    let ids: Vec<_> = layers.iter().map(|layer| layer.id.clone()).collect();
    let is_new = !engine.store.layers().are_durable(&ids)?;
    std::thread::scope(|scope| {
        let early = is_new.then(|| scope.spawn(|| engine.store.barrier()));
        let done = work();
        // The kernel tells of a failed write only once, so this answer counts.
        if let Some(Ok(synced)) = early.map(std::thread::ScopedJoinHandle::join) {
            synced?;
        }
        done
    })
}

/// The record of an image of which no layer is packed: only the digests of their tars are known.
pub(crate) fn unpacked(engine: &Engine, built: &Built, task: &Task) -> Result<ImageRecord, Error> {
    task.status("exporting layers", 0, None);
    let diff_ids = while_syncing(engine, &built.layers, || pack::diff_ids(engine, &built.layers))?;
    task.status_done("exporting layers", 0, None);
    let config = built.config(&diff_ids, None)?;
    engine.store.blobs().put_bytes(config.bytes())?;
    Ok(record(&config, &built.layers, None))
}

impl Assembled {
    /// The record that the store keeps of it. Who names no platform means the image for this machine, or else the first one.
    pub(crate) fn record(&self) -> Option<ImageRecord> {
        let host = Platform::host();
        let fits = |image: &&PackedImage| image.platform().serves(&host).is_some();
        let image = self.images.iter().find(fits).or_else(|| self.images.first())?;
        let mut record = record(&image.config, &image.layer_records(), Some(image.descriptor.clone()));
        if self.index.is_none() {
            return Some(record);
        }
        record.index = Some(self.descriptor.clone());
        let platforms = self.images.iter().map(|image| PlatformImage {
            platform: image.platform(),
            config: image.config.digest(),
            layers: image.layers.iter().map(|(layer, _)| layer.id.clone()).collect(),
            manifest: image.descriptor.clone(),
        });
        record.platforms = platforms.collect();
        for attached in &self.attached {
            let manifest = attached.manifest.value();
            record.blobs.push(attached.descriptor.digest);
            record.blobs.extend(manifest.layers.iter().chain([&manifest.config]).map(|blob| blob.digest));
        }
        Some(record)
    }

    /// What an image has that must be told apart from others, if it is one: the digest of its configuration.
    pub(crate) fn config(&self) -> Option<Digest> {
        match self.images.as_slice() {
            [only] if self.index.is_none() => Some(only.config.digest()),
            _ => None,
        }
    }
}

impl PackedImage {
    /// The platform that it is for.
    pub(crate) fn platform(&self) -> Platform {
        self.descriptor.platform.clone().unwrap_or_else(|| self.config.value().platform())
    }

    fn layer_records(&self) -> Vec<LayerRecord> {
        self.layers.iter().map(|(layer, _)| layer.clone()).collect()
    }
}

fn record(config: &Raw<ImageConfig>, layers: &[LayerRecord], manifest: Option<Descriptor>) -> ImageRecord {
    ImageRecord {
        name: None,
        config: config.digest(),
        layers: layers.iter().map(|layer| layer.id.clone()).collect(),
        manifest,
        blobs: Vec::new(),
        created: config.value().created.clone(),
        platform: Some(config.value().platform()),
        index: None,
        platforms: Vec::new(),
    }
}

/// Writes a record under each of its names, or under none.
pub(crate) fn keep(engine: &Engine, mut record: ImageRecord, names: &[Reference], task: &Task) -> Result<(), Error> {
    task.status_done(&format!("writing image {}", record.config), 0, None);
    if names.is_empty() {
        engine.store.images().set(&record)?;
    }
    for name in names {
        record.name = Some(name.clone());
        engine.store.images().set(&record)?;
        task.status_done(&format!("naming to {name}"), 0, None);
    }
    Ok(())
}
