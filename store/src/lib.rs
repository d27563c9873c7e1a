//! Blobs, layers, cache records and image names on disk: this crate hides file names and locks.
//!
//! A store is a folder that any number of kiln processes share without a daemon. What is in it appears by a rename when it
//! is complete, so a process that is killed leaves nothing half-made; locks are on open files and die with their process.
//! [`mod@format`] draws the folder, and says which promise each file makes across a power cut.
//!
//! * [`Store::blobs`]: bytes by their digest; verified when written and when read.
//! * [`Store::layers`]: records, parents and trees. A base layer is written down by [`Layers::add_base`] without fetching it, and
//!   gets its tree by [`Layers::unpack`]; a step's layer comes from [`Layers::prepare`], or from [`Layers::prepare_apart`] when
//!   the step needs none of the trees below.
//! * [`Store::cache`]: which step gave which layer. Records outlive a crash of the machine exactly if their layers do, so
//!   nothing but layers is ever marked durable.
//! * [`Store::images`]: names. [`Images::set`] is the moment of durability: barrier, marks, name.
//! * [`Store::mounts`]: the folders of `RUN --mount=type=cache`.
//! * [`Store::gc`]: `du` and `prune`.
//! * [`Store::fsck`]: what the disk did to all that.
//!
//! The order of a step: [`Cache::get`]; on a miss [`Cache::lock`], `get` again, [`Layers::prepare`], run, [`Prepared::commit`],
//! [`Cache::put`], unlock.
//!
//! Waiting for another process polls, and asks the [`OnWait`] function of the handle each time ([`Store::on_wait`]): a build
//! reports the wait there and ends it by `Break` when it was cancelled.
#![forbid(unsafe_code)]

use std::fmt;
use std::fs::{self, DirBuilder, File};
use std::io::{ErrorKind, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;

pub mod blob;
pub mod cache;
pub mod descriptors;
pub mod error;
mod flat;
pub mod form;
pub mod format;
pub mod fsck;
pub mod gc;
pub mod image;
pub mod layer;
mod layout;
pub mod lock;
pub mod memo;
pub mod mounts;
pub mod owner;
mod record;
mod remove;
pub mod rootdir;
mod session;
pub mod snapshot;
pub mod tar;
pub mod view;

pub use blob::{BlobLock, BlobWriter, Blobs};
pub use cache::{Cache, CacheKey, CacheRecord, KeyLock};
pub use error::{Error, Result};
pub use form::TreeForm;
pub use fsck::Fsck;
pub use gc::{Gc, PruneOptions, PruneReport, Space, UsageRow};
pub use image::{ImageRecord, Images, PlatformImage};
pub use lock::{OnWait, WaitFor, Waiting};
pub use mounts::{MountGuard, Mounts, Sharing, Still};
pub use owner::Ownership;
pub use snapshot::{BaseLayer, Copied, LayerId, LayerKind, LayerRecord, Layers, PackedBlob, Prepared, Unpack};

use layout::Layout;
use lock::Mode;
use session::Session;

/// One process's handle on a store; a clone is the same handle.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
    on_wait: Arc<OnWait>,
}

/// Which of the stores below a root, and whose files are in it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Trees {
    /// How the trees lie on disk.
    pub form: TreeForm,
    /// Which ids of the host stand for the owners of files, one range in each line, in any words. Ranges may be added later;
    /// while a store exists none may change. `None` where the host's own ids are the owners.
    pub ids: Option<String>,
}

struct Inner {
    layout: Layout,
    form: TreeForm,
    /// Kept open from the beginning: `syncfs` reports the write-back errors since its descriptor was opened (Linux 5.8).
    root: File,
    lease: File,
    /// Before the session, in whose folder the trees are.
    flats: flat::Pool,
    session: Mutex<Option<Arc<Session>>>,
    boot: OnceLock<String>,
    layers: snapshot::Memory,
    sweep: Mutex<Option<JoinHandle<()>>>,
}

impl Store {
    /// Opens root's own store at `root`, or makes one where nothing or an empty folder is ([`Store::open_as`]).
    ///
    /// # Errors
    /// Those of [`Store::open_as`].
    pub fn open(root: &Path) -> Result<Self> {
        Self::open_waiting(root, Arc::new(|_: &Waiting<'_>| ControlFlow::Continue(())))
    }

    /// The same with a function that is asked while it waits; the handle keeps it as its [`Store::on_wait`].
    ///
    /// # Errors
    /// Those of [`Store::open_as`].
    pub fn open_waiting(root: &Path, on_wait: Arc<OnWait>) -> Result<Self> {
        Self::open_as(root, TreeForm::default(), on_wait)
    }

    /// Opens the store of these trees below `root`, which has a folder for each form but root's own, whose store it is itself.
    ///
    /// # Errors
    /// [`Error::ForeignIds`], and those of [`Store::open_as`].
    pub fn open_form(root: &Path, trees: &Trees, on_wait: Arc<OnWait>) -> Result<Self> {
        let Some(folder) = layout::folder(trees.form) else { return Self::open_as(root, trees.form, on_wait) };
        create_root(root)?;
        let store = Self::open_as(&root.join(folder), trees.form, on_wait)?;
        check_ids(store.layout(), trees.ids.as_deref())?;
        Ok(store)
    }

    /// Opens the store at `root` itself, whose trees have this form, or makes one where nothing or an empty folder is. The form isn't
    /// written down.
    ///
    /// Takes a shared lease that ends with the last clone of the handle, waiting while another process prunes. What dead
    /// processes left is taken away: by a few renames here, its deletion going on in the background.
    ///
    /// # Errors
    /// [`Error::NewerFormat`], [`Error::UnreadableFormat`], [`Error::NotAStore`], [`Error::ForeignOwner`], [`Error::Io`].
    pub fn open_as(root: &Path, form: TreeForm, on_wait: Arc<OnWait>) -> Result<Self> {
        let layout = Layout::new(absolute(root)?);
        let dir = match File::open(layout.root()) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                create_root(layout.root())?;
                File::open(layout.root())
            }
            dir => dir,
        };
        let dir = dir.map_err(Error::io("open the store", layout.root()))?;
        if !layout.version().try_exists().map_err(Error::io("stat", &layout.version()))? {
            initialise(&layout)?;
        }
        let lease = lock::open(&layout.lease())?;
        lock::lock_lasting(&lease, &layout.lease(), Mode::Shared, &WaitFor::Prune, &*on_wait)?;
        check_version(&layout)?;
        keep_private(&dir, layout.root())?;
        let sweep = if session::bury_the_dead(&layout)? { Some(sweep_in_background(layout.trash())) } else { None };
        let inner = Inner {
            layout,
            form,
            root: dir,
            lease,
            session: Mutex::new(None),
            boot: OnceLock::new(),
            layers: snapshot::Memory::default(),
            flats: flat::Pool::default(),
            sweep: Mutex::new(sweep),
        };
        Ok(Self { inner: Arc::new(inner), on_wait })
    }

    /// The same handle that asks `on_wait` while it waits.
    #[must_use]
    pub fn on_wait(&self, on_wait: Arc<OnWait>) -> Self {
        Self { inner: Arc::clone(&self.inner), on_wait }
    }

    /// The folder, as an absolute path.
    pub fn root(&self) -> &Path {
        self.layout().root()
    }

    /// Bytes by their digest.
    pub fn blobs(&self) -> Blobs<'_> {
        Blobs::new(self)
    }

    /// Layers: their records and their trees.
    pub fn layers(&self) -> Layers<'_> {
        Layers::new(self)
    }

    /// Cache records.
    pub fn cache(&self) -> Cache<'_> {
        Cache::new(self)
    }

    /// Image names.
    pub fn images(&self) -> Images<'_> {
        Images::new(self)
    }

    /// The folders of cache mounts.
    pub fn mounts(&self) -> Mounts<'_> {
        Mounts::new(self)
    }

    /// A folder on the layers' file system for the mount points that every sandbox needs.
    pub fn mount_points(&self) -> PathBuf {
        self.layout().mount_points()
    }

    /// Where the fingerprints of the files below `folder` are remembered ([`memo::Memo::open`]).
    pub fn memo_file(&self, folder: &Path) -> PathBuf {
        self.layout().memo(folder.as_os_str().as_encoded_bytes())
    }

    /// Sizes, and collection of what nothing needs.
    pub fn gc(&self) -> Gc<'_> {
        Gc::new(self)
    }

    /// Finds and mends what is broken.
    pub fn fsck(&self) -> Fsck<'_> {
        Fsck::new(self)
    }

    /// One `syncfs`: all that any process wrote into the store before this call is on disk when it returns.
    ///
    /// [`Images::set`] calls it by itself.
    ///
    /// # Errors
    /// [`Error::Sync`]: something that was written may be lost. Nothing may be named on the strength of it, and trying
    /// again proves nothing (the kernel reports a write-back error once).
    pub fn barrier(&self) -> Result<()> {
        rustix::fs::syncfs(&self.inner.root).map_err(|errno| self.sync_failed(errno.into()))
    }

    /// Whoever opens the store from now on isn't told of the failure, and reads from memory what never reached the disk.
    pub(crate) fn sync_failed(&self, source: std::io::Error) -> Error {
        let nonce = session::nonce().unwrap_or_default();
        let _ = fs::write(self.layout().epoch(), nonce);
        Error::Sync { path: self.root().to_owned(), source }
    }

    /// Brings what was written so far to the disk, so that the [`Store::barrier`] to come has less to do. It promises nothing, and it
    /// takes no error away from that one: the kernel tells each descriptor of it, and this is a descriptor of its own.
    pub fn flush_ahead(&self) {
        let _ = File::open(self.root()).map(rustix::fs::syncfs);
    }

    /// Makes layers outlive a crash of the machine, with all their parents: a barrier, then a mark on each.
    ///
    /// A base layer that is not unpacked has nothing to mark. [`Images::set`] calls it by itself.
    ///
    /// # Errors
    /// [`Error::LayerMissing`], [`Error::LayerCycle`], [`Error::Sync`], [`Error::Io`].
    pub fn make_durable(&self, layers: &[LayerId]) -> Result<()> {
        let closed = self.layers().close(layers)?;
        let unmarked = self.layers().unmarked(&closed)?;
        self.barrier()?;
        self.layers().mark(&unmarked)
    }

    /// Waits until what dead processes left is deleted; [`Store::open`] only began with it.
    pub fn finish_sweep(&self) {
        let handle = self.inner.sweep.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(handle) = handle {
            let _ = handle.join();
        }
    }

    /// Lets processes that this one starts from now on hold on to its unfinished work: while one of them lives nobody takes it
    /// for abandoned, even when this process is killed.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn lock_with_children(&self) -> Result<()> {
        self.session()?.lock_with_children()
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.inner.layout
    }

    pub(crate) fn session(&self) -> Result<Arc<Session>> {
        let mut session = self.inner.session.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(session) = &*session {
            return Ok(Arc::clone(session));
        }
        let begun = Arc::new(Session::begin(self.layout())?);
        *session = Some(Arc::clone(&begun));
        Ok(begun)
    }

    /// Which start of the machine this is, and which time since a sync failed. When the kernel doesn't say, every process is a
    /// start of its own: then relaxed records are never believed, which costs time and nothing else.
    pub(crate) fn boot(&self) -> &str {
        self.inner.boot.get_or_init(|| {
            let boot = session::boot_id().unwrap_or_else(|| format!("unknown-{}", session::nonce().unwrap_or_default()));
            match fs::read(self.layout().epoch()) {
                Err(error) if error.kind() == ErrorKind::NotFound => boot,
                // After a crash the file may hold anything; then the boot id is another one, too.
                epoch => format!("{boot}+{}", String::from_utf8_lossy(&epoch.unwrap_or_default())),
            }
        })
    }

    pub(crate) fn lease(&self) -> &File {
        &self.inner.lease
    }

    pub(crate) fn memory(&self) -> &snapshot::Memory {
        &self.inner.layers
    }

    pub(crate) fn flats(&self) -> &flat::Pool {
        &self.inner.flats
    }

    pub(crate) fn waiter(&self) -> &OnWait {
        &*self.on_wait
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Store").field(&self.root()).finish()
    }
}

/// A folder, private to the user, on the file system of the stores at `root`: for finding out what can be done there before it is
/// known which of them to open, and for remembering it.
///
/// # Errors
/// [`Error::Io`].
pub fn host_folder(root: &Path) -> Result<PathBuf> {
    let root = absolute(root)?;
    let folder = layout::host(&root);
    create_root(&root)?;
    create_root(&folder)?;
    Ok(folder)
}

/// The folder of the store of this form below `root`.
pub fn store_folder(root: &Path, form: TreeForm) -> PathBuf {
    layout::folder(form).map_or_else(|| root.to_owned(), |folder| root.join(folder))
}

fn absolute(root: &Path) -> Result<PathBuf> {
    std::path::absolute(root).map_err(Error::io("find", root))
}

/// Makes the folder and those above it. Only the last is ours to close to others.
fn create_root(root: &Path) -> Result<()> {
    if let Some(parent) = root.parent() {
        fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    }
    match DirBuilder::new().mode(0o700).create(root) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(Error::io("create", root)(error)),
        _ => Ok(()),
    }
}

/// Fills an empty root, or one whose filling was cut short; several processes may do so at once.
fn initialise(layout: &Layout) -> Result<()> {
    let root = layout.root();
    for entry in fs::read_dir(root).map_err(Error::io("list", root))? {
        let name = entry.map_err(Error::io("list", root))?.file_name();
        if !layout::KNOWN_AT_ROOT.iter().any(|known| name == *known) {
            return Err(Error::NotAStore { path: root.to_owned(), found: name.to_string_lossy().into_owned() });
        }
    }
    for name in layout::DIRECTORIES {
        let path = root.join(name);
        match session::make_dir(&path, 0o700) {
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::AlreadyExists => {}
            outcome => outcome?,
        }
    }
    // Last, because it says that the rest is there.
    let draft = layout.version_draft(&session::nonce()?);
    let mut file = File::create_new(&draft).map_err(Error::io("create", &draft))?;
    let written = file.write_all(format::header().as_bytes()).and_then(|()| file.sync_all());
    written.map_err(Error::io("write", &draft))?;
    match fs::rename(&draft, layout.version()) {
        // Another process finished first, opened the store, and took our draft for a dead one's.
        Err(error) if error.kind() == ErrorKind::NotFound && layout.version().exists() => Ok(()),
        outcome => outcome.map_err(Error::io("rename to", &layout.version())),
    }
}

fn check_version(layout: &Layout) -> Result<()> {
    let path = layout.version();
    let text = fs::read(&path).map_err(Error::io("read", &path))?;
    match format::check(&text) {
        format::Verdict::Ours => {}
        format::Verdict::Newer(found) => return Err(Error::NewerFormat { path: layout.root().to_owned(), found }),
        format::Verdict::Unreadable => {
            return Err(Error::UnreadableFormat { path });
        }
    }
    let owner = fs::symlink_metadata(&path).map_err(Error::io("stat", &path))?.uid();
    let user = rustix::process::geteuid().as_raw();
    if owner != user {
        return Err(Error::ForeignOwner { path: layout.root().to_owned(), owner, user });
    }
    Ok(())
}

/// Compares the ids that the trees were made with to those of today; an added range is written down.
fn check_ids(layout: &Layout, current: Option<&str>) -> Result<()> {
    let Some(current) = current else { return Ok(()) };
    let path = layout.ids();
    let recorded = match fs::read_to_string(&path) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(Error::io("read", &path)(error)),
    };
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let now = lines(current);
    if let Some(recorded) = &recorded {
        let then = lines(recorded);
        if then == now {
            return Ok(());
        }
        if !then.iter().all(|range| now.contains(range)) {
            let (path, recorded, current) = (layout.root().to_owned(), then.join(", "), now.join(", "));
            return Err(Error::ForeignIds { path, recorded, current });
        }
    }
    let draft = layout.ids_draft(&session::nonce()?);
    let mut file = File::create_new(&draft).map_err(Error::io("create", &draft))?;
    let written = file.write_all(current.as_bytes()).and_then(|()| file.sync_all());
    written.map_err(Error::io("write", &draft))?;
    match fs::rename(&draft, &path) {
        // As above: another process wrote it meanwhile, and took our draft for a dead one's.
        Err(error) if error.kind() == ErrorKind::NotFound && path.exists() => Ok(()),
        outcome => outcome.map_err(Error::io("rename to", &path)),
    }
}

/// Takes away what others may do in the root, if it is ours (the root of a volume in a pod need not be; the folders in it
/// are, and are closed each by itself).
fn keep_private(dir: &File, root: &Path) -> Result<()> {
    let meta = dir.metadata().map_err(Error::io("stat", root))?;
    if meta.uid() != rustix::process::geteuid().as_raw() || meta.mode() & 0o7777 == 0o700 {
        return Ok(());
    }
    dir.set_permissions(fs::Permissions::from_mode(0o700)).map_err(Error::io("set the mode of", root))
}

fn sweep_in_background(trash: PathBuf) -> JoinHandle<()> {
    std::thread::spawn(move || {
        // What can't be deleted now stays in the trash for the next process; `prune` is where such an error is told.
        let _ = remove::empty_trash(&trash);
    })
}

#[cfg(test)]
mod tests;
