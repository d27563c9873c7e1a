//! The filter, run on paper.

use super::*;

/// What the kernel's interpreter would answer.
fn answer(program: &[Instruction], architecture: u32, number: u32, arguments: [u32; 2]) -> u32 {
    let (mut at, mut word) = (0usize, 0u32);
    loop {
        let Instruction { code, jt, jf, k } = program[at];
        at += 1;
        let branch = |taken: bool| usize::from(if taken { jt } else { jf });
        match code {
            LOAD_WORD => {
                word = match k {
                    NUMBER => number,
                    ARCHITECTURE => architecture,
                    ARGUMENT_0 => arguments[0],
                    ARGUMENT_1 => arguments[1],
                    // Of the later arguments only flags are looked at.
                    32 => arguments[1],
                    other => panic!("loads offset {other}"),
                }
            }
            RETURN => return k,
            JA => at += k as usize,
            JEQ => at += branch(word == k),
            JGE => at += branch(word >= k),
            JSET => at += branch(word & k != 0),
            other => panic!("operation {other:#x}"),
        }
    }
}

const PLAIN: Purpose = Purpose { listed: true, recorded: false, shown: false };

fn check(purpose: Purpose, rows: &[(&str, u32, u32, [u32; 2], u32)]) {
    let program = program(purpose);
    assert!(program.len() < 4096, "the kernel takes 4096 instructions, these are {}", program.len());
    for (what, architecture, number, arguments, expected) in rows {
        assert_eq!(answer(&program, *architecture, *number, *arguments), *expected, "{what}");
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn x86_64_answers() {
    const N: u32 = AUDIT_ARCH_X86_64;
    const O: u32 = AUDIT_ARCH_I386;
    const ALLOW: u32 = RETURN_ALLOW;
    check(
        PLAIN,
        &[
            ("read", N, 0, [0, 0], ALLOW),
            ("ptrace", N, 101, [0, 0], ALLOW),
            ("removexattrat", N, 466, [0, 0], ALLOW),
            ("newer than the profile", N, 467, [0, 0], ENOSYS),
            ("far newer", N, 0x3fff_ffff, [0, 0], ENOSYS),
            ("clone3", N, 435, [0, 0], ENOSYS),
            ("clone of a thread", N, 56, [0x3d0f00, 0], ALLOW),
            ("clone NEWUSER", N, 56, [0x1000_0011, 0], EPERM),
            ("clone NEWNS", N, 56, [0x2_0011, 0], EPERM),
            ("unshare", N, 272, [0, 0], EPERM),
            ("mount", N, 165, [0, 0], EPERM),
            ("io_uring_setup", N, 425, [0, 0], EPERM),
            ("socket AF_INET", N, 41, [2, 0], ALLOW),
            ("socket AF_NETLINK", N, 41, [16, 0], ALLOW),
            ("socket AF_ALG", N, 41, [38, 0], EPERM),
            ("socket AF_VSOCK", N, 41, [40, 0], EPERM),
            ("socket of a family to come", N, 41, [46, 0], EPERM),
            ("personality of setarch -R", N, 135, [0x40000, 0], EPERM),
            ("personality asked for", N, 135, [0xffff_ffff, 0], ALLOW),
            ("ioctl TIOCSTI", N, 16, [0, 0x5412], EPERM),
            ("ioctl TIOCGWINSZ", N, 16, [0, 0x5413], ALLOW),
            ("x32 read", N, X32_BIT, [0, 0], ENOSYS),
            ("x32 mount", N, X32_BIT | 165, [0, 0], ENOSYS),
            ("32-bit read", O, 3, [0, 0], ALLOW),
            ("32-bit socketcall", O, 102, [1, 0], ALLOW),
            ("32-bit mount", O, 21, [0, 0], EPERM),
            ("32-bit unshare", O, 310, [0, 0], EPERM),
            ("32-bit clone NEWUSER", O, 120, [0x1000_0000, 0], EPERM),
            ("32-bit socket AF_ALG", O, 359, [38, 0], EPERM),
            ("a foreign architecture", 0xc000_00b7, 0, [0, 0], EPERM),
        ],
    );
}

#[test]
fn every_row_of_the_table_gets_its_rule() {
    let program = program(PLAIN);
    for architecture in ARCHITECTURES {
        let allowed = architecture.numbers(PLAIN);
        for number in 0..=NEWEST {
            let rule = allowed.iter().find(|(known, _)| *known == number).map(|(_, rule)| *rule);
            let expected = match rule {
                Some(Verdict::Rule(Rule::Missing)) => ENOSYS,
                Some(_) => RETURN_ALLOW, // argument 0 passes each of the checks
                None => EPERM,
            };
            assert_eq!(answer(&program, architecture.id, number, [0, 0]), expected, "{:#x} {number}", architecture.id);
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn what_the_supervisor_is_told_of() {
    const N: u32 = AUDIT_ARCH_X86_64;
    const O: u32 = AUDIT_ARCH_I386;
    const TELL: u32 = RETURN_NOTIFY;
    const ALLOW: u32 = RETURN_ALLOW;
    let rows = [
        ("chown", N, 92, [0, 0], TELL),
        ("fchownat", N, 260, [0, 0], TELL),
        ("setresuid", N, 117, [0, 0], TELL),
        ("mknodat", N, 259, [0, 0], TELL),
        ("openat to read", N, 257, [0, 0], ALLOW),
        ("openat O_CREAT", N, 257, [0, 0x241], TELL),
        ("openat O_TMPFILE", N, 257, [0, 0x41_0002], TELL),
        ("openat O_DIRECTORY", N, 257, [0, 0x1_0000], ALLOW),
        ("open O_CREAT", N, 2, [0, 0x241], TELL),
        ("chmod", N, 90, [0, 0], ALLOW),
        ("stat", N, 4, [0, 0], ALLOW),
        ("prctl", N, 157, [15, 0], ALLOW),
        ("prctl PR_SET_KEEPCAPS", N, 157, [8, 1], TELL),
        ("read", N, 0, [0, 0], ALLOW),
        ("32-bit chown, ids of 16 bits", O, 182, [0, 0], TELL),
        ("32-bit chown, ids of 32 bits", O, 212, [0, 0], TELL),
        ("32-bit openat O_CREAT", O, 295, [0, 0x40], TELL),
    ];
    check(Purpose { listed: true, recorded: true, shown: false }, &rows);
    check(Purpose { listed: false, recorded: true, shown: false }, &rows);
    check(
        Purpose { listed: true, recorded: true, shown: false },
        &[("mount", N, 165, [0, 0], EPERM), ("new", N, 467, [0, 0], ENOSYS)],
    );
    check(
        Purpose { listed: false, recorded: true, shown: false },
        &[("mount", N, 165, [0, 0], ALLOW), ("new", N, 467, [0, 0], ALLOW)],
    );
    let shown = Purpose { listed: true, recorded: true, shown: true };
    check(
        shown,
        &[
            ("stat", N, 4, [0, 0], TELL),
            ("fstat", N, 5, [0, 0], TELL),
            ("newfstatat", N, 262, [0, 0], TELL),
            ("statx", N, 332, [0, 0], TELL),
            ("chown", N, 92, [0, 0], TELL),
        ],
    );
    let rows = [
        (N, 92, Some((Call::Chown, false))),
        (O, 182, Some((Call::Chown, true))),
        (O, 212, Some((Call::Chown, false))),
        (O, 298, Some((Call::Fchownat, false))),
        (O, 14, Some((Call::Mknod, false))),
        (N, 0, None),
        (0, 92, None),
    ];
    for (architecture, number, expected) in rows {
        assert_eq!(call(architecture, number), expected, "{architecture:#x} {number}");
    }
}
