//! What of kiln's own the command could reach: descriptors, its program, its environment.

use std::os::unix::fs::symlink;

use super::full;
use crate::support::Step;

/// C01: every number, as the working directory and behind a link.
pub fn c01_every_descriptor() {
    let numbers: Vec<u32> = if full() { (0..1024).collect() } else { (0..16).chain([100, 1023]).collect() };
    for number in numbers {
        for (what, target) in
            [("own", format!("/proc/self/fd/{number}")), ("thread", format!("/proc/thread-self/fd/{number}/../../../etc"))]
        {
            let mut step = Step::new().with(|spec| spec.cwd = "/w/link".into());
            symlink(&target, step.subdir("upper/w").join("link")).unwrap();
            let error = step.sh("pwd; ls -la").error();
            assert!(error.starts_with("cannot use `/w/link` as the working directory: "), "{what} {number}: {error}");
        }
    }
    // The root of another process is no way out either.
    for cwd in ["/proc/1/root", "/proc/1/cwd", "/proc/self/root/proc/self/cwd"] {
        let error = Step::new().with(|spec| spec.cwd = cwd.into()).sh("pwd").error();
        assert!(error.starts_with(&format!("cannot use `{cwd}` as the working directory: ")), "{error}");
    }
    // And what the command sees of it afterwards is inside.
    let out = Step::new().with(|spec| spec.cwd = "/tmp".into()).sh("readlink /proc/self/cwd; readlink /proc/1/root").ok();
    assert_eq!(out, "/tmp\n/\n");
}

/// C13 (CVE-2019-5736): loops that try to write to the program of any process while steps start beside it.
pub fn c13_program_is_not_overwritten() {
    let own = std::env::current_exe().unwrap();
    let before = (std::fs::read(&own).unwrap().len(), std::fs::metadata(&own).unwrap().modified().unwrap());
    let script = "for i in $(seq 300); do for p in /proc/[0-9]*; do (: >> $p/exe) 2> /dev/null && echo wrote $p; done; done; \
                  echo '#!/proc/self/exe' > /s; chmod 755 /s; /s; (: >> /proc/self/exe) 2>&1 | grep -c busy";
    std::thread::scope(|scope| {
        let attack = scope.spawn(|| Step::new().sh(script));
        for _ in 0..10 {
            Step::new().sh("true").ok();
        }
        let ran = attack.join().unwrap();
        assert!(!ran.out.contains("wrote"), "{ran:?}");
    });
    let after = (std::fs::read(&own).unwrap().len(), std::fs::metadata(&own).unwrap().modified().unwrap());
    assert_eq!(before, after);
}

/// C24: the sandbox's other processes, if it sees any, show nothing of kiln's environment either.
pub fn c24_no_process_shows_the_environment() {
    // What this test program was started with.
    let canaries: Vec<String> =
        std::env::vars().filter(|(_, value)| value.len() > 8).map(|(name, _)| format!("{name}=")).collect();
    assert!(canaries.len() > 1, "there is something to look for");
    let out = Step::new().sh("cat /proc/*/environ /proc/*/task/*/environ 2> /dev/null | tr '\\0' '\\n' | sort -u").ok();
    assert!(out.contains("PATH=/bin"), "{out}");
    for canary in canaries.iter().filter(|name| !["PATH=", "HOME=", "PWD=", "OLDPWD=", "SHLVL="].contains(&name.as_str())) {
        assert!(!out.lines().any(|line| line.starts_with(canary.as_str())), "{canary} in {out}");
    }
}
