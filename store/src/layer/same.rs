//! Hides what counts as no change of a file: one answer for overlays and for copies, or their layers would differ.

use std::fs::File;
use std::io::{self, Read};

use super::xattr::portable;
use crate::rootdir::{Kind, Meta, RootDir};
use crate::view::{Node, ViewError};

/// Whether the entry `name` of `dir`, which is `meta` and no directory, is the file `old` in all that an image can hold of it: the
/// attributes, the time to the nanosecond and the bytes.
///
/// # Errors
/// What the file system answers.
pub fn is_same(dir: &RootDir, name: &[u8], meta: &Meta, old: &Node) -> Result<bool, ViewError> {
    let was = old.meta();
    if !same_attributes(meta, was) || meta.mtime != was.mtime || meta.rdev != was.rdev || meta.size != was.size {
        return Ok(false);
    }
    if meta.kind == Kind::Symlink {
        return Ok(dir.read_link(name)? == old.read_link()?);
    }
    if portable(dir.xattrs(name)?) != old.xattrs()? {
        return Ok(false);
    }
    if meta.kind != Kind::File || meta.size == 0 {
        return Ok(true);
    }
    same_bytes(dir.open_file(name)?, old.open()?).map_err(|cause| dir.error("read", name, cause).into())
}

/// Whether the attributes of two files are the same to an image, times aside.
pub fn same_attributes(a: &Meta, b: &Meta) -> bool {
    (a.kind, a.mode, a.uid, a.gid) == (b.kind, b.mode, b.uid, b.gid)
}

fn same_bytes(mut a: File, mut b: File) -> io::Result<bool> {
    const PIECE: usize = 128 << 10;
    let (mut x, mut y) = (Vec::with_capacity(PIECE), Vec::with_capacity(PIECE));
    loop {
        for (file, piece) in [(&mut a, &mut x), (&mut b, &mut y)] {
            piece.clear();
            // Unlike a plain `read` this goes on when a signal came between.
            file.take(PIECE as u64).read_to_end(piece)?;
        }
        if x != y {
            return Ok(false);
        }
        if x.is_empty() {
            return Ok(true);
        }
    }
}
