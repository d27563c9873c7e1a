//! Hides Go's spelling of durations (`time.ParseDuration`, `time.Duration.String`).

/// Reads a duration such as `1m30s` into nanoseconds.
///
/// # Errors
/// The text that Go gives.
pub fn parse_duration(text: &str) -> Result<i64, String> {
    let invalid = || format!("time: invalid duration {text:?}");
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let digits = |s: &str| s.bytes().take_while(u8::is_ascii_digit).count();
        let whole_len = digits(rest);
        let (whole, mut after) = rest.split_at(whole_len);
        let mut fraction = "";
        if let Some(tail) = after.strip_prefix('.') {
            let len = digits(tail);
            (fraction, after) = tail.split_at(len);
        }
        if whole.is_empty() && fraction.is_empty() {
            return Err(invalid());
        }
        let unit_len = after.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, tail) = after.split_at(unit_len);
        let scale: i128 = match unit {
            "" => return Err(format!("time: missing unit in duration {text:?}")),
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return Err(format!("time: unknown unit {unit:?} in duration {text:?}")),
        };
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse::<i64>().map_err(|_| invalid())?.into() };
        // More digits than nanoseconds have can't matter.
        let fraction = &fraction[..fraction.len().min(18)];
        let part: i128 = if fraction.is_empty() { 0 } else { fraction.parse::<i64>().map_err(|_| invalid())?.into() };
        total += whole * scale + part * scale / 10_i128.pow(fraction.len() as u32);
        if total > i128::from(i64::MAX) {
            return Err(invalid());
        }
        rest = tail;
    }
    let total = i64::try_from(total).map_err(|_| invalid())?;
    Ok(if negative { -total } else { total })
}

/// Writes nanoseconds as Go does: `1m30s`, `1.5s`, `100ms`, `0s`.
#[must_use]
pub fn format_duration(nanoseconds: i64) -> String {
    let sign = if nanoseconds < 0 { "-" } else { "" };
    let n = nanoseconds.unsigned_abs();
    let decimal = |value: u64, unit: u64, name: &str| {
        let digits = unit.ilog10() as usize;
        let fraction = format!("{:0digits$}", value % unit);
        let fraction = if unit == 1 { "" } else { fraction.trim_end_matches('0') };
        let dot = if fraction.is_empty() { "" } else { "." };
        format!("{}{dot}{fraction}{name}", value / unit)
    };
    let text = match n {
        0 => "0s".to_owned(),
        1..1_000 => decimal(n, 1, "ns"),
        1_000..1_000_000 => decimal(n, 1_000, "µs"),
        1_000_000..1_000_000_000 => decimal(n, 1_000_000, "ms"),
        _ => {
            let seconds = decimal(n % 60_000_000_000, 1_000_000_000, "s");
            match n / 60_000_000_000 {
                0 => seconds,
                minutes @ 1..60 => format!("{minutes}m{seconds}"),
                minutes => format!("{}h{}m{seconds}", minutes / 60, minutes % 60),
            }
        }
    };
    format!("{sign}{text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let rows = [
            ("0", Ok("0s")),
            ("5s", Ok("5s")),
            ("30s", Ok("30s")),
            ("1m30s", Ok("1m30s")),
            ("90s", Ok("1m30s")),
            ("1.5s", Ok("1.5s")),
            (".5s", Ok("500ms")),
            ("1h", Ok("1h0m0s")),
            ("25h1m1.001s", Ok("25h1m1.001s")),
            ("100us", Ok("100µs")),
            ("7ns", Ok("7ns")),
            ("-1s", Ok("-1s")),
            ("5", Err("time: missing unit in duration \"5\"")),
            ("", Err("time: invalid duration \"\"")),
            ("x", Err("time: invalid duration \"x\"")),
            ("5x", Err("time: unknown unit \"x\" in duration \"5x\"")),
            ("9999999h", Err("time: invalid duration \"9999999h\"")),
        ];
        for (text, want) in rows {
            assert_eq!(parse_duration(text).map(format_duration), want.map(str::to_owned).map_err(str::to_owned), "{text}");
        }
    }
}
