//! Hides where a context comes from: a folder of the user's, an archive, an address or a repository ends up as a folder.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Cursor, Read};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use kiln_store::Prepared;
use kiln_store::layer::upper::UpperWriter;
use kiln_store::layer::whiteout::WhiteoutStyle;
use kiln_store::owner::Owner;
use kiln_store::rootdir::RootDir;
use kiln_store::view::View;

use super::ContextError;
use crate::attest::provenance::Material;
use crate::engine::Engine;
use crate::event::{Counted, Task};
use crate::grant::Grants;
use crate::ops::file::{begins_as_archive, unpack_all};
use crate::ops::git::{self, Checkout, GitEnvironment, Origin};
use crate::ops::http;
use crate::pins::Pins;
use crate::request::ContextSource;

/// A text at an address is a Dockerfile, and those are not larger.
const MAX_TEXT: u64 = 16 << 20;

/// A context that is a folder now, for as long as the value lives.
#[derive(Debug)]
pub(crate) struct Located {
    folder: PathBuf,
    origin: Kept,
    /// When it was made, in seconds since 1970: a repository's commit, what the server of an archive says, or else the newest
    /// file of the archive (BuildKit dockerfile2llb, epoch.go). A folder has no such time.
    pub(crate) epoch: Option<u64>,
    /// What an address gave that is no archive.
    pub(crate) text: Option<Vec<u8>>,
    /// What an address stood for.
    pub(crate) material: Option<Material>,
}

/// What keeps a folder.
#[derive(Debug)]
enum Kept {
    User,
    Draft { _draft: Prepared },
    Checkout { _checkout: Checkout },
}

impl Located {
    /// The folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether it's the user's own, so that its ignore file counts and its files are likely to be there the next time. What was
    /// fetched or unpacked is taken whole.
    pub(crate) fn is_users(&self) -> bool {
        matches!(self.origin, Kept::User)
    }

    fn draft(draft: Prepared, epoch: Option<u64>, text: Option<Vec<u8>>) -> Self {
        Self { folder: draft.upper.clone(), origin: Kept::Draft { _draft: draft }, epoch, text, material: None }
    }
}

/// What fetching may use.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Access<'a> {
    /// What git sees of the process's environment.
    pub(crate) environment: &'a GitEnvironment,
    /// May hold credentials.
    pub(crate) grants: &'a Grants,
    /// What addresses stand for, where that is settled.
    pub(crate) pins: &'a Pins,
}

/// Makes a folder of `source`. `keep_git_dir` is for repositories that don't say.
pub(crate) fn locate(
    engine: &Engine,
    source: &ContextSource,
    access: Access<'_>,
    keep_git_dir: bool,
    task: Option<&Task>,
) -> Result<Located, ContextError> {
    match source {
        ContextSource::Folder(folder) => {
            Ok(Located { folder: folder.clone(), origin: Kept::User, epoch: None, text: None, material: None })
        }
        ContextSource::Empty => Ok(Located::draft(engine.store.layers().prepare(None)?, None, None)),
        ContextSource::Archive { start } => {
            let mut archive = Counted::new(Cursor::new(start.clone()).chain(io::stdin()), task, "transferring context:", None);
            let (draft, newest) = unpack(engine, &mut archive, "-")?;
            archive.finish();
            Ok(Located::draft(draft, newest, None))
        }
        ContextSource::Http(url) => {
            let begun = Cell::new(false);
            let progress = |done, total| {
                begun.set(true);
                task.into_iter().for_each(|task| task.status("downloading", done, total));
            };
            let fetched = http::fetch_pinned(url, &engine.store, None, access.grants, access.pins, &progress)?;
            if begun.get() {
                task.into_iter().for_each(|task| task.status_done("downloading", fetched.size, Some(fetched.size)));
            }
            let said = fetched.last_modified.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).map(|since| since.as_secs());
            let material = Some(Material::http(url, fetched.digest));
            if begins_as_archive(fetched.open()?) {
                let (draft, newest) = unpack(engine, fetched.open()?, &fetched.shown)?;
                return Ok(Located { material, ..Located::draft(draft, said.or(newest), None) });
            }
            let text = read_text(fetched.open()?).map_err(|cause| http::HttpError::Body { url: fetched.shown.clone(), cause })?;
            Ok(Located { material, ..Located::draft(engine.store.layers().prepare(None)?, said, Some(text)) })
        }
        ContextSource::Git(url) => {
            let Access { environment, grants, pins } = access;
            let origin = Origin::CommandLine;
            let setting = git::Setting {
                store: &engine.store,
                events: &engine.events,
                environment,
                cancel: &engine.cancel,
                origin,
                grants,
                pins,
            };
            let keep = keep_git_dir.then_some(true);
            let found = git::Fetched::find(url, None, keep, &setting)?;
            if let Some(task) = task {
                task.status_done(&format!("{} {}", found.shown(), found.commit()), 0, None);
            }
            let checkout = match task {
                Some(task) => found.check_out(task)?,
                None => found.check_out(&engine.events.start(format!("fetching {}", found.shown())))?,
            };
            let (folder, epoch) = (checkout.folder().to_owned(), checkout.time.try_into().ok());
            let material = Some(Material::git(url, found.commit()));
            Ok(Located { folder, origin: Kept::Checkout { _checkout: checkout }, epoch, text: None, material })
        }
    }
}

/// When what an address gave was made: what its server says, or else its newest file if it is an archive.
pub(crate) fn time_of(engine: &Engine, fetched: &http::Fetched) -> Result<Option<u64>, ContextError> {
    let said = fetched.last_modified.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).map(|since| since.as_secs());
    match said {
        None if begins_as_archive(fetched.open()?) => Ok(unpack(engine, fetched.open()?, &fetched.shown)?.1),
        said => Ok(said),
    }
}

fn read_text(file: File) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    file.take(MAX_TEXT + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_TEXT {
        return Err(io::Error::other("it is neither an archive nor a Dockerfile, which is at most 16 MiB"));
    }
    Ok(text)
}

/// Unpacks an archive into a folder of its own. In a context everything is root's, whoever owns it on disk.
fn unpack(engine: &Engine, archive: impl Read, shown: &str) -> Result<(Prepared, Option<u64>), ContextError> {
    let draft = engine.store.layers().prepare(None)?;
    let dir = RootDir::open(&draft.upper).map_err(ContextError::Open)?;
    let failed = |cause| ContextError::Upper { shown: shown.to_owned(), cause };
    let upper = UpperWriter::new(dir, View::empty(), WhiteoutStyle::default()).map_err(failed)?;
    let owner = Owner { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() };
    let newest = unpack_all(archive, &upper, owner).map_err(|cause| ContextError::Archive { shown: shown.to_owned(), cause })?;
    upper.finish().map_err(failed)?;
    Ok((draft, newest.and_then(|seconds| seconds.try_into().ok())))
}
