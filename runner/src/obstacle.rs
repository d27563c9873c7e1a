//! Hides how a kernel's or a container's refusal is traced to the setting that caused it.

use std::fs;
use std::io;
use std::path::Path;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// At what an attempt to make a user namespace ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Stage {
    /// Making the namespace.
    Unshare,
    /// Giving it ids.
    Map,
    /// Mounting something in it.
    Mount,
}

/// Why it ended there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Obstacle {
    pub(crate) stage: Stage,
    pub(crate) errno: i32,
}

/// What the kernel says of itself and of this process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// `user.max_user_namespaces`; `None` where the kernel has no user namespaces.
    pub(crate) most_namespaces: Option<u64>,
    /// `kernel.unprivileged_userns_clone`, which Debian's kernels had.
    pub(crate) may_clone: Option<bool>,
    /// `kernel.apparmor_restrict_unprivileged_userns`, of Ubuntu since 23.10.
    pub(crate) apparmor_restricts: bool,
    /// Whether somebody filters this process's system calls.
    pub(crate) filtered: bool,
    /// Whether this process runs in a container.
    pub(crate) in_container: bool,
    /// Whether the user is root.
    pub(crate) is_root: bool,
    /// The path of kiln's program.
    pub(crate) program: String,
}

impl Facts {
    pub(crate) fn read(in_container: bool) -> Facts {
        let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        Facts {
            most_namespaces: number("/proc/sys/user/max_user_namespaces"),
            may_clone: number("/proc/sys/kernel/unprivileged_userns_clone").map(|value| value != 0),
            apparmor_restricts: number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == Some(1),
            filtered: field("Seccomp:") == Some("2"),
            in_container: in_container || engine_files(),
            is_root: rustix::process::geteuid().is_root(),
            program: fs::read_link("/proc/self/exe").map(|path| path.display().to_string()).unwrap_or_else(|_| "kiln".to_owned()),
        }
    }
}

/// The files that container engines leave.
pub(crate) fn engine_files() -> bool {
    ["/.dockerenv", "/run/.containerenv"].iter().any(|path| Path::new(path).exists())
}

/// What is in the way, and what to change, in words.
pub(crate) fn explain(obstacle: &Obstacle, facts: &Facts) -> (String, String) {
    let errno = Errno::from_raw_os_error(obstacle.errno);
    let what = match obstacle.stage {
        Stage::Unshare => "making a user namespace",
        Stage::Map => "giving ids to a user namespace",
        Stage::Mount => "mounting in a user namespace",
    };
    let refused = |by: &str| format!("{what} is refused {by} ({})", io::Error::from(errno));
    let set = |name: &str, value: &str| format!("have root run `sysctl -w {name}={value}`");
    let chroot = if facts.is_root { ", or use `--isolation=chroot`, which is no boundary" } else { "" };
    match (errno, facts) {
        (Errno::NOSYS | Errno::INVAL, Facts { most_namespaces: None, .. }) => (
            "this kernel has no user namespaces".to_owned(),
            format!("use a kernel with CONFIG_USER_NS, or run kiln as root{chroot}"),
        ),
        (_, Facts { most_namespaces: Some(0), .. }) => {
            (refused("by `user.max_user_namespaces`, which is 0"), set("user.max_user_namespaces", "15000"))
        }
        (Errno::NOSPC, Facts { most_namespaces: Some(most), .. }) => (
            refused(&format!("by `user.max_user_namespaces`, of which all {most} are in use")),
            set("user.max_user_namespaces", &most.saturating_mul(2).to_string()),
        ),
        (Errno::USERS, _) => (refused("as there are too many inside one another"), "run kiln outside of some of them".to_owned()),
        (_, Facts { may_clone: Some(false), is_root: false, .. }) => {
            (refused("by `kernel.unprivileged_userns_clone`, which is 0"), set("kernel.unprivileged_userns_clone", "1"))
        }
        (_, Facts { apparmor_restricts: true, is_root: false, program, .. }) => (
            refused("by AppArmor (`kernel.apparmor_restrict_unprivileged_userns` is 1)"),
            format!(
                "have root allow it to kiln: `echo 'profile kiln {program} flags=(unconfined) {{ userns, }}' > /etc/apparmor.d/kiln && \
                 apparmor_parser -r /etc/apparmor.d/kiln`, or to all: `sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`"
            ),
        ),
        (_, Facts { filtered: true, in_container: true, .. }) => (
            refused("by the container's seccomp profile"),
            format!(
                "start the container with a profile that allows `unshare`, `mount` and their relatives in user namespaces (docker: \
                 `--security-opt seccomp=unconfined --security-opt apparmor=unconfined`; Kubernetes: `seccompProfile: \
                 {{type: Unconfined}}`){chroot}"
            ),
        ),
        (_, Facts { filtered: true, .. }) => (
            refused("by a seccomp filter on this process"),
            format!("start kiln without it (systemd: `RestrictNamespaces=no` and no `SystemCallFilter=`){chroot}"),
        ),
        (_, Facts { in_container: true, .. }) => (
            refused("in this container"),
            format!("start the container with `--security-opt apparmor=unconfined` (or `--security-opt label=disable`){chroot}"),
        ),
        _ => (
            refused("by a security module or because kiln runs in a chroot"),
            format!("see the kernel's log (`dmesg`) for who refused it, or run kiln as root{chroot}"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_named() {
        let plain = Facts { most_namespaces: Some(100), program: "/usr/bin/kiln".to_owned(), ..Facts::default() };
        let with = |change: fn(&mut Facts)| {
            let mut facts = plain.clone();
            change(&mut facts);
            facts
        };
        let rows: &[(Stage, Errno, Facts, &str, &str)] = &[
            (Stage::Unshare, Errno::NOSPC, with(|f| f.most_namespaces = Some(0)), "max_user_namespaces`, which is 0", "=15000"),
            (Stage::Unshare, Errno::NOSPC, plain.clone(), "all 100 are in use", "user.max_user_namespaces=200"),
            (Stage::Unshare, Errno::INVAL, with(|f| f.most_namespaces = None), "has no user namespaces", "CONFIG_USER_NS"),
            (Stage::Unshare, Errno::PERM, with(|f| f.may_clone = Some(false)), "unprivileged_userns_clone", "userns_clone=1"),
            (Stage::Unshare, Errno::PERM, with(|f| f.may_clone = Some(true)), "a security module", "dmesg"),
            (
                Stage::Mount,
                Errno::ACCESS,
                with(|f| f.apparmor_restricts = true),
                "mounting in a user",
                "profile kiln /usr/bin/kiln",
            ),
            (
                Stage::Unshare,
                Errno::PERM,
                with(|f| (f.filtered, f.in_container) = (true, true)),
                "container's seccomp",
                "seccomp=unconfined",
            ),
            (
                Stage::Unshare,
                Errno::PERM,
                with(|f| (f.filtered, f.in_container, f.is_root) = (true, true, true)),
                "container's seccomp",
                "--isolation=chroot",
            ),
            (Stage::Unshare, Errno::PERM, with(|f| f.filtered = true), "a seccomp filter on this process", "RestrictNamespaces"),
            (Stage::Mount, Errno::ACCESS, with(|f| f.in_container = true), "in this container", "apparmor=unconfined"),
            (Stage::Unshare, Errno::USERS, plain.clone(), "too many", "outside of some"),
            (Stage::Map, Errno::PERM, plain.clone(), "giving ids", "dmesg"),
        ];
        for (stage, errno, facts, reason, remedy) in rows {
            let (said, advice) = explain(&Obstacle { stage: *stage, errno: errno.raw_os_error() }, facts);
            assert!(said.contains(reason), "{said}: {reason}");
            assert!(advice.contains(remedy), "{advice}: {remedy}");
        }
    }
}
