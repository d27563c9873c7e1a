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
}

impl Registry {
    /// Starts one; `None`, and a line that says why, when this machine can't.
    pub(crate) fn start(kind: Kind) -> Option<Self> {
        let mut tools = vec!["docker-registry"];
        match kind {
            Kind::Plain => {}
            Kind::Htpasswd => tools.push("htpasswd"),
            Kind::Tls | Kind::SelfSigned => tools.push("openssl"),
        }
        for tool in tools {
            if !on_path(tool) {
                let test = std::thread::current().name().unwrap_or_default().to_owned();
                eprintln!("skipped: {test}: `{tool}` is not installed");
                return None;
            }
        }
        for _ in 0..5 {
            if let Some(registry) = Self::try_start(kind) {
                return Some(registry);
            }
        }
        panic!("docker-registry doesn't start");
    }

    fn try_start(kind: Kind) -> Option<Self> {
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
            Kind::Tls => authority_and_certificate(folder.path()),
            Kind::SelfSigned => {
                let args =
                    ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", "key.pem", "-out", "ca.pem"];
                openssl(folder.path(), &[&args[..], &["-subj", "/CN=test", "-addext", "subjectAltName=DNS:localhost"]].concat());
                fs::copy(at("ca.pem"), at("cert.pem")).unwrap();
            }
        }
        if matches!(kind, Kind::Tls | Kind::SelfSigned) {
            config.push_str(&format!("  tls:\n    certificate: {}\n    key: {}\n", at("cert.pem"), at("key.pem")));
        }
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

fn on_path(tool: &str) -> bool {
    Command::new("sh").args(["-c", "command -v \"$0\" >/dev/null", tool]).status().is_ok_and(|status| status.success())
}

fn openssl(folder: &Path, args: &[&str]) {
    let output = Command::new("openssl").args(args).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "openssl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn authority_and_certificate(folder: &Path) {
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let ca = ["req", "-x509", "-days", "2", "-subj", "/CN=kiln test authority", "-keyout", "ca.key", "-out", "ca.pem"];
    openssl(folder, &[&ca[..], &key].concat());
    let request = ["req", "-subj", "/CN=localhost", "-keyout", "key.pem", "-out", "cert.csr"];
    openssl(folder, &[&request[..], &key].concat());
    fs::write(folder.join("names"), "subjectAltName=DNS:localhost\n").unwrap();
    let sign = ["x509", "-req", "-days", "2", "-in", "cert.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"];
    openssl(folder, &[&sign[..], &["-extfile", "names", "-out", "cert.pem"]].concat());
}
