//! Hides how questions about a Dockerfile are answered without building it: no layer is fetched, no step is run.

use std::path::PathBuf;
use std::sync::Arc;

use kiln_frontend::ignore::PatternMatcher;
use kiln_frontend::{Diagnostic, Outline, Parsed, Source, Target};

use crate::build::{Scope, load_definition, load_main_ignore, locate_main, lower_all};
use crate::engine::Engine;
use crate::error::Error;
use crate::request::BuildRequest;

/// What the build checks say about a Dockerfile.
#[derive(Debug)]
pub struct Checked {
    /// The Dockerfile.
    pub source: Arc<Source>,
    /// Where it is; `None` if it came as bytes or from elsewhere.
    pub path: Option<PathBuf>,
    /// The checks that fired.
    pub warnings: Vec<Diagnostic>,
    /// Why nothing could be built of it.
    pub error: Option<Error>,
}

/// Runs the build checks: on the stages that the target needs, or, if no target is named, on all of them. Configurations of base
/// images are asked for, because they take part in what variables mean.
pub fn check(engine: &Engine, request: &BuildRequest) -> Result<Checked, Error> {
    let definition = define(engine, request, true)?;
    let Definition { source, parsed, path, ignore, context_epoch } = definition;
    let all_stages = request.language.target.as_ref().is_none_or(String::is_empty);
    let (warnings, error) =
        match lower_all(engine, request, &request.platforms[0], &source, &parsed, Scope { all_stages, ignore, context_epoch }) {
            Ok((build, _)) => (build.warnings, None),
            Err(rejected) => (rejected.warnings, Some(rejected.error)),
        };
    if let Some(error @ Error::Interrupted) = error {
        return Err(error);
    }
    let warnings = warnings.into_iter().filter(|warning| warning.rule.is_some()).collect();
    Ok(Checked { source, path, warnings, error })
}

/// Lists what the target can be given from outside.
pub fn outline(engine: &Engine, request: &BuildRequest) -> Result<(Outline, Arc<Source>), Error> {
    let Definition { source, parsed, ignore, context_epoch, .. } = define(engine, request, true)?;
    let lowered =
        lower_all(engine, request, &request.platforms[0], &source, &parsed, Scope { all_stages: false, ignore, context_epoch });
    let (build, _) = lowered.map_err(|rejected| rejected.tell(engine, &source))?;
    engine.events.lints(&source, build.warnings);
    Ok((build.outline, source))
}

/// Lists the stages. No base image is asked for.
pub fn targets(engine: &Engine, request: &BuildRequest) -> Result<(Vec<Target>, Arc<Source>), Error> {
    let Definition { source, parsed, .. } = define(engine, request, false)?;
    let errors: Vec<Diagnostic> = parsed.diagnostics.iter().filter(|diagnostic| diagnostic.is_error()).cloned().collect();
    match errors.is_empty() {
        true => Ok((kiln_frontend::targets(&parsed), source)),
        false => Err(Error::Dockerfile { source_text: source, diagnostics: errors }),
    }
}

struct Definition {
    source: Arc<Source>,
    parsed: Parsed,
    path: Option<PathBuf>,
    ignore: PatternMatcher,
    /// When the main context was made.
    context_epoch: Option<u64>,
}

fn define(engine: &Engine, request: &BuildRequest, with_ignore: bool) -> Result<Definition, Error> {
    let main = locate_main(engine, request)?;
    let (source, parsed, path) = load_definition(engine, request, &main)?;
    let ignore = match with_ignore {
        true => load_main_ignore(engine, &main, path.as_deref())?,
        false => PatternMatcher::default(),
    };
    Ok(Definition { source, parsed, path, ignore, context_epoch: main.epoch })
}
