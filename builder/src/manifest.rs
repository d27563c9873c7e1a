//! Hides how images that were built apart are joined into an index, wherever they are: the end of a build matrix.

use std::io::{Read, Seek as _, SeekFrom};
use std::rc::Rc;

use kiln_oci::config::ImageConfig;
use kiln_oci::descriptor::Descriptor;
use kiln_oci::digest::Digest;
use kiln_oci::manifest::{Index, Manifest, Raw};
use kiln_oci::media_type;
use kiln_oci::platform::Platform;
use kiln_oci::reference::Reference;
use kiln_registry_client::{ManifestName, Repository};

use crate::bases::{self, MAX_DOCUMENT};
use crate::engine::Engine;
use crate::error::{Error, ImageError};
use crate::event::Task;
use crate::export::assemble::Assembled;
use crate::export::stored;
use crate::request::{Annotations, Scope};
use crate::transfer::{Ahead, push_image, side_by_side};

/// What is to be joined, and under which names.
#[derive(Debug, Clone, Default)]
pub struct Join {
    /// The names that the result gets in their registries.
    pub targets: Vec<Reference>,
    /// What it is made of, in this order.
    pub sources: Vec<Source>,
    /// What stands under the first name now goes before the sources.
    pub append: Append,
    /// Those of indexes and of manifests' descriptors.
    pub annotations: Annotations,
    /// Which platforms are taken; all, if none is named.
    pub platforms: Vec<Platform>,
    /// One image alone gets an index, too.
    pub prefer_index: bool,
    /// Nothing is pushed.
    pub dry_run: bool,
}

/// What becomes of what stands under the name already.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Append {
    /// It goes.
    #[default]
    No,
    /// It stays, and has to be there.
    Required,
    /// It stays, if there is anything, but for the platforms that are given anew.
    Amend,
}

/// One thing to join.
#[derive(Debug, Clone)]
pub enum Source {
    /// An image or an index.
    Named {
        /// Its name.
        reference: Reference,
        /// Whether the store is looked into before the registry, and not after it.
        store_first: bool,
    },
    /// A manifest whose descriptor is known, with what it may say besides the digest.
    Described {
        /// The repository that has it.
        repository: Reference,
        /// Its descriptor.
        descriptor: Box<Descriptor>,
    },
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct Joined {
    /// The index, or the one manifest.
    pub descriptor: Descriptor,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Where the manifest of an entry is.
#[derive(Debug, Clone)]
enum Origin {
    Registry(Reference),
    Store(Rc<Assembled>),
}

/// A manifest or index that was found.
struct Found {
    descriptor: Descriptor,
    bytes: Vec<u8>,
    origin: Origin,
}

/// Joins images and pushes the result; their blobs are linked or copied to where they lack.
pub fn create(engine: &Engine, join: &Join) -> Result<Joined, Error> {
    let task = engine.events.start("[internal] reading the sources");
    let read = read(engine, join, &task);
    let (joined, entries) = task.end_with(read)?;
    if join.dry_run {
        return Ok(joined);
    }
    for target in &join.targets {
        let task = engine.events.start(format!("pushing {target}"));
        let pushed = push(engine, &joined, &entries, target, &task);
        task.end_with(pushed)?;
    }
    Ok(joined)
}

/// Reads a manifest or an index of a registry, or else of the store.
pub fn inspect(engine: &Engine, reference: &Reference, store_first: bool) -> Result<Joined, Error> {
    let task = engine.events.start(format!("[internal] load metadata for {reference}"));
    let found = find(engine, reference, store_first, &task);
    let found = task.end_with(found)?;
    Ok(Joined { descriptor: found.descriptor, bytes: found.bytes })
}

/// The configuration of an image of a registry.
pub fn configuration(engine: &Engine, repository: &Reference, manifest: &Manifest) -> Result<ImageConfig, Error> {
    let config = &manifest.config;
    if config.size > MAX_DOCUMENT {
        let reason = format!("its configuration has {} bytes, more than {MAX_DOCUMENT}", config.size);
        return Err(Error::Image(ImageError::Invalid { name: repository.to_string(), reason }));
    }
    bases::fetch_blob(engine, &Repository::from(repository), config, &|_| {})?;
    Ok(bases::read_config(engine, &config.digest)?.into_parts().1)
}

/// The document that the sources give, and what it leads to.
fn read(engine: &Engine, join: &Join, task: &Task) -> Result<(Joined, Vec<(Descriptor, Origin)>), Error> {
    let mut found = Vec::new();
    if let (Append::Required | Append::Amend, Some(target)) = (join.append, join.targets.first()) {
        match fetch(engine, target) {
            Ok(old) => found.push(old),
            Err(Error::Registry(error)) if join.append == Append::Amend && error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    let kept = found.len();
    for source in &join.sources {
        engine.check()?;
        found.push(match source {
            Source::Named { reference, store_first } => find(engine, reference, *store_first, task)?,
            Source::Described { repository, descriptor } => {
                let mut found = fetch(engine, &repository.pinned(descriptor.digest))?;
                // What else it says is what the index is to say.
                found.descriptor.platform.clone_from(&descriptor.platform);
                found.descriptor.annotations.clone_from(&descriptor.annotations);
                found
            }
        });
    }
    if let [one] = found.as_slice()
        && join.annotations.is_empty()
        && join.platforms.is_empty()
        && (media_type::is_index(&one.descriptor.media_type) || !join.prefer_index)
    {
        let joined = Joined { descriptor: one.descriptor.clone(), bytes: one.bytes.clone() };
        return Ok((joined, entries(engine, one)?));
    }
    let mut old: Vec<(Descriptor, Origin)> = Vec::new();
    let mut new = Vec::new();
    for (at, found) in found.iter().enumerate() {
        let list = if at < kept { &mut old } else { &mut new };
        entries(engine, found)?.into_iter().for_each(|entry| add(list, entry));
    }
    if join.append == Append::Amend {
        let again = |entry: &Descriptor| new.iter().any(|(other, _)| is_image(other) && other.platform == entry.platform);
        retain(&mut old, |entry| !again(entry));
    }
    new.into_iter().for_each(|entry| add(&mut old, entry));
    let mut all = old;
    if let Some(missing) = join.platforms.iter().find(|platform| !all.iter().any(|(entry, _)| serves(entry, platform))) {
        let offered = all.iter().filter(|(entry, _)| is_image(entry)).filter_map(|(entry, _)| entry.platform.as_ref());
        let (name, wanted) = ("what is to be joined".to_owned(), missing.to_string());
        let offered = offered.map(ToString::to_string).collect();
        return Err(Error::Image(ImageError::NoPlatform { name, wanted, offered }));
    }
    if !join.platforms.is_empty() {
        retain(&mut all, |entry| join.platforms.iter().any(|platform| serves(entry, platform)));
    }
    Ok((index(&all, &join.annotations)?, all))
}

fn is_image(entry: &Descriptor) -> bool {
    !stored::is_attached(entry)
}

fn serves(entry: &Descriptor, platform: &Platform) -> bool {
    is_image(entry) && entry.platform.as_ref().is_some_and(|own| own.serves(platform) == platform.serves(platform))
}

/// Keeps the images that `keep` says, and what is said about those.
fn retain(entries: &mut Vec<(Descriptor, Origin)>, keep: impl Fn(&Descriptor) -> bool) {
    entries.retain(|(entry, _)| !is_image(entry) || keep(entry));
    let kept: Vec<String> = entries.iter().map(|(entry, _)| entry.digest.to_string()).collect();
    let about = |entry: &Descriptor| entry.annotations.get("vnd.docker.reference.digest").cloned().unwrap_or_default();
    entries.retain(|(entry, _)| is_image(entry) || kept.contains(&about(entry)));
}

/// Adds an entry; one that is there is told what the new one knows besides.
fn add(list: &mut Vec<(Descriptor, Origin)>, (new, origin): (Descriptor, Origin)) {
    match list.iter_mut().find(|(known, _)| known.digest == new.digest) {
        None => list.push((new, origin)),
        Some((known, _)) => {
            known.platform = new.platform.or(known.platform.take());
            known.annotations.extend(new.annotations);
        }
    }
}

/// What is found is an entry itself, or a list of them.
fn entries(engine: &Engine, found: &Found) -> Result<Vec<(Descriptor, Origin)>, Error> {
    if !media_type::is_index(&found.descriptor.media_type) {
        let mut entry = found.descriptor.clone();
        if entry.platform.is_none() {
            entry.platform = Some(platform_of(engine, found)?);
        }
        return Ok(vec![(entry, found.origin.clone())]);
    }
    let index: Index = parsed(&found.bytes, &found.descriptor.digest)?;
    Ok(index.manifests.into_iter().map(|entry| (entry, found.origin.clone())).collect())
}

fn platform_of(engine: &Engine, found: &Found) -> Result<Platform, Error> {
    match &found.origin {
        Origin::Registry(repository) => {
            let manifest: Manifest = parsed(&found.bytes, &found.descriptor.digest)?;
            Ok(configuration(engine, repository, &manifest)?.platform())
        }
        Origin::Store(image) => image.images.first().map(|image| image.platform()).ok_or(Error::Interrupted),
    }
}

fn parsed<T: serde::de::DeserializeOwned>(bytes: &[u8], digest: &Digest) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|error| {
        let (name, reason) = (digest.to_string(), format!("its manifest can't be read: {error}"));
        Error::Image(ImageError::Invalid { name, reason })
    })
}

/// Looks into the registry and the store, in the order that the name asks for.
fn find(engine: &Engine, reference: &Reference, store_first: bool, task: &Task) -> Result<Found, Error> {
    let in_store = || -> Result<Option<Found>, Error> {
        let Some(record) = engine.store.images().get(reference)? else { return Ok(None) };
        let image = stored::whole(engine, record, None, task, None)?;
        let bytes = match (&image.index, image.images.as_slice()) {
            (Some(index), _) => index.bytes().to_vec(),
            (None, [only]) => only.manifest.bytes().to_vec(),
            (None, _) => return Ok(None),
        };
        Ok(Some(Found { descriptor: image.descriptor.clone(), bytes, origin: Origin::Store(Rc::new(image)) }))
    };
    if store_first && let Some(found) = in_store()? {
        return Ok(found);
    }
    match fetch(engine, reference) {
        Err(Error::Registry(error)) if !store_first && (error.is_not_found() || error.is_temporary()) => match in_store()? {
            Some(found) => Ok(found),
            None => Err(error.into()),
        },
        other => other,
    }
}

fn fetch(engine: &Engine, reference: &Reference) -> Result<Found, Error> {
    let (descriptor, bytes) = engine.registry.fetch_manifest(reference)?;
    Ok(Found { descriptor, bytes, origin: Origin::Registry(reference.clone()) })
}

/// The index over `entries`: Docker's if all of them are, as buildx decides it.
fn index(entries: &[(Descriptor, Origin)], annotations: &Annotations) -> Result<Joined, Error> {
    let mut manifests: Vec<Descriptor> = entries.iter().map(|(entry, _)| entry.clone()).collect();
    for entry in &mut manifests {
        if is_image(entry) {
            entry.annotations.extend(annotations.of(Scope::ManifestDescriptor, entry.platform.as_ref()));
        }
    }
    let docker = manifests.iter().all(|entry| entry.media_type.starts_with("application/vnd.docker."));
    let plain = annotations.is_empty() && manifests.iter().all(|entry| entry.annotations.is_empty());
    let kind = if docker && plain { media_type::DOCKER_MANIFEST_LIST } else { media_type::OCI_INDEX };
    let index = Index {
        schema_version: 2,
        media_type: Some(kind.to_owned()),
        manifests,
        annotations: annotations.of(Scope::Index, None),
        extra: serde_json::Map::new(),
    };
    let index = Raw::write(index).map_err(Error::internal("write an index"))?;
    Ok(Joined { descriptor: Descriptor::of(kind, index.bytes()), bytes: index.into_parts().0 })
}

/// Brings everything to the target's repository, and the name last.
fn push(
    engine: &Engine,
    joined: &Joined,
    entries: &[(Descriptor, Origin)],
    target: &Reference,
    task: &Task,
) -> Result<(), Error> {
    let repository = Repository::from(target);
    let mut pushed: Vec<*const Assembled> = Vec::new();
    for (entry, origin) in entries {
        engine.check()?;
        match origin {
            Origin::Registry(from) => bring(engine, entry, from, &repository, 0, task)?,
            Origin::Store(image) => {
                // It comes as a whole, once.
                if !pushed.contains(&Rc::as_ptr(image)) {
                    pushed.push(Rc::as_ptr(image));
                    let place = (&repository, ManifestName::Digest);
                    push_image(engine, &engine.registry, image, place, &Ahead::default(), task)?;
                }
            }
        }
    }
    let name = target.tag().map_or(ManifestName::Digest, ManifestName::Tag);
    let status = format!("pushing manifest for {}@{}", target, joined.descriptor.digest);
    task.status(&status, 0, None);
    engine.registry.push_manifest(&repository, name, &joined.descriptor.media_type, &joined.bytes)?;
    task.status_done(&status, 0, None);
    Ok(())
}

/// More than an index of indexes is an attack or a mistake.
const DEPTH: u32 = 3;

/// Brings a manifest with all that it names from one repository to another. In the same registry its blobs are linked.
fn bring(engine: &Engine, entry: &Descriptor, from: &Reference, to: &Repository, depth: u32, task: &Task) -> Result<(), Error> {
    let source = Repository::from(from);
    if source == *to {
        return Ok(());
    }
    let (descriptor, bytes) = engine.registry.fetch_manifest(&from.pinned(entry.digest))?;
    if media_type::is_index(&descriptor.media_type) {
        if depth == DEPTH {
            let reason = "its indexes are nested too deeply".to_owned();
            return Err(Error::Image(ImageError::Invalid { name: from.to_string(), reason }));
        }
        let index: Index = parsed(&bytes, &entry.digest)?;
        for inner in &index.manifests {
            bring(engine, inner, from, to, depth + 1, task)?;
        }
    } else {
        let manifest: Manifest = parsed(&bytes, &entry.digest)?;
        // What must not be distributed stays where its address says.
        let own = manifest.layers.iter().filter(|layer| layer.urls.is_empty());
        let blobs: Vec<&Descriptor> = own.chain([&manifest.config]).collect();
        side_by_side(&blobs, |blob| {
            engine.check()?;
            copy(engine, blob, &source, to, task)
        })?;
    }
    engine.registry.push_manifest(to, ManifestName::Digest, &descriptor.media_type, &bytes)?;
    Ok(())
}

/// Brings a blob over: by a link, or else by way of the store.
fn copy(engine: &Engine, blob: &Descriptor, from: &Repository, to: &Repository, task: &Task) -> Result<(), Error> {
    let name = blob.digest.to_string();
    task.status(&name, 0, Some(blob.size));
    let open = |at| -> std::io::Result<Box<dyn Read + Send>> {
        bases::fetch_blob(engine, from, blob, &|_| {}).map_err(std::io::Error::other)?;
        let mut file = engine.store.blobs().open_sized(&blob.digest, blob.size).map_err(std::io::Error::other)?;
        file.seek(SeekFrom::Start(at))?;
        Ok(Box::new(file))
    };
    let sources = std::slice::from_ref(from);
    engine.registry.push_blob_from(to, blob, sources, &open, &|sent| task.status(&name, sent, Some(blob.size)))?;
    task.status_done(&name, blob.size, Some(blob.size));
    Ok(())
}
