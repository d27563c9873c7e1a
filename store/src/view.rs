//! Hides that a root file system is a stack of directories: reads the merged tree that an overlay of them would show.
//!
//! Nothing is mounted. Symbolic links are resolved here, as a process chrooted into the tree would see them, so an image
//! can't point anywhere outside of itself.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_oci::path::ImagePath;
use rustix::io::Errno;

use crate::layer::whiteout::{self, Listed, WhiteoutStyle};
use crate::rootdir::{FsError, Kind, Meta, RootDir, Xattrs};

/// As many symbolic links as the kernel follows in one path (path_resolution(7)).
const MAX_LINKS: u32 = 40;
/// Names that links may put on the way in all. 40 of them with 2,000 names each would make every entry of an archive take a second.
const MAX_LINKED_NAMES: usize = 4096;

/// Why a path can't be read in the merged tree.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// The system refused.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// A name in the middle of the path is neither a directory nor a symbolic link to one.
    #[error("`{path}` lies below `{at}`, which is not a directory")]
    NotADirectory {
        /// The path asked for.
        path: ImagePath,
        /// The part of it that is no directory.
        at: ImagePath,
    },
    /// More than 40 symbolic links, most likely a loop.
    #[error("`{0}` has too many levels of symbolic links")]
    TooManyLinks(ImagePath),
    /// A regular file was asked for.
    #[error("`{0}` is not a regular file")]
    NotAFile(ImagePath),
    /// The file is larger than the caller is willing to hold.
    #[error("`{path}` is larger than {max} bytes")]
    TooLarge {
        /// The path asked for.
        path: ImagePath,
        /// The limit in bytes.
        max: u64,
    },
}

type Result<T> = std::result::Result<T, ViewError>;

/// The merged tree of a stack of directories, or one plain directory. Holds one descriptor a layer and caches nothing, so
/// what is written to a layer meanwhile is seen.
#[derive(Debug, Clone)]
pub struct View {
    root: Arc<MergedDir>,
}

/// Where a path leads.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The path without any symbolic link; names that don't exist are kept as they were given.
    pub path: ImagePath,
    /// What's there, if anything is.
    pub node: Option<Node>,
}

impl View {
    /// Opens the diff directories of a stack of layers, topmost first; none gives an empty tree.
    pub fn new(layers: impl IntoIterator<Item = impl AsRef<Path>>) -> Result<Self> {
        let roots: std::result::Result<Vec<_>, _> = layers.into_iter().map(|p| RootDir::open(p.as_ref())).collect();
        Self::from_roots(roots?, WhiteoutStyle::default())
    }

    /// The same of directories that are open already.
    pub fn from_roots(layers: Vec<RootDir>, style: WhiteoutStyle) -> Result<Self> {
        let mut parts = Vec::with_capacity(layers.len());
        for layer in layers {
            // "./.wh..wh..opq": the root of a layer can be opaque like any other directory.
            let opaque = whiteout::is_opaque(&layer, style)?;
            parts.push(Arc::new(layer));
            if opaque {
                break;
            }
        }
        Ok(Self { root: Arc::new(MergedDir { parts, style: Some(style) }) })
    }

    /// A tree without any file, not even a root directory with attributes of its own.
    pub fn empty() -> Self {
        Self { root: Arc::new(MergedDir { parts: Vec::new(), style: None }) }
    }

    /// A single directory read as it is: nothing in it is a whiteout. For build contexts.
    pub fn plain(root: RootDir) -> Self {
        Self { root: Arc::new(MergedDir { parts: vec![Arc::new(root)], style: None }) }
    }

    /// The root directory; `None` of an empty stack.
    pub fn root(&self) -> Result<Option<Node>> {
        let Some(top) = self.root.parts.first() else { return Ok(None) };
        Ok(Some(Node { meta: top.meta()?, place: Place::Root(self.root.clone()) }))
    }

    pub(crate) fn root_dir(&self) -> &Arc<MergedDir> {
        &self.root
    }

    /// What's at `path`, like `lstat`: symbolic links are followed on the way, not at the end. A path below a file leads nowhere.
    pub fn lookup(&self, path: &ImagePath) -> Result<Option<Node>> {
        match self.walk(path, false) {
            Ok(resolved) => Ok(resolved.node),
            Err(ViewError::NotADirectory { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Follows every symbolic link of `path`.
    pub fn resolve(&self, path: &ImagePath) -> Result<Resolved> {
        self.walk(path, true)
    }

    /// Follows every symbolic link of `path` but the last name.
    pub fn resolve_parent(&self, path: &ImagePath) -> Result<Resolved> {
        self.walk(path, false)
    }

    /// The bytes of the regular file that `path` leads to, at most `max` of them; `None` if there's nothing. Never hangs on
    /// a fifo or opens a device.
    pub fn read_file(&self, path: &ImagePath, max: u64) -> Result<Option<Vec<u8>>> {
        let node = match self.resolve(path) {
            Ok(Resolved { node: Some(node), .. }) => node,
            Ok(_) | Err(ViewError::NotADirectory { .. }) => return Ok(None),
            Err(e) => return Err(e),
        };
        if node.kind() != Kind::File {
            return Err(ViewError::NotAFile(path.clone()));
        }
        let mut bytes = Vec::new();
        let file = node.open()?;
        file.take(max.saturating_add(1)).read_to_end(&mut bytes).map_err(|e| node.error("read", e))?;
        if bytes.len() as u64 > max {
            return Err(ViewError::TooLarge { path: path.clone(), max });
        }
        Ok(Some(bytes))
    }

    fn walk(&self, path: &ImagePath, follow_last: bool) -> Result<Resolved> {
        let mut steps = Steps::new(path);
        let mut dir = self.root.clone();
        // Some(n): the first n names of `done` exist and the others don't.
        let mut missing: Option<usize> = None;
        let mut done: Vec<Vec<u8>> = Vec::new();
        let mut last = self.root()?;
        while let Some(name) = steps.next() {
            if name == b".." {
                done.pop();
                if missing.is_none_or(|n| done.len() <= n) {
                    missing = None;
                    (dir, last) = self.reopen(&done)?;
                }
                continue;
            }
            if missing.is_some() {
                done.push(name);
                continue;
            }
            let Some(node) = dir.lookup(&name)? else {
                missing = Some(done.len());
                last = None;
                done.push(name);
                continue;
            };
            let more = !steps.is_empty();
            match node.kind() {
                Kind::Symlink if more || follow_last => {
                    let target = node.read_link()?;
                    if !steps.follow(&target) {
                        return Err(ViewError::TooManyLinks(path.clone()));
                    }
                    if target.first() == Some(&b'/') {
                        done.clear();
                        dir = self.root.clone();
                        last = self.root()?;
                    } else {
                        // The directory stays; it's also what an empty rest of the path means.
                        last = dir.as_node();
                    }
                    continue;
                }
                Kind::Dir if more => dir = node.open_dir()?,
                Kind::Dir => {}
                _ if more => {
                    done.push(name);
                    return Err(ViewError::NotADirectory { path: path.clone(), at: join(&done) });
                }
                _ => {}
            }
            last = Some(node);
            done.push(name);
        }
        // A link that ended in `.` or `/` leaves the directory itself.
        if missing.is_none() && last.is_none() && !done.is_empty() {
            (_, last) = self.reopen(&done)?;
        }
        Ok(Resolved { path: join(&done), node: last })
    }

    /// Opens the directory at `names`, which are known to be directories.
    fn reopen(&self, names: &[Vec<u8>]) -> Result<(Arc<MergedDir>, Option<Node>)> {
        let (mut dir, mut node) = (self.root.clone(), self.root()?);
        for name in names {
            node = dir.lookup(name)?;
            match &node {
                Some(node) if node.kind() == Kind::Dir => dir = node.open_dir()?,
                _ => return Ok((dir, None)),
            }
        }
        Ok((dir, node))
    }
}

/// The names of a path still to be walked, with those of the symbolic links met on the way in front.
#[derive(Debug)]
pub(crate) struct Steps {
    /// Last first.
    names: Vec<Vec<u8>>,
    links: u32,
    /// Names that links have put in front so far.
    added: usize,
}

impl Steps {
    pub(crate) fn new(path: &ImagePath) -> Self {
        Self { names: path.components().rev().map(<[u8]>::to_vec).collect(), links: 0, added: 0 }
    }

    pub(crate) fn next(&mut self) -> Option<Vec<u8>> {
        self.names.pop()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Puts the names of a link's target before the rest; false when there were too many links, or too many names in them.
    pub(crate) fn follow(&mut self, target: &[u8]) -> bool {
        self.links += 1;
        let before = self.names.len();
        let names = target.split(|b| *b == b'/').rev().filter(|n| !n.is_empty() && *n != b".");
        self.names.extend(names.map(<[u8]>::to_vec));
        self.added += self.names.len() - before;
        self.links <= MAX_LINKS && self.added <= MAX_LINKED_NAMES
    }
}

pub(crate) fn join(names: &[Vec<u8>]) -> ImagePath {
    ImagePath::new(names.join(&b'/'))
}

/// One directory of the merged tree: the directories of the layers that make it up, topmost first.
#[derive(Debug)]
pub(crate) struct MergedDir {
    parts: Vec<Arc<RootDir>>,
    /// `None` where nothing is a whiteout.
    style: Option<WhiteoutStyle>,
}

impl MergedDir {
    /// How many descriptors it holds.
    pub(crate) fn descriptors(&self) -> usize {
        self.parts.len()
    }

    pub(crate) fn lookup(self: &Arc<Self>, name: &[u8]) -> std::result::Result<Option<Node>, FsError> {
        if self.style.is_some_and(|style| style.reserves(name)) {
            return Ok(None);
        }
        for (part, dir) in self.parts.iter().enumerate() {
            match dir.stat(name)? {
                Some(meta) => return self.node(part, name, meta),
                None if self.is_marked(dir, name)? => return Ok(None),
                None => {}
            }
        }
        Ok(None)
    }

    fn is_marked(&self, part: &RootDir, name: &[u8]) -> std::result::Result<bool, FsError> {
        self.style.map_or(Ok(false), |style| whiteout::is_marked(part, name, style))
    }

    /// What `name` is to the merged tree, given that `meta` is its topmost form; `None` for a whiteout.
    fn node(self: &Arc<Self>, part: usize, name: &[u8], meta: Meta) -> std::result::Result<Option<Node>, FsError> {
        if let Some(style) = self.style
            && whiteout::is_whiteout(&self.parts[part], name, &meta, style)?
        {
            return Ok(None);
        }
        Ok(Some(Node { meta, place: Place::Below { dir: self.clone(), part, name: name.into() } }))
    }

    fn as_node(self: &Arc<Self>) -> Option<Node> {
        let meta = self.parts.first()?.meta().ok()?;
        Some(Node { meta, place: Place::Root(self.clone()) })
    }

    fn read_dir(self: &Arc<Self>) -> std::result::Result<Vec<Node>, FsError> {
        let mut found = std::collections::BTreeMap::new();
        for (part, dir) in self.parts.iter().enumerate() {
            let listed = match self.style {
                Some(style) => whiteout::list(dir, style)?,
                None => dir.names()?.into_iter().map(|name| Listed { name, is_marker: false }).collect(),
            };
            for Listed { name, is_marker } in listed {
                if found.contains_key(&name) {
                    continue;
                }
                if is_marker {
                    found.insert(name, None);
                    continue;
                }
                // Gone since it was listed: only a plain directory of the user's can change.
                let Some(meta) = dir.stat(&name)? else { continue };
                let node = self.node(part, &name, meta)?;
                found.insert(name, node);
            }
        }
        Ok(found.into_values().flatten().collect())
    }
}

/// Something in the merged tree. Holds its directory's descriptors, not its own.
#[derive(Debug, Clone)]
pub struct Node {
    meta: Meta,
    place: Place,
}

#[derive(Debug, Clone)]
enum Place {
    /// The directory itself: the root, or one reached without a name of its own.
    Root(Arc<MergedDir>),
    Below {
        dir: Arc<MergedDir>,
        /// The topmost of its parts that has the name.
        part: usize,
        name: Box<[u8]>,
    },
}

impl Node {
    /// What it is.
    pub fn kind(&self) -> Kind {
        self.meta.kind
    }

    /// Its attributes when it was looked up.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Its name in its directory; empty for the root.
    pub fn name(&self) -> &[u8] {
        match &self.place {
            Place::Root(_) => b"",
            Place::Below { name, .. } => name,
        }
    }

    /// Opens the regular file.
    pub fn open(&self) -> Result<File> {
        let Place::Below { dir, part, name } = &self.place else { return Err(self.error("open", Errno::ISDIR).into()) };
        if self.meta.kind != Kind::File {
            return Err(self.error("open", io::Error::other("not a regular file")).into());
        }
        Ok(dir.parts[*part].open_file(name)?)
    }

    /// The target of the symbolic link.
    pub fn read_link(&self) -> Result<Vec<u8>> {
        match &self.place {
            Place::Below { dir, part, name } => Ok(dir.parts[*part].read_link(name)?),
            Place::Root(_) => Err(self.error("read link", Errno::INVAL).into()),
        }
    }

    /// The extended attributes that belong into an image: file capabilities (as the root of the image sees them), ACLs and
    /// `user.*`, without the overlay's own.
    pub fn xattrs(&self) -> Result<Xattrs> {
        let all = match &self.place {
            Place::Below { dir, part, name } => dir.parts[*part].xattrs(name)?,
            Place::Root(dir) => dir.parts.first().map_or_else(|| Ok(Xattrs::new()), |d| d.xattrs_of_self())?,
        };
        Ok(crate::layer::xattr::portable(all))
    }

    /// What the directory holds, sorted bytewise by [`Node::name`].
    pub fn read_dir(&self) -> Result<Vec<Node>> {
        Ok(self.open_dir()?.read_dir()?)
    }

    /// The entry `name` of the directory, not followed.
    pub fn child(&self, name: &[u8]) -> Result<Option<Node>> {
        Ok(self.open_dir()?.lookup(name)?)
    }

    /// The directory itself, opened once for many questions about what it holds.
    pub fn opened(&self) -> Result<Node> {
        Ok(Node { meta: self.meta, place: Place::Root(self.open_dir()?) })
    }

    pub(crate) fn open_dir(&self) -> std::result::Result<Arc<MergedDir>, FsError> {
        let (dir, part, name) = match &self.place {
            Place::Root(dir) => return Ok(dir.clone()),
            Place::Below { dir, part, name } => (dir, *part, name),
        };
        let mut parts = Vec::new();
        for (at, layer) in dir.parts.iter().enumerate().skip(part) {
            match layer.child(name) {
                Ok(found) => {
                    let opaque = match dir.style {
                        Some(style) => whiteout::is_opaque(&found, style)?,
                        None => false,
                    };
                    parts.push(Arc::new(found));
                    if opaque {
                        break;
                    }
                }
                Err(e) if e.is_not_found() && at > part => {
                    if dir.is_marked(layer, name)? {
                        break;
                    }
                }
                // A file or a whiteout ends what's merged into the directory above it.
                Err(e) if matches!(e.errno(), Some(Errno::NOTDIR | Errno::LOOP)) && at > part => break,
                Err(e) => return Err(e),
            }
        }
        Ok(Arc::new(MergedDir { parts, style: dir.style }))
    }

    /// Where it is on this host, for messages only.
    pub fn shown(&self) -> PathBuf {
        self.error("", Errno::IO).path
    }

    fn error(&self, operation: &'static str, source: impl Into<io::Error>) -> FsError {
        match &self.place {
            Place::Below { dir, part, name } => dir.parts[*part].error(operation, name, source),
            Place::Root(dir) => match dir.parts.first() {
                Some(top) => top.error(operation, b"", source),
                None => FsError { operation, path: PathBuf::from("/"), source: source.into() },
            },
        }
    }
}

#[cfg(test)]
mod tests;
