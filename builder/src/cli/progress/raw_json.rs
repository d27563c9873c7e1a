//! Hides the JSON in which BuildKit reports progress (`client.SolveStatus`), one object a line, for programs that
//! read `--progress=rawjson`.
//!
//! What is empty is left out, as Go's `omitempty` does it; `testdata/progress` holds what BuildKit writes.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use kiln::event::{Event, Outcome, Stream, TaskId};
use kiln_frontend::{Diagnostic, Source};
use kiln_oci::digest::Digest;
use serde_json::{Map, Value, json};

use super::trace::{StatusState, TaskState, Trace};
use crate::cli::clock;

/// How the vertex is called that carries warnings of no task: readers pass over a warning whose vertex they don't know.
const NOTES: &str = "[internal] notes";

/// The writer.
#[derive(Debug)]
pub(crate) struct RawJson {
    /// When the build began.
    zero: SystemTime,
    noted: bool,
}

impl RawJson {
    /// For a build that begins at `zero`.
    pub(crate) fn new(zero: SystemTime) -> Self {
        Self { zero, noted: false }
    }

    /// Appends the object for one event that `trace` knows already.
    pub(crate) fn write(&mut self, event: &Event, trace: &Trace, out: &mut Vec<u8>) {
        let object = match event {
            Event::Started { task, .. } | Event::Finished { task, .. } => match trace.get(*task) {
                Some(state) => json!({ "vertexes": [self.vertex(state)] }),
                None => return,
            },
            Event::Log { task, stream, at, data } => {
                let stream = if *stream == Stream::Out { 1 } else { 2 };
                let vertex = digest_of(trace, *task);
                json!({ "logs": [{ "vertex": vertex, "stream": stream, "data": base64(data), "timestamp": self.time(*at) }] })
            }
            Event::Status { task, name, .. } => {
                let status = trace.get(*task).and_then(|state| state.statuses.iter().find(|status| status.name == *name));
                let Some(status) = status else { return };
                json!({ "statuses": [self.status(status, &digest_of(trace, *task))] })
            }
            Event::Warning { task: Some(task), message } => {
                json!({ "warnings": [{ "vertex": digest_of(trace, *task), "level": 1, "short": base64(message) }] })
            }
            Event::Warning { task: None, message } => {
                let vertex = self.notes(trace, out);
                json!({ "warnings": [{ "vertex": vertex, "level": 1, "short": base64(message) }] })
            }
            Event::Lints { source, lints } => {
                let definition = format!("[internal] load build definition from {}", source.name());
                let vertex = match trace.tasks().iter().find(|task| task.name == definition) {
                    Some(task) => digest(task.id, &task.name),
                    None => self.notes(trace, out),
                };
                json!({ "warnings": lints.iter().map(|found| lint(&vertex, source, found)).collect::<Vec<_>>() })
            }
            Event::Paused { .. } => return,
        };
        append(&object, out);
    }

    fn time(&self, at: Duration) -> String {
        clock::rfc3339_nanos(self.zero + at)
    }

    /// The vertex that carries warnings of no task, made with the first.
    fn notes(&mut self, trace: &Trace, out: &mut Vec<u8>) -> String {
        let vertex = digest(TaskId(0), NOTES);
        if !self.noted {
            self.noted = true;
            let at = self.time(trace.tasks().last().map_or(Duration::ZERO, |task| task.started));
            append(&json!({ "vertexes": [{ "digest": vertex, "name": NOTES, "started": at, "completed": at }] }), out);
        }
        vertex
    }

    fn vertex(&self, state: &TaskState) -> Value {
        let mut value = Map::new();
        value.insert("digest".into(), json!(digest(state.id, &state.name)));
        value.insert("name".into(), json!(state.name));
        value.insert("started".into(), json!(self.time(state.started)));
        if let Some((at, outcome)) = &state.ended {
            value.insert("completed".into(), json!(self.time(*at)));
            match outcome {
                Outcome::Done => {}
                Outcome::Cached => drop(value.insert("cached".into(), json!(true))),
                Outcome::Failed(why) => drop(value.insert("error".into(), json!(why))),
                Outcome::Canceled => drop(value.insert("error".into(), json!("context canceled"))),
            }
        }
        Value::Object(value)
    }

    fn status(&self, status: &StatusState, vertex: &str) -> Value {
        let mut value = Map::new();
        value.insert("id".into(), json!(status.name));
        value.insert("vertex".into(), json!(vertex));
        if let Some(total) = status.total.filter(|total| *total > 0) {
            value.insert("total".into(), json!(total));
        }
        value.insert("current".into(), json!(status.current));
        value.insert("timestamp".into(), json!(self.time(status.latest)));
        value.insert("started".into(), json!(self.time(status.started)));
        if status.done {
            value.insert("completed".into(), json!(self.time(status.latest)));
        }
        Value::Object(value)
    }
}

fn append(object: &Value, out: &mut Vec<u8>) {
    // A value that was built here has only string keys and finite numbers.
    if serde_json::to_writer(&mut *out, object).is_ok() {
        out.push(b'\n');
    }
}

fn base64(bytes: impl AsRef<[u8]>) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

fn lint(vertex: &str, source: &Source, lint: &Diagnostic) -> Value {
    let rule = lint.rule.map(|rule| format!("{}: ", rule.name())).unwrap_or_default();
    let place = lint.span.map(|span| format!(" (line {})", span.first_line)).unwrap_or_default();
    let mut value = json!({
        "vertex": vertex,
        "level": 1,
        "short": base64(format!("{rule}{}{place}", lint.message)),
        "sourceInfo": { "filename": source.name(), "data": base64(source.text()), "language": "Dockerfile" },
    });
    if let Some(rule) = lint.rule {
        value["detail"] = json!([base64(rule.description())]);
        value["url"] = json!(rule.url());
    }
    if let Some(span) = lint.span {
        let line = |number: u32| json!({ "start": { "line": number }, "end": { "line": number } });
        value["range"] = (span.first_line..=span.last_line).map(line).collect();
    }
    value
}

/// BuildKit names vertices by the digest of what they do; here one is made of the task's number and name, so that those of two builds
/// are told apart by whoever reads both.
fn digest(task: TaskId, name: &str) -> String {
    Digest::of(format!("{} {name}", task.0).as_bytes()).to_string()
}

fn digest_of(trace: &Trace, task: TaskId) -> String {
    digest(task, trace.get(task).map_or("", |state| state.name.as_str()))
}
