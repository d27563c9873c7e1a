//! Mode B: an ordinary user with sub-ids builds the images. Owners are real: those of the ids that the user was given.

use super::{Alike, BASES, IMAGES, comparable, every};
use crate::support::home::Home;
use crate::support::host::Person;
use crate::support::skip::needs;

#[test]
fn an_ordinary_user_builds_the_same_bytes() {
    const TEST: &str = "modes::rootless::an_ordinary_user_builds_the_same_bytes";
    if !comparable(TEST) || !needs(TEST, "newuidmap") {
        return;
    }
    let Some(person) = Person::with_ids(TEST) else { return };
    let home = Home::of(person);
    home.mirror(BASES.host());
    every(&home, "rootless", Alike::Same, &IMAGES, |args| home.run(args));
}
