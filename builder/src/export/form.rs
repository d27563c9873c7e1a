//! Hides how a layer's form is called where it is remembered: codec, level, and the time that its files are not later than. Pure.

use kiln_oci::media_type;
use kiln_store::layer::compress::Compression;

/// What an output asks of its layers' bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CompressionChoice {
    /// `compression=`.
    pub kind: CompressionKind,
    /// `compression-level=`, in the codec's own scale; one that it doesn't have is moved to the nearest.
    pub level: Option<i32>,
    /// `force-compression=true`: layers of base images, too, get this form.
    pub force: bool,
}

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, PartialOrd, Ord)]
pub enum CompressionKind {
    /// A bare tar.
    Uncompressed,
    /// RFC 1952.
    #[default]
    Gzip,
    /// RFC 8878.
    Zstd,
    /// Gzip with a table of contents, of which single files can be fetched (stargz-snapshotter, "eStargz").
    Estargz,
}

impl CompressionKind {
    /// The kind that BuildKit gives this name to.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "uncompressed" => Some(Self::Uncompressed),
            "gzip" => Some(Self::Gzip),
            "zstd" => Some(Self::Zstd),
            "estargz" => Some(Self::Estargz),
            _ => None,
        }
    }

    /// Whether manifests of Docker's own media types can name such a layer as what it is.
    pub fn fits_docker_types(self) -> bool {
        matches!(self, Self::Uncompressed | Self::Gzip)
    }

    /// The OCI media type of such a layer.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Uncompressed => media_type::OCI_LAYER,
            Self::Gzip | Self::Estargz => media_type::OCI_LAYER_GZIP,
            Self::Zstd => media_type::OCI_LAYER_ZSTD,
        }
    }
}

/// The form of one layer. Two forms with the same label have the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Form {
    /// How it is compressed.
    pub kind: CompressionKind,
    /// How hard; 0 where nothing is compressed.
    pub level: i32,
    /// Later modification times are written as this one, in seconds since 1970 (`rewrite-timestamp`).
    pub epoch: Option<i64>,
}

impl Form {
    /// The form that kiln gives a layer when nobody asks for another.
    pub const DEFAULT: Self = Self { kind: CompressionKind::Gzip, level: 6, epoch: None };

    /// What `choice` means, with `epoch` for an output that wants times rewritten.
    pub fn new(choice: CompressionChoice, epoch: Option<i64>) -> Self {
        let level = match (choice.kind, choice.level) {
            (CompressionKind::Uncompressed, _) => 0,
            (CompressionKind::Gzip | CompressionKind::Estargz, level) => match level.unwrap_or(-1) {
                // What zlib means by -1, its default.
                ..0 => 6,
                level => level.min(9),
            },
            (CompressionKind::Zstd, level) => match level.unwrap_or(0) {
                // What libzstd means by 0.
                ..=0 => 3,
                level => level.min(22),
            },
        };
        Self { kind: choice.kind, level, epoch }
    }

    /// How the store calls it: `gzip:6`, `none`, `estargz:9@1700000000`.
    pub fn label(&self) -> String {
        let name = match self.kind {
            CompressionKind::Uncompressed => "none".to_owned(),
            CompressionKind::Gzip => format!("gzip:{}", self.level),
            CompressionKind::Zstd => format!("zstd:{}", self.level),
            CompressionKind::Estargz => format!("estargz:{}", self.level),
        };
        match self.epoch {
            Some(epoch) => format!("{name}@{epoch}"),
            None => name,
        }
    }

    /// The form that a label names.
    pub(crate) fn parse(label: &str) -> Option<Self> {
        let (name, epoch) = match label.split_once('@') {
            Some((name, epoch)) => (name, Some(epoch.parse().ok()?)),
            None => (label, None),
        };
        let (kind, level) = match name.split_once(':') {
            Some((kind, level)) => (CompressionKind::parse(kind)?, Some(level.parse().ok()?)),
            None => (CompressionKind::Uncompressed, None),
        };
        let form = Self::new(CompressionChoice { kind, level, force: false }, epoch);
        (form.label() == label).then_some(form)
    }

    /// Whether the tar in it is the one that every form without a table of contents and with the files' own times has.
    pub fn keeps_the_tar(&self) -> bool {
        self.kind != CompressionKind::Estargz && self.epoch.is_none()
    }

    /// The codec. Estargz is made by another writer.
    pub(crate) fn codec(&self) -> Compression {
        match self.kind {
            CompressionKind::Uncompressed => Compression::None,
            CompressionKind::Gzip | CompressionKind::Estargz => Compression::Gzip,
            CompressionKind::Zstd => Compression::Zstd,
        }
    }
}

impl From<CompressionChoice> for Form {
    fn from(choice: CompressionChoice) -> Self {
        Self::new(choice, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_name_codec_level_and_time() {
        for (name, level, epoch, label) in [
            ("gzip", None, None, "gzip:6"),
            ("gzip", Some(-1), None, "gzip:6"),
            ("gzip", Some(0), None, "gzip:0"),
            ("gzip", Some(30), None, "gzip:9"),
            ("zstd", None, None, "zstd:3"),
            ("zstd", Some(0), Some(5), "zstd:3@5"),
            ("zstd", Some(23), None, "zstd:22"),
            ("uncompressed", Some(9), Some(-7), "none@-7"),
            ("uncompressed", None, None, "none"),
            ("estargz", Some(9), Some(1_700_000_000), "estargz:9@1700000000"),
        ] {
            let kind = CompressionKind::parse(name).unwrap();
            let form = Form::new(CompressionChoice { kind, level, force: false }, epoch);
            assert_eq!(form.label(), label);
            assert_eq!(Form::parse(label), Some(form));
        }
        assert_eq!(Form::DEFAULT, Form::from(CompressionChoice::default()));
        assert_eq!(CompressionKind::parse("xz"), None);
        for other in ["", "gzip", "gzip:06", "gzip:x", "xz:3", "none:1", "gzip:6@", "zstd:0"] {
            assert_eq!(Form::parse(other), None, "{other}");
        }
    }
}
