//! Hides a cache in the cache service of GitHub Actions: documents and layers are entries with the keys that BuildKit gives them, so
//! that both can share one. A document is read from each branch that the token may read.

use std::io::Write;
use std::sync::Arc;

use kiln_oci::descriptor::Descriptor;
use kiln_oci::digest::Digest;
use kiln_registry_client::actions_cache::{ActionsCache, ActionsCacheOptions, Scope};
use kiln_registry_client::{Client, Pushed, Repository};

use super::{Backend, BackendError, Document, MAX_DOCUMENT, Open, Subject, annotations};
use crate::error::Error;

/// A cache in GitHub's service.
#[derive(Debug, Clone)]
pub struct GhaPlace {
    /// How the service is reached.
    pub service: ActionsCacheOptions,
    /// `scope`: the name of the cache.
    pub scope: String,
    /// `version`: part of the keys; caches of different versions don't see one another.
    pub version: String,
}

/// The same, in use.
#[derive(Debug)]
pub(super) struct Gha {
    cache: ActionsCache,
    scope: String,
    version: String,
    locator: String,
}

/// Bits of a scope's permission.
const READ: u32 = 1;
const WRITE: u32 = 2;

impl Gha {
    pub(super) fn new(place: &GhaPlace, client: &Arc<Client>) -> Result<Self, Error> {
        let cache = ActionsCache::new(client, &place.service)?;
        let locator = format!("gha:{}", place.service.url);
        Ok(Self { cache, scope: place.scope.clone(), version: place.version.clone(), locator })
    }

    fn blob(&self, digest: &Digest) -> String {
        format!("buildkit-blob-{}-{digest}", self.version)
    }

    /// The key of a document of a branch. Keys are looked up by their beginning, so none may begin with another.
    fn document(&self, subject: Subject, branch: &str) -> String {
        let kind = match subject {
            Subject::Steps => "index",
            Subject::Mounts => "kiln-mounts",
        };
        format!("{kind}-{}-{}-{}", self.scope, self.version, &Digest::of(branch.as_bytes()).hex()[..8])
    }

    fn branches(&self, permission: u32) -> impl Iterator<Item = &Scope> {
        self.cache.scopes().iter().filter(move |scope| scope.permission & permission != 0)
    }
}

impl Backend for Gha {
    fn locator(&self) -> &str {
        &self.locator
    }

    fn load(&self, subject: Subject) -> Result<Vec<Document>, Error> {
        let mut documents = Vec::new();
        for branch in self.branches(READ) {
            let Some(entry) = self.cache.find(&self.document(subject, &branch.name))? else { continue };
            let config = self.cache.read(&entry, MAX_DOCUMENT)?;
            let layers = annotations::read(&config)
                .map_err(|error| BackendError::Invalid { place: self.locator.clone(), reason: error.to_string() })?;
            documents.push(Document::Cache { config, layers });
        }
        Ok(documents)
    }

    fn has(&self, layer: &Descriptor) -> Result<bool, Error> {
        Ok(self.cache.find(&self.blob(&layer.digest))?.is_some())
    }

    fn put_layer(
        &self,
        layer: &Descriptor,
        _sources: &[Repository],
        open: &Open<'_>,
        progress: &dyn Fn(u64),
    ) -> Result<Pushed, Error> {
        if self.has(layer)? {
            return Ok(Pushed::Existed);
        }
        // One that is written by somebody else at this moment is as good.
        Ok(match self.cache.save(&self.blob(&layer.digest), layer.size, open, progress)? {
            true => Pushed::Uploaded,
            false => Pushed::Existed,
        })
    }

    fn fetch_layer(&self, layer: &Descriptor, sink: &mut dyn Write, progress: &dyn Fn(u64)) -> Result<(), Error> {
        Ok(self.cache.fetch(&self.blob(&layer.digest), layer, sink, progress)?)
    }

    fn save(&self, subject: Subject, config: &[u8], layers: &[Descriptor]) -> Result<Descriptor, Error> {
        let Some(branch) = self.branches(WRITE).last() else {
            let reason = "the token (ACTIONS_RUNTIME_TOKEN) may only read".to_owned();
            return Err(BackendError::Setting { place: self.locator.clone(), reason }.into());
        };
        let config = annotations::write(config, layers)?;
        self.cache.replace(&self.document(subject, &branch.name), &config)?;
        Ok(Descriptor::of(subject.media_type(), &config))
    }
}
