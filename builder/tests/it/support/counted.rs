//! A socket in front of a daemon's, which counts what is sent to it and can do something at the moment when an image comes.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

type Act = Box<dyn FnOnce() + Send>;

/// The socket; whoever connects speaks to the daemon behind it.
pub(crate) struct Counted {
    path: PathBuf,
    sent: Arc<AtomicU64>,
    before_load: Arc<Mutex<Option<Act>>>,
}

impl Counted {
    /// A socket at `path`, open to everybody, in front of `daemon`'s.
    pub(crate) fn new(path: &Path, daemon: PathBuf) -> Counted {
        use std::os::unix::fs::PermissionsExt;
        let listener = UnixListener::bind(path).expect("a socket can be made");
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).expect("a socket has rights");
        let counted = Counted { path: path.to_owned(), sent: Arc::default(), before_load: Arc::default() };
        let (sent, before_load) = (Arc::clone(&counted.sent), Arc::clone(&counted.before_load));
        // The threads end with the test program.
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.expect("a client connects");
                let behind = UnixStream::connect(&daemon).expect("the daemon is there");
                let back = (behind.try_clone().expect("a socket"), client.try_clone().expect("a socket"));
                let (sent, before_load) = (Arc::clone(&sent), Arc::clone(&before_load));
                std::thread::spawn(move || pass(client, behind, &sent, &before_load));
                std::thread::spawn(move || pass(back.0, back.1, &AtomicU64::new(0), &Mutex::new(None)));
            }
        });
        counted
    }

    /// `unix://…`.
    pub(crate) fn host(&self) -> String {
        format!("unix://{}", self.path.display())
    }

    /// How many bytes were sent since the last question.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.swap(0, Ordering::SeqCst)
    }

    /// Does something once, between the daemon's answers to questions and the next image.
    pub(crate) fn before_load(&self, act: impl FnOnce() + Send + 'static) {
        *self.before_load.lock().expect("nobody panicked") = Some(Box::new(act));
    }
}

/// Passes on what comes until its end.
fn pass(mut from: UnixStream, mut to: UnixStream, count: &AtomicU64, before_load: &Mutex<Option<Act>>) {
    let mut buffer = vec![0; 256 << 10];
    loop {
        let read = from.read(&mut buffer).unwrap_or(0);
        if read == 0 {
            let _ = to.shutdown(std::net::Shutdown::Write);
            return;
        }
        let head = &buffer[..read.min(200)];
        if head.starts_with(b"POST ") && head.windows(12).any(|word| word == b"/images/load") {
            let act = before_load.lock().expect("nobody panicked").take();
            act.into_iter().for_each(|act| act());
        }
        count.fetch_add(read as u64, Ordering::SeqCst);
        if to.write_all(&buffer[..read]).is_err() {
            return;
        }
    }
}
