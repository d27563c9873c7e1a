//! Mode F: where nothing is allowed, builds without RUN work, and RUN says what to change.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;

use super::BASES;
use crate::support::container::Container;
use crate::support::home::{Home, Outcome, finish};
use crate::support::host::Person;
use crate::support::skip::skipped;

/// This host can't give the sandbox.
const HOST: i32 = 5;

/// A build with everything but RUN works; with RUN it fails and says `texts`.
fn only_run_fails(home: &Home, texts: &[&str], kiln: impl Fn(&[&str]) -> Outcome) {
    let folder = |path: PathBuf| path.to_str().expect("a temporary folder's name is text").to_owned();
    home.write("copy/file", "text");
    let copies = "FROM busybox AS base\nWORKDIR /work\nCOPY --chown=5:6 --chmod=4755 file ./\nFROM busybox\nCOPY --from=base /work/file /x/\n";
    let copies = folder(home.context("copy", copies));
    kiln(&["build", "-t", "copies", &copies]).ok();
    let runs = folder(home.context("run-it", "FROM busybox\nRUN true\n"));
    kiln(&["build", &runs]).fails(HOST).says(&["Dockerfile:2", ">>> RUN true"]).says(texts);
    home.left_nothing();
}

#[test]
fn a_user_where_user_namespaces_are_off() {
    let Some(person) = Person::plain("modes::none::a_user_where_user_namespaces_are_off") else { return };
    let ids = (person.uid, person.gid);
    let home = Home::of(person);
    home.mirror(BASES.host());
    only_run_fails(&home, &["user.max_user_namespaces"], |args| without_namespaces(&home, ids, args));
}

/// Runs kiln as a user who may make no user namespace.
pub(super) fn without_namespaces(home: &Home, (uid, gid): (u32, u32), args: &[impl AsRef<OsStr>]) -> Outcome {
    // The setting is one of each user namespace; so in one of the test's own, for kiln that has no rights in it.
    let script = "echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --inh-caps=-all --ambient-caps=-all --bounding-set=-all \"$@\"";
    let inner = home.command();
    let mut command = Command::new("setpriv");
    command.args([format!("--reuid={uid}"), format!("--regid={gid}")]).arg("--clear-groups");
    command.args(["unshare", "--user", &format!("--map-user={uid}"), &format!("--map-group={gid}"), "--keep-caps"]);
    command.args(["sh", "-c", script, "sh"]).arg(home.path("bin/kiln")).args(args);
    command.env_clear().envs(inner.get_envs().filter_map(|(key, value)| Some((key, value?))));
    finish(command.current_dir(home.path("")))
}

fn only_run_fails_in(test: &str, container: Result<Container<'_>, String>) {
    match container {
        Err(reason) => skipped(test, &reason),
        Ok(container) => {
            let home = Home::new();
            home.mirror(BASES.host());
            only_run_fails(&home, &["--isolation=chroot"], |args| container.run(&home, ["kiln"].iter().chain(args)));
        }
    }
}

#[test]
fn root_of_a_default_container_of_docker() {
    only_run_fails_in("modes::none::root_of_a_default_container_of_docker", Container::docker(&[]));
}

#[test]
fn root_of_a_container_of_runc_with_the_profile_of_docker() {
    only_run_fails_in("modes::none::root_of_a_container_of_runc_with_the_profile_of_docker", Container::strict());
}
