//! Hides how user and group ids are handed to a user namespace: the files that grant them, and the form of a map. Pure.

use std::fmt;

/// So many ids in a row, and what they are called inside and outside of a user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The first one's name inside.
    pub inside: u32,
    /// The first one's name outside.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// The ids of a user namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdMaps {
    /// Of users.
    pub users: Vec<Range>,
    /// Of groups.
    pub groups: Vec<Range>,
}

impl IdMaps {
    /// Whether the user id `inside` stands for one outside.
    pub fn has_user(&self, inside: u32) -> bool {
        has(&self.users, inside)
    }

    /// Whether the group id `inside` stands for one outside.
    pub fn has_group(&self, inside: u32) -> bool {
        has(&self.groups, inside)
    }

    /// How many user ids there are.
    pub fn count_users(&self) -> u64 {
        self.users.iter().map(|range| u64::from(range.count)).sum()
    }
}

fn has(ranges: &[Range], inside: u32) -> bool {
    ranges.iter().any(|range| inside.checked_sub(range.inside).is_some_and(|offset| offset < range.count))
}

/// One range in each line, `u` or `g` before it: for writing down which ids a store's files have.
impl fmt::Display for IdMaps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (letter, ranges) in [("u", &self.users), ("g", &self.groups)] {
            for Range { inside, outside, count } in ranges {
                writeln!(f, "{letter} {inside} {outside} {count}")?;
            }
        }
        Ok(())
    }
}

/// Reads `/proc/self/uid_map` or `gid_map`.
pub(crate) fn parse_map(text: &str) -> Vec<Range> {
    let one = |line: &str| {
        let mut numbers = line.split_whitespace().map(str::parse::<u32>);
        let mut next = || numbers.next()?.ok();
        Some(Range { inside: next()?, outside: next()?, count: next()? })
    };
    text.lines().filter_map(one).collect()
}
