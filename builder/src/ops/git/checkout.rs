//! Hides how a commit becomes a folder: the least that a server gives, and then the same modes and times whoever checks out.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use kiln_store::rootdir::{FsError, Kind, RootDir};
use kiln_store::{Prepared, Store};
use rustix::fs::{AtFlags, Mode, Timespec, Timestamps};

use super::GitError;
use super::address::{GitAddress, Wanted};
use super::command::Git;

/// A commit that an address stands for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Its whole id.
    pub(super) commit: String,
    /// The full name of the reference that led there, if one did.
    pub(super) reference: Option<String>,
    /// The id of the annotated tag that led there.
    pub(super) tag: Option<String>,
}

/// The files of a commit, in a private folder that is gone when the value is.
#[derive(Debug)]
pub struct Checkout {
    folder: PathBuf,
    /// When the commit was made, in seconds since 1970.
    pub(crate) time: i64,
    _draft: Prepared,
}

impl Checkout {
    /// Where the files are; no part of the path below the repository's root is a symbolic link.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

/// An empty folder for a repository, and one that git takes for its home.
pub(super) fn draft(store: &Store) -> Result<Prepared, GitError> {
    Ok(store.layers().prepare(None)?)
}

/// Asks the server which commit is meant.
pub(super) fn find(git: &Git<'_>) -> Result<Found, GitError> {
    let address = git.address;
    let patterns = match &address.reference {
        Wanted::Commit(commit) => return checked(address, Found { commit: commit.clone(), ..Found::default() }),
        Wanted::Head => vec!["HEAD".to_owned()],
        Wanted::Name(name) | Wanted::Branch(name) | Wanted::Tag(name) => vec![name.clone(), format!("{name}^{{}}")],
    };
    let mut args = vec!["ls-remote".to_owned(), "--".to_owned(), address.remote.clone()];
    args.extend(patterns);
    let listed = git.run("read the references of", git.home, &args)?;
    let listed = String::from_utf8_lossy(&listed).into_owned();
    let rows: Vec<(&str, &str)> = listed.lines().filter_map(|line| line.split_once('\t')).collect();
    match choose(&address.reference, &rows) {
        Some((commit, reference)) if is_id(commit) => {
            let own = rows.iter().find(|(id, name)| *name == reference && *id != commit);
            let tag = own.map(|(id, _)| (*id).to_owned());
            checked(address, Found { commit: commit.to_owned(), reference: Some(reference.to_owned()), tag })
        }
        _ => Err(GitError::NoReference { url: address.shown().to_owned(), wanted: address.reference.to_string() }),
    }
}

/// The commit that is known already to be meant.
pub(super) fn at(address: &GitAddress, commit: &str) -> Result<Found, GitError> {
    checked(address, Found { commit: commit.to_owned(), ..Found::default() })
}

fn is_id(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Branches come before tags, as in BuildKit; of an annotated tag the commit counts and not the tag.
fn choose<'r>(wanted: &Wanted, rows: &[(&'r str, &'r str)]) -> Option<(&'r str, &'r str)> {
    let row = |name: &str| rows.iter().find(|(_, reference)| *reference == name).copied();
    let branch = |name: &str| row(&format!("refs/heads/{}", name.strip_prefix("refs/heads/").unwrap_or(name)));
    let tag = |name: &str| {
        let full = format!("refs/tags/{}", name.strip_prefix("refs/tags/").unwrap_or(name));
        let (id, reference) = row(&full)?;
        Some((row(&format!("{full}^{{}}")).map_or(id, |(commit, _)| commit), reference))
    };
    match wanted {
        Wanted::Head => row("HEAD"),
        Wanted::Branch(name) => branch(name),
        Wanted::Tag(name) => tag(name),
        Wanted::Name(name) if name.starts_with("refs/tags/") => tag(name),
        Wanted::Name(name) if name.starts_with("refs/") => row(name),
        Wanted::Name(name) => branch(name).or_else(|| tag(name)).or_else(|| row(&format!("refs/{name}"))).or_else(|| row(name)),
        Wanted::Commit(_) => None,
    }
}

fn checked(address: &GitAddress, found: Found) -> Result<Found, GitError> {
    match &address.checksum {
        // BuildKit has compared with the tag alone, and later with both.
        Some(expected) if ![Some(&found.commit), found.tag.as_ref()].iter().flatten().any(|id| id.starts_with(expected)) => {
            Err(GitError::Checksum { url: address.shown().to_owned(), expected: expected.clone(), actual: found.commit })
        }
        _ => Ok(found),
    }
}

/// Fetches the commit and makes a folder of it in `draft`.
pub(super) fn check_out(git: &Git<'_>, found: &Found, keep_git_dir: bool, draft: Prepared) -> Result<Checkout, GitError> {
    let folder = draft.upper.clone();
    git.run("make", &folder, &["init", "-q", "--template=", "."])?;
    // Submodules with relative addresses count from it.
    git.run("set up", &folder, &["config", "remote.origin.url", &git.address.remote])?;
    git.run("set up", &folder, &["config", "remote.origin.fetch", "+refs/heads/*:refs/remotes/origin/*"])?;
    fetch(git, found, &folder)?;
    git.run("check out", &folder, &["checkout", "-q", "--force", "--detach", &found.commit])?;
    if git.address.submodules && folder.join(".gitmodules").symlink_metadata().is_ok() {
        submodules(git, &folder)?;
    }
    let time = git.run("read the time of", &folder, &["log", "-1", "--format=%ct", &found.commit])?;
    let time = String::from_utf8_lossy(&time).trim().parse().unwrap_or(0);
    let root = RootDir::open(&folder)?;
    if keep_git_dir {
        // Its index would tell of the files of this machine.
        git.run("set up", &folder, &["read-tree", "HEAD"])?;
        forget(&root.child(b".git")?)?;
    }
    even(&root, time, keep_git_dir)?;
    stamp(&root, b".", Some(0o755), time)?;
    let folder = below(&root, &folder, git.address)?;
    Ok(Checkout { folder, time, _draft: draft })
}

fn fetch(git: &Git<'_>, found: &Found, folder: &Path) -> Result<(), GitError> {
    let remote = git.address.remote.as_str();
    let wanted = match &found.reference {
        Some(name) if name.starts_with("refs/tags/") => format!("+{name}:{name}"),
        Some(name) if name.starts_with("refs/heads/") => {
            format!("+{name}:{}", name.replacen("refs/heads/", "refs/remotes/origin/", 1))
        }
        Some(name) => name.clone(),
        None => found.commit.clone(),
    };
    let commit = format!("{}^{{commit}}", found.commit);
    let arrived = || git.run("look into", folder, &["cat-file", "-e", &commit]);
    let plain = ["fetch", "-q", "--progress", "--no-tags", "--no-recurse-submodules", "--no-auto-gc"];
    let shallow = [&plain[..], &["--depth=1", "--", remote, &wanted]].concat();
    // Some servers know nothing of depths, or give no commit by its id; and a branch may have moved since it was asked for.
    let first = match git.run("fetch from", folder, &shallow).and_then(|_| arrived()) {
        Ok(_) => return Ok(()),
        Err(error @ (GitError::Interrupted | GitError::NoGit { .. })) => return Err(error),
        Err(error) => error,
    };
    let whole = [&plain[..], &["--", remote, "+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*"]].concat();
    match git.run("fetch from", folder, &whole) {
        Err(GitError::Interrupted) => return Err(GitError::Interrupted),
        Err(_) => return Err(first),
        Ok(_) => {}
    }
    if arrived().is_err() {
        let all = [&plain[..], &["--", remote, "+refs/*:refs/remotes/all/*"]].concat();
        git.run("fetch from", folder, &all)?;
        let missing = |_| GitError::NoReference { url: git.address.shown().to_owned(), wanted: found.commit.clone() };
        arrived().map_err(missing)?;
    }
    Ok(())
}

/// Whatever the address is, a submodule is never taken from this machine's files.
fn submodules(git: &Git<'_>, folder: &Path) -> Result<(), GitError> {
    let never = ["protocol.file.allow=never"];
    let update = ["submodule", "-q", "update", "--init", "--recursive"];
    let shallow = [&update[..], &["--depth=1"]].concat();
    let operation = "fetch the submodules of";
    match git.run_with(operation, folder, &never, &shallow) {
        Err(GitError::Failed { .. }) => git.run_with(operation, folder, &never, &update).map(drop),
        outcome => outcome.map(drop),
    }
}

/// Takes away what git's folder, and those of submodules in it, say of when and how the files were fetched.
fn forget(dir: &RootDir) -> Result<(), GitError> {
    let is_repository = dir.stat(b"objects")?.is_some();
    if is_repository {
        for name in [b"logs".as_slice(), b"FETCH_HEAD"] {
            if dir.stat(name)?.is_some() {
                dir.remove_all(name)?;
            }
        }
    }
    for name in dir.names()? {
        let is_dir = dir.stat(&name)?.is_some_and(|meta| meta.kind == Kind::Dir);
        if is_dir && (!is_repository || name == b"modules") {
            forget(&dir.child(&name)?)?;
        }
    }
    Ok(())
}

/// Gives all files below `dir` modes that depend on no umask, and the time of the commit; takes git's own files away.
fn even(dir: &RootDir, time: i64, keep_git_dir: bool) -> Result<(), GitError> {
    for name in dir.names()? {
        if name == b".git" && !keep_git_dir {
            dir.remove_all(&name)?;
            continue;
        }
        let Some(meta) = dir.stat(&name)? else { continue };
        let mode = match meta.kind {
            Kind::Dir => {
                even(&dir.child(&name)?, time, keep_git_dir)?;
                Some(0o755)
            }
            Kind::File if meta.mode & 0o100 != 0 => Some(0o755),
            // git's own objects.
            Kind::File if meta.mode & 0o200 == 0 => Some(0o444),
            Kind::File => Some(0o644),
            _ => None,
        };
        stamp(dir, &name, mode, time)?;
    }
    Ok(())
}

fn stamp(dir: &RootDir, name: &[u8], mode: Option<u32>, time: i64) -> Result<(), FsError> {
    let fail = |errno: rustix::io::Errno| dir.error("set the attributes of", name, errno);
    if let Some(mode) = mode {
        rustix::fs::chmodat(dir.as_fd(), name, Mode::from_raw_mode(mode), AtFlags::empty()).map_err(fail)?;
    }
    let at = Timespec { tv_sec: time, tv_nsec: 0 };
    let times = Timestamps { last_access: at, last_modification: at };
    rustix::fs::utimensat(dir.as_fd(), name, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(fail)
}

/// The folder that the address names, through no symbolic link (CVE-2026-33748).
fn below(root: &RootDir, folder: &Path, address: &GitAddress) -> Result<PathBuf, GitError> {
    let mut dir = root.try_clone()?;
    let mut path = folder.to_owned();
    for name in &address.subdir {
        let fail = |reason| GitError::Subdir { url: address.shown().to_owned(), subdir: address.subdir.join("/"), reason };
        match dir.stat(name.as_bytes())?.map(|meta| meta.kind) {
            Some(Kind::Dir) => dir = dir.child(name.as_bytes())?,
            Some(Kind::Symlink) => return Err(fail("a part of it is a symbolic link")),
            Some(_) => return Err(fail("it is not a directory")),
            None => return Err(fail("it is not in the repository")),
        }
        path.push(name);
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references() {
        let rows = [
            ("a", "HEAD"),
            ("b", "refs/heads/main"),
            ("c", "refs/heads/x/main"),
            ("d", "refs/tags/main"),
            ("e", "refs/tags/v1"),
            ("f", "refs/tags/v1^{}"),
            ("g", "refs/pull/1/head"),
        ];
        let name = |text: &str| Wanted::Name(text.to_owned());
        let table = [
            (Wanted::Head, Some("a")),
            (name("main"), Some("b")),
            (Wanted::Tag("main".into()), Some("d")),
            (Wanted::Branch("v1".into()), None),
            (name("v1"), Some("f")),
            (name("refs/tags/v1"), Some("f")),
            (name("x/main"), Some("c")),
            (name("refs/heads/x/main"), Some("c")),
            (name("pull/1/head"), Some("g")),
            (name("refs/pull/1/head"), Some("g")),
            (name("nope"), None),
        ];
        for (wanted, want) in table {
            assert_eq!(choose(&wanted, &rows).map(|(id, _)| id), want, "{wanted:?}");
        }
    }
}
