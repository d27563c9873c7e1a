//! Hides how each kind of step is carried out.

pub mod agent;
pub mod exec;
pub mod file;
pub mod fingerprint;
pub mod http;
pub mod seed;
pub mod source;
