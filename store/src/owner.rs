//! Hides how `/etc/passwd` and `/etc/group` are written, and how an owner is written down where the file can't have it: turns
//! words into numbers and back. Pure.

/// Who owns a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Owner {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

/// Where the owners of the files in a tree stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Ownership {
    /// On the files themselves, as chown(2) sets them.
    #[default]
    Real,
    /// On the files themselves, as far as the ids of a user namespace go; owners beyond them, and devices, which no user namespace
    /// may make, are recorded as below.
    Mapped,
    /// In attributes beside them, for a process that has a single user id: all files are its own, and a file without a record
    /// is 0:0 to the image, whoever has it on disk. Devices are empty files with a record.
    Recorded,
}

/// The attribute that holds the owner of a regular file or a directory: `UID:GID`, decimal. Without it, it is 0:0.
///
/// A command's `chown` writes it for 0:0 too: what has none when the command ended is taken for new and is its maker's.
/// A third field, `:MODE` in octal, stands where the mode on disk had to be another than the file's.
pub const OWNER_ATTRIBUTE: &str = "user.kiln.owner";
/// The attribute of an empty regular file that stands for a device: `c MAJOR:MINOR` or `b MAJOR:MINOR`, decimal.
pub const NODE_ATTRIBUTE: &str = "user.kiln.node";

/// Why `--chown` says nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OwnerError {
    /// The name stands in no line of `/etc/passwd`.
    #[error("user `{0}` is not in the image's /etc/passwd")]
    UnknownUser(String),
    /// The name stands in no line of `/etc/group`.
    #[error("group `{0}` is not in the image's /etc/group")]
    UnknownGroup(String),
    /// A number that no file can be owned by: 4294967295 means "leave it" to chown(2).
    #[error("`{0}` is not a user or group number")]
    OutOfRange(String),
    /// Nothing stands before or after the colon.
    #[error("`{0}` names no owner: `user`, `user:group` or numbers are expected")]
    Malformed(String),
}

impl Owner {
    /// 0:0.
    pub const ROOT: Owner = Owner { uid: 0, gid: 0 };

    /// Reads `user[:group]` as `COPY --chown` does: numbers are taken as they are, a lone number is also the group's, a lone
    /// name brings the group of its passwd line. A missing file is an empty one.
    pub fn parse(spec: &str, passwd: &[u8], group: &[u8]) -> Result<Owner, OwnerError> {
        let (user, group_name) = match spec.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (spec, None),
        };
        if user.is_empty() || group_name == Some("") {
            return Err(OwnerError::Malformed(spec.to_owned()));
        }
        let mut owner = match number(user)? {
            Some(id) => Owner { uid: id, gid: id },
            None => {
                let fields = find(passwd, user).ok_or_else(|| OwnerError::UnknownUser(user.to_owned()))?;
                let id = |i: usize| fields.get(i).and_then(|f| number(f).ok().flatten());
                let (Some(uid), Some(gid)) = (id(2), id(3)) else { return Err(OwnerError::UnknownUser(user.to_owned())) };
                Owner { uid, gid }
            }
        };
        if let Some(name) = group_name {
            owner.gid = match number(name)? {
                Some(id) => id,
                None => find(group, name)
                    .and_then(|fields| fields.get(2).and_then(|f| number(f).ok().flatten()))
                    .ok_or_else(|| OwnerError::UnknownGroup(name.to_owned()))?,
            };
        }
        Ok(owner)
    }

    /// What is written into [`OWNER_ATTRIBUTE`], with the mode where that on disk is another; `None` if nothing need be.
    pub(crate) fn to_record(self, mode: Option<u32>) -> Option<Vec<u8>> {
        match mode {
            Some(mode) => Some(self.record_with(mode).into_bytes()),
            None => (self != Owner::ROOT).then(|| format!("{}:{}", self.uid, self.gid).into_bytes()),
        }
    }

    pub(crate) fn record_with(self, mode: u32) -> String {
        format!("{}:{}:{mode:o}", self.uid, self.gid)
    }

    /// Reads what [`OWNER_ATTRIBUTE`] holds. A command of an image may have written there what it likes: that isn't a record.
    pub(crate) fn from_record(record: &[u8]) -> Option<(Owner, Option<u32>)> {
        let mut fields = std::str::from_utf8(record).ok()?.split(':');
        let mut id = || number(fields.next()?).ok().flatten();
        let owner = Owner { uid: id()?, gid: id()? };
        let mode = match fields.next() {
            Some(mode) => Some(u32::from_str_radix(mode, 8).ok().filter(|mode| *mode <= 0o7777)?),
            None => None,
        };
        fields.next().is_none().then_some((owner, mode))
    }

    /// Whether `spec` can be read without `/etc/passwd` and `/etc/group`.
    pub fn is_numeric(spec: &str) -> bool {
        spec.split(':').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
    }
}

/// `None` if `text` isn't all digits.
fn number(text: &str) -> Result<Option<u32>, OwnerError> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse() {
        Ok(u32::MAX) | Err(_) => Err(OwnerError::OutOfRange(text.to_owned())),
        Ok(id) => Ok(Some(id)),
    }
}

/// The fields of the first line whose first field is `name`.
fn find<'a>(file: &'a [u8], name: &str) -> Option<Vec<&'a str>> {
    file.split(|b| *b == b'\n')
        .filter_map(|line| std::str::from_utf8(line).ok())
        .map(|line| line.trim().split(':').collect::<Vec<_>>())
        .find(|fields| fields[0] == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_and_others_words_are_none() {
        let owner = Owner { uid: 1000, gid: 4_294_967_294 };
        assert_eq!(owner.to_record(None).as_deref(), Some(&b"1000:4294967294"[..]));
        assert_eq!(Owner::ROOT.to_record(None), None);
        for mode in [None, Some(0), Some(0o6755)] {
            assert_eq!(Owner::from_record(&owner.to_record(mode).unwrap()), Some((owner, mode)));
        }
        assert_eq!(Owner::from_record(b"0:0"), Some((Owner::ROOT, None)), "a command gave it to root");
        for text in ["", "1", ":", "1:", "1:2:", "1:2:8", "1:2:10000", "1:2:7:7", "-1:2", "+1:2", "1:4294967295", " 1:2", "1:2\n"]
        {
            assert_eq!(Owner::from_record(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn chown_words_are_read_as_docker_reads_them() {
        let passwd = b"root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:34::/:/bin/false\nbad:x:-1:2::/:\n";
        let group = b"root:x:0:\nstaff:x:50:web\n";
        for (spec, expected) in [
            ("web", Ok((33, 34))),
            ("1000", Ok((1000, 1000))),
            ("1000:staff", Ok((1000, 50))),
            ("web:7", Ok((33, 7))),
            ("0:0", Ok((0, 0))),
            ("nobody", Err(OwnerError::UnknownUser("nobody".into()))),
            ("bad", Err(OwnerError::UnknownUser("bad".into()))),
            ("web:wheel", Err(OwnerError::UnknownGroup("wheel".into()))),
            ("4294967295", Err(OwnerError::OutOfRange("4294967295".into()))),
            ("web:4294967296", Err(OwnerError::OutOfRange("4294967296".into()))),
            (":5", Err(OwnerError::Malformed(":5".into()))),
            ("web:", Err(OwnerError::Malformed("web:".into()))),
        ] {
            assert_eq!(Owner::parse(spec, passwd, group), expected.map(|(uid, gid)| Owner { uid, gid }), "{spec}");
        }
    }
}
