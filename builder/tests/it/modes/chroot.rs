//! Mode E: root of a default container of docker builds the images, when asked to by `--isolation=chroot`.

use std::process::Command;

use super::{Alike, BASES, WITH_DEVICES, comparable, contained, every};
use crate::support::container::Container;
use crate::support::home::{Home, finish};

fn the_same_bytes(test: &str, container: Result<Container<'_>, String>, store: &str) {
    contained(test, container, "chroot", (&WITH_DEVICES, &["--isolation=chroot"], store));
}

#[test]
fn in_a_default_container_of_docker() {
    the_same_bytes("modes::chroot::in_a_default_container_of_docker", Container::docker(&[]), "store");
}

/// As a pod of Kubernetes has it that knows nothing of kiln.
#[test]
fn in_a_container_of_runc_with_the_profile_of_docker() {
    the_same_bytes("modes::chroot::in_a_container_of_runc_with_the_profile_of_docker", Container::strict(), "/var/lib/kiln");
}

/// Mounts and namespaces are refused, as to root of a container.
#[test]
fn as_root_without_cap_sys_admin() {
    if !comparable("modes::chroot::as_root_without_cap_sys_admin") {
        return;
    }
    let home = Home::new();
    home.mirror(BASES.host());
    every(&home, "chroot", Alike::Same, &WITH_DEVICES, |args| {
        let kiln = home.command();
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set=-sys_admin,-sys_ptrace,-sys_module,-net_admin", "--inh-caps=-all", "--"]);
        command.arg(kiln.get_program()).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").current_dir(home.path(""));
        command.envs(kiln.get_envs().filter_map(|(name, value)| Some((name, value?))));
        finish(command.arg("--isolation=chroot").args(args))
    });
}
