//! What one kiln takes away while others use it (F13, F14), and what many do at the same time (F11).

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::support::archive::Image;
use crate::support::home::{Home, outcome};
use crate::support::lab::{Registry, RegistryOptions};

/// How long a race goes on: a few seconds, or what `KILN_TEST_RACE_SECONDS` says (`make torture`: 300).
fn long() -> Duration {
    let asked = std::env::var("KILN_TEST_RACE_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(asked.unwrap_or(6))
}

fn start(home: &Home, args: &[&str]) -> Child {
    home.command().args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Four people build, from scratch and from the cache, and use what they built; a fifth one prunes all the time. Nobody is told that
/// something isn't there, and prune gets its turn.
#[test]
fn pruning_all_the_time_beside_four_builders() {
    let Some(home) = Home::in_mode("pruning_all_the_time_beside_four_builders") else { return };
    for i in 0..4 {
        let dockerfile = format!(
            "FROM busybox AS one\nRUN echo {i} > /one\nFROM busybox\nRUN echo shared > /shared\nCOPY f /f\nCOPY --from=one /one /one\n\
             RUN cat /one /f /shared > /all\n"
        );
        home.context(&format!("c{i}"), &dockerfile);
        home.write(&format!("c{i}/f"), format!("file {i}\n").repeat(1000));
        home.context(&format!("use{i}"), &format!("FROM race-{i}\nRUN grep -qx {i} /one && grep -q shared /all && test -s /f\n"));
    }
    let (builds, prunes, is_over) = (AtomicU32::new(0), AtomicU32::new(0), AtomicBool::new(false));
    let end = Instant::now() + long();
    std::thread::scope(|scope| {
        let mut people = Vec::new();
        for i in 0..4_u64 {
            let (home, builds) = (&home, &builds);
            people.push(scope.spawn(move || {
                let mut round = i;
                while Instant::now() < end {
                    let (name, path) =
                        (format!("race-{i}"), |folder: &str| home.path(&format!("{folder}{i}")).display().to_string());
                    let mut args = vec!["build", "-t", &name];
                    if round % 3 == 0 {
                        args.push("--no-cache");
                    }
                    let (context, using) = (path("c"), path("use"));
                    args.push(&context);
                    home.run(args).ok();
                    home.run(["build", "-q", &using]).ok();
                    builds.fetch_add(2, Ordering::Relaxed);
                    if round % 4 == 1 {
                        home.run(["rmi", &name]).ok();
                    }
                    round += 1;
                    std::thread::sleep(Duration::from_millis(round * 37 % 120));
                }
            }));
        }
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let how: &[&str] =
                    if prunes.fetch_add(1, Ordering::Relaxed) % 2 == 0 { &["prune", "-a", "-f"] } else { &["prune", "-f"] };
                home.run(how).ok();
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let ended: Vec<_> = people.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        is_over.store(true, Ordering::Relaxed);
        assert!(ended.iter().all(Result::is_ok), "a build failed");
    });
    println!("{builds:?} builds, {prunes:?} prunes");
    assert!(builds.into_inner() >= 8 && prunes.into_inner() >= 2);
    home.left_nothing();
}

/// Whoever opened an image reads it to its end, and a command in it runs to its end, when the image is removed and all is pruned.
#[test]
fn readers_finish_what_they_opened() {
    let Some(home) = Home::in_mode("readers_finish_what_they_opened") else { return };
    // More than a pipe holds.
    let dockerfile = "FROM busybox\nRUN head -c 3000000 /dev/urandom > /big; sha256sum /big > /sum\nRUN echo top > /top\n";
    for way in ["save", "run", "tar"] {
        home.build("read", dockerfile).ok();
        let context = home.context("again", "FROM read\n");
        let script = "echo running; sleep 0.5; sha256sum -c /sum && cat /top";
        let mut reader = match way {
            "save" => start(&home, &["save", "read"]),
            "tar" => start(&home, &["build", "-q", "-o", "type=tar,dest=-", context.to_str().unwrap()]),
            _ => start(&home, &["run", "read", "sh", "-c", script]),
        };
        let mut read = vec![0; 8];
        let mut out = reader.stdout.take().unwrap();
        out.read_exact(&mut read).unwrap();
        // It reads on only when the image is gone; prune may wait for it.
        home.run(["rmi", "read"]).ok();
        let prune = start(&home, &["prune", "-a", "-f"]);
        std::thread::sleep(Duration::from_millis(300));
        out.read_to_end(&mut read).unwrap();
        outcome(way, reader.wait_with_output().unwrap()).ok();
        outcome("prune", prune.wait_with_output().unwrap()).ok();
        match way {
            "run" => assert_eq!(String::from_utf8_lossy(&read), "running\n/big: OK\ntop\n"),
            "save" => assert_eq!(Image::read(&home.write("read.tar", read)).unwrap().layers.len(), 3),
            _ => assert!(read.len() > 3_000_000 && read.ends_with(&[0; 1024]), "{} bytes", read.len()),
        }
        assert_eq!(home.run(["images", "-q"]).ok().stdout, "");
    }
    home.left_nothing();
}

/// 32 people build the same at once: one pulls, each step is run by one of them, and the store has one copy.
#[test]
fn many_equal_builds_do_each_thing_once() {
    const PEOPLE: usize = 32;
    let Some(home) = Home::in_mode("many_equal_builds_do_each_thing_once") else { return };
    let registry = Registry::start(&RegistryOptions { seeds: &["busybox"], ..RegistryOptions::default() });
    home.mirror(registry.host());
    let mut dockerfile = "FROM busybox\n".to_owned();
    for step in 0..3 {
        let _ = writeln!(
            dockerfile,
            "RUN --mount=type=cache,id=count,target=/count echo {step} >> /count/{step}; cat /proc/sys/kernel/random/uuid > /{step}"
        );
    }
    home.context("c", &(dockerfile + "COPY f /f\n"));
    home.write("c/f", "f".repeat(100_000));
    let context = home.path("c").display().to_string();
    let children: Vec<Child> = (0..PEOPLE).map(|i| start(&home, &["build", "-t", &format!("equal-{i}"), &context])).collect();
    let mut ran = 0;
    for child in children {
        let done = outcome("build", child.wait_with_output().unwrap()).ok();
        // The base is no step.
        ran += 4 - done.cached();
    }
    // Who waited for a step that another ran took it from the cache.
    assert_eq!(ran, 4);
    let ids: BTreeSet<String> = (0..PEOPLE)
        .map(|i| home.run(["inspect", &format!("equal-{i}")]).ok().json()[0]["RootFS"]["Layers"].to_string())
        .collect();
    assert_eq!(ids.len(), 1, "{ids:#?}");
    let count = "FROM busybox\nRUN --mount=type=cache,id=count,target=/count echo counted $(cat /count/* | wc -l)\n";
    home.build("count", count).ok().says(&["counted 3"]);
    let fetched =
        registry.requests("library/busybox").into_iter().filter(|line| line.starts_with("GET") && line.contains("/blobs/"));
    let (fetched, different) = (fetched.clone().count(), fetched.collect::<BTreeSet<_>>().len());
    assert_eq!(fetched, different, "a blob was fetched twice");
    // The base, three RUN, one COPY; and the one of the build that counted.
    assert_eq!(layers(&home.store()), 6);
    home.left_nothing();
}

/// How many layers are in all the stores below this folder.
fn layers(root: &Path) -> usize {
    let below = |folder: &Path| std::fs::read_dir(folder.join("layers")).map_or(0, Iterator::count);
    below(root) + ["rootless", "one-id", "flat", "flat-one-id"].iter().map(|form| below(&root.join(form))).sum::<usize>()
}
