//! Hides how `kiln verify` asks for a rebuild and words what came of it.

use std::io;
use std::time::SystemTime;

use kiln::engine::Engine;
use kiln::pins::Pins;
use kiln::rebuild::sources::sources;
use kiln::rebuild::{Claim, Difference, LayerDifference, Verdict, verify};
use kiln::request::BuildRequest;
use kiln_oci::platform::Platform;
use serde_json::{Value, json};

use super::args::{BuildArgs, VerifyArgs};
use super::build;
use super::exit::Exit;
use super::progress::Summary;
use super::report::{Failure, write_stdout};
use super::session::Session;

/// So many fields of a configuration are told; the rest is counted.
const FIELDS: usize = 10;

/// Runs `kiln verify`: 0 when the image is what its sources build, 1 when it is not.
pub(crate) fn run(session: &Session, args: &VerifyArgs) -> Exit {
    let report = session.report(true);
    let (claim, mode, is_json) = match prepare(session, args) {
        Ok(prepared) => prepared,
        Err(failure) => return report.failure(&failure, &Summary::default()),
    };
    let (result, summary) = session.work("Verifying", mode, |engine| {
        let request = match args.build.context.is_empty() {
            false => request(session, args, &args.build)?,
            true => recalled(session, args, engine)?,
        };
        Ok(verify(engine, &request, &claim)?)
    });
    let told = result.and_then(|verdict| {
        write_stdout(&if is_json { format!("{:#}\n", as_json(&verdict)) } else { words(&claim.image, &verdict) })?;
        Ok(verdict)
    });
    match told {
        Ok(verdict) => {
            report.success(&summary);
            if verdict.is_identical() { Exit::Success } else { Exit::Failed }
        }
        Err(failure) => report.failure(&failure, &summary),
    }
}

fn prepare(session: &Session, args: &VerifyArgs) -> Result<(Claim, super::progress::Mode, bool), Failure> {
    let mode = session.mode(args.build.progress, args.build.quiet)?;
    let is_json = match args.format.as_deref() {
        None | Some("text") => false,
        Some("json") => true,
        Some(other) => return Err(Failure::usage(format!("unknown format `{other}`: it is one of text, json"))),
    };
    let outputs = [
        ("--tag", !args.build.tag.is_empty()),
        ("--output", !args.build.output.is_empty()),
        ("--push", args.build.push),
        ("--load", args.build.load),
        ("--cache-to", !args.build.cache_to.is_empty()),
        ("--lock", args.build.pins.lock.is_some()),
        ("--iidfile", args.build.iidfile.is_some()),
        ("--metadata-file", args.build.metadata_file.is_some()),
    ];
    if let Some((flag, _)) = outputs.iter().find(|(_, given)| *given) {
        return Err(Failure::usage_hint(
            format!("{flag} has no place here: `kiln verify` leaves no image"),
            format!("leave out {flag}"),
        ));
    }
    if !args.build.context.is_empty() {
        // A mistake in the flags is told before anything is begun; standard input is read later.
        platform(session, args)?;
    }
    let claim = Claim { image: args.image.clone(), ignore_times: args.ignore_timestamps };
    Ok((claim, mode, is_json))
}

/// The one platform that is looked at.
fn platform(session: &Session, args: &VerifyArgs) -> Result<Platform, Failure> {
    match build::platforms(&args.build, &session.environment)?.as_slice() {
        [platform] => Ok(platform.clone()),
        _ => {
            let hint = "give one platform with --platform";
            Err(Failure::usage_hint("an image is verified for one platform at a time", hint))
        }
    }
}

/// The build that `build` describes, without a cache unless that is wanted.
fn request(session: &Session, args: &VerifyArgs, build: &BuildArgs) -> Result<BuildRequest, Failure> {
    let mut request = build::request(build, &session.environment, &mut io::stdin(), SystemTime::now())?;
    request.caching.disabled = !args.use_cache;
    if !args.use_cache {
        request.caches = kiln::request::CacheRequest::default();
    }
    Ok(request)
}

/// The build that the image's provenance describes; flags beat what it says.
fn recalled(session: &Session, args: &VerifyArgs, engine: &Engine) -> Result<BuildRequest, Failure> {
    let task = engine.events.start(format!("[internal] load provenance of {}", args.image));
    let found = sources(engine, &args.image, &platform(session, args)?);
    let found = task.end_with(found)?;
    let cannot = |what: &str| {
        let message = format!("{} {what}", args.image);
        Failure::usage_hint(
            message,
            format!("give the build context and the flags of the build: `kiln verify {} CONTEXT`", args.image),
        )
    };
    let found = found.ok_or_else(|| cannot("has no provenance that could say what it was built from"))?;
    let context = found.context.ok_or_else(|| cannot("was built from a folder, as its provenance says"))?;
    let mut build = args.build.clone();
    build.context = context.into();
    build.file = build.file.or(found.dockerfile.map(Into::into));
    for (key, value) in found.args {
        match key.split_once(':') {
            // The last value of a name counts.
            Some(("build-arg", name)) => build.build_arg.insert(0, format!("{name}={value}")),
            Some(("label", name)) => build.label.insert(0, format!("{name}={value}")),
            Some(("context", name)) => {
                let is_given =
                    build.build_context.iter().any(|given| given.split_once('=').is_some_and(|(given, _)| given == name));
                if !is_given && (value.starts_with("local:") || value.starts_with("oci-layout:")) {
                    let what = format!("was built with the context `{name}`, which was on a machine only");
                    return Err(Failure::usage_hint(
                        format!("{} {what}", args.image),
                        format!("give `--build-context {name}=SOURCE`"),
                    ));
                }
                build.build_context.insert(0, format!("{name}={value}"));
            }
            _ => match key.as_str() {
                "target" => drop(build.target.get_or_insert(value)),
                "force-network-mode" => drop(build.network.get_or_insert(value)),
                "shm-size" => drop(build.shm_size.get_or_insert(value)),
                "add-hosts" => build.add_host.extend(value.split(',').map(str::to_owned)),
                _ => {}
            },
        }
    }
    let mut request = request(session, args, &build)?;
    if !request.pins.is_enforced() {
        request.pins = Pins::recalled(found.pins);
    }
    Ok(request)
}

fn words(image: &str, verdict: &Verdict) -> String {
    if verdict.is_identical() {
        return format!("{image} is what its sources build\n");
    }
    let mut out = format!("{image} is not what its sources build\n");
    for difference in verdict.config.iter().take(FIELDS) {
        out.push_str(&format!("configuration: {}\n", word(difference)));
    }
    if let Some(more @ 1..) = verdict.config.len().checked_sub(FIELDS) {
        out.push_str(&format!("configuration: {more} more fields differ\n"));
    }
    if let Some(layer) = &verdict.layer {
        out.push_str(&of_layer(layer));
    }
    if verdict.is_only_time() {
        out.push_str(
            "hint: nothing but times differs; `--ignore-timestamps` passes over them. SOURCE_DATE_EPOCH with \
             `--output type=image,name=NAME,rewrite-timestamp=true` makes images whose times are always the same\n",
        );
    }
    out
}

fn of_layer(layer: &LayerDifference) -> String {
    let (place, count) = layer.place;
    let made_by = layer.made_by.split_whitespace().collect::<Vec<_>>().join(" ");
    let made_by = if made_by.is_empty() { String::new() } else { format!(" ({})", super::human::ellipsis(&made_by, 100)) };
    let mut out = format!("layer {place} of {count}{made_by}:");
    let differences = layer.differences.iter().map(word).collect::<Vec<_>>().join("; ");
    match &layer.path {
        Some(path) => out.push_str(&format!(" {path}: {differences}\n")),
        None => out.push_str(&format!(" {differences}\n")),
    }
    if layer.more > 0 {
        out.push_str(&format!("layer {place} of {count}: {} more paths differ\n", layer.more));
    }
    out
}

fn word(difference: &Difference) -> String {
    let or_nothing = |text: &str| if text.is_empty() { "nothing".to_owned() } else { text.to_owned() };
    format!("{}: image {}, rebuilt {}", difference.field, or_nothing(&difference.image), or_nothing(&difference.rebuilt))
}

fn as_json(verdict: &Verdict) -> Value {
    let list = |differences: &[Difference]| -> Value {
        differences.iter().map(|d| json!({ "field": d.field, "image": d.image, "rebuilt": d.rebuilt })).collect()
    };
    json!({
        "identical": verdict.is_identical(),
        "config": list(&verdict.config),
        "layer": verdict.layer.as_ref().map(|layer| json!({
            "number": layer.place.0,
            "of": layer.place.1,
            "createdBy": layer.made_by,
            "path": layer.path,
            "differences": list(&layer.differences),
            "morePaths": layer.more,
        })),
    })
}
