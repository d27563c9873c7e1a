//! Mode A: root builds the images. That two builds are the same bytes is what the comparison with other modes stands on.

use super::{Alike, BASES, comparable, every};
use crate::support::home::Home;

#[test]
fn two_builds_are_the_same_bytes() {
    if !comparable("modes::root::two_builds_are_the_same_bytes") {
        return;
    }
    let home = Home::new();
    home.mirror(BASES.host());
    every(&home, "root", Alike::Same, |args| home.run(args));
}
