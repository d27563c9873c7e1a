//! What the command's changes look like in the layer, and what never gets there.

use std::os::unix::fs::{MetadataExt, symlink};
use std::time::{Duration, SystemTime};

use kiln_runner::{Host, Network, OverlayApi, RootFs};

use crate::support::{Step, base, host};

pub fn changes_land_in_upper() {
    let mut step = Step::new();
    step.sh("mkdir -p /a/b; echo x > /a/b/c; ln -s c /a/b/l; chmod 700 /home/bob; chown 5:6 /a/b/c").ok();
    assert_eq!(step.changes(), ["- a/b/c", "d a", "d a/b", "d home", "d home/bob", "l a/b/l"]);
    let meta = std::fs::metadata(step.upper().join("a/b/c")).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (5, 6, 0o644));
}

pub fn deletions_are_whiteouts() {
    let mut step = Step::new();
    step.sh("rm -r /home/bob /bin/ls").ok();
    assert_eq!(step.changes(), ["c bin/ls", "c home/bob", "d bin", "d home"]);
    let meta = std::fs::symlink_metadata(step.upper().join("bin/ls")).unwrap();
    assert_eq!(meta.rdev(), 0, "overlay's own form, a 0:0 device");
}

pub fn stubs_are_removed() {
    let mut step = Step::new();
    step.sh("ls /proc/1/status /etc/hosts /etc/resolv.conf /dev/null /sys/kernel").ok();
    assert_eq!(step.changes(), [""; 0], "neither the mount points nor the copy of /etc");
    // When the command can't be started as well.
    let mut step = Step::new();
    step.args(&["/none"]).error();
    assert_eq!(step.changes(), [""; 0]);
    // What the command made beside them stays.
    let mut step = Step::new();
    step.sh("echo x > /etc/new; echo y > /file").ok();
    assert_eq!(step.changes(), ["- etc/new", "- file", "d etc"]);
}

pub fn stub_times() {
    let old = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    let set = |path: &std::path::Path| {
        let times = std::fs::FileTimes::new().set_modified(old);
        std::fs::File::open(path).unwrap().set_times(times).unwrap();
    };
    let mut step = Step::new();
    set(&step.subdir("upper/etc"));
    set(&step.upper());
    let out = step.sh("stat -c %Y / /etc").ok();
    assert_eq!(out, "1000000000\n1000000000\n", "the command sees the old times");
    for path in [step.upper(), step.upper().join("etc")] {
        assert_eq!(std::fs::metadata(&path).unwrap().modified().unwrap(), old, "{}", path.display());
    }
    // A change of the command's own is seen.
    step.sh("echo > /etc/x").ok();
    assert!(std::fs::metadata(step.upper().join("etc")).unwrap().modified().unwrap() > old);
    assert_eq!(std::fs::metadata(step.upper()).unwrap().modified().unwrap(), old);
    // A copied directory whose rights the command changed stays.
    let mut step = Step::new();
    step.sh("chmod 711 /etc").ok();
    assert_eq!(step.changes(), ["d etc"]);
}

pub fn stubs_behind_links() {
    // As systemd-resolved leaves it in an image: a link to a file that is not there.
    let mut step = Step::new();
    let etc = step.subdir("upper/etc");
    symlink("../run/systemd/resolve/stub-resolv.conf", etc.join("resolv.conf")).unwrap();
    let out = step.sh("cat /etc/resolv.conf /run/systemd/resolve/stub-resolv.conf").ok();
    let own = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    assert_eq!(out, format!("{own}{own}"));
    assert_eq!(step.changes(), ["d etc", "l etc/resolv.conf"], "the link stays, /run is gone again");
    // A link that leads outside stays inside.
    let canary = tempfile::tempdir().unwrap();
    let mut step = Step::new();
    let etc = step.subdir("upper/etc");
    symlink(canary.path().join("resolv.conf"), etc.join("resolv.conf")).unwrap();
    symlink(format!("../../../../../..{}/hosts", canary.path().display()), etc.join("hosts")).unwrap();
    step.sh("cat /etc/hosts /etc/resolv.conf").ok();
    assert_eq!(std::fs::read_dir(canary.path()).unwrap().count(), 0);
    assert_eq!(step.changes(), ["d etc", "l etc/hosts", "l etc/resolv.conf"]);
}

/// C03 (CVE-2024-23652): replaced parents are not followed when the stubs are removed.
pub fn stubs_that_the_command_touched() {
    let canary = tempfile::tempdir().unwrap();
    std::fs::write(canary.path().join("hosts"), "").unwrap();
    std::fs::write(canary.path().join("resolv.conf"), "").unwrap();
    let mut step = Step::new();
    step.subdir("upper/etc");
    let script = format!("mv /etc /moved; ln -s {} /etc; ls /moved", canary.path().display());
    let ran = step.sh(&script);
    assert_eq!(std::fs::read_dir(canary.path()).unwrap().count(), 2, "{ran:?}");
    // A stub can't be removed while it is mounted on.
    let mut step = Step::new();
    let ran = step.sh("rm /etc/hosts; rm -r /proc /sys; rmdir /dev");
    assert!(ran.err.contains("busy"), "{ran:?}");
    assert!(step.changes().iter().all(|change| !change.starts_with('c')), "no whiteout: {:?}", step.changes());
}

pub fn resolv_conf_and_hosts() {
    let mut step = Step::new().with(|spec| {
        spec.extra_hosts = vec![("db".into(), "10.0.0.5".into()), ("six".into(), "fe80::1".into())];
    });
    let own = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    assert_eq!(step.sh("cat /etc/resolv.conf").ok(), own);
    assert_eq!(
        step.sh("cat /etc/hosts; stat -c '%a %u' /etc/hosts").ok(),
        "127.0.0.1\tlocalhost buildkitsandbox\n::1\tlocalhost ip6-localhost ip6-loopback\n10.0.0.5\tdb\nfe80::1\tsix\n644 0\n"
    );
    let ran = step.sh("echo x >> /etc/hosts; echo x > /etc/resolv.conf");
    assert_eq!(ran.err.matches("Read-only file system").count(), 2, "{ran:?}");
    // The image's own files are covered, not changed.
    let mut step = Step::new();
    let etc = step.subdir("upper/etc");
    std::fs::write(etc.join("hosts"), "image's\n").unwrap();
    assert!(step.sh("cat /etc/hosts").ok().starts_with("127.0.0.1"));
    assert_eq!(std::fs::read_to_string(etc.join("hosts")).unwrap(), "image's\n");
    assert_eq!(step.changes(), ["- etc/hosts", "d etc"]);
}

pub fn network_none() {
    let mut step = Step::new().with(|spec| spec.network = Network::None);
    let out = step.sh("ls /sys/class/net; ip addr show lo | grep -o 'inet 127[^ ]*'; cat /etc/resolv.conf; ping -c 1 -W 1 127.0.0.1 | grep -c '1 packets received'").ok();
    assert_eq!(out, "lo\ninet 127.0.0.1/8\n1\n");
    assert_ne!(step.sh("ping -c 1 -W 1 10.0.0.1").result.unwrap().code(), 0);
}

pub fn host_network() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        use std::io::Write;
        listener.accept().unwrap().0.write_all(b"hello\n").unwrap();
    });
    assert_eq!(Step::new().sh(&format!("nc localhost {port} < /dev/null")).ok(), "hello\n");
    server.join().unwrap();
}

pub fn plain_directory() {
    let mut step = Step::new();
    let root = step.subdir("plain");
    std::process::Command::new("cp").arg("-a").arg(base().join(".")).arg(&root).status().unwrap();
    step.spec.root = RootFs::Dir(root.clone());
    step.sh("echo x > /made; test -e /proc/1 && test -e /etc/hosts").ok();
    assert_eq!(std::fs::read_to_string(root.join("made")).unwrap(), "x\n");
    for stub in ["proc", "sys", "dev", "etc/hosts", "etc/resolv.conf"] {
        assert!(!root.join(stub).exists(), "{stub}");
    }
}

fn layers(dir: &std::path::Path, count: usize) -> Vec<std::path::PathBuf> {
    (0..count)
        .map(|number| {
            let layer = dir.join(format!("layer-{number}"));
            std::fs::create_dir_all(&layer).unwrap();
            std::fs::write(layer.join(format!("file-{number}")), "").unwrap();
            std::fs::write(layer.join("top"), number.to_string()).unwrap();
            layer
        })
        .collect()
}

pub fn many_lowers() {
    let dir = tempfile::tempdir().unwrap();
    let mut step = Step::on(layers(dir.path(), 450));
    assert_eq!(step.sh("ls /file-* | wc -l; cat /top").ok(), "450\n0");
    let mut step = Step::on(layers(dir.path(), 501));
    let error = step.sh("true").error();
    assert!(error.starts_with("could not mount an overlay of 502 layers and `"), "{error}");
}

pub fn long_layer_paths() {
    let dir = tempfile::tempdir().unwrap();
    let long = dir.path().join("x".repeat(200)).join("y".repeat(200)).join("with,comma:and\\colon");
    assert_eq!(Step::on(layers(&long, 3)).sh("cat /top").ok(), "0");
}

pub fn volatile_upper_becomes_a_lower() {
    let mut first = Step::new();
    first.sh("mkdir /d; echo one > /d/f; sync").ok();
    let mut second = Step::on(vec![first.upper()]);
    assert_eq!(second.sh("cat /d/f; rm -r /d; mkdir /d").ok(), "one\n");
    let mut third = Step::on(vec![second.upper(), first.upper()]);
    assert_eq!(third.sh("ls -A /d | wc -l").ok(), "0\n");
}

/// What kernels before 6.13 and before 6.8 are asked.
pub fn older_overlay_calls() {
    let dir = tempfile::tempdir().unwrap();
    for overlay in [OverlayApi::Paths, OverlayApi::Classic] {
        let mut host: Host = host().clone();
        host.ground.overlay = overlay;
        for count in [1, 30] {
            let mut step = Step::on(layers(&dir.path().join(format!("{overlay:?}{count}")), count));
            step.spec.args = ["sh", "-c", "cat /top; echo x > /made; cat /m/top; mknod /z c 1 5; cat /z"].map(Into::into).into();
            step.spec.mounts.push(kiln_runner::Mount {
                target: "/m".into(),
                source: kiln_runner::MountSource::Overlay { lowers: layers(&dir.path().join("m"), 1), upper: None },
                subpath: "".into(),
                readonly: true,
            });
            let ran = step.run_on(&host, &kiln_runner::Cancel::new().unwrap(), &mut |_, _| {});
            assert_eq!(ran.out, "00", "{overlay:?}: {ran:?}");
            assert!(ran.err.contains("Permission denied"), "the root is nodev: {ran:?}");
            assert_eq!(step.changes(), ["- made", "c z"]);
        }
        if overlay == OverlayApi::Classic {
            let mut step = Step::on(layers(&dir.path().join("many"), 400));
            step.spec.args = vec!["true".into()];
            let ran = step.run_on(&host, &kiln_runner::Cancel::new().unwrap(), &mut |_, _| {});
            let error = ran.error();
            assert!(error.contains("this kernel lacks overlay mounts of 401 layers (Linux 6.8)"), "{error}");
        }
    }
}

pub fn missing_layer() {
    let error = Step::on(vec!["/no/such/layer".into()]).sh("true").error();
    assert!(error.contains("no layer directory `/no/such/layer`"), "{error}");
}

/// Unlike in a container that is started, `/run` is not covered.
pub fn run_is_in_the_layer() {
    let mut step = Step::new();
    step.sh("mkdir -p /run/lock; echo x > /run/lock/y").ok();
    assert_eq!(step.changes(), ["- run/lock/y", "d run", "d run/lock"]);
}

/// With a layer of mount points below all others nothing is made in the upper directory, and the command can't tell.
pub fn kept_mount_points() {
    let mut host: Host = host().clone();
    let points = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        host.keep_mount_points(points.path()).unwrap();
    }
    let rows: &[(&str, &[&str])] = &[
        ("ls /proc/1/status /etc/hosts /etc/resolv.conf /dev/null /sys/kernel /etc/passwd", &[]),
        ("rm -r /proc /etc/hosts 2>&1 | grep -c busy", &[]),
        ("echo x > /etc/new; rm /etc/group", &["- etc/new", "c etc/group", "d etc"]),
        ("mkdir /dev/made /srv; echo > /dev/shm/x", &["d srv"]),
        ("chmod 700 /etc", &["d etc"]),
        ("stat -c '%d' /etc/passwd /bin/busybox / /bin /etc | uniq | wc -l | grep -qx 1", &[]),
    ];
    for (script, expected) in rows {
        let mut step = Step::new();
        step.spec.args = ["sh", "-c", script].map(Into::into).into();
        let ran = step.run_on(&host, &kiln_runner::Cancel::new().unwrap(), &mut |_, _| {});
        ran.ok();
        assert_eq!(step.changes(), *expected, "{script}");
    }
    let files = std::fs::read_dir(points.path().join("etc")).unwrap().count();
    assert_eq!(files, 2, "it is as it was");
    // A file that an image deleted stays deleted, but for the time of the run.
    let step = Step::new();
    step.subdir("upper/etc");
    let whiteout = step.upper().join("etc/hosts");
    rustix::fs::mknodat(rustix::fs::CWD, &whiteout, rustix::fs::FileType::CharacterDevice, 0o0.into(), 0).unwrap();
    let mut next = Step::on(vec![step.upper()]);
    next.spec.args = ["cat", "/etc/hosts"].map(Into::into).into();
    assert!(next.run_on(&host, &kiln_runner::Cancel::new().unwrap(), &mut |_, _| {}).ok().starts_with("127.0.0.1"));
    assert_eq!(next.changes(), [""; 0]);
}
