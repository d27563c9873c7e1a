//! Hides `flock`: which files are locked, how a lock file goes away safely, and how waiting is told to the user.
//!
//! Every lock is on an open file and dies with the process that holds it, so nothing has to be repaired after a crash.

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kiln_oci::digest::Digest;

use crate::cache::CacheKey;
use crate::error::{Error, Result};
use crate::snapshot::LayerId;

/// What a process may have to wait for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WaitFor {
    /// `prune` in another process, which no build may run beside.
    Prune,
    /// Builds in other processes, which `prune` may not run beside.
    Users,
    /// The same step in another process.
    Step(CacheKey),
    /// The same base layer, which another process unpacks.
    Unpack(LayerId),
    /// The same blob, which another process fetches.
    Fetch(Digest),
    /// The cache mount with this id, which another step uses (`sharing=locked`) or makes.
    Mount(String),
    /// Another process that writes the same image name.
    Name(String),
}

impl fmt::Display for WaitFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prune => f.write_str("another kiln to finish pruning the store"),
            Self::Users => f.write_str("other kiln processes to stop using the store"),
            Self::Step(_) => f.write_str("the same step in another kiln"),
            Self::Unpack(id) => write!(f, "another kiln to unpack layer {id}"),
            Self::Fetch(digest) => write!(f, "another kiln to fetch the blob {digest}"),
            Self::Mount(id) => write!(f, "the cache mount `{id}`"),
            Self::Name(name) => write!(f, "another kiln to write the name `{name}`"),
        }
    }
}

/// One report of a wait that goes on.
#[derive(Debug, Clone)]
pub struct Waiting<'a> {
    /// What is waited for.
    pub what: &'a WaitFor,
    /// The process that holds it, where that is known (it may be stopped: F41 of the fault list).
    pub holder: Option<u32>,
    /// For how long already.
    pub elapsed: Duration,
}

/// Asked again and again while the store waits for a lock, first when the wait begins, then at least every 25 ms;
/// `Break` ends the wait with [`Error::Interrupted`].
pub type OnWait = dyn Fn(&Waiting<'_>) -> ControlFlow<()> + Send + Sync;

/// How a file is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Shared,
    Exclusive,
}

const LONGEST_PAUSE: Duration = Duration::from_millis(25);

/// Locks a file that lasts: it is never unlinked while the store is in use.
pub(crate) fn lock_lasting(file: &File, path: &Path, mode: Mode, what: &WaitFor, on_wait: &OnWait) -> Result<()> {
    wait_until(what, on_wait, || Ok(if try_lock(file, path, mode)? { Attempt::Got(()) } else { Attempt::Held(None) }))
}

/// Gives the lock on `file` to all children as well, which hold it for as long as they have the descriptor.
pub(crate) fn inherit(file: &File, path: &Path) -> Result<()> {
    rustix::io::fcntl_setfd(file, rustix::io::FdFlags::empty()).map_err(Error::io("share the lock of", path))
}

/// Tries once; false when another holds it.
///
/// A lock that `file` already has is given up first: that is how Linux converts a `flock` (flock(2): "converting a lock
/// is not guaranteed to be atomic").
pub(crate) fn try_lock(file: &File, path: &Path, mode: Mode) -> Result<bool> {
    let outcome = match mode {
        Mode::Shared => file.try_lock_shared(),
        Mode::Exclusive => file.try_lock(),
    };
    match outcome {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(source)) => Err(Error::io("lock", path)(source)),
    }
}

/// Opens a lock file, making it if need be.
pub(crate) fn open(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.open(path).map_err(Error::io("open lock file", path))
}

/// Whether `path` still leads to the file that is open.
pub(crate) fn is_at(file: &File, path: &Path) -> Result<bool> {
    let ours = file.metadata().map_err(Error::io("stat", path))?;
    match fs::symlink_metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("stat", path)(error)),
    }
}

/// An exclusive lock on a file that exists only while somebody wants the lock.
#[derive(Debug)]
pub(crate) struct TransientLock {
    file: File,
    path: PathBuf,
}

impl TransientLock {
    pub(crate) fn acquire(path: &Path, what: &WaitFor, on_wait: &OnWait) -> Result<Self> {
        wait_until(what, on_wait, || Self::attempt(path))
    }

    /// None when another holds it.
    pub(crate) fn try_acquire(path: &Path) -> Result<Option<Self>> {
        Ok(match Self::attempt(path)? {
            Attempt::Got(lock) => Some(lock),
            Attempt::Held(_) => None,
        })
    }

    fn attempt(path: &Path) -> Result<Attempt<Self>> {
        loop {
            let mut file = open(path)?;
            if !try_lock(&file, path, Mode::Exclusive)? {
                return Ok(Attempt::Held(holder(&mut file)));
            }
            // Between our open and our lock, the holder before us may have unlinked the file: whoever comes next would
            // lock another one.
            if is_at(&file, path)? {
                // For whoever waits; a full disk must not stop us from holding the lock.
                let _ = write!(file, "{}", std::process::id());
                return Ok(Attempt::Got(Self { file, path: path.to_owned() }));
            }
        }
    }
}

impl Drop for TransientLock {
    fn drop(&mut self) {
        // Unlink before unlock: who then locks the unlinked file notices by `is_at`. The other order would let two
        // processes hold "the" lock on two files.
        let _ = fs::remove_file(&self.path);
        let _ = self.file.unlock();
    }
}

enum Attempt<T> {
    Got(T),
    Held(Option<u32>),
}

/// Polls instead of blocking in `flock`, so that Ctrl-C gets through and a stopped holder can be reported.
fn wait_until<T>(what: &WaitFor, on_wait: &OnWait, mut attempt: impl FnMut() -> Result<Attempt<T>>) -> Result<T> {
    let mut begin = None;
    let mut pause = Duration::from_millis(1);
    loop {
        let holder = match attempt()? {
            Attempt::Got(lock) => return Ok(lock),
            Attempt::Held(holder) => holder,
        };
        let elapsed = begin.get_or_insert_with(Instant::now).elapsed();
        if on_wait(&Waiting { what, holder, elapsed }).is_break() {
            return Err(Error::Interrupted { what: what.clone() });
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(16).read_to_string(&mut text).ok()?;
    text.parse().ok()
}
