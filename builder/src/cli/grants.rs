//! Hides the languages of `--secret`, `--ssh`, `--allow` and `--ulimit` (buildx `util/buildflags`, `go-units`).

use std::io::Read as _;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use kiln::grant::{Grants, Secret};
use kiln::ops::agent::Agent;
use kiln::ops::agent::key::{Key, KeyError};
use kiln_runner::{Limit, Resource};

use super::args::BuildArgs;
use super::csv::csv_fields;
use super::environment::Environment;
use super::report::Failure;

/// The longest secret that BuildKit takes.
const LONGEST_SECRET: u64 = 500 << 10;

/// More than the file of any ssh key holds.
const LONGEST_KEY: u64 = 64 << 10;

/// What the flags grant. Secrets are read here, so that a missing file fails before anything is built.
pub(crate) fn grants(args: &BuildArgs, environment: &Environment) -> Result<Grants, Failure> {
    let mut grants = Grants::default();
    for spec in args.secret.iter().filter(|spec| !spec.is_empty()) {
        let (id, secret) = secret(spec, environment)?;
        grants.secrets.insert(id, secret);
    }
    for spec in &args.ssh {
        let (id, agent) = agent(spec, environment)?;
        grants.agents.insert(id, agent);
    }
    for entitlement in args.allow.iter().flat_map(|list| list.split(',')) {
        match entitlement {
            "security.insecure" => grants.insecure = true,
            // RUN has the host's network without being asked.
            "network.host" => {}
            // Of outputs, not of steps.
            "buildx.local.delete" => {}
            other => {
                let message = format!(
                    "`--allow {other}` is not supported: it is one of network.host, security.insecure, buildx.local.delete"
                );
                return Err(Failure::usage(message));
            }
        }
    }
    Ok(grants)
}

/// `id=ID[,src=FILE|,env=VAR][,type=file|env]`; a bare `id=X` is the variable X if there is one, else the file X.
fn secret(spec: &str, environment: &Environment) -> Result<(String, Secret), Failure> {
    let (mut id, mut file, mut variable, mut kind) = (String::new(), String::new(), String::new(), String::new());
    for field in csv_fields(spec) {
        // The whole field is not repeated: somebody may have put the value there.
        let Some((key, value)) = field.split_once('=') else {
            return Err(Failure::usage_hint("invalid --secret: a field is no key=value pair", "write `id=NAME,src=FILE`"));
        };
        match key.to_lowercase().as_str() {
            "id" => value.clone_into(&mut id),
            "src" | "source" => value.clone_into(&mut file),
            "env" => value.clone_into(&mut variable),
            "type" if matches!(value, "file" | "env") => value.clone_into(&mut kind),
            "type" => return Err(Failure::usage(format!("unsupported type `{value}` of --secret: it is file or env"))),
            other => return Err(Failure::usage(format!("unexpected key `{other}` in --secret"))),
        }
    }
    if id.is_empty() {
        return Err(Failure::usage("a --secret has no id"));
    }
    if kind == "env" && variable.is_empty() {
        variable = std::mem::take(&mut file);
    }
    if variable.is_empty() && file.is_empty() {
        let is_variable = kind == "env" || (kind.is_empty() && environment.exact(&id).is_some());
        if is_variable { &mut variable } else { &mut file }.clone_from(&id);
    }
    if !file.is_empty() {
        return Ok((id, Secret::new(read_secret(Path::new(&file))?)));
    }
    // As in BuildKit: a variable that isn't there is an empty secret.
    Ok((id, Secret::new(environment.raw(&variable).unwrap_or_default().into_vec())))
}

fn read_secret(path: &Path) -> Result<Vec<u8>, Failure> {
    let failed = |cause: std::io::Error| Failure::usage(format!("cannot read the secret {}: {cause}", path.display()));
    let mut value = Vec::new();
    std::fs::File::open(path).and_then(|file| file.take(LONGEST_SECRET + 1).read_to_end(&mut value)).map_err(failed)?;
    if value.len() as u64 > LONGEST_SECRET {
        return Err(Failure::usage(format!("the secret {} is too large: 500 KiB is the most", path.display())));
    }
    Ok(value)
}

/// `id=SOCKET`, `id=KEY[,KEY…]`, or an id alone, which stands for the socket that `SSH_AUTH_SOCK` names.
fn agent(spec: &str, environment: &Environment) -> Result<(String, Agent), Failure> {
    let (id, paths) = spec.split_once('=').unwrap_or((spec, ""));
    if id.is_empty() {
        return Err(Failure::usage_hint(format!("invalid --ssh `{spec}`"), "write `default`, `id=SOCKET` or `id=KEYFILE`"));
    }
    let mut paths: Vec<PathBuf> = paths.split(',').filter(|path| !path.is_empty()).map(PathBuf::from).collect();
    if paths.is_empty() {
        paths.push(environment.raw("SSH_AUTH_SOCK").map(PathBuf::from).ok_or_else(|| {
            Failure::usage_hint(
                format!("--ssh {id}: there is no ssh agent"),
                format!("make sure that SSH_AUTH_SOCK is set, or name a key with `--ssh {id}=KEYFILE`"),
            )
        })?);
    }
    let (mut sockets, mut keys) = (Vec::new(), Vec::new());
    for path in &paths {
        let failed = |cause: std::io::Error| Failure::usage(format!("--ssh {id}: cannot use {}: {cause}", path.display()));
        if std::fs::metadata(path).map_err(failed)?.file_type().is_socket() {
            sockets.push(path.clone());
        } else {
            keys.push(key(id, path)?);
        }
    }
    match (sockets.pop(), keys.is_empty()) {
        (None, _) => Ok((id.to_owned(), Agent::Keys(keys.into()))),
        (Some(socket), true) if sockets.is_empty() => Ok((id.to_owned(), Agent::Socket(socket))),
        (Some(_), _) => Err(Failure::usage_hint(
            format!("--ssh {id}: there is more than one agent"),
            "give one socket, or key files, to each id",
        )),
    }
}

fn key(id: &str, path: &Path) -> Result<Key, Failure> {
    let failed = |cause: std::io::Error| Failure::usage(format!("--ssh {id}: cannot read {}: {cause}", path.display()));
    let mut file = Vec::new();
    std::fs::File::open(path).and_then(|open| open.take(LONGEST_KEY).read_to_end(&mut file)).map_err(failed)?;
    Key::parse(&file).map_err(|cause| {
        let message = format!("--ssh {id}: cannot use {}: {cause}", path.display());
        match cause {
            KeyError::None => Failure::usage_hint(message, "name the socket of an agent or the file of a private key"),
            _ => Failure::usage_hint(message, "let an agent hold the key: `eval $(ssh-agent) && ssh-add FILE`"),
        }
    })
}

/// `name=soft[:hard]`, -1 being no limit.
pub(crate) fn limit(spec: &str) -> Result<Limit, Failure> {
    let invalid = |reason: &str| {
        Failure::usage_hint(
            format!("invalid --ulimit `{spec}`: {reason}"),
            "write `name=soft:hard`, for instance `nofile=1024:4096`",
        )
    };
    let (name, values) = spec.split_once('=').ok_or_else(|| invalid("it has no value"))?;
    let resource = Resource::from_name(name).ok_or_else(|| invalid("there is no such limit"))?;
    let number = |text: &str| match text.parse::<i64>() {
        Ok(-1) => Ok(None),
        Ok(value) => u64::try_from(value).map(Some).map_err(|_| invalid("a limit is -1 or more")),
        Err(_) => Err(invalid("a limit is a number")),
    };
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let (soft, hard) = (number(soft)?, number(hard)?);
    if hard.is_some_and(|hard| soft.is_none_or(|soft| soft > hard)) {
        return Err(invalid("the soft limit is above the hard one"));
    }
    Ok(Limit { resource, soft, hard })
}
