//! `USER`: hides the syntax and the passwd and group files. Pure; the files come in as bytes.

/// Who a `USER` is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups: the group itself, and those of the group file when the user names no group.
    pub groups: Vec<u32>,
    /// Home directory: what the passwd file says, be it nothing, and `/` when it does not know the user.
    pub home: Vec<u8>,
}

/// Why a user could not be resolved. The wording is runc's, which people search for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, serde::Serialize, serde::Deserialize)]
pub enum UserError {
    /// No such name, and it is not a number.
    #[error("unable to find user {name}: no matching entries in passwd file")]
    UnknownUser {
        /// The name.
        name: String,
    },
    /// No such group, and it is not a number.
    #[error("unable to find group {name}: no matching entries in group file")]
    UnknownGroup {
        /// The name.
        name: String,
    },
    /// A number outside of what the kernel takes.
    #[error("user or group id {id} is out of range, 0 to 2147483647 are possible")]
    OutOfRange {
        /// The number as it was written.
        id: String,
    },
}

/// How many bytes of a passwd or group file are read; the rest of a longer file is not seen.
pub(crate) const LONGEST_FILE: u64 = 1 << 20;

/// Resolves `user` (`USER` in Dockerfile syntax, empty for root) as runc does.
///
/// A number is always an id, also when the passwd file holds a user of that name. A user given by id alone gets the group of its
/// passwd entry, or 0 when it has none.
///
/// # Errors
/// When a name is unknown or an id can't exist.
pub fn resolve_user(user: &str, passwd: &[u8], group: &[u8]) -> Result<Identity, UserError> {
    let (user, group_name) = user.split_once(':').unwrap_or((user, ""));
    let wanted = if user.is_empty() { Some(0) } else { number(user)? };
    let entry = passwd_entries(passwd).find(|entry| match wanted {
        Some(uid) => entry.uid == uid,
        None => entry.name == user.as_bytes(),
    });
    let mut identity = match (&entry, wanted) {
        (Some(entry), _) => Identity { uid: entry.uid, gid: entry.gid, groups: Vec::new(), home: entry.home.to_vec() },
        (None, Some(uid)) => Identity { uid, gid: 0, groups: Vec::new(), home: b"/".to_vec() },
        (None, None) => return Err(UserError::UnknownUser { name: user.to_owned() }),
    };
    if group_name.is_empty() {
        if let Some(entry) = entry {
            let member = |group: &GroupEntry<'_>| group.members.split(|byte| *byte == b',').any(|name| name == entry.name);
            identity.groups = group_entries(group).filter(member).map(|group| group.gid).collect();
        }
    } else {
        identity.gid = match number(group_name)? {
            Some(gid) => gid,
            None => group_entries(group)
                .find(|entry| entry.name == group_name.as_bytes())
                .map(|entry| entry.gid)
                .ok_or_else(|| UserError::UnknownGroup { name: group_name.to_owned() })?,
        };
    }
    // As BuildKit does since CVE-2022-2989 and its like: a process that lacks its own group among the supplementary ones
    // could be let into files whose "group" bits mean to keep it out.
    if !identity.groups.contains(&identity.gid) {
        identity.groups.insert(0, identity.gid);
    }
    Ok(identity)
}

/// `text` as an id; `None` when it is a name.
fn number(text: &str) -> Result<Option<u32>, UserError> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse::<i32>() {
        Ok(id @ 0..) => Ok(Some(id.unsigned_abs())),
        _ => Err(UserError::OutOfRange { id: text.to_owned() }),
    }
}

struct PasswdEntry<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
}

struct GroupEntry<'a> {
    name: &'a [u8],
    gid: u32,
    members: &'a [u8],
}

/// The entries whose numbers are numbers. Others are skipped rather than read as 0, which would make them root.
fn passwd_entries(file: &[u8]) -> impl Iterator<Item = PasswdEntry<'_>> {
    lines(file).filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next()?;
        let uid = id(fields.nth(1)?)?;
        let gid = id(fields.next()?)?;
        let home = fields.nth(1).unwrap_or_default();
        Some(PasswdEntry { name, uid, gid, home })
    })
}

fn group_entries(file: &[u8]) -> impl Iterator<Item = GroupEntry<'_>> {
    // Only here a line can be commented out (moby/sys/user has it so).
    lines(file).filter(|line| !line.starts_with(b"#")).filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next()?;
        let gid = id(fields.nth(1)?)?;
        Some(GroupEntry { name, gid, members: fields.next().unwrap_or_default() })
    })
}

fn lines(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    file.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty())
}

fn id(field: &[u8]) -> Option<u32> {
    number(std::str::from_utf8(field).ok()?).ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n\n# comment:x:6:7::/c:\nbob:x:1000:1001:Bob:/home/bob:/bin/sh\n\
        1000:x:0:0:evil:/root:/bin/sh\nbad:x:abc:0::/:/bin/sh\nhuge:x:4294967295:0::/:/bin/sh\nshort:x:7:8\nnohome:x:9:9::\n";
    const GROUP: &[u8] = b"root:x:0:root\nwheel:x:10:root,bob\nstaff:x:50:bob\nbobs:x:1001:\n77:x:0:\n#c:x:5:bob\nbad:x:zz:bob\n";

    #[test]
    fn users() {
        let ok = |uid, gid, groups: &[u32], home: &str| Ok(Identity { uid, gid, groups: groups.to_vec(), home: home.into() });
        let rows: &[(&str, Result<Identity, &str>)] = &[
            ("", ok(0, 0, &[0, 10], "/root")),
            ("root", ok(0, 0, &[0, 10], "/root")),
            ("0", ok(0, 0, &[0, 10], "/root")),
            ("bob", ok(1000, 1001, &[1001, 10, 50], "/home/bob")),
            ("1000", ok(1000, 1001, &[1001, 10, 50], "/home/bob")),
            ("bob:staff", ok(1000, 50, &[50], "/home/bob")),
            ("bob:77", ok(1000, 77, &[77], "/home/bob")),
            ("33", ok(33, 0, &[0], "/")),
            ("33:44", ok(33, 44, &[44], "/")),
            ("33:wheel", ok(33, 10, &[10], "/")),
            ("short", ok(7, 8, &[8], "")),
            ("nohome", ok(9, 9, &[9], "")),
            ("6", ok(6, 7, &[7], "/c")),
            (":staff", ok(0, 50, &[50], "/root")),
            ("nobody", Err("unable to find user nobody: no matching entries in passwd file")),
            ("bad", Err("unable to find user bad: no matching entries in passwd file")),
            ("huge", Err("unable to find user huge: no matching entries in passwd file")),
            ("bob:none", Err("unable to find group none: no matching entries in group file")),
            ("-1", Err("user or group id -1 is out of range, 0 to 2147483647 are possible")),
            ("4294967295", Err("user or group id 4294967295 is out of range, 0 to 2147483647 are possible")),
            ("4294967296", Err("user or group id 4294967296 is out of range, 0 to 2147483647 are possible")),
            (
                "1:99999999999999999999",
                Err("user or group id 99999999999999999999 is out of range, 0 to 2147483647 are possible"),
            ),
        ];
        for (user, expected) in rows {
            let result = resolve_user(user, PASSWD, GROUP).map_err(|error| error.to_string());
            assert_eq!(result, expected.clone().map_err(str::to_owned), "USER {user}");
        }
    }

    #[test]
    fn no_files() {
        assert_eq!(resolve_user("", b"", b"").map(|identity| (identity.uid, identity.home)), Ok((0, b"/".to_vec())));
        assert!(resolve_user("root", b"", b"").is_err());
    }
}
