//! A few base images, and a way to write down what lowering made.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "test support: each binary uses its own part, and a panic is a failure"
)]

use std::fmt::Write as _;

use kiln_frontend::graph::{ContextId, CopyFrom, CopySource, Input, MountFrom, MountKind, NetworkMode, Op};
use kiln_frontend::{
    BaseImage, BaseRequest, Bases, Build, Diagnostic, LowerOptions, Lowered, NamedContext, Parsed, Source, TimeSource, lower,
    parse,
};
use kiln_oci::config::{HistoryEntry, ImageConfig};
use kiln_oci::digest::{DiffId, Digest};
use kiln_oci::platform::Platform;

/// What is handed to `lower` beside the text.
#[derive(Debug, Default, Clone)]
pub struct Fixture {
    pub build_args: Vec<(String, String)>,
    pub target: Option<String>,
    pub labels: Vec<(String, String)>,
    pub no_cache_filter: Vec<String>,
    pub contexts: Vec<NamedContext>,
    pub context_epoch: Option<u64>,
    pub network: NetworkMode,
}

impl Fixture {
    pub fn options(&self) -> LowerOptions {
        let amd64 = Platform::parse("linux/amd64").unwrap();
        LowerOptions {
            build_args: self.build_args.clone(),
            target: self.target.clone(),
            labels: self.labels.clone(),
            no_cache_filter: self.no_cache_filter.clone(),
            contexts: self.contexts.clone(),
            context_epoch: self.context_epoch,
            network: self.network,
            build_platform: amd64.clone(),
            target_platform: amd64,
            ..LowerOptions::default()
        }
    }

    pub fn try_lower(&self, text: &str) -> (Source, Parsed, Result<Build, Vec<Diagnostic>>) {
        let source = Source::new("Dockerfile", text.as_bytes().to_vec()).unwrap();
        let parsed = parse(&source);
        let mut bases = Bases::default();
        let mut options = self.options();
        loop {
            match lower(&parsed, &source, &options, &bases) {
                // Whatever it is, it is of this second.
                Ok(Lowered::NeedsTime { .. }) => options.source_epoch = Some(Some(1_700_000_000)),
                Ok(Lowered::Needs { images, .. }) => {
                    for need in images {
                        let image = base_image(&need);
                        bases.insert(need.reference, need.platform, image);
                    }
                }
                Ok(Lowered::Build(build)) => return (source, parsed, Ok(*build)),
                Err(errors) => return (source, parsed, Err(errors)),
            }
        }
    }

    pub fn lower(&self, text: &str) -> Build {
        let (source, _, result) = self.try_lower(text);
        result.unwrap_or_else(|errors| panic!("{text}\n{}", errors.iter().map(|e| e.render(&source)).collect::<String>()))
    }

    pub fn time_source(&self, text: &str) -> Option<TimeSource> {
        let source = Source::new("Dockerfile", text.as_bytes().to_vec()).unwrap();
        match lower(&parse(&source), &source, &self.options(), &Bases::default()).unwrap() {
            Lowered::NeedsTime { source, .. } => Some(source),
            _ => None,
        }
    }

    pub fn needs(&self, text: &str) -> Vec<BaseRequest> {
        let source = Source::new("Dockerfile", text.as_bytes().to_vec()).unwrap();
        match lower(&parse(&source), &source, &self.options(), &Bases::default()).unwrap() {
            Lowered::Needs { images, .. } => images,
            Lowered::Build(_) | Lowered::NeedsTime { .. } => Vec::new(),
        }
    }
}

/// An image of one layer; its digest begins with four digits that tell it apart.
fn base_image(need: &BaseRequest) -> BaseImage {
    let name = need.reference.familiar_repository();
    let mark = match name.as_str() {
        "busybox" => "b0b0",
        "tool" => "7001",
        "onbuild" => "0b0b",
        "missing" => panic!("a stage that isn't needed was asked for"),
        _ => "0000",
    };
    let mut config = ImageConfig::empty(&Platform::parse("linux/amd64").unwrap());
    config.config.env = vec!["PATH=/bin".into()];
    config.rootfs.diff_ids = vec![DiffId::new(Digest::of(name.as_bytes()))];
    config.history = vec![HistoryEntry { created_by: "base".into(), ..HistoryEntry::default() }];
    match name.as_str() {
        "withcmd" => config.config.cmd = Some(vec!["c".into()]),
        "two-in-one-trigger" => config.config.on_build = vec!["RUN a\nRUN b".into()],
        "onbuild" => config.config.on_build = vec!["COPY --from=tool:1 /z /".into(), "RUN t".into()],
        _ => {}
    }
    let digest = Digest::from_hex(&format!("{mark}{}", "0".repeat(60))).unwrap();
    BaseImage { digest, config }
}

fn input(input: Input) -> String {
    input.map_or_else(|| "none".to_owned(), |id| id.0.to_string())
}

/// A line for each vertex, then the image.
pub fn dump(build: &Build) -> String {
    let mut out = String::new();
    for (index, vertex) in build.graph.vertices.iter().enumerate() {
        assert!(vertex.op.inputs().iter().all(|id| id.0 < index), "inputs come first");
        let name = vertex.name.replace(&"0".repeat(60), "");
        let op = match &vertex.op {
            Op::Image(_) => "image".to_owned(),
            Op::Context(op) => format!("context {:?}", op.context),
            Op::Workdir(op) => format!("workdir {} {} user={:?}", input(op.parent), op.path, op.user),
            Op::Copy(op) => {
                let from = match op.from {
                    CopyFrom::Context(ContextId::Main) => "context".to_owned(),
                    CopyFrom::Context(ContextId::Named(index)) => format!("context-{index}"),
                    CopyFrom::Vertex(id) => input(id),
                };
                let sources: Vec<String> = op
                    .sources
                    .iter()
                    .map(|s| match s {
                        CopySource::Path(p) | CopySource::Http(p) | CopySource::Git(p) => p.clone(),
                        CopySource::Inline { name, data } => format!("{name}={:?}", String::from_utf8_lossy(data)),
                    })
                    .collect();
                let mut text = format!("copy {} from={from} [{}] -> {}", input(op.parent), sources.join(", "), op.dest);
                if op.dest_is_dir {
                    text.push_str(" dir");
                }
                if let Some(chown) = &op.chown {
                    let _ = write!(text, " chown={chown}");
                }
                text
            }
            Op::Exec(op) => {
                let env: Vec<String> = op.env.iter().map(|(k, v)| format!("{k}={v}")).collect();
                let mut text = format!("exec {} {:?} {} cwd={}", input(op.parent), op.args, env.join(" "), op.cwd);
                if op.network != NetworkMode::Default {
                    let _ = write!(text, " net={:?}", op.network);
                }
                for mount in &op.mounts {
                    let from = |from: MountFrom| match from {
                        MountFrom::Context(ContextId::Main) => "context".to_owned(),
                        MountFrom::Context(ContextId::Named(index)) => format!("context-{index}"),
                        MountFrom::Vertex(id) => input(id),
                    };
                    let kind = match &mount.kind {
                        MountKind::Bind(b) => {
                            format!("bind:{}:{}{}", from(b.from), b.source, if b.writable { ":rw" } else { "" })
                        }
                        MountKind::Cache(c) => format!("cache:{}:{:?}:{:o}:{}:{}", c.id, c.sharing, c.mode, c.uid, c.gid),
                        MountKind::Tmpfs { size } => format!("tmpfs:{}", size.unwrap_or(0)),
                        MountKind::Secret(s) => {
                            let shown = [s.file.then(|| "file".to_owned()), s.env.clone()];
                            let shown: Vec<String> = shown.into_iter().flatten().collect();
                            let required = if s.required { ":required" } else { "" };
                            format!("secret:{}:{}:{:o}:{}:{}{required}", s.id, shown.join("+"), s.mode, s.uid, s.gid)
                        }
                        MountKind::Ssh(s) => {
                            let required = if s.required { ":required" } else { "" };
                            format!("ssh:{}:{:o}:{}:{}{required}", s.id, s.mode, s.uid, s.gid)
                        }
                    };
                    let _ = write!(text, " mount={}:{kind}", mount.target);
                }
                for file in &op.files {
                    let _ = write!(text, " file={}:{:?}", file.path, String::from_utf8_lossy(&file.data));
                }
                text
            }
        };
        let _ = writeln!(out, "{index} {name} <{op}>");
    }
    let _ = writeln!(out, "target {}", input(build.target));
    if let Some((reference, _)) = &build.image.base {
        let _ = writeln!(out, "base {reference}");
    }
    let _ = writeln!(out, "config {}", serde_json::to_string(&build.image.config.config).unwrap());
    for entry in &build.image.history {
        assert_eq!(entry.comment, "buildkit.dockerfile.v0");
        let _ = writeln!(
            out,
            "{} {}",
            if entry.empty_layer { "-" } else { "+" },
            entry.created_by.escape_debug().to_string().replace("\\\"", "\"").replace("\\'", "'")
        );
    }
    for warning in &build.warnings {
        let _ = writeln!(out, "warn {}: {}", warning.rule.map_or("", |r| r.name()), warning.message);
    }
    out
}
