//! Hides Berkeley DB's hash files, which rpm wrote until 4.16: pages with pairs, large values on pages of their own
//! (Berkeley DB's `dbinc/db_page.h`).

use super::{MAX_HEADER, RpmError};

const HASH_MAGIC: u32 = 0x0006_1561;
/// What every page begins with.
const PAGE_HEAD: usize = 26;
/// Kinds of pages.
const HASH_UNSORTED: u8 = 2;
const OVERFLOW: u8 = 7;
const HASH: u8 = 13;
/// Kinds of items.
const ON_PAGE: u8 = 1;
const OFF_PAGE: u8 = 3;

/// A file in the byte order of the machine that wrote it.
struct Database<'a> {
    file: &'a [u8],
    page_size: usize,
    swapped: bool,
}

/// Whether it begins as such a file.
pub(super) fn is_hash(file: &[u8]) -> bool {
    let magic = file.get(12..16).map(|bytes| [bytes[0], bytes[1], bytes[2], bytes[3]]);
    magic.is_some_and(|magic| u32::from_le_bytes(magic) == HASH_MAGIC || u32::from_be_bytes(magic) == HASH_MAGIC)
}

/// Calls `each` with every header.
pub(super) fn headers(file: &[u8], each: &mut dyn FnMut(&[u8]) -> Result<(), RpmError>) -> Result<(), RpmError> {
    let mut database = Database { file, page_size: 0, swapped: false };
    database.swapped = database.u32(12) != Some(HASH_MAGIC);
    let size = database.u32(20).unwrap_or(0) as usize;
    if !size.is_power_of_two() || !(512..=65536).contains(&size) {
        return Err(RpmError::Damaged("its pages have no possible size"));
    }
    database.page_size = size;
    for page in 1..file.len() / size {
        let start = page * size;
        if matches!(file[start + 25], HASH | HASH_UNSORTED) {
            database.pairs(start, each)?;
        }
    }
    Ok(())
}

impl Database<'_> {
    fn u32(&self, at: usize) -> Option<u32> {
        let bytes: [u8; 4] = self.file.get(at..at.checked_add(4)?)?.try_into().ok()?;
        Some(if self.swapped { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    }

    fn u16(&self, at: usize) -> Option<usize> {
        let bytes: [u8; 2] = self.file.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(usize::from(if self.swapped { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) }))
    }

    /// The values of a page: every second item. Items are laid out from the page's end towards its head.
    fn pairs(&self, start: usize, each: &mut dyn FnMut(&[u8]) -> Result<(), RpmError>) -> Result<(), RpmError> {
        let lost = RpmError::Damaged("an item lies outside of its page");
        let page = self.file.get(start..start + self.page_size).ok_or(lost)?;
        let count = self.u16(start + 20).ok_or(lost)?;
        let mut end = self.page_size;
        for item in 0..count {
            let at = self.u16(start + PAGE_HEAD + 2 * item).ok_or(lost)?;
            let bytes = page.get(at..end).ok_or(lost)?;
            end = at;
            if item % 2 == 0 {
                continue;
            }
            match bytes.first() {
                // The counter of packages has a record as well.
                Some(&ON_PAGE) if bytes.len() > 9 => each(&bytes[1..])?,
                Some(&OFF_PAGE) => {
                    let first = self.u32(start + at + 4).ok_or(lost)?;
                    let size = self.u32(start + at + 8).ok_or(lost)? as usize;
                    each(&self.large(first, size)?)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A value on a chain of pages. It ends after as many pages as the file has, so no circle holds it up.
    fn large(&self, first: u32, size: usize) -> Result<Vec<u8>, RpmError> {
        let lost = RpmError::Damaged("a large value leads nowhere");
        if size > MAX_HEADER {
            return Err(RpmError::Damaged("a header is too large"));
        }
        let mut out = Vec::new();
        let mut next = first as usize;
        for _ in 0..=self.file.len() / self.page_size {
            if out.len() >= size || next == 0 {
                break;
            }
            let start = next.checked_mul(self.page_size).ok_or(lost)?;
            let page = self.file.get(start..start + self.page_size).ok_or(lost)?;
            if page[25] != OVERFLOW {
                return Err(lost);
            }
            let used = self.u16(start + 22).ok_or(lost)?;
            out.extend_from_slice(page.get(PAGE_HEAD..PAGE_HEAD + used).ok_or(lost)?);
            next = self.u32(start + 16).ok_or(lost)? as usize;
        }
        match out.len() == size {
            true => Ok(out),
            false => Err(lost),
        }
    }
}
