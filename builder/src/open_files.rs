//! Hides how what is done at once depends on the number of files that this process may have open (`ulimit -n`): with few of them
//! less is done at once, and all of it still is.

use rustix::process::{Resource, getrlimit};

/// Steps that run at once at the most. More would only wait for the disk and the processors.
const STEPS: u64 = 16;
/// Folders from which a step copies at once at the most.
const FOLDERS: u64 = 64;
/// Files that kiln has open beside its steps: the store, its locks, the layers being packed.
const OWN: u64 = 40;
/// What a step needs at the least.
const OF_A_STEP: u64 = 24;
/// What a step has open beside the folders.
const OF_A_COPY: u64 = 8;

/// How many steps may run at once.
pub(crate) fn steps() -> usize {
    narrow(steps_of(limit()))
}

/// From how many folders a step may copy at once. Each costs two descriptors, of what is read and of what is written.
pub(crate) fn folders() -> usize {
    narrow(folders_of(limit()))
}

fn limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

fn steps_of(limit: u64) -> u64 {
    (limit.saturating_sub(OWN) / OF_A_STEP).clamp(1, STEPS)
}

fn folders_of(limit: u64) -> u64 {
    let share = limit.saturating_sub(OWN) / steps_of(limit);
    (share.saturating_sub(OF_A_COPY) / 2).clamp(1, FOLDERS)
}

/// Both bounds are small.
fn narrow(count: u64) -> usize {
    usize::try_from(count).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_files_are_shared_out() {
        for (limit, steps, folders) in
            [(0, 1, 1), (64, 1, 8), (96, 2, 10), (256, 9, 8), (1024, 16, 26), (4096, 16, 64), (u64::MAX, 16, 64)]
        {
            assert_eq!((steps_of(limit), folders_of(limit)), (steps, folders), "{limit}");
        }
    }
}
