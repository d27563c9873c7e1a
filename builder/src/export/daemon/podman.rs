//! Hides what podman keeps of images and how its service takes one: an OCI archive that may lack the layers that it has.
//!
//! containers/storage finds a layer by the digest of its blob or of its tar before anything asks the archive for it. A layer that
//! podman has in another form than kiln is therefore named as the plain tar that both know; it isn't in the archive in any form.

use std::collections::BTreeSet;
use std::time::Duration;

use kiln_oci::descriptor::Descriptor;
use kiln_oci::digest::Digest;
use kiln_oci::manifest::Raw;
use kiln_oci::media_type;
use kiln_registry_client::{Daemon, DaemonError};
use serde::Deserialize;

use super::{Handed, Inspected, known_blobs, layout};
use crate::engine::Engine;
use crate::error::Error;
use crate::event::Task;
use crate::transfer::PackedImage;

/// How often podman is asked once more for what it refused, and after how long.
const ASKED_AGAIN: u32 = 3;
const BETWEEN: Duration = Duration::from_millis(200);

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    id: String,
    #[serde(default)]
    digest: String,
}

/// Gives podman an image.
pub(super) fn hand_over(engine: &Engine, daemon: &Daemon, version: &str, image: &Handed<'_>, task: &Task) -> Result<(), Error> {
    let api = format!("v{version}/libpod");
    let (blobs, tars) = had(engine, daemon, &api, image)?;
    let some = !blobs.is_empty() || !tars.is_empty();
    let loaded = match some {
        true => load(engine, daemon, &api, image, (&blobs, &tars), task),
        false => load(engine, daemon, &api, image, (&BTreeSet::new(), &BTreeSet::new()), task),
    };
    match loaded {
        // Something went away in between.
        Err(Error::Daemon(DaemonError::Refused { .. })) if some => {
            load(engine, daemon, &api, image, (&BTreeSet::new(), &BTreeSet::new()), task)?;
        }
        other => other?,
    }
    // An archive of podman's has one name.
    for name in image.names.iter().skip(1) {
        let (repository, tag) = (name.repository(), name.tag().unwrap_or("latest"));
        let path = format!("{api}/images/{}/tag?repo={repository}&tag={tag}", image.image.config.digest().hex());
        daemon.post("tag an image", &path)?;
    }
    Ok(())
}

/// What podman has. It refuses when an image is removed while it looks (`retrieving label for image …: you may need to remove the
/// image`, podman 4.3), so it is asked again.
fn listed(daemon: &Daemon, api: &str) -> Result<Vec<Listed>, Error> {
    let ask = || Ok(super::json(daemon, "list its images", &format!("{api}/images/json?all=true"))?);
    for _ in 0..ASKED_AGAIN {
        if let Ok(listed) = ask() {
            return Ok(listed);
        }
        std::thread::sleep(BETWEEN);
    }
    ask()
}

/// The layers that podman has as the blobs that kiln has, and those that it has in some other form.
fn had(engine: &Engine, daemon: &Daemon, api: &str, image: &Handed<'_>) -> Result<(BTreeSet<usize>, BTreeSet<usize>), Error> {
    let listed = listed(daemon, api)?;
    let digests: Vec<Digest> = listed.iter().filter_map(|listed| Digest::parse(&listed.digest).ok()).collect();
    let known = known_blobs(engine, &digests);
    let diff_ids: Vec<String> = image.diff_ids().iter().map(ToString::to_string).collect();
    let layers = image.image.layers.iter().enumerate();
    let blobs: BTreeSet<usize> = layers.filter(|(_, (_, blob))| known.contains(&blob.digest)).map(|(at, _)| at).collect();
    let mut tars = BTreeSet::new();
    for listed in listed {
        if blobs.len() + tars.len() == diff_ids.len() {
            break;
        }
        let Ok(found) = super::json::<Inspected>(daemon, "show an image", &format!("{api}/images/{}/json", listed.id)) else {
            continue;
        };
        let theirs: BTreeSet<String> = found.rootfs.layers.into_iter().flatten().collect();
        tars.extend((0..diff_ids.len()).filter(|at| !blobs.contains(at) && theirs.contains(&diff_ids[*at])));
    }
    Ok((blobs, tars))
}

/// Sends the image without the layers `had`.
fn load(
    engine: &Engine,
    daemon: &Daemon,
    api: &str,
    handed: &Handed<'_>,
    (blobs, tars): (&BTreeSet<usize>, &BTreeSet<usize>),
    task: &Task,
) -> Result<(), Error> {
    // Podman refuses an archive with more than one entry.
    let names = handed.names.get(..1).unwrap_or_default();
    let archive = match tars.is_empty() {
        true => layout(engine, handed.image, names, blobs, task)?,
        false => layout(engine, &with_tars(handed.image, tars)?, names, &(blobs | tars), task)?,
    };
    handed.send(daemon, &format!("{api}/images/load"), archive, task)?;
    Ok(())
}

/// The image with the plain tars of these layers in the place of their blobs.
fn with_tars(image: &PackedImage, tars: &BTreeSet<usize>) -> Result<PackedImage, Error> {
    let mut manifest = image.manifest.value().clone();
    let mut layers = image.layers.clone();
    let diff_ids = &image.config.value().rootfs.diff_ids;
    for (at, ((layer, blob), diff_id)) in layers.iter_mut().zip(diff_ids).enumerate().filter(|(at, _)| tars.contains(at)) {
        let is_docker = blob.media_type.starts_with("application/vnd.docker.");
        let media_type = if is_docker { media_type::DOCKER_LAYER } else { media_type::OCI_LAYER };
        // The size is a guess for a base's layer that was never unpacked. Podman writes it down and doesn't count.
        *blob = Descriptor::new(media_type, diff_id.digest(), layer.tar_size.unwrap_or(blob.size));
        if let Some(layer) = manifest.layers.get_mut(at) {
            layer.clone_from(blob);
        }
    }
    let manifest = Raw::write(manifest).map_err(Error::internal("write a manifest"))?;
    let mut descriptor = Descriptor::of(&image.descriptor.media_type, manifest.bytes());
    descriptor.annotations.clone_from(&image.descriptor.annotations);
    Ok(PackedImage { config: image.config.clone(), manifest, descriptor, layers })
}
