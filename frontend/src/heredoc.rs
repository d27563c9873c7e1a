//! Hides how here-documents are found in a line and what their words mean (BuildKit `parser.go`, `heredocsFromLine`).

use crate::diagnostic::Diagnostic;
use crate::expand::{Env, Lexer};

/// A here-document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heredoc {
    /// The delimiter without quotes; also the name of the file that `COPY` makes of it.
    pub name: String,
    /// The number before `<<`, 0 if there is none.
    pub descriptor: u32,
    /// Whether variables in the body are expanded: no part of the delimiter was quoted.
    pub expand: bool,
    /// Whether leading tabs go away: `<<-`.
    pub chomp: bool,
    /// The body with its line ends, without the delimiter's line; tabs still there.
    pub content: String,
}

impl Heredoc {
    /// The body as it is meant: without leading tabs if `<<-` was written.
    #[must_use]
    pub fn body(&self) -> String {
        if !self.chomp {
            return self.content.clone();
        }
        self.content.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
    }

    /// Whether a line of the file ends this document.
    pub(crate) fn is_terminator(&self, line: &str) -> bool {
        let line = line.trim_end_matches(['\r', '\n']);
        let line = if self.chomp { line.trim_start_matches('\t') } else { line };
        line == self.name
    }

    /// The meaning of one word such as `<<-"EOF"`; `None` if it is no here-document.
    ///
    /// # Errors
    /// A [`Diagnostic`] without a place when the quotes of the delimiter don't pair.
    pub fn parse(word: &str) -> Result<Option<Heredoc>, Diagnostic> {
        let digits = word.bytes().take_while(u8::is_ascii_digit).count();
        let Some(rest) = word[digits..].strip_prefix("<<") else { return Ok(None) };
        let (chomp, rest) = match rest.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, rest),
        };
        let rest = rest.trim_start_matches([' ', '\t', '\n', '\x0c', '\r']);
        if rest.is_empty() || rest.contains('<') {
            return Ok(None);
        }
        let plain = Lexer { keep_unset: true, ..Lexer::new('\\') };
        let raw = Lexer { raw_quotes: true, ..plain };
        let failed = |error| Diagnostic::error(format!("failed to process {rest:?}: {error}"));
        let words = plain.expand(rest, &Env::new()).map_err(failed)?.words;
        let [name] = words.as_slice() else { return Ok(None) };
        let raw_words = raw.expand(rest, &Env::new()).map_err(failed)?.words;
        let quotes = |text: &str| text.chars().filter(|c| matches!(c, '\'' | '"')).count();
        let expand = raw_words.first().is_some_and(|word| quotes(word) == quotes(name));
        Ok(Some(Heredoc {
            name: name.clone(),
            descriptor: word[..digits].parse().unwrap_or(0),
            expand,
            chomp,
            content: String::new(),
        }))
    }

    /// Whether a word is a here-document, for callers whose words were checked before.
    pub(crate) fn peek(word: &str) -> Option<Heredoc> {
        Heredoc::parse(word).ok().flatten()
    }

    /// The here-documents that a whole instruction announces, in order, without their bodies.
    ///
    /// # Errors
    /// As [`Heredoc::parse`]. A line whose own quotes don't pair announces none, as in BuildKit.
    pub fn announced(line: &str) -> Result<Vec<Heredoc>, Diagnostic> {
        let lexer = Lexer { raw_quotes: true, raw_escapes: true, keep_unset: true, ..Lexer::new('\\') };
        let words = lexer.expand(line, &Env::new()).map(|e| e.words).unwrap_or_default();
        let mut found = Vec::new();
        for word in words {
            found.extend(Heredoc::parse(&word)?);
        }
        Ok(found)
    }
}

/// The first line of a body, with dots if there are more: for the name of a step.
pub(crate) fn summary(body: &str) -> String {
    let mut lines = body.trim().lines();
    let first = lines.next().unwrap_or_default();
    if lines.next().is_some() { format!("{first}...") } else { first.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        let rows = [
            ("<<EOF", Some(("EOF", 0, true, false))),
            ("<<-EOF", Some(("EOF", 0, true, true))),
            ("3<<EOF", Some(("EOF", 3, true, false))),
            ("<<'EOF'", Some(("EOF", 0, false, false))),
            ("<<\"EOF\"", Some(("EOF", 0, false, false))),
            ("<<E'O'F", Some(("EOF", 0, false, false))),
            ("<<$EOF", Some(("$EOF", 0, true, false))),
            ("<<E\\'OF", Some(("E'OF", 0, true, false))),
            ("<< EOF", Some(("EOF", 0, true, false))),
            ("<<'E F'", Some(("E F", 0, false, false))),
            ("<<", None),
            ("<<-", None),
            ("<<<EOF", None),
            ("<EOF", None),
            ("x<<EOF", None),
            ("<<EOF cat", None),
            ("<<A<<B", None),
        ];
        for (word, want) in rows {
            let got = Heredoc::parse(word).unwrap();
            let got = got.as_ref().map(|h| (h.name.as_str(), h.descriptor, h.expand, h.chomp));
            assert_eq!(got, want, "{word}");
        }
        assert!(Heredoc::parse("<<'EOF").is_err());
    }

    #[test]
    fn lines() {
        let rows: &[(&str, &[&str])] = &[
            ("RUN <<EOF", &["EOF"]),
            ("RUN cat <<A 3<<B", &["A", "B"]),
            ("COPY <<a <<-'b' /dest", &["a", "b"]),
            ("RUN cat <<EOF>x", &["EOF>x"]),
            ("RUN echo \"<<EOF\"", &[]),
            ("RUN echo 'x <<EOF", &[]),
            ("RUN echo $((1<<2))", &[]),
            ("RUN cat << EOF", &["EOF"]),
            ("RUN cat 3<< \t 'E F' > x", &["E F"]),
            ("RUN cat <<- EOF", &[]),
            ("RUN cat <<", &[]),
            ("RUN cat < <x <<< EOF", &[]),
            // BuildKit takes this for one, too.
            ("RUN x=$((1 << 2))", &["2))"]),
        ];
        for (line, want) in rows {
            let got: Vec<String> = Heredoc::announced(line).unwrap().into_iter().map(|h| h.name).collect();
            assert_eq!(got, *want, "{line}");
        }
    }

    #[test]
    fn bodies() {
        let mut doc = Heredoc::parse("<<-EOF").unwrap().unwrap();
        doc.content = "\t\ta\n b\n\tc\td\r\n".into();
        assert_eq!(doc.body(), "a\n b\nc\td\r\n");
        assert!(doc.is_terminator("\t\tEOF\r\n"));
        assert!(!doc.is_terminator(" EOF\n"));
        assert_eq!(summary("\n one\ntwo\n"), "one...");
        assert_eq!(summary("one\n"), "one");
    }
}
