//! Hides what the kernel makes of a POSIX access control list whose ids it can't know: the same as of one that it does. Pure.
//!
//! The form is that of `linux/posix_acl_xattr.h`: a version, then entries of tag, permissions and id, all little-endian.

const VERSION: u32 = 2;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// Whether `value` is a list that the kernel would take if it knew the ids (`posix_acl_valid`): the entries in order, each of
/// the three that must be there once, and a mask if anyone is named.
pub(super) fn is_valid(value: &[u8]) -> bool {
    let Some((version, entries)) = value.split_first_chunk() else { return false };
    if u32::from_le_bytes(*version) != VERSION || entries.len() % 8 != 0 {
        return false;
    }
    let tags: Vec<_> = entries.chunks_exact(8).map(tag).collect();
    let count = |tag| tags.iter().filter(|t| **t == tag).count();
    tags.is_sorted()
        && tags.iter().all(|t| matches!(*t, USER_OBJ | USER | GROUP_OBJ | GROUP | MASK | OTHER))
        && entries.chunks_exact(8).all(|entry| u16::from_le_bytes([entry[2], entry[3]]) <= 7)
        && [USER_OBJ, GROUP_OBJ, OTHER].iter().all(|t| count(*t) == 1)
        && match count(MASK) {
            0 => count(USER) + count(GROUP) == 0,
            masks => masks == 1,
        }
}

/// The list, which is valid, as it is after a `chmod(mode)`, which changes the one that says who may get at the file. `None` where
/// it says no more than the mode, for then the kernel keeps none.
pub(super) fn after_chmod(value: &[u8], mode: u32, access: bool) -> Option<Vec<u8>> {
    if !access {
        return Some(value.to_vec());
    }
    let mut value = value.to_vec();
    let masked = value[4..].chunks_exact(8).any(|entry| tag(entry) == MASK);
    if !masked {
        return None;
    }
    for entry in value[4..].chunks_exact_mut(8) {
        let bits = match tag(entry) {
            USER_OBJ => mode >> 6,
            MASK => mode >> 3,
            OTHER => mode,
            _ => continue,
        };
        entry[2..4].copy_from_slice(&((bits & 7) as u16).to_le_bytes());
    }
    Some(value)
}

fn tag(entry: &[u8]) -> u16 {
    u16::from_le_bytes([entry[0], entry[1]])
}
