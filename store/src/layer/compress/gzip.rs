//! Hides that one gzip stream is made by several threads.
//!
//! The input is cut into pieces of which each becomes a gzip member of its own; a file of several members is a gzip file like any
//! other (RFC 1952 2.2, and every eStargz layer is one). What wouldn't get smaller is stored. Where a piece ends depends on the
//! input alone, so the bytes depend on nothing else.

use std::io::{self, Write};

use libdeflater::{CompressionError, CompressionLvl, Compressor};

use super::ordered::Ordered;

/// Input of one member, at most. Half as much compresses 0.5 % worse, twice as much 0.2 % better.
const MEMBER: usize = 1 << 20;
/// Input that is judged at once: is deflating it of any use?
const PIECE: usize = 64 << 10;
/// A piece is judged by so much in its middle.
const SAMPLE: usize = 16 << 10;
/// So many pieces in a row for which deflating is of no use are stored; fewer are deflated with what is beside them, for an archive
/// of small files is as mixed as its samples.
const QUIET: usize = 4;
/// libdeflate's levels for gzip's from 0 to 9, those that come closest in size. Measured in members of [`MEMBER`], beside the encoder
/// of Go that Docker uses at its level 6: a tree of Python 0.2985 of its size (Go 0.2963) at 169 MB/s a core (Go 13), libraries 0.3159
/// (0.3175), words in random order 0.4234 (0.4249). Level 5 would be 2.4 % smaller and 15 % slower, zlib at its level 6 takes 1.4 to
/// 1.9 times as long for 0.6 % less.
const LEVELS: [i32; 10] = [0, 1, 1, 2, 2, 3, 4, 6, 8, 9];
/// More threads than that are faster than any disk, and each holds its input and its output.
const MAX_THREADS: usize = 16;
/// Longest stored block of deflate (RFC 1951 3.2.4).
const STORED: usize = 65535;
/// No name, no time; XFL says nothing; 255 is "unknown system" (RFC 1952 2.3).
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
/// CRC-32 and size end a member (RFC 1952 2.3.1).
const TRAILER: usize = 8;
/// An empty last block with fixed codes ends a deflate stream.
const END: [u8; 2] = [3, 0];

struct Job {
    data: Vec<u8>,
    /// Deflating it is of no use.
    noise: bool,
}

/// Compresses into `sink` with threads of its own, writing to it only on the caller's.
pub(super) struct Encoder<W: Write> {
    sink: W,
    members: Ordered<Job, io::Result<Vec<u8>>>,
    judge: Judge,
    /// What isn't handed out yet.
    block: Vec<u8>,
    /// The block is noise, all of it.
    noise: bool,
    /// Pieces at the end of a block that is to be deflated, for which that is of no use.
    quiet: usize,
    empty: bool,
}

impl<W: Write> Encoder<W> {
    pub(super) fn new(sink: W, level: u32, threads: usize) -> io::Result<Self> {
        let members = Ordered::new(threads.min(MAX_THREADS), || {
            let mut deflater = Deflater::new(level);
            move |job: Job| if job.noise { Ok(stored_member(&job.data)) } else { deflater.deflated_member(&job.data) }
        })?;
        let judge = Judge { level, probe: Probe::default() };
        Ok(Self { sink, members, judge, block: Vec::with_capacity(MEMBER), noise: false, quiet: 0, empty: true })
    }

    pub(super) fn finish(mut self) -> io::Result<W> {
        // Of nothing a gzip file has one member, too.
        if !self.block.is_empty() || self.empty {
            self.send(0)?;
        }
        let Self { members, sink, .. } = &mut self;
        members.finish(&mut |member| sink.write_all(&member?))?;
        Ok(self.sink)
    }

    /// Decides what becomes of the piece that was just completed at the block's end.
    fn judge(&mut self) -> io::Result<()> {
        let pays = self.judge.pays(&self.block[self.block.len() - PIECE..]);
        if self.noise {
            if pays {
                self.send(PIECE)?;
                self.noise = false;
            } else if self.block.len() == MEMBER {
                self.send(0)?;
            }
            return Ok(());
        }
        self.quiet = if pays { 0 } else { self.quiet + 1 };
        if self.quiet == QUIET {
            self.send(QUIET * PIECE)?;
            (self.noise, self.quiet) = (true, 0);
        } else if self.block.len() == MEMBER {
            self.send(self.quiet * PIECE)?;
        }
        Ok(())
    }

    /// Hands out the block without its last `kept` bytes.
    fn send(&mut self, kept: usize) -> io::Result<()> {
        let mut next = Vec::with_capacity(MEMBER);
        let length = self.block.len() - kept;
        next.extend_from_slice(&self.block[length..]);
        let mut data = std::mem::replace(&mut self.block, next);
        data.truncate(length);
        if data.is_empty() && !self.empty {
            return Ok(());
        }
        self.empty = false;
        let Self { members, sink, .. } = self;
        members.send(Job { data, noise: self.noise }, &mut |member| sink.write_all(&member?))
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(PIECE - self.block.len() % PIECE);
        self.block.extend_from_slice(&bytes[..taken]);
        if self.block.len().is_multiple_of(PIECE) && taken > 0 {
            self.judge()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Makes gzip members; keeps the codec's state from one to the next.
pub(crate) struct Deflater {
    compressor: Compressor,
    /// The longest that may come out, which is more than what does.
    room: Vec<u8>,
    judge: Judge,
}

impl Deflater {
    /// For a `level` from 0 (stored) to 9.
    pub(crate) fn new(level: u32) -> Self {
        let known = LEVELS.get(level as usize).and_then(|level| CompressionLvl::new(*level).ok()).unwrap_or_default();
        Self { compressor: Compressor::new(known), room: Vec::new(), judge: Judge { level, probe: Probe::default() } }
    }

    /// A member, however long `data` is.
    pub(crate) fn member(&mut self, data: &[u8]) -> io::Result<Vec<u8>> {
        if data.len() < QUIET * PIECE || data.chunks(PIECE).any(|piece| self.judge.pays(piece)) {
            self.deflated_member(data)
        } else {
            Ok(stored_member(data))
        }
    }

    fn deflated_member(&mut self, data: &[u8]) -> io::Result<Vec<u8>> {
        let most = self.compressor.deflate_compress_bound(data.len());
        if self.room.len() < most {
            self.room.resize(most, 0);
        }
        let deflated = self.compressor.deflate_compress(data, &mut self.room).map_err(|error| match error {
            CompressionError::InsufficientSpace => io::Error::other("libdeflate needs more room than it said"),
        })?;
        let mut member = Vec::with_capacity(HEADER.len() + deflated + TRAILER);
        member.extend_from_slice(&HEADER);
        member.extend_from_slice(&self.room[..deflated]);
        end(&mut member, data);
        Ok(member)
    }
}

/// A member with the data as it is.
fn stored_member(data: &[u8]) -> Vec<u8> {
    let blocks = data.len().div_ceil(STORED);
    let mut member = Vec::with_capacity(HEADER.len() + data.len() + 5 * blocks + END.len() + TRAILER);
    member.extend_from_slice(&HEADER);
    for piece in data.chunks(STORED) {
        // No longer than STORED.
        let length = piece.len() as u16;
        member.push(0);
        member.extend_from_slice(&length.to_le_bytes());
        member.extend_from_slice(&(!length).to_le_bytes());
        member.extend_from_slice(piece);
    }
    member.extend_from_slice(&END);
    end(&mut member, data);
    member
}

/// The check and the size (modulo 2^32) of the data behind it (RFC 1952 2.3.1).
fn end(member: &mut Vec<u8>, data: &[u8]) {
    member.extend_from_slice(&crc32fast::hash(data).to_le_bytes());
    member.extend_from_slice(&(data.len() as u32).to_le_bytes());
}

/// Says for which pieces deflating is of any use.
struct Judge {
    level: u32,
    probe: Probe,
}

impl Judge {
    fn pays(&mut self, piece: &[u8]) -> bool {
        let start = piece.len().saturating_sub(SAMPLE) / 2;
        self.level > 0 && self.probe.is_compressible(&piece[start..piece.len().min(start + SAMPLE)])
    }
}

/// Finds out whether deflating is of any use: what has all bytes equally often and repeats nothing (archives, media, keys) takes
/// longer to deflate than text, for nothing. Counts in whole numbers, so the answer is the same on every machine.
struct Probe {
    /// Where a hash of four bytes was seen last.
    seen: Box<[u16; PROBE]>,
}

/// Hashes that are told apart.
const PROBE: usize = 4096;

impl Default for Probe {
    fn default() -> Self {
        Self { seen: Box::new([0; PROBE]) }
    }
}

impl Probe {
    fn is_compressible(&mut self, sample: &[u8]) -> bool {
        // How often bytes are shows in half of it.
        is_skewed(&sample[..sample.len() / 2]) || self.repeats(sample)
    }

    /// Whether a fiftieth of the sample was there before in it.
    fn repeats(&mut self, sample: &[u8]) -> bool {
        self.seen.fill(0);
        let four = |at: usize| u32::from_le_bytes([sample[at], sample[at + 1], sample[at + 2], sample[at + 3]]);
        let (mut at, mut again) = (1, 0);
        while at + 4 <= sample.len() {
            let now = four(at);
            let slot = &mut self.seen[(now.wrapping_mul(2_654_435_761) >> 20) as usize];
            let before = usize::from(std::mem::replace(slot, at as u16));
            if before > 0 && four(before) == now {
                again += 4;
                at += 4;
            } else {
                at += 1;
            }
        }
        again * 50 > sample.len()
    }
}

/// Whether some bytes are so much more frequent than others that codes of different length pay: the chance that two bytes are equal is
/// 6 % above that of noise.
fn is_skewed(sample: &[u8]) -> bool {
    let mut counts = [0u64; 256];
    for byte in sample {
        counts[usize::from(*byte)] += 1;
    }
    let length = sample.len() as u64;
    let pairs: u64 = counts.iter().map(|count| count * count.saturating_sub(1)).sum();
    pairs * 256 * 100 > length * length.saturating_sub(1) * 106
}
