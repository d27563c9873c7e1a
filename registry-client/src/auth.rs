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
use crate::exchange::{Exchange, Fault};
use crate::transport::{Body, Incoming, Outgoing, Transport, without_query};

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
    /// Those of the whole registry; looked up once, when first asked for.
    credentials: Option<Login>,
    /// Those that are only for a repository, by its path; looked up once, too.
    repositories: HashMap<String, Login>,
    tokens: Vec<Token>,
}

type Login = Option<Credentials>;

impl Host {
    /// The credentials for a repository: its own or the registry's.
    fn login(&mut self, source: &Source, registry: &str, path: &str) -> Result<&mut Login, ErrorKind> {
        let store = match source {
            Source::Fixed(credentials) => return Ok(self.credentials.get_or_insert_with(|| Some(credentials.clone()))),
            Source::Store(store) => store,
        };
        if !self.repositories.contains_key(path) {
            self.repositories.insert(path.to_owned(), store.lookup_repository(registry, path)?);
        }
        if let Some(own) = self.repositories.get_mut(path).filter(|login| login.is_some()) {
            return Ok(own);
        }
        if self.credentials.is_none() {
            self.credentials = Some(store.lookup(registry)?);
        }
        Ok(self.credentials.get_or_insert_default())
    }
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
    pub(crate) fn header(&self, exchange: &Exchange<'_>) -> Result<Option<HeaderValue>, Fault> {
        let host = self.host(exchange.endpoint);
        let mut host = host.lock().unwrap_or_else(PoisonError::into_inner);
        match host.challenge {
            None => Ok(None),
            Some(_) => self.make_header(&mut host, exchange, &exchange.scopes),
        }
    }

    /// Takes in a 401 that answered a request with the header `used`. Says whether a repeated request would have another one.
    pub(crate) fn challenged(
        &self,
        exchange: &Exchange<'_>,
        answer: &HeaderMap,
        used: Option<&HeaderValue>,
    ) -> Result<bool, Fault> {
        let host = self.host(exchange.endpoint);
        // Held while a token is fetched, so that many threads make one token request.
        let mut host = host.lock().unwrap_or_else(PoisonError::into_inner);
        host.tokens.retain(|token| Some(&token.header) != used);
        let headers = answer.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let Some(mut challenge) = Challenge::choose(headers) else { return Ok(false) };
        // What the registry asks for may be more than was expected. It is this request's need and no later one's.
        let wanted = match &mut challenge {
            Challenge::Bearer { scope, .. } => exchange.scopes.union(&std::mem::take(scope)),
            Challenge::Basic => Scopes::default(),
        };
        host.challenge = Some(challenge);
        let next = self.make_header(&mut host, exchange, &wanted)?;
        Ok(next.is_some() && next.as_ref() != used)
    }

    /// Whether there are credentials of the user's for the operation, as far as they were looked for.
    pub(crate) fn has_credentials(&self, exchange: &Exchange<'_>) -> bool {
        let host = self.host(exchange.endpoint);
        let host = host.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(host.credentials, Some(Some(_))) || matches!(host.repositories.get(&exchange.path), Some(Some(_)))
    }

    fn host(&self, endpoint: &Endpoint) -> Arc<Mutex<Host>> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        // A host that two registries have as their mirror is the same host, but not the same as itself over plain http.
        hosts.entry(format!("{} {}", endpoint.base, endpoint.login)).or_default().clone()
    }

    fn make_header(&self, host: &mut Host, exchange: &Exchange<'_>, scopes: &Scopes) -> Result<Option<HeaderValue>, Fault> {
        let endpoint = exchange.endpoint;
        let login = host.login(&self.source, &endpoint.login, &exchange.path)?.clone();
        match (&host.challenge, &login) {
            (None, _) | (Some(Challenge::Basic), None | Some(Credentials::IdentityToken(_))) => Ok(None),
            (Some(_), Some(Credentials::RegistryToken(token))) => Ok(Some(secret(&format!("Bearer {token}"))?)),
            (Some(Challenge::Basic), Some(Credentials::Password { username, password })) => Ok(Some(basic(username, password)?)),
            (Some(Challenge::Bearer { realm, service, .. }), credentials) => {
                let now = Instant::now();
                host.tokens.retain(|token| token.stale > now);
                if let Some(token) = host.tokens.iter().find(|token| token.scopes.contain(scopes)) {
                    return Ok(Some(token.header.clone()));
                }
                let realm = check_realm(endpoint, realm, matches!(credentials, Some(Credentials::IdentityToken(_))))?;
                let service = TokenService { transport: exchange.transport, endpoint, realm, service: service.as_deref() };
                let Grant { token, life, refresh } = service.fetch(credentials.as_ref(), scopes)?;
                let header = secret(&format!("Bearer {token}"))?;
                // A tenth of its life before the end, a token is no longer sent: the request may take a while to be read.
                let stale = now + life - life / 10;
                host.tokens.push(Token { scopes: scopes.clone(), header: header.clone(), stale });
                if let (Some(Credentials::IdentityToken(_)), Some(refresh)) = (&login, refresh) {
                    // Some services take each refresh token once (RFC 6749 §6).
                    *host.login(&self.source, &endpoint.login, &exchange.path)? = Some(Credentials::IdentityToken(refresh));
                }
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

/// Decides whether credentials may go to the URL that a registry named (CVE-2020-15157 and its kin). An identity token is good
/// for long and for everything, so it goes only where its registry may be believed to be at home.
fn check_realm(endpoint: &Endpoint, realm: &str, identity: bool) -> Result<Url, ErrorKind> {
    let refuse = |reason| {
        let shown = Url::parse(realm).map_or_else(|_| crate::error::printable(realm, 100), |url| without_query(&url));
        ErrorKind::Realm { realm: shown, reason }
    };
    let url = Url::parse(realm).map_err(|_| refuse("it is not a URL"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refuse("it has a user name in it"));
    }
    if identity && !is_at_home(endpoint, &url) {
        return Err(refuse("it is of another domain than the registry, and an identity token is kept for that one"));
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

/// Whether a token service is the registry's host, has a domain in common with it, or is the one that the settings name for it.
fn is_at_home(endpoint: &Endpoint, url: &Url) -> bool {
    let named = |host: &str| match host.rsplit_once(':') {
        Some((name, port)) if port.parse::<u16>().is_ok() => {
            url.host_str() == Some(name) && url.port_or_known_default() == port.parse().ok()
        }
        _ => url.host_str() == Some(host),
    };
    url.host() == endpoint.base.host()
        || (is_loopback(url) && is_loopback(&endpoint.base))
        || endpoint.token_service.as_deref().is_some_and(named)
        || match (url.domain().and_then(site), endpoint.base.domain().and_then(site)) {
            (Some(one), Some(other)) => one == other,
            _ => false,
        }
}

/// What somebody registered: `example.com` of `auth.example.com`, `example.co.uk` of `auth.example.co.uk`.
fn site(domain: &str) -> Option<String> {
    let labels: Vec<&str> = domain.split('.').collect();
    let count = match labels[..] {
        [.., second, first] if first.len() == 2 && second.len() <= 3 => 3,
        _ => 2,
    };
    (labels.len() >= count).then(|| labels[labels.len() - count..].join(".").to_ascii_lowercase())
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
    refresh_token: Option<String>,
    expires_in: Option<f64>,
}

/// What a token service gave.
struct Grant {
    token: String,
    life: Duration,
    /// A refresh token in place of the one that was used.
    refresh: Option<String>,
}

impl TokenService<'_> {
    /// Gets a token: with a refresh token by `POST` (OAuth2), else by `GET`, and by `POST` where a service knows only that.
    fn fetch(&self, credentials: Option<&Credentials>, scopes: &Scopes) -> Result<Grant, Fault> {
        match credentials {
            Some(Credentials::IdentityToken(refresh)) => {
                self.read(self.post(&[("grant_type", "refresh_token"), ("refresh_token", refresh)], scopes)?)
            }
            Some(Credentials::Password { username, password }) => {
                let incoming = self.get(Some(basic(username, password)?), scopes)?;
                if matches!(incoming.status.as_u16(), 404 | 405) {
                    let grant = [("grant_type", "password"), ("username", username), ("password", password)];
                    return self.read(self.post(&grant, scopes)?);
                }
                self.read(incoming)
            }
            None | Some(Credentials::RegistryToken(_)) => self.read(self.get(None, scopes)?),
        }
    }

    fn get(&self, authorization: Option<HeaderValue>, scopes: &Scopes) -> Result<Incoming<'_>, Fault> {
        let mut url = self.realm.clone();
        if self.service.is_some() || scopes.iter().next().is_some() {
            let mut query = url.query_pairs_mut();
            if let Some(service) = self.service {
                query.append_pair("service", service);
            }
            for scope in scopes.iter() {
                query.append_pair("scope", &scope);
            }
        }
        let headers = authorization.map(|value| (AUTHORIZATION, value)).into_iter().collect();
        self.send(Method::GET, url, headers, Body::None)
    }

    fn post(&self, grant: &[(&str, &str)], scopes: &Scopes) -> Result<Incoming<'_>, Fault> {
        let mut form = Serializer::new(String::new());
        form.extend_pairs(grant).append_pair("client_id", CLIENT_ID).append_pair("scope", &scopes.to_string());
        if let Some(service) = self.service {
            form.append_pair("service", service);
        }
        let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, kind)]);
        self.send(Method::POST, self.realm.clone(), headers, Body::Bytes(Bytes::from(form.finish())))
    }

    fn send(&self, method: Method, url: Url, headers: HeaderMap, body: Body<'_>) -> Result<Incoming<'_>, Fault> {
        let mut trust = self.endpoint.trust_for(&url);
        // A certificate that need not be checked at the registry is no reason to show a password to any other host.
        trust.skip_verify &= self.endpoint.is_origin_of(&url);
        Ok(self.transport.send(Outgoing { method, url, headers, body, trust: &trust })?)
    }

    fn read(&self, mut incoming: Incoming<'_>) -> Result<Grant, Fault> {
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
        let life = life.unwrap_or(DEFAULT_LIFE).min(Duration::from_secs(24 * 3600));
        Ok(Grant { token, life, refresh: answer.refresh_token.filter(|token| !token.is_empty()) })
    }
}

#[cfg(test)]
mod tests {
    use super::check_realm;
    use crate::endpoint::Endpoint;
    use crate::{Options, RegistryOptions};

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
            assert_eq!(check_realm(&endpoint, realm, false).is_ok(), allowed, "{realm} named by {registry}");
        }
    }

    /// C71: an identity token stays at home.
    #[test]
    fn realms_that_identity_tokens_may_go_to() {
        let rows = [
            ("docker.io", None, "https://auth.docker.io/token", true),
            ("registry.gitlab.com", None, "https://gitlab.com/jwt/auth", true),
            ("ghcr.io", None, "https://ghcr.io/token", true),
            ("ghcr.io", None, "https://ghcr.io:8443/token", true),
            ("ghcr.io", None, "https://evil.io/token", false),
            ("reg.shop.co.uk", None, "https://auth.shop.co.uk/token", true),
            ("reg.shop.co.uk", None, "https://evil.co.uk/token", false),
            ("127.0.0.1:5000", None, "http://localhost:5001/token", true),
            ("127.0.0.1:5000", None, "https://auth.example/token", false),
            ("10.0.0.1:5000", None, "https://10.0.0.2/token", false),
            ("reg.example", Some("sso.example.net"), "https://sso.example.net/token", true),
            ("reg.example", Some("sso.example.net:8443"), "https://sso.example.net/token", false),
            ("reg.example", Some("sso.example.net:8443"), "https://sso.example.net:8443/token", true),
        ];
        for (registry, named, realm, allowed) in rows {
            let mut options = Options::default();
            let settings = RegistryOptions { token_service: named.map(str::to_owned), ..RegistryOptions::default() };
            options.registries.insert(registry.to_owned(), settings);
            let endpoint = Endpoint::registry(&options, registry).unwrap();
            assert_eq!(check_realm(&endpoint, realm, true).is_ok(), allowed, "{realm} named by {registry}");
        }
    }
}
