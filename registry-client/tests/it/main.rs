//! The client against Debian's `docker-registry` and against a server that misbehaves on purpose.
// clippy.toml's allowance reaches functions marked as tests, not what they share; and a table's row type is read off its rows.
#![allow(clippy::unwrap_used, clippy::type_complexity, clippy::print_stderr, clippy::print_stdout)]

mod actions;
mod auth;
mod bucket;
mod cutter;
mod download;
mod environment;
mod front;
mod manifest;
mod nginx;
mod reach;
mod real;
mod referrers;
mod registry_process;
mod resume;
mod s3;
mod scripted;
mod serving;
mod token_server;
mod tokens;
mod upload;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kiln_oci::descriptor::Descriptor;
use kiln_oci::media_type::OCI_LAYER_GZIP;
use kiln_oci::reference::Reference;
use kiln_registry_client::{Client, Options, RegistryOptions, Repository, RetryPolicy, Warnings};

/// Settings whose pauses don't hold up a test.
fn quick() -> Options {
    let pause = Duration::from_millis(2);
    Options {
        retry: RetryPolicy { attempts: 5, first_pause: pause, longest_pause: pause, total_pause: Duration::from_secs(10) },
        stall_timeout: Duration::from_secs(5),
        connect_timeout: Duration::from_secs(5),
        ..Options::default()
    }
}

fn with_registry(registry: &str, settings: RegistryOptions) -> Options {
    Options { registries: BTreeMap::from([(registry.to_owned(), settings)]), ..quick() }
}

fn client(options: Options) -> Client {
    Client::new(options).unwrap()
}

fn reference(text: &str) -> Reference {
    Reference::parse(text).unwrap()
}

/// The repository `a/b` of a registry.
fn repository(host: &str) -> Repository {
    named(host, "a/b")
}

fn named(host: &str, path: &str) -> Repository {
    Repository::from(&reference(&format!("{host}/{path}")))
}

/// A blob's content that no compression and no repetition can hide mistakes in.
fn content(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ len as u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    })
    .take(len)
    .collect()
}

fn layer(bytes: &[u8]) -> Descriptor {
    Descriptor::of(OCI_LAYER_GZIP, bytes)
}

/// Fetches a blob and hands out what came, with the verdict.
fn fetch(client: &Client, repository: &Repository, descriptor: &Descriptor) -> (kiln_registry_client::Result<()>, Vec<u8>) {
    let mut sink = Vec::new();
    let result = client.fetch_blob(repository, descriptor, &mut sink, &|_| {});
    (result, sink)
}

/// A list that warnings go to.
fn warnings() -> (Warnings, Arc<Mutex<Vec<String>>>) {
    let list = Arc::new(Mutex::new(Vec::new()));
    let own = list.clone();
    (Warnings::to(move |warning| own.lock().unwrap().push(warning.to_string())), list)
}
