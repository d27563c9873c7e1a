//! An eStargz blob read as a lazy snapshotter reads it: footer, table, then single pieces, each proved by itself.

use std::io::Read;

use flate2::bufread::GzDecoder;
use serde_json::Value;

use super::super::compress::{Compression, Decoder};
use super::super::testing::Dirs;
use super::super::{PackOptions, Target, pack_compressed, pack_estargz, repack};
use super::*;
use crate::rootdir::RootDir;
use crate::tar::Reader;

fn encode(threads: usize) -> EncodeOptions {
    EncodeOptions { threads: Some(threads), level: None }
}

fn packed(root: &RootDir, threads: usize) -> (Vec<u8>, Made) {
    let mut blob = Vec::new();
    let (made, stats) = pack_estargz(root, &mut blob, encode(threads), &PackOptions::default()).unwrap();
    assert_eq!(stats.tar_size, made.tar_size);
    (blob, made)
}

/// The table that the footer points to.
fn table(blob: &[u8]) -> (Value, Digest) {
    let footer = &blob[blob.len() - 51..];
    assert_eq!(footer[..4], [0x1f, 0x8b, 8, 4]);
    assert_eq!(&footer[12..16], b"SG\x16\0");
    assert_eq!(&footer[32..38], b"STARGZ");
    let at = usize::from_str_radix(std::str::from_utf8(&footer[16..32]).unwrap(), 16).unwrap();
    let mut reader = Reader::new(GzDecoder::new(&blob[at..]));
    let entry = reader.next_entry().unwrap().unwrap();
    assert_eq!(entry.path, b"stargz.index.json");
    let mut json = vec![0; usize::try_from(entry.size).unwrap()];
    reader.read_exact(&mut json).unwrap();
    assert!(reader.next_entry().unwrap().is_none());
    (serde_json::from_slice(&json).unwrap(), Digest::of(&json))
}

fn number(entry: &Value, key: &str) -> u64 {
    entry[key].as_u64().unwrap_or(0)
}

/// Reads a file piece by piece, each from its own offset.
fn content(blob: &[u8], table: &Value, name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let entries = table["entries"].as_array().unwrap();
    let file = entries.iter().find(|e| e["name"] == name && e["type"] == "reg").unwrap();
    let size = number(file, "size");
    for piece in entries.iter().filter(|e| e["name"] == name && (e["type"] == "reg" || e["type"] == "chunk")) {
        assert_eq!(number(piece, "chunkOffset"), out.len() as u64);
        let length = match number(piece, "chunkSize") {
            0 => size - out.len() as u64,
            length => length,
        };
        let at = usize::try_from(number(piece, "offset")).unwrap();
        let mut bytes = Vec::new();
        GzDecoder::new(&blob[at..]).take(length).read_to_end(&mut bytes).unwrap();
        assert_eq!(piece["chunkDigest"], Digest::of(&bytes).to_string(), "{name}");
        out.extend(bytes);
    }
    assert_eq!(out.len() as u64, size);
    assert_eq!(file["digest"], Digest::of(&out).to_string(), "{name}");
    out
}

#[test]
fn every_piece_can_be_found_and_proved() {
    let dirs = Dirs::new();
    let diff = dirs.make("diff");
    let noise: Vec<u8> = (0..9_000_001u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8 ^ u8::from(n % 7 == 0)).collect();
    std::fs::create_dir(diff.join("dir")).unwrap();
    std::fs::write(diff.join("dir/large"), &noise).unwrap();
    std::fs::write(diff.join("dir/exact"), &noise[..2 * CHUNK]).unwrap();
    std::fs::write(diff.join("small"), "small\n").unwrap();
    std::fs::write(diff.join("empty"), "").unwrap();
    std::os::unix::fs::symlink("small", diff.join("link")).unwrap();
    std::fs::hard_link(diff.join("small"), diff.join("twin")).unwrap();
    let root = RootDir::open(&diff).unwrap();
    let (blob, made) = packed(&root, 1);
    for threads in [2, 5] {
        assert!(packed(&root, threads) == (blob.clone(), made), "{threads} threads give other bytes");
    }
    let (toc, digest) = table(&blob);
    assert_eq!((toc["version"].as_u64(), digest), (Some(1), made.toc));
    assert!(content(&blob, &toc, "dir/large") == noise);
    assert!(content(&blob, &toc, "dir/exact") == noise[..2 * CHUNK]);
    assert_eq!(content(&blob, &toc, "small"), b"small\n");
    assert_eq!(content(&blob, &toc, ".no.prefetch.landmark"), [0x0f]);
    let get = |name: &str| toc["entries"].as_array().unwrap().iter().find(|e| e["name"] == name).unwrap().clone();
    assert_eq!(get("link")["linkName"], "small");
    assert_eq!(get("twin")["linkName"], "small");
    assert_eq!(get("twin")["type"], "hardlink");
    assert_eq!(get("empty")["digest"], Digest::of(b"").to_string());
    assert_eq!(get("dir/")["type"], "dir");
    // Who knows nothing of it reads one tar.gz, with the table as its last file.
    let mut tar = Vec::new();
    Decoder::detect(&blob[..]).unwrap().1.read_to_end(&mut tar).unwrap();
    assert_eq!((DiffId::new(Digest::of(&tar)), tar.len() as u64), (made.diff_id, made.tar_size));
    let mut reader = Reader::new(&tar[..]);
    let mut names = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        names.push(String::from_utf8(entry.path).unwrap());
    }
    assert_eq!(names.first().map(String::as_str), Some(".no.prefetch.landmark"));
    assert_eq!(names.last().map(String::as_str), Some("stargz.index.json"));
    assert!(reader.drain().unwrap());
}

#[test]
fn layers_of_a_base_are_packed_anew() {
    let dirs = Dirs::new();
    let diff = dirs.make("diff");
    std::fs::write(diff.join("a"), vec![b'a'; 5_000_000]).unwrap();
    std::fs::write(diff.join("b"), "b").unwrap();
    let root = RootDir::open(&diff).unwrap();
    let mut gzip = Vec::new();
    let options = PackOptions::default();
    let plain = pack_compressed(&root, &mut gzip, Compression::Gzip, encode(2), &options).unwrap().tar.diff_id;
    let (direct, made) = packed(&root, 2);
    let again = |blob: &[u8], expected, target| {
        let mut out = Vec::new();
        repack(blob, expected, &mut out, target, encode(2)).map(|made| (out, made))
    };
    assert!(again(&gzip, plain, Target::Estargz).unwrap() == (direct.clone(), made));
    // An eStargz layer becomes another without a second table or landmark.
    assert!(again(&direct, made.diff_id, Target::Estargz).unwrap() == (direct.clone(), made));
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let (blob, changed) = again(&gzip, plain, Target::Tar(compression)).unwrap();
        let mut straight = Vec::new();
        pack_compressed(&root, &mut straight, compression, encode(3), &options).unwrap();
        assert!(blob == straight && changed.diff_id == plain, "{compression:?}");
    }
    let error = again(&gzip, made.diff_id, Target::Tar(Compression::Zstd)).unwrap_err();
    assert!(matches!(error, super::super::RepackError::WrongDiffId { .. }), "{error}");
    for target in [Target::Estargz, Target::Tar(Compression::Zstd)] {
        assert!(again(&gzip[..gzip.len() - 100], plain, target).is_err(), "{target:?}: cut off");
    }
}

#[test]
fn times_are_written_as_rfc_3339() {
    for (secs, text) in [
        (0, ""),
        (1, "1970-01-01T00:00:01Z"),
        (-1, "1969-12-31T23:59:59Z"),
        (951_782_400, "2000-02-29T00:00:00Z"),
        (1_700_000_000, "2023-11-14T22:13:20Z"),
        (4_102_444_799, "2099-12-31T23:59:59Z"),
        (i64::from(u32::MAX) * 100, ""),
    ] {
        assert_eq!(rfc3339(secs), text, "{secs}");
    }
}
