//! Hides what a document about steps looks like as bytes: BuildKit's `cacheconfig`, with kiln's words in fields of their own. Pure.
//!
//! ```text
//! {"layers":  [{"blob": DIGEST, "parent": INDEX or -1, "annotations": {"mediaType", "diffID", "size", "createdAt", "additional"}}],
//!  "records": [{"digest": KEY, "layers": [{"layer": INDEX, "createdAt"}], "kiln": {"content": KEY, "identity": HEX}}],
//!  "kiln":    {"version": 1, "memos": {HEX: HEX}, "sum": DIGEST, "signature": {"key", "signature"}}}
//! ```
//!
//! * A record is a step: its `digest` is the definition key, `content` the other one (`cache_key`), `identity` what its result is,
//!   and its layer the topmost of the result; none for the empty root.
//! * Layers name their parents, and stand behind them. Those of base images are in the list, too, but not in the place: who finds a
//!   step has resolved its `FROM`, and knows them.
//! * `memos` are fingerprints of what a COPY or a mount took from a stage, so that the stage need not be fetched to compute a key.
//! * `sum` is over all of it, the sum and the signature left out, so that a document with one bit changed is not used at all.
//!
//! An inline cache is the array of records alone, in the image's configuration under BuildKit's key, base64 in a JSON string; `kiln`
//! stands beside it under kiln's key. Its layers are the image's, in order, and its sum covers their `diff_ids`.
//!
//! # BuildKit reads kiln's documents, kiln reads BuildKit's, and neither finds a step in the other's
//!
//! Both are valid JSON of one shape; unknown fields are ignored by both. But a key is a hash over what a program takes a step to be:
//!
//! * BuildKit's for a RUN is SHA-256 over `"buildkit.exec.v0"` and the JSON of the operation as its frontend marshalled it (the
//!   arguments with its own helper variables, its list of mounts, proxies, the worker's platform), combined with the output's number.
//!   The frontend is a program of its own, with a version of its own (`# syntax=`): other fields, another key.
//! * The inputs of that key are links to the records of the inputs, down to sources: `docker-image://` with a manifest's or a chain
//!   of layers' digest, `local://` with a content checksum that BuildKit computes over tar headers of its own making. kiln's are a
//!   parent's identity and BLAKE3 fingerprints that leave out times and count owners otherwise.
//! * A COPY is for BuildKit one or more `buildkit.file.v0` actions, or a merge with `--link`; for kiln one step. There's no record in
//!   the one for what the other asks.
//!
//! To agree on keys, kiln would have to be one version of BuildKit's frontend, marshaller and content checksum, bit by bit. What is
//! shared is below the keys: both places hold blobs by digest, so that one repository serves both and no blob is stored twice.
//! A layer of BuildKit's cache is not taken for one of kiln's with the same `diff_id`: the blob would be compressed in another way,
//! and the same build would give another manifest where that cache was seen.

use std::collections::{BTreeMap, HashMap};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln_oci::config::ImageConfig;
use kiln_oci::descriptor::Descriptor;
use kiln_oci::digest::{ChainId, DiffId, Digest};
use kiln_oci::media_type;
use kiln_store::CacheKey;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::seal::{Signature, SigningKey, VerifyingKeys};

/// Where BuildKit looks for records in an image's configuration.
const INLINE: &str = "moby.buildkit.cache.v0";
/// What kiln has to say besides.
const INLINE_KILN: &str = "kiln.cache.v1";
/// Raised when what a field means changes; documents of other versions are not used.
const VERSION: u32 = 1;
/// No image that a kernel can mount has more layers.
const DEEPEST: usize = 1000;

/// What a document says, checked: indexes lead somewhere and there is no cycle.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Steps {
    /// All layers, parents before children.
    pub layers: Vec<CachedLayer>,
    /// The steps.
    pub steps: Vec<CachedStep>,
    /// Fingerprints of selections from stages, by the key under which they are remembered.
    pub memos: BTreeMap<Digest, Digest>,
}

/// A layer of a result.
#[derive(Debug, Clone, PartialEq)]
pub struct CachedLayer {
    /// The layer below: an index into [`Steps::layers`].
    pub parent: Option<usize>,
    /// The digest of its tar.
    pub diff_id: DiffId,
    /// The chain id that follows.
    pub chain_id: ChainId,
    /// Its blob.
    pub blob: Descriptor,
    /// When the step was run, RFC 3339; none for a base image's layer.
    pub created: Option<String>,
}

/// A step with its result.
#[derive(Debug, Clone, PartialEq)]
pub struct CachedStep {
    /// The key that is known before anything runs.
    pub definition: CacheKey,
    /// The key by the content of the inputs.
    pub content: Option<CacheKey>,
    /// What the result is.
    pub identity: [u8; 32],
    /// The topmost layer: an index into [`Steps::layers`]; none for the empty root.
    pub layer: Option<usize>,
}

/// Why a document isn't used.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// Not even the shape is right.
    #[error("it is not what a cache looks like: {0}")]
    Json(#[from] serde_json::Error),
    /// The records of an image are not base64.
    #[error("its records are no base64")]
    Base64,
    /// Of another kiln.
    #[error("it has version {0}, and this kiln knows {VERSION}")]
    Version(u32),
    /// Somebody or something changed it.
    #[error("it was changed: its checksum doesn't fit")]
    Sum,
    /// A key is asked for, and nobody signed.
    #[error("it is not signed")]
    Unsigned,
    /// It was signed by somebody else.
    #[error("it is not signed by any of the keys that were given with `verify`")]
    Signature,
    /// It contradicts itself.
    #[error("it contradicts itself: {0}")]
    Invalid(&'static str),
}

/// Reads a document. `None` when another program wrote it: there's nothing in it for kiln.
///
/// # Errors
/// [`FormatError`].
pub fn read(config: &[u8], verify: Option<&VerifyingKeys>) -> Result<Option<Steps>, FormatError> {
    #[derive(Deserialize)]
    struct Writer {
        kiln: Option<serde::de::IgnoredAny>,
    }
    if serde_json::from_slice::<Writer>(config)?.kiln.is_none() {
        return if verify.is_some() { Err(FormatError::Unsigned) } else { Ok(None) };
    }
    let written: Written = serde_json::from_slice(config)?;
    written.check(verify)?;
    let mut steps = written.steps()?;
    for layer in &written.layers {
        let (parent, diff_id) = steps.place(layer)?;
        let annotations = layer.annotations.as_ref().ok_or(FormatError::Invalid("a layer has no annotations"))?;
        let digest = layer.blob.ok_or(FormatError::Invalid("a layer has no blob"))?;
        if !is_layer(&annotations.media_type) {
            return Err(FormatError::Invalid("what is named as a layer is none"));
        }
        let mut blob = Descriptor::new(&annotations.media_type, digest, annotations.size);
        blob.annotations.clone_from(&annotations.additional);
        steps.push(parent, diff_id, blob, annotations.created_at.clone())?;
    }
    steps.checked().map(Some)
}

/// Reads the records that an image's configuration holds; `layers` are those of its manifest. `None` when it holds none of kiln's.
///
/// # Errors
/// [`FormatError`].
pub fn read_image(config: &[u8], layers: &[Descriptor], verify: Option<&VerifyingKeys>) -> Result<Option<Steps>, FormatError> {
    let config: ImageConfig = serde_json::from_slice(config)?;
    let (Some(records), Some(kiln)) = (config.extra.get(INLINE), config.extra.get(INLINE_KILN)) else {
        return if verify.is_some() { Err(FormatError::Unsigned) } else { Ok(None) };
    };
    let records = records.as_str().and_then(|text| STANDARD.decode(text).ok()).ok_or(FormatError::Base64)?;
    let kiln = Kiln::deserialize(kiln)?;
    let diff_ids = &config.rootfs.diff_ids;
    let written = Written { layers: bare(diff_ids), records: serde_json::from_slice(&records)?, kiln: Some(kiln) };
    written.check(verify)?;
    if layers.len() != diff_ids.len() {
        return Err(FormatError::Invalid("its manifest and its configuration have different layers"));
    }
    let created: Vec<_> = config.history.iter().filter(|entry| !entry.empty_layer).map(|entry| entry.created.clone()).collect();
    let mut steps = written.steps()?;
    for (index, (diff_id, blob)) in diff_ids.iter().zip(layers).enumerate() {
        let created = if created.len() == diff_ids.len() { created[index].clone() } else { None };
        steps.push(index.checked_sub(1), *diff_id, blob.clone(), created)?;
    }
    steps.checked().map(Some)
}

/// The document's bytes: the same steps give the same bytes, in whatever order they come.
///
/// # Errors
/// Serialisation fails, which it doesn't.
pub fn write(steps: &Steps, sign: Option<&SigningKey>) -> Result<Vec<u8>, serde_json::Error> {
    let layers = steps.layers.iter().map(|layer| WrittenLayer {
        blob: Some(layer.blob.digest),
        parent: index(layer.parent),
        annotations: Some(Annotations {
            media_type: layer.blob.media_type.clone(),
            diff_id: Some(layer.diff_id),
            size: layer.blob.size,
            created_at: layer.created.clone(),
            additional: layer.blob.annotations.clone(),
        }),
    });
    let mut written = Written { layers: layers.collect(), records: steps.records(), kiln: Some(steps.kiln()) };
    written.seal(sign)?;
    serde_json::to_vec(&written)
}

/// Writes the steps into an image's configuration, whose layers are those of the steps.
///
/// # Errors
/// Serialisation fails, which it doesn't.
pub fn write_image(steps: &Steps, sign: Option<&SigningKey>, config: &mut ImageConfig) -> Result<(), serde_json::Error> {
    let mut written = Written { layers: bare(&config.rootfs.diff_ids), records: steps.records(), kiln: Some(steps.kiln()) };
    written.seal(sign)?;
    let records = STANDARD.encode(serde_json::to_vec(&written.records)?);
    config.extra.insert(INLINE.to_owned(), Value::String(records));
    config.extra.insert(INLINE_KILN.to_owned(), serde_json::to_value(&written.kiln)?);
    Ok(())
}

fn is_layer(name: &str) -> bool {
    let known = [media_type::OCI_LAYER, media_type::OCI_LAYER_GZIP, media_type::OCI_LAYER_ZSTD];
    known.contains(&media_type::layer_to_oci(name))
}

/// The layers of an image as an inline cache counts them.
fn bare(diff_ids: &[DiffId]) -> Vec<WrittenLayer> {
    let layer = |(at, diff_id): (usize, &DiffId)| {
        let diff_id = Some(*diff_id);
        let annotations = Some(Annotations { diff_id, ..Annotations::default() });
        WrittenLayer { blob: None, parent: index(at.checked_sub(1)), annotations }
    };
    diff_ids.iter().enumerate().map(layer).collect()
}

fn index(at: Option<usize>) -> i64 {
    at.and_then(|at| i64::try_from(at).ok()).unwrap_or(-1)
}

impl Steps {
    /// Appends a layer; its index.
    ///
    /// # Errors
    /// [`FormatError::Invalid`].
    pub fn push(
        &mut self,
        parent: Option<usize>,
        diff_id: DiffId,
        blob: Descriptor,
        created: Option<String>,
    ) -> Result<usize, FormatError> {
        let below = match parent {
            // Only what stands before it, so there is no cycle.
            Some(parent) => Some(self.layers.get(parent).ok_or(FormatError::Invalid("a layer's parent isn't there"))?.chain_id),
            None => None,
        };
        if created.as_deref().is_some_and(|text| humantime::parse_rfc3339_weak(text).is_err()) {
            return Err(FormatError::Invalid("a time is none"));
        }
        let chain_id = ChainId::extend(below, diff_id);
        self.layers.push(CachedLayer { parent, diff_id, chain_id, blob, created });
        Ok(self.layers.len() - 1)
    }

    /// The layers of a step's result, bottom first.
    pub fn chain(&self, step: &CachedStep) -> Vec<&CachedLayer> {
        let mut chain = Vec::new();
        let mut next = step.layer;
        while let Some(layer) = next.and_then(|index| self.layers.get(index)) {
            chain.push(layer);
            next = layer.parent;
        }
        chain.reverse();
        chain
    }

    /// The steps by both of their keys.
    pub fn by_key(&self) -> HashMap<CacheKey, usize> {
        let rows = self.steps.iter().enumerate();
        rows.flat_map(|(at, step)| step.content.into_iter().chain([step.definition]).map(move |key| (key, at))).collect()
    }

    fn place(&self, layer: &WrittenLayer) -> Result<(Option<usize>, DiffId), FormatError> {
        let parent = match layer.parent {
            -1 => None,
            parent => Some(usize::try_from(parent).map_err(|_| FormatError::Invalid("a layer's parent isn't there"))?),
        };
        let diff_id = layer.annotations.as_ref().and_then(|a| a.diff_id);
        Ok((parent, diff_id.ok_or(FormatError::Invalid("a layer has no diff_id"))?))
    }

    fn checked(self) -> Result<Self, FormatError> {
        let mut depth: Vec<usize> = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            let below = layer.parent.and_then(|parent| depth.get(parent)).copied().unwrap_or(0);
            if below >= DEEPEST {
                return Err(FormatError::Invalid("it has too many layers on top of one another"));
            }
            depth.push(below + 1);
        }
        match self.steps.iter().all(|step| step.layer.is_none_or(|layer| layer < self.layers.len())) {
            true => Ok(self),
            false => Err(FormatError::Invalid("a step's layer isn't there")),
        }
    }

    fn records(&self) -> Vec<WrittenRecord> {
        let mut records: Vec<_> = self.steps.iter().map(|step| self.record(step)).collect();
        records
            .sort_by(|a, b| (a.digest, a.kiln.as_ref().map(|k| k.content)).cmp(&(b.digest, b.kiln.as_ref().map(|k| k.content))));
        records.dedup_by_key(|record| record.digest);
        records
    }

    fn record(&self, step: &CachedStep) -> WrittenRecord {
        let created_at = step.layer.and_then(|layer| self.layers.get(layer)?.created.clone());
        let result = |layer| WrittenResult { layer: index(Some(layer)), created_at };
        WrittenRecord {
            layers: step.layer.map(result).into_iter().collect(),
            digest: Some(Digest::from_bytes(step.definition.0)),
            kiln: Some(KilnRecord {
                content: step.content.map(|key| Digest::from_bytes(key.0)),
                identity: Digest::from_bytes(step.identity),
            }),
        }
    }

    fn kiln(&self) -> Kiln {
        Kiln { version: VERSION, memos: self.memos.clone(), sum: None, signature: None }
    }
}

#[derive(Serialize, Deserialize)]
struct Written {
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_empty")]
    layers: Vec<WrittenLayer>,
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_empty")]
    records: Vec<WrittenRecord>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kiln: Option<Kiln>,
}

#[derive(Serialize, Deserialize)]
struct WrittenLayer {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    blob: Option<Digest>,
    #[serde(default, skip_serializing_if = "is_zero")]
    parent: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    annotations: Option<Annotations>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Annotations {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    media_type: String,
    #[serde(rename = "diffID", default, skip_serializing_if = "Option::is_none")]
    diff_id: Option<DiffId>,
    #[serde(default, skip_serializing_if = "is_nothing")]
    size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    created_at: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    additional: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
struct WrittenRecord {
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_empty")]
    layers: Vec<WrittenResult>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    digest: Option<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kiln: Option<KilnRecord>,
}

#[derive(Serialize, Deserialize)]
struct WrittenResult {
    layer: i64,
    #[serde(rename = "createdAt", default, skip_serializing_if = "Option::is_none")]
    created_at: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct KilnRecord {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content: Option<Digest>,
    identity: Digest,
}

#[derive(Serialize, Deserialize)]
struct Kiln {
    version: u32,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    memos: BTreeMap<Digest, Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sum: Option<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    signature: Option<Signature>,
}

impl Written {
    fn sum(&self) -> Result<Digest, serde_json::Error> {
        let kiln =
            self.kiln.as_ref().map(|kiln| Kiln { version: kiln.version, memos: kiln.memos.clone(), sum: None, signature: None });
        #[derive(Serialize)]
        struct Covered<'a>(&'a [WrittenLayer], &'a [WrittenRecord], Option<Kiln>);
        Ok(Digest::of(&serde_json::to_vec(&Covered(&self.layers, &self.records, kiln))?))
    }

    fn seal(&mut self, sign: Option<&SigningKey>) -> Result<(), serde_json::Error> {
        let sum = self.sum()?;
        if let Some(kiln) = &mut self.kiln {
            kiln.sum = Some(sum);
            kiln.signature = sign.and_then(|key| key.sign(&sum.to_string()));
        }
        Ok(())
    }

    fn check(&self, verify: Option<&VerifyingKeys>) -> Result<(), FormatError> {
        let Some(kiln) = &self.kiln else { return Err(FormatError::Unsigned) };
        if kiln.version != VERSION {
            return Err(FormatError::Version(kiln.version));
        }
        let sum = self.sum()?;
        if kiln.sum != Some(sum) {
            return Err(FormatError::Sum);
        }
        match (verify, &kiln.signature) {
            (None, _) => Ok(()),
            (Some(_), None) => Err(FormatError::Unsigned),
            (Some(keys), Some(signature)) if keys.accept(&sum.to_string(), signature) => Ok(()),
            (Some(_), Some(_)) => Err(FormatError::Signature),
        }
    }

    /// Steps and memos; layers are added by who knows what they are.
    fn steps(&self) -> Result<Steps, FormatError> {
        let mut steps = Steps::default();
        steps.memos.clone_from(&self.kiln.as_ref().ok_or(FormatError::Unsigned)?.memos);
        for record in &self.records {
            let (Some(digest), Some(kiln)) = (record.digest, &record.kiln) else {
                return Err(FormatError::Invalid("a step has no key"));
            };
            let layer = match &record.layers[..] {
                [] => None,
                [one] => Some(usize::try_from(one.layer).map_err(|_| FormatError::Invalid("a step's layer isn't there"))?),
                _ => return Err(FormatError::Invalid("a step has two results")),
            };
            steps.steps.push(CachedStep {
                definition: CacheKey(*digest.as_bytes()),
                content: kiln.content.map(|key| CacheKey(*key.as_bytes())),
                identity: *kiln.identity.as_bytes(),
                layer,
            });
        }
        Ok(steps)
    }
}

fn is_zero(value: &i64) -> bool {
    *value == 0
}

fn is_nothing(value: &u64) -> bool {
    *value == 0
}

/// Go writes an empty slice as `null`.
fn null_is_empty<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests;
