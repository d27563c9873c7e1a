//! Hides how progress travels from the threads that work to the one that draws.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use kiln_frontend::{Diagnostic, Source};

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

/// The sending side: cheap to clone, one for each thread.
#[derive(Clone)]
pub struct Events {
    sender: Option<Sender<Event>>,
    next: Arc<AtomicUsize>,
    start: Instant,
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

impl Events {
    /// A pair of ends. The receiver's iteration ends when every sender is dropped.
    pub fn channel() -> (Self, Receiver<Event>) {
        let (sender, receiver) = channel();
        (Self { sender: Some(sender), next: Arc::new(AtomicUsize::new(1)), start: Instant::now() }, receiver)
    }

    /// A sender that nobody listens to.
    pub fn ignored() -> Self {
        Self { sender: None, next: Arc::new(AtomicUsize::new(1)), start: Instant::now() }
    }

    /// Begins a task. Dropping the [`Task`] without ending it reports it as canceled.
    pub fn start(&self, name: impl Into<String>) -> Task {
        let id = TaskId(self.next.fetch_add(1, Ordering::Relaxed));
        self.send(Event::Started { task: id, name: name.into(), at: self.now() });
        Task { id, events: self.clone(), ended: false }
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
            let _ = sender.send(event);
        }
    }
}

/// A running task.
#[derive(Debug)]
pub struct Task {
    id: TaskId,
    events: Events,
    ended: bool,
}

impl Task {
    /// Which one.
    pub fn id(&self) -> TaskId {
        self.id
    }

    /// Passes on what the task's command wrote.
    pub fn log(&self, data: &[u8]) {
        self.events.send(Event::Log { task: self.id, at: self.events.now(), data: data.to_vec() });
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
        let at = self.events.now();
        self.events.send(Event::Status { task: self.id, name: name.to_owned(), current, total, done, at });
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
