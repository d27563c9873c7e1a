//! Hides what a request takes to a service that is no registry (a bucket, a cache service): a new request for each try, patience,
//! and answers in the service's own words.

use std::sync::Arc;

use bytes::Bytes;
use reqwest::Method;
use reqwest::header::HeaderMap;
use url::Url;

use crate::client::Client;
use crate::endpoint::is_loopback;
use crate::error::{Answer, Error, ErrorKind, Operation, temporary_status};
use crate::exchange::{Fault, Patience, retry_after};
use crate::transport::{Body, Incoming, Outgoing, Reach, Trust};
use crate::{RetryPolicy, Warning};

/// A service at one origin.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub(crate) client: Arc<Client>,
    pub(crate) policy: RetryPolicy,
    base: Url,
    /// For people: what the service is, without secrets.
    host: String,
    trust: Trust,
    /// Reads the body of an error.
    read: fn(u16, &[u8]) -> Answer,
}

/// One request. It is made anew for each try.
pub(crate) struct Request<'b> {
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Body<'b>,
}

/// What makes a request.
pub(crate) type Make<'m> = dyn Fn() -> Result<Request<'m>, ErrorKind> + 'm;

impl Service {
    pub(crate) fn new(client: &Arc<Client>, base: Url, policy: RetryPolicy, read: fn(u16, &[u8]) -> Answer) -> Self {
        let named = base.host_str().unwrap_or_default();
        let host = base.port().map_or_else(|| named.to_owned(), |port| format!("{named}:{port}"));
        let options = client.options();
        let trust = crate::endpoint::trust(options, options.registries.get(&host), &host);
        Self { client: Arc::clone(client), policy, base, host, trust, read }
    }

    pub(crate) fn operation(&self, action: &'static str, subject: &str) -> Operation {
        Operation { action, subject: subject.to_owned(), registry: self.host.clone(), host: self.host.clone() }
    }

    fn is_own(&self, url: &Url) -> bool {
        (url.scheme(), url.host(), url.port_or_known_default())
            == (self.base.scheme(), self.base.host(), self.base.port_or_known_default())
    }

    /// Which connections may be used to a URL, which the service may have named.
    fn trust_for(&self, url: &Url) -> Trust {
        let mut trust = self.trust.clone();
        if !self.is_own(url) {
            trust.client_certificate = None;
            trust.certs.clear();
            if url.host() != self.base.host() {
                trust.reach = if is_loopback(&self.base) { Reach::NotMetadata } else { Reach::NotMetadataNorLoopback };
            }
        }
        trust
    }

    /// Sends one request once.
    pub(crate) fn once(&self, request: Request<'_>) -> Result<Incoming<'_>, Fault> {
        let Request { method, url, headers, body } = request;
        let trust = self.trust_for(&url);
        Ok(self.client.transport().send(Outgoing { method, url, headers, body, trust: &trust })?)
    }

    /// Sends a request until it has an answer that isn't temporary, or patience ends.
    pub(crate) fn patiently(&self, operation: &Operation, make: &Make<'_>) -> Result<Incoming<'_>, Error> {
        let mut patience = Patience::new(&self.policy);
        loop {
            let request = make().map_err(|kind| Error::new(operation.clone(), kind))?;
            let fault = match self.once(request) {
                Ok(incoming) if temporary_status(incoming.status.as_u16()) => self.refusal(incoming),
                Ok(incoming) => return Ok(incoming),
                Err(fault) => fault,
            };
            self.pause(operation, &mut patience, fault)?;
        }
    }

    /// As [`patiently`](Self::patiently), with the whole body of a good answer; `None` for 404.
    pub(crate) fn document(
        &self,
        operation: &Operation,
        limit: u64,
        make: &Make<'_>,
    ) -> Result<Option<(HeaderMap, Vec<u8>)>, Error> {
        let mut patience = Patience::new(&self.policy);
        loop {
            let mut incoming = self.patiently(operation, make)?;
            if incoming.status == 404 {
                return Ok(None);
            }
            if !incoming.status.is_success() {
                return Err(Error::new(operation.clone(), self.refusal(incoming).kind));
            }
            match incoming.body("document", limit) {
                Ok(body) => return Ok(Some((std::mem::take(&mut incoming.headers), body))),
                Err(kind) => self.pause(operation, &mut patience, kind.into())?,
            }
        }
    }

    /// What an answer means that is not the one hoped for.
    pub(crate) fn refusal(&self, mut incoming: Incoming<'_>) -> Fault {
        let retry_after = retry_after(&incoming);
        let answer = (self.read)(incoming.status.as_u16(), &incoming.excerpt(16 << 10));
        let kind = match answer.status {
            429 => ErrorKind::RateLimited { answer, retry_after },
            404 => ErrorKind::NotFound(answer),
            _ => ErrorKind::Service(answer),
        };
        Fault { kind, retry_after }
    }

    /// Waits before the next try; or ends with the fault when it won't pass or patience is at its end.
    pub(crate) fn pause(&self, operation: &Operation, patience: &mut Patience<'_>, fault: Fault) -> Result<(), Error> {
        let pause = if fault.kind.is_temporary() { patience.next(fault.retry_after) } else { None };
        let error = Error::new(operation.clone(), fault.kind);
        let Some(pause) = pause else { return Err(error) };
        self.client.options().warnings.say(&Warning::Retry { pause, cause: &error });
        self.client.transport().pause(pause).map_err(|kind| Error::new(operation.clone(), kind))
    }
}

/// A body that is in memory; unlike [`Body::Bytes`] it may take as long as it moves on.
pub(crate) fn bytes<'b>(bytes: &Bytes, progress: &'b dyn Fn(u64)) -> Body<'b> {
    match bytes.is_empty() {
        true => Body::None,
        false => Body::Stream { source: Box::new(std::io::Cursor::new(bytes.clone())), len: bytes.len() as u64, progress },
    }
}
