//! Hides where the descriptors of layers stand when there is no manifest around a document (in a bucket, in GitHub's cache): in the
//! document itself, beside each of its layers.

use std::collections::BTreeMap;

use kiln_oci::descriptor::Descriptor;
use kiln_oci::digest::Digest;
use serde_json::{Map, Value, json};

use crate::error::Error;

/// A layer's annotation with the digest of its tar.
pub(crate) const UNCOMPRESSED: &str = "containerd.io/uncompressed";
/// A layer's annotation with the time at which it was made.
pub(crate) const CREATED_AT: &str = "buildkit/createdat";

/// The document with what is known of its layers. What it says of them itself stays as it is, to the byte if that is all: it may be
/// sealed.
pub(super) fn write(config: &[u8], layers: &[Descriptor]) -> Result<Vec<u8>, Error> {
    let mut document: Value = serde_json::from_slice(config).map_err(Error::internal("read a cache's document"))?;
    let known: BTreeMap<String, &Descriptor> = layers.iter().map(|layer| (layer.digest.to_string(), layer)).collect();
    let mut changed = false;
    for listed in document.get_mut("layers").and_then(Value::as_array_mut).into_iter().flatten() {
        let layer = listed.get("blob").and_then(Value::as_str).and_then(|blob| known.get(blob));
        if let (Some(layer), Some(listed)) = (layer, listed.as_object_mut())
            && !listed.contains_key("annotations")
        {
            let mut about = Map::new();
            about.insert("mediaType".to_owned(), json!(layer.media_type));
            about.extend(layer.annotations.get(UNCOMPRESSED).map(|diff_id| ("diffID".to_owned(), json!(diff_id))));
            about.insert("size".to_owned(), json!(layer.size));
            about.extend(layer.annotations.get(CREATED_AT).map(|created| ("createdAt".to_owned(), json!(created))));
            listed.insert("annotations".to_owned(), Value::Object(about));
            changed = true;
        }
    }
    match changed {
        true => serde_json::to_vec(&document).map_err(Error::internal("write a cache's document")),
        false => Ok(config.to_vec()),
    }
}

/// The descriptors of the layers that a document lists; those of which it doesn't say enough are left out.
pub(super) fn read(config: &[u8]) -> Result<Vec<Descriptor>, serde_json::Error> {
    let document: Value = serde_json::from_slice(config)?;
    let listed = document.get("layers").and_then(Value::as_array).into_iter().flatten();
    Ok(listed.filter_map(descriptor).collect())
}

fn descriptor(listed: &Value) -> Option<Descriptor> {
    let about = listed.get("annotations")?;
    let digest = Digest::parse(listed.get("blob")?.as_str()?).ok()?;
    let mut layer = Descriptor::new(about.get("mediaType")?.as_str()?, digest, about.get("size")?.as_u64()?);
    layer.annotations.insert(UNCOMPRESSED.to_owned(), about.get("diffID")?.as_str()?.to_owned());
    if let Some(created) = about.get("createdAt").and_then(Value::as_str).filter(|time| !time.starts_with("0001-")) {
        layer.annotations.insert(CREATED_AT.to_owned(), created.to_owned());
    }
    Some(layer)
}

#[cfg(test)]
mod tests {
    use kiln_oci::descriptor::Descriptor;
    use kiln_oci::media_type::OCI_LAYER_GZIP;

    #[test]
    fn layers_come_back() {
        let mut layer = Descriptor::of(OCI_LAYER_GZIP, b"x");
        layer.annotations.insert(super::UNCOMPRESSED.to_owned(), "sha256:00".to_owned());
        let mut dated = Descriptor::of(OCI_LAYER_GZIP, b"y");
        dated.annotations.clone_from(&layer.annotations);
        dated.annotations.insert(super::CREATED_AT.to_owned(), "2026-01-02T03:04:05.6Z".to_owned());
        let config = format!(
            r#"{{"layers":[{{"blob":"{}","parent":-1}},{{"blob":"{}"}},{{"blob":"sha256:unknown"}}],"records":[],"more":1}}"#,
            layer.digest, dated.digest
        );
        let written = super::write(config.as_bytes(), &[dated.clone(), layer.clone()]).unwrap();
        assert_eq!(super::read(&written).unwrap(), [layer, dated]);
        assert!(String::from_utf8(written.clone()).unwrap().ends_with(r#","records":[],"more":1}"#));
        let again = [b" ", &written[..]].concat();
        assert_eq!(super::write(&again, &super::read(&again).unwrap()).unwrap(), again, "not a byte of what is complete changes");
        assert_eq!(super::read(b"{}").unwrap(), []);
        assert!(super::read(b"[").is_err());
    }
}
