//! Hides how everything below the root is spelled: no other file joins a name to a store path.

use std::path::{Path, PathBuf};

use kiln_oci::digest::Digest;

use crate::cache::CacheKey;
use crate::form::TreeForm;
use crate::layer::whiteout::WhiteoutStyle;
use crate::owner::Ownership;
use crate::snapshot::LayerId;

/// The folder of the store of a form, below the root that all forms share; that of root's own form is that root itself.
pub(crate) fn folder(form: TreeForm) -> Option<&'static str> {
    match (form.whiteouts, form.owners) {
        (WhiteoutStyle::Device, _) => None,
        (WhiteoutStyle::UserXattr, Ownership::Real | Ownership::Mapped) => Some("rootless"),
        (WhiteoutStyle::UserXattr, Ownership::Recorded) => Some("one-id"),
        (WhiteoutStyle::Names, Ownership::Real | Ownership::Mapped) => Some("flat"),
        (WhiteoutStyle::Names, Ownership::Recorded) => Some("flat-one-id"),
    }
}

/// The folder below the shared root in which it is found out what the host can do there.
pub(crate) fn host(root: &Path) -> PathBuf {
    root.join("host")
}

/// The names below one root; [`crate::format`] draws them.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    root: PathBuf,
}

/// The directories that a fresh store has, in the order of their making.
pub(crate) const DIRECTORIES: [&str; 11] =
    ["blobs", "blobs/sha256", "layers", "cache", "images", "ingest", "memo", "mount-points", "mounts", "locks", "trash"];

/// What may stand in a root that has no version file yet: a store whose making was cut short, or a fresh file system.
pub(crate) const KNOWN_AT_ROOT: [&str; 21] = [
    "version",
    "epoch",
    "collected",
    "ids",
    "host",
    "rootless",
    "one-id",
    "flat",
    "flat-one-id",
    "lease",
    "blobs",
    "layers",
    "cache",
    "images",
    "ingest",
    "memo",
    "mount-points",
    "mounts",
    "locks",
    "trash",
    "lost+found",
];

impl Layout {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn version(&self) -> PathBuf {
        self.root.join("version")
    }

    /// What tells relaxed records of after a failed sync from those of before.
    pub(crate) fn epoch(&self) -> PathBuf {
        self.root.join("epoch")
    }

    /// Which ids of the host the owners in the trees are.
    pub(crate) fn ids(&self) -> PathBuf {
        self.root.join("ids")
    }

    /// Where a version file is written before it gets its name.
    pub(crate) fn version_draft(&self, nonce: &str) -> PathBuf {
        self.root.join("ingest").join(format!("version-{nonce}"))
    }

    /// Where an ids file is written before it gets its name.
    pub(crate) fn ids_draft(&self, nonce: &str) -> PathBuf {
        self.root.join("ingest").join(format!("ids-{nonce}"))
    }

    pub(crate) fn lease(&self) -> PathBuf {
        self.root.join("lease")
    }

    /// Whose time says when the store was last looked through for what can be collected.
    pub(crate) fn collected(&self) -> PathBuf {
        self.root.join("collected")
    }

    /// Files and folders that are always there, without what is in them.
    pub(crate) fn own_files(&self) -> Vec<PathBuf> {
        let folders = ["blobs", "blobs/sha256", "layers", "cache", "images", "memo", "mounts"].map(|name| self.root.join(name));
        let files = [self.root.clone(), self.version(), self.epoch(), self.ids(), self.lease(), self.collected()];
        files.into_iter().chain(folders).collect()
    }

    /// What is unfinished, locked, on its way out or found out, with all that is in it.
    pub(crate) fn own_trees(&self) -> Vec<PathBuf> {
        ["ingest", "mount-points", "locks", "trash", "host"].map(|name| self.root.join(name)).into()
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.root.join("blobs/sha256")
    }

    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    pub(crate) fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    pub(crate) fn layer(&self, id: &LayerId) -> LayerDir {
        LayerDir(self.root.join("layers").join(id.as_str()))
    }

    pub(crate) fn cache(&self) -> PathBuf {
        self.root.join("cache")
    }

    pub(crate) fn cache_record(&self, key: &CacheKey) -> PathBuf {
        let hex = key.hex();
        self.root.join("cache").join(&hex[..2]).join(&hex[2..])
    }

    /// The key of a record, from the names of its folder and its file.
    pub(crate) fn cache_key(shard: &str, rest: &str) -> Option<CacheKey> {
        if shard.len() != 2 {
            return None;
        }
        Digest::from_hex(&format!("{shard}{rest}")).map(|d| CacheKey(*d.as_bytes()))
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// The file of a name; names have slashes, so the file is called after the name's digest.
    pub(crate) fn image(&self, name: &str) -> PathBuf {
        self.root.join("images").join(Digest::of(name.as_bytes()).hex())
    }

    /// The file of an image that has no name.
    pub(crate) fn nameless_image(&self, config: &Digest) -> PathBuf {
        self.root.join("images").join(format!("id-{}", config.hex()))
    }

    pub(crate) fn ingest(&self) -> PathBuf {
        self.root.join("ingest")
    }

    pub(crate) fn session(&self, nonce: &str) -> PathBuf {
        self.root.join("ingest").join(nonce)
    }

    pub(crate) fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }

    pub(crate) fn trash_entry(&self, nonce: &str) -> PathBuf {
        self.root.join("trash").join(nonce)
    }

    pub(crate) fn mount_points(&self) -> PathBuf {
        self.root.join("mount-points")
    }

    pub(crate) fn memos(&self) -> PathBuf {
        self.root.join("memo")
    }

    pub(crate) fn memo(&self, of: &[u8]) -> PathBuf {
        self.root.join("memo").join(&blake3::hash(of).to_hex()[..32])
    }

    pub(crate) fn mounts(&self) -> PathBuf {
        self.root.join("mounts")
    }

    pub(crate) fn mount(&self, id: &[u8]) -> MountDir {
        MountDir(self.root.join("mounts").join(&blake3::hash(id).to_hex()[..32]))
    }

    pub(crate) fn locks(&self) -> PathBuf {
        self.root.join("locks")
    }

    pub(crate) fn step_lock(&self, key: &CacheKey) -> PathBuf {
        self.root.join("locks").join(format!("step-{}", key.hex()))
    }

    pub(crate) fn blob_lock(&self, digest: &Digest) -> PathBuf {
        self.root.join("locks").join(format!("blob-{}", digest.hex()))
    }

    pub(crate) fn layer_lock(&self, id: &LayerId) -> PathBuf {
        self.root.join("locks").join(id.as_str())
    }

    pub(crate) fn facts_lock(&self, id: &LayerId) -> PathBuf {
        self.root.join("locks").join(format!("facts-{id}"))
    }

    pub(crate) fn mount_lock(&self, id: &[u8]) -> PathBuf {
        self.root.join("locks").join(format!("mount-{}", &blake3::hash(id).to_hex()[..32]))
    }

    pub(crate) fn name_lock(&self, name: &str) -> PathBuf {
        self.root.join("locks").join(format!("name-{}", Digest::of(name.as_bytes()).hex()))
    }
}

/// The file of what the files of `tree` can't hold themselves.
pub(crate) fn owners_beside(tree: &Path) -> PathBuf {
    let mut path = tree.as_os_str().to_owned();
    path.push(".owners");
    path.into()
}

/// The names in the folder of one layer, or of one that is being made.
#[derive(Debug, Clone)]
pub(crate) struct LayerDir(pub(crate) PathBuf);

impl LayerDir {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
    pub(crate) fn record(&self) -> PathBuf {
        self.0.join("record.json")
    }
    pub(crate) fn facts(&self) -> PathBuf {
        self.0.join("facts.json")
    }
    pub(crate) fn diff(&self) -> PathBuf {
        self.0.join("diff")
    }
    /// What the files of the tree can't hold themselves; only where owners are recorded.
    pub(crate) fn owners(&self) -> PathBuf {
        owners_beside(&self.diff())
    }
    pub(crate) fn work(&self) -> PathBuf {
        self.0.join("work")
    }
    /// A copy of the merged tree.
    pub(crate) fn tree(&self) -> PathBuf {
        self.0.join("tree")
    }
    pub(crate) fn unpacked(&self) -> PathBuf {
        self.0.join("unpacked")
    }
    pub(crate) fn durable(&self) -> PathBuf {
        self.0.join("durable")
    }
    pub(crate) fn usage(&self) -> PathBuf {
        self.0.join("usage")
    }
}

/// The names in the folder of one cache mount.
#[derive(Debug, Clone)]
pub(crate) struct MountDir(pub(crate) PathBuf);

impl MountDir {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
    /// Says whose folder this is, for `kiln du`.
    pub(crate) fn id(&self) -> PathBuf {
        self.0.join("id")
    }
    pub(crate) fn slot(&self, n: u32) -> PathBuf {
        self.0.join(format!("{n}"))
    }
    pub(crate) fn slot_lock(&self, n: u32) -> PathBuf {
        self.0.join(format!("{n}.lock"))
    }
}
