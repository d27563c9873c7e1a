//! Hides how builds on different machines share what they did (`--cache-to`, `--cache-from`).

pub mod backend;
pub mod format;
pub mod request;
pub mod seal;
