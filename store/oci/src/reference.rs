//! Hides the grammar of image names (distribution/reference): domain, repository, tag, digest, and Docker Hub's short forms.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::digest::Digest;

/// The registry that a name without one means.
pub const DEFAULT_DOMAIN: &str = "docker.io";
/// The tag that a name without tag and digest means.
pub const DEFAULT_TAG: &str = "latest";

/// Why a text is not an image name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid image name `{text}`: {reason}")]
pub struct ReferenceError {
    text: String,
    reason: &'static str,
}

/// A complete image name: `domain/path[:tag][@digest]`; at least one of tag and digest is there after parsing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Parses a name as people type it: `busybox` is `docker.io/library/busybox:latest`.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        let fail = |reason| ReferenceError { text: text.to_owned(), reason };
        if text.is_empty() {
            return Err(fail("it is empty"));
        }
        if text.len() == 64 && Digest::from_hex(text).is_some() {
            return Err(fail("64 hexadecimal digits would be mistaken for an image id"));
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => {
                (name, Some(Digest::parse(digest).map_err(|_| fail("what follows `@` is not a sha256 digest"))?))
            }
            None => (text, None),
        };
        let (name, tag) = match name.rfind(':') {
            Some(colon) if !name[colon..].contains('/') => (&name[..colon], Some(&name[colon + 1..])),
            _ => (name, None),
        };
        if let Some(tag) = tag {
            check_tag(tag).map_err(fail)?;
        }
        // The first component is a registry only if it can't be a repository: it has a dot or a colon, is `localhost`,
        // or has upper-case letters.
        let (domain, path) = match name.split_once('/') {
            Some((first, rest))
                if first.contains(['.', ':']) || first == "localhost" || first.bytes().any(|b| b.is_ascii_uppercase()) =>
            {
                (first, rest)
            }
            _ => (DEFAULT_DOMAIN, name),
        };
        let domain = if domain == "index.docker.io" { DEFAULT_DOMAIN } else { domain };
        check_domain(domain).map_err(fail)?;
        let path = if domain == DEFAULT_DOMAIN && !path.contains('/') { format!("library/{path}") } else { path.to_owned() };
        check_path(&path).map_err(fail)?;
        if path.len() + domain.len() + 1 > 255 {
            return Err(fail("the repository name is longer than 255 characters"));
        }
        let tag = match (tag, digest) {
            (None, None) => Some(DEFAULT_TAG.to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        Ok(Self { domain: domain.to_owned(), path, tag, digest })
    }

    /// The registry, with its port.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository within the registry.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag, if the name has one.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if the name has one; it wins over the tag.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// `domain/path`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The same name pinned to `digest`.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { digest: Some(digest), ..self.clone() }
    }

    /// The same repository with this digest and no tag.
    #[must_use]
    pub fn pinned(&self, digest: Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self.clone() }
    }

    /// The same repository with another tag and no digest.
    pub fn with_tag(&self, tag: &str) -> Result<Self, ReferenceError> {
        check_tag(tag).map_err(|reason| ReferenceError { text: tag.to_owned(), reason })?;
        Ok(Self { tag: Some(tag.to_owned()), digest: None, ..self.clone() })
    }

    /// The repository as people type it: `busybox`, `user/app`, `ghcr.io/a/b`.
    pub fn familiar_repository(&self) -> String {
        if self.domain != DEFAULT_DOMAIN {
            return self.repository();
        }
        self.path.strip_prefix("library/").filter(|rest| !rest.contains('/')).unwrap_or(&self.path).to_owned()
    }

    /// The name as people type it: `busybox:latest`.
    pub fn familiar(&self) -> String {
        let mut out = self.familiar_repository();
        if let Some(tag) = &self.tag {
            out.push(':');
            out.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            out.push('@');
            out.push_str(&digest.to_string());
        }
        out
    }
}

fn check_tag(tag: &str) -> Result<(), &'static str> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let mut bytes = tag.bytes();
    match bytes.next() {
        None => Err("the tag is empty"),
        Some(first) if !word(first) => Err("a tag begins with a letter, a digit or `_`"),
        _ if tag.len() > 128 => Err("the tag is longer than 128 characters"),
        _ if bytes.all(|b| word(b) || matches!(b, b'.' | b'-')) => Ok(()),
        _ => Err("a tag has only letters, digits, `_`, `.` and `-`"),
    }
}

fn check_domain(domain: &str) -> Result<(), &'static str> {
    let (host, port) = if let Some(rest) = domain.strip_prefix('[') {
        let (v6, rest) = rest.split_once(']').ok_or("the registry's `[` has no `]`")?;
        if v6.is_empty() || !v6.bytes().all(|b| b.is_ascii_hexdigit() || matches!(b, b':' | b'.')) {
            return Err("the registry is not an IPv6 address");
        }
        match rest.strip_prefix(':') {
            Some(port) => ("v6", Some(port)),
            None if rest.is_empty() => ("v6", None),
            None => return Err("after the registry's `]` only a port may follow"),
        }
    } else {
        match domain.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (domain, None),
        }
    };
    if port.is_some_and(|p| p.parse::<u16>().is_err()) {
        return Err("the registry's port is not a number up to 65535");
    }
    let label = |l: &str| {
        !l.is_empty() && !l.starts_with('-') && !l.ends_with('-') && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    if host.split('.').all(label) { Ok(()) } else { Err("the registry is not a host name") }
}

fn check_path(path: &str) -> Result<(), &'static str> {
    for part in path.split('/') {
        if part.is_empty() {
            return Err("the repository has an empty part");
        }
        if part.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err("repository names are lower-case");
        }
        if !part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-')) {
            return Err("a repository has only lower-case letters, digits, and `.`, `_`, `-` between them");
        }
        let alnum = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
        if !alnum(part.bytes().next()) || !alnum(part.bytes().next_back()) {
            return Err("each part of a repository begins and ends with a letter or a digit");
        }
        // Separators: one `.`, one or two `_`, or any number of `-`.
        let mut runs = part.split(|c: char| c.is_ascii_alphanumeric()).filter(|run| !run.is_empty());
        if !runs.all(|run| matches!(run, "." | "_" | "__") || run.bytes().all(|b| b == b'-')) {
            return Err("between two words of a repository stands one `.`, one or two `_`, or dashes");
        }
    }
    Ok(())
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;
    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        Self::parse(text)
    }
}

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed() {
        let digest = Digest::of(b"");
        for (text, full, familiar) in [
            ("busybox".to_owned(), "docker.io/library/busybox:latest".to_owned(), "busybox:latest".to_owned()),
            ("a/b:1".into(), "docker.io/a/b:1".into(), "a/b:1".into()),
            ("docker.io/library/busybox".into(), "docker.io/library/busybox:latest".into(), "busybox:latest".into()),
            ("index.docker.io/a/b".into(), "docker.io/a/b:latest".into(), "a/b:latest".into()),
            ("localhost/x".into(), "localhost/x:latest".into(), "localhost/x:latest".into()),
            ("127.0.0.1:5000/x/y:t".into(), "127.0.0.1:5000/x/y:t".into(), "127.0.0.1:5000/x/y:t".into()),
            ("[::1]:5000/a".into(), "[::1]:5000/a:latest".into(), "[::1]:5000/a:latest".into()),
            (format!("x@{digest}"), format!("docker.io/library/x@{digest}"), format!("x@{digest}")),
            (format!("x:1@{digest}"), format!("docker.io/library/x:1@{digest}"), format!("x:1@{digest}")),
        ] {
            let reference = Reference::parse(&text).unwrap();
            assert_eq!(reference.to_string(), full, "{text}");
            assert_eq!(reference.familiar(), familiar, "{text}");
        }
    }

    #[test]
    fn bad_names_are_refused() {
        let long = "a".repeat(129);
        for text in [
            "",
            ":",
            "a:",
            "a:b c",
            "a//b",
            "a@sha256:00",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "x:99999/",
            "h:99999/a",
            "a/",
            &format!("a:{long}"),
            &"0".repeat(64),
            "a b",
            "http://x/y",
        ] {
            assert!(Reference::parse(text).is_err(), "{text}");
        }
    }
}
