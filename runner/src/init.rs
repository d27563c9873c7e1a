//! The last moments before the command: hides how a process with all rights becomes one with few.
//!
//! The order matters. The filter is loaded while CAP_SYS_ADMIN is still held, for without `no_new_privs` (sudo has to work) the
//! kernel asks for it; everything that needs a call which the filter refuses comes before that.

use std::ffi::{CString, OsStr, OsString};
use std::io::{self, Read};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, Gid, Uid};

use crate::mount::Sandbox;
use crate::plan::{Command, Plan};
use crate::record::{Handover, TIMER_SLACK};
use crate::seccomp;
use crate::spec::{self, Streams};
use crate::supervise::setup;
use crate::sys;
use crate::user::{Identity, LONGEST_FILE, resolve_user};
use crate::walk::{Links, WalkError, open_inside, walk};
use crate::wire::Failure;

/// Turns this process, the first of its pid namespace, into the command; comes back only with the reason why it could not.
pub(crate) fn become_command(plan: &Plan, sandbox: &mut Sandbox, handover: Option<Handover>) -> Failure {
    match try_become(plan, sandbox, handover) {
        Err(failure) => failure,
        Ok(never) => match never {},
    }
}

enum Never {}

fn try_become(plan: &Plan, sandbox: &mut Sandbox, handover: Option<Handover>) -> Result<Never, Failure> {
    let command = &plan.command;
    for step in &plan.inside {
        sandbox.act(step)?;
    }
    let root = sandbox.root().map_err(|errno| setup("find the root file system", &errno.into()))?;
    let identity = identity(root, &command.user)?;
    // Where owners are recorded, all that the kernel knows is the one id; what is made here is the user's by the record.
    let maker = if handover.is_some() { (0, 0) } else { (identity.uid, identity.gid) };
    let cwd = working_directory(root, &command.cwd, maker)?;
    let purpose = seccomp::Purpose {
        listed: command.filtered,
        recorded: handover.is_some(),
        shown: command.recorder.as_ref().is_some_and(|recorder| recorder.show) && identity.uid == 0,
    };
    let filter = if purpose.listed || purpose.recorded { seccomp::program(purpose) } else { Vec::new() };
    let program = Program::new(command, &identity);

    // While still root: the user may run in a directory that only root can enter, as in a container.
    rustix::process::fchdir(&cwd).map_err(|errno| Failure::WorkingDirectory {
        path: Path::new(&command.cwd).to_owned().into(),
        reason: io::Error::from(errno).to_string(),
    })?;
    check_cwd(&command.cwd)?;
    rustix::process::setsid().map_err(|errno| setup("make a session", &errno.into()))?;
    streams(root, sandbox, command.streams, maker).map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::INVAL) => not_become(&identity, Errno::INVAL),
        _ => setup("hand over the standard streams", &error),
    })?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    // What kiln gave up for itself (`take_over`).
    let _ = sys::huge_pages(true);
    limits(&command.limits, command.processes)?;
    sys::reset_signals();
    if command.no_new_privileges {
        rustix::thread::set_no_new_privs(true).map_err(|errno| setup("set no_new_privs", &errno.into()))?;
    }
    let refused = |error: io::Error| setup("load the system call filter", &error);
    match handover {
        Some(handover) => {
            // From the filter on the supervisor answers, and a change of ids would be one on paper only: so it comes before.
            if identity.uid != 0 || identity.gid != 0 {
                appear_as(&identity)?;
            }
            bounding_set(command.capabilities).map_err(|errno| setup("drop capabilities", &errno.into()))?;
            capabilities(command.capabilities, identity.uid).map_err(|errno| setup("set capabilities", &errno.into()))?;
            let slack = std::num::NonZeroU64::new(TIMER_SLACK);
            rustix::thread::set_current_timer_slack(slack).map_err(|errno| setup("set the timer slack", &errno.into()))?;
            let listener = sys::load_filter_with_listener(&filter).map_err(refused)?;
            handover.send(listener, &identity).map_err(|errno| setup("hand the filter's listener over", &errno.into()))?;
        }
        None => {
            match command.filtered.then(|| sys::load_filter(&filter)) {
                // It takes CAP_SYS_ADMIN, which a container without mounts doesn't have: its own filter is there already.
                Some(Err(error)) if plan.in_place && error.kind() == io::ErrorKind::PermissionDenied => {}
                loaded => loaded.transpose().map(drop).map_err(refused)?,
            }
            match bounding_set(command.capabilities) {
                // Without CAP_SETPCAP.
                Err(Errno::PERM) if plan.in_place => {}
                dropped => dropped.map_err(|errno| setup("drop capabilities", &errno.into()))?,
            }
            become_user(&identity).map_err(|errno| not_become(&identity, errno))?;
            capabilities(command.capabilities, identity.uid).map_err(|errno| setup("set capabilities", &errno.into()))?;
        }
    }
    if plan.in_place {
        // Last, for a change of ids takes it away.
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
            .map_err(|errno| setup("follow the supervisor", &errno.into()))?;
    }
    sys::close_on_exec_from(3).map_err(|error| setup("close descriptors", &error))?;
    Err(program.exec())
}

fn identity(root: BorrowedFd<'_>, user: &str) -> Result<Identity, Failure> {
    let read = |path: &str| read_file(root, path).map_err(|errno| setup(&format!("read `{path}` of the image"), &errno.into()));
    resolve_user(user, &read("/etc/passwd")?, &read("/etc/group")?).map_err(Failure::User)
}

/// The beginning of a regular file of the image; empty when there is none. Anything else in its place could block for ever
/// (CVE-2024-9676), so that it counts as none.
fn read_file(root: BorrowedFd<'_>, path: &str) -> Result<Vec<u8>, Errno> {
    let fd = match open_inside(root, Path::new(path), OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY) {
        Ok(fd) => fd,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ACCESS | Errno::NXIO) => return Ok(Vec::new()),
        Err(errno) => return Err(errno),
    };
    if FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) != FileType::RegularFile {
        return Ok(Vec::new());
    }
    let mut bytes = Vec::new();
    std::fs::File::from(fd)
        .take(LONGEST_FILE)
        .read_to_end(&mut bytes)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    Ok(bytes)
}

/// Opens the working directory, made when it is missing.
fn working_directory(root: BorrowedFd<'_>, cwd: &OsStr, (uid, gid): (u32, u32)) -> Result<OwnedFd, Failure> {
    let failed = |reason: String| Failure::WorkingDirectory { path: Path::new(cwd).to_owned().into(), reason };
    // Follows no magic link, so that no descriptor of kiln's, as `/proc/self/fd/7` would be, can be entered (CVE-2024-21626).
    let open = || open_inside(root, Path::new(cwd), OFlags::PATH | OFlags::DIRECTORY);
    match open() {
        Ok(fd) => return Ok(fd),
        Err(Errno::NOENT) => {}
        Err(Errno::LOOP) => return Err(failed("it leads through a magic link or too many symbolic links".to_owned())),
        Err(errno) => return Err(failed(io::Error::from(errno).to_string())),
    }
    let mut place = walk(root, Path::new(cwd), Links::Follow).map_err(|error| match error {
        WalkError::Blocked { path, reason } => failed(format!("`{}`: {reason}", path.display())),
        WalkError::System(errno) => failed(io::Error::from(errno).to_string()),
    })?;
    while let Some(name) = place.missing().first().cloned() {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        let made = rustix::fs::mkdirat(place.directory(), &name, Mode::from_raw_mode(0o755))
            .and_then(|()| rustix::fs::chownat(place.directory(), &name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW))
            .and_then(|()| crate::walk::open_directory(place.directory(), &name));
        place.made_directory(made.map_err(|errno| failed(io::Error::from(errno).to_string()))?);
    }
    open().map_err(|errno| failed(io::Error::from(errno).to_string()))
}

/// After entering it: is the working directory one that exists below the root?
fn check_cwd(cwd: &OsStr) -> Result<(), Failure> {
    let inside = rustix::process::getcwd(Vec::new()).is_ok_and(|path| path.as_bytes().starts_with(b"/"));
    if inside {
        return Ok(());
    }
    Err(Failure::WorkingDirectory { path: Path::new(cwd).to_owned().into(), reason: "it is outside of the root".to_owned() })
}

/// Gives the command its standard input, output and error.
fn streams(root: BorrowedFd<'_>, sandbox: &Sandbox, streams: Streams, (uid, _): (u32, u32)) -> io::Result<()> {
    if let Some(terminal) = &sandbox.terminal {
        let slave = &terminal.slave;
        rustix::process::ioctl_tiocsctty(slave)?;
        // So that programs can open `/dev/tty` and their own terminal's name. Where the kernel knows no such owner, it stays as it is.
        let _ = rustix::fs::fchown(slave, Some(Uid::from_raw(uid)), None);
        rustix::stdio::dup2_stdin(slave)?;
        rustix::stdio::dup2_stdout(slave)?;
        rustix::stdio::dup2_stderr(slave)?;
        return Ok(());
    }
    let null = open_inside(root, Path::new("/dev/null"), OFlags::RDONLY)?;
    rustix::stdio::dup2_stdin(sandbox.input.as_ref().unwrap_or(&null))?;
    // Those that kiln made belong to the user, who may open them again as `/dev/stdout`; the owner of others is not ours to change.
    if streams == Streams::Captured {
        for stream in [rustix::stdio::stdout(), rustix::stdio::stderr()] {
            rustix::fs::fchown(stream, Some(Uid::from_raw(uid)), None)?;
        }
    }
    Ok(())
}

/// Those that are asked for; else open files as Docker has them, no core dumps, never above what the caller may have.
fn limits(asked: &[(spec::Resource, Option<u64>, Option<u64>)], processes: Option<u64>) -> Result<(), Failure> {
    for (resource, soft, hard) in asked {
        let limit = Rlimit { current: *soft, maximum: *hard };
        let failed = |errno: Errno| setup(&format!("set the limit of `{}`", resource.name()), &errno.into());
        rustix::process::setrlimit(number_of(*resource), limit).map_err(failed)?;
    }
    let usual = [(Resource::Nofile, 1024, 1_048_576), (Resource::Core, 0, 0)];
    for (resource, soft, hard) in usual.into_iter().chain(processes.map(|most| (Resource::Nproc, most, most))) {
        // A hard limit that was lowered can't be raised again.
        if asked.iter().any(|(asked, ..)| number_of(*asked) == resource) {
            continue;
        }
        let now = rustix::process::getrlimit(resource);
        let hard = now.maximum.map_or(hard, |maximum| maximum.min(hard));
        // Lowering a limit is always allowed.
        let _ = rustix::process::setrlimit(resource, Rlimit { current: Some(soft.min(hard)), maximum: Some(hard) });
    }
    Ok(())
}

fn number_of(resource: spec::Resource) -> Resource {
    match resource {
        spec::Resource::Core => Resource::Core,
        spec::Resource::Cpu => Resource::Cpu,
        spec::Resource::Data => Resource::Data,
        spec::Resource::Fsize => Resource::Fsize,
        spec::Resource::Locks => Resource::Locks,
        spec::Resource::Memlock => Resource::Memlock,
        spec::Resource::Msgqueue => Resource::Msgqueue,
        spec::Resource::Nice => Resource::Nice,
        spec::Resource::Nofile => Resource::Nofile,
        spec::Resource::Nproc => Resource::Nproc,
        spec::Resource::Rss => Resource::Rss,
        spec::Resource::Rtprio => Resource::Rtprio,
        spec::Resource::Rttime => Resource::Rttime,
        spec::Resource::Sigpending => Resource::Sigpending,
        spec::Resource::Stack => Resource::Stack,
    }
}

/// Leaves only `keep` in what any later program can have.
fn bounding_set(keep: u64) -> Result<(), Errno> {
    for number in 0..64 {
        let one = CapabilitySet::from_bits_retain(1 << number);
        if keep & (1 << number) != 0 {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(one) {
            Ok(()) => {}
            // Past the last one that this kernel knows.
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(errno),
        }
    }
    match rustix::thread::clear_ambient_capability_set() {
        Err(errno) if errno != Errno::INVAL => Err(errno),
        _ => Ok(()),
    }
}

/// Makes the one id that there is appear as the user's, by a user namespace inside of which it has no other name.
fn appear_as(identity: &Identity) -> Result<(), Failure> {
    let failed = |error: io::Error| setup("make a user namespace for the user", &error);
    sys::unshare(rustix::thread::UnshareFlags::NEWUSER).map_err(failed)?;
    let maps = [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("{} 0 1", identity.uid)),
        ("gid_map", format!("{} 0 1", identity.gid)),
    ];
    for (file, text) in maps {
        std::fs::write(Path::new("/proc/self").join(file), text).map_err(failed)?;
    }
    Ok(())
}

fn not_become(identity: &Identity, errno: Errno) -> Failure {
    let Identity { uid, gid, .. } = identity;
    // setresuid(2): "not valid in this user namespace".
    let why = if errno == Errno::INVAL { ", who has no id in kiln's user namespace" } else { "" };
    setup(&format!("become the user {uid}:{gid}{why}"), &errno.into())
}

fn become_user(identity: &Identity) -> Result<(), Errno> {
    let groups: Vec<Gid> = identity.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    rustix::thread::set_thread_groups(&groups)?;
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)
}

/// For root the kept ones are permitted and effective; another user has none. Nothing is inheritable (CVE-2022-24769).
fn capabilities(keep: u64, uid: u32) -> Result<(), Errno> {
    let held = match uid {
        // A container's root may have fewer than the usual ones.
        0 => rustix::thread::capabilities(None)?.permitted & CapabilitySet::from_bits_retain(keep),
        _ => CapabilitySet::empty(),
    };
    let sets = CapabilitySets { effective: held, permitted: held, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets)
}

/// The command in the form that exec takes.
struct Program {
    name: OsString,
    args: Vec<CString>,
    env: Vec<CString>,
    /// `PATH`, to look a name without slash up in.
    path: OsString,
}

impl Program {
    fn new(command: &Command, identity: &Identity) -> Program {
        // `plan` has refused zero bytes.
        let c_string = |bytes: &[u8]| CString::new(bytes).unwrap_or_default();
        let mut env: Vec<CString> = Vec::with_capacity(command.env.len() + 1);
        let mut path = OsString::new();
        let mut home_is_set = false;
        for (name, value) in &command.env {
            if name == "HOME" && value.is_empty() {
                continue;
            }
            home_is_set |= name == "HOME";
            if name == "PATH" {
                path.clone_from(value);
            }
            env.push(c_string(&[name.as_bytes(), b"=", value.as_bytes()].concat()));
        }
        if !home_is_set {
            env.push(c_string(&[b"HOME=", identity.home.as_slice()].concat()));
        }
        let args: Vec<CString> = command.args.iter().map(|arg| c_string(arg.as_bytes())).collect();
        let name = command.args.first().cloned().unwrap_or_default();
        Program { name, args, env, path }
    }

    fn exec(&self) -> Failure {
        let name = self.name.as_bytes();
        let shown = self.name.to_string_lossy().into_owned();
        if name.contains(&b'/') {
            return match self.exec_at(name) {
                Errno::NOENT if rustix::fs::stat(self.name.as_os_str()).is_err() => {
                    Failure::ProgramNotFound { program: shown, in_path: false }
                }
                errno => Failure::Exec { program: shown, errno: errno.raw_os_error() },
            };
        }
        let mut refused = None;
        for directory in self.path.as_bytes().split(|byte| *byte == b':') {
            // An empty or relative entry means the working directory, from which a program is not to be taken unasked (as in runc).
            if name.is_empty() || !directory.starts_with(b"/") {
                continue;
            }
            let candidate = [directory, b"/", name].concat();
            match self.exec_at(&candidate) {
                Errno::NOENT | Errno::NOTDIR if rustix::fs::stat(OsStr::from_bytes(&candidate)).is_err() => {}
                Errno::ACCESS => refused = Some(Errno::ACCESS),
                errno => return Failure::Exec { program: shown, errno: errno.raw_os_error() },
            }
        }
        match refused {
            Some(errno) => Failure::Exec { program: shown, errno: errno.raw_os_error() },
            None => Failure::ProgramNotFound { program: shown, in_path: true },
        }
    }

    fn exec_at(&self, path: &[u8]) -> Errno {
        let Ok(path) = CString::new(path) else { return Errno::INVAL };
        Errno::from_io_error(&sys::exec(&path, &self.args, &self.env)).unwrap_or(Errno::IO)
    }
}
