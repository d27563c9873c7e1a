//! `kiln run`: what the command sees, how it ends, terminals, and that nothing of it stays.

use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::home::Home;
use crate::support::{leftovers, skip, terminal};

/// Usage errors and failures of kiln's own.
const OWN: i32 = 125;

fn home() -> Home {
    let home = Home::new();
    home.build("box", "FROM busybox\nENV A=image B=image\nWORKDIR /srv\nCMD [\"echo\", \"usual\"]\n").ok();
    home
}

#[test]
fn exit_codes() {
    let home = home();
    let rows: &[(&[&str], i32)] = &[
        (&["box"], 0),
        (&["box", "true"], 0),
        (&["box", "sh", "-c", "exit 7"], 7),
        (&["box", "sh", "-c", "exit 255"], 255),
        (&["box", "sh", "-c", "kill -TERM $$; kill -9 1; exit 3"], 3),
        (&["box", "sh", "-c", "sh -c 'kill -9 $$'; exit $?"], 137),
        (&["box", "nosuch"], 127),
        (&["box", "/no/such"], 127),
        (&["box", "/etc"], 126),
        (&["box", "/etc/passwd"], 126),
        (&["-t", "box", "sh", "-c", "exit 9"], 9),
        (&["-t", "box", "nosuch"], 127),
        (&["--no-such-flag", "box"], OWN),
        (&["-it", "box"], OWN),
        (&["-v", "/no/such:/x", "box"], OWN),
        (&["-w", "/etc/passwd", "box"], OWN),
        (&["-u", "nobody-knows", "box"], OWN),
        (&["--pull", "never", "no/such/image"], OWN),
        (&["registry.invalid/no/such"], OWN),
        (&[], OWN),
    ];
    for (args, code) in rows {
        home.run(["run"].iter().chain(*args)).fails(*code);
    }
    home.run(["run", "box", "nosuch"]).fails(127).says(&["exec: \"nosuch\": executable file not found in $PATH"]);
    home.run(["run", "-it", "box"]).fails(OWN).says(&["the input device is not a terminal"]);
    home.left_nothing();
}

/// What of the image's configuration and of the flags a command sees.
#[test]
fn the_world_of_a_command() {
    let home = home();
    home.write("shown/file", "from outside\n");
    home.write("env", "# a comment\nE=file\n  A=file\n\nNOT_SET_ANYWHERE\n");
    let rows: &[(&[&str], &str)] = &[
        (&["box"], "usual\n"),
        (&["box", "pwd"], "/srv\n"),
        (&["-w", "/etc/new", "box", "pwd"], "/etc/new\n"),
        (&["box", "sh", "-c", "echo $A $B $HOSTNAME $HOME [$TERM]"], "image image kiln /root []\n"),
        (
            &["-e", "A=flag", "-e", "C=more", "--hostname", "h", "box", "sh", "-c", "echo $A $B $C $(hostname)"],
            "flag image more h\n",
        ),
        (&["--env-file", "env", "-e", "B=", "box", "sh", "-c", "echo $A [$B] $E"], "file [] file\n"),
        (&["-u", "1234:5", "box", "sh", "-c", "id -u; id -g"], "1234\n5\n"),
        (&["--entrypoint", "/bin/echo", "box", "x", "-t", "--rm=false"], "x -t --rm=false\n"),
        (&["--name", "nn", "box", "hostname"], "nn\n"),
        (&["--add-host", "db:10.9.8.7", "box", "grep", "db", "/etc/hosts"], "10.9.8.7\tdb\n"),
        (&["--network", "none", "box", "sh", "-c", "ls /sys/class/net"], "lo\n"),
        (&["-v", "./shown:/in", "box", "cat", "/in/file"], "from outside\n"),
        (&["-v", "./shown:/in:ro", "box", "sh", "-c", "touch /in/x 2>&1 | grep -o Read-only"], "Read-only\n"),
        (&["--mount", "type=bind,src=shown/file,dst=/deep/down,ro", "box", "cat", "/deep/down"], "from outside\n"),
        (&["--tmpfs", "/t:size=1m", "box", "sh", "-c", "df -k /t | tail -1 | tr -s ' ' | cut -d' ' -f2"], "1024\n"),
        (
            &["--read-only", "box", "sh", "-c", "touch /x 2>&1 | grep -o Read-only; touch /dev/shm/x && echo yes"],
            "Read-only\nyes\n",
        ),
        (&["--shm-size", "1m", "box", "sh", "-c", "df -k /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2"], "1024\n"),
        (&["--ulimit", "nofile=99:99", "box", "sh", "-c", "ulimit -n"], "99\n"),
        (&["box", "sh", "-c", "cat; tty; echo $?"], "not a tty\n1\n"),
        (&["-t", "box", "sh", "-c", "tty; echo $TERM"], "/dev/pts/0\r\nxterm\r\n"),
    ];
    for (args, expected) in rows {
        assert_eq!(home.run(["run", "--rm"].iter().chain(*args)).ok().stdout, *expected, "{args:?}");
    }
    // kiln does without huge pages, but its commands have what its caller has.
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let own: String = own.split_inclusive('\n').filter(|line| line.starts_with("THP_enabled")).collect();
    let command = "grep THP_enabled /proc/self/status || true";
    assert_eq!(home.run(["run", "--rm", "box", "sh", "-c", command]).ok().stdout, own);
    home.run(["run", "-v", "./shown:/in", "box", "sh", "-c", "echo written > /in/new"]).ok();
    assert_eq!(std::fs::read_to_string(home.path("shown/new")).unwrap(), "written\n");
}

/// Streams are handed on as they are: bytes, ends and errors.
#[test]
fn streams() {
    let home = home();
    let outcome = home.run(["run", "box", "sh", "-c", "echo out; echo err >&2"]).ok();
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("out\n", "err\n"), "nothing else is said");
    assert_eq!(home.run_with_input(["run", "box", "cat"], "unwanted").ok().stdout, "", "standard input is not passed on unasked");
    let mut child = home.command();
    child
        .args(["run", "-i", "box", "sh", "-c", "sort -n | tail -n 1; echo end >&2"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = child.stderr(Stdio::piped()).spawn().unwrap();
    let numbers: String = (0..200_000).map(|n| format!("{n}\n")).collect();
    child.stdin.take().unwrap().write_all(numbers.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"199999\n"[..], &b"end\n"[..]));
    // Into a file that is kiln's own standard output, which keeps its owner.
    let file = home.write("out", "");
    let status =
        home.command().args(["run", "-u", "12", "box", "seq", "50000"]).stdout(std::fs::File::create(&file).unwrap()).status();
    assert!(status.unwrap().success());
    assert_eq!(std::fs::read_to_string(&file).unwrap().lines().count(), 50_000);
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(&file).unwrap()), 0);
}

/// An image by its id, one that is only in a registry, and one of which no layer is unpacked.
#[test]
fn images_by_id_and_from_a_registry() {
    let home = Home::new();
    let outcome = home.run(["run", "busybox", "echo", "fetched"]).ok();
    assert_eq!(outcome.stdout, "fetched\n");
    assert!(outcome.stderr.contains("load layers of busybox"), "{}", outcome.stderr);
    assert_eq!(home.run(["run", "busybox", "true"]).ok().stdout, "");
    home.build("named", "FROM busybox\nRUN echo content > /made\n").ok();
    let id = home.run(["images", "-q", "named"]).ok().stdout.trim().to_owned();
    let outcome = home.run(["run", &id, "cat", "/made"]).ok();
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("content\n", ""));
    home.run(["pull", "busybox"]).ok();
    assert_eq!(home.run(["run", "--pull", "never", "busybox", "echo", "here"]).ok().stdout, "here\n");
}

/// What the command changes is gone, and an image stays as it was.
#[test]
fn nothing_is_kept() {
    let home = home();
    let before = home.run(["images", "-q", "--no-trunc"]).ok().stdout;
    home.run(["run", "box", "sh", "-c", "rm -rf /srv /etc; head -c 20000000 /dev/zero > /big"]).ok();
    assert_eq!(home.run(["run", "box", "sh", "-c", "ls /big; ls /etc/passwd"]).stdout, "/etc/passwd\n");
    assert_eq!(home.run(["images", "-q", "--no-trunc"]).ok().stdout, before);
    let used = leftovers_in(&home);
    assert!(used < 20_000_000, "{used} bytes");
    home.left_nothing();
}

fn leftovers_in(home: &Home) -> u64 {
    let output = std::process::Command::new("du").arg("-sb").arg(home.store()).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().parse().unwrap()
}

fn start(home: &Home, args: &[&str]) -> Child {
    let mut command = home.command();
    command.arg("run").args(args).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    // By single bytes, so that nothing of what follows is swallowed.
    while !line.ends_with('\n') {
        let mut byte = [0];
        child.stdout.as_mut().unwrap().read_exact(&mut byte).unwrap();
        line.push(char::from(byte[0]));
    }
    assert_eq!(line, "ready\n");
    child
}

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_raw(child.id() as i32).unwrap(), signal).unwrap();
}

#[test]
fn signals_are_passed_on() {
    let home = home();
    home.build("quits", "FROM busybox\nSTOPSIGNAL SIGQUIT\n").ok();
    let handler = |name: &str, code: i32| format!("trap 'exit {code}' {name}; echo ready; while :; do sleep 0.1; done");
    // A shell catches SIGINT and forgets it when it executes another program, so this one is ready some time after that.
    let sleeps = || "(sleep 0.5; echo ready) & exec sleep 100".to_owned();
    let rows = [
        ("box", sleeps(), Signal::TERM, 143),
        ("box", sleeps(), Signal::INT, 130),
        ("box", sleeps(), Signal::HUP, 129),
        ("box", sleeps(), Signal::QUIT, 131),
        ("box", handler("TERM", 3), Signal::TERM, 3),
        ("box", handler("INT", 4), Signal::INT, 4),
        ("box", handler("USR1", 5), Signal::USR1, 5),
        ("quits", handler("QUIT", 6), Signal::TERM, 6),
    ];
    for (image, script, signal, code) in rows {
        let mut child = start(&home, &[image, "sh", "-c", &script]);
        send(&child, signal);
        assert_eq!(child.wait().unwrap().code(), Some(code), "{image}: {script}");
    }
    // Who doesn't listen is killed the third time.
    let mut deaf = start(&home, &["box", "sh", "-c", "trap '' TERM INT; echo ready; while :; do sleep 0.1; done"]);
    for _ in 0..3 {
        send(&deaf, Signal::TERM);
        std::thread::sleep(Duration::from_millis(300));
    }
    assert_eq!(deaf.wait().unwrap().code(), Some(137));
    home.left_nothing();
}

#[test]
fn a_stopped_run_stands_still() {
    let home = home();
    let mut child = start(&home, &["box", "sh", "-c", "echo ready; (while :; do echo tick; sleep 0.05; done) & wait"]);
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    send(&child, Signal::TSTP);
    let state = || std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
    let begin = Instant::now();
    while !state().contains(") T ") {
        assert!(begin.elapsed() < Duration::from_secs(5), "{}", state());
        std::thread::sleep(Duration::from_millis(20));
    }
    let sleeping = leftovers::processes("echo tick");
    assert!(!sleeping.is_empty());
    for process in sleeping {
        let pid = process.split(' ').next().unwrap();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(status.contains("State:\tT (stopped)"), "{status}");
    }
    send(&child, Signal::CONT);
    for _ in 0..50 {
        line.clear();
        lines.read_line(&mut line).unwrap();
        assert_eq!(line, "tick\n");
    }
    send(&child, Signal::TERM);
    assert_eq!(child.wait().unwrap().code(), Some(143));
}

#[test]
fn killed_runs_leave_nothing() {
    let home = home();
    for script in ["echo ready; exec sleep 4711", "setsid sleep 4711 & trap '' TERM; echo ready; while :; do sleep 4711; done"] {
        let mut child = start(&home, &["--name", "killed", "box", "sh", "-c", script]);
        send(&child, Signal::KILL);
        child.wait().unwrap();
        let begin = Instant::now();
        while !leftovers::processes("4711").is_empty() {
            assert!(begin.elapsed() < Duration::from_secs(2), "{script}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    home.run(["run", "--name", "killed", "box", "true"]).ok();
    home.left_nothing();
}

#[test]
fn one_name_is_for_one_run() {
    let home = home();
    let name = format!("only-{}", std::process::id());
    let mut first = start(&home, &["--name", &name, "box", "sh", "-c", "echo ready; exec sleep 100"]);
    home.run(["run", "--name", &name, "box", "true"]).fails(OWN).says(&["is in use"]);
    home.run(["run", "--name", "another", "box", "true"]).ok();
    send(&first, Signal::TERM);
    first.wait().unwrap();
    home.run(["run", "--name", &name, "box", "true"]).ok();
}

/// A person in front of a terminal: keys, sizes, job control in the sandbox.
#[test]
fn a_terminal() {
    let home = home();
    let shown = terminal::with(
        &home,
        &["run", "-it", "box", "sh"],
        r"
expect /srv #
settings raw
type stty size\r
expect 24 80
resize 50 132
type sleep 0.3; stty size\r
expect 50 132
type sh -c 'a=st; echo ${a}arted; exec sleep 1000'\r
expect started
type \x03
expect /srv #
type tty; echo $((6*7))\r
expect /dev/pts/0
expect 42
expect /srv #
type echo last; exit 5\r
expect last
end 5
settings cooked
",
    );
    assert!(!shown.contains("Running"), "nothing but the command is shown: {shown}");
    home.left_nothing();
}

/// However it ends, the terminal is as it was.
#[test]
fn a_terminal_is_given_back() {
    let home = home();
    for (signal, code) in [("SIGTERM", 143), ("SIGHUP", 129), ("SIGKILL", -9)] {
        let steps = format!("settings cooked\nexpect ready\nsettings raw\nsignal {signal}\nend {code}\nsettings cooked\n");
        terminal::with(&home, &["run", "-it", "box", "sh", "-c", "echo ready; exec sleep 100"], &steps);
    }
    let steps = "expect ready\nsettings raw\nsignal SIGTSTP\nstopped\nsettings cooked\nsignal SIGCONT\nsettings raw\ntype \\x03\nend 0\nsettings cooked\n";
    terminal::with(
        &home,
        &["run", "-it", "box", "sh", "-c", "trap 'exit 0' INT; echo ready; while :; do sleep 0.1; done"],
        steps,
    );
    // Without `-t` the command never sees the terminal, in whose place are pipes, and what is typed comes line by line.
    let steps = "expect ready\nsettings cooked\ntype one\\rtwo\\r\nexpect got two\ntype \\x04\nexpect not a tty\nexpect not a tty\nend 4\n";
    let script =
        "echo ready; while read l; do echo got $l; done; tty; tty <&1; ls -l /proc/self/fd | grep -c pts && exit 1; exit 4";
    terminal::with(&home, &["run", "-i", "box", "sh", "-c", script], steps);
    home.left_nothing();
}

/// Servers of this machine's own: one on its loopback, and one that answers for names there, if that address is free.
struct Servers {
    port: u16,
    names: bool,
}

impl Servers {
    fn start() -> Servers {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = (&stream).write_all(b"here\n");
            }
        });
        let names = std::net::UdpSocket::bind("127.0.0.53:53").map(|socket| {
            std::thread::spawn(move || {
                let mut question = [0; 512];
                while let Ok((length, from)) = socket.recv_from(&mut question) {
                    let end = question[12..length].iter().position(|byte| *byte == 0).map_or(length, |at| 12 + at + 5);
                    // One answer, 10.1.2.3, to any question, of which it repeats the name.
                    let mut answer = [&question[..2], b"\x81\x80\0\x01\0\x01\0\0\0\0", &question[12..end]].concat();
                    answer.extend_from_slice(b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\x0a\x01\x02\x03");
                    let _ = socket.send_to(&answer, from);
                }
            });
        });
        Servers { port, names: names.is_ok() }
    }
}

/// A private network reaches neither this machine's loopback nor its addresses' names, unless `host-gateway` asks for that.
#[test]
fn private_networks() {
    if !skip::needs("run::private_networks", "pasta") {
        return;
    }
    let home = home();
    let port = Servers::start().port;
    // One line of each: an old pasta sends what it got twice now and then.
    let ask = format!(
        "for h in 127.0.0.1 10.0.2.2 gate; do timeout 2 nc -w 1 $h {port} < /dev/null | head -n 1 | sed \"s/^/$h /\"; done 2>/dev/null; true"
    );
    let rows: &[(&[&str], &str)] = &[
        (&["--network=host", "--add-host=gate:host-gateway"], "127.0.0.1 here\ngate here\n"),
        (&["--network=private"], ""),
        (&["--network=private", "--add-host=gate:host-gateway"], "10.0.2.2 here\ngate here\n"),
        (&["--network=none", "--add-host=gate:host-gateway"], ""),
    ];
    for (flags, expected) in rows {
        let outcome = home.run(["run"].iter().chain(*flags).chain(&["box", "sh", "-c", &ask])).ok();
        assert_eq!(outcome.stdout, *expected, "{flags:?}\n{}", outcome.stderr);
        let dockerfile = format!("FROM busybox\nRUN {ask}\n");
        home.context("c", &dockerfile);
        let outcome = home.run(["build", "--no-cache", "--progress=plain"].iter().chain(*flags).chain(&["c"])).ok();
        let answers = outcome.stderr.lines().filter(|line| line.ends_with(" here")).count();
        assert_eq!(answers, expected.lines().count(), "{flags:?}\n{}", outcome.stderr);
    }
    let script = "ls /sys/class/net | wc -l; ip -4 -o addr | tr -s ' ' | cut -d' ' -f4; grep -c Seccomp /proc/self/status";
    let shown = home.run(["run", "--network=private", "box", "sh", "-c", script]).ok().stdout;
    assert_eq!(shown, "2\n127.0.0.1/8\n10.0.2.100/24\n2\n");
    // A port that the command listens on is not one of this machine's.
    let mut child = start(&home, &["--network=private", "box", "sh", "-c", "(sleep 0.3; echo ready) & nc -l -p 45997"]);
    assert!(std::net::TcpStream::connect("127.0.0.1:45997").is_err());
    send(&child, Signal::KILL);
    child.wait().unwrap();
    home.context("host", "FROM busybox\nRUN --network=host true\n");
    home.run(["build", "--network=private", "host"]).fails(3).says(&["RUN --network=host is not allowed"]);
    home.context("none", "FROM busybox\nRUN --network=none ls /sys/class/net | wc -l\n");
    home.run(["build", "--network=private", "--progress=plain", "none"]).ok().says(&[" 1\n"]);
    home.left_nothing();
    assert_eq!(leftovers::processes("10.0.2.100"), [""; 0], "the way out ends with the run");
}

/// Where this machine's resolver is on its loopback, names are resolved from a private network all the same.
#[test]
fn names_in_private_networks() {
    const TEST: &str = "run::names_in_private_networks";
    if !skip::needs(TEST, "pasta") || !skip::needs(TEST, "unshare") {
        return;
    }
    if !Servers::start().names {
        return skip::skipped(TEST, "127.0.0.53:53 is taken");
    }
    let home = home();
    home.write("resolv.conf", "nameserver 127.0.0.53\n");
    let kiln = home.command();
    // With a resolver of the test's own in the place of this machine's, seen by nobody else.
    let script = "mount --bind resolv.conf /etc/resolv.conf && exec \"$@\"";
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(kiln.get_program());
    command.args(["run", "--network=private", "box", "sh", "-c"]);
    command.arg("cat /etc/resolv.conf; nslookup -type=a some.name | grep -A1 some.name | tail -n 1");
    for (name, value) in kiln.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let output = command.current_dir(home.path("")).output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    if std::path::Path::new("/run/systemd/resolve/resolv.conf").exists() {
        return skip::skipped(TEST, "systemd-resolved tells its servers");
    }
    assert_eq!(shown, "nameserver 10.0.2.3\nAddress: 10.1.2.3\n", "{}", String::from_utf8_lossy(&output.stderr));
}
