//! Hides how a RUN becomes a `RunSpec`: the one place where the store's and the runner's words meet.

use std::ffi::OsString;
use std::path::PathBuf;

use kiln_frontend::graph::{ExecOp, MountKind, NetworkMode, SecurityMode, Sharing};
use kiln_runner::{Cancel, Mount, MountSource, Network, OverlayUpper, RootFs, RunError, RunSpec, Security, Status, run};
use kiln_store::mounts::MountGuard;
use kiln_store::rootdir::{Attrs, RootDir};
use kiln_store::{LayerId, Prepared};

use crate::engine::Engine;
use crate::error::{Error, StepError};
use crate::event::Task;

/// How many bytes at the end of a command's output are shown again when it fails.
const TAIL: usize = 8 << 10;

/// What a RUN gets besides its instruction.
#[derive(Debug)]
pub struct Setting<'a> {
    /// The size of `/dev/shm` in bytes.
    pub shm_size: Option<u64>,
    /// Ends the command early.
    pub cancel: &'a Cancel,
    /// For each bind mount, and each cache mount that is seeded, in order: the layers that it shows, lowest first; `None` for
    /// the empty root.
    pub mounts: Vec<Option<LayerId>>,
}

/// Runs the command on a fresh layer above `prepared`'s parents; the layer is complete when this returns.
pub fn exec(engine: &Engine, op: &ExecOp, prepared: &Prepared, setting: &Setting<'_>, task: &Task) -> Result<(), Error> {
    let root = RootFs::Overlay { lowers: prepared.lowers.clone(), upper: prepared.upper.clone(), work: prepared.work.clone() };
    let mut spec = RunSpec::new(root, op.args.iter().map(OsString::from).collect());
    spec.env = op.env.iter().chain(&op.proxy_env).map(|(k, v)| (k.into(), v.into())).collect();
    spec.cwd = PathBuf::from(op.cwd.as_os_str());
    spec.user.clone_from(&op.user);
    spec.hostname.clone_from(&op.hostname);
    spec.extra_hosts.clone_from(&op.extra_hosts);
    spec.network = match op.network {
        NetworkMode::Default | NetworkMode::Host => Network::Host,
        NetworkMode::None => Network::None,
    };
    spec.security = match op.security {
        SecurityMode::Sandbox => Security::Sandbox,
        SecurityMode::Insecure => {
            return Err(step(RunError::Invalid { reason: "`--security=insecure` is not supported yet".to_owned() }));
        }
    };
    if let Some(size) = setting.shm_size {
        spec.shm_size = size;
    }
    let mut held = Held::default();
    spec.mounts = mounts(engine, op, setting, &mut held)?;
    for file in &op.files {
        spec.mounts.push(Mount {
            target: PathBuf::from(file.path.as_os_str()),
            source: MountSource::File { data: file.data.clone(), mode: file.mode },
            subpath: PathBuf::new(),
            readonly: true,
        });
    }
    let mut tail = Vec::new();
    let outcome = run(&spec, engine.host(), setting.cancel, &mut |_, data| {
        task.log(data);
        tail.extend_from_slice(data);
        if tail.len() > 4 * TAIL {
            tail.drain(..tail.len() - TAIL);
        }
    });
    drop(held);
    let status = match outcome {
        Ok(outcome) => outcome.status,
        Err(RunError::Cancelled) => return Err(Error::Interrupted),
        Err(error) => return Err(step(error)),
    };
    let status = match status {
        Status::Exited(0) => return Ok(()),
        Status::Exited(code) => format!("exit code: {code}"),
        Status::Signaled(signal) => format!("killed by signal {signal}"),
        Status::OomKilled => "killed for lack of memory".to_owned(),
    };
    let code = outcome.ok().map(|o| o.status.code());
    let command = op.args.join(" ");
    Err(Error::Unplaced(Box::new(StepError::Command { command, status, code, tail: last_lines(&tail) })))
}

/// What must live as long as the command runs.
#[derive(Debug, Default)]
struct Held {
    guards: Vec<MountGuard>,
    scratch: Vec<Prepared>,
}

fn mounts(engine: &Engine, op: &ExecOp, setting: &Setting<'_>, held: &mut Held) -> Result<Vec<Mount>, Error> {
    let mut shown = setting.mounts.iter();
    let mut out = Vec::new();
    for mount in &op.mounts {
        let target = PathBuf::from(mount.target.as_os_str());
        match &mount.kind {
            MountKind::Bind(bind) => {
                let layer = shown.next().cloned().flatten();
                let prepared = engine.store.layers().prepare(layer.as_ref())?;
                let mut lowers = prepared.lowers.clone();
                // Writes are allowed and dropped, so they need a place; an empty root needs one to be a mount at all.
                let upper = if bind.writable {
                    Some(OverlayUpper { upper: prepared.upper.clone(), work: prepared.work.clone() })
                } else {
                    if lowers.is_empty() {
                        lowers.push(prepared.upper.clone());
                    }
                    None
                };
                held.scratch.push(prepared);
                out.push(Mount {
                    target,
                    source: MountSource::Overlay { lowers, upper },
                    subpath: PathBuf::from(bind.source.as_os_str()),
                    readonly: !bind.writable,
                });
            }
            MountKind::Cache(cache) => {
                let sharing = match cache.sharing {
                    Sharing::Shared => kiln_store::mounts::Sharing::Shared,
                    Sharing::Private => kiln_store::mounts::Sharing::Private,
                    Sharing::Locked => kiln_store::mounts::Sharing::Locked,
                };
                if cache.from.is_some() {
                    shown.next();
                    let reason = "a cache mount that is filled with `from` is not supported yet".to_owned();
                    return Err(step(RunError::Invalid { reason }));
                }
                let guard = engine.store.mounts().acquire::<Error>(cache.id.as_bytes(), sharing, |folder| {
                    let attrs = Attrs { uid: cache.uid, gid: cache.gid, mode: cache.mode, ..Attrs::default() };
                    Ok(RootDir::open(folder)?.set_attrs_of_self(&attrs)?)
                })?;
                out.push(Mount {
                    target,
                    source: MountSource::Bind { path: guard.path().to_owned() },
                    subpath: PathBuf::from(cache.source.as_os_str()),
                    readonly: cache.readonly,
                });
                held.guards.push(guard);
            }
            MountKind::Tmpfs { size } => {
                out.push(Mount { target, source: MountSource::Tmpfs { size: *size }, subpath: PathBuf::new(), readonly: false })
            }
        }
    }
    Ok(out)
}

fn step(error: RunError) -> Error {
    Error::Unplaced(Box::new(StepError::Sandbox(error)))
}

/// The last ten lines.
fn last_lines(tail: &[u8]) -> Vec<u8> {
    let trimmed = tail.strip_suffix(b"\n").unwrap_or(tail);
    let start = trimmed.iter().enumerate().rev().filter(|(_, b)| **b == b'\n').nth(9).map_or(0, |(i, _)| i + 1);
    tail[start..].to_vec()
}
