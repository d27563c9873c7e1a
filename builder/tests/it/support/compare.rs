//! Compares two images: configuration, history, layers, and the merged root filesystem path by path.

use std::collections::{BTreeMap, BTreeSet};

use kiln_oci::digest::Digest;
use serde_json::Value;

use super::archive::Image;
use super::tar;

/// A text of at most this many bytes is kept as it is.
const SHORT: usize = 80;

/// What the comparison is told besides the two images.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    /// Times of files before this moment must be the same: a copy keeps them, and only a copy can have made them.
    /// Later ones are those of the two builds themselves. Seconds since 1970.
    pub(crate) built_after: i64,
    /// Paths left out, with all below them.
    pub(crate) ignore: Vec<String>,
    /// Of extended attributes only `security.capability` counts: `docker save` writes no other.
    pub(crate) only_capabilities: bool,
}

/// One line a difference; none when the images are the same.
pub(crate) fn differences(a: &Image, b: &Image, rules: &Rules) -> Vec<String> {
    let mut found = Vec::new();
    configuration(&a.config, &b.config, &mut found);
    history(&a.config, &b.config, &mut found);
    for (name, image) in [("first", a), ("second", b)] {
        consistency(name, image, &mut found);
    }
    if a.layers.len() != b.layers.len() {
        found.push(format!("layers: {} != {}", a.layers.len(), b.layers.len()));
    }
    match (merge(&a.layers), merge(&b.layers)) {
        (Ok(a), Ok(b)) => files(&a, &b, rules, &mut found),
        (a, b) => found.extend([a.err(), b.err()].into_iter().flatten()),
    }
    found
}

/// Every key that the configuration of a container can have, and those beside it that describe the image.
fn configuration(a: &Value, b: &Value, found: &mut Vec<String>) {
    let empty = |v: &Value| match v {
        Value::Null => true,
        Value::Array(v) => v.is_empty(),
        Value::Object(v) => v.is_empty(),
        Value::String(v) => v.is_empty(),
        Value::Bool(v) => !v,
        Value::Number(v) => v.as_i64() == Some(0),
    };
    let mut compare = |name: &str, x: &Value, y: &Value| {
        if x != y && !(empty(x) && empty(y)) {
            found.push(format!("{name}: {x} != {y}"));
        }
    };
    for key in ["architecture", "os", "variant", "author", "os.version"] {
        compare(key, &a[key], &b[key]);
    }
    let keys: BTreeSet<&String> = [a, b].iter().filter_map(|c| c["config"].as_object()).flat_map(|o| o.keys()).collect();
    for key in keys {
        let (mut x, mut y) = (a["config"][key].clone(), b["config"][key].clone());
        if key == "WorkingDir" {
            for v in [&mut x, &mut y] {
                if *v == "/" {
                    *v = Value::Null;
                }
            }
        }
        compare(&format!("config.{key}"), &x, &y);
    }
}

fn history(a: &Value, b: &Value, found: &mut Vec<String>) {
    let entries = |c: &Value| c["history"].as_array().cloned().unwrap_or_default();
    let shape = |c: &Value| -> Vec<(bool, String, String)> {
        entries(c)
            .iter()
            .map(|e| {
                let text = |key: &str| e[key].as_str().unwrap_or_default().to_owned();
                (e["empty_layer"].as_bool().unwrap_or(false), same_text(&text("created_by")), text("comment"))
            })
            .collect()
    };
    let (x, y) = (shape(a), shape(b));
    if x.len() != y.len() {
        found.push(format!("history: {} entries != {}", x.len(), y.len()));
    }
    for (i, (x, y)) in x.iter().zip(&y).enumerate() {
        if x != y {
            found.push(format!("history[{i}]: {x:?} != {y:?}"));
        }
    }
}

/// The `created_by` text without what differs between versions of BuildKit: newer ones name the flags of COPY, write
/// EXPOSE as a list, know one more duration in HEALTHCHECK, and give an ARG the value that the command line gave it.
fn same_text(text: &str) -> String {
    let Some((keyword, rest)) = text.split_once(' ') else { return text.to_owned() };
    match keyword {
        "COPY" | "ADD" => {
            let words = rest.split(' ').skip_while(|w| w.starts_with("--"));
            format!("{keyword} {}", words.collect::<Vec<_>>().join(" "))
        }
        "EXPOSE" => {
            let inner = rest.trim_start_matches("map").trim_matches(['[', ']']).replace(":{}", "");
            let ports: BTreeSet<&str> = inner.split(' ').collect();
            format!("EXPOSE {}", ports.into_iter().collect::<Vec<_>>().join(" "))
        }
        "HEALTHCHECK" => keyword.to_owned(),
        // A value may hold blanks, so only the first name is sure.
        "ARG" => format!("ARG {}", rest.split('=').next().unwrap_or_default()),
        _ => text.to_owned(),
    }
}

/// What must hold in any image, whatever it is compared with.
fn consistency(name: &str, image: &Image, found: &mut Vec<String>) {
    let ids: Vec<String> = image.layers.iter().map(|l| Digest::of(l).to_string()).collect();
    let said: Vec<&str> = image.config["rootfs"]["diff_ids"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if ids != said {
        found.push(format!("the {name} image's diff_ids are not those of its layers"));
    }
    let entries = image.config["history"].as_array().cloned().unwrap_or_default();
    let full = entries.iter().filter(|e| e["empty_layer"] != Value::Bool(true)).count();
    if full != image.layers.len() {
        found.push(format!("the {name} image's history names {full} layers, it has {}", image.layers.len()));
    }
}

/// What a path of the merged tree is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) kind: &'static str,
    pub(crate) mode: u32,
    pub(crate) owner: (u64, u64),
    pub(crate) mtime: i64,
    pub(crate) size: usize,
    pub(crate) content: Option<Digest>,
    /// The content itself when it is a short text.
    pub(crate) text: Option<String>,
    pub(crate) link: Vec<u8>,
    pub(crate) device: (u64, u64),
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The same number for the names of one file.
    inode: usize,
    /// The first of the file's names, once `Merged::nodes` gave it.
    pub(crate) first_name: Vec<u8>,
}

/// What lies at each path.
pub(crate) type Tree = BTreeMap<Vec<u8>, Node>;

/// The tree that layers make together, by the rules of the OCI image specification.
#[derive(Debug, Default)]
pub(crate) struct Merged {
    tree: Tree,
    inodes: usize,
}

impl Merged {
    /// Puts one more layer on top.
    pub(crate) fn apply(&mut self, layer: &[u8]) -> Result<(), String> {
        let tree = &mut self.tree;
        let entries = tar::entries(layer)?;
        // Whiteouts hide what lower layers hold, wherever in the archive they stand.
        for entry in &entries {
            let (folder, name) = split(&entry.path);
            if name == b".wh..wh..opq" {
                remove_below(tree, folder);
            } else if let Some(hidden) = name.strip_prefix(b".wh.") {
                let path = if folder.is_empty() { hidden.to_vec() } else { [folder, b"/", hidden].concat() };
                tree.remove(&path);
                remove_below(tree, &path);
            }
        }
        for entry in entries {
            if split(&entry.path).1.starts_with(b".wh.") {
                continue;
            }
            let kind = match entry.kind {
                b'0' => "file",
                b'1' => "hard link",
                b'2' => "symlink",
                b'3' => "character device",
                b'4' => "block device",
                b'5' => "directory",
                b'6' => "fifo",
                other => return Err(format!("an entry of type {}", other as char)),
            };
            self.inodes += 1;
            let node = if kind == "hard link" {
                tree.get(&entry.link)
                    .cloned()
                    .ok_or_else(|| format!("a hard link to {}, which isn't there", String::from_utf8_lossy(&entry.link)))?
            } else {
                let text = std::str::from_utf8(entry.data).ok().filter(|t| kind == "file" && t.len() <= SHORT);
                Node {
                    kind,
                    mode: entry.mode,
                    owner: (entry.uid, entry.gid),
                    mtime: entry.mtime,
                    size: entry.data.len(),
                    content: (kind == "file").then(|| Digest::of(entry.data)),
                    text: text.map(str::to_owned),
                    link: if kind == "symlink" { entry.link } else { Vec::new() },
                    device: if kind.ends_with("device") { entry.device } else { (0, 0) },
                    xattrs: entry.xattrs,
                    inode: self.inodes,
                    first_name: Vec::new(),
                }
            };
            if node.kind != "directory" {
                remove_below(tree, &entry.path);
            }
            tree.insert(entry.path, node);
        }
        Ok(())
    }

    /// Every path with what it is.
    pub(crate) fn nodes(&self) -> Tree {
        let mut tree = self.tree.clone();
        let mut names: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
        for (path, node) in &mut tree {
            node.first_name = names.entry(node.inode).or_insert_with(|| path.clone()).clone();
        }
        tree
    }
}

/// The tree that the layers make together.
pub(crate) fn merge(layers: &[Vec<u8>]) -> Result<Tree, String> {
    let mut merged = Merged::default();
    for (number, layer) in layers.iter().enumerate() {
        merged.apply(layer).map_err(|e| format!("layer {number}: {e}"))?;
    }
    Ok(merged.nodes())
}

/// The same for two merged trees.
pub(crate) fn tree_differences(a: &Tree, b: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    files(a, b, &Rules::default(), &mut found);
    found
}

fn files(a: &Tree, b: &Tree, rules: &Rules, found: &mut Vec<String>) {
    let paths: BTreeSet<&Vec<u8>> = a.keys().chain(b.keys()).collect();
    for path in paths {
        let shown = format!("/{}", path.escape_ascii());
        let ignored = |i: &String| shown == *i || shown.starts_with(&format!("{}/", i.trim_end_matches('/')));
        // An archive may or may not have an entry for the root itself.
        if path.is_empty() || rules.ignore.iter().any(ignored) {
            continue;
        }
        let (x, y) = match (a.get(path), b.get(path)) {
            (Some(x), Some(y)) => (x, y),
            (Some(x), None) => {
                found.push(format!("{shown}: only in the first ({})", x.kind));
                continue;
            }
            (None, Some(y)) => {
                found.push(format!("{shown}: only in the second ({})", y.kind));
                continue;
            }
            (None, None) => continue,
        };
        let mut compare = |what: &str, same: bool, x: String, y: String| {
            if !same {
                found.push(format!("{shown}: {what}: {x} != {y}"));
            }
        };
        compare("type", x.kind == y.kind, x.kind.into(), y.kind.into());
        compare("mode", x.mode == y.mode, format!("{:o}", x.mode), format!("{:o}", y.mode));
        compare("owner", x.owner == y.owner, format!("{:?}", x.owner), format!("{:?}", y.owner));
        compare("size", x.size == y.size, x.size.to_string(), y.size.to_string());
        compare("content", x.content == y.content, format!("{:?}", x.content), format!("{:?}", y.content));
        compare("link", x.link == y.link, x.link.escape_ascii().to_string(), y.link.escape_ascii().to_string());
        compare("device", x.device == y.device, format!("{:?}", x.device), format!("{:?}", y.device));
        let xattrs = |n: &Node| -> BTreeMap<_, _> {
            let counts = |name: &[u8]| !rules.only_capabilities || name == b"security.capability";
            n.xattrs.clone().into_iter().filter(|(name, _)| counts(name)).collect()
        };
        let (kept_x, kept_y) = (xattrs(x), xattrs(y));
        compare("xattrs", kept_x == kept_y, shown_xattrs(&kept_x), shown_xattrs(&kept_y));
        let name = |n: &Node| n.first_name.escape_ascii().to_string();
        compare("hard link of", x.first_name == y.first_name, name(x), name(y));
        let kept = x.kind == "file" && y.kind == "file" && x.mtime.min(y.mtime) < rules.built_after;
        compare("mtime", !kept || x.mtime == y.mtime, x.mtime.to_string(), y.mtime.to_string());
    }
}

fn shown_xattrs(xattrs: &BTreeMap<Vec<u8>, Vec<u8>>) -> String {
    let one = |(k, v): (&Vec<u8>, &Vec<u8>)| format!("{}={}", k.escape_ascii(), v.escape_ascii());
    format!("[{}]", xattrs.iter().map(one).collect::<Vec<_>>().join(", "))
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

fn remove_below(tree: &mut Tree, folder: &[u8]) {
    if folder.is_empty() {
        tree.clear();
        return;
    }
    let prefix = [folder, b"/"].concat();
    let below: Vec<Vec<u8>> =
        tree.range(prefix.clone()..).map(|(k, _)| k).take_while(|k| k.starts_with(&prefix)).cloned().collect();
    for path in below {
        tree.remove(&path);
    }
}
