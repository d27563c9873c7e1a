//! Hides the JSON shape of an image configuration (image-spec config.md), with Docker's own keys and every unknown one kept.

use std::collections::BTreeMap;

use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::descriptor::null_is_empty;
use crate::digest::DiffId;
use crate::platform::Platform;

/// The configuration of an image: for which platform, how to run it, which layers, and how they came to be.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// The processor architecture, in Go's names.
    #[serde(default)]
    pub architecture: String,
    /// `v7` and the like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// The operating system, in Go's names.
    #[serde(default)]
    pub os: String,
    /// Windows' build number.
    #[serde(default, rename = "os.version", skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    /// When the image was made, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// Who made it (`MAINTAINER`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// How a container of it runs.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub config: ContainerConfig,
    /// Its layers.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub rootfs: RootFs,
    /// How they came to be.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_empty")]
    pub history: Vec<HistoryEntry>,
    /// Keys that this version doesn't know (`moby.buildkit.cache.v0`, `container_config`, …), kept.
    #[serde(flatten)]
    pub extra: serde_json::Map<String, serde_json::Value>,
}

impl ImageConfig {
    /// An image with no layers and nothing set.
    pub fn empty(platform: &Platform) -> Self {
        Self {
            architecture: platform.architecture.clone(),
            variant: platform.variant.clone(),
            os: platform.os.clone(),
            os_version: platform.os_version.clone(),
            ..Self::default()
        }
    }

    /// The platform that the image says it is for.
    pub fn platform(&self) -> Platform {
        let mut platform = Platform::new(&self.os, &self.architecture, self.variant.as_deref());
        platform.os_version.clone_from(&self.os_version);
        platform
    }
}

/// How a container of the image runs: `config` in the image configuration.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ContainerConfig {
    /// `USER`.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "null_is_empty")]
    pub user: String,
    /// `EXPOSE`, as `80/tcp`.
    #[serde(default, skip_serializing_if = "KeySet::is_empty", deserialize_with = "null_is_empty")]
    pub exposed_ports: KeySet,
    /// `ENV`, as `KEY=value`, in the order of first setting.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_empty")]
    pub env: Vec<String>,
    /// `ENTRYPOINT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// `CMD`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    /// `HEALTHCHECK`, Docker's own key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    /// Docker's own key; BuildKit writes true as soon as a file sets CMD or ENTRYPOINT.
    #[serde(default, skip_serializing_if = "std::ops::Not::not", deserialize_with = "null_is_empty")]
    pub args_escaped: bool,
    /// `VOLUME`.
    #[serde(default, skip_serializing_if = "KeySet::is_empty", deserialize_with = "null_is_empty")]
    pub volumes: KeySet,
    /// `WORKDIR`.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "null_is_empty")]
    pub working_dir: String,
    /// `LABEL`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_is_empty")]
    pub labels: BTreeMap<String, String>,
    /// `STOPSIGNAL`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// `ONBUILD`, Docker's own key.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_empty")]
    pub on_build: Vec<String>,
    /// `SHELL`, Docker's own key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shell: Option<Vec<String>>,
    /// Keys that this version doesn't know, kept.
    #[serde(flatten)]
    pub extra: serde_json::Map<String, serde_json::Value>,
}

/// A set that JSON spells as an object of empty objects (`{"80/tcp":{}}`), sorted as Go writes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeySet(pub std::collections::BTreeSet<String>);

impl KeySet {
    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a key; whether it is new.
    pub fn insert(&mut self, key: impl Into<String>) -> bool {
        self.0.insert(key.into())
    }

    /// The keys in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

impl Serialize for KeySet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for key in &self.0 {
            map.serialize_entry(key, &serde_json::Map::new())?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for KeySet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let map = BTreeMap::<String, serde::de::IgnoredAny>::deserialize(deserializer)?;
        Ok(Self(map.into_keys().collect()))
    }
}

/// `HEALTHCHECK`: durations in nanoseconds, 0 meaning "the runtime's default" (Docker image spec v1.2).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", …]` or `["CMD-SHELL", text]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_empty")]
    pub test: Vec<String>,
    /// Between two checks.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub interval: i64,
    /// For one check.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub timeout: i64,
    /// In which failures don't count.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub start_period: i64,
    /// Between two checks in the start period.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub start_interval: i64,
    /// Failures in a row that make the container unhealthy.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retries: i64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_zero(n: &i64) -> bool {
    *n == 0
}

/// The layers of an image, the lowest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RootFs {
    /// Always `layers`.
    #[serde(rename = "type", default = "layers")]
    pub kind: String,
    /// The digests of the uncompressed layers.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub diff_ids: Vec<DiffId>,
}

fn layers() -> String {
    "layers".to_owned()
}

impl Default for RootFs {
    fn default() -> Self {
        Self { kind: layers(), diff_ids: Vec::new() }
    }
}

/// One line of `docker history`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// When, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// The instruction.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "null_is_empty")]
    pub created_by: String,
    /// Who.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "null_is_empty")]
    pub author: String,
    /// `buildkit.dockerfile.v0` for what BuildKit's frontend (and kiln's) made.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "null_is_empty")]
    pub comment: String,
    /// Whether no layer stands for this entry.
    #[serde(default, skip_serializing_if = "std::ops::Not::not", deserialize_with = "null_is_empty")]
    pub empty_layer: bool,
    /// Keys that this version doesn't know, kept.
    #[serde(flatten)]
    pub extra: serde_json::Map<String, serde_json::Value>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_keys_and_unknown_keys_survive() {
        let text = r#"{"architecture":"amd64","os":"linux","config":{"ExposedPorts":{"80/tcp":{}},"Env":["A=b"],"Healthcheck":{"Test":["NONE"]},"ArgsEscaped":true,"OnBuild":["RUN x"],"Shell":["/bin/bash","-c"],"Foo":1},"rootfs":{"type":"layers","diff_ids":[]},"moby.x":{"a":[1]}}"#;
        let config: ImageConfig = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&config).unwrap(), text);
    }

    #[test]
    fn nulls_are_empty() {
        let text = r#"{"architecture":"amd64","os":"linux","config":{"Env":null,"Cmd":null,"Labels":null,"Volumes":null,"OnBuild":null},"rootfs":{"type":"layers","diff_ids":null},"history":null}"#;
        let config: ImageConfig = serde_json::from_str(text).unwrap();
        assert_eq!(config.config, ContainerConfig::default());
    }
}
