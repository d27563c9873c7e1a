//! Hides how `kiln doctor` puts what was found out about this machine.

use std::fmt::Write as _;
use std::path::PathBuf;

use kiln::engine::trees;
use kiln_runner::{Entered, Finding, Ground, Host, Isolation, Mode, Refusal};
use serde_json::{Value, json};

use super::args::DoctorArgs;
use super::report::{Failure, write_stdout};
use super::session::{Session, wish};
use super::template::Template;

/// All that is told.
#[derive(Debug)]
struct Diagnosis {
    mode: Mode,
    store: PathBuf,
    ids: u64,
    findings: Vec<Finding>,
    refused: Vec<Refusal>,
}

/// `kiln doctor`.
pub(crate) fn examine(session: &Session, args: &DoctorArgs) -> Result<(), Failure> {
    let entered = &session.entered;
    let root = session.root()?;
    let ground = Ground::probe(entered, &kiln_store::host_folder(&root)?);
    let host = Host::probe(entered, &ground);
    let findings = kiln_runner::survey(&wish(&session.environment, Isolation::Default), entered, &ground, &host);
    let store = kiln_store::store_folder(&root, trees(entered, &ground).form);
    let Entered { ids, refused, .. } = entered;
    let diagnosis = Diagnosis { mode: host.mode, store, ids: ids.count_users(), findings, refused: refused.clone() };
    match args.format.as_deref() {
        None => write_stdout(&diagnosis.text()),
        Some(format) => {
            let format = if format == "json" { "{{json .}}" } else { format };
            write_stdout(&(Template::parse(format)?.render(&diagnosis.value())? + "\n"))
        }
    }
}

/// The modes in other words.
fn explained(mode: &Mode, ids: u64) -> String {
    match mode {
        Mode::Root => "as root of this machine".to_owned(),
        Mode::SubIds => format!("as root of a user namespace with {ids} ids"),
        Mode::OneId => "as root of a user namespace with one id; owners and devices are recorded".to_owned(),
        Mode::Nested => "as root of a user namespace in a container".to_owned(),
        Mode::Chroot => "in a changed root directory, which is no boundary".to_owned(),
        Mode::Unavailable { .. } => "RUN can't be carried out; builds without RUN can".to_owned(),
    }
}

impl Diagnosis {
    fn text(&self) -> String {
        let mut out = format!("kiln {}\n", env!("CARGO_PKG_VERSION"));
        // Writing to a string can't fail.
        let _ = writeln!(out, "mode   {} ({})", self.mode, explained(&self.mode, self.ids));
        let _ = writeln!(out, "store  {}\n", self.store.display());
        let width = self.findings.iter().map(|finding| finding.name.len()).max().unwrap_or(0);
        for Finding { name, good, value } in &self.findings {
            let _ = writeln!(out, "  {}  {name:width$}  {value}", if *good { "ok" } else { "--" });
        }
        if let Mode::Unavailable { reason, remedy } = &self.mode {
            let _ = writeln!(out, "\nno mode is possible: {reason}\n  to change that: {remedy}");
        }
        for Refusal { mode, reason, remedy } in &self.refused {
            let _ = writeln!(out, "\nnot `{mode}`: {reason}\n  to change that: {remedy}");
        }
        out
    }

    fn value(&self) -> Value {
        let findings: serde_json::Map<String, Value> = self
            .findings
            .iter()
            .map(|Finding { name, good, value }| ((*name).to_owned(), json!({ "Ok": good, "Value": value })))
            .collect();
        let refused: Vec<Value> = self
            .refused
            .iter()
            .map(|Refusal { mode, reason, remedy }| json!({ "Mode": mode.name(), "Reason": reason, "Remedy": remedy }))
            .collect();
        json!({
            "Version": env!("CARGO_PKG_VERSION"),
            "Mode": self.mode.name(),
            "Store": self.store,
            "Ids": self.ids,
            "Findings": findings,
            "Refused": refused,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn told() {
        let refusal = |mode, reason: &str, remedy: &str| Refusal { mode, reason: reason.to_owned(), remedy: remedy.to_owned() };
        let diagnosis = Diagnosis {
            mode: Mode::SubIds,
            store: "/home/ann/.local/share/kiln/rootless".into(),
            ids: 65_537,
            findings: vec![
                Finding { name: "kernel", good: true, value: "Linux 6.18".to_owned() },
                Finding { name: "control-groups", good: false, value: "none".to_owned() },
            ],
            refused: vec![refusal(Mode::Root, "kiln is not running as root", "run kiln as root")],
        };
        let expected = "\
mode   rootless (as root of a user namespace with 65537 ids)
store  /home/ann/.local/share/kiln/rootless

  ok  kernel          Linux 6.18
  --  control-groups  none

not `root`: kiln is not running as root
  to change that: run kiln as root
";
        assert_eq!(diagnosis.text().split_once('\n').unwrap().1, expected);
        let value = diagnosis.value();
        assert_eq!(value["Mode"], "rootless");
        assert_eq!(value["Findings"]["control-groups"], json!({ "Ok": false, "Value": "none" }));
        assert_eq!(value["Refused"][0]["Remedy"], "run kiln as root");
        let mode = Mode::Unavailable { reason: "it is refused".to_owned(), remedy: "allow it".to_owned() };
        let text = Diagnosis { mode, ..diagnosis }.text();
        assert!(text.contains("mode   none (RUN can't be carried out"), "{text}");
        assert!(text.contains("no mode is possible: it is refused\n  to change that: allow it\n"), "{text}");
    }
}
