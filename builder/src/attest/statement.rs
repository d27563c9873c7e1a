//! Hides how something that is said of an image is attached to it: an in-toto statement, a manifest around the statements, and how
//! an index tells of it (BuildKit's `docs/attestations/attestation-storage.md`).

use std::collections::BTreeMap;

use kiln_oci::descriptor::Descriptor;
use kiln_oci::digest::{DiffId, Digest};
use kiln_oci::manifest::Raw;
use kiln_oci::media_type;
use kiln_oci::platform::Platform;
use kiln_oci::reference::Reference;
use serde::Serialize;
use serde_json::{Value, json};

use super::purl;

/// The type of a layer that is a statement.
pub const STATEMENT: &str = "application/vnd.in-toto+json";
/// What is behind an attestation manifest that is an artifact of its own.
const ARTIFACT: &str = "application/vnd.docker.attestation.manifest.v1+json";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// Something that is said, before it is known of what.
#[derive(Debug, Clone, PartialEq)]
pub struct Predicate {
    /// The address that says how to read it.
    pub kind: String,
    /// What is said.
    pub value: Value,
    /// Its name among the files of an output that is no image.
    pub filename: String,
}

/// What something is said of: names, each with a digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Subject {
    /// A package URL or a path.
    pub name: String,
    /// Algorithm and hexadecimal digits.
    pub digest: BTreeMap<&'static str, String>,
}

impl Subject {
    /// Something with a digest.
    pub fn new(name: impl Into<String>, digest: &Digest) -> Self {
        Self { name: name.into(), digest: BTreeMap::from([("sha256", digest.hex())]) }
    }

    /// An image under each of its names. One without a name is still an image: `_` stands where there is nothing to tell.
    pub fn of_image(digest: &Digest, names: &[Reference], platform: &Platform) -> Vec<Self> {
        match names {
            [] => vec![Self::new("_", digest)],
            names => names.iter().map(|name| Self::new(purl::of_image("docker", name, platform), digest)).collect(),
        }
    }
}

/// The bytes of a statement.
pub fn statement(predicate: &Predicate, subjects: &[Subject]) -> Vec<u8> {
    let statement = json!({
        "_type": "https://in-toto.io/Statement/v0.1",
        "predicateType": predicate.kind,
        "subject": subjects,
        "predicate": predicate.value,
    });
    statement.to_string().into_bytes()
}

/// All that is attached to one image.
#[derive(Debug, Clone)]
pub struct Attached {
    /// How the index names the manifest.
    pub descriptor: Descriptor,
    /// The manifest.
    pub manifest: Vec<u8>,
    /// What the manifest names: its configuration first, then the statements.
    pub blobs: Vec<(Descriptor, Vec<u8>)>,
}

/// Puts statements about the image behind `image` into a manifest: as an image of no platform, which every registry takes, or
/// (`artifact`) as an artifact that refers to it.
///
/// # Errors
/// None that a descriptor of this program can cause.
pub fn attach(
    predicates: &[Predicate],
    subjects: &[Subject],
    image: &Descriptor,
    artifact: bool,
) -> Result<Attached, serde_json::Error> {
    let mut layers = Vec::new();
    for predicate in predicates {
        let bytes = statement(predicate, subjects);
        let mut descriptor = Descriptor::of(STATEMENT, &bytes);
        descriptor.annotations.insert("in-toto.io/predicate-type".to_owned(), predicate.kind.clone());
        layers.push((descriptor, bytes));
    }
    let config = if artifact { b"{}".to_vec() } else { configuration(&layers)? };
    let mut named = Descriptor::of(if artifact { EMPTY } else { media_type::OCI_CONFIG }, &config);
    if artifact {
        // The specification's own: readers need not fetch two bytes.
        named.extra.insert("data".to_owned(), json!("e30="));
    }
    let mut manifest = serde_json::Map::new();
    manifest.insert("schemaVersion".to_owned(), json!(2));
    manifest.insert("mediaType".to_owned(), json!(media_type::OCI_MANIFEST));
    if artifact {
        manifest.insert("artifactType".to_owned(), json!(ARTIFACT));
    }
    manifest.insert("config".to_owned(), serde_json::to_value(&named)?);
    manifest.insert("layers".to_owned(), layers.iter().map(|(layer, _)| json!(layer)).collect());
    if artifact {
        let subject = Descriptor::new(&image.media_type, image.digest, image.size);
        manifest.insert("subject".to_owned(), serde_json::to_value(&subject)?);
    }
    let manifest = serde_json::to_vec(&manifest)?;
    let mut descriptor = Descriptor::of(media_type::OCI_MANIFEST, &manifest);
    descriptor.annotations.insert("vnd.docker.reference.digest".to_owned(), image.digest.to_string());
    descriptor.annotations.insert("vnd.docker.reference.type".to_owned(), "attestation-manifest".to_owned());
    descriptor.platform = Some(Platform::new("unknown", "unknown", None));
    let mut blobs = vec![(named, config)];
    blobs.extend(layers);
    Ok(Attached { descriptor, manifest, blobs })
}

/// The configuration of an image whose layers are statements. They aren't packed, so their digests are those of the layers too.
fn configuration(layers: &[(Descriptor, Vec<u8>)]) -> Result<Vec<u8>, serde_json::Error> {
    let diff_ids: Vec<DiffId> = layers.iter().map(|(layer, _)| DiffId::new(layer.digest)).collect();
    let config = json!({
        "architecture": "unknown",
        "os": "unknown",
        "config": {},
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    Raw::write(config).map(|raw| raw.into_parts().0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_are_those_of_buildkit() {
        let image = Descriptor::new(media_type::OCI_MANIFEST, Digest::of(b"image"), 5);
        let predicate = Predicate { kind: "https://x.test".to_owned(), value: json!({}), filename: String::new() };
        let subjects = Subject::of_image(&image.digest, &[], &Platform::host());
        for artifact in [false, true] {
            let made = attach(std::slice::from_ref(&predicate), &subjects, &image, artifact).unwrap();
            let manifest: Value = serde_json::from_slice(&made.manifest).unwrap();
            let keys: Vec<&str> = manifest.as_object().unwrap().keys().map(String::as_str).collect();
            // As recorded from BuildKit 0.25, in its order.
            let expected: &[&str] = match artifact {
                false => &["schemaVersion", "mediaType", "config", "layers"],
                true => &["schemaVersion", "mediaType", "artifactType", "config", "layers", "subject"],
            };
            assert_eq!(keys, expected);
            assert_eq!(manifest["layers"][0]["annotations"], json!({ "in-toto.io/predicate-type": "https://x.test" }));
            let (config, statement) = (&made.blobs[0].1, &made.blobs[1]);
            let digest = statement.0.digest;
            match artifact {
                false => assert_eq!(
                    String::from_utf8_lossy(config),
                    format!(
                        r#"{{"architecture":"unknown","os":"unknown","config":{{}},"rootfs":{{"type":"layers","diff_ids":["{digest}"]}}}}"#
                    )
                ),
                true => {
                    assert_eq!(manifest["config"]["data"], "e30=");
                    assert_eq!(manifest["config"]["size"], 2);
                    assert_eq!(manifest["subject"]["digest"], image.digest.to_string());
                }
            }
            let said: Value = serde_json::from_slice(&statement.1).unwrap();
            assert_eq!(said["subject"], json!([{ "name": "_", "digest": { "sha256": image.digest.hex() } }]));
            assert_eq!(made.descriptor.platform.as_ref().map(ToString::to_string).as_deref(), Some("unknown/unknown"));
        }
    }
}
