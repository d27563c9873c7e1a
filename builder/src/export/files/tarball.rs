//! Hides how a tree becomes one tar that any program unpacks: numeric owners, hard links, extended attributes.

use std::io::{Read as _, Write};

use kiln_store::rootdir::{Kind, Timestamp};
use kiln_store::tar::{Entry, EntryKind, WriteError, Writer};
use kiln_store::view::Node;

use super::{Part, Sink, walk};
use crate::engine::Engine;
use crate::error::Error;

pub(super) fn write(engine: &Engine, parts: &[Part<'_>], out: &mut dyn Write) -> Result<(), Error> {
    let mut tarball = Tarball { tar: Writer::new(out), path: Vec::new(), prefix: Vec::new(), buffer: vec![0; 128 << 10] };
    for part in parts {
        tarball.prefix.clear();
        if let Some(folder) = &part.folder {
            tarball.prefix = [folder, &b"/"[..]].concat();
            let entry = Entry { mtime: Timestamp::from_secs(part.now.secs), ..Entry::dir(tarball.prefix.clone()) };
            tarball.tar.start(&entry)?;
        }
        tarball.path.clone_from(&tarball.prefix);
        walk(engine, part, &mut tarball)?;
        for extra in part.extras {
            let path = [&tarball.prefix, extra.name.as_bytes()].concat();
            let mtime = Timestamp::from_secs(part.now.secs);
            let entry = Entry { mode: 0o600, mtime, ..Entry::file(path, extra.bytes.len() as u64) };
            tarball.tar.append(&entry, &extra.bytes)?;
        }
    }
    tarball.tar.finish()?;
    Ok(())
}

struct Tarball<'a> {
    tar: Writer<&'a mut dyn Write>,
    /// The folder of the part, with a slash.
    prefix: Vec<u8>,
    /// The directory being written, with a slash.
    path: Vec<u8>,
    buffer: Vec<u8>,
}

impl Tarball<'_> {
    fn entry(&self, part: &Part<'_>, node: &Node, path: Vec<u8>) -> Result<Entry, Error> {
        let meta = node.meta();
        let is_device = matches!(meta.kind, Kind::Char | Kind::Block);
        Ok(Entry {
            kind: EntryKind::Node(meta.kind),
            mode: if meta.kind == Kind::Symlink { 0o777 } else { meta.mode },
            uid: meta.uid,
            gid: meta.gid,
            mtime: Timestamp::from_secs(part.time(node).secs),
            rdev: if is_device { meta.rdev } else { (0, 0) },
            xattrs: node.xattrs()?,
            ..Entry::file(path, if meta.kind == Kind::File { meta.size } else { 0 })
        })
    }

    fn content(&mut self, node: &Node, path: &[u8]) -> Result<(), Error> {
        let mut left = node.meta().size;
        let mut file = node.open()?;
        while left > 0 {
            let want = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let got = match file.read(&mut self.buffer[..want]) {
                Ok(0) => {
                    return Err(WriteError::Size {
                        path: path.to_vec(),
                        expected: node.meta().size,
                        got: node.meta().size - left,
                    }
                    .into());
                }
                Ok(got) => got,
                Err(cause) if cause.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(cause) => return Err(Error::System { operation: "read a file of the result", cause }),
            };
            self.tar.content(&self.buffer[..got])?;
            left -= got as u64;
        }
        Ok(())
    }
}

impl Sink for Tarball<'_> {
    fn enter(&mut self, part: &Part<'_>, node: &Node) -> Result<(), Error> {
        self.path.extend_from_slice(node.name());
        self.path.push(b'/');
        let entry = self.entry(part, node, self.path.clone())?;
        Ok(self.tar.start(&entry)?)
    }

    fn leave(&mut self, _: &Part<'_>, node: &Node) -> Result<(), Error> {
        self.path.truncate(self.path.len() - node.name().len() - 1);
        Ok(())
    }

    fn leaf(&mut self, part: &Part<'_>, node: &Node, _: &[u8], first: Option<&[u8]>) -> Result<(), Error> {
        let path = [&self.path, node.name()].concat();
        let mut entry = self.entry(part, node, path)?;
        if let Some(first) = first {
            (entry.kind, entry.size, entry.link) = (EntryKind::HardLink, 0, [&self.prefix, first].concat());
            (entry.rdev, entry.xattrs) = ((0, 0), kiln_store::rootdir::Xattrs::new());
            return Ok(self.tar.start(&entry)?);
        }
        if node.kind() == Kind::Symlink {
            entry.link = node.read_link()?;
        }
        self.tar.start(&entry)?;
        match node.kind() {
            Kind::File => self.content(node, &entry.path),
            _ => Ok(()),
        }
    }
}
