//! Hides nothing: what a build is to do, after the command line's flags became meaning.

use std::path::PathBuf;
use std::time::SystemTime;

use kiln_frontend::graph::NetworkMode;
use kiln_oci::digest::Digest;
use kiln_oci::platform::Platform;
use kiln_oci::reference::Reference;
use kiln_runner::{GroupLimits, Limit};

use crate::attest::AttestationRequest;
use crate::grant::Grants;
use crate::ops::failed::OnFailure;
use crate::ops::git::GitEnvironment;
use crate::pins::Pins;
pub use crate::remote_cache::request::CacheRequest;

mod output;

pub use output::{Annotations, ArchiveFormat, Destination, FilesForm, FolderMode, ImageOptions, Name, Output, Scope};

/// One build, complete and valid.
#[derive(Debug, Clone)]
pub struct BuildRequest {
    /// What `COPY` takes its files from.
    pub context: ContextSource,
    /// `--build-context`: what takes the place of the stage or image of a name, in the order given.
    pub named_contexts: Vec<(String, NamedSource)>,
    /// Where the Dockerfile is.
    pub dockerfile: DockerfileSource,
    /// What the Dockerfile is told: arguments, labels, target.
    pub language: LanguageOptions,
    /// Which cached results may be used.
    pub caching: Caching,
    /// Lines for `/etc/hosts` in RUN: name and address.
    pub extra_hosts: Vec<(String, String)>,
    /// The size of `/dev/shm` in RUN, in bytes.
    pub shm_size: Option<u64>,
    /// Limits of single processes in RUN, besides the usual ones.
    pub limits: Vec<Limit>,
    /// Limits of all processes of a RUN together.
    pub group: GroupLimits,
    /// Secrets, agents and rights that RUN and ADD may use.
    pub grants: Grants,
    /// What is to be done when a RUN fails.
    pub on_failure: OnFailure,
    /// The platforms of the image, at least one; several make an index.
    pub platforms: Vec<Platform>,
    /// Names for the image in the store, when there are no outputs.
    pub tags: Vec<Reference>,
    /// What is to become of the image; without any, the store keeps it.
    pub outputs: Vec<Output>,
    /// Caches that are shared with others.
    pub caches: CacheRequest,
    /// Whether what the build stands on is written down or was.
    pub pins: Pins,
    /// What git sees of the process's environment.
    pub git: GitEnvironment,
    /// Whether the trees of all layers of the result are proved to be what they were.
    pub verify_layers: bool,
    /// What is said about the image beside it.
    pub attestations: AttestationRequest,
    /// The one clock value of the build: `created` of the image and its history.
    pub clock: SystemTime,
}

/// What `COPY` takes its files from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContextSource {
    /// A folder.
    Folder(PathBuf),
    /// Nothing: the Dockerfile came from standard input.
    Empty,
    /// An archive, compressed or not, on standard input.
    Archive {
        /// What was read of it already, to see what it is.
        start: Vec<u8>,
    },
    /// An http or https address of an archive, or else of a Dockerfile.
    Http(String),
    /// The address of a git repository, with the reference and the folder that it names.
    Git(String),
}

/// What a named context is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamedSource {
    /// Files.
    Files(ContextSource),
    /// An image of a registry or of the store (`docker-image://`).
    Image(Reference),
    /// An image in a folder (`oci-layout://`).
    Layout {
        /// The folder.
        folder: PathBuf,
        /// Which image of it.
        image: LayoutImage,
    },
}

/// Which image of an OCI image layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LayoutImage {
    /// The one with the tag `latest`, or the only one.
    Default,
    /// The one with this tag.
    Tag(String),
    /// The one with this digest.
    Digest(Digest),
}

/// Where the Dockerfile is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DockerfileSource {
    /// `Dockerfile` in the context, or else `dockerfile`.
    Default,
    /// A path: relative ones count from the current folder, as `docker build -f` takes them.
    Path(PathBuf),
    /// A path in the context, from where no symbolic link may lead out.
    InContext(PathBuf),
    /// An http or https address.
    Http(String),
    /// Its bytes, read from standard input.
    Bytes(Vec<u8>),
}

/// What the Dockerfile is told from outside.
#[derive(Debug, Clone)]
pub struct LanguageOptions {
    /// `--build-arg`, with values.
    pub build_args: Vec<(String, String)>,
    /// `--target`.
    pub target: Option<String>,
    /// `--label`.
    pub labels: Vec<(String, String)>,
    /// Predefined proxy arguments from the environment: set in RUN, in no cache key.
    pub proxy_args: Vec<(String, String)>,
    /// `--network`.
    pub network: NetworkMode,
}

/// Which cached results may be used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caching {
    /// `--no-cache`: none.
    pub disabled: bool,
    /// `--no-cache-filter`: none of these stages.
    pub disabled_stages: Vec<String>,
    /// `--pull`: ask the registry what a tag means now, even when the store knows an image of that name.
    pub pull: bool,
}
