//! Several kiln processes on one store.

use std::process::Stdio;
use std::thread;

use crate::support::home::{Home, Outcome, outcome};
use crate::support::leftovers;

/// Starts all at once and waits for all.
fn together(home: &Home, commands: &[Vec<String>]) -> Vec<Outcome> {
    let children: Vec<_> = commands
        .iter()
        .map(|args| home.command().args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
        .collect();
    thread::scope(|scope| {
        let waiting: Vec<_> = children
            .into_iter()
            .zip(commands)
            .map(|(child, args)| scope.spawn(move || outcome(&format!("{args:?}"), child.wait_with_output().unwrap())))
            .collect();
        waiting.into_iter().map(|w| w.join().unwrap()).collect()
    })
}

fn build(home: &Home, tag: &str, context: &str) -> Vec<String> {
    ["build", "-t", tag, home.path(context).to_str().unwrap()].map(str::to_owned).to_vec()
}

#[test]
fn two_equal_builds_at_once() {
    let home = Home::new();
    let dockerfile = "FROM busybox\nRUN sleep 0.3; cat /proc/sys/kernel/random/uuid > /id\nCOPY f /\nRUN cat /f /id > /both\n";
    home.context("c", dockerfile);
    home.write("c/f", "f");
    for outcome in together(&home, &[build(&home, "one", "c"), build(&home, "two", "c")]) {
        outcome.ok();
    }
    // One of them ran the step, the other took it: the random number is the same in both.
    let layers = |tag: &str| home.run(["inspect", tag]).ok().json()[0]["RootFS"]["Layers"].clone();
    assert_eq!(layers("one"), layers("two"));
    let again = home.build("three", "FROM one\nRUN cmp /f /f && test -s /both\n");
    again.ok();
    leftovers::assert_none(home.path("").to_str().unwrap());
}

#[test]
fn many_different_builds_at_once() {
    let home = Home::new();
    let mut commands = Vec::new();
    for i in 0..6 {
        let context = format!("c{i}");
        home.context(&context, &format!("FROM busybox\nRUN echo shared > /s\nRUN echo {i} > /own\nCOPY f /\n"));
        home.write(&format!("{context}/f"), format!("{i}"));
        commands.push(build(&home, &format!("tag{i}"), &context));
    }
    for outcome in together(&home, &commands) {
        outcome.ok();
    }
    assert_eq!(home.run(["images", "--format", "json"]).ok().json().len(), 6);
    for i in 0..6 {
        home.build("check", &format!("FROM tag{i}\nRUN grep -qx {i} /own && grep -q {i} /f && grep -q shared /s\n")).ok();
    }
}

#[test]
fn the_same_name_at_once_is_one_of_them() {
    let home = Home::new();
    let mut commands = Vec::new();
    for i in 0..4 {
        home.context(&format!("c{i}"), &format!("FROM busybox\nRUN echo {i} > /own\n"));
        commands.push(build(&home, "same", &format!("c{i}")));
    }
    for outcome in together(&home, &commands) {
        outcome.ok();
    }
    home.build("check", "FROM same\nRUN grep -qx '[0-3]' /own\n").ok();
}

#[test]
fn pruning_waits_for_a_build_or_leaves_it_alone() {
    let home = Home::new();
    home.context("c", "FROM busybox\nRUN echo a > /a; sleep 1\nRUN cat /a > /b\n");
    let mut commands = vec![build(&home, "kept", "c")];
    commands.push(["prune", "-a", "-f"].map(str::to_owned).to_vec());
    commands.push(["prune", "-f"].map(str::to_owned).to_vec());
    let outcomes = together(&home, &commands);
    assert!(outcomes[0].status.success(), "{:?}", outcomes[0]);
    home.build("check", "FROM kept\nRUN grep a /b\n").ok();
}

#[test]
fn cache_mounts_are_shared_or_locked_as_asked() {
    let home = Home::new();
    let mut commands = Vec::new();
    for i in 0..4 {
        let line = format!(
            "FROM busybox\nRUN --mount=type=cache,target=/c,id=counter,sharing=locked \
             n=$(cat /c/n 2>/dev/null || echo 0); sleep 0.1; echo $((n + 1)) > /c/n; echo {i}\n"
        );
        home.context(&format!("c{i}"), &line);
        commands.push(build(&home, &format!("t{i}"), &format!("c{i}")));
    }
    for outcome in together(&home, &commands) {
        outcome.ok();
    }
    let check = "FROM busybox\nRUN --mount=type=cache,target=/c,id=counter echo counted $(cat /c/n)\n";
    home.build("check", check).ok().says(&["counted 4"]);
}
