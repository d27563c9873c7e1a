//! Hides nothing: what an SBOM says of one package, and of the distribution that the image is of.

use crate::attest::purl::Purl;

/// A package that was found in an image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Package {
    /// Its address in the words of its ecosystem; no two packages of a list have the same.
    pub purl: String,
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The license as its own metadata has it; empty where it is unknown.
    pub license: String,
    /// Who made it, as `Name <address>`; may be empty.
    pub supplier: String,
    /// Its home page; may be empty.
    pub homepage: String,
    /// Which kind of list it was found in.
    pub list: &'static str,
    /// Where that list is in the image.
    pub found: String,
}

/// What `os-release` says, as far as package URLs need it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Distribution {
    /// `ID`: `debian`, `alpine`.
    pub id: String,
    /// `VERSION_ID`: may be empty, as in Debian's sid.
    pub version: String,
}

impl Distribution {
    /// Reads `os-release` (os-release(5)): lines of shell assignments.
    pub fn parse(text: &str) -> Self {
        let value = |key: &str| {
            let line = text.lines().rev().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='));
            line.map(|value| value.trim_matches(['"', '\'']).to_owned()).unwrap_or_default()
        };
        Self { id: value("ID"), version: value("VERSION_ID") }
    }

    /// The purl of a package of the distribution. `kind` also names the distribution where `os-release` doesn't.
    pub fn purl(&self, kind: &str, name: &str, version: &str, qualifiers: &[(&str, &str)]) -> String {
        let namespace = match (self.id.as_str(), kind) {
            ("rhel", _) => "redhat",
            (id, _) if id.starts_with("opensuse") => "opensuse",
            ("", "deb") => "debian",
            ("", "apk") => "alpine",
            (id, _) => id,
        };
        let distro = match (self.id.as_str(), self.version.as_str()) {
            ("", _) => String::new(),
            (id, "") => id.to_owned(),
            (id, version) => format!("{id}-{version}"),
        };
        let mut all = qualifiers.to_vec();
        all.push(("distro", &distro));
        Purl { kind, namespace, name, version, qualifiers: &all }.to_string()
    }
}

/// Stanzas of `key: value` lines, with empty lines between them: what dpkg, apk and Python write. A line that begins with a blank
/// goes on with the value before it.
pub(crate) fn stanzas(text: &str) -> impl Iterator<Item = Stanza<'_>> {
    let mut lines = text.lines();
    std::iter::from_fn(move || {
        let mut fields: Vec<(&str, &str)> = Vec::new();
        for line in lines.by_ref() {
            let line = line.strip_suffix('\r').unwrap_or(line);
            if line.trim().is_empty() {
                match fields.is_empty() {
                    true => continue,
                    false => break,
                }
            }
            // Of a value over several lines the first is enough for every field that is read.
            if !line.starts_with([' ', '\t'])
                && let Some((key, value)) = line.split_once(':')
            {
                fields.push((key, value.trim()));
            }
        }
        (!fields.is_empty()).then_some(Stanza(fields))
    })
}

/// One of them.
#[derive(Debug)]
pub(crate) struct Stanza<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Stanza<'a> {
    /// A field, empty if there is none. Case counts.
    pub(crate) fn get(&self, key: &str) -> &'a str {
        self.find(key).unwrap_or_default()
    }

    /// A field.
    pub(crate) fn find(&self, key: &str) -> Option<&'a str> {
        self.all(key).next()
    }

    /// All fields of that name.
    pub(crate) fn all<'s>(&'s self, key: &'s str) -> impl Iterator<Item = &'a str> + 's {
        self.0.iter().filter(move |(k, _)| *k == key).map(|(_, value)| *value)
    }
}
