//! Contexts on a real disk: what is selected, what is remembered, what is refused.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use kiln_frontend::graph::{CopyFrom, CopyOp, CopySource};

use super::*;
use crate::ops::file::{FileError, SourceTree, selection_key};
use crate::request::DockerfileSource;

fn key(context: &Context) -> Result<[u8; 32], FileError> {
    let op = CopyOp {
        parent: None,
        from: CopyFrom::Context(kiln_frontend::graph::ContextId::Main),
        sources: vec![CopySource::Path(".".to_owned())],
        dest: ImagePath::root(),
        dest_is_dir: true,
        chown: None,
        chmod: None,
        link: false,
        parents: false,
        exclude: Vec::new(),
        is_add: false,
        unpack: None,
        checksum: None,
        keep_git_dir: None,
    };
    selection_key(&op, &SourceTree::Context(context), &[])
}

#[test]
fn the_dockerfile_and_its_ignore_file_are_found() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("c");
    fs::create_dir(&dir).unwrap();
    let read = || read_dockerfile(&dir, &DockerfileSource::Default);
    assert!(matches!(read(), Err(ContextError::NoDockerfile { .. })));
    fs::write(dir.join("dockerfile"), "lower").unwrap();
    assert_eq!(read().unwrap().bytes, b"lower");
    fs::write(dir.join("real"), "upper").unwrap();
    symlink("real", dir.join("Dockerfile")).unwrap();
    assert_eq!(read().unwrap().bytes, b"upper");
    assert_eq!(read().unwrap().path.unwrap(), dir.join("Dockerfile"));

    // A link out of the context, a directory and a fifo are refused by name.
    fs::write(temp.path().join("outside"), "secret").unwrap();
    for make in [
        |path: &Path| symlink("../outside", path).unwrap(),
        |path: &Path| symlink("/etc/passwd", path).unwrap(),
        |path: &Path| fs::create_dir(path).unwrap(),
        |path: &Path| {
            rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o600), 0)
                .unwrap()
        },
    ] {
        for name in ["Dockerfile", ".dockerignore"] {
            let path = dir.join(name);
            let _ = fs::remove_file(&path);
            make(&path);
            let error = match name {
                "Dockerfile" => read().unwrap_err(),
                _ => read_ignore(&dir, None).unwrap_err(),
            };
            assert!(error.to_string().contains(&path.display().to_string()), "{error}");
            fs::remove_file(&path).or_else(|_| fs::remove_dir(&path)).unwrap();
        }
    }
    let path = dir.join("sub/x.Dockerfile");
    fs::create_dir(dir.join("sub")).unwrap();
    fs::write(&path, "x").unwrap();
    let text = read_dockerfile(&dir, &DockerfileSource::Path(path.clone())).unwrap();
    assert_eq!((text.path.as_deref(), &text.bytes[..]), (Some(&*path), &b"x"[..]));
    assert!(read_dockerfile(&dir, &DockerfileSource::Path(dir.join("nope"))).unwrap_err().to_string().contains("nope"));

    assert!(read_ignore(&dir, Some(&path)).unwrap().path.is_none());
    fs::write(dir.join(".dockerignore"), "a").unwrap();
    assert_eq!(read_ignore(&dir, Some(&path)).unwrap().path.unwrap(), dir.join(".dockerignore"));
    fs::write(dir.join("sub/x.Dockerfile.dockerignore"), "b").unwrap();
    let ignore = read_ignore(&dir, Some(&path)).unwrap();
    assert!(ignore.matcher.matches(b"b") && !ignore.matcher.matches(b"a"));
    fs::write(dir.join(".dockerignore"), "!").unwrap();
    let error = read_ignore(&dir, None).unwrap_err();
    assert!(error.to_string().contains(".dockerignore"), "{error}");
}

#[test]
fn an_unchanged_file_is_not_read_again() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("c");
    fs::create_dir_all(dir.join("sub")).unwrap();
    for i in 0..50 {
        fs::write(dir.join(format!("sub/f{i}")), format!("{i}")).unwrap();
    }
    let memo = temp.path().join("memo");
    let open = || Context::open(&dir, PatternMatcher::default(), Some(memo.clone())).unwrap();
    let first = key(&open()).unwrap();
    // Written less than two seconds before they were read: not to be trusted, so nothing was remembered.
    assert!(!memo.exists());
    std::thread::sleep(kiln_store::memo::GRAIN + Duration::from_millis(50));
    assert_eq!(key(&open()).unwrap(), first);
    let remembered = fs::read(&memo).unwrap();
    assert!(remembered.len() > 50 * 80);
    // Now the memo is believed, even where it's wrong: that's how to see that the file isn't read.
    let mut wrong = remembered.clone();
    let body = "kiln-memo2\n".len() + 32;
    // The boot and the time of the reading stand before the records.
    let record = body + 16 + 8;
    for byte in &mut wrong[record + 48..record + 80] {
        *byte ^= 1;
    }
    let sum = *blake3::hash(&wrong[body..]).as_bytes();
    wrong[body - 32..body].copy_from_slice(&sum);
    fs::write(&memo, &wrong).unwrap();
    assert_ne!(key(&open()).unwrap(), first);
    fs::write(&memo, &remembered).unwrap();
    assert_eq!(key(&open()).unwrap(), first);
    assert_eq!(fs::read(&memo).unwrap(), remembered, "nothing was learnt, nothing is written");
    // An edit that keeps size and mtime is seen.
    let file = fs::File::options().write(true).open(dir.join("sub/f7")).unwrap();
    let mtime = file.metadata().unwrap().modified().unwrap();
    (&file).write_all(b"8").unwrap();
    file.set_modified(mtime).unwrap();
    drop(file);
    assert_ne!(key(&open()).unwrap(), first);
}

#[test]
fn a_file_that_keeps_changing_is_an_error() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("c");
    fs::create_dir(&dir).unwrap();
    let path = dir.join("log");
    for (changes, rounds, succeeds) in [(0, 1, true), (1, 2, true), (2, 2, false)] {
        fs::write(&path, "x").unwrap();
        let context = Context::open(&dir, PatternMatcher::default(), None).unwrap();
        let ContextNode::Dir(root) = context.root_node().unwrap() else { panic!() };
        let ContextNode::Leaf { dir: at, name, leaf } = context.children(&root).unwrap().remove(0) else { panic!() };
        let mut round = 0;
        let result = DirReader::new(&context, at).read(&name, &leaf, |_, _| {
            round += 1;
            if round <= changes {
                fs::File::options().append(true).open(&path).unwrap().write_all(b"more").unwrap();
            }
            Ok::<_, ContextError>(())
        });
        assert_eq!(result.is_ok(), succeeds, "{changes} changes");
        assert_eq!(round, rounds, "{changes} changes");
        if let Err(error) = result {
            assert_eq!(error.to_string(), format!("`{}` changed while being read", path.display()));
        }
    }
    // Changed once, between the listing and the reading: that's what it is now.
    let context = Context::open(&dir, PatternMatcher::default(), None).unwrap();
    let root = context.root_node().unwrap();
    let ContextNode::Dir(root) = root else { panic!() };
    context.expand(&root);
    fs::write(&path, "new").unwrap();
    let changed = key(&context).unwrap();
    let fresh = Context::open(&dir, PatternMatcher::default(), None).unwrap();
    assert_eq!(key(&fresh).unwrap(), changed);
    // Changed after it went into a key: it must not be copied under that key.
    let ContextNode::Dir(root) = fresh.root_node().unwrap() else { panic!() };
    let ContextNode::Leaf { dir: at, name, leaf } = fresh.children(&root).unwrap().remove(0) else { panic!() };
    fs::write(&path, "newer").unwrap();
    let read = DirReader::new(&fresh, at).read(&name, &leaf, |_, _| Ok::<_, ContextError>(()));
    assert!(matches!(read, Err(ContextError::Changing { .. })), "{read:?}");
}

#[test]
fn what_is_not_asked_for_is_not_looked_at() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("c");
    fs::create_dir_all(dir.join("never/asked")).unwrap();
    fs::create_dir_all(dir.join("skipped/deep")).unwrap();
    fs::create_dir_all(dir.join("kept/deep")).unwrap();
    fs::write(dir.join("kept/deep/f"), "").unwrap();
    let ignore = PatternMatcher::parse(b"skipped\nkept\n!kept/deep/f").unwrap();
    let context = Context::open(&dir, ignore, None).unwrap();
    let Some(ContextNode::Dir(root)) = context.root_node() else { panic!() };
    let kept = context.child(&root, b"kept").unwrap();
    assert!(kept.is_some());
    assert!(context.child(&root, b"skipped").unwrap().is_none());
    let known: Vec<_> = (0..).map_while(|i| context.dir(i)).map(|dir| format!("{dir:?}")).collect();
    // The root, `kept`, `kept/deep` and `never`: but not what is in `never`, and nothing of `skipped`.
    assert_eq!(known.len(), 4, "{known:#?}");
}

#[test]
fn a_fifo_is_not_waited_for() {
    let temp = tempfile::tempdir().unwrap();
    let fifo = temp.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o600), 0).unwrap();
    let began = Instant::now();
    key(&Context::open(temp.path(), PatternMatcher::default(), None).unwrap()).unwrap();
    assert!(began.elapsed() < Duration::from_secs(1));
}
