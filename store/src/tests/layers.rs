//! Layers prepared, committed, unpacked and believed or not after a crash.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Instant;

use kiln_oci::descriptor::Descriptor;
use kiln_oci::digest::{ChainId, DiffId, Digest};

use super::{Fixture, add_bases, bases, built, image, key, record, tree};
use crate::layer::KnownTar;
use crate::{BaseLayer, Error, LayerId, LayerKind, PackedBlob, Unpack};

/// Unpacks as the builder does: bottom first, one file in each.
fn unpack(store: &crate::Store, ids: &[LayerId]) {
    for id in ids {
        if let Unpack::Needed(prepared) = store.layers().unpack(id).unwrap() {
            fs::write(prepared.upper.join("from"), id.as_str()).unwrap();
            assert_eq!(prepared.commit().unwrap(), *id);
        }
    }
}

#[test]
fn a_built_layer_appears_whole_or_not_at_all() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let prepared = store.layers().prepare(None).unwrap();
    fs::create_dir_all(prepared.upper.join("a/b")).unwrap();
    // What overlayfs leaves there.
    fs::create_dir_all(prepared.work.join("work/incompat/volatile")).unwrap();
    assert!(tree(&fixture.root().join("layers")).is_empty());
    let id = prepared.commit().unwrap();
    assert_eq!(store.layers().lowers(&id).unwrap(), [store.layers().diff_dir(&id)]);
    let names: Vec<String> = tree(&fixture.root().join("layers").join(id.as_str()));
    assert_eq!(names, ["diff", "diff/a", "diff/a/b", "record.json"]);

    let dropped = store.layers().prepare(Some(&id)).unwrap();
    fs::create_dir_all(dropped.upper.join("x/y")).unwrap();
    drop(dropped);
    assert_eq!(fs::read_dir(fixture.root().join("layers")).unwrap().count(), 1);
    assert_eq!(tree(&fixture.root().join("ingest")).len(), 1);
}

#[test]
fn the_top_directory_keeps_what_the_layer_below_gave_it() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let first = store.layers().prepare(None).unwrap();
    assert_eq!(fs::metadata(&first.upper).unwrap().permissions().mode() & 0o7777, 0o755);
    fs::set_permissions(&first.upper, fs::Permissions::from_mode(0o1751)).unwrap();
    let has_xattrs = rustix::fs::setxattr(&first.upper, c"user.colour", b"red", rustix::fs::XattrFlags::empty()).is_ok();
    let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 123_456_789);
    let times = fs::FileTimes::new().set_modified(time);
    fs::File::open(&first.upper).unwrap().set_times(times).unwrap();
    let first = first.commit().unwrap();
    let second = store.layers().prepare(Some(&first)).unwrap();
    let meta = fs::metadata(&second.upper).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.mtime(), meta.mtime_nsec()), (0o1751, 1_000_000_000, 123_456_789));
    if has_xattrs {
        let mut value = [0; 8];
        let size = rustix::fs::getxattr(&second.upper, c"user.colour", &mut value[..]).unwrap();
        assert_eq!(&value[..size], b"red");
    }
}

#[test]
fn base_layers_are_lazy_and_unpacked_once() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let ids = add_bases(store, &["a", "b", "c"]);
    let chain = store.layers().chain(&ids[2]).unwrap();
    assert_eq!(chain.iter().map(|r| r.id.clone()).collect::<Vec<_>>(), ids);
    assert!(chain.iter().all(|r| !r.unpacked && r.diff_id.is_some() && matches!(r.kind, LayerKind::Base(_))));

    assert!(matches!(store.layers().prepare(Some(&ids[2])), Err(Error::NotUnpacked { id }) if id == ids[0]));
    assert!(matches!(store.layers().unpack(&ids[1]), Err(Error::NotUnpacked { id }) if id == ids[0]));
    let apart = store.layers().prepare_apart(Some(&ids[2])).unwrap();
    assert!(apart.lowers.is_empty());
    let apart = apart.commit().unwrap();
    assert_eq!(store.layers().chain(&apart).unwrap().len(), 4);

    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| unpack(&fixture.again(), &ids));
        }
    });
    for store in [store.clone(), fixture.again()] {
        let lowers = store.layers().prepare(Some(&ids[2])).unwrap().lowers.clone();
        let texts: Vec<String> = lowers.iter().map(|dir| fs::read_to_string(dir.join("from")).unwrap()).collect();
        assert_eq!(texts, [ids[2].as_str(), ids[1].as_str(), ids[0].as_str()]);
    }
    assert_eq!(fs::read_dir(fixture.root().join("locks")).unwrap().count(), 0);
}

#[test]
fn a_base_layer_must_follow_from_its_parent() {
    let fixture = Fixture::new();
    let layers = fixture.store.layers();
    let all = bases(&["a", "b"]);
    let bottom = layers.add_base(None, &all[0]).unwrap();
    assert!(matches!(layers.add_base(None, &all[1]), Err(Error::ChainMismatch { .. })));
    let own = built(&fixture.store, None, "x");
    assert!(matches!(layers.add_base(Some(&own), &all[1]), Err(Error::NotABase { .. })));
    assert!(layers.add_base(Some(&bottom), &all[1]).is_ok());
}

#[test]
fn a_base_layer_learns_where_else_it_is() {
    let fixture = Fixture::new();
    let mut base = bases(&["a"]).remove(0);
    let id = fixture.store.layers().add_base(None, &base).unwrap();
    base.sources = vec!["ghcr.io/a/b".into()];
    fixture.store.layers().add_base(None, &base).unwrap();
    fixture.store.layers().add_base(None, &base).unwrap();
    let LayerKind::Base(base) = fixture.again().layers().get(&id).unwrap().unwrap().kind else { panic!() };
    assert_eq!(base.sources, ["docker.io/library/x", "ghcr.io/a/b"]);
}

/// C79: a shared cache can name any blob for a layer's tar; an image that has the layer keeps its own, whoever came first.
#[test]
fn an_image_knows_its_blobs_better_than_a_cache() {
    let of_image = bases(&["a"]).remove(0);
    let blob = Descriptor::of(kiln_oci::media_type::OCI_LAYER_GZIP, b"anything");
    let of_cache = BaseLayer { blob, created: Some("2026-01-01T00:00:00Z".into()), ..of_image.clone() };
    let found = |layers: [&BaseLayer; 2]| {
        let fixture = Fixture::new();
        let ids = layers.map(|layer| fixture.store.layers().add_base(None, layer).unwrap());
        let LayerKind::Base(base) = fixture.again().layers().get(&ids[0]).unwrap().unwrap().kind else { panic!() };
        base
    };
    for order in [[&of_cache, &of_image], [&of_image, &of_cache]] {
        let base = found(order);
        assert_eq!((base.blob, base.created), (of_image.blob.clone(), of_cache.created.clone()));
    }
    assert_eq!(found([&of_cache, &of_cache]).blob, of_cache.blob);
}

#[test]
fn packed_forms_are_remembered() {
    let fixture = Fixture::new();
    let id = built(&fixture.store, None, "x");
    let diff_id = DiffId::new(Digest::of(b"tar"));
    let tar = KnownTar { diff_id, size: 1024, crc: Some(7) };
    let packed = |bytes: &[u8], compression: &str| PackedBlob {
        descriptor: Descriptor::of(kiln_oci::media_type::OCI_LAYER_GZIP, bytes),
        compression: compression.into(),
        diff_id: None,
    };
    let layers = fixture.store.layers();
    layers.set_packed(&id, tar, None).unwrap();
    layers.set_packed(&id, tar, Some(packed(b"1", "gzip:6"))).unwrap();
    layers.set_packed(&id, tar, Some(packed(b"2", "zstd:3"))).unwrap();
    layers.set_packed(&id, tar, Some(packed(b"3", "gzip:6"))).unwrap();
    let record = fixture.again().layers().get(&id).unwrap().unwrap();
    assert_eq!(record.known_tar(), Some(tar));
    assert_eq!(record.blobs, [packed(b"2", "zstd:3"), packed(b"3", "gzip:6")]);
    let missing = LayerId::parse(&format!("n{:032x}", 1)).unwrap();
    assert!(matches!(layers.set_packed(&missing, tar, None), Err(Error::LayerMissing { .. })));
}

#[test]
fn rings_and_holes_are_refused() {
    let fixture = Fixture::new();
    let parents: Vec<LayerId> = (0..3).map(|n| LayerId::parse(&format!("n{n:032x}")).unwrap()).collect();
    let write = |id: &LayerId, parent: &LayerId| {
        let dir = fixture.root().join("layers").join(id.as_str());
        fs::create_dir(&dir).unwrap();
        let value = serde_json::json!({"boot": fixture.store.boot(), "parent": parent});
        fs::write(dir.join("record.json"), crate::record::seal(&value, &dir).unwrap()).unwrap();
    };
    write(&parents[0], &parents[1]);
    assert!(matches!(fixture.store.layers().chain(&parents[0]), Err(Error::LayerMissing { id }) if id == parents[1]));
    write(&parents[1], &parents[0]);
    assert!(matches!(fixture.store.layers().chain(&parents[0]), Err(Error::LayerCycle { .. })));
    fixture.store.cache().put(&key(1), &record(Some(&parents[0]))).unwrap();
    assert!(fixture.after_reboot().cache().get(&key(1)).unwrap().is_none());
}

#[test]
fn ids_that_are_not_ids_are_refused() {
    let hex = "0123456789abcdef".repeat(4);
    for (text, good) in [
        (format!("chain-{hex}"), true),
        (format!("n{}", &hex[..32]), true),
        (format!("n{hex}"), false),
        (format!("chain-{}", hex.to_uppercase()), false),
        ("..".into(), false),
        ("chain-../../../etc/passwd".into(), false),
        (String::new(), false),
    ] {
        assert_eq!(LayerId::parse(&text).is_some(), good, "{text}");
        assert_eq!(serde_json::from_value::<LayerId>(text.clone().into()).is_ok(), good, "{text}");
    }
    let chain = ChainId::new(Digest::of(b""));
    assert_eq!(LayerId::of_chain(chain).chain_id(), Some(chain));
}

#[test]
fn only_what_is_durable_outlives_the_machine() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let base = add_bases(store, &["a"]);
    unpack(store, &base);
    let lower = built(store, Some(&base[0]), "lower");
    let kept = built(store, Some(&lower), "kept");
    let lost = built(store, Some(&kept), "lost");
    for (n, layer) in [&base[0], &lower, &kept, &lost].into_iter().enumerate() {
        store.cache().put(&key(n as u8), &record(Some(layer))).unwrap();
    }
    store.cache().put(&key(9), &record(None)).unwrap();

    let hits = |store: &crate::Store| [0, 1, 2, 3, 9].map(|n| store.cache().get(&key(n)).unwrap().is_some());
    assert_eq!(hits(store), [true; 5]);
    assert_eq!(hits(&fixture.again()), [true; 5]);
    // A base layer's record proves itself; its tree doesn't.
    assert_eq!(hits(&fixture.after_reboot()), [true, false, false, false, true]);
    assert!(!fixture.after_reboot().layers().get(&base[0]).unwrap().unwrap().unpacked);
    assert!(matches!(fixture.after_reboot().layers().lowers(&lower), Err(Error::LayerMissing { .. })));

    store.make_durable(std::slice::from_ref(&kept)).unwrap();
    assert_eq!(hits(&fixture.after_reboot()), [true, true, true, false, true]);
    assert!(fixture.after_reboot().layers().get(&base[0]).unwrap().unwrap().unpacked);
    assert_eq!(fixture.after_reboot().layers().lowers(&kept).unwrap().len(), 3);
}

#[test]
fn an_image_name_vouches_for_built_layers_whose_marks_are_lost() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let base = add_bases(store, &["a"]);
    let apart = store.layers().prepare_apart(Some(&base[0])).unwrap().commit().unwrap();
    store.images().set(&image(store, Some("x"), "config", std::slice::from_ref(&apart))).unwrap();
    // Unpacked after the barrier: the name says nothing about this tree.
    unpack(store, &base);
    fs::remove_file(fixture.root().join("layers").join(apart.as_str()).join("durable")).unwrap();
    let later = fixture.after_reboot();
    assert!(later.layers().get(&apart).unwrap().is_some());
    assert!(!later.layers().get(&base[0]).unwrap().unwrap().unpacked);
    // It is unpacked again, in place of the tree that can't be trusted.
    fs::write(store.layers().diff_dir(&base[0]).join("torn"), "").unwrap();
    unpack(&later, &base);
    assert_eq!(tree(&later.layers().diff_dir(&base[0])), ["from"]);
    assert_eq!(later.layers().lowers(&apart).unwrap().len(), 2);
}

#[test]
fn torn_records_count_as_absent() {
    for damage in [&b""[..], b"\0\0\0\0\0\0", b"{}\n", b"{\"boot\":\"x\"}\nblake3:00000000000000000000000000000000\n"] {
        let fixture = Fixture::new();
        let store = &fixture.store;
        let ids = add_bases(store, &["a"]);
        let id = built(store, None, "x");
        store.cache().put(&key(1), &record(Some(&id))).unwrap();
        store.layers().set_packed(&id, KnownTar { diff_id: DiffId::new(Digest::of(b"")), size: 1, crc: None }, None).unwrap();
        let layers = fixture.root().join("layers");
        let shard = fixture.root().join("cache/01").join("01".repeat(31));
        fs::write(&shard, damage).unwrap();
        fs::write(layers.join(id.as_str()).join("facts.json"), damage).unwrap();
        let again = fixture.again();
        assert!(again.cache().get(&key(1)).unwrap().is_none());
        assert_eq!(again.layers().get(&id).unwrap().unwrap().diff_id, None);
        fs::write(layers.join(id.as_str()).join("record.json"), damage).unwrap();
        fs::write(layers.join(ids[0].as_str()).join("record.json"), damage).unwrap();
        let again = fixture.again();
        assert!(again.layers().get(&id).unwrap().is_none());
        assert!(again.layers().get(&ids[0]).unwrap().is_none());
        // Writing it down again heals it.
        assert_eq!(add_bases(&again, &["a"]), ids);
        assert!(again.layers().get(&ids[0]).unwrap().is_some());
    }
}

#[test]
fn walking_grows_in_proportion() {
    let fixture = Fixture::new();
    let mut top = None;
    let mut layers = Vec::new();
    for _ in 0..1000 {
        top = Some(fixture.store.layers().prepare_apart(top.as_ref()).unwrap().commit().unwrap());
        layers.extend(top.clone());
    }
    let time = |length: usize| {
        let store = fixture.again();
        let begin = Instant::now();
        assert_eq!(store.layers().lowers(&layers[length - 1]).unwrap().len(), length);
        begin.elapsed()
    };
    let (short, long) = (time(127), time(1000));
    println!("127 layers: {short:?}; 1000 layers: {long:?}");
    assert!(long < short * 60, "127 layers: {short:?}; 1000 layers: {long:?}");
}
