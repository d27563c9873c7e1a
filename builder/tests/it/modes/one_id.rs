//! Mode C: an ordinary user with one id builds the images. Owners, devices and set-id calls are recorded.

use super::{Alike, BASES, WITH_DEVICES, comparable, every};
use crate::support::home::Home;
use crate::support::host::Person;

fn owners_are_alike(person: Option<Person>, isolation: Option<&str>) {
    let Some(person) = person else { return };
    let home = Home::of(person);
    home.mirror(BASES.host());
    every(&home, "rootless, one id", Alike::Owners, &WITH_DEVICES, |mut args| {
        args.extend(isolation.map(|mode| format!("--isolation={mode}").into()));
        home.run(args)
    });
}

#[test]
fn a_user_without_sub_ids_builds_the_same_owners() {
    const TEST: &str = "modes::one_id::a_user_without_sub_ids_builds_the_same_owners";
    if comparable(TEST) {
        owners_are_alike(Person::plain(TEST), None);
    }
}

#[test]
fn a_user_with_sub_ids_can_ask_for_it() {
    const TEST: &str = "modes::one_id::a_user_with_sub_ids_can_ask_for_it";
    if comparable(TEST) {
        owners_are_alike(Person::with_ids(TEST), Some("one-id"));
    }
}
