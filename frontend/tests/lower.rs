//! Rows of lowering: what a Dockerfile makes of a graph and of an image's configuration.

mod support;

use kiln_frontend::graph::{Checksum, ContextId, CopySource, Op, Vertex};
use kiln_frontend::{NamedContext, NamedKind, TimeSource};
use kiln_oci::reference::Reference;
use support::{Fixture, dump};

/// Lowers `text` on the fixture's images and compares the dump, without blank lines and indentation of the row.
fn check(text: &str, expected: &str) {
    check_with(&Fixture::default(), text, expected);
}

fn check_with(fixture: &Fixture, text: &str, expected: &str) {
    let got = dump(&fixture.lower(text));
    let lines = |t: &str| t.lines().map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join("\n");
    assert_eq!(lines(&got), lines(expected), "\n{text}\n--- got\n{got}");
}

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

#[test]
fn scratch_has_a_path_and_a_directory() {
    check("FROM scratch\n", &format!("target none\nconfig {{\"Env\":[\"PATH={PATH}\"],\"WorkingDir\":\"/\"}}"));
}

#[test]
fn a_plain_file() {
    check(
        "FROM busybox\nWORKDIR /w\nENV A=b C=\"d e\"\nARG V=1\nRUN echo $A 'x'\nCOPY --chown=1:2 a b c/\nEXPOSE 443 80/UDP\nENTRYPOINT [\"/x\"]\nCMD y\nONBUILD RUN z\n",
        r#"
        0 [1/4] FROM docker.io/library/busybox:latest@sha256:b0b0 <image>
        1 [2/4] WORKDIR /w <workdir 0 /w user="">
        2 [3/4] RUN echo b 'x' <exec 1 ["/bin/sh", "-c", "echo $A 'x'"] PATH=/bin A=b C=d e V=1 cwd=/w>
        3 [4/4] COPY --chown=1:2 a b c/ <copy 2 from=context [a, b] -> /w/c dir chown=1:2>
        target 3
        base docker.io/library/busybox:latest
        config {"ExposedPorts":{"443/tcp":{},"80/udp":{}},"Env":["PATH=/bin","A=b","C=d e"],"Entrypoint":["/x"],"Cmd":["/bin/sh","-c","y"],"ArgsEscaped":true,"WorkingDir":"/w","OnBuild":["RUN z"]}
        + WORKDIR /w
        - ENV A=b C=d e
        - ARG V=1
        + RUN |1 V=1 /bin/sh -c echo $A 'x' # buildkit
        + COPY --chown=1:2 a b c/ # buildkit
        - EXPOSE [443/tcp 80/udp]
        - ENTRYPOINT ["/x"]
        - CMD ["/bin/sh" "-c" "y"]
        warn ExposeProtoCasing: Defined protocol '80/UDP' in EXPOSE instruction should be lowercase
        warn JSONArgsRecommended: JSON arguments recommended for CMD to prevent unintended behavior related to OS signals
        "#,
    );
}

#[test]
fn only_what_the_target_needs() {
    check(
        "FROM busybox AS a\nRUN a\nFROM a AS b\nRUN b\nFROM missing AS c\nRUN c\nFROM scratch\nCOPY --from=A /x /\nCOPY --from=1 /y /\nCOPY --from=tool:1 /z /\n",
        &format!(
            r#"
        0 FROM docker.io/library/tool:1@sha256:7001 <image>
        1 [a 1/2] FROM docker.io/library/busybox:latest@sha256:b0b0 <image>
        2 [a 2/2] RUN a <exec 1 ["/bin/sh", "-c", "a"] PATH=/bin cwd=/>
        3 [b 1/1] RUN b <exec 2 ["/bin/sh", "-c", "b"] PATH=/bin cwd=/>
        4 [stage-3 1/3] COPY --from=A /x / <copy none from=2 [/x] -> / dir>
        5 [stage-3 2/3] COPY --from=1 /y / <copy 4 from=3 [/y] -> / dir>
        6 [stage-3 3/3] COPY --from=tool:1 /z / <copy 5 from=0 [/z] -> / dir>
        target 6
        config {{"Env":["PATH={PATH}"],"WorkingDir":"/"}}
        + COPY /x / # buildkit
        + COPY /y / # buildkit
        + COPY /z / # buildkit
        "#
        ),
    );
}

#[test]
fn stages_that_are_not_needed_may_look_ahead() {
    let text = "FROM busybox AS a\nCOPY --from=b /x /\nFROM busybox AS b\n";
    assert_eq!(Fixture::default().lower(text).graph.vertices.len(), 1);
    let fixture = Fixture { target: Some("a".into()), ..Fixture::default() };
    assert!(fixture.try_lower(text).2.is_err());
}

#[test]
fn arguments_and_variables() {
    let shown = |text: &str| {
        let fixture = Fixture { build_args: vec![("G".into(), "given".into())], ..Fixture::default() };
        let build = fixture.lower(text);
        build.image.history.iter().map(|h| h.created_by.clone()).collect::<Vec<_>>()
    };
    let rows: &[(&str, &[&str])] = &[
        // features.md 1g 11 to 15.
        ("FROM busybox\nENV a=1\nENV a=2 b=$a", &["ENV a=1", "ENV a=2 b=1"]),
        ("FROM busybox\nENV a b c=d", &["ENV a=b c=d"]),
        ("FROM busybox\nENV a=b\\ c d=\"e f\"", &["ENV a=b c d=e f"]),
        ("FROM busybox\nENV X=e\nARG X=a\nRUN x", &["ENV X=e", "ARG X=a", "RUN |1 X=a /bin/sh -c x # buildkit"]),
        ("FROM busybox\nARG X=a\nENV X=e\nRUN x", &["ARG X=a", "ENV X=e", "RUN |1 X=e /bin/sh -c x # buildkit"]),
        (
            "ARG V=1\nFROM busybox\nRUN x\nARG V\nRUN x",
            &["RUN /bin/sh -c x # buildkit", "ARG V=1", "RUN |1 V=1 /bin/sh -c x # buildkit"],
        ),
        ("FROM busybox AS b\nARG Z=1\nFROM b\nRUN x", &["ARG Z=1", "RUN |1 Z=1 /bin/sh -c x # buildkit"]),
        ("FROM busybox\nARG G=d N\nRUN x", &["ARG G=given N", "RUN |2 G=given N= /bin/sh -c x # buildkit"]),
        (
            "FROM busybox\nARG TARGETPLATFORM BUILDARCH\nUSER $TARGETPLATFORM-$BUILDARCH",
            &["ARG TARGETPLATFORM=linux/amd64 BUILDARCH=amd64", "USER linux/amd64-amd64"],
        ),
        ("FROM busybox AS st\nARG TARGETSTAGE\n", &["ARG TARGETSTAGE=st"]),
        ("FROM busybox\nARG TARGETSTAGE\n", &["ARG TARGETSTAGE=default"]),
        ("FROM busybox\nARG A=1 B=$A\nLABEL a=$A b=${B:-x}", &["ARG A=1 B=1", "LABEL a=1 b=1"]),
        (
            "FROM busybox\nSHELL [\"/bin/bash\", \"-c\"]\nRUN x\nRUN [\"y\"]",
            &["SHELL [/bin/bash -c]", "RUN /bin/bash -c x # buildkit", "RUN y # buildkit"],
        ),
        ("FROM busybox\nVOLUME /a $PATH\nSTOPSIGNAL 9\nMAINTAINER me", &["VOLUME [/a /bin]", "STOPSIGNAL 9", "MAINTAINER me"]),
        ("FROM busybox\nWORKDIR a\nWORKDIR ../b\nWORKDIR /", &["WORKDIR /a", "WORKDIR /b", "WORKDIR /"]),
        ("FROM busybox\nWORKDIR /a//b/\nWORKDIR c/\nWORKDIR //", &["WORKDIR /a//b/", "WORKDIR /a/b/c", "WORKDIR //"]),
        (
            "FROM busybox\nHEALTHCHECK --interval=5s CMD a b",
            &["HEALTHCHECK &{[\"CMD-SHELL\" \"a b\"] \"5s\" \"0s\" \"0s\" \"0s\" '\\x00'}"],
        ),
        ("FROM busybox\nENTRYPOINT []", &["ENTRYPOINT []"]),
        ("FROM busybox\nEXPOSE 80 90-92/UDP $P", &["EXPOSE [80/tcp 90/udp 91/udp 92/udp]"]),
        ("FROM busybox\nARG P=\"1 2\"\nEXPOSE $P", &["ARG P=1 2", "EXPOSE [1/tcp 2/tcp]"]),
        ("# escape=`\nFROM busybox\nENV a=`$x b=\\y", &["ENV a=$x b=\\y"]),
        (
            "FROM busybox\nADD --chmod=u=rwX --checksum=sha256:0000000000000000000000000000000000000000000000000000000000000000 http://h/f /d/",
            &["ADD --chmod=u=rwX http://h/f /d/ # buildkit"],
        ),
        ("FROM busybox\nCOPY --link --parents --exclude=x a /b", &["COPY --parents a /b # buildkit"]),
        ("FROM busybox\nCOPY x <<A <<-'B' /d/\n$HOME\nA\n\t$HOME\n\tB", &["COPY x <<A <<B /d/ # buildkit"]),
    ];
    for (text, want) in rows {
        assert_eq!(shown(text), *want, "{text}");
    }
}

#[test]
fn cmd_and_entrypoint() {
    let config = |text: &str| {
        let c = Fixture::default().lower(text).image.config.config;
        (c.entrypoint, c.cmd, c.args_escaped)
    };
    let list = |items: &[&str]| Some(items.iter().map(|i| (*i).to_owned()).collect::<Vec<_>>());
    // `withcmd` has CMD ["c"].
    assert_eq!(config("FROM withcmd\n"), (None, list(&["c"]), false));
    assert_eq!(config("FROM withcmd\nENTRYPOINT [\"a\"]"), (list(&["a"]), None, false));
    assert_eq!(config("FROM withcmd\nCMD [\"d\"]\nENTRYPOINT [\"a\"]"), (list(&["a"]), list(&["d"]), true));
    assert_eq!(config("FROM withcmd AS x\nCMD [\"d\"]\nFROM x\nENTRYPOINT [\"a\"]"), (list(&["a"]), None, true));
    assert_eq!(config("FROM withcmd\nENTRYPOINT []"), (None, None, false));
    assert_eq!(config("FROM withcmd\nCMD []"), (None, None, true));
}

#[test]
fn heredocs() {
    check(
        "FROM busybox\nRUN <<EOF\n\techo a\n\techo b\nEOF\nRUN <<-E\n\t#!/bin/x\n\ty\n\tE\nRUN <<S\n#!/bin/x\ny\nS\nRUN cat <<A <<B\n1\nA\n2\nB\nCOPY <<F <<'G' /d/\n$A \"x\"\nF\n$A\nG\n",
        r##"
        0 [1/6] FROM docker.io/library/busybox:latest@sha256:b0b0 <image>
        1 [2/6] RUN <<EOF (echo a...) <exec 0 ["/bin/sh", "-c", "\techo a\n\techo b\n"] PATH=/bin cwd=/>
        2 [3/6] RUN <<-E (#!/bin/x...) <exec 1 ["/bin/sh", "-c", "#!/bin/x\ny\n"] PATH=/bin cwd=/>
        3 [4/6] RUN <<S (#!/bin/x...) <exec 2 ["/bin/sh", "-c", "/dev/pipes/S"] PATH=/bin cwd=/ file=/dev/pipes/S:"#!/bin/x\ny\n">
        4 [5/6] RUN cat <<A <<B <exec 3 ["/bin/sh", "-c", "cat <<A <<B\n1\nA\n2\nB"] PATH=/bin cwd=/>
        5 [6/6] COPY <<F <<G /d/ <copy 4 from=context [F=" \"x\"\n", G="$A\n"] -> /d dir>
        target 5
        base docker.io/library/busybox:latest
        config {"Env":["PATH=/bin"]}
        + RUN /bin/sh -c \techo a\n\techo b\n # buildkit
        + RUN /bin/sh -c #!/bin/x\ny\n # buildkit
        + RUN /bin/sh -c /dev/pipes/S # buildkit
        + RUN /bin/sh -c cat <<A <<B\n1\nA\n2\nB # buildkit
        + COPY <<F <<G /d/ # buildkit
        warn UndefinedVar: Usage of undefined variable '$A'
        "##,
    );
}

#[test]
fn mounts() {
    check(
        "FROM busybox AS src\nFROM busybox\nARG T=/t\nWORKDIR /w\nRUN --mount=target=x --mount=type=bind,from=src,source=/s,target=$T,rw --mount=type=cache,target=/c,sharing=locked,uid=5 --mount=type=tmpfs,target=/m,size=1m --mount=from=tool:1,target=/tool x\nRUN --network=none y\n",
        r#"
        0 FROM docker.io/library/tool:1@sha256:7001 <image>
        1 [src 1/1] FROM docker.io/library/busybox:latest@sha256:b0b0 <image>
        2 [stage-1 2/4] WORKDIR /w <workdir 1 /w user="">
        3 [stage-1 3/4] RUN --mount=target=x --mount=type=bind,from=src,source=/s,target=/t,rw --mount=type=cache,target=/c,sharing=locked,uid=5 --mount=type=tmpfs,target=/m,size=1m --mount=from=tool:1,target=/tool x <exec 2 ["/bin/sh", "-c", "x"] PATH=/bin T=/t cwd=/w mount=/w/x:bind:context:/ mount=/t:bind:1:/s:rw mount=/c:cache:/c:Locked:755:5:0 mount=/m:tmpfs:1048576 mount=/tool:bind:0:/>
        4 [stage-1 4/4] RUN --network=none y <exec 3 ["/bin/sh", "-c", "y"] PATH=/bin T=/t cwd=/w net=None>
        target 4
        base docker.io/library/busybox:latest
        config {"Env":["PATH=/bin"],"WorkingDir":"/w"}
        - ARG T=/t
        + WORKDIR /w
        + RUN |1 T=/t /bin/sh -c x # buildkit
        + RUN |1 T=/t /bin/sh -c y # buildkit
        "#,
    );
}

/// What secrets and agents become, and what of them is in the environment and in the history: only the agent's place.
#[test]
fn secrets_and_agents() {
    let rows: &[(&str, &str, &str)] = &[
        ("type=secret,id=a/b.txt", "", "/run/secrets/b.txt:secret:a/b.txt:file:400:0:0"),
        ("type=secret,source=a", "", "/run/secrets/a:secret:a:file:400:0:0"),
        ("type=secret,target=/root/.npmrc", "", "/root/.npmrc:secret:.npmrc:file:400:0:0"),
        ("type=secret,id=a,target=t/k,uid=1,gid=2,mode=0440,required", "", "/w/t/k:secret:a:file:440:1:2:required"),
        ("type=secret,id=a,env=TOKEN", "", "/run/secrets/a:secret:a:TOKEN:400:0:0"),
        ("type=secret,id=a,env=TOKEN,target=/k", "", "/k:secret:a:file+TOKEN:400:0:0"),
        ("type=secret,id=$V", "", "/run/secrets/v:secret:v:file:400:0:0"),
        ("type=ssh", " SSH_AUTH_SOCK=/run/buildkit/ssh_agent.0", "/run/buildkit/ssh_agent.0:ssh:default:600:0:0"),
        ("type=ssh,id=git,target=/s,mode=0666,uid=5,gid=6,required=true", " SSH_AUTH_SOCK=/s", "/s:ssh:git:666:5:6:required"),
    ];
    for (mount, env, want) in rows {
        let text = format!("FROM busybox\nARG V=v\nWORKDIR /w\nRUN --mount={mount} x\n");
        let got = dump(&Fixture::default().lower(&text));
        let expected = format!("PATH=/bin V=v{env} cwd=/w mount={want}>");
        assert!(got.contains(&expected), "{mount}\n{got}");
        assert!(got.contains("\n+ RUN |1 V=v /bin/sh -c x # buildkit\n"), "{mount}\n{got}");
    }
    let two =
        dump(&Fixture::default().lower("FROM busybox\nENV SSH_AUTH_SOCK=/own\nRUN --mount=type=ssh --mount=type=ssh,id=b x\n"));
    assert!(two.contains("SSH_AUTH_SOCK=/own cwd=/ mount=/run/buildkit/ssh_agent.0:ssh:default:600:0:0 mount=/run/buildkit/ssh_agent.1:ssh:b:600:0:0>"), "{two}");
}

#[test]
fn triggers() {
    // `onbuild` carries `ONBUILD COPY --from=tool:1 /z /` and `ONBUILD RUN t`.
    check(
        "FROM onbuild\nRUN x\n",
        r#"
        0 FROM docker.io/library/tool:1@sha256:7001 <image>
        1 [1/4] FROM docker.io/library/onbuild:latest@sha256:0b0b <image>
        2 [2/4] ONBUILD COPY --from=tool:1 /z / <copy 1 from=0 [/z] -> / dir>
        3 [3/4] ONBUILD RUN t <exec 2 ["/bin/sh", "-c", "t"] PATH=/bin cwd=/>
        4 [4/4] RUN x <exec 3 ["/bin/sh", "-c", "x"] PATH=/bin cwd=/>
        target 4
        base docker.io/library/onbuild:latest
        config {"Env":["PATH=/bin"]}
        + COPY /z / # buildkit
        + RUN /bin/sh -c t # buildkit
        + RUN /bin/sh -c x # buildkit
        "#,
    );
    check(
        "FROM busybox AS a\nONBUILD ENV A=1\nFROM a\nONBUILD ENV B=2\n",
        r#"
        0 [a 1/1] FROM docker.io/library/busybox:latest@sha256:b0b0 <image>
        target 0
        base docker.io/library/busybox:latest
        config {"Env":["PATH=/bin","A=1"],"OnBuild":["ENV B=2"]}
        - ENV A=1
        "#,
    );
}

#[test]
fn options() {
    let fixture = Fixture {
        labels: vec![("a".into(), "cli".into())],
        build_args: vec![("https_proxy".into(), "p".into()), ("UNUSED".into(), "1".into())],
        no_cache_filter: vec!["B".into()],
        target: Some("b".into()),
        ..Fixture::default()
    };
    let build = fixture.lower("FROM busybox AS a\nLABEL a=1 b=2\nRUN x\nFROM a AS b\nWORKDIR /x\nRUN y\nFROM missing\n");
    assert_eq!(
        build.image.config.config.labels.into_iter().collect::<Vec<_>>(),
        [("a".into(), "cli".into()), ("b".into(), "2".into())]
    );
    let flags: Vec<_> = build.graph.vertices.iter().map(|v| (v.stage.as_str(), v.no_cache)).collect();
    assert_eq!(flags, [("a", false), ("a", false), ("b", false), ("b", true)]);
    let kiln_frontend::graph::Op::Exec(exec) = &build.graph.vertices[1].op else { panic!() };
    assert_eq!(exec.proxy_env, [("HTTPS_PROXY".to_owned(), "p".to_owned()), ("https_proxy".into(), "p".into())]);
    assert_eq!(build.warnings.last().unwrap().message, "one or more build arguments were not used: UNUSED");
}

/// A name means a named context, else an earlier stage, else an image (BuildKit `toDispatchState`).
#[test]
fn named_contexts_come_first() {
    let contexts = |kind: NamedKind| vec![NamedContext { name: "ctx:latest".into(), kind }];
    let files = Fixture { contexts: contexts(NamedKind::Files), ..Fixture::default() };
    let image = NamedKind::Image(Reference::parse("tool:2").unwrap());
    let image = Fixture { contexts: contexts(image), ..Fixture::default() };
    let triggers = NamedKind::Image(Reference::parse("onbuild").unwrap());
    let triggers = Fixture { contexts: contexts(triggers), ..Fixture::default() };
    let steps = |fixture: &Fixture, text: &str| {
        let vertices = fixture.lower(text).graph.vertices;
        let op = |vertex: &Vertex| match &vertex.op {
            Op::Image(op) => op.reference.familiar(),
            Op::Context(op) => format!("{:?}", op.context),
            Op::Exec(op) => format!("{:?}", op.mounts.iter().map(|m| &m.kind).collect::<Vec<_>>()),
            Op::Copy(op) => format!("{:?}", op.from),
            Op::Workdir(_) => "workdir".to_owned(),
        };
        vertices.iter().map(op).collect::<Vec<_>>()
    };
    let rows: [(&Fixture, &str, &[&str]); 12] = [
        // Triggers run in a stage that starts from the image, not in one whose place it takes, nor in that one's heirs.
        (&triggers, "FROM ctx\nRUN x", &["tool:1", "onbuild:latest", "Vertex(Some(VertexId(0)))", "[]", "[]"]),
        (&triggers, "FROM missing AS ctx\nONBUILD RUN z", &["onbuild:latest"]),
        (&triggers, "FROM missing AS ctx\nFROM ctx\nRUN y", &["onbuild:latest", "[]"]),
        (&files, "FROM ctx\nRUN x", &["Named(0)", "[]"]),
        (&files, "FROM docker.io/library/ctx:latest\n", &["Named(0)"]),
        (&files, "FROM ctx:1\n", &["ctx:1"]),
        (&files, "FROM busybox\nCOPY --from=ctx a /", &["busybox:latest", "Context(Named(0))"]),
        // The stage of that name is as if it weren't there, for those that count stages, too.
        (&files, "FROM missing AS CTX\nRUN x\nFROM busybox\nCOPY --from=0 a /", &["busybox:latest", "Context(Named(0))"]),
        (&files, "FROM missing AS ctx\nRUN x\nFROM ctx\nRUN y", &["Named(0)", "[]"]),
        (&image, "FROM ctx\nRUN x", &["tool:2", "[]"]),
        (&image, "FROM missing AS ctx\nRUN x\nFROM ctx AS y\nRUN y", &["tool:2", "[]"]),
        (&image, "FROM scratch\nCOPY --from=ctx a /", &["tool:2", "Vertex(Some(VertexId(0)))"]),
    ];
    for (fixture, text, want) in rows {
        assert_eq!(steps(fixture, text), want, "{text}");
    }
    let mounted = steps(&files, "FROM busybox\nRUN --mount=from=ctx,target=/m x");
    assert!(mounted[1].contains("from: Context(Named(0))"), "{mounted:?}");
    // A layer that no instruction made has a line in the history.
    let build = files.lower("FROM ctx\nCOPY a /\n");
    let layers: Vec<&str> = build.image.history.iter().map(|entry| entry.created_by.as_str()).collect();
    assert_eq!(layers, ["[context ctx:latest] load from client", "COPY a / # buildkit"]);
}

#[test]
fn a_global_epoch_is_the_time_of_the_build() {
    for (text, expected) in [
        ("FROM scratch", None),
        ("ARG SOURCE_DATE_EPOCH\nFROM scratch", None),
        ("ARG SOURCE_DATE_EPOCH=\nFROM scratch", None),
        ("ARG SOURCE_DATE_EPOCH=1445412480\nFROM scratch", Some(1445412480)),
        ("ARG E=7\nARG SOURCE_DATE_EPOCH=${E}0\nFROM scratch", Some(70)),
        ("ARG SOURCE_DATE_EPOCH=253402300799\nFROM scratch", Some(253_402_300_799)),
        ("FROM scratch\nARG SOURCE_DATE_EPOCH=7", None),
        ("ARG SOURCE_DATE_EPOCH=context\nFROM scratch", Some(99)),
        ("ARG C=context\nARG SOURCE_DATE_EPOCH=$C\nFROM scratch", Some(99)),
    ] {
        let fixture = Fixture { context_epoch: Some(99), ..Fixture::default() };
        assert_eq!(fixture.lower(text).epoch, expected, "{text}");
    }
    assert_eq!(Fixture::default().lower("ARG SOURCE_DATE_EPOCH=context\nFROM scratch").epoch, None);
}

#[test]
fn the_time_of_the_build_is_that_of_a_source() {
    let context = |name: &str, kind| NamedContext { name: name.into(), kind };
    let contexts = vec![context("files", NamedKind::Files), context("image", NamedKind::Image(Reference::parse("x").unwrap()))];
    let http = |url: &str, checksum: Option<&str>| {
        let checksum = checksum.map(|c| kiln_oci::digest::Digest::parse(c).unwrap());
        Some(TimeSource::Http { url: url.into(), checksum })
    };
    let git =
        |url: &str, checksum: Option<&str>| Some(TimeSource::Git { url: url.into(), checksum: checksum.map(str::to_owned) });
    let zeros = format!("sha256:{}", "0".repeat(64));
    let with_checksum = format!("ADD --checksum={zeros} https://h/f /");
    for (value, stage, expected) in [
        ("files", "", Some(TimeSource::Context(ContextId::Named(0)))),
        // A context takes the place of a stage of its name, and an image has no time.
        ("files", "ADD https://h/f /", Some(TimeSource::Context(ContextId::Named(0)))),
        ("image", "", None),
        ("times", "ADD https://h/f /", http("https://h/f", None)),
        ("TIMES", &with_checksum, http("https://h/f", Some(&zeros))),
        ("times", "ARG V=2\nADD https://h/$V/f /", http("https://h/2/f", None)),
        ("times", "ARG G\nADD https://h/${G:-none} /", http("https://h/given", None)),
        ("times", "ADD https://h/r.git#v1 /", git("https://h/r.git#v1", None)),
        ("times", "ADD --checksum=ABC git@h:r.git /", git("git@h:r.git", Some("abc"))),
        ("times", "ADD --keep-git-dir=true https://h/r /", git("https://h/r", None)),
    ] {
        let name = if value == "files" { "files" } else { "times" };
        let stage = if stage.is_empty() { String::new() } else { format!("FROM scratch AS {name}\n{stage}\n") };
        let text = format!("ARG G=given\nARG SOURCE_DATE_EPOCH={value}\n{stage}FROM scratch AS last\nARG SOURCE_DATE_EPOCH\n");
        let fixture = Fixture { contexts: contexts.clone(), ..Fixture::default() };
        assert_eq!(fixture.time_source(&text), expected, "{text}");
        assert_eq!(fixture.lower(&text).epoch, expected.map(|_| 1_700_000_000), "{text}");
        let given = Fixture { build_args: vec![("SOURCE_DATE_EPOCH".into(), "7".into())], ..fixture };
        assert_eq!((given.time_source(&text), given.lower(&text).epoch), (None, Some(7)), "{text}");
    }
}

#[test]
fn keep_git_dir_says_that_an_address_is_a_repositorys() {
    let address = || "https://h/a".to_owned();
    for (flag, expected) in [
        ("", CopySource::Http(address())),
        ("--keep-git-dir", CopySource::Git(address())),
        ("--keep-git-dir=false", CopySource::Git(address())),
    ] {
        let build = Fixture::default().lower(&format!("FROM scratch\nADD {flag} https://h/a /b\n"));
        let Op::Copy(copy) = &build.graph.vertices[0].op else { panic!("{:?}", build.graph) };
        assert_eq!(copy.sources, [expected], "{flag}");
    }
}

/// Addresses of `ADD` are shown to everybody, their passwords to nobody.
#[test]
fn git_addresses() {
    let build = Fixture::default().lower("FROM scratch\nADD --checksum=AB12 https://u:canary@h/a.git?ref=v1#x /b\n");
    let Op::Copy(copy) = &build.graph.vertices[0].op else { panic!() };
    assert_eq!(copy.sources, [CopySource::Git("https://u:canary@h/a.git?ref=v1#x".into())]);
    assert_eq!(copy.checksum, Some(Checksum::Commit("ab12".into())));
    let shown = format!("{} {}", build.graph.vertices[0].name, build.image.history[0].created_by);
    assert!(!shown.contains("canary") && shown.matches("https://xxxxx:xxxxx@h/a.git?ref=v1#x").count() == 2, "{shown}");
}

#[test]
fn needs_come_first() {
    let text = "FROM b AS x\nFROM a\nCOPY --from=c / /\nFROM d\n";
    let fixture = Fixture { target: Some("1".into()), ..Fixture::default() };
    let needs: Vec<String> = fixture.needs(text).iter().map(|n| n.reference.familiar()).collect();
    assert_eq!(needs, ["a:latest", "c:latest"]);
    let needs = Fixture::default().needs("FROM b AS builder\nFROM b\nCOPY --from=buidler / /\n");
    assert_eq!(needs[1].hint.as_deref(), Some("did you mean the stage `builder`?"));
    let needs = Fixture::default().needs(
        "FROM tool AS x\nFROM tool@sha256:1111111111111111111111111111111111111111111111111111111111111111\nCOPY --from=x / /\n",
    );
    assert_eq!(needs.len(), 2, "a name with a digest is another name");
}

#[test]
fn lints() {
    let rows: &[(&str, &[&str])] = &[
        ("FROM busybox as a", &["FromAsCasing"]),
        ("FROM busybox AS Abc", &["StageNameCasing"]),
        ("FROM busybox AS scratch", &["ReservedStageName"]),
        ("FROM busybox AS a\nFROM busybox AS a", &["DuplicateStageName"]),
        ("FROM busybox\nrun x\nRUN x", &["ConsistentInstructionCasing"]),
        ("from busybox\nrun x", &[]),
        ("FROM busybox\nRUN x \\\n\n y", &["NoEmptyContinuation"]),
        ("FROM busybox\nMAINTAINER x", &["MaintainerDeprecated"]),
        ("FROM busybox\nCMD x", &["JSONArgsRecommended"]),
        ("FROM busybox\nSHELL [\"x\"]\nCMD x", &[]),
        ("FROM busybox\nCMD [\"x\"]\nCMD [\"y\"]", &["MultipleInstructionsDisallowed"]),
        ("FROM busybox\nWORKDIR x\nWORKDIR y", &["WorkdirRelativePath"]),
        ("FROM busybox\nCOPY $X /", &["UndefinedVar"]),
        ("FROM busybox\nARG X\nCOPY a$X /", &[]),
        ("FROM busybox\nENV a b", &["LegacyKeyValueFormat"]),
        ("FROM busybox\nARG API_TOKEN", &["SecretsUsedInArgOrEnv"]),
        ("FROM busybox$X", &["UndefinedArgInFrom"]),
        ("ARG X\nFROM ${X:-busybox}", &[]),
        ("FROM --platform=linux/amd64 busybox", &["FromPlatformFlagConstDisallowed"]),
        ("FROM --platform=$TARGETPLATFORM busybox", &["RedundantTargetPlatform"]),
        ("FROM busybox\nEXPOSE 80/TCP", &["ExposeProtoCasing"]),
        ("FROM busybox\nEXPOSE 1:80", &["ExposeInvalidFormat"]),
        ("# check=skip=JSONArgsRecommended\nFROM busybox\nCMD x", &[]),
        ("# check=skip=all\nFROM busybox as a\nCMD x", &[]),
        ("# check=experimental=all\n# what\nFROM busybox AS a", &["InvalidDefinitionDescription"]),
        ("# check=experimental=all\n# a the base\nFROM busybox AS a", &[]),
        ("FROM busybox\n# check=skip=JSONArgsRecommended\nCMD x\nENTRYPOINT x", &["JSONArgsRecommended"]),
    ];
    for (text, want) in rows {
        let build = Fixture::default().lower(text);
        let got: Vec<_> = build.warnings.iter().filter_map(|w| w.rule).map(|r| r.name()).collect();
        assert_eq!(got, *want, "{text}");
    }
    let fixture = Fixture { build_args: vec![("X".into(), "busybox".into())], ..Fixture::default() };
    let build = fixture.lower("ARG X\nFROM $X");
    assert_eq!(build.warnings[0].rule, Some(kiln_frontend::Rule::InvalidDefaultArgInFrom));
}

#[test]
fn foreign_base() {
    let build = Fixture::default().lower("FROM --platform=linux/arm64 busybox\nCOPY a /\n");
    assert_eq!(build.image.config.architecture, "amd64", "the fixture's base is for amd64 whatever was asked");
    assert_eq!(build.warnings.last().unwrap().rule, Some(kiln_frontend::Rule::InvalidBaseImagePlatform));
}
