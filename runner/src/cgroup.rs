//! Control groups for one run, where they can be had: hides the versions, the layouts and the names of their files.
//!
//! That all processes end is the pid namespace's work. The limit of their number is done without where no group can be made; for a
//! limit that was asked for, [`Hierarchies::lacks`] tells that.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::RunError;
use crate::spec::GroupLimits;
use crate::supervise::GroupPlace;

/// One tree of groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    first_version: bool,
    /// What it can limit; in version 2, what its groups pass on to their children.
    controllers: Vec<String>,
    /// Where it is mounted.
    mount: PathBuf,
    /// The caller's own group in it.
    own: PathBuf,
}

/// Where groups can be made: a machine may have controllers in version 1, each in a hierarchy of its own or together with others, and
/// others in version 2.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Hierarchies(Vec<Hierarchy>);

/// Names kiln's groups: `kiln-<pid>-<number>`.
const PREFIX: &str = "kiln-";

/// What kiln limits.
const CONTROLLERS: [&str; 4] = ["pids", "memory", "cpu", "cpuset"];

/// Looks for places to make groups in, and removes groups that killed processes left there.
pub(crate) fn find() -> Option<Hierarchies> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mut found = hierarchies(&own, &mounts);
    for hierarchy in found.iter_mut().filter(|hierarchy| !hierarchy.first_version) {
        hierarchy.controllers = passed_on(&hierarchy.own);
    }
    let writable = |path: &Path| rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok();
    found.retain(|hierarchy| !hierarchy.first_version || !hierarchy.controllers.is_empty());
    found.retain(|hierarchy| writable(&hierarchy.own));
    found.iter().for_each(|hierarchy| sweep(&hierarchy.own));
    Some(Hierarchies(found)).filter(|found| !found.0.is_empty())
}

/// What children of a group of version 2 can limit.
fn passed_on(group: &Path) -> Vec<String> {
    let text = fs::read_to_string(group.join("cgroup.subtree_control")).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

/// Reads `/proc/self/cgroup` and `/proc/self/mountinfo`. Which controllers version 2 has is not written there.
fn hierarchies(own: &str, mounts: &str) -> Vec<Hierarchy> {
    let one = |line: &str| {
        let mut fields = line.splitn(3, ':');
        let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let first_version = !(number == "0" && controllers.is_empty());
        let controllers: Vec<&str> = controllers.split(',').filter(|name| CONTROLLERS.contains(name)).collect();
        if first_version && controllers.is_empty() {
            return None;
        }
        mounts.lines().find_map(|line| {
            let (mount, file_system) = line.split_once(" - ")?;
            let mut mount = mount.split(' ').skip(3);
            let (mount_root, at) = (mount.next()?, mount.next()?);
            let mut file_system = file_system.split(' ');
            let (kind, options) = (file_system.next()?, file_system.nth(1)?);
            let wanted = match controllers.first() {
                Some(controller) => kind == "cgroup" && options.split(',').any(|option| option == *controller),
                None => kind == "cgroup2",
            };
            // In a container the mount may show only the part of the tree below its own group.
            let below = Path::new(path).strip_prefix(mount_root).ok().filter(|_| wanted)?;
            let controllers = controllers.iter().map(|name| (*name).to_owned()).collect();
            Some(Hierarchy { first_version, controllers, mount: at.into(), own: Path::new(at).join(below) })
        })
    };
    own.lines().filter_map(one).collect()
}

impl Hierarchies {
    /// The limits among `limits` that nothing here enforces, by the names of their flags.
    pub(crate) fn lacks(&self, limits: &GroupLimits) -> Vec<&'static str> {
        let has = |controller: &str| self.0.iter().any(|hierarchy| hierarchy.below(limits).1.iter().any(|has| has == controller));
        let asked = limits.settings().into_iter().filter(|setting| !has(setting.controller));
        let parent = limits.parent.is_some() && self.0.is_empty();
        asked.map(|setting| setting.flag).chain(parent.then_some("cgroup-parent")).collect()
    }
}

impl Hierarchy {
    /// The group to make groups in, and what those can limit.
    fn below(&self, limits: &GroupLimits) -> (PathBuf, Vec<String>) {
        let Some(parent) = &limits.parent else { return (self.own.clone(), self.controllers.clone()) };
        let mut at = self.mount.clone();
        for name in parent.components().filter(|part| matches!(part, std::path::Component::Normal(_))) {
            if !self.first_version {
                pass_on(&at);
            }
            at.push(name);
            if fs::create_dir(&at).is_ok() && self.first_version && self.controllers.iter().any(|name| name == "cpuset") {
                let _ = inherit_cpus(&at);
            }
        }
        if self.first_version {
            return (at, self.controllers.clone());
        }
        pass_on(&at);
        let controllers = passed_on(&at);
        (at, controllers)
    }
}

/// Has a group of version 2 pass on what it can.
fn pass_on(group: &Path) {
    for controller in CONTROLLERS {
        // Refused where the group hasn't the controller itself.
        let _ = write(&group.join("cgroup.subtree_control"), &format!("+{controller}"));
    }
}

/// In version 1 a new group has no processor and no memory until it's told.
fn inherit_cpus(group: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let above = group.parent().map_or_else(PathBuf::new, |above| above.join(file));
        write(&group.join(file), fs::read_to_string(above)?.trim())?;
    }
    Ok(())
}

fn write(file: &Path, value: &str) -> io::Result<()> {
    fs::OpenOptions::new().write(true).open(file)?.write_all(value.as_bytes())
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

/// One limit: the flag that asks for it, and what is written into which files.
struct Setting {
    flag: &'static str,
    controller: &'static str,
    first: Vec<(&'static str, String)>,
    second: Vec<(&'static str, String)>,
}

impl GroupLimits {
    fn settings(&self) -> Vec<Setting> {
        let mut settings = Vec::new();
        if let Some(memory) = self.memory {
            // As Docker has it: as much swap again, unless something else is said.
            let total = self.memory_and_swap.unwrap_or(memory.checked_mul(2));
            let first = [memory.to_string(), total.map_or("-1".to_owned(), |total| total.to_string())];
            let swap = total.map_or("max".to_owned(), |total| total.saturating_sub(memory).to_string());
            settings.push(Setting {
                flag: "memory",
                controller: "memory",
                first: ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"].into_iter().zip(first).collect(),
                second: vec![("memory.max", memory.to_string()), ("memory.swap.max", swap)],
            });
        }
        if let Some(shares) = self.cpu_shares {
            // From 2…262144 to 1…10000, as all container managers do it.
            let weight = 1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142;
            settings.push(Setting {
                flag: "cpu-shares",
                controller: "cpu",
                first: vec![("cpu.shares", shares.to_string())],
                second: vec![("cpu.weight", weight.to_string())],
            });
        }
        if self.cpu_quota.is_some() || self.cpu_period.is_some() {
            let period = self.cpu_period.unwrap_or(100_000);
            let quota = |unlimited: &str| self.cpu_quota.map_or(unlimited.to_owned(), |quota| quota.to_string());
            settings.push(Setting {
                flag: if self.cpu_quota.is_some() { "cpu-quota" } else { "cpu-period" },
                controller: "cpu",
                first: vec![("cpu.cfs_period_us", period.to_string()), ("cpu.cfs_quota_us", quota("-1"))],
                second: vec![("cpu.max", format!("{} {period}", quota("max")))],
            });
        }
        for (flag, file, value) in
            [("cpuset-cpus", "cpuset.cpus", &self.cpus), ("cpuset-mems", "cpuset.mems", &self.memory_nodes)]
        {
            if let Some(value) = value {
                let files = vec![(file, value.clone())];
                settings.push(Setting { flag, controller: "cpuset", first: files.clone(), second: files });
            }
        }
        settings
    }
}

/// The groups of one run; removed when dropped, which has to be after the run's last process ended.
#[derive(Debug, Default)]
pub(crate) struct Group {
    members: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    path: PathBuf,
    first_version: bool,
    /// Whether a limit that was asked for depends on it.
    required: bool,
}

impl Group {
    /// Makes groups in which at most `pids` processes and threads can exist, and what `limits` asks for holds.
    pub(crate) fn make(places: Option<&Hierarchies>, pids: u64, limits: &GroupLimits) -> Result<Group, RunError> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("{PREFIX}{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let settings = limits.settings();
        let mut group = Group::default();
        for hierarchy in places.into_iter().flat_map(|places| &places.0) {
            let (parent, controllers) = hierarchy.below(limits);
            let has = |controller: &str| controllers.iter().any(|has| has == controller);
            let here: Vec<&Setting> = settings.iter().filter(|setting| has(setting.controller)).collect();
            // Whoever names a parent has set limits for it, wherever.
            let required = !here.is_empty() || limits.parent.is_some();
            if !required && !has("pids") {
                continue;
            }
            if limits.parent.is_some() {
                sweep(&parent);
            }
            let path = parent.join(&name);
            match fs::create_dir(&path) {
                Err(_) if !required => continue,
                made => made.map_err(|source| setup(format!("make the control group `{}`", path.display()), source))?,
            }
            let first_version = hierarchy.first_version;
            group.members.push(Member { path: path.clone(), first_version, required });
            if has("pids") {
                // Done without where it's refused.
                let _ = write(&path.join("pids.max"), &pids.to_string());
            }
            if first_version && has("cpuset") {
                inherit_cpus(&path).map_err(|source| setup("give the control group processors".to_owned(), source))?;
            }
            for setting in here {
                for (file, value) in if first_version { &setting.first } else { &setting.second } {
                    match write(&path.join(file), value) {
                        // A kernel that keeps no account of swap.
                        Err(error) if file.contains("sw") && error.kind() == io::ErrorKind::NotFound => {}
                        written => {
                            let operation = || format!("limit `{}` (write `{value}` to {file})", setting.flag);
                            written.map_err(|source| setup(operation(), source))?;
                        }
                    }
                }
            }
        }
        Ok(group)
    }

    /// Where the command's process joins.
    pub(crate) fn places(&self) -> Vec<GroupPlace> {
        let place = |member: &Member| match member.first_version {
            true => GroupPlace::Tasks { file: member.path.join("tasks").into(), required: member.required },
            false => GroupPlace::Directory { directory: member.path.clone().into(), required: member.required },
        };
        self.members.iter().map(place).collect()
    }

    /// Was a process of the group killed for lack of memory?
    pub(crate) fn ran_out_of_memory(&self) -> bool {
        self.members.iter().any(|member| {
            let file = if member.first_version { "memory.oom_control" } else { "memory.events" };
            let Ok(events) = fs::read_to_string(member.path.join(file)) else { return false };
            events.lines().any(|line| line.strip_prefix("oom_kill ").is_some_and(|count| count.trim() != "0"))
        })
    }
}

fn setup(operation: String, source: io::Error) -> RunError {
    RunError::Setup { operation, source }
}

impl Drop for Group {
    fn drop(&mut self) {
        for member in &self.members {
            // Kills what a lost supervisor might have left; version 1 has no such file.
            if !member.first_version {
                let _ = fs::write(member.path.join("cgroup.kill"), "1");
            }
            let _ = fs::remove_dir(&member.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(first_version: bool, controllers: &[&str], mount: &str, own: &str) -> Hierarchy {
        let controllers = controllers.iter().map(|name| (*name).to_owned()).collect();
        Hierarchy { first_version, controllers, mount: mount.into(), own: own.into() }
    }

    #[test]
    fn layouts() {
        let hybrid = "8:pids:/\n4:cpu,cpuacct:/x\n2:freezer:/\n0::/\n";
        let hybrid_mounts = "30 25 0:26 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
                             32 25 0:26 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                             31 25 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let unified_mounts = "30 25 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let part = "30 25 0:26 /docker/abc /sys/fs/cgroup/pids ro - cgroup cgroup rw,pids\n";
        let at = "/sys/fs/cgroup";
        let pids = one(true, &["pids"], "/sys/fs/cgroup/pids", "/sys/fs/cgroup/pids");
        let cpu = one(true, &["cpu"], "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct/x");
        let empty = one(false, &[], "/sys/fs/cgroup/unified", "/sys/fs/cgroup/unified");
        let rows: &[(&str, &str, &str, &[Hierarchy])] = &[
            ("hybrid", hybrid, hybrid_mounts, &[pids.clone(), cpu, empty]),
            ("unified", "0::/user.slice/a\n", unified_mounts, &[one(false, &[], at, "/sys/fs/cgroup/user.slice/a")]),
            ("a container's part", "3:pids:/docker/abc\n", part, &[pids]),
            ("outside of the part", "3:pids:/other\n", part, &[]),
            ("not mounted", "3:pids:/\n", "", &[]),
            ("none", "", unified_mounts, &[]),
        ];
        for (what, own, mounts, expected) in rows {
            assert_eq!(hierarchies(own, mounts), *expected, "{what}");
        }
    }

    #[test]
    fn files() {
        type Files = &'static [(&'static str, &'static str)];
        let limits = GroupLimits::default;
        let rows: &[(GroupLimits, Files, Files)] = &[
            (limits(), &[], &[]),
            (
                GroupLimits { memory: Some(100), ..limits() },
                &[("memory.limit_in_bytes", "100"), ("memory.memsw.limit_in_bytes", "200")],
                &[("memory.max", "100"), ("memory.swap.max", "100")],
            ),
            (
                GroupLimits { memory: Some(100), memory_and_swap: Some(Some(100)), ..limits() },
                &[("memory.limit_in_bytes", "100"), ("memory.memsw.limit_in_bytes", "100")],
                &[("memory.max", "100"), ("memory.swap.max", "0")],
            ),
            (
                GroupLimits { memory: Some(100), memory_and_swap: Some(None), ..limits() },
                &[("memory.limit_in_bytes", "100"), ("memory.memsw.limit_in_bytes", "-1")],
                &[("memory.max", "100"), ("memory.swap.max", "max")],
            ),
            (GroupLimits { cpu_shares: Some(1024), ..limits() }, &[("cpu.shares", "1024")], &[("cpu.weight", "39")]),
            (GroupLimits { cpu_shares: Some(262_144), ..limits() }, &[("cpu.shares", "262144")], &[("cpu.weight", "10000")]),
            (
                GroupLimits { cpu_quota: Some(50_000), ..limits() },
                &[("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "50000")],
                &[("cpu.max", "50000 100000")],
            ),
            (
                GroupLimits { cpu_period: Some(5000), ..limits() },
                &[("cpu.cfs_period_us", "5000"), ("cpu.cfs_quota_us", "-1")],
                &[("cpu.max", "max 5000")],
            ),
            (GroupLimits { cpus: Some("0-1".into()), ..limits() }, &[("cpuset.cpus", "0-1")], &[("cpuset.cpus", "0-1")]),
        ];
        for (limits, first, second) in rows {
            let settings = limits.settings();
            let all = |files: fn(&Setting) -> &Vec<(&'static str, String)>| -> Vec<(String, String)> {
                settings.iter().flat_map(files).map(|(file, value)| ((*file).to_owned(), value.clone())).collect()
            };
            let want = |files: Files| -> Vec<(String, String)> {
                files.iter().map(|(file, value)| ((*file).to_owned(), (*value).to_owned())).collect()
            };
            assert_eq!(all(|setting| &setting.first), want(first), "{limits:?}");
            assert_eq!(all(|setting| &setting.second), want(second), "{limits:?}");
        }
    }
}
