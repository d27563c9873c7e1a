//! Hides which hosts serve a repository and at which addresses: mirrors, rules, Docker Hub's other name, plain http on loopback.
//! Pure but for a look whether a host has a folder of certificates.

use std::path::PathBuf;

use url::{Host, Url};

use crate::error::{ErrorKind, Operation};
use crate::transport::{Certs, Reach, Trust};
use crate::{Mirror, Options, RegistryOptions, Repository, Rule, Serves};

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
    /// What repositories' paths begin with in references and not here.
    strip: String,
    /// What they begin with here.
    prefix: String,
    pub(crate) mirror: bool,
    /// Plain http will do where there is no TLS.
    pub(crate) falls_back: bool,
    /// Where its identity tokens may go besides.
    pub(crate) token_service: Option<String>,
    pub(crate) trust: Trust,
    certs_folders: Vec<PathBuf>,
}

impl Endpoint {
    /// The registry itself, whatever repository it is about.
    pub(crate) fn registry(options: &Options, registry: &str) -> Result<Self, ErrorKind> {
        let settings = options.registries.get(registry);
        let host = if registry == HUB.0 { HUB.1 } else { registry };
        let trust = trust(options, settings, registry);
        let base = base(host, settings.and_then(|settings| settings.plain_http), &trust)?;
        Ok(Self {
            trust,
            base,
            registry: registry.to_owned(),
            host: host.to_owned(),
            login: registry.to_owned(),
            strip: String::new(),
            prefix: String::new(),
            mirror: false,
            falls_back: false,
            token_service: settings.and_then(|settings| settings.token_service.clone()),
            certs_folders: options.certs_folders.clone(),
        })
    }

    /// Where a repository is pushed to.
    pub(crate) fn target(options: &Options, repository: &Repository) -> Result<Self, ErrorKind> {
        let endpoint = Self::registry(options, repository.domain())?;
        Ok(match rule(options, repository)? {
            Some(rule) if rule.insecure => endpoint.insecure(plain_http(options, repository.domain())),
            _ => endpoint,
        })
    }

    /// The mirrors of a registry as its own settings name them.
    pub(crate) fn mirrors(options: &Options, registry: &str) -> Result<Vec<Self>, ErrorKind> {
        let mirrors = options.registries.get(registry).map_or(&[][..], |settings| &settings.mirrors);
        mirrors.iter().map(|mirror| Self::mirror(options, registry, "", mirror)).collect()
    }

    /// Where a repository is pulled from: the mirrors, the first to ask first, then the registry or what stands in its place.
    /// `by` says what is asked for, if not every mirror may be asked.
    pub(crate) fn sources(options: &Options, repository: &Repository, by: Serves) -> Result<Vec<Self>, ErrorKind> {
        let registry = repository.domain();
        let mut sources = Self::mirrors(options, registry)?;
        let Some(rule) = rule(options, repository)? else {
            sources.push(Self::registry(options, registry)?);
            return Ok(sources);
        };
        let strip = rule.prefix.split_once('/').map_or("", |(_, path)| path);
        if sources.is_empty() {
            let asked = |mirror: &&Mirror| mirror.serves == Serves::All || by == Serves::All || by == mirror.serves;
            let found: Result<Vec<_>, _> =
                rule.mirrors.iter().filter(asked).map(|mirror| Self::mirror(options, registry, strip, mirror)).collect();
            sources = found?;
        }
        let host = if rule.location.is_empty() { registry } else { rule.location.split('/').next().unwrap_or_default() };
        let own = if rule.location.is_empty() || rule.location == rule.prefix {
            Self::registry(options, registry)?
        } else {
            Self { mirror: false, ..Self::mirror(options, registry, strip, &Mirror::new(&rule.location))? }
        };
        sources.push(if rule.insecure { own.insecure(plain_http(options, host)) } else { own });
        if let Some(bare) = sources.iter().find(|source| source.path(repository.path()).is_empty()) {
            return Err(ErrorKind::Setting(format!("`{}` stands for a whole name and has no path", bare.host)));
        }
        Ok(sources)
    }

    fn mirror(options: &Options, registry: &str, strip: &str, mirror: &Mirror) -> Result<Self, ErrorKind> {
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
        let trust = trust(options, settings, host);
        let endpoint = Self {
            base: base(name, plain, &trust)?,
            registry: registry.to_owned(),
            host: location.to_owned(),
            login: host.to_owned(),
            strip: strip.to_owned(),
            prefix: path.to_owned(),
            mirror: true,
            falls_back: false,
            token_service: settings.and_then(|settings| settings.token_service.clone()),
            trust,
            certs_folders: options.certs_folders.clone(),
        };
        Ok(if mirror.insecure { endpoint.insecure(plain) } else { endpoint })
    }

    /// The same host without a certificate that could be checked, or without TLS, unless the settings say which of both.
    fn insecure(mut self, plain_http: Option<bool>) -> Self {
        self.trust.skip_verify = true;
        if plain_http.is_none() {
            if let Ok(base) = Url::parse(&self.base.as_str().replacen("http://", "https://", 1)) {
                self.base = base;
            }
            self.falls_back = true;
        }
        self
    }

    /// The same host in plain http.
    pub(crate) fn plain(mut self) -> Self {
        if let Ok(base) = Url::parse(&self.base.as_str().replacen("https://", "http://", 1)) {
            self.base = base;
        }
        self.falls_back = false;
        self
    }

    /// The repository's path at this host.
    pub(crate) fn path(&self, repository: &str) -> String {
        let rest = repository.strip_prefix(&self.strip).unwrap_or(repository).trim_start_matches('/');
        match (self.prefix.as_str(), rest) {
            ("", rest) => rest.to_owned(),
            (prefix, "") => prefix.to_owned(),
            (prefix, rest) => format!("{prefix}/{rest}"),
        }
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
        if self.is_origin_of(url) {
            return self.trust.clone();
        }
        let mut trust = self.trust.clone();
        // What proves who is asking is for the registry alone; another host has its own folder, or nothing.
        trust.client_certificate = None;
        for certs in &mut trust.certs {
            certs.shown = false;
        }
        let host = url.host_str().unwrap_or_default();
        let named = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        trust.certs.extend(certs(&self.certs_folders, &named));
        if url.host() != self.base.host() {
            trust.reach = if is_loopback(&self.base) { Reach::NotMetadata } else { Reach::NotMetadataNorLoopback };
        }
        trust
    }
}

fn plain_http(options: &Options, host: &str) -> Option<bool> {
    options.registries.get(host).and_then(|settings| settings.plain_http)
}

/// The rule for a repository.
fn rule<'o>(options: &'o Options, repository: &Repository) -> Result<Option<&'o Rule>, ErrorKind> {
    let (domain, path) = (repository.domain(), repository.path());
    let fits = |rule: &&Rule| {
        let (host, rest) = rule.prefix.split_once('/').unwrap_or((&rule.prefix, ""));
        let same_host = match host.strip_prefix('*') {
            Some(suffix) => suffix.starts_with('.') && domain.len() > suffix.len() && domain.ends_with(suffix),
            None => host == domain,
        };
        same_host && path.strip_prefix(rest).is_some_and(|after| rest.is_empty() || after.is_empty() || after.starts_with('/'))
    };
    // A name without a star says more than one with.
    let longest = options.rules.iter().filter(fits).max_by_key(|rule| (!rule.prefix.starts_with('*'), rule.prefix.len()));
    match longest {
        Some(rule) if rule.blocked => Err(ErrorKind::Blocked { prefix: rule.prefix.clone() }),
        found => Ok(found),
    }
}

/// Which connections may be used to a host that the user named.
pub(crate) fn trust(options: &Options, settings: Option<&RegistryOptions>, host: &str) -> Trust {
    let mut found = certs(&options.certs_folders, host);
    if found.is_none() && host == HUB.0 {
        found = certs(&options.certs_folders, HUB.1);
    }
    Trust {
        ca_file: settings.and_then(|settings| settings.ca_file.clone()),
        client_certificate: settings.and_then(|settings| settings.client_certificate.clone()),
        certs: found.into_iter().collect(),
        skip_verify: settings.is_some_and(|settings| settings.insecure_skip_verify),
        reach: Reach::Anywhere,
    }
}

/// The folder of a host's certificates.
fn certs(folders: &[PathBuf], host: &str) -> Option<Certs> {
    // The name comes from a reference or a URL; nothing in it may lead out of the folder.
    if host.is_empty() || host.starts_with('.') || host.contains(['/', '\\', '\0']) {
        return None;
    }
    let folder = folders.iter().map(|folder| folder.join(host)).find(|folder| folder.is_dir())?;
    Some(Certs { folder, shown: true })
}

fn base(host: &str, plain_http: Option<bool>, trust: &Trust) -> Result<Url, ErrorKind> {
    let fail = || ErrorKind::Setting(format!("`{host}` is not `host[:port]`"));
    if host.is_empty() || host.contains(['/', '?', '#', '@', '\\', '%']) || host.contains(char::is_whitespace) {
        return Err(fail());
    }
    let mut url = Url::parse(&format!("https://{host}/v2/")).map_err(|_| fail())?;
    // Whoever says which certificates to believe expects TLS, on loopback too.
    let wants_tls = trust.ca_file.is_some() || trust.client_certificate.is_some() || !trust.certs.is_empty() || trust.skip_verify;
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
    use crate::{Mirror, Options, RegistryOptions, Repository, Rule, Serves};

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

    /// What a rule makes of names, as containers' `registries.conf` has it.
    #[test]
    fn where_rules_lead() {
        let mirror = |location: &str, serves| Mirror { serves, ..Mirror::new(location) };
        let rule = |prefix: &str, location: &str, mirrors| Rule {
            prefix: prefix.to_owned(),
            location: location.to_owned(),
            mirrors,
            ..Rule::default()
        };
        let rules = vec![
            rule("docker.io", "", vec![mirror("all.lan/hub", Serves::All), mirror("digests.lan", Serves::Digests)]),
            rule("docker.io/library", "own.lan/base", vec![mirror("tags.lan/x", Serves::Tags)]),
            rule("docker.io/library/busybox", "own.lan/bb", vec![]),
            rule("x.example.com", "x.example.com", vec![]),
            rule("*.example.com", "", vec![mirror("all.lan", Serves::All)]),
            Rule { blocked: true, ..rule("blocked.lan", "", vec![]) },
            Rule { insecure: true, ..rule("insecure.lan:5000/team", "", vec![]) },
        ];
        let options = Options { rules, ..Options::default() };
        type Row = (&'static str, Serves, Result<&'static [&'static str], &'static str>);
        let rows: [Row; 13] = [
            ("docker.io/a/b", Serves::Digests, Ok(&["all.lan/v2/hub/a/b", "digests.lan/v2/a/b", "registry-1.docker.io/v2/a/b"])),
            ("docker.io/a/b", Serves::Tags, Ok(&["all.lan/v2/hub/a/b", "registry-1.docker.io/v2/a/b"])),
            ("docker.io/a/b", Serves::All, Ok(&["all.lan/v2/hub/a/b", "digests.lan/v2/a/b", "registry-1.docker.io/v2/a/b"])),
            ("docker.io/library/debian", Serves::Tags, Ok(&["tags.lan/v2/x/debian", "own.lan/v2/base/debian"])),
            ("docker.io/library/debian", Serves::Digests, Ok(&["own.lan/v2/base/debian"])),
            ("docker.io/library/busybox", Serves::Tags, Ok(&["own.lan/v2/bb"])),
            ("docker.io/library/busybox2", Serves::Digests, Ok(&["own.lan/v2/base/busybox2"])),
            ("docker.io/librarian/x", Serves::Tags, Ok(&["all.lan/v2/hub/librarian/x", "registry-1.docker.io/v2/librarian/x"])),
            ("x.example.com/a", Serves::All, Ok(&["x.example.com/v2/a"])),
            ("y.example.com/a", Serves::All, Ok(&["all.lan/v2/a", "y.example.com/v2/a"])),
            ("example.com/a", Serves::All, Ok(&["example.com/v2/a"])),
            ("blocked.lan/a", Serves::All, Err("blocked")),
            ("insecure.lan:5000/team/a", Serves::All, Ok(&["insecure.lan:5000/v2/team/a"])),
        ];
        for (name, by, expected) in rows {
            let repository = Repository::from(&kiln_oci::reference::Reference::parse(name).unwrap());
            match (Endpoint::sources(&options, &repository, by), expected) {
                (Ok(found), Ok(expected)) => {
                    let url = |endpoint: &Endpoint| {
                        let url = endpoint.url(repository.path(), "m").to_string();
                        url.split('?').next().unwrap().trim_start_matches("https://").trim_end_matches("/m").to_owned()
                    };
                    assert_eq!(found.iter().map(url).collect::<Vec<_>>(), expected, "{name} {by:?}");
                    let last = found.last().unwrap();
                    assert_eq!(
                        (last.falls_back, last.trust.skip_verify),
                        (name.starts_with("insecure"), name.starts_with("insecure"))
                    );
                    assert!(!last.mirror);
                }
                (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{error}"),
                (found, _) => panic!("{name}: {found:?}"),
            }
            assert_eq!(Endpoint::target(&options, &repository).is_ok(), expected.is_ok(), "{name}");
        }
    }
}
