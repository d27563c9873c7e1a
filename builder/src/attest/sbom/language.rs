//! Hides what each language's tools leave behind about what they installed or would install: metadata of installed packages, and
//! lock files.

use serde::Deserialize;
use serde_json::Value;

use super::package::{Package, stanzas};
use crate::attest::purl::Purl;

/// A file that says something about packages, told from its name and the folders it lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `METADATA` or `PKG-INFO` of an installed Python package.
    PythonMetadata,
    /// `poetry.lock` and `uv.lock`.
    PythonLock,
    /// `Pipfile.lock`.
    Pipfile,
    /// `package.json` of an installed package.
    NodePackage,
    /// `package-lock.json`, also `npm-shrinkwrap.json`.
    NodeLock,
    /// `yarn.lock`, of both kinds.
    YarnLock,
    /// `pnpm-lock.yaml`.
    PnpmLock,
    /// `Cargo.lock`.
    CargoLock,
    /// `go.mod`.
    GoMod,
    /// `Gemfile.lock`.
    GemLock,
    /// `*.gemspec` of an installed gem.
    Gemspec,
    /// `composer.lock`, and `installed.json` of Composer.
    Composer,
}

impl Format {
    /// What the file at `path` (relative, with `/`) is.
    pub fn of(path: &str) -> Option<Self> {
        let mut parts = path.rsplit('/');
        let name = parts.next()?;
        let folder = parts.next().unwrap_or_default();
        let above = parts.next().unwrap_or_default();
        Some(match name {
            "METADATA" if folder.ends_with(".dist-info") => Self::PythonMetadata,
            "PKG-INFO" if folder.ends_with(".egg-info") => Self::PythonMetadata,
            _ if name.ends_with(".egg-info") => Self::PythonMetadata,
            "poetry.lock" | "uv.lock" => Self::PythonLock,
            "Pipfile.lock" => Self::Pipfile,
            "package.json" if above == "node_modules" => Self::NodePackage,
            "package.json" if above.starts_with('@') && parts.next() == Some("node_modules") => Self::NodePackage,
            "package-lock.json" | "npm-shrinkwrap.json" => Self::NodeLock,
            "yarn.lock" => Self::YarnLock,
            "pnpm-lock.yaml" => Self::PnpmLock,
            "Cargo.lock" => Self::CargoLock,
            "go.mod" => Self::GoMod,
            "Gemfile.lock" | "gems.locked" => Self::GemLock,
            _ if name.ends_with(".gemspec") && folder == "specifications" => Self::Gemspec,
            _ if name.ends_with(".gemspec") && folder == "default" && above == "specifications" => Self::Gemspec,
            "composer.lock" => Self::Composer,
            "installed.json" if folder == "composer" => Self::Composer,
            _ => return None,
        })
    }

    /// The packages that such a file names. What it holds beside them, or a file that is damaged, says nothing.
    pub fn packages(self, text: &str, found: &str) -> Vec<Package> {
        let (kind, list, named) = match self {
            Self::PythonMetadata => ("pypi", "python", python_metadata(text)),
            Self::PythonLock => ("pypi", "python-lock", toml_lock(text)),
            Self::Pipfile => ("pypi", "python-lock", pipfile(text)),
            Self::NodePackage => ("npm", "node", node_package(text)),
            Self::NodeLock => ("npm", "node-lock", node_lock(text)),
            Self::YarnLock => ("npm", "node-lock", yarn_lock(text)),
            Self::PnpmLock => ("npm", "node-lock", pnpm_lock(text)),
            Self::CargoLock => ("cargo", "cargo-lock", toml_lock(text)),
            Self::GoMod => ("golang", "go-mod", go_mod(text)),
            Self::GemLock => ("gem", "gem-lock", gem_lock(text)),
            Self::Gemspec => ("gem", "gem", gemspec(text)),
            Self::Composer => ("composer", "composer", composer(text)),
        };
        let whole = named.into_iter().filter(|named| !named.name.is_empty() && !named.version.is_empty());
        whole.map(|named| named.package(kind, list, found)).collect()
    }
}

/// What a file says of one package.
#[derive(Debug, Default)]
pub(super) struct Named {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) license: String,
    pub(super) supplier: String,
    pub(super) homepage: String,
}

impl Named {
    fn new(name: impl Into<String>, version: impl Into<String>) -> Self {
        Self { name: name.into(), version: version.into(), ..Self::default() }
    }

    /// With the address of that kind of package.
    pub(super) fn package(self, kind: &'static str, list: &'static str, found: &str) -> Package {
        // Python's names mean the same with dashes, dots and underscores; so do those of Composer in either case.
        let spelled = match kind {
            "pypi" => self.name.to_lowercase().replace(['_', '.'], "-"),
            "composer" => self.name.to_lowercase(),
            _ => self.name.clone(),
        };
        let (namespace, name) = match kind {
            "npm" | "golang" | "composer" | "maven" => spelled.rsplit_once('/').unwrap_or(("", &spelled)),
            _ => ("", spelled.as_str()),
        };
        let purl = Purl { kind, namespace, name, version: &self.version, qualifiers: &[] }.to_string();
        let Self { name, version, license, supplier, homepage } = self;
        Package { purl, name, version, license, supplier, homepage, list, found: found.to_owned() }
    }
}

/// The head of an e-mail (Python packaging, "Core metadata").
fn python_metadata(text: &str) -> Vec<Named> {
    let Some(head) = stanzas(text).next() else { return Vec::new() };
    let license = match head.get("License-Expression") {
        "" => head.get("License"),
        expression => expression,
    };
    let supplier = match (head.get("Author"), head.get("Author-email")) {
        ("", email) => email.to_owned(),
        (author, _) => author.to_owned(),
    };
    vec![Named {
        license: if license == "UNKNOWN" { String::new() } else { license.to_owned() },
        supplier,
        homepage: head.get("Home-page").to_owned(),
        ..Named::new(head.get("Name"), head.get("Version"))
    }]
}

/// `[[package]]` tables with a name and a version: Cargo, poetry, uv.
fn toml_lock(text: &str) -> Vec<Named> {
    #[derive(Deserialize)]
    struct Lock {
        #[serde(default)]
        package: Vec<Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        name: String,
        #[serde(default)]
        version: String,
    }
    let lock: Option<Lock> = toml::from_str(text).ok();
    lock.into_iter().flat_map(|lock| lock.package).map(|entry| Named::new(entry.name, entry.version)).collect()
}

/// `default` and `develop`, each a map of names to `{ "version": "==1.0" }`.
fn pipfile(text: &str) -> Vec<Named> {
    let Ok(lock) = serde_json::from_str::<Value>(text) else { return Vec::new() };
    let groups = ["default", "develop"].iter().filter_map(|group| lock.get(group)?.as_object());
    let named = groups.flatten().filter_map(|(name, entry)| {
        let version = entry.get("version")?.as_str()?;
        Some(Named::new(name.as_str(), version.trim_start_matches('=')))
    });
    named.collect()
}

fn string(value: &Value, key: &str) -> String {
    value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn node_package(text: &str) -> Vec<Named> {
    let Ok(package) = serde_json::from_str::<Value>(text) else { return Vec::new() };
    vec![json_package(&package)]
}

/// A package as npm and Composer write it: a license is a text, an object with a `type`, or a list of these.
fn json_package(package: &Value) -> Named {
    let license = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => string(other, "type"),
    };
    let licenses = match (package.get("license"), package.get("licenses")) {
        (Some(Value::Array(all)), _) | (None, Some(Value::Array(all))) => {
            let all: Vec<String> = all.iter().map(license).filter(|text| !text.is_empty()).collect();
            if all.len() > 1 { format!("({})", all.join(" OR ")) } else { all.join("") }
        }
        (Some(one), _) => license(one),
        _ => String::new(),
    };
    let supplier = match package.get("author") {
        Some(Value::String(text)) => text.clone(),
        Some(other) => string(other, "name"),
        None => String::new(),
    };
    Named {
        license: licenses,
        supplier,
        homepage: string(package, "homepage"),
        ..Named::new(string(package, "name"), string(package, "version"))
    }
}

/// `packages`, by the folder of each, since npm 7; before, `dependencies`, by name, with their own below.
fn node_lock(text: &str) -> Vec<Named> {
    let Ok(lock) = serde_json::from_str::<Value>(text) else { return Vec::new() };
    let mut out = Vec::new();
    if let Some(packages) = lock.get("packages").and_then(Value::as_object) {
        for (folder, entry) in packages {
            let Some((_, name)) = folder.rsplit_once("node_modules/") else { continue };
            let own = string(entry, "name");
            let license = string(entry, "license");
            let name = if own.is_empty() { name.to_owned() } else { own };
            out.push(Named { license, ..Named::new(name, string(entry, "version")) });
        }
        return out;
    }
    let mut todo: Vec<&Value> = lock.get("dependencies").into_iter().collect();
    while let Some(dependencies) = todo.pop() {
        for (name, entry) in dependencies.as_object().into_iter().flatten() {
            out.push(Named::new(name.as_str(), string(entry, "version")));
            todo.extend(entry.get("dependencies"));
        }
    }
    out
}

/// `"@a/b@^1.0", b@~2:` and below it `version "1.0.2"`, or since yarn 2 `version: 1.0.2`.
fn yarn_lock(text: &str) -> Vec<Named> {
    let mut out = Vec::new();
    let mut name = String::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if !line.starts_with(' ') {
            let first = line.trim_end_matches(':').split(',').next().unwrap_or_default().trim().trim_matches('"');
            // The scope begins with the character that parts the name from its range.
            let at = first.get(1..).and_then(|rest| rest.find('@')).map_or(first.len(), |at| at + 1);
            first.get(..at).unwrap_or_default().clone_into(&mut name);
        } else if let Some(version) = line.strip_prefix("  version")
            && !name.is_empty()
            && name != "__metadata"
        {
            let version = version.trim_start_matches([':', ' ']).trim_matches('"');
            // What is in the project itself has no release.
            if version != "0.0.0-use.local" {
                out.push(Named::new(std::mem::take(&mut name), version));
            }
        }
    }
    out
}

/// The keys of `packages`: `/a/1.0.0`, `/@s/a@1.0.0(peer@2)` or `'@s/a@1.0.0'`, by the age of the file.
fn pnpm_lock(text: &str) -> Vec<Named> {
    let mut out = Vec::new();
    let lines = text.lines().skip_while(|line| line.trim_end() != "packages:").skip(1);
    for line in lines.take_while(|line| line.is_empty() || line.starts_with(' ')) {
        let Some(key) = line.strip_prefix("  ").filter(|key| !key.starts_with(' ')) else { continue };
        let Some(key) = key.trim_end().strip_suffix(':') else { continue };
        let key = key.trim_matches(['\'', '"']);
        let key = key.split('(').next().unwrap_or(key);
        let old = key.strip_prefix('/').and_then(|key| {
            key.match_indices('/').find(|(at, _)| key[at + 1..].starts_with(|c: char| c.is_ascii_digit())).map(|(at, _)| at)
        });
        let key = key.strip_prefix('/').unwrap_or(key);
        let from = usize::from(key.starts_with('@'));
        let found = old.or_else(|| key.get(from..)?.rfind('@').map(|at| at + from));
        if let Some((name, version)) = found.and_then(|at| Some((key.get(..at)?, key.get(at + 1..)?))) {
            out.push(Named::new(name, version.split('_').next().unwrap_or(version)));
        }
    }
    out
}

/// `require` lines, alone or in a block; what `replace` puts elsewhere stays under its name.
fn go_mod(text: &str) -> Vec<Named> {
    let mut out = Vec::new();
    let mut within = false;
    for line in text.lines() {
        let line = line.split("//").next().unwrap_or_default().trim();
        let entry = match line.strip_prefix("require") {
            Some(rest) if rest.trim() == "(" => {
                within = true;
                continue;
            }
            Some(rest) if rest.starts_with([' ', '\t']) => rest.trim(),
            _ if line == ")" => {
                within = false;
                continue;
            }
            _ if within => line,
            _ => continue,
        };
        if let Some((name, version)) = entry.split_once(char::is_whitespace) {
            out.push(Named::new(name.trim_matches('"'), version.trim()));
        }
    }
    out
}

/// `specs:` below `GEM`, `GIT` or `PATH`: four blanks, a name, a version in parentheses.
fn gem_lock(text: &str) -> Vec<Named> {
    let mut within = false;
    let mut out = Vec::new();
    for line in text.lines() {
        if !line.starts_with(' ') {
            within = matches!(line.trim(), "GEM" | "GIT" | "PATH");
        } else if within
            && let Some(spec) = line.strip_prefix("    ").filter(|spec| !spec.starts_with(' '))
            && let Some((name, version)) = spec.split_once(" (")
        {
            out.push(Named::new(name, version.trim_end_matches(')')));
        }
    }
    out
}

/// As RubyGems writes it into `specifications`: `s.name = "rake".freeze`.
fn gemspec(text: &str) -> Vec<Named> {
    let quoted = |value: &str| value.split('"').nth(1).unwrap_or_default().to_owned();
    let value = |key: &str| {
        let found = text.lines().find_map(|line| {
            let rest = line.trim_start().strip_prefix("s.")?.strip_prefix(key)?.trim_start();
            rest.strip_prefix('=')
        });
        found.map(quoted).unwrap_or_default()
    };
    vec![Named {
        license: value("licenses"),
        supplier: value("authors"),
        homepage: value("homepage"),
        ..Named::new(value("name"), value("version"))
    }]
}

/// `packages` and `packages-dev`, or a bare list as Composer 1 wrote it.
fn composer(text: &str) -> Vec<Named> {
    let Ok(lock) = serde_json::from_str::<Value>(text) else { return Vec::new() };
    let groups = ["packages", "packages-dev"].iter().filter_map(|group| lock.get(group)?.as_array());
    let named = groups.chain(lock.as_array()).flatten().map(|entry| {
        let supplier = entry.get("authors").and_then(|all| Some(string(all.as_array()?.first()?, "name")));
        Named { supplier: supplier.unwrap_or_default(), ..json_package(entry) }
    });
    named.collect()
}

#[cfg(test)]
mod tests;
