//! Hides how a new cache mount gets its first content from a stage or an image (`RUN --mount=type=cache,from=…`).

use std::path::Path;
use std::time::SystemTime;

use kiln_oci::path::ImagePath;
use kiln_store::LayerId;
use kiln_store::rootdir::{Attrs, Kind};
use kiln_store::view::View;

use crate::engine::Engine;
use crate::error::Error;
use crate::event::Task;
use crate::ops::file::{self, SourceTree};

/// Copies what `layer` has at `source` to the same place below `folder`, owners and modes included. The layer's files must be there.
pub fn seed(
    engine: &Engine,
    layer: Option<&LayerId>,
    source: &ImagePath,
    folder: &Path,
    clock: SystemTime,
    task: &Task,
) -> Result<(), Error> {
    let dirs = match layer {
        Some(layer) => engine.store.layers().lowers(layer)?,
        None => Vec::new(),
    };
    let view = engine.store.view(dirs)?;
    let mut upper = engine.store.writer(folder, View::empty())?;
    let mut warn = |text: String| task.warn(text);
    file::copy(&file::whole(source), &SourceTree::View(&view), &View::empty(), &mut upper, &[], clock, &mut warn)?;
    upper.finish()?;
    // A copy leaves the folder that it copies into as it is.
    if let Some(node) = view.resolve(source)?.node.filter(|node| node.kind() == Kind::Dir) {
        engine.store.tree(folder)?.walk(source)?.set_attrs_of_self(&Attrs::of(node.meta(), node.xattrs()?))?;
    }
    Ok(())
}
