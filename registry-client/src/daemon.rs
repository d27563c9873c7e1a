//! Hides HTTP with a daemon that keeps images (dockerd, podman): where it listens, requests of its API, answers with a status.
//!
//! What the requests mean is the caller's business; this module only knows how they travel.

use std::fmt;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use reqwest::Method;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use url::Url;

use crate::Options;
use crate::error::{ErrorKind, printable};
use crate::transport::{Body, Incoming, Outgoing, Reach, Transport, Trust};

/// No list of images is longer.
const MAX_ANSWER: u64 = 64 << 20;
/// How much of what a daemon says about a failure is kept.
const MAX_MESSAGE: usize = 2000;
/// A daemon says nothing while it unpacks an image, which takes as long as it takes.
const PATIENCE: Duration = Duration::from_secs(900);

/// Where a daemon listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DaemonAddress {
    /// A socket in the file system.
    Socket(PathBuf),
    /// A host and its port.
    Host {
        /// `host:port`.
        authority: String,
        /// Whether it speaks TLS, and with which certificates.
        tls: Option<DaemonTls>,
    },
}

/// The certificates for a daemon that speaks TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DaemonTls {
    /// A PEM file with authorities to believe.
    pub ca_file: Option<PathBuf>,
    /// PEM files with a certificate that is shown, and its key.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
    /// Believe any certificate.
    pub skip_verify: bool,
}

impl DaemonAddress {
    /// Reads an address as `DOCKER_HOST` and `CONTAINER_HOST` have it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(format!("`{text}` has no scheme: write `unix:///PATH` or `tcp://HOST:PORT`"));
        };
        let tls = match scheme {
            "unix" if rest.starts_with('/') => return Ok(Self::Socket(rest.into())),
            "unix" => return Err(format!("`{text}` names no absolute path")),
            "tcp" | "http" => None,
            "https" => Some(DaemonTls::default()),
            "ssh" => return Err(format!("`{text}`: kiln doesn't start ssh; forward the socket with `ssh -L` and name that one")),
            _ => return Err(format!("`{text}` can't be used: it is neither a socket (`unix://`) nor a host (`tcp://`)")),
        };
        let authority = rest.trim_end_matches('/');
        let url = Url::parse(&format!("http://{authority}/")).map_err(|error| format!("`{text}`: {error}"))?;
        if url.path() != "/" || url.username() != "" || url.query().is_some() {
            return Err(format!("`{text}` is more than a host and a port"));
        }
        let port = if tls.is_some() { 2376 } else { 2375 };
        let host = url.host_str().unwrap_or_default();
        // The HTTP library leaves out a port that is its scheme's usual one.
        let port = url.port().unwrap_or(if authority.ends_with(":80") { 80 } else { port });
        Ok(Self::Host { authority: format!("{host}:{port}"), tls })
    }
}

impl fmt::Display for DaemonAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => write!(f, "unix://{}", path.display()),
            Self::Host { authority, tls: None } => write!(f, "tcp://{authority}"),
            Self::Host { authority, tls: Some(_) } => write!(f, "tcp://{authority} (TLS)"),
        }
    }
}

/// Why a request to a daemon failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DaemonError {
    /// No connection came about.
    #[error("cannot reach the daemon at {address}: {cause}")]
    Unreachable {
        /// Where.
        address: String,
        /// Why.
        cause: String,
    },
    /// The connection broke, or what was to be sent could not be read.
    #[error("cannot {action} the daemon at {address}: {cause}")]
    Broken {
        /// What was being done: `send an image to`.
        action: &'static str,
        /// Where.
        address: String,
        /// Why.
        cause: Box<ErrorKind>,
    },
    /// It answered with a status that is no success, or said that it failed.
    #[error("the daemon at {address} refuses to {action}: {message}")]
    Refused {
        /// What it was asked: `load an image`.
        action: &'static str,
        /// Where.
        address: String,
        /// The status; 200 when the failure came later.
        status: u16,
        /// What it said.
        message: String,
    },
}

/// A daemon. Nothing is connected before the first request.
#[derive(Debug)]
pub struct Daemon {
    address: DaemonAddress,
    base: Url,
    transport: Transport,
    trust: Trust,
}

/// What a daemon answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DaemonAnswer {
    /// The headers, their names in lower case.
    pub headers: Vec<(String, String)>,
    /// The whole body.
    pub body: Vec<u8>,
}

impl DaemonAnswer {
    /// A header's text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

impl Daemon {
    /// The daemon at `address`; `options` say how long to wait, through which proxies, and what cancels a request.
    ///
    /// # Errors
    /// The address is none.
    pub fn new(address: DaemonAddress, options: &Options) -> Result<Self, DaemonError> {
        let (base, trust) = match &address {
            DaemonAddress::Socket(_) => (Url::parse("http://localhost/"), Trust::default()),
            DaemonAddress::Host { authority, tls } => {
                let scheme = if tls.is_some() { "https" } else { "http" };
                let tls = tls.clone().unwrap_or_default();
                let trust = Trust {
                    ca_file: tls.ca_file,
                    client_certificate: tls.client_certificate,
                    skip_verify: tls.skip_verify,
                    ..Trust::default()
                };
                (Url::parse(&format!("{scheme}://{authority}/")), trust)
            }
        };
        let base = base.map_err(|e| DaemonError::Unreachable { address: address.to_string(), cause: e.to_string() })?;
        let options = Options { stall_timeout: PATIENCE, ..options.clone() };
        let transport = match &address {
            DaemonAddress::Socket(path) => Transport::through(&options, path.clone()),
            DaemonAddress::Host { .. } => Transport::new(&options),
        };
        Ok(Self { address, base, transport, trust })
    }

    /// Where it is.
    pub fn address(&self) -> &DaemonAddress {
        &self.address
    }

    /// Asks for something: `_ping`, `images/json?all=1`. `action` is what a failure calls it.
    ///
    /// # Errors
    /// As [`post`](Self::post).
    pub fn get(&self, action: &'static str, path: &str) -> Result<DaemonAnswer, DaemonError> {
        self.exchange(action, Method::GET, path, Body::None)
    }

    /// Sends nothing but a request to do something.
    ///
    /// # Errors
    /// It can't be reached, the connection broke, or it refused.
    pub fn post(&self, action: &'static str, path: &str) -> Result<DaemonAnswer, DaemonError> {
        self.exchange(action, Method::POST, path, Body::Bytes(Bytes::new()))
    }

    /// Sends an archive of exactly `len` bytes; `progress` is told how many have gone.
    ///
    /// # Errors
    /// As [`post`](Self::post).
    pub fn upload(
        &self,
        action: &'static str,
        path: &str,
        (source, len): (Box<dyn Read + Send>, u64),
        progress: &dyn Fn(u64),
    ) -> Result<DaemonAnswer, DaemonError> {
        self.exchange(action, Method::POST, path, Body::Stream { source, len, progress })
    }

    /// That it said no, in words of an answer's body.
    pub fn refused(&self, action: &'static str, status: u16, message: &str) -> DaemonError {
        DaemonError::Refused { action, address: self.address.to_string(), status, message: printable(message, MAX_MESSAGE) }
    }

    fn exchange(&self, action: &'static str, method: Method, path: &str, body: Body<'_>) -> Result<DaemonAnswer, DaemonError> {
        let broken = |cause: ErrorKind| match cause {
            ErrorKind::Unreachable { cause, .. } | ErrorKind::Tls { cause, .. } => {
                DaemonError::Unreachable { address: self.address.to_string(), cause }
            }
            cause => DaemonError::Broken { action, address: self.address.to_string(), cause: Box::new(cause) },
        };
        let url = self.base.join(path).map_err(|error| broken(ErrorKind::Protocol(error.to_string())))?;
        let mut headers = HeaderMap::new();
        if matches!(body, Body::Stream { .. }) {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-tar"));
        }
        let outgoing = Outgoing { method, url, headers, body, trust: &self.trust };
        let mut incoming = self.transport.send(outgoing).map_err(broken)?;
        if !incoming.status.is_success() {
            let message = message(&mut incoming);
            return Err(self.refused(action, incoming.status.as_u16(), &message));
        }
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let headers = incoming.headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect();
        let body = incoming.body("daemon's answer", MAX_ANSWER).map_err(broken)?;
        Ok(DaemonAnswer { headers, body })
    }
}

/// What a daemon says of its failure: `{"message": …}`, and else whatever came.
fn message(incoming: &mut Incoming<'_>) -> String {
    #[derive(serde::Deserialize)]
    struct Document {
        message: String,
    }
    let body = incoming.excerpt(64 << 10);
    match serde_json::from_slice::<Document>(&body) {
        Ok(document) => document.message,
        Err(_) if body.is_empty() => incoming.status.to_string(),
        Err(_) => format!("{}: {}", incoming.status, String::from_utf8_lossy(&body)),
    }
}

impl Default for Trust {
    fn default() -> Self {
        Self { ca_file: None, client_certificate: None, certs: Vec::new(), skip_verify: false, reach: Reach::Anywhere }
    }
}

#[cfg(test)]
mod tests {
    use super::DaemonAddress;

    #[test]
    fn addresses() {
        let rows = [
            ("unix:///var/run/docker.sock", Ok("unix:///var/run/docker.sock")),
            ("unix://relative", Err("absolute")),
            ("tcp://127.0.0.1:2375", Ok("tcp://127.0.0.1:2375")),
            ("tcp://daemon", Ok("tcp://daemon:2375")),
            ("tcp://daemon:80", Ok("tcp://daemon:80")),
            ("http://[::1]:2375/", Ok("tcp://[::1]:2375")),
            ("https://daemon", Ok("tcp://daemon:2376 (TLS)")),
            ("ssh://me@host", Err("ssh -L")),
            ("tcp://me@host", Err("more than a host")),
            ("npipe:////./pipe/docker_engine", Err("neither a socket")),
            ("/var/run/docker.sock", Err("no scheme")),
        ];
        for (text, want) in rows {
            match (DaemonAddress::parse(text), want) {
                (Ok(found), Ok(want)) => assert_eq!(found.to_string(), want, "{text}"),
                (Err(said), Err(want)) => assert!(said.contains(want), "{text}: {said}"),
                (found, want) => panic!("{text}: {found:?}, not {want:?}"),
            }
        }
    }
}
