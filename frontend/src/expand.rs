//! Hides the little shell language of a Dockerfile: quotes, escapes, `$name`, `${name…}` and word splitting, as
//! BuildKit's `frontend/dockerfile/shell` understands them.

use std::collections::BTreeSet;

/// An ordered list of variables; a name occurs once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Env {
    entries: Vec<(String, String)>,
}

impl Env {
    /// No variables.
    #[must_use]
    pub fn new() -> Env {
        Env::default()
    }

    /// From `NAME=value` texts, as an image configuration holds them; one without `=` is set to nothing.
    pub fn from_texts<'a>(texts: impl IntoIterator<Item = &'a str>) -> Env {
        let mut env = Env::new();
        for text in texts {
            let (name, value) = split_pair(text);
            env.set(name, value);
        }
        env
    }

    /// The value of a variable.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.entries.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// Sets a variable; one that was there moves to the end, as in BuildKit's `EnvList`.
    pub fn set(&mut self, name: &str, value: &str) {
        self.entries.retain(|(n, _)| n != name);
        self.entries.push((name.to_owned(), value.to_owned()));
    }

    /// The names in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|(n, _)| n.as_str())
    }

    /// Names and values in order.
    #[must_use]
    pub fn entries(&self) -> &[(String, String)] {
        &self.entries
    }
}

/// Cuts `NAME=value` at the first `=`.
pub(crate) fn split_pair(text: &str) -> (&str, &str) {
    text.split_once('=').unwrap_or((text, ""))
}

/// What came of a word.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expansion {
    /// The whole, spaces kept.
    pub text: String,
    /// The same, split at blanks that are not quoted or escaped; blanks that come out of a variable split too.
    pub words: Vec<String>,
    /// Variables that were found.
    pub matched: BTreeSet<String>,
    /// Variables that were looked for in vain.
    pub unmatched: BTreeSet<String>,
}

/// Why a word can't be expanded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpandError {
    /// A quote has no end.
    #[error("unexpected end of statement while looking for matching {0}-quote")]
    Unclosed(&'static str),
    /// `${` has no `}`, or `${name/` no second `/`.
    #[error("syntax error: missing '{0}'{1}")]
    Missing(char, &'static str),
    /// Nothing that could be a name after `${`.
    #[error("syntax error: bad substitution")]
    BadSubstitution,
    /// A modifier nobody knows.
    #[error("unsupported modifier ({0}) in substitution")]
    Modifier(String),
    /// A pattern that ends in `\`, or escapes what needs no escape.
    #[error("invalid pattern ({pattern}) in substitution: invalid escape '{escape}'")]
    Pattern {
        /// The whole pattern.
        pattern: String,
        /// The bad part.
        escape: String,
    },
    /// `${name:?word}` of a variable that is missing or empty.
    #[error("{name}: {message}")]
    Required {
        /// The variable.
        name: String,
        /// What the Dockerfile says about it, or a default.
        message: String,
    },
    /// `${a:-${a:-…` beyond [`MAX_DEPTH`].
    #[error("substitutions are nested more than {MAX_DEPTH} deep")]
    TooDeep,
    /// `${a//…/${a//…` and its kin beyond [`MAX_GROWTH`].
    #[error("substitutions make more than {} MiB of text", MAX_GROWTH >> 20)]
    TooLong,
}

/// How deep substitutions may nest; BuildKit has no limit but its stack.
pub const MAX_DEPTH: usize = 200;

/// How many bytes the variables of one word may stand for; BuildKit has no limit but its memory. Each level of
/// `${a//b/${a//b/…}}` multiplies, so that a line of text could fill any.
pub const MAX_GROWTH: usize = 1 << 20;

/// How to expand.
#[derive(Debug, Clone, Copy)]
pub struct Lexer {
    /// `\`, or what `# escape=` says.
    pub escape: char,
    /// Keep quotes in the result.
    pub raw_quotes: bool,
    /// Keep escape characters in the result.
    pub raw_escapes: bool,
    /// Treat quotes as any other character.
    pub ignore_quotes: bool,
    /// Leave references to variables that are not set as they are.
    pub keep_unset: bool,
}

impl Lexer {
    /// The plain form: quotes and escapes are taken away, what is not set is empty.
    #[must_use]
    pub fn new(escape: char) -> Lexer {
        Lexer { escape, raw_quotes: false, raw_escapes: false, ignore_quotes: false, keep_unset: false }
    }

    /// Expands `word`.
    ///
    /// # Errors
    /// See [`ExpandError`].
    pub fn expand(&self, word: &str, env: &Env) -> Result<Expansion, ExpandError> {
        let mut walk = Walk {
            lexer: *self,
            env,
            chars: word.chars().collect(),
            at: 0,
            raw_escapes: self.raw_escapes,
            depth: 0,
            growth: 0,
            matched: BTreeSet::new(),
            unmatched: BTreeSet::new(),
        };
        let (text, words) = walk.until(None, self.raw_escapes)?;
        Ok(Expansion { text, words, matched: walk.matched, unmatched: walk.unmatched })
    }
}

/// Collects words: blanks end a word unless they were quoted.
#[derive(Default)]
struct Words {
    done: Vec<String>,
    word: String,
}

impl Words {
    fn plain(&mut self, c: char) {
        if !c.is_whitespace() {
            self.word.push(c);
        } else if !self.word.is_empty() {
            self.done.push(std::mem::take(&mut self.word));
        }
    }

    fn finish(mut self) -> Vec<String> {
        if !self.word.is_empty() {
            self.done.push(self.word);
        }
        self.done
    }
}

struct Walk<'a> {
    lexer: Lexer,
    env: &'a Env,
    chars: Vec<char>,
    at: usize,
    raw_escapes: bool,
    depth: usize,
    /// What variables have stood for so far.
    growth: usize,
    matched: BTreeSet<String>,
    unmatched: BTreeSet<String>,
}

impl Walk<'_> {
    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek();
        self.at += usize::from(c.is_some());
        c
    }

    /// Up to `stop`, which is eaten, or to the end.
    fn until(&mut self, stop: Option<char>, raw_escapes: bool) -> Result<(String, Vec<String>), ExpandError> {
        if self.depth >= MAX_DEPTH {
            return Err(ExpandError::TooDeep);
        }
        self.depth += 1;
        let outer = std::mem::replace(&mut self.raw_escapes, raw_escapes);
        let result = self.until_inner(stop);
        self.raw_escapes = outer;
        self.depth -= 1;
        result
    }

    fn until_inner(&mut self, stop: Option<char>) -> Result<(String, Vec<String>), ExpandError> {
        let mut text = String::new();
        let mut words = Words::default();
        while let Some(c) = self.peek() {
            if stop == Some(c) {
                self.at += 1;
                return Ok((text, words.finish()));
            }
            match c {
                '$' => {
                    let value = self.dollar()?;
                    text.push_str(&value);
                    value.chars().for_each(|c| words.plain(c));
                }
                '\'' | '"' if !self.lexer.ignore_quotes => {
                    let value = if c == '"' { self.double_quote()? } else { self.single_quote()? };
                    text.push_str(&value);
                    words.word.push_str(&value);
                }
                '<' => {
                    let value = self.possible_heredoc();
                    text.push_str(&value);
                    words.word.push_str(&value);
                }
                _ if c == self.lexer.escape => {
                    self.at += 1;
                    if self.raw_escapes {
                        words.word.push(c);
                        text.push(c);
                    }
                    // An escape at the very end stands for nothing.
                    if let Some(escaped) = self.next() {
                        words.word.push(escaped);
                        text.push(escaped);
                    }
                }
                _ => {
                    self.at += 1;
                    words.plain(c);
                    text.push(c);
                }
            }
        }
        match stop {
            Some(stop) => Err(ExpandError::Missing(stop, "")),
            None => Ok((text, words.finish())),
        }
    }

    /// `<`, or `<<` with the blanks behind it, which don't end the word: a here-document's delimiter may come after them.
    fn possible_heredoc(&mut self) -> String {
        let begin = self.at;
        self.at += 1;
        if self.peek() == Some('<') {
            self.at += 1;
            while self.peek().is_some_and(|c| c.is_ascii_whitespace()) {
                self.at += 1;
            }
        }
        self.chars[begin..self.at].iter().collect()
    }

    fn single_quote(&mut self) -> Result<String, ExpandError> {
        let mut out = String::new();
        self.at += 1;
        if self.lexer.raw_quotes {
            out.push('\'');
        }
        loop {
            match self.next() {
                None => return Err(ExpandError::Unclosed("single")),
                Some('\'') => {
                    if self.lexer.raw_quotes {
                        out.push('\'');
                    }
                    return Ok(out);
                }
                Some(c) => out.push(c),
            }
        }
    }

    fn double_quote(&mut self) -> Result<String, ExpandError> {
        let mut out = String::new();
        self.at += 1;
        if self.lexer.raw_quotes {
            out.push('"');
        }
        loop {
            match self.peek() {
                None => return Err(ExpandError::Unclosed("double")),
                Some('"') => {
                    self.at += 1;
                    if self.lexer.raw_quotes {
                        out.push('"');
                    }
                    return Ok(out);
                }
                Some('$') => out.push_str(&self.dollar()?),
                Some(c) if c == self.lexer.escape => {
                    self.at += 1;
                    if self.raw_escapes {
                        out.push(c);
                    }
                    match self.peek() {
                        None => {}
                        Some(next) if next == '"' || next == '$' || next == self.lexer.escape => {
                            self.at += 1;
                            out.push(next);
                        }
                        Some(_) => out.push(c),
                    }
                }
                Some(c) => {
                    self.at += 1;
                    out.push(c);
                }
            }
        }
    }

    fn dollar(&mut self) -> Result<String, ExpandError> {
        let value = self.variable()?;
        self.growth += value.len();
        if self.growth > MAX_GROWTH { Err(ExpandError::TooLong) } else { Ok(value) }
    }

    fn variable(&mut self) -> Result<String, ExpandError> {
        self.at += 1;
        if self.peek() != Some('{') {
            let name = self.name();
            if name.is_empty() {
                return Ok("$".to_owned());
            }
            return Ok(match self.look_up(&name) {
                Some(value) => value,
                None if self.lexer.keep_unset => format!("${name}"),
                None => String::new(),
            });
        }
        self.at += 1;
        match self.peek() {
            None => return Err(ExpandError::Missing('}', "")),
            Some('{' | '}' | ':') => return Err(ExpandError::BadSubstitution),
            Some(_) => {}
        }
        let name = self.name();
        let Some(modifier) = self.next() else { return Err(ExpandError::Missing('}', "")) };
        match modifier {
            '}' => Ok(match self.look_up(&name) {
                Some(value) => value,
                None if self.lexer.keep_unset => format!("${{{name}}}"),
                None => String::new(),
            }),
            ':' => match self.next() {
                Some(kind @ ('+' | '-' | '?')) => self.conditional(&name, kind, true),
                Some(other) => Err(ExpandError::Modifier(format!(":{other}"))),
                None => Err(ExpandError::Missing('}', "")),
            },
            '+' | '-' | '?' => self.conditional(&name, modifier, false),
            '#' | '%' => self.trim(&name, modifier),
            '/' => self.replace(&name),
            other => Err(ExpandError::Modifier(other.to_string())),
        }
    }

    /// `${name-word}` and its kin; `null_is_unset` is the colon.
    fn conditional(&mut self, name: &str, kind: char, null_is_unset: bool) -> Result<String, ExpandError> {
        let (word, _) = self.until(Some('}'), false)?;
        let value = self.look_up(name);
        if value.is_none() && self.lexer.keep_unset {
            let colon = if null_is_unset { ":" } else { "" };
            return Ok(format!("${{{name}{colon}{kind}{word}}}"));
        }
        let is_set = value.is_some();
        let usable = value.filter(|v| !(null_is_unset && v.is_empty()));
        match (kind, usable) {
            ('-', None) => Ok(word),
            ('+', Some(_)) => Ok(word),
            ('+', None) => Ok(String::new()),
            ('?', None) => {
                let default = if is_set { "is not allowed to be empty" } else { "is not allowed to be unset" };
                let message = if word.is_empty() { default.to_owned() } else { word };
                Err(ExpandError::Required { name: name.to_owned(), message })
            }
            (_, Some(value)) => Ok(value),
            (_, None) => Ok(String::new()),
        }
    }

    /// `${name#pattern}`, `##`, `%`, `%%`.
    fn trim(&mut self, name: &str, kind: char) -> Result<String, ExpandError> {
        let (word, _) = self.until(Some('}'), true)?;
        let Some(value) = self.look_up(name) else {
            return Ok(if self.lexer.keep_unset { format!("${{{name}{kind}{word}}}") } else { String::new() });
        };
        let (pattern, greedy) = match word.strip_prefix(kind) {
            Some(rest) => (rest, true),
            None => (word.as_str(), false),
        };
        let mut pattern = Pattern::parse(pattern)?;
        let mut chars: Vec<char> = value.chars().collect();
        if kind == '%' {
            pattern.reverse();
            chars.reverse();
        }
        if let Some(end) = pattern.prefix(&chars, greedy) {
            chars.drain(..end);
        }
        if kind == '%' {
            chars.reverse();
        }
        Ok(chars.into_iter().collect())
    }

    /// `${name/pattern/replacement}` and `//`.
    fn replace(&mut self, name: &str) -> Result<String, ExpandError> {
        let all = self.peek() == Some('/');
        self.at += usize::from(all);
        let (word, _) = self.until(Some('/'), true).map_err(|e| match e {
            ExpandError::Missing(..) if self.peek().is_none() => ExpandError::Missing('/', " in ${}"),
            other => other,
        })?;
        let (replacement, _) = self.until(Some('}'), true)?;
        let Some(value) = self.look_up(name) else {
            let slashes = if all { "//" } else { "/" };
            return Ok(if self.lexer.keep_unset { format!("${{{name}{slashes}{word}/{replacement}}}") } else { String::new() });
        };
        let pattern = Pattern::parse(&word)?;
        let chars: Vec<char> = value.chars().collect();
        let mut out = String::new();
        let (mut copied, mut from) = (0, 0);
        while from <= chars.len() {
            let Some((start, end)) = pattern.find(&chars, from) else { break };
            out.extend(&chars[copied..start]);
            // An empty match right behind the last one is none, as in Go's `ReplaceAllString`.
            if end > copied || start == 0 {
                out.push_str(&replacement);
                if out.len() > MAX_GROWTH {
                    return Err(ExpandError::TooLong);
                }
            }
            copied = end;
            from = if end > from { end } else { from + 1 };
            if !all {
                break;
            }
        }
        out.extend(&chars[copied..]);
        Ok(out)
    }

    /// A name, a number, or one of the shell's special parameters; empty if there is none.
    fn name(&mut self) -> String {
        let start = self.at;
        match self.peek() {
            Some(c) if c.is_numeric() => {
                while self.peek().is_some_and(char::is_numeric) {
                    self.at += 1;
                }
            }
            Some('@' | '*' | '#' | '?' | '-' | '$' | '!') => self.at += 1,
            _ => {
                while self.peek().is_some_and(|c| c.is_alphanumeric() || c == '_') {
                    self.at += 1;
                }
            }
        }
        self.chars[start..self.at].iter().collect()
    }

    fn look_up(&mut self, name: &str) -> Option<String> {
        match self.env.get(name) {
            Some(value) => {
                self.matched.insert(name.to_owned());
                Some(value.to_owned())
            }
            None => {
                self.unmatched.insert(name.to_owned());
                None
            }
        }
    }
}

/// A shell pattern of `*`, `?` and characters (no brackets), as pieces between stars.
struct Pattern {
    /// `None` in a piece is `?`.
    pieces: Vec<Vec<Option<char>>>,
}

impl Pattern {
    fn parse(text: &str) -> Result<Pattern, ExpandError> {
        let mut pieces = vec![Vec::new()];
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            let piece = match c {
                '*' => {
                    pieces.push(Vec::new());
                    continue;
                }
                '?' => None,
                '\\' => match chars.peek().copied() {
                    // `}` and `/` need an escape to stand inside `${}`, so it isn't the pattern's own.
                    Some('}' | '/') => continue,
                    Some(escaped @ ('*' | '?' | '\\')) => {
                        chars.next();
                        Some(escaped)
                    }
                    other => {
                        let escape = format!("\\{}", other.map(String::from).unwrap_or_default());
                        return Err(ExpandError::Pattern { pattern: text.to_owned(), escape });
                    }
                },
                c => Some(c),
            };
            if let Some(last) = pieces.last_mut() {
                last.push(piece);
            }
        }
        Ok(Pattern { pieces })
    }

    fn reverse(&mut self) {
        self.pieces.reverse();
        self.pieces.iter_mut().for_each(|piece| piece.reverse());
    }

    /// How many characters at the start of `text` match: as few as possible, or as many.
    fn prefix(&self, text: &[char], greedy: bool) -> Option<usize> {
        let (first, rest) = self.pieces.split_first()?;
        if !fits(first, text) {
            return None;
        }
        let mut at = first.len();
        let Some((last, middle)) = rest.split_last() else { return Some(at) };
        for piece in middle {
            at = (at..=text.len()).find(|i| fits(piece, &text[*i..]))? + piece.len();
        }
        // Each star but the last can only make room by being short, so the last one alone decides the length.
        let mut places = at..=text.len();
        let place = if greedy { places.rfind(|i| fits(last, &text[*i..])) } else { places.find(|i| fits(last, &text[*i..])) };
        place.map(|i| i + last.len())
    }

    /// The first, longest match at or after `from`.
    fn find(&self, text: &[char], from: usize) -> Option<(usize, usize)> {
        // What stands behind a star is found behind the first place for what stands before it, or behind none.
        let first = self.pieces.first()?;
        let start = (from..=text.len()).find(|at| fits(first, &text[*at..]))?;
        self.prefix(&text[start..], true).map(|len| (start, start + len))
    }
}

fn fits(piece: &[Option<char>], text: &[char]) -> bool {
    piece.len() <= text.len() && piece.iter().zip(text).all(|(want, have)| want.is_none_or(|c| c == *have))
}

#[cfg(test)]
mod tests;
