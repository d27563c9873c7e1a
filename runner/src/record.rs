//! Writes down whom files belong to, where the kernel has one id only: hides what becomes of `chown`, `mknod`, `setuid` and their like
//! in a sandbox of which all processes are one user.
//!
//! The kernel stops each such call and tells the supervisor, which does what can be done, notes the rest, and lets the call come back.
//! This is no boundary: the caller can do by itself all that is done for it, so that races over its arguments harm nobody. What has to
//! hold is that nothing it passes blocks the supervisor (objects are only looked at, never opened to be read) or leads it out of the
//! sandbox's root.

mod caller;
mod files;
mod identity;
mod status;

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::fs::AtFlags;
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use crate::seccomp::{self, Call};
use crate::spec::Recorder;
use crate::sys::{Answer, Listener, Notification};
use crate::user;
use caller::{Caller, Proc};
use files::{Owners, Wish};
use identity::Identity;

pub(crate) use caller::TIMER_SLACK;

/// What the supervisor keeps ready before the sandbox exists.
#[derive(Debug)]
pub(crate) struct Preparation {
    proc: Proc,
    recorder: Recorder,
    socket: UnixStream,
}

/// The command's end of what leads to its supervisor.
#[derive(Debug)]
pub(crate) struct Handover(UnixStream);

/// Makes ready to record; the second half is for the command's process.
pub(crate) fn prepare(recorder: &Recorder, host_proc: BorrowedFd<'_>) -> Result<(Preparation, Handover), Errno> {
    let (socket, theirs) = UnixStream::pair().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    Ok((Preparation { proc: Proc::open(host_proc)?, recorder: recorder.clone(), socket }, Handover(theirs)))
}

impl Handover {
    /// Hands the listener over, and says who the command runs as.
    pub(crate) fn send(self, listener: OwnedFd, identity: &user::Identity) -> Result<(), Errno> {
        let ids: Vec<u8> = [identity.uid, identity.gid].iter().chain(&identity.groups).flat_map(|id| id.to_le_bytes()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut rights = SendAncillaryBuffer::new(&mut space);
        let fds = [listener.as_fd()];
        rights.push(SendAncillaryMessage::ScmRights(&fds));
        rustix::net::sendmsg(&self.0, &[IoSlice::new(&ids)], &mut rights, SendFlags::NOSIGNAL).map(drop)
    }
}

impl AsFd for Preparation {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Preparation {
    /// Takes what the command's process has sent; `None` when it ended instead.
    pub(crate) fn receive(self, root: BorrowedFd<'_>, upper: BorrowedFd<'_>) -> Result<Option<Server>, Errno> {
        let mut ids = vec![0u8; 4 * 65_540];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut rights = RecvAncillaryBuffer::new(&mut space);
        let received =
            rustix::net::recvmsg(&self.socket, &mut [IoSliceMut::new(&mut ids)], &mut rights, RecvFlags::CMSG_CLOEXEC)?;
        let fd = rights.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        let Some(fd) = fd else { return Ok(None) };
        let ids: Vec<u32> =
            ids[..received.bytes].chunks_exact(4).map(|id| u32::from_le_bytes([id[0], id[1], id[2], id[3]])).collect();
        let (uid, gid) = (ids.first().copied().unwrap_or(0), ids.get(1).copied().unwrap_or(0));
        let base = Identity::new(uid, gid, ids.get(2..).unwrap_or_default().to_vec());
        let listener = Listener::new(fd).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        let root = rustix::io::fcntl_dupfd_cloexec(root, 3)?;
        self.proc.enter()?;
        let owners = Owners::new(self.recorder, base.owner(), root.as_fd(), upper)?;
        Ok(Some(Server { listener, proc: self.proc, root, owners, identities: vec![base] }))
    }
}

/// Answers the calls.
#[derive(Debug)]
pub(crate) struct Server {
    listener: Listener,
    proc: Proc,
    /// The root file system of the sandbox.
    root: OwnedFd,
    owners: Owners,
    /// Who processes take themselves for, by their tag; the first is what the command began as.
    identities: Vec<Identity>,
}

impl AsFd for Server {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

/// What a call comes back with.
enum Reply {
    Value(i64),
    /// What the kernel makes of it.
    Continue,
    /// A descriptor of this file, closed at exec or not.
    File(OwnedFd, bool),
}

/// Most identities that are told apart; a program that makes more is back at the first.
const MOST_IDENTITIES: usize = 40_000;

impl Server {
    /// Answers one call; the descriptor is readable.
    pub(crate) fn serve(&mut self) {
        // Its process can be gone by now, be it at any of these points.
        let Ok(notification) = self.listener.receive() else { return };
        let reply = self.handle(&notification);
        let answer = match reply {
            Ok(Reply::File(fd, close_on_exec)) => {
                match self.listener.answer_with_descriptor(notification.id, fd.as_fd(), close_on_exec) {
                    Ok(()) => return,
                    Err(error) => Answer::Error(Errno::from_io_error(&error).unwrap_or(Errno::MFILE)),
                }
            }
            Ok(Reply::Value(value)) => Answer::Value(value),
            Ok(Reply::Continue) => Answer::Continue,
            Err(errno) => Answer::Error(errno),
        };
        let _ = self.listener.answer(notification.id, answer);
    }

    /// The base identity's user and group.
    pub(crate) fn identity(&self) -> (u32, u32) {
        self.identities[0].owner()
    }

    /// What can't be noted at the files themselves.
    pub(crate) fn into_owners(self) -> Vec<(u64, u32, u32)> {
        self.owners.finish()
    }

    fn handle(&mut self, notification: &Notification) -> Result<Reply, Errno> {
        let Some((call, narrow)) = seccomp::call(notification.architecture, notification.number) else {
            return Ok(Reply::Continue);
        };
        let caller = Caller::new(&self.proc, self.root.as_fd(), notification.thread)?;
        let tag = match self.identities.len() {
            // As long as nobody has changed, nobody need be asked.
            1 => 0,
            count => Some(caller.tag()).filter(|tag| *tag < count).unwrap_or(0),
        };
        let identity = &self.identities[tag];
        let ids = Width { narrow };
        let a = notification.arguments;
        let fd = |index: usize| a[index] as i32;
        let here = libc::AT_FDCWD;
        match call {
            Call::Get(question) => {
                let values = identity.get(question.of, question.what);
                if let [value] = values[..] {
                    return Ok(Reply::Value(ids.shown(value).into()));
                }
                for (address, value) in a.iter().zip(values) {
                    caller.write(*address, &ids.bytes(value))?;
                }
                Ok(Reply::Value(0))
            }
            Call::Getgroups => {
                let (room, count) = (fd(0), identity.groups.len());
                if room < 0 || (room > 0 && (room as usize) < count) {
                    return Err(Errno::INVAL);
                }
                if room > 0 {
                    let bytes: Vec<u8> = identity.groups.iter().flat_map(|gid| ids.bytes(*gid)).collect();
                    caller.write(a[1], &bytes)?;
                }
                Ok(Reply::Value(count as i64))
            }
            Call::Set(change) => {
                let (next, value) = identity.with(change.of, change.how, [0, 1, 2].map(|index| ids.id(a[index])))?;
                let next = tag_of(&mut self.identities, next);
                if next != tag {
                    caller.set_tag(next)?;
                }
                Ok(Reply::Value(value))
            }
            Call::Prctl => {
                let keeps = match a[0] as i32 {
                    // It holds the tag; that a timer is more exact than it was asked to be hurts nobody.
                    libc::PR_SET_TIMERSLACK => return Ok(Reply::Value(0)),
                    libc::PR_SET_KEEPCAPS => a[1] != 0,
                    // SECBIT_NO_SETUID_FIXUP and SECBIT_KEEP_CAPS.
                    _ => a[1] & 0b1_0100 != 0,
                };
                let next = identity.with_keeping(keeps);
                let next = tag_of(&mut self.identities, next);
                if next != tag {
                    caller.set_tag(next)?;
                }
                Ok(Reply::Continue)
            }
            Call::Setgroups => {
                let count = usize::try_from(fd(0)).map_err(|_| Errno::INVAL)?;
                // Refused before anything is read, as in the kernel.
                let empty = identity.with_groups(Vec::new())?;
                let bytes = caller.bytes(a[1], count.min(70_000) * ids.size())?;
                let groups = bytes.chunks_exact(ids.size()).map(|id| ids.read(id)).collect();
                let next = empty.with_groups(groups)?;
                let next = tag_of(&mut self.identities, next);
                if next != tag {
                    caller.set_tag(next)?;
                }
                Ok(Reply::Value(0))
            }
            Call::Fchown => {
                let object = caller.descriptor(fd(0))?;
                self.owners.give(&object, identity, ids.id(a[1]), ids.id(a[2]))
            }
            Call::Chown | Call::Lchown | Call::Fchownat => {
                let nofollow = AtFlags::SYMLINK_NOFOLLOW;
                let (directory, path, first, flags) = match call {
                    Call::Chown => (here, a[0], 1, AtFlags::empty()),
                    Call::Lchown => (here, a[0], 1, nofollow),
                    _ => (fd(0), a[1], 2, AtFlags::from_bits_retain(a[4] as u32)),
                };
                if !(nofollow | AtFlags::EMPTY_PATH).contains(flags) {
                    return Err(Errno::INVAL);
                }
                let path = caller.path(path)?;
                still_waits(&self.listener, notification)?;
                let object = caller.find(directory, &path, flags)?;
                self.owners.give(&object, identity, ids.id(a[first]), ids.id(a[first + 1]))
            }
            Call::Stat | Call::Lstat | Call::Fstat | Call::Newfstatat | Call::Statx => {
                if notification.architecture != seccomp::NATIVE && call != Call::Statx {
                    return Ok(Reply::Continue);
                }
                status::tell(call, &a, &caller, &self.owners)
            }
            // Whatever the command's own user makes is known to be its.
            _ if tag == 0 && !matches!(call, Call::Mknod | Call::Mknodat) => Ok(Reply::Continue),
            _ => {
                let Some(wish) = Wish::of(call, notification, &caller)? else { return Ok(Reply::Continue) };
                still_waits(&self.listener, notification)?;
                self.owners.create(&wish, &caller, identity, tag == 0)
            }
        }
    }
}

/// What was read is the caller's only if it is still there: its number may have gone to another.
fn still_waits(listener: &Listener, notification: &Notification) -> Result<(), Errno> {
    if listener.is_waiting(notification.id) { Ok(()) } else { Err(Errno::INTR) }
}

/// The tag that stands for an identity.
fn tag_of(identities: &mut Vec<Identity>, identity: Identity) -> usize {
    match identities.iter().position(|known| *known == identity) {
        Some(tag) => tag,
        None if identities.len() < MOST_IDENTITIES => {
            identities.push(identity);
            identities.len() - 1
        }
        None => 0,
    }
}

/// How wide a call's ids are.
#[derive(Debug, Clone, Copy)]
struct Width {
    /// 16 bits, in the oldest calls of 32-bit x86.
    narrow: bool,
}

impl Width {
    fn size(self) -> usize {
        if self.narrow { 2 } else { 4 }
    }

    /// An argument; -1 means none.
    fn id(self, argument: u64) -> Option<u32> {
        let (id, none) = if self.narrow { ((argument as u16).into(), 0xffff) } else { (argument as u32, u32::MAX) };
        (id != none).then_some(id)
    }

    /// What a caller sees of an id: in 16 bits a larger one is the overflow id.
    fn shown(self, id: u32) -> u32 {
        if self.narrow && id > 0xffff { 65_534 } else { id }
    }

    fn bytes(self, id: u32) -> Vec<u8> {
        let id = self.shown(id).to_le_bytes();
        id[..self.size()].to_vec()
    }

    fn read(self, bytes: &[u8]) -> u32 {
        match bytes {
            [a, b, c, d] => u32::from_le_bytes([*a, *b, *c, *d]),
            [a, b] => u16::from_le_bytes([*a, *b]).into(),
            _ => 0,
        }
    }
}
