//! The power fails (F03, F04): at any moment of any command that writes, just after each of the calls by which things get their names
//! and get to the disk, and a while after a command said that it had succeeded. What it said holds, images of before are whole, and the
//! next build is right, with no command in between that repairs anything.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

use crate::support::archive::Image;
use crate::support::compare::{Rules, differences, merge, tree_differences};
use crate::support::disk::Disk;
use crate::support::home::{Home, Outcome, finish};
use crate::support::skip;

/// A kind of file system, and the ways in which it is mounted, in turn. Where the journal is committed each second, and nothing makes the
/// data of a renamed file go before its name, names outlive bytes as often as can be; with `data=writeback` even lengths do.
const EXT4: (&str, &[&str]) = ("ext4", &["-", "commit=1,noauto_da_alloc", "commit=1,noauto_da_alloc,data=writeback"]);
const XFS: (&str, &[&str]) = ("xfs", &["-"]);

/// By which names are given and data is made to reach the disk.
const CALLS: &str = "fsync,fdatasync,syncfs,rename,renameat,renameat2";

/// Images that are told apart by what is in them.
const VARIANTS: usize = 3;
const NAMES: [&str; 3] = ["red", "green", "blue"];
/// Rounds on one disk.
const ROUNDS: u32 = 10;

#[test]
fn a_power_cut_on_ext4_loses_nothing_that_was_said() {
    cuts("a_power_cut_on_ext4_loses_nothing_that_was_said", EXT4, wanted());
}

#[test]
fn a_power_cut_on_xfs_loses_nothing_that_was_said() {
    cuts("a_power_cut_on_xfs_loses_nothing_that_was_said", XFS, wanted() / 4);
}

/// How many times: 24, or what `KILN_TEST_CUTS` says (`make torture`: 500).
fn wanted() -> u32 {
    std::env::var("KILN_TEST_CUTS").ok().and_then(|text| text.parse().ok()).unwrap_or(24)
}

struct Random(u64);

impl Random {
    fn new() -> Random {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64;
        let seed = std::env::var("KILN_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(now);
        println!("KILN_TEST_SEED={seed}");
        Random(seed | 1)
    }

    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }

    fn is(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// What a command does to the store.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Act {
    /// Builds a variant under a name; `cold`: every step anew.
    Build {
        name: usize,
        variant: usize,
        cold: bool,
    },
    /// Builds without a name.
    Nameless {
        variant: usize,
    },
    /// Two builds at once.
    Both {
        name: usize,
        variant: usize,
    },
    Pull,
    Load {
        name: usize,
    },
    Tag {
        from: usize,
        to: usize,
    },
    Rmi {
        name: usize,
    },
    Prune,
    Save {
        name: usize,
    },
}

/// Which image a name stands for: a variant, or `VARIANTS` for the base.
type Image_ = usize;

/// The commands of an act, and what each of them makes of which name.
fn commands(world: &World, act: Act) -> Vec<(Vec<String>, Option<(String, Option<Image_>)>)> {
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let build = |name: Option<usize>, variant: usize, cold: bool| {
        let mut line = words("build -q");
        line.extend(cold.then(|| "--no-cache".to_owned()));
        line.extend(name.into_iter().flat_map(|name| words(&format!("-t {}", NAMES[name]))));
        line.push(world.home.path(&format!("c{variant}")).display().to_string());
        (line, name.map(|name| (NAMES[name].to_owned(), Some(variant))))
    };
    let archive = |name: &str| world.home.path(name).display().to_string();
    match act {
        Act::Build { name, variant, cold } => vec![build(Some(name), variant, cold)],
        Act::Nameless { variant } => vec![build(None, variant, true)],
        Act::Both { name, variant } => {
            let other = |n: usize, end: usize| (n + 1) % end;
            vec![build(Some(name), variant, true), build(Some(other(name, NAMES.len())), other(variant, VARIANTS), false)]
        }
        Act::Pull => vec![(words("pull -q busybox"), Some(("busybox".to_owned(), Some(VARIANTS))))],
        Act::Load { name } => {
            let mut line = words("load -q -i");
            line.push(archive(&format!("clean-{}-{name}.tar", NAMES[name])));
            vec![(line, Some((NAMES[name].to_owned(), Some(name))))]
        }
        Act::Tag { from, to } => {
            let image = world.known.get(NAMES[from]).copied().flatten();
            let line = words(&format!("tag {} {}", NAMES[from], NAMES[to]));
            vec![(line, image.map(|image| (NAMES[to].to_owned(), Some(image))))]
        }
        Act::Rmi { name } => vec![(words(&format!("rmi {}", NAMES[name])), Some((NAMES[name].to_owned(), None)))],
        Act::Prune => vec![(words("prune -a -f"), None)],
        Act::Save { name } => {
            let mut line = words(&format!("save {} -o", NAMES[name]));
            line.push(archive("saved.tar"));
            vec![(line, None)]
        }
    }
}

/// One disk with a store, and what was said of it.
struct World {
    home: Home,
    disk: Option<Disk>,
    clean: Vec<Image>,
    known: BTreeMap<String, Option<Image_>>,
    random: Random,
    /// How long acts take.
    lengths: BTreeMap<&'static str, Duration>,
    /// Just after which of their [`CALLS`] the power failed the last time.
    points: BTreeMap<&'static str, u32>,
    told: Told,
}

/// Figures of a run.
#[derive(Debug, Default)]
struct Told {
    cuts: u32,
    after_success: u32,
    at_calls: u32,
    images_checked: u32,
    builds_again: u32,
}

fn kind_of(act: Act) -> &'static str {
    match act {
        Act::Build { cold: true, .. } => "cold build",
        Act::Build { .. } => "build",
        Act::Nameless { .. } => "build without a name",
        Act::Both { .. } => "two builds",
        Act::Pull => "pull",
        Act::Load { .. } => "load",
        Act::Tag { .. } => "tag",
        Act::Rmi { .. } => "rmi",
        Act::Prune => "prune",
        Act::Save { .. } => "save",
    }
}

impl World {
    fn new(home: Home) -> World {
        for variant in 0..VARIANTS {
            let dockerfile = format!(
                "FROM busybox AS one\nRUN mkdir /o && head -c 300000 /dev/zero | tr '\\0' {variant} > /o/z\n\
                 FROM busybox\nCOPY shared /shared\nRUN i=0; while [ $i -lt 30 ]; do echo $i > /shared/$i; i=$((i+1)); done; rm /shared/f1\n\
                 COPY own /own\nRUN cp /own/f2 /r && rm -r /own/d && mkdir /own/d && ln /r /own/d/r && echo {variant} > /etc/motd\n\
                 COPY --from=one /o /o\nWORKDIR /w\n"
            );
            home.context(&format!("c{variant}"), &dockerfile);
            for i in 0..12 {
                home.write(&format!("c{variant}/shared/f{i}"), format!("file {i}\n").repeat(300));
                home.write(&format!("c{variant}/own/f{i}"), format!("{variant} has {i}\n").repeat(i * 40));
            }
            home.write(&format!("c{variant}/own/d/x"), "x");
            home.adopt(&home.path(&format!("c{variant}")));
        }
        let random = Random::new();
        let (lengths, points) = (BTreeMap::new(), BTreeMap::new());
        let (clean, known, told) = (Vec::new(), BTreeMap::new(), Told::default());
        let mut world = World { home, disk: None, clean, known, random, lengths, points, told };
        world.learn();
        world
    }

    /// Builds each variant, and the base, in a store whose power is never cut.
    fn learn(&mut self) {
        let file = self.home.path("saved.tar").display().to_string();
        for (variant, name) in NAMES.into_iter().enumerate() {
            self.home.run(["build", "-q", "-t", name, self.home.path(&format!("c{variant}")).to_str().unwrap()]).ok();
            self.home.run(["save", name, "-o", &file]).ok();
            self.clean.push(Image::read(file.as_ref()).unwrap());
            std::fs::rename(&file, self.home.path(&format!("clean-{name}-{variant}.tar"))).unwrap();
        }
        self.home.run(["pull", "-q", "busybox"]).ok();
        self.home.run(["save", "busybox", "-o", &file]).ok();
        self.clean.push(Image::read(file.as_ref()).unwrap());
    }

    fn disk(&self) -> &Disk {
        self.disk.as_ref().unwrap()
    }

    fn command(&self, args: &[String], before: &[&str]) -> Command {
        let mut command = self.home.command();
        command.args(args);
        self.disk().command(&command, before)
    }

    fn run(&self, args: &[&str]) -> Outcome {
        let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        finish(&mut self.command(&args, &[]))
    }

    fn some_act(&mut self) -> Act {
        let random = &mut self.random;
        let (name, variant) = (random.below(NAMES.len()), random.below(VARIANTS));
        match random.below(16) {
            0..=4 => Act::Build { name, variant, cold: true },
            5..=6 => Act::Build { name, variant, cold: false },
            7 => Act::Nameless { variant },
            8..=9 => Act::Both { name, variant },
            10 => Act::Pull,
            11 => Act::Load { name },
            12 => Act::Tag { from: name, to: (name + 1) % NAMES.len() },
            13 => Act::Rmi { name },
            14 => Act::Prune,
            _ => Act::Save { name },
        }
    }

    /// Does it all, and believes what each command says.
    fn settle(&mut self, act: Act) {
        let begin = Instant::now();
        let (children, effects) = self.start(act, &[]);
        for (child, effect) in children.into_iter().zip(effects) {
            let done = child.wait_with_output().unwrap();
            // What is about a name may be told that there is none.
            let may_fail = matches!(act, Act::Tag { .. } | Act::Rmi { .. } | Act::Save { .. });
            assert!(done.status.success() || may_fail, "{act:?}: {}", String::from_utf8_lossy(&done.stderr));
            self.believe(&done, effect);
        }
        self.lengths.insert(kind_of(act), begin.elapsed());
    }

    fn start(&self, act: Act, before: &[&str]) -> (Vec<Child>, Vec<Option<(String, Option<Image_>)>>) {
        let started = commands(self, act).into_iter().map(|(args, effect)| {
            let mut command = self.command(&args, before);
            (command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap(), effect)
        });
        started.unzip()
    }

    /// Of a command that succeeded the effect is certain.
    fn believe(&mut self, done: &Output, effect: Option<(String, Option<Image_>)>) {
        if let Some((name, image)) = effect.filter(|_| done.status.success()) {
            self.known.insert(name, image);
        }
    }

    /// One act, in which or after which the power fails.
    fn round(&mut self, options: &str) {
        self.disk().mount(options);
        let mut log = options.to_owned();
        // So that more than one thing is there to be lost.
        for _ in 0..self.random.below(3) {
            let act = self.some_act();
            let _ = write!(log, " {act:?},");
            self.settle(act);
        }
        let act = self.some_act();
        let commit = self.random.is(50);
        let way = self.random.below(10);
        let _ = write!(log, " {act:?}, {}", if commit { "another's fsync, " } else { "" });
        let maybe = match way {
            0..=1 => {
                let pause = [0, 5, 50, 400, 1500, 2500][self.random.below(6)];
                let _ = write!(log, "{pause} ms after the end");
                self.settle(act);
                std::thread::sleep(Duration::from_millis(pause));
                self.disk().cut(commit);
                self.told.after_success += 1;
                Vec::new()
            }
            2..=5 => self.cut_at_a_moment(act, commit, &mut log),
            _ => self.cut_at_a_call(act, commit, &mut log),
        };
        self.told.cuts += 1;
        self.disk().umount();
        println!("{:3} {log}", self.told.cuts);
        self.disk().mount(options);
        self.check(&maybe, &log);
        self.again(act, &log);
        self.disk().umount();
    }

    /// Answers what may or may not have come to pass.
    fn cut_at_a_moment(&mut self, act: Act, commit: bool, log: &mut String) -> Vec<(String, Option<Image_>)> {
        let whole = self.lengths.get(kind_of(act)).copied().unwrap_or(Duration::from_millis(500));
        let moment = whole.mul_f64(self.random.below(1100) as f64 / 1000.0);
        let _ = write!(log, "{moment:?} of {whole:?}");
        let (children, effects) = self.start(act, &[]);
        std::thread::sleep(moment);
        self.disk().cut(commit);
        self.end(children, effects)
    }

    /// The same, with the power failing just after the next call in turn, in which the caller is held for a moment.
    fn cut_at_a_call(&mut self, act: Act, commit: bool, log: &mut String) -> Vec<(String, Option<Image_>)> {
        let kind = kind_of(act);
        let points = self.points.entry(kind).or_default();
        *points += 1;
        let point = *points;
        let pipe = self.home.path("calls");
        let _ = std::fs::remove_file(&pipe);
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let inject = format!("inject={CALLS}:delay_exit=3000");
        let trace = format!("trace={CALLS}");
        let path = pipe.to_str().unwrap();
        let (seen, is_cut) = (AtomicU32::new(0), AtomicBool::new(false));
        let world = &*self;
        let maybe = std::thread::scope(|scope| {
            // Held open, so that the reader sees one end of what several write.
            let held = File::options().read(true).write(true).open(&pipe).unwrap();
            let reader = BufReader::new(File::open(&pipe).unwrap());
            scope.spawn(|| {
                for line in reader.lines().map_while(Result::ok) {
                    let finished = line.contains(") = ") || line.contains("resumed>");
                    if finished && seen.fetch_add(1, Ordering::SeqCst) + 1 == point {
                        world.disk().cut(commit);
                        is_cut.store(true, Ordering::SeqCst);
                    }
                }
            });
            let before = ["strace", "-f", "--seccomp-bpf", "-qq", "-e", &trace, "-e", &inject, "-e", "signal=none", "-o", path];
            let (children, effects) = world.start(act, &before);
            let outputs: Vec<Output> = children.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
            drop(held);
            outputs.into_iter().zip(effects).collect::<Vec<_>>()
        });
        let _ = write!(log, "call {point}");
        if is_cut.into_inner() {
            self.told.at_calls += 1;
        } else {
            self.disk().cut(commit);
            self.told.after_success += 1;
            let _ = write!(log, ", of which there was none");
            self.points.remove(kind);
        }
        let mut left = Vec::new();
        for (done, effect) in maybe {
            left.extend(self.ended(&done, effect));
        }
        left
    }

    /// The commands go on without a disk, or are killed with it; what isn't certain is answered.
    fn end(&mut self, children: Vec<Child>, effects: Vec<Option<(String, Option<Image_>)>>) -> Vec<(String, Option<Image_>)> {
        let mut maybe = Vec::new();
        let kills = self.random.is(50);
        for (mut child, effect) in children.into_iter().zip(effects) {
            if kills {
                let _ = child.kill();
            }
            let done = child.wait_with_output().unwrap();
            maybe.extend(self.ended(&done, effect));
        }
        maybe
    }

    fn ended(&mut self, done: &Output, effect: Option<(String, Option<Image_>)>) -> Option<(String, Option<Image_>)> {
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.code() != Some(70) && !said.contains("panicked at"), "{said}");
        if done.status.success() {
            self.believe(done, effect);
            return None;
        }
        effect
    }

    /// Each name stands for what it stood for, or for what a command that didn't end would have made of it; and that is whole, by
    /// its blobs and by its trees.
    fn check(&mut self, maybe: &[(String, Option<Image_>)], log: &str) {
        let listed = self.run(&["images", "--no-trunc", "--format", "json"]).ok().json();
        let text = |row: &serde_json::Value, key: &str| row[key].as_str().unwrap().to_owned();
        let listed: Vec<(String, String)> = listed.iter().map(|row| (text(row, "Repository"), text(row, "ID"))).collect();
        let (nameless, named): (Vec<_>, Vec<_>) = listed.iter().partition(|(name, _)| name == "<none>");
        let (mut now, mut seen) = (BTreeMap::new(), BTreeMap::new());
        for (name, id) in named {
            let is = seen.get(id).copied().unwrap_or_else(|| self.which(name, log));
            seen.insert(id, is);
            now.insert(name.clone(), Some(is));
        }
        for name in self.known.keys().chain(maybe.iter().map(|(name, _)| name)) {
            let (was, is) = (self.known.get(name).copied().flatten(), now.get(name).copied().flatten());
            let allowed = was == is || maybe.contains(&(name.clone(), is));
            assert!(allowed, "{log}: {name} is {is:?}, was {was:?}, {maybe:?}");
        }
        for name in now.keys() {
            assert!(self.known.contains_key(name) || maybe.iter().any(|(other, _)| other == name), "{log}: {name} appeared");
        }
        for (_, id) in nameless.into_iter().filter(|(_, id)| !seen.contains_key(id)) {
            self.run(&["tag", id, "nameless"]).ok();
            now.insert("nameless".to_owned(), Some(self.which("nameless", log)));
        }
        self.known = now;
    }

    /// Which image it is, which must be whole.
    fn which(&mut self, name: &str, log: &str) -> Image_ {
        let (image, tree) = self.read(name, log);
        assert_eq!(tree_differences(&tree, &merge(&image.layers).unwrap()), [] as [&str; 0], "{log}: {name}");
        self.told.images_checked += 1;
        let found = |clean: &Image| differences(&image, clean, &Rules::default());
        let is = self.clean.iter().position(|clean| found(clean).is_empty());
        is.unwrap_or_else(|| panic!("{log}: {name} is no image that was made: {:#?}", found(&self.clean[0])))
    }

    /// The image as the store's blobs have it, and its merged tree as its trees have it.
    fn read(&self, name: &str, log: &str) -> (Image, crate::support::compare::Tree) {
        let file = self.home.path("saved.tar");
        let _ = std::fs::remove_file(&file);
        self.run(&["save", name, "-o", file.to_str().unwrap()]).ok();
        let image = Image::read(&file).unwrap_or_else(|e| panic!("{log}: {name}: {e}"));
        self.home.context("tree", &format!("FROM {name}\n"));
        self.home.adopt(&self.home.path("tree"));
        let output = format!("type=tar,dest={}", file.display());
        self.run(&["build", "-q", "-o", &output, self.home.path("tree").to_str().unwrap()]).ok();
        let tree = merge(&[std::fs::read(&file).unwrap()]).unwrap_or_else(|e| panic!("{log}: {name}: {e}"));
        (image, tree)
    }

    /// What the power cut short is asked for again.
    fn again(&mut self, act: Act, log: &str) {
        let variants = match act {
            Act::Build { variant, .. } | Act::Nameless { variant } => vec![variant],
            Act::Both { variant, .. } => vec![variant, (variant + 1) % VARIANTS],
            _ => vec![self.random.below(VARIANTS)],
        };
        for variant in variants {
            let name = "again";
            let context = self.home.path(&format!("c{variant}")).display().to_string();
            self.run(&["build", "-q", "-t", name, &context]).ok();
            let (image, tree) = self.read(name, log);
            assert_eq!(differences(&image, &self.clean[variant], &Rules::default()), [] as [&str; 0], "{log}");
            assert_eq!(tree_differences(&tree, &merge(&image.layers).unwrap()), [] as [&str; 0], "{log}");
            self.known.insert(name.to_owned(), Some(variant));
            self.told.builds_again += 1;
        }
    }

    /// When all names are gone and nothing is kept, no file is left but the store's own.
    fn end_of_disk(&mut self, options: &str) {
        self.disk().mount(options);
        for name in self.known.clone().keys() {
            let _ = self.run(&["rmi", "-f", name]);
        }
        self.run(&["prune", "-a", "-f"]).ok();
        let left = files_below(&self.disk().seen().join("store"));
        assert!(left.is_empty(), "{left:#?}");
        self.disk().umount();
        self.disk = None;
        self.known.clear();
    }
}

/// The files of a store, but for those of an empty one and what only makes later builds faster.
fn files_below(store: &Path) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![store.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap().map(Result::unwrap) {
            let below = entry.path().strip_prefix(store).unwrap().to_owned();
            // A store of another form than root's has a folder in it.
            let forms = ["rootless", "one-id", "flat", "flat-one-id"];
            let own = forms.iter().find_map(|form| below.strip_prefix(form).ok()).unwrap_or(&below);
            match (entry.file_type().unwrap().is_dir(), own.to_str()) {
                (true, Some("host" | "memo" | "mount-points")) | (false, Some("version" | "lease" | "ids" | "collected")) => {}
                (true, _) => folders.push(entry.path()),
                (false, _) => found.push(below),
            }
        }
    }
    found
}

/// F05: the kernel tells of a failed write once. What was built before that is done again, for it may be in memory only.
#[test]
fn after_a_failed_sync_nothing_of_before_is_believed() {
    const TEST: &str = "after_a_failed_sync_nothing_of_before_is_believed";
    let Some(home) = Home::in_mode(TEST) else { return };
    if !skip::needs(TEST, "strace") {
        return;
    }
    let context = home.context("c", "FROM busybox\nRUN echo a > /a\nRUN echo b > /b\n");
    let args = ["build", "-t", "synced", context.to_str().unwrap()];
    let kiln = home.command();
    let mut command = Command::new("strace");
    command.args(["-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-e", "trace=syncfs", "-e", "inject=syncfs:error=EIO:when=1"]);
    command.arg(kiln.get_program()).args(kiln.get_args()).args(args).current_dir(home.path("")).stdin(Stdio::null());
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.envs(kiln.get_envs().filter_map(|(name, value)| Some((name, value?))));
    finish(&mut command).fails(6).says(&["Input/output error", home.store().to_str().unwrap()]);
    assert_eq!(home.run(["images", "-q"]).ok().stdout, "");
    assert_eq!(home.run(args).ok().cached(), 0);
    assert_eq!(home.run(args).ok().cached(), 2);
}

/// A file of the context is overwritten in place and read by a build; then the power fails. Its new times reached the disk with
/// another program's `fsync`, its new bytes didn't: they aren't in the next image.
#[test]
fn a_context_file_that_lost_its_bytes_is_read_again() {
    const TEST: &str = "a_context_file_that_lost_its_bytes_is_read_again";
    let Some(home) = Home::in_mode(TEST) else { return };
    let folder = home.path("mounted");
    std::fs::create_dir(&folder).unwrap();
    home.adopt(&folder);
    let disk = match Disk::make(&home.path("disk"), &folder, "ext4") {
        Ok(disk) => disk,
        Err(reason) => return skip::skipped(TEST, &reason),
    };
    disk.mount("-");
    let file = disk.seen().join("c/f");
    std::fs::create_dir(disk.seen().join("c")).unwrap();
    std::fs::write(disk.seen().join("c/Dockerfile"), "FROM scratch\nCOPY f /\n").unwrap();
    disk.umount();
    let built = || {
        let archive = home.path("built.tar");
        let mut command = home.command();
        let output = format!("type=docker,dest={}", archive.display());
        command.args(["build", "-q", "-o", &output, folder.join("c").to_str().unwrap()]);
        // The store is on another disk.
        finish(disk.command(&command, &[]).env("KILN_ROOT", home.store())).ok();
        let tree = merge(&Image::read(&archive).unwrap().layers).unwrap();
        tree[&b"f"[..]].content
    };
    let content = |text: &str| Some(kiln_oci::digest::Digest::of(text.repeat(2000).as_bytes()));
    // A machine with much to write may write this file, too, before the power fails.
    for attempt in 0..5 {
        let (old, new) = (format!("{attempt}old "), format!("{attempt}new "));
        disk.mount("-");
        std::fs::write(&file, old.repeat(2000)).unwrap();
        disk.umount();
        disk.mount("-");
        let mut open = File::options().write(true).open(&file).unwrap();
        std::io::Write::write_all(&mut open, new.repeat(2000).as_bytes()).unwrap();
        drop(open);
        let changed = std::fs::metadata(&file).unwrap().modified().unwrap();
        // What was changed just now is never remembered.
        std::thread::sleep(kiln_store::memo::GRAIN + Duration::from_millis(50));
        assert_eq!(built(), content(&new));
        disk.cut(true);
        disk.umount();
        disk.mount("-");
        assert_eq!(std::fs::metadata(&file).unwrap().modified().unwrap(), changed);
        if std::fs::read_to_string(&file).unwrap() == old.repeat(2000) {
            assert_eq!(built(), content(&old));
            return;
        }
        disk.umount();
    }
    skip::skipped(TEST, "the kernel wrote the file before the power failed, five times");
}

fn cuts(test: &str, (kind, options): (&str, &[&str]), wanted: u32) {
    if !skip::needs(test, &format!("mkfs.{kind}")) || !skip::needs(test, "strace") {
        return;
    }
    let Some(home) = Home::in_mode(test) else { return };
    let (file, folder) = (home.path("disk"), home.path("mounted"));
    std::fs::create_dir(&folder).unwrap();
    home.adopt(&folder);
    // Made anew each time, for what isn't there yet is lost most easily.
    let make = || Disk::make(&file, &folder, kind);
    let mut disk = match make() {
        Ok(disk) => Some(disk),
        Err(reason) => return skip::skipped(test, &reason),
    };
    let mut world = World::new(home);
    for round in 0..wanted {
        if world.disk.is_none() {
            world.disk = Some(disk.take().unwrap_or_else(|| make().unwrap()));
        }
        let options = options[(round / ROUNDS) as usize % options.len()];
        world.round(options);
        if round % ROUNDS == ROUNDS - 1 || round == wanted - 1 {
            world.end_of_disk(options);
        }
    }
    println!("{kind}: {:?}", world.told);
}
