//! What bad input gets: a message that names the place and the cause, the right exit code, and nothing half-made.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::support::home::{Home, Outcome, finish, program};
use crate::support::lab::{self, Registry, RegistryOptions};
use crate::support::skip::{needs, skipped};

/// A step failed; the Dockerfile is wrong; a registry; the host; the store; the command line.
const BUILD: i32 = 1;
const DOCKERFILE: i32 = 3;
const REGISTRY: i32 = 4;
const HOST: i32 = 5;
const STORE: i32 = 6;
const USAGE: i32 = 125;

/// The store holds no image: nothing half-made got a name.
#[track_caller]
fn assert_no_image(home: &Home) {
    assert_eq!(home.run(["images", "--format", "json"]).ok().json(), [] as [serde_json::Value; 0]);
}

#[test]
fn a_wrong_dockerfile_is_shown_where_it_is_wrong() {
    let home = Home::new();
    for (dockerfile, expected) in [
        ("FROM busybox\nRUNN echo\n", &["Dockerfile:2", ">>> RUNN echo", "unknown instruction", "RUNN"][..]),
        ("FROM busybox\nCOPY --nope=1 a b\n", &["Dockerfile:2", ">>> COPY --nope=1 a b", "nope"]),
        ("FROM busybox\nRUN --mont=type=bind true\n", &["Dockerfile:2", "mont"]),
        ("FROM busybox\nRUN [\"sh\", 1]\n", &["Dockerfile:2"]),
        ("RUN true\n", &["Dockerfile:1"]),
        ("FROM busybox\nCOPY onlyone\n", &["Dockerfile:2", "COPY"]),
        ("FROM busybox AS a\nFROM a:b:c\n", &["Dockerfile:2"]),
        ("FROM busybox\nCOPY --from=5 / /x\n", &["Dockerfile:2"]),
        ("FROM busybox\nENV\n", &["Dockerfile:2", "ENV"]),
        ("FROM busybox\nEXPOSE nothing\n", &["Dockerfile:2", "nothing"]),
        ("FROM busybox\nSTOPSIGNAL SIGNOPE\n", &["Dockerfile:2", "SIGNOPE"]),
        ("FROM busybox\nHEALTHCHECK --interval=soon CMD x\n", &["Dockerfile:2", "soon"]),
        ("FROM busybox\nONBUILD ONBUILD RUN x\n", &["Dockerfile:2", "ONBUILD"]),
        ("FROM busybox\nRUN <<EOF\necho\n", &["Dockerfile:2", "EOF"]),
        ("# escape=x\nFROM busybox\n", &["escape"]),
        ("ARG X\nFROM $X\n", &["Dockerfile:2"]),
        ("", &["Dockerfile"]),
        ("# only a comment\n", &["Dockerfile"]),
    ] {
        let outcome = home.build("bad", dockerfile);
        outcome.fails(DOCKERFILE).says(expected);
    }
    assert_no_image(&home);
}

#[test]
fn several_mistakes_are_told_at_once() {
    let home = Home::new();
    home.build("bad", "FROM busybox\nRUNN echo\nCOPY --nope a b\n").fails(DOCKERFILE).says(&["Dockerfile:2", "Dockerfile:3"]);
}

#[test]
fn a_missing_target_is_named() {
    let home = Home::new();
    let context = home.context("c", "FROM busybox AS one\n");
    let args = ["build", "--target", "two", context.to_str().unwrap()];
    home.run(args).fails(DOCKERFILE).says(&["two"]);
}

#[test]
fn a_missing_dockerfile_or_context_is_named() {
    let home = Home::new();
    fs::create_dir(home.path("empty")).unwrap();
    let outcome = home.run(["build", "empty"]).says(&["Dockerfile"]);
    assert!([BUILD, DOCKERFILE].contains(&outcome.status.code().unwrap()), "{outcome:?}");
    let outcome = home.run(["build", "not-there"]).says(&["not-there"]);
    assert!(!outcome.status.success());
}

#[test]
fn a_missing_file_of_copy_is_named() {
    let home = Home::new();
    for (line, missing) in [
        ("COPY nope /x/", "nope"),
        ("COPY . nope/deeper /x/", "nope/deeper"),
        ("COPY ignored /x/", "ignored"),
        ("COPY --from=busybox /no/such /x", "/no/such"),
    ] {
        home.write("context-missing/.dockerignore", "ignored\n");
        home.write("context-missing/ignored", "x");
        home.build("missing", &format!("FROM busybox\n{line}\n")).fails(BUILD).says(&[
            "Dockerfile:2",
            &format!(">>> {line}"),
            missing,
            "not found",
        ]);
    }
    assert_no_image(&home);
}

#[test]
fn a_failing_run_shows_its_exit_code_and_last_output() {
    let home = Home::new();
    let dockerfile = "FROM busybox\nRUN true\nRUN echo the last words; \\\n  echo and more >&2; \\\n  exit 7\n";
    home.build("failing", dockerfile).fails(BUILD).says(&[
        "the last words",
        "and more",
        "exit code: 7",
        "Dockerfile:3",
        ">>> RUN echo the last words",
    ]);
    home.build("failing", "FROM busybox\nRUN sleep 100 & kill -9 $!; wait $!\n")
        .fails(BUILD)
        .says(&["exit code: 137", "Dockerfile:2"]);
    home.build("failing", "FROM busybox\nRUN [\"/no/such/program\"]\n").fails(BUILD).says(&["/no/such/program", "Dockerfile:2"]);
    home.build("failing", "FROM busybox\nUSER nobody-knows\nRUN true\n").fails(BUILD).says(&["nobody-knows"]);
    assert_no_image(&home);
}

#[test]
fn the_status_of_a_failed_run_is_in_the_metadata_file() {
    let home = Home::new();
    let context = home.context("c", "FROM busybox\nRUN exit 42\n");
    let metadata = home.path("metadata.json");
    let args = ["build", "--metadata-file", metadata.to_str().unwrap(), context.to_str().unwrap()];
    home.run(args).fails(BUILD);
    let text = fs::read_to_string(metadata).expect("the metadata file is written for a failed build too");
    assert!(text.contains("42"), "{text}");
}

#[test]
fn a_missing_base_is_named() {
    let home = Home::new();
    let base = format!("{}/no/such:image", lab::registry().host());
    home.build("base", &format!("FROM {base}\nRUN true\n")).fails(REGISTRY).says(&[&base, "Dockerfile:1", "not found"]);
    assert_no_image(&home);
}

#[test]
fn an_unreachable_registry_is_named() {
    let home = Home::offline();
    // A port that was free a moment ago: nobody listens there.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let host = format!("127.0.0.1:{port}");
    home.build("base", &format!("FROM {host}/a/b\n")).fails(REGISTRY).says(&[&host, "refused"]);
    home.build("ok", "FROM scratch\nLABEL a=b\n").ok();
    home.run(["tag", "ok", &format!("{host}/a/b")]).ok();
    home.run(["push", &format!("{host}/a/b")]).fails(REGISTRY).says(&[&host, "refused"]);
}

#[test]
fn wrong_credentials_are_told() {
    if !needs("errors::wrong_credentials_are_told", "htpasswd") {
        return;
    }
    let registry =
        Registry::start(&RegistryOptions { seeds: &["busybox"], auth: Some("kiln:right"), ..RegistryOptions::default() });
    let host = registry.host();
    let home = Home::offline();
    let base = format!("{host}/library/busybox");
    home.build("denied", &format!("FROM {base}\n")).fails(REGISTRY).says(&[host, "401", "kiln login"]);
    let outcome = home.run_with_input(["login", "-u", "kiln", "--password-stdin", host], "wrong");
    outcome.fails(REGISTRY).says(&["401"]);
    // A file that another tool wrote, with the wrong password: base64 of kiln:wrong.
    home.write(".docker/config.json", format!("{{\"auths\":{{\"{host}\":{{\"auth\":\"a2lsbjp3cm9uZw==\"}}}}}}"));
    home.build("denied", &format!("FROM {base}\n")).fails(REGISTRY).says(&["401"]);
    assert_no_image(&home);
}

#[test]
fn a_blob_that_was_changed_is_refused() {
    let registry = Registry::start(&RegistryOptions { seeds: &["busybox"], ..RegistryOptions::default() });
    let home = Home::offline();
    home.mirror(registry.host());
    // The largest blob is the layer.
    let blobs = Command::new("find").arg(registry.storage()).args(["-name", "data", "-size", "+100k"]).output().unwrap();
    let path = String::from_utf8(blobs.stdout).unwrap().trim().to_owned();
    let mut data = fs::read(&path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
    let middle = data.len() / 2;
    data[middle] ^= 1;
    fs::write(&path, data).unwrap();
    home.build("changed", "FROM busybox\nRUN true\n").fails(REGISTRY).says(&["sha256:"]);
    assert_no_image(&home);
}

/// A mounted tmpfs, gone with the value.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn new(path: std::path::PathBuf, size: &str) -> Option<SmallDisk> {
        fs::create_dir_all(&path).unwrap();
        let options = format!("size={size},mode=700");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "kiln-small-disk"]).arg(&path).status();
        mount.is_ok_and(|s| s.success()).then(|| SmallDisk(path))
    }

    fn grow(&self, size: &str) {
        let options = format!("remount,size={size}");
        assert!(Command::new("mount").args(["-o", &options]).arg(&self.0).status().unwrap().success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_is_told_and_leaves_a_store_that_works() {
    let home = Home::new();
    let Some(disk) = SmallDisk::new(home.store(), "12m") else {
        return skipped("errors::a_full_disk_is_told_and_leaves_a_store_that_works", "this process may not mount a tmpfs");
    };
    // Not all zeros: a store may know how to keep holes as holes.
    let big: Vec<u8> = (0..30_000_000_u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).take(30_000_000).collect();
    home.write("context-copy/big", &big);
    let full = "no space left on device";
    let lower = |outcome: &Outcome| outcome.stderr.to_lowercase();
    let outcome = home.build("copy", "FROM busybox\nCOPY big /\n");
    assert_eq!(outcome.status.code(), Some(STORE), "{outcome:?}");
    assert!(lower(&outcome).contains(full), "{outcome:?}");
    let outcome = home.build("run", "FROM busybox\nRUN dd if=/dev/urandom of=/big bs=1M count=30\n");
    assert!([BUILD, STORE].contains(&outcome.status.code().unwrap()), "{outcome:?}");
    assert!(lower(&outcome).contains(full), "{outcome:?}");
    assert_no_image(&home);
    disk.grow("200m");
    home.build("copy", "FROM busybox\nCOPY big /\nRUN ls -l /big\n").ok().says(&["30000000"]);
}

#[test]
fn a_full_disk_while_the_base_comes_in() {
    let home = Home::new();
    let Some(disk) = SmallDisk::new(home.store(), "1m") else {
        return skipped("errors::a_full_disk_while_the_base_comes_in", "this process may not mount a tmpfs");
    };
    let outcome = home.build("base", "FROM busybox\nRUN true\n").fails(STORE);
    assert!(outcome.stderr.to_lowercase().contains("no space left on device"), "{outcome:?}");
    disk.grow("50m");
    home.build("base", "FROM busybox\nRUN true\n").ok();
}

#[test]
fn a_full_disk_where_the_archive_goes() {
    let home = Home::new();
    let Some(_disk) = SmallDisk::new(home.path("out"), "256k") else {
        return skipped("errors::a_full_disk_where_the_archive_goes", "this process may not mount a tmpfs");
    };
    let context = home.context("c", "FROM busybox\n");
    let output = format!("type=oci,dest={}", home.path("out/image.tar").display());
    let outcome = home.run(["build", "--output", &output, context.to_str().unwrap()]);
    assert!(!outcome.status.success(), "{outcome:?}");
    assert!(outcome.stderr.to_lowercase().contains("no space left on device"), "{outcome:?}");
    assert_eq!(fs::read_dir(home.path("out")).unwrap().count(), 0, "half an archive is left");
}

/// Root reads every file, so kiln runs without the two capabilities that let it.
#[test]
fn an_unreadable_context_file_is_named() {
    if !needs("errors::an_unreadable_context_file_is_named", "setpriv") {
        return;
    }
    let home = Home::new();
    let context = home.context("c", "FROM scratch\nCOPY . /\n");
    let secret = home.write("c/folder/secret", "x");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o000)).unwrap();
    let mut command = without_capabilities(&home, "-dac_override,-dac_read_search");
    command.arg("build").arg(&context);
    finish(&mut command).fails(BUILD).says(&["folder/secret", "ermission denied", "Dockerfile:2"]);
    // What is ignored need not be readable.
    home.write("c/.dockerignore", "folder/secret\n");
    let mut command = without_capabilities(&home, "-dac_override,-dac_read_search");
    finish(command.arg("build").arg(&context)).ok();
}

/// A kernel that doesn't let this process make namespaces is one that lacks what the sandbox needs.
#[test]
fn root_without_rights_over_the_machine_builds_in_a_namespace() {
    if !needs("errors::root_without_rights_over_the_machine_builds_in_a_namespace", "setpriv") {
        return;
    }
    let home = Home::new();
    let context = home.context("c", "FROM busybox\nRUN true\n");
    let mut command = without_capabilities(&home, "-sys_admin");
    finish(command.arg("build").arg(&context)).ok().says(&["sandbox: nested"]);
    // Who asks for more than there is, is told.
    let mut command = without_capabilities(&home, "-sys_admin");
    finish(command.args(["build", "--isolation=root"]).arg(&context)).fails(HOST).says(&["CAP_SYS_ADMIN", "hint"]);
}

/// kiln without some capabilities, for itself and all it starts.
fn without_capabilities(home: &Home, which: &str) -> Command {
    let plain = home.command();
    let mut command = Command::new("setpriv");
    command.arg(format!("--bounding-set={which}")).arg(format!("--inh-caps={which}")).arg(program());
    for (key, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(key, value),
            None => command.env_remove(key),
        };
    }
    command.current_dir(home.path("")).stdin(std::process::Stdio::null());
    command
}

#[test]
fn wrong_usage_is_told() {
    let home = Home::offline();
    home.context("c", "FROM scratch\n");
    for args in [
        &["build"][..],
        &["build", "--no-such-flag", "c"],
        &["no-such-command"],
        &["build", "-t", "example.com/UPPER", "c"],
        &["build", "-t", "a:b:c", "c"],
        &["build", "--output", "type=nonsense,dest=x", "c"],
        &["build", "--progress", "sideways", "c"],
        &["build", "--label", "c"],
        &["push"],
        &["tag", "one"],
    ] {
        let outcome = home.run(args).fails(USAGE);
        assert!(!outcome.stderr.is_empty() && outcome.stdout.is_empty(), "{args:?}: {outcome:?}");
    }
}

#[test]
fn a_failed_build_leaves_no_archive_and_keeps_the_old_image() {
    let home = Home::new();
    home.build("kept", "FROM busybox\nLABEL version=1\n").ok();
    let before = home.run(["inspect", "kept"]).ok().stdout;
    let context = home.context("c", "FROM busybox\nRUN false\n");
    let output = format!("type=docker,dest={}", home.path("image.tar").display());
    let id_file = home.path("id");
    home.run(["build", "-t", "kept", "--output", &output, "--iidfile", id_file.to_str().unwrap(), context.to_str().unwrap()])
        .fails(BUILD);
    assert!(!home.path("image.tar").exists() && !id_file.exists());
    assert_eq!(home.run(["inspect", "kept"]).ok().stdout, before);
}

#[test]
fn what_is_not_an_image_is_refused() {
    let home = Home::offline();
    home.write("text.tar", "this is no archive");
    home.write("empty.tar", vec![0; 10240]);
    for (args, expected) in [
        (&["load", "-i", "text.tar"][..], "text.tar"),
        (&["load", "-i", "empty.tar"], "empty.tar"),
        (&["load", "-i", "missing.tar"], "missing.tar"),
        (&["inspect", "nothing"], "nothing"),
        (&["history", "nothing"], "nothing"),
        (&["save", "-o", "x.tar", "nothing"], "nothing"),
        (&["rmi", "nothing"], "nothing"),
        (&["tag", "nothing", "something"], "nothing"),
        (&["push", "127.0.0.1:1/nothing"], "nothing"),
    ] {
        let outcome = home.run(args).says(&[expected]);
        let code = outcome.status.code();
        assert!(matches!(code, Some(1..=6)), "{args:?}: {outcome:?}");
        assert!(!outcome.stderr.contains("panicked"), "{outcome:?}");
    }
    assert!(!home.path("x.tar").exists());
}
