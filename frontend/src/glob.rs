//! Hides how Go matches a file name against a pattern (`path/filepath.Match` on Unix).

/// A pattern that can never match anything because it is malformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("syntax error in pattern")]
pub struct BadPattern;

/// Whether the whole of `name` matches `pattern`: `*` and `?` don't cross `/`, `[a-z]` and `[^a-z]` match a character,
/// `\` takes the next character as it is.
///
/// Bytes that are not UTF-8 count as one character each.
///
/// # Errors
/// [`BadPattern`] for an unclosed or empty class or a trailing `\`, wherever the match fails.
pub fn path_match(pattern: &[u8], name: &[u8]) -> Result<bool, BadPattern> {
    let mut pattern = pattern;
    let mut name = name;
    while !pattern.is_empty() {
        let (star, chunk, rest) = next_chunk(pattern);
        pattern = rest;
        if star && chunk.is_empty() {
            // A star at the end takes everything but a slash.
            return Ok(!name.contains(&b'/'));
        }
        // Without a star the chunk must match here.
        if let Some(left) = match_chunk(chunk, name)? {
            // The last chunk must use up the name; otherwise a longer star may still do so.
            if left.is_empty() || !pattern.is_empty() {
                name = left;
                continue;
            }
        }
        if star {
            let mut found = false;
            for skip in 0..name.len() {
                if name[skip] == b'/' {
                    break;
                }
                if let Some(left) = match_chunk(chunk, &name[skip + 1..])? {
                    if pattern.is_empty() && !left.is_empty() {
                        continue;
                    }
                    name = left;
                    found = true;
                    break;
                }
            }
            if found {
                continue;
            }
        }
        // It can't match any more, but the rest of the pattern must still be sound.
        while !pattern.is_empty() {
            let (_, chunk, rest) = next_chunk(pattern);
            pattern = rest;
            match_chunk(chunk, b"")?;
        }
        return Ok(false);
    }
    Ok(name.is_empty())
}

/// Whether `text` has a wildcard that is not escaped: `*`, `?` or `[`.
#[must_use]
pub fn has_wildcards(text: &[u8]) -> bool {
    let mut bytes = text.iter();
    while let Some(b) = bytes.next() {
        match b {
            b'*' | b'?' | b'[' => return true,
            b'\\' => {
                bytes.next();
            }
            _ => {}
        }
    }
    false
}

/// Cuts off leading stars and what follows up to the next star.
fn next_chunk(pattern: &[u8]) -> (bool, &[u8], &[u8]) {
    let stars = pattern.iter().take_while(|b| **b == b'*').count();
    let pattern = &pattern[stars..];
    let mut in_class = false;
    let mut i = 0;
    while i < pattern.len() {
        match pattern[i] {
            b'\\' if i + 1 < pattern.len() => i += 1,
            b'[' => in_class = true,
            b']' => in_class = false,
            b'*' if !in_class => break,
            _ => {}
        }
        i += 1;
    }
    (stars > 0, &pattern[..i], &pattern[i..])
}

/// What is left of `text` behind `chunk`; `None` if it doesn't begin with it. Goes on to the end of the chunk even
/// after a mismatch, to find syntax errors.
fn match_chunk<'t>(mut chunk: &[u8], mut text: &'t [u8]) -> Result<Option<&'t [u8]>, BadPattern> {
    let mut failed = false;
    while let Some((&first, rest)) = chunk.split_first() {
        failed = failed || text.is_empty();
        match first {
            b'[' => {
                let mut have = 0;
                if !failed {
                    let (c, left) = decode(text);
                    have = c;
                    text = left;
                }
                chunk = rest;
                let negated = chunk.first() == Some(&b'^');
                chunk = &chunk[usize::from(negated)..];
                let mut hit = false;
                let mut ranges = 0;
                loop {
                    if chunk.first() == Some(&b']') && ranges > 0 {
                        chunk = &chunk[1..];
                        break;
                    }
                    let (low, left) = class_end(chunk)?;
                    chunk = left;
                    let mut high = low;
                    if chunk.first() == Some(&b'-') {
                        (high, chunk) = class_end(&chunk[1..])?;
                    }
                    hit = hit || (low <= have && have <= high);
                    ranges += 1;
                }
                failed = failed || hit == negated;
            }
            b'?' => {
                if !failed {
                    failed = text[0] == b'/';
                    text = decode(text).1;
                }
                chunk = rest;
            }
            b'\\' => {
                let (&escaped, rest) = rest.split_first().ok_or(BadPattern)?;
                take_byte(escaped, &mut text, &mut failed);
                chunk = rest;
            }
            byte => {
                take_byte(byte, &mut text, &mut failed);
                chunk = rest;
            }
        }
    }
    Ok((!failed).then_some(text))
}

fn take_byte(byte: u8, text: &mut &[u8], failed: &mut bool) {
    if *failed {
        return;
    }
    *failed = text[0] != byte;
    *text = &text[1..];
}

/// One end of a range in a class; there must be more behind it.
fn class_end(chunk: &[u8]) -> Result<(u32, &[u8]), BadPattern> {
    let chunk = match chunk.first() {
        None | Some(b'-' | b']') => return Err(BadPattern),
        Some(b'\\') => &chunk[1..],
        Some(_) => chunk,
    };
    if chunk.is_empty() {
        return Err(BadPattern);
    }
    let (c, rest) = decode(chunk);
    // Go refuses bytes that are not UTF-8 in a class, and a class that isn't closed.
    if (c == INVALID && chunk.len() - rest.len() == 1) || rest.is_empty() {
        return Err(BadPattern);
    }
    Ok((c, rest))
}

/// What Go reads for a byte that is not UTF-8.
const INVALID: u32 = 0xFFFD;

/// The first character and the rest; `text` is not empty.
pub(crate) fn decode(text: &[u8]) -> (u32, &[u8]) {
    let len = match text[0] {
        0..0x80 => 1,
        0x80..0xE0 => 2,
        0xE0..0xF0 => 3,
        _ => 4,
    };
    match text.get(..len).and_then(|bytes| std::str::from_utf8(bytes).ok()).and_then(|s| s.chars().next()) {
        Some(c) => (u32::from(c), &text[len..]),
        None => (INVALID, &text[1..]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of Go's own `path/filepath/match_test.go`, and a few rows more.
    #[test]
    fn as_go_matches() {
        let t = Ok(true);
        let f = Ok(false);
        let bad = Err(BadPattern);
        let rows = [
            ("abc", "abc", t),
            ("*", "abc", t),
            ("*c", "abc", t),
            ("a*", "a", t),
            ("a*", "abc", t),
            ("a*", "ab/c", f),
            ("a*/b", "abc/b", t),
            ("a*/b", "a/c/b", f),
            ("a*b*c*d*e*/f", "axbxcxdxe/f", t),
            ("a*b*c*d*e*/f", "axbxcxdxexxx/f", t),
            ("a*b*c*d*e*/f", "axbxcxdxe/xxx/f", f),
            ("a*b*c*d*e*/f", "axbxcxdxexxx/fff", f),
            ("a*b?c*x", "abxbbxdbxebxczzx", t),
            ("a*b?c*x", "abxbbxdbxebxczzy", f),
            ("ab[c]", "abc", t),
            ("ab[b-d]", "abc", t),
            ("ab[e-g]", "abc", f),
            ("ab[^c]", "abc", f),
            ("ab[^b-d]", "abc", f),
            ("ab[^e-g]", "abc", t),
            ("a\\*b", "a*b", t),
            ("a\\*b", "ab", f),
            ("a?b", "a☺b", t),
            ("a[^a]b", "a☺b", t),
            ("a???b", "a☺b", f),
            ("a[^a][^a][^a]b", "a☺b", f),
            ("[a-ζ]*", "α", t),
            ("*[a-ζ]", "A", f),
            ("a?b", "a/b", f),
            ("a*b", "a/b", f),
            ("[\\]a]", "]", t),
            ("[\\-]", "-", t),
            ("[x\\-]", "x", t),
            ("[x\\-]", "-", t),
            ("[x\\-]", "z", f),
            ("[\\-x]", "x", t),
            ("[\\-x]", "-", t),
            ("[\\-x]", "a", f),
            ("[]a]", "]", bad),
            ("[-]", "-", bad),
            ("[x-]", "x", bad),
            ("[x-]", "-", bad),
            ("[x-]", "z", bad),
            ("[-x]", "x", bad),
            ("[-x]", "-", bad),
            ("[-x]", "a", bad),
            ("\\", "a", bad),
            ("[a-b-c]", "a", bad),
            ("[", "a", bad),
            ("[^", "a", bad),
            ("[^bc", "a", bad),
            ("a[", "a", bad),
            ("a[", "ab", bad),
            ("a[", "x", bad),
            ("a/b[", "x", bad),
            ("*x", "xxx", t),
            ("[[]a", "[a", t),
            ("", "", t),
            ("", "a", f),
            ("**", "a", t),
            ("[^a]", "/", t),
        ];
        for (pattern, name, want) in rows {
            assert_eq!(path_match(pattern.as_bytes(), name.as_bytes()), want, "{pattern} {name}");
        }
        assert_eq!(path_match(b"a?b", b"a\xffb"), t);
        assert_eq!(path_match(b"a\xff", b"a\xff"), t);
    }

    #[test]
    fn wildcards() {
        for (text, want) in [("a", false), ("a*", true), ("a\\*", false), ("[a", true), ("\\\\?", true)] {
            assert_eq!(has_wildcards(text.as_bytes()), want, "{text}");
        }
    }
}
