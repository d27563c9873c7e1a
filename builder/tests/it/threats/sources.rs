//! Frontends, git repositories, and paths that are made up.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use super::{build, homes, tree};
use crate::support::home::Home;
use crate::support::lab::{FolderServer, Registry, RegistryOptions, temp_dir};
use crate::support::skip::needs;

/// C05 (BuildKit v0.31.2): references of git that look like options are refused or are no options, and paths that lead out stay inside.
#[test]
fn c05_references_like_options_and_paths_that_lead_out() {
    if !needs("c05_references_like_options_and_paths_that_lead_out", "git") {
        return;
    }
    let home = Home::new();
    let (folder, server) = repository(&home);
    let marker = home.path("executed");
    for reference in ["--upload-pack=touch", "-x", "--output=/tmp/x", "--", "--exec=id"] {
        let text = reference.replace("touch", &format!("touch {}", marker.display()));
        let url = format!("git://{}/repo.git#{text}", server.host());
        let outcome = home.run(["build", url.as_str()]);
        assert!(!outcome.status.success() && !outcome.stderr.contains("panicked"), "{outcome:?}");
        assert!(!marker.exists(), "{reference}");
    }
    for url in ["ext::sh -c touch% executed", "git::ext::sh", "-u./x"] {
        let outcome = build(&home, &format!("FROM scratch\nADD \"{url}\" /\n"), &[]);
        assert!(!outcome.stderr.contains("panicked") && !marker.exists(), "{outcome:?}");
    }
    drop(folder);
    for (mode, home) in homes("c05_references_like_options_and_paths_that_lead_out") {
        let canary = temp_dir();
        fs::write(canary.path().join("f"), "canary\n").unwrap();
        let before = tree(canary.path());
        home.write("c/f", "f");
        let at = canary.path().display();
        let up = "../".repeat(20);
        let dockerfile = format!(
            "FROM busybox\nWORKDIR /a/{up}b\nCOPY f {up}{at}/f\nCOPY f /{up}up/\nRUN rm -rf /{up}{at} /a && test -e /up/f\nRUN ln -s {at} /link\nCOPY f /link/f\nADD f /link/{up}g\n"
        );
        build(&home, &dockerfile, &[]).ok();
        assert_eq!(tree(canary.path()), before, "{mode}");
        let outcome = build(&home, &format!("FROM busybox\nCOPY {up}etc/passwd /p\n"), &[]);
        assert!(!outcome.status.success(), "{mode}: the context ends at its top");
    }
}

/// C06 (CVE-2026-33747): a frontend is named and never fetched.
#[test]
fn c06_frontends_are_not_fetched() {
    let registry = Registry::start(&RegistryOptions { seeds: &["busybox"], ..RegistryOptions::default() });
    for (mode, home) in homes("c06_frontends_are_not_fetched") {
        home.mirror(registry.host());
        for name in
            [format!("{}/evil/frontend:1", registry.host()), "evil/frontend@sha256:0000".to_owned(), "../../evil".to_owned()]
        {
            let outcome = build(&home, &format!("# syntax={name}\nFROM scratch\nCOPY Dockerfile /\n"), &[]);
            assert!(!outcome.stderr.contains("panicked"), "{mode}: {outcome:?}");
            assert_eq!(registry.requests("evil/frontend"), [""; 0], "{mode}");
        }
        let outside = fs::read_dir(home.path("")).unwrap().flatten().map(|entry| entry.file_name()).collect::<Vec<_>>();
        assert!(!outside.iter().any(|name| name == "evil"), "{mode}: {outside:?}");
    }
}

/// A repository with links that lead out of it, at each depth, served by git.
fn repository(home: &Home) -> (std::path::PathBuf, FolderServer) {
    let work = home.path("work");
    fs::create_dir_all(work.join("sub/deep")).unwrap();
    for name in ["Dockerfile", "sub/Dockerfile", "sub/deep/Dockerfile"] {
        fs::write(work.join(name), "FROM scratch\nCOPY . /\n").unwrap();
    }
    for (link, to) in [
        ("out", "/etc"),
        ("up", "../../../../../../../etc"),
        ("sub/out", "/etc"),
        ("sub/deep/up", "../../../../../../etc"),
        ("sub/self", "."),
    ] {
        symlink(to, work.join(link)).unwrap();
    }
    let served = home.path("served");
    let script = format!(
        "git init -q -b main . && git add -A && git -c user.name=t -c user.email=t@t commit -q -m one && git clone -q --bare . {0}/repo.git && touch {0}/repo.git/git-daemon-export-ok",
        served.display()
    );
    fs::create_dir_all(&served).unwrap();
    assert!(Command::new("sh").args(["-ec", &script]).current_dir(&work).status().unwrap().success());
    let server = FolderServer::git(&served);
    (served, server)
}

/// C07 (CVE-2026-33748): the folder of a repository is a folder of it: no `..`, no absolute path, no link at any depth.
#[test]
fn c07_folders_of_repositories() {
    if !needs("c07_folders_of_repositories", "git") {
        return;
    }
    let home = Home::new();
    let (_folder, server) = repository(&home);
    let url = |folder: &str| format!("git://{}/repo.git#main:{folder}", server.host());
    for folder in ["sub", "sub/deep", "sub/"] {
        home.run(["build", url(folder).as_str()]).ok();
    }
    for folder in [
        "..",
        "../..",
        "sub/../..",
        "out",
        "up",
        "sub/out",
        "sub/deep/up",
        "/etc",
        "/sub",
        "out/ssl",
        "sub/self/../../..",
        "nothing",
    ] {
        let outcome = home.run(["build", "-f", "passwd", url(folder).as_str()]);
        assert!(!outcome.status.success() && !outcome.stderr.contains("root:x:0"), "{folder}: {outcome:?}");
        let outcome = home.run(["build", url(folder).as_str()]);
        assert!(!outcome.status.success(), "{folder}: {outcome:?}");
    }
}
