//! Hides where a shared cache lives: whoever exports or imports one sees documents and layers, and never a registry, a folder or
//! a bucket.
//!
//! A place holds *layers*, by digest, and *documents*, which say what the layers are good for. A document is written last and
//! appears whole, so that who reads it finds all that it speaks of (unless the place has thrown something away since).

mod annotations;
mod document;
mod gha;
mod local;
mod registry;
mod s3;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use kiln_oci::descriptor::Descriptor;
use kiln_oci::digest::Digest;
use kiln_registry_client::{Pushed, Repository};

use crate::engine::Engine;
use crate::error::Error;

pub use document::Form;
pub use gha::GhaPlace;
pub use local::LocalPlace;
pub use registry::RegistryPlace;
pub use s3::S3Place;

/// BuildKit's document about steps.
pub const CACHE_CONFIG: &str = "application/vnd.buildkit.cacheconfig.v0";
/// kiln's document about the folders of `RUN --mount=type=cache`.
pub const CACHE_MOUNTS: &str = "application/vnd.kiln.cachemounts.v0+json";

/// No document is larger. BuildKit stops at 1 MiB when it reads; a few thousand steps fit into that.
pub(crate) const MAX_DOCUMENT: u64 = 16 << 20;

/// What a document is about. A place has one of each, independent of one another, so that BuildKit and kiln can share a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// What steps gave: BuildKit's `cacheconfig`.
    Steps,
    /// What cache mounts hold. BuildKit has no such thing and doesn't see it.
    Mounts,
}

impl Subject {
    /// The media type of the document.
    pub fn media_type(self) -> &'static str {
        match self {
            Subject::Steps => CACHE_CONFIG,
            Subject::Mounts => CACHE_MOUNTS,
        }
    }
}

/// What a place says that it holds. Nothing of it is believed: digests are checked when bytes come.
#[derive(Debug, Clone, PartialEq)]
pub enum Document {
    /// One that [`Backend::save`] wrote, or BuildKit.
    Cache {
        /// The document's exact bytes.
        config: Vec<u8>,
        /// The layers that the place has for it. Each has the annotation `containerd.io/uncompressed` when whoever wrote it gave one.
        layers: Vec<Descriptor>,
    },
    /// An image, in whose configuration records may stand (`type=inline`). An index gives one for each of its manifests.
    Image {
        /// The configuration's exact bytes.
        config: Vec<u8>,
        /// The layers as the manifest lists them.
        layers: Vec<Descriptor>,
    },
}

/// How the bytes of a layer are had from a position on.
pub type Open<'a> = dyn Fn(u64) -> io::Result<Box<dyn Read + Send>> + 'a;

/// A place where a cache lives. All calls block; several threads may use one place at the same time.
pub trait Backend: fmt::Debug + Send + Sync {
    /// Names the place: for people, and in the `sources` of the store's layers, by which [`Places`] finds it again. No secret is
    /// in it.
    fn locator(&self) -> &str;

    /// The documents about `subject`; none when nothing was saved there yet.
    ///
    /// # Errors
    /// The place can't be reached, refuses, or what it gave is no document.
    fn load(&self, subject: Subject) -> Result<Vec<Document>, Error>;

    /// Whether the place has a layer.
    ///
    /// # Errors
    /// Any answer but yes and no.
    fn has(&self, layer: &Descriptor) -> Result<bool, Error>;

    /// Brings a layer into the place unless it is there. `sources` are the registry's repositories that are known to have it, from
    /// which a registry can link it. `open` may be called several times, or never. `progress` hears how many bytes have gone.
    ///
    /// # Errors
    /// The place can't be reached or refuses, or the source fails.
    fn put_layer(
        &self,
        layer: &Descriptor,
        sources: &[Repository],
        open: &Open<'_>,
        progress: &dyn Fn(u64),
    ) -> Result<Pushed, Error>;

    /// Fetches a layer. `Ok` means that as many bytes as the descriptor says were written, and, where the place
    /// [`proves`](Self::proves) it, with that digest.
    ///
    /// # Errors
    /// The layer isn't there or isn't what it should be, the place can't be reached or refuses, or the sink fails.
    fn fetch_layer(&self, layer: &Descriptor, sink: &mut dyn Write, progress: &dyn Fn(u64)) -> Result<(), Error>;

    /// Whether [`fetch_layer`](Self::fetch_layer) hashes what comes; if not, whoever keeps it has to.
    fn proves(&self) -> bool {
        true
    }

    /// Writes the document, whose `layers` are there already; it takes the place of the one before it. Gives the descriptor of what
    /// is now visible (BuildKit's `cache.manifest`).
    ///
    /// # Errors
    /// The place can't be reached or refuses.
    fn save(&self, subject: Subject, config: &[u8], layers: &[Descriptor]) -> Result<Descriptor, Error>;
}

/// A place as a request names it.
#[derive(Debug, Clone)]
pub enum Place {
    /// A repository of a registry.
    Registry(RegistryPlace),
    /// A folder with the OCI image layout.
    Local(LocalPlace),
    /// A bucket.
    S3(S3Place),
    /// The cache service of GitHub Actions.
    Gha(GhaPlace),
}

impl Place {
    /// The place, ready for use; nothing is asked or written yet.
    ///
    /// # Errors
    /// The settings contradict one another.
    pub fn open(&self, engine: &Engine) -> Result<Arc<dyn Backend>, Error> {
        let backend: Arc<dyn Backend> = match self {
            Place::Registry(place) => Arc::new(registry::Registry::new(place, &engine.registry)?),
            Place::Local(place) => Arc::new(local::Local::new(place)),
            Place::S3(place) => Arc::new(s3::S3::new(place, &engine.registry)?),
            Place::Gha(place) => Arc::new(gha::Gha::new(place, &engine.registry)?),
        };
        engine.places.add(&backend);
        Ok(backend)
    }
}

/// The places that this process has opened, by their locators: where the layers of imported steps are fetched from.
#[derive(Debug, Default)]
pub struct Places(Mutex<BTreeMap<String, Arc<dyn Backend>>>);

impl Places {
    fn add(&self, backend: &Arc<dyn Backend>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(backend.locator().to_owned(), Arc::clone(backend));
    }

    /// The place behind a layer's source. A folder is found again by any process; a bucket only by one that was told of it, since
    /// its credentials are written nowhere. `None` for what is a repository's name, too.
    pub fn get(&self, locator: &str) -> Option<Arc<dyn Backend>> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(locator).cloned();
        known.or_else(|| Some(Arc::new(local::Local::new(&local::at(locator)?)) as Arc<dyn Backend>))
    }
}

/// Why a place can't be used as a cache.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// Settings that contradict one another.
    #[error("the cache {place} can't be used: {reason}")]
    Setting {
        /// The place.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// What the place gave is no document that could be read.
    #[error("the cache {place} can't be read: {reason}")]
    Invalid {
        /// The place.
        place: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A layer that a document speaks of isn't there.
    #[error("the cache {place} doesn't hold {digest}")]
    Lost {
        /// The place.
        place: String,
        /// Which one.
        digest: Digest,
    },
    /// A file of a place on this machine.
    #[error("cannot {operation} {} of the cache", path.display())]
    File {
        /// What.
        operation: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the system answered.
        #[source]
        cause: io::Error,
    },
}
