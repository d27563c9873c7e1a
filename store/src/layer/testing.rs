//! What the tests of layers share: trees told as text, scripts run on real overlays.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::rootdir::{Kind, RootDir};
use crate::view::{Node, View};

/// One line a path; hard links are told by the first name of their group.
pub(crate) type Told = BTreeMap<String, String>;

/// Tells a tree as an observer sees it through `view`.
pub(crate) fn tell(view: &View, with_times: bool) -> Told {
    let mut told = Told::new();
    let mut groups = HashMap::new();
    if let Some(root) = view.root().unwrap() {
        tell_node(&root, String::from("/"), with_times, &mut told, &mut groups);
    }
    told
}

fn tell_node(node: &Node, path: String, times: bool, told: &mut Told, groups: &mut HashMap<(u64, u64), String>) {
    let meta = node.meta();
    let mut line = format!("{:?} {:o} {}:{}", meta.kind, meta.mode, meta.uid, meta.gid);
    match meta.kind {
        Kind::File => {
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut node.open().unwrap(), &mut content).unwrap();
            line += &format!(" {} {}", content.len(), blake3::hash(&content).to_hex().split_at(8).0);
        }
        Kind::Symlink => line += &format!(" -> {}", node.read_link().unwrap().escape_ascii()),
        Kind::Char | Kind::Block => line += &format!(" {:?}", meta.rdev),
        _ => {}
    }
    if times && path != "/" {
        line += &format!(" @{}", meta.mtime.secs);
    }
    for (key, value) in node.xattrs().unwrap() {
        line += &format!(" {}={}", key.escape_ascii(), value.escape_ascii());
    }
    if meta.kind != Kind::Dir && meta.nlink > 1 {
        let first = groups.entry((meta.dev, meta.ino)).or_insert_with(|| path.clone());
        line += &format!(" ={first}");
    }
    told.insert(path.clone(), line);
    if meta.kind == Kind::Dir {
        for child in node.read_dir().unwrap() {
            let slash = if path == "/" { "" } else { "/" };
            let below = format!("{path}{slash}{}", child.name().escape_ascii());
            tell_node(&child, below, times, told, groups);
        }
    }
}

pub(crate) fn plain(path: &Path) -> View {
    View::plain(RootDir::open(path).unwrap())
}

/// Runs a shell script in `dir`, with an umask that no mode may depend on.
pub(crate) fn sh(dir: &Path, script: &str) {
    let status = Command::new("sh").args(["-euc", &format!("umask 022\n{script}")]).current_dir(dir).status().unwrap();
    assert!(status.success(), "{script}");
}

/// An overlay that is unmounted when the test ends, however it ends.
pub(crate) struct Overlay {
    pub(crate) at: PathBuf,
}

impl Overlay {
    pub(crate) fn mount(lowers: &[&Path], upper: &Path, work: &Path, at: &Path) -> Self {
        Self::mount_with("redirect_dir=off,metacopy=off,index=off", lowers, upper, work, at)
    }

    pub(crate) fn mount_with(options: &str, lowers: &[&Path], upper: &Path, work: &Path, at: &Path) -> Self {
        let lowers: Vec<_> = lowers.iter().map(|p| p.to_str().unwrap()).collect();
        let options = format!("{options},lowerdir={},upperdir={},workdir={}", lowers.join(":"), upper.display(), work.display());
        let options = std::ffi::CString::new(options).unwrap();
        rustix::mount::mount("overlay", at, "overlay", rustix::mount::MountFlags::empty(), options.as_c_str()).unwrap();
        Self { at: at.to_owned() }
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.at, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

/// Whether this test can mount; says so if not.
pub(crate) fn can_mount(test: &str) -> bool {
    let can = rustix::process::geteuid().is_root();
    if !can {
        println!("skipped: {test} needs root to mount an overlay");
    }
    can
}

/// Fresh directories below one temporary directory.
pub(crate) struct Dirs {
    pub(crate) temp: tempfile::TempDir,
}

impl Dirs {
    pub(crate) fn new() -> Self {
        Self { temp: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn make(&self, name: &str) -> PathBuf {
        let path = self.temp.path().join(name);
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        path
    }
}
