//! Names tests that this host cannot run. The test harness knows no skipped state at run time, so each is written down
//! in the file that `KILN_TEST_SKIPS` names (`make test` shows and counts it) and said on the test's own output.

use std::io::Write;

/// Says that a test is skipped and why. The caller returns.
pub(crate) fn skipped(test: &str, reason: &str) {
    println!("skipped {test}: {reason}");
    if let Some(path) = std::env::var_os("KILN_TEST_SKIPS") {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
        let line = format!("{test}: {}\n", reason.lines().next().unwrap_or_default());
        file.and_then(|mut f| f.write_all(line.as_bytes())).expect("the list of skipped tests can be written");
    }
}

/// Whether the program is installed; says that the test is skipped when it isn't.
pub(crate) fn needs(test: &str, program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found =
        std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).any(|folder| folder.join(program).is_file());
    if !found {
        skipped(test, &format!("there is no {program}"));
    }
    found
}
