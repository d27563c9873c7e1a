//! Hides how progress is shown while work goes on: BuildKit's plain text, its terminal picture, its JSON, or nothing.
//!
//! Why not indicatif: its bars are lines of their own, while the picture people know from BuildKit is one frame of
//! nested lines with a log window, cut to the terminal's height, whose lines move.

mod plain;
mod raw_json;
mod sanitize;
mod trace;
mod tty;

use std::io::{self, IsTerminal as _, Write};
use std::str::FromStr;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kiln::event::Event;

pub(crate) use trace::FailedTask;
use trace::Trace;

/// The terminal is redrawn at most once in this time.
const FRAME: Duration = Duration::from_millis(100);
/// A build that is over sooner draws only its last frame.
const FIRST_FRAME: Duration = Duration::from_millis(30);
/// How many log lines of a failed step are shown again where they were seen already.
const TAIL_LINES: usize = 10;
/// The same where only a window of them was seen.
const TTY_TAIL_LINES: usize = 500;

/// How progress is shown (`--progress`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Mode {
    /// `Tty` if standard error is a terminal, else `Plain`.
    #[default]
    Auto,
    /// A picture that is redrawn.
    Tty,
    /// Lines.
    Plain,
    /// Nothing.
    Quiet,
    /// BuildKit's `SolveStatus`, one JSON object a line.
    RawJson,
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" | "auto" => Ok(Mode::Auto),
            "tty" => Ok(Mode::Tty),
            "plain" => Ok(Mode::Plain),
            "quiet" | "none" => Ok(Mode::Quiet),
            "rawjson" => Ok(Mode::RawJson),
            _ => Err(format!("unknown progress mode `{text}`: it is one of auto, tty, plain, quiet, rawjson")),
        }
    }
}

/// How the display looks, apart from its mode.
#[derive(Debug, Clone)]
pub(crate) struct Style {
    /// `Building`, `Pushing`, …
    pub(crate) phase: &'static str,
    /// Whether colours may be used.
    pub(crate) colour: bool,
    /// Lines of log shown under each running task of the terminal picture.
    pub(crate) log_window: usize,
}

/// What is left to say when the work is over.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    /// The tasks that failed.
    pub(crate) failed: Vec<FailedTask>,
    /// Warnings that were not shown.
    pub(crate) warnings: Vec<String>,
}

/// A display that runs on a thread of its own until every sender of events is gone.
#[derive(Debug)]
pub(crate) struct Watcher(Option<JoinHandle<Summary>>);

impl Watcher {
    /// Starts to show what arrives.
    pub(crate) fn start(mode: Mode, style: Style, events: Receiver<Event>) -> Self {
        let watch = move || watch(mode, &style, &events);
        Self(std::thread::Builder::new().name("progress".to_owned()).spawn(watch).ok())
    }

    /// Waits until all is shown. Every sender of events must be dropped before.
    pub(crate) fn finish(self) -> Summary {
        self.0.and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

fn watch(mode: Mode, style: &Style, events: &Receiver<Event>) -> Summary {
    let is_terminal = io::stderr().is_terminal();
    match mode {
        Mode::Auto if is_terminal => watch_tty(style, events),
        Mode::Tty => watch_tty(style, events),
        Mode::Auto | Mode::Plain => watch_plain(events),
        Mode::RawJson => watch_raw_json(events),
        Mode::Quiet => {
            let mut trace = Trace::new(TAIL_LINES);
            events.iter().for_each(|event| trace.apply(&event));
            Summary { failed: trace.failed(), warnings: trace.warnings }
        }
    }
}

/// What is left to say after a display that showed the warnings as they came.
fn summary(trace: &Trace) -> Summary {
    Summary { failed: trace.failed(), warnings: Vec::new() }
}

fn watch_plain(events: &Receiver<Event>) -> Summary {
    let clock = Instant::now();
    let mut trace = Trace::new(TAIL_LINES);
    let mut plain = plain::Plain::default();
    let mut out = Vec::new();
    loop {
        let first = match events.recv_timeout(Duration::from_secs(1)) {
            Ok(event) => Some(event),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => break,
        };
        for event in first.into_iter().chain(events.try_iter()) {
            trace.apply(&event);
            plain.apply(&event, &trace);
        }
        plain.write(&trace, clock.elapsed(), &mut out);
        write_stderr(&mut out);
    }
    plain.finish(&trace, clock.elapsed(), &mut out);
    write_stderr(&mut out);
    summary(&trace)
}

fn watch_raw_json(events: &Receiver<Event>) -> Summary {
    let mut trace = Trace::new(TAIL_LINES);
    let zero = std::time::SystemTime::now();
    let mut out = Vec::new();
    for event in events {
        trace.apply(&event);
        raw_json::write(&event, &trace, zero, &mut out);
        write_stderr(&mut out);
    }
    summary(&trace)
}

fn watch_tty(style: &Style, events: &Receiver<Event>) -> Summary {
    let clock = Instant::now();
    let mut trace = Trace::new(TTY_TAIL_LINES);
    let mut painter = tty::Painter::default();
    let mut out = Vec::new();
    let mut next_frame = FIRST_FRAME;
    loop {
        let wait = next_frame.saturating_sub(clock.elapsed());
        match events.recv_timeout(wait.max(Duration::from_millis(1))) {
            Ok(event) => {
                trace.apply(&event);
                events.try_iter().for_each(|event| trace.apply(&event));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        let now = clock.elapsed();
        if now >= next_frame {
            let size = terminal_size();
            painter.paint(&tty::frame(&trace, now, size, style, false), &mut out);
            write_stderr(&mut out);
            next_frame = now + FRAME;
        }
    }
    painter.paint(&tty::frame(&trace, clock.elapsed(), terminal_size(), style, true), &mut out);
    write_stderr(&mut out);
    summary(&trace)
}

fn terminal_size() -> tty::Size {
    match rustix::termios::tcgetwinsize(io::stderr()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
            tty::Size { width: usize::from(size.ws_col), height: usize::from(size.ws_row) }
        }
        _ => tty::Size { width: 80, height: 24 },
    }
}

/// Writes and empties `out`. Who closed standard error doesn't want to know; the work goes on.
fn write_stderr(out: &mut Vec<u8>) {
    if !out.is_empty() {
        let _ = io::stderr().lock().write_all(out);
        out.clear();
    }
}
