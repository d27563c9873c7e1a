//! Hides how an image lies in a tar: an OCI image layout, with Docker's `manifest.json` beside it when `docker load` is to read it.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;

use kiln_oci::config::ImageConfig;
use kiln_oci::descriptor::Descriptor;
use kiln_oci::manifest::Index;
use kiln_oci::media_type;
use kiln_oci::platform::Platform;
use kiln_oci::reference::Reference;
use kiln_store::tar::{Entry, Writer};

use crate::engine::Engine;
use crate::error::{Error, ImageError};
use crate::event::{Counted, Task};
use crate::export::assemble::Assembled;
use crate::export::{destination, folder, stored};
use crate::ops::source::fetch_layer;
use crate::request::{ArchiveFormat, Destination};
use crate::transfer::{PackedImage, is_own};

/// An image in an archive.
#[derive(Debug)]
pub(crate) struct Member<'a> {
    /// The names that it has there; none is allowed.
    pub(crate) names: Vec<Reference>,
    /// The image.
    pub(crate) image: &'a Assembled,
}

/// Writes images of the store to a file, or to standard output. `docker load` gets one image of an index, that for this machine
/// if nothing else is said; others get all of them.
pub fn save(
    engine: &Engine,
    names: &[Reference],
    format: ArchiveFormat,
    platform: Option<&Platform>,
    dest: Option<&Path>,
) -> Result<(), Error> {
    let task = engine.events.start("exporting images");
    let saved = save_in(engine, names, (format, platform), dest, &task);
    task.end_with(saved)
}

fn save_in(
    engine: &Engine,
    names: &[Reference],
    (format, platform): (ArchiveFormat, Option<&Platform>),
    dest: Option<&Path>,
    task: &Task,
) -> Result<(), Error> {
    let mut images = Vec::new();
    for name in names {
        let Some(record) = engine.store.images().get(name)? else {
            return Err(Error::Image(ImageError::NotFound { name: name.familiar() }));
        };
        let own = record.platform.clone().filter(|_| format == ArchiveFormat::Docker && record.index.is_some());
        images.push(stored::whole(engine, record, platform.or(own.as_ref()), task, None)?);
    }
    let members: Vec<Member<'_>> =
        names.iter().zip(&images).map(|(name, image)| Member { names: vec![name.clone()], image }).collect();
    let dest = dest.map_or(Destination::Stdout, |path| Destination::File(path.to_owned()));
    write(engine, &members, format, &dest, task)
}

/// Writes an archive. A file appears under its name when it is complete.
pub(crate) fn write(
    engine: &Engine,
    members: &[Member<'_>],
    format: ArchiveFormat,
    dest: &Destination,
    task: &Task,
) -> Result<(), Error> {
    for (layer, blob) in members.iter().flat_map(|member| &member.image.images).flat_map(|image| &image.layers) {
        engine.check()?;
        if is_own(layer, blob) {
            fetch_layer(engine, layer, task)?;
        }
    }
    if let Destination::Folder(folder) = dest {
        return folder::write(engine, members, format, folder, task);
    }
    let path = match dest {
        Destination::Stdout => None,
        Destination::File(path) | Destination::Folder(path) => Some(path.as_path()),
    };
    let total = tar_size(members, format)?;
    destination::write(path, |out| {
        let mut out = Counted::new(out, Some(task), "sending tarball", Some(total));
        write_to(engine, members, format, &mut out)?;
        out.finish();
        Ok(())
    })
}

/// How long the archive will be: an entry is a block of header and whole blocks of content, and two empty blocks end it.
fn tar_size(members: &[Member<'_>], format: ArchiveFormat) -> Result<u64, Error> {
    const BLOCK: u64 = 512;
    let entry = |length: u64| BLOCK + length.next_multiple_of(BLOCK);
    let blobs = blobs(members).into_values().map(|blob| match blob {
        Blob::Bytes(bytes) => entry(bytes.len() as u64),
        Blob::Stored(descriptor) => entry(descriptor.size),
    });
    let texts: u64 = texts(members, format)?.iter().map(|(_, text)| entry(text.len() as u64)).sum();
    Ok(2 * entry(0) + blobs.sum::<u64>() + texts + 2 * BLOCK)
}

fn write_to(engine: &Engine, members: &[Member<'_>], format: ArchiveFormat, out: &mut dyn Write) -> Result<(), Error> {
    let mut tar = Writer::new(out);
    tar.append(&Entry::dir("blobs/"), b"")?;
    tar.append(&Entry::dir("blobs/sha256/"), b"")?;
    let blobs = blobs(members);
    for (hex, blob) in &blobs {
        let path = format!("blobs/sha256/{hex}");
        match blob {
            Blob::Bytes(bytes) => tar.append(&Entry::file(path, bytes.len() as u64), bytes)?,
            Blob::Stored(descriptor) => {
                engine.check()?;
                tar.start(&Entry::file(path, descriptor.size))?;
                let mut reader = engine.store.blobs().reader(&descriptor.digest, descriptor.size)?;
                let mut buffer = vec![0; 256 << 10];
                loop {
                    let n = reader
                        .read(&mut buffer)
                        .map_err(|cause| Error::System { operation: "read a blob of the store", cause })?;
                    if n == 0 {
                        break;
                    }
                    tar.content(&buffer[..n])?;
                }
            }
        }
    }
    for (name, text) in texts(members, format)? {
        tar.append(&Entry::file(name, text.len() as u64), &text)?;
    }
    tar.finish()?;
    Ok(())
}

/// The files beside the blobs, in their order.
pub(super) fn texts(members: &[Member<'_>], format: ArchiveFormat) -> Result<Vec<(&'static str, Vec<u8>)>, Error> {
    let listed: Vec<Listed<'_>> = members.iter().map(Member::listed).collect();
    let mut texts = vec![("index.json", json(&index(&listed))?)];
    if format == ArchiveFormat::Docker {
        texts.push(("manifest.json", json(&docker_manifest(&listed))?));
    }
    texts.push(("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()));
    Ok(texts)
}

/// A blob, by its place.
pub(super) enum Blob<'a> {
    /// Here.
    Bytes(&'a [u8]),
    /// In the store.
    Stored(&'a Descriptor),
}

/// All blobs of the images, each once, by their digests' digits.
pub(super) fn blobs<'a>(members: &[Member<'a>]) -> BTreeMap<String, Blob<'a>> {
    let mut blobs: BTreeMap<String, Blob<'a>> = BTreeMap::new();
    for whole in members.iter().map(|member| member.image) {
        if let Some(index) = &whole.index {
            blobs.insert(whole.descriptor.digest.hex(), Blob::Bytes(index.bytes()));
        }
        for image in &whole.images {
            blobs.insert(image.descriptor.digest.hex(), Blob::Bytes(image.manifest.bytes()));
            blobs.insert(image.config.digest().hex(), Blob::Bytes(image.config.bytes()));
            for (_, layer) in &image.layers {
                blobs.insert(layer.digest.hex(), Blob::Stored(layer));
            }
        }
        for attached in &whole.attached {
            blobs.insert(attached.descriptor.digest.hex(), Blob::Bytes(attached.manifest.bytes()));
            let manifest = attached.manifest.value();
            for blob in manifest.layers.iter().chain([&manifest.config]) {
                blobs.insert(blob.digest.hex(), Blob::Stored(blob));
            }
        }
    }
    blobs
}

pub(super) fn json(value: &impl serde::Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value).map_err(Error::internal("write a manifest"))
}

/// What the lists of an archive tell of an image.
pub(super) struct Listed<'a> {
    pub(super) names: &'a [Reference],
    /// The manifest, or the index of several.
    pub(super) descriptor: &'a Descriptor,
    pub(super) images: Vec<&'a PackedImage>,
}

impl Member<'_> {
    pub(super) fn listed(&self) -> Listed<'_> {
        Listed { names: &self.names, descriptor: &self.image.descriptor, images: self.image.images.iter().collect() }
    }
}

/// One entry for each name, as BuildKit and containerd write it: the full name for containerd, the tag for everybody else.
pub(super) fn index(members: &[Listed<'_>]) -> Index {
    let mut manifests = Vec::new();
    for member in members {
        let first = member.images.first().map(|image| image.config.value());
        let mut plain = dated(member.descriptor, first);
        if let Some(config) = first.filter(|_| media_type::is_manifest(&plain.media_type)) {
            plain.platform = Some(config.platform());
        }
        if member.names.is_empty() {
            manifests.push(plain.clone());
        }
        for name in member.names {
            let mut named = plain.clone();
            named.annotations.insert(IMAGE_NAME.to_owned(), name.to_string());
            if let Some(tag) = name.tag() {
                named.annotations.insert("org.opencontainers.image.ref.name".to_owned(), tag.to_owned());
            }
            manifests.push(named);
        }
    }
    Index {
        schema_version: 2,
        media_type: Some(media_type::OCI_INDEX.to_owned()),
        manifests,
        annotations: BTreeMap::new(),
        extra: serde_json::Map::new(),
    }
}

/// The descriptor with the time of the image, as a layout has it.
pub(super) fn dated(descriptor: &Descriptor, config: Option<&ImageConfig>) -> Descriptor {
    let mut dated = descriptor.clone();
    if let Some(created) = config.and_then(|config| config.created.clone()) {
        dated.annotations.entry("org.opencontainers.image.created".to_owned()).or_insert(created);
    }
    dated
}

/// The annotation with an image's full name in a layout.
pub(super) const IMAGE_NAME: &str = "io.containerd.image.name";

/// What `docker load` reads; paths are those of the layout.
pub(super) fn docker_manifest(members: &[Listed<'_>]) -> serde_json::Value {
    let path = |digest: kiln_oci::digest::Digest| format!("blobs/sha256/{}", digest.hex());
    let items = members.iter().flat_map(|member| member.images.iter().map(move |image| (member.names, image)));
    items
        .map(|(names, image)| {
            serde_json::json!({
                "Config": path(image.config.digest()),
                "RepoTags": names.iter().map(Reference::familiar).collect::<Vec<_>>(),
                "Layers": image.layers.iter().map(|(_, layer)| path(layer.digest)).collect::<Vec<_>>(),
            })
        })
        .collect()
}
