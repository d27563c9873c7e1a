//! Says whether two builds of one image in different modes gave the same image: byte for byte, or in what owners and
//! rights the files have.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::archive::Image;
use super::compare::{self, Node, Rules};
use super::tar;

/// How many differences are named.
const NAMED: usize = 10;

/// Why the second image is not the same as the first, as far as can be told; an image is never shown in full.
pub(crate) fn difference(a: &Image, b: &Image) -> String {
    let mut text = String::new();
    let found = compare::differences(a, b, &Rules { built_after: i64::MAX, ..Rules::default() });
    name(&mut text, "differences", &found);
    for key in a.config.as_object().into_iter().flatten().map(|(key, _)| key).filter(|key| *key != "rootfs") {
        if a.config[key] != b.config[key] {
            let _ = writeln!(text, "{key}: {} != {}", a.config[key], b.config[key]);
        }
    }
    for (number, (x, y)) in a.layers.iter().zip(&b.layers).enumerate() {
        if x != y {
            name(&mut text, &format!("differences of the entries of layer {number}"), &entries(x, y));
        }
    }
    text
}

/// Compares each path's owner, mode, type, device and capabilities, and answers what differs: an error when that is more than
/// 0.1 % of the paths.
pub(crate) fn ownership(a: &Image, b: &Image) -> Result<Vec<String>, String> {
    let (a, b) = (compare::merge(&a.layers)?, compare::merge(&b.layers)?);
    let paths: BTreeSet<&Vec<u8>> = a.keys().chain(b.keys()).collect();
    let told = |node: Option<&Node>| node.map_or_else(|| "nothing".to_owned(), listed);
    let mut found = Vec::new();
    for path in &paths {
        let (x, y) = (told(a.get(*path)), told(b.get(*path)));
        if x != y {
            found.push(format!("/{}: {x} != {y}", path.escape_ascii()));
        }
    }
    if found.len() * 1000 <= paths.len() {
        return Ok(found);
    }
    let mut text = format!(
        "{} of {} paths differ in owner, mode, type, device or capabilities, more than 0.1 %\n",
        found.len(),
        paths.len()
    );
    name(&mut text, "differences", &found);
    Err(text)
}

/// `uid:gid:mode:type:rdev:capabilities`.
fn listed(node: &Node) -> String {
    let capabilities = node.xattrs.get(&b"security.capability"[..]).map(|value| value.escape_ascii().to_string());
    let ((uid, gid), (major, minor)) = (node.owner, node.device);
    format!("{uid}:{gid}:{:o}:{}:{major},{minor}:{}", node.mode, node.kind, capabilities.unwrap_or_default())
}

/// What differs between two archives, entry by entry; their order and their form when no entry does.
fn entries(a: &[u8], b: &[u8]) -> Vec<String> {
    let (Ok(a), Ok(b)) = (tar::entries(a), tar::entries(b)) else { return vec!["one is no archive".to_owned()] };
    let told = |entries: &[tar::Entry<'_>]| -> BTreeMap<String, String> {
        let tell = |e: &tar::Entry<'_>| {
            let xattrs: Vec<String> =
                e.xattrs.iter().map(|(k, v)| format!("{}={}", k.escape_ascii(), v.escape_ascii())).collect();
            let (kind, link) = (e.kind as char, e.link.escape_ascii());
            let (mode, uid, gid, device, mtime, size) = (e.mode, e.uid, e.gid, e.device, e.mtime, e.data.len());
            format!("{kind} {mode:o} {uid}:{gid} {device:?} time {mtime} size {size} -> {link} {xattrs:?}")
        };
        entries.iter().map(|e| (e.path.escape_ascii().to_string(), tell(e))).collect()
    };
    let (x, y) = (told(&a), told(&b));
    let nothing = "nothing".to_owned();
    let names: BTreeSet<&String> = x.keys().chain(y.keys()).collect();
    let mut found = Vec::new();
    for name in names {
        let (x, y) = (x.get(name).unwrap_or(&nothing), y.get(name).unwrap_or(&nothing));
        if x != y {
            found.push(format!("{name}: {x} != {y}"));
        }
    }
    if found.is_empty() {
        let order = |entries: &[tar::Entry<'_>]| entries.iter().map(|e| e.path.clone()).collect::<Vec<_>>();
        found.push(if order(&a) == order(&b) {
            "content or form of the headers".into()
        } else {
            "the order of the entries".into()
        });
    }
    found
}

fn name(text: &mut String, what: &str, found: &[String]) {
    if !found.is_empty() {
        let _ = writeln!(text, "{} {what}, of which the first:", found.len());
        for line in found.iter().take(NAMED) {
            let _ = writeln!(text, "  {line}");
        }
    }
}
