//! Terminals of the sandbox's own, signals that are passed on, and a root that can't be written to.

use std::time::{Duration, Instant};

use kiln_runner::{Cancel, Remote, RunSpec, Status, Streams};

use crate::support::{Step, host, soon_empty};

fn in_terminal(spec: &mut RunSpec) {
    spec.streams = Streams::Terminal { input: false };
}

pub fn terminal() {
    let mut step = Step::new().with(in_terminal);
    let out = step
        .sh("tty; tty < /dev/console; tty < /dev/tty; ls -l /dev/console | cut -c1-10; cut -d' ' -f5,6,8 /proc/self/stat")
        .ok();
    assert_eq!(out, "/dev/pts/0\r\n/dev/console\r\n/dev/tty\r\ncrw--w----\r\n1 1 1\r\n");
    let out = step.sh("echo one > /dev/console; echo two > /dev/tty; echo three >&2; ls /dev/pts").ok();
    assert_eq!(out, "one\r\ntwo\r\nthree\r\n0     ptmx\r\n");
    assert_eq!(step.changes(), [""; 0], "nothing of it is in the layer");
    let out = step.with(|spec| spec.user = "bob".into()).sh("id -u; echo mine > /dev/tty; echo named > $(tty)").ok();
    assert_eq!(out, "1000\r\nmine\r\nnamed\r\n");
}

/// C28: the filter, which refuses TIOCSTI, is the same in a terminal.
pub fn terminals_are_filtered_too() {
    let mut step = Step::new().with(in_terminal);
    assert_eq!(step.sh("grep Seccomp: /proc/self/status").ok(), "Seccomp:\t2\r\n");
}

/// What was written before the last process ended is seen, however much it is.
pub fn last_words_in_a_terminal() {
    for count in [1, 100, 20_000] {
        let out = Step::new().with(in_terminal).sh(&format!("seq 1 {count}")).ok();
        assert_eq!(out.lines().count(), count);
        assert!(out.ends_with(&format!("{count}\r\n")));
    }
    let ran = Step::new().with(in_terminal).sh("echo last; kill -9 $$; exit 7");
    assert_eq!((ran.out.as_str(), ran.result.unwrap()), ("last\r\n", Status::Exited(7)));
    let out =
        Step::new().with(in_terminal).sh("(sleep 0.1; echo again > /dev/console) & exec < /dev/null > /dev/null 2>&1; wait").ok();
    assert_eq!(out, "again\r\n", "a terminal that nobody had open is opened again");
}

pub fn failures_in_a_terminal() {
    let mut step = Step::new().with(in_terminal);
    assert!(step.args(&["nosuch"]).error().contains("executable file not found"));
    let ran = step.with(|spec| {
        let source = kiln_runner::MountSource::Tmpfs { size: None };
        spec.mounts.push(kiln_runner::Mount { target: "/dev/pts".into(), source, subpath: "".into(), readonly: false });
    });
    assert_eq!({ ran }.sh("true").error(), "cannot mount on `/dev/pts`: the command's terminal is there");
}

/// Signals for the command, which has none of the protection that the first process of a pid namespace has.
pub fn signals_are_passed_on() {
    let named = |number| Ok(Status::Signaled(number));
    // What the command does, the signal, and how it ends.
    let rows: &[(&str, i32, Result<Status, ()>)] = &[
        ("exec sleep 10", libc::SIGTERM, named(libc::SIGTERM)),
        ("exec sleep 10", libc::SIGINT, named(libc::SIGINT)),
        ("exec sleep 10", libc::SIGHUP, named(libc::SIGHUP)),
        ("exec sleep 10", libc::SIGQUIT, named(libc::SIGQUIT)),
        ("exec sleep 10", libc::SIGUSR1, named(libc::SIGUSR1)),
        ("trap 'exit 3' TERM; sleep 10 & wait", libc::SIGTERM, Ok(Status::Exited(3))),
        ("trap 'exit 4' INT; sleep 10 & wait", libc::SIGINT, Ok(Status::Exited(4))),
        ("trap 'exit 5' USR2; sleep 10 & wait", libc::SIGUSR2, Ok(Status::Exited(5))),
        ("trap '' HUP; sleep 0.4; exit 6", libc::SIGHUP, Ok(Status::Exited(6))),
        ("exec sleep 10", libc::SIGKILL, named(libc::SIGKILL)),
    ];
    for (script, signal, expected) in rows {
        let begin = Instant::now();
        let result = with_remote(&format!("{script} "), |remote| remote.signal(*signal));
        assert_eq!(result, *expected, "{script}, signal {signal}");
        assert!(begin.elapsed() < Duration::from_secs(5), "{script}, signal {signal}");
    }
}

/// Runs a script and acts on it once it has said that it is ready.
fn with_remote(script: &str, act: impl Fn(&Remote) + Send + Sync) -> Result<Status, ()> {
    let mut step = Step::new();
    step.spec.args = ["sh", "-c", &format!("(sleep 0.1; echo ready) & {script}")].map(Into::into).into();
    let remote = Remote::new().unwrap();
    let mut said = false;
    let result = kiln_runner::run_attached(&step.spec, host(), &Cancel::new().unwrap(), Some(&remote), &mut |_, bytes| {
        if !said && bytes.starts_with(b"ready") {
            said = true;
            act(&remote);
        }
    });
    result.map(|outcome| outcome.status).map_err(|error| panic!("{error}"))
}

pub fn read_only_root() {
    let mut step = Step::new().with(|spec| {
        spec.readonly_root = true;
        let source = kiln_runner::MountSource::Tmpfs { size: None };
        spec.mounts.push(kiln_runner::Mount { target: "/tmp".into(), source, subpath: "".into(), readonly: false });
    });
    let out = step.sh("for d in / /etc /bin; do touch $d/x 2>&1; done; touch /tmp/x /dev/shm/x && echo written").ok();
    assert_eq!(out.matches("Read-only file system").count(), 3, "{out}");
    assert!(out.ends_with("written\n"), "{out}");
    assert_eq!(step.changes(), [""; 0]);
    soon_empty("mounts", || crate::support::mounts_with(step.dir.path().to_str().unwrap()));
}
