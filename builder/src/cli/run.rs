//! Hides how the flags of `kiln run` become a launch, and how its end becomes kiln's own.

use std::ffi::{OsStr, OsString};
use std::io::{self, IsTerminal as _, Write as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};

use kiln::engine::Engine;
use kiln::error::{Error, StepError};
use kiln::launch::{Changes, Launch, Pull, World, prepare};
use kiln_runner::{Mount, MountSource, Network, RunError, Stream, Streams};

use super::args::RunArgs;
use super::build::{extra_host, parse_platform};
use super::csv::csv_fields;
use super::environment::Environment;
use super::exit::Exit;
use super::grants::limit;
use super::human;
use super::report::{Failure, warn};
use super::resources::group_limits;
use super::session::{Session, pass_on};

/// The host name of a run that has no other.
const HOSTNAME: &str = "kiln";

/// What docker exits with when the command can't be executed, and when it isn't there.
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Runs `kiln run`.
pub(crate) fn run(session: &Session, args: &RunArgs) -> Exit {
    let report = session.report(false);
    let prepared = || -> Result<_, Failure> {
        let mode = session.mode(args.progress, args.quiet)?;
        let launch = launch(args, &session.environment)?;
        if launch.streams == (Streams::Terminal { input: true }) && !io::stdin().is_terminal() {
            return Err(Failure::usage_hint("the input device is not a terminal", "leave out `-t`, or `-i`"));
        }
        Ok((mode, launch, args.name.as_deref().map(claim).transpose()?))
    };
    let (mode, launch, _name) = match prepared() {
        Ok(prepared) => prepared,
        Err(failure) => return exit_of(&failure, report.failure(&failure, &super::progress::Summary::default())),
    };
    let (result, summary) = session.work("Running", mode, |engine| attend(engine, &launch));
    match result {
        Ok(code) => {
            report.success(&summary);
            Exit::As(code)
        }
        Err(failure) => exit_of(&failure, report.failure(&failure, &summary)),
    }
}

fn attend(engine: &Engine, launch: &Launch) -> Result<u8, Failure> {
    let ready = prepare(engine, launch)?;
    for flag in engine.host().lacks(&launch.world.group) {
        engine.events.warn(format!("`{flag}` is not enforced: this machine has no control group that kiln could set it for"));
    }
    if let Some(signal) = ready.stop_signal().and_then(signal_number) {
        engine.remote.stop_with(signal);
    }
    engine.events.pause("");
    pass_on(engine.remote.clone())?;
    let outcome = ready.run(engine, &mut |stream, bytes| {
        // Who closed them doesn't want to know; the command goes on.
        let _ = match stream {
            Stream::Stdout => io::stdout().write_all(bytes).and_then(|()| io::stdout().flush()),
            Stream::Stderr => io::stderr().write_all(bytes),
        };
    })?;
    Ok(u8::try_from(outcome.status.code()).unwrap_or(u8::MAX))
}

/// Docker's codes: what isn't the command's own is 125, 126 or 127.
fn exit_of(failure: &Failure, usual: Exit) -> Exit {
    let cause = match failure {
        Failure::Kiln(Error::Unplaced(cause)) => Some(cause.as_ref()),
        _ => None,
    };
    match (cause, usual) {
        (Some(StepError::Sandbox(RunError::ProgramNotFound { .. })), _) => Exit::As(NOT_FOUND),
        (Some(StepError::Sandbox(RunError::Exec { .. }) | StepError::NoEmulator { .. }), _) => Exit::As(NOT_EXECUTABLE),
        (_, Exit::Interrupted | Exit::Terminated | Exit::Bug) => usual,
        _ => Exit::Usage,
    }
}

/// Holds a name until this process ends, however that happens: a name in the kernel's table of sockets, where two can't be the same.
fn claim(name: &str) -> Result<UnixListener, Failure> {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if name.len() < 2 || name.len() > 64 || !name.bytes().all(is_name) || !name.as_bytes()[0].is_ascii_alphanumeric() {
        let hint = "a name has 2 to 64 letters, digits, `_`, `.` and `-`, and begins with a letter or digit";
        return Err(Failure::usage_hint(format!("invalid --name `{name}`"), hint));
    }
    let user = rustix::process::getuid().as_raw();
    let address = SocketAddr::from_abstract_name(format!("kiln-run/{user}/{name}"));
    address.and_then(|address| UnixListener::bind_addr(&address)).map_err(|cause| match cause.kind() {
        io::ErrorKind::AddrInUse => Failure::Conflict {
            message: format!("the name `{name}` is in use by another `kiln run`"),
            hint: "end that one, or choose another name".to_owned(),
        },
        _ => Failure::Kiln(Error::System { operation: "claim the name", cause }),
    })
}

/// What the flags mean.
fn launch(args: &RunArgs, environment: &Environment) -> Result<Launch, Failure> {
    let (image, command) = args.words.split_first().ok_or_else(|| Failure::usage("an image is needed"))?;
    let image = image.to_str().ok_or_else(|| Failure::usage(format!("invalid image name `{}`", image.display())))?;
    let default = environment.text("DOCKER_DEFAULT_PLATFORM");
    let platform = args.platform.as_ref().or(default.as_ref()).map(|text| parse_platform(text)).transpose()?;
    let pull = match args.pull.as_deref() {
        None | Some("missing") => Pull::Missing,
        Some("always") => Pull::Always,
        Some("never") => Pull::Never,
        Some(other) => return Err(Failure::usage(format!("invalid --pull `{other}`: it is one of missing, always, never"))),
    };
    if let Some(cwd) = args.workdir.as_ref().filter(|cwd| !cwd.is_absolute()) {
        let message = format!("the working directory `{}` is invalid, it needs to be an absolute path", cwd.display());
        return Err(Failure::usage(message));
    }
    let mut env = Vec::new();
    for file in &args.env_file {
        let text = std::fs::read(file)
            .map_err(|cause| Failure::Kiln(Error::ReadInput { what: "environment file", path: file.clone(), cause }))?;
        for line in text.split(|byte| *byte == b'\n') {
            let line = line.strip_suffix(b"\r").unwrap_or(line).trim_ascii_start();
            if !line.is_empty() && !line.starts_with(b"#") {
                env.push(variable(OsStr::from_bytes(line), environment)?);
            }
        }
    }
    for text in &args.env {
        env.push(variable(text, environment)?);
    }
    let mut mounts = Vec::new();
    for text in &args.volume {
        mounts.push(volume(text)?);
    }
    for text in &args.mount {
        mounts.push(mount(text)?);
    }
    for text in &args.tmpfs {
        mounts.push(tmpfs(text)?);
    }
    let input = args.interactive;
    let entrypoint = args.entrypoint.as_ref().map(|program| match program.is_empty() {
        true => Vec::new(),
        false => vec![program.clone()],
    });
    Ok(Launch {
        image: image.to_owned(),
        platform,
        pull,
        changes: Changes {
            entrypoint,
            command: command.to_vec(),
            env,
            cwd: args.workdir.clone(),
            user: args.user.clone().filter(|user| !user.is_empty()),
        },
        world: World {
            hostname: args.hostname.clone().or_else(|| args.name.clone()).unwrap_or_else(|| HOSTNAME.to_owned()),
            network: network(args.network.as_deref())?,
            extra_hosts: args.add_host.iter().map(|text| extra_host(text)).collect::<Result<_, _>>()?,
            mounts,
            shm_size: args.shm_size.as_deref().map(|text| size("--shm-size", text)).transpose()?.filter(|size| *size > 0),
            limits: args.ulimit.iter().map(|text| limit(text)).collect::<Result<_, _>>()?,
            group: group_limits(&args.resources)?,
            readonly: args.read_only,
        },
        streams: if args.tty { Streams::Terminal { input } } else { Streams::Inherited { input } },
    })
}

fn network(text: Option<&str>) -> Result<Network, Failure> {
    match text {
        None | Some("" | "default" | "host") => Ok(Network::Host),
        Some("none") => Ok(Network::None),
        Some("private") => Ok(Network::Private),
        Some(other) => Err(Failure::usage(format!("network mode `{other}` is not supported: it is one of host, none, private"))),
    }
}

/// `NAME=VALUE`; a bare name takes the value that it has here, and is taken away where it has none.
fn variable(text: &OsStr, environment: &Environment) -> Result<(OsString, Option<OsString>), Failure> {
    let bytes = text.as_bytes();
    let (name, value) = match bytes.iter().position(|byte| *byte == b'=') {
        Some(at) => (OsStr::from_bytes(&bytes[..at]), Some(OsStr::from_bytes(&bytes[at + 1..]).to_owned())),
        None => (text, text.to_str().and_then(|name| environment.exact(name)).map(OsString::from)),
    };
    if name.is_empty() || name.as_bytes().iter().any(u8::is_ascii_whitespace) {
        return Err(Failure::usage(format!("invalid environment variable `{}`", text.display())));
    }
    Ok((name.to_owned(), value))
}

fn size(flag: &str, text: &str) -> Result<u64, Failure> {
    human::parse_size(text).ok_or_else(|| Failure::usage(format!("invalid size `{text}` for {flag}")))
}

/// `SOURCE:TARGET[:OPTIONS]`.
fn volume(text: &str) -> Result<Mount, Failure> {
    let invalid = |reason: &str| {
        Failure::usage_hint(format!("invalid --volume `{text}`: {reason}"), "write `/folder/here:/folder/there` or `…:ro`")
    };
    let mut fields = text.split(':');
    let (Some(source), Some(target), options, None) = (fields.next(), fields.next(), fields.next(), fields.next()) else {
        return Err(invalid("it has no source, or too many fields"));
    };
    if !source.starts_with(['/', '.', '~']) {
        return Err(invalid("there are no named volumes in kiln"));
    }
    let mut readonly = false;
    for option in options.unwrap_or_default().split(',') {
        match option {
            "ro" => readonly = true,
            // Labels of SELinux and propagation are docker's business; everything here is private to the run anyway.
            "" | "rw" | "z" | "Z" | "private" | "rprivate" | "cached" | "delegated" | "consistent" => {}
            other => return Err(invalid(&format!("there is no option `{other}`"))),
        }
    }
    bind(Path::new(source), Path::new(target), readonly)
}

/// `type=bind,source=…,target=…,readonly` and `type=tmpfs,target=…`.
fn mount(text: &str) -> Result<Mount, Failure> {
    let invalid = |reason: String| {
        let hint = "write `type=bind,source=/folder/here,target=/folder/there[,readonly]` or `type=tmpfs,target=/folder`";
        Failure::usage_hint(format!("invalid --mount `{text}`: {reason}"), hint)
    };
    let (mut kind, mut source, mut target, mut readonly, mut bytes) = (String::new(), None, None, false, None);
    for field in csv_fields(text) {
        let (key, value) = field.split_once('=').map_or((field.as_str(), None), |(key, value)| (key, Some(value)));
        let needed = || value.map(str::to_owned).ok_or_else(|| invalid(format!("`{key}` has no value")));
        match key.trim() {
            "type" => kind = needed()?,
            "source" | "src" => source = Some(needed()?),
            "target" | "dst" | "destination" => target = Some(needed()?),
            "readonly" | "ro" => readonly = !matches!(value, Some("false" | "0")),
            "tmpfs-size" => bytes = Some(size("tmpfs-size", &needed()?)?),
            other => return Err(invalid(format!("there is no field `{other}`"))),
        }
    }
    let target = target.ok_or_else(|| invalid("it has no target".to_owned()))?;
    match (kind.as_str(), source) {
        ("bind", Some(source)) if bytes.is_none() => bind(Path::new(&source), Path::new(&target), readonly),
        ("bind", None) => Err(invalid("it has no source".to_owned())),
        ("tmpfs", None) => memory(Path::new(&target), bytes, readonly),
        ("bind" | "tmpfs", _) => Err(invalid(format!("a field doesn't fit the type `{kind}`"))),
        _ => Err(invalid("the type is `bind` or `tmpfs`".to_owned())),
    }
}

/// `TARGET[:size=BYTES,…]`.
fn tmpfs(text: &str) -> Result<Mount, Failure> {
    let (target, options) = text.split_once(':').unwrap_or((text, ""));
    let (mut bytes, mut readonly) = (None, false);
    for option in options.split(',') {
        match option.split_once('=').unwrap_or((option, "")) {
            ("size", value) => bytes = Some(size("--tmpfs", value)?),
            ("ro", _) => readonly = true,
            ("" | "rw" | "nosuid" | "nodev" | "exec", _) => {}
            _ => return Err(Failure::usage_hint(format!("invalid --tmpfs `{text}`"), "write `/folder` or `/folder:size=64m`")),
        }
    }
    memory(Path::new(target), bytes, readonly)
}

fn memory(target: &Path, size: Option<u64>, readonly: bool) -> Result<Mount, Failure> {
    Ok(Mount { target: absolute(target)?, source: MountSource::Tmpfs { size }, subpath: PathBuf::new(), readonly })
}

/// What doesn't exist is not made: a typing error would otherwise become a folder of root's.
fn bind(source: &Path, target: &Path, readonly: bool) -> Result<Mount, Failure> {
    let path = std::fs::canonicalize(source)
        .map_err(|cause| Failure::Kiln(Error::ReadInput { what: "source of a mount", path: source.to_owned(), cause }))?;
    Ok(Mount { target: absolute(target)?, source: MountSource::Bind { path }, subpath: PathBuf::new(), readonly })
}

fn absolute(target: &Path) -> Result<PathBuf, Failure> {
    match target.is_absolute() {
        true => Ok(target.to_owned()),
        false => Err(Failure::usage(format!("the target `{}` of a mount has to be an absolute path", target.display()))),
    }
}

/// The number of a signal by name, with or without `SIG`, or by number. One that can't be told is said aloud and left out.
fn signal_number(text: &str) -> Option<i32> {
    let upper = text.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let known = |number: &i32| signal_hook::low_level::signal_name(*number).is_some_and(|known| known == format!("SIG{name}"));
    let number = name.parse().ok().filter(|number| (1..=31).contains(number)).or_else(|| (1..=31).find(known));
    if number.is_none() {
        warn(&format!("the image's stop signal `{text}` is not known here; it is asked to stop with SIGTERM"));
    }
    number
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
