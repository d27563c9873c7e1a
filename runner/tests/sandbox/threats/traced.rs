//! What kiln itself does on the way into a root, as strace sees it.

use std::process::Command;

use crate::endings::PARENT;
use crate::support::Step;

/// C14: between entering the root and the command nothing is executed. C09: nothing of /proc is opened for writing by a path of the
/// sandbox, and no file of the image but passwd and group is read.
pub fn c09_c14_set_up_writes_no_proc_and_runs_nothing() {
    let step = Step::new();
    let log = step.dir.path().join("trace");
    let traced = Command::new("strace")
        .args([
            "-f",
            "-qq",
            "-e",
            "signal=none",
            "-e",
            "trace=execve,execveat,open,openat,openat2,creat,pivot_root,chroot,mount,move_mount,fsopen",
            "-o",
        ])
        .arg(&log)
        .arg(std::env::current_exe().unwrap())
        .arg(PARENT)
        .arg(step.dir.path())
        .args(["bob", "/bin/busybox", "true"])
        .output();
    let output = match traced {
        Ok(output) => output,
        Err(error) => return println!("skipped: threats::c09_c14: strace: {error}"),
    };
    assert!(output.status.success(), "{output:?}");
    let log = std::fs::read_to_string(&log).unwrap();
    // The supervisor's and the command's own calls, from the exec of the supervisor on.
    let start = log.find("execve(\"/proc/self/fd/").or_else(|| log.find("\"kiln-sandbox\"")).expect("the supervisor is executed");
    let own = &log[start..];
    let entered = own.find("pivot_root(").expect("the root is entered");
    let command = own.find("execve(\"/bin/busybox\"").expect("the command is executed");
    assert!(entered < command);
    let executed: Vec<&str> = own[..command].lines().skip(1).filter(|line| line.contains("execve")).collect();
    assert_eq!(executed, [""; 0], "C14: something is executed on the way");
    let inside: Vec<&str> = own[entered..command].lines().skip(1).filter(|line| line.contains("open")).collect();
    let allowed = ["\"/etc/passwd\"", "\"/etc/group\"", "\"/dev/null\"", "\"/\"", "\"/proc\""];
    for line in &inside {
        // Through the root's descriptor, never following a magic link.
        assert!(allowed.iter().any(|path| line.contains(path)), "{line}\n{inside:#?}");
        assert!(!line.contains("O_WRONLY") && !line.contains("O_RDWR") && !line.contains("O_CREAT"), "{line}");
        assert!(line.contains("RESOLVE_NO_MAGICLINKS"), "{line}");
    }
    let written: Vec<&str> = own[..command]
        .lines()
        .filter(|line| line.contains("\"/proc") && (line.contains("O_WRONLY") || line.contains("O_RDWR")))
        .collect();
    assert_eq!(written, [""; 0], "C09: /proc is written to by a path");
}
