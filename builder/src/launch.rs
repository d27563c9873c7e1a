//! Hides how an image becomes a command that runs (`kiln run`), and that nothing of what it changes is kept.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use kiln_oci::config::ContainerConfig;
use kiln_oci::platform::Platform;
use kiln_oci::reference::Reference;
use kiln_runner::{GroupLimits, Limit, Mount, Network, Outcome, RunError, RunSpec, Stream, Streams, run_attached};
use kiln_store::{LayerId, Prepared};

use crate::bases;
use crate::engine::Engine;
use crate::error::{Error, ImageError};
use crate::ops::{exec, source};

/// What a command finds when the image says nothing else (Docker's).
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// One run of an image.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The image: its name, or the beginning of its id.
    pub image: String,
    /// For which platform, if that was said.
    pub platform: Option<Platform>,
    /// Whether a registry is asked.
    pub pull: Pull,
    /// What differs from the image's configuration.
    pub changes: Changes,
    /// The world that the command sees besides the image.
    pub world: World,
    /// Where the command's standard streams lead.
    pub streams: Streams,
}

/// The world that a command sees besides the image.
#[derive(Debug, Clone)]
pub struct World {
    /// The host name.
    pub hostname: String,
    /// Which network.
    pub network: Network,
    /// Further lines of `/etc/hosts`: name and address.
    pub extra_hosts: Vec<(String, String)>,
    /// What is mounted.
    pub mounts: Vec<Mount>,
    /// The size of `/dev/shm` in bytes.
    pub shm_size: Option<u64>,
    /// Limits of single processes.
    pub limits: Vec<Limit>,
    /// Limits of all processes together.
    pub group: GroupLimits,
    /// Nothing of the image's files can be changed.
    pub readonly: bool,
}

/// Whether a registry is asked for an image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Pull {
    /// When the store hasn't it.
    #[default]
    Missing,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// What differs from the image's configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// In the place of ENTRYPOINT, and then without CMD; empty takes ENTRYPOINT away.
    pub entrypoint: Option<Vec<OsString>>,
    /// In the place of CMD, unless empty.
    pub command: Vec<OsString>,
    /// Variables and their values; `None` takes one away.
    pub env: Vec<(OsString, Option<OsString>)>,
    /// In the place of WORKDIR.
    pub cwd: Option<PathBuf>,
    /// In the place of USER.
    pub user: Option<String>,
}

/// A command that is ready to run.
#[derive(Debug)]
pub struct Ready {
    spec: RunSpec,
    platform: Platform,
    stop_signal: Option<String>,
    // Removed with all that the command changed when this is dropped.
    _root: Prepared,
}

/// Finds the image, fetches what is missing of it, and decides what is to run.
pub fn prepare(engine: &Engine, launch: &Launch) -> Result<Ready, Error> {
    let found = find(engine, launch)?;
    if let Some(top) = &found.layer
        && engine.store.layers().chain(top)?.iter().any(|layer| !layer.unpacked)
    {
        let task = engine.events.start(format!("[internal] load layers of {}", launch.image));
        let unpacked = source::materialise(engine, Some(top), &task).map(drop);
        if unpacked.is_err() {
            engine.check()?;
        }
        task.end_with(unpacked)?;
    }
    let args = arguments(&found.config, &launch.changes);
    if args.is_empty() {
        let reason = "it names no command, and none was given".to_owned();
        return Err(Error::Image(ImageError::Invalid { name: launch.image.clone(), reason }));
    }
    let world = &launch.world;
    let prepared = engine.prepare(found.layer.as_ref())?;
    let mut spec = RunSpec::new(exec::root(&prepared), args);
    spec.aside = prepared.tree().map(|_| prepared.work.clone());
    spec.env = environment(&found.config, &launch.changes, &world.hostname, launch.streams);
    spec.cwd = launch.changes.cwd.clone().unwrap_or_else(|| Path::new("/").join(&found.config.working_dir));
    spec.user = launch.changes.user.clone().unwrap_or(found.config.user);
    spec.hostname.clone_from(&world.hostname);
    spec.network = world.network;
    spec.extra_hosts.clone_from(&world.extra_hosts);
    spec.mounts.clone_from(&world.mounts);
    spec.shm_size = world.shm_size.unwrap_or(spec.shm_size);
    spec.limits.clone_from(&world.limits);
    spec.group.clone_from(&world.group);
    spec.readonly_root = world.readonly;
    spec.streams = launch.streams;
    spec.recorder = exec::recorder(engine, &prepared)?;
    Ok(Ready { spec, platform: found.platform, stop_signal: found.config.stop_signal, _root: prepared })
}

impl Ready {
    /// The signal by which the command wants to be asked to stop, as the image names it.
    pub fn stop_signal(&self) -> Option<&str> {
        self.stop_signal.as_deref()
    }

    /// Runs the command to its end; what it changed is thrown away. What it writes goes to `output`, unless it holds this process's
    /// own streams.
    pub fn run(self, engine: &Engine, output: &mut (dyn FnMut(Stream, &[u8]) + Send)) -> Result<Outcome, Error> {
        run_attached(&self.spec, engine.host(), &engine.cancel, Some(&engine.remote), output).map_err(|error| match error {
            RunError::Cancelled => Error::Interrupted,
            error => exec::not_run(error, &self.platform),
        })
    }
}

/// What an image gives to a run.
struct Found {
    config: ContainerConfig,
    layer: Option<LayerId>,
    platform: Platform,
}

fn find(engine: &Engine, launch: &Launch) -> Result<Found, Error> {
    let wanted = launch.platform.clone().unwrap_or_else(Platform::host);
    if launch.pull != Pull::Always
        && let Some(record) = engine.store.images().find(&launch.image)?
    {
        let record = record.for_platform(&wanted).unwrap_or(record);
        let config = bases::read_config(engine, &record.config)?;
        let platform = config.value().platform();
        // Who doesn't say which takes what there is, as with docker.
        if launch.platform.is_none() || platform.serves(&wanted).is_some() {
            return Ok(Found { config: config.value().config.clone(), layer: record.layers.last().cloned(), platform });
        }
    }
    let missing = |name: String| Error::Image(ImageError::NotFound { name });
    let reference = Reference::parse(&launch.image).map_err(|_| missing(launch.image.clone()))?;
    if launch.pull == Pull::Never {
        return Err(missing(reference.familiar()));
    }
    let task = engine.events.start(format!("[internal] load metadata for {reference}"));
    let image = bases::resolve(engine, &reference, &wanted, launch.pull == Pull::Always, &task);
    let image = task.end_with(image)?;
    let config = image.config.value();
    Ok(Found { config: config.config.clone(), layer: image.layer, platform: config.platform() })
}

/// Entry point and command, each by its own rules of what takes whose place.
fn arguments(config: &ContainerConfig, changes: &Changes) -> Vec<OsString> {
    let words = |words: &Option<Vec<String>>| words.iter().flatten().map(OsString::from).collect::<Vec<_>>();
    let (mut args, usual) = match &changes.entrypoint {
        Some(entrypoint) => (entrypoint.clone(), Vec::new()),
        None => (words(&config.entrypoint), words(&config.cmd)),
    };
    args.extend(if changes.command.is_empty() { usual } else { changes.command.clone() });
    args
}

/// What any container has, then the image's, then what was asked for; of two for one name the later counts.
fn environment(config: &ContainerConfig, changes: &Changes, hostname: &str, streams: Streams) -> Vec<(OsString, OsString)> {
    let mut env: Vec<(OsString, OsString)> = Vec::new();
    let mut set = |name: OsString, value: Option<OsString>| {
        let place = env.iter().position(|(known, _)| *known == name);
        match (place, value) {
            (Some(place), Some(value)) => env[place].1 = value,
            (Some(place), None) => drop(env.remove(place)),
            (None, Some(value)) => env.push((name, value)),
            (None, None) => {}
        }
    };
    set("PATH".into(), Some(DEFAULT_PATH.into()));
    set("HOSTNAME".into(), Some(hostname.into()));
    if matches!(streams, Streams::Terminal { .. }) {
        set("TERM".into(), Some("xterm".into()));
    }
    for entry in &config.env {
        let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
        if !name.is_empty() {
            set(name.into(), Some(value.into()));
        }
    }
    for (name, value) in &changes.env {
        set(name.clone(), value.clone());
    }
    env
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn what_is_executed() {
        // ENTRYPOINT, CMD, --entrypoint, arguments, what comes of it; `-` is not given.
        let rows = [
            ("-", "sh", "-", "", "sh"),
            ("-", "sh -l", "-", "ls -l", "ls -l"),
            ("/init", "serve", "-", "", "/init serve"),
            ("/init", "serve", "-", "test", "/init test"),
            ("/init", "serve", "/bin/sh", "", "/bin/sh"),
            ("/init", "serve", "/bin/sh", "-c true", "/bin/sh -c true"),
            ("/init", "serve", "", "ls", "ls"),
            ("/init", "serve", "", "", ""),
            ("-", "-", "-", "", ""),
        ];
        for (entrypoint, cmd, asked, command, expected) in rows {
            let given = |text: &str| (text != "-").then(|| words(text));
            let config = ContainerConfig { entrypoint: given(entrypoint), cmd: given(cmd), ..ContainerConfig::default() };
            let os = |words: Vec<String>| words.into_iter().map(OsString::from).collect::<Vec<_>>();
            let changes = Changes { entrypoint: given(asked).map(os), command: os(words(command)), ..Changes::default() };
            let got = arguments(&config, &changes);
            assert_eq!(got, os(words(expected)), "{entrypoint} | {cmd} | {asked} | {command}");
        }
    }

    #[test]
    fn what_is_set() {
        let env = |image: &[&str], asked: &[(&str, Option<&str>)], streams| {
            let config = ContainerConfig { env: image.iter().map(|e| (*e).to_owned()).collect(), ..ContainerConfig::default() };
            let env = asked.iter().map(|(name, value)| ((*name).into(), value.map(Into::into))).collect();
            let env = environment(&config, &Changes { env, ..Changes::default() }, "h", streams);
            env.iter().map(|(name, value)| format!("{}={}", name.display(), value.display())).collect::<Vec<_>>().join(" ")
        };
        let pipes = Streams::Inherited { input: false };
        assert_eq!(env(&[], &[], pipes), format!("PATH={DEFAULT_PATH} HOSTNAME=h"));
        let terminal = Streams::Terminal { input: true };
        assert_eq!(env(&["PATH=/bin", "A=1", "B"], &[], terminal), "PATH=/bin HOSTNAME=h TERM=xterm A=1 B=");
        let asked = [("A", Some("2=3")), ("C", None), ("PATH", None), ("D", Some(""))];
        assert_eq!(env(&["A=1", "C=x", "TERM=vt100"], &asked, pipes), "HOSTNAME=h A=2=3 TERM=vt100 D=");
    }
}
