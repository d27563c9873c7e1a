//! Hides how it is found out when something was made that `SOURCE_DATE_EPOCH` names: a context, or what a stage fetches.

use kiln_frontend::TimeSource;
use kiln_frontend::graph::ContextId;

use crate::build::{access, locate};
use crate::context::source;
use crate::engine::Engine;
use crate::error::{Error, StepError};
use crate::ops::{git, http};
use crate::request::{BuildRequest, ContextSource, NamedSource};

/// Seconds since 1970; `None` where nobody says.
pub(crate) fn time_of(engine: &Engine, request: &BuildRequest, of: &TimeSource) -> Result<Option<u64>, Error> {
    let step = |cause: StepError| Error::Unplaced(Box::new(cause));
    match of {
        // The frontend was told which contexts there are, and takes the main one's time from its options.
        TimeSource::Context(ContextId::Main) => Ok(None),
        TimeSource::Context(ContextId::Named(index)) => match request.named_contexts.get(*index) {
            // A folder has no time, and is not looked at.
            None
            | Some((_, NamedSource::Files(ContextSource::Folder(_)) | NamedSource::Image(_) | NamedSource::Layout { .. })) => {
                Ok(None)
            }
            Some((name, NamedSource::Files(files))) => {
                Ok(locate(engine, request, files, &format!("[context {name}] load from client"))?.epoch)
            }
        },
        TimeSource::Http { url, checksum } => {
            let (grants, pins) = (&request.grants, &request.pins);
            let fetched = http::fetch_pinned(url, &engine.store, checksum.as_ref(), grants, pins, &|_, _| {});
            let fetched = fetched.map_err(|error| step(error.into()))?;
            source::time_of(engine, &fetched).map_err(|error| step(error.into()))
        }
        TimeSource::Git { url, checksum } => {
            let source::Access { environment, grants, pins } = access(request);
            let (origin, cancel) = (git::Origin::Dockerfile, &engine.cancel);
            let setting =
                git::Setting { store: &engine.store, events: &engine.events, environment, cancel, origin, grants, pins };
            let found = git::Fetched::find(url, checksum.as_deref(), None, &setting);
            engine.check()?;
            let task = engine.events.start(format!("fetching {}", git::redact(url)));
            let checkout = found.and_then(|found| found.check_out(&task));
            let checkout = task.end_with(checkout);
            engine.check()?;
            Ok(checkout.map_err(|error| step(error.into()))?.time.try_into().ok())
        }
    }
}
