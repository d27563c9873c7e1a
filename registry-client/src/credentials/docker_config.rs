//! Hides the shape of Docker's `config.json`, which podman's `auth.json` has too: `auths`, `credHelpers`, `credsStore`, and
//! Docker Hub's historical key.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::ser::{PrettyFormatter, Serializer};
use serde_json::{Map, Value, json};

use super::{CredentialError, Credentials};

/// Docker Hub's key, a URL of the time before registries had a version 2.
const HUB_KEY: &str = "https://index.docker.io/v1/";
const HUB: &str = "docker.io";

/// The key that a registry's credentials are kept under.
pub(super) fn key(registry: &str) -> &str {
    if registry == HUB { HUB_KEY } else { registry }
}

/// Whether a key that someone wrote means this registry: as it is, or as a URL of the registry (`https://host/v1/`). The host
/// and the port must be the very same.
fn means(key: &str, registry: &str) -> bool {
    let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let (host, path) = bare.split_once('/').unwrap_or((bare, ""));
    if !matches!(path.trim_end_matches('/'), "" | "v1" | "v2") {
        return false;
    }
    host == registry || (registry == HUB && matches!(host, "index.docker.io" | "registry-1.docker.io"))
}

/// The file's content.
pub(super) struct DockerConfig {
    path: PathBuf,
    document: Map<String, Value>,
}

impl DockerConfig {
    /// Reads the file; one that isn't there is empty.
    pub(super) fn read(path: &Path) -> Result<Self, CredentialError> {
        let document = match fs::read(path) {
            Ok(bytes) if bytes.trim_ascii().is_empty() => Map::new(),
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(Value::Object(document)) => document,
                Ok(_) => return Err(malformed(path, "it is not a JSON object".to_owned())),
                // Position and kind only: the message could quote a secret.
                Err(error) => {
                    let reason = format!("it is not JSON (line {}, column {})", error.line(), error.column());
                    return Err(malformed(path, reason));
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Map::new(),
            Err(cause) => return Err(CredentialError::File { path: path.to_owned(), cause }),
        };
        Ok(Self { path: path.to_owned(), document })
    }

    /// The name of the helper that keeps this registry's credentials.
    pub(super) fn helper(&self, registry: &str) -> Option<&str> {
        let own = self.find("credHelpers", registry).and_then(Value::as_str);
        own.or_else(|| self.document.get("credsStore").and_then(Value::as_str)).filter(|name| !name.is_empty())
    }

    /// The credentials that stand in the file itself.
    pub(super) fn inline(&self, registry: &str) -> Result<Option<Credentials>, CredentialError> {
        self.find("auths", registry).map_or(Ok(None), |entry| self.credentials(registry, entry))
    }

    /// The credentials under exactly this key, which has a path as podman's may have.
    pub(super) fn scoped(&self, key: &str) -> Result<Option<Credentials>, CredentialError> {
        let entry = self.document.get("auths").and_then(|section| section.get(key));
        entry.map_or(Ok(None), |entry| self.credentials(key, entry))
    }

    fn credentials(&self, name: &str, entry: &Value) -> Result<Option<Credentials>, CredentialError> {
        let text = |name: &str| entry.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        if let Some(token) = text("identitytoken") {
            return Ok(Some(Credentials::IdentityToken(token.to_owned())));
        }
        if let Some(token) = text("registrytoken") {
            return Ok(Some(Credentials::RegistryToken(token.to_owned())));
        }
        if let Some(auth) = text("auth") {
            let decoded = decode(auth)
                .ok_or_else(|| malformed(&self.path, format!("`auth` of `{name}` is not the base64 form of `user:password`")))?;
            return Ok(Some(decoded));
        }
        let (username, password) = (text("username"), text("password"));
        Ok(username
            .zip(password)
            .map(|(username, password)| Credentials::Password { username: username.to_owned(), password: password.to_owned() }))
    }

    fn find(&self, section: &str, registry: &str) -> Option<&Value> {
        let section = self.document.get(section)?.as_object()?;
        section.get(key(registry)).or_else(|| section.iter().find(|(key, _)| means(key, registry)).map(|(_, value)| value))
    }

    /// Sets a registry's entry; `None` notes that a helper has the secret, as Docker does.
    pub(super) fn put(&mut self, registry: &str, credentials: Option<&Credentials>) -> Result<(), CredentialError> {
        let entry = match credentials {
            None => json!({}),
            Some(Credentials::Password { username, password }) => {
                json!({ "auth": BASE64_STANDARD.encode(format!("{username}:{password}")) })
            }
            Some(Credentials::IdentityToken(token)) => {
                json!({ "auth": BASE64_STANDARD.encode("00000000-0000-0000-0000-000000000000:"), "identitytoken": token })
            }
            Some(Credentials::RegistryToken(token)) => json!({ "registrytoken": token }),
        };
        self.remove(registry);
        let auths = self.document.entry("auths").or_insert_with(|| json!({}));
        let Some(auths) = auths.as_object_mut() else {
            return Err(malformed(&self.path, "`auths` is not an object".to_owned()));
        };
        auths.insert(key(registry).to_owned(), entry);
        Ok(())
    }

    /// Removes a registry's entries; says whether there were any.
    pub(super) fn remove(&mut self, registry: &str) -> bool {
        let Some(auths) = self.document.get_mut("auths").and_then(Value::as_object_mut) else { return false };
        let before = auths.len();
        auths.retain(|key, _| !means(key, registry));
        auths.len() != before
    }

    /// Replaces the file at once, for its owner's eyes only. Other keys stay as they were, in their order.
    pub(super) fn write(&self) -> Result<(), CredentialError> {
        let fail = |cause| CredentialError::File { path: self.path.clone(), cause };
        let mut bytes = Vec::new();
        let mut serializer = Serializer::with_formatter(&mut bytes, PrettyFormatter::with_indent(b"\t"));
        serde::Serialize::serialize(&self.document, &mut serializer).map_err(|error| fail(error.into()))?;
        bytes.push(b'\n');
        // A file that is a link into some other place (dotfiles) stays one.
        let target = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        replace(&target, &bytes).map_err(fail)
    }
}

/// Holds the folder of the file, so that two logins at once don't undo one another; made if it isn't there.
pub(super) fn lock(path: &Path) -> Result<File, CredentialError> {
    let fail = |cause| CredentialError::File { path: path.to_owned(), cause };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(fail)?;
    let folder = File::open(folder).map_err(fail)?;
    folder.lock().map_err(fail)?;
    Ok(folder)
}

fn replace(target: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut temporary = target.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let write = || {
        // The folder is locked, so a file of this name is what a killed process with our number left.
        let mut file = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                fs::remove_file(&temporary)?;
                OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?
            }
            other => other?,
        };
        file.write_all(bytes)?;
        // With sudo, the file stays its owner's; without the right to give it away it becomes the writer's.
        if let Ok(old) = fs::metadata(target) {
            let _ = std::os::unix::fs::fchown(&file, Some(old.uid()), Some(old.gid()));
        }
        file.sync_all()?;
        fs::rename(&temporary, target)
    };
    write().inspect_err(|_| {
        let _ = fs::remove_file(&temporary);
    })
}

fn malformed(path: &Path, reason: String) -> CredentialError {
    CredentialError::Malformed { path: path.to_owned(), reason }
}

fn decode(auth: &str) -> Option<Credentials> {
    let bytes = BASE64_STANDARD.decode(auth.trim()).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (username, password) = text.split_once(':')?;
    // Old versions of Docker padded the text with zero bytes.
    let password = password.trim_matches('\0');
    (!username.is_empty()).then(|| Credentials::Password { username: username.to_owned(), password: password.to_owned() })
}
