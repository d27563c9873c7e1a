//! Hides how the files of a result leave as files (`type=local`, `type=tar`): straight out of the merged tree of its layers, in one
//! walk, whatever they are written to.

mod folder;
mod tarball;

use std::collections::{HashMap, HashSet};
use std::time::{SystemTime, UNIX_EPOCH};

use kiln_store::rootdir::{Kind, Timestamp};
use kiln_store::view::{Node, View};

use crate::engine::Engine;
use crate::error::{Error, ImageError};
use crate::event::Task;
use crate::export::assemble::Built;
use crate::export::destination;
use crate::ops::source::materialise;
use crate::request::{Destination, FilesForm, FolderMode};

/// Where the files of a result go, and how.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) form: FilesForm,
    pub(crate) dest: &'a Destination,
    /// Whether each platform gets a folder; `None`: if there are several.
    pub(crate) platform_split: Option<bool>,
    /// The time of files that have none of their own.
    pub(crate) clock: SystemTime,
    /// The time of all files, whatever the build's.
    pub(crate) epoch: Option<u64>,
}

/// A file that isn't one of the result: an attestation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Extra {
    /// Its name in the folder of its platform.
    pub(crate) name: String,
    /// What it holds.
    pub(crate) bytes: Vec<u8>,
}

/// Hands out the files of each result, and those of `extras` with the same number.
pub(crate) fn write(
    engine: &Engine,
    built: &[Built],
    extras: &[Vec<Extra>],
    wanted: &Wanted<'_>,
    task: &Task,
) -> Result<(), Error> {
    let is_split = wanted.platform_split.unwrap_or(built.len() > 1);
    let mut parts = Vec::new();
    for (number, built) in built.iter().enumerate() {
        let top = built.layers.last().map(|layer| &layer.id);
        materialise(engine, top, task)?;
        let lowers = match top {
            Some(top) => engine.store.layers().lowers(top)?,
            None => Vec::new(),
        };
        let epoch = wanted.epoch.or(built.epoch).map(|epoch| Timestamp::from_secs(i64::try_from(epoch).unwrap_or(i64::MAX)));
        parts.push(Part {
            view: engine.store.view(&lowers)?,
            platform: built.platform.to_string(),
            folder: is_split.then(|| built.platform.to_string().replace('/', "_").into_bytes()),
            extras: extras.get(number).map_or(&[][..], Vec::as_slice),
            epoch,
            now: epoch.unwrap_or_else(|| seconds(wanted.clock)),
        });
    }
    if parts.len() > 1 && !is_split {
        refuse_equal_names(&parts)?;
    }
    match (wanted.form, wanted.dest) {
        (FilesForm::Folder(mode), Destination::Folder(path) | Destination::File(path)) => {
            task.status("copying files", 0, None);
            let copied = folder::write(engine, &parts, path, mode == FolderMode::Delete, task)?;
            task.status_done("copying files", copied, None);
        }
        (_, dest) => {
            let path = match dest {
                Destination::File(path) | Destination::Folder(path) => Some(path.as_path()),
                Destination::Stdout => None,
            };
            task.status("sending tarball", 0, None);
            destination::write(path, |out| tarball::write(engine, &parts, out))?;
            task.status_done("sending tarball", 0, None);
        }
    }
    Ok(())
}

/// The result for one platform.
struct Part<'a> {
    view: View,
    platform: String,
    /// The folder that it gets.
    folder: Option<Vec<u8>>,
    extras: &'a [Extra],
    /// The time that all files get, as BuildKit has it: not only those that are newer.
    epoch: Option<Timestamp>,
    now: Timestamp,
}

impl Part<'_> {
    fn time(&self, node: &Node) -> Timestamp {
        self.epoch.unwrap_or(node.meta().mtime)
    }
}

fn seconds(clock: SystemTime) -> Timestamp {
    let since = clock.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_secs(i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

/// What takes the files of a part, in the order of the walk: a directory before what it holds, names in bytewise order.
trait Sink {
    /// Whether the directory is entered.
    fn enter(&mut self, part: &Part<'_>, node: &Node) -> Result<(), Error>;
    /// All that it holds was given.
    fn leave(&mut self, part: &Part<'_>, node: &Node) -> Result<(), Error>;
    /// Anything else; `first` is the earlier name of the same file.
    fn leaf(&mut self, part: &Part<'_>, node: &Node, path: &[u8], first: Option<&[u8]>) -> Result<(), Error>;
}

/// Walks a part without its root. Costs one descriptor a layer for each level that is open.
fn walk(engine: &Engine, part: &Part<'_>, sink: &mut dyn Sink) -> Result<(), Error> {
    let Some(root) = part.view.root()? else { return Ok(()) };
    let mut firsts: HashMap<(u64, u64), Vec<u8>> = HashMap::new();
    let mut open = vec![(None, root.opened()?.read_dir()?.into_iter())];
    let mut path: Vec<u8> = Vec::new();
    while let Some((_, entries)) = open.last_mut() {
        let Some(node) = entries.next() else {
            let left: Option<Node> = open.pop().and_then(|(dir, _)| dir);
            if let Some(dir) = left {
                sink.leave(part, &dir)?;
                path.truncate(path.len() - dir.name().len() - usize::from(path.len() > dir.name().len()));
            }
            continue;
        };
        engine.check()?;
        let length = path.len();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(node.name());
        let meta = node.meta();
        match node.kind() {
            Kind::Dir => {
                sink.enter(part, &node)?;
                let inside = node.opened()?.read_dir()?.into_iter();
                open.push((Some(node), inside));
                continue;
            }
            // Nobody listens at it any more.
            Kind::Socket => {}
            _ => {
                let known = firsts.get(&(meta.dev, meta.ino)).filter(|_| meta.nlink > 1).cloned();
                sink.leaf(part, &node, &path, known.as_deref())?;
                if meta.nlink > 1 && known.is_none() {
                    firsts.insert((meta.dev, meta.ino), path.clone());
                }
            }
        }
        path.truncate(length);
    }
    Ok(())
}

/// Several platforms in one folder must not have a file of the same name.
fn refuse_equal_names(parts: &[Part<'_>]) -> Result<(), Error> {
    let mut seen: HashMap<Vec<u8>, &str> = HashMap::new();
    for part in parts {
        let mut open: Vec<(Vec<u8>, Node)> = part.view.root()?.map(|root| (Vec::new(), root)).into_iter().collect();
        let mut names = HashSet::new();
        while let Some((path, node)) = open.pop() {
            if node.kind() == Kind::Dir {
                let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
                open.extend(node.read_dir()?.into_iter().map(|below| ([&path, slash, below.name()].concat(), below)));
                continue;
            }
            names.insert(path);
        }
        names.extend(part.extras.iter().map(|extra| extra.name.clone().into_bytes()));
        for name in names {
            if let Some(other) = seen.insert(name.clone(), &part.platform) {
                return Err(Error::Image(ImageError::SameFile {
                    path: String::from_utf8_lossy(&name).into_owned(),
                    platforms: [other.to_owned(), part.platform.clone()],
                }));
            }
        }
    }
    Ok(())
}
