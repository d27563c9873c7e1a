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

/// The blob of a layer in this compression, and the digest of its tar, made in one pass when it isn't there.
///
/// A layer that came with an image keeps its own blob whatever its compression: it was never ours to change.
pub fn packed(
    engine: &Engine,
    layer: &LayerRecord,
    compression: Compression,
    task: &Task,
) -> Result<(Descriptor, DiffId), Error> {
    if let LayerKind::Base(BaseLayer { blob, diff_id, .. }) = &layer.kind {
        return Ok((blob.clone(), *diff_id));
    }
    let blobs = engine.store.blobs();
    if let (Some(diff_id), Some(found)) = (layer.diff_id, layer.blobs.iter().find(|b| b.compression == label(compression)))
        && blobs.has_sized(&found.descriptor.digest, found.descriptor.size)
    {
        return Ok((found.descriptor.clone(), diff_id));
    }
    engine.check()?;
    let name = format!("exporting layer {}", layer.id);
    task.status(&name, 0, None);
    let mut writer = blobs.writer()?;
    let diff = open_diff(engine, layer)?;
    let made = pack_compressed(&diff, &mut writer, compression, EncodeOptions::default(), &engine.store.packing())?;
    let (digest, size) = writer.commit(None)?;
    let descriptor = Descriptor::new(compression.media_type().unwrap_or(media_type::OCI_LAYER), digest, size);
    let blob = PackedBlob { descriptor: descriptor.clone(), compression: label(compression).to_owned() };
    engine.store.layers().set_packed(&layer.id, made.diff_id, made.stats.tar_size, Some(blob))?;
    task.status_done(&format!("exporting layer {digest}"), size, Some(size));
    Ok((descriptor, made.diff_id))
}

/// How the store calls a packed form.
pub(crate) fn label(compression: Compression) -> &'static str {
    match compression {
        Compression::None => "none",
        Compression::Gzip => "gzip:6",
        Compression::Zstd => "zstd:3",
        Compression::Bzip2 => "bzip2",
        Compression::Xz => "xz",
    }
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
