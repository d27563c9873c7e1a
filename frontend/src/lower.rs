//! Hides the walk from stages, arguments and base images to a graph.

mod epoch;
mod outline;
mod plan;
mod ports;
mod stage;
mod text;
mod validate;

use std::collections::BTreeMap;

use kiln_oci::config::{HistoryEntry, ImageConfig};
use kiln_oci::digest::Digest;
use kiln_oci::platform::Platform;
use kiln_oci::reference::Reference;

use crate::Parsed;
use crate::diagnostic::Diagnostic;
use crate::graph::{CopyFrom, Graph, MountFrom, MountKind, NetworkMode, Op, VertexId};
use crate::ignore::PatternMatcher;
use crate::lint::Config;
use crate::source::{Source, Span};
use epoch::{EPOCH, Wanted};
pub use epoch::{MAX_EPOCH, TimeSource};
pub use outline::{Outline, OutlineArg, OutlineMount};
use plan::{Plan, build_arg};
use stage::Lowering;

/// What a build asks for beside the text of the Dockerfile.
#[derive(Debug, Clone)]
pub struct LowerOptions {
    /// `--build-arg`; the last of equal names counts.
    pub build_args: Vec<(String, String)>,
    /// What the build argument `SOURCE_DATE_EPOCH=context` stands for: when the main context was made, in seconds since 1970. A
    /// folder has no such time.
    pub context_epoch: Option<u64>,
    /// The time that [`Lowered::NeedsTime`] asked for; what it asked about may have none.
    pub source_epoch: Option<Option<u64>>,
    /// `--target`: the name of a stage, or its number.
    pub target: Option<String>,
    /// `--label`; they beat the Dockerfile's.
    pub labels: Vec<(String, String)>,
    /// The platform that the builder runs on.
    pub build_platform: Platform,
    /// The platform that the image is for.
    pub target_platform: Platform,
    /// Whether the names of steps tell for which platform they are.
    pub platform_names: bool,
    /// Proxy variables of the client, as name and value; `build_args` beat them.
    pub proxy_args: Vec<(String, String)>,
    /// `--network`: what a `RUN` without `--network` gets.
    pub network: NetworkMode,
    /// `--no-cache-filter`: names of stages.
    pub no_cache_filter: Vec<String>,
    /// `--add-host`: name and address.
    pub extra_hosts: Vec<(String, String)>,
    /// The name of the machine that a `RUN` sees, unless `BUILDKIT_SANDBOX_HOSTNAME` is given.
    pub hostname: String,
    /// Whether `--allow security.insecure` was given.
    pub allow_insecure: bool,
    /// `--build-context`: contexts that take the place of the stage or image of their name.
    pub contexts: Vec<NamedContext>,
    /// Whether the build checks look at every stage, not only at those that the target needs.
    pub all_stages: bool,
    /// The context's ignore file, for the check `CopyIgnoredFile`; nothing is left out on its account.
    pub ignore: Option<PatternMatcher>,
}

impl Default for LowerOptions {
    fn default() -> LowerOptions {
        LowerOptions {
            build_args: Vec::new(),
            context_epoch: None,
            source_epoch: None,
            target: None,
            labels: Vec::new(),
            build_platform: Platform::host(),
            target_platform: Platform::host(),
            platform_names: false,
            proxy_args: Vec::new(),
            network: NetworkMode::Default,
            no_cache_filter: Vec::new(),
            extra_hosts: Vec::new(),
            hostname: "buildkitsandbox".to_owned(),
            allow_insecure: false,
            contexts: Vec::new(),
            all_stages: false,
            ignore: None,
        }
    }
}

/// A build context with a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedContext {
    /// As it was given.
    pub name: String,
    /// What the name stands for.
    pub kind: NamedKind,
}

/// What the name of a build context stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamedKind {
    /// Files; [`crate::graph::ContextId::Named`] says which.
    Files,
    /// An image.
    Image(Reference),
}

/// The form in which names of contexts are compared: the defaults that an image's name gets count as written
/// (`alpine`, `docker.io/library/alpine` and `alpine:latest` are one). `None` if no stage or image can have the name.
#[must_use]
pub fn context_name(text: &str) -> Option<String> {
    let name = Reference::parse(text).ok()?.familiar();
    Some(name.strip_suffix(":latest").map_or(name.clone(), str::to_owned))
}

/// A base image whose manifest and configuration `lower` wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseRequest {
    /// As the Dockerfile names it, with defaults filled in (`docker.io/library/busybox:latest`).
    pub reference: Reference,
    /// For which platform.
    pub platform: Platform,
    /// The instruction that names it.
    pub span: Span,
    /// What to say when there is no such image: the stage whose name is nearly the same.
    pub hint: Option<String>,
}

/// What is known about a base image once it was resolved.
#[derive(Debug, Clone)]
pub struct BaseImage {
    /// Of the manifest (or index) that was found, to pin the build to it.
    pub digest: Digest,
    /// Its configuration.
    pub config: ImageConfig,
}

/// The base images that were resolved so far.
#[derive(Debug, Clone, Default)]
pub struct Bases {
    images: BTreeMap<(Reference, Platform), BaseImage>,
}

impl Bases {
    /// Hands in an image that a [`BaseRequest`] asked for.
    pub fn insert(&mut self, reference: Reference, platform: Platform, image: BaseImage) {
        self.images.insert((reference, platform), image);
    }

    /// The image, if it was handed in.
    #[must_use]
    pub fn get(&self, reference: &Reference, platform: &Platform) -> Option<&BaseImage> {
        self.images.get(&(reference.clone(), platform.clone()))
    }
}

/// What came of lowering.
#[derive(Debug, Clone)]
pub enum Lowered {
    /// Images must be handed in first.
    Needs {
        /// Which; sorted, each once.
        images: Vec<BaseRequest>,
        /// The build checks that fired so far, which is all there is to tell when an image can't be had.
        warnings: Vec<Diagnostic>,
    },
    /// The time of something must be handed in first: `SOURCE_DATE_EPOCH` names it.
    NeedsTime {
        /// Of what.
        source: TimeSource,
        /// The instruction that fetches it.
        span: Option<Span>,
    },
    /// The build.
    Build(Box<Build>),
}

/// Everything a solver needs to know.
#[derive(Debug, Clone)]
pub struct Build {
    /// What to do.
    pub graph: Graph,
    /// The root file system of the image; `None` is the empty one, with no layers.
    pub target: Option<VertexId>,
    /// What to write into the image's configuration.
    pub image: ImageTemplate,
    /// Build checks that fired, in BuildKit's order, and other remarks; none stops the build.
    pub warnings: Vec<Diagnostic>,
    /// What the target can be given from outside.
    pub outline: Outline,
    /// The time to write for now, in seconds since 1970: what the build argument or a global `ARG SOURCE_DATE_EPOCH` says.
    pub epoch: Option<u64>,
}

/// The configuration of the image to be, without what only building can tell.
#[derive(Debug, Clone)]
pub struct ImageTemplate {
    /// The image that the target's chain of stages starts from; `None` for `scratch`.
    pub base: Option<(Reference, Platform)>,
    /// Final but for the new layers: `history` and `rootfs` hold the base's entries only, `created` is `None`.
    pub config: ImageConfig,
    /// The new entries, with `created` left `None`. Each without `empty_layer` stands for one vertex on the target's
    /// parent chain, in order.
    pub history: Vec<HistoryEntry>,
}

/// Turns a parsed Dockerfile into a graph, as far as the base images handed in allow.
///
/// # Errors
/// Every mistake that was found, in the order of the file; if the parser found any, only those. Behind them the build checks
/// that BuildKit tells, too, when it stops at the first mistake.
pub fn lower(parsed: &Parsed, source: &Source, options: &LowerOptions, bases: &Bases) -> Result<Lowered, Vec<Diagnostic>> {
    let config = lint_config(parsed, options);
    let errors: Vec<Diagnostic> = parsed.diagnostics.iter().filter(|d| d.is_error()).cloned().collect();
    if !errors.is_empty() {
        let before = parsed.diagnostics.iter().take_while(|d| !d.is_error()).cloned();
        return Err(errors.into_iter().chain(filter_lints(parsed, &config.unwrap_or_default(), before)).collect());
    }
    check_syntax(parsed, options).map_err(|e| vec![e])?;
    let config = config.map_err(|e| vec![e])?;
    let lints = |more: Vec<Diagnostic>| filter_lints(parsed, &config, parsed.diagnostics.iter().cloned().chain(more));
    let reject = |found: Vec<Diagnostic>| {
        let (mut errors, more): (Vec<_>, Vec<_>) = found.into_iter().partition(Diagnostic::is_error);
        errors.extend(lints(more));
        errors
    };
    let mut plan = Plan::new(parsed, options).map_err(reject)?;
    let epoch = epoch::wanted(parsed, options, &plan).map_err(|error| reject(vec![error]))?;
    let time = match &epoch {
        None | Some(Wanted::At(_)) => None,
        Some(Wanted::MainContext) => Some(options.context_epoch),
        Some(Wanted::Nothing) => Some(None),
        Some(Wanted::Of(source, span)) => match options.source_epoch {
            Some(time) => Some(time),
            None => return Ok(Lowered::NeedsTime { source: source.clone(), span: *span }),
        },
    };
    if let Some(time) = time {
        // From here on as if the time had been given: that is what stages see, too.
        let mut options = options.clone();
        options.build_args.push((EPOCH.to_owned(), time.map_or_else(String::new, |seconds| seconds.to_string())));
        return lower(parsed, source, &options, bases);
    }
    let epoch = epoch.and_then(|epoch| if let Wanted::At(seconds) = epoch { Some(seconds) } else { None });
    let images = plan.resolve(bases).map_err(|errors| reject(errors.into_iter().chain(plan.lints.clone()).collect()))?;
    if !images.is_empty() {
        return Ok(Lowered::Needs { images, warnings: lints(plan.lints) });
    }

    let mut lowering = Lowering {
        plan: &plan,
        options,
        bases,
        escape: parsed.dockerfile.directives.escape,
        graph: Graph::default(),
        base_lints: Vec::new(),
        lints: Vec::new(),
        stopped: None,
        done: plan.nodes.iter().map(|_| None).collect(),
    };
    // Images first: stages take from them and from stages before them.
    let (stages, images): (Vec<usize>, Vec<usize>) = plan.needed().into_iter().partition(|index| plan.nodes[*index].declared);
    let mut errors = Vec::new();
    for index in images.into_iter().chain(stages) {
        errors.extend(lowering.node(index).err().into_iter().flatten());
    }
    let Lowering { graph, base_lints, lints: mut fired, stopped, mut done, .. } = lowering;
    fired.truncate(stopped.unwrap_or(usize::MAX));
    let fired = plan.lints.iter().cloned().chain(base_lints).chain(fired);
    if !errors.is_empty() {
        return Err(reject(errors.into_iter().chain(fired).collect()));
    }
    let outline = outline::outline(&plan, &done);
    let Some(target) = done[plan.target].take() else {
        // The target is reachable from itself, so it was lowered.
        return Err(vec![Diagnostic::error("the target stage was not lowered")]);
    };
    let mut warnings = lints(fired.collect());
    if config.error && warnings.iter().any(|d| d.rule.is_some()) {
        warnings.insert(0, violation(&warnings));
        return Err(warnings);
    }
    warnings.extend(unused_arguments(parsed, source, options));

    let mut image = target.config;
    image.config.labels.extend(options.labels.iter().cloned());
    // Without a platform of its own a build takes what the base is; else the image says what was asked for.
    if options.target_platform != options.build_platform {
        image.os.clone_from(&options.target_platform.os);
        image.architecture.clone_from(&options.target_platform.architecture);
        image.variant.clone_from(&options.target_platform.variant);
        image.os_version.clone_from(&options.target_platform.os_version);
    }
    let (graph, target_id) = prune(graph, target.parent);
    let image = ImageTemplate { base: target.base, config: image, history: target.history };
    Ok(Lowered::Build(Box::new(Build { graph, target: target_id, image, warnings, outline, epoch })))
}

/// Only Docker's own language is built in.
fn check_syntax(parsed: &Parsed, options: &LowerOptions) -> Result<(), Diagnostic> {
    let from_file = parsed.dockerfile.directives.syntax.as_ref().map(|(text, span)| (text.as_str(), Some(*span)));
    let given = build_arg(options, "BUILDKIT_SYNTAX").filter(|text| !text.is_empty()).map(|text| (text, None));
    let Some((text, span)) = given.or(from_file) else { return Ok(()) };
    let name = text.split_whitespace().next().unwrap_or_default();
    let known = ["docker/dockerfile", "docker/dockerfile-upstream", "dockerfile.v0", "gateway.v0"];
    let repository = Reference::parse(name).map_or_else(|_| name.to_owned(), |r| r.familiar_repository());
    if known.contains(&name) || known.contains(&repository.as_str()) {
        return Ok(());
    }
    let error =
        Diagnostic::error(format!("the frontend `{name}` is not supported: kiln builds the language of docker/dockerfile only"));
    Err(match span {
        Some(span) => error.at(span).with_hint("remove the `syntax` directive if the file is a Dockerfile"),
        None => error.with_hint("leave out the build argument BUILDKIT_SYNTAX if the file is a Dockerfile"),
    })
}

fn lint_config(parsed: &Parsed, options: &LowerOptions) -> Result<Config, Diagnostic> {
    if let Some(text) = build_arg(options, "BUILDKIT_DOCKERFILE_CHECK") {
        return Config::parse(text)
            .map_err(|error| Diagnostic::error(format!("failed to parse build-arg:BUILDKIT_DOCKERFILE_CHECK: {error}")));
    }
    match &parsed.dockerfile.directives.check {
        Some((text, span)) => Config::parse(first_word(text))
            .map_err(|error| Diagnostic::error(format!("failed to parse check options: {error}")).at(*span)),
        None => Ok(Config::default()),
    }
}

/// What BuildKit reads of a directive's value.
fn first_word(text: &str) -> &str {
    text.split_once(' ').map_or(text, |(first, _)| first)
}

/// Leaves out the checks that are switched off, for the file or for one instruction.
fn filter_lints(parsed: &Parsed, config: &Config, all: impl Iterator<Item = Diagnostic>) -> Vec<Diagnostic> {
    let local: Vec<(Config, Span)> =
        parsed.checks.iter().filter_map(|(text, span)| Some((Config::parse(first_word(text)).ok()?, *span))).collect();
    let mut out: Vec<Diagnostic> = Vec::new();
    for diagnostic in all {
        if let Some(rule) = diagnostic.rule {
            let here = diagnostic.span.and_then(|span| local.iter().find(|(_, at)| at.first_line == span.first_line));
            if !config.allows(rule) || here.is_some_and(|(local, _)| local.skip_all || local.skip.contains(rule.name())) {
                continue;
            }
        }
        out.push(diagnostic);
    }
    out
}

/// `# check=error=true`: the checks that fired stop the build.
fn violation(fired: &[Diagnostic]) -> Diagnostic {
    let mut names: Vec<&str> = fired.iter().filter_map(|d| d.rule).map(crate::lint::Rule::name).collect();
    names.sort_unstable();
    names.dedup();
    Diagnostic::error(format!("lint violation found for rules: {}", names.join(", ")))
}

/// `--build-arg`s that no `ARG` of the file declares.
fn unused_arguments(parsed: &Parsed, source: &Source, options: &LowerOptions) -> Option<Diagnostic> {
    let file = &parsed.dockerfile;
    let global = file.global_args.iter().flat_map(|(args, _)| args);
    let local = file.stages.iter().flat_map(|stage| &stage.instructions).filter_map(|i| match &i.kind {
        crate::instruction::Kind::Arg(args) => Some(args),
        _ => None,
    });
    let declared: Vec<&str> = global.chain(local.flatten()).map(|arg| arg.name.as_str()).collect();
    let platform = |name: &str| name.starts_with("TARGET") || name.starts_with("BUILD");
    let mut unused: Vec<&str> = options.build_args.iter().map(|(name, _)| name.as_str()).collect();
    unused.retain(|name| !declared.contains(name) && !stage::is_predefined(name) && !platform(name));
    unused.sort_unstable();
    unused.dedup();
    if unused.is_empty() {
        return None;
    }
    let message = format!("one or more build arguments were not used: {}", unused.join(", "));
    Some(Diagnostic::warning(message).with_hint(format!("{} declares no ARG of that name", source.name())))
}

/// Drops what the target doesn't need, which mounts that are of no use can leave behind, and numbers the rest anew.
fn prune(graph: Graph, target: Option<VertexId>) -> (Graph, Option<VertexId>) {
    let mut needed = vec![false; graph.vertices.len()];
    let mut open: Vec<VertexId> = target.into_iter().collect();
    while let Some(id) = open.pop() {
        if !std::mem::replace(&mut needed[id.0], true) {
            open.extend(graph.vertices[id.0].op.inputs());
        }
    }
    let mut ids = Vec::with_capacity(needed.len());
    let mut next = 0;
    for needed in &needed {
        ids.push(VertexId(next));
        next += usize::from(*needed);
    }
    let renumber = |input: &mut Option<VertexId>| *input = input.map(|id| ids[id.0]);
    let mut out = Graph::default();
    for (index, mut vertex) in graph.vertices.into_iter().enumerate() {
        if !needed[index] {
            continue;
        }
        match &mut vertex.op {
            Op::Image(_) | Op::Context(_) => {}
            Op::Workdir(op) => renumber(&mut op.parent),
            Op::Copy(op) => {
                renumber(&mut op.parent);
                if let CopyFrom::Vertex(input) = &mut op.from {
                    renumber(input);
                }
            }
            Op::Exec(op) => {
                renumber(&mut op.parent);
                for mount in &mut op.mounts {
                    match &mut mount.kind {
                        MountKind::Bind(bind) => {
                            if let MountFrom::Vertex(input) = &mut bind.from {
                                renumber(input);
                            }
                        }
                        MountKind::Cache(cache) => {
                            if let Some(MountFrom::Vertex(input)) = &mut cache.from {
                                renumber(input);
                            }
                        }
                        MountKind::Tmpfs { .. } | MountKind::Secret(_) | MountKind::Ssh(_) => {}
                    }
                }
            }
        }
        out.vertices.push(vertex);
    }
    (out, target.map(|id| ids[id.0]))
}
