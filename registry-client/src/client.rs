//! Hides the order of the protocol's requests behind calls that each do one whole thing.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, PoisonError};

use kiln_oci::descriptor::Descriptor;
use kiln_oci::digest::Digest;
use kiln_oci::reference::Reference;
use reqwest::Method;
use reqwest::header::HeaderMap;
use url::Url;

use crate::auth::Auth;
use crate::blob::{self, Download};
use crate::budget::Budget;
use crate::challenge::Scopes;
use crate::credentials::Credentials;
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Operation};
use crate::exchange::{Ask, Exchange};
use crate::transport::{Body, Outgoing, Transport};
use crate::upload::Upload;
use crate::{Options, Repository, Result, Serves, Warning, manifest, referrers, upload};

/// Speaks to registries. Share one among all threads of a process: tokens and connections are kept.
#[derive(Debug)]
pub struct Client {
    options: Options,
    transport: Transport,
    auth: Auth,
    /// Locations of mirrors that couldn't be reached; they aren't asked again.
    absent: Mutex<BTreeSet<String>>,
    /// Which of the hosts that may do without TLS do so.
    plain: Mutex<BTreeMap<Url, bool>>,
    budget: Budget,
    /// Whether a connection broke while something was sent: what is sent next goes in small pieces from its beginning on.
    unsteady: AtomicBool,
    /// Held while a list of referrers is changed, which no registry can do for two at once.
    listing: Mutex<()>,
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
        for registry in options.registries.keys() {
            Endpoint::registry(&options, registry)
                .and_then(|_| Endpoint::mirrors(&options, registry))
                .map_err(|kind| Error::new(operation("use", "", registry), kind))?;
        }
        let transport = Transport::new(&options);
        let auth = Auth::new(options.credentials.clone());
        Ok(Self {
            options,
            transport,
            auth,
            absent: Mutex::default(),
            plain: Mutex::default(),
            budget: Budget::default(),
            unsteady: AtomicBool::default(),
            listing: Mutex::default(),
        })
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
        self.pull("resolve", &reference.into(), asked_by(reference), &reference.to_string(), &mut |exchange| {
            match manifest::resolve(exchange, reference)? {
                Some(descriptor) => Ok(descriptor),
                None => manifest::fetch(exchange, reference).map(|(descriptor, _)| descriptor),
            }
        })
    }

    /// Fetches a manifest or index, by digest if the reference has one, and else by tag. At most 4 MiB, hashed, its media
    /// type checked against its shape. Mirrors first.
    ///
    /// # Errors
    /// Not found, not reachable, not allowed, or refused because what came is not what was asked for.
    pub fn fetch_manifest(&self, reference: &Reference) -> Result<(Descriptor, Vec<u8>)> {
        self.pull("pull manifest", &reference.into(), asked_by(reference), &reference.to_string(), &mut |exchange| {
            manifest::fetch(exchange, reference)
        })
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
        let mut download = Download::new(descriptor, sink, progress);
        let subject = format!("{repository}@{}", descriptor.digest);
        // Whichever mirror the manifest came from may have it, and its bytes are checked.
        self.pull("pull blob", repository, Serves::All, &subject, &mut |exchange| download.fetch(exchange, repository))
    }

    /// Whether the registry itself (no mirror) has a blob in this repository.
    ///
    /// # Errors
    /// Any answer but yes and no.
    pub fn has_blob(&self, repository: &Repository, digest: &Digest) -> Result<bool> {
        let endpoint = self.target(repository)?;
        let subject = format!("{repository}@{digest}");
        let exchange = self.exchange(&endpoint, "look for blob", &subject, repository, Scopes::pull(repository.path()));
        Ok(blob::head(&exchange, repository, digest)?.is_some())
    }

    /// Asks the registry to link a blob from another repository of the same registry; `false` when it declines (or when the
    /// repositories are not of one registry), and the blob has to be pushed.
    ///
    /// # Errors
    /// No connection, or no right to push.
    pub fn mount_blob(&self, repository: &Repository, digest: &Digest, from: &Repository) -> Result<bool> {
        if from.domain() != repository.domain() || from.path() == repository.path() {
            return Ok(false);
        }
        let endpoint = self.target(repository)?;
        let scopes = Scopes::push(repository.path()).with(from.path(), &["pull"]);
        let subject = format!("{repository}@{digest}");
        let exchange = self.exchange(&endpoint, "mount blob", &subject, repository, scopes);
        upload::mount_only(&exchange, repository, digest, from)
    }

    /// Pushes a blob unless the repository has it. `open` gives its bytes from a position on; it is called for each part that is
    /// sent, and `progress`, which is told how many bytes have gone so far, falls back when a part is sent again.
    ///
    /// # Errors
    /// No connection, no right to push, the registry reports another digest, or [`ErrorKind::Local`] when the source fails or
    /// has another length than the descriptor says.
    pub fn push_blob(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
        open: &dyn Fn(u64) -> io::Result<Box<dyn Read + Send>>,
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
        open: &dyn Fn(u64) -> io::Result<Box<dyn Read + Send>>,
        progress: &dyn Fn(u64),
    ) -> Result<Pushed> {
        let endpoint = self.target(repository)?;
        let same = |source: &&Repository| source.domain() == repository.domain() && source.path() != repository.path();
        let sources: Vec<&Repository> = sources.iter().filter(same).collect();
        let subject = format!("{repository}@{}", descriptor.digest);
        let exchange = self.exchange(&endpoint, "push blob", &subject, repository, Scopes::push(repository.path()));
        Upload { exchange: &exchange, repository, descriptor, open, progress, unsteady: &self.unsteady }.run(&sources)
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
        let endpoint = self.target(repository)?;
        let subject = match name {
            ManifestName::Tag(tag) => format!("{repository}:{tag}"),
            ManifestName::Digest => format!("{repository}@{}", Digest::of(bytes)),
        };
        let exchange = self.exchange(&endpoint, "push manifest", &subject, repository, Scopes::push(repository.path()));
        manifest::push(&exchange, repository, name, media_type, bytes).map(|(digest, _)| digest)
    }

    /// Checks that a registry answers, and takes the stored credentials if it wants any.
    ///
    /// # Errors
    /// It can't be reached or doesn't accept them.
    pub fn ping(&self, registry: &str) -> Result<()> {
        self.check_version(&self.auth, "reach", registry)
    }

    /// Checks that a registry accepts `credentials` (`kiln login`); the stored ones are not looked at and nothing is stored.
    ///
    /// # Errors
    /// It can't be reached or doesn't accept them.
    pub fn check_login(&self, registry: &str, credentials: &Credentials) -> Result<()> {
        self.check_version(&Auth::fixed(credentials.clone()), "log in", registry)
    }

    /// What refers to a manifest: signatures, attestations, bills of materials. Those of one `artifact_type` only, if it is given.
    /// Registries without the API are asked for the tag that stands in for it. The registry itself is asked, and no mirror.
    ///
    /// # Errors
    /// No connection, no right to pull, or an answer that is no index.
    pub fn referrers(&self, repository: &Repository, subject: &Digest, artifact_type: Option<&str>) -> Result<Vec<Descriptor>> {
        let endpoint = self.target(repository)?;
        let name = format!("{repository}@{subject}");
        let exchange = self.exchange(&endpoint, "list referrers of", &name, repository, Scopes::pull(repository.path()));
        referrers::list(&exchange, repository, subject, artifact_type)
    }

    /// Pushes a manifest that has a `subject`, by digest, and sees to it that [`referrers`](Self::referrers) finds it: where the
    /// registry doesn't list it by itself, it is added to the tag that stands in for the API. Gives the manifest's descriptor.
    ///
    /// # Errors
    /// As [`push_manifest`](Self::push_manifest), and when the manifest has no `subject`.
    pub fn push_referrer(&self, repository: &Repository, media_type: &str, bytes: &[u8]) -> Result<Descriptor> {
        let endpoint = self.target(repository)?;
        let name = format!("{repository}@{}", Digest::of(bytes));
        let exchange = self.exchange(&endpoint, "push manifest", &name, repository, Scopes::push(repository.path()));
        let _one = self.listing.lock().unwrap_or_else(PoisonError::into_inner);
        referrers::push(&exchange, repository, media_type, bytes)
    }

    /// What carries requests to services besides registries.
    pub(crate) fn transport(&self) -> &Transport {
        &self.transport
    }

    fn check_version(&self, auth: &Auth, action: &'static str, registry: &str) -> Result<()> {
        let endpoint = self.target(&Repository::of_registry(registry))?;
        let operation = endpoint.operation(action, "");
        let (path, scopes) = (String::new(), Scopes::default());
        let (options, transport, budget) = (&self.options, &self.transport, &self.budget);
        let exchange = Exchange { options, transport, auth, endpoint: &endpoint, path, scopes, operation, budget };
        let incoming = exchange.patiently(&Ask::new(Method::GET, endpoint.base.clone()))?;
        if incoming.status.is_success() { Ok(()) } else { Err(exchange.error(exchange.refusal(incoming).kind)) }
    }

    /// Does a pull with the first host that can: the mirrors in their order, then the registry.
    fn pull<T>(
        &self,
        action: &'static str,
        repository: &Repository,
        by: Serves,
        subject: &str,
        fetch: &mut dyn FnMut(&Exchange<'_>) -> Result<T>,
    ) -> Result<T> {
        let mut sources = Endpoint::sources(&self.options, repository, by)
            .map_err(|kind| Error::new(operation(action, subject, repository.domain()), kind))?;
        {
            let absent = self.absent.lock().unwrap_or_else(PoisonError::into_inner);
            sources.retain(|source| !source.mirror || !absent.contains(&source.host));
        }
        let mut passed: Vec<Error> = Vec::new();
        let mut sources = sources.into_iter().peekable();
        loop {
            let Some(source) = sources.next() else {
                // The last one is no mirror and ends this below.
                return Err(Error::new(operation(action, subject, repository.domain()), ErrorKind::Cancelled));
            };
            let source = self.settled(source);
            let scopes = Scopes::pull(&source.path(repository.path()));
            let error = match fetch(&self.exchange(&source, action, subject, repository, scopes)) {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            let Some(next) = sources.peek().filter(|_| error.kind().is_another_hosts_turn()) else {
                return Err(error.after(&passed));
            };
            if matches!(error.kind(), ErrorKind::Unreachable { .. }) {
                self.absent.lock().unwrap_or_else(PoisonError::into_inner).insert(source.host.clone());
            }
            self.options.warnings.say(&Warning::MirrorPassedOver { mirror: &source.host, next: &next.host, cause: &error });
            passed.push(error);
        }
    }

    fn target(&self, repository: &Repository) -> Result<Endpoint> {
        let target = Endpoint::target(&self.options, repository);
        let target = target.map_err(|kind| Error::new(operation("reach", "", repository.domain()), kind))?;
        Ok(self.settled(target))
    }

    /// The endpoint in plain http if it may be and there is no TLS; asked once, before any credentials could be sent.
    fn settled(&self, endpoint: Endpoint) -> Endpoint {
        if !endpoint.falls_back {
            return endpoint;
        }
        let mut known = self.plain.lock().unwrap_or_else(PoisonError::into_inner);
        let is_plain = known.get(&endpoint.base).copied().unwrap_or_else(|| {
            let answers = |endpoint: &Endpoint| {
                let (url, trust) = (endpoint.base.clone(), &endpoint.trust);
                self.transport
                    .send(Outgoing { method: Method::GET, url, headers: HeaderMap::new(), body: Body::None, trust })
                    .is_ok()
            };
            !answers(&endpoint) && answers(&endpoint.clone().plain())
        });
        known.insert(endpoint.base.clone(), is_plain);
        if is_plain { endpoint.plain() } else { endpoint }
    }

    fn exchange<'a>(
        &'a self,
        endpoint: &'a Endpoint,
        action: &'static str,
        subject: &str,
        repository: &Repository,
        scopes: Scopes,
    ) -> Exchange<'a> {
        Exchange {
            options: &self.options,
            transport: &self.transport,
            auth: &self.auth,
            endpoint,
            path: endpoint.path(repository.path()),
            scopes,
            operation: endpoint.operation(action, subject),
            budget: &self.budget,
        }
    }
}

/// What mirrors are asked by.
fn asked_by(reference: &Reference) -> Serves {
    if reference.digest().is_some() { Serves::Digests } else { Serves::Tags }
}

/// An operation that ended before it was known which host it goes to.
fn operation(action: &'static str, subject: &str, registry: &str) -> Operation {
    Operation { action, subject: subject.to_owned(), registry: registry.to_owned(), host: registry.to_owned() }
}
