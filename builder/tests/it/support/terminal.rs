//! A real terminal with somebody in front of it: `testdata/tools/terminal.py`.

use std::io::Write as _;
use std::process::{Command, Stdio};

use super::home::Home;
use super::lab;

/// Runs kiln in a terminal of 24 rows and 80 columns, does the steps, and answers what the screen has shown.
#[track_caller]
pub(crate) fn with(home: &Home, args: &[&str], steps: &str) -> String {
    let kiln = home.command();
    let mut driver = Command::new("python3");
    driver.arg(lab::workspace().join("testdata/tools/terminal.py")).args(["24", "80"]).arg(kiln.get_program()).args(args);
    for (name, value) in kiln.get_envs() {
        match value {
            Some(value) => driver.env(name, value),
            None => driver.env_remove(name),
        };
    }
    driver.current_dir(home.path("")).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut driver = driver.spawn().expect("python3 is there");
    driver.stdin.take().expect("it is piped").write_all(steps.as_bytes()).expect("it reads its steps");
    let output = driver.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{args:?}\n{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
