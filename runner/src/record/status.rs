//! What a file is said to be: hides how the answer of `stat` is told with the recorded owner and kind in it.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, FileType};
use rustix::io::Errno;

use super::Reply;
use super::caller::Caller;
use super::files::Owners;
use crate::seccomp::Call;
use crate::sys;

/// Where the fields are in a `struct stat` of this architecture: mode, user, group, device.
#[cfg(target_arch = "x86_64")]
const PLAIN: [usize; 4] = [24, 28, 32, 40];
#[cfg(target_arch = "aarch64")]
const PLAIN: [usize; 4] = [16, 24, 28, 32];
/// And in a `struct statx`, the same everywhere; the mode has 16 bits there, the device 32 for each half.
const EXTENDED: [usize; 4] = [28, 20, 24, 128];

/// Answers by the notes; what has none is left to the kernel, as is every error.
pub(super) fn tell(call: Call, a: &[u64; 6], caller: &Caller<'_>, owners: &Owners) -> Result<Reply, Errno> {
    let known = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH;
    let (directory, path, to, flags) = match call {
        Call::Stat => (libc::AT_FDCWD, a[0], a[1], AtFlags::empty()),
        Call::Lstat => (libc::AT_FDCWD, a[0], a[1], AtFlags::SYMLINK_NOFOLLOW),
        Call::Fstat => (a[0] as i32, 0, a[1], AtFlags::EMPTY_PATH),
        Call::Newfstatat => (a[0] as i32, a[1], a[2], AtFlags::from_bits_retain(a[3] as u32)),
        _ => (a[0] as i32, a[1], a[4], AtFlags::from_bits_retain(a[2] as u32)),
    };
    let found = match path {
        // The kernel takes none for an empty one.
        0 if flags.contains(AtFlags::EMPTY_PATH) => caller.descriptor(directory),
        path => caller.path(path).and_then(|path| caller.find(directory, &path, flags & known)),
    };
    let Ok(object) = found else { return Ok(Reply::Continue) };
    let (owner, device) = (owners.owner(&object)?, owners.device(&object));
    // The kernel's answer is another for what is the host's, as `/proc` and the devices are.
    if owner == (object.stat.st_uid, object.stat.st_gid) && device.is_none() {
        return Ok(Reply::Continue);
    }
    let errno = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    let extended = call == Call::Statx;
    let mut bytes = match extended {
        true => sys::status_extended(object.fd.as_fd(), a[3] as u32).map_err(errno)?,
        false => sys::status(object.fd.as_fd()).map_err(errno)?,
    };
    let fields = if extended { EXTENDED } else { PLAIN };
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(fields[1], &owner.0.to_ne_bytes());
    put(fields[2], &owner.1.to_ne_bytes());
    if let Some((kind, major, minor)) = device {
        let format = if kind == FileType::BlockDevice { libc::S_IFBLK } else { libc::S_IFCHR };
        let mode = (object.stat.st_mode & 0o7777) | format;
        if extended {
            put(fields[0], &(mode as u16).to_ne_bytes());
            put(fields[3], &major.to_ne_bytes());
            put(fields[3] + 4, &minor.to_ne_bytes());
        } else {
            put(fields[0], &mode.to_ne_bytes());
            put(fields[3], &rustix::fs::makedev(major, minor).to_ne_bytes());
        }
    }
    caller.write(to, &bytes)?;
    Ok(Reply::Value(0))
}
