//! Headers that contradict one another (C45), maps of sparse files (C46), ends of streams (C56), bombs (C57), and archives for
//! `kiln load`.

use std::io::Write;
use std::process::{Command, Stdio};

use kiln_oci::digest::Digest;
use serde_json::{Value, json};

use super::craft::{Item, dir, empty, extended, file, item, link, open, raw, records, symlink, tar};
use super::{Row, Way, refused, tree};

pub(super) fn rows() -> Vec<Row> {
    [sizes(), sparse(), ends(), bombs(), loaded()].concat()
}

fn sizes() -> Vec<Row> {
    let no = |name: &str, archive: Vec<u8>, says| refused(format!("C45 {name}"), archive, says);
    let yes = |name: &str, archive: Vec<u8>, lines: &[&str]| tree(format!("C45 {name}"), archive, lines);
    let smuggled = file("kiln-escaped").bytes();
    let size = smuggled.len().to_string();
    let hidden = "x f =#1024";
    let long = raw(extended(b'L', [&b"g".repeat(150)[..], b"\0"].concat()).bytes());
    let long_line = format!("{} f =#1024", "g".repeat(150));
    let said = |announced: u64| raw(file("x").data(&smuggled).announced(announced).pax("size", &size).bytes());
    let pax = |body: &[u8]| raw(extended(b'x', body).bytes());
    let sized = records(&[("size", size.as_bytes())]);
    let mut rows = vec![
        yes("PAX size, header 0", tar(&[said(0), file("y")]), &[hidden, "y f =new"]),
        yes("PAX size, header 512", tar(&[said(512), file("y")]), &[hidden, "y f =new"]),
        yes("PAX size, header too large", tar(&[said(1 << 33), file("y")]), &[hidden, "y f =new"]),
        yes("PAX size, header equal", tar(&[said(1024), file("y")]), &[hidden, "y f =new"]),
        yes(
            "PAX size before a long name",
            tar(&[pax(&sized), long.clone(), file("x").data(&smuggled).announced(0), file("y")]),
            &[&long_line, "y f =new"],
        ),
        yes(
            "PAX size behind a long name",
            tar(&[long.clone(), pax(&sized), file("x").data(&smuggled).announced(0), file("y")]),
            &[&long_line, "y f =new"],
        ),
        yes("PAX size of the file before", tar(&[said(0), file("y").data(&smuggled)]), &[hidden, "y f =#1024"]),
        yes(
            "two PAX sizes in one header",
            tar(&[pax(&records(&[("size", b"0"), ("size", size.as_bytes())])), file("x").data(&smuggled), file("y")]),
            &[hidden, "y f"],
        ),
        yes("size of a hard link", tar(&[link("x", "d/f").announced(600), file("y")]), &["x f =x", "y f =new"]),
        yes("binary size", tar(&[file("x").patched(124, b"\x80\0\0\0\0\0\0\0\0\0\0\x03")]), &["x f =new"]),
        yes("size with blanks", tar(&[file("x").patched(124, b"         3 \0")]), &["x f =new"]),
        yes("contiguous file", tar(&[item(b'7', "x").data("new")]), &["x f =new"]),
        yes("file without a type", tar(&[item(0, "x").data("new")]), &["x f =new"]),
        yes("directory without a type", tar(&[item(0, "x/").mode(0o711)]), &["x d m711"]),
        yes("global comment", tar(&[raw(extended(b'g', records(&[("comment", b"hello")])).bytes()), file("x")]), &["x f"]),
        yes("global time", tar(&[raw(extended(b'g', records(&[("mtime", b"9")])).bytes()), file("x")]), &["x f @9"]),
        no("PAX size of a directory", tar(&[dir("x").pax("size", &size), raw(smuggled.clone())]), &["no content"]),
        no("PAX size of a hard link", tar(&[link("x", "d/f").pax("size", &size), raw(smuggled.clone())]), &["no content"]),
        no("size of a directory", tar(&[dir("x").announced(1024), raw(smuggled.clone())]), &["no content"]),
        no("size of a link", tar(&[symlink("x", "y").announced(1024), raw(smuggled.clone())]), &["no content"]),
        no("size of a fifo", tar(&[item(b'6', "x").announced(512), raw(smuggled.clone())]), &["no content"]),
        no("PAX size, negative", tar(&[file("x").pax("size", "-1")]), &["PAX size"]),
        no("PAX size, huge", tar(&[file("x").pax("size", "99999999999999999999")]), &["PAX size"]),
        no("PAX size of 2^63", tar(&[file("x").pax("size", "9223372036854775808")]), &["PAX size"]),
        no("PAX size with a sign", tar(&[file("x").pax("size", "+3")]), &["PAX size"]),
        no("PAX size with a blank", tar(&[file("x").pax("size", " 3")]), &["PAX size"]),
        no("PAX size, empty", tar(&[file("x").pax("size", "")]), &["is empty"]),
        no("PAX path, empty", tar(&[file("x").pax("path", "")]), &["is empty"]),
        no("PAX size beyond the end", tar(&[file("x").pax("size", "100000")]), &["cut off"]),
        no("size beyond the end", tar(&[file("x").announced(100_000)]), &["cut off"]),
        no("size of 2^62", tar(&[file("x").announced(1 << 62)]), &["x"]),
        no("negative size", tar(&[file("x").announced(u64::MAX)]), &["size is not a number"]),
        no("size that is a word", tar(&[file("x").patched(124, b"three\0\0\0\0\0\0\0")]), &["not a number"]),
        no("size after a NUL", tar(&[file("x").patched(124, b"\x000000000003")]), &["not a number"]),
        no("size with more behind a NUL", tar(&[file("x").patched(124, b"3\x003\0\0\0\0\0\0\0\0\0")]), &["not a number"]),
        no(
            "two extended headers",
            tar(&[pax(&records(&[("path", b"a")])), pax(&records(&[("path", b"b")])), file("x")]),
            &["two extended headers"],
        ),
        no("two long names", tar(&[long.clone(), long.clone(), file("x")]), &["two long names"]),
        no(
            "a long name that goes on",
            tar(&[
                raw({
                    let mut bytes = extended(b'L', b"short").bytes();
                    bytes[512 + 5..512 + 12].copy_from_slice(b"-longer");
                    bytes
                }),
                file("x"),
            ]),
            &["goes on"],
        ),
        no("global path", tar(&[raw(extended(b'g', records(&[("path", b"y")])).bytes()), file("x")]), &["one name or size"]),
        no("global size", tar(&[raw(extended(b'g', records(&[("size", b"0")])).bytes()), file("x")]), &["one name or size"]),
        no("extended header and nothing", tar(&[pax(&sized)]), &["followed by nothing"]),
        no("long name and nothing", tar(std::slice::from_ref(&long)), &["followed by nothing"]),
        no("PAX record too long", tar(&[pax(b"99 path=x\n"), file("x")]), &["does not end"]),
        no("PAX record too short", tar(&[pax(b"4 path=x\n"), file("x")]), &["does not end"]),
        no("PAX record of length 0", tar(&[pax(b"0 path=x\n"), file("x")]), &["does not end"]),
        no("PAX record of a huge length", tar(&[pax(b"99999999999999999999 path=x\n"), file("x")]), &["no length"]),
        no("PAX record without =", tar(&[pax(b"7 path\n"), file("x")]), &["no `=`"]),
        no("PAX record without length", tar(&[pax(b"path=x\n"), file("x")]), &["no length"]),
        no("PAX record without keyword", tar(&[pax(b"5 =x\n"), file("x")]), &["keyword is empty"]),
        no("PAX of 2 MiB", tar(&[pax(&vec![b'1'; 2 << 20]), file("x")]), &["larger than 1 MiB"]),
        no("PAX of 8 GiB", tar(&[item(b'x', "p").announced((8 << 30) - 1)]), &["larger than 1 MiB"]),
        no("long name of 8 GiB", tar(&[item(b'L', "p").announced((8 << 30) - 1)]), &["larger than 1 MiB"]),
        no("a file with a slash", tar(&[file("x/")]), &["ends in a slash"]),
        no("a name in two parts of no such dialect", tar(&[file("x").patched(257, &[0; 8]).patched(345, b"pre")]), &["dialect"]),
        no("a word for a mode", tar(&[file("x").patched(100, b"rwxr-xr")]), &["not a number"]),
        no("a word for a device number", tar(&[file("x").patched(329, b"seven\0\0")]), &["not a number"]),
        no(
            "a wrong checksum",
            tar(&[raw({
                let mut bytes = file("x").bytes();
                bytes[0] = b'y';
                bytes
            })]),
            &["no tar header"],
        ),
        no("text", b"This is no archive, but a text of some length. ".repeat(100), &["no tar header"]),
        no("zeros and text", [vec![0; 512], b"x".repeat(512)].concat(), &["single block of zeros"]),
    ];
    for kind in *b"DMNVXZIA89" {
        rows.push(no(&format!("type {}", char::from(kind)), tar(&[item(kind, "x")]), &["type", "not supported"]));
    }
    rows
}

fn sparse() -> Vec<Row> {
    let no = |name: &str, entries: &[Item], says| refused(format!("C46 {name}"), tar(entries), says);
    let map = |map: &str, size: &str, stored: &str| {
        file("x")
            .data(stored)
            .pax("GNU.sparse.major", "0")
            .pax("GNU.sparse.minor", "1")
            .pax("GNU.sparse.size", size)
            .pax("GNU.sparse.map", map)
    };
    let data_map = |text: &str, size: &str| {
        let mut data = text.as_bytes().to_vec();
        data.resize(data.len().next_multiple_of(512).max(512), 0);
        file("x").data(data).pax("GNU.sparse.major", "1").pax("GNU.sparse.minor", "0").pax("GNU.sparse.realsize", size)
    };
    let many: String = (0..100_000).map(|i| format!("{i},1,")).collect();
    let lines = |n: u64| (0..n).fold(format!("{n}\n"), |s, i| s + &format!("{}\n0\n", i * 10));
    vec![
        no("a billion regions", &[data_map("1000000000\n0\n1\n", "10")], &["too large or cut off"]),
        no("a count of 511 digits", &[data_map(&"9".repeat(511), "10")], &["not made of numbers"]),
        no("a count that never ends", &[data_map(&"1".repeat(4096), "10")], &["not made of numbers"]),
        no("a map of 2 MiB", &[data_map(&lines(150_000), "2000000")], &["too large"]),
        no("a map of 2 MiB in the header", &[map(&many.repeat(2), "10", "")], &["larger than 1 MiB"]),
        no("regions that overlap", &[map("0,3,2,2", "10", "abcde")], &["overlap"]),
        no("regions backwards", &[map("5,2,0,2", "10", "abcd")], &["overlap"]),
        no("a region beyond the end", &[map("8,4", "10", "abcd")], &["beyond its end"]),
        no("an offset of 2^63", &[map("9223372036854775807,9223372036854775807", "10", "")], &["sparse file"]),
        no("another length", &[map("0,2", "10", "abcd")], &["not what is stored"]),
        no("half a region", &[map("0,2,3", "10", "ab")], &["not made of numbers"]),
        no("a negative region", &[map("0,-2", "10", "ab")], &["not made of numbers"]),
        no("no size", &[map("0,2", "", "ab")], &["no size"]),
        no("an unknown format", &[file("x").pax("GNU.sparse.major", "7").pax("GNU.sparse.minor", "0")], &["not known"]),
        no("a size of 2^62", &[map("", "4611686018427387904", "")], &["x"]),
        no(
            "described twice",
            &[item(b'S', "x").pax("GNU.sparse.major", "0").pax("GNU.sparse.minor", "1").pax("GNU.sparse.size", "1")],
            &["x"],
        ),
        no("an old map of text", &[item(b'S', "x").patched(257, b"ustar  \0").patched(386, b"nonsense")], &["not"]),
        no("a directory", &[dir("x").pax("GNU.sparse.size", "100").pax("GNU.sparse.map", "0,100")], &["sparse"]),
        tree("C46 holes", tar(&[map("0,2,8,2", "10", "abcd")]), &["x f =ab\\x00\\x00\\x00\\x00\\x00\\x00cd"]),
        tree("C46 a hole alone", tar(&[map("", "1000", "")]), &["x f =#1000"]),
        tree("C46 a map of 1000 regions", tar(&[data_map(&lines(1000), "10000")]), &["x f =#10000"]),
    ]
}

/// What a program makes of its input.
fn through(program: &str, args: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{program}: {e}"));
    let mut stdin = child.stdin.take().expect("stdin is piped");
    std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input));
        child.wait_with_output().expect("it ends").stdout
    })
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    through("gzip", &["-nc"], bytes)
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    through("zstd", &["-qc"], bytes)
}

/// C56: what follows the end of a stream, and of the archive in it.
fn ends() -> Vec<Row> {
    let plain = tar(&[file("x"), file("y")]);
    let (first, second) = plain.split_at(700);
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 5, 0, 0, 0][..], b"hello"].concat();
    let half = |bytes: Vec<u8>| bytes[..bytes.len() / 2].to_vec();
    let broken = |mut bytes: Vec<u8>| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x55;
        bytes
    };
    let wrong_sum = |mut bytes: Vec<u8>| {
        let at = bytes.len() - 6;
        bytes[at] ^= 1;
        bytes
    };
    let both = &["x f =new", "y f =new"][..];
    let yes = |name: &str, archive: Vec<u8>| tree(format!("C56 {name}"), archive, both).of(plain.clone());
    // Each of an archive of its own: a layer that is unpacked already is not read again.
    let no = |name: &str, make: &dyn Fn(&[u8], &[u8]) -> Vec<u8>| {
        let plain = tar(&[file("x"), file(name.replace(' ', "-"))]);
        let (first, second) = plain.split_at(700);
        refused(format!("C56 {name}"), make(first, second), &["cannot decompress the layer"]).of(plain)
    };
    let all = |first: &[u8], second: &[u8]| [first, second].concat();
    let ended = |name: &str, archive: Vec<u8>| tree(format!("C56 {name}"), archive, both);
    vec![
        yes("gzip", gzip(&plain)),
        yes("zstd", zstd(&plain)),
        yes("two members of gzip", [gzip(first), gzip(second)].concat()),
        yes("an empty member of gzip", [gzip(first), gzip(b""), gzip(second)].concat()),
        yes("a hundred members of gzip", plain.chunks(plain.len() / 100 + 1).flat_map(gzip).collect()),
        yes("two frames of zstd", [zstd(first), zstd(second)].concat()),
        yes("a skippable frame before", [&skippable[..], &zstd(&plain)].concat()),
        yes("a skippable frame behind", [&zstd(&plain)[..], &skippable].concat()),
        yes("a skippable frame between", [&zstd(first)[..], &skippable, &zstd(second)].concat()),
        no("text behind gzip", &|a, b| [&gzip(&all(a, b))[..], b"trailing garbage"].concat()),
        no("text behind zstd", &|a, b| [&zstd(&all(a, b))[..], b"trailing garbage"].concat()),
        no("zstd behind gzip", &|a, b| [gzip(a), zstd(b)].concat()),
        no("half a stream of gzip", &|a, b| half(gzip(&all(a, b)))),
        no("half a stream of zstd", &|a, b| half(zstd(&all(a, b)))),
        no("half a second member", &|a, b| [gzip(a), half(gzip(b))].concat()),
        no("damaged gzip", &|a, b| broken(gzip(&all(a, b)))),
        no("a wrong sum of gzip", &|a, b| wrong_sum(gzip(&all(a, b)))),
        no("only the start of gzip", &|a, b| gzip(&all(a, b))[..10].to_vec()),
        no("half a skippable frame", &|a, b| [&zstd(&all(a, b))[..], &skippable[..6]].concat()),
        ended("no end", open(&[file("x"), file("y")])),
        ended("one block of zeros", [open(&[file("x"), file("y")]), vec![0; 512]].concat()),
        ended("many zeros", [open(&[file("x"), file("y")]), vec![0; 100_000]].concat()),
        ended("text behind the end", [plain.clone(), b"more".to_vec()].concat()),
        ended("an archive behind the end", [plain.clone(), tar(&[file("z")])].concat()),
        ended("the last padding is missing", open(&[file("x"), file("y")])[..3 * 512 + 3].to_vec()),
        tree("C56 nothing at all", Vec::new(), &[]),
        tree("C56 only the end", vec![0; 1024], &[]),
        refused("C56 cut in a header", plain[..300].to_vec(), &["cut off"]),
        refused("C56 cut in a file", plain[..513].to_vec(), &["cut off"]),
        refused("C56 another archive than the configuration says", tar(&[file("z")]), &["the image's configuration says"])
            .of(tar(&[file("something else")])),
    ]
}

/// C57: little that becomes much. What follows the refused part is never looked at, so it need not be there.
fn bombs() -> Vec<Row> {
    let zeros = zstd(&vec![0; 256 << 20]);
    let many = |n: usize| zeros.repeat(n);
    let claim = |size: u64| open(&[file("x").data("").announced(size)]);
    let no = |name: &str, archive: Vec<u8>, says| refused(format!("C57 {name}"), archive, says);
    let frame = |exponent: u8, content: &[u8]| {
        let header = u32::try_from(content.len() << 3 | 1).expect("a small block").to_le_bytes();
        [&[0x28, 0xb5, 0x2f, 0xfd, 0, exponent << 3], &header[..3], content].concat()
    };
    let small = tar(&[file("x")]);
    let opaque: Vec<Item> = (0..5_000).flat_map(|i| [dir(format!("o/{i}")), empty(format!("o/{i}/.wh..wh..opq"))]).collect();
    let opaque = tar(&opaque);
    let mut chain: Vec<Item> = (0..39).map(|i| symlink(format!("l{i}"), "d/../".repeat(600) + &format!("l{}", i + 1))).collect();
    chain.push(symlink("l39", "nowhere"));
    chain.extend((0..50).map(|i| file(format!("l0/{i}"))));
    let global: Vec<(String, Vec<u8>)> = (0..40_000).map(|i| (format!("key{i}"), b"0123456789".to_vec())).collect();
    let global: Vec<(&str, &[u8])> = global.iter().map(|(k, v)| (&k[..], &v[..])).collect();
    let mut global = vec![raw(extended(b'g', records(&global)).bytes())];
    global.extend((0..3_000).map(|i| symlink(format!("g{i}"), "x")));
    let global = tar(&global);
    let made = (0..3_000).map(|i| format!("g{i} l >x")).collect::<Vec<_>>();
    let made: Vec<&str> = made.iter().map(String::as_str).collect();
    let dirs: Vec<String> = ["o d m755".to_owned()].into_iter().chain((0..5_000).map(|i| format!("o/{i} d m711"))).collect();
    let dirs: Vec<&str> = dirs.iter().map(String::as_str).collect();
    vec![
        no("100 TiB in a header", [zstd(&claim(100 << 40)), many(400)].concat(), &["x", "room"]),
        no(
            "100 TiB by PAX",
            [zstd(&open(&[file("x").data("").pax("size", "109951162777600")])), many(4)].concat(),
            &["x", "room"],
        ),
        no("100 GiB behind the end", [zstd(&tar(&[])), many(400)].concat(), &["end"]),
        no("100 GiB of gzip behind the end", [gzip(&tar(&[])), gzip(&vec![0; 16 << 20]).repeat(6400 / 16)].concat(), &["end"]),
        no("a window of 2 GiB", frame(21, &small), &["cannot decompress the layer"]),
        no("a window of 256 MiB", frame(18, &small), &["cannot decompress the layer"]),
        tree("C57 a window of 128 MiB", frame(17, &small), &["x f =new"]).of(small),
        tree("C57 5000 opaque directories", gzip(&opaque), &dirs).of(opaque),
        tree("C57 3000 entries below a large global header", gzip(&global), &made).of(global),
        no("links through 48,000 names", tar(&chain), &["l0/0"]),
        no("100 TiB by ADD", [zstd(&claim(100 << 40)), many(400)].concat(), &["x", "room"]).by(Way::Add),
        no("100 GiB behind the end by ADD", [zstd(&tar(&[file("x")])), many(400)].concat(), &["end"]).by(Way::Add),
    ]
}

/// What `kiln load` reads.
fn loaded() -> Vec<Row> {
    let blob = |bytes: &[u8]| file(format!("blobs/sha256/{}", Digest::of(bytes).hex())).data(bytes);
    let about =
        |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "digest": Digest::of(bytes).to_string(), "size": bytes.len()});
    let kind = |name: &str| format!("application/vnd.oci.image.{name}+json");
    let layer = tar(&[file("x")]);
    let config =
        |ids: Value| json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": ids}}).to_string();
    let right = config(json!([Digest::of(&layer).to_string()]));
    let layer_of = || about("application/vnd.oci.image.layer.v1.tar", &layer);
    let image = |config: &str, layers: Value| {
        let text = json!({"schemaVersion": 2, "mediaType": kind("manifest.v1"), "config": about(&kind("config.v1"), config.as_bytes()), "layers": layers});
        text.to_string().into_bytes()
    };
    let manifest = image(&right, json!([layer_of()]));
    let index = |manifests: Value| file("index.json").data(json!({"schemaVersion": 2, "manifests": manifests}).to_string());
    let good = index(json!([about(&kind("manifest.v1"), &manifest)]));
    let no = |name: &str, entries: &[Item], says| refused(format!("C40 {name}"), tar(entries), says).by(Way::Load);
    let whole = [blob(&layer), blob(right.as_bytes()), blob(&manifest), good.clone()];
    let digest = Digest::of(&layer).hex().to_string();
    let mut larger = layer_of();
    larger["size"] = json!(5);
    let other_size = image(&right, json!([larger]));
    let two_ids = config(json!([Digest::of(&layer).to_string(), Digest::of(b"").to_string()]));
    let two = image(&two_ids, json!([layer_of()]));
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let mut upward = layer_of();
    upward["digest"] = json!("sha256:../../../../etc/passwd");
    let upward = image(&right, json!([upward]));
    let named =
        |name: &str| file("manifest.json").data(json!([{"Config": name, "RepoTags": null, "Layers": ["l.tar"]}]).to_string());
    vec![
        tree("C40 a whole archive", tar(&whole), &[]).by(Way::Load),
        tree("C40 names that lead out", tar(&[&whole[..], &[file("../kiln-escaped"), file("/tmp/kiln-escaped")]].concat()), &[])
            .by(Way::Load),
        tree(
            "C40 links that lead out",
            tar(&[&whole[..], &[symlink("x", "/etc/passwd"), link("y", "../../etc/passwd")]].concat()),
            &[],
        )
        .by(Way::Load),
        no(
            "a layer that is a link out",
            &[symlink(format!("blobs/sha256/{digest}"), "/etc/passwd"), blob(right.as_bytes()), blob(&manifest), good.clone()],
            &["is missing"],
        ),
        no(
            "a layer that is a link to itself",
            &[symlink(format!("blobs/sha256/{digest}"), &digest), blob(right.as_bytes()), blob(&manifest), good.clone()],
            &["is missing"],
        ),
        no(
            "a configuration that is a link out",
            &[symlink("c.json", "../../../../etc/passwd"), named("c.json"), file("l.tar").data(&layer)],
            &["is missing"],
        ),
        no("a configuration by a name that leads out", &[named("../../etc/passwd"), file("l.tar").data(&layer)], &["is missing"]),
        no(
            "a digest that is a path",
            &[&whole[..3], &[blob(&upward), index(json!([about(&kind("manifest.v1"), &upward)]))]].concat(),
            &["digest"],
        ),
        no(
            "a layer with another digest",
            &[file(format!("blobs/sha256/{digest}")).data("else"), blob(right.as_bytes()), blob(&manifest), good.clone()],
            &["another digest"],
        ),
        no(
            "a layer of another size",
            &[&whole[..3], &[blob(&other_size), index(json!([about(&kind("manifest.v1"), &other_size)]))]].concat(),
            &["size"],
        ),
        no(
            "more layers in the configuration",
            &[blob(&layer), blob(two_ids.as_bytes()), blob(&two), index(json!([about(&kind("manifest.v1"), &two)]))],
            &["layers"],
        ),
        no("no layer", &[blob(right.as_bytes()), blob(&manifest), good.clone()], &["is missing"]),
        no("no configuration", &[blob(&layer), blob(&manifest), good.clone()], &["is missing"]),
        no("no manifest", &[blob(&layer), blob(right.as_bytes()), good], &["is missing"]),
        no(
            "an index of itself",
            &[index(json!([{"mediaType": kind("index.v1"), "digest": format!("sha256:{}", "0".repeat(64)), "size": 5}]))],
            &["is missing"],
        ),
        no("an index that is no JSON", &[file("index.json").data("{")], &["index.json"]),
        no("an index of 100,000 brackets", &[file("index.json").data(deep)], &["index.json"]),
        no("an index of 64 MiB", &[file("index.json").data(vec![b' '; 64 << 20])], &["more than the"]),
        no("neither index nor manifest", &[file("x")], &["no archive of images"]),
        no("an index that is a folder", &[dir("index.json")], &["no archive of images"]),
        no(
            "two extended headers",
            &[
                raw(extended(b'x', records(&[("path", b"a")])).bytes()),
                raw(extended(b'x', records(&[("path", b"b")])).bytes()),
                file("x"),
            ],
            &["two extended headers"],
        ),
        refused("C56 half an archive to load", gzip(&tar(&whole))[..200].to_vec(), &["cannot read"]).by(Way::Load),
        refused(
            "C57 100 TiB to load",
            [zstd(&open(&[file("index.json").data("").announced(100 << 40)])), zstd(&vec![0; 256 << 20]).repeat(400)].concat(),
            &["room"],
        )
        .by(Way::Load),
    ]
}
