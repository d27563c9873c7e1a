//! Hides rpm's own format, which SUSE uses: a table of slots, and blocks of 16 bytes (rpm's `lib/backend/ndb/rpmpkg.c`).

use super::{MAX_HEADER, RpmError, little};

/// How it begins.
pub(super) const MAGIC: &[u8] = b"RpmP";
const PAGE: usize = 4096;
const SLOT: usize = 16;
const BLOCK: usize = 16;
const BLOB_HEAD: usize = 16;

/// Calls `each` with every header.
pub(super) fn headers(file: &[u8], each: &mut dyn FnMut(&[u8]) -> Result<(), RpmError>) -> Result<(), RpmError> {
    let short = RpmError::Damaged("its table of slots ends early");
    let pages = little(file, 12).ok_or(short)? as usize;
    let table = file.get(..pages.checked_mul(PAGE).ok_or(short)?).ok_or(short)?;
    // The place of the first two slots is the file's head.
    for slot in table.chunks_exact(SLOT).skip(2) {
        if slot.get(..4) != Some(b"Slot") {
            return Err(RpmError::Damaged("a slot is none"));
        }
        let (index, offset) = (little(slot, 4).unwrap_or(0), little(slot, 8).unwrap_or(0) as usize);
        if index == 0 {
            continue;
        }
        let lost = RpmError::Damaged("a slot points to no package");
        let head = offset.checked_mul(BLOCK).and_then(|at| file.get(at..)).ok_or(lost)?;
        if head.get(..4) != Some(b"BlbS") || little(head, 4) != Some(index) {
            return Err(lost);
        }
        let size = little(head, 12).ok_or(lost)? as usize;
        let blob = head.get(BLOB_HEAD..).and_then(|rest| rest.get(..size.min(MAX_HEADER))).ok_or(lost)?;
        each(blob)?;
    }
    Ok(())
}
