//! Hides what dockerd keeps of images and how it takes one: a tar that may lack the layers that it has.
//!
//! With a storage driver of its own (the only kind before Docker 23) it keeps layers by chain id, and its importer doesn't look at
//! the file of a layer that it has (moby `image/tarexport/load.go`). With containerd's image store it keeps blobs by digest; an
//! import that lacks some is taken and is found to be incomplete when it is unpacked, or not before a push. So there only those
//! blobs are left out that a manifest names which both sides know to be complete, and the daemon is asked afterwards.

use std::collections::BTreeSet;

use kiln_oci::digest::Digest;
use kiln_oci::reference::Reference;
use kiln_registry_client::{Daemon, DaemonAnswer, DaemonError};
use serde::Deserialize;

use super::{Handed, Inspected, LOAD, known_blobs, layout};
use crate::engine::Engine;
use crate::error::Error;
use crate::event::Task;

/// How dockerd keeps layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    ByChain,
    ByBlob,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Info {
    driver_status: Option<Vec<(String, String)>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    id: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    /// Only with containerd's image store, and API 1.47.
    #[serde(default)]
    manifests: Option<Vec<ListedManifest>>,
}

#[derive(Debug, Deserialize)]
struct ListedManifest {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "Available", default)]
    available: bool,
}

/// Gives dockerd an image.
pub(super) fn hand_over(engine: &Engine, daemon: &Daemon, version: &str, image: &Handed<'_>, task: &Task) -> Result<(), Error> {
    let api = format!("v{version}");
    let info: Info = super::json(daemon, "say what it is", &format!("{api}/info"))?;
    let containerd = |(key, value): &(String, String)| key == "driver-type" && value.starts_with("io.containerd.snapshotter");
    let kept = if info.driver_status.iter().flatten().any(containerd) { Kept::ByBlob } else { Kept::ByChain };
    let had = match kept {
        Kept::ByChain => layers_had(daemon, &api, image)?,
        Kept::ByBlob => blobs_had(engine, daemon, &api, image)?,
    };
    if !had.is_empty() {
        match load(engine, daemon, &api, image, &had, task) {
            Ok(()) if kept == Kept::ByChain || is_complete(daemon, &api, image)? => return Ok(()),
            // Something went away in between, or was not as it seemed.
            Ok(()) | Err(Error::Daemon(DaemonError::Refused { .. })) => {}
            Err(error) => return Err(error),
        }
    }
    load(engine, daemon, &api, image, &BTreeSet::new(), task)
}

/// The layers at the bottom of the image that are the bottom of some image of the daemon, too.
fn layers_had(daemon: &Daemon, api: &str, image: &Handed<'_>) -> Result<BTreeSet<usize>, Error> {
    let wanted: Vec<String> = image.diff_ids().iter().map(ToString::to_string).collect();
    let mut listed: Vec<Listed> = super::json(daemon, "list its images", &format!("{api}/images/json?all=1"))?;
    // What had the name before is the likeliest to have all but the last layers.
    let names: BTreeSet<String> = image.names.iter().map(Reference::familiar).collect();
    listed.sort_by_key(|listed| !listed.repo_tags.iter().flatten().any(|tag| names.contains(tag)));
    let mut most = 0;
    for listed in listed {
        if most == wanted.len() {
            break;
        }
        // An image that was removed in between has no layers.
        let Ok(found) = super::json::<Inspected>(daemon, "show an image", &format!("{api}/images/{}/json", listed.id)) else {
            continue;
        };
        let layers = found.rootfs.layers.unwrap_or_default();
        most = most.max(layers.iter().zip(&wanted).take_while(|(a, b)| a == b).count());
    }
    Ok((0..most).collect())
}

/// The layers whose blobs are in the daemon's content store.
fn blobs_had(engine: &Engine, daemon: &Daemon, api: &str, image: &Handed<'_>) -> Result<BTreeSet<usize>, Error> {
    let known = known_blobs(engine, &available(daemon, api)?);
    let layers = image.image.layers.iter().enumerate();
    Ok(layers.filter(|(_, (_, blob))| known.contains(&blob.digest)).map(|(at, _)| at).collect())
}

/// The manifests of which the daemon has every blob.
fn available(daemon: &Daemon, api: &str) -> Result<Vec<Digest>, Error> {
    let listed: Vec<Listed> = super::json(daemon, "list its images", &format!("{api}/images/json?all=1&manifests=1"))?;
    let manifests = listed.iter().flat_map(|listed| listed.manifests.iter().flatten()).filter(|manifest| manifest.available);
    Ok(manifests.filter_map(|manifest| Digest::parse(&manifest.id).ok()).collect())
}

fn is_complete(daemon: &Daemon, api: &str, image: &Handed<'_>) -> Result<bool, Error> {
    Ok(available(daemon, api)?.contains(&image.image.descriptor.digest))
}

/// Sends the image without the layers `had`.
fn load(
    engine: &Engine,
    daemon: &Daemon,
    api: &str,
    image: &Handed<'_>,
    had: &BTreeSet<usize>,
    task: &Task,
) -> Result<(), Error> {
    let archive = layout(engine, image.image, &image.names, had, task)?;
    let answer = image.send(daemon, &format!("{api}/images/load?quiet=1"), archive, task)?;
    match complaint(&answer) {
        Some(message) => Err(daemon.refused(LOAD, 200, &message).into()),
        None => Ok(()),
    }
}

/// What went wrong after the daemon had said that all was well: its answer is a JSON document a line.
fn complaint(answer: &DaemonAnswer) -> Option<String> {
    #[derive(Deserialize)]
    struct Line {
        #[serde(default)]
        error: String,
        #[serde(default)]
        stream: String,
    }
    let lines = serde_json::Deserializer::from_slice(&answer.body).into_iter::<Line>().map_while(Result::ok);
    let told = lines.filter_map(|line| match line {
        Line { error, .. } if !error.is_empty() => Some(error),
        // That is no error for Docker, and what it says is all that comes.
        Line { stream, .. } if stream.starts_with("Error unpacking") => Some(stream),
        Line { .. } => None,
    });
    told.last()
}
