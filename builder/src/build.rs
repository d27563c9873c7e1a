//! Hides the walk of one build: two texts, a graph, its solution, an image with a name.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use kiln_frontend::ignore::PatternMatcher;
use kiln_frontend::{Diagnostic, LowerOptions, Lowered, NamedContext, NamedKind, Parsed, Source, lower, parse};
use kiln_oci::descriptor::Descriptor;
use kiln_oci::digest::Digest;
use kiln_oci::manifest::Raw;
use kiln_oci::platform::Platform;
use kiln_oci::reference::Reference;
use kiln_store::{ImageRecord, LayerRecord};

use crate::bases::{Missing, ResolvedBases};
use crate::context::source::{self, Access, Located};
use crate::context::{self, Context, ContextError};
use crate::engine::Engine;
use crate::error::{Error, StepError};
use crate::event::Task;
use crate::export::form::Form;
use crate::export::layout::{self, Layouts};
use crate::export::pack;
use crate::export::verify::verify_layers;
use crate::image::{self, NewLayer};
use crate::ops::http;
use crate::request::{BuildRequest, ContextSource, DockerfileSource, NamedSource, Output};
use crate::solve::{Contexts, LazyContext, Solved, Work, solve};
use crate::transfer;

/// The build argument that keeps `.git` in a context that is a repository (Docker, "Keep git directory").
const KEEP_GIT_DIR: &str = "BUILDKIT_CONTEXT_KEEP_GIT_DIR";

/// What a build gave.
#[derive(Debug)]
pub struct BuildOutcome {
    /// In which mode commands were run, or would have been.
    pub sandbox: String,
    /// The image's id: the digest of its configuration.
    pub image_id: Digest,
    /// Its manifest, when an output or a push needed one.
    pub manifest: Option<Descriptor>,
    /// The names that it got.
    pub names: Vec<Reference>,
}

/// Which part of a Dockerfile is lowered, and beside what.
pub(crate) struct Scope {
    /// Every stage, not only those that the target needs.
    pub all_stages: bool,
    /// The main context's ignore file.
    pub ignore: PatternMatcher,
    /// When the main context was made, in seconds since 1970.
    pub context_epoch: Option<u64>,
}

/// Why a Dockerfile can't be lowered.
pub(crate) struct Rejected {
    /// Why.
    pub error: Error,
    /// What the build checks said before.
    pub warnings: Vec<Diagnostic>,
}

impl Rejected {
    /// Says what the checks found; the error is left.
    pub(crate) fn tell(self, engine: &Engine, source: &Arc<Source>) -> Error {
        engine.events.lints(source, self.warnings);
        self.error
    }
}

impl From<Error> for Rejected {
    fn from(error: Error) -> Self {
        Rejected { error, warnings: Vec::new() }
    }
}

/// Builds what `request` says, to the end: named in the store, written to files, pushed.
pub fn build(engine: &Engine, request: &BuildRequest) -> Result<BuildOutcome, Error> {
    if *engine.mode() != kiln_runner::Mode::Root {
        engine.events.start(format!("[internal] sandbox: {}", engine.mode())).done();
    }
    let main = locate_main(engine, request)?;
    let (source, parsed, path) = load_definition(engine, request, &main)?;
    let ignore = load_main_ignore(engine, &main, path.as_deref())?;
    let scope = Scope { all_stages: false, ignore: ignore.clone(), context_epoch: main.epoch };
    let lowered = lower_all(engine, request, &source, &parsed, scope);
    let (mut build, bases) = lowered.map_err(|rejected| rejected.tell(engine, &source))?;
    engine.events.lints(&source, std::mem::take(&mut build.warnings));

    let clock = build.epoch.map_or(request.clock, |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
    let now = humantime::format_rfc3339(clock).to_string();
    if build.epoch.is_some() {
        // Also of what a cache made at another time.
        build.image.history.iter_mut().for_each(|entry| entry.created = Some(now.clone()));
    }
    let located: Vec<OnceLock<Located>> = request.named_contexts.iter().map(|_| OnceLock::new()).collect();
    let named = request
        .named_contexts
        .iter()
        .zip(&located)
        .map(|(context, located)| LazyContext::new(move || open_named(engine, request, context, located)));
    let contexts = Contexts {
        main: LazyContext::new(|| {
            let task = engine.events.start("[internal] load build context");
            Ok(task.end_with(open_context(engine, &main, &ignore))?)
        }),
        named: named.collect(),
    };
    let work = Work {
        engine,
        source: &source,
        graph: &build.graph,
        bases: &bases,
        contexts: &contexts,
        git: &request.git,
        caching: &request.caching,
        shm_size: request.shm_size,
        limits: &request.limits,
        group: &request.group,
        grants: &request.grants,
        on_failure: &request.on_failure,
        now: &now,
        clock,
    };
    for flag in lacking(engine, request) {
        engine.events.warn(format!("`{flag}` is not enforced: this machine has no control group that kiln could set it for"));
    }
    let solved = match build.target {
        Some(target) => solve(&work, &[target])?.into_iter().next(),
        None => None,
    };
    for cause in contexts.opened().filter_map(|context| context.save_memo().err()) {
        engine.events.warn(format!("what the context's files say could not be remembered: {cause}"));
    }
    engine.check()?;

    let task = engine.events.start("exporting to image");
    let exported = export(engine, request, &build.image, solved, &now, &task);
    let (image_id, manifest) = task.end_with(exported)?;
    let manifest = match request.push {
        true => push_all(engine, request)?.or(manifest),
        false => manifest,
    };
    Ok(BuildOutcome { sandbox: engine.mode().name().to_owned(), image_id, manifest, names: request.tags.clone() })
}

/// Makes a folder of the build context.
pub(crate) fn locate_main(engine: &Engine, request: &BuildRequest) -> Result<Located, Error> {
    locate(engine, request, &request.context, "[internal] load remote build context")
}

/// Reads the ignore file of the build context.
pub(crate) fn load_main_ignore(engine: &Engine, main: &Located, dockerfile: Option<&Path>) -> Result<PatternMatcher, Error> {
    match main.is_users() {
        true => load_ignore(engine, "[internal] load .dockerignore", main.folder(), dockerfile),
        false => Ok(PatternMatcher::default()),
    }
}

/// Makes a folder of a context, which takes a while unless it's one.
fn locate(engine: &Engine, request: &BuildRequest, source: &ContextSource, name: &str) -> Result<Located, Error> {
    let task = match source {
        ContextSource::Folder(_) | ContextSource::Empty => None,
        _ => Some(engine.events.start(name)),
    };
    let keep = request.language.build_args.iter().rev().find(|(key, _)| key == KEEP_GIT_DIR);
    let keep = keep.is_some_and(|(_, value)| matches!(value.as_str(), "1" | "true"));
    let located = source::locate(engine, source, access(request), keep, task.as_ref());
    if located.is_err() {
        engine.check()?;
    }
    Ok(match task {
        Some(task) => task.end_with(located)?,
        None => located?,
    })
}

/// What of the limits that were asked for this machine can't enforce.
fn lacking(engine: &Engine, request: &BuildRequest) -> Vec<&'static str> {
    match request.group == kiln_runner::GroupLimits::default() {
        true => Vec::new(),
        false => engine.host().lacks(&request.group),
    }
}

fn access(request: &BuildRequest) -> Access<'_> {
    Access { environment: &request.git, grants: &request.grants }
}

/// Opens a named context when a step first asks for it; `located` keeps it until the build is over.
fn open_named(
    engine: &Engine,
    request: &BuildRequest,
    (name, source): &(String, NamedSource),
    located: &OnceLock<Located>,
) -> Result<Context, Error> {
    // Images are no files: the frontend was told so.
    let NamedSource::Files(source) = source else { return Err(Error::Interrupted) };
    let mut found = locate(engine, request, source, &format!("[context {name}] load from client"))?;
    let ignore = match found.is_users() {
        true => load_ignore(engine, &format!("[context {name}] load .dockerignore"), found.folder(), None)?,
        false => PatternMatcher::default(),
    };
    if let (Some(text), ContextSource::Http(url)) = (found.text.take(), source) {
        let file = found.folder().join(OsStr::from_bytes(&http::name_of_address(url)));
        std::fs::write(&file, text).map_err(Error::output(&file))?;
    }
    let task = engine.events.start(format!("[context {name}] load build context"));
    let context = task.end_with(open_context(engine, &found, &ignore))?;
    let _ = located.set(found);
    Ok(context)
}

/// Reads and parses the Dockerfile.
pub(crate) fn load_definition(
    engine: &Engine,
    request: &BuildRequest,
    main: &Located,
) -> Result<(Arc<Source>, Parsed, Option<PathBuf>), Error> {
    let name = match &request.dockerfile {
        DockerfileSource::Path(path) | DockerfileSource::InContext(path) => {
            path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
        }
        DockerfileSource::Default | DockerfileSource::Bytes(_) | DockerfileSource::Http(_) => "Dockerfile".to_owned(),
    };
    let task = engine.events.start(format!("[internal] load build definition from {name}"));
    let loaded = match (&request.dockerfile, &main.text) {
        (DockerfileSource::Http(url), _) => {
            source::locate(engine, &ContextSource::Http(url.clone()), access(request), false, Some(&task)).and_then(|found| {
                let nothing = || ContextError::NoDockerfile { dir: crate::ops::git::redact(url).into() };
                context::read_dockerfile(main.folder(), &DockerfileSource::Bytes(found.text.ok_or_else(nothing)?))
            })
        }
        (DockerfileSource::Default, Some(text)) => {
            context::read_dockerfile(main.folder(), &DockerfileSource::Bytes(text.clone()))
        }
        (source, _) => context::read_dockerfile(main.folder(), source),
    };
    if let Ok(text) = &loaded {
        task.status_done("transferring dockerfile:", text.bytes.len() as u64, None);
    }
    let text = task.end_with(loaded)?;
    let source = match Source::new(&text.name, text.bytes) {
        Ok(source) => Arc::new(source),
        Err(diagnostic) => {
            let source_text = Arc::new(Source::from_text(&text.name, String::new()));
            return Err(Error::Dockerfile { source_text, diagnostics: vec![diagnostic] });
        }
    };
    let parsed = parse(&source);
    Ok((source, parsed, text.path))
}

fn load_ignore(engine: &Engine, name: &str, folder: &Path, dockerfile: Option<&Path>) -> Result<PatternMatcher, Error> {
    let task = engine.events.start(name);
    let loaded = context::read_ignore(folder, dockerfile);
    Ok(task.end_with(loaded)?.matcher)
}

/// Lowers, fetches the configurations that lowering asks for, and lowers again, until it has them all.
pub(crate) fn lower_all(
    engine: &Engine,
    request: &BuildRequest,
    source: &Arc<Source>,
    parsed: &Parsed,
    scope: Scope,
) -> Result<(Box<kiln_frontend::Build>, ResolvedBases), Rejected> {
    let language = &request.language;
    let mut bases = ResolvedBases::default();
    let options = LowerOptions {
        build_args: language.build_args.clone(),
        target: language.target.clone(),
        labels: language.labels.clone(),
        build_platform: Platform::host(),
        target_platform: language.platform.clone(),
        proxy_args: language.proxy_args.clone(),
        network: language.network,
        no_cache_filter: request.caching.disabled_stages.clone(),
        extra_hosts: request.extra_hosts.clone(),
        allow_insecure: request.grants.insecure,
        contexts: named_contexts(request, &mut bases.layouts)?,
        all_stages: scope.all_stages,
        ignore: Some(scope.ignore),
        context_epoch: scope.context_epoch,
        ..LowerOptions::default()
    };
    loop {
        engine.check()?;
        match lower(parsed, source, &options, &bases.known) {
            Ok(Lowered::Build(build)) => return Ok((build, bases)),
            Ok(Lowered::Needs { images, warnings }) => {
                bases.resolve(engine, &images, request.caching.pull).map_err(|missing| {
                    let Missing { request: wanted, error } = *missing;
                    let cause = match error {
                        Error::Registry(error) => StepError::Registry(error),
                        Error::Store(error) => StepError::Store(error),
                        Error::Image(error) => StepError::Image(error),
                        other => return Rejected { error: other, warnings: Vec::new() },
                    };
                    let error = Error::Step {
                        name: format!("[internal] load metadata for {}", wanted.reference),
                        location: Some((Arc::clone(source), wanted.span)),
                        meant: wanted.hint.clone(),
                        cause: Box::new(cause),
                    };
                    Rejected { error, warnings }
                })?;
            }
            Err(found) => {
                let (diagnostics, warnings) = found.into_iter().partition(Diagnostic::is_error);
                return Err(Rejected { error: Error::Dockerfile { source_text: Arc::clone(source), diagnostics }, warnings });
            }
        }
    }
}

/// What the frontend needs to know of the named contexts. Images in layouts are pinned now: their digests name them.
fn named_contexts(request: &BuildRequest, layouts: &mut Layouts) -> Result<Vec<NamedContext>, Error> {
    let mut out = Vec::new();
    for (name, source) in &request.named_contexts {
        let kind = match source {
            NamedSource::Files(_) => NamedKind::Files,
            NamedSource::Image(reference) => NamedKind::Image(reference.clone()),
            NamedSource::Layout { folder, image } => {
                let pinned = layout::pin(folder, image)?;
                layouts.insert(pinned, folder.clone());
                let named = Reference::parse(name).map_err(Error::internal("name an image"))?;
                NamedKind::Image(named.with_digest(pinned))
            }
        };
        out.push(NamedContext { name: name.clone(), kind });
    }
    Ok(out)
}

fn open_context(engine: &Engine, located: &Located, ignore: &PatternMatcher) -> Result<Context, ContextError> {
    let folder = located.folder();
    let memo = located.is_users().then(|| {
        let whole = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
        engine.store.memo_file(&whole)
    });
    Context::open(folder, ignore.clone(), memo)
}

fn export(
    engine: &Engine,
    request: &BuildRequest,
    template: &kiln_frontend::ImageTemplate,
    solved: Option<Solved>,
    now: &str,
    task: &Task,
) -> Result<(Digest, Option<Descriptor>), Error> {
    let top = solved.and_then(|solved| solved.layer);
    let layers: Vec<LayerRecord> = match &top {
        Some(top) => engine.store.layers().chain(top)?,
        None => Vec::new(),
    };
    if request.verify_layers {
        verify_layers(engine, &layers, task)?;
    }
    task.status("exporting layers", 0, None);
    // A manifest is the only place where annotations can be.
    let wants_blobs = request.push || !request.outputs.is_empty() || !request.annotations.is_empty();
    let diff_ids = std::thread::scope(|scope| {
        // The name at the end waits until everything is on disk; what new layers hold can get there while they are packed.
        let is_new = layers.iter().any(|layer| layer.diff_id.is_none());
        let early = is_new.then(|| scope.spawn(|| engine.store.barrier()));
        let diff_ids = if wants_blobs {
            layers
                .iter()
                .map(|layer| Ok(pack::packed(engine, layer, &Form::DEFAULT, false, task)?.diff_id))
                .collect::<Result<Vec<_>, Error>>()
        } else {
            pack::diff_ids(engine, &layers)
        };
        // The kernel tells of a failed write only once, so this answer counts.
        if let Some(Ok(synced)) = early.map(std::thread::ScopedJoinHandle::join) {
            synced?;
        }
        diff_ids
    })?;
    task.status_done("exporting layers", 0, None);
    let base = template.config.rootfs.diff_ids.len();
    let new: Vec<NewLayer> = diff_ids
        .iter()
        .zip(&layers)
        .skip(base)
        .map(|(diff_id, layer)| NewLayer { diff_id: *diff_id, created: layer.created.clone().unwrap_or_else(|| now.to_owned()) })
        .collect();
    let config = Raw::write(image::complete(template, &new, now)).map_err(Error::internal("write the image configuration"))?;
    let image_id = engine.store.blobs().put_bytes(config.bytes())?;
    let mut record = ImageRecord {
        name: None,
        config: image_id,
        layers: layers.iter().map(|layer| layer.id.clone()).collect(),
        manifest: None,
        blobs: Vec::new(),
        created: config.value().created.clone(),
        platform: Some(config.value().platform()),
    };
    let mut manifest = None;
    if wants_blobs {
        let packed = transfer::packed_image(engine, &mut record, &request.annotations, &Form::DEFAULT, task)?;
        manifest = Some(packed.descriptor.clone());
        for output in &request.outputs {
            write_output(engine, request, output, &packed, task)?;
        }
    }
    task.status_done(&format!("writing image {image_id}"), 0, None);
    if request.tags.is_empty() {
        engine.store.images().set(&record)?;
    }
    for name in &request.tags {
        record.name = Some(name.clone());
        engine.store.images().set(&record)?;
        task.status_done(&format!("naming to {name}"), 0, None);
    }
    Ok((image_id, manifest))
}

fn write_output(
    engine: &Engine,
    request: &BuildRequest,
    output: &Output,
    packed: &transfer::PackedImage,
    task: &Task,
) -> Result<(), Error> {
    let images = [crate::export::archive::Member { names: request.tags.clone(), image: packed }];
    crate::export::archive::write(engine, &images, output.format, output.dest.as_deref(), task)
}

fn push_all(engine: &Engine, request: &BuildRequest) -> Result<Option<Descriptor>, Error> {
    let mut last = None;
    for name in &request.tags {
        let task = engine.events.start(format!("pushing {name}"));
        let pushed = transfer::push_in(engine, name, &task);
        last = Some(task.end_with(pushed)?);
    }
    Ok(last)
}
