//! Archives of every dialect: the reader beside other readers, the writer beside the reader.

use std::io::Read;
use std::process::Command;

use super::header::{self, Block};
use super::*;

mod differential;

/// A header block with these fields, and no more than that.
fn head(name: &[u8], kind: u8, size: u64) -> Vec<u8> {
    let mut block = Block::zeroed();
    block.field_mut(header::NAME)[..name.len()].copy_from_slice(name);
    block.set_octal(header::MODE, 0o644);
    block.set_octal(header::UID, 0);
    block.set_octal(header::GID, 0);
    block.set_octal(header::SIZE, size);
    block.set_octal(header::MTIME, 0);
    block.0[header::TYPE] = kind;
    block.field_mut(header::MAGIC).copy_from_slice(header::USTAR);
    block.seal();
    block.0.to_vec()
}

fn padded(content: &[u8]) -> Vec<u8> {
    let mut out = content.to_vec();
    out.resize(out.len().next_multiple_of(512), 0);
    out
}

fn pax_body(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (key, value) in records {
        pax::append(&mut body, key.as_bytes(), value);
    }
    body
}

fn extended(kind: u8, body: &[u8]) -> Vec<u8> {
    [head(b"././@PaxHeader", kind, body.len() as u64), padded(body)].concat()
}

fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    extended(b'x', &pax_body(records))
}

fn gnu_name(kind: u8, name: &[u8]) -> Vec<u8> {
    extended(kind, &[name, b"\0"].concat())
}

fn file(name: &[u8], announced: u64, content: &[u8]) -> Vec<u8> {
    [head(name, b'0', announced), padded(content)].concat()
}

fn end() -> Vec<u8> {
    vec![0; 1024]
}

/// The entries as `name size`, or the error.
fn list(tar: &[u8]) -> std::result::Result<Vec<String>, TarError> {
    let mut reader = Reader::new(tar);
    let mut out = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        out.push(format!("{} {}", entry.path.escape_ascii(), entry.size));
    }
    Ok(out)
}

/// What Python's tarfile makes of each archive: the same lines, or none where it fails.
fn pythons(archives: &[Vec<u8>]) -> Vec<Option<Vec<String>>> {
    let dir = tempfile::tempdir().unwrap();
    for (at, bytes) in archives.iter().enumerate() {
        std::fs::write(dir.path().join(format!("{at:03}")), bytes).unwrap();
    }
    let script = r"
import os, sys, tarfile
for f in sorted(os.listdir('.')):
    try:
        print('=' + '\t'.join('%s %d' % (m.name + ('/' if m.isdir() else ''), m.size if m.isreg() else 0) for m in tarfile.open(f, 'r:')))
    except Exception as e:
        print('!' + repr(e))
";
    let output = Command::new("python3").args(["-c", script]).current_dir(dir.path()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines()
        .map(|l| l.strip_prefix('=').map(|l| l.split('\t').filter(|s| !s.is_empty()).map(str::to_owned).collect()))
        .collect()
}

/// A name, the parts of an archive, and the error if it's refused.
type Row = (&'static str, Vec<Vec<u8>>, Option<&'static str>);

#[test]
fn size_and_name_rules_are_those_of_others_or_refused() {
    let long = [b'n'; 300];
    let rows: Vec<Row> = vec![
        ("plain", vec![file(b"a", 3, b"abc"), file(b"b", 0, b""), end()], None),
        // C45: what TARmageddon was about, and its kin.
        ("PAX size, header 0", vec![pax(&[("size", b"600")]), file(b"a", 0, &[b'x'; 600]), file(b"b", 1, b"y"), end()], None),
        ("PAX size, header other", vec![pax(&[("size", b"3")]), file(b"a", 1000, b"abc"), file(b"b", 1, b"y"), end()], None),
        (
            "PAX size hides a header",
            vec![pax(&[("size", b"1024")]), file(b"a", 0, &file(b"evil", 3, b"abc")), file(b"b", 1, b"y"), end()],
            None,
        ),
        (
            "PAX, then GNU name",
            vec![pax(&[("size", b"3")]), gnu_name(b'L', &long), file(b"a", 0, b"abc"), file(b"b", 0, b""), end()],
            None,
        ),
        (
            "GNU name, then PAX",
            vec![gnu_name(b'L', &long), pax(&[("size", b"3")]), file(b"a", 0, b"abc"), file(b"b", 0, b""), end()],
            None,
        ),
        (
            "PAX size on a directory",
            vec![pax(&[("size", b"512")]), head(b"d/", b'5', 0), file(b"b", 1, b"y"), end()],
            Some("no content"),
        ),
        ("size of a directory", vec![head(b"d/", b'5', 512), file(b"b", 0, b""), end()], Some("no content")),
        ("size of a symbolic link", vec![head(b"l", b'2', 3), file(b"b", 0, b""), end()], Some("no content")),
        ("empty PAX path", vec![pax(&[("path", b"")]), file(b"a", 0, b""), end()], Some("is empty")),
        ("empty PAX size", vec![pax(&[("size", b"")]), file(b"a", 0, b""), end()], Some("is empty")),
        ("size of a hard link", vec![file(b"a", 3, b"abc"), head(b"l", b'1', 3), file(b"b", 1, b"y"), end()], None),
        ("PAX size, negative", vec![pax(&[("size", b"-1")]), file(b"a", 0, b""), end()], Some("PAX size")),
        ("PAX size, huge", vec![pax(&[("size", b"99999999999999999999")]), file(b"a", 0, b""), end()], Some("PAX size")),
        ("PAX size beyond the end", vec![pax(&[("size", b"9000000000")]), file(b"a", 0, b""), end()], Some("cut off")),
        (
            "two extended headers",
            vec![pax(&[("path", b"x")]), pax(&[("path", b"y")]), file(b"a", 0, b""), end()],
            Some("two extended"),
        ),
        (
            "names that differ",
            vec![pax(&[("path", b"x")]), gnu_name(b'L', b"y"), file(b"a", 0, b""), end()],
            Some("names differ"),
        ),
        ("global header", vec![extended(b'g', &pax_body(&[("comment", b"hi")])), file(b"a", 1, b"x"), end()], None),
        (
            "global name",
            vec![extended(b'g', &pax_body(&[("path", b"hi")])), file(b"a", 1, b"x"), end()],
            Some("one name or size"),
        ),
        ("extended header and nothing", vec![pax(&[("path", b"x")]), end()], Some("followed by nothing")),
        ("PAX path", vec![pax(&[("path", &long)]), file(b"a", 1, b"x"), file(b"b", 1, b"x"), end()], None),
        ("NUL in a PAX path", vec![pax(&[("path", b"a\0b")]), file(b"a", 0, b""), end()], Some("NUL")),
        ("PAX record too long", vec![extended(b'x', b"99 path=x\n"), file(b"a", 0, b""), end()], Some("does not end")),
        ("PAX record too short", vec![extended(b'x', b"4 path=x\n"), file(b"a", 0, b""), end()], Some("does not end")),
        ("PAX record without =", vec![extended(b'x', b"7 path\n"), file(b"a", 0, b""), end()], Some("no `=`")),
        ("PAX record without length", vec![extended(b'x', b"path=x\n"), file(b"a", 0, b""), end()], Some("no length")),
        ("PAX of 2 MiB", vec![extended(b'x', &vec![b'1'; 2 << 20]), file(b"a", 0, b""), end()], Some("larger than 1 MiB")),
        ("PAX header said to be of 8 GiB", vec![head(b"x", b'x', (8 << 30) - 1)], Some("larger than 1 MiB")),
        ("file with a slash", vec![file(b"a/", 3, b"abc"), end()], Some("ends in a slash")),
        ("old directory", vec![head(b"d/", 0, 0), end()], None),
        ("old file", vec![head(b"f", 0, 3), padded(b"abc"), end()], None),
        ("contiguous file", vec![head(b"f", b'7', 3), padded(b"abc"), end()], None),
        ("unknown type", vec![head(b"f", b'Z', 0), end()], Some("type `Z`")),
        // C56: the end.
        ("no end", vec![file(b"a", 3, b"abc")], None),
        ("one block of zeros", vec![file(b"a", 3, b"abc"), vec![0; 512]], None),
        ("one block of zeros, then more", vec![vec![0; 512], file(b"a", 0, b"")], Some("single block")),
        ("cut in a header", vec![file(b"a", 0, b"")[..300].to_vec()], Some("cut off")),
        ("cut in a file", vec![file(b"a", 1000, b"abc")], Some("cut off")),
        ("text after the end", vec![file(b"a", 0, b""), end(), b"more".to_vec()], None),
        ("not a tar", vec![vec![b'x'; 1024]], Some("no tar header")),
        ("empty", vec![end()], None),
    ];
    // What's refused needs no second opinion; Python reads some of it for ever.
    let archives: Vec<_> =
        rows.iter().map(|(_, parts, refused)| if refused.is_none() { parts.concat() } else { end() }).collect();
    for ((name, parts, refused), python) in rows.iter().zip(pythons(&archives)) {
        match (refused, list(&parts.concat())) {
            (None, Ok(ours)) => assert_eq!(Some(ours), python, "{name}"),
            (Some(reason), Err(e)) => assert!(e.to_string().contains(reason), "{name}: {e}"),
            (_, other) => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn the_last_padding_may_be_missing() {
    // As Go has it; Python refuses.
    for padding in [0, 1, 508] {
        assert_eq!(list(&[head(b"a", b'0', 3), b"abc".to_vec(), vec![0; padding]].concat()).unwrap(), ["a 3"], "{padding}");
    }
}

#[test]
fn numbers_are_read_in_every_spelling() {
    for (field, expected) in [
        (&b"0000644\0"[..], Some(0o644)),
        (b"   644 \0", Some(0o644)),
        (b"644     ", Some(0o644)),
        (b"\0\0\0\0\0\0\0\0", Some(0)),
        (b"\x00000644\0", None),
        (b"        ", Some(0)),
        (b"77777777", Some(0o77_777_777)),
        (b"0000648\0", None),
        (b"12\x0034\0\0\0", None),
        (b"-1\0\0\0\0\0\0", None),
        (b"\x80\0\0\0\0\0\x01\0", Some(256)),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
        (b"\xff\xff\xff\xff\xff\xff\xff\xfb", Some(-5)),
        (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX)),
        (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
    ] {
        assert_eq!(header::number(field), expected, "{}", field.escape_ascii());
    }
}

#[test]
fn times_are_read_to_the_nanosecond() {
    for (text, expected) in [
        ("1.5", Some((1, 500_000_000))),
        ("-1.5", Some((-2, 500_000_000))),
        ("-3", Some((-3, 0))),
        ("-0.25", Some((-1, 750_000_000))),
        ("12345678901.1234567899", Some((12_345_678_901, 123_456_789))),
        ("9223372036854775807", Some((i64::MAX, 0))),
        ("9223372036854775808", None),
        ("", None),
        ("1.x", None),
        ("1e3", None),
    ] {
        assert_eq!(pax::time(text.as_bytes()), expected.map(|(secs, nanos)| Timestamp { secs, nanos }), "{text}");
    }
}

#[test]
fn what_is_written_is_read_again() {
    let mut entries = Vec::new();
    for length in [1, 99, 100, 101, 155, 156, 255, 256, 257, 300, 5000] {
        for slash in [None, Some(50), Some(150), Some(154), Some(155), Some(156)] {
            let mut path = vec![b'p'; length];
            if let Some(at) = slash.filter(|at| at + 1 < length) {
                path[at] = b'/';
            }
            entries.push(Entry::file(path, 0));
        }
    }
    let link = |kind, link: &[u8]| Entry { kind, link: link.to_vec(), ..Entry::file("l", 0) };
    entries.extend([
        Entry { uid: 0o7777777, gid: 0o10000000, ..Entry::file("ids", 3) },
        Entry { uid: u32::MAX - 1, mtime: Timestamp::from_secs(-1), ..Entry::file("f", 513) },
        Entry { mtime: Timestamp::from_secs(0o100000000000), mode: 0o7777, ..Entry::dir("d/") },
        Entry { kind: EntryKind::Node(Kind::Block), rdev: (u32::MAX, 0o10000000), ..Entry::file("b", 0) },
        link(EntryKind::HardLink, &[b'x'; 101]),
        link(EntryKind::Node(Kind::Symlink), b"\xff\xfe"),
        Entry {
            xattrs: Xattrs::from([(b"user.a".to_vec(), b"\0=\n".to_vec()), (b"user.b".to_vec(), vec![7; 998])]),
            ..Entry::file("\u{fc}", 1)
        },
    ]);
    let mut writer = Writer::new(Vec::new());
    for entry in &entries {
        writer.append(entry, &vec![b'c'; entry.size as usize]).unwrap();
    }
    let (tar, size) = writer.finish().unwrap();
    assert_eq!(tar.len() as u64, size);
    let mut reader = Reader::new(&tar[..]);
    for entry in &entries {
        assert_eq!(reader.next_entry().unwrap().as_ref(), Some(entry));
        let mut content = Vec::new();
        reader.read_to_end(&mut content).unwrap();
        assert_eq!(content.len() as u64, entry.size);
    }
    assert!(reader.next_entry().unwrap().is_none());
    assert!(reader.drain().unwrap());
}

#[test]
fn an_entry_of_another_length_is_not_written() {
    let mut writer = Writer::new(Vec::new());
    assert!(matches!(writer.append(&Entry::file("a", 1), b"ab"), Err(WriteError::Size { .. })));
    let mut writer = Writer::new(Vec::new());
    writer.start(&Entry::file("a", 1)).unwrap();
    assert!(matches!(writer.finish(), Err(WriteError::Size { expected: 1, got: 0, .. })));
    let socket = Entry { kind: EntryKind::Node(Kind::Socket), ..Entry::file("s", 0) };
    assert!(matches!(Writer::new(Vec::new()).start(&socket), Err(WriteError::Unfit { .. })));
}

#[test]
fn sparse_files_of_every_format_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let sh =
        |script: &str| assert!(Command::new("sh").args(["-euc", script]).current_dir(dir.path()).status().unwrap().success());
    sh(
        "truncate -s 40M f; for i in $(seq 0 60); do printf data$i | dd of=f bs=1 seek=$((i * 500000 + 7)) conv=notrunc 2>/dev/null; done; echo after >g",
    );
    let wanted = std::fs::read(dir.path().join("f")).unwrap();
    for format in ["gnu", "pax --sparse-version=0.0", "pax --sparse-version=0.1", "pax --sparse-version=1.0"] {
        sh(&format!("tar --format={format} --sparse -cf t f g"));
        let tar = std::fs::read(dir.path().join("t")).unwrap();
        let mut reader = Reader::new(&tar[..]);
        let entry = reader.next_entry().unwrap().unwrap();
        assert_eq!((&entry.path[..], entry.size), (&b"f"[..], wanted.len() as u64), "{format}");
        let mut found = vec![0; wanted.len()];
        for region in entry.sparse.unwrap() {
            let start = region.offset as usize;
            reader.read_exact(&mut found[start..start + region.length as usize]).unwrap();
        }
        assert!(found == wanted, "{format}");
        let next = reader.next_entry().unwrap().unwrap();
        assert_eq!((&next.path[..], next.size), (&b"g"[..], 6), "{format}");
    }
}

#[test]
fn sparse_maps_that_lie_are_refused() {
    let sparse = |map: &str, size: &str, stored: &[u8]| {
        let records: [(&str, &[u8]); 4] = [
            ("GNU.sparse.major", b"0"),
            ("GNU.sparse.minor", b"1"),
            ("GNU.sparse.size", size.as_bytes()),
            ("GNU.sparse.map", map.as_bytes()),
        ];
        [pax(&records), file(b"f", stored.len() as u64, stored), end()].concat()
    };
    let with_data_map = |map: &str| {
        let records: [(&str, &[u8]); 3] =
            [("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"10")];
        [pax(&records), file(b"f", padded(map.as_bytes()).len() as u64, map.as_bytes()), end()].concat()
    };
    for (name, tar, reason) in [
        ("overlap", sparse("0,3,2,2", "10", b"abcde"), "overlap"),
        ("backwards", sparse("5,2,0,2", "10", b"abcd"), "overlap"),
        ("beyond the end", sparse("8,4", "10", b"abcd"), "beyond its end"),
        ("overflow", sparse("9223372036854775807,9223372036854775807,1,1", "10", b""), "overlap"),
        ("other length", sparse("0,2", "10", b"abcd"), "not what is stored"),
        ("odd map", sparse("0,2,3", "10", b"ab"), "not made of numbers"),
        ("not numbers", sparse("0,-2", "10", b"ab"), "not made of numbers"),
        ("no size", sparse("0,2", "", b"ab"), "no size"),
        ("a billion regions", with_data_map("1000000000\n0\n1\n"), "too large or cut off"),
        ("no count", with_data_map(&"9".repeat(511)), "not made of numbers"),
        (
            "unknown format",
            [pax(&[("GNU.sparse.major", b"7"), ("GNU.sparse.minor", b"0")]), file(b"f", 0, b"")].concat(),
            "not known",
        ),
    ] {
        let error = list(&tar).unwrap_err().to_string();
        assert!(error.contains(reason), "{name}: {error}");
    }
    assert_eq!(list(&sparse("0,2,8,2", "10", b"abcd")).unwrap(), ["f 10"]);
}

#[test]
fn damaged_archives_never_panic() {
    let mut writer = Writer::new(Vec::new());
    writer
        .append(&Entry { xattrs: Xattrs::from([(b"user.a".to_vec(), vec![1; 50])]), ..Entry::file(vec![b'n'; 300], 5) }, b"hello")
        .unwrap();
    writer.append(&Entry::dir("d/"), b"").unwrap();
    let (tar, _) = writer.finish().unwrap();
    for at in 0..tar.len() {
        let _ = list(&tar[..at]);
        for value in [0, 0xff, tar[at] ^ 1, b'9'] {
            let mut damaged = tar.clone();
            damaged[at] = value;
            let _ = list(&damaged);
        }
    }
}
