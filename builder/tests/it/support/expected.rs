//! What an image is, written down line by line: the configuration, the history, and what every layer changes. A case of
//! `testdata/conformance` keeps these lines of a peer's image in `expected.txt`, and kiln's must be the same.
//!
//! ```text
//! # recorded from BuildKit of Debian's docker.io 28.5.2
//! config Cmd ["sh"]
//! history empty CMD ["sh"]
//! layer of the busybox base
//! layer
//!   dir  0755 0:0 /d
//!   file 0644 33:33 /d/f 6 "hello\n" mtime 1500000000
//!   link 0777 0:0 /d/l -> f
//!   hard /d/l2 = /d/f
//!   gone /etc/passwd
//! ```
//!
//! A layer's lines are the paths that are something else after it than before, so it doesn't matter whether a folder was
//! emptied by one opaque mark or by a whiteout for each name. Times are written only for files older than any build of kiln
//! ([`OLDEST_BUILD`]), since only a copy can have made those. Digests of layers, and the moment of creation, are never written.

use std::collections::BTreeMap;

use kiln_oci::digest::Digest;
use serde_json::Value;

use super::archive::Image;
use super::compare::{Merged, Node};
use super::lab;

/// In seconds (2025-06-15). The time when the build at hand began would not do: BuildKit takes the file that it made of a
/// here-document from its cache even with `--no-cache`.
const OLDEST_BUILD: i64 = 1_750_000_000;

/// The lines of `image`. `replace` pairs a text that differs from run to run, such as a port, with
/// what is written for it. Paths in `ignore` are left out with all below them.
pub(crate) fn lines(image: &Image, replace: &[(String, String)], ignore: &[String]) -> Result<Vec<String>, String> {
    let mut lines = configuration(&image.config);
    lines.extend(history(&image.config));
    let ids: Vec<&str> = image.config["rootfs"]["diff_ids"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if ids.len() != image.layers.len() {
        return Err(format!("{} diff_ids for {} layers", ids.len(), image.layers.len()));
    }
    let (mut merged, mut before) = (Merged::default(), BTreeMap::new());
    for (number, (id, layer)) in ids.iter().zip(&image.layers).enumerate() {
        if Digest::of(layer).to_string() != *id {
            return Err(format!("the diff_id {id} is not that of its layer"));
        }
        merged.apply(layer).map_err(|e| format!("layer {number}: {e}"))?;
        let after = merged.nodes();
        match lab::bases().get(*id) {
            Some(base) => lines.push(format!("layer of the {base} base")),
            None => {
                lines.push("layer".to_owned());
                changes(&before, &after, ignore, &mut lines);
            }
        }
        before = after;
    }
    for line in &mut lines {
        for (found, written) in replace {
            *line = line.replace(found, written);
        }
    }
    Ok(lines)
}

/// What `expected` has and `found` hasn't, and the other way round, in order: at most `limit` lines.
pub(crate) fn differences(expected: &[String], found: &[String], limit: usize) -> Vec<String> {
    let mut shown = Vec::new();
    let (mut a, mut b) = (expected, found);
    while shown.len() < limit {
        match (a.first(), b.first()) {
            (None, None) => break,
            (Some(x), Some(y)) if x == y => (a, b) = (&a[1..], &b[1..]),
            (x, y) => {
                // The nearer of the two places where the lists meet again; without one, both lines differ.
                let missing = y.and_then(|y| a.iter().position(|l| l == y));
                let extra = x.and_then(|x| b.iter().position(|l| l == x));
                let (skip_a, skip_b) = match (missing, extra) {
                    (Some(m), Some(e)) if m <= e => (m, 0),
                    (Some(m), None) => (m, 0),
                    (_, Some(e)) => (0, e),
                    (None, None) => (1.min(a.len()), 1.min(b.len())),
                };
                shown.extend(a[..skip_a].iter().map(|l| format!("- {l}")));
                shown.extend(b[..skip_b].iter().map(|l| format!("+ {l}")));
                (a, b) = (&a[skip_a..], &b[skip_b..]);
            }
        }
    }
    shown
}

/// Every key of the image's configuration that says something.
fn configuration(config: &Value) -> Vec<String> {
    let says = |v: &Value| match v {
        Value::Null => false,
        Value::Array(v) => !v.is_empty(),
        Value::Object(v) => !v.is_empty(),
        Value::String(v) => !v.is_empty(),
        Value::Bool(v) => *v,
        Value::Number(v) => v.as_i64() != Some(0),
    };
    let mut lines = Vec::new();
    for key in ["architecture", "author", "os", "os.version", "variant"] {
        if says(&config[key]) {
            lines.push(format!("{key} {}", config[key]));
        }
    }
    let sorted: BTreeMap<&String, &Value> = config["config"].as_object().into_iter().flatten().collect();
    for (key, value) in sorted {
        match (key.as_str(), value) {
            // "/" is what runtimes take when nothing is said.
            ("WorkingDir", Value::String(v)) if v == "/" => {}
            ("Env" | "OnBuild", Value::Array(list)) => lines.extend(list.iter().map(|v| format!("config {key} {v}"))),
            ("Labels" | "ExposedPorts" | "Volumes", Value::Object(map)) => {
                let sorted: BTreeMap<&String, &Value> = map.iter().collect();
                lines.extend(sorted.into_iter().map(|(k, v)| format!("config {key} {} {v}", Value::from(k.as_str()))));
            }
            _ if says(value) => lines.push(format!("config {key} {}", compact(value))),
            _ => {}
        }
    }
    lines
}

/// The value without members that say nothing, such as a health check's interval of 0.
fn compact(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.iter().filter(|(_, v)| !v.is_null() && v.as_i64() != Some(0));
            Value::Object(kept.map(|(k, v)| (k.clone(), v.clone())).collect())
        }
        other => other.clone(),
    }
}

fn history(config: &Value) -> Vec<String> {
    let entries = config["history"].as_array().map(Vec::as_slice).unwrap_or_default();
    let line = |e: &Value| {
        let kind = if e["empty_layer"].as_bool() == Some(true) { "empty" } else { "layer" };
        let text = e["created_by"].as_str().unwrap_or_default().replace('\\', r"\\").replace('\n', r"\n").replace('\t', r"\t");
        format!("history {kind} {text}")
    };
    entries.iter().map(line).collect()
}

/// The paths that differ between two trees, sorted.
fn changes(before: &BTreeMap<Vec<u8>, Node>, after: &BTreeMap<Vec<u8>, Node>, ignore: &[String], lines: &mut Vec<String>) {
    let show = |path: &[u8]| format!("/{}", path.escape_ascii());
    let mut found = BTreeMap::new();
    for (path, node) in after {
        let line = line(&show(path), path, node);
        if before.get(path).is_none_or(|old| self::line(&show(path), path, old) != line) {
            found.insert(path, line);
        }
    }
    for path in before.keys().filter(|p| !after.contains_key(*p)) {
        // What lay below something that is gone, or no folder any more, goes without saying.
        let parent = path.iter().rposition(|b| *b == b'/').map(|at| &path[..at]);
        if parent.is_none_or(|p| after.get(p).is_some_and(|n| n.kind == "directory")) {
            found.insert(path, format!("  gone {}", show(path)));
        }
    }
    let ignored = |path: &[u8]| {
        let shown = show(path);
        ignore.iter().any(|i| shown == *i || shown.starts_with(&format!("{}/", i.trim_end_matches('/'))))
    };
    lines.extend(found.into_iter().filter(|(path, _)| !path.is_empty() && !ignored(path)).map(|(_, line)| line));
}

fn line(shown: &str, path: &[u8], node: &Node) -> String {
    if node.first_name != path {
        return format!("  hard {shown} = /{}", node.first_name.escape_ascii());
    }
    let (uid, gid) = node.owner;
    let facts = format!("{:04o} {uid}:{gid} {shown}", node.mode);
    let mut line = match node.kind {
        "file" => {
            let content = match (&node.text, &node.content) {
                (Some(text), _) => format!("\"{}\"", text.escape_default()),
                (None, Some(digest)) => digest.hex()[..16].to_owned(),
                (None, None) => String::new(),
            };
            let time = if node.mtime < OLDEST_BUILD { format!(" mtime {}", node.mtime) } else { String::new() };
            format!("  file {facts} {} {content}{time}", node.size)
        }
        "symlink" => format!("  link {facts} -> {}", node.link.escape_ascii()),
        "character device" => format!("  char {facts} {}:{}", node.device.0, node.device.1),
        "block device" => format!("  block {facts} {}:{}", node.device.0, node.device.1),
        "directory" => format!("  dir  {facts}"),
        other => format!("  {other} {facts}"),
    };
    for (name, value) in &node.xattrs {
        line.push_str(&format!(" {}={}", name.escape_ascii(), value.escape_ascii()));
    }
    line
}
