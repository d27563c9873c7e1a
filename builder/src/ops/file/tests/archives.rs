//! What ADD makes of archives and of what it fetched.

use super::*;

/// An archive of lines as `plant` takes them; `L` is a hard link in the archive's own words, `R` an entry of a raw name.
fn archive(lines: &str) -> Vec<u8> {
    use kiln_store::tar::{Entry, EntryKind, Writer};
    let mut writer = Writer::new(Vec::new());
    for line in lines.lines().map(str::trim) {
        let words: Vec<&str> = line.split(' ').collect();
        let owner =
            words.get(3).and_then(|w| w.split_once(':')).map_or((7, 8), |(u, g)| (u.parse().unwrap(), g.parse().unwrap()));
        let content = words.get(4).copied().unwrap_or_default();
        let mut entry = Entry::file(words[1], 0);
        entry.mtime = Timestamp::from_secs(SOURCE_TIME);
        (entry.uid, entry.gid) = owner;
        match words[0] {
            "d" => entry.kind = EntryKind::Node(Kind::Dir),
            "l" => entry.kind = EntryKind::Node(Kind::Symlink),
            "h" => entry.kind = EntryKind::HardLink,
            "p" => entry.kind = EntryKind::Node(Kind::Fifo),
            _ => entry.size = content.len() as u64,
        }
        match words[0] {
            "l" | "h" => entry.link = words[2].into(),
            "p" => {}
            _ => entry.mode = u32::from_str_radix(words[2], 8).unwrap(),
        }
        writer.append(&entry, if words[0] == "f" { content.as_bytes() } else { b"" }).unwrap();
    }
    writer.finish().unwrap().0
}

fn compressed(bytes: &[u8], compression: kiln_store::layer::compress::Compression) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = kiln_store::layer::compress::Encoder::new(Vec::new(), compression, Default::default()).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn add_unpacks_archives_by_what_is_in_them() {
    use kiln_store::layer::compress::Compression;
    let tar = archive("d ./ 700\nf a 4750 7:8 A\nd s/ 711\nf s/x 600 9:9 X\nl s/l x\nh s/h a\np s/p");
    let unpacked = |at: &str| {
        below(at, &["f @/a 4750 7:8 A", "d @/s 711 7:8", "h @/s/h @/a", "l @/s/l x 7:8", "p @/s/p 644 7:8", "f @/s/x 600 9:9 X"])
    };
    let gzip = compressed(&tar, Compression::Gzip);
    for bytes in [&tar, &gzip, &compressed(&tar, Compression::Zstd)] {
        let mut lab = Lab::new();
        fs::write(lab.context_dir().join("any.txt"), bytes).unwrap();
        let mut expected = vec!["d n 755 0:0 @clock".to_owned()];
        expected.extend(unpacked("n"));
        assert_eq!(lab.run("ADD any.txt /n"), expected);
        assert_eq!(lab.run("ADD --chmod=600 any.txt /n/"), expected);
        let mut expected = vec!["d d 700 5:6".to_owned()];
        expected.extend(unpacked("d"));
        assert_eq!(lab.run("ADD any.txt /dlink"), expected);
        let rows = lab.run("ADD --chown=3:4 any.txt /m");
        assert_eq!(rows[..2], ["d m 755 3:4 @clock", "f m/a 4750 3:4 A"]);
        for (line, copied) in [("COPY any.txt /k", "f k "), ("ADD --unpack=false any.txt /k", "f k ")] {
            let rows = lab.run(line);
            assert!(rows.len() == 1 && rows[0].starts_with(copied), "{line}: {rows:?}");
        }
        assert_eq!(lab.run("ADD any.txt /file"), ["error: cannot copy `/any.txt` to `/file`: cannot copy to non-directory"]);
    }
    // What looks like an archive and is none is copied, what is one and broken is an error.
    let mut lab = Lab::new();
    let file = lab.context_dir().join("x.tar");
    for (bytes, fits) in [
        (vec![], "f n"),
        (vec![0; 1024], "f n"),
        (b"text".to_vec(), "f n"),
        (compressed(b"text", Compression::Gzip), "f n"),
        (tar[..700].to_vec(), "error: cannot unpack `/x.tar`"),
        (gzip[..gzip.len() - 4].to_vec(), "error: cannot unpack `/x.tar`"),
    ] {
        fs::write(&file, bytes).unwrap();
        set_time(&file, SOURCE_TIME);
        let rows = lab.run("ADD x.tar /n");
        lab.layers.drain(..lab.layers.len() - 1);
        assert!(rows[0].starts_with(fits), "{fits}: {rows:?}");
    }
}

#[test]
fn an_archive_merges_and_stays_below_its_destination() {
    for (lines, instruction, expected) in [
        ("f p/q/r 644 5:0", "ADD x /", &["d p 755 0:0 @clock", "d p/q 755 0:0 @clock", "f p/q/r 644 5:0 "][..]),
        ("d d 755 9:9\nf d/n 600 9:9 N", "ADD x /", &["d d 755 9:9", "f d/n 600 9:9 N"]),
        ("f d 644 5:0 D", "ADD x /", &["f d 644 5:0 D"]),
        ("f dlink/x 644 1:1 X", "ADD x /", &["d d 700 5:6", "f d/x 644 1:1 X"]),
        ("f flink 644 1:1 X", "ADD x /", &["f flink 644 1:1 X"]),
        ("d dlink 755 1:1", "ADD x /", &["d dlink 755 1:1"]),
        ("f ../../esc 644 1:1 E", "ADD x /w", &["error: cannot unpack `/x`"]),
        ("f a/../../esc 644 1:1 E", "ADD x /w", &["error: cannot unpack `/x`"]),
        ("f /../a/../esc 644 1:1 E", "ADD x /w", &["d w 755 0:0", "f w/esc 644 1:1 E"]),
        ("f /abs 644 1:1 E", "ADD x /w", &["d w 755 0:0", "f w/abs 644 1:1 E"]),
        // A link of the archive is followed as if the destination were the root.
        (
            "l out /etc 0:0\nf out/x 644 1:1 X",
            "ADD x /w",
            &["d w 755 0:0", "d w/etc 755 0:0 @clock", "f w/etc/x 644 1:1 X", "l w/out /etc"],
        ),
        ("l up ../.. 0:0\nf up/x 644 1:1 X", "ADD x /w", &["d w 755 0:0", "l w/up ../..", "f w/x 644 1:1 X"]),
        (
            "l a b\nf a/x 644 1:1 X\nl a c\nf a/x 644 1:1 Y",
            "ADD x /w",
            &[
                "d w 755 0:0",
                "l w/a c 7:8",
                "d w/b 755 0:0 @clock",
                "f w/b/x 644 1:1 X",
                "d w/c 755 0:0 @clock",
                "f w/c/x 644 1:1 Y",
            ],
        ),
        ("f a 644 1:1 1\nf a 600 1:1 2", "ADD x /w", &["d w 755 0:0", "f w/a 600 1:1 2"]),
        ("h a /etc/passwd", "ADD x /w", &["error: cannot unpack `/x`"]),
        ("h a ../file", "ADD x /w", &["error: cannot unpack `/x`"]),
        ("f file/x 644 1:1 X", "ADD x /", &["error: cannot unpack `/x`"]),
        ("l a a\nf a/x 644 1:1 X", "ADD x /w", &["error: cannot unpack `/x`"]),
        ("f .wh.file 644 1:1", "ADD x /", &["error: cannot unpack `/x`"]),
        ("f .wh.d/x 644 1:1", "ADD x /", &["error: cannot unpack `/x`"]),
        ("f / 644 1:1", "ADD x /w", &["error: cannot unpack `/x`"]),
    ] {
        let mut lab = Lab::new();
        let bytes = archive(lines);
        fs::write(lab.context_dir().join("x"), bytes).unwrap();
        assert_eq!(lab.run(instruction), expected, "{lines}");
    }
}

#[test]
fn a_fetched_file_is_placed_or_unpacked() {
    use std::io::{Read, Write};
    let tar = archive("f in 644 7:8 I");
    let body = tar.clone();
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/dir/some%20file", server.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in server.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let head = format!(
                "HTTP/1.1 200 OK\r\nConnection: close\r\nLast-Modified: Sun, 09 Sep 2001 01:46:40 GMT\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            let _ = stream.write_all(&[head.as_bytes(), &body].concat());
        }
    });
    let mut lab = Lab::new();
    let store = kiln_store::Store::open(&lab.temp.path().join("store")).unwrap();
    let none = crate::grant::Grants::default();
    let fetched = [crate::ops::Fetched::File(crate::ops::http::fetch(&url, &store, None, &none, &|_, _| {}).unwrap())];
    for (line, expected) in [
        ("ADD /n", &["f n 600 0:0 TAR"][..]),
        ("ADD /n/", &["d n 755 0:0 @clock", "f n/some file 600 0:0 TAR"]),
        ("ADD /d", &["d d 700 5:6", "f d/some file 600 0:0 TAR"]),
        ("ADD --chmod=755 --chown=3:4 /n", &["f n 755 3:4 TAR"]),
        ("ADD --unpack=true /n", &["d n 755 0:0 @clock", "f n/in 644 7:8 I"]),
    ] {
        let mut op = op(line, CopyFrom::Context(kiln_frontend::graph::ContextId::Main));
        op.sources = vec![CopySource::Http(url.clone())];
        let rows = lab.copy(&op, &fetched).unwrap();
        let tar = String::from_utf8(tar.clone()).unwrap();
        assert_eq!(show(&rows).iter().map(|row| row.replace(&tar, "TAR")).collect::<Vec<_>>(), expected, "{line}");
    }
}
