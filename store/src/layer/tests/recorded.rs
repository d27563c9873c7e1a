//! Trees whose owners are recorded pack to the same bytes as those whose owners are real: as root, and as a user of the host
//! without any namespace.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::super::testing::{Dirs, Overlay, can_mount, sh, tell};
use super::super::upper::{Content, UpperWriter, implied_dir};
use super::super::whiteout::WhiteoutStyle;
use super::*;
use crate::owner::{Owner, Ownership};
use crate::rootdir::{Attrs, Kind, Timestamp, Xattrs};

const STYLES: [WhiteoutStyle; 2] = [WhiteoutStyle::UserXattr, WhiteoutStyle::Names];

/// With owners recorded, or as the test that started this process says.
fn recorded(path: &Path) -> RootDir {
    RootDir::open_as(path, if is_mapped() { Ownership::Mapped } else { Ownership::Recorded }).unwrap()
}

fn is_mapped() -> bool {
    std::env::var_os("KILN_TEST_MAPPED").is_some()
}

fn view_of(trees: &[&Path], style: WhiteoutStyle) -> View {
    View::from_roots(trees.iter().map(|path| recorded(path)).collect(), style).unwrap()
}

/// Unpacks `tar` over `below` with owners recorded, and packs it again.
fn through(tar: &[u8], dest: &Path, below: &View, style: WhiteoutStyle) -> Vec<u8> {
    let stats = unpack(&mut &tar[..], &recorded(dest), below, &UnpackOptions { style, ..UnpackOptions::default() }).unwrap();
    assert_eq!(stats.entries_skipped, 0);
    let mut again = Vec::new();
    pack(&recorded(dest), &mut again, &PackOptions { style, ..PackOptions::default() }).unwrap();
    again
}

/// Everything on disk is the process's own, and nothing is a device but whiteouts.
fn all_mine(tree: &Path) {
    let me = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let mut next = vec![tree.to_owned()];
    while let Some(path) = next.pop() {
        let meta = std::fs::symlink_metadata(&path).unwrap();
        assert!(is_mapped() || (meta.uid(), meta.gid()) == me, "{path:?}");
        assert_eq!(meta.rdev(), 0, "{path:?}");
        if meta.is_dir() {
            next.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
}

/// Layers beside those of [`CHANGES`]: what only a tar can say, or no row needed so far.
const MORE: &[(&str, &str)] = &[
    (
        "owners of all kinds",
        "touch f; mkdir d; ln -s x l; mkfifo p; mknod c c 1 3; chown -h 1:2 f d l p c; ln -P l m; ln p q; ln c e",
    ),
    (
        "files that no one may read",
        "echo secret >s; chmod 0 s; chown 5:6 s; echo x >w; chmod 200 w; mkdir d; echo y >d/f; chmod 0 d",
    ),
    ("read-only files with owners", "echo a >a; chmod 444 a; chown 9:9 a; mkdir d; touch d/f; chmod 555 d; chown 8:8 d"),
    (
        "capabilities with owners",
        "cp /bin/true f; chown 7:7 f; setcap cap_net_raw+ep f; ln f g; mkdir d; cp -p f d/f; setcap cap_chown=ei d/f",
    ),
    (
        "set-id of others",
        "touch u g b; chown 3:3 u g b; chmod 4755 u; chmod 2755 g; chmod 6711 b; mkdir d; chown 0:50 d; chmod 2775 d",
    ),
    (
        "access lists with strangers' ids",
        "touch f; chown 4:4 f; setfacl -m u:12345:rw,g:54321:r,m::r f; mkdir d; setfacl -d -m u:7:rx d; chmod 750 d",
    ),
    (
        "empty devices and fifos by other names",
        "mkdir d; mknod d/c c 5 1; mkfifo d/p; ln d/c c; ln d/p p; chown 1:1 d/c d/p; chmod 640 c p",
    ),
    (
        "attributes of kiln's own",
        "touch f; setfattr -n user.kiln.owner -v 6:6 f; setfattr -n user.kiln.node -v 'c 1:3' f; setfattr -n user.k -v v f",
    ),
    (
        "times of what is recorded",
        "mknod c c 1 3; ln -s x l; mkfifo p; touch -h -d @7 c l p; mkdir d; chown 1:1 d; touch -d @8 d",
    ),
];

/// A row's name and the tars of what is below and above.
type Layer = (String, Vec<u8>, Vec<u8>);

/// The tars of all rows, made once with real owners.
fn layers() -> &'static [Layer] {
    static LAYERS: std::sync::OnceLock<Vec<Layer>> = std::sync::OnceLock::new();
    LAYERS.get_or_init(make_layers)
}

fn make_layers() -> Vec<Layer> {
    let mut layers = Vec::new();
    let changes = CHANGES.iter().map(|(name, base, change, _)| (*name, *base, *change));
    for (name, base, change) in changes.chain(MORE.iter().map(|(name, script)| (*name, "", *script))) {
        if let Some(tool) = tool_missing(change).or(tool_missing(base)) {
            println!("skipped: row `{name}` needs {tool}");
            continue;
        }
        let dirs = Dirs::new();
        let [lower, upper, work, at] = ["lower", "upper", "work", "at"].map(|d| dirs.make(d));
        sh(&lower, base);
        let overlay = Overlay::mount(&[&lower], &upper, &work, &at);
        sh(&overlay.at, change);
        drop(overlay);
        layers.push((name.to_owned(), packed(&lower), packed(&upper)));
    }
    layers
}

#[test]
fn a_layer_has_the_same_bytes_where_owners_are_recorded() {
    if !can_mount("a_layer_has_the_same_bytes_where_owners_are_recorded") {
        return;
    }
    for (name, below, above) in layers() {
        for style in STYLES {
            let dirs = Dirs::new();
            let [lower, upper, real_lower, real_upper] = ["lower", "upper", "real-lower", "real-upper"].map(|d| dirs.make(d));
            assert!(through(below, &lower, &View::empty(), style) == *below, "{name} below, {style:?}");
            assert!(through(above, &upper, &view_of(&[&lower], style), style) == *above, "{name}, {style:?}");
            all_mine(&lower);
            all_mine(&upper);
            unpacked(below, &real_lower, &View::empty()).unwrap();
            unpacked(above, &real_upper, &View::new([&real_lower]).unwrap()).unwrap();
            let real = tell(&View::new([&real_upper, &real_lower]).unwrap(), true);
            assert_eq!(tell(&view_of(&[&upper, &lower], style), true), real, "{name}, {style:?}");
        }
    }
}

/// What the test below does as another user: unpacks what stands in the folder and packs it again.
#[test]
fn as_a_plain_user() {
    let Some(folder) = std::env::var_os("KILN_TEST_LAYERS").map(PathBuf::from) else { return };
    for row in std::fs::read_dir(&folder).unwrap() {
        let row = row.unwrap().path();
        let read = |name: &str| std::fs::read(row.join(name)).unwrap();
        for style in STYLES {
            let dir = row.join(format!("{style:?}"));
            let [lower, upper] = ["lower", "upper"].map(|name| dir.join(name));
            std::fs::create_dir_all(&lower).unwrap();
            std::fs::create_dir_all(&upper).unwrap();
            assert!(through(&read("below"), &lower, &View::empty(), style) == read("below"), "{row:?} below, {style:?}");
            assert!(through(&read("above"), &upper, &view_of(&[&lower], style), style) == read("above"), "{row:?}, {style:?}");
            all_mine(&lower);
            all_mine(&upper);
            let told: String = tell(&view_of(&[&upper, &lower], style), true)
                .into_iter()
                .map(|(path, line)| format!("{path} {line}\n"))
                .collect();
            std::fs::write(row.join(format!("told-{style:?}")), told).unwrap();
        }
    }
    std::fs::write(folder.join("done"), "").unwrap();
}

/// A user id of nobody.
const PLAIN: u32 = 54_321;

#[test]
fn a_user_without_any_namespace_packs_the_same_bytes() {
    as_another("a_user_without_any_namespace_packs_the_same_bytes", PLAIN, &[]);
}

#[test]
fn a_user_who_is_root_in_a_namespace_of_one_id_packs_the_same_bytes() {
    as_another("a_user_who_is_root_in_a_namespace_of_one_id_packs_the_same_bytes", PLAIN, &["unshare", "--map-root-user"]);
}

#[test]
fn a_user_with_sub_ids_packs_the_same_bytes() {
    let test = "a_user_with_sub_ids_packs_the_same_bytes";
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
    let user = passwd.lines().find_map(|line| line.strip_prefix("kiln-subids:x:")?.split(':').next()?.parse().ok());
    match user {
        Some(user) => as_another(test, user, &["unshare", "--map-auto", "--map-root-user", "env", "KILN_TEST_MAPPED=1"]),
        None => println!("skipped: {test} needs the user kiln-subids"),
    }
}

/// Runs [`as_a_plain_user`] as one, through the command `through`.
fn as_another(test: &str, user: u32, through: &[&str]) {
    if !can_mount(test) {
        return;
    }
    let become_it = [format!("--reuid={user}"), format!("--regid={user}"), "--clear-groups".to_owned()];
    let can = Command::new("setpriv").args(&become_it).args(through).arg("true").status();
    if !can.is_ok_and(|status| status.success()) {
        println!("skipped: {test} needs setpriv {through:?}");
        return;
    }
    let temp = tempfile::Builder::new().permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755)).tempdir().unwrap();
    let folder = temp.path().join("layers");
    std::fs::create_dir(&folder).unwrap();
    std::os::unix::fs::chown(&folder, Some(user), Some(user)).unwrap();
    let mut rows = Vec::new();
    for (number, (name, below, above)) in layers().iter().enumerate() {
        let row = folder.join(format!("{number}"));
        std::fs::create_dir(&row).unwrap();
        std::fs::write(row.join("below"), below).unwrap();
        std::fs::write(row.join("above"), above).unwrap();
        std::os::unix::fs::chown(&row, Some(user), Some(user)).unwrap();
        rows.push((name, row, below, above));
    }
    let program = temp.path().join("test");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let output = Command::new("setpriv")
        .args(&become_it)
        .args(through)
        .arg(&program)
        .args(["--exact", "layer::tests::recorded::as_a_plain_user", "--nocapture"])
        .env("KILN_TEST_LAYERS", &folder)
        .current_dir(&folder)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    let names: Vec<_> = rows.iter().enumerate().map(|(number, row)| format!("{number}: {}", row.0)).collect();
    assert!(output.status.success() && folder.join("done").exists(), "{said}\n{names:?}");
    for (name, row, below, above) in rows {
        let dirs = Dirs::new();
        let [lower, upper] = ["lower", "upper"].map(|d| dirs.make(d));
        unpacked(below, &lower, &View::empty()).unwrap();
        unpacked(above, &upper, &View::new([&lower]).unwrap()).unwrap();
        let real: String = tell(&View::new([&upper, &lower]).unwrap(), true)
            .into_iter()
            .map(|(path, line)| format!("{path} {line}\n"))
            .collect();
        for style in STYLES {
            assert_eq!(std::fs::read_to_string(row.join(format!("told-{style:?}"))).unwrap(), real, "{name}, {style:?}");
        }
    }
}

fn attrs(uid: u32, gid: u32, mode: u32) -> Attrs {
    Attrs { uid, gid, mode, mtime: Some(Timestamp::from_secs(1000)), xattrs: Xattrs::new() }
}

/// What a writer is told to do, by name.
type Script = fn(&UpperWriter);

const WRITTEN: &[(&str, Script)] = &[
    ("all kinds", |w| {
        w.put_file(&"/d/f".into(), Content::Bytes(b"x"), &attrs(1, 2, 0o4640)).unwrap();
        w.symlink(&"/d/l".into(), b"f", &attrs(3, 4, 0)).unwrap();
        w.mknod(&"/d/p".into(), Kind::Fifo, (0, 0), &attrs(5, 6, 0o600)).unwrap();
        w.mknod(&"/d/c".into(), Kind::Char, (1, 3), &attrs(7, 8, 0o666)).unwrap();
        w.mknod(&"/d/b".into(), Kind::Block, (8, 300), &attrs(0, 0, 0o660)).unwrap();
        w.mkdir(&"/d".into(), &attrs(9, 10, 0o2750)).unwrap();
    }),
    ("a link of a user replaced by root's", |w| {
        w.symlink(&"/l".into(), b"a", &attrs(3, 4, 0)).unwrap();
        w.symlink(&"/l".into(), b"b", &attrs(0, 0, 0)).unwrap();
        w.put_file(&"/m".into(), Content::Bytes(b""), &attrs(3, 3, 0o644)).unwrap();
        w.symlink(&"/m".into(), b"b", &attrs(0, 0, 0)).unwrap();
    }),
    ("a device replaced by an empty file, and the other way round", |w| {
        w.mknod(&"/c".into(), Kind::Char, (1, 3), &attrs(7, 8, 0o666)).unwrap();
        w.put_file(&"/c".into(), Content::Bytes(b""), &attrs(0, 0, 0o644)).unwrap();
        w.put_file(&"/e".into(), Content::Bytes(b""), &attrs(7, 8, 0o644)).unwrap();
        w.mknod(&"/e".into(), Kind::Block, (7, 0), &attrs(0, 0, 0o600)).unwrap();
    }),
    ("a directory with links replaced by one of the same names", |w| {
        w.symlink(&"/d/e/l".into(), b"a", &attrs(3, 4, 0)).unwrap();
        w.put_file(&"/d".into(), Content::Bytes(b"x"), &attrs(0, 0, 0o644)).unwrap();
        w.put_file(&"/g".into(), Content::Bytes(b"x"), &attrs(0, 0, 0o644)).unwrap();
        w.symlink(&"/x/e/l".into(), b"a", &attrs(3, 4, 0)).unwrap();
        w.symlink(&"/x".into(), b"y", &attrs(5, 5, 0)).unwrap();
    }),
    ("one more name", |w| {
        w.symlink(&"/l".into(), b"a", &attrs(3, 4, 0)).unwrap();
        w.link(&"/d/m".into(), &"/l".into()).unwrap();
        w.mknod(&"/p".into(), Kind::Fifo, (0, 0), &attrs(5, 6, 0o600)).unwrap();
        w.link(&"/q".into(), &"/p".into()).unwrap();
        w.mknod(&"/c".into(), Kind::Char, (1, 3), &attrs(5, 6, 0o600)).unwrap();
        w.link(&"/e".into(), &"/c".into()).unwrap();
        w.put_file(&"/r".into(), Content::Bytes(b""), &attrs(0, 0, 0o600)).unwrap();
        w.link(&"/l".into(), &"/r".into()).unwrap();
    }),
    ("links to what is only below", |w| {
        w.link(&"/l".into(), &"/below/l".into()).unwrap();
        w.link(&"/p".into(), &"/below/p".into()).unwrap();
        w.link(&"/c".into(), &"/below/c".into()).unwrap();
        w.link(&"/f".into(), &"/below/f".into()).unwrap();
    }),
    ("deletions", |w| {
        w.whiteout(&"/below/l".into()).unwrap();
        w.opaque(&"/below/d".into()).unwrap();
        w.put_file(&"/below/d/f".into(), Content::Bytes(b"x"), &attrs(0, 0, 0o644)).unwrap();
        w.symlink(&"/below/l".into(), b"new", &attrs(0, 0, 0)).unwrap();
    }),
    ("parents as they were", |w| {
        w.ensure_parents(&"/below/d/e/f".into(), &implied_dir(None)).unwrap();
        w.put_file(&"/below/d/e/f".into(), Content::Bytes(b"x"), &attrs(0, 0, 0o644)).unwrap();
    }),
];

#[test]
fn a_writer_gives_the_same_layer_where_owners_are_recorded() {
    if !can_mount("a_writer_gives_the_same_layer_where_owners_are_recorded") {
        return;
    }
    let dirs = Dirs::new();
    let source = dirs.make("source");
    sh(
        &source,
        "mkdir -p below/d/e; echo x >below/f; ln -s t below/l; mkfifo below/p; mknod below/c c 1 5; ln -s g below/d/g
         chown -h 11:12 below below/*; chown 13:14 below/d/e; chmod 2770 below/d; touch -h -d @500 below/d/e below/d below/* below",
    );
    let below = packed(&source);
    for (name, write) in WRITTEN {
        let mut tars = Vec::new();
        for (policy, style) in [
            (Ownership::Real, WhiteoutStyle::Device),
            (Ownership::Recorded, WhiteoutStyle::UserXattr),
            (Ownership::Recorded, WhiteoutStyle::Names),
            (Ownership::Real, WhiteoutStyle::Names),
        ] {
            let dirs = Dirs::new();
            let [lower, upper] = ["lower", "upper"].map(|d| RootDir::open_as(&dirs.make(d), policy).unwrap());
            let options = UnpackOptions { style, ..UnpackOptions::default() };
            unpack(&mut &below[..], &lower, &View::empty(), &options).unwrap();
            let writer =
                UpperWriter::new(upper.try_clone().unwrap(), View::from_roots(vec![lower], style).unwrap(), style).unwrap();
            write(&writer);
            writer.finish().unwrap();
            // A reader of its own, that knows nothing but what is on disk.
            let upper = RootDir::open_as(upper.shown(), policy).unwrap();
            let mut tar = Vec::new();
            pack(&upper, &mut tar, &PackOptions { style, latest_mtime: Some(1000), ..PackOptions::default() }).unwrap();
            tars.push((policy, style, entries(&tar), tar));
        }
        for (policy, style, entries, tar) in &tars[1..] {
            assert_eq!(entries, &tars[0].2, "{name}, {policy:?} {style:?}");
            assert!(*tar == tars[0].3, "{name}, {policy:?} {style:?}");
        }
    }
}

#[test]
fn renames_and_removals_take_the_records_along() {
    let dirs = Dirs::new();
    let path = dirs.make("tree");
    let root = recorded(&path);
    let owner = |dir: &RootDir, name: &str| dir.stat(name.as_bytes()).unwrap().map(|meta| (meta.uid, meta.gid));
    root.mkdir(b"d").unwrap();
    let d = root.child(b"d").unwrap();
    for (dir, name, id) in [(&root, &b"a"[..], 1), (&d, b"b", 2), (&d, b"c", 3)] {
        dir.symlink(name, b"t").unwrap();
        dir.set_attrs_of_node(name, Kind::Symlink, &attrs(id, id, 0)).unwrap();
    }
    root.rename(b"a", &d, b"c").unwrap();
    assert_eq!(owner(&d, "c"), Some((1, 1)), "the one that was there before is replaced");
    root.rename(b"d", &root, b"e").unwrap();
    let e = root.child(b"e").unwrap();
    assert_eq!((owner(&e, "b"), owner(&e, "c")), (Some((2, 2)), Some((1, 1))));
    assert_eq!(owner(&root.walk(&"/e".into()).unwrap(), "b"), Some((2, 2)));
    e.unlink(b"b").unwrap();
    e.symlink(b"b", b"t").unwrap();
    assert_eq!(owner(&e, "b"), Some((0, 0)), "nobody said whose it is");
    e.set_owner(b"b", Kind::Symlink, Owner { uid: 4, gid: 5 }).unwrap();
    root.save_records().unwrap();
    assert_eq!(owner(&recorded(&path).child(b"e").unwrap(), "b"), Some((4, 5)));
    root.remove_all(b"e").unwrap();
    root.mkdir(b"e").unwrap();
    root.child(b"e").unwrap().symlink(b"b", b"t").unwrap();
    assert_eq!(owner(&root.child(b"e").unwrap(), "b"), Some((0, 0)));
}
