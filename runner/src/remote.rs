//! How signals reach a running command: hides the pipe between who gets them and who passes them on.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use rustix::pipe::PipeFlags;

/// A line to one running command. Clones are the same line.
#[derive(Debug, Clone)]
pub struct Remote {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    read: OwnedFd,
    write: OwnedFd,
    attached: AtomicBool,
    /// What the command knows SIGTERM as.
    stop: AtomicI32,
}

impl Remote {
    /// A line to nobody yet.
    ///
    /// # Errors
    /// When no descriptor can be had.
    pub fn new() -> io::Result<Remote> {
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let (attached, stop) = (AtomicBool::new(false), AtomicI32::new(libc::SIGTERM));
        Ok(Remote { inner: Arc::new(Inner { read, write, attached, stop }) })
    }

    /// Passes on a signal that this process got. SIGWINCH gives the command's terminal the size of this one's; SIGTSTP stops all
    /// processes of the run and then this one; SIGCONT continues them.
    ///
    /// The command is process 1 of its sandbox, which a signal that it has no handler for would leave unmoved; of one that ends any
    /// other process it ends, too, and [`crate::Status`] names that signal.
    pub fn signal(&self, number: i32) {
        let number = if number == libc::SIGTERM { self.inner.stop.load(Ordering::SeqCst) } else { number };
        if let Ok(number) = u8::try_from(number) {
            // A full pipe means that thousands of signals have been waiting already.
            let _ = rustix::io::write(&self.inner.write, &[number]);
        }
    }

    /// Has SIGTERM passed on as this signal, which asks the command to stop (`STOPSIGNAL`).
    pub fn stop_with(&self, number: i32) {
        self.inner.stop.store(number, Ordering::SeqCst);
    }

    /// Does a command run at the other end?
    pub fn is_attached(&self) -> bool {
        self.inner.attached.load(Ordering::SeqCst)
    }

    /// A command runs at the other end until the result is dropped.
    pub(crate) fn attach(&self) -> Attached<'_> {
        self.inner.attached.store(true, Ordering::SeqCst);
        Attached(self)
    }

    /// The signals since the last call.
    pub(crate) fn take(&self) -> Vec<u8> {
        let mut numbers = vec![0; 256];
        let length = rustix::io::read(&self.inner.read, &mut numbers[..]).unwrap_or(0);
        numbers.truncate(length);
        numbers
    }
}

impl AsFd for Remote {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.read.as_fd()
    }
}

/// While this lives, signals have somebody to go to.
pub(crate) struct Attached<'a>(&'a Remote);

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        self.0.inner.attached.store(false, Ordering::SeqCst);
    }
}
