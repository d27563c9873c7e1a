//! All of this once more, by a user with ids in `/etc/subuid`: the test program is executed again as that user, and brings itself into a
//! user namespace.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

/// Whom `testdata/tools/setup.sh test` makes.
const USER: &str = "kiln-subids";

/// Tests that need what no user namespace has.
const NOT_THERE: &[(&str, &str)] = &[
    ("chroot::", "the mode is root's"),
    ("owners::", "the mode is that of one id"),
    ("rootless::", "that is this test"),
    ("modes::", "it is another user once more"),
    ("files::older_overlay_calls", "it makes a device"),
    ("mounts::binds", "it makes a device"),
    ("c19_odd_files", "it makes a device"),
    ("c33_d", "they make devices"),
    ("c26_c27_the_published_table", "the table is that of root's sandbox"),
    ("rights::insecure", "the rights are those of root"),
    ("killed_at_any_moment", "it takes long, and is the same"),
];

/// And one without.
const PLAIN_USER: &str = "kiln-plain";

pub fn the_same_by_a_user_with_ids() {
    let skipped = NOT_THERE.iter().flat_map(|(name, _)| ["--skip", name]);
    let Some((succeeded, said)) = again("the_same_by_a_user_with_ids", USER, &skipped.collect::<Vec<_>>()) else { return };
    let wrong: Vec<&str> = said.split("\ntest ").filter(|part| part.contains("panicked") || part.contains("FAILED")).collect();
    assert!(succeeded, "{}", wrong.join("\n"));
    assert!(said.contains("mode: rootless\n"), "{said}");
    // As many as there are of root's, less those above.
    let passed = said.split(" passed").next().and_then(|text| text.split(' ').next_back()).and_then(|n| n.parse::<u32>().ok());
    assert!(passed.is_some_and(|passed| passed > 80), "{said}");
}

/// Where the kernel really has one id only.
pub fn owners_by_a_user_with_one_id() {
    let Some((succeeded, said)) = again("owners_by_a_user_with_one_id", PLAIN_USER, &["owners::"]) else { return };
    assert!(succeeded && said.contains("mode: rootless, one id\n") && said.contains(" 4 passed"), "{said}");
}

/// Runs this program as `user`: whether it succeeded, and what it said. `None` when that can't be.
fn again(test: &str, user: &str, arguments: &[&str]) -> Option<(bool, String)> {
    let id = Command::new("id").arg(user).output().unwrap();
    if !rustix::process::geteuid().is_root() || !id.status.success() {
        println!("skipped: rootless::{test}: only root can be the user {user}, who has to be there");
        return None;
    }
    let dir = tempfile::Builder::new().prefix("kiln-rootless-").tempdir().unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
    let program = dir.path().join("sandbox");
    let own = std::env::current_exe().unwrap();
    std::fs::hard_link(&own, &program).or_else(|_| std::fs::copy(&own, &program).map(drop)).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", user, "--regid", user, "--clear-groups", "--inh-caps=-all", "--"]);
    command.arg(&program).args(["--test-threads", "2"]).args(arguments);
    command.env("TMPDIR", dir.path()).env("USER", user).env("RUST_BACKTRACE", "0").stdin(Stdio::null());
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    Some((output.status.success(), said.into_owned()))
}
