//! Mode D: root of a container that allows user namespaces, with masks over its `/proc`, builds the images.

use super::{IMAGES, contained};
use crate::support::container::{Container, LENIENT};

fn the_same_bytes(test: &str, container: Result<Container<'_>, String>, store: &str) {
    contained(test, container, "nested", (&IMAGES, &[], store));
}

#[test]
fn in_a_container_of_runc() {
    the_same_bytes("modes::nested::in_a_container_of_runc", Container::lenient(), "store");
}

/// There the store lies on an overlay, which can't be the upper directory of another: each image begins with an empty one.
#[test]
fn in_a_container_of_docker_with_the_profile_of_podman() {
    let profile = format!("--security-opt=seccomp={LENIENT}");
    let profile = [&profile[..]];
    let container = Container::docker(&profile);
    the_same_bytes("modes::nested::in_a_container_of_docker_with_the_profile_of_podman", container, "/var/lib/kiln");
}
