//! Hides nothing: what is to become of a built image, and how its documents and layers are to look.

use std::collections::BTreeMap;
use std::path::PathBuf;

use kiln_oci::platform::Platform;
use kiln_oci::reference::Reference;

use crate::export::CompressionChoice;
use crate::export::daemon::Daemons;

/// One output of a build.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// An image in the store or in registries (`type=image`, `type=registry`, `--push`).
    Image {
        /// Whether it is pushed to the registries of its names.
        push: bool,
        /// Whether the store keeps it under its names.
        store: bool,
        /// How it looks.
        options: ImageOptions,
    },
    /// An image in an archive, or in a folder with the same files (`type=oci`, `type=docker` with a dest).
    Archive {
        /// In which form.
        format: ArchiveFormat,
        /// Where to.
        dest: Destination,
        /// How it looks.
        options: ImageOptions,
    },
    /// An image that Docker or podman gets (`type=docker` without a dest, `--load`).
    Daemon {
        /// Which of them.
        daemons: Daemons,
        /// How it looks.
        options: ImageOptions,
    },
    /// The files of the image, not the image (`type=local`, `type=tar`).
    Files {
        /// In which form.
        form: FilesForm,
        /// Where to.
        dest: Destination,
        /// Whether each platform has a folder of its own there; `None`: if there are several.
        platform_split: Option<bool>,
        /// What the names of attestations begin with.
        attestation_prefix: String,
        /// The time of all files, in seconds since 1970, whatever the build's own epoch.
        epoch: Option<u64>,
    },
    /// Nothing: only the steps are done (`type=cacheonly`).
    CacheOnly,
}

impl Output {
    /// How the image looks, where the output is one.
    pub fn options(&self) -> Option<&ImageOptions> {
        match self {
            Output::Image { options, .. } | Output::Archive { options, .. } | Output::Daemon { options, .. } => Some(options),
            Output::Files { .. } | Output::CacheOnly => None,
        }
    }

    /// Whether what it writes goes to standard output.
    pub fn is_stdout(&self) -> bool {
        matches!(self, Output::Archive { dest: Destination::Stdout, .. } | Output::Files { dest: Destination::Stdout, .. })
    }
}

/// Where an output that is made of bytes goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// A file, which appears when it is complete.
    File(PathBuf),
    /// Standard output.
    Stdout,
    /// A folder, for what has several files.
    Folder(PathBuf),
}

/// The form of an image in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArchiveFormat {
    /// An OCI image layout (`type=oci`).
    Oci,
    /// What `docker load` reads (`type=docker`).
    Docker,
}

/// How the files of an image are handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FilesForm {
    /// A folder (`type=local`).
    Folder(FolderMode),
    /// A tar (`type=tar`).
    Tar,
}

/// What happens to what a folder held before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FolderMode {
    /// It stays, but for files of the same name.
    #[default]
    Copy,
    /// It is taken away.
    Delete,
}

/// How an image looks: names, documents, layers. Outputs with equal documents and layers share them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ImageOptions {
    /// Its names.
    pub names: Vec<Name>,
    /// How its layers are packed.
    pub compression: CompressionChoice,
    /// Whether its documents have OCI's media types or Docker's; `None` is kiln's choice.
    pub oci_types: Option<bool>,
    /// What is written beside it.
    pub annotations: Annotations,
    /// It is as old as this, in seconds since 1970, whatever the build's own epoch (`source-date-epoch`).
    pub epoch: Option<u64>,
    /// Files in its layers are no newer than that or the build's epoch (`rewrite-timestamp`).
    pub rewrite_timestamp: bool,
    /// It is pushed by its digest, without a tag.
    pub push_by_digest: bool,
    /// The store keeps it under `name@digest`, too.
    pub name_canonical: bool,
    /// Its registries may do without TLS, and with certificates that nobody vouches for.
    pub insecure: bool,
    /// Layers that must not be distributed stay such layers.
    pub prefer_nondist_layers: bool,
    /// What is said about it is in artifacts that refer to it, not in images of no platform.
    pub oci_artifact: bool,
    /// Another name of it is this, `@` and its digest.
    pub dangling_prefix: Option<String>,
    /// Only if it has no name (`danging-name-empty-only`, written so).
    pub dangling_empty_only: bool,
}

impl ImageOptions {
    /// Whether images with these options and with `other` are the same but for their names.
    pub(crate) fn same_image(&self, other: &Self) -> bool {
        self.compression == other.compression
            && self.oci_types == other.oci_types
            && self.annotations == other.annotations
            && self.epoch == other.epoch
            && self.rewrite_timestamp == other.rewrite_timestamp
            && self.prefer_nondist_layers == other.prefer_nondist_layers
            && self.oci_artifact == other.oci_artifact
    }

    /// Whether nothing is asked for that only a manifest can hold.
    pub(crate) fn wants_nothing(&self) -> bool {
        self.same_image(&Self::default()) && !self.name_canonical && self.dangling_prefix.is_none()
    }
}

/// A name as it was typed: only what has a tag can be refused one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// The complete name.
    pub reference: Reference,
    /// Whether a tag was typed.
    pub tagged: bool,
}

/// Which document an annotation is written into (OCI image specification, "Annotations").
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// The manifest of an image.
    Manifest,
    /// The descriptor by which an index names a manifest.
    ManifestDescriptor,
    /// The index.
    Index,
    /// The descriptor by which a layout names an index.
    IndexDescriptor,
}

/// What is written beside an image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Annotations {
    /// Where, for which platform only, the key and the value; the last of a key counts, one for a platform more than one for all.
    pub items: Vec<(Scope, Option<Platform>, String, String)>,
}

impl Annotations {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Adds one.
    pub fn add(&mut self, scope: Scope, platform: Option<Platform>, key: &str, value: &str) {
        self.items.push((scope, platform, key.to_owned(), value.to_owned()));
    }

    /// Those of one document; `platform` is that of a manifest.
    pub fn of(&self, scope: Scope, platform: Option<&Platform>) -> BTreeMap<String, String> {
        let pick = |wanted: Option<&Platform>| -> BTreeMap<String, String> {
            let fits = |item: &&(Scope, Option<Platform>, String, String)| item.0 == scope && item.1.as_ref() == wanted;
            self.items.iter().filter(fits).map(|(_, _, key, value)| (key.clone(), value.clone())).collect()
        };
        let mut found = pick(None);
        if platform.is_some() {
            found.extend(pick(platform));
        }
        found
    }
}
