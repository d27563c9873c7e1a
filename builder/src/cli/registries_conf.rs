//! Hides containers' `registries.conf` (versions 1 and 2), the settings of registries that podman, buildah and skopeo share.
//!
//! Names without a registry mean Docker Hub here, as they do for docker: `unqualified-search-registries`, short names and
//! `[aliases]` are left out, or a Dockerfile would mean another image on another machine. So is `credential-helpers`.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use kiln_registry_client::{Mirror, Rule, Serves};
use serde::Deserialize;

use super::settings::{SettingsError, parse};

/// Where the files are.
#[derive(Debug, Default)]
pub(crate) struct Places {
    /// The file itself: the first that is there counts. `true`: it was named and has to be there.
    pub(crate) files: Vec<(PathBuf, bool)>,
    /// Folders with more of them, which are read after it.
    pub(crate) folders: Vec<PathBuf>,
}

/// What kiln reads of a file; podman's other keys are passed over.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct File {
    registry: Vec<Table>,
    registries: VersionOne,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Table {
    prefix: String,
    location: String,
    insecure: bool,
    blocked: bool,
    mirror: Vec<MirrorTable>,
    mirror_by_digest_only: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct MirrorTable {
    location: String,
    insecure: bool,
    pull_from_mirror: Pull,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Pull {
    #[default]
    All,
    DigestOnly,
    TagOnly,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct VersionOne {
    insecure: List,
    block: List,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct List {
    registries: Vec<String>,
}

/// Reads the files. A table for a prefix replaces one for the same prefix in an earlier file.
pub(crate) fn rules(places: &Places) -> Result<Vec<Rule>, SettingsError> {
    let mut all = BTreeMap::new();
    for (path, required) in &places.files {
        if read(path, *required, &mut all)? {
            break;
        }
    }
    for folder in &places.folders {
        let mut more: Vec<PathBuf> = match std::fs::read_dir(folder) {
            Ok(entries) => entries.filter_map(|entry| Some(entry.ok()?.path())).collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(cause) => return Err(SettingsError::Read { path: folder.clone(), cause }),
        };
        more.retain(|path| path.extension().is_some_and(|extension| extension == "conf"));
        more.sort();
        for path in more {
            read(&path, false, &mut all)?;
        }
    }
    Ok(all.into_values().collect())
}

/// Adds a file's tables; `false` when it isn't there.
fn read(path: &Path, required: bool, all: &mut BTreeMap<String, Rule>) -> Result<bool, SettingsError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !required => return Ok(false),
        Err(cause) => return Err(SettingsError::Read { path: path.to_owned(), cause }),
    };
    let file: File = parse(path, &text)?;
    let invalid = |message: String| SettingsError::Invalid { path: path.to_owned(), message };
    for table in file.registry {
        let rule = rule(table).map_err(invalid)?;
        all.insert(rule.prefix.clone(), rule);
    }
    let VersionOne { insecure, block } = file.registries;
    for (list, blocked) in [(insecure, false), (block, true)] {
        for prefix in list.registries {
            let rule = all.entry(prefix.clone()).or_insert(Rule { prefix, ..Rule::default() });
            if blocked { rule.blocked = true } else { rule.insecure = true }
        }
    }
    Ok(true)
}

fn rule(table: Table) -> Result<Rule, String> {
    let location = named(&table.location)?;
    let prefix = if table.prefix.is_empty() { location.clone() } else { named(&table.prefix)? };
    if prefix.is_empty() {
        return Err("a table `[[registry]]` has neither `prefix` nor `location`".to_owned());
    }
    if prefix.starts_with('*') && !location.is_empty() {
        return Err(format!("`{prefix}` stands for many registries and can't have a `location`"));
    }
    let mut mirrors = Vec::new();
    for mirror in table.mirror {
        let location = named(&mirror.location)?;
        if location.is_empty() {
            return Err(format!("a mirror of `{prefix}` has no `location`"));
        }
        let serves = match (mirror.pull_from_mirror, table.mirror_by_digest_only) {
            (Pull::DigestOnly, _) | (Pull::All, true) => Serves::Digests,
            (Pull::All, false) => Serves::All,
            (Pull::TagOnly, false) => Serves::Tags,
            (Pull::TagOnly, true) => {
                return Err(format!("mirror `{location}` is both `tag-only` and `mirror-by-digest-only`"));
            }
        };
        mirrors.push(Mirror { insecure: mirror.insecure, serves, ..Mirror::new(location) });
    }
    Ok(Rule { prefix, location, blocked: table.blocked, insecure: table.insecure, mirrors })
}

/// A name without the slash at its end.
fn named(text: &str) -> Result<String, String> {
    match text.contains("://") {
        true => Err(format!("`{text}` is an address, not `host[:port][/path]`")),
        false => Ok(text.trim_end_matches('/').to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(texts: &[&str], more: &[(&str, &str)]) -> Result<Vec<Rule>, String> {
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("registries.conf.d");
        std::fs::create_dir(&own).unwrap();
        for (name, text) in more {
            std::fs::write(own.join(name), text).unwrap();
        }
        let mut places = Places { files: Vec::new(), folders: vec![own, folder.path().join("none")] };
        for (number, text) in texts.iter().enumerate() {
            let path = folder.path().join(format!("{number}.conf"));
            std::fs::write(&path, text).unwrap();
            places.files.extend([(folder.path().join("none"), false), (path, true)]);
        }
        rules(&places).map_err(|error| error.to_string().replace(&format!("{}/", folder.path().display()), ""))
    }

    #[test]
    fn tables_become_rules() {
        let text = r#"
            unqualified-search-registries = ["example.com", "docker.io"]
            short-name-mode = "enforcing"
            credential-helpers = ["x"]
            [aliases]
            "debian" = "quay.io/debian"
            [[registry]]
            prefix = "docker.io/library"
            location = "own.lan/base/"
            [[registry.mirror]]
            location = "m.lan"
            insecure = true
            [[registry.mirror]]
            location = "t.lan/x"
            pull-from-mirror = "tag-only"
            [[registry]]
            location = "quay.io"
            mirror-by-digest-only = true
            blocked = true
            [[registry.mirror]]
            location = "d.lan"
            [[registry]]
            prefix = "*.lan"
            insecure = true
        "#;
        let first = [
            Rule { prefix: "*.lan".into(), insecure: true, ..Rule::default() },
            Rule {
                prefix: "docker.io/library".into(),
                location: "own.lan/base".into(),
                mirrors: vec![
                    Mirror { insecure: true, ..Mirror::new("m.lan") },
                    Mirror { serves: Serves::Tags, ..Mirror::new("t.lan/x") },
                ],
                ..Rule::default()
            },
            Rule {
                prefix: "quay.io".into(),
                location: "quay.io".into(),
                blocked: true,
                mirrors: vec![Mirror { serves: Serves::Digests, ..Mirror::new("d.lan") }],
                ..Rule::default()
            },
        ];
        assert_eq!(read_all(&[text, "[[registry]]\nlocation='other'\n"], &[]).unwrap(), first);
        // Files in the folder are read by name; each replaces whole tables.
        let more = [
            ("20.conf", "[[registry]]\nlocation = 'quay.io'\n"),
            ("10.conf", "[[registry]]\nlocation = 'quay.io'\ninsecure = true\n[[registry]]\nlocation = 'n.io'\n"),
            ("30.txt", "nonsense"),
        ];
        let merged = read_all(&[text], &more).unwrap();
        assert_eq!(merged.len(), 4);
        let quay = merged.iter().find(|rule| rule.prefix == "quay.io").unwrap();
        assert_eq!((quay.insecure, quay.blocked, quay.mirrors.len()), (false, false, 0));
        let old = "[registries.search]\nregistries = ['a']\n[registries.insecure]\nregistries = ['b', 'c']\n[registries.block]\nregistries = ['c']\n";
        let old: Vec<_> = read_all(&[old], &[]).unwrap().into_iter().map(|r| (r.prefix, r.insecure, r.blocked)).collect();
        assert_eq!(old, [("b".to_owned(), true, false), ("c".to_owned(), true, true)]);
        assert_eq!(read_all(&[], &[]).unwrap(), []);
    }

    #[test]
    fn mistakes_are_named() {
        let rows = [
            ("[[registry]]\nblocked = true\n", "settings file 0.conf: a table `[[registry]]` has neither"),
            ("[[registry]]\nlocation = 'https://x'\n", "settings file 0.conf: `https://x` is an address"),
            ("[[registry]]\nlocation = 'x'\n[[registry.mirror]]\n", "settings file 0.conf: a mirror of `x` has no"),
            ("[[registry]]\nprefix = '*.x'\nlocation = 'y'\n", "settings file 0.conf: `*.x` stands for many"),
            ("\n[[registry]]\nlocation = 5\n", "settings file 0.conf:3: "),
            (
                "[[registry]]\nlocation='x'\n[[registry.mirror]]\nlocation='y'\npull-from-mirror='no'\n",
                "settings file 0.conf:5: ",
            ),
        ];
        for (text, want) in rows {
            let got = read_all(&[text], &[]).unwrap_err();
            assert!(got.starts_with(want), "{text:?}: {got}");
        }
    }
}
