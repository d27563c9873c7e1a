//! Hides how images are written into a folder with the OCI image layout, where there may be others already (`tar=false`).

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use kiln_oci::manifest::Index;
use rustix::fs::{FlockOperation, flock};
use tempfile::NamedTempFile;

use crate::engine::Engine;
use crate::error::Error;
use crate::event::Task;
use crate::export::archive::{Blob, IMAGE_NAME, Member, blobs, index, json, texts};
use crate::export::draft;
use crate::request::ArchiveFormat;

/// Writes images into `folder`. A blob that is there already stays; the index, which comes last, keeps what it said about other
/// names.
pub(super) fn write(
    engine: &Engine,
    members: &[Member<'_>],
    format: ArchiveFormat,
    folder: &Path,
    task: &Task,
) -> Result<(), Error> {
    let status = "copying files";
    task.status(status, 0, None);
    let place = folder.join("blobs/sha256");
    fs::create_dir_all(&place).map_err(Error::output(&place))?;
    draft::sweep(&place);
    draft::sweep(folder);
    for (hex, blob) in blobs(members) {
        engine.check()?;
        let path = place.join(hex);
        let size = match &blob {
            Blob::Bytes(bytes) => bytes.len() as u64,
            Blob::Stored(descriptor) => descriptor.size,
        };
        if fs::symlink_metadata(&path).is_ok_and(|found| found.is_file() && found.len() == size) {
            continue;
        }
        put(&place, &path, |out| match &blob {
            Blob::Bytes(bytes) => out.write_all(bytes),
            Blob::Stored(descriptor) => {
                let mut reader = engine.store.blobs().reader(&descriptor.digest, descriptor.size).map_err(io::Error::other)?;
                io::copy(&mut reader, out).map(drop)
            }
        })?;
    }
    // Two builds may write into one folder; what names the blobs is read and written by one at a time.
    let lock = File::open(folder).map_err(Error::output(folder))?;
    rustix::io::retry_on_intr(|| flock(&lock, FlockOperation::LockExclusive))
        .map_err(|errno| Error::output(folder)(errno.into()))?;
    for (name, text) in texts(members, format)?.into_iter().rev() {
        let text = if name == "index.json" {
            json(&joined(folder, index(&members.iter().map(Member::listed).collect::<Vec<_>>())))?
        } else {
            text
        };
        put(folder, &folder.join(name), |out| out.write_all(&text))?;
    }
    task.status_done(status, 0, None);
    Ok(())
}

/// The index with the entries of the one that is there, but for those whose names have another meaning now.
fn joined(folder: &Path, mut new: Index) -> Index {
    let old = fs::read(folder.join("index.json")).ok().and_then(|bytes| serde_json::from_slice::<Index>(&bytes).ok());
    let Some(mut old) = old else { return new };
    let replaced = |entry: &kiln_oci::descriptor::Descriptor| {
        let name = |key: &str| entry.annotations.get(key);
        new.manifests.iter().any(|other| match (name(IMAGE_NAME), other.annotations.get(IMAGE_NAME)) {
            (Some(old), Some(new)) => old == new,
            (None, None) => entry.digest == other.digest,
            _ => false,
        })
    };
    old.manifests.retain(|entry| !replaced(entry));
    old.manifests.append(&mut new.manifests);
    old
}

/// Writes a file that appears when it is complete.
fn put(folder: &Path, path: &Path, fill: impl FnOnce(&mut File) -> io::Result<()>) -> Result<(), Error> {
    let fail = Error::output(path);
    let write = || {
        let rights = fs::Permissions::from_mode(0o644);
        let mut draft: NamedTempFile =
            tempfile::Builder::new().prefix(&draft::prefix()).permissions(rights).tempfile_in(folder)?;
        fill(draft.as_file_mut())?;
        draft.persist(path).map_err(|error| error.error)?;
        Ok(())
    };
    write().map_err(fail)
}
