//! Hides what one build has to do with shared caches: where its steps come from, where they go, and which layers turned out to be
//! gone.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use std::sync::Arc;
use std::thread::Scope;

use kiln_oci::config::ImageConfig;
use kiln_oci::descriptor::Descriptor;
use kiln_oci::digest::Digest;
use kiln_store::{CacheKey, CacheRecord, Error as StoreError, LayerId, LayerRecord};

use super::causes;
use super::export::{Closing, Exports};
use super::format::{self, CachedStep, Steps};
use super::import::Imports;
use super::request::CacheRequest;
use super::seal::SigningKey;
use crate::engine::Engine;
use crate::error::Error;
use crate::export::form::Form;
use crate::fsck::describe_layers;

/// The shared caches of a build.
#[derive(Debug)]
pub struct SharedCaches {
    imports: Imports,
    pub(super) exports: Exports,
    is_inline: bool,
    /// Layers that a cache promised and doesn't have, or that the store lost.
    lost: Mutex<HashSet<LayerId>>,
    told: Mutex<Told>,
}

/// What the build did, to be written for others.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) steps: Vec<ToldStep>,
    pub(crate) memos: BTreeMap<Digest, Digest>,
}

/// A step with its result in the store.
#[derive(Debug, Clone)]
pub struct ToldStep {
    pub(crate) definition: CacheKey,
    pub(crate) content: Option<CacheKey>,
    pub(crate) identity: [u8; 32],
    pub(crate) layer: Option<LayerId>,
    /// Whether it is one of those that the image consists of.
    pub(crate) in_result: bool,
}

impl SharedCaches {
    /// Begins to read what is to be read; `form` is that of the outputs' layers.
    ///
    /// # Errors
    /// A cache can't be written so, and must be.
    pub fn open(engine: &Engine, request: &CacheRequest, form: Form) -> Result<Self, Error> {
        let imports = Imports::begin(engine, &request.from);
        let exports = Exports::open(engine, request, form)?;
        let is_inline = request.inline().is_some();
        Ok(Self { imports, exports, is_inline, lost: Mutex::default(), told: Mutex::default() })
    }

    /// Sends the layers of steps that are done from now on, on threads of their own, until what is given back is dropped.
    pub(crate) fn start<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>, engine: &'scope Engine) -> Closing<'scope> {
        self.exports.start(scope, engine);
        Closing(&self.exports)
    }

    /// What is known of a step by one of its keys: here, or else elsewhere, in which case it is known here from now on.
    pub(crate) fn find(&self, engine: &Engine, key: &CacheKey) -> Result<Option<CacheRecord>, Error> {
        let lost = lock(&self.lost);
        if let Some(record) = engine.store.cache().get(key)? {
            let is_whole = match &record.layer {
                Some(layer) if !lost.is_empty() => match engine.store.layers().chain(layer) {
                    Ok(chain) => !chain.iter().any(|l| lost.contains(&l.id)),
                    Err(StoreError::LayerMissing { .. }) => false,
                    Err(error) => return Err(error.into()),
                },
                _ => true,
            };
            if is_whole {
                return Ok(Some(record));
            }
        }
        let lost_now = lost.clone();
        // Others need not wait for a cache that is slow to answer.
        drop(lost);
        self.imports.find(engine, key, &lost_now)
    }

    /// The fingerprint that is remembered under this key, here or elsewhere.
    pub(crate) fn memo(&self, engine: &Engine, key: &CacheKey) -> Result<Option<[u8; 32]>, Error> {
        Ok(match engine.store.cache().get(key)? {
            Some(record) => Some(record.identity),
            None => self.imports.memo(key),
        })
    }

    /// Says that a layer can't be had, so that what has it counts no more. False when that was known: then it is needed for something
    /// else than a step that could be done again.
    pub(crate) fn lose(&self, engine: &Engine, error: &Error) -> bool {
        let Some(layer) = lost_layer(error) else { return false };
        *lock(&self.told) = Told::default();
        // A layer of an image is no step's, but what the image says of it may still be here.
        if layer.chain_id().is_some()
            && !matches!(error, Error::CachedLayerLost { .. })
            && describe_layers(engine, &BTreeSet::from([layer.clone()])).is_ok_and(|done| !done.is_empty())
        {
            engine.events.warn(format!("the record of layer {layer} was damaged in the store and is written anew"));
            return true;
        }
        let is_new = lock(&self.lost).insert(layer.clone());
        if is_new {
            engine.events.warn(format!("{}; what needs it is built again", causes(error)));
        }
        is_new
    }

    /// Whether anybody wants to hear of steps.
    pub(crate) fn listens(&self) -> bool {
        self.is_inline || !self.exports.is_empty()
    }

    /// A step is done: its layer may be written now.
    pub(crate) fn done(&self, layer: Option<&LayerId>, in_result: bool) {
        if let Some(layer) = layer {
            self.exports.offer(layer, in_result);
        }
    }

    /// What the build for one platform did; the steps, for an image that carries them.
    pub(crate) fn tell(&self, told: Told) -> Vec<ToldStep> {
        let of_image = told.steps.iter().filter(|step| self.is_inline && step.in_result);
        let steps = of_image.cloned().collect();
        let mut all = lock(&self.told);
        all.steps.extend(told.steps);
        all.memos.extend(told.memos);
        steps
    }

    pub(super) fn told(&self) -> MutexGuard<'_, Told> {
        lock(&self.told)
    }
}

/// The layer that a step's record names and that nobody has: a shared cache promised it, or its own record is damaged.
fn lost_layer(error: &Error) -> Option<&LayerId> {
    if let Error::CachedLayerLost { layer, .. } = error {
        return Some(layer);
    }
    let causes = std::iter::successors(Some(error as &dyn std::error::Error), |cause| cause.source());
    let missing = causes.filter_map(|cause| match cause.downcast_ref::<Error>() {
        Some(Error::Store(cause)) => Some(cause),
        _ => cause.downcast_ref::<StoreError>(),
    });
    missing.into_iter().find_map(|cause| match cause {
        StoreError::LayerMissing { id } => Some(id),
        _ => None,
    })
}

/// The steps that an image is made of, for its configuration.
#[derive(Debug)]
pub struct Inline {
    /// The steps.
    pub told: Vec<ToldStep>,
    /// Who signs them.
    pub sign: Option<Arc<SigningKey>>,
}

impl Inline {
    /// Writes those whose results are the first so many of the image's layers into its configuration.
    pub(crate) fn embed(&self, layers: &[LayerRecord], config: &mut ImageConfig) -> Result<(), serde_json::Error> {
        let mut steps = Steps::default();
        for (at, (layer, diff_id)) in layers.iter().zip(&config.rootfs.diff_ids).enumerate() {
            // Only the times count: what the layers are, the image says.
            let blob = Descriptor::new("", diff_id.digest(), 0);
            if steps.push(at.checked_sub(1), *diff_id, blob, layer.created.clone()).is_err() {
                return Ok(());
            }
        }
        for ToldStep { definition, content, identity, layer, .. } in &self.told {
            let at = layer.as_ref().map(|layer| layers.iter().position(|l| l.id == *layer));
            let layer = match at {
                Some(None) => continue,
                Some(at) => at,
                None => None,
            };
            steps.steps.push(CachedStep { definition: *definition, content: *content, identity: *identity, layer });
        }
        format::write_image(&steps, self.sign.as_deref(), config)
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
