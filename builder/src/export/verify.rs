//! Hides how the trees that a result stands on are proved to be what they were: `--verify-layers`.
//!
//! A layer's tree is believed because nobody but kiln writes there; a kernel with a hole in its page cache (CVE-2022-0847,
//! CVE-2026-31431) lets a RUN write there all the same. A tar has one digest, and a tree has one tar: a layer that was built here is
//! packed again, and one that an image brought is unpacked again, from the blob that its digest proves, and both are packed.

use kiln_oci::digest::DiffId;
use kiln_store::layer::compress::{Compression, EncodeOptions};
use kiln_store::layer::{pack_compressed, unpack_blob};
use kiln_store::rootdir::RootDir;
use kiln_store::{BaseLayer, LayerKind, LayerRecord};

use crate::engine::Engine;
use crate::error::{Error, ImageError, StepError};
use crate::event::Task;
use crate::ops::source::fetch_layer;

/// Fails when the tree of one of `layers`, the lowest first, isn't what it was when it was made. What has no tree yet, or was never
/// packed before, has nothing to differ from.
pub(crate) fn verify_layers(engine: &Engine, layers: &[LayerRecord], task: &Task) -> Result<(), Error> {
    for (index, layer) in layers.iter().enumerate().filter(|(_, layer)| layer.unpacked) {
        engine.check()?;
        let name = format!("verifying layer {}", layer.id);
        task.status(&name, 0, None);
        let expected = match &layer.kind {
            LayerKind::Built => layer.diff_id,
            LayerKind::Base(base) => Some(unpacked_again(engine, layer, base, &layers[..index], task)?),
        };
        let tree = engine.store.tree(&engine.store.layers().diff_dir(&layer.id))?;
        if let Some(expected) = expected
            && digest(engine, &tree)? != expected
        {
            return Err(Error::Image(ImageError::LayerChanged { layer: layer.id.to_string() }));
        }
        task.status_done(&name, 0, None);
    }
    Ok(())
}

/// The digest of what the layer's blob unpacks to.
fn unpacked_again(
    engine: &Engine,
    layer: &LayerRecord,
    base: &BaseLayer,
    below: &[LayerRecord],
    task: &Task,
) -> Result<DiffId, Error> {
    fetch_layer(engine, layer, task)?;
    let draft = engine.store.layers().prepare_apart(layer.parent.as_ref())?;
    let tree = engine.store.tree(&draft.upper)?;
    let lowers: Vec<_> = below.iter().rev().map(|layer| engine.store.layers().diff_dir(&layer.id)).collect();
    let blob = engine.store.blobs().open_sized(&base.blob.digest, base.blob.size)?;
    unpack_blob(blob, base.diff_id, &tree, &engine.store.view(&lowers)?, &engine.store.unpacking())
        .map_err(|cause| StepError::Unpack { digest: base.blob.digest.to_string(), cause })
        .map_err(|error| Error::Unplaced(Box::new(error)))?;
    digest(engine, &tree)
}

fn digest(engine: &Engine, tree: &RootDir) -> Result<DiffId, Error> {
    let options = EncodeOptions::default();
    Ok(pack_compressed(tree, &mut std::io::sink(), Compression::None, options, &engine.store.packing())?.tar.diff_id)
}
