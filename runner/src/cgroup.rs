//! Control groups for one run, where they can be had: hides the versions, the layouts and the names of their files.
//!
//! Three layouts are met: version 2 alone, version 1 alone, and both side by side with all controllers in version 1; then the groups
//! of version 1 limit and that of version 2, which has no controller, kills. An ordinary user has them where a part of the tree
//! belongs to him (systemd's `Delegate=`, or a sub-tree that root gave away). A limit that was asked for and can't be had is told by
//! [`Hierarchies::lacks`]; without any group the number of processes is bounded by RLIMIT_NPROC, where that holds.

mod end;
mod settings;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::RunError;
use crate::spec::GroupLimits;
use crate::supervise::GroupPlace;
use end::{PREFIX, sweep, write};
use settings::Setting;

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

/// What kiln limits.
const CONTROLLERS: [&str; 4] = ["pids", "memory", "cpu", "cpuset"];
/// Holds a group still while it is killed, where there is no version 2.
const FREEZER: &str = "freezer";

/// Looks for places to make groups in, and removes groups that killed processes left there.
pub(crate) fn find() -> Option<Hierarchies> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mut found = hierarchies(&own, &mounts);
    let writable = |path: &Path| rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok();
    for hierarchy in found.iter_mut().filter(|hierarchy| !hierarchy.first_version) {
        hierarchy.own = nearest_that_limits(&hierarchy.mount, &hierarchy.own, &|path| {
            writable(path) && writable(&path.join("cgroup.procs")) && passed_on(path).iter().any(|name| name == "pids")
        });
        hierarchy.controllers = passed_on(&hierarchy.own);
    }
    found.retain(|hierarchy| writable(&hierarchy.own));
    let second = found.iter().any(|hierarchy| !hierarchy.first_version);
    found.retain(|hierarchy| {
        !second || hierarchy.controllers.iter().all(|name| name != FREEZER) || hierarchy.controllers.len() > 1
    });
    found.iter().for_each(|hierarchy| sweep(&hierarchy.own));
    Some(Hierarchies(found)).filter(|found| !found.0.is_empty())
}

/// In version 2 a group with processes in it can't limit its children, so that kiln's own mostly doesn't; but the one above it may,
/// as a slice of systemd's does. Then a run's group is made beside kiln's.
fn nearest_that_limits(mount: &Path, own: &Path, limits: &dyn Fn(&Path) -> bool) -> PathBuf {
    let found = own.ancestors().take_while(|path| path.starts_with(mount)).find(|path| limits(path));
    found.unwrap_or(own).to_owned()
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
        let known = |name: &&str| CONTROLLERS.contains(name) || *name == FREEZER;
        let controllers: Vec<&str> = controllers.split(',').filter(known).collect();
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

    /// Can the number of a run's processes be limited?
    pub(crate) fn counts_processes(&self, limits: &GroupLimits) -> bool {
        self.0.iter().any(|hierarchy| hierarchy.below(limits).1.iter().any(|has| has == "pids"))
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
    /// Tells other kilns that the group's owner lives.
    _lock: File,
}

impl Group {
    /// Makes groups in which at most `pids` processes and threads can exist, and what `limits` asks for holds.
    pub(crate) fn make(places: Option<&Hierarchies>, pids: u64, limits: &GroupLimits) -> Result<Group, RunError> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let next_name = || format!("{PREFIX}{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let mut name = next_name();
        let settings = limits.settings();
        let mut group = Group::default();
        for hierarchy in places.into_iter().flat_map(|places| &places.0) {
            let (parent, controllers) = hierarchy.below(limits);
            let has = |controller: &str| controllers.iter().any(|has| has == controller);
            let here: Vec<&Setting> = settings.iter().filter(|setting| has(setting.controller)).collect();
            // Whoever names a parent has set limits for it, wherever.
            let required = !here.is_empty() || limits.parent.is_some();
            // A group of version 2 without controllers, or a freezer, is there to kill.
            if !required && !has("pids") && !has(FREEZER) && hierarchy.first_version {
                continue;
            }
            if limits.parent.is_some() {
                sweep(&parent);
            }
            let made = loop {
                let path = parent.join(&name);
                match end::make(&path) {
                    Ok(Some(lock)) => break Ok((path, lock)),
                    // A kiln of this number was killed here and its group is not yet swept away, or ours was just taken for such a one.
                    Ok(None) => name = next_name(),
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => name = next_name(),
                    Err(error) => break Err(setup(format!("make the control group `{}`", path.display()), error)),
                }
            };
            let (path, lock) = match made {
                Err(_) if !required => continue,
                made => made?,
            };
            let first_version = hierarchy.first_version;
            group.members.push(Member { path: path.clone(), first_version, required, _lock: lock });
            if has("pids") {
                // Done without where it's refused.
                let _ = write(&path.join("pids.max"), &pids.to_string());
            }
            if !first_version && has("memory") {
                // All or nothing: a step that lost a process for lack of memory has failed, and should say so.
                let _ = write(&path.join("memory.oom.group"), "1");
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
            end::end(&member.path);
        }
    }
}

#[cfg(test)]
mod tests;
