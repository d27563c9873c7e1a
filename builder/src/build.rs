//! Hides the walk of one build: two texts, a graph, its solution, an image with a name.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_frontend::ignore::PatternMatcher;
use kiln_frontend::{Diagnostic, LowerOptions, Lowered, Parsed, Source, lower, parse};
use kiln_oci::descriptor::Descriptor;
use kiln_oci::digest::Digest;
use kiln_oci::manifest::Raw;
use kiln_oci::platform::Platform;
use kiln_oci::reference::Reference;
use kiln_store::layer::compress::Compression;
use kiln_store::{ImageRecord, LayerRecord};

use crate::bases::{Missing, ResolvedBases};
use crate::context::{self, Context};
use crate::engine::Engine;
use crate::error::{Error, StepError};
use crate::event::Task;
use crate::export::pack;
use crate::image::{self, NewLayer};
use crate::request::{BuildRequest, ContextSource, DockerfileSource, Output};
use crate::solve::{LazyContext, Solved, Work, solve};
use crate::transfer;

/// What a build gave.
#[derive(Debug)]
pub struct BuildOutcome {
    /// The image's id: the digest of its configuration.
    pub image_id: Digest,
    /// Its manifest, when an output or a push needed one.
    pub manifest: Option<Descriptor>,
    /// The names that it got.
    pub names: Vec<Reference>,
    /// What the Dockerfile could do better.
    pub warnings: Vec<Diagnostic>,
    /// The Dockerfile, for the places of the warnings.
    pub source: Arc<Source>,
}

/// Builds what `request` says, to the end: named in the store, written to files, pushed.
pub fn build(engine: &Engine, request: &BuildRequest) -> Result<BuildOutcome, Error> {
    let (source, parsed, path) = load_definition(engine, request)?;
    let ignore = load_ignore(engine, request, path.as_deref())?;
    let (build, bases) = lower_all(engine, request, &source, &parsed)?;

    let now = humantime::format_rfc3339_nanos(request.clock).to_string();
    let lazy_context = LazyContext::new(|| open_context(engine, request, &ignore));
    let work = Work {
        engine,
        source: &source,
        graph: &build.graph,
        bases: &bases,
        context: &lazy_context,
        caching: &request.caching,
        shm_size: request.shm_size,
        limits: &request.limits,
        grants: &request.grants,
        now: &now,
        clock: request.clock,
    };
    let solved = match build.target {
        Some(target) => solve(&work, &[target])?.into_iter().next(),
        None => None,
    };
    if let Some(Err(cause)) = lazy_context.opened().map(Context::save_memo) {
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
    Ok(BuildOutcome { image_id, manifest, names: request.tags.clone(), warnings: build.warnings, source })
}

fn load_definition(engine: &Engine, request: &BuildRequest) -> Result<(Arc<Source>, Parsed, Option<PathBuf>), Error> {
    let name = match &request.dockerfile {
        DockerfileSource::Path(path) => path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
        DockerfileSource::Default | DockerfileSource::Bytes(_) => "Dockerfile".to_owned(),
    };
    let task = engine.events.start(format!("[internal] load build definition from {name}"));
    let folder = match &request.context {
        ContextSource::Folder(folder) => folder.as_path(),
        ContextSource::Empty => Path::new("/"),
    };
    let loaded = context::read_dockerfile(folder, &request.dockerfile);
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

fn load_ignore(engine: &Engine, request: &BuildRequest, dockerfile: Option<&Path>) -> Result<PatternMatcher, Error> {
    let ContextSource::Folder(folder) = &request.context else { return Ok(PatternMatcher::default()) };
    let task = engine.events.start("[internal] load .dockerignore");
    let loaded = context::read_ignore(folder, dockerfile);
    Ok(task.end_with(loaded)?.matcher)
}

/// Lowers, fetches the configurations that lowering asks for, and lowers again, until it has them all.
fn lower_all(
    engine: &Engine,
    request: &BuildRequest,
    source: &Arc<Source>,
    parsed: &Parsed,
) -> Result<(Box<kiln_frontend::Build>, ResolvedBases), Error> {
    let language = &request.language;
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
        ..LowerOptions::default()
    };
    let mut bases = ResolvedBases::default();
    loop {
        engine.check()?;
        match lower(parsed, source, &options, &bases.known) {
            Ok(Lowered::Build(build)) => return Ok((build, bases)),
            Ok(Lowered::Needs(requests)) => {
                bases.resolve(engine, &requests, request.caching.pull).map_err(|missing| {
                    let Missing { request: wanted, error } = *missing;
                    let cause = match error {
                        Error::Registry(error) => StepError::Registry(error),
                        Error::Store(error) => StepError::Store(error),
                        Error::Image(error) => StepError::Image(error),
                        other => return other,
                    };
                    Error::Step {
                        name: format!("[internal] load metadata for {}", wanted.reference),
                        location: Some((Arc::clone(source), wanted.span)),
                        meant: wanted.hint.clone(),
                        cause: Box::new(cause),
                    }
                })?;
            }
            Err(diagnostics) => return Err(Error::Dockerfile { source_text: Arc::clone(source), diagnostics }),
        }
    }
}

fn open_context(engine: &Engine, request: &BuildRequest, ignore: &PatternMatcher) -> Result<Context, Error> {
    let task = engine.events.start("[internal] load build context");
    let opened = match &request.context {
        ContextSource::Folder(folder) => {
            let whole = std::path::absolute(folder).unwrap_or_else(|_| folder.clone());
            Context::open(folder, ignore.clone(), Some(engine.store.memo_file(&whole)))
        }
        // The folder is gone again when this returns; its open descriptor is an empty context all the same.
        ContextSource::Empty => {
            let empty = tempfile::tempdir().map_err(|cause| Error::System { operation: "make an empty context", cause })?;
            Context::open(empty.path(), PatternMatcher::default(), None)
        }
    };
    Ok(task.end_with(opened)?)
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
    task.status("exporting layers", 0, None);
    let wants_blobs = request.push || !request.outputs.is_empty();
    let diff_ids = std::thread::scope(|scope| {
        // The name at the end waits until everything is on disk; what new layers hold can get there while they are packed.
        let is_new = layers.iter().any(|layer| layer.diff_id.is_none());
        let early = is_new.then(|| scope.spawn(|| engine.store.barrier()));
        let diff_ids = if wants_blobs {
            layers
                .iter()
                .map(|layer| Ok(pack::packed(engine, layer, Compression::Gzip, task)?.1))
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
        let packed = transfer::packed_image(engine, &mut record, Compression::Gzip, task)?;
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
