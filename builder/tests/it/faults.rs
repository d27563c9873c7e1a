//! kiln killed at its system calls, and with system calls that fail (F01, F02, F05, F07, F09, F10); `testdata/tools/faults.py` has the
//! commands, the faults, and what must hold afterwards.

use std::process::Command;

use crate::support::home::{Home, WAYS, program};
use crate::support::host::own_uid;
use crate::support::lab::workspace;
use crate::support::skip::{needs, skipped};

/// `KILN_TEST_FAULTS` (`make torture`: `5000 3000`) says how many kills and errors; else a sample is tried, and never for more than
/// two minutes.
#[test]
fn kills_and_failing_calls_leave_a_store_that_works() {
    const TEST: &str = "kills_and_failing_calls_leave_a_store_that_works";
    if own_uid() != 0 || std::env::consts::ARCH != "x86_64" {
        return skipped(TEST, "the tracer needs root and x86-64");
    }
    if !needs(TEST, "docker-registry") || !needs(TEST, "newuidmap") || !needs(TEST, "htpasswd") {
        return;
    }
    let asked = std::env::var("KILN_TEST_FAULTS").unwrap_or_default();
    let (kills, errors) = asked.split_once(' ').unwrap_or(("120", "120"));
    let mut command = Command::new("python3");
    command.arg(workspace().join("testdata/tools/faults.py")).arg(program());
    command.args(["--kills", kills, "--errors", errors]);
    if asked.is_empty() {
        command.args(["--seconds", "100"]);
    }
    // All modes are tried anyway; a run of the tests in another way than the host's best has that one alone.
    match (std::env::var("KILN_TEST_MODE").as_deref(), WAYS.iter().any(|(asked, _)| std::env::var_os(asked).is_some())) {
        (Ok(mode @ ("rootless" | "one-id")), _) => drop(command.args(["--modes", mode])),
        (_, true) => drop(command.args(["--modes", "copy"])),
        _ => {}
    }
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    print!("{said}");
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
}

/// F10: so few open files as some machines allow.
#[test]
fn sixty_four_open_files_are_enough() {
    let home = Home::new();
    let mut dockerfile = "FROM busybox AS one\nRUN mkdir /o && echo out > /o/z\nFROM busybox\nCOPY src /src\n".to_owned();
    for i in 0..6 {
        dockerfile += &format!("FROM busybox AS s{i}\nRUN echo {i} > /r{i}\nCOPY src /src\n");
    }
    dockerfile += "FROM busybox\nCOPY src /src\nCOPY --from=one /o /o\n";
    for i in 0..6 {
        dockerfile += &format!("COPY --from=s{i} /r{i} /\n");
    }
    let context = home.context("c", &dockerfile);
    for i in 0..200 {
        home.write(&format!("c/src/d{}/f{i}", i % 20), format!("{i}\n"));
    }
    let archive = home.path("out.tar");
    let kiln = home.command();
    let mut command = Command::new("prlimit");
    command.arg("--nofile=64:64").arg(kiln.get_program()).args(["build", "-t", "few", "--output"]);
    command.arg(format!("type=oci,dest={}", archive.display())).arg(&context).current_dir(home.path("")).env_clear();
    for (name, value) in kiln.get_envs() {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    command.env("PATH", std::env::var_os("PATH").unwrap());
    crate::support::home::finish(&mut command).ok();
    home.left_nothing();
}
