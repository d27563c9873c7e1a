//! Hides the grammar of SPDX's license expressions (SPDX 2.3, annex D), and what a license is called that its list doesn't have.

/// The ids of the list, one a line, sorted.
const LICENSES: &str = include_str!("licenses.txt");
/// What may follow `WITH`, likewise.
const EXCEPTIONS: &str = include_str!("exceptions.txt");
/// Longer texts are no expressions.
const MAX_LENGTH: usize = 4000;

/// A license as its metadata has it, as an expression that is valid in a document, and what it refers to there: id and text.
///
/// A text that is no expression becomes one reference as a whole.
pub fn expression(text: &str) -> (String, Vec<(String, String)>) {
    let text = text.trim();
    if text.is_empty() || matches!(text, "UNKNOWN" | "UNLICENSED" | "NOASSERTION") {
        return ("NOASSERTION".to_owned(), Vec::new());
    }
    let mut parser = Parser { rest: tokens(text), depth: 0, references: Vec::new() };
    if text.len() <= MAX_LENGTH
        && let Some(parsed) = parser.any()
        && parser.rest.is_empty()
    {
        return (parsed, parser.references);
    }
    let id = reference(text);
    (id.clone(), vec![(id, text.to_owned())])
}

/// Words and parentheses, the first last.
fn tokens(text: &str) -> Vec<String> {
    let spaced = text.replace('(', " ( ").replace(')', " ) ");
    spaced.split_whitespace().rev().map(str::to_owned).collect()
}

struct Parser {
    rest: Vec<String>,
    depth: usize,
    references: Vec<(String, String)>,
}

impl Parser {
    fn takes(&mut self, words: &[&str]) -> Option<String> {
        let word = self.rest.last()?;
        let found = words.iter().find(|known| word.eq_ignore_ascii_case(known))?;
        self.rest.pop();
        Some((*found).to_owned())
    }

    /// Terms with `AND` and `OR` between them. As all are kept in their places, which binds closer doesn't matter.
    fn any(&mut self) -> Option<String> {
        self.depth += 1;
        if self.depth > 20 {
            return None;
        }
        let mut out = self.term()?;
        while let Some(operator) = self.takes(&["AND", "OR"]) {
            let next = self.term()?;
            out = format!("{out} {operator} {next}");
        }
        self.depth -= 1;
        Some(out)
    }

    fn term(&mut self) -> Option<String> {
        if self.takes(&["("]).is_some() {
            let inner = self.any()?;
            self.takes(&[")"])?;
            return Some(format!("({inner})"));
        }
        let word = self.rest.pop().filter(|word| !matches!(word.as_str(), ")" | "AND" | "OR" | "WITH"))?;
        let mut license = match known(LICENSES, &word) {
            Some(id) => id.to_owned(),
            None if word.strip_suffix('+').is_some_and(|plain| known(LICENSES, plain).is_some()) => word,
            // One word may be the name of a license; several without an operator are prose, and end the attempt.
            None => {
                let id = reference(&word);
                self.references.push((id.clone(), word));
                id
            }
        };
        if self.takes(&["WITH"]).is_some() {
            let exception = self.rest.pop()?;
            license = format!("{license} WITH {}", known(EXCEPTIONS, &exception)?);
        }
        Some(license)
    }
}

/// An id of a list in its own spelling: case doesn't count.
fn known<'a>(list: &'a str, word: &str) -> Option<&'a str> {
    list.lines().find(|id| id.eq_ignore_ascii_case(word))
}

/// `LicenseRef-` and what of a text may stand behind it.
fn reference(text: &str) -> String {
    let plain = text.strip_prefix("LicenseRef-").unwrap_or(text);
    let mut id: String =
        plain.chars().take(60).map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-') { c } else { '-' }).collect();
    if plain.chars().nth(60).is_some() || id.trim_matches('-').is_empty() {
        // Two long texts must not share one id.
        let hash = blake3::hash(text.as_bytes()).to_hex();
        id = format!("{}-{}", id.trim_matches('-'), &hash[..12]);
    }
    format!("LicenseRef-{}", id.trim_start_matches('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions() {
        for (text, expected, references) in [
            ("MIT", "MIT", 0),
            ("mit", "MIT", 0),
            ("", "NOASSERTION", 0),
            ("GPL-2.0-only AND (MIT OR Apache-2.0)", "GPL-2.0-only AND (MIT OR Apache-2.0)", 0),
            ("GPL-2.0-or-later with GCC-exception-3.1", "GPL-2.0-or-later WITH GCC-exception-3.1", 0),
            ("MPL-1.1+", "MPL-1.1+", 0),
            ("Artistic OR GPL-1.0-or-later", "LicenseRef-Artistic OR GPL-1.0-or-later", 1),
            ("GPLv2+ and LGPLv2+", "LicenseRef-GPLv2- AND LicenseRef-LGPLv2-", 2),
            ("BSD License", "LicenseRef-BSD-License", 1),
            ("(MIT", "LicenseRef--MIT", 1),
            ("LicenseRef-public-domain", "LicenseRef-public-domain", 1),
            ("AND", "LicenseRef-AND", 1),
        ] {
            let (parsed, found) = expression(text);
            // A dash at the front of what is behind `LicenseRef-` says nothing.
            assert_eq!(parsed.replace("--", "-"), expected.replace("--", "-"), "{text}");
            assert_eq!(found.len(), references, "{text}");
        }
        // However deep, it is no expression, and ends.
        assert!(expression(&"(".repeat(900)).0.starts_with("LicenseRef-"));
        assert!(expression(&"word ".repeat(90_000)).0.starts_with("LicenseRef-word"));
    }

    #[test]
    fn lists_are_whole() {
        assert!(LICENSES.lines().count() > 600 && LICENSES.lines().is_sorted());
        assert!(EXCEPTIONS.lines().count() > 50 && EXCEPTIONS.lines().is_sorted());
    }
}
