//! The containers around kiln are what they claim to be: they allow and refuse what those of docker and podman do.

use crate::support::container::{Container, LENIENT};
use crate::support::home::Home;
use crate::support::skip::skipped;

/// What busybox's programs find in a container, a word each.
const LOOK: &str = "
    grep -q 'CapEff:.*00a80425fb' /proc/self/status && echo usual
    grep -q 'Seccomp:.*2' /proc/self/status && echo filtered
    test -c /proc/keys && echo masked
    unshare -Ur true && echo user
    unshare -Ur unshare -m mount -t tmpfs t /tmp && echo mount
    unshare -Ur unshare -fpm mount -t proc p /proc && echo proc
    mount -t tmpfs t /tmp && echo outside
    grep -q '^overlay / ' /proc/mounts && echo overlay
    kiln version > /dev/null && echo kiln
    true";

fn look(container: Result<Container<'_>, String>, home: &Home, test: &str, expected: &str) {
    match container {
        Err(reason) => skipped(&format!("modes::outer::{test}"), &reason),
        Ok(container) => {
            let found = container.run(home, ["sh", "-c", LOOK]).ok();
            assert_eq!(found.stdout.split_whitespace().collect::<Vec<_>>().join(" "), expected, "{found:?}");
            home.left_nothing();
        }
    }
}

#[test]
fn runc_allows_user_namespaces() {
    let home = Home::new();
    look(Container::lenient(), &home, "runc_allows_user_namespaces", "usual filtered masked user mount kiln");
}

#[test]
fn runc_refuses_them_with_the_profile_of_docker() {
    let home = Home::new();
    look(Container::strict(), &home, "runc_refuses_them_with_the_profile_of_docker", "usual filtered masked kiln");
}

#[test]
fn docker_refuses_user_namespaces() {
    let home = Home::new();
    look(Container::docker(&[]), &home, "docker_refuses_user_namespaces", "usual filtered masked overlay kiln");
}

/// A store in such a container lies on an overlay, which can't be the upper directory of another.
#[test]
fn docker_allows_them_with_the_profile_of_podman() {
    let home = Home::new();
    let profile = format!("--security-opt=seccomp={LENIENT}");
    let expected = "usual filtered masked user mount overlay kiln";
    look(Container::docker(&[&profile]), &home, "docker_allows_them_with_the_profile_of_podman", expected);
}
