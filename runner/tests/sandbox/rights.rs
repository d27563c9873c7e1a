//! What the command may do: capabilities, system calls, devices, namespaces.

use std::os::unix::fs::PermissionsExt;

use kiln_runner::Security;

use crate::support::Step;

const CAPS: &str = "grep -E '^Cap|NoNewPrivs|^Seccomp:' /proc/self/status | tr -d '\\t' | tr '\\n' ' '";

pub fn capabilities() {
    // C15: inheritable and ambient are empty; a user other than root has none at all.
    let root = "CapInh:0000000000000000 CapPrm:00000000a80425fb CapEff:00000000a80425fb CapBnd:00000000a80425fb \
                CapAmb:0000000000000000 NoNewPrivs:0 Seccomp:2 ";
    let bob = "CapInh:0000000000000000 CapPrm:0000000000000000 CapEff:0000000000000000 CapBnd:00000000a80425fb \
               CapAmb:0000000000000000 NoNewPrivs:0 Seccomp:2 ";
    assert_eq!(Step::new().sh(CAPS).ok(), root);
    assert_eq!(Step::new().with(|spec| spec.user = "bob".into()).sh(CAPS).ok(), bob);
    assert_eq!(Step::new().with(|spec| spec.user = "0:50".into()).sh(CAPS).ok(), root);
}

pub fn no_new_privileges() {
    assert_eq!(Step::new().sh("grep NoNewPrivs /proc/1/status").ok(), "NoNewPrivs:\t0\n");
}

pub fn set_user_id_works() {
    let mut step = Step::new().with(|spec| spec.user = "bob".into());
    let su = step.upper().join("su");
    std::fs::copy("/bin/busybox", &su).unwrap();
    std::fs::set_permissions(&su, PermissionsExt::from_mode(0o4755)).unwrap();
    let out = step.sh("/su root -c 'id -u; grep CapEff /proc/self/status'").ok();
    assert_eq!(out, "0\nCapEff:\t00000000a80425fb\n");
    let mut step = step.with(|spec| spec.security = Security::Hardened);
    assert_ne!(step.sh("/su root -c 'id -u'").out, "0\n", "not with no_new_privs");
}

pub fn hardened() {
    let out = Step::new().with(|spec| spec.security = Security::Hardened).sh(CAPS).ok();
    assert!(out.contains("CapBnd:00000000800405fb") && out.contains("NoNewPrivs:1"), "{out}");
}

/// All that kiln itself may do, and nothing hidden.
pub fn insecure() {
    let mut step = Step::new().with(|spec| spec.security = Security::Insecure);
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let held = own.lines().find_map(|line| line.strip_prefix("CapPrm:")).unwrap().trim();
    let out = step.sh(CAPS).ok();
    for expected in [format!("CapPrm:{held}"), format!("CapEff:{held}"), "Seccomp:0".to_owned(), "NoNewPrivs:0".to_owned()] {
        assert!(out.contains(&expected), "{expected} in {out}");
    }
    assert_eq!(step.sh("mkdir /m && mount -t tmpfs none /m && mount | grep -c ' /m '").ok(), "1\n");
    assert_eq!(
        step.sh(
            "test -n \"$(head -c 1 /proc/interrupts)\" && test -w /proc/sys/kernel/hostname && test -c /dev/kmsg && echo yes"
        )
        .ok(),
        "yes\n"
    );
    assert_eq!(Step::new().sh("mount -t tmpfs none /tmp 2> /dev/null || echo no").ok(), "no\n");
    let bob = Step::new().with(|spec| (spec.security, spec.user) = (Security::Insecure, "bob".into())).sh(CAPS).ok();
    assert!(bob.contains("CapEff:0000000000000000"), "{bob}");
}

/// Part 4c, by calls that the kernel really gets.
#[cfg(target_arch = "x86_64")]
pub fn system_calls() {
    const EPERM: i32 = 1;
    const ENOSYS: i32 = 38;
    let rows: &[(&str, u32, [u32; 2], i32)] = &[
        ("getuid", 102, [0, 0], 0),
        ("mount", 165, [0, 0], EPERM),
        ("umount2", 166, [0, 0], EPERM),
        ("move_mount", 429, [0, 0], EPERM),
        ("open_tree", 428, [0, 0], EPERM),
        ("fsopen", 430, [0, 0], EPERM),
        ("fsconfig", 431, [0, 0], EPERM),
        ("fsmount", 432, [0, 0], EPERM),
        ("fspick", 433, [0, 0], EPERM),
        ("mount_setattr", 442, [0, 0], EPERM),
        ("pivot_root", 155, [0, 0], EPERM),
        ("unshare", 272, [0x1000_0000, 0], EPERM),
        ("unshare of nothing", 272, [0, 0], EPERM),
        ("setns", 308, [0, 0], EPERM),
        ("clone NEWUSER", 56, [0x1000_0011, 0], EPERM),
        ("clone NEWNS", 56, [0x2_0011, 0], EPERM),
        ("clone NEWNET", 56, [0x4000_0011, 0], EPERM),
        ("clone3", 435, [0, 0], ENOSYS),
        ("bpf", 321, [0, 0], EPERM),
        ("perf_event_open", 298, [0, 0], EPERM),
        ("userfaultfd", 323, [0, 0], EPERM),
        ("io_uring_setup", 425, [1, 0], EPERM),
        ("io_uring_enter", 426, [0, 0], EPERM),
        ("io_uring_register", 427, [0, 0], EPERM),
        ("keyctl", 250, [0, 0], EPERM),
        ("add_key", 248, [0, 0], EPERM),
        ("request_key", 249, [0, 0], EPERM),
        ("kexec_load", 246, [0, 0], EPERM),
        ("kexec_file_load", 320, [0, 0], EPERM),
        ("init_module", 175, [0, 0], EPERM),
        ("finit_module", 313, [0, 0], EPERM),
        ("delete_module", 176, [0, 0], EPERM),
        ("open_by_handle_at", 304, [0, 0], EPERM),
        ("swapon", 167, [0, 0], EPERM),
        ("swapoff", 168, [0, 0], EPERM),
        ("reboot", 169, [0, 0], EPERM),
        ("settimeofday", 164, [0, 0], EPERM),
        ("clock_settime", 227, [0, 0], EPERM),
        ("acct", 163, [0, 0], EPERM),
        ("quotactl", 179, [0, 0], EPERM),
        ("iopl", 172, [0, 0], EPERM),
        ("ioperm", 173, [0, 0], EPERM),
        ("kcmp", 312, [0, 0], EPERM),
        ("pidfd_getfd", 438, [0, 0], EPERM),
        ("process_madvise", 440, [0, 0], EPERM),
        ("lookup_dcookie", 212, [0, 0], EPERM),
        ("fanotify_init", 300, [0, 0], EPERM),
        ("vhangup", 153, [0, 0], EPERM),
        ("nfsservctl", 180, [0, 0], EPERM),
        ("mbind", 237, [0, 0], EPERM),
        ("set_mempolicy", 238, [0, 0], EPERM),
        ("migrate_pages", 256, [0, 0], EPERM),
        ("move_pages", 279, [0, 0], EPERM),
        ("set_mempolicy_home_node", 450, [0, 0], EPERM),
        ("syslog", 103, [0, 0], EPERM),
        ("sethostname", 170, [0, 0], EPERM),
        ("personality ADDR_NO_RANDOMIZE", 135, [0x4_0000, 0], EPERM),
        ("personality of Linux", 135, [0, 0], 0),
        ("socket AF_ALG", 41, [38, 5], EPERM),
        ("socket AF_VSOCK", 41, [40, 1], EPERM),
        ("ioctl TIOCSTI", 16, [0, 0x5412], EPERM),
        ("ioctl TIOCLINUX", 16, [0, 0x541c], EPERM),
        ("ioctl of /dev/null", 16, [0, 0x5413], 25),
        ("newer than the profile", 467, [0, 0], ENOSYS),
        ("from the future", 1000, [0, 0], ENOSYS),
        ("x32 getuid", 0x4000_0000 | 102, [0, 0], ENOSYS),
        ("x32 mount", 0x4000_0000 | 165, [0, 0], ENOSYS),
    ];
    let mut step = Step::new();
    check(&mut step, rows.iter().map(|(what, number, arguments, code)| (*what, crate::elf::call(*number, *arguments), *code)));
}

/// The 32-bit entry point works (CVE-2026-31431's first fix closed it) and is no way around the filter.
#[cfg(target_arch = "x86_64")]
pub fn thirty_two_bit_programs() {
    // Does this kernel run such programs at all?
    let probe = tempfile::tempdir().unwrap();
    let file = probe.path().join("probe");
    std::fs::write(&file, crate::elf::call_32(20, [0, 0])).unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).unwrap();
    if std::process::Command::new(&file).status().is_err() {
        println!("skipped: rights::thirty_two_bit_programs: this kernel has no 32-bit programs");
        return;
    }
    let rows: &[(&str, u32, [u32; 2], i32)] = &[
        ("getuid32", 199, [0, 0], 0),
        ("mount", 21, [0, 0], 1),
        ("umount", 22, [0, 0], 1),
        ("unshare", 310, [0x1000_0000, 0], 1),
        ("clone NEWUSER", 120, [0x1000_0011, 0], 1),
        ("socket AF_ALG", 359, [38, 5], 1),
        ("socketcall of nothing", 102, [0, 0], 22),
        ("newer than the profile", 467, [0, 0], 38),
    ];
    let mut step = Step::new();
    check(&mut step, rows.iter().map(|(what, number, arguments, code)| (*what, crate::elf::call_32(*number, *arguments), *code)));
}

/// Runs each program and compares exit codes, all in one sandbox.
#[cfg(target_arch = "x86_64")]
fn check<'a>(step: &mut Step, programs: impl Iterator<Item = (&'a str, Vec<u8>, i32)>) {
    let mut expected = String::new();
    let directory = step.subdir("upper/probes");
    for (index, (what, program, code)) in programs.enumerate() {
        let file = directory.join(format!("{index:03}"));
        std::fs::write(&file, program).unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::write(directory.join(format!("{index:03}.name")), what).unwrap();
        expected.push_str(&format!("{what} {code}\n"));
    }
    let out = step.sh("cd /probes; for p in ???; do ./$p; echo \"$(cat $p.name) $?\"; done").ok();
    assert_eq!(out, expected);
}

#[cfg(not(target_arch = "x86_64"))]
pub fn system_calls() {
    println!("skipped: rights::system_calls: its programs are written for x86-64");
}

#[cfg(not(target_arch = "x86_64"))]
pub fn thirty_two_bit_programs() {
    println!("skipped: rights::thirty_two_bit_programs: its programs are written for x86-64");
}

pub fn masked_paths() {
    let mut step = Step::new();
    // Each either doesn't exist on this kernel or is empty and can't be written.
    for path in
        ["acpi", "asound", "kcore", "keys", "latency_stats", "timer_list", "timer_stats", "sched_debug", "scsi", "interrupts"]
    {
        let out = step.sh(&format!("p=/proc/{path}; if [ -d $p ]; then ls -A $p; elif [ -e $p ]; then head -c 10 $p; fi")).ok();
        assert_eq!(out, "", "/proc/{path}");
        let ran = step.sh(&format!("p=/proc/{path}; [ -e $p ] || exit 9; [ -d $p ] && p=$p/x; echo 1 > $p"));
        assert_ne!(ran.result.unwrap().code(), 0, "/proc/{path}");
    }
    assert_eq!(step.sh("ls -A /sys/firmware; ls -A /sys/devices/virtual/powercap 2> /dev/null; true").ok(), "");
    for path in [
        "/proc/sys/kernel/hostname",
        "/proc/sysrq-trigger",
        "/proc/irq/default_smp_affinity",
        "/sys/kernel/mm/transparent_hugepage/enabled",
    ] {
        let ran = step.sh(&format!("[ -e {path} ] || exit 0; echo x > {path}"));
        assert!(ran.err.is_empty() || ran.err.contains("Read-only file system"), "{path}: {ran:?}");
        assert!(!ran.err.is_empty() || !std::path::Path::new(path).exists(), "{path} could be written");
    }
    let mounts = step.sh("cut -d' ' -f2,4 /proc/mounts | sed 's/,.*//' | grep -E '^/(proc/(sys|bus|fs|irq)|sys) '").ok();
    for line in mounts.lines() {
        assert!(line.ends_with(" ro"), "{mounts}");
    }
}

/// C33: the usual devices work, a node that the command makes can't be opened.
pub fn device_nodes() {
    let mut step = Step::new();
    let out = step.sh("ls /dev | tr '\\n' ' '; stat -c '%a %F %t:%T' /dev/null /dev/tty; stat -c %a /dev /dev/shm; readlink /dev/ptmx; readlink /dev/fd").ok();
    assert_eq!(
        out,
        "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero 666 character special file 1:3\n\
         666 character special file 5:0\n755\n1777\npts/ptmx\n/proc/self/fd\n"
    );
    assert_eq!(
        step.sh("echo x > /dev/null && head -c 3 /dev/zero | wc -c; echo x > /dev/shm/a && cat /dev/shm/a").ok(),
        "3\nx\n"
    );
    assert_eq!(Step::new().with(|spec| spec.user = "bob".into()).sh("echo x > /dev/null && echo ok").ok(), "ok\n");
    let ran = step
        .sh("mknod /disk b 8 0 && mknod /zero c 1 5; head -c 1 /disk; head -c 1 /zero; mknod /dev/shm/z c 1 5; cat /dev/shm/z");
    if crate::support::host().mode == kiln_runner::Mode::Root {
        assert_eq!(ran.err.matches("Permission denied").count(), 3, "{ran:?}");
        assert!(step.changes().contains(&"c disk".to_owned()), "it reaches the layer all the same");
    } else {
        assert_eq!(ran.err.matches("Operation not permitted").count(), 2, "{ran:?}");
    }
    let script = "mount | grep -E ' on /dev(/[a-z]+)? ' | sed -E 's/,(relatime|size|mode|inode|gid|ptmx)[^,)]*//g' | sort";
    let mounts = step.sh(script).ok();
    for expected in [
        "tmpfs on /dev type tmpfs (rw,nosuid",
        "devpts on /dev/pts type devpts (rw,nosuid,noexec",
        "tmpfs on /dev/shm type tmpfs (rw,nosuid,nodev,noexec",
    ] {
        assert!(mounts.contains(expected), "{expected} in {mounts}");
    }
}

pub fn host_name() {
    let before = rustix::system::uname().nodename().to_owned();
    assert_eq!(Step::new().sh("hostname; cat /proc/sys/kernel/hostname").ok(), "buildkitsandbox\nbuildkitsandbox\n");
    assert_eq!(Step::new().with(|spec| spec.hostname = "other".into()).sh("hostname").ok(), "other\n");
    assert_eq!(rustix::system::uname().nodename(), before.as_c_str());
}

pub fn namespaces() {
    let out = Step::new().sh("for n in mnt pid ipc uts net user; do readlink /proc/self/ns/$n; done").ok();
    for link in out.lines() {
        let name = link.split(':').next().unwrap();
        let own = std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        let same = own.to_str().unwrap() == link;
        assert_eq!(same, ["net", "user"].contains(&name), "{link}");
    }
    let out = Step::new().with(|spec| spec.network = kiln_runner::Network::None).sh("readlink /proc/self/ns/net").ok();
    assert_ne!(std::fs::read_link("/proc/self/ns/net").unwrap().to_str().unwrap(), out.trim());
}

/// C25.
pub fn control_groups_are_hidden() {
    let ran = Step::new().sh("ls -A /sys/fs/cgroup; mkdir /sys/fs/cgroup/x");
    assert!(ran.out.is_empty() && ran.err.contains("Read-only file system"), "{ran:?}");
}

/// Makes the test program try to change its own file.
pub const TOUCH_SELF: &str = "--touch-self";

pub fn touch_self() {
    for path in ["/proc/self/exe", "/proc/1/exe"] {
        let result = std::fs::set_permissions(path, PermissionsExt::from_mode(0o777));
        println!("{:?}", result.map_err(|error| error.kind()));
    }
}

/// C13 (CVE-2019-5736): a command that executes the sandbox's own program can't write to its file.
pub fn own_program() {
    let program = std::env::current_exe().unwrap();
    let before = std::fs::metadata(&program).unwrap().permissions().mode();
    let mut step = Step::new();
    // What a dynamic build of it needs.
    for directory in ["/lib", "/lib64", "/usr/lib"] {
        if let Ok(path) = std::fs::canonicalize(directory) {
            let source = kiln_runner::MountSource::Bind { path };
            step.spec.mounts.push(kiln_runner::Mount { target: directory.into(), source, subpath: "".into(), readonly: true });
        }
    }
    let out = step.args(&["/proc/self/exe", TOUCH_SELF]).ok();
    assert_eq!(out, "Err(ReadOnlyFilesystem)\nErr(ReadOnlyFilesystem)\n");
    assert_eq!(std::fs::metadata(&program).unwrap().permissions().mode(), before);
}
