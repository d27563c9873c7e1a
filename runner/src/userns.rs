//! Hides how kiln's own process gets into a user namespace, and why it could not.
//!
//! kiln stays the process that it was: it forks a child that stays outside, leaves its user namespace itself, and has the child give
//! the new one its ids, by newuidmap(1) and newgidmap(1), which may do that, or by its own rights as a container's root. Whether
//! namespaces and mounts are possible at all is found out by another child, which is thrown away: a process that has left its
//! namespace can't come back.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use rustix::thread::{CapabilitySet, UnshareFlags};
use serde::{Deserialize, Serialize};

use crate::error::RunError;
use crate::idmap::{IdMaps, granted, map_arguments, map_text, parse_map, user_name};
use crate::mode::{Isolation, Mode};
use crate::obstacle::{Facts, Obstacle, Stage, explain};
use crate::sys::{self, Fork};
use crate::wire;

/// What [`enter`] is told by whoever calls it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wish {
    /// Which way is wanted.
    pub isolation: Isolation,
    /// `PATH`, in which newuidmap(1) is looked up before the usual places.
    pub path: OsString,
    /// The user's name, for users that stand in no `/etc/passwd`.
    pub user: Option<String>,
    /// Whether this process is known to run in a container.
    pub in_container: bool,
}

/// As what this process goes on, after [`enter`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entered {
    /// The way in which sandboxes will be made.
    pub mode: Mode,
    /// The ids that files can belong to, from here and from outside of the user namespace.
    pub ids: IdMaps,
    /// Whether the user of this process was root before.
    pub was_root: bool,
    /// The user's id before.
    pub uid: u32,
    /// The capabilities that this process could use before, one bit each.
    pub capabilities: u64,
    /// How many user namespaces could be made before (`user.max_user_namespaces`); `None` where the kernel has none.
    pub most_namespaces: Option<u64>,
    /// The better ways that were tried or looked at before.
    pub refused: Vec<Refusal>,
    /// Whether commands get huge pages, which this process now does without.
    pub huge_pages: bool,
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
        let uid = rustix::process::geteuid();
        Entered {
            mode: Mode::Unavailable { reason, remedy: String::new() },
            ids: IdMaps::default(),
            was_root: uid.is_root(),
            uid: uid.as_raw(),
            capabilities: 0,
            most_namespaces: None,
            refused: Vec::new(),
            huge_pages: false,
        }
    }
}

/// Sees to it that the kernel clears memory by the page for this process and the supervisors that it starts, and not two megabytes
/// at the first touch of each allocator's arena: that was a sixth of a build of which all is cached, and 3 % of each step. Answers
/// whether that is a change.
fn give_up_huge_pages() -> bool {
    matches!(rustix::thread::transparent_huge_pages_are_disabled(), Ok(false))
        && rustix::thread::disable_transparent_huge_pages(true).is_ok()
}

impl Entered {
    /// Whether files can belong to others than the user of this process.
    pub fn may_give_files_away(&self) -> bool {
        let is_root_here = CapabilitySet::from_bits_retain(self.capabilities).contains(CapabilitySet::CHOWN);
        (is_root_here || self.mode.is_available()) && self.ids.count_users() > 1
    }
}

/// Decides how sandboxes are made and brings this process to where it can make them: as an ordinary user, into a user namespace
/// in which it is root. Has to be called while the process has one thread, by every command that opens a store, for the owners of
/// files are what the namespace says.
///
/// From here on this process has no huge pages (its sandboxes' commands have them, if it had).
///
/// # Errors
/// When `wish` asks for a way that can't be gone here. Without a wish there is always an answer, which may be
/// [`Mode::Unavailable`].
pub fn enter(wish: &Wish) -> Result<Entered, RunError> {
    let isolation = wish.isolation;
    let huge_pages = give_up_huge_pages();
    let uid = rustix::process::geteuid();
    let was_root = uid.is_root();
    let capabilities = rustix::thread::capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    let most = fs::read_to_string("/proc/sys/user/max_user_namespaces");
    let most_namespaces = most.ok().and_then(|text| text.trim().parse().ok());
    let may_mount = capabilities.contains(CapabilitySet::SYS_ADMIN);
    let mut refused = Vec::new();
    let mut refuse = |mode, (reason, remedy)| refused.push(Refusal { mode, reason, remedy });
    let wants = |isolation_of_mode| isolation == Isolation::Default || isolation == isolation_of_mode;

    let mut found = None;
    if isolation == Isolation::Chroot {
        match was_root {
            true => found = Some(Mode::Chroot),
            false => {
                refuse(Mode::Chroot, ("it needs root, and kiln is not running as root".to_owned(), "run kiln as root".to_owned()))
            }
        }
    }
    if wants(Isolation::Root) {
        match is_root_of_machine(was_root, may_mount) {
            Ok(()) => found = Some(Mode::Root),
            Err(why) => refuse(Mode::Root, why),
        }
    }
    let other = [Isolation::Default, Isolation::Rootless, Isolation::OneId].contains(&isolation);
    if found.is_none() && other && was_root && may_mount && !in_first_namespace() && isolation != Isolation::OneId {
        // The container is a user namespace of its own, which serves as well as another one.
        found = Some(Mode::Nested);
    }
    if found.is_none() && other {
        match try_namespaces()? {
            Ok(()) => {
                let (mode, more) = change_namespace(wish, was_root)?;
                more.into_iter().for_each(|(mode, why)| refuse(mode, why));
                found = mode;
            }
            Err(obstacle) => {
                let modes = if was_root { vec![Mode::Nested] } else { vec![Mode::SubIds, Mode::OneId] };
                let why = explain(&obstacle, &Facts::read(wish.in_container));
                modes.into_iter().for_each(|mode| refuse(mode, why.clone()));
            }
        }
    }
    let mode = match (found, isolation) {
        (Some(mode), _) => mode,
        (None, Isolation::Default) => {
            // What stood last in the way of the last resort is what to change.
            let last = refused.last();
            let (reason, remedy) = last.map_or_else(Default::default, |last| (last.reason.clone(), last.remedy.clone()));
            Mode::Unavailable { reason, remedy }
        }
        (None, _) => {
            let last = refused.last();
            let (reason, remedy) = last.map_or_else(Default::default, |last| (last.reason.clone(), last.remedy.clone()));
            return Err(RunError::Unavailable { reason: format!("`--isolation={}`: {reason}", isolation.name()), remedy });
        }
    };
    Ok(Entered {
        mode,
        ids: own_ids(),
        was_root,
        uid: uid.as_raw(),
        capabilities: capabilities.bits(),
        most_namespaces,
        refused,
        huge_pages,
    })
}

/// The map of the user namespace that this process is in.
fn own_ids() -> IdMaps {
    let read = |file: &str| parse_map(&fs::read_to_string(file).unwrap_or_default());
    IdMaps { users: read("/proc/self/uid_map"), groups: read("/proc/self/gid_map") }
}

/// Whether this process is in the machine's first user namespace, by its number, which never changes (linux/proc_ns.h).
fn in_first_namespace() -> bool {
    fs::metadata("/proc/self/ns/user").is_ok_and(|namespace| namespace.ino() == 0xEFFF_FFFD)
}

fn is_root_of_machine(is_root: bool, may_mount: bool) -> Result<(), (String, String)> {
    if !is_root {
        return Err(("kiln is not running as root".to_owned(), "run kiln as root".to_owned()));
    }
    if !may_mount {
        return Err((
            "root has no CAP_SYS_ADMIN here".to_owned(),
            "start the container with `--privileged`, or kiln outside of it".to_owned(),
        ));
    }
    if !in_first_namespace() {
        return Err((
            "root is root of a user namespace only, not of the machine".to_owned(),
            "start kiln outside of the user namespace".to_owned(),
        ));
    }
    Ok(())
}

/// Makes namespaces and a mount in a child that ends with them.
fn try_namespaces() -> Result<Result<(), Obstacle>, RunError> {
    let other = |error: io::Error| failed(Stage::Unshare, &error);
    let forked = pipe().and_then(|pipe| Ok((pipe, sys::fork_here()?)));
    let ((mut from_child, to_parent), fork) = match forked {
        Ok(forked) => forked,
        Err(error) => return Ok(Err(other(error))),
    };
    match fork {
        Fork::Child => {
            drop(from_child);
            let _ = wire::send(&mut File::from(to_parent), &namespaces_and_mount());
            crate::leave(0)
        }
        Fork::Parent { pid, .. } => {
            drop(to_parent);
            let said = wire::receive::<Result<(), Obstacle>>(&mut from_child);
            let signal = reap(pid).and_then(|status| status.terminating_signal());
            match said {
                Ok(Some(said)) => Ok(said),
                // A filter may kill instead of refusing, and does it by this signal.
                Ok(None) if signal.is_none_or(|signal| signal == Signal::SYS.as_raw()) => {
                    Ok(Err(Obstacle { stage: Stage::Unshare, errno: Errno::PERM.raw_os_error() }))
                }
                Ok(None) => Err(passing("the process that tries what this host allows was killed".to_owned())),
                Err(error) => Ok(Err(other(error))),
            }
        }
    }
}

fn namespaces_and_mount() -> Result<(), Obstacle> {
    sys::unshare(NAMESPACES).map_err(|error| failed(Stage::Unshare, &error))?;
    let mount = || {
        let tmpfs = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_create(&tmpfs)?;
        rustix::mount::fsmount(&tmpfs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
    };
    mount().map(drop).map_err(|errno| failed(Stage::Mount, &errno.into()))
}

/// The mounts of kiln itself change hands with its user, or it could not copy any.
const NAMESPACES: UnshareFlags = UnshareFlags::NEWUSER.union(UnshareFlags::NEWNS);

fn failed(stage: Stage, error: &io::Error) -> Obstacle {
    Obstacle { stage, errno: error.raw_os_error().unwrap_or(libc::EIO) }
}

/// How a user namespace gets its ids, seen from outside.
#[derive(Debug)]
enum Grant {
    /// By the programs that may give what `/etc/subuid` and `/etc/subgid` say.
    Helpers { users: PathBuf, groups: PathBuf, ids: IdMaps },
    /// By writing all ids of a container.
    All(IdMaps),
    /// By writing one.
    One,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Granted {
    /// All that was asked for.
    Whole,
    /// One id of each kind, and why not more.
    One { said: String },
    /// Users, but of the groups only one, and why.
    Half { said: String },
    /// Nothing.
    Nothing { errno: i32 },
    /// The child, or a program of its, was killed or lacked something for a moment: that tells nothing about this host.
    Lost { said: String },
}

/// What each mode that was given up has to say.
type Refusals = Vec<(Mode, (String, String))>;

/// Leaves this process's user namespace for one with as many ids as can be had.
fn change_namespace(wish: &Wish, is_root: bool) -> Result<(Option<Mode>, Refusals), RunError> {
    let (isolation, facts) = (wish.isolation, || Facts::read(wish.in_container));
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let mut refused = Refusals::new();
    let best = if is_root { Mode::Nested } else { Mode::SubIds };
    let grant = match (isolation, is_root) {
        (Isolation::OneId, _) => Grant::One,
        (_, true) => Grant::All(own_ids().identity()),
        (_, false) => match helpers(wish, uid, gid) {
            Ok(grant) => grant,
            Err(why) => {
                refused.push((best.clone(), why));
                if isolation != Isolation::Default {
                    return Ok((None, refused));
                }
                Grant::One
            }
        },
    };
    let whole = if matches!(grant, Grant::One) { Mode::OneId } else { best.clone() };
    let one = IdMaps::one(uid, gid);
    let granted = match leave_namespace(&grant, &one) {
        Ok(granted) => granted,
        Err(obstacle) => {
            refused.push((whole, explain(&obstacle, &facts())));
            return Ok((None, refused));
        }
    };
    let (said, halved) = match granted {
        Granted::Whole => return Ok((Some(whole), refused)),
        Granted::One { said } => (said, false),
        Granted::Half { said } => (said, true),
        Granted::Lost { said } => return Err(passing(format!("the user namespace got no ids: {said}"))),
        Granted::Nothing { errno } => {
            refused.push((whole, explain(&Obstacle { stage: Stage::Map, errno }, &facts())));
            return Ok((None, refused));
        }
    };
    refused.push((best, (said, not_granted(wish, is_root, uid))));
    // Groups without users, or the other way round, are no mode of their own.
    let made = match halved {
        true => sys::unshare(NAMESPACES).and_then(|()| write_maps(Path::new("/proc/self"), &IdMaps::one(0, 0))),
        false => Ok(()),
    };
    Ok(match made {
        Ok(()) if isolation == Isolation::Default => (Some(Mode::OneId), refused),
        Ok(()) => (None, refused),
        Err(error) => {
            refused.push((Mode::OneId, explain(&failed(Stage::Map, &error), &facts())));
            (None, refused)
        }
    })
}

/// No mode is chosen on the word of a process that could not speak, or that lacked what it will have the next time: another mode has
/// another store, which would look empty.
fn passing(reason: String) -> RunError {
    RunError::Unavailable { reason, remedy: "run kiln again".to_owned() }
}

fn not_granted(wish: &Wish, is_root: bool, uid: u32) -> String {
    match is_root {
        true => "start the container with the capabilities SETUID, SETGID and SETFCAP".to_owned(),
        false => add_ids(wish, uid),
    }
}

fn add_ids(wish: &Wish, uid: u32) -> String {
    let name = name_of(wish, uid).unwrap_or_else(|| format!("'#{uid}'"));
    format!(
        "have root run `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {name}` (with ids that nobody else has)"
    )
}

fn name_of(wish: &Wish, uid: u32) -> Option<String> {
    let named = user_name(&fs::read_to_string("/etc/passwd").unwrap_or_default(), uid);
    // Users of a directory service stand in no file.
    named.or_else(|| wish.user.clone())
}

/// How many ids besides the own one the files give to the user, and to the user's group.
pub(crate) fn given(wish: &Wish, entered: &Entered) -> (u64, u64) {
    let name = name_of(wish, entered.uid);
    let count = |file: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let ranges = granted(&text, name.as_deref(), entered.uid, entered.uid);
        ranges.iter().skip(1).map(|range| u64::from(range.count)).sum()
    };
    (count("/etc/subuid"), count("/etc/subgid"))
}

pub(crate) fn find_program(wish: &Wish, program: &str) -> Option<PathBuf> {
    let folders = std::env::split_paths(&wish.path).chain(["/usr/bin", "/usr/local/bin", "/bin"].map(PathBuf::from));
    crate::survey::first_file(folders, program)
}

/// The programs that give ids, and what they will give.
fn helpers(wish: &Wish, uid: u32, gid: u32) -> Result<Grant, (String, String)> {
    let name = name_of(wish, uid);
    let mut missing = Vec::new();
    let mut read = |file: &'static str, own| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let ranges = granted(&text, name.as_deref(), uid, own);
        if ranges.is_empty() {
            missing.push(file);
        }
        ranges
    };
    let ids = IdMaps { users: read("/etc/subuid", uid), groups: read("/etc/subgid", gid) };
    if !missing.is_empty() {
        let who = name.unwrap_or_else(|| uid.to_string());
        return Err((format!("{} gives no ids to {who}", missing.join(" and ")), add_ids(wish, uid)));
    }
    match (find_program(wish, "newuidmap"), find_program(wish, "newgidmap")) {
        (Some(users), Some(groups)) => Ok(Grant::Helpers { users, groups, ids }),
        _ => Err((
            "newuidmap and newgidmap are not installed".to_owned(),
            "have root install them (Debian and Ubuntu: `apt install uidmap`; Fedora: `dnf install shadow-utils`; Alpine: `apk add \
             shadow-uidmap`)"
                .to_owned(),
        )),
    }
}

/// Makes the namespaces, and has a child outside give them their ids.
fn leave_namespace(grant: &Grant, one: &IdMaps) -> Result<Granted, Obstacle> {
    let here = |error: io::Error| failed(Stage::Unshare, &error);
    if matches!(grant, Grant::One) {
        sys::unshare(NAMESPACES).map_err(here)?;
        return write_maps(Path::new("/proc/self"), one).map(|()| Granted::Whole).map_err(|error| failed(Stage::Map, &error));
    }
    // The number by which the proc file system knows this process.
    let process = fs::read_link("/proc/self").map_err(here)?;
    let process = process.to_string_lossy().into_owned();
    let (mut from_child, to_parent) = pipe().map_err(here)?;
    let (mut from_parent, to_child) = pipe().map_err(here)?;
    match sys::fork_here().map_err(here)? {
        Fork::Child => {
            drop((from_child, to_child));
            let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
            let mut go = [0];
            if from_parent.read_exact(&mut go).is_ok() {
                let _ = wire::send(&mut File::from(to_parent), &give(&process, grant, one));
            }
            crate::leave(0)
        }
        Fork::Parent { pid, .. } => {
            drop((to_parent, from_parent));
            let left = sys::unshare(NAMESPACES).map_err(here);
            let mut to_child = File::from(to_child);
            if left.is_ok() {
                let _ = to_child.write_all(&[1]);
            }
            drop(to_child);
            let said = wire::receive::<Granted>(&mut from_child);
            reap(pid);
            left?;
            Ok(said.ok().flatten().unwrap_or_else(|| Granted::Lost { said: "the process that gives them was killed".to_owned() }))
        }
    }
}

/// Gives the namespace of `process` its ids, from outside of it.
fn give(process: &str, grant: &Grant, one: &IdMaps) -> Granted {
    let folder = Path::new("/proc").join(process);
    match grant {
        Grant::Helpers { users, groups, ids } => {
            // Side by side, for each takes a millisecond.
            let users = start(users, process, &map_arguments(&ids.users));
            let groups = start(groups, process, &map_arguments(&ids.groups));
            let (users, groups) = (finish(users), finish(groups));
            let passing = [&users, &groups].into_iter().find_map(|done| done.as_ref().err().filter(|not_given| not_given.passes));
            if let Some(not_given) = passing {
                return Granted::Lost { said: not_given.said.clone() };
            }
            let words = |done: Result<(), NotGiven>| done.map_err(|not_given| not_given.said);
            match (words(users), words(groups)) {
                (Ok(()), Ok(())) => Granted::Whole,
                (Err(said), Err(_)) => match write_maps(&folder, one) {
                    Ok(()) => Granted::One { said },
                    Err(error) => Granted::Nothing { errno: error.raw_os_error().unwrap_or(libc::EPERM) },
                },
                (Err(said), Ok(())) => half(fs::write(folder.join("uid_map"), map_text(&one.users)), said),
                (Ok(()), Err(said)) => half(write_groups(&folder, one), said),
            }
        }
        Grant::All(ids) => match write_all(&folder, ids) {
            Ok(()) => Granted::Whole,
            Err(error) => match write_maps(&folder, one) {
                Ok(()) => Granted::One { said: format!("root may not give ids to a user namespace ({error})") },
                Err(error) => Granted::Nothing { errno: error.raw_os_error().unwrap_or(libc::EPERM) },
            },
        },
        Grant::One => match write_maps(&folder, one) {
            Ok(()) => Granted::Whole,
            Err(error) => Granted::Nothing { errno: error.raw_os_error().unwrap_or(libc::EPERM) },
        },
    }
}

fn half(written: io::Result<()>, said: String) -> Granted {
    match written {
        Ok(()) => Granted::Half { said },
        Err(error) => Granted::Nothing { errno: error.raw_os_error().unwrap_or(libc::EPERM) },
    }
}

/// Why a program that gives ids did not.
struct NotGiven {
    said: String,
    /// It says nothing of the next time: the program was killed, or the machine lacked something.
    passes: bool,
}

/// What a machine lacks for a moment.
const PASSING: [Errno; 7] = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::AGAIN, Errno::INTR, Errno::IO, Errno::NOBUFS];

impl NotGiven {
    fn of(name: &str, error: &io::Error) -> Self {
        let passes = PASSING.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()));
        Self { said: format!("{name} can't be run ({error})"), passes }
    }

    /// By what the program wrote, which ends with the C library's words for an error.
    fn told(name: &str, status: ExitStatus, said: &str) -> Self {
        let said = said.trim().replace('\n', "; ");
        // These are the words of glibc, musl says one of them in another way.
        const WORDS: [&str; 8] = [
            "Too many open files",
            "No file descriptors available",
            "Cannot allocate memory",
            "Out of memory",
            "Resource temporarily unavailable",
            "Interrupted system call",
            "nput/output error",
            "I/O error",
        ];
        let passes = status.signal() == Some(Signal::KILL.as_raw()) || WORDS.iter().any(|words| said.contains(words));
        let said = match (said.is_empty(), passes) {
            (true, _) => format!("{name} failed ({status})"),
            (false, true) => format!("`{name}` failed ({said})"),
            (false, false) => said,
        };
        Self { said, passes }
    }
}

fn start(program: &Path, process: &str, map: &[String]) -> Result<(std::process::Child, String), NotGiven> {
    let name = program.display().to_string();
    let mut command = Command::new(program);
    command.arg(process).args(map).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).env("LC_ALL", "C");
    match command.spawn() {
        Ok(child) => Ok((child, name)),
        Err(error) => Err(NotGiven::of(&name, &error)),
    }
}

fn finish(started: Result<(std::process::Child, String), NotGiven>) -> Result<(), NotGiven> {
    let (child, name) = started?;
    let output = child.wait_with_output().map_err(|error| NotGiven::of(&name, &error))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(NotGiven::told(&name, output.status, &String::from_utf8_lossy(&output.stderr))),
    }
}

/// Writes maps that need rights over the ids.
fn write_all(folder: &Path, ids: &IdMaps) -> io::Result<()> {
    fs::write(folder.join("uid_map"), map_text(&ids.users))?;
    fs::write(folder.join("gid_map"), map_text(&ids.groups))
}

/// Writes maps of one id, which everybody may who gives up setgroups(2).
fn write_maps(folder: &Path, one: &IdMaps) -> io::Result<()> {
    fs::write(folder.join("uid_map"), map_text(&one.users))?;
    write_groups(folder, one)
}

fn write_groups(folder: &Path, one: &IdMaps) -> io::Result<()> {
    fs::write(folder.join("setgroups"), "deny")?;
    fs::write(folder.join("gid_map"), map_text(&one.groups))
}

fn pipe() -> io::Result<(File, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    Ok((File::from(read), write))
}

fn reap(pid: Pid) -> Option<WaitStatus> {
    loop {
        match rustix::process::waitpid(Some(pid), WaitOptions::empty()) {
            Err(Errno::INTR) => {}
            outcome => return outcome.ok().flatten().map(|(_, status)| status),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::ExitStatus;

    use super::NotGiven;

    /// What a machine lacks for a moment chooses no mode; what it will never give does.
    #[test]
    fn what_passes_is_told_from_what_stays() {
        for (status, said, passes) in [
            (256, "newuidmap: open of uid_map failed: Too many open files\n", true),
            (256, "newuidmap: open of uid_map failed: No file descriptors available\n", true),
            (256, "newgidmap: Input/output error", true),
            (9, "", true),
            (256, "newuidmap: write to uid_map failed: Operation not permitted\n", false),
            (256, "newuidmap: uid range [1-65536) -> [100000-165535) not allowed\n", false),
            (256, "", false),
        ] {
            let not_given = NotGiven::told("/usr/bin/newuidmap", ExitStatus::from_raw(status), said);
            assert_eq!(not_given.passes, passes, "{status} {said:?}");
            assert!(!passes || not_given.said.contains("/usr/bin/newuidmap"), "{}", not_given.said);
        }
    }
}
