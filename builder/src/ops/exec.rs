//! Hides how a RUN becomes a `RunSpec`: the one place where the store's and the runner's words meet.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use kiln_frontend::graph::{BindMount, CacheMount, ExecOp, MountKind, NetworkMode, SecretMount, SecurityMode, Sharing, SshMount};
use kiln_oci::platform::Platform;
use kiln_runner::{
    Cancel, GroupLimits, Limit, Mode, Mount, MountSource, Network, OverlayUpper, Recorder, RootFs, RunError, RunSpec, Security,
    Snapshots, Status, run,
};
use kiln_store::mounts::MountGuard;
use kiln_store::owner::{NODE_ATTRIBUTE, OWNER_ATTRIBUTE, Owner};
use kiln_store::rootdir::Attrs;
use kiln_store::{Copied, LayerId, Ownership, Prepared};
use rustix::io::Errno;

use crate::cache_key::Identity;
use crate::engine::Engine;
use crate::error::{Error, StepError};
use crate::event::{Stream, Task};
use crate::grant::Grants;
use crate::ops::agent::Forward;
use crate::ops::seed::seed;

/// How many bytes at the end of a command's output are shown again when it fails.
const TAIL: usize = 8 << 10;

/// What a RUN gets besides its instruction.
#[derive(Debug)]
pub struct Setting<'a> {
    /// The platform that the command is for.
    pub platform: &'a Platform,
    /// The size of `/dev/shm` in bytes.
    pub shm_size: Option<u64>,
    /// Limits of single processes.
    pub limits: &'a [Limit],
    /// Limits of all processes together.
    pub group: &'a GroupLimits,
    /// Secrets and agents.
    pub grants: &'a Grants,
    /// The build's clock.
    pub clock: SystemTime,
    /// Ends the command early.
    pub cancel: &'a Cancel,
    /// For each bind mount, and each cache mount that is seeded, in order: what it shows.
    pub mounts: Vec<Shown>,
}

/// The files of a context, a stage or an image.
#[derive(Debug, Clone)]
pub struct Shown {
    /// The topmost layer; `None` for the empty root.
    pub layer: Option<LayerId>,
    /// What its file tree is.
    pub identity: Identity,
}

/// What is left of a command that failed, besides its files.
#[derive(Debug)]
pub(crate) struct Remains {
    pub(crate) spec: RunSpec,
    pub(crate) held: Held,
}

/// Runs the command on a fresh layer above `prepared`'s parents; the layer is complete when this returns. What a command that ran and
/// failed leaves is put into `remains`.
pub(crate) fn exec(
    engine: &Engine,
    op: &ExecOp,
    prepared: &Prepared,
    setting: &Setting<'_>,
    task: &Task,
    remains: &mut Option<Remains>,
) -> Result<(), Error> {
    let mut spec = RunSpec::new(root(prepared), op.args.iter().map(OsString::from).collect());
    spec.aside = prepared.tree().map(|_| prepared.work.clone());
    spec.env = op.env.iter().chain(&op.proxy_env).map(|(k, v)| (k.into(), v.into())).collect();
    spec.cwd = PathBuf::from(op.cwd.as_os_str());
    spec.user.clone_from(&op.user);
    spec.hostname.clone_from(&op.hostname);
    spec.extra_hosts.clone_from(&op.extra_hosts);
    spec.network = match op.network {
        NetworkMode::Default | NetworkMode::Host => Network::Host,
        NetworkMode::None => Network::None,
        NetworkMode::Private => Network::Private,
    };
    spec.security = match op.security {
        SecurityMode::Sandbox => Security::Sandbox,
        SecurityMode::Insecure => Security::Insecure,
    };
    spec.limits = setting.limits.to_vec();
    spec.group.clone_from(setting.group);
    if let Some(size) = setting.shm_size {
        spec.shm_size = size;
    }
    let mut held = Held::default();
    spec.mounts = mounts(engine, op, setting, task, &mut held)?;
    if engine.host().mode == Mode::Chroot {
        // The supervisor outlives a killed kiln until it has put everything back; nobody is to take its place meanwhile.
        engine.store.lock_with_children()?;
        held.guards.iter().try_for_each(MountGuard::lock_with_children)?;
    }
    for (name, value) in held.env.drain(..) {
        spec.env.retain(|(known, _)| *known != name);
        spec.env.push((name, value));
    }
    for file in &op.files {
        spec.mounts.push(Mount {
            target: PathBuf::from(file.path.as_os_str()),
            source: MountSource::File { data: file.data.clone(), mode: file.mode, uid: 0, gid: 0 },
            subpath: PathBuf::new(),
            readonly: true,
        });
    }
    spec.recorder = recorder(engine, prepared)?;
    let mut tail = Vec::new();
    let outcome = run(&spec, engine.host(), setting.cancel, &mut |stream, data| {
        task.log(if stream == kiln_runner::Stream::Stdout { Stream::Out } else { Stream::Err }, data);
        tail.extend_from_slice(data);
        if tail.len() > 4 * TAIL {
            tail.drain(..tail.len() - TAIL);
        }
    });
    let outcome = match outcome {
        Ok(outcome) if outcome.status.success() => {
            drop(held);
            outcome
        }
        Ok(outcome) => {
            *remains = Some(Remains { spec, held });
            outcome
        }
        Err(RunError::Cancelled) => return Err(Error::Interrupted),
        Err(error) => return Err(not_run(error, setting.platform)),
    };
    outcome.warnings.iter().for_each(|warning| task.warn(warning.clone()));
    let mut status = match outcome.status {
        Status::Exited(0) => {
            let (uid, gid) = outcome.identity.unwrap_or_default();
            return Ok(prepared.record_owners(&outcome.owners, Owner { uid, gid })?);
        }
        Status::Exited(code) => format!("exit code: {code}"),
        Status::Signaled(signal) => format!("killed by signal {signal}"),
        Status::OomKilled => "exit code: 137".to_owned(),
    };
    if outcome.out_of_memory {
        let limit = setting.group.memory.map_or_else(String::new, |bytes| format!(", of which it may use {bytes} bytes"));
        status.push_str(&format!(" (a process was killed for lack of memory{limit})"));
    }
    // For who looks at what is left.
    let (uid, gid) = outcome.identity.unwrap_or_default();
    prepared.record_owners(&outcome.owners, Owner { uid, gid })?;
    let code = Some(outcome.status.code());
    let command = op.args.join(" ");
    Err(Error::Unplaced(Box::new(StepError::Command { command, status, code, tail: last_lines(&tail) })))
}

/// The root of a command whose changes `prepared` takes.
pub(crate) fn root(prepared: &Prepared) -> RootFs {
    match prepared.tree() {
        Some(tree) => RootFs::Dir(tree),
        None => RootFs::Overlay { lowers: prepared.lowers.clone(), upper: prepared.upper.clone(), work: prepared.work.clone() },
    }
}

/// How the store wants to have written down what the kernel can't hold.
pub(crate) fn recorder(engine: &Engine, prepared: &Prepared) -> Result<Option<Recorder>, Error> {
    if engine.store.form().owners != Ownership::Recorded {
        return Ok(None);
    }
    Ok(Some(Recorder {
        owner_attribute: OWNER_ATTRIBUTE.to_owned(),
        node_attribute: NODE_ATTRIBUTE.to_owned(),
        known: prepared.known_owners()?,
        show: true,
    }))
}

/// What must live as long as the command runs.
#[derive(Debug, Default)]
pub(crate) struct Held {
    guards: Vec<MountGuard>,
    agents: Vec<Forward>,
    scratch: Vec<Prepared>,
    copies: Vec<Copied>,
    /// Secrets for the command's environment.
    env: Vec<(OsString, OsString)>,
}

fn mounts(engine: &Engine, op: &ExecOp, setting: &Setting<'_>, task: &Task, held: &mut Held) -> Result<Vec<Mount>, Error> {
    let lent = if engine.host().mode == Mode::Chroot { lend(engine, op, setting, task, held)? } else { HashMap::new() };
    let mut shown = setting.mounts.iter();
    let mut out = Vec::new();
    for mount in &op.mounts {
        let target = PathBuf::from(mount.target.as_os_str());
        match &mount.kind {
            MountKind::Bind(bind) => {
                let layer = shown.next().and_then(|shown| shown.layer.clone());
                let prepared = match engine.snapshots() {
                    Snapshots::Overlay => Some(engine.store.layers().prepare(layer.as_ref())?),
                    Snapshots::Copy => None,
                };
                let Some(prepared) = prepared.filter(|prepared| engine.can_stack(prepared.lowers.len())) else {
                    let (path, subpath) = copied(engine, layer.as_ref(), bind, held)?;
                    out.push(Mount { target, source: MountSource::Bind { path }, subpath, readonly: !bind.writable });
                    continue;
                };
                let source = if prepared.lowers.is_empty() {
                    // Of no layers there is no overlay: the fresh folder, which is dropped, is all that an empty root needs.
                    MountSource::Bind { path: prepared.upper.clone() }
                } else {
                    // Writes are allowed and dropped, so they need a place.
                    let upper = OverlayUpper { upper: prepared.upper.clone(), work: prepared.work.clone() };
                    MountSource::Overlay { lowers: prepared.lowers.clone(), upper: bind.writable.then_some(upper) }
                };
                held.scratch.push(prepared);
                out.push(Mount { target, source, subpath: PathBuf::from(bind.source.as_os_str()), readonly: !bind.writable });
            }
            MountKind::Cache(cache) => {
                let seed = if cache.from.is_some() { shown.next() } else { None };
                let path = match lent.get(&cache_id(cache, seed)) {
                    Some(path) => path.clone(),
                    None => {
                        let guard = cache_folder(engine, cache, seed, sharing(cache), setting, task)?;
                        let path = guard.path().to_owned();
                        held.guards.push(guard);
                        path
                    }
                };
                out.push(Mount {
                    target,
                    source: MountSource::Bind { path },
                    subpath: PathBuf::from(cache.source.as_os_str()),
                    readonly: cache.readonly,
                });
            }
            MountKind::Secret(secret) => {
                if let Some(source) = secret_file(secret, setting.grants, held)? {
                    out.push(Mount { target, source, subpath: PathBuf::new(), readonly: true });
                }
            }
            MountKind::Ssh(ssh) => {
                if let Some(path) = agent_socket(engine, ssh, setting.grants, held)? {
                    out.push(Mount { target, source: MountSource::Bind { path }, subpath: PathBuf::new(), readonly: true });
                }
            }
            MountKind::Tmpfs { size } => {
                out.push(Mount { target, source: MountSource::Tmpfs { size: *size }, subpath: PathBuf::new(), readonly: false })
            }
        }
    }
    Ok(out)
}

/// What a bind mount shows, where there are no overlays: a copy, or the only layer itself where nothing is written to it.
fn copied(engine: &Engine, layer: Option<&LayerId>, bind: &BindMount, held: &mut Held) -> Result<(PathBuf, PathBuf), Error> {
    let layers = engine.store.layers();
    if let Some(layer) = layer
        && !bind.writable
        && engine.host().mode != Mode::Chroot
        && let [only] = &layers.lowers(layer)?[..]
    {
        return Ok((only.clone(), PathBuf::from(bind.source.as_os_str())));
    }
    let copy = layers.copy_out(layer, &bind.source)?;
    let path = copy.path().to_owned();
    held.copies.push(copy);
    Ok((path, PathBuf::new()))
}

/// The folders of all cache mounts that steps share, for a command that they are moved to: one at a time may have each. In one
/// order, so that no two steps wait for each other.
fn lend(
    engine: &Engine,
    op: &ExecOp,
    setting: &Setting<'_>,
    task: &Task,
    held: &mut Held,
) -> Result<HashMap<String, PathBuf>, Error> {
    let mut shown = setting.mounts.iter();
    let mut wanted = BTreeMap::new();
    for mount in &op.mounts {
        match &mount.kind {
            MountKind::Bind(_) => drop(shown.next()),
            MountKind::Cache(cache) => {
                let from = if cache.from.is_some() { shown.next() } else { None };
                if cache.sharing != Sharing::Private {
                    wanted.insert(cache_id(cache, from), (cache, from));
                }
            }
            _ => {}
        }
    }
    let mut lent = HashMap::new();
    for (id, (cache, from)) in wanted {
        let guard = cache_folder(engine, cache, from, kiln_store::mounts::Sharing::Locked, setting, task)?;
        lent.insert(id, guard.path().to_owned());
        held.guards.push(guard);
    }
    Ok(lent)
}

fn sharing(cache: &CacheMount) -> kiln_store::mounts::Sharing {
    match cache.sharing {
        Sharing::Shared => kiln_store::mounts::Sharing::Shared,
        Sharing::Private => kiln_store::mounts::Sharing::Private,
        Sharing::Locked => kiln_store::mounts::Sharing::Locked,
    }
}

fn cache_attrs(cache: &CacheMount) -> Attrs {
    Attrs { uid: cache.uid, gid: cache.gid, mode: cache.mode & 0o777, ..Attrs::default() }
}

/// One that is seeded is another than one that isn't, or is from other files; so is one with another owner or mode, of which only
/// the permissions count (both as in BuildKit).
pub(crate) fn cache_id(cache: &CacheMount, from: Option<&Shown>) -> String {
    let attrs = cache_attrs(cache);
    match from {
        Some(from) => format!("{} from {} of {}", cache.id, cache.source, from.identity),
        None if (attrs.uid, attrs.gid, attrs.mode) == (0, 0, 0o755) => cache.id.clone(),
        None => format!("{} of {}:{} with mode {:o}", cache.id, attrs.uid, attrs.gid, attrs.mode),
    }
}

/// The folder of a cache mount ([`cache_id`] says which).
fn cache_folder(
    engine: &Engine,
    cache: &CacheMount,
    from: Option<&Shown>,
    sharing: kiln_store::mounts::Sharing,
    setting: &Setting<'_>,
    task: &Task,
) -> Result<MountGuard, Error> {
    let attrs = cache_attrs(cache);
    let id = cache_id(cache, from);
    engine.mounts.note(&cache.id, &id);
    engine.store.mounts().acquire::<Error>(id.as_bytes(), sharing, |folder: &Path| {
        if engine.mounts.restore(engine, (&cache.id, &id), folder, task)? {
            return Ok(());
        }
        match from {
            Some(from) => seed(engine, from.layer.as_ref(), &cache.source, folder, setting.clock, task),
            None => Ok(engine.store.tree(folder)?.set_attrs_of_self(&attrs)?),
        }
    })
}

/// The file that shows a secret, if one is to; its environment variable goes to `held`.
fn secret_file(mount: &SecretMount, grants: &Grants, held: &mut Held) -> Result<Option<MountSource>, Error> {
    let Some(secret) = grants.secrets.get(&mount.id) else {
        if mount.required {
            return Err(Error::Unplaced(Box::new(StepError::NoSecret { id: mount.id.clone() })));
        }
        // Set and empty, as BuildKit has it.
        held.env.extend(mount.env.as_ref().map(|name| (name.into(), OsString::new())));
        return Ok(None);
    };
    if let Some(name) = &mount.env {
        held.env.push((name.into(), OsStr::from_bytes(secret.reveal()).to_owned()));
    }
    let SecretMount { mode, uid, gid, .. } = *mount;
    Ok(mount.file.then(|| MountSource::File { data: secret.reveal().to_vec(), mode, uid, gid }))
}

/// A socket that leads to the agent, if there is one.
fn agent_socket(engine: &Engine, mount: &SshMount, grants: &Grants, held: &mut Held) -> Result<Option<PathBuf>, Error> {
    let Some(agent) = grants.agents.get(&mount.id) else {
        return match mount.required {
            true => Err(Error::Unplaced(Box::new(StepError::NoAgent { id: mount.id.clone() }))),
            false => Ok(None),
        };
    };
    // In a draft of the store, for that is removed whatever becomes of this process.
    let scratch = engine.store.layers().prepare(None)?;
    let forward = Forward::start(&scratch.upper, agent, mount.mode, mount.uid, mount.gid)
        .map_err(|cause| Error::Unplaced(Box::new(StepError::Agent { id: mount.id.clone(), cause })))?;
    let path = forward.path().to_owned();
    held.agents.push(forward);
    held.scratch.push(scratch);
    Ok(Some(path))
}

/// Why a command could not be run; for another processor than this machine's, mostly for want of what emulates it.
pub(crate) fn not_run(error: RunError, platform: &Platform) -> Error {
    let foreign = is_foreign(platform);
    let cause = match error {
        RunError::Exec { program, source } if foreign && is(&source, Errno::NOEXEC) => {
            StepError::NoEmulator { platform: platform.to_string(), program, handler_is_lost: false }
        }
        // Its emulator or its dynamic linker is missing.
        RunError::Exec { program, source } if foreign && is(&source, Errno::NOENT) => {
            StepError::NoEmulator { platform: platform.to_string(), program, handler_is_lost: true }
        }
        error => StepError::Sandbox(error),
    };
    Error::Unplaced(Box::new(cause))
}

/// Whether this machine's processor can't execute programs of the platform; those of 32 bits it can.
fn is_foreign(platform: &Platform) -> bool {
    let host = Platform::host();
    !matches!(
        (host.architecture.as_str(), platform.architecture.as_str()),
        ("amd64", "amd64" | "386") | ("arm64", "arm64" | "arm")
    ) && host.architecture != platform.architecture
}

fn is(error: &std::io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

/// The last ten lines.
fn last_lines(tail: &[u8]) -> Vec<u8> {
    let trimmed = tail.strip_suffix(b"\n").unwrap_or(tail);
    let start = trimmed.iter().enumerate().rev().filter(|(_, b)| **b == b'\n').nth(9).map_or(0, |(i, _)| i + 1);
    tail[start..].to_vec()
}
