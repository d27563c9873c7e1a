//! Tests of what `--call` takes, and of tables.

use super::*;

#[test]
fn methods() {
    let call = |question, json, ignore_status| Some(Call { question, json, ignore_status });
    let rows = [
        ("", None),
        ("build", None),
        ("build,format=json", None),
        ("check", call(Question::Check, false, false)),
        ("lint", call(Question::Check, false, false)),
        ("outline,format=json", call(Question::Outline, true, false)),
        ("format=json,outline", call(Question::Outline, true, false)),
        ("targets,format=xml", call(Question::Targets, false, false)),
        ("check,ignorestatus=1", call(Question::Check, false, true)),
    ];
    for (text, want) in rows {
        assert_eq!(Call::parse(text).unwrap(), want, "{text}");
    }
    let rows = [
        ("foo", "unsupported request frontend.foo"),
        ("outline,foo=1", "invalid print field: foo=1"),
        ("outline,outline", "invalid print value: outline,outline"),
        ("check,ignorestatus=maybe", "invalid ignorestatus print value: maybe"),
    ];
    for (text, want) in rows {
        assert_eq!(Call::parse(text).unwrap_err().to_string(), want);
    }
}

#[test]
fn shorthand() {
    let args = |call: Option<&str>, check| BuildArgs { call: call.map(str::to_owned), check, ..BuildArgs::default() };
    let asks = |args: &BuildArgs| Call::asked(args).unwrap().map(|call| call.question);
    assert_eq!(asks(&args(Some("outline"), Some(true))), Some(Question::Check));
    assert_eq!(asks(&args(Some("outline"), Some(false))), Some(Question::Outline));
    assert_eq!(asks(&args(None, None)), None);
}

#[test]
fn columns() {
    let rows = [cells(&["A", "BB", "C"]), cells(&["ä", "", "long"]), cells(&["", "x", ""])];
    assert_eq!(table(&rows, 1), "A BB C\nä    long\n  x  \n");
}
