//! Push and pull against Debian's `docker-registry`: plain, with passwords, with TLS; what is sent and what is not.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::home::{Home, finish};
use crate::support::lab::{self, Registry, RegistryOptions};
use crate::support::skip::needs;

/// The uploads that one command caused: `POST`s that began one and `PATCH`es or `PUT`s that sent bytes.
fn uploads(requests: &[String]) -> Vec<&String> {
    requests.iter().filter(|r| r.contains("/blobs/uploads/") && !r.starts_with("GET")).collect()
}

fn manifest(host: &str, repository: &str, tag: &str) -> Value {
    let accept = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json";
    let url = format!("http://{host}/v2/{repository}/manifests/{tag}");
    let client = reqwest::blocking::Client::builder().no_proxy().build().unwrap();
    let response = client.get(url).header("accept", accept).send().unwrap();
    assert!(response.status().is_success(), "{response:?}");
    response.json().unwrap()
}

#[test]
fn a_pushed_image_comes_back_the_same() {
    let host = lab::registry().host();
    let name = format!("{host}/push/round:1");
    let home = Home::new();
    home.build(&name, "FROM busybox\nRUN echo hello > /hello\nENV A=b\nCMD [\"cat\", \"/hello\"]\n").ok();
    home.run(["push", &name]).ok();
    let before = home.run(["inspect", &name]).ok().json();
    let other = Home::new();
    other.run(["pull", &name]).ok();
    let after = other.run(["inspect", &name]).ok().json();
    for key in ["Id", "Architecture", "Os", "Config", "RootFS"] {
        assert_eq!(before[0][key], after[0][key], "{key}");
        assert!(!before[0][key].is_null(), "{key}");
    }
    let layers = manifest(host, "push/round", "1")["layers"].as_array().unwrap().len();
    assert_eq!(layers, 2);
    // What was pulled is a base like any other, by tag and by digest.
    other.build("child", &format!("FROM {name}\nRUN grep hello /hello\n")).ok();
    let digest = other.run(["inspect", &name]).ok().json()[0]["RepoDigests"][0].as_str().unwrap().to_owned();
    assert!(digest.starts_with(&format!("{host}/push/round@sha256:")), "{digest}");
    Home::new().build("child", &format!("FROM {digest}\nRUN grep hello /hello\n")).ok();
}

/// F06: a registry refuses a blob that a disk has damaged. kiln packs it or fetches it again, and sends that.
#[test]
fn what_is_damaged_is_made_again_and_pushed() {
    let home = Home::new();
    let name = |host: &str| format!("{host}/push/damaged:1");
    let first = name(lab::registry().host());
    home.build(&first, "FROM busybox\nRUN seq 1 100000 > /numbers\n").ok();
    home.run(["push", &first]).ok();
    let sent = manifest(lab::registry().host(), "push/damaged", "1");
    let flip = |bytes: &mut Vec<u8>| bytes[1000] ^= 1;
    let cut = |bytes: &mut Vec<u8>| bytes.truncate(1000);
    let rows: [(usize, fn(&mut Vec<u8>)); 4] = [(0, flip), (1, flip), (0, cut), (1, cut)];
    for (layer, damage) in rows {
        let digest = sent["layers"][layer]["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        let places = ["", "rootless", "one-id", "flat", "flat-one-id"].map(|form| home.store().join(form).join("blobs/sha256"));
        let blob = places.iter().map(|place| place.join(digest)).find(|blob| blob.exists()).unwrap();
        let mut bytes = fs::read(&blob).unwrap();
        damage(&mut bytes);
        fs::write(&blob, bytes).unwrap();
        let registry = Registry::start(&RegistryOptions::default());
        let second = name(registry.host());
        home.run(["tag", &first, &second]).ok();
        home.run(["push", &second]).ok();
        assert_eq!(manifest(registry.host(), "push/damaged", "1"), sent, "layer {layer}");
        home.run(["rmi", &second]).ok();
    }
    home.run(["fsck"]).ok();
}

#[test]
fn build_pushes_every_tag() {
    let host = lab::registry().host();
    let home = Home::new();
    let context = home.context("c", "FROM busybox\nRUN echo x > /x\n");
    let (one, two) = (format!("{host}/push/tags:1"), format!("{host}/push/tags:2"));
    home.run(["build", "--push", "-t", &one, "-t", &two, context.to_str().unwrap()]).ok();
    assert_eq!(manifest(host, "push/tags", "1"), manifest(host, "push/tags", "2"));
}

#[test]
fn blobs_that_exist_are_not_sent_again() {
    let registry = lab::registry();
    let name = format!("{}/push/again:1", registry.host());
    let home = Home::new();
    home.build(&name, "FROM busybox\nRUN head -c 100000 /dev/urandom > /r\n").ok();
    home.run(["push", &name]).ok();
    let first = registry.requests("push/again");
    assert!(!uploads(&first).is_empty(), "{first:#?}");
    home.run(["push", &name]).ok();
    let second = registry.requests("push/again").split_off(first.len());
    assert!(uploads(&second).is_empty(), "{second:#?}");
    // One layer more: that layer and a configuration are sent, nothing else.
    home.build(&name, "FROM busybox\nRUN head -c 100000 /dev/urandom > /r\nRUN echo more > /more\n").ok();
    let before = registry.requests("push/again").len();
    home.run(["push", &name]).ok();
    let third = registry.requests("push/again").split_off(before);
    let sent = third.iter().filter(|r| r.starts_with("PUT") && r.contains("/blobs/uploads/")).count();
    assert_eq!(sent, 2, "{third:#?}");
}

/// The first step stands on the base and needs its files; the second only adds to the configuration, so the base's layer
/// is never fetched, not even to be pushed to another repository.
#[test]
fn a_base_of_the_same_registry_is_mounted_not_sent() {
    for (line, fetches) in [("COPY Dockerfile /deep/", true), ("LABEL a=b", false)] {
        let registry = Registry::start(&RegistryOptions { seeds: &["busybox"], ..RegistryOptions::default() });
        let host = registry.host();
        let home = Home::offline();
        let context = home.context("c", &format!("FROM {host}/library/busybox\n{line}\n"));
        let name = format!("{host}/other/repo:1");
        home.run(["build", "--push", "-t", &name, context.to_str().unwrap()]).ok();
        let base = manifest(host, "library/busybox", "latest")["layers"][0]["digest"].as_str().unwrap().to_owned();
        let pushed = manifest(host, "other/repo", "1");
        assert_eq!(pushed["layers"][0]["digest"], json!(base), "the base layer is kept as it was");
        let requests = registry.requests("other/repo");
        let mount = [format!("mount={}", base.replace(':', "%3A")), format!("mount={base}")];
        let mounted = requests.iter().any(|r| mount.iter().any(|m| r.contains(m)) && r.ends_with(" 201"));
        assert!(mounted, "{line}: {requests:#?}");
        let requests = registry.requests("library/busybox");
        let fetched = requests.iter().any(|r| r.starts_with("GET") && r.contains(&base));
        assert!(fetches || !fetched, "{line}: {requests:#?}");
        // And the image is whole.
        Home::offline().build("child", &format!("FROM {name}\nRUN test -x /bin/sh\n")).ok();
    }
}

#[test]
fn a_base_of_another_registry_is_sent_as_it_was() {
    let target = Registry::start(&RegistryOptions::default());
    let name = format!("{}/moved/image:1", target.host());
    let home = Home::new();
    home.build(&name, "FROM busybox\nCOPY Dockerfile /\n").ok();
    home.run(["push", &name]).ok();
    let base = &manifest(lab::registry().host(), "library/busybox", "latest")["layers"][0]["digest"];
    assert_eq!(&manifest(target.host(), "moved/image", "1")["layers"][0]["digest"], base);
    Home::offline().build("child", &format!("FROM {name}\nRUN test -f /Dockerfile\n")).ok();
}

#[test]
fn passwords_are_asked_for_kept_and_forgotten() {
    if needs("registry::passwords_are_asked_for_kept_and_forgotten", "htpasswd") {
        passwords(false);
    }
}

#[test]
fn passwords_are_changed_for_signed_tokens() {
    if needs("registry::passwords_are_changed_for_signed_tokens", "openssl") {
        passwords(true);
    }
}

fn passwords(token: bool) {
    let registry = Registry::start(&RegistryOptions { auth: Some("kiln:secret word"), token, ..RegistryOptions::default() });
    let host = registry.host();
    let name = format!("{host}/private/image:1");
    let home = Home::new();
    home.build(&name, "FROM busybox\nRUN echo private > /p\n").ok();
    home.run(["push", &name]).fails(4);
    home.run_with_input(["login", "--username", "kiln", "--password-stdin", host], "another word\n").fails(4);
    let outcome = home.run_with_input(["login", "--username", "kiln", "--password-stdin", host], "secret word\n").ok();
    assert!(outcome.stdout.contains("Login Succeeded"), "{outcome:?}");
    let file = home.path(".docker/config.json");
    let kept: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert!(kept["auths"][host]["auth"].is_string(), "{kept}");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    home.run(["push", &name]).ok();
    home.run(["rmi", &name]).ok();
    home.run(["pull", &name]).ok();
    // A link from another repository needs the right to read there, too: of the same token service, or of the same password.
    let other = format!("{host}/other/image:1");
    home.build(&other, &format!("FROM {name}\nRUN echo more > /q\n")).ok();
    home.run(["push", &other]).ok().says(&["mounted from another repository"]);
    home.run(["logout", host]).ok();
    home.run(["pull", &name]).fails(4);
    // What another tool's file holds besides is kept.
    home.write(".docker/config.json", "{\"auths\":{\"other.example\":{\"auth\":\"YTpi\"}},\"psFormat\":\"x\"}");
    home.run_with_input(["login", "-u", "kiln", "--password-stdin", host], "secret word").ok();
    let kept: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(kept["psFormat"], "x");
    assert_eq!(kept["auths"]["other.example"]["auth"], "YTpi");
}

#[test]
fn a_credential_helper_is_asked() {
    if !needs("registry::a_credential_helper_is_asked", "htpasswd") {
        return;
    }
    let registry = Registry::start(&RegistryOptions { auth: Some("helped:by helper"), ..RegistryOptions::default() });
    let host = registry.host();
    let home = Home::new();
    let script = "#!/bin/sh\nread -r server\n[ \"$1\" = get ] || exit 1\n\
                  echo \"{\\\"ServerURL\\\":\\\"$server\\\",\\\"Username\\\":\\\"helped\\\",\\\"Secret\\\":\\\"by helper\\\"}\"\n";
    let helper = home.write("bin/docker-credential-kiln-test", script);
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", home.path("bin").display(), std::env::var("PATH").unwrap());
    let name = format!("{host}/helped/image:1");
    home.build(&name, "FROM busybox\nRUN echo x > /x\n").ok();
    for config in [format!("{{\"credHelpers\":{{\"{host}\":\"kiln-test\"}}}}"), "{\"credsStore\":\"kiln-test\"}".to_owned()] {
        home.write(".docker/config.json", config);
        finish(home.command().env("PATH", &path).args(["push", &name])).ok();
    }
    // And one that podman's settings name, for every registry; C73: one that isn't there is an error, whatever it is asked about.
    fs::remove_file(home.path(".docker/config.json")).unwrap();
    for (list, code) in
        [("'containers-auth.json', 'kiln-test'", 0), ("'kiln-test'", 0), ("'containers-auth.json'", 4), ("'none'", 4)]
    {
        let conf = home.write("registries.conf", format!("credential-helpers = [{list}]\n"));
        let outcome = finish(home.command().env("PATH", &path).env("CONTAINERS_REGISTRIES_CONF", conf).args(["push", &name]));
        match code {
            0 => outcome.ok(),
            code => outcome.fails(code),
        };
    }
}

#[test]
fn tls_with_a_private_authority() {
    if !needs("registry::tls_with_a_private_authority", "openssl") {
        return;
    }
    let registry = Registry::start(&RegistryOptions { seeds: &[], tls: true, ..RegistryOptions::default() });
    let host = registry.host();
    let name = format!("{host}/tls/image:1");
    let home = Home::new();
    home.build(&name, "FROM busybox\nRUN echo tls > /tls\n").ok();
    // Registries on loopback are plain http unless the settings say otherwise.
    home.run(["push", &name]).fails(4);
    home.settings(&format!("[registry.\"{host}\"]\nplain-http = false\n"));
    home.run(["push", &name]).fails(4).says(&["certificate"]);
    home.settings(&format!("[registry.\"{host}\"]\nplain-http = false\nca-file = \"{}\"\n", registry.ca().display()));
    home.run(["push", &name]).ok();
    home.run(["rmi", &name]).ok();
    home.run(["pull", &name]).ok();
    home.settings(&format!("[registry.\"{host}\"]\nplain-http = false\ninsecure-skip-verify = true\n"));
    home.run(["pull", &name]).ok();
}

#[test]
fn a_mirror_that_fails_is_passed_over() {
    let home = Home::offline();
    let host = lab::registry().host();
    home.settings(&format!("[registry.\"docker.io\"]\nmirrors = [\"127.0.0.1:1\", \"{host}\"]\n"));
    home.build("x", "FROM busybox\nRUN true\n").ok();
    // A mirror of a registry that isn't there, for images of that registry.
    let home = Home::offline();
    home.settings(&format!("[registry.\"registry.invalid\"]\nmirrors = [\"{host}\"]\n"));
    home.build("x", "FROM registry.invalid/library/busybox:latest\nRUN true\n").ok();
}

/// An index with two platforms and Docker's media types: the host's platform is taken.
#[test]
fn an_index_gives_the_platform_of_the_host() {
    let registry = lab::registry();
    let host = registry.host();
    let client = reqwest::blocking::Client::builder().no_proxy().build().unwrap();
    let put = |repository: &str, name: &str, kind: &str, body: &Value| {
        let url = format!("http://{host}/v2/{repository}/manifests/{name}");
        let response = client.put(url).header("content-type", kind).body(body.to_string()).send().unwrap();
        let status = response.status();
        assert!(status.is_success(), "{status} {:?}", response.text());
    };
    let oci = "application/vnd.oci.image.manifest.v1+json";
    // The image of the other platform has no file that this host could run; taking it would fail.
    let layout = Home::offline();
    layout.build("arm", "FROM scratch\nLABEL other=platform\n").ok();
    let other = format!("{host}/multi/image:other");
    layout.run(["tag", "arm", &other]).ok();
    layout.run(["push", &other]).ok();
    let copied = Command::new("skopeo")
        .args(["copy", "-q", "--src-tls-verify=false", "--dest-tls-verify=false"])
        .args([format!("docker://{host}/library/busybox:latest"), format!("docker://{host}/multi/image:own")])
        .status();
    assert!(copied.unwrap().success());
    let describe = |tag: &str, architecture: &str| {
        let url = format!("http://{host}/v2/multi/image/manifests/{tag}");
        let response = client.get(url).header("accept", oci).send().unwrap();
        let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
        let digest = response.headers()["docker-content-digest"].to_str().unwrap().to_owned();
        let size = response.bytes().unwrap().len();
        json!({"mediaType": kind, "digest": digest, "size": size, "platform": {"os": "linux", "architecture": architecture}})
    };
    for (name, kind) in [
        ("oci", "application/vnd.oci.image.index.v1+json"),
        ("docker", "application/vnd.docker.distribution.manifest.list.v2+json"),
    ] {
        let foreign = if cfg!(target_arch = "aarch64") { "amd64" } else { "arm64" };
        let native = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let list = [describe("other", foreign), describe("own", native)];
        put("multi/image", name, kind, &json!({"schemaVersion": 2, "mediaType": kind, "manifests": list}));
        Home::offline().build("x", &format!("FROM {host}/multi/image:{name}\nRUN true\n")).ok();
    }
}

/// Images of Docker's own media types are bases as well.
#[test]
fn a_docker_manifest_is_a_base() {
    if !needs("registry::a_docker_manifest_is_a_base", "skopeo") {
        return;
    }
    let host = lab::registry().host();
    let copied = Command::new("skopeo")
        .args(["copy", "-q", "--format", "v2s2", "--src-tls-verify=false", "--dest-tls-verify=false"])
        .args([format!("docker://{host}/library/busybox:latest"), format!("docker://{host}/schema/docker:2")])
        .status();
    assert!(copied.unwrap().success());
    assert_eq!(manifest(host, "schema/docker", "2")["mediaType"], "application/vnd.docker.distribution.manifest.v2+json");
    let home = Home::offline();
    let name = format!("{host}/schema/child:1");
    home.build(&name, &format!("FROM {host}/schema/docker:2\nRUN echo x > /x\n")).ok();
    home.run(["push", &name]).ok();
    Home::offline().build("grandchild", &format!("FROM {name}\nRUN grep x /x\n")).ok();
}

#[test]
fn annotations_travel_with_the_manifest() {
    let host = lab::registry().host();
    let home = Home::new();
    let context = home.context("c", "FROM scratch\nCOPY Dockerfile /\n");
    let name = format!("{host}/push/annotated:1");
    let archive = home.path("o.tar");
    let output = format!("type=oci,dest={}", archive.display());
    let args = ["--annotation=a=1", "--annotation=manifest,manifest-descriptor:b=2", "--annotation=manifest[linux/s390x]:c=3"];
    let build = |more: &[&str]| home.run(["build"].iter().chain(more).chain(&[context.to_str().unwrap()]));
    build(&[args[0], args[1], args[2], "--push", "-t", &name, "-o", &output]).ok();
    let want = json!({ "a": "1", "b": "2" });
    assert_eq!(manifest(host, "push/annotated", "1")["annotations"], want);
    let mut archive = tar_files(&archive);
    let index: Value = serde_json::from_slice(&archive.remove("index.json").unwrap()).unwrap();
    let descriptor = &index["manifests"][0];
    assert_eq!(descriptor["annotations"]["b"], "2");
    assert_eq!(descriptor["annotations"]["a"], Value::Null);
    let digest = descriptor["digest"].as_str().unwrap().replace("sha256:", "");
    let inner: Value = serde_json::from_slice(&archive[&format!("blobs/sha256/{digest}")]).unwrap();
    assert_eq!(inner["annotations"], want);
    // They are the image's, whenever it's pushed; another build of the same image has none of them.
    let later = format!("{host}/push/annotated:2");
    build(&[args[0], "-t", &later]).ok();
    home.run(["push", &later]).ok();
    assert_eq!(manifest(host, "push/annotated", "2")["annotations"], json!({ "a": "1" }));
    build(&["--push", "-t", &later]).ok();
    assert_eq!(manifest(host, "push/annotated", "2")["annotations"], Value::Null);
    // One manifest is no index.
    build(&["--annotation=index:a=1", "--push", "-t", &later])
        .fails(125)
        .says(&["ERROR: failed to build: index annotations not supported for single platform export", "manifest:a=1"]);
    build(&["--annotation=foo:a=1"]).fails(125).says(&["parse annotations: unknown annotation type \"foo\""]);
}

/// The files of a tar, by name.
fn tar_files(path: &std::path::Path) -> std::collections::BTreeMap<String, Vec<u8>> {
    let listing = Command::new("tar").arg("-tf").arg(path).output().unwrap().stdout;
    let names = String::from_utf8(listing).unwrap();
    let content = |name: &str| Command::new("tar").arg("-xOf").arg(path).arg(name).output().unwrap().stdout;
    names.lines().filter(|name| !name.ends_with('/')).map(|name| (name.to_owned(), content(name))).collect()
}
