//! Hides the grammar of `--output`, `--push` and `--load`: which outputs a build has, and what each is told.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kiln::export::{CompressionChoice, CompressionKind};
use kiln::request::{Annotations, ArchiveFormat, Destination, FilesForm, FolderMode, ImageOptions, Name, Output, Scope};
use kiln_oci::platform::Platform;
use kiln_oci::reference::Reference;

use super::args::BuildArgs;
use super::build::image_name;
use super::csv::csv_fields;
use super::daemons::daemons;
use super::environment::Environment;
use super::report::Failure;

/// What a build is to give.
#[derive(Debug, Default)]
pub(super) struct Outputs {
    /// `--tag`, each once.
    pub(super) tags: Vec<Reference>,
    /// Where the image goes; empty if only the store gets it.
    pub(super) outputs: Vec<Output>,
}

/// Reads all flags that say what becomes of the image. Tags take the place of names, as with buildx.
pub(super) fn parse(
    args: &BuildArgs,
    annotations: &Annotations,
    environment: &Environment,
    platforms: &[Platform],
) -> Result<Outputs, Failure> {
    let mut tags: Vec<Name> = Vec::new();
    for tag in &args.tag {
        add_name(&mut tags, tag)?;
    }
    let mut outputs = Vec::new();
    for spec in args.output.iter().filter(|spec| !spec.is_empty()) {
        outputs.push(output(spec, environment)?);
    }
    if args.push {
        let mut used = false;
        for output in &mut outputs {
            if let Output::Image { push, .. } = output {
                *push = true;
                used = true;
            }
        }
        if !used {
            outputs.push(Output::Image { push: true, store: true, options: ImageOptions::default() });
        }
    }
    if args.load && !outputs.iter().any(|output| matches!(output, Output::Daemon { .. })) {
        outputs.push(Output::Daemon { daemons: daemons(environment, None)?, options: ImageOptions::default() });
    }
    if outputs.is_empty() && !annotations.is_empty() {
        // A manifest is the only place where they can be.
        outputs.push(Output::Image { push: false, store: true, options: ImageOptions::default() });
    }
    for output in &mut outputs {
        finish(output, &tags, annotations)?;
    }
    check_destinations(&outputs)?;
    // A daemon gets the one for this machine.
    let one_only = |output: &Output| matches!(output, Output::Archive { format: ArchiveFormat::Docker, .. });
    if platforms.len() > 1 && outputs.iter().any(one_only) {
        return Err(Failure::usage_hint(
            "docker exporter does not currently support exporting manifest lists",
            "write `--output type=oci,dest=FILE`, or build for one platform",
        ));
    }
    check_deletion(&outputs, &args.allow)?;
    Ok(Outputs { tags: tags.into_iter().map(|name| name.reference).collect(), outputs })
}

/// Gives an output the names and annotations of the flags that are not its own.
fn finish(output: &mut Output, tags: &[Name], annotations: &Annotations) -> Result<(), Failure> {
    let pushes = matches!(output, Output::Image { push: true, .. });
    let options = match output {
        Output::Image { options, .. } | Output::Archive { options, .. } | Output::Daemon { options, .. } => options,
        Output::Files { .. } | Output::CacheOnly => return Ok(()),
    };
    if !tags.is_empty() {
        options.names = tags.to_vec();
    }
    options.annotations.items.extend(annotations.items.iter().cloned());
    if !pushes {
        return Ok(());
    }
    if options.names.is_empty() {
        return Err(Failure::usage_hint("a name is needed to push the image", "use `--tag NAME`"));
    }
    match options.names.iter().find(|name| options.push_by_digest && name.tagged) {
        Some(name) => Err(Failure::usage_hint(
            format!("can't push tagged ref {} by digest", name.reference),
            format!("write `name={}`, without a tag", name.reference.familiar_repository()),
        )),
        None => Ok(()),
    }
}

/// Two outputs in one place would leave one of them.
fn check_destinations(outputs: &[Output]) -> Result<(), Failure> {
    let mut seen: Vec<&Destination> = Vec::new();
    for output in outputs {
        let (Output::Archive { dest, .. } | Output::Files { dest, .. }) = output else { continue };
        if seen.contains(&dest) {
            return Err(Failure::usage("two outputs have the same destination"));
        }
        seen.push(dest);
    }
    Ok(())
}

/// `type=oci,dest=FILE` and its relatives (buildx `util/buildflags/export.go`).
fn output(spec: &str, environment: &Environment) -> Result<Output, Failure> {
    let fields = csv_fields(spec);
    let mut keys = Keys { spec, fields: BTreeMap::new() };
    match fields.as_slice() {
        // A lone path is a folder for the files, and a lone dash a tar of them.
        [one] if one == spec && !spec.starts_with("type=") => {
            keys.fields.insert("type".to_owned(), if spec == "-" { "tar" } else { "local" }.to_owned());
            keys.fields.insert("dest".to_owned(), spec.to_owned());
        }
        fields => {
            for field in fields {
                let Some((key, value)) = field.split_once('=') else {
                    return Err(Failure::usage(format!("invalid value `{field}` in output `{spec}`: it is no key=value pair")));
                };
                // The keys of annotations are the user's own.
                let key = key.trim();
                let lower = key.to_lowercase();
                let key = if lower.starts_with("annotation") { key.to_owned() } else { lower };
                keys.fields.insert(key, value.to_owned());
            }
        }
    }
    let kind = keys.take("type").ok_or_else(|| Failure::usage(format!("type is required for output `{spec}`")))?;
    let output = match kind.as_str() {
        "image" | "registry" => image(&mut keys, kind == "registry")?,
        "oci" => archive(&mut keys, ArchiveFormat::Oci, environment)?,
        "docker" => archive(&mut keys, ArchiveFormat::Docker, environment)?,
        "local" | "tar" => files(&mut keys, kind == "tar")?,
        "cacheonly" => Output::CacheOnly,
        other => return Err(Failure::usage(format!("unknown output type `{other}` in `{spec}`"))),
    };
    if let Some(key) = keys.fields.keys().next() {
        return Err(Failure::usage(format!("unknown key `{key}` in output `{spec}`")));
    }
    Ok(output)
}

fn image(keys: &mut Keys<'_>, is_registry: bool) -> Result<Output, Failure> {
    if keys.fields.contains_key("dest") {
        return Err(Failure::usage(format!("output `{}` can't have a dest", keys.spec)));
    }
    let push = keys.flag("push", true)?.unwrap_or(is_registry);
    let store = keys.flag("store", true)?.unwrap_or(true);
    // The store always has the layers of what was built as trees.
    keys.flag("unpack", true)?;
    Ok(Output::Image { push, store, options: options(keys)? })
}

fn archive(keys: &mut Keys<'_>, format: ArchiveFormat, environment: &Environment) -> Result<Output, Failure> {
    let tar = keys.flag("tar", true)?.unwrap_or(true);
    let dest = keys.take("dest").filter(|dest| !dest.is_empty());
    let dest = match (dest.as_deref(), tar) {
        (None, true) if format == ArchiveFormat::Docker => {
            let context = keys.take("context").filter(|name| !name.is_empty());
            return Ok(Output::Daemon { daemons: daemons(environment, context.as_deref())?, options: options(keys)? });
        }
        (None | Some("-"), true) => Destination::Stdout,
        (None | Some("-"), false) => {
            return Err(Failure::usage_hint(
                format!("output `{}` needs a folder", keys.spec),
                "write `dest=FOLDER`, or leave out `tar=false`",
            ));
        }
        (Some(path), true) => Destination::File(path.into()),
        (Some(path), false) => Destination::Folder(path.into()),
    };
    if let Destination::File(path) = &dest
        && path.is_dir()
    {
        return Err(Failure::usage_hint(
            format!("destination {} of output `{}` is a folder", path.display(), keys.spec),
            "name a file, or write `tar=false` for a folder with the files of the archive",
        ));
    }
    keys.take("context");
    Ok(Output::Archive { format, dest, options: options(keys)? })
}

fn files(keys: &mut Keys<'_>, tar: bool) -> Result<Output, Failure> {
    let dest = keys.take("dest").filter(|dest| !dest.is_empty());
    let dest = match (dest.as_deref(), tar) {
        (Some("-") | None, true) => Destination::Stdout,
        (Some(path), true) => Destination::File(path.into()),
        (Some(path), false) if path != "-" => Destination::Folder(PathBuf::from(path)),
        _ => return Err(Failure::usage_hint(format!("output `{}` needs a folder", keys.spec), "write `dest=FOLDER`")),
    };
    let mode = match keys.take("mode").as_deref() {
        None | Some("copy") => FolderMode::Copy,
        Some("delete") => FolderMode::Delete,
        Some(other) => {
            return Err(Failure::usage(format!("invalid mode `{other}` in output `{}`: it is copy or delete", keys.spec)));
        }
    };
    let form = if tar { FilesForm::Tar } else { FilesForm::Folder(mode) };
    let platform_split = keys.flag("platform-split", true)?;
    let attestation_prefix = keys.take("attestation-prefix").unwrap_or_default();
    Ok(Output::Files { form, dest, platform_split, attestation_prefix, epoch: keys.epoch()? })
}

/// A folder of which what isn't in the result goes away must lie below the current one, unless that is allowed: a slip of the
/// finger there costs a home (buildx, `--allow=buildx.local.delete`).
fn check_deletion(outputs: &[Output], allow: &[String]) -> Result<(), Failure> {
    if allow.iter().flat_map(|list| list.split(',')).any(|entitlement| entitlement == "buildx.local.delete") {
        return Ok(());
    }
    for output in outputs {
        let Output::Files { form: FilesForm::Folder(FolderMode::Delete), dest: Destination::Folder(path), .. } = output else {
            continue;
        };
        let below = std::env::current_dir().and_then(|here| Ok((here.canonicalize()?, resolved(path)?)));
        if !below.is_ok_and(|(here, path)| path != here && path.starts_with(here)) {
            return Err(Failure::usage_hint(
                format!("mode=delete would take away what is in {}, which is not below the current folder", path.display()),
                "write `--allow=buildx.local.delete` if that is meant",
            ));
        }
    }
    Ok(())
}

/// Where a path leads whose last names need not exist yet.
fn resolved(path: &Path) -> std::io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    let mut missing = Vec::new();
    let mut there = path.as_path();
    loop {
        match there.canonicalize() {
            // `..` after a name that isn't there could lead anywhere once it is.
            Ok(_) if missing.iter().any(|name| name == "..") => return Err(std::io::ErrorKind::NotFound.into()),
            Ok(found) => return Ok(missing.iter().rev().fold(found, |path, name| path.join(name))),
            Err(error) => {
                let last = there.components().next_back().map(|last| last.as_os_str().to_owned());
                let (Some(above), Some(last)) = (there.parent(), last) else { return Err(error) };
                missing.push(last);
                there = above;
            }
        }
    }
}

/// The keys that all images have.
fn options(keys: &mut Keys<'_>) -> Result<ImageOptions, Failure> {
    let mut names = Vec::new();
    for name in keys.take("name").iter().flat_map(|names| names.split(',')).filter(|name| !name.is_empty()) {
        add_name(&mut names, name)?;
    }
    let compression = compression(keys)?;
    // What is attached is always in the image's index.
    keys.flag("attestation-inline", true)?;
    let mut annotations = Annotations::default();
    let written: Vec<String> = keys.fields.keys().filter(|key| key.starts_with("annotation")).cloned().collect();
    for key in written {
        let value = keys.take(&key).unwrap_or_default();
        let (scope, platform, key) = annotation_key(&key, keys.spec)?;
        annotations.add(scope, platform, &key, &value);
    }
    Ok(ImageOptions {
        names,
        compression,
        oci_types: keys.flag("oci-mediatypes", true)?,
        annotations,
        epoch: keys.epoch()?,
        rewrite_timestamp: keys.flag("rewrite-timestamp", true)?.unwrap_or_default(),
        push_by_digest: keys.flag("push-by-digest", true)?.unwrap_or_default(),
        name_canonical: keys.flag("name-canonical", true)?.unwrap_or_default(),
        insecure: keys.flag("registry.insecure", true)?.unwrap_or_default(),
        prefer_nondist_layers: keys.flag("prefer-nondist-layers", false)?.unwrap_or_default(),
        oci_artifact: keys.flag("oci-artifact", true)?.unwrap_or_default(),
        dangling_prefix: keys.take("dangling-name-prefix").filter(|prefix| !prefix.is_empty()),
        dangling_empty_only: keys.flag("danging-name-empty-only", true)?.unwrap_or_default(),
    })
}

fn compression(keys: &mut Keys<'_>) -> Result<CompressionChoice, Failure> {
    let kind = match keys.take("compression") {
        None => CompressionKind::default(),
        Some(text) => CompressionKind::parse(&text).ok_or_else(|| {
            let what = "it is one of uncompressed, gzip, zstd, estargz";
            Failure::usage(format!("unsupported layer compression type `{text}` in output `{}`: {what}", keys.spec))
        })?,
    };
    let level = match keys.take("compression-level") {
        None => None,
        Some(text) => Some(text.parse().map_err(|_| {
            Failure::usage(format!("non-integer value `{text}` specified for compression-level in output `{}`", keys.spec))
        })?),
    };
    Ok(CompressionChoice { kind, level, force: keys.flag("force-compression", true)?.unwrap_or_default() })
}

/// `annotation[-TYPE][[PLATFORM]].KEY` (BuildKit `exptypes/annotations.go`).
fn annotation_key(text: &str, spec: &str) -> Result<(Scope, Option<Platform>, String), Failure> {
    let invalid = || Failure::usage(format!("invalid annotation key `{text}` in output `{spec}`"));
    let rest = text.strip_prefix("annotation").ok_or_else(invalid)?;
    let at = rest.find(['[', '.']).ok_or_else(invalid)?;
    let scope = match &rest[..at] {
        "" | "-manifest" => Scope::Manifest,
        "-manifest-descriptor" => Scope::ManifestDescriptor,
        "-index" => Scope::Index,
        "-index-descriptor" => Scope::IndexDescriptor,
        _ => return Err(invalid()),
    };
    let (platform, key) = match rest[at..].strip_prefix('[') {
        None => (None, &rest[at + 1..]),
        Some(bracket) => {
            let (platform, key) = bracket.split_once("].").ok_or_else(invalid)?;
            (Some(Platform::parse(platform).map_err(|_| invalid())?), key)
        }
    };
    match key.is_empty() {
        true => Err(invalid()),
        false => Ok((scope, platform, key.to_owned())),
    }
}

/// The pairs of an output that nobody asked for yet.
struct Keys<'a> {
    spec: &'a str,
    fields: BTreeMap<String, String>,
}

impl Keys<'_> {
    fn take(&mut self, key: &str) -> Option<String> {
        self.fields.remove(key)
    }

    /// A truth value in Go's spellings; `bare` is what the key without a value means.
    /// The output's own `source-date-epoch`; empty is none, as at BuildKit (`exporter/util/epoch`).
    fn epoch(&mut self) -> Result<Option<u64>, Failure> {
        let Some(text) = self.take("source-date-epoch").filter(|text| !text.is_empty()) else { return Ok(None) };
        let seconds = text.parse().ok().filter(|seconds| *seconds <= kiln_frontend::MAX_EPOCH);
        let invalid = || {
            let what = "it is a number of seconds since 1970, before the year 10000";
            Failure::usage(format!("invalid source-date-epoch `{text}` in output `{}`: {what}", self.spec))
        };
        seconds.ok_or_else(invalid).map(Some)
    }

    fn flag(&mut self, key: &str, bare: bool) -> Result<Option<bool>, Failure> {
        match self.take(key).as_deref() {
            None => Ok(None),
            Some("") if bare => Ok(Some(true)),
            Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(Some(true)),
            Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(Some(false)),
            Some(other) => Err(Failure::usage(format!("non-bool value `{other}` specified for {key} in output `{}`", self.spec))),
        }
    }
}

fn add_name(names: &mut Vec<Name>, text: &str) -> Result<(), Failure> {
    let reference = image_name(text)?;
    let tagged = text.rsplit('/').next().is_some_and(|last| last.contains(':'));
    if !names.iter().any(|name| name.reference == reference) {
        names.push(Name { reference, tagged });
    }
    Ok(())
}
