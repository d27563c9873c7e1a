//! The system calls of which the supervisor is told where a run's owners are recorded: hides their numbers.

use super::table::TABLE;
use super::{Architecture, Purpose};

/// A call that is answered by the supervisor, or let through after it looked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is the call of that name")]
pub(crate) enum Call {
    Chown,
    Lchown,
    Fchown,
    Fchownat,
    Mknod,
    Mknodat,
    Open,
    Creat,
    Openat,
    Openat2,
    Mkdir,
    Mkdirat,
    Symlink,
    Symlinkat,
    Set(Change),
    Setgroups,
    Get(Question),
    Getgroups,
    Prctl,
    Stat,
    Lstat,
    Fstat,
    Newfstatat,
    Statx,
}

impl Call {
    /// Whether it asks what a file is.
    pub(super) fn is_status(self) -> bool {
        matches!(self, Call::Stat | Call::Lstat | Call::Fstat | Call::Newfstatat | Call::Statx)
    }
}

/// A change of the process's own ids, of users or of groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) of: Kind,
    pub(crate) how: How,
}

/// A question for the process's own ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Question {
    pub(crate) of: Kind,
    pub(crate) what: What,
}

/// Of what an id is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    User,
    Group,
}

/// `setuid`, `setreuid`, `setresuid` and `setfsuid`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    Plain,
    Two,
    Three,
    FileSystem,
}

/// `getuid`, `geteuid` and `getresuid`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    Real,
    Effective,
    Three,
}

/// Of which of a call's numbers the supervisor is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    Always,
    /// When the argument of this index creates a file.
    Creates(u32),
    /// When the first argument, of `prctl`, is about capabilities that are kept without being root, or about the timer slack.
    Keeps,
}

use {Kind::Group, Kind::User, What::Effective, What::Real};

const fn set(of: Kind, how: How) -> Call {
    Call::Set(Change { of, how })
}

const fn get(of: Kind, what: What) -> Call {
    Call::Get(Question { of, what })
}

/// By the name in [`TABLE`]; on 32-bit x86 those with `32` at their end as well.
#[rustfmt::skip]
const NOTIFIED: &[(&str, When, Call)] = &[
    ("chown", When::Always, Call::Chown),
    ("lchown", When::Always, Call::Lchown),
    ("fchown", When::Always, Call::Fchown),
    ("fchownat", When::Always, Call::Fchownat),
    ("mknod", When::Always, Call::Mknod),
    ("mknodat", When::Always, Call::Mknodat),
    ("open", When::Creates(1), Call::Open),
    ("creat", When::Always, Call::Creat),
    ("openat", When::Creates(2), Call::Openat),
    ("openat2", When::Always, Call::Openat2),
    ("mkdir", When::Always, Call::Mkdir),
    ("mkdirat", When::Always, Call::Mkdirat),
    ("symlink", When::Always, Call::Symlink),
    ("symlinkat", When::Always, Call::Symlinkat),
    ("setuid", When::Always, set(User, How::Plain)),
    ("setreuid", When::Always, set(User, How::Two)),
    ("setresuid", When::Always, set(User, How::Three)),
    ("setfsuid", When::Always, set(User, How::FileSystem)),
    ("setgid", When::Always, set(Group, How::Plain)),
    ("setregid", When::Always, set(Group, How::Two)),
    ("setresgid", When::Always, set(Group, How::Three)),
    ("setfsgid", When::Always, set(Group, How::FileSystem)),
    ("setgroups", When::Always, Call::Setgroups),
    ("getuid", When::Always, get(User, Real)),
    ("geteuid", When::Always, get(User, Effective)),
    ("getresuid", When::Always, get(User, What::Three)),
    ("getgid", When::Always, get(Group, Real)),
    ("getegid", When::Always, get(Group, Effective)),
    ("getresgid", When::Always, get(Group, What::Three)),
    ("getgroups", When::Always, Call::Getgroups),
    ("prctl", When::Keeps, Call::Prctl),
    ("stat", When::Always, Call::Stat),
    ("fstat", When::Always, Call::Fstat),
    ("lstat", When::Always, Call::Lstat),
    ("newfstatat", When::Always, Call::Newfstatat),
    ("statx", When::Always, Call::Statx),
];

/// Where a name of [`TABLE`] is in the list, and whether it is the later form with ids of 32 bits.
fn find(name: &str) -> Option<(When, Call, bool)> {
    let (plain, wide) = match name.strip_suffix("32") {
        Some(plain) => (plain, true),
        None => (name, false),
    };
    NOTIFIED.iter().find(|(known, ..)| *known == plain).map(|(_, when, call)| (*when, *call, wide))
}

/// When the supervisor is to be told of the call `name`, if ever.
pub(super) fn when(name: &str, purpose: Purpose) -> Option<When> {
    let (when, call, _) = find(name)?;
    (purpose.recorded && (purpose.shown || !call.is_status())).then_some(when)
}

/// The call of this number on this architecture, and whether its ids have 16 bits.
pub(crate) fn call(architecture: u32, number: u32) -> Option<(Call, bool)> {
    let architecture = Architecture::of(architecture)?;
    let row = TABLE.iter().find(|row| u32::try_from((architecture.column)(row)) == Ok(number))?;
    let (_, call, wide) = find(row.0)?;
    // Of a pair, the one without `32` is the older; a call without a pair has the ids of the machine.
    let has_pair = TABLE.iter().any(|other| other.0.strip_suffix("32") == Some(row.0) && (architecture.column)(other) >= 0);
    Some((call, has_pair && !wide))
}
