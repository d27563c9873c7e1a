//! Hides what can be had of a RUN that failed: a shell in its place, and files out of it. None of it is kept or cached.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use kiln_oci::path::ImagePath;
use kiln_runner::{MountSource, OverlayUpper, RootFs, RunError, RunSpec, Stream, Streams, run_attached};
use kiln_store::Prepared;
use kiln_store::rootdir::{Attrs, Kind, RootDir, Xattrs, copy_reader};
use kiln_store::view::{Node, View};

use crate::engine::Engine;
use crate::error::Error;
use crate::ops::exec::Held;

/// What is to be done when a RUN fails.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OnFailure {
    /// Open this shell in the step's place.
    pub shell: Option<String>,
    /// Copy files of the step out.
    pub export: Option<Export>,
}

impl OnFailure {
    /// Is anything to be done?
    pub fn is_some(&self) -> bool {
        self.shell.is_some() || self.export.is_some()
    }
}

/// Files of a failed step that are to be copied out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// An empty or absent folder.
    pub folder: PathBuf,
    /// Which files and folders; none is what the step changed.
    pub paths: Vec<ImagePath>,
}

/// A RUN that failed, as it was when its last process had ended.
#[derive(Debug)]
pub(crate) struct FailedStep {
    /// As progress names it.
    pub(crate) name: String,
    /// How it failed.
    pub(crate) why: String,
    pub(crate) spec: RunSpec,
    /// Keeps what the mounts show.
    pub(crate) _held: Held,
    pub(crate) prepared: Prepared,
}

impl FailedStep {
    /// Does what was asked for; the build has failed whatever comes of it, so that what doesn't work is only said.
    pub(crate) fn attend(mut self, engine: &Engine, wish: &OnFailure) {
        if let Some(export) = &wish.export {
            let said = match self.export(engine, export) {
                Ok(Exported { files, left_out: 0 }) => format!("{files} of {} are in {}", self.name, export.folder.display()),
                Ok(Exported { files, left_out }) => format!(
                    "{files} of {} are in {}, without {left_out} devices, pipes or sockets",
                    self.name,
                    export.folder.display()
                ),
                Err(error) => format!("the files of {} could not be copied to {}: {error}", self.name, export.folder.display()),
            };
            engine.events.warn(said);
        }
        if let Some(shell) = &wish.shell
            && let Err(error) = self.shell(engine, shell)
        {
            engine.events.warn(format!("there is no shell in the place of {}: {error}", self.name));
        }
    }

    fn shell(&mut self, engine: &Engine, shell: &str) -> Result<(), Error> {
        fresh_work(&mut self.spec).map_err(|cause| Error::System { operation: "make the step's folders ready again", cause })?;
        self.spec.args = vec![shell.into()];
        self.spec.streams = match std::io::stdin().is_terminal() {
            true => Streams::Terminal { input: true },
            false => Streams::Inherited { input: true },
        };
        if !self.spec.env.iter().any(|(name, _)| name == "TERM") {
            self.spec.env.push(("TERM".into(), "xterm".into()));
        }
        engine.events.pause(&format!(
            "\n{shell} is in the place of the step that failed: {}\n({})\nIt has the files as the step left them, its mounts, environment \
             and user. Nothing that is changed is kept, and the build fails when the shell ends.\n",
            self.name, self.why
        ));
        // An interactive shell doesn't listen to SIGTERM.
        engine.remote.stop_with(SIGHUP);
        let mut output = |stream, bytes: &[u8]| {
            // Who closed them doesn't want to know.
            let _ = match stream {
                Stream::Stdout => std::io::stdout().write_all(bytes).and_then(|()| std::io::stdout().flush()),
                Stream::Stderr => std::io::stderr().write_all(bytes),
            };
        };
        match run_attached(&self.spec, engine.host(), &engine.cancel, Some(&engine.remote), &mut output) {
            Ok(_) | Err(RunError::Cancelled) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn export(&self, engine: &Engine, export: &Export) -> Result<Exported, Error> {
        let output = |cause| Error::Output { path: export.folder.clone(), cause };
        std::fs::create_dir_all(&export.folder).map_err(output)?;
        let view = match (self.prepared.tree(), export.paths.is_empty()) {
            (Some(_), true) => {
                return Err(output(std::io::Error::other(
                    "name files with `path=`: where copies are in the place of overlays, what \
                                                         a step changed isn't known before it ends well",
                )));
            }
            (Some(tree), false) => View::plain(engine.store.tree(&tree)?),
            (None, true) => engine.store.view([&self.prepared.upper])?,
            (None, false) => engine.store.view([&self.prepared.upper].into_iter().chain(&self.prepared.lowers))?,
        };
        let mut writer = Writer { owners: engine.was_root(), exported: Exported::default() };
        let to = RootDir::open(&export.folder)?;
        if export.paths.is_empty() {
            if let Some(root) = view.root()? {
                writer.fill(&root, &to)?;
            }
            return Ok(writer.exported);
        }
        for path in &export.paths {
            // Links on the way lead to where they lead in the image.
            let found = view.resolve_parent(path)?;
            let Some(node) = found.node else {
                engine.events.warn(format!("the failed step has no `{path}`"));
                continue;
            };
            if node.name().is_empty() {
                writer.fill(&node, &to)?;
                continue;
            }
            // At the place that was asked for, whatever the folders on the way are in the image.
            let names: Vec<&[u8]> = path.components().collect();
            let Some((last, parents)) = names.split_last() else { continue };
            let mut folder = to.try_clone()?;
            for name in parents {
                if folder.stat(name)?.is_none() {
                    folder.mkdir(name)?;
                    folder.child(name)?.set_attrs_of_self(&Attrs { mode: 0o755, ..Attrs::default() })?;
                }
                folder = folder.child(name)?;
            }
            if folder.stat(last)?.is_none() {
                writer.copy(&node, last, &folder)?;
            }
        }
        Ok(writer.exported)
    }
}

/// SIGHUP of signal(7).
const SIGHUP: i32 = 1;

/// A work directory serves one volatile mount.
fn fresh_work(spec: &mut RunSpec) -> std::io::Result<()> {
    let again = |work: &Path| {
        std::fs::remove_dir_all(work)?;
        std::fs::create_dir(work)
    };
    if let RootFs::Overlay { work, .. } = &spec.root {
        again(work)?;
    }
    for mount in &spec.mounts {
        if let MountSource::Overlay { upper: Some(OverlayUpper { work, .. }), .. } = &mount.source {
            again(work)?;
        }
    }
    Ok(())
}

/// How much was copied.
#[derive(Debug, Default)]
struct Exported {
    files: Files,
    left_out: u64,
}

/// A number of files, in words.
#[derive(Debug, Default, Clone, Copy)]
struct Files(u64);

impl std::fmt::Display for Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            1 => f.write_str("1 file"),
            number => write!(f, "{number} files"),
        }
    }
}

/// Copies nodes into folders that are this process's own. Nothing is followed, on neither side.
struct Writer {
    /// Whether files keep their owners.
    owners: bool,
    exported: Exported,
}

impl Writer {
    fn copy(&mut self, node: &Node, name: &[u8], to: &RootDir) -> Result<(), Error> {
        match node.kind() {
            Kind::Dir => {
                to.mkdir(name)?;
                let folder = to.child(name)?;
                self.fill(node, &folder)?;
                folder.set_attrs_of_self(&self.attrs(node)?)?;
            }
            Kind::File => {
                let mut from = node.open()?;
                let file = to.create_file(name)?;
                copy_reader(&mut from, &file).map_err(|cause| to.error("write", name, cause))?;
                to.set_attrs_of_file(&file, name, &self.attrs(node)?)?;
                self.exported.files.0 += 1;
            }
            Kind::Symlink => {
                to.symlink(name, &node.read_link()?)?;
                if self.owners {
                    to.set_attrs_of_node(name, Kind::Symlink, &self.attrs(node)?)?;
                }
                self.exported.files.0 += 1;
            }
            Kind::Fifo | Kind::Char | Kind::Block | Kind::Socket => self.exported.left_out += 1,
        }
        Ok(())
    }

    fn fill(&mut self, node: &Node, to: &RootDir) -> Result<(), Error> {
        for child in node.read_dir()? {
            self.copy(&child, child.name(), to)?;
        }
        Ok(())
    }

    /// Without what would be a right: owners and their programs stay root's business.
    fn attrs(&self, node: &Node) -> Result<Attrs, Error> {
        let of = Attrs::of(node.meta(), Xattrs::new());
        Ok(match self.owners {
            true => of,
            // Readable by its owner, whatever it was.
            false => Attrs { uid: 0, gid: 0, mode: of.mode & 0o777 | if node.kind() == Kind::Dir { 0o700 } else { 0o400 }, ..of },
        })
    }
}
