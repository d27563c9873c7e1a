//! Hides how a command reaches an ssh agent: through a socket that lives as long as the command, and lets keys be listed and used
//! but not changed (draft-miller-ssh-agent; BuildKit `sshforward`). For key files the agent is kiln itself.

pub mod key;

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use key::{Fields, Key, string};

/// The messages that are passed on.
const REQUEST_IDENTITIES: u8 = 11;
const SIGN_REQUEST: u8 = 13;
/// The answer to all others.
const FAILURE: u8 = 5;
/// The answers of an agent to these two.
const IDENTITIES_ANSWER: u8 = 12;
const SIGN_RESPONSE: u8 = 14;
/// The longest message that OpenSSH takes.
const LONGEST: u32 = 256 << 10;

/// The name of the socket in its folder.
const NAME: &str = "ssh-agent";

/// Who answers for `--ssh`.
#[derive(Debug, Clone, PartialEq)]
pub enum Agent {
    /// An agent that listens at this socket.
    Socket(PathBuf),
    /// kiln, with these keys.
    Keys(Arc<[Key]>),
}

/// A socket that leads to an agent, until it is dropped.
#[derive(Debug)]
pub struct Forward {
    folder: std::fs::File,
    path: PathBuf,
    stop: Arc<AtomicBool>,
}

impl Forward {
    /// Makes a socket in `folder` that leads to `agent`, with this mode and owner.
    ///
    /// # Errors
    /// What the system answers; also when nobody listens at `agent`.
    pub fn start(folder: &Path, agent: &Agent, mode: u32, uid: u32, gid: u32) -> io::Result<Forward> {
        if let Agent::Socket(socket) = agent {
            drop(UnixStream::connect(socket)?);
        }
        let path = folder.join(NAME);
        let folder = std::fs::File::open(folder)?;
        let listener = UnixListener::bind(short(&folder))?;
        std::os::unix::fs::chown(&path, Some(uid), Some(gid))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, agent) = (Arc::clone(&stop), agent.clone());
        std::thread::Builder::new().name(NAME.to_owned()).spawn(move || {
            for client in listener.incoming() {
                if stopped.load(Ordering::Acquire) {
                    break;
                }
                let agent = agent.clone();
                // What goes wrong in an exchange ends it, and the command sees that.
                match client {
                    Ok(client) => drop(std::thread::Builder::new().name(NAME.to_owned()).spawn(move || serve(client, &agent))),
                    // For want of descriptors, or of a client that is gone already.
                    Err(_) => std::thread::sleep(std::time::Duration::from_millis(10)),
                }
            }
        })?;
        Ok(Forward { folder, path, stop })
    }

    /// Where the socket is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A name for it that is short enough for programs on the host, whatever its folder's path is.
    pub fn address(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}/{NAME}", std::process::id(), self.folder.as_raw_fd()))
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Wakes the thread, which then looks.
        let _ = UnixStream::connect(short(&self.folder));
    }
}

/// A name for the socket that is short, whatever its folder's path is: the kernel takes 108 bytes.
fn short(folder: &std::fs::File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{NAME}", folder.as_raw_fd()))
}

fn serve(mut client: UnixStream, agent: &Agent) -> io::Result<()> {
    let mut socket = match agent {
        Agent::Socket(path) => Some(UnixStream::connect(path)?),
        Agent::Keys(_) => None,
    };
    while let Some(request) = receive(&mut client)? {
        let answer = match (request.first(), &mut socket, agent) {
            (Some(&(REQUEST_IDENTITIES | SIGN_REQUEST)), Some(socket), _) => {
                send(socket, &request)?;
                receive(socket)?.ok_or(io::ErrorKind::UnexpectedEof)?
            }
            (Some(&REQUEST_IDENTITIES), None, Agent::Keys(keys)) => identities(keys),
            (Some(&SIGN_REQUEST), None, Agent::Keys(keys)) => signature(keys, &request[1..]).unwrap_or_else(|| vec![FAILURE]),
            _ => vec![FAILURE],
        };
        send(&mut client, &answer)?;
    }
    Ok(())
}

/// All keys, without their comments, which tell of the machine.
fn identities(keys: &[Key]) -> Vec<u8> {
    let count = u32::try_from(keys.len()).unwrap_or(u32::MAX).to_be_bytes();
    let mut answer = [&[IDENTITIES_ANSWER][..], &count].concat();
    keys.iter().for_each(|key| answer.extend([string(key.public()), string(b"")].concat()));
    answer
}

/// A public key, what is to be signed, and flags: a signature, if the key is among `keys` and can do that.
fn signature(keys: &[Key], request: &[u8]) -> Option<Vec<u8>> {
    let mut fields = Fields(request);
    let (public, data, flags) = (fields.string().ok()?, fields.string().ok()?, fields.word().ok()?);
    let signature = keys.iter().find(|key| key.public() == public)?.sign(data, flags)?;
    Some([vec![SIGN_RESPONSE], string(&signature)].concat())
}

/// The next message; `None` at the end.
fn receive(stream: &mut UnixStream) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    match stream.read_exact(&mut length) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let length = u32::from_be_bytes(length);
    if length > LONGEST {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut message = vec![0; length as usize];
    stream.read_exact(&mut message)?;
    Ok(Some(message))
}

fn send(stream: &mut UnixStream, message: &[u8]) -> io::Result<()> {
    let length = u32::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    stream.write_all(&[&length.to_be_bytes(), message].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn keys_can_be_used_but_not_changed() {
        let temp = tempfile::tempdir().unwrap();
        let agent = temp.path().join("agent");
        let listener = UnixListener::bind(&agent).unwrap();
        // Echoes what it gets, behind a mark.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                std::thread::spawn(move || {
                    while let Ok(Some(message)) = receive(&mut stream) {
                        send(&mut stream, &[b"agent:", message.as_slice()].concat()).unwrap();
                    }
                });
            }
        });
        let folder = temp.path().join("long".repeat(30));
        std::fs::create_dir(&folder).unwrap();
        let forward = Forward::start(&folder, &Agent::Socket(agent), 0o620, 0, 0).unwrap();
        assert_eq!(std::fs::metadata(forward.path()).unwrap().mode() & 0o7777, 0o620);
        let mut client = UnixStream::connect(short(&forward.folder)).unwrap();
        let rows: &[(&[u8], &[u8])] = &[
            (&[REQUEST_IDENTITIES], b"agent:\x0b"),
            (b"\x0dsign this", b"agent:\x0dsign this"),
            // Add, remove all, lock, an extension, nothing.
            (b"\x11key", &[FAILURE]),
            (b"\x13", &[FAILURE]),
            (b"\x16pass", &[FAILURE]),
            (b"\x1bsession-bind@openssh.com", &[FAILURE]),
            (b"", &[FAILURE]),
        ];
        for (request, want) in rows {
            send(&mut client, request).unwrap();
            assert_eq!(receive(&mut client).unwrap().unwrap(), *want, "{request:?}");
        }
        client.write_all(&[0xff; 4]).unwrap();
        assert!(receive(&mut client).is_ok_and(|m| m.is_none()), "a message without end ends the exchange");
        let nobody = Forward::start(&folder, &Agent::Socket(temp.path().join("nobody")), 0o600, 0, 0);
        assert!(nobody.is_err());
    }
}
