//! Hides the process's environment: the only place that reads variables, so that tests can bring their own.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::PathBuf;

/// Environment variables.
#[derive(Debug)]
pub(crate) enum Environment {
    /// Those of this process.
    Process,
    /// Others.
    #[cfg_attr(not(test), expect(dead_code, reason = "tests bring their own variables"))]
    Given(HashMap<String, String>),
}

impl Environment {
    /// A variable; an empty one counts as absent.
    pub(crate) fn raw(&self, name: &str) -> Option<OsString> {
        let value = match self {
            Environment::Process => std::env::var_os(name),
            Environment::Given(map) => map.get(name).map(OsString::from),
        };
        value.filter(|value| !value.is_empty())
    }

    /// A variable that must be text.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        self.raw(name).and_then(|value| value.into_string().ok())
    }

    /// A variable that is there, even if empty.
    pub(crate) fn exact(&self, name: &str) -> Option<String> {
        match self {
            Environment::Process => std::env::var(name).ok(),
            Environment::Given(map) => map.get(name).cloned(),
        }
    }

    /// The home folder.
    pub(crate) fn home(&self) -> Option<PathBuf> {
        self.raw("HOME").map(PathBuf::from)
    }

    /// Where kiln keeps its store when nobody says.
    pub(crate) fn default_root(&self, is_root: bool) -> Option<PathBuf> {
        if let Some(root) = self.raw("KILN_ROOT") {
            return Some(root.into());
        }
        if is_root {
            return Some("/var/lib/kiln".into());
        }
        let data = self.raw("XDG_DATA_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
        data.or_else(|| Some(self.home()?.join(".local/share"))).map(|data| data.join("kiln"))
    }

    /// Docker's `config.json`.
    pub(crate) fn docker_config(&self) -> Option<PathBuf> {
        let folder = self.raw("DOCKER_CONFIG").map(PathBuf::from);
        folder.or_else(|| Some(self.home()?.join(".docker"))).map(|folder| folder.join("config.json"))
    }

    /// The files of kiln's own settings, the later ones weighing more. `true`: it was named and has to be there.
    pub(crate) fn settings(&self) -> Vec<(PathBuf, bool)> {
        if let Some(file) = self.raw("KILN_CONFIG") {
            return vec![(file.into(), true)];
        }
        let config = self.raw("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
        let user = config.or_else(|| Some(self.home()?.join(".config"))).map(|config| config.join("kiln/kiln.toml"));
        [Some(PathBuf::from("/etc/kiln/kiln.toml")), user].into_iter().flatten().map(|path| (path, false)).collect()
    }

    #[cfg(test)]
    pub(crate) fn given(pairs: &[(&str, &str)]) -> Self {
        Environment::Given(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        type Row = (&'static [(&'static str, &'static str)], bool, &'static str);
        let rows: &[Row] = &[
            (&[("HOME", "/h")], false, "/h/.local/share/kiln"),
            (&[("HOME", "/h"), ("XDG_DATA_HOME", "/d")], false, "/d/kiln"),
            (&[("HOME", "/h"), ("XDG_DATA_HOME", "relative")], false, "/h/.local/share/kiln"),
            (&[("HOME", "/root")], true, "/var/lib/kiln"),
            (&[("KILN_ROOT", "/k")], true, "/k"),
            (&[("KILN_ROOT", "")], true, "/var/lib/kiln"),
        ];
        for (pairs, is_root, want) in rows {
            assert_eq!(Environment::given(pairs).default_root(*is_root), Some(PathBuf::from(want)), "{pairs:?}");
        }
        assert_eq!(Environment::given(&[]).default_root(false), None);
        assert_eq!(Environment::given(&[("DOCKER_CONFIG", "/c")]).docker_config(), Some("/c/config.json".into()));
        assert_eq!(Environment::given(&[("KILN_CONFIG", "k.toml")]).settings(), [("k.toml".into(), true)]);
    }
}
