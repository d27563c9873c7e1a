//! What kiln and its supervisor say to each other, and how a failure crosses from one process to another.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::RunError;
use crate::spec::Status;
use crate::stub::Stub;
use crate::user::UserError;

/// From the supervisor to kiln.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// These mount points were made and have to be removed after the run.
    Stubs(Vec<Stub>),
    /// What was written down of owners, before the command's end is told.
    Recorded {
        /// Inodes in the upper directory, users and groups.
        owners: Vec<(u64, u32, u32)>,
        /// Whom the command ran as.
        identity: (u32, u32),
    },
    /// The command's terminal was made; the descriptor beside this is its other end.
    Terminal,
    /// The sandbox lacks something that the command may need.
    Warned(Vec<String>),
    /// The command could not be started.
    Failed(Failure),
    /// The command ended.
    Ended(Ending),
}

/// How the command ended.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) enum Ending {
    Exited(i32),
    Signaled(i32),
}

impl From<Ending> for Status {
    fn from(ending: Ending) -> Status {
        match ending {
            Ending::Exited(code) => Status::Exited(code),
            Ending::Signaled(signal) => Status::Signaled(signal),
        }
    }
}

/// From kiln to the supervisor, one byte each.
pub(crate) const TERMINATE: u8 = b'T';
/// Ends every process at once.
pub(crate) const KILL: u8 = b'K';

/// The byte after it is the number of a signal for the command.
pub(crate) const SIGNAL: u8 = b'S';

/// A [`RunError`] on its way between processes; errors of the kernel travel as numbers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Failure {
    Setup { operation: String, errno: i32 },
    KernelFeature { operation: String, feature: String, errno: i32 },
    Target { path: PathBytes, reason: String },
    User(UserError),
    WorkingDirectory { path: PathBytes, reason: String },
    ProgramNotFound { program: String, in_path: bool },
    Exec { program: String, errno: i32 },
    Network { words: String },
    Held,
}

/// A path that may be no UTF-8, which serde refuses for `PathBuf`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PathBytes(pub(crate) std::ffi::OsString);

impl From<PathBytes> for PathBuf {
    fn from(path: PathBytes) -> PathBuf {
        path.0.into()
    }
}

impl From<PathBuf> for PathBytes {
    fn from(path: PathBuf) -> PathBytes {
        PathBytes(path.into())
    }
}

impl From<Failure> for RunError {
    fn from(failure: Failure) -> RunError {
        let source = io::Error::from_raw_os_error;
        match failure {
            Failure::Setup { operation, errno } => RunError::Setup { operation, source: source(errno) },
            Failure::KernelFeature { operation, feature, errno } => {
                RunError::KernelFeature { operation, feature, source: source(errno) }
            }
            Failure::Target { path, reason } => RunError::Target { path: path.into(), reason },
            Failure::User(error) => RunError::User(error),
            Failure::WorkingDirectory { path, reason } => RunError::WorkingDirectory { path: path.into(), reason },
            Failure::ProgramNotFound { program, in_path } => RunError::ProgramNotFound { program, in_path },
            Failure::Held => RunError::Held,
            Failure::Network { words } => RunError::Network { words },
            Failure::Exec { program, errno } => RunError::Exec { program, source: source(errno) },
        }
    }
}

/// Writes `message` with its length before it.
pub(crate) fn send<T: Serialize>(to: &mut dyn Write, message: &T) -> io::Result<()> {
    to.write_all(&framed(message)?)
}

/// The same with a descriptor beside it.
pub(crate) fn send_with<T: Serialize>(to: &mut UnixStream, message: &T, descriptor: BorrowedFd<'_>) -> io::Result<()> {
    let bytes = framed(message)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor];
    if !beside.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let sent = loop {
        match sendmsg(&*to, &[IoSlice::new(&bytes)], &mut beside, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            sent => break sent?,
        }
    };
    to.write_all(&bytes[sent..])
}

fn framed<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let body = postcard::to_stdvec(message).map_err(io::Error::other)?;
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend(body);
    Ok(bytes)
}

/// Reads from a socket and keeps the descriptors that come along.
pub(crate) struct Incoming<'a> {
    pub(crate) socket: &'a UnixStream,
    pub(crate) descriptors: &'a mut Vec<OwnedFd>,
}

impl Read for Incoming<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut beside = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(self.socket, &mut [IoSliceMut::new(buffer)], &mut beside, RecvFlags::CMSG_CLOEXEC)?;
        for message in beside.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors);
            }
        }
        Ok(received.bytes)
    }
}

/// Reads one message; `None` when the other side has closed.
pub(crate) fn receive<T: DeserializeOwned>(from: &mut dyn Read) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let length = u32::from_le_bytes(length);
    let mut body = Vec::new();
    // Grows as bytes come, and not by what is claimed.
    if from.take(length.into()).read_to_end(&mut body)? < length as usize {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    postcard::from_bytes(&body).map(Some).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervise::Assignment;

    /// C04: whatever bytes come, a message of every kind is read or refused; nothing panics and nothing large is set aside for a length
    /// that is only claimed.
    #[test]
    fn c04_hostile_messages() {
        let stub = Stub::Made { path: PathBuf::from("/a").into(), inode: 7 };
        let failure = Failure::Target { path: PathBuf::from("/x").into(), reason: "it is odd".to_owned() };
        let mut seeds: Vec<Vec<u8>> = vec![vec![], vec![0; 4], vec![255; 16]];
        for report in [Report::Stubs(vec![stub]), Report::Failed(failure), Report::Ended(Ending::Exited(3))] {
            let mut bytes = Vec::new();
            send(&mut bytes, &report).unwrap();
            seeds.push(bytes);
        }
        let mut random = 0x9e37_79b9_7f4a_7c15u64;
        let mut next = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random
        };
        for _ in 0..20_000 {
            let mut bytes = seeds[next() as usize % seeds.len()].clone();
            for _ in 0..next() % 4 {
                match next() % 3 {
                    0 if !bytes.is_empty() => {
                        let at = next() as usize % bytes.len();
                        bytes[at] = next() as u8;
                    }
                    1 => bytes.truncate(next() as usize % (bytes.len() + 1)),
                    _ => bytes.extend(next().to_le_bytes()),
                }
            }
            let _ = receive::<Report>(&mut bytes.as_slice());
            let _ = receive::<Failure>(&mut bytes.as_slice());
            let _ = receive::<Assignment>(&mut bytes.as_slice());
        }
        let claimed = receive::<Report>(&mut [255u8, 255, 255, 255, 0].as_slice());
        assert_eq!(claimed.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
