//! Documents written, read back, damaged and forged.

use super::*;
use kiln_oci::config::HistoryEntry;
use kiln_oci::platform::Platform;

fn digest(text: &str) -> Digest {
    Digest::of(text.as_bytes())
}

fn key(text: &str) -> CacheKey {
    CacheKey(*digest(text).as_bytes())
}

fn blob(text: &str) -> Descriptor {
    Descriptor::of(media_type::OCI_LAYER_GZIP, text.as_bytes())
}

const TIME: &str = "2024-05-06T07:08:09Z";

/// A base layer, two steps on it, and a stage of one step beside them.
fn steps() -> Steps {
    let mut steps = Steps::default();
    let mut add = |parent, name: &str, created: Option<&str>| {
        steps.push(parent, DiffId::new(digest(&format!("tar of {name}"))), blob(name), created.map(str::to_owned)).unwrap()
    };
    let base = add(None, "base", None);
    let one = add(Some(base), "one", Some(TIME));
    let two = add(Some(one), "two", Some(TIME));
    let other = add(Some(base), "other", Some(TIME));
    steps.layers[two].blob.annotations.insert("a".to_owned(), "b".to_owned());
    for (name, layer) in [("empty", None), ("one", Some(one)), ("other", Some(other)), ("two", Some(two))] {
        let content = (name != "empty").then(|| key(&format!("content of {name}")));
        steps.steps.push(CachedStep { definition: key(name), content, identity: key(&format!("identity {name}")).0, layer });
    }
    steps.steps.sort_by_key(|step| step.definition);
    steps.memos.insert(digest("selection"), digest("files"));
    steps
}

#[test]
fn a_document_comes_back_whatever_the_order() {
    let written = write(&steps(), None).unwrap();
    let read_back = read(&written, None).unwrap().unwrap();
    assert_eq!(read_back, steps());
    assert_eq!(write(&read_back, None).unwrap(), written);
    let mut turned = steps();
    turned.steps.reverse();
    assert_eq!(write(&turned, None).unwrap(), written);
    let chain: Vec<_> =
        read_back.chain(&read_back.steps[read_back.by_key()[&key("content of two")]]).into_iter().cloned().collect();
    assert_eq!(chain.iter().map(|layer| layer.blob.digest).collect::<Vec<_>>(), ["base", "one", "two"].map(digest));
    assert_eq!(read_back.by_key()[&key("two")], read_back.by_key()[&key("content of two")]);
}

/// What BuildKit 0.25 wrote for a registry (cut down).
#[test]
fn a_document_of_buildkit_has_nothing_for_kiln() {
    let theirs = r#"{"layers":[{"blob":"sha256:1111111111111111111111111111111111111111111111111111111111111111","parent":-1},
        {"blob":"sha512:22"}],"records":[{"layers":[{"layer":0,"createdAt":"2024-05-06T07:08:09.1Z"},{"layer":1}],
        "digest":"sha256:22","inputs":[[{"selector":"sha256:3","link":0}],null]},{"chains":[{"layers":[1,0]}]}]}"#;
    assert!(matches!(read(theirs.as_bytes(), None), Ok(None)));
    let (_, keys) = crate::remote_cache::seal::tests::pair();
    assert!(matches!(read(theirs.as_bytes(), Some(&keys)), Err(FormatError::Unsigned)));
}

/// C79: a document that isn't the one that was written is no document.
#[test]
fn c79_a_changed_document_is_not_used() {
    let written = write(&steps(), None).unwrap();
    for at in 0..written.len() {
        assert!(read(&written[..at], None).is_err(), "cut at {at}");
        for bit in 0..8 {
            let mut changed = written.clone();
            changed[at] ^= 1 << bit;
            match read(&changed, None) {
                Err(_) | Ok(None) => {}
                Ok(Some(found)) => panic!("bit {bit} of byte {at}: {found:?}"),
            }
        }
    }
}

#[test]
fn c79_what_somebody_sealed_anew_is_refused_without_their_key() {
    let (sign, verify) = crate::remote_cache::seal::tests::pair();
    let (foreign, _) = crate::remote_cache::seal::tests::pair();
    assert_eq!(read(&write(&steps(), Some(&sign)).unwrap(), Some(&verify)).unwrap().unwrap(), steps());
    assert_eq!(read(&write(&steps(), Some(&sign)).unwrap(), None).unwrap().unwrap(), steps());
    assert!(matches!(read(&write(&steps(), None).unwrap(), Some(&verify)), Err(FormatError::Unsigned)));
    assert!(matches!(read(&write(&steps(), Some(&foreign)).unwrap(), Some(&verify)), Err(FormatError::Signature)));
    // The old signature on other steps.
    let mut swapped = steps();
    swapped.layers.swap(1, 3);
    let mut theirs: Value = serde_json::from_slice(&write(&swapped, None).unwrap()).unwrap();
    let ours: Value = serde_json::from_slice(&write(&steps(), Some(&sign)).unwrap()).unwrap();
    theirs["kiln"]["signature"] = ours["kiln"]["signature"].clone();
    assert!(matches!(read(theirs.to_string().as_bytes(), Some(&verify)), Err(FormatError::Signature)));
    theirs["kiln"]["sum"] = ours["kiln"]["sum"].clone();
    assert!(matches!(read(theirs.to_string().as_bytes(), Some(&verify)), Err(FormatError::Sum)));
}

#[test]
fn c79_what_contradicts_itself_is_refused() {
    type Change = fn(&mut Written);
    let rows: [(&str, Change); 11] = [
        ("parent isn't there", |w| w.layers[0].parent = 0),
        ("parent isn't there", |w| w.layers[1].parent = 2),
        ("parent isn't there", |w| w.layers[1].parent = 99),
        ("parent isn't there", |w| w.layers[1].parent = -2),
        ("step's layer isn't there", |w| w.records.iter_mut().for_each(|r| r.layers.iter_mut().for_each(|l| l.layer = 4))),
        ("step's layer isn't there", |w| w.records.iter_mut().for_each(|r| r.layers.iter_mut().for_each(|l| l.layer = -1))),
        ("no diff_id", |w| w.layers[2].annotations.as_mut().unwrap().diff_id = None),
        ("no blob", |w| w.layers[2].blob = None),
        ("no key", |w| w.records[2].digest = None),
        ("none", |w| w.layers[1].annotations.as_mut().unwrap().created_at = Some("yesterday".to_owned())),
        ("as a layer is none", |w| w.layers[1].annotations.as_mut().unwrap().media_type = media_type::OCI_CONFIG.to_owned()),
    ];
    let resealed = |change: &dyn Fn(&mut Written)| {
        let mut written: Written = serde_json::from_slice(&write(&steps(), None).unwrap()).unwrap();
        change(&mut written);
        written.seal(None).unwrap();
        read(&serde_json::to_vec(&written).unwrap(), None)
    };
    assert!(resealed(&|_| ()).is_ok());
    for (expected, change) in rows {
        let error = resealed(&change).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    }
    assert!(matches!(resealed(&|w| w.kiln.as_mut().unwrap().version = 2), Err(FormatError::Version(2))));
    let deep = resealed(&|w| {
        for at in 4..1100 {
            let diff_id = Some(DiffId::new(digest("deep")));
            let annotations = Annotations { media_type: media_type::OCI_LAYER.to_owned(), diff_id, ..Annotations::default() };
            w.layers.push(WrittenLayer { blob: Some(digest("x")), parent: at - 1, annotations: Some(annotations) });
        }
    });
    assert!(deep.unwrap_err().to_string().contains("too many layers"));
}

#[test]
fn an_image_carries_its_steps() {
    let mut own = Steps::default();
    let (mut config, mut layers) = (ImageConfig::empty(&Platform::host()), Vec::new());
    for (at, name) in ["base", "one", "two"].into_iter().enumerate() {
        let diff_id = DiffId::new(digest(&format!("tar of {name}")));
        let created = Some(TIME.to_owned());
        own.push(at.checked_sub(1), diff_id, blob(name), created.clone()).unwrap();
        config.rootfs.diff_ids.push(diff_id);
        config.history.push(HistoryEntry { created, ..HistoryEntry::default() });
        layers.push(blob(name));
    }
    config.history.push(HistoryEntry { empty_layer: true, ..HistoryEntry::default() });
    own.steps.push(CachedStep { definition: key("d"), content: Some(key("c")), identity: key("i").0, layer: Some(2) });
    let (sign, verify) = crate::remote_cache::seal::tests::pair();
    write_image(&own, Some(&sign), &mut config).unwrap();
    let bytes = serde_json::to_vec(&config).unwrap();
    assert_eq!(read_image(&bytes, &layers, Some(&verify)).unwrap().unwrap(), own);
    // What BuildKit does with it: base64, an array of records, layers by their number.
    let records = STANDARD.decode(config.extra[INLINE].as_str().unwrap()).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&records).unwrap()[0]["layers"][0]["layer"], 2);
    assert!(read_image(&bytes, &layers[..2], None).is_err());
    let mut other = config.clone();
    other.rootfs.diff_ids.swap(0, 1);
    assert!(matches!(read_image(&serde_json::to_vec(&other).unwrap(), &layers, None), Err(FormatError::Sum)));
    config.extra.remove(INLINE_KILN);
    assert!(matches!(read_image(&serde_json::to_vec(&config).unwrap(), &layers, None), Ok(None)));
    assert!(read_image(b"{}", &layers, Some(&verify)).is_err());
}
