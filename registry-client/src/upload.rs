//! Hides the upload dance (distribution-spec, "Pushing blobs"): ask, try to link, open a session, send, close; and begin anew
//! when a session is lost.

use std::io::{self, Read};

use kiln_oci::descriptor::Descriptor;
use kiln_oci::digest::Digest;
use reqwest::Method;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION};
use url::Url;

use crate::error::{Error, ErrorKind, temporary_status};
use crate::exchange::{Ask, Exchange, Fault, Patience, resolve_location};
use crate::manifest::claimed_digest;
use crate::transport::{Body, Incoming};
use crate::{Pushed, Repository, blob};

/// Where an upload stands.
enum Session {
    /// The registry linked the blob; there is nothing to send.
    Mounted,
    /// The registry waits for the bytes at this place.
    Open(Url),
}

/// A blob on its way out.
pub(crate) struct Upload<'a> {
    pub(crate) exchange: &'a Exchange<'a>,
    pub(crate) repository: &'a Repository,
    pub(crate) descriptor: &'a Descriptor,
    pub(crate) open: &'a dyn Fn() -> io::Result<Box<dyn Read + Send>>,
    pub(crate) progress: &'a dyn Fn(u64),
}

impl Upload<'_> {
    /// Brings the blob into the repository, by linking it from one of `sources` if the registry can.
    pub(crate) fn run(&self, sources: &[&Repository]) -> Result<Pushed, Error> {
        if let Some(size) = blob::head(self.exchange, self.repository, &self.descriptor.digest)? {
            self.check_size(size)?;
            return Ok(Pushed::Existed);
        }
        let mut session = None;
        for source in sources {
            // Only this request needs a token that also reads from the source; a service that gives none ends the attempt alone.
            let scopes = self.exchange.scopes.clone().with(source.path(), &["pull"]);
            let exchange = self.exchange.with_scopes(scopes);
            match mount(&exchange, self.repository, &self.descriptor.digest, source)? {
                Some(Session::Mounted) => return Ok(Pushed::Mounted),
                // A session that a declined link opened will do for the upload; no need to ask the other sources then, for a
                // registry that answered so either lacks the blob there or never links.
                Some(open) => {
                    session = Some(open);
                    break;
                }
                None => {}
            }
        }
        let mut patience = Patience::new(&self.exchange.options.retry);
        let mut lost = 0;
        loop {
            let fault = match self.send(session.take()) {
                Ok(verified) => {
                    if !verified {
                        let size = blob::head(self.exchange, self.repository, &self.descriptor.digest)?;
                        let size = size.ok_or_else(|| self.fail("the blob isn't there after its upload was accepted"))?;
                        self.check_size(size)?;
                    }
                    return Ok(Pushed::Uploaded);
                }
                Err(fault) => fault,
            };
            // A session that the registry forgot (another replica answered, it was cleaned away) is opened anew at once.
            let forgotten = match &fault.kind {
                ErrorKind::NotFound(answer) => answer.has_code("BLOB_UPLOAD_UNKNOWN") || answer.errors.is_empty(),
                ErrorKind::Answered(answer) => answer.status == 416 || answer.has_code("BLOB_UPLOAD_INVALID"),
                _ => false,
            };
            if forgotten && lost < 2 {
                lost += 1;
                continue;
            }
            self.exchange.pause(&mut patience, fault)?;
        }
    }

    /// Opens a session unless there is one, sends all bytes, closes it. `Ok(false)`: accepted, but nothing told which digest the
    /// registry computed.
    fn send(&self, session: Option<Session>) -> Result<bool, Fault> {
        let place = match session {
            Some(Session::Open(place)) => place,
            _ => {
                let ask = Ask::new(Method::POST, self.exchange.endpoint.url(self.repository.path(), "blobs/uploads/"));
                let incoming = self.exchange.once(&ask)?;
                match incoming.status.as_u16() {
                    202 => location(&incoming)?,
                    _ => return Err(self.exchange.refusal(incoming)),
                }
            }
        };
        let mut target = place;
        // Appends to the query that the registry gave (its session's state stands there).
        target.query_pairs_mut().append_pair("digest", &self.descriptor.digest.to_string());
        let mut challenges = 0;
        loop {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
            let source = (self.open)().map_err(ErrorKind::Local)?;
            (self.progress)(0);
            let body = Body::Stream { source, len: self.descriptor.size, progress: self.progress };
            let (incoming, used) = self.exchange.send(Method::PUT, target.clone(), headers, body)?;
            let status = incoming.status.as_u16();
            // The token expired between opening and sending: a registry looks at it before it reads, so the session still stands.
            if status == 401 && challenges < 2 && self.exchange.endpoint.is_origin_of(&target) {
                challenges += 1;
                if self.exchange.challenged(&incoming, used.as_ref())? {
                    continue;
                }
            }
            if !incoming.status.is_success() {
                return Err(self.exchange.refusal(incoming));
            }
            let expected = self.descriptor.digest;
            return match claimed_digest(&incoming)? {
                Some(actual) if actual != expected => {
                    let source_of = "the Docker-Content-Digest header";
                    Err(ErrorKind::DigestMismatch { source_of, expected, actual: actual.to_string() }.into())
                }
                claimed => Ok(claimed.is_some()),
            };
        }
    }

    /// What is there under the digest must have the blob's size; some registries don't tell it.
    fn check_size(&self, actual: Option<u64>) -> Result<(), Error> {
        let expected = self.descriptor.size;
        match actual {
            Some(actual) if actual != expected => Err(self.exchange.error(ErrorKind::SizeMismatch { expected, actual })),
            _ => Ok(()),
        }
    }

    fn fail(&self, reason: &str) -> Error {
        self.exchange.error(ErrorKind::Protocol(reason.to_owned()))
    }
}

fn location(incoming: &Incoming<'_>) -> Result<Url, ErrorKind> {
    let text = incoming.header(LOCATION).ok_or_else(|| ErrorKind::Protocol("an upload without Location".to_owned()))?;
    resolve_location(&incoming.url, text)
}

/// Asks for a link. `None`: declined in a way that opened no session; pushing may still work.
fn mount(exchange: &Exchange<'_>, repository: &Repository, digest: &Digest, from: &Repository) -> Result<Option<Session>, Error> {
    let mut url = exchange.endpoint.url(repository.path(), "blobs/uploads/");
    url.query_pairs_mut().append_pair("mount", &digest.to_string()).append_pair("from", from.path());
    let incoming = match exchange.patiently(&Ask::new(Method::POST, url)) {
        Ok(incoming) => incoming,
        // The token service may refuse because of the source alone.
        Err(error) if matches!(error.kind(), ErrorKind::Token { .. }) && !error.is_temporary() => return Ok(None),
        Err(error) => return Err(error),
    };
    match incoming.status.as_u16() {
        201 => Ok(Some(Session::Mounted)),
        202 => location(&incoming).map(|place| Some(Session::Open(place))).map_err(|kind| exchange.error(kind)),
        status if temporary_status(status) => Err(exchange.error(exchange.refusal(incoming).kind)),
        // Some registries answer 4xx when they never link, or when the source is out of bounds.
        _ => Ok(None),
    }
}

/// Asks for a link and nothing else.
pub(crate) fn mount_only(
    exchange: &Exchange<'_>,
    repository: &Repository,
    digest: &Digest,
    from: &Repository,
) -> Result<bool, Error> {
    match mount(exchange, repository, digest, from)? {
        Some(Session::Mounted) => Ok(true),
        Some(Session::Open(place)) => {
            // Nobody will use that session; a registry that can't be told cleans it away itself.
            let _: Result<_, Fault> = exchange.once(&Ask::new(Method::DELETE, place));
            Ok(false)
        }
        None => Ok(false),
    }
}
