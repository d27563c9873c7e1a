//! Hides how files get from a context, a stage or an address into a layer: what a COPY or ADD selects, and what it makes of it.
//!
//! [`selection_key`] and [`copy`] go over the same selection in the same order, so a key covers what is copied and nothing
//! else. The rules are BuildKit's (solver/llbsolver/file/backend.go, fsutil/copy), down to their oddities, but for these:
//! an unknown name in `--chown` is an error; several sources and a destination that doesn't exist make it a directory, with a
//! warning; names that begin with `.wh.` are refused, for a layer can't hold them; directories get their sources' times and
//! made-up ones the build's clock.

mod archive;
mod chmod;
mod copy;
mod owner;
mod select;
mod source;
mod walk;

use std::path::PathBuf;

use kiln_frontend::glob::has_wildcards;
use kiln_frontend::graph::{CopyFrom, CopyOp, CopySource, WorkdirOp};
use kiln_frontend::ignore::IgnoreError;
use kiln_oci::path::ImagePath;
use kiln_store::layer::upper::{UpperError, UpperWriter};
use kiln_store::owner::OwnerError;
use kiln_store::rootdir::{Attrs, Kind, Timestamp};
use kiln_store::view::{View, ViewError};

use crate::context::ContextError;

pub(crate) use archive::{ArchiveError, begins_as_archive, unpack_all};
pub use copy::{CopyStats, copy};
pub use select::selection_key;
pub use source::SourceTree;

/// A COPY of `path` to the same place on an empty root: what a mount shows of the context, and what a cache is filled with.
pub fn whole(path: &ImagePath) -> CopyOp {
    CopyOp {
        parent: None,
        from: CopyFrom::Context(kiln_frontend::graph::ContextId::Main),
        sources: vec![CopySource::Path(literal(&String::from_utf8_lossy(path.as_bytes())))],
        dest: path.clone(),
        dest_is_dir: false,
        chown: None,
        chmod: None,
        link: false,
        parents: false,
        exclude: Vec::new(),
        is_add: false,
        unpack: None,
        checksum: None,
        keep_git_dir: None,
    }
}

/// The pattern that finds `path` and nothing else. Names without wildcards are taken as they are.
fn literal(path: &str) -> String {
    let name = |name: &str| match has_wildcards(name.as_bytes()) {
        false => name.to_owned(),
        true => name.chars().fold(String::new(), |quoted, c| match c {
            '*' | '?' | '[' => format!("{quoted}[{c}]"),
            '\\' => quoted + r"\\",
            c => {
                let mut quoted = quoted;
                quoted.push(c);
                quoted
            }
        }),
    };
    path.split('/').map(name).collect::<Vec<_>>().join("/")
}

/// Why a COPY, ADD or WORKDIR can't be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// A source that names one path isn't there.
    #[error("\"{path}\": not found")]
    NotFound {
        /// The path in the source tree; of a dangling symbolic link, where it leads.
        path: ImagePath,
        /// What may have gone wrong.
        hint: Option<String>,
    },
    /// A wildcard that can't match anything.
    #[error("syntax error in pattern `{pattern}`")]
    BadPattern {
        /// As typed.
        pattern: String,
    },
    /// A pattern of `--exclude` that can't match anything.
    #[error("invalid --exclude")]
    Exclude(#[from] IgnoreError),
    /// The context can't be read.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// The stage or image that is copied from, or the one that is copied to, can't be read.
    #[error(transparent)]
    Tree(#[from] ViewError),
    /// A file should take the place of a directory.
    #[error("cannot copy `{from}` to `{dest}`: a file cannot replace a directory")]
    FileOverDirectory {
        /// What is copied.
        from: String,
        /// The directory in the image.
        dest: ImagePath,
    },
    /// A directory should take the place of something else.
    #[error("cannot copy `{from}` to `{dest}`: cannot copy to non-directory")]
    DirectoryOverFile {
        /// What is copied.
        from: String,
        /// What's in the way, in the image.
        dest: ImagePath,
    },
    /// A name that means "this file is gone" in a layer.
    #[error("cannot copy `{from}` to `{dest}`: a name that begins with `.wh.` marks a deleted file in a layer")]
    ReservedName {
        /// What is copied.
        from: String,
        /// The path in the image.
        dest: ImagePath,
    },
    /// The destination can't be written.
    #[error("cannot copy `{from}` to `{dest}`")]
    Write {
        /// What is copied.
        from: String,
        /// The path in the image.
        dest: ImagePath,
        /// Why.
        #[source]
        cause: UpperError,
    },
    /// A directory can't be made.
    #[error("cannot create `{dest}`")]
    MakeDir {
        /// The path in the image.
        dest: ImagePath,
        /// Why.
        #[source]
        cause: UpperError,
    },
    /// `--chown` or `USER` names nobody.
    #[error("invalid user `{spec}`")]
    Owner {
        /// As written.
        spec: String,
        /// Why.
        #[source]
        cause: OwnerError,
        /// What may have gone wrong.
        hint: Option<String>,
    },
    /// `--chmod` is no mode.
    #[error("invalid --chmod `{spec}`: octal digits up to 7777 or letters as in `u=rwX,go=rX` are expected")]
    Mode {
        /// As written.
        spec: String,
    },
    /// An archive can't be unpacked.
    #[error("cannot unpack `{from}`")]
    Archive {
        /// The archive.
        from: String,
        /// Why.
        #[source]
        cause: archive::ArchiveError,
    },
    /// What was fetched for an ADD is not in the store any more.
    #[error(transparent)]
    Store(#[from] kiln_store::Error),
    /// A source of an ADD wasn't fetched before.
    #[error("`{url}` was not fetched")]
    NotFetched {
        /// The address.
        url: String,
    },
    /// A file that was fetched can't be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
}

impl FileError {
    /// What the user may have meant or can do, as a sentence without a full stop.
    pub fn hint(&self) -> Option<&str> {
        match self {
            FileError::NotFound { hint, .. } | FileError::Owner { hint, .. } => hint.as_deref(),
            FileError::DirectoryOverFile { .. } => {
                Some("if it is a symbolic link to a directory in the image, copy to the directory that it leads to")
            }
            _ => None,
        }
    }
}

/// Makes the directory of a WORKDIR with those above it: 0755, owned by its user, at the time of `clock`. What is there
/// stays as it is.
///
/// # Errors
/// [`FileError::MakeDir`] when a file is in the way, [`FileError::Owner`], [`FileError::Tree`].
pub fn workdir(op: &WorkdirOp, parent: &View, upper: &mut UpperWriter, clock: std::time::SystemTime) -> Result<(), FileError> {
    let owner = owner::of_user(&op.user, parent)?;
    let path = parent.resolve(&op.path)?.path;
    let attrs = Attrs { uid: owner.uid, gid: owner.gid, mode: 0o755, mtime: Some(timestamp(clock)), ..Attrs::default() };
    let failed = |cause| FileError::MakeDir { dest: path.clone(), cause };
    if upper.lookup(&path).map_err(failed)?.is_some_and(|meta| meta.kind == Kind::Dir) {
        return Ok(());
    }
    upper.ensure_dir(&path, &attrs).map_err(failed)?;
    Ok(())
}

pub(crate) fn timestamp(time: std::time::SystemTime) -> Timestamp {
    match time.duration_since(std::time::UNIX_EPOCH) {
        Ok(since) => Timestamp { secs: i64::try_from(since.as_secs()).unwrap_or(i64::MAX), nanos: since.subsec_nanos() },
        Err(before) => {
            let until = before.duration();
            let secs = i64::try_from(until.as_secs()).unwrap_or(i64::MAX);
            match until.subsec_nanos() {
                0 => Timestamp::from_secs(-secs),
                nanos => Timestamp { secs: -secs - 1, nanos: 1_000_000_000 - nanos },
            }
        }
    }
}

#[cfg(test)]
mod tests;
