//! Hides when a layer directory is turned into a tar, and that it happens at most once for each form.

use kiln_oci::config::ImageConfig;
use kiln_oci::descriptor::Descriptor;
use kiln_oci::digest::{DiffId, Digest};
use kiln_oci::manifest::{Manifest, Raw};
use kiln_oci::media_type;
use kiln_store::layer::compress::{Compression, EncodeOptions};
use kiln_store::layer::estargz;
use kiln_store::layer::{KnownTar, PackOptions, PackedError, Target, pack_compressed, pack_estargz, repack};
use kiln_store::rootdir::RootDir;
use kiln_store::{BaseLayer, BlobWriter, LayerKind, LayerRecord, PackedBlob};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError, mpsc};

use crate::cache_key::memo_key;
use crate::engine::Engine;
use crate::error::{Error, ImageError};
use crate::event::Task;
use crate::export::form::{CompressionChoice, CompressionKind, Form};
use crate::ops::source::{fetch_layer, materialise};
use crate::transfer::TRANSFERS;

/// The digests of the layers' tars. A layer of a base image knows its own; one that was built here is packed into nothing but a
/// hasher, the first time somebody asks.
pub fn diff_ids(engine: &Engine, layers: &[LayerRecord]) -> Result<Vec<DiffId>, Error> {
    layers.par_iter().map(|layer| diff_id(engine, layer)).collect()
}

fn diff_id(engine: &Engine, layer: &LayerRecord) -> Result<DiffId, Error> {
    if let Some(diff_id) = layer.diff_id {
        return Ok(diff_id);
    }
    engine.early.wait_for(&layer.id);
    match engine.store.layers().get(&layer.id)?.and_then(|now| now.diff_id) {
        Some(diff_id) => Ok(diff_id),
        None => new_diff_id(engine, layer),
    }
}

/// The digest of the tar of a layer that was built here, which nobody has asked for yet. The tar itself goes nowhere.
pub(crate) fn new_diff_id(engine: &Engine, layer: &LayerRecord) -> Result<DiffId, Error> {
    engine.check()?;
    let diff = open_diff(engine, layer)?;
    let mut nowhere = Wanting { inner: std::io::sink(), engine };
    let made = pack_compressed(&diff, &mut nowhere, Compression::None, EncodeOptions::default(), &engine.store.packing())?;
    engine.store.layers().set_packed(&layer.id, made.tar, None)?;
    Ok(made.tar.diff_id)
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
/// A layer that came with an image keeps its own blob whatever the form, unless `force` is set: then its tar is packed anew.
/// The blob of a layer that keeps its own may still be in its registry.
pub fn packed(engine: &Engine, layer: &LayerRecord, form: &Form, force: bool, task: &Task) -> Result<PackedLayer, Error> {
    let own = |base: &BaseLayer| Ok(PackedLayer { descriptor: base.blob.clone(), diff_id: base.diff_id });
    let form = match &layer.kind {
        // What a shared cache brought was made by a step like those that are done here, and has to look like theirs; but for the
        // level, which can't be seen.
        LayerKind::Base(base) if layer.created.is_some() => {
            let usual = Form::from(CompressionChoice { kind: form.kind, level: None, force: false });
            let level = if force { form.level } else { usual.level };
            if form.epoch.is_none() && has_form(&base.blob, &Form { level, ..*form }) {
                return own(base);
            }
            form
        }
        LayerKind::Base(base) if !force || has_form(&base.blob, form) => return own(base),
        // The files of a base are as old as its image says, as BuildKit leaves them.
        LayerKind::Base(_) => &Form { epoch: None, ..*form },
        LayerKind::Built => form,
    };
    if let Some(found) = remembered(engine, layer, form) {
        return Ok(found);
    }
    engine.check()?;
    // An output and a shared cache, or two processes, may want the same at the same time: one makes it, the others find it.
    let _lock = engine.store.cache().lock(&memo_key("pack", &format!("{} {}", layer.id, form.label())))?;
    if let Some(found) = engine.store.layers().get(&layer.id)?.and_then(|now| remembered(engine, &now, form)) {
        return Ok(found);
    }
    let name = format!("exporting layer {}", layer.id);
    task.status(&name, 0, None);
    let mut writer = engine.store.blobs().writer()?;
    let made = match &layer.kind {
        LayerKind::Base(base) if form.epoch.is_none() => {
            fetch_layer(engine, layer, task)?;
            of_base(engine, base, form, &mut writer)?
        }
        LayerKind::Base(_) => {
            materialise(engine, Some(&layer.id), task)?;
            of_tree(engine, layer, form, &mut writer)?
        }
        LayerKind::Built => of_tree(engine, layer, form, &mut writer)?,
    };
    let (digest, size) = writer.commit(None)?;
    let mut descriptor = Descriptor::new(form.kind.media_type(), digest, size);
    if let Some(toc) = made.toc {
        descriptor.annotations.insert(TOC_DIGEST.to_owned(), toc.to_string());
        descriptor.annotations.insert(UNCOMPRESSED_SIZE.to_owned(), made.tar.size.to_string());
    }
    let diff_id = (!form.keeps_the_tar()).then_some(made.tar.diff_id);
    let blob = PackedBlob { descriptor: descriptor.clone(), compression: form.label(), diff_id };
    match form.keeps_the_tar() {
        true => engine.store.layers().set_packed(&layer.id, made.tar, Some(blob))?,
        false => engine.store.layers().add_packed(&layer.id, blob)?,
    }
    task.status_done(&format!("exporting layer {digest}"), size, Some(size));
    Ok(PackedLayer { descriptor, diff_id: made.tar.diff_id })
}

/// The annotations by which a lazy snapshotter proves the table of contents, and tells how much there is to unpack.
const TOC_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";
const UNCOMPRESSED_SIZE: &str = "io.containers.estargz.uncompressed-size";

/// Whether the blob of a base is as asked for already. Which level it has can't be seen, so only the usual one counts as that.
fn has_form(blob: &Descriptor, form: &Form) -> bool {
    let is_estargz = blob.annotations.contains_key(TOC_DIGEST);
    let same = media_type::layer_to_oci(&blob.media_type) == form.kind.media_type();
    let usual = Form::from(CompressionChoice { kind: form.kind, level: None, force: false });
    same && is_estargz == (form.kind == CompressionKind::Estargz) && form.level == usual.level
}

/// A layer, and how it is wanted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) layer: &'a LayerRecord,
    pub(crate) form: Form,
    /// See [`packed`].
    pub(crate) force: bool,
}

/// What is done with each layer as soon as it is packed.
pub(crate) type Ready<'a> = &'a (dyn Fn(&LayerRecord, &Descriptor) -> Result<(), Error> + Sync);

/// Packs layers side by side, as many as there are processors. While one is packed, those before it are `ready`: on their way to a
/// registry, say, several at once, since that waits for others. The first error ends everything.
pub(crate) fn all(
    engine: &Engine,
    layers: &[Wanted<'_>],
    task: &Task,
    ready: Option<Ready<'_>>,
) -> Result<Vec<PackedLayer>, Error> {
    let packers = std::thread::available_parallelism().map_or(1, usize::from).min(layers.len());
    let next = AtomicUsize::new(0);
    let failure = Mutex::new(None);
    let fail = |error| {
        next.store(layers.len(), Ordering::Relaxed);
        failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    };
    let made: Vec<OnceLock<PackedLayer>> = layers.iter().map(|_| OnceLock::new()).collect();
    let (send, due) = mpsc::channel::<usize>();
    let due = Mutex::new(due);
    std::thread::scope(|scope| {
        for _ in 0..packers {
            let (send, made, next, fail) = (send.clone(), &made, &next, &fail);
            scope.spawn(move || {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(wanted) = layers.get(at) else { return };
                    match packed(engine, wanted.layer, &wanted.form, wanted.force, task) {
                        Ok(layer) => drop(made[at].set(layer)),
                        Err(error) => return fail(error),
                    }
                    // Nobody listens after an error.
                    let _ = send.send(at);
                }
            });
        }
        drop(send);
        let Some(ready) = ready else { return };
        for _ in 0..TRANSFERS.min(layers.len()) {
            let (due, made, fail, failure) = (&due, &made, &fail, &failure);
            scope.spawn(move || {
                loop {
                    let at = due.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let (Ok(at), false) = (at, failure.lock().is_ok_and(|failure| failure.is_some())) else { return };
                    let Some(layer) = made[at].get() else { continue };
                    if let Err(error) = engine.check().and_then(|()| ready(layers[at].layer, &layer.descriptor)) {
                        return fail(error);
                    }
                }
            });
        }
    });
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(made.into_iter().filter_map(OnceLock::into_inner).collect()),
    }
}

/// How a layer was packed when its tar was the one that `wanted` names: an image keeps its form when its blobs have to be made
/// again.
pub(crate) fn form_of(layer: &LayerRecord, wanted: DiffId, form: &Form) -> Form {
    let made = layer.blobs.iter().find(|blob| blob.diff_id == Some(wanted));
    made.and_then(|blob| Form::parse(&blob.compression)).unwrap_or(*form)
}

/// The form in which a layer of the base that `wanted` is the tar of stays as it is: an image of the store may have been exported
/// with times rewritten, and the layers that it gives to another are those.
pub(crate) fn form_in_base(layer: &LayerRecord, wanted: DiffId, form: &Form) -> Form {
    Form { epoch: form_of(layer, wanted, &Form { epoch: None, ..*form }).epoch, ..*form }
}

/// Packs a layer once more, of which a blob that was made here is lost; false when that gives another blob.
pub(crate) fn again(engine: &Engine, layer: &LayerRecord, lost: &Descriptor, task: &Task) -> Result<bool, Error> {
    // What was packed by this very command is in no record that was read before it.
    let Some(layer) = engine.store.layers().get(&layer.id)? else { return Ok(false) };
    let made = layer.blobs.iter().find(|blob| blob.descriptor.digest == lost.digest);
    let Some(form) = made.and_then(|blob| Form::parse(&blob.compression)) else { return Ok(false) };
    let is_base = matches!(layer.kind, LayerKind::Base(_));
    Ok(packed(engine, &layer, &form, is_base, task)?.descriptor.digest == lost.digest)
}

struct Made {
    tar: KnownTar,
    toc: Option<Digest>,
}

/// Stops when nobody wants what is written.
struct Wanting<'a, W> {
    inner: W,
    engine: &'a Engine,
}

impl<W: std::io::Write> std::io::Write for Wanting<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self.engine.early.is_given_up() {
            true => Err(std::io::Error::other("the build is over")),
            false => self.inner.write(bytes),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

fn of_tree(engine: &Engine, layer: &LayerRecord, form: &Form, writer: &mut BlobWriter) -> Result<Made, Error> {
    let diff = open_diff(engine, layer)?;
    let writer = &mut Wanting { inner: writer, engine };
    let known = if form.keeps_the_tar() { layer.known_tar() } else { None };
    let options = PackOptions { latest_mtime: form.epoch, known, ..engine.store.packing() };
    if form.kind == CompressionKind::Estargz {
        let (made, _) = pack_estargz(&diff, writer, encode(form), &options).map_err(PackedError::Pack)?;
        return Ok(Made { tar: indexed(&made), toc: Some(made.toc) });
    }
    let made = pack_compressed(&diff, writer, form.codec(), encode(form), &options)?;
    Ok(Made { tar: made.tar, toc: None })
}

fn of_base(engine: &Engine, base: &BaseLayer, form: &Form, writer: &mut BlobWriter) -> Result<Made, Error> {
    let blob = engine.store.blobs().open_sized(&base.blob.digest, base.blob.size)?;
    let is_estargz = form.kind == CompressionKind::Estargz;
    let target = if is_estargz { Target::Estargz } else { Target::Tar(form.codec()) };
    let made = repack(blob, base.diff_id, writer, target, encode(form))
        .map_err(|cause| Error::Image(ImageError::Repack { digest: base.blob.digest.to_string(), cause }))?;
    Ok(Made { tar: indexed(&made), toc: is_estargz.then_some(made.toc) })
}

fn indexed(made: &estargz::Made) -> KnownTar {
    KnownTar { diff_id: made.diff_id, size: made.tar_size, crc: None }
}

fn encode(form: &Form) -> EncodeOptions {
    EncodeOptions { level: Some(form.level), ..EncodeOptions::default() }
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
