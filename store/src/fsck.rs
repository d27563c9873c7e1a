//! Hides how it is found out what became of the store's files behind kiln's back, and how the store gets on without them.
//!
//! [`Fsck::check`] reads everything and changes nothing; builds go on beside it. [`Fsck::mend`] takes away what is broken, when
//! nobody else uses the store: what can be fetched, unpacked or built again comes back when it is next needed.
//!
//! What each thing is held against:
//!
//! | thing | proof |
//! |---|---|
//! | blob | its name is its digest; images, layers and records say which must be there |
//! | record, facts, mark, usage, image name, memo | a checksum in the file; an image's file is called after its name |
//! | tree of a layer that an image brought | the layer's blob, unpacked once more |
//! | tree of a layer that was built | its tar's digest; in a stage that is in no image the sum that was noted at the build's end |
//!
//! What may be absent at any time (a name that was removed, a cache record, a mark, a memo) leaves no gap to notice.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::ControlFlow;
use std::path::PathBuf;

use kiln_oci::digest::Digest;

use crate::Store;
use crate::cache::CacheKey;
use crate::error::{Error, Result};
use crate::image::ImageRecord;
use crate::lock::{self, Mode, WaitFor};
use crate::snapshot::{LayerId, Part};
use crate::{record, remove};

mod blobs;
mod mend;
mod survey;
mod trees;

use survey::Survey;

/// What can be broken.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Object {
    /// Bytes by their digest.
    Blob(Digest),
    /// A part of a layer.
    Layer(LayerId, Part),
    /// The file of an image name, and the name where it can still be read.
    Image(PathBuf, Option<String>),
    /// What is known of a step.
    CacheRecord(CacheKey),
    /// The fingerprints of a context's files.
    Memo(PathBuf),
    /// The file that says whose a cache mount's folder is.
    CacheMount(PathBuf),
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blob(digest) => write!(f, "blob {digest}"),
            Self::Layer(id, part) => {
                let part = match part {
                    Part::Record => "record",
                    Part::Facts => "facts",
                    Part::Mark => "mark",
                    Part::Usage => "usage",
                    Part::Tree => "tree",
                };
                write!(f, "{part} of layer {id}")
            }
            Self::Image(path, None) => write!(f, "image name {}", path.display()),
            Self::Image(_, Some(name)) => write!(f, "image name {name}"),
            Self::CacheRecord(key) => write!(f, "cache record {}", key.hex()),
            Self::Memo(path) => write!(f, "memo {}", path.display()),
            Self::CacheMount(path) => write!(f, "cache mount {}", path.display()),
        }
    }
}

/// Something that is broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What.
    pub object: Object,
    /// In which way.
    pub reason: String,
    /// The images (names, or ids of those without) that need it.
    pub needed_by: Vec<String>,
}

/// How many things were looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Image names.
    pub images: usize,
    /// Layers.
    pub layers: usize,
    /// Blobs.
    pub blobs: usize,
    /// Cache records.
    pub records: usize,
}

/// What a check found.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// What is broken.
    pub findings: Vec<Finding>,
    /// What was looked at.
    pub counts: Counts,
    /// Layers whose trees there is nothing to compare with, and why: builds that were killed leave such layers.
    pub unproven: Vec<(LayerId, String)>,
}

/// Asked between two things with the name of the next; `Break` ends the check where it is.
pub type GoOn<'a> = &'a (dyn Fn(&str) -> ControlFlow<()> + Sync);

/// Finds and mends what is broken.
#[derive(Debug, Clone, Copy)]
pub struct Fsck<'a> {
    store: &'a Store,
}

/// Broken things, each with the first reason that was found.
type Found = BTreeMap<Object, String>;

impl<'a> Fsck<'a> {
    pub(crate) fn new(store: &'a Store) -> Self {
        Self { store }
    }

    /// Reads everything that is in the store and says what is broken. Changes nothing.
    ///
    /// # Errors
    /// [`crate::Error::Io`] when a folder can't be listed, or a layer can't be unpacked for comparison; a file that can't be read is
    /// a finding.
    pub fn check(&self, go_on: GoOn<'_>) -> Result<Report> {
        let mut found = Found::new();
        let survey = Survey::of(self.store, &mut found)?;
        let present = blobs::check(self.store, go_on, &mut found)?;
        survey.missing(self.store, &present, &mut found)?;
        let unproven = trees::check(self.store, &survey, go_on, &mut found)?;
        let counts = Counts {
            images: survey.images.len(),
            layers: survey.layers.len(),
            blobs: present.len(),
            records: survey.records.len(),
        };
        let finding = |(object, reason)| {
            let needed_by = survey.dependents(&object);
            Finding { object, reason, needed_by }
        };
        Ok(Report { findings: found.into_iter().map(finding).collect(), counts, unproven })
    }

    /// The images whose names are whole.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    pub fn images(&self) -> Result<Vec<ImageRecord>> {
        survey::images(self.store, &mut Found::new())
    }

    /// All layers of which there is anything.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    pub fn layers(&self) -> Result<Vec<LayerId>> {
        Ok(survey::names(&self.store.layout().layers())?.iter().filter_map(|name| LayerId::parse(name)).collect())
    }

    /// All blobs of which there is a file.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    pub fn blobs(&self) -> Result<Vec<Digest>> {
        Ok(blobs::present(self.store)?.into_iter().collect())
    }

    /// Takes the file of a blob away if it is damaged; says whether it was.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    pub fn drop_damaged(&self, digest: &Digest) -> Result<bool> {
        let damage = blobs::damage(self.store, digest);
        if damage.is_some() {
            self.store.blobs().discard(digest)?;
        }
        Ok(damage.is_some())
    }

    /// Takes away what is broken in `findings`, and what is of no use without it; answers what was done. An image name goes only if
    /// nothing but a build or a pull can make its image whole.
    ///
    /// Waits until no other process uses the store, as [`crate::Gc::prune`] does.
    ///
    /// # Errors
    /// [`crate::Error::Interrupted`], [`crate::Error::Io`].
    pub fn mend(&self, findings: &[Finding]) -> Result<Vec<String>> {
        let (lease, path) = (self.store.lease(), self.store.layout().lease());
        let exclusive = lock::lock_lasting(lease, &path, Mode::Exclusive, &WaitFor::Users, self.store.waiter());
        let outcome = exclusive.and_then(|()| {
            self.store.memory().forget();
            let outcome = mend::mend(self.store, findings);
            self.store.memory().forget();
            outcome
        });
        // Even after an error: the lease was given up to wait for the exclusive one.
        let shared = lock::lock_lasting(lease, &path, Mode::Shared, &WaitFor::Prune, self.store.waiter());
        let done = outcome?;
        shared?;
        remove::empty_trash(&self.store.layout().trash())?;
        Ok(done)
    }
}

/// Takes a version file away that names no format: the next [`Store::open`] writes it anew, if there is nothing but a store.
///
/// # Errors
/// `error` itself when it is another than [`Error::UnreadableFormat`]; [`Error::Io`].
pub fn mend_format(error: Error) -> Result<String> {
    let Error::UnreadableFormat { path } = error else { return Err(error) };
    // Not by what is open: the file was read a moment ago, and nobody writes it twice.
    record::remove(&path)?;
    Ok(format!("removed {}; it is written anew", path.display()))
}

/// The digests of files that are blobs.
type Present = BTreeSet<Digest>;
