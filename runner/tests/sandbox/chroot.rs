//! Runs where nothing can be mounted: the root directory is as it was afterwards, and no process is left.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use kiln_runner::{Cancel, Ground, Host, Isolation, Mount, MountSource, Network, RootFs, RunError, RunSpec, Status, Wish};
use tempfile::TempDir;

use crate::support::{fill_base, processes_with, soon_empty};

/// Makes the test program a process that only runs one step: `PARENT DIR COMMAND…`.
pub const PARENT: &str = "--be-the-parent-of-a-chroot";

fn host() -> &'static Host {
    static HOST: OnceLock<Host> = OnceLock::new();
    HOST.get_or_init(|| {
        let entered = kiln_runner::enter(&Wish { isolation: Isolation::Chroot, ..Wish::default() }).unwrap();
        Host::probe(&entered, &Ground::probe(&entered, &std::env::temp_dir()))
    })
}

/// A root directory, a place aside, a cache and a copied folder.
struct Root {
    dir: TempDir,
}

impl Root {
    fn new() -> Root {
        let root = Root { dir: tempfile::Builder::new().prefix("kiln-chroot-").tempdir().unwrap() };
        for name in ["tree", "aside", "cache", "copy/below"] {
            std::fs::create_dir_all(root.path(name)).unwrap();
        }
        fill_base(&root.path("tree"));
        std::fs::write(root.path("tree/etc/hosts"), "the image's\n").unwrap();
        std::os::unix::fs::symlink("../run/none/resolv.conf", root.path("tree/etc/resolv.conf")).unwrap();
        std::fs::write(root.path("cache/old"), "o\n").unwrap();
        std::fs::write(root.path("copy/below/f"), "f\n").unwrap();
        root
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, script: &str) -> (Result<Status, RunError>, String) {
        let mut out = Vec::new();
        let result =
            kiln_runner::run(&spec(self.dir.path(), &["sh", "-c", script]), host(), &Cancel::new().unwrap(), &mut |_, bytes| {
                out.extend_from_slice(bytes);
            });
        (result.map(|outcome| outcome.status), String::from_utf8_lossy(&out).into_owned())
    }

    /// All that a layer would hold of the tree.
    fn told(&self) -> BTreeMap<PathBuf, String> {
        let mut told = BTreeMap::new();
        tell(&self.path("tree"), Path::new(""), &mut told);
        told
    }
}

fn differences(after: &BTreeMap<PathBuf, String>, before: &BTreeMap<PathBuf, String>) -> Vec<String> {
    let only = |sign: char, one: &BTreeMap<PathBuf, String>, other: &BTreeMap<PathBuf, String>| -> Vec<String> {
        let other = |path: &PathBuf| other.get(path).cloned();
        one.iter()
            .filter(|(path, line)| other(path).as_ref() != Some(line))
            .map(|(path, line)| format!("{sign} {} {line}", path.display()))
            .collect()
    };
    [only('-', before, after), only('+', after, before)].concat()
}

fn spec(dir: &Path, args: &[&str]) -> RunSpec {
    let mut spec = RunSpec::new(RootFs::Dir(dir.join("tree")), args.iter().map(OsString::from).collect());
    spec.aside = Some(dir.join("aside"));
    spec.env = vec![("PATH".into(), "/bin".into()), ("CANARY".into(), "sings".into())];
    let mount = |target: &str, source| Mount { target: target.into(), source, subpath: "".into(), readonly: false };
    spec.mounts = vec![
        mount("/home/bob/.cache/x", MountSource::Bind { path: dir.join("cache") }),
        Mount { subpath: "below".into(), ..mount("/home", MountSource::Bind { path: dir.join("copy") }) },
        mount("/tmp", MountSource::Tmpfs { size: None }),
        mount("/dev/pipes/EOF", MountSource::File { data: b"#!/bin/sh\necho script".to_vec(), mode: 0o555, uid: 0, gid: 0 }),
        mount("/run/secrets/k", MountSource::File { data: b"hidden".to_vec(), mode: 0o400, uid: 0, gid: 5 }),
    ];
    // The cache lies below what the second one covers, so that the order counts.
    spec.mounts.swap(0, 1);
    spec
}

fn tell(root: &Path, below: &Path, told: &mut BTreeMap<PathBuf, String>) {
    let path = root.join(below);
    // Gone since it was listed, by a supervisor at work.
    let Ok(meta) = std::fs::symlink_metadata(&path) else { return };
    let content = match () {
        () if meta.is_symlink() => format!("{:?}", std::fs::read_link(&path).ok()),
        () if meta.is_file() && meta.len() < 9999 => format!("{:?}", std::fs::read_to_string(&path)),
        () => String::new(),
    };
    let line = format!(
        "{:o} {}:{} {}.{} {} {content}",
        meta.mode(),
        meta.uid(),
        meta.gid(),
        meta.mtime(),
        meta.mtime_nsec(),
        meta.ino()
    );
    told.insert(below.to_owned(), line);
    if meta.is_dir() {
        for entry in std::fs::read_dir(&path).into_iter().flatten() {
            tell(root, &below.join(entry.unwrap().file_name()), told);
        }
    }
}

pub fn be_parent(arguments: &[String]) {
    use std::io::Write;
    let [dir, command @ ..] = arguments else { panic!("arguments: {arguments:?}") };
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    let result = kiln_runner::run(&spec(Path::new(dir), &command), host(), &Cancel::new().unwrap(), &mut |_, bytes| {
        let _ = std::io::stdout().write_all(bytes).and_then(|()| std::io::stdout().flush());
    });
    println!("{result:?}");
}

/// What the command sees is there, and nothing of it is left.
pub fn the_root_is_as_it_was() {
    let rows: &[(&str, &str, &str)] = &[
        ("nothing", "true", ""),
        (
            "what is there",
            "cat /run/secrets/k /etc/hosts /home/bob/.cache/x/old; ls /home; ls -A /tmp; stat -c '%a %g' /run/secrets/k",
            "hidden127.0.0.1\tlocalhost buildkitsandbox\n::1\tlocalhost ip6-localhost ip6-loopback\no\nbob\nf\n400 5\n",
        ),
        ("devices", "echo x >/dev/null; head -c 4 /dev/zero | wc -c; head -c 9 /dev/urandom | wc -c; ls /dev/shm", "4\n9\n"),
        (
            "proc",
            "cat /proc/mounts; test -s /proc/meminfo && test -s /proc/sys/kernel/osrelease && echo yes",
            "none / rootfs rw 0 0\nyes\n",
        ),
        (
            "written over",
            "echo a >/etc/hosts; echo b >/etc/resolv.conf; echo c >/dev/x; mkdir -p /proc/a/b /tmp/d; echo e >/tmp/d/e",
            "",
        ),
        ("taken away", "rm -rf /etc/hosts /etc/resolv.conf /run/secrets /dev /proc /tmp", ""),
        (
            "replaced",
            "rm /etc/hosts; mkdir /etc/hosts; touch /etc/hosts/x; rm -r /dev; ln -s /etc /dev; rm -r /proc; touch /proc",
            "",
        ),
        ("of another kind", "rm -rf /run; ln -s /etc /run", ""),
    ];
    for (what, script, expected) in rows {
        let root = Root::new();
        let before = root.told();
        let (result, out) = root.run(script);
        assert!(matches!(result, Ok(Status::Exited(0))), "{what}: {result:?} {out}");
        assert_eq!(out, *expected, "{what}");
        let mut after = root.told();
        if *what == "of another kind" {
            assert!(after.remove(Path::new("run")).is_some_and(|line| line.contains("etc")), "the command's own change stays");
        }
        if *what == "taken away" {
            // The link is the image's own; what kiln put there is where it leads to.
            after.insert("etc/resolv.conf".into(), before[Path::new("etc/resolv.conf")].clone());
        }
        if script.contains("rm ") {
            // The command's own doing.
            for changed in ["", "etc"] {
                after.insert(changed.into(), before[Path::new(changed)].clone());
            }
        }
        assert_eq!(differences(&after, &before), [""; 0], "{what}");
        assert_eq!(std::fs::read_to_string(root.path("cache/old")).unwrap(), "o\n", "{what}: the cache is home again");
        assert_eq!(std::fs::read_to_string(root.path("copy/below/f")).unwrap(), "f\n", "{what}");
    }
}

/// What a command does with things of kiln's ends with it.
pub fn what_was_lent_comes_back_and_secrets_go() {
    let root = Root::new();
    let script = "mkdir /k; ln /run/secrets/k /k/linked; mv /run/secrets/k /k/moved; ln -s /run/secrets/k /k/s; rm /home/bob/.cache/x/old; \
                  echo n >/home/bob/.cache/x/new; rm -rf /home/bob; mv /etc/hosts /k/hosts";
    let (result, out) = root.run(script);
    assert!(matches!(result, Ok(Status::Exited(0))), "{result:?} {out}");
    for name in ["linked", "moved", "hosts"] {
        assert_eq!(std::fs::read(root.path("tree/k").join(name)).unwrap(), b"", "{name}: nothing of kiln's is in it");
    }
    assert!(std::fs::read_to_string(root.path("tree/etc/hosts")).unwrap().contains("image"), "the image's own is back");
    assert!(!root.path("tree/run").exists());
    let (result, _) = root.run("true");
    assert!(result.is_err(), "a cache that the command took away is not there any more");
}

/// The environment is the one that was asked for, and no descriptor leaks.
pub fn environment_and_descriptors() {
    let root = Root::new();
    let (_, out) = root.run("env | sort; for i in $(seq 3 99); do if true 2>/dev/null >&$i; then echo open $i; fi; done; id; umask; ulimit -n; ulimit -c");
    assert_eq!(
        out,
        "CANARY=sings\nHOME=/root\nPATH=/bin\nPWD=/\nSHLVL=1\nuid=0 gid=0(root) groups=0(root),10(wheel)\n0022\n1024\n0\n"
    );
    let mut other = spec(root.dir.path(), &["sh", "-c", "id; touch /x; mount -t tmpfs x /tmp"]);
    other.user = "bob".to_owned();
    let mut out = Vec::new();
    kiln_runner::run(&other, host(), &Cancel::new().unwrap(), &mut |_, bytes| out.extend_from_slice(bytes)).unwrap();
    let out = String::from_utf8_lossy(&out).into_owned();
    assert!(out.contains("uid=1000(bob) gid=1001(bob) groups=10(wheel),50(staff),1001(bob)"), "{out}");
    assert!(out.contains("/x: Permission denied"), "{out}");
    let (_, out) = root.run("mount -t tmpfs x /tmp; chroot . true && echo usual");
    assert!(out.contains("ermi") && out.contains("usual\n"), "{out}");
    let mut alone = spec(root.dir.path(), &["true"]);
    alone.network = Network::None;
    let refused = kiln_runner::run(&alone, host(), &Cancel::new().unwrap(), &mut |_, _| {}).unwrap_err();
    assert!(matches!(refused, RunError::Unavailable { .. }), "{refused}");
}

/// Each way to outlive the command, and the time that it takes to end it.
pub fn no_daemon_survives() {
    let mark = format!("5511.{}", std::process::id());
    let sleep = format!("sleep {mark}");
    let rows = [
        ("in the background", "SLEEP &".to_owned()),
        ("in a session of its own", "setsid SLEEP &".to_owned()),
        ("forked twice", "(setsid SLEEP &)".to_owned()),
        ("forked many times", "(((( (setsid sh -c 'SLEEP; true' &) ))))".to_owned()),
        ("deaf to signals", "setsid sh -c 'trap \"\" TERM HUP INT QUIT; SLEEP' &".to_owned()),
        ("stopped", "SLEEP & kill -STOP $!".to_owned()),
        ("as another user", "setsid su bob -s /bin/sh -c 'SLEEP' &".to_owned()),
        ("that respawns", "setsid sh -c 'while true; do sleep 0.01; SLEEP & done' &".to_owned()),
        (
            "with a name that lies",
            "cp /bin/busybox '/bin/a) S 1 1'; ln -sf 'a) S 1 1' /bin/sleep2; setsid '/bin/a) S 1 1' SLEEP &".to_owned(),
        ),
        ("in a chain", "setsid sh -c 'sh -c \"sh -c \\\"SLEEP; true\\\"; true\"; true' &".to_owned()),
        ("without streams", "setsid SLEEP >/dev/null 2>&1 </dev/null &".to_owned()),
    ];
    for (what, script) in rows {
        let root = Root::new();
        let began = Instant::now();
        let (result, out) = root.run(&format!("{}\nsleep 0.1; echo done", script.replace("SLEEP", &sleep)));
        assert!(matches!(result, Ok(Status::Exited(0))) && out.ends_with("done\n"), "{what}: {result:?} {out}");
        assert!(began.elapsed() < Duration::from_millis(1500), "{what}: {:?}", began.elapsed());
        assert_eq!(processes_with(&mark), [""; 0], "{what}");
    }
}

/// SIGKILL of kiln at any moment: the supervisor ends the command and puts everything back.
pub fn killed_parent_in_chroot() {
    let root = Root::new();
    let dir = root.dir.path().to_str().unwrap().to_owned();
    let before = root.told();
    let mark = format!("5512.{}", std::process::id());
    let script = format!("(setsid sleep {mark} &); echo ready; echo x >/etc/hosts; sleep {mark}");
    let start = |command: &[&str]| {
        let mut parent = Command::new(std::env::current_exe().unwrap());
        parent.arg(PARENT).arg(&dir).args(command).stdout(Stdio::piped()).spawn().unwrap()
    };
    let whole = |what: &str| {
        soon_empty(what, || processes_with(&mark));
        // It may not even have opened the root directory yet, so that the end is not to be seen.
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(5) && (root.told() != before || !supervisors_of(&dir).is_empty()) {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(supervisors_of(&dir), [""; 0], "{what}");
        assert_eq!(differences(&root.told(), &before), [""; 0], "{what}");
        assert!(root.path("cache/old").exists() && root.path("copy/below/f").exists(), "{what}");
    };
    let mut parent = start(&["sh", "-c", &script]);
    let mut line = String::new();
    BufReader::new(parent.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    parent.kill().unwrap();
    parent.wait().unwrap();
    whole("while it runs");
    for round in 0..40u64 {
        let mut parent = start(&["sleep", &mark]);
        std::thread::sleep(Duration::from_micros(round * 700));
        parent.kill().unwrap();
        parent.wait().unwrap();
        whole(&format!("after {} µs", round * 700));
    }
}

/// Processes that have a descriptor in `dir`.
fn supervisors_of(dir: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(fds) = std::fs::read_dir(entry.path().join("fd")) else { continue };
        let holds =
            |path: PathBuf| std::fs::read_link(path).is_ok_and(|to| to.as_os_str().as_bytes().starts_with(dir.as_bytes()));
        if entry.file_name() != std::process::id().to_string().as_str() && fds.flatten().any(|fd| holds(fd.path())) {
            found.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    found
}
