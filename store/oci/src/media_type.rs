//! Hides the spelling of media types (image-spec media-types.md, and Docker's manifest v2 schema 2).

/// OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image configuration.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// OCI layer, an uncompressed tar.
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// OCI layer, a gzip-compressed tar.
pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// OCI layer, a zstd-compressed tar.
pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
/// Docker's manifest list, the ancestor of the OCI index.
pub const DOCKER_MANIFEST_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker's image manifest v2, schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker's image configuration.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Docker layer, an uncompressed tar.
pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
/// Docker layer, a gzip-compressed tar.
pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
/// Docker layer that must not be pushed (Windows bases).
pub const DOCKER_FOREIGN_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";

/// Whether the media type names a list of manifests.
pub fn is_index(media_type: &str) -> bool {
    matches!(media_type, OCI_INDEX | DOCKER_MANIFEST_LIST)
}

/// Whether the media type names a single image manifest.
pub fn is_manifest(media_type: &str) -> bool {
    matches!(media_type, OCI_MANIFEST | DOCKER_MANIFEST)
}

/// What a layer that may not be distributed is called when it may (OCI image specification, "Non-Distributable Layers").
pub fn layer_to_distributable(media_type: &str) -> &str {
    match media_type {
        DOCKER_FOREIGN_LAYER_GZIP => DOCKER_LAYER_GZIP,
        "application/vnd.docker.image.rootfs.foreign.diff.tar" => DOCKER_LAYER,
        "application/vnd.oci.image.layer.nondistributable.v1.tar" => OCI_LAYER,
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip" => OCI_LAYER_GZIP,
        "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd" => OCI_LAYER_ZSTD,
        other => other,
    }
}

/// The OCI spelling of a layer's media type, when there is one.
pub fn layer_to_oci(media_type: &str) -> &str {
    match media_type {
        DOCKER_LAYER_GZIP => OCI_LAYER_GZIP,
        DOCKER_LAYER => OCI_LAYER,
        other => other,
    }
}

/// Docker's spelling of a layer's media type, when there is one (there is none for zstd).
pub fn layer_to_docker(media_type: &str) -> &str {
    match media_type {
        OCI_LAYER_GZIP => DOCKER_LAYER_GZIP,
        OCI_LAYER => DOCKER_LAYER,
        other => other,
    }
}
