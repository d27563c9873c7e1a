//! How a run ends, and that nothing outlives it.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kiln_runner::{Cancel, RootFs, RunError, RunSpec, Status};

use crate::support::{Ran, Step, base, host, mounts_with, processes_with, soon_empty};

/// Makes the test program a process that only runs one step: `PARENT DIR USER COMMAND…`.
pub const PARENT: &str = "--be-the-parent-of-a-run";

pub fn be_parent(arguments: &[String]) {
    use std::io::Write;
    let [dir, user, command @ ..] = arguments else { panic!("arguments: {arguments:?}") };
    let dir = Path::new(dir);
    let root = RootFs::Overlay { lowers: vec![base().to_owned()], upper: dir.join("upper"), work: dir.join("work") };
    let mut spec = RunSpec::new(root, command.iter().map(Into::into).collect());
    spec.env.push(("PATH".into(), "/bin".into()));
    spec.user.clone_from(user);
    let result = kiln_runner::run(&spec, host(), &Cancel::new().unwrap(), &mut |_, bytes| {
        // Whoever started this may be gone.
        let _ = std::io::stdout().write_all(bytes).and_then(|()| std::io::stdout().flush());
    });
    println!("{result:?}");
}

/// Starts such a process and waits until the command has said `ready`.
fn start_parent(step: &Step, user: &str, command: &[&str]) -> (std::process::Child, BufReader<std::process::ChildStdout>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .arg(PARENT)
        .arg(step.dir.path())
        .arg(user)
        .args(command)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    (child, lines)
}

/// SIGKILL of the process that called `run`, with commands that try to survive it.
pub fn killed_parent() {
    let rows: &[(&str, &str, &[&str])] = &[
        ("plain", "", &["sh", "-c", "sleep 5502.5 & echo ready; sleep 5502.5"]),
        (
            "daemons",
            "",
            &["sh", "-c", "setsid sh -c 'trap \"\" TERM; sleep 5502.5' & (setsid sleep 5502.5 &); echo ready; sleep 5502.5"],
        ),
        ("another user", "bob", &["sh", "-c", "sleep 5502.5 & echo ready; sleep 5502.5"]),
        // Executing a set-user-id program clears the parent-death signal of a process.
        ("set-user-id", "bob", &["/su", "root", "-c", "sleep 5502.5 & echo ready; sleep 5502.5"]),
    ];
    for (what, user, command) in rows {
        let step = Step::new();
        let su = step.upper().join("su");
        std::fs::copy("/bin/busybox", &su).unwrap();
        std::fs::set_permissions(&su, PermissionsExt::from_mode(0o4755)).unwrap();
        let (mut parent, _lines) = start_parent(&step, user, command);
        assert!(!processes_with("sleep 5502.5").is_empty(), "{what}");
        parent.kill().unwrap();
        parent.wait().unwrap();
        soon_empty(what, || processes_with("sleep 5502.5"));
        let dir = step.dir.path().to_str().unwrap().to_owned();
        soon_empty(what, || mounts_with(&dir));
    }
}

/// F01: SIGKILL while the sandbox is being made, and what control groups it leaves is removed by the next start.
pub fn killed_at_any_moment() {
    let step = Step::new();
    let dir = step.dir.path().to_str().unwrap().to_owned();
    for round in 0..40u64 {
        let work = step.subdir("work");
        std::fs::remove_dir_all(&work).unwrap();
        std::fs::create_dir(&work).unwrap();
        let mut parent = Command::new(std::env::current_exe().unwrap())
            .args([PARENT, &dir, "", "sleep", "5507.5"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_micros(round * 400));
        parent.kill().unwrap();
        parent.wait().unwrap();
    }
    soon_empty("processes", || processes_with("5507.5"));
    soon_empty("mounts", || mounts_with(&dir));
    let entered = kiln_runner::enter(&kiln_runner::Wish::default()).unwrap();
    kiln_runner::Host::probe(&entered, &kiln_runner::Ground::probe(&entered, &std::env::temp_dir()));
    let left: Vec<_> =
        groups().into_iter().filter(|name| !Path::new("/proc").join(name.split('-').nth(1).unwrap()).exists()).collect();
    assert_eq!(left, [""; 0], "control groups of dead processes");
}

/// Names of kiln's control groups.
fn groups() -> Vec<String> {
    ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"]
        .iter()
        .filter_map(|path| std::fs::read_dir(path).ok())
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("kiln-"))
        .collect()
}

/// F02: killing only the supervisor, or only the command.
pub fn killed_supervisor() {
    let step = Step::new();
    // Others may run the same test.
    let mark = format!("5503.{}", std::process::id());
    let script = format!("setsid sleep {mark} & echo ready; sleep {mark}");
    let (mut parent, mut lines) = start_parent(&step, "", &["sh", "-c", &script]);
    // A run has a thread of its own.
    let threads = std::fs::read_dir(format!("/proc/{}/task", parent.id())).unwrap();
    let children: String =
        threads.map(|thread| std::fs::read_to_string(thread.unwrap().path().join("children")).unwrap()).collect();
    let supervisor: i32 = children.trim().parse().unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(supervisor).unwrap(), rustix::process::Signal::KILL).unwrap();
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert!(line.starts_with("Err(SupervisorLost { how: \"signal: 9 (SIGKILL)\" })"), "{line}");
    assert!(parent.wait().unwrap().success());
    soon_empty("supervisor", || processes_with(&mark));
}

/// Runs and triggers `cancel` at each of `moments` after the command said `ready`.
fn cancelled(mut step: Step, script: &str, moments: &[Duration]) -> (Ran, Duration) {
    step.spec.args = ["sh", "-c", script].map(Into::into).into();
    let cancel = Cancel::new().unwrap();
    let (ready, is_ready) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let trigger = cancel.clone();
        let clock = scope.spawn(move || {
            is_ready.recv().unwrap();
            let begin = Instant::now();
            for moment in moments {
                std::thread::sleep(moment.saturating_sub(begin.elapsed()));
                trigger.trigger();
            }
            begin
        });
        let ran = step.run_on(host(), &cancel, &mut |_, text| {
            if text.contains("ready") {
                ready.send(()).unwrap();
            }
        });
        let end = Instant::now();
        (ran, end - clock.join().unwrap())
    })
}

pub fn cancel_is_passed_on() {
    let script = "trap 'echo bye; exit 3' TERM; echo ready; sleep 5504.5 & wait";
    let (ran, took) = cancelled(Step::new(), script, &[Duration::ZERO]);
    assert!(matches!(ran.result, Err(RunError::Cancelled)), "{ran:?}");
    assert_eq!(ran.out, "ready\nbye\n");
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(processes_with("5504.5"), [""; 0]);
}

/// SIGTERM would end the command anywhere but at the head of a pid namespace; so it does here.
pub fn cancel_without_handler() {
    let (ran, took) = cancelled(Step::new(), "echo ready; sleep 5505.5; echo not reached", &[Duration::ZERO]);
    assert!(matches!(ran.result, Err(RunError::Cancelled)), "{ran:?}");
    assert_eq!(ran.out, "ready\n");
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(processes_with("5505.5"), [""; 0]);
}

pub fn cancel_twice() {
    let script = "trap '' TERM; echo ready; sleep 5506.5; sleep 5506.5";
    let (ran, took) = cancelled(Step::new(), script, &[Duration::ZERO, Duration::from_millis(300)]);
    assert!(matches!(ran.result, Err(RunError::Cancelled)), "{ran:?}");
    assert!(took > Duration::from_millis(290) && took < Duration::from_millis(1500), "{took:?}");
    assert_eq!(processes_with("5506.5"), [""; 0]);
}

pub fn cancel_after_grace() {
    let (ran, took) = cancelled(Step::new(), "trap '' TERM; echo ready; while :; do sleep 0.5; done", &[Duration::ZERO]);
    assert!(matches!(ran.result, Err(RunError::Cancelled)), "{ran:?}");
    assert!(took > Duration::from_millis(4900) && took < Duration::from_secs(6), "{took:?}");
}

pub fn cancelled_before() {
    let cancel = Cancel::new().unwrap();
    cancel.trigger();
    let mut step = Step::new();
    step.spec.args = vec!["true".into()];
    assert!(matches!(step.run(&cancel).result, Err(RunError::Cancelled)));
}

/// F25, where a pids group can be had.
pub fn process_limit() {
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut step = Step::new().with(|spec| spec.pids = 20);
    let ran = step.sh("cat /proc/self/cgroup; for i in $(seq 40); do sleep 3 & done; jobs | wc -l");
    if !ran.out.contains("/kiln-") {
        println!("skipped: endings::process_limit: no writable pids control group here ({own:?})");
        return;
    }
    assert!(ran.err.contains("can't fork"), "{ran:?}");
    let number = ran.out.split("/kiln-").nth(1).unwrap().lines().next().unwrap();
    assert!(!groups().contains(&format!("kiln-{number}")), "it is removed");
}

pub fn parallel_runs() {
    std::thread::scope(|scope| {
        for number in 0..8 {
            scope.spawn(move || {
                for round in 0..5 {
                    let text = format!("{number}.{round}");
                    assert_eq!(Step::new().sh(&format!("echo {text} > /f; cat /f")).ok(), format!("{text}\n"));
                }
            });
        }
    });
    let ran = Step::new().sh("exit 4");
    assert!(matches!(ran.result, Ok(Status::Exited(4))));
}
