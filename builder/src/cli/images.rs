//! Hides the commands that name, list and remove images: `images`, `tag`, `rmi`.

use std::time::SystemTime;

use kiln_oci::reference::Reference;
use kiln_store::{ImageRecord, LayerKind, Store};

use super::args::{ImagesArgs, RmiArgs, TagArgs};
use super::build::image_name;
use super::listing::{Field, Listing};
use super::report::{Failure, write_stdout};
use super::session::Session;
use super::{clock, human};

/// What docker shows where there is nothing.
const NONE: &str = "<none>";

const FIELDS: &[Field] = &[
    ("Containers", "CONTAINERS"),
    ("CreatedAt", "CREATED AT"),
    ("CreatedSince", "CREATED"),
    ("Digest", "DIGEST"),
    ("ID", "IMAGE ID"),
    ("Repository", "REPOSITORY"),
    ("SharedSize", "SHARED SIZE"),
    ("Size", "SIZE"),
    ("Tag", "TAG"),
    ("UniqueSize", "UNIQUE SIZE"),
    ("VirtualSize", "SIZE"),
];

/// The image that `text` means, by name or by (the beginning of) its id.
pub(crate) fn find(store: &Store, text: &str) -> Result<ImageRecord, Failure> {
    store.images().find(text)?.ok_or_else(|| Failure::NoSuchImage(text.to_owned()))
}

/// The bytes of an image's layers: unpacked where that is known, else packed.
pub(crate) fn layer_sizes(store: &Store, image: &ImageRecord) -> Result<Vec<u64>, Failure> {
    let mut sizes = Vec::with_capacity(image.layers.len());
    for id in &image.layers {
        let record = store.layers().get(id)?;
        sizes.push(record.map_or(0, |record| match (record.tar_size, &record.kind) {
            (Some(size), _) => size,
            (None, LayerKind::Base(base)) => base.blob.size,
            (None, LayerKind::Built) => 0,
        }));
    }
    Ok(sizes)
}

/// `kiln images`.
pub(crate) fn list(session: &Session, args: &ImagesArgs) -> Result<(), Failure> {
    let filter = Filter::parse(args)?;
    let store = session.store()?;
    let now = SystemTime::now();
    let mut images: Vec<(i64, ImageRecord)> = store
        .images()
        .list()?
        .into_iter()
        .filter(|image| filter.admits(image))
        .map(|image| (image.created.as_deref().and_then(clock::parse_rfc3339).unwrap_or(0), image))
        .collect();
    images.sort_by(|(a, x), (b, y)| b.cmp(a).then_with(|| x.name.cmp(&y.name)));

    let mut rows = Vec::with_capacity(images.len());
    for (created, image) in &images {
        let since = if *created > 0 { format!("{} ago", human::duration(clock::since(*created, now))) } else { "N/A".to_owned() };
        let size = human::size(layer_sizes(&store, image)?.iter().sum(), 3);
        let name = image.name.as_ref();
        let unknown = || "N/A".to_owned();
        rows.push(vec![
            unknown(),
            clock::go_time(*created),
            since,
            image.digest().map_or(NONE.to_owned(), |digest| digest.to_string()),
            if args.no_trunc { image.config.to_string() } else { image.config.short() },
            name.map_or(NONE.to_owned(), Reference::familiar_repository),
            unknown(),
            size.clone(),
            name.and_then(Reference::tag).unwrap_or(NONE).to_owned(),
            unknown(),
            size,
        ]);
    }
    let columns = match args.digests {
        true => vec!["Repository", "Tag", "Digest", "ID", "CreatedSince", "Size"],
        false => vec!["Repository", "Tag", "ID", "CreatedSince", "Size"],
    };
    let format = if args.quiet && args.format.is_none() { Some("{{.ID}}") } else { args.format.as_deref() };
    write_stdout(&Listing { fields: FIELDS, columns, rows }.render(format)?)
}

/// Which images are shown.
struct Filter {
    /// Patterns over names, of which one has to fit.
    patterns: Vec<String>,
    dangling: Option<bool>,
}

impl Filter {
    fn parse(args: &ImagesArgs) -> Result<Self, Failure> {
        let mut filter = Filter { patterns: args.name.iter().cloned().collect(), dangling: None };
        for text in &args.filter {
            match text.split_once('=') {
                Some(("reference", pattern)) => filter.patterns.push(pattern.to_owned()),
                Some(("dangling", "true" | "1")) => filter.dangling = Some(true),
                Some(("dangling", "false" | "0")) => filter.dangling = Some(false),
                _ => {
                    return Err(Failure::usage_hint(
                        format!("filter `{text}` is not supported"),
                        "the filters are `reference=PATTERN` and `dangling=true|false`",
                    ));
                }
            }
        }
        Ok(filter)
    }

    fn admits(&self, image: &ImageRecord) -> bool {
        if self.dangling.is_some_and(|dangling| dangling != image.name.is_none()) {
            return false;
        }
        self.patterns.is_empty()
            || image.name.as_ref().is_some_and(|name| {
                // As docker: `app` means all tags, and a full name is one too.
                let shown = [name.familiar_repository(), name.familiar(), name.repository(), name.to_string()];
                self.patterns.iter().any(|pattern| shown.iter().any(|text| matches(pattern, text)))
            })
    }
}

fn matches(pattern: &str, text: &str) -> bool {
    kiln_frontend::glob::path_match(pattern.as_bytes(), text.as_bytes()).unwrap_or(false)
}

/// `kiln tag`.
pub(crate) fn tag(session: &Session, args: &TagArgs) -> Result<(), Failure> {
    let name = image_name(&args.target)?;
    let store = session.store()?;
    let source = find(&store, &args.source)?;
    store.images().set(&ImageRecord { name: Some(name), ..source })?;
    Ok(())
}

/// `kiln rmi`. What can be removed is removed; the first failure is the one that is told last.
pub(crate) fn remove(session: &Session, args: &RmiArgs) -> Result<(), Failure> {
    let store = session.store()?;
    let mut first_failure = None;
    for text in &args.images {
        match remove_one(&store, text, args.force) {
            Ok(lines) => write_stdout(&lines)?,
            Err(Failure::NoSuchImage(_)) if args.force => {}
            Err(failure) => {
                if let Some(earlier) = first_failure.replace(failure) {
                    session.report(false).failure(&earlier, &super::progress::Summary::default());
                }
            }
        }
    }
    first_failure.map_or(Ok(()), Err)
}

fn remove_one(store: &Store, text: &str, force: bool) -> Result<String, Failure> {
    let images = store.images();
    let mut lines = String::new();
    let mut untag = |record: &ImageRecord| -> Result<(), Failure> {
        match &record.name {
            Some(name) => {
                images.remove(name)?;
                lines.push_str(&format!("Untagged: {}\n", name.familiar()));
            }
            None => drop(images.remove_nameless(&record.config)?),
        }
        Ok(())
    };
    let named = match Reference::parse(text) {
        Ok(name) => images.get(&name)?,
        Err(_) => None,
    };
    let config = match named {
        Some(record) => {
            untag(&record)?;
            record.config
        }
        None => {
            let records = images.by_id(text)?;
            let Some(first) = records.first() else { return Err(Failure::NoSuchImage(text.to_owned())) };
            if records.len() > 1 && !force {
                return Err(Failure::Conflict {
                    message: format!("unable to delete {text} (must be forced): image has {} names", records.len()),
                    hint: "use `kiln rmi --force`, or remove the names one by one".to_owned(),
                });
            }
            for record in &records {
                untag(record)?;
            }
            first.config
        }
    };
    if images.by_id(&config.to_string())?.is_empty() {
        lines.push_str(&format!("Deleted: {config}\n"));
    }
    Ok(lines)
}
