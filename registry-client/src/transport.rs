//! Hides the HTTP library and its asynchrony: one request out, one answer back, in chunks, each step under the stall timeout.
//!
//! reqwest is asynchronous inside; its runtime (two threads) is started by the first request and stays behind this module.
//! Redirects, credentials and retries are none of its business.

use std::collections::HashMap;
use std::future::Future;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{CONTENT_LENGTH, HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use url::{Host, Url};

use crate::Options;
use crate::endpoint::is_loopback;
use crate::error::ErrorKind;
use crate::proxy::Proxies;

/// How much of an upload is read at once; three of these are in memory at most.
const UPLOAD_CHUNK: usize = 256 << 10;
/// How often a waiting call looks whether it was cancelled.
const GLANCE: Duration = Duration::from_millis(200);
/// A registry may assemble a large blob before it answers the upload's last byte (S3 multipart copies); it gets this many
/// stall timeouts for it.
const COMMIT_PATIENCE: u32 = 5;

/// Which connections a request may use.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Trust {
    pub(crate) ca_file: Option<PathBuf>,
    /// A certificate that is shown, and its key.
    pub(crate) client_certificate: Option<(PathBuf, PathBuf)>,
    pub(crate) certs: Vec<Certs>,
    pub(crate) skip_verify: bool,
    pub(crate) reach: Reach,
}

/// A folder `certs.d/HOST`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Certs {
    pub(crate) folder: PathBuf,
    /// Whether the client certificate in it is shown, too; its authorities are believed in any case.
    pub(crate) shown: bool,
}

/// Which addresses a host name may stand for. A host that the user named may be anywhere; one that a server named (a
/// redirect, an upload location, a token service) may not be a way into this machine or its cloud's metadata service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Reach {
    Anywhere,
    NotMetadata,
    NotMetadataNorLoopback,
}

impl Reach {
    pub(crate) fn allows(self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let metadata = match address {
            // 100.100.100.200 is Alibaba's metadata service, 192.0.0.192 Oracle's; the others' is link-local.
            IpAddr::V4(v4) => v4.is_link_local() || matches!(v4.octets(), [100, 100, 100, 200] | [192, 0, 0, 192]),
            IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.segments() == [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254],
        };
        match self {
            Self::Anywhere => true,
            Self::NotMetadata => !metadata,
            Self::NotMetadataNorLoopback => !metadata && !address.is_loopback() && !address.is_unspecified(),
        }
    }
}

/// Sends requests.
pub(crate) struct Transport {
    user_agent: String,
    connect_timeout: Duration,
    stall_timeout: Duration,
    cancelled: Arc<AtomicBool>,
    proxies: Proxies,
    /// A socket through which everything goes, whatever a URL's host is.
    socket: Option<PathBuf>,
    runtime: OnceLock<Runtime>,
    clients: Mutex<HashMap<Key, reqwest::Client>>,
}

/// What connections have to have in common to be pooled.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    trust: Trust,
    tls: bool,
    loopback: bool,
}

/// A request.
pub(crate) struct Outgoing<'a> {
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Body<'a>,
    pub(crate) trust: &'a Trust,
}

/// Its body.
pub(crate) enum Body<'a> {
    None,
    Bytes(Bytes),
    /// Exactly `len` bytes of `source`; `progress` is told how many have gone.
    Stream {
        source: Box<dyn Read + Send>,
        len: u64,
        progress: &'a dyn Fn(u64),
    },
}

/// An answer whose head has come.
pub(crate) struct Incoming<'t> {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) url: Url,
    response: reqwest::Response,
    transport: &'t Transport,
    received: u64,
    /// Keeps an upload that was answered early from looking like a broken one while the answer's body is read.
    _unsent: Option<mpsc::Sender<Bytes>>,
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport").field("started", &self.runtime.get().is_some()).finish_non_exhaustive()
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        // Idle connections and a name lookup that hangs shall not hold up the process's end.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Transport {
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            user_agent: options.user_agent.clone(),
            connect_timeout: options.connect_timeout,
            stall_timeout: options.stall_timeout,
            cancelled: options.cancelled.clone(),
            proxies: options.proxies.clone(),
            socket: None,
            runtime: OnceLock::new(),
            clients: Mutex::default(),
        }
    }

    /// Sends all requests through a socket of the file system.
    pub(crate) fn through(options: &Options, socket: PathBuf) -> Self {
        let mut transport = Self::new(options);
        transport.socket = Some(socket);
        transport
    }

    /// Sends a request and waits for the head of its answer, whatever its status.
    pub(crate) fn send(&self, outgoing: Outgoing<'_>) -> Result<Incoming<'_>, ErrorKind> {
        let Outgoing { method, url, mut headers, body, trust } = outgoing;
        let address = match url.host() {
            Some(Host::Ipv4(v4)) => Some(IpAddr::V4(v4)),
            Some(Host::Ipv6(v6)) => Some(IpAddr::V6(v6)),
            _ => None,
        };
        if address.is_some_and(|address| !trust.reach.allows(address)) {
            return Err(ErrorKind::Redirect { target: without_query(&url), reason: REFUSED_ADDRESS });
        }
        let runtime = self.runtime()?;
        let client = self.client(trust, &url)?;
        // Compressed on the way would mean other bytes than the descriptor's.
        headers.insert(reqwest::header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let builder = client.request(method, url.clone());
        let (response, unsent) = match body {
            Body::None => (self.wait(runtime, builder.headers(headers).send(), self.stall_timeout)?, None),
            Body::Bytes(bytes) => (self.wait(runtime, builder.headers(headers).body(bytes).send(), self.stall_timeout)?, None),
            Body::Stream { source, len, progress } => {
                headers.insert(CONTENT_LENGTH, HeaderValue::from(len));
                let (sender, receiver) = mpsc::channel(1);
                let builder = builder.headers(headers).body(reqwest::Body::wrap(Upload { receiver, remaining: len }));
                let (response, unsent) = self.stream(runtime, builder, source, len, sender, progress)?;
                (response, Some(unsent))
            }
        };
        let mut response = response.map_err(|error| connection_fault(&url, 0, &error))?;
        let headers = std::mem::take(response.headers_mut());
        Ok(Incoming { status: response.status(), headers, url, response, transport: self, received: 0, _unsent: unsent })
    }

    /// Feeds an upload from this thread while the runtime sends it.
    fn stream(
        &self,
        runtime: &Runtime,
        builder: reqwest::RequestBuilder,
        source: Box<dyn Read + Send>,
        len: u64,
        sender: mpsc::Sender<Bytes>,
        progress: &dyn Fn(u64),
    ) -> Result<(reqwest::Result<reqwest::Response>, mpsc::Sender<Bytes>), ErrorKind> {
        let mut task = AbortOnDrop(runtime.spawn(builder.send()));
        // One byte more than announced is asked for: a source that is too long is a mistake to be told of.
        let mut source = source.take(len.saturating_add(1));
        let mut gone = 0_u64;
        while gone < len && !task.0.is_finished() {
            let mut chunk = Vec::with_capacity(UPLOAD_CHUNK.min(usize::try_from(len - gone).unwrap_or(UPLOAD_CHUNK)) + 1);
            let wanted = (UPLOAD_CHUNK as u64).min(len - gone);
            (&mut source).take(wanted).read_to_end(&mut chunk).map_err(ErrorKind::Local)?;
            if chunk.is_empty() {
                return Err(ErrorKind::SizeMismatch { expected: len, actual: gone });
            }
            let count = chunk.len() as u64;
            if gone + count == len && source.read_to_end(&mut Vec::new()).map_err(ErrorKind::Local)? > 0 {
                return Err(ErrorKind::SizeMismatch { expected: len, actual: len + 1 });
            }
            let started = Instant::now();
            let permit = loop {
                match runtime.block_on(async { tokio::time::timeout(GLANCE, sender.reserve()).await }) {
                    Ok(permit) => break permit.ok(),
                    Err(_) if task.0.is_finished() => break None,
                    Err(_) if self.cancelled.load(Ordering::Relaxed) => return Err(ErrorKind::Cancelled),
                    Err(_) if started.elapsed() > self.stall_timeout => return Err(ErrorKind::Stalled(self.stall_timeout)),
                    Err(_) => {}
                }
            };
            // Without a permit the connection took no more: its answer says why.
            let Some(permit) = permit else { break };
            permit.send(chunk.into());
            gone += count;
            progress(gone);
        }
        let answer = self.wait(runtime, &mut task.0, self.stall_timeout * COMMIT_PATIENCE)?;
        match answer {
            Ok(answer) => Ok((answer, sender)),
            Err(join) => Err(ErrorKind::Interrupted { received: gone, cause: join.to_string() }),
        }
    }

    /// Waits for a future on this thread, up to `limit`.
    fn wait<F: Future>(&self, runtime: &Runtime, future: F, limit: Duration) -> Result<F::Output, ErrorKind> {
        runtime.block_on(async {
            let mut future = pin!(future);
            let started = Instant::now();
            loop {
                let left = limit.saturating_sub(started.elapsed());
                if let Ok(output) = tokio::time::timeout(left.min(GLANCE), future.as_mut()).await {
                    return Ok(output);
                }
                if self.cancelled.load(Ordering::Relaxed) {
                    return Err(ErrorKind::Cancelled);
                }
                if started.elapsed() >= limit {
                    return Err(ErrorKind::Stalled(limit));
                }
            }
        })
    }

    /// Sleeps; cut short when cancelled.
    pub(crate) fn pause(&self, pause: Duration) -> Result<(), ErrorKind> {
        let started = Instant::now();
        loop {
            if self.cancelled.load(Ordering::Relaxed) {
                return Err(ErrorKind::Cancelled);
            }
            let left = pause.saturating_sub(started.elapsed());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(GLANCE));
        }
    }

    fn runtime(&self) -> Result<&Runtime, ErrorKind> {
        if self.runtime.get().is_none() {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .thread_name("kiln-http")
                .enable_io()
                .enable_time()
                .build()
                .map_err(ErrorKind::Local)?;
            if let Err(late) = self.runtime.set(runtime) {
                late.shutdown_background();
            }
        }
        self.runtime.get().ok_or(ErrorKind::Cancelled)
    }

    fn client(&self, trust: &Trust, url: &Url) -> Result<reqwest::Client, ErrorKind> {
        let key = Key { trust: trust.clone(), tls: url.scheme() == "https", loopback: is_loopback(url) };
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&key) {
            return Ok(client.clone());
        }
        let mut builder = reqwest::Client::builder()
            .user_agent(&self.user_agent)
            .connect_timeout(self.connect_timeout)
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .tcp_keepalive(Duration::from_secs(30));
        // Reading the system's certificates takes milliseconds that a plain-http registry needn't pay.
        builder = if key.tls {
            // A stream of HTTP/2 stands still when the server has sent a window's worth; 2 MiB is little across an ocean.
            builder.http2_adaptive_window(true).tls_backend_preconfigured(crate::tls::config(trust)?)
        } else {
            builder.tls_certs_only([])
        };
        builder = builder.no_proxy();
        if !key.loopback {
            if let Some(mistake) = &self.proxies.mistake {
                return Err(ErrorKind::Setting(mistake.clone()));
            }
            if !self.proxies.is_empty() {
                let proxies = self.proxies.clone();
                builder = builder.proxy(reqwest::Proxy::custom(move |url| proxies.choose(url)));
            }
        }
        if let Some(path) = &self.socket {
            builder = builder.unix_socket(path.as_path());
        }
        if trust.reach != Reach::Anywhere {
            builder = builder.dns_resolver(Guard(trust.reach));
        }
        let client = builder.build().map_err(|error| ErrorKind::Setting(chain(&error)))?;
        clients.insert(key, client.clone());
        Ok(client)
    }
}

impl Incoming<'_> {
    /// A header's text.
    pub(crate) fn header(&self, name: impl reqwest::header::AsHeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The announced length of the body.
    pub(crate) fn content_length(&self) -> Option<u64> {
        self.header(CONTENT_LENGTH).and_then(|length| length.parse().ok())
    }

    /// The next bytes of the body; `None` at its end.
    pub(crate) fn chunk(&mut self) -> Result<Option<Bytes>, ErrorKind> {
        let runtime = self.transport.runtime()?;
        let chunk = self.transport.wait(runtime, self.response.chunk(), self.transport.stall_timeout)?;
        let chunk = chunk.map_err(|error| ErrorKind::Interrupted { received: self.received, cause: chain(&error) })?;
        self.received += chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
        Ok(chunk)
    }

    /// The whole body, when it isn't longer than `limit`.
    pub(crate) fn body(&mut self, what: &'static str, limit: u64) -> Result<Vec<u8>, ErrorKind> {
        if self.content_length().is_some_and(|length| length > limit) {
            return Err(ErrorKind::TooLarge { what, limit });
        }
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk()? {
            if (body.len() + chunk.len()) as u64 > limit {
                return Err(ErrorKind::TooLarge { what, limit });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// The beginning of the body, as far as it comes.
    pub(crate) fn excerpt(&mut self, limit: usize) -> Vec<u8> {
        let mut body = Vec::new();
        while body.len() < limit {
            match self.chunk() {
                Ok(Some(chunk)) => body.extend_from_slice(&chunk),
                _ => break,
            }
        }
        body.truncate(limit);
        body
    }
}

/// An upload's body: chunks from a channel, its length known beforehand.
struct Upload {
    receiver: mpsc::Receiver<Bytes>,
    remaining: u64,
}

impl http_body::Body for Upload {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.receiver.poll_recv(cx).map(|chunk| match chunk {
            Some(chunk) => {
                self.remaining = self.remaining.saturating_sub(chunk.len() as u64);
                Some(Ok(Frame::data(chunk)))
            }
            None if self.remaining > 0 => Some(Err(io::Error::from(io::ErrorKind::UnexpectedEof))),
            None => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.remaining == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining)
    }
}

struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

const REFUSED_ADDRESS: &str = "it leads to this machine or to a link-local address";

/// Resolves names and leaves out the addresses that may not be reached, at the moment of connecting: a name that was checked
/// earlier could stand for another address by now.
struct Guard(Reach);

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let reach = self.0;
        Box::pin(async move {
            let found: Vec<_> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let allowed: Vec<_> = found.into_iter().filter(|address| reach.allows(address.ip())).collect();
            if allowed.is_empty() {
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, REFUSED_ADDRESS).into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

fn connection_fault(url: &Url, received: u64, error: &reqwest::Error) -> ErrorKind {
    let cause = chain(error);
    if error.is_builder() {
        return ErrorKind::Setting(cause);
    }
    if !error.is_connect() && !error.is_timeout() {
        return ErrorKind::Interrupted { received, cause };
    }
    if cause.ends_with(REFUSED_ADDRESS) {
        return ErrorKind::Redirect { target: without_query(url), reason: REFUSED_ADDRESS };
    }
    let host = url.host_str().unwrap_or_default();
    let host = format!("{host}:{}", url.port_or_known_default().unwrap_or_default());
    // A certificate won't be better in a moment, a line that broke during the handshake may be.
    if is_tls_verdict(error) { ErrorKind::Tls { host, cause } } else { ErrorKind::Unreachable { host, cause } }
}

fn is_tls_verdict(error: &reqwest::Error) -> bool {
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        if cause.is::<rustls::Error>() {
            return true;
        }
        // hyper-rustls wraps rustls' error into an `io::Error`, more than once, and an `io::Error` passes over what it wraps
        // when it is asked for its source.
        let wrapped = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = wrapped.map_or_else(|| cause.source(), |inner| Some(inner));
    }
    false
}

/// An error's causes in one line; the HTTP library's own words ("client error (Connect)") are left out when there are others.
fn chain(error: &dyn std::error::Error) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        let word = cause.to_string();
        next = cause.source();
        if (word.starts_with("client error (") && next.is_some()) || words.last().is_some_and(|last| last.contains(&word)) {
            continue;
        }
        words.push(word);
    }
    if words.is_empty() { error.to_string() } else { words.join(": ") }
}

/// A URL for people: without the query, which may hold a signature or a token.
pub(crate) fn without_query(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    let (_, _) = (url.set_username(""), url.set_password(None));
    url.to_string()
}

#[cfg(test)]
mod tests {
    use super::Reach;

    #[test]
    fn addresses_by_reach() {
        let rows = [
            ("93.184.216.34", true, true),
            ("10.0.0.1", true, true),
            ("127.0.0.1", true, false),
            ("127.9.9.9", true, false),
            ("0.0.0.0", true, false),
            ("::1", true, false),
            ("::ffff:127.0.0.1", true, false),
            ("169.254.169.254", false, false),
            ("::ffff:169.254.169.254", false, false),
            ("100.100.100.200", false, false),
            ("fe80::1", false, false),
            ("fd00:ec2::254", false, false),
            ("2001:db8::1", true, true),
        ];
        for (address, not_metadata, nor_loopback) in rows {
            let parsed = address.parse().unwrap();
            assert!(Reach::Anywhere.allows(parsed));
            assert_eq!(Reach::NotMetadata.allows(parsed), not_metadata, "{address}");
            assert_eq!(Reach::NotMetadataNorLoopback.allows(parsed), nor_loopback, "{address}");
        }
    }
}
