//! Tests of the store on a real file system, by subject.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use kiln_oci::descriptor::Descriptor;
use kiln_oci::digest::{ChainId, DiffId, Digest};
use kiln_oci::reference::Reference;

use crate::{BaseLayer, CacheKey, CacheRecord, ImageRecord, LayerId, Store};

mod blobs;
mod collection;
mod damage;
mod layers;
mod names;
mod opening;
mod processes;
mod removal;
mod sharing;

/// A store that goes away with the test.
struct Fixture {
    dir: tempfile::TempDir,
    store: Store,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        Self { dir, store }
    }

    /// The same store as another process sees it.
    fn again(&self) -> Store {
        Store::open(self.store.root()).unwrap()
    }

    /// The same store after the machine was started anew.
    fn after_reboot(&self) -> Store {
        let store = self.again();
        store.inner.boot.set("another boot".to_owned()).unwrap();
        store
    }

    fn root(&self) -> &Path {
        self.store.root()
    }
}

/// A built layer with one file in it.
fn built(store: &Store, parent: Option<&LayerId>, content: &str) -> LayerId {
    let prepared = store.layers().prepare(parent).unwrap();
    fs::write(prepared.upper.join("file"), content).unwrap();
    prepared.commit().unwrap()
}

/// What an image with these layer texts would say of its layers.
fn bases(texts: &[&str]) -> Vec<BaseLayer> {
    let mut parent = None;
    let mut layers = Vec::new();
    for text in texts {
        let diff_id = DiffId::new(Digest::of(text.as_bytes()));
        let chain_id = ChainId::extend(parent, diff_id);
        parent = Some(chain_id);
        let blob = Descriptor::of(kiln_oci::media_type::OCI_LAYER, text.as_bytes());
        layers.push(BaseLayer { diff_id, chain_id, blob, sources: vec!["docker.io/library/x".into()], created: None });
    }
    layers
}

/// Base layers, written down but not unpacked.
fn add_bases(store: &Store, texts: &[&str]) -> Vec<LayerId> {
    let mut ids: Vec<LayerId> = Vec::new();
    for base in bases(texts) {
        ids.push(store.layers().add_base(ids.last(), &base).unwrap());
    }
    ids
}

fn key(n: u8) -> CacheKey {
    CacheKey([n; 32])
}

fn record(layer: Option<&LayerId>) -> CacheRecord {
    CacheRecord { layer: layer.cloned(), identity: [7; 32], blobs: Vec::new(), data: serde_json::json!({"a": 1}) }
}

fn name(text: &str) -> Reference {
    Reference::parse(text).unwrap()
}

/// An image of these layers, whose configuration is `config`.
fn image(store: &Store, name: Option<&str>, config: &str, layers: &[LayerId]) -> ImageRecord {
    let config = store.blobs().put_bytes(config.as_bytes()).unwrap();
    ImageRecord {
        name: name.map(self::name),
        config,
        layers: layers.to_vec(),
        manifest: None,
        blobs: Vec::new(),
        created: None,
        platform: None,
        index: None,
        platforms: Vec::new(),
    }
}

/// Gives up after some time.
fn impatient() -> Arc<crate::OnWait> {
    Arc::new(|waiting: &crate::Waiting<'_>| {
        if waiting.elapsed.as_millis() > 50 { std::ops::ControlFlow::Break(()) } else { std::ops::ControlFlow::Continue(()) }
    })
}

/// All names below `dir`, sorted.
fn tree(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(next) = todo.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                todo.push(entry.path());
            }
            found.push(entry.path().strip_prefix(dir).unwrap().to_string_lossy().into_owned());
        }
    }
    found.sort();
    found
}
