//! Hides how one finds out which packages are in a tree of files: package databases, lock files, programs and archives.
//!
//! What it reads was made by strangers: every file has a largest size, and what is damaged becomes a note, not an error.

pub mod apk;
pub mod dpkg;
pub mod go;
pub mod java;
pub mod language;
pub mod license;
pub mod package;
pub mod rpm;
pub mod spdx;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;

use kiln_oci::path::ImagePath;
use kiln_store::rootdir::Kind;
use kiln_store::view::{Node, View, ViewError};

use language::Format;
use package::{Distribution, Package};

/// A list of packages in text; dpkg's of a whole desktop has 5 MB.
const MAX_TEXT: u64 = 64 << 20;
/// rpm's database of a whole desktop has 200 MB.
const MAX_DATABASE: u64 = 512 << 20;
/// Smaller programs aren't Go's: its runtime alone is larger.
const MIN_PROGRAM: u64 = 256 << 10;
/// Deeper than any package manager nests.
const MAX_DEPTH: usize = 100;
/// More packages than any image has.
const MAX_PACKAGES: usize = 500_000;

/// What was found in an image.
#[derive(Debug, Clone, Default)]
pub struct Inventory {
    /// Which distribution it is of.
    pub distribution: Distribution,
    /// The packages, by their addresses.
    pub packages: Vec<Package>,
    /// What could not be read, for people.
    pub notes: Vec<String>,
}

/// Looks for packages in a tree. `go_on` is asked now and then whether to.
///
/// # Errors
/// Those of the file system, and what `go_on` says.
pub fn inventory<E: From<ViewError>>(view: &View, go_on: &dyn Fn() -> Result<(), E>) -> Result<Inventory, E> {
    let mut scan = Scan { view, packages: BTreeMap::new(), notes: Vec::new(), distribution: Distribution::default() };
    for path in ["etc/os-release", "usr/lib/os-release"] {
        if let Some(text) = scan.text(path)? {
            scan.distribution = Distribution::parse(&text);
            break;
        }
    }
    scan.dpkg()?;
    for path in ["lib/apk/db/installed", "usr/lib/apk/db/installed"] {
        if let Some(text) = scan.text(path)? {
            let found = apk::packages(&text, &format!("/{path}"), &scan.distribution);
            scan.add(found);
        }
    }
    for folder in ["usr/lib/sysimage/rpm", "var/lib/rpm", "usr/share/rpm"] {
        scan.rpm(folder)?;
    }
    scan.walk(go_on)?;
    let Scan { packages, mut notes, distribution, .. } = scan;
    let mut packages: Vec<Package> = packages.into_values().collect();
    if packages.len() > MAX_PACKAGES {
        notes.push(format!("there are {} packages, of which {MAX_PACKAGES} are listed", packages.len()));
        packages.truncate(MAX_PACKAGES);
    }
    Ok(Inventory { distribution, packages, notes })
}

struct Scan<'a> {
    view: &'a View,
    /// By address: what two lists name is one package.
    packages: BTreeMap<String, Package>,
    notes: Vec<String>,
    distribution: Distribution,
}

impl Scan<'_> {
    fn add(&mut self, found: Vec<Package>) {
        for package in found {
            // The first list that names it is a database, where there is one.
            self.packages.entry(package.purl.clone()).or_insert(package);
        }
    }

    /// The bytes of a file; `None` where there is none, or with a note where it can't be read.
    fn bytes(&mut self, path: &str, max: u64) -> Result<Option<Vec<u8>>, ViewError> {
        match self.view.read_file(&ImagePath::new(path), max) {
            Err(error @ (ViewError::TooLarge { .. } | ViewError::NotAFile(_) | ViewError::TooManyLinks(_))) => {
                self.notes.push(error.to_string());
                Ok(None)
            }
            other => other,
        }
    }

    fn text(&mut self, path: &str) -> Result<Option<String>, ViewError> {
        Ok(self.bytes(path, MAX_TEXT)?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// `status`, or one file for each package as distroless images have them.
    fn dpkg(&mut self) -> Result<(), ViewError> {
        let mut lists = Vec::new();
        if let Some(text) = self.text("var/lib/dpkg/status")? {
            lists.push(("/var/lib/dpkg/status".to_owned(), text));
        }
        let folder = self.view.resolve(&ImagePath::new("var/lib/dpkg/status.d"));
        if let Some(folder) = folder.ok().and_then(|found| found.node).filter(|node| node.kind() == Kind::Dir) {
            for node in folder.read_dir()? {
                let name = String::from_utf8_lossy(node.name()).into_owned();
                if node.kind() == Kind::File && !name.ends_with(".md5sums") {
                    let path = format!("var/lib/dpkg/status.d/{name}");
                    lists.extend(self.text(&path)?.map(|text| (format!("/{path}"), text)));
                }
            }
        }
        for (path, text) in lists {
            let mut found = dpkg::packages(&text, &path, &self.distribution);
            for package in &mut found {
                if !package.name.contains('/') {
                    let copyright = self.text(&format!("usr/share/doc/{}/copyright", package.name))?;
                    package.license = copyright.map(|text| dpkg::licenses(&text)).unwrap_or_default();
                }
            }
            self.add(found);
        }
        Ok(())
    }

    fn rpm(&mut self, folder: &str) -> Result<(), ViewError> {
        for name in rpm::FILES {
            let path = format!("{folder}/{name}");
            let Some(database) = self.bytes(&path, MAX_DATABASE)?.filter(|bytes| !bytes.is_empty()) else { continue };
            let log = match name {
                "rpmdb.sqlite" => self.bytes(&format!("{path}-wal"), MAX_DATABASE)?.unwrap_or_default(),
                _ => Vec::new(),
            };
            match rpm::packages(&database, &log, &format!("/{path}"), &self.distribution) {
                Ok(found) => self.add(found),
                Err(error) => self.notes.push(format!("cannot read /{path}: {error}")),
            }
        }
        Ok(())
    }

    /// Every folder, for what may lie anywhere.
    fn walk<E: From<ViewError>>(&mut self, go_on: &dyn Fn() -> Result<(), E>) -> Result<(), E> {
        let Some(root) = self.view.root()? else { return Ok(()) };
        let mut todo = vec![(String::new(), root)];
        while let Some((path, folder)) = todo.pop() {
            go_on()?;
            // Each folder on the way down is open, once a layer.
            if path.bytes().filter(|byte| *byte == b'/').count() > MAX_DEPTH {
                self.notes.push(format!("`/{path}` is more than {MAX_DEPTH} folders deep"));
                continue;
            }
            for node in folder.read_dir()? {
                // A name that is no text can't be one that is looked for, but a folder of that name may hold some.
                let name = String::from_utf8_lossy(node.name());
                let below = if path.is_empty() { name.into_owned() } else { format!("{path}/{name}") };
                match node.kind() {
                    // What a kernel shows there is no part of an image.
                    Kind::Dir if !matches!(below.as_str(), "proc" | "sys" | "dev") => todo.push((below, node)),
                    Kind::File => self.file(&below, &node)?,
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &str, node: &Node) -> Result<(), ViewError> {
        let meta = node.meta();
        if let Some(format) = Format::of(path) {
            if meta.size > MAX_TEXT {
                self.notes.push(format!("`/{path}` is larger than {MAX_TEXT} bytes"));
                return Ok(());
            }
            let mut bytes = vec![0; usize::try_from(meta.size).unwrap_or(0)];
            if node.open()?.read_exact_at(&mut bytes, 0).is_ok() {
                self.add(format.packages(&String::from_utf8_lossy(&bytes), &format!("/{path}")));
            }
        } else if [".jar", ".war", ".ear"].iter().any(|end| path.ends_with(end)) {
            let file = node.open()?;
            self.add(java::packages(&|at, length| piece(&file, meta.size, at, length), meta.size, &format!("/{path}")));
        } else if meta.mode & 0o111 != 0 && meta.size >= MIN_PROGRAM {
            let file = node.open()?;
            if let Some(list) = go::modules(&|at, length| piece(&file, meta.size, at, length)) {
                self.add(go::packages(&list, &format!("/{path}")));
            }
        }
        Ok(())
    }
}

/// A piece of a file, if it lies in it.
fn piece(file: &File, size: u64, at: u64, length: usize) -> Option<Vec<u8>> {
    if at.checked_add(length as u64)? > size {
        return None;
    }
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, at).ok()?;
    Some(bytes)
}
