//! Hides how Go prints values (`%v`, `%q`), for the history of an image is full of it.

use kiln_oci::config::Healthcheck;
use kiln_oci::platform::Platform;

use crate::expand::Env;
use crate::instruction::format_duration;

/// `%q` of a string: quoted as Go source.
pub(super) fn quote(text: &str) -> String {
    let inner: String = text.chars().map(|c| if c == '"' { "\\\"".to_owned() } else { escape(c) }).collect();
    format!("\"{inner}\"")
}

/// `%q` of a list of strings.
pub(super) fn quote_list(items: &[String]) -> String {
    let items: Vec<String> = items.iter().map(|item| quote(item)).collect();
    format!("[{}]", items.join(" "))
}

/// `%v` of a list of strings.
pub(super) fn list(items: &[String]) -> String {
    format!("[{}]", items.join(" "))
}

/// `%q` of a pointer to a health check: durations are strings, and the number of retries becomes a character.
pub(super) fn quote_health(check: &Healthcheck) -> String {
    let duration = |n: i64| quote(&format_duration(n));
    // A number that is no character is printed as U+FFFD, as Go does.
    let retries = u32::try_from(check.retries).ok().and_then(char::from_u32).unwrap_or('\u{fffd}');
    let retries = if retries == '\'' { "\\'".to_owned() } else { escape(retries) };
    format!(
        "&{{{} {} {} {} {} '{retries}'}}",
        quote_list(&check.test),
        duration(check.interval),
        duration(check.timeout),
        duration(check.start_period),
        duration(check.start_interval),
    )
}

/// A character as it stands inside Go's quotes, apart from the quotes themselves.
fn escape(c: char) -> String {
    match c {
        '\\' => "\\\\".to_owned(),
        '\x07' => "\\a".to_owned(),
        '\x08' => "\\b".to_owned(),
        '\x0c' => "\\f".to_owned(),
        '\n' => "\\n".to_owned(),
        '\r' => "\\r".to_owned(),
        '\t' => "\\t".to_owned(),
        '\x0b' => "\\v".to_owned(),
        c if is_print(c) => c.to_string(),
        c if c.is_ascii() => format!("\\x{:02x}", u32::from(c)),
        c if u32::from(c) < 0x10000 => format!("\\u{:04x}", u32::from(c)),
        c => format!("\\U{:08x}", u32::from(c)),
    }
}

/// Go's `strconv.IsPrint`, but for characters that Unicode doesn't assign.
fn is_print(c: char) -> bool {
    let invisible = matches!(u32::from(c), 0xad | 0x200b..=0x200f | 0x202a..=0x202e | 0x2060..=0x206f | 0xfeff | 0xfff9..=0xfffb | 0xe000..=0xf8ff | 0xe0000..=0x10ffff);
    c == ' ' || !(c.is_control() || c.is_whitespace() || invisible)
}

/// The text of a `RUN` in the history: the arguments in scope with their number, then the command.
pub(super) fn run_command(args: &[String], declared: &[(String, Option<String>)], env: &Env) -> String {
    let mut pairs: Vec<(&str, String)> = Vec::new();
    for (name, value) in declared {
        let value = env.get(name).or(value.as_deref()).unwrap_or_default();
        let text = format!("{name}={value}");
        match pairs.iter_mut().find(|(n, _)| n == name) {
            Some(pair) => pair.1 = text,
            None => pairs.push((name, text)),
        }
    }
    let mut words = Vec::new();
    if !pairs.is_empty() {
        words.push(format!("|{}", pairs.len()));
    }
    words.extend(pairs.into_iter().map(|(_, text)| text));
    words.extend(args.iter().cloned());
    words.join(" ")
}

/// The name of a step: `[stage 2/10] RUN make`.
pub(super) fn step_name(stage: &str, index: usize, total: usize, on_build: bool, text: &str) -> String {
    if total == 0 {
        return text.to_owned();
    }
    let width = total.ilog10() as usize + 1;
    let space = if stage.is_empty() { "" } else { " " };
    let trigger = if on_build { "ONBUILD " } else { "" };
    format!("[{stage}{space}{index:width$}/{total}] {trigger}{text}")
}

/// What stands before a step's number where several platforms are built: `linux/arm64 build`, or `linux/amd64->arm64 build` for a
/// stage that runs on one platform on behalf of another.
pub(super) fn platform_label(platform: &Platform, target: &Platform, stage: &str) -> String {
    let arrow = match (platform.os == target.os, platform.architecture == target.architecture) {
        (true, true) if platform.variant == target.variant => String::new(),
        (true, true) => format!("->{}", target.variant.as_deref().unwrap_or_default()),
        (true, false) => match &target.variant {
            Some(variant) => format!("->{}/{variant}", target.architecture),
            None => format!("->{}", target.architecture),
        },
        (false, _) => format!("->{target}"),
    };
    format!("{platform}{arrow} {stage}").trim_end().to_owned()
}

/// The text with its first word in upper case.
pub(super) fn upper_first_word(text: &str) -> String {
    match text.split_once(' ') {
        Some((word, rest)) => format!("{} {rest}", word.to_uppercase()),
        None => text.to_uppercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_go_quotes() {
        for (text, want) in [
            ("a", "\"a\""),
            ("a\"b\\", "\"a\\\"b\\\\\""),
            ("é\n\t'", "\"é\\n\\t'\""),
            ("\x01\x7f\u{a0}\u{200b}", "\"\\x01\\x7f\\u00a0\\u200b\""),
        ] {
            assert_eq!(quote(text), want);
        }
        let check =
            Healthcheck { test: vec!["CMD".into(), "a".into()], interval: 5_000_000_000, retries: 3, ..Healthcheck::default() };
        assert_eq!(quote_health(&check), r#"&{["CMD" "a"] "5s" "0s" "0s" "0s" '\x03'}"#);
        let check = Healthcheck { test: vec!["NONE".into()], retries: 39, ..Healthcheck::default() };
        assert_eq!(quote_health(&check), r#"&{["NONE"] "0s" "0s" "0s" "0s" '\''}"#);
    }

    #[test]
    fn names() {
        assert_eq!(step_name("", 2, 5, false, "RUN x"), "[2/5] RUN x");
        assert_eq!(step_name("stage-1", 2, 12, true, "RUN x"), "[stage-1  2/12] ONBUILD RUN x");
        assert_eq!(step_name("x", 0, 0, false, "FROM x"), "FROM x");
        let p = |text| Platform::parse(text).unwrap();
        for (platform, target, stage, want) in [
            ("linux/arm64", "linux/arm64", "", "linux/arm64"),
            ("linux/arm64", "linux/arm64", "build", "linux/arm64 build"),
            ("linux/amd64", "linux/arm64", "build", "linux/amd64->arm64 build"),
            ("linux/amd64", "linux/arm/v6", "", "linux/amd64->arm/v6"),
            ("linux/arm/v7", "linux/arm/v6", "", "linux/arm/v7->v6"),
            ("linux/amd64", "windows/amd64", "", "linux/amd64->windows/amd64"),
        ] {
            assert_eq!(platform_label(&p(platform), &p(target), stage), want);
        }
        assert_eq!(upper_first_word("copy a b"), "COPY a b");
    }
}
