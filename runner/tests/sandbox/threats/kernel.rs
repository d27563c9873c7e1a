//! Doors of the kernel: sockets of 32-bit programs, terminals, disks.

use std::io::Write;

use kiln_runner::{GroupLimits, Mode, RootFs, Security};

use super::{compiled, deeds, program};
use crate::support::{Step, base, host};

/// C26: what Docker broke and took back: 32-bit programs that make sockets in the old way.
#[cfg(target_arch = "x86_64")]
pub fn c26_thirty_two_bit_network() {
    let flags = [
        "-m32",
        "-nostdlib",
        "-static",
        "-ffreestanding",
        "-fno-pie",
        "-no-pie",
        "-fno-stack-protector",
        "-fno-asynchronous-unwind-tables",
    ];
    let Some(path) = compiled("c26_thirty_two_bit_network", "net32.c", &flags) else { return };
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        for _ in 0..4 {
            listener.accept().unwrap().0.write_all(b"hello\n").unwrap();
        }
    });
    for security in [Security::Sandbox, Security::Hardened] {
        let mut step = Step::new().with(|spec| spec.security = security);
        step.spec.mounts.push(program("/net32", &path));
        assert_eq!(step.sh(&format!("/net32 {port} old; /net32 {port} new")).ok(), "hello\nhello\n");
    }
    server.join().unwrap();
}

#[cfg(not(target_arch = "x86_64"))]
pub fn c26_thirty_two_bit_network() {
    println!("skipped: threats::c26_thirty_two_bit_network: its program is written for x86");
}

/// C28: refused by the filter before the kernel asks which terminal, and whatever stands in the upper half of the number.
pub fn c28_typing_is_refused() {
    let Some(path) = deeds("c28_typing_is_refused") else { return };
    let mut step = Step::new();
    step.spec.mounts.push(program("/deeds", &path));
    let expected = "1 1 1\n".repeat(3);
    assert_eq!(step.sh("/deeds type < /dev/null").ok(), expected);
    assert_eq!(
        step.sh("tail -1 /proc/self/stat | cut -d' ' -f7; cut -d' ' -f6 /proc/1/stat").ok(),
        "0\n1\n",
        "no terminal, own session"
    );
}

/// C33: the machine's disks, with the right to make nodes, with and without control groups: made, and never opened.
pub fn c33_disks_cannot_be_opened() {
    let disks = std::fs::read_to_string("/proc/partitions").unwrap_or_default();
    let mut numbers: Vec<(u32, u32)> = disks
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
        })
        .collect();
    // Loop 0 is there on most machines, 7:0; 8:0 is the first disk of many others.
    numbers.extend([(7, 0), (8, 0), (259, 0)]);
    let script: String = numbers
        .iter()
        .map(|(major, minor)| {
            format!(
                "mknod /d b {major} {minor}; dd if=/d of=/x bs=512 count=1 2>&1 | tail -1; dd if=/x of=/d bs=512 count=1 conv=notrunc 2>&1 | tail -1; rm /d\n"
            )
        })
        .collect();
    let shared = tempfile::tempdir().unwrap();
    std::process::Command::new("cp").arg("-a").arg(base().join(".")).arg(shared.path()).status().unwrap();
    for (what, change) in [("overlay", None), ("directory", Some(RootFs::Dir(shared.path().to_owned())))] {
        let mut step = Step::new().with(|spec| spec.group = GroupLimits::default());
        if let Some(root) = change {
            step.spec.root = root;
        }
        let ran = step.sh(&format!("echo > /x\n{script}"));
        let refused = |text: &str, words: &str| text.lines().filter(|line| line.contains(words)).count();
        match host().mode {
            Mode::Root => assert_eq!(refused(&ran.out, "Permission denied"), 2 * numbers.len(), "{what}: {ran:?}"),
            // The kernel makes no device for anybody but the machine's root.
            _ => assert_eq!(refused(&ran.err, "mknod: /d: Operation not permitted"), numbers.len(), "{what}: {ran:?}"),
        }
        // Places that are no part of the root: none of them takes a device.
        let ran = step.sh("for d in /dev/shm /tmp /run /dev/mqueue /proc /sys; do mkdir -p $d 2> /dev/null; mknod $d/disk b 8 0 2> /dev/null && head -c 1 $d/disk && echo open in $d; done; true");
        assert_eq!(ran.ok(), "", "{what}");
    }
}
