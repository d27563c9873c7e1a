//! Joins the caller's standard streams with the command's: hides raw mode, sizes of windows, and what has to be relayed.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Stdio;

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::termios::Winsize;

use crate::spec::Streams;
use crate::sys;
use crate::tty::RawMode;

/// What kiln holds of a run's streams, besides the pipes of the supervisor's own output.
#[derive(Debug, Default)]
pub(crate) struct Joint {
    /// What is typed, on its way.
    input: Option<Relay>,
    /// kiln's end of the command's terminal.
    master: Option<OwnedFd>,
    /// Nobody has the other end open now; somebody may yet open it again.
    hung_up: bool,
    raw: Option<RawMode>,
}

/// From this process's standard input to the command's.
#[derive(Debug)]
struct Relay {
    /// `None` goes to the terminal.
    to: Option<OwnedFd>,
    buffer: Vec<u8>,
    ended: bool,
}

/// How the supervisor's own streams are made, and what it is handed besides.
pub(crate) struct Handed {
    pub(crate) stdout: Stdio,
    pub(crate) stderr: Stdio,
    pub(crate) input: Option<OwnedFd>,
}

impl Joint {
    /// Decides who holds what. Nothing is changed at this process's terminal yet.
    pub(crate) fn new(streams: Streams) -> io::Result<(Joint, Handed)> {
        let mut joint = Joint::default();
        let out = |is_terminal: bool| if is_terminal { Stdio::piped() } else { Stdio::inherit() };
        let handed = match streams {
            Streams::Captured => Handed { stdout: Stdio::piped(), stderr: Stdio::piped(), input: None },
            Streams::Inherited { input } => {
                let input = match input {
                    false => None,
                    true if io::stdin().is_terminal() => {
                        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
                        rustix::io::ioctl_fionbio(&write, true)?;
                        joint.input = Some(Relay { to: Some(write), buffer: Vec::new(), ended: false });
                        Some(read)
                    }
                    true => Some(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?),
                };
                Handed { stdout: out(io::stdout().is_terminal()), stderr: out(io::stderr().is_terminal()), input }
            }
            Streams::Terminal { input } => {
                joint.input = input.then_some(Relay { to: None, buffer: Vec::new(), ended: false });
                if input && io::stdin().is_terminal() {
                    joint.raw = Some(RawMode::prepare()?);
                }
                Handed { stdout: Stdio::null(), stderr: Stdio::null(), input: None }
            }
        };
        Ok((joint, handed))
    }

    /// The command's terminal is there: from now on keys go to it as they are.
    pub(crate) fn attach(&mut self, master: OwnedFd) -> io::Result<()> {
        rustix::io::ioctl_fionbio(&master, true)?;
        self.master = Some(master);
        // What changed since the assignment was made.
        self.resize();
        if let Some(raw) = &self.raw {
            raw.set();
        }
        Ok(())
    }

    /// Gives the command's window the size of this process's.
    pub(crate) fn resize(&self) {
        if let (Some(master), Some(size)) = (&self.master, window()) {
            let _ = rustix::termios::tcsetwinsize(master, size);
        }
    }

    /// Stops this process, with its terminal as it was, until it is continued.
    pub(crate) fn stop(&mut self) {
        if let Some(raw) = &self.raw {
            raw.restore();
        }
        sys::stop();
        if let Some(raw) = &self.raw {
            raw.set();
        }
        self.resize();
    }

    /// Is there more to be seen, as far as is known?
    pub(crate) fn is_open(&self) -> bool {
        self.master.is_some()
    }

    /// Does nobody hold the other end, so that only time can tell whether that stays so?
    pub(crate) fn is_hung_up(&self) -> bool {
        self.master.is_some() && self.hung_up
    }

    /// What to wait for. Where two are the same descriptor it is named twice.
    pub(crate) fn waits(&self) -> Vec<(Wait, BorrowedFd<'_>, PollFlags)> {
        let mut waits = Vec::new();
        let master = self.master.as_ref().filter(|_| !self.hung_up).map(AsFd::as_fd);
        waits.extend(master.map(|fd| (Wait::Shown, fd, PollFlags::IN)));
        if let Some(relay) = &self.input {
            let to = relay.to.as_ref().map(AsFd::as_fd).or(master);
            match (to, relay.buffer.is_empty()) {
                (Some(_), true) if !relay.ended => waits.push((Wait::Typed, rustix::stdio::stdin(), PollFlags::IN)),
                (Some(to), false) => waits.push((Wait::Taken, to, PollFlags::OUT)),
                _ => {}
            }
        }
        waits
    }

    /// Reads what was typed.
    pub(crate) fn typed(&mut self, buffer: &mut [u8]) {
        let Some(relay) = &mut self.input else { return };
        match rustix::io::read(rustix::stdio::stdin(), &mut *buffer) {
            Ok(0) => relay.ended = true,
            Ok(length) => relay.buffer.extend_from_slice(&buffer[..length]),
            Err(Errno::INTR | Errno::AGAIN) => {}
            // The terminal is gone.
            Err(_) => relay.ended = true,
        }
        self.close_ended();
    }

    /// Hands on what was typed.
    pub(crate) fn pass_on(&mut self) {
        let Some(relay) = &mut self.input else { return };
        let Some(to) = relay.to.as_ref().or(self.master.as_ref()) else { return };
        match rustix::io::write(to, &relay.buffer) {
            Ok(length) => drop(relay.buffer.drain(..length)),
            Err(Errno::INTR | Errno::AGAIN) => {}
            // Nobody reads any more.
            Err(_) => {
                relay.ended = true;
                relay.buffer.clear();
            }
        }
        self.close_ended();
    }

    fn close_ended(&mut self) {
        // The end of a pipe is seen when it is closed. In a terminal it is a key like any other, and was passed on.
        if self.input.as_ref().is_some_and(|relay| relay.ended && relay.buffer.is_empty()) {
            self.input = None;
        }
    }

    /// Reads what the command's terminal shows; 0 when there is nothing now. `is_over`: no process of the run exists any more.
    pub(crate) fn shown(&mut self, buffer: &mut [u8], is_over: bool) -> io::Result<usize> {
        let Some(master) = &self.master else { return Ok(0) };
        match rustix::io::read(master, buffer) {
            Ok(length) if length > 0 => {
                self.hung_up = false;
                Ok(length)
            }
            Err(Errno::INTR) => Ok(0),
            Err(Errno::AGAIN) if !is_over => {
                self.hung_up = false;
                Ok(0)
            }
            // EIO: every descriptor of the other end is closed, and all that was written has been read.
            Ok(_) | Err(Errno::IO | Errno::AGAIN) => {
                self.hung_up = true;
                if is_over {
                    self.master = None;
                }
                Ok(0)
            }
            Err(errno) => Err(errno.into()),
        }
    }
}

/// What a descriptor of [`Joint::waits`] stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// The command's terminal shows something.
    Shown,
    /// Something was typed.
    Typed,
    /// The command can take what was typed.
    Taken,
}

/// The size of this process's window, if it has one.
pub(crate) fn window() -> Option<Winsize> {
    let size = |stream: BorrowedFd<'_>| rustix::termios::tcgetwinsize(stream).ok();
    size(rustix::stdio::stdout()).or_else(|| size(rustix::stdio::stdin())).or_else(|| size(rustix::stdio::stderr()))
}
