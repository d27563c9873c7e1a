//! Hides how kiln's own process gets into a user namespace, and why it could not.

use rustix::thread::CapabilitySet;

use crate::error::RunError;
use crate::idmap::{IdMaps, parse_map};
use crate::mode::{Isolation, Mode};

/// As what this process goes on, after [`enter`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entered {
    /// The way in which sandboxes will be made.
    pub mode: Mode,
    /// The ids that files can belong to, from here and from outside of the user namespace.
    pub ids: IdMaps,
    /// Whether the user of this process was root before.
    pub was_root: bool,
    /// The better ways that were tried or looked at before.
    pub refused: Vec<Refusal>,
}

/// A way that can't be gone here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The way.
    pub mode: Mode,
    /// Why not.
    pub reason: String,
    /// What would change that.
    pub remedy: String,
}

impl Entered {
    /// Of a process that didn't ask.
    pub fn nothing() -> Entered {
        let reason = "this command runs no others".to_owned();
        let mode = Mode::Unavailable { reason, remedy: String::new() };
        let was_root = rustix::process::geteuid().is_root();
        Entered { mode, ids: IdMaps::default(), was_root, refused: Vec::new() }
    }
}

/// Decides how sandboxes are made and brings this process to where it can make them: as an ordinary user, into a user namespace
/// in which it is root. Has to be called while the process has one thread, by every command that opens a store, for the owners of
/// files are what the namespace says.
///
/// # Errors
/// When `isolation` asks for a way that can't be gone here. Without a wish there is always an answer, which may be
/// [`Mode::Unavailable`].
pub fn enter(isolation: Isolation) -> Result<Entered, RunError> {
    let _ = isolation;
    let was_root = rustix::process::geteuid().is_root();
    let may_mount = rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN));
    let mode = match was_root && may_mount {
        true => Mode::Root,
        false => Mode::Unavailable { reason: "kiln is not running as root".to_owned(), remedy: "run kiln as root".to_owned() },
    };
    Ok(Entered { mode, ids: own_ids(), was_root, refused: Vec::new() })
}

/// The map of the user namespace that this process is in.
fn own_ids() -> IdMaps {
    let read = |file: &str| parse_map(&std::fs::read_to_string(file).unwrap_or_default());
    IdMaps { users: read("/proc/self/uid_map"), groups: read("/proc/self/gid_map") }
}
