//! The OCI distribution protocol: pull, push, authentication, mirrors.
//!
//! This crate hides HTTP. It knows [`kiln_oci`]'s words and none of kiln's other crates: it is handed a sink or a source and
//! never learns what a store or a build is. What it promises:
//!
//! - every byte that it reports as fetched was counted and hashed against its descriptor;
//! - credentials reach the registry's own origin and the token service that it names, and no one else: not the target of a
//!   redirect, not an upload location on another host, not a plain-http connection that nobody asked for;
//! - [`Client::new`] touches neither the network nor the disk; the TLS stack and its threads come with the first request.
//!
//! The calls block; the client is `Send + Sync` and made to be shared by many threads.
#![forbid(unsafe_code)]

pub mod actions_cache;
mod auth;
mod blob;
mod budget;
mod challenge;
mod client;
pub mod credentials;
mod daemon;
mod endpoint;
pub mod error;
mod exchange;
mod manifest;
pub mod options;
mod proxy;
mod referrers;
mod repository;
pub mod s3;
mod service;
mod sigv4;
mod tls;
mod transport;
mod upload;

pub use client::{Client, ManifestName, Pushed};
pub use credentials::{CredentialError, CredentialStore, Credentials, GlobalHelpers, Kept};
pub use daemon::{Daemon, DaemonAddress, DaemonAnswer, DaemonError, DaemonTls};
pub use error::{Error, ErrorKind};
pub use options::{Mirror, Options, RegistryOptions, RetryPolicy, Rule, Serves, Warning, Warnings};
pub use proxy::Proxies;
pub use repository::Repository;

/// What every call of this crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;
