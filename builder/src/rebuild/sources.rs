//! Hides where an image says what it was built from: the SLSA provenance beside it, in either version.

use std::collections::BTreeMap;

use kiln_oci::descriptor::Descriptor;
use kiln_oci::manifest::{Index, Manifest, Raw};
use kiln_oci::media_type;
use kiln_oci::platform::Platform;
use kiln_oci::reference::Reference;
use kiln_registry_client::Repository;
use serde_json::Value;

use crate::bases::{self, MAX_DOCUMENT};
use crate::engine::Engine;
use crate::error::{Error, ImageError};
use crate::ops::git::{GitAddress, Origin};
use crate::ops::http::percent_decode;
use crate::pins::Sort;

/// How an attestation names itself, and what it is about (BuildKit, "Image attestation storage").
const KIND: (&str, &str) = ("vnd.docker.reference.type", "attestation-manifest");
const ABOUT: &str = "vnd.docker.reference.digest";
const PREDICATE: &str = "in-toto.io/predicate-type";
const PROVENANCE: &str = "https://slsa.dev/provenance/";

/// What an image was built from, as its provenance says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sources {
    /// The address of the build context; `None` if it was on some machine only.
    pub context: Option<String>,
    /// The Dockerfile's path in it.
    pub dockerfile: Option<String>,
    /// What the build was told, in the words of BuildKit's frontend: `build-arg:NAME`, `target`, …
    pub args: BTreeMap<String, String>,
    /// What names stood for then.
    pub pins: Vec<(Sort, String, String)>,
}

/// Reads the provenance of an image; `None` if it has none.
///
/// # Errors
/// The image, or what is said beside it, can't be had.
pub fn sources(engine: &Engine, image: &str, platform: &Platform) -> Result<Option<Sources>, Error> {
    let invalid = |reason: &str| Error::Image(ImageError::Invalid { name: image.to_owned(), reason: reason.to_owned() });
    let Some((index, reference)) = index(engine, image)? else { return Ok(None) };
    let chosen = bases::choose(&index, platform).map(|entry| entry.digest.to_string());
    let said = index.manifests.iter().find(|entry| {
        let note = |key: &str| entry.annotations.get(key).map(String::as_str);
        note(KIND.0) == Some(KIND.1) && note(ABOUT) == chosen.as_deref()
    });
    let Some(said) = said else { return Ok(None) };
    let bytes = document(engine, reference.as_ref(), said)?;
    let manifest = Raw::<Manifest>::parse(bytes).map_err(|_| invalid("the manifest of its attestations can't be read"))?;
    let is_provenance = |blob: &&Descriptor| blob.annotations.get(PREDICATE).is_some_and(|kind| kind.starts_with(PROVENANCE));
    let Some(blob) = manifest.value().layers.iter().find(is_provenance) else { return Ok(None) };
    if blob.size > MAX_DOCUMENT {
        return Err(invalid("its provenance is too large"));
    }
    if let Some(reference) = &reference {
        bases::fetch_blob(engine, &Repository::from(reference), blob, &|_| {})?;
    }
    let bytes = engine.store.blobs().read(&blob.digest, MAX_DOCUMENT)?;
    let statement: Value = serde_json::from_slice(&bytes).map_err(|_| invalid("its provenance is no JSON"))?;
    Ok(Some(read(&statement["predicate"])))
}

/// The index behind a name, and where its parts can be fetched from.
fn index(engine: &Engine, image: &str) -> Result<Option<(Index, Option<Reference>)>, Error> {
    let parse = |bytes: Vec<u8>| Raw::<Index>::parse(bytes).ok().map(|index| index.value().clone());
    if let Some(record) = engine.store.images().find(image)? {
        let Some(descriptor) = record.manifest.filter(|descriptor| media_type::is_index(&descriptor.media_type)) else {
            return Ok(None);
        };
        let bytes = document(engine, record.name.as_ref(), &descriptor)?;
        return Ok(parse(bytes).map(|index| (index, record.name)));
    }
    let missing = |_| Error::Image(ImageError::NotFound { name: image.to_owned() });
    let reference = Reference::parse(image).map_err(missing)?;
    let (descriptor, bytes) = engine.registry.fetch_manifest(&reference)?;
    Ok(parse(bytes).filter(|_| media_type::is_index(&descriptor.media_type)).map(|index| (index, Some(reference))))
}

/// A manifest or index, of the store or else of the registry.
fn document(engine: &Engine, reference: Option<&Reference>, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
    match reference.filter(|_| !engine.store.blobs().has(&descriptor.digest)) {
        Some(reference) => Ok(engine.registry.fetch_manifest(&reference.with_digest(descriptor.digest))?.1),
        None => Ok(engine.store.blobs().read(&descriptor.digest, MAX_DOCUMENT)?),
    }
}

/// What a predicate says: SLSA v1, or else v0.2.
fn read(predicate: &Value) -> Sources {
    let definition = &predicate["buildDefinition"];
    let (source, path, args, materials) = match definition.is_object() {
        true => {
            let outside = &definition["externalParameters"];
            (&outside["configSource"], "path", &outside["request"]["args"], &definition["resolvedDependencies"])
        }
        false => {
            let told = &predicate["invocation"];
            (&told["configSource"], "entryPoint", &told["parameters"]["args"], &predicate["materials"])
        }
    };
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let args = args.as_object().into_iter().flatten();
    Sources {
        context: text(&source["uri"]),
        dockerfile: text(&source[path]),
        args: args.filter_map(|(key, value)| Some((key.clone(), text(value)?))).collect(),
        pins: materials.as_array().into_iter().flatten().filter_map(pin).collect(),
    }
}

/// What a name stood for.
fn pin(material: &Value) -> Option<(Sort, String, String)> {
    let (uri, digest) = (material["uri"].as_str()?, &material["digest"]);
    if let Some(url) = uri.strip_prefix("pkg:docker/") {
        // `pkg:docker/NAME@TAG?platform=…`; what says its digest itself needs no pin.
        let (name, qualifiers) = url.split_once('?').unwrap_or((url, ""));
        if qualifiers.contains("digest=") {
            return None;
        }
        let (name, tag) = name.rsplit_once('@').unwrap_or((name, "latest"));
        let [name, tag] = [name, tag].map(|text| String::from_utf8_lossy(&percent_decode(text.as_bytes())).into_owned());
        let reference = Reference::parse(&format!("{name}:{tag}")).ok()?;
        return Some((Sort::Image, reference.to_string(), format!("sha256:{}", digest["sha256"].as_str()?)));
    }
    let commit = digest["sha1"].as_str().or_else(|| digest["sha256"].as_str()).filter(|_| GitAddress::is_meant(uri));
    if let Some(commit) = commit {
        // One that names a commit itself needs no pin either.
        GitAddress::parse(uri, Origin::CommandLine).ok()?;
        return Some((Sort::Git, uri.to_owned(), commit.to_owned()));
    }
    uri.contains("://").then_some(())?;
    Some((Sort::Url, uri.to_owned(), format!("sha256:{}", digest["sha256"].as_str()?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn both_versions_say_the_same() {
        let (hex, commit) = ("a".repeat(64), "b".repeat(40));
        let source = |path: &str| json!({ "uri": "https://h/r.git#main", "digest": { "sha1": commit }, path: "sub/Dockerfile" });
        let materials = json!([
            { "uri": "pkg:docker/busybox@latest?platform=linux%2Famd64", "digest": { "sha256": hex } },
            { "uri": "pkg:docker/127.0.0.1%3A5000/a/b@1.2?platform=linux%2Famd64", "digest": { "sha256": hex } },
            { "uri": "pkg:docker/x?digest=sha256:00&platform=linux%2Famd64", "digest": { "sha256": hex } },
            { "uri": "https://h/r.git#main", "digest": { "sha1": commit } },
            { "uri": "https://h/f", "digest": { "sha256": hex } },
        ]);
        let args = json!({ "build-arg:A": "b", "target": "t" });
        let v1 = json!({ "buildDefinition": {
            "externalParameters": { "configSource": source("path"), "request": { "args": args } },
            "resolvedDependencies": materials,
        } });
        let v02 = json!({
            "invocation": { "configSource": source("entryPoint"), "parameters": { "args": args } },
            "materials": materials,
        });
        let found = read(&v1);
        assert_eq!(found, read(&v02));
        assert_eq!(found.context.as_deref(), Some("https://h/r.git#main"));
        assert_eq!((found.dockerfile.as_deref(), found.args.len()), (Some("sub/Dockerfile"), 2));
        let digest = format!("sha256:{hex}");
        let want = [
            (Sort::Image, "docker.io/library/busybox:latest", &digest),
            (Sort::Image, "127.0.0.1:5000/a/b:1.2", &digest),
            (Sort::Git, "https://h/r.git#main", &commit),
            (Sort::Url, "https://h/f", &digest),
        ];
        assert_eq!(found.pins, want.map(|(sort, name, value)| (sort, name.to_owned(), value.clone())));
        assert_eq!(read(&json!({})), Sources::default());
    }
}
