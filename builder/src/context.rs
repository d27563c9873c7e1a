//! Hides that a build context is a directory of the user's: what of it counts, what it says, and how that is not read twice.
//!
//! A directory is listed when a step first asks for it, in parallel with those below it, by descriptors; what the ignore
//! file excludes is as if it weren't there. Whatever user owns the files, in a context they are root's, so that the result
//! doesn't depend on who builds.

pub(crate) mod source;
mod texts;
mod tree;

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use kiln_frontend::ignore::{IgnoreError, PatternMatcher};
use kiln_oci::path::ImagePath;
use kiln_store::layer::upper::UpperError;
use kiln_store::memo::Memo;
use kiln_store::rootdir::{FsError, RootDir};

use crate::ops::file::ArchiveError;
use crate::ops::git::GitError;
use crate::ops::http::HttpError;

pub use texts::{DockerfileText, IgnoreText, read_dockerfile, read_ignore};
pub(crate) use tree::{ContextDir, ContextNode, DirReader, fingerprint};

/// Why a context or one of its texts can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ContextError {
    /// The context directory can't be opened.
    #[error("cannot open the build context")]
    Open(#[source] FsError),
    /// Something in the context can't be read.
    #[error("cannot read the build context")]
    Read(#[source] Arc<FsError>),
    /// A file of the context was written while it was being read, twice in a row.
    #[error("`{}` changed while being read", path.display())]
    Changing {
        /// The file, on this host.
        path: PathBuf,
    },
    /// No Dockerfile has one of the names it may have.
    #[error("no Dockerfile in {}", dir.display())]
    NoDockerfile {
        /// The directory that was searched.
        dir: PathBuf,
    },
    /// The Dockerfile or the ignore file can't be read.
    #[error("cannot read {what} {}", path.display())]
    Text {
        /// `the Dockerfile`, `the ignore file`.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// A repository that is a context can't be fetched.
    #[error(transparent)]
    Git(#[from] GitError),
    /// An address that is a context can't be fetched.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// An archive that is a context can't be unpacked.
    #[error("cannot unpack the build context `{shown}`")]
    Archive {
        /// Where it came from.
        shown: String,
        /// Why.
        #[source]
        cause: ArchiveError,
    },
    /// There is no room for an archive's files.
    #[error("cannot unpack the build context `{shown}`")]
    Upper {
        /// Where it came from.
        shown: String,
        /// Why.
        #[source]
        cause: UpperError,
    },
    /// The store can't be used.
    #[error(transparent)]
    Store(#[from] kiln_store::Error),
    /// A line of the ignore file can't be understood.
    #[error("cannot use the ignore file {}", path.display())]
    Ignore {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: IgnoreError,
    },
}

/// A directory that `COPY` takes files from.
#[derive(Debug)]
pub struct Context {
    root: RootDir,
    ignore: PatternMatcher,
    memo: Memo,
    /// Every directory listed or found so far; the root is the first.
    dirs: RwLock<Vec<Arc<ContextDir>>>,
}

impl Context {
    /// Opens `dir`, of which `ignore` takes things away. With a `memo` file (in the store, one for each context directory),
    /// what files say is remembered there until the next build.
    ///
    /// Nothing but the directory itself is touched yet.
    ///
    /// # Errors
    /// [`ContextError::Open`].
    pub fn open(dir: &Path, ignore: PatternMatcher, memo: Option<PathBuf>) -> Result<Self, ContextError> {
        let root = RootDir::open(dir).map_err(ContextError::Open)?;
        let meta = root.meta().map_err(ContextError::Open)?;
        let memo = memo.map_or_else(Memo::forgetful, |path| Memo::open(&path));
        let top = ContextDir::root(meta);
        Ok(Self { root, ignore, memo, dirs: RwLock::new(vec![Arc::new(top)]) })
    }

    /// The directory on this host, for messages.
    pub fn shown(&self) -> &Path {
        self.root.shown()
    }

    /// Writes what was learnt about files to the memo. It's a memo: an error is worth a warning at most.
    ///
    /// # Errors
    /// What the file system answers.
    pub fn save_memo(&self) -> std::io::Result<()> {
        self.memo.save()
    }

    /// Whether `path` is there but excluded by the ignore file.
    pub(crate) fn is_ignored(&self, path: &ImagePath) -> bool {
        if path.is_root() || !self.ignore.matches(path.relative()) {
            return false;
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return false };
        self.root.walk(&parent).and_then(|dir| dir.stat(name)).is_ok_and(|meta| meta.is_some())
    }

    fn dir(&self, index: usize) -> Option<Arc<ContextDir>> {
        self.dirs.read().unwrap_or_else(PoisonError::into_inner).get(index).cloned()
    }

    fn add_dirs(&self, found: impl IntoIterator<Item = ContextDir>) -> usize {
        let mut dirs = self.dirs.write().unwrap_or_else(PoisonError::into_inner);
        let first = dirs.len();
        dirs.extend(found.into_iter().map(Arc::new));
        first
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // Also when the build failed: the next one begins with the same files.
        let _ = self.memo.save();
    }
}

#[cfg(test)]
mod tests;
