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

/// Where the groups of this process are: a hierarchy that limits processes, and one of version 2.
fn places() -> Vec<PathBuf> {
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let path = |wanted: &str| {
        own.lines().find_map(|line| line.split_once(wanted)).map(|(_, path)| path.trim_start_matches('/').to_owned())
    };
    let second = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
    let second = second.iter().find(|at| Path::new(at).join("cgroup.subtree_control").exists());
    let mut found = Vec::new();
    found.extend(path(":pids:").map(|own| Path::new("/sys/fs/cgroup/pids").join(own)));
    found.extend(path("0::").zip(second).map(|(own, at)| Path::new(at).join(own)));
    found.retain(|path| rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok());
    found
}

/// What a killed kiln left in its groups is killed by the next start, and the groups are removed; those of one that lives are not.
pub fn groups_of_the_dead() {
    let places = places();
    if places.is_empty() {
        return println!("skipped: groups::groups_of_the_dead: no writable control group");
    }
    for place in places {
        // A process id that nobody has, as far as one can know.
        let dead = place.join(format!("kiln-4194200-{}", std::process::id()));
        let alive = place.join(format!("kiln-4194201-{}", std::process::id()));
        for group in [&dead, &alive] {
            std::fs::create_dir(group).unwrap();
        }
        std::fs::create_dir(dead.join("below")).unwrap();
        let lock = std::fs::File::open(&alive).unwrap();
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let mut sleeper = std::process::Command::new("sleep").arg("5521.5").spawn().unwrap();
        std::fs::write(dead.join("below/cgroup.procs"), sleeper.id().to_string()).unwrap();
        let mut other = std::process::Command::new("sleep").arg("5522.5").spawn().unwrap();
        std::fs::write(alive.join("cgroup.procs"), other.id().to_string()).unwrap();
        let entered = kiln_runner::Entered::nothing();
        let entered = kiln_runner::Entered { mode: host().mode.clone(), ..entered };
        kiln_runner::Host::probe(&entered, &kiln_runner::Ground::probe(&entered, &std::env::temp_dir()));
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(sleeper.wait().unwrap().signal(), Some(9), "{}", dead.display());
        // The zombie held the group until it was waited for.
        kiln_runner::Host::probe(&entered, &kiln_runner::Ground::probe(&entered, &std::env::temp_dir()));
        assert!(!dead.exists(), "{}", dead.display());
        assert!(other.try_wait().unwrap().is_none(), "what a living kiln holds stays");
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(alive.exists());
        std::fs::remove_dir(&alive).unwrap();
    }
}

/// Both ways in one step where both versions are there: version 1 limits, version 2 kills.
pub fn both_versions() {
    let places = places();
    let ran = Step::new().sh("cat /proc/self/cgroup").ok();
    let expected =
        places.iter().filter(|place| !place.join("cgroup.subtree_control").exists() || !place.starts_with("/none")).count();
    let joined = ran.lines().filter(|line| line.contains("/kiln-")).count();
    assert!(joined >= expected.min(2), "{ran}");
}

/// An ordinary user to whom root gave a part of the tree is limited there; one to whom nothing was given is told.
pub fn a_part_that_was_given_away() {
    let known = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let person = known.lines().find(|line| line.starts_with("kiln-subids:")).map(|line| line.split(':').collect::<Vec<_>>());
    let (Some(person), true) = (person, rustix::process::geteuid().is_root()) else {
        return println!("skipped: groups::a_part_that_was_given_away: there is no user kiln-subids, or this isn't root");
    };
    let places = places();
    if !places.iter().any(|place| place.starts_with("/sys/fs/cgroup/pids")) {
        return println!("skipped: groups::a_part_that_was_given_away: no hierarchy of version 1 that limits processes");
    }
    let name = format!("given-{}", std::process::id());
    let folder = tempfile::Builder::new().prefix("kiln-given-").tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let program = folder.path().join("sandbox");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let given: Vec<PathBuf> = places.iter().map(|place| place.join(&name)).collect();
    let (uid, gid): (u32, u32) = (person[2].parse().unwrap(), person[3].parse().unwrap());
    for group in &given {
        std::fs::create_dir(group).unwrap();
        std::os::unix::fs::chown(group, Some(uid), Some(gid)).unwrap();
        for file in ["tasks", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"] {
            let _ = std::os::unix::fs::chown(group.join(file), Some(uid), Some(gid));
        }
    }
    let join: String = given.iter().map(|group| format!("echo $$ > {}/cgroup.procs; ", group.display())).collect();
    let run = |join: &str| {
        let script = format!(
            "{join}exec setpriv --reuid={uid} --regid={gid} --clear-groups --inh-caps=-all --ambient-caps=-all -- {} --exact endings::process_limit --nocapture",
            program.display()
        );
        let output = std::process::Command::new("sh")
            .args(["-c", &script])
            .env(crate::threats::modes::ISOLATION, "rootless")
            .current_dir("/")
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    };
    let (with, without) = (run(&join), run(""));
    for group in &given {
        // What ran there is gone, and its own groups with it.
        std::fs::remove_dir(group).unwrap_or_else(|error| panic!("{}: {error}", group.display()));
    }
    assert!(with.contains("1 passed") && !with.contains("skipped:"), "{with}");
    assert!(without.contains("skipped: endings::process_limit"), "{without}");
}
