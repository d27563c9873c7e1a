//! Hides how a RUN reaches an ssh agent: through a socket that lives as long as the command, and lets keys be listed and used but
//! not changed (draft-miller-ssh-agent; BuildKit `sshforward`).

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The messages that are passed on.
const REQUEST_IDENTITIES: u8 = 11;
const SIGN_REQUEST: u8 = 13;
/// The answer to all others.
const FAILURE: u8 = 5;
/// The longest message that OpenSSH takes.
const LONGEST: u32 = 256 << 10;

/// The name of the socket in its folder.
const NAME: &str = "ssh-agent";

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
    pub fn start(folder: &Path, agent: &Path, mode: u32, uid: u32, gid: u32) -> io::Result<Forward> {
        drop(UnixStream::connect(agent)?);
        let path = folder.join(NAME);
        let folder = std::fs::File::open(folder)?;
        let listener = UnixListener::bind(short(&folder))?;
        std::os::unix::fs::chown(&path, Some(uid), Some(gid))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, agent) = (Arc::clone(&stop), agent.to_owned());
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

fn serve(mut client: UnixStream, agent: &Path) -> io::Result<()> {
    let mut agent = UnixStream::connect(agent)?;
    while let Some(request) = receive(&mut client)? {
        let answer = match request.first() {
            Some(&(REQUEST_IDENTITIES | SIGN_REQUEST)) => {
                send(&mut agent, &request)?;
                receive(&mut agent)?.ok_or(io::ErrorKind::UnexpectedEof)?
            }
            _ => vec![FAILURE],
        };
        send(&mut client, &answer)?;
    }
    Ok(())
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
        let forward = Forward::start(&folder, &agent, 0o620, 0, 0).unwrap();
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
        let nobody = Forward::start(&folder, &temp.path().join("nobody"), 0o600, 0, 0);
        assert!(nobody.is_err());
    }
}
