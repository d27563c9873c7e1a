//! Hides how a configuration and its history are completed; pure.

use kiln_frontend::ImageTemplate;
use kiln_oci::config::{HistoryEntry, ImageConfig};
use kiln_oci::digest::DiffId;

/// A layer that the build made, as the configuration tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewLayer {
    /// The digest of its tar.
    pub diff_id: DiffId,
    /// When it was made, RFC 3339.
    pub created: String,
}

/// The configuration of the built image.
///
/// Times follow BuildKit's `normalizeLayersAndHistory`: a layer's entry has the time when the layer was made, any other
/// that of the first layer after the first gap, or of the one before it; so a build of which every step was cached
/// gives the same bytes again. `now` counts only when there is no layer at all.
pub fn complete(template: &ImageTemplate, layers: &[NewLayer], now: &str) -> ImageConfig {
    let mut config = template.config.clone();
    let mut history = std::mem::take(&mut config.history);
    // Some images have no history, or less than layers: tools count on one entry a layer.
    let told = history.iter().filter(|entry| !entry.empty_layer).count();
    for _ in told..config.rootfs.diff_ids.len() {
        history.push(HistoryEntry { comment: "missing in the base image".to_owned(), ..HistoryEntry::default() });
    }
    let mut new = layers.iter();
    for entry in &template.history {
        let mut entry = entry.clone();
        if !entry.empty_layer && entry.created.is_none() {
            entry.created = new.next().map(|layer| layer.created.clone());
        }
        history.push(entry);
    }
    fill_times(&mut history);
    config.rootfs.diff_ids.extend(layers.iter().map(|layer| layer.diff_id));
    if template.history.is_empty() && config.created.is_some() {
        // Nothing was added: the image is its base.
    } else {
        config.created = history.iter().rev().find_map(|entry| entry.created.clone()).or_else(|| Some(now.to_owned()));
    }
    for entry in &mut history {
        if entry.created.is_none() {
            entry.created.clone_from(&config.created);
        }
    }
    config.history = history;
    config
}

/// Gives each entry without a time that of the first new layer or of the last entry that has one.
fn fill_times(history: &mut [HistoryEntry]) {
    let mut time = None;
    let mut gap = false;
    for entry in history.iter() {
        if entry.created.is_some() {
            time.clone_from(&entry.created);
            if gap {
                break;
            }
        } else {
            gap = true;
        }
    }
    let mut gap = false;
    for entry in history {
        if entry.created.is_some() {
            if gap {
                time.clone_from(&entry.created);
            }
        } else {
            gap = true;
            entry.created.clone_from(&time);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_oci::digest::Digest;
    use kiln_oci::platform::Platform;

    fn entry(created: Option<&str>, empty_layer: bool) -> HistoryEntry {
        HistoryEntry { created: created.map(str::to_owned), empty_layer, ..HistoryEntry::default() }
    }

    #[test]
    fn times_follow_the_layers() {
        let layer =
            |created: &str| NewLayer { diff_id: DiffId::new(Digest::of(created.as_bytes())), created: created.to_owned() };
        // base history, new entries (true = empty), times of new layers, expected times
        for (base, new, times, expected) in [
            (vec![Some("1")], vec![false, true, false], vec!["5", "7"], vec!["1", "5", "7", "7"]),
            (vec![Some("1")], vec![true, false, true], vec!["5"], vec!["1", "5", "5", "5"]),
            (vec![Some("1")], vec![true], vec![], vec!["1", "1"]),
            (vec![], vec![true, true], vec![], vec!["now", "now"]),
        ] {
            let mut config = ImageConfig::empty(&Platform::host());
            config.history = base.iter().map(|t| entry(*t, false)).collect();
            config.rootfs.diff_ids = base.iter().map(|_| DiffId::new(Digest::of(b"base"))).collect();
            let template = ImageTemplate { base: None, config, history: new.iter().map(|e| entry(None, *e)).collect() };
            let layers: Vec<NewLayer> = times.iter().map(|t| layer(t)).collect();
            let done = complete(&template, &layers, "now");
            let got: Vec<&str> = done.history.iter().map(|e| e.created.as_deref().unwrap()).collect();
            assert_eq!(got, expected);
            assert_eq!(done.created.as_deref(), expected.last().copied());
        }
    }
}
