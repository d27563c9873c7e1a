//! The end of a control group: hides how each version kills what is in one, and how the groups of a kiln that was killed are told
//! from those of one that lives.
//!
//! That a run's processes end is the pid namespaces' work in the first place. The group is the second way to the same end, which
//! neither a lost supervisor nor a sandbox without a pid namespace can take away.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::process::{Pid, Signal};

/// Names kiln's groups: `kiln-<pid>-<number>`.
pub(super) const PREFIX: &str = "kiln-";

/// How long the kernel may take to end the processes of a group.
const PATIENCE: Duration = Duration::from_secs(1);
/// The same for what a killed kiln left: the next start should not wait for it, and will find it again.
const LITTLE_PATIENCE: Duration = Duration::from_millis(200);

/// Makes the group `path`, held by the lock that is answered: whoever can get it knows that the group's owner is dead. `None` when
/// another kiln swept it away meanwhile.
///
/// By a lock and not by the process id in the name alone: kilns in two containers may share a tree of groups and don't see each
/// other's processes.
pub(super) fn make(path: &Path) -> io::Result<Option<File>> {
    fs::create_dir(path)?;
    let lock = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        lock => lock?,
    };
    let locked = rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok();
    let there = fs::symlink_metadata(path).is_ok();
    Ok((locked && there).then_some(lock))
}

/// Removes the groups below `parent` whose kiln is dead, and kills what is in them.
pub(super) fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(PREFIX)).and_then(|rest| rest.split('-').next());
        let is_dead = |pid: &str| pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists();
        if !owner.is_some_and(is_dead) {
            continue;
        }
        let Ok(lock) = File::open(entry.path()) else { continue };
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
            remove(&entry.path(), LITTLE_PATIENCE);
        }
    }
}

/// Kills everything in a group of this process's own and removes it.
pub(super) fn end(path: &Path) {
    remove(path, PATIENCE);
}

fn remove(path: &Path, patience: Duration) {
    // The usual case: the pid namespace is dead and the group is empty.
    if fs::remove_dir(path).is_ok() {
        return;
    }
    let begin = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        kill(path);
        remove_below(path);
        match fs::remove_dir(path) {
            Err(error) if is_in_use(&error) && begin.elapsed() < patience => std::thread::sleep(pause),
            _ => return,
        }
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

fn is_in_use(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ResourceBusy | io::ErrorKind::DirectoryNotEmpty)
}

/// Groups that the command made below its own (a nested kiln does).
fn remove_below(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            kill(&entry.path());
            remove_below(&entry.path());
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// Sends SIGKILL to everything in the group, in one step where the kernel can (version 2, Linux 5.14), else while nothing in it runs.
fn kill(path: &Path) {
    if write(&path.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    // A frozen process of version 2 dies of SIGKILL, one of version 1 has to thaw for it.
    let freeze = [("cgroup.freeze", "1", "0"), ("freezer.state", "FROZEN", "THAWED")];
    for (file, on, _) in freeze {
        let _ = write(&path.join(file), on);
    }
    let own = rustix::process::getpid();
    let members = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    // Those of a pid namespace that isn't seen from here are listed as 0.
    let members = members.lines().filter_map(|line| line.parse().ok().and_then(Pid::from_raw)).filter(|pid| *pid != own);
    for pid in members {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
    for (file, _, off) in freeze {
        let _ = write(&path.join(file), off);
    }
}

/// Writes into a file that the kernel has made; a missing one is not.
pub(super) fn write(file: &Path, value: &str) -> io::Result<()> {
    fs::OpenOptions::new().write(true).open(file)?.write_all(value.as_bytes())
}
