//! The caller's own terminal in raw mode: hides how it gets its settings back at every end, even when kiln is killed.
//!
//! A killed process restores nothing, so another one waits for its end: the same program under another name, with the terminal as
//! its standard input and a socket to kiln as its standard output. When the socket is closed without a word, it restores.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::sys;

/// The name under which the guard is executed; `take_over` knows it by that.
pub(crate) const NAME: &str = "kiln-terminal";

/// What the guard and kiln say to each other: the settings are known; they were restored.
const KNOWN: u8 = b'k';
const RESTORED: u8 = b'r';

/// This process's terminal, its standard input, whose settings are known; restored when dropped.
#[derive(Debug)]
pub(crate) struct RawMode {
    before: Termios,
    guard: Option<(Child, UnixStream)>,
}

impl RawMode {
    /// Changes nothing yet. To be called before this thread's children go to a pid namespace that ends with the run: the guard has to
    /// live on, and a namespace waits for all that is in it.
    pub(crate) fn prepare() -> io::Result<RawMode> {
        // Without a guard it would only be less safe.
        let guard = start_guard().ok();
        Ok(RawMode { before: tcgetattr(rustix::stdio::stdin())?, guard })
    }

    /// Keys are handed on as they are, from now on (again).
    pub(crate) fn set(&self) {
        let mut raw = self.before.clone();
        raw.make_raw();
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &raw);
    }

    /// As it was before.
    pub(crate) fn restore(&self) {
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &self.before);
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        self.restore();
        if let Some((mut guard, mut socket)) = self.guard.take() {
            let _ = socket.write_all(&[RESTORED]);
            drop(socket);
            let _ = guard.wait();
        }
    }
}

fn start_guard() -> io::Result<(Child, UnixStream)> {
    let (mut ours, theirs) = UnixStream::pair()?;
    let tty = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let child = Command::new("/proc/self/exe")
        .arg0(NAME)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(tty))
        .stdout(Stdio::from(OwnedFd::from(theirs)))
        .stderr(Stdio::null())
        // Not what a key or a shell ends together with kiln.
        .process_group(0)
        .spawn()?;
    let mut known = [0];
    ours.read_exact(&mut known)?;
    Ok((child, ours))
}

/// Is this process a guard?
pub(crate) fn is_guard() -> bool {
    std::env::args_os().next().is_some_and(|name| name == NAME)
        && rustix::fs::fstat(rustix::stdio::stdout())
            .is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Socket)
}

/// Does the whole work of a guard; the result is its exit code.
pub(crate) fn guard() -> i32 {
    let watch = || -> io::Result<()> {
        // Also SIGTTOU, which would stop a process that sets a terminal from the background.
        sys::ignore_signals();
        let before = tcgetattr(rustix::stdio::stdin())?;
        let mut kiln = UnixStream::from(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?);
        rustix::stdio::dup2_stdout(rustix::fs::open("/dev/null", rustix::fs::OFlags::WRONLY, rustix::fs::Mode::empty())?)?;
        kiln.write_all(&[KNOWN])?;
        let mut word = [0];
        if !matches!(kiln.read(&mut word), Ok(1) if word[0] == RESTORED) {
            tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &before)?;
        }
        Ok(())
    };
    i32::from(watch().is_err())
}
