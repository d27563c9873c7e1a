//! From a request and a host to a list of steps: hides which mounts, limits and rights a sandbox is made of. Pure.
//!
//! The lists can be read, printed and compared; `mount` and `init` act on them one by one and decide nothing.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

mod chroot;

use crate::error::RunError;
use crate::ground::OverlayApi;
use crate::host::{Devices, Host, SystemFiles};
use crate::mode::Mode;
use crate::network::{self, Uplink};
use crate::spec::{MountSource, Network, Recorder, Resource, RootFs, RunSpec, Security, Streams};

/// Everything that the supervisor has to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// Namespaces that the supervisor makes for itself and the command (pid namespaces are always made).
    pub(crate) namespaces: Vec<Namespace>,
    /// Nothing is mounted: the root directory is changed in place and has to be put in order again afterwards, and processes are
    /// found by looking for them.
    pub(crate) in_place: bool,
    /// Done by the supervisor, before the command's process exists.
    pub(crate) outside: Vec<Step>,
    /// Done by the command's process, before it becomes the command.
    pub(crate) inside: Vec<Step>,
    /// What that process becomes.
    pub(crate) command: Command,
    /// How its network is connected, where it has one of its own.
    pub(crate) uplink: Option<Uplink>,
}

/// A kind of namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Namespace {
    Mount,
    Ipc,
    Uts,
    Net,
}

/// The command, with the rights and limits it gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Command {
    pub(crate) args: Vec<OsString>,
    pub(crate) env: Vec<(OsString, OsString)>,
    pub(crate) cwd: OsString,
    pub(crate) user: String,
    /// Bit mask of the capabilities that stay, and that a root user holds.
    pub(crate) capabilities: u64,
    pub(crate) no_new_privileges: bool,
    /// Whether only the system calls of the list may be made.
    pub(crate) filtered: bool,
    /// How owners are written down that the kernel can't hold.
    pub(crate) recorder: Option<Recorder>,
    pub(crate) streams: Streams,
    /// Resource, soft and hard limit, in the order in which they are set.
    pub(crate) limits: Vec<(Resource, Option<u64>, Option<u64>)>,
    /// Where no control group counts processes: how many the user may have, unless `limits` says it.
    pub(crate) processes: Option<u64>,
}

/// Attributes of a mount.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attributes {
    pub(crate) readonly: bool,
    pub(crate) nosuid: bool,
    pub(crate) nodev: bool,
    pub(crate) noexec: bool,
}

const PLAIN: Attributes = Attributes { readonly: false, nosuid: false, nodev: false, noexec: false };
const NODEV: Attributes = Attributes { nodev: true, ..PLAIN };
const INERT: Attributes = Attributes { readonly: false, nosuid: true, nodev: true, noexec: true };
const INERT_READONLY: Attributes = Attributes { readonly: true, ..INERT };

/// A file system that comes from no disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Virtual {
    /// The kernel's name for it.
    pub(crate) kind: String,
    /// Options, in the order in which they are given; one without a value is a flag.
    pub(crate) options: Vec<(String, String)>,
    pub(crate) attributes: Attributes,
}

/// An overlay of directories.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Overlay {
    /// Top first.
    pub(crate) lowers: Vec<OsString>,
    /// Upper and work directory.
    pub(crate) upper: Option<(OsString, OsString)>,
    pub(crate) api: OverlayApi,
    pub(crate) user_xattr: bool,
    pub(crate) volatile: bool,
}

/// What a mount shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Source {
    Virtual(Virtual),
    Overlay(Overlay),
    /// A directory or file of the host.
    Host(OsString),
    /// A file of the scratch file system.
    Scratch(String),
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Step {
    /// Keep mounts made on the host from appearing in the sandbox and the other way round.
    KeepMountsPrivate,
    /// Name the host.
    Hostname(String),
    /// Switch the loopback interface on.
    LoopbackUp,
    /// Mount a memory file system over `at`, for what the sandbox needs and no layer may hold.
    Scratch { at: OsString },
    /// Write a file into it.
    ScratchFile { name: String, data: Vec<u8>, mode: u32, uid: u32, gid: u32 },
    /// Mount the root file system; `layer` is the directory that takes its changes.
    Root { source: Source, layer: OsString },
    /// Make a directory for a later mount.
    MountPoint { target: String },
    /// Mount on one of the standard places, which has to be a real directory.
    Standard { source: Virtual, target: String },
    /// Mount on a place where links are followed inside the root.
    Mount { source: Source, subpath: OsString, attributes: Attributes, target: OsString },
    /// Mount kiln's own file system of that place there, with all that is mounted below it.
    Outer { path: String, attributes: Attributes },
    /// Make a character device.
    Device { path: String, major: u32, minor: u32 },
    /// Mount kiln's own character device of that path; one that is not `required` may be missing.
    BoundDevice { path: String, major: u32, minor: u32, required: bool },
    /// Make a directory in a file system of kiln's.
    Directory { path: String },
    /// Make the command's terminal, which is also to be seen at `console`.
    Terminal { console: String },
    /// Make a symbolic link in a file system of kiln's.
    Link { path: String, to: String },
    /// Hide what is there, if anything is.
    Mask { path: String },
    /// Make what is there read-only, if anything is.
    ReadOnly { path: String },
    /// Let nothing of the root file system be changed.
    ReadOnlyRoot,
    /// Make the root file system the root and let go of the host's.
    EnterRoot,
    /// Without mounts: take this directory for the root file system, and another one for what has to give way in it.
    OpenRoot { root: OsString, aside: OsString },
    /// Put an empty directory in the place of one.
    Cover { path: String, mode: u32 },
    /// Put something in a place where links are followed inside the root.
    Put { put: Put, target: OsString },
    /// Make a character device, or what comes near it where that is refused.
    Node { path: String, major: u32, minor: u32 },
    /// Copy a file of kiln's own `/proc`, if there is one, into the root.
    HostFile { path: String },
    /// Make the root file system the root of this process.
    ChangeRoot,
}

/// What stands in for a mount where none can be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Put {
    /// A file, on the disk.
    File { data: Vec<u8>, mode: u32, uid: u32, gid: u32 },
    /// An empty directory with the mode of what it covers, or 1777.
    Folder,
    /// A directory or file of the host, by renaming it there and back.
    Moved { from: OsString, subpath: OsString },
    /// A symbolic link.
    Link { to: OsString },
}

/// Docker's default capabilities: CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE NET_RAW SYS_CHROOT
/// MKNOD AUDIT_WRITE SETFCAP.
const CAPABILITIES: u64 = 0xa804_25fb;
/// Of these, what Podman leaves out: NET_RAW (13), MKNOD (27), AUDIT_WRITE (29).
const NOT_HARDENED: u64 = 1 << 13 | 1 << 27 | 1 << 29;

/// How many lower layers an overlay can have (OVL_MAX_STACK of the kernel).
const MOST_LAYERS: usize = 500;

/// containerd's list and Podman's, which adds the last three lines.
const MASKED_PROC: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/interrupts",
];
const MASKED_SYS: &[&str] = &["/sys/firmware", "/sys/devices/virtual/powercap", "/sys/fs/selinux"];
const READONLY_PROC: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

const DEVICES: &[(&str, u32, u32)] = &[
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// What [`Security::Insecure`] adds (BuildKit's `security_linux.go`); those that the machine hasn't can't be opened.
const MORE_DEVICES: &[(&str, u32, u32)] = &[
    ("/dev/kmsg", 1, 11),
    ("/dev/cuse", 10, 203),
    ("/dev/fuse", 10, 229),
    ("/dev/kvm", 10, 232),
    ("/dev/loop-control", 10, 237),
    ("/dev/net/tun", 10, 200),
];
const LOOP_DEVICES: u32 = 8;

const DEVICE_LINKS: &[(&str, &str)] = &[
    ("/dev/ptmx", "pts/ptmx"),
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
];

/// Decides how `spec` runs on `host`.
///
/// # Errors
/// When the host has no way to make a sandbox, or the request makes no sense anywhere.
pub(crate) fn plan(spec: &RunSpec, host: &Host) -> Result<Plan, RunError> {
    match &host.mode {
        Mode::Root | Mode::SubIds | Mode::OneId | Mode::Nested => {}
        Mode::Chroot => {
            check(spec)?;
            return chroot::plan(spec, host);
        }
        Mode::Unavailable { reason, remedy } => {
            return Err(RunError::Unavailable { reason: reason.clone(), remedy: remedy.clone() });
        }
    }
    check(spec)?;
    let mut namespaces = vec![Namespace::Mount, Namespace::Ipc, Namespace::Uts];
    let mut outside = vec![Step::KeepMountsPrivate, Step::Hostname(spec.hostname.clone())];
    let (resolv, forwards) = match spec.network {
        Network::Host => (host.resolv_conf.clone(), false),
        Network::None => (Vec::new(), false),
        Network::Private => network::resolver(&host.resolv_conf, &host.upstream_resolv_conf),
    };
    if spec.network != Network::Host {
        namespaces.push(Namespace::Net);
        outside.push(Step::LoopbackUp);
    }
    let uplink = match (spec.network, &host.pasta) {
        (Network::Host | Network::None, _) => None,
        (Network::Private, _) if !host.own_network => {
            let reason = "no network namespace can be made, which a private network is".to_owned();
            return Err(RunError::Unavailable { reason, remedy: "use the host's network, `--network=host`".to_owned() });
        }
        (Network::Private, None) => {
            let reason = "a private network needs the program `pasta`, which is not installed".to_owned();
            let remedy =
                "install it (Debian and Ubuntu: `apt install passt`), or use the host's network, `--network=host`".to_owned();
            return Err(RunError::Unavailable { reason, remedy });
        }
        (Network::Private, Some(program)) => {
            let to_host = spec.extra_hosts.iter().any(|(_, address)| address == HOST_GATEWAY);
            Some(network::uplink(program, to_host, forwards))
        }
    };
    outside.extend(root(spec, host));
    outside.extend(devices(spec, host));
    outside.extend(system(spec, host));
    outside.extend(names(spec, resolv));
    for (index, mount) in spec.mounts.iter().enumerate() {
        outside.extend(extra_mount(index, mount, host));
    }
    // Mounted by the command's process, for a proc file system shows the pid namespace of who mounts it; the mount point is made
    // outside, where mount points are written down.
    outside.push(Step::MountPoint { target: "/proc".to_owned() });

    let proc = Virtual { kind: "proc".to_owned(), options: vec![], attributes: INERT };
    let mut inside = match host.proc {
        SystemFiles::Fresh => vec![Step::Standard { source: proc, target: "/proc".to_owned() }],
        SystemFiles::Outer => vec![Step::Outer { path: "/proc".to_owned(), attributes: INERT }],
        SystemFiles::Absent => vec![],
    };
    if spec.security != Security::Insecure && host.proc != SystemFiles::Absent {
        inside.extend(MASKED_PROC.iter().map(|path| Step::Mask { path: (*path).to_owned() }));
        inside.extend(READONLY_PROC.iter().map(|path| Step::ReadOnly { path: (*path).to_owned() }));
    }
    if spec.readonly_root {
        inside.push(Step::ReadOnlyRoot);
    }
    inside.push(Step::EnterRoot);

    Ok(Plan { namespaces, in_place: false, outside, inside, command: command(spec, host), uplink })
}

fn command(spec: &RunSpec, host: &Host) -> Command {
    Command {
        args: spec.args.clone(),
        env: spec.env.clone(),
        cwd: spec.cwd.clone().into_os_string(),
        user: spec.user.clone(),
        capabilities: match spec.security {
            Security::Sandbox => CAPABILITIES,
            Security::Hardened => CAPABILITIES & !NOT_HARDENED,
            Security::Insecure => u64::MAX,
        },
        // Where there is one id a program can't be set to another one's, so that nothing is lost by it.
        no_new_privileges: spec.security == Security::Hardened || spec.recorder.is_some() || host.mode == Mode::OneId,
        filtered: spec.security != Security::Insecure,
        recorder: spec.recorder.clone(),
        streams: spec.streams,
        limits: limits(spec),
        processes: (!host.counts_processes(&spec.group)).then(|| spec.group.pids.unwrap_or(spec.pids)),
    }
}

/// Each resource once, for a hard limit may be lowered but not raised again.
fn limits(spec: &RunSpec) -> Vec<(Resource, Option<u64>, Option<u64>)> {
    let later = |index: usize| spec.limits[index + 1..].iter().any(|later| later.resource == spec.limits[index].resource);
    let last = spec.limits.iter().enumerate().filter(|(index, _)| !later(*index));
    last.map(|(_, limit)| (limit.resource, limit.soft, limit.hard)).collect()
}

/// Refuses what no host can run.
fn check(spec: &RunSpec) -> Result<(), RunError> {
    let invalid = |reason: String| Err(RunError::Invalid { reason });
    if spec.args.is_empty() {
        return invalid("there is no command to run".to_owned());
    }
    let has_nul = |text: &OsStr| text.as_bytes().contains(&0);
    if spec.args.iter().any(|text| has_nul(text)) || spec.env.iter().any(|(name, value)| has_nul(name) || has_nul(value)) {
        return invalid("a zero byte can't be in an argument or an environment variable".to_owned());
    }
    if let Some((name, _)) = spec.env.iter().find(|(name, _)| name.is_empty() || name.as_bytes().contains(&b'=')) {
        return invalid(format!("`{}` can't be the name of an environment variable", name.display()));
    }
    if !spec.cwd.is_absolute() || has_nul(spec.cwd.as_os_str()) {
        return invalid(format!("the working directory `{}` is not an absolute path", spec.cwd.display()));
    }
    if spec.hostname.is_empty()
        || spec.hostname.len() > 64
        || spec.hostname.contains(|c: char| c.is_whitespace() || c.is_control())
    {
        return invalid(format!("`{}` can't be a host name", spec.hostname.escape_debug()));
    }
    if let Some((name, address)) = spec
        .extra_hosts
        .iter()
        .find(|(name, address)| format!("{name}{address}").contains(|c: char| c.is_whitespace() || c.is_control()))
    {
        return invalid(format!("`{}` can't be a line of /etc/hosts", format!("{name}:{address}").escape_debug()));
    }
    if let Some(limit) = spec.limits.iter().find(|limit| limit.hard.is_some_and(|hard| limit.soft.is_none_or(|soft| soft > hard)))
    {
        return invalid(format!("the soft limit of `{}` is above its hard limit", limit.resource.name()));
    }
    let terminal = matches!(spec.streams, Streams::Terminal { .. });
    for mount in &spec.mounts {
        let target = &mount.target;
        if terminal && ["/dev", "/dev/pts", "/dev/console"].iter().any(|taken| clean(target) == Path::new(taken)) {
            return invalid(format!("cannot mount on `{}`: the command's terminal is there", target.display()));
        }
        let plain = clean(target);
        if !target.is_absolute() || plain == Path::new("/") || has_nul(target.as_os_str()) {
            return invalid(format!("cannot mount on `{}`: it has to be an absolute path below `/`", target.display()));
        }
        if plain.starts_with("/proc") {
            return invalid(format!("cannot mount on `{}`: nothing can be mounted below `/proc`", target.display()));
        }
        match &mount.source {
            MountSource::Overlay { lowers, .. } if lowers.is_empty() => {
                return invalid(format!("the mount on `{}` has no layers", target.display()));
            }
            MountSource::Tmpfs { .. } | MountSource::File { .. } if !is_whole(&mount.subpath) => {
                return invalid(format!("the mount on `{}` can't have a path below its source", target.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// `path` without `.` and `..`; only for looking at, links not considered.
fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::ParentDir => drop(clean.pop()),
            Component::Normal(name) => clean.push(name),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}

fn is_whole(subpath: &Path) -> bool {
    clean(subpath) == Path::new("/")
}

fn root(spec: &RunSpec, host: &Host) -> Vec<Step> {
    let (source, layer) = match &spec.root {
        RootFs::Overlay { lowers, upper, work } => {
            let mut overlay = overlay(lowers, Some((upper, work)), host);
            overlay
                .lowers
                .extend(host.mount_points.iter().filter(|_| lowers.len() < MOST_LAYERS).map(|path| path.clone().into()));
            (Source::Overlay(overlay), upper.clone().into_os_string())
        }
        RootFs::Dir(path) => (Source::Host(path.clone().into_os_string()), path.clone().into_os_string()),
    };
    // Any directory would do; this one surely exists, and the mount over it is seen by nobody else.
    vec![Step::Scratch { at: layer.clone() }, Step::Root { source, layer }]
}

fn overlay(lowers: &[PathBuf], upper: Option<(&PathBuf, &PathBuf)>, host: &Host) -> Overlay {
    Overlay {
        lowers: lowers.iter().map(|lower| lower.clone().into_os_string()).collect(),
        upper: upper.map(|(upper, work)| (upper.clone().into_os_string(), work.clone().into_os_string())),
        api: host.ground.overlay,
        user_xattr: host.ground.user_xattr,
        volatile: host.ground.volatile,
    }
}

fn devices(spec: &RunSpec, host: &Host) -> Vec<Step> {
    // 0755: in a sticky directory the kernel refuses to open a device of another owner with O_CREAT, as `>` does
    // (fs.protected_regular).
    let dev = tmpfs(&[("mode", "755".to_owned()), ("size", (64 << 20).to_string())], Attributes { nosuid: true, ..PLAIN });
    let pts = Virtual {
        kind: "devpts".to_owned(),
        options: [("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5")]
            .iter()
            // A group that has no id here is refused (EINVAL).
            .filter(|(key, _)| *key != "gid" || host.terminal_group)
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
        attributes: Attributes { nodev: false, ..INERT },
    };
    let shm = tmpfs(&[("mode", "1777".to_owned()), ("size", spec.shm_size.to_string())], INERT);
    let mqueue = Virtual { kind: "mqueue".to_owned(), options: vec![], attributes: INERT };
    let mut steps = vec![Step::Standard { source: dev, target: "/dev".to_owned() }];
    let mut known = DEVICES.to_vec();
    if spec.security == Security::Insecure {
        steps.push(Step::Directory { path: "/dev/net".to_owned() });
        known.extend(MORE_DEVICES);
    }
    let device = |path: String, major, minor| match host.devices {
        Devices::Made => Step::Device { path, major, minor },
        Devices::Bound => {
            let required = DEVICES.iter().any(|(known, ..)| *known == path);
            Step::BoundDevice { path, major, minor, required }
        }
    };
    steps.extend(known.into_iter().map(|(path, major, minor)| device(path.to_owned(), major, minor)));
    if spec.security == Security::Insecure {
        steps.extend((0..LOOP_DEVICES).map(|minor| device(format!("/dev/loop{minor}"), 7, minor)));
    }
    steps.extend(DEVICE_LINKS.iter().map(|(path, to)| Step::Link { path: (*path).to_owned(), to: (*to).to_owned() }));
    for (path, source) in [("/dev/pts", pts), ("/dev/shm", shm), ("/dev/mqueue", mqueue)] {
        steps.push(Step::Directory { path: path.to_owned() });
        // A mount of the Dockerfile's takes the place; two on top of each other would both be in /proc/mounts.
        if spec.mounts.iter().any(|mount| mount.target == Path::new(path)) {
            continue;
        }
        steps.push(Step::Standard { source, target: path.to_owned() });
    }
    if matches!(spec.streams, Streams::Terminal { .. }) {
        steps.push(Step::Terminal { console: "/dev/console".to_owned() });
    }
    steps
}

fn tmpfs(options: &[(&str, String)], attributes: Attributes) -> Virtual {
    let options = options.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    Virtual { kind: "tmpfs".to_owned(), options, attributes }
}

fn system(spec: &RunSpec, host: &Host) -> Vec<Step> {
    let insecure = spec.security == Security::Insecure;
    let attributes = if insecure { INERT } else { INERT_READONLY };
    let sys = Virtual { kind: "sysfs".to_owned(), options: vec![], attributes };
    let own = host.own_sys && spec.network != Network::Host;
    let mut steps = match if own { SystemFiles::Fresh } else { host.sys } {
        // It shows the devices of a network, and whoever mounts it has to own that.
        SystemFiles::Fresh => vec![Step::Standard { source: sys, target: "/sys".to_owned() }],
        SystemFiles::Outer => vec![Step::Outer { path: "/sys".to_owned(), attributes }],
        SystemFiles::Absent => return vec![Step::MountPoint { target: "/sys".to_owned() }],
    };
    if insecure {
        return steps;
    }
    // The group tree itself is not shown: a build has no use for it, and a mount that isn't there can't be made writable.
    steps.push(Step::Mask { path: "/sys/fs/cgroup".to_owned() });
    let masked = MASKED_SYS.iter().copied().chain(host.masked.iter().map(String::as_str));
    steps.extend(masked.map(|path| Step::Mask { path: path.to_owned() }));
    steps
}

/// What stands for an address at which the host is reached (Docker's word).
const HOST_GATEWAY: &str = "host-gateway";

fn hosts(spec: &RunSpec) -> Vec<u8> {
    let mut hosts = format!("127.0.0.1\tlocalhost {}\n::1\tlocalhost ip6-localhost ip6-loopback\n", spec.hostname);
    for (name, address) in &spec.extra_hosts {
        let address = match (address.as_str(), spec.network) {
            (HOST_GATEWAY, Network::Private) => network::GATEWAY,
            (HOST_GATEWAY, _) => "127.0.0.1",
            (address, _) => address,
        };
        hosts.push_str(&format!("{address}\t{name}\n"));
    }
    hosts.into_bytes()
}

fn names(spec: &RunSpec, resolv: Vec<u8>) -> Vec<Step> {
    [("resolv.conf", resolv), ("hosts", hosts(spec))]
        .into_iter()
        .flat_map(|(name, data)| {
            [
                Step::ScratchFile { name: name.to_owned(), data, mode: 0o644, uid: 0, gid: 0 },
                Step::Mount {
                    source: Source::Scratch(name.to_owned()),
                    subpath: OsString::new(),
                    attributes: Attributes { readonly: true, ..NODEV },
                    target: format!("/etc/{name}").into(),
                },
            ]
        })
        .collect()
}

fn extra_mount(index: usize, mount: &crate::spec::Mount, host: &Host) -> Vec<Step> {
    let mut steps = Vec::new();
    let source = match &mount.source {
        MountSource::Bind { path } => Source::Host(path.clone().into_os_string()),
        MountSource::Overlay { lowers, upper } => {
            Source::Overlay(overlay(lowers, upper.as_ref().map(|upper| (&upper.upper, &upper.work)), host))
        }
        MountSource::Tmpfs { size } => {
            let mut options = vec![("mode", "1777".to_owned())];
            options.extend(size.map(|size| ("size", size.to_string())));
            Source::Virtual(tmpfs(&options, Attributes { nosuid: true, ..PLAIN }))
        }
        MountSource::File { data, mode, uid, gid } => {
            let name = format!("file-{index}");
            steps.push(Step::ScratchFile { name: name.clone(), data: data.clone(), mode: *mode, uid: *uid, gid: *gid });
            Source::Scratch(name)
        }
    };
    steps.push(Step::Mount {
        source,
        subpath: if is_whole(&mount.subpath) { OsString::new() } else { mount.subpath.clone().into_os_string() },
        attributes: Attributes { readonly: mount.readonly, ..NODEV },
        target: mount.target.clone().into_os_string(),
    });
    steps
}

/// What the step does, in words that fit after "could not".
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::KeepMountsPrivate => f.write_str("make mounts private"),
            Step::Hostname(name) => write!(f, "set the host name `{name}`"),
            Step::LoopbackUp => f.write_str("switch the loopback interface on"),
            Step::Scratch { at } => write!(f, "mount scratch space on `{}`", at.display()),
            Step::ScratchFile { name, mode, uid: 0, gid: 0, .. } => write!(f, "write scratch file `{name}` ({mode:o})"),
            Step::ScratchFile { name, mode, uid, gid, .. } => write!(f, "write scratch file `{name}` ({mode:o} {uid}:{gid})"),
            Step::Root { source, .. } => write!(f, "mount {source} as the root file system"),
            Step::MountPoint { target } => write!(f, "make the mount point `{target}`"),
            Step::Standard { source, target } => write!(f, "mount {source} on `{target}`"),
            Step::Mount { source, subpath, attributes, target } => {
                write!(f, "mount {source}")?;
                if !subpath.is_empty() {
                    write!(f, " at `{}`", subpath.display())?;
                }
                write!(f, "{attributes} on `{}`", target.display())
            }
            Step::Outer { path, attributes } => write!(f, "mount `{path}` of the host, and all below it{attributes}"),
            Step::BoundDevice { path, major, minor, .. } => write!(f, "mount the device `{path}` of the host ({major}:{minor})"),
            Step::Device { path, major, minor } => write!(f, "make the device `{path}` ({major}:{minor})"),
            Step::Directory { path } => write!(f, "make the directory `{path}`"),
            Step::Link { path, to } => write!(f, "make the link `{path}` to `{to}`"),
            Step::Mask { path } => write!(f, "mask `{path}`"),
            Step::ReadOnly { path } => write!(f, "make `{path}` read-only"),
            Step::Terminal { console } => write!(f, "make a terminal, also as `{console}`"),
            Step::ReadOnlyRoot => f.write_str("make the root file system read-only"),
            Step::EnterRoot => f.write_str("enter the root file system"),
            Step::OpenRoot { root, .. } => write!(f, "open `{}` as the root file system", root.display()),
            Step::Cover { path, mode } => write!(f, "put an empty directory on `{path}` ({mode:o})"),
            Step::Put { put, target } => write!(f, "put {put} on `{}`", target.display()),
            Step::Node { path, major, minor } => write!(f, "make the device `{path}` ({major}:{minor}) if possible"),
            Step::HostFile { path } => write!(f, "copy `{path}` of the host"),
            Step::ChangeRoot => f.write_str("change the root directory"),
        }
    }
}

impl fmt::Display for Put {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Put::File { mode, uid: 0, gid: 0, .. } => write!(f, "a file ({mode:o})"),
            Put::File { mode, uid, gid, .. } => write!(f, "a file ({mode:o} {uid}:{gid})"),
            Put::Folder => f.write_str("an empty directory"),
            Put::Moved { from, subpath } if subpath.is_empty() => write!(f, "`{}` of the host", from.display()),
            Put::Moved { from, subpath } => write!(f, "`{}` of `{}` of the host", subpath.display(), from.display()),
            Put::Link { to } => write!(f, "a link to `{}`", to.display()),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Virtual(source) => source.fmt(f),
            Source::Overlay(overlay) => {
                let layers = overlay.lowers.len();
                write!(f, "an overlay of {layers} {}", if layers == 1 { "layer" } else { "layers" })?;
                match &overlay.upper {
                    Some((upper, _)) => write!(f, " and `{}`", upper.display()),
                    None => Ok(()),
                }
            }
            Source::Host(path) => write!(f, "`{}` of the host", path.display()),
            Source::Scratch(name) => write!(f, "scratch file `{name}`"),
        }
    }
}

impl fmt::Display for Virtual {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.kind)?;
        for (key, value) in &self.options {
            write!(f, " {key}={value}")?;
        }
        self.attributes.fmt(f)
    }
}

impl fmt::Display for Attributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [(self.readonly, "ro"), (self.nosuid, "nosuid"), (self.nodev, "nodev"), (self.noexec, "noexec")];
        for name in names.iter().filter(|(set, _)| *set).map(|(_, name)| name) {
            write!(f, " {name}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
