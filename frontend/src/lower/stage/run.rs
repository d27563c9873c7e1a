//! Hides what `RUN` becomes: its shell, its here-documents, its mounts (BuildKit `convert.go`, `convert_runmount.go`).

use kiln_oci::path::ImagePath;

use super::super::plan::{Command, build_arg};
use super::super::text::run_command;
use super::{Lowering, Outcome, Stage};
use crate::diagnostic::Diagnostic;
use crate::graph::{
    BindMount, CacheMount, ContextId, CopyFrom, ExecOp, InlineFile, Mount, MountFrom, MountKind, NetworkMode, Op, SecretMount,
    SecurityMode, SshMount,
};
use crate::heredoc::{Heredoc, summary};
use crate::instruction::{CommandLine, MountSpec, MountType, Run, parse_mount};

/// Variables that reach every command without being declared.
const PROXIES: [&str; 5] = ["HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"];

/// Where secrets and agents' sockets are put that name no target.
const SECRETS: &str = "/run/secrets";
const AGENTS: &str = "/run/buildkit/ssh_agent";

/// How a command finds its ssh agent.
const AGENT_VARIABLE: &str = "SSH_AUTH_SOCK";

/// Where here-documents that are programs are put.
const PIPES: &str = "/dev/pipes";

impl Lowering<'_> {
    pub(super) fn run(&mut self, stage: &mut Stage, command: &Command, run: &Run) -> Outcome<()> {
        let i = &command.instruction;
        let mut shown = i.code.clone();
        let mut files = Vec::new();
        let args = match &run.command {
            CommandLine::Exec(args) if args.is_empty() => return Err(Diagnostic::error("RUN needs a command")),
            CommandLine::Exec(args) => args.clone(),
            CommandLine::Shell(text) => {
                let text = match run.files.first() {
                    None => text.clone(),
                    Some(file) if Heredoc::peek(text).is_some() => {
                        // Nothing but the document: it is the script, or, with `#!`, the program.
                        shown.push_str(&format!(" ({})", summary(&file.raw)));
                        if file.raw.starts_with("#!") {
                            let path = ImagePath::new(PIPES).join(file.name.as_bytes());
                            let text = format!("{PIPES}/{}", file.name);
                            files.push(InlineFile { path, data: file.body.clone().into_bytes(), mode: 0o755 });
                            text
                        } else {
                            file.body.clone()
                        }
                    }
                    // The shell understands here-documents by itself.
                    Some(_) => run.files.iter().fold(text.clone(), |text, file| format!("{text}\n{}{}", file.raw, file.name)),
                };
                stage.shell_args(&text)
            }
        };
        self.refuse(stage, run)?;
        let mounts = self.mounts(stage, command, run)?;
        stage.captured.mounts(&mounts, i.span);
        let network = match run.network {
            NetworkMode::Default => self.options.network,
            asked => asked,
        };
        let history = format!("RUN {} # buildkit", run_command(&args, &stage.args, &stage.env));
        let mut env = stage.env.entries().to_vec();
        let agent = mounts.iter().find(|mount| matches!(mount.kind, MountKind::Ssh(_)));
        if let Some(agent) = agent.filter(|_| !env.iter().any(|(name, _)| name == AGENT_VARIABLE)) {
            env.push((AGENT_VARIABLE.to_owned(), agent.target.to_string()));
        }
        let op = ExecOp {
            parent: stage.parent,
            args,
            env,
            proxy_env: self.proxies(),
            cwd: stage.directory(),
            user: stage.config.config.user.clone(),
            network,
            mounts,
            files,
            hostname: build_arg(self.options, "BUILDKIT_SANDBOX_HOSTNAME").unwrap_or(&self.options.hostname).to_owned(),
            security: run.security,
            extra_hosts: self.options.extra_hosts.clone(),
        };
        let name = self.step(stage, command, Some(&shown));
        stage.parent = Some(self.push(stage, name, i.span, stage.no_cache, Op::Exec(op)));
        stage.commit_layer(history);
        Ok(())
    }

    /// What can't be done, or not yet.
    fn refuse(&self, stage: &Stage, run: &Run) -> Outcome<()> {
        if run.security == SecurityMode::Insecure && !self.options.allow_insecure {
            let hint = "build with `--allow security.insecure` if you trust the Dockerfile";
            return Err(Diagnostic::error("RUN --security=insecure is not allowed by this build").with_hint(hint));
        }
        if run.network == NetworkMode::Host && self.options.network == NetworkMode::Private {
            let hint = "build with `--network=host` if you trust the Dockerfile";
            return Err(Diagnostic::error("RUN --network=host is not allowed by a build with a private network").with_hint(hint));
        }
        if let Some(device) = run.devices.first() {
            return Err(Diagnostic::error(format!("RUN --device={device} is not supported: kiln gives no devices to a build")));
        }
        // Another processor may be emulated; that shows when the command is executed.
        let (have, want) = (&self.options.build_platform, &stage.platform);
        if have.os != want.os {
            let error = Diagnostic::error(format!("RUN for {want} on a {have} machine is not possible"));
            return Err(error.with_hint("use `FROM --platform=$BUILDPLATFORM` for stages whose commands can run anywhere"));
        }
        Ok(())
    }

    fn mounts(&mut self, stage: &Stage, command: &Command, run: &Run) -> Outcome<Vec<Mount>> {
        let mut out = Vec::new();
        for (text, source) in run.mounts.iter().zip(&command.sources) {
            let spec = parse_mount(text, &mut |value| self.word(stage, &command.instruction, value))?;
            let from = source.map(|node| match self.files_of(node) {
                CopyFrom::Context(context) => MountFrom::Context(context),
                CopyFrom::Vertex(input) => MountFrom::Vertex(input),
            });
            let agents = out.iter().filter(|mount: &&Mount| matches!(mount.kind, MountKind::Ssh(_))).count();
            out.push(self.mount(stage, &spec, from, agents)?);
        }
        Ok(out)
    }

    /// `from` is the file system that the mount names, if it names one; `agents` mounts of agents come before it.
    fn mount(&self, stage: &Stage, spec: &MountSpec, from: Option<MountFrom>, agents: usize) -> Outcome<Mount> {
        let secret = secret_id(spec);
        let target = match spec.kind {
            _ if !spec.target.is_empty() => spec.target.clone(),
            MountType::Secret => format!("{SECRETS}/{}", secret.rsplit('/').next().unwrap_or_default()),
            MountType::Ssh => format!("{AGENTS}.{agents}"),
            _ => String::new(),
        };
        let target = stage.directory().join(target.as_bytes());
        if target.is_root() {
            let error = Diagnostic::error(format!("invalid mount target {:?}", target.to_string()));
            return Err(error.with_hint("name a directory below `/` with `target=`"));
        }
        let source = ImagePath::new(spec.source.as_bytes());
        let kind = match spec.kind {
            MountType::Tmpfs => MountKind::Tmpfs { size: spec.size.filter(|size| *size > 0) },
            MountType::Secret => MountKind::Secret(SecretMount {
                id: secret,
                file: spec.env.is_none() || !spec.target.is_empty(),
                env: spec.env.clone(),
                mode: spec.mode.unwrap_or(0o400),
                uid: spec.uid.unwrap_or(0),
                gid: spec.gid.unwrap_or(0),
                required: spec.required,
            }),
            MountType::Ssh => MountKind::Ssh(SshMount {
                id: if spec.id.is_empty() { "default".to_owned() } else { spec.id.clone() },
                mode: spec.mode.unwrap_or(0o600),
                uid: spec.uid.unwrap_or(0),
                gid: spec.gid.unwrap_or(0),
                required: spec.required,
            }),
            MountType::Cache => MountKind::Cache(CacheMount {
                id: self.cache_id(spec, &target),
                sharing: spec.sharing.unwrap_or_default(),
                from,
                source,
                mode: spec.mode.unwrap_or(0o755),
                uid: spec.uid.unwrap_or(0),
                gid: spec.gid.unwrap_or(0),
                readonly: spec.readonly,
            }),
            MountType::Bind => MountKind::Bind(BindMount {
                from: from.unwrap_or(MountFrom::Context(ContextId::Main)),
                source,
                writable: !spec.readonly,
            }),
        };
        Ok(Mount { target, kind })
    }

    fn cache_id(&self, spec: &MountSpec, target: &ImagePath) -> String {
        let id = if !spec.id.is_empty() {
            spec.id.clone()
        } else if spec.target.starts_with('/') {
            target.to_string()
        } else {
            // BuildKit names the cache after the target as written, cleaned, whatever WORKDIR is.
            ImagePath::new(spec.target.as_bytes()).to_string().trim_start_matches('/').to_owned()
        };
        match build_arg(self.options, "BUILDKIT_CACHE_MOUNT_NS") {
            Some(namespace) if !namespace.is_empty() => format!("{namespace}/{id}"),
            _ => id,
        }
    }

    /// The proxy variables in both cases; build arguments beat the client's.
    fn proxies(&self) -> Vec<(String, String)> {
        let mut out = Vec::new();
        for name in PROXIES {
            let given = self.options.proxy_args.iter().chain(&self.options.build_args);
            if let Some((_, value)) = given.rev().find(|(n, _)| n.eq_ignore_ascii_case(name)) {
                out.push((name.to_owned(), value.clone()));
                out.push((name.to_lowercase(), value.clone()));
            }
        }
        out
    }
}

/// Which secret a mount means: `source` and `id` are two names for the same thing, and the target's last part is a third.
fn secret_id(spec: &MountSpec) -> String {
    let named = if spec.source.is_empty() { &spec.id } else { &spec.source };
    if !named.is_empty() {
        return named.clone();
    }
    spec.target.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned()
}

/// Whether a build argument needs no `ARG` to be of use.
pub(in crate::lower) fn is_predefined(name: &str) -> bool {
    PROXIES.iter().any(|proxy| proxy.eq_ignore_ascii_case(name)) || name.starts_with("BUILDKIT_") || name == "SOURCE_DATE_EPOCH"
}
