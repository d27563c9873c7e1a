//! Hides which dialect is written: USTAR, with PAX records for what it can't hold.
//!
//! That's what Go's archive/tar makes of the headers that containerd and BuildKit give it (`FormatPAX`, times cut to whole
//! seconds), so every program that reads their layers reads these.

use std::io::{self, Write};

use super::header::{self, BLOCK, Block, USTAR};
use super::pax::{self, Records};
use super::{Entry, EntryKind};
use crate::rootdir::Kind;

/// Why an entry can't be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The sink failed.
    #[error("cannot write the archive")]
    Io(#[from] io::Error),
    /// The content has another length than the header says.
    #[error("`{}` has {got} bytes where {expected} were announced", String::from_utf8_lossy(path))]
    Size {
        /// The entry.
        path: Vec<u8>,
        /// Bytes announced.
        expected: u64,
        /// Bytes written, at least.
        got: u64,
    },
    /// A socket, or a name with a NUL: no archive can hold it.
    #[error("`{}` cannot stand in an archive: {reason}", String::from_utf8_lossy(path))]
    Unfit {
        /// The entry.
        path: Vec<u8>,
        /// Why.
        reason: &'static str,
    },
}

type Result<T> = std::result::Result<T, WriteError>;

/// Writes an archive entry by entry; between two entries it takes the content of the first.
#[derive(Debug)]
pub struct Writer<W> {
    inner: W,
    path: Vec<u8>,
    size: u64,
    written: u64,
    total: u64,
}

impl<W: Write> Writer<W> {
    /// Writes into `inner`.
    pub fn new(inner: W) -> Self {
        Self { inner, path: Vec::new(), size: 0, written: 0, total: 0 }
    }

    /// The sink, for whoever takes away what was written.
    pub(crate) fn get_mut(&mut self) -> &mut W {
        &mut self.inner
    }

    /// Begins an entry: as many bytes as `entry.size` says must be written next. Whole seconds of the time are kept;
    /// `entry.sparse` doesn't matter.
    pub fn start(&mut self, entry: &Entry) -> Result<()> {
        self.end_entry()?;
        let unfit = |reason| WriteError::Unfit { path: entry.path.clone(), reason };
        if entry.path.contains(&0) || entry.link.contains(&0) || entry.path.is_empty() {
            return Err(unfit("its name is empty or holds a NUL"));
        }
        let (flag, size) = match entry.kind {
            EntryKind::Node(Kind::File) => (b'0', entry.size),
            EntryKind::HardLink => (b'1', 0),
            EntryKind::Node(Kind::Symlink) => (b'2', 0),
            EntryKind::Node(Kind::Char) => (b'3', 0),
            EntryKind::Node(Kind::Block) => (b'4', 0),
            EntryKind::Node(Kind::Dir) => (b'5', 0),
            EntryKind::Node(Kind::Fifo) => (b'6', 0),
            EntryKind::Node(Kind::Socket) => return Err(unfit("it is a socket")),
        };
        let mut records = Records::new();
        let mut block = Block::zeroed();
        if !put_name(&mut block, &entry.path) {
            records.insert(b"path".to_vec(), entry.path.clone());
        }
        if !put_text(&mut block, header::LINK, &entry.link) {
            records.insert(b"linkpath".to_vec(), entry.link.clone());
        }
        block.set_octal(header::MODE, u64::from(entry.mode & 0o7777));
        for (field, key, value) in
            [(header::UID, "uid", u64::from(entry.uid)), (header::GID, "gid", u64::from(entry.gid)), (header::SIZE, "size", size)]
        {
            if !block.set_octal(field, value) {
                records.insert(key.into(), value.to_string().into());
            }
        }
        let secs = entry.mtime.secs;
        if u64::try_from(secs).is_err() || !block.set_octal(header::MTIME, secs.unsigned_abs()) {
            block.set_octal(header::MTIME, 0);
            records.insert(b"mtime".to_vec(), secs.to_string().into());
        }
        for (field, key, value) in
            [(header::MAJOR, "SCHILY.devmajor", entry.rdev.0), (header::MINOR, "SCHILY.devminor", entry.rdev.1)]
        {
            if !block.set_octal(field, u64::from(value)) {
                records.insert(key.into(), value.to_string().into());
            }
        }
        for (key, value) in &entry.xattrs {
            if key.contains(&b'=') {
                return Err(unfit("the name of an extended attribute holds a `=`"));
            }
            records.insert([pax::XATTR, key].concat(), value.clone());
        }
        block.0[header::TYPE] = flag;
        block.field_mut(header::MAGIC).copy_from_slice(USTAR);
        block.seal();
        if !records.is_empty() {
            self.put_records(&entry.path, &records)?;
        }
        self.put(&block.0)?;
        self.path.clone_from(&entry.path);
        (self.size, self.written) = (size, 0);
        Ok(())
    }

    /// Writes a whole entry.
    pub fn append(&mut self, entry: &Entry, content: &[u8]) -> Result<()> {
        self.start(entry)?;
        self.content(content)
    }

    /// Writes content of the entry begun last.
    pub fn content(&mut self, bytes: &[u8]) -> Result<()> {
        let got = self.written + bytes.len() as u64;
        if got > self.size {
            return Err(WriteError::Size { path: self.path.clone(), expected: self.size, got });
        }
        self.written = got;
        self.put(bytes)
    }

    /// Writes the end marks and gives back the sink and the number of bytes of the archive.
    pub fn finish(mut self) -> Result<(W, u64)> {
        self.end_entry()?;
        self.put(&[0; 2 * BLOCK])?;
        Ok((self.inner, self.total))
    }

    /// Pads the content of the entry begun last, which the next [`Writer::start`] would do.
    pub(crate) fn end_entry(&mut self) -> Result<()> {
        if self.written != self.size {
            return Err(WriteError::Size { path: self.path.clone(), expected: self.size, got: self.written });
        }
        // Less than a block.
        let padding = (self.size.wrapping_neg() % BLOCK as u64) as usize;
        (self.size, self.written) = (0, 0);
        self.put(&[0; BLOCK][..padding])
    }

    fn put_records(&mut self, path: &[u8], records: &Records) -> Result<()> {
        let mut body = Vec::new();
        for (key, value) in records {
            pax::append(&mut body, key, value);
        }
        let mut block = Block::zeroed();
        // A name for programs that don't know PAX and would unpack it as a file.
        let trimmed = path.strip_suffix(b"/").unwrap_or(path);
        let cut = trimmed.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
        let mut name = [&trimmed[..cut], b"PaxHeaders.0/", &trimmed[cut..]].concat();
        name.retain(u8::is_ascii);
        name.truncate(header::NAME.1);
        block.field_mut(header::NAME)[..name.len()].copy_from_slice(&name);
        for field in [header::MODE, header::UID, header::GID, header::MTIME, header::MAJOR, header::MINOR] {
            block.set_octal(field, 0);
        }
        block.set_octal(header::SIZE, body.len() as u64);
        block.0[header::TYPE] = b'x';
        block.field_mut(header::MAGIC).copy_from_slice(USTAR);
        block.seal();
        let padding = body.len().wrapping_neg() % BLOCK;
        body.resize(body.len() + padding, 0);
        self.put(&block.0)?;
        self.put(&body)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.inner.write_all(bytes)?;
        self.total += bytes.len() as u64;
        Ok(())
    }
}

/// Puts a text that fits and is plain ASCII; else as much of it as a program without PAX can make use of.
fn put_text(block: &mut Block, field: (usize, usize), text: &[u8]) -> bool {
    let fits = text.len() <= field.1 && text.is_ascii();
    let plain: Vec<u8> = text.iter().copied().filter(u8::is_ascii).take(field.1).collect();
    block.field_mut(field)[..plain.len()].copy_from_slice(&plain);
    fits
}

/// Puts a name, in two parts if it's too long for one.
fn put_name(block: &mut Block, path: &[u8]) -> bool {
    if path.len() > header::NAME.1 && path.is_ascii() && path.len() <= header::NAME.1 + header::PREFIX.1 + 1 {
        // The longest prefix that fits and leaves a name.
        let last = path.len().min(header::PREFIX.1 + 1).min(path.len() - 1);
        if let Some(cut) = path[..last].iter().rposition(|b| *b == b'/')
            && cut > 0
            && path.len() - cut - 1 <= header::NAME.1
        {
            block.field_mut(header::PREFIX)[..cut].copy_from_slice(&path[..cut]);
            block.field_mut(header::NAME)[..path.len() - cut - 1].copy_from_slice(&path[cut + 1..]);
            return true;
        }
    }
    put_text(block, header::NAME, path)
}
