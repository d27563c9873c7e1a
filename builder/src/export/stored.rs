//! Hides how an image that the store keeps becomes documents and layers again, for a push or an archive.

use kiln_oci::descriptor::Descriptor;
use kiln_oci::manifest::{Index, Manifest, Raw};
use kiln_oci::media_type;
use kiln_oci::platform::Platform;
use kiln_oci::reference::Reference;
use kiln_store::ImageRecord;

use crate::bases::MAX_DOCUMENT;
use crate::engine::Engine;
use crate::error::{Error, ImageError};
use crate::event::Task;
use crate::export::assemble::{Assembled, Attached};
use crate::export::form::Form;
use crate::export::pack::Ready;
use crate::transfer::packed_image;

/// The image with this name, or of it the one for `platform`.
pub(crate) fn find(
    engine: &Engine,
    name: &Reference,
    platform: Option<&Platform>,
    task: &Task,
    ready: Option<Ready<'_>>,
) -> Result<Assembled, Error> {
    let Some(record) = engine.store.images().get(name)? else {
        return Err(Error::Image(ImageError::NotFound { name: name.familiar() }));
    };
    whole(engine, record, platform, task, ready)
}

/// The same of a record; `ready` gets each layer that has to be packed as soon as it is.
pub(crate) fn whole(
    engine: &Engine,
    mut record: ImageRecord,
    platform: Option<&Platform>,
    task: &Task,
    ready: Option<Ready<'_>>,
) -> Result<Assembled, Error> {
    if let Some(platform) = platform {
        record = for_platform(record, platform)?;
    }
    let Some(descriptor) = record.index.clone() else {
        let image = packed_image(engine, &mut record, &Form::DEFAULT, task, ready)?;
        let descriptor = image.descriptor.clone();
        return Ok(Assembled { images: vec![image], attached: Vec::new(), index: None, descriptor });
    };
    let name = || record.name.as_ref().map_or_else(|| record.config.to_string(), Reference::familiar);
    let invalid = |reason: String| Error::Image(ImageError::Invalid { name: name(), reason });
    let read = |descriptor: &Descriptor| engine.store.blobs().read(&descriptor.digest, MAX_DOCUMENT);
    let index = Raw::<Index>::parse(read(&descriptor)?).map_err(|e| invalid(format!("its index can't be read: {e}")))?;
    let (mut images, mut attached) = (Vec::new(), Vec::new());
    for entry in &index.value().manifests {
        let known = record.platforms.iter().find(|image| image.manifest.digest == entry.digest);
        if let Some(image) = known {
            // Without a name: an index can't be told of another manifest.
            let mut one = ImageRecord { name: None, ..record.single(image) };
            let mut packed = packed_image(engine, &mut one, &Form::DEFAULT, task, ready)?;
            if packed.descriptor.digest != entry.digest {
                return Err(invalid(format!("the layers that the manifest {} names are lost", entry.digest)));
            }
            packed.descriptor = entry.clone();
            images.push(packed);
        } else if is_attached(entry) && engine.store.blobs().has(&entry.digest) {
            let manifest = Raw::<Manifest>::parse(read(entry)?).map_err(|e| invalid(format!("a manifest can't be read: {e}")))?;
            attached.push(Attached { descriptor: entry.clone(), manifest });
        } else {
            return Err(Error::Image(ImageError::NotAllPlatforms { name: name(), missing: shown(entry) }));
        }
    }
    Ok(Assembled { images, attached, index: Some(index), descriptor })
}

/// The record of the image for `platform`.
pub fn for_platform(record: ImageRecord, platform: &Platform) -> Result<ImageRecord, Error> {
    if let Some(found) = record.for_platform(platform) {
        return Ok(found);
    }
    let own = record.platform.clone();
    if record.index.is_none() && own.as_ref().is_none_or(|own| own.serves(platform).is_some()) {
        return Ok(record);
    }
    let name = record.name.as_ref().map_or_else(|| record.config.to_string(), Reference::familiar);
    let offered = match record.platforms.is_empty() {
        true => own.iter().map(ToString::to_string).collect(),
        false => record.platforms.iter().map(|image| image.platform.to_string()).collect(),
    };
    Err(Error::Image(ImageError::NoPlatform { name, wanted: platform.to_string(), offered }))
}

/// Whether an entry of an index is something said about another one.
pub(crate) fn is_attached(entry: &Descriptor) -> bool {
    media_type::is_manifest(&entry.media_type) && entry.annotations.contains_key("vnd.docker.reference.digest")
}

fn shown(entry: &Descriptor) -> String {
    entry.platform.as_ref().map_or_else(|| entry.digest.to_string(), ToString::to_string)
}
