//! The supervisor: hides the process between kiln and the command.
//!
//! It is kiln's own program, executed again so that it has one thread and may fork. It is process 1 of an outer pid namespace and
//! the command is process 1 of a namespace inside that one. When kiln dies, the kernel kills the supervisor (PDEATHSIG), and with
//! it everything in both namespaces: nothing that the command does, neither `prctl(PR_SET_PDEATHSIG, 0)` nor a set-user-id
//! program, can take it out of that.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions};
use rustix::termios::Winsize;
use rustix::thread::UnshareFlags;
use serde::{Deserialize, Serialize};

use crate::held::Watch;
use crate::init;
use crate::mount::Sandbox;
use crate::network::{self, Waiting};
use crate::plan::{Namespace, Plan, Source, Step};
use crate::reap;
use crate::record::{self, Handover, Preparation, Server};
use crate::sys::{self, Fork};
use crate::walk::open_directory;
use crate::wire::{self, Ending, Failure, Incoming, KILL, Report, SIGNAL, TERMINATE};

/// The name under which the supervisor is executed; `take_over` knows it by that.
pub(crate) const NAME: &str = "kiln-sandbox";

/// What kiln hands to its supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Assignment {
    pub(crate) plan: Plan,
    pub(crate) group: Vec<GroupPlace>,
    /// Rows and columns of the command's terminal.
    pub(crate) window: Option<(u16, u16)>,
    /// Whether the command is to have huge pages, unlike kiln.
    pub(crate) huge_pages: bool,
}

/// Where the command's process joins its control group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum GroupPlace {
    /// Version 1: the `tasks` file.
    Tasks {
        /// Its path.
        file: std::ffi::OsString,
        /// Without it the command is not to run.
        required: bool,
    },
    /// Version 2: the directory.
    Directory {
        /// Its path.
        directory: std::ffi::OsString,
        /// Without it the command is not to run.
        required: bool,
    },
}

/// Is this process a supervisor? Then its standard input is the socket to kiln.
pub(crate) fn is_supervisor() -> bool {
    std::env::args_os().next().is_some_and(|name| name == NAME)
        && rustix::fs::fstat(rustix::stdio::stdin())
            .is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Socket)
}

/// Does the whole work of a supervisor; the result is its exit code.
pub(crate) fn supervise() -> i32 {
    match try_supervise() {
        Ok(()) => 0,
        // kiln is gone or speaks another language: there is nobody to tell.
        Err(_) => 1,
    }
}

fn try_supervise() -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // It was executed by descriptor, so that its name would be a number.
    let _ = rustix::thread::set_name(c"kiln-sandbox");
    let mut kiln = UnixStream::from(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?);
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    // From before the root changes; shows the host's pids.
    let host_proc = open_directory(rustix::fs::CWD, "/proc".as_ref())?;
    let mut descriptors = Vec::new();
    let mut incoming = Incoming { socket: &kiln, descriptors: &mut descriptors };
    let Some(assignment) = wire::receive::<Assignment>(&mut incoming)? else { return Ok(()) };
    let Assignment { plan, group, window, huge_pages } = assignment;
    if huge_pages {
        // Inherited from kiln, and by the command from here.
        let _ = rustix::thread::disable_transparent_huge_pages(false);
    }
    // Had kiln died before the first line above, no signal would come; but then its end of the socket is closed.
    if has_hung_up(&kiln)? {
        return Ok(());
    }
    let _ = rustix::process::setsid();
    rustix::process::umask(Mode::empty());

    let mut sandbox = Sandbox::default();
    sandbox.input = descriptors.pop();
    if plan.in_place {
        // Nothing but this process puts the root directory in order again, so that it must outlive kiln; a closed socket tells it.
        rustix::process::set_parent_process_death_signal(None)?;
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        sys::block_ending_signals()?;
    }
    let report = make_and_watch(&plan, &group, window, &mut sandbox, &mut kiln, &host_proc);
    let restored = if plan.in_place { put_in_order(&mut sandbox, &host_proc) } else { Ok(()) };
    match (report?, restored) {
        (Some(Report::Failed(failure)), _) | (Some(_), Err(failure)) => wire::send(&mut kiln, &Report::Failed(failure)),
        (Some(report), Ok(())) => wire::send(&mut kiln, &report),
        (None, _) => Ok(()),
    }
}

/// Ends what is left of a run without namespaces, and takes everything of kiln's out of its root directory.
fn put_in_order(sandbox: &mut Sandbox, host_proc: &OwnedFd) -> Result<(), Failure> {
    reap::end_all(host_proc.as_fd()).map_err(|errno| setup("find the processes of the command", &errno.into()))?;
    match &mut sandbox.in_place {
        Some(in_place) => in_place.restore().map_err(|errno| setup("put the root directory in order again", &errno.into())),
        None => Ok(()),
    }
}

/// Makes the sandbox and waits for the command; what to report, unless kiln is gone.
fn make_and_watch(
    plan: &Plan,
    group: &[GroupPlace],
    window: Option<(u16, u16)>,
    sandbox: &mut Sandbox,
    kiln: &mut UnixStream,
    host_proc: &OwnedFd,
) -> io::Result<Option<Report>> {
    let mounts = rustix::fs::openat(host_proc, "self/ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let recording = match plan.command.recorder.as_ref().map(|recorder| record::prepare(recorder, host_proc.as_fd())).transpose()
    {
        Ok(recording) => recording,
        Err(errno) => {
            return Ok(Some(Report::Failed(setup("make ready to record owners", &errno.into()))));
        }
    };
    let (preparation, handover) = recording.unzip();
    let made = make(plan, sandbox, host_proc.as_fd());
    if let Some(in_place) = sandbox.in_place.as_ref().filter(|in_place| !in_place.lacks.is_empty()) {
        let lacks = in_place.lacks.join(", ");
        let warning = format!("devices can't be made here, so that the command lacks {lacks} (/dev/null is an ordinary file)");
        wire::send(kiln, &Report::Warned(vec![warning]))?;
    }
    if !sandbox.stubs.is_empty() {
        wire::send(kiln, &Report::Stubs(std::mem::take(&mut sandbox.stubs)))?;
    }
    // A directory that is the root lives on, and so does the overlay of a container around kiln that it may lie on.
    let own = plan.outside.iter().any(|step| matches!(step, Step::Root { source: Source::Overlay(_), .. }));
    let root = match (sandbox.root(), mounts) {
        (Ok(root), Ok(mounts)) if made.is_ok() && own && !plan.in_place => Watch::begin(root, mounts),
        _ => None,
    };
    if let Some(master) = sandbox.terminal.as_mut().and_then(|terminal| terminal.master.take()) {
        if let Some((ws_row, ws_col)) = window {
            let _ = rustix::termios::tcsetwinsize(&master, Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 });
        }
        wire::send_with(kiln, &Report::Terminal, master.as_fd())?;
    }
    let started = made.and_then(|()| start(plan, sandbox, group, handover));
    // The command alone holds its end of what is read and shown, so that the other end learns when it lets go.
    (sandbox.terminal, sandbox.input) = (None, None);
    let report = match started {
        Ok(child) => watch(child, kiln, host_proc, sandbox, preparation)?,
        Err(failure) => Some(Report::Failed(failure)),
    };
    match (report, root) {
        (Some(Report::Ended(Ending::Exited(0))), Some(root)) => {
            drop(std::mem::take(sandbox));
            Ok(Some(if root.ends()? { Report::Ended(Ending::Exited(0)) } else { Report::Failed(Failure::Held) }))
        }
        (report, _) => Ok(report),
    }
}

/// Makes the sandbox as far as that is done from outside.
fn make(plan: &Plan, sandbox: &mut Sandbox, host_proc: BorrowedFd<'_>) -> Result<(), Failure> {
    let uplink = plan.uplink.as_ref().map(|uplink| network::wait(uplink, host_proc)).transpose()?;
    namespaces(&plan.namespaces)?;
    uplink.as_ref().map_or(Ok(()), Waiting::begin)?;
    plan.outside.iter().try_for_each(|step| sandbox.act(step))?;
    uplink.map_or(Ok(()), Waiting::finish)
}

fn has_hung_up(kiln: &UnixStream) -> io::Result<bool> {
    let mut now = [PollFd::new(kiln, PollFlags::empty())];
    rustix::event::poll(&mut now, Some(&rustix::event::Timespec::default()))?;
    Ok(now[0].revents().contains(PollFlags::HUP))
}

fn namespaces(kinds: &[Namespace]) -> Result<(), Failure> {
    // A container's filter may refuse the call even when it is to do nothing.
    if kinds.is_empty() {
        return Ok(());
    }
    let mut flags = UnshareFlags::empty();
    for kind in kinds {
        flags |= match kind {
            Namespace::Mount => UnshareFlags::NEWNS,
            Namespace::Ipc => UnshareFlags::NEWIPC,
            Namespace::Uts => UnshareFlags::NEWUTS,
            Namespace::Net => UnshareFlags::NEWNET,
        };
    }
    sys::unshare(flags).map_err(|error| setup("make namespaces", &error))
}

/// The command's process.
struct Child {
    pid: Pid,
    pidfd: OwnedFd,
    /// Carries why the command could not be started; closed by a successful exec.
    failure: OwnedFd,
}

fn start(plan: &Plan, sandbox: &mut Sandbox, groups: &[GroupPlace], handover: Option<Handover>) -> Result<Child, Failure> {
    let Groups { tasks, directory } = join_groups(groups)?;
    let (failure, failure_end) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|errno| setup("make a pipe", &errno.into()))?;
    let own = !plan.in_place;
    let forked = match sys::fork(directory.as_ref().map(|(fd, _)| fd.as_fd()), own) {
        // An outer container's filter may refuse clone3; then the group is done without.
        Err(_) if directory.as_ref().is_some_and(|(_, required)| !required) => sys::fork(None, own),
        forked => forked,
    };
    match forked.map_err(|error| setup("make a process in a new pid namespace", &error))? {
        Fork::Parent { pid, pidfd } => Ok(Child { pid, pidfd, failure }),
        Fork::Child => {
            drop(failure);
            // "0" is the writer; a lone thread of its own moves without the kernel's global lock.
            let join = |(fd, required): &(OwnedFd, bool)| match rustix::io::write(fd, b"0\n") {
                Err(errno) if *required => Some(setup("join the control group", &errno.into())),
                _ => None,
            };
            let failure = tasks.iter().find_map(join).unwrap_or_else(|| init::become_command(plan, sandbox, handover));
            let _ = wire::send(&mut std::fs::File::from(failure_end), &failure);
            crate::leave(127)
        }
    }
}

/// Groups of version 1 are joined by the process itself, the one of version 2 it is born in; each with whether it has to be.
struct Groups {
    tasks: Vec<(OwnedFd, bool)>,
    directory: Option<(OwnedFd, bool)>,
}

fn join_groups(places: &[GroupPlace]) -> Result<Groups, Failure> {
    let mut groups = Groups { tasks: Vec::new(), directory: None };
    for place in places {
        let (path, flags, required) = match place {
            GroupPlace::Tasks { file, required } => (file, OFlags::WRONLY, *required),
            GroupPlace::Directory { directory, required } => (directory, OFlags::RDONLY | OFlags::DIRECTORY, *required),
        };
        let fd = match rustix::fs::open(path.as_os_str(), flags | OFlags::CLOEXEC, Mode::empty()) {
            Ok(fd) => fd,
            Err(_) if !required => continue,
            Err(errno) => return Err(setup("open the control group", &errno.into())),
        };
        match place {
            GroupPlace::Tasks { .. } => groups.tasks.push((fd, required)),
            GroupPlace::Directory { .. } => groups.directory = Some((fd, required)),
        }
    }
    Ok(groups)
}

/// Waits for the command's end and passes kiln's wishes on. `None` when kiln is gone.
fn watch(
    child: Child,
    kiln: &mut UnixStream,
    host_proc: &OwnedFd,
    sandbox: &Sandbox,
    mut preparation: Option<Preparation>,
) -> io::Result<Option<Report>> {
    // The command holds the streams now; a reader must see their end when the command's last process closes them.
    let null = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    let mut recording: Option<Server> = None;
    let mut finished: Option<Server> = None;
    let mut killed_instead = None;
    loop {
        let mut ready = vec![PollFd::new(&child.pidfd, PollFlags::IN), PollFd::new(kiln, PollFlags::IN)];
        let third = recording.as_ref().map(AsFd::as_fd).or(preparation.as_ref().map(AsFd::as_fd));
        ready.extend(third.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        match rustix::event::poll(&mut ready, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let (ended, spoken) = (!ready[0].revents().is_empty(), !ready[1].revents().is_empty());
        let called = ready.get(2).map_or(PollFlags::empty(), |fd| fd.revents());
        if ended {
            break;
        }
        match (&mut recording, called.is_empty()) {
            (_, true) => {}
            (Some(server), _) if called.contains(PollFlags::IN) => server.serve(),
            // The last process under the filter is gone; the descriptor has nothing more to say.
            (Some(_), _) => finished = recording.take(),
            (None, _) => {
                if let Some(preparation) = preparation.take() {
                    let (root, upper) = (sandbox.root()?, sandbox.layer()?);
                    // A command that can't be recorded would get ENOSYS for an answer to all that is.
                    recording = preparation.receive(root, upper)?;
                }
            }
        }
        if spoken {
            let mut wish = [0];
            match kiln.read(&mut wish)? {
                0 => {
                    let _ = rustix::process::pidfd_send_signal(&child.pidfd, Signal::KILL);
                    let _ = rustix::process::waitpid(Some(child.pid), WaitOptions::empty());
                    return Ok(None);
                }
                _ if wish[0] == SIGNAL => {
                    kiln.read_exact(&mut wish)?;
                    killed_instead = pass_on(i32::from(wish[0]), &child, host_proc).or(killed_instead);
                }
                _ => obey(wish[0], &child, host_proc),
            }
        }
    }
    // The kernel reports a pid namespace's first process as ended only after all others in it are (pid_namespaces(7)).
    let status = loop {
        match rustix::process::waitpid(Some(child.pid), WaitOptions::empty()) {
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
            Ok(Some((_, status))) => break status,
            Ok(None) => return Err(io::ErrorKind::InvalidData.into()),
        }
    };
    if let Some(server) = recording.or(finished) {
        let identity = server.identity();
        wire::send(kiln, &Report::Recorded { owners: server.into_owners(), identity })?;
    }
    if let Some(failure) = wire::receive::<Failure>(&mut std::fs::File::from(child.failure))? {
        return Ok(Some(Report::Failed(failure)));
    }
    Ok(Some(Report::Ended(match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Ending::Exited(code),
        (None, Some(signal)) if signal == Signal::KILL.as_raw() => Ending::Signaled(killed_instead.unwrap_or(signal)),
        (None, Some(signal)) => Ending::Signaled(signal),
        (None, None) => Ending::Signaled(0),
    })))
}

fn obey(wish: u8, child: &Child, host_proc: &OwnedFd) {
    let signal = match wish {
        // A pid namespace's first process does not get a signal that it has no handler for, though anywhere else SIGTERM would
        // end it. So that the grace period is only spent on those that use it, it is ended here.
        TERMINATE if is_left_at_default(Signal::TERM.as_raw(), child, host_proc) => Signal::KILL,
        TERMINATE => Signal::TERM,
        KILL => Signal::KILL,
        _ => return,
    };
    let _ = rustix::process::pidfd_send_signal(&child.pidfd, signal);
}

/// Gives the command a signal that kiln got. Answers the signal when the command had to be killed in its place, see [`obey`].
fn pass_on(number: i32, child: &Child, host_proc: &OwnedFd) -> Option<i32> {
    let signal = Signal::from_named_raw(number)?;
    match signal {
        // A shell stops and continues all processes of a job.
        Signal::TSTP => everybody(Signal::STOP),
        Signal::CONT => everybody(Signal::CONT),
        Signal::TERM | Signal::INT | Signal::HUP | Signal::QUIT | Signal::USR1 | Signal::USR2
            if is_left_at_default(number, child, host_proc) =>
        {
            let _ = rustix::process::pidfd_send_signal(&child.pidfd, Signal::KILL);
            return Some(number);
        }
        _ => drop(rustix::process::pidfd_send_signal(&child.pidfd, signal)),
    }
    None
}

/// Signals every process of the sandbox but this one.
fn everybody(signal: Signal) {
    // To -1, which for the first process of a pid namespace are all others in it, and only those; for anyone else it would be far
    // too many.
    if rustix::process::getpid() == Pid::INIT {
        let _ = rustix::process::kill_process_group(Pid::INIT, signal);
    }
}

/// Is the signal neither caught nor ignored? Unknown counts as no.
fn is_left_at_default(signal: i32, child: &Child, host_proc: &OwnedFd) -> bool {
    use std::os::fd::AsRawFd;
    let read = |path: String| -> Option<String> {
        let fd = rustix::fs::openat(host_proc, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let mut text = String::new();
        std::fs::File::from(fd).read_to_string(&mut text).ok()?;
        Some(text)
    };
    let field = |text: &str, name: &str| -> Option<String> {
        text.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned())
    };
    let reads_as_default = || -> Option<bool> {
        // The number by which the host's proc file system knows the command.
        let pid = field(&read(format!("self/fdinfo/{}", child.pidfd.as_raw_fd()))?, "Pid:")?;
        let status = read(format!("{pid}/status"))?;
        let mask = |name: &str| u64::from_str_radix(&field(&status, name)?, 16).ok();
        Some((mask("SigCgt:")? | mask("SigIgn:")?) & 1u64 << (signal - 1) == 0)
    };
    reads_as_default().unwrap_or(false)
}

/// A failure of something that is no step of the plan.
pub(crate) fn setup(operation: &str, error: &io::Error) -> Failure {
    Failure::Setup { operation: operation.to_owned(), errno: error.raw_os_error().unwrap_or(libc::EIO) }
}
