//! Hides how `kiln verify` asks for a rebuild and words what came of it.

use std::io;
use std::time::SystemTime;

use kiln::rebuild::{Claim, Difference, LayerDifference, Verdict, verify};
use kiln::request::BuildRequest;
use serde_json::{Value, json};

use super::args::VerifyArgs;
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
    let prepared = prepare(session, args);
    let (request, claim, mode, is_json) = match prepared {
        Ok(prepared) => prepared,
        Err(failure) => return report.failure(&failure, &Summary::default()),
    };
    let (result, summary) = session.work("Verifying", mode, |engine| Ok(verify(engine, &request, &claim)?));
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

fn prepare(session: &Session, args: &VerifyArgs) -> Result<(BuildRequest, Claim, super::progress::Mode, bool), Failure> {
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
    let mut request = build::request(&args.build, &session.environment, &mut io::stdin(), SystemTime::now())?;
    if request.platforms.len() > 1 {
        return Err(Failure::usage_hint("an image is verified for one platform at a time", "give one platform with --platform"));
    }
    request.caching.disabled = !args.use_cache;
    if !args.use_cache {
        request.caches = kiln::request::CacheRequest::default();
    }
    let claim = Claim { image: args.image.clone(), ignore_times: args.ignore_timestamps };
    Ok((request, claim, mode, is_json))
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
