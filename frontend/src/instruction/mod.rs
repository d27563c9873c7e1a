//! Hides nothing but the shapes: what a Dockerfile says, one type an instruction, before any variable is expanded.

mod check;
mod health;
mod mount;
mod parse;

pub use check::{casing_lints, stage_name_lints};
pub use health::{format_duration, parse_duration};
pub use mount::{MountSpec, MountType, parse_mount};
pub use parse::{INSTRUCTIONS, parse_lines};
pub(crate) use parse::{json_form, parse_trigger};

use kiln_oci::config::Healthcheck;

use crate::graph::{NetworkMode, SecurityMode};
use crate::parser::Directives;
use crate::source::Span;

/// A Dockerfile in typed form.
#[derive(Debug, Clone, Default)]
pub struct Dockerfile {
    /// The directives at the top.
    pub directives: Directives,
    /// The `ARG`s before the first `FROM`.
    pub global_args: Vec<(Vec<Arg>, Span)>,
    /// The stages in order.
    pub stages: Vec<Stage>,
}

/// A `FROM` and what follows it.
#[derive(Debug, Clone)]
pub struct Stage {
    /// The name in lower case.
    pub name: Option<String>,
    /// The base, before expansion.
    pub base: String,
    /// `--platform`, before expansion.
    pub platform: Option<String>,
    /// The `FROM` keyword as typed.
    pub keyword: String,
    /// The `FROM` instruction, continuations joined.
    pub code: String,
    /// Where the `FROM` is.
    pub span: Span,
    /// The description that a comment above gives, behind the stage's name.
    pub comment: Option<String>,
    /// In order.
    pub instructions: Vec<Instruction>,
}

/// One instruction of a stage.
#[derive(Debug, Clone)]
pub struct Instruction {
    /// The keyword as typed.
    pub keyword: String,
    /// The whole, trimmed, continuations joined.
    pub code: String,
    /// Where it is, here-documents included.
    pub span: Span,
    /// What it says.
    pub kind: Kind,
}

/// What an instruction says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// `ADD`.
    Add(Transfer),
    /// `ARG`.
    Arg(Vec<Arg>),
    /// `CMD`.
    Cmd(CommandLine),
    /// `COPY`.
    Copy(Transfer),
    /// `ENTRYPOINT`.
    Entrypoint(CommandLine),
    /// `ENV`.
    Env(Vec<Pair>),
    /// `EXPOSE`, sorted as BuildKit does.
    Expose(Vec<String>),
    /// `HEALTHCHECK`.
    Healthcheck(HealthcheckSpec),
    /// `LABEL`.
    Label(Vec<Pair>),
    /// `MAINTAINER`.
    Maintainer(String),
    /// `ONBUILD`: the text of the trigger.
    Onbuild(String),
    /// `RUN`.
    Run(Run),
    /// `SHELL`.
    Shell(Vec<String>),
    /// `STOPSIGNAL`.
    Stopsignal(String),
    /// `USER`.
    User(String),
    /// `VOLUME`.
    Volume(Vec<String>),
    /// `WORKDIR`.
    Workdir(String),
}

/// A name and a value of `ENV` or `LABEL`, with quotes and escapes still in them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The name.
    pub name: String,
    /// The value.
    pub value: String,
    /// Whether it was written `NAME value`, without `=`.
    pub legacy: bool,
}

/// A name and perhaps a default of `ARG`, with quotes and escapes still in them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arg {
    /// The name.
    pub name: String,
    /// The default.
    pub value: Option<String>,
    /// The description that a comment above gives, behind the name.
    pub comment: Option<String>,
}

/// A command in either form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandLine {
    /// A text for the shell.
    Shell(String),
    /// The arguments themselves.
    Exec(Vec<String>),
}

/// A here-document of `RUN`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunFile {
    /// The delimiter.
    pub name: String,
    /// The body as it stands in the file.
    pub raw: String,
    /// The body as it is meant, without leading tabs if they go away.
    pub body: String,
}

/// A `RUN`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// What to run.
    pub command: CommandLine,
    /// Here-documents in order.
    pub files: Vec<RunFile>,
    /// `--mount` values, before expansion.
    pub mounts: Vec<String>,
    /// The `from` of each mount, which is never expanded.
    pub mount_from: Vec<Option<String>>,
    /// `--network`.
    pub network: NetworkMode,
    /// `--security`.
    pub security: SecurityMode,
    /// `--device` values.
    pub devices: Vec<String>,
}

/// A `HEALTHCHECK`.
#[derive(Debug, Clone, PartialEq)]
pub struct HealthcheckSpec(pub Healthcheck);

// Durations and texts only, so equality is total.
impl Eq for HealthcheckSpec {}

/// A here-document that `COPY` or `ADD` makes a file of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InlineSource {
    /// The delimiter, which is the file's name.
    pub name: String,
    /// The content.
    pub data: String,
    /// Whether variables in it are expanded.
    pub expand: bool,
}

/// A `COPY` or `ADD`, before expansion.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transfer {
    /// Paths, patterns and addresses.
    pub sources: Vec<String>,
    /// Here-documents.
    pub inline: Vec<InlineSource>,
    /// The destination.
    pub dest: String,
    /// `--from` of `COPY`; never expanded.
    pub from: Option<String>,
    /// `--chown`.
    pub chown: String,
    /// `--chmod`.
    pub chmod: String,
    /// `--link`.
    pub link: bool,
    /// `--parents` of `COPY`.
    pub parents: bool,
    /// `--exclude`; never expanded.
    pub exclude: Vec<String>,
    /// `--checksum` of `ADD`.
    pub checksum: String,
    /// `--keep-git-dir` of `ADD`.
    pub keep_git_dir: Option<bool>,
    /// `--unpack` of `ADD`.
    pub unpack: Option<bool>,
}
