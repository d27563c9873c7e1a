//! Hides how `kiln fsck` words what a check found and what a repair did.

use std::fmt::Write as _;

use kiln::fsck::{Repair, check, repair};
use kiln_store::Error as StoreError;
use kiln_store::fsck::{Finding, Report, mend_format};
use serde_json::{Value, json};

use super::args::FsckArgs;
use super::exit::Exit;
use super::report::{Failure, write_stdout};
use super::session::Session;

/// `kiln fsck`: 0 when nothing is broken any more, 1 when something is.
pub(crate) fn run(session: &Session, args: &FsckArgs) -> Result<Exit, Failure> {
    let is_json = match args.format.as_deref() {
        None | Some("text") => false,
        Some("json") => true,
        Some(other) => return Err(Failure::usage(format!("unknown format `{other}`: it is one of text, json"))),
    };
    let mode = session.mode(args.progress, args.progress.is_none())?;
    if let Some(exit) = format(session, args.repair)? {
        return Ok(exit);
    }
    let (result, summary) = session.work("Checking", mode, |engine| {
        Ok(match args.repair {
            true => repair(engine)?,
            false => {
                let found = check(engine)?;
                Repair { left: found.clone(), found, done: Vec::new() }
            }
        })
    });
    let report = session.report(false);
    let told = result.and_then(|repair| {
        write_stdout(&if is_json { format!("{:#}\n", as_json(&repair)) } else { words(&repair) })?;
        Ok(repair.left.findings.is_empty())
    });
    Ok(match told {
        Ok(is_whole) => {
            report.success(&summary);
            if is_whole { Exit::Success } else { Exit::Failed }
        }
        Err(failure) => report.failure(&failure, &summary),
    })
}

/// Looks at the one file without which the store isn't opened.
fn format(session: &Session, is_repair: bool) -> Result<Option<Exit>, Failure> {
    let damage = match session.store() {
        Err(Failure::Kiln(kiln::error::Error::Store(error @ StoreError::UnreadableFormat { .. }))) => error,
        opened => return opened.map(|_| None),
    };
    let mut text = format!("broken: store format: {damage}\n");
    if is_repair {
        let _ = writeln!(text, "repair: {}", mend_format(damage)?);
    }
    write_stdout(&text)?;
    Ok((!is_repair).then_some(Exit::Failed))
}

fn words(repair: &Repair) -> String {
    let mut text = String::new();
    for finding in &repair.found.findings {
        let _ = writeln!(text, "broken: {}: {}{}", finding.object, finding.reason, needed_by(finding));
    }
    for done in &repair.done {
        let _ = writeln!(text, "repair: {done}");
    }
    let is_left = |finding: &&Finding| !repair.found.findings.contains(finding) || !repair.done.is_empty();
    for finding in repair.left.findings.iter().filter(is_left) {
        let _ = writeln!(text, "still broken: {}: {}{}", finding.object, finding.reason, needed_by(finding));
    }
    for (id, reason) in &repair.left.unproven {
        let _ = writeln!(text, "not proved: tree of layer {id}: {reason}");
    }
    let Report { counts, findings, .. } = &repair.left;
    let _ = writeln!(
        text,
        "checked {} images, {} layers, {} blobs and {} cache records: {}",
        counts.images,
        counts.layers,
        counts.blobs,
        counts.records,
        if findings.is_empty() { "all is whole".to_owned() } else { format!("{} broken", findings.len()) }
    );
    text
}

fn needed_by(finding: &Finding) -> String {
    match finding.needed_by.as_slice() {
        [] => String::new(),
        images => format!(" (needed by {})", images.join(", ")),
    }
}

fn as_json(repair: &Repair) -> Value {
    let findings = |report: &Report| -> Vec<Value> {
        let row = |finding: &Finding| json!({ "object": finding.object.to_string(), "reason": finding.reason, "neededBy": finding.needed_by });
        report.findings.iter().map(row).collect()
    };
    let unproven: Vec<Value> = repair.left.unproven.iter().map(|(id, reason)| json!({ "layer": id, "reason": reason })).collect();
    let counts = &repair.left.counts;
    json!({
        "found": findings(&repair.found),
        "done": repair.done,
        "left": findings(&repair.left),
        "unproven": unproven,
        "checked": {
            "images": counts.images, "layers": counts.layers, "blobs": counts.blobs, "cacheRecords": counts.records,
        },
    })
}
