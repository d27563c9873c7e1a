//! Hides how a solved build becomes something a person can name or hold: a name in the store, a file, a pushed image.

pub mod archive;
pub mod assemble;
pub mod daemon;
pub(crate) mod destination;
pub(crate) mod draft;
pub(crate) mod early;
pub(crate) mod files;
pub(crate) mod folder;
pub mod form;
pub(crate) mod layout;
pub mod load;
pub mod pack;
pub(crate) mod stored;
pub(crate) mod verify;
pub(crate) mod write;

pub use archive::save;
pub use form::{CompressionChoice, CompressionKind, Form};
pub use load::{Loaded, load};
pub use stored::for_platform;
