//! Hides what is said of one image or of one platform's files, once it is known how they look.

use std::fs::File;
use std::io::{self, Read as _};

use aws_lc_rs::digest::{Context as Hasher, SHA256};
use kiln_oci::digest::Digest;
use kiln_oci::manifest::Raw;
use kiln_store::rootdir::Kind;
use serde_json::Value;

use super::statement::{self, Predicate, Subject};
use super::{AttestationRequest, ProvenanceRequest, provenance, witness};
use crate::engine::Engine;
use crate::error::Error;
use crate::event::Task;
use crate::export::assemble::{Attached, Built};
use crate::export::files::Extra;
use crate::request::BuildRequest;
use crate::transfer::PackedImage;

/// Makes the manifest of what is said about `image`, and puts it and its blobs into the store; `None` where nothing is.
pub(crate) fn to_image(
    engine: &Engine,
    request: &BuildRequest,
    built: &Built,
    image: &PackedImage,
    artifact: bool,
) -> Result<Option<Attached>, Error> {
    let asked = &request.attestations;
    let mut predicates = Vec::new();
    if let Some(found) = &built.packages {
        let created = image.config.value().created.clone();
        predicates.push(witness::bill(found, &image.config.digest().to_string(), created.as_deref().unwrap_or(&built.now)));
    }
    predicates.extend(asked.provenance.as_ref().and_then(|wanted| of_build(built, wanted, image)));
    if predicates.is_empty() {
        return Ok(None);
    }
    let subjects = Subject::of_image(&image.descriptor.digest, &witness::names(request), &built.platform);
    let written = statement::attach(&predicates, &subjects, &image.descriptor, artifact);
    let written = written.map_err(Error::internal("write an attestation"))?;
    for (_, bytes) in &written.blobs {
        engine.store.blobs().put_bytes(bytes)?;
    }
    engine.store.blobs().put_bytes(&written.manifest)?;
    let manifest = Raw::parse(written.manifest).map_err(Error::internal("read an attestation"))?;
    Ok(Some(Attached { descriptor: written.descriptor, manifest }))
}

fn of_build(built: &Built, wanted: &ProvenanceRequest, image: &PackedImage) -> Option<Predicate> {
    let layers: Vec<_> = image.layers.iter().map(|(_, blob)| blob.clone()).collect();
    Some(built.facts.as_ref()?.predicate(wanted, &layers))
}

/// What the command tells in its metadata file of how an image, or else files, were built.
pub(crate) fn told(asked: &AttestationRequest, built: &Built, image: Option<&PackedImage>) -> Option<Value> {
    let wanted = asked.provenance.clone().unwrap_or_default();
    let predicate = match image {
        Some(image) => of_build(built, &wanted, image)?,
        None => built.facts.as_ref()?.predicate(&wanted, &[]),
    };
    let detail = asked.told.unwrap_or(super::Detail::Min);
    Some(provenance::told(&predicate, detail))
}

/// The attestations of files that leave as files: names and contents. `platform` is part of the names where one folder has the
/// files of several.
pub(crate) fn to_files(
    engine: &Engine,
    request: &BuildRequest,
    built: &Built,
    prefix: &str,
    platform: bool,
    task: &Task,
) -> Result<Vec<Extra>, Error> {
    let mut predicates = Vec::new();
    if let Some(found) = &built.packages {
        let layers: Vec<_> = built.layers.iter().map(|layer| layer.id.to_string()).collect();
        let digest = Digest::of(layers.join(" ").as_bytes()).to_string();
        let created = built.layers.last().and_then(|layer| layer.created.clone());
        predicates.push(witness::bill(found, &digest, built.epoch.map_or(created.as_deref(), |_| None).unwrap_or(&built.now)));
    }
    if let (Some(wanted), Some(facts)) = (&request.attestations.provenance, &built.facts) {
        predicates.push(facts.predicate(wanted, &[]));
    }
    if predicates.is_empty() {
        return Ok(Vec::new());
    }
    let subjects = subjects(engine, built, task)?;
    let platform = platform.then(|| built.platform.to_string().replace('/', "_"));
    let file = |predicate: &Predicate| {
        let name = match (&platform, predicate.filename.rsplit_once('.')) {
            (Some(platform), Some((stem, end))) => format!("{prefix}{stem}.{platform}.{end}"),
            (Some(platform), None) => format!("{prefix}{}.{platform}", predicate.filename),
            (None, _) => format!("{prefix}{}", predicate.filename),
        };
        let statement: Value = serde_json::from_slice(&statement::statement(predicate, &subjects))
            .map_err(Error::internal("read an attestation"))?;
        Ok(Extra { name, bytes: format!("{statement:#}\n").into_bytes() })
    };
    predicates.iter().map(file).collect()
}

/// Every regular file of a result, by its path.
fn subjects(engine: &Engine, built: &Built, task: &Task) -> Result<Vec<Subject>, Error> {
    let view = witness::files(engine, built.layers.last().map(|layer| &layer.id), task)?;
    let stored = |error: kiln_store::view::ViewError| Error::Store(error.into());
    let mut out = Vec::new();
    let mut todo: Vec<_> = view.root().map_err(stored)?.map(|root| (String::new(), root)).into_iter().collect();
    while let Some((path, folder)) = todo.pop() {
        engine.check()?;
        for node in folder.read_dir().map_err(stored)? {
            let name = String::from_utf8_lossy(node.name());
            let below = if path.is_empty() { name.into_owned() } else { format!("{path}/{name}") };
            match node.kind() {
                Kind::Dir => todo.push((below, node)),
                Kind::File => {
                    let digest = hash(node.open().map_err(stored)?);
                    let digest = digest.map_err(|cause| Error::System { operation: "read a file of the result", cause })?;
                    out.push(Subject::new(below, &digest));
                }
                _ => {}
            }
        }
    }
    out.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(out)
}

fn hash(mut file: File) -> io::Result<Digest> {
    let mut hasher = Hasher::new(&SHA256);
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => hasher.update(&buffer[..n]),
        }
    }
    let mut bytes = [0; 32];
    bytes.copy_from_slice(hasher.finish().as_ref());
    Ok(Digest::from_bytes(bytes))
}
