//! Hides which crate an error came from: every failure becomes one `Error` with a kind that decides the exit code.

use std::error::Error as StdError;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_frontend::{Diagnostic, Source, Span};
use kiln_registry_client::DaemonError;
use kiln_runner::RunError;
use kiln_store::layer::upper::UpperError;
use kiln_store::layer::{PackError, PackedError, UnpackBlobError};
use kiln_store::rootdir::FsError;
use kiln_store::tar::{TarError, WriteError};
use kiln_store::view::ViewError;

use crate::context::ContextError;
use crate::ops::file::FileError;
use crate::ops::git::GitError;
use crate::ops::http::HttpError;
use crate::pins::PinError;
use crate::remote_cache::backend::BackendError;

/// What sort of failure it is; the command turns it into an exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A step of the build failed.
    Build,
    /// The Dockerfile is wrong.
    Dockerfile,
    /// A registry refused, failed or could not be reached; or what it gave is no usable image.
    Registry,
    /// This host can't give what was asked for.
    Host,
    /// The store can't be used.
    Store,
    /// The build was stopped by a signal.
    Interrupted,
    /// kiln is wrong.
    Bug,
}

/// Why a build, push, pull, save or load failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The Dockerfile is wrong; each diagnostic points into the source.
    #[error("{}", first_message(diagnostics))]
    Dockerfile {
        /// The text.
        source_text: Arc<Source>,
        /// What is wrong with it; at least one.
        diagnostics: Vec<Diagnostic>,
    },
    /// A file that was named on the command line could not be read.
    #[error("cannot read the {what} {}", path.display())]
    ReadInput {
        /// `archive`, …
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// A file that was asked for could not be written.
    #[error("cannot write {}", path.display())]
    Output {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The build context, or a text in it.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// A step failed.
    #[error("failed to build {name}")]
    Step {
        /// The vertex, as progress names it.
        name: String,
        /// Where the instruction is.
        location: Option<(Arc<Source>, Span)>,
        /// What may have been meant, where the Dockerfile gives reason to think so.
        meant: Option<String>,
        /// Why.
        #[source]
        cause: Box<StepError>,
    },
    /// The same before it is known which step it was.
    #[error(transparent)]
    Unplaced(#[from] Box<StepError>),
    /// This host can't give the sandbox that was asked for.
    #[error("{0}")]
    Host(RunError),
    /// A registry refused, failed or could not be reached.
    #[error(transparent)]
    Registry(#[from] kiln_registry_client::Error),
    /// A daemon that was to take an image, found without being named.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// The same of one that was named.
    #[error("cannot use the daemon that {by} names")]
    NamedDaemon {
        /// Where its name stood.
        by: String,
        /// Why.
        #[source]
        cause: DaemonError,
    },
    /// What a name stands for is not an image that can be used.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The place of a shared cache can't be used.
    #[error(transparent)]
    CachePlace(#[from] BackendError),
    /// A shared cache has no more, or never had, the layer of a step that it told of; the step can be done again.
    #[error("the layer {layer} of a shared cache can't be had")]
    CachedLayerLost {
        /// The layer.
        layer: kiln_store::LayerId,
        /// Why.
        #[source]
        cause: Box<Error>,
    },
    /// The store can't be used.
    #[error(transparent)]
    Store(#[from] kiln_store::Error),
    /// A layer could not be turned into a tar.
    #[error("cannot pack a layer")]
    Pack(#[from] PackError),
    /// A layer could not be packed and compressed.
    #[error("cannot pack a layer")]
    PackCompressed(#[from] PackedError),
    /// An archive could not be read.
    #[error("cannot read the archive {}", path.display())]
    Archive {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: TarError,
    },
    /// An archive could not be written.
    #[error(transparent)]
    WriteArchive(#[from] WriteError),
    /// The system refused something that it never refuses.
    #[error("cannot {operation}")]
    System {
        /// What.
        operation: &'static str,
        /// What it answered.
        #[source]
        cause: io::Error,
    },
    /// Something that can't be: kiln is wrong.
    #[error("cannot {operation}")]
    Internal {
        /// What failed.
        operation: &'static str,
        /// Why.
        #[source]
        cause: Box<dyn StdError + Send + Sync>,
    },
    /// What the build stands on is not in the lock file, or not what that says.
    #[error(transparent)]
    Pins(#[from] PinError),
    /// The build was stopped by a signal.
    #[error("the build was interrupted")]
    Interrupted,
}

/// Why one step failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StepError {
    /// The command of a RUN ended with another status than 0.
    #[error("process \"{command}\" did not complete successfully: {status}")]
    Command {
        /// The command, joined by blanks.
        command: String,
        /// `exit code: 2`, `killed by signal 9`, …
        status: String,
        /// The exit code; 128 and the signal's number for a signal.
        code: Option<i32>,
        /// The last lines that it wrote.
        tail: Vec<u8>,
    },
    /// The kernel can't execute programs of the step's platform.
    #[error(
        "exec: \"{program}\": this machine can't run programs for {platform}: {}",
        if *handler_is_lost { "its emulator is not found in the sandbox" } else { "no emulator is registered for it" }
    )]
    NoEmulator {
        /// The platform.
        platform: String,
        /// The program.
        program: String,
        /// A handler is registered, but its program can't be found from within the image.
        handler_is_lost: bool,
    },
    /// A secret that is required was not given.
    #[error("secret `{id}`: not found")]
    NoSecret {
        /// Its name.
        id: String,
    },
    /// An ssh agent that is required was not given.
    #[error("ssh agent `{id}`: not found")]
    NoAgent {
        /// Its name.
        id: String,
    },
    /// An ssh agent that was given can't be reached.
    #[error("cannot reach the ssh agent `{id}`")]
    Agent {
        /// Its name.
        id: String,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The sandbox could not be made.
    #[error(transparent)]
    Sandbox(#[from] RunError),
    /// Files could not be copied.
    #[error(transparent)]
    File(#[from] FileError),
    /// The context could not be read.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// A download failed.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// A git repository could not be fetched.
    #[error(transparent)]
    Git(#[from] GitError),
    /// It is not in the lock file, or not what that says.
    #[error(transparent)]
    Pins(#[from] PinError),
    /// A layer could not be written.
    #[error(transparent)]
    Upper(#[from] UpperError),
    /// The layers below could not be read.
    #[error(transparent)]
    View(#[from] ViewError),
    /// The file system refused.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// A layer of a base image could not be unpacked.
    #[error("cannot unpack the layer {digest}")]
    Unpack {
        /// The blob.
        digest: String,
        /// Why.
        #[source]
        cause: UnpackBlobError,
    },
    /// What a name stands for is not an image that can be used.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A registry refused, failed or could not be reached.
    #[error(transparent)]
    Registry(#[from] kiln_registry_client::Error),
    /// The store can't be used.
    #[error(transparent)]
    Store(#[from] kiln_store::Error),
}

/// Why what a name stands for can't be used as an image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The store has no image of this name.
    #[error("there is no image `{name}` in the store")]
    NotFound {
        /// The name.
        name: String,
    },
    /// The index has no manifest for the platform.
    #[error("{name} has no image for {wanted}; it has {}", if offered.is_empty() { "none at all".to_owned() } else { offered.join(", ") })]
    NoPlatform {
        /// The name.
        name: String,
        /// The platform.
        wanted: String,
        /// What there is.
        offered: Vec<String>,
    },
    /// An index joins more images than the store has.
    #[error(
        "{name} is an index of which the store lacks the image for {missing}; `kiln pull --all-platforms` fetches all of them"
    )]
    NotAllPlatforms {
        /// The name.
        name: String,
        /// The platform, or the digest.
        missing: String,
    },
    /// It breaks the specification.
    #[error("{name} can't be used: {reason}")]
    Invalid {
        /// The name, the archive or the digest.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A layer is known, but neither in the store nor to be had from a registry.
    #[error("the layer {digest} is neither in the store nor is a registry known that has it")]
    LayerLost {
        /// Which one.
        digest: String,
    },
    /// Two platforms have a file of the same name, and one folder.
    #[error("cannot overwrite `{path}` from {} with that of {} when `platform-split` is off", platforms[0], platforms[1])]
    SameFile {
        /// The file.
        path: String,
        /// The platforms.
        platforms: [String; 2],
    },
    /// A layer of a base can't be packed anew.
    #[error("cannot change the form of the layer {digest}")]
    Repack {
        /// Its blob.
        digest: String,
        /// Why.
        #[source]
        cause: kiln_store::layer::RepackError,
    },
    /// The tree of a layer is not what it was when it was made.
    #[error("the files of layer {layer} were changed in the store")]
    LayerChanged {
        /// Which one.
        layer: String,
    },
}

macro_rules! through_step {
    ($($error:ty),*) => {
        $(impl From<$error> for Error {
            fn from(error: $error) -> Self {
                Error::Unplaced(Box::new(error.into()))
            }
        })*
    };
}
through_step!(FileError, HttpError, UpperError, ViewError, FsError, RunError);

impl Error {
    /// Which sort of failure it is.
    pub fn kind(&self) -> Kind {
        if out_of_space(self) {
            return Kind::Store;
        }
        if self.pins().is_some() {
            return Kind::Dockerfile;
        }
        match self {
            Error::Dockerfile { .. } | Error::Pins(_) => Kind::Dockerfile,
            Error::Context(ContextError::Git(GitError::NoGit { .. })) => Kind::Host,
            Error::Context(ContextError::NoDockerfile { .. } | ContextError::Text { .. } | ContextError::Ignore { .. }) => {
                Kind::Dockerfile
            }
            Error::Step { cause, .. } | Error::Unplaced(cause) => cause.kind(),
            // It is not a registry's fault that the store has no such image.
            Error::Image(ImageError::NotFound { .. } | ImageError::SameFile { .. }) => Kind::Build,
            Error::Registry(_)
            | Error::Image(_)
            | Error::Daemon(_)
            | Error::NamedDaemon { .. }
            | Error::CachePlace(_)
            | Error::CachedLayerLost { .. } => Kind::Registry,
            Error::Store(_) => Kind::Store,
            Error::Interrupted => Kind::Interrupted,
            Error::System { .. } | Error::Host(_) => Kind::Host,
            Error::Internal { .. } => Kind::Bug,
            Error::ReadInput { .. }
            | Error::Output { .. }
            | Error::Context(_)
            | Error::Pack(_)
            | Error::PackCompressed(_)
            | Error::Archive { .. }
            | Error::WriteArchive(_) => Kind::Build,
        }
    }

    /// What to do about it, where that can be said.
    pub fn hint(&self) -> Option<String> {
        if out_of_space(self) {
            return Some(
                "free some space, for instance with `kiln prune`, or put the store on another disk with `--root`".to_owned(),
            );
        }
        if let Some(error) = self.pins() {
            return Some(error.hint().to_owned());
        }
        match self {
            Error::Step { meant: Some(meant), .. } => Some(meant.clone()),
            Error::Registry(error) => error.hint(),
            Error::NamedDaemon { by, .. } => Some(format!(
                "start it, or see to it that this user may speak to it, or change {by}; kiln's own store keeps the image in any case"
            )),
            Error::Store(kiln_store::Error::BadRecord { .. } | kiln_store::Error::UnreadableFormat { .. }) => {
                Some("`kiln fsck` tells what is damaged, `kiln fsck --repair` fetches or removes it".to_owned())
            }
            Error::Store(kiln_store::Error::ForeignIds { path, .. }) => Some(format!(
                "put the old lines into /etc/subuid and /etc/subgid again, or remove the store (with the rights of root: `rm -r {}`), \
                 or use another one with `--root`",
                path.display()
            )),
            Error::Host(error) => Some(host_hint(error)),
            Error::Step { cause, .. } | Error::Unplaced(cause) => match &**cause {
                StepError::Registry(error) => error.hint(),
                StepError::NoSecret { id } => {
                    Some(format!("give it with `--secret id={id},src=FILE` or `--secret id={id},env=NAME`"))
                }
                StepError::NoAgent { id } if id == "default" => Some(crate::ops::git::GIVE_AGENT.to_owned()),
                StepError::Git(error) => error.hint().map(str::to_owned),
                StepError::NoAgent { id } => Some(format!("give it with `--ssh {id}=SOCKET` or `--ssh {id}=KEYFILE`")),
                StepError::NoEmulator { handler_is_lost, .. } => Some(emulator_hint(*handler_is_lost)),
                StepError::File(error) => error.hint().map(str::to_owned),
                StepError::Sandbox(RunError::Exec { source, .. }) if is_no_program(source) => Some(
                    "it is a program for another processor (`--platform` builds for that), or a script without `#!`".to_owned(),
                ),
                StepError::Sandbox(error) if cause.kind() == Kind::Host => Some(host_hint(error)),
                _ => None,
            },
            Error::Context(ContextError::Git(error)) => error.hint().map(str::to_owned),
            Error::Image(ImageError::NotFound { name }) => {
                Some(format!("`kiln images` lists what there is; `kiln pull {name}` fetches it"))
            }
            Error::Image(ImageError::LayerChanged { .. }) => Some(
                "remove what stands on it (`kiln rmi`, `kiln prune -a`) and build again; look for who can write there".to_owned(),
            ),
            _ => None,
        }
    }

    /// What of it a lock file has to do with.
    fn pins(&self) -> Option<&PinError> {
        let (http, git) = match self {
            Error::Pins(error) => return Some(error),
            Error::Context(ContextError::Http(error)) => (Some(error), None),
            Error::Context(ContextError::Git(error)) => (None, Some(error)),
            Error::Step { cause, .. } | Error::Unplaced(cause) => match &**cause {
                StepError::Pins(error) => return Some(error),
                StepError::Http(error) => (Some(error), None),
                StepError::Git(error) => (None, Some(error)),
                _ => return None,
            },
            _ => return None,
        };
        match (http, git) {
            (Some(HttpError::Pins(error)), _) | (_, Some(GitError::Pins(error))) => Some(error),
            _ => None,
        }
    }

    pub(crate) fn internal<E: StdError + Send + Sync + 'static>(operation: &'static str) -> impl FnOnce(E) -> Error {
        move |cause| Error::Internal { operation, cause: Box::new(cause) }
    }

    pub(crate) fn output(path: &Path) -> impl FnOnce(io::Error) -> Error + '_ {
        move |cause| Error::Output { path: path.to_owned(), cause }
    }
}

impl StepError {
    fn kind(&self) -> Kind {
        match self {
            StepError::Registry(_) | StepError::Image(_) | StepError::Unpack { .. } => Kind::Registry,
            StepError::Store(_) => Kind::Store,
            StepError::Sandbox(error) => match error {
                RunError::User(_)
                | RunError::WorkingDirectory { .. }
                | RunError::ProgramNotFound { .. }
                | RunError::Exec { .. }
                | RunError::Target { .. }
                | RunError::Invalid { .. } => Kind::Build,
                _ => Kind::Host,
            },
            StepError::Git(GitError::NoGit { .. }) | StepError::Context(ContextError::Git(GitError::NoGit { .. })) => Kind::Host,
            StepError::NoEmulator { .. } => Kind::Host,
            StepError::Command { .. }
            | StepError::NoSecret { .. }
            | StepError::NoAgent { .. }
            | StepError::Agent { .. }
            | StepError::Git(_)
            | StepError::Pins(_)
            | StepError::File(_)
            | StepError::Context(_)
            | StepError::Http(_)
            | StepError::Upper(_)
            | StepError::View(_)
            | StepError::Fs(_) => Kind::Build,
        }
    }
}

/// What a person can do about a host that gives no sandbox.
fn host_hint(error: &RunError) -> String {
    match error {
        RunError::KernelFeature { feature, .. } => {
            format!("a kernel with {feature} is needed for RUN; builds without RUN work on this one")
        }
        RunError::Unavailable { remedy, .. } => format!("{remedy}; builds without RUN work here as it is"),
        _ => "`kiln doctor` tells what this machine offers to RUN; builds without RUN work here".to_owned(),
    }
}

fn is_no_program(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::NOEXEC.raw_os_error())
}

/// What a person can do about a machine without an emulator.
fn emulator_hint(handler_is_lost: bool) -> String {
    match handler_is_lost {
        false => {
            "install one that registers itself with binfmt_misc (Debian: `apt install qemu-user-static binfmt-support`), or \
                  use `FROM --platform=$BUILDPLATFORM` for stages whose commands can run anywhere"
                .to_owned()
        }
        true => "register it with the flag F (see /proc/sys/fs/binfmt_misc), or, if one is registered so, see whether the image \
                 holds the program's dynamic linker"
            .to_owned(),
    }
}

/// Whether a full disk or a full quota is at the bottom of it.
fn out_of_space(error: &Error) -> bool {
    // A registry's error tells its cause in its own line and names no source.
    let registry = match error {
        Error::Registry(registry) => Some(registry),
        Error::Step { cause, .. } | Error::Unplaced(cause) => match &**cause {
            StepError::Registry(registry) => Some(registry),
            _ => None,
        },
        _ => None,
    };
    if let Some(kiln_registry_client::ErrorKind::Local(io)) = registry.map(kiln_registry_client::Error::kind) {
        return is_full(io);
    }
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = next {
        if error.downcast_ref::<io::Error>().is_some_and(is_full) {
            return true;
        }
        next = error.source();
    }
    false
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn first_message(diagnostics: &[Diagnostic]) -> String {
    diagnostics.first().map(|d| d.message.clone()).unwrap_or_default()
}
