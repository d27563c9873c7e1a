//! Attributes of an overlay's (C52), owners (C54), times (C55), capabilities (C58), names of any bytes (C59).

use super::craft::{Item, dir, empty, extended, file, link, open, raw, records, symlink, tar};
use super::{Row, Way, refused, tree};

pub(super) fn rows() -> Vec<Row> {
    [attributes(), owners(), times(), names()].concat()
}

/// What setcap(8) writes, in version 2.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn attributes() -> Vec<Row> {
    let mut rows = Vec::new();
    // C52: what would hide or redirect files if it came to the disk.
    for space in ["trusted", "user"] {
        for (key, value) in [
            ("opaque", "y"),
            ("opaque", "x"),
            ("redirect", "/d"),
            ("whiteout", "y"),
            ("metacopy", ""),
            ("origin", "x"),
            ("impure", "y"),
        ] {
            let key = format!("{space}.overlay.{key}");
            rows.push(tree(format!("C52 {key}={value} of a directory"), tar(&[dir("d").xattr(&key, value)]), &["d d m711 @77"]));
        }
        let key = format!("{space}.overlay.whiteout");
        let hidden = tar(&[empty("d/f").xattr(&key, "y"), dir("d").xattr(&format!("{space}.overlay.opaque"), "x")]);
        rows.push(tree(format!("C52 {key} of an empty file"), hidden, &["d/f f =", "d d m711"]));
    }
    for key in ["user.kiln.owner", "user.kiln.node", "user.kiln.capability", "security.selinux", "security.ima", "trusted.x"] {
        let value = if key.ends_with("node") { "c 1:3" } else { "12:13" };
        let entries = tar(&[empty("x").xattr(key, value), dir("y").xattr(key, value)]);
        rows.push(tree(format!("C52 {key}"), entries, &["x f m644 o0:0 =", "y d m711 o0:0"]));
    }
    let global = [raw(extended(b'g', records(&[("SCHILY.xattr.trusted.overlay.opaque", b"y")])).bytes()), dir("d")];
    rows.push(tree("C52 by a global header", tar(&global), &["d d m711"]));
    // C58: of version 3 with an owner becomes version 2.
    let three = [&[1, 0, 0, 3][..], &CAPABILITY[4..], &[0x92, 0x10, 0, 0]].concat();
    let told = format!("x f x:security.capability={}", CAPABILITY.escape_ascii().to_string().replace(' ', "\\x20"));
    for (name, value) in [("2", &CAPABILITY[..]), ("3", &three)] {
        let entries = tar(&[file("x").mode(0o755).xattr("security.capability", value)]);
        rows.push(tree(format!("C58 a capability of version {name}"), entries, &[&told]));
    }
    let with_user = [file("x").xattr("user.b", "1").xattr("user.a", "\0=\n")];
    rows.push(tree("C58 attributes of users", tar(&with_user), &["x f x:user.a=\\x00=\\n x:user.b=1"]));
    rows
}

fn owners() -> Vec<Row> {
    let mut rows = Vec::new();
    let max = u64::from(u32::MAX);
    for (kind, entry) in [("file", file("x")), ("directory", dir("x")), ("link", symlink("x", "y"))] {
        let no = |name: &str, entry: Item, says| refused(format!("C54 {name} of a {kind}"), tar(&[entry]), says);
        rows.push(no("user -1", entry.clone().owner(max, 0), &["4294967295"]));
        rows.push(no("group -1", entry.clone().owner(0, max), &["4294967295"]));
        rows.push(no("user -1 by PAX", entry.clone().pax("uid", "4294967295"), &["4294967295"]));
        rows.push(no("user 2^32", entry.clone().owner(max + 1, 0), &["32 bits"]));
        rows.push(no("user 2^32 by PAX", entry.clone().pax("uid", "4294967296"), &["32 bits"]));
        rows.push(no("a negative user", entry.clone().owner(u64::MAX, 0), &["32 bits"]));
        rows.push(no("a negative group by PAX", entry.clone().pax("gid", "-1"), &["32 bits"]));
        rows.push(no("a user that is a word", entry.clone().pax("uid", "root"), &["32 bits"]));
        let letter = &kind[..1];
        let word = format!("x {letter} o4294967294:3000000");
        rows.push(tree(format!("C54 large owners of a {kind}"), tar(&[entry.owner(max - 1, 3_000_000)]), &[&word]));
    }
    rows
}

fn times() -> Vec<Row> {
    let yes = |name: &str, entry: Item, line: &str| tree(format!("C55 {name}"), tar(&[entry]), &[line]);
    let no = |name: &str, entry: Item| refused(format!("C55 {name}"), tar(&[entry]), &["refused", "number"]);
    vec![
        yes("before 1970", file("x").at(-3), "x f @-3"),
        yes("before 1970 by PAX", file("x").pax("mtime", "-3.5"), "x f @-4"),
        yes("a directory before 1970", dir("x").at(-3), "x d @-3"),
        yes("after 2038", file("x").at(4_294_967_300), "x f @4294967300"),
        yes("after 2^33", file("x").at(9_000_000_000), "x f @9000000000"),
        yes("nanoseconds", file("x").pax("mtime", "5.123456789"), "x f @5"),
        yes("finer than nanoseconds", file("x").pax("mtime", "5.12345678999"), "x f @5"),
        yes("further than a file system goes", file("x").at(i64::MAX), "x f"),
        yes("further back than a file system goes", file("x").at(i64::MIN), "x f"),
        yes("the last second by PAX", file("x").pax("mtime", "9223372036854775807"), "x f"),
        yes("a link before 1970", symlink("x", "y").at(-3), "x l >y @-3"),
        no("beyond 64 bits", file("x").pax("mtime", "9223372036854775808")),
        no("an exponent", file("x").pax("mtime", "1e9")),
        no("a word", file("x").pax("mtime", "now")),
        no("digits that are none", file("x").patched(136, b"9999999999\0\0")),
    ]
}

fn names() -> Vec<Row> {
    let no = |name: &str, entries: &[Item], says| refused(format!("C59 {name}"), tar(entries), says);
    const NUL: &[&str] = &["NUL"];
    let mut rows = vec![
        no("NUL in a PAX path", &[file("x").pax("path", "a\0b")], NUL),
        no("NUL at the end of a PAX path", &[file("x").pax("path", "a\0")], NUL),
        no("NUL in a PAX link", &[symlink("x", "y").pax("linkpath", "a\0b")], NUL),
        no("NUL in a hard link's", &[link("x", "d/f").pax("linkpath", "d/f\0")], NUL),
        no("NUL in a PAX keyword", &[file("x").pax("com\0ment", "y")], NUL),
        no("a link to nothing", &[symlink("x", "")], &["cannot unpack"]),
        no("a link of 4096 bytes", &[symlink("x", "t".repeat(4096))], &["cannot unpack", "name too long"]),
    ];
    let odd: [&[u8]; 14] = [
        b"n\xff",
        b"\xc3\x28",
        b"\xf0\x9f\x92\xa9",
        b"a b",
        b" ",
        b"x ",
        b"-rf",
        b"*",
        b"back\\slash",
        b"...",
        b".hidden",
        b"\x1b[2J",
        b"\x7f",
        b"e\xcc\x81",
    ];
    for name in odd {
        let shown = name.escape_ascii().to_string().replace(' ', "\\x20");
        let line = format!("{shown} f =new");
        rows.push(tree(format!("C59 {shown}"), tar(&[file(name)]), &[&line]));
        let line = format!("{shown} f =new");
        rows.push(tree(format!("C59 {shown} by PAX"), tar(&[file("x").pax("path", name)]), &[&line]));
    }
    rows.push(tree("C59 a name of two lines", tar(&[file("a\nb")]), &["a\\nb f =new"]).by(Way::Still));
    for length in [99, 100, 101, 155, 156, 254, 255] {
        let name = "n".repeat(length);
        let line = format!("{name} f =new");
        rows.push(tree(format!("C59 a name of {length} bytes"), tar(&[file(&name)]), &[&line]));
    }
    for (names, length) in [(3, 250), (30, 100), (20, 250)] {
        let mut path = String::new();
        let mut lines = Vec::new();
        for _ in 0..names {
            path += &"p".repeat(length);
            lines.push(format!("{path} d m755"));
            path.push('/');
        }
        path.push('f');
        lines.push(format!("{path} f =new"));
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        rows.push(tree(format!("C59 a path of {} bytes", path.len()), tar(&[file(&path)]), &lines));
    }
    let target = "t".repeat(4095);
    rows.push(tree("C59 a link of 4095 bytes", tar(&[symlink("x", &target)]), &[&format!("x l >{target}")]));
    let gnu = [raw(extended(b'L', [&b"g".repeat(200)[..], b"\0"].concat()).bytes()), file("short")];
    rows.push(tree("C59 a long name of GNU's", tar(&gnu), &[&format!("{} f =new", "g".repeat(200))]));
    let both = open(&[raw(extended(b'L', b"one\0").bytes()), file("x").pax("path", "two")]);
    rows.push(refused("C59 two names", both, &["names differ"]));
    rows
}
