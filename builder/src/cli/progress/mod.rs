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
use std::sync::mpsc::RecvTimeoutError;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use kiln::event::{End, Event, Incoming};

use trace::Trace;
pub(crate) use trace::{FailedTask, Lints};

/// The terminal is redrawn at most once in this time.
const FRAME: Duration = Duration::from_millis(100);
/// A build that is over sooner draws only its last frame.
const FIRST_FRAME: Duration = Duration::from_millis(30);
/// How long a display that has nothing to redraw waits before it looks up.
const IDLE: Duration = Duration::from_millis(500);
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
    /// What the build checks said, and about which Dockerfile.
    pub(crate) lints: Option<Lints>,
}

/// A display that runs on a thread of its own.
#[derive(Debug)]
pub(crate) struct Watcher {
    thread: Option<JoinHandle<Summary>>,
    end: Option<End>,
}

impl Watcher {
    /// Starts to show what arrives, until the end is reached.
    pub(crate) fn start(mode: Mode, style: Style, (mut events, end): (Incoming, Option<End>)) -> Self {
        let watch = move || watch(mode, &style, &mut events);
        Self { thread: std::thread::Builder::new().name("progress".to_owned()).spawn(watch).ok(), end }
    }

    /// Waits until all that was sent is shown. Not until nobody can send any more: somebody may have forgotten a sender.
    pub(crate) fn finish(self) -> Summary {
        self.end.into_iter().for_each(End::reached);
        self.thread.and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

/// The next events, of which there may be none after this time; `None` when there will be no more. Those before are shown.
fn next(events: &mut Incoming, wait: Duration) -> Option<Vec<Event>> {
    match events.next(wait) {
        Ok(events) => Some(events),
        Err(RecvTimeoutError::Timeout) => Some(Vec::new()),
        Err(RecvTimeoutError::Disconnected) => None,
    }
}

fn watch(mode: Mode, style: &Style, source: &mut Incoming) -> Summary {
    match mode {
        Mode::Auto if io::stderr().is_terminal() => watch_tty(style, source),
        Mode::Tty => watch_tty(style, source),
        Mode::Auto | Mode::Plain => watch_plain(source),
        Mode::RawJson => watch_raw_json(source),
        Mode::Quiet => {
            let mut trace = Trace::new(TAIL_LINES);
            while let Some(events) = next(source, IDLE) {
                events.iter().for_each(|event| {
                    trace.apply(event);
                    paused(event);
                });
            }
            // Who asked for silence does not want to hear of lints.
            Summary { failed: trace.failed(), warnings: trace.warnings, lints: None }
        }
    }
}

/// Shows the words of a pause, if the event is one, and says that all is shown.
fn paused(event: &Event) {
    if let Event::Paused { words, shown } = event {
        write_stderr(&mut words.clone().into_bytes());
        // Who asked may have gone on without.
        let _ = shown.send(());
    }
}

/// What is left to say after a display that showed the warnings as they came.
fn summary(trace: Trace) -> Summary {
    Summary { failed: trace.failed(), warnings: Vec::new(), lints: trace.lints }
}

fn watch_plain(source: &mut Incoming) -> Summary {
    let clock = Instant::now();
    let mut trace = Trace::new(TAIL_LINES);
    let mut plain = plain::Plain::default();
    let mut out = Vec::new();
    while let Some(events) = next(source, IDLE) {
        for event in events {
            trace.apply(&event);
            plain.apply(&event, &trace);
            if matches!(event, Event::Paused { .. }) {
                plain.finish(&trace, clock.elapsed(), &mut out);
                write_stderr(&mut out);
                paused(&event);
            }
        }
        plain.write(&trace, clock.elapsed(), &mut out);
        write_stderr(&mut out);
    }
    plain.finish(&trace, clock.elapsed(), &mut out);
    write_stderr(&mut out);
    summary(trace)
}

fn watch_raw_json(source: &mut Incoming) -> Summary {
    let mut trace = Trace::new(TAIL_LINES);
    let mut raw = raw_json::RawJson::new(SystemTime::now());
    let mut out = Vec::new();
    while let Some(events) = next(source, IDLE) {
        for event in events {
            trace.apply(&event);
            raw.write(&event, &trace, &mut out);
            write_stderr(&mut out);
            if let Event::Paused { shown, .. } = event {
                // Words for a person; a program hears of what is done here by what follows.
                let _ = shown.send(());
            }
        }
    }
    // The lints were among the JSON.
    Summary { lints: None, ..summary(trace) }
}

fn watch_tty(style: &Style, source: &mut Incoming) -> Summary {
    let clock = Instant::now();
    let mut trace = Trace::new(TTY_TAIL_LINES);
    let mut painter = tty::Painter::default();
    let mut out = Vec::new();
    let mut next_frame = FIRST_FRAME;
    let mut is_paused = false;
    let wait = |next: Duration| next.saturating_sub(clock.elapsed()).max(Duration::from_millis(1));
    while let Some(events) = next(source, if is_paused { IDLE } else { wait(next_frame) }) {
        for event in events {
            trace.apply(&event);
            if matches!(event, Event::Paused { .. }) {
                if !is_paused && !trace.tasks().is_empty() {
                    painter.paint(&tty::frame(&trace, clock.elapsed(), terminal_size(), style, true), &mut out);
                    write_stderr(&mut out);
                }
                // What is on the screen from here on is somebody else's, so that nothing may be drawn over it.
                is_paused = true;
                paused(&event);
            }
        }
        let now = clock.elapsed();
        if now >= next_frame && !is_paused && !trace.tasks().is_empty() {
            painter.paint(&tty::frame(&trace, now, terminal_size(), style, false), &mut out);
            write_stderr(&mut out);
            next_frame = now + FRAME;
        }
    }
    if !is_paused {
        painter.paint(&tty::frame(&trace, clock.elapsed(), terminal_size(), style, true), &mut out);
        write_stderr(&mut out);
    }
    summary(trace)
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
