//! Hides how many files a process may have open at once, and how they are shared out among steps that run side by side: so few as 64
//! make a build slower and don't fail it.

use std::sync::OnceLock;

/// What kiln itself has open besides its steps, and what is open for a moment: the store, locks, connections, logs.
const OWN: usize = 32;
/// What a step needs at the least: its layers, the streams and the supervisor of a command, a few directories.
const STEP: usize = 32;
/// Of these, what isn't there to be kept open for speed.
const NEEDED: usize = 20;

/// How many steps of at most `most` can run at once.
pub fn steps_at_once(most: usize) -> usize {
    steps(limit(), most)
}

/// How many directories of at most `most` a step may keep open, in each of the two or three places where it does so for speed.
pub fn directories_at_once(most: usize) -> usize {
    directories(limit(), most)
}

/// Steps that are thought to run at once.
const STEPS: usize = 16;

fn steps(limit: usize, most: usize) -> usize {
    (limit.saturating_sub(OWN) / STEP).clamp(1, most)
}

fn directories(limit: usize, most: usize) -> usize {
    let each = limit.saturating_sub(OWN) / steps(limit, STEPS);
    (each.saturating_sub(NEEDED) / 3).clamp(2, most)
}

fn limit() -> usize {
    static LIMIT: OnceLock<usize> = OnceLock::new();
    *LIMIT.get_or_init(|| {
        let soft = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        soft.map_or(usize::MAX, |soft| usize::try_from(soft).unwrap_or(usize::MAX))
    })
}

#[cfg(test)]
mod tests {
    use super::{directories, steps};

    #[test]
    fn little_is_shared_out() {
        for (limit, at_once, kept) in [
            (0, 1, 2),
            (64, 1, 4),
            (128, 3, 4),
            (256, 7, 4),
            (1024, 16, 14),
            (4096, 16, 64),
            (20_000, 16, 64),
            (usize::MAX, 16, 64),
        ] {
            assert_eq!((steps(limit, 16), directories(limit, 64)), (at_once, kept), "{limit}");
        }
    }
}
