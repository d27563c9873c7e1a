//! Hides that a download may take several requests, and several hosts: what has come is counted and hashed across all of them.

use std::io::Write;

use kiln_oci::descriptor::Descriptor;
use kiln_oci::digest::{Digest, Hasher};
use reqwest::Method;
use reqwest::header::{CONTENT_RANGE, HeaderValue, RANGE};

use url::Url;

use crate::error::{Error, ErrorKind};
use crate::exchange::{Ask, Exchange, Fault, Patience};
use crate::transport::Incoming;
use crate::{Repository, RetryPolicy};

/// A try that brought at least this much was not in vain: the count of tries begins anew.
const WORTHWHILE: u64 = 64 << 10;

/// A blob on its way into a sink.
pub(crate) struct Download<'a> {
    descriptor: &'a Descriptor,
    hasher: Hasher,
    received: u64,
    sink: &'a mut dyn Write,
    progress: &'a dyn Fn(u64),
}

impl<'a> Download<'a> {
    pub(crate) fn new(descriptor: &'a Descriptor, sink: &'a mut dyn Write, progress: &'a dyn Fn(u64)) -> Self {
        Self { descriptor, hasher: Hasher::new(), received: 0, sink, progress }
    }

    /// Fetches what is missing from one registry.
    pub(crate) fn fetch(&mut self, exchange: &Exchange<'_>, repository: &Repository) -> Result<(), Error> {
        let url = exchange.endpoint.url(repository.path(), &format!("blobs/{}", self.descriptor.digest));
        self.fetch_from(&RegistryBlob { exchange, url })
    }

    /// Fetches what is missing from wherever it is.
    pub(crate) fn fetch_from(&mut self, source: &dyn Source) -> Result<(), Error> {
        let mut patience = Patience::new(source.policy());
        let mut ranges = true;
        loop {
            let before = self.received;
            let range = (before > 0 && ranges).then(|| HeaderValue::from_str(&format!("bytes={before}-")).ok()).flatten();
            let asked_for_range = range.is_some();
            let fault = match source.open(range).and_then(|incoming| self.take(source, incoming)) {
                Ok(()) => return Ok(()),
                Err(fault) => fault,
            };
            // A server that doesn't take the range gives the whole again, of which the beginning is passed over.
            if asked_for_range && is_about_ranges(&fault.kind) {
                ranges = false;
                continue;
            }
            if self.received - before >= WORTHWHILE {
                patience.renew();
            }
            source.pause(&mut patience, fault)?;
        }
    }

    fn take(&mut self, source: &dyn Source, mut incoming: Incoming<'_>) -> Result<(), Fault> {
        let size = self.descriptor.size;
        let mut skip = match incoming.status.as_u16() {
            // The whole blob, although a part was asked for: what came already is passed over.
            200 => self.received,
            206 if range_start(&incoming) == Some(self.received) => 0,
            206 => return Err(ErrorKind::Protocol(format!("{OTHER_RANGE} from byte {} on", self.received)).into()),
            _ => return Err(source.refusal(incoming)),
        };
        if let Some(length) = incoming.content_length() {
            let announced = (self.received - skip).saturating_add(length);
            if announced != size {
                return Err(ErrorKind::SizeMismatch { expected: size, actual: announced }.into());
            }
        }
        while let Some(chunk) = incoming.chunk()? {
            let passed = usize::try_from(skip).unwrap_or(usize::MAX).min(chunk.len());
            skip -= passed as u64;
            let fresh = &chunk[passed..];
            if fresh.is_empty() {
                continue;
            }
            let received = self.received + fresh.len() as u64;
            if received > size {
                return Err(ErrorKind::SizeMismatch { expected: size, actual: received }.into());
            }
            self.hasher.update(fresh);
            self.sink.write_all(fresh).map_err(ErrorKind::Local)?;
            self.received = received;
            (self.progress)(received);
        }
        if self.received < size {
            return Err(ErrorKind::Interrupted { received: self.received, cause: "the answer ended early".to_owned() }.into());
        }
        let actual = std::mem::take(&mut self.hasher).finish();
        let expected = self.descriptor.digest;
        if actual != expected {
            return Err(ErrorKind::DigestMismatch { source_of: "the content", expected, actual: actual.to_string() }.into());
        }
        Ok(())
    }
}

/// Where a download's bytes come from, a range at a time.
pub(crate) trait Source {
    /// Asks for the bytes, of the range if there is one.
    fn open(&self, range: Option<HeaderValue>) -> Result<Incoming<'_>, Fault>;
    /// What an answer means that is not the one hoped for.
    fn refusal(&self, incoming: Incoming<'_>) -> Fault;
    /// Waits before the next try, or ends with the fault.
    fn pause(&self, patience: &mut Patience<'_>, fault: Fault) -> Result<(), Error>;
    /// How often it is tried.
    fn policy(&self) -> &RetryPolicy;
}

/// A blob in a registry.
struct RegistryBlob<'a> {
    exchange: &'a Exchange<'a>,
    url: Url,
}

impl Source for RegistryBlob<'_> {
    fn open(&self, range: Option<HeaderValue>) -> Result<Incoming<'_>, Fault> {
        let mut ask = Ask::new(Method::GET, self.url.clone());
        if let Some(range) = range {
            ask.headers.insert(RANGE, range);
        }
        self.exchange.once(&ask)
    }

    fn refusal(&self, incoming: Incoming<'_>) -> Fault {
        self.exchange.refusal(incoming)
    }

    fn pause(&self, patience: &mut Patience<'_>, fault: Fault) -> Result<(), Error> {
        self.exchange.pause(patience, fault)
    }

    fn policy(&self) -> &RetryPolicy {
        &self.exchange.options.retry
    }
}

const OTHER_RANGE: &str = "another range than the one";

fn is_about_ranges(kind: &ErrorKind) -> bool {
    match kind {
        ErrorKind::Answered(answer) => matches!(answer.status, 416 | 400 | 501),
        ErrorKind::Protocol(reason) => reason.starts_with(OTHER_RANGE),
        _ => false,
    }
}

fn range_start(incoming: &Incoming<'_>) -> Option<u64> {
    let range = incoming.header(CONTENT_RANGE)?.trim().strip_prefix("bytes")?.trim_start();
    range.split('-').next()?.trim().parse().ok()
}

/// Whether a repository has a blob; its size where the registry tells.
pub(crate) fn head(exchange: &Exchange<'_>, repository: &Repository, digest: &Digest) -> Result<Option<Option<u64>>, Error> {
    let ask = Ask::new(Method::HEAD, exchange.endpoint.url(repository.path(), &format!("blobs/{digest}")));
    let incoming = exchange.patiently(&ask)?;
    match incoming.status.as_u16() {
        200..=299 => Ok(Some(incoming.content_length())),
        404 => Ok(None),
        _ => Err(exchange.error(exchange.refusal(incoming).kind)),
    }
}
