//! A test for each row of the tables at the top of `builder/src/cache_key.rs`: what of a step's inputs misses, and what doesn't.
//!
//! A row builds twice. Between the two builds one thing changes: the text, a flag, or the files.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use crate::cache::cached_steps;
use crate::support::home::{Home, finish};
use crate::support::lab::{self, FolderServer, workspace};

const HIT: bool = true;
const MISS: bool = false;

/// What is built, then what is built after the change: lines that begin with `--` are flags, the others the Dockerfile, which
/// begins with `FROM busybox` unless it says otherwise. The last step decides.
struct Row {
    value: &'static str,
    first: &'static str,
    second: &'static str,
    change: fn(&Files),
    hits: bool,
}

/// Both builds say the same; the files change in between.
const fn files(value: &'static str, text: &'static str, change: fn(&Files), hits: bool) -> Row {
    Row { value, first: text, second: text, change, hits }
}

/// The files stay; the text or the flags change.
const fn text(value: &'static str, first: &'static str, second: &'static str, hits: bool) -> Row {
    Row { value, first, second, change: |_| {}, hits }
}

const PLATFORM: &str = "platform";
const PARENT: &str = "parent";
const ARGUMENTS: &str = "arguments, in order";
const ENVIRONMENT: &str = "environment, in order, with ARGs in scope";
const FOLDER: &str = "working folder";
const USER: &str = "user";
const NETWORK: &str = "network mode";
const SECURITY: &str = "security mode";
const HOST: &str = "host name";
const HOSTS: &str = "names of extra hosts, not their addresses";
const MOUNTS: &str = "mounts, in order: kind, target, writable, size";
const BIND: &str = "a bind mount's files";
const SEED: &str = "a cache mount's seed, and mode and owner of a new one";
const SECRET: &str = "a secret's or agent's id, target, variable, mode, owner, `required`";
const HEREDOC: &str = "here-document files: path, bytes, mode";
const SELECTED: &str = "the selected files: path below the source, type, mode, owner, size, link, xattrs, bytes";
const DESTINATION: &str = "destination and whether it is a folder";
const CHOWN: &str = "`--chown`";
const CHMOD: &str = "`--chmod`";
const LINK: &str = "`--link`";
const PARENTS: &str = "`--parents`";
const UNPACK: &str = "`--unpack`";
const ADD_OR_COPY: &str = "ADD or COPY";
const INLINE: &str = "in-line files: name and bytes";
const ADDRESS: &str = "of an http address: the file's name, bytes and the time the server gives it";
const GIT: &str = "of a git repository: the commit, the folder in it, whether submodules and `.git` come too";
const NAMED: &str = "all files of a named context";
const CONFIG: &str = "what only the configuration holds";
const NAMES: &str = "names of stages and of images";
const PLACE: &str = "a context's folder and its parents";
const TIMES: &str = "modification times and owners in a context";
const PROXIES: &str = "proxy variables that were not declared";
const CACHE_ID: &str = "id and sharing mode of a cache mount";
const SECRET_VALUE: &str = "a secret's value, and whether an optional one was given";
const CREDENTIALS: &str = "credentials of ADD";
const LIMITS: &str = "the size of `/dev/shm`, limits of processes and of all of them together";
const OTHER_PLATFORM: &str = "the platform of a step that runs nothing";
const FORM: &str = "the form of the text: blanks, comments, case of keywords";

/// Rows of the first table that show in no build, and where they are tested.
const ELSEWHERE: [&str; 2] = ["[`FORMAT`]", "definition or content"]; // cache_key/tests.rs

const ROWS: &[Row] = &[
    text(PLATFORM, "FROM {one}\nRUN true", "--platform=linux/amd64/v2\nFROM {one}\nRUN true", MISS),
    text(OTHER_PLATFORM, "FROM scratch\nCOPY f /", "--platform=linux/arm64\nFROM scratch\nCOPY f /", HIT),
    text(OTHER_PLATFORM, "FROM scratch\nWORKDIR /w", "--platform=linux/arm64\nFROM scratch\nWORKDIR /w", HIT),
    text(PARENT, "FROM {one}\nRUN echo parent", "FROM {two}\nRUN echo parent", MISS),
    text(PARENT, "FROM {one}\nCOPY f /", "FROM {two}\nCOPY f /", MISS),
    text(PARENT, "FROM {one}\nADD f /", "FROM {two}\nADD f /", MISS),
    text(PARENT, "FROM {one}\nWORKDIR /w", "FROM {two}\nWORKDIR /w", MISS),
    text(PARENT, "RUN echo a\nRUN echo", "RUN echo b > /b\nRUN echo", MISS),
    text(PARENT, "COPY f /\nRUN echo", "COPY a.txt /\nRUN echo", MISS),
    text(PARENT, "COPY f /\nRUN echo", "COPY dir/f /\nRUN echo", HIT),
    // Another command with the same result: what stands on it hits by content.
    text(PARENT, "RUN echo x > /a\nRUN echo", "RUN printf 'x\\n' > /a\nRUN echo", HIT),
    text(PARENT, "RUN echo x > /a\nCOPY f /", "RUN printf 'x\\n' > /a\nCOPY f /", HIT),
    text(ARGUMENTS, "RUN echo a", "RUN echo b", MISS),
    text(ARGUMENTS, "RUN [\"echo\", \"a b\"]", "RUN [\"echo\", \"a\", \"b\"]", MISS),
    text(ARGUMENTS, "RUN [\"echo\", \"a\", \"b\"]", "RUN [\"echo\", \"b\", \"a\"]", MISS),
    text(ARGUMENTS, "RUN echo a", "RUN [\"/bin/sh\", \"-c\", \"echo a\"]", HIT),
    text(ARGUMENTS, "SHELL [\"sh\", \"-c\"]\nRUN echo a", "SHELL [\"/bin/sh\", \"-c\"]\nRUN echo a", MISS),
    text(ARGUMENTS, "RUN <<E\necho a\nE", "RUN <<E\necho b\nE", MISS),
    text(ARGUMENTS, "RUN cat <<E\na\nE", "RUN cat <<E\nb\nE", MISS),
    text(ENVIRONMENT, "ENV x=1\nRUN echo", "ENV x=2\nRUN echo", MISS),
    text(ENVIRONMENT, "ENV x=1\nRUN echo", "ENV y=1\nRUN echo", MISS),
    text(ENVIRONMENT, "ENV x=1 y=2\nRUN echo", "ENV y=2 x=1\nRUN echo", MISS),
    text(ENVIRONMENT, "ARG q=1\nRUN echo", "ARG q=2\nRUN echo", MISS),
    text(ENVIRONMENT, "--build-arg=q=1\nARG q\nRUN echo", "--build-arg=q=2\nARG q\nRUN echo", MISS),
    text(ENVIRONMENT, "--build-arg=q=1\nRUN echo\nARG q", "--build-arg=q=2\nRUN echo\nARG q", HIT),
    text(ENVIRONMENT, "ARG q\nRUN echo", "RUN echo", HIT),
    text(ENVIRONMENT, "--build-arg=q=1\nARG q=2\nRUN echo", "ARG q=1\nRUN echo", HIT),
    text(ENVIRONMENT, "ENV x=1\nCOPY f /", "ENV x=2\nCOPY f /", HIT),
    text(ENVIRONMENT, "ARG q=1\nADD f /", "ARG q=2\nADD f /", HIT),
    text(FOLDER, "FROM {one}\nWORKDIR /\nRUN echo", "FROM {elsewhere}\nRUN echo", MISS),
    text(FOLDER, "WORKDIR /a\nRUN echo", "WORKDIR /b\nRUN echo", MISS),
    text(FOLDER, "WORKDIR /a", "WORKDIR /b", MISS),
    text(FOLDER, "WORKDIR /a/b", "WORKDIR /a/c/../b", HIT),
    text(USER, "USER 1\nRUN echo", "USER 2\nRUN echo", MISS),
    text(USER, "USER 1\nRUN echo", "USER 1:2\nRUN echo", MISS),
    text(USER, "USER 1\nWORKDIR /w", "USER 2\nWORKDIR /w", MISS),
    text(USER, "USER 1\nCOPY f /", "USER 2\nCOPY f /", HIT),
    text(NETWORK, "RUN echo", "RUN --network=none echo", MISS),
    text(NETWORK, "RUN echo", "RUN --network=default echo", HIT),
    text(NETWORK, "RUN echo", "--network=none\nRUN echo", MISS),
    text(SECURITY, "RUN echo", "--allow=security.insecure\nRUN --security=insecure echo", MISS),
    text(SECURITY, "RUN echo", "--allow=security.insecure\nRUN --security=sandbox echo", HIT),
    text(HOST, "RUN echo", "--build-arg=BUILDKIT_SANDBOX_HOSTNAME=other\nRUN echo", MISS),
    text(HOSTS, "RUN echo", "--add-host=a:1.1.1.1\nRUN echo", MISS),
    text(HOSTS, "--add-host=a:1.1.1.1\nRUN echo", "--add-host=b:1.1.1.1\nRUN echo", MISS),
    text(HOSTS, "--add-host=a:1.1.1.1\nRUN echo", "--add-host=a:2.2.2.2\nRUN echo", HIT),
    text(MOUNTS, "RUN echo", "RUN --mount=target=/m echo", MISS),
    text(MOUNTS, "RUN --mount=target=/m echo", "RUN --mount=type=tmpfs,target=/m echo", MISS),
    text(MOUNTS, "RUN --mount=target=/m echo", "RUN --mount=target=/n echo", MISS),
    text(MOUNTS, "RUN --mount=target=/m echo", "RUN --mount=target=/m,rw echo", MISS),
    text(MOUNTS, "RUN --mount=target=/m echo", "RUN --mount=type=bind,dst=/m,ro echo", HIT),
    text(MOUNTS, "RUN --mount=type=tmpfs,target=/m echo", "RUN --mount=type=tmpfs,target=/m,size=1m echo", MISS),
    text(MOUNTS, "RUN --mount=type=cache,target=/m echo", "RUN --mount=type=cache,target=/m,ro echo", MISS),
    text(
        MOUNTS,
        "RUN --mount=target=/m --mount=type=tmpfs,target=/n echo",
        "RUN --mount=type=tmpfs,target=/n --mount=target=/m echo",
        MISS,
    ),
    files(BIND, "RUN --mount=target=/m,source=dir echo", |c| c.write("dir/sub/g", "changed"), MISS),
    files(BIND, "RUN --mount=target=/m,source=dir echo", |c| c.mode("dir/f", 0o600), MISS),
    files(BIND, "RUN --mount=target=/m,source=dir echo", |c| c.touch("dir/f"), HIT),
    files(BIND, "RUN --mount=target=/m,source=dir echo", |c| c.write("f", "changed"), HIT),
    files(BIND, "RUN --mount=target=/m echo", |c| c.write("f", "changed"), MISS),
    files(BIND, "RUN --mount=target=/m echo", |c| c.write("f.log", "ignored"), HIT),
    text(BIND, "RUN --mount=from={one},target=/m echo", "RUN --mount=from={two},target=/m echo", MISS),
    text(
        BIND,
        "{s}RUN echo 1 > /a\n{b}RUN --mount=from=s,target=/m echo",
        "{s}RUN echo 2 > /a\n{b}RUN --mount=from=s,target=/m echo",
        MISS,
    ),
    text(
        BIND,
        "{s}RUN echo 1 > /a\n{b}RUN --mount=from=s,target=/m echo",
        "{s}RUN printf '1\\n' > /a\n{b}RUN --mount=from=s,target=/m echo",
        HIT,
    ),
    text(
        SEED,
        "{s}RUN echo 1 > /a\n{b}RUN --mount=type=cache,from=s,target=/m echo",
        "{s}RUN echo 2 > /a\n{b}RUN --mount=type=cache,from=s,target=/m echo",
        MISS,
    ),
    text(BIND, "RUN --mount=target=/m,source=same echo", "RUN --mount=target=/m,source=dir echo", HIT),
    text(BIND, "RUN --mount=target=/m,source=dir echo", "RUN --mount=target=/m,source=dir/sub echo", MISS),
    text(
        BIND,
        "{s}RUN mkdir /a && echo 1 > /b\n{b}RUN --mount=from=s,source=/a,target=/m echo",
        "{s}RUN mkdir /a && echo 2 > /b\n{b}RUN --mount=from=s,source=/a,target=/m echo",
        HIT,
    ),
    text(
        BIND,
        "{s}RUN mkdir /a && echo 1 > /a/b\n{b}RUN --mount=from=s,source=/a,target=/m echo",
        "{s}RUN mkdir /a && echo 2 > /a/b\n{b}RUN --mount=from=s,source=/a,target=/m echo",
        MISS,
    ),
    text(SEED, "RUN --mount=type=cache,target=/m echo", "RUN --mount=type=cache,from={one},target=/m echo", MISS),
    text(SEED, "RUN --mount=type=cache,target=/m echo", "RUN --mount=type=cache,target=/m,mode=0700 echo", MISS),
    text(SEED, "RUN --mount=type=cache,target=/m echo", "RUN --mount=type=cache,target=/m,uid=5 echo", MISS),
    text(SECRET, "RUN --mount=type=secret,id=a echo", "RUN --mount=type=secret,id=b echo", MISS),
    text(SECRET, "RUN --mount=type=secret,id=a echo", "RUN --mount=type=secret,id=a,target=/s echo", MISS),
    text(SECRET, "RUN --mount=type=secret,id=a echo", "RUN --mount=type=secret,id=a,env=S echo", MISS),
    text(SECRET, "RUN --mount=type=secret,id=a echo", "RUN --mount=type=secret,id=a,mode=0444 echo", MISS),
    text(SECRET, "RUN --mount=type=secret,id=a echo", "RUN --mount=type=secret,id=a,gid=4 echo", MISS),
    text(SECRET, "RUN --mount=type=secret,id=a echo", "--secret=id=a,env=PATH\nRUN --mount=type=secret,id=a,required echo", MISS),
    text(SECRET, "RUN --mount=type=ssh echo", "RUN --mount=type=ssh,id=b echo", MISS),
    text(SECRET, "RUN --mount=type=ssh echo", "RUN --mount=type=ssh,mode=0666 echo", MISS),
    text(HEREDOC, "RUN <<E\n#!/bin/sh\necho a\nE", "RUN <<E\n#!/bin/sh\necho b\nE", MISS),
    text(HEREDOC, "RUN <<E\n#!/bin/sh\necho a\nE", "RUN <<F\n#!/bin/sh\necho a\nF", MISS),
    text(HEREDOC, "RUN <<E\n#!/bin/sh\necho a\nE", "RUN <<-E\n#!/bin/sh\n\techo a\n\tE", HIT),
    files(SELECTED, "COPY dir /d/", |c| c.write("dir/f", "another"), MISS),
    files(SELECTED, "COPY dir /d/", |c| c.write("dir/f", "ONE"), MISS),
    files(SELECTED, "ADD dir /d/", |c| c.write("dir/f", "ONE"), MISS),
    files(SELECTED, "COPY dir /d/", |c| c.mode("dir/f", 0o700), MISS),
    files(SELECTED, "ADD f /d/", |c| c.mode("f", 0o700), MISS),
    files(SELECTED, "COPY dir /d/", |c| c.mode("dir/sub", 0o700), MISS),
    files(SELECTED, "COPY dir /d/", |c| c.rename("dir/f", "dir/h"), MISS),
    files(SELECTED, "COPY dir /d/", |c| c.write("dir/new", ""), MISS),
    files(SELECTED, "COPY dir /d/", |c| c.link("dir/link", "other"), MISS),
    files(SELECTED, "COPY dir /d/", |c| c.write("f", "changed"), HIT),
    files(SELECTED, "COPY . /d/", |c| c.write("f.log", "ignored"), HIT),
    files(SELECTED, "COPY *.txt /d/", |c| c.write("new.txt", "x"), MISS),
    files(SELECTED, "COPY --exclude=*f dir /d/", |c| c.write("dir/f", "changed"), HIT),
    text(SELECTED, "COPY dir /d/", "COPY --exclude=f dir /d/", MISS),
    text(SELECTED, "COPY f a.txt /d/", "COPY a.txt f /d/", MISS),
    text(SELECTED, "{s}RUN echo > /x\n{b}COPY --from=s /x /", "{s}RUN echo > /x && chown 5 /x\n{b}COPY --from=s /x /", MISS),
    text(SELECTED, "{s}RUN echo > /x\n{b}COPY --from=s /x /", "{s}RUN echo > /x && echo > /y\n{b}COPY --from=s /x /", HIT),
    text(DESTINATION, "COPY f /x", "COPY f /y", MISS),
    text(DESTINATION, "ADD f /x", "ADD f /x/", MISS),
    text(DESTINATION, "COPY f /x", "COPY [\"./f\", \"/./x\"]", HIT),
    text(CHOWN, "COPY f /", "COPY --chown=1 f /", MISS),
    text(CHOWN, "ADD --chown=1 f /", "ADD --chown=1:2 f /", MISS),
    text(CHMOD, "COPY f /", "COPY --chmod=644 f /", MISS),
    text(CHMOD, "ADD --chmod=600 f /", "ADD --chmod=644 f /", MISS),
    text(LINK, "COPY f /", "COPY --link f /", MISS),
    text(LINK, "ADD f /", "ADD --link f /", MISS),
    text(LINK, "COPY f /", "COPY --link=false f /", HIT),
    text(PARENTS, "COPY dir/f /", "COPY --parents dir/f /", MISS),
    text(UNPACK, "ADD f.tar /", "ADD --unpack=false f.tar /", MISS),
    text(ADD_OR_COPY, "COPY f /", "ADD f /", MISS),
    text(ADD_OR_COPY, "ADD f /", "COPY f /", MISS),
    text(INLINE, "COPY <<E /x\na\nE", "COPY <<E /x\nb\nE", MISS),
    text(INLINE, "COPY <<E /x/\na\nE", "COPY <<F /x/\na\nF", MISS),
    text(INLINE, "ADD <<E /x\na\nE", "ADD <<E /x\nb\nE", MISS),
    text(INLINE, "ENV v=1\nCOPY <<E /x\n$v\nE", "ENV v=2\nCOPY <<E /x\n$v\nE", MISS),
    text(INLINE, "ENV v=1\nCOPY <<'E' /x\n$v\nE", "ENV v=2\nCOPY <<'E' /x\n$v\nE", HIT),
    files(ADDRESS, "ADD {http}/f /", |c| c.served("f", "changed", 2), MISS),
    files(ADDRESS, "ADD {http}/f /", |c| c.served("f", "served", 2), MISS),
    files(ADDRESS, "ADD {http}/f /", |c| c.served("f", "served", 1), HIT),
    text(ADDRESS, "ADD {http}/f /d/", "ADD {http}/g /d/", MISS),
    files(GIT, "ADD {git}#main /", |c| c.commit(), MISS),
    files(GIT, "ADD {git}#v1 /", |c| c.commit(), HIT),
    text(GIT, "ADD {git}#v1 /", "ADD {git}#v1:dir /", MISS),
    text(GIT, "ADD {git}#v1 /", "ADD --keep-git-dir {git}#v1 /", MISS),
    text(GIT, "ADD {git}#v1 /", "ADD {git}?tag=v1&submodules=false /", MISS),
    files(NAMED, "--build-context=base={context}/dir\nFROM base\nCOPY f.txt /", |c| c.write("dir/f", "changed"), MISS),
    files(NAMED, "--build-context=base={context}/dir\nFROM base\nCOPY f.txt /", |c| c.touch("dir/f"), HIT),
    text(CONFIG, "LABEL x=1\nRUN echo", "LABEL x=2\nRUN echo", HIT),
    text(CONFIG, "EXPOSE 1\nCMD a\nENTRYPOINT a\nRUN echo", "VOLUME /v\nHEALTHCHECK NONE\nSTOPSIGNAL 9\nRUN echo", HIT),
    text(CONFIG, "RUN echo", "--label=a=b\nRUN echo\nUSER 5\nENV a=b", HIT),
    text(NAMES, "FROM busybox AS a\nRUN echo", "FROM busybox AS b\nRUN echo", HIT),
    text(NAMES, "FROM {one}\nRUN echo names", "FROM {one-again}\nRUN echo names", HIT),
    text(NAMES, "{s}RUN echo > /x\n{b}COPY --from=s /x /", "{s}RUN echo > /x\n{b}COPY --from=0 /x /", HIT),
    text(
        NAMES,
        "{s}RUN echo > /x\n{b}COPY --from=s /x /",
        "--target=t\n{s}RUN echo > /x\nFROM busybox AS t\n{row}COPY --from=s /x /",
        HIT,
    ),
    files(PLACE, "COPY . /d/", |c| c.moved(), HIT),
    files(TIMES, "COPY . /d/", |c| c.touch("f"), HIT),
    files(TIMES, "COPY . /d/", |c| c.touch("dir/sub"), HIT),
    files(TIMES, "COPY . /d/", |c| c.own("f", 7), HIT),
    files(TIMES, "COPY . /d/", |c| c.write("f", "one"), HIT),
    text(PROXIES, "--build-arg=HTTP_PROXY=http://a\nRUN echo", "--build-arg=HTTP_PROXY=http://b\nRUN echo", HIT),
    text(PROXIES, "RUN echo", "--build-arg=no_proxy=b\nRUN echo", HIT),
    text(PROXIES, "--build-arg=NO_PROXY=a\nARG NO_PROXY\nRUN echo", "--build-arg=NO_PROXY=b\nARG NO_PROXY\nRUN echo", MISS),
    text(CACHE_ID, "RUN --mount=type=cache,target=/m echo", "RUN --mount=type=cache,target=/m,id=other echo", HIT),
    text(CACHE_ID, "RUN --mount=type=cache,target=/m echo", "RUN --mount=type=cache,target=/m,sharing=locked echo", HIT),
    text(
        CACHE_ID,
        "RUN --mount=type=cache,target=/m echo",
        "--build-arg=BUILDKIT_CACHE_MOUNT_NS=n\nRUN --mount=type=cache,target=/m echo",
        HIT,
    ),
    text(
        SECRET_VALUE,
        "--secret=id=a,env=PATH\nRUN --mount=type=secret,id=a echo",
        "--secret=id=a,env=HOME\nRUN --mount=type=secret,id=a echo",
        HIT,
    ),
    text(SECRET_VALUE, "RUN --mount=type=secret,id=a echo", "--secret=id=a,env=HOME\nRUN --mount=type=secret,id=a echo", HIT),
    text(CREDENTIALS, "ADD {http}/f /", "--secret=id=HTTP_AUTH_TOKEN_127.0.0.1,env=PATH\nADD {http}/f /", HIT),
    text(LIMITS, "RUN echo", "--shm-size=1m\nRUN echo", HIT),
    text(LIMITS, "RUN echo", "--ulimit=nofile=99\nRUN echo", HIT),
    text(FORM, "# a comment\nRUN   echo a", "\n\nrun echo a", HIT),
    text(FORM, "RUN echo a b", "RUN echo \\\n# a comment\na b", HIT),
    text(FORM, "RUN echo a", "RUN echo  a", MISS),
];

/// The context of one row.
struct Files {
    folder: PathBuf,
    served: PathBuf,
    repository: PathBuf,
}

impl Files {
    fn write(&self, name: &str, content: &str) {
        fs::write(self.folder.join(name), content).unwrap();
    }

    fn mode(&self, name: &str, mode: u32) {
        fs::set_permissions(self.folder.join(name), Permissions::from_mode(mode)).unwrap();
    }

    fn touch(&self, name: &str) {
        fs::File::open(self.folder.join(name)).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    }

    fn own(&self, name: &str, user: u32) {
        chown(self.folder.join(name), Some(user), Some(user)).unwrap();
    }

    fn rename(&self, from: &str, to: &str) {
        fs::rename(self.folder.join(from), self.folder.join(to)).unwrap();
    }

    fn link(&self, name: &str, target: &str) {
        fs::remove_file(self.folder.join(name)).unwrap();
        symlink(target, self.folder.join(name)).unwrap();
    }

    /// The context gets another name, in another folder.
    fn moved(&self) {
        let (outer, inner) = (self.folder.parent().unwrap(), "elsewhere");
        fs::rename(&self.folder, outer.join(inner)).unwrap();
        fs::create_dir(&self.folder).unwrap();
        fs::rename(outer.join(inner), self.folder.join(inner)).unwrap();
    }

    /// Where the context is now.
    fn context(&self) -> PathBuf {
        let moved = self.folder.join("elsewhere");
        if moved.exists() { moved } else { self.folder.clone() }
    }

    fn served(&self, name: &str, content: &str, day: u64) {
        fs::write(self.served.join(name), content).unwrap();
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(day * 86400);
        fs::File::options().write(true).open(self.served.join(name)).unwrap().set_modified(time).unwrap();
    }

    fn commit(&self) {
        sh(&self.repository, "date +%s%N > dir/g && git commit -qam more");
    }
}

#[track_caller]
fn sh(folder: &Path, script: &str) {
    let mut command = Command::new("sh");
    command.args(["-euc", script]).current_dir(folder).stdin(Stdio::null());
    command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_ALLOW_PROTOCOL", "file");
    for who in ["AUTHOR", "COMMITTER"] {
        command.env(format!("GIT_{who}_NAME"), "t").env(format!("GIT_{who}_EMAIL"), "t@example.invalid");
    }
    finish(&mut command).ok();
}

/// Images that differ in one way: `two` in its files, `elsewhere` in its configuration, `one-again` in its name.
fn image(name: &str) -> String {
    static PUSHED: LazyLock<String> = LazyLock::new(|| {
        let repository = format!("{}/cache/rows", lab::registry().host());
        let home = Home::new();
        let images = [
            ("one", "FROM busybox\nENV a=b\nCOPY <<E /one\n1\nE\n"),
            ("two", "FROM busybox\nENV a=b\nCOPY <<E /one\n2\nE\n"),
            ("elsewhere", "FROM one\nWORKDIR /tmp\n"),
            ("one-again", "FROM one\n"),
        ];
        for (name, dockerfile) in images {
            let dockerfile = dockerfile.replace("FROM one", &format!("FROM {repository}:one"));
            home.build(&format!("{repository}:{name}"), &dockerfile).ok();
            home.run(["push", &format!("{repository}:{name}")]).ok();
        }
        repository
    });
    format!("{}:{name}", *PUSHED)
}

/// The servers that rows add from, and the home that they share.
struct Lab {
    home: Home,
    http: FolderServer,
    git: FolderServer,
}

impl Lab {
    fn new() -> Lab {
        let home = Home::new();
        home.write("served/.keep", "");
        let repositories = home.path("git");
        fs::create_dir(&repositories).unwrap();
        sh(&repositories, "git init -q -b main sub && cd sub && echo x > x && git add . && git commit -qm sub");
        let (http, git) = (FolderServer::files(&home.path("served")), FolderServer::git(&repositories));
        Lab { home, http, git }
    }

    fn files(&self, number: usize) -> Files {
        let name = |file: &str| format!("row-{number}/{file}");
        for (file, content) in [("f", "one"), ("a.txt", "a"), ("f.txt", "f"), ("dir/f", "one"), ("dir/sub/g", "gee")] {
            self.home.write(&name(file), content);
        }
        self.home.write(&name("same/f"), "one");
        self.home.write(&name("same/sub/g"), "gee");
        self.home.write(&name(".dockerignore"), "*.log\n");
        let folder = self.home.path(&format!("row-{number}"));
        for link in ["dir/link", "same/link"] {
            symlink("f", folder.join(link)).unwrap();
        }
        sh(&folder, "tar -c -f f.tar a.txt");
        let served = self.home.path(&format!("served/{number}"));
        fs::create_dir(&served).unwrap();
        let files = Files { folder, served, repository: self.home.path(&format!("git/{number}")) };
        for name in ["f", "g"] {
            files.served(name, "served", 1);
        }
        files
    }

    fn repository(&self, number: usize) {
        let script = format!(
            "git init -q -b main {number} && cd {number} && mkdir dir && echo g > dir/g && git add . \
             && git submodule -q add ../sub mod && git commit -qm one && git tag v1"
        );
        sh(&self.home.path("git"), &script);
    }

    /// Whether the last step of the text came from the cache.
    fn last_is_cached(&self, number: usize, text: &str, files: &Files) -> Result<bool, String> {
        let mut text = text.to_owned();
        if !text.lines().any(|line| line.starts_with("FROM ") || line.starts_with("{s}")) {
            let flags: usize = text.lines().take_while(|line| line.starts_with("--")).map(|line| line.len() + 1).sum();
            text.insert_str(flags, "FROM busybox\n{row}");
        }
        for name in ["one", "two", "elsewhere", "one-again"] {
            let word = format!("{{{name}}}");
            if text.contains(&word) {
                text = text.replace(&word, &image(name));
            }
        }
        // A layer of each row's own, so that no row finds what another left.
        let text = text
            .replace("{s}", "FROM busybox AS s\n{row}")
            .replace("{b}", "FROM busybox\n{row}")
            .replace("{row}", &format!("COPY <<ROW /row\n{number}\nROW\n"))
            .replace("{http}", &format!("http://{}/{number}", self.http.host()))
            .replace("{git}", &format!("git://{}/{number}", self.git.host()))
            .replace("{context}", &files.context().display().to_string());
        let (flags, lines): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.starts_with("--"));
        let dockerfile = lines.join("\n") + "\n";
        let file = self.home.write(&format!("dockerfiles/{number}"), &dockerfile);
        let mut command = self.home.command();
        command.arg("build").args(flags).arg("--progress=plain").arg("-t").arg(format!("row:{number}")).arg("-f").arg(file);
        let outcome = finish(command.arg(files.context()));
        if !outcome.status.success() {
            return Err(format!("{dockerfile}{}", outcome.stderr));
        }
        let steps = cached_steps(&outcome);
        let keyword = last_keyword(&dockerfile).to_ascii_uppercase();
        let step = steps.iter().rfind(|(text, _)| text.to_ascii_uppercase().starts_with(&keyword));
        step.map(|(_, cached)| *cached).ok_or_else(|| format!("no {keyword} in {}", outcome.stderr))
    }
}

/// The keyword of the last instruction that is a step.
fn last_keyword(dockerfile: &str) -> &str {
    let mut words = dockerfile
        .lines()
        .filter_map(|line| line[line.find('}').filter(|_| line.starts_with('{')).map_or(0, |i| i + 1)..].split(' ').next());
    words.rfind(|word| ["RUN", "run", "COPY", "ADD", "WORKDIR"].contains(word)).expect("a row has a step")
}

/// A row is built twice: hit or miss as it says.
fn check(rows: impl Iterator<Item = (usize, &'static Row)>) {
    let lab = Lab::new();
    let mut failures = Vec::new();
    for (number, row) in rows {
        let files = lab.files(number);
        if row.first.contains("{git}") {
            lab.repository(number);
        }
        let outcome = lab.last_is_cached(number, row.first, &files).and_then(|first| {
            (row.change)(&files);
            Ok((first, lab.last_is_cached(number, row.second, &files)?))
        });
        if outcome != Ok((false, row.hits)) {
            let word = if row.hits { "hit" } else { "miss" };
            failures
                .push(format!("{}: row {number} should {word}: {:?} then {:?}: {outcome:?}", row.value, row.first, row.second));
        }
    }
    assert!(failures.is_empty(), "{} rows:\n{}", failures.len(), failures.join("\n"));
}

/// Every `of`th row from `start` on, so that the rows are spread over threads.
fn share(start: usize, of: usize) {
    check(ROWS.iter().enumerate().skip(start).step_by(of));
}

#[test]
fn every_row_first_part() {
    share(0, 3);
}

#[test]
fn every_row_second_part() {
    share(1, 3);
}

#[test]
fn every_row_third_part() {
    share(2, 3);
}

/// The tables and the rows above name the same values; a value of a key misses once for each instruction that has it.
#[test]
fn no_row_of_the_tables_is_without_a_test() {
    let source = fs::read_to_string(workspace().join("builder/src/cache_key.rs")).unwrap();
    let mut seen = BTreeSet::new();
    for line in source.lines().filter_map(|line| line.strip_prefix("//! | ")) {
        let cells: Vec<&str> = line.trim_end_matches(" |").split(" | ").collect();
        let value = cells[0];
        if ["value", "in no key"].contains(&value) || ELSEWHERE.contains(&value) {
            continue;
        }
        seen.insert(value);
        let rows: Vec<&Row> = ROWS.iter().filter(|row| row.value == value).collect();
        if cells.len() == 2 {
            assert!(rows.iter().any(|row| row.hits), "{value}: no row hits");
            continue;
        }
        let instructions = match cells[1] {
            "every step" => vec!["RUN", "COPY", "ADD", "WORKDIR"],
            // Another folder is the same COPY's other parent.
            "FROM of one" => vec!["COPY"],
            some => some.split(", ").collect(),
        };
        for instruction in instructions {
            let misses = |row: &&&Row| !row.hits && last_keyword(row.second) == instruction;
            assert!(rows.iter().find(misses).is_some(), "{value}: no row in which {instruction} misses");
        }
    }
    assert!(seen.len() > 30, "{seen:?}");
    for row in ROWS {
        assert!(seen.contains(row.value), "{} is in no table of cache_key.rs", row.value);
    }
}
