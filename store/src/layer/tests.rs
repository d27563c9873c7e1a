//! Layers packed and unpacked again, and what other tar programs make of them.

use std::path::Path;

use kiln_oci::digest::{DiffId, Digest};

use super::compress::{Compression, EncodeOptions};
use super::testing::{Dirs, Overlay, can_mount, plain, sh, tell};
use super::whiteout::WhiteoutStyle;
use super::*;
use crate::rootdir::RootDir;
use crate::tar::{Entry, EntryKind, Reader};
use crate::view::View;

mod hostile;
mod recorded;

pub(super) fn packed(diff: &Path) -> Vec<u8> {
    let mut tar = Vec::new();
    pack(&RootDir::open(diff).unwrap(), &mut tar, &PackOptions::default()).unwrap();
    tar
}

pub(super) fn unpacked(tar: &[u8], dest: &Path, parent: &View) -> Result<UnpackStats, UnpackError> {
    unpack(&mut &tar[..], &RootDir::open(dest).unwrap(), parent, &UnpackOptions::default())
}

pub(crate) fn entries(tar: &[u8]) -> Vec<Entry> {
    let mut reader = Reader::new(tar);
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        entries.push(entry);
    }
    entries
}

/// A base to change, a change, and names that its layer must hold (a `-` before one that it must not).
pub(crate) const CHANGES: &[(&str, &str, &str, &[&str])] = &[
    ("nothing", "touch a", "true", &[]),
    ("new file", "", "echo hi >f; chmod 640 f; chown 3:4 f", &["f"]),
    ("changed file", "mkdir d; echo a >d/f", "echo b >>d/f", &["d/", "d/f"]),
    ("removed file", "mkdir d; touch d/f d/g", "rm d/f", &["d/", "d/.wh.f", "-d/g"]),
    ("removed directory", "mkdir -p d/e; touch d/e/f", "rm -r d", &[".wh.d"]),
    ("removed and made again", "mkdir -p d/e; touch d/e/f", "rm -r d; mkdir d; touch d/n", &["d/", "d/.wh..wh..opq", "d/n"]),
    ("removed, made again, with the same child", "mkdir -p d/e; touch d/e/f", "rm -r d; mkdir -p d/e; touch d/e/g", &["d/e/g"]),
    ("directory to file", "mkdir d; touch d/f", "rm -r d; echo x >d", &["d", "-.wh.d"]),
    ("file to directory", "touch f", "rm f; mkdir f; touch f/x", &["f/", "f/x"]),
    ("symlink to directory", "mkdir t; ln -s t l", "rm l; mkdir l; touch l/x", &["l/", "l/x"]),
    ("directory to symlink", "mkdir d; touch d/f", "rm -r d; ln -s / d", &["d"]),
    ("symlink to file", "ln -s /etc/passwd l", "rm l; echo x >l", &["l"]),
    ("file to fifo", "touch f", "rm f; mkfifo f", &["f"]),
    ("fifo to file", "mkfifo f", "rm f; touch f", &["f"]),
    ("devices", "", "mknod c c 1 3; mknod b b 7 300; mknod big c 500 70000", &["c", "b", "big"]),
    ("set-id and sticky", "", "touch s; chown 1:1 s; chmod 6755 s; mkdir t; chmod 1777 t; mkdir g; chmod 2775 g", &["s", "t/"]),
    ("directory without permissions", "", "mkdir d; touch d/f; mkdir d/e; touch d/e/g; chmod 0 d/e; chmod 0500 d", &["d/e/g"]),
    ("mode of a lower directory", "mkdir -p d/e; touch d/e/f", "chmod 700 d; chown 5:6 d", &["d/", "-d/e/f"]),
    ("times", "mkdir d", "touch d/f; touch -d @1 d/f; touch -d @86400 d", &["d/f"]),
    ("negative time", "", "touch -d @-5 f", &["f"]),
    ("time after 2038", "", "touch -d @4294967300 f; touch -d @9000000000 g", &["f"]),
    ("hard links", "", "echo x >a; ln a b; mkdir d; ln a d/c", &["a", "b", "d/c"]),
    ("hard links of symlinks and fifos", "", "ln -s t l; ln -P l m; mkfifo p; ln p q", &["l", "m", "p", "q"]),
    ("hard link to a lower file", "mkdir d; echo x >d/a", "ln d/a b", &["b", "d/a"]),
    ("two groups of hard links", "", "echo x >a; echo x >b; ln a c; ln b d", &["a", "b", "c", "d"]),
    ("many hard links", "", "touch f; for i in $(seq 300); do ln f l$i; done", &["l300"]),
    ("renamed lower file", "mkdir d; echo x >d/a", "mv d/a d/b", &["d/.wh.a", "d/b"]),
    ("renamed lower directory", "mkdir -p d/e; echo x >d/e/f", "mv d g", &[".wh.d", "g/e/f"]),
    ("swapped files", "echo a >a; echo b >b", "mv a t; mv b a; mv t b", &["a", "b", "-.wh.a"]),
    ("sparse file", "", "truncate -s 30M f; printf x | dd of=f bs=1 seek=20M conv=notrunc 2>/dev/null", &["f"]),
    (
        "empty and block-sized files",
        "",
        "touch e; head -c 512 /dev/zero >b; head -c 513 /dev/zero >c; head -c 262145 /dev/urandom >d",
        &["b"],
    ),
    ("name of 100 bytes", "", "touch $(printf %0100d 0)", &[]),
    ("name of 101 bytes", "", "touch $(printf %0101d 0)", &[]),
    ("name of 255 bytes", "", "touch $(printf %0255d 0); mkdir $(printf %0254d 1)", &[]),
    ("prefix of 155 bytes", "", "p=$(printf %0155d 0); mkdir $p; touch $p/$(printf %0100d 1)", &[]),
    ("prefix of 156 bytes", "", "p=$(printf %0156d 0); mkdir $p; touch $p/$(printf %0100d 1)", &[]),
    (
        "long path",
        "",
        "for i in 1 2 3 4 5; do d=$(printf %0200d $i); mkdir $d; cd $d; done; touch f; ln f g; ln -s $(pwd) l",
        &[],
    ),
    ("long link target", "", "ln -s $(printf %0999d 0) l; ln -s $(printf %0100d 0) m", &["l"]),
    ("names that are not UTF-8", "", "touch \"$(printf 'a\\377b')\" \"$(printf '\\303')\"; ln -s \"$(printf '\\376')\" l", &[]),
    ("names in UTF-8", "", "mkdir grün; touch grün/日本語", &["grün/日本語"]),
    (
        "odd names",
        "",
        "touch -- '-rf' 'a b' ' ' 'x ' \"$(printf 'a\\nb')\" 'back\\slash' '*' '.hidden' '...'",
        &["-rf", "a b", "x "],
    ),
    ("removed long name", "touch $(printf %0255d 0)", "rm *", &[]),
    ("large ids", "", "touch f; chown 3000000:4294967294 f", &["f"]),
    ("symbolic links with owners", "", "ln -s x l; chown -h 7:8 l; touch -h -d @99 l", &["l"]),
    ("dangling, looping and absolute links", "", "ln -s nowhere a; ln -s b b; ln -s /etc/shadow c; ln -s ../../.. d", &["d"]),
    ("order of names", "", "mkdir a a-b; touch a/z a-b/z a.b; mkdir a0", &["a-b/", "a/", "a/z"]),
    ("write through a lower link", "mkdir -p usr/lib; ln -s usr/lib lib", "echo x >lib/f", &["usr/lib/f", "-lib/f"]),
    (
        "file in a removed and remade tree",
        "mkdir -p a/b/c; touch a/b/c/d",
        "rm -r a; mkdir -p a/b/c; touch a/b/c/e",
        &["a/b/c/e"],
    ),
    ("rm -rf of everything", "mkdir -p etc d/e; touch etc/p d/e/f; ln -s x l", "rm -rf ./*", &[".wh.etc", ".wh.d", ".wh.l"]),
    ("deep tree", "", "for i in $(seq 120); do mkdir d; cd d; done; touch f", &[]),
    ("wide directory", "", "mkdir d; cd d; seq 3000 | xargs touch", &["d/3000"]),
    ("appended lower file keeps its mode", "touch f; chmod 4711 f; chown 9:9 f", "echo x >>f; chmod 4711 f", &["f"]),
    ("socket", "", "python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"s\")'; touch f; rm s", &["f"]),
    ("xattr", "", "touch f; setfattr -n user.k -v v f; mkdir d; setfattr -n user.d -v '' d", &["f"]),
    ("xattr of a lower directory", "mkdir d; setfattr -n user.a -v 1 d", "touch d/f", &["d/"]),
    (
        "large and binary xattr",
        "",
        "touch f; setfattr -n user.b -v 0x00ff3d0a00 f; setfattr -n user.l -v $(printf %01800d 0) f",
        &["f"],
    ),
    ("file capability", "", "cp /bin/true f; setcap cap_net_raw+ep f", &["f"]),
    ("ACL", "", "touch f; setfacl -m u:5:rw f; mkdir d; setfacl -d -m u:6:rx d; touch d/g", &["f"]),
    (
        "opaque then removed inside",
        "mkdir d; touch d/a d/b",
        "rm -r d; mkdir d; touch d/a; rm d/a",
        &["d/.wh..wh..opq", "-d/.wh.a"],
    ),
    ("file replaced by rename", "echo old >f; ln f g", "echo new >t; mv t f", &["f"]),
    ("lower hard links, one changed", "echo x >a; ln a b", "rm a", &[".wh.a"]),
];

pub(crate) fn tool_missing(script: &str) -> Option<&'static str> {
    ["setfattr", "setcap", "setfacl"].into_iter().find(|tool| {
        script.contains(tool)
            && !std::process::Command::new("sh")
                .args(["-c", &format!("command -v {tool} >/dev/null")])
                .status()
                .unwrap()
                .success()
    })
}

#[test]
fn a_change_packed_and_unpacked_is_the_same_change() {
    if !can_mount("a_change_packed_and_unpacked_is_the_same_change") {
        return;
    }
    for (name, base, change, expected) in CHANGES {
        if let Some(tool) = tool_missing(change).or(tool_missing(base)) {
            println!("skipped: row `{name}` needs {tool}");
            continue;
        }
        let dirs = Dirs::new();
        let [lower, upper, work, at, copy, work2] = ["lower", "upper", "work", "at", "copy", "work2"].map(|d| dirs.make(d));
        sh(&lower, base);
        let wanted = {
            let overlay = Overlay::mount(&[&lower], &upper, &work, &at);
            sh(&overlay.at, change);
            // The root's own change stands in no layer.
            tell(&plain(&overlay.at), true)
        };
        let stack = View::new([&upper, &lower]).unwrap();
        assert_eq!(tell(&stack, true), wanted, "{name}: the view is not what the overlay shows");

        let tar = packed(&upper);
        let stats = unpacked(&tar, &copy, &View::new([&lower]).unwrap()).unwrap();
        assert_eq!(stats.duplicates, 0, "{name}");
        assert_eq!(tell(&View::new([&copy, &lower]).unwrap(), true), wanted, "{name}: the unpacked layer differs");
        {
            let overlay = Overlay::mount(&[&lower], &copy, &work2, &at);
            assert_eq!(tell(&plain(&overlay.at), true), wanted, "{name}: the overlay of the unpacked layer differs");
        }
        assert_eq!(packed(&copy), tar, "{name}: packing is not the inverse of unpacking");

        // The same with deletions as plain files.
        let style = WhiteoutStyle::Names;
        let named = dirs.make("named");
        let options = UnpackOptions { style, ..UnpackOptions::default() };
        unpack(&mut &tar[..], &RootDir::open(&named).unwrap(), &View::new([&lower]).unwrap(), &options).unwrap();
        let roots = [&named, &lower].map(|path| RootDir::open(path).unwrap());
        assert_eq!(tell(&View::from_roots(roots.into(), style).unwrap(), true), wanted, "{name}: with markers");
        let mut again = Vec::new();
        pack(&RootDir::open(&named).unwrap(), &mut again, &PackOptions { style, ..PackOptions::default() }).unwrap();
        assert_eq!(again, tar, "{name}: packed from markers");

        let names: Vec<_> = entries(&tar).into_iter().map(|e| e.path.escape_ascii().to_string()).collect();
        for wanted in *expected {
            let (wanted, there) = wanted.strip_prefix('-').filter(|n| *n != "rf").map_or((*wanted, true), |n| (n, false));
            let wanted = wanted.as_bytes().escape_ascii().to_string();
            assert_eq!(names.contains(&wanted), there, "{name}: {wanted} in {names:?}");
        }

        // The same on a plain file system, where there's nothing of an overlay to get wrong. Links across layers are the
        // exception that every overlay makes.
        if *name != "lower hard links, one changed" && *name != "file replaced by rename" {
            let flat = dirs.make("flat");
            sh(&flat, base);
            sh(&flat, change);
            let without_randoms = |mut told: super::testing::Told| {
                told.retain(|path, _| path != "/d" || *name != "empty and block-sized files");
                told
            };
            let (flat, stack) = (tell(&plain(&flat), false), tell(&View::new([&copy, &lower]).unwrap(), false));
            let (mut flat, mut stack) = (without_randoms(flat), without_randoms(stack));
            if *name == "long path" {
                // It holds its own place.
                flat.retain(|p, _| !p.ends_with("/l"));
                stack.retain(|p, _| !p.ends_with("/l"));
            }
            assert_eq!(stack, flat, "{name}: differs from a plain directory");
        }
    }
}

#[test]
fn pythons_tarfile_lists_the_same() {
    let dirs = Dirs::new();
    let diff = dirs.make("diff");
    sh(
        &diff,
        "mkdir -p etc/sub; echo x >etc/f; ln etc/f etc/g; ln -s f etc/l; mkfifo p; chmod 4755 etc/f; touch -d @-7 old; \
         touch -d @12345678901 late; d=$(printf %0180d 0); mkdir $d; touch $d/$(printf %0120d 0); touch \"$(printf 'n\\377')\" grün; \
         ln -s $(printf %0150d 0) long",
    );
    let tar = packed(&diff);
    let path = dirs.temp.path().join("t.tar");
    std::fs::write(&path, &tar).unwrap();
    let script = "import tarfile,sys,os\nfor m in tarfile.open(sys.argv[1], encoding='utf-8', errors='surrogateescape'):\n  \
                  n=os.fsencode(m.name)+(b'/' if m.isdir() else b'')\n  \
                  sys.stdout.buffer.write(b'%s|%s|%o|%d|%d|%d|%d|%s\\n'%(n,m.type,m.mode,m.uid,m.gid,m.size,m.mtime,os.fsencode(m.linkname)))";
    let output = std::process::Command::new("python3").args(["-c", script]).arg(&path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut ours = Vec::new();
    for entry in entries(&tar) {
        let flag = match entry.kind {
            EntryKind::HardLink => '1',
            EntryKind::Node(crate::rootdir::Kind::Symlink) => '2',
            EntryKind::Node(crate::rootdir::Kind::Dir) => '5',
            EntryKind::Node(crate::rootdir::Kind::Fifo) => '6',
            _ => '0',
        };
        ours.extend_from_slice(&entry.path);
        let rest = format!("|{flag}|{:o}|{}|{}|{}|{}|", entry.mode, entry.uid, entry.gid, entry.size, entry.mtime.secs);
        ours.extend_from_slice(rest.as_bytes());
        ours.extend_from_slice(&entry.link);
        ours.push(b'\n');
    }
    assert_eq!(output.stdout.escape_ascii().to_string(), ours.escape_ascii().to_string());
}

#[test]
fn gnu_tar_unpacks_the_same_tree() {
    if !can_mount("gnu_tar_unpacks_the_same_tree") {
        return;
    }
    let dirs = Dirs::new();
    let [diff, other] = ["diff", "other"].map(|d| dirs.make(d));
    for (name, _, change, _) in CHANGES.iter().filter(|(_, base, ..)| base.is_empty()) {
        if tool_missing(change).is_some() || *name == "ACL" {
            continue;
        }
        sh(&diff, change);
        let path = dirs.temp.path().join("t.tar");
        std::fs::write(&path, packed(&diff)).unwrap();
        sh(&other, &format!("tar --xattrs --xattrs-include='*' --numeric-owner -xpf {}", path.display()));
        assert_eq!(tell(&plain(&other), true), tell(&plain(&diff), true), "{name}");
        for dir in [&diff, &other] {
            sh(dir, "chmod -R u+rwx . ; find . -mindepth 1 -delete");
        }
    }
}

#[test]
fn umoci_unpacks_the_same_tree() {
    if !can_mount("umoci_unpacks_the_same_tree") {
        return;
    }
    let dirs = Dirs::new();
    let diff = dirs.make("diff");
    if !std::process::Command::new("umoci").arg("--version").output().is_ok_and(|o| o.status.success()) {
        println!("skipped: umoci_unpacks_the_same_tree needs umoci");
        return;
    }
    for (at, (name, _, change, _)) in CHANGES.iter().enumerate().filter(|(_, row)| row.1.is_empty()) {
        if tool_missing(change).is_none() && !["ACL", "deep tree"].contains(name) {
            sh(&diff, &format!("mkdir r{at}; cd r{at}\n{change}"));
        }
    }
    std::fs::write(dirs.temp.path().join("layer.tar"), packed(&diff)).unwrap();
    sh(
        dirs.temp.path(),
        "umoci init --layout oci; umoci new --image oci:t; umoci raw add-layer --image oci:t layer.tar; umoci unpack --image oci:t bundle",
    );
    let (mut ours, theirs) = (tell(&plain(&diff), true), tell(&plain(&dirs.temp.path().join("bundle/rootfs")), true));
    ours.remove("/");
    // Go takes an empty PAX value for none at all.
    ours.retain(|path, line| theirs.get(path).map_or("", |l| l) != line.trim_end_matches(" user.d="));
    let found: Vec<_> = ours.keys().map(|path| theirs.get(path)).collect();
    assert!(ours.is_empty(), "{ours:#?} became {found:#?}");
}

#[test]
fn reserved_names_are_refused() {
    let dirs = Dirs::new();
    let diff = dirs.make("diff");
    sh(&diff, "mkdir d; touch d/.wh.x");
    let packed = pack(&RootDir::open(&diff).unwrap(), &mut std::io::sink(), &PackOptions::default());
    assert_eq!(
        packed.unwrap_err().to_string(),
        "`d/.wh.x` cannot stand in a layer: names that begin with `.wh.` mean deleted files there"
    );
}

#[test]
fn overlay_attributes_and_labels_stay_out() {
    if !can_mount("overlay_attributes_and_labels_stay_out") {
        return;
    }
    let dirs = Dirs::new();
    let diff = dirs.make("diff");
    sh(&diff, "touch f; mkdir d");
    let root = RootDir::open(&diff).unwrap();
    for key in ["trusted.overlay.origin", "user.overlay.redirect", "trusted.other"] {
        root.child(b"d").unwrap().set_xattr_of_self(key.as_bytes(), b"x").unwrap();
    }
    assert!(entries(&packed(&diff)).iter().all(|e| e.xattrs.is_empty()));
}

#[test]
fn a_packed_layer_does_not_depend_on_threads() {
    let dirs = Dirs::new();
    let diff = dirs.make("diff");
    sh(&diff, "cp /bin/sh a; head -c 3000000 /dev/urandom >b; cat a b a >c; seq 400000 >d");
    let root = RootDir::open(&diff).unwrap();
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let mut results = Vec::new();
        for threads in [1, 2, 5] {
            let mut out = Vec::new();
            let encode = EncodeOptions { threads: Some(threads), ..EncodeOptions::default() };
            let packed = pack_compressed(&root, &mut out, compression, encode, &PackOptions::default()).unwrap();
            results.push((packed, out));
        }
        assert!(results.windows(2).all(|w| w[0] == w[1]), "{compression:?}");
        let tar = packed(&diff);
        assert_eq!(results[0].0.tar.diff_id.digest(), Digest::of(&tar));
        assert_eq!(results[0].0.stats.tar_size, tar.len() as u64);
    }
}

#[test]
fn a_known_tar_is_known_again_and_another_is_not() {
    let dirs = Dirs::new();
    let diff = dirs.make("diff");
    sh(&diff, "seq 400000 >a; seq 400000 >b; touch -d @7 a b");
    let root = RootDir::open(&diff).unwrap();
    let packed = |known| {
        let mut out = Vec::new();
        let options = PackOptions { known, ..PackOptions::default() };
        (pack_compressed(&root, &mut out, Compression::Gzip, EncodeOptions::default(), &options).unwrap(), out)
    };
    let first = packed(None);
    assert_eq!(packed(Some(first.0.tar)), first);
    // What is known is believed as far as the check goes, and no further.
    let other = KnownTar { diff_id: DiffId::new(Digest::of(b"other")), ..first.0.tar };
    assert_eq!(packed(Some(other)).0.tar, other);
    for (crc, size) in [(None, other.size), (other.crc, 1), (other.crc.map(|crc| crc ^ 1), other.size)] {
        assert_eq!(packed(Some(KnownTar { crc, size, ..other })), first);
    }
    // One bit, with the same size and time.
    sh(&diff, "printf 0 | dd of=b bs=1 seek=1234567 conv=notrunc status=none; touch -d @7 b");
    assert_ne!(packed(Some(first.0.tar)).0.tar.diff_id, first.0.tar.diff_id);
}

#[test]
fn umoci_and_skopeo_style_names_have_no_dot() {
    let dirs = Dirs::new();
    let diff = dirs.make("diff");
    sh(&diff, "mkdir etc; touch etc/passwd a");
    let names: Vec<_> = entries(&packed(&diff)).into_iter().map(|e| String::from_utf8(e.path).unwrap()).collect();
    assert_eq!(names, ["a", "etc/", "etc/passwd"]);
    let mut tar = Vec::new();
    let options = PackOptions { root_entry: true, latest_mtime: Some(3), ..PackOptions::default() };
    pack(&RootDir::open(&diff).unwrap(), &mut tar, &options).unwrap();
    let entries = entries(&tar);
    assert_eq!(entries[0].path, b"./");
    assert!(entries.iter().all(|e| e.mtime.secs == 3));
}
