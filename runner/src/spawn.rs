//! kiln's side of a run: hides the supervisor process, its pipes and its end.

use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::thread::UnshareFlags;

use crate::cancel::Cancel;
use crate::cgroup::Group;
use crate::error::RunError;
use crate::host::Host;
use crate::mode::Mode;
use crate::plan::{Plan, plan};
use crate::remote::Remote;
use crate::spec::{Outcome, RootFs, RunSpec, Status, Stream, Streams};
use crate::streams::{self, Handed, Joint, Wait};
use crate::stub;
use crate::supervise::{Assignment, NAME};
use crate::sys;
use crate::wire::{self, Incoming, KILL, Report, SIGNAL, TERMINATE};

/// How long a command has to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(5);

/// How long a terminal that nobody has open is left alone.
const REOPENED: Duration = Duration::from_millis(20);

/// Runs `spec` to its end and hands its output to `output` as it comes.
///
/// When it returns, whatever the result, no process and no mount of the run exists, and what the command changed is complete in the
/// root's upper directory (see [`RootFs`] on what is on the disk by then). SIGKILL of the calling process ends the run. `output` is called
/// on a thread of the run's own.
///
/// # Errors
/// When the command could not be run to its end; a failing command is an `Ok`. [`RunError::Cancelled`] when `cancel` ended it.
pub fn run(
    spec: &RunSpec,
    host: &Host,
    cancel: &Cancel,
    output: &mut (dyn FnMut(Stream, &[u8]) + Send),
) -> Result<Outcome, RunError> {
    run_attached(spec, host, cancel, None, output)
}

/// The same, with signals that come over `remote` passed on to the command, and with the streams that [`RunSpec::streams`] asks for.
///
/// # Errors
/// As [`run`].
pub fn run_attached(
    spec: &RunSpec,
    host: &Host,
    cancel: &Cancel,
    remote: Option<&Remote>,
    output: &mut (dyn FnMut(Stream, &[u8]) + Send),
) -> Result<Outcome, RunError> {
    let plan = plan(spec, host)?;
    if cancel.is_triggered() {
        return Err(RunError::Cancelled);
    }
    // A thread that makes a pid namespace for its children can start no other thread afterwards, and in a user namespace it isn't
    // let back into its own.
    std::thread::scope(|scope| {
        let run = || run_here(spec, host, plan, (cancel, remote), output);
        let thread = std::thread::Builder::new().name("run".to_owned()).spawn_scoped(scope, run).map_err(RunError::Supervisor)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn run_here(
    spec: &RunSpec,
    host: &Host,
    plan: Plan,
    (cancel, remote): (&Cancel, Option<&Remote>),
    output: &mut (dyn FnMut(Stream, &[u8]) + Send),
) -> Result<Outcome, RunError> {
    let group = Group::make(host.group.as_ref(), spec.pids, &spec.group)?;
    let window = streams::window().filter(|_| matches!(spec.streams, Streams::Terminal { .. }));
    let assignment = Assignment {
        plan,
        group: group.places(),
        window: window.map(|size| (size.ws_row, size.ws_col)),
        huge_pages: host.huge_pages,
    };
    let (joint, handed) = Joint::new(spec.streams).map_err(RunError::Supervisor)?;
    let mut supervisor = Supervisor::start(host, joint, handed).map_err(RunError::Supervisor)?;
    let mut said = Said::default();
    let _attached = remote.map(Remote::attach);
    let followed = supervisor.follow(&assignment, cancel, remote, output, &mut said);
    let ended = supervisor.end();
    // Also after a failure, for a plain directory is the caller's and stays.
    let (RootFs::Overlay { upper: layer, .. } | RootFs::Dir(layer)) = &spec.root;
    let removed = stub::remove(layer, &said.stubs);

    let cancelled = followed.map_err(RunError::Supervisor)?;
    let how = ended.map_err(RunError::Supervisor)?;
    if cancelled {
        return Err(RunError::Cancelled);
    }
    let out_of_memory = group.ran_out_of_memory();
    let status = match said.result {
        None => return Err(RunError::SupervisorLost { how: how.to_string() }),
        Some(Err(error)) => return Err(error),
        // A shell says of a child that was killed what it would say of itself.
        Some(Ok(Status::Signaled(libc::SIGKILL) | Status::Exited(137))) if out_of_memory => Status::OomKilled,
        Some(Ok(status)) => status,
    };
    removed?;
    Ok(Outcome { status, out_of_memory, owners: said.owners, identity: said.identity, warnings: said.warnings })
}

/// What the supervisor said so far.
#[derive(Default)]
struct Said {
    stubs: Vec<stub::Stub>,
    result: Option<Result<Status, RunError>>,
    owners: Vec<(u64, u32, u32)>,
    identity: Option<(u32, u32)>,
    warnings: Vec<String>,
}

/// A running supervisor; killed and waited for when dropped.
struct Supervisor {
    child: Child,
    socket: UnixStream,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    joint: Joint,
    /// What goes to the supervisor together with its assignment.
    input: Option<OwnedFd>,
    /// It has a root directory to put in order, so that it must not be killed.
    in_place: bool,
    waited: bool,
}

impl Supervisor {
    fn start(host: &Host, joint: Joint, handed: Handed) -> io::Result<Supervisor> {
        let (socket, theirs) = UnixStream::pair()?;
        let program = match &host.program {
            Some(program) => format!("/proc/self/fd/{}", program.as_raw_fd()),
            None => "/proc/self/exe".to_owned(),
        };
        let mut command = Command::new(program);
        command.arg0(NAME).env_clear().stdin(OwnedFd::from(theirs)).stdout(handed.stdout).stderr(handed.stderr);
        let in_place = host.mode == Mode::Chroot;
        if !in_place {
            sys::unshare(UnshareFlags::NEWPID)?;
        }
        let mut child = command.spawn()?;
        let stdout = child.stdout.take().map(OwnedFd::from);
        let stderr = child.stderr.take().map(OwnedFd::from);
        Ok(Supervisor { child, socket, stdout, stderr, joint, input: handed.input, in_place, waited: false })
    }

    /// Hands over the assignment and passes output on until there is no more. Answers whether the run was cancelled.
    fn follow(
        &mut self,
        assignment: &Assignment,
        cancel: &Cancel,
        remote: Option<&Remote>,
        output: &mut (dyn FnMut(Stream, &[u8]) + Send),
        said: &mut Said,
    ) -> io::Result<bool> {
        let sent = match self.input.take() {
            Some(input) => wire::send_with(&mut self.socket, assignment, input.as_fd()),
            None => wire::send(&mut self.socket, assignment),
        };
        match sent {
            // It is gone already; what it said, and how it ended, is told below.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            sent => sent?,
        }
        let mut buffer = vec![0u8; 64 << 10];
        let mut listening = true;
        let mut wishes = Wishes::default();
        let mut descriptors = Vec::new();
        while listening || self.stdout.is_some() || self.stderr.is_some() || self.joint.is_open() {
            let mut timeout = wishes.act(cancel, &mut self.socket);
            if self.joint.is_open() && (!listening || self.joint.is_hung_up()) {
                // Nothing tells when the other end is opened again.
                let wait = if listening { REOPENED } else { Duration::ZERO };
                timeout = Some(timeout.map_or(wait, |timeout| timeout.min(wait)));
            }
            if self.in_place && !listening {
                // It ended all processes before itself, unless somebody ended it; then nobody ends those that hold the streams.
                timeout = Some(REOPENED);
            }
            let mut waits: Vec<(Source, PollFd<'_>)> = Vec::with_capacity(6);
            if listening {
                waits.push((Source::Supervisor, PollFd::new(&self.socket, PollFlags::IN)));
            }
            for (stream, fd) in [(Stream::Stdout, &self.stdout), (Stream::Stderr, &self.stderr)] {
                if let Some(fd) = fd {
                    waits.push((Source::Stream(stream), PollFd::new(fd, PollFlags::IN)));
                }
            }
            if let Some(fd) = wishes.next(cancel) {
                waits.push((Source::Cancel, PollFd::from_borrowed_fd(fd, PollFlags::IN)));
            }
            waits.extend(remote.map(|remote| (Source::Remote, PollFd::new(remote, PollFlags::IN))));
            waits.extend(
                self.joint
                    .waits()
                    .into_iter()
                    .map(|(wait, fd, flags)| (Source::Joint(wait), PollFd::from_borrowed_fd(fd, flags))),
            );
            let mut ready = poll(&mut waits, timeout)?;
            if self.in_place && !listening && ready.is_empty() {
                break;
            }
            if self.joint.is_open() && (!listening || self.joint.is_hung_up()) {
                ready.push(Source::Joint(Wait::Shown));
            }
            for source in ready {
                match source {
                    Source::Cancel => {}
                    Source::Remote => {
                        for number in remote.map(Remote::take).into_iter().flatten() {
                            if i32::from(number) == libc::SIGWINCH {
                                self.joint.resize();
                                continue;
                            }
                            let _ = self.socket.write_all(&[SIGNAL, number]);
                            if i32::from(number) == libc::SIGTSTP {
                                self.joint.stop();
                            }
                        }
                    }
                    Source::Joint(Wait::Typed) => self.joint.typed(&mut buffer),
                    Source::Joint(Wait::Taken) => self.joint.pass_on(),
                    Source::Joint(Wait::Shown) => {
                        let length = self.joint.shown(&mut buffer, !listening)?;
                        if length > 0 {
                            output(Stream::Stdout, &buffer[..length]);
                        }
                    }
                    Source::Supervisor => {
                        match wire::receive::<Report>(&mut Incoming { socket: &self.socket, descriptors: &mut descriptors }) {
                            Ok(Some(Report::Terminal)) => {
                                if let Some(master) = descriptors.pop() {
                                    self.joint.attach(master)?;
                                }
                            }
                            Ok(Some(Report::Stubs(stubs))) => said.stubs.extend(stubs),
                            Ok(Some(Report::Recorded { owners, identity })) => {
                                said.owners = owners;
                                said.identity = Some(identity);
                            }
                            Ok(Some(Report::Warned(warnings))) => said.warnings.extend(warnings),
                            Ok(Some(Report::Failed(failure))) => said.result = Some(Err(failure.into())),
                            Ok(Some(Report::Ended(ending))) => said.result = Some(Ok(ending.into())),
                            // Closed, or cut off in the middle of a word: it is dead.
                            Ok(None) | Err(_) => listening = false,
                        }
                    }
                    Source::Stream(stream) => {
                        let slot = if stream == Stream::Stdout { &mut self.stdout } else { &mut self.stderr };
                        let read = slot.as_ref().map_or(Ok(0), |fd| rustix::io::read(fd, &mut buffer));
                        match read {
                            Ok(0) => *slot = None,
                            Ok(length) => output(stream, &buffer[..length]),
                            Err(Errno::INTR | Errno::AGAIN) => {}
                            Err(errno) => return Err(errno.into()),
                        }
                    }
                }
            }
        }
        Ok(wishes.asked_to_end.is_some())
    }

    /// Waits for the supervisor's end, and with it that of every process and mount of the run.
    fn end(&mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait()?;
        self.waited = true;
        Ok(status)
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        if !self.waited && self.in_place {
            // That kiln is gone is what it takes this for.
            let _ = self.socket.shutdown(std::net::Shutdown::Both);
            let _ = self.child.wait();
        } else if !self.waited {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// What a descriptor stands for in the loop.
#[derive(Debug, Clone, Copy)]
enum Source {
    Supervisor,
    Stream(Stream),
    Joint(Wait),
    Remote,
    Cancel,
}

/// Waits; answers which are ready. An interrupted wait has none.
fn poll(waits: &mut [(Source, PollFd<'_>)], timeout: Option<Duration>) -> io::Result<Vec<Source>> {
    let mut fds: Vec<PollFd<'_>> = waits.iter().map(|(_, fd)| fd.clone()).collect();
    let timeout = timeout.map(|timeout| rustix::event::Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    });
    match rustix::event::poll(&mut fds, timeout.as_ref()) {
        Ok(_) => {}
        Err(Errno::INTR) => return Ok(Vec::new()),
        Err(errno) => return Err(errno.into()),
    }
    Ok(waits.iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty()).map(|((source, _), _)| *source).collect())
}

/// What the supervisor was asked, as the run's end is wished more and more.
#[derive(Default)]
struct Wishes {
    asked_to_end: Option<Instant>,
    asked_to_kill: bool,
}

impl Wishes {
    /// Sends what has become due; answers how long nothing else will.
    fn act(&mut self, cancel: &Cancel, supervisor: &mut UnixStream) -> Option<Duration> {
        let triggers = cancel.triggers();
        if triggers > 0 && self.asked_to_end.is_none() {
            self.asked_to_end = Some(Instant::now());
            let _ = supervisor.write_all(&[TERMINATE]);
        }
        let left = GRACE.checked_sub(self.asked_to_end?.elapsed()).unwrap_or_default();
        if self.asked_to_kill {
            return None;
        }
        if triggers > 1 || left.is_zero() {
            self.asked_to_kill = true;
            let _ = supervisor.write_all(&[KILL]);
            return None;
        }
        Some(left)
    }

    /// What to wait for next.
    fn next<'a>(&self, cancel: &'a Cancel) -> Option<std::os::fd::BorrowedFd<'a>> {
        match (self.asked_to_end, self.asked_to_kill) {
            (None, _) => Some(cancel.as_fd()),
            (Some(_), false) => Some(cancel.second()),
            (Some(_), true) => None,
        }
    }
}
