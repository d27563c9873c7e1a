//! The process that made a notified call: hides how its memory, its paths and who it takes itself for are found.

use std::ffi::{CString, OsStr};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use rustix::process::{Pid, PidfdFlags};

use crate::sys;

/// A proc file system in which the sandbox's threads are found by the numbers that the supervisor knows them by.
#[derive(Debug)]
pub(super) struct Proc {
    directory: OwnedFd,
    /// Whether its numbers are those of the supervisor's pid namespace.
    own: bool,
    /// Its `self/fd`: the supervisor's working directory, so that a descriptor has a short name.
    descriptors: OwnedFd,
}

impl Proc {
    /// Mounts one of its own; where that is refused, because the host hides a part of its own, that one serves.
    pub(super) fn open(host_proc: BorrowedFd<'_>) -> Result<Proc, Errno> {
        let mount = || {
            let context = rustix::mount::fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
            rustix::mount::fsconfig_create(&context)?;
            let inert = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
            rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, inert)
        };
        let (directory, own) = match mount() {
            Ok(directory) => (directory, true),
            Err(_) => (rustix::io::fcntl_dupfd_cloexec(host_proc, 3)?, false),
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let descriptors = rustix::fs::openat(&directory, "self/fd", flags, Mode::empty())?;
        Ok(Proc { directory, own, descriptors })
    }

    /// Makes a descriptor's number its path.
    pub(super) fn enter(&self) -> Result<(), Errno> {
        rustix::process::fchdir(&self.descriptors)
    }

    /// The name of a thread's directory.
    fn name(&self, thread: i32) -> Result<i32, Errno> {
        if self.own {
            return Ok(thread);
        }
        let pid = Pid::from_raw(thread).ok_or(Errno::SRCH)?;
        // PIDFD_THREAD, of Linux 6.9; before that only a process's first thread has one.
        let thread = PidfdFlags::from_bits_retain(OFlags::EXCL.bits());
        let fd = rustix::process::pidfd_open(pid, thread).or_else(|_| rustix::process::pidfd_open(pid, PidfdFlags::empty()))?;
        let text = self.read(format!("self/fdinfo/{}", fd.as_raw_fd()))?;
        field(&text, "Pid:").and_then(|number| number.parse().ok()).ok_or(Errno::SRCH)
    }

    fn read(&self, path: String) -> Result<String, Errno> {
        let fd = rustix::fs::openat(&self.directory, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let mut text = String::new();
        std::fs::File::from(fd).read_to_string(&mut text).map_err(errno)?;
        Ok(text)
    }
}

/// The value of a line of a status file.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

/// The longest path, with its end.
const LONGEST_PATH: usize = 4096;
const PAGE: u64 = 4096;

/// A thread that waits for an answer.
#[derive(Debug)]
pub(super) struct Caller<'a> {
    proc: &'a Proc,
    /// The root file system of the sandbox.
    root: BorrowedFd<'a>,
    thread: i32,
    /// The name of its directory in `proc`.
    name: i32,
}

/// An object that a call is about, open without any right but to look at it.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) fd: OwnedFd,
    pub(super) stat: Stat,
}

impl Object {
    pub(super) fn new(fd: OwnedFd) -> Result<Object, Errno> {
        let stat = rustix::fs::fstat(&fd)?;
        Ok(Object { fd, stat })
    }

    pub(super) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// Its path in the working directory that [`Proc::enter`] made.
    pub(super) fn path(&self) -> String {
        self.fd.as_raw_fd().to_string()
    }
}

impl<'a> Caller<'a> {
    pub(super) fn new(proc: &'a Proc, root: BorrowedFd<'a>, thread: i32) -> Result<Caller<'a>, Errno> {
        Ok(Caller { proc, root, thread, name: proc.name(thread)? })
    }

    /// The string at `address`: a path.
    pub(super) fn path(&self, address: u64) -> Result<CString, Errno> {
        let mut bytes = Vec::with_capacity(256);
        let mut chunk = [0u8; 1024];
        while bytes.len() < LONGEST_PATH {
            let at = address.checked_add(bytes.len() as u64).ok_or(Errno::FAULT)?;
            // Up to the end of a page, for the next one may not exist.
            let length = chunk.len().min((PAGE - at % PAGE) as usize);
            let read = sys::read_memory(self.thread, at, &mut chunk[..length]).map_err(errno)?;
            if read == 0 {
                return Err(Errno::FAULT);
            }
            if let Some(end) = chunk[..read].iter().position(|byte| *byte == 0) {
                bytes.extend_from_slice(&chunk[..end]);
                return CString::new(bytes).map_err(|_| Errno::FAULT);
            }
            bytes.extend_from_slice(&chunk[..read]);
        }
        Err(Errno::NAMETOOLONG)
    }

    /// So many bytes at `address`.
    pub(super) fn bytes(&self, address: u64, length: usize) -> Result<Vec<u8>, Errno> {
        let mut bytes = vec![0; length];
        match sys::read_memory(self.thread, address, &mut bytes) {
            Ok(read) if read == length => Ok(bytes),
            _ => Err(Errno::FAULT),
        }
    }

    /// Writes to `address`.
    pub(super) fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Errno> {
        sys::write_memory(self.thread, address, bytes).map_err(|_| Errno::FAULT)
    }

    /// The object at `path`, as the call would find it: from `directory`, a descriptor of the caller's or AT_FDCWD, inside its root.
    pub(super) fn find(&self, directory: i32, path: &CString, flags: AtFlags) -> Result<Object, Errno> {
        if path.is_empty() {
            if !flags.contains(AtFlags::EMPTY_PATH) {
                return Err(Errno::NOENT);
            }
            return self.descriptor(directory);
        }
        let mut how = OFlags::PATH | OFlags::CLOEXEC;
        if flags.contains(AtFlags::SYMLINK_NOFOLLOW) {
            how |= OFlags::NOFOLLOW;
        }
        let found = self.at(directory, path, |from| rustix::fs::openat(from, path, how, Mode::empty()));
        match found {
            // The sandbox's `/proc/self` leads nowhere for the supervisor, which isn't in it.
            Err(Errno::NOENT) => self.find_itself(directory, path, how).unwrap_or(Err(Errno::NOENT)),
            found => found,
        }
        .and_then(Object::new)
    }

    /// What is at a path that leads through `/proc/self`, if it does.
    fn find_itself(&self, directory: i32, path: &CString, how: OFlags) -> Option<Result<OwnedFd, Errno>> {
        let mut path = path.to_bytes().to_vec();
        let mut how = how;
        for _ in 0..8 {
            let below = |prefix: &str| path.strip_prefix(prefix.as_bytes()).map(OsStr::from_bytes);
            if let Some(rest) = below("/proc/self/").or_else(|| below("/proc/thread-self/")) {
                let own = [self.name.to_string().as_bytes(), b"/", rest.as_bytes()].concat();
                how.remove(OFlags::NOFOLLOW);
                return Some(rustix::fs::openat(&self.proc.directory, own, how, Mode::empty()));
            }
            if how.contains(OFlags::NOFOLLOW) {
                return None;
            }
            // As `/dev/stdout`, or a log file that leads there.
            let c_path = CString::new(path).ok()?;
            let target = self.at(directory, &c_path, |from| rustix::fs::readlinkat(from, &c_path, Vec::new())).ok()?;
            path = target.into_bytes();
            if !path.starts_with(b"/") {
                return None;
            }
        }
        None
    }

    /// The object of a descriptor of the caller's, or its working directory.
    pub(super) fn descriptor(&self, number: i32) -> Result<Object, Errno> {
        Object::new(self.own(number)?)
    }

    fn own(&self, number: i32) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let path = match number {
            libc::AT_FDCWD => format!("{}/cwd", self.name),
            number if number < 0 => return Err(Errno::BADF),
            number => format!("{}/fd/{number}", self.name),
        };
        match rustix::fs::openat(&self.proc.directory, path, flags, Mode::empty()) {
            Err(Errno::NOENT) if number >= 0 => Err(Errno::BADF),
            fd => fd,
        }
    }

    /// Calls `act` with where `path` begins, in the caller's root.
    pub(super) fn at<T>(
        &self,
        directory: i32,
        path: &CString,
        act: impl FnOnce(BorrowedFd<'_>) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let from = if path.to_bytes().starts_with(b"/") { None } else { Some(self.own(directory)?) };
        let from = from.as_ref().map_or(CWD, AsFd::as_fd);
        let root = rustix::fs::readlinkat(&self.proc.directory, format!("{}/root", self.name), Vec::new())?;
        if root.as_bytes() == b"/" {
            return act(from);
        }
        // The supervisor has one thread, so that nobody else sees its root change.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(&self.proc.directory, format!("{}/root", self.name), flags, Mode::empty())?;
        rustix::process::chroot(root.as_raw_fd().to_string())?;
        let result = act(from);
        rustix::process::chroot(self.root.as_raw_fd().to_string())?;
        result
    }

    /// Calls `act` with the caller's mask of permissions.
    pub(super) fn with_umask<T>(&self, act: impl FnOnce() -> T) -> Result<T, Errno> {
        let status = self.proc.read(format!("{}/status", self.name))?;
        let umask = field(&status, "Umask:").and_then(|mask| u32::from_str_radix(mask, 8).ok()).unwrap_or(0o022);
        let before = rustix::process::umask(Mode::from_raw_mode(umask));
        let result = act();
        rustix::process::umask(before);
        Ok(result)
    }

    /// The number that [`Caller::set_tag`] gave to it or to the process that it descends from; 0 if none did.
    pub(super) fn tag(&self) -> usize {
        let mut text = [0u8; 24];
        let mut read = || -> Result<usize, Errno> {
            let path = format!("{}/timerslack_ns", self.name);
            let fd = rustix::fs::openat(&self.proc.directory, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
            rustix::io::read(fd, &mut text)
        };
        let Ok(length) = read() else { return 0 };
        let value = std::str::from_utf8(&text[..length]).ok().and_then(|text| text.trim().parse::<u64>().ok());
        value.and_then(|value| value.checked_sub(TIMER_SLACK)).and_then(|tag| usize::try_from(tag).ok()).unwrap_or(0)
    }

    /// Gives the thread, and all that will descend from it, a number.
    pub(super) fn set_tag(&self, tag: usize) -> Result<(), Errno> {
        let path = format!("{}/timerslack_ns", self.name);
        let fd = rustix::fs::openat(&self.proc.directory, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        write!(std::fs::File::from(fd), "{}", TIMER_SLACK + tag as u64).map_err(errno)
    }
}

/// By how many nanoseconds a thread's timers may be late, as every thread has it that changed nothing.
///
/// A tag is added to it. Of all that a supervisor can attach to a thread it is the one thing that the kernel hands on by fork, keeps at
/// exec and that nobody notices: fifty microseconds are not told from fifty and a few nanoseconds. A table by process ids would lose
/// the descendants of a process whose parent has ended.
pub(crate) const TIMER_SLACK: u64 = 50_000;
