//! Hides in what order headers, extensions and content follow one another in an archive.

use std::io::{self, Read};
use std::sync::Arc;

use super::header::{self, BLOCK, Block};
use super::pax::{self, Records};
use super::sparse::{self, Format, Region, Sparse};
use super::{Entry, EntryKind};
use crate::rootdir::{Kind, Timestamp, Xattrs};

/// As much as an extended header, a long name or the map of a sparse file may take (CVE-2025-58183).
const MAX_EXTENSION: u64 = 1 << 20;
/// As much as may follow the end. Archivers fill up a block of some kilobytes; a compressed stream can hold terabytes of zeros.
const MAX_BEHIND: u64 = 64 << 20;

/// To Python and Go it is no header when one of these is no number, also where it means nothing.
const NUMBERS: [(usize, usize); 6] = [header::MODE, header::UID, header::GID, header::MTIME, header::MAJOR, header::MINOR];

/// Why an archive can't be read.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The stream below failed.
    #[error("cannot read the archive")]
    Io(#[from] io::Error),
    /// It ends within a header or a file.
    #[error("the archive is cut off at byte {0}")]
    Truncated(u64),
    /// The header at this byte is not one: its checksum is wrong.
    #[error("no tar header at byte {0} of the archive")]
    NotAHeader(u64),
    /// A header says something that can't be, or that programs understand in different ways.
    #[error("the header at byte {at} of the archive is refused: {reason}")]
    Refused {
        /// Where the header begins.
        at: u64,
        /// What's wrong with it.
        reason: &'static str,
    },
    /// An entry of a type that no file system has.
    #[error("the entry at byte {at} of the archive has the type `{}`, which is not supported", char::from(*kind))]
    UnknownType {
        /// Where the header begins.
        at: u64,
        /// The type flag.
        kind: u8,
    },
}

/// Reads an archive entry by entry; between two calls of [`Reader::next_entry`] it reads as the content of the entry.
#[derive(Debug)]
pub struct Reader<R> {
    inner: R,
    /// Bytes of the archive read so far.
    at: u64,
    /// Bytes of content not read yet, and of padding after them.
    left: u64,
    padding: u64,
    global: Arc<Records>,
    done: bool,
}

/// What the extension headers before an entry said.
#[derive(Default)]
struct Extensions {
    pax: Option<Records>,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

type Result<T> = std::result::Result<T, TarError>;

impl<R: Read> Reader<R> {
    /// Reads the archive that `inner` gives.
    pub fn new(inner: R) -> Self {
        Self { inner, at: 0, left: 0, padding: 0, global: Arc::default(), done: false }
    }

    /// The stream below, which may have more to give after the archive's end.
    pub fn into_inner(self) -> R {
        self.inner
    }

    /// The next entry; what's left of the content of the one before is skipped.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        let mut extensions = Extensions::default();
        loop {
            self.skip()?;
            if self.done {
                return Ok(None);
            }
            let at = self.at;
            let refused = |reason| TarError::Refused { at, reason };
            let Some(block) = self.header()? else {
                self.done = true;
                if extensions.pax.is_some() || extensions.name.is_some() || extensions.link.is_some() {
                    return Err(refused("an extended header is followed by nothing"));
                }
                return Ok(None);
            };
            let size =
                block.number(header::SIZE).and_then(|n| u64::try_from(n).ok()).ok_or(refused("its size is not a number"))?;
            let kind = block.0[header::TYPE];
            if NUMBERS.iter().any(|field| block.number(*field).is_none()) {
                return Err(refused("one of its fields is not a number"));
            }
            match kind {
                b'x' => {
                    // GNU tar and Go let the second one win, Python the first.
                    if extensions.pax.is_some() {
                        return Err(refused("two extended headers precede one entry"));
                    }
                    extensions.pax = Some(pax::parse(&self.extension(at, size)?).map_err(refused)?);
                }
                b'g' => {
                    let records = pax::parse(&self.extension(at, size)?).map_err(refused)?;
                    let own = |key: &[u8]| matches!(key, b"path" | b"linkpath" | b"size") || key.starts_with(b"GNU.sparse.");
                    if records.keys().any(|k| own(k)) {
                        return Err(refused("a global header gives all entries one name or size"));
                    }
                    Arc::make_mut(&mut self.global).extend(records);
                    if self.global.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>() as u64 > MAX_EXTENSION {
                        return Err(refused("its global headers are too large"));
                    }
                }
                kind @ (b'L' | b'K') => {
                    let text = self.long_name(at, size)?;
                    let slot = if kind == b'L' { &mut extensions.name } else { &mut extensions.link };
                    if slot.replace(text).is_some() {
                        return Err(refused("two long names precede one entry"));
                    }
                }
                _ => return self.entry(at, &block, size, extensions).map(Some),
            }
        }
    }

    /// Reads what remains of the stream to its end, so that whoever hashes it has seen all. True if all of it was zeros.
    pub fn drain(&mut self) -> Result<bool> {
        self.skip()?;
        self.done = true;
        let (mut zeros, mut behind) = (true, 0u64);
        let mut buffer = [0; 16 << 10];
        loop {
            match self.inner.read(&mut buffer) {
                Ok(0) => return Ok(zeros),
                Ok(n) => {
                    zeros &= buffer[..n].iter().all(|b| *b == 0);
                    behind += n as u64;
                    if behind > MAX_BEHIND {
                        return Err(TarError::Refused { at: self.at, reason: "more than 64 MiB follow the end of the archive" });
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Reads content as it's stored: of a sparse file, the data of its regions one after the other.
    pub fn read_stored(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let want = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(0);
        }
        loop {
            match self.inner.read(&mut buffer[..want]) {
                Ok(0) => return Err(TarError::Truncated(self.at)),
                Ok(n) => {
                    self.at += n as u64;
                    self.left -= n as u64;
                    return Ok(n);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn entry(&mut self, at: u64, block: &Block, size: u64, extensions: Extensions) -> Result<Entry> {
        let refused = |reason| TarError::Refused { at, reason };
        // An empty value takes a global one back.
        let (global, records) = (Arc::clone(&self.global), extensions.pax.unwrap_or_default());
        let get = |key: &[u8]| records.get(key).or_else(|| global.get(key)).filter(|v| !v.is_empty());

        let flag = block.0[header::TYPE];
        let has_prefix = !block.text(header::PREFIX).is_empty();
        // Python reads it in every dialect but of the types that only GNU tar writes.
        if has_prefix && (block.is_ustar() == (flag == b'S')) {
            return Err(refused("its name goes on in a field that its dialect does not have"));
        }
        let mut path = if has_prefix && block.is_ustar() {
            [block.text(header::PREFIX), b"/", block.text(header::NAME)].concat()
        } else {
            block.text(header::NAME).to_vec()
        };
        let ends_in_slash = path.ends_with(b"/");
        let mut link = block.text(header::LINK).to_vec();
        for (field, pax, gnu) in [(&mut path, get(b"path"), extensions.name), (&mut link, get(b"linkpath"), extensions.link)] {
            match (pax, gnu) {
                (Some(pax), Some(gnu)) if *pax != gnu => return Err(refused("its PAX and GNU names differ")),
                (Some(name), _) => *field = name.clone(),
                (None, Some(name)) => *field = name,
                (None, None) => {}
            }
        }
        let kind = match flag {
            // To Go the longer name tells, to Python the header's.
            0 if path.ends_with(b"/") != ends_in_slash => return Err(refused("it is a directory by one of its names only")),
            // Archives older than USTAR have no type for it.
            0 if path.ends_with(b"/") => EntryKind::Node(Kind::Dir),
            // A directory to GNU tar, a file to Go.
            b'0' | b'7' | b'S' if path.ends_with(b"/") => return Err(refused("the name of a regular file ends in a slash")),
            b'0' | 0 | b'7' | b'S' => EntryKind::Node(Kind::File),
            b'1' => EntryKind::HardLink,
            b'2' => EntryKind::Node(Kind::Symlink),
            b'3' => EntryKind::Node(Kind::Char),
            b'4' => EntryKind::Node(Kind::Block),
            b'5' => EntryKind::Node(Kind::Dir),
            b'6' => EntryKind::Node(Kind::Fifo),
            kind => return Err(TarError::UnknownType { at, kind }),
        };
        let is_file = kind == EntryKind::Node(Kind::File);

        let stored = match get(b"size") {
            Some(text) => pax::decimal(text).ok_or(refused("its PAX size is not a number"))?,
            None => size,
        };
        // Of a hard link, whose header some archivers give the size of its target, all agree that nothing follows; of the others,
        // or by a PAX size, GNU tar goes on behind as many bytes, and Go, Python and busybox right here.
        if stored > 0 && !is_file && (kind != EntryKind::HardLink || get(b"size").is_some()) {
            return Err(refused("it has a size, but is of a type that has no content"));
        }
        self.left = if is_file { stored } else { 0 };
        self.padding = self.left.wrapping_neg() % BLOCK as u64;

        let (regions, size) = self.regions(at, block, &records, flag, &mut path)?;
        let number = |field, key: &[u8], reason| match get(key) {
            Some(text) => pax::decimal(text).ok_or(refused(reason)),
            None => block.number(field).and_then(|n| u64::try_from(n).ok()).ok_or(refused(reason)),
        };
        let id = |field, key: &[u8]| {
            let reason = "its owner is not a number of 32 bits";
            number(field, key, reason).and_then(|n| u32::try_from(n).map_err(|_| refused(reason)))
        };
        let mode = block.number(header::MODE).and_then(|n| u32::try_from(n & 0o7777).ok());
        let mtime = match get(b"mtime") {
            Some(text) => pax::time(text),
            None => block.number(header::MTIME).map(Timestamp::from_secs),
        };
        let is_device = matches!(kind, EntryKind::Node(Kind::Char | Kind::Block));
        let device = |field, key: &[u8]| {
            let reason = "its device number is not a number of 32 bits";
            if !is_device {
                return Ok(0);
            }
            number(field, key, reason).and_then(|n| u32::try_from(n).map_err(|_| refused(reason)))
        };
        let mut xattrs = Xattrs::new();
        for (key, value) in [&*global, &records].into_iter().flat_map(pax::xattrs) {
            if key.len() > pax::XATTR.len() {
                xattrs.insert(key[pax::XATTR.len()..].to_vec(), value.clone());
            }
        }
        Ok(Entry {
            kind,
            link: if matches!(kind, EntryKind::HardLink | EntryKind::Node(Kind::Symlink)) { link } else { Vec::new() },
            mode: mode.ok_or(refused("its mode is not a number"))?,
            uid: id(header::UID, b"uid")?,
            gid: id(header::GID, b"gid")?,
            size: if is_file { size } else { 0 },
            mtime: mtime.ok_or(refused("its time is not a number"))?,
            rdev: (device(header::MAJOR, b"SCHILY.devmajor")?, device(header::MINOR, b"SCHILY.devminor")?),
            xattrs,
            sparse: regions,
            path,
        })
    }

    /// The regions of a sparse file, and the size of any; reads what of the map stands before the content.
    fn regions(
        &mut self,
        at: u64,
        block: &Block,
        records: &Records,
        flag: u8,
        path: &mut Vec<u8>,
    ) -> Result<(Option<Vec<Region>>, u64)> {
        let refused = |reason| TarError::Refused { at, reason };
        let Sparse { format, name, size: real_size } = sparse::of_records(records).map_err(refused)?;
        let stored = self.left;
        let (regions, size) = match format {
            Format::No if flag == b'S' => {
                let size = block.number(header::SPARSE_SIZE).and_then(|n| u64::try_from(n).ok());
                let size = size.ok_or(refused("the size of a sparse file is not a number"))?;
                let mut regions = Vec::new();
                sparse::add_old(block, header::SPARSE, &mut regions).map_err(refused)?;
                let mut more = block.0[header::SPARSE_MORE] != 0;
                let mut blocks = 0;
                while more {
                    blocks += BLOCK as u64;
                    if blocks > MAX_EXTENSION {
                        return Err(refused("the map of a sparse file is too large"));
                    }
                    let mut block = Block::zeroed();
                    self.fill(&mut block.0)?;
                    sparse::add_old(&block, header::MORE_SPARSE, &mut regions).map_err(refused)?;
                    more = block.0[header::MORE_SPARSE_MORE] != 0;
                }
                (regions, size)
            }
            Format::No => return Ok((None, stored)),
            _ if flag == b'S' => return Err(refused("a sparse file is described twice")),
            Format::Header(regions) => (regions, real_size.ok_or(refused("a sparse file has no size"))?),
            Format::Data => {
                let mut map = sparse::DataMap::default();
                while !map.is_whole().map_err(refused)? {
                    if map.len() >= MAX_EXTENSION || self.left < BLOCK as u64 {
                        return Err(refused("the map of a sparse file is too large or cut off"));
                    }
                    let mut block = [0; BLOCK];
                    self.fill(&mut block)?;
                    self.left -= BLOCK as u64;
                    map.add(&block);
                }
                let regions = map.regions().map_err(refused)?;
                (regions, real_size.ok_or(refused("a sparse file has no size"))?)
            }
        };
        if let Some(name) = name {
            path.clone_from(name);
        }
        sparse::check(&regions, self.left, size).map_err(refused)?;
        Ok((Some(regions), size))
    }

    /// The content of an extension header at byte `at`.
    fn extension(&mut self, at: u64, size: u64) -> Result<Vec<u8>> {
        if size > MAX_EXTENSION {
            return Err(TarError::Refused { at, reason: "an extended header is larger than 1 MiB" });
        }
        // No larger than MAX_EXTENSION, so it fits a usize.
        let mut content = vec![0; size as usize];
        self.fill(&mut content)?;
        self.padding = size.wrapping_neg() % BLOCK as u64;
        Ok(content)
    }

    /// The content of a GNU header for a long name. Python looks for its end in the padding, too.
    fn long_name(&mut self, at: u64, size: u64) -> Result<Vec<u8>> {
        let mut text = self.extension(at, size)?;
        let mut padding = vec![0; std::mem::take(&mut self.padding) as usize];
        self.fill(&mut padding)?;
        if padding.iter().any(|b| *b != 0) {
            return Err(TarError::Refused { at, reason: "a long name goes on behind its end" });
        }
        text.truncate(header::until_nul(&text).len());
        Ok(text)
    }

    /// The next header block; `None` at the end, marked by two blocks of zeros or not at all.
    fn header(&mut self) -> Result<Option<Block>> {
        let at = self.at;
        let mut block = Block::zeroed();
        if !self.fill_or_end(&mut block.0)? {
            return Ok(None);
        }
        if block.is_zero() {
            let mut second = Block::zeroed();
            if self.fill_or_end(&mut second.0)? && !second.is_zero() {
                return Err(TarError::Refused { at, reason: "a single block of zeros is followed by more" });
            }
            return Ok(None);
        }
        if block.is_sound() { Ok(Some(block)) } else { Err(TarError::NotAHeader(at)) }
    }

    /// Skips what's left of the entry.
    fn skip(&mut self) -> Result<()> {
        let mut buffer = [0; 16 << 10];
        while self.left > 0 {
            self.read_stored(&mut buffer)?;
        }
        // The padding of the last entry may be missing, with the end marks.
        let mut padding = std::mem::take(&mut self.padding) as usize;
        while padding > 0 {
            match self.inner.read(&mut buffer[..padding]) {
                Ok(0) => return Ok(()),
                Ok(n) => {
                    self.at += n as u64;
                    padding -= n;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<()> {
        if buffer.is_empty() || self.fill_or_end(buffer)? { Ok(()) } else { Err(TarError::Truncated(self.at)) }
    }

    /// False if the stream has ended already; an end within `buffer` is an error.
    fn fill_or_end(&mut self, buffer: &mut [u8]) -> Result<bool> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.inner.read(&mut buffer[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(TarError::Truncated(self.at)),
                Ok(n) => {
                    filled += n;
                    self.at += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(true)
    }
}

impl<R: Read> Read for Reader<R> {
    /// The content as it's stored; see [`Reader::read_stored`]. Sparse files need their regions put in place.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.read_stored(buffer).map_err(|e| match e {
            TarError::Io(e) => e,
            e => io::Error::new(io::ErrorKind::InvalidData, e),
        })
    }
}
