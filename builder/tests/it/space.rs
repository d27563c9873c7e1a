//! The space that a store takes: `du` says what the disk says, `prune` takes what it was asked for, and kiln collects by itself, on a
//! full disk too.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::support::home::{Home, finish};
use crate::support::skip;

const USAGE: i32 = 125;

const BIG: &str = "FROM busybox\nRUN --mount=type=cache,target=/c head -c 2000000 /dev/urandom > /big; echo > /c/x\nCOPY f /f\n";

/// How many rows `du` has of each type.
fn count(home: &Home, kind: &str) -> usize {
    home.run(["du", "--filter", &format!("type={kind}"), "-q"]).ok().stdout.lines().count()
}

/// The blocks of all that is below a folder, each file once.
fn disk(folder: &Path, seen: &mut std::collections::HashSet<u64>) -> u64 {
    let meta = fs::symlink_metadata(folder).unwrap();
    let mut sum = if seen.insert(meta.ino()) { meta.blocks() * 512 } else { 0 };
    if meta.is_dir() {
        sum += fs::read_dir(folder).unwrap().map(|entry| disk(&entry.unwrap().path(), seen)).sum::<u64>();
    }
    sum
}

/// The store of the mode that the tests run in.
fn own_store(home: &Home) -> PathBuf {
    let stores = ["flat", "rootless", ""].map(|name| home.store().join(name));
    stores.into_iter().find(|store| store.join("version").exists()).unwrap()
}

#[test]
fn du_adds_up_and_filters_choose() {
    let home = Home::new();
    home.write("context-x/f", "f");
    home.write("context-y/f", "f");
    home.build("x", BIG).ok();
    home.build("y", BIG).ok();
    let table = home.run(["du"]).ok().stdout;
    let total = table.lines().find_map(|line| line.strip_prefix("Total:")).unwrap().trim().to_owned();
    let sum = disk(&own_store(&home), &mut std::collections::HashSet::new());
    // Four digits are told.
    let told: f64 = total.trim_end_matches("MB").parse().unwrap_or_else(|_| panic!("{table}"));
    assert!((told * 1e6 - sum as f64).abs() <= 1000.0, "{total} of {sum} bytes\n{table}");
    assert_eq!((count(&home, "exec.cachemount"), count(&home, "internal"), count(&home, "no such")), (1, 1, 0), "{table}");

    let steps = count(&home, "layer");
    assert_eq!(
        home.run(["prune", "-f", "--dry-run", "--filter", "type=exec.cachemount", "--format", "json"]).ok().json().len(),
        1
    );
    home.run(["prune", "-f", "--filter", "type=exec.cachemount"]).ok();
    assert_eq!((count(&home, "exec.cachemount"), count(&home, "layer")), (0, steps));
    home.run(["prune", "-f", "--filter", "type=source.local", "--filter", "until=1h"]).ok();
    assert!(count(&home, "memo") > 0 || count(&home, "record") > 0, "what is young stays");
    home.run(["rmi", "y"]).ok();
    home.run(["prune", "-f", "--keep-storage", "1GB"]).ok();
    assert_eq!(count(&home, "layer"), steps, "there is no need");
    home.run(["prune", "-f", "--min-free-space", "1B"]).ok();
    assert_eq!(count(&home, "layer"), steps, "enough is free");
    home.run(["prune", "-f", "--min-free-space", "100%", "--reserved-space", "100%"]).ok();
    assert_eq!(count(&home, "layer"), steps, "what is reserved stays");
    home.run(["prune", "-f", "--min-free-space", "100%"]).ok();
    assert!(count(&home, "record") == 0 && count(&home, "layer") > 0, "an image's layers are no cache");
    for wrong in ["--filter=size=3", "--filter=until=soon", "--max-used-space=much", "--min-free-space=101%"] {
        home.run(["prune", "-f", wrong]).fails(USAGE);
    }
    home.build("check", "FROM x\nRUN test $(stat -c %s /big) -eq 2000000\n").ok();
}

/// Says that the records were last used five hours ago.
fn age(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            age(&entry);
        } else {
            let file = fs::File::options().write(true).open(entry).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(5 * 3600)).unwrap();
        }
    }
}

/// An hour after the last time, the least recently used goes until the limit holds; images stay.
#[test]
fn kiln_collects_by_itself() {
    let home = Home::new();
    let settings = fs::read_to_string(home.path("config/kiln/kiln.toml")).unwrap();
    let gc = |more: &str| home.settings(&format!("{settings}[gc]\nreserved-space = \"0\"\nmin-free-space = \"0\"\n{more}"));
    gc("max-used-space = \"3MB\"\n");
    let step = |n: u32| format!("FROM busybox\nRUN head -c 2000000 /dev/urandom > /big{n}\n");
    home.build("kept", &step(0)).ok();
    for n in 1..4 {
        if n == 3 {
            age(&own_store(&home).join("cache"));
        }
        home.build("other", &step(n)).ok();
    }
    home.run(["rmi", "other"]).ok();
    let before = count(&home, "record");
    let pass = |hours: u64| {
        let stamp = fs::File::options().write(true).open(own_store(&home).join("collected")).unwrap();
        stamp.set_modified(SystemTime::now() - Duration::from_secs(hours * 3600)).unwrap();
    };
    home.build("small", "FROM busybox\n").ok();
    assert_eq!(count(&home, "record"), before, "it is not time");
    pass(2);
    gc("enabled = false\nmax-used-space = \"3MB\"\n");
    home.build("small", "FROM busybox\n").ok();
    assert_eq!(count(&home, "record"), before, "it is not wanted");
    gc("max-used-space = \"3MB\"\n");
    let collected = home.build("small", "FROM busybox\n").ok();
    assert!(!collected.stderr.contains("WARN"), "{}", collected.stderr);
    let (left, rows) = (count(&home, "record"), home.run(["du"]).ok().stdout);
    assert!(left < before && left > 0, "{left} of {before} records\n{rows}");
    assert_eq!(home.build("again", &step(3)).ok().cached(), 1, "the youngest stays");
    home.build("check", "FROM kept\nRUN test $(stat -c %s /big0) -eq 2000000\n").ok();
    gc("[[gc.policy]]\nfilters = [\"size=3\"]\n");
    pass(2);
    home.build("check", "FROM kept\n").ok().says(&["filter `size=3` is not supported"]);
}

/// On a disk without a free byte, `prune` makes room and the build goes on.
#[test]
fn a_full_disk_is_emptied() {
    const TEST: &str = "space::a_full_disk_is_emptied";
    let home = Home::new();
    let context = home.context("c", "FROM busybox\nRUN head -c 9000000 /dev/urandom > /big\n");
    let second = home.context("d", "FROM busybox\nRUN head -c 9000001 /dev/urandom > /big\n");
    fs::create_dir(home.store()).unwrap();
    // The disk is seen by this shell only and goes with it.
    let script = r#"mount -t tmpfs -o size=16m none "$KILN_ROOT" || exit 77
kiln() { "$KILN" "$@"; }
kiln build "$1"
if kiln build "$2"; then exit 3; fi
dd if=/dev/zero of="$KILN_ROOT/fill" 2>/dev/null || :
kiln prune -af
rm "$KILN_ROOT/fill"
kiln build "$2"
"#;
    let mut command = Command::new("unshare");
    let kiln = home.command();
    command.args(["-m", "sh", "-euc", script, "sh"]).arg(context).arg(second).env("KILN", kiln.get_program());
    for (name, value) in kiln.get_envs().filter_map(|(name, value)| Some((name, value?))) {
        command.env(name, value);
    }
    let outcome = finish(&mut command);
    if outcome.status.code() == Some(77) {
        return skip::skipped(TEST, "no tmpfs can be mounted");
    }
    outcome.ok();
}
