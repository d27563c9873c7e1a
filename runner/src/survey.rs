//! What a host offers, in words for people: hides where each fact stands.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::thread::CapabilitySet;

use crate::ground::{Ground, Snapshots};
use crate::host::{Devices, Host, SystemFiles};
use crate::mode::Mode;
use crate::obstacle;
use crate::spec::GroupLimits;
use crate::userns::{Entered, Wish};

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What it is about, as one word for programs.
    pub name: &'static str,
    /// Whether kiln has what it wants there.
    pub good: bool,
    /// What was found.
    pub value: String,
}

/// What the machine says, before any of it is judged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Seen {
    kernel: String,
    user: String,
    container: bool,
    most_namespaces: Option<u64>,
    given: (u64, u64),
    helpers: [Option<PathBuf>; 2],
    groups: Groups,
    filters: String,
    pasta: Option<PathBuf>,
    /// Names of binfmt_misc's handlers.
    emulators: Vec<String>,
}

/// How control groups are mounted, and whether one can be made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Groups {
    first: bool,
    second: bool,
    can_limit: Vec<&'static str>,
}

/// Looks at this machine as `kiln doctor` does.
pub fn survey(wish: &Wish, entered: &Entered, ground: &Ground, host: &Host) -> Vec<Finding> {
    judge(&look(wish, entered, host), entered, ground, host)
}

fn look(wish: &Wish, entered: &Entered, host: &Host) -> Seen {
    let find = |program: &str| crate::userns::find_program(wish, program);
    let kernel = rustix::system::uname();
    let text = |word: &std::ffi::CStr| word.to_string_lossy().into_owned();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut all = GroupLimits { memory: Some(1), cpu_quota: Some(1), cpus: Some("0".to_owned()), ..GroupLimits::default() };
    let lacks = host.lacks(&all);
    all.pids = Some(1);
    let mut can_limit: Vec<&'static str> = [("memory", "memory"), ("cpu-quota", "cpu"), ("cpuset-cpus", "cpuset")]
        .iter()
        .filter(|(flag, _)| !lacks.contains(flag))
        .map(|(_, name)| *name)
        .collect();
    if host.counts_processes(&GroupLimits::default()) {
        can_limit.push("pids");
    }
    let (users, groups) = crate::userns::given(wish, entered);
    let mut emulators: Vec<String> = fs::read_dir("/proc/sys/fs/binfmt_misc")
        .map(|entries| entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    emulators.retain(|name| name.starts_with("qemu-"));
    emulators.sort();
    Seen {
        kernel: format!("{} {} on {}", text(kernel.sysname()), text(kernel.release()), text(kernel.machine())),
        user: user(entered),
        container: wish.in_container || obstacle::engine_files(),
        most_namespaces: entered.most_namespaces,
        given: (users, groups),
        helpers: [find("newuidmap"), find("newgidmap")],
        groups: Groups { first: mounts.contains(" - cgroup "), second: mounts.contains(" - cgroup2 "), can_limit },
        filters: fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default().trim().to_owned(),
        pasta: find("pasta"),
        emulators,
    }
}

fn user(entered: &Entered) -> String {
    let capabilities = CapabilitySet::from_bits_retain(entered.capabilities);
    let rights = match () {
        () if capabilities.is_empty() => "no capabilities".to_owned(),
        () if capabilities.contains(CapabilitySet::SYS_ADMIN) => format!("capabilities {:x}", entered.capabilities),
        () => format!("capabilities {:x}, without CAP_SYS_ADMIN", entered.capabilities),
    };
    format!("{}, {rights}", entered.uid)
}

fn judge(seen: &Seen, entered: &Entered, ground: &Ground, host: &Host) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut add = |name, good, value: String| found.push(Finding { name, good, value });
    let runs = entered.mode.is_available();
    let privileged = entered.mode == Mode::Root;
    add("kernel", true, seen.kernel.clone());
    add("user", true, seen.user.clone());
    add("container", true, if seen.container { "yes" } else { "no" }.to_owned());
    match seen.most_namespaces {
        None => add("user-namespaces", privileged, "not in this kernel".to_owned()),
        Some(0) => add("user-namespaces", privileged, "none allowed (user.max_user_namespaces)".to_owned()),
        Some(most) => add("user-namespaces", true, format!("at most {most}")),
    }
    match seen.given {
        (0, _) | (_, 0) => add("sub-ids", entered.was_root, "none in /etc/subuid and /etc/subgid".to_owned()),
        (users, groups) => add("sub-ids", true, format!("{users} users and {groups} groups")),
    }
    match &seen.helpers {
        [Some(users), Some(_)] => add("newuidmap", true, users.display().to_string()),
        _ => add("newuidmap", entered.was_root, "not installed".to_owned()),
    }
    match (ground.snapshots, &ground.refusal) {
        (Snapshots::Overlay, _) => {
            let marks = if ground.user_xattr { "user attributes" } else { "trusted attributes" };
            let durable = if ground.volatile { "volatile" } else { "every end syncs the disk" };
            add("overlay", true, format!("works on the store's file system ({marks}, {durable})"));
        }
        (Snapshots::Copy, refusal) => {
            let why = refusal.as_deref().unwrap_or("not tried");
            add("overlay", false, format!("{why}; layers are copied instead"));
        }
    }
    if runs && entered.mode != Mode::Chroot {
        let from = |files| match files {
            SystemFiles::Fresh => "mounted afresh",
            SystemFiles::Outer => "the one that kiln sees, without what is masked",
            SystemFiles::Absent => "empty",
        };
        add("proc", host.proc == SystemFiles::Fresh, from(host.proc).to_owned());
        add("sys", host.sys != SystemFiles::Absent, from(host.sys).to_owned());
        let devices = if host.devices == Devices::Made { "made" } else { "those that kiln sees" };
        add("devices", true, devices.to_owned());
        let network = if host.own_network { "possible" } else { "refused" };
        add("own-network", host.own_network, network.to_owned());
    }
    let versions = match (seen.groups.first, seen.groups.second) {
        (true, true) => "versions 1 and 2",
        (true, false) => "version 1",
        (false, true) => "version 2",
        (false, false) => "not mounted",
    };
    match seen.groups.can_limit.as_slice() {
        [] => add("control-groups", false, format!("{versions}; kiln may make none, so that limits are not enforced")),
        limits => add("control-groups", true, format!("{versions}; kiln can limit {}", limits.join(", "))),
    }
    match seen.filters.as_str() {
        "" => add("seccomp", false, "not in this kernel".to_owned()),
        actions => {
            let notes = actions.split(' ').any(|action| action == "user_notif");
            let said = if notes { "filters and notifications" } else { "filters, but no notifications (Linux 5.0)" };
            add("seccomp", notes || entered.mode != Mode::OneId, said.to_owned());
        }
    }
    match &seen.pasta {
        Some(path) => add("pasta", true, path.display().to_string()),
        None => add("pasta", false, "not installed: RUN has the host's network or none".to_owned()),
    }
    match seen.emulators.as_slice() {
        [] => add("emulators", true, "none: RUN works for this machine's processor only".to_owned()),
        names => add("emulators", true, names.join(", ")),
    }
    found
}

/// Where a program is.
pub(crate) fn first_file(folders: impl Iterator<Item = PathBuf>, program: &str) -> Option<PathBuf> {
    folders.filter(|folder| folder.is_absolute()).map(|folder| folder.join(program)).find(|path| Path::is_file(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ground::OverlayApi;
    use crate::idmap::IdMaps;

    fn host(mode: Mode) -> (Entered, Ground, Host) {
        let entered = Entered {
            mode: mode.clone(),
            ids: IdMaps::default(),
            was_root: mode == Mode::Root,
            uid: 1000,
            capabilities: 0,
            most_namespaces: None,
            refused: Vec::new(),
            huge_pages: true,
        };
        let ground = Ground {
            snapshots: Snapshots::Overlay,
            overlay: OverlayApi::Descriptors,
            user_xattr: mode != Mode::Root,
            volatile: true,
            refusal: None,
        };
        let host = Host {
            mode,
            ground: ground.clone(),
            proc: SystemFiles::Outer,
            sys: SystemFiles::Outer,
            own_sys: true,
            devices: Devices::Bound,
            terminal_group: true,
            own_network: true,
            ids: IdMaps::default(),
            resolv_conf: Vec::new(),
            upstream_resolv_conf: Vec::new(),
            pasta: None,
            masked: Vec::new(),
            group: None,
            mount_points: None,
            program: None,
            huge_pages: true,
        };
        (entered, ground, host)
    }

    #[test]
    fn judged() {
        let seen = Seen {
            most_namespaces: Some(100),
            given: (65536, 65536),
            helpers: [Some("/usr/bin/newuidmap".into()), Some("/usr/bin/newgidmap".into())],
            filters: "kill allow user_notif".to_owned(),
            groups: Groups { first: true, second: true, can_limit: vec!["pids"] },
            ..Seen::default()
        };
        let none = Mode::Unavailable { reason: String::new(), remedy: String::new() };
        type Change = fn(&mut Seen, &mut Ground);
        let rows: &[(Mode, Change, &str, bool, &str)] = &[
            (Mode::SubIds, |_, _| {}, "sub-ids", true, "65536 users and 65536 groups"),
            (Mode::OneId, |seen, _| seen.given = (65536, 0), "sub-ids", false, "none in /etc/subuid and /etc/subgid"),
            (Mode::Root, |seen, _| seen.given = (0, 0), "sub-ids", true, "none in /etc/subuid and /etc/subgid"),
            (Mode::SubIds, |_, _| {}, "newuidmap", true, "/usr/bin/newuidmap"),
            (Mode::OneId, |seen, _| seen.helpers[1] = None, "newuidmap", false, "not installed"),
            (
                none.clone(),
                |seen, _| seen.most_namespaces = Some(0),
                "user-namespaces",
                false,
                "none allowed (user.max_user_namespaces)",
            ),
            (Mode::Root, |seen, _| seen.most_namespaces = None, "user-namespaces", true, "not in this kernel"),
            (Mode::SubIds, |_, _| {}, "overlay", true, "works on the store's file system (user attributes, volatile)"),
            (
                Mode::Nested,
                |_, ground| (ground.snapshots, ground.refusal) = (Snapshots::Copy, Some("no".to_owned())),
                "overlay",
                false,
                "no; layers are copied instead",
            ),
            (Mode::Nested, |_, _| {}, "proc", false, "the one that kiln sees, without what is masked"),
            (Mode::SubIds, |_, _| {}, "control-groups", true, "versions 1 and 2; kiln can limit pids"),
            (
                Mode::SubIds,
                |seen, _| seen.groups = Groups::default(),
                "control-groups",
                false,
                "not mounted; kiln may make none, so that limits are not enforced",
            ),
            (
                Mode::OneId,
                |seen, _| seen.filters = "kill".to_owned(),
                "seccomp",
                false,
                "filters, but no notifications (Linux 5.0)",
            ),
            (Mode::SubIds, |_, _| {}, "pasta", false, "not installed: RUN has the host's network or none"),
        ];
        for (mode, change, name, good, value) in rows {
            let (entered, mut ground, host) = host(mode.clone());
            let mut seen = seen.clone();
            change(&mut seen, &mut ground);
            let found = judge(&seen, &entered, &ground, &host);
            let finding = found.iter().find(|finding| finding.name == *name).unwrap();
            assert_eq!((finding.good, finding.value.as_str()), (*good, *value), "{mode:?} {name}");
        }
        let (entered, ground, host) = host(none);
        let found = judge(&seen, &entered, &ground, &host);
        assert!(found.iter().all(|finding| finding.name != "proc"), "nothing is mounted where commands can't be run");
    }
}
