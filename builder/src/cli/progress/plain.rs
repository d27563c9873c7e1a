//! Hides the grammar of plain progress, which scripts grep: BuildKit's, line for line (`#5 [2/4] RUN make`,
//! `#5 0.062 text`, `#5 DONE 1.2s`), and when the display moves from one of several running tasks to another.
//!
//! Nothing that a command writes is dropped, cut or changed: what belongs to a task that isn't shown waits in a queue.

use std::collections::{BTreeMap, HashMap};
use std::io::Write as _;
use std::time::Duration;

use kiln::event::{Event, Outcome, TaskId};

use super::trace::{Trace, amount, log_time};

/// A task that others outshouted is shown at the latest after this time (BuildKit `printer.go`, `maxDelay`).
const LONGEST_HIDDEN: Duration = Duration::from_secs(10);
/// The shown task keeps the display for at least about this long (`antiFlicker`).
const SHORTEST_SHOWN: f64 = 5.0;
/// A status is written again when it moved by this part of its total …
const STATUS_STEP: f64 = 0.05;
/// … and not sooner than this (BuildKit collects what happens in 100 to 150 ms), …
const STATUS_PAUSE: Duration = Duration::from_millis(150);
/// … or when this time has passed.
const STATUS_INTERVAL: Duration = Duration::from_secs(5);

/// What waits of a task that isn't shown; with more the display moves to it, for nothing is left out and memory is not without end.
const LONGEST_QUEUE: usize = 1 << 20;

/// The state of the plain display.
#[derive(Debug, Default)]
pub(crate) struct Plain {
    shown: Option<TaskId>,
    lanes: BTreeMap<TaskId, Lane>,
    /// Lines that belong to no task.
    notes: Vec<u8>,
    started_writing: bool,
}

/// What there is to write for one task.
#[derive(Debug, Default)]
struct Lane {
    queue: Vec<u8>,
    begins: Begins,
    /// Whether the queue (or, when it is empty, the screen) ends in the middle of a line of the log.
    open: bool,
    /// Whether the screen ends in the middle of a line of this task's log.
    screen_open: bool,
    /// Whether something happened since it was written last.
    updated: bool,
    /// How much happened since it was shown last, and since when; a measure of how loud it is.
    count: u32,
    counting_since: Duration,
    statuses: HashMap<String, (u64, Duration)>,
}

/// How the queue of a lane begins.
#[derive(Debug, Default, Clone, Copy)]
enum Begins {
    /// With a line of its own.
    #[default]
    Fresh,
    /// In the middle of a line of the log, written at this time.
    Continues(Duration),
    /// With a line of its own, but the one on the screen is not ended.
    Breaks,
}

impl Plain {
    /// Takes in one event that `trace` knows already.
    pub(crate) fn apply(&mut self, event: &Event, trace: &Trace) {
        if let Event::Warning { task: None, message } = event {
            message.lines().for_each(|line| write_line(&mut self.notes, &format!("WARN: {line}")));
        }
        let Some((id, at)) = place(event) else { return };
        let Some(task) = trace.get(id) else { return };
        let lane = self.lanes.entry(id).or_default();
        lane.touch(at);
        let number = id.0;
        match event {
            Event::Started { .. } => {}
            Event::Log { at, data, .. } => lane.log(number, at.saturating_sub(task.started), data),
            Event::Status { name, .. } => {
                if let Some(status) = task.statuses.iter().find(|status| status.name == *name) {
                    if !status.done && !lane.is_worth_showing(status) {
                        return;
                    }
                    lane.statuses.insert(name.clone(), (status.current, status.latest));
                    let mut line = format!("#{number} {name}");
                    let amount = amount(status.current, status.total);
                    if !amount.is_empty() {
                        line.push(' ');
                        line.push_str(&amount);
                    }
                    let took = status.latest.saturating_sub(status.started).as_secs_f64();
                    if took > 0.01 {
                        line.push_str(&format!(" {took:.1}s"));
                    }
                    let outlook = status.outlook(status.latest);
                    if status.done {
                        line.push_str(" done");
                    } else if !outlook.is_empty() {
                        // After all that BuildKit writes, so that what is looked for in its lines is found in these.
                        line.push_str(&format!(" ({outlook})"));
                    }
                    lane.line(&line);
                }
            }
            Event::Lints { .. } | Event::Paused { .. } => {}
            Event::Warning { message, .. } => message.lines().for_each(|line| lane.line(&format!("#{number} WARN: {line}"))),
            Event::Finished { outcome, at, .. } => {
                let line = match outcome {
                    Outcome::Done => format!("#{number} DONE {:.1}s", at.saturating_sub(task.started).as_secs_f64()),
                    Outcome::Cached => format!("#{number} CACHED"),
                    Outcome::Failed(why) => format!("#{number} ERROR: {why}"),
                    Outcome::Canceled => format!("#{number} CANCELED"),
                };
                lane.line(&line);
            }
        }
    }

    /// Appends to `out` what is to be written at `now`.
    pub(crate) fn write(&mut self, trace: &Trace, now: Duration, out: &mut Vec<u8>) {
        if !self.notes.is_empty() {
            self.break_line(out);
            out.append(&mut self.notes);
        }
        let before = self.shown;
        let ended_at = |id: TaskId| trace.get(id).and_then(|task| task.ended.as_ref()).map(|(at, _)| *at);
        let updated = || self.lanes.iter().filter(|(_, lane)| lane.updated).map(|(id, _)| *id);
        let mut ended: Vec<(Duration, TaskId)> = updated().filter_map(|id| ended_at(id).map(|at| (at, id))).collect();
        let mut loud: Vec<TaskId> = updated().filter(|id| ended_at(*id).is_none()).collect();

        // What ended comes first: the task on display, then the others in the order in which they ended.
        ended.sort_by_key(|(at, id)| (Some(*id) != before, *at, *id));
        for (_, id) in ended {
            self.show(id, trace, out);
        }
        if loud.is_empty() {
            if self.shown.is_none()
                && let Some(id) = self.lanes.keys().copied().find(|id| ended_at(*id).is_none())
            {
                self.show(id, trace, out);
            }
            return;
        }
        if let Some(before) = before
            && loud.contains(&before)
        {
            self.show(before, trace, out);
        }
        loud.extend(self.shown.filter(|shown| !loud.contains(shown)));
        let speeds: Vec<(TaskId, Duration, f64)> = loud
            .iter()
            .filter_map(|id| self.lanes.get(id).map(|lane| (*id, lane)))
            .map(|(id, lane)| {
                let blocked = now.saturating_sub(lane.counting_since);
                (id, blocked, f64::from(lane.count) / blocked.as_secs_f64().max(1e-3))
            })
            .collect();
        let Some(loudest) = speeds.iter().rev().max_by(|a, b| a.2.total_cmp(&b.2)).map(|(id, ..)| *id) else { return };
        let Some(shown) = self.shown else {
            self.show(loudest, trace, out);
            return;
        };
        let is_long = |id: &TaskId| self.lanes.get(id).is_some_and(|lane| lane.queue.len() > LONGEST_QUEUE);
        let overdue = |blocked: &Duration, id: &TaskId| *blocked > LONGEST_HIDDEN || is_long(id);
        if let Some((id, ..)) = speeds.iter().find(|(id, blocked, _)| *id != shown && overdue(blocked, id)) {
            self.show(*id, trace, out);
            return;
        }
        let sum: f64 = speeds.iter().map(|(.., speed)| speed).sum();
        if let Some((_, blocked, speed)) = speeds.iter().find(|(id, ..)| *id == shown) {
            let others = 1.0 - if sum > 0.0 { speed / sum } else { 1.0 };
            if others > 0.0 && SHORTEST_SHOWN / others < blocked.as_secs_f64() {
                self.show(loudest, trace, out);
            }
        }
    }

    /// Appends all that waits, whichever task it belongs to: nothing more will come.
    pub(crate) fn finish(&mut self, trace: &Trace, now: Duration, out: &mut Vec<u8>) {
        self.write(trace, now, out);
        let waiting: Vec<TaskId> = self.lanes.iter().filter(|(_, lane)| lane.updated).map(|(id, _)| *id).collect();
        for id in waiting {
            self.show(id, trace, out);
        }
        self.break_line(out);
    }

    /// Ends the line of a log that the screen may be in the middle of.
    fn break_line(&mut self, out: &mut Vec<u8>) {
        if let Some(lane) = self.shown.and_then(|id| self.lanes.get_mut(&id))
            && lane.screen_open
        {
            out.push(b'\n');
            lane.screen_open = false;
            lane.open &= !lane.queue.is_empty();
        }
    }

    fn show(&mut self, id: TaskId, trace: &Trace, out: &mut Vec<u8>) {
        let Some(task) = trace.get(id) else { return };
        if self.shown != Some(id) {
            if let Some(old) = self.shown {
                self.break_line(out);
                if let Some(lane) = self.lanes.get_mut(&old) {
                    lane.count = 0;
                }
                write_line(out, &format!("#{} ...", old.0));
            }
            if self.started_writing {
                out.push(b'\n');
            }
            self.started_writing = true;
            write_line(out, &format!("#{} {}", id.0, task.name.replace('\n', " ")));
        }
        if let Some(lane) = self.lanes.get_mut(&id) {
            if !lane.queue.is_empty() {
                match std::mem::take(&mut lane.begins) {
                    // Writing to a vector cannot fail.
                    Begins::Continues(at) if !lane.screen_open => drop(write!(out, "#{} {} ", id.0, log_time(at))),
                    Begins::Breaks if lane.screen_open => out.push(b'\n'),
                    _ => {}
                }
                out.append(&mut lane.queue);
                lane.screen_open = lane.open;
            }
            lane.updated = false;
            if task.ended.is_some() {
                lane.count = 0;
            }
        }
        self.shown = task.ended.is_none().then_some(id);
    }
}

impl Lane {
    fn touch(&mut self, at: Duration) {
        if self.count == 0 {
            self.counting_since = at;
        }
        self.count = self.count.saturating_add(1);
        self.updated = true;
    }

    /// Queues a whole line, after ending the one that may be open.
    fn line(&mut self, line: &str) {
        if self.open {
            match self.queue.is_empty() {
                true => self.begins = Begins::Breaks,
                false => self.queue.push(b'\n'),
            }
            self.open = false;
        }
        write_line(&mut self.queue, line);
    }

    fn log(&mut self, number: usize, since: Duration, data: &[u8]) {
        for piece in data.split_inclusive(|byte| *byte == b'\n') {
            if !self.open {
                // Writing to a vector cannot fail.
                let _ = write!(self.queue, "#{number} {} ", log_time(since));
            } else if self.queue.is_empty() {
                self.begins = Begins::Continues(since);
            }
            self.queue.extend_from_slice(piece);
            self.open = !piece.ends_with(b"\n");
        }
    }

    fn is_worth_showing(&self, status: &super::trace::StatusState) -> bool {
        let Some((current, at)) = self.statuses.get(&status.name) else { return true };
        let step = match status.total {
            Some(total) if total > 0 => status.current.saturating_sub(*current) as f64 / total as f64,
            _ => 0.0,
        };
        let pause = status.latest.saturating_sub(*at);
        step >= STATUS_STEP && pause >= STATUS_PAUSE || pause >= STATUS_INTERVAL
    }
}

fn write_line(out: &mut Vec<u8>, line: &str) {
    out.extend_from_slice(line.as_bytes());
    out.push(b'\n');
}

/// The task and time of an event that has both; a warning takes no time.
fn place(event: &Event) -> Option<(TaskId, Duration)> {
    match event {
        Event::Started { task, at, .. }
        | Event::Log { task, at, .. }
        | Event::Status { task, at, .. }
        | Event::Finished { task, at, .. } => Some((*task, *at)),
        Event::Warning { task, .. } => task.map(|task| (task, Duration::ZERO)),
        Event::Lints { .. } | Event::Paused { .. } => None,
    }
}

#[cfg(test)]
#[path = "plain_tests.rs"]
mod tests;
