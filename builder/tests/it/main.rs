//! kiln from end to end: the command as it is installed, real registries, real kernels, and other people's programs
//! that read what it made. One module a subject.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "this is a test program")]
#![allow(clippy::type_complexity, reason = "a table's row type is read off its rows")]

mod attest;
mod cache;
mod cache_places;
mod cache_rows;
mod call;
mod cli;
mod comparer;
mod concurrency;
mod conformance;
mod contexts;
mod credentials;
mod edits;
mod errors;
mod faults;
mod files_out;
mod forms;
mod fsck;
mod handover;
mod hostile;
mod hosts;
mod interop;
mod interrupted;
mod language;
mod layers;
mod lock;
mod memory;
mod modes;
mod mounts;
mod on_failure;
mod ordinary;
mod outputs;
mod platform;
mod power;
mod progress;
mod races;
mod readers;
mod rebuild;
mod registry;
mod rootless;
mod run;
mod shared_cache;
mod space;
mod support;
mod threats;
mod wire_rows;
mod writers;
