//! What `fsck` finds, what it leaves alone, and what goes with what is broken.

use std::fs;
use std::ops::ControlFlow;
use std::path::PathBuf;

use kiln_oci::config::ImageConfig;
use kiln_oci::descriptor::Descriptor;
use kiln_oci::digest::{DiffId, Digest};

use super::{Fixture, add_bases, built, image, key, name, record};
use crate::fsck::{Object, Report};
use crate::layer::KnownTar;
use crate::snapshot::Part;
use crate::{CacheRecord, LayerId, PackedBlob, Store};

fn check(store: &Store) -> Report {
    store.fsck().check(&|_| ControlFlow::Continue(())).unwrap()
}

/// What is broken, in words, with the images that need it.
fn found(store: &Store) -> Vec<String> {
    let words = |finding: crate::fsck::Finding| format!("{}: {} {:?}", finding.object, finding.reason, finding.needed_by);
    check(store).findings.into_iter().map(words).collect()
}

/// An image `app` of two built layers, each step in the cache, and a layer of a stage on top of the first.
struct Made {
    fixture: Fixture,
    layers: Vec<LayerId>,
    stage: LayerId,
    packed: Digest,
}

fn made() -> Made {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let first = built(store, None, "first");
    let second = built(store, Some(&first), "second");
    let stage = built(store, Some(&first), "stage");
    for (n, layer) in [(1, &first), (2, &second), (3, &stage)] {
        store.cache().put(&key(n), &record(Some(layer))).unwrap();
    }
    let packed = store.blobs().put_bytes(b"packed").unwrap();
    let known = pack(store, &second);
    let blob = PackedBlob {
        descriptor: Descriptor { digest: packed, size: 6, ..Descriptor::of("x", b"packed") },
        compression: "gzip:6".into(),
        diff_id: None,
    };
    store.layers().set_packed(&second, known, Some(blob)).unwrap();
    let below = pack(store, &first);
    store.layers().set_packed(&first, below, None).unwrap();
    store.layers().sum_made().unwrap();
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["{}","{}"]}}}}"#,
        below.diff_id, known.diff_id
    );
    assert!(serde_json::from_str::<ImageConfig>(&config).is_ok());
    let image = image(store, Some("app"), &config, &[first.clone(), second.clone()]);
    store.images().set(&image).unwrap();
    assert_eq!(found(store), Vec::<String>::new());
    Made { layers: vec![first, second], stage, packed, fixture }
}

fn pack(store: &Store, id: &LayerId) -> KnownTar {
    let mut tar = Vec::new();
    let diff = store.tree(&store.layers().diff_dir(id)).unwrap();
    crate::layer::pack(&diff, &mut tar, &store.packing()).unwrap();
    KnownTar { diff_id: DiffId::new(Digest::of(&tar)), size: tar.len() as u64, crc: None }
}

impl Made {
    fn layer(&self, id: &LayerId, file: &str) -> PathBuf {
        self.fixture.root().join("layers").join(id.as_str()).join(file)
    }

    /// Mends what is found now; nothing is broken afterwards. Says what was done.
    fn mended(&self) -> Vec<String> {
        let store = self.fixture.again();
        let done = store.fsck().mend(&check(&store).findings).unwrap();
        drop(store);
        assert_eq!(found(&self.fixture.again()), Vec::<String>::new(), "{done:?}");
        done
    }
}

fn flip(path: &std::path::Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_changed_tree_of_an_image_takes_its_name_and_a_stage_only_itself() {
    let made = made();
    flip(&made.layer(&made.stage, "diff/file"));
    assert_eq!(found(&made.fixture.store), [format!("tree of layer {}: its files are not what they were []", made.stage)]);
    drop_handle(&made, |made| {
        made.mended();
        let store = made.fixture.again();
        assert_eq!(store.cache().get(&key(3)).unwrap(), None, "the step is done again");
        assert!(store.cache().get(&key(2)).unwrap().is_some());
        assert!(store.images().get(&name("app")).unwrap().is_some());
    });
}

/// `mend` wants the store for itself, and a fixture has a handle.
fn drop_handle(made: &Made, work: impl FnOnce(&Made)) {
    rustix::fs::flock(made.fixture.store.lease(), rustix::fs::FlockOperation::Unlock).unwrap();
    work(made);
}

#[test]
fn what_stands_on_a_lost_layer_goes_with_it() {
    let made = made();
    flip(&made.layer(&made.layers[0], "record.json"));
    let words = found(&made.fixture.store);
    assert_eq!(words, [format!("record of layer {}: it is not whole [\"app:latest\"]", made.layers[0])]);
    drop_handle(&made, |made| {
        made.mended();
        let store = made.fixture.again();
        for n in 1..4 {
            assert_eq!(store.cache().get(&key(n)).unwrap(), None);
        }
        assert_eq!(store.images().get(&name("app")).unwrap(), None);
        assert!(fs::read_dir(made.fixture.root().join("layers")).unwrap().next().is_none());
        assert!(store.blobs().has(&made.packed), "nothing is wrong with it");
    });
}

#[test]
fn what_was_learnt_is_learnt_again() {
    let made = made();
    let facts = made.layer(&made.layers[1], "facts.json");
    for damage in [flip as fn(&std::path::Path), |path| fs::write(path, "").unwrap(), |path| fs::remove_file(path).unwrap()] {
        let before = made.fixture.again().layers().get(&made.layers[1]).unwrap().unwrap();
        damage(&facts);
        assert_eq!(found(&made.fixture.store).len(), 1);
        drop_handle(&made, |made| drop(made.mended()));
        let after = made.fixture.again().layers().get(&made.layers[1]).unwrap().unwrap();
        assert_eq!((after.diff_id, after.tar_size), (before.diff_id, before.tar_size));
        assert!(made.fixture.again().images().get(&name("app")).unwrap().is_some());
    }
}

#[test]
fn a_packed_form_is_forgotten_and_a_configuration_is_not_made_up() {
    let made = made();
    let blob = |digest: &Digest| made.fixture.root().join("blobs/sha256").join(digest.hex());
    fs::write(blob(&made.packed), "").unwrap();
    assert_eq!(found(&made.fixture.store), [format!("blob {}: it is empty [\"app:latest\"]", made.packed)]);
    drop_handle(&made, |made| drop(made.mended()));
    assert!(made.fixture.again().layers().get(&made.layers[1]).unwrap().unwrap().blobs.is_empty());
    assert!(made.fixture.again().images().get(&name("app")).unwrap().is_some());

    let config = made.fixture.again().images().get(&name("app")).unwrap().unwrap().config;
    fs::remove_file(blob(&config)).unwrap();
    assert_eq!(found(&made.fixture.store), [format!("blob {config}: it is missing [\"app:latest\"]")]);
    drop_handle(&made, |made| drop(made.mended()));
    let store = made.fixture.again();
    assert_eq!(store.images().get(&name("app")).unwrap(), None);
    assert!(store.cache().get(&key(2)).unwrap().is_some(), "its steps need not be done again");
}

#[test]
fn small_files_are_found_and_go_alone() {
    let made = made();
    let store = &made.fixture.store;
    store.gc().usage().unwrap();
    let memo = store.memo_file(std::path::Path::new("/c"));
    fs::write(&memo, "kiln-memo1\nsomething").unwrap();
    let (hex, image) = (key(2).hex(), fs::read_dir(made.fixture.root().join("images")).unwrap().next().unwrap().unwrap().path());
    let blob = store.blobs().put_bytes(b"x").unwrap();
    store.cache().put(&key(9), &CacheRecord { blobs: vec![blob], ..record(None) }).unwrap();
    fs::remove_file(made.fixture.root().join("blobs/sha256").join(blob.hex())).unwrap();
    flip(&made.layer(&made.stage, "usage"));
    flip(&made.fixture.root().join("cache").join(&hex[..2]).join(&hex[2..]));
    let bytes = fs::read(&image).unwrap();
    fs::write(&image, &bytes[..bytes.len() - 9]).unwrap();
    let objects: Vec<Object> = check(store).findings.into_iter().map(|finding| finding.object).collect();
    assert_eq!(
        objects,
        [
            Object::Blob(blob),
            Object::Layer(made.stage.clone(), Part::Usage),
            Object::Image(image, Some("docker.io/library/app:latest".into())),
            Object::CacheRecord(key(2)),
            Object::Memo(memo),
        ]
    );
    drop_handle(&made, |made| drop(made.mended()));
    assert_eq!(fs::read_dir(made.fixture.root().join("layers")).unwrap().count(), 3);
}

#[test]
fn layers_that_an_image_brought_need_not_be_there() {
    let fixture = Fixture::new();
    let ids = add_bases(&fixture.store, &["a", "b"]);
    assert_eq!(found(&fixture.store), Vec::<String>::new());
    // The one below can't be missed, even if nobody has asked for it yet.
    fs::remove_dir_all(fixture.root().join("layers").join(ids[0].as_str())).unwrap();
    let store = fixture.again();
    assert_eq!(found(&store), [format!("record of layer {}: it is missing []", ids[0])]);
    rustix::fs::flock(fixture.store.lease(), rustix::fs::FlockOperation::Unlock).unwrap();
    store.fsck().mend(&check(&store).findings).unwrap();
    assert_eq!(found(&store), Vec::<String>::new());
    assert_eq!(store.fsck().layers().unwrap(), [], "it comes back with its image");
}

#[test]
fn a_format_that_cannot_be_read_is_written_anew() {
    let fixture = Fixture::new();
    fs::write(fixture.root().join("version"), "\0\0\0").unwrap();
    let error = Store::open(fixture.root()).unwrap_err();
    crate::fsck::mend_format(error).unwrap();
    Store::open(fixture.root()).unwrap();
    fs::write(fixture.root().join("version"), "kiln store 9\n").unwrap();
    let error = Store::open(fixture.root()).unwrap_err();
    assert!(crate::fsck::mend_format(error).is_err(), "that of a newer kiln stays");
}
