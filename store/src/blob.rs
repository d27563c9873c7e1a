//! Hides where the bytes of a digest lie, and makes sure that they are those bytes.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;

use kiln_oci::digest::{Digest, Hasher};

use crate::Store;
use crate::error::{Error, Result, named};
use crate::lock::{TransientLock, WaitFor};
use crate::record::{self, Durability};
use crate::session::Draft;

/// Bytes by their digest.
///
/// A blob that is there was complete and verified when it got its name. A crash of the machine can still truncate it, and
/// disks rot, so reading verifies again; a blob that is found damaged is removed and so becomes one to fetch or make anew.
#[derive(Debug, Clone, Copy)]
pub struct Blobs<'a> {
    store: &'a Store,
}

impl<'a> Blobs<'a> {
    pub(crate) fn new(store: &'a Store) -> Self {
        Self { store }
    }

    /// Whether there is a file that may be this blob. Where the size is known, [`Blobs::has_sized`] says more.
    pub fn has(&self, digest: &Digest) -> bool {
        self.size(digest).is_ok()
    }

    /// Whether there is a file of exactly `size` bytes; one of another size is damaged, and removed.
    pub fn has_sized(&self, digest: &Digest, size: u64) -> bool {
        self.open_sized(digest, size).is_ok()
    }

    /// The size of the blob in bytes.
    ///
    /// # Errors
    /// [`Error::BlobMissing`]; [`Error::BlobCorrupt`] for an empty file that is not the empty blob.
    pub fn size(&self, digest: &Digest) -> Result<u64> {
        let file = self.open(digest)?;
        Ok(file.metadata().map_err(Error::io("stat", &self.store.layout().blob(digest)))?.len())
    }

    /// Opens the blob without reading it: for sending it to somebody who verifies. Marks it as used.
    ///
    /// # Errors
    /// [`Error::BlobMissing`]; [`Error::BlobCorrupt`] for an empty file that is not the empty blob; [`Error::Io`].
    pub fn open(&self, digest: &Digest) -> Result<File> {
        let path = self.store.layout().blob(digest);
        let file = record::open(&path)?.ok_or(Error::BlobMissing { digest: *digest })?;
        let length = file.metadata().map_err(Error::io("stat", &path))?.len();
        if length == 0 && *digest != Digest::of(b"") {
            return Err(self.quarantine(digest, &file, "it is empty"));
        }
        record::touch(&file);
        Ok(file)
    }

    /// The same for a blob whose size is known.
    ///
    /// # Errors
    /// Those of [`Blobs::open`]; [`Error::BlobCorrupt`] when the size is another.
    pub fn open_sized(&self, digest: &Digest, size: u64) -> Result<File> {
        let file = self.open(digest)?;
        let length = file.metadata().map_err(Error::io("stat", &self.store.layout().blob(digest)))?.len();
        if length != size {
            return Err(self.quarantine(digest, &file, "its size is wrong"));
        }
        Ok(file)
    }

    /// A reader that verifies as it goes: its last read fails with `InvalidData`, carrying [`Error::BlobCorrupt`], when the
    /// bytes were not those of the digest. Whoever stops before the end knows nothing.
    ///
    /// # Errors
    /// Those of [`Blobs::open_sized`].
    pub fn reader(&self, digest: &Digest, size: u64) -> Result<VerifiedReader> {
        let file = self.open_sized(digest, size)?;
        Ok(VerifiedReader { store: self.store.clone(), file, digest: *digest, hasher: Some(Hasher::new()) })
    }

    /// Reads the blob to its end and opens it, for whoever reads it in a way of its own.
    ///
    /// # Errors
    /// Those of [`Blobs::open_sized`]; [`Error::BlobCorrupt`] when the bytes are not those of the digest.
    pub fn open_proven(&self, digest: &Digest, size: u64) -> Result<File> {
        let path = self.store.layout().blob(digest);
        let read = io::copy(&mut self.reader(digest, size)?, &mut io::sink());
        match read.map_err(|error| error.downcast::<Error>()) {
            Ok(_) => self.open_sized(digest, size),
            Err(Ok(damage)) => Err(damage),
            Err(Err(error)) => Err(Error::io("read", &path)(error)),
        }
    }

    /// All bytes of a small blob, verified.
    ///
    /// # Errors
    /// [`Error::BlobMissing`], [`Error::BlobCorrupt`], [`Error::BlobTooLarge`] above `max` bytes, [`Error::Io`].
    pub fn read(&self, digest: &Digest, max: u64) -> Result<Vec<u8>> {
        let path = self.store.layout().blob(digest);
        let file = self.open(digest)?;
        let size = file.metadata().map_err(Error::io("stat", &path))?.len();
        if size > max {
            return Err(Error::BlobTooLarge { digest: *digest, size, limit: max });
        }
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        (&file).take(max + 1).read_to_end(&mut bytes).map_err(Error::io("read", &path))?;
        if Digest::of(&bytes) != *digest {
            return Err(self.quarantine(digest, &file, "its digest is wrong"));
        }
        Ok(bytes)
    }

    /// Locks the blob against all others that would fetch it: look whether it is there, lock, look again, fetch, unlock. Waits as long
    /// as the handle's [`Store::on_wait`] lets it.
    ///
    /// # Errors
    /// [`Error::Interrupted`], [`Error::Io`].
    pub fn lock(&self, digest: &Digest) -> Result<BlobLock> {
        let path = self.store.layout().blob_lock(digest);
        let lock = TransientLock::acquire(&path, &WaitFor::Fetch(*digest), self.store.waiter())?;
        Ok(BlobLock { _lock: lock, _store: self.store.clone() })
    }

    /// Begins a blob whose digest nobody need know yet.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn writer(&self) -> Result<BlobWriter> {
        let draft = self.store.session()?.draft()?;
        Ok(BlobWriter { store: self.store.clone(), draft, hasher: Hasher::new(), written: 0, limit: u64::MAX })
    }

    /// Begins a blob for a caller who verifies every byte by itself, as the registry client does: hashing twice would be
    /// the greater part of a pull's cost.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn verified_writer(&self) -> Result<VerifiedBlobWriter> {
        Ok(VerifiedBlobWriter { store: self.store.clone(), draft: self.store.session()?.draft()?, written: 0 })
    }

    /// Stores some bytes.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn put_bytes(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        if matches!(self.read(&digest, bytes.len() as u64), Ok(there) if there == bytes) {
            return Ok(digest);
        }
        record::place(&*self.store.session()?, &self.store.layout().blob(&digest), bytes, Durability::Relaxed)?;
        Ok(digest)
    }

    /// Brings these blobs to the disk, with their names. What is there already costs little.
    ///
    /// # Errors
    /// [`Error::BlobMissing`]; [`Error::Sync`], as [`Store::barrier`]; [`Error::Io`].
    pub(crate) fn sync(&self, blobs: &BTreeSet<Digest>) -> Result<()> {
        for digest in blobs {
            self.open(digest)?.sync_all().map_err(|error| self.store.sync_failed(error))?;
        }
        let folder = self.store.layout().blobs();
        let open = File::open(&folder).map_err(Error::io("open", &folder))?;
        open.sync_all().map_err(|error| self.store.sync_failed(error))
    }

    /// Takes a blob away that somebody found to be damaged, so that it is fetched or made anew.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn discard(&self, digest: &Digest) -> Result<()> {
        record::remove(&self.store.layout().blob(digest)).map(drop)
    }

    /// Removes the damaged file that is open, unless somebody put another in its place meanwhile.
    fn quarantine(&self, digest: &Digest, file: &File, reason: &'static str) -> Error {
        let path = self.store.layout().blob(digest);
        if let (Ok(ours), Ok(there)) = (file.metadata(), fs::symlink_metadata(&path))
            && (ours.dev(), ours.ino()) == (there.dev(), there.ino())
        {
            let _ = fs::remove_file(&path);
        }
        Error::BlobCorrupt { digest: *digest, reason }
    }
}

/// The lock of a blob that is being fetched; dropping it unlocks.
#[derive(Debug)]
pub struct BlobLock {
    _lock: TransientLock,
    /// The lease must outlive the lock.
    _store: Store,
}

/// Writes a blob: hashes and counts what goes through. It has no digest before [`BlobWriter::commit`], and dropping it
/// without that removes what was written.
#[derive(Debug)]
pub struct BlobWriter {
    store: Store,
    draft: Draft,
    hasher: Hasher,
    written: u64,
    limit: u64,
}

impl BlobWriter {
    /// Makes the first write beyond `bytes` fail, so that a peer can't fill the disk.
    #[must_use]
    pub fn limited(mut self, bytes: u64) -> Self {
        self.limit = bytes;
        self
    }

    /// Refuses a blob that is announced with more bytes than the disk has room for, before it is full of the first part of them.
    ///
    /// # Errors
    /// [`Error::Io`] (`ENOSPC`).
    pub fn fitting(self, bytes: u64) -> Result<Self> {
        let folder = self.store.root();
        let found = rustix::fs::statvfs(folder).map_err(Error::io("ask for the room at", folder))?;
        match bytes <= found.f_bfree.saturating_mul(found.f_frsize) {
            true => Ok(self),
            false => Err(Error::io("find room for a blob in", folder)(rustix::io::Errno::NOSPC)),
        }
    }

    /// How many bytes were written.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Gives the blob its name.
    ///
    /// `expected` is what was announced for it: digest and size in bytes.
    ///
    /// # Errors
    /// [`Error::DigestMismatch`], [`Error::SizeMismatch`] (nothing is kept then), [`Error::Io`].
    pub fn commit(self, expected: Option<(Digest, u64)>) -> Result<(Digest, u64)> {
        let Self { store, draft, hasher, written, .. } = self;
        let actual = hasher.finish();
        if let Some((digest, size)) = expected {
            if size != written {
                return Err(Error::SizeMismatch { expected: size, actual: written });
            }
            if digest != actual {
                return Err(Error::DigestMismatch { expected: digest, actual });
            }
        }
        place(&store, draft, &actual)?;
        Ok((actual, written))
    }
}

/// Writes a blob that its caller verifies. Dropping it without [`VerifiedBlobWriter::commit`] removes what was written.
#[derive(Debug)]
pub struct VerifiedBlobWriter {
    store: Store,
    draft: Draft,
    written: u64,
}

impl VerifiedBlobWriter {
    /// Gives the blob the name that the caller verified.
    ///
    /// # Errors
    /// [`Error::SizeMismatch`] (nothing is kept then), [`Error::Io`].
    pub fn commit(self, digest: &Digest, size: u64) -> Result<()> {
        if size != self.written {
            return Err(Error::SizeMismatch { expected: size, actual: self.written });
        }
        place(&self.store, self.draft, digest)
    }
}

impl Write for VerifiedBlobWriter {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.draft.write(buffer)?;
        self.written += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn place(store: &Store, draft: Draft, digest: &Digest) -> Result<()> {
    let path = store.layout().blob(digest);
    if fs::symlink_metadata(&path).is_ok() {
        // What is there may be damaged, which ours heals; it may also be safe on disk, which ours isn't yet.
        draft.file.sync_all().map_err(Error::io("sync", &path))?;
    }
    draft.rename_to(&path)
}

impl Write for BlobWriter {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        if self.written.saturating_add(buffer.len() as u64) > self.limit {
            let actual = self.written + buffer.len() as u64;
            return Err(io::Error::new(ErrorKind::FileTooLarge, Error::SizeMismatch { expected: self.limit, actual }));
        }
        let count = self.draft.write(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.written += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads a blob and verifies it at the end; see [`Blobs::reader`].
#[derive(Debug)]
pub struct VerifiedReader {
    store: Store,
    file: File,
    digest: Digest,
    /// None once the end was seen.
    hasher: Option<Hasher>,
}

impl Read for VerifiedReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = match self.file.read(buffer) {
            // Not every caller would try again.
            Err(error) if error.kind() == ErrorKind::Interrupted => return self.read(buffer),
            outcome => outcome.map_err(|error| named("read", &self.store.layout().blob(&self.digest), error))?,
        };
        if count > 0 {
            if let Some(hasher) = &mut self.hasher {
                hasher.update(&buffer[..count]);
            }
        } else if !buffer.is_empty()
            && let Some(hasher) = self.hasher.take()
            && hasher.finish() != self.digest
        {
            let error = self.store.blobs().quarantine(&self.digest, &self.file, "its digest is wrong");
            return Err(io::Error::new(ErrorKind::InvalidData, error));
        }
        Ok(count)
    }
}
