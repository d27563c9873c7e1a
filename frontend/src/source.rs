//! Hides how a byte position in a Dockerfile becomes a line that a person can read.

use std::fmt::Write as _;

use crate::diagnostic::Diagnostic;

/// The longest physical line that is accepted, in bytes: BuildKit reads lines with Go's `bufio.Scanner`, whose
/// largest token is this long.
pub const MAX_LINE: usize = 64 * 1024 - 1;

/// A piece of a Dockerfile: a half-open byte range and the lines it touches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// First byte, counted from 0, in [`Source::text`].
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
    /// First line, counted from 1.
    pub first_line: u32,
    /// Last line, counted from 1; never smaller than `first_line`.
    pub last_line: u32,
}

impl Span {
    /// The smallest span that holds both.
    #[must_use]
    pub fn join(self, other: Span) -> Span {
        Span {
            start: self.start.min(other.start),
            end: self.end.max(other.end),
            first_line: self.first_line.min(other.first_line),
            last_line: self.last_line.max(other.last_line),
        }
    }
}

/// The text of one Dockerfile and the name to show for it.
#[derive(Debug, Clone)]
pub struct Source {
    name: String,
    text: String,
    /// Byte offset at which each line begins.
    lines: Vec<usize>,
}

impl Source {
    /// Takes the bytes of a Dockerfile. A UTF-8 byte order mark is dropped.
    ///
    /// # Errors
    /// A [`Diagnostic`] when the bytes are not UTF-8. (BuildKit hands such bytes on; kiln refuses them because an image
    /// configuration is JSON and could not hold them.)
    pub fn new(name: &str, bytes: Vec<u8>) -> Result<Source, Diagnostic> {
        let bytes = match bytes.strip_prefix(b"\xef\xbb\xbf") {
            Some(rest) => rest.to_vec(),
            None => bytes,
        };
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Source::from_text(name, text)),
            Err(error) => {
                let line = error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
                Err(Diagnostic::error(format!(
                    "{name} is not UTF-8 text: line {line} holds a byte that is not part of a character"
                )))
            }
        }
    }

    /// Takes text that is UTF-8 already, such as an `ONBUILD` trigger.
    #[must_use]
    pub fn from_text(name: &str, text: String) -> Source {
        let mut lines = vec![0];
        lines.extend(text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(i, _)| i + 1));
        if lines.len() > 1 && lines.last() == Some(&text.len()) {
            lines.pop();
        }
        Source { name: name.to_owned(), text, lines }
    }

    /// The name to show, such as `Dockerfile`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The whole text, without a byte order mark.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// How many lines there are; an empty text has one.
    #[must_use]
    pub fn line_count(&self) -> usize {
        self.lines.len()
    }

    /// The text of a line, counted from 1, without its line end; empty beyond the last.
    #[must_use]
    pub fn line(&self, number: u32) -> &str {
        let index = (number as usize).saturating_sub(1);
        let Some(&start) = self.lines.get(index) else { return "" };
        let end = self.lines.get(index + 1).copied().unwrap_or(self.text.len());
        let line = &self.text[start..end];
        let line = line.strip_suffix('\n').unwrap_or(line);
        line.strip_suffix('\r').unwrap_or(line)
    }

    /// The text of a line, counted from 1, with its line end; empty beyond the last.
    pub(crate) fn raw_line(&self, number: u32) -> &str {
        let index = (number as usize).saturating_sub(1);
        let Some(&start) = self.lines.get(index) else { return "" };
        &self.text[start..self.lines.get(index + 1).copied().unwrap_or(self.text.len())]
    }

    /// The span that covers whole lines, both counted from 1.
    #[must_use]
    pub fn span_of_lines(&self, first: u32, last: u32) -> Span {
        let last = last.max(first);
        let start = self.lines.get((first as usize).saturating_sub(1)).copied().unwrap_or(self.text.len());
        let end = self.lines.get(last as usize).map_or(self.text.len(), |next| next.saturating_sub(1));
        Span { start, end: end.max(start), first_line: first, last_line: last }
    }

    /// The lines of a span as BuildKit shows them under an error: the place, a rule, the lines with `>>>` before the
    /// guilty ones and a few lines of surroundings, a rule. Ends with a line feed.
    ///
    /// ```text
    /// Dockerfile:2
    /// --------------------
    ///    1 |     FROM busybox
    ///    2 | >>> RUM echo hi
    ///    3 |
    /// --------------------
    /// ```
    #[must_use]
    pub fn excerpt(&self, span: Span) -> String {
        // solver/errdefs/source.go: a file that ends in a line feed has one more, empty line there.
        let count = (self.line_count() + usize::from(self.text.ends_with('\n'))) as u32;
        let first = span.first_line.clamp(1, count.max(1));
        let last = span.last_line.clamp(first, count.max(first));
        let mut out = format!("{}:{}\n--------------------\n", self.name, first);
        let (mut from, mut to) = (first, last);
        let padding = if first == last { 4 } else { 2 };
        let mut used = 0;
        while used < padding {
            if from > 1 {
                from -= 1;
                used += 1;
            }
            if to < count {
                to += 1;
                used += 1;
            }
            used += 1;
        }
        for number in from..=to {
            let mark = if (first..=last).contains(&number) { ">>>" } else { "   " };
            // Writing to a String cannot fail.
            let _ = writeln!(out, " {number:>3} | {mark} {}", self.line(number));
        }
        out.push_str("--------------------\n");
        out
    }
}
