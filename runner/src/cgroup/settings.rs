//! Which file of a control group says which limit, in both versions. Pure.

use crate::spec::GroupLimits;

/// One limit: the flag that asks for it, and what is written into which files.
pub(super) struct Setting {
    pub(super) flag: &'static str,
    pub(super) controller: &'static str,
    /// In version 1.
    pub(super) first: Vec<(&'static str, String)>,
    /// In version 2.
    pub(super) second: Vec<(&'static str, String)>,
}

impl GroupLimits {
    pub(super) fn settings(&self) -> Vec<Setting> {
        let mut settings = Vec::new();
        if let Some(pids) = self.pids {
            let files = vec![("pids.max", pids.to_string())];
            settings.push(Setting { flag: "pids-limit", controller: "pids", first: files.clone(), second: files });
        }
        if let Some(memory) = self.memory {
            // As Docker has it: as much swap again, unless something else is said.
            let total = self.memory_and_swap.unwrap_or(memory.checked_mul(2));
            let first = [memory.to_string(), total.map_or("-1".to_owned(), |total| total.to_string())];
            let swap = total.map_or("max".to_owned(), |total| total.saturating_sub(memory).to_string());
            settings.push(Setting {
                flag: "memory",
                controller: "memory",
                first: ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"].into_iter().zip(first).collect(),
                second: vec![("memory.max", memory.to_string()), ("memory.swap.max", swap)],
            });
        }
        if let Some(shares) = self.cpu_shares {
            // From 2…262144 to 1…10000, as all container managers do it.
            let weight = 1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142;
            settings.push(Setting {
                flag: "cpu-shares",
                controller: "cpu",
                first: vec![("cpu.shares", shares.to_string())],
                second: vec![("cpu.weight", weight.to_string())],
            });
        }
        if self.cpu_quota.is_some() || self.cpu_period.is_some() {
            let period = self.cpu_period.unwrap_or(100_000);
            let quota = |unlimited: &str| self.cpu_quota.map_or(unlimited.to_owned(), |quota| quota.to_string());
            settings.push(Setting {
                flag: if self.cpu_quota.is_some() { "cpu-quota" } else { "cpu-period" },
                controller: "cpu",
                first: vec![("cpu.cfs_period_us", period.to_string()), ("cpu.cfs_quota_us", quota("-1"))],
                second: vec![("cpu.max", format!("{} {period}", quota("max")))],
            });
        }
        for (flag, file, value) in
            [("cpuset-cpus", "cpuset.cpus", &self.cpus), ("cpuset-mems", "cpuset.mems", &self.memory_nodes)]
        {
            if let Some(value) = value {
                let files = vec![(file, value.clone())];
                settings.push(Setting { flag, controller: "cpuset", first: files.clone(), second: files });
            }
        }
        settings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files() {
        type Files = &'static [(&'static str, &'static str)];
        let limits = GroupLimits::default;
        let rows: &[(GroupLimits, Files, Files)] = &[
            (limits(), &[], &[]),
            (GroupLimits { pids: Some(7), ..limits() }, &[("pids.max", "7")], &[("pids.max", "7")]),
            (
                GroupLimits { memory: Some(100), ..limits() },
                &[("memory.limit_in_bytes", "100"), ("memory.memsw.limit_in_bytes", "200")],
                &[("memory.max", "100"), ("memory.swap.max", "100")],
            ),
            (
                GroupLimits { memory: Some(100), memory_and_swap: Some(Some(100)), ..limits() },
                &[("memory.limit_in_bytes", "100"), ("memory.memsw.limit_in_bytes", "100")],
                &[("memory.max", "100"), ("memory.swap.max", "0")],
            ),
            (
                GroupLimits { memory: Some(100), memory_and_swap: Some(None), ..limits() },
                &[("memory.limit_in_bytes", "100"), ("memory.memsw.limit_in_bytes", "-1")],
                &[("memory.max", "100"), ("memory.swap.max", "max")],
            ),
            (GroupLimits { cpu_shares: Some(1024), ..limits() }, &[("cpu.shares", "1024")], &[("cpu.weight", "39")]),
            (GroupLimits { cpu_shares: Some(262_144), ..limits() }, &[("cpu.shares", "262144")], &[("cpu.weight", "10000")]),
            (
                GroupLimits { cpu_quota: Some(50_000), ..limits() },
                &[("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "50000")],
                &[("cpu.max", "50000 100000")],
            ),
            (
                GroupLimits { cpu_period: Some(5000), ..limits() },
                &[("cpu.cfs_period_us", "5000"), ("cpu.cfs_quota_us", "-1")],
                &[("cpu.max", "max 5000")],
            ),
            (GroupLimits { cpus: Some("0-1".into()), ..limits() }, &[("cpuset.cpus", "0-1")], &[("cpuset.cpus", "0-1")]),
        ];
        for (limits, first, second) in rows {
            let settings = limits.settings();
            let all = |files: fn(&Setting) -> &Vec<(&'static str, String)>| -> Vec<(String, String)> {
                settings.iter().flat_map(files).map(|(file, value)| ((*file).to_owned(), value.clone())).collect()
            };
            let want = |files: Files| -> Vec<(String, String)> {
                files.iter().map(|(file, value)| ((*file).to_owned(), (*value).to_owned())).collect()
            };
            assert_eq!(all(|setting| &setting.first), want(first), "{limits:?}");
            assert_eq!(all(|setting| &setting.second), want(second), "{limits:?}");
        }
    }
}
