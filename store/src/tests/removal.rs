//! Trees that are hard to delete.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use super::Fixture;
use crate::remove;

/// Makes `dir`/d/d/…, far deeper than a path can say.
fn deep(dir: &Path, levels: usize) {
    use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut at = openat(CWD, dir, flags, Mode::empty()).unwrap();
    let name = "d".repeat(200);
    for _ in 0..levels {
        mkdirat(&at, name.as_str(), Mode::RWXU).unwrap();
        let file = openat(&at, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
        drop(file);
        at = openat(&at, name.as_str(), flags, Mode::empty()).unwrap();
    }
}

#[test]
fn trees_of_every_kind_go_and_nothing_else() {
    let fixture = Fixture::new();
    let outside = fixture.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("canary"), "x").unwrap();
    let trash = fixture.root().join("trash");

    type Make = fn(&Path, &Path);
    let rows: [(&str, Make); 7] = [
        ("empty", |_, _| {}),
        ("wide", |tree, _| (0..3000).for_each(|n| fs::write(tree.join(n.to_string()), "").unwrap())),
        ("deep", |tree, _| deep(tree, 300)),
        ("links", |tree, outside| {
            symlink(outside, tree.join("dir")).unwrap();
            symlink(outside.join("canary"), tree.join("file")).unwrap();
            symlink("/", tree.join("root")).unwrap();
            symlink("..", tree.join("up")).unwrap();
        }),
        ("modes", |tree, _| {
            for mode in [0o000, 0o111, 0o444, 0o555, 0o1777, 0o4755] {
                let dir = tree.join(format!("{mode:o}"));
                fs::create_dir_all(dir.join("in/it")).unwrap();
                fs::write(dir.join("in/file"), "").unwrap();
                fs::set_permissions(dir.join("in"), fs::Permissions::from_mode(mode)).unwrap();
                fs::set_permissions(&dir, fs::Permissions::from_mode(mode)).unwrap();
            }
        }),
        ("nodes", |tree, _| {
            use rustix::fs::{CWD, FileType, Mode, mknodat};
            mknodat(CWD, tree.join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
            // An overlayfs whiteout: only root may make one everywhere.
            let _ = mknodat(CWD, tree.join("whiteout"), FileType::CharacterDevice, Mode::empty(), 0);
            std::os::unix::net::UnixListener::bind(tree.join("socket")).unwrap();
        }),
        ("names", |tree, _| {
            use std::os::unix::ffi::OsStrExt;
            for name in [&b"-rf"[..], b"new\nline", b"\xff\xfe", b" ", b"...", &[b'n'; 255]] {
                fs::write(tree.join(std::ffi::OsStr::from_bytes(name)), "").unwrap();
            }
        }),
    ];
    for (what, make) in rows {
        for through_trash in [false, true] {
            let tree = fixture.root().join("layers/tree");
            fs::create_dir(&tree).unwrap();
            make(&tree, &outside);
            if through_trash {
                remove::discard(&tree, fixture.store.layout()).unwrap();
                assert!(!tree.exists(), "{what}");
                remove::empty_trash(&trash).unwrap();
            } else {
                remove::tree(&tree, &trash).unwrap();
            }
            assert!(!tree.exists(), "{what}");
            assert_eq!(fs::read_dir(&trash).unwrap().count(), 0, "{what}");
            assert_eq!(fs::read_to_string(outside.join("canary")).unwrap(), "x", "{what}");
        }
    }
}

#[test]
fn immutable_files_go() {
    let fixture = Fixture::new();
    let tree = fixture.root().join("layers/tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), "").unwrap();
    let file = fs::File::open(tree.join("file")).unwrap();
    if let Err(errno) = rustix::fs::ioctl_setflags(&file, rustix::fs::IFlags::IMMUTABLE) {
        println!("skipped: this user or file system can't make files immutable ({errno})");
        return;
    }
    assert!(fs::remove_file(tree.join("file")).is_err());
    remove::tree(&tree, &fixture.root().join("trash")).unwrap();
    assert!(!tree.exists());
}

#[test]
fn several_may_empty_the_trash_at_once() {
    let fixture = Fixture::new();
    let trash = fixture.root().join("trash");
    for n in 0..20 {
        deep(
            &{
                let dir = trash.join(n.to_string());
                fs::create_dir(&dir).unwrap();
                dir
            },
            60,
        );
    }
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| remove::empty_trash(&trash).unwrap());
        }
    });
    assert_eq!(fs::read_dir(&trash).unwrap().count(), 0);
}
