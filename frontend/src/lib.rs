//! Hides the text of a Dockerfile: [`parse`] makes typed instructions of it, [`lower`] makes a [`graph::Graph`] of
//! those. Nothing here reads a file, asks a registry, looks at a clock or starts a thread: what is needed from outside
//! is asked for with [`Lowered::Needs`] and handed in.
#![forbid(unsafe_code)]

mod diagnostic;
pub mod expand;
pub mod glob;
pub mod graph;
pub mod heredoc;
pub mod ignore;
pub mod instruction;
pub mod lint;
mod lower;
pub mod parser;
mod source;
mod targets;

pub use diagnostic::{Diagnostic, Severity};
pub use lint::Rule;
pub use lower::{
    BaseImage, BaseRequest, Bases, Build, ImageTemplate, LowerOptions, Lowered, MAX_EPOCH, NamedContext, NamedKind, Outline,
    OutlineArg, OutlineMount, TimeSource, context_name, lower,
};
pub use source::{MAX_LINE, Source, Span};
pub use targets::{Target, targets};

/// What [`parse`] made of a text.
#[derive(Debug, Clone, Default)]
pub struct Parsed {
    /// The instructions.
    pub dockerfile: instruction::Dockerfile,
    /// `# check=` comments directly above an instruction, and that instruction's place.
    pub checks: Vec<(String, Span)>,
    /// What there is to say, build checks that are switched off included; an error stops [`lower`].
    pub diagnostics: Vec<Diagnostic>,
}

/// Parses a Dockerfile. A mistake becomes a [`Diagnostic`], and parsing goes on.
#[must_use]
pub fn parse(source: &Source) -> Parsed {
    let mut lines = parser::split(source);
    let mut diagnostics = std::mem::take(&mut lines.diagnostics);
    if lines.directives.syntax.is_none() {
        lines.directives.syntax = parser::Directives::detect_syntax(source);
    }
    let dockerfile = instruction::parse_lines(&lines, &mut diagnostics);
    if lines.lines.is_empty() && !diagnostics.iter().any(Diagnostic::is_error) {
        diagnostics.push(Diagnostic::error("file with no instructions").at(source.span_of_lines(1, 1)));
    } else if dockerfile.stages.is_empty() && !diagnostics.iter().any(Diagnostic::is_error) {
        let hint = "add a FROM instruction";
        diagnostics
            .push(Diagnostic::error("dockerfile contains no stages to build").at(source.span_of_lines(1, 1)).with_hint(hint));
    }
    diagnostics.extend(instruction::stage_name_lints(&dockerfile));
    diagnostics.extend(instruction::casing_lints(&dockerfile));
    let checks = lines.lines.iter().filter_map(|line| {
        let comment = line.comments.iter().rev().find_map(|comment| comment.strip_prefix("check="))?;
        Some((comment.to_owned(), line.span))
    });
    Parsed { checks: checks.collect(), dockerfile, diagnostics }
}
