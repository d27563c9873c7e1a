//! Hides where in a build the facts of a provenance come from, and when its files are looked through for packages.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use kiln_frontend::Source;
use kiln_frontend::graph::{ContextId, CopyFrom, Graph, MountFrom, MountKind, NetworkMode, Op, VertexId};
use kiln_oci::platform::Platform;
use kiln_oci::reference::Reference;
use kiln_store::LayerId;
use kiln_store::view::View;

use super::provenance::{Facts, Material};
use super::sbom::{self, spdx};
use super::statement::Predicate;
use super::{purl, sbom::Inventory};
use crate::engine::Engine;
use crate::error::Error;
use crate::event::Task;
use crate::export::layout::Layouts;
use crate::ops::{Fetched, source};
use crate::request::{BuildRequest, ContextSource, DockerfileSource, NamedSource, Output};

/// What the steps of a build fetched.
#[derive(Debug, Default)]
pub struct Materials(Mutex<Vec<Material>>);

impl Materials {
    /// Writes down what a step fetched.
    pub fn saw(&self, fetched: &[Fetched]) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.extend(fetched.iter().map(|fetched| match fetched {
            Fetched::File(file) => Material::http(&file.url, file.digest),
            Fetched::Repository(found) => Material::git(found.url(), found.commit()),
        }));
    }

    fn take(&self) -> Vec<Material> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What is known of a build before any of its platforms is lowered.
#[derive(Debug)]
pub(crate) struct Witness<'a> {
    /// What was asked for.
    pub(crate) request: &'a BuildRequest,
    /// The Dockerfile.
    pub(crate) source: &'a Arc<Source>,
    /// What the main context was, if it came from an address.
    pub(crate) main: Option<Material>,
    /// When the build began, by a clock that no one sets.
    pub(crate) began: Instant,
}

/// One platform's build.
#[derive(Debug)]
pub(crate) struct Seen<'a> {
    /// What was done.
    pub(crate) graph: &'a Graph,
    /// The step whose files are the image's.
    pub(crate) target: Option<VertexId>,
    /// How many layers are the base's.
    pub(crate) base_layers: usize,
    /// Which images came from folders.
    pub(crate) layouts: &'a Layouts,
    /// What was fetched.
    pub(crate) materials: &'a Materials,
    /// What each of the named contexts was, if it came from an address and anybody asked for it.
    pub(crate) contexts: Vec<Option<Material>>,
    /// `SOURCE_DATE_EPOCH`.
    pub(crate) epoch: Option<SystemTime>,
}

impl Witness<'_> {
    /// Whether anybody wants to hear of it.
    pub(crate) fn is_wanted(&self) -> bool {
        let asked = &self.request.attestations;
        asked.provenance.is_some() || asked.told.is_some()
    }

    /// The facts of one platform's build, when it is over.
    pub(crate) fn facts(&self, seen: &Seen<'_>) -> Facts {
        let request = self.request;
        let mut materials = seen.materials.take();
        materials.extend(self.main.clone());
        // Another platform may have asked for more of them, sooner or later.
        materials.extend(used(seen.graph).into_iter().filter_map(|id| match id {
            ContextId::Main => None,
            ContextId::Named(index) => seen.contexts.get(index)?.clone(),
        }));
        for vertex in &seen.graph.vertices {
            if let Op::Image(op) = &vertex.op {
                let kind = if seen.layouts.contains_key(&op.digest) { "oci" } else { "docker" };
                materials.push(Material::Image(purl::of_image(kind, &op.reference, &op.platform), op.digest));
            }
        }
        // What is reproducible doesn't depend on how long it took.
        let started = seen.epoch.unwrap_or(request.clock);
        let finished = seen.epoch.unwrap_or(request.clock + self.began.elapsed());
        Facts {
            source: Arc::clone(self.source),
            dockerfile: match &request.dockerfile {
                DockerfileSource::InContext(path) => path.to_string_lossy().into_owned(),
                _ => self.source.name().to_owned(),
            },
            context: match &request.context {
                ContextSource::Git(url) | ContextSource::Http(url) => Some(url.clone()),
                ContextSource::Folder(_) | ContextSource::Empty | ContextSource::Archive { .. } => None,
            },
            graph: seen.graph.clone(),
            target: seen.target,
            base_layers: seen.base_layers,
            materials,
            args: args(request),
            locals: self.locals(seen.graph),
            contexts: request.named_contexts.iter().map(|(name, _)| name.clone()).collect(),
            machine: Platform::host().to_string(),
            started,
            finished,
        }
    }

    /// Contexts that are on this machine only.
    fn locals(&self, graph: &Graph) -> BTreeSet<String> {
        let request = self.request;
        let is_local = |source: &ContextSource| matches!(source, ContextSource::Folder(_) | ContextSource::Archive { .. });
        let mut locals = BTreeSet::new();
        if is_local(&request.context) {
            locals.insert("context".to_owned());
        }
        let own =
            matches!(request.dockerfile, DockerfileSource::Path(_) | DockerfileSource::Bytes(_) | DockerfileSource::Http(_));
        if own || is_local(&request.context) {
            locals.insert("dockerfile".to_owned());
        }
        for id in used(graph) {
            if let ContextId::Named(index) = id
                && let Some((name, NamedSource::Files(source))) = request.named_contexts.get(index)
                && is_local(source)
            {
                locals.insert(name.clone());
            }
        }
        locals
    }
}

/// The contexts that a graph takes files from.
fn used(graph: &Graph) -> BTreeSet<ContextId> {
    let mut out = BTreeSet::new();
    for vertex in &graph.vertices {
        match &vertex.op {
            Op::Context(op) => drop(out.insert(op.context)),
            Op::Copy(op) => {
                if let CopyFrom::Context(id) = op.from {
                    out.insert(id);
                }
            }
            Op::Exec(op) => out.extend(op.mounts.iter().filter_map(|mount| match &mount.kind {
                MountKind::Bind(bind) => match bind.from {
                    MountFrom::Context(id) => Some(id),
                    MountFrom::Vertex(_) => None,
                },
                MountKind::Cache(cache) => match cache.from {
                    Some(MountFrom::Context(id)) => Some(id),
                    _ => None,
                },
                MountKind::Tmpfs { .. } | MountKind::Secret(_) | MountKind::Ssh(_) => None,
            })),
            Op::Image(_) | Op::Workdir(_) => {}
        }
    }
    out
}

/// What the build was told, in the words of BuildKit's frontend (`frontend/dockerui/config.go`).
fn args(request: &BuildRequest) -> BTreeMap<String, String> {
    let language = &request.language;
    let mut args = BTreeMap::new();
    args.extend(language.build_args.iter().map(|(key, value)| (format!("build-arg:{key}"), value.clone())));
    args.extend(language.labels.iter().map(|(key, value)| (format!("label:{key}"), value.clone())));
    args.extend(request.named_contexts.iter().map(|(name, source)| {
        let source = match source {
            NamedSource::Image(reference) => format!("docker-image://{}", reference.familiar()),
            // Where a folder is on this machine is nobody's business.
            NamedSource::Layout { .. } => format!("oci-layout://{name}"),
            NamedSource::Files(ContextSource::Git(url) | ContextSource::Http(url)) => url.clone(),
            NamedSource::Files(_) => format!("local:{name}"),
        };
        (format!("context:{name}"), source)
    }));
    let mut add = |key: &str, value: Option<String>| args.extend(value.map(|value| (key.to_owned(), value)));
    add("target", language.target.clone());
    let network = match language.network {
        NetworkMode::Default => None,
        NetworkMode::Host => Some("host"),
        NetworkMode::None => Some("none"),
        NetworkMode::Private => Some("private"),
    };
    add("force-network-mode", network.map(str::to_owned));
    let hosts: Vec<String> = request.extra_hosts.iter().map(|(host, ip)| format!("{host}={ip}")).collect();
    add("add-hosts", (!hosts.is_empty()).then(|| hosts.join(",")));
    add("shm-size", request.shm_size.map(|size| size.to_string()));
    let stages = &request.caching.disabled_stages;
    let uncached =
        if request.caching.disabled { Some(String::new()) } else { Some(stages.join(",")).filter(|_| !stages.is_empty()) };
    add("no-cache", uncached);
    args
}

/// The names of all outputs, each once: what is said of an image is said of it under each of them.
pub(crate) fn names(request: &BuildRequest) -> Vec<Reference> {
    let mut names: Vec<Reference> = Vec::new();
    let options = request.outputs.iter().filter_map(Output::options);
    let all = options.flat_map(|options| options.names.iter().map(|name| &name.reference)).chain(&request.tags);
    for name in all {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    names
}

/// The files of a result, which are there now.
pub(crate) fn files(engine: &Engine, top: Option<&LayerId>, task: &Task) -> Result<View, Error> {
    source::materialise(engine, top, task)?;
    let lowers = match top {
        Some(top) => engine.store.layers().lowers(top)?,
        None => Vec::new(),
    };
    Ok(engine.store.view(&lowers)?)
}

/// Build arguments by which BuildKit also looks through stages and contexts.
const MORE_SCANS: [&str; 2] = ["BUILDKIT_SBOM_SCAN_STAGE", "BUILDKIT_SBOM_SCAN_CONTEXT"];

/// Says what is asked for and not done.
pub(crate) fn warn_of_scans(engine: &Engine, request: &BuildRequest) {
    let asked = |name: &&&str| {
        let value = request.language.build_args.iter().find(|(key, _)| key == **name);
        value.is_some_and(|(_, value)| !matches!(value.as_str(), "" | "false" | "0"))
    };
    for name in MORE_SCANS.iter().filter(asked).filter(|_| request.attestations.sbom) {
        engine.events.warn(format!("`{name}` has no effect in kiln: an SBOM lists the packages of the image"));
    }
}

/// Looks through the files of a result.
pub(crate) fn packages(engine: &Engine, top: Option<&LayerId>, task: &Task) -> Result<Inventory, Error> {
    let view = files(engine, top, task)?;
    let found = sbom::inventory::<Scanned>(&view, &|| engine.check().map_err(Scanned)).map_err(|Scanned(error)| error)?;
    for note in &found.notes {
        task.warn(format!("the list of packages lacks what could not be read: {note}"));
    }
    task.status_done(&format!("{} packages", found.packages.len()), 0, None);
    Ok(found)
}

/// What may go wrong on the way through the files.
struct Scanned(Error);

impl From<kiln_store::view::ViewError> for Scanned {
    fn from(error: kiln_store::view::ViewError) -> Self {
        Self(Error::Store(error.into()))
    }
}

/// What is said of the packages of an image with this configuration, made at that time.
pub(crate) fn bill(found: &Inventory, digest: &str, created: &str) -> Predicate {
    let subject = spdx::Subject { name: "sbom", digest, created, distribution: &found.distribution, notes: &found.notes };
    Predicate {
        kind: spdx::PREDICATE_TYPE.to_owned(),
        value: spdx::document(&subject, &found.packages),
        filename: "sbom.spdx.json".to_owned(),
    }
}
