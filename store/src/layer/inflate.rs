//! Hides that a layer's blob is decompressed, hashed and unpacked on three threads: each alone would keep the others waiting.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use kiln_oci::digest::{DiffId, Hasher};

use super::compress::Decoder;
use super::unpack::{UnpackError, UnpackOptions, UnpackStats, unpack};
use crate::rootdir::RootDir;
use crate::view::View;

/// Bytes that go from thread to thread at once.
const PIECE: usize = 256 << 10;
/// Pieces that may wait for one thread; bounds the memory of a layer to about 4 MiB.
const WAITING: usize = 8;

/// Why [`unpack_blob`] failed.
#[derive(Debug, thiserror::Error)]
pub enum UnpackBlobError {
    /// The blob can't be read or decompressed.
    #[error("cannot decompress the layer")]
    Decompress(#[source] io::Error),
    /// The tar can't be unpacked.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// It is another tar than the image's configuration says.
    #[error("it unpacks to {found}, but the image's configuration says {expected}")]
    WrongDiffId {
        /// The digest of its tar.
        found: DiffId,
        /// What it should be.
        expected: DiffId,
    },
}

/// Unpacks a layer's blob, compressed or not, into the empty directory `dest` above the layers of `parent` ([`unpack`]), and
/// proves that its tar is the one that `expected` names. After an error `dest` must be thrown away.
pub fn unpack_blob(
    blob: impl Read + Send,
    expected: DiffId,
    dest: &RootDir,
    parent: &View,
    options: &UnpackOptions,
) -> Result<UnpackStats, UnpackBlobError> {
    std::thread::scope(|scope| {
        let (to_unpack, pieces) = sync_channel(WAITING);
        let (to_hash, hashed) = sync_channel(WAITING);
        let inflate = scope.spawn(move || inflate(blob, &to_unpack, &to_hash));
        let hash = scope.spawn(move || digest(&hashed));
        let mut tar = Pieces { pieces, piece: None, at: 0 };
        let unpacked = unpack(&mut tar, dest, parent, options);
        // Whoever still sends is told that nobody listens.
        drop(tar);
        // Panics can't happen in either; were one to, the layer must not count as good.
        let lost = || UnpackBlobError::Decompress(io::Error::other("a thread ended unexpectedly"));
        // A broken stream reaches the unpacker as a short one, so its own error comes first.
        inflate.join().map_err(|_| lost())?.map_err(UnpackBlobError::Decompress)?;
        let stats = unpacked?;
        let found = hash.join().map_err(|_| lost())?;
        if found == expected { Ok(stats) } else { Err(UnpackBlobError::WrongDiffId { found, expected }) }
    })
}

fn inflate(blob: impl Read, unpack: &SyncSender<Arc<Vec<u8>>>, hash: &SyncSender<Arc<Vec<u8>>>) -> io::Result<()> {
    let (_, mut decoder) = Decoder::detect(blob)?;
    loop {
        let mut piece = vec![0; PIECE];
        let mut filled = 0;
        while filled < PIECE {
            match decoder.read(&mut piece[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        if filled == 0 {
            return Ok(());
        }
        piece.truncate(filled);
        let piece = Arc::new(piece);
        if hash.send(Arc::clone(&piece)).is_err() || unpack.send(piece).is_err() {
            // The unpacker failed, and says why itself.
            return Ok(());
        }
    }
}

fn digest(pieces: &Receiver<Arc<Vec<u8>>>) -> DiffId {
    let mut hasher = Hasher::new();
    while let Ok(piece) = pieces.recv() {
        hasher.update(&piece);
    }
    DiffId::new(hasher.finish())
}

/// The decompressed stream, as it arrives.
struct Pieces {
    pieces: Receiver<Arc<Vec<u8>>>,
    piece: Option<Arc<Vec<u8>>>,
    at: usize,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if let Some(piece) = &self.piece {
                let rest = &piece[self.at..];
                if !rest.is_empty() {
                    let n = rest.len().min(buffer.len());
                    buffer[..n].copy_from_slice(&rest[..n]);
                    self.at += n;
                    return Ok(n);
                }
            }
            match self.pieces.recv() {
                Ok(piece) => (self.piece, self.at) = (Some(piece), 0),
                Err(_) => return Ok(0),
            }
        }
    }
}
