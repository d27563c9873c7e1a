//! The list of steps where nothing can be mounted: hides what stands in for each mount. Pure.
//!
//! The root directory is changed in place, and everything of kiln's is put into it and taken away again: what has to give way is
//! renamed aside and back, with its times, so that none of it reaches the layer.

use std::ffi::OsString;
use std::path::PathBuf;

use super::{DEVICE_LINKS, DEVICES, Plan, Put, Step, command, hosts, is_whole};
use crate::error::RunError;
use crate::host::Host;
use crate::spec::{Mount, MountSource, Network, RootFs, RunSpec, Streams};

/// What programs read of `/proc` that is the same for every process. There's nothing of the processes themselves.
const PROC_FILES: &[&str] = &[
    "cpuinfo",
    "filesystems",
    "loadavg",
    "meminfo",
    "stat",
    "uptime",
    "version",
    "sys/fs/file-max",
    "sys/kernel/cap_last_cap",
    "sys/kernel/hostname",
    "sys/kernel/ngroups_max",
    "sys/kernel/osrelease",
    "sys/kernel/ostype",
    "sys/kernel/pid_max",
    "sys/kernel/random/boot_id",
    "sys/kernel/version",
    "sys/net/core/somaxconn",
    "sys/vm/overcommit_memory",
];

/// What df(1) and the like find in the list of mounts.
const MOUNTS: &[u8] = b"none / rootfs rw 0 0\n";

pub(super) fn plan(spec: &RunSpec, host: &Host) -> Result<Plan, RunError> {
    let (RootFs::Dir(root), Some(aside)) = (&spec.root, &spec.aside) else {
        return Err(RunError::Invalid {
            reason: "without mounts a root file system has to be a directory of its own".to_owned(),
        });
    };
    if spec.network != Network::Host {
        return Err(RunError::Unavailable {
            reason: "in the mode `chroot` a command can't be kept from the network, for that takes a namespace".to_owned(),
            remedy: "use `--network=host`, or build where kiln can make namespaces".to_owned(),
        });
    }
    if matches!(spec.streams, Streams::Terminal { .. }) {
        return Err(RunError::Unavailable {
            reason: "in the mode `chroot` a command can't have a terminal of its own".to_owned(),
            remedy: "leave `--tty` away, or run it where kiln can make namespaces".to_owned(),
        });
    }
    let cover = |path: &str, mode| Step::Cover { path: path.to_owned(), mode };
    let put = |target: &str, put| Step::Put { put, target: target.into() };
    let mut outside = vec![Step::OpenRoot { root: root.clone().into(), aside: aside.clone().into() }];
    outside.push(cover("/proc", 0o755));
    outside.extend(PROC_FILES.iter().map(|file| Step::HostFile { path: format!("/proc/{file}") }));
    outside.push(Step::Directory { path: "/proc/self".to_owned() });
    outside.push(put("/proc/self/mounts", Put::File { data: MOUNTS.to_vec(), mode: 0o444, uid: 0, gid: 0 }));
    outside.push(Step::Link { path: "/proc/mounts".to_owned(), to: "self/mounts".to_owned() });
    outside.push(cover("/sys", 0o755));
    outside.push(cover("/dev", 0o755));
    let node = |(path, major, minor): &(&str, u32, u32)| Step::Node { path: (*path).to_owned(), major: *major, minor: *minor };
    outside.extend(DEVICES.iter().map(node));
    outside.extend(DEVICE_LINKS.iter().map(|(path, to)| Step::Link { path: (*path).to_owned(), to: (*to).to_owned() }));
    outside.extend([cover("/dev/pts", 0o755), cover("/dev/shm", 0o1777), cover("/dev/mqueue", 0o1777)]);
    for (name, data) in [("resolv.conf", host.resolv_conf.clone()), ("hosts", hosts(spec))] {
        outside.push(put(&format!("/etc/{name}"), Put::File { data, mode: 0o644, uid: 0, gid: 0 }));
    }
    let mut moved: Vec<(&Mount, PathBuf)> = Vec::new();
    for mount in &spec.mounts {
        outside.push(extra_mount(mount, &mut moved)?);
    }
    Ok(Plan {
        namespaces: vec![],
        in_place: true,
        outside,
        inside: vec![Step::ChangeRoot],
        command: command(spec, host),
        uplink: None,
    })
}

fn extra_mount<'a>(mount: &'a Mount, moved: &mut Vec<(&'a Mount, PathBuf)>) -> Result<Step, RunError> {
    let put = match &mount.source {
        MountSource::Bind { path } => {
            let same = |other: &Mount| other.source == mount.source && other.subpath == mount.subpath;
            match moved.iter().find(|(other, _)| same(other)) {
                // A directory can be in one place.
                Some((_, first)) => Put::Link { to: first.clone().into() },
                None => {
                    moved.push((mount, mount.target.clone()));
                    let subpath = if is_whole(&mount.subpath) { OsString::new() } else { mount.subpath.clone().into() };
                    Put::Moved { from: path.clone().into(), subpath }
                }
            }
        }
        MountSource::Overlay { .. } => {
            let reason = format!("the mount on `{}` is an overlay, and nothing can be mounted here", mount.target.display());
            return Err(RunError::Invalid { reason });
        }
        MountSource::Tmpfs { .. } => Put::Folder,
        MountSource::File { data, mode, uid, gid } => Put::File { data: data.clone(), mode: *mode, uid: *uid, gid: *gid },
    };
    Ok(Step::Put { put, target: mount.target.clone().into_os_string() })
}
