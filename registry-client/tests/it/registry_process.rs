//! Debian's `docker-registry` on loopback, with a folder of its own.

use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::serving::Serving;

/// A running registry, until it is dropped.
pub(crate) struct Registry(Serving);

impl Deref for Registry {
    type Target = Serving;

    fn deref(&self) -> &Serving {
        &self.0
    }
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
        Serving::start(&tools, |folder, port| command(kind, more, folder, port)).map(Self)
    }

    pub(crate) fn ca_file(&self) -> PathBuf {
        self.folder().join("ca.pem")
    }

    /// The file that holds a blob, to spoil it.
    pub(crate) fn stored(&self, hex: &str) -> PathBuf {
        self.folder().join(format!("data/docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]))
    }
}

/// What starts it, with its configuration written.
fn command(kind: Kind, more: &str, folder: &Path, port: u16) -> Command {
    let at = |name: &str| folder.join(name).display().to_string();
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
        Kind::Tls | Kind::ClientCertificates => authority_and_certificate(folder),
        Kind::SelfSigned => {
            let args = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", "key.pem", "-out", "ca.pem"];
            openssl(folder, &[&args[..], &["-subj", "/CN=test", "-addext", "subjectAltName=DNS:localhost"]].concat());
            fs::copy(at("ca.pem"), at("cert.pem")).unwrap();
        }
    }
    if matches!(kind, Kind::Tls | Kind::SelfSigned | Kind::ClientCertificates) {
        config.push_str(&format!("  tls:\n    certificate: {}\n    key: {}\n", at("cert.pem"), at("key.pem")));
    }
    if kind == Kind::ClientCertificates {
        certificate(folder, "/CN=kiln", "client.key", "client.cert", "extendedKeyUsage=clientAuth\n");
        config.push_str(&format!("    clientcas: [{}]\n", at("ca.pem")));
    }
    config.push_str(more);
    fs::write(at("config.yml"), config).unwrap();
    let mut command = Command::new("docker-registry");
    command.args(["serve", &at("config.yml")]).env("OTEL_TRACES_EXPORTER", "none");
    command
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
