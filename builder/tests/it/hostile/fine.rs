//! What well-meant programs write (C60): odd, and never refused.

use super::craft::{Item, dir, empty, extended, file, item, link, raw, records, symlink, tar};
use super::{Row, Way, tree};

pub(super) fn rows() -> Vec<Row> {
    let yes = |name: &str, entries: &[Item], lines: &[&str]| tree(format!("C60 {name}"), tar(entries), lines);
    let gnu = |entry: Item| entry.patched(257, b"ustar  \0");
    let mut rows = vec![
        yes(
            "kaniko's absolute hard links",
            &[file("/n/a"), link("/n/b", "/n/a")],
            &["n d m755", "n/a f =new", "n/b f =new %n/a"],
        ),
        yes(
            "./ before every name",
            &[dir("./"), dir("./n/"), file("./n/a"), link("./n/b", "./n/a")],
            &["n d m711", "n/a f", "n/b f =new"],
        ),
        yes(
            "a file's mode with its type in it",
            &[file("x").mode(0o100_644), dir("n").mode(0o40_755)],
            &["x f m644", "n d m755"],
        ),
        yes("directories without a slash", &[item(b'5', "n").mode(0o700)], &["n d m700"]),
        yes("directories with two slashes", &[item(b'5', "n//").mode(0o700)], &["n d m700"]),
        yes("no directories at all", &[file("n/m/x")], &["n d m755", "n/m d m755", "n/m/x f"]),
        yes(
            "the same directory thrice",
            &[dir("n"), file("n/a"), dir("n/"), file("n/b"), dir("./n")],
            &["n d m711", "n/a f", "n/b f"],
        ),
        yes("a link over a folder that the base has", &[symlink("usr/lib", "../d")], &["-usr/lib", "usr/lib l >../d"]),
        yes(
            "files through the link /lib of a merged /usr",
            &[file("lib/n"), link("lib/m", "lib/n")],
            &["usr/lib/n f =new", "usr/lib/m f =new"],
        ),
        yes(
            "a hard link before a change of its file",
            &[file("a"), link("b", "a"), file("a").data("other")],
            &["a f =other", "b f =new"],
        ),
        yes(
            "a hard link with its file's size and mode",
            &[file("a").mode(0o755), link("b", "a").announced(3).mode(0)],
            &["a f m755", "b f m755"],
        ),
        yes("a chain of hard links", &[file("a"), link("b", "a"), link("c", "b")], &["a f", "b f =new", "c f =new"]),
        yes("a hard link to a link", &[symlink("a", "nowhere"), link("b", "a")], &["a l >nowhere", "b l >nowhere"]),
        yes("a hard link to what the base has", &[link("n", "usr/lib/so")], &["n f =library", "usr/lib/so f =library"]),
        yes("GNU's dialect", &[gnu(file("x")), gnu(dir("n")), gnu(symlink("l", "x"))], &["x f", "n d", "l l >x"]),
        yes("no magic", &[file("x").patched(257, &[0; 8])], &["x f =new"]),
        yes("a magic without version", &[file("x").patched(257, b"ustar\0\0\0")], &["x f =new"]),
        yes("names of users", &[file("x").patched(265, b"www-data").patched(297, b"users")], &["x f o0:0"]),
        yes("a checksum with a blank", &[file("x")], &["x f =new"]),
        yes("owners of blanks", &[file("x").patched(108, b"       \0").patched(116, b"        ")], &["x f o0:0"]),
        yes("device numbers of NULs", &[file("x").patched(329, &[0; 16])], &["x f"]),
        yes(
            "a global header of git archive",
            &[raw(extended(b'g', records(&[("comment", b"0123456789012345678901234567890123456789")])).bytes()), file("x")],
            &["x f"],
        ),
        yes(
            "records of libarchive and star",
            &[file("x")
                .pax("LIBARCHIVE.creationtime", "1")
                .pax("SCHILY.ino", "5")
                .pax("SCHILY.nlink", "2")
                .pax("ctime", "1")
                .pax("atime", "1.5")],
            &["x f =new"],
        ),
        yes(
            "records with odd values",
            &[file("x").pax("hdrcharset", "ISO-IR 10646 2000 UTF-8").pax("comment", b"\0\xff").pax("gname", "")],
            &["x f"],
        ),
        yes("extended attributes of libarchive", &[file("x").pax("LIBARCHIVE.xattr.user.a", "YQ==")], &["x f =new"]),
        yes("Windows's attributes", &[file("x").pax("MSWINDOWS.fileattr", "32").pax("MSWINDOWS.rawsd", "AQ==")], &["x f =new"]),
        yes(
            "an extended header for a folder and a link",
            &[dir("n").pax("mtime", "5.5"), symlink("l", "n").pax("mtime", "6")],
            &["n d @5", "l l @6"],
        ),
        yes(
            "a PAX path with a slash for a folder",
            &[item(b'5', "short").pax("path", "n/m/").mode(0o755)],
            &["n d m755", "n/m d m755"],
        ),
        yes("a PAX size that is right", &[file("x").pax("size", "3")], &["x f =new"]),
        yes("a PAX size of a hard link that is 0", &[file("x"), link("y", "x").pax("size", "0")], &["x f", "y f =new"]),
        yes(
            "etc/hosts, resolv.conf and hostname",
            &[file("etc/hosts"), file("etc/resolv.conf"), empty("etc/hostname")],
            &["etc/hosts f =new", "etc/resolv.conf f =new", "etc/hostname f ="],
        ),
        yes(
            "etc/resolv.conf as a link out",
            &[symlink("etc/resolv.conf", "/run/systemd/resolve/stub-resolv.conf")],
            &["etc/resolv.conf l >/run/systemd/resolve/stub-resolv.conf"],
        ),
        yes(
            "dev with files",
            &[dir("dev/"), file("dev/core"), symlink("dev/fd", "/proc/self/fd")],
            &["dev d m711", "dev/core f =new", "dev/fd l >/proc/self/fd"],
        ),
        yes("proc and sys of other modes", &[dir("proc").mode(0o555), dir("sys").mode(0o555)], &["proc d m555", "sys d m555"]),
        yes(
            "sticky and set-id folders",
            &[dir("t").mode(0o1777), dir("g").mode(0o2775).owner(0, 50)],
            &["t d m1777", "g d m2775 o0:50"],
        ),
        yes("a program with set-id bits of a user", &[file("x").mode(0o4711).owner(33, 34)], &["x f m4711 o33:34"]),
        yes("a whiteout, then a folder of its name", &[empty(".wh.d"), dir("d"), file("d/n")], &["-d", "d d m711", "d/n f"]),
        yes("many small files", &(0..300).map(|i| file(format!("m/{i}"))).collect::<Vec<_>>(), &[]),
        yes(
            "a hundred hard links",
            &(0..100).map(|i| if i == 0 { file("h0") } else { link(format!("h{i}"), "h0") }).collect::<Vec<_>>(),
            &[],
        ),
        yes("an archive in the archive", &[file("x").data(tar(&[file("../kiln-escaped")]))], &["x f"]),
    ];
    for row in &mut rows {
        let extra = match &row.name[4..] {
            "many small files" => (0..300).map(|i| format!("m/{i} f =new")).chain(["m d m755".to_owned()]).collect(),
            "a hundred hard links" => (0..100).map(|i| format!("h{i} f =new")).collect(),
            _ => Vec::new(),
        };
        if let super::Outcome::Tree(lines) = &mut row.outcome {
            lines.extend(extra);
        }
    }
    let added = |name: &str, entries: &[Item], lines: &[&str]| tree(format!("C60 {name}"), tar(entries), lines).by(Way::Add);
    rows.extend([
        added(
            "./ before every name",
            &[dir("./"), dir("./n/"), file("./n/a"), link("./n/b", "./n/a")],
            &["dest/n d m711", "dest/n/a f", "dest/n/b f =new"],
        ),
        added(
            "absolute names and hard links",
            &[file("/n/a"), link("/n/b", "/n/a")],
            &["dest/n d m755", "dest/n/a f", "dest/n/b f"],
        ),
        added(
            "owners and modes",
            &[file("x").owner(5, 6).mode(0o4755), dir("n").mode(0o1777)],
            &["dest/x f m4755 o5:6", "dest/n d m1777"],
        ),
        added(
            "through a link of the archive",
            &[symlink("l", "n"), dir("n"), file("l/x")],
            &["dest/l l >n", "dest/n d m711", "dest/n/x f"],
        ),
        added("a hard link to a link", &[symlink("a", "nowhere"), link("b", "a")], &["dest/a l >nowhere", "dest/b l >nowhere"]),
        added("times before 1970", &[file("x").at(-5)], &["dest/x f @-5"]),
        added("an attribute", &[file("x").xattr("user.a", "b").xattr("security.selinux", "no")], &["dest/x f x:user.a=b"]),
    ]);
    rows
}
