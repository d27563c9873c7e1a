//! Changes written to a real upper directory: parents copied up, refusals, many threads with few descriptors.

use std::path::Path;

use super::*;
use crate::layer::testing::{Dirs, Overlay, can_mount, plain, sh, tell};

fn attrs(mode: u32) -> Attrs {
    Attrs { uid: 1, gid: 2, mode, mtime: Some(Timestamp::from_secs(1000)), xattrs: Default::default() }
}

fn writer(upper: &Path, lowers: &[&Path]) -> UpperWriter {
    UpperWriter::new(RootDir::open(upper).unwrap(), View::new(lowers).unwrap(), WhiteoutStyle::Device).unwrap()
}

#[test]
fn parents_are_copied_up_as_they_were() {
    if !can_mount("parents_are_copied_up_as_they_were") {
        return;
    }
    let dirs = Dirs::new();
    let [upper, lower, work, at] = ["upper", "lower", "work", "at"].map(|d| dirs.make(d));
    sh(
        &lower,
        "mkdir -p a/b; touch a/b/old; chmod 2750 a/b; chown 7:8 a/b; setfattr -n user.k -v v a/b; touch -d @50 a/b a; ln -s a/b l; chmod 711 .; touch -d @9 .",
    );
    let writer = writer(&upper, &[&lower]);
    let path = writer.resolve_parent(&"/l/f".into()).unwrap();
    assert_eq!(path, "/a/b/f".into());
    assert_eq!(writer.ensure_parents(&path, &attrs(0o700)).unwrap(), 0);
    assert_eq!(writer.put_file(&path, Content::Bytes(b"x"), &attrs(0o4755)).unwrap(), 1);
    assert_eq!(writer.ensure_parents(&"/n/m/f".into(), &attrs(0o700)).unwrap(), 2);
    writer.symlink(&"/n/m/f".into(), b"../t", &attrs(0o777)).unwrap();
    writer.mknod(&"/n/p".into(), Kind::Fifo, (0, 0), &attrs(0o622)).unwrap();
    writer.link(&"/n/old".into(), &"/a/b/old".into()).unwrap();
    assert_eq!(writer.lookup(&"/a/b/f".into()).unwrap().unwrap().mode, 0o4755);
    assert!(writer.lookup(&"/a/none".into()).unwrap().is_none());
    writer.finish().unwrap();
    let overlay = Overlay::mount(&[&lower], &upper, &work, &at);
    let told = tell(&plain(&overlay.at), true);
    for (path, line) in [
        ("/", "Dir 711 0:0"),
        ("/a", "Dir 755 0:0 @50"),
        ("/a/b", "Dir 2750 7:8 @50 user.k=v"),
        ("/a/b/f", "File 4755 1:2 1 "),
        ("/n", "Dir 700 1:2 @1000"),
        ("/n/m/f", "Symlink 777 1:2 -> ../t @1000"),
        ("/n/p", "Fifo 622 1:2 @1000"),
    ] {
        let found = told.get(path).map_or("nothing", |l| l);
        assert!(found.starts_with(line), "{path}: {found}");
    }
    assert!(told["/n/old"].ends_with("=/a/b/old"), "{}", told["/n/old"]);
}

#[test]
fn what_cannot_be_written_says_why() {
    let dirs = Dirs::new();
    let [upper, lower] = ["upper", "lower"].map(|d| dirs.make(d));
    sh(&lower, "mkdir d; touch f; ln -s f l; ln -s loop loop");
    let writer = writer(&upper, &[&lower]);
    let mine = Attrs { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw(), ..Attrs::default() };
    let put = |path: &str| writer.put_file(&path.into(), Content::Bytes(b""), &mine).unwrap_err().to_string();
    assert_eq!(put("/f/x"), "`/f` lies below `/f`, which is not a directory");
    assert_eq!(put("/l/x"), "`/l` lies below `/l`, which is not a directory");
    assert_eq!(put("/"), "`/` can only be a directory");
    assert_eq!(writer.resolve(&"/loop".into()).unwrap_err().to_string(), "`/loop` has too many levels of symbolic links");
    let link = |path: &str, target: &str| writer.link(&path.into(), &target.into()).unwrap_err().to_string();
    assert_eq!(link("/x", "/none"), "hard link `/x` points to `/none`, which does not exist");
    assert_eq!(link("/x", "/d"), "hard link `/x` points to `/d`, which is a directory");
    assert_eq!(link("/x", "/x"), "hard link `/x` points to `/x`, which is itself");
    let nobody = Attrs { uid: u32::MAX, ..mine.clone() };
    assert!(matches!(writer.mkdir(&"/n".into(), &nobody), Err(UpperError::NoOwner(_))));
    let mut broken = std::io::Read::chain(&b"abc"[..], Broken);
    let error = writer.put_file(&"/b".into(), Content::Reader(&mut broken), &mine).unwrap_err();
    assert_eq!(error.to_string(), "cannot read the content of `/b`");
    assert!(matches!(writer.mknod(&"/c".into(), Kind::Char, (0, 0), &mine), Err(UpperError::WhiteoutDevice(_))));
}

struct Broken;
impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::ConnectionReset.into())
    }
}

#[test]
fn what_was_hidden_is_not_found_again() {
    if !can_mount("what_was_hidden_is_not_found_again") {
        return;
    }
    let dirs = Dirs::new();
    let [upper, lower] = ["upper", "lower"].map(|d| dirs.make(d));
    sh(&lower, "mkdir -p a/b c/d; touch a/b/f c/d/f; ln -s a l");
    let writer = writer(&upper, &[&lower]);
    let there = |path: &str| writer.lookup(&path.into()).unwrap().is_some();
    assert!(there("/a/b/f") && there("/c/d/f") && there("/c") && there("/") && !there("/l/b"));
    writer.whiteout(&"/a".into()).unwrap();
    writer.opaque(&"/c".into()).unwrap();
    assert!(!there("/a") && !there("/a/b/f") && there("/c") && !there("/c/d"));
    for target in ["/a/b/f", "/c/d/f"] {
        assert!(matches!(writer.link(&"/x".into(), &target.into()), Err(UpperError::LinkTargetMissing { .. })), "{target}");
    }
    assert!(!there("/a"));
}

#[test]
fn threads_write_at_once_with_few_descriptors() {
    let dirs = Dirs::new();
    let [upper, lower] = ["upper", "lower"].map(|d| dirs.make(d));
    sh(&lower, "for i in $(seq 150); do mkdir -p d$i/e; done");
    let writer = writer(&upper, &[&lower]);
    let mine = Attrs {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        mode: 0o644,
        ..Attrs::default()
    };
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (writer, mine) = (&writer, &mine);
            scope.spawn(move || {
                for i in 1..=150 {
                    let path = ImagePath::new(format!("/d{i}/e/f{thread}"));
                    writer.put_file(&path, Content::Bytes(b"x"), mine).unwrap();
                }
            });
        }
    });
    assert!(writer.lock().descriptors <= MAX_DESCRIPTORS + 2);
    writer.finish().unwrap();
    let told = tell(&View::new([&upper]).unwrap(), false);
    assert_eq!(told.len(), 1 + 150 * 6);
}

#[test]
fn a_file_with_too_many_names_is_copied() {
    // ext4 allows 65,000 links, xfs and tmpfs far more; on those this only proves that links work.
    let dirs = Dirs::new();
    let upper = dirs.make("upper");
    let writer = writer(&upper, &[]);
    let mine = Attrs {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        mode: 0o600,
        ..Attrs::default()
    };
    writer.put_file(&"/f".into(), Content::Bytes(b"x"), &mine).unwrap();
    for i in 0..65_100 {
        writer.link(&ImagePath::new(format!("/l/{i}")), &"/f".into()).unwrap();
    }
    assert_eq!(writer.lookup(&"/l/65099".into()).unwrap().unwrap().size, 1);
}
