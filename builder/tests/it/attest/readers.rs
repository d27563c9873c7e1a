//! An image with attestations is read by the programs of others, and by kiln itself; registries take it in both forms.

use std::process::Command;

use serde_json::{Value, json};

use crate::support::home::{Home, finish};
use crate::support::lab;
use crate::support::skip::needs;

fn document(url: &str) -> Value {
    let client = reqwest::blocking::Client::builder().no_proxy().build().unwrap();
    let accept = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json";
    let response = client.get(url).header("accept", accept).send().unwrap();
    assert!(response.status().is_success(), "{url}: {response:?}");
    response.json().unwrap()
}

#[test]
fn registries_others_and_kiln_read_an_attested_image() {
    let host = lab::registry().host();
    let home = Home::new();
    let context = home.context("c", "FROM busybox\nRUN --network=none echo attested > /note\nCMD [\"cat\", \"/note\"]\n");
    for (form, key) in [("plain", "false"), ("artifact", "true")] {
        let name = format!("{host}/attested/{form}:1");
        let output = format!("type=image,push=true,name={name},oci-artifact={key}");
        home.run(["build", "--provenance=mode=max", "--sbom", "-o", &output, context.to_str().unwrap()]).ok();
        let base = format!("http://{host}/v2/attested/{form}");
        let index = document(&format!("{base}/manifests/1"));
        let (image, attached) = (&index["manifests"][0], &index["manifests"][1]);
        assert_eq!(image["platform"], json!({ "os": "linux", "architecture": "amd64" }));
        assert_eq!(attached["platform"], json!({ "os": "unknown", "architecture": "unknown" }));
        assert_eq!(attached["annotations"]["vnd.docker.reference.digest"], image["digest"]);
        let manifest = document(&format!("{base}/manifests/{}", attached["digest"].as_str().unwrap()));
        let kinds: Vec<&Value> = manifest["layers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|layer| &layer["annotations"]["in-toto.io/predicate-type"])
            .collect();
        assert_eq!(kinds, ["https://spdx.dev/Document", "https://slsa.dev/provenance/v1"]);
        let statement = document(&format!("{base}/blobs/{}", manifest["layers"][1]["digest"].as_str().unwrap()));
        let hex = image["digest"].as_str().unwrap().trim_start_matches("sha256:");
        let subject = format!("pkg:docker/{host}/attested/{form}@1?platform=linux%2Famd64");
        assert_eq!(statement["subject"], json!([{ "name": subject, "digest": { "sha256": hex } }]));
        if form == "artifact" {
            // Docker's registry 2 has no list of what refers to an image; the tag is one.
            assert_eq!(manifest["subject"]["digest"], image["digest"]);
            let tag = document(&format!("{base}/manifests/sha256-{hex}"));
            assert_eq!(tag["manifests"][0]["digest"], attached["digest"]);
            assert_eq!(tag["manifests"][0]["artifactType"], "application/vnd.docker.attestation.manifest.v1+json");
        }

        // kiln: as a base, pulled, run, and pushed on with all that is attached.
        let other = Home::new();
        other.build("child", &format!("FROM {name}\nRUN --network=none grep attested /note\n")).ok();
        other.run(["pull", "--all-platforms", &name]).ok();
        assert_eq!(other.run(["run", &name]).ok().stdout, "attested\n");
        let onward = format!("{host}/attested/{form}-onward:1");
        other.run(["tag", &name, &onward]).ok();
        other.run(["push", &onward]).ok();
        assert_eq!(document(&format!("http://{host}/v2/attested/{form}-onward/manifests/1")), index);

        let test = "attest::readers";
        if needs(test, "skopeo") {
            let target = format!("docker://{name}");
            let told = finish(Command::new("skopeo").args(["inspect", "--tls-verify=false", &target])).ok().json();
            assert_eq!(told[0]["Layers"].as_array().map(Vec::len), Some(2));
            let layout = format!("oci:{}:x", home.path(&format!("layout-{form}")).display());
            finish(Command::new("skopeo").args(["copy", "-q", "--all", "--src-tls-verify=false", &target, &layout])).ok();
        }
        if needs(test, "podman") {
            let mut podman = Command::new("podman");
            podman.arg("--root").arg(home.path("podman")).arg("--runroot").arg(home.path("podman-run"));
            finish(podman.args(["--storage-driver", "vfs", "pull", "-q", "--tls-verify=false", &name])).ok();
        }
        if let Ok(docker) = lab::dockerd() {
            finish(docker.docker().args(["pull", "-q", &name])).ok();
            assert_eq!(finish(docker.docker().args(["image", "inspect", &name])).ok().json()[0]["Architecture"], "amd64");
            finish(docker.docker().args(["rmi", "-f", &name])).ok();
        }
    }
}

/// By hand and here: the client that shows attestations finds them.
#[test]
fn docker_shows_what_is_attached() {
    if std::env::var_os("KILN_TEST_FULL").is_none() {
        return crate::support::skip::skipped(
            "attest::readers::docker_shows_what_is_attached",
            "it takes 1.5 GB (KILN_TEST_FULL=1)",
        );
    }
    let docker = lab::newest_dockerd(true);
    let host = lab::registry().host();
    let home = Home::new();
    let name = format!("{host}/attested/shown:1");
    let context = home.context("c", "FROM busybox\nRUN --network=none echo attested > /note\n");
    home.run(["build", "--provenance=mode=max", "--sbom", "--push", "-t", &name, context.to_str().unwrap()]).ok();
    let inspect = |format: &str| {
        let shown = finish(docker.own_docker().args(["buildx", "imagetools", "inspect", &name, "--format", format])).ok();
        serde_json::from_str::<Value>(&shown.stdout).unwrap()
    };
    assert_eq!(inspect("{{json .Provenance}}")["SLSA"]["runDetails"]["metadata"]["buildkit_completeness"]["request"], true);
    assert_eq!(inspect("{{json .SBOM}}")["SPDX"]["spdxVersion"], "SPDX-2.3");
    finish(docker.docker().args(["pull", "-q", &name])).ok();
}
