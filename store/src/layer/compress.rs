//! Hides which codecs there are: one writer and one reader for all of them.

pub(super) mod gzip;
pub(super) mod ordered;

use std::io::{self, BufReader, Read, Write};

use kiln_oci::media_type;

/// How the bytes of a layer or an archive are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Compression {
    /// Not at all.
    None,
    /// RFC 1952; of several members when kiln writes it.
    Gzip,
    /// RFC 8878.
    Zstd,
    /// Read only, for `ADD`.
    Bzip2,
    /// Read only, for `ADD`.
    Xz,
}

impl Compression {
    /// What the first bytes of a stream say; six are enough.
    pub fn of_magic(start: &[u8]) -> Self {
        // A zstd stream may begin with skippable frames (RFC 8878 3.1.2).
        let skippable = start.len() >= 4 && start[0] & 0xf0 == 0x50 && start[1..4] == [0x2a, 0x4d, 0x18];
        match start {
            [0x1f, 0x8b, 8, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            _ if skippable => Self::Zstd,
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Self::Bzip2,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            _ => Self::None,
        }
    }

    /// The OCI media type of a layer compressed so; `None` for what no layer may be.
    pub fn media_type(self) -> Option<&'static str> {
        match self {
            Self::None => Some(media_type::OCI_LAYER),
            Self::Gzip => Some(media_type::OCI_LAYER_GZIP),
            Self::Zstd => Some(media_type::OCI_LAYER_ZSTD),
            Self::Bzip2 | Self::Xz => None,
        }
    }
}

/// What the bytes of an encoder depend on, and what they don't.
#[derive(Debug, Clone, Copy, Default)]
pub struct EncodeOptions {
    /// The codec's own scale; `None` is 6 for gzip and 3 for zstd.
    pub level: Option<i32>,
    /// Threads that compress; `None` is one a processor. The bytes don't depend on it.
    pub threads: Option<usize>,
}

impl EncodeOptions {
    pub(super) fn threads(&self) -> usize {
        self.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)).max(1)
    }

    pub(super) fn gzip_level(&self) -> u32 {
        u32::try_from(self.level.unwrap_or(6)).unwrap_or(6).min(9)
    }
}

/// Compresses what's written to it into a sink. The same input gives the same output, however it's cut into writes and
/// however many threads there are.
pub struct Encoder<W: Write> {
    inner: Inner<W>,
}

enum Inner<W: Write> {
    None(W),
    Gzip(gzip::Encoder<W>),
    Zstd(zstd::stream::write::Encoder<'static, W>),
}

impl<W: Write> Encoder<W> {
    /// An encoder into `sink`. Bzip2 and xz can't be written (`Unsupported`).
    pub fn new(sink: W, compression: Compression, options: EncodeOptions) -> io::Result<Self> {
        let inner = match compression {
            Compression::None => Inner::None(sink),
            Compression::Gzip => Inner::Gzip(gzip::Encoder::new(sink, options.gzip_level(), options.threads())?),
            Compression::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(sink, options.level.unwrap_or(3))?;
                // With no worker at all zstd gives other bytes than with any number of them.
                encoder.multithread(u32::try_from(options.threads()).unwrap_or(1).max(1))?;
                encoder.include_checksum(true)?;
                Inner::Zstd(encoder)
            }
            Compression::Bzip2 | Compression::Xz => return Err(io::ErrorKind::Unsupported.into()),
        };
        Ok(Self { inner })
    }

    /// Writes what's left and gives the sink back. Without it the stream isn't whole.
    pub fn finish(self) -> io::Result<W> {
        match self.inner {
            Inner::None(sink) => Ok(sink),
            Inner::Gzip(encoder) => encoder.finish(),
            Inner::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.inner {
            Inner::None(sink) => sink.write(bytes),
            Inner::Gzip(encoder) => encoder.write(bytes),
            Inner::Zstd(encoder) => encoder.write(bytes),
        }
    }

    /// Does nothing to what's being compressed: where a block ends must not depend on the caller.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<W: Write> std::fmt::Debug for Encoder<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.inner {
            Inner::None(_) => "Encoder(None)",
            Inner::Gzip(_) => "Encoder(Gzip)",
            Inner::Zstd(_) => "Encoder(Zstd)",
        })
    }
}

/// Decompresses a stream, to its end: several members or frames are one stream, anything else after them is an error.
pub struct Decoder<R: Read> {
    inner: Source<R>,
}

/// The source with the bytes that were looked at in front again.
type Peeked<R> = BufReader<io::Chain<io::Cursor<Vec<u8>>, R>>;

enum Source<R: Read> {
    None(Peeked<R>),
    Gzip(Box<flate2::bufread::MultiGzDecoder<Peeked<R>>>),
    Zstd(zstd::stream::read::Decoder<'static, Peeked<R>>),
    // `bzip2` is libbz2 in Rust, `lzma-rust2` the xz of the Java port in Rust: unlike `xz2` and `liblzma` they need no C compiler,
    // and both are fuzzed against the originals. Only `ADD` uses them, on archives that the user has at hand: speed comes second.
    Bzip2(bzip2::bufread::MultiBzDecoder<Peeked<R>>),
    Xz(Box<lzma_rust2::XzReader<Peeked<R>>>),
}

impl<R: Read> Decoder<R> {
    /// Looks at the first bytes of `source` and chooses; what's not compressed is passed on as it is.
    pub fn detect(mut source: R) -> io::Result<(Compression, Self)> {
        // A pipe may give fewer bytes at once than are needed to tell.
        let mut start = Vec::new();
        source.by_ref().take(6).read_to_end(&mut start)?;
        let compression = Compression::of_magic(&start);
        let source = BufReader::with_capacity(128 << 10, io::Cursor::new(start).chain(source));
        Ok((compression, Self::new(source, compression)?))
    }

    fn new(source: Peeked<R>, compression: Compression) -> io::Result<Self> {
        let inner = match compression {
            Compression::None => Source::None(source),
            Compression::Gzip => Source::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(source))),
            // A window of more than 128 MiB, libzstd's own limit, is refused.
            Compression::Zstd => Source::Zstd(zstd::stream::read::Decoder::with_buffer(source)?),
            Compression::Bzip2 => Source::Bzip2(bzip2::bufread::MultiBzDecoder::new(source)),
            Compression::Xz => Source::Xz(Box::new(lzma_rust2::XzReader::new(source, true))),
        };
        Ok(Self { inner })
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.inner {
            Source::None(source) => source.read(buffer),
            Source::Gzip(source) => source.read(buffer),
            Source::Zstd(source) => source.read(buffer),
            Source::Bzip2(source) => source.read(buffer),
            Source::Xz(source) => source.read(buffer),
        }
    }
}

impl<R: Read> std::fmt::Debug for Decoder<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.inner {
            Source::None(_) => "Decoder(None)",
            Source::Gzip(_) => "Decoder(Gzip)",
            Source::Zstd(_) => "Decoder(Zstd)",
            Source::Bzip2(_) => "Decoder(Bzip2)",
            Source::Xz(_) => "Decoder(Xz)",
        })
    }
}

#[cfg(test)]
mod tests;
