//! Hides how the trees of a store stand on disk: what its user may set on a file, and what the overlay above reads.

use std::path::Path;

use crate::Store;
use crate::layer::upper::{UpperError, UpperWriter};
use crate::layer::whiteout::WhiteoutStyle;
use crate::layer::{PackOptions, UnpackOptions};
use crate::owner::Ownership;
use crate::rootdir::{FsError, RootDir};
use crate::view::{View, ViewError};

/// How the trees of a store are spelled. A tree of one form is never read as one of another, so each has a store of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct TreeForm {
    /// What says that a name is gone.
    pub whiteouts: WhiteoutStyle,
    /// Where the owners are.
    pub owners: Ownership,
}

impl Store {
    /// How its trees are spelled.
    pub fn form(&self) -> TreeForm {
        self.inner.form
    }

    /// Opens a tree of this store, with the owners that the image has.
    ///
    /// # Errors
    /// What the file system answers.
    pub fn tree(&self, path: &Path) -> Result<RootDir, FsError> {
        RootDir::open_as(path, self.form().owners)
    }

    /// The merged tree of a stack of this store's trees, topmost first; none gives an empty tree.
    ///
    /// # Errors
    /// What the file system answers.
    pub fn view(&self, trees: impl IntoIterator<Item = impl AsRef<Path>>) -> Result<View, ViewError> {
        let roots: Result<Vec<_>, _> = trees.into_iter().map(|path| self.tree(path.as_ref())).collect();
        View::from_roots(roots?, self.form().whiteouts)
    }

    /// A writer of the tree `upper` of this store, over what `parent` shows.
    ///
    /// # Errors
    /// What the file system answers.
    pub fn writer(&self, upper: &Path, parent: View) -> Result<UpperWriter, UpperError> {
        UpperWriter::new(self.tree(upper)?, parent, self.form().whiteouts)
    }

    /// How to unpack a layer into a tree of this store.
    pub fn unpacking(&self) -> UnpackOptions {
        UnpackOptions { style: self.form().whiteouts, ..UnpackOptions::default() }
    }

    /// How to pack a tree of this store.
    pub fn packing(&self) -> PackOptions {
        PackOptions { style: self.form().whiteouts, ..PackOptions::default() }
    }
}
