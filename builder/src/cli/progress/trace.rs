//! Hides how a stream of events becomes a picture of the build: what runs, how far it is, what it said last.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use kiln::event::{Event, Outcome, TaskId};
use kiln_frontend::{Diagnostic, Source};

use crate::cli::human::transfer_size;

/// No kept line of a log is longer than this: what is kept is for looking back, the stream itself is never cut.
const LONGEST_KEPT_LINE: usize = 16 * 1024;

/// Everything that was reported so far.
#[derive(Debug)]
pub(crate) struct Trace {
    tasks: Vec<TaskState>,
    index: HashMap<TaskId, usize>,
    keep_lines: usize,
    /// Warnings that belong to no task.
    pub(crate) warnings: Vec<String>,
    /// What the build checks said, and about which Dockerfile.
    pub(crate) lints: Option<Lints>,
}

/// What the build checks said, and about which Dockerfile.
pub(crate) type Lints = (Arc<Source>, Vec<Diagnostic>);

/// One task.
#[derive(Debug)]
pub(crate) struct TaskState {
    pub(crate) id: TaskId,
    pub(crate) name: String,
    pub(crate) started: Duration,
    pub(crate) ended: Option<(Duration, Outcome)>,
    pub(crate) statuses: Vec<StatusState>,
    pub(crate) tail: LogTail,
    pub(crate) warnings: Vec<String>,
}

/// How far back the speed of a transfer is measured: long enough to be steady, short enough to follow a change.
const SPEED_WINDOW: Duration = Duration::from_secs(5);
/// How far apart the points are that it is measured between …
const SPEED_STEP: Duration = Duration::from_millis(200);
/// … and how much time has to pass before there is something to say.
const SPEED_LEAST: Duration = Duration::from_millis(300);

/// One part of a task: a transfer, an export of a layer.
#[derive(Debug, Clone)]
pub(crate) struct StatusState {
    pub(crate) name: String,
    pub(crate) started: Duration,
    pub(crate) latest: Duration,
    pub(crate) current: u64,
    pub(crate) total: Option<u64>,
    pub(crate) done: bool,
    /// How far it was when, the oldest first.
    points: VecDeque<(Duration, u64)>,
}

impl StatusState {
    /// Takes in how far it is now.
    fn advance(&mut self, current: u64, at: Duration) {
        if current < self.current {
            // It began anew.
            self.points.clear();
        }
        (self.current, self.latest) = (current, at);
        if self.points.back().is_none_or(|(last, _)| at.saturating_sub(*last) >= SPEED_STEP) {
            self.points.push_back((at, current));
        }
        // One point beyond the window stays: without it a transfer that hardly moves would have no speed.
        while self.points.get(1).is_some_and(|(second, _)| at.saturating_sub(*second) >= SPEED_WINDOW) {
            self.points.pop_front();
        }
    }

    /// Bytes a second at `now`, of a transfer that is under way.
    pub(crate) fn speed(&self, now: Duration) -> Option<f64> {
        let (since, start) = self.points.front()?;
        let took = now.saturating_sub(*since);
        let moved = self.current.saturating_sub(*start);
        (!self.done && moved > 0 && took >= SPEED_LEAST).then(|| moved as f64 / took.as_secs_f64())
    }

    /// The speed and the time left in words: `20.50MB/s, 12s left`, or nothing.
    pub(crate) fn outlook(&self, now: Duration) -> String {
        let Some(speed) = self.speed(now) else { return String::new() };
        let rate = format!("{}/s", transfer_size(speed as u64));
        match self.total.filter(|total| *total > self.current) {
            Some(total) => {
                let left = ((total - self.current) as f64 / speed).min(f64::from(u32::MAX));
                format!("{rate}, {} left", span(Duration::from_secs_f64(left)))
            }
            None => rate,
        }
    }
}

/// A span of time that nobody knows exactly: `1s`, `2m05s`, `1h10m`.
fn span(span: Duration) -> String {
    let seconds = span.as_secs_f64().ceil() as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{}s", seconds.max(1)),
        (0, minutes, seconds) => format!("{minutes}m{seconds:02}s"),
        (hours, minutes, _) => format!("{hours}h{minutes:02}m"),
    }
}

/// A task that failed, with the last lines that it wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FailedTask {
    pub(crate) name: String,
    /// How many lines came before those in `lines`.
    pub(crate) dropped: usize,
    /// `0.512 text` as bytes, without line ends.
    pub(crate) lines: Vec<Vec<u8>>,
}

impl Trace {
    /// A picture of nothing that remembers `keep_lines` lines of each task's log.
    pub(crate) fn new(keep_lines: usize) -> Self {
        Self { tasks: Vec::new(), index: HashMap::new(), keep_lines, warnings: Vec::new(), lints: None }
    }

    /// The tasks in the order in which they began.
    pub(crate) fn tasks(&self) -> &[TaskState] {
        &self.tasks
    }

    pub(crate) fn get(&self, id: TaskId) -> Option<&TaskState> {
        self.index.get(&id).and_then(|i| self.tasks.get(*i))
    }

    fn get_mut(&mut self, id: TaskId) -> Option<&mut TaskState> {
        self.index.get(&id).and_then(|i| self.tasks.get_mut(*i))
    }

    /// Takes in one event. Events of a task that never began are ignored.
    pub(crate) fn apply(&mut self, event: &Event) {
        match event {
            Event::Started { task, name, at } => {
                let state = TaskState {
                    id: *task,
                    name: name.clone(),
                    started: *at,
                    ended: None,
                    statuses: Vec::new(),
                    tail: LogTail::new(self.keep_lines),
                    warnings: Vec::new(),
                };
                self.index.insert(*task, self.tasks.len());
                self.tasks.push(state);
            }
            Event::Log { task, at, data, .. } => {
                if let Some(state) = self.get_mut(*task) {
                    let since = at.saturating_sub(state.started);
                    state.tail.push(since, data);
                }
            }
            Event::Status { task, name, current, total, done, at } => {
                if let Some(state) = self.get_mut(*task) {
                    state.status(name, *current, *total, *done, *at);
                }
            }
            Event::Warning { task, message } => match task.and_then(|id| self.get_mut(id)) {
                Some(state) => state.warnings.push(message.clone()),
                None => self.warnings.push(message.clone()),
            },
            Event::Paused { .. } => {}
            Event::Lints { source, lints } => self.lints = Some((Arc::clone(source), lints.clone())),
            Event::Finished { task, outcome, at } => {
                if let Some(state) = self.get_mut(*task) {
                    state.ended = Some((*at, outcome.clone()));
                    if !matches!(outcome, Outcome::Failed(_)) {
                        // Only a failed step's log is looked back at.
                        state.tail = LogTail::new(0);
                    }
                    for status in &mut state.statuses {
                        status.latest = status.latest.max(if status.done { status.latest } else { *at });
                    }
                }
            }
        }
    }

    /// The tasks that failed, in the order in which they began.
    pub(crate) fn failed(&self) -> Vec<FailedTask> {
        let failed = self.tasks.iter().filter(|task| matches!(task.ended, Some((_, Outcome::Failed(_)))));
        failed.map(|task| FailedTask { name: task.name.clone(), dropped: task.tail.dropped, lines: task.tail.lines() }).collect()
    }
}

impl TaskState {
    /// How long it ran, or has been running at `now`.
    pub(crate) fn elapsed(&self, now: Duration) -> Duration {
        self.ended.as_ref().map_or(now, |(at, _)| *at).saturating_sub(self.started)
    }

    fn status(&mut self, name: &str, current: u64, total: Option<u64>, done: bool, at: Duration) {
        match self.statuses.iter_mut().find(|status| status.name == name) {
            Some(status) => {
                status.advance(current, at);
                status.total = total.or(status.total);
                status.done = done;
            }
            None => {
                let points = VecDeque::from([(at, current)]);
                self.statuses.push(StatusState { name: name.to_owned(), started: at, latest: at, current, total, done, points });
            }
        }
    }
}

/// The last lines of a log.
#[derive(Debug)]
pub(crate) struct LogTail {
    keep: usize,
    kept: VecDeque<(Duration, Vec<u8>)>,
    /// Whether the last kept line has not ended yet.
    open: bool,
    /// How many lines were forgotten.
    pub(crate) dropped: usize,
}

impl LogTail {
    fn new(keep: usize) -> Self {
        Self { keep, kept: VecDeque::new(), open: false, dropped: 0 }
    }

    fn push(&mut self, at: Duration, data: &[u8]) {
        for piece in data.split_inclusive(|byte| *byte == b'\n') {
            let (text, ends) = match piece.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (piece, false),
            };
            if !self.open {
                if self.kept.len() == self.keep {
                    self.kept.pop_front();
                    self.dropped += 1;
                }
                self.kept.push_back((at, Vec::new()));
            }
            if let Some((_, line)) = self.kept.back_mut() {
                let room = LONGEST_KEPT_LINE.saturating_sub(line.len());
                line.extend_from_slice(&text[..text.len().min(room)]);
            }
            self.open = !ends;
        }
    }

    /// The texts of the last `count` lines, without times.
    pub(crate) fn last(&self, count: usize) -> impl Iterator<Item = &[u8]> {
        self.kept.iter().skip(self.kept.len().saturating_sub(count)).map(|(_, line)| line.as_slice())
    }

    fn lines(&self) -> Vec<Vec<u8>> {
        self.kept.iter().map(|(at, line)| [log_time(*at).as_bytes(), b" ", line].concat()).collect()
    }
}

/// Seconds since a task's start as BuildKit writes them before a line of its log: `0.062`, `12.34`, `345.6`.
pub(crate) fn log_time(since: Duration) -> String {
    let seconds = since.as_secs_f64();
    let digits = match seconds {
        s if s < 10.0 => 3,
        s if s < 100.0 => 2,
        _ => 1,
    };
    format!("{seconds:.digits$}")
}

/// How far a part has come, as BuildKit writes it: `12.30MB / 45.00MB`, `133B`, or nothing.
pub(crate) fn amount(current: u64, total: Option<u64>) -> String {
    match (current, total.filter(|total| *total > 0)) {
        (current, Some(total)) => format!("{} / {}", transfer_size(current), transfer_size(total)),
        (0, None) => String::new(),
        (current, None) => transfer_size(current),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (millis, want) in [(0, "0.000"), (62, "0.062"), (9_999, "9.999"), (12_345, "12.35"), (345_600, "345.6")] {
            assert_eq!(log_time(Duration::from_millis(millis)), want);
        }
    }

    #[test]
    fn tail_keeps_the_last_lines_and_joins_pieces() {
        let mut tail = LogTail::new(2);
        for piece in ["one\ntw", "o\nthr", "ee", "\n", "fo"] {
            tail.push(Duration::from_millis(62), piece.as_bytes());
        }
        assert_eq!(tail.lines(), [b"0.062 three".to_vec(), b"0.062 fo".to_vec()]);
        assert_eq!(tail.dropped, 2);
    }
}
