//! People without any rights: what they can do with kiln on a machine that gives them nothing.

use crate::support::home::Home;
use crate::support::host::Person;

/// What needs no sandbox works for everybody, in a store of their own.
#[test]
fn everybody_can_pull_name_and_save() {
    const TEST: &str = "ordinary::everybody_can_pull_name_and_save";
    for person in [Person::with_ids(TEST), Person::plain(TEST)].into_iter().flatten() {
        let home = Home::of(person);
        home.context("c", "FROM busybox\nENV A=b\n");
        let output = format!("type=oci,dest={}", home.path("run/saved.tar").display());
        home.run(["build", "-t", "made", "--output", &output, "c"]).ok();
        let listed = home.run(["images", "--format", "json"]).ok().json();
        assert_eq!(listed[0]["Repository"], "made", "{person:?}");
        home.left_nothing();
    }
}
