//! Hides how "this name is gone" and "nothing below shows through" are spelled, in an overlay directory and in a layer's tar.

use std::fs::File;

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
}

impl WhiteoutStyle {
    fn opaque_key(self) -> &'static [u8] {
        match self {
            WhiteoutStyle::Device => b"trusted.overlay.opaque",
            WhiteoutStyle::UserXattr => b"user.overlay.opaque",
        }
    }
}

/// A name in a layer's tar that begins so isn't a file's (image-spec layer.md, "Whiteouts").
pub const PREFIX: &[u8] = b".wh.";
/// The name in a layer's tar that says that the directory hides all that lower layers have in it.
pub const OPAQUE: &[u8] = b".wh..wh..opq";

const USER_WHITEOUT: &[u8] = b"user.overlay.whiteout";

/// Whether the directory hides what lower layers have in it.
pub(crate) fn is_opaque(dir: &RootDir, style: WhiteoutStyle) -> Result<bool, FsError> {
    // "x" means only that the directory may hold whiteouts of the xattr kind (overlayfs.rst, "userxattr").
    Ok(dir.xattr_of_self(style.opaque_key())?.as_deref() == Some(b"y"))
}

/// Makes the directory hide what lower layers have in it.
pub(crate) fn set_opaque(dir: &RootDir, style: WhiteoutStyle) -> Result<(), FsError> {
    dir.set_xattr_of_self(style.opaque_key(), b"y")
}

/// Whether `name`, which is `meta`, says that the name is gone.
pub(crate) fn is_whiteout(dir: &RootDir, name: &[u8], meta: &Meta, style: WhiteoutStyle) -> Result<bool, FsError> {
    if meta.is_whiteout_device() {
        return Ok(true);
    }
    if style != WhiteoutStyle::UserXattr || meta.kind != Kind::File || meta.size != 0 {
        return Ok(false);
    }
    Ok(dir.xattrs(name)?.contains_key(USER_WHITEOUT))
}

/// Creates the whiteout `name`, which must not exist.
pub(crate) fn create(dir: &RootDir, name: &[u8], style: WhiteoutStyle) -> Result<(), FsError> {
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
