//! Hides the commands that join images and show what joins them: `manifest create` and `manifest inspect`.

use std::fs;
use std::path::Path;

use kiln::engine::Engine;
use kiln::manifest::{self, Append, Join, Joined, Source};
use kiln::request::Scope;
use kiln_oci::descriptor::Descriptor;
use kiln_oci::digest::Digest;
use kiln_oci::manifest::{Index, Manifest};
use kiln_oci::platform::Platform;
use kiln_oci::reference::{DEFAULT_DOMAIN, Reference};
use serde_json::{Map, Value, json};

use super::annotations;
use super::args::{CreateArgs, ManifestArgs, ManifestCommand, ManifestInspectArgs};
use super::build::{image_name, parse_platform, write_json};
use super::exit::Exit;
use super::progress::Mode;
use super::registry::conclude;
use super::report::Failure;
use super::session::Session;
use super::template::Template;

/// `kiln manifest`.
pub(crate) fn run(session: &Session, args: &ManifestArgs) -> Result<Exit, Failure> {
    match &args.command {
        ManifestCommand::Create(args) => create(session, args),
        ManifestCommand::Inspect(args) => inspect(session, args),
    }
}

fn create(session: &Session, args: &CreateArgs) -> Result<Exit, Failure> {
    let join = meant(args)?;
    let mode = session.mode(args.progress, args.dry_run)?;
    let (result, summary) = session.work("Joining", mode, |engine| Ok(manifest::create(engine, &join)?));
    let text = result.and_then(|joined| {
        if let Some(path) = &args.metadata_file {
            let names: Vec<String> = join.targets.iter().map(ToString::to_string).collect();
            let (descriptor, digest) = (&joined.descriptor, joined.descriptor.digest);
            let about = json!({
                "containerimage.descriptor": descriptor, "containerimage.digest": digest, "image.name": names.join(",")
            });
            write_json(path, &about)?;
        }
        match args.dry_run {
            true => pretty(&joined),
            false => Ok(format!("{}\n", joined.descriptor.digest)),
        }
    });
    Ok(conclude(session, text, &summary))
}

/// What was typed.
fn meant(args: &CreateArgs) -> Result<Join, Failure> {
    let (names, sources) = match (args.tag.as_slice(), args.names.as_slice()) {
        ([], [name, sources @ ..]) => (std::slice::from_ref(name), sources),
        (tags, sources) => (tags, sources),
    };
    let targets: Vec<Reference> = names.iter().map(|name| image_name(name)).collect::<Result<_, _>>()?;
    let Some(target) = targets.first() else {
        return Err(Failure::usage_hint("a name is needed", "write `kiln manifest create NAME SOURCE...`"));
    };
    let mut all = Vec::new();
    for path in &args.file {
        all.extend(from_file(path, target)?);
    }
    for text in sources {
        all.push(source(text, target)?);
    }
    let append = match (args.append, args.amend) {
        (true, _) => Append::Required,
        (_, true) => Append::Amend,
        _ => Append::No,
    };
    if all.is_empty() {
        return Err(Failure::usage_hint("there is nothing to join", "write `kiln manifest create NAME SOURCE...`"));
    }
    let mut annotations = annotations::parse(&args.annotation)?;
    for (scope, ..) in &mut annotations.items {
        *scope = match scope {
            // What has no place of its own in an index is the index's.
            Scope::Manifest if !args.annotation.iter().any(|text| text.starts_with("manifest")) => Scope::Index,
            Scope::Index | Scope::ManifestDescriptor => *scope,
            _ => {
                return Err(Failure::usage_hint(
                    "only indexes and manifests' descriptors can be annotated here",
                    "write `index:KEY=VALUE` or `manifest-descriptor:KEY=VALUE`; manifests are annotated by `kiln build`",
                ));
            }
        };
    }
    let platforms = args.platform.iter().flat_map(|text| text.split(',')).map(parse_platform).collect::<Result<_, _>>()?;
    Ok(Join { targets, sources: all, append, annotations, platforms, prefer_index: args.prefer_index, dry_run: args.dry_run })
}

/// A name, a digest of the target's repository, or a descriptor.
fn source(text: &str, target: &Reference) -> Result<Source, Failure> {
    let invalid = |why: &dyn std::fmt::Display| Failure::usage(format!("invalid source `{text}`: {why}"));
    if text.starts_with('{') {
        let value: Value = serde_json::from_str(text).map_err(|error| invalid(&error))?;
        return described(&value, target).ok_or_else(|| invalid(&"it is no descriptor"));
    }
    if let Ok(digest) = Digest::parse(text) {
        return Ok(Source::Named { reference: target.pinned(digest), store_first: false });
    }
    let reference = Reference::parse(text).map_err(|error| invalid(&error))?;
    let store_first = is_short(text, &reference);
    Ok(Source::Named { reference, store_first })
}

/// Whether no registry was typed.
fn is_short(text: &str, reference: &Reference) -> bool {
    reference.domain() == DEFAULT_DOMAIN && !text.starts_with(DEFAULT_DOMAIN)
}

/// A file with one of these, or with what `--metadata-file` leaves.
fn from_file(path: &Path, target: &Reference) -> Result<Vec<Source>, Failure> {
    let cause = |cause| Failure::Kiln(kiln::error::Error::ReadInput { what: "source", path: path.to_owned(), cause });
    let text = fs::read_to_string(path).map_err(cause)?;
    let Ok(value) = serde_json::from_str::<Value>(&text) else {
        return text.split_whitespace().map(|word| source(word, target)).collect();
    };
    described(&value, target)
        .map(|source| vec![source])
        .ok_or_else(|| Failure::usage(format!("{} holds neither a descriptor nor the metadata of a build", path.display())))
}

fn described(value: &Value, target: &Reference) -> Option<Source> {
    // The names in a build's metadata say where the image is.
    let name = value.get("image.name").and_then(Value::as_str).and_then(|names| names.split(',').next());
    let repository = name.and_then(|name| Reference::parse(name).ok()).unwrap_or_else(|| target.clone());
    let descriptor = value.get("containerimage.descriptor").unwrap_or(value);
    let descriptor: Box<Descriptor> = Box::new(serde_json::from_value(descriptor.clone()).ok()?);
    Some(Source::Described { repository, descriptor })
}

fn inspect(session: &Session, args: &ManifestInspectArgs) -> Result<Exit, Failure> {
    let reference =
        Reference::parse(&args.name).map_err(|error| Failure::usage(format!("invalid image name `{}`: {error}", args.name)))?;
    let template = args.format.as_deref().map(Template::parse).transpose()?;
    let wants_image = args.format.as_deref().is_some_and(|format| format.contains(".Image"));
    let store_first = is_short(&args.name, &reference);
    let (result, summary) = session.work("Inspecting", Mode::Quiet, |engine| {
        let found = manifest::inspect(engine, &reference, store_first)?;
        let images = if wants_image { images(engine, &reference, &found)? } else { Value::Null };
        Ok((found, images))
    });
    let text = result.and_then(|(found, images)| match template {
        _ if args.raw => Ok(String::from_utf8_lossy(&found.bytes).into_owned()),
        None => shown(&reference, &found),
        Some(template) => Ok(template.render(&fields(&reference, &found, images)?)? + "\n"),
    });
    Ok(conclude(session, text, &summary))
}

/// What a template can name.
fn fields(reference: &Reference, found: &Joined, images: Value) -> Result<Value, Failure> {
    let mut manifest = document(found)?;
    if let Value::Object(map) = &mut manifest {
        map.insert("digest".to_owned(), json!(found.descriptor.digest));
        map.insert("size".to_owned(), json!(found.descriptor.size));
    }
    Ok(json!({ "Name": reference.to_string(), "Manifest": manifest, "Image": images }))
}

/// The configuration, or those of all platforms.
fn images(engine: &Engine, reference: &Reference, found: &Joined) -> Result<Value, Failure> {
    let read = |bytes: &[u8]| -> Result<Value, Failure> {
        let manifest: Manifest = serde_json::from_slice(bytes).map_err(|error| unreadable(found, &error))?;
        Ok(json!(manifest::configuration(engine, reference, &manifest)?))
    };
    let Ok(index) = serde_json::from_slice::<Index>(&found.bytes) else { return read(&found.bytes) };
    if index.manifests.is_empty() {
        return read(&found.bytes);
    }
    let mut images = Map::new();
    for entry in index.manifests {
        let Some(platform) = entry.platform.filter(|platform| platform.os != "unknown") else { continue };
        let inner = manifest::inspect(engine, &reference.pinned(entry.digest), false)?;
        images.insert(Platform::to_string(&platform), read(&inner.bytes)?);
    }
    Ok(Value::Object(images))
}

fn document(found: &Joined) -> Result<Value, Failure> {
    serde_json::from_slice(&found.bytes).map_err(|error| unreadable(found, &error))
}

fn unreadable(found: &Joined, error: &serde_json::Error) -> Failure {
    let (name, reason) = (found.descriptor.digest.to_string(), error.to_string());
    Failure::Kiln(kiln::error::Error::Image(kiln::error::ImageError::Invalid { name, reason }))
}

fn pretty(joined: &Joined) -> Result<String, Failure> {
    Ok(format!("{:#}\n", document(joined)?))
}

/// What `docker buildx imagetools inspect` shows.
fn shown(reference: &Reference, found: &Joined) -> Result<String, Failure> {
    let mut text =
        format!("Name:      {reference}\nMediaType: {}\nDigest:    {}\n", found.descriptor.media_type, found.descriptor.digest);
    let index: Index = serde_json::from_value(document(found)?).map_err(|error| unreadable(found, &error))?;
    if !index.manifests.is_empty() {
        text.push_str("\nManifests:\n");
    }
    for entry in &index.manifests {
        text.push_str(&format!("  Name:        {}@{}\n", reference.repository(), entry.digest));
        text.push_str(&format!("  MediaType:   {}\n", entry.media_type));
        if let Some(platform) = &entry.platform {
            text.push_str(&format!("  Platform:    {platform}\n"));
        }
        if !entry.annotations.is_empty() {
            text.push_str("  Annotations:\n");
            let width = entry.annotations.keys().map(String::len).max().unwrap_or_default();
            for (key, value) in &entry.annotations {
                text.push_str(&format!("    {:width$} {value}\n", format!("{key}:"), width = width + 1));
            }
        }
        text.push('\n');
    }
    Ok(text)
}
