//! `--on-failure`: a shell in the place of the step that failed, and its files on the outside.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use crate::support::home::Home;
use crate::support::{leftovers, terminal};

const BUILD: i32 = 1;

/// A step that fails after it has changed something, with everything that a step can have.
const FAILING: &str = "\
FROM busybox
RUN echo bob:x:1234:1234::/:/bin/sh >> /etc/passwd && mkdir /work && chown bob /work && echo below > /work/below
ENV A=stage
USER bob
WORKDIR /work
RUN --mount=type=cache,target=/cache,uid=1234 --mount=type=secret,id=s,mode=0444 --mount=type=tmpfs,target=/t \\
    --mount=type=bind,target=/ctx,rw \\
    echo changed > new; rm below; mkdir logs; echo why > logs/log; echo cached > /cache/file; exit 3
RUN echo never
";

#[test]
fn a_shell_stands_where_the_step_failed() {
    let home = Home::new();
    home.context("c", FAILING);
    home.write("secret", "value");
    let arguments = ["build", "--on-failure=shell", "--secret", "id=s,src=secret", "--metadata-file", "m", "-t", "never", "c"];
    for progress in ["--progress=tty", "--progress=plain"] {
        let shown = terminal::with(
            &home,
            &[&arguments[..], &[progress]].concat(),
            r"
expect /bin/sh is in the place of the step that failed: 
expect exit code: 3
settings raw
expect $
type id -u; pwd; cat new logs/log; ls; echo A is $A\r
expect 1234
expect /work
expect changed
expect why
expect logs
expect A is stage
type cat /cache/file /run/secrets/s; ls /ctx; stty size\r
expect cached
expect value
expect Dockerfile
expect 24 80
resize 30 100
type sleep 0.3; stty size\r
expect 30 100
type touch more; exit 0\r
expect ERROR
expect exit code: 3
end 1
settings cooked
",
        );
        assert_eq!(shown.matches("is in the place of the step").count(), 1, "{shown}");
        assert!(!shown.contains("\nbelow"), "the file that the step removed is gone: {shown}");
        let metadata = std::fs::read_to_string(home.path("m")).unwrap();
        assert!(metadata.contains("\"kiln.failed.exit-code\": 3"), "{metadata}");
    }
    home.run(["run", "never", "true"]).fails(125);
    home.left_nothing();
}

/// Without a terminal the shell reads what it is given; the step isn't cached, whatever was done in it.
#[test]
fn a_shell_without_a_terminal() {
    let home = Home::new();
    home.context("c", "FROM busybox\nRUN echo one > /made; exit 4\n");
    let outcome = home.run_with_input(["build", "--on-failure=shell", "c"], "cat /made; echo two > /made; tty\n").fails(BUILD);
    assert_eq!(outcome.stdout, "one\nnot a tty\n");
    let outcome = home.run_with_input(["build", "--on-failure=shell", "c"], "cat /made\n").fails(BUILD);
    assert_eq!(outcome.stdout, "one\n", "what the first shell did is forgotten");
    home.run(["build", "--on-failure=shell=/bin/nosuch", "c"]).fails(BUILD).says(&[
        "there is no shell",
        "/bin/nosuch",
        "exit code: 4",
    ]);
    // Only RUN leaves a state, and a build that goes well opens no shell.
    home.context("copy", "FROM busybox\nCOPY nosuch /\n");
    home.run_with_input(["build", "--on-failure=shell", "copy"], "echo never\n").fails(BUILD);
    home.context("well", "FROM busybox\nRUN true\n");
    assert_eq!(home.run_with_input(["build", "--on-failure=shell", "well"], "echo never\n").ok().stdout, "");
    home.left_nothing();
}

/// The others have stopped before the shell opens.
#[test]
fn other_steps_are_stopped_first() {
    let home = Home::new();
    let dockerfile = "FROM busybox AS a\nRUN : mark-beside; sleep 1000\nFROM busybox AS b\nRUN sleep 0.5; exit 1\nFROM a\nCOPY --from=b / /b\n";
    home.context("c", dockerfile);
    terminal::with(
        &home,
        &["build", "--on-failure=shell", "c"],
        "expect in the place of\nexpect #\ntype exit\\r\nend 1\nsettings cooked\n",
    );
    leftovers::assert_none("mark-beside");
    // Ctrl-C before anything failed is no reason for a shell.
    let steps = "expect mark-beside\nsignal SIGINT\nend 130\n";
    let shown = terminal::with(&home, &["build", "--on-failure=shell", "--target", "a", "c"], steps);
    assert!(!shown.contains("in the place of"), "{shown}");
    home.left_nothing();
}

#[test]
fn files_of_a_failed_step() {
    let home = Home::new();
    home.context("c", FAILING);
    home.write("secret", "value");
    let arguments = |action| ["build", "--on-failure", action, "--secret", "id=s,src=secret", "c"];
    let list = |folder: &str| {
        let script = "find . -type f -o -type l -o -type d -empty | sort";
        let output = std::process::Command::new("sh").args(["-c", script]).current_dir(home.path(folder)).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    home.run(arguments("export=all")).fails(BUILD).says(&["2 files of [4/5] RUN", "are in all"]);
    assert_eq!(list("all"), "./work/logs/log\n./work/new\n", "what the step changed, and nothing of its mounts");
    assert_eq!(std::fs::metadata(home.path("all/work/new")).unwrap().uid(), 1234, "root's files keep their owners");
    home.run(arguments("export=some,path=/work/logs,path=/etc/passwd,path=/no/such")).fails(BUILD).says(&["has no `/no/such`"]);
    assert_eq!(list("some"), "./etc/passwd\n./work/logs/log\n");
    assert!(std::fs::read_to_string(home.path("some/etc/passwd")).unwrap().contains("bob"));
    home.run(arguments("export=some")).fails(125).says(&["not empty"]);
    // Both at once.
    let outcome = home.run_with_input(
        ["build", "--on-failure=shell", "--on-failure=export=both,path=/work/new", "--secret", "id=s,src=secret", "c"],
        "cat new\n",
    );
    assert_eq!(outcome.fails(BUILD).stdout, "changed\n");
    assert_eq!(list("both"), "./work/new\n");
    home.left_nothing();
}

/// What the step left can't make kiln write, or read, anywhere else.
#[test]
fn hostile_files_stay_what_they_are() {
    let home = Home::new();
    home.write("canary", "untouched");
    let outside = home.path("");
    let outside = outside.to_str().unwrap().trim_end_matches('/');
    home.context(
        "c",
        &format!(
            "FROM busybox\nRUN mkdir -p /d/e && ln -s {outside} /d/out && ln -s {outside}/canary /d/file && ln -s /d/out /log && \
             ln -s ../../../../../../../../etc/passwd /d/up && mkfifo /d/fifo && mknod /d/null c 1 3 && echo x > /d/e/x && \
             chmod 4755 /d/e/x && exit 1\n"
        ),
    );
    home.run(["build", "--on-failure=export=out", "c"]).fails(BUILD).says(&["without 2 devices, pipes or sockets"]);
    for (link, target) in [("out/d/out", outside.to_owned()), ("out/d/file", format!("{outside}/canary"))] {
        assert_eq!(std::fs::read_link(home.path(link)).unwrap().to_str(), Some(&target[..]));
    }
    assert!(!home.path("out/d/fifo").exists() && !home.path("out/d/null").exists());
    // Links on the way to a path that is asked for are followed in the image, where they lead nowhere.
    home.run(["build", "--on-failure=export=asked,path=/d/out/canary,path=/log/canary,path=/d/up,path=/d/e", "c"])
        .fails(BUILD)
        .says(&["has no `/d/out/canary`", "has no `/log/canary`"]);
    assert_eq!(std::fs::read_to_string(home.path("asked/d/e/x")).unwrap(), "x\n");
    assert!(home.path("asked/d/up").is_symlink());
    assert_eq!(std::fs::metadata(home.path("asked/d/e/x")).unwrap().permissions().mode() & 0o7777, 0o4755);
    assert_eq!(std::fs::read_to_string(home.path("canary")).unwrap(), "untouched");
    home.left_nothing();
}
