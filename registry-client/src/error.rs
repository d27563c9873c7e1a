//! Hides how what went wrong is worded: which call, which repository, which host, what it answered, and what to try.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use kiln_oci::digest::Digest;
use serde::Deserialize;

use crate::credentials::CredentialError;

/// A failed call. `Display` says it all in one line (there is no deeper `source`): what was done, with which image, at
/// which host, and what that host answered.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    operation: Operation,
    kind: ErrorKind,
    /// What mirrors said before, in one line each.
    before: Vec<String>,
}

/// What was being done when a call failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// What was done: `pull manifest`, `push blob`.
    pub action: &'static str,
    /// To what: `docker.io/library/busybox:latest`, or `localhost:5000/app@sha256:…`; empty for a bare registry.
    pub subject: String,
    /// The registry as references name it: `docker.io`.
    pub registry: String,
    /// The host that was spoken to, a mirror's for instance: `registry-1.docker.io`.
    pub host: String,
}

/// An error of the caller's with its causes.
fn in_one_line(error: &std::io::Error) -> String {
    let (mut line, mut next) = (error.to_string(), std::error::Error::source(error));
    while let Some(cause) = next {
        line = format!("{line}: {cause}");
        next = cause.source();
    }
    line
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.action)?;
        if !self.subject.is_empty() {
            write!(f, " {}", self.subject)?;
        }
        if self.host == self.registry {
            write!(f, " at {}", self.host)
        } else {
            write!(f, " at {} (for {})", self.host, self.registry)
        }
    }
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// 401 although everything was tried that the credentials allow.
    #[error("{}: {answer}", if *.with_credentials { "not allowed with the stored credentials" } else { "not allowed without credentials" })]
    Unauthorized {
        /// What was answered.
        answer: Answer,
        /// Whether the user's credentials were used.
        with_credentials: bool,
    },
    /// 403.
    #[error("the registry denied access: {0}")]
    Denied(Answer),
    /// 404: no such repository, manifest or blob.
    #[error("not found: {0}")]
    NotFound(Answer),
    /// 429, to the last try.
    #[error("too many requests: {answer}")]
    RateLimited {
        /// What was answered.
        answer: Answer,
        /// The pause that the registry asked for.
        retry_after: Option<Duration>,
    },
    /// A host that the registry redirected to refused; credentials never go there.
    #[error("the registry redirected to {target}, which answered {answer}")]
    Elsewhere {
        /// The URL, without query.
        target: String,
        /// What it answered.
        answer: Answer,
    },
    /// Any other status than the protocol foresees here.
    #[error("the registry answered {0}")]
    Answered(Answer),
    /// A service that is no registry (a bucket, a cache service) refused.
    #[error("the service answered {0}")]
    Service(Answer),
    /// No connection came about.
    #[error("cannot reach {host}: {cause}")]
    Unreachable {
        /// Host and port.
        host: String,
        /// The chain of causes.
        cause: String,
    },
    /// The host is there, but its certificate isn't believed or it doesn't speak TLS.
    #[error("no TLS connection to {host}: {cause}")]
    Tls {
        /// Host and port.
        host: String,
        /// The chain of causes.
        cause: String,
    },
    /// The connection broke during the transfer.
    #[error("the connection broke after {received} bytes: {cause}")]
    Interrupted {
        /// How many bytes of the body had come or gone.
        received: u64,
        /// The chain of causes.
        cause: String,
    },
    /// No progress for the stall timeout.
    #[error("no progress for {} s", .0.as_secs())]
    Stalled(Duration),
    /// What came, or what the registry says it stored, has another digest.
    #[error("digest mismatch: {source_of} is {actual}, expected {expected}")]
    DigestMismatch {
        /// What was compared: `the content`, `the Docker-Content-Digest header`.
        source_of: &'static str,
        /// The digest that was asked for.
        expected: Digest,
        /// What it is, as text since a header may hold anything.
        actual: String,
    },
    /// More or fewer bytes than the descriptor says.
    #[error("size mismatch: {actual} bytes, expected {expected}")]
    SizeMismatch {
        /// The descriptor's size.
        expected: u64,
        /// How many came (reading stops soon after the first byte too many) or were announced.
        actual: u64,
    },
    /// A manifest, token or error document beyond its limit.
    #[error("the {what} is larger than {limit} bytes")]
    TooLarge {
        /// Which document.
        what: &'static str,
        /// The limit in bytes.
        limit: u64,
    },
    /// The document's own `mediaType`, its shape and the `Content-Type` don't agree, or it is of a kind that kiln doesn't take.
    #[error("refused manifest: {0}")]
    BadManifest(String),
    /// The answer breaks the protocol.
    #[error("the registry's answer makes no sense: {0}")]
    Protocol(String),
    /// A redirect that is not followed.
    #[error("refused redirect to {target}: {reason}")]
    Redirect {
        /// Where it pointed, without query.
        target: String,
        /// Why it isn't followed.
        reason: &'static str,
    },
    /// The token service that a registry named is not one that credentials may go to.
    #[error("refused token service `{realm}`: {reason}")]
    Realm {
        /// The URL, without query.
        realm: String,
        /// Why it is refused.
        reason: &'static str,
    },
    /// The token service didn't give a token.
    #[error("the token service {realm} answered {answer}")]
    Token {
        /// The token service's host.
        realm: String,
        /// What it answered.
        answer: Answer,
    },
    /// The credentials couldn't be read.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    /// The caller's sink or source failed.
    #[error("{}", in_one_line(.0))]
    Local(std::io::Error),
    /// A certificate file couldn't be used.
    #[error("certificate file {}: {cause}", .path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: String,
    },
    /// The settings forbid the name.
    #[error("names that begin with `{prefix}` are blocked in `registries.conf`")]
    Blocked {
        /// The rule's prefix.
        prefix: String,
    },
    /// A setting makes no sense.
    #[error("setting: {0}")]
    Setting(String),
    /// The owner set [`Options::cancelled`](crate::Options::cancelled).
    #[error("cancelled")]
    Cancelled,
}

/// What a server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The errors of the body, if it was the specification's error document.
    pub errors: Vec<SpecError>,
    /// The beginning of the body when it was something else, in printable characters.
    pub text: String,
}

/// One entry of the distribution specification's error document.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct SpecError {
    /// Such as `MANIFEST_UNKNOWN`.
    #[serde(default)]
    pub code: String,
    /// For people.
    #[serde(default, deserialize_with = "crate::error::text_or_null")]
    pub message: String,
}

fn text_or_null<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.unwrap_or_default())
}

impl Answer {
    /// Reads what it can from an error body.
    pub(crate) fn new(status: u16, body: &[u8]) -> Self {
        #[derive(Deserialize)]
        struct Document {
            errors: Vec<SpecError>,
        }
        let mut errors = Vec::new();
        let mut text = String::new();
        if let Ok(document) = serde_json::from_slice::<Document>(body) {
            errors = document.errors;
            for error in &mut errors {
                error.code = printable(&error.code, 64);
                error.message = printable(&error.message, 300);
            }
            errors.truncate(4);
        } else {
            text = printable(&String::from_utf8_lossy(&body[..body.len().min(4096)]), 200);
        }
        Self { status, errors, text }
    }

    /// The same of a service whose error documents this crate doesn't read as a registry's: a code and a message were found in it.
    pub(crate) fn told(status: u16, code: &str, message: &str) -> Self {
        let error = SpecError { code: printable(code, 64), message: printable(message, 300) };
        Self { status, errors: vec![error], text: String::new() }
    }

    /// Whether one of the errors has this code.
    pub fn has_code(&self, code: &str) -> bool {
        self.errors.iter().any(|error| error.code == code)
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.status)?;
        let reason = reqwest::StatusCode::from_u16(self.status).ok().and_then(|status| status.canonical_reason());
        if let Some(reason) = reason {
            write!(f, " {reason}")?;
        }
        let mut separator = " (";
        for error in &self.errors {
            write!(f, "{separator}{}", error.code)?;
            if !error.message.is_empty() {
                write!(f, ": {}", error.message)?;
            }
            separator = "; ";
        }
        if !self.text.is_empty() {
            write!(f, "{separator}{}", self.text)?;
            separator = "; ";
        }
        if separator == "; " { f.write_str(")") } else { Ok(()) }
    }
}

/// A server's text without control characters (a terminal may read it) and not longer than `limit` characters.
pub(crate) fn printable(text: &str, limit: usize) -> String {
    let mut out = String::new();
    for (count, c) in text.trim().chars().enumerate() {
        if count == limit {
            out.push('…');
            break;
        }
        out.push(if c.is_control() { ' ' } else { c });
    }
    out
}

impl Error {
    pub(crate) fn new(operation: Operation, kind: impl Into<ErrorKind>) -> Self {
        Self(Box::new(Inner { operation, kind: kind.into(), before: Vec::new() }))
    }

    /// The same error, after these hosts were asked in vain.
    pub(crate) fn after(mut self, passed: &[Error]) -> Self {
        self.0.before = passed.iter().map(|error| format!("mirror {}: {}", error.operation().host, error.kind())).collect();
        self
    }

    /// What was being done.
    pub fn operation(&self) -> &Operation {
        &self.0.operation
    }

    /// Why it failed, and no more of what was being done.
    pub(crate) fn into_kind(self) -> ErrorKind {
        self.0.kind
    }

    /// Why it failed.
    pub fn kind(&self) -> &ErrorKind {
        &self.0.kind
    }

    /// Whether there is no such repository, manifest or blob.
    pub fn is_not_found(&self) -> bool {
        matches!(self.kind(), ErrorKind::NotFound(_))
    }

    /// Whether the same call may succeed later without anyone changing anything. The call already tried as often as its
    /// [`RetryPolicy`](crate::RetryPolicy) allows.
    pub fn is_temporary(&self) -> bool {
        self.kind().is_temporary()
    }

    /// What the person could do, when that is known.
    pub fn hint(&self) -> Option<String> {
        let Operation { registry, host, .. } = self.operation();
        match self.kind() {
            ErrorKind::Unauthorized { with_credentials: false, .. } => {
                Some(format!("run `kiln login {}`", login_name(registry, host)))
            }
            ErrorKind::Unauthorized { .. } => {
                Some(format!("the stored credentials may be out of date: run `kiln login {}` again", login_name(registry, host)))
            }
            ErrorKind::Token { answer: Answer { status: 401 | 403, .. }, .. } => {
                Some(format!("check the user name and password: run `kiln login {}`", login_name(registry, host)))
            }
            ErrorKind::Denied(_) => Some(format!(
                "the repository may not exist or may be private: check its name, then `kiln login {}`",
                login_name(registry, host)
            )),
            ErrorKind::RateLimited { .. } if registry == "docker.io" => Some(
                "Docker Hub allows more to those who are logged in: run `kiln login`, or set a mirror for `docker.io`".to_owned(),
            ),
            ErrorKind::Unreachable { cause, .. } | ErrorKind::Tls { cause, .. } => connection_hint(host, cause),
            ErrorKind::Credentials(error) => error.hint(),
            ErrorKind::Service(answer) => service_hint(answer),
            _ => None,
        }
    }
}

fn service_hint(answer: &Answer) -> Option<String> {
    let has = |codes: &[&str]| codes.iter().any(|code| answer.has_code(code));
    if has(&["PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"]) {
        Some("the bucket may be in another region: set `region=`".to_owned())
    } else if has(&["InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"]) {
        Some("check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN".to_owned())
    } else if answer.status == 403 {
        Some("what is needed on the bucket: s3:ListBucket, s3:GetObject, and s3:PutObject to write".to_owned())
    } else if answer.status == 401 {
        Some("the token may have expired; ACTIONS_RUNTIME_TOKEN is only good for the job that it was given to".to_owned())
    } else {
        None
    }
}

fn login_name<'a>(registry: &'a str, host: &'a str) -> &'a str {
    if host == "registry-1.docker.io" { registry } else { host }
}

fn connection_hint(host: &str, cause: &str) -> Option<String> {
    if cause.contains("UnknownIssuer") || cause.contains("CaUsedAsEndEntity") {
        Some(format!("the certificate of {host} comes from a private authority: set `ca-file` for this registry in `kiln.toml`"))
    } else if cause.contains("InvalidContentType") || cause.contains("corrupt message") {
        Some(format!(
            "{host} may speak plain http: set `plain-http = true` for this registry in `kiln.toml` if you trust the network"
        ))
    } else if cause.contains("lookup") || cause.contains("dns error") {
        Some("check the spelling of the host name, DNS, and the proxy variables".to_owned())
    } else {
        None
    }
}

impl ErrorKind {
    /// As [`Error::is_temporary`].
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::RateLimited { .. } | Self::Unreachable { .. } | Self::Interrupted { .. } | Self::Stalled(_) => true,
            Self::Answered(answer) | Self::Service(answer) | Self::Token { answer, .. } => temporary_status(answer.status),
            _ => false,
        }
    }

    /// Whether another host that serves the same content should be asked: this one lacks it or can't serve now.
    pub(crate) fn is_another_hosts_turn(&self) -> bool {
        self.is_temporary() || matches!(self, Self::NotFound(_) | Self::Tls { .. })
    }
}

/// Whether a status says "not now" rather than "no".
pub(crate) fn temporary_status(status: u16) -> bool {
    matches!(status, 408 | 429 | 500..=599) && status != 501 && status != 505
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.operation, self.0.kind)?;
        for before in &self.0.before {
            write!(f, "; before that, {before}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}
