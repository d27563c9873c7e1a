//! Hides nothing: the one enum in which the store says what it could not do.

use std::io;
use std::path::{Path, PathBuf};

use kiln_oci::digest::{ChainId, Digest};
use kiln_oci::path::ImagePath;

use crate::flat::CollectError;
use crate::lock::WaitFor;
use crate::rootdir::FsError;
use crate::snapshot::LayerId;
use crate::view::ViewError;

/// The result of a store operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the store could not do, and to which object.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("can't {op} {}", path.display())]
    Io {
        /// What was tried, as a verb with its preposition: `read`, `create`, `rename to`.
        op: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// A barrier failed: what was written before it may not be on disk, so nothing was named.
    #[error("can't write the store at {} through to the disk", path.display())]
    Sync {
        /// The root of the store.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// The store was written by a newer kiln.
    #[error("the store at {} has format {found}, but this kiln knows only format {}", path.display(), crate::format::VERSION)]
    NewerFormat {
        /// The root of the store.
        path: PathBuf,
        /// What its `version` file says.
        found: String,
    },
    /// The file that says so is damaged.
    #[error("damaged: {} doesn't name a store format", path.display())]
    UnreadableFormat {
        /// The file.
        path: PathBuf,
    },
    /// The folder has something in it that is not a store.
    #[error("{} is neither empty nor a kiln store: it has `{found}` in it", path.display())]
    NotAStore {
        /// The folder.
        path: PathBuf,
        /// A name in it that no store has.
        found: String,
    },
    /// The store belongs to another user; writing into it would leave files that its owner can't remove.
    #[error("the store at {} belongs to user {owner}, not to user {user}", path.display())]
    ForeignOwner {
        /// The root of the store.
        path: PathBuf,
        /// Who owns it.
        owner: u32,
        /// Who we are.
        user: u32,
    },
    /// The trees were made with owners that would now be those of other users of the image.
    #[error("the store at {} was made with the ids `{recorded}`, and kiln has the ids `{current}` now", path.display())]
    ForeignIds {
        /// The root of the store.
        path: PathBuf,
        /// The ids that its trees were made with.
        recorded: String,
        /// The ids that there are now.
        current: String,
    },
    /// The bytes that were written are not those that were announced.
    #[error("digest mismatch: expected {expected}, got {actual}")]
    DigestMismatch {
        /// What was announced.
        expected: Digest,
        /// What came.
        actual: Digest,
    },
    /// More or fewer bytes than announced.
    #[error("size mismatch: expected {expected} bytes, got {actual}")]
    SizeMismatch {
        /// What was announced, in bytes.
        expected: u64,
        /// What came, in bytes (at an overrun: what had come when it was noticed).
        actual: u64,
    },
    /// No such blob.
    #[error("blob {digest} is not in the store")]
    BlobMissing {
        /// Which.
        digest: Digest,
    },
    /// The file at the blob's path has other bytes; it was taken away, so that the blob counts as missing from now on.
    #[error("blob {digest} is damaged on disk ({reason}); it was removed")]
    BlobCorrupt {
        /// Which.
        digest: Digest,
        /// How it was noticed.
        reason: &'static str,
    },
    /// The blob is larger than the caller can take.
    #[error("blob {digest} has {size} bytes, more than the {limit} that are allowed here")]
    BlobTooLarge {
        /// Which.
        digest: Digest,
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// No such layer, or one that did not outlive a crash of the machine.
    #[error("layer {id} is not in the store")]
    LayerMissing {
        /// Which.
        id: LayerId,
    },
    /// The parent pointers of layers form a ring.
    #[error("the parents of layer {id} form a ring")]
    LayerCycle {
        /// Where the walk began.
        id: LayerId,
    },
    /// The layer is there only as a blob, or not even that.
    #[error("layer {id} is not unpacked")]
    NotUnpacked {
        /// Which.
        id: LayerId,
    },
    /// A base layer was announced on top of a layer that kiln built.
    #[error("layer {id} was built here, so no layer of an image lies on it")]
    NotABase {
        /// The parent.
        id: LayerId,
    },
    /// A base layer was announced with a chain id that its parent and diff id don't give.
    #[error("chain id {announced} doesn't follow from the layer's parent: {computed} does")]
    ChainMismatch {
        /// What was announced.
        announced: ChainId,
        /// What parent and diff id give.
        computed: ChainId,
    },
    /// A record that was written whole is not whole any more, or says what no kiln writes.
    #[error("damaged record {}: {reason}", path.display())]
    BadRecord {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The beginning of an image id fits several images.
    #[error("`{prefix}` is the beginning of {count} image ids")]
    AmbiguousId {
        /// What was typed.
        prefix: String,
        /// How many images it fits.
        count: usize,
    },
    /// A command made something in its root file system that no layer can hold.
    #[error("`{path}` cannot stand in a layer: {reason}")]
    Unfit {
        /// What it made.
        path: ImagePath,
        /// Why not.
        reason: &'static str,
    },
    /// The caller gave up waiting (see [`crate::Store::on_wait`]).
    #[error("interrupted while waiting for {what}")]
    Interrupted {
        /// What was waited for.
        what: WaitFor,
    },
}

impl Error {
    /// Whether the disk (or the quota, or the inodes) is used up.
    pub fn is_out_of_space(&self) -> bool {
        match self {
            Self::Io { source, .. } | Self::Sync { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            _ => false,
        }
    }

    /// Makes the function that names operation and path for `map_err`.
    pub(crate) fn io<E: Into<io::Error>>(op: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { op, path, source: source.into() }
    }
}

/// The error of a stream, whose callers see nothing but `io::Error`, with operation and path. It keeps its kind.
pub(crate) fn named(op: &'static str, path: &Path, source: io::Error) -> io::Error {
    io::Error::new(source.kind(), Error::Io { op, path: path.to_owned(), source })
}

impl From<FsError> for Error {
    fn from(FsError { operation, path, source }: FsError) -> Self {
        Self::Io { op: operation, path, source }
    }
}

impl From<ViewError> for Error {
    fn from(error: ViewError) -> Self {
        match error {
            ViewError::Fs(error) => error.into(),
            // What only a path that somebody wrote can lead to.
            other => Self::Io { op: "read", path: "the layers".into(), source: io::Error::other(other) },
        }
    }
}

impl From<CollectError> for Error {
    fn from(error: CollectError) -> Self {
        match error {
            CollectError::View(error) => error.into(),
            CollectError::Unfit { path, reason } => Self::Unfit { path, reason },
        }
    }
}
