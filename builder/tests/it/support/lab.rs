//! The real servers that tests talk to. `testdata/tools/lab.py` starts each and ends it when its standard input ends,
//! so none survives this process, however that ends.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;

use serde_json::Value;
use tempfile::TempDir;

/// The folder of the workspace.
pub(crate) fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the workspace")
}

/// A fresh folder for one test, removed with the value.
pub(crate) fn temp_dir() -> TempDir {
    tempfile::Builder::new().prefix("kiln-it-").tempdir().expect("a temporary folder")
}

/// A server that runs until the value is dropped.
#[derive(Debug)]
struct Server {
    child: Child,
    facts: Value,
}

impl Server {
    fn start(args: &[&str]) -> Result<Server, String> {
        Self::start_script("lab.py", args)
    }

    fn start_script(script: &str, args: &[&str]) -> Result<Server, String> {
        let mut child = Command::new("python3")
            .arg(workspace().join("testdata/tools").join(script))
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| format!("python3: {e}"))?;
        let mut line = String::new();
        let stdout = child.stdout.take().expect("stdout is piped");
        BufReader::new(stdout).read_line(&mut line).map_err(|e| e.to_string())?;
        match serde_json::from_str(&line) {
            Ok(facts) => Ok(Server { child, facts }),
            Err(_) => {
                drop(child.stdin.take());
                let output = child.wait_with_output().map_err(|e| e.to_string())?;
                Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
            }
        }
    }

    fn fact(&self, name: &str) -> Option<&str> {
        self.facts[name].as_str()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// A server that keeps caches: an S3 server (`bucket.py`) or GitHub's cache service (`actions_cache.py`).
#[derive(Debug)]
pub(crate) struct CacheServer(Server);

impl CacheServer {
    /// Starts it; why it can't be, if so.
    pub(crate) fn start(script: &str) -> Result<CacheServer, String> {
        Server::start_script(script, &["serve"]).map(CacheServer)
    }

    /// What it said about itself.
    pub(crate) fn fact(&self, name: &str) -> &str {
        self.0.fact(name).expect("the server says it")
    }
}

/// Debian's `docker-registry` on loopback.
#[derive(Debug)]
pub(crate) struct Registry {
    server: Server,
    folder: TempDir,
}

/// How a registry of a test's own differs from the plain, empty one.
#[derive(Debug, Default)]
pub(crate) struct RegistryOptions {
    /// Base images to put in: `busybox`, `debian`.
    pub(crate) seeds: &'static [&'static str],
    /// `user:password`, which every access then needs.
    pub(crate) auth: Option<&'static str>,
    /// Whether they are shown to a token service, and signed tokens to the registry.
    pub(crate) token: bool,
    /// Whether it talks TLS with a certificate of a private authority.
    pub(crate) tls: bool,
}

impl Registry {
    pub(crate) fn start(options: &RegistryOptions) -> Registry {
        let folder = temp_dir();
        let path = folder.path().to_str().expect("a temporary folder's name is text");
        let mut args = vec!["registry", path];
        for seed in options.seeds {
            args.extend(["--seed", seed]);
        }
        if let Some(auth) = options.auth {
            args.extend(["--auth", auth]);
        }
        if options.token {
            args.push("--token");
        }
        if options.tls {
            args.push("--tls");
        }
        let server = Server::start(&args).unwrap_or_else(|e| panic!("no registry: {e}"));
        Registry { server, folder }
    }

    /// `127.0.0.1:PORT`.
    pub(crate) fn host(&self) -> &str {
        self.server.fact("host").expect("a registry says its host")
    }

    /// The certificate of the authority, when it talks TLS.
    pub(crate) fn ca(&self) -> PathBuf {
        PathBuf::from(self.server.fact("ca").expect("a registry with TLS says its authority"))
    }

    /// The folder of its storage.
    pub(crate) fn storage(&self) -> PathBuf {
        self.folder.path().join("storage")
    }

    /// The requests it served so far whose path begins with `/v2/REPOSITORY/`, as `METHOD path status`; all, without a repository.
    pub(crate) fn requests(&self, repository: &str) -> Vec<String> {
        let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let prefix = if repository.is_empty() { "/v2/".to_owned() } else { format!("/v2/{repository}/") };
        log.lines()
            .filter_map(|line| {
                // Combined log format: … "GET /v2/x/blobs/sha256:… HTTP/1.1" 200 …
                let (_, rest) = line.split_once(" \"")?;
                let (request, rest) = rest.split_once("\" ")?;
                let mut words = request.split(' ');
                let (method, path) = (words.next()?, words.next()?);
                let status = rest.split(' ').next()?;
                path.starts_with(&prefix).then(|| format!("{method} {path} {status}"))
            })
            .collect()
    }
}

/// The registry that all tests share: it holds `library/busybox`, `library/debian` and `library/multiarch`. A test uses a
/// repository of its own in it.
pub(crate) fn registry() -> &'static Registry {
    static SHARED: LazyLock<Registry> = LazyLock::new(|| {
        Registry::start(&RegistryOptions { seeds: &["busybox", "debian", "multiarch"], ..RegistryOptions::default() })
    });
    &SHARED
}

/// The diff_ids of the base images' layers, each with the base's name.
pub(crate) fn bases() -> &'static BTreeMap<String, String> {
    static FOUND: LazyLock<BTreeMap<String, String>> = LazyLock::new(|| {
        let output = Command::new("python3")
            .arg(workspace().join("testdata/tools/lab.py"))
            .args(["bases", "busybox", "busybox-arm64", "debian"])
            .output();
        let output = output.expect("python3 runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut found = BTreeMap::new();
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let [name, layout, ..] = words[..] else { panic!("lab.py bases says {line:?}") };
            let blob = |descriptor: &Value| -> Value {
                let digest = descriptor["digest"].as_str().expect("a descriptor has a digest").replace(':', "/");
                let bytes = std::fs::read(Path::new(layout).join("blobs").join(digest)).expect("a layout holds its blobs");
                serde_json::from_slice(&bytes).expect("a manifest or a configuration is JSON")
            };
            let index = std::fs::read(Path::new(layout).join("index.json")).expect("a layout has an index");
            let index: Value = serde_json::from_slice(&index).expect("an index is JSON");
            let manifest = blob(&index["manifests"][0]);
            // An index of several platforms: its images are bases of their own.
            if manifest["manifests"].is_array() {
                continue;
            }
            let config = blob(&manifest["config"]);
            let ids = config["rootfs"]["diff_ids"].as_array().expect("an image has layers").clone();
            found.extend(ids.iter().map(|id| (id.as_str().unwrap_or_default().to_owned(), name.to_owned())));
        }
        found
    });
    &FOUND
}

/// Debian's `dockerd`, whose BuildKit kiln is compared with.
#[derive(Debug)]
pub(crate) struct Dockerd {
    server: Server,
    folder: TempDir,
}

impl Dockerd {
    fn start() -> Result<Dockerd, String> {
        for program in ["/usr/sbin/dockerd", "/usr/bin/docker"] {
            if !Path::new(program).exists() {
                return Err(format!("there is no {program} (Debian's docker.io)"));
            }
        }
        let folder = temp_dir();
        let path = folder.path().to_str().expect("a temporary folder's name is text");
        let mirror = format!("http://{}", registry().host());
        let server = Server::start(&["dockerd", path, "--mirror", &mirror])?;
        Ok(Dockerd { server, folder })
    }

    /// Debian's client, bound to this daemon and to BuildKit.
    pub(crate) fn docker(&self) -> Command {
        let mut command = Command::new("/usr/bin/docker");
        command
            .env("DOCKER_HOST", self.server.fact("host").expect("dockerd says its socket"))
            .env("DOCKER_CONFIG", self.folder.path().join("client"))
            .env("DOCKER_BUILDKIT", "1")
            .stdin(Stdio::null());
        command
    }
}

/// The one dockerd of this process, or why there is none.
pub(crate) fn dockerd() -> Result<&'static Dockerd, &'static str> {
    static SHARED: LazyLock<Result<Dockerd, String>> = LazyLock::new(Dockerd::start);
    SHARED.as_ref().map_err(String::as_str)
}

impl Dockerd {
    fn newest(containerd: bool) -> Result<Dockerd, String> {
        let folder = temp_dir();
        let path = folder.path().join("newest");
        let mirror = format!("http://{}", registry().host());
        let mut args = vec!["newest", path.to_str().expect("a temporary folder's name is text"), "--mirror", &mirror];
        if !containerd {
            args.push("--storage-driver");
        }
        Ok(Dockerd { server: Server::start(&args)?, folder })
    }

    /// The client of the newest, with its plugins, which Debian stable's lacks.
    pub(crate) fn own_docker(&self) -> Command {
        Command::new(self.server.fact("docker").expect("the newer dockerd says its client"))
    }

    /// Its socket.
    pub(crate) fn socket(&self) -> PathBuf {
        socket(&self.server)
    }
}

fn socket(server: &Server) -> PathBuf {
    let host = server.fact("host").expect("a daemon says its socket");
    PathBuf::from(host.strip_prefix("unix://").expect("it is a socket"))
}

/// Debian sid's dockerd, with its layers in containerd's image store or in a storage driver. Minutes and 1.5 GB the first time.
pub(crate) fn newest_dockerd(containerd: bool) -> &'static Dockerd {
    static SHARED: [LazyLock<Dockerd>; 2] = [LazyLock::new(|| started(false)), LazyLock::new(|| started(true))];
    fn started(containerd: bool) -> Dockerd {
        Dockerd::newest(containerd).unwrap_or_else(|e| panic!("no newer dockerd: {e}"))
    }
    &SHARED[usize::from(containerd)]
}

/// Debian's podman as a service.
#[derive(Debug)]
pub(crate) struct Podman {
    server: Server,
    _folder: TempDir,
}

impl Podman {
    fn start() -> Result<Podman, String> {
        if !Path::new("/usr/bin/podman").exists() {
            return Err("there is no /usr/bin/podman".to_owned());
        }
        let folder = temp_dir();
        let path = folder.path().join("podman");
        let server = Server::start(&["podman", path.to_str().expect("a temporary folder's name is text")])?;
        Ok(Podman { server, _folder: folder })
    }

    /// The command, bound to the service's storage.
    pub(crate) fn podman(&self) -> Command {
        let mut command = Command::new(self.server.fact("podman").expect("podman says its command"));
        command.stdin(Stdio::null());
        command
    }

    /// Its socket.
    pub(crate) fn socket(&self) -> PathBuf {
        socket(&self.server)
    }
}

/// The one podman service of this process, or why there is none.
pub(crate) fn podman() -> Result<&'static Podman, &'static str> {
    static SHARED: LazyLock<Result<Podman, String>> = LazyLock::new(Podman::start);
    SHARED.as_ref().map_err(String::as_str)
}

/// The client of a BuildKit that is newer than Debian stable's, and what to call it: the program that `KILN_PEER` names, or
/// that of Debian sid's `dockerd`, started here.
pub(crate) fn newest() -> (PathBuf, String) {
    static SHARED: LazyLock<(Server, TempDir)> = LazyLock::new(|| {
        let folder = temp_dir();
        let path = folder.path().join("newest");
        let mirror = format!("http://{}", registry().host());
        let server = Server::start(&["newest", path.to_str().expect("a temporary folder's name is text"), "--mirror", &mirror]);
        (server.unwrap_or_else(|e| panic!("no newer dockerd: {e}")), folder)
    });
    match std::env::var_os("KILN_PEER") {
        Some(client) => (client.into(), std::env::var("KILN_PEER_NAME").expect("KILN_PEER_NAME says which BuildKit it is")),
        None => {
            let fact = |name| SHARED.0.fact(name).expect("the newer dockerd says its client and version").to_owned();
            (fact("docker").into(), format!("BuildKit of Debian's docker.io {}", fact("version")))
        }
    }
}

/// A server on loopback of the files or the repositories below a folder.
#[derive(Debug)]
pub(crate) struct FolderServer(Server);

impl FolderServer {
    /// git's own daemon.
    pub(crate) fn git(folder: &Path) -> FolderServer {
        FolderServer::start("git", folder, &[]).unwrap_or_else(|e| panic!("no git daemon: {e}"))
    }

    /// git by http, for whoever sends `authorization` in the header of that name.
    pub(crate) fn git_http(folder: &Path, authorization: &str) -> FolderServer {
        FolderServer::start("git-http", folder, &["--auth", authorization]).unwrap_or_else(|e| panic!("no git server: {e}"))
    }

    /// git by ssh, for whoever has the key.
    pub(crate) fn git_ssh(folder: &Path, public_key: &Path) -> FolderServer {
        let key = public_key.to_str().expect("a key's name is text");
        FolderServer::start("git-ssh", folder, &["--key", key]).unwrap_or_else(|e| panic!("no sshd: {e}"))
    }

    /// Files by http.
    pub(crate) fn files(folder: &Path) -> FolderServer {
        FolderServer::start("files", folder, &[]).unwrap_or_else(|e| panic!("no file server: {e}"))
    }

    /// The same for whoever sends `authorization` in the header of that name.
    pub(crate) fn guarded_files(folder: &Path, authorization: &str) -> FolderServer {
        FolderServer::start("files", folder, &["--auth", authorization]).unwrap_or_else(|e| panic!("no file server: {e}"))
    }

    fn start(verb: &str, folder: &Path, more: &[&str]) -> Result<FolderServer, String> {
        let path = folder.to_str().expect("a served folder's name is text");
        Server::start(&[&[verb, path], more].concat()).map(FolderServer)
    }

    /// `127.0.0.1:PORT`.
    pub(crate) fn host(&self) -> &str {
        self.0.fact("host").expect("a server says its host")
    }

    /// The address at which a server of ssh has the usual port, too.
    pub(crate) fn usual(&self) -> &str {
        self.0.fact("usual").expect("a server of ssh says its other address")
    }
}
