//! Hides as much of SQLite's file format as one table needs (sqlite.org/fileformat2.html): its b-tree of rows, long rows on pages of
//! their own, and the pages of a write-ahead log that nobody has brought home yet.

use std::collections::{BTreeMap, BTreeSet};

use super::{MAX_HEADER, RpmError};

/// How it begins.
pub(super) const MAGIC: &[u8] = b"SQLite format 3\0";
const TABLE_INTERIOR: u8 = 5;
const TABLE_LEAF: u8 = 13;
/// No table of 2^32 pages is deeper.
const MAX_DEPTH: usize = 24;
const LOG_HEAD: usize = 32;
const FRAME_HEAD: usize = 24;

const LOST: RpmError = RpmError::Damaged("a page is missing");
const CELL: RpmError = RpmError::Damaged("a row is longer than its page");

/// Calls `each` with every header: the second column of the table `Packages`.
pub(super) fn headers(file: &[u8], log: &[u8], each: &mut dyn FnMut(&[u8]) -> Result<(), RpmError>) -> Result<(), RpmError> {
    let size = match be16(file, 16).ok_or(LOST)? {
        1 => 65536,
        size => size,
    };
    if !size.is_power_of_two() || size < 512 {
        return Err(RpmError::Damaged("its pages have no possible size"));
    }
    let reserved = usize::from(*file.get(20).ok_or(LOST)?);
    let usable = size.checked_sub(reserved).filter(|usable| *usable >= 480).ok_or(LOST)?;
    let database = Database { file, newer: committed(log, size), size, usable };
    let mut root = None;
    // The schema is a table as well: type, name, tbl_name, rootpage, sql.
    database.rows(1, &mut |row| {
        let columns = columns(row).ok_or(CELL)?;
        let text = |index: usize| columns.get(index).map_or(&[][..], |column| column.1);
        if text(0) == b"table" && text(1) == b"Packages" {
            let bytes = text(3);
            root = Some(bytes.iter().take(8).fold(0_usize, |number, byte| (number << 8) | usize::from(*byte)));
        }
        Ok(())
    })?;
    let root = root.ok_or(RpmError::Damaged("it has no table `Packages`"))?;
    database.rows(root, &mut |row| {
        let columns = columns(row).ok_or(CELL)?;
        match columns.get(1) {
            // Even serial types above 11 are blobs.
            Some((kind, blob)) if *kind >= 12 && kind % 2 == 0 => each(blob),
            _ => Ok(()),
        }
    })
}

struct Database<'a> {
    file: &'a [u8],
    /// What the log has in the place of pages.
    newer: BTreeMap<usize, &'a [u8]>,
    size: usize,
    usable: usize,
}

impl Database<'_> {
    fn page(&self, number: usize) -> Result<&[u8], RpmError> {
        if let Some(page) = self.newer.get(&number) {
            return Ok(page);
        }
        let start = number.checked_sub(1).and_then(|index| index.checked_mul(self.size)).ok_or(LOST)?;
        self.file.get(start..start.checked_add(self.size).ok_or(LOST)?).ok_or(LOST)
    }

    /// Calls `each` with the payload of every row of the table at `root`. No page is visited twice, so no circle holds it up.
    fn rows(&self, root: usize, each: &mut dyn FnMut(&[u8]) -> Result<(), RpmError>) -> Result<(), RpmError> {
        let mut seen = BTreeSet::new();
        let mut todo = vec![(root, 0)];
        while let Some((number, depth)) = todo.pop() {
            if depth > MAX_DEPTH || !seen.insert(number) {
                return Err(RpmError::Damaged("its pages lead in a circle"));
            }
            let page = self.page(number)?;
            let head = if number == 1 { 100 } else { 0 };
            let count = be16(page, head + 3).ok_or(LOST)?;
            match page.get(head) {
                Some(&TABLE_LEAF) => {
                    for cell in 0..count {
                        let at = be16(page, head + 8 + 2 * cell).ok_or(CELL)?;
                        each(&self.payload(page, at)?)?;
                    }
                }
                Some(&TABLE_INTERIOR) => {
                    let mut below = Vec::with_capacity(count + 1);
                    for cell in 0..count {
                        let at = be16(page, head + 12 + 2 * cell).ok_or(CELL)?;
                        below.push((be32(page, at).ok_or(CELL)?, depth + 1));
                    }
                    below.push((be32(page, head + 8).ok_or(CELL)?, depth + 1));
                    todo.extend(below.into_iter().rev());
                }
                _ => return Err(RpmError::Damaged("a page is of no table")),
            }
        }
        Ok(())
    }

    /// The payload of the cell at `at`, with what lies on overflow pages.
    fn payload(&self, page: &[u8], at: usize) -> Result<Vec<u8>, RpmError> {
        let (length, rest) = varint(page.get(at..).ok_or(CELL)?).ok_or(CELL)?;
        let (_, rest) = varint(rest).ok_or(CELL)?;
        let length = usize::try_from(length).ok().filter(|length| *length <= MAX_HEADER + 1024).ok_or(CELL)?;
        let most = self.usable - 35;
        if length <= most {
            return Ok(rest.get(..length).ok_or(CELL)?.to_vec());
        }
        let least = (self.usable - 12) * 32 / 255 - 23;
        let here = least + (length - least) % (self.usable - 4);
        let here = if here <= most { here } else { least };
        let mut out = rest.get(..here).ok_or(CELL)?.to_vec();
        let mut next = be32(rest, here).ok_or(CELL)?;
        // Each page brings something, so this ends.
        while out.len() < length {
            let page = self.page(next)?;
            let more = (length - out.len()).min(self.usable - 4);
            out.extend_from_slice(page.get(4..4 + more).ok_or(CELL)?);
            next = be32(page, 0).ok_or(CELL)?;
        }
        Ok(out)
    }
}

/// The pages of all transactions that the log holds whole, the last of each. A frame counts while salts and checksums fit.
fn committed(log: &[u8], size: usize) -> BTreeMap<usize, &[u8]> {
    let mut pages = BTreeMap::new();
    let (Some(magic), Some(log_size)) = (be32(log, 0), be32(log, 8)) else { return pages };
    if magic & !1 != 0x377f_0682 || log_size != size || log.len() < LOG_HEAD {
        return pages;
    }
    let big = magic & 1 == 1;
    let mut sum = checksum((0, 0), &log[..24], big);
    if (be32(log, 24), be32(log, 28)) != (Some(sum.0 as usize), Some(sum.1 as usize)) {
        return pages;
    }
    let mut open = Vec::new();
    for frame in log[LOG_HEAD..].chunks_exact(FRAME_HEAD + size) {
        sum = checksum(checksum(sum, &frame[..8], big), &frame[FRAME_HEAD..], big);
        let said = (be32(frame, 16), be32(frame, 20));
        if frame[8..16] != log[16..24] || said != (Some(sum.0 as usize), Some(sum.1 as usize)) {
            break;
        }
        open.push((be32(frame, 0).unwrap_or(0), &frame[FRAME_HEAD..]));
        // The size of the database after the transaction, in its last frame only.
        if be32(frame, 4) != Some(0) {
            pages.extend(open.drain(..));
        }
    }
    pages
}

fn checksum((mut first, mut second): (u32, u32), bytes: &[u8], big: bool) -> (u32, u32) {
    let word = |bytes: &[u8]| {
        let bytes = [bytes[0], bytes[1], bytes[2], bytes[3]];
        if big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
    };
    for pair in bytes.chunks_exact(8) {
        first = first.wrapping_add(word(pair)).wrapping_add(second);
        second = second.wrapping_add(word(&pair[4..])).wrapping_add(first);
    }
    (first, second)
}

/// The columns of a row: serial type and bytes.
fn columns(row: &[u8]) -> Option<Vec<(u64, &[u8])>> {
    let (head, rest) = varint(row)?;
    let head = usize::try_from(head).ok()?;
    let before = row.len() - rest.len();
    let mut kinds = row.get(before..head)?;
    let mut data = row.get(head..)?;
    let mut out = Vec::new();
    while !kinds.is_empty() {
        let (kind, more) = varint(kinds)?;
        kinds = more;
        let length = match kind {
            0 | 8 | 9 => 0,
            1..=4 => kind,
            5 => 6,
            6 | 7 => 8,
            10 | 11 => return None,
            _ => (kind - 12) / 2,
        };
        let length = usize::try_from(length).ok()?;
        out.push((kind, data.get(..length)?));
        data = &data[length..];
    }
    Some(out)
}

/// Up to nine bytes, the highest bit of the first eight telling that there are more.
fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0_u64;
    for (index, byte) in bytes.iter().enumerate().take(9) {
        if index == 8 {
            return Some(((value << 8) | u64::from(*byte), &bytes[9..]));
        }
        value = (value << 7) | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Some((value, &bytes[index + 1..]));
        }
    }
    None
}

fn be16(bytes: &[u8], at: usize) -> Option<usize> {
    Some(usize::from(u16::from_be_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?)))
}

fn be32(bytes: &[u8], at: usize) -> Option<usize> {
    super::big(bytes, at).and_then(|number| usize::try_from(number).ok())
}
