//! Archives that want to do harm, or that other readers stumbled over (the CVEs are named in the rows).

use std::path::Path;

use super::*;
use crate::layer::testing::Told;
use crate::rootdir::{Kind, Timestamp, Xattrs};
use crate::tar::Writer;

fn file(path: &str) -> (Entry, Vec<u8>) {
    (Entry::file(path, 3), b"new".to_vec())
}

fn empty(path: &str) -> (Entry, Vec<u8>) {
    (Entry::file(path, 0), Vec::new())
}

fn dir(path: &str) -> (Entry, Vec<u8>) {
    (Entry { mode: 0o711, mtime: Timestamp::from_secs(77), ..Entry::dir(path) }, Vec::new())
}

fn of_kind(path: &str, kind: Kind, rdev: (u32, u32)) -> (Entry, Vec<u8>) {
    (Entry { kind: EntryKind::Node(kind), rdev, ..Entry::file(path, 0) }, Vec::new())
}

fn symlink(path: &str, target: &str) -> (Entry, Vec<u8>) {
    (Entry { kind: EntryKind::Node(Kind::Symlink), link: target.into(), mode: 0o777, ..Entry::file(path, 0) }, Vec::new())
}

fn link(path: &str, target: &str) -> (Entry, Vec<u8>) {
    (Entry { kind: EntryKind::HardLink, link: target.into(), ..Entry::file(path, 0) }, Vec::new())
}

fn with_xattr((mut entry, content): (Entry, Vec<u8>), key: &str, value: &[u8]) -> (Entry, Vec<u8>) {
    entry.xattrs = Xattrs::from([(key.into(), value.to_vec())]);
    (entry, content)
}

fn archive(entries: &[(Entry, Vec<u8>)]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (entry, content) in entries {
        writer.append(entry, content).unwrap();
    }
    writer.finish().unwrap().0
}

/// The base that every row changes. `CANARY` stands for a directory of the host.
const BASE: &str = "mkdir -p usr/lib etc d/e; ln -s usr/lib lib; echo root >etc/passwd; echo x >d/f; echo y >d/e/g; chmod 750 d/e; \
    ln -s CANARY out; ln -s ../../../../../../../../../CANARY up; ln -s CANARY/file file-out; ln -s loop loop; ln -s /etc abs; ln -s usr/../etc dots";

enum Outcome {
    /// An error that says this.
    Refused(&'static str),
    /// These paths, told as the line begins; `None` is a path that isn't there.
    Gives(&'static [(&'static str, Option<&'static str>)]),
}
use Outcome::{Gives, Refused};

type Row = (&'static str, Vec<(Entry, Vec<u8>)>, Outcome);

const NEW: Option<&str> = Some("File 644 0:0 3 ");

fn rows(canary: &str) -> Vec<Row> {
    let many = "a/".repeat(4096) + "f";
    let inside: String = "b/".repeat(4000) + "f";
    let device = |path| of_kind(path, Kind::Char, (1, 3));
    vec![
        // C40: names that lead out.
        ("dotdot", vec![file("../x")], Refused("leads out")),
        ("dotdot inside", vec![file("a/../../x")], Refused("leads out")),
        ("dotdot that stays", vec![file("a/../x")], Gives(&[("/x", NEW), ("/a", None)])),
        ("absolute", vec![file("/etc/x")], Gives(&[("/etc/x", NEW)])),
        ("doubled slashes and dots", vec![file(".//etc/./x")], Gives(&[("/etc/x", NEW)])),
        ("4097 names", vec![file(&many)], Refused("deeper than 4096")),
        ("4001 names", vec![file(&inside)], Gives(&[("/b/b/b", Some("Dir"))])),
        ("name of 256 bytes", vec![file(&"n".repeat(256))], Refused("cannot unpack")),
        ("no name", vec![symlink("x", "")], Refused("cannot unpack")),
        // Symbolic links, of the layer and of the base: all stay inside.
        ("link then file through it", vec![symlink("l", canary), file("l/x")], Gives(&[("/l", Some("Symlink"))])),
        ("base link then file through it", vec![file("out/x")], Gives(&[("/out", Some("Symlink"))])),
        ("base link upwards", vec![file("up/x")], Gives(&[("/up", Some("Symlink"))])),
        ("file in place of a link to a file", vec![file("file-out")], Gives(&[("/file-out", NEW)])),
        ("link to a link", vec![symlink("m", "out"), symlink("l", "m"), file("l/x")], Gives(&[("/l", Some("Symlink"))])),
        ("link loop", vec![file("loop/x")], Refused("cannot unpack `loop/x`")),
        ("relative base link", vec![file("lib/x")], Gives(&[("/usr/lib/x", NEW), ("/lib", Some("Symlink"))])),
        ("absolute base link", vec![file("abs/x")], Gives(&[("/etc/x", NEW), ("/abs", Some("Symlink"))])),
        ("link with dots", vec![file("dots/x")], Gives(&[("/etc/x", NEW), ("/etc/passwd", Some("File"))])),
        ("file below a file", vec![file("etc/passwd/x")], Refused("cannot unpack")),
        // C41, C42: every kind of entry goes the same way.
        ("directory through a link", vec![symlink("l", canary), dir("l/x")], Gives(&[("/l", Some("Symlink"))])),
        ("link through a link", vec![symlink("l", canary), symlink("l/x", "y")], Gives(&[("/l", Some("Symlink"))])),
        (
            "fifo through a link",
            vec![symlink("l", canary), of_kind("l/x", Kind::Fifo, (0, 0))],
            Gives(&[("/l", Some("Symlink"))]),
        ),
        ("device through a link", vec![symlink("l", canary), device("l/x")], Gives(&[("/l", Some("Symlink"))])),
        ("whiteout through a link", vec![symlink("l", canary), empty("l/.wh.file")], Gives(&[("/l", Some("Symlink"))])),
        ("opaque through a link", vec![symlink("l", canary), empty("l/.wh..wh..opq")], Gives(&[("/l", Some("Symlink"))])),
        ("hard link through a link", vec![symlink("l", canary), link("x", "l/file")], Refused("cannot unpack")),
        ("hard link to a link that leads out", vec![link("x", "file-out")], Gives(&[("/x", Some("Symlink"))])),
        ("hard link out", vec![link("x", "../../file")], Refused("leads out")),
        ("hard link to an absolute path", vec![link("x", "/etc/passwd")], Gives(&[("/x", Some("File 644 0:0 5 "))])),
        ("hard link to itself", vec![file("x"), link("x", "x")], Refused("cannot unpack")),
        ("hard link to a later entry", vec![link("x", "y"), file("y")], Refused("cannot unpack")),
        ("hard link to a directory", vec![link("x", "etc")], Refused("cannot unpack")),
        ("hard link to the root", vec![link("x", "/")], Refused("leads out")),
        ("hard link to a whiteout", vec![empty("etc/.wh.passwd"), link("x", "etc/passwd")], Refused("cannot unpack")),
        ("hard link into its own target", vec![dir("a"), file("a/b"), link("a", "a/b")], Refused("cannot unpack")),
        (
            "hard link through a base link",
            vec![file("usr/lib/x"), link("y", "lib/x")],
            Gives(&[("/y", NEW), ("/lib", Some("Symlink"))]),
        ),
        // C43: the root.
        ("root as a symbolic link", vec![symlink(".", canary)], Refused("root can only be a directory")),
        ("root as a file", vec![file("./.")], Refused("root can only be a directory")),
        ("root as a device", vec![device("//")], Refused("root can only be a directory")),
        ("root as a hard link", vec![link("./", "etc/passwd")], Refused("root can only be a directory")),
        ("root as a directory", vec![dir("./")], Gives(&[("/", Some("Dir 711"))])),
        ("root as a directory, absolute", vec![dir("/")], Gives(&[("/", Some("Dir 711")), ("/etc/passwd", Some("File"))])),
        // C44: a directory in place of a link must not change what the link pointed to (CVE-2021-32760).
        ("link, then directory of its name", vec![symlink("l", canary), dir("l")], Gives(&[("/l", Some("Dir 711"))])),
        (
            "base link, then directory of its name",
            vec![dir("out"), file("out/x")],
            Gives(&[("/out", Some("Dir 711")), ("/out/x", NEW)]),
        ),
        // C48: whiteouts of nothing and of more than a name.
        ("whiteout of nothing", vec![empty(".wh.")], Refused("whiteout of no name")),
        ("whiteout of .", vec![empty("d/.wh..")], Refused("whiteout of no name")),
        ("whiteout of ..", vec![empty("d/.wh...")], Refused("whiteout of no name")),
        ("file inside a whiteout", vec![file(".wh.d/f")], Refused("lies inside a whiteout")),
        (
            "aufs leftovers",
            vec![dir(".wh..wh.plnk/"), file(".wh..wh.plnk/1.2"), empty(".wh..wh.aufs")],
            Gives(&[("/.wh..wh.plnk", None)]),
        ),
        ("opaque mark with data", vec![file("d/.wh..wh..opq")], Gives(&[("/d/f", None), ("/d", Some("Dir 755"))])),
        ("whiteout with data", vec![file("d/.wh.f")], Gives(&[("/d/f", None), ("/d/e/g", Some("File"))])),
        ("whiteout as a directory", vec![dir("d/.wh.f")], Gives(&[("/d/f", None)])),
        ("whiteout of a lower directory", vec![empty(".wh.d")], Gives(&[("/d", None)])),
        ("whiteout of what never was", vec![empty("n/m/.wh.x")], Gives(&[("/n/m", Some("Dir 755"))])),
        ("whiteout through a base link", vec![file("usr/lib/x"), empty("abs/.wh.passwd")], Gives(&[("/etc/passwd", None)])),
        // C51, C52, C54: what an overlay or chown would misread.
        ("device 0:0", vec![of_kind("d/f", Kind::Char, (0, 0))], Refused("0:0 means a deleted file")),
        ("overlay attributes", vec![with_xattr(dir("d"), "trusted.overlay.opaque", b"y")], Gives(&[("/d/f", Some("File"))])),
        (
            "overlay attributes of users",
            vec![with_xattr(dir("d"), "user.overlay.opaque", b"y")],
            Gives(&[("/d", Some("Dir 711 0:0 @77")), ("/d/f", Some("File"))]),
        ),
        ("redirect", vec![with_xattr(dir("n"), "trusted.overlay.redirect", b"/d")], Gives(&[("/n/f", None)])),
        ("user -1", vec![(Entry { uid: u32::MAX, ..Entry::file("x", 0) }, vec![])], Refused("cannot unpack")),
        ("group -1", vec![(Entry { gid: u32::MAX, ..Entry::dir("x") }, vec![])], Refused("cannot unpack")),
        // C53: types that change within a layer; the last counts.
        ("file, then directory", vec![file("x"), dir("x"), file("x/y")], Gives(&[("/x", Some("Dir 711")), ("/x/y", NEW)])),
        ("directory, then file", vec![dir("x"), file("x/y"), dir("x/z"), file("x")], Gives(&[("/x", NEW), ("/x/y", None)])),
        (
            "directory, file, directory",
            vec![dir("x"), file("x/y"), file("x"), dir("x"), file("x/z")],
            Gives(&[("/x/y", None), ("/x/z", NEW)]),
        ),
        (
            "base directory, file, directory",
            vec![file("d"), dir("d"), file("d/n")],
            Gives(&[("/d/f", None), ("/d/n", NEW), ("/d", Some("Dir 711"))]),
        ),
        ("file twice", vec![empty("x"), file("x")], Gives(&[("/x", NEW)])),
        (
            "directory twice",
            vec![(Entry::dir("x"), vec![]), file("x/y"), dir("x")],
            Gives(&[("/x", Some("Dir 711 0:0 @77")), ("/x/y", NEW)]),
        ),
        ("child before parent", vec![file("x/y"), dir("x")], Gives(&[("/x", Some("Dir 711 0:0 @77")), ("/x/y", NEW)])),
        (
            "unwritable directory first",
            vec![(Entry { mode: 0, ..Entry::dir("x") }, vec![]), file("x/y")],
            Gives(&[("/x", Some("Dir 0 ")), ("/x/y", NEW)]),
        ),
        (
            "fifo where the base has a file",
            vec![of_kind("etc/passwd", Kind::Fifo, (0, 0)), file("etc/passwd")],
            Gives(&[("/etc/passwd", NEW)]),
        ),
        (
            "symbolic link over a base directory",
            vec![symlink("d", "etc"), file("d/x")],
            Gives(&[("/etc/x", NEW), ("/d", Some("Symlink"))]),
        ),
        ("directory of the base keeps its mode", vec![file("d/e/n")], Gives(&[("/d/e", Some("Dir 750")), ("/d/e/n", NEW)])),
        // C55: times.
        (
            "times",
            vec![
                (Entry { mtime: Timestamp::from_secs(-3), ..Entry::file("x", 0) }, vec![]),
                (Entry { mtime: Timestamp::from_secs(i64::MAX), ..Entry::file("y", 0) }, vec![]),
            ],
            Gives(&[("/x", Some("File 644 0:0 0 af1349b9 @-3"))]),
        ),
    ]
}

fn tell_canary(path: &Path) -> Told {
    tell(&plain(path), true)
}

#[test]
fn hostile_layers_are_refused_or_stay_inside() {
    if !can_mount("hostile_layers_are_refused_or_stay_inside") {
        return;
    }
    let dirs = Dirs::new();
    let canary = dirs.make("canary");
    sh(&canary, "echo precious >file; mkdir dir; touch -d @5 dir file .");
    let untouched = tell_canary(&canary);
    let lower = dirs.make("lower");
    sh(&lower, &BASE.replace("CANARY", canary.to_str().unwrap()));
    let untouched_lower = tell_canary(&lower);
    let base = View::new([&lower]).unwrap();
    let root = RootDir::open(dirs.temp.path()).unwrap();
    for (name, entries, outcome) in rows(canary.to_str().unwrap()) {
        let dest = dirs.make("dest");
        let result = unpacked(&archive(&entries), &dest, &base);
        match (outcome, result) {
            (Refused(reason), Err(e)) => assert!(e.to_string().contains(reason), "{name}: {e}"),
            (Refused(reason), Ok(_)) => panic!("{name}: should be refused with `{reason}`"),
            (Gives(_), Err(e)) => panic!("{name}: {e}: {:?}", std::error::Error::source(&e).map(ToString::to_string)),
            (Gives(paths), Ok(_)) if name == "4001 names" => assert!(!paths.is_empty()),
            (Gives(paths), Ok(_)) => {
                let told = tell(&View::new([&dest, &lower]).unwrap(), true);
                for (path, line) in paths {
                    let found =
                        told.get(*path).map(|l| if *path == "/" { l.split(" @").next().unwrap().to_owned() } else { l.clone() });
                    match line {
                        Some(line) => assert!(found.as_ref().is_some_and(|f| f.starts_with(line)), "{name}: {path}: {found:?}"),
                        None => assert_eq!(found, None, "{name}: {path}"),
                    }
                }
            }
        }
        assert_eq!(tell_canary(&canary), untouched, "{name}: it reached the host");
        assert_eq!(tell_canary(&lower), untouched_lower, "{name}: it reached the layer below");
        root.remove_all(b"dest").unwrap();
    }
}

#[test]
fn the_order_of_marks_does_not_matter() {
    if !can_mount("the_order_of_marks_does_not_matter") {
        return;
    }
    let dirs = Dirs::new();
    let lower = dirs.make("lower");
    sh(&lower, "mkdir -p d/e/i; echo old >d/x; echo old >d/y; chmod 700 d/e; touch d/e/i/j");
    let base = View::new([&lower]).unwrap();
    let groups: &[&[(Entry, Vec<u8>)]] = &[
        &[empty("d/.wh..wh..opq"), empty("d/.wh.x"), file("d/x"), file("d/e/n")],
        &[empty("d/.wh.e"), file("d/e/n"), file("d/x")],
        &[empty(".wh.d"), file("d/e/i/n")],
        &[empty("d/.wh..wh..opq"), dir("d/e"), file("d/e/n"), empty("d/e/.wh.i")],
    ];
    for group in groups {
        let mut seen: Option<Told> = None;
        for order in permutations(group.len()) {
            let entries: Vec<_> = order.iter().map(|i| group[*i].clone()).collect();
            let dest = dirs.make("dest");
            unpacked(&archive(&entries), &dest, &base).unwrap();
            let mut told = tell(&View::new([&dest, &lower]).unwrap(), true);
            told.remove("/");
            assert_eq!(*seen.get_or_insert_with(|| told.clone()), told, "{order:?}");
            RootDir::open(dirs.temp.path()).unwrap().remove_all(b"dest").unwrap();
        }
    }
}

fn permutations(n: usize) -> Vec<Vec<usize>> {
    if n == 0 {
        return vec![Vec::new()];
    }
    let shorter = permutations(n - 1);
    shorter.into_iter().flat_map(|p| (0..n).map(move |at| [&p[..at], &[n - 1], &p[at..]].concat())).collect()
}

#[test]
fn a_layer_larger_than_allowed_stops() {
    let dirs = Dirs::new();
    let dest = dirs.make("dest");
    let tar = archive(&[(Entry::file("x", 5000), vec![1; 5000]), (Entry::file("y", 5000), vec![1; 5000])]);
    let options = UnpackOptions { max_bytes: Some(9999), ..UnpackOptions::default() };
    let error = unpack(&mut &tar[..], &RootDir::open(&dest).unwrap(), &View::empty(), &options).unwrap_err();
    assert_eq!(error.to_string(), "the layer unpacks to more than 9999 bytes");
}

#[test]
fn duplicates_are_counted_and_attributes_too() {
    if !can_mount("duplicates_are_counted_and_attributes_too") {
        return;
    }
    let dirs = Dirs::new();
    let tar = archive(&[
        file("x"),
        with_xattr(file("x"), "security.selinux", b"label"),
        empty(".wh.x2"),
        file("x2"),
        with_xattr(file("y"), "security.capability", &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    ]);
    let stats = unpacked(&tar, &dirs.make("dest"), &View::empty()).unwrap();
    assert_eq!(stats, UnpackStats { entries: 5, bytes: 12, duplicates: 1, xattrs_skipped: 1, entries_skipped: 0 });
}
