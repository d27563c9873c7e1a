//! Mode E: root of a default container of docker builds the images, when asked to by `--isolation=chroot`.

use super::{Alike, BASES, WITH_DEVICES, comparable, every};
use crate::support::container::Container;
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
    every(&home, "chroot", Alike::Same, &WITH_DEVICES, |args| {
        let root = ["kiln".into(), "--isolation=chroot".into(), "--root".into(), home.path(store).into_os_string()];
        container.run(&home, root.into_iter().chain(args))
    });
}

#[test]
#[ignore = "until RUN works in this mode"]
fn in_a_default_container_of_docker() {
    the_same_bytes("modes::chroot::in_a_default_container_of_docker", Container::docker(&[]), "store");
}

/// As a pod of Kubernetes has it that knows nothing of kiln.
#[test]
#[ignore = "until RUN works in this mode"]
fn in_a_container_of_runc_with_the_profile_of_docker() {
    the_same_bytes("modes::chroot::in_a_container_of_runc_with_the_profile_of_docker", Container::strict(), "/var/lib/kiln");
}
