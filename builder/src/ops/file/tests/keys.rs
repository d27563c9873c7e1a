//! What a key covers.

use super::*;

/// Each row changes the context in one way; the key of `COPY dir /x` and of `COPY . /x` must change or not.
#[test]
fn a_key_holds_what_is_copied_and_nothing_else() {
    type Change = fn(&Path);
    let rows: &[(&str, Change, bool)] = &[
        ("mtime", |c| set_time(&c.join("dir/f"), 5), false),
        ("mtime of a directory", |c| set_time(&c.join("dir/sub"), 5), false),
        ("owner", |c| chown(c.join("dir/f"), Some(9), Some(9)).unwrap(), false),
        ("something else", |c| fs::write(c.join("other"), "x").unwrap(), false),
        (
            "mode of the directory that is named",
            |c| fs::set_permissions(c.join("dir"), fs::Permissions::from_mode(0o700)).unwrap(),
            false,
        ),
        ("mode", |c| fs::set_permissions(c.join("dir/f"), fs::Permissions::from_mode(0o600)).unwrap(), true),
        ("mode of a directory", |c| fs::set_permissions(c.join("dir/sub"), fs::Permissions::from_mode(0o700)).unwrap(), true),
        ("content of the same size", |c| fs::write(c.join("dir/f"), "G").unwrap(), true),
        ("name", |c| fs::rename(c.join("dir/l"), c.join("dir/m")).unwrap(), true),
        (
            "link target",
            |c| {
                fs::remove_file(c.join("dir/l")).unwrap();
                symlink("f2", c.join("dir/l")).unwrap();
            },
            true,
        ),
        ("what a link leads to", |c| fs::write(c.join("a"), "changed").unwrap(), false),
        ("a new empty directory", |c| fs::create_dir(c.join("dir/new")).unwrap(), true),
        (
            "a hard link less",
            |c| {
                fs::remove_file(c.join("dir/f2")).unwrap();
                fs::write(c.join("dir/f2"), "F").unwrap();
            },
            true,
        ),
        (
            "type",
            |c| {
                fs::remove_file(c.join("dir/sub/x")).unwrap();
                fs::create_dir(c.join("dir/sub/x")).unwrap();
            },
            true,
        ),
        (
            "an extended attribute",
            |c| rustix::fs::setxattr(c.join("dir/f"), "user.k", b"v", rustix::fs::XattrFlags::empty()).unwrap(),
            true,
        ),
        (
            "an attribute of no image",
            |c| rustix::fs::setxattr(c.join("dir/f"), "trusted.k", b"v", rustix::fs::XattrFlags::empty()).unwrap(),
            false,
        ),
    ];
    for (what, change, changes) in rows {
        let lab = Lab::new();
        let copy = op("COPY dir /x", CopyFrom::Context(kiln_frontend::graph::ContextId::Main));
        let key = || selection_key(&copy, &SourceTree::Context(&lab.context()), &[]).unwrap();
        let before = key();
        change(&lab.context_dir());
        assert_eq!(key() != before, *changes, "{what}");
    }
    // Where a source lies is of no meaning, only what it is called; and of a directory not even that.
    let lab = Lab::new();
    let key = |line: &str| {
        selection_key(
            &op(line, CopyFrom::Context(kiln_frontend::graph::ContextId::Main)),
            &SourceTree::Context(&lab.context()),
            &[],
        )
        .unwrap()
    };
    plant(&lab.context_dir(), "f deep/er/b 600 0:0 B\nf deep/c 600 0:0 B");
    assert_eq!(key("COPY b /x/"), key("COPY deep/er/b /x/"));
    assert_ne!(key("COPY b /x/"), key("COPY deep/c /x/"));
    assert_eq!(key("COPY deep/er /x/"), key("COPY deep/*r /x/"));
    assert_ne!(key("COPY a b /x/"), key("COPY b a /x/"));
    assert_ne!(key("COPY --exclude=f dir /x/"), key("COPY dir /x/"));
}
