//! Hides what must hold for any word that is expanded.
//!
//! The input is text. Its first line is letters that choose how to expand, its second the value of `X`, the rest the word.
#![no_main]

use kiln_frontend::expand::{Env, Expansion, Lexer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        check(text);
    }
});

fn check(text: &str) {
    let mut parts = text.splitn(3, '\n');
    let (options, value, word) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""), parts.next().unwrap_or(""));
    let lexer = Lexer {
        escape: if options.contains('b') { '`' } else { '\\' },
        raw_quotes: options.contains('q'),
        raw_escapes: options.contains('e'),
        ignore_quotes: options.contains('i'),
        keep_unset: options.contains('k'),
    };
    let env = Env::from_texts([format!("X={value}").as_str(), "A=1", "EMPTY=", "V=foo/bar/baz.tar.gz", "S= a b  c "]);
    if let Ok(got) = lexer.expand(word, &env) {
        sound(&lexer, word, &env, &got);
    }
    plain_forms(word, &env);
    patterns(value, word, &env);
}

/// What holds however the word is expanded.
fn sound(lexer: &Lexer, word: &str, env: &Env, got: &Expansion) {
    assert!(got.matched.iter().all(|name| env.get(name).is_some()));
    assert!(got.unmatched.iter().all(|name| env.get(name).is_none()));
    let blank = |c: char| c.is_whitespace();
    let quoted = |c: char| matches!(c, '"' | '\'');
    if !word.contains('$') {
        assert!(got.matched.is_empty() && got.unmatched.is_empty());
    }
    if !word.contains(|c: char| c == '$' || c == lexer.escape || (quoted(c) && !lexer.ignore_quotes)) {
        assert_eq!(got.text, word);
        // Blanks between `<<` and a delimiter end no word.
        let heredoc = word.contains("<<");
        assert!(heredoc || got.words == word.split(blank).filter(|w| !w.is_empty()).collect::<Vec<_>>(), "{got:?}");
    }
    // Words are the text but for blanks.
    let letters = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
    assert_eq!(letters(&got.words.concat()), letters(&got.text), "{got:?}");
    assert!(got.words.iter().all(|w| !w.is_empty()));
}

/// Ways to write a text so that expanding gives it back.
fn plain_forms(text: &str, env: &Env) {
    let plain = Lexer::new('\\');
    if !text.contains('\'') {
        let got = plain.expand(&format!("'{text}'"), env).expect("quotes pair");
        assert_eq!(got.text, text);
        assert_eq!(got.words.concat(), text, "one word");
        let raw = Lexer { raw_quotes: true, ..plain }.expand(&format!("'{text}'"), env).expect("quotes pair");
        assert_eq!(raw.text, format!("'{text}'"));
    }
    let escaped: String = text.chars().flat_map(|c| ['\\', c]).collect();
    let got = plain.expand(&escaped, env).expect("nothing but escaped characters");
    assert_eq!(got.text, text);
    assert_eq!(got.words.concat(), text);
    assert!(got.words.len() <= 1 && got.matched.is_empty() && got.unmatched.is_empty());
    let double: String = text.chars().map(|c| if "\"$\\".contains(c) { format!("\\{c}") } else { c.to_string() }).collect();
    assert_eq!(plain.expand(&format!("\"{double}\""), env).expect("quotes pair").text, text);
}

/// `${X#…}` and its kin against a matcher that tries everything.
fn patterns(value: &str, pattern: &str, env: &Env) {
    let plain = Lexer::new('\\');
    let text = |word: String| plain.expand(&word, env).map(|e| e.text);
    for word in ["$X", "${X}", "${X:-}", "${X-w}", "${X#}", "${X%}", "${NONE:-$X}", "${EMPTY:-${X}}", "${A:+$X}", "\"$X\""] {
        assert_eq!(text(word.to_owned()).as_deref(), Ok(value), "{word}");
    }
    assert_eq!(text("${X##*}${X%%*}${NONE}".to_owned()).as_deref(), Ok(""));
    if pattern.contains(['$', '}', '"', '\'', '\\', '/', '#', '%']) || value.len() > 40 || pattern.len() > 20 {
        return;
    }
    let chars: Vec<char> = value.chars().collect();
    let wanted: Vec<char> = pattern.chars().collect();
    let cut = |from: usize, to: usize| chars[from..to].iter().collect::<String>();
    let len = chars.len();
    let starts: Vec<usize> = (0..=len).filter(|end| fits(&wanted, &chars[..*end])).collect();
    let ends: Vec<usize> = (0..=len).filter(|start| fits(&wanted, &chars[*start..])).collect();
    let rows = [
        ("#", cut(starts.first().copied().unwrap_or(0), len)),
        ("##", cut(starts.last().copied().unwrap_or(0), len)),
        ("%", cut(0, ends.last().copied().unwrap_or(len))),
        ("%%", cut(0, ends.first().copied().unwrap_or(len))),
    ];
    for (operator, want) in rows {
        assert_eq!(text(format!("${{X{operator}{pattern}}}")), Ok(want), "{operator}");
    }
    if pattern.is_empty() {
        // `${X//` replaces all.
        return;
    }
    let found = (0..=len).find_map(|start| Some((start, (start..=len).rfind(|end| fits(&wanted, &chars[start..*end]))?)));
    let want = found.map_or_else(|| value.to_owned(), |(start, end)| format!("{}<>{}", cut(0, start), cut(end, len)));
    assert_eq!(text(format!("${{X/{pattern}/<>}}")), Ok(want), "/");
    // What is replaced by itself stays.
    if !pattern.contains(['*', '?']) {
        assert_eq!(text(format!("${{X//{pattern}/{pattern}}}")).as_deref(), Ok(value), "//");
        assert_eq!(text(format!("${{X//{pattern}/<>}}")), Ok(value.replace(pattern, "<>")), "//");
    }
}

/// Whether the whole text matches, by rows of a table.
fn fits(pattern: &[char], text: &[char]) -> bool {
    let mut row = vec![false; text.len() + 1];
    row[0] = true;
    for wanted in pattern {
        let mut next = vec![false; text.len() + 1];
        for at in 0..=text.len() {
            next[at] = match wanted {
                '*' => row[at] || (at > 0 && next[at - 1]),
                '?' => at > 0 && row[at - 1],
                c => at > 0 && row[at - 1] && text[at - 1] == *c,
            };
        }
        row = next;
    }
    row[text.len()]
}
