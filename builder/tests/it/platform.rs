//! Images for another processor than this machine's: what `--platform` chooses, and commands that the kernel has emulated.

use std::path::Path;
use std::sync::LazyLock;

use crate::support::home::{Home, Outcome};
use crate::support::lab::{Registry, RegistryOptions};
use crate::support::skip::skipped;

const HOST: i32 = 5;

/// A registry that holds an image for two platforms, and one for arm64 alone.
static BASES: LazyLock<Registry> = LazyLock::new(|| {
    Registry::start(&RegistryOptions { seeds: &["busybox", "busybox-arm64", "multiarch"], ..RegistryOptions::default() })
});

/// Whether the kernel can run programs for arm64; says that the test is skipped when it can't.
fn emulates(test: &str) -> bool {
    let reason = if cfg!(not(target_arch = "x86_64")) {
        "arm64 is not foreign here"
    } else if !Path::new("/proc/sys/fs/binfmt_misc/qemu-aarch64").exists() {
        "no emulator for arm64 is registered (`testdata/tools/setup.sh test` does it)"
    } else {
        return true;
    };
    skipped(test, reason);
    false
}

fn home() -> Home {
    let home = Home::offline();
    home.mirror(BASES.host());
    home
}

fn build(home: &Home, dockerfile: &str, args: &[&str]) -> Outcome {
    let context = home.context("c", dockerfile);
    let context = context.to_str().unwrap();
    home.run([&["build", "-t", "image", "--progress", "plain"], args, &[context]].concat())
}

/// What the image says of itself.
fn platform_of(home: &Home) -> String {
    let image = home.run(["inspect", "image"]).ok().json();
    format!("{}/{}", image[0]["Os"].as_str().unwrap(), image[0]["Architecture"].as_str().unwrap())
}

#[test]
fn a_base_for_another_platform() {
    let home = home();
    let dockerfile = "FROM multiarch\nCOPY Dockerfile /\nWORKDIR /w\nENV A=b\n";
    let mut bases = std::collections::BTreeSet::new();
    for (args, platform) in [
        (&["--platform", "linux/arm64"][..], "linux/arm64"),
        (&["--platform", "linux/arm64/v8"], "linux/arm64"),
        (&["--platform", "linux/aarch64"], "linux/arm64"),
        (&["--platform", "linux/amd64"], "linux/amd64"),
    ] {
        build(&home, dockerfile, args).ok();
        assert_eq!(platform_of(&home), platform, "{args:?}");
        let image = home.run(["inspect", "image"]).ok().json();
        bases.insert((platform, image[0]["RootFS"]["Layers"][0].as_str().unwrap().to_owned()));
    }
    assert_eq!(bases.len(), 2, "{bases:?}");
    build(&home, dockerfile, &["--platform", "linux/s390x"]).fails(4).says(&["linux/s390x", "linux/amd64, linux/arm64"]);
    // A platform of its own leaves the image's at what was asked for.
    build(&home, "FROM --platform=linux/arm64 multiarch\n", &[]).ok();
    assert_eq!(platform_of(&home), "linux/arm64");
}

#[test]
fn commands_are_emulated() {
    if !emulates("commands_are_emulated") {
        return;
    }
    let home = home();
    let dockerfile = "FROM multiarch\nARG TARGETARCH\nARG BUILDPLATFORM\n\
                      RUN echo \"on $(uname -m) for $TARGETARCH from $BUILDPLATFORM\"\n\
                      RUN [\"/bin/busybox\", \"touch\", \"/made\"]\nRUN <<EOF\n#!/bin/sh\ntest -e /made && id -u > /id\nEOF\n\
                      USER app\nRUN test \"$(id -u)\" = 1000 && ls /proc/self/exe && (exit 7) || test $? = 7\n";
    build(&home, dockerfile, &["--platform", "linux/arm64"]).ok().says(&["on aarch64 for arm64 from linux/amd64"]);
    assert_eq!(platform_of(&home), "linux/arm64");
    // Another platform is another step.
    let native = build(&home, dockerfile, &[]).ok().says(&["on x86_64 for amd64 from linux/amd64"]);
    assert_eq!(native.cached(), 0, "{}", native.stderr);
    let again = build(&home, dockerfile, &["--platform", "linux/arm64"]).ok();
    assert_eq!(again.cached(), 4, "{}", again.stderr);
    // An image that exists for that platform only.
    build(&home, "FROM busybox-arm64\nRUN test \"$(uname -m)\" = aarch64\n", &["--platform", "linux/arm64"]).ok();
    build(&home, "FROM --platform=linux/arm64 multiarch\nRUN test \"$(uname -m)\" = aarch64\n", &[]).ok();
}

/// What runs on the builder's processor needs no emulator, and its files go into an image for another.
#[test]
fn a_cross_build() {
    let home = home();
    let dockerfile = "FROM --platform=$BUILDPLATFORM multiarch AS build\nARG TARGETPLATFORM\nARG TARGETARCH\n\
                      RUN uname -m > /machine && echo $TARGETPLATFORM $TARGETARCH > /target && mkdir /bin2 && cp /bin/busybox /bin2/\n\
                      FROM multiarch\nCOPY --from=build /machine /target /\n\
                      FROM --platform=$BUILDPLATFORM multiarch AS check\nCOPY --from=1 / /image/\n\
                      RUN grep -qx x86_64 /image/machine && grep -qx 'linux/arm64 arm64' /image/target && \
                      test \"$(head -c 20 /image/bin/busybox | tail -c 2 | od -An -tx1)\" = ' b7 00'\nFROM 1\n";
    if cfg!(not(target_arch = "x86_64")) {
        return skipped("a_cross_build", "arm64 is not foreign here");
    }
    build(&home, &dockerfile.replace("\nFROM 1\n", "\n"), &["--platform", "linux/arm64"]).ok();
    build(&home, dockerfile, &["--platform", "linux/arm64", "--target", "1"]).ok();
    assert_eq!(platform_of(&home), "linux/arm64");
}

/// The header of a program for a processor that nobody made.
fn program(machine: u8) -> Vec<u8> {
    let mut program = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0".to_vec();
    program.extend([machine, 0xee, 1, 0, 0, 0]);
    program.resize(64, 0);
    program
}

const PROGRAM: &str = "FROM scratch\nCOPY --chmod=755 sh /bin/sh\nRUN true\n";

#[test]
fn a_platform_that_nothing_emulates() {
    let home = home();
    home.write("c/sh", program(0xee));
    let outcome = build(&home, PROGRAM, &["--platform", "linux/riscv64"]).fails(HOST);
    outcome.says(&["Dockerfile:3", ">>> RUN true", "/bin/sh", "linux/riscv64", "no emulator is registered", "qemu-user-static"]);
    // The same file in an image for this machine is another mistake.
    let outcome = build(&home, PROGRAM, &[]).fails(1).says(&["Dockerfile:3", "Exec format error", "for another processor"]);
    assert!(!outcome.stderr.contains("emulator"), "{}", outcome.stderr);
    build(&home, "FROM scratch\nCOPY sh /\n", &["--platform", "linux/riscv64"]).ok();
}

/// A handler without the flag F looks for its program in the image.
#[test]
fn an_emulator_that_sandboxes_cannot_reach() {
    const HANDLERS: &str = "/proc/sys/fs/binfmt_misc";
    let name = format!("kiln-test-{}", std::process::id());
    let magic = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xed\xee";
    let handler = format!(":{name}:M::{magic}::/nonexistent/emulator:");
    if let Err(error) = std::fs::write(format!("{HANDLERS}/register"), handler) {
        return skipped("an_emulator_that_sandboxes_cannot_reach", &format!("no handler can be registered: {error}"));
    }
    let home = home();
    home.write("c/sh", program(0xed));
    let outcome = build(&home, PROGRAM, &["--platform", "linux/riscv64"]);
    std::fs::write(format!("{HANDLERS}/{name}"), "-1").unwrap();
    outcome.fails(HOST).says(&["Dockerfile:3", "linux/riscv64", "its emulator is not found in the sandbox", "the flag F"]);
}
