//! Hides how the words behind a keyword become a typed instruction (BuildKit `instructions/parse.go`,
//! `parser/line_parsers.go`).

use kiln_oci::config::Healthcheck;

use super::health::{format_duration, parse_duration};
use super::mount::mount_from;
use super::{
    Arg, CommandLine, Dockerfile, HealthcheckSpec, InlineSource, Instruction, Kind, Pair, Run, RunFile, Stage, Transfer,
};
use crate::diagnostic::{Diagnostic, nearest};
use crate::graph::{NetworkMode, SecurityMode};
use crate::heredoc::Heredoc;
use crate::lint::Rule;
use crate::parser::{Line, Lines, split_line};
use crate::source::{Source, Span};

/// Every keyword, in upper case.
pub const INSTRUCTIONS: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

type Outcome<T> = Result<T, Diagnostic>;

/// Turns lines into stages. Each mistake is added to `diagnostics`, and the next instruction is looked at.
pub fn parse_lines(lines: &Lines, diagnostics: &mut Vec<Diagnostic>) -> Dockerfile {
    let mut out = Dockerfile { directives: lines.directives.clone(), ..Dockerfile::default() };
    for line in &lines.lines {
        match parse_line(line, lines.directives.escape, diagnostics) {
            Ok(Parsed::From(stage)) => out.stages.push(stage),
            Ok(Parsed::Command(command)) => match (out.stages.last_mut(), command.kind) {
                (None, Kind::Arg(args)) => out.global_args.push((args, line.span)),
                (None, _) => {
                    let hint = "a Dockerfile begins with FROM; only ARG may stand before it";
                    diagnostics.push(Diagnostic::error("no build stage in current context").at(line.span).with_hint(hint));
                }
                (Some(stage), kind) => stage.instructions.push(Instruction { kind, ..command }),
            },
            Err(diagnostic) => {
                // A stage whose FROM is wrong must not swallow what follows into the stage before it.
                if line.keyword.eq_ignore_ascii_case("from") {
                    out.stages.push(broken_stage(line));
                }
                diagnostics.push(Diagnostic { span: diagnostic.span.or(Some(line.span)), ..diagnostic });
            }
        }
    }
    out
}

/// Parses the text of an `ONBUILD` trigger as an instruction at `span`.
pub(crate) fn parse_trigger(text: &str, span: Span) -> Outcome<Instruction> {
    let lines = crate::parser::split(&Source::from_text("ONBUILD", text.to_owned()));
    if let Some(error) = lines.diagnostics.into_iter().find(Diagnostic::is_error) {
        return Err(error.at(span));
    }
    let [line] = lines.lines.as_slice() else {
        return Err(Diagnostic::error("onbuild trigger should be a single expression").at(span));
    };
    let mut ignored = Vec::new();
    match parse_line(line, '\\', &mut ignored) {
        Ok(Parsed::Command(command)) => Ok(Instruction { span, ..command }),
        Ok(Parsed::From(_)) => Err(Diagnostic::error("FROM isn't allowed as an ONBUILD trigger").at(span)),
        Err(error) => Err(error.at(span)),
    }
}

enum Parsed {
    From(Stage),
    Command(Instruction),
}

fn broken_stage(line: &Line) -> Stage {
    Stage {
        name: None,
        base: "scratch".to_owned(),
        platform: None,
        keyword: line.keyword.clone(),
        code: line.original.trim().to_owned(),
        span: line.span,
        comment: None,
        instructions: Vec::new(),
    }
}

fn parse_line(line: &Line, escape: char, lints: &mut Vec<Diagnostic>) -> Outcome<Parsed> {
    let keyword = line.keyword.to_ascii_uppercase();
    let kind = match keyword.as_str() {
        "FROM" => return from(line, lints).map(Parsed::From),
        "ADD" => Kind::Add(transfer(line, true)?),
        "COPY" => Kind::Copy(transfer(line, false)?),
        "ARG" => Kind::Arg(arg(line, escape, lints)?),
        "ENV" => Kind::Env(pairs(line, "ENV", escape)?),
        "LABEL" => Kind::Label(pairs(line, "LABEL", escape)?),
        "CMD" => {
            no_flags(line)?;
            Kind::Cmd(command_line(&line.rest)?)
        }
        "ENTRYPOINT" => {
            no_flags(line)?;
            Kind::Entrypoint(command_line(&line.rest)?)
        }
        "EXPOSE" => {
            let mut ports = words(&line.rest);
            at_least_one(&ports, "EXPOSE")?;
            no_flags(line)?;
            ports.sort();
            Kind::Expose(ports)
        }
        "HEALTHCHECK" => Kind::Healthcheck(healthcheck(line)?),
        "MAINTAINER" => {
            lints.push(Diagnostic::lint(
                Rule::MaintainerDeprecated,
                "Maintainer instruction is deprecated in favor of using label",
                line.span,
            ));
            Kind::Maintainer(whole(line, "MAINTAINER")?)
        }
        "ONBUILD" => Kind::Onbuild(onbuild(line)?),
        "RUN" => Kind::Run(run(line)?),
        "SHELL" => Kind::Shell(shell(line)?),
        "STOPSIGNAL" => Kind::Stopsignal(one_argument(&line.rest, "STOPSIGNAL")?),
        "USER" => Kind::User(whole(line, "USER")?),
        "VOLUME" => Kind::Volume(volume(line)?),
        "WORKDIR" => Kind::Workdir(whole(line, "WORKDIR")?),
        _ => {
            let error = Diagnostic::error(format!("unknown instruction: {}", line.keyword));
            return Err(match nearest(&line.keyword, INSTRUCTIONS) {
                Some(known) => error.with_hint(format!("did you mean `{known}`?")),
                None => error,
            });
        }
    };
    Ok(Parsed::Command(Instruction {
        keyword: line.keyword.clone(),
        code: line.original.trim().to_owned(),
        span: line.span,
        kind,
    }))
}

/// The elements of a JSON array of strings; `None` for anything else, which then is in shell form.
///
/// # Errors
/// An array that holds something other than strings is no shell form either.
pub(crate) fn json_form(text: &str) -> Outcome<Option<Vec<String>>> {
    if !text.trim_start().starts_with('[') {
        return Ok(None);
    }
    let Ok(values) = serde_json::from_str::<Vec<serde_json::Value>>(text) else { return Ok(None) };
    let strings = values.into_iter().map(|value| match value {
        serde_json::Value::String(text) => Ok(text),
        _ => Err(Diagnostic::error("when using JSON array syntax, arrays must be comprised of strings only")),
    });
    strings.collect::<Outcome<Vec<String>>>().map(Some)
}

fn command_line(rest: &str) -> Outcome<CommandLine> {
    Ok(match json_form(rest)? {
        Some(args) => CommandLine::Exec(args),
        None => CommandLine::Shell(rest.to_owned()),
    })
}

/// A JSON array, or words.
fn list(rest: &str) -> Outcome<Vec<String>> {
    Ok(json_form(rest)?.unwrap_or_else(|| words(rest)))
}

/// Splits at blanks, quotes or not.
fn words(rest: &str) -> Vec<String> {
    rest.split(['\t', '\x0b', '\x0c', '\r', ' ']).filter(|w| !w.is_empty()).map(str::to_owned).collect()
}

/// Splits at blanks outside quotes; quotes and escapes stay.
fn quoted_words(rest: &str, escape: char) -> Vec<String> {
    let mut out = Vec::new();
    let mut word = String::new();
    let mut quote: Option<char> = None;
    let mut blank_ok = false;
    let mut chars = rest.chars().peekable();
    while let Some(c) = chars.next() {
        if quote.is_none() && c.is_whitespace() {
            if blank_ok || !word.is_empty() {
                out.push(std::mem::take(&mut word));
            }
            blank_ok = false;
            continue;
        }
        if c == escape && quote != Some('\'') {
            // At the very end it stands for nothing.
            if let Some(escaped) = chars.next() {
                word.extend([c, escaped]);
            }
            continue;
        }
        match quote {
            Some(q) if c == q => quote = None,
            None if matches!(c, '\'' | '"') => {
                quote = Some(c);
                blank_ok = true;
            }
            _ => {}
        }
        word.push(c);
    }
    if blank_ok || !word.is_empty() {
        out.push(word);
    }
    out
}

fn at_least_one<T>(args: &[T], name: &str) -> Outcome<()> {
    if args.is_empty() { Err(Diagnostic::error(format!("{name} requires at least one argument"))) } else { Ok(()) }
}

/// The rest of the line as it is, which must not be empty.
fn one_argument(rest: &str, name: &str) -> Outcome<String> {
    if rest.is_empty() {
        return Err(Diagnostic::error(format!("{name} requires exactly one argument")));
    }
    Ok(rest.to_owned())
}

fn whole(line: &Line, name: &str) -> Outcome<String> {
    let text = one_argument(&line.rest, name)?;
    no_flags(line)?;
    Ok(text)
}

/// What a flag may hold.
#[derive(Clone, Copy, PartialEq, Eq)]
enum FlagKind {
    Bool,
    Text,
    Texts,
}

/// The flags of an instruction, checked.
struct Flags {
    values: Vec<(&'static str, String)>,
}

impl Flags {
    /// Checks flags against those that are known.
    fn parse(line: &Line, known: &[(&'static str, FlagKind)]) -> Outcome<Flags> {
        let mut values: Vec<(&'static str, String)> = Vec::new();
        for flag in &line.flags {
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (flag.as_str(), None),
            };
            let Some((key, kind)) = known.iter().find(|(key, _)| name.strip_prefix("--") == Some(*key)) else {
                let error = Diagnostic::error(format!("unknown flag: {name}"));
                return Err(match nearest(name.trim_start_matches('-'), known.iter().map(|(key, _)| *key)) {
                    Some(key) => error.with_hint(format!("did you mean `--{key}`?")),
                    None => error,
                });
            };
            if *kind != FlagKind::Texts && values.iter().any(|(k, _)| k == key) {
                return Err(Diagnostic::error(format!("duplicate flag specified: {name}")));
            }
            let missing = || Diagnostic::error(format!("missing a value on flag: {name}"));
            let value = match (kind, value) {
                (FlagKind::Bool, None) => "true".to_owned(),
                (FlagKind::Bool, Some("")) => return Err(missing()),
                (FlagKind::Bool, Some(value)) => match value.to_lowercase().as_str() {
                    boolean @ ("true" | "false") => boolean.to_owned(),
                    _ => return Err(Diagnostic::error(format!("expecting boolean value for flag {name}, not: {value}"))),
                },
                (_, Some(value)) => value.to_owned(),
                (_, None) => return Err(missing()),
            };
            values.push((key, value));
        }
        Ok(Flags { values })
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.values.iter().find(|(k, _)| *k == key).map(|(_, v)| v.as_str())
    }

    fn owned(&self, key: &str) -> String {
        self.text(key).unwrap_or_default().to_owned()
    }

    fn texts(&self, key: &str) -> Vec<String> {
        self.values.iter().filter(|(k, _)| *k == key).map(|(_, v)| v.clone()).collect()
    }

    fn boolean(&self, key: &str) -> Option<bool> {
        self.text(key).map(|v| v == "true")
    }
}

fn no_flags(line: &Line) -> Outcome<()> {
    Flags::parse(line, &[]).map(|_| ())
}

fn from(line: &Line, lints: &mut Vec<Diagnostic>) -> Outcome<Stage> {
    let args = words(&line.rest);
    let mut name = None;
    match args.as_slice() {
        [_] => {}
        [_, keyword, written] if keyword.eq_ignore_ascii_case("as") => {
            let lower = written.to_lowercase();
            let sound = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.');
            if !lower.starts_with(|c: char| c.is_ascii_lowercase()) || !lower.chars().all(sound) {
                let message =
                    format!("invalid name for build stage: {written:?}, name can't start with a number or contain symbols");
                return Err(Diagnostic::error(message));
            }
            if *written != lower {
                let message = format!("Stage name '{written}' should be lowercase");
                lints.push(Diagnostic::lint(Rule::StageNameCasing, message, line.span));
            }
            // A keyword in mixed case is a matter for `ConsistentInstructionCasing`.
            let odd = match line.keyword.as_str() {
                from if from == from.to_lowercase() => *keyword != keyword.to_lowercase(),
                from if from == from.to_uppercase() => *keyword != keyword.to_uppercase(),
                _ => false,
            };
            if odd {
                let message = format!("'{keyword}' and '{}' keywords' casing do not match", line.keyword);
                lints.push(Diagnostic::lint(Rule::FromAsCasing, message, line.span));
            }
            name = Some(lower);
        }
        _ => {
            let hint = "write `FROM IMAGE` or `FROM IMAGE AS NAME`";
            return Err(Diagnostic::error("FROM requires either one or three arguments").with_hint(hint));
        }
    }
    let flags = Flags::parse(line, &[("platform", FlagKind::Text)])?;
    let comment = name.as_deref().and_then(|name| described(line, name));
    definition_lint(line, "FROM", &name.iter().map(String::as_str).collect::<Vec<_>>(), lints);
    Ok(Stage {
        comment,
        name,
        base: args[0].clone(),
        platform: flags.text("platform").filter(|p| !p.is_empty()).map(str::to_owned),
        keyword: line.keyword.clone(),
        code: line.original.trim().to_owned(),
        span: line.span,
        instructions: Vec::new(),
    })
}

/// What the comment above says about `name`: a line `name description`.
fn described(line: &Line, name: &str) -> Option<String> {
    line.comments.iter().find_map(|comment| comment.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned))
}

/// `InvalidDefinitionDescription`: the last comment above begins with one of the names that the instruction gives.
fn definition_lint(line: &Line, keyword: &str, names: &[&str], lints: &mut Vec<Diagnostic>) {
    let Some(last) = line.comments.iter().rev().find(|c| !c.starts_with("check=")) else { return };
    let name = match names {
        [] => return,
        [only] => only,
        _ => "<arg_key>",
    };
    if !names.contains(&last.split(' ').next().unwrap_or_default()) {
        let message = format!("Comment for {keyword} should follow the format: `# {name} <description>`");
        lints.push(Diagnostic::lint(Rule::InvalidDefinitionDescription, message, line.span));
    }
}

fn arg(line: &Line, escape: char, lints: &mut Vec<Diagnostic>) -> Outcome<Vec<Arg>> {
    // BuildKit doesn't look at the flags of ARG, so a flag it knows nothing of is no mistake.
    let words = quoted_words(&line.rest, escape);
    at_least_one(&words, "ARG")?;
    let mut args = Vec::new();
    for word in words {
        let (name, value) = match word.split_once('=') {
            Some(("", _)) => return Err(Diagnostic::error("ARG names can not be blank")),
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (word, None),
        };
        let comment = described(line, &name);
        args.push(Arg { name, value, comment });
    }
    definition_lint(line, "ARG", &args.iter().map(|arg: &Arg| arg.name.as_str()).collect::<Vec<_>>(), lints);
    Ok(args)
}

fn pairs(line: &Line, name: &str, escape: char) -> Outcome<Vec<Pair>> {
    let words = quoted_words(&line.rest, escape);
    let mut out = Vec::new();
    match words.first() {
        None => {}
        Some(first) if !first.contains('=') => {
            let blank = ['\t', '\x0b', '\x0c', '\r', ' '];
            let Some((key, value)) = line.rest.split_once(blank) else {
                return Err(Diagnostic::error(format!("{name} must have two arguments")));
            };
            out.push(Pair { name: key.to_owned(), value: value.trim_start_matches(blank).to_owned(), legacy: true });
        }
        Some(_) => {
            for word in &words {
                let Some((key, value)) = word.split_once('=') else {
                    let message = format!("Syntax error - can't find = in {word:?}. Must be of the form: name=value");
                    let hint = "quote a value that holds blanks";
                    return Err(Diagnostic::error(message).with_hint(hint));
                };
                out.push(Pair { name: key.to_owned(), value: value.to_owned(), legacy: false });
            }
        }
    }
    no_flags(line)?;
    at_least_one(&out, name)?;
    if out.iter().any(|pair| pair.name.is_empty()) {
        return Err(Diagnostic::error(format!("{name} names can not be blank")));
    }
    Ok(out)
}

fn transfer(line: &Line, is_add: bool) -> Outcome<Transfer> {
    let name = if is_add { "ADD" } else { "COPY" };
    let mut args = list(&line.rest)?;
    if args.len() < 2 {
        let message =
            format!("{name} requires at least two arguments, but only one was provided. Destination could not be determined");
        return Err(Diagnostic::error(message));
    }
    let mut known =
        vec![("chown", FlagKind::Text), ("chmod", FlagKind::Text), ("link", FlagKind::Bool), ("exclude", FlagKind::Texts)];
    known.extend(if is_add {
        [("keep-git-dir", FlagKind::Bool), ("checksum", FlagKind::Text), ("unpack", FlagKind::Bool)]
    } else {
        [("from", FlagKind::Text), ("parents", FlagKind::Bool), ("from", FlagKind::Text)]
    });
    let flags = Flags::parse(line, &known)?;
    let dest = args.pop().unwrap_or_default();
    if Heredoc::peek(&dest).is_some() {
        return Err(Diagnostic::error(format!("{name} cannot accept a heredoc as a destination")));
    }
    let mut out = Transfer {
        dest,
        from: flags.text("from").filter(|f| !f.is_empty()).map(str::to_owned),
        chown: flags.owned("chown"),
        chmod: flags.owned("chmod"),
        link: flags.boolean("link").unwrap_or(false),
        parents: flags.boolean("parents").unwrap_or(false),
        exclude: flags.texts("exclude"),
        checksum: flags.owned("checksum"),
        keep_git_dir: flags.boolean("keep-git-dir"),
        unpack: flags.boolean("unpack"),
        ..Transfer::default()
    };
    if out.from.as_deref().is_some_and(|from| from.find('$').is_some_and(|i| i + 1 != from.len())) {
        let hint = "write `ARG` before the first FROM, then `FROM $NAME AS source` and `COPY --from=source`";
        return Err(Diagnostic::error("variable expansion is not supported for --from, define a new stage with FROM using ARG from global scope as a workaround").with_hint(hint));
    }
    for source in args {
        match Heredoc::peek(&source) {
            None => out.sources.push(source),
            Some(word) => {
                // Of equal names the last has the body, as in BuildKit.
                let body = line.heredocs.iter().rev().find(|doc| doc.name == word.name);
                let content = body.map(|doc| doc.content.clone()).unwrap_or_default();
                let data = Heredoc { content, ..word.clone() }.body();
                out.inline.push(InlineSource { name: word.name, data, expand: word.expand });
            }
        }
    }
    Ok(out)
}

fn healthcheck(line: &Line) -> Outcome<HealthcheckSpec> {
    let (kind, rest) = line.rest.split_once(char::is_whitespace).unwrap_or((&line.rest, ""));
    let rest = rest.trim_start();
    if kind.is_empty() {
        return Err(Diagnostic::error("HEALTHCHECK requires at least one argument"));
    }
    let command = command_line(rest)?;
    let kind = kind.to_uppercase();
    let mut check = Healthcheck::default();
    if kind == "NONE" {
        if !rest.is_empty() {
            return Err(Diagnostic::error("HEALTHCHECK NONE takes no arguments"));
        }
        check.test = vec![kind];
        return Ok(HealthcheckSpec(check));
    }
    let flags = Flags::parse(
        line,
        &[
            ("interval", FlagKind::Text),
            ("timeout", FlagKind::Text),
            ("start-period", FlagKind::Text),
            ("start-interval", FlagKind::Text),
            ("retries", FlagKind::Text),
        ],
    )?;
    if kind != "CMD" {
        let error = Diagnostic::error(format!("Unknown type {kind:?} in HEALTHCHECK (try CMD)"));
        return Err(error);
    }
    check.test = match command {
        CommandLine::Exec(args) if args.is_empty() => Vec::new(),
        CommandLine::Shell(text) if text.is_empty() => Vec::new(),
        CommandLine::Exec(args) => [vec!["CMD".to_owned()], args].concat(),
        CommandLine::Shell(text) => vec!["CMD-SHELL".to_owned(), text],
    };
    if check.test.is_empty() {
        return Err(Diagnostic::error("Missing command after HEALTHCHECK CMD"));
    }
    check.interval = interval(&flags, "interval")?;
    check.timeout = interval(&flags, "timeout")?;
    check.start_period = interval(&flags, "start-period")?;
    check.start_interval = interval(&flags, "start-interval")?;
    if let Some(text) = flags.text("retries").filter(|t| !t.is_empty()) {
        let retries: i32 = text.parse().map_err(|_| Diagnostic::error(format!("--retries must be a number, not {text:?}")))?;
        if retries < 0 {
            return Err(Diagnostic::error(format!("--retries cannot be negative ({retries})")));
        }
        check.retries = retries.into();
    }
    Ok(HealthcheckSpec(check))
}

/// A duration in nanoseconds: nothing, 0, or at least a millisecond.
fn interval(flags: &Flags, key: &str) -> Outcome<i64> {
    const SMALLEST: i64 = 1_000_000;
    let Some(text) = flags.text(key).filter(|t| !t.is_empty()) else { return Ok(0) };
    let value = parse_duration(text).map_err(|error| {
        Diagnostic::error(format!("--{key}: {error}")).with_hint("write a number and a unit: `500ms`, `5s`, `1m30s`")
    })?;
    if value != 0 && value < SMALLEST {
        let message = format!("Interval {key:?} cannot be less than {}", format_duration(SMALLEST));
        return Err(Diagnostic::error(message));
    }
    Ok(value)
}

fn onbuild(line: &Line) -> Outcome<String> {
    if line.rest.is_empty() {
        return Err(Diagnostic::error("ONBUILD requires at least one argument"));
    }
    no_flags(line)?;
    let inner = split_line(&line.rest);
    let trigger = inner.keyword.to_ascii_uppercase();
    match trigger.as_str() {
        "ONBUILD" => return Err(Diagnostic::error("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")),
        "MAINTAINER" | "FROM" => return Err(Diagnostic::error(format!("{trigger} isn't allowed as an ONBUILD trigger"))),
        _ => {}
    }
    // BuildKit's line parser would stumble over this, too; other mistakes show only in the child.
    if matches!(trigger.as_str(), "RUN" | "CMD" | "ENTRYPOINT" | "SHELL" | "COPY" | "ADD" | "VOLUME") {
        json_form(&inner.rest)?;
    }
    let mut text = line.original.trim_start()[line.keyword.len()..].trim_start().to_owned();
    for doc in &line.heredocs {
        text.push('\n');
        text.push_str(&doc.content);
        text.push_str(&doc.name);
    }
    Ok(text)
}

fn run(line: &Line) -> Outcome<Run> {
    let flags = Flags::parse(
        line,
        &[("mount", FlagKind::Texts), ("network", FlagKind::Text), ("security", FlagKind::Text), ("device", FlagKind::Texts)],
    )?;
    let network = match flags.text("network").unwrap_or_default() {
        "" | "default" => NetworkMode::Default,
        "host" => NetworkMode::Host,
        "none" => NetworkMode::None,
        other => return Err(choose("network mode", other, &["default", "none", "host"])),
    };
    let security = match flags.text("security").unwrap_or_default() {
        "" | "sandbox" => SecurityMode::Sandbox,
        "insecure" => SecurityMode::Insecure,
        other => return Err(choose("security", other, &["sandbox", "insecure"])),
    };
    let mounts = flags.texts("mount");
    let mount_from = mounts.iter().map(|m| mount_from(m)).collect::<Outcome<Vec<_>>>()?;
    let files = line.heredocs.iter().map(|doc| RunFile { name: doc.name.clone(), raw: doc.content.clone(), body: doc.body() });
    Ok(Run {
        command: command_line(&line.rest)?,
        files: files.collect(),
        mounts,
        mount_from,
        network,
        security,
        devices: flags.texts("device"),
    })
}

fn choose(what: &str, value: &str, options: &[&str]) -> Diagnostic {
    let error = Diagnostic::error(format!("{what} {value:?} is not valid"));
    match nearest(value, options.iter().copied()) {
        Some(option) => error.with_hint(format!("did you mean `{option}`?")),
        None => error.with_hint(format!("one of {} is expected", options.join(", "))),
    }
}

fn shell(line: &Line) -> Outcome<Vec<String>> {
    no_flags(line)?;
    match json_form(&line.rest)? {
        Some(args) if !args.is_empty() => Ok(args),
        None if !line.rest.is_empty() => {
            let error = Diagnostic::error(format!("SHELL requires the arguments to be in JSON form: {}", line.original.trim()));
            Err(error.with_hint("for example `SHELL [\"/bin/bash\", \"-c\"]`"))
        }
        _ => Err(Diagnostic::error("SHELL requires at least one argument")),
    }
}

fn volume(line: &Line) -> Outcome<Vec<String>> {
    let args = list(&line.rest)?;
    at_least_one(&args, "VOLUME")?;
    no_flags(line)?;
    let volumes: Vec<String> = args.iter().map(|v| v.trim().to_owned()).collect();
    if volumes.iter().any(String::is_empty) {
        return Err(Diagnostic::error("VOLUME specified can not be an empty string"));
    }
    Ok(volumes)
}

#[cfg(test)]
mod tests;
