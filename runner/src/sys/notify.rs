//! Notifications of the kernel about system calls that wait for an answer, in a safe form.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;

use super::{Instruction, check};

/// A system call that waits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Notification {
    /// By which it is answered.
    pub(crate) id: u64,
    /// The thread, as this process's pid namespace numbers it.
    pub(crate) thread: i32,
    /// `AUDIT_ARCH_…`.
    pub(crate) architecture: u32,
    /// The call.
    pub(crate) number: u32,
    /// Its arguments.
    pub(crate) arguments: [u64; 6],
}

/// What a waiting call is to come back with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// This value.
    Value(i64),
    /// This error.
    Error(Errno),
    /// Whatever the kernel makes of it.
    Continue,
}

/// Where notifications arrive.
#[derive(Debug)]
pub(crate) struct Listener {
    fd: OwnedFd,
    /// A notification of this kernel, which may be longer than the one that we know, zeroed before each use.
    buffer: Vec<u64>,
}

/// `struct seccomp_notif` of linux/seccomp.h.
#[repr(C)]
#[derive(Clone, Copy)]
struct Raw {
    id: u64,
    pid: u32,
    flags: u32,
    number: i32,
    architecture: u32,
    instruction: u64,
    arguments: [u64; 6],
}

/// `struct seccomp_notif_resp`.
#[repr(C)]
struct Response {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

/// `struct seccomp_notif_addfd`.
#[repr(C)]
struct AddDescriptor {
    id: u64,
    flags: u32,
    source: u32,
    new: u32,
    new_flags: u32,
}

const RECEIVE: libc::c_ulong = 0xc050_2100;
const SEND: libc::c_ulong = 0xc018_2101;
const IS_VALID: libc::c_ulong = 0x4008_2102;
const ADD_DESCRIPTOR: libc::c_ulong = 0x4018_2103;
const SET_FLAGS: libc::c_ulong = 0x4008_2104;

/// Puts this thread and its children under a seccomp filter that asks the holder of the descriptor.
pub(crate) fn load_filter_with_listener(program: &[Instruction]) -> io::Result<OwnedFd> {
    // Since Linux 5.19 a signal need not interrupt a call that is being answered.
    let killable = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    let fd =
        super::set_filter(program, killable).or_else(|_| super::set_filter(program, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER))?;
    let fd = RawFd::try_from(fd).map_err(|_| io::ErrorKind::InvalidData)?;
    // SAFETY: the kernel has just made this descriptor for us; nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

impl Listener {
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Listener> {
        let mut sizes = [0u16; 3];
        // SAFETY: SECCOMP_GET_NOTIF_SIZES writes a `struct seccomp_notif_sizes`, three 16-bit words, which live through the call.
        check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_NOTIF_SIZES, 0, sizes.as_mut_ptr()) })?;
        let buffer = vec![0; usize::from(sizes[0]).max(size_of::<Raw>()).div_ceil(8)];
        let listener = Listener { fd, buffer };
        // Since Linux 6.6: caller and supervisor take turns on one processor. It is only faster.
        // SAFETY: takes a number.
        let _ = unsafe { libc::syscall(libc::SYS_ioctl, listener.fd.as_raw_fd(), SET_FLAGS, 1u64) };
        Ok(listener)
    }

    /// The next waiting call; an error when its process is gone meanwhile. Blocks unless the descriptor is readable.
    pub(crate) fn receive(&mut self) -> io::Result<Notification> {
        self.buffer.fill(0);
        // SAFETY: the kernel writes a `struct seccomp_notif`; the buffer has the size that the kernel has told us, zeroed as asked for.
        check(unsafe { libc::syscall(libc::SYS_ioctl, self.fd.as_raw_fd(), RECEIVE, self.buffer.as_mut_ptr()) })?;
        // SAFETY: the buffer is at least one `Raw` long, aligned to 8 bytes, and any bytes are a `Raw`.
        let raw = unsafe { self.buffer.as_ptr().cast::<Raw>().read() };
        Ok(Notification {
            id: raw.id,
            thread: raw.pid as i32,
            architecture: raw.architecture,
            number: raw.number as u32,
            arguments: raw.arguments,
        })
    }

    /// Does the caller still wait?
    pub(crate) fn is_waiting(&self, id: u64) -> bool {
        // SAFETY: the kernel reads the number, which lives through the call.
        unsafe { libc::syscall(libc::SYS_ioctl, self.fd.as_raw_fd(), IS_VALID, &raw const id) == 0 }
    }

    /// Lets the call come back. An error means that there is nobody any more.
    pub(crate) fn answer(&self, id: u64, answer: Answer) -> io::Result<()> {
        let response = match answer {
            Answer::Value(value) => Response { id, value, error: 0, flags: 0 },
            Answer::Error(errno) => Response { id, value: 0, error: -errno.raw_os_error(), flags: 0 },
            Answer::Continue => Response { id, value: 0, error: 0, flags: libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32 },
        };
        // SAFETY: the kernel reads a `struct seccomp_notif_resp`, which lives through the call.
        check(unsafe { libc::syscall(libc::SYS_ioctl, self.fd.as_raw_fd(), SEND, &raw const response) }).map(drop)
    }

    /// Lets the call come back with a descriptor of the same open file as `fd`.
    pub(crate) fn answer_with_descriptor(&self, id: u64, fd: BorrowedFd<'_>, close_on_exec: bool) -> io::Result<()> {
        let request = AddDescriptor {
            id,
            flags: libc::SECCOMP_ADDFD_FLAG_SEND as u32,
            source: fd.as_raw_fd() as u32,
            new: 0,
            new_flags: if close_on_exec { libc::O_CLOEXEC as u32 } else { 0 },
        };
        // SAFETY: the kernel reads a `struct seccomp_notif_addfd`, which lives through the call.
        check(unsafe { libc::syscall(libc::SYS_ioctl, self.fd.as_raw_fd(), ADD_DESCRIPTOR, &raw const request) }).map(drop)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Reads from another process's memory; answers how many bytes, which are fewer where its memory ends.
pub(crate) fn read_memory(process: i32, address: u64, into: &mut [u8]) -> io::Result<usize> {
    let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: into.len() };
    // SAFETY: the kernel writes at most `into.len()` bytes into `into`, which lives through the call; the other address is the other
    // process's and is checked there.
    let read = unsafe {
        libc::syscall(libc::SYS_process_vm_readv, process, &raw const local, 1usize, &raw const remote, 1usize, 0usize)
    };
    Ok(check(read)? as usize)
}

/// Writes into another process's memory, all or an error.
pub(crate) fn write_memory(process: i32, address: u64, bytes: &[u8]) -> io::Result<()> {
    let local = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: bytes.len() };
    // SAFETY: the kernel only reads `bytes`, which lives through the call; what is written is the other process's, and only that.
    let written = unsafe {
        libc::syscall(libc::SYS_process_vm_writev, process, &raw const local, 1usize, &raw const remote, 1usize, 0usize)
    };
    if check(written)? as usize == bytes.len() { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EFAULT)) }
}

/// What `stat` says of an open file, as the kernel writes it.
pub(crate) fn status(fd: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0u8; size_of::<libc::stat>()];
    // SAFETY: the kernel writes one `struct stat`, which is what `bytes` has room for.
    check(unsafe { libc::syscall(libc::SYS_fstat, fd.as_raw_fd(), bytes.as_mut_ptr()) })?;
    Ok(bytes)
}

/// What `statx` says of it.
pub(crate) fn status_extended(fd: BorrowedFd<'_>, mask: u32) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0u8; 256];
    // SAFETY: the path is a C string; the kernel writes one `struct statx`, 256 bytes for ever, for which `bytes` has room.
    check(unsafe {
        libc::syscall(libc::SYS_statx, fd.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, mask, bytes.as_mut_ptr())
    })?;
    Ok(bytes)
}
