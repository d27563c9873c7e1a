//! Hides what of a damaged store can be had from registries again, before the store itself gives up the rest.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use kiln_oci::config::ImageConfig;
use kiln_oci::descriptor::Descriptor;
use kiln_oci::digest::{ChainId, Digest};
use kiln_oci::manifest::{Index, Manifest, Raw};
use kiln_oci::reference::Reference;
use kiln_registry_client::Repository;
use kiln_store::fsck::{Finding, Object, Report};
use kiln_store::snapshot::Part;
use kiln_store::{BaseLayer, ImageRecord, LayerId, LayerKind};

use crate::bases::{MAX_DOCUMENT, fetch_blob};
use crate::engine::Engine;
use crate::error::Error;
use crate::event::Task;
use crate::export::stored::is_attached;
use crate::ops::source::fetch_layer;
use crate::transfer::fetch_attached;

/// What came of a repair.
#[derive(Debug, Default)]
pub struct Repair {
    /// What was broken at first.
    pub found: Report,
    /// What was done, in words.
    pub done: Vec<String>,
    /// What is broken still.
    pub left: Report,
}

/// What is mended may uncover more: a tree is proved by its blob.
const ROUNDS: usize = 3;

/// Reads all of the store and says what is broken.
pub fn check(engine: &Engine) -> Result<Report, Error> {
    let task = engine.events.start("checking the store");
    let report = check_in(engine);
    task.end_with(report)
}

fn check_in(engine: &Engine) -> Result<Report, Error> {
    let go_on = |_: &str| if engine.check().is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) };
    let report = engine.store.fsck().check(&go_on)?;
    engine.check()?;
    Ok(report)
}

/// Checks, and mends what is broken: what a registry has is fetched, and what can be made again is removed.
pub fn repair(engine: &Engine) -> Result<Repair, Error> {
    let found = check(engine)?;
    let mut repair = Repair { left: found.clone(), found, done: Vec::new() };
    for _ in 0..ROUNDS {
        if repair.left.findings.is_empty() {
            break;
        }
        let task = engine.events.start("repairing the store");
        let done = repair_in(engine, &repair.left.findings, &task);
        repair.done.extend(task.end_with(done)?);
        let left = check(engine)?;
        let is_stuck = left.findings == repair.left.findings;
        repair.left = left;
        if is_stuck {
            break;
        }
    }
    Ok(repair)
}

fn repair_in(engine: &Engine, findings: &[Finding], task: &Task) -> Result<Vec<String>, Error> {
    let mut done = fetch(engine, findings, task)?;
    let broken = findings.iter().filter_map(|finding| match &finding.object {
        Object::Layer(id, Part::Record) if id.chain_id().is_some() => Some(id.clone()),
        _ => None,
    });
    done.extend(describe_layers(engine, &broken.collect())?);
    engine.check()?;
    done.extend(engine.store.fsck().mend(findings)?);
    Ok(done)
}

/// Fetches blobs that are damaged or missing from where the images and layers that need them came from.
fn fetch(engine: &Engine, findings: &[Finding], task: &Task) -> Result<Vec<String>, Error> {
    let wanted: BTreeSet<Digest> = findings
        .iter()
        .filter_map(|finding| match &finding.object {
            Object::Blob(digest) => Some(*digest),
            _ => None,
        })
        .collect();
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    for digest in &wanted {
        engine.store.fsck().drop_damaged(digest)?;
    }
    let mut failures = Vec::new();
    for image in engine.store.fsck().images()? {
        if image.needed_blobs().any(|digest| wanted.contains(&digest))
            && let Some(name) = &image.name
            && let Err(error) = documents(engine, name, &image, &wanted)
        {
            engine.check()?;
            failures.push(format!("{}: {error}", name.familiar()));
        }
    }
    for id in engine.store.fsck().layers()? {
        let Some(layer) = engine.store.layers().get(&id)? else { continue };
        if matches!(&layer.kind, LayerKind::Base(base) if wanted.contains(&base.blob.digest))
            && let Err(error) = fetch_layer(engine, &layer, task)
        {
            engine.check()?;
            failures.push(format!("layer {id}: {error}"));
        }
    }
    for failure in failures {
        task.warn(format!("it can't be fetched again: {failure}"));
    }
    let fetched = wanted.iter().filter(|digest| engine.store.blobs().has(digest));
    Ok(fetched.map(|digest| format!("fetched blob {digest}")).collect())
}

/// Fetches those documents of an image that are wanted from the repository of its name.
fn documents(engine: &Engine, name: &Reference, image: &ImageRecord, wanted: &BTreeSet<Digest>) -> Result<(), Error> {
    let blobs = engine.store.blobs();
    let text = |digest: &Digest| -> Result<Vec<u8>, Error> {
        if wanted.contains(digest) && !blobs.has(digest) {
            let (_, bytes) = engine.registry.fetch_manifest(&name.with_digest(*digest))?;
            blobs.put_bytes(&bytes)?;
        }
        Ok(blobs.read(digest, MAX_DOCUMENT)?)
    };
    if let Some(index) = &image.index
        && let Ok(index) = Raw::<Index>::parse(text(&index.digest)?)
    {
        let attached = index.value().manifests.iter().filter(|entry| is_attached(entry));
        for entry in attached.filter(|entry| image.blobs.iter().any(|blob| wanted.contains(blob) || *blob == entry.digest)) {
            fetch_attached(engine, &name.with_digest(entry.digest), entry)?;
        }
    }
    let of_platforms = image.platforms.iter().map(|platform| &platform.manifest);
    for manifest in image.manifest.iter().chain(of_platforms) {
        let Ok(manifest) = Raw::<Manifest>::parse(text(&manifest.digest)?) else { continue };
        let config = &manifest.value().config;
        if wanted.contains(&config.digest) {
            fetch_blob(engine, &Repository::from(name), config, &|_| {})?;
        }
    }
    Ok(())
}

/// Writes the records of layers of images anew from what the manifests and configurations in the store say.
pub(crate) fn describe_layers(engine: &Engine, broken: &BTreeSet<LayerId>) -> Result<Vec<String>, Error> {
    let mut done = Vec::new();
    if broken.is_empty() {
        return Ok(done);
    }
    for digest in engine.store.fsck().blobs()? {
        let Some((manifest, config)) = image_at(engine, &digest) else { continue };
        for (parent, base) in layers_of(&manifest, &config) {
            let id = LayerId::of_chain(base.chain_id);
            if !broken.contains(&id) || engine.store.layers().get(&id)?.is_some() {
                continue;
            }
            // Where the layer below is lost as well it was put back a moment ago, unless nobody tells of it.
            if parent.as_ref().is_none_or(|parent| matches!(engine.store.layers().get(parent), Ok(Some(_)))) {
                let sources = sources(engine, &manifest, &config)?;
                engine.store.layers().add_base(parent.as_ref(), &BaseLayer { sources, ..base })?;
                done.push(format!("wrote the record of layer {id} anew"));
            }
        }
    }
    Ok(done)
}

/// The manifest that is in the blob, if it is one of an image whose configuration is there as well.
fn image_at(engine: &Engine, digest: &Digest) -> Option<(Manifest, ImageConfig)> {
    let blobs = engine.store.blobs();
    let read = |digest: &Digest| blobs.read(digest, MAX_DOCUMENT).ok();
    // Most blobs are layers, and those are compressed.
    let bytes = read(digest).filter(|bytes| bytes.first() == Some(&b'{'))?;
    let manifest = Raw::<Manifest>::parse(bytes).ok()?;
    let config = Raw::<ImageConfig>::parse(read(&manifest.value().config.digest)?).ok()?;
    Some((manifest.value().clone(), config.value().clone()))
}

/// The layers of an image as they would be written down, each with the one below.
fn layers_of(manifest: &Manifest, config: &ImageConfig) -> Vec<(Option<LayerId>, BaseLayer)> {
    let (mut chain, mut layers) = (None, Vec::new());
    let of = |blob: &Descriptor, chain_id, diff_id| BaseLayer {
        diff_id,
        chain_id,
        blob: blob.clone(),
        sources: Vec::new(),
        created: None,
    };
    for (diff_id, blob) in config.rootfs.diff_ids.iter().zip(&manifest.layers) {
        let chain_id = ChainId::extend(chain, *diff_id);
        layers.push((chain.map(LayerId::of_chain), of(blob, chain_id, *diff_id)));
        chain = Some(chain_id);
    }
    layers
}

/// Where the layers of an image come from: where its others do, and the repositories of the images that have it.
fn sources(engine: &Engine, manifest: &Manifest, config: &ImageConfig) -> Result<Vec<String>, Error> {
    let mut sources = Vec::new();
    for (_, base) in layers_of(manifest, config) {
        if let Some(layer) = engine.store.layers().get(&LayerId::of_chain(base.chain_id))?
            && let LayerKind::Base(base) = layer.kind
        {
            sources.extend(base.sources);
        }
    }
    for image in engine.store.fsck().images()? {
        if image.config == manifest.config.digest {
            sources.extend(image.name.map(|name| name.repository()));
        }
    }
    sources.sort();
    sources.dedup();
    Ok(sources)
}
