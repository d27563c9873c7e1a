//! Hides which stages a Dockerfile offers as targets.

use crate::Parsed;
use crate::source::Span;

/// A stage as `--call targets` lists it: as it is written, no variable expanded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its name.
    pub name: Option<String>,
    /// What the comment above its `FROM` says about it.
    pub description: Option<String>,
    /// Whether it's built when no target is named.
    pub is_default: bool,
    /// What it starts from.
    pub base: String,
    /// `--platform`.
    pub platform: Option<String>,
    /// Its `FROM`.
    pub span: Span,
}

/// The stages of a file, in order. Nothing is asked for, no base image either.
#[must_use]
pub fn targets(parsed: &Parsed) -> Vec<Target> {
    let stages = &parsed.dockerfile.stages;
    let target = |(index, stage): (usize, &crate::instruction::Stage)| Target {
        name: stage.name.clone(),
        description: stage.comment.clone(),
        is_default: index + 1 == stages.len(),
        base: stage.base.clone(),
        platform: stage.platform.clone(),
        span: stage.span,
    };
    stages.iter().enumerate().map(target).collect()
}
