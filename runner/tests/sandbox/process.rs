//! The command as a process.

use kiln_runner::{RunError, Status, Stream};

use crate::support::{Step, host};

pub fn exit_codes() {
    for code in [0, 1, 2, 126, 127, 255] {
        let ran = Step::new().sh(&format!("exit {code}"));
        assert!(matches!(ran.result, Ok(Status::Exited(seen)) if seen == code), "{code}: {ran:?}");
    }
}

pub fn signals() {
    // A pid namespace's first process can't signal itself, so that a child stands for what ends by one.
    let ran = Step::new().sh("sh -c 'kill -SEGV $$'; exit $?");
    assert!(matches!(ran.result, Ok(Status::Exited(139))), "{ran:?}");
    let seen = std::sync::Mutex::new(None);
    let step = Step::new().with(|spec| spec.args = ["sleep", "77.125"].map(Into::into).into());
    std::thread::scope(|scope| {
        scope.spawn(|| *seen.lock().unwrap() = Some(step.run(&kiln_runner::Cancel::new().unwrap())));
        let begin = std::time::Instant::now();
        let pid = loop {
            if let Some(process) = crate::support::processes_with("sleep 77.125").first() {
                break process.split(' ').next().unwrap().parse().unwrap();
            }
            assert!(begin.elapsed().as_secs() < 5);
            std::thread::sleep(std::time::Duration::from_millis(5));
        };
        rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL).unwrap();
    });
    let ran = seen.into_inner().unwrap().unwrap();
    assert!(matches!(ran.result, Ok(Status::Signaled(9))), "{ran:?}");
}

pub fn streams() {
    let mut pieces = Vec::new();
    let mut step = Step::new();
    step.spec.args = ["sh", "-c", "echo one; sleep 0.2; echo two >&2; sleep 0.2; echo three"].map(Into::into).into();
    let begin = std::time::Instant::now();
    let ran = step.run_on(host(), &kiln_runner::Cancel::new().unwrap(), &mut |stream, text| {
        pieces.push((stream, text.to_owned(), begin.elapsed().as_millis()));
    });
    assert_eq!((ran.out.as_str(), ran.err.as_str()), ("one\nthree\n", "two\n"));
    let order: Vec<_> = pieces.iter().map(|(stream, text, _)| (*stream, text.as_str())).collect();
    assert_eq!(order, [(Stream::Stdout, "one\n"), (Stream::Stderr, "two\n"), (Stream::Stdout, "three\n")]);
    assert!(pieces[2].2 - pieces[0].2 > 300, "output comes as it is written: {pieces:?}");
    // What a user other than root may do with them.
    let out = Step::new().with(|spec| spec.user = "bob".into()).sh("echo a > /dev/stdout; echo b > /proc/self/fd/1").ok();
    assert_eq!(out, "a\nb\n");
}

pub fn large_output() {
    let ran = Step::new().sh("head -c 5000000 /dev/zero | tr '\\0' x; head -c 300000 /dev/zero | tr '\\0' y >&2");
    assert_eq!((ran.out.len(), ran.err.len()), (5_000_000, 300_000));
}

pub fn environment_is_exact() {
    // Of kiln's own environment (C24) not a variable is seen.
    let mut step = Step::new();
    step.spec.env = [("PATH", "/bin"), ("B", "2=3"), ("A", ""), ("HOME", "/h")].map(|(k, v)| (k.into(), v.into())).into();
    assert_eq!(step.args(&["env"]).ok(), "PATH=/bin\nB=2=3\nA=\nHOME=/h\n");
    let own = step.sh("cat /proc/1/environ | tr '\\0' '\\n'").ok();
    assert_eq!(own, "PATH=/bin\nB=2=3\nA=\nHOME=/h\n");
}

pub fn home() {
    let rows: &[(&str, Option<&str>, &str)] = &[
        ("", None, "/root"),
        ("bob", None, "/home/bob"),
        ("4242", None, "/"),
        ("bob", Some(""), "/home/bob"),
        ("bob", Some("/x"), "/x"),
    ];
    for (user, home, expected) in rows {
        let mut step = Step::new().with(|spec| spec.user = (*user).into());
        step.spec.env.extend(home.map(|home| ("HOME".into(), home.into())));
        assert_eq!(step.sh("echo $HOME").ok(), format!("{expected}\n"), "USER {user:?}, HOME {home:?}");
    }
}

/// C01: three descriptors, and nothing of kiln's.
pub fn descriptors() {
    // Descriptors that this process has open must not be inherited either, whether they are marked or not.
    let leak = rustix::fs::open("/etc/passwd", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty()).unwrap();
    let out = Step::new().args(&["ls", "-l", "/proc/self/fd"]).ok();
    drop(leak);
    let links: Vec<&str> = out.lines().filter_map(|line| line.split_once(" -> ")).map(|(_, to)| to).collect();
    // The fourth is the directory that ls had open.
    assert_eq!((out.lines().count(), links.len()), (5, 3), "{out}");
    assert_eq!(links[0], "/dev/null");
    assert!(links[1].starts_with("pipe:") && links[2].starts_with("pipe:"), "{out}");
}

pub fn first_process() {
    let out = Step::new().sh("echo $$; cat /proc/1/comm; ps -o comm | sort | uniq | tr '\\n' ' '; true").ok();
    let (own, others) = out.split_at("1\nsh\n".len());
    assert_eq!(own, "1\nsh\n");
    // busybox starts its applets by executing itself, and is called `exe` until it has.
    assert!(
        others.split_whitespace().all(|name| ["COMMAND", "exe", "ps", "sh", "sort", "tr", "uniq"].contains(&name)),
        "{others}"
    );
}

pub fn session_and_umask() {
    let out = Step::new().sh("umask; cut -d' ' -f5,6,7 /proc/self/stat").ok();
    assert_eq!(out, "0022\n1 1 0\n", "process group and session are its own, there is no terminal");
    let out = Step::new().args(&["grep", "-E", "SigBlk|SigIgn|SigCgt", "/proc/self/status"]).ok();
    let none = "0000000000000000";
    assert_eq!(out, format!("SigBlk:\t{none}\nSigIgn:\t{none}\nSigCgt:\t{none}\n"));
}

pub fn no_controlling_terminal() {
    let ran = Step::new().sh("read line; echo got=$line; echo x > /dev/tty");
    assert_eq!(ran.out, "got=\n");
    assert!(ran.err.contains("No such device or address"), "{ran:?}");
}

pub fn limits_that_are_asked_for() {
    use kiln_runner::{Limit, Resource};
    let mut step = Step::new().with(|spec| {
        spec.limits = vec![
            Limit { resource: Resource::Nofile, soft: Some(100), hard: Some(200) },
            Limit { resource: Resource::Core, soft: None, hard: None },
            Limit { resource: Resource::Nofile, soft: Some(300), hard: Some(400) },
        ];
    });
    assert_eq!(step.sh("ulimit -Sn; ulimit -Hn; ulimit -c").ok(), "300\n400\nunlimited\n");
    assert_eq!(step.with(|spec| spec.user = "bob".into()).sh("ulimit -Hn").ok(), "400\n");
}

pub fn limits() {
    let out = Step::new().sh("ulimit -Sn; ulimit -c; ulimit -Hn").ok();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(&lines[..2], ["1024", "0"]);
    let caller = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX);
    assert_eq!(lines[2].parse::<u64>().unwrap(), caller.min(1_048_576));
}

pub fn program_lookup() {
    let rows: &[(&str, &str, &str)] = &[
        ("nosuch", "/bin", "exec: \"nosuch\": executable file not found in $PATH"),
        ("/no/such", "/bin", "exec: \"/no/such\": no such file or directory"),
        ("ls", "", "exec: \"ls\": executable file not found in $PATH"),
        ("passwd-file", "/sbin::.:/opt", "exec: \"passwd-file\": executable file not found in $PATH"),
        ("/etc/passwd", "/bin", "exec: \"/etc/passwd\": Permission denied (os error 13)"),
        ("/etc", "/bin", "exec: \"/etc\": Permission denied (os error 13)"),
        ("/broken", "/bin", "exec: \"/broken\": No such file or directory (os error 2)"),
        ("/garbage", "/bin", "exec: \"/garbage\": Exec format error (os error 8)"),
    ];
    for (program, path, expected) in rows {
        let mut step = Step::new().with(|spec| spec.env = vec![("PATH".into(), (*path).into())]);
        for (name, content) in [("broken", "#!/no/interpreter\n"), ("garbage", "\x01\x02\x03"), ("passwd-file", "#!/bin/sh\n")] {
            let file = step.upper().join(name);
            std::fs::write(&file, content).unwrap();
            std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        }
        assert_eq!(step.args(&[program]).error(), *expected);
    }
    assert_eq!(Step::new().with(|spec| spec.env = vec![("PATH".into(), "/none:/bin".into())]).args(&["echo", "x"]).ok(), "x\n");
}

pub fn scripts() {
    let mut step = Step::new();
    let file = step.upper().join("script");
    std::fs::write(&file, "#!/bin/sh\necho \"$0 $1\"\n").unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    assert_eq!(step.args(&["/script", "one"]).ok(), "/script one\n");
}

/// What is wrong, how to make it so, and what is said.
type Row = (&'static str, fn(&mut kiln_runner::RunSpec), &'static str);

pub fn invalid_requests() {
    let rows: &[Row] = &[
        ("no command", |spec| spec.args.clear(), "there is no command to run"),
        ("relative cwd", |spec| spec.cwd = "x".into(), "the working directory `x` is not an absolute path"),
        ("variable name", |spec| spec.env.push(("A=B".into(), "".into())), "`A=B` can't be the name of an environment variable"),
        ("zero byte", |spec| spec.args = vec!["a\0b".into()], "a zero byte can't be in an argument or an environment variable"),
        ("host name", |spec| spec.hostname = "a b".into(), "`a b` can't be a host name"),
        (
            "extra host",
            |spec| spec.extra_hosts.push(("a\nb".into(), "1.2.3.4".into())),
            "`a\\nb:1.2.3.4` can't be a line of /etc/hosts",
        ),
    ];
    for (what, change, expected) in rows {
        let step = Step::new().with(|spec| spec.args = vec!["true".into()]).with(change);
        let ran = step.run(&kiln_runner::Cancel::new().unwrap());
        assert!(matches!(ran.result, Err(RunError::Invalid { .. })), "{what}: {ran:?}");
        assert_eq!(ran.error(), *expected, "{what}");
    }
}
