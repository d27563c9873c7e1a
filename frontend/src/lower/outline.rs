//! Hides how the arguments, secrets and agents that a target can be given are gathered from its stages (BuildKit
//! `dockerfile2llb/outline.go`).

use std::collections::{BTreeMap, BTreeSet};

use super::plan::{Base, Plan};
use super::stage::Stage;
use crate::graph::{Mount, MountKind};
use crate::source::Span;

/// What a target can be given from outside (`--call outline`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outline {
    /// The target stage's name.
    pub name: Option<String>,
    /// What the comment above its `FROM` says about it.
    pub description: Option<String>,
    /// The arguments that it and the stages it needs declare and those that their `FROM`s use, in the order of the file.
    pub args: Vec<OutlineArg>,
    /// The secrets that their `RUN`s mount.
    pub secrets: Vec<OutlineMount>,
    /// The agents that their `RUN`s mount.
    pub ssh: Vec<OutlineMount>,
}

/// An argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutlineArg {
    /// Its name.
    pub name: String,
    /// What the comment above says about it.
    pub description: Option<String>,
    /// Its value, as given or by default.
    pub value: String,
    /// The instruction.
    pub span: Span,
}

/// A secret or an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutlineMount {
    /// Its id.
    pub name: String,
    /// Whether the `RUN` fails without it.
    pub required: bool,
    /// The first instruction that mounts it.
    pub span: Span,
}

/// An argument and the global arguments that its default is made of.
#[derive(Debug, Clone)]
pub(super) struct KnownArg {
    pub arg: OutlineArg,
    pub needs: BTreeSet<String>,
    /// Which one of its instruction.
    pub position: usize,
}

/// What one stage tells.
#[derive(Debug, Clone, Default)]
pub(super) struct Captured {
    /// The arguments that it declares.
    pub args: BTreeMap<String, KnownArg>,
    /// The names that it uses.
    pub used: BTreeSet<String>,
    secrets: Vec<OutlineMount>,
    agents: Vec<OutlineMount>,
}

impl Captured {
    /// That of a stage whose `FROM` uses these arguments.
    pub(super) fn new(used: &BTreeSet<String>) -> Captured {
        Captured { used: used.clone(), ..Captured::default() }
    }

    /// Notes the mounts of a `RUN`. The first one of an id counts.
    pub(super) fn mounts(&mut self, mounts: &[Mount], span: Span) {
        for mount in mounts {
            let (list, name, required) = match &mount.kind {
                MountKind::Secret(secret) => (&mut self.secrets, &secret.id, secret.required),
                MountKind::Ssh(agent) => (&mut self.agents, &agent.id, agent.required),
                _ => continue,
            };
            if !list.iter().any(|known| known.name == *name) {
                list.push(OutlineMount { name: name.clone(), required, span });
            }
        }
    }
}

/// Puts together what the target and the stages it needs tell: what a stage says itself beats what those say that it needs.
pub(super) fn outline(plan: &Plan<'_>, done: &[Option<Stage>]) -> Outline {
    let mut gathered = Gathered::default();
    gathered.visit(plan, done, plan.target);
    let Gathered { mut args, mut secrets, mut agents, .. } = gathered;
    args.sort_by_key(|known| (known.arg.span.first_line, known.position));
    secrets.sort_by_key(|secret| secret.span.first_line);
    agents.sort_by_key(|agent| agent.span.first_line);
    let target = plan.parsed.dockerfile.stages.get(plan.target);
    Outline {
        name: target.and_then(|stage| stage.name.clone()),
        description: target.and_then(|stage| stage.comment.clone()),
        args: args.into_iter().map(|known| known.arg).collect(),
        secrets,
        ssh: agents,
    }
}

#[derive(Default)]
struct Gathered {
    visited: BTreeSet<usize>,
    args: Vec<KnownArg>,
    secrets: Vec<OutlineMount>,
    agents: Vec<OutlineMount>,
}

impl Gathered {
    fn visit(&mut self, plan: &Plan<'_>, done: &[Option<Stage>], index: usize) {
        if !self.visited.insert(index) {
            return;
        }
        if let Some(stage) = done.get(index).and_then(Option::as_ref) {
            self.take(plan, &stage.captured);
        }
        let node = &plan.nodes[index];
        if let Base::Node(base) = node.base {
            self.visit(plan, done, base);
        }
        for source in node.commands.iter().flat_map(|command| command.sources.iter().flatten()) {
            self.visit(plan, done, *source);
        }
    }

    fn take(&mut self, plan: &Plan<'_>, captured: &Captured) {
        let known = |name: &str| captured.args.get(name).or_else(|| plan.known_args.get(name));
        let mut open: Vec<&str> = captured.used.iter().map(String::as_str).collect();
        let mut used = BTreeSet::new();
        while let Some(name) = open.pop() {
            if let (true, Some(arg)) = (used.insert(name), known(name)) {
                open.extend(arg.needs.iter().map(String::as_str));
            }
        }
        for arg in used.into_iter().filter_map(known) {
            if !self.args.iter().any(|have| have.arg.name == arg.arg.name) {
                self.args.push(arg.clone());
            }
        }
        for (all, new) in [(&mut self.secrets, &captured.secrets), (&mut self.agents, &captured.agents)] {
            for mount in new {
                if !all.iter().any(|have| have.name == mount.name) {
                    all.push(mount.clone());
                }
            }
        }
    }
}
