//! How a run is told to end: hides the descriptors that wake the waiting threads.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::event::{EventfdFlags, eventfd};

/// A switch shared by everything that should end together. Clones are the same switch.
#[derive(Debug, Clone)]
pub struct Cancel {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    triggers: AtomicU32,
    /// Readable for ever after the first trigger.
    first: OwnedFd,
    /// Readable for ever after the second.
    second: OwnedFd,
}

impl Cancel {
    /// A switch that is off.
    ///
    /// # Errors
    /// When no descriptor can be had.
    pub fn new() -> io::Result<Cancel> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Cancel {
            inner: Arc::new(Inner { triggers: AtomicU32::new(0), first: eventfd(0, flags)?, second: eventfd(0, flags)? }),
        })
    }

    /// Ends what listens. The first time a running command gets SIGTERM and five seconds; the second time it is killed.
    pub fn trigger(&self) {
        let before = self.inner.triggers.fetch_add(1, Ordering::SeqCst);
        let fd = if before == 0 { &self.inner.first } else { &self.inner.second };
        // A full counter means that it is readable already.
        let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
    }

    /// Was it triggered?
    pub fn is_triggered(&self) -> bool {
        self.triggers() > 0
    }

    /// How many times it was triggered.
    pub fn triggers(&self) -> u32 {
        self.inner.triggers.load(Ordering::SeqCst)
    }

    /// Becomes readable with the second trigger.
    pub(crate) fn second(&self) -> BorrowedFd<'_> {
        self.inner.second.as_fd()
    }
}

/// The descriptor becomes readable with the first trigger and stays so; only poll it.
impl AsFd for Cancel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.first.as_fd()
    }
}
