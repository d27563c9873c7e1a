//! Hides how an image is found in a folder that is an OCI image layout (image-layout.md).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use kiln_oci::descriptor::Descriptor;
use kiln_oci::digest::Digest;
use kiln_oci::manifest::{Index, Manifest, Raw};
use kiln_oci::media_type;
use kiln_oci::platform::Platform;

use crate::bases::{Image, MAX_DOCUMENT, add_layers, chain_id, choose, read_config};
use crate::cache_key::Identity;
use crate::engine::Engine;
use crate::error::{Error, ImageError};
use crate::request::LayoutImage;

/// The layouts that a build's images may be in, by the digest of what was pinned there.
pub(crate) type Layouts = BTreeMap<Digest, PathBuf>;

/// The manifest or index in the layout that `wanted` names.
pub(crate) fn pin(folder: &Path, wanted: &LayoutImage) -> Result<Digest, Error> {
    let path = folder.join("index.json");
    let bytes = read(&path)?;
    let index = Raw::<Index>::parse(bytes).map_err(|e| invalid(folder, format!("its index can't be read: {e}")))?;
    let manifests = &index.value().manifests;
    let tag = |name: &str| {
        manifests.iter().find(|m| {
            let names = ["org.opencontainers.image.ref.name", "io.containerd.image.name"];
            let mut names = names.iter().filter_map(|key| m.annotations.get(*key));
            names.any(|n| n == name || n.strip_suffix(name).is_some_and(|rest| rest.ends_with(':')))
        })
    };
    let found = match wanted {
        LayoutImage::Digest(digest) => {
            let there = manifests.iter().any(|m| m.digest == *digest) || blob(folder, digest).exists();
            return if there { Ok(*digest) } else { Err(invalid(folder, format!("it does not hold {digest}"))) };
        }
        LayoutImage::Tag(name) => tag(name),
        LayoutImage::Default => tag("latest").or(match manifests.as_slice() {
            [only] => Some(only),
            _ => None,
        }),
    };
    found.map(|m| m.digest).ok_or_else(|| {
        invalid(
            folder,
            match wanted {
                LayoutImage::Tag(name) => format!("it has no image with the tag `{name}`"),
                _ => "it has several images, none of them with the tag `latest`".to_owned(),
            },
        )
    })
}

/// The image for `platform` behind a digest that was pinned: its blobs are in the store then, each proved by its digest.
pub(crate) fn image(engine: &Engine, folder: &Path, pinned: Digest, platform: &Platform) -> Result<Image, Error> {
    let mut bytes = document(folder, &pinned)?;
    let unreadable = |e: &dyn std::fmt::Display| invalid(folder, format!("a manifest can't be read: {e}"));
    let kind: MediaType = serde_json::from_slice(&bytes).map_err(|e| unreadable(&e))?;
    let mut digest = pinned;
    if kind.manifests.is_some() {
        let index = Raw::<Index>::parse(bytes).map_err(|e| unreadable(&e))?;
        let entry = choose(index.value(), platform).ok_or_else(|| {
            let offered = index.value().manifests.iter().filter_map(|m| m.platform.as_ref()).map(ToString::to_string);
            let (name, wanted) = (folder.display().to_string(), platform.to_string());
            Error::Image(ImageError::NoPlatform { name, wanted, offered: offered.collect() })
        })?;
        digest = entry.digest;
        bytes = document(folder, &digest)?;
    }
    let manifest = Raw::<Manifest>::parse(bytes).map_err(|e| unreadable(&e))?;
    let config = &manifest.value().config;
    if !matches!(config.media_type.as_str(), media_type::OCI_CONFIG | media_type::DOCKER_CONFIG) {
        return Err(invalid(folder, format!("it is no image but an artifact: its configuration is `{}`", config.media_type)));
    }
    for wanted in manifest.value().layers.iter().chain([config]) {
        engine.check()?;
        keep(engine, folder, wanted)?;
    }
    engine.store.blobs().put_bytes(manifest.bytes())?;
    let config = read_config(engine, &config.digest)?;
    let layer = add_layers(engine, manifest.value(), config.value(), None)?;
    let media_type = manifest.value().media_type.as_deref().unwrap_or(media_type::OCI_MANIFEST);
    let descriptor = Descriptor::of(media_type, manifest.bytes());
    let identity = Identity::image(chain_id(config.value()));
    debug_assert_eq!(descriptor.digest, digest);
    Ok(Image { pinned, manifest: Some(descriptor), config, layer, identity })
}

/// As much as tells an index from a manifest.
#[derive(serde::Deserialize)]
struct MediaType {
    manifests: Option<serde::de::IgnoredAny>,
}

fn keep(engine: &Engine, folder: &Path, wanted: &Descriptor) -> Result<(), Error> {
    let blobs = engine.store.blobs();
    if blobs.has_sized(&wanted.digest, wanted.size) {
        return Ok(());
    }
    let path = blob(folder, &wanted.digest);
    let fail = |cause| Error::ReadInput { what: "image layout", path: path.clone(), cause };
    let mut writer = blobs.writer()?;
    io::copy(&mut File::open(&path).map_err(fail)?.take(wanted.size + 1), &mut writer).map_err(fail)?;
    writer.commit(Some((wanted.digest, wanted.size)))?;
    Ok(())
}

fn document(folder: &Path, digest: &Digest) -> Result<Vec<u8>, Error> {
    let bytes = read(&blob(folder, digest))?;
    match Digest::of(&bytes) == *digest {
        true => Ok(bytes),
        false => Err(invalid(folder, format!("the blob `{digest}` has another digest"))),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let fail = |cause| Error::ReadInput { what: "image layout", path: path.to_owned(), cause };
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(MAX_DOCUMENT).read_to_end(&mut bytes)).map_err(fail)?;
    Ok(bytes)
}

fn blob(folder: &Path, digest: &Digest) -> PathBuf {
    folder.join("blobs/sha256").join(digest.hex())
}

fn invalid(folder: &Path, reason: String) -> Error {
    Error::Image(ImageError::Invalid { name: format!("the image layout {}", folder.display()), reason })
}
