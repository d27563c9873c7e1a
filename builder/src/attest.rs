//! Hides what is said about an image beside it: how it was built (SLSA provenance) and what is in it (an SPDX document), as
//! in-toto statements in manifests of their own.

pub(crate) mod attach;
pub mod provenance;
pub mod purl;
pub mod redact;
pub mod sbom;
pub mod statement;
pub mod witness;

/// What is to be said about an image; nothing unless asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AttestationRequest {
    /// How it was built.
    pub provenance: Option<ProvenanceRequest>,
    /// Which packages it holds.
    pub sbom: bool,
    /// How much of the provenance the command wants for itself, whether or not the image gets any.
    pub told: Option<Detail>,
}

impl AttestationRequest {
    /// Whether the image gets no attestation.
    pub fn is_empty(&self) -> bool {
        self.provenance.is_none() && !self.sbom
    }
}

/// What a provenance says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProvenanceRequest {
    /// How much.
    pub detail: Detail,
    /// In which words.
    pub version: SlsaVersion,
    /// Who vouches for the build: the address of a service; empty where nobody does.
    pub builder_id: String,
    /// Whether the person who builds claims that the result can be made again, byte for byte.
    pub reproducible: bool,
    /// Its name among the files of an output that is no image.
    pub filename: String,
}

impl Default for ProvenanceRequest {
    fn default() -> Self {
        Self {
            detail: Detail::Max,
            version: SlsaVersion::V1,
            builder_id: String::new(),
            reproducible: false,
            filename: "provenance.json".to_owned(),
        }
    }
}

/// How much a provenance says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// What the image was made of; no value that was given to the build.
    Min,
    /// Also build arguments, labels, the names of secrets, every step and the Dockerfile.
    Max,
}

/// The schema of a provenance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlsaVersion {
    /// `https://slsa.dev/provenance/v1`
    V1,
    /// `https://slsa.dev/provenance/v0.2`
    V02,
}
