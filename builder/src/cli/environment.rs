//! Hides the process's environment: the only place that reads variables, so that tests can bring their own.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::PathBuf;

use super::registries_conf::Places;

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

    /// The files that have credentials, the first to ask first; logins are kept in it. `REGISTRY_AUTH_FILE`, which podman's tools
    /// and their users set, is alone; docker's file comes before podman's, for kiln is used as docker is.
    pub(crate) fn credential_files(&self) -> Vec<PathBuf> {
        if let Some(file) = self.raw("REGISTRY_AUTH_FILE") {
            return vec![file.into()];
        }
        let runtime = self.raw("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
        let runtime = runtime.map_or_else(
            || PathBuf::from(format!("/run/containers/{}/auth.json", rustix::process::geteuid().as_raw())),
            |folder| folder.join("containers/auth.json"),
        );
        let own = self.config_home().map(|folder| folder.join("containers/auth.json"));
        [self.docker_config(), Some(runtime), own].into_iter().flatten().collect()
    }

    /// Where a person's settings are.
    pub(crate) fn config_home(&self) -> Option<PathBuf> {
        let config = self.raw("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
        config.or_else(|| Some(self.home()?.join(".config")))
    }

    /// Containers' `registries.conf`.
    pub(crate) fn registries_conf(&self) -> Places {
        let user = self.config_home().map(|folder| folder.join("containers"));
        let own = |name: &str| user.as_ref().map(|folder| folder.join(name));
        let files = match self.raw("CONTAINERS_REGISTRIES_CONF") {
            Some(file) => vec![(file.into(), true)],
            None => {
                let system = ["/etc/containers/registries.conf", "/usr/share/containers/registries.conf"].map(PathBuf::from);
                own("registries.conf").into_iter().chain(system).map(|path| (path, false)).collect()
            }
        };
        let system = PathBuf::from("/etc/containers/registries.conf.d");
        Places { files, folders: [Some(system), own("registries.conf.d")].into_iter().flatten().collect() }
    }

    /// Folders with certificates for hosts: a person's own, podman's, docker's.
    pub(crate) fn certs_folders(&self) -> Vec<PathBuf> {
        let user = self.config_home().map(|folder| folder.join("containers/certs.d"));
        let system = ["/etc/containers/certs.d", "/etc/docker/certs.d"].map(PathBuf::from);
        user.into_iter().chain(system).collect()
    }

    /// The files of kiln's own settings, the later ones weighing more. `true`: it was named and has to be there.
    pub(crate) fn settings(&self) -> Vec<(PathBuf, bool)> {
        if let Some(file) = self.raw("KILN_CONFIG") {
            return vec![(file.into(), true)];
        }
        let user = self.config_home().map(|config| config.join("kiln/kiln.toml"));
        [Some(PathBuf::from("/etc/kiln/kiln.toml")), user].into_iter().flatten().map(|path| (path, false)).collect()
    }

    #[cfg(test)]
    pub(crate) fn given(pairs: &[(&str, &str)]) -> Self {
        Environment::Given(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

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
        let files = |pairs: &[(&str, &str)]| Environment::given(pairs).credential_files();
        assert_eq!(files(&[("REGISTRY_AUTH_FILE", "/a"), ("DOCKER_CONFIG", "/c")]), [PathBuf::from("/a")]);
        let all = files(&[("HOME", "/h"), ("XDG_RUNTIME_DIR", "/r"), ("DOCKER_CONFIG", "/c")]);
        let want = ["/c/config.json", "/r/containers/auth.json", "/h/.config/containers/auth.json"];
        assert_eq!(all, want.map(PathBuf::from));
        let bare = files(&[("HOME", "/h"), ("XDG_CONFIG_HOME", "/x")]);
        assert!(bare[1].starts_with("/run/containers") && bare[2] == Path::new("/x/containers/auth.json"), "{bare:?}");
        assert_eq!(Environment::given(&[("KILN_CONFIG", "k.toml")]).settings(), [("k.toml".into(), true)]);
    }
}
