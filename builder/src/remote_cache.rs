//! Hides how builds on different machines share what they did (`--cache-to`, `--cache-from`).

pub mod backend;
pub mod request;
pub mod seal;
