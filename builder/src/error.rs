//! Hides which crate an error came from: every failure becomes one `Error` with a kind that decides the exit code.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use kiln_frontend::{Diagnostic, Source, Span};

/// What sort of failure it is; the command turns it into an exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A step of the build failed.
    Build,
    /// The Dockerfile is wrong.
    Dockerfile,
    /// A registry refused, failed or could not be reached.
    Registry,
    /// This host can't give what was asked for.
    Host,
    /// The store can't be used.
    Store,
    /// The build was stopped by a signal.
    Interrupted,
}

/// Why a build, push, pull, save or load failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The Dockerfile is wrong; each diagnostic points into the source.
    #[error("{}", first_message(diagnostics))]
    Dockerfile {
        /// The text.
        source_text: Arc<Source>,
        /// What is wrong with it; at least one.
        diagnostics: Vec<Diagnostic>,
    },
    /// The Dockerfile or its ignore file could not be read.
    #[error("failed to read {what} {}", path.display())]
    ReadInput {
        /// `dockerfile`, `ignore file`.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// A step failed.
    #[error("failed to build {name}")]
    Step {
        /// The vertex, as progress names it.
        name: String,
        /// Where the instruction is.
        location: Option<(Arc<Source>, Span)>,
        /// Why.
        #[source]
        cause: Box<StepError>,
    },
    /// A registry refused, failed or could not be reached.
    #[error(transparent)]
    Registry(#[from] kiln_registry_client::Error),
    /// The store can't be used.
    #[error(transparent)]
    Store(#[from] kiln_store::Error),
    /// The build was stopped by a signal.
    #[error("the build was interrupted")]
    Interrupted,
}

/// Why one step failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StepError {
    /// The command of a RUN ended with another status than 0.
    #[error("process `{command}` did not complete successfully: {status}")]
    Command {
        /// The command, joined by blanks.
        command: String,
        /// `exit code: 2`, `killed by signal 9`, …
        status: String,
        /// The exit code, when there is one.
        code: Option<i32>,
        /// The last lines that it wrote.
        tail: Vec<u8>,
    },
    /// The sandbox could not be made.
    #[error(transparent)]
    Sandbox(#[from] kiln_runner::RunError),
    /// A registry refused, failed or could not be reached.
    #[error(transparent)]
    Registry(#[from] kiln_registry_client::Error),
    /// The store can't be used.
    #[error(transparent)]
    Store(#[from] kiln_store::Error),
}

fn first_message(diagnostics: &[Diagnostic]) -> String {
    diagnostics.first().map(|d| d.message.clone()).unwrap_or_default()
}
