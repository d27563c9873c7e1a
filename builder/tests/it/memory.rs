//! What kiln keeps in memory doesn't grow with the work: the bound is that of all its processes together, without the page cache.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use crate::support::home::{Home, outcome};

const MB: u64 = 1 << 20;

/// The process and all that descend from it.
fn below(root: u32) -> Vec<u32> {
    let mut found = vec![root];
    let mut at = 0;
    while let Some(pid) = found.get(at) {
        for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
        at += 1;
    }
    found
}

/// Memory that is no file's, a page that several share counted once.
fn memory(root: u32) -> u64 {
    let of = |pid: &u32| {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let lines = text.lines().filter(|line| line.starts_with("Pss_Anon:") || line.starts_with("Pss_Shmem:"));
        lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum::<u64>() << 10
    };
    below(root).iter().map(of).sum()
}

/// The most that kiln and its sandboxes held during a build.
fn peak(home: &Home, args: &[&str]) -> u64 {
    let mut child = home.command().args(args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut most = 0;
    while child.try_wait().unwrap().is_none() {
        most = most.max(memory(child.id()));
        std::thread::sleep(Duration::from_millis(5));
    }
    outcome(&format!("{args:?}"), child.wait_with_output().unwrap()).ok();
    most
}

#[test]
fn many_stages_at_once() {
    let home = Home::new();
    let stages: String = (0..40).map(|i| format!("FROM busybox AS s{i}\nRUN sleep 0.5; echo {i} > /out{i}\n")).collect();
    let copies: String = (0..40).map(|i| format!("COPY --from=s{i} /out{i} /\n")).collect();
    let context = home.context("c", &format!("{stages}FROM busybox\n{copies}"));
    let most = peak(&home, &["build", context.to_str().unwrap()]);
    assert!(most > MB && most < 64 * MB, "{} MB", most / MB);
}

#[test]
fn a_command_has_the_pages_that_it_would_have_elsewhere() {
    let home = Home::new();
    let context = home.context("c", "FROM busybox\nRUN grep THP_enabled /proc/self/status > /thp\n");
    home.run(["build", "-o", "out", context.to_str().unwrap()]).ok();
    let said = |status: &str| status.lines().find_map(|line| line.strip_prefix("THP_enabled:")).map(str::trim).map(str::to_owned);
    let own = said(&fs::read_to_string("/proc/self/status").unwrap());
    assert_eq!(said(&fs::read_to_string(home.path("out/thp")).unwrap()), own);
}
