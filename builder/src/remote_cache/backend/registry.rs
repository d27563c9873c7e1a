//! Hides a cache in a repository of a registry: the document's wrapping under a tag, the layers as blobs beside it.

use std::io::{Cursor, Read, Write};
use std::sync::Arc;

use kiln_oci::descriptor::Descriptor;
use kiln_oci::digest::Digest;
use kiln_oci::reference::Reference;
use kiln_registry_client::{Client, ManifestName, Pushed, Repository, Rule};

use super::document::{self, Form};
use super::{Backend, BackendError, Document, Open, Subject};
use crate::error::Error;

/// A cache in a registry.
#[derive(Debug, Clone)]
pub struct RegistryPlace {
    /// `ref`. A cache can be read by digest; without tag and digest `latest` is meant.
    pub reference: Reference,
    /// How it is written.
    pub form: Form,
    /// `registry.insecure`: any certificate will do, and plain http.
    pub insecure: bool,
}

/// The same, in use.
#[derive(Debug)]
pub(super) struct Registry {
    reference: Reference,
    repository: Repository,
    form: Form,
    client: Arc<Client>,
    locator: String,
}

impl Registry {
    pub(super) fn new(place: &RegistryPlace, client: &Arc<Client>) -> Result<Self, Error> {
        let locator = place.reference.repository();
        if let Some(reason) = place.form.contradiction() {
            return Err(BackendError::Setting { place: locator, reason: reason.to_owned() }.into());
        }
        let client = if place.insecure {
            let mut options = client.options().clone();
            options.rules.push(Rule { prefix: locator.clone(), insecure: true, ..Rule::default() });
            Arc::new(Client::new(options)?)
        } else {
            Arc::clone(client)
        };
        let repository = Repository::from(&place.reference);
        Ok(Self { reference: place.reference.clone(), repository, form: place.form, client, locator })
    }

    /// The name of a document; mounts have a tag of their own. What is named by digest is one document about steps.
    fn tag(&self, subject: Subject) -> Option<String> {
        let tag = match (self.reference.tag(), self.reference.digest()) {
            (Some(tag), _) => tag,
            (None, None) => "latest",
            (None, Some(_)) => return None,
        };
        Some(match subject {
            Subject::Steps => tag.to_owned(),
            Subject::Mounts => mounts_tag(tag),
        })
    }

    fn named(&self, subject: Subject) -> Option<Reference> {
        match (subject, self.reference.digest()) {
            (Subject::Steps, Some(_)) => Some(self.reference.clone()),
            _ => Reference::parse(&format!("{}:{}", self.locator, self.tag(subject)?)).ok(),
        }
    }
}

/// The tag of the document about mounts. A tag has at most 128 characters.
fn mounts_tag(tag: &str) -> String {
    const SUFFIX: &str = "-mounts";
    match tag.len() + SUFFIX.len() <= 128 {
        true => format!("{tag}{SUFFIX}"),
        false => format!("{}{SUFFIX}", &Digest::of(tag.as_bytes()).hex()[..32]),
    }
}

impl Backend for Registry {
    fn locator(&self) -> &str {
        &self.locator
    }

    fn load(&self, subject: Subject) -> Result<Vec<Document>, Error> {
        let Some(name) = self.named(subject) else { return Ok(Vec::new()) };
        let bytes = match self.client.fetch_manifest(&name) {
            Ok((_, bytes)) => bytes,
            Err(error) if error.is_not_found() => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let blob = |descriptor: &Descriptor| {
            let mut bytes = Vec::new();
            self.client.fetch_blob(&self.repository, descriptor, &mut bytes, &|_| {})?;
            Ok(bytes)
        };
        let manifest = |descriptor: &Descriptor| Ok(self.client.fetch_manifest(&name.with_digest(descriptor.digest))?.1);
        document::unwrap(&self.locator, subject, &bytes, &blob, &manifest)
    }

    fn has(&self, layer: &Descriptor) -> Result<bool, Error> {
        Ok(self.client.has_blob(&self.repository, &layer.digest)?)
    }

    fn put_layer(
        &self,
        layer: &Descriptor,
        sources: &[Repository],
        open: &Open<'_>,
        progress: &dyn Fn(u64),
    ) -> Result<Pushed, Error> {
        Ok(self.client.push_blob_from(&self.repository, layer, sources, open, progress)?)
    }

    fn fetch_layer(&self, layer: &Descriptor, sink: &mut dyn Write, progress: &dyn Fn(u64)) -> Result<(), Error> {
        Ok(self.client.fetch_blob(&self.repository, layer, sink, progress)?)
    }

    fn save(&self, subject: Subject, config: &[u8], layers: &[Descriptor]) -> Result<Descriptor, Error> {
        let Some(tag) = self.tag(subject) else {
            let reason = "a cache is written under a tag, not under a digest".to_owned();
            return Err(BackendError::Setting { place: self.reference.to_string(), reason }.into());
        };
        let descriptor = Descriptor::of(subject.media_type(), config);
        let open = |from: u64| {
            let rest = config.get(usize::try_from(from).unwrap_or(usize::MAX)..).unwrap_or_default();
            Ok(Box::new(Cursor::new(rest.to_vec())) as Box<dyn Read + Send>)
        };
        self.client.push_blob(&self.repository, &descriptor, &open, &|_| {})?;
        let (media_type, bytes) = self.form.wrap(descriptor, layers)?;
        self.client.push_manifest(&self.repository, ManifestName::Tag(&tag), media_type, &bytes)?;
        Ok(Descriptor::of(media_type, &bytes))
    }
}
