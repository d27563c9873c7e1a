//! Hides the language of `--resource`, of the older flags for single limits, and of `--cgroup-parent`.

use std::path::{Component, Path};

use kiln_runner::GroupLimits;

use super::args::ResourceArgs;
use super::csv::csv_fields;
use super::human;
use super::report::Failure;

/// What the flags ask for; of two for one limit the later counts, and `--resource` beats the others.
pub(crate) fn group_limits(args: &ResourceArgs) -> Result<GroupLimits, Failure> {
    let mut limits = GroupLimits::default();
    for (name, value) in [
        ("memory", &args.memory),
        ("memory-swap", &args.memory_swap),
        ("cpu-shares", &args.cpu_shares),
        ("cpu-period", &args.cpu_period),
        ("cpu-quota", &args.cpu_quota),
        ("cpuset-cpus", &args.cpuset_cpus),
        ("cpuset-mems", &args.cpuset_mems),
        ("cpus", &args.cpus),
        ("pids-limit", &args.pids_limit),
    ] {
        if let Some(value) = value {
            limit(&mut limits, name, value).map_err(|reason| invalid(&format!("--{name}"), value, &reason))?;
        }
    }
    for spec in &args.resource {
        // A list of processors has commas, too: what has no name goes on with the value before.
        let mut pairs: Vec<(String, String)> = Vec::new();
        for field in csv_fields(spec) {
            match (field.split_once('='), pairs.last_mut()) {
                (Some((name, value)), _) => pairs.push((name.trim().to_owned(), value.trim().to_owned())),
                (None, Some((name, value))) if name.starts_with("cpuset-") => value.push_str(&format!(",{field}")),
                (None, _) => return Err(invalid("--resource", spec, &format!("`{field}` is no name=value pair"))),
            }
        }
        for (name, value) in pairs {
            limit(&mut limits, &name, &value).map_err(|reason| invalid("--resource", spec, &reason))?;
        }
    }
    if let Some(swap) = limits.memory_and_swap {
        let Some(memory) = limits.memory else {
            return Err(Failure::usage("memory-swap is the sum of memory and swap: it needs memory, too"));
        };
        if swap.is_some_and(|swap| swap < memory) {
            return Err(Failure::usage("memory-swap is the sum of memory and swap: it can't be less than memory"));
        }
    }
    limits.parent = args.cgroup_parent.as_deref().filter(|text| !text.is_empty()).map(parent).transpose()?;
    Ok(limits)
}

fn invalid(flag: &str, value: &str, reason: &str) -> Failure {
    Failure::usage_hint(
        format!("invalid {flag} `{value}`: {reason}"),
        "write `--resource memory=1g,cpu-quota=50000`: memory, memory-swap, cpu-shares, cpu-period, cpu-quota, cpuset-cpus, \
         cpuset-mems, cpus, pids-limit",
    )
}

/// The least memory in which a program can be started.
const LEAST_MEMORY: u64 = 512 << 10;

/// Sets one limit; 0 is none, as in Docker.
fn limit(limits: &mut GroupLimits, name: &str, value: &str) -> Result<(), String> {
    let size = || human::parse_size(value).ok_or_else(|| format!("`{value}` is not a size, as `512m` is"));
    let number = |least: u64, most: u64| match value.parse::<u64>() {
        Ok(0) => Ok(None),
        Ok(value) if (least..=most).contains(&value) => Ok(Some(value)),
        _ => Err(format!("{name} is a number from {least} to {most}")),
    };
    match name {
        "memory" => {
            limits.memory = Some(size()?).filter(|bytes| *bytes > 0);
            if limits.memory.is_some_and(|bytes| bytes < LEAST_MEMORY) {
                return Err("no program can run in less than 512k of memory".to_owned());
            }
        }
        "memory-swap" if value == "-1" => limits.memory_and_swap = Some(None),
        "memory-swap" => limits.memory_and_swap = Some(size()?).filter(|bytes| *bytes > 0).map(Some),
        "cpu-shares" => limits.cpu_shares = number(2, 262_144)?,
        "cpu-period" => limits.cpu_period = number(1000, 1_000_000)?,
        "cpu-quota" if value == "-1" => limits.cpu_quota = None,
        "cpu-quota" => limits.cpu_quota = number(1000, u64::MAX / 1000)?,
        "cpus" => match processors(value)? {
            0 => limits.cpu_quota = None,
            hundredths => {
                limits.cpu_period = Some(PERIOD);
                limits.cpu_quota = Some(hundredths * PERIOD / 100);
            }
        },
        "pids-limit" if value == "-1" => limits.pids = None,
        "pids-limit" => limits.pids = number(1, 1 << 22)?,
        "cpuset-cpus" => limits.cpus = list(name, value)?,
        "cpuset-mems" => limits.memory_nodes = list(name, value)?,
        other => return Err(format!("there is no resource `{other}`")),
    }
    Ok(())
}

/// The microseconds over which `cpus` counts, as in Docker.
const PERIOD: u64 = 100_000;

/// A number of processors with at most two decimals, in hundredths.
fn processors(value: &str) -> Result<u64, String> {
    let (whole, part) = value.split_once('.').unwrap_or((value, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let hundredths = format!("{whole}{part:0<2}").parse::<u64>().ok();
    let well_formed = digits(whole) && digits(part) && part.len() <= 2 && !value.starts_with('.');
    hundredths
        .filter(|n| well_formed && *n <= 1_000_000)
        .ok_or_else(|| "cpus is a number of processors with at most two decimals, as `1.5`".to_owned())
}

/// Numbers and ranges of them: `0-2,7`.
fn list(name: &str, value: &str) -> Result<Option<String>, String> {
    let number = |text: &str| text.parse::<u32>().ok();
    let range = |part: &str| match part.split_once('-') {
        Some((first, last)) => number(first).zip(number(last)).is_some_and(|(first, last)| first <= last),
        None => number(part).is_some(),
    };
    match value.is_empty() || value.split(',').all(range) {
        true => Ok(Some(value.to_owned()).filter(|value| !value.is_empty())),
        false => Err(format!("{name} is a list as `0-2,7`")),
    }
}

fn parent(text: &str) -> Result<std::path::PathBuf, Failure> {
    let path = Path::new(text);
    let is_plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !is_plain || text.contains(':') || !path.components().any(|part| matches!(part, Component::Normal(_))) {
        return Err(Failure::usage_hint(
            format!("invalid --cgroup-parent `{text}`"),
            "write the path of a group from the top of the hierarchies, as `/builds`; systemd's `slice:prefix:name` is not known here",
        ));
    }
    Ok(path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(words: &[&str]) -> Result<GroupLimits, String> {
        let mut args = ResourceArgs::default();
        for word in words {
            match word.split_once(' ') {
                Some(("-m", value)) => args.memory = Some(value.to_owned()),
                Some(("--memory-swap", value)) => args.memory_swap = Some(value.to_owned()),
                Some(("--cgroup-parent", value)) => args.cgroup_parent = Some(value.to_owned()),
                _ => args.resource.push((*word).to_owned()),
            }
        }
        group_limits(&args).map_err(|failure| failure.to_string())
    }

    #[test]
    fn what_is_meant() {
        let none = GroupLimits::default;
        let rows: &[(&[&str], GroupLimits)] = &[
            (&[], none()),
            (&["memory=1g"], GroupLimits { memory: Some(1 << 30), ..none() }),
            (&["-m 64m", "memory-swap=-1"], GroupLimits { memory: Some(64 << 20), memory_and_swap: Some(None), ..none() }),
            (&["-m 64m", "memory=32m"], GroupLimits { memory: Some(32 << 20), ..none() }),
            (
                &["memory=64m,memory-swap=128m"],
                GroupLimits { memory: Some(64 << 20), memory_and_swap: Some(Some(128 << 20)), ..none() },
            ),
            (
                &["cpu-shares=512,cpu-period=50000", "cpu-quota=25000"],
                GroupLimits { cpu_shares: Some(512), cpu_period: Some(50_000), cpu_quota: Some(25_000), ..none() },
            ),
            (&["cpus=1.5"], GroupLimits { cpu_period: Some(100_000), cpu_quota: Some(150_000), ..none() }),
            (&["cpus=0.05"], GroupLimits { cpu_period: Some(100_000), cpu_quota: Some(5000), ..none() }),
            (&["pids-limit=100"], GroupLimits { pids: Some(100), ..none() }),
            (&["pids-limit=100,pids-limit=-1"], none()),
            (&["memory=0,cpu-quota=-1,cpu-shares=0"], none()),
            (
                &["cpuset-cpus=0-2,7,cpuset-mems=0"],
                GroupLimits { cpus: Some("0-2,7".into()), memory_nodes: Some("0".into()), ..none() },
            ),
            (&["--cgroup-parent /a/b"], GroupLimits { parent: Some("/a/b".into()), ..none() }),
        ];
        for (words, want) in rows {
            assert_eq!(limits(words).as_ref(), Ok(want), "{words:?}");
        }
    }

    #[test]
    fn refused() {
        let rows: &[(&[&str], &str)] = &[
            (&["memory"], "`memory` is no name=value pair"),
            (&["memory=much"], "`much` is not a size"),
            (&["memory=4k"], "512k"),
            (&["memory-swap=1g"], "needs memory"),
            (&["memory=2g,memory-swap=1g"], "less than memory"),
            (&["--memory-swap 1x"], "invalid --memory-swap `1x`"),
            (&["cpu-shares=1"], "from 2 to 262144"),
            (&["cpu-period=10"], "from 1000 to 1000000"),
            (&["cpu-quota=-2"], "cpu-quota is a number"),
            (&["cpuset-cpus=2-1"], "a list as"),
            (&["cpuset-mems=a"], "a list as"),
            (&["gpus=1"], "no resource `gpus`"),
            (&["--cgroup-parent ../x"], "invalid --cgroup-parent"),
            (&["--cgroup-parent system.slice:docker:x"], "invalid --cgroup-parent"),
            (&["--cgroup-parent /"], "invalid --cgroup-parent"),
        ];
        for (words, want) in rows {
            let got = limits(words).unwrap_err();
            assert!(got.contains(want), "{words:?}: {got}");
        }
    }
}
