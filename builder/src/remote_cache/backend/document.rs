//! Hides how a document is wrapped up where manifests are spoken, in a registry and in an image layout: as an image manifest or as
//! an index, each in OCI's words or Docker's.

use kiln_oci::descriptor::Descriptor;
use kiln_oci::manifest::{Index, Manifest};
use kiln_oci::media_type;

use super::{BackendError, Document, MAX_DOCUMENT, Subject};
use crate::error::Error;

/// How BuildKit's users chose a cache to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    /// `image-manifest=true`: an image manifest whose configuration is the document; else an index that lists layers as if they
    /// were manifests, which many registries refuse.
    pub image_manifest: bool,
    /// `oci-mediatypes=true`.
    pub oci_types: bool,
}

impl Default for Form {
    /// As BuildKit does it since 0.21.
    fn default() -> Self {
        Self { image_manifest: true, oci_types: true }
    }
}

impl Form {
    /// What speaks against the form.
    pub(super) fn contradiction(self) -> Option<&'static str> {
        (self.image_manifest && !self.oci_types).then_some("`image-manifest=true` needs `oci-mediatypes=true`")
    }

    /// The wrapping around a document, and its media type.
    pub(super) fn wrap(self, config: Descriptor, layers: &[Descriptor]) -> Result<(&'static str, Vec<u8>), Error> {
        let mut layers = layers.to_vec();
        for layer in &mut layers {
            let spelled = match self.oci_types {
                true => media_type::layer_to_oci(&layer.media_type),
                false => media_type::layer_to_docker(&layer.media_type),
            };
            layer.media_type = spelled.to_owned();
        }
        let (schema_version, annotations, extra) = (2, Default::default(), Default::default());
        let named = |name: &'static str| (name, Some(name.to_owned()));
        let (name, bytes) = if self.image_manifest {
            let (name, media_type) = named(media_type::OCI_MANIFEST);
            (name, serde_json::to_vec(&Manifest { schema_version, media_type, config, layers, annotations, extra }))
        } else {
            let (name, media_type) = named(if self.oci_types { media_type::OCI_INDEX } else { media_type::DOCKER_MANIFEST_LIST });
            let manifests = layers.into_iter().chain([config]).collect();
            (name, serde_json::to_vec(&Index { schema_version, media_type, manifests, annotations, extra }))
        };
        Ok((name, bytes.map_err(Error::internal("write a cache's manifest"))?))
    }
}

/// Reads what a wrapping holds. `blob` gives a blob's bytes, `manifest` those of a manifest in an index; each checks the digest.
pub(super) fn unwrap(
    place: &str,
    subject: Subject,
    bytes: &[u8],
    blob: &dyn Fn(&Descriptor) -> Result<Vec<u8>, Error>,
    manifest: &dyn Fn(&Descriptor) -> Result<Vec<u8>, Error>,
) -> Result<Vec<Document>, Error> {
    let invalid = |reason: String| Error::from(BackendError::Invalid { place: place.to_owned(), reason });
    let blob = |descriptor: &Descriptor| match descriptor.size > MAX_DOCUMENT {
        true => Err(invalid(format!("a document has {} bytes, more than {MAX_DOCUMENT}", descriptor.size))),
        false => blob(descriptor),
    };
    let read = |bytes: &[u8]| Wrapping::read(bytes).map_err(|error| invalid(format!("its manifest: {error}")));
    let of_image = |found: Manifest| -> Result<Option<Document>, Error> {
        let Manifest { config, layers, .. } = found;
        Ok(match config.media_type.as_str() {
            known if known == subject.media_type() => Some(Document::Cache { config: blob(&config)?, layers }),
            media_type::OCI_CONFIG | media_type::DOCKER_CONFIG if subject == Subject::Steps && !layers.is_empty() => {
                Some(Document::Image { config: blob(&config)?, layers })
            }
            _ => None,
        })
    };
    let index = match read(bytes)? {
        Wrapping::Manifest(found) => return Ok(of_image(*found)?.into_iter().collect()),
        Wrapping::Index(index) => index,
    };
    let (config, others): (Vec<_>, Vec<_>) = index.manifests.into_iter().partition(|m| m.media_type == subject.media_type());
    if let Some(config) = config.last() {
        return Ok(vec![Document::Cache { config: blob(config)?, layers: others }]);
    }
    let mut documents = Vec::new();
    for entry in others.iter().filter(|entry| media_type::is_manifest(&entry.media_type)) {
        if let Wrapping::Manifest(found) = read(&manifest(entry)?)? {
            documents.extend(of_image(*found)?);
        }
    }
    Ok(documents)
}

/// What stands at the top.
enum Wrapping {
    Manifest(Box<Manifest>),
    Index(Index),
}

impl Wrapping {
    fn read(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        #[derive(serde::Deserialize)]
        struct Shape {
            config: Option<serde::de::IgnoredAny>,
        }
        let shape: Shape = serde_json::from_slice(bytes)?;
        match shape.config {
            Some(_) => Ok(Self::Manifest(Box::new(serde_json::from_slice(bytes)?))),
            None => Ok(Self::Index(serde_json::from_slice(bytes)?)),
        }
    }
}

/// What a wrapping points to.
pub(super) fn children(bytes: &[u8]) -> Result<Vec<Descriptor>, serde_json::Error> {
    Ok(match Wrapping::read(bytes)? {
        Wrapping::Manifest(manifest) => manifest.layers.into_iter().chain([manifest.config]).collect(),
        Wrapping::Index(index) => index.manifests,
    })
}
