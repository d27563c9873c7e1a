//! Hides how progress travels from the threads that work to the one that draws.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kiln_frontend::{Diagnostic, Source};

/// How many bytes of logs may wait to be shown. Who writes more waits, as it would for a slow terminal, so that a command which writes
/// gigabytes costs no memory; nothing is ever left out.
const MOST_WAITING: usize = 4 << 20;
/// What an event costs beside its bytes: a command may write them one by one.
const EVENT_COST: usize = 128;
/// How much of it is taken out before it is shown.
const BATCH: usize = 1 << 20;
/// A part of a task is not reported more often than this: nobody sees more, and a quick transfer would send thousands.
const STATUS_INTERVAL: Duration = Duration::from_millis(40);

/// Which line of progress an event belongs to: BuildKit's `#N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(pub usize);

/// Something that a person who watches the build may want to see. Times count from the start of the build.
#[derive(Debug, Clone)]
pub enum Event {
    /// A task began; its name is what BuildKit shows (`[2/5] RUN make`, `[internal] load build context`).
    Started {
        /// The task.
        task: TaskId,
        /// Its name.
        name: String,
        /// When.
        at: Duration,
    },
    /// The command of a task wrote something; any bytes, not whole lines.
    Log {
        /// The task.
        task: TaskId,
        /// Where it wrote.
        stream: Stream,
        /// When.
        at: Duration,
        /// The bytes.
        data: Vec<u8>,
    },
    /// Part of a task moved on: a transfer, an export of a layer.
    Status {
        /// The task.
        task: TaskId,
        /// Which part, for instance `sha256:0123…` or `exporting layers`; the same name again replaces the figure.
        name: String,
        /// How far, in bytes; 0 where bytes mean nothing.
        current: u64,
        /// Of how many, when known.
        total: Option<u64>,
        /// Whether this part is done.
        done: bool,
        /// When.
        at: Duration,
    },
    /// Something that is no error: a lint of the Dockerfile, a cache that could not be used.
    Warning {
        /// The task, if it belongs to one.
        task: Option<TaskId>,
        /// What and why, and what to do; may have several lines.
        message: String,
    },
    /// What the build checks say about the Dockerfile.
    Lints {
        /// The Dockerfile.
        source: Arc<Source>,
        /// The checks that fired.
        lints: Vec<Diagnostic>,
    },
    /// Somebody else wants the terminal: all that came before is to be shown in its last form, then these words, and then nothing
    /// that doesn't stand on lines of its own.
    Paused {
        /// To be shown last; may be empty.
        words: String,
        /// Is told when all is shown.
        shown: Sender<()>,
    },
    /// A task ended.
    Finished {
        /// The task.
        task: TaskId,
        /// How.
        outcome: Outcome,
        /// When.
        at: Duration,
    },
}

/// Where a command writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// How a task ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It did its work.
    Done,
    /// Its result was there already.
    Cached,
    /// It failed; the text is the error's first line.
    Failed(String),
    /// The build was stopped before it ended.
    Canceled,
}

/// The receiving side.
#[derive(Debug)]
pub struct Incoming {
    /// `None` ends it.
    receiver: Receiver<Option<Event>>,
    gate: Gate,
    /// What was taken out of the logs and is not shown yet.
    taken: usize,
    over: bool,
}

/// Ends the receiving side.
#[derive(Debug)]
pub struct End(Sender<Option<Event>>);

impl End {
    /// Nothing is handed out any more but what was sent before, whoever still holds an [`Events`]: a thread, or what is told when
    /// somebody waits for a lock.
    pub fn reached(self) {
        let _ = self.0.send(None);
    }
}

impl Incoming {
    /// Says that all that was handed out so far is shown, and hands out what there is, but not more than can be shown at once; waits
    /// for the first at most for so long.
    ///
    /// # Errors
    /// There is nothing: not yet, or never more.
    pub fn next(&mut self, wait: Duration) -> Result<Vec<Event>, RecvTimeoutError> {
        self.gate.leave(std::mem::take(&mut self.taken));
        let mut next = if self.over { None } else { Some(self.receiver.recv_timeout(wait)?) };
        let mut batch = Vec::new();
        while let Some(sent) = next {
            let Some(event) = sent else {
                self.over = true;
                break;
            };
            self.taken += cost(&event);
            batch.push(event);
            next = if self.taken < BATCH { self.receiver.try_recv().ok() } else { None };
        }
        if self.over && batch.is_empty() { Err(RecvTimeoutError::Disconnected) } else { Ok(batch) }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // Nobody watches any more, which is no reason to stop working.
        self.gate.open();
    }
}

/// What an event counts of [`MOST_WAITING`]. What is no log comes in small numbers, and from threads that must not wait.
fn cost(event: &Event) -> usize {
    match event {
        Event::Log { data, .. } => data.len() + EVENT_COST,
        _ => 0,
    }
}

/// Where logs wait until there is room for them.
#[derive(Debug, Clone, Default)]
pub struct Gate(Arc<(Mutex<Waiting>, Condvar)>);

#[derive(Debug, Default)]
struct Waiting {
    bytes: usize,
    open: bool,
}

impl Gate {
    /// From now on nothing waits: the work is to end soon, and what it still says is little.
    pub fn open(&self) {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).open = true;
        self.0.1.notify_all();
    }

    fn enter(&self, bytes: usize) {
        let waiting = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |waiting: &mut Waiting| !waiting.open && waiting.bytes > 0 && waiting.bytes + bytes > MOST_WAITING;
        let mut waiting = self.0.1.wait_while(waiting, full).unwrap_or_else(PoisonError::into_inner);
        waiting.bytes += bytes;
    }

    fn leave(&self, bytes: usize) {
        if bytes > 0 {
            let mut waiting = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.bytes = waiting.bytes.saturating_sub(bytes);
            drop(waiting);
            self.0.1.notify_all();
        }
    }
}

/// The sending side: cheap to clone, one for each thread.
#[derive(Clone)]
pub struct Events {
    sender: Option<Sender<Option<Event>>>,
    gate: Gate,
    next: Arc<AtomicUsize>,
    start: Instant,
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

impl Events {
    /// A pair of ends. The receiver is at its end when every sender is dropped.
    pub fn channel() -> (Self, Incoming) {
        let (sender, receiver) = channel();
        let gate = Gate::default();
        let incoming = Incoming { receiver, gate: gate.clone(), taken: 0, over: false };
        (Self { sender: Some(sender), gate, next: Arc::new(AtomicUsize::new(1)), start: Instant::now() }, incoming)
    }

    /// What ends the receiving side before every sender is dropped; none where nobody listens.
    pub fn end(&self) -> Option<End> {
        self.sender.clone().map(End)
    }

    /// A sender that nobody listens to.
    pub fn ignored() -> Self {
        Self { sender: None, gate: Gate::default(), next: Arc::new(AtomicUsize::new(1)), start: Instant::now() }
    }

    /// Begins a task. Dropping the [`Task`] without ending it reports it as canceled.
    pub fn start(&self, name: impl Into<String>) -> Task {
        let id = TaskId(self.next.fetch_add(1, Ordering::Relaxed));
        self.send(Event::Started { task: id, name: name.into(), at: self.now() });
        Task { id, events: self.clone(), ended: false, reported: Mutex::default() }
    }

    /// Where logs wait while what was sent before is shown.
    pub fn gate(&self) -> Gate {
        self.gate.clone()
    }

    /// Says something that is no error and belongs to no task.
    pub fn warn(&self, message: impl Into<String>) {
        self.send(Event::Warning { task: None, message: message.into() });
    }

    /// Says what the build checks found, if they found anything.
    pub fn lints(&self, source: &Arc<Source>, lints: Vec<Diagnostic>) {
        if !lints.is_empty() {
            self.send(Event::Lints { source: Arc::clone(source), lints });
        }
    }

    /// Waits until all that was sent is shown, followed by `words`, so that the terminal can be somebody else's.
    pub fn pause(&self, words: &str) {
        let (shown, wait) = channel();
        self.send(Event::Paused { words: words.to_owned(), shown });
        // An error says that nobody watches.
        let _ = wait.recv();
    }

    /// The time since the start of the build.
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn send(&self, event: Event) {
        if let Some(sender) = &self.sender {
            // Nobody listening any more is no reason to stop working.
            let _ = sender.send(Some(event));
        }
    }
}

/// Passes bytes on and reports how many went through, as a part of a task.
#[derive(Debug)]
pub struct Counted<'t, T> {
    inner: T,
    task: Option<&'t Task>,
    name: &'static str,
    done: u64,
    total: Option<u64>,
}

impl<'t, T> Counted<'t, T> {
    /// Begins the part `name`; without a task nobody is told.
    pub fn new(inner: T, task: Option<&'t Task>, name: &'static str, total: Option<u64>) -> Self {
        task.into_iter().for_each(|task| task.status(name, 0, total));
        Self { inner, task, name, done: 0, total }
    }

    /// Ends it.
    pub fn finish(self) -> T {
        self.task.into_iter().for_each(|task| task.status_done(self.name, self.done, self.total.map(|_| self.done)));
        self.inner
    }

    fn count(&mut self, bytes: usize) {
        self.done += bytes as u64;
        self.task.into_iter().for_each(|task| task.status(self.name, self.done, self.total));
    }
}

impl<T: Read> Read for Counted<'_, T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.count(read);
        Ok(read)
    }
}

impl<T: Write> Write for Counted<'_, T> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buffer)?;
        self.count(written);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// A running task.
#[derive(Debug)]
pub struct Task {
    id: TaskId,
    events: Events,
    ended: bool,
    /// When each part was reported last.
    reported: Mutex<HashMap<String, Instant>>,
}

impl Task {
    /// Which one.
    pub fn id(&self) -> TaskId {
        self.id
    }

    /// Passes on what the task's command wrote, and waits where the display can't keep up.
    pub fn log(&self, stream: Stream, data: &[u8]) {
        if self.events.sender.is_some() {
            let event = Event::Log { task: self.id, stream, at: self.events.now(), data: data.to_vec() };
            self.events.gate.enter(cost(&event));
            self.events.send(event);
        }
    }

    /// Says how far a part of the task has come.
    pub fn status(&self, name: &str, current: u64, total: Option<u64>) {
        self.report(name, current, total, false);
    }

    /// Says that a part of the task is done.
    pub fn status_done(&self, name: &str, current: u64, total: Option<u64>) {
        self.report(name, current, total, true);
    }

    fn report(&self, name: &str, current: u64, total: Option<u64>, done: bool) {
        if !self.is_due(name, done) {
            return;
        }
        let at = self.events.now();
        self.events.send(Event::Status { task: self.id, name: name.to_owned(), current, total, done, at });
    }

    /// Whether a part of the task is to be reported now: its beginning and its end always are.
    fn is_due(&self, name: &str, done: bool) -> bool {
        let now = Instant::now();
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        match reported.get_mut(name) {
            Some(last) if done || now.duration_since(*last) >= STATUS_INTERVAL => *last = now,
            Some(_) => return false,
            None => drop(reported.insert(name.to_owned(), now)),
        }
        true
    }

    /// Says something that is no error.
    pub fn warn(&self, message: impl Into<String>) {
        self.events.send(Event::Warning { task: Some(self.id), message: message.into() });
    }

    /// Ends the task.
    pub fn finish(mut self, outcome: Outcome) {
        self.end(outcome);
    }

    /// Ends the task as `Done`.
    pub fn done(self) {
        self.finish(Outcome::Done);
    }

    /// Ends the task as `Done` or `Failed`, as `result` says, and hands `result` on.
    pub fn end_with<T, E: fmt::Display>(self, result: Result<T, E>) -> Result<T, E> {
        match &result {
            Ok(_) => self.finish(Outcome::Done),
            Err(error) => self.finish(Outcome::Failed(error.to_string())),
        }
        result
    }

    fn end(&mut self, outcome: Outcome) {
        if !self.ended {
            self.ended = true;
            self.events.send(Event::Finished { task: self.id, outcome, at: self.events.now() });
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.end(Outcome::Canceled);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: usize = 64 << 10;

    #[test]
    fn the_end_is_reached_while_somebody_could_still_send() {
        let (events, mut incoming) = Events::channel();
        let end = events.end().unwrap();
        events.warn("last");
        end.reached();
        events.warn("too late");
        let an_hour = Duration::from_secs(3600);
        assert!(matches!(&incoming.next(an_hour).unwrap()[..], [Event::Warning { message, .. }] if message == "last"));
        assert_eq!(incoming.next(an_hour).unwrap_err(), RecvTimeoutError::Disconnected);
    }

    #[test]
    fn logs_wait_for_who_shows_them_and_lose_nothing() {
        let (events, mut incoming) = Events::channel();
        let sent = Arc::new(AtomicUsize::new(0));
        let (of_writer, written) = (Arc::clone(&sent), 400 * PIECE);
        let writer = std::thread::spawn(move || {
            let task = events.start("loud");
            for _ in 0..400 {
                task.log(Stream::Out, &[b'x'; PIECE]);
                of_writer.fetch_add(PIECE, Ordering::SeqCst);
            }
        });
        let (mut shown, mut largest) = (0, 0);
        while let Ok(batch) = incoming.next(Duration::from_secs(60)) {
            // A slow display.
            std::thread::sleep(Duration::from_millis(2));
            largest = largest.max(sent.load(Ordering::SeqCst).saturating_sub(shown));
            shown += batch.iter().map(|event| if let Event::Log { data, .. } = event { data.len() } else { 0 }).sum::<usize>();
        }
        writer.join().unwrap();
        assert_eq!(shown, written);
        assert!(largest <= MOST_WAITING, "{largest} bytes waited");
    }

    #[test]
    fn nothing_waits_when_nobody_watches_or_the_work_is_to_end() {
        for nobody_watches in [true, false] {
            let (events, incoming) = Events::channel();
            let mut incoming = Some(incoming);
            let task = events.start("loud");
            let (done, wait) = channel();
            let writer = std::thread::spawn(move || {
                (0..200).for_each(|_| task.log(Stream::Err, &[b'x'; PIECE]));
                let _ = done.send(());
            });
            assert!(wait.recv_timeout(Duration::from_millis(50)).is_err(), "it waits");
            if nobody_watches {
                drop(incoming.take());
            } else {
                events.gate().open();
            }
            wait.recv_timeout(Duration::from_secs(60)).unwrap();
            writer.join().unwrap();
        }
    }

    #[test]
    fn a_quick_transfer_is_reported_seldom_and_to_its_end() {
        let (events, mut incoming) = Events::channel();
        let task = events.start("pull");
        (0..100_000).for_each(|n| task.status("part", n, Some(100_000)));
        task.status_done("part", 100_000, Some(100_000));
        drop((task, events));
        let mut figures = Vec::new();
        while let Ok(batch) = incoming.next(Duration::from_secs(60)) {
            figures
                .extend(batch.iter().filter_map(|e| if let Event::Status { current, .. } = e { Some(*current) } else { None }));
        }
        assert!(figures.len() < 1000 && figures.first() == Some(&0) && figures.last() == Some(&100_000), "{}", figures.len());
    }
}
