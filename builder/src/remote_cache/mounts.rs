//! Hides how the folders of `RUN --mount=type=cache` travel with a shared cache (`mounts=true`).
//!
//! A folder is packed as a layer is, into one tar, in which owners, rights, links and attributes have their usual place whatever mode
//! kiln runs in. The tar is cut into chunks where its content says so (`chunk`), each a blob of its own, so that a folder with one
//! changed file is its old chunks and one or two new ones. A document of its own beside that of the steps ([`Subject::Mounts`]) lists
//! the chunks of each folder; BuildKit doesn't see it.
//!
//! A folder is fetched when a command that mounts it is about to run and the store has none of that identity, into a draft that is
//! renamed when all of it proved right. What is there is never changed. Nothing of this fails a build: a folder that can't be had is
//! an empty one, as it would be without the cache, and a warning.

mod chunk;
mod export;
mod restore;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use kiln_frontend::graph::{Graph, MountKind, Op};
use kiln_oci::descriptor::Descriptor;
use kiln_oci::digest::Digest;
use serde::{Deserialize, Serialize};

use super::backend::{Backend, BackendError, Document, Subject};
use super::request::CacheRequest;
use super::seal::{Signature, SigningKey, VerifyingKeys};
use crate::engine::Engine;
use crate::error::Error;
use crate::ops::exec::cache_id;

pub use export::export;

/// Which cache mounts travel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountSelection {
    /// `mounts=true`.
    All,
    /// `mounts=ID,ID`: those with these ids in the Dockerfile.
    Named(Vec<String>),
}

impl MountSelection {
    fn has(&self, name: &str) -> bool {
        match self {
            MountSelection::All => true,
            MountSelection::Named(names) => names.iter().any(|wanted| wanted == name),
        }
    }
}

/// Raised when what a field means changes; documents of other versions are not used.
const VERSION: u32 = 1;
/// What a chunk is called where blobs have media types.
const CHUNK: &str = "application/vnd.kiln.cachemount.chunk.v1.tar+zstd";

/// A folder in a document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Packed {
    /// Its identity in a store: the id in the Dockerfile, with what else makes it another folder.
    id: String,
    /// The digest of its tar.
    tar: Digest,
    /// What the tar is made of, in order.
    chunks: Vec<Chunk>,
}

/// A piece of a tar.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Chunk {
    /// BLAKE3 of the piece, by which whoever packs the folder again finds that it is there already.
    raw: String,
    /// The digest of its blob, a frame of zstd.
    blob: Digest,
    /// The size of the blob.
    size: u64,
}

impl Chunk {
    fn descriptor(&self) -> Descriptor {
        Descriptor::new(CHUNK, self.blob, self.size)
    }
}

/// The document.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    version: u32,
    mounts: Vec<Packed>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    signature: Option<Signature>,
}

impl Stored {
    fn new(mounts: Vec<Packed>, key: Option<&SigningKey>) -> Result<Self, Error> {
        let signature = key.and_then(|key| key.sign(&sum(&mounts)));
        Ok(Self { version: VERSION, mounts, signature })
    }

    /// Reads a document; says why it can't be used.
    fn read(bytes: &[u8], verify: Option<&VerifyingKeys>) -> Result<Vec<Packed>, String> {
        let stored: Stored = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if stored.version != VERSION {
            return Err(format!("it has the version {}", stored.version));
        }
        let is_signed = |keys: &VerifyingKeys| stored.signature.as_ref().is_some_and(|s| keys.accept(&sum(&stored.mounts), s));
        match verify {
            Some(keys) if !is_signed(keys) => Err("it is not signed with a key that is trusted".to_owned()),
            _ => Ok(stored.mounts),
        }
    }
}

/// What is signed. No signature of a document about steps fits.
fn sum(mounts: &[Packed]) -> String {
    format!("mounts {}", Digest::of(serde_json::to_string(mounts).unwrap_or_default().as_bytes()))
}

/// The folders that a place has. Those of several branches are one list, the build's own first.
fn load(backend: &dyn Backend, verify: Option<&VerifyingKeys>) -> Result<Vec<Packed>, Error> {
    let mut found = Vec::new();
    for document in backend.load(Subject::Mounts)? {
        let Document::Cache { config, .. } = document else { continue };
        let invalid = |reason| BackendError::Invalid { place: format!("{} (mounts)", backend.locator()), reason };
        found.extend(Stored::read(&config, verify).map_err(invalid)?);
    }
    Ok(found)
}

/// The cache mounts of a build: where folders may come from, and which there are.
#[derive(Debug, Default)]
pub struct TravellingMounts {
    sources: Mutex<Vec<Arc<Source>>>,
    /// The ids of the Dockerfile by identity.
    seen: Mutex<BTreeMap<String, String>>,
}

/// A `--cache-from` with `mounts=`.
#[derive(Debug)]
struct Source {
    backend: Arc<dyn Backend>,
    selection: MountSelection,
    verify: Option<Arc<VerifyingKeys>>,
    /// Loaded when a folder is first missing; empty if that failed.
    found: OnceLock<Vec<Packed>>,
}

impl TravellingMounts {
    /// Folders may come from these caches from now on. Nothing is asked yet.
    ///
    /// # Errors
    /// The settings of a place contradict one another.
    pub fn offer(&self, engine: &Engine, caches: &CacheRequest) -> Result<(), Error> {
        for from in &caches.from {
            let Some(selection) = from.mounts.clone() else { continue };
            let (backend, verify) = (from.place.open(engine)?, from.verify.clone());
            let source = Arc::new(Source { backend, selection, verify, found: OnceLock::new() });
            self.sources.lock().unwrap_or_else(PoisonError::into_inner).push(source);
        }
        Ok(())
    }

    /// Remembers the mounts of a graph, of whose steps none may have to run. (One that is seeded is known when its step runs.)
    pub fn note_graph(&self, graph: &Graph) {
        for vertex in &graph.vertices {
            let Op::Exec(op) = &vertex.op else { continue };
            for mount in &op.mounts {
                if let MountKind::Cache(cache) = &mount.kind
                    && cache.from.is_none()
                {
                    self.note(&cache.id, &cache_id(cache, None));
                }
            }
        }
    }

    /// Remembers a mount.
    pub fn note(&self, name: &str, id: &str) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned(), name.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use kiln_oci::digest::Digest;

    use super::{Chunk, Packed, Stored};
    use crate::remote_cache::seal::tests::pair;

    /// C79: whoever may write to a cache may not thereby fill the folders of those who ask for a signature.
    #[test]
    fn c79_documents_are_what_somebody_signed() {
        let ((key, keys), (_, others)) = (pair(), pair());
        let chunk = Chunk { raw: "00".to_owned(), blob: Digest::of(b"x"), size: 7 };
        let mounts = vec![Packed { id: "a".to_owned(), tar: Digest::of(b"y"), chunks: vec![chunk] }];
        let signed = serde_json::to_string(&Stored::new(mounts.clone(), Some(&key)).unwrap()).unwrap();
        let plain = serde_json::to_string(&Stored::new(mounts.clone(), None).unwrap()).unwrap();
        let rows = [
            (signed.clone(), Some(&keys), Ok(())),
            (signed.clone(), Some(&others), Err("not signed with a key that is trusted")),
            (signed.replace(r#""size":7"#, r#""size":8"#), Some(&keys), Err("not signed")),
            (signed.replace(r#""id":"a""#, r#""id":"b""#), Some(&keys), Err("not signed")),
            (plain.clone(), Some(&keys), Err("not signed")),
            (plain.clone(), None, Ok(())),
            (signed.clone(), None, Ok(())),
            (plain.replace(r#""version":1"#, r#""version":2"#), None, Err("version 2")),
            (plain.replace(r#""size":7"#, r#""size":7,"more":1"#), None, Err("unknown field `more`")),
            (plain[1..].to_owned(), None, Err("")),
        ];
        for (text, verify, expected) in rows {
            match (Stored::read(text.as_bytes(), verify), expected) {
                (Ok(found), Ok(())) => assert_eq!(found, mounts),
                (Err(reason), Err(words)) => assert!(reason.contains(words), "{reason}"),
                (found, _) => panic!("{text}: {found:?}"),
            }
        }
    }
}
