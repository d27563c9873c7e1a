//! What `du` counts and what `prune` takes away and leaves.

use std::fs;
use std::time::{Duration, SystemTime};

use super::{Fixture, add_bases, built, image, key, name, record};
use crate::gc::Kind;
use crate::layer::KnownTar;
use crate::{BlobWriter, Error, LayerId, PruneOptions, PruneReport, Sharing, Space, Store};

const HOUR: Duration = Duration::from_hours(1);

pub(super) fn everything() -> PruneOptions {
    PruneOptions {
        all: true,
        filter_until: None,
        filters: Vec::new(),
        space: Space::default(),
        dry_run: false,
        now: SystemTime::now(),
    }
}

fn at_most(bytes: u64) -> Space {
    Space { max_used: Some(bytes), ..Space::default() }
}

/// Says that the file was last used so long ago.
fn age(path: &std::path::Path, by: Duration) {
    let times = fs::FileTimes::new().set_modified(SystemTime::now() - by);
    fs::File::open(path).unwrap().set_times(times).unwrap();
}

fn age_record(store: &Store, n: u8, by: Duration) {
    age(&store.layout().cache_record(&key(n)), by);
}

fn removed(report: &PruneReport, kind: Kind) -> usize {
    report.removed.iter().filter(|row| row.kind == kind).count()
}

/// Three steps of 100 kB on one another, each with its record; the first was used 3 hours ago, the last 1 hour.
fn three_steps(store: &Store) -> Vec<LayerId> {
    let mut layers: Vec<LayerId> = Vec::new();
    for n in 0..3 {
        let layer = built(store, layers.last(), &"x".repeat(100_000));
        store.cache().put(&key(n), &record(Some(&layer))).unwrap();
        age_record(store, n, HOUR * u32::from(3 - n));
        layers.push(layer);
    }
    layers
}

#[test]
fn sizes_add_up_to_what_the_disk_says() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let layers = three_steps(store);
    store.images().set(&image(store, Some("a"), "a", &layers[..1])).unwrap();
    store.images().set(&image(store, Some("a:again"), "a", &layers[..1])).unwrap();
    store.images().set(&image(store, Some("b"), "b", &layers[..2])).unwrap();
    store.images().set(&image(store, None, "c", &layers)).unwrap();
    store.blobs().put_bytes(&[1; 50_000]).unwrap();
    let guard = store.mounts().acquire::<Error>(b"apt", Sharing::Shared, |_| Ok(())).unwrap();
    fs::write(guard.path().join("x.deb"), [1; 70_000]).unwrap();
    drop(guard);

    let rows = store.gc().usage().unwrap();
    let sum: u64 = rows.iter().map(|row| row.size).sum();
    let disk = super::super::gc::measure(fixture.root());
    assert_eq!(sum + store.gc().overhead().unwrap().size, disk);

    let find = |kind: Kind, id: &str| rows.iter().find(|row| row.kind == kind && row.id == id).unwrap();
    for (n, (shared, reclaimable)) in [(true, false), (false, false), (false, true)].into_iter().enumerate() {
        let row = find(Kind::Layer, layers[n].as_str());
        assert_eq!((row.shared, row.reclaimable), (shared, reclaimable), "layer {n}");
        assert!(row.size >= 100_000);
    }
    assert!(!find(Kind::Image, "docker.io/library/a:latest").reclaimable);
    let mount = find(Kind::CacheMount, "apt");
    assert!(mount.reclaimable && mount.size >= 70_000);
    let reclaimable: u64 = rows.iter().filter(|row| row.reclaimable).map(|row| row.size).sum();

    let dry = store.gc().prune(&PruneOptions { dry_run: true, ..everything() }).unwrap();
    assert_eq!(store.gc().usage().unwrap(), rows, "a dry run changes nothing");
    let report = store.gc().prune(&everything()).unwrap();
    assert_eq!((report.freed, &report.removed), (dry.freed, &dry.removed));
    assert_eq!(report.freed, reclaimable);
    assert_eq!(report.removed.iter().map(|row| row.size).sum::<u64>(), report.freed);
    let left: u64 = store.gc().usage().unwrap().iter().map(|row| row.size).sum();
    assert_eq!(left, sum - reclaimable);
}

#[test]
fn what_goes_is_what_was_asked_for() {
    // Options; how many of the three records and layers stay when the first step belongs to an image.
    let base = PruneOptions { all: false, ..everything() };
    let hours = |n: u32| Some(HOUR * n);
    for (options, records, layers) in [
        (base.clone(), 3, 3),
        (PruneOptions { filter_until: hours(4), ..base.clone() }, 3, 3),
        (PruneOptions { filter_until: Some(HOUR * 3 / 2), ..base.clone() }, 1, 3),
        (PruneOptions { filter_until: Some(HOUR / 2), ..base.clone() }, 0, 1),
        (PruneOptions { now: SystemTime::now() + HOUR * 46 + HOUR / 2, ..base.clone() }, 1, 3),
        (PruneOptions { now: SystemTime::now() + HOUR * 48, ..base.clone() }, 0, 1),
        // The clock was set back: what was used in the future was used just now.
        (PruneOptions { now: SystemTime::now() - HOUR * 100, filter_until: hours(1), ..base.clone() }, 3, 3),
        (PruneOptions { all: true, ..base.clone() }, 0, 1),
        (PruneOptions { all: true, filter_until: Some(HOUR * 3 / 2), ..base.clone() }, 1, 3),
        (PruneOptions { space: at_most(1 << 30), ..base.clone() }, 3, 3),
        (PruneOptions { space: at_most(0), ..base.clone() }, 0, 1),
        // Two layers of 100 kB can go. The oldest record is that of the image's layer, the next that of the middle one,
        // which the last one still needs.
        (PruneOptions { space: at_most(150_000), ..base.clone() }, 0, 1),
    ] {
        let fixture = Fixture::new();
        let store = &fixture.store;
        let steps = three_steps(store);
        store.images().set(&image(store, Some("app"), "app", &steps[..1])).unwrap();
        for layer in &steps {
            age(&store.layout().layer(layer).record(), HOUR * 100);
        }
        let report = store.gc().prune(&options).unwrap();
        let left = store.gc().usage().unwrap();
        let count = |kind| left.iter().filter(|row| row.kind == kind).count();
        assert_eq!((count(Kind::CacheRecord), count(Kind::Layer)), (records, layers), "{options:?}");
        assert_eq!((removed(&report, Kind::CacheRecord), removed(&report, Kind::Layer)), (3 - records, 3 - layers));
        assert_eq!(store.layers().lowers(&steps[0]).unwrap().len(), 1);
        for n in 0..3 {
            let hit = store.cache().get(&key(n)).unwrap().is_some();
            assert_eq!(hit, usize::from(n) >= 3 - records, "step {n}, {options:?}");
        }
    }
}

#[test]
fn a_use_makes_a_record_young() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    three_steps(store);
    store.cache().get(&key(0)).unwrap().unwrap();
    let options = PruneOptions { filter_until: Some(HOUR / 2), ..everything() };
    store.gc().prune(&options).unwrap();
    let hits: Vec<bool> = (0..3).map(|n| store.cache().get(&key(n)).unwrap().is_some()).collect();
    assert_eq!(hits, [true, false, false]);
}

#[test]
fn the_least_recently_used_goes_first_until_the_limit_holds() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    for n in 0..10 {
        let layer = built(store, None, &"x".repeat(100_000));
        store.cache().put(&key(n), &record(Some(&layer))).unwrap();
        // 3, 6, 9, 2, 5, 8, 1, 4, 7, 10 hours ago.
        age_record(store, n, HOUR * ((u32::from(n) + 1) * 3 % 11).max(1));
        age(&store.layout().layer(&layer).record(), HOUR * 100);
    }
    let report = store.gc().prune(&PruneOptions { space: at_most(500_000), ..everything() }).unwrap();
    let rows = store.gc().usage().unwrap();
    let left: u64 = rows.iter().map(|row| row.size).sum();
    assert!(left <= 500_000 && left > 350_000, "{left}");
    let oldest_left = rows.iter().filter(|row| row.kind == Kind::CacheRecord).map(|row| row.last_used).min().unwrap();
    let gone = report.removed.iter().filter(|row| row.kind == Kind::CacheRecord);
    assert!(gone.map(|row| row.last_used).max().unwrap() < oldest_left);
}

#[test]
fn blobs_live_as_long_as_what_names_them() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let blobs = store.blobs();
    let [by_record, by_image, by_manifest, by_layer, by_base, by_none] =
        ["record", "image", "manifest", "layer", "base", "none"].map(|text| blobs.put_bytes(text.as_bytes()).unwrap());
    let layer = built(store, None, "x");
    let descriptor = |text: &str| kiln_oci::descriptor::Descriptor::of("x", text.as_bytes());
    let packed = crate::PackedBlob { descriptor: descriptor("layer"), compression: "gzip:6".into(), diff_id: None };
    let diff_id = kiln_oci::digest::DiffId::new(by_none);
    store.layers().set_packed(&layer, KnownTar { diff_id, size: 1, crc: None }, Some(packed)).unwrap();
    let base = add_bases(store, &["base"]);
    let mut image = image(store, Some("app"), "config", &[layer, base[0].clone()]);
    image.blobs.push(by_image);
    image.manifest = Some(descriptor("manifest"));
    store.images().set(&image).unwrap();
    store.cache().put(&key(1), &crate::CacheRecord { blobs: vec![by_record], ..record(None) }).unwrap();

    let present = || [by_record, by_image, by_manifest, by_layer, by_base, by_none, image.config].map(|d| blobs.has(&d));
    store.gc().prune(&PruneOptions { all: false, ..everything() }).unwrap();
    assert_eq!(present(), [true; 7], "young blobs stay for a while even if nothing names them");
    age(&store.layout().blob(&by_none), HOUR * 100);
    store.gc().prune(&PruneOptions { all: false, ..everything() }).unwrap();
    assert_eq!(present(), [true, true, true, true, true, false, true]);
    store.gc().prune(&everything()).unwrap();
    assert_eq!(present(), [false, true, true, true, true, false, true]);
    store.images().remove(&name("app")).unwrap();
    store.gc().prune(&everything()).unwrap();
    assert_eq!(present(), [false; 7]);
    assert_eq!(store.gc().usage().unwrap(), []);
}

#[test]
fn what_a_crash_of_the_machine_spoilt_is_collected() {
    let fixture = Fixture::new();
    let kept = built(&fixture.store, None, "kept");
    let lost = built(&fixture.store, Some(&kept), "lost");
    let torn = built(&fixture.store, None, "torn");
    fixture.store.images().set(&image(&fixture.store, Some("app"), "c", std::slice::from_ref(&kept))).unwrap();
    for (n, layer) in [&kept, &lost, &torn].into_iter().enumerate() {
        fixture.store.cache().put(&key(n as u8), &record(Some(layer))).unwrap();
    }
    fs::write(fixture.store.layout().layer(&torn).record(), "").unwrap();
    fs::write(fixture.store.layout().cache_record(&key(7)).with_file_name("0".repeat(62)), "").unwrap_or_default();
    let Fixture { store, dir } = fixture;
    let root = store.root().to_owned();
    drop(store);
    let store = Store::open(&root).unwrap();
    store.inner.boot.set("another boot".to_owned()).unwrap();
    let report = store.gc().prune(&PruneOptions { all: false, ..everything() }).unwrap();
    assert_eq!((removed(&report, Kind::Layer), removed(&report, Kind::CacheRecord)), (2, 2));
    assert!(store.cache().get(&key(0)).unwrap().is_some());
    assert_eq!(store.layers().chain(&kept).unwrap().len(), 1);
    drop(dir);
}

#[test]
fn prune_waits_for_other_processes_and_can_be_told_not_to() {
    let fixture = Fixture::new();
    let other = fixture.again();
    built(&other, None, "x");
    let store = fixture.store.on_wait(super::impatient());
    let error = store.gc().prune(&everything()).unwrap_err();
    assert_eq!(error.to_string(), "interrupted while waiting for other kiln processes to stop using the store");
    let lease = fs::File::open(fixture.root().join("lease")).unwrap();
    drop(other);
    assert!(lease.try_lock().is_err(), "the lease is taken again");
    assert_eq!(removed(&store.gc().prune(&everything()).unwrap(), Kind::Layer), 1);
    assert!(lease.try_lock().is_err());
    assert!(lease.try_lock_shared().is_ok());
}

#[test]
fn what_this_process_has_begun_stays() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let prepared = store.layers().prepare(None).unwrap();
    fs::write(prepared.upper.join("file"), "x").unwrap();
    let writer: BlobWriter = store.blobs().writer().unwrap();
    store.gc().prune(&everything()).unwrap();
    let layer = prepared.commit().unwrap();
    writer.commit(None).unwrap();
    assert_eq!(store.layers().lowers(&layer).unwrap().len(), 1);
}

#[test]
fn the_trash_is_emptied() {
    let fixture = Fixture::new();
    let trash = fixture.root().join("trash");
    fs::create_dir_all(trash.join("a/b")).unwrap();
    fixture.store.gc().prune(&everything()).unwrap();
    assert_eq!(fs::read_dir(&trash).unwrap().count(), 0);
}

/// The filters, and how many records, layers, mounts and memos go.
#[test]
fn filters_choose_what_goes() {
    for (filters, gone) in [
        (&[][..], [3, 2, 1, 1]),
        (&["type=exec.cachemount"], [0, 0, 1, 0]),
        (&["type=source.local"], [0, 0, 0, 1]),
        (&["type=regular"], [3, 2, 0, 0]),
        (&["type=layer"], [3, 2, 0, 0]),
        (&["immutable", "private"], [3, 2, 0, 1]),
        (&["type=layer", "id=no such"], [0, 0, 0, 0]),
        // The layer in the middle is needed by the one above, so only its record goes.
        (&["id==MIDDLE"], [1, 0, 0, 0]),
        (&["parents==MIDDLE"], [1, 1, 0, 0]),
        (&["inuse"], [0, 0, 0, 0]),
    ] {
        let fixture = Fixture::new();
        let store = &fixture.store;
        let steps = three_steps(store);
        store.images().set(&image(store, Some("a"), "a", &steps[..1])).unwrap();
        drop(store.mounts().acquire::<Error>(b"apt", Sharing::Shared, |_| Ok(())).unwrap());
        fs::write(store.memo_file(fixture.root()), "memo").unwrap();
        let filters: Vec<_> = filters.iter().map(|text| text.replace("MIDDLE", steps[1].as_str()).parse().unwrap()).collect();
        let alternatives = if filters.is_empty() { Vec::new() } else { vec![filters.clone()] };
        let report = store.gc().prune(&PruneOptions { filters: alternatives, ..everything() }).unwrap();
        let kinds = [Kind::CacheRecord, Kind::Layer, Kind::CacheMount, Kind::Memo];
        assert_eq!(kinds.map(|kind| removed(&report, kind)), gone, "{filters:?}");
    }
}

/// By itself: at the earliest an hour after the last time, never beside another user, the least recently used first, to the limit.
#[test]
fn policies_are_carried_out_when_nobody_uses_the_store() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let (gc, now) = (store.gc(), SystemTime::now());
    assert!(!gc.is_due(None, now), "a new store has nothing to collect");
    assert!(
        !gc.is_due(Some(u64::MAX), now) && gc.is_due(Some(u64::MAX), now + HOUR / 10) && !gc.is_due(Some(0), now + HOUR / 10)
    );
    assert!(gc.is_due(None, now + HOUR * 2) && gc.is_due(None, now - HOUR), "later, or when the clock was set back");

    three_steps(store);
    let young = PruneOptions { all: false, filter_until: Some(HOUR * 5), ..everything() };
    let small = PruneOptions { all: false, space: at_most(250_000), ..everything() };
    assert_eq!(gc.collect_by(std::slice::from_ref(&young)).unwrap(), Some(PruneReport::default()));
    let other = Store::open(fixture.root()).unwrap();
    assert_eq!(gc.collect_by(std::slice::from_ref(&small)).unwrap(), None, "another may need any of it");
    assert_eq!(gc.usage().unwrap().iter().filter(|row| row.kind == Kind::Layer).count(), 3);
    drop(other);
    let report = gc.collect_by(&[young, small]).unwrap().unwrap();
    let left: u64 = gc.usage().unwrap().iter().filter(|row| row.reclaimable).map(|row| row.size).sum();
    assert!(left <= 250_000 && report.freed > 0, "{left} bytes are left");
    assert!(gc.is_due(None, now + HOUR * 2) && !gc.is_due(None, now), "it was done just now");
    assert_eq!(
        gc.collect_by(&[PruneOptions { all: false, space: at_most(250_000), ..everything() }]).unwrap(),
        Some(PruneReport::default())
    );
}
