//! A line that breaks: passes bytes on, counts them, and cuts the connection each time that so many have gone.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The line, until the test program ends.
pub(crate) struct Cutter {
    port: u16,
    counts: Arc<Counts>,
}

struct Counts {
    /// Bytes of both directions.
    moved: AtomicU64,
    /// After how many bytes more it cuts, and how often.
    each: u64,
    cuts: u64,
    done: AtomicU64,
}

impl Cutter {
    /// Leads to `backend`, and cuts `cuts` times, each time that `each` bytes have gone.
    pub(crate) fn start(backend: &str, each: u64, cuts: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let counts = Arc::new(Counts { moved: AtomicU64::new(0), each, cuts, done: AtomicU64::new(0) });
        let (own, backend) = (counts.clone(), backend.to_owned());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (Ok(here), Ok(there)) = (stream, TcpStream::connect(&backend)) else { continue };
                for (from, to) in [(&here, &there), (&there, &here)] {
                    let (from, to, counts) = (from.try_clone().unwrap(), to.try_clone().unwrap(), own.clone());
                    std::thread::spawn(move || pass(from, to, &counts));
                }
            }
        });
        Self { port, counts }
    }

    /// `127.0.0.1:PORT`.
    pub(crate) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// `localhost:PORT`, the name in certificates.
    pub(crate) fn name(&self) -> String {
        format!("localhost:{}", self.port)
    }

    /// How many bytes have gone.
    pub(crate) fn moved(&self) -> u64 {
        self.counts.moved.load(Ordering::SeqCst)
    }

    /// How often it cut.
    pub(crate) fn cuts(&self) -> u64 {
        self.counts.done.load(Ordering::SeqCst)
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, counts: &Counts) {
    let mut buffer = [0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let moved = counts.moved.fetch_add(count as u64, Ordering::SeqCst) + count as u64;
        let due = (moved / counts.each).min(counts.cuts);
        if counts.done.fetch_max(due, Ordering::SeqCst) < due || to.write_all(&buffer[..count]).is_err() {
            let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
            return;
        }
    }
    // Both ways, so that none waits for the other.
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
