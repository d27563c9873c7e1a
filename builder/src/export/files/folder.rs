//! Hides how a tree is laid over a folder of the user's: every name is resolved below a descriptor of that folder and no symbolic
//! link is followed, so nothing outside of it is touched, whatever is there already and whatever the result holds.
//!
//! A file appears whole: it is written under another name and renamed. Owners are the caller's, as BuildKit's client makes them.

use std::io::Write as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use kiln_oci::path::ImagePath;
use kiln_store::rootdir::{Attrs, FsError, Kind, RootDir, Timestamp, Xattrs, copy_file};
use kiln_store::view::Node;

use super::{Part, Sink, walk};
use crate::engine::Engine;
use crate::error::Error;
use crate::event::Task;
use crate::export::draft;

/// Writes the parts into the folder `dest`, and says how many bytes its files have. With `delete` what was there before goes away,
/// in each directory after all that belongs there was written.
pub(super) fn write(engine: &Engine, parts: &[Part<'_>], dest: &Path, delete: bool, task: &Task) -> Result<u64, Error> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dest).map_err(Error::output(dest))?;
    let root = RootDir::open(dest)?;
    sweep(&root)?;
    let mut folder = Folder {
        root: root.try_clone()?,
        open: vec![Level::new(root)],
        delete,
        bytes: 0,
        serial: 0,
        prefix: draft::prefix(),
        task,
    };
    for part in parts {
        if let Some(name) = &part.folder {
            folder.descend(name)?;
        }
        folder.root = folder.here()?.dir.try_clone()?;
        walk(engine, part, &mut folder)?;
        for extra in part.extras {
            folder.extra(extra.name.as_bytes(), &extra.bytes, part.now)?;
        }
        if part.folder.is_some() {
            let attrs = Attrs { mode: 0o755, mtime: Some(part.now), ..callers() };
            folder.ascend(&attrs)?;
        }
    }
    if let Some(level) = folder.open.pop() {
        folder.clean(&level)?;
    }
    Ok(folder.bytes)
}

struct Folder<'a> {
    /// Where hard links are resolved from: the folder of the part.
    root: RootDir,
    open: Vec<Level>,
    delete: bool,
    bytes: u64,
    serial: u64,
    prefix: String,
    task: &'a Task,
}

/// A directory that is being written, and the names that belong there.
struct Level {
    dir: RootDir,
    names: std::collections::HashSet<Vec<u8>>,
}

impl Level {
    fn new(dir: RootDir) -> Self {
        Self { dir, names: std::collections::HashSet::new() }
    }
}

/// Owned by whoever asked.
fn callers() -> Attrs {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    Attrs { uid, gid, mode: 0o600, mtime: None, xattrs: Xattrs::new() }
}

impl Folder<'_> {
    /// The innermost directory. There always is one: the root is left last.
    fn here(&mut self) -> Result<&mut Level, Error> {
        self.open.last_mut().ok_or(Error::Interrupted)
    }

    /// Enters the directory `name`, in the place of whatever else has that name.
    fn descend(&mut self, name: &[u8]) -> Result<(), Error> {
        let level = self.here()?;
        level.names.insert(name.to_vec());
        if level.dir.stat(name)?.is_some_and(|meta| meta.kind != Kind::Dir) {
            level.dir.unlink(name)?;
        }
        let is_new = level.dir.stat(name)?.is_none();
        if is_new {
            level.dir.mkdir(name)?;
        }
        let below = level.dir.child(name)?;
        if !is_new {
            sweep(&below)?;
        }
        self.open.push(Level::new(below));
        Ok(())
    }

    fn ascend(&mut self, attrs: &Attrs) -> Result<(), Error> {
        if let Some(level) = self.open.pop() {
            self.clean(&level)?;
            leniently(attrs, |attrs| level.dir.set_attrs_of_self(attrs))?;
        }
        Ok(())
    }

    fn clean(&self, level: &Level) -> Result<(), Error> {
        if !self.delete {
            return Ok(());
        }
        for name in level.dir.names()? {
            if !level.names.contains(&name) {
                level.dir.remove_all(&name)?;
            }
        }
        Ok(())
    }

    /// Makes something under a name that nobody has, and gives it the name `name`.
    fn place(&mut self, name: &[u8], make: impl FnOnce(&RootDir, &[u8]) -> Result<(), Error>) -> Result<(), Error> {
        self.serial += 1;
        let draft = format!("{}{}", self.prefix, self.serial).into_bytes();
        let level = self.here()?;
        level.names.insert(name.to_vec());
        // Of a process with the same number that died.
        level.dir.remove_all(&draft)?;
        let made = make(&level.dir, &draft).and_then(|()| {
            if level.dir.stat(name)?.is_some_and(|meta| meta.kind == Kind::Dir) {
                level.dir.remove_all(name)?;
            }
            level.dir.rename(&draft, &level.dir, name)?;
            Ok(())
        });
        if made.is_err() {
            let _ = level.dir.remove_all(&draft);
        }
        made
    }

    fn extra(&mut self, name: &[u8], bytes: &[u8], time: Timestamp) -> Result<(), Error> {
        self.bytes += bytes.len() as u64;
        self.place(name, |dir, draft| {
            let mut file = dir.create_file(draft)?;
            file.write_all(bytes).map_err(|cause| dir.error("write", draft, cause))?;
            let attrs = Attrs { mtime: Some(time), ..callers() };
            Ok(dir.set_attrs_of_file(&file, draft, &attrs)?)
        })
    }

    fn file(&mut self, node: &Node, attrs: &Attrs) -> Result<(), Error> {
        let size = node.meta().size;
        self.place(node.name(), |dir, draft| {
            let to = dir.create_file(draft)?;
            let from = node.open()?;
            let is_sparse = node.meta().blocks * 512 < size;
            copy_file(&from, &to, size, is_sparse).map_err(|cause| dir.error("write", draft, cause))?;
            Ok(leniently(attrs, |attrs| dir.set_attrs_of_file(&to, draft, attrs))?)
        })?;
        self.bytes += size;
        self.task.status("copying files", self.bytes, None);
        Ok(())
    }
}

/// Takes away what a kiln that was killed left in a directory that is written to again.
fn sweep(dir: &RootDir) -> Result<(), Error> {
    for name in dir.names()?.iter().filter(|name| draft::is_abandoned(name)) {
        dir.remove_all(name)?;
    }
    Ok(())
}

/// Sets what this file system and this caller may set: without attributes where they are refused, as BuildKit's client does.
fn leniently(attrs: &Attrs, set: impl Fn(&Attrs) -> Result<(), FsError>) -> Result<(), FsError> {
    match set(attrs) {
        Err(_) if !attrs.xattrs.is_empty() => set(&Attrs { xattrs: Xattrs::new(), ..attrs.clone() }),
        outcome => outcome,
    }
}

impl Sink for Folder<'_> {
    fn enter(&mut self, _: &Part<'_>, node: &Node) -> Result<(), Error> {
        self.descend(node.name())
    }

    fn leave(&mut self, part: &Part<'_>, node: &Node) -> Result<(), Error> {
        let attrs = attrs(part, node)?;
        self.ascend(&attrs)
    }

    fn leaf(&mut self, part: &Part<'_>, node: &Node, _: &[u8], first: Option<&[u8]>) -> Result<(), Error> {
        if let Some(first) = first {
            let (parent, name) = match first.iter().rposition(|b| *b == b'/') {
                Some(at) => (self.root.walk(&ImagePath::new(&first[..at]))?, &first[at + 1..]),
                None => (self.root.try_clone()?, first),
            };
            return self.place(node.name(), |dir, draft| Ok(dir.link(draft, &parent, name)?));
        }
        let attrs = attrs(part, node)?;
        match node.kind() {
            Kind::File => self.file(node, &attrs),
            Kind::Symlink => {
                let target = node.read_link()?;
                self.place(node.name(), |dir, draft| {
                    dir.symlink(draft, &target)?;
                    let attrs = Attrs { xattrs: Xattrs::new(), ..attrs };
                    Ok(dir.set_attrs_of_node(draft, Kind::Symlink, &attrs)?)
                })
            }
            kind => self.place(node.name(), |dir, draft| {
                dir.mknod(draft, kind, node.meta().rdev)?;
                Ok(dir.set_attrs_of_node(draft, kind, &Attrs { xattrs: Xattrs::new(), ..attrs })?)
            }),
        }
    }
}

fn attrs(part: &Part<'_>, node: &Node) -> Result<Attrs, Error> {
    Ok(Attrs { mode: node.meta().mode, mtime: Some(part.time(node)), xattrs: node.xattrs()?, ..callers() })
}
