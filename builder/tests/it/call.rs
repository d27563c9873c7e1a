//! `--call check|outline|targets`: `testdata/call/*` holds what BuildKit 0.25 and buildx 0.29 answer for the same file, the
//! serialised build steps in the JSON of `check` left out; `codes` holds their exit codes, `args` more flags.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::home::Home;

/// What is answered must be what was recorded; where nothing was, because there is no answer but an error, nothing.
#[test]
fn answers_are_those_of_buildkit() {
    let home = Home::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/call");
    let mut folders: Vec<_> = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    assert!(folders.len() > 10);
    let mut failures = Vec::new();
    for folder in &folders {
        let context = home.context("c", &fs::read_to_string(folder.join("Dockerfile")).unwrap());
        let context = context.to_str().unwrap();
        let args = fs::read_to_string(folder.join("args")).unwrap_or_default();
        for line in fs::read_to_string(folder.join("codes")).unwrap().lines() {
            let (method, code) = line.split_once(' ').unwrap();
            for form in ["txt", "json"] {
                let call = format!("--call={method},format={form}");
                let outcome = home.run(["build", &call].into_iter().chain(args.lines()).chain([context]));
                let want = fs::read_to_string(folder.join(format!("{method}.{form}"))).unwrap_or_default();
                let got = outcome.stdout.replace(&format!("{context}/"), "CONTEXT/");
                let same = match form {
                    "json" if !want.is_empty() => {
                        serde_json::from_str::<Value>(&got).ok() == Some(serde_json::from_str::<Value>(&want).unwrap())
                    }
                    _ => got == want,
                };
                if !same || outcome.status.success() != (code == "0") {
                    failures.push(format!("{} {call}\n--- want {code}\n{want}\n--- got {outcome:?}", folder.display()));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn where_an_answer_goes() {
    let home = Home::offline();
    let lints = "FROM scratch as web\nCOPY . /\n";
    let context = home.context("c", lints);
    let path = context.to_str().unwrap();
    // Lints are the answer of `check`, and remarks beside that of others.
    let outcome = home.run(["build", "--check", path]).fails(1);
    assert!(outcome.stdout.contains("FromAsCasing") && !outcome.stderr.contains("FromAsCasing"), "{outcome:?}");
    let outcome = home.run(["build", "--call=outline", path]).ok().says(&["1 warning found", "FromAsCasing"]);
    assert_eq!(outcome.stdout, "TARGET: web\n\n");
    assert!(!home.run(["build", "-q", "--call=outline", path]).ok().stderr.contains("FromAsCasing"));
    home.run(["build", "--call=check,ignorestatus=true", path]).ok();
    let metadata = home.path("metadata.json");
    home.run(["build", "--call=targets", "--metadata-file", metadata.to_str().unwrap(), path]).ok();
    let metadata: Value = serde_json::from_slice(&fs::read(metadata).unwrap()).unwrap();
    assert_eq!(metadata["result.json"]["targets"][0]["name"], "web");
    assert_eq!(metadata["result.txt"], "TARGET        DESCRIPTION\nweb (default) \n");
    // From standard input, and from a file elsewhere.
    let outcome = home.run_with_input(["build", "--check", "-"], lints).fails(1);
    assert!(outcome.stdout.contains("\nstdin:1\n"), "{outcome:?}");
    let outcome = home.run(["build", "--check", "-f", "c/Dockerfile", "context"]).fails(1);
    assert!(outcome.stdout.contains("\nc/Dockerfile:1\n"), "{outcome:?}");
    // Nothing is built, and `targets` needs no base.
    let outcome =
        home.run(["build", "--call=targets", "-t", "x", home.context("d", "FROM no.example/image\n").to_str().unwrap()]);
    assert_eq!(outcome.ok().stdout, "TARGET    DESCRIPTION\n(default) \n");
    assert!(!home.run(["images"]).ok().stdout.contains('x'));
    home.run(["build", "--call=subrequests", path]).fails(125).says(&["unsupported request frontend.subrequests"]);
}

/// Build checks that fired are told however the build ends.
#[test]
fn lints_of_builds_that_fail() {
    let home = Home::new();
    let lints = ["1 warning found", " - StageNameCasing: Stage name 'Up' should be lowercase (line 1)"];
    for (dockerfile, code, why) in [
        ("FROM busybox AS Up\nRUN false\n", 1, "exit code: 1"),
        ("FROM busybox AS Up\nCOPY nothing /\n", 1, "\"/nothing\": not found"),
        ("FROM busybox AS Up\nSTOPSIGNAL XX\n", 3, "invalid signal: XX"),
        ("FROM busybox AS Up\nRUM true\n", 3, "unknown instruction"),
        ("FROM busybox AS Up\nCOPY --from=localhost:1/x / /\n", 4, "localhost:1"),
    ] {
        home.run(["build", home.context("c", dockerfile).to_str().unwrap()]).fails(code).says(&lints).says(&[why]);
    }
    let strict = home.context("c", "# check=error=true\nFROM scratch AS Up\nCOPY . /\n");
    let strict = strict.to_str().unwrap();
    home.run(["build", strict]).fails(3).says(&[
        "StageNameCasing: Stage name 'Up' should be lowercase (line 2)",
        "ERROR: failed to build: failed to solve: lint violation found for rules: StageNameCasing",
    ]);
    home.run(["build", "--build-arg=BUILDKIT_DOCKERFILE_CHECK=skip=all", strict]).ok();
    home.run(["build", "--build-arg=BUILDKIT_DOCKERFILE_CHECK=foo", strict])
        .fails(3)
        .says(&["failed to parse build-arg:BUILDKIT_DOCKERFILE_CHECK: invalid check option \"foo\""]);
}

/// What the ignore file leaves out can't be copied, which an experimental check says.
#[test]
fn copies_of_ignored_files() {
    let home = Home::offline();
    home.write("c/.dockerignore", "secret\n");
    let context = home.context("c", "# check=experimental=CopyIgnoredFile\nFROM scratch\nCOPY secret other /\n");
    let outcome = home.run(["build", "--check", context.to_str().unwrap()]).fails(1);
    assert!(outcome.stdout.contains("Attempting to Copy file \"secret\" that is excluded by .dockerignore"), "{outcome:?}");
    assert!(!outcome.stdout.contains("\"other\""), "{outcome:?}");
}
