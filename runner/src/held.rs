//! Hides how the kernel tells that nobody holds a file of a run's root open any more.
//!
//! A process can hand a descriptor to one outside of its sandbox, by a socket in a shared cache mount or, with the host's network, by
//! an abstract one. Whoever has it can go on writing into the layer after it was hashed and named (CVE-2024-27297 is that in Nix).
//! The root's overlay lives as long as one of its files is open anywhere, and inotify says when it dies.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::inotify::{self, ReadFlags, WatchFlags};
use rustix::io::Errno;
use rustix::thread::LinkNameSpaceType;

/// How long a passer-by, as `lsof` is, may hold a file.
const PATIENCE: Duration = Duration::from_secs(1);

/// Watches the root of one run, from before the command exists.
#[derive(Debug)]
pub(crate) struct Watch {
    events: OwnedFd,
    /// Where to go, so that the mounts of the run end.
    mounts: OwnedFd,
}

impl Watch {
    /// `root` is an overlay that was made for this run, and `mounts` the mount namespace from before. `None` where nothing can be
    /// told: the machine has no watches left.
    pub(crate) fn begin(root: BorrowedFd<'_>, mounts: OwnedFd) -> Option<Watch> {
        let events = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).ok()?;
        // What is asked for never happens to a root; the end of its file system is told without being asked for.
        inotify::add_watch(&events, crate::mount::descriptor_path(root), WatchFlags::DELETE_SELF).ok()?;
        Some(Watch { events, mounts })
    }

    /// Leaves the mounts of the run, of which this has to be the last process, and answers whether the root is gone with them.
    /// Every descriptor of theirs has to be closed.
    pub(crate) fn ends(self) -> io::Result<bool> {
        rustix::thread::move_into_link_name_space(self.mounts.as_fd(), Some(LinkNameSpaceType::Mount))?;
        let begin = Instant::now();
        let mut buffer = [std::mem::MaybeUninit::uninit(); 512];
        loop {
            match inotify::Reader::new(&self.events, &mut buffer).next() {
                Ok(event) if event.events().intersects(ReadFlags::UNMOUNT | ReadFlags::IGNORED) => return Ok(true),
                Ok(_) | Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => {}
                Err(errno) => return Err(errno.into()),
            }
            let Some(left) = PATIENCE.checked_sub(begin.elapsed()) else { return Ok(false) };
            let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            match rustix::event::poll(&mut [PollFd::new(&self.events, PollFlags::IN)], Some(&left)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}
