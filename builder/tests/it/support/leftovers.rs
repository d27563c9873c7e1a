//! Finds what a build must not leave behind: processes and mounts.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// The processes whose command line, environment or root tells that they belong to a build with this store, by the
/// path of the store or a marker that the build's commands carry.
pub(crate) fn processes(marker: &str) -> Vec<String> {
    let mut found = Vec::new();
    let own = std::process::id().to_string();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == own || !name.bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        let has = |file: &str| {
            let text = fs::read(entry.path().join(file)).unwrap_or_default();
            String::from_utf8_lossy(&text).contains(marker)
        };
        if has("cmdline") || has("environ") || has("mountinfo") && !shares_our_mounts(&entry.path()) {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            found.push(format!("{name} {}", String::from_utf8_lossy(&line).replace('\0', " ")));
        }
    }
    found
}

/// The mounts of this machine below the folder or made from it.
pub(crate) fn mounts(marker: &str) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().filter(|line| line.contains(marker)).map(str::to_owned).collect()
}

/// Waits until neither is left; what still is after five seconds is a failure. The kernel needs a moment to end the
/// processes of a pid namespace whose first one was killed.
pub(crate) fn assert_none(marker: &str) {
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        let (processes, mounts) = (processes(marker), mounts(marker));
        if processes.is_empty() && mounts.is_empty() {
            return;
        }
        assert!(Instant::now() < end, "left behind: {processes:#?} {mounts:#?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn shares_our_mounts(process: &Path) -> bool {
    let own = fs::read_link("/proc/self/ns/mnt").ok();
    own.is_some() && fs::read_link(process.join("ns/mnt")).ok() == own
}
