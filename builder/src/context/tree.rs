//! Hides the walk: directories listed at the first question, files fingerprinted once, and none of it through a path string.

use std::fs::File;
use std::io::Read;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use kiln_frontend::ignore::State;
use kiln_oci::path::ImagePath;
use kiln_store::layer::xattr;
use kiln_store::memo::{FileId, Fingerprint};
use kiln_store::rootdir::{FsError, Kind, Meta, RootDir, Xattrs};
use rayon::prelude::*;

use super::{Context, ContextError};

/// A directory of the context.
#[derive(Debug)]
pub(crate) struct ContextDir {
    path: ImagePath,
    meta: Meta,
    /// What the ignore patterns said on the way here.
    state: State,
    ignored: bool,
    listing: OnceLock<Result<Listing, Arc<FsError>>>,
    /// Of an ignored directory: whether something below it was taken in again.
    redeemed: OnceLock<bool>,
}

#[derive(Debug)]
struct Listing {
    xattrs: Xattrs,
    /// Sorted by name.
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    name: Box<[u8]>,
    body: Body,
}

#[derive(Debug)]
enum Body {
    /// Its place in `Context::dirs`.
    Dir(usize),
    Leaf(Arc<Leaf>),
}

/// Anything of the context but a directory.
#[derive(Debug)]
pub(crate) struct Leaf {
    meta: Meta,
    /// Of a symbolic link.
    target: Box<[u8]>,
    /// A later look at the file, which had changed since the first.
    later: OnceLock<Box<Meta>>,
    fingerprint: OnceLock<Fingerprint>,
}

/// Something of the context.
#[derive(Debug, Clone)]
pub(crate) enum ContextNode {
    Dir(Arc<ContextDir>),
    Leaf { dir: Arc<ContextDir>, name: Box<[u8]>, leaf: Arc<Leaf> },
}

/// A directory's descriptor, opened when the first of its files is.
#[derive(Debug)]
pub(crate) struct DirReader<'a> {
    context: &'a Context,
    dir: Arc<ContextDir>,
    opened: OnceLock<Result<RootDir, Arc<FsError>>>,
}

impl ContextDir {
    pub(super) fn root(meta: Meta) -> Self {
        Self::new(ImagePath::root(), meta, State::default(), false)
    }

    fn new(path: ImagePath, meta: Meta, state: State, ignored: bool) -> Self {
        Self { path, meta, state, ignored, listing: OnceLock::new(), redeemed: OnceLock::new() }
    }
}

impl Leaf {
    /// What it was when it was last looked at; root's.
    fn meta(&self) -> &Meta {
        self.later.get().map_or(&self.meta, |later| later)
    }
}

impl ContextNode {
    /// What it is; owned by 0:0.
    pub(crate) fn meta(&self) -> Meta {
        let meta = match self {
            ContextNode::Dir(dir) => dir.meta,
            ContextNode::Leaf { leaf, .. } => *leaf.meta(),
        };
        Meta { uid: 0, gid: 0, ..meta }
    }

    pub(crate) fn name(&self) -> &[u8] {
        match self {
            ContextNode::Dir(dir) => dir.path.file_name().unwrap_or_default(),
            ContextNode::Leaf { name, .. } => name,
        }
    }

    /// The target, of a symbolic link.
    pub(crate) fn target(&self) -> Option<&[u8]> {
        match self {
            ContextNode::Leaf { leaf, .. } if leaf.meta.kind == Kind::Symlink => Some(&leaf.target),
            _ => None,
        }
    }
}

impl Context {
    /// The context's own directory.
    pub(crate) fn root_node(&self) -> Option<ContextNode> {
        self.dir(0).map(ContextNode::Dir)
    }

    /// What the directory holds, sorted by name, without what is ignored.
    pub(crate) fn children(&self, dir: &Arc<ContextDir>) -> Result<Vec<ContextNode>, ContextError> {
        let entries = &self.listing(dir)?.entries;
        let mut out = Vec::with_capacity(entries.len());
        for entry in entries {
            out.extend(self.visible(dir, entry)?);
        }
        Ok(out)
    }

    /// The entry `name` of the directory, unless it's ignored.
    pub(crate) fn child(&self, dir: &Arc<ContextDir>, name: &[u8]) -> Result<Option<ContextNode>, ContextError> {
        let entries = &self.listing(dir)?.entries;
        match entries.binary_search_by(|e| (*e.name).cmp(name)) {
            Ok(at) => self.visible(dir, &entries[at]),
            Err(_) => Ok(None),
        }
    }

    /// The extended attributes of a directory that an image may carry.
    pub(crate) fn dir_xattrs(&self, dir: &Arc<ContextDir>) -> Result<Xattrs, ContextError> {
        Ok(self.listing(dir)?.xattrs.clone())
    }

    /// Lists all below `dir` in parallel, so that the questions that follow are answered from memory.
    pub(crate) fn expand(&self, dir: &Arc<ContextDir>) {
        let mut level = vec![Arc::clone(dir)];
        while !level.is_empty() {
            let below: Vec<Vec<Arc<ContextDir>>> = level
                .par_iter()
                // An error is kept for the one who asks for this directory.
                .map(|dir| self.listing(dir).map_or_else(|_| Vec::new(), |listing| self.subdirs(listing)))
                .collect();
            level = below.into_iter().flatten().collect();
        }
    }

    fn subdirs(&self, listing: &Listing) -> Vec<Arc<ContextDir>> {
        let indexes = listing.entries.iter().filter_map(|e| match e.body {
            Body::Dir(index) => Some(index),
            Body::Leaf(_) => None,
        });
        indexes.filter_map(|index| self.dir(index)).collect()
    }

    fn visible(&self, dir: &Arc<ContextDir>, entry: &Entry) -> Result<Option<ContextNode>, ContextError> {
        match &entry.body {
            Body::Leaf(leaf) => {
                Ok(Some(ContextNode::Leaf { dir: Arc::clone(dir), name: entry.name.clone(), leaf: Arc::clone(leaf) }))
            }
            Body::Dir(index) => {
                let Some(sub) = self.dir(*index) else { return Ok(None) };
                Ok(self.is_visible(&sub)?.then_some(ContextNode::Dir(sub)))
            }
        }
    }

    /// Whether the directory is not ignored, or something in it is not.
    fn is_visible(&self, dir: &Arc<ContextDir>) -> Result<bool, ContextError> {
        if !dir.ignored {
            return Ok(true);
        }
        if let Some(known) = dir.redeemed.get() {
            return Ok(*known);
        }
        let mut waiting = vec![Arc::clone(dir)];
        let mut redeemed = false;
        while let Some(at) = waiting.pop() {
            if let Some(known) = at.redeemed.get() {
                redeemed = *known;
            } else {
                let listing = match self.listing(&at) {
                    Ok(listing) => listing,
                    // What is ignored need not be readable.
                    Err(_) if at.ignored => continue,
                    Err(e) => return Err(e),
                };
                let subdirs = self.subdirs(listing);
                redeemed = subdirs.len() < listing.entries.len() || subdirs.iter().any(|d| !d.ignored);
                waiting.extend(subdirs);
            }
            if redeemed {
                break;
            }
        }
        Ok(*dir.redeemed.get_or_init(|| redeemed))
    }

    fn listing<'a>(&self, dir: &'a ContextDir) -> Result<&'a Listing, ContextError> {
        let listed = dir.listing.get_or_init(|| self.list(dir).map_err(Arc::new));
        listed.as_ref().map_err(|e| ContextError::Read(Arc::clone(e)))
    }

    fn list(&self, dir: &ContextDir) -> Result<Listing, FsError> {
        let fd = self.root.walk(&dir.path)?;
        let xattrs = portable(fd.xattrs_of_self()?);
        let mut entries = Vec::new();
        let mut subdirs = Vec::new();
        let mut path = dir.path.relative().to_vec();
        if !path.is_empty() {
            path.push(b'/');
        }
        let prefix = path.len();
        for name in fd.names()? {
            // Gone since the directory was read: as if it had never been there.
            let Some(meta) = fd.stat(&name)? else { continue };
            let is_dir = meta.kind == Kind::Dir;
            let (mut ignored, mut state) = (false, State::default());
            if !self.ignore.is_empty() {
                path.truncate(prefix);
                path.extend_from_slice(&name);
                (ignored, state) = self.ignore.step(&dir.state, &path);
                if ignored && (!is_dir || self.ignore.can_skip(&path, &state)) {
                    continue;
                }
            }
            let body = if is_dir {
                subdirs.push(ContextDir::new(dir.path.join(&name), meta, state, ignored));
                // Made absolute below, when the directories have their places.
                Body::Dir(subdirs.len() - 1)
            } else {
                let target = match meta.kind {
                    Kind::Symlink => fd.read_link(&name)?.into(),
                    _ => Box::default(),
                };
                Body::Leaf(Arc::new(Leaf { meta, target, later: OnceLock::new(), fingerprint: OnceLock::new() }))
            };
            entries.push(Entry { name: name.into(), body });
        }
        let first = self.add_dirs(subdirs);
        for entry in &mut entries {
            if let Body::Dir(index) = &mut entry.body {
                *index += first;
            }
        }
        Ok(Listing { xattrs, entries })
    }
}

impl<'a> DirReader<'a> {
    pub(crate) fn new(context: &'a Context, dir: Arc<ContextDir>) -> Self {
        Self { context, dir, opened: OnceLock::new() }
    }

    fn fd(&self) -> Result<&RootDir, ContextError> {
        let opened = self.opened.get_or_init(|| self.context.root.walk(&self.dir.path).map_err(Arc::new));
        opened.as_ref().map_err(|e| ContextError::Read(Arc::clone(e)))
    }

    /// What the regular file says, attributes included: from the memo if it hasn't changed, else by reading it.
    pub(crate) fn fingerprint(&self, name: &[u8], leaf: &Leaf) -> Result<Fingerprint, ContextError> {
        if let Some(known) = leaf.fingerprint.get() {
            return Ok(*known);
        }
        if let Some(known) = self.context.memo.get(&FileId::of(leaf.meta())) {
            return Ok(*leaf.fingerprint.get_or_init(|| known));
        }
        let (fingerprint, meta, read_at) = self.read(name, leaf, |file, meta| {
            let dir = self.fd()?;
            let xattrs = portable(dir.xattrs_of_file(file, name).map_err(read_error)?);
            fingerprint(file, meta.size, &xattrs).map_err(|e| read_error(dir.error("read", name, e)))
        })?;
        self.context.memo.put(&meta, fingerprint, read_at);
        Ok(*leaf.fingerprint.get_or_init(|| fingerprint))
    }

    /// The extended attributes of the open file that an image may carry.
    pub(crate) fn xattrs(&self, name: &[u8], file: &File) -> Result<Xattrs, ContextError> {
        Ok(portable(self.fd()?.xattrs_of_file(file, name).map_err(read_error)?))
    }

    /// Lets `work` read the regular file, and makes sure that it was the same from before to after, and the same that was
    /// fingerprinted if it was. A file that changes meanwhile is given to `work` once more, then it's an error.
    ///
    /// Gives what `work` gave, what the file was, and a moment before it was looked at.
    pub(crate) fn read<T, E: From<ContextError>>(
        &self,
        name: &[u8],
        leaf: &Leaf,
        mut work: impl FnMut(&File, &Meta) -> Result<T, E>,
    ) -> Result<(T, Meta, SystemTime), E> {
        let dir = self.fd()?;
        for _ in 0..2 {
            // The wall clock and not the build's: it's compared to the file system's.
            let read_at = SystemTime::now();
            let file = dir.open_file(name).map_err(read_error)?;
            let before = stat(dir, name, &file)?;
            if FileId::of(&before) != FileId::of(leaf.meta()) {
                // It's another file than the directory's listing said. That's fine once, unless its fingerprint is in a key.
                let late = leaf.fingerprint.get().is_some() || leaf.later.set(Box::new(before)).is_err();
                if late || before.kind != Kind::File {
                    break;
                }
            }
            let value = work(&file, leaf.meta())?;
            if FileId::of(&stat(dir, name, &file)?) == FileId::of(&before) {
                return Ok((value, before, read_at));
            }
        }
        Err(ContextError::Changing { path: dir.error("read", name, std::io::ErrorKind::Other).path }.into())
    }
}

fn stat(dir: &RootDir, name: &[u8], file: &File) -> Result<Meta, ContextError> {
    let stat = rustix::fs::fstat(file).map_err(|e| read_error(dir.error("stat", name, e)))?;
    Ok(Meta::from(&stat))
}

fn read_error(error: FsError) -> ContextError {
    ContextError::Read(Arc::new(error))
}

/// File capabilities and `user.*`. ACLs and labels on a developer's files belong to the developer's machine.
fn portable(xattrs: Xattrs) -> Xattrs {
    let mut kept = xattr::portable(xattrs);
    kept.retain(|key, _| !key.starts_with(b"system."));
    kept
}

/// BLAKE3 of the content; and of that and the extended attributes, if there are any.
pub(crate) fn fingerprint(mut file: &File, size: u64, xattrs: &Xattrs) -> std::io::Result<Fingerprint> {
    const SMALL: usize = 64 << 10;
    let mut hasher = blake3::Hasher::new();
    // A file that grows meanwhile is read to its end all the same; it's the caller who notices.
    let mut buffer = vec![0; usize::try_from(size).unwrap_or(usize::MAX).clamp(1, 4 * SMALL - 1) + 1];
    let mut total = 0;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                hasher.update(&buffer[..n]);
                total += n as u64;
                // There was room for more than it has.
                if total == size && n < buffer.len() {
                    break;
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    let content = *hasher.finalize().as_bytes();
    if xattrs.is_empty() {
        return Ok(content);
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(&content);
    for (key, value) in xattrs {
        for part in [key, value] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
    }
    Ok(*hasher.finalize().as_bytes())
}
