//! Hides how a solved build becomes something a person can name or hold: a name in the store, a file, a pushed image.

pub mod archive;
pub(crate) mod layout;
pub mod load;
pub mod pack;
pub(crate) mod verify;

pub use archive::save;
pub use load::{Loaded, load};
