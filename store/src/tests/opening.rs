//! Stores that are opened: fresh, foreign, newer, by many at once, while another process prunes.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::{Fixture, impatient};
use crate::{Error, Store};

#[test]
fn an_open_root_is_closed() {
    let fixture = Fixture::new();
    fs::set_permissions(fixture.root(), fs::Permissions::from_mode(0o755)).unwrap();
    fixture.again();
    assert_eq!(fs::metadata(fixture.root()).unwrap().permissions().mode() & 0o7777, 0o700);
}

#[test]
fn what_is_at_the_root_is_judged() {
    type Check = fn(&Result<Store, Error>) -> bool;
    type Row<'a> = (&'a str, &'a [(&'a str, &'a str)], Check);
    let rows: [Row<'_>; 8] = [
        ("empty", &[], |r| r.is_ok()),
        ("a fresh file system", &[("lost+found/", "")], |r| r.is_ok()),
        ("cut short", &[("blobs/", ""), ("layers/", ""), ("lease", "")], |r| r.is_ok()),
        (
            "somebody's folder",
            &[("thesis.tex", "x")],
            |r| matches!(r, Err(Error::NotAStore { found, .. }) if found == "thesis.tex"),
        ),
        ("ours", &[("version", "kiln store 1\n"), ("ingest/", ""), ("trash/", "")], |r| r.is_ok()),
        ("newer", &[("version", "kiln store 7\n")], |r| matches!(r, Err(Error::NewerFormat { found, .. }) if found == "7")),
        ("feature", &[("version", "kiln store 1\nx\n")], |r| matches!(r, Err(Error::NewerFormat { .. }))),
        ("torn", &[("version", "\0\0\0\0")], |r| matches!(r, Err(Error::UnreadableFormat { .. }))),
    ];
    for (what, files, good) in rows {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            match name.strip_suffix('/') {
                Some(name) => fs::create_dir(dir.path().join(name)).unwrap(),
                None => fs::write(dir.path().join(name), text).unwrap(),
            }
        }
        let opened = Store::open(dir.path());
        assert!(good(&opened), "{what}: {opened:?}");
    }
}

#[test]
fn a_newer_store_is_named_in_the_message() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("version"), "kiln store 7\n").unwrap();
    let message = Store::open(dir.path()).unwrap_err().to_string();
    let root = dir.path().display();
    assert_eq!(message, format!("the store at {root} has format 7, but this kiln knows only format 1"));
}

#[test]
fn many_may_make_the_same_store_at_once() {
    for _ in 0..20 {
        let dir = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| Store::open(&dir.path().join("store")).unwrap().blobs().put_bytes(b"x").unwrap());
            }
        });
        assert_eq!(fs::read_dir(dir.path().join("store/ingest")).unwrap().count(), 0);
    }
}

#[test]
fn opening_waits_for_prune_only() {
    let fixture = Fixture::new();
    let other = fixture.again();
    drop(other);
    let lease = fs::File::open(fixture.root().join("lease")).unwrap();
    assert!(lease.try_lock().is_err(), "the handle holds a shared lease");
    let root = fixture.root().to_owned();
    let Fixture { store, dir } = fixture;
    drop(store);
    lease.try_lock().unwrap();
    let error = Store::open_waiting(&root, impatient()).unwrap_err();
    assert!(matches!(error, Error::Interrupted { .. }), "{error}");
    assert_eq!(error.to_string(), "interrupted while waiting for another kiln to finish pruning the store");
    lease.unlock().unwrap();
    Store::open_waiting(&root, impatient()).unwrap();
    drop(dir);
}

#[test]
fn a_read_only_process_writes_nothing() {
    let fixture = Fixture::new();
    let before = super::tree(fixture.root());
    let store = fixture.again();
    assert!(store.images().list().unwrap().is_empty());
    assert!(store.cache().get(&super::key(1)).unwrap().is_none());
    assert_eq!(super::tree(fixture.root()), before);
}
