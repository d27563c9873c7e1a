//! Layouts, on paper.

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
    let freezer = one(true, &["freezer"], "/sys/fs/cgroup/freezer", "/sys/fs/cgroup/freezer/y");
    let empty = one(false, &[], "/sys/fs/cgroup/unified", "/sys/fs/cgroup/unified");
    let rows: &[(&str, &str, &str, &[Hierarchy])] = &[
        ("freezer", "2:freezer:/y\n", "30 25 0:26 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n", &[freezer]),
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
fn groups_beside_the_own_one() {
    let limiting = ["/c/user/app", "/c/user"];
    let rows = [
        ("a scope in a slice", "/c/user/app/shell.scope", "/c/user/app"),
        ("the one that limits", "/c/user/app", "/c/user/app"),
        ("nothing that limits above", "/c/other/x", "/c/other/x"),
        ("never above the mount", "/c", "/c"),
    ];
    for (what, own, expected) in rows {
        let found = nearest_that_limits(Path::new("/c"), Path::new(own), &|path| limiting.iter().any(|l| path == Path::new(l)));
        assert_eq!(found, Path::new(expected), "{what}");
    }
}
