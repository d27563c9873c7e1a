//! Hides how builds on different machines share what they did (`--cache-to`, `--cache-from`).

pub mod backend;
mod export;
pub mod format;
pub(crate) mod import;
pub mod mounts;
pub mod request;
pub mod seal;
pub mod session;

use std::error::Error as StdError;

/// An error with its causes, for a warning.
pub(crate) fn causes(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        // Transparent errors say the same twice.
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        next = cause.source();
    }
    text
}
