//! Builds on different machines that share a cache and nothing else.

use std::fmt::Write as _;

use serde_json::Value;

use crate::cache::cached_steps;
use crate::support::home::{Home, Outcome};
use crate::support::lab::{Registry, RegistryOptions};

/// A registry of the test's own with the bases, so that what moves can be counted.
fn registry() -> Registry {
    Registry::start(&RegistryOptions { seeds: &["busybox"], ..RegistryOptions::default() })
}

fn home(registry: &Registry) -> Home {
    let home = Home::offline();
    home.mirror(registry.host());
    home
}

/// The id of the image that was built under a name.
fn image_id(home: &Home, name: &str) -> Value {
    home.run(["inspect", name]).ok().json()[0]["Id"].clone()
}

#[track_caller]
fn all_cached(outcome: &Outcome, steps: usize) {
    let found = cached_steps(outcome);
    assert!(found.iter().all(|(_, cached)| *cached), "{found:#?}\n{}", outcome.stderr);
    assert_eq!(found.len(), steps, "{found:#?}");
}

/// The blobs that were sent to whoever asked, by digest.
fn fetched(requests: &[String]) -> Vec<String> {
    let blobs = requests.iter().filter(|r| r.starts_with("GET ") && r.contains("/blobs/sha256:"));
    blobs.filter_map(|r| Some(r.split_once("/blobs/")?.1.split([' ', '?']).next()?.to_owned())).collect()
}

/// Bytes that were uploaded.
fn uploads(requests: &[String]) -> usize {
    requests.iter().filter(|r| r.contains("/blobs/uploads/") && (r.starts_with("PUT") || r.starts_with("PATCH"))).count()
}

/// A build of 20 steps: a stage, files from the context, files from the stage.
fn twenty_steps() -> String {
    let mut text = "FROM busybox AS tools\nRUN echo tool > /tool\nFROM busybox\nWORKDIR /w\nCOPY src /src\n".to_owned();
    for step in 0..15 {
        writeln!(text, "RUN echo {step} > /w/{step} && head -c 20000 /dev/urandom > /w/r{step}").unwrap();
    }
    text + "COPY --from=tools /tool /tool\nRUN cat /tool /src/f > /both\n"
}

/// Done when 3 of the issue.
#[test]
fn a_second_store_builds_twenty_steps_without_doing_any() {
    let registry = registry();
    let host = registry.host();
    let cache = format!("{host}/team/cache:main");
    let name = format!("{host}/team/app:1");
    let to = format!("type=registry,ref={cache},mode=max");
    let first = home(&registry);
    first.write("c/src/f", "context");
    let context = first.context("c", &twenty_steps());
    let built = first.run(["build", "--push", "-t", &name, "--cache-to", &to, context.to_str().unwrap()]).ok();
    assert!(cached_steps(&built).iter().all(|(_, cached)| !cached), "{built:?}");
    let layers = first.run(["inspect", &name]).ok().json()[0]["RootFS"]["Layers"].as_array().unwrap().len();
    assert_eq!(layers, 20);

    // Nothing but the store: no layer moves.
    let second = home(&registry);
    second.write("c/src/f", "context");
    let context = second.context("c", &twenty_steps());
    let before = registry.requests("").len();
    let built = second.run(["build", "-t", &name, "--cache-from", &cache, context.to_str().unwrap()]).ok();
    all_cached(&built, 20);
    assert_eq!(image_id(&second, &name), image_id(&first, &name));
    let moved = fetched(&registry.requests("")[before..]);
    assert_eq!(moved.len(), 2, "the configuration of the base, and the cache's document: {moved:?}");

    // To the registry that has them all: no layer moves either.
    let third = home(&registry);
    third.write("c/src/f", "context");
    let context = third.context("c", &twenty_steps());
    let before = registry.requests("").len();
    let again = format!("{host}/team/app:2");
    let built = third.run(["build", "--push", "-t", &again, "--cache-from", &cache, context.to_str().unwrap()]).ok();
    all_cached(&built, 20);
    let requests = registry.requests("").split_off(before);
    assert_eq!(fetched(&requests).len(), 2, "{requests:#?}");
    assert_eq!(uploads(&requests), 0, "{requests:#?}");
    assert_eq!(image_id(&third, &again), image_id(&first, &name));

    // Into a file: the layers of the result, once.
    let before = registry.requests("").len();
    let file = third.path("image.tar");
    let output = format!("type=oci,dest={}", file.display());
    third.run(["build", "-o", &output, "--cache-from", &cache, context.to_str().unwrap()]).ok();
    let mut moved = fetched(&registry.requests("")[before..]);
    let all = moved.len();
    moved.sort();
    moved.dedup();
    assert_eq!((moved.len(), all), (21, 21), "20 layers, the base's among them, and the document: {moved:#?}");
    // The store that got everything by name works with it.
    second.build("child", &format!("FROM {name}\nRUN test -f /both && test -f /w/r14\n")).ok();
}
