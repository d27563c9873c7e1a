//! Limits of all processes together: control groups of the machine that the tests run on.

use std::path::{Path, PathBuf};

use kiln_runner::{GroupLimits, Status};

use crate::support::{Step, host};

/// A step with these limits; `None`, said on the test's output, where this machine can't enforce them.
fn limited(test: &str, limits: GroupLimits) -> Option<Step> {
    let lacks = host().lacks(&limits);
    if lacks.is_empty() {
        return Some(Step::new().with(|spec| spec.group = limits));
    }
    println!("skipped: groups::{test}: no writable control group for {}", lacks.join(", "));
    None
}

/// Grows without end: `tail` keeps what it reads until the end of the line.
const HOG: &str = "tail /dev/zero";

pub fn memory() {
    let limits = GroupLimits { memory: Some(32 << 20), memory_and_swap: Some(Some(32 << 20)), ..GroupLimits::default() };
    let Some(mut step) = limited("memory", limits) else { return };
    for hog in [HOG.to_owned(), format!("exec {HOG}"), format!("{HOG}; exit $?")] {
        let ran = step.sh(&hog);
        assert!(matches!(ran.result, Ok(Status::OomKilled)), "{hog}: {ran:?}");
    }
    // What the command makes of it is its own affair.
    let ran = step.sh(&format!("{HOG}; exit 3"));
    assert!(matches!(ran.result, Ok(Status::Exited(3))), "{ran:?}");
    assert_eq!(step.sh("head -c 8000000 /dev/zero | wc -c").ok(), "8000000\n");
    // Killed, but not for that.
    let ran = step.sh("sh -c 'kill -9 $$'; exit $?");
    assert!(matches!(ran.result, Ok(Status::Exited(137))), "{ran:?}");
}

pub fn processors() {
    let limits = GroupLimits {
        cpus: Some("0".to_owned()),
        cpu_shares: Some(512),
        cpu_quota: Some(50_000),
        cpu_period: Some(100_000),
        ..GroupLimits::default()
    };
    let Some(mut step) = limited("processors", limits) else { return };
    assert_eq!(step.sh("nproc").ok(), "1\n");
    // Half a processor: a second of work takes two. `times` counts what was used.
    let begin = std::time::Instant::now();
    step.sh("i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done").ok();
    let limited = begin.elapsed();
    let begin = std::time::Instant::now();
    Step::new().sh("i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done").ok();
    let free = begin.elapsed();
    assert!(limited > free.mul_f64(1.2), "{limited:?} with half a processor, {free:?} with all");
}

pub fn parents() {
    let name = format!("kiln-test-parent-{}", std::process::id());
    let limits = GroupLimits { parent: Some(Path::new("/").join(&name).join("inner")), ..GroupLimits::default() };
    let Some(mut step) = limited("parents", limits) else { return };
    let groups = step.sh("cat /proc/self/cgroup").ok();
    assert!(groups.lines().filter(|line| line.contains(&format!("/{name}/inner/kiln-"))).count() > 0, "{groups}");
    // The run's own groups are gone, so that these are empty.
    for top in ["/sys/fs/cgroup".into(), "/sys/fs/cgroup/unified".into()].into_iter().chain(controllers()) {
        let group: PathBuf = top.join(&name);
        if group.exists() {
            std::fs::remove_dir(group.join("inner")).unwrap();
            std::fs::remove_dir(group).unwrap();
        }
    }
}

fn controllers() -> Vec<PathBuf> {
    let entries = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

pub fn limits_that_are_refused() {
    let limits = GroupLimits { cpus: Some("4000".to_owned()), ..GroupLimits::default() };
    let Some(mut step) = limited("limits_that_are_refused", limits) else { return };
    let error = step.sh("true").error();
    assert!(error.contains("limit `cpuset-cpus`") && error.contains("4000"), "{error}");
}
