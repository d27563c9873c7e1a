//! What `kiln run` understands, as rows of command lines.

use super::super::args::{self, Command};
use super::*;

fn parsed(line: &str) -> Result<RunArgs, String> {
    let words = ["kiln", "run"].into_iter().chain(line.split_whitespace()).map(OsString::from);
    match args::parse(words).map(|arguments| arguments.command) {
        Ok(Command::Run(args)) => Ok(*args),
        Ok(other) => Err(format!("{other:?}")),
        Err(error) => Err(error.to_string()),
    }
}

fn launched(line: &str) -> Result<Launch, String> {
    let environment = Environment::given(&[("HERE", "there")]);
    launch(&parsed(line)?, &environment).map_err(|failure| failure.to_string())
}

#[test]
fn what_is_meant() {
    type Row = (&'static str, fn(&Launch) -> bool);
    let rows: &[Row] = &[
        ("busybox", |l| l.image == "busybox" && l.changes.command.is_empty() && l.streams == Streams::Inherited { input: false }),
        ("-i busybox", |l| l.streams == Streams::Inherited { input: true }),
        ("-it busybox", |l| l.streams == Streams::Terminal { input: true }),
        ("-t --rm busybox", |l| l.streams == Streams::Terminal { input: false }),
        // Everything behind the image is the command's.
        ("busybox ls -l --rm=true -e X -- -t", |l| l.changes.command == ["ls", "-l", "--rm=true", "-e", "X", "--", "-t"]),
        ("busybox -c", |l| l.changes.command == ["-c"]),
        ("-- busybox --root x", |l| l.image == "busybox" && l.changes.command == ["--root", "x"]),
        ("-e A=1 --env B= -e HERE -e NOWHERE busybox", |l| {
            let env: Vec<_> =
                l.changes.env.iter().map(|(n, v)| (n.to_str().unwrap(), v.as_deref().map(|v| v.to_str().unwrap()))).collect();
            env == [("A", Some("1")), ("B", Some("")), ("HERE", Some("there")), ("NOWHERE", None)]
        }),
        ("-w /srv -u 1:2 --entrypoint /x busybox", |l| {
            l.changes.cwd.as_deref() == Some(Path::new("/srv"))
                && l.changes.user.as_deref() == Some("1:2")
                && l.changes.entrypoint == Some(vec!["/x".into()])
        }),
        ("--entrypoint= busybox", |l| l.changes.entrypoint == Some(vec![])),
        ("--name abc busybox", |l| l.world.hostname == "abc"),
        ("--name abc -h def busybox", |l| l.world.hostname == "def"),
        ("--network none --read-only -m 64m --pids-limit 9 busybox", |l| {
            l.world.network == Network::None && l.world.readonly && l.world.group.memory == Some(64 << 20)
        }),
        ("-v /etc:/x:ro -v /etc:/y --tmpfs /t:size=1m --mount type=bind,src=/etc,dst=/z,readonly busybox", |l| {
            let shown = |m: &Mount| format!("{} {:?} {}", m.target.display(), m.source, m.readonly);
            l.world.mounts.iter().map(shown).collect::<Vec<_>>()
                == [
                    "/x Bind { path: \"/etc\" } true",
                    "/y Bind { path: \"/etc\" } false",
                    "/z Bind { path: \"/etc\" } true",
                    "/t Tmpfs { size: Some(1048576) } false",
                ]
        }),
        ("--mount type=tmpfs,target=/t,tmpfs-size=2k busybox", |l| {
            l.world.mounts[0].source == MountSource::Tmpfs { size: Some(2048) }
        }),
        ("--pull never --platform linux/arm64 busybox", |l| l.pull == Pull::Never && l.platform.is_some()),
        ("--add-host db:10.0.0.5 busybox", |l| l.world.extra_hosts == [("db".to_owned(), "10.0.0.5".to_owned())]),
    ];
    for (line, holds) in rows {
        let launch = launched(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        assert!(holds(&launch), "{line}: {launch:?}");
    }
}

#[test]
fn refused() {
    let rows = [
        ("", "required"),
        ("-d busybox", "unexpected argument"),
        ("--privileged busybox", "unexpected argument"),
        ("-w srv busybox", "absolute path"),
        ("-e =x busybox", "invalid environment variable"),
        ("-v data:/x busybox", "no named volumes"),
        ("-v /etc busybox", "it has no source"),
        ("-v /etc:/x:rx busybox", "no option `rx`"),
        ("-v /no/such/folder:/x busybox", "cannot read the source of a mount /no/such/folder"),
        ("-v /etc:x busybox", "absolute path"),
        ("--mount type=volume,target=/x busybox", "`bind` or `tmpfs`"),
        ("--mount type=bind,target=/x busybox", "no source"),
        ("--mount type=bind,source=/etc busybox", "no target"),
        ("--mount type=tmpfs,target=/x,source=/etc busybox", "doesn't fit"),
        ("--mount type=bind,nope=1,target=/x busybox", "no field `nope`"),
        ("--tmpfs /x:mode=7 busybox", "invalid --tmpfs"),
        ("--network overlay busybox", "network mode `overlay`"),
        ("--pull sometimes busybox", "missing, always, never"),
        ("--add-host x busybox", "invalid --add-host"),
        ("-m 4k busybox", "512k"),
    ];
    for (line, expected) in rows {
        let got = launched(line).expect_err(line);
        assert!(got.contains(expected), "{line}: {got}");
    }
}

#[test]
fn stop_signals() {
    for (text, expected) in [("SIGQUIT", 3), ("quit", 3), ("SIGTERM", 15), ("10", 10), ("SIGWINCH", 28)] {
        assert_eq!(signal_number(text), Some(expected), "{text}");
    }
    for text in ["", "SIGNOPE", "0", "64", "SIGRTMIN+3"] {
        assert_eq!(signal_number(text), None, "{text}");
    }
}

#[test]
fn names_are_held_by_one() {
    let name = format!("test-{}", std::process::id());
    let held = claim(&name).unwrap();
    assert!(claim(&name).unwrap_err().to_string().contains("in use"));
    drop(held);
    drop(claim(&name).unwrap());
    for name in ["", "a", "-a", "a b", "a/b"] {
        assert!(claim(name).is_err(), "{name}");
    }
}
