//! Hides rpm's database: in each of its three formats a heap of headers, one a package (rpm's `lib/header.cc`, `lib/rpmtag.h`).

mod bdb;
mod ndb;
mod sqlite;

use super::package::{Distribution, Package};

/// Where the database may be, by its file's format. The first of a folder that is there counts.
pub const FILES: [&str; 3] = ["rpmdb.sqlite", "Packages.db", "Packages"];

/// Why a database can't be read. What was read before is lost: half a list would be taken for a whole one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RpmError {
    /// It begins as no database of rpm.
    #[error("it is in none of the formats sqlite, ndb and Berkeley DB")]
    Format,
    /// It ends early, or leads in a circle.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
}

/// No header is larger; rpm itself refuses those above 256 MB.
const MAX_HEADER: usize = 64 << 20;

/// The packages of a database, whichever format it is in. `log` is the write-ahead log of sqlite, empty if there's none.
pub fn packages(database: &[u8], log: &[u8], found: &str, distribution: &Distribution) -> Result<Vec<Package>, RpmError> {
    let mut out = Vec::new();
    // Where many rows lead to the same bytes, they are more than the file holds.
    let mut left = database.len() + log.len();
    let mut each = |blob: &[u8]| -> Result<(), RpmError> {
        left = left.checked_sub(blob.len()).ok_or(RpmError::Damaged("its headers lie over one another"))?;
        out.extend(package(blob, found, distribution)?);
        Ok(())
    };
    if database.starts_with(sqlite::MAGIC) {
        sqlite::headers(database, log, &mut each)?;
    } else if database.starts_with(ndb::MAGIC) {
        ndb::headers(database, &mut each)?;
    } else if bdb::is_hash(database) {
        bdb::headers(database, &mut each)?;
    } else {
        return Err(RpmError::Format);
    }
    Ok(out)
}

/// Tags (lib/rpmtag.h).
const NAME: u32 = 1000;
const VERSION: u32 = 1001;
const RELEASE: u32 = 1002;
const EPOCH: u32 = 1003;
const VENDOR: u32 = 1011;
const LICENSE: u32 = 1014;
const PACKAGER: u32 = 1015;
const URL: u32 = 1020;
const ARCH: u32 = 1022;
const SOURCE_RPM: u32 = 1044;

/// Types of values.
const INT32: u32 = 4;
const STRING: u32 = 6;
const I18N_STRING: u32 = 9;

/// A package by its header; `None` for the keys that rpm keeps as packages.
fn package(blob: &[u8], found: &str, distribution: &Distribution) -> Result<Option<Package>, RpmError> {
    let header = Header::new(blob)?;
    let text = |tag| header.text(tag);
    let (name, version, release) = (text(NAME), text(VERSION), text(RELEASE));
    if name.is_empty() || name == "gpg-pubkey" {
        return Ok(None);
    }
    let full = if release.is_empty() { version } else { format!("{version}-{release}") };
    let epoch = header.number(EPOCH).filter(|epoch| *epoch > 0).map(|epoch| epoch.to_string()).unwrap_or_default();
    let arch = text(ARCH);
    let source = text(SOURCE_RPM);
    let purl = distribution.purl(
        "rpm",
        &name,
        &full,
        &[("arch", arch.as_str()), ("epoch", epoch.as_str()), ("upstream", source.as_str())],
    );
    let vendor = text(VENDOR);
    Ok(Some(Package {
        purl,
        version: if epoch.is_empty() { full } else { format!("{epoch}:{full}") },
        name,
        license: text(LICENSE),
        supplier: if vendor.is_empty() { text(PACKAGER) } else { vendor },
        homepage: text(URL),
        list: "rpm",
        found: found.to_owned(),
    }))
}

/// A header: how many entries, how many bytes, the entries, the bytes.
struct Header<'a> {
    entries: &'a [u8],
    data: &'a [u8],
}

impl<'a> Header<'a> {
    fn new(blob: &'a [u8]) -> Result<Self, RpmError> {
        let damaged = RpmError::Damaged("a header is shorter than it says");
        let count = big(blob, 0).ok_or(damaged)? as usize;
        let size = big(blob, 4).ok_or(damaged)? as usize;
        let entries = blob.get(8..).and_then(|rest| rest.get(..count.checked_mul(16)?)).ok_or(damaged)?;
        let data = blob[8 + entries.len()..].get(..size).ok_or(damaged)?;
        Ok(Self { entries, data })
    }

    /// The bytes of the value from its first on, if it has one of these types.
    fn value(&self, tag: u32, kinds: &[u32]) -> Option<&'a [u8]> {
        let entry = self.entries.chunks_exact(16).find(|entry| big(entry, 0) == Some(tag))?;
        kinds.contains(&big(entry, 4)?).then(|| self.data.get(big(entry, 8)? as usize..))?
    }

    fn text(&self, tag: u32) -> String {
        let value = self.value(tag, &[STRING, I18N_STRING]).unwrap_or_default();
        String::from_utf8_lossy(value.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
    }

    fn number(&self, tag: u32) -> Option<u32> {
        big(self.value(tag, &[INT32])?, 0)
    }
}

/// Four bytes at a place, the highest first.
fn big(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// Four bytes at a place, the lowest first.
fn little(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}
