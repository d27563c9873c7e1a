//! Hides that one gzip member is made by several threads.
//!
//! The input is cut into blocks of a fixed size. Each is deflated by itself, with the end of the block before as its
//! dictionary, up to a byte boundary; strung together they are one deflate stream (pigz does the same). The cuts depend on
//! nothing but the input, so neither do the bytes. What wouldn't get smaller is stored.

use std::io::{self, Write};

use flate2::{Compress, FlushCompress, Status};

use super::ordered::Ordered;

/// Input that is compressed at once. Larger blocks compress 0.1 % better and take more memory.
const BLOCK: usize = 512 << 10;
/// How far back deflate can refer.
const DICTIONARY: usize = 32 << 10;
/// A block is sampled in so many places of so many bytes to see whether deflating it is of any use …
const SAMPLES: usize = 8;
const SAMPLE: usize = 16 << 10;
/// … which it is when so many of them are: the end of a text before a film is not worth deflating the film.
const WORTHWHILE: usize = 2;
/// Longest stored block of deflate (RFC 1951 3.2.4).
const STORED: usize = 65535;
/// No name, no time; XFL says nothing; 255 is "unknown system" (RFC 1952 2.3).
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
/// An empty last block with fixed codes ends a deflate stream.
const END: [u8; 2] = [3, 0];

struct Job {
    data: Vec<u8>,
    dictionary: Vec<u8>,
}

struct Done {
    deflated: io::Result<Vec<u8>>,
    crc: crc32fast::Hasher,
}

/// Compresses into `sink` with threads of its own, writing to it only on the caller's.
pub(super) struct Encoder<W: Write> {
    sink: W,
    block: Vec<u8>,
    dictionary: Vec<u8>,
    blocks: Ordered<Job, Done>,
    crc: crc32fast::Hasher,
    size: u64,
}

impl<W: Write> Encoder<W> {
    pub(super) fn new(mut sink: W, level: u32, threads: usize) -> io::Result<Self> {
        sink.write_all(&HEADER)?;
        let blocks = Ordered::new(threads, || {
            let mut deflater = Deflater::new(level);
            move |job: Job| {
                let mut crc = crc32fast::Hasher::new();
                crc.update(&job.data);
                Done { deflated: deflater.block(&job.data, &job.dictionary), crc }
            }
        })?;
        let block = Vec::with_capacity(BLOCK);
        Ok(Self { sink, block, dictionary: Vec::new(), blocks, crc: crc32fast::Hasher::new(), size: 0 })
    }

    pub(super) fn finish(mut self) -> io::Result<W> {
        if !self.block.is_empty() {
            self.send()?;
        }
        let Self { blocks, sink, crc, .. } = &mut self;
        blocks.finish(&mut |done| take(sink, crc, done))?;
        self.sink.write_all(&END)?;
        self.sink.write_all(&self.crc.finalize().to_le_bytes())?;
        // The size modulo 2^32 (RFC 1952 2.3.1).
        self.sink.write_all(&(self.size as u32).to_le_bytes())?;
        Ok(self.sink)
    }

    fn send(&mut self) -> io::Result<()> {
        let data = std::mem::replace(&mut self.block, Vec::with_capacity(BLOCK));
        let tail = data[data.len().saturating_sub(DICTIONARY)..].to_vec();
        let dictionary = std::mem::replace(&mut self.dictionary, tail);
        self.size += data.len() as u64;
        let Self { blocks, sink, crc, .. } = self;
        blocks.send(Job { data, dictionary }, &mut |done| take(sink, crc, done))
    }
}

fn take(sink: &mut impl Write, crc: &mut crc32fast::Hasher, done: Done) -> io::Result<()> {
    sink.write_all(&done.deflated?)?;
    crc.combine(&done.crc);
    Ok(())
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(BLOCK - self.block.len());
        self.block.extend_from_slice(&bytes[..taken]);
        if self.block.len() == BLOCK {
            self.send()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Deflates; keeps the codec's state of 300 KB from block to block, which clearing costs less than making.
pub(crate) struct Deflater {
    level: u32,
    stream: Compress,
    probe: Probe,
}

impl Deflater {
    pub(crate) fn new(level: u32) -> Self {
        Self { level, stream: Compress::new(flate2::Compression::new(level), false), probe: Probe::default() }
    }

    /// A whole gzip member.
    pub(crate) fn member(&mut self, data: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::with_capacity(data.len() / 2 + 1024);
        out.extend_from_slice(&HEADER);
        if data.len() <= BLOCK && self.level > 0 && self.probe.is_compressible(data) {
            self.stream.reset();
            run(&mut self.stream, data, FlushCompress::Finish, &mut out)?;
        } else {
            let mut dictionary: &[u8] = &[];
            for block in data.chunks(BLOCK) {
                out.extend_from_slice(&self.block(block, dictionary)?);
                dictionary = &block[block.len().saturating_sub(DICTIONARY)..];
            }
            out.extend_from_slice(&END);
        }
        let mut crc = crc32fast::Hasher::new();
        crc.update(data);
        out.extend_from_slice(&crc.finalize().to_le_bytes());
        out.extend_from_slice(&(data.len() as u32).to_le_bytes());
        Ok(out)
    }

    /// One block up to a byte boundary, without the end of the stream.
    fn block(&mut self, data: &[u8], dictionary: &[u8]) -> io::Result<Vec<u8>> {
        if self.level == 0 || !self.probe.is_compressible(data) {
            let mut out = Vec::with_capacity(data.len() + 5 * data.len().div_ceil(STORED));
            store(data, &mut out);
            return Ok(out);
        }
        let mut out = Vec::with_capacity(data.len() / 2 + 1024);
        self.stream.reset();
        if !dictionary.is_empty() {
            self.stream.set_dictionary(dictionary)?;
        }
        run(&mut self.stream, data, FlushCompress::Sync, &mut out)?;
        // 5 bytes for each stored block: deflate itself may have done worse.
        if out.len() > data.len() + 5 * data.len().div_ceil(STORED) {
            out.clear();
            store(data, &mut out);
        }
        Ok(out)
    }
}

fn run(stream: &mut Compress, data: &[u8], flush: FlushCompress, out: &mut Vec<u8>) -> io::Result<()> {
    loop {
        if out.capacity() - out.len() < 1024 {
            out.reserve(64 << 10);
        }
        // One block, so it fits a usize.
        let consumed = stream.total_in() as usize;
        let status = stream.compress_vec(&data[consumed..], out, flush)?;
        // A flush is complete when it leaves room in the output (zlib.h, deflate).
        if status == Status::StreamEnd || (stream.total_in() as usize == data.len() && out.len() < out.capacity()) {
            return Ok(());
        }
    }
}

/// Writes the data as it is.
fn store(data: &[u8], out: &mut Vec<u8>) {
    for piece in data.chunks(STORED) {
        // No longer than STORED.
        let length = piece.len() as u16;
        out.push(0);
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&(!length).to_le_bytes());
        out.extend_from_slice(piece);
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
    fn is_compressible(&mut self, data: &[u8]) -> bool {
        if data.len() < SAMPLES * SAMPLE {
            return true;
        }
        let good = (0..SAMPLES).filter(|at| {
            let start = (data.len() - SAMPLE) / (SAMPLES - 1) * at;
            let sample = &data[start..start + SAMPLE];
            is_skewed(sample) || self.repeats(sample)
        });
        good.take(WORTHWHILE).count() == WORTHWHILE
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
    pairs * 256 * 100 > length * (length - 1) * 106
}
