//! Hides how a graph looks in a provenance: the steps of BuildKit's low-level language, as its JSON has them (`solver/pb/ops.proto`).
//! What kiln does in one step, such as to fetch and to copy, is several there.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use kiln_frontend::graph::{
    CacheMount, ContextId, CopyFrom, CopyOp, CopySource, ExecOp, Graph, Input, Mount, MountFrom, MountKind, NetworkMode, Op,
    SecretMount, SecurityMode, Sharing, SshMount, VertexId,
};
use kiln_oci::digest::Digest;
use kiln_oci::platform::Platform;
use serde_json::{Map, Value, json};

use crate::attest::redact::redact;

/// The steps of a build, inputs first.
#[derive(Debug, Default)]
pub(super) struct Steps {
    steps: Vec<Value>,
    digests: BTreeMap<String, String>,
    /// The step of each vertex.
    places: Vec<Option<usize>>,
    /// Steps that several use: by what they provide.
    shared: BTreeMap<String, usize>,
}

/// An input of an operation: the step that it is the result of; `None` is nothing.
type From = Option<usize>;

impl Steps {
    /// The steps for all vertices of `graph`, and a last one for the result.
    pub(super) fn new(graph: &Graph, target: Option<VertexId>, contexts: &[String], main: Option<&str>) -> Self {
        let mut steps = Self::default();
        for vertex in &graph.vertices {
            let place = match &vertex.op {
                Op::Image(op) => {
                    let name = op.reference.with_digest(op.digest);
                    Some(steps.source(&format!("docker-image://{name}"), Map::new(), Some(&op.platform)))
                }
                Op::Context(op) => Some(steps.context(op.context, contexts, main)),
                Op::Exec(op) => Some(steps.exec(op, &vertex.platform, contexts, main)),
                Op::Copy(op) => Some(steps.copy(op, contexts, main)),
                Op::Workdir(op) => {
                    let owner = owner(&op.user);
                    let mkdir = with(
                        json!({ "path": op.path.to_string(), "mode": 0o755, "makeParents": true, "timestamp": -1 }),
                        [("owner", owner)],
                    );
                    let parent = steps.of_input(op.parent);
                    Some(steps.files(parent, vec![(None, json!({ "mkdir": mkdir }))]))
                }
            };
            steps.places.push(place);
        }
        let result = steps.of_input(target);
        steps.push(json!({ "Op": {} }), &[result]);
        steps
    }

    /// The name of a vertex' step.
    pub(super) fn of(&self, id: VertexId) -> Option<String> {
        self.places.get(id.0).copied().flatten().map(name)
    }

    /// `buildConfig`.
    pub(super) fn config(&self) -> Value {
        json!({ "llbDefinition": self.steps, "digestMapping": self.digests })
    }

    /// The steps.
    pub(super) fn definition(&self) -> &[Value] {
        &self.steps
    }

    /// Which digest is which step.
    pub(super) fn digests(&self) -> &BTreeMap<String, String> {
        &self.digests
    }

    fn of_input(&self, input: Input) -> From {
        input.and_then(|id| self.places.get(id.0).copied().flatten())
    }

    fn push(&mut self, op: Value, inputs: &[From]) -> usize {
        let place = self.steps.len();
        let inputs: Vec<String> = inputs.iter().flatten().map(|input| format!("{}:0", name(*input))).collect();
        let mut step = json!({ "id": name(place), "op": op });
        if !inputs.is_empty() {
            step["inputs"] = json!(inputs);
        }
        // A step is what it does to what.
        let digest = Digest::of(json!([step["op"], step.get("inputs")]).to_string().as_bytes());
        self.digests.entry(digest.to_string()).or_insert_with(|| name(place));
        self.steps.push(step);
        place
    }

    /// A step that provides something from outside, once.
    fn source(&mut self, identifier: &str, attributes: Map<String, Value>, platform: Option<&Platform>) -> usize {
        let identifier = redact(identifier);
        let key = format!("{identifier} {}", platform.map(ToString::to_string).unwrap_or_default());
        if let Some(place) = self.shared.get(&key) {
            return *place;
        }
        let mut source = json!({ "identifier": identifier });
        if !attributes.is_empty() {
            source["attrs"] = Value::Object(attributes);
        }
        let mut op = json!({ "Op": { "source": source } });
        if let Some(platform) = platform {
            op["platform"] = of_platform(platform);
        }
        op["constraints"] = json!({});
        let place = self.push(op, &[]);
        self.shared.insert(key, place);
        place
    }

    fn context(&mut self, id: ContextId, contexts: &[String], main: Option<&str>) -> usize {
        let identifier = match (id, main) {
            (ContextId::Main, Some(address)) => address.to_owned(),
            (ContextId::Main, None) => "local://context".to_owned(),
            (ContextId::Named(index), _) => {
                format!("local://{}", contexts.get(index).map(String::as_str).unwrap_or_default())
            }
        };
        self.source(&identifier, Map::new(), None)
    }

    fn exec(&mut self, op: &ExecOp, platform: &Platform, contexts: &[String], main: Option<&str>) -> usize {
        // The root file system is the first input, and the first mount.
        let mut inputs = vec![self.of_input(op.parent)];
        let first = if op.parent.is_some() { 0 } else { -1 };
        let mut mounts = vec![with(json!({ "dest": "/" }), [("input", (first < 0).then(|| json!(first)))])];
        let mut variables = Vec::new();
        for mount in &op.mounts {
            let from = match &mount.kind {
                MountKind::Bind(bind) => Some(bind.from),
                MountKind::Cache(cache) => cache.from,
                MountKind::Tmpfs { .. } | MountKind::Secret(_) | MountKind::Ssh(_) => None,
            };
            let from = match from {
                Some(MountFrom::Vertex(input)) => self.of_input(input),
                Some(MountFrom::Context(id)) => Some(self.context(id, contexts, main)),
                None => None,
            };
            let input = from.map(|from| {
                let known = inputs.iter().position(|input| *input == Some(from));
                known.unwrap_or_else(|| {
                    inputs.push(Some(from));
                    inputs.iter().flatten().count() - 1
                })
            });
            if let MountKind::Secret(SecretMount { id, env: Some(name), required, .. }) = &mount.kind {
                variables.push(with(json!({ "ID": id, "name": name }), [("optional", (!required).then(|| json!(true)))]));
            }
            mounts.extend(mounted(mount, input));
        }
        let env: Vec<String> = op.env.iter().map(|(key, value)| format!("{key}={}", redact(value))).collect();
        let args: Vec<String> = op.args.iter().map(|arg| redact(arg)).collect();
        let hosts: Vec<Value> = op.extra_hosts.iter().map(|(host, ip)| json!({ "Host": host, "IP": ip })).collect();
        let meta = with(
            json!({ "args": args, "env": env, "cwd": op.cwd.to_string() }),
            [("user", (!op.user.is_empty()).then(|| json!(op.user))), ("extraHosts", (!hosts.is_empty()).then(|| json!(hosts)))],
        );
        let network = match op.network {
            NetworkMode::Default | NetworkMode::Private => None,
            NetworkMode::Host => Some(json!(1)),
            NetworkMode::None => Some(json!(2)),
        };
        let exec = with(
            json!({ "meta": meta, "mounts": mounts }),
            [
                ("network", network),
                ("security", (op.security == SecurityMode::Insecure).then(|| json!(1))),
                ("secretenv", (!variables.is_empty()).then(|| json!(variables))),
            ],
        );
        let exec = json!({ "Op": { "exec": exec }, "platform": of_platform(platform), "constraints": {} });
        self.push(exec, &inputs)
    }

    fn copy(&mut self, op: &CopyOp, contexts: &[String], main: Option<&str>) -> usize {
        let mut actions = Vec::new();
        for source in &op.sources {
            let (from, path) = match source {
                CopySource::Path(path) => {
                    let from = match op.from {
                        CopyFrom::Vertex(input) => self.of_input(input),
                        CopyFrom::Context(id) => Some(self.context(id, contexts, main)),
                    };
                    (from, format!("/{}", path.trim_start_matches("./").trim_start_matches('/')))
                }
                CopySource::Http(url) => {
                    let mut attributes = Map::new();
                    if let Some(kiln_frontend::graph::Checksum::Digest(digest)) = &op.checksum {
                        attributes.insert("http.checksum".to_owned(), json!(digest));
                    }
                    (Some(self.source(url, attributes, None)), "/".to_owned())
                }
                CopySource::Git(url) => (Some(self.source(url, Map::new(), None)), "/".to_owned()),
                CopySource::Inline { name, data } => {
                    let path = if op.dest_is_dir { format!("{}/{name}", op.dest) } else { op.dest.to_string() };
                    let data = BASE64.encode(redact(&String::from_utf8_lossy(data)));
                    let file = json!({ "path": path, "mode": 0o644, "data": data, "timestamp": -1 });
                    actions.push((None, json!({ "mkfile": with(file, [("owner", op.chown.as_deref().and_then(owner))]) })));
                    continue;
                }
            };
            actions.push((from, json!({ "copy": copied(op, &path) })));
        }
        let parent = if op.link { None } else { self.of_input(op.parent) };
        let made = self.files(parent, actions);
        match (op.link, self.of_input(op.parent)) {
            (true, Some(below)) => {
                let inputs = [Some(below), Some(made)];
                let merge = json!({ "Op": { "merge": { "inputs": [{ "input": 0 }, { "input": 1 }] } }, "constraints": {} });
                self.push(merge, &inputs)
            }
            _ => made,
        }
    }

    /// Changes of files above `parent`, each with what it takes them from.
    fn files(&mut self, parent: From, changes: Vec<(From, Value)>) -> usize {
        let mut inputs = vec![parent];
        let mut actions = Vec::new();
        // The result of an action is counted behind the inputs.
        let mut places: Vec<usize> = Vec::new();
        for (from, _) in &changes {
            places.extend(from.filter(|from| !places.contains(from)));
        }
        inputs.extend(places.iter().map(|place| Some(*place)));
        let count = inputs.iter().flatten().count();
        let last = changes.len().saturating_sub(1);
        for (index, (from, action)) in changes.into_iter().enumerate() {
            let below = match (index, parent) {
                (0, None) => -1,
                (0, Some(_)) => 0,
                _ => i64::try_from(count + index - 1).unwrap_or(i64::MAX),
            };
            let other = from.and_then(|from| inputs.iter().flatten().position(|input| *input == from));
            let other = other.map_or(json!(-1), |other| json!(other));
            let output = if index == last { 0 } else { -1 };
            actions.push(json!({ "input": below, "secondaryInput": other, "output": output, "Action": action }));
        }
        self.push(json!({ "Op": { "file": { "actions": actions } }, "constraints": {} }), &inputs)
    }
}

/// The one step by which a Dockerfile is had.
pub(super) fn of_dockerfile(main: Option<&str>) -> Steps {
    let mut steps = Steps::default();
    let place = steps.source(main.unwrap_or("local://dockerfile"), Map::new(), None);
    steps.push(json!({ "Op": {} }), &[Some(place)]);
    steps
}

fn name(place: usize) -> String {
    format!("step{place}")
}

/// The object with those of the fields that are there.
fn with<const N: usize>(mut object: Value, fields: [(&str, Option<Value>); N]) -> Value {
    for (key, value) in fields {
        if let Some(value) = value {
            object[key] = value;
        }
    }
    object
}

fn of_platform(platform: &Platform) -> Value {
    let variant = platform.variant.as_ref().map(|variant| json!(variant));
    with(json!({ "Architecture": platform.architecture, "OS": platform.os }), [("Variant", variant)])
}

/// `USER` and `--chown`: numbers, or names that are looked up in the first input.
fn owner(text: &str) -> Option<Value> {
    let one = |text: &str| match text.parse::<u32>() {
        Ok(id) => json!({ "User": { "byID": id } }),
        Err(_) => json!({ "User": { "byName": { "name": text, "input": 0 } } }),
    };
    let (user, group) = text.split_once(':').unwrap_or((text, ""));
    let fields = [("user", (!user.is_empty()).then(|| one(user))), ("group", (!group.is_empty()).then(|| one(group)))];
    (!text.is_empty()).then(|| with(json!({}), fields))
}

fn copied(op: &CopyOp, source: &str) -> Value {
    let mode = op.chmod.as_deref().and_then(|mode| u32::from_str_radix(mode, 8).ok());
    let symbolic = op.chmod.as_deref().filter(|_| mode.is_none());
    let slash = if op.dest_is_dir && !op.dest.is_root() { "/" } else { "" };
    let plain = matches!(op.from, CopyFrom::Context(_) | CopyFrom::Vertex(_)) && !op.is_add;
    with(
        json!({
            "src": source,
            "dest": format!("{}{slash}", op.dest),
            "mode": mode.map_or(json!(-1), |mode| json!(mode)),
            "timestamp": -1,
            "followSymlink": true,
            "dirCopyContents": true,
            "createDestPath": true,
            "allowWildcard": true,
            "allowEmptyWildcard": true,
        }),
        [
            ("owner", op.chown.as_deref().and_then(owner)),
            ("modeStr", symbolic.map(|text| json!(text))),
            ("attemptUnpackDockerCompatibility", (!plain && op.unpack != Some(false)).then(|| json!(true))),
            ("excludePatterns", (!op.exclude.is_empty()).then(|| json!(op.exclude))),
        ],
    )
}

/// A mount, `None` for a secret that is only a variable.
fn mounted(mount: &Mount, input: Option<usize>) -> Option<Value> {
    let base = json!({ "input": input.map_or(json!(-1), |input| json!(input)), "dest": mount.target.to_string(), "output": -1 });
    Some(match &mount.kind {
        MountKind::Bind(bind) => with(
            base,
            [
                ("selector", (!bind.source.is_root()).then(|| json!(bind.source.to_string()))),
                ("readonly", (!bind.writable).then(|| json!(true))),
            ],
        ),
        MountKind::Cache(CacheMount { id, sharing, source, readonly, .. }) => {
            let sharing = match sharing {
                Sharing::Shared => None,
                Sharing::Private => Some(json!(1)),
                Sharing::Locked => Some(json!(2)),
            };
            with(
                base,
                [
                    ("selector", (!source.is_root()).then(|| json!(source.to_string()))),
                    ("readonly", readonly.then(|| json!(true))),
                    ("mountType", Some(json!(3))),
                    ("cacheOpt", Some(with(json!({ "ID": id }), [("sharing", sharing)]))),
                ],
            )
        }
        MountKind::Tmpfs { size } => {
            let options = size.map(|size| json!({ "size": size }));
            with(base, [("mountType", Some(json!(4))), ("TmpfsOpt", options)])
        }
        MountKind::Secret(SecretMount { file: false, .. }) => return None,
        MountKind::Secret(SecretMount { id, mode, uid, gid, required, .. }) => {
            with(base, [("mountType", Some(json!(1))), ("secretOpt", Some(opened(id, *mode, *uid, *gid, *required)))])
        }
        MountKind::Ssh(SshMount { id, mode, uid, gid, required }) => {
            with(base, [("mountType", Some(json!(2))), ("SSHOpt", Some(opened(id, *mode, *uid, *gid, *required)))])
        }
    })
}

/// What secrets and agents have in common.
fn opened(id: &str, mode: u32, uid: u32, gid: u32, required: bool) -> Value {
    let number = |id: u32| (id != 0).then(|| json!(id));
    with(
        json!({ "ID": id, "mode": mode }),
        [("uid", number(uid)), ("gid", number(gid)), ("optional", (!required).then(|| json!(true)))],
    )
}
