//! The tree on disk and its version rule; this module is documentation that compiles.
//!
//! ```text
//! ROOT/                        0700
//! ├── version                  "kiln store 1"; written last when a store is made, so its presence means: all is there
//! ├── epoch                    only after a failed sync: its text counts as part of the boot id
//! ├── ids                      which ids of the host the owners in diff/ are; only where they are not the host's own
//! ├── collected                its time says when kiln last collected by itself; may be lost
//! ├── lease                    flock: shared by every process that uses the store, exclusive by prune
//! ├── blobs/sha256/HEX         bytes by their digest; verified when written and when read
//! ├── layers/ID/               chain-HEX: a layer that an image brought (HEX is its chain id); nHEX: one that kiln built
//! │   ├── record.json          kind, parent, boot id; never rewritten
//! │   ├── facts.json           what was learnt later: diff id, packed blobs, places to fetch it from; may be lost. Of a layer that
//! │   │                        is in no image a sum of its tree, for [`crate::fsck`]
//! │   ├── diff/                the tree in overlayfs' form (whiteouts are 0:0 devices or xattrs)
//! │   ├── diff.owners          owners of files in diff/ that can hold no attribute; only where owners are recorded
//! │   ├── unpacked             of a base layer: the boot id under which diff/ was made, sealed as records are
//! │   ├── durable              mark: diff/ was on disk before this file was made
//! │   └── usage                the disk space of diff/, remembered by `du`; may be lost
//! ├── cache/XX/REST            cache records by key; small, one read each
//! ├── images/HEX               image names (HEX is the SHA-256 of the name); images/id-HEX: images without a name;
//! │                            of an index all its images, and which of them is meant on this machine
//! ├── ingest/NONCE/            what one process has not finished; the folder is locked while the process lives
//! ├── memo/HEX                 fingerprints of the files of one context folder (HEX is of its path); may be lost
//! ├── mount-points/            empty mount points that lie below every sandbox's layers; filled by the runner, may be lost
//! ├── mounts/HEX/              the folders of one cache-mount id: `id`, and N/ with N.lock
//! ├── locks/                   files that exist only while somebody holds or wants the lock
//! ├── trash/                   on its way out; anybody may delete what is in it
//! ├── host/                    what the runner found out about this file system, by boot and kernel; may be lost
//! └── rootless/ one-id/ flat/ flat-one-id/
//!                              stores of other forms ([`crate::TreeForm`]), each with all of the above but `host`
//! ```
//!
//! # What appears, appears whole
//! Everything is made in `ingest/NONCE/` and renamed to its place. A process that is killed leaves only its folder there,
//! and the next one that opens the store gets the lock of that folder and renames it into `trash/`. What is deleted is
//! renamed into `trash/` first as well.
//!
//! # What survives a power cut
//! A rename may reach the disk before the bytes that it names. Therefore:
//! * Records carry a checksum; a torn one counts as absent.
//! * Blobs are verified whenever they are read.
//! * The tree of a layer can't be verified, so it is believed only under the boot id under which it was made, or with
//!   a `durable` mark, or (for a built layer) when an image names it. Writing an image name is: one `syncfs`, then the marks
//!   and the name, the name with `fsync` of file and folder. The mark is a file of its own because replacing
//!   a record that was safe by one that isn't yet would put the layer at risk. Where the name stood for the same layers already, an
//!   `fsync` of its blobs takes the place of the `syncfs`: whoever packs and pushes an image doesn't wait until that is on the disk, too.
//! * When the barrier fails, `epoch` gets another text, so that nothing is believed any more that had not been marked: the kernel
//!   tells of a failed write once, and goes on to show in memory what never reached the disk.
//! * A cache record is as good as the layer that it names.
//! * Cache mounts hold what the user's tools write; kiln promises nothing about it.
//!
//! # The version rule
//! The first line of `version` is `kiln store N`. Each further line names a feature that a reader must know. A kiln that
//! meets a greater N or an unknown feature refuses the store and changes nothing. New files that old kilns may ignore need
//! neither. A migration takes the exclusive lease and writes `version` last.

/// The format that this kiln reads and writes.
pub const VERSION: u32 = 1;

const PREFIX: &str = "kiln store ";

/// The text of a fresh version file.
pub(crate) fn header() -> String {
    format!("{PREFIX}{VERSION}\n")
}

/// What a version file means for this kiln.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Ours,
    /// A format or a feature from the future.
    Newer(String),
    Unreadable,
}

pub(crate) fn check(text: &[u8]) -> Verdict {
    let Ok(text) = std::str::from_utf8(text) else { return Verdict::Unreadable };
    // It is written at once and never cut, so one without its last byte is damaged.
    let Some(text) = text.strip_suffix('\n') else { return Verdict::Unreadable };
    let mut lines = text.split('\n');
    let number = lines.next().and_then(|line| line.strip_prefix(PREFIX)).and_then(|n| n.parse::<u32>().ok());
    match (number, lines.next()) {
        (None | Some(0), _) => Verdict::Unreadable,
        (Some(n), _) if n > VERSION => Verdict::Newer(n.to_string()),
        (Some(n), Some(feature)) => Verdict::Newer(format!("{n} with `{feature}`")),
        (Some(_), None) => Verdict::Ours,
    }
}

#[cfg(test)]
mod tests {
    use super::{Verdict, check, header};

    #[test]
    fn version_files_are_judged() {
        for (text, verdict) in [
            (header().as_str(), Verdict::Ours),
            ("kiln store 1", Verdict::Unreadable),
            ("kiln store 1\r\n", Verdict::Unreadable),
            ("kiln store 2\n", Verdict::Newer("2".into())),
            ("kiln store 1\nsparse-index\n", Verdict::Newer("1 with `sparse-index`".into())),
            ("kiln store 0\n", Verdict::Unreadable),
            ("", Verdict::Unreadable),
            ("\0\0\0\0", Verdict::Unreadable),
            ("1\n", Verdict::Unreadable),
        ] {
            assert_eq!(check(text.as_bytes()), verdict, "{text:?}");
        }
    }
}
