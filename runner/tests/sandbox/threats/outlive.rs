//! What tries to go on after the end: open files, daemons, bombs.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kiln_runner::{Cancel, GroupLimits, Mount, MountSource, RunError, Status};

use super::{deeds, program};
use crate::endings::PARENT;
use crate::support::{Step, host, mounts_with, processes_with, soon_empty};

/// C29: two steps that work together, by a socket in a shared mount and by one that only the host's network knows: the one hands a
/// file of its layer to the other, which writes into it when the layer is finished. The first step fails then.
pub fn c29_a_file_handed_out_spoils_the_step() {
    let Some(path) = deeds("c29_a_file_handed_out_spoils_the_step") else { return };
    let shared = tempfile::tempdir().unwrap();
    let abstract_name = format!("@kiln-test-{}", std::process::id());
    for socket in ["/shared/socket", abstract_name.as_str()] {
        let with = |command: &[&str]| {
            let mut step = Step::new();
            let source = MountSource::Bind { path: shared.path().to_owned() };
            step.spec.mounts.push(Mount { target: "/shared".into(), source, subpath: "".into(), readonly: false });
            step.spec.mounts.push(program("/deeds", &path));
            step.spec.args = command.iter().map(Into::into).collect();
            step
        };
        let giver = with(&["sh", "-c", &format!("echo original > /output; exec /deeds send {socket} /output")]);
        // Long enough for the giver's patience to end.
        let taker = with(&["/deeds", "receive", socket, "3000"]);
        std::thread::scope(|scope| {
            let taker = scope.spawn(move || taker.run(&Cancel::new().unwrap()));
            let ran = giver.run(&Cancel::new().unwrap());
            assert!(matches!(ran.result, Err(RunError::Held)), "{socket}: {ran:?}");
            assert_eq!(taker.join().unwrap().ok(), "written\n", "{socket}: the attack itself works");
        });
        // One that lets go in time harms nobody: what it did is part of the result.
        let giver = with(&["sh", "-c", &format!("rm -f {socket}; echo original > /output; exec /deeds send {socket}2 /output")]);
        let taker = with(&["/deeds", "receive", &format!("{socket}2"), "10"]);
        std::thread::scope(|scope| {
            let taker = scope.spawn(move || taker.run(&Cancel::new().unwrap()));
            giver.run(&Cancel::new().unwrap()).ok();
            taker.join().unwrap().ok();
        });
        assert_eq!(std::fs::read_to_string(giver.upper().join("output")).unwrap(), "poisoned\n");
    }
}

/// Ten kinds of daemons; each command line holds `MARK`, which the tests look for.
const DAEMONS: [(&str, &str); 10] = [
    ("in the background", "nc -l -p PORT MARK > /dev/null 2>&1 & sleep MARK &"),
    ("forked twice", "(setsid sh -c 'sleep MARK & sleep MARK &' &)"),
    ("in a session of its own", "setsid sleep MARK &"),
    ("nohup", "nohup sleep MARK > /dev/null 2>&1 &"),
    ("stopped under a tracer", "/deeds traced MARK &"),
    ("stopped", "sleep MARK & kill -STOP $!"),
    ("deaf to everything", "/deeds deaf MARK & setsid sh -c 'trap \"\" TERM HUP INT; while :; do sleep MARK; done' &"),
    ("a storm of processes", "/deeds forks 40 MARK"),
    ("a storm of threads", "/deeds thread-storm 200 MARK &"),
    ("holding a socket", "nc -l -p PORT MARK 2> /dev/null & nc -l -p PORT > /dev/null MARK 2>&1 & setsid nc -l -p PORT &"),
];

/// How long something sleeps, by which this process knows its own from those of others that run the same tests.
fn mark(seconds: &str) -> String {
    format!("{seconds}.{}", std::process::id())
}

/// A port of this process's own.
fn port(number: u32) -> String {
    (20_000 + (std::process::id() * 4 + number) % 12_000).to_string()
}

/// The step's script; the deeds ignore further arguments.
fn script(daemon: &str, mark: &str, port: &str) -> String {
    daemon.replace("MARK", mark).replace("PORT", port)
}

/// The next step gets the port, within a second: a socket is closed a moment after its process is no longer seen.
#[track_caller]
fn can_bind(what: &str, port: &str) {
    soon_empty(what, || {
        let seen = Step::new().sh(&format!("nc -l -p {port} & sleep 0.1; netstat -ltn | grep -c ':{port} '")).out;
        if seen == "1\n" { vec![] } else { vec![format!("{seen} listen on {port}")] }
    });
}

/// C32: gone when the step is, and the next one has the port.
pub fn c32_ten_daemons_after_the_step() {
    let Some(path) = deeds("c32_ten_daemons_after_the_step") else { return };
    let (mark, port) = (&mark("5511"), &port(1));
    for (what, daemon) in DAEMONS {
        let mut step = Step::new();
        step.spec.mounts.push(program("/deeds", &path));
        let ran = step.sh(&format!("{}\nsleep 0.1; echo end; exit 0", script(daemon, mark, port)));
        let end = Instant::now();
        assert!(ran.ok().ends_with("end\n"), "{what}");
        assert_eq!(processes_with(mark), [""; 0], "{what}");
        can_bind(what, port);
        assert!(end.elapsed() < Duration::from_secs(2), "{what}: {:?}", end.elapsed());
        assert_eq!(mounts_with(step.dir.path().to_str().unwrap()), [""; 0], "{what}");
    }
}

/// The same after SIGKILL of the process that called `run`.
pub fn c32_ten_daemons_after_a_kill() {
    let Some(path) = deeds("c32_ten_daemons_after_a_kill") else { return };
    let (mark, port) = (&mark("5512"), &port(2));
    for (what, daemon) in DAEMONS {
        let step = Step::new();
        std::fs::copy(&path, step.upper().join("deeds")).unwrap();
        let mut parent = Command::new(std::env::current_exe().unwrap())
            .arg(PARENT)
            .arg(step.dir.path())
            .args(["", "sh", "-c", &format!("{}\nsleep 0.1; echo ready; sleep {mark}", script(daemon, mark, port))])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(parent.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap() == "ready"), "{what}");
        assert!(!processes_with(mark).is_empty(), "{what}");
        parent.kill().unwrap();
        parent.wait().unwrap();
        soon_empty(what, || processes_with(mark));
        let dir = step.dir.path().to_str().unwrap().to_owned();
        soon_empty(what, || mounts_with(&dir));
        can_bind(what, port);
    }
}

/// F02: SIGKILL of the command's first process alone ends the step with the signal's name, and all others with it.
pub fn f02_only_the_init_is_killed() {
    let step = Step::new();
    let mark = &mark("5513");
    let mut parent = Command::new(std::env::current_exe().unwrap())
        .arg(PARENT)
        .arg(step.dir.path())
        .args(["", "sh", "-c", &format!("setsid sleep {mark} & echo ready; sleep {mark}; exit 0")])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(parent.stdout.take().unwrap());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    let first = processes_with(mark).into_iter().find(|process| process.split(' ').nth(1) == Some("sh")).unwrap();
    let pid = first.split(' ').next().unwrap().parse().unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL).unwrap();
    let mut rest = String::new();
    lines.read_to_string(&mut rest).unwrap();
    assert!(rest.starts_with("Ok(") && rest.contains("Signaled(9)"), "{rest}");
    assert!(parent.wait().unwrap().success());
    soon_empty("the command", || processes_with(mark));
}

/// F25: bombs stay within their limits while another step goes on.
pub fn f25_bombs() {
    let Some(path) = deeds("f25_bombs") else { return };
    let limits =
        GroupLimits { pids: Some(200), memory: Some(64 << 20), memory_and_swap: Some(Some(64 << 20)), ..GroupLimits::default() };
    let lacks = host().lacks(&limits);
    if !lacks.is_empty() {
        return println!("skipped: threats::f25_bombs: no writable control group for {}", lacks.join(", "));
    }
    let bomb = |command: &str| {
        let mut step = Step::new().with(|spec| spec.group = limits.clone());
        step.spec.mounts.push(program("/deeds", &path));
        step.sh(command)
    };
    let free = {
        let begin = Instant::now();
        Step::new().sh("i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done").ok();
        begin.elapsed()
    };
    // Processes.
    let made: u32 = bomb("/deeds forks 1000").ok().trim().parse().unwrap();
    // Its children take part of what there is.
    assert!((1..200).contains(&made), "{made} processes of 200");
    // Threads.
    let made: u32 = bomb("/deeds threads 1000").ok().trim().parse().unwrap();
    assert!((100..200).contains(&made), "{made} threads of 200");
    // Files: a limit of each process.
    assert_eq!(bomb("/deeds files").ok(), "1021 Too many open files\n");
    // Memory, while another step counts: it has to end, and the bomb's end is named.
    let (hog, other) = std::thread::scope(|scope| {
        let hog = scope.spawn(|| bomb("for i in 1 2 3 4; do tail /dev/zero & done; wait; exit 137"));
        let begin = Instant::now();
        Step::new().sh("i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done").ok();
        (hog.join().unwrap(), begin.elapsed())
    });
    assert!(matches!(hog.result, Ok(Status::OomKilled)), "{hog:?}");
    // How much slower is the machine's affair, too; that it doesn't stand still is ours.
    assert!(other < free * 10 + Duration::from_secs(1), "{other:?} beside the bomb, {free:?} alone");
    // The classic, ended from outside.
    let step = Step::new()
        .with(|spec| spec.group = limits.clone())
        .with(|spec| spec.args = ["sh", "-c", "b() { b | b & }; b; sleep 60"].map(Into::into).into());
    let cancel = Cancel::new().unwrap();
    std::thread::scope(|scope| {
        let running = scope.spawn(|| step.run(&cancel));
        std::thread::sleep(Duration::from_millis(700));
        let begin = Instant::now();
        cancel.trigger();
        cancel.trigger();
        assert!(matches!(running.join().unwrap().result, Err(RunError::Cancelled)));
        assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    });
}
