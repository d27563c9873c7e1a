//! Thousands of generated archives: what this reader lists is what Python, GNU tar and busybox list, or it refuses.
//!
//! The archives say one thing in several ways (a size in the header, in a PAX record, in a sparse map) and put whole headers where
//! content belongs, so that a reader that goes one block astray lists another file. `KILN_TEST_TARS` says how many there are.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use super::super::header::{self, Block};
use super::super::{EntryKind, Reader, TarError};
use super::{extended, gnu_name, head, padded, pax_body};
use crate::rootdir::Kind;

/// Numbers that look random and are the same in every run (splitmix64).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }

    fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }
}

/// An archive, and which readers have a say: busybox knows neither PAX records nor sparse files.
struct Made {
    bytes: Vec<u8>,
    /// Where headers begin.
    heads: Vec<usize>,
    for_busybox: bool,
}

const NAMES: [&[u8]; 12] = [
    b"a",
    b"d/b",
    b"d/",
    b"./c",
    b"x y",
    b"d//e",
    b"d/./f",
    b"\xc3\xa4",
    b"g\xff",
    b".hidden",
    b"nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn",
    b"nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn",
];

fn name(dice: &mut Dice) -> Vec<u8> {
    let mut name = dice.pick(&NAMES).to_vec();
    if dice.chance(10) {
        name = [&b"p".repeat(1 + dice.below(200))[..], b"/", &name].concat();
    }
    name
}

/// A header for `size` bytes in one of the three dialects, its numbers in one of their spellings.
fn header(dice: &mut Dice, kind: u8, name: &[u8], size: u64) -> Vec<u8> {
    let short = &name[..name.len().min(100)];
    let mut block = Block(head(short, kind, size).try_into().expect("a block"));
    match dice.below(4) {
        0 => block.field_mut(header::MAGIC).copy_from_slice(b"ustar  \0"),
        1 => block.field_mut(header::MAGIC).fill(0),
        // A name in two parts.
        2 if name.len() < 90 && dice.chance(20) => block.field_mut(header::PREFIX)[..3].copy_from_slice(b"pre"),
        _ => {}
    }
    let spelled = match dice.below(12) {
        0 => format!("{size:>11o} ").into_bytes(),
        1 => format!("{size:o}").into_bytes(),
        2 => format!("{size:012o}").into_bytes(),
        3 => [&[0x80, 0, 0, 0][..], &size.to_be_bytes()].concat(),
        4 => format!("   {size:o} \0").into_bytes(),
        _ => format!("{size:011o}\0").into_bytes(),
    };
    block.field_mut(header::SIZE).fill(0);
    block.field_mut(header::SIZE)[..spelled.len()].copy_from_slice(&spelled);
    if matches!(kind, b'1' | b'2') {
        let target = dice.pick(&[&b"a"[..], b"d/b", b"t t", b"../x", b"n\xff"]);
        block.field_mut(header::LINK)[..target.len()].copy_from_slice(target);
    }
    block.seal();
    block.0.to_vec()
}

/// Content that is a file's header if anyone takes it for one.
fn content(dice: &mut Dice) -> Vec<u8> {
    match dice.below(5) {
        0 => Vec::new(),
        1 => vec![b'c'; 1 + dice.below(1500)],
        2 => [head(b"smuggled", b'0', 3), padded(b"abc")].concat(),
        3 => [head(b"smuggled", b'0', 512), head(b"deeper", b'5', 0)].concat(),
        _ => [vec![0; 512], head(b"smuggled", b'2', 0)].concat(),
    }
}

impl Made {
    fn header(&mut self, bytes: &[u8]) {
        self.heads.push(self.bytes.len());
        self.bytes.extend_from_slice(bytes);
    }

    fn extension(&mut self, kind: u8, body: &[u8]) {
        self.header(&extended(kind, body));
    }

    /// What may stand before an entry whose content has `size` bytes; says whether the size is said there.
    fn extensions(&mut self, dice: &mut Dice, size: u64) -> bool {
        let mut said = false;
        for _ in 0..[0, 0, 0, 0, 1, 1, 1, 1, 2, 3][dice.below(10)] {
            match dice.below(8) {
                0 => {
                    self.header(&gnu_name(b'L', &[&b"l".repeat(dice.below(300))[..], b"/", &name(dice)].concat()));
                }
                1 => {
                    // busybox shows it for a file, too.
                    self.for_busybox = false;
                    self.header(&gnu_name(b'K', &b"k".repeat(1 + dice.below(300))));
                }
                2 => {
                    let records: [&[(&str, &[u8])]; 4] = [
                        &[("comment", b"hello")],
                        &[("mtime", b"5.25"), ("uid", b"7")],
                        &[("path", b"global")],
                        &[("size", b"512")],
                    ];
                    let records = records[dice.below(6).saturating_sub(2)];
                    self.extension(b'g', &pax_body(records));
                }
                _ => said |= self.records(dice, size),
            }
        }
        said
    }

    /// A PAX header; says whether it holds the right size.
    fn records(&mut self, dice: &mut Dice, size: u64) -> bool {
        let (right, mut said) = (size.to_string(), false);
        let mut records: Vec<(&str, Vec<u8>)> = Vec::new();
        for _ in 0..1 + dice.below(3) {
            let record = match dice.below(14) {
                0..=3 => {
                    said = true;
                    ("size", right.clone().into_bytes())
                }
                4 if dice.chance(40) => {
                    ("size", dice.pick(&["0", "1", "512", "1024", "007", "+5", " 5", "1_0", "5 ", "-1", "", "0x10"]).into())
                }
                5..=6 => ("path", name(dice)),
                7 => ("linkpath", name(dice)),
                8 => ("mtime", dice.pick(&["1", "-1.5", "1e3", "", "99999999"]).into()),
                9 => ("uid", dice.pick(&["0", "4294967294", "-1", "x"]).into()),
                10 => ("hdrcharset", b"BINARY".to_vec()),
                11 => ("SCHILY.xattr.user.a", b"b\0=\n".to_vec()),
                12 if dice.chance(10) => ("path", Vec::new()),
                _ => ("LIBARCHIVE.creationtime", b"5".to_vec()),
            };
            records.push(record);
        }
        self.for_busybox &= records.iter().all(|(key, _)| !matches!(*key, "size" | "path" | "linkpath"));
        let records: Vec<(&str, &[u8])> = records.iter().map(|(key, value)| (*key, &value[..])).collect();
        said &= records.iter().rev().find(|(key, _)| *key == "size").is_some_and(|(_, value)| *value == right.as_bytes());
        self.extension(b'x', &pax_body(&records));
        said
    }

    fn sparse(&mut self, dice: &mut Dice) {
        self.for_busybox = false;
        let regions: Vec<(u64, u64)> = (0..dice.below(4) as u64).map(|i| (i * 4096, 512)).collect();
        let size = 20_000u64;
        let flat: Vec<String> = regions.iter().flat_map(|(o, l)| [o.to_string(), l.to_string()]).collect();
        let mut data = Vec::new();
        for _ in &regions {
            data.extend_from_slice(&head(b"smuggled", b'0', 0));
        }
        let (size, count) = (size.to_string(), regions.len().to_string());
        let mut records: Vec<(&str, &[u8])> = Vec::new();
        let (map, map_block);
        match dice.below(3) {
            0 => {
                map_block = padded(format!("{count}\n{}", flat.iter().fold(String::new(), |s, n| s + n + "\n")).as_bytes());
                data = [map_block, data].concat();
                records.extend([("GNU.sparse.major", &b"1"[..]), ("GNU.sparse.minor", b"0")]);
                records.extend([("GNU.sparse.name", &b"sparse"[..]), ("GNU.sparse.realsize", size.as_bytes())]);
            }
            1 => {
                map = flat.join(",");
                records.extend([("GNU.sparse.size", size.as_bytes()), ("GNU.sparse.numblocks", count.as_bytes())]);
                records.extend([("GNU.sparse.name", &b"sparse"[..]), ("GNU.sparse.map", map.as_bytes())]);
            }
            _ => {
                records.extend([("GNU.sparse.size", size.as_bytes()), ("GNU.sparse.numblocks", count.as_bytes())]);
                for pair in flat.chunks(2) {
                    records.extend([("GNU.sparse.offset", pair[0].as_bytes()), ("GNU.sparse.numbytes", pair[1].as_bytes())]);
                }
            }
        }
        self.extension(b'x', &pax_body(&records));
        self.header(&head(b"GNUSparseFile.0/s", b'0', data.len() as u64));
        self.bytes.extend_from_slice(&padded(&data));
    }

    fn entry(&mut self, dice: &mut Dice) {
        if dice.chance(5) {
            return self.sparse(dice);
        }
        let name = name(dice);
        let kind = match dice.below(20) {
            0 => 0,
            1 => b'1',
            2 => b'2',
            3 => b"346"[dice.below(3)],
            4 | 5 => b'5',
            6 => b'7',
            7 if dice.chance(30) => b"SDMVNX9Z"[dice.below(8)],
            _ => b'0',
        };
        let name = match (kind, name.ends_with(b"/")) {
            (b'5', false) => [&name[..], b"/"].concat(),
            (b'0', true) if dice.chance(90) => name[..name.len() - 1].to_vec(),
            _ => name,
        };
        // busybox knows no directories that are older than their type.
        self.for_busybox &= !(kind == 0 && name.ends_with(b"/"));
        let is_file = matches!(kind, 0 | b'0' | b'7') && !name.ends_with(b"/");
        let content = if is_file || dice.chance(2) { content(dice) } else { Vec::new() };
        let size = content.len() as u64;
        let said = self.extensions(dice, size);
        let announced = match dice.below(10) {
            0 | 1 if said => 0,
            2 | 3 if said => 512 * dice.below(4) as u64,
            4 if !is_file && dice.chance(20) => 512,
            _ => size,
        };
        let header = header(dice, kind, &name, announced);
        self.header(&header);
        self.bytes.extend_from_slice(&padded(&content));
    }

    fn end(&mut self, dice: &mut Dice) {
        match dice.below(10) {
            0 => {}
            1 => self.bytes.extend_from_slice(&[0; 512]),
            2 => self.bytes.extend_from_slice(&[&[0; 1024][..], b"more"].concat()),
            3 => self.bytes.extend_from_slice(&[&[0; 512][..], &head(b"late", b'0', 0), &[0; 1024]].concat()),
            4 => self.bytes.resize(self.bytes.len().next_multiple_of(10_240), 0),
            _ => self.bytes.extend_from_slice(&[0; 1024]),
        }
    }

    /// Changes a byte of a header, whose checksum is right again afterwards in most cases; or cuts the end off.
    fn damage(&mut self, dice: &mut Dice) {
        if dice.chance(15) {
            return self.bytes.truncate(dice.below(self.bytes.len()));
        }
        let start = self.heads[dice.below(self.heads.len())];
        let at = match dice.below(4) {
            0 => header::SIZE.0 + dice.below(12),
            1 => header::TYPE,
            2 => dice.below(512),
            _ => header::MAGIC.0 + dice.below(8),
        };
        self.bytes[start + at] = match dice.below(4) {
            0 => 0,
            1 => b'0' + dice.below(10) as u8,
            2 => self.bytes[start + at] ^ (1 << dice.below(8)),
            _ => dice.next() as u8,
        };
        if dice.chance(80) {
            let mut block = Block(self.bytes[start..start + 512].try_into().expect("a block"));
            block.seal();
            self.bytes[start..start + 512].copy_from_slice(&block.0);
        }
        self.for_busybox &= at != header::TYPE;
    }
}

fn made(seed: u64) -> Made {
    let mut dice = Dice(seed);
    let mut made = Made { bytes: Vec::new(), heads: Vec::new(), for_busybox: true };
    for _ in 0..1 + dice.below(5) {
        made.entry(&mut dice);
    }
    made.end(&mut dice);
    if dice.chance(40) {
        made.damage(&mut dice);
    }
    made
}

/// An entry as every reader can tell it: type, name without slashes at its end, size of a file, target of a link.
fn line(kind: &str, name: &[u8], size: u64, link: &[u8]) -> String {
    let end = name.iter().rposition(|b| *b != b'/').map_or(0, |at| at + 1);
    format!("{kind}\t{}\t{size}\t{}", name[..end].escape_ascii(), link.escape_ascii())
}

fn ours(tar: &[u8]) -> Result<Vec<String>, TarError> {
    let mut reader = Reader::new(tar);
    let mut lines = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let kind = match entry.kind {
            EntryKind::HardLink => "h",
            EntryKind::Node(Kind::Dir) => "d",
            EntryKind::Node(Kind::Symlink) => "l",
            EntryKind::Node(Kind::Char) => "c",
            EntryKind::Node(Kind::Block) => "b",
            EntryKind::Node(Kind::Fifo) => "p",
            EntryKind::Node(_) => "-",
        };
        lines.push(line(kind, &entry.path, entry.size, &entry.link));
    }
    Ok(lines)
}

/// What Python says of all `*.tar` in the folder: a list in `NAME.python`, nothing where it fails.
const PYTHON: &str = r"
import os, sys, tarfile
for f in sorted(os.listdir('.')):
    if not f.endswith('.tar'): continue
    try:
        lines = []
        for m in tarfile.open(f, 'r:', encoding='utf-8', errors='surrogateescape'):
            kind = 'd' if m.isdir() else 'h' if m.islnk() else 'l' if m.issym() else 'c' if m.ischr() else 'b' if m.isblk() else 'p' if m.isfifo() else '-'
            name, link = (t.encode('utf-8', 'surrogateescape') for t in (m.name, m.linkname if kind in 'hl' else ''))
            lines.append(b'%s %d %d %d\n' % (kind.encode(), m.size if kind == '-' else 0, len(name), len(link)) + name + link)
        open(f[:-4] + '.python', 'wb').write(b''.join(lines))
    except Exception as e:
        pass
";

/// The same by GNU tar and busybox; the second only where `NAME.bb` says that it has a say.
const SHELL: &str = r"
export LC_ALL=C TZ=UTC
for f in *.tar; do
    n=${f%.tar}
    tar --numeric-owner --quoting-style=literal -tvf $f >$n.gnu 2>$n.err &&
        ! grep -qv 'Ignoring unknown extended header keyword' $n.err || mv $n.gnu $n.failed
    test -e $n.bb || continue
    busybox tar -tvf $f >$n.busybox 2>$n.err && ! grep -q . $n.err || mv $n.busybox $n.failed
done
";

fn pythons(folder: &Path, name: &str) -> Option<Vec<String>> {
    let text = std::fs::read(folder.join(name).with_extension("python")).ok()?;
    let (mut rest, mut lines) = (&text[..], Vec::new());
    while let Some(end) = rest.iter().position(|b| *b == b'\n') {
        let words: Vec<&str> = std::str::from_utf8(&rest[..end]).expect("numbers").split(' ').collect();
        let number = |at: usize| words[at].parse::<usize>().expect("a number");
        let (name, after) = rest[end + 1..].split_at(number(2));
        let (link, after) = after.split_at(number(3));
        lines.push(line(words[0], name, number(1) as u64, link));
        rest = after;
    }
    Some(lines)
}

/// Reads `-rw-r--r-- 0/0  3 1970-01-01 00:00 NAME`, with the target of a link after the name.
fn listed(folder: &Path, name: &str, reader: &str) -> Option<Vec<String>> {
    let text = std::fs::read(folder.join(name).with_extension(reader)).ok()?;
    let mut lines = Vec::new();
    for row in text.split(|b| *b == b'\n').filter(|row| !row.is_empty()) {
        let mut rest = row;
        let mut words = Vec::new();
        for _ in 0..5 {
            let end = rest.iter().position(|b| *b == b' ').unwrap_or(rest.len());
            words.push(String::from_utf8_lossy(&rest[..end]).into_owned());
            let next = rest[end..].iter().position(|b| *b != b' ').map_or(rest.len(), |n| end + n);
            // Exactly one blank before the name, which may begin with one.
            rest = if words.len() == 5 { rest.get(end + 1..).unwrap_or_default() } else { &rest[next..] };
        }
        let kind = &words[0][..1];
        let find = |text: &[u8]| rest.windows(text.len()).position(|w| w == text).map(|at| (at, at + text.len()));
        let cut = match (kind, reader) {
            ("h", "gnu") => find(b" link to "),
            ("l", _) | (_, "busybox") => find(b" -> "),
            _ => None,
        };
        let (name, link) = cut.map_or((rest, &b""[..]), |(end, start)| (&rest[..end], &rest[start..]));
        let kind = match (reader, kind) {
            // busybox shows a hard link as a file that has a target, GNU tar a contiguous file as such.
            ("busybox", "-") if !link.is_empty() => "h",
            ("gnu", "C") => "-",
            _ => kind,
        };
        let size = if kind == "-" { words[2].parse().unwrap_or(u64::MAX) } else { 0 };
        lines.push(line(kind, name, size, link));
    }
    Some(lines)
}

#[test]
fn generated_archives_are_listed_as_others_list_them() {
    let count: u64 = std::env::var("KILN_TEST_TARS").ok().and_then(|n| n.parse().ok()).unwrap_or(600);
    let (mut accepted, mut wrong, mut told) = (0u64, Vec::new(), [0u64; 3]);
    for batch in (0..count).collect::<Vec<_>>().chunks(500) {
        let folder = tempfile::tempdir().unwrap();
        let mut lists = Vec::new();
        for seed in batch {
            let made = made(*seed);
            // What is refused needs no second opinion; Python reads some of it for ever.
            let Ok(list) = ours(&made.bytes) else { continue };
            let name = format!("{seed:06}");
            std::fs::write(folder.path().join(&name).with_extension("tar"), &made.bytes).unwrap();
            if made.for_busybox {
                std::fs::write(folder.path().join(&name).with_extension("bb"), "").unwrap();
            }
            lists.push((name, list));
        }
        let python = Command::new("python3").args(["-c", PYTHON]).current_dir(folder.path()).status().unwrap();
        let shell = Command::new("sh").args(["-c", SHELL]).current_dir(folder.path()).status().unwrap();
        assert!(python.success() && shell.success());
        accepted += lists.len() as u64;
        for (name, ours) in &lists {
            let readers = [
                ("Python", pythons(folder.path(), name)),
                ("GNU tar", listed(folder.path(), name, "gnu")),
                ("busybox", listed(folder.path(), name, "busybox")),
            ];
            for (at, (reader, theirs)) in readers.iter().enumerate() {
                let Some(theirs) = theirs else { continue };
                told[at] += 1;
                if theirs != ours {
                    let mut text = format!("archive {name}: {reader} lists another\n");
                    let _ = writeln!(text, "ours:\n  {}\ntheirs:\n  {}", ours.join("\n  "), theirs.join("\n  "));
                    wrong.push(text);
                }
            }
        }
    }
    println!("{count} archives, {accepted} read; Python, GNU tar and busybox read {told:?} of these");
    assert!(wrong.is_empty(), "{} of {accepted}:\n{}", wrong.len(), wrong[..wrong.len().min(12)].join("\n"));
    assert!(accepted * 5 > count && accepted * 10 < count * 9, "{accepted} of {count} are read: that compares too little");
    assert!(told[0] * 10 > accepted * 8 && told[1] * 10 > accepted * 7, "{told:?} of {accepted}: the others read too few");
}
