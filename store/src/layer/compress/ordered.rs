//! Hides that pieces of work are done by several threads: what comes out is in the order of what went in.

use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Threads that turn a `J` into a `D`. Bounded: who hands out a job first takes what is done, when enough is on the way.
pub(crate) struct Ordered<J, D> {
    jobs: Option<SyncSender<(u64, J)>>,
    done: Receiver<(u64, D)>,
    workers: Vec<JoinHandle<()>>,
    /// Jobs handed out, and results given back.
    sent: u64,
    taken: u64,
    early: BTreeMap<u64, D>,
    in_flight: u64,
}

impl<J: Send + 'static, D: Send + 'static> Ordered<J, D> {
    /// `make` gives each thread its own worker, which may keep what it needs for the next job.
    pub(crate) fn new<W: FnMut(J) -> D + Send + 'static>(threads: usize, make: impl Fn() -> W) -> io::Result<Self> {
        let in_flight = threads * 2;
        let (jobs, take) = mpsc::sync_channel::<(u64, J)>(in_flight);
        let take = Arc::new(Mutex::new(take));
        let (give, done) = mpsc::channel();
        let mut workers = Vec::with_capacity(threads);
        for _ in 0..threads {
            let (take, give, mut work) = (Arc::clone(&take), give.clone(), make());
            let run = move || {
                loop {
                    let job = take.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok((serial, job)) = job else { return };
                    if give.send((serial, work(job))).is_err() {
                        return;
                    }
                }
            };
            workers.push(std::thread::Builder::new().name("compress".into()).spawn(run)?);
        }
        let early = BTreeMap::new();
        Ok(Self { jobs: Some(jobs), done, workers, sent: 0, taken: 0, early, in_flight: in_flight as u64 })
    }

    /// Hands out a job; `sink` gets the results that are due.
    pub(crate) fn send(&mut self, job: J, sink: &mut dyn FnMut(D) -> io::Result<()>) -> io::Result<()> {
        while self.sent - self.taken >= self.in_flight {
            self.receive(sink)?;
        }
        self.jobs.as_ref().and_then(|jobs| jobs.send((self.sent, job)).ok()).ok_or_else(lost)?;
        self.sent += 1;
        Ok(())
    }

    /// Waits for all jobs; `sink` gets their results.
    pub(crate) fn finish(&mut self, sink: &mut dyn FnMut(D) -> io::Result<()>) -> io::Result<()> {
        while self.taken < self.sent {
            self.receive(sink)?;
        }
        self.jobs = None;
        for worker in self.workers.drain(..) {
            // A worker that panicked gave no answer, which `receive` has reported.
            let _ = worker.join();
        }
        Ok(())
    }

    /// Waits for one result and passes on what's in order.
    fn receive(&mut self, sink: &mut dyn FnMut(D) -> io::Result<()>) -> io::Result<()> {
        let (serial, done) = self.done.recv().map_err(|_| lost())?;
        self.early.insert(serial, done);
        while let Some(done) = self.early.remove(&self.taken) {
            self.taken += 1;
            sink(done)?;
        }
        Ok(())
    }
}

fn lost() -> io::Error {
    io::Error::other("a compressing thread ended unexpectedly")
}
