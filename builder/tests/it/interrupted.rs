//! Builds that are ended from outside: by a signal a person sends, and by SIGKILL at any moment.

use std::io::{BufRead, BufReader};
use std::path::Path;
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

/// How many times a build is killed: 50, or what `KILN_TEST_KILLS` says (`make torture`: 200).
fn kills() -> u32 {
    std::env::var("KILN_TEST_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(50)
}

/// Numbers from 0 to 1 that differ from run to run.
struct Random(u64);

impl Random {
    fn new() -> Random {
        let seed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64;
        println!("the seed is {seed}");
        Random(seed | 1)
    }

    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as f64 / f64::from(u32::MAX >> 1)
    }
}

/// The files of a store and their bytes, but for what only makes later builds faster; and what lies on its way in or out.
fn size(store: &Path) -> (usize, u64, Vec<String>) {
    let (mut files, mut bytes, mut passing) = (0, 0, Vec::new());
    let mut folders = vec![store.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let (path, meta) = (entry.path(), entry.metadata().unwrap());
            let below = path.strip_prefix(store).unwrap().components().next().unwrap().as_os_str().to_str().unwrap().to_owned();
            match below.as_str() {
                "ingest" | "trash" | "locks" if path.parent().unwrap() != store => {
                    passing.push(path.strip_prefix(store).unwrap().display().to_string());
                    continue;
                }
                "memo" | "mount-points" => continue,
                _ => {}
            }
            match meta.is_dir() {
                true => folders.push(path),
                false => (files, bytes) = (files + 1, bytes + meta.len()),
            }
        }
    }
    (files, bytes, passing)
}

/// SIGKILLs at random moments of a build that pulls its base, runs commands and copies files. After each, no process and no mount is
/// left; at the end the next build succeeds, its image is the one that a fresh store gives, and the store is as large as that one.
#[test]
fn kills_leave_nothing_and_a_store_that_works() {
    let home = Home::new();
    let mut dockerfile =
        "FROM busybox AS one\nRUN : mark-kill-run; mkdir /o && head -c 300000 /dev/zero > /o/z\nFROM busybox\n".to_owned();
    for i in 0..4 {
        dockerfile += &format!(
            "COPY src{i} /src{i}\nRUN : mark-kill-run; (setsid sleep 60 &); sleep 0.02; echo {i} > /r{i}; rm /src{i}/f1\n"
        );
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
    let forget = || {
        // Its base included, so that the next build pulls.
        let _ = home.run(["rmi", "-f", "killed"]);
        home.run(["prune", "-a", "-f"]).ok();
    };

    let started = Instant::now();
    home.run(args).ok();
    let whole = started.elapsed();
    println!("a whole build takes {whole:?}");
    let (mut random, mut killed, kills) = (Random::new(), 0, kills());
    for round in 0..kills {
        if round % 2 == 0 {
            forget();
        }
        let mut child = home.command().args(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(whole.mul_f64(random.next()));
        signal(&child, Signal::KILL);
        killed += u32::from(child.wait().unwrap().code().is_none());
        leftovers::assert_none("mark-kill-run");
        leftovers::assert_none(home.path("").to_str().unwrap());
    }
    println!("{killed} of {kills} builds were killed");
    assert!(killed > kills / 2, "only {killed} of {kills} builds were still running when they were killed");

    home.run(["build", "-t", "killed", "--output", &output, &context]).ok();
    let after = Image::read(archive.as_ref()).unwrap();
    let fresh = home.path("fresh-store");
    let in_fresh = |args: &[&str]| home.run([&["--root", fresh.to_str().unwrap()], args].concat()).ok();
    in_fresh(&["build", "-t", "killed", "--output", &output, &context]);
    let clean = Image::read(archive.as_ref()).unwrap();
    assert_eq!(differences(&after, &clean, &Rules::default()), [] as [&str; 0]);
    // What whole steps of killed builds left is no rubbish but cache: it goes when it's told to.
    home.run(["prune", "-f", "-a"]).ok();
    in_fresh(&["prune", "-f", "-a"]);
    let end = Instant::now() + Duration::from_secs(10);
    let (mut left, mut wanted) = (size(&home.store()), size(&fresh));
    while (!left.2.is_empty() || !wanted.2.is_empty()) && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(50));
        (left, wanted) = (size(&home.store()), size(&fresh));
    }
    assert_eq!((left.0, &left.2), (wanted.0, &wanted.2), "files, and what is on its way in or out");
    // A time in a record is shorter when it ends with zeros.
    assert!(left.1.abs_diff(wanted.1) < 64, "{} bytes, {} in a fresh store", left.1, wanted.1);
    println!("the store has {} files of {} bytes, as a fresh one has", left.0, left.1);
    home.run(["build", "-t", "after", &context]).ok();
}

/// F22, F23: the terminal that kiln was started from is gone at once, as when its window is closed or its connection lost; and Ctrl-C
/// is typed into it.
#[test]
fn a_lost_caller_ends_a_build() {
    for (number, how) in ["lost", "ctrl-c"].into_iter().enumerate() {
        let home = Home::new();
        let mark = format!("mark-caller-{number}-{}", std::process::id());
        let script = format!("echo we are running; : {mark}; i=0; while [ $i -lt 600 ]; do sleep 0.1; i=$((i+1)); echo $i; done");
        let context = home.context("c", &format!("FROM busybox\nRUN {script}\n"));
        let kiln = home.command();
        // A terminal of its own, as a person has one; its end is that of the session.
        let line = format!("exec {} build --progress=plain {} 2>&1", kiln.get_program().display(), context.display());
        let mut command = std::process::Command::new("script");
        command.args(["-qfec", &line, "/dev/null"]).current_dir(home.path("")).stdin(Stdio::piped()).stdout(Stdio::piped());
        for (name, value) in kiln.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let mut terminal = match command.spawn() {
            Ok(child) => child,
            Err(error) => return crate::support::skip::skipped("a_lost_caller_ends_a_build", &format!("script(1): {error}")),
        };
        let mut lines = BufReader::new(terminal.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().ends_with("we are running")), "{how}");
        let begin = Instant::now();
        match how {
            "lost" => signal(&terminal, Signal::KILL),
            _ => std::io::Write::write_all(terminal.stdin.as_mut().unwrap(), b"\x03").unwrap(),
        }
        // Until it is closed.
        lines.for_each(drop);
        terminal.wait().unwrap();
        leftovers::assert_none(&mark);
        leftovers::assert_none(home.store().to_str().unwrap());
        assert!(begin.elapsed() < Duration::from_secs(8), "{how}: {:?}", begin.elapsed());
    }
}
