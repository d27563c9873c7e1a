//! Hides which extended attributes an image carries, and that a file capability has two spellings. Pure.

use crate::rootdir::Xattrs;

/// File capabilities, as setcap(8) writes them.
pub const CAPABILITY: &[u8] = b"security.capability";

/// Lists of who may get at a file, and at what is made in a directory (acl(5)).
pub(crate) const ACCESS_ACL: &[u8] = b"system.posix_acl_access";
pub(crate) const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";

/// kiln's own attributes begin so ([`crate::owner`]).
pub(crate) const RESERVED: &[u8] = b"user.kiln.";

/// Whether a layer may hold the attribute `key`: file capabilities, POSIX ACLs and `user.*`.
///
/// The overlay's own (`trusted.overlay.*`, `user.overlay.*`) would let an image hide or redirect files of the host's making, and
/// kiln's own (`user.kiln.*`) give away files where owners are recorded;
/// labels (`security.selinux`) belong to the host; the rest of `trusted.*` is nobody's.
pub fn is_portable(key: &[u8]) -> bool {
    if key.starts_with(b"user.") {
        return !key.starts_with(b"user.overlay.") && !key.starts_with(RESERVED);
    }
    matches!(key, CAPABILITY | ACCESS_ACL | DEFAULT_ACL)
}

/// Keeps what a layer may hold, with file capabilities in the form that is right on every host.
pub fn portable(mut xattrs: Xattrs) -> Xattrs {
    xattrs.retain(|key, _| is_portable(key));
    if let Some(value) = xattrs.get_mut(CAPABILITY) {
        normalise_capability(value);
    }
    xattrs
}

/// Turns a version 3 capability (which adds the user id of a user namespace's root, linux/capability.h
/// `vfs_ns_cap_data`) into version 2: inside the image that root is simply root.
fn normalise_capability(value: &mut Vec<u8>) {
    const REVISION_2: [u8; 3] = [0, 0, 2];
    const REVISION_3: [u8; 3] = [0, 0, 3];
    if value.len() == 24 && value[1..4] == REVISION_3 {
        value.truncate(20);
        value[1..4].copy_from_slice(&REVISION_2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_an_image_may_carry_stays() {
        let mut v3 = vec![1, 0, 0, 3, 0, 4, 0, 0];
        v3.resize(20, 0);
        let v2 = [&[1, 0, 0, 2][..], &v3[4..]].concat();
        v3.extend([0x92, 0x10, 0, 0]);
        let keys: [&[u8]; 9] = [
            b"security.capability",
            b"security.selinux",
            b"trusted.overlay.opaque",
            b"user.overlay.opaque",
            b"user.x",
            b"trusted.x",
            b"system.posix_acl_access",
            b"user.overlayish",
            b"user.kiln.owner",
        ];
        let all = keys.iter().map(|k| (k.to_vec(), v3.clone())).collect();
        let kept = portable(all);
        assert_eq!(
            kept.keys().map(|k| &k[..]).collect::<Vec<_>>(),
            [&b"security.capability"[..], b"system.posix_acl_access", b"user.overlayish", b"user.x"]
        );
        assert_eq!(kept[CAPABILITY], v2);
    }
}
