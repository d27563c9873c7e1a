//! Hides in which order the outputs of a build are written, and that equal images are assembled once.

use std::rc::Rc;

use kiln_oci::descriptor::Descriptor;
use kiln_oci::digest::Digest;
use kiln_oci::platform::Platform;
use kiln_oci::reference::Reference;
use kiln_registry_client::Repository;
use kiln_store::LayerRecord;

use crate::engine::Engine;
use crate::error::Error;
use crate::event::Task;
use crate::export::archive::{self, Member};
use crate::export::assemble::{Assembled, Built, assemble, keep, unpacked};
use crate::export::daemon::{self, Reached};
use crate::export::pack::Ready;
use crate::request::{ArchiveFormat, BuildRequest, ImageOptions, Output};
use crate::transfer::{self, PackedImage};

/// What the outputs gave.
#[derive(Debug, Default)]
pub(crate) struct Written {
    /// The digest of the configuration, if it is one image.
    pub(crate) config: Option<Digest>,
    /// The manifest or index.
    pub(crate) descriptor: Option<Descriptor>,
    /// The names that it got.
    pub(crate) names: Vec<String>,
}

/// Writes every output.
pub(crate) fn write(engine: &Engine, request: &BuildRequest, built: &[Built]) -> Result<Written, Error> {
    let mut writer = Writer { engine, built, assembled: Vec::new(), written: Written::default() };
    if request.outputs.is_empty() {
        let task = engine.events.start("exporting to image");
        let kept = writer.keep_unpacked(&request.tags, &task);
        task.end_with(kept)?;
    }
    for output in &request.outputs {
        let Some(options) = output.options() else { continue };
        let task = engine.events.start(match output {
            Output::Archive { format: ArchiveFormat::Oci, .. } => "exporting to oci image format",
            Output::Archive { format: ArchiveFormat::Docker, .. } | Output::Daemon { .. } => "exporting to docker image format",
            _ => "exporting to image",
        });
        let daemon = match output {
            Output::Daemon { daemons, .. } => daemon::find(engine, daemons)?,
            _ => None,
        };
        let done = writer.image(request, output, options, daemon.is_some(), &task);
        task.end_with(done)?;
        if let Some(daemon) = daemon {
            writer.hand_over(&daemon, options)?;
        }
        if let Output::Image { push: true, .. } = output {
            writer.push(options)?;
        }
    }
    Ok(writer.written)
}

struct Writer<'a> {
    engine: &'a Engine,
    built: &'a [Built],
    assembled: Vec<(ImageOptions, Rc<Assembled>)>,
    written: Written,
}

impl Writer<'_> {
    fn image(
        &mut self,
        request: &BuildRequest,
        output: &Output,
        options: &ImageOptions,
        leaves: bool,
        task: &Task,
    ) -> Result<(), Error> {
        let names: Vec<Reference> = options.names.iter().map(|name| name.reference.clone()).collect();
        let is_lazy = !leaves && matches!(output, Output::Image { push: false, .. } | Output::Daemon { .. });
        if is_lazy && options.wants_nothing() && request.outputs.len() == 1 {
            return self.keep_unpacked(&names, task);
        }
        let engine = self.engine;
        let ahead = |layer: &LayerRecord, blob: &Descriptor| {
            // Each name may be in a repository of its own; the push itself finds what is there already.
            options
                .names
                .iter()
                .try_for_each(|name| transfer::push_layer(engine, &Repository::from(&name.reference), layer, blob, task))
        };
        let ready: Option<Ready<'_>> = if matches!(output, Output::Image { push: true, .. }) { Some(&ahead) } else { None };
        let image = self.assembled(options, task, ready)?;
        if let Output::Archive { format, dest, .. } = output {
            let members: Vec<Member<'_>> = image.images.iter().map(|image| Member { names: names.clone(), image }).collect();
            archive::write(self.engine, &members, *format, dest, task)?;
        }
        let others_store = request.outputs.iter().any(|output| matches!(output, Output::Image { store: true, .. }));
        let stores = match output {
            Output::Image { store, .. } => *store,
            _ => !others_store,
        };
        if stores && let Some(record) = image.record() {
            keep(self.engine, record, &names, task)?;
        }
        self.written.config = match image.images.as_slice() {
            [only] if image.index.is_none() => Some(only.config.digest()),
            _ => None,
        };
        self.written.descriptor = Some(image.descriptor.clone());
        self.written.names = names.iter().map(ToString::to_string).collect();
        Ok(())
    }

    /// The image with these options, made at most once.
    fn assembled(&mut self, options: &ImageOptions, task: &Task, ready: Option<Ready<'_>>) -> Result<Rc<Assembled>, Error> {
        if let Some((_, known)) = self.assembled.iter().find(|(other, _)| other.same_image(options)) {
            return Ok(Rc::clone(known));
        }
        let made = Rc::new(assemble(self.engine, self.built, options, task, ready)?);
        self.assembled.push((options.clone(), Rc::clone(&made)));
        Ok(made)
    }

    /// Names the image in the store without a manifest: nobody needs one yet.
    fn keep_unpacked(&mut self, names: &[Reference], task: &Task) -> Result<(), Error> {
        for built in self.built {
            let record = unpacked(self.engine, built, task)?;
            self.written.config = Some(record.config);
            keep(self.engine, record, names, task)?;
        }
        self.written.names = names.iter().map(ToString::to_string).collect();
        Ok(())
    }

    /// Gives a daemon the image, or the one for this machine where there are several.
    fn hand_over(&mut self, daemon: &Reached, options: &ImageOptions) -> Result<(), Error> {
        let Some((_, image)) = self.assembled.iter().find(|(other, _)| other.same_image(options)) else { return Ok(()) };
        let platform = |image: &PackedImage| image.config.value().platform();
        let own = image.images.iter().max_by_key(|image| platform(image).serves(&Platform::host()));
        let Some(own) = own else { return Ok(()) };
        if image.images.len() > 1 {
            let text = "an image of several platforms stays in kiln's store, and the daemon gets that for";
            self.engine.events.warn(format!("{text} {}", platform(own)));
        }
        let names: Vec<Reference> = options.names.iter().map(|name| name.reference.clone()).collect();
        daemon.hand_over(self.engine, own, &names)
    }

    fn push(&mut self, options: &ImageOptions) -> Result<(), Error> {
        for name in &options.names {
            let task = self.engine.events.start(format!("pushing {}", name.reference));
            let pushed = transfer::push_in(self.engine, &name.reference, &task);
            self.written.descriptor = Some(task.end_with(pushed)?);
        }
        Ok(())
    }
}
