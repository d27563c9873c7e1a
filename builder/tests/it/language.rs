//! What the language has and Debian's BuildKit is too old for; the conformance cases hold the rest. Each row builds, and
//! its last RUN is the check.

use std::process::Command;

use kiln_oci::digest::Digest;

use crate::support::archive::Image;
use crate::support::home::Home;
use crate::support::lab::FolderServer;
use crate::support::tar;

#[track_caller]
fn builds(files: &[(&str, &str)], dockerfile: &str, extra: &[&str]) {
    let home = Home::new();
    let context = home.context("c", dockerfile);
    for (name, content) in files {
        home.write(&format!("c/{name}"), content);
    }
    let mut args = vec!["build", "-t", "language"];
    args.extend(extra);
    args.push(context.to_str().unwrap());
    home.run(args).ok();
}

#[test]
fn heredocs_of_run() {
    builds(
        &[],
        r##"FROM busybox
ARG who=me
RUN <<EOF
echo "plain $who" > /plain
cd /tmp
pwd >> /plain
EOF
RUN <<-"EOF"
	echo tabs gone > /tabs
	EOF
RUN <<EOF
#!/bin/sh -e
echo "script $0" > /script
EOF
RUN cat <<EOF > /fed && cat <<"OTHER" > /fed2
expanded $who
EOF
raw $who
OTHER
RUN grep -qx 'plain me' /plain && grep -qx /tmp /plain && grep -qx 'tabs gone' /tabs
RUN grep -q '^script /dev/pipes/' /script && test ! -e /dev/pipes
RUN grep -qx 'expanded me' /fed && grep -qx 'raw $who' /fed2
"##,
        &[],
    );
}

#[test]
fn heredocs_of_copy() {
    builds(
        &[("f", "file")],
        r#"FROM busybox
ARG who=me
COPY <<one <<-"two" f /d/
hello $who
one
	tabs and $who
	two
COPY --chown=5:6 --chmod=600 <<EOF /named
x
EOF
ADD <<a.txt /d/
added
a.txt
RUN grep -qx 'hello me' /d/one && grep -qx 'tabs and $who' /d/two && grep -q file /d/f && grep -qx added /d/a.txt
RUN test "$(stat -c '%u %g %a' /named)" = '5 6 600' && test "$(stat -c '%u %a' /d/one)" = '0 644'
"#,
        &[],
    );
}

#[test]
fn expansion_that_came_later() {
    builds(
        &[],
        r#"FROM busybox
ENV v=aXbXc e=
ENV r1=${v#*X} r2=${v##*X} r3=${v%X*} r4=${v%%X*} r5=${v/X/-} r6=${v//X/-} r7=${u-unset} r8=${e-unset} r9=${e+set}
RUN test "$r1|$r2|$r3|$r4|$r5|$r6|$r7|$r8|$r9" = 'bXc|c|aXb|a|a-bXc|a-b-c|unset||set'
"#,
        &[],
    );
    let home = Home::new();
    let dockerfile = "FROM busybox\nENV a=${nope:?must be set}\n";
    home.build("x", dockerfile).fails(3).says(&["must be set", "Dockerfile:2"]);
}

#[test]
fn copy_flags_that_came_later() {
    builds(
        &[("d/f", "f"), ("d/g.md", "g"), ("d/s/h", "h"), ("d/s/t/i.md", "i")],
        r#"FROM busybox
RUN ln -s /real /link && mkdir /real
COPY --link d/f /linked/
COPY --link d/f /link/
COPY --chmod=u=rwX,go=rX d /symbolic
COPY --exclude=*.md --exclude=s/t d /excluded
COPY --parents d/s/h d/./s/t/i.md /parents/
RUN test -f /linked/f && test ! -L /link && test -f /link/f && test ! -e /real/f
RUN test "$(stat -c %a /symbolic/s /symbolic/f | tr '\n' ' ')" = '755 644 '
RUN test -f /excluded/f && test ! -e /excluded/g.md && test -f /excluded/s/h && test ! -e /excluded/s/t
RUN test -f /parents/d/s/h && test -f /parents/s/t/i.md
"#,
        &[],
    );
}

/// Two sources onto a name that isn't there: BuildKit makes a file of the last one (moby/buildkit#1853).
#[test]
fn several_sources_make_a_folder() {
    let dockerfile = "FROM busybox\nCOPY a b /x\nRUN test -f /x/a && test -f /x/b\n";
    builds(&[("a", "a"), ("b", "b")], dockerfile, &[]);
}

#[test]
fn targets_and_sources_by_number() {
    let dockerfile = "FROM busybox\nRUN echo 0 > /n\nFROM busybox\nCOPY --from=0 /n /\nRUN grep 0 /n\nFROM busybox\nRUN false\n";
    builds(&[], dockerfile, &["--target", "1"]);
}

#[test]
fn run_network() {
    builds(
        &[],
        "FROM busybox\nRUN --network=none test \"$(ls /sys/class/net)\" = lo\nRUN --network=host test -e /etc/resolv.conf\n",
        &[],
    );
    builds(&[], "FROM busybox\nRUN test \"$(ls /sys/class/net)\" = lo\n", &["--network=none"]);
}

/// The host's names are there for RUN and not in the image.
#[test]
fn names_of_the_network_never_reach_the_layer() {
    builds(
        &[],
        "FROM busybox AS a\nRUN grep -q localhost /etc/hosts && grep -q '^10.1.2.3[[:space:]]*extra.example' /etc/hosts && test -s /etc/resolv.conf\n\
         FROM scratch\nCOPY --from=a /etc/hosts /etc/resolv.conf /\n\
         FROM busybox\nCOPY --from=1 / /seen\nRUN test ! -s /seen/hosts && test ! -s /seen/resolv.conf\n",
        &["--add-host", "extra.example:10.1.2.3"],
    );
}

/// Mount points that the image lacks are made for the step and taken away after it.
#[test]
fn mount_points_leave_no_trace() {
    builds(
        &[("f", "f")],
        "FROM busybox AS a\nRUN mkdir /p && touch -d @1000 /p\n\
         RUN --mount=type=cache,target=/p/cache --mount=type=tmpfs,target=/tmpfs/deep --mount=target=/p/bound cat /p/bound/f\n\
         RUN test ! -e /p/cache && test ! -e /tmpfs && test ! -e /p/bound && test $(stat -c %Y /p) = 1000\n",
        &[],
    );
}

#[test]
fn add_unpack_and_checksum() {
    let home = Home::new();
    let script = "mkdir served && echo body > served/f && tar -C served -czf served/a.tgz f";
    let made = Command::new("sh").args(["-euc", script]).current_dir(home.path("")).status();
    assert!(made.unwrap().success());
    let server = FolderServer::files(&home.path("served"));
    let host = server.host();
    let digest = Digest::of(b"body\n");
    let dockerfile = format!(
        "FROM busybox\nADD --checksum={digest} http://{host}/f /checked\nADD --unpack=true http://{host}/a.tgz /unpacked/\n\
         RUN grep body /checked /unpacked/f\n"
    );
    home.build("good", &dockerfile).ok();
    let wrong = Digest::of(b"other");
    let outcome = home.build("bad", &format!("FROM busybox\nADD --checksum={wrong} http://{host}/f /f\n"));
    assert!(!outcome.status.success() && outcome.stderr.contains(&wrong.to_string()), "{outcome:?}");
    let outcome = home.build("bad", &format!("FROM busybox\nADD http://{host}/missing /f\n"));
    assert!(!outcome.status.success() && outcome.stderr.contains("404"), "{outcome:?}");
}

#[test]
fn archives_that_end_early_are_refused() {
    let home = Home::new();
    let script = "mkdir c && head -c 300000 /dev/urandom > f && tar -czf whole.tgz f && head -c 100000 whole.tgz > c/cut.tgz && \
                  tar -cf whole.tar f && head -c 100000 whole.tar > c/cut.tar && zstd -q f -o c/plain.zst";
    let made = Command::new("sh").args(["-euc", script]).current_dir(home.path("")).status();
    assert!(made.unwrap().success());
    for name in ["cut.tgz", "cut.tar"] {
        home.write("c/Dockerfile", format!("FROM busybox\nADD {name} /x/\n"));
        home.run(["build", "c"]).fails(1).says(&["Dockerfile:2", name]);
    }
    home.write("c/Dockerfile", "FROM busybox\nADD plain.zst /x/\nRUN test -f /x/plain.zst\n");
    home.run(["build", "c"]).ok();
}

/// Debian's BuildKit makes empty files of devices, drops fifos and attributes, and cuts modes to nine bits.
#[test]
fn files_of_every_kind_are_copied() {
    let home = Home::new();
    let script = r#"mkdir -p c/d && cd c/d && mkfifo fifo && echo x > attr && echo c > cap && chmod 755 cap && ln cap hard
python3 - <<'P'
import os, socket, struct
os.setxattr("attr", "user.kiln", b"value\xff")
os.setxattr("cap", "security.capability", struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0))
socket.socket(socket.AF_UNIX).bind("socket")
P"#;
    let made = Command::new("sh").args(["-euc", script]).current_dir(home.path("")).status();
    assert!(made.unwrap().success());
    let dockerfile = "FROM busybox AS a\nRUN mkdir /k && mknod /k/n c 1 3 && mknod /k/b b 7 9 && mkfifo -m 640 /k/p && ln /k/p /k/q && chown 5:6 /k/n\n\
        COPY --chmod=4711 Dockerfile /k/suid\n\
        FROM busybox\nCOPY --from=a /k /k\nCOPY d /d\n\
        RUN test \"$(stat -c '%F %t:%T %u:%g' /k/n)\" = 'character special file 1:3 5:6' && test \"$(stat -c '%F %t:%T' /k/b)\" = 'block special file 7:9'\n\
        RUN test -p /k/p && test $(stat -c '%a %h' /k/p | tr -d ' ') = 6402 && test $(stat -c %a /k/suid) = 4711 && test -p /d/fifo && test -f /d/socket && test ! -s /d/socket\n\
        RUN grep -q '^user' /dev/null || test $(stat -c %h /d/cap) = 2\n";
    home.context("c", dockerfile);
    let archive = home.path("image.tar");
    let output = format!("type=oci,dest={}", archive.display());
    home.run(["build", "--output", &output, "c"]).ok();
    let image = Image::read(&archive).unwrap();
    let entries: Vec<_> = image.layers.iter().flat_map(|l| tar::entries(l).unwrap()).collect();
    let xattr = |path: &[u8], name: &[u8]| {
        let entry = entries.iter().rev().find(|e| e.path == path && e.kind == b'0').expect("the file is in a layer");
        entry.xattrs.get(name).cloned()
    };
    assert_eq!(xattr(b"d/attr", b"user.kiln").as_deref(), Some(&b"value\xff"[..]));
    assert_eq!(xattr(b"d/cap", b"security.capability").map(|v| v.len()), Some(20));
}

#[test]
fn a_workdir_is_cleaned_before_it_is_made() {
    let dockerfile = "FROM busybox\nWORKDIR /x/../y/./z/\nRUN test $(pwd) = /y/z && test ! -e /x\n\
                      USER nobody-knows\nWORKDIR /unknown\nUSER 0\nRUN test $(stat -c %u:%g /unknown) = 0:0\n";
    builds(&[], dockerfile, &[]);
}

/// Steps that a cache holds from another day tell the epoch, too.
#[test]
fn the_epoch_is_the_time_of_cached_steps_as_well() {
    let home = Home::new();
    let context = home.context("c", "ARG SOURCE_DATE_EPOCH\nFROM scratch\nCOPY Dockerfile /\nLABEL a=b\n");
    let archive = home.path("image.tar");
    let output = format!("type=oci,dest={}", archive.display());
    // The last second that can be written.
    home.run(["build", "--build-arg", "SOURCE_DATE_EPOCH=253402300799", "--output", &output, context.to_str().unwrap()]).ok();
    assert!(String::from_utf8_lossy(&std::fs::read(&archive).unwrap()).contains("\"9999-12-31T23:59:59Z\""));
    // `created` of the image, of two instructions, and in the index.
    for (arg, times) in [("SOURCE_DATE_EPOCH=", 0), ("SOURCE_DATE_EPOCH=7", 4)] {
        home.run(["build", "--output", &output, "--build-arg", arg, context.to_str().unwrap()]).ok();
        let bytes = std::fs::read(&archive).unwrap();
        assert_eq!(String::from_utf8_lossy(&bytes).matches("\"1970-01-01T00:00:07").count(), times, "{arg}");
    }
}

/// What a later issue deepens answers with the line and says so; it never does something else in silence.
#[test]
fn what_is_not_there_yet_says_so() {
    let home = Home::new();
    let line = "RUN --device=vendor.com/device true";
    let outcome = home.build("later", &format!("FROM busybox\n{line}\n"));
    assert!(!outcome.status.success(), "{line}");
    outcome.says(&["Dockerfile:2"]);
}

#[test]
fn a_foreign_frontend_is_refused_and_the_known_one_is_built_in() {
    builds(&[], "# syntax=docker/dockerfile:1\nFROM busybox\nRUN true\n", &[]);
    let home = Home::new();
    let dockerfile = "# syntax=example.invalid/other:1\nFROM busybox\n";
    home.build("x", dockerfile).fails(3).says(&["example.invalid/other:1"]);
}
