//! `type=local`, `type=tar` and `type=cacheonly`: the files of a result, as BuildKit hands them out, and nothing outside of the
//! folder that was named.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use crate::support::home::{Home, finish};

const RESULT: &str = "FROM busybox AS made
RUN mkdir -p /o/d /o/empty && echo hi > /o/f && ln /o/f /o/h && ln -s f /o/l && echo x > /o/d/x && chown 5:6 /o/d/x \
 && mkfifo /o/p && chmod 1777 /o/d && chmod 700 /o/empty && chmod 4755 /o/f && touch -d @1000000000 /o/f
FROM scratch
COPY --from=made /o/ /
";

/// One line a path: kind, mode, link count or target, content.
fn told(folder: &Path) -> Vec<String> {
    let find = finish(Command::new("find").arg(folder).args(["-mindepth", "1", "-printf", "%P %y %m %n %l\\n"])).ok();
    let mut lines: Vec<String> = find.stdout.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.sort();
    lines
}

const EXPECTED: [&str; 8] =
    ["d d 1777 2", "d/x f 644 1", "empty d 700 2", "f f 4755 2", "h f 4755 2", "l l 777 1 f", "p p 644 1", ""];

#[test]
fn a_folder_gets_the_files() {
    let Some(home) = Home::in_mode("a_folder_gets_the_files") else { return };
    let context = home.context("c", RESULT);
    let dest = home.path("out");
    let built = home.run(["build", "-o", dest.to_str().unwrap(), context.to_str().unwrap()]).ok();
    assert!(built.stderr.contains("exporting to client directory"), "{}", built.stderr);
    assert_eq!(told(&dest), EXPECTED[..7]);
    assert_eq!(std::fs::metadata(&dest).unwrap().mode() & 0o7777, 0o700);
    assert_eq!(std::fs::read(dest.join("h")).unwrap(), b"hi\n");
    assert_eq!(std::fs::metadata(dest.join("f")).unwrap().mtime(), 1_000_000_000);
    // Owners are the caller's.
    assert_eq!(std::fs::metadata(dest.join("d/x")).unwrap().uid(), std::fs::metadata(&dest).unwrap().uid());
    // Nothing is named in the store: nobody asked for an image.
    assert_eq!(home.run(["images", "-q"]).ok().stdout, "");
}

#[test]
fn what_is_there_is_replaced_but_never_followed() {
    let home = Home::new();
    let context = home.context("c", RESULT);
    let dest = home.path("out");
    let outside = home.path("outside");
    std::fs::create_dir_all(dest.join("h/full")).unwrap();
    std::fs::create_dir_all(&outside).unwrap();
    home.write("outside/victim", "untouched");
    home.write("out/mine", "mine");
    home.write("out/d-is-file", "x");
    // A folder, a file and a link of the result each meet a link that leads out.
    symlink(&outside, dest.join("d")).unwrap();
    symlink(outside.join("victim"), dest.join("f")).unwrap();
    symlink(outside.join("victim"), dest.join("l")).unwrap();
    let args = |mode: &str| ["build".to_owned(), "-o".to_owned(), format!("type=local,dest=out,mode={mode}"), "c".to_owned()];
    let build = |mode: &str| {
        crate::support::home::outcome("kiln", home.command().args(args(mode)).current_dir(home.path("")).output().unwrap())
    };
    build("copy").ok();
    assert_eq!(std::fs::read_to_string(outside.join("victim")).unwrap(), "untouched");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
    let mut with_mine: Vec<String> = EXPECTED[..7].iter().map(|line| (*line).to_owned()).collect();
    with_mine.extend(["mine f 644 1".to_owned(), "d-is-file f 644 1".to_owned()]);
    with_mine.sort();
    assert_eq!(told(&dest), with_mine);
    // The other mode leaves what belongs there, and follows no link on its way.
    symlink(&outside, dest.join("d/way-out")).unwrap();
    home.write("out/deep/er/file", "x");
    build("delete").ok();
    assert_eq!(told(&dest), EXPECTED[..7]);
    assert_eq!(std::fs::read_to_string(outside.join("victim")).unwrap(), "untouched");
    // It has to be allowed where a slip would cost more.
    let here = home.path("here");
    std::fs::create_dir(&here).unwrap();
    symlink(&outside, here.join("way-out")).unwrap();
    for place in [".", "/tmp/kiln-nowhere", "way-out", "way-out/below", "missing/../../x"] {
        let output = format!("type=local,dest={place},mode=delete");
        let run = |more: &[&str]| {
            let mut command = home.command();
            command.args(["build", "-o", &output]).args(more).arg(&context).current_dir(&here);
            crate::support::home::outcome("kiln", command.output().unwrap())
        };
        run(&[]).fails(125).says(&["mode=delete", "--allow=buildx.local.delete"]);
        if place == "way-out" {
            run(&["--allow=buildx.local.delete"]).ok();
            assert_eq!(told(&outside), EXPECTED[..7]);
        }
    }
}

#[test]
fn a_tar_has_owners_and_times() {
    let home = Home::new();
    let context = home.context("c", RESULT);
    let list = |tar: &Path| finish(Command::new("tar").env("TZ", "UTC").args(["--numeric-owner", "-tvf"]).arg(tar)).ok().stdout;
    let dest = home.path("out.tar");
    home.run(["build", "-o", &format!("type=tar,dest={}", dest.display()), context.to_str().unwrap()]).ok();
    let lines = list(&dest);
    for part in ["drwxrwxrwt 0/0", "-rw-r--r-- 5/6", "hrwsr-xr-x 0/0", "h link to f", "l -> f", "2001-09-09 01:46 f"] {
        assert!(lines.contains(part), "{part}: {lines}");
    }
    assert_eq!(lines.lines().count(), 7);
    // With an epoch every file has its time; the same bytes whoever builds, and on standard output.
    let epoch = ["--build-arg", "SOURCE_DATE_EPOCH=1500000000"];
    let mut tars = Vec::new();
    for home in [&home, &Home::new()] {
        let context = home.context("c", RESULT);
        let mut command = home.command();
        command.args(["build", "-o", "-"]).args(epoch).arg(&context);
        let output = command.output().unwrap();
        assert!(output.status.success());
        tars.push(output.stdout);
    }
    assert!(tars[0] == tars[1]);
    let lines = list(&home.write("epoch.tar", &tars[0]));
    assert!(lines.lines().all(|line| line.contains("2017-07-14 02:40")), "{lines}");
    // In a folder, too.
    let folder = home.path("folder");
    home.run(["build", "-o", folder.to_str().unwrap(), epoch[0], epoch[1], context.to_str().unwrap()]).ok();
    for name in ["d", "d/x", "f", "l", "empty"] {
        assert_eq!(std::fs::symlink_metadata(folder.join(name)).unwrap().mtime(), 1_500_000_000, "{name}");
    }
}

#[test]
fn a_failure_leaves_nothing_half_written() {
    let home = Home::new();
    home.write("out.tar", "the one from before");
    let context = home.context("c", "FROM busybox\nRUN false\n");
    home.run(["build", "-o", &format!("type=tar,dest={}", home.path("out.tar").display()), context.to_str().unwrap()]).fails(1);
    assert_eq!(std::fs::read_to_string(home.path("out.tar")).unwrap(), "the one from before");
    // A pipe or a device is written to, not replaced.
    let context = home.context("d", RESULT);
    home.run(["build", "-o", "type=tar,dest=/dev/null", context.to_str().unwrap()]).ok();
    assert!(!std::fs::metadata("/dev/null").unwrap().is_file());
    home.run(["build", "-o", "type=cacheonly", "-t", "x", context.to_str().unwrap()]).ok();
    assert_eq!(home.run(["images", "-q"]).ok().stdout, "");
    let mode = std::fs::metadata(home.path("out.tar")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o644);
}

#[test]
fn each_platform_has_a_folder() {
    let home = Home::new();
    let context = home.context("c", "FROM scratch\nARG TARGETARCH\nCOPY $TARGETARCH /name\n");
    home.write("c/amd64", "a");
    home.write("c/arm64", "b");
    let run =
        |options: &str, platforms: &str| home.run(["build", "--platform", platforms, "-o", options, context.to_str().unwrap()]);
    let dest = home.path("out");
    run(dest.to_str().unwrap(), "linux/amd64,linux/arm64").ok();
    assert_eq!(
        told(&dest),
        ["linux_amd64 d 755 2", "linux_amd64/name f 644 1", "linux_arm64 d 755 2", "linux_arm64/name f 644 1"]
    );
    assert_eq!(std::fs::read(dest.join("linux_arm64/name")).unwrap(), b"b");
    let one = home.path("one");
    run(&format!("type=local,dest={}", one.display()), "linux/arm64").ok();
    assert_eq!(told(&one), ["name f 644 1"]);
    let split = home.path("split");
    run(&format!("type=local,dest={},platform-split=true", split.display()), "linux/arm64").ok();
    assert_eq!(told(&split), ["linux_arm64 d 755 2", "linux_arm64/name f 644 1"]);
    run(&format!("type=local,dest={},platform-split=false", home.path("no").display()), "linux/amd64,linux/arm64")
        .fails(1)
        .says(&["cannot overwrite `name` from linux/amd64 with that of linux/arm64"]);
    let tar = home.path("o.tar");
    run(&format!("type=tar,dest={}", tar.display()), "linux/amd64,linux/arm64").ok();
    let names = finish(Command::new("tar").arg("-tf").arg(&tar)).ok().stdout;
    assert_eq!(names.lines().collect::<Vec<_>>(), ["linux_amd64/", "linux_amd64/name", "linux_arm64/", "linux_arm64/name"]);
}
