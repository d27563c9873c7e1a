//! Rows of expansion.

use super::*;

fn env() -> Env {
    Env::from_texts([
        "PWD=/home",
        "SHELL=bash",
        "KOREAN=한국어",
        "NULL=",
        "ARCH=x86_64",
        "P=a/b/c.tar.gz",
        "STAR=a*b*c",
        "SP=1 2",
    ])
}

#[test]
fn words() {
    let rows: &[(&str, Result<&str, &str>)] = &[
        ("hello", Ok("hello")),
        ("he'll'o", Ok("hello")),
        ("he'llo", Err("unexpected end of statement while looking for matching single-quote")),
        ("he\\'llo", Ok("he'llo")),
        ("he\\\\'llo", Err("unexpected end of statement while looking for matching single-quote")),
        ("abc\\tdef", Ok("abctdef")),
        ("'abc\\tdef'", Ok("abc\\tdef")),
        ("\"abc\\tdef\"", Ok("abc\\tdef")),
        ("\"abc\\\\tdef\"", Ok("abc\\tdef")),
        ("he\"llo", Err("unexpected end of statement while looking for matching double-quote")),
        ("\"he'llo\"", Ok("he'llo")),
        ("hello\\", Ok("hello")),
        ("\"hello\\\"", Err("unexpected end of statement while looking for matching double-quote")),
        ("hel lo", Ok("hel lo")),
        ("'$PWD'", Ok("$PWD")),
        ("\"$PWD\"", Ok("/home")),
        ("\\$PWD", Ok("$PWD")),
        ("\"\\$PWD\"", Ok("$PWD")),
        ("$PWD.x", Ok("/home.x")),
        ("${PWD}x", Ok("/homex")),
        ("a$", Ok("a$")),
        ("$ a", Ok("$ a")),
        ("$1x$12y", Ok("xy")),
        ("${", Err("syntax error: missing '}'")),
        ("${}", Err("syntax error: bad substitution")),
        ("${:}", Err("syntax error: bad substitution")),
        ("${PWD", Err("syntax error: missing '}'")),
        ("${PWD:", Err("syntax error: missing '}'")),
        ("${PWD:+x", Err("syntax error: missing '}'")),
        ("${PWD:*x}", Err("unsupported modifier (:*) in substitution")),
        ("${PWD^x}", Err("unsupported modifier (^) in substitution")),
        ("${X:-}", Ok("")),
        ("${X:-w}", Ok("w")),
        ("${X-w}", Ok("w")),
        ("${NULL:-w}", Ok("w")),
        ("${NULL-w}", Ok("")),
        ("${PWD:-w}", Ok("/home")),
        ("${PWD:+w}", Ok("w")),
        ("${NULL:+w}", Ok("")),
        ("${NULL+w}", Ok("w")),
        ("${X+w}", Ok("")),
        ("${X:-${PWD}/${Y:-z}}", Ok("/home/z")),
        ("${X:-'}'}", Ok("}")),
        ("${X:-\\}}", Ok("}")),
        ("${X:?}", Err("X: is not allowed to be unset")),
        ("${X:?gone}", Err("X: gone")),
        ("${NULL:?}", Err("NULL: is not allowed to be empty")),
        ("${NULL?}", Ok("")),
        ("${PWD:?gone}", Ok("/home")),
        ("${P#*/}", Ok("b/c.tar.gz")),
        ("${P##*/}", Ok("c.tar.gz")),
        ("${P%.*}", Ok("a/b/c.tar")),
        ("${P%%.*}", Ok("a/b/c")),
        ("${P%/*}", Ok("a/b")),
        ("${P#nope}", Ok("a/b/c.tar.gz")),
        ("${P#?}", Ok("/b/c.tar.gz")),
        ("${ARCH%_*}", Ok("x86")),
        ("${STAR#a\\*}", Ok("b*c")),
        ("${STAR%\\**}", Ok("a*b")),
        ("${STAR%%\\**}", Ok("a")),
        ("${P:#a}", Err("unsupported modifier (:#) in substitution")),
        ("${P#\\a}", Err("invalid pattern (\\a) in substitution: invalid escape '\\a'")),
        ("${P/b/x}", Ok("a/x/c.tar.gz")),
        ("${P/a*b/x}", Ok("x/c.tar.gz")),
        ("${P//\\//-}", Ok("a-b-c.tar.gz")),
        ("${P//./}", Ok("a/b/ctargz")),
        ("${P/?/x}", Ok("x/b/c.tar.gz")),
        ("${P//[ab]/x}", Ok("a/b/c.tar.gz")),
        ("${P/b}", Err("syntax error: missing '/' in ${}")),
        ("${P/b/x", Err("syntax error: missing '}'")),
        ("${X/a/b}", Ok("")),
        ("$KOREAN", Ok("한국어")),
        ("안녕\\$KOREAN", Ok("안녕$KOREAN")),
        ("${KOREAN%?}", Ok("한국")),
        ("", Ok("")),
    ];
    for (word, want) in rows {
        let got = Lexer::new('\\').expand(word, &env()).map(|e| e.text).map_err(|e| e.to_string());
        assert_eq!(got.as_deref().map_err(String::as_str), *want, "{word}");
    }
}

#[test]
fn splitting() {
    let rows: &[(&str, &[&str])] = &[
        ("hello world", &["hello", "world"]),
        ("  a\tb  ", &["a", "b"]),
        ("a\\ b", &["a b"]),
        ("'a b' c", &["a b", "c"]),
        ("$SP", &["1", "2"]),
        ("x${SP}y", &["x1", "2y"]),
        ("\"$SP\"", &["1 2"]),
        ("80 $X 90", &["80", "90"]),
        ("''", &[]),
    ];
    for (word, want) in rows {
        assert_eq!(Lexer::new('\\').expand(word, &env()).unwrap().words, *want, "{word}");
    }
}

#[test]
fn raw_forms() {
    let raw = Lexer { raw_quotes: true, keep_unset: true, ..Lexer::new('\\') };
    let heredoc = Lexer { ignore_quotes: true, ..Lexer::new('\\') };
    let rows = [
        (raw, "echo 'a' \"$PWD\" $X ${X:-b} ${X}", "echo 'a' \"/home\" $X ${X:-b} ${X}"),
        (heredoc, "it's \"$PWD\" \\$PWD\n", "it's \"/home\" $PWD\n"),
        (Lexer::new('`'), "C:\\x`$PWD", "C:\\x$PWD"),
        (Lexer { raw_escapes: true, ..raw }, "a\\ b \"c\\$d\"", "a\\ b \"c\\$d\""),
    ];
    for (lexer, word, want) in rows {
        assert_eq!(lexer.expand(word, &env()).unwrap().text, want, "{word}");
    }
}

#[test]
fn names_are_reported() {
    let e = Lexer::new('\\').expand("$PWD ${X:-$Y} $NULL", &env()).unwrap();
    assert_eq!(e.matched.into_iter().collect::<Vec<_>>(), ["NULL", "PWD"]);
    assert_eq!(e.unmatched.into_iter().collect::<Vec<_>>(), ["X", "Y"]);
}

#[test]
fn nesting_is_bounded() {
    let deep = "${X:-".repeat(20_000);
    assert_eq!(Lexer::new('\\').expand(&deep, &env()).unwrap_err(), ExpandError::TooDeep);
}

/// Found by fuzzing: each level multiplies the length.
#[test]
fn growth_is_bounded() {
    let mut env = env();
    env.set("TEN", "0123456789");
    let word = format!("{}x{}", "${TEN//?/".repeat(40), "}".repeat(40));
    assert_eq!(Lexer::new('\\').expand(&word, &env).unwrap_err(), ExpandError::TooLong);
    env.set("LONG", &"x".repeat(MAX_GROWTH / 2));
    assert_eq!(Lexer::new('\\').expand("$LONG$LONG", &env).unwrap().text.len(), MAX_GROWTH);
    assert_eq!(Lexer::new('\\').expand("$LONG$LONG$TEN", &env).unwrap_err(), ExpandError::TooLong);
}

/// A pattern is looked for in linear time, even where it has stars and isn't found.
#[test]
fn searching_is_quick() {
    let mut env = env();
    env.set("LONG", &"a".repeat(MAX_GROWTH / 2));
    let got = Lexer::new('\\').expand("${LONG//a*b/x}", &env).unwrap();
    assert_eq!(got.text.len(), MAX_GROWTH / 2);
}

#[test]
fn setting_again_moves_to_the_end() {
    let mut env = Env::from_texts(["A=1", "B=2", "C"]);
    env.set("A", "3");
    assert_eq!(env.entries(), [("B".into(), "2".into()), ("C".into(), String::new()), ("A".into(), "3".into())]);
}
