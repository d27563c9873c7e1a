//! Hides how the bytes of one file get into another: shared blocks if the file system can, else holes kept, else read and write.

use std::fs::File;
use std::io::{self, Read, Write};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// Below this a plain read and write costs less than asking the kernel for something better.
const SMALL: u64 = 64 << 10;

/// Copies all of `from` (whose size was `size` when it was looked at) into the empty file `to`, and says how many bytes there were.
///
/// The count differs from `size` when the file changed meanwhile; the caller decides what that means.
pub fn copy_file(from: &File, to: &File, size: u64, sparse: bool) -> io::Result<u64> {
    if size < SMALL {
        return copy_small(from, to, size);
    }
    match rustix::fs::ioctl_ficlone(to, from) {
        Ok(()) => return rustix::fs::fstat(to).map(|s| s.st_size.unsigned_abs()).map_err(Into::into),
        Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::PERM | Errno::BADF) => {}
        Err(e) => return Err(e.into()),
    }
    if sparse { copy_extents(from, to) } else { copy_range(from, to, 0, u64::MAX) }
}

/// Copies a file that most likely has the size it had: when one read with room for more gives exactly that, there is no more.
fn copy_small(from: &File, mut to: &File, size: u64) -> io::Result<u64> {
    // Never cleared: to fill 64 KiB with zeros takes as long as all the rest.
    let mut buffer = Vec::with_capacity(SMALL as usize);
    let n = rustix::io::retry_on_intr(|| rustix::io::read(from, rustix::buffer::spare_capacity(&mut buffer)))?;
    to.write_all(&buffer)?;
    if n as u64 == size && n > 0 {
        return Ok(size);
    }
    Ok(n as u64 + copy_reader(&mut &*from, to)?)
}

/// Copies `from` to its end into `to`.
pub fn copy_reader(from: &mut dyn Read, to: &File) -> io::Result<u64> {
    let mut to = to;
    let mut buffer = [0; 64 << 10];
    let mut total = 0;
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(total),
            Ok(n) => {
                to.write_all(&buffer[..n])?;
                total += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Copies the data of a sparse file and leaves its holes.
fn copy_extents(from: &File, to: &File) -> io::Result<u64> {
    let mut at = 0;
    loop {
        let start = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            // No data after `at`: the rest is a hole.
            Err(Errno::NXIO) => {
                let size = rustix::fs::fstat(from)?.st_size.unsigned_abs();
                rustix::fs::ftruncate(to, size)?;
                return Ok(size);
            }
            Err(Errno::INVAL) => return copy_range(from, to, at, u64::MAX).map(|n| at + n),
            Err(e) => return Err(e.into()),
        };
        let end = rustix::fs::seek(from, SeekFrom::Hole(start))?;
        copy_range(from, to, start, end - start)?;
        at = end;
    }
}

/// Copies up to `length` bytes at `offset` to the same place, in the kernel if it's willing.
fn copy_range(from: &File, to: &File, offset: u64, length: u64) -> io::Result<u64> {
    let (mut from_at, mut to_at, mut left) = (offset, offset, length);
    while left > 0 {
        let step = usize::try_from(left.min(1 << 30)).unwrap_or(1 << 30);
        match rustix::fs::copy_file_range(from, Some(&mut from_at), to, Some(&mut to_at), step) {
            // Some file systems (of /proc, FUSE) answer 0 for a file that has bytes: ask it the plain way.
            Ok(0) => break,
            Ok(n) => left -= n as u64,
            Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => break,
            Err(e) => return Err(e.into()),
        }
    }
    if left > 0 {
        rustix::fs::seek(from, SeekFrom::Start(from_at))?;
        rustix::fs::seek(to, SeekFrom::Start(to_at))?;
        copy_reader(&mut Read::take(from, left), to)?;
        to_at = rustix::fs::tell(to)?;
    }
    Ok(to_at - offset)
}
