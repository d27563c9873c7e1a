//! Hides the commands that show what an image is made of: `inspect` and `history`.

use std::time::SystemTime;

use kiln_oci::config::ImageConfig;
use kiln_store::{ImageRecord, Store};
use serde::Serialize as _;
use serde_json::{Map, Value, json};

use super::args::{HistoryArgs, InspectArgs};
use super::build::parse_platform;
use super::images::{find, layer_sizes};
use super::listing::{Field, Listing};
use super::report::{Failure, write_stdout};
use super::session::Session;
use super::template::Template;
use super::{clock, human};

/// A configuration may not be larger; registries refuse larger ones too.
const LARGEST_CONFIG: u64 = 8 << 20;

/// What docker shows instead of the ids of layers that are no images.
const MISSING: &str = "<missing>";

fn config_of(store: &Store, image: &ImageRecord) -> Result<ImageConfig, Failure> {
    let bytes = store.blobs().read(&image.config, LARGEST_CONFIG)?;
    serde_json::from_slice(&bytes)
        .map_err(|_| kiln_store::Error::BlobCorrupt { digest: image.config, reason: "not an image configuration" }.into())
}

/// `kiln inspect`.
pub(crate) fn inspect(session: &Session, args: &InspectArgs) -> Result<(), Failure> {
    let template = match args.format.as_deref() {
        None => None,
        Some("json") => Some(Template::parse("{{json .}}")?),
        Some(text) => Some(Template::parse(text)?),
    };
    let store = session.store()?;
    let mut found = Vec::new();
    let mut failure = None;
    for text in &args.images {
        match find(&store, text)
            .and_then(|image| chosen(image, args.platform.as_deref()))
            .and_then(|image| describe(&store, &image))
        {
            Ok(value) => found.push(value),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    let text = match template {
        None => pretty(&Value::Array(found))?,
        Some(template) => found.iter().map(|value| Ok(template.render(value)? + "\n")).collect::<Result<String, Failure>>()?,
    };
    write_stdout(&text)?;
    failure.map_or(Ok(()), Err)
}

/// The image for the platform that was named.
fn chosen(image: ImageRecord, platform: Option<&str>) -> Result<ImageRecord, Failure> {
    let Some(platform) = platform.map(parse_platform).transpose()? else { return Ok(image) };
    Ok(kiln::export::for_platform(image, &platform)?)
}

/// With an indent of four, as docker prints it.
fn pretty(value: &Value) -> Result<String, Failure> {
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
    value.serialize(&mut serializer).map_err(|error| Failure::Stdout(error.into()))?;
    out.push(b'\n');
    Ok(String::from_utf8_lossy(&out).into_owned())
}

/// One element of the array that `docker inspect` prints.
fn describe(store: &Store, image: &ImageRecord) -> Result<Value, Failure> {
    let config = config_of(store, image)?;
    let (mut tags, mut digests) = (Vec::new(), Vec::new());
    for record in store.images().by_id(&image.config.to_string())? {
        let Some(name) = &record.name else { continue };
        if name.tag().is_some() {
            tags.push(name.familiar());
        }
        if let Some(digest) = record.digest() {
            let digest = format!("{}@{digest}", name.familiar_repository());
            if !digests.contains(&digest) {
                digests.push(digest);
            }
        }
    }
    let mut out = Map::new();
    let mut put = |key: &str, value: Value| out.insert(key.to_owned(), value);
    put("Id", json!(image.config));
    put("RepoTags", json!(tags));
    put("RepoDigests", json!(digests));
    put("Parent", json!(""));
    put("Comment", json!(config.history.last().map_or("", |entry| entry.comment.as_str())));
    put("Created", json!(config.created.as_deref().unwrap_or("")));
    put("DockerVersion", json!(""));
    put("Author", json!(config.author.as_deref().unwrap_or("")));
    put("Config", container_config(&config));
    put("Architecture", json!(config.architecture));
    if let Some(variant) = &config.variant {
        put("Variant", json!(variant));
    }
    put("Os", json!(config.os));
    put("Size", json!(layer_sizes(store, image)?.iter().sum::<u64>()));
    if let (Some(index), platforms) = (&image.index, &image.platforms) {
        // What docker calls the manifests of an image.
        let manifests =
            platforms.iter().map(|one| json!({ "Descriptor": one.manifest, "Platform": one.platform, "Id": one.config }));
        put("Descriptor", json!(index));
        put("Manifests", manifests.collect());
    }
    put("RootFS", json!({ "Type": "layers", "Layers": config.rootfs.diff_ids }));
    Ok(Value::Object(out))
}

/// The configuration with the keys that docker always shows.
fn container_config(config: &ImageConfig) -> Value {
    let mut map = match serde_json::to_value(&config.config) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    };
    for (key, empty) in
        [("User", json!("")), ("Env", Value::Null), ("Cmd", Value::Null), ("WorkingDir", json!("")), ("Entrypoint", Value::Null)]
    {
        map.entry(key).or_insert(empty);
    }
    for key in ["Volumes", "OnBuild", "Labels"] {
        map.entry(key).or_insert(Value::Null);
    }
    Value::Object(map)
}

const FIELDS: &[Field] = &[
    ("Comment", "COMMENT"),
    ("CreatedAt", "CREATED AT"),
    ("CreatedBy", "CREATED BY"),
    ("CreatedSince", "CREATED"),
    ("ID", "IMAGE"),
    ("Size", "SIZE"),
];

/// `kiln history`.
pub(crate) fn history(session: &Session, args: &HistoryArgs) -> Result<(), Failure> {
    let store = session.store()?;
    let image = chosen(find(&store, &args.image)?, args.platform.as_deref())?;
    let config = config_of(&store, &image)?;
    let sizes = layer_sizes(&store, &image)?;
    let now = SystemTime::now();
    let mut sizes = sizes.into_iter();
    let mut rows = Vec::new();
    for (position, entry) in config.history.iter().enumerate() {
        let size = if entry.empty_layer { 0 } else { sizes.next().unwrap_or(0) };
        let created = entry.created.as_deref().and_then(clock::parse_rfc3339);
        let at = created.map_or("N/A".to_owned(), clock::rfc3339);
        let since = created.map_or("N/A".to_owned(), |created| format!("{} ago", human::duration(clock::since(created, now))));
        let id = match position + 1 == config.history.len() {
            true if args.no_trunc => image.config.to_string(),
            true => image.config.short(),
            false => MISSING.to_owned(),
        };
        let created_by = entry.created_by.replace(['\t', '\n'], " ");
        rows.push(vec![
            entry.comment.clone(),
            at.clone(),
            if args.no_trunc { created_by } else { human::ellipsis(&created_by, 45) },
            if args.human { since } else { at },
            id,
            if args.human { human::size(size, 3) } else { size.to_string() },
        ]);
    }
    rows.reverse();
    let columns = vec!["ID", if args.human { "CreatedSince" } else { "CreatedAt" }, "CreatedBy", "Size", "Comment"];
    let format = if args.quiet && args.format.is_none() { Some("{{.ID}}") } else { args.format.as_deref() };
    write_stdout(&Listing { fields: FIELDS, columns, rows }.render(format)?)
}
