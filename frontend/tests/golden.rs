//! Folders of examples: `testdata/parser/*` (what the parser makes of a file) and `testdata/rejected/*` (the exact text
//! that a mistake is answered with). Run with `KILN_BLESS=1` to write the answers anew, then read the difference.

#![allow(clippy::unwrap_used, reason = "a panic is a failure")]

mod support;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use kiln_frontend::graph::NetworkMode;
use kiln_frontend::{Parsed, Source, parse};
use support::Fixture;

fn folders(kind: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata").join(kind);
    let mut out: Vec<PathBuf> =
        fs::read_dir(&root).unwrap_or_else(|e| panic!("{}: {e}", root.display())).map(|e| e.unwrap().path()).collect();
    out.sort();
    assert!(!out.is_empty());
    out
}

fn compare(folder: &Path, name: &str, got: &str, failures: &mut Vec<String>) {
    let path = folder.join(name);
    if std::env::var_os("KILN_BLESS").is_some() {
        fs::write(&path, got).unwrap();
    }
    let want = fs::read_to_string(&path).unwrap_or_default();
    if want != got {
        failures.push(format!("{}\n--- want\n{want}--- got\n{got}", path.display()));
    }
}

#[test]
fn parser() {
    let mut failures = Vec::new();
    for folder in folders("parser") {
        let bytes = fs::read(folder.join("Dockerfile")).unwrap();
        let source = Source::new("Dockerfile", bytes).unwrap();
        compare(&folder, "expected", &dump(&parse(&source)), &mut failures);
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn rejected() {
    let mut failures = Vec::new();
    for folder in folders("rejected") {
        let bytes = fs::read(folder.join("Dockerfile")).unwrap();
        let mut fixture = Fixture::default();
        for line in fs::read_to_string(folder.join("args")).unwrap_or_default().lines() {
            match line.split_once('=').unwrap() {
                ("network", "private") => fixture.network = NetworkMode::Private,
                ("target", value) => fixture.target = Some(value.to_owned()),
                ("build-arg", value) => {
                    let (name, value) = value.split_once('=').unwrap();
                    fixture.build_args.push((name.to_owned(), value.to_owned()));
                }
                (other, _) => panic!("{other}"),
            }
        }
        let got = match Source::new("Dockerfile", bytes) {
            Err(error) => format!("error: {error}\n"),
            Ok(source) => {
                let (source, _, result) = fixture.try_lower(source.text());
                match result {
                    Ok(_) => "nothing was wrong\n".to_owned(),
                    Err(found) => found.iter().filter(|d| d.is_error()).map(|e| e.render(&source)).collect::<Vec<_>>().join("\n"),
                }
            }
        };
        compare(&folder, "error", &got, &mut failures);
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Messages that no Dockerfile brings about, and why.
const UNREACHABLE: [(&str, &str); 1] = [("the target stage was not lowered", "the target is reachable from itself")];

/// Every message of an error in the sources is in one of the folders of `rejected/`.
#[test]
fn each_message_has_an_example() {
    let mut texts = String::new();
    for folder in folders("rejected") {
        texts.push_str(&fs::read_to_string(folder.join("error")).unwrap());
    }
    let mut seen = 0;
    let mut missing = Vec::new();
    for file in sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
        let code = fs::read_to_string(&file).unwrap();
        // Tests stand at the end of a file.
        let code = code.split("#[cfg(test)]").next().unwrap_or_default();
        for message in messages(code) {
            seen += 1;
            if !UNREACHABLE.iter().any(|(text, _)| *text == message) && !holds(&texts, &message) {
                missing.push(format!("{}: {message}", file.file_name().unwrap().display()));
            }
        }
    }
    assert!(seen > 100, "the sources are written in another way: {seen} messages");
    assert!(missing.is_empty(), "{} messages are in no folder of testdata/rejected:\n{}", missing.len(), missing.join("\n"));
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    let mut out: Vec<PathBuf> = entries.flat_map(|e| if e.is_dir() { sources(&e) } else { vec![e] }).collect();
    // An ignore file is not the Dockerfile: the tests of the command show its errors.
    out.retain(|e| !["tests.rs", "ignore.rs", "glob.rs"].contains(&e.file_name().unwrap().to_str().unwrap()));
    out.sort();
    out
}

/// The literals that become messages of errors: the first one behind each of the ways to make an error.
fn messages(code: &str) -> Vec<String> {
    const WAYS: [&str; 7] =
        ["Diagnostic::error(", "Err(format!(", "#[error(", "let message =", "return error(", "Err(bad(", "|| format!("];
    let mut out = Vec::new();
    for way in WAYS {
        for (at, _) in code.match_indices(way) {
            // Only what is written right there: a variable is another way's business.
            let rest = code[at + way.len()..].trim_start();
            // What becomes of a message is said in the lines below; a lint is no error.
            let ends = ["error(", "lint(", "warning("].map(|end| rest.find(end).unwrap_or(usize::MAX));
            if way == "let message =" && ends[0] > ends[1].min(ends[2]) {
                continue;
            }
            let rest = rest.trim_start_matches("format!(").trim_start();
            if let Some(literal) = rest.strip_prefix('"').and_then(literal) {
                out.push(literal);
            }
        }
    }
    // A name of something is no message.
    out.retain(|text| text.contains(' '));
    out
}

/// A literal up to its closing quote, as it reads.
fn literal(text: &str) -> Option<String> {
    let mut out = String::new();
    let mut chars = text.chars();
    loop {
        match chars.next()? {
            '"' => return Some(out),
            '\\' => out.push(chars.next()?),
            c => out.push(c),
        }
    }
}

/// Whether a line of `texts` is `message`, with anything in the place of `{…}`.
fn holds(texts: &str, message: &str) -> bool {
    let plain = message.replace("{{", "\u{1}").replace("}}", "\u{2}");
    let mut pieces: Vec<String> = Vec::new();
    for (index, part) in plain.split('{').enumerate() {
        let piece = if index == 0 { part } else { part.split_once('}').map_or("", |(_, piece)| piece) };
        pieces.push(piece.replace('\u{1}', "{").replace('\u{2}', "}"));
    }
    texts.lines().any(|line| {
        let mut rest = line;
        pieces.iter().all(|piece| match rest.find(piece.as_str()) {
            Some(at) => {
                rest = &rest[at + piece.len()..];
                true
            }
            None => false,
        })
    })
}

/// A line for each instruction: its lines in the file, the keyword as typed, and what it means.
fn dump(parsed: &Parsed) -> String {
    let mut out = String::new();
    let file = &parsed.dockerfile;
    let d = &file.directives;
    if d.escape != '\\' {
        let _ = writeln!(out, "escape {}", d.escape);
    }
    for (name, value) in [("syntax", &d.syntax), ("check", &d.check)] {
        if let Some((value, _)) = value {
            let _ = writeln!(out, "{name} {value}");
        }
    }
    let lines = |span: kiln_frontend::Span| match (span.first_line, span.last_line) {
        (first, last) if first == last => format!("{first}"),
        (first, last) => format!("{first}-{last}"),
    };
    for (args, span) in &file.global_args {
        let _ = writeln!(out, "{}: ARG {args:?}", lines(*span));
    }
    for stage in &file.stages {
        let _ = write!(out, "{}: {} {:?}", lines(stage.span), stage.keyword, stage.base);
        if let Some(name) = &stage.name {
            let _ = write!(out, " as {name:?}");
        }
        if let Some(platform) = &stage.platform {
            let _ = write!(out, " platform {platform:?}");
        }
        if let Some(comment) = &stage.comment {
            let _ = write!(out, " comment {comment:?}");
        }
        out.push('\n');
        for i in &stage.instructions {
            let _ = writeln!(out, "{}: {} {:?}", lines(i.span), i.keyword, i.kind);
        }
    }
    for d in &parsed.diagnostics {
        let rule = d.rule.map_or("error", |r| r.name());
        let _ = writeln!(out, "{}: ! {rule}: {}", d.span.map(lines).unwrap_or_default(), d.message);
    }
    out
}
