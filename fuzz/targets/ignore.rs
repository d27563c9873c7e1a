//! Hides what must hold for any ignore file and any path, and for a pattern of `filepath.Match` and any name.
//!
//! The input is an ignore file, a line that holds only `--`, and paths, one a line.
#![no_main]

use kiln_frontend::glob::{has_wildcards, path_match};
use kiln_frontend::ignore::{PatternMatcher, State};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let marker = b"\n--\n";
    let (file, paths) = match data.windows(marker.len()).position(|w| w == marker) {
        Some(at) => (&data[..at], &data[at + marker.len()..]),
        None => (data, data),
    };
    let paths: Vec<&[u8]> = paths.split(|b| *b == b'\n').filter(|path| is_relative(path)).take(50).collect();
    walk(file, &paths);
    for line in file.split(|b| *b == b'\n').take(50) {
        paths.iter().for_each(|path| pattern(line, path));
    }
});

/// A path as a walk makes it.
fn is_relative(path: &[u8]) -> bool {
    path.split(|b| *b == b'/').all(|part| !matches!(part, b"" | b"." | b".."))
}

/// The directories above a path and the path itself, the topmost first.
fn ancestry(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    (0..=path.len()).filter(|i| path.get(*i).is_none_or(|b| *b == b'/')).map(|i| &path[..i])
}

/// What a walk finds out step by step is what the whole path says, and what may be skipped holds nothing.
fn walk(file: &[u8], paths: &[&[u8]]) {
    let Ok(matcher) = PatternMatcher::parse(file) else { return };
    for path in paths {
        let mut state = State::default();
        let (mut ignored, mut skipped) = (false, false);
        for part in ancestry(path) {
            (ignored, state) = matcher.step(&state, part);
            assert!(!skipped || ignored, "{:?} lies in a folder that was skipped", String::from_utf8_lossy(part));
            skipped = skipped || (ignored && matcher.can_skip(part, &state));
        }
        // With a `!` a walk may know less than the whole path does: a pattern that could change nothing for a folder isn't
        // asked again for what is in it (as in moby's `MatchesUsingParentResults`).
        if !matcher.has_exclusions() {
            assert_eq!(ignored, matcher.matches(path), "{:?}", String::from_utf8_lossy(path));
            assert!(!ignored || skipped, "nothing can be taken in again without a `!`");
        }
        if matcher.is_empty() {
            assert!(!ignored);
        }
    }
}

/// One pattern, by `filepath.Match` and by the matcher of whole paths.
fn pattern(pattern: &[u8], path: &[u8]) {
    let result = path_match(pattern, path);
    let special = pattern.iter().any(|b| b"*?[\\".contains(b));
    assert!(special || !has_wildcards(pattern));
    if !special {
        assert_eq!(result, Ok(pattern == path));
    }
    assert_eq!(result.is_err(), path_match(pattern, b"").is_err(), "an error depends on the pattern alone");
    if let Ok(found) = result {
        // With stars that cross slashes, and classes that may hold one, the two are not the same.
        let text = std::str::from_utf8(pattern).ok().filter(|text| is_relative(text.as_bytes()) && text.trim() == *text);
        let comparable =
            |text: &&str| !text.contains("**") && !text.contains(['[', '!', '\0']) && std::str::from_utf8(path).is_ok();
        if let Some(text) = text.filter(comparable) {
            let matcher = PatternMatcher::from_patterns([text]).expect("a sound pattern");
            let any = ancestry(path).any(|part| path_match(pattern, part) == Ok(true));
            assert_eq!(matcher.matches(path), any, "{text:?} {:?}", String::from_utf8_lossy(path));
            assert!(!found || any);
        }
    }
}
