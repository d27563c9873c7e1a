//! Ends every process of a run that has no pid namespace: hides how they are found.
//!
//! The supervisor is the subreaper of all that descends from the command, so that whoever forks twice, makes a session of its own or
//! stops is still below it. Each is looked up in `/proc` and killed by the descriptor that it was looked up by.

use std::collections::HashMap;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{Mode, OFlags, RawDir};
use rustix::io::Errno;
use rustix::process::{Signal, WaitOptions};

/// Kills all that descends from this process, until nothing is left.
pub(crate) fn end_all(proc: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut pause = Duration::from_micros(200);
    loop {
        while matches!(rustix::process::wait(WaitOptions::NOHANG), Ok(Some(_))) {}
        let found = descendants(proc)?;
        if found.is_empty() {
            return Ok(());
        }
        // Stopped first, so that none makes another while the others are being killed.
        for signal in [Signal::STOP, Signal::KILL] {
            for process in &found {
                let _ = rustix::process::pidfd_send_signal(process, signal);
            }
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// The directories in `/proc` of all living processes below this one. A descriptor of one is that of the process.
fn descendants(proc: BorrowedFd<'_>) -> Result<Vec<OwnedFd>, Errno> {
    let own = rustix::fs::readlinkat(proc, "self", Vec::new())?.to_string_lossy().into_owned();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let listing = rustix::fs::openat(proc, ".", flags, Mode::empty())?;
    let mut parents: HashMap<String, (String, Option<OwnedFd>)> = HashMap::new();
    let mut buffer = Vec::with_capacity(32 << 10);
    let mut entries = RawDir::new(&listing, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if !name.to_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        let Ok(process) = rustix::fs::openat(proc, name, flags, Mode::empty()) else { continue };
        if let Some(parent) = parent(process.as_fd()) {
            parents.insert(name.to_string_lossy().into_owned(), (parent, Some(process)));
        }
    }
    let below: Vec<String> = parents.keys().filter(|pid| is_below(pid, &own, &parents)).cloned().collect();
    Ok(below.iter().filter_map(|pid| parents.get_mut(pid).and_then(|(_, process)| process.take())).collect())
}

fn is_below(pid: &str, ancestor: &str, parents: &HashMap<String, (String, Option<OwnedFd>)>) -> bool {
    let mut at = pid;
    // No chain is longer than there are processes; one that is read while it changes might be a ring.
    for _ in 0..=parents.len() {
        match parents.get(at) {
            Some((parent, _)) if parent == ancestor => return true,
            Some((parent, _)) => at = parent,
            None => return false,
        }
    }
    false
}

/// Whose child a process is; `None` of one that has ended, be it reaped or not.
fn parent(process: BorrowedFd<'_>) -> Option<String> {
    let stat = rustix::fs::openat(process, "stat", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut text = Vec::new();
    std::fs::File::from(stat).read_to_end(&mut text).ok()?;
    // The name stands in parentheses and may hold any, so that the last one ends it.
    let text = String::from_utf8_lossy(&text).into_owned();
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?;
    // A zombie's children have other parents already; it goes when its own parent ends.
    (state != "X" && state != "Z").then(|| parent.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_of_parents_are_followed() {
        let rows = [("10", "1"), ("11", "10"), ("12", "11"), ("20", "1"), ("30", "31"), ("31", "30"), ("1", "0")];
        let parents = rows.iter().map(|(pid, parent)| ((*pid).to_owned(), ((*parent).to_owned(), None))).collect();
        let below = |pid: &str| is_below(pid, "10", &parents);
        assert_eq!(["10", "11", "12", "20", "30", "1", "99"].map(below), [false, true, true, false, false, false, false]);
    }
}
