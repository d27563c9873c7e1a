//! Random sequences of edits to a Dockerfile and its context: what the cache gives is what a clean build gives, digest for digest.
//!
//! A sequence follows from its number. After each edit the project is built in a store that saw all before it, in one that saw
//! nothing, and now and then in one that knows only a shared cache from some time ago. The first is also pruned in between.
//! Failures must be equal, too. `KILN_TEST_EDITS` is how many sequences (`make torture`: 100), or `12..13` for the twelfth alone;
//! with `KILN_KEEP` set to a folder, the images that differ stay there.

mod files;
mod project;
mod random;

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kiln_oci::digest::Digest;

use crate::support::alike;
use crate::support::archive::Image;
use crate::support::home::{Home, Outcome, finish};
use crate::support::lab::FolderServer;

use files::Files;
use project::Project;
use random::Random;

const ROUNDS: usize = 8;

/// What a memo of contexts needs to believe in a file: a clock's grain, and a bit.
const SETTLED: Duration = Duration::from_millis(2100);

fn sequences() -> Range<u64> {
    let Ok(text) = std::env::var("KILN_TEST_EDITS") else { return 0..5 };
    let number = |text: &str| text.parse().unwrap_or_else(|_| panic!("KILN_TEST_EDITS={text}: a number or a range of them"));
    match text.split_once("..") {
        None => 0..number(&text),
        Some((first, end)) => number(first)..number(end),
    }
}

/// How often which thing happened.
#[derive(Debug, Default)]
struct Tally {
    builds: AtomicUsize,
    failed: AtomicUsize,
    steps: AtomicUsize,
    cached: AtomicUsize,
    imported: AtomicUsize,
}

#[test]
fn cached_builds_give_what_clean_builds_give() {
    let (range, tally, failures) = (sequences(), Tally::default(), Mutex::new(Vec::new()));
    let next = std::sync::atomic::AtomicU64::new(range.start);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= range.end {
                        return;
                    }
                    let Some(home) = Home::in_mode("edits::cached_builds_give_what_clean_builds_give") else { return };
                    if let Err(error) = Sequence::new(seed, &home, &tally).run() {
                        failures.lock().unwrap().push(format!("sequence {seed}, {error}"));
                    }
                }
            });
        }
    });
    println!("{tally:?}");
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{} sequences:\n{}", failures.len(), failures.join("\n\n"));
    // An oracle that never sees a hit, or only failures, says nothing.
    let [builds, failed, steps, cached, imported] =
        [&tally.builds, &tally.failed, &tally.steps, &tally.cached, &tally.imported].map(|n| n.load(Ordering::Relaxed));
    assert!(builds == 0 || (failed * 3 < builds && cached * 3 > steps && imported > 0), "{tally:?}");
}

struct Sequence<'a> {
    seed: u64,
    home: &'a Home,
    server: FolderServer,
    random: Random,
    /// All that was built, the last at the end.
    projects: Vec<Project>,
    edits: Vec<String>,
    tally: &'a Tally,
}

/// What a build gave: the digest of the image, or how it failed.
type Answer = Result<String, Option<i32>>;

impl<'a> Sequence<'a> {
    fn new(seed: u64, home: &'a Home, tally: &'a Tally) -> Self {
        for folder in ["context", "named", "served"] {
            let path = home.path(folder);
            let _ = fs::remove_dir_all(&path);
            fs::create_dir(&path).unwrap();
        }
        let server = FolderServer::files(&home.path("served"));
        let mut random = Random::new(seed);
        let project = Project::new(&mut random);
        let nothing = Files::default();
        for (folder, files) in [("context", &project.context), ("named", &project.named), ("served", &project.served)] {
            files.write(&nothing, &home.path(folder), &mut random);
        }
        Sequence { seed, home, server, random, projects: vec![project], edits: vec!["the beginning".into()], tally }
    }

    fn run(mut self) -> Result<(), String> {
        for round in 0..ROUNDS {
            if round > 0 {
                self.edit();
            }
            self.between();
            self.compare(round).map_err(|why| {
                let text = self.text();
                let flags = self.last().flags("named");
                format!("round {round}: {why}\nflags {flags:?}\n{text}\nedits:\n{}", self.edits.join("\n"))
            })?;
        }
        Ok(())
    }

    fn last(&self) -> &Project {
        self.projects.last().expect("there is one from the beginning")
    }

    fn text(&self) -> String {
        self.last().text(self.server.host())
    }

    /// One to three edits, or back to something earlier.
    fn edit(&mut self) {
        let old = self.last().clone();
        let mut new = old.clone();
        let edits = if self.random.percent(15) {
            let at = self.random.below(self.projects.len());
            new = self.projects[at].clone();
            vec![format!("back to round {at}")]
        } else {
            (0..1 + self.random.below(3)).map(|_| new.edit(&mut self.random)).collect()
        };
        self.edits.push(edits.join("; "));
        new.context.write(&old.context, &self.home.path("context"), &mut self.random);
        new.named.write(&old.named, &self.home.path("named"), &mut self.random);
        new.served.write(&old.served, &self.home.path("served"), &mut self.random);
        self.projects.push(new);
    }

    /// What happens to a store and to files between two builds.
    fn between(&mut self) {
        for folder in ["context", "named"] {
            self.home.adopt(&self.home.path(folder));
        }
        if self.random.percent(25) {
            std::thread::sleep(SETTLED);
        }
        if self.random.percent(15) {
            let how: &[&str] = match self.random.below(3) {
                0 => &["prune", "-f", "--all"],
                1 => &["prune", "-f", "--max-used-space=1MB"],
                _ => &["prune", "-f", "--filter=until=1s"],
            };
            self.edits.push(how.join(" "));
            self.home.run(how).ok();
        }
    }

    fn compare(&mut self, round: usize) -> Result<(), String> {
        let [warm, clean, shared] = ["warm", "clean", "shared"].map(|name| self.home.path(&format!("{name}-{round}.tar")));
        let cache = self.home.path("cache");
        let to = format!("--cache-to=type=local,mode=max,dest={}", cache.display());
        let from = format!("--cache-from=type=local,src={}", cache.display());
        let exports = self.random.percent(30);
        let more = [to.as_str()];
        let outcome = self.build("store", &warm, &more[..usize::from(exports)]);
        let count = |counter: &AtomicUsize, n: usize| counter.fetch_add(n, Ordering::Relaxed);
        count(&self.tally.builds, 1);
        count(&self.tally.failed, usize::from(!outcome.status.success()));
        count(&self.tally.cached, outcome.cached());
        count(&self.tally.steps, crate::cache::cached_steps(&outcome).len());
        let (cached, again) = (answer(&outcome, &warm)?, self.build("fresh", &clean, &[]));
        self.agree(&cached, &outcome, &warm, &again, &clean)?;
        if cache.join("index.json").exists() && self.random.percent(40) {
            let imported = self.build("fresh", &shared, &[&from]);
            count(&self.tally.imported, imported.cached());
            self.agree(&cached, &outcome, &warm, &imported, &shared)?;
        }
        for path in [warm, clean, shared] {
            let _ = fs::remove_file(path);
        }
        Ok(())
    }

    /// Nothing when the second build gave the same as the first.
    fn agree(&self, first: &Answer, one: &Outcome, a: &Path, two: &Outcome, b: &Path) -> Result<(), String> {
        let second = answer(two, b)?;
        if *first == second {
            return Ok(());
        }
        let mut why =
            format!("{first:?} from the cache, {second:?} without\n--- with\n{}\n--- without\n{}", one.stderr, two.stderr);
        if let (Ok(x), Ok(y)) = (Image::read(a), Image::read(b)) {
            why.push_str(&alike::difference(&x, &y));
        }
        if let Some(folder) = std::env::var_os("KILN_KEEP") {
            let folder = PathBuf::from(folder).join(format!("edits-{}", self.seed));
            fs::create_dir_all(&folder).unwrap();
            for path in [a, b].into_iter().filter(|path| path.exists()) {
                fs::copy(path, folder.join(path.file_name().unwrap())).unwrap();
            }
        }
        Err(why)
    }

    /// Builds the last project; the store `fresh` is one of that build alone.
    fn build(&self, store: &str, output: &Path, more: &[&str]) -> Outcome {
        let file = self.home.write("Dockerfile", self.text());
        let root = self.home.path(store);
        let mut command = self.home.command();
        command.env("SOURCE_DATE_EPOCH", "1").env("KILN_ROOT", &root);
        let output = format!("type=oci,dest={},rewrite-timestamp=true,compression=uncompressed", output.display());
        command.args(["build", "--progress=plain", "-o", &output]);
        command.args(self.last().flags(&self.home.path("named").display().to_string())).args(more);
        let outcome = finish(command.arg("-f").arg(file).arg(self.home.path("context")));
        if store == "fresh" {
            fs::remove_dir_all(&root).unwrap();
        }
        outcome
    }
}

/// All bytes of the archive count. A failure is one of the Dockerfile's, never kiln's own.
fn answer(outcome: &Outcome, archive: &Path) -> Result<Answer, String> {
    match outcome.status.code() {
        Some(0) => Ok(Ok(Digest::of(&fs::read(archive).unwrap()).to_string())),
        code @ Some(1..=4) if !outcome.stderr.contains("panicked") => Ok(Err(code)),
        _ => Err(format!("{}: {}", outcome.status, outcome.stderr)),
    }
}
