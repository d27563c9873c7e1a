//! Failures and the text that a person reads of them.

use super::*;
use std::sync::Arc;

use kiln_frontend::lint::Rule;

const PLAIN: Report = Report { debug: false, colour: false, is_build: true };

fn dockerfile() -> Arc<Source> {
    Arc::new(Source::new("Dockerfile", b"FROM busybox\nRUN make\nCMD x\n".to_vec()).unwrap())
}

fn command_failed() -> Failure {
    let source = dockerfile();
    let span = source.span_of_lines(2, 2);
    Failure::Kiln(Error::Step {
        name: "[2/2] RUN make".into(),
        location: Some((source, span)),
        meant: None,
        cause: Box::new(StepError::Command {
            command: "/bin/sh -c make".into(),
            status: "exit code: 2".into(),
            code: Some(2),
            tail: Vec::new(),
        }),
    })
}

#[test]
fn a_failed_step_ends_with_buildx_line() {
    let text = PLAIN.text(&command_failed());
    assert!(text.starts_with("Dockerfile:2\n--------------------\n"), "{text}");
    assert!(text.contains("   2 | >>> RUN make\n"), "{text}");
    let last = "ERROR: failed to build: failed to solve: process \"/bin/sh -c make\" did not complete successfully: exit code: 2";
    assert_eq!(text.lines().last(), Some(last));
    assert_eq!(command_failed().exit(), Exit::Failed);
}

#[test]
fn failed_tasks_are_repeated() {
    let mut out = Vec::new();
    let lines = vec![b"0.1 one".to_vec(), b"0.2 two".to_vec()];
    PLAIN.write_failed(&mut out, &[FailedTask { name: "[2/2] RUN make".into(), dropped: 3, lines }]);
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "------\n > [2/2] RUN make:\n... 3 earlier lines ...\n0.1 one\n0.2 two\n------\n"
    );
}

#[test]
fn every_mistake_is_shown() {
    let source = dockerfile();
    let mistake = |line: u32, text: &str| Diagnostic::error(text).at(source.span_of_lines(line, line)).with_hint("try another");
    let one =
        Failure::Kiln(Error::Dockerfile { source_text: dockerfile(), diagnostics: vec![mistake(2, "unknown instruction: RUM")] });
    let text = PLAIN.text(&one);
    assert!(text.contains(">>> RUN make"), "{text}");
    assert!(
        text.ends_with("hint: try another\nERROR: failed to build: failed to solve: Dockerfile:2: unknown instruction: RUM\n"),
        "{text}"
    );
    assert_eq!(one.exit(), Exit::Dockerfile);

    let two = Error::Dockerfile { source_text: dockerfile(), diagnostics: vec![mistake(2, "first"), mistake(3, "second")] };
    let text = PLAIN.text(&Failure::Kiln(two));
    assert!(text.contains("error: Dockerfile:2: first\nhint: try another\n"), "{text}");
    assert!(text.contains("error: Dockerfile:3: second\n"), "{text}");
    assert!(text.ends_with("ERROR: failed to build: failed to solve: Dockerfile:2: first (and 1 more)\n"), "{text}");
}

#[test]
fn lints_are_listed_as_buildx_does() {
    let source = dockerfile();
    let lint = Diagnostic::lint(Rule::StageNameCasing, "stage name `X` should be lowercase", source.span_of_lines(1, 1));
    assert_eq!(
        PLAIN.lints(std::slice::from_ref(&lint), &source),
        "\n 1 warning found (use --debug to expand):\n - StageNameCasing: stage name `X` should be lowercase (line 1)\n"
    );
    let debug = Report { debug: true, ..PLAIN }.lints(&[lint.clone(), lint], &source);
    assert!(debug.starts_with("\n 2 warnings found:\n - StageNameCasing: "), "{debug}");
    assert!(
        debug.contains("More info: https://docs.docker.com/go/dockerfile/rule/stage-name-casing/\nDockerfile:1\n"),
        "{debug}"
    );
    assert_eq!(PLAIN.lints(&[], &source), "");
}

#[test]
fn other_failures() {
    let report = Report { is_build: false, ..PLAIN };
    let denied = || io::Error::from(io::ErrorKind::PermissionDenied);
    let rows: Vec<(Failure, Exit, &str)> = vec![
        (Failure::usage("bad flag"), Exit::Usage, "ERROR: bad flag\n"),
        (Failure::usage_hint("bad", "do this"), Exit::Usage, "hint: do this\nERROR: bad\n"),
        (Failure::NoSuchImage("x".into()), Exit::Failed, "hint: `kiln images` lists what there is\nERROR: no such image: x\n"),
        (Failure::Write { path: "/x".into(), cause: denied() }, Exit::Failed, "ERROR: cannot write /x: permission denied\n"),
        (Failure::Interrupted { terminated: true }, Exit::Terminated, "ERROR: interrupted by SIGTERM\n"),
        (
            kiln_store::Error::Io { op: "open", path: "/store".into(), source: io::Error::from_raw_os_error(13) }.into(),
            Exit::Store,
            "ERROR: can't open /store: Permission denied\n",
        ),
    ];
    for (failure, exit, want) in rows {
        assert_eq!(report.text(&failure), want);
        assert_eq!(failure.exit(), exit);
    }
    let coloured = Report { colour: true, ..report }.text(&Failure::usage("bad"));
    assert_eq!(coloured, "\x1b[1;31mERROR:\x1b[0m bad\n");
}
