//! Paths, links and whiteouts of both styles in stacks of layers on a real disk.

use super::*;
use crate::layer::testing::{Dirs, sh};

#[test]
fn paths_are_resolved_inside_the_tree() {
    let dirs = Dirs::new();
    let [upper, lower] = ["upper", "lower"].map(|d| dirs.make(d));
    sh(
        &lower,
        "mkdir -p usr/lib/deep etc a/b; ln -s usr/lib lib; ln -s /usr/lib abs; ln -s ../../../../etc a/b/up; echo x >etc/passwd; \
         ln -s loop2 loop1; ln -s loop1 loop2; ln -s . dot; ln -s / top; ln -s nowhere/x/.. gone; ln -s ../lib/./deep// a/l; ln -s .. a/parent; \
         ln -s /etc/shadow shadow",
    );
    sh(&upper, "mkdir etc; echo y >etc/group");
    let view = View::new([&upper, &lower]).unwrap();
    for (path, expected, exists) in [
        ("/", "/", true),
        ("/lib", "/usr/lib", true),
        ("/lib/x", "/usr/lib/x", false),
        ("/abs/deep", "/usr/lib/deep", true),
        ("/a/b/up/passwd", "/etc/passwd", true),
        ("/a/b/up/group", "/etc/group", true),
        ("/dot/dot/dot/etc", "/etc", true),
        ("/dot", "/", true),
        ("/top", "/", true),
        ("/top/lib/new/file", "/usr/lib/new/file", false),
        ("/gone", "/nowhere", false),
        ("/a/l", "/usr/lib/deep", true),
        ("/a/parent/a/parent/etc", "/etc", true),
        ("/a/parent", "/", true),
        ("/shadow", "/etc/shadow", false),
        ("/no/such/lib", "/no/such/lib", false),
    ] {
        let path = ImagePath::new(path);
        let (resolved, expected) = (view.resolve(&path).unwrap(), ImagePath::new(expected));
        assert_eq!((&resolved.path, resolved.node.is_some()), (&expected, exists), "{path}");
        if let Some(node) = resolved.node {
            let direct = view.lookup(&expected).unwrap().unwrap();
            assert_eq!((node.meta().dev, node.meta().ino), (direct.meta().dev, direct.meta().ino), "{path}");
        }
    }
    assert!(matches!(view.resolve(&"/loop1".into()), Err(ViewError::TooManyLinks(_))));
    assert!(matches!(view.resolve(&"/etc/passwd/x".into()), Err(ViewError::NotADirectory { .. })));
    assert!(view.lookup(&"/etc/passwd/x".into()).unwrap().is_none());
    assert_eq!(view.lookup(&"/lib".into()).unwrap().unwrap().kind(), Kind::Symlink);
    assert_eq!(view.resolve_parent(&"/abs/shadow".into()).unwrap().path, "/usr/lib/shadow".into());
    let etc = view.lookup(&"/etc".into()).unwrap().unwrap();
    let names: Vec<_> = etc.read_dir().unwrap().iter().map(|n| n.name().to_vec()).collect();
    assert_eq!(names, [b"group".to_vec(), b"passwd".to_vec()]);
    assert!(etc.child(b"passwd").unwrap().is_some());
}

#[test]
fn a_file_is_read_without_being_led_astray() {
    let dirs = Dirs::new();
    let lower = dirs.make("lower");
    sh(
        &lower,
        "mkdir etc; echo abc >etc/passwd; mkfifo etc/group; ln -s group etc/fifo; ln -s /etc/passwd etc/link; mkdir etc/dir",
    );
    let view = View::new([&lower]).unwrap();
    assert_eq!(view.read_file(&"/etc/link".into(), 4).unwrap().unwrap(), b"abc\n");
    assert!(matches!(view.read_file(&"/etc/passwd".into(), 3), Err(ViewError::TooLarge { max: 3, .. })));
    assert!(view.read_file(&"/etc/none".into(), 4).unwrap().is_none());
    assert!(view.read_file(&"/etc/passwd/none".into(), 4).unwrap().is_none());
    for path in ["/etc/group", "/etc/fifo", "/etc/dir", "/"] {
        assert!(matches!(view.read_file(&path.into(), 4), Err(ViewError::NotAFile(_))), "{path}");
    }
    let empty = View::empty();
    assert!(empty.root().unwrap().is_none());
    assert!(empty.lookup(&"/etc/passwd".into()).unwrap().is_none());
    assert_eq!(empty.resolve(&"/a/b".into()).unwrap().path, "/a/b".into());
}

#[test]
fn whiteouts_of_both_styles_hide() {
    if !crate::layer::testing::can_mount("whiteouts_of_both_styles_hide") {
        return;
    }
    let dirs = Dirs::new();
    let [upper, lower] = ["upper", "lower"].map(|d| dirs.make(d));
    sh(&lower, "mkdir d e; touch d/a d/b e/a");
    sh(
        &upper,
        "mkdir d e; mknod d/a c 0 0; touch d/b; setfattr -n user.overlay.whiteout -v y d/b; setfattr -n user.overlay.opaque -v y e",
    );
    let names = |view: &View, dir: &str| -> Vec<String> {
        let node = view.lookup(&dir.into()).unwrap().unwrap();
        node.read_dir().unwrap().iter().map(|n| String::from_utf8_lossy(n.name()).into_owned()).collect()
    };
    let open = || [&upper, &lower].map(|p| RootDir::open(p).unwrap()).into_iter().collect::<Vec<_>>();
    let device = View::from_roots(open(), WhiteoutStyle::Device).unwrap();
    assert_eq!((names(&device, "/d"), names(&device, "/e")), (vec!["b".into()], vec!["a".into()]));
    let user = View::from_roots(open(), WhiteoutStyle::UserXattr).unwrap();
    assert_eq!((names(&user, "/d"), names(&user, "/e")), (vec![], vec![]));
    let plain = View::plain(RootDir::open(&upper).unwrap());
    assert_eq!(names(&plain, "/d"), ["a", "b"]);
}
