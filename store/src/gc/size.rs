//! Hides how the disk space of a tree is counted.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// `stat(2)`, "st_blocks": whatever the block size of the file system is.
const UNIT: u64 = 512;

/// The disk space of one file, in bytes.
pub(super) fn of_file(meta: &fs::Metadata) -> u64 {
    meta.blocks() * UNIT
}

/// The disk space of the file or tree at `path` in bytes; a file with several names counts once, and what vanishes
/// meanwhile not at all. Nothing at `path` is 0 bytes.
pub(crate) fn of_tree(path: &Path) -> Result<u64> {
    let name = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| Error::io("stat", path)(Errno::INVAL))?;
    walk(&name).map_err(|errno| Error::io("measure", path)(io::Error::from(errno)))
}

fn walk(top: &CStr) -> rustix::io::Result<u64> {
    let mut linked = HashSet::new();
    let mut total = 0;
    let mut count = |stat: &Stat| {
        if stat.st_nlink < 2 || linked.insert((stat.st_dev, stat.st_ino)) {
            total += u64::try_from(stat.st_blocks).unwrap_or(0) * UNIT;
        }
    };
    let first = match rustix::fs::statat(CWD, top, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(0),
        stat => stat?,
    };
    if FileType::from_raw_mode(first.st_mode) != FileType::Directory {
        count(&first);
        return Ok(total);
    }
    // A parent stays open only while folders in it are still to be visited: a tree that is merely deep needs few
    // descriptors, and no path is ever longer than one name.
    let mut todo: Vec<(Option<Rc<OwnedFd>>, CString)> = vec![(None, top.to_owned())];
    while let Some((parent, name)) = todo.pop() {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let at = parent.as_deref().map_or(CWD, AsFd::as_fd);
        let dir = match rustix::fs::openat(at, name.as_c_str(), flags, Mode::empty()) {
            Err(Errno::NOENT) => continue,
            // Only a process that is not root can't look into what it owns.
            Err(Errno::ACCESS) => {
                count(&rustix::fs::statat(at, name.as_c_str(), AtFlags::SYMLINK_NOFOLLOW)?);
                continue;
            }
            dir => Rc::new(dir?),
        };
        drop(parent);
        let own = rustix::fs::fstat(&*dir)?;
        total_dir(&own, &mut count);
        for item in Dir::read_from(&*dir)? {
            let item = item?;
            let name = item.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let stat = match rustix::fs::statat(&*dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT | Errno::ACCESS) => continue,
                stat => stat?,
            };
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                todo.push((Some(Rc::clone(&dir)), name.to_owned()));
            } else {
                count(&stat);
            }
        }
    }
    Ok(total)
}

/// A folder's link count is that of its subfolders, not of its names.
fn total_dir(stat: &Stat, count: &mut impl FnMut(&Stat)) {
    let mut stat = *stat;
    stat.st_nlink = 1;
    count(&stat);
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::of_tree;

    #[test]
    fn links_count_once_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        let empty = of_tree(&tree).unwrap();
        fs::write(tree.join("a"), vec![1; 100_000]).unwrap();
        let one = of_tree(&tree).unwrap();
        assert!(one >= empty + 100_000, "{one}");
        fs::hard_link(tree.join("a"), tree.join("b")).unwrap();
        std::os::unix::fs::symlink("/", tree.join("root")).unwrap();
        assert_eq!(of_tree(&tree).unwrap(), one);
        assert_eq!(of_tree(&dir.path().join("none")).unwrap(), 0);
    }

    #[test]
    fn sparse_files_take_what_they_take() {
        let dir = tempfile::tempdir().unwrap();
        fs::File::create(dir.path().join("sparse")).unwrap().set_len(1 << 40).unwrap();
        assert!(of_tree(dir.path()).unwrap() < 1 << 20);
    }
}
