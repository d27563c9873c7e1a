//! Hides how the flags of `kiln build` become a request, and what is written when the build is over.

use std::ffi::OsString;
use std::io::{self, IsTerminal as _, Read, Write as _};
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use kiln::build::{BuildOutcome, build};
use kiln::error::{Error, StepError};
use kiln::ops::git::{GitEnvironment, PASSED_ON};
use kiln::request::{ArchiveFormat, BuildRequest, Caching, LanguageOptions, Output};
use kiln_frontend::graph::NetworkMode;
use kiln_oci::platform::Platform;
use kiln_oci::reference::Reference;
use serde_json::{Map, Value, json};

use super::annotations;
use super::args::BuildArgs;
use super::attest;
use super::caches;
use super::call::Call;
use super::contexts;
use super::environment::Environment;
use super::exit::Exit;
use super::grants::{grants, limit};
use super::human;
use super::on_failure::on_failure;
use super::outputs;
use super::pins;
use super::progress::Mode;
use super::report::{Failure, warn, write_stdout};
use super::resources::group_limits;
use super::session::Session;

/// The predefined proxy arguments, of which each has a lower-case twin (Dockerfile reference, "Predefined ARGs").
const PROXY_ARGS: [&str; 5] = ["HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"];

/// Runs `kiln build`.
pub(crate) fn run(session: &Session, args: &BuildArgs) -> Exit {
    let report = session.report(true);
    let prepared = prepare(session, args);
    let (mode, request) = match prepared {
        Ok(prepared) => prepared,
        Err(failure) => return report.failure(&failure, &super::progress::Summary::default()),
    };
    if mode != Mode::Quiet {
        for flag in args.ignored.given() {
            warn(&format!("{flag} has no effect in kiln: it is accepted for compatibility with docker build"));
        }
    }
    match Call::asked(args) {
        Ok(None) => {}
        Ok(Some(call)) => return call.run(session, args.metadata_file.as_deref(), mode, &request),
        Err(failure) => return report.failure(&failure, &super::progress::Summary::default()),
    }
    let (result, summary) = session.work("Building", mode, |engine| Ok(build(engine, &request)?));
    let finished = match &result {
        Ok(outcome) => finish(args, mode, &request, outcome),
        Err(Failure::Kiln(error)) => write_failed_metadata(args, error),
        Err(_) => Ok(()),
    };
    match result.and(finished) {
        Ok(()) => {
            report.success(&summary);
            Exit::Success
        }
        Err(failure) => report.failure(&failure, &summary),
    }
}

fn prepare(session: &Session, args: &BuildArgs) -> Result<(Mode, BuildRequest), Failure> {
    let mode = session.mode(args.progress, args.quiet)?;
    let request = request(args, &session.environment, &mut io::stdin(), SystemTime::now())?;
    if request.outputs.iter().any(Output::is_stdout) && io::stdout().is_terminal() {
        return Err(Failure::usage_hint(
            "refusing to write an archive to the terminal",
            "use `--output type=oci,dest=FILE`, or redirect standard output",
        ));
    }
    // A result of an earlier build must not be taken for that of a failed one.
    for file in [&args.iidfile, &args.metadata_file].into_iter().flatten() {
        if std::fs::symlink_metadata(file).is_ok_and(|kind| kind.is_file()) {
            std::fs::remove_file(file).map_err(|cause| Failure::Write { path: file.clone(), cause })?;
        }
    }
    Ok((mode, request))
}

/// What the flags mean.
pub(super) fn request(
    args: &BuildArgs,
    environment: &Environment,
    stdin: &mut dyn Read,
    now: SystemTime,
) -> Result<BuildRequest, Failure> {
    if args.no_cache && !args.no_cache_filter.is_empty() {
        return Err(Failure::usage_hint(
            "--no-cache and --no-cache-filter cannot currently be used together",
            "leave out --no-cache-filter: no stage is cached anyway",
        ));
    }
    let (context, dockerfile) = contexts::main(args, stdin)?;
    let named_contexts = contexts::named(&args.build_context)?;
    let pins = pins::parse(&args.pins, &context, &dockerfile)?;
    let (mut build_args, mut labels) = (Vec::new(), Vec::new());
    for arg in &args.build_arg {
        match arg.split_once('=') {
            _ if arg.is_empty() || arg.starts_with('=') => {
                return Err(Failure::usage(format!("invalid build argument `{arg}`: it has no name")));
            }
            Some((key, value)) => set(&mut build_args, key, value),
            // A bare name takes the value of the environment; where there is none, the argument isn't set.
            None => environment.exact(arg).into_iter().for_each(|value| set(&mut build_args, arg, &value)),
        }
    }
    for label in &args.label {
        let (key, value) = label.split_once('=').unwrap_or((label, ""));
        if key.is_empty() {
            return Err(Failure::usage(format!("invalid label `{label}`: it has no name")));
        }
        set(&mut labels, key, value);
    }
    const EPOCH: &str = "SOURCE_DATE_EPOCH";
    if let Some(value) = environment.text(EPOCH)
        && !build_args.iter().any(|(key, _)| key == EPOCH)
    {
        build_args.push((EPOCH.to_owned(), value));
    }
    // What is no number is `context` or a name, which the Dockerfile has to know.
    let is_number = |value: &str| !value.is_empty() && value.trim_start_matches(['-', '+']).bytes().all(|b| b.is_ascii_digit());
    let clock = match build_args.iter().find(|(key, value)| key == EPOCH && is_number(value)) {
        Some((_, value)) => {
            let seconds = value.parse().ok().filter(|seconds| *seconds <= kiln_frontend::MAX_EPOCH);
            let invalid = || {
                let what = "it is a number of seconds since 1970, before the year 10000";
                Failure::usage(format!("invalid {EPOCH} `{value}`: {what}"))
            };
            SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.ok_or_else(invalid)?)
        }
        None => now,
    };
    let proxies = PROXY_ARGS.iter().flat_map(|name| [(*name).to_owned(), name.to_lowercase()]);
    let proxy_args = proxies.filter_map(|name| environment.text(&name).map(|value| (name, value))).collect();

    let platforms = platforms(args, environment)?;
    let annotations = annotations::parse(&args.annotation)?;
    let outputs::Outputs { tags, outputs } = outputs::parse(args, &annotations, environment, &platforms)?;
    let attestations = attest::request(&args.attest, environment)?;
    let leaves_kiln = !args.output.is_empty() || args.push;
    annotations::check(&outputs, leaves_kiln && attestations.is_empty(), &platforms)?;
    if !attestations.is_empty()
        && outputs.iter().any(|output| matches!(output, Output::Archive { format: ArchiveFormat::Docker, .. }))
    {
        return Err(Failure::usage_hint(
            "an archive of `type=docker` can't hold attestations",
            "write `--output type=oci,dest=FILE`",
        ));
    }
    let caches = caches::parse((&args.cache_from, &args.cache_to), &build_args, environment)?;
    Ok(BuildRequest {
        context,
        named_contexts,
        dockerfile,
        language: LanguageOptions {
            build_args,
            target: args.target.clone(),
            labels,
            proxy_args,
            network: network(args.network.as_deref())?,
        },
        caching: Caching { disabled: args.no_cache, disabled_stages: args.no_cache_filter.clone(), pull: args.pull },
        caches,
        extra_hosts: args.add_host.iter().map(|text| extra_host(text)).collect::<Result<_, _>>()?,
        shm_size: args
            .shm_size
            .as_deref()
            .map(|text| human::parse_size(text).ok_or_else(|| Failure::usage(format!("invalid size `{text}` for --shm-size"))))
            .transpose()?
            // No size of its own, as for Docker.
            .filter(|size| *size > 0),
        limits: args.ulimit.iter().map(|text| limit(text)).collect::<Result<_, _>>()?,
        group: group_limits(&args.resources)?,
        grants: grants(args, environment)?,
        on_failure: on_failure(&args.on_failure)?,
        platforms,
        tags,
        outputs,
        pins,
        git: GitEnvironment(
            PASSED_ON.iter().filter_map(|name| environment.raw(name).map(|value| ((*name).to_owned(), value))).collect(),
        ),
        verify_layers: args.verify_layers,
        attestations,
        clock,
    })
}

/// The last value of a key counts, in the place of the first.
fn set(pairs: &mut Vec<(String, String)>, key: &str, value: &str) {
    match pairs.iter_mut().find(|(known, _)| known == key) {
        Some((_, old)) => value.clone_into(old),
        None => pairs.push((key.to_owned(), value.to_owned())),
    }
}

/// Each platform once, in the order given.
pub(super) fn platforms(args: &BuildArgs, environment: &Environment) -> Result<Vec<Platform>, Failure> {
    let wanted: Vec<String> = match args.platform.is_empty() {
        false => args.platform.clone(),
        true => environment.text("DOCKER_DEFAULT_PLATFORM").into_iter().collect(),
    };
    let mut platforms = Vec::new();
    for text in wanted.iter().flat_map(|text| text.split(',')) {
        let platform = parse_platform(text)?;
        if !platforms.contains(&platform) {
            platforms.push(platform);
        }
    }
    if platforms.is_empty() {
        platforms.push(Platform::host());
    }
    Ok(platforms)
}

/// `os/arch[/variant]`, or `local`.
pub(crate) fn parse_platform(text: &str) -> Result<Platform, Failure> {
    match text {
        "local" => Ok(Platform::host()),
        text => Platform::parse(text).map_err(|error| Failure::usage(format!("invalid platform `{text}`: {error}"))),
    }
}

fn network(text: Option<&str>) -> Result<NetworkMode, Failure> {
    match text {
        None | Some("" | "default") => Ok(NetworkMode::Default),
        Some("host") => Ok(NetworkMode::Host),
        Some("none") => Ok(NetworkMode::None),
        Some("private") => Ok(NetworkMode::Private),
        Some(other) => {
            Err(Failure::usage(format!("network mode `{other}` is not supported: it is one of default, host, none, private")))
        }
    }
}

/// `host:ip` or `host=ip`.
pub(super) fn extra_host(text: &str) -> Result<(String, String), Failure> {
    let invalid =
        || Failure::usage_hint(format!("invalid --add-host `{text}`"), "write `name:address`, for instance `db:10.0.0.5`");
    let at = text.find(['=', ':']).ok_or_else(invalid)?;
    let (name, address) = (&text[..at], &text[at + 1..]);
    let address = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
    // Which address that is depends on the network.
    let is_address = address == "host-gateway" || address.parse::<IpAddr>().is_ok();
    match name.is_empty() || !is_address {
        true => Err(invalid()),
        false => Ok((name.to_owned(), address.to_owned())),
    }
}

/// A name that an image can be given.
pub(crate) fn image_name(text: &str) -> Result<Reference, Failure> {
    let name = Reference::parse(text).map_err(|error| Failure::usage(format!("invalid tag `{text}`: {error}")))?;
    match name.digest() {
        Some(_) => Err(Failure::usage(format!("invalid tag `{text}`: a name with a digest can't be given to an image"))),
        None => Ok(name),
    }
}

/// Writes the files and the line that a successful build leaves.
fn finish(args: &BuildArgs, mode: Mode, request: &BuildRequest, outcome: &BuildOutcome) -> Result<(), Failure> {
    if let Some(path) = &args.iidfile {
        let id = outcome.image_id().map(|id| id.to_string()).unwrap_or_default();
        write_atomically(path, id.as_bytes())?;
    }
    if let Some(path) = &args.metadata_file {
        write_json(path, &metadata(outcome))?;
    }
    let stdout_is_taken = request.outputs.iter().any(Output::is_stdout);
    if let Some(id) = outcome.image_id().filter(|_| mode == Mode::Quiet && !stdout_is_taken) {
        write_stdout(&format!("{id}\n"))?;
    }
    Ok(())
}

/// The keys that buildx writes.
fn metadata(outcome: &BuildOutcome) -> Value {
    let mut map = Map::new();
    map.insert("kiln.sandbox".into(), json!(outcome.sandbox));
    if let Some(config) = &outcome.config {
        map.insert("containerimage.config.digest".into(), json!(config));
    }
    if let Some(manifest) = &outcome.descriptor {
        map.insert("containerimage.descriptor".into(), json!(manifest));
        map.insert("containerimage.digest".into(), json!(manifest.digest));
    }
    if !outcome.names.is_empty() {
        map.insert("image.name".into(), json!(outcome.names.join(",")));
    }
    for (platform, provenance) in &outcome.provenance {
        let suffix = if outcome.provenance.len() > 1 { format!("/{platform}") } else { String::new() };
        map.insert(format!("buildx.build.provenance{suffix}"), provenance.clone());
    }
    Value::Object(map)
}

/// Leaves the exit code of the RUN that failed where a pipeline can read it.
fn write_failed_metadata(args: &BuildArgs, error: &Error) -> Result<(), Failure> {
    let (Some(path), Error::Step { name, cause, .. }) = (&args.metadata_file, error) else { return Ok(()) };
    let StepError::Command { code: Some(code), .. } = cause.as_ref() else { return Ok(()) };
    // The build's failure is what is to be reported, not that of this file.
    let _ = write_json(path, &json!({ "kiln.failed.exit-code": code, "kiln.failed.step": name }));
    Ok(())
}

pub(super) fn write_json(path: &Path, value: &Value) -> Result<(), Failure> {
    write_atomically(path, format!("{value:#}").as_bytes())
}

/// Puts a whole file in the place of what was there, with the rights that a new file gets.
fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let failed = |cause| Failure::Write { path: path.to_owned(), cause };
    // A pipe or a device (`--iidfile /dev/stdout`) is written to, not replaced.
    if std::fs::metadata(path).is_ok_and(|kind| !kind.is_file()) {
        return std::fs::write(path, bytes).map_err(failed);
    }
    let mut temporary = OsString::from(path);
    temporary.push(format!(".kiln-{}", std::process::id()));
    let write = || {
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o666).open(&temporary)?;
        file.write_all(bytes)?;
        drop(file);
        std::fs::rename(&temporary, path)
    };
    write().map_err(|cause| {
        let _ = std::fs::remove_file(&temporary);
        failed(cause)
    })
}

#[cfg(test)]
#[path = "build_tests.rs"]
mod tests;
