//! Hides how stages, images and the build's arguments fit together before anything is lowered: names, bases, who needs
//! whom (BuildKit `convert.go`, `toDispatchState`).

use std::collections::{BTreeMap, BTreeSet};

use kiln_oci::platform::Platform;
use kiln_oci::reference::Reference;

use super::outline::{KnownArg, OutlineArg};
use super::{BaseRequest, Bases, LowerOptions, NamedKind, context_name};
use crate::Parsed;
use crate::diagnostic::{Diagnostic, nearest, suggestion};
use crate::expand::{Env, Lexer};
use crate::graph::ContextId;
use crate::instruction::{Instruction, Kind, Stage, parse_trigger};
use crate::lint::Rule;
use crate::source::Span;

/// What a node starts from.
#[derive(Debug, Clone)]
pub(super) enum Base {
    Scratch,
    Node(usize),
    Image(Reference),
    /// The files of a named context.
    Context(ContextId),
}

/// An instruction and what it takes files from.
#[derive(Debug, Clone)]
pub(super) struct Command {
    pub instruction: Instruction,
    /// For `COPY` one entry if it has `--from`; for `RUN` one for each mount.
    pub sources: Vec<Option<usize>>,
    pub on_build: bool,
}

/// A stage, or an image that only `--from` names.
#[derive(Debug)]
pub(super) struct Node {
    /// The stage's name; none for a stage without one and for images.
    pub name: Option<String>,
    /// What progress calls it.
    pub label: String,
    pub base: Base,
    /// As `FROM` spells the base, expanded.
    pub written: String,
    pub platform: Platform,
    pub span: Span,
    pub commands: Vec<Command>,
    /// How many steps progress counts.
    pub total: usize,
    /// Whether this is a stage of the file.
    pub declared: bool,
    /// Whether a named context has taken the place of the stage, whose instructions are of no meaning then.
    pub replaced: bool,
    /// The global arguments that the `FROM` uses.
    pub used: BTreeSet<String>,
    on_build_done: bool,
}

pub(super) struct Plan<'a> {
    pub parsed: &'a Parsed,
    options: &'a LowerOptions,
    pub nodes: Vec<Node>,
    /// The arguments that a `FROM` sees, and that a bare `ARG` in a stage takes its value from.
    pub global_args: Env,
    /// The `ARG`s before the first `FROM`.
    pub known_args: BTreeMap<String, KnownArg>,
    pub target: usize,
    pub lints: Vec<Diagnostic>,
}

/// The value of a build argument; the last of equal names counts.
pub(super) fn build_arg<'a>(options: &'a LowerOptions, name: &str) -> Option<&'a str> {
    options.build_args.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
}

/// An error in a word, worded as BuildKit does.
pub(super) fn expand(lexer: Lexer, word: &str, env: &Env, span: Span) -> Result<crate::expand::Expansion, Diagnostic> {
    lexer.expand(word, env).map_err(|error| Diagnostic::error(format!("failed to process {word:?}: {error}")).at(span))
}

impl<'a> Plan<'a> {
    /// Makes nodes of the stages and of all images that instructions name. Behind the mistakes are the lints so far.
    pub(super) fn new(parsed: &'a Parsed, options: &'a LowerOptions) -> Result<Plan<'a>, Vec<Diagnostic>> {
        let mut plan = Plan {
            parsed,
            options,
            nodes: Vec::new(),
            global_args: Env::new(),
            known_args: BTreeMap::new(),
            target: 0,
            lints: Vec::new(),
        };
        match plan.fill() {
            Ok(()) => Ok(plan),
            Err(errors) => Err(errors.into_iter().chain(plan.lints).collect()),
        }
    }

    fn fill(&mut self) -> Result<(), Vec<Diagnostic>> {
        let (parsed, plan) = (self.parsed, self);
        plan.base_lints();
        (plan.global_args, plan.known_args) = plan.meta_args(true).map_err(|e| vec![e])?;
        let mut errors = Vec::new();
        for (index, stage) in parsed.dockerfile.stages.iter().enumerate() {
            match plan.stage(index, stage) {
                Ok(node) => plan.nodes.push(node),
                Err(error) => errors.push(error),
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        plan.target = plan.find_target().map_err(|e| vec![e])?;
        for index in 0..parsed.dockerfile.stages.len() {
            if plan.nodes[index].replaced {
                continue;
            }
            for instruction in &parsed.dockerfile.stages[index].instructions {
                match plan.command(instruction.clone(), false) {
                    Ok(command) => plan.nodes[index].commands.push(command),
                    Err(error) => errors.push(error),
                }
            }
        }
        errors.extend(plan.check_order());
        if !errors.is_empty() {
            return Err(errors);
        }
        if let [only] = plan.nodes.as_mut_slice() {
            only.label.clear();
        }
        Ok(())
    }

    /// The arguments that are there without an `ARG`, and the `ARG`s before the first `FROM`.
    fn meta_args(&self, with_build_args: bool) -> Result<(Env, BTreeMap<String, KnownArg>), Diagnostic> {
        let lexer = Lexer::new(self.parsed.dockerfile.directives.escape);
        let mut env = self.platform_args();
        let mut known: BTreeMap<String, KnownArg> = BTreeMap::new();
        for (args, span) in &self.parsed.dockerfile.global_args {
            for (position, arg) in args.iter().enumerate() {
                let given = if with_build_args { build_arg(self.options, &arg.name) } else { None };
                let mut needs = BTreeSet::new();
                let value = match (given, &arg.value) {
                    (Some(value), _) => Some(value.to_owned()),
                    (None, Some(default)) => {
                        let expansion = expand(lexer, default, &env, *span)?;
                        needs = expansion.matched;
                        // What is made of its own earlier value needs what that was made of.
                        if needs.remove(&arg.name)
                            && let Some(earlier) = known.get(&arg.name)
                        {
                            needs.extend(earlier.needs.iter().cloned());
                        }
                        Some(expansion.text)
                    }
                    (None, None) => None,
                };
                if let Some(value) = &value {
                    env.set(&arg.name, value);
                }
                let (name, description) = (arg.name.clone(), arg.comment.clone());
                let told = OutlineArg { name, description, value: value.unwrap_or_default(), span: *span };
                known.insert(arg.name.clone(), KnownArg { arg: told, needs, position });
            }
        }
        Ok((env, known))
    }

    fn platform_args(&self) -> Env {
        let (build, target) = (&self.options.build_platform, &self.options.target_platform);
        let last = self.parsed.dockerfile.stages.last().and_then(|stage| stage.name.clone());
        let stage = self.options.target.clone().or(last).unwrap_or_else(|| "default".to_owned());
        let none = String::new;
        let rows = [
            ("BUILDPLATFORM", build.to_string()),
            ("BUILDOS", build.os.clone()),
            ("BUILDOSVERSION", build.os_version.clone().unwrap_or_else(none)),
            ("BUILDARCH", build.architecture.clone()),
            ("BUILDVARIANT", build.variant.clone().unwrap_or_else(none)),
            ("TARGETPLATFORM", target.to_string()),
            ("TARGETOS", target.os.clone()),
            ("TARGETOSVERSION", target.os_version.clone().unwrap_or_else(none)),
            ("TARGETARCH", target.architecture.clone()),
            ("TARGETVARIANT", target.variant.clone().unwrap_or_else(none)),
            ("TARGETSTAGE", stage),
        ];
        let mut env = Env::new();
        for (name, value) in rows {
            env.set(name, build_arg(self.options, name).unwrap_or(&value));
        }
        env
    }

    /// `InvalidDefaultArgInFrom`: would each base have a name if no build argument were given?
    fn base_lints(&mut self) {
        let Ok((env, _)) = self.meta_args(false) else { return };
        let lexer = Lexer::new(self.parsed.dockerfile.directives.escape);
        for stage in &self.parsed.dockerfile.stages {
            let Ok(base) = lexer.expand(&stage.base, &env) else { return };
            if Reference::parse(&base.text).is_err() {
                let message = format!("Default value for ARG {} results in empty or invalid base image name", stage.base);
                self.lints.push(Diagnostic::lint(Rule::InvalidDefaultArgInFrom, message, stage.span));
            }
        }
    }

    fn stage(&mut self, index: usize, stage: &Stage) -> Result<Node, Diagnostic> {
        let lexer = Lexer::new(self.parsed.dockerfile.directives.escape);
        let base = expand(lexer, &stage.base, &self.global_args, stage.span)?;
        let undeclared = self.undeclared(&base.unmatched);
        self.undefined_in_from(&undeclared, stage.span);
        if base.text.is_empty() {
            let error = Diagnostic::error(format!("base name ({}) should not be blank", stage.base)).at(stage.span);
            return Err(match base.unmatched.first() {
                Some(name) => error.with_hint(self.argument_hint(name)),
                None => error,
            });
        }
        let mut used = base.matched;
        let mut platform = self.options.target_platform.clone();
        if let Some(written) = &stage.platform {
            let expanded = expand(lexer, written, &self.global_args, stage.span)?;
            let undeclared = self.undeclared(&expanded.unmatched);
            self.undefined_in_from(&undeclared, stage.span);
            self.platform_lints(stage, written, &expanded);
            if expanded.text.is_empty() {
                let error = Diagnostic::error(format!("empty platform value from expression {written}")).at(stage.span);
                return Err(match expanded.unmatched.first() {
                    Some(name) => error.with_hint(self.argument_hint(name)),
                    None => error,
                });
            }
            platform = Platform::parse(&expanded.text)
                .map_err(|error| Diagnostic::error(format!("failed to parse platform {written}: {error}")).at(stage.span))?;
            used.extend(expanded.matched);
        }
        let own = stage.name.as_deref().and_then(|name| self.named_context(name));
        let replaced = own.is_some();
        let from = match (own, self.find_name(&base.text)) {
            (Some(context), _) => context,
            (None, Some(node)) => Base::Node(node),
            (None, None) => self.outside(&base.text, stage.span)?,
        };
        if let Base::Node(node) = from {
            platform = self.nodes[node].platform.clone();
        }
        let counted = |i: &Instruction| matches!(i.kind, Kind::Add(_) | Kind::Copy(_) | Kind::Run(_) | Kind::Workdir(_));
        let steps = if replaced { 0 } else { stage.instructions.iter().filter(|i| counted(i)).count() };
        Ok(Node {
            label: stage.name.clone().unwrap_or_else(|| format!("stage-{index}")),
            name: stage.name.clone(),
            total: steps + usize::from(matches!(from, Base::Image(_))),
            base: from,
            written: base.text,
            platform,
            span: stage.span,
            commands: Vec::new(),
            declared: true,
            replaced,
            used: if replaced { BTreeSet::new() } else { used },
            on_build_done: replaced,
        })
    }

    /// What a name stands for that no stage has: a named context, or an image.
    fn outside(&self, text: &str, span: Span) -> Result<Base, Diagnostic> {
        if text == "scratch" {
            return Ok(Base::Scratch);
        }
        match self.named_context(text) {
            Some(base) => Ok(base),
            None => Ok(Base::Image(self.reference(text, span)?)),
        }
    }

    /// The context of a name; the last of equal names.
    fn named_context(&self, text: &str) -> Option<Base> {
        let wanted = context_name(&text.to_lowercase())?;
        let index = self.options.contexts.iter().rposition(|c| context_name(&c.name).is_some_and(|name| name == wanted))?;
        Some(match &self.options.contexts[index].kind {
            NamedKind::Files => Base::Context(ContextId::Named(index)),
            NamedKind::Image(reference) => Base::Image(reference.clone()),
        })
    }

    fn reference(&self, text: &str, span: Span) -> Result<Reference, Diagnostic> {
        Reference::parse(text).map_err(|error| {
            let diagnostic = Diagnostic::error(format!("failed to parse stage name {text:?}: {error}")).at(span);
            Diagnostic { hint: self.stage_hint(text), ..diagnostic }
        })
    }

    /// The stage that may have been meant.
    fn stage_hint(&self, text: &str) -> Option<String> {
        let names = self.parsed.dockerfile.stages.iter().filter_map(|stage| stage.name.as_deref());
        nearest(text, names).map(|name| format!("did you mean the stage `{name}`?"))
    }

    /// Those of `names` that no `ARG` before the first `FROM` declares.
    fn undeclared(&self, names: &BTreeSet<String>) -> Vec<String> {
        let declared =
            |name: &str| self.parsed.dockerfile.global_args.iter().any(|(args, _)| args.iter().any(|arg| arg.name == name));
        names.iter().filter(|name| !declared(name)).cloned().collect()
    }

    fn argument_names(&self) -> Vec<&str> {
        let declared = self.parsed.dockerfile.global_args.iter().flat_map(|(args, _)| args.iter().map(|arg| arg.name.as_str()));
        declared.chain(self.global_args.names()).collect()
    }

    fn argument_hint(&self, name: &str) -> String {
        if self.argument_names().contains(&name) {
            return format!("give it a value with `--build-arg {name}=…`");
        }
        match nearest(name, self.argument_names()) {
            Some(known) => format!("did you mean `{known}`?"),
            None => format!("declare it with `ARG {name}` before the first FROM"),
        }
    }

    fn undefined_in_from(&mut self, names: &[String], span: Span) {
        for name in names {
            let mut message = format!("FROM argument '{name}' is not declared");
            if let Some(known) = suggestion(name, self.argument_names()) {
                message.push_str(&format!(" (did you mean {known}?)"));
            }
            self.lints.push(Diagnostic::lint(Rule::UndefinedArgInFrom, message, span));
        }
    }

    fn platform_lints(&mut self, stage: &Stage, written: &str, expanded: &crate::expand::Expansion) {
        let variables = (expanded.matched.len(), expanded.unmatched.len());
        if variables == (1, 0)
            && expanded.matched.contains("TARGETPLATFORM")
            && self.global_args.get("TARGETPLATFORM") == Some(&expanded.text)
        {
            let message =
                format!("Setting platform to predefined {written} in FROM is redundant as this is the default behavior");
            self.lints.push(Diagnostic::lint(Rule::RedundantTargetPlatform, message, stage.span));
        }
        if let ((0, 0), Ok(platform)) = (variables, Platform::parse(&expanded.text)) {
            let name = stage.name.as_deref().unwrap_or_default();
            if !name.contains(&platform.os) && !name.contains(&platform.architecture) {
                let message = format!("FROM --platform flag should not use constant value {:?}", expanded.text);
                self.lints.push(Diagnostic::lint(Rule::FromPlatformFlagConstDisallowed, message, stage.span));
            }
        }
    }

    /// The stage of a name; the last of equal names.
    fn find_name(&self, name: &str) -> Option<usize> {
        self.nodes.iter().rposition(|node| node.name.as_deref().is_some_and(|n| n.eq_ignore_ascii_case(name)))
    }

    fn find_target(&self) -> Result<usize, Diagnostic> {
        let Some(wanted) = self.options.target.as_deref().filter(|t| !t.is_empty()) else {
            return self.nodes.len().checked_sub(1).ok_or_else(|| Diagnostic::error("dockerfile contains no stages to build"));
        };
        let number = wanted.parse::<usize>().ok().filter(|index| *index < self.nodes.len());
        self.find_name(wanted).or(number).ok_or_else(|| {
            let names: Vec<&str> = self.nodes.iter().filter_map(|node| node.name.as_deref()).collect();
            let error = Diagnostic::error(format!("target stage {wanted:?} could not be found"));
            match nearest(wanted, names.iter().copied()) {
                Some(name) => error.with_hint(format!("did you mean `{name}`?")),
                None if names.is_empty() => error.with_hint("no stage of the Dockerfile has a name"),
                None => error.with_hint(format!("the stages are {}", names.join(", "))),
            }
        })
    }

    /// Finds what an instruction takes files from; images become nodes.
    fn command(&mut self, instruction: Instruction, on_build: bool) -> Result<Command, Diagnostic> {
        let span = instruction.span;
        let sources = match &instruction.kind {
            Kind::Copy(transfer) => match transfer.from.as_deref() {
                None => Vec::new(),
                Some(from) => vec![Some(match from.parse::<i64>() {
                    Err(_) => self.source(from, span)?,
                    Ok(index) => {
                        let stages = self.parsed.dockerfile.stages.len();
                        let found = usize::try_from(index).ok().filter(|i| *i < stages);
                        found.ok_or_else(|| Diagnostic::error(format!("invalid stage index {index}")).at(span))?
                    }
                })],
            },
            Kind::Run(run) => {
                let from = run.mount_from.clone();
                from.iter()
                    .map(|from| from.as_deref().map(|f| self.source(f, span)).transpose())
                    .collect::<Result<Vec<_>, _>>()?
            }
            _ => Vec::new(),
        };
        Ok(Command { instruction, sources, on_build })
    }

    fn source(&mut self, name: &str, span: Span) -> Result<usize, Diagnostic> {
        if let Some(node) = self.find_name(name) {
            return Ok(node);
        }
        let base = self.outside(name, span)?;
        self.nodes.push(Node {
            name: None,
            label: String::new(),
            base,
            written: name.to_owned(),
            platform: self.options.target_platform.clone(),
            span,
            commands: Vec::new(),
            total: 0,
            declared: false,
            replaced: false,
            used: BTreeSet::new(),
            on_build_done: false,
        });
        Ok(self.nodes.len() - 1)
    }

    /// Stages must not need one another, and those that the target needs must take from stages before them.
    fn check_order(&self) -> Vec<Diagnostic> {
        let mut errors = Vec::new();
        let needed = self.needed();
        for (index, node) in self.nodes.iter().enumerate() {
            for command in &node.commands {
                for source in command.sources.iter().flatten().copied() {
                    if !self.nodes[source].declared || source < index {
                        continue;
                    }
                    if self.reachable(source).contains(&index) {
                        let message = format!("circular dependency detected on stage: {}", node.label);
                        errors.push(Diagnostic::error(message).at(command.instruction.span));
                        continue;
                    }
                    if !needed.contains(&index) {
                        continue;
                    }
                    let message = if let Kind::Copy(transfer) = &command.instruction.kind {
                        let from = transfer.from.as_deref().unwrap_or_default();
                        format!("cannot copy from stage {from:?}, it needs to be defined before current stage {:?}", node.label)
                    } else {
                        format!(
                            "cannot mount from stage {:?}, it needs to be defined before current stage {:?}",
                            self.nodes[source].label, node.label
                        )
                    };
                    let hint = format!("move the stage `{}` above the stage `{}`", self.nodes[source].label, node.label);
                    errors.push(Diagnostic::error(message).at(command.instruction.span).with_hint(hint));
                }
            }
        }
        errors
    }

    /// The nodes that are looked at.
    pub(super) fn needed(&self) -> BTreeSet<usize> {
        match self.options.all_stages {
            true => (0..self.nodes.len()).collect(),
            false => self.reachable(self.target),
        }
    }

    /// The nodes that `from` needs, itself included.
    fn reachable(&self, from: usize) -> BTreeSet<usize> {
        let mut seen = BTreeSet::new();
        let mut open = vec![from];
        while let Some(index) = open.pop() {
            if !seen.insert(index) {
                continue;
            }
            let node = &self.nodes[index];
            if let Base::Node(base) = node.base {
                open.push(base);
            }
            open.extend(node.commands.iter().flat_map(|c| c.sources.iter().flatten().copied()));
        }
        seen
    }

    /// The images that are needed and not there yet, and the triggers of those that are.
    pub(super) fn resolve(&mut self, bases: &Bases) -> Result<Vec<BaseRequest>, Vec<Diagnostic>> {
        loop {
            let reachable = self.needed();
            let mut needs: Vec<BaseRequest> = Vec::new();
            for node in reachable.iter().map(|i| &self.nodes[*i]) {
                let Base::Image(reference) = &node.base else { continue };
                let known = needs.iter().any(|n| n.reference == *reference && n.platform == node.platform);
                if bases.get(reference, &node.platform).is_none() && !known {
                    let (reference, platform) = (reference.clone(), node.platform.clone());
                    needs.push(BaseRequest { reference, platform, span: node.span, hint: self.stage_hint(&node.written) });
                }
            }
            if !needs.is_empty() {
                needs.sort_by(|a, b| (&a.reference, &a.platform).cmp(&(&b.reference, &b.platform)));
                return Ok(needs);
            }
            let mut errors = Vec::new();
            let mut changed = false;
            for index in reachable {
                if !self.nodes[index].declared || self.nodes[index].on_build_done {
                    continue;
                }
                self.nodes[index].on_build_done = true;
                let triggers = self.triggers(index, bases);
                let mut commands = Vec::new();
                for trigger in triggers {
                    match parse_trigger(&trigger, self.nodes[index].span).and_then(|i| self.command(i, true)) {
                        Ok(command) => commands.push(command),
                        Err(error) => errors.push(error),
                    }
                }
                let node = &mut self.nodes[index];
                changed |= commands.iter().any(|c| !c.sources.is_empty());
                node.total += commands.len();
                commands.append(&mut node.commands);
                node.commands = commands;
            }
            if !errors.is_empty() {
                return Err(errors);
            }
            if !changed {
                let errors = self.check_order();
                return if errors.is_empty() { Ok(Vec::new()) } else { Err(errors) };
            }
        }
    }

    /// The `ONBUILD` texts that a stage's base holds for it.
    fn triggers(&self, index: usize, bases: &Bases) -> Vec<String> {
        match &self.nodes[index].base {
            Base::Scratch | Base::Context(_) => Vec::new(),
            Base::Image(reference) => bases
                .get(reference, &self.nodes[index].platform)
                .map(|image| image.config.config.on_build.clone())
                .unwrap_or_default(),
            Base::Node(base) => {
                let commands = self.nodes[*base].commands.iter().filter(|c| !c.on_build);
                let text = |command: &Command| match &command.instruction.kind {
                    Kind::Onbuild(text) => Some(text.clone()),
                    _ => None,
                };
                commands.filter_map(text).collect()
            }
        }
    }
}
