//! Mode D: root of a container that allows user namespaces, with masks over its `/proc`, builds the images.

use super::{Alike, BASES, IMAGES, comparable, every};
use crate::support::container::{Container, LENIENT};
use crate::support::home::Home;
use crate::support::skip::skipped;

fn the_same_bytes(test: &str, container: Result<Container<'_>, String>, store: &str) {
    if !comparable(test) {
        return;
    }
    let container = match container {
        Ok(container) => container,
        Err(reason) => return skipped(test, &reason),
    };
    let home = Home::new();
    home.mirror(BASES.host());
    every(&home, "nested", Alike::Same, &IMAGES, |args| {
        let root = ["kiln".into(), "--root".into(), home.path(store).into_os_string()];
        container.run(&home, root.into_iter().chain(args))
    });
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
