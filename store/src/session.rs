//! Hides how unfinished work is told from abandoned work: all that a process has not finished lies in one locked folder.
//!
//! The folder is made at the first write and locked for as long as the process lives. Whoever opens the store tries the
//! locks of all such folders (there are as many as processes at work); one that it gets belongs to the dead and goes to the
//! trash by one rename. So the cost of cleaning up at start doesn't depend on what lies in the folders or in the store.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result, named};
use crate::layout::Layout;
use crate::{lock, remove};

/// 128 random bits as 32 hexadecimal digits: a name that nobody else picks.
pub(crate) fn nonce() -> Result<String> {
    let mut bytes = [0u8; 16];
    let (filled, _) = rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())
        .map_err(Error::io("read random bytes from", Path::new("/dev/urandom")))
        .map(|filled| (filled, ()))?;
    debug_assert_eq!(filled, 16);
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// Which start of the machine this is, if the kernel says.
pub(crate) fn boot_id() -> Option<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned()).filter(|id| !id.is_empty())
}

/// The folder of this process.
#[derive(Debug)]
pub(crate) struct Session {
    path: PathBuf,
    trash: PathBuf,
    count: AtomicU64,
    /// Held open for its lock.
    locked: File,
}

impl Session {
    pub(crate) fn begin(layout: &Layout) -> Result<Self> {
        loop {
            let path = layout.session(&nonce()?);
            DirBuilder::new().mode(0o700).create(&path).map_err(Error::io("create", &path))?;
            let locked = match File::open(&path) {
                Ok(file) => file,
                // Somebody who cleaned up took the folder for a dead one's before we could lock it.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(Error::io("open", &path)(error)),
            };
            locked.lock().map_err(Error::io("lock", &path))?;
            if lock::is_at(&locked, &path)? {
                return Ok(Self { path, trash: layout.trash(), count: AtomicU64::new(0), locked });
            }
        }
    }

    /// See [`crate::Store::lock_with_children`].
    pub(crate) fn lock_with_children(&self) -> Result<()> {
        lock::inherit(&self.locked, &self.path)
    }

    /// A name in the folder that was not given out before.
    pub(crate) fn fresh(&self) -> PathBuf {
        self.path.join(self.count.fetch_add(1, Ordering::Relaxed).to_string())
    }

    /// An empty file that goes away unless it is renamed.
    pub(crate) fn draft(&self) -> Result<Draft> {
        let path = self.fresh();
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let file = options.open(&path).map_err(Error::io("create", &path))?;
        Ok(Draft { file, path: Some(path) })
    }

    /// An empty folder that goes away, with all that is in it then, unless it is renamed.
    pub(crate) fn draft_dir(&self) -> Result<DraftDir> {
        let path = self.fresh();
        make_dir(&path, 0o700)?;
        Ok(DraftDir { path: Some(path), trash: self.trash.clone() })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Empty unless somebody leaked a draft; then it is left to whoever opens the store next.
        let _ = fs::remove_dir(&self.path);
        // A child may have the descriptor, too.
        let _ = self.locked.unlock();
    }
}

/// Makes a folder with exactly these permission bits, whatever the umask says.
pub(crate) fn make_dir(path: &Path, mode: u32) -> Result<()> {
    DirBuilder::new().mode(mode).create(path).map_err(Error::io("create", path))?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
    fs::set_permissions(path, mode).map_err(Error::io("set the mode of", path))
}

/// A file that has no name yet.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) file: File,
    path: Option<PathBuf>,
}

impl Draft {
    /// Writes some of the bytes.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.file.write(bytes).map_err(|error| named("write", self.path.as_deref().unwrap_or(Path::new("")), error))
    }

    /// Gives it its name, in place of what had the name before.
    pub(crate) fn rename_to(mut self, target: &Path) -> Result<()> {
        let Some(path) = self.path.take() else { return Ok(()) };
        let outcome = rename_into(&path, target);
        if outcome.is_err() {
            self.path = Some(path);
        }
        outcome
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = fs::remove_file(path);
        }
    }
}

/// Renames; makes the parent folder when that is what's missing (the shards of the cache are made as they are needed).
fn rename_into(from: &Path, to: &Path) -> Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            if let Some(parent) = to.parent() {
                match DirBuilder::new().mode(0o700).create(parent) {
                    Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(Error::io("create", parent)(error)),
                    _ => {}
                }
            }
            fs::rename(from, to).map_err(Error::io("rename to", to))
        }
        outcome => outcome.map_err(Error::io("rename to", to)),
    }
}

/// A folder that has no name yet.
#[derive(Debug)]
pub(crate) struct DraftDir {
    path: Option<PathBuf>,
    trash: PathBuf,
}

impl DraftDir {
    pub(crate) fn path(&self) -> &Path {
        self.path.as_deref().unwrap_or(Path::new(""))
    }

    /// Gives it its name, which must be free.
    pub(crate) fn rename_to(mut self, target: &Path) -> Result<()> {
        let Some(path) = self.path.take() else { return Ok(()) };
        let outcome = rename_into(&path, target);
        if outcome.is_err() {
            self.path = Some(path);
        }
        outcome
    }
}

impl Drop for DraftDir {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = remove::tree(path, &self.trash);
        }
    }
}

/// Sends the folders of dead processes to the trash; says whether the trash has something in it.
pub(crate) fn bury_the_dead(layout: &Layout) -> Result<bool> {
    let ingest = layout.ingest();
    for entry in fs::read_dir(&ingest).map_err(Error::io("list", &ingest))? {
        let path = entry.map_err(Error::io("list", &ingest))?.path();
        let dead = match File::open(&path) {
            Ok(dir) if lock::try_lock(&dir, &path, lock::Mode::Exclusive)? => dir,
            Ok(_) => continue,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::io("open", &path)(error)),
        };
        remove::discard(&path, layout)?;
        drop(dead);
    }
    let trash = layout.trash();
    let mut entries = fs::read_dir(&trash).map_err(Error::io("list", &trash))?;
    Ok(entries.next().is_some())
}
