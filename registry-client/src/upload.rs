//! Hides the upload dance (distribution-spec, "Pushing blobs"): ask, try to link, open a session, send, close; go on where a broken
//! connection left it, and begin anew when the session is lost.
//!
//! A small blob goes in one request. A larger one goes in chunks, since many registries (and proxies that pass on whole requests)
//! forget all of a request that broke off. Chunks grow while nothing breaks; once something did, a chunk is a sixteenth of what
//! went through since, so that an unreliable line costs a few percent. Registries that take only the one way or the other get
//! the one that they take.

use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};

use kiln_oci::descriptor::Descriptor;
use kiln_oci::digest::Digest;
use reqwest::Method;
use reqwest::header::{CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RANGE};
use url::Url;

use crate::error::{Error, ErrorKind, temporary_status};
use crate::exchange::{Ask, Exchange, Fault, Patience, resolve_location};
use crate::manifest::claimed_digest;
use crate::transport::{Body, Incoming};
use crate::{Pushed, Repository, blob};

/// What is not larger than this goes in one request.
const WHOLE: u64 = 16 << 20;
/// What is not larger than this isn't worth chunks on any line.
const SMALL: u64 = 1 << 20;
const FIRST_CHUNK: u64 = 2 << 20;
const LARGEST_CHUNK: u64 = 32 << 20;
const SMALLEST_CHUNK: u64 = 256 << 10;
/// Once a connection broke, a chunk is so much of what went through since.
const PART: u64 = 16;
/// A session that is forgotten is opened anew at once this many times.
const FORGIVEN: u32 = 2;
const MAX_REDIRECTS: usize = 5;

/// What came of asking for a link.
enum Session {
    /// The registry linked the blob; there is nothing to send.
    Mounted,
    /// The registry waits for the bytes at this place.
    Open(Url),
}

/// How bytes are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// All in the request that closes the session.
    Whole,
    /// In requests of their own before it.
    Chunks,
}

/// Where an upload stands.
struct Course {
    /// The open session.
    place: Option<Url>,
    /// How many bytes the registry has.
    offset: u64,
    /// The most it ever had.
    best: u64,
    /// A request broke off, so that only the registry knows how many it has.
    uncertain: bool,
    /// All bytes were on the way when it did.
    all_sent: bool,
    way: Way,
    /// The other way was taken before, in vain.
    turned: bool,
    chunk: u64,
    /// No chunk may be larger.
    largest: u64,
    /// What the registry said that a chunk has to have.
    least: u64,
    /// What the registry had when a connection broke last.
    broken_at: Option<u64>,
    /// How many sessions were forgotten.
    forgotten: u32,
}

impl Course {
    fn new(size: u64) -> Self {
        Self {
            place: None,
            offset: 0,
            best: 0,
            uncertain: false,
            all_sent: false,
            way: if size > WHOLE { Way::Chunks } else { Way::Whole },
            turned: false,
            chunk: FIRST_CHUNK,
            largest: LARGEST_CHUNK,
            least: 0,
            broken_at: None,
            forgotten: 0,
        }
    }

    /// Takes in what went wrong; says whether to go on at once.
    fn learn(&mut self, kind: &ErrorKind, size: u64) -> bool {
        match kind {
            ErrorKind::Interrupted { .. } | ErrorKind::Stalled(_) | ErrorKind::Unreachable { .. } => {
                self.uncertain = self.place.is_some();
                self.broken_at = Some(self.offset);
                self.chunk = SMALLEST_CHUNK;
                if self.way == Way::Whole && size > SMALL && !self.turned {
                    self.way = Way::Chunks;
                }
                false
            }
            kind if kind.is_temporary() => {
                self.uncertain = self.place.is_some();
                false
            }
            // The registry and this side don't agree on how much it has.
            ErrorKind::Answered(answer) if answer.status == 416 && self.way == Way::Chunks && self.forgotten < FORGIVEN => {
                self.forgotten += 1;
                self.uncertain = true;
                true
            }
            ErrorKind::Answered(answer) if answer.status == 413 => {
                let smaller = self.chunk / 2;
                match self.way {
                    Way::Whole => size > SMALL && self.turn(),
                    Way::Chunks if smaller >= SMALLEST_CHUNK.max(self.least) => {
                        (self.chunk, self.largest, self.uncertain) = (smaller, smaller, true);
                        true
                    }
                    Way::Chunks => false,
                }
            }
            // A session that the registry forgot (another replica answered, it was cleaned away) is opened anew at once.
            // Docker's registry answers so, too, when a request that broke off reached it later than the question how far it got.
            ErrorKind::NotFound(answer)
                if answer.has_code("BLOB_UPLOAD_UNKNOWN")
                    || answer.has_code("BLOB_UPLOAD_INVALID")
                    || answer.errors.is_empty() =>
            {
                self.forget()
            }
            ErrorKind::Answered(answer) if answer.status == 416 || answer.has_code("BLOB_UPLOAD_INVALID") => self.forget(),
            // Chunks that were put together in another way than they were sent.
            ErrorKind::Answered(answer) if answer.has_code("DIGEST_INVALID") || answer.has_code("SIZE_INVALID") => {
                self.way == Way::Chunks && self.turn()
            }
            ErrorKind::Answered(answer) if matches!(answer.status, 400 | 405 | 411 | 415 | 501) => self.turn(),
            // A place on another host whose address is signed for one method only.
            ErrorKind::Elsewhere { .. } => self.turn(),
            _ => false,
        }
    }

    fn forget(&mut self) -> bool {
        if self.forgotten >= FORGIVEN {
            return self.turn();
        }
        self.forgotten += 1;
        self.close();
        true
    }

    fn close(&mut self) {
        (self.place, self.offset, self.uncertain) = (None, 0, false);
        self.broken_at = self.broken_at.map(|_| 0);
    }

    /// Tries the other way, once.
    fn turn(&mut self) -> bool {
        if self.turned {
            return false;
        }
        self.turned = true;
        self.way = if self.way == Way::Whole { Way::Chunks } else { Way::Whole };
        self.forgotten = 0;
        self.close();
        true
    }
}

/// A blob on its way out.
pub(crate) struct Upload<'a> {
    pub(crate) exchange: &'a Exchange<'a>,
    pub(crate) repository: &'a Repository,
    pub(crate) descriptor: &'a Descriptor,
    /// Gives the bytes from a position on.
    pub(crate) open: &'a dyn Fn(u64) -> io::Result<Box<dyn Read + Send>>,
    pub(crate) progress: &'a dyn Fn(u64),
    /// Whether a connection broke in any upload so far.
    pub(crate) unsteady: &'a AtomicBool,
}

impl Upload<'_> {
    /// Brings the blob into the repository, by linking it from one of `sources` if the registry can.
    pub(crate) fn run(&self, sources: &[&Repository]) -> Result<Pushed, Error> {
        let size = self.descriptor.size;
        if self.is_there()? {
            return Ok(Pushed::Existed);
        }
        let mut course = Course::new(size);
        if self.unsteady.load(Ordering::Relaxed) {
            (course.chunk, course.broken_at) = (SMALLEST_CHUNK, Some(0));
        }
        for source in sources {
            // Only this request needs a token that also reads from the source; a service that gives none ends the attempt alone.
            let scopes = self.exchange.scopes.clone().with(source.path(), &["pull"]);
            let exchange = self.exchange.with_scopes(scopes);
            match mount(&exchange, self.repository, &self.descriptor.digest, source)? {
                Some(Session::Mounted) => return Ok(Pushed::Mounted),
                // A session that a declined link opened will do for the upload; no need to ask the other sources then, for a
                // registry that answered so either lacks the blob there or never links.
                Some(Session::Open(place)) => {
                    course.place = Some(place);
                    break;
                }
                None => {}
            }
        }
        let mut patience = Patience::new(&self.exchange.options.retry);
        loop {
            let fault = match self.step(&mut course) {
                Ok(true) => break,
                Ok(false) => {
                    // What is sent a second time is no progress, or a line that always breaks would have no end.
                    if course.offset > course.best {
                        (course.best, course.forgotten) = (course.offset, 0);
                        patience.renew();
                    }
                    continue;
                }
                Err(fault) => fault,
            };
            let at_once = course.learn(&fault.kind, size);
            if course.broken_at.is_some() {
                self.unsteady.store(true, Ordering::Relaxed);
            }
            if !at_once {
                self.exchange.pause(&mut patience, fault)?;
            }
        }
        // What the registry says that it received may not be what it stored.
        if self.is_there()? { Ok(Pushed::Uploaded) } else { Err(self.fail("the blob isn't there after its upload was accepted")) }
    }

    /// Does the next request; `true` when it was the last one.
    fn step(&self, course: &mut Course) -> Result<bool, Fault> {
        let size = self.descriptor.size;
        let Some(place) = course.place.clone() else {
            let ask = Ask::new(Method::POST, self.exchange.endpoint.url(self.repository.path(), "blobs/uploads/"));
            let incoming = self.exchange.once(&ask)?;
            if incoming.status.as_u16() != 202 {
                return Err(self.exchange.refusal(incoming));
            }
            let least = incoming.header("OCI-Chunk-Min-Length").and_then(|length| length.trim().parse().ok());
            course.least = least.unwrap_or_default();
            (course.place, course.offset, course.uncertain) = (Some(location(&incoming)?), 0, false);
            return Ok(false);
        };
        if course.uncertain {
            return self.ask_how_far(course, place);
        }
        let left = size - course.offset;
        if course.way == Way::Whole && course.offset == 0 || left == 0 {
            course.all_sent = true;
            return self.close(course, place, left).map(|()| true);
        }
        let len = course.chunk.max(course.least).min(left);
        course.all_sent = false;
        let range = format!("{}-{}", course.offset, course.offset + len - 1);
        let incoming = self.send(Method::PATCH, place, course.offset, len, Some(&range))?;
        if !incoming.status.is_success() {
            return Err(self.exchange.refusal(incoming));
        }
        // It may have taken less than was sent. A number that makes no sense is passed over: the digest is checked in the end.
        let sent = course.offset + len;
        let taken = received(&incoming).filter(|taken| (course.offset + 1..sent).contains(taken));
        course.offset = taken.unwrap_or(sent);
        course.place = Some(next_location(&incoming)?);
        let next = course.broken_at.map_or(course.chunk * 2, |at| course.offset.saturating_sub(at) / PART);
        course.chunk = next.clamp(SMALLEST_CHUNK, course.largest);
        Ok(false)
    }

    /// Asks the registry how many bytes it has, after a request broke off.
    fn ask_how_far(&self, course: &mut Course, place: Url) -> Result<bool, Fault> {
        let incoming = self.exchange.once(&Ask::new(Method::GET, place))?;
        let status = incoming.status.as_u16();
        let denied = matches!(status, 401 | 403) && self.exchange.endpoint.is_origin_of(&incoming.url);
        if temporary_status(status) || denied {
            return Err(self.exchange.refusal(incoming));
        }
        let has = received(&incoming).filter(|has| *has <= self.descriptor.size);
        match has {
            Some(has) if incoming.status.is_success() => {
                course.place = Some(next_location(&incoming)?);
                (course.offset, course.uncertain) = (has, false);
                Ok(false)
            }
            // The session is gone: closed, when only its last answer was lost, or else forgotten.
            _ => {
                course.close();
                Ok(course.all_sent
                    && blob::head(self.exchange, self.repository, &self.descriptor.digest).is_ok_and(|there| there.is_some()))
            }
        }
    }

    /// Closes the session, with the `len` last bytes.
    fn close(&self, course: &Course, mut target: Url, len: u64) -> Result<(), Fault> {
        // Appends to the query that the registry gave (its session's state stands there).
        target.query_pairs_mut().append_pair("digest", &self.descriptor.digest.to_string());
        let incoming = self.send(Method::PUT, target, course.offset, len, None)?;
        if !incoming.status.is_success() {
            return Err(self.exchange.refusal(incoming));
        }
        let expected = self.descriptor.digest;
        match claimed_digest(&incoming)? {
            Some(actual) if actual != expected => {
                let source_of = "the Docker-Content-Digest header";
                Err(ErrorKind::DigestMismatch { source_of, expected, actual: actual.to_string() }.into())
            }
            _ => Ok(()),
        }
    }

    /// Sends `len` bytes from `from` on, whatever the status that answers them.
    fn send(&self, method: Method, mut target: Url, from: u64, len: u64, range: Option<&str>) -> Result<Incoming<'_>, Fault> {
        let size = self.descriptor.size;
        let (mut challenges, mut redirects) = (0, 0);
        loop {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
            if let Some(range) = range.and_then(|range| HeaderValue::from_str(range).ok()) {
                headers.insert(CONTENT_RANGE, range);
            }
            let progress = |gone| (self.progress)(from + gone);
            let body = if len == 0 && from > 0 {
                Body::None
            } else {
                (self.progress)(from);
                let source = (self.open)(from).map_err(ErrorKind::Local)?;
                // Where the blob ends its source has to end, too, which is checked as it is read.
                let source = if from + len == size { source } else { Box::new(source.take(len)) };
                Body::Stream { source, len, progress: &progress }
            };
            let (incoming, used) = self.exchange.send(method.clone(), target.clone(), headers, body).map_err(|mut fault| {
                if let ErrorKind::SizeMismatch { expected, actual } = &mut fault.kind {
                    (*expected, *actual) = (size, from + *actual);
                }
                fault
            })?;
            let status = incoming.status.as_u16();
            // The token expired meanwhile: a registry looks at it before it reads, so the session still stands.
            if status == 401 && challenges < 2 && self.exchange.endpoint.is_origin_of(&target) {
                challenges += 1;
                if self.exchange.challenged(&incoming, used.as_ref())? {
                    continue;
                }
            }
            if matches!(status, 307 | 308) && redirects < MAX_REDIRECTS && incoming.header(LOCATION).is_some() {
                redirects += 1;
                target = location(&incoming)?;
                continue;
            }
            return Ok(incoming);
        }
    }

    /// Whether the blob is there; then it must have its size, which some registries don't tell.
    fn is_there(&self) -> Result<bool, Error> {
        let expected = self.descriptor.size;
        match blob::head(self.exchange, self.repository, &self.descriptor.digest)? {
            Some(Some(actual)) if actual != expected => Err(self.exchange.error(ErrorKind::SizeMismatch { expected, actual })),
            there => Ok(there.is_some()),
        }
    }

    fn fail(&self, reason: &str) -> Error {
        self.exchange.error(ErrorKind::Protocol(reason.to_owned()))
    }
}

/// How many bytes a session has: the `Range` of an answer, `0-N` with the last one's position (RFC 9110 would have `bytes=` before
/// it). `0-0` is how registries say none, since one byte alone is never sent.
fn received(incoming: &Incoming<'_>) -> Option<u64> {
    let range = incoming.header(RANGE)?.trim();
    let range = range.strip_prefix("bytes").map_or(range, |rest| rest.trim_start_matches(['=', ' ']));
    let last: u64 = range.strip_prefix("0-")?.trim().parse().ok()?;
    Some(if last == 0 { 0 } else { last + 1 })
}

/// Where a session goes on; where it was when the answer doesn't say.
fn next_location(incoming: &Incoming<'_>) -> Result<Url, ErrorKind> {
    if incoming.header(LOCATION).is_some() { location(incoming) } else { Ok(incoming.url.clone()) }
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
