//! A server program on a port of loopback, with a folder of its own, until it is dropped.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// The running program.
pub(crate) struct Serving {
    pub(crate) child: Child,
    port: u16,
    folder: TempDir,
}

impl Serving {
    /// Starts what `command` makes for a folder and a port; `None`, and a line that says why, when one of `tools` isn't there.
    pub(crate) fn start(tools: &[&str], command: impl Fn(&Path, u16) -> Command) -> Option<Self> {
        if let Some(tool) = tools.iter().find(|tool| !on_path(tool)) {
            eprintln!("skipped: {}: `{tool}` is not installed", std::thread::current().name().unwrap_or_default());
            return None;
        }
        (0..5).find_map(|_| Self::try_start(&command)).or_else(|| panic!("{} doesn't start", tools[0]))
    }

    fn try_start(command: &impl Fn(&Path, u16) -> Command) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        // Free a moment ago; should another process take it, the server ends and the next try gets another one.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let log = std::fs::File::create(folder.path().join("output")).unwrap();
        let mut command = command(folder.path(), port);
        let child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let mut serving = Self { child, port, folder };
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(20) {
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Some(serving);
            }
            if serving.child.try_wait().unwrap().is_some() {
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

    /// `localhost:PORT`, the name in certificates.
    pub(crate) fn name(&self) -> String {
        format!("localhost:{}", self.port)
    }

    /// Its folder.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // nginx ends its workers when it is told to end, and not when it is killed.
        if let Some(pid) = rustix::process::Pid::from_raw(i32::try_from(self.child.id()).unwrap_or_default()) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let started = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if started.elapsed() > Duration::from_secs(5) {
                let _ = self.child.kill();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

pub(crate) fn on_path(tool: &str) -> bool {
    let path = "PATH=$PATH:/usr/sbin:/sbin; command -v \"$0\" >/dev/null";
    Command::new("sh").args(["-c", path, tool]).status().is_ok_and(|status| status.success())
}
