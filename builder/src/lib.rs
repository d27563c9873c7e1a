//! Who does what when: from a [`request::BuildRequest`] to an image, with the help of four siblings that don't know each other.
//!
//! This crate is the only one that knows more than one of `kiln-frontend`, `kiln-store`, `kiln-registry-client` and
//! `kiln-runner`; the command line (`main.rs`, `cli/`) belongs to the binary and is invisible here.
#![forbid(unsafe_code)]

pub mod error;
pub mod event;
pub mod request;
