//! Hides `kiln.toml`: kiln's own settings, so far how registries are reached.
//!
//! ```toml
//! [registry."docker.io"]
//! mirrors = ["127.0.0.1:5000", "https://mirror.example.com/hub"]
//! plain-http = false
//! ca-file = "/etc/ssl/company.pem"
//! client-cert = "client.pem"
//! client-key = "client-key.pem"
//! insecure-skip-verify = false
//! token-service = "sso.example.net"
//! ```

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use kiln_registry_client::{Mirror, RegistryOptions};
use serde::Deserialize;

use super::collect;

/// The settings of all files together.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct File {
    #[serde(default)]
    registry: BTreeMap<String, Registry>,
    /// When kiln collects by itself, and what.
    pub(crate) gc: Option<collect::Table>,
}

/// How one registry is reached.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Registry {
    mirrors: Option<Vec<String>>,
    plain_http: Option<bool>,
    ca_file: Option<PathBuf>,
    client_cert: Option<PathBuf>,
    client_key: Option<PathBuf>,
    insecure_skip_verify: Option<bool>,
    token_service: Option<String>,
}

/// Why the settings can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsError {
    /// The file can't be read.
    #[error("cannot read settings file {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    /// The file isn't what kiln understands.
    #[error("settings file {}:{line}: {message}", path.display())]
    Malformed { path: PathBuf, line: usize, message: String },
    /// The file can be read, but makes no sense.
    #[error("settings file {}: {message}", path.display())]
    Invalid { path: PathBuf, message: String },
}

/// Reads the files, of which later ones replace single values of earlier ones. `true`: the file has to be there.
pub(crate) fn registries(files: &[(PathBuf, bool)]) -> Result<BTreeMap<String, RegistryOptions>, SettingsError> {
    let mut all: BTreeMap<String, RegistryOptions> = BTreeMap::new();
    for (path, required) in files {
        let Some(file) = read_file(path, *required)? else { continue };
        for (name, registry) in file.registry {
            let options = all.entry(name).or_default();
            if let Some(mirrors) = registry.mirrors {
                options.mirrors = mirrors.iter().map(|text| mirror(text)).collect();
            }
            options.plain_http = registry.plain_http.or(options.plain_http);
            let folder = path.parent().unwrap_or(Path::new(""));
            if let Some(file) = registry.ca_file {
                options.ca_file = Some(folder.join(file));
            }
            match (registry.client_cert, registry.client_key) {
                (Some(cert), Some(key)) => options.client_certificate = Some((folder.join(cert), folder.join(key))),
                (None, None) => {}
                _ => {
                    let message = "`client-cert` and `client-key` go together".to_owned();
                    return Err(SettingsError::Invalid { path: path.clone(), message });
                }
            }
            options.insecure_skip_verify = registry.insecure_skip_verify.unwrap_or(options.insecure_skip_verify);
            options.token_service = registry.token_service.or(options.token_service.take());
        }
    }
    Ok(all)
}

/// One of the files; none where none has to be.
pub(crate) fn read_file(path: &Path, required: bool) -> Result<Option<File>, SettingsError> {
    match std::fs::read_to_string(path) {
        Ok(text) => parse(path, &text).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !required => Ok(None),
        Err(cause) => Err(SettingsError::Read { path: path.to_owned(), cause }),
    }
}

/// Reads a file's text.
pub(crate) fn parse<T: serde::de::DeserializeOwned>(path: &Path, text: &str) -> Result<T, SettingsError> {
    toml::from_str(text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        SettingsError::Malformed {
            path: path.to_owned(),
            line: before.matches('\n').count() + 1,
            message: error.message().replace('\n', " "),
        }
    })
}

/// `[http[s]://]host[:port][/path]`.
fn mirror(text: &str) -> Mirror {
    let (location, plain_http) = match (text.strip_prefix("http://"), text.strip_prefix("https://")) {
        (Some(rest), _) => (rest, Some(true)),
        (_, Some(rest)) => (rest, Some(false)),
        _ => (text, None),
    };
    Mirror { plain_http, ..Mirror::new(location.trim_end_matches('/')) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(texts: &[&str]) -> Result<BTreeMap<String, RegistryOptions>, String> {
        let folder = tempfile::tempdir().unwrap();
        let files: Vec<(PathBuf, bool)> = texts
            .iter()
            .enumerate()
            .map(|(i, text)| {
                let path = folder.path().join(format!("{i}.toml"));
                std::fs::write(&path, text).unwrap();
                (path, true)
            })
            .collect();
        registries(&files).map_err(|error| error.to_string().replace(&format!("{}/", folder.path().display()), ""))
    }

    #[test]
    fn all_keys_and_layers() {
        let first = "[registry.\"docker.io\"]\nmirrors = [\"127.0.0.1:5000\"]\nca-file = \"/ca.pem\"\n";
        let second = "[registry.\"docker.io\"]\nmirrors = [\"https://m.example.com/hub/\", \"http://n:80\"]\nplain-http = true\n\
                      insecure-skip-verify = true\n[registry.\"x:5000\"]\n";
        let all = read(&[first, second]).unwrap();
        let hub = &all["docker.io"];
        assert_eq!(
            hub.mirrors,
            [
                Mirror { plain_http: Some(false), ..Mirror::new("m.example.com/hub") },
                Mirror { plain_http: Some(true), ..Mirror::new("n:80") }
            ]
        );
        assert_eq!((hub.plain_http, hub.insecure_skip_verify), (Some(true), true));
        assert_eq!(hub.ca_file.as_deref(), Some(Path::new("/ca.pem")));
        assert_eq!(all["x:5000"], RegistryOptions::default());
    }

    #[test]
    fn mistakes_name_the_line() {
        let rows = [
            ("[registry.\"docker.io\"]\nmirror = []\n", "settings file 0.toml:2: unknown field `mirror`"),
            ("\n\n[builder]\n", "settings file 0.toml:3: unknown field `builder`"),
            ("[registry.a]\nplain-http = \"yes\"\n", "settings file 0.toml:2: invalid type: string \"yes\""),
            ("[registry\n", "settings file 0.toml:1: "),
        ];
        for (text, want) in rows {
            let got = read(&[text]).unwrap_err();
            assert!(got.starts_with(want), "{text:?}: {got}");
        }
    }

    #[test]
    fn missing_files() {
        assert!(registries(&[("/nonexistent/kiln.toml".into(), false)]).unwrap().is_empty());
        assert!(registries(&[("/nonexistent/kiln.toml".into(), true)]).is_err());
    }
}
