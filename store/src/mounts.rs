//! Hides the folders of `RUN --mount=type=cache`: which one a step gets, and who may use it at the same time.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::Store;
use crate::error::{Error, Result};
use crate::layout::MountDir;
use crate::lock::{self, Mode, TransientLock, WaitFor};
use crate::record::{self, Durability};
use crate::session;

/// Who may use a cache mount at the same time (`sharing=` of the Dockerfile reference).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sharing {
    /// Everybody who says so.
    #[default]
    Shared,
    /// One at a time; who comes while it is in use gets a folder of its own.
    Private,
    /// One at a time; the others wait.
    Locked,
}

/// What became of asking for a folder that doesn't change ([`Mounts::still`]).
#[derive(Debug)]
pub enum Still {
    /// There is none.
    Absent,
    /// Somebody goes on using it.
    InUse,
    /// Here it is.
    Here(MountGuard),
}

/// How often it is looked whether a folder is free.
const GLANCE: Duration = Duration::from_millis(20);

/// The folders of cache mounts.
#[derive(Debug, Clone, Copy)]
pub struct Mounts<'a> {
    store: &'a Store,
}

impl<'a> Mounts<'a> {
    pub(crate) fn new(store: &'a Store) -> Self {
        Self { store }
    }

    /// The folder for `id`, for as long as the guard lives.
    ///
    /// A folder that isn't there yet is made by `seed`, which gets an empty one (0755) to fill and to give an owner; it
    /// appears only if `seed` succeeds. Waits for others as long as the handle's [`Store::on_wait`] lets it.
    ///
    /// # Errors
    /// What `seed` returns; [`Error::Interrupted`], [`Error::Io`].
    pub fn acquire<E: From<Error>>(
        &self,
        id: &[u8],
        sharing: Sharing,
        seed: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<MountGuard, E> {
        let dir = self.store.layout().mount(id);
        self.introduce(id, &dir)?;
        let (slot, lock) = match sharing {
            Sharing::Private => first_free(&dir)?,
            Sharing::Shared | Sharing::Locked => {
                let mode = if sharing == Sharing::Shared { Mode::Shared } else { Mode::Exclusive };
                let path = dir.slot_lock(0);
                let file = lock::open(&path)?;
                lock::lock_lasting(&file, &path, mode, &self.what(id), self.store.waiter())?;
                (0, file)
            }
        };
        let path = dir.slot(slot);
        if !is_there(&path)? {
            // Several may share the slot's lock; one makes the folder.
            let lock_path = self.store.layout().mount_lock(id);
            let _lock = TransientLock::acquire(&lock_path, &self.what(id), self.store.waiter())?;
            if !is_there(&path)? {
                let draft = self.store.session()?.draft_dir()?;
                let inner = MountDir(draft.path().to_owned()).slot(0);
                session::make_dir(&inner, 0o755)?;
                seed(&inner)?;
                fs::rename(&inner, &path).map_err(Error::io("rename to", &path))?;
            }
        }
        record::touch(&lock);
        Ok(MountGuard { path, lock, _store: self.store.clone() })
    }

    /// The folder for `id` as it is now, kept from changing for as long as the guard lives; who uses it is waited for up to
    /// `patience`. Of several folders (`sharing=private`) the first.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn still(&self, id: &[u8], patience: Duration) -> Result<Still> {
        let dir = self.store.layout().mount(id);
        let path = dir.slot(0);
        if !is_there(&path)? {
            return Ok(Still::Absent);
        }
        let lock_path = dir.slot_lock(0);
        let lock = lock::open(&lock_path)?;
        let started = Instant::now();
        while !lock::try_lock(&lock, &lock_path, Mode::Exclusive)? {
            if started.elapsed() >= patience {
                return Ok(Still::InUse);
            }
            std::thread::sleep(GLANCE);
        }
        match is_there(&path)? {
            true => Ok(Still::Here(MountGuard { path, lock, _store: self.store.clone() })),
            false => Ok(Still::Absent),
        }
    }

    /// Makes the folder of the id, with a file that says which id it is.
    fn introduce(&self, id: &[u8], dir: &MountDir) -> Result<()> {
        if is_there(&dir.id())? {
            return Ok(());
        }
        match session::make_dir(dir.path(), 0o700) {
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::AlreadyExists => {}
            outcome => outcome?,
        }
        record::place(&*self.store.session()?, &dir.id(), id, Durability::Relaxed)
    }

    fn what(&self, id: &[u8]) -> WaitFor {
        WaitFor::Mount(String::from_utf8_lossy(id).into_owned())
    }
}

/// The first slot that nobody uses.
fn first_free(dir: &MountDir) -> Result<(u32, File)> {
    let mut slot = 0;
    loop {
        let path = dir.slot_lock(slot);
        let file = lock::open(&path)?;
        if lock::try_lock(&file, &path, Mode::Exclusive)? {
            return Ok((slot, file));
        }
        slot += 1;
    }
}

fn is_there(path: &Path) -> Result<bool> {
    path.try_exists().map_err(Error::io("stat", path))
}

/// The right to use a cache mount's folder, until it is dropped or the process ends.
#[derive(Debug)]
pub struct MountGuard {
    path: PathBuf,
    lock: File,
    /// The lease must outlive the lock.
    _store: Store,
}

impl MountGuard {
    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The disk space of its files, in bytes.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn size(&self) -> Result<u64> {
        crate::gc::size_of_tree(&self.path)
    }

    /// Lets processes that this one starts from now on hold the right as well, should this one be killed.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn lock_with_children(&self) -> Result<()> {
        lock::inherit(&self.lock, &self.path)
    }
}

impl Drop for MountGuard {
    fn drop(&mut self) {
        // A child may have the descriptor, too, and another step's at that.
        let _ = self.lock.unlock();
    }
}
