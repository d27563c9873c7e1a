//! Hides the walk of one build: two texts, a graph, its solution, an image with a name.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use kiln_frontend::ignore::PatternMatcher;
use kiln_frontend::{Diagnostic, LowerOptions, Lowered, NamedContext, NamedKind, Parsed, Source, lower, parse};
use kiln_oci::descriptor::Descriptor;
use kiln_oci::digest::Digest;
use kiln_oci::platform::Platform;
use kiln_oci::reference::Reference;

use crate::attest::witness::{self, Materials, Seen, Witness};
use crate::bases::{Missing, ResolvedBases};
use crate::context::source::{self, Access, Located};
use crate::context::{self, Context, ContextError};
use crate::engine::Engine;
use crate::epoch;
use crate::error::{Error, StepError};
use crate::export::assemble::Built;
use crate::export::daemon;
use crate::export::early::Wish;
use crate::export::form::Form;
use crate::export::layout::{self, Layouts};
use crate::export::verify::verify_layers;
use crate::export::write;
use crate::ops::http;
use crate::pins::{Pins, few};
use crate::remote_cache::mounts;
use crate::remote_cache::session::{Inline, SharedCaches};
use crate::request::{BuildRequest, ContextSource, DockerfileSource, NamedSource, Output};
use crate::solve::{Contexts, LazyContext, Solution, Work, solve};

/// The build argument that keeps `.git` in a context that is a repository (Docker, "Keep git directory").
const KEEP_GIT_DIR: &str = "BUILDKIT_CONTEXT_KEEP_GIT_DIR";

/// What a build gave.
#[derive(Debug)]
pub struct BuildOutcome {
    /// In which mode commands were run, or would have been.
    pub sandbox: String,
    /// The digest of the configuration; `None` when there are several images, or none.
    pub config: Option<Digest>,
    /// The manifest or index, when an output needed one.
    pub descriptor: Option<Descriptor>,
    /// The names that the image got.
    pub names: Vec<String>,
    /// How each platform's image was built, where somebody wants to know.
    pub provenance: Vec<(Platform, serde_json::Value)>,
}

impl BuildOutcome {
    /// What BuildKit's clients call the image's id: the digest of its configuration, or else that of its index.
    pub fn image_id(&self) -> Option<Digest> {
        self.config.or(self.descriptor.as_ref().map(|descriptor| descriptor.digest))
    }
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

impl From<Error> for Box<Rejected> {
    fn from(error: Error) -> Self {
        Box::new(Rejected { error, warnings: Vec::new() })
    }
}

/// What every platform of a build is made of.
struct Plan<'a> {
    engine: &'a Engine,
    request: &'a BuildRequest,
    source: &'a Arc<Source>,
    parsed: &'a Parsed,
    ignore: &'a PatternMatcher,
    context_epoch: Option<u64>,
    contexts: &'a Contexts<'a>,
    named: &'a [OnceLock<Located>],
    witness: Witness<'a>,
    /// A platform can't be built, so that the others need not be.
    failed: AtomicBool,
    /// The warnings that were shown.
    told: Mutex<BTreeSet<String>>,
    shared: &'a SharedCaches,
}

/// Builds what `request` says, to the end: named in the store, written to files, pushed; and told to others.
pub fn build(engine: &Engine, request: &BuildRequest) -> Result<BuildOutcome, Error> {
    let written = build_with(engine, request, |built| write::write(engine, request, built))?;
    Ok(BuildOutcome {
        sandbox: engine.mode().name().to_owned(),
        config: written.config,
        descriptor: written.descriptor,
        names: written.names,
        provenance: written.provenance,
    })
}

/// Solves what `request` says and hands the result to `finish`, while the contexts are still there; then tells others.
pub(crate) fn build_with<T>(
    engine: &Engine,
    request: &BuildRequest,
    finish: impl Fn(&[Built]) -> Result<T, Error>,
) -> Result<T, Error> {
    let form = request.outputs.iter().find_map(Output::options).map_or(Form::DEFAULT, |options| options.compression.into());
    let shared = SharedCaches::open(engine, &request.caches, form)?;
    let outcome = std::thread::scope(|scope| {
        let _closing = shared.start(scope, engine);
        let _packing = engine.early.start(scope, engine, Wish::of(&request.outputs, !request.attestations.is_empty()));
        let outcome = loop {
            match attempt(engine, request, &shared, &finish) {
                // The steps of which a cache promised the results are done here after all.
                Err(error) if shared.lose(engine, &error) => {}
                outcome => break outcome,
            }
        };
        shared.finish_layers(engine, outcome.is_ok())?;
        outcome
    });
    // Also of a build that failed: the next one goes on with its layers. A full disk must not make a failure of what is done;
    // `kiln fsck` then says which layers it can't prove.
    if engine.check().is_ok() {
        let _ = engine.store.layers().sum_made();
    }
    let outcome = outcome?;
    shared.finish(engine)?;
    Ok(outcome)
}

fn attempt<T>(
    engine: &Engine,
    request: &BuildRequest,
    shared: &SharedCaches,
    finish: impl Fn(&[Built]) -> Result<T, Error>,
) -> Result<T, Error> {
    if *engine.mode() != kiln_runner::Mode::Root {
        engine.events.start(format!("[internal] sandbox: {}", engine.mode())).done();
    }
    daemon::check(engine, &request.outputs)?;
    let began = Instant::now();
    witness::warn_of_scans(engine, request);
    let main = locate_main(engine, request)?;
    let (source, parsed, path) = load_definition(engine, request, &main)?;
    let ignore = load_main_ignore(engine, &main, path.as_deref())?;
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
    for flag in lacking(engine, request) {
        engine.events.warn(format!("`{flag}` is not enforced: this machine has no control group that kiln could set it for"));
    }
    let plan = Plan {
        engine,
        request,
        source: &source,
        parsed: &parsed,
        ignore: &ignore,
        context_epoch: main.epoch,
        contexts: &contexts,
        named: &located,
        witness: Witness { request, source: &source, main: main.material.clone(), began },
        failed: AtomicBool::new(false),
        told: Mutex::default(),
        shared,
    };
    engine.mounts.offer(engine, &request.caches)?;
    let built = plan.build_all()?;
    engine.early.leave_the_rest();
    for cause in contexts.opened().filter_map(|context| context.save_memo().err()) {
        engine.events.warn(format!("what the context's files say could not be remembered: {cause}"));
    }
    engine.check()?;
    let finished = finish(&built)?;
    mounts::export(engine, &request.caches)?;
    settle_pins(engine, &request.pins)?;
    Ok(finished)
}

impl Plan<'_> {
    /// Builds all platforms side by side. Steps that they have in common are done by the first that comes to them, while the
    /// others wait for its key; when one platform fails, the others end.
    fn build_all(&self) -> Result<Vec<Built>, Error> {
        if let [only] = self.request.platforms.as_slice() {
            return Ok(vec![self.build(only)?]);
        }
        let results: Vec<Result<Built, Error>> = std::thread::scope(|scope| {
            let work = |platform| {
                let built = self.build(platform);
                if built.is_err() {
                    self.failed.store(true, Ordering::Relaxed);
                }
                built
            };
            let threads: Vec<_> = self.request.platforms.iter().map(|platform| scope.spawn(move || work(platform))).collect();
            threads.into_iter().map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
        });
        let (mut built, mut failure) = (Vec::new(), None);
        for result in results {
            match result {
                Ok(one) => built.push(one),
                // Who was stopped because of another says only that.
                Err(error) if failure.is_none() || matches!(failure, Some(Error::Interrupted)) => failure = Some(error),
                Err(_) => {}
            }
        }
        match failure {
            Some(error) => Err(error),
            None => Ok(built),
        }
    }

    /// Shows what the build checks say, once however many platforms say it.
    fn warn(&self, warnings: Vec<Diagnostic>) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let new: Vec<Diagnostic> = warnings.into_iter().filter(|warning| told.insert(format!("{warning:?}"))).collect();
        self.engine.events.lints(self.source, new);
    }

    /// Lowers and solves the build for one platform.
    fn build(&self, platform: &Platform) -> Result<Built, Error> {
        let (engine, request) = (self.engine, self.request);
        let scope = Scope { all_stages: false, ignore: self.ignore.clone(), context_epoch: self.context_epoch };
        let lowered = lower_all(engine, request, platform, self.source, self.parsed, scope);
        let (mut build, bases) = lowered.map_err(|rejected| {
            self.warn(rejected.warnings);
            rejected.error
        })?;
        self.warn(std::mem::take(&mut build.warnings));
        let clock = build.epoch.map_or(request.clock, |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        let now = humantime::format_rfc3339(clock).to_string();
        if build.epoch.is_some() {
            // Also of what a cache made at another time.
            build.image.history.iter_mut().for_each(|entry| entry.created = Some(now.clone()));
        }
        engine.mounts.note_graph(&build.graph);
        let materials = Materials::default();
        let work = Work {
            engine,
            source: self.source,
            graph: &build.graph,
            bases: &bases,
            contexts: self.contexts,
            git: &request.git,
            pins: &request.pins,
            materials: &materials,
            caching: &request.caching,
            shared: self.shared,
            shm_size: request.shm_size,
            limits: &request.limits,
            group: &request.group,
            grants: &request.grants,
            on_failure: &request.on_failure,
            now: &now,
            clock,
            elsewhere: &self.failed,
        };
        let (solved, told) = match build.target {
            Some(target) => {
                let Solution { solved, told } = solve(&work, &[target])?;
                (solved.into_iter().next(), told)
            }
            None => (None, Vec::new()),
        };
        let layers = match solved.and_then(|solved| solved.layer) {
            Some(top) => engine.store.layers().chain(&top)?,
            None => Vec::new(),
        };
        if request.verify_layers {
            let task = engine.events.start("verifying layers");
            let verified = verify_layers(engine, &layers, &task);
            task.end_with(verified)?;
        }
        let facts = self.witness.is_wanted().then(|| {
            self.witness.facts(&Seen {
                graph: &build.graph,
                target: build.target,
                base_layers: build.image.config.rootfs.diff_ids.len(),
                layouts: &bases.layouts,
                materials: &materials,
                contexts: self.named.iter().map(|located| located.get()?.material.clone()).collect(),
                epoch: build.epoch.map(|_| clock),
            })
        });
        let packages = request.attestations.sbom.then(|| {
            let task = engine.events.start(format!("[{platform}] generating sbom"));
            let found = witness::packages(engine, layers.last().map(|layer| &layer.id), &task);
            task.end_with(found)
        });
        Ok(Built {
            platform: platform.clone(),
            template: build.image,
            layers,
            now,
            epoch: build.epoch,
            facts,
            packages: packages.transpose()?,
            inline: request.caches.inline().map(|target| Inline { told, sign: target.sign.clone() }),
        })
    }
}

/// Writes the lock file, or says what is too much in it.
fn settle_pins(engine: &Engine, pins: &Pins) -> Result<(), Error> {
    if pins.is_written() {
        let task = engine.events.start("[internal] writing the lock file");
        let saved = pins.save();
        for (name, value) in saved.iter().flatten() {
            task.status_done(&format!("{name} is {value}"), 0, None);
        }
        return Ok(task.end_with(saved).map(drop)?);
    }
    let unused = pins.unused();
    if pins.is_enforced() && !unused.is_empty() {
        engine.events.warn(format!("the lock file names what this build has no use for: {}", few(&unused)));
    }
    Ok(())
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
pub(crate) fn locate(engine: &Engine, request: &BuildRequest, source: &ContextSource, name: &str) -> Result<Located, Error> {
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

pub(crate) fn access(request: &BuildRequest) -> Access<'_> {
    Access { environment: &request.git, grants: &request.grants, pins: &request.pins }
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
    platform: &Platform,
    source: &Arc<Source>,
    parsed: &Parsed,
    scope: Scope,
) -> Result<(Box<kiln_frontend::Build>, ResolvedBases), Box<Rejected>> {
    let language = &request.language;
    let mut bases = ResolvedBases::new(request.platforms.len() > 1);
    let mut options = LowerOptions {
        build_args: language.build_args.clone(),
        target: language.target.clone(),
        labels: language.labels.clone(),
        build_platform: Platform::host(),
        target_platform: platform.clone(),
        platform_names: request.platforms.len() > 1,
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
            Ok(Lowered::NeedsTime { source: of, span }) => {
                let task = engine.events.start("[internal] resolve SOURCE_DATE_EPOCH");
                let found = epoch::time_of(engine, request, &of);
                let time = task.end_with(found).map_err(|error| match (error, span) {
                    (Error::Unplaced(cause), Some(span)) => Error::Step {
                        name: "[internal] resolve SOURCE_DATE_EPOCH".to_owned(),
                        location: Some((Arc::clone(source), span)),
                        meant: None,
                        cause,
                    },
                    (error, _) => error,
                })?;
                options.source_epoch = Some(time);
            }
            Ok(Lowered::Needs { images, warnings }) => {
                bases.resolve(engine, &images, request.caching.pull, &request.pins).map_err(|missing| {
                    let Missing { request: wanted, error } = *missing;
                    let cause = match error {
                        Error::Registry(error) => StepError::Registry(error),
                        Error::Store(error) => StepError::Store(error),
                        Error::Image(error) => StepError::Image(error),
                        Error::Pins(error) => StepError::Pins(error),
                        other => return Box::new(Rejected { error: other, warnings: Vec::new() }),
                    };
                    let error = Error::Step {
                        name: format!("[internal] load metadata for {}", wanted.reference),
                        location: Some((Arc::clone(source), wanted.span)),
                        meant: wanted.hint.clone(),
                        cause: Box::new(cause),
                    };
                    Box::new(Rejected { error, warnings })
                })?;
            }
            Err(found) => {
                let (diagnostics, warnings) = found.into_iter().partition(Diagnostic::is_error);
                let error = Error::Dockerfile { source_text: Arc::clone(source), diagnostics };
                return Err(Box::new(Rejected { error, warnings }));
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
