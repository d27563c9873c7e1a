//! The same tests in the other modes: this program again, as who it takes.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

/// Names the way in which the program makes sandboxes, as `--isolation` of kiln's.
pub const ISOLATION: &str = "KILN_TEST_ISOLATION";

/// Runs every test of a class and answers for all of them.
fn again(mode: &str, mut command: Command) {
    let output = command.env(ISOLATION, "rootless").env("RUST_BACKTRACE", "0").output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    for line in text.lines().filter(|line| line.starts_with("skipped: ")) {
        println!("{line} (mode {mode})");
    }
    assert!(output.status.success(), "mode {mode}:\n{text}");
    assert!(text.contains(" passed; 0 failed"), "mode {mode}:\n{text}");
}

/// Mode D, as root.
pub fn nested() {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg("threats::");
    again("nested", command);
}

/// Mode B, as the user that `testdata/tools/setup.sh test` makes.
pub fn rootless() {
    let known = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let ids = |name: &str| -> Option<(String, String)> {
        let mut fields = known.lines().find(|line| line.split(':').next() == Some(name))?.split(':').skip(2);
        Some((fields.next()?.to_owned(), fields.next()?.to_owned()))
    };
    let (Some((uid, gid)), true) = (ids("kiln-subids"), rustix::process::geteuid().is_root()) else {
        return println!("skipped: threats::modes::rootless: there is no user kiln-subids, or this isn't root");
    };
    let folder = tempfile::Builder::new().prefix("kiln-mode-").tempdir().unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let program = folder.path().join("sandbox");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let mut command = Command::new("setpriv");
    command.arg(format!("--reuid={uid}")).arg(format!("--regid={gid}"));
    command.args(["--clear-groups", "--inh-caps=-all", "--ambient-caps=-all", "--"]).arg(&program).arg("threats::");
    command.env("USER", "kiln-subids").env("HOME", "/nonexistent").current_dir("/");
    again("rootless", command);
}
