//! Directories by descriptor on a real disk: names that may not leave, deep trees, attributes, holes.

use super::*;

#[test]
fn names_cannot_leave_the_directory() {
    let temp = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/", temp.path().join("out")).unwrap();
    let root = RootDir::open(temp.path()).unwrap();
    for name in [&b".."[..], b".", b"", b"a/b", b"/etc", b"a\0b"] {
        assert!(root.stat(name).is_err(), "{name:?}");
        assert!(root.create_file(name).is_err(), "{name:?}");
        assert!(root.child(name).is_err(), "{name:?}");
    }
    assert!(root.child(b"out").is_err());
    assert!(root.open_file(b"out").is_err());
    assert!(root.walk(&"/out/etc".into()).is_err());
}

#[test]
fn a_tree_deeper_than_path_max_is_made_walked_and_removed() {
    let temp = tempfile::tempdir().unwrap();
    let root = RootDir::open(temp.path()).unwrap();
    let name = [b'd'; 100];
    let mut path = ImagePath::root();
    let mut at = root.try_clone().unwrap();
    for _ in 0..2000 {
        at.mkdir(&name).unwrap();
        at = at.child(&name).unwrap();
        path = ImagePath::new([path.as_bytes(), b"/", &name[..]].concat());
    }
    at.create_file(b"leaf").unwrap();
    assert!(root.walk(&path).unwrap().stat(b"leaf").unwrap().is_some());
    root.remove_all(&name).unwrap();
    assert!(root.names().unwrap().is_empty());
}

#[test]
fn attributes_are_set_whatever_the_umask() {
    let temp = tempfile::tempdir().unwrap();
    let root = RootDir::open(temp.path()).unwrap();
    let file = root.create_file(b"f").unwrap();
    let mut attrs = Attrs { uid: 0, gid: 0, mode: 0o4777, mtime: Some(Timestamp { secs: -5, nanos: 7 }), xattrs: Xattrs::new() };
    if rustix::process::geteuid().is_root() {
        (attrs.uid, attrs.gid) = (12, 13);
    } else {
        (attrs.uid, attrs.gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    }
    attrs.xattrs.insert(b"user.k".to_vec(), b"v".to_vec());
    root.set_attrs_of_file(&file, b"f", &attrs).unwrap();
    let meta = root.stat(b"f").unwrap().unwrap();
    assert_eq!(Attrs::of(&meta, root.xattrs(b"f").unwrap()), attrs);
}

#[test]
fn a_file_of_another_size_than_was_said_is_copied_whole() {
    let temp = tempfile::tempdir().unwrap();
    let root = RootDir::open(temp.path()).unwrap();
    for (number, (has, said)) in [
        (0, 0),
        (0, 5),
        (5, 0),
        (5, 5),
        (5, 4),
        (5, 9),
        (70_000, 5),
        (65_536, 65_535),
        (65_535, 65_535),
        (70_000, 70_000),
        (5, 70_000),
    ]
    .into_iter()
    .enumerate()
    {
        let (from, to) = (format!("from{number}"), format!("to{number}"));
        let content: Vec<u8> = (0..has).map(|at: u32| (at % 251) as u8).collect();
        std::fs::write(temp.path().join(&from), &content).unwrap();
        let into = root.create_file(to.as_bytes()).unwrap();
        let copied = copy_file(&root.open_file(from.as_bytes()).unwrap(), &into, said, false).unwrap();
        assert_eq!(copied, u64::from(has), "{has} said {said}");
        assert_eq!(std::fs::read(temp.path().join(&to)).unwrap(), content, "{has} said {said}");
    }
}

#[test]
fn a_file_is_made_with_no_right_that_it_is_not_to_have() {
    let temp = tempfile::tempdir().unwrap();
    let root = RootDir::open(temp.path()).unwrap();
    for (number, mode) in [0o644, 0o600, 0o4755, 0o2711, 0o000, 0o222, 0o777].into_iter().enumerate() {
        let name = format!("f{number}").into_bytes();
        let file = root.create_file_for(&name, mode).unwrap();
        let early = root.stat(&name).unwrap().unwrap().mode;
        assert_eq!(early & !(mode & 0o777), 0, "{mode:o} began as {early:o}");
        let now = root.stat(&name).unwrap().unwrap();
        let attrs = Attrs { uid: now.uid, gid: now.gid, mode, mtime: Some(Timestamp::from_secs(7)), xattrs: Xattrs::new() };
        root.set_attrs_of_file(&file, &name, &attrs).unwrap();
        assert_eq!(Attrs::of(&root.stat(&name).unwrap().unwrap(), Xattrs::new()), attrs, "{mode:o}");
    }
}

#[test]
fn holes_stay_holes() {
    let temp = tempfile::tempdir().unwrap();
    let root = RootDir::open(temp.path()).unwrap();
    let from = root.create_file(b"a").unwrap();
    rustix::fs::ftruncate(&from, 1 << 40).unwrap();
    rustix::io::pwrite(&from, b"middle", 1 << 39).unwrap();
    let to = root.create_file(b"b").unwrap();
    assert_eq!(copy_file(&root.open_file(b"a").unwrap(), &to, 1 << 40, true).unwrap(), 1 << 40);
    let meta = root.stat(b"b").unwrap().unwrap();
    assert!(meta.size == 1 << 40 && meta.blocks < 100, "{meta:?}");
    let mut read = [0; 6];
    rustix::io::pread(root.open_file(b"b").unwrap(), &mut read, 1 << 39).unwrap();
    assert_eq!(&read, b"middle");
}
