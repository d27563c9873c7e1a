//! Hides the cache service of GitHub Actions in its two versions: entries that never change, under keys that are looked up by their
//! beginning.
//!
//! Version 1 keeps the bytes itself; version 2 (a Twirp service) names an address of Azure's blob storage to which they go and from
//! which they come. GitHub publishes no description; this follows what its own runner and BuildKit (go-actions-cache) send, so that
//! kiln and BuildKit find each other's entries.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use kiln_oci::descriptor::Descriptor;
use kiln_oci::digest::Digest;
use reqwest::Method;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RANGE};
use serde::Deserialize;
use serde_json::{Value, json};
use url::Url;

use crate::blob::{Download, Source};
use crate::error::{Answer, Error, ErrorKind, Operation};
use crate::exchange::{Fault, Patience};
use crate::service::{self, Request, Service};
use crate::transport::{Body, Incoming};
use crate::{Client, Result, RetryPolicy};

/// What goes in one request; as go-actions-cache does it.
const PART: u64 = 32 << 20;
/// How often another writer of the same key is waited for, and how long each time.
const WAITS: (u32, Duration) = (7, Duration::from_secs(2));

/// How the service is reached.
#[derive(Clone)]
pub struct ActionsCacheOptions {
    /// `ACTIONS_RESULTS_URL` (version 2) or `ACTIONS_CACHE_URL` (version 1).
    pub url: String,
    /// `ACTIONS_RUNTIME_TOKEN`.
    pub token: String,
    /// Which version it speaks.
    pub is_v2: bool,
    /// How long it may be waited for altogether when it says "not now".
    pub timeout: Duration,
}

impl std::fmt::Debug for ActionsCacheOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ActionsCacheOptions").field("url", &self.url).field("is_v2", &self.is_v2).finish_non_exhaustive()
    }
}

/// The service. Share one among all threads.
pub struct ActionsCache {
    service: Service,
    base: Url,
    authorization: HeaderValue,
    is_v2: bool,
    scopes: Vec<Scope>,
}

impl std::fmt::Debug for ActionsCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ActionsCache").field("base", &self.base.as_str()).field("is_v2", &self.is_v2).finish_non_exhaustive()
    }
}

/// A branch whose entries the token may read: the build's own, and those that it came from.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Scope {
    /// `refs/heads/main`.
    #[serde(rename = "Scope", alias = "scope")]
    pub name: String,
    /// Bit 1: read, bit 2: write.
    #[serde(rename = "Permission", alias = "permission")]
    pub permission: u32,
}

/// An entry that was found.
#[derive(Clone)]
pub struct Entry {
    /// Its whole key.
    pub key: String,
    /// Where its bytes are; whoever knows this may read them.
    place: Url,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry").field("key", &self.key).finish_non_exhaustive()
    }
}

/// How the bytes of an entry are had from a position on.
type Open<'a> = dyn Fn(u64) -> io::Result<Box<dyn Read + Send>> + 'a;

impl ActionsCache {
    /// The service; nothing is asked yet.
    ///
    /// # Errors
    /// The URL is none, or the token isn't one for the cache.
    pub fn new(client: &Arc<Client>, options: &ActionsCacheOptions) -> Result<Self> {
        let operation = |host: &str| Operation {
            action: "use the cache of GitHub Actions",
            subject: String::new(),
            registry: host.to_owned(),
            host: host.to_owned(),
        };
        let fail = |reason: &str| Error::new(operation("github.com"), ErrorKind::Setting(reason.to_owned()));
        let mut base = Url::parse(&options.url).map_err(|_| fail("its URL can't be read"))?;
        if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none() {
            return Err(fail("its URL is none of a web server"));
        }
        base.set_path(&format!("{}/", base.path().trim_end_matches('/')));
        let mut authorization =
            HeaderValue::from_str(&format!("Bearer {}", options.token)).map_err(|_| fail("the token can't stand in a header"))?;
        authorization.set_sensitive(true);
        let scopes =
            scopes(&options.token).ok_or_else(|| fail("the token (ACTIONS_RUNTIME_TOKEN) names no scopes of a cache"))?;
        let own = &client.options().retry;
        let policy =
            RetryPolicy { attempts: own.attempts.max(8), total_pause: options.timeout.max(own.total_pause), ..own.clone() };
        let service = Service::new(client, base.clone(), policy, answer);
        Ok(Self { service, base, authorization, is_v2: options.is_v2, scopes })
    }

    /// What the token may read and write.
    pub fn scopes(&self) -> &[Scope] {
        &self.scopes
    }

    /// The youngest entry whose key begins so.
    ///
    /// # Errors
    /// The service can't be reached or refuses.
    pub fn find(&self, key: &str) -> Result<Option<Entry>> {
        let operation = self.service.operation("look for the entry", key);
        let (found, place) = if self.is_v2 {
            let ask = json!({ "key": key, "restore_keys": [key], "version": version() });
            let Some(found) = self.twirp(&operation, "GetCacheEntryDownloadURL", &ask)? else { return Ok(None) };
            if found.get("ok").and_then(Value::as_bool) != Some(true) {
                return Ok(None);
            }
            (text(&found, "matched_key"), text(&found, "signed_download_url"))
        } else {
            let query = [("keys", key), ("version", &version())];
            let found = self.service.document(&operation, LIMIT, &|| self.v1(Method::GET, "cache", &query, Body::None))?;
            let found: Value = match found {
                Some((_, body)) if !body.is_empty() => serde_json::from_slice(&body).map_err(|error| odd(&operation, &error))?,
                _ => return Ok(None),
            };
            (text(&found, "cacheKey"), text(&found, "archiveLocation"))
        };
        if found.is_empty() {
            return Ok(None);
        }
        let place = Url::parse(&place).map_err(|error| odd(&operation, &error))?;
        Ok(found.starts_with(key).then_some(Entry { key: found, place }))
    }

    /// The whole of an entry that isn't larger than `limit`.
    ///
    /// # Errors
    /// The service can't be reached or refuses, or the entry is gone.
    pub fn read(&self, entry: &Entry, limit: u64) -> Result<Vec<u8>> {
        let operation = self.service.operation("read the entry", &entry.key);
        let make = || Ok(Request { method: Method::GET, url: entry.place.clone(), headers: HeaderMap::new(), body: Body::None });
        let found = self.service.document(&operation, limit, &make)?;
        found.map(|(_, body)| body).ok_or_else(|| gone(operation))
    }

    /// Fetches an entry whose bytes are a descriptor's, with retries that go on where the last one broke.
    ///
    /// # Errors
    /// As [`Client::fetch_blob`].
    pub fn fetch(&self, key: &str, descriptor: &Descriptor, sink: &mut dyn Write, progress: &dyn Fn(u64)) -> Result<()> {
        let operation = self.service.operation("fetch the entry", key);
        Download::new(descriptor, sink, progress).fetch_from(&Stored { cache: self, key, operation })
    }

    /// Writes an entry of `size` bytes; `false` when there is one with this key already, which can't be changed.
    ///
    /// # Errors
    /// The service can't be reached or refuses, or the source fails.
    pub fn save(&self, key: &str, size: u64, open: &Open<'_>, progress: &dyn Fn(u64)) -> Result<bool> {
        let operation = self.service.operation("write the entry", key);
        let Some(place) = self.reserve(&operation, key)? else { return Ok(false) };
        self.send(&operation, &place, size, open, progress)?;
        self.commit(&operation, key, &place, size)?;
        Ok(true)
    }

    /// Makes `bytes` the youngest entry whose key begins with `key`: entries can't change, so the keys are numbered. An entry that
    /// somebody else is writing is waited for, a little.
    ///
    /// # Errors
    /// The service can't be reached or refuses.
    pub fn replace(&self, key: &str, bytes: &[u8]) -> Result<()> {
        let beginning = format!("{key}#");
        let open = |from: u64| {
            let rest = bytes.get(usize::try_from(from).unwrap_or(usize::MAX)..).unwrap_or_default();
            Ok(Box::new(io::Cursor::new(rest.to_vec())) as Box<dyn Read + Send>)
        };
        let (mut waits, mut skipped) = (0, 0);
        loop {
            let last = self.find(&beginning)?.and_then(|entry| entry.key.strip_prefix(&beginning)?.parse::<u64>().ok());
            let next = last.unwrap_or(0) + 1 + skipped;
            if self.save(&format!("{beginning}{next}"), bytes.len() as u64, &open, &|_| {})? {
                return Ok(());
            }
            if waits < WAITS.0 {
                waits += 1;
                let operation = self.service.operation("write the entry", key);
                let pause = WAITS.1.min(self.service.policy.longest_pause);
                self.service.client.transport().pause(pause).map_err(|kind| Error::new(operation, kind))?;
            } else {
                // Whoever began that number will not end it.
                skipped += 1;
            }
        }
    }

    /// Announces an entry: where its bytes go; `None` when the key is taken.
    fn reserve(&self, operation: &Operation, key: &str) -> Result<Option<Place>> {
        let ask = json!({ "key": key, "version": version() });
        let answered = if self.is_v2 {
            self.twirp(operation, "CreateCacheEntry", &ask)
        } else {
            let make = || self.v1(Method::POST, "caches", &[], service::bytes(&body(&ask), &|_| {}));
            self.parsed(operation, &make)
        };
        let answered = match answered {
            Ok(answered) => answered.unwrap_or_default(),
            Err(error) if is_taken(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let strange = |reason: &str| Error::new(operation.clone(), ErrorKind::Protocol(reason.to_owned()));
        if self.is_v2 {
            if answered.get("ok").and_then(Value::as_bool) != Some(true) {
                return Ok(None);
            }
            let place = Url::parse(&text(&answered, "signed_upload_url"));
            return place.map(|place| Some(Place::Azure(place))).map_err(|_| strange("the address for the upload is none"));
        }
        let id = answered.get("cacheId").or_else(|| answered.get("cacheID")).and_then(Value::as_u64);
        id.map(|id| Some(Place::Own(id))).ok_or_else(|| strange("the reserved entry has no number"))
    }

    fn send(&self, operation: &Operation, place: &Place, size: u64, open: &Open<'_>, progress: &dyn Fn(u64)) -> Result<()> {
        let mut from = 0;
        let mut blocks = String::new();
        let whole = size <= PART;
        while from < size || from == 0 {
            let len = PART.min(size - from);
            let id = base64::engine::general_purpose::STANDARD.encode(format!("{:08}", from / PART));
            let gone = |sent| progress(from + sent);
            let make = || {
                let body = match len {
                    0 => Body::None,
                    len => {
                        let source = open(from).map_err(ErrorKind::Local)?;
                        // Where the entry ends its source has to end, too, which is checked as it is read.
                        let source = if from + len == size { source } else { Box::new(source.take(len)) };
                        Body::Stream { source, len, progress: &gone }
                    }
                };
                match place {
                    Place::Azure(url) if whole => Ok(azure(url, &[], &[("x-ms-blob-type", "BlockBlob")], body)),
                    Place::Azure(url) => Ok(azure(url, &[("comp", "block"), ("blockid", &id)], &[], body)),
                    Place::Own(number) => {
                        let mut request = self.v1(Method::PATCH, &format!("caches/{number}"), &[], body)?;
                        let range = format!("bytes {from}-{}/*", (from + len).saturating_sub(1));
                        request.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
                        request.headers.extend(HeaderValue::from_str(&range).ok().map(|range| (CONTENT_RANGE, range)));
                        Ok(request)
                    }
                }
            };
            self.accepted(operation, self.service.patiently(operation, &make)?)?;
            blocks.push_str(&format!("<Latest>{id}</Latest>"));
            from += len.max(1);
        }
        if let Place::Azure(url) = place
            && !whole
        {
            let list = Bytes::from(format!("<?xml version=\"1.0\" encoding=\"utf-8\"?><BlockList>{blocks}</BlockList>"));
            let make = || Ok(azure(url, &[("comp", "blocklist")], &[], service::bytes(&list, &|_| {})));
            self.accepted(operation, self.service.patiently(operation, &make)?)?;
        }
        Ok(())
    }

    /// Says that all bytes are there; from now on the entry is found.
    fn commit(&self, operation: &Operation, key: &str, place: &Place, size: u64) -> Result<()> {
        match place {
            Place::Azure(_) => {
                let ask = json!({ "key": key, "size_bytes": size, "version": version() });
                let said = self.twirp(operation, "FinalizeCacheEntryUpload", &ask)?.unwrap_or_default();
                match said.get("ok").and_then(Value::as_bool) {
                    Some(true) => Ok(()),
                    _ => Err(Error::new(operation.clone(), ErrorKind::Protocol("the finished entry was not taken".to_owned()))),
                }
            }
            Place::Own(number) => {
                let ask = body(&json!({ "size": size }));
                let make = || self.v1(Method::POST, &format!("caches/{number}"), &[], service::bytes(&ask, &|_| {}));
                self.accepted(operation, self.service.patiently(operation, &make)?)
            }
        }
    }

    fn accepted(&self, operation: &Operation, incoming: Incoming<'_>) -> Result<()> {
        match incoming.status.is_success() {
            true => Ok(()),
            false => Err(Error::new(operation.clone(), self.service.refusal(incoming).kind)),
        }
    }

    fn twirp(&self, operation: &Operation, method: &str, ask: &Value) -> Result<Option<Value>> {
        let ask = body(ask);
        let path = format!("twirp/github.actions.results.api.v1.CacheService/{method}");
        self.parsed(operation, &|| self.request(Method::POST, &path, &[], service::bytes(&ask, &|_| {})))
    }

    fn parsed(&self, operation: &Operation, make: &service::Make<'_>) -> Result<Option<Value>> {
        let Some((_, body)) = self.service.document(operation, LIMIT, make)? else { return Ok(None) };
        serde_json::from_slice(&body).map(Some).map_err(|error| odd(operation, &error))
    }

    fn v1<'b>(&self, method: Method, path: &str, query: &[(&str, &str)], body: Body<'b>) -> Result<Request<'b>, ErrorKind> {
        let mut request = self.request(method, &format!("_apis/artifactcache/{path}"), query, body)?;
        request.headers.insert(ACCEPT, HeaderValue::from_static("application/json;api-version=6.0-preview.1"));
        Ok(request)
    }

    fn request<'b>(&self, method: Method, path: &str, query: &[(&str, &str)], body: Body<'b>) -> Result<Request<'b>, ErrorKind> {
        let mut url = self.base.join(path).map_err(|error| ErrorKind::Setting(error.to_string()))?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, self.authorization.clone());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(Request { method, url, headers, body })
    }
}

/// Where the bytes of a reserved entry go.
enum Place {
    /// To the service itself, under a number.
    Own(u64),
    /// To an address that is signed for it.
    Azure(Url),
}

/// No answer of the service is larger.
const LIMIT: u64 = 1 << 20;

/// An entry that is being fetched. Its address is only good for a while, so each try asks for it anew.
struct Stored<'a> {
    cache: &'a ActionsCache,
    key: &'a str,
    operation: Operation,
}

impl Source for Stored<'_> {
    fn open(&self, range: Option<HeaderValue>) -> Result<Incoming<'_>, Fault> {
        let found = self.cache.find(self.key).map_err(Error::into_kind)?;
        let url = found.ok_or_else(|| ErrorKind::NotFound(Answer::new(404, b"there is no such entry any more")))?.place;
        let mut headers = HeaderMap::new();
        headers.extend(range.map(|range| (RANGE, range)));
        self.cache.service.once(Request { method: Method::GET, url, headers, body: Body::None })
    }

    fn refusal(&self, incoming: Incoming<'_>) -> Fault {
        self.cache.service.refusal(incoming)
    }

    fn pause(&self, patience: &mut Patience<'_>, fault: Fault) -> Result<(), Error> {
        self.cache.service.pause(&self.operation, patience, fault)
    }

    fn policy(&self) -> &RetryPolicy {
        &self.cache.service.policy
    }
}

fn azure<'b>(url: &Url, query: &[(&str, &str)], headers: &[(&'static str, &'static str)], body: Body<'b>) -> Request<'b> {
    let mut url = url.clone();
    if !query.is_empty() {
        url.query_pairs_mut().extend_pairs(query);
    }
    let pair = |(name, value): &(&'static str, &'static str)| (HeaderName::from_static(name), HeaderValue::from_static(value));
    Request { method: Method::PUT, url, headers: headers.iter().map(pair).collect(), body }
}

/// What the paths of a cached folder are in GitHub's own action: entries of another version aren't found. The text is
/// go-actions-cache's, which has no paths either.
fn version() -> String {
    Digest::of(b"|go-actionscache-1.0").hex()
}

fn body(value: &Value) -> Bytes {
    value.to_string().into()
}

fn text(value: &Value, key: &str) -> String {
    value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn odd(operation: &Operation, cause: &dyn std::fmt::Display) -> Error {
    Error::new(operation.clone(), ErrorKind::Protocol(format!("its answer can't be read: {cause}")))
}

fn gone(operation: Operation) -> Error {
    Error::new(operation, ErrorKind::NotFound(Answer::new(404, b"the entry is gone")))
}

fn is_taken(error: &Error) -> bool {
    let ErrorKind::Service(answer) = error.kind() else { return false };
    answer.status == 409
        || answer.errors.iter().any(|error| {
            error.code == "already_exists"
                || error.code.contains("AlreadyExists")
                || error.message.to_ascii_lowercase().contains("already exists")
        })
}

/// What an error document of either version says.
fn answer(status: u16, body: &[u8]) -> Answer {
    #[derive(Deserialize)]
    struct Document {
        #[serde(alias = "typeKey")]
        code: Option<String>,
        #[serde(alias = "message")]
        msg: Option<String>,
    }
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    match serde_json::from_slice::<Document>(body) {
        Ok(Document { code, msg }) if code.is_some() || msg.is_some() => {
            Answer::told(status, &code.unwrap_or_default(), &msg.unwrap_or_default())
        }
        _ => Answer::new(status, body),
    }
}

/// What the token's claim `ac` says; its signature is the service's business.
fn scopes(token: &str) -> Option<Vec<Scope>> {
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?.trim_end_matches('=')).ok()?;
    let claims: Value = serde_json::from_slice(&claims).ok()?;
    serde_json::from_str(claims.get("ac")?.as_str()?).ok()
}
