//! Hides the schema of SLSA's provenance, in the words that BuildKit chose for what the schema leaves open (BuildKit 0.25,
//! `docs/attestations/slsa-definitions.md`).
//!
//! What a provenance says depends on the build alone, but for its times and the id that follows from them. With
//! `SOURCE_DATE_EPOCH` these are that time, so that the same inputs give the same bytes.

mod steps;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use kiln_frontend::Source;
use kiln_frontend::graph::{ExecOp, Graph, MountKind, NetworkMode, Op, VertexId};
use kiln_oci::descriptor::Descriptor;
use kiln_oci::digest::Digest;
use serde_json::{Map, Value, json};

use super::redact::redact;
use super::statement::Predicate;
use super::{Detail, ProvenanceRequest, SlsaVersion};

/// What the parameters mean, to whoever reads them.
const BUILD_TYPE: &str = "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md";
const BUILD_TYPE_02: &str = "https://mobyproject.org/buildkit@v1";

/// Something from outside of the build, and what it was at that time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Material {
    /// An image, by its package URL.
    Image(String, Digest),
    /// A commit of a git repository.
    Git(String, String),
    /// A file at an address.
    Http(String, Digest),
}

impl Material {
    /// A commit; the address may hold a password.
    pub fn git(url: &str, commit: &str) -> Self {
        Self::Git(redact(url), commit.to_owned())
    }

    /// A file; the address may hold a password.
    pub fn http(url: &str, digest: Digest) -> Self {
        Self::Http(redact(url), digest)
    }

    fn uri(&self) -> &str {
        match self {
            Self::Image(uri, _) | Self::Git(uri, _) | Self::Http(uri, _) => uri,
        }
    }

    fn digests(&self) -> Value {
        match self {
            Self::Image(_, digest) | Self::Http(_, digest) => json!({ "sha256": digest.hex() }),
            Self::Git(_, commit) if commit.len() == 64 => json!({ "sha256": commit }),
            Self::Git(_, commit) => json!({ "sha1": commit }),
        }
    }
}

/// All that a provenance tells of one platform's build.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The Dockerfile.
    pub source: Arc<Source>,
    /// Its name in the build context.
    pub dockerfile: String,
    /// The address of the build context, if it has one.
    pub context: Option<String>,
    /// What was done.
    pub graph: Graph,
    /// The step whose files are the image's.
    pub target: Option<VertexId>,
    /// How many layers are the base's.
    pub base_layers: usize,
    /// Everything from outside, in any order.
    pub materials: Vec<Material>,
    /// What the build was told, in the words of BuildKit's frontend.
    pub args: BTreeMap<String, String>,
    /// The names of contexts that are folders of this machine, the Dockerfile's among them.
    pub locals: BTreeSet<String>,
    /// The names of all named contexts, as the graph counts them.
    pub contexts: Vec<String>,
    /// On what it was built.
    pub machine: String,
    /// When the build began.
    pub started: SystemTime,
    /// When it was over.
    pub finished: SystemTime,
}

impl Facts {
    /// What is said of an image of which these are the layers.
    pub fn predicate(&self, request: &ProvenanceRequest, layers: &[Descriptor]) -> Predicate {
        let (kind, mut value) = match request.version {
            SlsaVersion::V1 => ("https://slsa.dev/provenance/v1", self.v1(request, layers)),
            SlsaVersion::V02 => ("https://slsa.dev/provenance/v0.2", self.v02(request, layers)),
        };
        // The build's id: two builds that differ in nothing, not even in their times, are one.
        let id = blake3::hash(value.to_string().as_bytes()).to_hex()[..32].to_owned();
        let place = match request.version {
            SlsaVersion::V1 => value.pointer_mut("/runDetails/metadata/invocationId"),
            SlsaVersion::V02 => value.pointer_mut("/metadata/buildInvocationID"),
        };
        if let Some(place) = place {
            *place = json!(id);
        }
        Predicate { kind: kind.to_owned(), value, filename: request.filename.clone() }
    }

    fn v1(&self, request: &ProvenanceRequest, layers: &[Descriptor]) -> Value {
        let (parameters, whole) = self.parameters(request.detail);
        let mut internal = Map::new();
        let mut about = Map::new();
        if request.detail == Detail::Max {
            let steps = self.steps();
            internal.insert("buildConfig".to_owned(), steps.config());
            about.insert("source".to_owned(), self.source(&steps));
            about.insert("layers".to_owned(), self.layers(&steps, layers));
        }
        internal.insert("builderPlatform".to_owned(), json!(self.machine));
        let mut metadata = json!({
            "invocationId": "",
            "startedOn": time(self.started),
            "finishedOn": time(self.finished),
            "buildkit_metadata": about,
        });
        if self.is_hermetic() {
            metadata["buildkit_hermetic"] = json!(true);
        }
        metadata["buildkit_completeness"] = json!({ "request": whole, "resolvedDependencies": self.knows_all() });
        if request.reproducible {
            metadata["buildkit_reproducible"] = json!(true);
        }
        json!({
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "resolvedDependencies": self.dependencies(),
                "externalParameters": { "configSource": self.config_source("path"), "request": parameters },
                "internalParameters": internal,
            },
            "runDetails": {
                "builder": { "id": request.builder_id, "version": { "kiln": env!("CARGO_PKG_VERSION") } },
                "metadata": metadata,
            },
        })
    }

    fn v02(&self, request: &ProvenanceRequest, layers: &[Descriptor]) -> Value {
        let (parameters, whole) = self.parameters(request.detail);
        let mut about = Map::new();
        let mut config = None;
        if request.detail == Detail::Max {
            let steps = self.steps();
            config = Some(steps.config());
            about.insert("source".to_owned(), self.source(&steps));
            about.insert("layers".to_owned(), self.layers(&steps, layers));
        }
        let mut value = json!({
            "builder": { "id": request.builder_id },
            "buildType": BUILD_TYPE_02,
            "materials": self.dependencies(),
            "invocation": {
                "configSource": self.config_source("entryPoint"),
                "parameters": parameters,
                "environment": { "platform": self.machine },
            },
        });
        if let Some(config) = config {
            value["buildConfig"] = config;
        }
        value["metadata"] = json!({
            "buildInvocationID": "",
            "buildStartedOn": time(self.started),
            "buildFinishedOn": time(self.finished),
            "completeness": { "parameters": whole, "environment": true, "materials": self.knows_all() },
            "reproducible": request.reproducible,
            "https://mobyproject.org/buildkit@v1#metadata": about,
        });
        if self.is_hermetic() {
            value["metadata"]["https://mobyproject.org/buildkit@v1#hermetic"] = json!(true);
        }
        value
    }

    /// Everything from outside, each once: images, repositories, files.
    fn dependencies(&self) -> Vec<Value> {
        let sorted: BTreeSet<&Material> = self.materials.iter().collect();
        sorted.into_iter().map(|material| json!({ "uri": material.uri(), "digest": material.digests() })).collect()
    }

    fn config_source(&self, path: &str) -> Value {
        let mut source = Map::new();
        if let Some(context) = self.context.as_deref().map(redact) {
            let known = self.materials.iter().find(|material| material.uri() == context);
            source.insert("uri".to_owned(), json!(context));
            if let Some(known) = known {
                source.insert("digest".to_owned(), known.digests());
            }
        }
        source.insert(path.to_owned(), json!(self.dockerfile));
        Value::Object(source)
    }

    /// What the build was told, and whether that is all.
    fn parameters(&self, detail: Detail) -> (Value, bool) {
        let is_value = |key: &str| key.starts_with("build-arg:") || key.starts_with("label:");
        let shown = |key: &&String| detail == Detail::Max || !is_value(key);
        let args: Map<String, Value> =
            self.args.iter().filter(|(key, _)| shown(key)).map(|(key, value)| (key.clone(), json!(redact(value)))).collect();
        let whole = args.len() == self.args.len();
        let mut parameters = json!({ "frontend": "dockerfile.v0", "args": args });
        if detail == Detail::Max {
            let (secrets, agents) = self.grants();
            let list = |wanted: BTreeMap<&str, bool>| -> Value {
                let each = wanted.into_iter().map(|(id, required)| match required {
                    true => json!({ "id": id }),
                    false => json!({ "id": id, "optional": true }),
                });
                each.collect()
            };
            if !secrets.is_empty() {
                parameters["secrets"] = list(secrets);
            }
            if !agents.is_empty() {
                parameters["ssh"] = list(agents);
            }
        }
        if !self.locals.is_empty() {
            parameters["locals"] = self.locals.iter().map(|name| json!({ "name": name })).collect();
        }
        (parameters, whole)
    }

    fn commands(&self) -> impl Iterator<Item = &ExecOp> {
        self.graph.vertices.iter().filter_map(|vertex| match &vertex.op {
            Op::Exec(op) => Some(op),
            _ => None,
        })
    }

    /// The ids of secrets and agents, and whether a step can't do without.
    fn grants(&self) -> (BTreeMap<&str, bool>, BTreeMap<&str, bool>) {
        let (mut secrets, mut agents) = (BTreeMap::new(), BTreeMap::new());
        for mount in self.commands().flat_map(|op| &op.mounts) {
            match &mount.kind {
                MountKind::Secret(secret) => *secrets.entry(secret.id.as_str()).or_default() |= secret.required,
                MountKind::Ssh(agent) => *agents.entry(agent.id.as_str()).or_default() |= agent.required,
                MountKind::Bind(_) | MountKind::Cache(_) | MountKind::Tmpfs { .. } => {}
            }
        }
        (secrets, agents)
    }

    /// Folders of a machine have no address that anybody else could look at.
    fn knows_all(&self) -> bool {
        self.locals.is_empty()
    }

    fn is_hermetic(&self) -> bool {
        self.knows_all() && self.commands().all(|op| op.network == NetworkMode::None)
    }

    fn steps(&self) -> steps::Steps {
        steps::Steps::new(&self.graph, self.target, &self.contexts, self.context.as_deref())
    }

    /// The Dockerfile, and which of its lines each step is of.
    fn source(&self, steps: &steps::Steps) -> Value {
        let mut locations = Map::new();
        for (index, vertex) in self.graph.vertices.iter().enumerate() {
            let Some(step) = steps.of(VertexId(index)) else { continue };
            let lines = vertex.span.into_iter().flat_map(|span| span.first_line..=span.last_line);
            let ranges: Vec<Value> = lines.map(|line| json!({ "start": { "line": line }, "end": { "line": line } })).collect();
            let location = if ranges.is_empty() { json!({}) } else { json!({ "locations": [{ "ranges": ranges }] }) };
            locations.insert(step, location);
        }
        let whence = steps::of_dockerfile(self.context.as_deref());
        let info = json!({
            "filename": self.dockerfile,
            "language": "Dockerfile",
            "data": BASE64.encode(redact(self.source.text())),
            "llbDefinition": whence.definition(),
            "digestMapping": whence.digests(),
        });
        json!({ "locations": locations, "infos": [info] })
    }

    /// For each step on the way to the result: the layers that its files are in.
    fn layers(&self, steps: &steps::Steps, layers: &[Descriptor]) -> Value {
        let mut way = Vec::new();
        let mut next = self.target;
        while let Some(id) = next {
            way.push(id);
            next = self.graph.get(id).and_then(|vertex| vertex.op.parent());
        }
        way.reverse();
        let mut out = Map::new();
        let mut count = 0;
        for id in way {
            let is_image = self.graph.get(id).is_some_and(|vertex| matches!(vertex.op, Op::Image(_)));
            count += if is_image { self.base_layers } else { 1 };
            if let (Some(step), Some(below)) = (steps.of(id), layers.get(..count)) {
                let plain = below.iter().map(|layer| Descriptor::new(&layer.media_type, layer.digest, layer.size));
                out.insert(format!("{step}:0"), json!([plain.collect::<Vec<_>>()]));
            }
        }
        Value::Object(out)
    }
}

/// What the command tells of a provenance in its metadata file: no steps and no times, unless all is wanted.
pub fn told(predicate: &Predicate, detail: Detail) -> Value {
    let mut value = predicate.value.clone();
    if detail == Detail::Min {
        for (place, key) in [("", "buildConfig"), ("", "metadata"), ("/runDetails", "metadata")] {
            if let Some(map) = value.pointer_mut(place).and_then(Value::as_object_mut) {
                map.remove(key);
            }
        }
        if let Some(internal) = value.pointer_mut("/buildDefinition/internalParameters").and_then(Value::as_object_mut) {
            internal.remove("buildConfig");
        }
    }
    value
}

/// Nanoseconds are more than a clock knows.
fn time(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let whole = Duration::from_millis(u64::try_from(since.as_millis()).unwrap_or(0));
    humantime::format_rfc3339(SystemTime::UNIX_EPOCH + whole).to_string()
}
