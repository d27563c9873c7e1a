//! Hides the commands about disk space: `du` and `prune`.

use std::io::{self, BufRead as _};
use std::time::SystemTime;

use kiln_store::gc::{Kind, PruneOptions, UsageRow};

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
    }
}

/// Lines of `Name:` and value below a table, as buildx aligns them.
fn sums(pairs: &[(&str, u64)]) -> String {
    pairs.iter().map(|(name, bytes)| format!("{:<16}{}\n", format!("{name}:"), human::size(*bytes, 4))).collect()
}

/// `kiln du`.
pub(crate) fn usage(session: &Session, args: &DuArgs) -> Result<(), Failure> {
    let store = session.store()?;
    let mut rows = store.gc().usage()?;
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
    let options = options(args, SystemTime::now())?;
    if !args.force && !args.dry_run && !confirmed(args)? {
        return Err(Failure::Declined);
    }
    let store = session.store()?;
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
    let mut until = None;
    for filter in &args.filter {
        let text = filter.strip_prefix("until=");
        until = Some(text.and_then(human::parse_duration).ok_or_else(|| {
            Failure::usage_hint(
                format!("filter `{filter}` is not supported"),
                "the filter is `until=DURATION`, for instance `until=24h`",
            )
        })?);
    }
    let keep = args.max_used_space.as_deref();
    let keep =
        keep.map(|text| human::parse_size(text).ok_or_else(|| Failure::usage(format!("invalid size `{text}`")))).transpose()?;
    Ok(PruneOptions { all: args.all, filter_until: until, keep_storage: keep, dry_run: args.dry_run, now })
}

fn confirmed(args: &PruneArgs) -> Result<bool, Failure> {
    let what = if args.all { "everything that no image needs" } else { "build cache and layers that no image needs" };
    write_stderr(format!("WARNING! This will remove {what}. Are you sure you want to continue? [y/N] ").as_bytes());
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(|cause| Failure::Read { what: "the answer", cause })?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
