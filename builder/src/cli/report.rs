//! Hides how failures and warnings look to a person: the only place that prints them.
//!
//! The order is BuildKit's, so that eyes and scripts find things where they expect them: the failed steps' last lines,
//! the lints, the lines of the Dockerfile, the hint, and `ERROR: …` as the last line.

use std::error::Error as StdError;
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;

use kiln::error::{Error, Kind, StepError};
use kiln_frontend::{Diagnostic, Source};

use super::exit::Exit;
use super::progress::{FailedTask, Summary};
use super::settings::SettingsError;
use super::template::TemplateError;

/// Why a command did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The command line asks for what can't be.
    #[error("{message}")]
    Usage { message: String, hint: Option<String> },
    /// `kiln.toml`.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// `--format`.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// What the library could not do.
    #[error(transparent)]
    Kiln(#[from] Error),
    /// The credentials.
    #[error(transparent)]
    Credentials(#[from] kiln_registry_client::credentials::CredentialError),
    /// No image of that name or id.
    #[error("no such image: {0}")]
    NoSuchImage(String),
    /// An image is not removed for good reasons.
    #[error("{message}")]
    Conflict { message: String, hint: String },
    /// A result file.
    #[error("cannot write {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    /// Standard input.
    #[error("cannot read {what}")]
    Read {
        what: &'static str,
        #[source]
        cause: io::Error,
    },
    /// Standard output, for another reason than that nobody reads it.
    #[error("cannot write to standard output")]
    Stdout(#[source] io::Error),
    /// Nobody reads standard output any more, which is no reason to complain.
    #[error("standard output is closed")]
    ClosedPipe,
    /// The folder that `COPY` takes its files from.
    #[error("unable to prepare context: path \"{}\" {}", path.display(), if cause.kind() == io::ErrorKind::NotFound { "not found" } else { "can't be used" })]
    Context {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    /// SIGINT or SIGTERM.
    #[error("interrupted by {}", if *terminated { "SIGTERM" } else { "SIGINT" })]
    Interrupted { terminated: bool },
    /// The user said no.
    #[error("not confirmed")]
    Declined,
}

impl Failure {
    /// A wrong command line.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Failure::Usage { message: message.into(), hint: None }
    }

    /// A wrong command line, and what to write instead.
    pub(crate) fn usage_hint(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Failure::Usage { message: message.into(), hint: Some(hint.into()) }
    }

    /// The exit code.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Failure::Usage { .. } | Failure::Settings(_) | Failure::Template(_) => Exit::Usage,
            Failure::Kiln(error) => error.kind().into(),
            Failure::Credentials(_) => Exit::Registry,
            Failure::Interrupted { terminated: false } => Exit::Interrupted,
            Failure::Interrupted { terminated: true } => Exit::Terminated,
            Failure::NoSuchImage(_)
            | Failure::Conflict { .. }
            | Failure::Context { .. }
            | Failure::Write { .. }
            | Failure::Read { .. }
            | Failure::Stdout(_)
            | Failure::Declined => Exit::Failed,
            Failure::ClosedPipe => Exit::Success,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Failure::Usage { hint, .. } => hint.clone(),
            Failure::Kiln(error) => error.hint(),
            Failure::Credentials(error) => error.hint(),
            Failure::Conflict { hint, .. } => Some(hint.clone()),
            Failure::NoSuchImage(_) => Some("`kiln images` lists what there is".to_owned()),
            _ => None,
        }
    }
}

impl From<kiln_store::Error> for Failure {
    fn from(error: kiln_store::Error) -> Self {
        Failure::Kiln(error.into())
    }
}

impl From<kiln_registry_client::Error> for Failure {
    fn from(error: kiln_registry_client::Error) -> Self {
        Failure::Kiln(error.into())
    }
}

/// How reports look.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Report {
    /// Print more: explanations of lints, the whole chain of causes on lines of their own.
    pub(crate) debug: bool,
    /// Colour the word `ERROR`.
    pub(crate) colour: bool,
    /// Put `failed to build: ` before the cause.
    pub(crate) is_build: bool,
}

impl Report {
    /// For standard error as it is.
    pub(crate) fn new(debug: bool, no_colour: bool, is_build: bool) -> Self {
        Self { debug, colour: !no_colour && io::stderr().is_terminal(), is_build }
    }

    /// Prints what a command that succeeded leaves to say.
    pub(crate) fn success(&self, summary: &Summary) {
        let mut out = Vec::new();
        self.write_warnings(&mut out, &summary.warnings);
        self.write_lints(&mut out, summary);
        write_stderr(&out);
    }

    /// Prints a failure and says how to exit.
    pub(crate) fn failure(&self, failure: &Failure, summary: &Summary) -> Exit {
        let mut out = Vec::new();
        self.write_warnings(&mut out, &summary.warnings);
        if !matches!(failure, Failure::ClosedPipe) {
            self.write_failed(&mut out, &summary.failed);
            self.write_lints(&mut out, summary);
            out.extend_from_slice(self.text(failure).as_bytes());
        }
        write_stderr(&out);
        failure.exit()
    }

    /// The `------` block of each failed step, as BuildKit repeats it.
    fn write_failed(&self, out: &mut Vec<u8>, failed: &[FailedTask]) {
        // Outside of a build a task without a log says nothing that the last line doesn't.
        for task in failed.iter().filter(|task| self.is_build || !task.lines.is_empty()) {
            out.extend_from_slice(format!("------\n > {}:\n", task.name).as_bytes());
            if task.dropped > 0 && !task.lines.is_empty() {
                let lines = if task.dropped == 1 { "line" } else { "lines" };
                out.extend_from_slice(format!("... {} earlier {lines} ...\n", task.dropped).as_bytes());
            }
            for line in &task.lines {
                out.extend_from_slice(line);
                out.push(b'\n');
            }
            out.extend_from_slice(b"------\n");
        }
    }

    fn write_warnings(&self, out: &mut Vec<u8>, warnings: &[String]) {
        for warning in warnings {
            out.extend_from_slice(format!("WARNING: {warning}\n").as_bytes());
        }
    }

    fn write_lints(&self, out: &mut Vec<u8>, summary: &Summary) {
        if let Some((source, lints)) = &summary.lints {
            out.extend_from_slice(self.lints(lints, source).as_bytes());
        }
    }

    /// The lints as buildx lists them.
    fn lints(&self, lints: &[Diagnostic], source: &Source) -> String {
        if lints.is_empty() {
            return String::new();
        }
        let noun = if lints.len() == 1 { "warning" } else { "warnings" };
        let expand = if self.debug { "" } else { " (use --debug to expand)" };
        let mut out = format!("\n {} {noun} found{expand}:\n", lints.len());
        for lint in lints {
            let rule = lint.rule.map(|rule| format!("{}: ", rule.name())).unwrap_or_default();
            let place = lint.span.map(|span| format!(" (line {})", span.first_line)).unwrap_or_default();
            // Writing to a string cannot fail.
            let _ = writeln!(out, " - {rule}{}{place}", lint.message);
            if !self.debug {
                continue;
            }
            if let Some(rule) = lint.rule {
                let _ = writeln!(out, "{}", rule.description());
                if !rule.url().is_empty() {
                    let _ = writeln!(out, "More info: {}", rule.url());
                }
            }
            if let Some(span) = lint.span {
                out.push_str(&source.excerpt(span));
            }
            out.push('\n');
        }
        out
    }

    /// The Dockerfile's lines, the hints and the last line.
    fn text(&self, failure: &Failure) -> String {
        let mut out = String::new();
        let mut hints: Vec<String> = Vec::new();
        let mut message = self.chain(failure);
        match failure {
            Failure::Kiln(Error::Dockerfile { source_text, diagnostics }) => {
                let mistakes: Vec<&Diagnostic> = diagnostics.iter().filter(|d| d.is_error()).collect();
                for mistake in &mistakes {
                    if let Some(span) = mistake.span {
                        out.push_str(&source_text.excerpt(span));
                    }
                    if mistakes.len() > 1 {
                        // Writing to a string cannot fail.
                        let _ = writeln!(out, "error: {}", located(source_text, mistake));
                        if let Some(hint) = &mistake.hint {
                            let _ = writeln!(out, "hint: {hint}");
                        }
                    }
                }
                if let Some(first) = mistakes.first().copied().or(diagnostics.first()) {
                    message = located(source_text, first);
                    match mistakes.len() {
                        0 | 1 => hints.extend(first.hint.clone()),
                        n => message.push_str(&format!(" (and {} more)", n - 1)),
                    }
                }
            }
            Failure::Kiln(Error::Step { location, cause, .. }) => {
                if let Some((source, span)) = location {
                    out.push_str(&source.excerpt(*span));
                }
                message = self.chain(cause.as_ref());
                if let StepError::Command { code: Some(127), .. } = cause.as_ref() {
                    hints.push("exit code 127 usually means that the shell did not find the program".to_owned());
                }
            }
            _ => {}
        }
        hints.extend(failure.hint());
        if self.debug {
            let mut next: Option<&(dyn StdError + 'static)> = failure.source();
            while let Some(cause) = next {
                let _ = writeln!(out, "  caused by: {cause}");
                next = cause.source();
            }
        }
        for hint in hints {
            let _ = writeln!(out, "hint: {hint}");
        }
        let head = if self.colour { "\x1b[1;31mERROR:\x1b[0m" } else { "ERROR:" };
        let _ = writeln!(out, "{head} {}{message}", self.prefix(failure));
        out
    }

    /// An error and its causes, joined by colons; a cause that its parent already words is not said twice.
    fn chain(&self, error: &(dyn StdError + 'static)) -> String {
        let mut text = error.to_string();
        let mut next = error.source();
        while let Some(cause) = next {
            let words = cause.to_string();
            if !text.contains(&words) {
                text.push_str(": ");
                text.push_str(&words);
            }
            next = cause.source();
        }
        if self.debug { text } else { without_numbers(text) }
    }

    fn prefix(&self, failure: &Failure) -> &'static str {
        match failure {
            Failure::Kiln(error) if self.is_build => match error.kind() {
                Kind::Interrupted => "failed to build: ",
                _ => "failed to build: failed to solve: ",
            },
            _ if self.is_build => "failed to build: ",
            _ => "",
        }
    }
}

/// `Dockerfile:3: message`, where there is a place.
fn located(source: &Source, diagnostic: &Diagnostic) -> String {
    match diagnostic.span {
        Some(span) => format!("{}:{}: {}", source.name(), span.first_line, diagnostic.message),
        None => diagnostic.message.clone(),
    }
}

/// Takes the ` (os error 2)` away that the standard library adds to the system's words.
fn without_numbers(mut text: String) -> String {
    while let Some(start) = text.find(" (os error ") {
        let Some(length) = text[start..].find(')') else { break };
        text.replace_range(start..=start + length, "");
    }
    text
}

/// Who closed standard error doesn't want to know.
pub(crate) fn write_stderr(text: &[u8]) {
    if !text.is_empty() {
        let _ = io::stderr().lock().write_all(text);
    }
}

/// A remark to whoever watches: `WARNING: …` on standard error.
pub(crate) fn warn(message: &str) {
    write_stderr(format!("WARNING: {message}\n").as_bytes());
}

/// Writes data to standard output.
pub(crate) fn write_stdout(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::ClosedPipe),
        Err(error) => Err(Failure::Stdout(error)),
    }
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
