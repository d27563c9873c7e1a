//! Hides how lines become instructions: directives, comments, continuations, flags, here-documents (BuildKit
//! `frontend/dockerfile/parser`).

use crate::diagnostic::Diagnostic;
use crate::heredoc::Heredoc;
use crate::lint::Rule;
use crate::source::{MAX_LINE, Source, Span};

/// The `# key=value` lines at the top of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directives {
    /// What continues a line and escapes a character: `\` or `` ` ``.
    pub escape: char,
    /// `# syntax=`, the whole value.
    pub syntax: Option<(String, Span)>,
    /// `# check=`.
    pub check: Option<(String, Span)>,
}

impl Default for Directives {
    fn default() -> Directives {
        Directives { escape: '\\', syntax: None, check: None }
    }
}

/// An instruction that has been put together from its physical lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The first word as typed.
    pub keyword: String,
    /// The words that begin with `--` behind it, quotes and escapes taken away.
    pub flags: Vec<String>,
    /// What follows, trimmed.
    pub rest: String,
    /// The whole, continuations joined.
    pub original: String,
    /// With their bodies.
    pub heredocs: Vec<Heredoc>,
    /// The comment lines above, without `#`; a blank line ends them not, an empty comment does.
    pub comments: Vec<String>,
    /// From the first line to the last, bodies included.
    pub span: Span,
}

/// All the instructions of a file.
#[derive(Debug, Clone, Default)]
pub struct Lines {
    /// The directives.
    pub directives: Directives,
    /// In order.
    pub lines: Vec<Line>,
    /// Mistakes and lints.
    pub diagnostics: Vec<Diagnostic>,
}

/// Splits a file into instructions.
#[must_use]
pub fn split(source: &Source) -> Lines {
    let mut out = Lines::default();
    let mut reader = Reader { source, next: 1, too_long: None };
    let mut directives = DirectiveReader { open: true, seen: Vec::new() };
    let mut comments: Vec<String> = Vec::new();

    while let Some((number, raw)) = reader.line() {
        let at = source.span_of_lines(number, number);
        let trimmed = raw.trim_start();
        match directives.read(trimmed) {
            Ok(Some((key, value))) => {
                out.directives.set(key, value, at, &mut out.diagnostics);
                continue;
            }
            Ok(None) => {}
            Err(message) => out.diagnostics.push(Diagnostic::error(message).at(at)),
        }
        if trimmed.starts_with('#') {
            // BuildKit takes the line's first character away, whatever it is: the `#` of an indented comment stays.
            let mut comment = raw.chars();
            comment.next();
            match comment.as_str().trim() {
                "" => comments.clear(),
                text => comments.push(text.to_owned()),
            }
            continue;
        }
        let (text, mut goes_on) = cut_continuation(trimmed, out.directives.escape);
        if text.is_empty() && !goes_on {
            continue;
        }
        let mut joined = text.to_owned();
        let mut last = number;
        let mut blank = None;
        while goes_on {
            let Some((number, raw)) = reader.line() else { break };
            last = number;
            let trimmed = raw.trim_start();
            if trimmed.starts_with('#') {
                continue;
            }
            if trimmed.is_empty() {
                blank = Some(number);
                continue;
            }
            let (text, more) = cut_continuation(raw, out.directives.escape);
            joined.push_str(text);
            goes_on = more;
        }
        if blank.is_some() {
            let at = source.span_of_lines(last, last);
            out.diagnostics.push(Diagnostic::lint(Rule::NoEmptyContinuation, "Empty continuation line", at));
        }
        let mut line = split_line(&joined);
        line.comments = std::mem::take(&mut comments);
        line.span = source.span_of_lines(number, last);
        if let Err(mut diagnostic) = read_heredocs(&mut line, &mut reader)
            && reader.too_long.is_none()
        {
            diagnostic.span = Some(line.span);
            out.diagnostics.push(diagnostic);
        }
        out.lines.push(line);
    }
    if let Some(number) = reader.too_long {
        let error = Diagnostic::error(format!("dockerfile line greater than max allowed size of {MAX_LINE}"));
        out.diagnostics.push(error.at(source.span_of_lines(number, number)));
    }
    out
}

/// Cuts an instruction into keyword, flags and the rest.
#[must_use]
pub fn split_line(original: &str) -> Line {
    let text = original.trim();
    let blank = |c: char| matches!(c, '\t' | '\x0b' | '\x0c' | '\r' | ' ');
    let (keyword, rest) = text.split_once(blank).unwrap_or((text, ""));
    let (flags, rest) = split_flags(rest.trim_start_matches(blank));
    Line {
        keyword: keyword.to_owned(),
        flags,
        rest: rest.trim().to_owned(),
        original: original.to_owned(),
        heredocs: Vec::new(),
        comments: Vec::new(),
        span: Span { start: 0, end: original.len(), first_line: 1, last_line: 1 },
    }
}

struct Reader<'a> {
    source: &'a Source,
    next: u32,
    /// A line that is too long, behind which nothing is read.
    too_long: Option<u32>,
}

impl<'a> Reader<'a> {
    /// The next physical line without its end.
    fn line(&mut self) -> Option<(u32, &'a str)> {
        self.raw().map(|(number, line)| (number, line.trim_end_matches(['\r', '\n'])))
    }

    /// The next physical line with its end.
    fn raw(&mut self) -> Option<(u32, &'a str)> {
        if self.next as usize > self.source.line_count() || self.too_long.is_some() {
            return None;
        }
        let number = self.next;
        self.next += 1;
        let line = self.source.raw_line(number);
        // Only the line feed comes on top.
        if line.strip_suffix('\n').unwrap_or(line).len() > MAX_LINE {
            self.too_long = Some(number);
            return None;
        }
        (!line.is_empty()).then_some((number, line))
    }
}

/// Reads the bodies that a line announces.
fn read_heredocs(line: &mut Line, reader: &mut Reader<'_>) -> Result<(), Diagnostic> {
    if !line.original.contains("<<") || !may_have_heredocs(line) {
        return Ok(());
    }
    for mut heredoc in Heredoc::announced(&line.original)? {
        loop {
            let Some((number, raw)) = reader.raw() else {
                let mut hint = format!("end it with a line that holds only `{}`", heredoc.name);
                if heredoc.name.contains(')') {
                    hint.push_str(", or write a shift without a blank after `<<`");
                }
                return Err(Diagnostic::error("unterminated heredoc").with_hint(hint));
            };
            line.span = line.span.join(reader.source.span_of_lines(number, number));
            if heredoc.is_terminator(raw) {
                break;
            }
            heredoc.content.push_str(raw);
        }
        line.heredocs.push(heredoc);
    }
    Ok(())
}

/// `RUN`, `COPY` and `ADD` in other than JSON form, also under `ONBUILD`.
fn may_have_heredocs(line: &Line) -> bool {
    match line.keyword.to_ascii_lowercase().as_str() {
        "onbuild" => {
            let inner = split_line(&line.rest);
            !inner.keyword.eq_ignore_ascii_case("onbuild") && may_have_heredocs(&inner)
        }
        "run" | "copy" | "add" => !matches!(crate::instruction::json_form(&line.rest), Ok(Some(_))),
        _ => false,
    }
}

/// The text before an escape character that ends the line, and whether there is one.
fn cut_continuation(line: &str, escape: char) -> (&str, bool) {
    let text = line.trim_end_matches([' ', '\t']);
    match text.strip_suffix(escape) {
        // One that is itself escaped continues nothing.
        Some(before) if !before.ends_with(escape) => (before, true),
        _ => (line, false),
    }
}

/// Takes words that begin with `--` off the front; `--` alone ends them.
fn split_flags(line: &str) -> (Vec<String>, &str) {
    let mut flags = Vec::new();
    let mut rest = line;
    loop {
        rest = rest.trim_start();
        if !rest.starts_with("--") {
            return (flags, rest);
        }
        let mut word = String::new();
        let mut quote = None;
        let mut chars = rest.char_indices();
        let mut end = rest.len();
        while let Some((i, c)) = chars.next() {
            match (c, quote) {
                (_, Some(q)) if c == q => quote = None,
                ('\'' | '"', None) => quote = Some(c),
                ('\\', _) => word.extend(chars.next().map(|(_, c)| c)),
                (_, None) if c.is_whitespace() => {
                    end = i;
                    break;
                }
                _ => word.push(c),
            }
        }
        rest = &rest[end..];
        if word == "--" {
            return (flags, rest);
        }
        flags.push(word);
    }
}

struct DirectiveReader {
    open: bool,
    seen: Vec<&'static str>,
}

impl DirectiveReader {
    /// A directive, if the line is one and nothing else came before.
    fn read<'a>(&mut self, line: &'a str) -> Result<Option<(&'static str, &'a str)>, String> {
        if !self.open {
            return Ok(None);
        }
        let Some((key, value)) = line.strip_prefix('#').and_then(key_and_value) else {
            self.open = false;
            return Ok(None);
        };
        if self.seen.contains(&key) {
            return Err(format!("only one {key} parser directive can be used"));
        }
        self.seen.push(key);
        Ok(Some((key, value)))
    }
}

/// `key = value` with a key that is known.
fn key_and_value(text: &str) -> Option<(&'static str, &str)> {
    let (key, value) = text.trim_start().split_once('=')?;
    let (key, value) = (key.trim_end(), value.trim());
    let key = ["syntax", "escape", "check"].into_iter().find(|known| known.eq_ignore_ascii_case(key))?;
    (!value.is_empty()).then_some((key, value))
}

impl Directives {
    fn set(&mut self, key: &str, value: &str, at: Span, diagnostics: &mut Vec<Diagnostic>) {
        match key {
            "syntax" => self.syntax = Some((value.to_owned(), at)),
            "check" => self.check = Some((value.to_owned(), at)),
            _ => match value {
                "\\" => self.escape = '\\',
                "`" => self.escape = '`',
                _ => diagnostics.push(Diagnostic::error(format!("invalid escape token '{value}' does not match ` or \\")).at(at)),
            },
        }
    }

    /// Looks for a `syntax` that only BuildKit's `DetectSyntax` sees: behind a `#!` line, in `//` comments, or in JSON.
    pub(crate) fn detect_syntax(source: &Source) -> Option<(String, Span)> {
        let after_shebang = u32::from(source.line(1).starts_with("#!"));
        for prefix in ["#", "//"] {
            for number in 1 + after_shebang..=source.line_count() as u32 {
                let Some((key, value)) = source.line(number).strip_prefix(prefix).and_then(key_and_value) else { break };
                if key == "syntax" {
                    return Some((value.to_owned(), source.span_of_lines(number, number)));
                }
            }
        }
        let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(source.text()).ok()?;
        let value = object.get("syntax")?.as_str()?;
        Some((value.to_owned(), source.span_of_lines(1, 1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Lines {
        split(&Source::from_text("Dockerfile", text.to_owned()))
    }

    #[test]
    fn continuations() {
        let rows: &[(&str, &[&str])] = &[
            ("RUN a\\\nb", &["RUN ab"]),
            ("RUN a \\\n  b", &["RUN a   b"]),
            ("RUN a \\ \t\n b\n", &["RUN a  b"]),
            ("RUN a \\\r\n b\r\n", &["RUN a  b"]),
            ("RUN a \\\n# c\n  # d\n b", &["RUN a  b"]),
            ("RUN a \\\n\n b", &["RUN a  b"]),
            ("RUN a \\\\\nRUN b", &["RUN a \\\\", "RUN b"]),
            ("  RUN a # no comment", &["RUN a # no comment"]),
            ("\\\nRUN a", &["RUN a"]),
            ("# escape=`\nRUN a `\n b\nRUN c \\\n", &["RUN a  b", "RUN c \\"]),
            ("RUN a \\", &["RUN a "]),
            ("RUN a \\\n b \\\n\n", &["RUN a  b "]),
            ("\u{feff}", &["\u{feff}"]),
        ];
        for (text, want) in rows {
            let got = lines(text);
            assert_eq!(got.lines.iter().map(|l| l.original.as_str()).collect::<Vec<_>>(), *want, "{text:?}");
        }
    }

    #[test]
    fn flags() {
        let rows: &[(&str, &[&str], &str)] = &[
            ("COPY --a=b  --c d e", &["--a=b", "--c"], "d e"),
            ("COPY --a=\"b c\" d", &["--a=b c"], "d"),
            ("COPY --a='b\"c' d", &["--a=b\"c"], "d"),
            ("COPY --a=b\\ c d", &["--a=b c"], "d"),
            ("COPY -- --a b", &[], "--a b"),
            ("COPY --x -- --a b", &["--x"], "--a b"),
            ("COPY -a b", &[], "-a b"),
            ("COPY a --b", &[], "a --b"),
            ("COPY --\u{e9}=\u{e9} b", &["--\u{e9}=\u{e9}"], "b"),
            ("COPY", &[], ""),
        ];
        for (text, flags, rest) in rows {
            let line = split_line(text);
            assert_eq!(
                (line.flags.iter().map(String::as_str).collect::<Vec<_>>().as_slice(), line.rest.as_str()),
                (*flags, *rest),
                "{text}"
            );
        }
    }

    #[test]
    fn directives() {
        let rows = [
            ("# syntax=a\n# escape=`\n#check=skip=all\nFROM x", Some("a"), '`', Some("skip=all")),
            ("#  SYNTAX  =  a b  \n", Some("a b"), '\\', None),
            ("# comment\n# escape=`\n", None, '\\', None),
            ("\n# escape=`\n", None, '\\', None),
            ("# unknown=1\n# escape=`\n", None, '\\', None),
            ("#escape=`\n# comment\n# syntax=a\n", None, '`', None),
            ("FROM x\n# syntax=a\n", None, '\\', None),
        ];
        for (text, syntax, escape, check) in rows {
            let got = lines(text).directives;
            let value = |v: &Option<(String, Span)>| v.as_ref().map(|(v, _)| v.clone());
            assert_eq!(
                (value(&got.syntax).as_deref(), got.escape, value(&got.check).as_deref()),
                (syntax, escape, check),
                "{text:?}"
            );
        }
        for (text, want) in [
            ("# escape=`\n# escape=`\n", "only one escape parser directive can be used"),
            ("# escape=x\n", "invalid escape token 'x' does not match ` or \\"),
        ] {
            assert_eq!(lines(text).diagnostics[0].message, want);
        }
        let detect = |text: &str| Directives::detect_syntax(&Source::from_text("D", text.into())).map(|(v, _)| v);
        assert_eq!(detect("#!/bin/x\n# syntax=a\n").as_deref(), Some("a"));
        assert_eq!(detect("//syntax=a\n").as_deref(), Some("a"));
        assert_eq!(detect("{\"syntax\":\"a\"}").as_deref(), Some("a"));
        assert_eq!(detect("FROM a\n"), None);
    }

    #[test]
    fn heredocs() {
        let got = lines("RUN <<A cat <<-B\none\nA\n\ttwo\n\tB\nRUN [\"x\", \"<<C\"]\nCMD <<D\nONBUILD COPY <<E /\nx\nE\n");
        let shape: Vec<_> = got.lines.iter().map(|l| (l.heredocs.len(), l.span.first_line, l.span.last_line)).collect();
        assert_eq!(shape, [(2, 1, 5), (0, 6, 6), (0, 7, 7), (1, 8, 10)]);
        assert_eq!(got.lines[0].heredocs[0].content, "one\n");
        assert_eq!(got.lines[0].heredocs[1].body(), "two\n");
        let got = lines("FROM x\nRUN <<EOF\necho\n");
        assert_eq!(got.diagnostics[0].message, "unterminated heredoc");
        assert_eq!(got.diagnostics[0].span.unwrap().last_line, 3);
    }

    #[test]
    fn comments_above() {
        let got = lines("# syntax=x\n# one\n#two \nFROM a\n# three\n\nFROM b\n# four\n#\n# five\n  # six\nFROM c\nRUN d");
        let comments: Vec<_> = got.lines.iter().map(|l| l.comments.join("|")).collect();
        assert_eq!(comments, ["one|two", "three", "five|# six", ""]);
    }

    #[test]
    fn long_lines() {
        let fits = "x".repeat(MAX_LINE);
        let rows = [
            (format!("RUN {}", &fits[4..]), true),
            (format!("RUN {}\n", &fits[4..]), true),
            (format!("RUN {}", &fits[3..]), false),
            (format!("RUN {}\r\n", &fits[4..]), false),
            (format!("RUN \\\n{fits}\n"), true),
            (format!("RUN \\\n{fits}x\n"), false),
            (format!("RUN a\\\n#{fits}\nb"), false),
            (format!("#{fits}\nRUN a"), false),
            (format!("RUN <<E\n{fits}\nE"), true),
            (format!("RUN <<E\n{fits}x\nE"), false),
        ];
        for (text, good) in rows {
            let messages: Vec<String> = lines(&text).diagnostics.into_iter().map(|d| d.message).collect();
            let want = if good { vec![] } else { vec!["dockerfile line greater than max allowed size of 65535"] };
            assert_eq!(messages, want, "{}…", &text[..12]);
        }
    }
}
