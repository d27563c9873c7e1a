//! Hides `.dockerignore`: how its lines are read (moby `patternmatcher/ignorefile`), how they match, and when a whole
//! directory can be left out of a walk (moby `patternmatcher`, fsutil `filter.go`).
//!
//! Two oddities of BuildKit's are not repeated, for they come from its turning patterns into regular expressions by
//! hand: `+ ( ) | ^ { }` are plain characters here even in a pattern with wildcards, and `[*]` is a class.

use crate::glob::{BadPattern, decode, path_match};

/// Why an ignore file can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IgnoreError {
    /// A `!` with nothing behind it.
    #[error("illegal exclusion pattern: \"!\"{}", at_line(*.line))]
    LoneBang {
        /// Counted from 1; 0 when the pattern is from no file.
        line: usize,
    },
    /// A class without end, or a trailing `\`.
    #[error("syntax error in pattern `{pattern}`{}", at_line(*.line))]
    Syntax {
        /// As written.
        pattern: String,
        /// Counted from 1; 0 when the pattern is from no file.
        line: usize,
    },
}

fn at_line(line: usize) -> String {
    if line == 0 { String::new() } else { format!(" on line {line}") }
}

/// A list of patterns of which the last that matches decides.
#[derive(Debug, Clone, Default)]
pub struct PatternMatcher {
    patterns: Vec<Pattern>,
}

/// What the patterns said about a directory, to be handed to its children.
///
/// The default stands for the root of the walk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// For each pattern whether it matched; empty when nothing is known.
    matched: Vec<bool>,
}

#[derive(Debug, Clone)]
struct Pattern {
    /// Cleaned, without the `!`.
    text: Vec<u8>,
    /// Whether it had a `!`.
    exclusion: bool,
    tokens: Vec<Token>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    /// This byte.
    Byte(u8),
    /// Any character but a slash.
    Any,
    /// Any number of characters but slashes.
    Star,
    /// Any number of characters.
    Everything,
    /// Nothing, or anything that ends in a slash.
    Directories,
    /// A character out of (or not out of) ranges.
    Class { negated: bool, ranges: Vec<(u32, u32)> },
}

impl PatternMatcher {
    /// Reads the text of an ignore file.
    ///
    /// # Errors
    /// See [`IgnoreError`].
    pub fn parse(text: &[u8]) -> Result<PatternMatcher, IgnoreError> {
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        let mut matcher = PatternMatcher::default();
        for (index, line) in text.split(|b| *b == b'\n').enumerate() {
            if line.starts_with(b"#") {
                continue;
            }
            let line = trim(line);
            if line.is_empty() {
                continue;
            }
            let (exclusion, pattern) = match line.strip_prefix(b"!") {
                Some(rest) => (true, trim(rest)),
                None => (false, line),
            };
            let mut pattern = if pattern.is_empty() { Vec::new() } else { clean(pattern) };
            // A leading slash means the root of the context, which every pattern starts from anyway.
            if pattern.len() > 1 && pattern[0] == b'/' {
                pattern.remove(0);
            }
            // Cleaning `!/` as a whole takes its slash away (moby/patternmatcher New).
            if exclusion && pattern == b"/" {
                pattern.clear();
            }
            matcher.add(pattern, exclusion, index + 1)?;
        }
        Ok(matcher)
    }

    /// Takes patterns as they are, for `COPY --exclude`.
    ///
    /// # Errors
    /// See [`IgnoreError`].
    pub fn from_patterns<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<PatternMatcher, IgnoreError> {
        let mut matcher = PatternMatcher::default();
        for pattern in patterns {
            let pattern = trim(pattern.as_bytes());
            if pattern.is_empty() {
                continue;
            }
            let cleaned = clean(pattern);
            match cleaned.strip_prefix(b"!") {
                Some(rest) => matcher.add(rest.to_vec(), true, 0)?,
                None => matcher.add(cleaned, false, 0)?,
            }
        }
        Ok(matcher)
    }

    fn add(&mut self, text: Vec<u8>, exclusion: bool, line: usize) -> Result<(), IgnoreError> {
        if text.is_empty() {
            return Err(IgnoreError::LoneBang { line });
        }
        let syntax = |_: BadPattern| IgnoreError::Syntax { pattern: String::from_utf8_lossy(&text).into_owned(), line };
        path_match(&text, b".").map_err(syntax)?;
        let tokens = compile(&text).map_err(syntax)?;
        self.patterns.push(Pattern { text, exclusion, tokens });
        Ok(())
    }

    /// Whether there is no pattern.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether a pattern begins with `!`.
    #[must_use]
    pub fn has_exclusions(&self) -> bool {
        self.patterns.iter().any(|p| p.exclusion)
    }

    /// Whether a path is ignored, by itself or by a directory above it. The path is relative, without `.` or `..`.
    #[must_use]
    pub fn matches(&self, path: &[u8]) -> bool {
        self.step(&State::default(), path).0
    }

    /// The same for a walk: `parent` is what this gave for the directory that holds `path` (the default for the root),
    /// `path` is the whole path from the root. Gives whether `path` is ignored, and the state for what it holds.
    ///
    /// An ignored directory must still be looked into unless [`PatternMatcher::can_skip`] allows otherwise.
    #[must_use]
    pub fn step(&self, parent: &State, path: &[u8]) -> (bool, State) {
        let mut ignored = false;
        let mut matched = vec![false; self.patterns.len()];
        for (index, pattern) in self.patterns.iter().enumerate() {
            let inherited = parent.matched.get(index).copied().unwrap_or(false);
            if !inherited && pattern.exclusion != ignored {
                // It could change nothing.
                continue;
            }
            let hit = inherited
                || pattern.matches(path)
                || (parent.matched.is_empty() && parents(path).any(|parent| pattern.matches(parent)));
            matched[index] = hit;
            if hit {
                ignored = !pattern.exclusion;
            }
        }
        (ignored, State { matched })
    }

    /// Whether nothing below an ignored directory can be taken in again, so that the walk can pass it by. `state` is
    /// what [`PatternMatcher::step`] gave for `directory`.
    #[must_use]
    pub fn can_skip(&self, directory: &[u8], state: &State) -> bool {
        // What a pattern says about the directory holds for all in it, so only a later `!` can overrule it.
        let last = state.matched.iter().zip(&self.patterns).rposition(|(hit, pattern)| *hit && !pattern.exclusion);
        let Some(last) = last else { return false };
        !self.patterns[last + 1..].iter().any(|pattern| pattern.exclusion && pattern.may_match_below(directory))
    }
}

impl Pattern {
    fn matches(&self, path: &[u8]) -> bool {
        // Where in the path the tokens so far can end.
        let mut reach = vec![false; path.len() + 1];
        reach[0] = true;
        for token in &self.tokens {
            let mut next = vec![false; path.len() + 1];
            let mut alive = false;
            let mut seen = false;
            for at in 0..=path.len() {
                let here = reach[at];
                seen |= here;
                match token {
                    Token::Byte(b) => {
                        if here && path.get(at) == Some(b) {
                            next[at + 1] = true;
                        }
                    }
                    Token::Any => {
                        if here && at < path.len() && path[at] != b'/' {
                            next[path.len() - decode(&path[at..]).1.len()] = true;
                        }
                    }
                    Token::Class { negated, ranges } => {
                        if here && at < path.len() {
                            let (c, rest) = decode(&path[at..]);
                            if ranges.iter().any(|(low, high)| (*low..=*high).contains(&c)) != *negated {
                                next[path.len() - rest.len()] = true;
                            }
                        }
                    }
                    Token::Star => {
                        next[at] |= here;
                        if next[at] && at < path.len() && path[at] != b'/' {
                            next[at + 1] = true;
                        }
                    }
                    Token::Everything => next[at] = seen,
                    Token::Directories => {
                        next[at] |= here;
                        if seen && path.get(at) == Some(&b'/') {
                            next[at + 1] = true;
                        }
                    }
                }
                alive |= next[at];
            }
            if !alive {
                return false;
            }
            reach = next;
        }
        reach[path.len()]
    }

    /// Whether this could match something below `directory`.
    fn may_match_below(&self, directory: &[u8]) -> bool {
        let mut wanted = self.text.split(|b| *b == b'/');
        for have in directory.split(|b| *b == b'/') {
            match wanted.next() {
                None => return false,
                // Stars that cross slashes, and slashes inside classes, are not worth a closer look.
                Some(part) if part.windows(2).any(|w| w == b"**") || part.contains(&b'[') => return true,
                Some(part) => match path_match(part, have) {
                    Ok(true) => {}
                    Ok(false) => return false,
                    Err(BadPattern) => return true,
                },
            }
        }
        wanted.next().is_some()
    }
}

fn compile(text: &[u8]) -> Result<Vec<Token>, BadPattern> {
    let mut tokens = Vec::new();
    let mut i = 0;
    while i < text.len() {
        match text[i] {
            b'*' if text.get(i + 1) == Some(&b'*') => {
                i += 2;
                if text.get(i) == Some(&b'/') {
                    i += 1;
                }
                tokens.push(if i == text.len() { Token::Everything } else { Token::Directories });
                continue;
            }
            b'*' => tokens.push(Token::Star),
            b'?' => tokens.push(Token::Any),
            b'\\' => {
                i += 1;
                tokens.push(Token::Byte(*text.get(i).ok_or(BadPattern)?));
            }
            b'[' => {
                let (class, rest) = compile_class(&text[i + 1..])?;
                tokens.push(class);
                i = text.len() - rest.len();
                continue;
            }
            byte => tokens.push(Token::Byte(byte)),
        }
        i += 1;
    }
    Ok(tokens)
}

fn compile_class(text: &[u8]) -> Result<(Token, &[u8]), BadPattern> {
    let negated = text.first() == Some(&b'^');
    let mut text = &text[usize::from(negated)..];
    let mut ranges = Vec::new();
    loop {
        if text.first() == Some(&b']') && !ranges.is_empty() {
            return Ok((Token::Class { negated, ranges }, &text[1..]));
        }
        let (low, rest) = class_char(text)?;
        text = rest;
        let mut high = low;
        if text.first() == Some(&b'-') {
            (high, text) = class_char(&text[1..])?;
        }
        ranges.push((low, high));
    }
}

fn class_char(text: &[u8]) -> Result<(u32, &[u8]), BadPattern> {
    let text = match text.first() {
        Some(b'\\') => &text[1..],
        _ => text,
    };
    if text.is_empty() { Err(BadPattern) } else { Ok(decode(text)) }
}

/// The directories above a path, the topmost first.
fn parents(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(i, _)| &path[..i])
}

/// Go's `strings.TrimSpace`, for bytes: what is not UTF-8 stays.
fn trim(line: &[u8]) -> &[u8] {
    match std::str::from_utf8(line) {
        Ok(text) => text.trim().as_bytes(),
        Err(_) => line.trim_ascii(),
    }
}

/// Go's `filepath.Clean`.
fn clean(path: &[u8]) -> Vec<u8> {
    let rooted = path.first() == Some(&b'/');
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => match parts.last() {
                Some(last) if *last != b".." => {
                    parts.pop();
                }
                _ if rooted => {}
                _ => parts.push(part),
            },
            part => parts.push(part),
        }
    }
    let joined = parts.join(&b'/');
    match (rooted, joined.is_empty()) {
        (true, _) => [b"/", joined.as_slice()].concat(),
        (false, true) => b".".to_vec(),
        (false, false) => joined,
    }
}

#[cfg(test)]
mod tests;
