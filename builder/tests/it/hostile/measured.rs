//! Runs a command and says what it cost: the kernel's own account of it and of all that it waited for.

use std::path::Path;
use std::process::{Command, Stdio};

/// How a command ended.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) code: Option<i32>,
    pub(super) stderr: String,
    /// The most memory that one of its processes had.
    pub(super) kilobytes: u64,
    /// Processor time.
    pub(super) seconds: f64,
}

/// What hangs is ended after a minute, with 124.
const RUN: &str = "
import os, signal, sys
pid = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
def late(*_):
    os.kill(pid, signal.SIGKILL)
    os._exit(124)
signal.signal(signal.SIGALRM, late)
signal.alarm(60)
_, status, usage = os.wait4(pid, 0)
open(sys.argv[1], 'w').write('%d %f' % (usage.ru_maxrss, usage.ru_utime + usage.ru_stime))
sys.exit(max(os.waitstatus_to_exitcode(status), -1) % 256)
";

/// Runs it to its end; `usage` is a file to keep its account in.
pub(super) fn run(command: Command, usage: &Path) -> Measured {
    let mut python = Command::new("python3");
    python.args(["-c", RUN]).arg(usage).arg(command.get_program()).args(command.get_args()).env_clear();
    python.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    python.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    if let Some(folder) = command.get_current_dir() {
        python.current_dir(folder);
    }
    let output = python.stdin(Stdio::null()).output().expect("python3 runs");
    let text = std::fs::read_to_string(usage).unwrap_or_default();
    let (kilobytes, seconds) = text.split_once(' ').unwrap_or(("0", "1e9"));
    let _ = std::fs::remove_file(usage);
    Measured {
        code: output.status.code(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        kilobytes: kilobytes.parse().expect("a number"),
        seconds: seconds.parse().expect("a number"),
    }
}
