//! Hides how a mistake in a Dockerfile is worded and ranked: severity, rule, span, hint.

use std::fmt;

use crate::lint::Rule;
use crate::source::{Source, Span};

/// How grave a [`Diagnostic`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// The build can go on.
    Warning,
    /// The build cannot go on.
    Error,
}

/// Something to tell about a Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Whether the build can go on.
    pub severity: Severity,
    /// The build check that fired, for a lint.
    pub rule: Option<Rule>,
    /// One sentence, lower case, no full stop.
    pub message: String,
    /// Where in the Dockerfile; `None` when no place is to blame.
    pub span: Option<Span>,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Diagnostic {
    /// An error without a place.
    #[must_use]
    pub fn error(message: impl Into<String>) -> Diagnostic {
        Diagnostic { severity: Severity::Error, rule: None, message: message.into(), span: None, hint: None }
    }

    /// A warning without a place.
    #[must_use]
    pub fn warning(message: impl Into<String>) -> Diagnostic {
        Diagnostic { severity: Severity::Warning, rule: None, message: message.into(), span: None, hint: None }
    }

    /// A build check that fired.
    #[must_use]
    pub fn lint(rule: Rule, message: impl Into<String>, span: Span) -> Diagnostic {
        Diagnostic { severity: Severity::Warning, rule: Some(rule), message: message.into(), span: Some(span), hint: None }
    }

    /// The same with a place.
    #[must_use]
    pub fn at(mut self, span: Span) -> Diagnostic {
        self.span = Some(span);
        self
    }

    /// The same with a hint.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Diagnostic {
        self.hint = Some(hint.into());
        self
    }

    /// Whether this stops the build.
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// The whole text for a person: the lines of the Dockerfile, then the message, then the hint. Ends with a line feed.
    #[must_use]
    pub fn render(&self, source: &Source) -> String {
        let mut out = self.span.map(|span| source.excerpt(span)).unwrap_or_default();
        match self.rule {
            Some(rule) => out.push_str(&format!("{}: {}\n", rule.name(), self.message)),
            None => {
                let word = match self.severity {
                    Severity::Error => "error",
                    Severity::Warning => "warning",
                };
                out.push_str(&format!("{word}: {}\n", self.message));
            }
        }
        if let Some(hint) = &self.hint {
            out.push_str(&format!("hint: {hint}\n"));
        }
        out
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Diagnostic {}

/// The word nearest to `word` among `options`, for "did you mean"; compared without case.
pub(crate) fn nearest<'a>(word: &str, options: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_lowercase();
    let limit = match lower.chars().count() {
        0..=2 => 1,
        3..=5 => 2,
        _ => 3,
    };
    options
        .into_iter()
        .map(|option| (distance(&lower, &option.to_lowercase()), option))
        .filter(|(d, option)| *d <= limit && *d < option.chars().count())
        .min_by_key(|(d, _)| *d)
        .map(|(_, option)| option)
}

/// The word that BuildKit's build checks take to be meant (`util/suggest`): case counts, and two letters may be wrong, however
/// short the word is.
pub(crate) fn suggestion<'a>(word: &str, options: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let near = options.into_iter().map(|option| (distance(word, option), option)).filter(|(d, _)| *d < 3);
    near.min_by_key(|(d, _)| *d).filter(|(d, _)| *d > 0).map(|(_, option)| option)
}

/// Levenshtein's distance in characters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substitution = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substitution.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggestions() {
        let rows = [
            ("RUM", Some("RUN")),
            ("COPPY", Some("COPY")),
            ("ENTRYPIONT", Some("ENTRYPOINT")),
            ("FORM", Some("FROM")),
            ("X", None),
            ("whatever", None),
        ];
        for (word, want) in rows {
            assert_eq!(nearest(word, ["RUN", "COPY", "ENTRYPOINT", "FROM"]), want, "{word}");
        }
        let rows = [("A", Some("X")), ("fo", None), ("FO", Some("FOO")), ("FOO", None), ("PTAH", Some("PATH"))];
        for (word, want) in rows {
            assert_eq!(suggestion(word, ["X", "FOO", "PATH"].into_iter().skip(usize::from(want != Some("X")))), want, "{word}");
        }
    }
}
