//! Hides when the documents of other machines are read, and how a step in one of them becomes a step of the store's own: by record,
//! without any of its layers.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use kiln_oci::digest::Digest;
use kiln_store::{BaseLayer, CacheKey, CacheRecord, LayerId};

use super::backend::{Backend, Document, Subject};
use super::causes;
use super::format::{self, CachedStep, FormatError, Steps};
use super::request::CacheSource;
use super::seal::VerifyingKeys;
use crate::engine::Engine;
use crate::error::Error;
use crate::event::{Stream, Task};

/// The caches that steps may come from, in the order that they are asked in.
#[derive(Debug, Default)]
pub(crate) struct Imports(Vec<Mutex<Reading>>);

/// A cache that is being read beside everything else, until somebody asks for a step.
#[derive(Debug)]
enum Reading {
    Begun(JoinHandle<Vec<Loaded>>),
    Done(Arc<Vec<Loaded>>),
}

/// One document.
#[derive(Debug)]
struct Loaded {
    /// By which the place is found again.
    locator: String,
    steps: Steps,
    by_key: HashMap<CacheKey, usize>,
    /// The blobs that the place has.
    there: HashSet<Digest>,
}

impl Imports {
    /// Begins to read. No cache fails a build: one that can't be used is a warning.
    pub(crate) fn begin(engine: &Engine, from: &[CacheSource]) -> Self {
        let begin = |source: &CacheSource| match source.place.open(engine) {
            Ok(place) => {
                let task = engine.events.start(format!("importing cache manifest from {}", place.locator()));
                let verify = source.verify.clone();
                Some(Mutex::new(Reading::Begun(std::thread::spawn(move || load(&*place, verify.as_deref(), task)))))
            }
            Err(error) => {
                engine.events.warn(format!("a cache is not used: {}", causes(&error)));
                None
            }
        };
        Self(from.iter().filter_map(begin).collect())
    }

    /// The step of this key, of either sort, as the store's own from now on. A step is passed over when `lost` names a layer of it.
    pub(crate) fn find(&self, engine: &Engine, key: &CacheKey, lost: &HashSet<LayerId>) -> Result<Option<CacheRecord>, Error> {
        for documents in self.documents() {
            for loaded in &*documents {
                let step = loaded.by_key.get(key).and_then(|at| loaded.steps.steps.get(*at));
                if let Some(record) = step.map(|step| loaded.adopt(engine, step, lost)).transpose()?.flatten() {
                    return Ok(Some(record));
                }
            }
        }
        Ok(None)
    }

    /// The fingerprint that was remembered under this key.
    pub(crate) fn memo(&self, key: &CacheKey) -> Option<[u8; 32]> {
        let key = Digest::from_bytes(key.0);
        self.documents().find_map(|documents| documents.iter().find_map(|d| Some(*d.steps.memos.get(&key)?.as_bytes())))
    }

    /// What was read, cache by cache; waits for each only when those before it had no answer.
    fn documents(&self) -> impl Iterator<Item = Arc<Vec<Loaded>>> {
        self.0.iter().map(|reading| {
            let mut reading = reading.lock().unwrap_or_else(PoisonError::into_inner);
            if let Reading::Done(documents) = &*reading {
                return Arc::clone(documents);
            }
            let done = Reading::Done(Arc::default());
            let documents = match std::mem::replace(&mut *reading, done) {
                Reading::Begun(thread) => Arc::new(thread.join().unwrap_or_default()),
                Reading::Done(documents) => documents,
            };
            *reading = Reading::Done(Arc::clone(&documents));
            documents
        })
    }
}

/// Reads what a place has. Whatever is wrong with it is said once, and then there's nothing.
fn load(place: &dyn Backend, verify: Option<&VerifyingKeys>, task: Task) -> Vec<Loaded> {
    let locator = place.locator();
    let documents = match place.load(Subject::Steps) {
        Ok(documents) => documents,
        Err(error) => {
            task.warn(format!("the cache {locator} is not used: {}", causes(&error)));
            return task.end_with(Err(error)).unwrap_or_default();
        }
    };
    if documents.is_empty() {
        task.log(Stream::Out, b"there is no cache yet\n");
    }
    let mut loaded = Vec::new();
    for document in documents {
        match read(&document, verify) {
            Ok(Some((steps, there))) => {
                loaded.push(Loaded { locator: locator.to_owned(), by_key: steps.by_key(), steps, there });
            }
            Ok(None) => task.log(Stream::Out, b"what it holds was not written by kiln: it has no steps for kiln\n"),
            Err(error) => task.warn(format!("the cache {locator} is not used: {}", causes(&error))),
        }
    }
    task.done();
    loaded
}

fn read(document: &Document, verify: Option<&VerifyingKeys>) -> Result<Option<(Steps, HashSet<Digest>)>, FormatError> {
    let (steps, layers) = match document {
        Document::Cache { config, layers } => (format::read(config, verify)?, layers),
        Document::Image { config, layers } => (format::read_image(config, layers, verify)?, layers),
    };
    Ok(steps.map(|steps| (steps, layers.iter().map(|layer| layer.digest).collect())))
}

impl Loaded {
    /// Writes the step down, its layers unfetched. `None` when a layer is neither known here nor to be had there.
    fn adopt(&self, engine: &Engine, step: &CachedStep, lost: &HashSet<LayerId>) -> Result<Option<CacheRecord>, Error> {
        let layers = engine.store.layers();
        let chain = self.steps.chain(step);
        for layer in &chain {
            let id = LayerId::of_chain(layer.chain_id);
            if lost.contains(&id) || (!self.there.contains(&layer.blob.digest) && layers.get(&id)?.is_none()) {
                return Ok(None);
            }
        }
        let mut top = None;
        for layer in chain {
            let is_there = self.there.contains(&layer.blob.digest);
            let base = BaseLayer {
                diff_id: layer.diff_id,
                chain_id: layer.chain_id,
                blob: layer.blob.clone(),
                sources: is_there.then(|| self.locator.clone()).into_iter().collect(),
                created: layer.created.clone(),
            };
            top = Some(layers.add_base(top.as_ref(), &base)?);
        }
        let record = step_record(top, step.identity, step.content.as_ref());
        for key in step.content.iter().chain([&step.definition]) {
            engine.store.cache().put(key, &record)?;
        }
        Ok(Some(record))
    }
}

/// The record of a step's result. With the definition one finds the other key as well: a cache for others holds both.
pub(crate) fn step_record(layer: Option<LayerId>, identity: [u8; 32], content: Option<&CacheKey>) -> CacheRecord {
    let data = match content {
        Some(key) => serde_json::json!({ CONTENT: key.hex() }),
        None => serde_json::Value::Null,
    };
    CacheRecord { layer, identity, blobs: Vec::new(), data }
}

/// The key by content that a step's record names.
pub(crate) fn content_key(record: &CacheRecord) -> Option<CacheKey> {
    Digest::from_hex(record.data.get(CONTENT)?.as_str()?).map(|digest| CacheKey(*digest.as_bytes()))
}

const CONTENT: &str = "content";
