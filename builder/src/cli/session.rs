//! Hides what stands around every command: the store's place, the settings, the display, and the signals that end it.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use kiln::engine::{Engine, trees};
use kiln::error::Error;
use kiln::event::{Events, Gate};
use kiln_registry_client::{Client, CredentialStore, Options, Proxies, Warnings};
use kiln_runner::{Cancel, Entered, Ground, Isolation, Remote, Snapshots, Wish};
use kiln_store::Store;
use kiln_store::lock::{OnWait, Waiting};
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGKILL, SIGQUIT, SIGTERM, SIGTSTP, SIGUSR1, SIGUSR2, SIGWINCH};

use super::args::Global;
use super::environment::Environment;
use super::exit::{self, Exit};
use super::progress::{Mode, Style, Summary, Watcher};
use super::report::{Failure, Report};
use super::{collect, registries_conf, settings};

/// How long another process is waited for in silence.
const SILENT_WAIT: Duration = Duration::from_secs(1);

/// How often a command may be asked to end before it is killed, as with docker.
const PATIENCE: u32 = 3;

/// What every command is given.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) environment: Environment,
    pub(crate) global: Global,
    /// As what this process goes on.
    pub(crate) entered: Entered,
}

/// What the environment tells of this process.
pub(crate) fn wish(environment: &Environment, isolation: Isolation) -> Wish {
    Wish {
        isolation,
        path: environment.raw("PATH").unwrap_or_default(),
        user: environment.text("USER"),
        // systemd's and Podman's word for it, and Kubernetes'.
        in_container: ["container", "KUBERNETES_SERVICE_HOST"].iter().any(|name| environment.raw(name).is_some()),
    }
}

/// Makes this process one that can make sandboxes, if it can be: the flag, then the environment.
pub(crate) fn enter(environment: &Environment, global: &Global) -> Result<Entered, Failure> {
    const NAME: &str = "KILN_ISOLATION";
    let named = || match environment.text(NAME) {
        Some(text) => text.parse().map_err(|error| Failure::usage(format!("{NAME}: {error}"))),
        None => Ok(Isolation::Default),
    };
    let isolation = global.isolation.map_or_else(named, Ok)?;
    let wish = wish(environment, isolation);
    Ok(kiln_runner::enter(&wish).map_err(Error::Host)?)
}

impl Session {
    /// The folder of the store.
    pub(crate) fn root(&self) -> Result<PathBuf, Failure> {
        if let Some(root) = &self.global.root {
            return Ok(root.clone());
        }
        self.environment.default_root(self.entered.was_root).ok_or_else(|| {
            Failure::usage_hint("there is no place for the store: $HOME is not set", "use `--root DIR` or set KILN_ROOT")
        })
    }

    /// The store, for commands that neither build nor transfer.
    pub(crate) fn store(&self) -> Result<Store, Failure> {
        let warned = AtomicBool::new(false);
        let on_wait = move |waiting: &Waiting<'_>| {
            if waiting.elapsed >= SILENT_WAIT && !warned.swap(true, Ordering::Relaxed) {
                super::report::warn(&waiting_for(waiting));
            }
            ControlFlow::Continue(())
        };
        Ok(self.open(Arc::new(on_wait))?.0)
    }

    /// The store of the form that this process makes trees in, and what can be mounted there.
    fn open(&self, on_wait: Arc<OnWait>) -> Result<(Store, Ground), Failure> {
        let root = self.root()?;
        let mut ground = Ground::probe(&self.entered, &kiln_store::host_folder(&root)?);
        match self.environment.text("KILN_SNAPSHOTS").as_deref() {
            None | Some("auto") => {}
            Some("copy") => ground.snapshots = Snapshots::Copy,
            Some(other) => return Err(Failure::usage(format!("KILN_SNAPSHOTS: `{other}` is neither `auto` nor `copy`"))),
        }
        Ok((Store::open_form(&root, &trees(&self.entered, &ground), on_wait)?, ground))
    }

    /// How failures and warnings are printed.
    pub(crate) fn report(&self, is_build: bool) -> Report {
        Report::new(self.global.debug, self.environment.raw("NO_COLOR").is_some(), is_build)
    }

    /// The mode of progress: the flag, then the environment.
    pub(crate) fn mode(&self, flag: Option<Mode>, quiet: bool) -> Result<Mode, Failure> {
        if quiet {
            return Ok(Mode::Quiet);
        }
        if let Some(mode) = flag {
            return Ok(mode);
        }
        for name in ["KILN_PROGRESS", "BUILDKIT_PROGRESS"] {
            if let Some(text) = self.environment.text(name) {
                return text.parse().map_err(|error| Failure::usage(format!("{name}: {error}")));
            }
        }
        Ok(Mode::Auto)
    }

    /// Docker's and podman's files, where credentials are, and logins are kept.
    pub(crate) fn credentials(&self) -> CredentialStore {
        CredentialStore::from_files(self.environment.credential_files())
    }

    /// A client for registries. It reads and connects only when it is used.
    pub(crate) fn client(&self, warnings: Warnings, cancelled: Arc<AtomicBool>) -> Result<Client, Failure> {
        let registries = settings::registries(&self.environment.settings())?;
        let containers = registries_conf::read_all(&self.environment.registries_conf())?;
        Ok(Client::new(Options {
            registries,
            rules: containers.rules,
            certs_folders: self.environment.certs_folders(),
            proxies: Proxies::from_environment(|name| self.environment.text(name)),
            credentials: self.credentials().with_helpers(containers.helpers),
            warnings,
            cancelled,
            ..Options::default()
        })?)
    }

    /// Does some work with an engine while its progress is shown, and gives its result together with what is left to say.
    ///
    /// The first SIGINT or SIGTERM cancels the work, the second one ends the process.
    pub(crate) fn work<T>(
        &self,
        phase: &'static str,
        mode: Mode,
        work: impl FnOnce(&Engine) -> Result<T, Failure>,
    ) -> (Result<T, Failure>, Summary) {
        let (events, receiver) = Events::channel();
        let style = Style {
            phase,
            colour: self.environment.raw("NO_COLOR").is_none(),
            log_window: self.environment.text("BUILDKIT_TTY_LOG_LINES").and_then(|text| text.parse().ok()).unwrap_or(6),
        };
        let watcher = Watcher::start(mode, style, (receiver, events.end()));
        let signal = Arc::new(AtomicI32::new(0));
        let mut used = None;
        let result = self.engine(events, &signal).and_then(|engine| {
            used = Some(engine.store.clone());
            work(&engine)
        });
        let result = result.map_err(|failure| match signal.load(Ordering::SeqCst) {
            0 => failure,
            signal => Failure::Interrupted { terminated: signal == SIGTERM },
        });
        let summary = watcher.finish();
        if let Some(store) = used.filter(|_| signal.load(Ordering::SeqCst) == 0) {
            self.collect(&store);
        }
        (result, summary)
    }

    /// Collects if it is time to. The engine is gone by now: what it used, nobody needs to hold any more. What goes wrong here is
    /// no failure of the work.
    fn collect(&self, store: &Store) {
        if let Err(error) = collect::when_due(store, &self.environment.settings(), SystemTime::now()) {
            super::report::warn(&format!("nothing was collected: {error}"));
        }
    }

    fn engine(&self, events: Events, signal: &Arc<AtomicI32>) -> Result<Engine, Failure> {
        let system = |operation| move |cause| Error::System { operation, cause };
        let cancel = Cancel::new().map_err(system("make an event descriptor"))?;
        let cancelled = Arc::new(AtomicBool::new(false));
        let remote = Remote::new().map_err(system("make a pipe"))?;
        listen(cancel.clone(), remote.clone(), (Arc::clone(&cancelled), events.gate()), Arc::clone(signal))
            .map_err(system("listen for signals"))?;

        let (heard, to_cancel, warned) = (events.clone(), cancel.clone(), Mutex::new(Vec::new()));
        let on_wait = move |waiting: &Waiting<'_>| {
            if to_cancel.is_triggered() {
                return ControlFlow::Break(());
            }
            if waiting.elapsed >= SILENT_WAIT && !is_ours(waiting) {
                let text = waiting_for(waiting);
                let mut warned = warned.lock().unwrap_or_else(PoisonError::into_inner);
                if !warned.contains(&text) {
                    heard.warn(text.clone());
                    warned.push(text);
                }
            }
            ControlFlow::Continue(())
        };
        let (store, ground) = self.open(Arc::new(on_wait))?;
        let heard = events.clone();
        let client = self.client(Warnings::to(move |warning| heard.warn(warning.to_string())), cancelled)?;
        Ok(Engine::new(store, (self.entered.clone(), ground), Arc::new(client), events, (cancel, remote)))
    }
}

/// Whether another step of this very build holds what is waited for; progress shows that step already.
fn is_ours(waiting: &Waiting<'_>) -> bool {
    waiting.holder == Some(std::process::id())
}

fn waiting_for(waiting: &Waiting<'_>) -> String {
    match waiting.holder {
        Some(process) => format!("waiting for {} (process {process})", waiting.what),
        None => format!("waiting for {}", waiting.what),
    }
}

/// Listens for SIGINT and SIGTERM until the process ends. While a command has the terminal they are for it, and so are changes of
/// the window's size.
fn listen(
    cancel: Cancel,
    remote: Remote,
    (cancelled, gate): (Arc<AtomicBool>, Gate),
    signal: Arc<AtomicI32>,
) -> std::io::Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGWINCH])?;
    let wait = move || {
        let mut insisted = 0;
        for arrived in signals.forever() {
            if remote.is_attached() || arrived == SIGWINCH {
                remote.signal(arrived);
                insisted += u32::from(arrived != SIGWINCH);
                if insisted >= PATIENCE {
                    remote.signal(SIGKILL);
                }
                continue;
            }
            let first = signal.compare_exchange(0, arrived, Ordering::SeqCst, Ordering::SeqCst).is_ok();
            cancelled.store(true, Ordering::SeqCst);
            cancel.trigger();
            // A step that waits for a display which nobody reads could not end.
            gate.open();
            if !first {
                exit::at_once(if arrived == SIGTERM { Exit::Terminated } else { Exit::Interrupted });
            }
        }
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(wait).map(drop)
}

/// From now on passes on the other signals that a process is steered with, as long as a command runs.
pub(crate) fn pass_on(remote: Remote) -> Result<(), Failure> {
    let system = |cause| Error::System { operation: "listen for signals", cause };
    let asked = [SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGCONT, SIGTSTP];
    let mut signals = signal_hook::iterator::Signals::new(asked).map_err(system)?;
    let wait = move || signals.forever().for_each(|arrived| remote.signal(arrived));
    std::thread::Builder::new().name("signals".to_owned()).spawn(wait).map_err(system)?;
    Ok(())
}
