//! Hides how "this name is gone" and "nothing below shows through" are spelled, in an overlay directory and in a layer's tar.

use std::fs::File;
use std::io::{Read, Write};

use rustix::io::Errno;

use crate::rootdir::{Attrs, FsError, Kind, Meta, RootDir, Xattrs};

/// How whiteouts and opaque directories stand on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum WhiteoutStyle {
    /// A character device 0:0, and `trusted.overlay.opaque=y`: what an overlay mounted by root reads.
    #[default]
    Device,
    /// A character device 0:0 or an empty file with `user.overlay.whiteout`, and `user.overlay.opaque=y`: what an overlay
    /// with `userxattr` in a user namespace reads.
    UserXattr,
    /// An ordinary empty file beside the name, called as in a layer's tar: `.wh.NAME` and `.wh..wh..opq`. Needs neither device
    /// nodes nor attributes; no overlay reads it, so it is for trees that are read by [`crate::view`] alone.
    Names,
}

impl WhiteoutStyle {
    fn opaque_key(self) -> &'static [u8] {
        match self {
            WhiteoutStyle::Device => b"trusted.overlay.opaque",
            _ => b"user.overlay.opaque",
        }
    }

    /// Whether `name` is one that a file in a tree of this style can't have.
    pub fn reserves(self, name: &[u8]) -> bool {
        self == WhiteoutStyle::Names && name.starts_with(PREFIX)
    }
}

/// A name in a layer's tar that begins so isn't a file's (image-spec layer.md, "Whiteouts").
pub const PREFIX: &[u8] = b".wh.";
/// The name in a layer's tar that says that the directory hides all that lower layers have in it.
pub const OPAQUE: &[u8] = b".wh..wh..opq";

const USER_WHITEOUT: &[u8] = b"user.overlay.whiteout";

/// How the marker of a name begins that has no room for [`PREFIX`] before it; a digest follows, and the name is its content.
const LONG: &[u8] = b".wh..wh.long-";
/// The longest name of a file (`NAME_MAX`).
const LONGEST_NAME: usize = 255;

/// Whether the directory hides what lower layers have in it.
pub fn is_opaque(dir: &RootDir, style: WhiteoutStyle) -> Result<bool, FsError> {
    if style == WhiteoutStyle::Names {
        return Ok(dir.stat(OPAQUE)?.is_some());
    }
    // "x" means only that the directory may hold whiteouts of the xattr kind (overlayfs.rst, "userxattr").
    Ok(dir.xattr_of_self(style.opaque_key())?.as_deref() == Some(b"y"))
}

/// Makes the directory hide what lower layers have in it.
pub(crate) fn set_opaque(dir: &RootDir, style: WhiteoutStyle) -> Result<(), FsError> {
    if style == WhiteoutStyle::Names {
        return mark(dir, OPAQUE, b"");
    }
    dir.set_xattr_of_self(style.opaque_key(), b"y")
}

/// Lets what lower layers have in the directory show through again.
pub fn clear_opaque(dir: &RootDir, style: WhiteoutStyle) -> Result<(), FsError> {
    if style == WhiteoutStyle::Names {
        return match dir.unlink(OPAQUE) {
            Err(e) if e.is_not_found() => Ok(()),
            done => done,
        };
    }
    dir.remove_xattr_of_self(style.opaque_key())
}

/// Whether `name`, which is `meta`, says by itself that the name is gone; with [`WhiteoutStyle::Names`] nothing does, see
/// [`is_marked`].
pub(crate) fn is_whiteout(dir: &RootDir, name: &[u8], meta: &Meta, style: WhiteoutStyle) -> Result<bool, FsError> {
    match style {
        WhiteoutStyle::Names => Ok(false),
        _ if meta.is_whiteout_device() => Ok(true),
        WhiteoutStyle::UserXattr if meta.kind == Kind::File && meta.size == 0 => {
            Ok(dir.xattrs(name)?.contains_key(USER_WHITEOUT))
        }
        _ => Ok(false),
    }
}

/// Whether a file beside `name` says that the name is gone, of which the directory has nothing.
pub(crate) fn is_marked(dir: &RootDir, name: &[u8], style: WhiteoutStyle) -> Result<bool, FsError> {
    Ok(style == WhiteoutStyle::Names && dir.stat(&marker(name))?.is_some())
}

/// A name that a directory of a layer has something to say of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    /// The name in the merged tree.
    pub name: Vec<u8>,
    /// What says it: there's a file of that name to look at, or a marker, by which the name is gone.
    pub is_marker: bool,
}

/// The names of the merged tree that `dir` says something of, sorted bytewise. An entry that's no marker may still be a
/// whiteout ([`whiteout_entry`]).
pub fn list(dir: &RootDir, style: WhiteoutStyle) -> Result<Vec<Listed>, FsError> {
    let names = dir.names()?;
    let mut listed = Vec::with_capacity(names.len());
    for name in names {
        if !style.reserves(&name) {
            listed.push(Listed { name, is_marker: false });
        } else if name.starts_with(LONG) {
            let mut hidden = Vec::new();
            dir.open_file(&name)?.read_to_end(&mut hidden).map_err(|e| dir.error("read", &name, e))?;
            listed.push(Listed { name: hidden, is_marker: true });
        } else if name != OPAQUE {
            listed.push(Listed { name: name[PREFIX.len()..].to_vec(), is_marker: true });
        }
    }
    if style == WhiteoutStyle::Names {
        // Sorted as the names they stand for; where there is a file as well, that one counts.
        listed.sort_unstable();
        listed.dedup_by(|later, first| later.name == first.name);
    }
    Ok(listed)
}

/// Whether the entry `name` of a layer's directory, which [`list`] gave and which is `meta`, is a whiteout.
pub fn whiteout_entry(dir: &RootDir, listed: &Listed, meta: Option<&Meta>, style: WhiteoutStyle) -> Result<bool, FsError> {
    match meta {
        _ if listed.is_marker => Ok(true),
        Some(meta) => is_whiteout(dir, &listed.name, meta, style),
        None => Ok(false),
    }
}

/// Creates the whiteout `name`, which must not exist.
pub(crate) fn create(dir: &RootDir, name: &[u8], style: WhiteoutStyle) -> Result<(), FsError> {
    if style == WhiteoutStyle::Names {
        if dir.stat(name)?.is_some() {
            return Err(dir.error("create", name, Errno::EXIST));
        }
        return mark(dir, &marker(name), if has_room(name) { b"" } else { name });
    }
    match dir.mknod(name, Kind::Char, (0, 0)) {
        // Since Linux 5.8 this node needs no privilege, but an outer sandbox may refuse every mknod.
        Err(e) if style == WhiteoutStyle::UserXattr && e.source.kind() == std::io::ErrorKind::PermissionDenied => {
            let file: File = dir.create_file(name)?;
            let owner = dir.stat(name)?.map_or((0, 0), |m| (m.uid, m.gid));
            let xattrs = Xattrs::from([(USER_WHITEOUT.to_vec(), b"y".to_vec())]);
            dir.set_attrs_of_file(&file, name, &Attrs { uid: owner.0, gid: owner.1, mode: 0o600, mtime: None, xattrs })?;
            // The kernel looks for such files only in a directory marked so.
            if !is_opaque(dir, style)? {
                dir.set_xattr_of_self(style.opaque_key(), b"x")?;
            }
            Ok(())
        }
        done => done,
    }
}

/// Takes the whiteout of `name` away, whatever stands there by that name now. With styles other than
/// [`WhiteoutStyle::Names`] the whiteout is what has the name, and there's nothing to do. Says whether there was one.
pub(crate) fn unmark(dir: &RootDir, name: &[u8], style: WhiteoutStyle) -> Result<bool, FsError> {
    if style != WhiteoutStyle::Names {
        return Ok(false);
    }
    match dir.unlink(&marker(name)) {
        Ok(()) => Ok(true),
        Err(e) if e.is_not_found() => Ok(false),
        Err(e) => Err(e),
    }
}

/// Removes the whiteout of `name`, in whatever form.
pub fn remove(dir: &RootDir, listed: &Listed) -> Result<(), FsError> {
    dir.unlink(&if listed.is_marker { marker(&listed.name) } else { listed.name.clone() })
}

fn has_room(name: &[u8]) -> bool {
    PREFIX.len() + name.len() <= LONGEST_NAME
}

/// The file that says that `name` is gone.
fn marker(name: &[u8]) -> Vec<u8> {
    if has_room(name) {
        return [PREFIX, name].concat();
    }
    [LONG, &blake3::hash(name).to_hex().as_bytes()[..32]].concat()
}

fn mark(dir: &RootDir, name: &[u8], content: &[u8]) -> Result<(), FsError> {
    match dir.create_file(name) {
        Ok(mut file) => file.write_all(content).map_err(|e| dir.error("write", name, e)),
        Err(e) if e.errno() == Some(Errno::EXIST) => Ok(()),
        Err(e) => Err(e),
    }
}
