//! Hides the small languages inside values: signals, modes, addresses.

/// Linux's signals but the real-time ones (moby/sys `signal_linux.go`).
const SIGNALS: [&str; 35] = [
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL", "PIPE", "POLL", "PROF", "PWR",
    "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU", "URG", "USR1", "USR2", "VTALRM", "WINCH",
    "XCPU", "XFSZ", "RTMIN",
];

/// Whether a text names a signal: a number other than 0, or a name with or without `SIG`.
pub(super) fn is_signal(text: &str) -> bool {
    if let Ok(number) = text.parse::<i64>() {
        return number != 0;
    }
    let upper = text.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = |prefix: &str, most: u32| {
        name.strip_prefix(prefix).is_some_and(|n| !n.starts_with('0') && n.parse::<u32>().is_ok_and(|n| (1..=most).contains(&n)))
    };
    SIGNALS.contains(&name) || name == "RTMAX" || real_time("RTMIN+", 15) || real_time("RTMAX-", 14)
}

/// Whether a text is a mode for `--chmod`: octal up to 07777, or symbolic such as `u=rwX,go-w`.
pub(super) fn check_mode(text: &str) -> Result<(), String> {
    let octal = || format!("invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777");
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return match u32::from_str_radix(text, 8) {
            Ok(mode) if mode <= 0o7777 => Ok(()),
            _ => Err(octal()),
        };
    }
    let clause = |clause: &str| {
        let who = clause.trim_start_matches(['u', 'g', 'o', 'a']);
        let mut rest = who;
        let mut actions = 0;
        while let Some(tail) = rest.strip_prefix(['+', '-', '=']) {
            rest = tail.trim_start_matches(['r', 'w', 'x', 'X', 's', 't', 'u', 'g', 'o']);
            actions += 1;
        }
        actions > 0 && rest.is_empty()
    };
    if text.split(',').all(clause) {
        Ok(())
    } else if text.starts_with(|c: char| c.is_ascii_digit()) {
        Err(octal())
    } else {
        Err(format!("invalid chmod parameter: '{text}'. it should be octal, or symbolic such as `u=rwX,go=rX`"))
    }
}

/// What a source of `ADD` points to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Address {
    /// A path.
    Path,
    /// `http` or `https`.
    Http,
    /// A git repository.
    Git,
}

/// The address with its credentials made unreadable, as BuildKit writes it (`util/urlutil`). The user of a git address that
/// speaks SSH is no secret.
pub(super) fn redact(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    let Some((user, _)) = authority.rsplit_once('@') else { return text.to_owned() };
    let hidden = match user.contains(':') {
        true => "xxxxx:xxxxx",
        false if !scheme.starts_with("http") => return text.to_owned(),
        false => "xxxxx",
    };
    format!("{scheme}://{hidden}{}", &rest[user.len()..])
}

/// Whether the id of a commit can begin so.
pub(super) fn is_commit_start(text: &str) -> bool {
    text.len() <= 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Tells paths, web addresses and git repositories apart (BuildKit `util/gitutil`).
pub(super) fn address(text: &str) -> Address {
    if text.starts_with("git://") || text.starts_with("ssh://") {
        return Address::Git;
    }
    if text.starts_with("http://") || text.starts_with("https://") {
        let path = text.split(['#', '?']).next().unwrap_or(text);
        return if path.ends_with(".git") { Address::Git } else { Address::Http };
    }
    // `user@host:path`, as ssh takes it.
    let scp_like = text.split_once('@').is_some_and(|(user, rest)| {
        let word = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        word(user) && rest.split_once(':').is_some_and(|(host, path)| word(host) && !path.is_empty())
    });
    if scp_like { Address::Git } else { Address::Path }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_hidden() {
        let rows = [
            ("https://u:p@h/a.git#x", "https://xxxxx:xxxxx@h/a.git#x"),
            ("https://token@h/a", "https://xxxxx@h/a"),
            ("https://u:p@ss@h/a", "https://xxxxx:xxxxx@h/a"),
            ("https://h/a@b", "https://h/a@b"),
            ("ssh://git@h/a", "ssh://git@h/a"),
            ("ssh://git:p@h/a", "ssh://xxxxx:xxxxx@h/a"),
            ("git@h:a", "git@h:a"),
        ];
        for (text, want) in rows {
            assert_eq!(redact(text), want);
        }
    }

    #[test]
    fn signals() {
        for (text, want) in [
            ("SIGTERM", true),
            ("term", true),
            ("9", true),
            ("SIGRTMIN+3", true),
            ("RTMAX", true),
            ("RTMIN+16", false),
            ("0", false),
            ("SIGFOO", false),
            ("", false),
        ] {
            assert_eq!(is_signal(text), want, "{text}");
        }
    }

    #[test]
    fn modes() {
        for (text, want) in [
            ("644", true),
            ("07777", true),
            ("10000", false),
            ("8", false),
            ("u=rwX,go=rX", true),
            ("+x", true),
            ("a+r-w", true),
            ("u", false),
            ("7x", false),
            ("z=r", false),
        ] {
            assert_eq!(check_mode(text).is_ok(), want, "{text}");
        }
    }

    #[test]
    fn addresses() {
        for (text, want) in [
            ("a/b", Address::Path),
            ("http://x/a", Address::Http),
            ("https://x/a.git", Address::Git),
            ("https://x/a.git#main:sub", Address::Git),
            ("https://x/a.git?ref=v1", Address::Git),
            ("https://x/a.gitx", Address::Http),
            ("git@github.com:a/b", Address::Git),
            ("ssh://git@h/a", Address::Git),
            ("github.com/a/b", Address::Path),
            ("a@b", Address::Path),
            ("x/y@h:z", Address::Path),
        ] {
            assert_eq!(address(text), want, "{text}");
        }
    }
}
