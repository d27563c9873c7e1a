//! Hides how each kind of step is carried out.

pub mod agent;
pub mod exec;
pub mod failed;
pub mod file;
pub mod git;
pub mod http;
pub mod seed;
pub mod settle;
pub mod source;

/// What an ADD takes from an address.
#[derive(Debug)]
pub enum Fetched {
    /// A file.
    File(http::Fetched),
    /// A commit of a git repository.
    Repository(Box<git::Fetched>),
}

impl Fetched {
    /// The address as the Dockerfile has it; may hold a password.
    pub fn url(&self) -> &str {
        match self {
            Fetched::File(file) => &file.url,
            Fetched::Repository(repository) => repository.url(),
        }
    }
}
