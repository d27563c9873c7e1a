//! Hides how the answers of `--call` look: buildx's tables and BuildKit's JSON.

use std::fmt::Write as _;
use std::path::Path;

use base64::Engine as _;
use kiln::call::{Checked, check, outline, targets};
use kiln::error::Error;
use kiln::request::{BuildRequest, DockerfileSource};
use kiln_frontend::{Diagnostic, Outline, OutlineMount, Source, Span, Target};
use serde_json::{Map, Value, json};

use super::args::BuildArgs;
use super::build::write_json;
use super::csv::csv_fields;
use super::exit::Exit;
use super::progress::{Mode, Summary};
use super::report::{Failure, Report, write_stdout};
use super::session::Session;

/// What is asked of a Dockerfile instead of building it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Question {
    Check,
    Outline,
    Targets,
}

/// `--call`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Call {
    question: Question,
    json: bool,
    ignore_status: bool,
}

/// The version of BuildKit's answers that these are like.
const VERSION: &str = "1.0.0";

impl Call {
    /// What the flags ask; `None` for a build.
    pub(super) fn asked(args: &BuildArgs) -> Result<Option<Call>, Failure> {
        match args.check {
            Some(true) => Call::parse("check"),
            _ => args.call.as_deref().map_or(Ok(None), Call::parse),
        }
    }

    /// `METHOD[,format=json][,ignorestatus=true]` (buildx `util/buildflags/call.go`).
    fn parse(text: &str) -> Result<Option<Call>, Failure> {
        let mut method: Option<String> = None;
        let (mut json, mut ignore_status) = (false, false);
        for field in csv_fields(text) {
            match field.split_once('=') {
                Some(("format", value)) => json = value == "json",
                Some(("ignorestatus", value)) => {
                    ignore_status = match value {
                        "1" | "t" | "T" | "TRUE" | "true" | "True" => true,
                        "0" | "f" | "F" | "FALSE" | "false" | "False" => false,
                        _ => return Err(Failure::usage(format!("invalid ignorestatus print value: {value}"))),
                    };
                }
                Some(_) => return Err(Failure::usage(format!("invalid print field: {field}"))),
                None if method.is_some() => return Err(Failure::usage(format!("invalid print value: {text}"))),
                None => method = Some(field),
            }
        }
        let question = match method.as_deref() {
            None | Some("" | "build") => return Ok(None),
            Some("check" | "lint") => Question::Check,
            Some("outline") => Question::Outline,
            Some("targets") => Question::Targets,
            Some(other) => {
                return Err(Failure::usage_hint(
                    format!("unsupported request frontend.{other}"),
                    "`--call` takes build, check, outline or targets",
                ));
            }
        };
        Ok(Some(Call { question, json, ignore_status }))
    }

    /// Asks and prints the answer.
    pub(super) fn run(self, session: &Session, metadata: Option<&Path>, mode: Mode, request: &BuildRequest) -> Exit {
        let report = Report { is_build: self.question != Question::Check, ..session.report(true) };
        let (result, summary) = session.work("Building", mode, |engine| {
            Ok(match self.question {
                Question::Check => {
                    let checked = check(engine, request)?;
                    let name = shown_name(request, &checked);
                    let text = match self.json {
                        true => String::new(),
                        false => check_text(&checked, &name),
                    };
                    Answer { json: check_json(&checked), text, fired: !checked.warnings.is_empty(), error: checked.error }
                }
                Question::Outline => {
                    let (outline, source) = outline(engine, request)?;
                    Answer::of(outline_json(&outline, &source), outline_text(&outline))
                }
                Question::Targets => {
                    let (targets, source) = targets(engine, request)?;
                    Answer::of(targets_json(&targets, &source), targets_text(&targets))
                }
            })
        });
        let answer = match result {
            Ok(answer) => answer,
            Err(failure) => return report.failure(&failure, &summary),
        };
        match self.print(&answer, metadata) {
            Err(failure) => report.failure(&failure, &summary),
            Ok(()) => self.exit(answer, &report, &summary),
        }
    }

    fn print(self, answer: &Answer, metadata: Option<&Path>) -> Result<(), Failure> {
        if let Some(path) = metadata {
            let mut map = Map::new();
            map.insert("result.json".into(), answer.json.clone());
            if self.question == Question::Check {
                map.insert("result.statuscode".into(), json!(if answer.is_sound() { "0" } else { "1" }));
            }
            map.insert("result.txt".into(), json!(answer.text));
            map.insert("version".into(), json!(VERSION));
            write_json(path, &Value::Object(map))?;
        }
        match self.json {
            true => write_stdout(&format!("{:#}\n", answer.json)),
            false => write_stdout(&answer.text),
        }
    }

    fn exit(self, answer: Answer, report: &Report, summary: &Summary) -> Exit {
        let is_sound = answer.is_sound();
        match answer.error {
            Some(error) => report.failure(&Failure::Kiln(error), summary),
            None => {
                report.success(summary);
                if is_sound || self.ignore_status { Exit::Success } else { Exit::Failed }
            }
        }
    }
}

/// What there is to print.
struct Answer {
    json: Value,
    text: String,
    /// Whether a build check fired.
    fired: bool,
    /// Why nothing could be built.
    error: Option<Error>,
}

impl Answer {
    fn of(json: Value, text: String) -> Answer {
        Answer { json, text, fired: false, error: None }
    }

    fn is_sound(&self) -> bool {
        !self.fired && self.error.is_none()
    }
}

fn base64(text: &str) -> String {
    base64::engine::general_purpose::STANDARD.encode(text)
}

/// BuildKit names each line of an instruction on its own.
fn location(span: Span) -> Value {
    let line = |number: u32| json!({ "start": { "line": number }, "end": { "line": number } });
    json!({ "ranges": (span.first_line..=span.last_line).map(line).collect::<Vec<_>>() })
}

/// Adds a text unless there is none.
fn put(map: &mut Map<String, Value>, key: &str, text: Option<&str>) {
    if let Some(text) = text.filter(|text| !text.is_empty()) {
        map.insert(key.to_owned(), json!(text));
    }
}

/// Adds a list unless it's empty.
fn put_all(map: &mut Map<String, Value>, key: &str, list: Vec<Value>) {
    if !list.is_empty() {
        map.insert(key.to_owned(), Value::Array(list));
    }
}

/// Rows in columns as wide as their widest cell and `gap` more; the last column ends where its text ends.
fn table(rows: &[Vec<String>], gap: usize) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(|column| width(column) + gap).collect();
    let mut out = String::new();
    for row in rows {
        for (index, cell) in row.iter().enumerate() {
            out.push_str(cell);
            if index + 1 < row.len() {
                out.extend(std::iter::repeat_n(' ', widths[index] - cell.chars().count()));
            }
        }
        out.push('\n');
    }
    out
}

fn cells(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

fn targets_text(targets: &[Target]) -> String {
    let mut rows = vec![cells(&["TARGET", "DESCRIPTION"])];
    for target in targets {
        let name = match (target.name.as_deref(), target.is_default) {
            (None, true) => "(default)".to_owned(),
            (Some(name), true) => format!("{name} (default)"),
            (name, false) => name.unwrap_or_default().to_owned(),
        };
        rows.push(vec![name, target.description.clone().unwrap_or_default()]);
    }
    table(&rows, 1)
}

fn targets_json(targets: &[Target], source: &Source) -> Value {
    let row = |target: &Target| {
        let mut map = Map::new();
        put(&mut map, "name", target.name.as_deref());
        if target.is_default {
            map.insert("default".into(), json!(true));
        }
        put(&mut map, "description", target.description.as_deref());
        put(&mut map, "base", Some(&target.base));
        put(&mut map, "platform", target.platform.as_deref());
        map.insert("location".into(), location(target.span));
        Value::Object(map)
    };
    json!({ "targets": targets.iter().map(row).collect::<Vec<_>>(), "sources": [base64(source.text())] })
}

fn outline_text(outline: &Outline) -> String {
    let mut out = String::new();
    if outline.name.is_some() {
        let mut rows = vec![vec!["TARGET:".to_owned(), outline.name.clone().unwrap_or_default()]];
        rows.extend(outline.description.as_ref().map(|text| vec!["DESCRIPTION:".to_owned(), text.clone()]));
        out.push_str(&(table(&rows, 1) + "\n"));
    }
    if !outline.args.is_empty() {
        let mut rows = vec![cells(&["BUILD ARG", "VALUE", "DESCRIPTION"])];
        rows.extend(
            outline.args.iter().map(|arg| cells(&[&arg.name, &arg.value, arg.description.as_deref().unwrap_or_default()])),
        );
        out.push_str(&(table(&rows, 3) + "\n"));
    }
    for (title, mounts) in [("SECRET", &outline.secrets), ("SSH", &outline.ssh)] {
        if !mounts.is_empty() {
            let mut rows = vec![cells(&[title, "REQUIRED"])];
            rows.extend(mounts.iter().map(|mount| cells(&[&mount.name, if mount.required { "true" } else { "" }])));
            out.push_str(&(table(&rows, 3) + "\n"));
        }
    }
    out
}

fn outline_json(outline: &Outline, source: &Source) -> Value {
    let mut map = Map::new();
    put(&mut map, "name", outline.name.as_deref());
    put(&mut map, "description", outline.description.as_deref());
    let args = outline.args.iter().map(|arg| {
        let mut map = Map::new();
        map.insert("name".into(), json!(arg.name));
        put(&mut map, "description", arg.description.as_deref());
        put(&mut map, "value", Some(&arg.value));
        map.insert("location".into(), location(arg.span));
        Value::Object(map)
    });
    put_all(&mut map, "args", args.collect());
    let mounts = |mounts: &[OutlineMount]| {
        let row = |mount: &OutlineMount| {
            let mut map = Map::new();
            map.insert("name".into(), json!(mount.name));
            if mount.required {
                map.insert("required".into(), json!(true));
            }
            map.insert("location".into(), location(mount.span));
            Value::Object(map)
        };
        mounts.iter().map(row).collect::<Vec<_>>()
    };
    put_all(&mut map, "secrets", mounts(&outline.secrets));
    put_all(&mut map, "ssh", mounts(&outline.ssh));
    map.insert("sources".into(), json!([base64(source.text())]));
    Value::Object(map)
}

/// What buildx calls the Dockerfile here: the path to it, where it has one.
fn shown_name(request: &BuildRequest, checked: &Checked) -> String {
    match (&request.dockerfile, &checked.path) {
        (DockerfileSource::Bytes(_), _) => "stdin".to_owned(),
        (_, Some(path)) => path.display().to_string(),
        _ => checked.source.name().to_owned(),
    }
}

fn check_text(checked: &Checked, name: &str) -> String {
    let mut out = match (checked.warnings.len(), &checked.error) {
        (0, Some(_)) => return String::new(),
        (0, None) => return "Check complete, no warnings found.\n".to_owned(),
        (1, _) => "Check complete, 1 warning has been found!\n".to_owned(),
        (count, _) => format!("Check complete, {count} warnings have been found!\n"),
    };
    let source = Source::from_text(name, checked.source.text().to_owned());
    let mut warnings: Vec<&Diagnostic> = checked.warnings.iter().collect();
    warnings.sort_by_key(|warning| warning.span.map_or(0, |span| span.first_line));
    for warning in warnings {
        let rule = warning.rule.map(|rule| rule.name()).unwrap_or_default();
        let url = warning.rule.map(|rule| rule.url()).filter(|url| !url.is_empty());
        let url = url.map(|url| format!(" - {url}")).unwrap_or_default();
        // Writing to a string cannot fail.
        let _ = writeln!(out, "\nWARNING: {rule}{url}\n{}", warning.message);
        out.push_str(&warning.span.map(|span| source.excerpt(span)).unwrap_or_default());
    }
    if checked.error.is_some() {
        out.push('\n');
    }
    out
}

fn check_json(checked: &Checked) -> Value {
    let warning = |warning: &Diagnostic| {
        let mut map = Map::new();
        put(&mut map, "ruleName", warning.rule.map(|rule| rule.name()));
        put(&mut map, "description", warning.rule.map(|rule| rule.description()));
        put(&mut map, "url", warning.rule.map(|rule| rule.url()));
        put(&mut map, "detail", Some(&warning.message));
        map.insert("location".into(), warning.span.map_or_else(|| json!({}), location));
        Value::Object(map)
    };
    let warnings = match checked.warnings.as_slice() {
        [] => Value::Null,
        warnings => warnings.iter().map(warning).collect(),
    };
    let source = &checked.source;
    let mut map = Map::new();
    map.insert("warnings".into(), warnings);
    let source = json!({ "filename": source.name(), "data": base64(source.text()), "language": "Dockerfile" });
    map.insert("sources".into(), json!([source]));
    if let Some(error) = &checked.error {
        let (message, span) = build_error(error);
        let location = span.map_or_else(|| json!({}), location);
        map.insert("buildError".into(), json!({ "message": message, "location": location }));
    }
    Value::Object(map)
}

/// The words and the place of what stops a build.
fn build_error(error: &Error) -> (String, Option<Span>) {
    match error {
        Error::Dockerfile { source_text, diagnostics } => match diagnostics.first() {
            Some(first) => {
                // BuildKit reads these options before it knows of lines.
                let span = first.span.filter(|_| !first.message.starts_with("failed to parse check options"));
                (dockerfile_error(source_text, first), span)
            }
            None => (error.to_string(), None),
        },
        Error::Step { location, cause, .. } => (cause.to_string(), location.as_ref().map(|(_, span)| *span)),
        other => (other.to_string(), None),
    }
}

/// BuildKit says which line an instruction is on that it can't read, and what may have been meant.
fn dockerfile_error(source: &Source, mistake: &Diagnostic) -> String {
    // Those it finds while it still cuts the file into words.
    const OF_WORDS: [&str; 7] = [
        "no build stage",
        "file with no",
        "dockerfile contains no",
        "when using JSON array",
        "Syntax error",
        "ENV must have",
        "LABEL must have",
    ];
    let is_instruction = kiln_frontend::parse(source).diagnostics.contains(mistake)
        && !kiln_frontend::parser::split(source).diagnostics.contains(mistake)
        && !OF_WORDS.iter().any(|words| mistake.message.starts_with(words));
    let place = match mistake.span.filter(|_| is_instruction) {
        Some(span) => format!("dockerfile parse error on line {}: ", span.first_line),
        None => String::new(),
    };
    let hint = mistake.hint.as_deref().filter(|_| is_instruction);
    let meant = hint.and_then(|hint| hint.strip_prefix("did you mean `")?.strip_suffix("`?"));
    let meant = meant.map(|meant| meant.trim_start_matches("--"));
    let meant = meant.map(|meant| format!(" (did you mean {meant}?)")).unwrap_or_default();
    format!("{place}{}{meant}", mistake.message)
}

#[cfg(test)]
#[path = "call_tests.rs"]
mod tests;
