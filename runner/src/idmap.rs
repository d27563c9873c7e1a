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

    /// One id of each kind, called 0.
    pub(crate) fn one(user: u32, group: u32) -> IdMaps {
        let one = |outside| vec![Range { inside: 0, outside, count: 1 }];
        IdMaps { users: one(user), groups: one(group) }
    }

    /// The same ids under the names that they have in this map, for a user namespace below this one.
    pub(crate) fn identity(&self) -> IdMaps {
        let same = |ranges: &Vec<Range>| ranges.iter().map(|range| Range { outside: range.inside, ..*range }).collect();
        IdMaps { users: same(&self.users), groups: same(&self.groups) }
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

/// The text that `/proc/PID/uid_map` takes.
pub(crate) fn map_text(ranges: &[Range]) -> String {
    ranges.iter().map(|Range { inside, outside, count }| format!("{inside} {outside} {count}\n")).collect()
}

/// The arguments of newuidmap(1) after the process.
pub(crate) fn map_arguments(ranges: &[Range]) -> Vec<String> {
    ranges.iter().flat_map(|range| [range.inside, range.outside, range.count]).map(|number| number.to_string()).collect()
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

/// The map of a user who has the ids that `text` (`/etc/subuid`) grants besides the own one, `own`, which becomes 0; empty when the
/// file grants none. A line names the user or has the number.
pub(crate) fn granted(text: &str, name: Option<&str>, number: u32, own: u32) -> Vec<Range> {
    // As the kernel takes them at most in one map (user_namespaces(7)), the first one being the user's own.
    const MOST: usize = 340;
    let mut ranges: Vec<Range> = Vec::new();
    let mut inside = 1;
    for line in text.lines() {
        let fields: Vec<&str> = line.trim().split(':').collect();
        let [who, first, count] = fields[..] else { continue };
        let (Ok(outside), Ok(count)) = (first.parse::<u32>(), count.parse::<u32>()) else { continue };
        let is_ours = Some(who) == name || who.parse() == Ok(number);
        let overlaps = |range: &Range| outside < range.outside + range.count && range.outside < outside + count;
        if !is_ours || count == 0 || outside.checked_add(count).is_none() || ranges.iter().any(overlaps) {
            continue;
        }
        // The own id can't be mapped twice.
        if (outside..outside + count).contains(&own) || ranges.len() + 1 == MOST {
            continue;
        }
        let count = count.min(u32::MAX - inside);
        ranges.push(Range { inside, outside, count });
        inside += count;
    }
    if !ranges.is_empty() {
        ranges.insert(0, Range { inside: 0, outside: own, count: 1 });
    }
    ranges
}

/// The name of a user in `/etc/passwd`.
pub(crate) fn user_name(passwd: &str, uid: u32) -> Option<String> {
    let named = |line: &str| {
        let mut fields = line.split(':');
        let (name, number) = (fields.next()?, fields.nth(1)?);
        (number.parse() == Ok(uid)).then(|| name.to_owned())
    };
    passwd.lines().find_map(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants() {
        let rows: &[(&str, &str, &str)] = &[
            ("", "", "no file"),
            ("bob:100000:65536\n", "", "another user"),
            ("ann:100000:65536\n", "0 1000 1\n1 100000 65536\n", "by name"),
            ("1000:100000:65536\n", "0 1000 1\n1 100000 65536\n", "by number"),
            ("10001:100000:65536\n1000x:1:1\n", "", "another number"),
            ("ann:100000:10\nbob:5:5\nann:300000:20\n", "0 1000 1\n1 100000 10\n11 300000 20\n", "two lines"),
            ("ann:100000:10\nann:100005:10\nann:200000:5\n", "0 1000 1\n1 100000 10\n11 200000 5\n", "overlapping"),
            ("ann:900:200\nann:100000:10\n", "0 1000 1\n1 100000 10\n", "the own id is in it"),
            ("ann:x:1\nann:1\nann:1:2:3\nann:5:0\nann:4294967295:9\n# no\n\n", "", "broken lines"),
        ];
        for (text, expected, what) in rows {
            assert_eq!(map_text(&granted(text, Some("ann"), 1000, 1000)), *expected, "{what}");
        }
        assert_eq!(map_text(&granted("1000:7:1\nann:9:1\n", None, 1000, 1000)), "0 1000 1\n1 7 1\n", "no name");
        let many: String = (0..400).map(|n| format!("ann:{}:1\n", 100_000 + n)).collect();
        assert_eq!(granted(&many, Some("ann"), 1000, 1000).len(), 340);
    }

    #[test]
    fn maps() {
        let map =
            IdMaps { users: parse_map("         0       1000          1\n         1     100000      65536\n"), groups: vec![] };
        assert_eq!([0, 1, 65536, 65537].map(|id| map.has_user(id)), [true, true, true, false]);
        assert!(!map.has_group(0));
        assert_eq!(map.to_string(), "u 0 1000 1\nu 1 100000 65536\n");
        assert_eq!(map.identity().to_string(), "u 0 0 1\nu 1 1 65536\n");
        assert_eq!(map_arguments(&map.users), ["0", "1000", "1", "1", "100000", "65536"]);
        assert_eq!(map.count_users(), 65537);
        assert_eq!(parse_map("0 0 4294967295\n"), [Range { inside: 0, outside: 0, count: u32::MAX }]);
        assert_eq!(user_name("root:x:0:0::/:\nann:x:1000:1000::/home/ann:/bin/sh\n", 1000), Some("ann".to_owned()));
        assert_eq!(user_name("broken\nann:x:10000:1000:::\n", 1000), None);
    }
}
