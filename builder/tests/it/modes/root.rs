//! Mode A: root builds the images. That two builds are the same bytes is what the comparison with other modes stands on.

use super::{Alike, BASES, WITH_DEVICES, comparable, every};
use crate::support::home::{Home, finish};

#[test]
fn two_builds_are_the_same_bytes() {
    if !comparable("modes::root::two_builds_are_the_same_bytes") {
        return;
    }
    let home = Home::new();
    home.mirror(BASES.host());
    every(&home, "root", Alike::Same, &WITH_DEVICES, |args| home.run(args));
}

/// Where no overlay can be had, each step works on a copy of what lies below it; what it changed is found afterwards.
#[test]
fn copies_give_the_same_bytes() {
    if !comparable("modes::root::copies_give_the_same_bytes") {
        return;
    }
    let home = Home::new();
    home.mirror(BASES.host());
    every(&home, "root", Alike::Same, &WITH_DEVICES, |args| finish(home.command().env("KILN_SNAPSHOTS", "copy").args(args)));
}
