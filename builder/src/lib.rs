//! Who does what when: from a [`request::BuildRequest`] to an image, with the help of four siblings that don't know each other.
//!
//! This crate is the only one that knows more than one of `kiln-frontend`, `kiln-store`, `kiln-registry-client` and
//! `kiln-runner`; the command line (`main.rs`, `cli/`) belongs to the binary and is invisible here.
#![forbid(unsafe_code)]

pub mod attest;
pub mod bases;
pub mod build;
pub mod cache_key;
pub mod call;
pub mod context;
pub mod engine;
mod epoch;
pub mod error;
pub mod event;
pub mod export;
pub mod fsck;
pub mod grant;
pub mod image;
pub mod launch;
pub mod manifest;
pub mod ops;
pub mod pins;
pub mod rebuild;
pub mod remote_cache;
pub mod request;
pub mod schedule;
pub mod solve;
pub mod transfer;
