//! Reads tar archives for the comparer: a second opinion, so nothing of kiln's own reader is used.

use std::collections::BTreeMap;

/// One entry, with what PAX records and GNU long names say already applied.
#[derive(Debug, Clone)]
pub(crate) struct Entry<'a> {
    /// The path as written, without a leading `./` or `/` and without a trailing `/`.
    pub(crate) path: Vec<u8>,
    /// The type byte of the header.
    pub(crate) kind: u8,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    /// Whole seconds since 1970, rounded down.
    pub(crate) mtime: i64,
    pub(crate) link: Vec<u8>,
    pub(crate) device: (u64, u64),
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) data: &'a [u8],
}

/// All entries of `archive`, in order.
pub(crate) fn entries(archive: &[u8]) -> Result<Vec<Entry<'_>>, String> {
    let mut found = Vec::new();
    let mut at = 0;
    let mut pax: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    let mut long_name: Option<Vec<u8>> = None;
    let mut long_link: Option<Vec<u8>> = None;
    while let Some(header) = archive.get(at..at + 512) {
        if header.iter().all(|b| *b == 0) {
            return Ok(found);
        }
        let sum: u64 = header.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { u64::from(*b) }).sum();
        if number(&header[148..156]) != Some(sum as i64) {
            return Err(format!("the header at byte {at} has a wrong checksum"));
        }
        at += 512;
        let kind = header[156];
        let mut size = number(&header[124..136]).ok_or("a size is no number")?;
        if let (Some(text), b'0' | 0 | b'7') = (pax.get(&b"size"[..]), kind) {
            size = parse_decimal(text).ok_or("a PAX size is no number")?.0;
        }
        let size = usize::try_from(size).map_err(|_| "a size is negative".to_owned())?;
        let data = archive.get(at..at + size).ok_or("the archive ends inside a file")?;
        at += size.div_ceil(512) * 512;
        match kind {
            b'x' => pax = pax_records(data)?,
            b'g' => {}
            b'L' => long_name = Some(until_nul(data).to_vec()),
            b'K' => long_link = Some(until_nul(data).to_vec()),
            _ => {
                let records = std::mem::take(&mut pax);
                let mut path = until_nul(&header[..100]).to_vec();
                if &header[257..263] == b"ustar\0" && header[345] != 0 {
                    path = [until_nul(&header[345..500]), b"/", &path].concat();
                }
                let mut entry = Entry {
                    path: long_name.take().unwrap_or(path),
                    kind: if kind == 0 || kind == b'7' { b'0' } else { kind },
                    mode: number(&header[100..108]).unwrap_or(0) as u32 & 0o7777,
                    uid: number(&header[108..116]).unwrap_or(0) as u64,
                    gid: number(&header[116..124]).unwrap_or(0) as u64,
                    mtime: number(&header[136..148]).unwrap_or(0),
                    link: long_link.take().unwrap_or_else(|| until_nul(&header[157..257]).to_vec()),
                    device: (number(&header[329..337]).unwrap_or(0) as u64, number(&header[337..345]).unwrap_or(0) as u64),
                    xattrs: BTreeMap::new(),
                    data,
                };
                apply(&mut entry, records)?;
                entry.path = clean(&entry.path);
                if entry.kind == b'1' {
                    entry.link = clean(&entry.link);
                }
                found.push(entry);
            }
        }
    }
    Err("the archive has no end".to_owned())
}

/// The entry's data for the file `name`, through links as `docker save` uses them.
pub(crate) fn find<'a>(entries: &[Entry<'a>], name: &str) -> Option<&'a [u8]> {
    let mut path = clean(name.as_bytes());
    for _ in 0..8 {
        let entry = entries.iter().rev().find(|e| e.path == path)?;
        match entry.kind {
            b'2' => {
                let folder = path.rsplitn(2, |b| *b == b'/').nth(1).unwrap_or_default().to_vec();
                path = clean(&[&folder[..], b"/", &entry.link].concat());
            }
            b'1' => path = clean(&entry.link),
            _ => return Some(entry.data),
        }
    }
    None
}

fn apply(entry: &mut Entry<'_>, records: BTreeMap<Vec<u8>, Vec<u8>>) -> Result<(), String> {
    for (key, value) in records {
        let decimal = || parse_decimal(&value).ok_or_else(|| format!("PAX {} is no number", String::from_utf8_lossy(&key)));
        match &key[..] {
            b"path" => entry.path = value,
            b"linkpath" => entry.link = value,
            b"uid" => entry.uid = decimal()?.0 as u64,
            b"gid" => entry.gid = decimal()?.0 as u64,
            b"mtime" => entry.mtime = decimal()?.0,
            b"SCHILY.devmajor" => entry.device.0 = decimal()?.0 as u64,
            b"SCHILY.devminor" => entry.device.1 = decimal()?.0 as u64,
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    entry.xattrs.insert(name.to_vec(), value);
                }
            }
        }
    }
    Ok(())
}

fn pax_records(mut data: &[u8]) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, String> {
    let mut records = BTreeMap::new();
    while !data.is_empty() {
        let blank = data.iter().position(|b| *b == b' ').ok_or("a PAX record has no length")?;
        let length = parse_decimal(&data[..blank]).ok_or("a PAX length is no number")?.0 as usize;
        let record = data.get(blank + 1..length).ok_or("a PAX record is longer than its block")?;
        let equals = record.iter().position(|b| *b == b'=').ok_or("a PAX record has no =")?;
        let value = record[equals + 1..].strip_suffix(b"\n").ok_or("a PAX record does not end its line")?;
        records.insert(record[..equals].to_vec(), value.to_vec());
        data = &data[length..];
    }
    Ok(records)
}

/// A number of a header: octal text, or base 256 when the first bit is set.
fn number(field: &[u8]) -> Option<i64> {
    if field[0] & 0x80 != 0 {
        let negative = field[0] & 0x40 != 0;
        let mut value: i64 = if negative { -1 } else { 0 };
        for (i, byte) in field.iter().enumerate() {
            let byte = if i == 0 && !negative { byte & 0x7f } else { *byte };
            value = (value << 8) | i64::from(byte);
        }
        return Some(value);
    }
    let text = std::str::from_utf8(until_nul(field)).ok()?.trim();
    if text.is_empty() { Some(0) } else { i64::from_str_radix(text, 8).ok() }
}

/// A decimal with an optional fraction: the whole part rounded down, and whether there was a fraction.
fn parse_decimal(text: &[u8]) -> Option<(i64, bool)> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let fraction = fraction.bytes().any(|b| b != b'0');
    let value: i64 = whole.parse().ok()?;
    Some((if whole.starts_with('-') && fraction { value - 1 } else { value }, fraction))
}

fn until_nul(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|b| *b == 0).unwrap_or(field.len())]
}

/// The path without empty, `.` and `..` parts.
fn clean(path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            _ => parts.push(part),
        }
    }
    parts.join(&b'/')
}
