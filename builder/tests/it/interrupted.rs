//! Builds that are ended from outside: by a signal a person sends, and by SIGKILL at any moment.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::archive::Image;
use crate::support::compare::{Rules, differences};
use crate::support::home::Home;
use crate::support::leftovers;

fn start(home: &Home, args: &[&str]) -> Child {
    home.command().args(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(child.id() as i32).unwrap();
    // It may have ended by itself a moment ago.
    let _ = kill_process(pid, signal);
}

/// Reads the child's messages until one holds the text.
fn wait_for(child: &mut Child, text: &str) {
    let mut seen = String::new();
    let stderr = child.stderr.as_mut().unwrap();
    let mut reader = BufReader::new(stderr);
    while !seen.contains(text) {
        assert_ne!(reader.read_line(&mut seen).unwrap(), 0, "ended without saying {text:?}:\n{seen}");
    }
}

/// Each of these ends the build soon with the shell's number for the signal, whatever RUN does with it.
#[test]
fn ctrl_c_and_terminate_end_a_build_cleanly() {
    for (number, (sent, code, script)) in [
        (Signal::INT, 130, "sleep 1000"),
        (Signal::TERM, 143, "sleep 1000"),
        (Signal::INT, 130, "trap '' INT TERM HUP; sleep 1000 & sleep 1000 & while true; do sleep 1; done"),
        (Signal::INT, 130, "(setsid sleep 1000 &) ; sleep 1000"),
    ]
    .into_iter()
    .enumerate()
    {
        let home = Home::new();
        let context = home.context(
            "c",
            &format!("FROM busybox\nRUN echo before > /b\nRUN echo we are running; : mark-ctrl-{number}; {script}\n"),
        );
        let mut child = start(&home, &["build", "-t", "never", context.to_str().unwrap()]);
        wait_for(&mut child, " we are running");
        let sent_at = Instant::now();
        signal(&child, sent);
        drop(child.stderr.take());
        let status = child.wait().unwrap();
        assert_eq!(status.code(), Some(code), "{script}");
        // A command that ignores the signal has a moment to end before it is killed.
        assert!(sent_at.elapsed() < Duration::from_secs(9), "{script}: took {:?}", sent_at.elapsed());
        leftovers::assert_none(&format!("mark-ctrl-{number}"));
        leftovers::assert_none(home.path("").to_str().unwrap());
        assert_eq!(home.run(["images", "--format", "json"]).ok().json().len(), 0);
        // What was finished before is kept.
        let again = home.build("ok", "FROM busybox\nRUN echo before > /b\n").ok();
        assert_eq!(again.cached(), 1, "{again:?}");
    }
}

#[test]
fn a_closed_terminal_ends_a_build() {
    let home = Home::new();
    let context = home.context("c", "FROM busybox\nRUN echo we are running; : mark-hup; sleep 1000\n");
    let mut child = start(&home, &["build", context.to_str().unwrap()]);
    wait_for(&mut child, " we are running");
    signal(&child, Signal::HUP);
    drop(child.stderr.take());
    assert!(!child.wait().unwrap().success());
    leftovers::assert_none("mark-hup");
}

/// Fifty SIGKILLs at random moments of one build. After each, no process and no mount is left; at the end, the next
/// build succeeds and its image is the one that a fresh store gives.
#[test]
fn fifty_kills_leave_a_store_that_works() {
    let home = Home::new();
    let mut dockerfile =
        "FROM busybox AS one\nRUN : mark-kill-run; mkdir /o && head -c 300000 /dev/zero > /o/z\nFROM busybox\n".to_owned();
    for i in 0..4 {
        dockerfile += &format!("COPY src{i} /src{i}\nRUN : mark-kill-run; sleep 0.02; echo {i} > /r{i}; rm /src{i}/f1\n");
    }
    dockerfile += "COPY --from=one /o /o\nWORKDIR /w\n";
    let context = home.context("c", &dockerfile);
    for i in 0..40 {
        home.write(&format!("c/src{}/f{}", i % 4, i / 4), format!("file {i}\n").repeat(500));
    }
    let context = context.to_str().unwrap().to_owned();
    let archive = home.path("killed.tar").display().to_string();
    let output = format!("type=docker,dest={archive}");
    let args = ["build", "--no-cache", "-t", "killed", "--output", &output, &context];

    let started = Instant::now();
    home.run(args).ok();
    let whole = started.elapsed();
    let seed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64;
    println!("a whole build takes {whole:?}; the seed is {seed}");
    let mut random = seed | 1;
    let mut killed = 0;
    for _ in 0..50 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let share = (random >> 33) as f64 / f64::from(u32::MAX >> 1);
        let mut child = home.command().args(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(whole.mul_f64(share));
        signal(&child, Signal::KILL);
        killed += usize::from(child.wait().unwrap().code().is_none());
        leftovers::assert_none("mark-kill-run");
        leftovers::assert_none(home.path("").to_str().unwrap());
    }
    assert!(killed > 25, "only {killed} of 50 builds were still running when they were killed");

    home.run(["build", "-t", "after", "--output", &output, &context]).ok();
    let after = Image::read(archive.as_ref()).unwrap();
    let fresh = home.path("fresh-store");
    home.run(["--root", fresh.to_str().unwrap(), "build", "--output", &output, &context]).ok();
    let clean = Image::read(archive.as_ref()).unwrap();
    assert_eq!(differences(&after, &clean, &Rules::default()), [] as [&str; 0]);
    // The half-made is gone or is taken away now.
    home.run(["prune", "-a", "-f"]).ok();
    home.run(["build", "-t", "after", &context]).ok();
}
