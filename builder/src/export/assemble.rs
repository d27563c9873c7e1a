//! Hides how documents are made of what was solved: configuration, manifest and, where there is more than one image, the index.

use kiln_frontend::ImageTemplate;
use kiln_oci::config::ImageConfig;
use kiln_oci::descriptor::Descriptor;
use kiln_oci::digest::DiffId;
use kiln_oci::manifest::{Index, Raw};
use kiln_oci::media_type;
use kiln_oci::platform::Platform;
use kiln_oci::reference::Reference;
use kiln_store::{ImageRecord, LayerRecord};

use crate::attest::provenance::Facts;
use crate::attest::sbom::Inventory;
use crate::engine::Engine;
use crate::error::Error;
use crate::event::Task;
use crate::export::form::Form;
use crate::export::pack::{self, PackedLayer, Ready, Wanted};
use crate::image::{self, NewLayer};
use crate::request::{ImageOptions, Scope};
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
}

impl Built {
    /// The configuration of an image with these layers.
    pub(crate) fn config(&self, diff_ids: &[DiffId]) -> Result<Raw<ImageConfig>, Error> {
        let base = self.template.config.rootfs.diff_ids.len();
        let mut template = self.template.clone();
        // Those of the base too: they are others when its layers were packed anew.
        template.config.rootfs.diff_ids = diff_ids.iter().take(base).copied().collect();
        let new = diff_ids.iter().zip(&self.layers).skip(base);
        let new: Vec<NewLayer> = new
            .map(|(diff_id, layer)| NewLayer {
                diff_id: *diff_id,
                created: layer.created.clone().unwrap_or_else(|| self.now.clone()),
            })
            .collect();
        Raw::write(image::complete(&template, &new, &self.now)).map_err(Error::internal("write the image configuration"))
    }
}

/// A whole image: every document is in the store.
#[derive(Debug)]
pub(crate) struct Assembled {
    /// The images, one a platform.
    pub(crate) images: Vec<PackedImage>,
    /// What joins them, if there are several.
    pub(crate) index: Option<Raw<Index>>,
    /// What a name of it stands for: the index, or else the manifest.
    pub(crate) descriptor: Descriptor,
}

/// Makes an image of what was solved for its platforms; `ready` gets each layer when it is packed.
pub(crate) fn assemble(
    engine: &Engine,
    built: &[Built],
    options: &ImageOptions,
    task: &Task,
    ready: Option<Ready<'_>>,
) -> Result<Assembled, Error> {
    let images = built.iter().map(|built| one(engine, built, options, task, ready)).collect::<Result<Vec<_>, Error>>()?;
    match images.as_slice() {
        [only] => {
            let descriptor = only.descriptor.clone();
            Ok(Assembled { images, index: None, descriptor })
        }
        _ => join(engine, images, built, options, task),
    }
}

/// The image of one platform.
fn one(
    engine: &Engine,
    built: &Built,
    options: &ImageOptions,
    task: &Task,
    ready: Option<Ready<'_>>,
) -> Result<PackedImage, Error> {
    task.status("exporting layers", 0, None);
    let epoch = built.epoch.filter(|_| options.rewrite_timestamp).map(|epoch| i64::try_from(epoch).unwrap_or(i64::MAX));
    let form = Form::new(options.compression, epoch);
    let packed: Vec<PackedLayer> = while_syncing(engine, &built.layers, || {
        let base = &built.template.config.rootfs.diff_ids;
        let wanted = built.layers.iter().enumerate().map(|(at, layer)| Wanted {
            layer,
            form: base.get(at).map_or(form, |diff_id| pack::form_in_base(layer, *diff_id, &form)),
            force: options.compression.force,
        });
        pack::all(engine, &wanted.collect::<Vec<_>>(), task, ready)
    })?;
    task.status_done("exporting layers", 0, None);
    let (blobs, diff_ids): (Vec<Descriptor>, Vec<DiffId>) =
        packed.into_iter().map(|layer| (layer.descriptor, layer.diff_id)).unzip();
    let config = built.config(&diff_ids)?;
    engine.store.blobs().put_bytes(config.bytes())?;
    let manifest = pack::manifest(&config, &blobs, options.annotations.of(Scope::Manifest, Some(&built.platform)))?;
    let mut descriptor = Descriptor::of(media_type::OCI_MANIFEST, manifest.bytes());
    descriptor.annotations = options.annotations.of(Scope::ManifestDescriptor, Some(&built.platform));
    engine.store.blobs().put_bytes(manifest.bytes())?;
    task.status_done(&format!("exporting manifest {}", descriptor.digest), 0, None);
    task.status_done(&format!("exporting config {}", config.digest()), 0, None);
    Ok(PackedImage { config, manifest, descriptor, layers: built.layers.iter().cloned().zip(blobs).collect() })
}

fn join(
    engine: &Engine,
    images: Vec<PackedImage>,
    built: &[Built],
    options: &ImageOptions,
    task: &Task,
) -> Result<Assembled, Error> {
    let manifests = images.iter().zip(built).map(|(image, built)| {
        let mut descriptor = image.descriptor.clone();
        descriptor.platform = Some(built.platform.clone());
        descriptor
    });
    let index = Index {
        schema_version: 2,
        media_type: Some(media_type::OCI_INDEX.to_owned()),
        manifests: manifests.collect(),
        annotations: options.annotations.of(Scope::Index, None),
        extra: serde_json::Map::new(),
    };
    let index = Raw::write(index).map_err(Error::internal("write an index"))?;
    let mut descriptor = Descriptor::of(media_type::OCI_INDEX, index.bytes());
    descriptor.annotations = options.annotations.of(Scope::IndexDescriptor, None);
    engine.store.blobs().put_bytes(index.bytes())?;
    task.status_done(&format!("exporting manifest list {}", descriptor.digest), 0, None);
    Ok(Assembled { images, index: Some(index), descriptor })
}

/// Does `work` while what new layers hold gets to the disk, where it has to be before the image has a name.
fn while_syncing<T>(engine: &Engine, layers: &[LayerRecord], work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    std::thread::scope(|scope| {
        let is_new = layers.iter().any(|layer| layer.diff_id.is_none());
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
    let config = built.config(&diff_ids)?;
    engine.store.blobs().put_bytes(config.bytes())?;
    Ok(record(&config, &built.layers, None))
}

impl Assembled {
    /// The record that the store keeps of it.
    pub(crate) fn record(&self) -> Option<ImageRecord> {
        let image = self.images.first()?;
        let layers: Vec<LayerRecord> = image.layers.iter().map(|(layer, _)| layer.clone()).collect();
        Some(record(&image.config, &layers, Some(image.descriptor.clone())))
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
