//! A private root with busybox in it, and one call that runs a command there.

use std::ffi::OsString;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use kiln_runner::{Cancel, Host, Mode, RootFs, RunError, RunSpec, Status, Stream};
use tempfile::TempDir;

pub fn host() -> &'static Host {
    static HOST: OnceLock<Host> = OnceLock::new();
    HOST.get_or_init(|| {
        let isolation = std::env::var(crate::threats::modes::ISOLATION).unwrap_or_else(|_| "default".to_owned());
        let wish = kiln_runner::Wish { isolation: isolation.parse().unwrap(), ..kiln_runner::Wish::default() };
        let entered = kiln_runner::enter(&wish).unwrap();
        Host::probe(&entered, &kiln_runner::Ground::probe(&entered, &std::env::temp_dir()))
    })
}

/// Why these tests can't run here, if they can't.
pub fn why_not() -> Option<String> {
    if !Path::new("/bin/busybox").exists() {
        return Some("/bin/busybox (package busybox-static) is not installed".to_owned());
    }
    match &host().mode {
        Mode::Unavailable { reason, .. } => Some(reason.clone()),
        _ => None,
    }
}

/// A read-only layer with busybox, its applets, and a few users.
pub fn base() -> &'static Path {
    static BASE: OnceLock<TempDir> = OnceLock::new();
    BASE.get_or_init(|| {
        let dir = tempfile::Builder::new().prefix("kiln-base-").tempdir().unwrap();
        fill_base(dir.path());
        dir
    })
    .path()
}

pub fn fill_base(root: &Path) {
    std::fs::set_permissions(root, PermissionsExt::from_mode(0o755)).unwrap();
    for (directory, mode) in
        [("bin", 0o755), ("etc", 0o755), ("root", 0o700), ("tmp", 0o1777), ("home", 0o755), ("home/bob", 0o755)]
    {
        let path = root.join(directory);
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
    }
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    let applets = Command::new("/bin/busybox").arg("--list").output().unwrap();
    for applet in String::from_utf8(applets.stdout).unwrap().lines().filter(|applet| *applet != "busybox") {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    std::fs::write(root.join("etc/passwd"), "root::0:0:root:/root:/bin/sh\nbob:x:1000:1001:Bob:/home/bob:/bin/sh\n").unwrap();
    std::fs::write(root.join("etc/group"), "root:x:0:\nwheel:x:10:root,bob\nstaff:x:50:bob\nbob:x:1001:\n").unwrap();
}

/// One step to be: layers, and what to run on them.
pub struct Step {
    pub dir: TempDir,
    pub spec: RunSpec,
}

/// What came of it.
#[derive(Debug)]
pub struct Ran {
    pub result: Result<Status, RunError>,
    pub out: String,
    pub err: String,
    /// As in the outcome, if there is one.
    pub owners: Vec<(u64, u32, u32)>,
    pub identity: Option<(u32, u32)>,
}

impl Step {
    /// On the busybox layer.
    pub fn new() -> Step {
        Step::on(vec![])
    }

    /// On the busybox layer with others over it, top first.
    pub fn on(mut lowers: Vec<PathBuf>) -> Step {
        let dir = tempfile::Builder::new().prefix("kiln-step-").tempdir().unwrap();
        let (upper, work) = (dir.path().join("upper"), dir.path().join("work"));
        std::fs::create_dir(&upper).unwrap();
        std::fs::create_dir(&work).unwrap();
        lowers.push(base().to_owned());
        let mut spec = RunSpec::new(RootFs::Overlay { lowers, upper, work }, vec![]);
        spec.env.push(("PATH".into(), "/bin".into()));
        Step { dir, spec }
    }

    pub fn with(mut self, change: impl FnOnce(&mut RunSpec)) -> Step {
        change(&mut self.spec);
        self
    }

    /// A directory of the test's own.
    pub fn subdir(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    pub fn upper(&self) -> PathBuf {
        self.dir.path().join("upper")
    }

    /// Paths in the upper directory, sorted, each with its kind: `d`, `-`, `l`, or `c` for a whiteout.
    pub fn changes(&self) -> Vec<String> {
        let mut found = Vec::new();
        list(&self.upper(), Path::new(""), &mut found);
        found.sort();
        found
    }

    pub fn sh(&mut self, script: &str) -> Ran {
        self.args(&["sh", "-c", script])
    }

    pub fn args(&mut self, args: &[&str]) -> Ran {
        self.spec.args = args.iter().map(OsString::from).collect();
        self.run(&Cancel::new().unwrap())
    }

    pub fn run(&self, cancel: &Cancel) -> Ran {
        self.run_on(host(), cancel, &mut |_, _| {})
    }

    pub fn run_on(&self, host: &Host, cancel: &Cancel, watch: &mut (dyn FnMut(Stream, &str) + Send)) -> Ran {
        // A work directory serves one volatile mount.
        let work = self.dir.path().join("work");
        std::fs::remove_dir_all(&work).unwrap();
        std::fs::create_dir(&work).unwrap();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let result = kiln_runner::run(&self.spec, host, cancel, &mut |stream, bytes| {
            match stream {
                Stream::Stdout => out.extend_from_slice(bytes),
                Stream::Stderr => err.extend_from_slice(bytes),
            }
            watch(stream, &String::from_utf8_lossy(bytes));
        });
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let (owners, identity) =
            result.as_ref().map_or_else(|_| (vec![], None), |outcome| (outcome.owners.clone(), outcome.identity));
        Ran { result: result.map(|outcome| outcome.status), out: text(out), err: text(err), owners, identity }
    }
}

impl Ran {
    /// What it printed; it must have succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(matches!(self.result, Ok(Status::Exited(0))), "{self:#?}");
        self.out
    }

    /// The error's text with its causes; there must be one.
    #[track_caller]
    pub fn error(self) -> String {
        let Err(error) = &self.result else { panic!("no error: {self:#?}") };
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(error);
        while let Some(error) = cause {
            text.push_str(&format!(": {error}"));
            cause = error.source();
        }
        text
    }
}

fn list(root: &Path, below: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(root.join(below)).unwrap() {
        let entry = entry.unwrap();
        let path = below.join(entry.file_name());
        let kind = entry.file_type().unwrap();
        let letter = match () {
            () if kind.is_dir() => 'd',
            () if kind.is_symlink() => 'l',
            () if kind.is_file() => '-',
            () => 'c',
        };
        found.push(format!("{letter} {}", path.display()));
        if kind.is_dir() {
            list(root, &path, found);
        }
    }
}

/// Processes whose command line holds `marker`.
pub fn processes_with(marker: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(line) = std::fs::read(entry.path().join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(marker) && entry.file_name() != std::process::id().to_string().as_str() {
            found.push(format!("{} {line}", entry.file_name().display()));
        }
    }
    found
}

/// Mounts of any process that hold `marker`.
pub fn mounts_with(marker: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(mounts) = std::fs::read_to_string(entry.path().join("mountinfo")) else { continue };
        found.extend(mounts.lines().filter(|line| line.contains(marker)).map(str::to_owned));
    }
    found
}

/// Asks again until `found` is empty, for a second at most.
#[track_caller]
pub fn soon_empty(what: &str, found: impl Fn() -> Vec<String>) {
    let begin = std::time::Instant::now();
    loop {
        let left = found();
        if left.is_empty() {
            return;
        }
        assert!(begin.elapsed().as_secs_f64() < 1.0, "{what} left after a second: {left:#?}");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}
