//! Hides what `SOURCE_DATE_EPOCH` can say: a time, or whose time it is (BuildKit `dockerfile2llb/epoch.go`).

use kiln_oci::digest::Digest;

use super::plan::{Plan, build_arg, expand};
use super::validate::{Address, address, is_commit_start};
use super::{LowerOptions, NamedKind, context_name};
use crate::Parsed;
use crate::diagnostic::Diagnostic;
use crate::expand::{Env, Lexer};
use crate::graph::ContextId;
use crate::instruction::{Instruction, Kind, Stage, Transfer};
use crate::source::Span;

/// The time of the build, from reproducible-builds.org.
pub(super) const EPOCH: &str = "SOURCE_DATE_EPOCH";

/// The last second that `created` of an image can say: 9999-12-31T23:59:59Z (RFC 3339 has years of four digits).
pub const MAX_EPOCH: u64 = 253_402_300_799;

/// Whose time is the time of the build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TimeSource {
    /// A named context's: that of its repository's commit, or of what is at its address. A folder has none.
    Context(ContextId),
    /// What an `ADD` fetches.
    Http {
        /// The address.
        url: String,
        /// `--checksum`.
        checksum: Option<Digest>,
    },
    /// The commit of an `ADD`.
    Git {
        /// The address.
        url: String,
        /// `--checksum`.
        checksum: Option<String>,
    },
}

/// What the value says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Seconds since 1970.
    At(u64),
    /// When the main context was made.
    MainContext,
    /// An image's name: images are as old as anybody says, so it is no time.
    Nothing,
    /// When that was made.
    Of(TimeSource, Option<Span>),
}

/// What the build argument or a global `ARG` says, if it says anything.
pub(super) fn wanted(parsed: &Parsed, options: &LowerOptions, plan: &Plan<'_>) -> Result<Option<Wanted>, Diagnostic> {
    let value = build_arg(options, EPOCH).or_else(|| plan.global_args.get(EPOCH)).filter(|value| !value.is_empty());
    let Some(value) = value else { return Ok(None) };
    if let Some(seconds) = value.parse().ok().filter(|seconds| *seconds <= MAX_EPOCH) {
        return Ok(Some(Wanted::At(seconds)));
    }
    if value == "context" {
        return Ok(Some(Wanted::MainContext));
    }
    let is_meant = |name: &str| context_name(&value.to_lowercase()).is_some_and(|wanted| context_name(name) == Some(wanted));
    if let Some(index) = options.contexts.iter().rposition(|context| is_meant(&context.name)) {
        return Ok(Some(match options.contexts[index].kind {
            NamedKind::Files => Wanted::Of(TimeSource::Context(ContextId::Named(index)), None),
            NamedKind::Image(_) => Wanted::Nothing,
        }));
    }
    let stage = parsed.dockerfile.stages.iter().find(|s| s.name.as_deref().is_some_and(|name| name.eq_ignore_ascii_case(value)));
    if let Some(stage) = stage {
        let (source, span) = source_of(parsed, options, plan, stage)?;
        return Ok(Some(Wanted::Of(source, Some(span))));
    }
    let error = Diagnostic::error(format!("invalid {EPOCH}: {value}")).with_hint(
        "give a number of seconds since 1970, before the year 10000, `context` for the time of the build context, or the name of a \
         build context or of a stage with nothing but one ADD from an address",
    );
    let line = parsed.dockerfile.global_args.iter().rfind(|(args, _)| args.iter().any(|arg| arg.name == EPOCH));
    Err(line.map_or(error.clone(), |(_, span)| error.at(*span)))
}

/// The one thing that a stage fetches, if it does nothing else.
fn source_of(parsed: &Parsed, options: &LowerOptions, plan: &Plan<'_>, stage: &Stage) -> Result<(TimeSource, Span), Diagnostic> {
    let lexer = Lexer::new(parsed.dockerfile.directives.escape);
    let mut env = plan.global_args.clone();
    if expand(lexer, &stage.base, &env, stage.span)?.text != "scratch" {
        return Err(Diagnostic::error("SOURCE_DATE_EPOCH stage must use FROM scratch").at(stage.span));
    }
    let one = |span| Diagnostic::error("SOURCE_DATE_EPOCH stage must contain exactly one remote ADD").at(span);
    let mut found = None;
    for instruction in &stage.instructions {
        match &instruction.kind {
            Kind::Arg(args) => {
                for arg in args {
                    let value = match (build_arg(options, &arg.name), &arg.value) {
                        (Some(given), _) => given.to_owned(),
                        (None, Some(default)) => expand(lexer, default, &env, instruction.span)?.text,
                        (None, None) => continue,
                    };
                    env.set(&arg.name, &value);
                }
            }
            Kind::Add(_) if found.is_some() => return Err(one(instruction.span)),
            Kind::Add(transfer) => found = Some((remote(lexer, transfer, &env, instruction)?, instruction.span)),
            _ => {
                let keyword = instruction.keyword.to_uppercase();
                let message =
                    format!("SOURCE_DATE_EPOCH stage does not meet source-only requirements: unsupported {keyword} instruction");
                return Err(Diagnostic::error(message).at(instruction.span));
            }
        }
    }
    found.ok_or_else(|| one(stage.span))
}

/// What an `ADD` fetches.
fn remote(lexer: Lexer, transfer: &Transfer, env: &Env, instruction: &Instruction) -> Result<TimeSource, Diagnostic> {
    let [source] = transfer.sources.as_slice() else {
        return Err(Diagnostic::error("SOURCE_DATE_EPOCH stage must contain exactly one remote ADD source").at(instruction.span));
    };
    let url = expand(lexer, source, env, instruction.span)?.text;
    let checksum = expand(lexer, &transfer.checksum, env, instruction.span)?.text;
    let invalid = |reason: String| Diagnostic::error(format!("--checksum: {reason}")).at(instruction.span);
    match address(&url) {
        _ if !transfer.inline.is_empty() => {}
        Address::Http if transfer.keep_git_dir.is_none() => {
            let checksum = (!checksum.is_empty()).then(|| Digest::parse(&checksum)).transpose();
            return Ok(TimeSource::Http { url, checksum: checksum.map_err(|error| invalid(error.to_string()))? });
        }
        Address::Http | Address::Git => {
            if !is_commit_start(&checksum) {
                return Err(invalid(format!("{checksum:?} is not the beginning of a git commit's id")));
            }
            return Ok(TimeSource::Git { url, checksum: Some(checksum.to_lowercase()).filter(|text| !text.is_empty()) });
        }
        Address::Path => {}
    }
    Err(Diagnostic::error("SOURCE_DATE_EPOCH stage source must be a single HTTP(S) or Git ADD").at(instruction.span))
}
