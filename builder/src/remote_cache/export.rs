//! Hides how a build's steps reach a shared cache: layers one by one while the build runs, the document when it is over.
//!
//! What an image brought stays where it is: whoever finds a step has resolved its `FROM`. A layer that another cache brought is
//! fetched only when the place lacks it and can't link it.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};
use std::thread::Scope;

use kiln_oci::descriptor::Descriptor;
use kiln_oci::digest::{ChainId, Digest};
use kiln_store::{LayerId, LayerKind, LayerRecord};

use super::backend::{Backend, Subject};
use super::causes;
use super::format::{self, CachedStep, Steps};
use super::request::{CacheRequest, CacheScope, CacheTarget, TargetPlace};
use super::session::{SharedCaches, Told, ToldStep, lock};
use crate::engine::Engine;
use crate::error::Error;
use crate::event::Task;
use crate::export::form::Form;
use crate::export::pack::{PackedLayer, packed};
use crate::transfer::lend;

/// Layers that travel at once.
const WORKERS: usize = 4;
/// How BuildKit notes the digest of a layer's tar, and the time of its making.
const UNCOMPRESSED: &str = "containerd.io/uncompressed";
const CREATED_AT: &str = "buildkit/createdat";

/// The caches that are written.
#[derive(Debug, Default)]
pub(super) struct Exports {
    targets: Vec<Target>,
    queue: Mutex<Queue>,
    /// There's more in the queue, or there never will be.
    wake: Condvar,
    /// The build failed: nobody wants what is on its way.
    given_up: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
struct Queue {
    jobs: VecDeque<(usize, LayerId)>,
    seen: HashSet<(usize, LayerId)>,
    closed: bool,
}

#[derive(Debug)]
struct Target {
    wish: CacheTarget,
    place: Arc<dyn Backend>,
    form: Form,
    task: RwLock<Option<Task>>,
    /// Layers that are there now, in the form in which they are.
    there: Mutex<BTreeMap<LayerId, PackedLayer>>,
    failed: Mutex<Option<Error>>,
}

impl Exports {
    /// Opens the places; `form` is that of the outputs, which have the same layers.
    ///
    /// # Errors
    /// Those of a cache that must be written.
    pub(super) fn open(engine: &Engine, request: &CacheRequest, form: Form) -> Result<Self, Error> {
        let mut exports = Self::default();
        for wish in &request.to {
            let TargetPlace::Apart(place) = &wish.place else { continue };
            let place = match place.open(engine) {
                Ok(place) => place,
                Err(error) if wish.must_succeed => return Err(error),
                Err(error) => {
                    engine.events.warn(format!("a cache is not written: {}", causes(&error)));
                    continue;
                }
            };
            // Other times are the output's business: a step's layer is what the step made.
            let form = wish.compression.map_or(Form { epoch: None, ..form }, Form::from);
            let task = RwLock::new(Some(engine.events.start(format!("exporting cache to {}", place.locator()))));
            let (there, failed) = Default::default();
            exports.targets.push(Target { wish: wish.clone(), place, form, task, there, failed });
        }
        Ok(exports)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.targets.is_empty()
    }

    /// Sends what is offered from now on, on threads of their own.
    pub(super) fn start<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>, engine: &'scope Engine) {
        if !self.is_empty() {
            for _ in 0..WORKERS {
                scope.spawn(|| self.work(engine));
            }
        }
    }

    /// A layer that is complete.
    pub(super) fn offer(&self, layer: &LayerId, in_result: bool) {
        if self.is_empty() {
            return;
        }
        let mut queue = lock(&self.queue);
        for (at, target) in self.targets.iter().enumerate() {
            if (in_result || target.wish.scope == CacheScope::Max) && queue.seen.insert((at, layer.clone())) {
                queue.jobs.push_back((at, layer.clone()));
            }
        }
        drop(queue);
        self.wake.notify_all();
    }

    fn work(&self, engine: &Engine) {
        loop {
            let mut queue = lock(&self.queue);
            let (at, layer) = loop {
                if let Some(job) = queue.jobs.pop_front() {
                    break job;
                }
                if queue.closed {
                    return;
                }
                queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
            };
            drop(queue);
            // There are as many targets as when the job was made.
            if let Some(target) = self.targets.get(at)
                && !self.given_up.load(Ordering::Relaxed)
                && lock(&target.failed).is_none()
            {
                match target.send(engine, &layer, &self.given_up) {
                    Ok(()) => {}
                    // Without it there are less steps, but a cache.
                    Err(Error::CachedLayerLost { .. }) => {}
                    Err(error) => drop(lock(&target.failed).get_or_insert(error)),
                }
            }
        }
    }
}

impl Target {
    fn send(&self, engine: &Engine, id: &LayerId, given_up: &Arc<AtomicBool>) -> Result<(), Error> {
        let Some(layer) = engine.store.layers().get(id)? else { return Ok(()) };
        let task = self.task.read().unwrap_or_else(PoisonError::into_inner);
        let Some(task) = task.as_ref().filter(|_| !is_of_an_image(&layer)) else { return Ok(()) };
        let force = self.wish.compression.is_some_and(|choice| choice.force);
        let packed = packed(engine, &layer, &self.form, force, task)?;
        lend(engine, &layer, &packed.descriptor, task, |sources, open, progress| {
            let stoppable = |from| -> std::io::Result<Box<dyn Read + Send>> {
                Ok(Box::new(Stoppable { inner: open(from)?, stop: Arc::clone(given_up) }))
            };
            self.place.put_layer(&packed.descriptor, sources, &stoppable, progress)
        })?;
        lock(&self.there).insert(id.clone(), packed);
        Ok(())
    }

    /// Writes the document.
    fn save(&self, engine: &Engine, told: &Told, task: &Task) -> Result<(), Error> {
        if let Some(error) = lock(&self.failed).take() {
            return Err(error);
        }
        let wanted = |step: &&ToldStep| step.in_result || self.wish.scope == CacheScope::Max;
        let (mut steps, layers) = self.layers(engine, told.steps.iter().filter(wanted))?;
        if self.wish.scope == CacheScope::Max {
            steps.memos.clone_from(&told.memos);
        }
        let sign = self.wish.sign.as_deref();
        let config = format::write(&steps, sign).map_err(Error::internal("write a cache's document"))?;
        task.status("writing cache manifest", 0, None);
        let written = self.place.save(Subject::Steps, &config, &layers)?;
        task.status_done(&format!("writing cache manifest {}", written.digest), 0, None);
        Ok(())
    }

    /// The steps of which every layer is there, or known to whoever finds them; and the layers that are there.
    fn layers<'t>(&self, engine: &Engine, told: impl Iterator<Item = &'t ToldStep>) -> Result<(Steps, Vec<Descriptor>), Error> {
        // By depth and chain, so that parents come first, in the same order each time.
        let mut all: BTreeMap<Place, Link> = BTreeMap::new();
        let mut tops: Vec<(&ToldStep, Option<Place>)> = Vec::new();
        let there = lock(&self.there);
        for step in told {
            let chain = match &step.layer {
                Some(layer) => engine.store.layers().chain(layer)?,
                None => Vec::new(),
            };
            let mut found = Vec::with_capacity(chain.len());
            for layer in &chain {
                found.push(match (&layer.kind, there.get(&layer.id)) {
                    (_, Some(packed)) => (packed.clone(), true),
                    (LayerKind::Base(base), None) if is_of_an_image(layer) => {
                        (PackedLayer { descriptor: base.blob.clone(), diff_id: base.diff_id }, false)
                    }
                    _ => break,
                });
            }
            if found.len() < chain.len() {
                continue;
            }
            let (mut below, mut top) = (None, None);
            for (depth, ((packed, sent), layer)) in found.into_iter().zip(&chain).enumerate() {
                let chain_id = ChainId::extend(below, packed.diff_id);
                let key = (depth, chain_id.digest());
                // The same layer may have been made twice.
                let created = layer.created.clone();
                let known = all.entry(key).or_insert_with(|| Link { below, packed, created: created.clone(), sent });
                known.created = known.created.take().into_iter().chain(created).min();
                (below, top) = (Some(chain_id), Some(key));
            }
            tops.push((step, top));
        }
        let (mut steps, mut layers, mut at) = (Steps::default(), Vec::new(), BTreeMap::new());
        for (key, Link { below, packed, created, sent }) in all {
            let parent = below.and_then(|below| at.get(&(key.0.wrapping_sub(1), below.digest())).copied());
            if sent {
                let mut descriptor = packed.descriptor.clone();
                descriptor.annotations.insert(UNCOMPRESSED.to_owned(), packed.diff_id.digest().to_string());
                descriptor.annotations.extend(created.clone().map(|time| (CREATED_AT.to_owned(), time)));
                layers.push(descriptor);
            }
            let index = steps.push(parent, packed.diff_id, packed.descriptor, created);
            at.insert(key, index.map_err(Error::internal("write a cache's document"))?);
        }
        for (step, top) in tops {
            let ToldStep { definition, content, identity, .. } = *step;
            let layer = top.and_then(|top| at.get(&top).copied());
            steps.steps.push(CachedStep { definition, content, identity, layer });
        }
        Ok((steps, layers))
    }
}

/// Where a layer stands: how many are below it, and what they and it are together.
type Place = (usize, Digest);

/// A layer of a result.
struct Link {
    below: Option<ChainId>,
    packed: PackedLayer,
    created: Option<String>,
    /// Whether the place has it.
    sent: bool,
}

/// Whether an image brought the layer, and no step made it.
fn is_of_an_image(layer: &LayerRecord) -> bool {
    matches!(layer.kind, LayerKind::Base(_)) && layer.created.is_none()
}

impl SharedCaches {
    /// The build has come to its end: what it did and nobody sent yet is sent, or, when it failed, nothing more.
    pub(crate) fn finish_layers(&self, engine: &Engine, succeeded: bool) -> Result<(), Error> {
        let result = self.offer_rest(engine, succeeded);
        if !succeeded || result.is_err() {
            self.exports.given_up.store(true, Ordering::Relaxed);
        }
        result
    }

    fn offer_rest(&self, engine: &Engine, succeeded: bool) -> Result<(), Error> {
        if self.exports.is_empty() || !succeeded {
            return Ok(());
        }
        for step in &self.told().steps {
            let Some(layer) = &step.layer else { continue };
            for layer in engine.store.layers().chain(layer)? {
                self.exports.offer(&layer.id, step.in_result);
            }
        }
        Ok(())
    }

    /// Writes the documents, after all layers were sent.
    pub(crate) fn finish(&self, engine: &Engine) -> Result<(), Error> {
        for target in &self.exports.targets {
            engine.check()?;
            let Some(task) = target.task.write().unwrap_or_else(PoisonError::into_inner).take() else { continue };
            let saved = target.save(engine, &self.told(), &task);
            match saved {
                Err(error) if !target.wish.must_succeed => {
                    task.warn(format!("the cache {} was not written: {}", target.place.locator(), causes(&error)));
                    drop(task.end_with(Err::<(), _>(error)));
                }
                saved => task.end_with(saved)?,
            }
        }
        Ok(())
    }
}

/// Tells the threads that there will be no more, also when a build ends in a panic.
#[derive(Debug)]
pub(crate) struct Closing<'a>(pub(super) &'a Exports);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        lock(&self.0.queue).closed = true;
        self.0.wake.notify_all();
    }
}

/// A layer on its way that nobody wants any more once the build has failed.
struct Stoppable {
    inner: Box<dyn Read + Send>,
    stop: Arc<AtomicBool>,
}

impl Read for Stoppable {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self.stop.load(Ordering::Relaxed) {
            true => Err(std::io::Error::other("the build has failed")),
            false => self.inner.read(buffer),
        }
    }
}
