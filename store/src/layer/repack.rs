//! Hides that the tar of a layer is taken out of one blob and put into another without ever lying on disk.

use std::io::{self, Read, Write};
use std::sync::mpsc::{Receiver, sync_channel};

use kiln_oci::digest::{DiffId, Hasher};

use super::compress::{Compression, Decoder, EncodeOptions, Encoder};
use super::estargz;
use crate::tar::{Entry, Reader, TarError, WriteError};

/// Bytes that go from thread to thread at once, and how many of them may wait.
const PIECE: usize = 256 << 10;
const WAITING: usize = 8;

/// Why a layer can't be packed anew.
#[derive(Debug, thiserror::Error)]
pub enum RepackError {
    /// The blob can't be read or decompressed, or the new one can't be written.
    #[error("cannot compress the layer anew")]
    Io(#[from] io::Error),
    /// Its tar can't be read.
    #[error(transparent)]
    Read(#[from] TarError),
    /// Its tar holds what the new form can't.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// It is another tar than the image's configuration says.
    #[error("it unpacks to {found}, but the image's configuration says {expected}")]
    WrongDiffId {
        /// The digest of its tar.
        found: DiffId,
        /// What it should be.
        expected: DiffId,
    },
}

/// Into what a layer is packed anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The same tar, compressed so.
    Tar(Compression),
    /// A tar with a table of contents.
    Estargz,
}

/// Writes the layer in `blob` into `sink` in another form, and proves on the way that its tar is the one that `expected` names.
/// After an error what was written must be thrown away.
pub fn repack(
    blob: impl Read + Send,
    expected: DiffId,
    sink: &mut dyn Write,
    target: Target,
    encode: EncodeOptions,
) -> Result<estargz::Made, RepackError> {
    std::thread::scope(|scope| {
        let (send, pieces) = sync_channel::<Vec<u8>>(WAITING);
        let (hash, hashed) = sync_channel::<Vec<u8>>(WAITING);
        let inflate = scope.spawn(move || -> io::Result<()> {
            let (_, mut decoder) = Decoder::detect(blob)?;
            loop {
                let mut piece = Vec::with_capacity(PIECE);
                decoder.by_ref().take(PIECE as u64).read_to_end(&mut piece)?;
                // Who doesn't listen any more failed, and says why itself.
                if piece.is_empty() || hash.send(piece.clone()).is_err() || send.send(piece).is_err() {
                    return Ok(());
                }
            }
        });
        let digest = scope.spawn(move || digest(&hashed));
        let written = match target {
            Target::Tar(compression) => compress(&pieces, sink, compression, encode).map(|size| (size, None)),
            Target::Estargz => {
                index(Pieces { pieces: &pieces, piece: Vec::new(), at: 0 }, sink, encode).map(|made| (0, Some(made)))
            }
        };
        drop(pieces);
        let lost = || RepackError::Io(io::Error::other("a thread ended unexpectedly"));
        // A broken stream reaches the writer as a short one, so its own error comes first.
        inflate.join().map_err(|_| lost())??;
        let (tar_size, made) = written?;
        let found = digest.join().map_err(|_| lost())?;
        if found != expected {
            return Err(RepackError::WrongDiffId { found, expected });
        }
        Ok(made.unwrap_or(estargz::Made { diff_id: found, tar_size, toc: found.digest() }))
    })
}

fn compress(
    pieces: &Receiver<Vec<u8>>,
    sink: &mut dyn Write,
    compression: Compression,
    encode: EncodeOptions,
) -> Result<u64, RepackError> {
    let mut encoder = Encoder::new(sink, compression, encode)?;
    let mut size = 0;
    while let Ok(piece) = pieces.recv() {
        encoder.write_all(&piece)?;
        size += piece.len() as u64;
    }
    encoder.finish()?;
    Ok(size)
}

fn index(pieces: Pieces<'_>, sink: &mut dyn Write, encode: EncodeOptions) -> Result<estargz::Made, RepackError> {
    let mut reader = Reader::new(pieces);
    let mut out = estargz::Writer::new(sink, encode)?;
    let mut buffer = vec![0; 128 << 10];
    while let Some(entry) = reader.next_entry()? {
        out.start(&entry)?;
        copy(&mut reader, &entry, &mut out, &mut buffer)?;
    }
    // What follows the end marks belongs to the digest of the tar.
    reader.drain()?;
    Ok(out.finish()?.1)
}

/// Copies the content of an entry, with the zeros of a sparse file written out.
fn copy(
    reader: &mut Reader<Pieces<'_>>,
    entry: &Entry,
    out: &mut estargz::Writer<&mut dyn Write>,
    buffer: &mut [u8],
) -> Result<(), RepackError> {
    let whole = [crate::tar::Region { offset: 0, length: entry.size }];
    let mut at = 0;
    for region in entry.sparse.as_deref().unwrap_or(&whole) {
        zeros(out, region.offset.saturating_sub(at))?;
        at = region.offset;
        let end = region.offset + region.length;
        while at < end {
            let want = buffer.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
            let got = reader.read_stored(&mut buffer[..want])?;
            if got == 0 {
                break;
            }
            out.content(&buffer[..got])?;
            at += got as u64;
        }
    }
    zeros(out, entry.size.saturating_sub(at))
}

fn zeros(out: &mut estargz::Writer<&mut dyn Write>, mut count: u64) -> Result<(), RepackError> {
    let block = [0; 16 << 10];
    while count > 0 {
        let now = count.min(block.len() as u64);
        // No more than a block.
        out.content(&block[..now as usize])?;
        count -= now;
    }
    Ok(())
}

fn digest(pieces: &Receiver<Vec<u8>>) -> DiffId {
    let mut hasher = Hasher::new();
    while let Ok(piece) = pieces.recv() {
        hasher.update(&piece);
    }
    DiffId::new(hasher.finish())
}

/// The decompressed stream, as it arrives.
struct Pieces<'a> {
    pieces: &'a Receiver<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.piece.len() {
            match self.pieces.recv() {
                Ok(piece) => (self.piece, self.at) = (piece, 0),
                Err(_) => return Ok(0),
            }
        }
        let count = buffer.len().min(self.piece.len() - self.at);
        buffer[..count].copy_from_slice(&self.piece[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}
