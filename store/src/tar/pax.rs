//! Hides the records of a PAX extended header (POSIX.1-2001 pax, "pax Extended Header"). Pure.

use std::collections::BTreeMap;

use crate::rootdir::Timestamp;

/// Where PAX keeps the extended attribute whose name follows.
pub(super) const XATTR: &[u8] = b"SCHILY.xattr.";

/// The regions of a GNU sparse file of format 0.0 come as repeated pairs of these, which no map could hold.
const SPARSE_OFFSET: &[u8] = b"GNU.sparse.offset";
const SPARSE_LENGTH: &[u8] = b"GNU.sparse.numbytes";
pub(super) const SPARSE_MAP: &[u8] = b"GNU.sparse.map";

/// The records of one extended header by keyword; an empty value takes back a global one.
pub(super) type Records = BTreeMap<Vec<u8>, Vec<u8>>;

/// Parses all records; `Err` says what's wrong with them.
pub(super) fn parse(mut bytes: &[u8]) -> Result<Records, &'static str> {
    let mut records = Records::new();
    let mut sparse_map: Vec<u8> = Vec::new();
    let mut expect_length = false;
    while !bytes.is_empty() {
        let space = bytes.iter().position(|b| *b == b' ').ok_or("a PAX record has no length")?;
        let length = decimal(&bytes[..space]).ok_or("a PAX record has no length")?;
        let length = usize::try_from(length).map_err(|_| "a PAX record is longer than its header")?;
        if length <= space + 1 || length > bytes.len() || bytes[length - 1] != b'\n' {
            return Err("a PAX record does not end where its length says");
        }
        let record = &bytes[space + 1..length - 1];
        bytes = &bytes[length..];
        let equals = record.iter().position(|b| *b == b'=').ok_or("a PAX record has no `=`")?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        if key.is_empty() || key.contains(&0) {
            return Err("a PAX keyword is empty or holds a NUL");
        }
        // Go, Python and GNU tar each read another name when there's a NUL in it.
        if matches!(key, b"path" | b"linkpath" | b"GNU.sparse.name") && value.contains(&0) {
            return Err("a PAX path holds a NUL");
        }
        // POSIX has it that an empty value takes the header's own back; of these Python takes it as it is.
        if value.is_empty() && matches!(key, b"path" | b"linkpath" | b"size") {
            return Err("a PAX path or size is empty");
        }
        if key == SPARSE_OFFSET || key == SPARSE_LENGTH {
            if (key == SPARSE_LENGTH) != expect_length {
                return Err("the offsets and lengths of a sparse file do not alternate");
            }
            expect_length = !expect_length;
            if !sparse_map.is_empty() {
                sparse_map.push(b',');
            }
            sparse_map.extend_from_slice(value);
            continue;
        }
        records.insert(key.to_vec(), value.to_vec());
    }
    if expect_length {
        return Err("the offsets and lengths of a sparse file do not alternate");
    }
    if !sparse_map.is_empty() {
        records.insert(SPARSE_MAP.to_vec(), sparse_map);
    }
    Ok(records)
}

/// The records that hold extended attributes: a range, as a global header may have 50,000 others, for each entry again.
pub(super) fn xattrs(records: &Records) -> impl Iterator<Item = (&Vec<u8>, &Vec<u8>)> {
    records.range(XATTR.to_vec()..).take_while(|(key, _)| key.starts_with(XATTR))
}

/// A decimal number that fits an `i64` and isn't negative.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value: u64 = std::str::from_utf8(text).ok()?.parse().ok()?;
    (value <= i64::MAX.unsigned_abs()).then_some(value)
}

/// `[-]seconds[.fraction]`; what's finer than a nanosecond is cut off.
pub(super) fn time(text: &[u8]) -> Option<Timestamp> {
    let text = std::str::from_utf8(text).ok()?;
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let secs = i64::try_from(decimal(whole.as_bytes())?).ok()?;
    let mut nanos = 0u32;
    for at in 0..9 {
        nanos = nanos * 10 + u32::from(fraction.as_bytes().get(at).map_or(0, |d| d - b'0'));
    }
    Some(match (negative, nanos) {
        (false, nanos) => Timestamp { secs, nanos },
        (true, 0) => Timestamp { secs: -secs, nanos: 0 },
        (true, nanos) => Timestamp { secs: -secs - 1, nanos: 1_000_000_000 - nanos },
    })
}

/// Appends `length key=value\n`, where the length counts itself.
pub(super) fn append(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(length.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}
