//! Hides how sizes and spans of time are worded: as go-units does for docker, so that scripts see what they know.

use std::time::Duration;

const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];

/// A size with a number of significant digits, decimal units: `7.81MB` (go-units `HumanSizeWithPrecision`; docker's
/// listings use 3, `HumanSize` is 4).
pub(crate) fn size(bytes: u64, significant: usize) -> String {
    let (mut value, mut unit) = scale(bytes);
    let digits = |value: f64| if value < 1.0 { 1 } else { value.log10().floor() as usize + 1 };
    let mut text = format!("{value:.*}", significant.saturating_sub(digits(value)));
    if text.parse().unwrap_or(0.0) >= 1000.0 && unit + 1 < UNITS.len() {
        (value, unit) = (value / 1000.0, unit + 1);
        text = format!("{value:.*}", significant.saturating_sub(1));
    }
    if text.contains('.') {
        text.truncate(text.trim_end_matches('0').trim_end_matches('.').len());
    }
    format!("{text}{}", UNITS[unit])
}

/// A size in a transfer's progress: `133B`, `12.30MB` (BuildKit prints with `%.2f`).
pub(crate) fn transfer_size(bytes: u64) -> String {
    match scale(bytes) {
        (value, 0) => format!("{value}B"),
        (value, unit) => format!("{value:.2}{}", UNITS[unit]),
    }
}

fn scale(bytes: u64) -> (f64, usize) {
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    (value, unit)
}

/// How long ago in docker's words: `2 weeks`, `About an hour` (go-units `HumanDuration`).
pub(crate) fn duration(span: Duration) -> String {
    let seconds = span.as_secs();
    let minutes = seconds / 60;
    let hours = (span.as_secs_f64() / 3600.0).round() as u64;
    match (seconds, minutes, hours) {
        (0, ..) => "Less than a second".to_owned(),
        (1, ..) => "1 second".to_owned(),
        (s, ..) if s < 60 => format!("{s} seconds"),
        (_, 1, _) => "About a minute".to_owned(),
        (_, m, _) if m < 60 => format!("{m} minutes"),
        (_, _, 1) => "About an hour".to_owned(),
        (_, _, h) if h < 48 => format!("{h} hours"),
        (_, _, h) if h < 24 * 7 * 2 => format!("{} days", h / 24),
        (_, _, h) if h < 24 * 30 * 2 => format!("{} weeks", h / 24 / 7),
        (_, _, h) if h < 24 * 365 * 2 => format!("{} months", h / 24 / 30),
        (_, _, h) => format!("{} years", h / 24 / 365),
    }
}

/// A size as people type it: `64m`, `1.5GiB`, `1024` (go-units `RAMInBytes`: all units are binary).
pub(crate) fn parse_size(text: &str) -> Option<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let split = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let (number, unit) = lower.split_at(split);
    let unit = unit.trim();
    let power = match unit.strip_suffix("ib").or(unit.strip_suffix('b')).unwrap_or(unit) {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return None,
    };
    let number: f64 = number.parse().ok()?;
    let bytes = number * 1024f64.powi(power);
    (bytes.is_finite() && bytes < u64::MAX as f64).then_some(bytes as u64)
}

/// A span of time in Go's notation: `24h`, `1h30m`, `500ms`; also `7d`.
pub(crate) fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut total = 0f64;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let unit_end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let seconds = match unit {
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            _ => return None,
        };
        total += number.parse::<f64>().ok()? * seconds;
        rest = after;
    }
    Duration::try_from_secs_f64(total).ok()
}

/// `text` in at most `width` characters, the last of them `…` if something is missing (docker's `Ellipsis`).
pub(crate) fn ellipsis(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let rows = [
            (0, 3, "0B"),
            (999, 3, "999B"),
            (1000, 3, "1kB"),
            (1_234_567, 3, "1.23MB"),
            (7_810_000, 3, "7.81MB"),
            (117_400_000, 3, "117MB"),
            (117_400_000, 4, "117.4MB"),
            (999_960, 3, "1MB"),
            (1_000_000_000, 3, "1GB"),
        ];
        for (bytes, digits, want) in rows {
            assert_eq!(size(bytes, digits), want, "{bytes}");
        }
    }

    #[test]
    fn transfer_sizes() {
        for (bytes, want) in [(0, "0B"), (133, "133B"), (1570, "1.57kB"), (12_300_000, "12.30MB")] {
            assert_eq!(transfer_size(bytes), want);
        }
    }

    #[test]
    fn durations() {
        let rows = [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (61, "About a minute"),
            (600, "10 minutes"),
            (3700, "About an hour"),
            (7300, "2 hours"),
            (3 * 86_400, "3 days"),
            (15 * 86_400, "2 weeks"),
            (70 * 86_400, "2 months"),
            (800 * 86_400, "2 years"),
        ];
        for (seconds, want) in rows {
            assert_eq!(duration(Duration::from_secs(seconds)), want);
        }
    }

    #[test]
    fn typed_sizes_and_durations() {
        for (text, want) in [
            ("64m", Some(64 << 20)),
            ("1g", Some(1 << 30)),
            ("1.5k", Some(1536)),
            ("7", Some(7)),
            ("2GiB", Some(2 << 30)),
            ("x", None),
            ("", None),
            ("5q", None),
        ] {
            assert_eq!(parse_size(text), want, "{text}");
        }
        for (text, want) in
            [("24h", Some(86_400)), ("1h30m", Some(5400)), ("7d", Some(604_800)), ("5", None), ("", None), ("h", None)]
        {
            assert_eq!(parse_duration(text), want.map(Duration::from_secs), "{text}");
        }
    }

    #[test]
    fn ellipses() {
        assert_eq!(ellipsis("abc", 3), "abc");
        assert_eq!(ellipsis("abcd", 3), "ab…");
    }
}
