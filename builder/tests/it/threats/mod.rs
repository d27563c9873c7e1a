//! The known ways out of a build, one test for each by the id of its class: `cargo test -p kiln --test it c34`. The table of all
//! classes, and what is not tried, stands in `runner/tests/sandbox/threats/mod.rs`, with the tests that need no build.
//!
//! Each takes kiln as root and, where the machine has that user, as an ordinary user with sub-ids.

mod layers;
mod mounts;
mod rights;
mod sources;

use std::path::Path;
use std::process::Command;

use crate::support::home::{Home, Outcome};
use crate::support::host::Person;
use crate::support::lab;
use crate::support::skip::needs;

/// A home for each way in which kiln makes sandboxes here.
fn homes(test: &str) -> Vec<(&'static str, Home)> {
    let mut homes = vec![("root", Home::new())];
    if needs(test, "newuidmap")
        && let Some(person) = Person::with_ids(test)
    {
        let home = Home::of(person);
        home.mirror(lab::registry().host());
        homes.push(("rootless", home));
    }
    homes
}

/// Builds `dockerfile` with these flags, in the context `c`.
fn build(home: &Home, dockerfile: &str, flags: &[&str]) -> Outcome {
    let context = home.context("c", dockerfile);
    let mut args = vec!["build", "-t", "threat", "--progress=plain"];
    args.extend(flags);
    args.push(context.to_str().unwrap());
    home.run(args)
}

/// What is below a folder: equal texts are equal trees.
fn tree(folder: &Path) -> String {
    let script = "find . -mindepth 1 -printf '%p %y %m %U:%G %l %T@\\n' | sort; find . -type f | sort | xargs -r sha256sum";
    let output = Command::new("sh").args(["-c", script]).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}
