//! Owners that are recorded instead of changed. Nothing of it depends on how many ids there are, so that it is tried as root too.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use kiln_runner::Recorder;

use crate::support::{Ran, Step};

/// Attributes that the kernel lets anybody set.
const OWNER: &str = "user.kiln.owner";
const NODE: &str = "user.kiln.node";

fn recorded() -> Step {
    Step::new().with(|spec| {
        spec.recorder =
            Some(Recorder { owner_attribute: OWNER.into(), node_attribute: NODE.into(), known: Vec::new(), show: true })
    })
}

/// What is noted about each changed file that isn't root's.
fn notes(step: &Step, ran: &Ran) -> BTreeMap<String, String> {
    let mut notes = BTreeMap::new();
    for line in step.changes() {
        let (kind, path) = line.split_once(' ').unwrap();
        let file = step.upper().join(path);
        let mut words = Vec::new();
        if kind == "d" || kind == "-" {
            for name in [OWNER, NODE] {
                let mut value = [0u8; 64];
                if let Ok(length) = rustix::fs::lgetxattr(&file, name, &mut value[..]) {
                    words.push(String::from_utf8_lossy(&value[..length]).into_owned());
                }
            }
        } else {
            let inode = std::fs::symlink_metadata(&file).unwrap().ino();
            words.extend(ran.owners.iter().filter(|(noted, ..)| *noted == inode).map(|(_, uid, gid)| format!("{uid}:{gid}")));
        }
        if !words.is_empty() {
            notes.insert(path.to_owned(), words.join(" "));
        }
    }
    notes
}

/// A script, and what is noted afterwards.
#[track_caller]
fn check(script: &str, expected: &[(&str, &str)]) {
    let mut step = recorded();
    let ran = step.sh(script);
    assert_eq!((&ran.out[..], &ran.err[..]), ("", ""), "{script}: {ran:?}");
    let expected: BTreeMap<String, String> = expected.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    assert_eq!(notes(&step, &ran), expected, "{script}");
}

/// What is noted of files of every kind, however the call comes.
pub fn owners_and_devices() {
    let rows: &[(&str, &[(&str, &str)])] = &[
        ("touch f; chown 33:44 f", &[("f", "33:44")]),
        ("touch f; chown 33:44 f; chown 0:0 f", &[("f", "0:0")]),
        ("touch f; chown 33:44 f; chown 34 f; chgrp 45 f; mv f g; ln g h", &[("g", "34:45"), ("h", "34:45")]),
        ("chown 33 /etc/passwd; chgrp 7 /etc/passwd /etc", &[("etc", "0:7"), ("etc/passwd", "33:7")]),
        ("touch f; ln -s f l; chown 5:6 l", &[("f", "5:6")]),
        ("ln -s x l; chown -h 5:6 l; mkfifo p; chown 8:9 p; mv p /tmp/q", &[("l", "5:6"), ("tmp/q", "8:9")]),
        ("ln -s x l; chown -h 5:6 l; rm l; ln -s y k", &[]),
        (
            "mkdir -p a/b; touch a/b/f; ln -s x a/l; chown -R 1:2 a",
            &[("a", "1:2"), ("a/b", "1:2"), ("a/b/f", "1:2"), ("a/l", "1:2")],
        ),
        ("touch f; exec 9< f; rm f; chown 1:2 /proc/self/fd/9", &[]),
        ("touch f; cd /proc/self; chown 1:2 /f ../../f", &[("f", "1:2")]),
        ("touch f; chown 4294967294:2147483648 f", &[("f", "4294967294:2147483648")]),
        ("mknod null c 1 3; mknod -m 600 sda b 259 1048575; chown 0:6 sda", &[("null", "c 1:3"), ("sda", "0:6 b 259:1048575")]),
        ("mknod n c 1 3; [ -c n ]; ls -l n | grep -q '1,  *3'; rm n; touch n", &[]),
        (
            "mkdir -p /c/dev; cp -r /bin /etc /c; chroot /c sh -c 'cd /etc; mknod ../dev/x c 1 5; chown 3:4 group; ln -s /etc/passwd l; \
             chown 5:6 l; chown -h 7:8 l; chown 9:9 ../../../../tmp 2> /dev/null || true'",
            &[("c/dev/x", "c 1:5"), ("c/etc/group", "3:4"), ("c/etc/passwd", "5:6"), ("c/etc/l", "7:8")],
        ),
    ];
    for (script, expected) in rows {
        check(script, expected);
    }
}

/// A command that became somebody else is that in all that it sees and makes.
pub fn other_users() {
    let bob = "1000:1001";
    check(
        "chmod 1777 /tmp; su bob -c 'cd /tmp; touch a; mkdir b; ln -s x c; mkfifo p; umask 077; > d; mknod e c 1 3 2> /dev/null || true'; \
         touch /tmp/root",
        &[("tmp/a", bob), ("tmp/b", bob), ("tmp/c", bob), ("tmp/p", bob), ("tmp/d", bob)],
    );
    // The one whose parents have ended is still it.
    check("chmod 1777 /tmp; su bob -c '(sh -c \"sleep 0.1; > /tmp/late\" &)'; sleep 0.5", &[("tmp/late", bob)]);
    check(
        "mkdir d; chown 0:50 d; chmod 2777 d; su bob -c '> d/f; mkdir d/e; > d/e/g'; chmod 755 d; ls -ld d/e | cut -c 1-10 > m; \
         grep -q drwxr-sr-x m; rm m",
        &[("d", "0:50"), ("d/f", "1000:50"), ("d/e", "1000:50"), ("d/e/g", "1000:50")],
    );
    let rows = [
        ("id", "uid=0 gid=0(root) groups=0(root),10(wheel)\n"),
        ("su bob -c id", "uid=1000(bob) gid=1001(bob) groups=10(wheel),50(staff),1001(bob)\n"),
        ("start-stop-daemon -S -c bob -x /bin/id -- -u", "1000\n"),
        ("su bob -c 'su bob -c id' 2>&1 | tail -1", "su: must be suid to work properly\n"),
        (
            "su bob -c 'start-stop-daemon -S -c bob -x /bin/id' 2>&1",
            "start-stop-daemon: can't set groups: Operation not permitted\n",
        ),
        ("touch f; chmod 666 f; su bob -c 'chown bob f' 2>&1", "chown: f: Operation not permitted\n"),
        (
            "touch f; chown bob f; su bob -c 'chown 0 f; chgrp 50 f; chgrp 51 f' 2>&1; ls -n f | tr -s ' ' | cut -d ' ' -f 3,4",
            "chown: f: Operation not permitted\nchgrp: f: Operation not permitted\n1000 50\n",
        ),
    ];
    for (script, expected) in rows {
        let mut step = recorded();
        assert_eq!(step.sh(script).out, expected, "{script}");
    }
    let mut step = recorded().with(|spec| spec.user = "bob".into());
    let ran = step.sh("id; id -u; mkdir /tmp/x; > /tmp/x/y; chgrp 50 /tmp/x/y; chown 0 /tmp/x 2>&1; start-stop-daemon -S -c bob -x /bin/id 2>&1");
    let told = "uid=1000(bob) gid=1001(bob) groups=10(wheel),50(staff),1001(bob)\n1000\nchown: /tmp/x: Operation not permitted\n\
                start-stop-daemon: can't set groups: Operation not permitted\n";
    assert_eq!((&ran.out[..], ran.identity), (told, Some((1000, 1001))), "{ran:?}");
    assert_eq!(notes(&step, &ran), BTreeMap::from([("tmp/x/y".to_owned(), "1000:50".to_owned())]));
}

/// Errors are those of the kernel, and nothing that a call is given blocks or ends the supervisor.
pub fn hostile_calls() {
    let long = "x".repeat(300);
    let deep = "y/".repeat(2100);
    let rows: &[(&str, &str)] = &[
        ("chown 1 nothing", "chown: nothing: No such file or directory\n"),
        ("touch f; chown 1 f/x", "chown: f/x: Not a directory\n"),
        ("ln -s a b; ln -s b a; chown 1 a", "chown: a: Symbolic link loop\n"),
        ("ln -s gone l; chown 1 l", "chown: l: No such file or directory\n"),
        (&format!("chown 1 {long}"), &format!("chown: {long}: Filename too long\n")),
        (&format!("chown 1 {deep}"), &format!("chown: {deep}: Filename too long\n")),
        ("touch f; mknod f c 1 3", "mknod: f: File exists\n"),
        ("mknod d/x c 1 3", "mknod: d/x: No such file or directory\n"),
        ("mkdir d; mknod d c 1 3", "mknod: d: File exists\n"),
        ("mknod w c 0 0", "mknod: w: Operation not permitted\n"),
        // Nobody writes into it: whoever opened it would wait for ever.
        ("mkfifo p; chown 1:2 p; su bob -c 'test -p p'", ""),
        ("chown 1:2 /dev/stdout /proc/self/fd/2 /dev/null", ""),
        ("chown -R 1:2 /proc/self/task > /dev/null 2>&1; true", ""),
        ("for i in 1 2 3 4 5 6 7 8; do (while :; do chown 1:2 /tmp; done) & done; sleep 0.3; kill -9 -1", ""),
    ];
    for (script, expected) in rows {
        let begin = std::time::Instant::now();
        let mut step = recorded();
        let ran = step.sh(script);
        assert_eq!(
            ran.err
                .replace("Too many levels of symbolic links", "Symbolic link loop")
                .replace("File name too long", "Filename too long"),
            *expected,
            "{script}"
        );
        assert!(ran.result.is_ok() && begin.elapsed().as_secs() < 10, "{script}");
    }
}

/// By number, of both kinds of programs. The path is in the header of the program itself, at its second byte.
#[cfg(target_arch = "x86_64")]
pub fn calls_by_number() {
    const PATH: u32 = 0x40_0001;
    let (wide, narrow) = (crate::elf::call as fn(u32, [u32; 2]) -> Vec<u8>, crate::elf::call_32 as fn(u32, [u32; 2]) -> Vec<u8>);
    let block = 0x6000 | 0o640;
    // What is called, the error, and what is noted at `f` or, if that isn't there before, the new file. The third argument is 0.
    let rows = [
        ("chown", wide, 92, [PATH, 7], true, 0, "7:0"),
        ("lchown", wide, 94, [PATH, 7], true, 0, "7:0"),
        ("mknod", wide, 133, [PATH, block], false, 0, "b 0:0"),
        ("setuid", wide, 105, [7, 0], true, 0, ""),
        ("setgroups", wide, 116, [70_000, 0], true, 14, ""),
        ("setgroups of none", wide, 116, [0, 0], true, 0, ""),
        ("fchown of no descriptor", wide, 93, [99, 7], true, 9, ""),
        ("fchownat with flags that don't exist", wide, 260, [PATH, 1], true, 14, ""),
        ("chown of nowhere", wide, 92, [1, 7], true, 14, ""),
        ("chown of the end of memory", wide, 92, [0xffff_ffff, 7], true, 14, ""),
        ("setresuid", wide, 117, [7, 7], true, 0, ""),
        ("getresuid to nowhere", wide, 118, [1, 1], true, 14, ""),
        ("stat to nowhere", wide, 4, [PATH, 1], true, 14, ""),
        ("32-bit chown", narrow, 182, [PATH, 7], true, 0, "7:0"),
        ("32-bit chown of 16 bits", narrow, 182, [PATH, 0x1_0007], true, 0, "7:0"),
        ("32-bit chown32", narrow, 212, [PATH, 0x1_0007], true, 0, "65543:0"),
        ("32-bit lchown", narrow, 16, [PATH, 8], true, 0, "8:0"),
        ("32-bit lchown32", narrow, 198, [PATH, 8], true, 0, "8:0"),
        ("32-bit mknod", narrow, 14, [PATH, block], false, 0, "b 0:0"),
        ("32-bit setuid", narrow, 23, [7, 0], true, 0, ""),
        ("32-bit setuid32", narrow, 213, [7, 0], true, 0, ""),
        ("32-bit setgroups32", narrow, 206, [3, 1], true, 14, ""),
        ("32-bit chown of nowhere", narrow, 212, [1, 7], true, 14, ""),
    ];
    let name = |program: &[u8]| program[1..].split(|byte| *byte == 0).next().unwrap().to_vec();
    for (what, program, number, arguments, exists, code, expected) in rows {
        let mut step = recorded();
        let program = program(number, arguments);
        let directory = step.subdir("upper/t");
        let file = directory.join(std::ffi::OsStr::from_bytes(&name(&program)));
        if exists {
            std::fs::write(&file, "").unwrap();
        }
        std::fs::write(directory.join("program"), program).unwrap();
        std::fs::set_permissions(directory.join("program"), PermissionsExt::from_mode(0o755)).unwrap();
        let ran = step.sh("cd /t; ./program 2> /dev/null; echo $?");
        if ran.out == "126\n" || ran.out == "127\n" {
            println!("skipped: {what}: this kernel has no 32-bit programs");
            continue;
        }
        assert_eq!(ran.out, format!("{code}\n"), "{what}");
        let noted = [OWNER, NODE].iter().find_map(|name| {
            let mut value = [0u8; 64];
            let length = rustix::fs::lgetxattr(&file, *name, &mut value[..]).ok()?;
            Some(String::from_utf8_lossy(&value[..length]).into_owned())
        });
        assert_eq!(noted.unwrap_or_default(), expected, "{what}");
    }
}

#[cfg(not(target_arch = "x86_64"))]
pub fn calls_by_number() {
    println!("skipped: owners::calls_by_number: its programs are written for x86-64");
}
