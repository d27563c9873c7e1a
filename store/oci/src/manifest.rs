//! Hides the JSON shape of manifests and indexes; `Raw` keeps the exact bytes that a digest was computed over.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::descriptor::{Descriptor, null_is_empty};
use crate::digest::Digest;

/// A document with the exact bytes that it was read from or will be stored as.
///
/// Parsing and writing JSON again changes bytes, and with them the digest; so whoever needs both holds both.
#[derive(Debug, Clone, PartialEq)]
pub struct Raw<T> {
    bytes: Vec<u8>,
    value: T,
}

impl<T> Raw<T> {
    /// The exact bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What they say.
    pub fn value(&self) -> &T {
        &self.value
    }

    /// The digest of the exact bytes.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.bytes)
    }

    /// Gives up the pair.
    pub fn into_parts(self) -> (Vec<u8>, T) {
        (self.bytes, self.value)
    }
}

impl<T: DeserializeOwned> Raw<T> {
    /// Parses `bytes`, which are kept as they are.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, serde_json::Error> {
        let value = serde_json::from_slice(&bytes)?;
        Ok(Self { bytes, value })
    }
}

impl<T: Serialize> Raw<T> {
    /// Writes `value` as compact JSON.
    pub fn write(value: T) -> Result<Self, serde_json::Error> {
        let bytes = serde_json::to_vec(&value)?;
        Ok(Self { bytes, value })
    }
}

/// An image manifest (image-spec manifest.md; Docker's manifest v2 schema 2 has the same shape).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// The media type of this document; optional in OCI, required by Docker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The image configuration.
    pub config: Descriptor,
    /// The layers, the lowest first.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub layers: Vec<Descriptor>,
    /// Arbitrary metadata.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Keys that this version doesn't know (`subject`, `artifactType`), kept.
    #[serde(flatten)]
    pub extra: serde_json::Map<String, serde_json::Value>,
}

/// An image index (image-spec image-index.md; Docker's manifest list has the same shape).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// The media type of this document; optional in OCI, required by Docker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The manifests, each with its platform.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub manifests: Vec<Descriptor>,
    /// Arbitrary metadata.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Keys that this version doesn't know, kept.
    #[serde(flatten)]
    pub extra: serde_json::Map<String, serde_json::Value>,
}
