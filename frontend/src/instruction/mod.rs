//! Hides how a line becomes a typed instruction.

/// A Dockerfile in typed form.
#[derive(Debug, Clone, Default)]
pub struct Dockerfile {}
