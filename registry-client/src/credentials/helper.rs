//! Hides the credential helper protocol: a program `docker-credential-NAME`, asked over stdin, answering over stdout
//! (docker/docker-credential-helpers).

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{CredentialError, Credentials};
use crate::error::printable;

/// A helper may have to ask a cloud; longer than this it is stuck, or waits for a person who isn't there.
const LIMIT: Duration = Duration::from_secs(10);
/// More than any token.
const OUTPUT_LIMIT: u64 = 1 << 20;
/// The user name that marks a secret as an identity token.
const TOKEN_USER: &str = "<token>";

/// A helper program.
pub(super) struct Helper<'a> {
    pub(super) program: String,
    /// The file that names it.
    pub(super) config: &'a Path,
    pub(super) limit: Duration,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Secret {
    #[serde(rename = "ServerURL", default)]
    server_url: String,
    username: String,
    secret: String,
}

struct Ended {
    status: ExitStatus,
    stdout: Vec<u8>,
}

impl<'a> Helper<'a> {
    pub(super) fn new(name: &str, config: &'a Path) -> Self {
        Self { program: format!("docker-credential-{name}"), config, limit: LIMIT }
    }

    pub(super) fn get(&self, server: &str) -> Result<Option<Credentials>, CredentialError> {
        let ended = self.run("get", server, server.as_bytes())?;
        if !ended.status.success() {
            let message = String::from_utf8_lossy(&ended.stdout);
            // The words are the protocol: the Go library compares them.
            if message.contains("credentials not found in native keychain") || message.contains("no credentials server URL") {
                return Ok(None);
            }
            return Err(self.failed("get", server, &ended));
        }
        // The parser's message could quote the secret.
        let secret: Secret = serde_json::from_slice(&ended.stdout).map_err(|_| CredentialError::HelperFailed {
            program: self.program.clone(),
            verb: "get",
            server: server.to_owned(),
            message: "its answer is not a JSON object with `Username` and `Secret`".to_owned(),
        })?;
        Ok(match (secret.username.as_str(), secret.secret) {
            (_, empty) if empty.is_empty() => None,
            (TOKEN_USER, token) => Some(Credentials::IdentityToken(token)),
            (_, password) => Some(Credentials::Password { username: secret.username, password }),
        })
    }

    pub(super) fn store(&self, server: &str, credentials: &Credentials) -> Result<(), CredentialError> {
        let (username, secret) = match credentials {
            Credentials::Password { username, password } => (username.as_str(), password),
            Credentials::IdentityToken(token) | Credentials::RegistryToken(token) => (TOKEN_USER, token),
        };
        let input = Secret { server_url: server.to_owned(), username: username.to_owned(), secret: secret.clone() };
        let input = serde_json::to_vec(&input).map_err(|error| self.not_started(error.into()))?;
        let ended = self.run("store", server, &input)?;
        if ended.status.success() { Ok(()) } else { Err(self.failed("store", server, &ended)) }
    }

    pub(super) fn erase(&self, server: &str) -> Result<(), CredentialError> {
        let ended = self.run("erase", server, server.as_bytes())?;
        if ended.status.success() { Ok(()) } else { Err(self.failed("erase", server, &ended)) }
    }

    fn run(&self, verb: &'static str, _server: &str, input: &[u8]) -> Result<Ended, CredentialError> {
        let mut child = Command::new(&self.program)
            .arg(verb)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|cause| self.not_started(cause))?;
        let started = Instant::now();
        let (sender, output) = mpsc::channel();
        if let Some(mut stdin) = child.stdin.take() {
            let input = input.to_vec();
            // A helper that doesn't read its input, or ends before, is judged by what it says; it may never hold this thread up.
            std::thread::spawn(move || stdin.write_all(&input));
        }
        if let Some(stdout) = child.stdout.take() {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                let read = stdout.take(OUTPUT_LIMIT).read_to_end(&mut bytes);
                // Nobody listens any more when the time was up.
                let _ = sender.send(read.map(|_| bytes));
            });
        }
        let stdout = match output.recv_timeout(self.limit) {
            Ok(Ok(stdout)) => stdout,
            Ok(Err(_)) | Err(RecvTimeoutError::Disconnected) => Vec::new(),
            Err(RecvTimeoutError::Timeout) => return Err(self.hung(verb, &mut child)),
        };
        // It closed its output; now it has to end, too.
        loop {
            match child.try_wait() {
                Ok(Some(status)) => return Ok(Ended { status, stdout }),
                Ok(None) if started.elapsed() < self.limit => std::thread::sleep(Duration::from_millis(2)),
                Ok(None) => return Err(self.hung(verb, &mut child)),
                Err(cause) => return Err(self.not_started(cause)),
            }
        }
    }

    fn hung(&self, verb: &'static str, child: &mut std::process::Child) -> CredentialError {
        // It may have ended in this instant; either way it is reaped.
        let (_, _) = (child.kill(), child.wait());
        CredentialError::HelperHung { program: self.program.clone(), verb, limit: self.limit }
    }

    fn not_started(&self, cause: std::io::Error) -> CredentialError {
        CredentialError::HelperMissing { program: self.program.clone(), cause, path: self.config.to_owned() }
    }

    fn failed(&self, verb: &'static str, server: &str, ended: &Ended) -> CredentialError {
        let said = printable(&String::from_utf8_lossy(&ended.stdout), 200);
        let message = if said.is_empty() { ended.status.to_string() } else { said };
        CredentialError::HelperFailed { program: self.program.clone(), verb, server: server.to_owned(), message }
    }
}
