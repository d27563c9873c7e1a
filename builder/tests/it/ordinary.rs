//! People without any rights: what they can do with kiln on a machine that gives them nothing.

use crate::support::archive::Image;
use crate::support::home::Home;
use crate::support::host::Person;
use crate::support::tar;

/// What needs no sandbox works for everybody, in a store of their own.
#[test]
fn everybody_can_pull_copy_and_save() {
    const TEST: &str = "ordinary::everybody_can_pull_copy_and_save";
    for person in [Person::with_ids(TEST), Person::plain(TEST)].into_iter().flatten() {
        let home = Home::of(person);
        home.write("c/file", "text");
        home.context("c", "FROM busybox\nCOPY --chown=7:8 --chmod=4755 file /\nENV A=b\n");
        let output = format!("type=oci,dest={}", home.path("run/saved.tar").display());
        home.run(["build", "-t", "made", "--output", &output, "c"]).ok();
        let image = Image::read(&home.path("run/saved.tar")).unwrap();
        let layer = tar::entries(&image.layers[1]).unwrap();
        let file = layer.iter().find(|e| e.path == b"file").unwrap();
        assert_eq!((file.uid, file.gid, file.mode), (7, 8, 0o4755), "{person:?}");
        let listed = home.run(["images", "--format", "json"]).ok().json();
        assert_eq!(listed[0]["Repository"], "made", "{person:?}");
        home.left_nothing();
    }
}
