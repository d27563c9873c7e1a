//! Hides whether files come from a context or from the layers of a stage.

use std::sync::Arc;

use kiln_oci::path::ImagePath;
use kiln_store::memo::Fingerprint;
use kiln_store::rootdir::{Kind, Meta, Xattrs};
use kiln_store::view::{Node, View, ViewError};

use super::FileError;
use crate::context::{Context, ContextNode, DirReader};

/// As many symbolic links as the kernel follows in one path (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// What a COPY or ADD takes paths from.
#[derive(Debug, Clone, Copy)]
pub enum SourceTree<'a> {
    /// The build context.
    Context(&'a Context),
    /// The root file system of a stage or image.
    View(&'a View),
}

/// Something in a source tree.
#[derive(Debug, Clone)]
pub(super) enum Place<'a> {
    Context(&'a Context, ContextNode),
    /// In a box, for it is three times as large, and there are as many as files in a directory.
    View(Box<Node>),
}

/// Reads the files of one directory.
#[derive(Debug)]
pub(super) enum Reader<'a> {
    Context(DirReader<'a>),
    View,
}

impl<'a> SourceTree<'a> {
    pub(super) fn root(self) -> Result<Option<Place<'a>>, FileError> {
        match self {
            SourceTree::Context(context) => Ok(context.root_node().map(|node| Place::Context(context, node))),
            SourceTree::View(view) => Ok(view.root()?.map(Place::of_view)),
        }
    }

    /// Follows every symbolic link of `path`, inside the tree; gives where it leads, and what is there.
    pub(super) fn resolve(self, path: &ImagePath) -> Result<(ImagePath, Option<Place<'a>>), FileError> {
        match self {
            SourceTree::View(view) => match view.resolve(path) {
                Ok(resolved) => Ok((resolved.path, resolved.node.map(Place::of_view))),
                Err(ViewError::NotADirectory { .. }) => Ok((path.clone(), None)),
                Err(e) => Err(e.into()),
            },
            SourceTree::Context(context) => resolve(context, path),
        }
    }
}

fn resolve<'a>(context: &'a Context, path: &ImagePath) -> Result<(ImagePath, Option<Place<'a>>), FileError> {
    let mut waiting: Vec<Vec<u8>> = path.components().rev().map(<[u8]>::to_vec).collect();
    // The directories from the root down to where we are.
    let mut trail: Vec<ContextNode> = context.root_node().into_iter().collect();
    let mut at = ImagePath::root();
    let mut links = 0;
    while let Some(name) = waiting.pop() {
        if name == b".." {
            if trail.len() > 1 {
                trail.pop();
            }
            at = at.parent().unwrap_or(at);
            continue;
        }
        let found = match trail.last() {
            Some(ContextNode::Dir(dir)) => context.child(dir, &name)?,
            _ => None,
        };
        let Some(node) = found else {
            let rest = waiting.iter().rev().fold(at.join(&name), |path, name| path.join(name));
            return Ok((rest, None));
        };
        match node.target() {
            Some(target) => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(ViewError::TooManyLinks(path.clone()).into());
                }
                if target.first() == Some(&b'/') {
                    trail.truncate(1);
                    at = ImagePath::root();
                }
                let names = target.split(|b| *b == b'/').rev().filter(|n| !n.is_empty() && *n != b".");
                waiting.extend(names.map(<[u8]>::to_vec));
            }
            None => {
                at = at.join(&name);
                trail.push(node);
            }
        }
    }
    let place = trail.pop().map(|node| Place::Context(context, node));
    Ok((at, place))
}

impl<'a> Place<'a> {
    fn of_view(node: Node) -> Self {
        Place::View(Box::new(node))
    }

    pub(super) fn meta(&self) -> Meta {
        match self {
            Place::Context(_, node) => node.meta(),
            Place::View(node) => *node.meta(),
        }
    }

    pub(super) fn kind(&self) -> Kind {
        self.meta().kind
    }

    pub(super) fn name(&self) -> &[u8] {
        match self {
            Place::Context(_, node) => node.name(),
            Place::View(node) => node.name(),
        }
    }

    /// What a directory holds, sorted by name.
    pub(super) fn children(&self) -> Result<Vec<Place<'a>>, FileError> {
        match self {
            Place::Context(context, ContextNode::Dir(dir)) => {
                Ok(context.children(dir)?.into_iter().map(|node| Place::Context(context, node)).collect())
            }
            Place::Context(..) => Ok(Vec::new()),
            Place::View(node) => Ok(node.read_dir()?.into_iter().map(Place::of_view).collect()),
        }
    }

    pub(super) fn child(&self, name: &[u8]) -> Result<Option<Place<'a>>, FileError> {
        match self {
            Place::Context(context, ContextNode::Dir(dir)) => {
                Ok(context.child(dir, name)?.map(|node| Place::Context(context, node)))
            }
            Place::Context(..) => Ok(None),
            Place::View(node) if node.kind() == Kind::Dir => Ok(node.child(name)?.map(Place::of_view)),
            Place::View(_) => Ok(None),
        }
    }

    /// The target of a symbolic link.
    pub(super) fn read_link(&self) -> Result<Vec<u8>, FileError> {
        match self {
            Place::Context(_, node) => Ok(node.target().unwrap_or_default().to_vec()),
            Place::View(node) => Ok(node.read_link()?),
        }
    }

    /// The extended attributes of anything but a regular file of a context, whose [`Reader`] has them.
    pub(super) fn xattrs(&self) -> Result<Xattrs, FileError> {
        match self {
            Place::Context(context, ContextNode::Dir(dir)) => Ok(context.dir_xattrs(dir)?),
            Place::Context(..) => Ok(Xattrs::new()),
            Place::View(node) => Ok(node.xattrs()?),
        }
    }

    /// Reads ahead all below this directory.
    pub(super) fn expand(&self) {
        if let Place::Context(context, ContextNode::Dir(dir)) = self {
            context.expand(dir);
        }
    }

    /// What reads the files of this directory, or this file.
    pub(super) fn reader(&self) -> Reader<'a> {
        match self {
            Place::Context(context, ContextNode::Dir(dir) | ContextNode::Leaf { dir, .. }) => {
                Reader::Context(DirReader::new(context, Arc::clone(dir)))
            }
            Place::View(_) => Reader::View,
        }
    }
}

impl Reader<'_> {
    /// What the regular file `place` says, extended attributes included.
    pub(super) fn fingerprint(&self, place: &Place<'_>) -> Result<Fingerprint, FileError> {
        match (self, place) {
            (Reader::Context(reader), Place::Context(_, ContextNode::Leaf { name, leaf, .. })) => {
                Ok(reader.fingerprint(name, leaf)?)
            }
            (_, Place::View(node)) => {
                let file = node.open()?;
                let xattrs = node.xattrs()?;
                crate::context::fingerprint(&file, node.meta().size, &xattrs)
                    .map_err(|cause| FileError::Read { path: node.shown(), cause })
            }
            (_, Place::Context(..)) => Ok(Fingerprint::default()),
        }
    }
}
