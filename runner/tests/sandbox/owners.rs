//! Owners that are recorded instead of changed. Nothing of it depends on how many ids there are, so that it is tried as root too.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use kiln_runner::Recorder;

use crate::support::{Ran, Step};

/// Attributes that the kernel lets anybody set.
const OWNER: &str = "user.kiln.owner";
const NODE: &str = "user.kiln.node";

fn recorded() -> Step {
    Step::new()
        .with(|spec| spec.recorder = Some(Recorder { owner_attribute: OWNER.into(), node_attribute: NODE.into(), show: true }))
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

pub fn smoke() {
    check("touch f; chown 33:44 f", &[("f", "33:44")]);
    check("chown 33 /etc/passwd; chgrp 7 /etc/passwd /etc", &[("etc", "0:7"), ("etc/passwd", "33:7")]);
    check("ln -s x l; chown -h 5:6 l; mkfifo p; chown 8:9 p; mv p /tmp/q", &[("l", "5:6"), ("tmp/q", "8:9")]);
    check("mknod null c 1 3; mknod -m 600 sda b 8 0", &[("null", "c 1:3"), ("sda", "b 8:0")]);
    check("touch f; chown 33:44 f; chown 0:0 f; ln -s x l; chown -h 5:6 l; rm l; ln -s y k", &[("f", "0:0")]);
    check(
        "chmod 1777 /tmp; su bob -c 'touch /tmp/a; mkdir /tmp/b; ln -s x /tmp/c; mkfifo /tmp/p; (sh -c \"> /tmp/d\" &) ; sleep 0.1'",
        &[("tmp/a", "1000:1001"), ("tmp/b", "1000:1001"), ("tmp/c", "1000:1001"), ("tmp/p", "1000:1001"), ("tmp/d", "1000:1001")],
    );
    check("mkdir d; chown 0:50 d; chmod 2775 d; touch d/a; mkdir d/e; > d/e/f; touch g", &[("d", "0:50")]);
    check("[ \"$(su bob -c id)\" = 'uid=1000(bob) gid=1001(bob) groups=10(wheel),50(staff),1001(bob)' ] || su bob -c id", &[]);
    check(
        "mkdir -p /c/dev; cp -a /bin /etc /c; chroot /c sh -c 'cd /etc; mknod ../dev/x c 1 5; chown 3:4 group; ln -s /etc/passwd l; chown 5:6 l; chown -h 7:8 l'",
        &[("c/dev/x", "c 1:5"), ("c/etc/group", "3:4"), ("c/etc/passwd", "5:6"), ("c/etc/l", "7:8")],
    );
    let _ = Path::new("");
}

pub fn figures() {
    for mut step in [Step::new(), recorded()] {
        let dir = step.subdir("upper/b");
        std::fs::copy("/tmp/bench", dir.join("bench")).unwrap();
        println!("{}", step.sh("chmod 777 /tmp; /b/bench").out);
    }
}
