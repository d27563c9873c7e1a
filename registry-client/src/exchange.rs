//! Hides what one request of the protocol takes besides the request: credentials, redirects, and patience.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, DATE, HeaderMap, LOCATION, RETRY_AFTER};
use reqwest::{Method, StatusCode};
use url::Url;

use crate::auth::Auth;
use crate::budget::Budget;
use crate::challenge::Scopes;
use crate::endpoint::Endpoint;
use crate::error::{Answer, Error, ErrorKind, Operation, temporary_status};
use crate::transport::{Body, Incoming, Outgoing, Transport, without_query};
use crate::{Options, RetryPolicy, Warning};

/// A chain of redirects is followed this far.
const MAX_REDIRECTS: usize = 5;

/// What went wrong, before it is known whether it will be tried again.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) kind: ErrorKind,
    pub(crate) retry_after: Option<Duration>,
}

impl<K: Into<ErrorKind>> From<K> for Fault {
    fn from(kind: K) -> Self {
        Self { kind: kind.into(), retry_after: None }
    }
}

/// One operation with one host.
pub(crate) struct Exchange<'a> {
    pub(crate) options: &'a Options,
    pub(crate) transport: &'a Transport,
    pub(crate) auth: &'a Auth,
    pub(crate) endpoint: &'a Endpoint,
    /// The repository's path at this host; empty when it is about none.
    pub(crate) path: String,
    pub(crate) scopes: Scopes,
    pub(crate) operation: Operation,
    pub(crate) budget: &'a Budget,
}

/// A request without a streamed body.
#[derive(Clone)]
pub(crate) struct Ask {
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Ask {
    pub(crate) fn new(method: Method, url: Url) -> Self {
        Self { method, url, headers: HeaderMap::new(), body: Bytes::new() }
    }
}

impl<'a> Exchange<'a> {
    /// The same operation with other rights.
    pub(crate) fn with_scopes(&self, scopes: Scopes) -> Self {
        Self { path: self.path.clone(), scopes, operation: self.operation.clone(), ..*self }
    }

    /// The error that ends this operation.
    pub(crate) fn error(&self, kind: impl Into<ErrorKind>) -> Error {
        Error::new(self.operation.clone(), kind)
    }

    /// Sends a request until it has an answer that isn't temporary, or patience ends.
    pub(crate) fn patiently(&self, ask: &Ask) -> Result<Incoming<'a>, Error> {
        let mut patience = Patience::new(&self.options.retry);
        loop {
            let fault = match self.once(ask) {
                Ok(incoming) if temporary_status(incoming.status.as_u16()) => self.refusal(incoming),
                Ok(incoming) => return Ok(incoming),
                Err(fault) => fault,
            };
            self.pause(&mut patience, fault)?;
        }
    }

    /// Sends a request once; answers a challenge and follows redirects on the way.
    pub(crate) fn once(&self, ask: &Ask) -> Result<Incoming<'a>, Fault> {
        let mut url = ask.url.clone();
        let mut challenges = 0;
        let mut redirects = 0;
        loop {
            let body = if ask.body.is_empty() { Body::None } else { Body::Bytes(ask.body.clone()) };
            let (incoming, used) = self.send(ask.method.clone(), url.clone(), ask.headers.clone(), body)?;
            let status = incoming.status;
            let own = self.endpoint.is_origin_of(&url);
            // Twice: a kept token may have expired, and the fresh one may need a scope that only the second challenge names.
            if status == StatusCode::UNAUTHORIZED && own && challenges < 2 {
                challenges += 1;
                if self.challenged(&incoming, used.as_ref())? {
                    continue;
                }
            } else if let (301 | 302 | 303 | 307 | 308, Some(location)) = (status.as_u16(), incoming.header(LOCATION)) {
                let keeps_method = matches!(status.as_u16(), 307 | 308) && ask.body.is_empty();
                if ask.method == Method::GET || ask.method == Method::HEAD || keeps_method {
                    let next = resolve_location(&url, location)?;
                    if redirects == MAX_REDIRECTS {
                        return Err(ErrorKind::Redirect { target: without_query(&next), reason: "too many redirects" }.into());
                    }
                    redirects += 1;
                    url = next;
                    continue;
                }
            }
            return Ok(incoming);
        }
    }

    /// Sends one request, with the `Authorization` header only if it goes to the endpoint's own origin; tells which was used.
    pub(crate) fn send(
        &self,
        method: Method,
        url: Url,
        mut headers: HeaderMap,
        body: Body<'_>,
    ) -> Result<(Incoming<'a>, Option<reqwest::header::HeaderValue>), Fault> {
        let mut used = None;
        if self.endpoint.is_origin_of(&url) {
            used = self.auth.header(self)?;
            if let Some(header) = &used {
                headers.insert(AUTHORIZATION, header.clone());
            }
        }
        let trust = self.endpoint.trust_for(&url);
        let incoming = self.transport.send(Outgoing { method, url, headers, body, trust: &trust })?;
        if self.endpoint.is_origin_of(&incoming.url) {
            self.budget.note(&self.options.warnings, &self.endpoint.registry, &incoming.headers);
        }
        Ok((incoming, used))
    }

    /// Takes in a 401; says whether sending the request again makes sense.
    pub(crate) fn challenged(&self, incoming: &Incoming<'_>, used: Option<&reqwest::header::HeaderValue>) -> Result<bool, Fault> {
        self.auth.challenged(self, &incoming.headers, used)
    }

    /// What an answer means that is not the one hoped for.
    pub(crate) fn refusal(&self, mut incoming: Incoming<'_>) -> Fault {
        let retry_after = retry_after(&incoming);
        let answer = Answer::new(incoming.status.as_u16(), &incoming.excerpt(16 << 10));
        let own = self.endpoint.is_origin_of(&incoming.url);
        let kind = match answer.status {
            429 => ErrorKind::RateLimited { answer, retry_after },
            403 if answer.has_code("TOOMANYREQUESTS") => ErrorKind::RateLimited { answer, retry_after },
            404 => ErrorKind::NotFound(answer),
            401 if own => ErrorKind::Unauthorized { answer, with_credentials: self.auth.has_credentials(self) },
            403 if own => ErrorKind::Denied(answer),
            401 | 403 => ErrorKind::Elsewhere { target: without_query(&incoming.url), answer },
            _ => ErrorKind::Answered(answer),
        };
        Fault { kind, retry_after }
    }

    /// Waits before the next try; or ends with the fault when it won't pass or patience is at its end.
    pub(crate) fn pause(&self, patience: &mut Patience<'_>, fault: Fault) -> Result<(), Error> {
        let pause = if fault.kind.is_temporary() { patience.next(fault.retry_after) } else { None };
        let error = self.error(fault.kind);
        // Where another host may be asked, one that isn't there at all is not waited for.
        let hopeless = self.endpoint.mirror && matches!(error.kind(), ErrorKind::Unreachable { .. });
        let Some(pause) = pause.filter(|_| !hopeless) else { return Err(error) };
        self.options.warnings.say(&Warning::Retry { pause, cause: &error });
        self.transport.pause(pause).map_err(|kind| self.error(kind))
    }
}

/// Where a `Location` leads. From https it never leads to plain http, except that a registry behind a proxy which ends TLS may
/// not know that it is https; then its own host is meant.
pub(crate) fn resolve_location(from: &Url, location: &str) -> Result<Url, ErrorKind> {
    let mut to = from
        .join(location)
        .map_err(|_| ErrorKind::Protocol(format!("bad Location `{}`", crate::error::printable(location, 100))))?;
    if to.scheme() == "http" && from.scheme() == "https" {
        if to.host() != from.host() {
            return Err(ErrorKind::Redirect { target: without_query(&to), reason: "it leads from https to plain http" });
        }
        let (query, path) = (to.query().map(str::to_owned), to.path().to_owned());
        to = from.clone();
        to.set_path(&path);
        to.set_query(query.as_deref());
    }
    if !matches!(to.scheme(), "http" | "https") {
        return Err(ErrorKind::Redirect { target: without_query(&to), reason: "it is neither https nor http" });
    }
    Ok(to)
}

/// The pause that an answer asks for. A date counts from the answer's own `Date`, so that this machine's clock doesn't matter.
pub(crate) fn retry_after(incoming: &Incoming<'_>) -> Option<Duration> {
    let text = incoming.header(RETRY_AFTER)?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = httpdate::parse_http_date(text).ok()?;
    let now = httpdate::parse_http_date(incoming.header(DATE)?).ok()?;
    Some(until.duration_since(now).unwrap_or_default())
}

/// Counts tries and pauses.
pub(crate) struct Patience<'p> {
    policy: &'p RetryPolicy,
    tries: u32,
    paused: Duration,
    luck: RandomState,
}

impl<'p> Patience<'p> {
    pub(crate) fn new(policy: &'p RetryPolicy) -> Self {
        Self { policy, tries: 1, paused: Duration::ZERO, luck: RandomState::new() }
    }

    /// Begins anew: something came of the last try.
    pub(crate) fn renew(&mut self) {
        (self.tries, self.paused) = (1, Duration::ZERO);
    }

    /// The pause before the next try; `None` when there is none.
    pub(crate) fn next(&mut self, asked: Option<Duration>) -> Option<Duration> {
        let RetryPolicy { attempts, first_pause, longest_pause, total_pause } = *self.policy;
        if self.tries >= attempts {
            return None;
        }
        let full = first_pause.saturating_mul(1 << (self.tries - 1).min(20)).min(longest_pause);
        let own = full - full.mul_f64(self.fraction() / 2.0);
        // What the registry asks for is a minimum; the jitter goes on top, or all clients would be back at the same moment.
        let pause = asked.map_or(own, |asked| asked + own.min(Duration::from_secs(1)).mul_f64(self.fraction()));
        if self.paused + pause > total_pause {
            return None;
        }
        self.tries += 1;
        self.paused += pause;
        Some(pause)
    }

    /// A number from 0 up to 1, another one in each process and for each try.
    fn fraction(&self) -> f64 {
        f64::from((self.luck.hash_one((self.tries, self.paused)) >> 40) as u32) / f64::from(1_u32 << 24)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Patience, resolve_location};
    use crate::RetryPolicy;

    #[test]
    fn patience_is_bounded() {
        let policy = RetryPolicy::default();
        // What the registry asks for each time, and how many pauses come of it.
        for (asked, pauses) in [(None, 4), (Some(1), 4), (Some(50), 2), (Some(100), 1), (Some(121), 0), (Some(u64::MAX / 4), 0)] {
            let mut patience = Patience::new(&policy);
            let mut total = Duration::ZERO;
            let mut count = 0;
            while let Some(pause) = patience.next(asked.map(Duration::from_secs)) {
                assert!(pause >= Duration::from_secs(asked.unwrap_or(0)), "{pause:?} for {asked:?}");
                total += pause;
                count += 1;
            }
            assert_eq!(count, pauses, "{asked:?}");
            assert!(total <= policy.total_pause);
            patience.renew();
            assert!(patience.next(None).is_some());
        }
    }

    #[test]
    fn locations() {
        let rows = [
            ("https://r.io/v2/a/blobs/uploads/", "/v2/a/x?_state=a%3D%3D", Some("https://r.io/v2/a/x?_state=a%3D%3D")),
            ("https://r.io/v2/a/blobs/uploads/", "x", Some("https://r.io/v2/a/blobs/uploads/x")),
            ("https://r.io/v2/", "https://store.io/x?sig=1", Some("https://store.io/x?sig=1")),
            ("https://r.io:8443/v2/", "http://r.io/v2/x?y=z", Some("https://r.io:8443/v2/x?y=z")),
            ("https://r.io/v2/", "http://store.io/x", None),
            ("http://localhost:1/v2/", "http://store.io/x", Some("http://store.io/x")),
            ("https://r.io/v2/", "file:///etc/passwd", None),
            ("https://r.io/v2/", "http://[", None),
        ];
        for (from, location, expected) in rows {
            let found = resolve_location(&from.parse().unwrap(), location).ok().map(|url| url.to_string());
            assert_eq!(found.as_deref(), expected, "{location}");
        }
    }
}
