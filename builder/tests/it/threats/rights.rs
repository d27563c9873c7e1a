//! Rights, permissions and what of kiln's own a build can see.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use super::{build, homes};
use crate::support::home::{finish, program};
use crate::support::host::Person;

/// C04 (CVE-2024-23653): rights come from the command line alone, whatever a Dockerfile, a label or a variable says.
#[test]
fn c04_rights_come_from_the_command_line() {
    for (mode, home) in homes("c04_rights_come_from_the_command_line") {
        for (dockerfile, words) in [
            ("FROM busybox\nRUN --security=insecure true\n", "not allowed"),
            ("# syntax=docker/dockerfile:1-labs\nFROM busybox\nRUN --security=insecure true\n", "not allowed"),
            ("FROM busybox\nRUN --security=privileged true\n", "security"),
            ("FROM busybox\nRUN --privileged true\n", "privileged"),
            ("FROM busybox\nRUN --cap-add=SYS_ADMIN true\n", "cap-add"),
        ] {
            let outcome =
                build(&home, dockerfile, &["--build-arg", "KILN_ALLOW=security.insecure", "--label", "security.insecure=true"]);
            assert!(!outcome.status.success() && outcome.stderr.contains(words), "{mode}: {outcome:?}");
            assert!(!outcome.stderr.contains("panicked"), "{mode}: {outcome:?}");
        }
    }
}

/// C01: a WORKDIR of a descriptor or of another process, directly and behind a link, is never the host's folder.
#[test]
fn c01_work_directories_of_descriptors() {
    for (mode, home) in homes("c01_work_directories_of_descriptors") {
        for number in [3, 7, 8, 9, 12, 100, 1023] {
            for dockerfile in [
                format!("FROM busybox\nWORKDIR /proc/self/fd/{number}\nRUN pwd && ls -la\n"),
                format!("FROM busybox\nRUN ln -s /proc/self/fd/{number} /link\nWORKDIR /link\nRUN pwd && ls -la ../../../..\n"),
            ] {
                let outcome = build(&home, &dockerfile, &[]);
                assert!(!outcome.status.success(), "{mode}: {outcome:?}");
                assert!(
                    outcome.stderr.contains("as the working directory") || outcome.stderr.contains("/proc"),
                    "{mode}: {outcome:?}"
                );
            }
        }
        build(&home, "FROM busybox\nRUN test \"$(ls /proc/self/fd | wc -l)\" = 4 && test $(readlink /proc/self/cwd) = /\n", &[])
            .ok();
    }
}

/// C13 (CVE-2019-5736): a build that executes kiln's own program by every name it has, and tries to write to it.
#[test]
fn c13_the_program_stays_what_it_is() {
    for (mode, home) in homes("c13_the_program_stays_what_it_is") {
        let file = if mode == "root" { program() } else { home.path("bin/kiln") };
        let before = fs::metadata(&file).unwrap();
        let bytes = fs::read(&file).unwrap();
        for run in [
            "RUN [\"/proc/self/exe\", \"--version\"]",
            "RUN [\"/proc/1/exe\"]",
            "RUN printf '#!/proc/self/exe\\n' > /s && chmod 755 /s\nRUN [\"/s\"]",
            "RUN for i in $(seq 200); do for p in /proc/[0-9]*; do (: > $p/exe) 2> /dev/null; chmod 777 $p/exe 2> /dev/null; done; done; true",
        ] {
            let _ = build(&home, &format!("FROM busybox\n{run}\n"), &["--no-cache"]);
            let after = fs::metadata(&file).unwrap();
            // The time of the inode changes with the number of its links, which tests share.
            let seen = |file: &fs::Metadata| (file.mode(), file.mtime(), file.len());
            assert_eq!(seen(&after), seen(&before), "{mode} {run}");
        }
        assert!(fs::read(&file).unwrap() == bytes, "{mode}");
    }
}

/// C24 (CVE-2021-3602): a variable of whoever runs kiln is seen by nothing of the build.
#[test]
fn c24_the_environment_stays_outside() {
    for (mode, home) in homes("c24_the_environment_stays_outside") {
        for isolation in ["default", "chroot"] {
            if isolation == "chroot" && mode != "root" {
                continue;
            }
            let canary = "canary-8d1b0c57";
            let context = home.context(
                "c",
                "FROM busybox\nRUN { env; cat /proc/1/environ /proc/self/environ /proc/*/environ 2> /dev/null; } | tr '\\0' '\\n' > /seen; sort -u /seen | sed 's/^/seen /'\n",
            );
            let mut command = home.command();
            command.env("KILN_CANARY", canary).env("AWS_SECRET_ACCESS_KEY", canary).env("KILN_ISOLATION", isolation);
            let outcome = finish(command.args(["build", "--no-cache", "--progress=plain"]).arg(context));
            if isolation == "chroot" && !outcome.status.success() {
                // Not a boundary; what it can't do it says.
                continue;
            }
            let outcome = outcome.ok();
            assert!(outcome.stderr.contains("seen PATH="), "{mode} {isolation}: {outcome:?}");
            assert!(!outcome.stderr.contains(canary), "{mode} {isolation}: {outcome:?}");
        }
    }
}

/// C30, C31 (CVE-2025-52992, GHSA-pwhc-rpq9-4c8w): whatever the umask was and however a build ended, another user reads nothing of the
/// store and runs nothing of it.
#[test]
fn c30_c31_other_users_see_nothing_of_the_store() {
    const TEST: &str = "c30_c31_other_users_see_nothing_of_the_store";
    let Some(other) = Person::plain(TEST) else { return };
    for (mode, home) in homes(TEST) {
        // The folders above are open, so that it is the store that keeps people out.
        fs::set_permissions(home.path(""), PermissionsExt::from_mode(0o755)).unwrap();
        let good =
            "FROM busybox\nRUN cp /bin/busybox /su && chmod 4755 /su && mkdir /open && chmod 777 /open && echo x > /open/f\n";
        for (umask, dockerfile, flags) in [
            ("000", good.to_owned(), ""),
            ("000", format!("{good}RUN --mount=type=cache,target=/c echo secret > /c/f; chmod 777 /c; exit 3\n"), "--no-cache"),
            ("077", good.to_owned(), "--no-cache"),
        ] {
            let context = home.context("c", &dockerfile);
            let kiln = home.command();
            let mut command = Command::new("sh");
            let words: Vec<_> = std::iter::once(kiln.get_program())
                .chain(kiln.get_args())
                .map(|word| word.to_str().unwrap().to_owned())
                .collect();
            command.arg("-c").arg(format!("umask {umask}; exec \"$@\"")).arg("sh").args(words);
            command.args(["build", "-t", "open"]).args(flags.split_whitespace()).arg(&context);
            command.env_clear().current_dir(home.path(""));
            for (name, value) in kiln.get_envs() {
                if let Some(value) = value {
                    command.env(name, value);
                }
            }
            command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
            let _ = finish(&mut command);
            let store = fs::metadata(home.store()).unwrap();
            assert_eq!(store.mode() & 0o7777, 0o700, "{mode} umask {umask}");
            let find = "find \"$1\" -mindepth 1 2> /dev/null | wc -l; cat \"$1\"/version \"$1\"/*/* 2> /dev/null | wc -c";
            let seen = finish(other.command("/bin/sh".as_ref()).args(["-c", find, "sh"]).arg(home.store())).ok();
            assert_eq!(seen.stdout.split_whitespace().collect::<Vec<_>>(), ["0", "0"], "{mode} umask {umask}");
            // Whoever knows the path of a set-user-id program there can't run it either.
            let found = Command::new("find").arg(home.store()).args(["-name", "su", "-perm", "-4000"]).output().unwrap();
            let programs = String::from_utf8(found.stdout).unwrap();
            assert!(mode != "root" || !programs.is_empty(), "there is such a program");
            for path in programs.lines() {
                let ran = finish(other.command("/bin/sh".as_ref()).args(["-c", "\"$1\" id", "sh", path]));
                assert!(!ran.status.success() && ran.stderr.contains("ermission denied"), "{mode}: {ran:?}");
            }
        }
        // A store that somebody opened is closed by the next start; where the store is a folder of it for the mode, that is.
        let whole = fs::metadata(home.store()).unwrap();
        let store = if mode == "root" { home.store() } else { home.store().join("rootless") };
        fs::set_permissions(&store, PermissionsExt::from_mode(0o755)).unwrap();
        home.run(["images"]).ok();
        assert_eq!(fs::metadata(&store).unwrap().mode() & 0o7777, 0o700, "{mode}");
        assert_eq!(whole.mode() & 0o7777, 0o700, "{mode}");
    }
}

/// C33: nodes of the machine's disks that a step makes, that an image ships, that are copied or bound: made, and never opened.
#[test]
fn c33_disks_of_the_machine() {
    for (mode, home) in homes("c33_disks_of_the_machine") {
        let parts = fs::read_to_string("/proc/partitions").unwrap_or_default();
        let disk = parts.lines().skip(2).find_map(|line| {
            let mut words = line.split_whitespace();
            Some(format!("{} {}", words.next()?, words.next()?))
        });
        let disk = disk.unwrap_or_else(|| "8 0".to_owned());
        let tries = |path: &str| format!("! head -c 1 {path} && ! dd if=/etc/passwd of={path} conv=notrunc count=1");
        if mode != "root" {
            // The kernel makes no nodes for whoever isn't root.
            let dockerfile = format!("FROM busybox\nRUN ! mknod /disk b {disk} 2> /dev/null && test ! -e /disk\n");
            build(&home, &dockerfile, &[]).ok();
            continue;
        }
        build(&home, &format!("FROM busybox\nRUN mknod /disk b {disk} && {}\n", tries("/disk")), &[]).ok();
        let dockerfile = format!(
            "FROM busybox AS evil\nRUN mknod /disk b {disk} && mknod /zero c 1 5\nRUN {}\n\
             FROM busybox\nCOPY --from=evil /disk /zero /n/\nRUN test -b /n/disk && {}\n\
             RUN --mount=type=bind,from=evil,target=/m,rw {}\nRUN --mount=type=cache,target=/c,from=evil,source=/ {}\n\
             RUN --mount=type=tmpfs,target=/t mknod /t/disk b {disk} && {}\nRUN --network=host {}\n",
            tries("/disk"),
            tries("/n/disk"),
            tries("/m/disk"),
            tries("/c/disk"),
            tries("/t/disk"),
            tries("/n/zero"),
        );
        build(&home, &dockerfile, &[]).ok();
    }
}
