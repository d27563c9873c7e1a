//! Hides how an image gets into Docker or podman: which of them is there, and that only those layers travel which it lacks.

mod docker;
mod parts;
mod podman;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Read;

use kiln_oci::digest::{DiffId, Digest};
use kiln_oci::manifest::{Manifest, Raw};
use kiln_oci::reference::Reference;
use kiln_registry_client::{Daemon, DaemonAddress, DaemonAnswer, DaemonError};

use crate::bases::MAX_DOCUMENT;
use crate::engine::Engine;
use crate::error::Error;
use crate::event::Task;
use crate::export::archive::{Listed, docker_manifest, index, json as to_json};
use crate::ops::source::fetch_layer;
use crate::request::Output;
use crate::transfer::PackedImage;
use parts::Parts;

/// What both daemons say of an image that they have.
#[derive(Debug, serde::Deserialize)]
struct Inspected {
    #[serde(rename = "RootFS")]
    rootfs: RootFs,
}

#[derive(Debug, serde::Deserialize)]
struct RootFs {
    #[serde(rename = "Layers", default)]
    layers: Option<Vec<String>>,
}

/// What a failed request to take an image was.
const LOAD: &str = "load an image";

/// Which daemon is to get an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Daemons {
    /// The one that somebody named, and where the name stood: `DOCKER_HOST`.
    Named(DaemonAddress, String),
    /// The first of these that is there; it is no mistake when none is.
    Any(Vec<DaemonAddress>),
}

/// What is handed over.
pub(super) struct Handed<'a> {
    image: &'a PackedImage,
    /// Its names, without those that are only a digest.
    names: Vec<Reference>,
}

/// What a daemon is, by its answer to a ping.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    /// dockerd, and the version of its API.
    Docker(String),
    /// podman's service, and the version of its own API.
    Podman(String),
}

/// A daemon that answers.
#[derive(Debug)]
pub(crate) struct Reached {
    daemon: Daemon,
    kind: Kind,
}

/// Looks for the daemon. Where none is found and none was named, that is a warning.
pub(crate) fn find(engine: &Engine, daemons: &Daemons) -> Result<Option<Reached>, Error> {
    let options = engine.registry.options();
    match daemons {
        Daemons::Named(address, by) => {
            let reached = Daemon::new(address.clone(), options).and_then(reach);
            reached.map(Some).map_err(|cause| Error::NamedDaemon { by: by.clone(), cause })
        }
        Daemons::Any(addresses) => {
            let mut looked = String::new();
            for address in addresses {
                engine.check()?;
                let why = match Daemon::new(address.clone(), options).and_then(reach) {
                    Ok(reached) => return Ok(Some(reached)),
                    Err(DaemonError::Unreachable { cause, .. }) => cause,
                    Err(error) => error.to_string(),
                };
                let separator = if looked.is_empty() { "" } else { "; " };
                let _ = write!(looked, "{separator}{address}: {why}");
            }
            engine.events.warn(format!("no Docker or podman answers here, so only kiln's own store gets the image ({looked})"));
            Ok(None)
        }
    }
}

/// Whether the daemons that somebody named are there: it is better to know before a build than after it.
pub(crate) fn check(engine: &Engine, outputs: &[Output]) -> Result<(), Error> {
    for output in outputs {
        if let Output::Daemon { daemons: named @ Daemons::Named(..), .. } = output {
            find(engine, named)?;
        }
    }
    Ok(())
}

fn reach(daemon: Daemon) -> Result<Reached, DaemonError> {
    Ok(Reached { kind: ping(&daemon)?, daemon })
}

impl Reached {
    /// Gives it an image, of which it takes what it lacks.
    pub(crate) fn hand_over(&self, engine: &Engine, image: &PackedImage, names: &[Reference]) -> Result<(), Error> {
        let names = names.iter().filter(|name| name.digest().is_none()).cloned().collect();
        let handed = Handed { image, names };
        let (name, version) = match &self.kind {
            Kind::Docker(version) => ("docker", version),
            Kind::Podman(version) => ("podman", version),
        };
        let task = engine.events.start(format!("importing to {name}"));
        let taken = match &self.kind {
            Kind::Docker(_) => docker::hand_over(engine, &self.daemon, version, &handed, &task),
            Kind::Podman(_) => podman::hand_over(engine, &self.daemon, version, &handed, &task),
        };
        task.end_with(taken)
    }
}

fn ping(daemon: &Daemon) -> Result<Kind, DaemonError> {
    const ACTION: &str = "say what it is";
    let answer = daemon.get(ACTION, "_ping")?;
    if let Some(version) = answer.header("libpod-api-version") {
        return Ok(Kind::Podman(version.to_owned()));
    }
    match answer.header("api-version") {
        Some(version) => Ok(Kind::Docker(version.to_owned())),
        None => Err(daemon.refused(ACTION, 200, "its answer has no `Api-Version`, so it is neither Docker nor podman")),
    }
}

/// A document that a daemon answers with.
fn json<T: serde::de::DeserializeOwned>(daemon: &Daemon, action: &'static str, path: &str) -> Result<T, DaemonError> {
    let answer = daemon.get(action, path)?;
    serde_json::from_slice(&answer.body)
        .map_err(|error| daemon.refused(action, 200, &format!("what it answers can't be read: {error}")))
}

/// The layers of those manifests of a daemon that kiln knows, too.
fn known_blobs(engine: &Engine, manifests: &[Digest]) -> BTreeSet<Digest> {
    let mut known = BTreeSet::new();
    for digest in manifests {
        if engine.store.blobs().has(digest)
            && let Ok(bytes) = engine.store.blobs().read(digest, MAX_DOCUMENT)
            && let Ok(manifest) = Raw::<Manifest>::parse(bytes)
        {
            known.extend(manifest.value().layers.iter().map(|layer| layer.digest));
        }
    }
    known
}

/// An image layout with Docker's `manifest.json`, without the files of the layers that are counted in `had`.
fn layout(
    engine: &Engine,
    image: &PackedImage,
    names: &[Reference],
    had: &BTreeSet<usize>,
    task: &Task,
) -> Result<(Box<dyn Read + Send>, u64), Error> {
    let mut parts = Parts::default();
    let mut written = BTreeSet::new();
    parts.document(&image.descriptor.digest, image.manifest.bytes())?;
    parts.document(&image.config.digest(), image.config.bytes())?;
    for (_, (layer, blob)) in image.layers.iter().enumerate().filter(|(at, _)| !had.contains(at)) {
        engine.check()?;
        // Two layers may be the same.
        if written.insert(blob.digest) {
            fetch_layer(engine, layer, task)?;
            parts.blob(engine, blob)?;
        }
    }
    let members = [Listed { names, descriptor: &image.descriptor, images: vec![image] }];
    parts.file("index.json", &to_json(&index(&members))?)?;
    parts.file("manifest.json", &to_json(&docker_manifest(&members))?)?;
    parts.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    Ok(parts.finish())
}

impl Handed<'_> {
    fn diff_ids(&self) -> &[DiffId] {
        &self.image.config.value().rootfs.diff_ids
    }

    /// Sends an archive, and says how far it is.
    fn send(
        &self,
        daemon: &Daemon,
        path: &str,
        archive: (Box<dyn Read + Send>, u64),
        task: &Task,
    ) -> Result<DaemonAnswer, DaemonError> {
        const NAME: &str = "sending image";
        let len = archive.1;
        task.status(NAME, 0, Some(len));
        let answer = daemon.upload(LOAD, path, archive, &|sent| task.status(NAME, sent, Some(len)))?;
        task.status_done(NAME, len, Some(len));
        Ok(answer)
    }
}
