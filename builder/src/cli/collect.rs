//! Hides when kiln collects by itself, and by which policies: `[gc]` of its settings, or what BuildKit does unless told.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use kiln_store::Store;
use kiln_store::gc::{Disk, Filter, PruneOptions, Space};
use serde::Deserialize;

use super::human;
use super::settings::{SettingsError, read_file};
use super::space::Limits;

const GB: u64 = 1_000_000_000;
const MB: u64 = 1_000_000;

/// `[gc]`.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Table {
    enabled: Option<bool>,
    reserved_space: Option<String>,
    max_used_space: Option<String>,
    min_free_space: Option<String>,
    policy: Option<Vec<Policy>>,
}

/// `[[gc.policy]]`.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Policy {
    /// Alternatives, each of conditions with commas in between.
    #[serde(default)]
    filters: Vec<String>,
    keep_duration: Option<String>,
    reserved_space: Option<String>,
    max_used_space: Option<String>,
    min_free_space: Option<String>,
}

impl Table {
    fn or(self, earlier: Table) -> Table {
        Table {
            enabled: self.enabled.or(earlier.enabled),
            reserved_space: self.reserved_space.or(earlier.reserved_space),
            max_used_space: self.max_used_space.or(earlier.max_used_space),
            min_free_space: self.min_free_space.or(earlier.min_free_space),
            policy: self.policy.or(earlier.policy),
        }
    }

    /// The policies on this disk, in their order; the text that makes no sense when there is one.
    fn policies(&self, disk: Disk, now: SystemTime) -> Result<Vec<PruneOptions>, String> {
        let usual = usual(disk);
        let told = Limits { reserved: &self.reserved_space, max_used: &self.max_used_space, min_free: &self.min_free_space };
        let told = told.on(disk)?;
        let space = Space {
            reserved: told.reserved.or(usual.reserved),
            max_used: told.max_used.or(usual.max_used),
            min_free: told.min_free.or(usual.min_free),
        };
        let options =
            |filters, filter_until, space| PruneOptions { all: false, filter_until, filters, space, dry_run: false, now };
        let Some(policies) = &self.policy else {
            let cheap = vec![vec![known("type=source.local")], vec![known("type=exec.cachemount")]];
            let little = Space { max_used: Some(512 * MB), ..Space::default() };
            return Ok(vec![
                options(cheap.into_iter().map(|all| all.into_iter().flatten().collect()).collect(), Some(days(2)), little),
                options(Vec::new(), Some(days(60)), space),
                options(Vec::new(), None, space),
            ]);
        };
        let read = |policy: &Policy| -> Result<PruneOptions, String> {
            let conditions =
                |text: &String| text.split(',').map(|one| one.trim().parse::<Filter>()).collect::<Result<Vec<_>, _>>();
            let filters = policy.filters.iter().map(conditions).collect::<Result<Vec<_>, _>>().map_err(|e| e.to_string())?;
            let span = |text: &String| human::parse_duration(text).ok_or_else(|| format!("invalid duration `{text}`"));
            let until = policy.keep_duration.as_ref().map(span).transpose()?;
            let limits =
                Limits { reserved: &policy.reserved_space, max_used: &policy.max_used_space, min_free: &policy.min_free_space };
            let own = limits.on(disk)?;
            Ok(options(filters, until, own))
        };
        policies.iter().map(read).collect()
    }
}

fn known(text: &str) -> Option<Filter> {
    text.parse().ok()
}

const fn days(count: u64) -> Duration {
    Duration::from_hours(24 * count)
}

/// BuildKit's limits: it keeps a tenth of the disk or 10 GB in any case, 60 % or 100 GB at most, and a fifth free.
fn usual(disk: Disk) -> Space {
    let percent = |percent: u64| disk.size / 100 * percent;
    Space { reserved: Some(percent(10).min(10 * GB)), max_used: Some(percent(60).min(100 * GB)), min_free: Some(percent(20)) }
}

/// Collects if it is time to; says nothing when another kiln uses the store, which will do it then.
pub(crate) fn when_due(store: &Store, files: &[(PathBuf, bool)], now: SystemTime) -> Result<(), Failed> {
    let mut table = Table::default();
    for (path, required) in files {
        if let Some(file) = read_file(path, *required)? {
            table = file.gc.unwrap_or_default().or(table);
        }
    }
    if table.enabled == Some(false) {
        return Ok(());
    }
    let disk = store.gc().disk()?;
    let path = files.last().map_or_else(PathBuf::new, |(path, _)| path.clone());
    let policies =
        table.policies(disk, now).map_err(|message| SettingsError::Invalid { path, message: format!("gc: {message}") })?;
    let min_free = policies.iter().filter_map(|policy| policy.space.min_free).max();
    if store.gc().is_due(min_free, now) {
        store.gc().collect_by(&policies)?;
    }
    Ok(())
}

/// Why nothing was collected.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failed {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Store(#[from] kiln_store::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: Disk = Disk { size: 50 * GB, free: 20 * GB };

    fn policies(text: &str) -> Result<Vec<PruneOptions>, String> {
        let table: Table = toml::from_str(text).map_err(|e| e.to_string())?;
        table.policies(DISK, SystemTime::UNIX_EPOCH)
    }

    #[test]
    fn what_is_said_and_what_is_usual() {
        let usual = policies("").unwrap();
        assert_eq!(usual.len(), 3);
        assert_eq!(usual[0].filters.len(), 2);
        let space = Space { reserved: Some(5 * GB), max_used: Some(30 * GB), min_free: Some(10 * GB) };
        assert_eq!((usual[1].space, usual[1].filter_until), (space, Some(days(60))));
        assert_eq!((usual[2].space, usual[2].filter_until), (space, None));
        let less = policies("max-used-space = '10%'\nmin-free-space = '0'").unwrap();
        assert_eq!(less[2].space, Space { max_used: Some(5 * GB), min_free: Some(0), ..space });
        let own =
            policies("[[policy]]\nfilters = ['type=layer,private', 'type=blob']\nkeep-duration = '1h'\nreserved-space = '1k'")
                .unwrap();
        assert_eq!(own.len(), 1);
        assert_eq!((own[0].filters[0].len(), own[0].filters[1].len()), (2, 1));
        assert_eq!((own[0].filter_until, own[0].space.reserved), (Some(Duration::from_hours(1)), Some(1024)));
        for text in
            ["max-used-space = 'much'", "[[policy]]\nfilters = ['size=3']", "[[policy]]\nkeep-duration = 'long'", "keep = 1"]
        {
            assert!(policies(text).is_err(), "{text}");
        }
    }
}
