//! Hides the picture on a terminal: which lines a frame has, how they are cut to its size, and how one frame replaces
//! the last.

use std::fmt::Write as _;
use std::time::Duration;

use kiln::event::Outcome;

use super::Style;
use super::sanitize::visible;
use super::trace::{TaskState, Trace, amount};

/// A line whose name would get less room than this is left out.
const NARROWEST_NAME: usize = 12;
/// A name keeps so much room before the speed of its transfer is shown beside it; a digest needs no more to be known.
const LONG_NAME: usize = 28;

/// The size of the terminal in characters.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) width: usize,
    pub(crate) height: usize,
}

/// One line of the picture before it is cut: a task, a part of one, or a line of a log.
struct Row {
    text: String,
    amount: String,
    /// Speed and time left.
    outlook: String,
    elapsed: Option<Duration>,
    ended: bool,
    paint: Paint,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Paint {
    None,
    Done,
    Canceled,
    Failed,
    Faint,
}

/// The lines of the picture at `now`. The last frame (`last`) shows every line, the others what fits.
pub(crate) fn frame(trace: &Trace, now: Duration, size: Size, style: &Style, last: bool) -> Vec<String> {
    let mut rows: Vec<Row> = Vec::new();
    let room = size.height.saturating_sub(2);
    let running = trace.tasks().iter().filter(|task| task.ended.is_none()).count();
    // Log windows only where the running tasks themselves leave room for them.
    let mut free = room.saturating_sub(running);
    for task in trace.tasks() {
        rows.push(task_row(task, now));
        rows.extend(task.statuses.iter().map(|status| Row {
            text: format!(" => => {}", visible(status.name.as_bytes())),
            amount: amount(status.current, status.total),
            outlook: if task.ended.is_none() { status.outlook(now) } else { String::new() },
            elapsed: Some(if status.done || task.ended.is_some() { status.latest } else { now }.saturating_sub(status.started)),
            ended: status.done || task.ended.is_some(),
            paint: if status.done { Paint::Done } else { Paint::None },
        }));
        rows.extend(task.warnings.iter().map(|warning| warning_row(warning)));
        if task.ended.is_none() && !last {
            let window = style.log_window.min(free.saturating_sub(3));
            let lines: Vec<Row> = task.tail.last(window).map(log_row).collect();
            free -= lines.len().min(free);
            rows.extend(lines);
        }
    }
    rows.extend(trace.warnings.iter().map(|warning| warning_row(warning)));
    if !last {
        cut_to_height(&mut rows, room);
    }

    let ended = trace.tasks().len() - running;
    let went_well = |task: &TaskState| matches!(task.ended, Some((_, Outcome::Done | Outcome::Cached)));
    let finished = if last && ended > 0 && trace.tasks().iter().all(went_well) { " FINISHED" } else { "" };
    let head = format!("[+] {} {:.1}s ({ended}/{}){finished}", style.phase, now.as_secs_f64(), trace.tasks().len());
    let mut lines = vec![cut(&head, size.width).to_owned()];
    lines.extend(rows.iter().filter_map(|row| row.draw(size.width, style.colour)));
    lines
}

fn task_row(task: &TaskState, now: Duration) -> Row {
    let (word, paint) = match &task.ended {
        None => ("", Paint::None),
        Some((_, Outcome::Done)) => ("", Paint::Done),
        Some((_, Outcome::Cached)) => ("CACHED ", Paint::Done),
        Some((_, Outcome::Failed(_))) => ("ERROR ", Paint::Failed),
        Some((_, Outcome::Canceled)) => ("CANCELED ", Paint::Canceled),
    };
    let text = format!(" => {word}{}", visible(task.name.replace(['\n', '\t'], " ").as_bytes()));
    Row {
        text,
        amount: String::new(),
        outlook: String::new(),
        elapsed: Some(task.elapsed(now)),
        ended: task.ended.is_some(),
        paint,
    }
}

fn warning_row(warning: &str) -> Row {
    let text = format!(" => WARN: {}", visible(warning.as_bytes()));
    Row {
        text,
        amount: String::new(),
        outlook: String::new(),
        elapsed: Some(Duration::ZERO),
        ended: true,
        paint: Paint::Canceled,
    }
}

fn log_row(line: &[u8]) -> Row {
    Row {
        text: format!(" => => # {}", visible(line)),
        amount: String::new(),
        outlook: String::new(),
        elapsed: None,
        ended: true,
        paint: Paint::Faint,
    }
}

/// Leaves out ended rows, the oldest first, until the rest fits; then the oldest of all.
fn cut_to_height(rows: &mut Vec<Row>, room: usize) {
    let mut surplus = rows.len().saturating_sub(room);
    for logs in [false, true] {
        rows.retain(|row| {
            let goes = surplus > 0 && row.ended && (row.paint == Paint::Faint) == logs;
            surplus -= usize::from(goes);
            !goes
        });
    }
    rows.drain(..surplus.min(rows.len()));
}

impl Row {
    fn draw(&self, width: usize, colour: bool) -> Option<String> {
        let mut line = match self.elapsed {
            None => cut(&self.text, width.saturating_sub(1)).to_owned(),
            Some(elapsed) => {
                let seconds = elapsed.as_secs_f64();
                let timer = format!(" {:.1}s", if seconds < 0.05 { 0.0 } else { seconds });
                let mut room = width.checked_sub(timer.len() + 3)?;
                let mut amount = String::new();
                if !self.amount.is_empty() && room > self.amount.len() + NARROWEST_NAME + 8 {
                    amount = format!(" {}", self.amount);
                    room -= amount.len();
                    if !self.outlook.is_empty() && room > self.outlook.len() + self.text.chars().count().min(LONG_NAME) + 1 {
                        amount = format!("{amount} {}", self.outlook);
                        room -= self.outlook.len() + 1;
                    }
                }
                if room < NARROWEST_NAME + 4 {
                    return None;
                }
                let left = format!("{}{amount}", cut(&self.text, room));
                let padding = (width - 1 - timer.len()).saturating_sub(left.chars().count());
                format!("{left}{}{timer}", " ".repeat(padding))
            }
        };
        let code = match self.paint {
            Paint::None => "",
            Paint::Done => "34",
            Paint::Canceled => "33",
            Paint::Failed => "31",
            Paint::Faint => "2",
        };
        if colour && !code.is_empty() {
            line = format!("\x1b[{code}m{line}\x1b[0m");
        }
        Some(line)
    }
}

/// At most `width` characters of `text`.
fn cut(text: &str, width: usize) -> &str {
    text.char_indices().nth(width).map_or(text, |(end, _)| &text[..end])
}

/// Puts frames over one another.
#[derive(Debug, Default)]
pub(crate) struct Painter {
    height: usize,
}

impl Painter {
    /// Appends to `out` what turns the last frame into this one.
    pub(crate) fn paint(&mut self, lines: &[String], out: &mut Vec<u8>) {
        // Hidden cursor against flicker; no wrapping, so that a line with wide characters can't become two.
        let mut text = String::from("\x1b[?25l\x1b[?7l");
        if self.height > 0 {
            // Writing to a string cannot fail.
            let _ = write!(text, "\x1b[{}A\r", self.height);
        }
        for line in lines {
            text.push_str(line);
            text.push_str("\x1b[K\n");
        }
        text.push_str("\x1b[J\x1b[?7h\x1b[?25h");
        self.height = lines.len();
        out.extend_from_slice(text.as_bytes());
    }
}

#[cfg(test)]
#[path = "tty_tests.rs"]
mod tests;
