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

/// F07, F08: a disk of 24 MB, in a mount namespace of the test's own. What COPY and RUN couldn't write is gone afterwards, `prune` works
/// with nothing free at all, and then there is room again. Exit codes from 90 on say which line was not as it should be.
const FULL_DISK: &str = r#"
S=$1 K=$2 C=$3
mount -t tmpfs -o size=24m,mode=755 kiln-small $S || exit 90
export KILN_ROOT=$S/store
$K build -q -t small $C/small || exit 91
for what in copy run; do
    $K build -t never $C/$what 2> $C/said && exit 92
    cat $C/said
    grep -q 'free some space' $C/said && grep -q 'No space left on device' $C/said || exit 93
done
# A build that fits says that nothing was left.
$K build -q -t fits $C/fits || exit 94
$K rmi -f fits && $K prune -a -f || exit 94
dd if=/dev/zero of=$S/fill bs=64k 2> /dev/null
$K build -t never $C/other 2> $C/said && exit 95
cat $C/said
$K rmi -f small && $K prune -a -f || exit 96
[ -z "$(ls -A $S/store/ingest)$(ls -A $S/store/trash)$(ls -A $S/store/locks)" ] || exit 97
rm $S/fill
$K build -q -t small $C/small || exit 98
"#;

#[test]
fn a_full_disk_fails_one_build_and_can_be_pruned() {
    const TEST: &str = "a_full_disk_fails_one_build_and_can_be_pruned";
    if own_uid() != 0 || WAYS.iter().any(|(asked, _)| std::env::var_os(asked).is_some()) {
        return skipped(TEST, "it mounts a small disk, and looks into root's own store");
    }
    let home = Home::new();
    let large = vec![b'x'; 30 << 20];
    let rows: [(&str, &str, &[u8]); 5] = [
        ("small", "FROM scratch\nCOPY file /bin/sh\nRUN echo a > /a\n", &std::fs::read("/bin/busybox").unwrap()),
        ("copy", "FROM small\nCOPY file /z\n", &large),
        (
            "run",
            "FROM small\nRUN x=0123456789; for i in 1 2 3 4 5 6 7 8 9 10 11; do x=$x$x; done; while echo $x; do :; done > /z\n",
            b"",
        ),
        ("fits", "FROM small\nCOPY file /z\n", &large[..18 << 20]),
        ("other", "FROM small\nCOPY file /z\n", &large[..100_000]),
    ];
    for (name, dockerfile, file) in rows {
        home.context(&format!("c/{name}"), dockerfile);
        home.write(&format!("c/{name}/file"), file);
    }
    std::fs::set_permissions(home.path("c/small/file"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let disk = home.path("disk");
    std::fs::create_dir(&disk).unwrap();
    let kiln = home.command();
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", FULL_DISK, "sh"]).arg(&disk).arg(kiln.get_program()).arg(home.path("c"));
    for (name, value) in kiln.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    crate::support::home::finish(command.current_dir(home.path(""))).ok();
}
