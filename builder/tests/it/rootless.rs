//! Builds by a user who has ids in `/etc/subuid`: the same images as root's, in a user namespace that kiln makes itself.

use std::path::Path;
use std::process::Command;

use crate::support::archive::Image;
use crate::support::expected;
use crate::support::home::{Home, finish};
use crate::support::host::Person;
use crate::support::skip::skipped;

/// Owners, set-id bits, capabilities, deletions, opaque directories, another user's RUN; and at the end of each RUN all times are the
/// same, so that two builds give the same bytes.
const DOCKERFILE: &str = r#"FROM busybox AS one
RUN echo 'ann:x:1234:1234::/home/ann:/bin/sh' >> /etc/passwd && mkdir -p /home/ann /o/d && chown 1234:1234 /home/ann && \
    echo x > /o/set && chown 5:6 /o/set && chmod 6711 /o/set && ln -s nowhere /o/link && chown -h 7:8 /o/link && mkfifo /o/fifo && \
    chown 33:44 /o/d && chmod 2755 /o/d && rm -r /home/app && mkdir /home/app && echo only > /home/app/kept && rm /etc/group && \
    find /o /home -exec touch -h -d @1000000000 {} + && touch -d @1000000000 / /etc /etc/passwd
USER ann
RUN test "$(id -u):$(id -g)" = 1234:1234 && echo hers > ~/file && touch -d @1000000000 ~/file ~
FROM busybox
COPY --chown=9:10 --chmod=6750 file /file
COPY --from=one --chown=1234:1234 /o /kept/
COPY --from=one /home /home
RUN rm /etc/passwd && mv /file /moved && touch -d @1000000000 / /etc /moved
"#;

#[test]
fn the_same_image_as_roots() {
    const TEST: &str = "rootless::the_same_image_as_roots";
    let Some(person) = Person::with_ids(TEST) else { return };
    let build = |home: &Home| {
        home.write("c/file", "text");
        std::fs::File::open(home.path("c/file"))
            .and_then(|file| file.set_times(std::fs::FileTimes::new().set_modified(std::time::SystemTime::UNIX_EPOCH)))
            .unwrap();
        home.context("c", DOCKERFILE);
        let output = format!("type=oci,dest={}", home.path("run/image.tar").display());
        std::fs::create_dir_all(home.path("run")).unwrap();
        let metadata = home.path("run/metadata");
        let metadata = metadata.to_str().unwrap();
        let args = [
            "build",
            "--progress=plain",
            "--build-arg=SOURCE_DATE_EPOCH=1500000000",
            "-o",
            &output,
            "--metadata-file",
            metadata,
            "c",
        ];
        let outcome = home.run(args).ok();
        let written: serde_json::Value = serde_json::from_slice(&std::fs::read(metadata).unwrap()).unwrap();
        (Image::read(&home.path("run/image.tar")).unwrap(), written, outcome.stderr)
    };
    let home = Home::of(person);
    let (own, own_metadata, said) = build(&home);
    let (roots, roots_metadata, roots_said) = build(&Home::new());
    let lines = |image: &Image| expected::lines(image, &[], &[]).unwrap();
    let differences = expected::differences(&lines(&roots), &lines(&own), 40);
    assert!(differences.is_empty(), "(-: root's, +: the user's)\n{}", differences.join("\n"));
    assert_eq!(own_metadata["containerimage.config.digest"], roots_metadata["containerimage.config.digest"]);
    assert_eq!((&own_metadata["kiln.sandbox"], &roots_metadata["kiln.sandbox"]), (&"rootless".into(), &"root".into()));
    assert!(said.contains("[internal] sandbox: rootless\n"), "{said}");
    assert!(!roots_said.contains("sandbox:"), "{roots_said}");
    home.left_nothing();
    // All that is left of other people's files can be removed by kiln.
    home.run(["prune", "--all", "--force"]).ok();
    assert!(std::fs::read_dir(home.store().join("rootless/layers")).unwrap().next().is_none());
}

/// What a command sees of its sandbox, each as a line of a script and what it prints.
#[test]
fn what_a_command_sees() {
    const TEST: &str = "rootless::what_a_command_sees";
    let Some(person) = Person::with_ids(TEST) else { return };
    let rows: &[(&str, &str)] = &[
        ("id -u; id -g; id -G", "0\n0\n0\n"),
        ("grep -c . /proc/self/uid_map", "2\n"),
        ("echo x > /dev/null && head -c 3 /dev/zero | od -An -tx1", " 00 00 00\n"),
        ("ls /dev", "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero\n"),
        ("mknod /x c 1 3 2>&1", "mknod: /x: Operation not permitted\n"),
        (
            "touch /sys/x 2>&1; touch /proc/sys/kernel/panic 2>&1",
            "touch: /sys/x: Read-only file system\ntouch: /proc/sys/kernel/panic: Read-only file system\n",
        ),
        ("cat /proc/keys /proc/timer_list; ls /proc/acpi /sys/firmware /sys/fs/cgroup | grep -v :", "\n\n"),
        (
            "mount -t tmpfs x /mnt 2>&1; unshare -m true 2>&1",
            "mount: permission denied (are you root?)\nunshare: unshare(0x20000): Operation not permitted\n",
        ),
        ("test $(ls -d /proc/[0-9]* | wc -l) -lt 9 && echo few", "few\n"),
        ("hostname", "buildkitsandbox\n"),
        ("ls /proc/self/fd | tr '\\n' ' '", "0 1 2 3 "),
        ("grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t0\n"),
    ];
    let home = Home::of(person);
    let mut wrong = Vec::new();
    for (number, (script, expected)) in rows.iter().enumerate() {
        home.context("c", &format!("FROM busybox\nRUN <<EOF sh > /seen 2>/dev/null || true\n{script}\nEOF\n"));
        let output = format!("type=oci,dest={}", home.path(&format!("run/{number}.tar")).display());
        home.run(["build", "--progress=plain", "-o", &output, "c"]).ok();
        let image = Image::read(&home.path(&format!("run/{number}.tar"))).unwrap();
        let layer = crate::support::tar::entries(&image.layers[1]).unwrap();
        let seen = layer.iter().find(|entry| entry.path == b"seen").unwrap();
        let text = String::from_utf8_lossy(seen.data).replace('\n', if script.starts_with("ls /dev") { " " } else { "\n" });
        if text.trim_end() != expected.trim_end() {
            wrong.push(format!("{script}:\n  {text:?}, not\n  {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    home.left_nothing();
}

/// A store whose owners would be others now is not touched.
#[test]
fn changed_ids_are_refused() {
    const TEST: &str = "rootless::changed_ids_are_refused";
    let Some(person) = Person::with_ids(TEST) else { return };
    let home = Home::of(person);
    home.run(["images"]).ok();
    let ids = home.store().join("rootless/ids");
    let text = std::fs::read_to_string(&ids).unwrap();
    assert_eq!(text.lines().count(), 4, "{text}");
    // A range more is no other owner of anything.
    std::fs::write(&ids, text.lines().take(3).map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    home.run(["images"]).ok();
    assert_eq!(std::fs::read_to_string(&ids).unwrap(), text);
    std::fs::write(&ids, text.replace("65536", "65535")).unwrap();
    home.run(["images"]).fails(6).says(&["was made with the ids `u 0 ", "65535", "hint: put the old lines into /etc/subuid"]);
}

#[test]
fn wishes() {
    const TEST: &str = "rootless::wishes";
    let (Some(rich), Some(poor)) = (Person::with_ids(TEST), Person::plain(TEST)) else { return };
    let rows = [
        (rich, "default", Ok("rootless")),
        (rich, "rootless", Ok("rootless")),
        (rich, "one-id", Ok("rootless, one id")),
        (rich, "root", Err("`--isolation=root`: kiln is not running as root")),
        (rich, "chroot", Err("`--isolation=chroot`: it needs root")),
        (poor, "default", Ok("rootless, one id")),
        (poor, "rootless", Err("`--isolation=rootless`: /etc/subuid and /etc/subgid gives no ids to kiln-plain")),
    ];
    for (person, wish, expected) in rows {
        let home = Home::of(person);
        let outcome = home.run(["--isolation", wish, "doctor", "--format", "json"]);
        match expected {
            Ok(mode) => assert_eq!(outcome.ok().json()[0]["Mode"], *mode, "{wish}"),
            Err(said) => drop(outcome.fails(5).says(&[said])),
        }
    }
    let home = Home::of(rich);
    home.run(["--isolation", "hyperv", "images"]).fails(125);
    assert_eq!(
        finish(home.command().args(["doctor", "-f", "{{.Mode}}"]).env("KILN_ISOLATION", "one-id")).ok().stdout,
        "rootless, one id\n"
    );
    home.run(["doctor"]).ok();
}

/// Where nobody may make a user namespace, builds without RUN work, and RUN says which setting to change.
#[test]
fn without_user_namespaces() {
    const TEST: &str = "rootless::without_user_namespaces";
    let home = Home::new();
    if !Path::new("/usr/bin/unshare").exists() {
        return skipped(TEST, "unshare (package util-linux) is not installed");
    }
    // Root of a user namespace without rights in it, in which no other may be made.
    let kiln = |args: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "sh", "-c"]);
        command.arg(
            "echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --bounding-set=-all --inh-caps=-all --ambient-caps=-all \"$@\"",
        );
        command
            .arg("sh")
            .arg(home.command().get_program())
            .args(args)
            .envs(home.command().get_envs().filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned()))));
        command.current_dir(home.path(""));
        finish(&mut command)
    };
    home.write("c/file", "text");
    home.context("c", "FROM busybox\nCOPY --chmod=600 file /\n");
    kiln(&["build", "c"]).ok().says(&["[internal] sandbox: none"]);
    home.context("c", "FROM busybox\nRUN true\n");
    kiln(&["build", "c"])
        .fails(5)
        .says(&["max_user_namespaces`, which is 0", "hint: have root run `sysctl -w user.max_user_namespaces="]);
    let told = kiln(&["doctor"]).ok().stdout;
    assert!(told.contains("no mode is possible"), "{told}");
}
