//! Rows of instructions.

use super::*;

fn first(text: &str) -> Result<Kind, String> {
    let source = Source::from_text("Dockerfile", format!("FROM scratch\n{text}"));
    let lines = crate::parser::split(&source);
    let mut diagnostics = lines.diagnostics.clone();
    let file = parse_lines(&lines, &mut diagnostics);
    match diagnostics.into_iter().find(Diagnostic::is_error) {
        Some(error) => Err(match error.hint {
            Some(hint) => format!("{} | {hint}", error.message),
            None => error.message,
        }),
        None => Ok(file.stages[0].instructions[0].kind.clone()),
    }
}

#[test]
fn mistakes() {
    let rows = [
        ("RUM x", "unknown instruction: RUM | did you mean `RUN`?"),
        ("XYZZY x", "unknown instruction: XYZZY"),
        ("COPY a", "COPY requires at least two arguments, but only one was provided. Destination could not be determined"),
        ("COPY", "COPY requires at least two arguments, but only one was provided. Destination could not be determined"),
        ("COPY --form=x a b", "unknown flag: --form | did you mean `--from`?"),
        ("ADD --from=x a b", "unknown flag: --from"),
        ("COPY --chown a b", "missing a value on flag: --chown"),
        ("COPY --chown=a --chown=b a b", "duplicate flag specified: --chown"),
        ("COPY --link= a b", "missing a value on flag: --link"),
        ("COPY --link=1 a b", "expecting boolean value for flag --link, not: 1"),
        (
            "COPY --from=$x a b",
            "variable expansion is not supported for --from, define a new stage with FROM using ARG from global scope as a workaround | write `ARG` before the first FROM, then `FROM $NAME AS source` and `COPY --from=source`",
        ),
        ("COPY a <<EOF\nEOF", "COPY cannot accept a heredoc as a destination"),
        ("RUN <<EOF\nx", "unterminated heredoc | end it with a line that holds only `EOF`"),
        ("RUN [\"a\", 1]", "when using JSON array syntax, arrays must be comprised of strings only"),
        ("ENV a", "ENV must have two arguments"),
        ("ENV", "ENV requires at least one argument"),
        ("ENV a=b c", "Syntax error - can't find = in \"c\". Must be of the form: name=value | quote a value that holds blanks"),
        ("ENV =b", "ENV names can not be blank"),
        ("LABEL a", "LABEL must have two arguments"),
        ("ARG", "ARG requires at least one argument"),
        ("ARG =x", "ARG names can not be blank"),
        ("FROM", "FROM requires either one or three arguments | write `FROM IMAGE` or `FROM IMAGE AS NAME`"),
        ("FROM a b", "FROM requires either one or three arguments | write `FROM IMAGE` or `FROM IMAGE AS NAME`"),
        ("FROM a AS 1b", "invalid name for build stage: \"1b\", name can't start with a number or contain symbols"),
        ("FROM --platfrom=x a", "unknown flag: --platfrom | did you mean `--platform`?"),
        ("USER", "USER requires exactly one argument"),
        ("WORKDIR", "WORKDIR requires exactly one argument"),
        ("STOPSIGNAL", "STOPSIGNAL requires exactly one argument"),
        ("EXPOSE", "EXPOSE requires at least one argument"),
        ("VOLUME", "VOLUME requires at least one argument"),
        ("VOLUME [\" \"]", "VOLUME specified can not be an empty string"),
        ("SHELL", "SHELL requires at least one argument"),
        ("SHELL []", "SHELL requires at least one argument"),
        (
            "SHELL bash",
            "SHELL requires the arguments to be in JSON form: SHELL bash | for example `SHELL [\"/bin/bash\", \"-c\"]`",
        ),
        ("ONBUILD", "ONBUILD requires at least one argument"),
        ("ONBUILD ONBUILD RUN x", "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"),
        ("ONBUILD FROM x", "FROM isn't allowed as an ONBUILD trigger"),
        ("ONBUILD MAINTAINER x", "MAINTAINER isn't allowed as an ONBUILD trigger"),
        ("HEALTHCHECK", "HEALTHCHECK requires at least one argument"),
        ("HEALTHCHECK NONE x", "HEALTHCHECK NONE takes no arguments"),
        ("HEALTHCHECK CMD", "Missing command after HEALTHCHECK CMD"),
        ("HEALTHCHECK FOO x", "Unknown type \"FOO\" in HEALTHCHECK (try CMD)"),
        ("HEALTHCHECK --interval=1us CMD x", "Interval \"interval\" cannot be less than 1ms"),
        (
            "HEALTHCHECK --interval=5 CMD x",
            "--interval: time: missing unit in duration \"5\" | write a number and a unit: `500ms`, `5s`, `1m30s`",
        ),
        ("HEALTHCHECK --retries=x CMD x", "--retries must be a number, not \"x\""),
        ("RUN --network=hots x", "network mode \"hots\" is not valid | did you mean `host`?"),
        ("RUN --security=x y", "security \"x\" is not valid | one of sandbox, insecure is expected"),
        ("RUN --mount=from=$a x", "'from' doesn't support variable expansion, define alias stage instead"),
    ];
    for (text, want) in rows {
        let got = first(text).unwrap_err();
        assert_eq!(got, want, "{text}");
    }
}

#[test]
fn commands() {
    let shell = |text: &str| CommandLine::Shell(text.to_owned());
    let exec = |args: &[&str]| CommandLine::Exec(args.iter().map(|a| (*a).to_owned()).collect());
    let rows = [
        ("CMD a  b", shell("a  b")),
        ("CMD [\"a\",\"b\"]", exec(&["a", "b"])),
        ("CMD [ \"a\" , \"\\u00e9\" ]  ", exec(&["a", "é"])),
        ("CMD [\"a\", 'b']", shell("[\"a\", 'b']")),
        ("CMD ['a']", shell("['a']")),
        ("CMD [a]", shell("[a]")),
        ("CMD [ -d x ]", shell("[ -d x ]")),
        ("CMD [\"a\"] x", shell("[\"a\"] x")),
        ("CMD []", exec(&[])),
        ("CMD", shell("")),
        ("cmd x", shell("x")),
        ("CMD\tx", shell("x")),
    ];
    for (text, want) in rows {
        assert_eq!(first(text).unwrap(), Kind::Cmd(want), "{text}");
    }
}

#[test]
fn names_and_values() {
    type Row = (&'static str, &'static [(&'static str, &'static str, bool)]);
    let rows: &[Row] = &[
        ("ENV a b c=d", &[("a", "b c=d", true)]),
        ("ENV a   b  c", &[("a", "b  c", true)]),
        ("ENV a=b\\ c d=\"e f\"", &[("a", "b\\ c", false), ("d", "\"e f\"", false)]),
        ("ENV a=\"b\\\"c\" d='e\\' f=g", &[("a", "\"b\\\"c\"", false), ("d", "'e\\'", false), ("f", "g", false)]),
        ("ENV a= b=''", &[("a", "", false), ("b", "''", false)]),
        ("ENV a=b=c", &[("a", "b=c", false)]),
        ("ENV \"a b\"=c", &[("\"a b\"", "c", false)]),
        ("ENV a=b \\\n  c=d", &[("a", "b", false), ("c", "d", false)]),
    ];
    for (text, want) in rows {
        let Kind::Env(pairs) = first(text).unwrap() else { panic!("{text}") };
        let got: Vec<_> = pairs.iter().map(|p| (p.name.as_str(), p.value.as_str(), p.legacy)).collect();
        assert_eq!(got, *want, "{text}");
    }
    let Kind::Arg(args) = first("ARG a b=c d=\"e f\"").unwrap() else { panic!() };
    let got: Vec<_> = args.iter().map(|a| (a.name.as_str(), a.value.as_deref())).collect();
    assert_eq!(got, [("a", None), ("b", Some("c")), ("d", Some("\"e f\""))]);
}

#[test]
fn transfers() {
    let Kind::Copy(t) = first("COPY --from=a --chown=1:2 --chmod=644 --link --parents --exclude=x --exclude=y b c /d/").unwrap()
    else {
        panic!()
    };
    assert_eq!((t.from.as_deref(), t.chown.as_str(), t.chmod.as_str(), t.link, t.parents), (Some("a"), "1:2", "644", true, true));
    assert_eq!(
        (t.sources, t.dest.as_str(), t.exclude),
        (vec!["b".to_owned(), "c".into()], "/d/", vec!["x".to_owned(), "y".into()])
    );
    let Kind::Add(t) = first("ADD --keep-git-dir=false --unpack --checksum=sha256:x http://a /b").unwrap() else { panic!() };
    assert_eq!((t.keep_git_dir, t.unpack, t.checksum.as_str()), (Some(false), Some(true), "sha256:x"));
    let Kind::Copy(t) = first("COPY [\"a b\", \"/c d/\"]").unwrap() else { panic!() };
    assert_eq!((t.sources, t.dest.as_str()), (vec!["a b".to_owned()], "/c d/"));
    let Kind::Copy(t) = first("COPY <<-\"E\" x <<F /d/\n\ta $x\n\tE\nb $x\nF").unwrap() else { panic!() };
    let inline: Vec<_> = t.inline.iter().map(|i| (i.name.as_str(), i.data.as_str(), i.expand)).collect();
    assert_eq!((inline, t.sources), (vec![("E", "a $x\n", false), ("F", "b $x\n", true)], vec!["x".to_owned()]));
}

#[test]
fn onbuild_keeps_the_text() {
    for (text, want) in [
        ("ONBUILD RUN  echo 'a'", "RUN  echo 'a'"),
        ("onbuild   COPY <<E /\nx\nE", "COPY <<E /\nx\nE"),
        ("ONBUILD \\\n RUN a", "RUN a"),
    ] {
        assert_eq!(first(text).unwrap(), Kind::Onbuild(want.to_owned()), "{text}");
    }
    let span = Span { start: 0, end: 0, first_line: 3, last_line: 3 };
    assert_eq!(parse_trigger("RUN a\nRUN b", span).unwrap_err().message, "onbuild trigger should be a single expression");
    assert!(matches!(parse_trigger("COPY <<E /\nx\nE", span).unwrap().kind, Kind::Copy(t) if t.inline[0].data == "x\n"));
}

#[test]
fn health() {
    let Kind::Healthcheck(HealthcheckSpec(check)) =
        first("HEALTHCHECK --interval=5s --retries=3 --start-interval=0 CMD a b").unwrap()
    else {
        panic!()
    };
    assert_eq!((check.test, check.interval, check.retries), (vec!["CMD-SHELL".to_owned(), "a b".into()], 5_000_000_000, 3));
    let Kind::Healthcheck(HealthcheckSpec(check)) = first("HEALTHCHECK cmd [\"a\"]").unwrap() else { panic!() };
    assert_eq!(check.test, ["CMD", "a"]);
    let Kind::Healthcheck(HealthcheckSpec(check)) = first("HEALTHCHECK NONE").unwrap() else { panic!() };
    assert_eq!(check.test, ["NONE"]);
}

#[test]
fn every_mistake_is_reported() {
    let source = Source::from_text("Dockerfile", "ENV a=b\nFROM a b\nRUM\nRUN x\nCOPY y\n".to_owned());
    let lines = crate::parser::split(&source);
    let mut diagnostics = Vec::new();
    let file = parse_lines(&lines, &mut diagnostics);
    let got: Vec<_> = diagnostics.iter().map(|d| d.span.unwrap().first_line).collect();
    assert_eq!((got, file.stages.len()), (vec![1, 2, 3, 5], 1));
}
