//! A store whose files a disk damaged: all damage is found, what stands on it is named, and after a repair everything is there
//! again, the same to the byte.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::home::{Home, Outcome};

/// Three stages, of which one is in no image; steps of each kind; and files that only metadata tells apart.
const DOCKERFILE: &str = "FROM busybox AS made\n\
    WORKDIR /w\n\
    COPY . /w/context\n\
    RUN --mount=type=cache,target=/cache mkdir -p a/b && seq 1 5000 > a/b/numbers && ln -s b a/link && ln a/b/numbers a/more \
    && chown 3:4 a/b && chmod 4711 a/b/numbers && echo x > /cache/x && find /w /cache -exec touch -h -d @1000000000 {} +\n\
    FROM busybox AS other\n\
    RUN echo other > /other && touch -d @1000000000 /other\n\
    FROM busybox\n\
    COPY --from=made /w /w\n\
    COPY --from=other /other /\n\
    RUN rm -r /w/context/two && echo end > /end && find /w /end -exec touch -h -d @1000000000 {} +\n\
    ENTRYPOINT [\"/bin/true\"]\n";

const NAMES: [&str; 2] = ["app:1", "busybox"];

struct Lab {
    home: Home,
    context: PathBuf,
    images: Vec<serde_json::Value>,
}

impl Lab {
    fn new(home: Home) -> Self {
        let context = home.context("c", DOCKERFILE);
        for (name, text) in [("one", "1\n".repeat(3000)), ("two/three", "3".to_owned()), ("empty", String::new())] {
            home.write(&format!("c/{name}"), text);
        }
        // What was changed a moment ago is not remembered.
        for name in ["one", "two/three", "empty", "Dockerfile"] {
            let file = fs::File::options().write(true).open(context.join(name)).unwrap();
            file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000)).unwrap();
        }
        home.adopt(&context);
        let mut lab = Self { home, context, images: Vec::new() };
        std::thread::sleep(std::time::Duration::from_millis(2100));
        lab.build();
        lab.home.run(["pull", "busybox"]).ok();
        lab.home.run(["save", "-o", "app.tar", "app:1"]).ok();
        lab.images = lab.inspected();
        lab.home.run(["du"]).ok();
        lab.home.run(["fsck"]).ok();
        lab
    }

    fn build_args(&self) -> [&str; 6] {
        ["build", "--build-arg", "SOURCE_DATE_EPOCH=1000000000", "-t", "app:1", self.context.to_str().unwrap()]
    }

    fn build(&self) {
        self.home.run(self.build_args()).ok();
    }

    fn inspected(&self) -> Vec<serde_json::Value> {
        NAMES.iter().map(|name| self.home.run(["inspect", name]).ok().json().remove(0)["Id"].clone()).collect()
    }

    /// Builds and pulls once more; all is as it was, and whole.
    fn is_as_before(&self, what: &str) {
        self.build();
        self.home.run(["pull", "busybox"]).ok();
        assert_eq!(self.inspected(), self.images, "{what}");
        self.home.run(["save", "-o", "again.tar", "app:1"]).ok();
        let (first, again) = (fs::read(self.home.path("app.tar")).unwrap(), fs::read(self.home.path("again.tar")).unwrap());
        assert!(first == again, "{what}: another archive");
    }

    fn copy_of_store(&self, from: &str, to: &str) {
        let target = self.home.path(to);
        let _ = fs::remove_dir_all(&target);
        let copied = Command::new("cp").arg("-a").arg(self.home.path(from)).arg(target).status().unwrap();
        assert!(copied.success());
    }
}

/// The same numbers from the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % n as u64).unwrap()
    }

    fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}

/// Where a file stands in the store, and whether its absence means anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Sort {
    Blob,
    Record,
    Facts,
    Mark,
    Usage,
    CacheRecord,
    Image,
    Memo,
    Mount,
    Version,
    Owners,
    InTree,
}

impl Sort {
    fn of(path: &str) -> Option<Self> {
        let parts: Vec<&str> = path.split('/').collect();
        Some(match parts.as_slice() {
            ["version"] => Self::Version,
            ["blobs", "sha256", _] => Self::Blob,
            ["layers", _, "record.json"] => Self::Record,
            ["layers", _, "facts.json"] => Self::Facts,
            ["layers", _, "unpacked"] => Self::Mark,
            ["layers", _, "usage"] => Self::Usage,
            ["layers", _, "diff.owners"] => Self::Owners,
            ["layers", _, "diff", _, ..] => Self::InTree,
            ["cache", _, _] => Self::CacheRecord,
            ["images", _] => Self::Image,
            ["memo", _] => Self::Memo,
            ["mounts", _, "id"] => Self::Mount,
            _ => return None,
        })
    }

    /// A store without it is one in which it was never made, or was taken away by somebody who may.
    fn may_be_absent(self) -> bool {
        matches!(self, Self::Facts | Self::Usage | Self::CacheRecord | Self::Image | Self::Memo | Self::Mount | Self::Version)
    }
}

/// All that can be damaged, by sort.
fn everything(store: &Path) -> Vec<(Sort, Vec<PathBuf>)> {
    let mut found: BTreeMap<Sort, Vec<PathBuf>> = BTreeMap::new();
    let mut todo = vec![store.to_owned()];
    while let Some(next) = todo.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let entry = entry.unwrap();
            let below = entry.path().strip_prefix(store).unwrap().to_str().unwrap().to_owned();
            if let Some(sort) = Sort::of(&below) {
                found.entry(sort).or_default().push(entry.path());
            }
            if entry.file_type().unwrap().is_dir() {
                todo.push(entry.path());
            }
        }
    }
    found
        .into_iter()
        .map(|(sort, mut paths)| {
            paths.sort();
            (sort, paths)
        })
        .collect()
}

/// Damages one thing; says what was done, or none if it can't be done to that.
fn damage(dice: &mut Dice, sort: Sort, path: &Path) -> Option<String> {
    let meta = fs::symlink_metadata(path).unwrap();
    if sort == Sort::InTree && (!meta.is_file() || dice.below(2) == 0) {
        return damage_node(dice, path, &meta);
    }
    let good = fs::read(path).unwrap();
    let mut bad = good.clone();
    let what = match dice.below(5) {
        0 if !good.is_empty() => {
            let (at, bit) = (dice.below(good.len()), dice.below(8));
            bad[at] ^= 1 << bit;
            format!("bit {bit} of byte {at} flipped")
        }
        1 if !good.is_empty() => {
            bad.truncate(dice.below(good.len()));
            format!("cut to {}", bad.len())
        }
        2 => {
            bad.clear();
            "emptied".to_owned()
        }
        3 => {
            bad.fill(0);
            "all NUL".to_owned()
        }
        _ if !sort.may_be_absent() => {
            fs::remove_file(path).unwrap();
            return Some("removed".to_owned());
        }
        _ => return None,
    };
    if bad == good {
        return None;
    }
    // In place, as a disk does it, and with the times that it had.
    fs::write(path, bad).unwrap();
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_modified(meta.modified().unwrap()).unwrap();
    Some(what)
}

/// Damages what is no content: attributes, links, names.
fn damage_node(dice: &mut Dice, path: &Path, meta: &fs::Metadata) -> Option<String> {
    let set_time = |time: i64| {
        let name = CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
        let time = rustix::fs::Timespec { tv_sec: time, tv_nsec: 0 };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(rustix::fs::CWD, name, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
    };
    Some(match dice.below(6) {
        0 => {
            lchown(path, Some(meta.uid() + 1), None).unwrap();
            "another owner".to_owned()
        }
        1 if !meta.is_symlink() && !whiteout(meta) => {
            let mode = meta.mode() ^ (1 << dice.below(9));
            fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o7777)).unwrap();
            format!("mode {mode:o}")
        }
        2 if !whiteout(meta) => {
            set_time(meta.mtime() + 1 + i64::try_from(dice.below(100_000)).unwrap());
            "another time".to_owned()
        }
        3 if meta.is_symlink() => {
            let target = fs::read_link(path).unwrap();
            fs::remove_file(path).unwrap();
            std::os::unix::fs::symlink(target.join("x"), path).unwrap();
            lchown(path, Some(meta.uid()), Some(meta.gid())).unwrap();
            set_time(meta.mtime());
            "another target".to_owned()
        }
        4 => {
            let renamed = fs::rename(path, path.with_file_name("renamed-by-a-disk"));
            renamed.map(|()| "renamed".to_owned()).unwrap()
        }
        5 => {
            match meta.is_dir() {
                true => fs::remove_dir_all(path).unwrap(),
                false => fs::remove_file(path).unwrap(),
            }
            "removed".to_owned()
        }
        _ => return None,
    })
}

fn whiteout(meta: &fs::Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt;
    meta.file_type().is_char_device()
}

/// How many corruptions are asked for: so many in the long form, else the few of every day.
fn wanted(full: usize, usual: usize) -> usize {
    let asked = std::env::var("KILN_TEST_CORRUPTIONS").ok().and_then(|text| text.parse().ok());
    asked.unwrap_or(if std::env::var_os("KILN_TEST_FULL").is_some() { full } else { usual })
}

/// Damages that can be told from one another when they are found.
#[derive(Default)]
struct Batch {
    /// What `kiln fsck` calls them.
    objects: BTreeSet<String>,
    layers: BTreeSet<String>,
    /// A layer that an image brought is proved by its blob, and those above by it: one such thing at a time.
    has_base: bool,
    /// That a blob is missing is told by what names it, so these two don't go together.
    has_blob: bool,
    has_witness: bool,
    words: String,
}

impl Batch {
    /// What the file is a part of, if nothing of that is damaged yet.
    fn object(&mut self, store: &Path, sort: Sort, path: &Path) -> Option<String> {
        let below = path.strip_prefix(store).unwrap().to_str()?;
        let parts: Vec<&str> = below.split('/').collect();
        let of_layer = |part: &str| format!("{part} of layer {}", parts[1]);
        let object = match sort {
            Sort::Blob => format!("blob sha256:{}", parts[2]),
            Sort::Record => of_layer("record"),
            Sort::Facts => of_layer("facts"),
            Sort::Mark => of_layer("mark"),
            Sort::Usage => of_layer("usage"),
            Sort::InTree | Sort::Owners => of_layer("tree"),
            Sort::CacheRecord => format!("cache record {}{}", parts[1], parts[2]),
            Sort::Image => "image name ".to_owned(),
            Sort::Memo => format!("memo {}", path.display()),
            Sort::Mount => format!("cache mount {}", path.display()),
            Sort::Version => return self.objects.is_empty().then(|| "store format".to_owned()),
        };
        let is_witness = matches!(sort, Sort::Image | Sort::CacheRecord | Sort::Facts | Sort::Record | Sort::Mark);
        if (is_witness && self.has_blob) || (sort == Sort::Blob && self.has_witness) {
            return None;
        }
        self.has_blob |= sort == Sort::Blob;
        self.has_witness |= is_witness;
        let is_free = match sort {
            Sort::Blob => !std::mem::replace(&mut self.has_base, true),
            _ if parts[0] != "layers" => !self.objects.contains(&object),
            _ if matches!(sort, Sort::Facts | Sort::Usage) || parts[1].starts_with('n') => {
                self.layers.insert(parts[1].to_owned())
            }
            _ => !std::mem::replace(&mut self.has_base, true) && self.layers.insert(parts[1].to_owned()),
        };
        is_free.then_some(object)
    }
}

/// Everything that a disk can do to any file of the store is found, and after a repair the same build gives the same image.
#[test]
fn every_corruption_is_found_and_mended() {
    let Some(home) = Home::in_mode("every_corruption_is_found_and_mended") else { return };
    let lab = Lab::new(home);
    let (seed, mut dice) = dice();
    fs::rename(lab.home.store(), lab.home.path("good")).unwrap();
    let mut done: BTreeMap<Sort, usize> = BTreeMap::new();
    let (mut count, mut round) = (0, 0);
    while count < wanted(1000, 36) {
        lab.copy_of_store("good", "store");
        let store = trees_of(&lab.home.store());
        let sorts = everything(&store);
        let mut batch = Batch::default();
        for pick in 0..8 {
            // Blobs and trees are where the bytes are.
            let wanted = match (pick, round % 3) {
                (0, 0) => Some(Sort::Blob),
                (0, 1) => Some(Sort::InTree),
                (0, _) => Some(sorts[round / 3 % sorts.len()].0),
                _ => (dice.below(3) == 0).then_some(Sort::InTree),
            };
            let any = dice.below(sorts.len());
            let at = wanted.and_then(|wanted| sorts.iter().position(|(sort, _)| *sort == wanted)).unwrap_or(any);
            let (sort, paths) = &sorts[at];
            let path = dice.one(paths);
            if (pick > 0 && *sort == Sort::Version)
                || batch.objects.contains("store format")
                || !path.exists() && !path.is_symlink()
            {
                continue;
            }
            let Some(object) = batch.object(&store, *sort, path) else { continue };
            let Some(what) = damage(&mut dice, *sort, path) else { continue };
            batch.words.push_str(&format!("{} ({object}): {what}\n", path.display()));
            batch.objects.insert(object);
            *done.entry(*sort).or_default() += 1;
            count += 1;
        }
        round += 1;
        if !batch.objects.is_empty() {
            check_round(&lab, &batch.objects, &format!("round {round} (seed {seed}):\n{}", batch.words));
        }
    }
    println!("{count} corruptions in {round} rounds, all found and mended: {done:?}");
    lab.home.left_nothing();
}

/// Who doesn't look for damage meets it: then it is healed, or it is an error; never another image.
#[test]
fn a_damaged_store_never_gives_another_image() {
    let Some(home) = Home::in_mode("a_damaged_store_never_gives_another_image") else { return };
    let lab = Lab::new(home);
    let (seed, mut dice) = dice();
    fs::rename(lab.home.store(), lab.home.path("good")).unwrap();
    let (mut round, mut refused) = (0, 0);
    while round < wanted(300, 12) {
        lab.copy_of_store("good", "store");
        let store = trees_of(&lab.home.store());
        // A tree is proved by who asks for it, with `--verify-layers` or `kiln fsck`.
        let sorts: Vec<_> = everything(&store).into_iter().filter(|(sort, _)| *sort != Sort::InTree).collect();
        let (sort, paths) = &sorts[round % sorts.len()];
        let path = dice.one(paths);
        let Some(what) = damage(&mut dice, *sort, path) else { continue };
        let what = format!("round {round} (seed {seed}): {}: {what}", path.display());
        round += 1;
        let build = lab.home.run(lab.build_args());
        let _ = fs::remove_file(lab.home.path("again.tar"));
        let save = lab.home.run(["save", "-o", "again.tar", "app:1"]);
        for outcome in [&build, &save] {
            let code = outcome.status.code();
            assert!(code.is_some_and(|code| code != 70 && code < 128), "{what}\n{}", outcome.stderr);
        }
        if !save.status.success() {
            refused += 1;
            assert!(!lab.home.path("again.tar").exists(), "{what}: half an archive");
        } else {
            let (first, again) = (fs::read(lab.home.path("app.tar")).unwrap(), fs::read(lab.home.path("again.tar")).unwrap());
            assert!(first == again, "{what}: another archive\n{}{}", build.stderr, save.stderr);
        }
        // What can be made again is made again without being asked.
        if matches!(sort, Sort::Record | Sort::Facts | Sort::Mark | Sort::CacheRecord | Sort::Memo | Sort::Usage | Sort::Mount) {
            assert!(build.status.success() && save.status.success(), "{what}\n{}{}", build.stderr, save.stderr);
        }
    }
    println!("{round} stores with damage used: {refused} archives refused, no other image");
}

fn dice() -> (u64, Dice) {
    let seed = std::env::var("KILN_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(0x5eed_f00d);
    (seed, Dice(seed))
}

/// The folder of the one store that is used.
fn trees_of(root: &Path) -> PathBuf {
    let forms = ["rootless", "one-id", "flat", "flat-one-id"].map(|name| root.join(name));
    forms.into_iter().find(|folder| folder.join("version").exists()).unwrap_or_else(|| root.to_owned())
}

#[track_caller]
fn check_round(lab: &Lab, objects: &BTreeSet<String>, what: &str) {
    let found = lab.home.run(["fsck"]);
    if found.stderr.contains("has format") {
        // A bit can make a newer store of it, which nobody touches.
        return;
    }
    assert_eq!(found.status.code(), Some(1), "{what}\n{}\n{}", found.stdout, found.stderr);
    for object in objects {
        assert!(found.stdout.contains(&format!("broken: {object}")), "{what}\n{object} is not found\n{}", found.stdout);
    }
    let repaired = lab.home.run(["fsck", "--repair"]);
    assert!(repaired.status.success(), "{what}\n{}\n{}", repaired.stdout, repaired.stderr);
    lab.is_as_before(&format!("{what}\n{}", repaired.stdout));
    let after: Outcome = lab.home.run(["fsck"]);
    assert!(after.status.success(), "{what}\n{}{}", repaired.stdout, after.stdout);
}
