//! The harness of the COPY, ADD and WORKDIR rows: real trees in, real layers out.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use kiln_frontend::graph::{CopyFrom, CopyOp, CopySource};
use kiln_frontend::ignore::PatternMatcher;
use kiln_store::layer::whiteout::WhiteoutStyle;
use kiln_store::rootdir::RootDir;
use rustix::fs::{AtFlags, CWD, Mode, Timespec, Timestamps};

use super::*;
use crate::context::Context;

mod archives;
mod keys;
mod rows;

/// What every source file is set to.
const SOURCE_TIME: i64 = 1_000_000_000;
/// The build's clock.
const CLOCK: i64 = 1_500_000_000;

fn clock() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(CLOCK.unsigned_abs())
}

/// Makes a tree of lines: `d PATH MODE [UID:GID]`, `f PATH MODE [UID:GID] [CONTENT]`, `l PATH TARGET`, `h PATH OLD`, `p PATH`,
/// `s PATH` (socket).
fn plant(root: &Path, lines: &str) {
    fs::create_dir_all(root).unwrap();
    let mut times = vec![root.to_owned()];
    for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let words: Vec<&str> = line.split(' ').collect();
        let path = root.join(words[1]);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mode = || fs::Permissions::from_mode(u32::from_str_radix(words[2], 8).unwrap());
        let owner = words.get(3).and_then(|w| w.split_once(':')).map(|(u, g)| (u.parse().unwrap(), g.parse().unwrap()));
        match words[0] {
            "d" => fs::create_dir_all(&path).unwrap(),
            "f" => fs::write(&path, words.get(4).unwrap_or(&"")).unwrap(),
            "l" => symlink(words[2], &path).unwrap(),
            "h" => fs::hard_link(root.join(words[2]), &path).unwrap(),
            "p" => rustix::fs::mknodat(CWD, &path, rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o644), 0).unwrap(),
            "s" => drop(std::os::unix::net::UnixListener::bind(&path).unwrap()),
            other => panic!("{other}"),
        }
        if let Some((uid, gid)) = owner {
            chown(&path, Some(uid), Some(gid)).unwrap();
        }
        if matches!(words[0], "d" | "f") {
            fs::set_permissions(&path, mode()).unwrap();
        }
        times.extend(path.ancestors().take_while(|a| *a != root).map(Path::to_owned));
    }
    for path in times {
        set_time(&path, SOURCE_TIME);
    }
}

fn set_time(path: &Path, secs: i64) {
    let time = Timespec { tv_sec: secs, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// The same lines of a tree, with `@clock` or `@SECONDS` after what doesn't have the sources' time.
fn show(root: &Path) -> Vec<String> {
    fn go(root: &Path, dir: &Path, seen: &mut HashMap<u64, PathBuf>, out: &mut Vec<String>) {
        let mut entries: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            let meta = fs::symlink_metadata(&path).unwrap();
            let name = path.strip_prefix(root).unwrap().to_owned();
            let shown = name.display();
            let kind = meta.file_type();
            let mode = meta.mode() & 0o7777;
            let time = match meta.mtime() {
                SOURCE_TIME => String::new(),
                CLOCK => " @clock".to_owned(),
                other => format!(" @{other}"),
            };
            let owner = format!("{}:{}", meta.uid(), meta.gid());
            let old = (!meta.is_dir() && meta.nlink() > 1).then(|| seen.insert(meta.ino(), name.clone())).flatten();
            if let Some(old) = old {
                seen.insert(meta.ino(), old.clone());
                out.push(format!("h {shown} {}", old.display()));
            } else if kind.is_dir() {
                out.push(format!("d {shown} {mode:o} {owner}{time}"));
                go(root, &path, seen, out);
            } else if kind.is_symlink() {
                let owner = if owner == "0:0" { String::new() } else { format!(" {owner}") };
                out.push(format!("l {shown} {}{owner}{time}", fs::read_link(&path).unwrap().display()));
            } else if kind.is_file() {
                let content = String::from_utf8(fs::read(&path).unwrap()).unwrap_or_else(|_| "BYTES".into());
                out.push(format!("f {shown} {mode:o} {owner} {content}{time}"));
            } else if kind.is_fifo() {
                out.push(format!("p {shown} {mode:o} {owner}{time}"));
            } else {
                out.push(format!("? {shown} {kind:?}"));
            }
        }
    }
    let mut out = Vec::new();
    go(root, root, &mut HashMap::new(), &mut out);
    out
}

/// An instruction as a Dockerfile has it; no quoting, no expansion.
fn op(line: &str, from: CopyFrom) -> CopyOp {
    let mut words = line.split(' ');
    let is_add = words.next() == Some("ADD");
    let mut op = CopyOp {
        parent: None,
        from,
        sources: Vec::new(),
        dest: ImagePath::root(),
        dest_is_dir: false,
        chown: None,
        chmod: None,
        link: false,
        parents: false,
        exclude: Vec::new(),
        is_add,
        unpack: None,
        checksum: None,
        keep_git_dir: None,
    };
    let mut paths = Vec::new();
    for word in words {
        match word.strip_prefix("--").map(|flag| flag.split_once('=').unwrap_or((flag, ""))) {
            Some(("chown", value)) => op.chown = Some(value.to_owned()),
            Some(("chmod", value)) => op.chmod = Some(value.to_owned()),
            Some(("exclude", value)) => op.exclude.push(value.to_owned()),
            Some(("unpack", value)) => op.unpack = Some(value == "true"),
            Some(("parents", _)) => op.parents = true,
            Some(("link", _)) => op.link = true,
            Some(flag) => panic!("{flag:?}"),
            None => paths.push(word),
        }
    }
    let dest = paths.pop().unwrap();
    op.dest = ImagePath::new(dest);
    op.dest_is_dir = dest.ends_with('/') || dest == "." || dest.ends_with("/.");
    op.sources = paths
        .into_iter()
        .map(|path| match path.strip_prefix("<<") {
            Some(name) => CopySource::Inline { name: name.to_owned(), data: format!("{name}!").into_bytes() },
            None => CopySource::Path(path.to_owned()),
        })
        .collect();
    op
}

struct Lab {
    temp: tempfile::TempDir,
    /// Topmost first.
    layers: Vec<PathBuf>,
    ignore: &'static str,
    warnings: Vec<String>,
}

const BASE: &str = "\
    d d 700 5:6
    d dirA/sub 700 5:6
    d etc 755
    f file 644 5:6 hi
    d run 755
    d w 755
    l dangling /nowhere/deep
    l dlink d
    l flink file
    l var/run /run";

const FILES: &str = "\
    f a 4755 1000:1000 A
    f b 600 0:0 B
    d dir 751 7:7
    f dir/f 644 0:0 F
    h dir/f2 dir/f
    l dir/l f
    l dir/up ../a
    d dir/.h 755
    f dir/sub/x 644 0:0 X
    d dir/sub 711
    f d/n 644 0:0 N
    d d 755
    f dirA/sub/s 644 0:0 S
    d dirA 755
    d dirA/sub 755
    d empty 755
    h hard dir/f
    l link a
    l dlink dir
    l abs /a
    l broken nope
    l loop loop
    p fifo";

/// What FILES' dir has in it, at `@`.
const DIR: &[&str] =
    &["d @/.h 755 0:0", "f @/f 644 0:0 F", "h @/f2 @/f", "l @/l f", "d @/sub 711 0:0", "f @/sub/x 644 0:0 X", "l @/up ../a"];

impl Lab {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        plant(&temp.path().join("context"), FILES);
        let base = temp.path().join("base");
        plant(&base, BASE);
        fs::write(base.join("etc/passwd"), "root:x:0:0:root:/:\nwww:x:33:34::/:\n").unwrap();
        fs::write(base.join("etc/group"), "root:x:0:\nwww:x:34:\nstaff:x:50:\n").unwrap();
        Self { temp, layers: vec![base], ignore: "", warnings: Vec::new() }
    }

    fn context_dir(&self) -> PathBuf {
        self.temp.path().join("context")
    }

    fn context(&self) -> Context {
        Context::open(&self.context_dir(), PatternMatcher::parse(self.ignore.as_bytes()).unwrap(), None).unwrap()
    }

    /// Runs `line`, an instruction that may say `--from`, and gives the layer it makes; a failure is its message.
    fn run(&mut self, line: &str) -> Vec<String> {
        match self.try_run(line) {
            Ok(rows) => rows,
            Err(error) => vec![format!("error: {error}")],
        }
    }

    fn try_run(&mut self, line: &str) -> Result<Vec<String>, FileError> {
        self.execute(line).map(|layer| show(&layer))
    }

    /// Copies to the base and gives the layer's directory, without stacking it.
    fn copy(&mut self, op: &CopyOp, fetched: &[crate::ops::Fetched]) -> Result<PathBuf, FileError> {
        let path = tempfile::tempdir_in(self.temp.path()).unwrap().keep();
        let view = View::new(&self.layers).unwrap();
        let mut upper = UpperWriter::new(RootDir::open(&path).unwrap(), view.clone(), WhiteoutStyle::Device).unwrap();
        let context = self.context();
        let source = SourceTree::Context(&context);
        selection_key(op, &source, fetched)?;
        copy(op, &source, &view, &mut upper, fetched, clock(), &mut |text| self.warnings.push(text))?;
        upper.finish().unwrap();
        Ok(path)
    }

    /// Runs `line` and gives the layer's directory.
    fn execute(&mut self, line: &str) -> Result<PathBuf, FileError> {
        let path = tempfile::tempdir_in(self.temp.path()).unwrap().keep();
        let view = View::new(&self.layers).unwrap();
        let mut upper = UpperWriter::new(RootDir::open(&path).unwrap(), view.clone(), WhiteoutStyle::Device).unwrap();
        let context = self.context();
        if let Some(dir) = line.strip_prefix("WORKDIR ") {
            let (user, dir) = dir.split_once(' ').map_or(("", dir), |(user, dir)| (user, dir));
            let op = WorkdirOp { parent: None, path: ImagePath::new(dir), user: user.to_owned() };
            workdir(&op, &view, &mut upper, clock())?;
        } else {
            let (line, source) = match line.contains("--from ") {
                true => (line.replace("--from ", ""), SourceTree::View(&view)),
                false => (line.to_owned(), SourceTree::Context(&context)),
            };
            let op = op(&line, CopyFrom::Context(kiln_frontend::graph::ContextId::Main));
            let key = selection_key(&op, &source, &[])?;
            copy(&op, &source, &view, &mut upper, &[], clock(), &mut |text| self.warnings.push(text))?;
            // Copying changes nothing of what the key is about.
            assert_eq!(selection_key(&op, &source, &[])?, key);
        }
        upper.finish().unwrap();
        self.layers.insert(0, path.clone());
        Ok(path)
    }
}

fn below(at: &str, rows: &[&str]) -> Vec<String> {
    rows.iter().map(|row| row.replace('@', at)).collect()
}

/// Runs the instructions one after the other and compares what the last one made.
#[track_caller]
fn check(lines: &str, expected: &[&str]) {
    check_rows(lines, &expected.iter().map(|row| (*row).to_owned()).collect::<Vec<_>>());
}

#[track_caller]
fn check_rows(lines: &str, expected: &[String]) {
    let mut lab = Lab::new();
    let mut made = Vec::new();
    for line in lines.lines().map(str::trim) {
        made = lab.run(line);
    }
    assert_eq!(made, expected, "\n{lines}\n");
}
