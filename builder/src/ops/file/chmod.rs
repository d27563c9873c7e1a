//! Hides how `--chmod` is written: octal, or letters as chmod(1) takes them. Pure.

/// A parsed `--chmod`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Chmod {
    /// These bits, for files and directories alike.
    Octal(u32),
    /// One change after the other.
    Symbolic(Vec<Change>),
}

/// `ug+rX`: whom it concerns, how, and what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    /// The rwx, set-id and sticky bits it may touch.
    who: u32,
    op: u8,
    what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    Bits {
        /// rwx for all, set-id and sticky bits.
        bits: u32,
        /// `X`: execution if it's a directory or anyone may execute it.
        conditional: bool,
    },
    /// The permissions that another class has, by the shift of its bits.
    CopyOf(u32),
}

impl Chmod {
    /// Reads `spec`; `None` if it's neither form.
    pub(super) fn parse(spec: &str) -> Option<Chmod> {
        if spec.bytes().all(|b| b.is_ascii_digit()) {
            return u32::from_str_radix(spec, 8).ok().filter(|mode| *mode <= 0o7777).map(Chmod::Octal);
        }
        let mut changes = Vec::new();
        for clause in spec.split(',') {
            parse_clause(clause.as_bytes(), &mut changes)?;
        }
        Some(Chmod::Symbolic(changes))
    }

    /// The mode of directories on the way to the destination that nothing describes: the permissions when they were written
    /// as a number, even if nobody can enter the directory then (fsutil's copy passes the mode on to what it makes).
    pub(super) fn of_made_up(&self) -> u32 {
        match self {
            Chmod::Octal(mode) => mode & 0o777,
            Chmod::Symbolic(_) => 0o755,
        }
    }

    /// The mode of what had `mode`.
    pub(super) fn apply(&self, mode: u32, is_dir: bool) -> u32 {
        match self {
            Chmod::Octal(mode) => *mode,
            Chmod::Symbolic(changes) => changes.iter().fold(mode, |mode, change| change.apply(mode, is_dir)),
        }
    }
}

fn parse_clause(clause: &[u8], changes: &mut Vec<Change>) -> Option<()> {
    let split = clause.iter().position(|b| !b"ugoa".contains(b)).unwrap_or(clause.len());
    let (classes, mut rest) = clause.split_at(split);
    let who = classes.iter().fold(0, |who, class| {
        who | match class {
            b'u' => 0o4700,
            b'g' => 0o2070,
            b'o' => 0o1007,
            _ => 0o7777,
        }
    });
    let who = if who == 0 { 0o7777 } else { who };
    if rest.is_empty() {
        return None;
    }
    while let Some((op, letters)) = rest.split_first() {
        if !b"+-=".contains(op) {
            return None;
        }
        let end = letters.iter().position(|b| b"+-=".contains(b)).unwrap_or(letters.len());
        let (letters, after) = letters.split_at(end);
        let what = match letters {
            b"u" => What::CopyOf(6),
            b"g" => What::CopyOf(3),
            b"o" => What::CopyOf(0),
            letters => {
                let (mut bits, mut conditional) = (0, false);
                for letter in letters {
                    match letter {
                        b'r' => bits |= 0o444,
                        b'w' => bits |= 0o222,
                        b'x' => bits |= 0o111,
                        b'X' => conditional = true,
                        b's' => bits |= 0o6000,
                        b't' => bits |= 0o1000,
                        _ => return None,
                    }
                }
                What::Bits { bits, conditional }
            }
        };
        changes.push(Change { who, op: *op, what });
        rest = after;
    }
    Some(())
}

impl Change {
    fn apply(&self, mode: u32, is_dir: bool) -> u32 {
        let bits = match self.what {
            What::Bits { bits, conditional } => {
                let execute = conditional && (is_dir || mode & 0o111 != 0);
                bits | if execute { 0o111 } else { 0 }
            }
            What::CopyOf(shift) => ((mode >> shift) & 7) * 0o111,
        } & self.who;
        match self.op {
            b'+' => mode | bits,
            b'-' => mode & !bits,
            // chmod(1) leaves a directory's set-id bits alone unless they are named.
            _ if is_dir => (mode & !(self.who & 0o1777)) | bits,
            _ => (mode & !self.who) | bits,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_read_as_chmod_reads_them() {
        for (spec, file, dir) in [
            ("644", 0o644, 0o644),
            ("0755", 0o755, 0o755),
            ("4755", 0o4755, 0o4755),
            ("u=rwX,go=rX", 0o644, 0o755),
            ("+x", 0o751, 0o751),
            ("a-r", 0o200, 0o310),
            ("u+s,g=u", 0o4660, 0o4770),
            ("go=", 0o600, 0o700),
            ("o=u-w", 0o644, 0o755),
            ("u=rw,u+x", 0o740, 0o750),
            ("+t", 0o1640, 0o1750),
        ] {
            let chmod = Chmod::parse(spec).unwrap();
            assert_eq!(chmod.apply(0o640, false), file, "{spec} on a file");
            assert_eq!(chmod.apply(0o750, true), dir, "{spec} on a directory");
        }
        for spec in ["", "8", "10000", "u", "u+z", "rwx", "u=rw,", "x+r", "-1"] {
            assert_eq!(Chmod::parse(spec), None, "{spec}");
        }
    }
}
