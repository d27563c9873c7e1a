//! What a step costs before it does anything: start, mount, run `true`, end. `cargo bench -p kiln-runner`.
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]

use std::path::Path;
use std::time::{Duration, Instant};

use kiln_runner::{Cancel, Host, RootFs, RunSpec};

const ROUNDS: usize = 300;

fn main() {
    kiln_runner::take_over();
    let before = Instant::now();
    let entered = kiln_runner::enter(&kiln_runner::Wish::default()).unwrap();
    let mut host = Host::probe(&entered, &kiln_runner::Ground::probe(&entered, &std::env::temp_dir()));
    println!("probe           {:>8.3} ms", before.elapsed().as_secs_f64() * 1e3);
    let store = tempfile::tempdir().unwrap();
    let base = store.path().join("base");
    std::fs::create_dir_all(base.join("bin")).unwrap();
    if std::fs::copy("/bin/busybox", base.join("bin/true")).is_err() {
        println!("skipped: /bin/busybox (package busybox-static) is not installed");
        return;
    }
    // As kiln does it; without, each run makes and removes its mount points.
    if std::env::var_os("WITHOUT_MOUNT_POINTS").is_none() {
        host.keep_mount_points(&store.path().join("points")).unwrap();
    }
    let layers: usize = std::env::var("LAYERS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let mut times: Vec<Duration> = (0..ROUNDS).map(|round| one(&host, store.path(), &base, round, layers)).collect();
    times.sort();
    for (name, at) in [("least", 0), ("median", ROUNDS / 2), ("9 of 10", ROUNDS * 9 / 10), ("most", ROUNDS - 1)] {
        println!("{name:<15} {:>8.3} ms", times[at].as_secs_f64() * 1e3);
    }
}

fn one(host: &Host, store: &Path, base: &Path, round: usize, layers: usize) -> Duration {
    let step = store.join(round.to_string());
    let (upper, work) = (step.join("diff"), step.join("work"));
    std::fs::create_dir_all(&upper).unwrap();
    std::fs::create_dir_all(&work).unwrap();
    let mut lowers: Vec<_> =
        (round.saturating_sub(layers - 1)..round).rev().map(|n| store.join(n.to_string()).join("diff")).collect();
    lowers.push(base.to_owned());
    let before = Instant::now();
    let spec = RunSpec::new(RootFs::Overlay { lowers, upper, work }, vec!["/bin/true".into()]);
    let outcome = kiln_runner::run(&spec, host, &Cancel::new().unwrap(), &mut |_, _| {}).unwrap();
    let took = before.elapsed();
    assert!(outcome.status.success());
    took
}
