//! Debian's `docker-registry` on loopback, with a folder of its own.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A running registry, until it is dropped.
pub(crate) struct Registry {
    child: Child,
    port: u16,
    folder: TempDir,
}

/// What it asks of its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Plain,
    /// User `kiln`, password `s3cret:word`.
    Htpasswd,
    /// A certificate for `localhost` by an authority made for the occasion (`ca.pem`).
    Tls,
    /// A certificate that is authority and server at once (`ca.pem` too), as `openssl req -x509` makes them.
    SelfSigned,
    /// As `Tls`, for clients that have a certificate by the same authority, too (`client.cert`, `client.key`).
    ClientCertificates,
}

impl Registry {
    /// Starts one; `None`, and a line that says why, when this machine can't.
    pub(crate) fn start(kind: Kind) -> Option<Self> {
        Self::start_with(kind, "")
    }

    /// As [`start`](Self::start), with more lines of configuration.
    pub(crate) fn start_with(kind: Kind, more: &str) -> Option<Self> {
        let mut tools = vec!["docker-registry"];
        match kind {
            Kind::Plain => {}
            Kind::Htpasswd => tools.push("htpasswd"),
            Kind::Tls | Kind::SelfSigned | Kind::ClientCertificates => tools.push("openssl"),
        }
        for tool in tools {
            if !on_path(tool) {
                let test = std::thread::current().name().unwrap_or_default().to_owned();
                eprintln!("skipped: {test}: `{tool}` is not installed");
                return None;
            }
        }
        for _ in 0..5 {
            if let Some(registry) = Self::try_start(kind, more) {
                return Some(registry);
            }
        }
        panic!("docker-registry doesn't start");
    }

    fn try_start(kind: Kind, more: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        // Free a moment ago; should another process take it, the registry ends and the next try gets another one.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    enabled: true\nhttp:\n  addr: 127.0.0.1:{port}\n",
            at("data")
        );
        match kind {
            Kind::Plain => {}
            Kind::Htpasswd => {
                let made = Command::new("htpasswd").args(["-Bbn", "kiln", "s3cret:word"]).output().unwrap();
                fs::write(at("htpasswd"), made.stdout).unwrap();
                config.push_str(&format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", at("htpasswd")));
            }
            Kind::Tls | Kind::ClientCertificates => authority_and_certificate(folder.path()),
            Kind::SelfSigned => {
                let args =
                    ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", "key.pem", "-out", "ca.pem"];
                openssl(folder.path(), &[&args[..], &["-subj", "/CN=test", "-addext", "subjectAltName=DNS:localhost"]].concat());
                fs::copy(at("ca.pem"), at("cert.pem")).unwrap();
            }
        }
        if matches!(kind, Kind::Tls | Kind::SelfSigned | Kind::ClientCertificates) {
            config.push_str(&format!("  tls:\n    certificate: {}\n    key: {}\n", at("cert.pem"), at("key.pem")));
        }
        if kind == Kind::ClientCertificates {
            certificate(folder.path(), "/CN=kiln", "client.key", "client.cert", "extendedKeyUsage=clientAuth\n");
            config.push_str(&format!("    clientcas: [{}]\n", at("ca.pem")));
        }
        config.push_str(more);
        fs::write(at("config.yml"), config).unwrap();
        let log = fs::File::create(at("log")).unwrap();
        let child = Command::new("docker-registry")
            .args(["serve", &at("config.yml")])
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut registry = Self { child, port, folder };
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(20) {
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Some(registry);
            }
            if registry.child.try_wait().unwrap().is_some() {
                return None;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        None
    }

    /// `127.0.0.1:PORT`.
    pub(crate) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// `localhost:PORT`, the name in its certificate.
    pub(crate) fn name(&self) -> String {
        format!("localhost:{}", self.port)
    }

    pub(crate) fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Its folder, with `ca.pem` and the like.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The file that holds a blob, to spoil it.
    pub(crate) fn stored(&self, hex: &str) -> PathBuf {
        self.folder.path().join(format!("data/docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]))
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn on_path(tool: &str) -> bool {
    let path = "PATH=$PATH:/usr/sbin:/sbin; command -v \"$0\" >/dev/null";
    Command::new("sh").args(["-c", path, tool]).status().is_ok_and(|status| status.success())
}

pub(crate) fn openssl(folder: &Path, args: &[&str]) {
    let output = Command::new("openssl").args(args).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "openssl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

const KEY: [&str; 5] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];

fn authority_and_certificate(folder: &Path) {
    let ca = ["req", "-x509", "-days", "2", "-subj", "/CN=kiln test authority", "-keyout", "ca.key", "-out", "ca.pem"];
    openssl(folder, &[&ca[..], &KEY].concat());
    certificate(folder, "/CN=localhost", "key.pem", "cert.pem", "subjectAltName=DNS:localhost\n");
}

/// A key and a certificate of the folder's authority.
fn certificate(folder: &Path, subject: &str, key: &str, out: &str, extensions: &str) {
    openssl(folder, &[&["req", "-subj", subject, "-keyout", key, "-out", "cert.csr"][..], &KEY].concat());
    fs::write(folder.join("extensions"), extensions).unwrap();
    let sign = ["x509", "-req", "-days", "2", "-in", "cert.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"];
    openssl(folder, &[&sign[..], &["-extfile", "extensions", "-out", out]].concat());
}
