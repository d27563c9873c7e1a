//! Hides which hosts serve a repository and at which addresses: mirrors, Docker Hub's other name, plain http on loopback. Pure.

use url::{Host, Url};

use crate::error::{ErrorKind, Operation};
use crate::transport::{Reach, Trust};
use crate::{Mirror, Options, RegistryOptions};

/// Docker Hub as references name it, and the host that serves it.
const HUB: (&str, &str) = ("docker.io", "registry-1.docker.io");

/// A host that serves a registry's repositories.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    /// `https://host[:port]/v2/`.
    pub(crate) base: Url,
    /// The registry as references name it.
    pub(crate) registry: String,
    /// The host as people name it: a mirror's location, or `registry-1.docker.io`.
    pub(crate) host: String,
    /// The name that its credentials are kept under.
    pub(crate) login: String,
    /// What mirrors have before each repository's path; empty, or ends with a slash.
    prefix: String,
    pub(crate) mirror: bool,
    /// Where its identity tokens may go besides.
    pub(crate) token_service: Option<String>,
    pub(crate) trust: Trust,
}

impl Endpoint {
    /// The registry itself.
    pub(crate) fn registry(options: &Options, registry: &str) -> Result<Self, ErrorKind> {
        let settings = options.registries.get(registry);
        let host = if registry == HUB.0 { HUB.1 } else { registry };
        let base = base(host, settings.and_then(|settings| settings.plain_http), settings)?;
        Ok(Self {
            trust: trust(settings),
            base,
            registry: registry.to_owned(),
            host: host.to_owned(),
            login: registry.to_owned(),
            prefix: String::new(),
            mirror: false,
            token_service: settings.and_then(|settings| settings.token_service.clone()),
        })
    }

    /// The registry's mirrors, the first to ask first.
    pub(crate) fn mirrors(options: &Options, registry: &str) -> Result<Vec<Self>, ErrorKind> {
        let mirrors = options.registries.get(registry).map_or(&[][..], |settings| &settings.mirrors);
        mirrors.iter().map(|mirror| Self::mirror(options, registry, mirror)).collect()
    }

    fn mirror(options: &Options, registry: &str, mirror: &Mirror) -> Result<Self, ErrorKind> {
        // Docker's `registry-mirrors` are URLs, so that is how many people write them.
        let (scheme, location) = match mirror.location.split_once("://") {
            Some(("https", rest)) => (Some(false), rest),
            Some(("http", rest)) => (Some(true), rest),
            _ => (None, mirror.location.as_str()),
        };
        let location = location.trim_end_matches('/');
        let (host, path) = location.split_once('/').unwrap_or((location, ""));
        let settings = options.registries.get(host);
        let plain = mirror.plain_http.or(scheme).or(settings.and_then(|settings| settings.plain_http));
        let name = if host == HUB.0 { HUB.1 } else { host };
        if path.contains(['?', '#', '%', '\\', ':'])
            || (!path.is_empty() && path.split('/').any(|part| matches!(part, "" | "." | "..")))
        {
            return Err(ErrorKind::Setting(format!("mirror `{}` is not `host[:port][/path]`", mirror.location)));
        }
        let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
        Ok(Self {
            base: base(name, plain, settings)?,
            registry: registry.to_owned(),
            host: location.to_owned(),
            login: host.to_owned(),
            prefix,
            mirror: true,
            token_service: settings.and_then(|settings| settings.token_service.clone()),
            trust: trust(settings),
        })
    }

    /// The repository's path at this host.
    pub(crate) fn path(&self, repository: &str) -> String {
        format!("{}{repository}", self.prefix)
    }

    /// The URL of something in a repository: `manifests/latest`, `blobs/sha256:…`, `blobs/uploads/`.
    pub(crate) fn url(&self, repository: &str, rest: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("/v2/{}/{rest}", self.path(repository)));
        if self.mirror {
            // As containerd does: tells a mirror of many registries which one is meant.
            url.query_pairs_mut().append_pair("ns", &self.registry);
        }
        url
    }

    /// What is being done, for errors.
    pub(crate) fn operation(&self, action: &'static str, subject: &str) -> Operation {
        Operation { action, subject: subject.to_owned(), registry: self.registry.clone(), host: self.host.clone() }
    }

    /// Whether a URL is at this very host, port and scheme: the only place that its credentials may go to.
    pub(crate) fn is_origin_of(&self, url: &Url) -> bool {
        url.scheme() == self.base.scheme()
            && url.host() == self.base.host()
            && url.port_or_known_default() == self.base.port_or_known_default()
    }

    /// Which connections may be used to a URL that this host named.
    pub(crate) fn trust_for(&self, url: &Url) -> Trust {
        if url.host() == self.base.host() {
            return self.trust.clone();
        }
        let reach = if is_loopback(&self.base) { Reach::NotMetadata } else { Reach::NotMetadataNorLoopback };
        Trust { reach, ..self.trust.clone() }
    }
}

fn trust(settings: Option<&RegistryOptions>) -> Trust {
    Trust {
        ca_file: settings.and_then(|settings| settings.ca_file.clone()),
        skip_verify: settings.is_some_and(|settings| settings.insecure_skip_verify),
        reach: Reach::Anywhere,
    }
}

fn base(host: &str, plain_http: Option<bool>, settings: Option<&RegistryOptions>) -> Result<Url, ErrorKind> {
    let fail = || ErrorKind::Setting(format!("`{host}` is not `host[:port]`"));
    if host.is_empty() || host.contains(['/', '?', '#', '@', '\\', '%']) || host.contains(char::is_whitespace) {
        return Err(fail());
    }
    let mut url = Url::parse(&format!("https://{host}/v2/")).map_err(|_| fail())?;
    // Whoever says which certificates to believe expects TLS, on loopback too.
    let wants_tls = settings.is_some_and(|settings| settings.ca_file.is_some() || settings.insecure_skip_verify);
    if plain_http.unwrap_or(is_loopback(&url) && !wants_tls) {
        url = Url::parse(&format!("http://{host}/v2/")).map_err(|_| fail())?;
    }
    Ok(url)
}

/// Whether a URL's host is this machine by its very name.
pub(crate) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.to_canonical().is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::Endpoint;
    use crate::{Mirror, Options, RegistryOptions};

    #[test]
    fn where_registries_are() {
        let rows = [
            ("docker.io", None, Some("https://registry-1.docker.io/v2/")),
            ("ghcr.io", None, Some("https://ghcr.io/v2/")),
            ("localhost:5000", None, Some("http://localhost:5000/v2/")),
            ("127.0.0.1:5000", None, Some("http://127.0.0.1:5000/v2/")),
            ("[::1]:5000", None, Some("http://[::1]:5000/v2/")),
            ("127.0.0.1:5000", Some(false), Some("https://127.0.0.1:5000/v2/")),
            ("registry.lan", Some(true), Some("http://registry.lan/v2/")),
            ("user@host", None, None),
            ("host/path", None, None),
            ("", None, None),
        ];
        for (registry, plain_http, expected) in rows {
            let mut options = Options::default();
            options.registries.insert(registry.to_owned(), RegistryOptions { plain_http, ..RegistryOptions::default() });
            let found = Endpoint::registry(&options, registry).ok().map(|endpoint| endpoint.base.to_string());
            assert_eq!(found.as_deref(), expected, "{registry}");
        }
    }

    #[test]
    fn where_mirrors_look() {
        let rows = [
            ("mirror.lan", Some("https://mirror.lan/v2/library/x/manifests/1?ns=docker.io")),
            ("127.0.0.1:1/", Some("http://127.0.0.1:1/v2/library/x/manifests/1?ns=docker.io")),
            ("m.lan:443/cache/hub", Some("https://m.lan/v2/cache/hub/library/x/manifests/1?ns=docker.io")),
            ("m.lan/..", None),
            ("https://m.lan", Some("https://m.lan/v2/library/x/manifests/1?ns=docker.io")),
            ("http://m.lan/", Some("http://m.lan/v2/library/x/manifests/1?ns=docker.io")),
            ("ftp://m.lan", None),
            ("", None),
        ];
        for (location, expected) in rows {
            let mut options = Options::default();
            let settings = RegistryOptions { mirrors: vec![Mirror::new(location)], ..RegistryOptions::default() };
            options.registries.insert("docker.io".to_owned(), settings);
            let found = Endpoint::mirrors(&options, "docker.io").ok();
            let found = found.map(|mirrors| mirrors[0].url("library/x", "manifests/1").to_string());
            assert_eq!(found.as_deref(), expected, "{location}");
        }
    }
}
