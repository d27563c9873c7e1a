//! Hides what the sources of a COPY or ADD select: patterns, symbolic links that are named, `--parents`, and what isn't there.

use kiln_frontend::glob::{has_wildcards, path_match};
use kiln_frontend::graph::{CopyOp, CopySource};
use kiln_frontend::ignore::PatternMatcher;
use kiln_oci::path::ImagePath;
use kiln_store::descriptors::directories_at_once;
use kiln_store::memo::Fingerprint;
use kiln_store::rootdir::{Kind, Meta, Xattrs};
use rayon::prelude::*;

use super::source::{Place, SourceTree};
use super::walk::{Leaf, Visit, Walk};
use super::{FileError, chmod};
use crate::ops::{Fetched, git, http};

/// One thing to place.
#[derive(Debug)]
pub(super) enum Item<'a> {
    Tree(Selected<'a>),
    Inline {
        name: &'a str,
        data: &'a [u8],
    },
    Fetched(&'a http::Fetched),
    /// All files of a commit.
    Repository(&'a git::Fetched),
}

/// One match of a path pattern.
#[derive(Debug)]
pub(super) struct Selected<'a> {
    /// The name in a destination directory: the last of the path as matched, not of where a symbolic link leads.
    pub(super) name: Vec<u8>,
    /// With `--parents`: the directories between the pivot and the match, topmost first.
    pub(super) under: Vec<Place<'a>>,
    pub(super) place: Place<'a>,
    /// The path as matched, for messages.
    pub(super) shown: ImagePath,
}

/// A digest of exactly what `op` would place, the same on every machine: for each file its path below the matched source,
/// type, permissions, owner (0:0 from a context), link target, extended attributes and content, and which are hard links of
/// one another. Not its times, and not where the source lies: only its last name counts. What `op` itself says
/// (destination, flags) is not in it.
///
/// # Errors
/// [`FileError::NotFound`], [`FileError::BadPattern`], [`FileError::Exclude`], and what reading the source answers.
pub fn selection_key(op: &CopyOp, source: &SourceTree<'_>, fetched: &[Fetched]) -> Result<[u8; 32], FileError> {
    let exclude = excludes(op)?;
    // Said now and not when the step runs: a bad mode is never worth waiting for.
    if let Some(spec) = &op.chmod {
        chmod::Chmod::parse(spec).ok_or_else(|| FileError::Mode { spec: spec.clone() })?;
    }
    let mut key = Key(blake3::Hasher::new());
    key.bytes(b"kiln selection 1");
    for item in items(op, source, fetched)? {
        match item {
            Item::Inline { name, data } => {
                key.bytes(b"inline");
                key.bytes(name.as_bytes());
                key.bytes(data);
            }
            Item::Fetched(file) => {
                key.bytes(b"fetched");
                key.bytes(&file.name);
                key.bytes(file.digest.to_string().as_bytes());
                // The only time that a key holds: what a server says about a file is part of what it serves.
                key.bytes(format!("{:?}", file.last_modified.map(super::timestamp)).as_bytes());
            }
            Item::Repository(repository) => {
                key.bytes(b"git");
                key.bytes(repository.key().as_bytes());
                // Elsewhere it shows in what is selected.
                for pattern in &op.exclude {
                    key.bytes(pattern.as_bytes());
                }
            }
            Item::Tree(selected) => tree(&mut key, &selected, op.parents, &exclude)?,
        }
    }
    Ok(*key.0.finalize().as_bytes())
}

fn tree(key: &mut Key, selected: &Selected<'_>, parents: bool, exclude: &PatternMatcher) -> Result<(), FileError> {
    key.bytes(b"tree");
    for dir in &selected.under {
        key.bytes(dir.name());
        key.attrs(&dir.meta(), &dir.xattrs()?);
    }
    let mut walk = Walk::new(selected, exclude, parents)?;
    // A directory's contents are placed and not the directory, so that its name and attributes are of no meaning.
    if parents || selected.place.kind() != Kind::Dir {
        key.bytes(&selected.name);
    }
    let mut batch: Vec<Visit<'_>> = Vec::new();
    let (mut files, directories) = (0, directories_at_once(64));
    loop {
        let visit = walk.next().transpose()?;
        let done = visit.is_none();
        files += visit.as_ref().map_or(0, |v| v.leaves.len());
        batch.extend(visit);
        // As much as keeps all cores busy, and few enough directories to hold their descriptors.
        if done || files >= 2048 || batch.len() >= directories {
            let jobs: Vec<_> = batch.iter().flat_map(|visit| visit.leaves.iter().map(move |leaf| (visit, leaf))).collect();
            // When they are asked for, for one directory may hold a million files.
            let mut prints = jobs.chunks(8192).flat_map(fingerprints);
            for visit in &batch {
                key.visit(visit, &mut prints)?;
            }
            batch.clear();
            files = 0;
        }
        if done {
            return Ok(());
        }
    }
}

fn fingerprints(jobs: &[(&Visit<'_>, &Leaf<'_>)]) -> Vec<Result<Option<Fingerprint>, FileError>> {
    let of = |(visit, leaf): &(&Visit<'_>, &Leaf<'_>)| match leaf.place.kind() {
        Kind::File if leaf.link_to.is_none() => visit.reader.fingerprint(&leaf.place).map(Some),
        _ => Ok(None),
    };
    jobs.par_iter().with_min_len(16).map(of).collect()
}

struct Key(blake3::Hasher);

impl Key {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    fn attrs(&mut self, meta: &Meta, xattrs: &Xattrs) {
        let mode = if meta.kind == Kind::Symlink { 0o777 } else { meta.mode };
        for number in [mode, meta.uid, meta.gid] {
            self.0.update(&number.to_le_bytes());
        }
        self.0.update(&(xattrs.len() as u64).to_le_bytes());
        for (key, value) in xattrs {
            self.bytes(key);
            self.bytes(value);
        }
    }

    fn visit(
        &mut self,
        visit: &Visit<'_>,
        prints: &mut impl Iterator<Item = Result<Option<Fingerprint>, FileError>>,
    ) -> Result<(), FileError> {
        if let Some(dir) = &visit.dir {
            self.bytes(b"dir");
            self.bytes(&visit.rel);
            if visit.placed {
                self.attrs(&dir.meta(), &dir.xattrs()?);
            }
        }
        for leaf in &visit.leaves {
            let print = prints.next().transpose()?.flatten();
            let meta = leaf.place.meta();
            if meta.kind == Kind::Socket && matches!(leaf.place, super::source::Place::View(_)) {
                continue;
            }
            if visit.dir.is_some() {
                self.bytes(leaf.place.name());
            }
            if let Some(first) = leaf.link_to {
                self.bytes(b"link");
                self.0.update(&(first as u64).to_le_bytes());
                continue;
            }
            match meta.kind {
                Kind::File => {
                    self.bytes(b"file");
                    // The extended attributes are in the fingerprint.
                    self.attrs(&meta, &Xattrs::new());
                    self.0.update(&print.unwrap_or_default());
                }
                Kind::Symlink => {
                    self.bytes(b"symlink");
                    self.attrs(&meta, &leaf.place.xattrs()?);
                    self.bytes(&leaf.place.read_link()?);
                }
                kind => {
                    self.bytes(format!("{kind:?}").as_bytes());
                    self.attrs(&meta, &leaf.place.xattrs()?);
                    self.0.update(&meta.rdev.0.to_le_bytes());
                    self.0.update(&meta.rdev.1.to_le_bytes());
                }
            }
        }
        Ok(())
    }
}

pub(super) fn excludes(op: &CopyOp) -> Result<PatternMatcher, FileError> {
    Ok(PatternMatcher::from_patterns(op.exclude.iter().map(String::as_str))?)
}

/// All that `op` places, in order.
pub(super) fn items<'a>(op: &'a CopyOp, source: &SourceTree<'a>, fetched: &'a [Fetched]) -> Result<Vec<Item<'a>>, FileError> {
    let mut out = Vec::new();
    for wanted in &op.sources {
        match wanted {
            CopySource::Path(pattern) if op.parents => with_parents(*source, pattern, &mut out)?,
            CopySource::Path(pattern) => matches(*source, pattern, &mut out)?,
            CopySource::Inline { name, data } => out.push(Item::Inline { name, data }),
            CopySource::Http(url) | CopySource::Git(url) => {
                let found = fetched.iter().find(|f| f.url() == *url);
                out.push(match found.ok_or_else(|| FileError::NotFetched { url: git::redact(url) })? {
                    Fetched::File(file) => Item::Fetched(file),
                    Fetched::Repository(repository) => Item::Repository(repository),
                });
            }
        }
    }
    Ok(out)
}

/// Finds what `pattern` means; `..` stops at the root.
fn matches<'a>(source: SourceTree<'a>, pattern: &str, out: &mut Vec<Item<'a>>) -> Result<(), FileError> {
    let path = ImagePath::new(pattern);
    let parts: Vec<&[u8]> = path.components().collect();
    let fixed = parts.iter().position(|part| has_wildcards(part)).unwrap_or(parts.len());
    let (base, wild) = parts.split_at(fixed);
    let base = ImagePath::new(base.join(&b'/'));
    let (base, place) = existing(source, &base)?;
    if wild.is_empty() {
        let name = path.file_name().unwrap_or_default().to_vec();
        out.push(Item::Tree(Selected { name, under: Vec::new(), place, shown: path }));
        return Ok(());
    }
    let mut found = Vec::new();
    let at = Found { path: base, under: Vec::new(), place };
    expand(at, wild, false, &mut found).map_err(|BadPattern| FileError::BadPattern { pattern: pattern.to_owned() })??;
    for Found { path, place, .. } in found {
        let place = if place.kind() == Kind::Symlink { existing(source, &path)?.1 } else { place };
        let name = path.file_name().unwrap_or_default().to_vec();
        out.push(Item::Tree(Selected { name, under: Vec::new(), place, shown: path }));
    }
    Ok(())
}

/// Finds what `pattern` means with `--parents`: what comes after `/./` is kept, `**` stands for any directories, and symbolic
/// links are matched but not followed.
fn with_parents<'a>(source: SourceTree<'a>, pattern: &str, out: &mut Vec<Item<'a>>) -> Result<(), FileError> {
    let (pivot, kept) = pattern.split_once("/./").unwrap_or(("", pattern));
    let mut bases = Vec::new();
    matches(source, pivot, &mut bases)?;
    let kept = ImagePath::new(kept);
    let parts: Vec<&[u8]> = kept.components().collect();
    for base in bases {
        let Item::Tree(base) = base else { continue };
        let at = Found { path: base.shown, under: Vec::new(), place: base.place };
        let shown = at.path.clone();
        let mut found = Vec::new();
        expand(at, &parts, true, &mut found).map_err(|BadPattern| FileError::BadPattern { pattern: pattern.to_owned() })??;
        if found.is_empty() && !parts.iter().any(|part| has_wildcards(part)) {
            return Err(missing(source, shown.join(kept.relative())));
        }
        found.sort_by(|a, b| a.path.cmp(&b.path));
        found.dedup_by(|a, b| a.path == b.path);
        for Found { path, mut under, place } in found {
            // The pivot itself is the destination.
            if !under.is_empty() {
                under.remove(0);
            }
            let name = if parts.is_empty() { Vec::new() } else { path.file_name().unwrap_or_default().to_vec() };
            out.push(Item::Tree(Selected { name, under, place, shown: path }));
        }
    }
    Ok(())
}

struct BadPattern;

#[derive(Debug, Clone)]
struct Found<'a> {
    path: ImagePath,
    /// The directories walked through.
    under: Vec<Place<'a>>,
    place: Place<'a>,
}

/// Matches name by name, which is what matching whole paths comes to as `*` doesn't match a slash.
fn expand<'a>(at: Found<'a>, parts: &[&[u8]], deep: bool, out: &mut Vec<Found<'a>>) -> Result<Result<(), FileError>, BadPattern> {
    let Some((part, rest)) = parts.split_first() else {
        out.push(at);
        return Ok(Ok(()));
    };
    if at.place.kind() != Kind::Dir {
        return Ok(Ok(()));
    }
    let any_depth = deep && *part == b"**";
    let children = match has_wildcards(part) {
        true => at.place.children(),
        false => at.place.child(part).map(|child| child.into_iter().collect()),
    };
    let children = match children {
        Ok(children) => children,
        Err(e) => return Ok(Err(e)),
    };
    if any_depth && !rest.is_empty() {
        // No directory at all is fine too.
        if let Err(e) = expand(at.clone(), rest, deep, out)? {
            return Ok(Err(e));
        }
    }
    for child in children {
        let name = child.name().to_vec();
        if has_wildcards(part) && !any_depth && !path_match(part, &name).map_err(|_| BadPattern)? {
            continue;
        }
        let mut under = at.under.clone();
        under.push(at.place.clone());
        let next = Found { path: at.path.join(&name), under, place: child };
        let rest = match any_depth {
            // At the end `**` takes all there is, each directory whole.
            true if rest.is_empty() => rest,
            true if next.place.kind() != Kind::Dir => continue,
            true => parts,
            false => rest,
        };
        if let Err(e) = expand(next, rest, deep, out)? {
            return Ok(Err(e));
        }
    }
    Ok(Ok(()))
}

fn existing<'a>(source: SourceTree<'a>, path: &ImagePath) -> Result<(ImagePath, Place<'a>), FileError> {
    match source.resolve(path)? {
        (path, Some(place)) => Ok((path, place)),
        (path, None) => Err(missing(source, path)),
    }
}

fn missing(source: SourceTree<'_>, path: ImagePath) -> FileError {
    let hint = match source {
        SourceTree::Context(context) if context.is_ignored(&path) => {
            Some(format!("`{path}` is in the build context, but the ignore file excludes it"))
        }
        _ => similar(source, &path).map(|name| format!("did you mean `{name}`?")),
    };
    FileError::NotFound { path, hint }
}

/// A path like `path` that is there.
fn similar(source: SourceTree<'_>, path: &ImagePath) -> Option<ImagePath> {
    let mut done = ImagePath::root();
    let mut at = source.root().ok()??;
    let mut names = path.components();
    for name in names.by_ref() {
        if let Some(child) = at.child(name).ok()? {
            at = child;
            done = done.join(name);
            continue;
        }
        let wanted = String::from_utf8_lossy(name).to_lowercase();
        let limit = (wanted.chars().count() / 3).min(2);
        let children = at.children().ok()?;
        let near = children
            .iter()
            .take(10_000)
            .map(|child| (distance(&wanted, &String::from_utf8_lossy(child.name()).to_lowercase(), limit), child))
            .filter(|(distance, _)| *distance <= limit)
            .min_by_key(|(distance, _)| *distance)?;
        let rest: Vec<&[u8]> = names.collect();
        return Some(done.join(near.1.name()).join(rest.join(&b'/')));
    }
    None
}

/// How many characters must be changed, added, dropped or swapped with their neighbour; more than `limit` counts as `limit + 1`.
fn distance(a: &str, b: &str, limit: usize) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    if a.len().abs_diff(b.len()) > limit {
        return limit + 1;
    }
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let change = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = change.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}
