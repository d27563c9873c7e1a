//! Hides what becomes of the files that a RUN leaves: copies that are as they were below are dropped, and the rest becomes
//! 32 bytes that say what is in it, times aside.

use kiln_store::layer::same::{is_same, same_attributes};
use kiln_store::layer::whiteout::{self, Listed, WhiteoutStyle};
use kiln_store::layer::xattr::{is_portable, portable};
use kiln_store::rootdir::{FsError, Kind, Meta, RootDir, Timestamp};
use kiln_store::view::{Node, View, ViewError};
use rayon::prelude::*;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a file takes on a disk besides what it holds, about.
const BLOCK: u64 = 4096;

/// Drops from the overlay directory `upper`, which a command wrote over `parent`, what is no change, and answers the
/// fingerprint of the rest: for each path its type, mode, owner, device numbers, link target, extended attributes (whiteouts
/// and opaque marks included) and bytes; hard links by content.
///
/// An overlay copies a file up before `chmod` or `chown` touch it, even when they then change nothing: without this,
/// `chmod -R a+r /usr` would be a layer of all of `/usr`. What is the same is what BuildKit leaves out of a layer
/// (containerd's `fs.DiffDir`): a file with the attributes, the time to the nanosecond and the bytes of the one below, and a
/// directory with its attributes and nothing changed in it. A file with more than one name is kept, or its links would be lost.
/// Deletions that delete nothing go as well: which of them an overlay leaves depends on the kernel and its options (a renamed
/// directory is opaque even where nothing lies below), and where there's no overlay there are none.
///
/// The fingerprint is the same in every [`WhiteoutStyle`].
///
/// Only files older than `since`, the moment that the command began, can be such copies. BLAKE3 is 15 to 25 times as fast as
/// SHA-256, so the fingerprint costs little beside writing the files.
///
/// # Errors
/// What the file system answers.
pub fn settle(upper: &RootDir, parent: &View, since: Timestamp, style: WhiteoutStyle) -> Result<Settled, ViewError> {
    let mut hasher = blake3::Hasher::new();
    let settle = Settle { since, style, bytes: AtomicU64::new(0) };
    settle.directory(upper, &upper.meta()?, parent.root()?, &mut hasher)?;
    Ok(Settled { fingerprint: *hasher.finalize().as_bytes(), bytes: settle.bytes.into_inner() })
}

/// What a RUN left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settled {
    /// What is in it.
    pub fingerprint: [u8; 32],
    /// About how much.
    pub bytes: u64,
}

struct Settle {
    since: Timestamp,
    style: WhiteoutStyle,
    bytes: AtomicU64,
}

impl Settle {
    /// Says whether the directory is a change: it, or something in it, is not as in `below`.
    fn directory(&self, dir: &RootDir, meta: &Meta, below: Option<Node>, hasher: &mut blake3::Hasher) -> Result<bool, ViewError> {
        let all = portable(dir.xattrs_of_self()?);
        let mut hides = whiteout::is_opaque(dir, self.style)?;
        let mut below = below.filter(|node| node.kind() == Kind::Dir);
        if hides && below.is_none() {
            whiteout::clear_opaque(dir, self.style)?;
            hides = false;
        }
        below = match below {
            Some(node) if !hides => Some(node.opened()?),
            _ => None,
        };
        attributes(meta, hasher);
        marks(&all, hasher);
        if hides {
            field(hasher, b"opaque");
        }
        let names = whiteout::list(dir, self.style)?;
        // Each entry for itself, in parallel where there are many; then their hashes in order.
        let entry = |name: &Listed| self.entry(dir, name, below.as_ref());
        let hashes: Result<Vec<_>, ViewError> =
            if names.len() < 16 { names.iter().map(entry).collect() } else { names.par_iter().map(entry).collect() };
        let mut changed = false;
        for hash in hashes?.into_iter().flatten() {
            changed = true;
            hasher.update(&hash);
        }
        // What was dropped from it changed its time, which the command didn't.
        if dir.meta()?.mtime != meta.mtime {
            dir.set_mtime_of_self(meta.mtime)?;
        }
        Ok(match below {
            Some(below) if !changed => !same_attributes(meta, below.meta()) || all != below.xattrs()?,
            _ => true,
        })
    }

    /// The hash of an entry that is a change; one that is none is removed.
    fn entry(&self, dir: &RootDir, listed: &Listed, below: Option<&Node>) -> Result<Option<[u8; 32]>, ViewError> {
        let name = &listed.name[..];
        let mut hasher = blake3::Hasher::new();
        field(&mut hasher, name);
        let found = if listed.is_marker { None } else { dir.stat(name)? };
        if whiteout::whiteout_entry(dir, listed, found.as_ref(), self.style)? {
            if below.map(|below| below.child(name)).transpose()?.flatten().is_none() {
                whiteout::remove(dir, listed)?;
                return Ok(None);
            }
            field(&mut hasher, b"gone");
            return Ok(Some(*hasher.finalize().as_bytes()));
        }
        let Some(meta) = found else { return Ok(None) };
        if meta.kind == Kind::Dir {
            let below = below.map(|below| below.child(name)).transpose()?.flatten();
            if !self.directory(&dir.child(name)?, &meta, below, &mut hasher)? {
                dir.rmdir(name)?;
                return Ok(None);
            }
        } else {
            if let Some(below) = below
                && meta.nlink == 1
                && meta.mtime < self.since
                && let Some(old) = below.child(name)?
                && is_same(dir, name, &meta, &old)?
            {
                dir.unlink(name)?;
                return Ok(None);
            }
            node(dir, name, &meta, &mut hasher)?;
            self.bytes.fetch_add(meta.size.saturating_add(BLOCK), Ordering::Relaxed);
        }
        Ok(Some(*hasher.finalize().as_bytes()))
    }
}

fn node(dir: &RootDir, name: &[u8], meta: &Meta, hasher: &mut blake3::Hasher) -> Result<(), FsError> {
    attributes(meta, hasher);
    if meta.kind != Kind::Symlink {
        marks(&dir.xattrs(name)?, hasher);
    }
    match meta.kind {
        Kind::Symlink => field(hasher, &dir.read_link(name)?),
        Kind::File if meta.size > 0 => {
            let file = dir.open_file(name)?;
            hasher.update_reader(file).map_err(|e| dir.error("read", name, e))?;
        }
        _ => {}
    }
    Ok(())
}

fn attributes(meta: &Meta, hasher: &mut blake3::Hasher) {
    let kind = match meta.kind {
        Kind::File => 0u8,
        Kind::Dir => 1,
        Kind::Symlink => 2,
        Kind::Fifo => 3,
        Kind::Char => 4,
        Kind::Block => 5,
        Kind::Socket => 6,
    };
    hasher.update(&[kind]);
    for number in [meta.mode, meta.uid, meta.gid, meta.rdev.0, meta.rdev.1] {
        hasher.update(&number.to_le_bytes());
    }
    let size = if meta.kind == Kind::File { meta.size } else { 0 };
    hasher.update(&size.to_le_bytes());
}

/// What an image can hold of the attributes. Those of the overlay say how it stands on disk, and where a file was copied up from.
fn marks(xattrs: &kiln_store::rootdir::Xattrs, hasher: &mut blake3::Hasher) {
    for (key, value) in xattrs.iter().filter(|(key, _)| is_portable(key)) {
        field(hasher, key);
        field(hasher, value);
    }
}

fn field(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}
