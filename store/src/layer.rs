//! Hides how a layer looks in its two forms, and how each is made of the other: an overlay directory and a tar of changes.

pub mod compress;
pub mod estargz;
mod inflate;
mod pack;
mod repack;
pub mod same;
mod unpack;
pub mod upper;
pub mod whiteout;
pub mod xattr;

pub use inflate::{UnpackBlobError, unpack_blob};
pub use pack::{KnownTar, PackError, PackOptions, PackStats, Packed, PackedError, pack, pack_compressed, pack_estargz};
pub use repack::{RepackError, Target, repack};
pub use unpack::{UnpackError, UnpackOptions, UnpackStats, unpack};

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
pub(crate) mod tests;
