//! Layers that are changed after they were made.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{build, homes};
use crate::support::home::Home;
use crate::support::lab;
use crate::support::skip::{needs, skipped};

/// C29 (CVE-2024-27297): a stage hands a file of its layer, open for writing, to another one that runs beside it. The first fails: its
/// result is neither kept nor used.
#[test]
fn c29_two_stages_that_work_together() {
    const TEST: &str = "c29_two_stages_that_work_together";
    if !needs(TEST, "gcc") {
        return;
    }
    for (mode, home) in homes(TEST) {
        let program = home.path("c/deeds");
        fs::create_dir_all(home.path("c")).unwrap();
        let source = lab::workspace().join("testdata/probe/deeds.c");
        let compiled = Command::new("gcc").args(["-static", "-pthread", "-O1", "-o"]).arg(&program).arg(source).status().unwrap();
        if !compiled.success() {
            return skipped(TEST, "gcc can't compile a static program");
        }
        let name = format!("@kiln-it-{}-{mode}", std::process::id());
        for (how, socket, flags) in [("cache", "/c/socket", &[][..]), ("network", name.as_str(), &["--network=host"][..])] {
            let dockerfile = format!(
                "FROM busybox AS tools\nCOPY deeds /\nFROM tools AS taker\nRUN --mount=type=cache,target=/c rm -f {socket}; /deeds receive {socket} 3000\n\
                 FROM tools AS giver\nRUN --mount=type=cache,target=/c echo original > /output && /deeds send {socket} /output\n\
                 FROM scratch\nCOPY --from=taker /etc/passwd /a\nCOPY --from=giver /output /b\n"
            );
            let outcome = build(&home, &dockerfile, &[&["--no-cache"], flags].concat());
            assert!(!outcome.status.success(), "{mode} {how}: {outcome:?}");
            assert!(outcome.stderr.contains("still holds files of its root open"), "{mode} {how}: {outcome:?}");
        }
        home.left_nothing();
    }
}

/// Every regular file of the layers' trees.
fn files(home: &Home) -> Vec<PathBuf> {
    let found = Command::new("find")
        .arg(home.store())
        .args(["-path", "*/layers/*/diff/*", "-type", "f", "-size", "+0"])
        .output()
        .unwrap();
    String::from_utf8(found.stdout).unwrap().lines().map(PathBuf::from).collect()
}

/// Changes one byte of a file, and nothing that can be seen without reading it.
fn flip(path: &Path) {
    use std::os::unix::fs::FileExt;
    let times = fs::metadata(path).unwrap();
    let mode = times.permissions();
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, times.len() / 2).unwrap();
    file.write_all_at(&[byte[0] ^ 1], times.len() / 2).unwrap();
    file.set_times(fs::FileTimes::new().set_modified(times.modified().unwrap())).unwrap();
    fs::set_permissions(path, mode).unwrap();
}

/// C34 (Dirty Pipe, Copy Fail): a byte of a layer's tree is changed behind kiln's back, in each of its layers: found every time.
#[test]
fn c34_changed_layers_are_found() {
    for (mode, home) in homes("c34_changed_layers_are_found") {
        home.write("c/f", "from the context\n".repeat(100));
        let dockerfile = "FROM busybox\nRUN echo made > /made && mkdir /d && echo deep > /d/f\nCOPY f /f\n";
        let verified = |home: &Home| build(home, dockerfile, &["--verify-layers"]);
        build(&home, dockerfile, &[]).ok();
        verified(&home).ok();
        let all = files(&home);
        assert!(all.len() >= 4, "{mode}: {all:?}");
        // The base's own program, and each file that was built.
        let chosen: Vec<&PathBuf> = all
            .iter()
            .filter(|path| path.ends_with("bin/busybox") || ["made", "f"].iter().any(|name| path.ends_with(name)))
            .collect();
        assert!(chosen.len() >= 4, "{mode}: {all:?}");
        for path in chosen {
            flip(path);
            verified(&home).fails(4).says(&["the files of layer", "changed in the store"]);
            // Without the flag it is believed, which is why there is one.
            build(&home, dockerfile, &[]).ok();
            flip(path);
            verified(&home).ok();
        }
        // A file too many and one too few.
        let extra = all[0].parent().unwrap().join("extra");
        fs::write(&extra, "x").unwrap();
        verified(&home).fails(4);
        fs::remove_file(&extra).unwrap();
    }
}
