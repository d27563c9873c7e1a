//! Encoders and decoders against the programs of the same names, and against the number of threads.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use super::*;

fn encoded(data: &[u8], compression: Compression, threads: usize, step: usize) -> Vec<u8> {
    let options = EncodeOptions { threads: Some(threads), ..EncodeOptions::default() };
    let mut encoder = Encoder::new(Vec::new(), compression, options).unwrap();
    for piece in data.chunks(step) {
        encoder.write_all(piece).unwrap();
        encoder.flush().unwrap();
    }
    encoder.finish().unwrap()
}

fn decoded(data: &[u8]) -> io::Result<(Compression, Vec<u8>)> {
    let (compression, mut decoder) = Decoder::detect(data)?;
    let mut out = Vec::new();
    decoder.read_to_end(&mut out)?;
    Ok((compression, out))
}

/// What a program makes of `input`; `None` if it fails.
fn through(program: &[&str], input: &[u8]) -> Option<Vec<u8>> {
    let mut child = Command::new(program[0])
        .args(&program[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input));
        child.wait_with_output().unwrap()
    });
    output.status.success().then_some(output.stdout)
}

/// Bytes of every sort: text, then noise, then text, then zeros.
fn mixture(length: usize) -> Vec<u8> {
    let mut state = 1u64;
    let noise = std::iter::repeat_with(move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    });
    let text = |from: usize| (from..).flat_map(|n| format!("line {n} of {}\n", n % 7).into_bytes());
    let quarter = length / 4;
    text(0)
        .take(quarter)
        .chain(noise.take(quarter))
        .chain(text(9).take(quarter))
        .chain(std::iter::repeat(0))
        .take(length)
        .collect()
}

#[test]
fn the_bytes_depend_on_the_input_alone() {
    for length in [0, 1, 65_535, 65_536, 1 << 20, (1 << 20) + 1, 5_000_000] {
        let data = mixture(length);
        for compression in [Compression::Gzip, Compression::Zstd] {
            let one = encoded(&data, compression, 1, 1 << 20);
            for (threads, step) in [(2, 1 << 20), (4, 777), (3, 65536)] {
                assert!(encoded(&data, compression, threads, step) == one, "{compression:?} {length} {threads}");
            }
            assert!(decoded(&one).unwrap() == (compression, data.clone()), "{compression:?} {length}");
        }
    }
}

#[test]
fn other_programs_take_it() {
    for length in [0, 1, 300_000, 5_000_000] {
        let data = mixture(length);
        let gzip = encoded(&data, Compression::Gzip, 2, 1 << 16);
        assert_eq!(gzip[..10], [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255]);
        assert!(through(&["gzip", "-t"], &gzip).is_some());
        let python = "import gzip, sys; sys.stdout.buffer.write(gzip.decompress(sys.stdin.buffer.read()))";
        for program in [&["gzip", "-dc"][..], &["busybox", "gunzip", "-c"], &["python3", "-c", python]] {
            assert!(through(program, &gzip).unwrap() == data, "{program:?} {length}");
        }
        let zstd = encoded(&data, Compression::Zstd, 2, 1 << 16);
        assert!(through(&["zstd", "-dc"], &zstd).unwrap() == data);
    }
    // What fits into one member is one: a reader of a single one finds nothing behind it.
    let data = mixture(200_000);
    let gzip = encoded(&data, Compression::Gzip, 2, 1 << 16);
    let mut single = flate2::bufread::GzDecoder::new(&gzip[..]);
    io::copy(&mut single, &mut io::sink()).unwrap();
    assert!(single.into_inner().is_empty());
}

#[test]
fn gzip_is_as_small_as_the_programs() {
    let text: Vec<u8> =
        (0..400_000).flat_map(|n: u32| format!("{} {}\n", n.wrapping_mul(2_654_435_761), n % 97).into_bytes()).collect();
    let ours = encoded(&text, Compression::Gzip, 2, 1 << 20).len();
    let theirs = through(&["gzip", "-6", "-c"], &text).unwrap().len();
    assert!(ours * 100 <= theirs * 101, "{ours} {theirs}");
    let noise: Vec<u8> = mixture(8_000_000)[2_000_000..4_000_000].to_vec();
    let stored = encoded(&noise, Compression::Gzip, 2, 1 << 20).len();
    assert!(stored < noise.len() + noise.len() / 5000 + 100, "{stored}");
}

#[test]
fn streams_are_read_to_their_end() {
    let data = mixture(300_000);
    let gzip = encoded(&data, Compression::Gzip, 1, 1 << 20);
    let zstd = encoded(&data, Compression::Zstd, 1, 1 << 20);
    let bzip2 = through(&["bzip2", "-c"], &data).unwrap();
    let xz = through(&["xz", "-c"], &data).unwrap();
    let skippable = [&[0x51, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
    let twice = [&data[..], &data].concat();
    for (name, stream, compression) in [
        ("gzip", &gzip, Compression::Gzip),
        ("zstd", &zstd, Compression::Zstd),
        ("bzip2", &bzip2, Compression::Bzip2),
        ("xz", &xz, Compression::Xz),
    ] {
        assert!(decoded(stream).unwrap() == (compression, data.clone()), "{name}");
        let double = [&stream[..], stream].concat();
        assert!(decoded(&double).unwrap() == (compression, twice.clone()), "{name}: two of them");
        let garbage = [&stream[..], b"garbage after the stream"].concat();
        assert!(decoded(&garbage).is_err(), "{name}: garbage after it");
        for cut in [7, stream.len() / 2, stream.len() - 1] {
            assert!(decoded(&stream[..cut]).is_err(), "{name}: cut at {cut}");
        }
        let mut damaged = stream.clone();
        let middle = damaged.len() / 2;
        damaged[middle] ^= 0x55;
        assert!(decoded(&damaged).is_err(), "{name}: damaged");
    }
    assert!(decoded(&[&skippable[..], &zstd].concat()).unwrap().1 == data);
    assert!(decoded(&[&zstd[..], &skippable].concat()).unwrap().1 == data);
    for plain in [&b""[..], b"B", b"text", b"\x1f\x8b"] {
        assert_eq!(decoded(plain).unwrap(), (Compression::None, plain.to_vec()));
    }
}

#[test]
fn a_zstd_window_of_two_gigabytes_is_refused() {
    // Magic, descriptor without single segment, window descriptor 2^31 (RFC 8878 3.1.1.1.2), an empty last block.
    let stream = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 0x01, 0x00, 0x00];
    assert!(decoded(&stream).is_err());
}

#[test]
fn a_sink_that_fails_is_reported() {
    struct Full(usize);
    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let data = mixture(4_000_000);
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let mut encoder = Encoder::new(Full(20_000), compression, EncodeOptions::default()).unwrap();
        let error = encoder.write_all(&data).and_then(|()| encoder.finish().map(drop)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{compression:?}");
    }
}

/// What is left of `data` compressed, in percent.
fn left(data: &[u8]) -> usize {
    encoded(data, Compression::Gzip, 1, 1 << 20).len() * 100 / data.len()
}

#[test]
fn what_deflate_can_use_is_found() {
    let noise: Vec<u8> = mixture(8 << 20)[2 << 20..][..2 << 20].to_vec();
    assert_eq!(left(&noise), 100);
    // Noise that comes again, of few letters, and of bytes that are rarely large.
    let again: Vec<u8> = noise[..8 << 10].repeat(256);
    let few: Vec<u8> = noise.iter().map(|byte| byte & 0x3f).collect();
    let small: Vec<u8> = noise.iter().zip(noise.iter().rev()).map(|(a, b)| (*a).min(*b)).collect();
    for (name, data, most) in [("again", again, 5), ("few", few, 80), ("small", small, 97)] {
        assert!(left(&data) <= most, "{name}: {}", left(&data));
    }
    // Text between noise: pieces of 64 KB are judged, and the text is compressed as if it were alone, but for one piece at each end.
    let text: Vec<u8> = (0..300_000).flat_map(|n| format!("{n} ").into_bytes()).take(1_500_000).collect();
    let length = |data: &[u8]| encoded(data, Compression::Gzip, 1, 1 << 20).len();
    let mixed = [&noise[..700_000], &text, &noise[700_000..], &text].concat();
    let most = noise.len() + 2 * length(&text) + 3 * (64 << 10);
    assert!(length(&mixed) < most, "{} {most}", length(&mixed));
    // Small files of both kinds beside one another: 100 KB of noise, 20 of text.
    let files: Vec<u8> = noise.chunks(100_000).flat_map(|noise| [noise, &text[..20_000]].concat()).collect();
    let (found, best) = (length(&files), noise.len() + 21 * length(&text[..20_000]));
    assert!(found < best + best / 20, "{found} {best}");
}
