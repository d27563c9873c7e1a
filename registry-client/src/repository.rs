//! Hides nothing but a pair: a registry and a repository in it, without tag and digest.

use std::fmt;

use kiln_oci::reference::Reference;

/// A repository: the registry as references name it (`docker.io`, `localhost:5000`) and the path in it (`library/busybox`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Repository {
    domain: String,
    path: String,
}

impl Repository {
    /// A registry, of which no repository is meant yet.
    pub(crate) fn of_registry(domain: &str) -> Self {
        Self { domain: domain.to_owned(), path: String::new() }
    }

    /// The registry, with its port.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository within the registry.
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl From<&Reference> for Repository {
    fn from(reference: &Reference) -> Self {
        Self { domain: reference.domain().to_owned(), path: reference.path().to_owned() }
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.path)
    }
}
