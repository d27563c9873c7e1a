//! What the second build may take from the first, and what it may not.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::SystemTime;

use crate::support::home::{Home, Outcome};
use crate::support::lab;

/// The steps that a plain log shows, by the instruction's text, and whether each came from the cache.
pub(crate) fn cached_steps(outcome: &Outcome) -> Vec<(String, bool)> {
    let mut steps: Vec<(String, String, bool)> = Vec::new();
    for line in outcome.stderr.lines() {
        let Some((number, rest)) = line.split_once(' ').filter(|(n, _)| n.starts_with('#')) else { continue };
        if rest == "CACHED" {
            steps.iter_mut().filter(|(n, ..)| n == number).for_each(|(_, _, cached)| *cached = true);
        } else if rest.starts_with('[') && !rest.starts_with("[internal]") && !steps.iter().any(|(n, ..)| n == number) {
            let text = rest.split_once("] ").map_or(rest, |(_, text)| text);
            steps.push((number.to_owned(), text.to_owned(), false));
        }
    }
    let mut found: Vec<_> = steps.into_iter().map(|(_, text, cached)| (text, cached)).collect();
    found.retain(|(text, _)| !text.starts_with("FROM "));
    found
}

/// Whether the step whose text begins so was cached.
#[track_caller]
fn is_cached(outcome: &Outcome, step: &str) -> bool {
    let steps = cached_steps(outcome);
    let found = steps.iter().find(|(text, _)| text.starts_with(step));
    found.unwrap_or_else(|| panic!("no step {step:?} in {steps:#?}\n{}", outcome.stderr)).1
}

fn set_mtime(path: &Path, time: SystemTime) {
    fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
}

const DOCKERFILE: &str = "FROM busybox\nRUN echo first\nCOPY src /src\nRUN cat /src/f > /out\nENV a=b\nWORKDIR /w\n";

#[test]
fn nothing_changed_is_all_cached() {
    let home = Home::new();
    home.write("context-x/src/f", "one");
    let first = home.build("x", DOCKERFILE).ok();
    assert!(cached_steps(&first).iter().all(|(_, cached)| !cached), "{first:?}");
    let second = home.build("x", DOCKERFILE).ok();
    let steps = cached_steps(&second);
    assert_eq!(steps.len(), 4, "{second:?}");
    assert!(steps.iter().all(|(_, cached)| *cached), "{second:?}");
}

#[test]
fn the_same_image_comes_from_the_cache() {
    let home = Home::new();
    home.write("context-x/src/f", "one");
    home.build("x", DOCKERFILE).ok();
    let layers = |home: &Home| home.run(["inspect", "x"]).ok().json()[0]["RootFS"]["Layers"].clone();
    let first = layers(&home);
    assert_eq!(first.as_array().map(Vec::len), Some(5), "{first}");
    home.build("x", DOCKERFILE).ok();
    assert_eq!(layers(&home), first);
}

#[test]
fn each_change_misses_what_depends_on_it_and_no_more() {
    type Row = (&'static str, fn(&Home), [bool; 3]);
    let cases: [Row; 8] = [
        ("content", |h| drop(h.write("context-x/src/f", "two!")), [true, false, false]),
        ("same size", |h| drop(h.write("context-x/src/f", "two")), [true, false, false]),
        (
            "mode",
            |h| fs::set_permissions(h.path("context-x/src/f"), fs::Permissions::from_mode(0o700)).unwrap(),
            [true, false, false],
        ),
        ("name", |h| fs::rename(h.path("context-x/src/g"), h.path("context-x/src/h")).unwrap(), [true, false, false]),
        ("new file", |h| drop(h.write("context-x/src/new", "")), [true, false, false]),
        ("time only", |h| set_mtime(&h.path("context-x/src/f"), SystemTime::UNIX_EPOCH), [true, true, true]),
        ("not selected", |h| drop(h.write("context-x/other", "other")), [true, true, true]),
        ("rewritten the same", |h| drop(h.write("context-x/src/f", "one")), [true, true, true]),
    ];
    for (name, change, expected) in cases {
        let home = Home::new();
        home.write("context-x/src/f", "one");
        home.write("context-x/src/g", "gee");
        home.build("x", DOCKERFILE).ok();
        change(&home);
        let second = home.build("x", DOCKERFILE).ok();
        let found = ["RUN echo first", "COPY src", "RUN cat"].map(|s| is_cached(&second, s));
        assert_eq!(found, expected, "{name}\n{}", second.stderr);
    }
}

/// Same size, same time: BuildKit takes such a file for unchanged (moby/buildkit#4817).
#[test]
fn an_edit_that_keeps_size_and_time_is_seen() {
    let home = Home::new();
    let file = home.write("context-x/src/f", "one");
    home.build("x", DOCKERFILE).ok();
    let time = fs::metadata(&file).unwrap().modified().unwrap();
    fs::write(&file, "two").unwrap();
    set_mtime(&file, time);
    assert_eq!(fs::metadata(&file).unwrap().size(), 3);
    let second = home.build("x", DOCKERFILE).ok();
    assert!(!is_cached(&second, "COPY src"), "{}", second.stderr);
}

#[test]
fn instructions_miss_by_what_they_say() {
    let rows: [(&str, &str, bool); 10] = [
        ("RUN echo a", "RUN echo b", false),
        ("ENV x=1\nRUN echo a", "ENV x=2\nRUN echo a", false),
        ("LABEL x=1\nRUN echo a", "LABEL x=2\nRUN echo a", true),
        ("EXPOSE 1\nRUN echo a", "CMD x\nRUN echo a", true),
        ("USER 1\nRUN echo a", "USER 2\nRUN echo a", false),
        ("WORKDIR /a\nRUN echo a", "WORKDIR /b\nRUN echo a", false),
        ("ARG q=1\nRUN echo a", "ARG q=2\nRUN echo a", false),
        ("RUN echo a\nARG q=1", "RUN echo a\nARG q=2", true),
        ("SHELL [\"sh\", \"-c\"]\nRUN echo a", "SHELL [\"/bin/sh\", \"-c\"]\nRUN echo a", false),
        ("# comment\nRUN   echo a", "\n\nRUN echo a", true),
    ];
    let home = Home::new();
    for (number, (first, second, expected)) in rows.into_iter().enumerate() {
        // A file of each row's own, so that no row finds what another left.
        let start = format!("FROM busybox\nRUN echo row {number} > /row\n");
        home.build("x", &format!("{start}{first}\n")).ok();
        let outcome = home.build("x", &format!("{start}{second}\n")).ok();
        assert!(is_cached(&outcome, "RUN echo row"));
        let step = if second.contains("echo b") { "RUN echo b" } else { "RUN echo a" };
        assert_eq!(is_cached(&outcome, step), expected, "{first:?} then {second:?}\n{}", outcome.stderr);
    }
}

#[test]
fn a_build_argument_misses_only_what_follows_its_line() {
    let home = Home::new();
    let context = home.context("c", "FROM busybox\nRUN echo before\nARG Q\nRUN echo after\n");
    let build = |value: &str| {
        let argument = format!("Q={value}");
        home.run(["build", "--build-arg", &argument, context.to_str().unwrap()]).ok()
    };
    build("1");
    let second = build("2");
    assert!(is_cached(&second, "RUN echo before") && !is_cached(&second, "RUN echo after"), "{}", second.stderr);
    assert!(is_cached(&build("1"), "RUN echo after"));
}

/// The proxy variables reach RUN but are no part of what it is.
#[test]
fn proxies_do_not_miss() {
    let home = Home::new();
    let context = home.context("c", "FROM busybox\nRUN echo $HTTP_PROXY\n");
    let build = |proxy: &str| {
        let argument = format!("HTTP_PROXY={proxy}");
        home.run(["build", "--build-arg", &argument, context.to_str().unwrap()]).ok()
    };
    build("http://one.invalid");
    assert!(is_cached(&build("http://two.invalid"), "RUN echo"));
}

/// An earlier step is made again with the same result: what takes only that result still hits.
#[test]
fn the_same_content_from_another_step_hits() {
    let home = Home::new();
    let dockerfile = "FROM busybox AS make\nCOPY src /src\nRUN mkdir /out && sed 1q /src/f > /out/first\n\
                      FROM busybox\nCOPY --from=make /out /out\nRUN cat /out/first > /used\n";
    home.write("context-x/src/f", "first line\nsecond line\n");
    home.build("x", dockerfile).ok();
    home.write("context-x/src/f", "first line\nanother second line\n");
    let second = home.build("x", dockerfile).ok();
    assert!(!is_cached(&second, "RUN mkdir /out"), "{}", second.stderr);
    assert!(is_cached(&second, "COPY --from=make"), "{}", second.stderr);
    assert!(is_cached(&second, "RUN cat"), "{}", second.stderr);
}

#[test]
fn no_cache_takes_nothing_and_still_fills_the_cache() {
    let home = Home::new();
    let context = home.context("c", "FROM busybox\nRUN cat /proc/sys/kernel/random/uuid > /id\n");
    let path = context.to_str().unwrap();
    home.run(["build", path]).ok();
    assert!(!is_cached(&home.run(["build", "--no-cache", path]).ok(), "RUN cat"));
    assert!(is_cached(&home.run(["build", path]).ok(), "RUN cat"));
}

/// The stages that are named are made again; what takes the same result from them still hits.
#[test]
fn stages_can_be_made_again() {
    let home = Home::new();
    let dockerfile = "FROM busybox AS one\nRUN echo 1 > /one\nFROM busybox AS Two\nRUN echo 2 > /two\nFROM one AS three\n\
                      RUN cat /proc/sys/kernel/random/uuid > /three\nFROM busybox\nCOPY --from=three /one /\n\
                      COPY --from=two /two /\nRUN echo last\nFROM busybox AS with-three\nCOPY --from=three /three /\nRUN cat /three\n";
    let context = home.context("c", dockerfile);
    let path = context.to_str().unwrap();
    let steps = ["RUN echo 1", "RUN echo 2", "RUN cat /proc", "COPY --from=three", "COPY --from=two", "RUN echo last"];
    let build = |flags: &[&str]| home.run(["build", "--target=3"].iter().chain(flags).chain(&[path])).ok();
    build(&[]);
    // The steps that run, by their first letters and numbers.
    let rows: [(&[&str], &[&str]); 8] = [
        (&[], &[]),
        (&["--no-cache-filter=one"], &["RUN echo 1"]),
        (&["--no-cache-filter=TWO"], &["RUN echo 2"]),
        (&["--no-cache-filter=one,two"], &["RUN echo 1", "RUN echo 2"]),
        (&["--no-cache-filter=two", "--no-cache-filter=three"], &["RUN echo 2", "RUN cat /proc"]),
        (&["--no-cache-filter=3"], &[]),
        (&["--no-cache-filter=nobody"], &[]),
        (&["--no-cache"], &steps),
    ];
    for (flags, expected) in rows {
        let outcome = build(flags);
        let found: Vec<_> = steps.into_iter().filter(|step| !is_cached(&outcome, step)).collect();
        assert_eq!(found, expected, "{flags:?}\n{}", outcome.stderr);
    }
    // Another result misses, and is what the next build takes from the cache. The last stage can be named, too.
    let build = |flags: &[&str]| home.run(["build"].iter().chain(flags).chain(&[path])).ok();
    build(&[]);
    let renewed = build(&["--no-cache-filter=three"]);
    assert!(!is_cached(&renewed, "COPY --from=three") && !is_cached(&renewed, "RUN cat /three"), "{}", renewed.stderr);
    assert_eq!(build(&[]).cached(), 4, "everything but the images");
    let last = build(&["--no-cache-filter=with-three"]);
    assert!(is_cached(&last, "RUN cat /proc") && !is_cached(&last, "RUN cat /three"), "{}", last.stderr);
}

#[test]
fn stores_do_not_share_and_the_place_of_the_context_does_not_matter() {
    let home = Home::new();
    let dockerfile = "FROM busybox\nCOPY f /\nRUN cat /f\n";
    for place in ["one/c", "two/deeper/c"] {
        home.context(place, dockerfile);
        home.write(&format!("{place}/f"), "same");
    }
    home.run(["build", home.path("one/c").to_str().unwrap()]).ok();
    let elsewhere = home.run(["build", home.path("two/deeper/c").to_str().unwrap()]).ok();
    assert!(is_cached(&elsewhere, "COPY f") && is_cached(&elsewhere, "RUN cat"), "{}", elsewhere.stderr);
    let other = home.path("other-store");
    let fresh = home.run(["--root", other.to_str().unwrap(), "build", home.path("one/c").to_str().unwrap()]).ok();
    assert!(!is_cached(&fresh, "RUN cat"));
}

#[test]
fn a_failed_step_is_tried_again() {
    let home = Home::new();
    let dockerfile = "FROM busybox\nRUN echo ok\nCOPY f /\nRUN grep -q good /f\n";
    home.write("context-x/f", "bad");
    home.build("x", dockerfile).fails(1);
    home.build("x", dockerfile).fails(1);
    home.write("context-x/f", "good");
    let outcome = home.build("x", dockerfile).ok();
    assert!(is_cached(&outcome, "RUN echo ok"), "{}", outcome.stderr);
}

/// A tag that moved: an image of that name in the store hides it, `--pull` looks behind; without such an image the registry is
/// asked each time. The steps on a new base are made again, those on the old one are still known.
#[test]
fn pull_asks_the_registry_again() {
    let base = format!("{}/cache/moving:tag", lab::registry().host());
    let publish = |version: &str| {
        let home = Home::new();
        home.build(&base, &format!("FROM busybox\nRUN echo {version} > /version\n")).ok();
        home.run(["push", &base]).ok();
    };
    let home = Home::new();
    let context = home.context("c", &format!("FROM {base}\nRUN echo version $(cat /version)\n"));
    let path = context.to_str().unwrap();
    let build = |flags: &[&str]| home.run(["build"].iter().chain(flags).chain(&[path])).ok();
    publish("1");
    home.run(["pull", &base]).ok();
    build(&[]).says(&["version 1"]);
    publish("2");
    assert!(is_cached(&build(&[]), "RUN echo version"), "the image in the store counts");
    build(&["--pull"]).says(&["version 2"]);
    assert!(is_cached(&build(&["--pull"]), "RUN echo version"), "asked again, and nothing was new");
    assert!(is_cached(&build(&[]), "RUN echo version"), "the old base and the step on it are still there");
    home.run(["rmi", &base]).ok();
    assert!(is_cached(&build(&[]), "RUN echo version"));
    publish("3");
    build(&[]).says(&["version 3"]);
}
