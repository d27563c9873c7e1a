//! The files of a context as a value: random edits change the value, and `write` makes a folder what the value says, touching
//! nothing else in it. So going back to an earlier value is an edit like the others.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::XattrFlags;

use super::random::Random;

/// A path below the context, and what is there.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Node {
    Dir { mode: u32 },
    File { data: Vec<u8>, mode: u32, mtime: u64, note: Option<String> },
    Link { target: String },
}

/// All of a folder; what lies in a folder comes after it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Files(pub(crate) BTreeMap<String, Node>);

const NAMES: [&str; 12] = ["a", "b", "f.txt", "g.txt", "h.log", "lib", "src", "doc", "two words", "é", ".hidden", "a.tar"];
const TIMES: u64 = 1_500_000_000;

impl Files {
    /// Some to begin with.
    pub(crate) fn new(random: &mut Random) -> Files {
        let mut files = Files::default();
        for dir in ["src", "src/lib", "doc"] {
            files.0.insert(dir.into(), Node::Dir { mode: 0o755 });
        }
        for name in ["a", "f.txt", "src/b", "src/lib/a", "src/h.log", "doc/g.txt"] {
            files.0.insert(name.into(), file(random, name));
        }
        files.0.insert("src/link".into(), Node::Link { target: "lib/a".into() });
        files.0.insert("a.tar".into(), file(random, "a.tar"));
        files.0.insert(".dockerignore".into(), Node::File { data: b"*.log\n".to_vec(), mode: 0o644, mtime: TIMES, note: None });
        files
    }

    /// One file, as a server gives it out.
    pub(crate) fn one(random: &mut Random, name: &str) -> Files {
        Files(BTreeMap::from([(name.to_owned(), file(random, name))]))
    }

    fn pick(&self, random: &mut Random, admits: impl Fn(&str, &Node) -> bool) -> Option<String> {
        let names: Vec<&String> = self.0.iter().filter(|(name, node)| admits(name, node)).map(|(name, _)| name).collect();
        (!names.is_empty()).then(|| names[random.below(names.len())].clone())
    }

    fn a_file(&self, random: &mut Random) -> Option<String> {
        self.pick(random, |name, node| matches!(node, Node::File { .. }) && name != ".dockerignore")
    }

    /// Takes a path away with all below it.
    fn take(&mut self, name: &str) -> Vec<(String, Node)> {
        let below = format!("{name}/");
        let names: Vec<String> = self.0.keys().filter(|n| *n == name || n.starts_with(&below)).cloned().collect();
        names.into_iter().map(|n| (n[name.len()..].to_owned(), self.0.remove(&n).expect("it was listed"))).collect()
    }

    fn put(&mut self, name: &str, nodes: Vec<(String, Node)>) {
        self.take(name);
        self.0.extend(nodes.into_iter().map(|(below, node)| (format!("{name}{below}"), node)));
    }

    /// A name in one of the folders, of something that is there or not.
    fn a_name(&self, random: &mut Random) -> String {
        let name = random.of(&NAMES);
        match self.pick(random, |_, node| matches!(node, Node::Dir { .. })) {
            Some(dir) if random.percent(70) => format!("{dir}/{name}"),
            _ => name.to_owned(),
        }
    }

    /// Changes something, and says what; nothing when the dice found nothing to change.
    pub(crate) fn edit(&mut self, random: &mut Random) -> Option<String> {
        match random.below(16) {
            0 | 1 => {
                let name = self.a_name(random);
                self.take(&name);
                self.0.insert(name.clone(), file(random, &name));
                Some(format!("a new {name}"))
            }
            2 => self.with_file(random, "other content and size", |random, data, _, _, _| {
                let len = data.len();
                data.resize(len + 1 + random.below(5000), b'+');
            }),
            // What a look at size and time doesn't find (C96).
            3..=5 => self.with_file(random, "other content, same size, same time", |random, data, _, _, _| match data.len() {
                0 => data.push(b'0'),
                len => {
                    let at = random.below(len);
                    data[at] = b'a' + (data[at].wrapping_add(1) % 26);
                }
            }),
            6 => self.with_file(random, "another time only", |random, _, _, mtime, _| *mtime = TIMES + random.below(1000) as u64),
            7 => self.with_file(random, "another mode", |random, _, mode, _, _| {
                *mode = [0o644, 0o600, 0o755, 0o444, 0o4755, 0o666][random.below(6)];
            }),
            8 => {
                let name = self.pick(random, |_, node| matches!(node, Node::Dir { .. }))?;
                let mode = [0o755, 0o700, 0o1777, 0o2755][random.below(4)];
                self.0.insert(name.clone(), Node::Dir { mode });
                Some(format!("mode {mode:o} for {name}"))
            }
            9 => {
                let from = self.pick(random, |name, _| name != ".dockerignore")?;
                let to = self.a_name(random);
                if to.starts_with(&format!("{from}/")) || from.starts_with(&format!("{to}/")) {
                    return None;
                }
                let nodes = self.take(&from);
                self.put(&to, nodes);
                Some(format!("{from} renamed to {to}"))
            }
            10 => {
                let (one, two) = (self.a_file(random)?, self.a_file(random)?);
                let (x, y) = (self.take(&one), self.take(&two));
                self.put(&two, x);
                self.put(&one, y);
                Some(format!("{one} and {two} swapped"))
            }
            11 => {
                let name = self.pick(random, |name, _| !name.starts_with(".docker"))?;
                self.take(&name);
                Some(format!("{name} removed"))
            }
            12 => {
                let name = self.a_name(random);
                let target = random.of(&["a", "lib", "../a", "/etc/passwd", "nowhere", "."]);
                self.put(&name, vec![(String::new(), Node::Link { target: target.to_owned() })]);
                Some(format!("{name} -> {target}"))
            }
            13 => {
                let name = self.a_name(random);
                self.put(&name, vec![(String::new(), Node::Dir { mode: 0o755 })]);
                let inner = format!("{name}/{}", random.of(&NAMES));
                let node = file(random, &inner);
                self.0.insert(inner.clone(), node);
                Some(format!("a new folder with {inner}"))
            }
            14 => self.with_file(random, "another attribute", |random, _, _, _, note| {
                *note = random.percent(70).then(|| format!("note {}", random.below(3)));
            }),
            _ => {
                let lines =
                    ["*.log", "!src/h.log", "doc", "**/a", "src/*", "!src/lib", "*", "!src", "?.txt", "# nothing", "a.tar"];
                let text: String = (0..random.below(4)).map(|_| format!("{}\n", random.of(&lines))).collect();
                let node = Node::File { data: text.clone().into_bytes(), mode: 0o644, mtime: TIMES, note: None };
                self.0.insert(".dockerignore".into(), node);
                Some(format!("ignored: {text:?}"))
            }
        }
    }

    fn with_file(
        &mut self,
        random: &mut Random,
        what: &str,
        change: impl Fn(&mut Random, &mut Vec<u8>, &mut u32, &mut u64, &mut Option<String>),
    ) -> Option<String> {
        let name = self.a_file(random)?;
        let Some(Node::File { data, mode, mtime, note }) = self.0.get_mut(&name) else { return None };
        change(random, data, mode, mtime, note);
        Some(format!("{name}: {what}"))
    }

    /// Makes the folder, which holds `old`, hold this.
    pub(crate) fn write(&self, old: &Files, folder: &Path, random: &mut Random) {
        let same_kind = |a: &Node, b: &Node| std::mem::discriminant(a) == std::mem::discriminant(b);
        for (name, node) in old.0.iter().rev() {
            if !self.0.get(name).is_some_and(|new| same_kind(new, node) && !matches!(node, Node::Link { .. })) {
                let path = folder.join(name);
                let gone = if matches!(node, Node::Dir { .. }) { fs::remove_dir(&path) } else { fs::remove_file(&path) };
                gone.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            }
        }
        for (name, node) in &self.0 {
            let before = old.0.get(name).filter(|old| same_kind(old, node));
            if before != Some(node) || matches!(node, Node::Link { .. }) {
                place(&folder.join(name), before, node, random);
            }
        }
    }
}

fn place(path: &Path, before: Option<&Node>, node: &Node, random: &mut Random) {
    match node {
        Node::Link { target } => symlink(target, path).unwrap(),
        Node::Dir { mode } => {
            if before.is_none() {
                fs::create_dir_all(path).unwrap();
            }
            fs::set_permissions(path, Permissions::from_mode(*mode)).unwrap();
        }
        Node::File { data, mode, mtime, note } => {
            let in_place = matches!(before, Some(Node::File { data: old, .. }) if old.len() == data.len());
            if in_place && random.percent(50) {
                File::options().write(true).open(path).unwrap().write_all_at(data, 0).unwrap();
            } else if before.is_some() && random.percent(50) {
                let draft = path.with_file_name(".draft");
                fs::write(&draft, data).unwrap();
                fs::rename(&draft, path).unwrap();
            } else {
                File::create(path).unwrap().write_all(data).unwrap();
            }
            match note {
                // Not every file system has them.
                Some(note) => drop(rustix::fs::setxattr(path, "user.note", note.as_bytes(), XattrFlags::empty())),
                None => drop(rustix::fs::removexattr(path, "user.note")),
            }
            let file = File::options().write(true).open(path).unwrap();
            fs::set_permissions(path, Permissions::from_mode(*mode)).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(*mtime)).unwrap();
        }
    }
}

fn file(random: &mut Random, name: &str) -> Node {
    let data = if name.ends_with(".tar") {
        archive(random)
    } else {
        let text = format!("{} {}\n", name.len(), random.below(10));
        text.repeat(if random.percent(10) { 20_000 } else { random.below(4) }).into_bytes()
    };
    Node::File { data, mode: 0o644, mtime: TIMES + random.below(4) as u64, note: None }
}

/// A tar of a folder and some files, compressed or not.
fn archive(random: &mut Random) -> Vec<u8> {
    let mut bytes = entry("in/", b'5', 0o755, b"");
    for name in ["in/x", "in/y", "z"].into_iter().take(1 + random.below(3)) {
        bytes.extend(entry(name, b'0', if random.percent(50) { 0o644 } else { 0o700 }, random.below(100).to_string().as_bytes()));
    }
    bytes.extend([0; 1024]);
    if random.percent(50) {
        return bytes;
    }
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(&bytes).unwrap();
    packed.finish().unwrap()
}

fn entry(name: &str, kind: u8, mode: u32, data: &[u8]) -> Vec<u8> {
    let mut header = vec![0; 512];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, &format!("{mode:07o}"));
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{:011o}", data.len()));
    put(136, &format!("{TIMES:011o}"));
    put(148, "        ");
    put(257, "ustar");
    put(263, "00");
    header[156] = kind;
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    header.extend_from_slice(data);
    header.resize(header.len().next_multiple_of(512), 0);
    header
}
