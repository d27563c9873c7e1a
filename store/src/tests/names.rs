//! Image names: set, found, replaced, removed, damaged.

use std::fs;

use super::{Fixture, add_bases, built, image, name};
use crate::Error;

#[test]
fn names_are_set_found_and_removed() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let images = store.images();
    let layer = built(store, None, "x");
    let one = image(store, Some("app"), "one", std::slice::from_ref(&layer));
    let two = image(store, Some("app"), "two", std::slice::from_ref(&layer));
    assert_eq!(images.set(&one).unwrap(), None);
    assert_eq!(images.get(&name("app:latest")).unwrap().as_ref(), Some(&one));
    assert_eq!(images.set(&one).unwrap(), None, "the same image again replaces nothing");
    assert_eq!(images.set(&two).unwrap(), Some(one.clone()));
    images.set(&image(store, None, "one", &[layer])).unwrap();
    let other = image(store, Some("ghcr.io/a/b:1"), "two", &[]);
    images.set(&other).unwrap();
    let names: Vec<_> = fixture.again().images().list().unwrap().into_iter().map(|i| i.name.map(|n| n.familiar())).collect();
    assert_eq!(names, [Some("app:latest".to_owned()), Some("ghcr.io/a/b:1".to_owned()), None]);

    let id = two.config.hex();
    for (text, found) in [
        ("app".to_owned(), Some(&two)),
        (two.config.to_string(), Some(&two)),
        (id.clone(), Some(&two)),
        (id[..12].to_owned(), Some(&two)),
        (format!("sha256:{}", &id[..8]), Some(&two)),
        ("nothing".into(), None),
        ("sha256:".into(), None),
        ("".into(), None),
        (format!("{id}0"), None),
    ] {
        assert_eq!(images.find(&text).unwrap().map(|i| i.config), found.map(|i| i.config), "{text}");
    }
    assert_eq!(images.by_id(&id).unwrap().len(), 2);

    assert!(images.remove(&name("app")).unwrap());
    assert!(!images.remove(&name("app")).unwrap());
    assert!(images.remove_nameless(&one.config).unwrap());
    assert_eq!(images.list().unwrap(), [other]);
}

/// A record from before there were indexes is one of today, and one image is written as it was then.
#[test]
fn records_without_an_index_are_as_before() {
    let old = format!(r#"{{"name":"docker.io/library/app:latest","config":"sha256:{}","layers":[]}}"#, "a".repeat(64));
    let record: crate::ImageRecord = serde_json::from_str(&old).unwrap();
    assert_eq!((&record.index, record.platforms.len()), (&None, 0));
    assert_eq!(serde_json::to_string(&record).unwrap(), old);
}

#[test]
fn an_index_keeps_all_its_images() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let platform = |text: &str| kiln_oci::platform::Platform::parse(text).unwrap();
    let document = |text: &str| {
        store.blobs().put_bytes(text.as_bytes()).unwrap();
        kiln_oci::descriptor::Descriptor::of("x", text.as_bytes())
    };
    let one = |name: &str, architecture: &str| {
        let layer = built(store, None, name);
        let config = store.blobs().put_bytes(name.as_bytes()).unwrap();
        let manifest = document(&format!("manifest of {name}"));
        crate::PlatformImage { platform: platform(architecture), config, layers: vec![layer], manifest }
    };
    let platforms = vec![one("arm", "linux/arm64"), one("amd", "linux/amd64")];
    let mut record = image(store, Some("app"), "amd", &platforms[1].layers);
    record.index = Some(document("index"));
    record.platforms = platforms.clone();
    store.images().set(&record).unwrap();
    store.gc().prune(&super::collection::everything()).unwrap();
    for image in &platforms {
        assert!(store.layers().get(&image.layers[0]).unwrap().is_some());
        assert!(store.blobs().has(&image.config) && store.blobs().has(&image.manifest.digest));
        let found = record.for_platform(&image.platform).unwrap();
        assert_eq!((found.config, &found.layers, found.index), (image.config, &image.layers, None));
    }
    assert_eq!(record.for_platform(&platform("linux/s390x")), None);
    assert_eq!(record.digest(), record.index.as_ref().map(|index| index.digest));
    // What an index lacks can't be named.
    record.platforms[0].config = kiln_oci::digest::Digest::of(b"elsewhere");
    assert!(matches!(store.images().set(&record), Err(Error::BlobMissing { .. })));
    // And it goes with its name.
    store.images().remove(&name("app")).unwrap();
    store.gc().prune(&super::collection::everything()).unwrap();
    assert!(store.layers().get(&platforms[0].layers[0]).unwrap().is_none());
}

#[test]
fn short_ids_may_be_ambiguous() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    for n in 0..17 {
        store.images().set(&image(store, Some(&format!("i{n}")), &n.to_string(), &[])).unwrap();
    }
    // 17 ids, 16 first digits.
    let digits = "0123456789abcdef".chars().map(|c| c.to_string());
    let ambiguous = digits.filter(|d| matches!(store.images().by_id(d), Err(Error::AmbiguousId { .. }))).count();
    assert!(ambiguous > 0);
}

#[test]
fn an_image_is_named_only_if_it_is_there() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let layer = built(store, None, "x");
    let mut record = image(store, Some("app"), "config", &[layer]);
    record.layers.push(crate::LayerId::parse(&format!("n{:032x}", 1)).unwrap());
    assert!(matches!(store.images().set(&record), Err(Error::LayerMissing { .. })));
    record.layers.pop();
    record.config = kiln_oci::digest::Digest::of(b"not there");
    assert!(matches!(store.images().set(&record), Err(Error::BlobMissing { .. })));
    assert_eq!(store.images().list().unwrap(), []);
}

#[test]
fn missing_parents_are_added() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let bases = add_bases(store, &["a", "b"]);
    let top = store.layers().prepare_apart(Some(&bases[1])).unwrap().commit().unwrap();
    store.images().set(&image(store, Some("app"), "c", std::slice::from_ref(&top))).unwrap();
    let layers = store.images().get(&name("app")).unwrap().unwrap().layers;
    assert_eq!(layers, [bases[0].clone(), bases[1].clone(), top]);
}

#[test]
fn a_damaged_name_is_damage() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    store.images().set(&image(store, Some("app"), "c", &[])).unwrap();
    let file = fs::read_dir(fixture.root().join("images")).unwrap().next().unwrap().unwrap().path();
    fs::write(&file, "").unwrap();
    assert!(matches!(store.images().get(&name("app")), Err(Error::BadRecord { .. })));
    assert!(matches!(store.images().list(), Err(Error::BadRecord { .. })));
    let options = super::collection::everything();
    assert!(matches!(store.gc().prune(&options), Err(Error::BadRecord { .. })), "what it needs isn't known");
    // Writing the name again heals it.
    store.images().set(&image(store, Some("app"), "c", &[])).unwrap();
    assert_eq!(store.images().list().unwrap().len(), 1);
}
