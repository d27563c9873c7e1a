//! Hides a cache in a bucket: documents and layers are objects with the names that BuildKit gives them, so that both can share one.

use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use kiln_oci::descriptor::Descriptor;
use kiln_oci::digest::Digest;
use kiln_registry_client::s3::{Bucket, BucketOptions, Object};
use kiln_registry_client::{Client, Pushed, Repository};

use super::{Backend, BackendError, Document, MAX_DOCUMENT, Open, Subject, annotations};
use crate::error::Error;

/// A cache in a bucket.
#[derive(Debug, Clone)]
pub struct S3Place {
    /// The bucket.
    pub bucket: BucketOptions,
    /// `prefix`: what the names of all objects begin with.
    pub prefix: String,
    /// `blobs_prefix`: what follows it in the names of layers.
    pub blobs_prefix: String,
    /// `manifests_prefix`: what follows it in the names of documents.
    pub manifests_prefix: String,
    /// `name`: the names of the cache, at least one. It is written under all and read under the first.
    pub names: Vec<String>,
    /// `touch_refresh`: a layer that is there already is made young again when it is older.
    pub touch_refresh: Duration,
    /// `upload_parallelism`: so many layers go at the same time.
    pub upload_parallelism: usize,
}

/// The same, in use.
#[derive(Debug)]
pub(super) struct S3 {
    place: S3Place,
    bucket: Bucket,
    locator: String,
    /// How many more layers may go at once.
    free: (Mutex<usize>, Condvar),
}

impl S3 {
    pub(super) fn new(place: &S3Place, client: &Arc<Client>) -> Result<Self, Error> {
        let S3Place { prefix, blobs_prefix, bucket, .. } = place;
        let host = bucket.endpoint.as_deref().unwrap_or(&bucket.region);
        let locator = format!("s3:{host}/{}/{prefix}{blobs_prefix}", bucket.bucket);
        let free = (Mutex::new(place.upload_parallelism.max(1)), Condvar::new());
        Ok(Self { place: place.clone(), bucket: Bucket::new(client, &place.bucket)?, locator, free })
    }

    fn blob(&self, digest: &Digest) -> String {
        format!("{}{}{digest}", self.place.prefix, self.place.blobs_prefix)
    }

    fn document(&self, subject: Subject, name: &str) -> String {
        let suffix = match subject {
            Subject::Steps => "",
            Subject::Mounts => "-mounts",
        };
        format!("{}{}{name}{suffix}", self.place.prefix, self.place.manifests_prefix)
    }

    /// The layer's object, if it is there whole; young again if it was old.
    fn kept(&self, layer: &Descriptor) -> Result<Option<Object>, Error> {
        let key = self.blob(&layer.digest);
        let found = self.bucket.look(&key)?.filter(|object| object.size == layer.size);
        if let Some(Object { size, age: Some(age) }) = found
            && age > self.place.touch_refresh
        {
            self.bucket.touch(&key, size)?;
        }
        Ok(found)
    }
}

impl Backend for S3 {
    fn locator(&self) -> &str {
        &self.locator
    }

    fn load(&self, subject: Subject) -> Result<Vec<Document>, Error> {
        let Some(name) = self.place.names.first() else { return Ok(Vec::new()) };
        let Some(config) = self.bucket.read(&self.document(subject, name), MAX_DOCUMENT)? else { return Ok(Vec::new()) };
        let layers = annotations::read(&config)
            .map_err(|error| BackendError::Invalid { place: self.locator.clone(), reason: error.to_string() })?;
        Ok(vec![Document::Cache { config, layers }])
    }

    fn has(&self, layer: &Descriptor) -> Result<bool, Error> {
        Ok(self.kept(layer)?.is_some())
    }

    fn put_layer(
        &self,
        layer: &Descriptor,
        _sources: &[Repository],
        open: &Open<'_>,
        progress: &dyn Fn(u64),
    ) -> Result<Pushed, Error> {
        if self.kept(layer)?.is_some() {
            return Ok(Pushed::Existed);
        }
        let _turn = Turn::take(&self.free);
        self.bucket.write_blob(&self.blob(&layer.digest), layer, open, progress)?;
        Ok(Pushed::Uploaded)
    }

    fn fetch_layer(&self, layer: &Descriptor, sink: &mut dyn Write, progress: &dyn Fn(u64)) -> Result<(), Error> {
        Ok(self.bucket.fetch(&self.blob(&layer.digest), layer, sink, progress)?)
    }

    fn save(&self, subject: Subject, config: &[u8], layers: &[Descriptor]) -> Result<Descriptor, Error> {
        let config = annotations::write(config, layers)?;
        for name in &self.place.names {
            self.bucket.write(&self.document(subject, name), &config)?;
        }
        Ok(Descriptor::of(subject.media_type(), &config))
    }
}

/// The right to send a layer.
struct Turn<'a>(&'a (Mutex<usize>, Condvar));

impl<'a> Turn<'a> {
    fn take(free: &'a (Mutex<usize>, Condvar)) -> Self {
        let mut count = free.0.lock().unwrap_or_else(PoisonError::into_inner);
        while *count == 0 {
            count = free.1.wait(count).unwrap_or_else(PoisonError::into_inner);
        }
        *count -= 1;
        Self(free)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.1.notify_one();
    }
}
