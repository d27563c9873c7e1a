//! Hides what each instruction does to a stage: its configuration, its history, its variables, its file system
//! (BuildKit `convert.go`, `dispatch…`).

mod copy;
mod run;

pub(super) use run::is_predefined;

use std::collections::BTreeSet;

use kiln_oci::config::{HistoryEntry, ImageConfig};
use kiln_oci::path::ImagePath;
use kiln_oci::platform::Platform;
use kiln_oci::reference::Reference;

use super::outline::{Captured, KnownArg, OutlineArg};
use super::plan::{Base, Command, Node, Plan, build_arg};
use super::text::{list, platform_label, quote_health, quote_list, step_name, upper_first_word};
use super::{Bases, LowerOptions, ports, validate};
use crate::diagnostic::{Diagnostic, suggestion};
use crate::expand::{Env, Expansion, Lexer, split_pair};
use crate::graph::{ContextId, ContextOp, CopyFrom, Graph, ImageOp, Input, Op, Vertex, VertexId, WorkdirOp};
use crate::instruction::{Arg, CommandLine, HealthcheckSpec, Instruction, Kind, Pair};
use crate::lint::{Rule, names_a_secret};
use crate::source::Span;

/// What BuildKit writes into each history entry.
const COMMENT: &str = "buildkit.dockerfile.v0";
/// What BuildKit writes into the entry of a layer that no instruction made.
const EXPORTER_COMMENT: &str = "buildkit.exporter.image.v0";
/// The search path of an image that sets none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Arguments that never reach a command's environment.
const NOT_IN_ENVIRONMENT: [&str; 2] = ["BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"];

/// A stage as far as it has been lowered.
#[derive(Debug, Clone)]
pub(super) struct Stage {
    pub parent: Input,
    pub base: Option<(Reference, Platform)>,
    /// With the base's history only.
    pub config: ImageConfig,
    pub history: Vec<HistoryEntry>,
    pub platform: Platform,
    /// `ENV` and `ARG` together, as commands see them.
    env: Env,
    /// The `ARG`s in scope, for the history.
    args: Vec<(String, Option<String>)>,
    workdir_set: bool,
    /// Where the stage itself sets them; not inherited.
    cmd: Option<Span>,
    entrypoint: Option<Span>,
    healthcheck: Option<Span>,
    label: String,
    no_cache: bool,
    total: usize,
    index: usize,
    /// What the stage itself tells of arguments and mounts; not inherited.
    pub captured: Captured,
}

/// Lowers stages into one graph.
pub(super) struct Lowering<'a> {
    pub plan: &'a Plan<'a>,
    pub options: &'a LowerOptions,
    pub bases: &'a Bases,
    pub escape: char,
    pub graph: Graph,
    /// About the platforms of base images, which BuildKit looks at before any instruction.
    pub base_lints: Vec<Diagnostic>,
    pub lints: Vec<Diagnostic>,
    /// How many lints there were when the first mistake was found.
    pub stopped: Option<usize>,
    /// What became of each node so far.
    pub done: Vec<Option<Stage>>,
}

type Outcome<T> = Result<T, Diagnostic>;

impl Lowering<'_> {
    /// Lowers one node; the nodes it needs have been.
    pub(super) fn node(&mut self, index: usize) -> Result<(), Vec<Diagnostic>> {
        let node = &self.plan.nodes[index];
        let mut stage = self.start(node);
        let mut errors = Vec::new();
        for command in &node.commands {
            if let Err(error) = self.command(&mut stage, command) {
                self.stopped.get_or_insert(self.lints.len());
                let span = error.span.or(Some(command.instruction.span));
                errors.push(Diagnostic { span, ..error });
            }
        }
        self.done[index] = Some(stage);
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    /// The stage before its first instruction.
    fn start(&mut self, node: &Node) -> Stage {
        let name = node.name.as_deref().unwrap_or_default();
        let no_cache = self.options.no_cache_filter.iter().any(|n| !name.is_empty() && n.eq_ignore_ascii_case(name));
        let mut stage = match &node.base {
            Base::Node(base) => {
                // It was lowered before: `Plan::check_order` saw to that.
                let inherited = self.done[*base].clone();
                let mut stage = inherited.unwrap_or_else(|| Stage::empty(&node.platform));
                stage.config.config.on_build.clear();
                (stage.cmd, stage.entrypoint, stage.healthcheck) = (None, None, None);
                stage
            }
            Base::Scratch | Base::Context(_) => {
                let mut stage = Stage::empty(&self.options.target_platform);
                stage.config.config.working_dir = "/".to_owned();
                stage
            }
            Base::Image(_) => Stage::empty(&node.platform),
        };
        stage.captured = Captured::new(&node.used);
        stage.label = match self.options.platform_names {
            true => platform_label(&stage.platform, &self.options.target_platform, &node.label),
            false => node.label.clone(),
        };
        stage.no_cache = no_cache;
        stage.total = node.total;
        stage.index = 0;
        if let Base::Image(reference) = &node.base {
            self.start_from_image(&mut stage, node, reference);
        }
        if let Base::Context(context) = node.base {
            self.start_from_context(&mut stage, node, context);
        }
        let config = &mut stage.config.config;
        if !config.env.iter().any(|text| split_pair(text).0 == "PATH") {
            config.env.push(format!("PATH={DEFAULT_PATH}"));
        }
        for text in &config.env {
            let (name, value) = split_pair(text);
            stage.env.set(name, value);
        }
        if !config.working_dir.is_empty() {
            config.working_dir = ImagePath::new(config.working_dir.as_bytes()).to_string();
        }
        stage
    }

    fn start_from_image(&mut self, stage: &mut Stage, node: &Node, reference: &Reference) {
        // `Plan::resolve` asked for it until it was there.
        let Some(image) = self.bases.get(reference, &node.platform) else { return };
        let mut config = image.config.clone();
        // BuildKit reads the base into a structure of its own, which drops what it doesn't know.
        config.extra.clear();
        config.config.extra.clear();
        config.history.iter_mut().for_each(|entry| entry.extra.clear());
        config.created = None;
        config.config.on_build.clear();
        let have = config.platform();
        let want = &node.platform;
        if node.declared && (have.os != want.os || have.architecture != want.architecture) {
            let message = format!(
                "Base image {} was pulled with platform {:?}, expected {:?} for current build",
                node.written,
                have.to_string(),
                want.to_string()
            );
            self.base_lints.push(Diagnostic::lint(Rule::InvalidBaseImagePlatform, message, node.span));
        }
        let is_empty = config.rootfs.diff_ids.is_empty() && config.history.iter().all(|entry| entry.empty_layer);
        stage.config = config;
        stage.base = Some((reference.clone(), node.platform.clone()));
        if is_empty {
            return;
        }
        let op = ImageOp { reference: reference.clone(), platform: node.platform.clone(), digest: image.digest };
        let name = stage.next_name(false, &format!("FROM {}", reference.with_digest(image.digest)));
        let same = |vertex: &Vertex| matches!(&vertex.op, Op::Image(other) if *other == op);
        let id = match self.graph.vertices.iter().position(same) {
            Some(index) => VertexId(index),
            None => self.push(stage, name, node.span, false, Op::Image(op)),
        };
        stage.parent = Some(id);
    }

    fn start_from_context(&mut self, stage: &mut Stage, node: &Node, context: ContextId) {
        let op = ContextOp { context };
        let name = format!("[context {}] load from client", self.context_name(context));
        let same = |vertex: &Vertex| matches!(&vertex.op, Op::Context(other) if *other == op);
        let id = match self.graph.vertices.iter().position(same) {
            Some(index) => VertexId(index),
            None => self.push(stage, name.clone(), node.span, false, Op::Context(op)),
        };
        stage.parent = Some(id);
        let entry = HistoryEntry { created_by: name, comment: EXPORTER_COMMENT.to_owned(), ..HistoryEntry::default() };
        stage.history.push(entry);
    }

    fn context_name(&self, context: ContextId) -> &str {
        match context {
            ContextId::Main => "context",
            ContextId::Named(index) => self.options.contexts.get(index).map_or("context", |context| &context.name),
        }
    }

    fn push(&mut self, stage: &Stage, name: String, span: Span, no_cache: bool, op: Op) -> VertexId {
        let id = VertexId(self.graph.vertices.len());
        let vertex =
            Vertex { name, span: Some(span), stage: stage.label.clone(), no_cache, platform: stage.platform.clone(), op };
        self.graph.vertices.push(vertex);
        id
    }

    fn command(&mut self, stage: &mut Stage, command: &Command) -> Outcome<()> {
        let i = &command.instruction;
        match &i.kind {
            Kind::Add(transfer) => self.transfer(stage, command, transfer, true),
            Kind::Copy(transfer) => self.transfer(stage, command, transfer, false),
            Kind::Run(run) => self.run(stage, command, run),
            Kind::Arg(args) => self.arg(stage, i, args),
            Kind::Env(pairs) => self.env(stage, i, pairs),
            Kind::Label(pairs) => self.label(stage, i, pairs),
            Kind::Workdir(path) => self.workdir(stage, command, path),
            Kind::Expose(ports) => self.expose(stage, i, ports),
            Kind::Cmd(line) => {
                self.used_once(i, stage.cmd.replace(i.span));
                let args = self.with_shell(stage, i, line);
                stage.commit(format!("CMD {}", quote_list(&args)));
                stage.config.config.cmd = Some(args).filter(|a| !a.is_empty());
                stage.config.config.args_escaped = true;
                Ok(())
            }
            Kind::Entrypoint(line) => {
                self.used_once(i, stage.entrypoint.replace(i.span));
                let args = self.with_shell(stage, i, line);
                stage.commit(format!("ENTRYPOINT {}", quote_list(&args)));
                stage.config.config.entrypoint = Some(args).filter(|a| !a.is_empty());
                if stage.cmd.is_none() {
                    stage.config.config.cmd = None;
                }
                Ok(())
            }
            Kind::Healthcheck(HealthcheckSpec(check)) => {
                self.used_once(i, stage.healthcheck.replace(i.span));
                stage.commit(format!("HEALTHCHECK {}", quote_health(check)));
                stage.config.config.healthcheck = Some(check.clone());
                Ok(())
            }
            Kind::Maintainer(text) => {
                stage.config.author = Some(text.clone()).filter(|t| !t.is_empty());
                stage.commit(format!("MAINTAINER {text}"));
                Ok(())
            }
            Kind::Onbuild(text) => {
                stage.config.config.on_build.push(text.clone());
                Ok(())
            }
            Kind::Shell(args) => {
                stage.config.config.shell = Some(args.clone());
                stage.commit(format!("SHELL {}", list(args)));
                Ok(())
            }
            Kind::Stopsignal(text) => {
                let signal = self.word(stage, i, text)?;
                if !validate::is_signal(&signal) {
                    return Err(Diagnostic::error(format!("invalid signal: {signal}")));
                }
                stage.commit(format!("STOPSIGNAL {signal}"));
                stage.config.config.stop_signal = Some(signal);
                Ok(())
            }
            Kind::User(text) => {
                let user = self.word(stage, i, text)?;
                stage.commit(format!("USER {user}"));
                stage.config.config.user = user;
                Ok(())
            }
            Kind::Volume(texts) => {
                let volumes = texts.iter().map(|v| self.word(stage, i, v)).collect::<Outcome<Vec<_>>>()?;
                if volumes.iter().any(String::is_empty) {
                    return Err(Diagnostic::error("VOLUME specified can not be an empty string"));
                }
                stage.commit(format!("VOLUME {}", list(&volumes)));
                volumes.into_iter().for_each(|v| {
                    stage.config.config.volumes.insert(v);
                });
                Ok(())
            }
        }
    }

    fn arg(&mut self, stage: &mut Stage, i: &Instruction, args: &[Arg]) -> Outcome<()> {
        let mut texts = Vec::new();
        for (position, arg) in args.iter().enumerate() {
            self.secret_lint("ARG", &arg.name, i.span);
            let value = match (build_arg(self.options, &arg.name), &arg.value) {
                (Some(given), _) => Some(given.to_owned()),
                (None, Some(default)) => Some(self.word(stage, i, default)?),
                (None, None) => self.plan.global_args.get(&arg.name).map(str::to_owned),
            };
            texts.push(match &value {
                Some(value) => format!("{}={value}", arg.name),
                None => arg.name.clone(),
            });
            stage.captured.used.insert(arg.name.clone());
            // One that takes the value of a global argument is told of as that.
            let global = arg.value.is_none() && value.is_some() && build_arg(self.options, &arg.name).is_none();
            if !global {
                let (name, description) = (arg.name.clone(), arg.comment.clone());
                let told = OutlineArg { name, description, value: value.clone().unwrap_or_default(), span: i.span };
                stage.captured.args.insert(arg.name.clone(), KnownArg { arg: told, needs: BTreeSet::new(), position });
            }
            if let Some(value) = &value
                && !NOT_IN_ENVIRONMENT.contains(&arg.name.as_str())
            {
                stage.env.set(&arg.name, value);
            }
            stage.args.push((arg.name.clone(), value));
        }
        stage.commit(format!("ARG {}", texts.join(" ")));
        Ok(())
    }

    fn env(&mut self, stage: &mut Stage, i: &Instruction, pairs: &[Pair]) -> Outcome<()> {
        // All values are those from before the instruction.
        let pairs = self.pairs(stage, i, pairs)?;
        let mut texts = Vec::new();
        for (name, value) in pairs {
            self.secret_lint("ENV", &name, i.span);
            let text = format!("{name}={value}");
            let env = &mut stage.config.config.env;
            match env.iter_mut().find(|have| split_pair(have).0 == name) {
                Some(have) => have.clone_from(&text),
                None => env.push(text.clone()),
            }
            stage.env.set(&name, &value);
            texts.push(text);
        }
        stage.commit(format!("ENV {}", texts.join(" ")));
        Ok(())
    }

    fn label(&mut self, stage: &mut Stage, i: &Instruction, pairs: &[Pair]) -> Outcome<()> {
        let pairs = self.pairs(stage, i, pairs)?;
        let texts: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
        stage.commit(format!("LABEL {}", texts.join(" ")));
        stage.config.config.labels.extend(pairs);
        Ok(())
    }

    fn pairs(&mut self, stage: &Stage, i: &Instruction, pairs: &[Pair]) -> Outcome<Vec<(String, String)>> {
        let mut out = Vec::new();
        for pair in pairs {
            if pair.legacy {
                let word = &i.keyword;
                let message = format!("\"{word} key=value\" should be used instead of legacy \"{word} key value\" format");
                self.lints.push(Diagnostic::lint(Rule::LegacyKeyValueFormat, message, i.span));
            }
            out.push((self.word(stage, i, &pair.name)?, self.word(stage, i, &pair.value)?));
        }
        Ok(out)
    }

    fn workdir(&mut self, stage: &mut Stage, command: &Command, path: &str) -> Outcome<()> {
        let i = &command.instruction;
        let path = self.word(stage, i, path)?;
        if !stage.workdir_set && !path.starts_with('/') {
            let message = format!("Relative workdir {path:?} can have unexpected results if the base image changes");
            self.lints.push(Diagnostic::lint(Rule::WorkdirRelativePath, message, i.span));
        }
        stage.workdir_set = true;
        let cleaned = stage.directory().join(path.as_bytes());
        // An absolute path stays as it's written, `/a//b/` or `/a/..` (BuildKit util/system, `NormalizePath`).
        let shown = if path.starts_with('/') { path } else { cleaned.to_string() };
        stage.config.config.working_dir.clone_from(&shown);
        let text = format!("WORKDIR {shown}");
        if shown == "/" {
            stage.commit(text);
            return Ok(());
        }
        let name = self.step(stage, command, None);
        let op = WorkdirOp { parent: stage.parent, path: cleaned, user: stage.config.config.user.clone() };
        stage.parent = Some(self.push(stage, name, i.span, false, Op::Workdir(op)));
        stage.commit_layer(text);
        Ok(())
    }

    fn expose(&mut self, stage: &mut Stage, i: &Instruction, texts: &[String]) -> Outcome<()> {
        let mut all = Vec::new();
        for text in texts {
            // The result is split again, so that one variable can hold several ports.
            // BuildKit checks no variables here.
            for word in super::plan::expand(Lexer::new(self.escape), text, &stage.env, i.span)?.words {
                let parsed = ports::parse(&word).map_err(Diagnostic::error)?;
                if parsed.odd_case {
                    let message = format!("Defined protocol '{word}' in EXPOSE instruction should be lowercase");
                    self.lints.push(Diagnostic::lint(Rule::ExposeProtoCasing, message, i.span));
                }
                if parsed.host_part {
                    let message =
                        format!("EXPOSE instruction should not define an IP address or host-port mapping, found '{word}'");
                    self.lints.push(Diagnostic::lint(Rule::ExposeInvalidFormat, message, i.span));
                }
                all.extend(parsed.ports);
            }
        }
        stage.commit(format!("EXPOSE {}", list(&all)));
        all.into_iter().for_each(|port| {
            stage.config.config.exposed_ports.insert(port);
        });
        Ok(())
    }

    /// The arguments of `CMD` and `ENTRYPOINT`; the shell form is a matter for a lint.
    fn with_shell(&mut self, stage: &Stage, i: &Instruction, line: &CommandLine) -> Vec<String> {
        match line {
            CommandLine::Exec(args) => args.clone(),
            CommandLine::Shell(text) => {
                if stage.config.config.shell.is_none() {
                    let word = &i.keyword;
                    let message =
                        format!("JSON arguments recommended for {word} to prevent unintended behavior related to OS signals");
                    self.lints.push(Diagnostic::lint(Rule::JSONArgsRecommended, message, i.span));
                }
                stage.shell_args(text)
            }
        }
    }

    fn used_once(&mut self, i: &Instruction, before: Option<Span>) {
        if let Some(span) = before {
            let message = format!(
                "Multiple {} instructions should not be used in the same stage because only the last one will be used",
                i.keyword
            );
            self.lints.push(Diagnostic::lint(Rule::MultipleInstructionsDisallowed, message, span));
        }
    }

    fn secret_lint(&mut self, word: &str, name: &str, span: Span) {
        if names_a_secret(name) {
            let message = format!("Do not use ARG or ENV instructions for sensitive data ({word} {name:?})");
            self.lints.push(Diagnostic::lint(Rule::SecretsUsedInArgOrEnv, message, span));
        }
    }

    /// Expands a value that stays one word.
    fn word(&mut self, stage: &Stage, i: &Instruction, word: &str) -> Outcome<String> {
        self.expand(stage, i, Lexer::new(self.escape), word).map(|e| e.text)
    }

    fn expand(&mut self, stage: &Stage, i: &Instruction, lexer: Lexer, word: &str) -> Outcome<Expansion> {
        let expansion = super::plan::expand(lexer, word, &stage.env, i.span)?;
        for name in &expansion.unmatched {
            if stage.args.iter().any(|(arg, _)| arg == name) || NOT_IN_ENVIRONMENT.contains(&name.as_str()) {
                continue;
            }
            let mut message = format!("Usage of undefined variable '${name}'");
            if let Some(known) = suggestion(name, stage.env.names()) {
                message.push_str(&format!(" (did you mean ${known}?)"));
            }
            self.lints.push(Diagnostic::lint(Rule::UndefinedVar, message, i.span));
        }
        Ok(expansion)
    }

    /// The name of a step, with the variables in its text expanded. `raw` is the text of a `RUN`, whose quotes and
    /// unknown variables stay.
    fn step(&self, stage: &mut Stage, command: &Command, raw: Option<&str>) -> String {
        let plain = Lexer::new(self.escape);
        let (lexer, text) = match raw {
            Some(text) => (Lexer { raw_quotes: true, keep_unset: true, ..plain }, text),
            None => (plain, command.instruction.code.as_str()),
        };
        let text = lexer.expand(text, &stage.env).map_or_else(|_| text.to_owned(), |e| e.text);
        stage.next_name(command.on_build, &upper_first_word(&text))
    }

    /// Where the files of a node are. Those of a context that no instruction changes are taken from there, so that only
    /// what is named is ever read.
    fn files_of(&self, index: usize) -> CopyFrom {
        match self.plan.nodes.get(index) {
            Some(Node { base: Base::Context(context), commands, .. }) if commands.is_empty() => CopyFrom::Context(*context),
            _ => CopyFrom::Vertex(self.done.get(index).and_then(|stage| stage.as_ref()).and_then(|stage| stage.parent)),
        }
    }
}

impl Stage {
    fn empty(platform: &Platform) -> Stage {
        Stage {
            parent: None,
            base: None,
            config: ImageConfig::empty(platform),
            history: Vec::new(),
            platform: platform.clone(),
            env: Env::new(),
            args: Vec::new(),
            workdir_set: false,
            cmd: None,
            entrypoint: None,
            healthcheck: None,
            label: String::new(),
            no_cache: false,
            total: 0,
            index: 0,
            captured: Captured::default(),
        }
    }

    /// Where relative paths count from.
    fn directory(&self) -> ImagePath {
        ImagePath::new(self.config.config.working_dir.as_bytes())
    }

    fn shell_args(&self, text: &str) -> Vec<String> {
        let default = || vec!["/bin/sh".to_owned(), "-c".to_owned()];
        let mut args = self.config.config.shell.clone().filter(|s| !s.is_empty()).unwrap_or_else(default);
        args.push(text.to_owned());
        args
    }

    fn next_name(&mut self, on_build: bool, text: &str) -> String {
        self.index += 1;
        step_name(&self.label, self.index, self.total, on_build, text)
    }

    /// An entry without a layer.
    fn commit(&mut self, text: String) {
        self.entry(text, true);
    }

    /// An entry for the layer of the last vertex.
    fn commit_layer(&mut self, text: String) {
        self.entry(text, false);
    }

    fn entry(&mut self, created_by: String, empty_layer: bool) {
        self.history.push(HistoryEntry { created_by, comment: COMMENT.to_owned(), empty_layer, ..HistoryEntry::default() });
    }
}
