//! A private home for one test: a store, a configuration that reaches the bases through the loopback registry, and
//! kiln itself run as a person would run it.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use tempfile::TempDir;

use super::host::Person;
use super::lab;
use super::leftovers;

/// By which the tests of a run are all done in another way than the host's best: `KILN_TEST_SNAPSHOTS=copy` and
/// `KILN_TEST_ISOLATION=chroot`.
pub(crate) const WAYS: [(&str, &str); 2] = [("KILN_TEST_SNAPSHOTS", "KILN_SNAPSHOTS"), ("KILN_TEST_ISOLATION", "KILN_ISOLATION")];

/// A folder that holds everything of one test.
#[derive(Debug)]
pub(crate) struct Home {
    folder: TempDir,
    /// Who runs kiln; nobody else than who runs the tests when there is none.
    owner: Option<Person>,
}

/// How a run of kiln ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    shown: String,
}

impl Home {
    /// A home whose `docker.io` is served by the shared registry.
    pub(crate) fn new() -> Home {
        let home = Home::offline();
        home.mirror(lab::registry().host());
        home
    }

    /// A home without any configuration.
    pub(crate) fn offline() -> Home {
        let home = Home { folder: lab::temp_dir(), owner: None };
        home.write("context/.keep", "");
        home
    }

    /// The home of a person without rights: it is theirs, and they run kiln, from a place that they can reach.
    pub(crate) fn of(person: Person) -> Home {
        let mut home = Home::new();
        home.owner = Some(person);
        let (from, to) = (program(), home.path("bin/kiln"));
        std::fs::create_dir(home.path("bin")).expect("folders can be made");
        // A copy is 100 MB and more for a program with all that a debugger wants to know.
        let linked = std::fs::hard_link(&from, &to).or_else(|_| std::fs::copy(&from, &to).map(drop));
        linked.unwrap_or_else(|e| panic!("{}: {e}", from.display()));
        std::fs::create_dir(home.path("run")).expect("folders can be made");
        for name in ["", "config", "context", "run"] {
            person.give(&home.path(name));
        }
        home
    }

    /// The home of whom `KILN_TEST_MODE` names: `rootless` of a user with sub-ids, `one-id` of one without.
    pub(crate) fn in_mode(test: &str) -> Option<Home> {
        match std::env::var("KILN_TEST_MODE").as_deref() {
            Err(_) | Ok("") => Some(Home::new()),
            Ok("rootless") => Person::with_ids(test).map(Home::of),
            Ok("one-id") => Person::plain(test).map(Home::of),
            Ok(other) => panic!("KILN_TEST_MODE is {other:?}: it is one of rootless, one-id"),
        }
    }

    /// Gives the folder and all that is in it to who runs kiln, modes as they are.
    pub(crate) fn adopt(&self, folder: &Path) {
        use std::os::unix::fs::{MetadataExt, lchown};
        let Some(person) = self.owner else { return };
        let meta = std::fs::symlink_metadata(folder).expect("what is to be given is there");
        lchown(folder, Some(person.uid), Some(person.gid)).expect("root can give files away");
        if !meta.is_symlink() && meta.mode() & 0o6000 != 0 {
            std::fs::set_permissions(folder, meta.permissions()).expect("root can set modes");
        }
        if meta.is_dir() {
            for entry in std::fs::read_dir(folder).expect("a folder can be read") {
                self.adopt(&entry.expect("a folder can be read").path());
            }
        }
    }

    /// Makes `host` a mirror of `docker.io`.
    pub(crate) fn mirror(&self, host: &str) {
        self.settings(&format!("[registry.\"docker.io\"]\nmirrors = [\"{host}\"]\n"));
    }

    /// Replaces kiln's configuration file.
    pub(crate) fn settings(&self, text: &str) {
        self.write("config/kiln/kiln.toml", text);
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The folder of the store.
    pub(crate) fn store(&self) -> PathBuf {
        self.path("store")
    }

    /// Writes a file, with the folders above it.
    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("a file lies in a folder")).expect("folders can be made");
        std::fs::write(&path, content).expect("a file can be written");
        path
    }

    /// Nothing that was started here runs any more, and nothing is mounted.
    pub(crate) fn left_nothing(&self) {
        leftovers::assert_none(self.folder.path().to_str().expect("a temporary folder's name is text"));
    }

    /// A context folder below `name` that holds this Dockerfile.
    pub(crate) fn context(&self, name: &str, dockerfile: &str) -> PathBuf {
        self.write(&format!("{name}/Dockerfile"), dockerfile);
        self.path(name)
    }

    /// kiln with this home as its whole world.
    pub(crate) fn command(&self) -> Command {
        if let Some(person) = self.owner {
            let mut command = person.command(&self.path("bin/kiln"));
            command.env("XDG_DATA_HOME", self.path("data")).env("XDG_RUNTIME_DIR", self.path("run"));
            return self.world(command);
        }
        let mut command = Command::new(program());
        for (key, _) in std::env::vars_os() {
            let name = key.to_string_lossy().into_owned();
            let foreign = ["DOCKER", "BUILDKIT", "KILN_", "XDG_", "SOURCE_DATE", "SSL_", "REGISTRY_"];
            if foreign.iter().any(|p| name.starts_with(p)) || name.to_ascii_lowercase().ends_with("_proxy") {
                command.env_remove(key);
            }
        }
        self.world(command)
    }

    fn world(&self, mut command: Command) -> Command {
        command
            .env("HOME", self.folder.path())
            .env("KILN_ROOT", self.store())
            .env("XDG_CONFIG_HOME", self.path("config"))
            .env("NO_COLOR", "1")
            .env("TMPDIR", self.folder.path())
            .current_dir(self.folder.path())
            .stdin(Stdio::null());
        for (asked, name) in WAYS {
            if let Some(way) = std::env::var_os(asked) {
                command.env(name, way);
            }
        }
        command
    }

    /// Runs kiln to its end.
    pub(crate) fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Outcome {
        let mut command = self.command();
        command.args(args);
        finish(&mut command)
    }

    /// Runs kiln with a text on its standard input.
    pub(crate) fn run_with_input<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>, input: &str) -> Outcome {
        let file = self.write(".stdin", input);
        let mut command = self.command();
        command.args(args).stdin(std::fs::File::open(file).expect("the input can be opened"));
        finish(&mut command)
    }

    /// Builds `dockerfile` alone, in a context that holds nothing else, under the name `tag`.
    pub(crate) fn build(&self, tag: &str, dockerfile: &str) -> Outcome {
        let context = self.context(&format!("context-{}", tag.replace(['/', ':'], "-")), dockerfile);
        self.run([OsStr::new("build"), OsStr::new("-t"), OsStr::new(tag), context.as_os_str()])
    }
}

impl Outcome {
    /// The outcome, which must be a success.
    #[track_caller]
    pub(crate) fn ok(self) -> Outcome {
        assert!(self.status.success(), "{}", self.shown);
        self
    }

    /// The outcome, which must be a failure with this exit code, without a panic.
    #[track_caller]
    pub(crate) fn fails(self, code: i32) -> Outcome {
        assert_eq!(self.status.code(), Some(code), "{}", self.shown);
        assert!(!self.stderr.contains("panicked at"), "{}", self.shown);
        self
    }

    /// The outcome, whose standard error must contain each of these.
    #[track_caller]
    pub(crate) fn says(self, texts: &[&str]) -> Outcome {
        for text in texts {
            assert!(self.stderr.contains(text), "nothing says {text:?}\n{}", self.shown);
        }
        self
    }

    /// Standard output as JSON: one value, or one a line.
    #[track_caller]
    pub(crate) fn json(&self) -> Vec<serde_json::Value> {
        let values = serde_json::Deserializer::from_str(&self.stdout).into_iter::<serde_json::Value>();
        let values: Vec<_> = values.collect::<Result<_, _>>().unwrap_or_else(|e| panic!("no JSON: {e}\n{}", self.shown));
        match &values[..] {
            [serde_json::Value::Array(rows)] => rows.clone(),
            _ => values,
        }
    }

    /// How many steps were taken from the cache.
    pub(crate) fn cached(&self) -> usize {
        self.stderr.lines().filter(|l| l.ends_with(" CACHED")).count()
    }
}

/// The kiln under test: what `KILN_TEST_BIN` names, else what cargo built with the tests.
pub(crate) fn program() -> PathBuf {
    let named = std::env::var_os("KILN_TEST_BIN").map(PathBuf::from);
    named.or_else(|| option_env!("CARGO_BIN_EXE_kiln").map(PathBuf::from)).expect("cargo names the binary")
}

/// Runs a command to its end and keeps what it wrote.
pub(crate) fn finish(command: &mut Command) -> Outcome {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    outcome(&format!("{command:?}"), output)
}

/// The same for a child that was started before.
pub(crate) fn outcome(what: &str, output: std::process::Output) -> Outcome {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let mut shown = String::new();
    let _ = write!(shown, "{what}\n{}\n--- stdout\n{stdout}\n--- stderr\n{stderr}", output.status);
    Outcome { status: output.status, stdout, stderr, shown }
}

/// Whether two paths hold the same bytes.
pub(crate) fn same_bytes(a: &Path, b: &Path) -> bool {
    std::fs::read(a).expect("the first file") == std::fs::read(b).expect("the second file")
}
