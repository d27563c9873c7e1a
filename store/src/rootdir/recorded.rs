//! Hides what stands on disk where a process has a single user id: owners, devices and whatever else the kernel refuses to set
//! are written down beside what they belong to, and read back as if they had been set.
//!
//! Regular files and directories hold their records as extended attributes, so that an overlay's copy-up takes them along;
//! the others, and all on a file system without attributes, have them in a [`Table`] beside the tree.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid, XattrFlags};
use rustix::io::Errno;

use super::table::Table;
use super::{Attrs, FsError, Kind, Meta, Result, RootDir, SET_XATTR, Xattrs, acl, grow, xattr_error};
use crate::layer::xattr::{ACCESS_ACL, CAPABILITY, DEFAULT_ACL, RESERVED};
use crate::owner::{NODE_ATTRIBUTE, OWNER_ATTRIBUTE, Owner, Ownership};

const OWNER: &[u8] = OWNER_ATTRIBUTE.as_bytes();
const NODE: &[u8] = NODE_ATTRIBUTE.as_bytes();

/// Attributes that may be refused to a process without privileges, and what they are recorded as then.
const REFUSABLE: [(&[u8], &[u8]); 3] =
    [(CAPABILITY, b"user.kiln.capability"), (ACCESS_ACL, b"user.kiln.acl_access"), (DEFAULT_ACL, b"user.kiln.acl_default")];

/// Who has a file on disk whose owner is beyond the ids of the user namespace: only such a one is asked for its record.
const NOBODY: u32 = 65_534;

const READ: &str = "read the recorded owner of";
const WRITE: &str = "record the owner of";

/// The records of a directory: those of its tree, and where in the tree it is.
#[derive(Debug, Clone)]
pub(super) struct Records {
    owners: Ownership,
    table: Arc<Table>,
    /// Relative to the root of the tree.
    path: Vec<u8>,
}

impl Records {
    pub(super) fn beside(tree: &Path, owners: Ownership) -> Self {
        Self { owners, table: Arc::new(Table::new(crate::layout::owners_beside(tree))), path: Vec::new() }
    }

    /// Those of the directory at `relative`, one name or several with slashes.
    pub(super) fn below(&self, relative: &[u8]) -> Self {
        Self { owners: self.owners, table: self.table.clone(), path: self.key(relative) }
    }

    pub(super) fn above(&self) -> Self {
        let end = self.path.iter().rposition(|b| *b == b'/').unwrap_or(0);
        Self { owners: self.owners, table: self.table.clone(), path: self.path[..end].to_vec() }
    }

    /// The path of `name` in the table; an empty name is the directory itself.
    fn key(&self, name: &[u8]) -> Vec<u8> {
        match (self.path.is_empty(), name.is_empty()) {
            (true, _) => name.to_vec(),
            (_, true) => self.path.clone(),
            _ => [&self.path[..], b"/", name].concat(),
        }
    }
}

/// A file to ask or change: by a descriptor, or by its name in a directory. An empty name is the directory's.
#[derive(Clone, Copy)]
pub(super) struct At<'a> {
    pub(super) fd: Option<BorrowedFd<'a>>,
    pub(super) name: &'a [u8],
    /// What it is on disk.
    pub(super) kind: Kind,
}

impl At<'_> {
    /// Whether it can hold `user.*` attributes (xattr(7)).
    fn holds(&self) -> bool {
        matches!(self.kind, Kind::File | Kind::Dir)
    }
}

impl RootDir {
    /// What `meta`, as it is on disk, is to the image.
    pub(super) fn recorded_meta(&self, records: &Records, at: At<'_>, mut meta: Meta) -> Result<Meta> {
        if records.owners == Ownership::Recorded {
            (meta.uid, meta.gid) = (0, 0);
        }
        if records.owners == Ownership::Recorded || (meta.uid, meta.gid) == (NOBODY, NOBODY) {
            let owner = self.record(records, at, OWNER)?;
            if let Some((owner, mode)) = owner.as_deref().and_then(Owner::from_record) {
                (meta.uid, meta.gid) = (owner.uid, owner.gid);
                meta.mode = mode.unwrap_or(meta.mode);
            }
        }
        if meta.kind == Kind::File
            && meta.size == 0
            && let Some((kind, rdev)) = self.record(records, at, NODE)?.as_deref().and_then(parse_node)
        {
            (meta.kind, meta.rdev) = (kind, rdev);
        }
        Ok(meta)
    }

    /// Whether an owner is written down for `name`: also that of 0:0, which is what a command's `chown` leaves.
    pub(crate) fn has_record(&self, name: &[u8], kind: Kind) -> Result<bool> {
        match &self.records {
            Some(records) => Ok(self.record(records, At { fd: None, name, kind: on_disk(kind) }, OWNER)?.is_some()),
            None => Ok(false),
        }
    }

    /// Writes down that `name` is `owner`'s and nothing else.
    pub(crate) fn set_owner(&self, name: &[u8], kind: Kind, owner: Owner) -> Result<()> {
        let Some(records) = &self.records else { return Ok(()) };
        let at = At { fd: None, name, kind: on_disk(kind) };
        let mode = self.record(records, at, OWNER)?.as_deref().and_then(Owner::from_record).and_then(|(_, mode)| mode);
        self.put_record(records, at, OWNER, owner.to_record(mode).as_deref())
    }

    /// The paths in this tree, of which this is the root, that have records in no attribute.
    pub(crate) fn recorded_paths(&self) -> Result<Vec<Vec<u8>>> {
        let Some(Records { table, .. }) = &self.records else { return Ok(Vec::new()) };
        table.paths().map_err(|e| self.error(READ, b"", e))
    }

    /// Writes the records that are in no attribute. Those who write into a tree call it before they leave.
    pub(crate) fn save_records(&self) -> Result<()> {
        let Some(Records { table, .. }) = &self.records else { return Ok(()) };
        table.save().map_err(|source| FsError { operation: "write the owners", path: table.file().to_owned(), source })
    }

    /// Creates an empty file that stands for a device.
    pub(super) fn stand_in(&self, records: &Records, name: &[u8], kind: Kind, rdev: (u32, u32)) -> Result<()> {
        let file = self.create_file(name)?;
        let letter = if kind == Kind::Block { 'b' } else { 'c' };
        let at = At { fd: Some(file.as_fd()), name, kind: Kind::File };
        self.put_record(records, at, NODE, Some(format!("{letter} {}:{}", rdev.0, rdev.1).as_bytes()))
    }

    /// Sets what can be set and records the rest, in the order in which the parts don't undo one another.
    pub(super) fn record_attrs(&self, records: &Records, at: At<'_>, attrs: &Attrs) -> Result<()> {
        let (owner, wanted) = (Owner { uid: attrs.uid, gid: attrs.gid }, attrs.mode & 0o7777);
        // Who isn't root, be it in a namespace of its own must leave itself the right to read what it wrote.
        let needed = match at.kind {
            _ if rustix::process::geteuid().is_root() => 0,
            Kind::Dir => 0o700,
            Kind::File => 0o600,
            _ => 0,
        };
        let mode = wanted | needed;
        let other = (mode != wanted).then_some(wanted);
        match records.owners {
            Ownership::Recorded => self.put_record(records, at, OWNER, owner.to_record(other).as_deref())?,
            Ownership::Mapped | Ownership::Real => self.give(records, at, owner)?,
        }
        for (key, value) in attrs.xattrs.iter().filter(|(key, _)| !key.starts_with(RESERVED)) {
            let refusable = REFUSABLE.iter().find(|(real, _)| real == key);
            match (self.set_raw(at, key, value), refusable) {
                (Ok(()), Some((_, recorded))) => self.put_record(records, at, recorded, None)?,
                (Ok(()), None) => {}
                (Err(Errno::NOTSUP), _) if *key != ACCESS_ACL && *key != DEFAULT_ACL => {
                    self.put_table(records, at, key, Some(value))?
                }
                (Err(Errno::PERM), Some((_, recorded))) if *key == CAPABILITY => {
                    self.put_record(records, at, recorded, Some(value))?
                }
                (Err(Errno::PERM | Errno::INVAL), Some((_, recorded))) if *key != CAPABILITY && acl::is_valid(value) => {
                    let kept = acl::after_chmod(value, wanted, *key == ACCESS_ACL);
                    self.put_record(records, at, recorded, kept.as_deref())?;
                }
                (Err(e), _) => return Err(self.error(SET_XATTR, at.name, xattr_error(e))),
            }
        }
        if at.kind != Kind::Symlink {
            self.chmod(at, mode).map_err(|e| self.error("change the mode of", at.name, e))?;
            // Set-group-id is lost in silence where the group on disk isn't the process's own (chmod(2)).
            if records.owners == Ownership::Recorded
                && wanted & 0o6000 != 0
                && self.mode_of(at).map_err(|e| self.error("stat", at.name, e))? != mode
            {
                self.put_record(records, at, OWNER, Some(owner.record_with(wanted).as_bytes()))?;
            }
        }
        let Some(times) = attrs.mtime.map(|mtime| mtime.both()) else { return Ok(()) };
        match at.fd {
            Some(fd) => rustix::fs::futimens(fd, &times),
            None => rustix::fs::utimensat(&self.fd, at.name, &times, AtFlags::SYMLINK_NOFOLLOW),
        }
        .map_err(|e| self.error("set the time of", at.name, e))
    }

    /// The attributes `all`, as they are on disk, without the records and with what was recorded of others.
    pub(super) fn recorded_xattrs(&self, records: &Records, name: &[u8], mut all: Xattrs) -> Result<Xattrs> {
        let table = records.table.row(&records.key(name)).map_err(|e| self.error(READ, name, e))?;
        for (key, value) in table {
            all.entry(key).or_insert(value);
        }
        for (real, recorded) in REFUSABLE {
            if let Some(value) = all.remove(recorded) {
                all.entry(real.to_vec()).or_insert(value);
            }
        }
        all.retain(|key, _| !key.starts_with(RESERVED));
        Ok(all)
    }

    /// Gives `to_name` in `to` the records that `name` has in the table, for one more name of the same file.
    pub(super) fn link_records(&self, name: &[u8], to: &RootDir, to_name: &[u8]) -> Result<()> {
        let Some(there) = &to.records else { return Ok(()) };
        let row = match &self.records {
            Some(here) => here.table.row(&here.key(name)).map_err(|e| self.error(READ, name, e))?,
            None => Xattrs::new(),
        };
        there.table.replace(&there.key(to_name), row).map_err(|e| to.error(WRITE, to_name, e))
    }

    /// Moves the records of `name` and of all below it to `to_name` in `to`.
    pub(super) fn move_records(&self, name: &[u8], to: &RootDir, to_name: &[u8]) -> Result<()> {
        let taken = match &self.records {
            Some(here) => here.table.take(&here.key(name)).map_err(|e| self.error(WRITE, name, e))?,
            None => Vec::new(),
        };
        let Some(there) = &to.records else { return Ok(()) };
        there.table.take(&there.key(to_name)).map_err(|e| to.error(WRITE, to_name, e))?;
        for (rest, row) in taken {
            let path = [there.key(to_name), rest].concat();
            there.table.replace(&path, row).map_err(|e| to.error(WRITE, to_name, e))?;
        }
        Ok(())
    }

    /// Forgets the records of `name` and of all below it, which is removed.
    pub(super) fn drop_records(&self, name: &[u8]) -> Result<()> {
        let Some(records) = &self.records else { return Ok(()) };
        records.table.take(&records.key(name)).map(drop).map_err(|e| self.error(WRITE, name, e))
    }

    fn record(&self, records: &Records, at: At<'_>, key: &[u8]) -> Result<Option<Vec<u8>>> {
        if at.holds() {
            match self.get_raw(at, key) {
                Ok(value) => return Ok(Some(value)),
                Err(Errno::NODATA | Errno::NOTSUP) => {}
                Err(e) => return Err(self.error(READ, at.name, e)),
            }
        }
        records.table.get(&records.key(at.name), key).map_err(|e| self.error(READ, at.name, e))
    }

    fn put_record(&self, records: &Records, at: At<'_>, key: &[u8], value: Option<&[u8]>) -> Result<()> {
        if at.holds() {
            let done = match value {
                Some(value) => self.set_raw(at, key, value),
                None => self.remove_raw(at, key),
            };
            match done {
                Ok(()) => return self.put_table(records, at, key, None),
                Err(Errno::NODATA) if value.is_none() => {}
                Err(Errno::NOTSUP) => {}
                Err(e) => return Err(self.error(WRITE, at.name, xattr_error(e))),
            }
        }
        self.put_table(records, at, key, value)
    }

    fn put_table(&self, records: &Records, at: At<'_>, key: &[u8], value: Option<&[u8]>) -> Result<()> {
        records.table.set(&records.key(at.name), key, value).map_err(|e| self.error(WRITE, at.name, e))
    }

    fn get_raw(&self, at: At<'_>, key: &[u8]) -> rustix::io::Result<Vec<u8>> {
        self.on(
            at,
            |fd| grow(|buffer| rustix::fs::fgetxattr(fd, key, buffer)),
            |path| grow(|buffer| rustix::fs::lgetxattr(path, key, buffer)),
        )
    }

    fn set_raw(&self, at: At<'_>, key: &[u8], value: &[u8]) -> rustix::io::Result<()> {
        let flags = XattrFlags::empty();
        self.on(at, |fd| rustix::fs::fsetxattr(fd, key, value, flags), |path| rustix::fs::lsetxattr(path, key, value, flags))
    }

    fn remove_raw(&self, at: At<'_>, key: &[u8]) -> rustix::io::Result<()> {
        self.on(at, |fd| rustix::fs::fremovexattr(fd, key), |path| rustix::fs::lremovexattr(path, key))
    }

    /// By the descriptor if there is one, by the path below `/proc` else; where there is no `/proc`, by a descriptor again.
    fn on<T>(
        &self,
        at: At<'_>,
        by_fd: impl Fn(BorrowedFd<'_>) -> rustix::io::Result<T>,
        by_path: impl Fn(&[u8]) -> rustix::io::Result<T>,
    ) -> rustix::io::Result<T> {
        if let Some(fd) = at.fd {
            return by_fd(fd);
        }
        match by_path(&self.proc_path(at.name)) {
            Err(Errno::NOENT) if at.holds() => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
                by_fd(rustix::fs::openat(&self.fd, at.name, flags, Mode::empty())?.as_fd())
            }
            done => done,
        }
    }

    /// Changes the owner, or writes it down where the user namespace has no such id.
    fn give(&self, records: &Records, at: At<'_>, owner: Owner) -> Result<()> {
        let nobody = Owner { uid: NOBODY, gid: NOBODY };
        let refused = match self.chown(at, owner) {
            Ok(()) if owner == nobody => return self.put_record(records, at, OWNER, None),
            Ok(()) => return Ok(()),
            Err(e) => e,
        };
        if refused != Errno::INVAL || self.chown(at, nobody).is_err() {
            return Err(self.error("change the owner of", at.name, refused));
        }
        self.put_record(records, at, OWNER, owner.to_record(None).as_deref())
    }

    fn chown(&self, at: At<'_>, owner: Owner) -> rustix::io::Result<()> {
        let (uid, gid) = (Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)));
        match at.fd {
            Some(fd) => rustix::fs::fchown(fd, uid, gid),
            None => rustix::fs::chownat(&self.fd, at.name, uid, gid, AtFlags::SYMLINK_NOFOLLOW),
        }
    }

    fn chmod(&self, at: At<'_>, mode: u32) -> rustix::io::Result<()> {
        let mode = Mode::from_raw_mode(mode);
        match at.fd {
            Some(fd) => rustix::fs::fchmod(fd, mode),
            None => rustix::fs::chmodat(&self.fd, at.name, mode, AtFlags::empty()),
        }
    }

    fn mode_of(&self, at: At<'_>) -> rustix::io::Result<u32> {
        let stat = match at.fd {
            Some(fd) => rustix::fs::fstat(fd)?,
            None => rustix::fs::statat(&self.fd, at.name, AtFlags::SYMLINK_NOFOLLOW)?,
        };
        Ok(Meta::from(&stat).mode)
    }
}

/// What stands for a file of this kind.
pub(super) fn on_disk(kind: Kind) -> Kind {
    match kind {
        Kind::Char | Kind::Block => Kind::File,
        kind => kind,
    }
}

fn parse_node(record: &[u8]) -> Option<(Kind, (u32, u32))> {
    let (letter, numbers) = std::str::from_utf8(record).ok()?.split_once(' ')?;
    let kind = match letter {
        "c" => Kind::Char,
        "b" => Kind::Block,
        _ => return None,
    };
    let (major, minor) = numbers.split_once(':')?;
    Some((kind, (major.parse().ok()?, minor.parse().ok()?)))
}
