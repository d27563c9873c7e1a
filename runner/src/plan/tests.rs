//! Plans, read as text.

use super::*;
use crate::ground::{Ground, Snapshots};
use crate::host::{Devices, SystemFiles};
use crate::idmap::IdMaps;
use crate::spec::{Limit, Mount, OverlayUpper};

/// A host that is none.
fn root_host() -> Host {
    Host {
        mode: Mode::Root,
        ground: Ground {
            snapshots: Snapshots::Overlay,
            overlay: OverlayApi::Descriptors,
            user_xattr: false,
            volatile: true,
            refusal: None,
        },
        proc: SystemFiles::Fresh,
        sys: SystemFiles::Fresh,
        own_sys: true,
        devices: Devices::Made,
        terminal_group: true,
        own_network: true,
        ids: IdMaps::default(),
        resolv_conf: b"nameserver 127.0.0.53\n".to_vec(),
        upstream_resolv_conf: b"nameserver 192.0.2.53\n".to_vec(),
        pasta: Some("/usr/bin/pasta".into()),
        masked: vec!["/sys/devices/system/cpu/cpu0/thermal_throttle".to_owned()],
        group: None,
        mount_points: None,
        program: None,
        huge_pages: true,
    }
}

fn spec() -> RunSpec {
    let root = RootFs::Overlay { lowers: vec!["/s/2".into(), "/s/1".into()], upper: "/s/up".into(), work: "/s/wk".into() };
    RunSpec::new(root, vec!["sh".into()])
}

fn text(plan: &Plan) -> String {
    let list = |steps: &[Step]| steps.iter().map(|step| format!("  {step}\n")).collect::<String>();
    let Command { capabilities, no_new_privileges, .. } = &plan.command;
    format!(
        "{:?}\noutside:\n{}inside:\n{}capabilities {capabilities:x}, no_new_privs {no_new_privileges}\n",
        plan.namespaces,
        list(&plan.outside),
        list(&plan.inside)
    )
}

#[test]
fn ordinary_step_as_root() {
    let expected = "\
[Mount, Ipc, Uts]
outside:
  make mounts private
  set the host name `buildkitsandbox`
  mount scratch space on `/s/up`
  mount an overlay of 2 layers and `/s/up` as the root file system
  mount tmpfs mode=755 size=67108864 nosuid on `/dev`
  make the device `/dev/null` (1:3)
  make the device `/dev/zero` (1:5)
  make the device `/dev/full` (1:7)
  make the device `/dev/random` (1:8)
  make the device `/dev/urandom` (1:9)
  make the device `/dev/tty` (5:0)
  make the link `/dev/ptmx` to `pts/ptmx`
  make the link `/dev/fd` to `/proc/self/fd`
  make the link `/dev/stdin` to `/proc/self/fd/0`
  make the link `/dev/stdout` to `/proc/self/fd/1`
  make the link `/dev/stderr` to `/proc/self/fd/2`
  make the directory `/dev/pts`
  mount devpts ptmxmode=0666 mode=0620 gid=5 nosuid noexec on `/dev/pts`
  make the directory `/dev/shm`
  mount tmpfs mode=1777 size=67108864 nosuid nodev noexec on `/dev/shm`
  make the directory `/dev/mqueue`
  mount mqueue nosuid nodev noexec on `/dev/mqueue`
  mount sysfs ro nosuid nodev noexec on `/sys`
  mask `/sys/fs/cgroup`
  mask `/sys/firmware`
  mask `/sys/devices/virtual/powercap`
  mask `/sys/fs/selinux`
  mask `/sys/devices/system/cpu/cpu0/thermal_throttle`
  write scratch file `resolv.conf` (644)
  mount scratch file `resolv.conf` ro nodev on `/etc/resolv.conf`
  write scratch file `hosts` (644)
  mount scratch file `hosts` ro nodev on `/etc/hosts`
  make the mount point `/proc`
inside:
  mount proc nosuid nodev noexec on `/proc`
  mask `/proc/acpi`
  mask `/proc/asound`
  mask `/proc/kcore`
  mask `/proc/keys`
  mask `/proc/latency_stats`
  mask `/proc/timer_list`
  mask `/proc/timer_stats`
  mask `/proc/sched_debug`
  mask `/proc/scsi`
  mask `/proc/interrupts`
  make `/proc/bus` read-only
  make `/proc/fs` read-only
  make `/proc/irq` read-only
  make `/proc/sys` read-only
  make `/proc/sysrq-trigger` read-only
  enter the root file system
capabilities a80425fb, no_new_privs false
";
    assert_eq!(text(&plan(&spec(), &root_host()).unwrap()), expected);
}

/// The steps that `change` adds or takes away.
fn difference(change: impl FnOnce(&mut RunSpec)) -> Vec<String> {
    let plain = text(&plan(&spec(), &root_host()).unwrap());
    let mut changed = spec();
    change(&mut changed);
    let changed = text(&plan(&changed, &root_host()).unwrap());
    let only = |one: &str, other: &str, sign: char| -> Vec<String> {
        one.lines()
            .filter(|line| !other.lines().any(|other| other == *line))
            .map(|line| format!("{sign} {}", line.trim()))
            .collect()
    };
    [only(&plain, &changed, '-'), only(&changed, &plain, '+')].concat()
}

#[test]
fn no_network() {
    let seen = difference(|spec| spec.network = Network::None);
    assert_eq!(seen, ["- [Mount, Ipc, Uts]", "+ [Mount, Ipc, Uts, Net]", "+ switch the loopback interface on"]);
}

#[test]
fn hardened() {
    let seen = difference(|spec| spec.security = Security::Hardened);
    assert_eq!(seen, ["- capabilities a80425fb, no_new_privs false", "+ capabilities 800405fb, no_new_privs true"]);
}

#[test]
fn a_plain_directory() {
    let seen = difference(|spec| spec.root = RootFs::Dir("/r".into()));
    assert_eq!(
        seen,
        [
            "- mount scratch space on `/s/up`",
            "- mount an overlay of 2 layers and `/s/up` as the root file system",
            "+ mount scratch space on `/r`",
            "+ mount `/r` of the host as the root file system",
        ]
    );
}

#[test]
fn mount_points_below_all_layers() {
    let host = Host { mount_points: Some("/s/points".into()), ..root_host() };
    let lowers = |count: usize| {
        let mut spec = spec();
        let lowers = vec!["/l".into(); count];
        spec.root = RootFs::Overlay { lowers, upper: "/s/up".into(), work: "/s/wk".into() };
        let plan = plan(&spec, &host).unwrap();
        plan.outside.into_iter().find_map(|step| match step {
            Step::Root { source: Source::Overlay(overlay), .. } => Some(overlay.lowers),
            _ => None,
        })
    };
    assert_eq!(lowers(1).unwrap(), ["/l", "/s/points"]);
    assert_eq!(lowers(0).unwrap(), ["/s/points"]);
    assert_eq!(lowers(500).unwrap().len(), 500, "no more than the kernel takes");
}

#[test]
fn extra_mounts() {
    let mount = |target: &str, source, readonly| Mount { target: target.into(), source, subpath: "".into(), readonly };
    let seen = difference(|spec| {
        spec.mounts = vec![
            mount("/c", MountSource::Bind { path: "/host/c".into() }, false),
            Mount {
                subpath: "/a/b".into(),
                ..mount("/ctx", MountSource::Overlay { lowers: vec!["/x".into()], upper: None }, true)
            },
            mount(
                "/rw",
                MountSource::Overlay {
                    lowers: vec!["/x".into()],
                    upper: Some(OverlayUpper { upper: "/u".into(), work: "/w".into() }),
                },
                false,
            ),
            mount("/t", MountSource::Tmpfs { size: Some(4096) }, false),
            mount("/run/secrets/k", MountSource::File { data: b"s".to_vec(), mode: 0o400, uid: 0, gid: 5 }, true),
        ]
    });
    assert_eq!(
        seen,
        [
            "+ mount `/host/c` of the host nodev on `/c`",
            "+ mount an overlay of 1 layer at `/a/b` ro nodev on `/ctx`",
            "+ mount an overlay of 1 layer and `/u` nodev on `/rw`",
            "+ mount tmpfs mode=1777 size=4096 nosuid nodev on `/t`",
            "+ write scratch file `file-4` (400 0:5)",
            "+ mount scratch file `file-4` ro nodev on `/run/secrets/k`",
        ]
    );
}

#[test]
fn insecure() {
    let seen = difference(|spec| spec.security = Security::Insecure);
    let masked = |line: &&String| !line.starts_with("- mask") && !line.starts_with("- make `/proc");
    let rest: Vec<&str> = seen.iter().filter(masked).map(String::as_str).collect();
    let mut expected = vec![
        "- mount sysfs ro nosuid nodev noexec on `/sys`",
        "- capabilities a80425fb, no_new_privs false",
        "+ make the directory `/dev/net`",
        "+ make the device `/dev/kmsg` (1:11)",
        "+ make the device `/dev/cuse` (10:203)",
        "+ make the device `/dev/fuse` (10:229)",
        "+ make the device `/dev/kvm` (10:232)",
        "+ make the device `/dev/loop-control` (10:237)",
        "+ make the device `/dev/net/tun` (10:200)",
    ];
    let loops: Vec<String> = (0..8).map(|minor| format!("+ make the device `/dev/loop{minor}` (7:{minor})")).collect();
    expected.extend(loops.iter().map(String::as_str));
    expected.extend(["+ mount sysfs nosuid nodev noexec on `/sys`", "+ capabilities ffffffffffffffff, no_new_privs false"]);
    assert_eq!(rest, expected);
    assert!(seen.len() > rest.len(), "nothing is masked");
    let filtered = |security| {
        let spec = RunSpec { security, ..spec() };
        plan(&spec, &root_host()).unwrap().command.filtered
    };
    assert_eq!([Security::Sandbox, Security::Hardened, Security::Insecure].map(filtered), [true, true, false]);
}

#[test]
fn limits() {
    let limit = |soft, hard| Limit { resource: Resource::Nofile, soft, hard };
    for (limit, possible) in [
        (limit(Some(1), Some(2)), true),
        (limit(Some(2), Some(2)), true),
        (limit(Some(3), None), true),
        (limit(None, None), true),
        (limit(Some(3), Some(2)), false),
        (limit(None, Some(2)), false),
    ] {
        let made = plan(&RunSpec { limits: vec![limit], ..spec() }, &root_host());
        match made {
            Ok(plan) => assert_eq!(plan.command.limits, [(Resource::Nofile, limit.soft, limit.hard)]),
            Err(error) => {
                assert_eq!(error.to_string(), "the soft limit of `nofile` is above its hard limit");
                assert!(!possible, "{limit:?}");
                continue;
            }
        }
        assert!(possible, "{limit:?}");
    }
    let names = ["core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio"];
    for name in names.into_iter().chain(["rttime", "sigpending", "stack"]) {
        assert_eq!(Resource::from_name(name).map(Resource::name), Some(name));
    }
    assert_eq!(Resource::from_name("as"), None);
}

#[test]
fn names_that_the_sandbox_knows() {
    let files = |spec: &RunSpec| -> Vec<String> {
        let plan = plan(spec, &root_host()).unwrap();
        plan.outside
            .iter()
            .filter_map(|step| match step {
                Step::ScratchFile { data, .. } => Some(String::from_utf8(data.clone()).unwrap()),
                _ => None,
            })
            .collect()
    };
    let mut request = spec();
    request.extra_hosts = vec![("db".to_owned(), "10.0.0.5".to_owned())];
    let hosts = "127.0.0.1\tlocalhost buildkitsandbox\n::1\tlocalhost ip6-localhost ip6-loopback\n10.0.0.5\tdb\n";
    // A stub resolver on the loopback interface can be reached on the host's network, so that the file stays as it is.
    assert_eq!(files(&request), ["nameserver 127.0.0.53\n", hosts]);
    request.network = Network::None;
    assert_eq!(files(&request), ["", hosts]);
}

#[test]
fn no_way_to_make_one() {
    let mode = Mode::Unavailable { reason: "kiln is not running as root".to_owned(), remedy: "be root".to_owned() };
    let host = Host { mode, ..root_host() };
    let error = plan(&spec(), &host).unwrap_err().to_string();
    assert_eq!(error, "no sandbox can be made here: kiln is not running as root");
}

#[test]
fn terminals_and_read_only_roots() {
    let plan =
        plan(&RunSpec { streams: Streams::Terminal { input: true }, readonly_root: true, ..spec() }, &root_host()).unwrap();
    let (outside, inside) = (text(&plan), plan.inside.iter().map(ToString::to_string).collect::<Vec<_>>());
    let after = outside.find("mount mqueue").unwrap();
    assert!(outside[after..].contains("make a terminal, also as `/dev/console`"), "{outside}");
    assert!(inside.ends_with(&["make the root file system read-only".to_owned(), "enter the root file system".to_owned()]));
    let plan = super::plan(&spec(), &root_host()).unwrap();
    assert!(!text(&plan).contains("terminal") && !text(&plan).contains("file system read-only"));
}

#[test]
fn nothing_can_be_mounted() {
    let host = Host { mode: Mode::Chroot, ..root_host() };
    let mut spec = RunSpec { aside: Some("/s/aside".into()), ..RunSpec::new(RootFs::Dir("/s/tree".into()), vec!["sh".into()]) };
    let mount = |target: &str, source, readonly| Mount { target: target.into(), source, subpath: "".into(), readonly };
    spec.mounts = vec![
        mount("/c", MountSource::Bind { path: "/s/cache".into() }, false),
        Mount { subpath: "/a/b".into(), ..mount("/ctx", MountSource::Bind { path: "/s/copy".into() }, true) },
        mount("/again", MountSource::Bind { path: "/s/cache".into() }, false),
        mount("/t", MountSource::Tmpfs { size: Some(4096) }, false),
        mount("/run/secrets/k", MountSource::File { data: b"s".to_vec(), mode: 0o400, uid: 0, gid: 5 }, true),
    ];
    let expected = "\
[]
outside:
  open `/s/tree` as the root file system
  put an empty directory on `/proc` (755)
  copy `/proc/cpuinfo` of the host
  copy `/proc/filesystems` of the host
  copy `/proc/loadavg` of the host
  copy `/proc/meminfo` of the host
  copy `/proc/stat` of the host
  copy `/proc/uptime` of the host
  copy `/proc/version` of the host
  copy `/proc/sys/fs/file-max` of the host
  copy `/proc/sys/kernel/cap_last_cap` of the host
  copy `/proc/sys/kernel/hostname` of the host
  copy `/proc/sys/kernel/ngroups_max` of the host
  copy `/proc/sys/kernel/osrelease` of the host
  copy `/proc/sys/kernel/ostype` of the host
  copy `/proc/sys/kernel/pid_max` of the host
  copy `/proc/sys/kernel/random/boot_id` of the host
  copy `/proc/sys/kernel/version` of the host
  copy `/proc/sys/net/core/somaxconn` of the host
  copy `/proc/sys/vm/overcommit_memory` of the host
  make the directory `/proc/self`
  put a file (444) on `/proc/self/mounts`
  make the link `/proc/mounts` to `self/mounts`
  put an empty directory on `/sys` (755)
  put an empty directory on `/dev` (755)
  make the device `/dev/null` (1:3) if possible
  make the device `/dev/zero` (1:5) if possible
  make the device `/dev/full` (1:7) if possible
  make the device `/dev/random` (1:8) if possible
  make the device `/dev/urandom` (1:9) if possible
  make the device `/dev/tty` (5:0) if possible
  make the link `/dev/ptmx` to `pts/ptmx`
  make the link `/dev/fd` to `/proc/self/fd`
  make the link `/dev/stdin` to `/proc/self/fd/0`
  make the link `/dev/stdout` to `/proc/self/fd/1`
  make the link `/dev/stderr` to `/proc/self/fd/2`
  put an empty directory on `/dev/pts` (755)
  put an empty directory on `/dev/shm` (1777)
  put an empty directory on `/dev/mqueue` (1777)
  put a file (644) on `/etc/resolv.conf`
  put a file (644) on `/etc/hosts`
  put `/s/cache` of the host on `/c`
  put `/a/b` of `/s/copy` of the host on `/ctx`
  put a link to `/c` on `/again`
  put an empty directory on `/t`
  put a file (400 0:5) on `/run/secrets/k`
inside:
  change the root directory
capabilities a80425fb, no_new_privs false
";
    let made = plan(&spec, &host).unwrap();
    assert_eq!(text(&made), expected);
    assert!(made.in_place);
    let refused = |change: fn(&mut RunSpec)| {
        let mut spec = spec.clone();
        change(&mut spec);
        plan(&spec, &host).unwrap_err().to_string()
    };
    type Change = fn(&mut RunSpec);
    let rows: [(Change, &str); 3] = [
        (|spec| spec.network = Network::None, "in the mode `chroot` a command can't be kept from the network"),
        (|spec| spec.aside = None, "without mounts a root file system has to be a directory of its own"),
        (
            |spec| spec.mounts[0].source = MountSource::Overlay { lowers: vec!["/l".into()], upper: None },
            "the mount on `/c` is an overlay, and nothing can be mounted here",
        ),
    ];
    for (change, words) in rows {
        let said = refused(change);
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn networks() {
    let gateway = vec![("host".to_owned(), "host-gateway".to_owned())];
    // Network, lines of /etc/hosts, what the host has, then: an own namespace, the resolver, the address of `host`, arguments.
    type Row<'a> = (Network, &'a [(String, String)], bool, &'a str, &'a str, &'a str);
    let rows: &[Row<'_>] = &[
        (Network::Host, &[], false, "nameserver 127.0.0.53\n", "", ""),
        (Network::Host, &gateway, false, "nameserver 127.0.0.53\n", "127.0.0.1\thost\n", ""),
        (Network::None, &gateway, true, "", "127.0.0.1\thost\n", ""),
        (Network::Private, &[], true, "nameserver 192.0.2.53\n", "", "--no-map-gw"),
        (Network::Private, &gateway, true, "nameserver 192.0.2.53\n", "10.0.2.2\thost\n", "none"),
    ];
    for (network, hosts, own, resolv, line, last) in rows {
        let plan = plan(&RunSpec { network: *network, extra_hosts: hosts.to_vec(), ..spec() }, &root_host()).unwrap();
        assert_eq!(plan.namespaces.contains(&Namespace::Net), *own, "{network:?}");
        let file = |wanted: &str| {
            let found = plan.outside.iter().find_map(|step| match step {
                Step::ScratchFile { name, data, .. } if name == wanted => Some(String::from_utf8(data.clone()).unwrap()),
                _ => None,
            });
            found.unwrap()
        };
        assert_eq!(file("resolv.conf"), *resolv, "{network:?}");
        assert!(file("hosts").ends_with(line), "{network:?}");
        assert_eq!(plan.uplink.and_then(|uplink| uplink.args.last().cloned()).unwrap_or_default(), *last, "{network:?}");
    }
    let private = RunSpec { network: Network::Private, ..spec() };
    let forwarded = plan(&private, &Host { upstream_resolv_conf: vec![], ..root_host() }).unwrap();
    assert!(forwarded.uplink.unwrap().args.ends_with(&["--dns-forward".to_owned(), "10.0.2.3".to_owned()]));
    for (host, expected) in [
        (Host { pasta: None, ..root_host() }, "needs the program `pasta`"),
        (Host { own_network: false, ..root_host() }, "no network namespace"),
    ] {
        let error = plan(&private, &host).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}
