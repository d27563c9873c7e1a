//! What needs no RUN is the same bytes in every mode, whatever its user may set on a file.

use super::{Alike, comparable, every, none};
use crate::support::home::Home;
use crate::support::host::Person;

const IMAGE: [&str; 1] = ["written"];

#[test]
fn by_a_user_with_one_id() {
    const TEST: &str = "modes::written::by_a_user_with_one_id";
    let Some(person) = Person::plain(TEST).filter(|_| comparable(TEST)) else { return };
    let home = Home::of(person);
    every(&home, "rootless, one id", Alike::Same, &IMAGE, |args| home.run(args));
}

#[test]
fn by_a_user_with_sub_ids() {
    const TEST: &str = "modes::written::by_a_user_with_sub_ids";
    let Some(person) = Person::with_ids(TEST).filter(|_| comparable(TEST)) else { return };
    let home = Home::of(person);
    every(&home, "rootless", Alike::Same, &IMAGE, |args| home.run(args));
}

#[test]
fn by_a_user_without_any_namespace() {
    const TEST: &str = "modes::written::by_a_user_without_any_namespace";
    let Some(person) = Person::plain(TEST).filter(|_| comparable(TEST)) else { return };
    let ids = (person.uid, person.gid);
    let home = Home::of(person);
    every(&home, "none", Alike::Same, &IMAGE, |args| none::without_namespaces(&home, ids, &args));
}
