//! Scripts of events and the plain lines that they become.

use super::*;
use kiln::event::Stream;

/// A script of events, one a line: `3 start NAME`, `3 log TEXT` (`\n` is a line feed), `3 status NAME CURRENT TOTAL`,
/// `3 ended NAME CURRENT TOTAL` for a part that is done, `3 done|cached|canceled`, `3 failed WHY`, `3 warn TEXT`, `warn TEXT`,
/// `at SECONDS` for what follows, `--` to write what there is.
fn play(script: &str) -> String {
    let (mut trace, mut plain, mut out) = (Trace::new(10), Plain::default(), Vec::new());
    let mut at = Duration::ZERO;
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if line == "--" {
            plain.write(&trace, at, &mut out);
            continue;
        }
        let (first, rest) = line.split_once(' ').unwrap();
        if first == "at" {
            at = Duration::from_secs_f64(rest.parse().unwrap());
            continue;
        }
        let event = if first == "warn" {
            Event::Warning { task: None, message: rest.to_owned() }
        } else {
            let task = TaskId(first.parse().unwrap());
            let (verb, rest) = rest.split_once(' ').unwrap_or((rest, ""));
            let ended = |outcome| Event::Finished { task, outcome, at };
            match verb {
                "start" => Event::Started { task, name: rest.to_owned(), at },
                "log" => Event::Log { task, stream: Stream::Out, at, data: rest.replace("\\n", "\n").into_bytes() },
                "status" | "ended" => {
                    let words: Vec<&str> = rest.rsplitn(3, ' ').collect();
                    let total = words[0].parse().ok().filter(|total| *total > 0);
                    let current = words[1].parse().unwrap();
                    Event::Status { task, name: words[2].to_owned(), current, total, done: verb == "ended", at }
                }
                "warn" => Event::Warning { task: Some(task), message: rest.to_owned() },
                "done" => ended(Outcome::Done),
                "cached" => ended(Outcome::Cached),
                "canceled" => ended(Outcome::Canceled),
                "failed" => ended(Outcome::Failed(rest.to_owned())),
                other => panic!("{other}"),
            }
        };
        trace.apply(&event);
        plain.apply(&event, &trace);
    }
    plain.finish(&trace, at, &mut out);
    String::from_utf8(out).unwrap()
}

#[track_caller]
fn check(script: &str, want: &[&str]) {
    let got = play(script);
    assert!(got.is_empty() || got.ends_with('\n'), "{got:?}");
    let got: Vec<&str> = got.lines().collect();
    assert_eq!(got, want, "\n{}", got.join("\n"));
}

#[test]
fn one_after_the_other() {
    check(
        r"1 start [internal] load build definition from Dockerfile
        1 ended transferring dockerfile: 99 0
        1 done
        --
        2 start [1/2] FROM docker.io/library/busybox
        2 cached
        --
        at 1.0
        3 start [2/2] RUN make
        at 1.062
        3 log text\nmore\n
        --
        at 2.2
        3 done
        --",
        &[
            "#1 [internal] load build definition from Dockerfile",
            "#1 transferring dockerfile: 99B done",
            "#1 DONE 0.0s",
            "",
            "#2 [1/2] FROM docker.io/library/busybox",
            "#2 CACHED",
            "",
            "#3 [2/2] RUN make",
            "#3 0.062 text",
            "#3 0.062 more",
            "#3 DONE 1.2s",
        ],
    );
}

#[test]
fn transfers() {
    check(
        r"1 start [1/1] FROM docker.io/library/debian
        1 status sha256:aa 0 45000000
        --
        at 0.5
        1 status sha256:aa 100 45000000
        --
        at 0.6
        1 status sha256:aa 12300000 45000000
        at 0.7
        1 status sha256:aa 30000000 45000000
        --
        at 1.2
        1 ended sha256:aa 45000000 45000000
        1 done",
        &[
            "#1 [1/1] FROM docker.io/library/debian",
            "#1 sha256:aa 0B / 45.00MB",
            "#1 sha256:aa 12.30MB / 45.00MB 0.6s (20.50MB/s, 2s left)",
            "#1 sha256:aa 45.00MB / 45.00MB 1.2s done",
            "#1 DONE 1.2s",
        ],
    );
}

#[test]
fn a_transfer_that_changes_its_speed() {
    check(
        r"1 start pushing x
        1 status sha256:aa 0 200000000
        at 2
        1 status sha256:aa 20000000 200000000
        at 10
        1 status sha256:aa 30000000 200000000
        at 16
        1 status sha256:aa 31000000 200000000
        at 17
        1 status sha256:aa 0 200000000
        at 23
        1 status sha256:aa 10000000 200000000
        1 status downloading 5000 0
        at 30
        1 status downloading 12000 0
        1 done",
        &[
            "#1 pushing x",
            "#1 sha256:aa 0B / 200.00MB",
            "#1 sha256:aa 20.00MB / 200.00MB 2.0s (10.00MB/s, 18s left)",
            "#1 sha256:aa 30.00MB / 200.00MB 10.0s (1.25MB/s, 2m16s left)",
            "#1 sha256:aa 31.00MB / 200.00MB 16.0s (166.67kB/s, 16m54s left)",
            "#1 sha256:aa 10.00MB / 200.00MB 23.0s (1.67MB/s, 1m54s left)",
            "#1 downloading 5.00kB",
            "#1 downloading 12.00kB 7.0s (1.00kB/s)",
            "#1 DONE 30.0s",
        ],
    );
}

#[test]
fn two_at_once() {
    check(
        r"1 start [a 1/1] RUN one
        1 log 1a\n
        --
        2 start [b 1/1] RUN two
        2 log 2a\n
        --
        1 log 1b\n
        --
        at 0.1
        2 log 2b\n
        2 done
        --
        1 log 1c\n
        1 done",
        &[
            "#1 [a 1/1] RUN one",
            "#1 0.000 1a",
            "#1 0.000 1b",
            "#1 ...",
            "",
            "#2 [b 1/1] RUN two",
            "#2 0.000 2a",
            "#2 0.100 2b",
            "#2 DONE 0.1s",
            "",
            "#1 [a 1/1] RUN one",
            "#1 0.100 1c",
            "#1 DONE 0.1s",
        ],
    );
}

#[test]
fn a_silenced_task_is_heard_after_ten_seconds() {
    check(
        r"1 start one
        1 log 1a\n
        --
        2 start two
        2 log 2a\n
        --
        at 11
        1 log 1b\n
        --",
        &["#1 one", "#1 0.000 1a", "#1 11.00 1b", "#1 ...", "", "#2 two", "#2 0.000 2a"],
    );
}

#[test]
fn endings() {
    check(
        r#"1 start RUN false
        1 failed process "/bin/sh -c false" did not complete successfully: exit code: 1
        2 start RUN sleep 9
        2 canceled"#,
        &[
            "#1 RUN false",
            "#1 ERROR: process \"/bin/sh -c false\" did not complete successfully: exit code: 1",
            "",
            "#2 RUN sleep 9",
            "#2 CANCELED",
        ],
    );
}

#[test]
fn lines_in_pieces() {
    // A line that goes on is not begun anew; one that was broken off is; the end of a task ends its line.
    check(
        r"1 start one
        1 log .
        --
        1 log ..
        --
        2 start two
        2 done
        --
        1 log .|\n
        1 log end
        1 done",
        &[
            "#1 one",
            "#1 0.000 ...",
            "#1 ...",
            "",
            "#2 two",
            "#2 DONE 0.0s",
            "",
            "#1 one",
            "#1 0.000 .|",
            "#1 0.000 end",
            "#1 DONE 0.0s",
        ],
    );
}

#[test]
fn a_status_does_not_join_a_line() {
    check(
        r"1 start one
        1 log abc
        --
        1 status part 0 0
        1 log def\n
        --
        warn mirror passed over
        1 warn look out
        1 done",
        &["#1 one", "#1 0.000 abc", "#1 part", "#1 0.000 def", "WARN: mirror passed over", "#1 WARN: look out", "#1 DONE 0.0s"],
    );
}

#[test]
fn what_waits_is_not_without_end() {
    let (mut trace, mut plain, mut out) = (Trace::new(10), Plain::default(), Vec::new());
    let line = [b"y".repeat(1023), b"\n".to_vec()].concat();
    let log = |id, data: &[u8]| Event::Log { task: TaskId(id), stream: Stream::Out, at: Duration::ZERO, data: data.to_vec() };
    let started = |id| Event::Started { task: TaskId(id), name: format!("step {id}"), at: Duration::ZERO };
    let mut apply = |event: Event| {
        trace.apply(&event);
        plain.apply(&event, &trace);
        plain.write(&trace, Duration::ZERO, &mut out);
        plain.lanes.values().map(|lane| lane.queue.len()).sum::<usize>()
    };
    apply(started(1));
    apply(started(2));
    // The first is on display and goes on; the second is loud and isn't shown.
    let most = (0..8192).map(|_| apply(log(1, b".\n")).max(apply(log(2, &line)))).max();
    assert!(most < Some(2 << 20), "{most:?}");
    plain.finish(&trace, Duration::ZERO, &mut out);
    assert_eq!(out.iter().filter(|byte| **byte == b'y').count(), 8192 * 1023);
}

#[test]
fn bytes_pass_unchanged() {
    let (mut trace, mut plain, mut out) = (Trace::new(10), Plain::default(), Vec::new());
    let task = TaskId(1);
    let noise = b"\x1b[31m\xff\xfe\r\x00tab\t".repeat(5000);
    for event in [
        Event::Started { task, name: "n".into(), at: Duration::ZERO },
        Event::Log { task, stream: Stream::Out, at: Duration::ZERO, data: noise.clone() },
        Event::Finished { task, outcome: Outcome::Done, at: Duration::ZERO },
    ] {
        trace.apply(&event);
        plain.apply(&event, &trace);
    }
    plain.finish(&trace, Duration::ZERO, &mut out);
    assert_eq!(out, [b"#1 n\n#1 0.000 ", noise.as_slice(), b"\n#1 DONE 0.0s\n"].concat());
}
