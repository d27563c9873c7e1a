//! Real overlays as a user namespace mounts them, written to by real commands, and whose the files are afterwards.

use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::layer::testing::{Dirs, Overlay, can_mount, sh};
use crate::layer::{PackOptions, UnpackOptions, pack, unpack};
use crate::owner::Ownership;
use crate::{Store, TreeForm, Waiting};

struct Row {
    name: &'static str,
    /// Makes what lies below, with real owners.
    base: &'static str,
    /// What the command does. Where a real one would `chown`, this sets the attribute.
    change: &'static str,
    maker: (u32, u32),
    /// Names whose owners the supervisor saw.
    seen: &'static [(&'static str, u32, u32)],
    /// Who owns what in the end, by the path.
    expected: &'static [(&'static str, u32, u32)],
}

const ROWS: &[Row] = &[
    Row {
        name: "root makes files",
        base: "",
        change: "touch f; mkdir d; ln -s x l; mkfifo p",
        maker: (0, 0),
        seen: &[],
        expected: &[("f", 0, 0), ("d", 0, 0), ("l", 0, 0), ("p", 0, 0)],
    },
    Row {
        name: "a user makes files",
        base: "",
        change: "touch f; mkdir d; touch d/g; ln -s x l; mkfifo p",
        maker: (7, 8),
        seen: &[],
        expected: &[("f", 7, 8), ("d", 7, 8), ("d/g", 7, 8), ("l", 7, 8), ("p", 7, 8)],
    },
    Row {
        name: "what was given away stays so, also to root",
        base: "",
        change: "touch f g; setfattr -n user.kiln.owner -v 1:2 f; setfattr -n user.kiln.owner -v 0:0 g; ln -s x l; mkfifo p; ln p q",
        maker: (7, 8),
        seen: &[("l", 3, 4), ("p", 5, 6), ("l", 0, 9)],
        expected: &[("f", 1, 2), ("g", 0, 0), ("l", 0, 9), ("p", 5, 6), ("q", 5, 6)],
    },
    Row {
        name: "what was changed keeps its owner",
        base: "echo a >f; echo a >r; chown 1:2 f; mkdir d e; touch d/x; chown 3:4 d; echo a >h; ln h i; mknod c c 1 3; chown 5:5 c",
        change: "echo b >>f; echo b >>r; touch d/new; chmod 700 e; chmod 600 c h",
        maker: (7, 8),
        seen: &[],
        expected: &[("f", 1, 2), ("r", 0, 0), ("d", 3, 4), ("d/new", 7, 8), ("e", 0, 0), ("c", 5, 5), ("h", 0, 0)],
    },
    Row {
        name: "what was replaced is its maker's",
        base: "touch f; chown 1:2 f; ln -s x l; chown -h 1:2 l; mkdir d; touch d/x; chown 1:2 d; ln -s x m; chown -h 1:2 m",
        change: "rm f l m; echo new >f; ln -s y l; rm -r d; mkdir d; ln -s x m",
        maker: (7, 8),
        seen: &[],
        expected: &[("f", 7, 8), ("l", 7, 8), ("d", 7, 8), ("m", 7, 8)],
    },
    Row {
        name: "copied up without a room for a record",
        base: "ln -s x l; mkfifo p; chown -h 1:2 l p; ln -s x r",
        change: "ln -P l m; chmod 600 p; ln -P r s",
        maker: (0, 0),
        seen: &[],
        expected: &[("l", 1, 2), ("p", 1, 2), ("r", 0, 0)],
    },
    Row {
        name: "a directory gives its group",
        base: "mkdir d; chown 0:50 d; chmod 2775 d; mkdir e; chmod 2775 e",
        change: "touch d/f; mkdir d/g; touch d/g/h; ln -s x d/l; touch d/o; setfattr -n user.kiln.owner -v 0:0 d/o; touch e/f",
        maker: (0, 0),
        seen: &[],
        expected: &[("d/f", 0, 50), ("d/g", 0, 50), ("d/g/h", 0, 50), ("d/l", 0, 50), ("d/o", 0, 0), ("e/f", 0, 0), ("d", 0, 50)],
    },
    Row {
        name: "moved below",
        base: "mkdir d; touch d/a; chown 1:2 d/a; mkdir e",
        change: "mv d/a d/b; mv d/b e/c",
        maker: (7, 8),
        seen: &[],
        expected: &[("e/c", 1, 2), ("d", 0, 0), ("e", 0, 0)],
    },
    Row {
        name: "links moved and linked",
        base: "mkdir d; ln -s x d/a; chown -h 1:2 d/a; ln -s y d/k; chown -h 3:4 d/k",
        change: "mv d/a d/b; ln -P d/k d/m; ln -s x d/new",
        maker: (0, 0),
        seen: &[],
        expected: &[("d/b", 1, 2), ("d/k", 3, 4), ("d/m", 3, 4), ("d/new", 0, 0)],
    },
];

#[test]
fn what_a_command_made_is_whose_it_would_be() {
    if !can_mount("what_a_command_made_is_whose_it_would_be") {
        return;
    }
    let style = WhiteoutStyle::UserXattr;
    for row in ROWS {
        let dirs = Dirs::new();
        let [real, lower, upper, work, at] = ["real", "lower", "upper", "work", "at"].map(|d| dirs.make(d));
        sh(&real, row.base);
        let mut tar = Vec::new();
        pack(&RootDir::open(&real).unwrap(), &mut tar, &PackOptions::default()).unwrap();
        let tree = |path: &Path| RootDir::open_as(path, Ownership::Recorded).unwrap();
        let options = UnpackOptions { style, ..UnpackOptions::default() };
        unpack(&mut &tar[..], &tree(&lower), &View::empty(), &options).unwrap();
        let overlay = Overlay::mount_with("userxattr", &[&lower], &upper, &work, &at);
        sh(&overlay.at, row.change);
        drop(overlay);
        let inode = |name: &str| std::fs::symlink_metadata(upper.join(name)).unwrap().ino();
        let seen: Vec<_> = row.seen.iter().map(|(name, uid, gid)| (inode(name), *uid, *gid)).collect();
        let parent = View::from_roots(vec![tree(&lower)], style).unwrap();
        let maker = Owner { uid: row.maker.0, gid: row.maker.1 };
        Made::new(style, None, &seen, maker).record(&tree(&upper), &parent).unwrap();
        let merged = View::from_roots(vec![tree(&upper), tree(&lower)], style).unwrap();
        for (path, uid, gid) in row.expected {
            let node = merged.lookup(&(*path).into()).unwrap().unwrap();
            assert_eq!((node.meta().uid, node.meta().gid), (*uid, *gid), "{}: {path}", row.name);
        }
    }
}

#[test]
fn the_same_where_a_command_runs_in_a_copy() {
    if !can_mount("the_same_where_a_command_runs_in_a_copy") {
        return;
    }
    let form = TreeForm { whiteouts: WhiteoutStyle::Names, owners: Ownership::Recorded };
    let go_on = Arc::new(|_: &Waiting<'_>| ControlFlow::Continue(()));
    for row in ROWS {
        let dirs = Dirs::new();
        let real = dirs.make("real");
        sh(&real, row.base);
        let mut tar = Vec::new();
        pack(&RootDir::open(&real).unwrap(), &mut tar, &PackOptions::default()).unwrap();
        let store = Store::open_as(&dirs.make("store"), form, go_on.clone()).unwrap();
        let base = store.layers().prepare(None).unwrap();
        unpack(&mut &tar[..], &store.tree(&base.upper).unwrap(), &View::empty(), &store.unpacking()).unwrap();
        let base = base.commit().unwrap();
        let mut prepared = store.layers().prepare_copy(Some(&base)).unwrap();
        let tree = prepared.tree().unwrap();
        sh(&tree, row.change);
        let inode = |name: &str| std::fs::symlink_metadata(tree.join(name)).unwrap().ino();
        let seen: Vec<_> = row.seen.iter().map(|(name, uid, gid)| (inode(name), *uid, *gid)).collect();
        prepared.record_owners(&seen, Owner { uid: row.maker.0, gid: row.maker.1 }).unwrap();
        prepared.collect().unwrap();
        let layer = prepared.commit().unwrap();
        let merged = store.view(store.layers().lowers(&layer).unwrap()).unwrap();
        for (path, uid, gid) in row.expected {
            let node = merged.lookup(&(*path).into()).unwrap().unwrap();
            assert_eq!((node.meta().uid, node.meta().gid), (*uid, *gid), "{}: {path}", row.name);
        }
    }
}
