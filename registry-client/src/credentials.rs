//! Hides where credentials are kept: Docker's `config.json`, podman's `auth.json`, and the credential helpers that they and
//! `registries.conf` name.

mod docker_config;
mod helper;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use self::docker_config::DockerConfig;
use self::helper::Helper;

/// What proves to a registry who is asking. `Debug` never shows the secret.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A user name and a password (or an access token used as one).
    Password {
        /// The user name.
        username: String,
        /// The password.
        password: String,
    },
    /// An OAuth2 refresh token, exchanged for short-lived ones at the registry's token service.
    IdentityToken(String),
    /// A token that is sent to the registry as it is.
    RegistryToken(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Password { username, .. } => write!(f, "Password {{ username: {username:?}, .. }}"),
            Self::IdentityToken(_) => f.write_str("IdentityToken(..)"),
            Self::RegistryToken(_) => f.write_str("RegistryToken(..)"),
        }
    }
}

/// Why credentials couldn't be read or kept. A request is then not sent at all, with or without credentials.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialError {
    /// The file can't be read or written.
    #[error("credentials file {}: {cause}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// The file isn't what Docker would write.
    #[error("credentials file {}: {reason}", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where and why.
        reason: String,
    },
    /// The helper program can't be started.
    #[error("credential helper `{program}` can't be started: {cause}")]
    HelperMissing {
        /// The program's name.
        program: String,
        /// Why.
        cause: std::io::Error,
        /// The file that names it.
        path: PathBuf,
    },
    /// The helper program failed.
    #[error("credential helper `{program} {verb}` failed for {server}: {message}")]
    HelperFailed {
        /// The program's name.
        program: String,
        /// `get`, `store` or `erase`.
        verb: &'static str,
        /// What it was asked about.
        server: String,
        /// What it printed, or how it ended.
        message: String,
    },
    /// The helper program neither answered nor ended.
    #[error("credential helper `{program} {verb}` gave no answer within {} s", .limit.as_secs())]
    HelperHung {
        /// The program's name.
        program: String,
        /// `get`, `store` or `erase`.
        verb: &'static str,
        /// How long it was given.
        limit: Duration,
    },
    /// The store was made without a file.
    #[error("there is no credentials file to write to")]
    NoFile,
}

impl CredentialError {
    /// What the person could do, when that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::HelperMissing { program, path, .. } => Some(format!(
                "install `{program}`, or remove it from `credsStore`, `credHelpers` or `credential-helpers` in {}",
                path.display()
            )),
            _ => None,
        }
    }
}

/// Where a login was kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    /// In the file, readable by whoever can read the file.
    File(PathBuf),
    /// With a credential helper, by its program name.
    Helper(String),
}

/// Credentials by registry and repository; cheap to clone. Nothing is read before the first lookup.
///
/// All files have one format. The most specific entry wins: `host/ns/repo` before `host/ns` before `host` (podman's keys), and
/// among entries for the same thing that of the first file.
#[derive(Debug, Clone, Default)]
pub struct CredentialStore {
    /// The first is the one that logins are kept in.
    files: Arc<[PathBuf]>,
    helpers: Arc<GlobalHelpers>,
}

/// The helpers that `credential-helpers` of a `registries.conf` names: they are asked about every registry, by its plain name
/// (containers-registries.conf(5)).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GlobalHelpers {
    /// Those that are asked before the files (`containers-auth.json` in the list) are looked at.
    pub before: Vec<String>,
    /// Those that are asked when the files have nothing.
    pub after: Vec<String>,
    /// The settings file that names them, for errors.
    pub named_by: PathBuf,
}

impl CredentialStore {
    /// No credentials at all.
    pub fn anonymous() -> Self {
        Self::default()
    }

    /// The credentials of Docker's `config.json` at `path`; a missing file is an empty one.
    pub fn from_docker_config(path: impl AsRef<Path>) -> Self {
        Self::from_files([path.as_ref().to_owned()])
    }

    /// The credentials of these files, Docker's or podman's. Missing ones are empty; logins are kept in the first.
    pub fn from_files(files: impl IntoIterator<Item = PathBuf>) -> Self {
        Self { files: files.into_iter().collect(), helpers: Arc::default() }
    }

    /// The same, with helpers that are asked about every registry. Logins aren't kept with them.
    #[must_use]
    pub fn with_helpers(self, helpers: GlobalHelpers) -> Self {
        Self { helpers: Arc::new(helpers), ..self }
    }

    /// The file that logins are kept in.
    pub fn file(&self) -> Option<&Path> {
        self.files.first().map(PathBuf::as_path)
    }

    /// The credentials for a whole registry as references name it (`docker.io`, `localhost:5000`); `None` when there are none.
    ///
    /// # Errors
    /// A file is unreadable or malformed, or its credential helper is missing, failed, hung or printed nonsense.
    pub fn lookup(&self, registry: &str) -> Result<Option<Credentials>, CredentialError> {
        Ok(self.find(registry)?.map(|(found, _)| found))
    }

    /// As [`lookup`](Self::lookup), with the file that has (or whose helper has) the credentials.
    ///
    /// # Errors
    /// As [`lookup`](Self::lookup).
    pub fn find(&self, registry: &str) -> Result<Option<(Credentials, &Path)>, CredentialError> {
        if let Some(found) = self.ask(&self.helpers.before, registry)? {
            return Ok(Some(found));
        }
        for path in self.files.iter() {
            let config = DockerConfig::read(path)?;
            if let Some(name) = config.helper(registry)
                && let Some(found) = Helper::new(name, path).get(docker_config::key(registry))?
            {
                return Ok(Some((found, path)));
            }
            if let Some(found) = config.inline(registry)? {
                return Ok(Some((found, path)));
            }
        }
        self.ask(&self.helpers.after, registry)
    }

    /// The first answer of these helpers.
    fn ask(&self, helpers: &[String], registry: &str) -> Result<Option<(Credentials, &Path)>, CredentialError> {
        for name in helpers {
            if let Some(found) = Helper::new(name, &self.helpers.named_by).get(registry)? {
                return Ok(Some((found, &self.helpers.named_by)));
            }
        }
        Ok(None)
    }

    /// The credentials of an entry for this repository or for a part of its path (`host/ns/repo`, `host/ns`), the most specific
    /// first; those of the whole registry are not looked at, and no helper is asked.
    ///
    /// # Errors
    /// As [`lookup`](Self::lookup).
    pub fn lookup_repository(&self, registry: &str, path: &str) -> Result<Option<Credentials>, CredentialError> {
        let configs: Vec<DockerConfig> = self.files.iter().map(|file| DockerConfig::read(file)).collect::<Result<_, _>>()?;
        let mut part = path;
        while !part.is_empty() {
            for config in &configs {
                if let Some(found) = config.scoped(&format!("{registry}/{part}"))? {
                    return Ok(Some(found));
                }
            }
            part = part.rsplit_once('/').map_or("", |(parent, _)| parent);
        }
        Ok(None)
    }

    /// Keeps credentials for a registry (`kiln login`): with the credential helper that the first file names for it, else in
    /// that file, which is replaced atomically and readable by its owner only.
    ///
    /// # Errors
    /// As [`lookup`](Self::lookup), and when the file can't be written.
    pub fn store(&self, registry: &str, credentials: &Credentials) -> Result<Kept, CredentialError> {
        let path = self.file().ok_or(CredentialError::NoFile)?;
        let _lock = docker_config::lock(path)?;
        let mut config = DockerConfig::read(path)?;
        if let Some(name) = config.helper(registry) {
            let helper = Helper::new(name, path);
            helper.store(docker_config::key(registry), credentials)?;
            let program = helper.program;
            config.put(registry, None)?;
            config.write()?;
            return Ok(Kept::Helper(program));
        }
        config.put(registry, Some(credentials))?;
        config.write()?;
        Ok(Kept::File(path.to_path_buf()))
    }

    /// Forgets the credentials that the first file has for a registry (`kiln logout`); says whether there were any.
    ///
    /// # Errors
    /// As [`store`](Self::store).
    pub fn erase(&self, registry: &str) -> Result<bool, CredentialError> {
        let path = self.file().ok_or(CredentialError::NoFile)?;
        if !path.exists() {
            return Ok(false);
        }
        let _lock = docker_config::lock(path)?;
        let mut config = DockerConfig::read(path)?;
        let mut known = false;
        if let Some(name) = config.helper(registry) {
            let helper = Helper::new(name, path);
            let key = docker_config::key(registry);
            known = helper.get(key)?.is_some();
            if known {
                helper.erase(key)?;
            }
        }
        if config.remove(registry) {
            known = true;
            config.write()?;
        }
        Ok(known)
    }
}
