//! Every system call, every capability and every path of note, tried from inside and compared with the table in
//! `testdata/probe`, a file for each mode and security. `KILN_BLESS=1` writes the tables.
//!
//! The tables are the same on each kernel: an answer is only `EPERM`, `ENOSYS`, or `open` for what the kernel says itself; where the
//! kernel that the table was made on had no such call (found out by a run without a filter) it says `lacking`, which is as good as
//! `open`; a path is hidden when it is absent; and capabilities that a newer kernel has are not looked at.

use std::collections::{BTreeMap, BTreeSet};

use kiln_runner::{Mode, Security};

use super::{compiled, probe_sources, program};
use crate::support::{Step, host};

#[cfg(target_arch = "x86_64")]
pub fn the_published_table() {
    let Some(path) = compiled("the_published_table", "probe.c", &["-static"]) else { return };
    let names = std::fs::read_to_string(probe_sources().join("names.txt")).unwrap();
    let names: BTreeMap<&str, &str> = names.lines().filter_map(|line| line.rsplit_once(' ')).collect();
    let run = |security, arguments: &[&str]| {
        let mut step = Step::new().with(|spec| spec.security = security);
        step.spec.mounts.push(program("/probe", &path));
        let out = step.args(&[&["/probe"], arguments].concat()).ok();
        assert!(!step.changes().iter().any(|change| change.contains("probe-")), "{:?}", step.changes());
        out
    };
    let free = run(Security::Insecure, &["free"]);
    let lacking: BTreeSet<String> =
        free.lines().filter_map(|line| line.strip_suffix(" ENOSYS")).map(|call| format!("{call} ")).collect();
    let mode = match host().mode {
        Mode::Root => "root",
        Mode::SubIds | Mode::Nested => "namespace",
        _ => return println!("skipped: threats::the_published_table: there is none for mode {}", host().mode),
    };
    for (security, name) in [(Security::Sandbox, "sandbox"), (Security::Hardened, "hardened")] {
        let seen: String = run(security, &[])
            .lines()
            .map(|line| match line.strip_suffix("ENOSYS") {
                Some(call) if lacking.contains(call) && is_of_the_profile(call) => format!("{call}lacking\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        let seen = named(&seen, &names);
        let file = probe_sources().join(format!("{mode}-{name}.txt"));
        if std::env::var_os("KILN_BLESS").is_some() {
            std::fs::write(&file, &seen).unwrap();
            continue;
        }
        let Ok(expected) = std::fs::read_to_string(&file) else {
            println!("skipped: threats::the_published_table: there is no table {}", file.display());
            continue;
        };
        let (seen, expected): (Vec<&str>, Vec<&str>) = (seen.lines().collect(), expected.lines().collect());
        assert_eq!(seen.len(), expected.len());
        let differences: Vec<_> = seen
            .iter()
            .zip(&expected)
            .filter(|(seen, expected)| seen != expected)
            .filter(|(seen, expected)| {
                let as_open = |line: &str| line.replace(" lacking", " open");
                as_open(seen) != as_open(expected)
            })
            .collect();
        assert_eq!(differences, [], "{mode}, {name}: (seen, expected)");
    }
}

/// Whether the profile knows the number: above, ENOSYS is the filter's answer.
fn is_of_the_profile(call: &str) -> bool {
    call.split(' ').nth(1).and_then(|number| number.parse::<u32>().ok()).is_some_and(|number| number <= 466)
}

/// With the names of calls, and runs of equal answers without a name drawn together.
fn named(text: &str, names: &BTreeMap<&str, &str>) -> String {
    let mut out = String::new();
    let mut range: Option<(String, u32, u32, String)> = None;
    let close = |range: &mut Option<(String, u32, u32, String)>, out: &mut String| {
        if let Some((entry, first, last, answer)) = range.take() {
            out.push_str(&format!("{entry} {first}-{last} {answer}\n"));
        }
    };
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let number = words.get(1).and_then(|word| word.parse::<u32>().ok());
        match (words.as_slice(), number) {
            ([entry @ ("x86-64" | "i386" | "x32"), number, answer], Some(n)) => {
                if let Some(name) = names.get(format!("{entry} {number}").as_str()) {
                    close(&mut range, &mut out);
                    out.push_str(&format!("{entry} {number} {name} {answer}\n"));
                    continue;
                }
                match &mut range {
                    Some((known, _, last, same)) if known == entry && same == answer => *last = n,
                    _ => {
                        close(&mut range, &mut out);
                        range = Some(((*entry).to_owned(), n, n, (*answer).to_owned()));
                    }
                }
            }
            _ => {
                close(&mut range, &mut out);
                out.push_str(&format!("{line}\n"));
            }
        }
    }
    close(&mut range, &mut out);
    out
}

#[cfg(not(target_arch = "x86_64"))]
pub fn the_published_table() {
    println!("skipped: threats::the_published_table: its program is written for x86-64");
}
