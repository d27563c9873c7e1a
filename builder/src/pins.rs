//! Hides the lock file: what the names in a Dockerfile stood for, written down once and kept to later.
//!
//! Three sorts of names mean something else tomorrow: tags of images, http addresses, references of git repositories. A name that says
//! itself what it stands for (`@sha256:…`, `--checksum`, a commit's id) is not in the file. The digest of an image is that of its index
//! where it has one, so that one line serves all platforms. No credential of an address is written: lines are found by the address without.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Deserialize;

use crate::ops::git;

/// The version of the file that is written and understood.
const VERSION: i64 = 1;
/// A lock file is not larger than this.
const LARGEST: u64 = 16 << 20;
/// Parameters of an address whose values may be credentials.
const SUSPICIOUS: [&str; 8] = ["token", "secret", "passw", "sig", "key", "cred", "auth", "session"];

/// Why a lock file can't be used, or kept to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PinError {
    /// There is none.
    #[error("there is no lock file {}", path.display())]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// It can't be read or written.
    #[error("cannot {operation} the lock file {}", path.display())]
    File {
        /// `read` or `write`.
        operation: &'static str,
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// It is no lock file.
    #[error("the lock file {} can't be understood: {reason}", path.display())]
    Syntax {
        /// Which one.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Another kiln wrote it.
    #[error("the lock file {} has version {found}, and this kiln understands version {VERSION}", path.display())]
    Version {
        /// Which one.
        path: PathBuf,
        /// What it says.
        found: String,
    },
    /// Something that the build needs is not in it.
    #[error("{what} is not in the lock file {}", path.display())]
    NotLocked {
        /// `the image x`, `the address y`, `the repository z`.
        what: String,
        /// The lock file.
        path: PathBuf,
    },
    /// An address gives something else now.
    #[error("`{url}` is not what the lock file {} says: expected {locked}, got {actual}", path.display())]
    Changed {
        /// The address.
        url: String,
        /// The lock file.
        path: PathBuf,
        /// What it says.
        locked: String,
        /// What there is.
        actual: String,
    },
    /// The image that the lock names can't be had under its name any more.
    #[error("cannot get {name} as the lock file {} has it ({locked})", path.display())]
    Gone {
        /// The name.
        name: String,
        /// The lock file.
        path: PathBuf,
        /// The digest.
        locked: String,
        /// Why.
        #[source]
        cause: Box<crate::error::Error>,
    },
}

impl PinError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            PinError::Missing { .. } => "write it with `kiln build --lock`, or say where it is with `--locked=FILE`",
            PinError::NotLocked { .. } => "bring it up to date with `kiln build --lock`",
            PinError::Version { .. } | PinError::Syntax { .. } => "remove it and write it anew with `kiln build --lock`",
            PinError::Changed { .. } | PinError::Gone { .. } => {
                "if the change is wanted, bring the lock file up to date with `kiln build --lock`"
            }
            PinError::File { .. } => "say where it is with `--lock=FILE` or `--locked=FILE`",
        }
    }
}

/// What a name stands for can change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sort {
    /// The tag of an image; pinned by digest.
    Image,
    /// An http address; pinned by the digest of what it gives.
    Url,
    /// A reference of a git repository; pinned by the id of a commit.
    Git,
}

type Table = BTreeMap<(Sort, String), String>;

/// The pins of one build. Clones are the same pins.
#[derive(Debug, Clone, Default)]
pub struct Pins(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    /// For which Dockerfile, as the header says.
    name: String,
    purpose: Purpose,
    /// What the file said.
    old: Table,
    /// What this build came to know or asked for.
    used: Mutex<Table>,
}

/// What pins are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// To be written to the file.
    Write,
    /// What the file says counts, and it says all.
    Enforce,
    /// What is known counts, wherever it is from; what is not known means what it means today.
    Recall,
}

impl Pins {
    /// None: names mean what they mean today.
    pub fn off() -> Self {
        Pins(None)
    }

    /// To be written to `path` when the build is done. What the file has of other builds stays.
    ///
    /// # Errors
    /// What is there is no lock file.
    pub fn write(path: PathBuf, name: &str) -> Result<Self, PinError> {
        let old = match read(&path) {
            Err(PinError::Missing { .. }) => Table::new(),
            old => old?,
        };
        Ok(Pins(Some(Arc::new(Inner { path, name: name.to_owned(), purpose: Purpose::Write, old, used: Mutex::default() }))))
    }

    /// To be kept to.
    ///
    /// # Errors
    /// There is no lock file that could be used.
    pub fn enforce(path: PathBuf) -> Result<Self, PinError> {
        let old = read(&path)?;
        Ok(Pins(Some(Arc::new(Inner { path, name: String::new(), purpose: Purpose::Enforce, old, used: Mutex::default() }))))
    }

    /// Those that somebody else remembers, where he remembers them; no file is involved.
    pub fn recalled(pins: impl IntoIterator<Item = (Sort, String, String)>) -> Self {
        let old = pins.into_iter().map(|(sort, name, value)| ((sort, shown(sort, &name)), value)).collect();
        let (path, name) = (PathBuf::new(), String::new());
        Pins(Some(Arc::new(Inner { path, name, purpose: Purpose::Recall, old, used: Mutex::default() })))
    }

    /// Whether a file is to be written.
    pub fn is_written(&self) -> bool {
        self.is_for(Purpose::Write)
    }

    /// Whether a file is kept to.
    pub fn is_enforced(&self) -> bool {
        self.is_for(Purpose::Enforce)
    }

    fn is_for(&self, purpose: Purpose) -> bool {
        self.0.as_ref().is_some_and(|inner| inner.purpose == purpose)
    }

    /// What a name is to stand for, where that is settled: by the lock file, or because this build has looked already.
    ///
    /// # Errors
    /// [`PinError::NotLocked`].
    pub fn pin(&self, sort: Sort, name: &str) -> Result<Option<String>, PinError> {
        let Some(inner) = &self.0 else { return Ok(None) };
        let key = (sort, shown(sort, name));
        match inner.purpose {
            Purpose::Write => return Ok(inner.used().get(&key).cloned()),
            Purpose::Recall => return Ok(inner.old.get(&key).cloned()),
            Purpose::Enforce => {}
        }
        match inner.old.get(&key) {
            Some(value) => {
                inner.used().insert(key, value.clone());
                Ok(Some(value.clone()))
            }
            None => {
                let sort = match sort {
                    Sort::Image => "image",
                    Sort::Url => "address",
                    Sort::Git => "repository",
                };
                Err(PinError::NotLocked { what: format!("the {sort} `{}`", key.1), path: inner.path.clone() })
            }
        }
    }

    /// Remembers what a name stands for.
    pub fn found(&self, sort: Sort, name: &str, value: &str) {
        if let Some(inner) = self.0.as_ref().filter(|inner| inner.purpose == Purpose::Write) {
            inner.used().insert((sort, shown(sort, name)), value.to_owned());
        }
    }

    /// The error that says that an address gives something else now.
    pub fn changed(&self, url: &str, locked: &str, actual: &str) -> Option<PinError> {
        let inner = self.0.as_ref().filter(|inner| inner.purpose == Purpose::Enforce)?;
        let (locked, actual) = (locked.to_owned(), actual.to_owned());
        Some(PinError::Changed { url: shown(Sort::Url, url), path: inner.path.clone(), locked, actual })
    }

    /// The error that says that an image can't be had any more.
    pub fn gone(&self, name: &str, locked: &str, cause: crate::error::Error) -> crate::error::Error {
        match &self.0 {
            Some(inner) if inner.purpose == Purpose::Enforce => crate::error::Error::Pins(PinError::Gone {
                name: name.to_owned(),
                path: inner.path.clone(),
                locked: locked.to_owned(),
                cause: Box::new(cause),
            }),
            _ => cause,
        }
    }

    /// The names that the lock file has and this build had no use for.
    pub fn unused(&self) -> Vec<String> {
        let Some(inner) = &self.0 else { return Vec::new() };
        let used = inner.used();
        inner.old.keys().filter(|key| !used.contains_key(key)).map(|(_, name)| name.clone()).collect()
    }

    /// Writes the file if it isn't what it should be, and says what changed in it: names, and what they stand for now.
    ///
    /// # Errors
    /// [`PinError::File`].
    pub fn save(&self) -> Result<Vec<(String, String)>, PinError> {
        let Some(inner) = self.0.as_ref().filter(|inner| inner.purpose == Purpose::Write) else { return Ok(Vec::new()) };
        let mut table = inner.old.clone();
        table.extend(inner.used().clone());
        let changed = table.iter().filter(|(key, value)| inner.old.get(key) != Some(value));
        let changed = changed.map(|((_, name), value)| (name.clone(), value.clone())).collect();
        let text = text(&inner.name, &table);
        let failed = |cause| PinError::File { operation: "write", path: inner.path.clone(), cause };
        if std::fs::read(&inner.path).is_ok_and(|old| old == text.as_bytes()) {
            return Ok(changed);
        }
        let folder = inner.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut draft = tempfile::Builder::new().prefix(".kiln-").tempfile_in(folder).map_err(failed)?;
        io::Write::write_all(&mut draft, text.as_bytes()).map_err(failed)?;
        // Temporary files are private; this one is meant for a repository.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        draft.as_file().set_permissions(mode).map_err(failed)?;
        draft.persist(&inner.path).map_err(|error| failed(error.error))?;
        Ok(changed)
    }
}

impl Inner {
    fn used(&self) -> MutexGuard<'_, Table> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A name as the file has it.
fn shown(sort: Sort, name: &str) -> String {
    match sort {
        Sort::Image => name.to_owned(),
        Sort::Url | Sort::Git => without_values(&git::redact(name)),
    }
}

/// The address without the values of parameters that may be credentials.
fn without_values(address: &str) -> String {
    let (address, fragment) = address.split_once('#').map_or((address, None), |(address, fragment)| (address, Some(fragment)));
    let Some((path, query)) = address.split_once('?') else {
        return fragment.map_or_else(|| address.to_owned(), |fragment| format!("{address}#{fragment}"));
    };
    let pairs = query.split('&').map(|pair| match pair.split_once('=') {
        Some((key, _)) if SUSPICIOUS.iter().any(|word| key.to_ascii_lowercase().contains(word)) => format!("{key}=xxxxx"),
        _ => pair.to_owned(),
    });
    let query = pairs.collect::<Vec<_>>().join("&");
    fragment.map_or_else(|| format!("{path}?{query}"), |fragment| format!("{path}?{query}#{fragment}"))
}

/// The file: one line a name, in the order of bytes, so that a change is a line of a diff.
fn text(name: &str, table: &Table) -> String {
    let mut out = format!(
        "# What the names in {name} stood for when it was built with `kiln build --lock`, which brings this file up to date.\n\
         # `kiln build --locked` builds from exactly this, whatever the names stand for by then.\n\
         version = {VERSION}\n"
    );
    for (sort, title) in [(Sort::Image, "images"), (Sort::Url, "urls"), (Sort::Git, "git")] {
        let mut lines = table.iter().filter(|((of, _), _)| *of == sort).peekable();
        if lines.peek().is_some() {
            // Writing to a string cannot fail.
            let _ = writeln!(out, "\n[{title}]");
        }
        for ((_, name), value) in lines {
            let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
            // A key in quotes has the grammar of a string, but is never of several lines.
            let key = name.replace('\\', "\\\\").replace('"', "\\\"");
            let _ = writeln!(out, "\"{key}\" = {}", quoted(value));
        }
    }
    out
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(rename = "version")]
    _version: i64,
    #[serde(default)]
    images: BTreeMap<String, String>,
    #[serde(default)]
    urls: BTreeMap<String, String>,
    #[serde(default)]
    git: BTreeMap<String, String>,
}

fn read(path: &Path) -> Result<Table, PinError> {
    let failed = |cause: io::Error| match cause.kind() {
        io::ErrorKind::NotFound => PinError::Missing { path: path.to_owned() },
        _ => PinError::File { operation: "read", path: path.to_owned(), cause },
    };
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut text = String::new();
    io::Read::read_to_string(&mut io::Read::take(file, LARGEST), &mut text).map_err(failed)?;
    parse(&text, path)
}

fn parse(text: &str, path: &Path) -> Result<Table, PinError> {
    let invalid = |reason: String| PinError::Syntax { path: path.to_owned(), reason };
    let first_line = |error: toml::de::Error| {
        let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        invalid(format!("line {}: {}", line.unwrap_or(1), error.message()))
    };
    let all: toml::Table = toml::from_str(text).map_err(first_line)?;
    match all.get("version") {
        Some(toml::Value::Integer(VERSION)) => {}
        None => return Err(invalid("it has no version".to_owned())),
        Some(found) => return Err(PinError::Version { path: path.to_owned(), found: found.to_string() }),
    }
    let document: Document = toml::from_str(text).map_err(first_line)?;
    let mut table = Table::new();
    for (sort, entries) in [(Sort::Image, document.images), (Sort::Url, document.urls), (Sort::Git, document.git)] {
        for (name, value) in entries {
            let is_valid = match sort {
                Sort::Image | Sort::Url => kiln_oci::digest::Digest::parse(&value).is_ok(),
                Sort::Git => matches!(value.len(), 40 | 64) && value.bytes().all(|b| b.is_ascii_hexdigit()),
            };
            if !is_valid {
                return Err(invalid(format!("`{value}` of `{name}` is neither a digest nor the id of a commit")));
            }
            table.insert((sort, name), value);
        }
    }
    Ok(table)
}

/// The names in a list, for a message: the first few.
pub(crate) fn few(names: &[String]) -> String {
    let shown: BTreeSet<&str> = names.iter().take(3).map(String::as_str).collect();
    let shown = shown.into_iter().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(3) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_sorted_and_can_be_read_again() {
        let digest = |c: &str| format!("sha256:{}", c.repeat(64));
        let rows = [
            (Sort::Git, "https://h/a.git#v1", "c".repeat(40)),
            (Sort::Url, "https://h/b\"\\ü?x=1", digest("b")),
            (Sort::Image, "docker.io/library/z:1", digest("a")),
            (Sort::Image, "docker.io/library/a:latest", digest("d")),
        ];
        let table: Table = rows.iter().map(|(sort, name, value)| ((*sort, (*name).to_owned()), value.clone())).collect();
        let written = text("Dockerfile", &table);
        assert_eq!(parse(&written, Path::new("kiln.lock")).unwrap(), table);
        let lines: Vec<&str> = written.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect();
        assert_eq!(
            lines,
            [
                "version = 1",
                "[images]",
                &format!("\"docker.io/library/a:latest\" = \"{}\"", digest("d")),
                &format!("\"docker.io/library/z:1\" = \"{}\"", digest("a")),
                "[urls]",
                &format!("\"https://h/b\\\"\\\\ü?x=1\" = \"{}\"", digest("b")),
                "[git]",
                &format!("\"https://h/a.git#v1\" = \"{}\"", "c".repeat(40)),
            ]
        );
    }

    #[test]
    fn what_is_no_lock_file() {
        for (text, want) in [
            ("", "it has no version"),
            ("version = 2\n", "has version 2"),
            ("version = \"1\"\n", "has version \"1\""),
            ("version = 1\n[more]\n", "line 2: unknown field `more`"),
            ("version = 1\n[images]\nx = 5\n", "line 3: "),
            ("version = 1\n[images]\nx = \"sha256:00\"\n", "`sha256:00` of `x` is neither"),
            ("version = 1\n[git]\nx = \"v1\"\n", "`v1` of `x` is neither"),
            ("<<<<<<< ours\n", "line 1: "),
        ] {
            let error = parse(text, Path::new("kiln.lock")).unwrap_err().to_string();
            assert!(error.contains(want), "{text:?}: {error}");
        }
    }

    #[test]
    fn no_credential_is_in_a_name() {
        for (address, want) in [
            ("https://u:canary@h/f", "https://h/f"),
            ("https://canary@h/r.git#v1:dir", "https://h/r.git#v1:dir"),
            ("ssh://git@h/r", "ssh://git@h/r"),
            ("https://h/f?x=1&access_token=canary&Y=2#f", "https://h/f?x=1&access_token=xxxxx&Y=2#f"),
            (
                "https://h/f?X-Amz-Signature=canary&X-Amz-Credential=canary",
                "https://h/f?X-Amz-Signature=xxxxx&X-Amz-Credential=xxxxx",
            ),
            ("https://h/f#a?token=b", "https://h/f#a?token=b"),
        ] {
            assert_eq!(shown(Sort::Url, address), want);
        }
    }
}
