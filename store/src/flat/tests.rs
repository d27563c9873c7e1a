//! Copies of merged trees: what commands do to them is found, and they follow their layers.

use std::path::Path;

use super::*;
use crate::layer::testing::{Dirs, Told, can_mount, plain, sh, tell};
use crate::layer::tests::{CHANGES, tool_missing};

const STYLE: WhiteoutStyle = WhiteoutStyle::Names;

fn stack(layers: &[&Path]) -> View {
    View::from_roots(layers.iter().map(|path| RootDir::open(path).unwrap()).collect(), STYLE).unwrap()
}

fn open(path: &Path) -> RootDir {
    RootDir::open(path).unwrap()
}

/// A file of whose names one is left is told like any other; so is one whose names are in several layers.
fn told(view: &View) -> Told {
    let mut told = tell(view, true);
    let group = |line: &str| line.rsplit_once(" =").map(|(_, first)| first.to_owned());
    let groups: Vec<String> = told.values().filter_map(|line| group(line)).collect();
    for line in told.values_mut() {
        if group(line).is_some_and(|first| groups.iter().filter(|other| **other == first).count() < 2) {
            line.truncate(line.rfind(" =").unwrap());
        }
    }
    told
}

/// Like what [`Tree`] does, with folders that a test can look into.
struct Step {
    dirs: Dirs,
    layers: Vec<std::path::PathBuf>,
    tree: std::path::PathBuf,
    index: Index,
}

impl Step {
    fn new(base: &str) -> Step {
        let dirs = Dirs::new();
        let [lower, tree] = ["lower", "tree"].map(|name| dirs.make(name));
        sh(&lower, base);
        let index = copy(&stack(&[&lower]), &open(&tree)).unwrap();
        Step { dirs, layers: vec![lower], tree, index }
    }

    fn view(&self) -> View {
        stack(&self.layers.iter().rev().map(|path| path.as_path()).collect::<Vec<_>>())
    }

    /// Runs a command and takes what it did for a new layer; the next step's tree is ready afterwards.
    fn run(&mut self, change: &str) -> std::result::Result<Told, CollectError> {
        let since = next_tick();
        sh(&self.tree, change);
        let shown = told(&plain(&self.tree));
        let upper = self.dirs.make(&format!("upper{}", self.layers.len()));
        let below = self.view();
        collect(&open(&self.tree), &mut self.index, since, &below, &open(&upper), STYLE)?;
        self.layers.push(upper.clone());
        grow(&open(&upper), &open(&self.tree), &mut self.index, STYLE).unwrap();
        Ok(shown)
    }

    fn names(&self) -> Vec<String> {
        let mut tar = Vec::new();
        let options = crate::layer::PackOptions { style: STYLE, ..Default::default() };
        crate::layer::pack(&open(self.layers.last().unwrap()), &mut tar, &options).unwrap();
        crate::layer::tests::entries(&tar).into_iter().map(|entry| entry.path.escape_ascii().to_string()).collect()
    }
}

#[test]
fn every_change_is_found_and_followed() {
    if !can_mount("every_change_is_found_and_followed") {
        return;
    }
    for (name, base, change, expected) in CHANGES {
        if tool_missing(change).or(tool_missing(base)).is_some() {
            continue;
        }
        let mut step = Step::new(base);
        assert_eq!(told(&plain(&step.tree)), told(&step.view()), "{name}: the copy");
        let mut shown = step.run(change).unwrap();
        let mut made = told(&step.view());
        let followed = told(&plain(&step.tree));
        assert_eq!(followed, made, "{name}: the tree doesn't follow its layer");
        // A plain directory keeps names together that an overlay parts.
        for tree in [&mut shown, &mut made] {
            tree.values_mut().for_each(|line| line.truncate(line.find(" =").unwrap_or(line.len())));
            // A time alone is no change.
            tree.remove("/");
        }
        assert_eq!(made, shown, "{name}: the layer is not what the command made");
        let names = step.names();
        for wanted in *expected {
            let (wanted, there) = wanted.strip_prefix('-').filter(|n| *n != "rf").map_or((*wanted, true), |n| (n, false));
            let wanted = wanted.as_bytes().escape_ascii().to_string();
            assert_eq!(names.contains(&wanted), there, "{name}: {wanted} in {names:?}");
        }
        step.run("true").unwrap();
        assert_eq!(step.names(), Vec::<String>::new(), "{name}: a step that does nothing");
        step.run("mkdir -p z; echo 1 > z/1; touch -d @5 z z/1").unwrap();
        assert_eq!(told(&plain(&step.tree)), told(&step.view()), "{name}: a step later");
        assert_eq!(step.names(), ["z/", "z/1"], "{name}: a step later");
    }
}

/// A base, what a command does, and all that its layer holds (hard links as `name=first`).
const LAYERS: &[(&str, &str, &str, &[&str])] = &[
    ("touched and given back", "mkdir d; echo x >d/f; touch -d @5 d/f", "touch d/f; touch -d @5 d/f; chmod 644 d/f", &[]),
    ("a time of a directory", "mkdir d; touch d/f", "touch d", &[]),
    ("a file made and removed", "mkdir d; touch d/f", "touch d/g; rm d/g", &[]),
    ("the same bytes, another time", "echo x >f", "touch -d @9 f", &["f"]),
    ("the same size and time", "echo x >f; touch -d @5 f", "echo y >f; touch -d @5 f", &["f"]),
    ("the same by another file", "echo x >f; touch -d @5 f", "cp -p f g; mv g f", &[]),
    ("renamed there and back", "mkdir d; echo x >d/f", "mv d e; mv e d", &[]),
    ("an attribute that went", "mkdir d; setfattr -n user.k -v v d", "setfattr -x user.k d", &["d/"]),
    ("names of a file all changed", "echo x >a; ln a b", "chmod 600 a b", &["a", "b"]),
    ("a name added to a file", "mkdir d; echo x >d/a", "ln d/a c", &["c", "d/", "d/a=c"]),
    ("a name added in a new directory", "echo x >a", "mkdir d; ln a d/b", &["a", "d/", "d/b=a"]),
    ("a name added to a file of two", "echo x >a; ln a b", "ln b c", &["a", "c=a"]),
    ("a name of two renamed", "echo x >a; ln a b", "mv a c", &[".wh.a", "c"]),
    ("names renamed with their directory", "mkdir d; echo x >d/a; ln d/a d/b", "mv d e", &[".wh.d", "e/", "e/a", "e/b=e/a"]),
    ("a new file of two names", "", "echo x >a; mkdir d; ln a d/b", &["a", "d/", "d/b=a"]),
    ("a new directory over nothing", "mkdir o", "mkdir n; mv n o/n", &["o/", "o/n/"]),
    ("a new directory over a file", "touch f", "rm f; mkdir f", &["f/"]),
    ("a new directory over a directory", "mkdir d; touch d/f", "rm -r d; mkdir d", &["d/", "d/.wh..wh..opq"]),
];

#[test]
fn layers_hold_what_changed_and_no_more() {
    if !can_mount("layers_hold_what_changed_and_no_more") {
        return;
    }
    for (name, base, change, expected) in LAYERS {
        if tool_missing(change).or(tool_missing(base)).is_some() {
            continue;
        }
        // At once, so that times of changes tell nothing, and later, so that they do.
        for wait in ["", "sleep 0.03;"] {
            let mut step = Step::new(base);
            sh(&step.tree, wait.trim_end_matches(';').trim_start());
            step.run(change).unwrap();
            let mut tar = Vec::new();
            let options = crate::layer::PackOptions { style: STYLE, ..Default::default() };
            crate::layer::pack(&open(step.layers.last().unwrap()), &mut tar, &options).unwrap();
            let entries = crate::layer::tests::entries(&tar).into_iter();
            let found: Vec<String> = entries
                .map(|entry| match entry.link.is_empty() {
                    true => entry.path.escape_ascii().to_string(),
                    false => format!("{}={}", entry.path.escape_ascii(), entry.link.escape_ascii()),
                })
                .collect();
            assert_eq!(found, *expected, "{name}");
            assert_eq!(told(&plain(&step.tree)), told(&step.view()), "{name}: the tree follows, links and all");
        }
    }
}

#[test]
fn what_no_layer_holds_is_refused() {
    if !can_mount("what_no_layer_holds_is_refused") {
        return;
    }
    for (change, path) in
        [("mkdir d; touch d/.wh.x", "/d/.wh.x"), ("mknod c c 0 0", "/c"), ("touch .wh..wh..opq", "/.wh..wh..opq")]
    {
        let refused = Step::new("").run(change).unwrap_err();
        assert!(matches!(&refused, CollectError::Unfit { path: found, .. } if found.as_bytes() == path.as_bytes()), "{refused}");
    }
}

#[test]
fn a_copy_has_sparse_files_devices_and_whole_times() {
    if !can_mount("a_copy_has_sparse_files_devices_and_whole_times") {
        return;
    }
    let step = Step::new(
        "truncate -s 40M s; printf x | dd of=s bs=1 seek=30M conv=notrunc 2>/dev/null; mknod c c 1 3; mknod b b 7 9; mkfifo p; \
         echo x >f; touch -d '1999-01-01 00:00:00.123456789 UTC' f; chmod 4711 f; mkdir d; touch -d @7.000000001 d; ln -s t l; touch -hd @3 l",
    );
    let tree = open(&step.tree);
    let sparse = tree.stat(b"s").unwrap().unwrap();
    assert!(sparse.size == 40 << 20 && sparse.blocks < 1000, "{sparse:?}");
    assert_eq!(tree.stat(b"f").unwrap().unwrap().mtime.nanos, 123_456_789);
    assert_eq!(tree.stat(b"d").unwrap().unwrap().mtime, Timestamp { secs: 7, nanos: 1 });
    assert_eq!(step.index.len(), 7);
}
