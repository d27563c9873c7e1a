//! Files and repositories that only whoever has a password, a token or a key gets: real servers that ask for them.

use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;

use crate::contexts::{Repositories, sh};
use crate::support::home::{Home, Outcome, finish};
use crate::support::lab::FolderServer;
use crate::support::skip::needs;

const BUILD: i32 = 1;
/// What no file, no message and no image may hold.
const CANARY: &str = "canary-of-the-token";

/// The header that a token of git comes to.
fn header() -> String {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("x-access-token:{CANARY}")))
}

/// Builds `dockerfile` with a variable `TOKEN` that holds the canary.
fn build(home: &Home, dockerfile: &str, args: &[&str]) -> Outcome {
    let context = home.context("c", dockerfile);
    build_at(home, context.to_str().unwrap(), args)
}

fn build_at(home: &Home, context: &str, args: &[&str]) -> Outcome {
    let mut command = home.command();
    let outcome =
        finish(command.env("TOKEN", CANARY).env("HEADER", header()).args(["build", "-t", "image"]).args(args).arg(context));
    for secret in [CANARY, &header()] {
        assert!(!outcome.stderr.contains(secret) && !outcome.stdout.contains(secret), "{}", outcome.stderr);
    }
    outcome
}

/// The files below `folder` that hold the canary.
fn leaks(folder: &Path) -> String {
    let grep = Command::new("grep").args(["-rlaF", "-e", CANARY, "-e", &header()]).arg(folder).output().unwrap();
    String::from_utf8_lossy(&grep.stdout).into_owned()
}

#[test]
fn git_by_http_with_a_token() {
    let r = Repositories::new();
    let served = r.home.path("served");
    sh(&served, "git clone -q --bare repo repo.git");
    let server = FolderServer::git_http(&served, &header());
    let (home, host) = (&r.home, server.host());
    let url = format!("http://{host}/repo.git");
    let dockerfile = format!("FROM busybox\nADD {url} /x\nRUN grep -qx two /x/f && grep -qx inner /x/mod/inner\n");
    build(home, &dockerfile, &[]).fails(BUILD).says(&["Dockerfile:2", "Authentication failed", "hint: ", "GIT_AUTH_TOKEN"]);
    let other = ["--secret", "id=GIT_AUTH_TOKEN.example.invalid,env=TOKEN"];
    build(home, &dockerfile, &other).fails(BUILD).says(&["Authentication failed"]);
    let wrong = ["--secret", "id=GIT_AUTH_TOKEN,src=c/Dockerfile"];
    build(home, &dockerfile, &wrong).fails(BUILD).says(&["Dockerfile:2"]);
    for (round, secret) in [
        "id=GIT_AUTH_TOKEN,env=TOKEN".to_owned(),
        format!("id=GIT_AUTH_TOKEN.{host},env=TOKEN"),
        "id=GIT_AUTH_HEADER,env=HEADER".to_owned(),
        format!("id=GIT_AUTH_HEADER.{host},env=HEADER"),
    ]
    .iter()
    .enumerate()
    {
        let outcome = build(home, &dockerfile, &["--secret", secret]).ok();
        // The commit is the key, whoever asked for it.
        assert_eq!(outcome.cached(), if round == 0 { 0 } else { 2 }, "{secret}: {}", outcome.stderr);
        build(home, &dockerfile, &["--no-cache", "--secret", secret]).ok();
    }
    let token = ["--secret", "id=GIT_AUTH_TOKEN,env=TOKEN"];
    for (query, check) in [
        (format!("?commit={}", r.first), "grep -qx one /x/f"),
        (format!("?commit={}&keep-git-dir", r.first), "test -d /x/.git"),
        ("?tag=v1&subdir=dir".to_owned(), "grep -qx deep /x/deep/g"),
        (format!("?branch=other&checksum={}&submodules=0", &r.second[..10]), "test ! -e /x/mod/inner"),
        ("?ref=refs/tags/light&mtime=commit".to_owned(), "test $(stat -c %Y /x/f) = 1700000000"),
    ] {
        build(home, &format!("FROM busybox\nADD {url}{query} /x\nRUN {check}\n"), &token).ok();
    }
    // A context, on the command line and by name.
    build_at(home, &format!("{url}#v1"), &token).ok();
    let named = format!("lib={url}#v1");
    let named = [&token[..], &["--build-context", &named]].concat();
    build(home, "FROM busybox\nCOPY --from=lib f /f\nRUN grep -qx one /f\n", &named).ok();
    build_at(home, &format!("{url}#v1"), &[]).fails(BUILD).says(&["GIT_AUTH_TOKEN"]);
    assert_eq!(leaks(&home.store()), "");
    // A password in the address comes first.
    let with_password = url.replace("http://", &format!("http://x-access-token:{CANARY}@"));
    build_at(home, &format!("{with_password}#v1"), &["--secret", "id=GIT_AUTH_TOKEN,src=c/Dockerfile"]).ok();
}

/// A key for ssh in the home's folder, and its public half.
fn key(home: &Home, name: &str) -> (PathBuf, PathBuf) {
    sh(&home.path("."), &format!("ssh-keygen -q -N '' -t ed25519 -f {name}"));
    (home.path(name), home.path(&format!("{name}.pub")))
}

#[test]
fn git_by_ssh_with_a_key() {
    if !needs("git_by_ssh_with_a_key", "sshd") || !needs("git_by_ssh_with_a_key", "ssh-agent") {
        return;
    }
    let r = Repositories::new();
    let home = &r.home;
    let (private, public) = key(home, "id");
    let (other, _) = key(home, "other");
    let server = FolderServer::git_ssh(&home.path("served"), &public);
    let user = sh(&home.path("."), "id -un");
    let url = format!("ssh://{user}@{}/repo", server.host());
    let dockerfile = format!("FROM busybox\nADD {url} /x\nRUN grep -qx two /x/f && grep -qx inner /x/mod/inner\n");
    let known_hosts = |home: &str| std::fs::read(format!("{home}/.ssh/known_hosts")).ok();
    let own_home = sh(&home.path("."), "getent passwd $(id -u) | cut -d: -f6");
    let before = known_hosts(&own_home);

    build(home, &dockerfile, &[]).fails(BUILD).says(&["Dockerfile:2", "no ssh agent or key `default`", "--ssh default=KEYFILE"]);
    let ssh = |id: &str, file: &Path| format!("{id}={}", file.display());
    build(home, &dockerfile, &["--ssh", &ssh("git", &private)]).fails(BUILD).says(&["no ssh agent or key `default`"]);
    let refused = build(home, &dockerfile, &["--ssh", &ssh("default", &other)]).fails(BUILD);
    refused.says(&["Dockerfile:2", "Permission denied", "takes none of the keys"]);
    let both = format!("default={},{}", other.display(), private.display());
    build(home, &dockerfile, &["--ssh", &both]).ok();
    let again = build(home, &dockerfile, &["--ssh", &ssh("default", &private)]).ok();
    assert_eq!(again.cached(), 2, "{}", again.stderr);
    build_at(home, &format!("{url}#v1"), &["--ssh", &ssh("default", &private)]).ok();
    let short = format!("{user}@{}:repo", server.usual());
    build(home, &format!("FROM busybox\nADD {short}#v1:dir /x\nRUN grep -qx deep /x/deep/g\n"), &["--ssh", &both]).ok();
    build(home, &format!("FROM busybox\nADD {short} /x\nRUN grep -qx inner /x/mod/inner\n"), &["--ssh", &both]).ok();

    let socket = home.path("agent.sock");
    let script = format!(
        "ssh-agent -a {} > env && . ./env > /dev/null && ssh-add -q {} && echo $SSH_AGENT_PID",
        socket.display(),
        private.display()
    );
    let agent = sh(&home.path("."), &script);
    let through = build(home, &dockerfile, &["--no-cache", "--ssh", &ssh("default", &socket)]);
    // A person at the command line means their own agent, a Dockerfile does not.
    let mut command = home.command();
    let own = finish(command.env("SSH_AUTH_SOCK", &socket).args(["build", &format!("{url}#light:dir")]));
    let context = home.context("c", &dockerfile);
    let mut command = home.command();
    let not_granted = finish(command.env("SSH_AUTH_SOCK", &socket).args(["build", "--no-cache"]).arg(context));
    sh(&home.path("."), &format!("kill {agent}"));
    through.ok();
    own.ok();
    not_granted.fails(BUILD).says(&["no ssh agent or key `default`"]);
    assert!(before == known_hosts(&own_home), "the user's list of known hosts was changed");
    let gone = build(home, &dockerfile, &["--no-cache", "--ssh", &ssh("default", &socket)]);
    assert!(!gone.status.success());
}

#[test]
fn contexts_by_http_with_a_token() {
    let home = Home::new();
    home.write("tree/Dockerfile", "FROM busybox\nCOPY f /f\nRUN grep -qx hello /f\n");
    home.write("tree/f", "hello\n");
    sh(&home.path("."), "mkdir served && tar -czf served/c.tgz -C tree . && cp tree/f served/f && cp tree/Dockerfile served/");
    let server = FolderServer::guarded_files(&home.path("served"), &format!("Bearer {CANARY}"));
    let url = |name: &str| format!("http://{}/{name}", server.host());
    let token = format!("id=HTTP_AUTH_TOKEN_{},env=TOKEN", server.host());
    let granted = ["--secret", &token];
    build_at(&home, &url("c.tgz"), &[]).fails(BUILD).says(&["401"]);
    build_at(&home, &url("c.tgz"), &granted).ok();
    let (tree, file) = (home.path("tree"), url("Dockerfile"));
    build_at(&home, tree.to_str().unwrap(), &[&granted[..], &["-f", &file]].concat()).ok();
    let dockerfile = format!(
        "FROM busybox\nADD {} /add/\nCOPY --from=lib f /f\nCOPY --from=one f /g\nRUN cat /add/f /f /g | uniq -c | grep -q '3 hello'\n",
        url("f")
    );
    let (lib, one) = (format!("lib={}", url("c.tgz")), format!("one={}", url("f")));
    let contexts = ["--build-context", &lib, "--build-context", &one];
    build(&home, &dockerfile, &[&granted[..], &contexts].concat()).ok();
    build(&home, &dockerfile, &contexts).fails(BUILD).says(&["401"]);
    assert_eq!(leaks(&home.store()), "");
}
