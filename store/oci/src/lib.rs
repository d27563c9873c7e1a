//! The words that every part of kiln shares, as the OCI specifications and the Dockerfile reference name them.
//!
//! This crate knows what the words look like as bytes and nothing else: it does no I/O, reads no clock and starts no
//! thread. A word enters only when a specification names it and two of kiln's crates need it.
#![forbid(unsafe_code)]

pub mod config;
pub mod descriptor;
pub mod digest;
pub mod manifest;
pub mod media_type;
pub mod path;
pub mod platform;
pub mod reference;
