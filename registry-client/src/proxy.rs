//! Hides the grammar of the proxy variables, as Go's `httpproxy` reads them: what people write for docker means the same here.

use std::net::IpAddr;

use url::{Host, Url};

use crate::endpoint::is_loopback;

/// Through which proxies hosts are reached; the default knows none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    http: Option<Url>,
    https: Option<Url>,
    exceptions: Vec<Exception>,
    /// What can't be read; told when a proxy would be needed.
    pub(crate) mistake: Option<String>,
}

/// One entry of `NO_PROXY`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Exception {
    pattern: Pattern,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Pattern {
    /// `*`
    All,
    /// An address, or all with the same first bits.
    Network(IpAddr, u32),
    /// A domain, with what is below it.
    Domain(String),
    /// What is below a domain (`.example.com`, `*.example.com`).
    Below(String),
}

impl Proxies {
    /// Reads `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` in capitals or not, with `variable` to look them up.
    pub fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Self {
        let either = |name: &str| {
            let found = variable(name).filter(|text| !text.is_empty());
            found.or_else(|| variable(&name.to_ascii_lowercase()).filter(|text| !text.is_empty()))
        };
        let all = either("ALL_PROXY");
        // In a CGI program a client could set this one by a header `Proxy` (httpoxy).
        let http = if variable("REQUEST_METHOD").is_some() { variable("http_proxy") } else { either("HTTP_PROXY") };
        let mut mistake = None;
        let mut read = |name: &str, text: Option<String>| {
            let text = text?;
            let with_scheme = if text.contains("://") { text } else { format!("http://{text}") };
            match Url::parse(&with_scheme) {
                Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Some(url),
                // The text may have a password in it.
                _ => {
                    mistake = Some(format!("{name} is not the address of an http or https proxy"));
                    None
                }
            }
        };
        let (http, https) = (read("HTTP_PROXY", http.or(all.clone())), read("HTTPS_PROXY", either("HTTPS_PROXY").or(all)));
        let exceptions = either("NO_PROXY").unwrap_or_default().split([',', ' ']).filter_map(Exception::read).collect();
        Self { http, https, exceptions, mistake }
    }

    /// Whether there is any.
    pub(crate) fn is_empty(&self) -> bool {
        self.http.is_none() && self.https.is_none()
    }

    /// The proxy for a URL. No proxy can reach this machine's loopback; Go's clients don't ask theirs either.
    pub(crate) fn choose(&self, url: &Url) -> Option<Url> {
        if is_loopback(url) || self.exceptions.iter().any(|exception| exception.fits(url)) {
            return None;
        }
        if url.scheme() == "https" { self.https.clone() } else { self.http.clone() }
    }
}

impl Exception {
    fn read(text: &str) -> Option<Self> {
        let text = text.trim().to_ascii_lowercase();
        if text.is_empty() {
            return None;
        }
        if text == "*" {
            return Some(Self { pattern: Pattern::All, port: None });
        }
        if let Some((address, bits)) = text.split_once('/') {
            let address: IpAddr = address.parse().ok()?;
            let bits = bits.parse().ok().filter(|bits| *bits <= if address.is_ipv4() { 32 } else { 128 })?;
            return Some(Self { pattern: Pattern::Network(address, bits), port: None });
        }
        let (host, port) = match text.rsplit_once(':') {
            // More than one colon without brackets is an IPv6 address.
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, Some(port.parse().ok()?)),
            _ => (text.as_str(), None),
        };
        let pattern = if let Ok(address) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
            Pattern::Network(address, 128)
        } else if let Some(domain) = host.strip_prefix("*.").or_else(|| host.strip_prefix('.')) {
            Pattern::Below(domain.to_owned())
        } else {
            Pattern::Domain(host.to_owned())
        };
        Some(Self { pattern, port })
    }

    fn fits(&self, url: &Url) -> bool {
        if self.port.is_some() && self.port != url.port_or_known_default() {
            return false;
        }
        let address = match url.host() {
            Some(Host::Ipv4(address)) => Some(IpAddr::V4(address)),
            Some(Host::Ipv6(address)) => Some(IpAddr::V6(address).to_canonical()),
            _ => None,
        };
        let below = |domain: &str| {
            let host = url.domain().unwrap_or_default().trim_end_matches('.');
            host.strip_suffix(domain).map(|rest| (rest.is_empty(), rest.ends_with('.')))
        };
        match &self.pattern {
            Pattern::All => true,
            Pattern::Network(network, bits) => address.is_some_and(|address| same_bits(address, *network, *bits)),
            Pattern::Domain(domain) => matches!(below(domain), Some((true, _) | (_, true))),
            Pattern::Below(domain) => matches!(below(domain), Some((_, true))),
        }
    }
}

fn same_bits(one: IpAddr, other: IpAddr, bits: u32) -> bool {
    match (one, other.to_canonical()) {
        (IpAddr::V4(one), IpAddr::V4(other)) => {
            (u32::from(one) ^ u32::from(other)).checked_shr(32 - bits.min(32)).unwrap_or_default() == 0
        }
        (IpAddr::V6(one), IpAddr::V6(other)) => {
            (u128::from(one) ^ u128::from(other)).checked_shr(128 - bits).unwrap_or_default() == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::Proxies;

    #[test]
    fn exceptions() {
        let rows = [
            ("", "http://r.example.com/", true),
            ("*", "http://r.example.com/", false),
            ("example.com", "http://r.example.com/", false),
            ("example.com", "http://example.com:5000/", false),
            ("example.com", "http://badexample.com/", true),
            (".example.com", "http://example.com/", true),
            (".example.com", "http://r.example.com/", false),
            ("*.example.com", "http://r.example.com/", false),
            ("EXAMPLE.com", "http://example.com/", false),
            ("example.com:5000", "http://example.com:5000/", false),
            ("example.com:5000", "http://example.com/", true),
            ("example.com:443", "https://example.com/", false),
            ("10.0.0.0/8", "http://10.1.2.3:5000/", false),
            ("10.0.0.0/8", "http://11.1.2.3/", true),
            ("10.1.2.3", "http://10.1.2.3/", false),
            ("10.1.2.3:80", "http://10.1.2.3:5000/", true),
            ("10.1.2.3/31", "http://10.1.2.2/", false),
            ("0.0.0.0/0", "http://10.1.2.3/", false),
            ("fd00::/8", "http://[fd12::1]/", false),
            ("fd00::1", "http://[fd00::1]:5000/", false),
            ("[fd00::1]:5000", "http://[fd00::1]:5000/", false),
            ("[fd00::1]:5000", "http://[fd00::1]/", true),
            ("a, b.example, 10.0.0.0/8", "http://b.example/", false),
            ("10.0.0.0/99,nonsense:port", "http://b.example/", true),
            ("", "http://localhost:5000/", false),
            ("", "http://127.0.0.1:5000/", false),
        ];
        for (no_proxy, url, proxied) in rows {
            let proxies = Proxies::from_environment(|name| match name {
                "ALL_PROXY" => Some("proxy:3128".to_owned()),
                "NO_PROXY" => Some(no_proxy.to_owned()),
                _ => None,
            });
            let expected = proxied.then_some("http://proxy:3128/");
            assert_eq!(proxies.choose(&url.parse().unwrap()).as_ref().map(url::Url::as_str), expected, "{no_proxy} {url}");
        }
    }

    #[test]
    fn variables() {
        type Row = (&'static [(&'static str, &'static str)], Option<&'static str>, Option<&'static str>);
        let rows: [Row; 8] = [
            (&[], None, None),
            (&[("HTTP_PROXY", "http://p:1")], Some("http://p:1/"), None),
            (&[("https_proxy", "https://u:p@q")], None, Some("https://u:p@q/")),
            (&[("HTTPS_PROXY", "a:1"), ("https_proxy", "b:1"), ("all_proxy", "c:1")], Some("http://c:1/"), Some("http://a:1/")),
            (&[("HTTP_PROXY", "p:1"), ("REQUEST_METHOD", "GET")], None, None),
            (&[("http_proxy", "p:1"), ("REQUEST_METHOD", "GET")], Some("http://p:1/"), None),
            (&[("HTTP_PROXY", "")], None, None),
            (&[("HTTP_PROXY", "socks5://user:secret@p")], None, None),
        ];
        for (variables, http, https) in rows {
            let find = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
            let proxies = Proxies::from_environment(find);
            let choose = |url: &str| proxies.choose(&url.parse().unwrap()).map(|url| url.to_string());
            assert_eq!((choose("http://x/").as_deref(), choose("https://x/").as_deref()), (http, https), "{variables:?}");
            let socks = variables.iter().any(|(_, value)| value.starts_with("socks"));
            assert_eq!(proxies.mistake.is_some(), socks, "{variables:?}");
            assert!(!proxies.mistake.unwrap_or_default().contains("secret"));
        }
    }
}
