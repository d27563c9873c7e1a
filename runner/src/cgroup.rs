//! A control group for one run, where one can be had: hides the versions and the layouts.
//!
//! Only the number of processes is limited here; that all of them end is the pid namespace's work. Without a writable group the run
//! goes on without the limit.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::supervise::GroupPlace;

/// Where groups can be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Parent {
    /// Version 1: the `pids` hierarchy at the caller's own group.
    V1(PathBuf),
    /// Version 2 with the `pids` controller passed on to children.
    V2(PathBuf),
}

/// Names kiln's groups: `kiln-<pid>-<number>`.
const PREFIX: &str = "kiln-";

/// Looks for a place to make groups in, and removes groups that killed processes left there.
pub(crate) fn find() -> Option<Parent> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let parent = parent_of(&own, &mounts)?;
    if let Parent::V2(path) = &parent {
        let passed_on = fs::read_to_string(path.join("cgroup.subtree_control")).ok()?;
        if !passed_on.split_whitespace().any(|controller| controller == "pids") {
            return None;
        }
    }
    let (Parent::V1(path) | Parent::V2(path)) = &parent;
    if rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_err() {
        return None;
    }
    sweep(path);
    Some(parent)
}

/// Reads `/proc/self/cgroup` and `/proc/self/mountinfo`. A hybrid layout (version 2 without controllers beside version 1) has its
/// pids controller in version 1.
fn parent_of(own: &str, mounts: &str) -> Option<Parent> {
    let mut group = None;
    for line in own.lines() {
        let mut fields = line.splitn(3, ':');
        let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        if controllers.split(',').any(|name| name == "pids") {
            group = Some((true, path));
            break;
        }
        if number == "0" && controllers.is_empty() {
            group = Some((false, path));
        }
    }
    let (first_version, path) = group?;
    mounts.lines().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let (mount_root, at) = (mount.next()?, mount.next()?);
        let mut file_system = file_system.split(' ');
        let (kind, options) = (file_system.next()?, file_system.nth(1)?);
        let wanted = match first_version {
            true => kind == "cgroup" && options.split(',').any(|option| option == "pids"),
            false => kind == "cgroup2",
        };
        // In a container the mount may show only the part of the tree below its own group.
        let below = Path::new(path).strip_prefix(mount_root).ok().filter(|_| wanted)?;
        let directory = Path::new(at).join(below);
        Some(if first_version { Parent::V1(directory) } else { Parent::V2(directory) })
    })
}

/// Removes the groups of processes that no longer exist; the kernel refuses to remove one that is in use.
fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(PREFIX)).and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// A group for one run; removed when dropped, which has to be after the run's last process ended.
#[derive(Debug)]
pub(crate) struct Group {
    path: PathBuf,
    first_version: bool,
}

impl Group {
    /// Makes a group in which at most `pids` processes and threads can exist. `None` when it can't be had.
    pub(crate) fn make(parent: Option<&Parent>, pids: u64) -> Option<Group> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let (Parent::V1(directory) | Parent::V2(directory)) = parent?;
        let name = format!("{PREFIX}{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = directory.join(name);
        fs::create_dir(&path).ok()?;
        let group = Group { path, first_version: matches!(parent, Some(Parent::V1(_))) };
        fs::write(group.path.join("pids.max"), pids.to_string()).ok()?;
        Some(group)
    }

    /// Where the command's process joins.
    pub(crate) fn place(&self) -> GroupPlace {
        match self.first_version {
            true => GroupPlace::Tasks(self.path.join("tasks").into()),
            false => GroupPlace::Directory(self.path.clone().into()),
        }
    }

    /// Was a process of the group killed for lack of memory?
    pub(crate) fn ran_out_of_memory(&self) -> bool {
        let Ok(events) = fs::read_to_string(self.path.join("memory.events")) else { return false };
        events.lines().any(|line| line.strip_prefix("oom_kill ").is_some_and(|count| count.trim() != "0"))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Kills what a lost supervisor might have left; version 1 has no such file.
        if !self.first_version {
            let _ = fs::write(self.path.join("cgroup.kill"), "1");
        }
        let _ = fs::remove_dir(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts() {
        let hybrid = "8:pids:/\n4:memory:/process_api/x\n0::/\n";
        let hybrid_mounts = "30 25 0:26 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n31 25 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let unified_mounts = "30 25 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let part = "30 25 0:26 /docker/abc /sys/fs/cgroup/pids ro - cgroup cgroup rw,pids\n";
        let rows: &[(&str, &str, &str, Option<Parent>)] = &[
            ("hybrid", hybrid, hybrid_mounts, Some(Parent::V1("/sys/fs/cgroup/pids".into()))),
            ("unified", "0::/user.slice/a.scope\n", unified_mounts, Some(Parent::V2("/sys/fs/cgroup/user.slice/a.scope".into()))),
            ("a container's part", "3:cpu,pids:/docker/abc\n", part, Some(Parent::V1("/sys/fs/cgroup/pids".into()))),
            ("outside of the part", "3:pids:/other\n", part, None),
            ("not mounted", "3:pids:/\n", "", None),
            ("none", "", unified_mounts, None),
        ];
        for (what, own, mounts, expected) in rows {
            assert_eq!(parent_of(own, mounts), *expected, "{what}");
        }
    }
}
