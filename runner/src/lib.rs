//! Runs one command in a sandbox made of namespaces: hides the kernel from the rest of kiln.
//!
//! A program that uses [`run`] calls [`take_over`] as the first thing in `main`, for the sandbox's supervisor is the same
//! program, executed again.
#![deny(unsafe_code)]

mod cancel;
mod error;
mod host;
mod spec;
mod user;

pub use cancel::Cancel;
pub use error::RunError;
pub use host::{Host, Mode};
pub use spec::{Mount, MountSource, Network, Outcome, OverlayUpper, RootFs, RunSpec, Security, Status, Stream};
pub use user::UserError;

/// The first call in `main`: returns at once in an ordinary process; when this process was started as a sandbox supervisor, it
/// becomes that and never returns.
pub fn take_over() {}

/// Runs `spec` to its end and hands its output to `output` as it comes.
///
/// When it returns, whatever the result, no process and no mount of the run exists. SIGKILL of the calling process, or the end
/// of the calling thread, ends the run.
///
/// # Errors
/// When the command could not be run to its end; a failing command is an `Ok`.
pub fn run(_spec: &RunSpec, _host: &Host, _cancel: &Cancel, _output: &mut dyn FnMut(Stream, &[u8])) -> Result<Outcome, RunError> {
    Err(RunError::Unavailable { reason: "not built yet".to_owned() })
}
