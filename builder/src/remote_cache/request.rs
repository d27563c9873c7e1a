//! Hides nothing: which shared caches a build reads and writes, after the flags became meaning.

use std::sync::Arc;

use super::backend::Place;
use super::mounts::MountSelection;
use super::seal::{SigningKey, VerifyingKeys};
use crate::export::form::CompressionChoice;

/// The shared caches of a build.
#[derive(Debug, Clone, Default)]
pub struct CacheRequest {
    /// Where steps may come from, asked in this order.
    pub from: Vec<CacheSource>,
    /// Where the build's steps are written to.
    pub to: Vec<CacheTarget>,
}

/// `--cache-from`.
#[derive(Debug, Clone)]
pub struct CacheSource {
    /// Where it is.
    pub place: Place,
    /// `verify=`: whoever must have signed it.
    pub verify: Option<Arc<VerifyingKeys>>,
    /// `mounts=`: which cache mounts may come from it.
    pub mounts: Option<MountSelection>,
}

/// `--cache-to`.
#[derive(Debug, Clone)]
pub struct CacheTarget {
    /// Where it is written to.
    pub place: TargetPlace,
    /// Which steps are written.
    pub scope: CacheScope,
    /// How layers are compressed that no cache or image brought; as the outputs want them when it isn't said.
    pub compression: Option<CompressionChoice>,
    /// `ignore-error=false`: the build fails when the cache can't be written. BuildKit's default; kiln's is a warning.
    pub must_succeed: bool,
    /// `sign=`: with which key the document is signed.
    pub sign: Option<Arc<SigningKey>>,
    /// `mounts=`: which cache mounts go with it.
    pub mounts: Option<MountExport>,
}

/// Which cache mounts are written to a cache.
#[derive(Debug, Clone)]
pub struct MountExport {
    /// Which of those that the build's steps have.
    pub selection: MountSelection,
    /// `mounts-max=`: one that takes more bytes of disk is left out.
    pub largest: u64,
}

/// Where a cache is written to.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "there are one or two of them in a build")]
pub enum TargetPlace {
    /// Into the configuration of the image.
    Inline,
    /// A place of its own.
    Apart(Place),
}

/// `mode=`: which steps are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CacheScope {
    /// Those whose layers the result has.
    #[default]
    Min,
    /// All.
    Max,
}

impl CacheRequest {
    /// Whether the image's configuration is to hold the steps it was made of, and who signs them.
    pub fn inline(&self) -> Option<&CacheTarget> {
        self.to.iter().find(|target| matches!(target.place, TargetPlace::Inline))
    }
}
