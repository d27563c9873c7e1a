//! The rows of the table that no build can show, and that nothing runs together.

use kiln_oci::path::ImagePath;

use super::*;

fn key(flavour: Flavour, path: &str, user: &str) -> CacheKey {
    let op = Op::Workdir(WorkdirOp { parent: None, path: ImagePath::new(path), user: user.to_owned() });
    let platform = Platform::parse("linux/amd64").unwrap();
    let inputs = Inputs { parent: Identity::scratch(), mounts: Vec::new(), selection: None, platform: &platform };
    step_key(flavour, &op, &inputs)
}

#[test]
fn the_two_kinds_of_key_never_meet() {
    assert_ne!(key(Flavour::Definition, "/w", "").0, key(Flavour::Content, "/w", "").0);
    assert_eq!(key(Flavour::Content, "/w", "").0, key(Flavour::Content, "/w", "").0);
}

#[test]
fn another_format_makes_other_keys() {
    assert_eq!(Fields::new("x").identity(), Fields::of(FORMAT, "x").identity());
    assert_ne!(Fields::new("x").identity(), Fields::of("kiln-0", "x").identity());
}

/// Without lengths, one value's end would be as good as the next one's beginning.
#[test]
fn values_do_not_run_into_each_other() {
    assert_ne!(Fields::new("x").text("a", "bc").identity(), Fields::new("x").text("ab", "c").identity());
    assert_ne!(
        Fields::new("x").text("a", "b").text("a", "").identity(),
        Fields::new("x").text("a", "").text("a", "b").identity()
    );
    assert_ne!(key(Flavour::Content, "/a", "b").0, key(Flavour::Content, "/ab", "").0);
}
