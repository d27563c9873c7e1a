//! The few calls that no crate offers in a safe form: with the files below `sys/` the only ones of kiln with `unsafe` in them.
#![allow(unsafe_code)]

mod notify;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::mount::MountAttrFlags;
use rustix::process::Pid;
use rustix::thread::UnshareFlags;

pub(crate) use notify::{
    Answer, Listener, Notification, load_filter_with_listener, read_memory, status, status_extended, write_memory,
};

/// What [`fork`] made of the process.
pub(crate) enum Fork {
    /// This is the child.
    Child,
    /// This is the parent.
    Parent {
        /// The child's id.
        pid: Pid,
        /// The child.
        pidfd: OwnedFd,
    },
}

/// Forks, with the child as process 1 of a new pid namespace if it gets one, and a member of `cgroup` (version 2), from a single-threaded process.
///
/// # Errors
/// Also when the process has a second thread, for whose locks the child would wait for ever.
pub(crate) fn fork(cgroup: Option<BorrowedFd<'_>>, own_pids: bool) -> io::Result<Fork> {
    single_threaded()?;
    let mut pidfd: RawFd = -1;
    let flags = if own_pids { libc::CLONE_NEWPID | libc::CLONE_PIDFD } else { libc::CLONE_PIDFD };
    let pid = match cgroup {
        // Without a group the old call serves, which filters of outer containers are more likely to allow.
        None => {
            let flags = libc::c_long::from(flags | libc::SIGCHLD);
            // SAFETY: no memory is shared with the child (no CLONE_VM) and its stack is a copy; the third argument is where the
            // kernel writes the pidfd, and `pidfd` lives through the call. The one thread of this process holds no lock.
            unsafe { libc::syscall(libc::SYS_clone, flags, ptr::null_mut::<u8>(), &raw mut pidfd, 0, 0) }
        }
        Some(group) => {
            let arguments = CloneArguments {
                flags: (flags as u64) | CLONE_INTO_CGROUP,
                pidfd: (&raw mut pidfd) as u64,
                exit_signal: libc::SIGCHLD as u64,
                cgroup: group.as_raw_fd() as u64,
                ..CloneArguments::default()
            };
            // SAFETY: as above; the kernel reads `size_of::<CloneArguments>()` bytes of a struct that lives through the call.
            unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<CloneArguments>()) }
        }
    };
    forked(pid, pidfd)
}

/// What a call of the clone family answered.
fn forked(pid: libc::c_long, pidfd: RawFd) -> io::Result<Fork> {
    match check(pid)? {
        0 => Ok(Fork::Child),
        pid => {
            // SAFETY: the kernel has just made this descriptor for us; nothing else owns it.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
            Ok(Fork::Parent { pid, pidfd })
        }
    }
}

/// Forks into the same namespaces, from a single-threaded process.
///
/// # Errors
/// Also when the process has a second thread, for whose locks the child would wait for ever.
pub(crate) fn fork_here() -> io::Result<Fork> {
    single_threaded()?;
    let mut pidfd: RawFd = -1;
    let flags = libc::c_long::from(libc::CLONE_PIDFD | libc::SIGCHLD);
    // SAFETY: as in `fork`.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, ptr::null_mut::<u8>(), &raw mut pidfd, 0, 0) };
    forked(pid, pidfd)
}

/// Forks with nothing new, from a single-threaded process; the child is answered `None`.
///
/// # Errors
/// Also when the process has a second thread, for whose locks the child would wait for ever.
pub(crate) fn fork_alone() -> io::Result<Option<Pid>> {
    single_threaded()?;
    // SAFETY: no memory is shared with the child (no CLONE_VM) and its stack is a copy; the one thread of this process holds no lock.
    let pid =
        check(unsafe { libc::syscall(libc::SYS_clone, libc::c_long::from(libc::SIGCHLD), ptr::null_mut::<u8>(), 0, 0, 0) })?;
    Ok(i32::try_from(pid).ok().and_then(Pid::from_raw))
}

/// `CLONE_INTO_CGROUP` of linux/sched.h, which does not fit `libc`'s type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct clone_args` of linux/sched.h.
#[repr(C)]
#[derive(Default)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Fails in a process that has more than one thread.
fn single_threaded() -> io::Result<()> {
    // SAFETY: takes no pointer. The kernel answers EINVAL in a process with threads and does nothing else otherwise (unshare(2)).
    match check(unsafe { libc::syscall(libc::SYS_unshare, libc::CLONE_THREAD) }) {
        // A container's filter refuses the call whatever it is to do.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => match std::fs::read_dir("/proc/self/task")?.count() {
            1 => Ok(()),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        },
        answer => answer.map(drop),
    }
}

/// Moves this thread into new namespaces; with [`UnshareFlags::NEWPID`] its next child.
pub(crate) fn unshare(flags: UnshareFlags) -> io::Result<()> {
    debug_assert!(!flags.contains(UnshareFlags::FILES));
    // SAFETY: the one flag that can break other code's descriptors, FILES, is not asked for.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(io::Error::from)
}

/// Marks every descriptor from `first` on as closed by exec.
pub(crate) fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: takes no pointer; the flag only matters at exec, so that no descriptor of living code is closed.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) }).map(drop)
}

/// `struct mount_attr` of linux/mount.h.
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// Adds attributes to the mount whose root `mount` is, and to those below it.
pub(crate) fn add_mount_attributes(mount: BorrowedFd<'_>, set: MountAttrFlags, below: bool) -> io::Result<()> {
    let attributes = MountAttributes { set: u64::from(set.bits()), clear: 0, propagation: 0, user_namespace: 0 };
    // SAFETY: the path is a C string, the struct has the size that is passed; both live through the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            if below { libc::AT_EMPTY_PATH | libc::AT_RECURSIVE } else { libc::AT_EMPTY_PATH },
            &raw const attributes,
            size_of::<MountAttributes>(),
        )
    })
    .map(drop)
}

/// Has every signal that asks or tells something ignored.
pub(crate) fn ignore_signals() {
    // The kernel's `struct sigaction`: handler SIG_IGN, no flags, no restorer, nothing masked.
    let ignore = [libc::SIG_IGN as u64, 0, 0, 0];
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU] {
        // SAFETY: the kernel reads one `struct sigaction`, 32 bytes on 64-bit machines, which lives through the call; SIG_IGN runs no
        // code of ours.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, ignore.as_ptr(), ptr::null_mut::<u64>(), size_of::<u64>()) };
    }
}

/// Keeps signals by which people and machines end processes from ending this one; [`reset_signals`] undoes it for a command.
pub(crate) fn block_ending_signals() -> io::Result<()> {
    let bit = |signal: libc::c_int| 1u64 << (signal - 1);
    let set = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGTSTP].map(bit).into_iter().sum::<u64>();
    // SAFETY: the kernel reads a signal set of the size given, which lives through the call.
    check(unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_BLOCK, &raw const set, ptr::null_mut::<u64>(), size_of_val(&set))
    })
    .map(drop)
}

/// Stops this process until it is continued. By way of this very thread, for a signal to the process may find another one first, and
/// this one would go on for a while.
pub(crate) fn stop() {
    // SAFETY: takes no pointer; SIGSTOP has no handler.
    unsafe { libc::raise(libc::SIGSTOP) };
}

/// Gives every signal its default action and unblocks all.
pub(crate) fn reset_signals() {
    // The kernel's `struct sigaction` and signal set: handler SIG_DFL, no flags, no restorer, nothing masked.
    let default = [0u64; 4];
    let none = 0u64;
    for signal in 1..=64 {
        // By number, for a C library refuses to touch the signals that it uses itself, and kiln's caller may have had them ignored.
        // SAFETY: the kernel reads one `struct sigaction`, 32 bytes on 64-bit machines, which lives through the call; SIG_DFL runs no
        // code of ours. SIGKILL and SIGSTOP answer EINVAL, which is right.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), ptr::null_mut::<u64>(), size_of_val(&none)) };
    }
    // SAFETY: the kernel reads a signal set of the size given, which lives through the call.
    unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const none, ptr::null_mut::<u64>(), size_of_val(&none))
    };
}

/// One instruction of a classic BPF program.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Instruction {
    /// Operation.
    pub(crate) code: u16,
    /// Jump if true.
    pub(crate) jt: u8,
    /// Jump if false.
    pub(crate) jf: u8,
    /// Operand.
    pub(crate) k: u32,
}

/// Puts this thread and its children under a seccomp filter.
pub(crate) fn load_filter(program: &[Instruction]) -> io::Result<()> {
    set_filter(program, 0).map(drop)
}

/// Loads a filter; the result is a descriptor if the flags ask for one.
fn set_filter(program: &[Instruction], flags: libc::c_ulong) -> io::Result<libc::c_long> {
    #[repr(C)]
    struct Program {
        length: u16,
        instructions: *const Instruction,
    }
    let length = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = Program { length, instructions: program.as_ptr() };
    // SAFETY: `Program` is `struct sock_fprog`, `Instruction` is `struct sock_filter`; the kernel copies `length` of them.
    check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) })
}

/// Whether this process, and what it forks and executes, gets memory by two megabytes where the machine does so.
pub(crate) fn huge_pages(wanted: bool) -> io::Result<()> {
    let disabled = libc::c_ulong::from(!wanted);
    // SAFETY: PR_SET_THP_DISABLE takes numbers only; the last three have to be 0.
    check(unsafe { libc::syscall(libc::SYS_prctl, libc::PR_SET_THP_DISABLE as libc::c_ulong, disabled, 0, 0, 0) }).map(drop)
}

/// Replaces this process; returns only the reason why it could not.
pub(crate) fn exec(program: &CString, arguments: &[CString], environment: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
    };
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: C strings, and two arrays of C strings that end with a null pointer, all living through the call.
    unsafe { libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}

/// Switches the loopback interface of this network namespace on.
pub(crate) fn loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: an all-zero `ifreq` is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an `ifreq` with name and flags set, which lives through the call.
    check(unsafe {
        libc::syscall(libc::SYS_ioctl, socket.as_fd().as_raw_fd(), libc::SIOCSIFFLAGS as libc::c_ulong, &raw const request)
    })
    .map(drop)
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
