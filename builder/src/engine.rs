//! Hides nothing: what every operation works with, made once by the command.

use std::sync::{Arc, OnceLock};

use kiln_registry_client::Client;
use kiln_runner::{Cancel, Entered, Ground, GroupLimits, Host, Mode, OverlayApi, Remote, Snapshots};
use kiln_store::layer::whiteout::WhiteoutStyle;
use kiln_store::{LayerId, Ownership, Prepared, Store, TreeForm, Trees};

use crate::error::Error;
use crate::event::Events;
use crate::export::early::Early;
use crate::remote_cache::backend::Places;
use crate::remote_cache::mounts::TravellingMounts;

/// The store, the registries, the sandbox's host, and how to speak to whoever watches. Cheap to make: no network, no probe.
#[derive(Debug)]
pub struct Engine {
    /// Where blobs, layers, cache records and names are.
    pub store: Store,
    /// How registries are reached.
    pub registry: Arc<Client>,
    /// Who hears of progress.
    pub events: Events,
    /// What ends everything early.
    pub cancel: Cancel,
    /// How signals reach a command that holds the terminal.
    pub remote: Remote,
    /// Places besides registries that layers may be fetched from.
    pub places: Places,
    /// Cache mounts that travel.
    pub mounts: TravellingMounts,
    /// Layers that are packed while steps still run.
    pub(crate) early: Early,
    entered: Entered,
    ground: Ground,
    host: OnceLock<Host>,
}

impl Engine {
    /// Puts the parts together. `store` has the form that [`trees`] says.
    pub fn new(
        store: Store,
        sandbox: (Entered, Ground),
        registry: Arc<Client>,
        events: Events,
        (cancel, remote): (Cancel, Remote),
    ) -> Self {
        let (entered, ground) = sandbox;
        Self {
            store,
            registry,
            events,
            cancel,
            remote,
            places: Places::default(),
            mounts: TravellingMounts::default(),
            early: Early::default(),
            entered,
            ground,
            host: OnceLock::new(),
        }
    }

    /// In which mode commands are run.
    pub fn mode(&self) -> &Mode {
        &self.entered.mode
    }

    /// What this host offers to sandboxes; probed when a RUN first needs it.
    pub fn host(&self) -> &Host {
        self.host.get_or_init(|| {
            let mut host = Host::probe(&self.entered, &self.ground);
            // It only makes steps faster, by about 4 ms on a busy ext4; a full disk will be met again where it matters.
            let _ = host.keep_mount_points(&self.store.mount_points());
            if host.mode == Mode::Chroot {
                self.events.warn(
                    "the isolation `chroot` is not a security boundary: a command can see and change everything that kiln can"
                        .to_owned(),
                );
            }
            if host.mode_is_usable() && !host.counts_processes(&GroupLimits::default()) {
                self.events.warn(
                    "no control group can be made here, so that the processes of a RUN are only limited by `ulimit -u`"
                        .to_owned(),
                );
            }
            host
        })
    }

    /// Prepares a layer above `parent` for a command, which sees the merged tree as an overlay or, where there is none or
    /// there are more layers than one takes, as a copy.
    pub(crate) fn prepare(&self, parent: Option<&LayerId>) -> Result<Prepared, Error> {
        let layers = self.store.layers();
        if self.ground.snapshots == Snapshots::Overlay {
            let prepared = layers.prepare(parent)?;
            if self.can_stack(prepared.lowers.len()) {
                return Ok(prepared);
            }
        }
        Ok(layers.prepare_copy(parent)?)
    }

    /// Whether so many layers can be mounted as one overlay here.
    pub(crate) fn can_stack(&self, layers: usize) -> bool {
        let most = match self.ground.overlay {
            // The options are one string of a page, and each layer takes up to 19 bytes of it.
            OverlayApi::Classic => 200,
            // OVL_MAX_STACK of the kernel.
            OverlayApi::Descriptors | OverlayApi::Paths => 500,
        };
        layers <= most
    }

    /// How the trees that commands see are made of layers.
    pub(crate) fn snapshots(&self) -> Snapshots {
        self.ground.snapshots
    }

    /// Was this process root's, so that files can be given to anybody?
    pub fn was_root(&self) -> bool {
        self.entered.was_root
    }

    /// An error once somebody wants everything to end.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.cancel.is_triggered() { Err(Error::Interrupted) } else { Ok(()) }
    }
}

/// Which store a process uses: what it can mount and whom it can give files to decides how its trees lie on disk.
pub fn trees(entered: &Entered, ground: &Ground) -> Trees {
    let owners = match &entered.mode {
        Mode::Root | Mode::Chroot => Ownership::Real,
        Mode::SubIds | Mode::Nested => Ownership::Mapped,
        Mode::OneId => Ownership::Recorded,
        Mode::Unavailable { .. } if entered.may_give_files_away() => Ownership::Real,
        Mode::Unavailable { .. } => Ownership::Recorded,
    };
    let whiteouts = match (&entered.mode, ground.snapshots) {
        (Mode::Chroot | Mode::Unavailable { .. }, _) | (_, Snapshots::Copy) => WhiteoutStyle::Names,
        (Mode::Root, Snapshots::Overlay) => WhiteoutStyle::Device,
        (_, Snapshots::Overlay) => WhiteoutStyle::UserXattr,
    };
    let ids = (owners != Ownership::Recorded && entered.mode != Mode::Root).then(|| entered.ids.to_string());
    Trees { form: TreeForm { whiteouts, owners }, ids }
}
