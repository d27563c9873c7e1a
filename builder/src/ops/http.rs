//! Hides how ADD gets a file from an address: asked again only if it changed, kept as a blob, never led astray by a redirect.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kiln_oci::digest::Digest;
use kiln_store::{CacheRecord, Store};
use reqwest::blocking::{Client, Response};
use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, ETAG, HeaderValue, IF_NONE_MATCH, LAST_MODIFIED, LOCATION};
use reqwest::redirect::Policy;
use reqwest::{StatusCode, Url};
use serde::{Deserialize, Serialize};

use crate::cache_key::memo_key;
use crate::grant::{Grants, Secret};
use crate::pins::{PinError, Pins, Sort};

const MAX_REDIRECTS: usize = 5;
/// For one step of the exchange: to connect, to get a header, to get more of the body.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why an address could not be fetched. No message holds a password of the address.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HttpError {
    /// It isn't an http or https address.
    #[error("`{url}` is not an http or https address")]
    Address {
        /// The address.
        url: String,
    },
    /// The server couldn't be reached, or the exchange broke off.
    #[error("cannot fetch `{url}`")]
    Exchange {
        /// The address.
        url: String,
        /// Why.
        #[source]
        cause: reqwest::Error,
    },
    /// The body broke off, or can't be written to the store.
    #[error("cannot fetch `{url}`")]
    Body {
        /// The address.
        url: String,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The server said no.
    #[error("cannot fetch `{url}`: the server answered {status}")]
    Status {
        /// The address.
        url: String,
        /// As in `404 Not Found`.
        status: StatusCode,
    },
    /// More than 5 redirects.
    #[error("cannot fetch `{url}`: it was redirected more than {MAX_REDIRECTS} times")]
    Redirects {
        /// The address.
        url: String,
    },
    /// A redirect that leads nowhere, or to something that isn't http.
    #[error("cannot fetch `{url}`: it was redirected to `{location}`")]
    Location {
        /// The address.
        url: String,
        /// Where the server led.
        location: String,
    },
    /// A public server led to an address of a private network, where only this machine can go.
    #[error("cannot fetch `{url}`: the public server redirected to `{location}`, which is in a private network")]
    Private {
        /// The address.
        url: String,
        /// Where the server led.
        location: String,
    },
    /// The content isn't what `--checksum` says.
    #[error("digest mismatch for `{url}`: expected {expected}, got {actual}")]
    Checksum {
        /// The address.
        url: String,
        /// What the Dockerfile says.
        expected: Digest,
        /// What the server sent.
        actual: Digest,
    },
    /// It is not in the lock file, or not what that says.
    #[error(transparent)]
    Pins(#[from] PinError),
    /// The store can't be used.
    #[error(transparent)]
    Store(#[from] kiln_store::Error),
}

/// A file that was fetched; its content is a blob of the store.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// The address as the Dockerfile has it; may hold a password.
    pub url: String,
    /// The address without one, for messages.
    pub shown: String,
    /// The last name in the path of the address, `__unnamed__` if it has none.
    pub name: Vec<u8>,
    /// Of the content.
    pub digest: Digest,
    /// Bytes of content.
    pub size: u64,
    /// When the server says that it was changed.
    pub last_modified: Option<SystemTime>,
    store: Store,
}

impl Fetched {
    /// Opens the content.
    ///
    /// # Errors
    /// What the store answers.
    pub fn open(&self) -> Result<File, kiln_store::Error> {
        // Once it is in a layer, nobody can tell any more what it should have been.
        self.store.blobs().open_proven(&self.digest, self.size)
    }
}

/// What is remembered of an address.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Memory {
    digest: String,
    size: u64,
    etag: Option<String>,
    /// As the server spells it.
    last_modified: Option<String>,
}

/// Fetches `url` into the blobs of `store`. What was fetched before is asked for conditionally, and with a `checksum` that it
/// has not at all. `grants` may hold the credentials. `progress` is told the bytes so far, and the total if the server says it.
///
/// # Errors
/// [`HttpError`].
pub fn fetch(
    url: &str,
    store: &Store,
    checksum: Option<&Digest>,
    grants: &Grants,
    progress: &dyn Fn(u64, Option<u64>),
) -> Result<Fetched, HttpError> {
    let address = Url::parse(url).ok().filter(|u| matches!(u.scheme(), "http" | "https") && u.has_host());
    let Some(address) = address else { return Err(HttpError::Address { url: redact_text(url) }) };
    let shown = redact(&address);
    let key = memo_key("http", url);
    let known = recall(store, &key)?;
    let fetched = |digest: Digest, size: u64, last_modified: Option<&str>| Fetched {
        url: url.to_owned(),
        shown: shown.clone(),
        name: name_of(&address),
        digest,
        size,
        last_modified: last_modified.and_then(http_date),
        store: store.clone(),
    };
    if let Some((digest, memory)) = &known
        && checksum == Some(digest)
    {
        return Ok(fetched(*digest, memory.size, memory.last_modified.as_deref()));
    }
    let authorization = authorization(&address, grants);
    let response = ask(&address, &shown, known.as_ref().map(|(_, memory)| memory), authorization.as_ref())?;
    if response.status() == StatusCode::NOT_MODIFIED
        && let Some((digest, memory)) = &known
    {
        if let Some(expected) = checksum.filter(|expected| *expected != digest) {
            return Err(HttpError::Checksum { url: shown, expected: *expected, actual: *digest });
        }
        return Ok(fetched(*digest, memory.size, memory.last_modified.as_deref()));
    }
    if !response.status().is_success() {
        return Err(HttpError::Status { url: shown, status: response.status() });
    }
    let text = |name| response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let (etag, last_modified) = (text(ETAG), text(LAST_MODIFIED));
    let (digest, size) = receive(response, store, progress).map_err(|e| match e {
        Receive::Store(e) => e.into(),
        Receive::Io(cause) => HttpError::Body { url: shown.clone(), cause },
    })?;
    if let Some(expected) = checksum.filter(|expected| **expected != digest) {
        return Err(HttpError::Checksum { url: shown, expected: *expected, actual: digest });
    }
    let out = fetched(digest, size, last_modified.as_deref());
    let memory = Memory { digest: digest.to_string(), size, etag, last_modified };
    let data = serde_json::to_value(&memory).unwrap_or_default();
    store.cache().put(&key, &CacheRecord { layer: None, identity: *digest.as_bytes(), blobs: vec![digest], data })?;
    Ok(out)
}

/// The same by what a lock file says, or as it is to say from now on. A `checksum` of the Dockerfile's own settles it alone.
///
/// # Errors
/// [`HttpError`].
pub fn fetch_pinned(
    url: &str,
    store: &Store,
    checksum: Option<&Digest>,
    grants: &Grants,
    pins: &Pins,
    progress: &dyn Fn(u64, Option<u64>),
) -> Result<Fetched, HttpError> {
    if checksum.is_some() {
        return fetch(url, store, checksum, grants, progress);
    }
    let locked = pins.pin(Sort::Url, url)?.and_then(|text| Digest::parse(&text).ok());
    let fetched = fetch(url, store, locked.as_ref(), grants, progress).map_err(|error| match error {
        HttpError::Checksum { url: shown, expected, actual } => {
            let changed = pins.changed(url, &expected.to_string(), &actual.to_string());
            changed.map_or(HttpError::Checksum { url: shown, expected, actual }, HttpError::Pins)
        }
        error => error,
    })?;
    pins.found(Sort::Url, url, &fetched.digest.to_string());
    Ok(fetched)
}

/// What is remembered of the address, if its content is still there.
fn recall(store: &Store, key: &kiln_store::CacheKey) -> Result<Option<(Digest, Memory)>, HttpError> {
    let Some(record) = store.cache().get(key)? else { return Ok(None) };
    let Ok(memory) = serde_json::from_value::<Memory>(record.data) else { return Ok(None) };
    let Ok(digest) = memory.digest.parse::<Digest>() else { return Ok(None) };
    Ok(store.blobs().has_sized(&digest, memory.size).then_some((digest, memory)))
}

/// The header that the secrets have for a server. What the address itself says comes first.
fn authorization(address: &Url, grants: &Grants) -> Option<HeaderValue> {
    let host = address.host_str().filter(|_| address.username().is_empty() && address.password().is_none())?;
    let port = address.port_or_known_default().unwrap_or(80);
    let header = grants.authorization(&[format!("{host}:{port}"), host.to_owned()])?;
    let mut header = HeaderValue::from_bytes(Secret::reveal(&header)).ok()?;
    header.set_sensitive(true);
    Some(header)
}

/// Asks for `address` and follows redirects; other servers than the first don't get `authorization`.
fn ask(address: &Url, shown: &str, known: Option<&Memory>, authorization: Option<&HeaderValue>) -> Result<Response, HttpError> {
    let mut at = address.clone();
    let mut pinned: Option<(String, Vec<SocketAddr>)> = None;
    for _ in 0..=MAX_REDIRECTS {
        let exchange = |cause: reqwest::Error| HttpError::Exchange { url: shown.to_owned(), cause: cause.without_url() };
        let mut client = Client::builder()
            .redirect(Policy::none())
            .referer(false)
            .timeout(PATIENCE)
            .user_agent(concat!("kiln/", env!("CARGO_PKG_VERSION")));
        if let Some((host, addresses)) = &pinned {
            client = client.resolve_to_addrs(host, addresses);
        }
        let mut request = client.build().map_err(exchange)?.get(at.clone());
        if let Some(header) = authorization.filter(|_| at.origin() == address.origin()) {
            request = request.header(AUTHORIZATION, header);
        }
        // Never by its time: "not modified since" is what a server says of two files of one second, and of an older file that was
        // put in the place of a newer one.
        if let Some(etag) = known.and_then(|memory| memory.etag.as_ref()) {
            request = request.header(IF_NONE_MATCH, etag);
        }
        let response = request.send().map_err(exchange)?;
        let moved = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
        let Some(location) = response.headers().get(LOCATION).filter(|_| moved) else { return Ok(response) };
        let location = String::from_utf8_lossy(location.as_bytes()).into_owned();
        let next = at.join(&location).ok().filter(|u| matches!(u.scheme(), "http" | "https") && u.has_host());
        let Some(next) = next else {
            return Err(HttpError::Location { url: shown.to_owned(), location: redact_text(&location) });
        };
        // A server in a private network (or a proxy there) may lead on within it. What a public one leads to is looked up
        // here, and the connection goes to what was found and not to what a second lookup says.
        pinned = None;
        if response.remote_addr().is_some_and(|peer| !is_private(peer.ip())) {
            let host = next.host_str().unwrap_or_default().to_owned();
            let port = next.port_or_known_default().unwrap_or(80);
            let bare = host.trim_start_matches('[').trim_end_matches(']');
            let found = (bare, port).to_socket_addrs().map(Iterator::collect::<Vec<_>>).unwrap_or_default();
            if found.iter().any(|address| is_private(address.ip())) {
                return Err(HttpError::Private { url: shown.to_owned(), location: redact(&next) });
            }
            pinned = (!found.is_empty()).then_some((host, found));
        }
        at = next;
    }
    Err(HttpError::Redirects { url: shown.to_owned() })
}

enum Receive {
    Store(kiln_store::Error),
    Io(io::Error),
}

fn receive(mut response: Response, store: &Store, progress: &dyn Fn(u64, Option<u64>)) -> Result<(Digest, u64), Receive> {
    let total = response.headers().get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
    let mut writer = store.blobs().writer().map_err(Receive::Store)?;
    let mut buffer = vec![0; 64 << 10];
    progress(0, total);
    loop {
        match response.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                writer.write_all(&buffer[..n]).map_err(Receive::Io)?;
                progress(writer.written(), total);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Receive::Io(e)),
        }
    }
    writer.commit(None).map_err(Receive::Store)
}

/// Whether an address means something only to this machine or its network.
fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_unspecified()
                || v4.is_broadcast()
                || v4.is_multicast()
                // Carrier-grade NAT (RFC 6598), "this network" (RFC 1122), benchmarks (RFC 2544), reserved (RFC 1112).
                || (a == 100 && (64..128).contains(&b))
                || a == 0
                || (a == 198 && (b == 18 || b == 19))
                || a >= 240
        }
        IpAddr::V6(v6) => match v6.to_ipv4_mapped().or_else(|| nat64(&v6.octets())) {
            Some(v4) => is_private(v4.into()),
            None => {
                v6.is_loopback() || v6.is_unspecified() || v6.is_multicast() || v6.is_unique_local() || v6.is_unicast_link_local()
            }
        },
    }
}

/// The address that 64:ff9b::/96 (RFC 6052) stands for.
fn nat64(octets: &[u8; 16]) -> Option<std::net::Ipv4Addr> {
    let prefix = [0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0];
    octets.starts_with(&prefix).then(|| std::net::Ipv4Addr::new(octets[12], octets[13], octets[14], octets[15]))
}

/// The same for an address as text.
pub(crate) fn name_of_address(url: &str) -> Vec<u8> {
    Url::parse(url).map_or_else(|_| b"__unnamed__".to_vec(), |address| name_of(&address))
}

/// The name that BuildKit's frontend gives the file (dockerfile2llb, `path.Base(u.Path)`).
fn name_of(address: &Url) -> Vec<u8> {
    let path = percent_decode(address.path().as_bytes());
    let name = path.split(|b| *b == b'/').rfind(|name| !name.is_empty()).unwrap_or_default();
    match name {
        b"" | b"." | b".." => b"__unnamed__".to_vec(),
        name if name.contains(&0) => b"__unnamed__".to_vec(),
        name => name.to_vec(),
    }
}

pub(crate) fn percent_decode(text: &[u8]) -> Vec<u8> {
    let digit = |b: Option<&u8>| b.and_then(|b| char::from(*b).to_digit(16)).and_then(|d| u8::try_from(d).ok());
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte == b'%'
            && let (Some(high), Some(low)) = (digit(after.first()), digit(after.get(1)))
        {
            out.push(high << 4 | low);
            rest = &after[2..];
        } else {
            out.push(*byte);
        }
    }
    out
}

fn redact(url: &Url) -> String {
    let mut url = url.clone();
    // These fail only for addresses that can't have a user at all.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.to_string()
}

/// The same for what is no address: anything before an `@` may be a password.
fn redact_text(text: &str) -> String {
    match Url::parse(text) {
        Ok(url) => redact(&url),
        Err(_) => match text.rsplit_once('@') {
            Some((_, rest)) => format!("…@{rest}"),
            None => text.to_owned(),
        },
    }
}

/// Reads `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110 5.6.7; the obsolete forms are not worth the trouble).
fn http_date(text: &str) -> Option<SystemTime> {
    let (_, rest) = text.split_once(", ")?;
    let mut parts = rest.split_ascii_whitespace();
    let day: i64 = parts.next()?.parse().ok()?;
    let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let name = parts.next()?;
    let month = i64::try_from(months.iter().position(|m| *m == name)?).ok()? + 1;
    let year: i64 = parts.next()?.parse().ok()?;
    let mut clock = parts.next()?.split(':').map(|n| n.parse::<i64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    if parts.next() != Some("GMT") || !(1..=31).contains(&day) || !(1970..=9999).contains(&year) {
        return None;
    }
    // Days since 1970 of a date of the Gregorian calendar, years beginning in March (H. Hinnant, days_from_civil).
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let era = y.div_euclid(400);
    let of_era = y.rem_euclid(400);
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + (153 * m + 2) / 5 + day - 1 - 719_468;
    let seconds = u64::try_from(days * 86_400 + hour * 3600 + minute * 60 + second).ok()?;
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests;
