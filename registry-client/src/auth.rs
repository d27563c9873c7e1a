//! Hides how a registry is convinced: which scheme it asked for, the tokens that are still good, and where they come from
//! (distribution's `spec/auth/token.md` and `spec/auth/oauth.md`).

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use reqwest::Method;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use serde::Deserialize;
use url::Url;
use url::form_urlencoded::Serializer;

use crate::challenge::{Challenge, Scopes};
use crate::credentials::{CredentialStore, Credentials};
use crate::endpoint::{Endpoint, is_loopback};
use crate::error::{Answer, ErrorKind};
use crate::exchange::Fault;
use crate::transport::{Body, Outgoing, Transport, without_query};

/// The life of a token whose service doesn't say (spec/auth/token.md).
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
/// Cloud registries' tokens are some kilobytes.
const TOKEN_LIMIT: u64 = 1 << 20;
/// The name that kiln gives itself at token services.
const CLIENT_ID: &str = "kiln";

/// What is known about convincing each host.
pub(crate) struct Auth {
    source: Source,
    hosts: Mutex<HashMap<String, Arc<Mutex<Host>>>>,
}

enum Source {
    Store(CredentialStore),
    Fixed(Credentials),
}

#[derive(Default)]
struct Host {
    challenge: Option<Challenge>,
    /// Looked up once, when first asked for.
    credentials: Option<Option<Credentials>>,
    tokens: Vec<Token>,
}

struct Token {
    scopes: Scopes,
    header: HeaderValue,
    stale: Instant,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Auth(..)")
    }
}

impl Auth {
    /// Takes credentials from a store.
    pub(crate) fn new(store: CredentialStore) -> Self {
        Self { source: Source::Store(store), hosts: Mutex::default() }
    }

    /// Takes these credentials for whichever host is asked.
    pub(crate) fn fixed(credentials: Credentials) -> Self {
        Self { source: Source::Fixed(credentials), hosts: Mutex::default() }
    }

    /// The `Authorization` header for a request to the endpoint's own origin; `None` as long as it never asked for one.
    pub(crate) fn header(
        &self,
        transport: &Transport,
        endpoint: &Endpoint,
        scopes: &Scopes,
    ) -> Result<Option<HeaderValue>, Fault> {
        let host = self.host(endpoint);
        let mut host = host.lock().unwrap_or_else(PoisonError::into_inner);
        match host.challenge {
            None => Ok(None),
            Some(_) => self.make_header(&mut host, transport, endpoint, scopes),
        }
    }

    /// Takes in a 401 that answered a request with the header `used`. Says whether a repeated request would have another one.
    pub(crate) fn challenged(
        &self,
        transport: &Transport,
        endpoint: &Endpoint,
        scopes: &Scopes,
        answer: &HeaderMap,
        used: Option<&HeaderValue>,
    ) -> Result<bool, Fault> {
        let host = self.host(endpoint);
        // Held while a token is fetched, so that many threads make one token request.
        let mut host = host.lock().unwrap_or_else(PoisonError::into_inner);
        host.tokens.retain(|token| Some(&token.header) != used);
        let headers = answer.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let Some(mut challenge) = Challenge::choose(headers) else { return Ok(false) };
        // What the registry asks for may be more than was expected. It is this request's need and no later one's.
        let wanted = match &mut challenge {
            Challenge::Bearer { scope, .. } => scopes.union(&std::mem::take(scope)),
            Challenge::Basic => Scopes::default(),
        };
        host.challenge = Some(challenge);
        let next = self.make_header(&mut host, transport, endpoint, &wanted)?;
        Ok(next.is_some() && next.as_ref() != used)
    }

    /// Whether there are credentials of the user's for the endpoint, as far as they were looked for.
    pub(crate) fn has_credentials(&self, endpoint: &Endpoint) -> bool {
        let host = self.host(endpoint);
        let host = host.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(host.credentials, Some(Some(_)))
    }

    fn host(&self, endpoint: &Endpoint) -> Arc<Mutex<Host>> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        // A host that two registries have as their mirror is the same host, but not the same as itself over plain http.
        hosts.entry(format!("{} {}", endpoint.base, endpoint.login)).or_default().clone()
    }

    fn make_header(
        &self,
        host: &mut Host,
        transport: &Transport,
        endpoint: &Endpoint,
        scopes: &Scopes,
    ) -> Result<Option<HeaderValue>, Fault> {
        if host.credentials.is_none() {
            let found = match &self.source {
                Source::Fixed(credentials) => Some(credentials.clone()),
                Source::Store(store) => store.lookup(&endpoint.login).map_err(ErrorKind::from)?,
            };
            host.credentials = Some(found);
        }
        let credentials = host.credentials.as_ref().and_then(Option::as_ref);
        match (&host.challenge, credentials) {
            (None, _) | (Some(Challenge::Basic), None | Some(Credentials::IdentityToken(_))) => Ok(None),
            (Some(_), Some(Credentials::RegistryToken(token))) => Ok(Some(secret(&format!("Bearer {token}"))?)),
            (Some(Challenge::Basic), Some(Credentials::Password { username, password })) => Ok(Some(basic(username, password)?)),
            (Some(Challenge::Bearer { realm, service, .. }), credentials) => {
                let now = Instant::now();
                host.tokens.retain(|token| token.stale > now);
                if let Some(token) = host.tokens.iter().find(|token| token.scopes.contain(scopes)) {
                    return Ok(Some(token.header.clone()));
                }
                let service =
                    TokenService { transport, endpoint, realm: check_realm(endpoint, realm)?, service: service.as_deref() };
                let (token, life) = service.fetch(credentials, scopes)?;
                let header = secret(&format!("Bearer {token}"))?;
                // A tenth of its life before the end, a token is no longer sent: the request may take a while to be read.
                let stale = now + life - life / 10;
                host.tokens.push(Token { scopes: scopes.clone(), header: header.clone(), stale });
                Ok(Some(header))
            }
        }
    }
}

fn basic(username: &str, password: &str) -> Result<HeaderValue, ErrorKind> {
    secret(&format!("Basic {}", BASE64_STANDARD.encode(format!("{username}:{password}"))))
}

fn secret(text: &str) -> Result<HeaderValue, ErrorKind> {
    let mut value = HeaderValue::from_str(text)
        .map_err(|_| ErrorKind::Protocol("the token has characters that no header can have".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Decides whether credentials may go to the URL that a registry named (CVE-2020-15157 and its kin).
fn check_realm(endpoint: &Endpoint, realm: &str) -> Result<Url, ErrorKind> {
    let refuse = |reason| {
        let shown = Url::parse(realm).map_or_else(|_| crate::error::printable(realm, 100), |url| without_query(&url));
        ErrorKind::Realm { realm: shown, reason }
    };
    let url = Url::parse(realm).map_err(|_| refuse("it is not a URL"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refuse("it has a user name in it"));
    }
    match url.scheme() {
        "https" => Ok(url),
        "http" if endpoint.base.scheme() != "http" => Err(refuse("it is plain http while the registry is https")),
        // That the registry may be spoken to without TLS says nothing about some other host across the network.
        "http" if url.host() != endpoint.base.host() && !is_loopback(&url) => {
            Err(refuse("it is plain http at another host than the registry"))
        }
        "http" => Ok(url),
        _ => Err(refuse("it is neither https nor http")),
    }
}

struct TokenService<'a> {
    transport: &'a Transport,
    endpoint: &'a Endpoint,
    realm: Url,
    service: Option<&'a str>,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<f64>,
}

impl TokenService<'_> {
    /// Gets a token and its life.
    fn fetch(&self, credentials: Option<&Credentials>, scopes: &Scopes) -> Result<(String, Duration), Fault> {
        let mut url = self.realm.clone();
        let mut headers = HeaderMap::new();
        let (method, body) = if let Some(Credentials::IdentityToken(refresh)) = credentials {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
            let mut form = Serializer::new(String::new());
            form.append_pair("grant_type", "refresh_token").append_pair("refresh_token", refresh);
            form.append_pair("client_id", CLIENT_ID).append_pair("scope", &scopes.to_string());
            if let Some(service) = self.service {
                form.append_pair("service", service);
            }
            (Method::POST, Body::Bytes(Bytes::from(form.finish())))
        } else {
            if let Some(Credentials::Password { username, password }) = credentials {
                headers.insert(AUTHORIZATION, basic(username, password)?);
            }
            if self.service.is_some() || scopes.iter().next().is_some() {
                let mut query = url.query_pairs_mut();
                if let Some(service) = self.service {
                    query.append_pair("service", service);
                }
                for scope in scopes.iter() {
                    query.append_pair("scope", &scope);
                }
            }
            (Method::GET, Body::None)
        };
        let mut trust = self.endpoint.trust_for(&url);
        // A certificate that need not be checked at the registry is no reason to show a password to any other host.
        trust.skip_verify &= self.endpoint.is_origin_of(&url);
        let mut incoming = self.transport.send(Outgoing { method, url, headers, body, trust: &trust })?;
        if !incoming.status.is_success() {
            let retry_after = crate::exchange::retry_after(&incoming);
            let answer = Answer::new(incoming.status.as_u16(), &incoming.excerpt(16 << 10));
            return Err(Fault {
                kind: ErrorKind::Token { realm: self.realm.host_str().unwrap_or_default().to_owned(), answer },
                retry_after,
            });
        }
        let body = incoming.body("token", TOKEN_LIMIT)?;
        // The parser's message could quote the token.
        let answer: TokenAnswer = serde_json::from_slice(&body)
            .map_err(|_| ErrorKind::Protocol("the token service's answer is not a token".to_owned()))?;
        let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty());
        let token = token.ok_or_else(|| ErrorKind::Protocol("the token service's answer has no token".to_owned()))?;
        let life = answer.expires_in.filter(|life| *life >= 1.0).and_then(|life| Duration::try_from_secs_f64(life).ok());
        Ok((token, life.unwrap_or(DEFAULT_LIFE).min(Duration::from_secs(24 * 3600))))
    }
}

#[cfg(test)]
mod tests {
    use super::check_realm;
    use crate::Options;
    use crate::endpoint::Endpoint;

    #[test]
    fn realms_that_credentials_may_go_to() {
        let rows = [
            ("ghcr.io", "https://ghcr.io/token", true),
            ("ghcr.io", "https://auth.elsewhere.example/token?x=y", true),
            ("ghcr.io", "http://ghcr.io/token", false),
            ("ghcr.io", "https://user:pw@ghcr.io/token", false),
            ("ghcr.io", "file:///etc/passwd", false),
            ("ghcr.io", "/token", false),
            ("127.0.0.1:5000", "http://127.0.0.1:5001/token", true),
            ("127.0.0.1:5000", "http://localhost:5001/token", true),
            ("127.0.0.1:5000", "http://auth.example/token", false),
            ("127.0.0.1:5000", "https://auth.example/token", true),
        ];
        for (registry, realm, allowed) in rows {
            let endpoint = Endpoint::registry(&Options::default(), registry).unwrap();
            assert_eq!(check_realm(&endpoint, realm).is_ok(), allowed, "{realm} named by {registry}");
        }
    }
}
