//! Hides what in a text may be a credential of an address: everything between `://` and `@`.

/// What BuildKit writes in the place of a user and of a password.
const HIDDEN: &str = "xxxxx";

/// The text with the user and the password of each address in it made unreadable. Lines stay where they are.
///
/// The user of an ssh address is no secret, unless there is a password behind it.
pub fn redact(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        let end = after.find(|c: char| matches!(c, '/' | '?' | '#' | '"' | '\'' | '\\' | '`') || c.is_whitespace());
        let (authority, tail) = after.split_at(end.unwrap_or(after.len()));
        let is_ssh = before.ends_with("ssh://");
        // The `@` of an image stands before its digest.
        let is_image = ["docker-image://", "oci-layout://"].iter().any(|scheme| before.ends_with(scheme));
        match authority.rsplit_once('@') {
            Some((user, host)) if !is_image && (!is_ssh || user.contains(':')) => {
                out.push_str(HIDDEN);
                if user.contains(':') {
                    out.push(':');
                    out.push_str(HIDDEN);
                }
                out.push('@');
                out.push_str(host);
            }
            _ => out.push_str(authority),
        }
        rest = tail;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_credentials_are_hidden() {
        for (text, expected) in [
            ("http://u:p@h:1/a.git#b", "http://xxxxx:xxxxx@h:1/a.git#b"),
            ("https://token@h/a", "https://xxxxx@h/a"),
            ("https://h/a@b", "https://h/a@b"),
            ("ssh://git@h/a", "ssh://git@h/a"),
            ("ssh://git:p@h/a", "ssh://xxxxx:xxxxx@h/a"),
            ("git@h:a/b", "git@h:a/b"),
            ("ADD https://u:p@h/a \\\n https://x:p@@i/b /\n", "ADD https://xxxxx:xxxxx@h/a \\\n https://xxxxx:xxxxx@i/b /\n"),
            ("curl -H 'x' \"http://u:p@h\"", "curl -H 'x' \"http://xxxxx:xxxxx@h\""),
            ("pip --index https://__token__:${PASS}@pypi.test/simple", "pip --index https://xxxxx:xxxxx@pypi.test/simple"),
            ("docker-image://busybox@sha256:00", "docker-image://busybox@sha256:00"),
            ("docker-image://me/busybox@sha256:00", "docker-image://me/busybox@sha256:00"),
            ("://", "://"),
            ("no address", "no address"),
        ] {
            assert_eq!(redact(text), expected, "{text}");
        }
    }
}
