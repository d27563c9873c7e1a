//! The command as people and scripts use it: verbs, flags, what goes to which stream, machine-readable listings.

use std::fs;
use std::process::Stdio;

use crate::support::archive::Image;
use crate::support::home::{Home, finish, same_bytes};
use crate::support::lab;

fn names(home: &Home) -> Vec<String> {
    let rows = home.run(["images", "--format", "json"]).ok().json();
    let mut found: Vec<String> =
        rows.iter().map(|r| format!("{}:{}", r["Repository"].as_str().unwrap(), r["Tag"].as_str().unwrap())).collect();
    found.sort();
    found
}

#[test]
fn help_and_version_need_nothing() {
    let home = Home::offline();
    let version = home.run(["version"]).ok();
    assert!(version.stdout.contains(env!("CARGO_PKG_VERSION")), "{version:?}");
    assert_eq!(version.stderr, "");
    assert!(home.run(["--version"]).ok().stdout.contains(env!("CARGO_PKG_VERSION")));
    for args in [&["--help"][..], &["build", "--help"], &["push", "--help"], &["prune", "--help"]] {
        let help = home.run(args).ok();
        assert!(help.stdout.contains("Usage") && help.stderr.is_empty(), "{help:?}");
    }
    for flag in [
        "--tag",
        "--file",
        "--build-arg",
        "--target",
        "--no-cache",
        "--pull",
        "--push",
        "--output",
        "--iidfile",
        "--progress",
        "--quiet",
    ] {
        assert!(home.run(["build", "--help"]).ok().stdout.contains(flag), "{flag}");
    }
    assert!(!home.store().exists(), "asking for help makes no store");
}

#[test]
fn a_build_speaks_on_standard_error_and_keeps_standard_output_for_data() {
    let home = Home::new();
    let context = home.context("c", "FROM busybox\nRUN echo to out; echo to err >&2\n");
    let path = context.to_str().unwrap();
    let outcome = home.run(["build", "-t", "x", path]).ok().says(&["to out", "to err", "RUN echo"]);
    assert_eq!(outcome.stdout, "");
    let quiet = home.run(["build", "-q", path]).ok();
    assert!(quiet.stdout.starts_with("sha256:") && quiet.stdout.trim().len() == 71, "{quiet:?}");
    assert_eq!(quiet.stderr, "");
    let id = home.run(["inspect", "x"]).ok().json()[0]["Id"].as_str().unwrap().to_owned();
    assert_eq!(quiet.stdout.trim(), id);
    // A quiet build still tells why it failed.
    home.context("bad", "FROM busybox\nRUN echo why; false\n");
    home.run(["build", "-q", home.path("bad").to_str().unwrap()]).fails(1).says(&["why", "Dockerfile:2"]);
}

#[test]
fn plain_progress_has_the_lines_that_people_search_for() {
    let home = Home::new();
    let context = home.context("c", "FROM busybox AS base\nRUN echo hello\nFROM base\nCOPY Dockerfile /\n");
    let outcome = home.run(["build", "--progress=plain", "-t", "lines", context.to_str().unwrap()]).ok();
    outcome.says(&[
        "load build definition from Dockerfile",
        "load metadata for docker.io/library/busybox:latest",
        "load .dockerignore",
        "[base 2/2] RUN echo hello",
        "[stage-1 1/1] COPY Dockerfile /",
        " hello",
        "DONE",
        "exporting to image",
        "naming to docker.io/library/lines",
    ]);
}

#[test]
fn files_for_scripts() {
    let home = Home::new();
    let context = home.context("c", "FROM busybox\nLABEL a=b\n");
    let (id, metadata) = (home.path("id"), home.path("metadata.json"));
    let args =
        ["build", "-t", "x:1", "-t", "y", "--iidfile", id.to_str().unwrap(), "--metadata-file", metadata.to_str().unwrap()];
    home.run(args.into_iter().chain([context.to_str().unwrap()])).ok();
    let id = fs::read_to_string(id).unwrap();
    assert_eq!(home.run(["inspect", "x:1"]).ok().json()[0]["Id"], *id);
    let metadata: serde_json::Value = serde_json::from_slice(&fs::read(metadata).unwrap()).unwrap();
    assert_eq!(metadata["containerimage.config.digest"], *id);
    assert_eq!(metadata["image.name"], "docker.io/library/x:1,docker.io/library/y:latest");
}

#[test]
fn flags_of_build_reach_the_image() {
    let home = Home::new();
    home.write(
        "c/other/Special",
        "ARG WHO=nobody\nFROM busybox AS first\nARG WHO\nLABEL who=$WHO a=file\nFROM first\nRUN false\n",
    );
    let file = home.path("c/other/Special");
    let mut command = home.command();
    command.env("WHO", "from-environment").args(["build", "-f", file.to_str().unwrap(), "--build-arg", "WHO"]);
    command.args(["--label", "a=flag", "--label", "b=c", "--target", "first", "-t", "flags"]).arg(home.path("c"));
    finish(&mut command).ok();
    let labels = home.run(["inspect", "flags"]).ok().json()[0]["Config"]["Labels"].clone();
    assert_eq!(labels["who"], "from-environment");
    assert_eq!(labels["a"], "flag");
    assert_eq!(labels["b"], "c");
}

#[test]
fn a_dockerfile_from_standard_input() {
    let home = Home::new();
    home.run_with_input(["build", "-t", "stdin", "-"], "FROM busybox\nRUN echo from stdin\n").ok().says(&["from stdin"]);
    home.write("c/f", "f");
    home.run_with_input(["build", "-t", "stdin", "-f", "-", "c"], "FROM busybox\nCOPY f /\nRUN cat /f\n").ok();
    home.run_with_input(["build", "-"], "FROM busybox\nCOPY f /\n").fails(1).says(&["-", "f"]);
}

#[test]
fn the_life_of_a_name() {
    let home = Home::new();
    home.build("one", "FROM busybox\nRUN echo 1 > /f\n").ok();
    assert_eq!(names(&home), ["one:latest"]);
    home.run(["tag", "one", "registry.example/two:v2"]).ok();
    assert_eq!(names(&home), ["one:latest", "registry.example/two:v2"]);
    let table = home.run(["images"]).ok();
    assert!(table.stdout.starts_with("REPOSITORY") && table.stdout.contains("registry.example/two"), "{table:?}");
    let id = home.run(["inspect", "one"]).ok().json()[0]["Id"].as_str().unwrap().to_owned();
    let quiet = home.run(["images", "-q"]).ok().stdout;
    assert!(quiet.lines().all(|l| id[7..].starts_with(l)) && !quiet.is_empty(), "{quiet}");
    let removed = home.run(["rmi", "one"]).ok();
    assert!(removed.stdout.contains("Untagged: one:latest"), "{removed:?}");
    assert_eq!(names(&home), ["registry.example/two:v2"]);
    // By the beginning of its id.
    home.run(["tag", &id[7..19], "three"]).ok();
    home.run(["rmi", "three", "registry.example/two:v2"]).ok();
    assert_eq!(names(&home), [] as [&str; 0]);
}

#[test]
fn a_name_that_moves_leaves_the_old_image() {
    let home = Home::new();
    home.build("moving", "FROM busybox\nLABEL v=1\n").ok();
    home.run(["tag", "moving", "kept"]).ok();
    home.build("moving", "FROM busybox\nLABEL v=2\n").ok();
    let label = |name: &str| home.run(["inspect", name]).ok().json()[0]["Config"]["Labels"]["v"].clone();
    assert_eq!((label("moving"), label("kept")), ("2".into(), "1".into()));
}

#[test]
fn history_is_told_newest_first() {
    let home = Home::new();
    home.build("h", "FROM busybox\nRUN echo a > /a\nENV x=y\nCMD [\"z\"]\n").ok();
    let rows = home.run(["history", "--no-trunc", "--format", "json", "h"]).ok().json();
    let lines: Vec<&str> = rows.iter().map(|r| r["CreatedBy"].as_str().unwrap()).collect();
    assert_eq!(lines[..3], ["CMD [\"z\"]", "ENV x=y", "RUN /bin/sh -c echo a > /a # buildkit"]);
    assert_eq!(lines.len(), 4);
    let table = home.run(["history", "h"]).ok().stdout;
    assert!(table.starts_with("IMAGE") && table.contains("CREATED BY"), "{table}");
}

#[test]
fn inspect_says_what_docker_inspect_says() {
    let home = Home::new();
    let dockerfile = "FROM busybox\nENV a=b\nEXPOSE 80\nUSER app\nWORKDIR /w\nLABEL l=m\nVOLUME /v\nSTOPSIGNAL SIGINT\n\
                      HEALTHCHECK --interval=3s CMD true\nENTRYPOINT [\"e\"]\nCMD [\"c\"]\n";
    home.build("i", dockerfile).ok();
    let told = home.run(["inspect", "i"]).ok().json().remove(0);
    assert_eq!(told["RepoTags"][0], "i:latest");
    assert_eq!((&told["Architecture"], &told["Os"]), (&"amd64".into(), &"linux".into()));
    let config = &told["Config"];
    assert_eq!(config["Env"][1], "a=b");
    assert_eq!(config["User"], "app");
    assert_eq!(config["WorkingDir"], "/w");
    assert_eq!(config["Labels"]["l"], "m");
    assert!(config["ExposedPorts"]["80/tcp"].is_object() && config["Volumes"]["/v"].is_object());
    assert_eq!(config["Healthcheck"]["Interval"], 3_000_000_000_u64);
    assert_eq!((&config["Entrypoint"][0], &config["Cmd"][0]), (&"e".into(), &"c".into()));
    assert_eq!(told["RootFS"]["Layers"].as_array().map(Vec::len), Some(2));
    assert!(told["Created"].as_str().unwrap().starts_with("20") && told["Id"].as_str().unwrap().starts_with("sha256:"));
}

#[test]
fn saved_images_are_loaded_with_their_names_and_bytes() {
    let home = Home::new();
    home.build("saved:1", "FROM busybox\nRUN echo s > /s\n").ok();
    let file = home.path("image.tar");
    home.run(["save", "-o", file.to_str().unwrap(), "saved:1"]).ok();
    let again = home.path("again.tar");
    let mut command = home.command();
    command.args(["save", "saved:1"]).stdout(Stdio::from(fs::File::create(&again).unwrap()));
    finish(&mut command).ok();
    assert!(same_bytes(&file, &again), "the same image gives the same archive, in a file or on standard output");
    Image::read(&file).unwrap();
    let other = Home::new();
    let loaded = other.run(["load", "-i", file.to_str().unwrap()]).ok();
    assert!(loaded.stdout.contains("Loaded image: saved:1"), "{loaded:?}");
    assert_eq!(names(&other), ["saved:1"]);
    let id = |home: &Home| home.run(["inspect", "saved:1"]).ok().json()[0]["Id"].clone();
    assert_eq!(id(&home), id(&other));
    // From standard input, into a store that has it already.
    let mut command = other.command();
    finish(command.arg("load").stdin(fs::File::open(&file).unwrap())).ok();
    other.build("child", "FROM saved:1\nRUN grep s /s\n").ok();
}

#[test]
fn an_archive_on_standard_output() {
    let home = Home::new();
    let context = home.context("c", "FROM busybox\nRUN echo x > /x\n");
    let file = home.path("out.tar");
    let mut command = home.command();
    command.args(["build", "--output", "type=oci,dest=-"]).arg(&context);
    finish(command.stdout(Stdio::piped())).ok();
    let mut command = home.command();
    command.args(["build", "--output", "type=oci,dest=-"]).arg(&context);
    let output = command.output().unwrap();
    fs::write(&file, output.stdout).unwrap();
    assert_eq!(Image::read(&file).unwrap().layers.len(), 2);
}

#[test]
fn du_and_prune_tell_and_free_what_no_image_needs() {
    let home = Home::new();
    home.build("kept", "FROM busybox\nRUN head -c 1000000 /dev/urandom > /big\n").ok();
    home.build("dropped", "FROM busybox\nRUN head -c 3000000 /dev/urandom > /big\n").ok();
    let rows = home.run(["du", "--format", "json"]).ok().json();
    assert!(!rows.is_empty());
    let table = home.run(["du"]).ok().stdout;
    assert!(table.contains("Reclaimable") || table.contains("RECLAIMABLE"), "{table}");
    home.run(["rmi", "dropped"]).ok();
    let size = || -> u64 {
        let told = std::process::Command::new("du").arg("-sb").arg(home.store()).output().unwrap();
        String::from_utf8(told.stdout).unwrap().split_whitespace().next().unwrap().parse().unwrap()
    };
    let before = size();
    let pruned = home.run(["prune", "-a", "-f"]).ok();
    assert!(format!("{}{}", pruned.stdout, pruned.stderr).contains("reclaimed"), "{pruned:?}");
    assert!(size() + 2_500_000 < before, "{before} bytes before, {} after", size());
    home.build("child", "FROM kept\nRUN test $(stat -c %s /big) -eq 1000000\n").ok();
}

/// Nothing is printed in a form that only a terminal wants when there is no terminal.
#[test]
fn no_escape_codes_without_a_terminal() {
    let home = Home::new();
    let context = home.context("c", "FROM busybox\nRUN printf '\\033[31mred\\033[0m\\n'; false\n");
    let mut command = home.command();
    command.env_remove("NO_COLOR").arg("build").arg(context);
    let outcome = finish(&mut command).fails(1);
    let own: Vec<&str> = outcome.stderr.lines().filter(|l| !l.contains("red")).collect();
    assert!(!own.join("\n").contains('\u{1b}'), "{outcome:?}");
}

#[test]
fn pull_and_listings_take_images_by_short_names() {
    let home = Home::new();
    let pulled = home.run(["pull", "busybox"]).ok();
    assert!(pulled.stdout.contains("docker.io/library/busybox:latest"), "{pulled:?}");
    assert_eq!(names(&home), ["busybox:latest"]);
    for name in ["busybox", "library/busybox", "docker.io/library/busybox:latest", "index.docker.io/busybox"] {
        home.run(["inspect", name]).ok();
    }
    assert!(lab::registry().requests("library/busybox").iter().any(|r| r.starts_with("GET")));
}
