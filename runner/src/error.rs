//! What can go wrong around a run, in words that name the operation.

use std::io;
use std::path::PathBuf;

use crate::user::UserError;

/// Why a command could not be run to its end. A command that ran and failed is an [`crate::Outcome`].
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// This host can't give a sandbox to this process.
    #[error("no sandbox can be made here: {reason}")]
    Unavailable {
        /// What is missing.
        reason: String,
        /// What to change, and where.
        remedy: String,
    },
    /// The request can't be carried out on any host.
    #[error("{reason}")]
    Invalid {
        /// What is wrong with it.
        reason: String,
    },
    /// The supervisor process could not be started or spoken to.
    #[error("could not start the sandbox supervisor")]
    Supervisor(#[source] io::Error),
    /// The supervisor process ended without saying how the command did.
    #[error("the sandbox supervisor ended unexpectedly ({how})")]
    SupervisorLost {
        /// Its exit status.
        how: String,
    },
    /// A step of making the sandbox failed.
    #[error("could not {operation}")]
    Setup {
        /// The step, e.g. ``mount proc on `/proc` ``.
        operation: String,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// The kernel lacks a feature that the sandbox needs.
    #[error("could not {operation}: this kernel lacks {feature}")]
    KernelFeature {
        /// The step that needed it.
        operation: String,
        /// The feature, as the kernel's documentation names it.
        feature: String,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// The root file system has something in the place of a mount point.
    #[error("cannot mount on `{}` in the image: {reason}", path.display())]
    Target {
        /// The mount point.
        path: PathBuf,
        /// What is there instead.
        reason: String,
    },
    /// The user could not be resolved in the root's passwd and group files.
    #[error(transparent)]
    User(#[from] UserError),
    /// The working directory can't be made or entered.
    #[error("cannot use `{}` as the working directory: {reason}", path.display())]
    WorkingDirectory {
        /// The directory.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The program does not exist in the root.
    #[error("exec: \"{program}\": {}", if *in_path { "executable file not found in $PATH" } else { "no such file or directory" })]
    ProgramNotFound {
        /// `args[0]`.
        program: String,
        /// It was searched in `PATH`.
        in_path: bool,
    },
    /// The program that connects a private network gave up.
    #[error("could not connect the private network: `pasta` says: {words}")]
    Network {
        /// What it said.
        words: String,
    },
    /// The program exists but could not be executed.
    #[error("exec: \"{program}\"")]
    Exec {
        /// `args[0]`.
        program: String,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// Mount points that kiln made could not be removed from the result.
    #[error("could not remove the mount point `{}` from the layer", path.display())]
    Cleanup {
        /// The mount point.
        path: PathBuf,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// Somebody outside of the run has files of its root open, and could change what the run made after it was taken over.
    #[error("a process outside of this step still holds files of its root open, so that its result can't be trusted")]
    Held,
    /// The run was cancelled; every process of it is gone.
    #[error("cancelled")]
    Cancelled,
}
