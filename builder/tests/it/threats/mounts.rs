//! Mounts that a Dockerfile makes up.

use std::fs;
use std::os::unix::fs::symlink;

use super::{build, homes, tree};
use crate::support::lab::temp_dir;

/// C02 (CVE-2024-23651): two stages race for one cache; what was a directory when it was looked at is a link when it is mounted.
#[test]
fn c02_source_of_a_shared_cache_is_swapped_by_another_step() {
    for (mode, home) in homes("c02_source_of_a_shared_cache_is_swapped_by_another_step") {
        let canary = temp_dir();
        fs::write(canary.path().join("f"), "outside\n").unwrap();
        let before = tree(canary.path());
        let swap = format!(
            "mkdir -p /c/real /c/park && echo inside > /c/real/f && ln -sfn {} /c/link && i=0 && while [ $i -lt 300 ]; do \
             mv /c/real /c/park/r 2> /dev/null; mv /c/link /c/real 2> /dev/null; mv /c/real /c/link 2> /dev/null; \
             mv /c/park/r /c/real 2> /dev/null; i=$((i+1)); done",
            canary.path().display()
        );
        let mut dockerfile = format!("FROM busybox AS swap\nRUN --mount=type=cache,id=race,target=/c {swap}\n");
        for i in 0..6 {
            dockerfile += &format!(
                "FROM busybox AS s{i}\nRUN --mount=type=cache,id=race,target=/m,source=/real if [ -e /m/f ]; then cat /m/f; fi; touch /m/t{i}; echo {i}\n"
            );
        }
        dockerfile += "FROM scratch\nCOPY --from=swap /etc/passwd /\n";
        for i in 0..6 {
            dockerfile += &format!("COPY --from=s{i} /etc/passwd /p{i}\n");
        }
        for _ in 0..3 {
            // Whether a step finds its source is chance; what it finds is not.
            let outcome = build(&home, &dockerfile, &["--no-cache"]);
            assert!(!outcome.stderr.contains("outside"), "{mode}: {outcome:?}");
            assert!(!outcome.stderr.contains("panicked"), "{mode}: {outcome:?}");
            assert_eq!(tree(canary.path()), before, "{mode}");
        }
        home.left_nothing();
    }
}

/// C03 (CVE-2024-23652): the stubs of mounts, and each parent of theirs, become links to what must stay.
#[test]
fn c03_stubs_replaced_by_links() {
    for (mode, home) in homes("c03_stubs_replaced_by_links") {
        let canary = temp_dir();
        for name in ["key", "x/y/key", "hosts"] {
            let path = canary.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let before = tree(canary.path());
        let at = canary.path().display();
        for (from, to) in [("/deep", "/moved"), ("/deep/x", "/deep/moved"), ("/deep/x/y", "/deep/x/moved")] {
            let dockerfile = format!(
                "FROM busybox\nRUN --mount=type=cache,target=/deep/x/y --mount=type=tmpfs,target=/deep/t mv {from} {to}; ln -s {at} {from}; true\n\
                 RUN --mount=type=cache,target=/deep/x/y/z true\n"
            );
            let _ = build(&home, &dockerfile, &[]);
            assert_eq!(tree(canary.path()), before, "{mode} {from}");
        }
        home.left_nothing();
    }
}

/// C20 (CVE-2024-1753): the Dockerfiles of that report: the source of a bind mount is a link to the root, in a stage and in the context.
#[test]
fn c20_sources_that_are_links_to_the_root() {
    for (mode, home) in homes("c20_sources_that_are_links_to_the_root") {
        let canary = temp_dir();
        let name = canary.path().file_name().unwrap().to_str().unwrap().to_owned();
        fs::create_dir_all(home.path("c")).unwrap();
        symlink("/", home.path("c/root")).unwrap();
        symlink("../../../../../../../..", home.path("c/up")).unwrap();
        let rows = [
            "--mount=type=bind,from=s,source=/link,target=/m,rw",
            "--mount=type=bind,from=s,source=/up,target=/m,rw",
            "--mount=type=bind,from=s,source=/link/tmp,target=/m,rw",
            "--mount=type=bind,source=root,target=/m,rw",
            "--mount=type=bind,source=up,target=/m,rw",
            "--mount=type=bind,source=../../../../../..,target=/m,rw",
            "--mount=type=bind,source=/,target=/m,rw",
            "--mount=type=cache,from=s,source=/link,target=/m",
        ];
        for row in rows {
            let dockerfile = format!(
                "FROM busybox AS s\nRUN ln -s / /link && ln -s ../../../../../../../.. /up\nFROM busybox\n\
                 RUN {row} echo seen: $(ls -A /m /m/tmp 2> /dev/null) && touch /m/was-here /m/tmp/was-here; test ! -e /m/{name}\n"
            );
            let outcome = build(&home, &dockerfile, &[]);
            assert!(
                !outcome.stderr.contains(&name)
                    || outcome.stderr.matches(&name).count() == outcome.stderr.matches(&format!("/m/{name}")).count(),
                "{mode} {row}: {outcome:?}"
            );
            assert!(
                !std::path::Path::new("/was-here").exists() && !std::path::Path::new("/tmp/was-here").exists(),
                "{mode} {row}"
            );
            assert!(!home.path("c/was-here").exists() && !home.path("was-here").exists(), "{mode} {row}");
        }
    }
}

/// C21 (CVE-2024-9407, -9675): options are words that kiln knows, and a cache's id is a name and no path.
#[test]
fn c21_options_and_ids_are_no_paths() {
    for (mode, home) in homes("c21_options_and_ids_are_no_paths") {
        for option in [
            "bind-propagation=shared",
            "bind-propagation=rshared,z",
            "z",
            "Z",
            "suid",
            "dev",
            "exec",
            "upperdir=/",
            "options=dev",
            "relabel=shared",
        ] {
            let outcome = build(&home, &format!("FROM busybox\nRUN --mount=type=bind,target=/m,{option} true\n"), &[]);
            assert!(!outcome.status.success(), "{mode} {option}: {outcome:?}");
            assert!(outcome.stderr.contains("Dockerfile:2"), "{mode} {option}: {outcome:?}");
        }
        let long = "x".repeat(10_000);
        let canary = home.write("canary/f", "canary\n");
        for id in [
            "../../../canary",
            "/",
            "..",
            ".",
            "a/b/../../../../canary",
            "-rf",
            "a\\0b",
            long.as_str(),
            "../../../../../../../../etc",
        ] {
            let dockerfile =
                format!("FROM busybox\nRUN --mount=type=cache,id={id},target=/m test -z \"$(ls -A /m)\" && touch /m/made\n");
            build(&home, &dockerfile, &["--no-cache"]).ok();
            assert_eq!(fs::read_dir(canary.parent().unwrap()).unwrap().count(), 1, "{mode} {id}");
            // It is one cache, whatever its name looks like.
            build(&home, &dockerfile.replace("test -z \"$(ls -A /m)\"", "test -e /m/made"), &["--no-cache"]).ok();
        }
        let outside = fs::read_dir(home.path("")).unwrap().flatten().any(|entry| entry.file_name() == "made");
        assert!(!outside && !home.path("store/made").exists(), "{mode}");
    }
}

/// C22 (CVE-2025-4953): what a writable bind mount of the context is told stays in the step.
#[test]
fn c22_a_writable_context_is_not_written() {
    for (mode, home) in homes("c22_a_writable_context_is_not_written") {
        for name in ["a", "d/b", "d/e/c"] {
            home.write(&format!("c/{name}"), name);
        }
        let dockerfile = "FROM busybox\n\
            RUN --mount=type=bind,target=/m,rw echo x > /m/a && rm -r /m/d && mkdir /m/new && chmod 777 /m && mknod /m/n p && ! test -e /m/d\n\
            RUN --mount=type=bind,target=/m,readwrite test \"$(cat /m/a)\" = a && test -e /m/d/e/c && test ! -e /m/new\n\
            RUN --mount=type=bind,target=/m ! touch /m/a && ! mkdir /m/x\n";
        home.context("c", dockerfile);
        let before = tree(&home.path("c"));
        build(&home, dockerfile, &[]).ok();
        // But for the Dockerfile, which was written again.
        let without =
            |text: String| text.lines().filter(|line| !line.contains("Dockerfile")).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(without(tree(&home.path("c"))), without(before), "{mode}");
    }
}
