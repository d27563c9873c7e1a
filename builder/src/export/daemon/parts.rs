//! Hides how an archive whose length is known beforehand is read instead of written: a request wants both.

use std::io::{self, Cursor, Read};

use kiln_oci::descriptor::Descriptor;
use kiln_oci::digest::Digest;
use kiln_store::tar::{Entry, Writer};

use crate::engine::Engine;
use crate::error::Error;

const BLOCK: u64 = 512;

/// A tar in the making: small files are in memory, blobs are open.
#[derive(Default)]
pub(super) struct Parts {
    parts: Vec<Box<dyn Read + Send>>,
    len: u64,
}

impl Parts {
    /// A small file.
    pub(super) fn file(&mut self, path: &str, bytes: &[u8]) -> Result<(), Error> {
        self.header(path, bytes.len() as u64)?;
        self.push(bytes.to_vec());
        self.pad(bytes.len() as u64);
        Ok(())
    }

    /// A document under its digest's name.
    pub(super) fn document(&mut self, digest: &Digest, bytes: &[u8]) -> Result<(), Error> {
        self.file(&blob_path(digest), bytes)
    }

    /// A blob of the store, which can't vanish any more from now on.
    pub(super) fn blob(&mut self, engine: &Engine, blob: &Descriptor) -> Result<(), Error> {
        let reader = engine.store.blobs().reader(&blob.digest, blob.size)?;
        self.header(&blob_path(&blob.digest), blob.size)?;
        self.parts.push(Box::new(reader));
        self.len += blob.size;
        self.pad(blob.size);
        Ok(())
    }

    /// The whole archive and its length.
    pub(super) fn finish(mut self) -> (Box<dyn Read + Send>, u64) {
        self.push(vec![0; 2 * BLOCK as usize]);
        self.parts.reverse();
        let len = self.len;
        (Box::new(self), len)
    }

    fn header(&mut self, path: &str, size: u64) -> Result<(), Error> {
        let mut header = Vec::new();
        Writer::new(&mut header).start(&Entry::file(path, size))?;
        self.push(header);
        Ok(())
    }

    fn pad(&mut self, size: u64) {
        self.push(vec![0; (size.wrapping_neg() % BLOCK) as usize]);
    }

    fn push(&mut self, bytes: Vec<u8>) {
        self.len += bytes.len() as u64;
        self.parts.push(Box::new(Cursor::new(bytes)));
    }
}

impl Read for Parts {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(part) = self.parts.last_mut() {
            let count = part.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            self.parts.pop();
        }
        Ok(0)
    }
}

/// Where a blob lies in a layout.
pub(super) fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}
