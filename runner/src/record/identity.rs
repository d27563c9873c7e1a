//! Who a process takes itself for: hides the kernel's rules of how ids may change. Pure.

use rustix::io::Errno;

use crate::seccomp::{How, Kind, What};

/// The ids of users, or those of groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ids {
    pub(crate) real: u32,
    pub(crate) effective: u32,
    pub(crate) saved: u32,
    pub(crate) file_system: u32,
}

/// Who a process takes itself for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) user: Ids,
    pub(crate) group: Ids,
    pub(crate) groups: Vec<u32>,
    /// Whether it wants its capabilities when it is root no more, and whether it so has them.
    keeps: bool,
    kept: bool,
}

/// Most supplementary groups that the kernel takes.
const MOST_GROUPS: usize = 65_536;

impl Ids {
    const fn all(id: u32) -> Ids {
        Ids { real: id, effective: id, saved: id, file_system: id }
    }

    /// What the call makes of these ids; `None` in the arguments is -1, which keeps the present one.
    fn change(mut self, how: How, privileged: bool, ids: [Option<u32>; 3]) -> Result<Ids, Errno> {
        let Ids { real, effective, saved, .. } = self;
        let may = |id: Option<u32>, known: &[u32]| id.is_none_or(|id| privileged || known.contains(&id));
        match how {
            How::Plain => {
                let id = ids[0].ok_or(Errno::INVAL)?;
                if privileged {
                    return Ok(Ids::all(id));
                }
                if !may(ids[0], &[real, saved]) {
                    return Err(Errno::PERM);
                }
                self.effective = id;
            }
            How::Two => {
                if !may(ids[0], &[real, effective]) || !may(ids[1], &[real, effective, saved]) {
                    return Err(Errno::PERM);
                }
                self.real = ids[0].unwrap_or(real);
                self.effective = ids[1].unwrap_or(effective);
                if ids[0].is_some() || ids[1].is_some_and(|id| id != real) {
                    self.saved = self.effective;
                }
            }
            How::Three => {
                if !ids.iter().all(|id| may(*id, &[real, effective, saved])) {
                    return Err(Errno::PERM);
                }
                self.real = ids[0].unwrap_or(real);
                self.effective = ids[1].unwrap_or(effective);
                self.saved = ids[2].unwrap_or(saved);
            }
            How::FileSystem => {
                // Never fails; who wants to know asks once more.
                if let Some(id) = ids[0].filter(|_| may(ids[0], &[real, effective, saved, self.file_system])) {
                    self.file_system = id;
                }
                return Ok(self);
            }
        }
        self.file_system = self.effective;
        Ok(self)
    }
}

impl Identity {
    /// A process that has changed nothing yet.
    pub(crate) fn new(uid: u32, gid: u32, groups: Vec<u32>) -> Identity {
        let mut identity = Identity { user: Ids::all(uid), group: Ids::all(gid), groups, keeps: false, kept: false };
        identity.groups.sort_unstable();
        identity
    }

    /// After `setuid` and its like, and what the call comes back with.
    pub(crate) fn with(&self, kind: Kind, how: How, ids: [Option<u32>; 3]) -> Result<(Identity, i64), Errno> {
        let privileged = self.is_privileged();
        let mut next = self.clone();
        let slot = if kind == Kind::User { &mut next.user } else { &mut next.group };
        let before = slot.file_system;
        *slot = slot.change(how, privileged, ids)?;
        next.kept = self.kept || (self.keeps && self.user.effective == 0 && next.user.effective != 0);
        Ok((next, if how == How::FileSystem { before.into() } else { 0 }))
    }

    /// After `setgroups`.
    pub(crate) fn with_groups(&self, mut groups: Vec<u32>) -> Result<Identity, Errno> {
        if !self.is_privileged() {
            return Err(Errno::PERM);
        }
        if groups.len() > MOST_GROUPS {
            return Err(Errno::INVAL);
        }
        // The kernel keeps them sorted.
        groups.sort_unstable();
        Ok(Identity { groups, ..self.clone() })
    }

    /// What `getuid` and its like tell, in the order of the arguments.
    pub(crate) fn get(&self, kind: Kind, what: What) -> Vec<u32> {
        let ids = if kind == Kind::User { self.user } else { self.group };
        match what {
            What::Real => vec![ids.real],
            What::Effective => vec![ids.effective],
            What::Three => vec![ids.real, ids.effective, ids.saved],
        }
    }

    /// After `prctl` said whether capabilities are to be kept. `setpriv` does so, for it changes its user before its groups.
    pub(crate) fn with_keeping(&self, keeps: bool) -> Identity {
        Identity { keeps, ..self.clone() }
    }

    /// Whether it may change its ids to any.
    fn is_privileged(&self) -> bool {
        self.user.effective == 0 || self.kept
    }

    /// May it change the owner of a file of `present` to these?
    pub(crate) fn may_give(&self, present: (u32, u32), uid: Option<u32>, gid: Option<u32>) -> bool {
        let own = self.user.file_system == present.0;
        let in_group = |gid: u32| gid == present.1 || gid == self.group.file_system || self.groups.contains(&gid);
        self.is_root()
            || (uid.is_none() && gid.is_none())
            || (own && uid.is_none_or(|uid| uid == present.0) && gid.is_none_or(in_group))
    }

    /// Whether it has the rights of root where files are concerned.
    pub(crate) fn is_root(&self) -> bool {
        self.user.file_system == 0
    }

    /// Whom a file belongs to that it makes.
    pub(crate) fn owner(&self) -> (u32, u32) {
        (self.user.file_system, self.group.file_system)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Kind::{Group, User};

    const N: Option<u32> = None;
    const PERM: &str = "Err(PERM)";

    /// Calls one after the other, and what is known of the users and the groups after each.
    #[test]
    fn changes() {
        type Row = (&'static str, Kind, How, [Option<u32>; 3], &'static str);
        let plain = How::Plain;
        let rows: &[&[Row]] = &[
            &[
                ("root gives everything up", User, plain, [Some(42), N, N], "42 42 42 42"),
                ("and can't come back", User, plain, [Some(0), N, N], PERM),
                ("nor", User, How::Three, [Some(0), Some(0), Some(0)], PERM),
                ("nor", User, How::Two, [N, Some(0), N], PERM),
                ("groups neither", Group, plain, [Some(7), N, N], PERM),
                ("the same is no change", User, plain, [Some(42), N, N], "42 42 42 42"),
            ],
            &[
                ("only for a time", User, How::Three, [N, Some(42), N], "0 42 0 42"),
                ("another", User, How::Three, [N, Some(43), N], PERM),
                ("back", User, plain, [Some(0), N, N], "0 0 0 0"),
            ],
            &[
                ("seteuid", User, How::Two, [N, Some(42), N], "0 42 42 42"),
                ("to the real one", User, How::Two, [N, Some(0), N], "0 0 42 0"),
                ("swap", User, How::Two, [Some(42), Some(0), N], "42 0 0 0"),
                ("for ever", User, How::Two, [Some(42), Some(42), N], "42 42 42 42"),
            ],
            &[
                ("files only", User, How::FileSystem, [Some(42), N, N], "0 0 0 42"),
                ("asked", User, How::FileSystem, [N, N, N], "0 0 0 42"),
                ("back", User, How::FileSystem, [Some(0), N, N], "0 0 0 0"),
                ("-1", User, plain, [N, N, N], "Err(INVAL)"),
            ],
            &[
                ("group first", Group, How::Three, [Some(65534); 3], "65534 65534 65534 65534"),
                ("then user", User, How::Three, [Some(100); 3], "100 100 100 100"),
                ("the own group", Group, How::Two, [Some(65534), N, N], "65534 65534 65534 65534"),
                ("group back", Group, plain, [Some(0), N, N], PERM),
            ],
        ];
        let mut keeping = Identity::new(0, 0, vec![]).with_keeping(true);
        keeping = keeping.with(User, How::Three, [Some(5); 3]).unwrap().0;
        assert!(keeping.with(Group, How::Three, [Some(6); 3]).is_ok() && keeping.with_groups(vec![7]).is_ok());
        for story in rows {
            let mut identity = Identity::new(0, 0, vec![]);
            for (what, kind, how, ids, expected) in *story {
                let shown = match identity.with(*kind, *how, *ids) {
                    Ok((next, _)) => {
                        identity = next;
                        let Ids { real, effective, saved, file_system } =
                            if *kind == User { identity.user } else { identity.group };
                        format!("{real} {effective} {saved} {file_system}")
                    }
                    Err(errno) if errno == Errno::PERM => PERM.to_owned(),
                    Err(errno) if errno == Errno::INVAL => "Err(INVAL)".to_owned(),
                    Err(errno) => format!("{errno:?}"),
                };
                assert_eq!(shown, *expected, "{what}: {ids:?}");
            }
        }
    }

    #[test]
    fn giving_files_away() {
        let root = Identity::new(0, 0, vec![]);
        let bob = Identity::new(7, 8, vec![9]);
        let rows = [
            (&root, (1, 1), Some(2), Some(3), true),
            (&bob, (7, 8), Some(7), Some(9), true),
            (&bob, (7, 8), None, Some(8), true),
            (&bob, (7, 8), Some(0), None, false),
            (&bob, (7, 8), None, Some(10), false),
            (&bob, (0, 0), Some(7), None, false),
            (&bob, (0, 0), None, None, true),
        ];
        for (who, present, uid, gid, expected) in rows {
            assert_eq!(who.may_give(present, uid, gid), expected, "{who:?} {present:?} {uid:?} {gid:?}");
        }
    }
}
