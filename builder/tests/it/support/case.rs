//! One folder of `testdata/conformance`: a Dockerfile, its context, and `case.toml` that says what git can't hold.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use kiln_oci::digest::Digest;
use serde::Deserialize;
use tempfile::TempDir;

use super::lab::{self, FolderServer};

/// What `case.toml` says.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Words {
    /// What the case is about.
    #[allow(dead_code, reason = "for the reader of the file")]
    about: String,
    /// A shell script that finishes the context, run in it.
    setup: Option<String>,
    #[serde(default)]
    build_args: Vec<String>,
    #[serde(default)]
    labels: Vec<String>,
    target: Option<String>,
    /// The Dockerfile, when it has another name or place.
    file: Option<String>,
    /// More arguments that `docker buildx build` and `kiln build` both take. `{context}` is the context's folder.
    #[serde(default)]
    args: Vec<String>,
    /// The build must fail, and what kiln prints then must hold this text.
    fails: Option<String>,
    /// Why there is no recorded expectation: the case is held against the BuildKit of this machine in the test itself.
    live: Option<String>,
    /// Why the expectation was written or changed by a person, and what it stands on: a deliberate difference, or a syntax that
    /// no peer at hand knows.
    #[serde(default)]
    by_hand: Option<String>,
    /// Whether the folder `.served` is put on a file server, whose address is the build argument `SERVER`.
    #[serde(default)]
    serve: bool,
    /// Why a user namespace of 65536 ids can't give the expected image.
    not_rootless: Option<String>,
    /// Paths whose contents may differ, with the reason as the value.
    #[serde(default)]
    ignore: std::collections::BTreeMap<String, String>,
}

/// A case made ready: its context lies in a folder of its own.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) context: PathBuf,
    /// Arguments that `docker build` and `kiln build` both take, without the context.
    pub(crate) args: Vec<String>,
    pub(crate) ignore: Vec<String>,
    /// Why a user namespace of 65536 ids can't give the expected image.
    pub(crate) not_rootless: Option<String>,
    /// What a build that must fail says.
    pub(crate) fails: Option<String>,
    /// Whether a peer of this machine builds it each time, instead of a recorded expectation.
    pub(crate) live: bool,
    /// Why the expectation was written by a person.
    pub(crate) by_hand: Option<String>,
    /// Texts that differ from run to run, with what is written for them.
    pub(crate) replace: Vec<(String, String)>,
    /// Where the two builds may write.
    pub(crate) folder: TempDir,
    _server: Option<FolderServer>,
}

/// The file that holds what a case's image must be.
const EXPECTED: &str = "expected.txt";

impl Case {
    /// Where the expectation lies in the source tree.
    pub(crate) fn expected(&self) -> PathBuf {
        lab::workspace().join("testdata/conformance").join(&self.name).join(EXPECTED)
    }
}

/// The names of all cases, sorted.
pub(crate) fn names() -> Vec<String> {
    let folder = lab::workspace().join("testdata/conformance");
    let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut names: Vec<String> = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Copies the case's folder with modes and times that don't depend on who checked it out, and runs its set-up.
pub(crate) fn prepare(name: &str) -> Result<Case, String> {
    let source = lab::workspace().join("testdata/conformance").join(name);
    let text = fs::read_to_string(source.join("case.toml")).map_err(|e| format!("case.toml: {e}"))?;
    let words: Words = toml::from_str(&text).map_err(|e| format!("case.toml: {e}"))?;
    let folder = lab::temp_dir();
    let context = folder.path().join("context");
    copy(&source, &context).map_err(|e| format!("copying the context: {e}"))?;
    fs::remove_file(context.join("case.toml")).map_err(|e| e.to_string())?;
    match fs::remove_file(context.join(EXPECTED)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.to_string()),
        _ => {}
    }
    if let Some(script) = &words.setup {
        let output = Command::new("sh")
            .args(["-euc", &format!("umask 022\n{script}")])
            .current_dir(&context)
            .output()
            .map_err(|e| e.to_string())?;
        if !output.status.success() {
            return Err(format!("the set-up failed: {}", String::from_utf8_lossy(&output.stderr)));
        }
    }
    let mut args = Vec::new();
    let mut server = None;
    let mut replace = vec![(context.display().to_string(), "CONTEXT".to_owned())];
    if words.serve {
        let served = folder.path().join("served");
        fs::rename(context.join(".served"), &served).map_err(|e| e.to_string())?;
        let started = FolderServer::files(&served);
        args.extend(["--build-arg".to_owned(), format!("SERVER={}", started.host())]);
        replace.push((started.host().to_owned(), "SERVER".to_owned()));
        server = Some(started);
    }
    for argument in words.build_args {
        args.extend(["--build-arg".to_owned(), argument]);
    }
    for label in words.labels {
        args.extend(["--label".to_owned(), label]);
    }
    if let Some(target) = words.target {
        args.extend(["--target".to_owned(), target]);
    }
    if let Some(file) = words.file {
        args.extend(["-f".to_owned(), context.join(file).display().to_string()]);
    }
    args.extend(words.args.iter().map(|a| a.replace("{context}", &context.display().to_string())));
    Ok(Case {
        name: name.to_owned(),
        context,
        args,
        ignore: words.ignore.into_keys().collect(),
        fails: words.fails,
        live: words.live.is_some(),
        not_rootless: words.not_rootless,
        by_hand: words.by_hand,
        replace,
        folder,
        _server: server,
    })
}

/// A copy with modes 0755 and 0644 and old times. BuildKit takes a file of the same size and time for the same file,
/// so each content gets a time of its own.
pub(crate) fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir(to)?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o755))?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
            continue;
        }
        copy_file(&entry.path(), &target)?;
    }
    Ok(())
}

/// The same of one file.
pub(crate) fn copy_file(from: &Path, to: &Path) -> std::io::Result<()> {
    let content = fs::read(from)?;
    fs::write(to, &content)?;
    let executable = fs::metadata(from)?.permissions().mode() & 0o100 != 0;
    fs::set_permissions(to, fs::Permissions::from_mode(if executable { 0o755 } else { 0o644 }))?;
    let digest = Digest::of(&content);
    let [a, b, c, ..] = digest.as_bytes();
    let seconds = 1_500_000_000 + u64::from(u32::from_be_bytes([0, *a, *b, *c]));
    fs::File::options().write(true).open(to)?.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}
