//! Names and links that lead out (C40 to C44), for every kind of entry: CVE-2018-15664, CVE-2021-29136, CVE-2021-32760,
//! CVE-2025-11395, CVE-2026-17106, CVE-2026-28406, CVE-2026-33056, CVE-2026-44517, CVE-2026-50163.

use super::craft::{Item, device, dir, empty, fifo, file, item, link, symlink, tar};
use super::{Row, Way, refused, tree};

const OUT: &[&str] = &["leads out of the layer"];

/// One entry of each kind by this name, and the line that tells it; nothing for one that leaves no file.
fn kinds(name: &str) -> Vec<(&'static str, Item, Option<&'static str>)> {
    let (parent, last) = name.trim_end_matches('/').rsplit_once('/').map_or((String::new(), name), |(p, l)| (format!("{p}/"), l));
    let below = |last: String| format!("{parent}{last}");
    let mut kinds = vec![
        ("file", file(name), Some("f m644 o0:0 @0 =new")),
        ("set-id file", file(name).mode(0o4755).owner(5, 6), Some("f m4755 o5:6 =new")),
        ("file with an attribute", file(name).xattr("user.a", "b"), Some("f =new x:user.a=b")),
        ("directory", dir(name), Some("d m711 @77")),
        ("symbolic link", symlink(name, "/etc/passwd"), Some("l >/etc/passwd")),
        ("hard link", link(name, "etc/passwd"), Some("f =root:x:0:0::/:/bin/sh\\n")),
        ("fifo", fifo(name), Some("p m644")),
        ("character device", device(b'3', name, (1, 3)), Some("c 1,3")),
        ("block device", device(b'4', name, (7, 300)), Some("b 7,300")),
    ];
    if !matches!(last, "" | "." | "..") {
        kinds.push(("whiteout", empty(below(format!(".wh.{last}"))), None));
    }
    kinds
}

/// The directories that are made up for an absolute path of the host inside of the image.
fn implied(path: &str) -> Vec<String> {
    let names: Vec<&str> = path.trim_matches('/').split('/').collect();
    (1..=names.len()).map(|n| format!("{} d m755 o0:0 @0", names[..n].join("/"))).collect()
}

pub(super) fn rows(canary: &str) -> Vec<Row> {
    [out_by_name(), through_links(canary), hard_links(canary), roots(canary), replaced(canary), added(canary), copied()].concat()
}

/// C40: names with too many `..`, of each kind.
fn out_by_name() -> Vec<Row> {
    let mut rows = Vec::new();
    for name in ["../kiln-escaped", "d/../../kiln-escaped", "/../kiln-escaped", "./.././../../../../../tmp/kiln-escaped"] {
        for (kind, entry, _) in kinds(name) {
            rows.push(refused(format!("C40 {kind} {name}"), tar(&[entry]), OUT));
        }
    }
    let many = format!("{}kiln-escaped", "../".repeat(4096));
    rows.push(refused("C40 4096 times ..", tar(&[file(many)]), OUT));
    rows.push(refused("C40 only ..", tar(&[dir("..")]), OUT));
    rows.push(refused("C40 .. after a whole way in", tar(&[dir("d/e/../../..")]), OUT));
    rows.push(refused("C40 4097 names", tar(&[file("a/".repeat(4096) + "f")]), &["deeper than 4096"]));
    rows.push(refused(
        "C40 a name of 64 KiB",
        tar(&[file("a".repeat(200).to_string() + &"/".repeat(70_000) + "f")]),
        &["longer than 64 KiB"],
    ));
    rows.push(refused("C40 no name", tar(&[file("")]), &["it has no name"]));
    rows.push(refused("C40 below a file", tar(&[file("etc/passwd/x")]), &["etc/passwd", "not a directory"]));
    rows.push(refused("C40 a link that is a loop", tar(&[file("loop/x")]), &["too many levels of symbolic links"]));
    rows.push(tree("C40 .. that stays", tar(&[file("n/../kiln")]), &["kiln f =new"]));
    rows.push(tree("C40 absolute", tar(&[file("/etc/x")]), &["etc/x f =new"]));
    rows.push(tree("C40 slashes and dots", tar(&[file(".//etc/./x")]), &["etc/x f =new"]));
    rows
}

/// C41: a link of the layer or of its base on the way: what it names is inside of the image.
fn through_links(canary: &str) -> Vec<Row> {
    let inside = canary.trim_start_matches('/');
    let ways: [(&str, Vec<Item>, &str, Vec<String>); 6] = [
        ("l", vec![symlink("l", canary)], inside, vec![format!("l l >{canary}")]),
        ("out", vec![], inside, vec![]),
        ("up", vec![], inside, vec![]),
        ("m", vec![symlink("k", "out"), symlink("m", "k")], inside, vec!["k l >out".into(), "m l >k".into()]),
        ("r", vec![symlink("r", "../../..")], "", vec!["r l >../../..".into()]),
        ("lib", vec![], "usr/lib", vec![]),
    ];
    let mut rows = Vec::new();
    for (by, before, to, lines) in ways {
        for (kind, entry, line) in kinds(&format!("{by}/kiln-escaped")) {
            let mut lines = lines.clone();
            if to == inside {
                lines.extend(implied(canary));
            }
            let at = format!("{to}/kiln-escaped").trim_start_matches('/').to_owned();
            lines.extend(line.map(|line| format!("{at} {line}")));
            let entries: Vec<Item> = before.iter().cloned().chain([entry]).collect();
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            rows.push(tree(format!("C41 {kind} through {by}"), tar(&entries), &lines));
        }
    }
    let lines: Vec<String> = implied(canary).into_iter().chain([format!("l l >{canary}")]).collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    rows.push(tree("C41 opaque mark through l", tar(&[symlink("l", canary), empty("l/.wh..wh..opq")]), &lines));
    rows.push(tree("C41 whiteout of a link", tar(&[empty(".wh.out")]), &["-out"]));
    rows
}

/// C42: targets of hard links.
fn hard_links(canary: &str) -> Vec<Row> {
    let no = |name: &str, entries: &[Item], says| refused(format!("C42 hard link {name}"), tar(entries), says);
    let yes = |name: &str, entries: &[Item], lines: &[&str]| tree(format!("C42 hard link {name}"), tar(entries), lines);
    let missing: &[&str] = &["cannot unpack", "does not exist"];
    vec![
        no("out", &[link("x", "../../kiln-escaped")], &["hard link that leads out"]),
        no("to a file of the host", &[link("x", format!("{canary}/file"))], missing),
        no("through a link to a file of the host", &[link("x", "out/file")], missing),
        no("through a link of the layer", &[symlink("l", canary), link("x", "l/file")], missing),
        no("through ..", &[link("x", format!("d/../..{canary}/file"))], &["leads out"]),
        no("to a later entry", &[link("x", "y"), file("y")], missing),
        no("to nothing", &[link("x", "nowhere")], missing),
        no("to itself", &[file("x"), link("x", "x")], &["cannot unpack", "itself"]),
        no("to a directory", &[link("x", "etc")], &["cannot unpack", "a directory"]),
        no("to a directory of the layer", &[dir("n"), link("x", "n")], &["cannot unpack", "a directory"]),
        no("to the root", &[link("x", "/")], &["leads out"]),
        no("to no name", &[link("x", "")], &["leads out"]),
        no("to what a whiteout hid", &[empty("etc/.wh.passwd"), link("x", "etc/passwd")], missing),
        no("to a whiteout", &[empty("etc/.wh.passwd"), link("x", "etc/.wh.passwd")], missing),
        no("into its own target", &[dir("n"), file("n/f"), link("n", "n/f")], &["cannot unpack"]),
        no("below a file", &[link("x", "etc/passwd/y")], &["cannot unpack"]),
        no("in place of the root", &[link("./", "etc/passwd")], &["root can only be a directory"]),
        yes("to a link that leads out", &[link("x", "file-out")], &["x l"]),
        yes("to a file of the base", &[link("x", "d/f")], &["x f =x %d/f"]),
        yes("that is absolute", &[link("x", "/d/f")], &["x f =x %d/f"]),
        yes("with dots", &[link("x", "./d/../d/f")], &["x f =x %d/f"]),
        yes("through a link of the base", &[link("x", "lib/so")], &["x f =library"]),
        yes("to a fifo", &[fifo("p"), link("x", "p")], &["p p", "x p"]),
        yes("to a device of the base", &[link("x", "null")], &["x c 1,3"]),
        yes("in place of its base's", &[file("n"), link("d/f", "n")], &["d/f f =new", "n f =new"]),
        yes("then its target changes", &[file("n"), link("x", "n"), file("n").data("else")], &["n f =else", "x f =new"]),
        yes("of which the target goes", &[file("n"), link("x", "n"), dir("n")], &["n d", "x f =new"]),
    ]
}

/// C43: the root itself.
fn roots(canary: &str) -> Vec<Row> {
    let mut rows = Vec::new();
    for name in [".", "/", "./", "//", "./.", "d/.."] {
        for (kind, entry) in [
            ("symbolic link", symlink(name, canary)),
            ("hard link", link(name, "etc/passwd")),
            ("fifo", fifo(name)),
            ("character device", device(b'3', name, (1, 3))),
            ("block device", device(b'4', name, (1, 3))),
        ] {
            rows.push(refused(format!("C43 {name} as a {kind}"), tar(&[entry]), &["root can only be a directory"]));
        }
        rows.push(tree(format!("C43 {name} as a directory"), tar(&[item(b'5', name).mode(0o755)]), &[]));
    }
    rows.push(refused("C43 . as a file", tar(&[file(".")]), &["root can only be a directory"]));
    rows.push(refused("C43 / as a file", tar(&[file("/")]), &["refused"]));
    rows
}

/// C44: what replaces a link changes nothing of what the link named.
fn replaced(canary: &str) -> Vec<Row> {
    let mut rows = Vec::new();
    for name in ["l", "out"] {
        for (kind, entry, line) in kinds(name) {
            let before = if name == "l" { vec![symlink("l", canary)] } else { vec![] };
            let line = match (line, name) {
                (Some(line), _) => format!("{name} {line}"),
                (None, "l") => format!("l l >{canary}"),
                (None, _) => "-out".to_owned(),
            };
            let entries: Vec<Item> = before.into_iter().chain([entry]).collect();
            rows.push(tree(format!("C44 {name}, then a {kind} of its name"), tar(&entries), &[&line]));
        }
    }
    let planted = [symlink("l", canary), dir("l").mode(0o777), file("l/file"), dir("l/dir").mode(0o700)];
    rows.push(tree("C44 a directory and its files", tar(&planted), &["l d m777", "l/file f =new", "l/dir d m700"]));
    rows.push(tree("C44 a link in place of a directory", tar(&[symlink("d", canary), dir("d")]), &["-d", "d d m711"]));
    rows
}

/// The same by ADD, which unpacks below a folder as if that were the root.
fn added(canary: &str) -> Vec<Row> {
    let mut rows = Vec::new();
    for name in ["../kiln-escaped", "a/../../kiln-escaped"] {
        for (kind, entry, _) in kinds(name) {
            rows.push(refused(format!("C40 {kind} {name}"), tar(&[entry]), &["leads out of the archive"]));
        }
    }
    for by in ["out", "up"] {
        for (kind, entry, line) in kinds(&format!("{by}/kiln-escaped")) {
            let Some(line) = line.filter(|_| kind != "hard link") else { continue };
            let mut lines: Vec<String> =
                implied(&format!("dest{canary}")).into_iter().skip(1).map(|l| l.replace(" @0", "")).collect();
            lines.push(format!("dest{canary}/kiln-escaped {line}"));
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            rows.push(tree(format!("C41 {kind} through {by}"), tar(&[entry]), &lines));
        }
    }
    let no = |name: &str, entries: &[Item], says| refused(name, tar(entries), says);
    rows.push(no("C42 hard link out", &[file("a"), link("x", "../../etc/passwd")], &["does not exist"]));
    rows.push(no(
        "C42 hard link to a file outside of the destination",
        &[file("a"), link("x", "/etc/passwd")],
        &["does not exist"],
    ));
    rows.push(no("C42 hard link through a link", &[symlink("l", canary), link("x", "l/file")], &["does not exist"]));
    rows.push(no("C42 hard link to itself", &[file("x"), link("x", "x")], &["itself"]));
    rows.push(no("C43 the root as a link", &[symlink(".", canary)], &["root", "directory"]));
    rows.push(no("C43 the root as a file", &[file(".")], &["root", "directory"]));
    rows.push(no("C48 a whiteout", &[empty("a/.wh.b")], &[".wh.", "deleted file"]));
    rows.push(no("C48 a file in a whiteout", &[file(".wh.a/b")], &[".wh.", "deleted file"]));
    rows.push(no("C54 no owner", &[file("x").owner(u32::MAX.into(), 0)], &["4294967295"]));
    rows.push(no("C51 the device 0:0", &[device(b'3', "x", (0, 0))], &["0:0"]));
    rows.push(tree("C41 absolute", tar(&[file("/etc/x")]), &["dest/etc d m755", "dest/etc/x f =new"]));
    rows.push(tree("C44 a directory in place of a link", tar(&[dir("out").mode(0o700)]), &["dest/out d m700"]));
    rows.into_iter().map(|row| row.by(Way::Add)).collect()
}

/// COPY --from an image whose links lead out: to what is inside, which is nothing.
fn copied() -> Vec<Row> {
    let upper = tar(&[symlink("l", "../../../out"), dir("n"), file("n/f"), symlink("n/l", "/out/file"), symlink("n/d", "/n")]);
    let mut rows = Vec::new();
    for path in ["/out/file", "/out", "/up/file", "/file-out", "/l/file", "/n/l", "/../../../out/file", "/n/../../out/file"] {
        rows.push(refused(format!("C40 COPY of {path}"), upper.clone(), &["not found"]).by(Way::Copy(path)));
    }
    let whole = ["dest/f f =new", "dest/l l >/out/file", "dest/d l >/n"];
    rows.push(tree("C41 COPY of a folder of links", upper.clone(), &whole).by(Way::Copy("/n")));
    rows.push(tree("C41 COPY through a link", upper, &["dest/f f =new"]).by(Way::Copy("/n/d/f")));
    rows
}
