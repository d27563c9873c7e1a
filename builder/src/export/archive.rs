//! Hides how an image lies in a tar: an OCI image layout, with Docker's `manifest.json` beside it when `docker load` is to read it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;

use kiln_oci::descriptor::Descriptor;
use kiln_oci::manifest::Index;
use kiln_oci::media_type;
use kiln_oci::reference::Reference;
use kiln_store::tar::{Entry, Writer};

use crate::engine::Engine;
use crate::error::{Error, ImageError};
use crate::event::Task;
use crate::export::form::Form;
use crate::ops::source::fetch_layer;
use crate::request::{ArchiveFormat, Destination};
use crate::transfer::{PackedImage, is_own, packed_image};

/// An image in an archive.
#[derive(Debug)]
pub(crate) struct Member<'a> {
    /// The names that it has there; none is allowed.
    pub(crate) names: Vec<Reference>,
    /// The image.
    pub(crate) image: &'a PackedImage,
}

/// Writes images of the store to a file, or to standard output.
pub fn save(engine: &Engine, names: &[Reference], format: ArchiveFormat, dest: Option<&Path>) -> Result<(), Error> {
    let task = engine.events.start("exporting images");
    let saved = save_in(engine, names, format, dest, &task);
    task.end_with(saved)
}

fn save_in(engine: &Engine, names: &[Reference], format: ArchiveFormat, dest: Option<&Path>, task: &Task) -> Result<(), Error> {
    let mut images = Vec::new();
    for name in names {
        let Some(mut record) = engine.store.images().get(name)? else {
            return Err(Error::Image(ImageError::NotFound { name: name.familiar() }));
        };
        images.push(packed_image(engine, &mut record, &Form::DEFAULT, task, None)?);
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
    for member in members {
        for (layer, _) in member.image.layers.iter().filter(|(layer, blob)| is_own(layer, blob)) {
            engine.check()?;
            fetch_layer(engine, layer, task)?;
        }
    }
    task.status("sending tarball", 0, None);
    match dest {
        Destination::Stdout => {
            let mut out = BufWriter::with_capacity(1 << 20, io::stdout().lock());
            write_to(engine, members, format, &mut out)?;
            out.flush().map_err(Error::output(Path::new("-")))?;
        }
        Destination::File(path) | Destination::Folder(path) => {
            let folder = match path.parent() {
                Some(folder) if !folder.as_os_str().is_empty() => folder,
                _ => Path::new("."),
            };
            let draft = tempfile::Builder::new().prefix(".kiln-").tempfile_in(folder).map_err(Error::output(path))?;
            let mut out = BufWriter::with_capacity(1 << 20, draft.as_file());
            write_to(engine, members, format, &mut out)?;
            out.flush().map_err(Error::output(path))?;
            drop(out);
            share(draft.as_file()).map_err(Error::output(path))?;
            draft.persist(path).map_err(|e| Error::output(path)(e.error))?;
        }
    }
    task.status_done("sending tarball", 0, None);
    Ok(())
}

/// Temporary files are private; what a person asked for has the mode that their umask gives.
fn share(file: &File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}

fn write_to(engine: &Engine, members: &[Member<'_>], format: ArchiveFormat, out: &mut dyn Write) -> Result<(), Error> {
    let mut tar = Writer::new(out);
    tar.append(&Entry::dir("blobs/"), b"")?;
    tar.append(&Entry::dir("blobs/sha256/"), b"")?;
    let mut blobs: BTreeMap<String, Blob<'_>> = BTreeMap::new();
    for member in members {
        let image = member.image;
        blobs.insert(image.descriptor.digest.hex(), Blob::Bytes(image.manifest.bytes()));
        blobs.insert(image.config.digest().hex(), Blob::Bytes(image.config.bytes()));
        for (_, layer) in &image.layers {
            blobs.insert(layer.digest.hex(), Blob::Stored(layer));
        }
    }
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
    let index = json(&index(members))?;
    tar.append(&Entry::file("index.json", index.len() as u64), &index)?;
    if format == ArchiveFormat::Docker {
        let manifest = json(&docker_manifest(members))?;
        tar.append(&Entry::file("manifest.json", manifest.len() as u64), &manifest)?;
    }
    let layout = br#"{"imageLayoutVersion":"1.0.0"}"#;
    tar.append(&Entry::file("oci-layout", layout.len() as u64), layout)?;
    tar.finish()?;
    Ok(())
}

enum Blob<'a> {
    Bytes(&'a [u8]),
    Stored(&'a Descriptor),
}

pub(super) fn json(value: &impl serde::Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value).map_err(Error::internal("write a manifest"))
}

/// One entry for each name, as BuildKit and containerd write it: the full name for containerd, the tag for everybody else.
pub(super) fn index(members: &[Member<'_>]) -> Index {
    let mut manifests = Vec::new();
    for member in members {
        let mut plain = member.image.descriptor.clone();
        plain.platform = Some(member.image.config.value().platform());
        if let Some(created) = &member.image.config.value().created {
            plain.annotations.insert("org.opencontainers.image.created".to_owned(), created.clone());
        }
        if member.names.is_empty() {
            manifests.push(plain.clone());
        }
        for name in &member.names {
            let mut named = plain.clone();
            named.annotations.insert("io.containerd.image.name".to_owned(), name.to_string());
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

/// What `docker load` reads; paths are those of the layout.
pub(super) fn docker_manifest(members: &[Member<'_>]) -> serde_json::Value {
    let path = |digest: kiln_oci::digest::Digest| format!("blobs/sha256/{}", digest.hex());
    members
        .iter()
        .map(|member| {
            serde_json::json!({
                "Config": path(member.image.config.digest()),
                "RepoTags": member.names.iter().map(Reference::familiar).collect::<Vec<_>>(),
                "Layers": member.image.layers.iter().map(|(_, layer)| path(layer.digest)).collect::<Vec<_>>(),
            })
        })
        .collect()
}
