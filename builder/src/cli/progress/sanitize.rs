//! Hides what a log must not do to the terminal that shows it: move the cursor, change colours or titles, ring.

/// The text of one log line as it would look at the end of its writing: after the last carriage return, without
/// escape sequences and control characters, tabs as blanks.
pub(crate) fn visible(line: &[u8]) -> String {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let line = line.rsplit(|byte| *byte == b'\r').next().unwrap_or_default();
    let text = String::from_utf8_lossy(line);
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\x1b' => skip_escape(&mut chars),
            '\u{9b}' => skip_control_sequence(&mut chars),
            '\t' => out.push_str(&" ".repeat(8 - out.chars().count() % 8)),
            '\u{8}' => drop(out.pop()),
            // Marks that turn the direction of writing could make a line lie about itself.
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {}
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

type Chars<'a> = std::iter::Peekable<std::str::Chars<'a>>;

/// ECMA-48: `ESC [` begins a control sequence, `ESC ]`, `P`, `X`, `^`, `_` a string that BEL or `ESC \` ends.
fn skip_escape(chars: &mut Chars<'_>) {
    match chars.next() {
        Some('[') => skip_control_sequence(chars),
        Some(']' | 'P' | 'X' | '^' | '_') => {
            while let Some(c) = chars.next() {
                if c == '\x07' || c == '\u{9c}' {
                    return;
                }
                if c == '\x1b' {
                    chars.next_if_eq(&'\\');
                    return;
                }
            }
        }
        // `ESC ( B` and the like: intermediate bytes, then a final one.
        Some('\u{20}'..='\u{2f}') => {
            while chars.next_if(|c| ('\u{20}'..='\u{2f}').contains(c)).is_some() {}
            chars.next();
        }
        _ => {}
    }
}

fn skip_control_sequence(chars: &mut Chars<'_>) {
    while chars.next_if(|c| ('\u{20}'..='\u{3f}').contains(c)).is_some() {}
    chars.next_if(|c| ('\u{40}'..='\u{7e}').contains(c));
}

#[cfg(test)]
mod tests {
    use super::visible;

    #[test]
    fn lines() {
        let rows: &[(&[u8], &str)] = &[
            (b"plain", "plain"),
            (b"10%\r50%\r100%\r", "100%"),
            (b"\x1b[1;31mred\x1b[0m text", "red text"),
            (b"\x1b]0;title\x07rest", "rest"),
            (b"\x1b]8;;http://x\x1b\\link", "link"),
            (b"\x1b(Bx\x07y", "xy"),
            (b"a\tb", "a       b"),
            (b"ab\x08c", "ac"),
            (b"\x1b[2J\x1b[H", ""),
            (b"\xff\xfe", "\u{fffd}\u{fffd}"),
            (b"cut \x1b[", "cut "),
            ("a\u{202e}b".as_bytes(), "ab"),
        ];
        for (line, want) in rows {
            assert_eq!(visible(line), *want, "{:?}", String::from_utf8_lossy(line));
        }
    }
}
