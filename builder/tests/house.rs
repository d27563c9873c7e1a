//! Holds the arrows of the house, as `ARCHITECTURE.md` draws them, by reading the manifests and the sources.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A crate of the workspace, where it lies, and the crates of the workspace that it may know.
const CRATES: [(&str, &str, &[&str]); 6] = [
    ("kiln-oci", "store/oci", &[]),
    ("kiln-frontend", "frontend", &["kiln-oci"]),
    ("kiln-store", "store", &["kiln-oci"]),
    ("kiln-registry-client", "registry-client", &["kiln-oci"]),
    ("kiln-runner", "runner", &[]),
    ("kiln", "builder", &["kiln-oci", "kiln-frontend", "kiln-store", "kiln-registry-client", "kiln-runner"]),
];

/// The one module that may hold `unsafe`.
const UNSAFE: &str = "runner/src/sys";

/// The ways out of a pure crate. (`std::env::consts` is no way out: the compiler writes it.)
const IMPURE: &[&str] = &[
    "std::fs",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "ToSocketAddrs",
    "std::process",
    "std::env::var",
    "std::env::args",
    "std::env::current",
    "std::thread",
    "SystemTime",
    "Instant",
];

/// What a crate's code may never say, outside its tests, with the reason.
const ABSENCES: [(&str, &[&str], &str); 3] = [
    ("frontend/src", IMPURE, "the frontend is pure: it asks for what it needs and never fetches"),
    ("store/oci/src", IMPURE, "the words that all share know no I/O, no clock and no threads"),
    ("registry-client/src", &["std::process::exit"], "a library returns its errors"),
];

#[test]
fn no_sibling_knows_a_sibling() {
    for (name, folder, allowed) in CRATES {
        let text = read(&workspace().join(folder).join("Cargo.toml"));
        let manifest: toml::Table = text.parse().unwrap_or_else(|e| panic!("{folder}/Cargo.toml: {e}"));
        assert_eq!(manifest["package"]["name"].as_str(), Some(name), "{folder}");
        for key in ["dependencies", "dev-dependencies", "build-dependencies"] {
            for dependency in manifest.get(key).and_then(|t| t.as_table()).into_iter().flat_map(|t| t.keys()) {
                let ours = CRATES.iter().any(|(other, ..)| other == dependency);
                assert!(!ours || allowed.contains(&dependency.as_str()), "{name} may not know {dependency} ({key})");
            }
        }
        // A path or a renamed package would get around the manifest's keys, so the sources are read as well.
        for source in sources(folder) {
            let code = code(&read(&source));
            for (other, ..) in CRATES.iter().filter(|(other, ..)| *other != name && !allowed.contains(other)) {
                let word = other.replace('-', "_");
                // `kiln` itself is also the name of the program, so only a path into it counts.
                let found = if word == "kiln" { code.contains("kiln::") } else { has_word(&code, &word) };
                assert!(!found, "{} speaks of {other}", source.display());
            }
        }
    }
}

#[test]
fn the_workspace_holds_these_crates_and_no_others() {
    let manifest: toml::Table = read(&workspace().join("Cargo.toml")).parse().expect("a manifest");
    let members: BTreeSet<&str> =
        manifest["workspace"]["members"].as_array().expect("a list").iter().filter_map(|m| m.as_str()).collect();
    assert_eq!(members, CRATES.iter().map(|(_, folder, _)| *folder).collect());
}

#[test]
fn unsafe_has_one_address() {
    for (name, folder, _) in CRATES {
        for source in sources(folder) {
            let shown = source.strip_prefix(workspace()).expect("sources lie in the workspace").display().to_string();
            let found = has_word(&code(&read(&source)), "unsafe");
            let there = shown.strip_prefix(UNSAFE).is_some_and(|rest| rest == ".rs" || rest.starts_with('/'));
            assert!(!found || there, "{shown} holds `unsafe`; only {UNSAFE} may");
        }
        if name != "kiln-runner" {
            for root in ["src/lib.rs", "src/main.rs"].map(|f| workspace().join(folder).join(f)) {
                if root.exists() {
                    assert!(read(&root).contains("#![forbid(unsafe_code)]"), "{} forbids no unsafe code", root.display());
                }
            }
        }
    }
}

#[test]
fn pure_crates_stay_pure() {
    for (folder, words, reason) in ABSENCES {
        for source in files_below(&workspace().join(folder)).into_iter().filter(|s| !holds_only_tests(s)) {
            let code = code(&read(&source));
            for word in words {
                assert!(!code.contains(word), "{} says `{word}`, but {reason}", source.display());
            }
        }
    }
}

/// Names below the root of a store are spelled by `layout.rs` alone, so no other file of the store joins a literal
/// that begins with one of them.
#[test]
fn one_file_spells_the_names_of_the_store() {
    let layout = workspace().join("store/src/layout.rs");
    let names: BTreeSet<String> = strings(&read(&layout))
        .into_iter()
        .map(|s| s.split(['/', '-']).next().unwrap_or_default().to_owned())
        .filter(|s| ["blobs", "layers", "cache", "images", "ingest", "mounts", "locks", "trash"].contains(&&**s))
        .collect();
    assert!(!names.is_empty(), "layout.rs spells no names: this test reads the wrong file");
    for folder in ["store/src", "builder/src"] {
        for source in files_below(&workspace().join(folder)).into_iter().filter(|s| *s != layout && !holds_only_tests(s)) {
            let text = without_tests(&read(&source));
            for name in &names {
                for spelled in [format!(".join(\"{name}\")"), format!(".join(\"{name}/")] {
                    // An OCI layout has a folder `blobs` of its own, which exports and local caches write.
                    let layouts = ["/export", "/remote_cache/"].iter().any(|part| source.to_string_lossy().contains(part));
                    assert!(layouts || !text.contains(&spelled), "{} spells {spelled}", source.display());
                }
            }
        }
    }
}

/// Only the program sees the command line; the library never does.
#[test]
fn the_library_does_not_see_the_command_line() {
    for source in files_below(&workspace().join("builder/src")) {
        let shown = source.strip_prefix(workspace()).expect("in the workspace").display().to_string();
        if holds_only_tests(&source) || shown == "builder/src/main.rs" || shown.starts_with("builder/src/cli") {
            continue;
        }
        let code = code(&read(&source));
        for word in ["clap", "println", "eprintln"] {
            assert!(!has_word(&code, word), "{shown} says `{word}`");
        }
        assert!(!code.contains("crate::cli") && !code.contains("std::env::var"), "{shown} reaches for the command line");
    }
}

#[test]
fn the_reader_of_sources_reads_them_right() {
    let text =
        "let a = \"unsafe\"; // unsafe\n/* unsafe /* nested */ unsafe */ let c = '\"'; let r = r#\"un\"safe\"#; 'x: loop {}\n";
    assert!(!has_word(&code(text), "unsafe"), "{}", code(text));
    assert!(has_word(&code("fn f() { unsafe { g() } }"), "unsafe"));
    assert!(!has_word(&code("#![forbid(unsafe_code)]"), "unsafe"));
    assert!(!has_word(&code("fn a() {}\n#[cfg(test)]\nmod tests {\n unsafe {}\n}\n"), "unsafe"));
    assert_eq!(strings("f(\"a\\\"b\", r\"c\")"), ["a\\\"b", "c"]);
}

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the workspace")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// All sources of a crate, its tests, benches and build script among them.
fn sources(folder: &str) -> Vec<PathBuf> {
    let root = workspace().join(folder);
    let parts = ["src", "tests", "benches", "examples"].map(|part| root.join(part));
    let mut found: Vec<PathBuf> = parts.iter().filter(|p| p.is_dir()).flat_map(|p| files_below(p)).collect();
    found.extend(Some(root.join("build.rs")).filter(|p| p.exists()));
    assert!(!found.is_empty(), "{folder} has no sources");
    // This program names what it looks for.
    found.retain(|p| !p.ends_with("builder/tests/house.rs"));
    found
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
        let path = entry.expect("a readable folder").path();
        if path.is_dir() {
            found.extend(files_below(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn holds_only_tests(source: &Path) -> bool {
    let name = source.to_string_lossy();
    name.contains("/tests/") || name.ends_with("/tests.rs") || name.ends_with("_tests.rs")
}

/// The text up to its unit tests, which may do what the code may not.
fn without_tests(text: &str) -> String {
    match text.find("#[cfg(test)]\nmod tests") {
        Some(at) => text[..at].to_owned(),
        None => text.to_owned(),
    }
}

fn has_word(code: &str, word: &str) -> bool {
    let part_of_word = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word)
        .any(|(at, _)| !code[..at].ends_with(part_of_word) && !code[at + word.len()..].starts_with(part_of_word))
}

/// The code without comments, literals and unit tests.
fn code(text: &str) -> String {
    scan(&without_tests(text)).0
}

/// The string literals.
fn strings(text: &str) -> Vec<String> {
    scan(&without_tests(text)).1
}

fn scan(text: &str) -> (String, Vec<String>) {
    let bytes = text.as_bytes();
    let (mut code, mut strings) = (String::new(), Vec::new());
    let mut at = 0;
    while at < bytes.len() {
        let rest = &text[at..];
        if rest.starts_with("//") {
            at += rest.find('\n').unwrap_or(rest.len());
        } else if rest.starts_with("/*") {
            let mut depth = 0;
            loop {
                let rest = &text[at..];
                if rest.starts_with("/*") {
                    depth += 1;
                    at += 2;
                } else if rest.starts_with("*/") {
                    depth -= 1;
                    at += 2;
                } else {
                    at += rest.chars().next().map_or(1, char::len_utf8);
                }
                if depth == 0 || at >= bytes.len() {
                    break;
                }
            }
        } else if let Some(hashes) = raw_string(rest).filter(|_| !code.ends_with(|c: char| c.is_alphanumeric())) {
            let open = rest.find('"').expect("a raw string opens") + 1;
            let end = format!("\"{}", "#".repeat(hashes));
            let length = rest[open..].find(&end).unwrap_or(rest.len() - open);
            strings.push(rest[open..open + length].to_owned());
            at += open + length + end.len();
        } else if rest.starts_with('"') {
            let mut end = 1;
            while end < rest.len() && rest.as_bytes()[end] != b'"' {
                end += if rest.as_bytes()[end] == b'\\' { 2 } else { 1 };
            }
            strings.push(rest[1..end.min(rest.len())].to_owned());
            at += end + 1;
        } else if let Some(length) = char_literal(rest) {
            at += length;
        } else {
            let c = rest.chars().next().expect("the text goes on");
            code.push(c);
            at += c.len_utf8();
        }
    }
    (code, strings)
}

/// How many `#` a raw string at the start of the text has.
fn raw_string(text: &str) -> Option<usize> {
    let rest = text.strip_prefix("br").or_else(|| text.strip_prefix('r'))?;
    let hashes = rest.len() - rest.trim_start_matches('#').len();
    rest[hashes..].starts_with('"').then_some(hashes)
}

/// The length of a character literal at the start of the text; a lifetime is none.
fn char_literal(text: &str) -> Option<usize> {
    let rest = text.strip_prefix('\'')?;
    if let Some(escaped) = rest.strip_prefix('\\') {
        let skip = escaped.chars().next()?.len_utf8();
        return escaped[skip..].find('\'').map(|end| 2 + skip + end + 1);
    }
    let c = rest.chars().next()?;
    rest[c.len_utf8()..].starts_with('\'').then(|| 1 + c.len_utf8() + 1)
}
