//! Hides how a layer looks in its two forms, and how each is made of the other: an overlay directory and a tar of changes.

pub mod upper;
pub mod whiteout;
pub mod xattr;
