//! Hides in which order the outputs of a build are written, and that equal images are assembled once.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

use kiln_oci::descriptor::Descriptor;
use kiln_oci::digest::Digest;
use kiln_oci::platform::Platform;
use kiln_oci::reference::Reference;
use kiln_registry_client::{Client, ManifestName, Repository, Rule};
use kiln_store::LayerRecord;
use serde_json::Value;

use crate::attest::attach;
use crate::engine::Engine;
use crate::error::{Error, ImageError};
use crate::event::Task;
use crate::export::archive::{self, Member};
use crate::export::assemble::{Assembled, Built, assemble, keep, unpacked};
use crate::export::daemon::{self, Reached};
use crate::export::files;
use crate::export::pack::Ready;
use crate::request::{ArchiveFormat, BuildRequest, FilesForm, ImageOptions, Name, Output};
use crate::transfer::{Ahead, push_image, push_layer};

/// What the outputs gave.
#[derive(Debug, Default)]
pub(crate) struct Written {
    /// The digest of the configuration, if it is one image.
    pub(crate) config: Option<Digest>,
    /// The manifest or index.
    pub(crate) descriptor: Option<Descriptor>,
    /// The names that it got.
    pub(crate) names: Vec<String>,
    /// How it was built, for each platform, where somebody wants to know.
    pub(crate) provenance: Vec<(Platform, Value)>,
}

/// Writes every output, in the order given.
pub(crate) fn write(engine: &Engine, request: &BuildRequest, built: &[Built]) -> Result<Written, Error> {
    let mut writer = Writer { engine, request, built, assembled: Vec::new(), written: Written::default() };
    if request.outputs.is_empty() {
        let names = request.tags.iter().map(|tag| Name { reference: tag.clone(), tagged: true }).collect();
        let options = ImageOptions { names, ..ImageOptions::default() };
        writer.output(&Output::Image { push: false, store: true, options })?;
    }
    for output in &request.outputs {
        if let Output::Files { form, dest, platform_split, attestation_prefix, epoch } = output {
            let name = if *form == FilesForm::Tar { "exporting to client tarball" } else { "exporting to client directory" };
            let task = engine.events.start(name);
            let wanted =
                files::Wanted { form: *form, dest, platform_split: *platform_split, clock: request.clock, epoch: *epoch };
            // Where one folder has the files of several platforms, the names tell them apart.
            let joined = built.len() > 1 && *platform_split == Some(false);
            let said = built.iter().map(|built| attach::to_files(engine, request, built, attestation_prefix, joined, &task));
            let said: Result<Vec<_>, Error> = said.collect();
            let done = said.and_then(|said| files::write(engine, built, &said, &wanted, &task));
            task.end_with(done)?;
            continue;
        }
        writer.output(output)?;
    }
    let asked = &request.attestations;
    if writer.written.provenance.is_empty() && (asked.provenance.is_some() || asked.told.is_some()) {
        writer.tell(None);
    }
    Ok(writer.written)
}

struct Writer<'a> {
    engine: &'a Engine,
    request: &'a BuildRequest,
    built: &'a [Built],
    assembled: Vec<(ImageOptions, Rc<Assembled>)>,
    written: Written,
}

impl Writer<'_> {
    fn output(&mut self, output: &Output) -> Result<(), Error> {
        let Some(options) = output.options() else { return Ok(()) };
        let task = self.engine.events.start(match output {
            Output::Archive { format: ArchiveFormat::Oci, .. } => "exporting to oci image format",
            Output::Archive { format: ArchiveFormat::Docker, .. } | Output::Daemon { .. } => "exporting to docker image format",
            _ => "exporting to image",
        });
        let daemon = match output {
            Output::Daemon { daemons, .. } => daemon::find(self.engine, daemons)?,
            _ => None,
        };
        let client = client(self.engine, options)?;
        let way = Way { client: &client, ahead: Ahead::default() };
        let image = self.export(output, options, daemon.is_some(), &way, &task);
        let image = task.end_with(image)?;
        match (output, daemon, image) {
            (Output::Image { push: true, .. }, _, Some(image)) => self.push(options, &image, &way),
            (_, Some(daemon), Some(image)) => self.hand_over(&daemon, options, &image),
            _ => Ok(()),
        }
    }

    /// Writes an image to where it stays on this machine. Without documents, if nobody needs any. What is to be pushed goes ahead,
    /// layer by layer.
    fn export(
        &mut self,
        output: &Output,
        options: &ImageOptions,
        leaves: bool,
        way: &Way<'_>,
        task: &Task,
    ) -> Result<Option<Rc<Assembled>>, Error> {
        let names: Vec<Reference> = options.names.iter().map(|name| name.reference.clone()).collect();
        let is_lazy = !leaves && matches!(output, Output::Image { push: false, .. } | Output::Daemon { .. });
        if let [built] = self.built
            && is_lazy
            && options.wants_nothing()
            && self.request.attestations.is_empty()
            && self.request.outputs.len() <= 1
        {
            let record = unpacked(self.engine, built, task)?;
            self.written.config = Some(record.config);
            self.written.names = names.iter().map(ToString::to_string).collect();
            keep(self.engine, record, &names, task)?;
            return Ok(None);
        }
        let engine = self.engine;
        // Each name may be in a repository of its own.
        let repositories: BTreeSet<Repository> = names.iter().map(Repository::from).collect();
        let send = |layer: &LayerRecord, blob: &Descriptor| {
            repositories.iter().try_for_each(|repository| {
                push_layer(engine, way.client, repository, layer, blob, task)?;
                way.ahead.note(repository, blob);
                Ok(())
            })
        };
        let ready: Option<Ready<'_>> = if matches!(output, Output::Image { push: true, .. }) { Some(&send) } else { None };
        let image = self.assembled(options, task, ready)?;
        let digest = image.descriptor.digest;
        let dangling_name = options.dangling_prefix.as_ref().filter(|_| names.is_empty() || !options.dangling_empty_only);
        let dangling_name = dangling_name.map(|prefix| dangling(prefix, digest)).transpose()?;
        let names: Vec<Reference> = names.into_iter().chain(dangling_name).collect();
        if let Output::Archive { format, dest, .. } = output {
            let members = [Member { names: names.clone(), image: &image }];
            archive::write(self.engine, &members, *format, dest, task)?;
        }
        if self.stores(output)
            && let Some(record) = image.record()
        {
            let canonical = names.iter().filter(|_| options.name_canonical).map(|name| name.pinned(digest));
            let all: Vec<Reference> = names.iter().cloned().chain(canonical).collect();
            keep(self.engine, record, &all, task)?;
        }
        self.written.config = image.config();
        self.tell(Some(&image));
        let first = image.images.first().map(|image| image.config.value());
        self.written.descriptor = Some(match output {
            Output::Archive { .. } => archive::dated(&image.descriptor, first),
            _ => image.descriptor.clone(),
        });
        // As they were typed: who pushes by digest goes on with the repository's name.
        let shown = |name: &Name| {
            if name.tagged || !options.push_by_digest { name.reference.to_string() } else { name.reference.repository() }
        };
        self.written.names = match options.names.is_empty() {
            true => names.iter().map(ToString::to_string).collect(),
            false => options.names.iter().map(shown).collect(),
        };
        Ok(Some(image))
    }

    /// Writes down how an image was built, or what had no manifest.
    fn tell(&mut self, image: Option<&Assembled>) {
        let asked = &self.request.attestations;
        let told = self.built.iter().enumerate().filter_map(|(number, built)| {
            let image = image.and_then(|image| image.images.get(number));
            Some((built.platform.clone(), attach::told(asked, built, image)?))
        });
        self.written.provenance = told.collect();
    }

    /// Whether the store keeps what this output writes. It keeps every image unless an output says which.
    fn stores(&self, output: &Output) -> bool {
        let says = |output: &Output| matches!(output, Output::Image { .. });
        match output {
            Output::Image { store, .. } => *store,
            _ => !self.request.outputs.iter().any(says),
        }
    }

    /// The image with these options, made at most once.
    fn assembled(&mut self, options: &ImageOptions, task: &Task, ready: Option<Ready<'_>>) -> Result<Rc<Assembled>, Error> {
        if let Some((_, known)) = self.assembled.iter().find(|(other, _)| other.same_image(options)) {
            return Ok(Rc::clone(known));
        }
        let made = Rc::new(assemble(self.engine, self.request, self.built, options, task, ready)?);
        self.assembled.push((options.clone(), Rc::clone(&made)));
        Ok(made)
    }

    /// Gives a daemon the image, or the one for this machine where there are several.
    fn hand_over(&self, daemon: &Reached, options: &ImageOptions, image: &Assembled) -> Result<(), Error> {
        let own = image.images.iter().max_by_key(|image| image.platform().serves(&Platform::host()));
        let Some(own) = own else { return Ok(()) };
        if image.images.len() > 1 {
            let text = "an image of several platforms stays in kiln's store, and the daemon gets that for";
            self.engine.events.warn(format!("{text} {}", own.platform()));
        }
        let names: Vec<Reference> = options.names.iter().map(|name| name.reference.clone()).collect();
        daemon.hand_over(self.engine, own, &names)
    }

    fn push(&self, options: &ImageOptions, image: &Assembled, way: &Way<'_>) -> Result<(), Error> {
        for name in &options.names {
            let reference = &name.reference;
            let task = self.engine.events.start(match options.push_by_digest {
                true => format!("pushing {}", reference.repository()),
                false => format!("pushing {reference}"),
            });
            let place = match reference.tag().filter(|_| !options.push_by_digest) {
                Some(tag) => ManifestName::Tag(tag),
                None => ManifestName::Digest,
            };
            let repository = Repository::from(reference);
            let pushed = push_image(self.engine, way.client, image, (&repository, place), &way.ahead, &task);
            task.end_with(pushed)?;
        }
        Ok(())
    }
}

/// How an image gets to its registries.
struct Way<'a> {
    client: &'a Client,
    /// What is there already.
    ahead: Ahead,
}

/// The client for the registries of an output, which may be such as have a certificate that nobody vouches for, or none
/// (`registry.insecure`).
fn client(engine: &Engine, output: &ImageOptions) -> Result<Arc<Client>, Error> {
    if !output.insecure {
        return Ok(Arc::clone(&engine.registry));
    }
    let mut options = engine.registry.options().clone();
    for name in &output.names {
        options.rules.push(Rule { prefix: name.reference.repository(), insecure: true, ..Rule::default() });
    }
    Ok(Arc::new(Client::new(options)?))
}

fn dangling(prefix: &str, digest: Digest) -> Result<Reference, Error> {
    let name = Reference::parse(&format!("{prefix}@{digest}"));
    name.map_err(|error| Error::Image(ImageError::Invalid { name: prefix.to_owned(), reason: error.to_string() }))
}
