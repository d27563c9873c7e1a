//! Hides containers' `registries.conf` (versions 1 and 2), the settings of registries that podman, buildah and skopeo share.
//!
//! Names without a registry mean Docker Hub here, as they do for docker: `unqualified-search-registries`, short names and
//! `[aliases]` are left out, or a Dockerfile would mean another image on another machine.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use kiln_registry_client::{GlobalHelpers, Mirror, Rule, Serves};
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
    #[serde(rename = "credential-helpers")]
    credential_helpers: Option<Vec<String>>,
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

/// What all files together say.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Settings {
    /// How registries are reached.
    pub(crate) rules: Vec<Rule>,
    /// Who has credentials besides the files.
    pub(crate) helpers: GlobalHelpers,
}

#[derive(Default)]
struct Merged {
    rules: BTreeMap<String, Rule>,
    helpers: GlobalHelpers,
}

/// The entry of `credential-helpers` that stands for the files.
const FILES: &str = "containers-auth.json";

/// Reads the files. A table for a prefix replaces one for the same prefix in an earlier file, and so does a list of helpers.
pub(crate) fn read_all(places: &Places) -> Result<Settings, SettingsError> {
    let mut all = Merged::default();
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
    Ok(Settings { rules: all.rules.into_values().collect(), helpers: all.helpers })
}

/// Adds a file's tables; `false` when it isn't there.
fn read(path: &Path, required: bool, all: &mut Merged) -> Result<bool, SettingsError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !required => return Ok(false),
        Err(cause) => return Err(SettingsError::Read { path: path.to_owned(), cause }),
    };
    let file: File = parse(path, &text)?;
    let invalid = |message: String| SettingsError::Invalid { path: path.to_owned(), message };
    for table in file.registry {
        let rule = rule(table).map_err(invalid)?;
        all.rules.insert(rule.prefix.clone(), rule);
    }
    let VersionOne { insecure, block } = file.registries;
    for (list, blocked) in [(insecure, false), (block, true)] {
        for prefix in list.registries {
            let rule = all.rules.entry(prefix.clone()).or_insert(Rule { prefix, ..Rule::default() });
            if blocked { rule.blocked = true } else { rule.insecure = true }
        }
    }
    if let Some(names) = file.credential_helpers {
        all.helpers = helpers(&names, path).map_err(invalid)?;
    }
    Ok(true)
}

/// A list without the files' own entry leaves the files to be asked last: kiln's logins are in them.
fn helpers(names: &[String], path: &Path) -> Result<GlobalHelpers, String> {
    if let Some(name) = names.iter().find(|name| name.is_empty() || name.contains('/')) {
        return Err(format!("`{name}` in `credential-helpers` is no name of a helper"));
    }
    let (before, after) = match names.iter().position(|name| name == FILES) {
        Some(at) => (&names[..at], &names[at + 1..]),
        None => (names, &[][..]),
    };
    Ok(GlobalHelpers { before: before.to_vec(), after: after.to_vec(), named_by: path.to_owned() })
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

    fn read_rules(texts: &[&str], more: &[(&str, &str)]) -> Result<Vec<Rule>, String> {
        Ok(read_texts(texts, more)?.rules)
    }

    fn read_texts(texts: &[&str], more: &[(&str, &str)]) -> Result<Settings, String> {
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
        read_all(&places).map_err(|error| error.to_string().replace(&format!("{}/", folder.path().display()), ""))
    }

    #[test]
    fn tables_become_rules() {
        let text = r#"
            unqualified-search-registries = ["example.com", "docker.io"]
            short-name-mode = "enforcing"
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
        assert_eq!(read_rules(&[text, "[[registry]]\nlocation='other'\n"], &[]).unwrap(), first);
        // Files in the folder are read by name; each replaces whole tables.
        let more = [
            ("20.conf", "[[registry]]\nlocation = 'quay.io'\n"),
            ("10.conf", "[[registry]]\nlocation = 'quay.io'\ninsecure = true\n[[registry]]\nlocation = 'n.io'\n"),
            ("30.txt", "nonsense"),
        ];
        let merged = read_rules(&[text], &more).unwrap();
        assert_eq!(merged.len(), 4);
        let quay = merged.iter().find(|rule| rule.prefix == "quay.io").unwrap();
        assert_eq!((quay.insecure, quay.blocked, quay.mirrors.len()), (false, false, 0));
        let old = "[registries.search]\nregistries = ['a']\n[registries.insecure]\nregistries = ['b', 'c']\n[registries.block]\nregistries = ['c']\n";
        let old: Vec<_> = read_rules(&[old], &[]).unwrap().into_iter().map(|r| (r.prefix, r.insecure, r.blocked)).collect();
        assert_eq!(old, [("b".to_owned(), true, false), ("c".to_owned(), true, true)]);
        assert_eq!(read_rules(&[], &[]).unwrap(), []);
    }

    /// The list of the last file counts.
    #[test]
    fn helpers_before_and_after_the_files() {
        let list = |names: &str| format!("credential-helpers = [{names}]\n");
        for (first, folder, before, after) in [
            ("'a', 'containers-auth.json', 'b', 'c'", None, vec!["a"], vec!["b", "c"]),
            ("'containers-auth.json'", None, vec![], vec![]),
            ("'a', 'b'", None, vec!["a", "b"], vec![]),
            ("'a'", Some("'containers-auth.json', 'z'"), vec![], vec!["z"]),
            ("'a'", Some(""), vec![], vec![]),
        ] {
            let folder = folder.map(list);
            let more: Vec<(&str, &str)> = folder.iter().map(|text| ("9.conf", text.as_str())).collect();
            let helpers = read_texts(&[&list(first)], &more).unwrap().helpers;
            let (is_before, is_after): (Vec<&str>, Vec<&str>) =
                (helpers.before.iter().map(String::as_str).collect(), helpers.after.iter().map(String::as_str).collect());
            assert_eq!((is_before, is_after), (before.to_vec(), after.to_vec()), "{first} {folder:?}");
        }
        assert_eq!(read_texts(&[""], &[]).unwrap(), Settings::default());
    }

    #[test]
    fn mistakes_are_named() {
        let rows = [
            ("credential-helpers = ['../x']\n", "settings file 0.conf: `../x` in `credential-helpers` is no name"),
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
            let got = read_rules(&[text], &[]).unwrap_err();
            assert!(got.starts_with(want), "{text:?}: {got}");
        }
    }
}
