//! Hides nothing: the words in which `lower` tells a solver what to do. A [`Graph`] holds only vertices that the
//! target needs, in an order in which every input comes before its user.

use std::collections::BTreeSet;

use kiln_oci::digest::Digest;
use kiln_oci::path::ImagePath;
use kiln_oci::platform::Platform;
use kiln_oci::reference::Reference;

use crate::source::Span;

/// What is to be done, as a directed graph without cycles.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    /// Topologically ordered: inputs have smaller ids.
    pub vertices: Vec<Vertex>,
}

impl Graph {
    /// The vertex of an id that this graph gave out.
    #[must_use]
    pub fn get(&self, id: VertexId) -> Option<&Vertex> {
        self.vertices.get(id.0)
    }
}

/// The place of a vertex in [`Graph::vertices`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VertexId(pub usize);

/// A file system to start from; `None` is `scratch`, the empty root.
pub type Input = Option<VertexId>;

/// One step.
#[derive(Debug, Clone)]
pub struct Vertex {
    /// The text BuildKit's progress shows: `[stage-1 2/5] RUN make`, or `[2/5] RUN make` when the file has one stage.
    pub name: String,
    /// The instruction this came from.
    pub span: Option<Span>,
    /// The name of the stage this belongs to, or its number; for `--no-cache-filter` and progress.
    pub stage: String,
    /// Whether a cached result may not be used (`--no-cache-filter`).
    pub no_cache: bool,
    /// The platform the step runs for.
    pub platform: Platform,
    /// What to do.
    pub op: Op,
}

/// What a step does.
#[derive(Debug, Clone)]
pub enum Op {
    /// Provides the file system of an image.
    Image(ImageOp),
    /// Runs a command.
    Exec(ExecOp),
    /// Copies files.
    Copy(CopyOp),
    /// Makes a working directory.
    Workdir(WorkdirOp),
    /// Provides the files of a build context as a file system.
    Context(ContextOp),
}

impl Op {
    /// The file system this step changes; `None` for an image.
    #[must_use]
    pub fn parent(&self) -> Input {
        match self {
            Op::Image(_) | Op::Context(_) => None,
            Op::Exec(op) => op.parent,
            Op::Copy(op) => op.parent,
            Op::Workdir(op) => op.parent,
        }
    }

    /// Every vertex that must be there first, each once, smallest id first.
    #[must_use]
    pub fn inputs(&self) -> Vec<VertexId> {
        let mut ids: BTreeSet<VertexId> = self.parent().into_iter().collect();
        match self {
            Op::Image(_) | Op::Context(_) | Op::Workdir(_) => {}
            Op::Exec(op) => {
                for mount in &op.mounts {
                    match &mount.kind {
                        MountKind::Bind(bind) => ids.extend(bind.from.vertex()),
                        MountKind::Cache(cache) => ids.extend(cache.from.and_then(MountFrom::vertex)),
                        MountKind::Tmpfs { .. } | MountKind::Secret(_) | MountKind::Ssh(_) => {}
                    }
                }
            }
            Op::Copy(op) => {
                if let CopyFrom::Vertex(input) = op.from {
                    ids.extend(input);
                }
            }
        }
        ids.into_iter().collect()
    }
}

/// The file system of a pinned image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageOp {
    /// As the Dockerfile names it, with defaults filled in.
    pub reference: Reference,
    /// The platform that was asked for.
    pub platform: Platform,
    /// The digest of the manifest that [`crate::BaseImage`] pinned.
    pub digest: Digest,
}

/// All files of a build context, owned by root, as the file system of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContextOp {
    /// Which context.
    pub context: ContextId,
}

/// One of the build contexts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum ContextId {
    /// The one that instructions take files from when they name none.
    #[default]
    Main,
    /// One that was given a name: its place in [`crate::LowerOptions::contexts`].
    Named(usize),
}

/// A `RUN`.
#[derive(Debug, Clone)]
pub struct ExecOp {
    /// The root file system to run on.
    pub parent: Input,
    /// The command, never empty.
    pub args: Vec<String>,
    /// The complete environment in order: the image's `ENV` (with a default `PATH`) and the `ARG`s in scope.
    pub env: Vec<(String, String)>,
    /// Proxy variables that were not declared: they are set for the command but belong to no cache key.
    pub proxy_env: Vec<(String, String)>,
    /// Where to run; made (0755, root) if absent.
    pub cwd: ImagePath,
    /// As `USER` spells it; empty means root.
    pub user: String,
    /// Which network the command sees.
    pub network: NetworkMode,
    /// In the order of the flags.
    pub mounts: Vec<Mount>,
    /// Files that exist only while the command runs, read-only: here-documents that start with `#!`.
    pub files: Vec<InlineFile>,
    /// The name of the machine that the command sees.
    pub hostname: String,
    /// How strictly the command is confined.
    pub security: SecurityMode,
    /// Lines for `/etc/hosts`: name and address.
    pub extra_hosts: Vec<(String, String)>,
}

/// Which network a command sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum NetworkMode {
    /// What the builder provides by default.
    #[default]
    Default,
    /// The host's network.
    Host,
    /// A loopback device only.
    None,
    /// One of its own from which the host's networks can be reached. No Dockerfile can ask for it, only a build.
    Private,
}

/// How strictly a command is confined (`RUN --security`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum SecurityMode {
    /// The default confinement.
    #[default]
    Sandbox,
    /// All capabilities and no filter; needs `--allow security.insecure`.
    Insecure,
}

/// A file that is mounted for one command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InlineFile {
    /// Where the command sees it.
    pub path: ImagePath,
    /// Its content.
    pub data: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
}

/// A `RUN --mount`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where the command sees it.
    pub target: ImagePath,
    /// What is seen there.
    pub kind: MountKind,
}

/// What a mount shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountKind {
    /// Files of the context, a stage or an image.
    Bind(BindMount),
    /// A directory that lives from build to build.
    Cache(CacheMount),
    /// Memory.
    Tmpfs {
        /// The largest size in bytes; `None` for the kernel's default.
        size: Option<u64>,
    },
    /// A value that nothing keeps.
    Secret(SecretMount),
    /// The socket of an ssh agent.
    Ssh(SshMount),
}

/// A `type=bind` mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindMount {
    /// What to take the files from.
    pub from: MountFrom,
    /// The path in there.
    pub source: ImagePath,
    /// Whether the command may write; what it writes is dropped.
    pub writable: bool,
}

/// A `type=cache` mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheMount {
    /// The identity, with the `BUILDKIT_CACHE_MOUNT_NS` namespace (`ns/id`) if there is one.
    pub id: String,
    /// What happens when two commands want it at once.
    pub sharing: Sharing,
    /// What a new directory is filled with; `None` leaves it empty.
    pub from: Option<MountFrom>,
    /// The path in `from`, and in the directory.
    pub source: ImagePath,
    /// Permission bits of a new directory.
    pub mode: u32,
    /// Owner of a new directory.
    pub uid: u32,
    /// Group of a new directory.
    pub gid: u32,
    /// Whether the command may only read.
    pub readonly: bool,
}

/// A `type=secret` mount. Without the value the command runs without it, unless it is required.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretMount {
    /// Under which name the value was given to the build.
    pub id: String,
    /// Whether the value is shown as a file at the mount's target.
    pub file: bool,
    /// The environment variable that holds the value.
    pub env: Option<String>,
    /// Permission bits of the file.
    pub mode: u32,
    /// Owner of the file.
    pub uid: u32,
    /// Group of the file.
    pub gid: u32,
    /// Whether the step fails without the value.
    pub required: bool,
}

/// A `type=ssh` mount; [`ExecOp::env`] says where the first one is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshMount {
    /// Under which name the agent was given to the build.
    pub id: String,
    /// Permission bits of the socket.
    pub mode: u32,
    /// Owner of the socket.
    pub uid: u32,
    /// Group of the socket.
    pub gid: u32,
    /// Whether the step fails without the agent.
    pub required: bool,
}

/// What two commands that want one cache mount do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum Sharing {
    /// Both use it at once.
    #[default]
    Shared,
    /// The second gets a directory of its own.
    Private,
    /// The second waits.
    Locked,
}

/// What a mount takes its files from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountFrom {
    /// A build context.
    Context(ContextId),
    /// A stage or image; `None` in it is the empty root.
    Vertex(Input),
}

impl MountFrom {
    fn vertex(self) -> Option<VertexId> {
        match self {
            MountFrom::Context(_) => None,
            MountFrom::Vertex(input) => input,
        }
    }
}

/// A `WORKDIR`: `mkdir -p` with mode 0755; the parts that are made belong to `user`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkdirOp {
    /// The root file system to change.
    pub parent: Input,
    /// Never `/`.
    pub path: ImagePath,
    /// As `USER` spells it; empty means root.
    pub user: String,
}

/// A `COPY` or `ADD`.
#[derive(Debug, Clone)]
pub struct CopyOp {
    /// The root file system to change.
    pub parent: Input,
    /// What [`CopySource::Path`]s are looked up in.
    pub from: CopyFrom,
    /// In order.
    pub sources: Vec<CopySource>,
    /// Where to.
    pub dest: ImagePath,
    /// Whether `dest` was written as a directory: a trailing slash, `.`, or a last part `.`.
    pub dest_is_dir: bool,
    /// `--chown`, expanded.
    pub chown: Option<String>,
    /// `--chmod`, expanded: octal digits or symbolic.
    pub chmod: Option<String>,
    /// `--link`.
    pub link: bool,
    /// `--parents`.
    pub parents: bool,
    /// `--exclude`, in the syntax of `.dockerignore`.
    pub exclude: Vec<String>,
    /// Whether this is `ADD`.
    pub is_add: bool,
    /// `--unpack`; `None` unpacks local archives of `ADD` and nothing else.
    pub unpack: Option<bool>,
    /// `--checksum` of an `ADD` of one address.
    pub checksum: Option<Checksum>,
    /// `--keep-git-dir`.
    pub keep_git_dir: Option<bool>,
}

/// Where a `COPY` takes files from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyFrom {
    /// A build context.
    Context(ContextId),
    /// A stage or image; `None` in it is the empty root.
    Vertex(Input),
}

/// What `--checksum` says of an `ADD` of one address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checksum {
    /// The digest of a file.
    Digest(Digest),
    /// How the id of a git commit begins: lower-case hexadecimal digits.
    Commit(String),
}

/// One source of a `COPY` or `ADD`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopySource {
    /// An expanded pattern, as typed.
    Path(String),
    /// An `http` or `https` address.
    Http(String),
    /// A here-document; expanded.
    Inline {
        /// The delimiter, which is the name of the file.
        name: String,
        /// The content.
        data: Vec<u8>,
    },
    /// A git address.
    Git(String),
}
