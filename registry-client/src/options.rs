//! Hides nothing: the settings of a client, as plain data.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::credentials::CredentialStore;
use crate::error::Error;
use crate::proxy::Proxies;

/// How a [`Client`](crate::Client) reaches registries.
#[derive(Debug, Clone)]
pub struct Options {
    /// Settings by registry, the key as references name it: `docker.io`, `registry.example.com`, `localhost:5000`. A mirror's
    /// own `host:port` may be a key too, for its `ca_file`.
    pub registries: BTreeMap<String, RegistryOptions>,
    /// Settings by the beginning of names, as in containers' `registries.conf`. Of those that fit a name the longest counts.
    pub rules: Vec<Rule>,
    /// Folders with a folder `HOST[:PORT]` for each host that needs certificates: `*.crt` are authorities, `*.cert` and `*.key`
    /// what the client shows. The first folder that has one for a host counts.
    pub certs_folders: Vec<PathBuf>,
    /// Through which proxies hosts are reached.
    pub proxies: Proxies,
    /// Where user names, passwords and tokens come from; read when a registry first asks for them.
    pub credentials: CredentialStore,
    /// The `User-Agent` header.
    pub user_agent: String,
    /// How often and how long a request is tried again.
    pub retry: RetryPolicy,
    /// How long a connection (TCP and TLS) may take to come about.
    pub connect_timeout: Duration,
    /// How long a transfer may stand still; there is no limit on its total time.
    pub stall_timeout: Duration,
    /// Who hears of retries and of mirrors that were passed over.
    pub warnings: Warnings,
    /// Set to `true` by the owner to make every call end with [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled) soon.
    pub cancelled: Arc<AtomicBool>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            registries: BTreeMap::new(),
            rules: Vec::new(),
            certs_folders: Vec::new(),
            proxies: Proxies::default(),
            credentials: CredentialStore::default(),
            user_agent: concat!("kiln/", env!("CARGO_PKG_VERSION")).to_owned(),
            retry: RetryPolicy::default(),
            connect_timeout: Duration::from_secs(20),
            stall_timeout: Duration::from_secs(60),
            warnings: Warnings::default(),
            cancelled: Arc::default(),
        }
    }
}

/// Settings of one registry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegistryOptions {
    /// Hosts that are asked first, in this order, by pulls; never by pushes.
    pub mirrors: Vec<Mirror>,
    /// `Some(true)`: plain http, `Some(false)`: https; `None`: http for loopback addresses, https for all others.
    pub plain_http: Option<bool>,
    /// A PEM file with certificates of authorities to trust besides the system's.
    pub ca_file: Option<PathBuf>,
    /// PEM files with a certificate and its key that are shown to the registry itself, and to no other host.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
    /// Accept any certificate. Whoever sits between can then read the credentials.
    pub insecure_skip_verify: bool,
    /// The `host[:port]` of the token service that identity tokens may go to, when it has no domain in common with the registry.
    pub token_service: Option<String>,
}

/// A host that serves (part of) what a registry serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// `host[:port][/path]`; repositories are looked for below the path, as BuildKit does. `https://` or `http://` may stand
    /// before it.
    pub location: String,
    /// As [`RegistryOptions::plain_http`].
    pub plain_http: Option<bool>,
    /// As [`Rule::insecure`].
    pub insecure: bool,
    /// For which names it is asked.
    pub serves: Serves,
}

impl Mirror {
    /// A mirror that is reached by https, or by plain http when it is on this machine.
    pub fn new(location: impl Into<String>) -> Self {
        Self { location: location.into(), plain_http: None, insecure: false, serves: Serves::All }
    }
}

/// For which names a mirror is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Serves {
    /// Tags and digests.
    #[default]
    All,
    /// Digests only, so that it can't give a tag another meaning.
    Digests,
    /// Tags only.
    Tags,
}

/// What holds for all repositories whose name begins alike: one table of containers' `registries.conf`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rule {
    /// The whole parts that names begin with: `registry.example.com`, `docker.io/library`, or `*.example.com`.
    pub prefix: String,
    /// What stands in the prefix's place when something is pulled; empty when nothing does.
    pub location: String,
    /// Nothing with such a name may be pulled or pushed.
    pub blocked: bool,
    /// Any certificate will do, and plain http where there is no TLS.
    pub insecure: bool,
    /// As [`RegistryOptions::mirrors`], which go before these; their paths stand in the prefix's place.
    pub mirrors: Vec<Mirror>,
}

/// When a request is sent again. Only what may pass is: connection faults, 408, 429 and 5xx; never another 4xx.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Tries without progress, the first included.
    pub attempts: u32,
    /// The pause before the second try; each next one is twice as long. Up to half of a pause is left off at random.
    pub first_pause: Duration,
    /// No pause that kiln chooses is longer.
    pub longest_pause: Duration,
    /// All pauses together aren't longer, those that a registry asks for (`Retry-After`) included.
    pub total_pause: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 5,
            first_pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(16),
            total_pause: Duration::from_secs(120),
        }
    }
}

/// Something that went wrong without failing the call; its `Display` is a sentence for the user.
#[derive(Debug)]
#[non_exhaustive]
pub enum Warning<'a> {
    /// A mirror couldn't serve and the next host is asked.
    MirrorPassedOver {
        /// The mirror's location.
        mirror: &'a str,
        /// The host that is asked next.
        next: &'a str,
        /// Why.
        cause: &'a Error,
    },
    /// The registry counts pulls and will refuse them soon.
    FewPullsLeft {
        /// The registry.
        registry: &'a str,
        /// How many are left.
        remaining: u64,
        /// Of how many.
        limit: u64,
        /// In how much time.
        window: Option<Duration>,
    },
    /// The request is sent again after a pause.
    Retry {
        /// How long the pause is.
        pause: Duration,
        /// What happened.
        cause: &'a Error,
    },
}

impl fmt::Display for Warning<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MirrorPassedOver { mirror, next, cause } => {
                write!(f, "mirror {mirror} passed over, asking {next} instead: {cause}")
            }
            Self::FewPullsLeft { registry, remaining, limit, window } => {
                write!(f, "{registry} allows {remaining} more of {limit} pulls")?;
                if let Some(window) = window {
                    write!(f, " in {} minutes", window.as_secs() / 60)?;
                }
                f.write_str("; `kiln login` or a mirror allows more")
            }
            Self::Retry { pause, cause } => write!(f, "{cause}; trying again in {:.1} s", pause.as_secs_f64()),
        }
    }
}

/// A listener for [`Warning`]s; the default one is deaf. It is called from the thread that made the call.
#[derive(Clone, Default)]
pub struct Warnings(Option<Arc<Listener>>);

type Listener = dyn Fn(&Warning<'_>) + Send + Sync;

impl Warnings {
    /// Passes every warning to `listener`.
    pub fn to(listener: impl Fn(&Warning<'_>) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(listener)))
    }

    pub(crate) fn say(&self, warning: &Warning<'_>) {
        if let Some(listener) = &self.0 {
            listener(warning);
        }
    }
}

impl fmt::Debug for Warnings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Warnings(..)" } else { "Warnings(none)" })
    }
}
