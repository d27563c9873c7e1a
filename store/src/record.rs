//! Hides how a record is sealed, so that one that a power cut tore is told from one that says something.
//!
//! A record is one line of JSON and a second line with a BLAKE3 checksum of the first. It is written to a temporary file
//! and renamed, which makes it whole for every process; the seal makes it whole across a power cut too, since a rename can
//! reach the disk before the bytes do.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::session::Session;

/// How sure the bytes must be on disk before the name is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// A crash of the machine may lose the record (and the reader notices).
    Relaxed,
    /// File and folder are synced before this returns.
    Durable,
}

/// What stands at a record's path.
#[derive(Debug)]
pub(crate) enum Found<T> {
    Whole(T),
    Absent,
    /// Torn, or of a form that this kiln doesn't know.
    Broken(String),
}

impl<T> Found<T> {
    /// For records whose loss costs only time.
    pub(crate) fn or_lost(self) -> Option<T> {
        match self {
            Self::Whole(value) => Some(value),
            Self::Absent | Self::Broken(_) => None,
        }
    }
}

const SEAL: &str = "blake3:";

pub(crate) fn seal<T: Serialize>(value: &T, path: &Path) -> Result<Vec<u8>> {
    let bad = |e: serde_json::Error| Error::BadRecord { path: path.to_owned(), reason: e.to_string() };
    let mut bytes = serde_json::to_vec(value).map_err(bad)?;
    let hash = blake3::hash(&bytes).to_hex();
    bytes.push(b'\n');
    bytes.extend_from_slice(SEAL.as_bytes());
    bytes.extend_from_slice(&hash.as_bytes()[..32]);
    bytes.push(b'\n');
    Ok(bytes)
}

fn unseal<T: DeserializeOwned>(bytes: &[u8]) -> Found<T> {
    let torn = || Found::Broken("it is not whole".to_owned());
    let Some(end) = bytes.iter().position(|&b| b == b'\n') else { return torn() };
    let (json, seal) = (&bytes[..end], &bytes[end + 1..]);
    let Some(seal) = seal.strip_prefix(SEAL.as_bytes()).and_then(|s| s.strip_suffix(b"\n")) else { return torn() };
    if seal != &blake3::hash(json).to_hex().as_bytes()[..32] {
        return torn();
    }
    match serde_json::from_slice(json) {
        Ok(value) => Found::Whole(value),
        Err(error) => Found::Broken(error.to_string()),
    }
}

pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Found<T>> {
    Ok(match open(path)? {
        None => Found::Absent,
        Some(file) => read_from(&file, path)?,
    })
}

/// None when there is no such file.
pub(crate) fn open(path: &Path) -> Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("open", path)(error)),
    }
}

pub(crate) fn read_from<T: DeserializeOwned>(mut file: &File, path: &Path) -> Result<Found<T>> {
    // Nearly all records fit: one read, and one that says that there is no more.
    let mut bytes = Vec::with_capacity(2048);
    file.read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    Ok(unseal(&bytes))
}

/// Writes `value` to `path` through a temporary file of this process.
pub(crate) fn write<T: Serialize>(session: &Session, path: &Path, value: &T, durability: Durability) -> Result<()> {
    place(session, path, &seal(value, path)?, durability)
}

/// The same for bytes that are no record.
pub(crate) fn place(session: &Session, path: &Path, bytes: &[u8], durability: Durability) -> Result<()> {
    let mut draft = session.draft()?;
    draft.file.write_all(bytes).map_err(Error::io("write", path))?;
    if durability == Durability::Durable {
        // A failed sync is final: the draft goes away with its bytes and is never synced again (F05).
        draft.file.sync_all().map_err(Error::io("sync", path))?;
    }
    draft.rename_to(path)?;
    if durability == Durability::Durable {
        sync_parent(path)?;
    }
    Ok(())
}

/// Makes the names in the folder of `path` durable.
pub(crate) fn sync_parent(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(path);
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(Error::io("sync", parent))
}

/// Takes a file away; one that is not there is no error.
pub(crate) fn remove(path: &Path) -> Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("remove", path)(error)),
    }
}

const USED_NOW: Timestamps = Timestamps {
    last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
    last_modification: Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
};

/// Says "used now" for the collector. That it fails (a read-only file system) costs nothing but that.
pub(crate) fn touch(file: &File) {
    let _ = rustix::fs::futimens(file, &USED_NOW);
}

/// The same for a file that isn't open.
pub(crate) fn touch_path(path: &Path) {
    let _ = rustix::fs::utimensat(CWD, path, &USED_NOW, AtFlags::SYMLINK_NOFOLLOW);
}
