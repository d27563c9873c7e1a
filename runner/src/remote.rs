//! How signals reach a running command: hides the pipe between who gets them and who passes them on.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::pipe::PipeFlags;

/// A line to one running command. Clones are the same line.
#[derive(Debug, Clone)]
pub struct Remote {
    ends: Arc<(OwnedFd, OwnedFd)>,
}

impl Remote {
    /// A line to nobody yet.
    ///
    /// # Errors
    /// When no descriptor can be had.
    pub fn new() -> io::Result<Remote> {
        Ok(Remote { ends: Arc::new(rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?) })
    }

    /// Passes on a signal that this process got. SIGWINCH gives the command's terminal the size of this one's; SIGTSTP stops all
    /// processes of the run and then this one; SIGCONT continues them.
    ///
    /// The command is process 1 of its sandbox, which a signal that it has no handler for would leave unmoved; of one that ends any
    /// other process it ends, too, and [`crate::Status`] names that signal.
    pub fn signal(&self, number: i32) {
        if let Ok(number) = u8::try_from(number) {
            // A full pipe means that hundreds of signals have been waiting already.
            let _ = rustix::io::write(&self.ends.1, &[number]);
        }
    }

    /// The signals since the last call.
    pub(crate) fn take(&self) -> Vec<u8> {
        let mut numbers = vec![0; 256];
        let length = rustix::io::read(&self.ends.0, &mut numbers[..]).unwrap_or(0);
        numbers.truncate(length);
        numbers
    }
}

impl AsFd for Remote {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ends.0.as_fd()
    }
}
