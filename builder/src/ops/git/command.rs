//! Hides how the host's `git` is run: with no configuration but ours, no hooks, no questions, and an end when the build ends.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// So much of what git says is kept: errors come last.
const LONGEST_SAID: usize = 256 << 10;

use kiln_runner::Cancel;

use super::GitError;
use super::address::{GitAddress, Origin, Transport};
use crate::event::Task;
use crate::grant::Secret;
use crate::ops::agent::Forward;

/// What git needs to know of the process's environment (the search path, proxies, the ssh agent): the command hands it in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GitEnvironment(pub Vec<(String, OsString)>);

/// The variables that [`GitEnvironment`] is made of.
pub const PASSED_ON: [&str; 12] = [
    "PATH",
    "SSH_AUTH_SOCK",
    "http_proxy",
    "https_proxy",
    "HTTPS_PROXY",
    "all_proxy",
    "ALL_PROXY",
    "no_proxy",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "GIT_SSL_CAINFO",
];

/// How much a fetch has received, as a part of a task.
#[derive(Debug)]
pub(super) struct Received<'a> {
    pub(super) task: &'a Task,
    pub(super) name: &'a str,
    pub(super) bytes: AtomicU64,
}

impl Received<'_> {
    fn tell(&self, bytes: u64) {
        self.bytes.store(bytes, Ordering::Relaxed);
        self.task.status(self.name, bytes, None);
    }
}

/// Runs git for one address.
#[derive(Debug)]
pub(super) struct Git<'a> {
    pub(super) address: &'a GitAddress,
    pub(super) origin: Origin,
    pub(super) environment: &'a GitEnvironment,
    pub(super) cancel: &'a Cancel,
    /// An empty folder: git's home.
    pub(super) home: &'a Path,
    /// A value for the header `Authorization` of http requests to the server of the address.
    pub(super) authorization: Option<&'a Secret>,
    /// Leads to the agent that ssh is to ask, and no other.
    pub(super) agent: Option<Forward>,
    /// Is told how many bytes a fetch has received.
    pub(super) progress: Option<&'a Received<'a>>,
}

/// How a build gives git an agent.
pub const GIVE_AGENT: &str = "give it with `--ssh default` or `--ssh default=KEYFILE`";

impl Git<'_> {
    /// Runs `git ARGS` in `folder` and gives what it writes to standard output.
    pub(super) fn run<S: AsRef<OsStr>>(&self, operation: &'static str, folder: &Path, args: &[S]) -> Result<Vec<u8>, GitError> {
        self.run_with(operation, folder, &[], args)
    }

    /// The same with more configuration.
    pub(super) fn run_with<S: AsRef<OsStr>>(
        &self,
        operation: &'static str,
        folder: &Path,
        settings: &[&str],
        args: &[S],
    ) -> Result<Vec<u8>, GitError> {
        let mut command = self.command(folder, settings);
        command.args(args);
        let Output { status, stdout, stderr } = match self.finish(command) {
            Ok(Some(finished)) => finished,
            Ok(None) => return Err(GitError::Interrupted),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(GitError::NoGit { url: self.address.shown().to_owned() });
            }
            Err(cause) => return Err(GitError::Start { cause }),
        };
        if status.success() {
            return Ok(stdout);
        }
        let said = String::from_utf8_lossy(&stderr).into_owned();
        Err(GitError::Failed { operation, url: self.address.shown().to_owned(), said: last_line(&said) })
    }

    fn command(&self, folder: &Path, settings: &[&str]) -> Command {
        let mut command = Command::new("git");
        command.env_clear().current_dir(folder).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let from_dockerfile = self.origin == Origin::Dockerfile;
        for (name, value) in &self.environment.0 {
            // A Dockerfile is not the one whose keys these are.
            if !(from_dockerfile && name == "SSH_AUTH_SOCK") {
                command.env(name, value);
            }
        }
        let keys = match &self.agent {
            Some(agent) => {
                command.env("SSH_AUTH_SOCK", agent.address());
                " -oIdentityFile=/dev/null"
            }
            None if from_dockerfile => " -oIdentitiesOnly=yes -oIdentityFile=/dev/null -oIdentityAgent=none",
            None => "",
        };
        // Servers whose keys are known have to have them; others are believed, and forgotten with git's home.
        let ssh = format!(
            "ssh -F /dev/null -oBatchMode=yes -oLogLevel=ERROR -oStrictHostKeyChecking=accept-new -oUpdateHostKeys=no \
             -oUserKnownHostsFile=\"\\\"$HOME/known_hosts\\\" ~/.ssh/known_hosts ~/.ssh/known_hosts2\"{keys}"
        );
        let fixed = [
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("GIT_CONFIG_SYSTEM", "/dev/null"),
            ("GIT_ATTR_NOSYSTEM", "1"),
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_ASKPASS", "true"),
            ("GIT_OPTIONAL_LOCKS", "0"),
            ("GIT_SSH_COMMAND", ssh.as_str()),
            ("LC_ALL", "C"),
        ];
        command.envs(fixed).env("HOME", self.home).env("XDG_CONFIG_HOME", self.home);
        // In the environment and not among the arguments, which every user of the machine can read.
        if let Some(authorization) = self.address.authorization.as_ref().or(self.authorization) {
            let scope = self.address.remote.split('/').take(3).collect::<Vec<_>>().join("/");
            command
                .env("GIT_CONFIG_COUNT", "1")
                .env("GIT_CONFIG_KEY_0", format!("http.{scope}/.extraHeader"))
                .env("GIT_CONFIG_VALUE_0", OsStr::from_bytes(&[b"Authorization: ", authorization.reveal()].concat()));
        }
        let rules = [
            "core.hooksPath=/dev/null",
            "core.fsmonitor=false",
            "credential.helper=",
            "protocol.allow=never",
            "protocol.http.allow=always",
            "protocol.https.allow=always",
            "protocol.ssh.allow=always",
            "protocol.git.allow=always",
            "protocol.file.allow=never",
            "protocol.ext.allow=never",
            "transfer.bundleURI=false",
            "gc.auto=0",
            "maintenance.auto=false",
            "advice.detachedHead=false",
            "safe.directory=*",
        ];
        for rule in rules.iter().chain(settings) {
            command.args(["-c", rule]);
        }
        if self.address.transport == Transport::File && settings.is_empty() {
            command.args(["-c", "protocol.file.allow=always"]);
        }
        command
    }

    /// Waits; `None` when the build was ended meanwhile.
    fn finish(&self, mut command: Command) -> io::Result<Option<Output>> {
        let mut child = command.spawn()?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        std::thread::scope(|scope| {
            let stdout = scope.spawn(move || read_all(stdout));
            let progress = self.progress;
            let stderr = scope.spawn(move || read_watched(stderr, progress));
            let mut patience = Duration::from_millis(1);
            let status = loop {
                if let Some(status) = child.try_wait()? {
                    break Some(status);
                }
                if self.cancel.is_triggered() {
                    // Its own helpers end when their pipes do.
                    child.kill()?;
                    child.wait()?;
                    break None;
                }
                std::thread::sleep(patience);
                patience = (patience * 2).min(Duration::from_millis(20));
            };
            let (stdout, stderr) = (stdout.join().unwrap_or_default(), stderr.join().unwrap_or_default());
            Ok(status.map(|status| Output { status, stdout, stderr }))
        })
    }
}

/// All that can be read, up to what nobody wants to hold in memory.
fn read_all(pipe: Option<impl Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        // An error ends the reading as the end would; git's exit code tells the rest.
        let _ = (&mut pipe).take(256 << 20).read_to_end(&mut bytes);
        let _ = io::copy(&mut pipe, &mut io::sink());
    }
    bytes
}

/// The same of what git tells a person, from which figures are taken on the way.
fn read_watched(pipe: Option<impl Read>, progress: Option<&Received<'_>>) -> Vec<u8> {
    let Some(progress) = progress else { return read_all(pipe) };
    let Some(mut pipe) = pipe else { return Vec::new() };
    let (mut bytes, mut buffer) = (Vec::new(), vec![0; 4096]);
    while let Ok(read @ 1..) = pipe.read(&mut buffer) {
        bytes.extend_from_slice(&buffer[..read]);
        // Each figure takes the place of the one before.
        let lines = String::from_utf8_lossy(&buffer[..read]);
        lines.split(['\r', '\n']).filter_map(received).for_each(|bytes| progress.tell(bytes));
        if bytes.len() > LONGEST_SAID {
            bytes.drain(..bytes.len() - LONGEST_SAID / 2);
        }
    }
    bytes
}

/// The bytes in `Receiving objects:  45% (450/1000), 1.20 MiB | 2.30 MiB/s`.
fn received(line: &str) -> Option<u64> {
    // Few objects are unpacked as they come, many are received as a pack.
    let rest = ["Receiving objects:", "Unpacking objects:"].iter().find_map(|prefix| line.strip_prefix(prefix))?;
    let (_, figures) = rest.split_once("), ")?;
    let mut words = figures.split(' ');
    let number: f64 = words.next()?.parse().ok()?;
    let unit = match words.next()?.trim_end_matches(',') {
        "bytes" => 1.0,
        "KiB" => 1024.0,
        "MiB" => 1024.0 * 1024.0,
        "GiB" => 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    Some((number * unit) as u64)
}

/// What git says last is what stopped it; `fatal:` and its kin say nothing more. Of a connection that failed ssh has said why.
fn last_line(said: &str) -> String {
    const NOTHING: [&str; 3] = ["and the repository exists", "Please make sure", "fatal: Could not read from remote repository"];
    let useful = |line: &&str| !line.is_empty() && !NOTHING.iter().any(|start| line.starts_with(start));
    let lines = || said.lines().rev().map(str::trim).filter(useful);
    let line = lines().find(|line| line.starts_with("fatal: ")).or_else(|| lines().next());
    let line = line.or_else(|| said.lines().next()).unwrap_or("it said nothing");
    ["fatal: ", "error: "].iter().find_map(|prefix| line.strip_prefix(prefix)).unwrap_or(line).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_much_came() {
        let rows = [
            ("Receiving objects:  45% (450/1000), 1.50 KiB | 2.30 MiB/s", Some(1536)),
            ("Receiving objects: 100% (3/3), 211 bytes | 211.00 KiB/s, done.", Some(211)),
            ("Unpacking objects: 100% (3/3), 2.86 MiB | 40.00 MiB/s, done.", Some(2_998_927)),
            ("Receiving objects: 100% (3/3), done.", None),
            ("remote: Counting objects: 100% (3/3), done.", None),
            ("fatal: no", None),
        ];
        for (line, want) in rows {
            assert_eq!(received(line), want, "{line}");
        }
    }

    #[test]
    fn what_git_says() {
        let rows = [
            ("", "it said nothing"),
            ("fatal: Could not read from remote repository.\n", "Could not read from remote repository."),
            (
                "a@h: Permission denied (publickey).\r\nfatal: Could not read from remote repository.\n\nPlease make sure you have \
                 the correct access rights\nand the repository exists.\n",
                "a@h: Permission denied (publickey).",
            ),
            ("error: x\nfatal: unable to access\nmore\n", "unable to access"),
            ("warning: x\nerror: y\n", "y"),
        ];
        for (said, want) in rows {
            assert_eq!(last_line(said), want, "{said}");
        }
    }
}
