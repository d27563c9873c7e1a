//! Scripts of events and the terminal frames that they become.

use super::*;
use kiln::event::{Event, Stream, TaskId};

const STYLE: Style = Style { phase: "Building", colour: false, log_window: 6 };

fn started(id: usize, name: &str, at: f64) -> Event {
    Event::Started { task: TaskId(id), name: name.into(), at: Duration::from_secs_f64(at) }
}

fn finished(id: usize, outcome: Outcome, at: f64) -> Event {
    Event::Finished { task: TaskId(id), outcome, at: Duration::from_secs_f64(at) }
}

fn log(id: usize, text: &str) -> Event {
    Event::Log { task: TaskId(id), stream: Stream::Out, at: Duration::ZERO, data: text.as_bytes().to_vec() }
}

fn draw(events: &[Event], now: f64, size: (usize, usize), last: bool) -> Vec<String> {
    let mut trace = Trace::new(500);
    events.iter().for_each(|event| trace.apply(event));
    frame(&trace, Duration::from_secs_f64(now), Size { width: size.0, height: size.1 }, &STYLE, last)
}

#[test]
fn a_finished_build() {
    let part = |name: &str, done| Event::Status {
        task: TaskId(3),
        name: name.into(),
        current: 0,
        total: None,
        done,
        at: Duration::from_secs(5),
    };
    let events = [
        started(1, "[1/2] FROM docker.io/library/busybox", 0.0),
        finished(1, Outcome::Cached, 0.0),
        started(2, "[2/2] RUN make\tall", 0.0),
        finished(2, Outcome::Done, 5.3),
        started(3, "exporting to image", 5.0),
        part("naming to docker.io/library/x:latest", true),
        finished(3, Outcome::Done, 5.6),
    ];
    assert_eq!(
        draw(&events, 5.6, (60, 24), true),
        [
            "[+] Building 5.6s (3/3) FINISHED",
            " => CACHED [1/2] FROM docker.io/library/busybox        0.0s",
            " => [2/2] RUN make all                                 5.3s",
            " => exporting to image                                 0.6s",
            " => => naming to docker.io/library/x:latest            0.0s",
        ]
    );
}

#[test]
fn a_running_build_has_a_window_on_its_log() {
    let text: String = (1..=9).map(|n| format!("line {n}\n")).collect();
    let transfer = Event::Status {
        task: TaskId(1),
        name: "sha256:0123456789".into(),
        current: 12_300_000,
        total: Some(45_000_000),
        done: false,
        at: Duration::ZERO,
    };
    let events = [
        started(1, "[1/2] FROM x", 0.0),
        transfer,
        started(2, "[2/2] RUN make", 1.0),
        log(2, &text),
        log(2, "\x1b[31m50%\r100%"),
    ];
    assert_eq!(
        draw(&events, 2.0, (60, 24), false),
        [
            "[+] Building 2.0s (0/2)",
            " => [1/2] FROM x                                       2.0s",
            " => => sha256:0123456789 12.30MB / 45.00MB             2.0s",
            " => [2/2] RUN make                                     1.0s",
            " => => # line 5",
            " => => # line 6",
            " => => # line 7",
            " => => # line 8",
            " => => # line 9",
            " => => # 100%",
        ]
    );
}

#[test]
fn a_transfer_has_a_speed_and_a_time_left() {
    let status = |current, at: f64, done| Event::Status {
        task: TaskId(1),
        name: "sha256:44db00de8944aa64ac0dd2b44fa21f95f21651c5937f5a88b4dcd3544edee88a".into(),
        current,
        total: Some(45_000_000),
        done,
        at: Duration::from_secs_f64(at),
    };
    let mut events = vec![started(1, "[1/2] FROM x", 0.0), status(0, 0.0, false), status(20_000_000, 2.0, false)];
    let line = |events: &[Event], now, width| draw(events, now, (width, 24), false).swap_remove(2);
    let rows = [
        (2.0, 100, " => => sha256:44db00de8944aa64ac0dd2b44fa21f95f21651c59 20.00MB / 45.00MB 10.00MB/s, 3s left   2.0s"),
        // What stands still gets slower.
        (4.0, 80, " => => sha256:44db00de8944aa64ac0dd2 20.00MB / 45.00MB 5.00MB/s, 5s left   4.0s"),
        (4.0, 60, " => => sha256:44db00de8944aa64ac0d 20.00MB / 45.00MB   4.0s"),
    ];
    for (now, width, want) in rows {
        assert_eq!(line(&events, now, width), want, "{width}");
    }
    events.push(status(45_000_000, 5.0, true));
    assert!(!line(&events, 6.0, 100).contains("/s"), "{}", line(&events, 6.0, 100));
}

#[test]
fn no_frame_is_larger_than_the_terminal() {
    let mut events = Vec::new();
    for id in 1..40 {
        events.push(started(id, &format!("[{id}/39] RUN a command that is rather long to be shown in a narrow window ééé"), 0.0));
        events.push(log(id, "some text\nand more of it\n"));
        if id % 2 == 0 {
            events.push(finished(id, Outcome::Failed("no".into()), 1.0));
        }
    }
    for width in [1, 10, 20, 30, 80] {
        for height in [1, 2, 3, 10, 30, 100] {
            let lines = draw(&events, 100.0, (width, height), false);
            assert!(lines.len() <= height.max(1), "{width}x{height}: {}", lines.len());
            assert!(lines.iter().all(|line| line.chars().count() <= width), "{width}x{height}: {lines:#?}");
        }
    }
    // What runs is shown rather than what ended.
    assert_eq!(draw(&events, 100.0, (80, 12), false).iter().filter(|line| line.contains("ERROR")).count(), 0);
}

#[test]
fn a_frame_replaces_the_one_before() {
    let mut painter = Painter::default();
    let mut out = Vec::new();
    painter.paint(&["a".into(), "b".into()], &mut out);
    painter.paint(&["c".into()], &mut out);
    let text = String::from_utf8(out).unwrap();
    assert_eq!(
        text,
        "\x1b[?25l\x1b[?7la\x1b[K\nb\x1b[K\n\x1b[J\x1b[?7h\x1b[?25h\x1b[?25l\x1b[?7l\x1b[2A\rc\x1b[K\n\x1b[J\x1b[?7h\x1b[?25h"
    );
}
