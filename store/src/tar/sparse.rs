//! Hides the four ways in which GNU tar writes down where the data of a sparse file lies.

use super::header::{self, Block};
use super::pax::{self, Records, SPARSE_MAP};

/// A piece of a sparse file that holds data; what lies between is zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Where it begins in the file.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
}

/// What the records of an extended header say about sparseness.
pub(super) enum Format {
    No,
    /// 0.0 and 0.1: the regions are in the header.
    Header(Vec<Region>),
    /// 1.0: the regions stand before the data.
    Data,
}

/// What an extended header says of a sparse file, with the name and size that replace those of the header.
pub(super) struct Sparse<'a> {
    pub(super) format: Format,
    pub(super) name: Option<&'a Vec<u8>>,
    pub(super) size: Option<u64>,
}

/// Finds out the format.
pub(super) fn of_records(records: &Records) -> Result<Sparse<'_>, &'static str> {
    let get = |key: &[u8]| records.get(key).filter(|v| !v.is_empty());
    let size = match get(b"GNU.sparse.realsize").or(get(b"GNU.sparse.size")) {
        Some(text) => Some(pax::decimal(text).ok_or("the size of a sparse file is not a number")?),
        None => None,
    };
    let name = get(b"GNU.sparse.name");
    let format = match (get(b"GNU.sparse.major"), get(b"GNU.sparse.minor")) {
        (Some(major), Some(minor)) => match (&major[..], &minor[..]) {
            (b"1", b"0") => Format::Data,
            (b"0", b"0" | b"1") => Format::Header(header_map(records)?),
            _ => return Err("the format of a sparse file is not known"),
        },
        _ if records.contains_key(SPARSE_MAP) => Format::Header(header_map(records)?),
        _ if get(b"GNU.sparse.size").is_some() => Format::Header(Vec::new()),
        _ if records.keys().any(|k| k.starts_with(b"GNU.sparse.")) => return Err("the format of a sparse file is not known"),
        _ => Format::No,
    };
    Ok(Sparse { format, name, size })
}

fn header_map(records: &Records) -> Result<Vec<Region>, &'static str> {
    let numbers: Option<Vec<u64>> = match records.get(SPARSE_MAP) {
        Some(map) if !map.is_empty() => map.split(|b| *b == b',').map(pax::decimal).collect(),
        _ => Some(Vec::new()),
    };
    let numbers = numbers.filter(|n| n.len() % 2 == 0).ok_or("the map of a sparse file is not made of numbers")?;
    if let Some(count) = records.get(&b"GNU.sparse.numblocks"[..])
        && pax::decimal(count) != Some(numbers.len() as u64 / 2)
    {
        return Err("the map of a sparse file has another length than it says");
    }
    Ok(numbers.chunks_exact(2).map(|n| Region { offset: n[0], length: n[1] }).collect())
}

/// Adds the regions of an old GNU header's `field`, up to the first unused one.
pub(super) fn add_old(block: &Block, field: (usize, usize), regions: &mut Vec<Region>) -> Result<(), &'static str> {
    for region in block.field(field).chunks_exact(24) {
        if region[0] == 0 {
            break;
        }
        let number = |bytes| header::number(bytes).and_then(|n| u64::try_from(n).ok());
        let (Some(offset), Some(length)) = (number(&region[..12]), number(&region[12..])) else {
            return Err("the map of a sparse file is not made of numbers");
        };
        regions.push(Region { offset, length });
    }
    Ok(())
}

/// Format 1.0's map, which comes in blocks before the data: a count, then offsets and lengths, one number a line.
#[derive(Default)]
pub(super) struct DataMap {
    bytes: Vec<u8>,
    lines: u64,
    count: Option<u64>,
}

const NOT_NUMBERS: &str = "the map of a sparse file is not made of numbers";

impl DataMap {
    pub(super) fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    pub(super) fn add(&mut self, block: &[u8]) {
        self.lines += block.iter().filter(|b| **b == b'\n').count() as u64;
        self.bytes.extend_from_slice(block);
    }

    /// Whether all lines that the count promises are there.
    pub(super) fn is_whole(&mut self) -> Result<bool, &'static str> {
        if self.count.is_none() && !self.bytes.is_empty() {
            let end = self.bytes.iter().position(|b| *b == b'\n').ok_or(NOT_NUMBERS)?;
            self.count = Some(pax::decimal(&self.bytes[..end]).ok_or(NOT_NUMBERS)?);
        }
        Ok(self.count.is_some_and(|count| self.lines > count.saturating_mul(2)))
    }

    pub(super) fn regions(&self) -> Result<Vec<Region>, &'static str> {
        let mut numbers = self.bytes.split(|b| *b == b'\n').map(pax::decimal).skip(1);
        let mut next = || numbers.next().flatten().ok_or(NOT_NUMBERS);
        (0..self.count.unwrap_or(0)).map(|_| Ok(Region { offset: next()?, length: next()? })).collect()
    }
}

/// Checks that the regions lie in order inside the file and hold exactly the bytes that are stored.
pub(super) fn check(regions: &[Region], stored: u64, size: u64) -> Result<(), &'static str> {
    let (mut end, mut total) = (0u64, 0u64);
    for region in regions {
        if region.offset < end {
            return Err("the regions of a sparse file overlap");
        }
        end = region.offset.checked_add(region.length).ok_or("a sparse file is too large")?;
        total += region.length;
    }
    if end > size {
        return Err("a region of a sparse file lies beyond its end");
    }
    if total != stored {
        return Err("the regions of a sparse file are not what is stored");
    }
    Ok(())
}
