//! What `--output` gives: several at once, each as it asked for; images of several platforms; and what a build matrix joins.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::home::{Home, finish};
use crate::support::lab::{self, Registry, RegistryOptions};
use crate::support::skip::needs;

const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, \
                      application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json";

/// A document of a registry, by tag or digest.
fn document(host: &str, repository: &str, name: &str) -> Value {
    let client = reqwest::blocking::Client::builder().no_proxy().build().unwrap();
    let url = format!("http://{host}/v2/{repository}/manifests/{name}");
    let response = client.get(url).header("accept", ACCEPT).send().unwrap();
    assert!(response.status().is_success(), "{repository} {name}: {response:?}");
    response.json().unwrap()
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))).unwrap()
}

fn build(home: &Home, dockerfile: &str, args: &[&str]) -> crate::support::home::Outcome {
    let context = home.context("c", dockerfile);
    home.run([&["build", "--progress", "plain"], args, &[context.to_str().unwrap()]].concat())
}

/// The platforms of an index, in its order.
fn platforms(index: &Value) -> Vec<String> {
    let entries = index["manifests"].as_array().unwrap_or_else(|| panic!("no index: {index:#}"));
    let platform = |entry: &Value| {
        format!("{}/{}", entry["platform"]["os"].as_str().unwrap(), entry["platform"]["architecture"].as_str().unwrap())
    };
    entries.iter().map(platform).collect()
}

const PLAIN: &str = "FROM busybox\nCOPY Dockerfile /\n";

/// Every output is what it asked for, and the files that tell of the build speak of the last one.
#[test]
fn several_outputs_of_one_build() {
    let Some(home) = Home::in_mode("several_outputs_of_one_build") else { return };
    let host = lab::registry().host();
    let (plain, docker) = (format!("{host}/outputs/plain"), format!("{host}/outputs/docker"));
    let image = format!("type=image,\"name={plain}:1,{plain}:2\",push=true,annotation.a=b,annotation-manifest-descriptor.c=d");
    let types = format!("type=registry,name={docker}:1,oci-mediatypes=false,store=false,compression-level=1");
    let args = ["-o", "type=oci,dest=a.tar", "-o", "type=oci,dest=lay,tar=false", "-o", &image, "-o", &types];
    build(&home, PLAIN, &[&args[..], &["--metadata-file", "meta", "--iidfile", "iid"]].concat()).ok();

    let pushed = document(host, "outputs/plain", "1");
    assert_eq!(pushed, document(host, "outputs/plain", "2"));
    assert_eq!(pushed["mediaType"], "application/vnd.oci.image.manifest.v1+json");
    assert_eq!(pushed["annotations"], json!({"a": "b"}));
    let other = document(host, "outputs/docker", "1");
    let kinds = |at: &Value| at["mediaType"].as_str().unwrap().to_owned();
    assert_eq!(kinds(&other), "application/vnd.docker.distribution.manifest.v2+json");
    assert_eq!(kinds(&other["config"]), "application/vnd.docker.container.image.v1+json");
    for layer in other["layers"].as_array().unwrap() {
        assert_eq!(kinds(layer), "application/vnd.docker.image.rootfs.diff.tar.gzip");
    }
    // Packed otherwise, but the same image: its tars, and with them its configuration, are equal.
    assert_eq!(pushed["config"]["digest"], other["config"]["digest"]);

    let meta = read(&home.path("meta"));
    assert_eq!(meta["image.name"], format!("{docker}:1"));
    assert_eq!(meta["containerimage.config.digest"], other["config"]["digest"]);
    assert_eq!(std::fs::read_to_string(home.path("iid")).unwrap(), other["config"]["digest"].as_str().unwrap());
    assert_eq!(meta["containerimage.descriptor"]["digest"], meta["containerimage.digest"]);
    // What is not to be kept is not kept.
    home.run(["inspect", &format!("{plain}:1")]).ok();
    home.run(["inspect", &format!("{docker}:1")]).fails(1);

    let digests: Vec<Value> = ["oci-archive:a.tar", "oci:lay"]
        .into_iter()
        .map(|place| {
            let mut command = Command::new("skopeo");
            finish(command.args(["inspect", "--raw", place]).current_dir(home.path(""))).ok().json().remove(0)
        })
        .collect();
    assert_eq!(digests[0], digests[1]);
    assert_eq!(digests[0]["layers"], pushed["layers"]);
}

/// A folder keeps the images of others, and a name in it means what was written last.
#[test]
fn a_layout_is_added_to() {
    let home = Home::new();
    let output = |dest: &str| format!("type=oci,tar=false,dest={dest}");
    build(&home, PLAIN, &["-t", "one", "-o", &output("lay")]).ok();
    let before = read(&home.path("lay/index.json"));
    let layer = home.path("lay/blobs/sha256");
    let mtimes = |folder: &Path| -> std::collections::BTreeMap<_, _> {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
        entries.map(|entry| (entry.file_name(), entry.metadata().unwrap().modified().unwrap())).collect()
    };
    let old = mtimes(&layer);
    build(&home, "FROM busybox\nLABEL a=b\n", &["-t", "two", "-o", &output("lay")]).ok();
    build(&home, "FROM busybox\nLABEL a=c\n", &["-t", "two", "-o", &output("lay")]).ok();
    let after = read(&home.path("lay/index.json"));
    let names: Vec<&Value> =
        after["manifests"].as_array().unwrap().iter().map(|entry| &entry["annotations"]["io.containerd.image.name"]).collect();
    assert_eq!(names, ["docker.io/library/one:latest", "docker.io/library/two:latest"]);
    assert_eq!(after["manifests"][0], before["manifests"][0]);
    let new = mtimes(&layer);
    assert!(old.iter().all(|(name, time)| new.get(name) == Some(time)), "blobs that were there are not written again");
    assert!(!new.keys().any(|name| name.to_string_lossy().starts_with('.')), "{new:?}");
}

const CROSS: &str = "FROM --platform=$BUILDPLATFORM multiarch AS tool\nRUN echo once > /once\n\
                     FROM multiarch\nARG TARGETARCH\nCOPY --from=tool /once /\nCOPY Dockerfile /$TARGETARCH\n";

/// One build, an index in the order of the flag; what both need is done once; the store keeps it all.
#[test]
fn several_platforms_in_one_build() {
    let Some(home) = Home::in_mode("several_platforms_in_one_build") else { return };
    let host = lab::registry().host();
    let name = format!("{host}/outputs/multi:1");
    let annotations = ["--annotation", "index:a=b", "--annotation", "manifest-descriptor[linux/arm64]:c=d"];
    let args = ["--platform", "linux/arm64,linux/amd64", "-t", &name, "--push", "--metadata-file", "meta", "--iidfile", "iid"];
    let done = build(&home, CROSS, &[&args[..], &annotations].concat()).ok();
    done.says(&[
        "[linux/arm64 stage-1 3/3] COPY Dockerfile /arm64",
        "[linux/amd64 stage-1 3/3]",
        "[linux/amd64->arm64 tool 2/2]",
    ]);
    let index = document(host, "outputs/multi", "1");
    assert_eq!(platforms(&index), ["linux/arm64", "linux/amd64"]);
    assert_eq!((&index["annotations"], &index["manifests"][0]["annotations"]), (&json!({"a": "b"}), &json!({"c": "d"})));
    assert!(index["manifests"][1]["annotations"].is_null());
    let meta = read(&home.path("meta"));
    assert!(meta["containerimage.config.digest"].is_null(), "{meta:#}");
    assert_eq!(meta["containerimage.descriptor"]["mediaType"], index["mediaType"]);
    assert_eq!(meta["containerimage.digest"].as_str().unwrap(), std::fs::read_to_string(home.path("iid")).unwrap());
    // Layers that both have are one.
    let layers = |at: usize| {
        document(host, "outputs/multi", index["manifests"][at]["digest"].as_str().unwrap())["layers"].as_array().unwrap().clone()
    };
    let (arm, amd) = (layers(0), layers(1));
    assert_eq!(arm[1]["digest"], amd[1]["digest"], "what the tool made is the same");
    assert_ne!(arm[0]["digest"], amd[0]["digest"]);

    // The store: one name, the image for this machine unless another is named, and a base for either.
    let image = |platform: &[&str]| home.run([&["inspect"], platform, &[name.as_str()]].concat()).ok().json().remove(0);
    assert_eq!(image(&[])["Architecture"], "amd64");
    assert_eq!(image(&["--platform", "linux/arm64"])["Architecture"], "arm64");
    assert_eq!(image(&[])["Descriptor"]["digest"], meta["containerimage.digest"]);
    home.run(["inspect", "--platform", "linux/s390x", &name]).fails(4).says(&["linux/arm64, linux/amd64"]);
    home.run(["prune", "-f", "--all"]).ok();
    let child = format!("FROM {name}\nARG TARGETARCH\nCOPY --from={name} /$TARGETARCH /seen\n");
    build(&home, &child, &["--platform", "linux/arm64,linux/amd64", "-t", "child"]).ok();

    // Through an archive, and back to a registry: the same bytes.
    home.run(["save", "--format", "oci", "-o", "all.tar", &name]).ok();
    home.run(["save", "-o", "one.tar", "--platform", "linux/arm64", &name]).ok();
    let other = Home::new();
    other.run(["load", "-i", home.path("all.tar").to_str().unwrap()]).ok();
    let again = format!("{host}/outputs/again:1");
    other.run(["tag", &name, &again]).ok();
    other.run(["push", &again]).ok();
    assert_eq!(document(host, "outputs/again", "1"), index);
    other.run(["push", "--platform", "linux/arm64", &again]).ok();
    assert_eq!(document(host, "outputs/again", "1")["config"]["digest"], image(&["--platform", "linux/arm64"])["Id"]);
    // By way of a pull.
    let third = Home::new();
    third.run(["pull", "--all-platforms", &name]).ok();
    let copy = format!("{host}/outputs/copy:1");
    third.run(["tag", &name, &copy]).ok();
    third.run(["push", &copy]).ok();
    assert_eq!(document(host, "outputs/copy", "1"), index);
    third.run(["rmi", &name, &copy]).ok();
    // What others make of it.
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["copy", "-q", "--all", "oci-archive:all.tar", "dir:theirs"]).current_dir(home.path(""));
    finish(&mut skopeo).ok();
    build(&home, PLAIN, &["--platform", "linux/arm64,linux/amd64", "-o", "type=docker,dest=x.tar"])
        .fails(125)
        .says(&["docker exporter does not currently support exporting manifest lists"]);
    // One platform fails, and with it the build.
    let broken = "FROM multiarch\nARG TARGETARCH\nCOPY Dockerfile /$TARGETARCH/\nCOPY --from=multiarch /none-$TARGETARCH /\n";
    build(&home, broken, &["--platform", "linux/arm64,linux/amd64"]).fails(1).says(&["/none-"]);
}

/// Each part of a matrix pushes by digest what it built; then the parts become one name, across repositories and registries.
#[test]
fn a_matrix_is_joined() {
    let (host, home) = (lab::registry().host(), Home::new());
    let far = Registry::start(&RegistryOptions::default());
    let places = [format!("{host}/matrix/app"), format!("{host}/matrix/other"), format!("{}/app", far.host())];
    let mut digests = Vec::new();
    for (place, platform) in places.iter().zip(["linux/amd64", "linux/arm64", "linux/arm64"]) {
        let output = format!("type=image,name={place},push-by-digest=true,name-canonical=true,push=true");
        let line = format!("FROM multiarch\nCOPY Dockerfile /\nLABEL place={place}\n");
        build(&home, &line, &["--platform", platform, "-o", &output, "--metadata-file", "meta"]).ok();
        let digest = read(&home.path("meta"))["containerimage.digest"].as_str().unwrap().to_owned();
        home.run(["inspect", &format!("{place}@{digest}")]).ok();
        digests.push(digest);
    }
    let tags = reqwest::blocking::get(format!("http://{host}/v2/matrix/app/tags/list")).unwrap().status();
    assert_eq!(tags.as_u16(), 404, "nothing has a tag yet");

    let joiner = Home::new();
    let target = format!("{host}/matrix/app:1");
    let parts: Vec<String> = places.iter().zip(&digests).map(|(place, digest)| format!("{place}@{digest}")).collect();
    let create = |args: &[&str]| joiner.run([&["manifest", "create", "--progress", "plain"], args].concat());
    let dry = create(&["--dry-run", &target, &parts[0], &parts[1]]).ok().json().remove(0);
    create(&[&target, &parts[0], &parts[1], "--annotation", "index:a=b"]).ok();
    let index = document(host, "matrix/app", "1");
    assert_eq!(index["manifests"], dry["manifests"]);
    assert_eq!(
        (platforms(&index), &index["annotations"]),
        (vec!["linux/amd64".into(), "linux/arm64".into()], &json!({"a": "b"}))
    );
    let requests = lab::registry().requests("matrix/app");
    let from_there = requests.iter().filter(|r| r.contains("from=matrix") && r.ends_with(" 201")).count();
    assert!(from_there >= 2, "what the other repository has is linked: {requests:#?}");

    // From another registry: copied, and the new arm64 takes the place of the old one.
    create(&["--amend", &target, &parts[2]]).ok();
    let index = document(host, "matrix/app", "1");
    let found: Vec<&str> = index["manifests"].as_array().unwrap().iter().map(|m| m["digest"].as_str().unwrap()).collect();
    assert_eq!(found, [digests[0].as_str(), digests[2].as_str()]);
    // A bare digest is of the target's repository; several names; one platform only.
    let (two, three) = (format!("{host}/matrix/app:2"), format!("{host}/matrix/third:3"));
    create(&["-t", &two, "-t", &three, "--platform", "linux/arm64", &target]).ok();
    for (repository, tag) in [("matrix/app", "2"), ("matrix/third", "3")] {
        assert_eq!(platforms(&document(host, repository, tag)), ["linux/arm64"]);
    }
    create(&["--append", &two, &digests[0]]).ok();
    assert_eq!(platforms(&document(host, "matrix/app", "2")), ["linux/arm64", "linux/amd64"]);
    // The metadata of a build says it all.
    create(&["-f", home.path("meta").to_str().unwrap(), "-t", &format!("{host}/matrix/app:4"), "--prefer-index=false"]).ok();
    assert_eq!(document(host, "matrix/app", "4")["mediaType"], "application/vnd.oci.image.manifest.v1+json");
    // From the store.
    joiner.build("local", "FROM multiarch\nLABEL local=1\n").ok();
    create(&[&format!("{host}/matrix/app:5"), "local", &parts[1]]).ok();
    assert_eq!(platforms(&document(host, "matrix/app", "5")), ["linux/amd64", "linux/arm64"]);

    let shown = joiner.run(["manifest", "inspect", &target]).ok().stdout;
    for text in ["MediaType: application/vnd.oci.image.index.v1+json", "Platform:    linux/arm64", &digests[2]] {
        assert!(shown.contains(text), "{shown}");
    }
    let raw = joiner.run(["manifest", "inspect", "--raw", &target]).ok().json().remove(0);
    assert_eq!(raw, index);
    let images = joiner.run(["manifest", "inspect", "--format", "{{json .Image}}", &target]).ok().json().remove(0);
    assert_eq!(images["linux/arm64"]["config"]["Labels"]["place"], places[2]);
    // Others read it.
    for arch in ["amd64", "arm64"] {
        let mut skopeo = Command::new("skopeo");
        skopeo.args(["--override-arch", arch, "inspect", "--tls-verify=false", &format!("docker://{target}")]);
        assert_eq!(finish(&mut skopeo).ok().json()[0]["Architecture"], arch);
    }
    if let Ok(dockerd) = lab::dockerd() {
        finish(dockerd.docker().args(["pull", "-q", &target])).ok();
        let found = finish(dockerd.docker().args(["image", "inspect", "-f", "{{.Id}}", &target])).ok().stdout;
        let own = document(host, "matrix/app", &digests[0])["config"]["digest"].as_str().unwrap().to_owned();
        assert_eq!(found.trim(), own);
    }
    let image = Home::new();
    image.build("child", &format!("FROM {target}\nRUN test -f /Dockerfile\n")).ok();

    create(&[&target, &format!("{host}/matrix/none:1")]).fails(4);
    create(&[&target, &parts[1], &format!("{host}/matrix/app@sha256:{}", "0".repeat(64))]).fails(4);
    assert_eq!(document(host, "matrix/app", "1"), raw, "what failed changed nothing");
    create(&["--platform", "linux/s390x", &target, &parts[0]]).fails(4).says(&["no image for linux/s390x"]);
    create(&["--append", &format!("{host}/matrix/app:none"), &parts[0]]).fails(4);
    create(&[&target]).fails(125).says(&["there is nothing to join"]);
}

/// F19: links between repositories need tokens for both, and those that a join was given run out on the way like any others.
#[test]
fn a_matrix_of_private_repositories_is_joined() {
    if !needs("outputs::a_matrix_of_private_repositories_is_joined", "htpasswd") {
        return;
    }
    let registry = Registry::start(&RegistryOptions { auth: Some("kiln:word"), token: true, ..RegistryOptions::default() });
    let (host, home) = (registry.host(), Home::new());
    home.run_with_input(["login", "--username", "kiln", "--password-stdin", host], "word\n").ok();
    let mut parts = Vec::new();
    for (place, platform) in [("private/a", "linux/amd64"), ("private/b", "linux/arm64")] {
        let output = format!("type=image,name={host}/{place},push-by-digest=true,push=true,store=false");
        let line = format!("FROM multiarch\nLABEL place={place}\n");
        build(&home, &line, &["--platform", platform, "-o", &output, "--metadata-file", "meta"]).ok();
        parts.push(format!("{host}/{place}@{}", read(&home.path("meta"))["containerimage.digest"].as_str().unwrap()));
    }
    let target = format!("{host}/private/all:1");
    home.run(["manifest", "create", &target, &parts[0], &parts[1]]).ok();
    let linked = registry.requests("private/all").iter().filter(|r| r.contains("mount=") && r.ends_with(" 201")).count();
    assert!(linked >= 4, "{:#?}", registry.requests("private/all"));
    let index = home.run(["manifest", "inspect", "--raw", &target]).ok().json().remove(0);
    assert_eq!(platforms(&index), ["linux/amd64", "linux/arm64"]);
    home.run(["logout", host]).ok();
    home.run(["manifest", "create", &target, &parts[0]]).fails(4);
}

/// What one output trusts no other does.
#[test]
fn an_output_may_be_insecure() {
    let registry = Registry::start(&RegistryOptions { tls: true, ..RegistryOptions::default() });
    let home = Home::new();
    let output = format!("type=image,name={}/insecure/app:1,push=true", registry.host());
    let insecure = format!("{output},registry.insecure=true");
    build(&home, PLAIN, &["-o", &output]).fails(4);
    build(&home, PLAIN, &["-o", &insecure]).ok();
    build(&home, PLAIN, &["-o", &insecure, "-o", &output]).fails(4);
}

#[test]
fn an_image_without_a_name_is_called_by_its_digest() {
    let home = Home::new();
    build(&home, PLAIN, &["-o", "type=image,dangling-name-prefix=nobody/app,unpack=true", "--metadata-file", "meta"]).ok();
    let digest = read(&home.path("meta"))["containerimage.digest"].as_str().unwrap().to_owned();
    let named = home.run(["inspect", "--format", "{{json .RepoDigests}}", &format!("nobody/app@{digest}")]).ok().stdout;
    assert!(named.contains(&format!("nobody/app@{digest}")), "{named}");
    // One that has a name keeps it.
    build(&home, PLAIN, &["-o", "type=image,name=some/app:1,dangling-name-prefix=nobody/other,danging-name-empty-only=true"])
        .ok();
    let all = home.run(["images", "--digests", "--format", "{{.Repository}}"]).ok().stdout;
    assert!(all.contains("some/app") && !all.contains("nobody/other"), "{all}");
}

#[test]
fn layers_that_may_not_be_given_on_stay_where_they_are() {
    let home = Home::new();
    build(&home, PLAIN, &["-o", "type=oci,tar=false,dest=base,name=base:1"]).ok();
    let layout = home.path("base");
    // The base says that its first layer is not for everybody, and where it can be had.
    let put = |value: &Value| {
        let bytes = serde_json::to_vec(value).unwrap();
        let digest = kiln_oci::digest::Digest::of(&bytes).to_string();
        std::fs::write(layout.join("blobs/sha256").join(digest.trim_start_matches("sha256:")), &bytes).unwrap();
        (digest, bytes.len())
    };
    let mut index = read(&layout.join("index.json"));
    let blob = |digest: &Value| read(&layout.join("blobs").join(digest.as_str().unwrap().replace(':', "/")));
    let mut manifest = blob(&index["manifests"][0]["digest"]);
    let kept = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
    manifest["layers"][0]["mediaType"] = json!(kept);
    manifest["layers"][0]["urls"] = json!(["https://vendor.invalid/layer"]);
    let (digest, size) = put(&manifest);
    index["manifests"][0]["digest"] = json!(digest);
    index["manifests"][0]["size"] = json!(size);
    std::fs::write(layout.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
    let context = format!("--build-context=base=oci-layout://{}:1", layout.display());
    let (free, own) = ("type=oci,tar=false,dest=free", "type=oci,tar=false,dest=own,prefer-nondist-layers=true");
    // A store that knows the layer already, as one for everybody, would go on calling it so.
    let home = Home::new();
    build(&home, "FROM base\nCOPY Dockerfile /again\n", &[&context, "-o", free, "-o", own]).ok();
    for (folder, kind, urls) in [("free", "application/vnd.oci.image.layer.v1.tar+gzip", false), ("own", kept, true)] {
        let at = home.path(folder);
        let index = read(&at.join("index.json"));
        let digest = index["manifests"][0]["digest"].as_str().unwrap().replace(':', "/");
        let layers = read(&at.join("blobs").join(digest))["layers"].clone();
        assert_eq!(layers[0]["mediaType"], kind, "{folder}: {layers:#}");
        assert_eq!(layers[0]["urls"].is_array(), urls, "{folder}: {layers:#}");
        assert_eq!(layers[2]["mediaType"], "application/vnd.oci.image.layer.v1.tar+gzip", "{folder}: {layers:#}");
    }
}

/// Each output is as old as it asks to be.
#[test]
fn an_output_has_a_time_of_its_own() {
    let home = Home::new();
    let own = "source-date-epoch=86400";
    let outputs = [
        "type=oci,dest=build.tar".to_owned(),
        format!("type=oci,dest=own.tar,attestation-inline=true,rewrite-timestamp=true,{own}"),
        format!("type=tar,dest=files.tar,{own}"),
    ];
    let args: Vec<&str> = outputs.iter().flat_map(|output| ["-o", output.as_str()]).collect();
    build(&home, PLAIN, &[&args[..], &["--build-arg", "SOURCE_DATE_EPOCH=1000000000"]].concat()).ok();
    for (file, created) in [("build.tar", "2001-09-09T01:46:40Z"), ("own.tar", "1970-01-02T00:00:00Z")] {
        let image = crate::support::archive::Image::read(&home.path(file)).unwrap();
        assert_eq!(image.config["created"], created, "{file}");
        let history = image.config["history"].as_array().unwrap();
        assert_eq!(history.last().unwrap()["created"], created, "{file}");
        std::fs::write(home.path("layer.tar"), image.layers.last().unwrap()).unwrap();
        let times = listed(&home, "layer.tar");
        assert_eq!(file == "own.tar", times.lines().all(|line| line.contains(" 1970-01-02 00:00:00 ")), "{file}: {times}");
    }
    let times = listed(&home, "files.tar");
    assert!(times.lines().count() > 5 && times.lines().all(|line| line.contains(" 1970-01-02 00:00:00 ")), "{times}");
}

fn listed(home: &Home, tar: &str) -> String {
    finish(Command::new("tar").args(["--utc", "--full-time", "-tvf"]).arg(home.path(tar))).ok().stdout
}
