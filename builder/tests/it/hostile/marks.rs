//! Whiteouts, opaque marks, devices that mean one (C48 to C51), and names that change what they are within a layer (C53).

use super::craft::{Item, device, dir, empty, fifo, file, item, link, symlink, tar};
use super::{Row, Way, refused, tree};

pub(super) fn rows() -> Vec<Row> {
    [whiteouts(), orders(), flips()].concat()
}

fn whiteouts() -> Vec<Row> {
    let no = |name: &str, entries: &[Item], says| refused(format!("C48 {name}"), tar(entries), says);
    let yes = |name: &str, entries: &[Item], lines: &[&str]| tree(format!("C48 {name}"), tar(entries), lines);
    const NAMELESS: &[&str] = &["whiteout of no name"];
    let (w252, w255) = (format!("d/.wh.{}", "n".repeat(252)), "n".repeat(255));
    let mut rows = vec![
        no(".wh.", &[empty(".wh.")], NAMELESS),
        no("d/.wh.", &[empty("d/.wh.")], NAMELESS),
        no(".wh..", &[empty(".wh..")], NAMELESS),
        no("d/.wh..", &[empty("d/.wh..")], NAMELESS),
        no(".wh...", &[empty(".wh...")], NAMELESS),
        no("d/.wh...", &[empty("d/.wh...")], NAMELESS),
        no("a file inside a whiteout", &[file(".wh.d/f")], &["lies inside a whiteout"]),
        no("a whiteout inside a whiteout", &[empty(".wh.d/.wh.f")], &["lies inside a whiteout"]),
        no("a whiteout below a file", &[empty("etc/passwd/.wh.x")], &["etc/passwd", "not a directory"]),
        no("a whiteout out", &[empty("../.wh.kiln")], &["leads out"]),
        no("an opaque mark out", &[empty("../.wh..wh..opq")], &["leads out"]),
        no("an opaque mark of a file", &[empty("etc/passwd/.wh..wh..opq")], &["etc/passwd", "not a directory"]),
        no("a whiteout in a loop", &[empty("loop/.wh.x")], &["too many levels"]),
        yes("of a file", &[empty("d/.wh.f")], &["-d/f"]),
        yes("of a directory", &[empty(".wh.d")], &["-d"]),
        yes("of a link, not of what it names", &[empty(".wh.abs")], &["-abs"]),
        yes("through a link", &[empty("abs/.wh.passwd")], &["-etc/passwd"]),
        yes("of a device", &[empty(".wh.null")], &["-null"]),
        yes("of nothing", &[empty(".wh.nothing")], &[]),
        yes("of nothing in nothing", &[empty("n/m/.wh.x")], &["n d m755 o0:0 @0", "n/m d m755 o0:0 @0"]),
        yes("with data", &[file("d/.wh.f")], &["-d/f"]),
        yes("that is a directory", &[dir("d/.wh.f")], &["-d/f"]),
        yes("that is a link", &[symlink("d/.wh.f", "/etc/passwd")], &["-d/f"]),
        yes("that is a hard link", &[link("d/.wh.f", "etc/passwd")], &["-d/f"]),
        yes("that is a fifo", &[fifo("d/.wh.f")], &["-d/f"]),
        yes("that is a device", &[device(b'3', "d/.wh.f", (1, 3))], &["-d/f"]),
        yes("with an owner and a mode", &[empty("d/.wh.f").owner(5, 6).mode(0o4777)], &["-d/f"]),
        yes("twice", &[empty("d/.wh.f"), empty("d/.wh.f")], &["-d/f"]),
        yes("of its own layer's file", &[file("n"), empty(".wh.n")], &["n f =new"]),
        yes("an opaque directory", &[empty("d/.wh..wh..opq")], &["-d/f", "-d/e"]),
        yes("an opaque mark with data", &[file("d/.wh..wh..opq")], &["-d/f", "-d/e"]),
        yes("an opaque mark that is a directory", &[dir("d/.wh..wh..opq")], &["-d/f", "-d/e"]),
        yes("an opaque mark through a link", &[empty("lib/.wh..wh..opq")], &["-usr/lib/so"]),
        yes("an opaque mark in nothing", &[empty("n/.wh..wh..opq")], &["n d m755 o0:0 @0"]),
        yes("aufs's own files", &[dir(".wh..wh.plnk/"), file(".wh..wh.plnk/1.2"), empty(".wh..wh.aufs")], &[]),
        yes("a name that only begins alike", &[file(".whx"), file("wh.x"), file(".wh")], &[".whx f", "wh.x f", ".wh f"]),
        // C49: the mark is longer than a file's name can be.
        yes("of a name of 252 bytes that is not there", &[empty(&w252)], &[]),
        tree("C48 an opaque root", tar(&[empty(".wh..wh..opq"), file("only")]), &EVERYTHING).by(Way::Still),
        tree("C48 an opaque root by another name", tar(&[empty("./d/../.wh..wh..opq"), file("only")]), &EVERYTHING)
            .by(Way::Still),
        // C51: an overlay takes it for a whiteout.
        no("C51 the device 0:0", &[device(b'3', "d/f", (0, 0))], &["0:0 means a deleted file"]),
        no(
            "C51 the device 0:0 by PAX",
            &[device(b'3', "x", (1, 3)).pax("SCHILY.devmajor", "0").pax("SCHILY.devminor", "0")],
            &["0:0"],
        ),
        no("C51 a device whose number is too large", &[device(b'3', "x", (1 << 33, 0))], &["device number"]),
        yes("C51 the block device 0:0", &[device(b'4', "x", (0, 0))], &["x b 0,0"]),
        yes("C51 a large device number", &[device(b'3', "x", (500, 70_000))], &["x c 500,70000"]),
    ];
    // C49: the whiteout of a name that fills its directory entry: written from what is known, not from a file of that name.
    rows.push(no("C49 a name of 256 bytes", &[file("n".repeat(256))], &["cannot unpack", "name too long"]));
    rows.push(yes("C49 a name of 255 bytes", &[file(&w255)], &[&format!("{w255} f =new")]));
    rows.push(yes(
        "C49 its whiteout in the same layer",
        &[file(&w255), empty(format!(".wh.{w255}"))],
        &[&format!("{w255} f =new")],
    ));
    rows
}

const EVERYTHING: [&str; 19] = [
    "-bin",
    "-d",
    "-dest",
    "-dev",
    "-etc",
    "-proc",
    "-sys",
    "-usr",
    "-lib",
    "-out",
    "-up",
    "-file-out",
    "-loop",
    "-abs",
    "-dots",
    "-null",
    "-tell",
    "-told",
    "only f =new",
];

/// C50: opaque first wherever it stands, whiteouts hit lower layers only.
fn orders() -> Vec<Row> {
    let groups: [(&str, Vec<Item>, &[&str]); 4] = [
        (
            "opaque, whiteout and files",
            vec![empty("d/.wh..wh..opq"), empty("d/.wh.f"), file("d/f"), file("d/e/n")],
            &["-d/f", "-d/e", "d/f f =new", "d/e d m755", "d/e/n f =new"],
        ),
        (
            "whiteout of a directory with a file in it",
            vec![empty(".wh.d"), file("d/e/n")],
            &["-d", "d d m755 @0", "d/e d m755 @0", "d/e/n f"],
        ),
        (
            "opaque and a whiteout below it",
            vec![empty("d/.wh..wh..opq"), dir("d/e"), empty("d/e/.wh.g"), file("d/e/n")],
            &["-d/f", "-d/e", "d/e d m711 @77", "d/e/n f =new"],
        ),
        ("whiteout and its name again", vec![empty("d/.wh.f"), file("d/f").mode(0o600)], &["d/f f m600 =new"]),
    ];
    let mut rows = Vec::new();
    for (name, entries, lines) in groups {
        for order in permutations(entries.len()) {
            let entries: Vec<Item> = order.iter().map(|at| entries[*at].clone()).collect();
            rows.push(tree(format!("C50 {name} {order:?}"), tar(&entries), lines));
        }
    }
    rows
}

fn permutations(n: usize) -> Vec<Vec<usize>> {
    if n == 0 {
        return vec![Vec::new()];
    }
    let shorter = permutations(n - 1);
    shorter.into_iter().flat_map(|p| (0..n).map(move |at| [&p[..at], &[n - 1], &p[at..]].concat())).collect()
}

/// C53: the last entry of a name counts, and what was below it goes with it.
fn flips() -> Vec<Row> {
    let of = |kind: &str| match kind {
        "file" => (file("x").mode(0o640), "x f m640 =new"),
        "directory" => (dir("x"), "x d m711 @77"),
        "link" => (symlink("x", "d"), "x l >d"),
        "hard link" => (link("x", "d/f"), "x f =x"),
        "fifo" => (fifo("x"), "x p"),
        _ => (device(b'3', "x", (1, 3)), "x c 1,3"),
    };
    let all = ["file", "directory", "link", "hard link", "fifo", "device"];
    let mut rows = Vec::new();
    for first in all {
        for second in all {
            let entries = tar(&[of(first).0, of(second).0]);
            rows.push(tree(format!("C53 {first}, then {second}"), entries, &[of(second).1]));
        }
    }
    let yes = |name: &str, entries: &[Item], lines: &[&str]| tree(format!("C53 {name}"), tar(entries), lines);
    let shut = |mode| item(b'5', "x").mode(mode).at(3);
    rows.extend([
        yes("directory with files, then file", &[dir("x"), file("x/y"), dir("x/z"), file("x")], &["x f =new"]),
        yes("directory, file, directory", &[dir("x"), file("x/y"), file("x"), dir("x"), file("x/z")], &["x d m711", "x/z f"]),
        yes("base directory, file, directory", &[file("d"), dir("d"), file("d/n")], &["-d", "d d m711", "d/n f"]),
        yes("base directory, link, directory", &[symlink("d", "etc"), dir("d"), file("d/n")], &["-d", "d d m711", "d/n f"]),
        yes("base directory to link, then through it", &[symlink("d", "etc"), file("d/x")], &["-d", "d l >etc", "etc/x f"]),
        yes("base file to directory", &[dir("etc/passwd"), file("etc/passwd/x")], &["etc/passwd d m711", "etc/passwd/x f"]),
        yes("base link to directory", &[dir("lib"), file("lib/x")], &["lib d m711", "lib/x f"]),
        yes("child before parent", &[file("x/y"), dir("x")], &["x d m711 @77", "x/y f"]),
        yes("grandchild before parents", &[file("x/y/z"), dir("x/y"), dir("x")], &["x d m711", "x/y d m711", "x/y/z f"]),
        yes("no parent at all", &[file("x/y/z")], &["x d m755 o0:0 @0", "x/y d m755 o0:0 @0", "x/y/z f"]),
        yes("directory of mode 0", &[shut(0), file("x/y")], &["x d m0 @3", "x/y f"]),
        yes("directory of mode 0500", &[shut(0o500), file("x/y"), dir("x/z")], &["x d m500 @3", "x/y f", "x/z d"]),
        yes(
            "directories of mode 0 in one another",
            &[shut(0), item(b'5', "x/y").mode(0), file("x/y/z")],
            &["x d m0", "x/y d m0", "x/y/z f"],
        ),
        yes("directory twice", &[item(b'5', "x").mode(0o755), file("x/y"), dir("x")], &["x d m711 @77", "x/y f"]),
        yes("file twice", &[file("x").data("first"), file("x")], &["x f =new"]),
        yes("file thrice", &[file("x"), fifo("x"), file("x").data("last")], &["x f =last"]),
        yes("a base directory keeps its mode", &[file("d/e/n")], &["d/e/n f"]),
        yes("a base directory gets a mode", &[dir("d/e")], &["d/e d m711 @77"]),
        yes("a file and its name with a slash", &[file("x"), dir("x/")], &["x d m711"]),
    ]);
    rows
}
