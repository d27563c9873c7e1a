//! Hides the JSON in which BuildKit reports progress (`client.SolveStatus`), one object a line, for programs that
//! read `--progress=rawjson`.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use kiln::event::{Event, Outcome, TaskId};
use kiln_frontend::{Diagnostic, Source};
use kiln_oci::digest::Digest;
use serde_json::{Map, Value, json};

use super::trace::{TaskState, Trace};
use crate::cli::clock;

/// Appends the object for one event that `trace` knows already; `zero` is when the build began.
pub(crate) fn write(event: &Event, trace: &Trace, zero: SystemTime, out: &mut Vec<u8>) {
    let time = |at: Duration| clock::rfc3339_nanos(zero + at);
    let object = match event {
        Event::Started { task, .. } | Event::Finished { task, .. } => match trace.get(*task) {
            Some(state) => json!({ "vertexes": [vertex(state, &time)] }),
            None => return,
        },
        Event::Log { task, at, data } => {
            let data = base64::engine::general_purpose::STANDARD.encode(data);
            json!({ "logs": [{ "vertex": digest(*task), "stream": 1, "data": data, "timestamp": time(*at) }] })
        }
        Event::Status { task, name, .. } => {
            let status = trace.get(*task).and_then(|state| state.statuses.iter().find(|status| status.name == *name));
            let Some(status) = status else { return };
            let mut value = Map::new();
            value.insert("id".into(), json!(status.name));
            value.insert("vertex".into(), json!(digest(*task)));
            value.insert("total".into(), json!(status.total.unwrap_or(0)));
            value.insert("current".into(), json!(status.current));
            value.insert("timestamp".into(), json!(time(status.latest)));
            value.insert("started".into(), json!(time(status.started)));
            if status.done {
                value.insert("completed".into(), json!(time(status.latest)));
            }
            json!({ "statuses": [value] })
        }
        Event::Warning { task, message } => {
            let short = base64(message);
            json!({ "warnings": [{ "vertex": task.map(digest).unwrap_or_default(), "level": 1, "short": short }] })
        }
        // Words for a person; a program hears of what is done here by what follows.
        Event::Paused { shown, .. } => {
            let _ = shown.send(());
            return;
        }
        Event::Lints { source, lints } => json!({ "warnings": lints.iter().map(|l| lint(source, l)).collect::<Vec<_>>() }),
    };
    // A value that was built here has only string keys and finite numbers.
    if serde_json::to_writer(&mut *out, &object).is_ok() {
        out.push(b'\n');
    }
}

fn base64(text: &str) -> String {
    base64::engine::general_purpose::STANDARD.encode(text)
}

fn lint(source: &Source, lint: &Diagnostic) -> Value {
    let rule = lint.rule.map(|rule| format!("{}: ", rule.name())).unwrap_or_default();
    let place = lint.span.map(|span| format!(" (line {})", span.first_line)).unwrap_or_default();
    let line = |number: u32| json!({ "start": { "line": number }, "end": { "line": number } });
    json!({
        "level": 1,
        "short": base64(&format!("{rule}{}{place}", lint.message)),
        "detail": lint.rule.map(|rule| base64(rule.description())).into_iter().collect::<Vec<_>>(),
        "url": lint.rule.map(|rule| rule.url()).unwrap_or_default(),
        "sourceInfo": { "filename": source.name(), "data": base64(source.text()), "language": "Dockerfile" },
        "range": lint.span.map(|span| (span.first_line..=span.last_line).map(line).collect::<Vec<_>>()),
    })
}

/// BuildKit names vertices by digest; here one is made of the number.
fn digest(task: TaskId) -> String {
    Digest::of(task.0.to_string().as_bytes()).to_string()
}

fn vertex(state: &TaskState, time: &dyn Fn(Duration) -> String) -> Value {
    let mut value = Map::new();
    value.insert("digest".into(), json!(digest(state.id)));
    value.insert("name".into(), json!(state.name));
    value.insert("started".into(), json!(time(state.started)));
    if let Some((at, outcome)) = &state.ended {
        value.insert("completed".into(), json!(time(*at)));
        match outcome {
            Outcome::Done => {}
            Outcome::Cached => drop(value.insert("cached".into(), json!(true))),
            Outcome::Failed(why) => drop(value.insert("error".into(), json!(why))),
            Outcome::Canceled => drop(value.insert("error".into(), json!("context canceled"))),
        }
    }
    Value::Object(value)
}
