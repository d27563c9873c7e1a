//! Names the ways of making sandboxes; hides nothing.

use std::fmt;
use std::str::FromStr;

/// A way of making sandboxes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// As root of the machine, with its ids.
    Root,
    /// As root of a user namespace with many ids, which `/etc/subuid` and `/etc/subgid` give to the user.
    SubIds,
    /// As root of a user namespace with one id, the user's: what needs others is recorded instead of done.
    OneId,
    /// As root of a container, in a user namespace with all ids of that container (or in the one that the container is).
    Nested,
    /// As root of a container that may neither mount nor make namespaces: only the root directory is changed.
    Chroot,
    /// None: commands can't be run.
    Unavailable {
        /// What is missing.
        reason: String,
        /// What to change, and where.
        remedy: String,
    },
}

impl Mode {
    /// What it is called in front of people and in files.
    pub fn name(&self) -> &'static str {
        match self {
            Mode::Root => "root",
            Mode::SubIds => "rootless",
            Mode::OneId => "rootless, one id",
            Mode::Nested => "nested",
            Mode::Chroot => "chroot",
            Mode::Unavailable { .. } => "none",
        }
    }

    /// Whether commands can be run.
    pub fn is_available(&self) -> bool {
        !matches!(self, Mode::Unavailable { .. })
    }
}

/// Prints [`Mode::name`].
impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which way the user wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Isolation {
    /// The best that there is, except for [`Mode::Chroot`], which is no boundary.
    #[default]
    Default,
    /// Only [`Mode::Root`].
    Root,
    /// Only [`Mode::SubIds`], or [`Mode::Nested`] for root.
    Rootless,
    /// Only [`Mode::OneId`].
    OneId,
    /// Only [`Mode::Chroot`].
    Chroot,
}

impl Isolation {
    const ALL: [(&'static str, Isolation); 5] = [
        ("default", Isolation::Default),
        ("root", Isolation::Root),
        ("rootless", Isolation::Rootless),
        ("one-id", Isolation::OneId),
        ("chroot", Isolation::Chroot),
    ];

    /// What it is called on the command line.
    pub fn name(self) -> &'static str {
        Isolation::ALL[self as usize].0
    }
}

impl FromStr for Isolation {
    type Err = String;

    fn from_str(text: &str) -> Result<Isolation, String> {
        let found = Isolation::ALL.iter().find(|(name, _)| *name == text);
        found.map(|(_, isolation)| *isolation).ok_or_else(|| {
            let names: Vec<&str> = Isolation::ALL.iter().map(|(name, _)| *name).collect();
            format!("isolation `{text}` does not exist: it is one of {}", names.join(", "))
        })
    }
}
