//! Hides how limits of space become a number of bytes that the cache may keep; pure.

/// The disk that a store is on, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// Its size.
    pub size: u64,
    /// What is left of it for this user.
    pub free: u64,
}

/// How much may stay of what no image needs. Without any limit nothing has to stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Space {
    /// So much may always stay; alone, it is the limit.
    pub reserved: Option<u64>,
    /// No more than this may stay.
    pub max_used: Option<u64>,
    /// So much of the disk should be free.
    pub min_free: Option<u64>,
}

impl Space {
    /// Whether any limit is set.
    pub(super) fn is_limited(&self) -> bool {
        *self != Self::default()
    }

    /// How much may stay of `used` bytes; none without a limit.
    pub(super) fn keep(&self, used: u64, disk: Disk) -> Option<u64> {
        let missing = self.min_free.map(|wanted| wanted.saturating_sub(disk.free));
        let pressed = missing.filter(|missing| *missing > 0).map(|missing| used.saturating_sub(missing));
        let limit = match (self.max_used, pressed) {
            (Some(most), Some(pressed)) => Some(most.min(pressed)),
            (most, pressed) => most.or(pressed),
        };
        match (limit, self.reserved) {
            (Some(limit), reserved) => Some(limit.max(reserved.unwrap_or(0))),
            // Enough is free: nothing has to go.
            (None, _) if self.min_free.is_some() => Some(u64::MAX),
            (None, reserved) => reserved,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Disk, Space};

    #[test]
    fn limits_of_space() {
        let disk = Disk { size: 1000, free: 100 };
        for (reserved, max_used, min_free, kept) in [
            (None, None, None, None),
            (Some(50), None, None, Some(50)),
            (None, Some(300), None, Some(300)),
            (Some(400), Some(300), None, Some(400)),
            // 400 are used, 100 free.
            (None, None, Some(100), Some(u64::MAX)),
            (None, None, Some(150), Some(350)),
            (None, None, Some(900), Some(0)),
            (Some(30), None, Some(900), Some(30)),
            (Some(30), None, Some(50), Some(u64::MAX)),
            (None, Some(300), Some(150), Some(300)),
            (None, Some(380), Some(150), Some(350)),
            (Some(360), Some(380), Some(150), Some(360)),
        ] {
            let space = Space { reserved, max_used, min_free };
            assert_eq!(space.keep(400, disk), kept, "{space:?}");
        }
    }
}
