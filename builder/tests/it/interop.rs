//! What kiln makes is read by programs that others wrote, and what they make is read by kiln.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::archive::Image;
use crate::support::compare::{Rules, differences};
use crate::support::home::{Home, finish};
use crate::support::lab::{self, workspace};
use crate::support::skip::{needs, skipped};

const DOCKERFILE: &str = "FROM busybox\nLABEL made=by-kiln\nENV GREETING=hello\nEXPOSE 80\n\
    RUN mkdir /data && echo content > /data/file && ln /data/file /data/hard && ln -s file /data/soft && chown 5:6 /data/file && chmod 4750 /data/file\n\
    RUN rm -r /home && echo gone > /note\nWORKDIR /work\nUSER app\nCMD [\"sh\", \"-c\", \"echo $GREETING from $(id -u) in $(pwd); cat /note\"]\n";

/// What the command of that image prints.
const OUTPUT: &str = "hello from 1000 in /work\ngone\n";

/// An image built and pushed for other programs; its name.
fn pushed(home: &Home, name: &str) -> String {
    let name = format!("{}/interop/{name}:1", lab::registry().host());
    home.build(&name, DOCKERFILE).ok();
    home.run(["push", &name]).ok();
    name
}

#[test]
fn skopeo_inspects_what_was_pushed() {
    if !needs("interop::skopeo_inspects_what_was_pushed", "skopeo") {
        return;
    }
    let home = Home::new();
    let name = pushed(&home, "skopeo");
    let target = format!("docker://{name}");
    let told = finish(Command::new("skopeo").args(["inspect", "--tls-verify=false", &target])).ok().json();
    assert_eq!(told[0]["Labels"]["made"], "by-kiln");
    assert_eq!(told[0]["Architecture"], "amd64");
    assert_eq!(told[0]["Layers"].as_array().map(Vec::len), Some(4), "{told:?}");
    let config = finish(Command::new("skopeo").args(["inspect", "--config", "--tls-verify=false", &target])).ok().json();
    assert_eq!(config[0]["config"]["User"], "app");
    let history = config[0]["history"].as_array().unwrap();
    assert!(history.iter().any(|h| h["created_by"] == "ENV GREETING=hello"), "{history:#?}");
}

#[test]
fn umoci_unpacks_what_skopeo_copied() {
    let test = "interop::umoci_unpacks_what_skopeo_copied";
    if !needs(test, "skopeo") || !needs(test, "umoci") {
        return;
    }
    let home = Home::new();
    let name = pushed(&home, "umoci");
    let layout = format!("oci:{}:x", home.path("layout").display());
    finish(Command::new("skopeo").args(["copy", "-q", "--src-tls-verify=false", &format!("docker://{name}"), &layout])).ok();
    let image = format!("{}:x", home.path("layout").display());
    finish(Command::new("umoci").args(["unpack", "--image", &image]).arg(home.path("bundle"))).ok();
    let rootfs = home.path("bundle/rootfs");
    let mut stat = Command::new("stat");
    stat.args(["-c", "%n %a %u %g %h", "data/file", "data/hard"]).current_dir(&rootfs);
    assert_eq!(finish(&mut stat).ok().stdout, "data/file 4750 5 6 2\ndata/hard 4750 5 6 2\n");
    assert_eq!(fs::read_link(rootfs.join("data/soft")).unwrap().to_str(), Some("file"));
    assert!(!rootfs.join("home").exists() && rootfs.join("bin/busybox").exists());
}

#[test]
fn podman_runs_what_was_pushed() {
    if !needs("interop::podman_runs_what_was_pushed", "podman") {
        return;
    }
    let home = Home::new();
    let name = pushed(&home, "podman");
    let podman = |args: &[&str]| {
        let mut command = Command::new("podman");
        command.arg("--root").arg(home.path("podman")).arg("--runroot").arg(home.path("podman-run"));
        // crun refuses hosts with both kinds of cgroups mounted.
        if Path::new("/usr/sbin/runc").exists() {
            command.args(["--runtime", "/usr/sbin/runc"]);
        }
        command.args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "file"]);
        finish(command.args(args).stdin(Stdio::null()))
    };
    podman(&["pull", "-q", "--tls-verify=false", &name]).ok();
    let ran = podman(&["run", "--rm", "--network=none", "--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024", &name]);
    if !ran.status.success() && (ran.stderr.contains("OCI ") || ran.stderr.contains("crun")) {
        // Some hosts can't start containers at all; then podman at least read the image.
        let reason = format!("podman can't run containers here: {}", ran.stderr.trim());
        podman(&["rmi", "-f", &name]).ok();
        return skipped("interop::podman_runs_what_was_pushed (the run)", &reason);
    }
    assert_eq!(ran.ok().stdout, OUTPUT);
    podman(&["rmi", "-f", &name]).ok();
}

#[test]
fn dockerd_runs_what_was_pushed_and_what_was_saved() {
    let test = "interop::dockerd_runs_what_was_pushed_and_what_was_saved";
    let dockerd = match lab::dockerd() {
        Ok(dockerd) => dockerd,
        Err(reason) => return skipped(test, reason),
    };
    let home = Home::new();
    let name = pushed(&home, "dockerd");
    finish(dockerd.docker().args(["pull", "-q", &name])).ok();
    let run = |image: &str| finish(dockerd.docker().args(["run", "--rm", "--network=none", image])).ok().stdout;
    assert_eq!(run(&name), OUTPUT);
    finish(dockerd.docker().args(["rmi", "-f", &name])).ok();
    let archive = home.path("saved.tar");
    home.run(["save", "-o", archive.to_str().unwrap(), &name]).ok();
    finish(dockerd.docker().arg("load").arg("-i").arg(&archive)).ok();
    assert_eq!(run(&name), OUTPUT);
    let history = finish(dockerd.docker().args(["history", "--no-trunc", "--format", "{{.CreatedBy}}", &name])).ok().stdout;
    assert!(history.contains("ENV GREETING=hello") && history.contains("WORKDIR /work"), "{history}");
}

#[test]
fn docker_archives_are_loaded_and_given_back() {
    let dockerd = match lab::dockerd() {
        Ok(dockerd) => dockerd,
        Err(reason) => return skipped("interop::docker_archives_are_loaded_and_given_back", reason),
    };
    let home = Home::new();
    let context = home.context("c", DOCKERFILE);
    let mut build = dockerd.docker();
    finish(build.args(["build", "--network=host", "-q", "-t", "interop/from-docker:1"]).arg(context)).ok();
    let (theirs, ours) = (home.path("theirs.tar"), home.path("ours.tar"));
    finish(dockerd.docker().arg("save").arg("-o").arg(&theirs).arg("interop/from-docker:1")).ok();
    let loaded = home.run(["load", "-i", theirs.to_str().unwrap()]).ok();
    assert!(loaded.stdout.contains("interop/from-docker:1"), "{loaded:?}");
    home.run(["save", "-o", ours.to_str().unwrap(), "interop/from-docker:1"]).ok();
    let (theirs, ours) = (Image::read(&theirs).unwrap(), Image::read(&ours).unwrap());
    assert_eq!(differences(&theirs, &ours, &Rules { built_after: i64::MAX, ..Rules::default() }), [] as [&str; 0]);
    assert_eq!(theirs.config_bytes, ours.config_bytes, "the configuration's bytes are kept");
    home.build("child", "FROM interop/from-docker:1\nUSER 0\nRUN grep content /data/file\n").ok();
}

#[test]
fn both_archive_forms_hold_the_same_image() {
    let home = Home::new();
    let context = home.context("c", DOCKERFILE);
    let mut images = Vec::new();
    for form in ["oci", "docker"] {
        let file = home.path(&format!("{form}.tar"));
        let output = format!("type={form},dest={}", file.display());
        home.run(["build", "-t", "both:1", "--output", &output, context.to_str().unwrap()]).ok();
        images.push(Image::read(&file).unwrap());
    }
    assert_eq!(differences(&images[0], &images[1], &Rules { built_after: i64::MAX, ..Rules::default() }), [] as [&str; 0]);
    assert!(images[0].manifest.is_some());
    if !needs("interop::both_archive_forms_hold_the_same_image (skopeo)", "skopeo") {
        return;
    }
    for (form, transport) in [("oci", "oci-archive"), ("docker", "docker-archive")] {
        let source = format!("{transport}:{}", home.path(&format!("{form}.tar")).display());
        let told: Value = finish(Command::new("skopeo").args(["inspect", &source])).ok().json().remove(0);
        assert_eq!(told["Labels"]["made"], "by-kiln", "{form}");
    }
}

/// The image that most people's files are like: Debian, packages from the network, a web application; run for real.
#[test]
fn a_debian_application_is_built_pushed_and_served() {
    let test = "interop::a_debian_application_is_built_pushed_and_served";
    let home = Home::new();
    let name = format!("{}/interop/web:1", lab::registry().host());
    let context = workspace().join("testdata/demo");
    home.run(["build", "--push", "-t", &name, context.to_str().unwrap()]).ok();
    let again = home.run(["build", "-t", &name, context.to_str().unwrap()]).ok();
    assert!(again.cached() >= 6, "{again:?}");
    let dockerd = match lab::dockerd() {
        Ok(dockerd) => dockerd,
        Err(reason) => return skipped(test, reason),
    };
    finish(dockerd.docker().args(["pull", "-q", &name])).ok();
    let script = "import threading, runpy, urllib.request, time, os\n\
        threading.Thread(target=lambda: runpy.run_path('app.py'), daemon=True).start()\n\
        for i in range(50):\n    \
        try: print(urllib.request.urlopen('http://127.0.0.1:8000/').read().decode()); break\n    \
        except OSError: time.sleep(0.1)\n\
        print(os.getuid())\n";
    let ran = finish(dockerd.docker().args(["run", "--rm", "--network=none", &name, "python3", "-c", script])).ok();
    assert!(ran.stdout.contains("Hello from an image that kiln built") && ran.stdout.ends_with("33\n"), "{ran:?}");
    finish(dockerd.docker().args(["rmi", "-f", &name])).ok();
}
