//! Blobs written, damaged, found out and written again.

use std::fs;
use std::io::{Read, Write};

use kiln_oci::digest::Digest;

use super::{Fixture, tree};
use crate::Error;

#[test]
fn a_blob_appears_only_when_it_is_what_was_announced() {
    let data = b"some bytes";
    let good = Digest::of(data);
    let size = data.len() as u64;
    type Check = fn(&Result<(Digest, u64), Error>) -> bool;
    let rows: [(Option<(Digest, u64)>, Check); 4] = [
        (None, |r| r.is_ok()),
        (Some((good, size)), |r| r.is_ok()),
        (Some((Digest::of(b"x"), size)), |r| matches!(r, Err(Error::DigestMismatch { .. }))),
        (Some((good, size + 1)), |r| matches!(r, Err(Error::SizeMismatch { expected: 11, actual: 10 }))),
    ];
    for (expected, good_outcome) in rows {
        let fixture = Fixture::new();
        let mut writer = fixture.store.blobs().writer().unwrap();
        writer.write_all(&data[..4]).unwrap();
        assert!(!fixture.store.blobs().has(&good));
        writer.write_all(&data[4..]).unwrap();
        assert_eq!(writer.written(), size);
        let outcome = writer.commit(expected);
        assert!(good_outcome(&outcome), "{outcome:?}");
        assert_eq!(fixture.store.blobs().has(&good), outcome.is_ok());
        let names: Vec<String> = tree(&fixture.root().join("ingest"));
        assert_eq!(names.len(), 1, "only the session's folder is left: {names:?}");
    }
}

#[test]
fn a_dropped_writer_leaves_nothing_and_a_limit_holds() {
    let fixture = Fixture::new();
    let mut writer = fixture.store.blobs().writer().unwrap().limited(10);
    writer.write_all(b"0123456789").unwrap();
    let error = writer.write_all(b"x").unwrap_err();
    assert_eq!(error.to_string(), "size mismatch: expected 10 bytes, got 11");
    drop(writer);
    assert_eq!(tree(&fixture.root().join("ingest")).len(), 1);
    assert_eq!(tree(&fixture.root().join("blobs")), ["sha256"]);
}

#[test]
fn damage_is_found_told_and_healed() {
    let data = b"0123456789".repeat(1000);
    let digest = Digest::of(&data);
    let size = data.len() as u64;
    let mut flipped = data.clone();
    flipped[5000] ^= 1;
    for (what, bytes, by_size) in [
        ("empty", &b""[..], true),
        ("truncated", &data[..4096], true),
        ("zeroed", &vec![0; data.len()], false),
        ("flipped", &flipped, false),
    ] {
        let fixture = Fixture::new();
        let blobs = fixture.store.blobs();
        let path = fixture.root().join("blobs/sha256").join(digest.hex());
        let damage = || {
            blobs.put_bytes(&data).unwrap();
            assert_eq!(blobs.read(&digest, size).unwrap(), data);
            fs::write(&path, bytes).unwrap();
        };

        damage();
        assert_eq!(blobs.has_sized(&digest, size), !by_size, "{what}");
        assert_eq!(path.exists(), !by_size, "{what}: what is known to be damaged is removed");

        damage();
        let error = blobs.read(&digest, size).unwrap_err();
        assert!(matches!(error, Error::BlobCorrupt { .. }), "{what}: {error}");
        assert!(matches!(blobs.read(&digest, size), Err(Error::BlobMissing { .. })), "{what}");

        damage();
        let outcome = blobs.reader(&digest, size).map_err(|e| e.to_string()).and_then(|mut reader| {
            let mut read = Vec::new();
            reader.read_to_end(&mut read).map_err(|e| e.to_string())
        });
        assert!(outcome.unwrap_err().contains("is damaged on disk"), "{what}");

        // A writer heals it, whether or not anybody noticed the damage.
        fs::write(&path, bytes).unwrap();
        let mut writer = blobs.writer().unwrap();
        writer.write_all(&data).unwrap();
        writer.commit(Some((digest, size))).unwrap();
        assert_eq!(blobs.read(&digest, size).unwrap(), data);
    }
}

#[test]
fn the_empty_blob_is_a_blob() {
    let fixture = Fixture::new();
    let digest = fixture.store.blobs().put_bytes(b"").unwrap();
    assert!(fixture.store.blobs().has(&digest));
    assert_eq!(fixture.store.blobs().read(&digest, 0).unwrap(), b"");
}

#[test]
fn a_large_blob_is_not_read_into_memory() {
    let fixture = Fixture::new();
    let digest = fixture.store.blobs().put_bytes(b"0123456789").unwrap();
    let error = fixture.store.blobs().read(&digest, 9).unwrap_err();
    assert!(matches!(error, Error::BlobTooLarge { size: 10, limit: 9, .. }));
}
