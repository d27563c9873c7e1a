//! Hides in which order steps are looked up and done, and on how many threads.
//!
//! First every definition key is computed, from the target's first input on; then records are looked up from the target back,
//! so that what a hit stands on is never asked for. What is left is done as its inputs arrive (`schedule`), and each step is
//! looked up once more by the content of its inputs before it runs.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime};

use kiln_frontend::Source;
use kiln_frontend::graph::{
    Checksum, ContextId, CopyFrom, CopyOp, CopySource, ExecOp, Graph, MountFrom, MountKind, Op, Vertex, VertexId,
};
use kiln_oci::path::ImagePath;
use kiln_runner::{Cancel, GroupLimits, Limit};
use kiln_store::descriptors::steps_at_once;
use kiln_store::layer::upper::UpperWriter;
use kiln_store::view::View;
use kiln_store::{CacheKey, CacheRecord, LayerId};

use crate::attest::witness::Materials;
use crate::bases::ResolvedBases;
use crate::cache_key::{Flavour, Identity, Inputs, memo_key, selection_definition, selection_key, step_key};
use crate::context::Context;
use crate::engine::Engine;
use crate::error::{Error, StepError};
use crate::event::{Outcome, Task};
use crate::grant::Grants;
use crate::ops::exec::{Remains, Shown};
use crate::ops::failed::{FailedStep, OnFailure};
use crate::ops::file::SourceTree;
use crate::ops::git::{self, GitEnvironment, Origin};
use crate::ops::settle::settle;
use crate::ops::{Fetched, exec, file, http, source};
use crate::pins::Pins;
use crate::remote_cache::import::step_record;
use crate::remote_cache::session::{SharedCaches, ToldStep};
use crate::request::Caching;

mod told;

/// Steps that run at once at the most. More would only wait for the disk and the processors.
const WORKERS: usize = 16;

/// A step's result.
#[derive(Debug, Clone)]
pub struct Solved {
    /// The topmost layer; `None` is the empty root.
    pub layer: Option<LayerId>,
    /// What its file tree is.
    pub identity: Identity,
}

/// What the steps of one build have in common.
#[derive(Debug)]
pub struct Work<'a> {
    /// The tools.
    pub engine: &'a Engine,
    /// The Dockerfile, for the places of errors.
    pub source: &'a Arc<Source>,
    /// What is to be done.
    pub graph: &'a Graph,
    /// The images it builds on.
    pub bases: &'a ResolvedBases,
    /// What COPY takes its files from.
    pub contexts: &'a Contexts<'a>,
    /// What git sees of the process's environment.
    pub git: &'a GitEnvironment,
    /// What names stand for, where that is settled.
    pub pins: &'a Pins,
    /// What was fetched, for whoever is to be told.
    pub materials: &'a Materials,
    /// Which cached results may be used.
    pub caching: &'a Caching,
    /// Where they are besides the store, and who else wants to know of the steps.
    pub shared: &'a SharedCaches,
    /// The size of `/dev/shm` in RUN.
    pub shm_size: Option<u64>,
    /// Limits of single processes in RUN.
    pub limits: &'a [Limit],
    /// Limits of all processes of a RUN together.
    pub group: &'a GroupLimits,
    /// Secrets and agents.
    pub grants: &'a Grants,
    /// What is to be done when a RUN fails.
    pub on_failure: &'a OnFailure,
    /// The build's clock, RFC 3339.
    pub now: &'a str,
    /// The build's clock.
    pub clock: std::time::SystemTime,
    /// Set when what is built beside this has failed, so that this is of no use any more.
    pub elsewhere: &'a AtomicBool,
}

/// The build context, opened when the first step wants it.
pub struct LazyContext<'a> {
    open: Box<dyn Fn() -> Result<Context, Error> + Send + Sync + 'a>,
    cell: OnceLock<Context>,
    opening: Mutex<()>,
}

impl std::fmt::Debug for LazyContext<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LazyContext")
    }
}

impl<'a> LazyContext<'a> {
    /// A context that `open` opens.
    pub fn new(open: impl Fn() -> Result<Context, Error> + Send + Sync + 'a) -> Self {
        Self { open: Box::new(open), cell: OnceLock::new(), opening: Mutex::new(()) }
    }

    /// The context.
    pub fn get(&self) -> Result<&Context, Error> {
        if let Some(context) = self.cell.get() {
            return Ok(context);
        }
        let _one = self.opening.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if self.cell.get().is_none() {
            let context = (self.open)()?;
            let _ = self.cell.set(context);
        }
        // It was set two lines ago, by this thread or by the one that held the lock before.
        self.cell.get().ok_or(Error::Interrupted)
    }

    /// The context, if any step wanted it.
    pub fn opened(&self) -> Option<&Context> {
        self.cell.get()
    }
}

/// All build contexts of a build.
#[derive(Debug)]
pub struct Contexts<'a> {
    /// The one without a name.
    pub main: LazyContext<'a>,
    /// Those with names, in the order that the frontend knows them by.
    pub named: Vec<LazyContext<'a>>,
}

impl Contexts<'_> {
    /// One of them.
    pub fn get(&self, id: ContextId) -> Result<&Context, Error> {
        match id {
            ContextId::Main => self.main.get(),
            // The frontend was told of as many as there are.
            ContextId::Named(index) => self.named.get(index).ok_or(Error::Interrupted)?.get(),
        }
    }

    /// Those that a step wanted.
    pub fn opened(&self) -> impl Iterator<Item = &Context> {
        std::iter::once(&self.main).chain(&self.named).filter_map(LazyContext::opened)
    }
}

/// What is known of a vertex before it is solved.
#[derive(Debug)]
struct Definition {
    /// Stands for the result in the definition keys of later steps.
    identity: Identity,
    /// `None` for images.
    key: Option<CacheKey>,
    /// What `ADD` fetched.
    fetched: Vec<Fetched>,
    /// The fingerprint of the files from the context, where the step takes any.
    selection: Option<[u8; 32]>,
    /// For each mount that shows files of the context: their fingerprint.
    mounts: Vec<Option<[u8; 32]>>,
    /// Whether this, or what it stands on, is to be made anew: then an old result of this definition says nothing, and only
    /// the content of its inputs can tell whether it hits.
    renewed: bool,
}

/// What the targets are.
#[derive(Debug)]
pub struct Solution {
    /// Their results, in the order they were asked for.
    pub solved: Vec<Solved>,
    /// The steps, for an image that carries them.
    pub told: Vec<ToldStep>,
}

/// Solves `targets`, in that order.
pub fn solve(work: &Work<'_>, targets: &[VertexId]) -> Result<Solution, Error> {
    let definitions = define(work)?;
    let in_result = told::in_result(work.graph, targets);
    let size = work.graph.vertices.len();
    let results: Vec<OnceLock<Solved>> = (0..size).map(|_| OnceLock::new()).collect();
    let mut failed = None;
    let mut schedule =
        crate::schedule::Schedule::plan(work.graph, targets.iter().copied(), |id| match known(work, &definitions, id) {
            Ok(Some(solved)) => results[id.0].set(solved).is_ok(),
            Ok(None) => false,
            Err(error) => {
                failed.get_or_insert(error);
                true
            }
        });
    if let Some(error) = failed {
        return Err(error);
    }
    for (index, vertex) in work.graph.vertices.iter().enumerate() {
        if !schedule.needs(VertexId(index)) {
            let outcome = if matches!(vertex.op, Op::Image(_)) { Outcome::Done } else { Outcome::Cached };
            work.engine.events.start(vertex.name.clone()).finish(outcome);
        }
    }
    if schedule.left() > 0 {
        run_all(work, &definitions, &results, &mut schedule, &in_result)?;
    }
    let told = told::tell(work, &definitions, &in_result)?;
    Ok(Solution { solved: targets.iter().filter_map(|id| results[id.0].get().cloned()).collect(), told })
}

fn run_all(
    work: &Work<'_>,
    definitions: &[Definition],
    results: &[OnceLock<Solved>],
    schedule: &mut crate::schedule::Schedule,
    in_result: &[bool],
) -> Result<(), Error> {
    let engine = work.engine;
    // When a step fails, those beside it end too; but that is not the same as a person's Ctrl-C.
    let stop = Cancel::new().map_err(|cause| Error::System { operation: "make an event descriptor", cause })?;
    let mut passed_on = 0;
    let failed: Mutex<Option<FailedStep>> = Mutex::new(None);
    let result = std::thread::scope(|scope| {
        let failed = &failed;
        let (sender, receiver) = channel();
        let mut failure: Option<Error> = None;
        let (mut running, workers) = (0, steps_at_once(WORKERS));
        loop {
            while failure.is_none() && running < workers {
                let Some(id) = schedule.take_ready() else { break };
                let (sender, stop) = (sender.clone(), &stop);
                running += 1;
                scope.spawn(move || {
                    let step = Step { work, definitions, results, stop, failed };
                    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| step.solve(id)));
                    // The receiver outlives the scope.
                    let _ = sender.send((id, outcome));
                });
            }
            if running == 0 {
                break;
            }
            let (id, outcome) = match receiver.recv_timeout(Duration::from_millis(20)) {
                Ok(message) => message,
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    while passed_on < engine.cancel.triggers() {
                        passed_on += 1;
                        stop.trigger();
                    }
                    if failure.is_none() && work.elsewhere.load(Ordering::Relaxed) {
                        failure = Some(Error::Interrupted);
                        stop.trigger();
                    }
                    continue;
                }
            };
            running -= 1;
            match outcome {
                Err(panic) => std::panic::resume_unwind(panic),
                Ok(Ok(solved)) => {
                    work.shared.done(solved.layer.as_ref(), in_result[id.0]);
                    if let Some(layer) = solved.layer.as_ref().filter(|_| in_result[id.0]) {
                        engine.early.offer(layer);
                    }
                    let _ = results[id.0].set(solved);
                    schedule.done(id);
                }
                Ok(Err(error)) => {
                    stop.trigger();
                    // The first error is the cause, those after it are mostly its echo.
                    failure.get_or_insert(error);
                }
            }
            if failure.is_none() && engine.cancel.is_triggered() {
                failure = Some(Error::Interrupted);
                stop.trigger();
            }
        }
        match failure {
            Some(_) if engine.cancel.is_triggered() => Err(Error::Interrupted),
            Some(error) => Err(error),
            None => Ok(()),
        }
    });
    // Only now, for the terminal is no place for two.
    if let Some(failed) = failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
        && !engine.cancel.is_triggered()
        // Nor for what another platform's failure ended.
        && !work.elsewhere.swap(true, Ordering::Relaxed)
    {
        failed.attend(engine, work.on_failure);
    }
    result
}

/// Computes all definition keys, inputs first.
fn define(work: &Work<'_>) -> Result<Vec<Definition>, Error> {
    let mut definitions: Vec<Definition> = Vec::with_capacity(work.graph.vertices.len());
    for vertex in &work.graph.vertices {
        let of = |input: Option<VertexId>| input.map_or_else(Identity::scratch, |id| definitions[id.0].identity);
        let mut fetched = Vec::new();
        let mut selection = None;
        let mut shown: Vec<Option<[u8; 32]>> = Vec::new();
        let mut mounts = Vec::new();
        let renewed = vertex.no_cache || vertex.op.inputs().iter().any(|id| definitions[id.0].renewed);
        match &vertex.op {
            Op::Image(op) => {
                let image = work.bases.image(&op.reference, &op.platform).ok_or(Error::Interrupted)?;
                let identity = image.identity;
                definitions.push(Definition { identity, key: None, fetched, selection, mounts: shown, renewed });
                continue;
            }
            Op::Copy(op) => {
                fetched = fetch(work, vertex, op)?;
                work.materials.saw(&fetched);
                selection = match op.from {
                    CopyFrom::Context(context) => Some(context_selection(work, vertex, context, op, &fetched)?),
                    CopyFrom::Vertex(input) => Some(selection_definition(of(input), op)),
                };
            }
            Op::Exec(op) => {
                for from in mount_sources(op) {
                    match from {
                        (MountFrom::Context(context), path) => {
                            let files = context_selection(work, vertex, context, &file::whole(path), &[])?;
                            shown.push(Some(files));
                            mounts.push(Identity(files));
                        }
                        (MountFrom::Vertex(input), path) => {
                            shown.push(None);
                            mounts.push(Identity(selection_definition(of(input), &file::whole(path))));
                        }
                    }
                }
            }
            Op::Context(op) => {
                selection = Some(context_selection(work, vertex, op.context, &file::whole(&ImagePath::root()), &[])?);
            }
            Op::Workdir(_) => {}
        }
        let inputs = Inputs { parent: of(vertex.op.parent()), mounts, selection, platform: &vertex.platform };
        let key = step_key(Flavour::Definition, &vertex.op, &inputs);
        let selection = match &vertex.op {
            Op::Copy(CopyOp { from: CopyFrom::Vertex(_), .. }) => None,
            _ => selection,
        };
        let identity = Identity::of_key(&key);
        definitions.push(Definition { identity, key: Some(key), fetched, selection, mounts: shown, renewed });
    }
    Ok(definitions)
}

/// What the bind mounts and the seeded cache mounts of a RUN show, in order.
fn mount_sources(op: &ExecOp) -> Vec<(MountFrom, &ImagePath)> {
    op.mounts
        .iter()
        .filter_map(|mount| match &mount.kind {
            MountKind::Bind(bind) => Some((bind.from, &bind.source)),
            MountKind::Cache(cache) => cache.from.map(|from| (from, &cache.source)),
            MountKind::Tmpfs { .. } | MountKind::Secret(_) | MountKind::Ssh(_) => None,
        })
        .collect()
}

fn context_selection(
    work: &Work<'_>,
    vertex: &Vertex,
    context: ContextId,
    op: &CopyOp,
    fetched: &[Fetched],
) -> Result<[u8; 32], Error> {
    let tree = SourceTree::Context(work.contexts.get(context)?);
    file::selection_key(op, &tree, fetched).map_err(|e| placed(work, vertex, e.into()))
}

fn fetch(work: &Work<'_>, vertex: &Vertex, op: &CopyOp) -> Result<Vec<Fetched>, Error> {
    let mut out = Vec::new();
    for source in &op.sources {
        match source {
            CopySource::Http(url) => {
                let task = work.engine.events.start(git::redact(url));
                let begun = Cell::new(false);
                let progress = |done, total| {
                    begun.set(true);
                    task.status("downloading", done, total);
                };
                let checksum = match &op.checksum {
                    Some(Checksum::Digest(digest)) => Some(digest),
                    _ => None,
                };
                let fetched = http::fetch_pinned(url, &work.engine.store, checksum, work.grants, work.pins, &progress);
                if let Some(fetched) = fetched.as_ref().ok().filter(|_| begun.get()) {
                    task.status_done("downloading", fetched.size, Some(fetched.size));
                }
                out.push(Fetched::File(task.end_with(fetched).map_err(|e| placed(work, vertex, e.into()))?));
            }
            CopySource::Git(url) => {
                let task = work.engine.events.start(git::redact(url));
                let checksum = match &op.checksum {
                    Some(Checksum::Commit(commit)) => Some(commit.as_str()),
                    _ => None,
                };
                let engine = work.engine;
                let setting = git::Setting {
                    store: &engine.store,
                    events: &engine.events,
                    environment: work.git,
                    cancel: &engine.cancel,
                    origin: Origin::Dockerfile,
                    grants: work.grants,
                    pins: work.pins,
                };
                let found = git::Fetched::find(url, checksum, op.keep_git_dir, &setting);
                engine.check()?;
                let found = task.end_with(found).map_err(|e| placed(work, vertex, e.into()))?;
                out.push(Fetched::Repository(Box::new(found)));
            }
            CopySource::Path(_) | CopySource::Inline { .. } => {}
        }
    }
    Ok(out)
}

/// The result of a vertex that needs no work: an image, or a step that has a record.
fn known(work: &Work<'_>, definitions: &[Definition], id: VertexId) -> Result<Option<Solved>, Error> {
    let vertex = &work.graph.vertices[id.0];
    if let Op::Image(op) = &vertex.op {
        let image = work.bases.image(&op.reference, &op.platform).ok_or(Error::Interrupted)?;
        return Ok(Some(Solved { layer: image.layer.clone(), identity: image.identity }));
    }
    let definition = &definitions[id.0];
    match definition.key {
        Some(key) if may_use_cache(work, vertex) && !definition.renewed => lookup(work, &key),
        _ => Ok(None),
    }
}

fn may_use_cache(work: &Work<'_>, vertex: &Vertex) -> bool {
    !work.caching.disabled && !vertex.no_cache
}

fn lookup(work: &Work<'_>, key: &CacheKey) -> Result<Option<Solved>, Error> {
    let record = work.shared.find(work.engine, key)?;
    Ok(record.map(|record| Solved { layer: record.layer, identity: Identity(record.identity) }))
}

/// One vertex being solved on a thread of its own.
struct Step<'a> {
    work: &'a Work<'a>,
    definitions: &'a [Definition],
    results: &'a [OnceLock<Solved>],
    stop: &'a Cancel,
    failed: &'a Mutex<Option<FailedStep>>,
}

impl Step<'_> {
    fn solve(&self, id: VertexId) -> Result<Solved, Error> {
        let vertex = &self.work.graph.vertices[id.0];
        let task = self.work.engine.events.start(vertex.name.clone());
        match self.solve_in(id, vertex, &task).map_err(|error| self.place(vertex, error)) {
            Ok((solved, outcome)) => {
                task.finish(outcome);
                Ok(solved)
            }
            // What a cache promised and doesn't have is no failure: the step waits for those before it, which are done again.
            Err(error @ (Error::Interrupted | Error::CachedLayerLost { .. })) => {
                task.finish(Outcome::Canceled);
                Err(error)
            }
            Err(error) => {
                let text = match &error {
                    Error::Step { cause, .. } => cause.to_string(),
                    other => other.to_string(),
                };
                task.finish(Outcome::Failed(text));
                Err(error)
            }
        }
    }

    fn solve_in(&self, id: VertexId, vertex: &Vertex, task: &Task) -> Result<(Solved, Outcome), Error> {
        let engine = self.work.engine;
        if self.stop.is_triggered() {
            return Err(Error::Interrupted);
        }
        let definition = &self.definitions[id.0];
        let parent = self.input(vertex.op.parent());
        let inputs = self.inputs(vertex, definition, &parent, task)?;
        let key = step_key(Flavour::Content, &vertex.op, &inputs);
        let remember = |solved: &Solved| -> Result<(), Error> {
            let record = step_record(solved.layer.clone(), solved.identity.0, Some(&key));
            engine.store.cache().put(&key, &record)?;
            if let Some(key) = &definition.key {
                engine.store.cache().put(key, &record)?;
            }
            Ok(())
        };
        let use_cache = may_use_cache(self.work, vertex);
        if use_cache && let Some(solved) = lookup(self.work, &key)? {
            remember(&solved)?;
            return Ok((solved, Outcome::Cached));
        }
        // Another process may be at the same step; then its result is ours.
        let _lock = if use_cache { Some(engine.store.cache().lock(&key)?) } else { None };
        if use_cache && let Some(solved) = lookup(self.work, &key)? {
            remember(&solved)?;
            return Ok((solved, Outcome::Cached));
        }
        let solved = match &vertex.op {
            Op::Exec(op) => self.exec(op, vertex, definition, &parent, task)?,
            Op::Copy(op) => self.copy(op, definition, &parent, &key, task)?,
            Op::Workdir(op) => {
                let layer = self.change(op.parent.is_none(), &parent, task, |view, upper| {
                    Ok(file::workdir(op, view, upper, self.work.clock)?)
                })?;
                Solved { layer: Some(layer), identity: Identity::of_key(&key) }
            }
            Op::Context(op) => {
                let files = definition.selection.unwrap_or_default();
                let layer = self.context_layer(op.context, &ImagePath::root(), files, task)?;
                Solved { layer: Some(layer), identity: Identity::of_key(&key) }
            }
            Op::Image(_) => parent,
        };
        remember(&solved)?;
        Ok((solved, Outcome::Done))
    }

    fn input(&self, id: Option<VertexId>) -> Solved {
        let solved = id.and_then(|id| self.results[id.0].get().cloned());
        solved.unwrap_or_else(|| Solved { layer: None, identity: Identity::scratch() })
    }

    /// What stands for the inputs in the content key.
    fn inputs<'a>(&self, vertex: &'a Vertex, definition: &Definition, parent: &Solved, task: &Task) -> Result<Inputs<'a>, Error> {
        let mut inputs =
            Inputs { parent: parent.identity, mounts: Vec::new(), selection: definition.selection, platform: &vertex.platform };
        match &vertex.op {
            Op::Copy(op) => {
                if let CopyFrom::Vertex(input) = op.from {
                    inputs.selection = Some(self.stage_selection(op, &self.input(input), &definition.fetched, task)?);
                }
            }
            Op::Exec(op) => {
                for ((from, path), files) in mount_sources(op).into_iter().zip(&definition.mounts) {
                    inputs.mounts.push(match (from, files) {
                        // The whole of a stage need not be looked at to be known.
                        (MountFrom::Vertex(input), _) if path.is_root() => self.input(input).identity,
                        (MountFrom::Vertex(input), _) => {
                            Identity(self.stage_selection(&file::whole(path), &self.input(input), &[], task)?)
                        }
                        (MountFrom::Context(_), files) => Identity(files.unwrap_or_default()),
                    });
                }
            }
            Op::Image(_) | Op::Context(_) | Op::Workdir(_) => {}
        }
        Ok(inputs)
    }

    /// The fingerprint of what a COPY takes from a stage, remembered by the stage's identity so that the stage need not even be
    /// unpacked the next time.
    fn stage_selection(&self, op: &CopyOp, source: &Solved, fetched: &[Fetched], task: &Task) -> Result<[u8; 32], Error> {
        let cache = self.work.engine.store.cache();
        let key = selection_key(source.identity, op);
        if let Some(known) = self.work.shared.memo(self.work.engine, &key)? {
            return Ok(known);
        }
        let view = self.view(source.layer.as_ref(), task)?;
        let selection = file::selection_key(op, &SourceTree::View(&view), fetched)?;
        cache.put(&key, &CacheRecord { layer: None, identity: selection, blobs: Vec::new(), data: serde_json::Value::Null })?;
        Ok(selection)
    }

    fn view(&self, layer: Option<&LayerId>, task: &Task) -> Result<View, Error> {
        source::materialise(self.work.engine, layer, task)?;
        let layers = self.work.engine.store.layers();
        let dirs = match layer {
            Some(layer) => layers.lowers(layer)?,
            None => Vec::new(),
        };
        Ok(self.work.engine.store.view(dirs)?)
    }

    fn exec(&self, op: &ExecOp, vertex: &Vertex, definition: &Definition, parent: &Solved, task: &Task) -> Result<Solved, Error> {
        let engine = self.work.engine;
        source::materialise(engine, parent.layer.as_ref(), task)?;
        let mut mounts = Vec::new();
        for ((from, path), files) in mount_sources(op).into_iter().zip(&definition.mounts) {
            mounts.push(match from {
                MountFrom::Context(context) => {
                    let files = files.unwrap_or_default();
                    Shown { layer: Some(self.context_layer(context, path, files, task)?), identity: Identity(files) }
                }
                MountFrom::Vertex(input) => {
                    let Solved { layer, identity } = self.input(input);
                    source::materialise(engine, layer.as_ref(), task)?;
                    Shown { layer, identity }
                }
            });
        }
        let mut prepared = engine.prepare(parent.layer.as_ref())?;
        let (platform, name) = (&vertex.platform, vertex.name.as_str());
        let setting = exec::Setting {
            platform,
            shm_size: self.work.shm_size,
            limits: self.work.limits,
            group: self.work.group,
            grants: self.work.grants,
            clock: self.work.clock,
            cancel: self.stop,
            mounts,
        };
        let since = file::timestamp(SystemTime::now());
        let mut remains = None;
        let done = exec::exec(engine, op, &prepared, &setting, task, &mut remains);
        if let (Err(error), Some(Remains { spec, held })) = (&done, remains)
            && self.work.on_failure.is_some()
        {
            let failed = FailedStep { name: name.to_owned(), why: error.to_string(), spec, _held: held, prepared };
            // The first one is the cause.
            self.failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(failed);
            done?;
            return Err(Error::Interrupted);
        }
        done?;
        prepared.collect()?;
        let upper = engine.store.tree(&prepared.upper)?;
        let settled = settle(&upper, &engine.store.view(&prepared.lowers)?, since, engine.store.form().whiteouts)?;
        engine.early.wrote(settled.bytes);
        let identity = Identity::layer(parent.identity, settled.fingerprint);
        prepared.created = Some(self.work.now.to_owned());
        let layer = prepared.commit()?;
        Ok(Solved { layer: Some(layer), identity })
    }

    /// The files of a context below `path` as a layer, for bind mounts and stages: owned by root, without what is ignored.
    fn context_layer(&self, context: ContextId, path: &ImagePath, files: [u8; 32], task: &Task) -> Result<LayerId, Error> {
        let cache = self.work.engine.store.cache();
        let key = memo_key("context", &format!("{path} {}", kiln_oci::digest::Digest::from_bytes(files).hex()));
        let _lock = cache.lock(&key)?;
        if let Some(layer) = cache.get(&key)?.and_then(|record| record.layer) {
            return Ok(layer);
        }
        let op = file::whole(path);
        let scratch = Solved { layer: None, identity: Identity::scratch() };
        let context = self.work.contexts.get(context)?;
        let layer = self.change(true, &scratch, task, |view, upper| {
            let tree = SourceTree::Context(context);
            file::copy(&op, &tree, view, upper, &[], self.work.clock, &mut |text| task.warn(text))?;
            Ok(())
        })?;
        let record =
            CacheRecord { layer: Some(layer.clone()), identity: files, blobs: Vec::new(), data: serde_json::Value::Null };
        cache.put(&key, &record)?;
        Ok(layer)
    }

    fn copy(&self, op: &CopyOp, definition: &Definition, parent: &Solved, key: &CacheKey, task: &Task) -> Result<Solved, Error> {
        // What --link makes doesn't depend on what it lands on, not even on symbolic links there.
        let layer = self.change(op.parent.is_none() || op.link, parent, task, |view, upper| {
            let mut warn = |text: String| task.warn(text);
            let copied = match op.from {
                CopyFrom::Context(context) => {
                    let tree = SourceTree::Context(self.work.contexts.get(context)?);
                    file::copy(op, &tree, view, upper, &definition.fetched, self.work.clock, &mut warn)?
                }
                CopyFrom::Vertex(input) => {
                    let source = self.view(self.input(input).layer.as_ref(), task)?;
                    let tree = SourceTree::View(&source);
                    file::copy(op, &tree, view, upper, &definition.fetched, self.work.clock, &mut warn)?
                }
            };
            self.work.engine.early.wrote(copied.on_disk());
            Ok(())
        })?;
        Ok(Solved { layer: Some(layer), identity: Identity::of_key(key) })
    }

    /// Makes a layer above `parent` by writing files; `apart`, as if there were no parent, which then need not be unpacked.
    fn change(
        &self,
        apart: bool,
        parent: &Solved,
        task: &Task,
        write: impl FnOnce(&View, &mut UpperWriter) -> Result<(), Error>,
    ) -> Result<LayerId, Error> {
        let layers = self.work.engine.store.layers();
        let (view, mut prepared) = if apart {
            (View::empty(), layers.prepare_apart(parent.layer.as_ref())?)
        } else {
            (self.view(parent.layer.as_ref(), task)?, layers.prepare(parent.layer.as_ref())?)
        };
        let mut upper = self.work.engine.store.writer(&prepared.upper, view.clone())?;
        write(&view, &mut upper)?;
        upper.finish()?;
        prepared.created = Some(self.work.now.to_owned());
        Ok(prepared.commit()?)
    }

    fn place(&self, vertex: &Vertex, error: Error) -> Error {
        match error {
            Error::Unplaced(cause) => placed(self.work, vertex, *cause),
            Error::Store(error) => placed(self.work, vertex, StepError::Store(error)),
            Error::Registry(error) => placed(self.work, vertex, StepError::Registry(error)),
            other => other,
        }
    }
}

fn placed(work: &Work<'_>, vertex: &Vertex, cause: StepError) -> Error {
    let location = vertex.span.map(|span| (Arc::clone(work.source), span));
    Error::Step { name: vertex.name.clone(), location, meant: None, cause: Box::new(cause) }
}
