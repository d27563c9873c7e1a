//! What a RUN gets beside its files and loses when it ends: secrets, agents, caches, rights and limits.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::support::archive::Image;
use crate::support::home::{Home, Outcome};
use crate::support::lab::FolderServer;
use crate::support::{leftovers, skip};

/// Builds `dockerfile` with these flags, in a context that holds nothing else.
fn build(home: &Home, dockerfile: &str, flags: &[&str]) -> Outcome {
    let context = home.context("c", dockerfile);
    let mut args = vec!["build", "-t", "mounts", "--progress=plain"];
    args.extend(flags);
    args.push(context.to_str().unwrap());
    home.run(args)
}

/// The source of a mount is a path and no pattern.
#[test]
fn the_names_of_sources_may_look_like_patterns() {
    let home = Home::new();
    for (name, content) in [("[x]", "class"), ("x", "plain"), ("a*b", "star"), ("a1b", "number"), ("c?", "odd"), ("c1", "even")] {
        home.write(&format!("c/d/{name}/f"), content);
    }
    let check = |from: &str| {
        let mount = |name: &str| format!("--mount=type=bind{from},source=d/{name},target=/m");
        format!(
            "RUN {} grep -qx class /m/f\nRUN {} grep -qx star /m/f\nRUN {} grep -qx odd /m/f\nRUN {} grep -qx plain /m/f\n",
            mount("[x]"),
            mount("a*b"),
            mount("c?"),
            mount("x")
        )
    };
    let stage = "FROM scratch AS stage\nCOPY d /d\n";
    let dockerfile = format!("{stage}FROM busybox\n{}{}", check(""), check(",from=stage"));
    build(&home, &dockerfile, &[]).ok();
}

#[test]
fn secrets_are_files_or_variables() {
    let rows: &[(&str, &str)] = &[
        ("id=one", "test \"$(cat /run/secrets/one)\" = 'first value' && test $(stat -c %a:%u:%g /run/secrets/one) = 400:0:0"),
        ("source=one", "test -s /run/secrets/one"),
        ("id=dir/two.txt", "grep -q second /run/secrets/two.txt"),
        (
            "id=one,target=/root/.npmrc,mode=0640,uid=5,gid=6",
            "test $(stat -c %a:%u:%g /root/.npmrc) = 640:5:6 && test ! -e /run/secrets",
        ),
        ("id=one,target=here", "test -s /w/here"),
        ("target=/etc/one", "grep -q first /etc/one"),
        ("id=one,env=TOKEN", "test \"$TOKEN\" = 'first value' && test ! -e /run/secrets"),
        ("id=one,env=PATH_LIKE", "env | grep -c PATH_LIKE | grep -qx 1"),
        ("id=one,env=TOKEN,target=/t", "test \"$TOKEN\" = 'first value' && test \"$(cat /t)\" = \"$TOKEN\""),
        ("id=absent", "test ! -e /run/secrets"),
        ("id=absent,env=TOKEN", "test -z \"$TOKEN\""),
        ("id=one,required", "test -s /run/secrets/one && ! sh -c 'echo x > /run/secrets/one' 2> /dev/null"),
        ("id=empty", "test -f /run/secrets/empty && test ! -s /run/secrets/empty"),
    ];
    let home = Home::new();
    let file = home.write("secret", "second value");
    let mut dockerfile = "FROM busybox\nENV PATH_LIKE=image\nWORKDIR /w\n".to_owned();
    for (mount, check) in rows {
        dockerfile.push_str(&format!("RUN --mount=type=secret,{mount} {check}\n"));
    }
    dockerfile.push_str(
        "RUN test ! -e /run/secrets && test ! -e /root/.npmrc && test ! -e /w/here && test ! -e /etc/one && test -z \"$TOKEN\"\n",
    );
    // Readable by whom it is made for.
    dockerfile.push_str("USER 1000\nRUN --mount=type=secret,id=one,uid=1000 grep first /run/secrets/one\nRUN --mount=type=secret,id=one ! cat /run/secrets/one\n");
    let context = home.context("c", &dockerfile);
    let two = format!("id=dir/two.txt,src={}", file.display());
    let mut command = home.command();
    command.env("ONE", "first value").env("EMPTY", "");
    command
        .args(["build", "--secret", "id=one,env=ONE", "--secret", &two, "--secret", "type=env,id=empty,env=EMPTY"])
        .arg(context);
    crate::support::home::finish(&mut command).ok();
}

#[test]
fn what_is_required_and_absent_names_the_line() {
    let home = Home::new();
    let rows = [
        ("--mount=type=secret,id=key,required", "secret `key`: not found", "--secret id=key,src=FILE"),
        ("--mount=type=ssh,required=true", "ssh agent `default`: not found", "--ssh default"),
        ("--mount=type=ssh,id=git,required", "ssh agent `git`: not found", "--ssh git=SOCKET` or `--ssh git=KEYFILE"),
    ];
    for (mount, message, hint) in rows {
        build(&home, &format!("FROM busybox\nRUN {mount} true\n"), &[]).fails(1).says(&["Dockerfile:2", message, hint]);
    }
    build(&home, "FROM busybox\nRUN --mount=type=ssh test ! -e /run/buildkit && test -n \"$SSH_AUTH_SOCK\"\n", &[]).ok();
    build(&home, "FROM busybox\nRUN --security=insecure true\n", &[])
        .fails(3)
        .says(&["Dockerfile:2", "--allow security.insecure"]);
    build(&home, "FROM busybox\nRUN --device=vendor.com/gpu=0 true\n", &[]).fails(3).says(&["Dockerfile:2", "gives no devices"]);
}

/// The value is in no key, what is asked for is.
#[test]
fn another_value_hits_and_another_secret_misses() {
    let home = Home::new();
    let file = home.write("value", "one");
    let run = |mount: &str, value: &str| {
        fs::write(&file, value).unwrap();
        let given = ["a", "b"].map(|id| format!("id={id},src={}", file.display()));
        let dockerfile = format!("FROM busybox\nRUN --mount=type=secret,{mount} echo the step\n");
        build(&home, &dockerfile, &["--secret", &given[0], "--secret", &given[1]]).ok().cached() == 1
    };
    assert!(!run("id=a", "one"));
    assert!(run("id=a", "two"), "another value");
    assert!(run("source=a", "two"), "another spelling");
    for mount in ["id=b", "id=b,target=/x", "id=a,mode=0444", "id=a,uid=1", "id=a,env=A", "id=a,env=A,target=/x", "id=a,required"]
    {
        assert!(!run(mount, "two"), "{mount}");
        assert!(run(mount, "three"), "{mount}");
    }
    let step = "FROM busybox\nRUN --mount=type=secret,id=a echo the step\n";
    let without = build(&home, step, &["--ulimit", "nofile=99", "--shm-size", "1m"]).ok();
    assert_eq!(without.cached(), 1, "absent where it was present before, and limits are of no matter");
    for (mount, hits) in
        [("type=ssh", 0), ("type=ssh,id=default", 1), ("type=ssh,id=b", 0), ("type=ssh,mode=0666", 0), ("type=ssh,uid=1", 0)]
    {
        let outcome = build(&home, &format!("FROM busybox\nRUN --mount={mount} echo the step\n"), &[]).ok();
        assert_eq!(outcome.cached(), hits, "{mount}");
    }
}

/// Every file below `folder` that holds `needle`.
fn files_with(folder: &Path, needle: &[u8]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        if holds(entry.file_name().as_bytes(), needle) {
            found.push(path.clone());
        }
        if kind.is_dir() {
            found.extend(files_with(&path, needle));
        } else if kind.is_file() && holds(&fs::read(&path).unwrap(), needle) {
            found.push(path);
        }
    }
    found
}

fn holds(hay: &[u8], needle: &[u8]) -> bool {
    hay.windows(needle.len()).any(|window| window == needle)
}

/// Canaries in a file, a variable and the credentials of an ADD: no byte of them is in the store, the image, its history, the logs or
/// the metadata, after a build that succeeds, one that fails and one that is killed.
#[test]
fn no_secret_is_kept() {
    let home = Home::new();
    home.write("served/f", "body");
    let server = FolderServer::files(&home.path("served"));
    let canaries = ["file-canary-8c1d6f0b7e", "variable-canary-5a92e4c3d1", "token-canary-f37b20d98a"];
    let outside = crate::support::lab::temp_dir();
    let file = outside.path().join("file");
    fs::write(&file, canaries[0]).unwrap();
    let dockerfile = format!(
        "FROM busybox\nADD http://{}/f /f\n\
         RUN --mount=type=secret,id=file --mount=type=secret,id=variable,env=CANARY \
         --mount=type=cache,target=/c test $(wc -c < /run/secrets/file) = {} && test ${{#CANARY}} = {} && echo used > /c/used\n",
        server.host(),
        canaries[0].len(),
        canaries[1].len(),
    );
    let failing = "FROM busybox\nRUN --mount=type=secret,id=file --mount=type=secret,id=variable,env=CANARY sleep 0.1; exit 7\n";
    let killed =
        "FROM busybox\nRUN --mount=type=secret,id=file --mount=type=secret,id=variable,env=CANARY echo running; sleep 60\n";
    let command = |context: &Path| {
        let mut command = home.command();
        command.env("KILN_CANARY_VALUE", canaries[1]).env("KILN_CANARY_TOKEN", canaries[2]).arg("build");
        command.args(["--secret", &format!("id=file,src={}", file.display()), "--secret", "id=variable,env=KILN_CANARY_VALUE"]);
        command.args(["--secret", &format!("id=HTTP_AUTH_TOKEN_{},env=KILN_CANARY_TOKEN", server.host())]);
        command.args(["--metadata-file", "metadata.json", "-t", "canary"]).arg(context);
        command
    };
    let archive = home.path("image.tar");
    for mode in ["plain", "rawjson"] {
        let context = home.context("good", &dockerfile);
        let mut good = command(&context);
        good.args(["--no-cache", "--progress", mode, "--output", &format!("type=docker,dest={}", archive.display())]);
        let good = crate::support::home::finish(&mut good).ok();
        let bad = crate::support::home::finish(command(&home.context("bad", failing)).args(["--progress", mode])).fails(1);
        for text in [&good.stdout, &good.stderr, &bad.stdout, &bad.stderr] {
            assert!(canaries.iter().all(|canary| !text.contains(canary)), "{text}");
        }
    }
    let mut child = command(&home.context("killed", killed)).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().unwrap()));
    assert!(lines.any(|line| line.unwrap().contains("running")), "the step is under way");
    child.kill().unwrap();
    child.wait().unwrap();
    leftovers::assert_none(home.store().to_str().unwrap());

    let history = home.run(["history", "--no-trunc", "canary"]).ok().stdout + &home.run(["inspect", "canary"]).ok().stdout;
    let image = Image::read(&archive).unwrap();
    for canary in canaries {
        let found = files_with(&home.path(""), canary.as_bytes());
        assert!(found.is_empty(), "{canary} in {found:?}");
        assert!(!history.contains(canary));
        assert!(image.layers.iter().all(|layer| !holds(layer, canary.as_bytes())), "{canary}");
    }
    // The search can find: what the step wrote is there.
    assert!(!files_with(&home.store(), b"used").is_empty());
    assert_eq!(files_with(outside.path(), canaries[0].as_bytes()), [file]);
}

/// A real `ssh-agent` that holds one key.
struct Agent {
    child: Child,
    socket: PathBuf,
    fingerprint: String,
}

impl Agent {
    fn start(home: &Home) -> Agent {
        let socket = home.path("agent.sock");
        let child = Command::new("ssh-agent").arg("-D").arg("-a").arg(&socket).stdout(Stdio::null()).spawn().unwrap();
        let key = home.path("agent-key");
        let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status().unwrap();
        assert!(made.success());
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !socket.exists() {
            assert!(std::time::Instant::now() < end, "no agent");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let added = Command::new("ssh-add").env("SSH_AUTH_SOCK", &socket).arg(&key).stderr(Stdio::null()).status().unwrap();
        assert!(added.success());
        let shown = Command::new("ssh-keygen").arg("-lf").arg(&key).output().unwrap().stdout;
        let fingerprint = String::from_utf8(shown).unwrap().split(' ').nth(1).unwrap().to_owned();
        Agent { child, socket, fingerprint }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Puts the host's `ssh-add` and `ssh-keygen` into the context `c`, below `host`, with its libraries.
fn bring_ssh_add(home: &Home) {
    let script = "mkdir -p c/host && for f in $(ldd /usr/bin/ssh-add /usr/bin/ssh-keygen | grep -o '/[^ :]*') /usr/bin/ssh-add; do \
                  mkdir -p c/host$(dirname $f); cp -L $f c/host$f; done";
    assert!(Command::new("sh").args(["-euc", script]).current_dir(home.path("")).status().unwrap().success());
}

/// Every kind of key in every form that OpenSSH and OpenSSL write: OpenSSH has kiln sign with it, and verifies that.
#[test]
fn key_files_need_no_agent() {
    if !skip::needs("key_files_need_no_agent", "ssh-agent") || !skip::needs("key_files_need_no_agent", "openssl") {
        return;
    }
    let home = Home::new();
    bring_ssh_add(&home);
    let script = "mkdir -p keys c/public && cd keys
        for kind in ed25519 rsa ecdsa-256 ecdsa-384 ecdsa-521; do
            bits=${kind#*-}; test $bits != $kind || bits=3072
            ssh-keygen -q -N '' -C me@host -t ${kind%-*} -b $bits -f new-$kind
            test $kind = ed25519 || ssh-keygen -q -N '' -m PEM -t ${kind%-*} -b $bits -f pem-$kind
            test $kind = ed25519 || ssh-keygen -q -N '' -m PKCS8 -t ${kind%-*} -b $bits -f pkcs8-$kind
        done
        openssl genpkey -algorithm ed25519 -out pkcs8-ed25519
        openssl ecparam -name prime256v1 -genkey -out parameters-before && chmod 600 parameters-before
        ssh-keygen -y -f parameters-before > parameters-before.pub
        mv *.pub ../c/public
        ssh-keygen -q -N password -t ed25519 -f locked && ssh-keygen -q -N password -m PEM -t rsa -f locked-pem
        ssh-keygen -q -N password -m PKCS8 -t rsa -f locked-pkcs8
        openssl genrsa -out short 1024 2> /dev/null && rm *.pub
        mkdir bad && mv locked* short bad
        grep -rh BEGIN .";
    let made = Command::new("sh").args(["-euc", script]).current_dir(home.path("")).output().unwrap();
    let forms = String::from_utf8_lossy(&made.stdout).into_owned();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    for form in ["BEGIN OPENSSH PRIVATE", "BEGIN RSA PRIVATE", "BEGIN EC PRIVATE", "BEGIN PRIVATE", "BEGIN EC PARAMETERS"] {
        assert!(forms.contains(form), "{form}: {forms}");
    }
    let mut files: Vec<String> = std::fs::read_dir(home.path("keys"))
        .unwrap()
        .flatten()
        .filter(|entry| entry.file_type().unwrap().is_file())
        .map(|entry| entry.path().display().to_string())
        .collect();
    files.sort();
    assert_eq!(files.len(), 15, "{files:?}");
    let context = home.context(
        "c",
        "FROM busybox\nCOPY host /\nCOPY public /public\n\
         RUN --mount=type=ssh,id=keys ssh-add -l > /listed && test $(wc -l < /listed) = 15 && ! grep host /listed && \
         echo text > /f && for key in /public/*; do rm -f /f.sig; ssh-keygen -q -Y sign -n test -f $key /f && \
         ssh-keygen -q -Y check-novalidate -n test -s /f.sig < /f || exit 1; done && ! ssh-add -D\n\
         RUN --mount=type=ssh test \"$(ssh-add -L | cut -d' ' -f1,2)\" = \"$(cut -d' ' -f1,2 /public/new-rsa.pub)\" && \
         ! ssh-add -T /public/new-ed25519.pub\n",
    );
    let context = context.to_str().unwrap();
    let one = files.iter().find(|name| name.ends_with("/new-rsa")).unwrap();
    home.run(["build", "--ssh", &format!("keys={}", files.join(",")), "--ssh", &format!("default={one}"), context]).ok();
    for (file, reason) in [
        ("bad/locked", "encrypted with a passphrase"),
        ("bad/locked-pem", "encrypted with a passphrase"),
        ("bad/locked-pkcs8", "encrypted with a passphrase"),
        ("bad/short", "RSA key of 2048"),
        ("../c/public/new-rsa.pub", "no private key"),
    ] {
        let file = home.path("keys").join(file);
        let outcome = home.run(["build", "--ssh", &format!("default={}", file.display()), context]).fails(125);
        outcome.says(&[reason, "--ssh default", "hint: "]);
    }
    // Nothing of a key is left in the store.
    let line = std::fs::read_to_string(one).unwrap().lines().nth(5).unwrap().to_owned();
    assert!(files_with(&home.store(), line.as_bytes()).is_empty());
}

#[test]
fn an_agent_can_be_used_but_not_changed() {
    if !skip::needs("an_agent_can_be_used_but_not_changed", "ssh-agent") {
        return;
    }
    let home = Home::new();
    let agent = Agent::start(&home);
    bring_ssh_add(&home);
    let dockerfile = format!(
        "FROM busybox\nCOPY host /\n\
         RUN --mount=type=ssh ssh-add -l | grep -qF {print} && test $SSH_AUTH_SOCK = /run/buildkit/ssh_agent.0 && \
         test \"$(stat -c '%a %u %F' $SSH_AUTH_SOCK)\" = '600 0 socket'\n\
         RUN --mount=type=ssh ! ssh-add -D 2> /dev/null; ssh-add -l | grep -qF {print}\n\
         RUN --mount=type=ssh --mount=type=ssh,id=git,target=/own SSH_AUTH_SOCK=/own ssh-add -l | grep -F {print}\n\
         RUN test -z \"$SSH_AUTH_SOCK\" && test ! -e /run/buildkit && test ! -e /own\n\
         USER 1000\n\
         RUN --mount=type=ssh,uid=1000 ssh-add -l | grep -F {print}\n\
         RUN --mount=type=ssh ! ssh-add -l\n",
        print = agent.fingerprint
    );
    let context = home.context("c", &dockerfile);
    let mut command = home.command();
    let git = format!("git={}", agent.socket.display());
    command.env("SSH_AUTH_SOCK", &agent.socket).args(["build", "--ssh", "default", "--ssh", &git]).arg(context);
    crate::support::home::finish(&mut command).ok();
    let listed = Command::new("ssh-add").env("SSH_AUTH_SOCK", &agent.socket).arg("-l").output().unwrap();
    assert!(String::from_utf8_lossy(&listed.stdout).contains(&agent.fingerprint), "the agent has its key still");
}

#[test]
fn a_new_cache_is_filled_from_a_stage() {
    let home = Home::new();
    let dockerfile = |seed: &str, step: &str| {
        format!(
            "FROM busybox AS seed\nRUN mkdir -p /s/d && echo {seed} > /s/d/f && chown 5:6 /s/d /s/d/f && chmod 750 /s/d && ln -s d /s/l\n\
             FROM busybox\nRUN --mount=type=cache,id=seeded,target=/c,from=seed,source=/s {step}\n"
        )
    };
    let first = "grep -qx one /c/l/f && test \"$(stat -c %a:%u:%g /c/d)\" = 750:5:6 && test ! -e /c/new && echo kept > /c/new";
    build(&home, &dockerfile("one", first), &[]).ok();
    build(&home, &dockerfile("one", "grep -qx kept /c/new"), &[]).ok();
    let again = build(&home, &dockerfile("one", "grep -qx kept /c/new"), &[]).ok();
    assert_eq!(again.cached(), 2);
    // Another seed is another cache, and another key.
    build(&home, &dockerfile("two", "grep -qx two /c/d/f && test ! -e /c/new"), &[]).ok();
    let other = build(&home, &dockerfile("three", "grep -qx kept /c/new"), &[]);
    assert!(!other.status.success(), "the step with another seed is another step: {other:?}");
    // One that isn't filled is another, too; and an image can be the seed, as a whole.
    build(&home, "FROM busybox\nRUN --mount=type=cache,id=seeded,target=/c test -z \"$(ls /c)\"\n", &[]).ok();
    build(
        &home,
        "FROM busybox\nRUN --mount=type=cache,id=whole,target=/c,from=busybox test -e /c/bin/sh && test -d /c/etc\n",
        &[],
    )
    .ok();
    let missing =
        build(&home, "FROM busybox AS s\nFROM busybox\nRUN --mount=type=cache,target=/c,from=s,source=/none true\n", &[]);
    missing.fails(1).says(&["Dockerfile:3", "/none", "not found"]);
}

/// Both stages run at once: each waits for the other's mark, which only comes if it runs at the same time.
#[test]
fn caches_of_parallel_stages_are_private_locked_or_shared() {
    let stages = |sharing: &str, step: &str| {
        let stage = |name: &str, other: &str| {
            let step = step.replace("ME", name).replace("OTHER", other);
            format!(
                "FROM busybox AS {name}\nRUN --mount=type=cache,id=at-once,target=/c,sharing={sharing} {step}\nRUN echo {name} > /{name}\n"
            )
        };
        format!("{}{}FROM scratch\nCOPY --from=a /a /\nCOPY --from=b /b /\n", stage("a", "b"), stage("b", "a"))
    };
    // Shared: each sees the other's mark.
    let home = Home::new();
    let wait = "touch /c/ME; i=0; while test ! -e /c/OTHER; do i=$((i+1)); test $i -lt 100 || exit 1; sleep 0.1; done";
    build(&home, &stages("shared", wait), &[]).ok();
    // Private: each has a folder of its own.
    let home = Home::new();
    build(&home, &stages("private", "touch /c/ME; sleep 1; test ! -e /c/OTHER"), &[]).ok();
    // Locked: the second waits, and finds what the first has left.
    let home = Home::new();
    let step = "test ! -e /c/busy && touch /c/busy && sleep 0.5 && rm /c/busy && echo ME >> /c/order";
    build(&home, &stages("locked", step), &[]).ok();
    let check = "FROM busybox\nRUN --mount=type=cache,id=at-once,target=/c test $(sort /c/order | tr -d '\\n') = ab\n";
    build(&home, check, &[]).ok();
}

#[test]
fn insecure_is_for_those_who_allow_it() {
    let home = Home::new();
    let dockerfile = "FROM busybox\n\
        RUN --security=insecure mkdir /m && mount -t tmpfs none /m && grep -q '^Seccomp:.*0$' /proc/self/status && test -w /proc/sys/kernel\n\
        RUN --security=sandbox ! mount -t tmpfs none /m 2> /dev/null\n\
        RUN ! mount -t tmpfs none /m 2> /dev/null\n";
    build(&home, dockerfile, &["--allow", "security.insecure"]).ok();
    let outcome = build(&home, dockerfile, &[]).fails(3);
    outcome.says(&["RUN --security=insecure is not allowed", "Dockerfile:2"]);
    leftovers::assert_none(home.path("").to_str().unwrap());
}

#[test]
fn limits_of_processes() {
    let home = Home::new();
    let dockerfile =
        "FROM busybox\nRUN test $(ulimit -Sn):$(ulimit -Hn):$(ulimit -c) = 300:400:0\nUSER 1000\nRUN test $(ulimit -Hn) = 400\n";
    build(&home, dockerfile, &["--ulimit", "nofile=300:400", "--shm-size", "1m"]).ok();
    build(&home, "FROM busybox\nRUN test $(df -k /dev/shm | awk 'NR==2{print $2}') = 1024\n", &["--shm-size", "1m"]).ok();
    let warned = build(&home, "FROM busybox\nRUN true\n", &["--builder", "x"]).ok();
    warned.says(&["--builder has no effect"]);
}

/// Control groups of the machine that the tests run on; where kiln can't have one it says so and builds.
#[test]
fn all_processes_of_a_run_can_be_limited() {
    let home = Home::new();
    let fine = "FROM busybox\nRUN nproc > /n && cat /proc/self/cgroup\n";
    let limits = ["--resource", "memory=32m,memory-swap=32m", "--resource", "cpuset-cpus=0", "--cpu-shares", "512"];
    let outcome = build(&home, fine, &limits).ok();
    // Not in the key: a limit is the machine's.
    assert_eq!(build(&home, fine, &[]).ok().cached(), 1);
    if outcome.stderr.contains("is not enforced") {
        return skip::skipped("all_processes_of_a_run_can_be_limited", "no writable control groups for memory, cpu and cpuset");
    }
    build(&home, &format!("{fine}RUN grep -qx 1 /n\n"), &[]).ok();
    for (line, code) in [("tail /dev/zero", "137"), ("tail /dev/zero; exit 3", "3")] {
        for flags in [&["--resource", "memory=32m"][..], &["-m", "32m", "--memory-swap", "32m"]] {
            let outcome = build(&home, &format!("FROM busybox\nRUN {line}\n"), flags).fails(1);
            outcome.says(&[
                "Dockerfile:2",
                &format!("exit code: {code} (a process was killed for lack of memory"),
                "33554432 bytes",
            ]);
        }
    }
    build(&home, "FROM busybox\nRUN echo other\n", &["--resource", "cpuset-cpus=4000"]).fails(5).says(&[
        "Dockerfile:2",
        "cpuset-cpus",
        "4000",
    ]);
    let name = format!("kiln-it-{}", std::process::id());
    let own = format!("FROM busybox\nRUN grep /{name}/kiln- /proc/self/cgroup\n");
    let outcome = build(&home, &own, &["--cgroup-parent", &format!("/{name}")]);
    let script = format!("find /sys/fs/cgroup -depth -type d -name {name} -exec rmdir '{{}}' ';'");
    assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success());
    outcome.ok();
}
