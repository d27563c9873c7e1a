//! One store in the hands of several processes, some of which are killed.

use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Fixture, impatient, key, record};
use crate::mounts::MountGuard;
use crate::{Error, Sharing, Store};

fn plain(store: &Store, id: &str, sharing: Sharing) -> Result<MountGuard, Error> {
    store.mounts().acquire(id.as_bytes(), sharing, |_| Ok(()))
}

#[test]
fn the_three_ways_of_sharing_a_cache_mount() {
    use Sharing::{Locked, Private, Shared};
    // Who holds it, who comes, and what the second gets: the same folder, another one, or none within 50 ms.
    #[derive(Debug, PartialEq)]
    enum Gets {
        Same,
        Other,
        Waits,
    }
    for (first, second, expected) in [
        (Shared, Shared, Gets::Same),
        (Shared, Private, Gets::Other),
        (Shared, Locked, Gets::Waits),
        (Private, Private, Gets::Other),
        (Private, Shared, Gets::Waits),
        (Locked, Locked, Gets::Waits),
        (Locked, Shared, Gets::Waits),
        (Locked, Private, Gets::Other),
    ] {
        let fixture = Fixture::new();
        let held = plain(&fixture.store, "id", first).unwrap();
        let again = fixture.again().on_wait(impatient());
        let gets = match plain(&again, "id", second) {
            Ok(guard) if guard.path() == held.path() => Gets::Same,
            Ok(_) => Gets::Other,
            Err(Error::Interrupted { .. }) => Gets::Waits,
            Err(error) => panic!("{error}"),
        };
        assert_eq!(gets, expected, "{first:?} then {second:?}");
        let path = held.path().to_owned();
        drop(held);
        assert_eq!(plain(&again, "id", second).unwrap().path(), path, "{first:?} then {second:?}");
        assert_ne!(plain(&again, "other", second).unwrap().path(), path);
    }
}

#[test]
fn a_cache_mount_is_seeded_once_and_whole() {
    let fixture = Fixture::new();
    let failing = fixture.store.mounts().acquire(b"id", Sharing::Shared, |dir| {
        fs::write(dir.join("half"), "").map_err(Error::io("write", dir))?;
        Err(Error::BlobMissing { digest: kiln_oci::digest::Digest::of(b"") })
    });
    assert!(matches!(failing, Err(Error::BlobMissing { .. })));
    let seeded = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let store = fixture.again();
                let guard = store.mounts().acquire(b"id", Sharing::Shared, |dir| {
                    seeded.fetch_add(1, Ordering::Relaxed);
                    fs::write(dir.join("whole"), "").map_err(Error::io("write", dir))
                });
                assert_eq!(super::tree(guard.unwrap().path()), ["whole"]);
            });
        }
    });
    assert_eq!(seeded.into_inner(), 1);
}

#[test]
fn ids_of_cache_mounts_may_be_anything() {
    let fixture = Fixture::new();
    let ids: [&[u8]; 5] = [b"", b"/root/.cache", b"../../..", b"\xff\0\n", &[b'x'; 5000]];
    let mut paths: Vec<_> = ids
        .iter()
        .map(|id| fixture.store.mounts().acquire::<Error>(id, Sharing::Locked, |_| Ok(())).unwrap().path().to_owned())
        .collect();
    assert!(paths.iter().all(|path| path.starts_with(fixture.root().join("mounts"))));
    paths.sort();
    paths.dedup();
    assert_eq!(paths.len(), ids.len());
}

#[test]
fn equal_steps_run_once() {
    let fixture = Fixture::new();
    let runs = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                let store = fixture.again();
                let _lock = store.cache().lock(&key(1)).unwrap();
                if store.cache().get(&key(1)).unwrap().is_none() {
                    runs.fetch_add(1, Ordering::Relaxed);
                    store.cache().put(&key(1), &record(None)).unwrap();
                }
            });
        }
    });
    assert_eq!(runs.into_inner(), 1);
    assert_eq!(super::tree(&fixture.root().join("locks")), [""; 0]);
}

#[test]
fn a_lock_that_is_taken_can_be_tried_and_given_up_on() {
    let fixture = Fixture::new();
    let held = fixture.store.cache().lock(&key(1)).unwrap();
    let again = fixture.again();
    assert!(again.cache().try_lock(&key(1)).unwrap().is_none());
    assert!(again.cache().try_lock(&key(2)).unwrap().is_some());
    let holder = std::sync::Mutex::new(None);
    let holder = std::sync::Arc::new(holder);
    let seen = std::sync::Arc::clone(&holder);
    let asking = again.on_wait(std::sync::Arc::new(move |waiting: &crate::Waiting<'_>| {
        *seen.lock().unwrap() = waiting.holder;
        std::ops::ControlFlow::Break(())
    }));
    let error = asking.cache().lock(&key(1)).unwrap_err();
    assert_eq!(error.to_string(), "interrupted while waiting for the same step in another kiln");
    assert_eq!(*holder.lock().unwrap(), Some(std::process::id()));
    drop(held);
    assert!(again.cache().try_lock(&key(1)).unwrap().is_some());
}
