//! Hides how an image is proved to be what its sources build: it is built once more, and both are compared.
//!
//! What is compared is what an image says: its configuration field by field, and its layers entry by entry. How blobs are compressed, and
//! how a tar spells the same entry, is nobody's concern.

pub mod sources;

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::time::SystemTime;

use kiln_oci::config::ImageConfig;
use kiln_oci::digest::{DiffId, Digest, Hasher};
use kiln_oci::manifest::Raw;
use kiln_oci::platform::Platform;
use kiln_oci::reference::Reference;
use kiln_store::layer::compress::{Compression, Decoder, EncodeOptions};
use kiln_store::layer::pack_compressed;
use kiln_store::rootdir::{Kind, Xattrs};
use kiln_store::tar::{Entry, EntryKind, Reader, TarError};
use kiln_store::{BaseLayer, LayerKind, LayerRecord};
use serde_json::Value;

use crate::bases;
use crate::build::build_with;
use crate::engine::Engine;
use crate::error::{Error, ImageError};
use crate::event::Task;
use crate::export::assemble::{self, Built};
use crate::ops::source::fetch_layer;
use crate::request::{BuildRequest, CacheRequest};

/// Which image is to be verified, and how strictly.
#[derive(Debug, Clone)]
pub struct Claim {
    /// Its name or id in the store, or else its name in a registry.
    pub image: String,
    /// Whether times of files, of the image and of its history are passed over.
    pub ignore_times: bool,
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// What the configurations say differently.
    pub config: Vec<Difference>,
    /// The first layer that differs.
    pub layer: Option<LayerDifference>,
}

impl Verdict {
    /// Whether the image is what its sources build.
    pub fn is_identical(&self) -> bool {
        self.config.is_empty() && self.layer.is_none()
    }

    /// Whether nothing but times differs.
    pub fn is_only_time(&self) -> bool {
        let layers = self.layer.as_ref().is_none_or(|layer| layer.is_only_time);
        !self.is_identical() && layers && self.config.iter().all(|difference| difference.field.ends_with("created"))
    }
}

/// Something that both say differently.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// A field of the configuration (`config.Env[2]`), or what of an entry (`content`, `mode`, `owner`, `time`, …).
    pub field: String,
    /// What the image has; empty where it has nothing.
    pub image: String,
    /// What the rebuilt image has.
    pub rebuilt: String,
}

/// A layer that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerDifference {
    /// Its place, counted from 1, and how many layers the image has.
    pub place: (usize, usize),
    /// The instruction that made it, as the image's history has it.
    pub made_by: String,
    /// The first path that differs; `None` when one of the images has no such layer at all.
    pub path: Option<String>,
    /// What differs there.
    pub differences: Vec<Difference>,
    /// How many more paths differ in this layer.
    pub more: usize,
    /// Whether all of them differ in their times alone.
    pub is_only_time: bool,
}

/// An image that is claimed to be what a build gives.
struct Claimed {
    config: Raw<ImageConfig>,
    layers: Vec<LayerRecord>,
}

/// Builds what `request` says and compares it with an image; neither gets a name.
///
/// The time of the image is taken for the build's clock: what was written at the build's beginning can be the same.
///
/// # Errors
/// The image or its sources can't be had, or the build fails.
pub fn verify(engine: &Engine, request: &BuildRequest, claim: &Claim) -> Result<Verdict, Error> {
    let platform = request.platforms.first().cloned().unwrap_or_else(Platform::host);
    let task = engine.events.start(format!("[internal] load {}", claim.image));
    let found = find(engine, &claim.image, &platform, &task);
    let claimed = task.end_with(found)?;
    let created = claimed.config.value().created.as_deref().and_then(|text| humantime::parse_rfc3339_weak(text).ok());
    let request = BuildRequest {
        clock: created.unwrap_or(request.clock),
        platforms: vec![platform],
        // What others say proves nothing, and they need not hear of it.
        caches: CacheRequest::default(),
        ..request.clone()
    };
    build_with(engine, &request, |built| {
        let [built] = built else { return Ok(Verdict::default()) };
        let task = engine.events.start(format!("comparing with {}", claim.image));
        let verdict = compare(engine, &claimed, built, claim.ignore_times, created, &task);
        task.end_with(verdict)
    })
}

fn find(engine: &Engine, image: &str, platform: &Platform, task: &Task) -> Result<Claimed, Error> {
    if let Some(record) = engine.store.images().find(image)? {
        let config = bases::read_config(engine, &record.config)?;
        if config.value().platform().serves(platform).is_some() {
            return Ok(Claimed { config, layers: chain(engine, record.layers.last())? });
        }
    }
    let missing = || Error::Image(ImageError::NotFound { name: image.to_owned() });
    let reference = Reference::parse(image).map_err(|_| missing())?;
    let found = bases::resolve(engine, &reference, platform, true, task)?;
    Ok(Claimed { layers: chain(engine, found.layer.as_ref())?, config: found.config })
}

fn chain(engine: &Engine, top: Option<&kiln_store::LayerId>) -> Result<Vec<LayerRecord>, Error> {
    Ok(top.map_or(Ok(Vec::new()), |top| engine.store.layers().chain(top))?)
}

fn compare(
    engine: &Engine,
    claimed: &Claimed,
    built: &Built,
    ignore_times: bool,
    created: Option<SystemTime>,
    task: &Task,
) -> Result<Verdict, Error> {
    let record = assemble::unpacked(engine, built, task)?;
    let config = bases::read_config(engine, &record.config)?;
    let mut verdict = Verdict { config: fields(&claimed.config, &config, ignore_times), layer: None };
    let ids = [&claimed.config, &config].map(|config| config.value().rootfs.diff_ids.clone());
    let created = created.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    // A time that was given is whole seconds, one that a clock said hardly ever is.
    let created = created.filter(|since| since.subsec_nanos() == 0);
    let times = Times { ignored: ignore_times, latest: created.and_then(|since| since.as_secs().try_into().ok()) };
    let count = claimed.layers.len();
    for index in 0..count.max(built.layers.len()) {
        engine.check()?;
        let made_by = || made_by(claimed.config.value(), index).or_else(|| made_by(config.value(), index)).unwrap_or_default();
        let of = |ids: &[DiffId]| ids.get(index).copied();
        if of(&ids[0]) == of(&ids[1]) {
            continue;
        }
        let name = format!("comparing layer {} of {count}", index + 1);
        task.status(&name, 0, None);
        let place = (index + 1, count);
        verdict.layer = match (claimed.layers.get(index), built.layers.get(index)) {
            (Some(image), Some(rebuilt)) => {
                let image = entries(engine, image, task)?;
                let rebuilt = entries(engine, rebuilt, task)?;
                first_difference(&image, &rebuilt, times).map(|(path, differences, more, is_only_time)| LayerDifference {
                    place,
                    made_by: made_by(),
                    path: Some(path),
                    differences,
                    more,
                    is_only_time,
                })
            }
            (image, _) => {
                let side = |there: bool| if there { "a layer".to_owned() } else { "none".to_owned() };
                let difference =
                    Difference { field: "layer".to_owned(), image: side(image.is_some()), rebuilt: side(image.is_none()) };
                Some(LayerDifference {
                    place,
                    made_by: made_by(),
                    path: None,
                    differences: vec![difference],
                    more: 0,
                    is_only_time: false,
                })
            }
        };
        task.status_done(&name, 0, None);
        if verdict.layer.is_some() {
            break;
        }
    }
    Ok(verdict)
}

/// The instruction behind a layer.
fn made_by(config: &ImageConfig, layer: usize) -> Option<String> {
    config.history.iter().filter(|entry| !entry.empty_layer).nth(layer).map(|entry| entry.created_by.clone())
}

/// What two configurations say differently. The digests of layers are compared with the layers.
fn fields(image: &Raw<ImageConfig>, rebuilt: &Raw<ImageConfig>, ignore_times: bool) -> Vec<Difference> {
    let value = |config: &Raw<ImageConfig>| {
        let mut value: Value = serde_json::from_slice(config.bytes()).unwrap_or_default();
        if let Some(map) = value.as_object_mut() {
            map.remove("rootfs");
        }
        value
    };
    let mut out = Vec::new();
    walk("", &value(image), &value(rebuilt), &mut out);
    out.retain(|difference| !(ignore_times && difference.field.ends_with("created")));
    out
}

fn walk(path: &str, image: &Value, rebuilt: &Value, out: &mut Vec<Difference>) {
    match (image, rebuilt) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for key in keys {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                walk(&path, a.get(key).unwrap_or(&Value::Null), b.get(key).unwrap_or(&Value::Null), out);
            }
        }
        (Value::Array(a), Value::Array(b)) => {
            for index in 0..a.len().max(b.len()) {
                let [a, b] = [a, b].map(|list| list.get(index).unwrap_or(&Value::Null));
                walk(&format!("{path}[{index}]"), a, b, out);
            }
        }
        _ if image == rebuilt => {}
        _ => {
            let text = |value: &Value| if value.is_null() { String::new() } else { value.to_string() };
            out.push(Difference { field: path.to_owned(), image: text(image), rebuilt: text(rebuilt) });
        }
    }
}

/// How times are compared.
#[derive(Debug, Clone, Copy)]
struct Times {
    ignored: bool,
    /// The time of the image, in seconds since 1970. Where no file of a layer is later, the layer may have been packed with its times
    /// clamped to it, and later times of the other count as it.
    latest: Option<i64>,
}

/// One path of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Fact {
    kind: &'static str,
    link: Vec<u8>,
    mode: u32,
    owner: (u32, u32),
    size: u64,
    content: Option<Digest>,
    rdev: (u32, u32),
    mtime: i64,
    xattrs: Xattrs,
}

type Facts = BTreeMap<Vec<u8>, Fact>;

/// All that a layer's tar says.
fn entries(engine: &Engine, layer: &LayerRecord, task: &Task) -> Result<Facts, Error> {
    if let LayerKind::Base(BaseLayer { blob, .. }) = &layer.kind {
        fetch_layer(engine, layer, task)?;
        let failed = |cause| Error::System { operation: "read a blob of the store", cause };
        let reader = engine.store.blobs().reader(&blob.digest, blob.size)?;
        let (_, decoder) = Decoder::detect(reader).map_err(failed)?;
        return facts(decoder).map_err(|cause| failed(io::Error::other(cause)));
    }
    let tree = engine.store.tree(&engine.store.layers().diff_dir(&layer.id))?;
    let failed = |cause| Error::System { operation: "make a pipe", cause };
    let (reader, mut writer) = io::pipe().map_err(failed)?;
    std::thread::scope(|scope| {
        let packing = engine.store.packing();
        let pack = scope.spawn(move || {
            let options = EncodeOptions::default();
            pack_compressed(&tree, &mut writer, Compression::None, options, &packing).map(drop)
        });
        let facts = facts(reader);
        match pack.join() {
            Ok(packed) => packed?,
            Err(panic) => std::panic::resume_unwind(panic),
        }
        facts.map_err(|cause| Error::System { operation: "read a layer", cause: io::Error::other(cause) })
    })
}

fn facts(tar: impl Read) -> Result<Facts, TarError> {
    let mut reader = Reader::new(tar);
    let mut facts = Facts::new();
    let mut buffer = vec![0; 256 << 10];
    while let Some(entry) = reader.next_entry()? {
        let path = plain(&entry.path);
        // A further name says nothing of its own; which of the names a tar has first is a matter of taste.
        let known = if entry.kind == EntryKind::HardLink { facts.get(&plain(&entry.link)).cloned() } else { None };
        let fact = match known {
            Some(fact) => fact,
            None => {
                let mut hasher = Hasher::new();
                let mut length = 0;
                loop {
                    let n = reader.read(&mut buffer)?;
                    if n == 0 {
                        break;
                    }
                    hasher.update(&buffer[..n]);
                    length += n as u64;
                }
                fact(&entry, (length > 0).then(|| hasher.finish()))
            }
        };
        facts.insert(path, fact);
    }
    reader.drain()?;
    Ok(facts)
}

/// `./a/b/` and `/a/b` are `a/b`.
fn plain(path: &[u8]) -> Vec<u8> {
    let names: Vec<&[u8]> = path.split(|b| *b == b'/').filter(|name| !matches!(*name, b"" | b".")).collect();
    names.join(&b'/')
}

fn fact(entry: &Entry, content: Option<Digest>) -> Fact {
    let kind = match entry.kind {
        EntryKind::HardLink => "hard link",
        EntryKind::Node(Kind::File) => "file",
        EntryKind::Node(Kind::Dir) => "directory",
        EntryKind::Node(Kind::Symlink) => "symbolic link",
        EntryKind::Node(Kind::Char) => "character device",
        EntryKind::Node(Kind::Block) => "block device",
        EntryKind::Node(Kind::Fifo) => "pipe",
        EntryKind::Node(Kind::Socket) => "socket",
    };
    // The rights of a symbolic link mean nothing, and tools write what they like.
    let mode = if kind == "symbolic link" { 0o777 } else { entry.mode };
    Fact {
        kind,
        link: entry.link.clone(),
        mode,
        owner: (entry.uid, entry.gid),
        size: entry.size,
        content,
        rdev: entry.rdev,
        mtime: entry.mtime.secs,
        xattrs: entry.xattrs.clone(),
    }
}

/// The first path at which two layers differ, what differs there, how many more do, and whether it is never more than the time.
fn first_difference(image: &Facts, rebuilt: &Facts, times: Times) -> Option<(String, Vec<Difference>, usize, bool)> {
    let latest = times.latest.filter(|latest| image.values().all(|fact| fact.mtime <= *latest));
    let times = Times { latest, ..times };
    let paths: std::collections::BTreeSet<&Vec<u8>> = image.keys().chain(rebuilt.keys()).collect();
    let mut first = None;
    let (mut count, mut is_only_time) = (0, true);
    for path in paths {
        let differences = match (image.get(path), rebuilt.get(path)) {
            (Some(a), Some(b)) => between(a, b, times),
            (a, _) => {
                let side = |there: bool| if there { "there".to_owned() } else { "missing".to_owned() };
                vec![Difference { field: "path".to_owned(), image: side(a.is_some()), rebuilt: side(a.is_none()) }]
            }
        };
        if differences.is_empty() {
            continue;
        }
        count += 1;
        is_only_time &= differences.iter().all(|difference| difference.field == "time");
        first.get_or_insert_with(|| (format!("/{}", String::from_utf8_lossy(path)), differences));
    }
    first.map(|(path, differences)| (path, differences, count - 1, is_only_time))
}

fn between(image: &Fact, rebuilt: &Fact, times: Times) -> Vec<Difference> {
    let mut out = Vec::new();
    let mut note = |field: &str, image: String, rebuilt: String| {
        if image != rebuilt {
            out.push(Difference { field: field.to_owned(), image, rebuilt });
        }
    };
    let content = |fact: &Fact| match &fact.content {
        Some(digest) => format!("{} bytes, {digest}", fact.size),
        None => format!("{} bytes", fact.size),
    };
    note("type", image.kind.to_owned(), rebuilt.kind.to_owned());
    note("content", content(image), content(rebuilt));
    let link = |fact: &Fact| String::from_utf8_lossy(&fact.link).into_owned();
    note("target", link(image), link(rebuilt));
    note("mode", format!("{:04o}", image.mode), format!("{:04o}", rebuilt.mode));
    let owner = |fact: &Fact| format!("{}:{}", fact.owner.0, fact.owner.1);
    note("owner", owner(image), owner(rebuilt));
    let device = |fact: &Fact| format!("{}:{}", fact.rdev.0, fact.rdev.1);
    note("device", device(image), device(rebuilt));
    if image.xattrs != rebuilt.xattrs {
        let names: std::collections::BTreeSet<&Vec<u8>> = image.xattrs.keys().chain(rebuilt.xattrs.keys()).collect();
        for name in names {
            let value = |fact: &Fact| {
                fact.xattrs.get(name).map_or_else(String::new, |value| format!("{:?}", String::from_utf8_lossy(value)))
            };
            note(&format!("attribute {}", String::from_utf8_lossy(name)), value(image), value(rebuilt));
        }
    }
    if !times.ignored {
        let clamped = times.latest.map_or(rebuilt.mtime, |latest| rebuilt.mtime.min(latest));
        note("time", time(image.mtime), time(clamped));
    }
    out
}

fn time(seconds: i64) -> String {
    match u64::try_from(seconds).ok().filter(|seconds| *seconds <= kiln_frontend::MAX_EPOCH) {
        Some(since) => humantime::format_rfc3339(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(since)).to_string(),
        None => format!("{seconds} seconds since 1970"),
    }
}
