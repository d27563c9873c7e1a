//! Databases that rpm, SQLite and Berkeley DB made, whole and damaged.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use kiln::attest::sbom::package::Distribution;
use kiln::attest::sbom::rpm;

use crate::support::lab;
use crate::support::skip::needs;

/// The folder that `rpmdb.py` filled.
fn made(folder: &Path) {
    let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/tools/rpmdb.py");
    let done = Command::new("python3").arg(tool).arg(folder).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn every_format_of_rpm_gives_the_packages_that_rpm_lists() {
    if !["rpmbuild", "rpm", "db5.3_load"].iter().all(|program| needs("every_format_of_rpm", program)) {
        return;
    }
    let folder = lab::temp_dir();
    made(folder.path());
    let said: Vec<(String, Option<String>, String, String, String)> =
        serde_json::from_slice(&fs::read(folder.path().join("packages.json")).unwrap()).unwrap();
    assert!(said.len() >= 30);
    let distribution = Distribution::parse("ID=fedora\nVERSION_ID=40\n");
    let none = Vec::new();
    for (file, log) in [("rpmdb.sqlite", ""), ("wal/rpmdb.sqlite", "wal/rpmdb.sqlite-wal"), ("Packages", ""), ("Packages.db", "")]
    {
        let database = fs::read(folder.path().join(file)).unwrap();
        let log = if log.is_empty() { none.clone() } else { fs::read(folder.path().join(log)).unwrap() };
        let found = rpm::packages(&database, &log, "/db", &distribution).unwrap();
        let listed: BTreeSet<_> = found.iter().map(|p| (&p.name, p.version.clone(), &p.license, &p.supplier)).collect();
        let expected: BTreeSet<_> = said
            .iter()
            .map(|(name, epoch, version, license, vendor)| {
                let version = epoch.as_ref().map_or_else(|| version.clone(), |epoch| format!("{epoch}:{version}"));
                (name, version, license, vendor)
            })
            .collect();
        assert_eq!(listed, expected, "{file}");
        let one = found.iter().find(|package| package.name == "kiln-test-7").unwrap();
        assert_eq!(
            one.purl,
            "pkg:rpm/fedora/kiln-test-7@1.7-3.fc40?arch=noarch&distro=fedora-40&epoch=1&upstream=kiln-1-1.src.rpm"
        );
        damaged(&database, &log, file);
    }
    // Without its log, a database lacks what is only there.
    let database = fs::read(folder.path().join("wal/rpmdb.sqlite")).unwrap();
    assert!(rpm::packages(&database, &[], "/db", &distribution).unwrap().len() < said.len());
}

/// However a database is cut or changed, it is read to an end, and soon.
fn damaged(database: &[u8], log: &[u8], file: &str) {
    let distribution = Distribution::default();
    let begun = Instant::now();
    for cut in [0, 1, 15, 16, 99, 511, 512, 4095, 4096, 4097, database.len() / 2, database.len() - 1] {
        let _ = rpm::packages(&database[..cut], log, "/db", &distribution);
    }
    // Of each page its head, where numbers of pages, places and lengths are; the same changes each time.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below as u64).unwrap()
    };
    let mut changed = database.to_vec();
    for _ in 0..600 {
        let page = random(database.len() / 512) * 512;
        let at = (page + random(64)).min(database.len() - 1);
        let value = [0, 1, 0x7f, 0x80, 0xff, changed[(at + 4) % database.len()]][random(6)];
        let before = std::mem::replace(&mut changed[at], value);
        let _ = rpm::packages(&changed, log, "/db", &distribution);
        changed[at] = before;
    }
    assert!(begun.elapsed() < Duration::from_secs(30), "{file}: {:?}", begun.elapsed());
}
