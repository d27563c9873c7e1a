//! Hides how one file that is no directory is copied, whatever kind it is.

use std::fs::File;

use rustix::io::Errno;

use crate::layer::xattr::portable;
use crate::rootdir::{Attrs, FsError, Kind, Meta, RootDir, Xattrs, copy_file};
use crate::view::{Node, ViewError};

/// A file that is no directory, to be copied.
pub(super) struct Leaf {
    pub(super) meta: Meta,
    xattrs: Xattrs,
    body: Body,
}

enum Body {
    File(File),
    Symlink(Vec<u8>),
    Node,
}

impl Leaf {
    pub(super) fn of_node(node: &Node) -> Result<Leaf, ViewError> {
        let body = match node.kind() {
            Kind::File => Body::File(node.open()?),
            Kind::Symlink => Body::Symlink(node.read_link()?),
            _ => Body::Node,
        };
        Ok(Leaf { meta: *node.meta(), xattrs: node.xattrs()?, body })
    }

    pub(super) fn of_entry(dir: &RootDir, name: &[u8], meta: &Meta) -> Result<Leaf, FsError> {
        let (xattrs, body) = match meta.kind {
            Kind::File => {
                let file = dir.open_file(name)?;
                (dir.xattrs_of_file(&file, name)?, Body::File(file))
            }
            Kind::Symlink => (dir.xattrs(name)?, Body::Symlink(dir.read_link(name)?)),
            _ => (dir.xattrs(name)?, Body::Node),
        };
        Ok(Leaf { meta: *meta, xattrs: portable(xattrs), body })
    }

    /// Makes it `name` in `to`, which must not exist. A device that may not be made here is left out; says whether it was made.
    pub(super) fn write(&self, to: &RootDir, name: &[u8]) -> Result<bool, FsError> {
        let attrs = Attrs::of(&self.meta, self.xattrs.clone());
        match &self.body {
            Body::File(from) => {
                let file = to.create_file(name)?;
                let sparse = self.meta.blocks.saturating_mul(512) < self.meta.size;
                copy_file(from, &file, self.meta.size, sparse).map_err(|e| to.error("copy into", name, e))?;
                to.set_attrs_of_file(&file, name, &attrs)?;
            }
            Body::Symlink(target) => {
                to.symlink(name, target)?;
                to.set_attrs_of_node(name, Kind::Symlink, &attrs)?;
            }
            Body::Node => {
                match to.mknod(name, self.meta.kind, self.meta.rdev) {
                    Err(e) if e.errno() == Some(Errno::PERM) && matches!(self.meta.kind, Kind::Char | Kind::Block) => {
                        return Ok(false);
                    }
                    done => done?,
                }
                to.set_attrs_of_node(name, self.meta.kind, &attrs)?;
            }
        }
        Ok(true)
    }
}
