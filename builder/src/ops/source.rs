//! Hides how a layer that is only known by record comes to be a directory: fetched, verified, unpacked, once.

use std::io::Read as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;

use kiln_oci::descriptor::Descriptor;
use kiln_oci::digest::{DiffId, Hasher};
use kiln_oci::media_type::layer_to_oci;
use kiln_oci::reference::Reference;
use kiln_registry_client::Repository;
use kiln_store::layer::compress::Decoder;
use kiln_store::layer::{KnownTar, UnpackBlobError, unpack_blob};
use kiln_store::{BaseLayer, Error as StoreError, LayerId, LayerKind, LayerRecord, Unpack};

use crate::bases::fetch_blob;
use crate::engine::Engine;
use crate::error::{Error, ImageError, Kind, StepError};
use crate::event::Task;
use crate::remote_cache::backend::Backend;

/// How many blobs of one image come at once, as Docker and BuildKit do it.
const DOWNLOADS: usize = 4;

/// Makes `top` and all layers below it directories. What is there already costs nothing; what is missing is fetched side
/// by side and unpacked from the bottom up, each as soon as it and those below are there.
pub fn materialise(engine: &Engine, top: Option<&LayerId>, task: &Task) -> Result<(), Error> {
    let Some(top) = top else { return Ok(()) };
    let missing = engine.store.layers().packed(top)?;
    if missing.is_empty() {
        return Ok(());
    }
    let next = AtomicU64::new(0);
    let (next, missing) = (&next, &missing);
    std::thread::scope(|scope| {
        let (sender, receiver) = channel();
        for _ in 0..DOWNLOADS.min(missing.len()) {
            let sender = sender.clone();
            scope.spawn(move || {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed) as usize;
                    let Some(layer) = missing.get(index) else { return };
                    let result = engine.check().and_then(|()| fetch_layer(engine, layer, task));
                    let failed = result.is_err();
                    if sender.send((index, result)).is_err() || failed {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let mut arrived = vec![false; missing.len()];
        let mut unpacked = 0;
        for (index, result) in receiver {
            if let Err(error) = result {
                // The others stop at their next layer.
                next.store(u64::MAX / 2, Ordering::Relaxed);
                return Err(error);
            }
            arrived[index] = true;
            while arrived.get(unpacked) == Some(&true) {
                engine.check()?;
                unpack(engine, &missing[unpacked], task)?;
                unpacked += 1;
            }
        }
        Ok(())
    })
}

/// Fetches the blob of a base layer from one of the repositories, or places of shared caches, that are known to have it.
pub(crate) fn fetch_layer(engine: &Engine, layer: &LayerRecord, task: &Task) -> Result<(), Error> {
    let LayerKind::Base(base) = &layer.kind else { return Ok(()) };
    let is_there = engine.store.blobs().has_sized(&base.blob.digest, base.blob.size);
    // Nobody but the cache says that the blob is what the step made, so it is looked into even if it is only passed on.
    let is_proven = layer.created.is_none() || layer.unpacked || layer.tar_size.is_some();
    match (is_there, is_proven) {
        (true, true) => Ok(()),
        (true, false) => prove(engine, layer, base).map_err(|error| lost(layer, error)),
        (false, _) if layer.created.is_none() => fetch(engine, base, task),
        (false, _) => {
            let fetched = fetch(engine, base, task).and_then(|()| prove(engine, layer, base));
            fetched.map_err(|error| lost(layer, error))
        }
    }
}

/// What went wrong with a layer that a shared cache told of: it is as good as gone, unless the fault is on this side.
fn lost(layer: &LayerRecord, error: Error) -> Error {
    match error.kind() {
        Kind::Registry => {}
        Kind::Store if matches!(error, Error::Store(StoreError::DigestMismatch { .. } | StoreError::SizeMismatch { .. })) => {}
        _ => return error,
    }
    Error::CachedLayerLost { layer: layer.id.clone(), cause: Box::new(error) }
}

/// Proves that the tar in a blob is the one that it is said to be, and notes that it is.
fn prove(engine: &Engine, layer: &LayerRecord, base: &BaseLayer) -> Result<(), Error> {
    let blob = engine.store.blobs().open_sized(&base.blob.digest, base.blob.size)?;
    let unreadable = |cause| unpacking(base, UnpackBlobError::Decompress(cause));
    let (form, mut tar) = Decoder::detect(blob).map_err(unreadable)?;
    if form.media_type() != Some(layer_to_oci(&base.blob.media_type)) {
        // A manifest would say of it what it isn't.
        return Err(unreadable(std::io::Error::other(format!("it is no `{}`", base.blob.media_type))));
    }
    let (mut hasher, mut piece, mut size) = (Hasher::new(), vec![0; 256 << 10], 0);
    loop {
        engine.check()?;
        let count = tar.read(&mut piece).map_err(unreadable)?;
        if count == 0 {
            break;
        }
        hasher.update(&piece[..count]);
        size += count as u64;
    }
    let (found, expected) = (DiffId::new(hasher.finish()), base.diff_id);
    if found != expected {
        return Err(unpacking(base, UnpackBlobError::WrongDiffId { found, expected }));
    }
    Ok(engine.store.layers().set_packed(&layer.id, KnownTar { diff_id: expected, size, crc: None }, None)?)
}

fn unpacking(base: &BaseLayer, cause: UnpackBlobError) -> Error {
    Error::Unplaced(Box::new(StepError::Unpack { digest: base.blob.digest.to_string(), cause }))
}

fn fetch(engine: &Engine, BaseLayer { blob, sources, .. }: &BaseLayer, task: &Task) -> Result<(), Error> {
    let name = blob.digest.to_string();
    task.status(&name, 0, Some(blob.size));
    let mut last = None;
    for source in sources.iter().rev() {
        let progress = |done| task.status(&name, done, Some(blob.size));
        let fetched = if let Some(place) = engine.places.get(source) {
            fetch_from(engine, &*place, blob, &progress)
        } else if let Ok(reference) = Reference::parse(source) {
            fetch_blob(engine, &Repository::from(&reference), blob, &progress)
        } else {
            continue;
        };
        match fetched {
            Ok(()) => {
                task.status_done(&name, blob.size, Some(blob.size));
                return Ok(());
            }
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| Error::Image(ImageError::LayerLost { digest: blob.digest.to_string() })))
}

/// Fetches a blob from the place of a shared cache into the store; its digest is proved on the way.
fn fetch_from(engine: &Engine, place: &dyn Backend, blob: &Descriptor, progress: &dyn Fn(u64)) -> Result<(), Error> {
    let _lock = engine.store.blobs().lock(&blob.digest)?;
    if engine.store.blobs().has_sized(&blob.digest, blob.size) {
        return Ok(());
    }
    if place.proves() {
        let mut writer = engine.store.blobs().verified_writer()?;
        place.fetch_layer(blob, &mut writer, progress)?;
        writer.commit(&blob.digest, blob.size)?;
    } else {
        let mut writer = engine.store.blobs().writer()?.limited(blob.size);
        place.fetch_layer(blob, &mut writer, progress)?;
        writer.commit(Some((blob.digest, blob.size)))?;
    }
    Ok(())
}

/// Unpacks one layer whose parents are unpacked. Another process, or another stage of this build, may want the same layer: one
/// unpacks, the others wait and find it.
///
/// A blob that was damaged on disk is fetched once more.
fn unpack(engine: &Engine, layer: &LayerRecord, task: &Task) -> Result<(), Error> {
    let LayerKind::Base(base) = &layer.kind else {
        return Err(Error::Image(ImageError::LayerLost { digest: layer.id.to_string() }));
    };
    let Err(error) = try_unpack(engine, layer, base, task) else { return Ok(()) };
    let error = match matches!(error, Error::Unplaced(_)) && is_damaged(engine, &base.blob) {
        true => {
            task.warn(format!("the blob {} was damaged in the store and is fetched again", base.blob.digest));
            fetch_layer(engine, layer, task)?;
            match try_unpack(engine, layer, base, task) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            }
        }
        false => error,
    };
    Err(if layer.created.is_some() { lost(layer, error) } else { error })
}

fn try_unpack(engine: &Engine, layer: &LayerRecord, base: &BaseLayer, task: &Task) -> Result<(), Error> {
    let Unpack::Needed(prepared) = engine.store.layers().unpack(&layer.id)? else { return Ok(()) };
    let name = format!("extracting {}", base.blob.digest);
    task.status(&name, 0, None);
    // The digest of the tar is proved below, so there is no need to prove that of the blob once more.
    let blob = engine.store.blobs().open_sized(&base.blob.digest, base.blob.size)?;
    let parent = engine.store.view(&prepared.lowers)?;
    let unpacked = unpack_blob(blob, base.diff_id, &engine.store.tree(&prepared.upper)?, &parent, &engine.store.unpacking())
        .map_err(|cause| unpacking(base, cause))?;
    prepared.commit()?;
    engine.early.wrote(unpacked.bytes);
    task.status_done(&name, 0, None);
    Ok(())
}

/// Whether the store's copy of a blob is not what its name says; it is taken away then.
fn is_damaged(engine: &Engine, blob: &Descriptor) -> bool {
    let reader = engine.store.blobs().reader(&blob.digest, blob.size);
    !matches!(reader.map(|mut reader| std::io::copy(&mut reader, &mut std::io::sink())), Ok(Ok(_)))
}
