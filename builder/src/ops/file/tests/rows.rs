//! What each instruction makes of the same files.

use super::*;

// The rows were made by BuildKit 0.8 (Docker 20.10) from the same files, directories' times aside.

#[test]
fn a_directory_gives_its_contents() {
    for (line, root, at) in [
        ("COPY dir /x", vec!["d x 755 0:0 @clock"], "x"),
        ("COPY dir/ /x", vec!["d x 755 0:0 @clock"], "x"),
        ("COPY dir /x/", vec!["d x 755 0:0 @clock"], "x"),
        ("COPY dlink /x", vec!["d x 755 0:0 @clock"], "x"),
        ("COPY d?r /x/", vec!["d x 755 0:0 @clock"], "x"),
        ("COPY dlin* /x/", vec!["d x 755 0:0 @clock"], "x"),
        ("COPY dir /x/y", vec!["d x 755 0:0 @clock", "d x/y 755 0:0 @clock"], "x/y"),
        ("COPY dir /d", vec!["d d 700 5:6"], "d"),
        ("COPY dir /dlink", vec!["d d 700 5:6"], "d"),
        ("COPY dir /dlink/", vec!["d d 700 5:6"], "d"),
        ("COPY dir /var/run", vec!["d run 755 0:0"], "run"),
    ] {
        let mut expected: Vec<String> = root.into_iter().map(str::to_owned).collect();
        expected.extend(below(at, DIR));
        check_rows(line, &expected);
    }
    check("COPY empty /x", &["d x 755 0:0 @clock"]);
    check(
        "COPY dir* /x/",
        &[
            "d x 755 0:0 @clock",
            "d x/.h 755 0:0",
            "f x/f 644 0:0 F",
            "h x/f2 x/f",
            "l x/l f",
            "d x/sub 755 0:0",
            "f x/sub/s 644 0:0 S",
            "f x/sub/x 644 0:0 X",
            "l x/up ../a",
        ],
    );
}

#[test]
fn a_file_is_renamed_or_goes_into_a_directory() {
    for (line, expected) in [
        ("COPY a /n", &["f n 4755 0:0 A"][..]),
        ("COPY ../../a /n", &["f n 4755 0:0 A"]),
        ("COPY a /n/", &["d n 755 0:0 @clock", "f n/a 4755 0:0 A"]),
        ("COPY a /n/m", &["d n 755 0:0 @clock", "f n/m 4755 0:0 A"]),
        ("COPY a /d", &["d d 700 5:6", "f d/a 4755 0:0 A"]),
        ("COPY a /dlink", &["d d 700 5:6", "f d/a 4755 0:0 A"]),
        ("COPY a /flink", &["f file 4755 0:0 A"]),
        ("COPY a /file", &["f file 4755 0:0 A"]),
        ("COPY a /dangling", &["d nowhere 755 0:0 @clock", "f nowhere/deep 4755 0:0 A"]),
        ("COPY a /dangling/", &["d nowhere 755 0:0 @clock", "d nowhere/deep 755 0:0 @clock", "f nowhere/deep/a 4755 0:0 A"]),
        ("COPY a /var/run/", &["d run 755 0:0", "f run/a 4755 0:0 A"]),
        ("COPY a /", &["f a 4755 0:0 A"]),
        ("COPY link /n", &["f n 4755 0:0 A"]),
        ("COPY abs /n", &["f n 4755 0:0 A"]),
        ("COPY dir/up /n", &["f n 4755 0:0 A"]),
        ("COPY dlink/up /n", &["f n 4755 0:0 A"]),
        ("COPY link /n/", &["d n 755 0:0 @clock", "f n/link 4755 0:0 A"]),
        ("COPY lin* /n/", &["d n 755 0:0 @clock", "f n/link 4755 0:0 A"]),
        ("COPY hard dir/f /n/", &["d n 755 0:0 @clock", "f n/f 644 0:0 F", "f n/hard 644 0:0 F"]),
        ("COPY dir/*/x /n", &["f n 644 0:0 X"]),
        ("COPY fifo /n", &["p n 644 0:0"]),
        ("COPY nope* /n/", &[]),
        ("COPY empty/* /n/", &[]),
        ("COPY <<EOF /n", &["f n 644 0:0 EOF! @clock"]),
        ("COPY <<E <<F a /n/", &["d n 755 0:0 @clock", "f n/E 644 0:0 E! @clock", "f n/F 644 0:0 F! @clock", "f n/a 4755 0:0 A"]),
    ] {
        check(line, expected);
    }
}

#[test]
fn what_cannot_be_copied_says_why() {
    for (lines, error) in [
        ("COPY dir /file", "cannot copy `/dir` to `/file`: cannot copy to non-directory"),
        ("COPY a /file/x", "`/file/x` lies below `/file`, which is not a directory"),
        ("COPY a /file/", "cannot copy `/a` to `/file`: cannot copy to non-directory"),
        ("COPY a /x/a/a\nCOPY a /x/", "cannot copy `/a` to `/x/a`: a file cannot replace a directory"),
        ("COPY a /x/dirA\nCOPY . /x", "cannot copy `/` to `/x/dirA`: cannot copy to non-directory"),
        ("COPY nope /x/", "\"/nope\": not found"),
        ("COPY a/b /x/", "\"/a/b\": not found"),
        ("COPY nodir/* /x/", "\"/nodir\": not found"),
        ("COPY broken /x", "\"/nope\": not found"),
        ("COPY brok* /x", "\"/nope\": not found"),
        ("COPY loop /x", "`/loop` has too many levels of symbolic links"),
        ("COPY [ /x", "syntax error in pattern `[`"),
        ("COPY --exclude=[ . /x", "invalid --exclude"),
        ("COPY --chown=nobody a /x", "invalid user `nobody`"),
        ("COPY --chown=www:nogroup a /x", "invalid user `www:nogroup`"),
        ("COPY --link --chown=nobody a /x", "invalid user `nobody`"),
        ("COPY --link --chown=3:nogroup a /x", "invalid user `3:nogroup`"),
        ("COPY --chmod=888 a /x", "invalid --chmod `888`: octal digits up to 7777 or letters as in `u=rwX,go=rX` are expected"),
        ("WORKDIR /file", "cannot create `/file`"),
        ("WORKDIR /file/x", "`/file/x` lies below `/file`, which is not a directory"),
    ] {
        check(lines, &[&format!("error: {error}")]);
    }
}

#[test]
fn owners_and_modes() {
    for (line, expected) in [
        ("COPY --chown=www a /n/m", &["d n 755 33:34 @clock", "f n/m 4755 33:34 A"][..]),
        ("COPY --chown=33 a /n", &["f n 4755 33:33 A"]),
        ("COPY --chown=www: a /n", &["f n 4755 33:0 A"]),
        ("COPY --chown=:staff a /n", &["f n 4755 0:50 A"]),
        ("COPY --chown=www:staff a /n", &["f n 4755 33:50 A"]),
        ("COPY --chown=3:4 d /n", &["d n 755 3:4 @clock", "f n/n 644 3:4 N"]),
        ("COPY --chown=3:4 d /d", &["d d 700 5:6", "f d/n 644 3:4 N"]),
        ("COPY --chown=3:4 dir/l* /n/", &["d n 755 3:4 @clock", "f n/l 644 3:4 F"]),
        ("COPY --chmod=4711 b /n", &["f n 4711 0:0 B"]),
        ("COPY --chmod=4711 a /n/m", &["d n 711 0:0 @clock", "f n/m 4711 0:0 A"]),
        ("COPY --chmod=600 dirA /n/", &["d n 600 0:0 @clock", "d n/sub 600 0:0", "f n/sub/s 600 0:0 S"]),
        // An octal mode is that of the directories on the way, too (of its bits only those for rwx); letters leave them 0755.
        ("COPY --chmod=2640 b /n/m/", &["d n 640 0:0 @clock", "d n/m 640 0:0 @clock", "f n/m/b 2640 0:0 B"]),
        ("COPY --chmod=777 --chown=7 b /n/m", &["d n 777 7:7 @clock", "f n/m 777 7:7 B"]),
        ("COPY --chmod=go-rwx b /n/m", &["d n 755 0:0 @clock", "f n/m 600 0:0 B"]),
        ("COPY --chmod=u=rwX,go=rX dirA /n", &["d n 755 0:0 @clock", "d n/sub 755 0:0", "f n/sub/s 644 0:0 S"]),
        ("COPY --chmod=600 --chown=7 <<E /n", &["f n 600 7:7 E! @clock"]),
        // From a stage owners are kept.
        ("COPY --from --chmod=a+x file /n", &["f n 755 5:6 hi"]),
        ("COPY --from /d /n", &["d n 755 0:0 @clock"]),
        ("COPY --from /dirA /n", &["d n 755 0:0 @clock", "d n/sub 700 5:6"]),
        ("COPY --from /dirA /dirA/sub /n/", &["d n 755 0:0 @clock", "d n/sub 700 5:6"]),
        ("COPY --from /flink /dlink /n/", &["d n 755 0:0 @clock", "f n/flink 644 5:6 hi"]),
        ("COPY --from /var /n", &["d n 755 0:0 @clock", "l n/run /run"]),
        ("WORKDIR /", &[]),
        ("WORKDIR /d", &[]),
        ("WORKDIR /w/n", &["d w 755 0:0", "d w/n 755 0:0 @clock"]),
        ("WORKDIR nobody /n", &["d n 755 0:0 @clock"]),
        ("WORKDIR www:nobody /n", &["d n 755 33:34 @clock"]),
        ("WORKDIR 1000 /w/n/m", &["d w 755 0:0", "d w/n 755 1000:1000 @clock", "d w/n/m 755 1000:1000 @clock"]),
        ("WORKDIR www /dlink/z", &["d d 700 5:6", "d d/z 755 33:34 @clock"]),
        (
            "WORKDIR /dangling/z",
            &["d nowhere 755 0:0 @clock", "d nowhere/deep 755 0:0 @clock", "d nowhere/deep/z 755 0:0 @clock"],
        ),
    ] {
        check(line, expected);
    }
}

#[test]
fn what_exists_is_merged_or_replaced() {
    // Directories inside take the source's mode and owner; the named one keeps its own; what else is in them stays.
    check("COPY d /dirA/sub\nCOPY dirA /dirA", &["d dirA 755 0:0", "d dirA/sub 755 0:0", "f dirA/sub/s 644 0:0 S"]);
    check("COPY --chown=3:4 dirA /dirA", &["d dirA 755 0:0", "d dirA/sub 755 3:4", "f dirA/sub/s 644 3:4 S"]);
    // A file takes the place of a file or a symbolic link found on the way, and doesn't go through it.
    check(
        "COPY dir /n\nCOPY a /n/f\nCOPY dir/l /n/\nCOPY dir /n",
        &[
            "d n 755 0:0 @clock",
            "d n/.h 755 0:0",
            "f n/f 644 0:0 F",
            "h n/f2 n/f",
            "l n/l f",
            "d n/sub 711 0:0",
            "f n/sub/x 644 0:0 X",
            "l n/up ../a",
        ],
    );
    // Two sources of one instruction meet in one place.
    check(
        "COPY d dirA dir/sub a /n",
        &[
            "d n 755 0:0 @clock",
            "f n/a 4755 0:0 A",
            "f n/n 644 0:0 N",
            "d n/sub 755 0:0",
            "f n/sub/s 644 0:0 S",
            "f n/x 644 0:0 X",
        ],
    );
    check("COPY b a /file", &["error: cannot copy `/b` to `/file`: cannot copy to non-directory"]);
}

#[test]
fn several_sources_make_a_directory_with_a_warning() {
    for (line, warned) in
        [("COPY a b /n", 1), ("COPY a b /n/", 0), ("COPY a b /d", 0), ("COPY d dirA /n", 0), ("COPY [ab] /n", 1)]
    {
        let mut lab = Lab::new();
        let rows = lab.run(line);
        assert_eq!(lab.warnings.len(), warned, "{line}: {:?}", lab.warnings);
        assert!(!rows[0].starts_with("error"), "{line}: {rows:?}");
    }
}

#[test]
fn excludes_and_parents() {
    for (line, expected) in [
        ("COPY --exclude=* dir /n", &["d n 755 0:0 @clock"][..]),
        ("COPY --exclude=sub --exclude=f* --exclude=.h dir /n", &["d n 755 0:0 @clock", "l n/l f", "l n/up ../a"]),
        ("COPY --exclude=* --exclude=!sub/x dir /n", &["d n 755 0:0 @clock", "d n/sub 711 0:0", "f n/sub/x 644 0:0 X"]),
        ("COPY --exclude=**/s dirA /n", &["d n 755 0:0 @clock", "d n/sub 755 0:0"]),
        ("COPY --exclude=a [ab] /n/", &["d n 755 0:0 @clock", "f n/b 600 0:0 B"]),
        (
            "COPY --parents dirA/sub/s /n",
            &["d n 755 0:0 @clock", "d n/dirA 755 0:0", "d n/dirA/sub 755 0:0", "f n/dirA/sub/s 644 0:0 S"],
        ),
        ("COPY --parents ./dirA/./sub/s /n/", &["d n 755 0:0 @clock", "d n/sub 755 0:0", "f n/sub/s 644 0:0 S"]),
        (
            "COPY --parents dir/sub /n",
            &["d n 755 0:0 @clock", "d n/dir 751 0:0", "d n/dir/sub 711 0:0", "f n/dir/sub/x 644 0:0 X"],
        ),
        (
            "COPY --parents **/x **/s /",
            &[
                "d dir 751 0:0",
                "d dir/sub 711 0:0",
                "f dir/sub/x 644 0:0 X",
                "d dirA 755 0:0",
                "d dirA/sub 755 5:6",
                "f dirA/sub/s 644 0:0 S",
            ],
        ),
        (
            "COPY --parents dirA/** /n",
            &["d n 755 0:0 @clock", "d n/dirA 755 0:0", "d n/dirA/sub 755 0:0", "f n/dirA/sub/s 644 0:0 S"],
        ),
        ("COPY --parents --exclude=dirA/sub/s dirA /n", &["d n 755 0:0 @clock", "d n/dirA 755 0:0", "d n/dirA/sub 755 0:0"]),
        ("COPY --parents nope/** /n", &[]),
        (
            "COPY --parents --from d/ dirA/sub /n",
            &["d n 755 0:0 @clock", "d n/d 700 5:6", "d n/dirA 755 0:0", "d n/dirA/sub 700 5:6"],
        ),
        ("COPY --parents dirA/nope /n", &["error: \"/dirA/nope\": not found"]),
    ] {
        check(line, expected);
    }
}

#[test]
fn ignored_files_are_not_there() {
    for (ignore, line, expected) in [
        (
            "*\n!dirA/sub/s",
            "COPY . /n",
            &["d n 755 0:0 @clock", "d n/dirA 755 0:0", "d n/dirA/sub 755 0:0", "f n/dirA/sub/s 644 0:0 S"][..],
        ),
        ("dirA\n!dirA/sub", "COPY dirA /n", &["d n 755 0:0 @clock", "d n/sub 755 0:0", "f n/sub/s 644 0:0 S"]),
        ("**/[fsx]*", "COPY dir*/ /n", &["d n 755 0:0 @clock", "d n/.h 755 0:0", "l n/l f", "l n/up ../a"]),
        ("/a", "COPY a /n", &["error: \"/a\": not found"]),
        ("/a", "COPY link /n", &["error: \"/a\": not found"]),
        ("dir/", "COPY dlink /n", &["error: \"/dir\": not found"]),
        ("a", "COPY a* /n/", &["error: \"/a\": not found"]),
        (
            "*\n!**/s",
            "COPY . /n",
            &["d n 755 0:0 @clock", "d n/dirA 755 0:0", "d n/dirA/sub 755 0:0", "f n/dirA/sub/s 644 0:0 S"],
        ),
    ] {
        let mut lab = Lab::new();
        lab.ignore = ignore;
        assert_eq!(lab.run(line), expected, "{ignore:?} {line}");
    }
}

#[test]
fn hints_say_what_may_be_meant() {
    for (ignore, line, hint) in [
        ("a", "COPY a /n", "`/a` is in the build context, but the ignore file excludes it"),
        ("", "COPY dirA/sbu/s /n", "did you mean `/dirA/sub/s`?"),
        ("", "COPY Dir /n", "did you mean `/dir`?"),
        ("", "COPY --chown=ww a /n", "the users of the image are root, www"),
        ("", "COPY --chown=0:x a /n", "the groups of the image are root, www, staff"),
        ("", "COPY quite-another-name /n", ""),
    ] {
        let mut lab = Lab::new();
        lab.ignore = ignore;
        let error = lab.try_run(line).unwrap_err();
        assert_eq!(error.hint().unwrap_or_default(), hint, "{line}");
    }
}

#[test]
fn sockets_become_files_and_whiteout_names_are_refused() {
    let mut lab = Lab::new();
    plant(&lab.context_dir(), "s sock/s\nf sock/f 644");
    assert_eq!(lab.run("COPY sock /n"), ["d n 755 0:0 @clock", "f n/f 644 0:0 ", "f n/s 755 0:0 "]);
    let mut lab = Lab::new();
    plant(&lab.context_dir(), "s sock/s");
    assert_eq!(lab.run("COPY --chmod=600 --chown=5 sock/s /alone"), ["f alone 600 5:5 "]);
    plant(&lab.context_dir(), "f wh/.wh.x 644\nd wh2/.wh.d 755");
    for line in ["COPY wh /n", "COPY wh2 /n", "COPY wh/.wh.x /n/", "COPY a /n/.wh.a"] {
        let rows = lab.run(line);
        assert!(rows[0].contains("a name that begins with `.wh.` marks a deleted file"), "{line}: {rows:?}");
    }
}

#[test]
fn odd_names_depths_and_attributes_survive() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let mut lab = Lab::new();
    let odd = lab.context_dir().join("odd");
    fs::create_dir(&odd).unwrap();
    let mut names: Vec<Vec<u8>> =
        vec![vec![b'n'; 255], b"\xff\xfe".to_vec(), b"new\nline".to_vec(), b"-x".to_vec(), b"end ".to_vec()];
    for name in &names {
        fs::write(odd.join(OsStr::from_bytes(name)), "x").unwrap();
    }
    rustix::fs::setxattr(odd.join("-x"), "user.k", b"v", rustix::fs::XattrFlags::empty()).unwrap();
    set_time(&odd.join("-x"), -5);
    let sparse = fs::File::create(odd.join("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    names.push(b"sparse".to_vec());
    // Deeper than any path can say.
    let mut deep = RootDir::open(&odd).unwrap();
    for _ in 0..60 {
        deep.mkdir(&[b'd'; 100]).unwrap();
        deep = deep.child(&[b'd'; 100]).unwrap();
    }
    drop(deep.create_file(b"leaf").unwrap());
    let out = RootDir::open(&lab.execute("COPY odd /n").unwrap().join("n")).unwrap();
    let mut made = out.names().unwrap();
    made.retain(|name| name != &[b'd'; 100]);
    names.sort();
    assert_eq!(made, names);
    assert_eq!(out.xattrs(b"-x").unwrap(), [(b"user.k".to_vec(), b"v".to_vec())].into());
    assert_eq!(out.stat(b"-x").unwrap().unwrap().mtime, Timestamp::from_secs(-5));
    let sparse = out.stat(b"sparse").unwrap().unwrap();
    assert_eq!((sparse.size, sparse.blocks), (64 << 20, 0));
    let mut at = out;
    for _ in 0..60 {
        at = at.child(&[b'd'; 100]).unwrap();
    }
    assert!(at.stat(b"leaf").unwrap().is_some());
}
