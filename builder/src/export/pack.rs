//! Hides when a layer directory is turned into a tar, and that it happens at most once for each form.

use kiln_oci::config::ImageConfig;
use kiln_oci::descriptor::Descriptor;
use kiln_oci::digest::DiffId;
use kiln_oci::manifest::{Manifest, Raw};
use kiln_oci::media_type;
use kiln_store::layer::compress::{Compression, EncodeOptions};
use kiln_store::layer::pack_compressed;
use kiln_store::rootdir::RootDir;
use kiln_store::{BaseLayer, LayerKind, LayerRecord, PackedBlob};
use rayon::prelude::*;
use std::collections::BTreeMap;

use crate::engine::Engine;
use crate::error::{Error, ImageError};
use crate::event::Task;
use crate::export::form::Form;

/// The digests of the layers' tars. A layer of a base image knows its own; one that was built here is packed into nothing but a
/// hasher, the first time somebody asks.
pub fn diff_ids(engine: &Engine, layers: &[LayerRecord]) -> Result<Vec<DiffId>, Error> {
    layers.par_iter().map(|layer| diff_id(engine, layer)).collect()
}

fn diff_id(engine: &Engine, layer: &LayerRecord) -> Result<DiffId, Error> {
    if let Some(diff_id) = layer.diff_id {
        return Ok(diff_id);
    }
    engine.check()?;
    // Hashed on a thread beside the one that reads; the tar itself goes nowhere.
    let diff = open_diff(engine, layer)?;
    let made =
        pack_compressed(&diff, &mut std::io::sink(), Compression::None, EncodeOptions::default(), &engine.store.packing())?;
    engine.store.layers().set_packed(&layer.id, made.diff_id, made.stats.tar_size, None)?;
    Ok(made.diff_id)
}

/// A layer's bytes in one form.
#[derive(Debug, Clone, PartialEq)]
pub struct PackedLayer {
    /// The blob, with the annotations that its form asks for.
    pub descriptor: Descriptor,
    /// The digest of the tar in it, which is what the configuration of an image with this blob has to say. A table of contents or
    /// other times make it another than [`LayerRecord::diff_id`].
    pub diff_id: DiffId,
}

/// The blob of a layer in this form, made at most once.
///
/// A layer that came with an image keeps its own blob whatever the form, unless `force` is set: then its blob is packed anew.
/// The blob of such a layer may still be in its registry.
pub fn packed(engine: &Engine, layer: &LayerRecord, form: &Form, force: bool, task: &Task) -> Result<PackedLayer, Error> {
    if let LayerKind::Base(BaseLayer { blob, diff_id, .. }) = &layer.kind {
        let _ = force;
        return Ok(PackedLayer { descriptor: blob.clone(), diff_id: *diff_id });
    }
    if let Some(found) = remembered(engine, layer, form) {
        return Ok(found);
    }
    engine.check()?;
    let name = format!("exporting layer {}", layer.id);
    task.status(&name, 0, None);
    let mut writer = engine.store.blobs().writer()?;
    let diff = open_diff(engine, layer)?;
    let encode = EncodeOptions { level: Some(form.level), ..EncodeOptions::default() };
    let made = pack_compressed(&diff, &mut writer, form.codec(), encode, &engine.store.packing())?;
    let (digest, size) = writer.commit(None)?;
    let descriptor = Descriptor::new(form.kind.media_type(), digest, size);
    let blob = PackedBlob { descriptor: descriptor.clone(), compression: form.label(), diff_id: None };
    engine.store.layers().set_packed(&layer.id, made.diff_id, made.stats.tar_size, Some(blob))?;
    task.status_done(&format!("exporting layer {digest}"), size, Some(size));
    Ok(PackedLayer { descriptor, diff_id: made.diff_id })
}

/// A form that was made before and is still there.
fn remembered(engine: &Engine, layer: &LayerRecord, form: &Form) -> Option<PackedLayer> {
    let label = form.label();
    let found = layer.blobs.iter().find(|blob| blob.compression == label)?;
    let there = engine.store.blobs().has_sized(&found.descriptor.digest, found.descriptor.size);
    there.then_some(PackedLayer { descriptor: found.descriptor.clone(), diff_id: found.diff_id.or(layer.diff_id)? })
}

fn open_diff(engine: &Engine, layer: &LayerRecord) -> Result<RootDir, Error> {
    Ok(engine.store.tree(&engine.store.layers().diff_dir(&layer.id))?)
}

/// The OCI manifest of an image whose layers are packed.
pub fn manifest(
    config: &Raw<ImageConfig>,
    layers: &[Descriptor],
    annotations: BTreeMap<String, String>,
) -> Result<Raw<Manifest>, Error> {
    let config = Descriptor::new(media_type::OCI_CONFIG, config.digest(), config.bytes().len() as u64);
    let layers = layers.iter().map(|layer| {
        let mut layer = layer.clone();
        layer.media_type = media_type::layer_to_oci(&layer.media_type).to_owned();
        layer
    });
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(media_type::OCI_MANIFEST.to_owned()),
        config,
        layers: layers.collect(),
        annotations,
        extra: serde_json::Map::new(),
    };
    Raw::write(manifest).map_err(|e| Error::Image(ImageError::Invalid { name: "manifest".to_owned(), reason: e.to_string() }))
}
