//! Hides the commands about disk space: `du` and `prune`.

use std::io::{self, BufRead as _};
use std::time::SystemTime;

use kiln_store::gc::{Disk, Filter, Kind, PruneOptions, Space, UsageRow};

use super::args::{DuArgs, PruneArgs};
use super::listing::{Field, Listing};
use super::report::{Failure, write_stderr, write_stdout};
use super::session::Session;
use super::{clock, human};

const FIELDS: &[Field] = &[
    ("ID", "ID"),
    ("LastUsedAt", "LAST USED AT"),
    ("LastUsedSince", "LAST ACCESSED"),
    ("Reclaimable", "RECLAIMABLE"),
    ("Shared", "SHARED"),
    ("Size", "SIZE"),
    ("Type", "TYPE"),
];

/// How an id is cut: as long as docker's ids are.
const SHORT_ID: usize = 19;

fn listing(rows: &[UsageRow], no_trunc: bool, now: SystemTime) -> Listing {
    let rows = rows.iter().map(|row| {
        let used = row.last_used.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let used = i64::try_from(used).unwrap_or(i64::MAX);
        let is_hash = row.kind != Kind::Image && row.id.len() > 40;
        vec![
            if is_hash && !no_trunc { row.id.chars().take(SHORT_ID).collect() } else { row.id.clone() },
            clock::rfc3339(used),
            format!("{} ago", human::duration(clock::since(used, now))),
            row.reclaimable.to_string(),
            row.shared.to_string(),
            human::size(row.size, 4),
            kind(row.kind).to_owned(),
        ]
    });
    Listing { fields: FIELDS, columns: vec!["ID", "Type", "Reclaimable", "Size", "LastUsedSince"], rows: rows.collect() }
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Image => "image",
        Kind::Layer => "layer",
        Kind::CacheRecord => "record",
        Kind::CacheMount => "cachemount",
        Kind::Blob => "blob",
        Kind::Memo => "memo",
        Kind::Internal => "internal",
    }
}

/// Lines of `Name:` and value below a table, as buildx aligns them.
fn sums(pairs: &[(&str, u64)]) -> String {
    pairs.iter().map(|(name, bytes)| format!("{:<16}{}\n", format!("{name}:"), human::size(*bytes, 4))).collect()
}

/// `kiln du`.
pub(crate) fn usage(session: &Session, args: &DuArgs) -> Result<(), Failure> {
    let store = session.store()?;
    let filters = args.filter.iter().map(|text| filter(text)).collect::<Result<Vec<Filter>, Failure>>()?;
    let mut rows = store.gc().usage()?;
    rows.push(store.gc().overhead()?);
    rows = store.gc().filtered(rows, &filters);
    rows.sort_by(|a, b| b.last_used.cmp(&a.last_used).then_with(|| a.id.cmp(&b.id)));
    let listing = listing(&rows, args.no_trunc, SystemTime::now());
    if args.quiet && args.format.is_none() {
        return write_stdout(&listing.render(Some("{{.ID}}"))?);
    }
    let mut text = listing.render(args.format.as_deref())?;
    if args.format.as_deref().is_none_or(|format| format == "table") {
        let sum = |admits: fn(&UsageRow) -> bool| rows.iter().filter(|row| admits(row)).map(|row| row.size).sum::<u64>();
        let (shared, total) = (sum(|row| row.shared), sum(|_| true));
        if shared > 0 {
            text.push_str(&sums(&[("Shared", shared), ("Private", total - shared)]));
        }
        text.push_str(&sums(&[("Reclaimable", sum(|row| row.reclaimable)), ("Total", total)]));
    }
    write_stdout(&text)
}

/// `kiln prune`.
pub(crate) fn prune(session: &Session, args: &PruneArgs) -> Result<(), Failure> {
    let mut options = options(args, SystemTime::now())?;
    if !args.force && !args.dry_run && !confirmed(args)? {
        return Err(Failure::Declined);
    }
    let store = session.store()?;
    let limits = Limits { reserved: &args.reserved_space, max_used: &args.max_used_space, min_free: &args.min_free_space };
    options.space = limits.on(store.gc().disk()?).map_err(Failure::usage)?;
    let report = store.gc().prune(&options)?;
    let mut text = String::new();
    if !report.removed.is_empty() || args.format.is_some() {
        text = listing(&report.removed, false, options.now).render(args.format.as_deref())?;
    }
    if args.format.as_deref().is_none_or(|format| format == "table") {
        let verb = if args.dry_run { "Reclaimable space" } else { "Total reclaimed space" };
        text.push_str(&format!("{verb}: {}\n", human::size(report.freed, 4)));
    }
    write_stdout(&text)
}

fn options(args: &PruneArgs, now: SystemTime) -> Result<PruneOptions, Failure> {
    let (mut until, mut filters) = (None, Vec::new());
    for text in &args.filter {
        match text.strip_prefix("until=").or_else(|| text.strip_prefix("unused-for=")) {
            Some(span) => until = Some(human::parse_duration(span).ok_or_else(|| no_filter(text))?),
            None => filters.push(filter(text)?),
        }
    }
    // All together, as with buildx; a policy has alternatives, too.
    let filters = if filters.is_empty() { Vec::new() } else { vec![filters] };
    Ok(PruneOptions { all: args.all, filter_until: until, filters, space: Space::default(), dry_run: args.dry_run, now })
}

fn filter(text: &str) -> Result<Filter, Failure> {
    text.parse().map_err(|_| no_filter(text))
}

fn no_filter(text: &str) -> Failure {
    Failure::usage_hint(
        format!("filter `{text}` is not supported"),
        "filters are `until=24h`, `type=exec.cachemount`, `id~=9f3c`, `parents=ID`, `shared`, `private`, `mutable`, `immutable` and \
         `inuse`, with `=`, `!=` or `~=`",
    )
}

/// Limits of space as they are written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits<'a> {
    pub(crate) reserved: &'a Option<String>,
    pub(crate) max_used: &'a Option<String>,
    pub(crate) min_free: &'a Option<String>,
}

impl Limits<'_> {
    /// What they are on this disk; the text that is no size when there is one.
    pub(crate) fn on(self, disk: Disk) -> Result<Space, String> {
        let amount = |text: &Option<String>| text.as_deref().map(|text| amount(text, disk)).transpose();
        Ok(Space { reserved: amount(self.reserved)?, max_used: amount(self.max_used)?, min_free: amount(self.min_free)? })
    }
}

/// Bytes, or a part of the disk in percent.
fn amount(text: &str, disk: Disk) -> Result<u64, String> {
    let percent = text.trim().strip_suffix('%').map(|number| number.trim().parse::<u8>().ok().filter(|percent| *percent <= 100));
    let bytes = match percent {
        Some(percent) => percent.map(|percent| disk.size / 100 * u64::from(percent)),
        None => human::parse_size(text),
    };
    bytes.ok_or_else(|| format!("invalid size `{text}`"))
}

fn confirmed(args: &PruneArgs) -> Result<bool, Failure> {
    let what = if args.all { "everything that no image needs" } else { "build cache and layers that no image needs" };
    write_stderr(format!("WARNING! This will remove {what}. Are you sure you want to continue? [y/N] ").as_bytes());
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(|cause| Failure::Read { what: "the answer", cause })?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
