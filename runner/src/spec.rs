//! What to run: the words in which the rest of kiln asks for a sandbox, free of how the kernel gives one.

use std::ffi::OsString;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One command and the world that it sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunSpec {
    /// Where the root file system comes from.
    pub root: RootFs,
    /// In the mode [`crate::Mode::Chroot`], where nothing can be mounted over anything: an empty directory on the root's file system
    /// for what has to give way in the root while the command runs.
    pub aside: Option<PathBuf>,
    /// The command: `args[0]` is looked up in the `PATH` of [`RunSpec::env`] when it holds no slash.
    pub args: Vec<OsString>,
    /// The whole environment, in this order; nothing of kiln's own environment is added. `HOME` is appended from the
    /// image's passwd file when it is absent or empty.
    pub env: Vec<(OsString, OsString)>,
    /// Absolute working directory inside the root; made (0755, root) when it is missing.
    pub cwd: PathBuf,
    /// `USER` in Dockerfile syntax: empty, `name`, `uid`, `name:group`, `uid:gid` and mixtures, resolved with the root's
    /// `/etc/passwd` and `/etc/group`.
    pub user: String,
    /// The host name that the command sees.
    pub hostname: String,
    /// Which network the command sees.
    pub network: Network,
    /// Mounts besides the standard ones, attached in this order.
    pub mounts: Vec<Mount>,
    /// Further lines of `/etc/hosts`: (name, address). The address `host-gateway` stands for one at which the host is reached; in a
    /// private network that opens the host's loopback.
    pub extra_hosts: Vec<(String, String)>,
    /// Size of `/dev/shm` in bytes.
    pub shm_size: u64,
    /// Most processes and threads that may exist in the sandbox at once (enforced where a pids cgroup can be had).
    pub pids: u64,
    /// How tight the sandbox is.
    pub security: Security,
    /// Limits of single processes besides the usual ones; of two for one resource the later counts.
    pub limits: Vec<Limit>,
    /// Limits of all processes together.
    pub group: GroupLimits,
    /// How changes of owner and device nodes are written down instead of made, where the sandbox has one id only.
    pub recorder: Option<Recorder>,
    /// Where the command's standard streams lead.
    pub streams: Streams,
    /// Nothing of the root file system can be changed.
    pub readonly_root: bool,
}

/// Where the command's standard streams lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Streams {
    /// Nothing comes in; what goes out is handed to the caller.
    Captured,
    /// To the caller's own standard streams, which the command holds itself; except that it never holds the caller's terminal: what
    /// of them is one is relayed, so that the command sees a pipe, and what it writes there is handed to the caller.
    Inherited {
        /// With standard input; without, there is none.
        input: bool,
    },
    /// To a terminal of the sandbox's own. What is typed comes from the caller's standard input, which is in raw mode meanwhile if it
    /// is a terminal; what is shown is handed to the caller.
    Terminal {
        /// With standard input; without, nothing is ever typed.
        input: bool,
    },
}

/// The names under which a run writes down what the kernel can't hold: owners that have no id in its user namespace, and device
/// nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorder {
    /// Extended attribute of a regular file or directory: `UID:GID` in decimal. Absent for what nobody gave away; a `chown` to
    /// `0:0` is written too, for in a directory with set-group-id, or of another user's making, it isn't the same as none.
    pub owner_attribute: String,
    /// Extended attribute of an empty regular file that stands for a device node: `c MAJOR:MINOR` or `b MAJOR:MINOR`.
    pub node_attribute: String,
    /// Whose the symbolic links, fifos and sockets are that the run finds, by their paths in the root without a slash before:
    /// those that are others' than root's.
    pub known: Vec<(Vec<u8>, u32, u32)>,
    /// Whether `stat` and its like tell the recorded owners to a command that runs as root, as it would where they are real.
    pub show: bool,
}

impl RunSpec {
    /// Host name that builds are used to (BuildKit's).
    pub const HOSTNAME: &'static str = "buildkitsandbox";

    /// `args` in `root` as root in `/`, with an empty environment, the host's network and the usual limits.
    pub fn new(root: RootFs, args: Vec<OsString>) -> RunSpec {
        RunSpec {
            root,
            aside: None,
            args,
            env: Vec::new(),
            cwd: PathBuf::from("/"),
            user: String::new(),
            hostname: RunSpec::HOSTNAME.to_owned(),
            network: Network::Host,
            mounts: Vec::new(),
            extra_hosts: Vec::new(),
            shm_size: 64 << 20,
            pids: 16_384,
            security: Security::Sandbox,
            limits: Vec::new(),
            group: GroupLimits::default(),
            recorder: None,
            streams: Streams::Captured,
            readonly_root: false,
        }
    }
}

/// The root file system.
///
/// With [`RootFs::Overlay`], what the command changes is complete in `upper` when [`crate::run`] returns, with the overlay
/// unmounted. The overlay is mounted `volatile`: no `fsync` of the command reaches the disk, so whoever names the result
/// durably has to `syncfs` first. `work` then holds the kernel's leftovers and must be removed, never used again (the kernel
/// refuses it after a volatile mount); `upper` may be a lower of later overlays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootFs {
    /// An overlay of layer directories.
    Overlay {
        /// Read-only layers, top first; may be empty.
        lowers: Vec<PathBuf>,
        /// Takes the changes. Its own mode and owner are what the command sees at `/`.
        upper: PathBuf,
        /// Empty directory on the same file system as `upper`.
        work: PathBuf,
    },
    /// A plain directory, changed in place.
    Dir(PathBuf),
}

/// Which network the command sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Network {
    /// The host's, with its `/etc/resolv.conf`.
    Host,
    /// A network namespace with only a loopback interface.
    None,
    /// A network namespace from which the host's networks can be reached, but not the host's loopback, by way of the program `pasta`.
    Private,
}

/// How tight the sandbox is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Security {
    /// Docker's 14 default capabilities, set-user-id programs work.
    Sandbox,
    /// Podman's 11 default capabilities, and `no_new_privs`.
    Hardened,
    /// Hardly at all: every capability that kiln has, all system calls, nothing of `/proc` and `/sys` hidden or read-only, and the
    /// devices that virtual machines, tunnels and loop mounts need. The command can take the machine over.
    Insecure,
}

/// How much all processes of a run may use together, where control groups can be had ([`crate::Host::lacks`]).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupLimits {
    /// Processes and threads; [`RunSpec::pids`] if nothing is said, which counts only where it can be had.
    pub pids: Option<u64>,
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Bytes of memory and swap; `Some(None)` is no limit of swap, `None` is as much swap as memory.
    pub memory_and_swap: Option<Option<u64>>,
    /// The weight against other groups, 2 to 262144; 1024 is the usual.
    pub cpu_shares: Option<u64>,
    /// In so many microseconds …
    pub cpu_period: Option<u64>,
    /// … so many may be used, by all processors.
    pub cpu_quota: Option<u64>,
    /// The processors that may be used, as in `0-2,7`.
    pub cpus: Option<String>,
    /// The nodes whose memory may be used.
    pub memory_nodes: Option<String>,
    /// The group below which that of the run is made, from the top of the hierarchies; kiln's own if there is none.
    pub parent: Option<PathBuf>,
}

/// How much of something one process may use (`setrlimit(2)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Of what.
    pub resource: Resource,
    /// What counts at first; `None` is no limit.
    pub soft: Option<u64>,
    /// Up to which the command may raise that; `None` is no limit.
    pub hard: Option<u64>,
}

/// What a [`Limit`] is about, by the kernel's names, in the kernel's units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[allow(missing_docs, reason = "setrlimit(2) explains each under its name")]
pub enum Resource {
    Core,
    Cpu,
    Data,
    Fsize,
    Locks,
    Memlock,
    Msgqueue,
    Nice,
    Nofile,
    Nproc,
    Rss,
    Rtprio,
    Rttime,
    Sigpending,
    Stack,
}

impl Resource {
    const ALL: [(&'static str, Resource); 15] = [
        ("core", Resource::Core),
        ("cpu", Resource::Cpu),
        ("data", Resource::Data),
        ("fsize", Resource::Fsize),
        ("locks", Resource::Locks),
        ("memlock", Resource::Memlock),
        ("msgqueue", Resource::Msgqueue),
        ("nice", Resource::Nice),
        ("nofile", Resource::Nofile),
        ("nproc", Resource::Nproc),
        ("rss", Resource::Rss),
        ("rtprio", Resource::Rtprio),
        ("rttime", Resource::Rttime),
        ("sigpending", Resource::Sigpending),
        ("stack", Resource::Stack),
    ];

    /// The resource of a lower-case name without `RLIMIT_`, as `docker build --ulimit` takes it.
    pub fn from_name(name: &str) -> Option<Resource> {
        Resource::ALL.iter().find(|(known, _)| *known == name).map(|(_, resource)| *resource)
    }

    /// That name.
    pub fn name(self) -> &'static str {
        Resource::ALL[self as usize].0
    }
}

/// One mount besides the standard ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Absolute path in the sandbox; symbolic links in it are followed inside the root. Missing directories (or the file, when
    /// the source is one) are made for the time of the run.
    pub target: PathBuf,
    /// What appears there.
    pub source: MountSource,
    /// Path below the source that is mounted instead of the whole; resolved inside the source, links never lead out of it.
    /// Empty or `/` is the whole.
    pub subpath: PathBuf,
    /// The command can't write through this mount.
    pub readonly: bool,
}

/// What a [`Mount`] shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountSource {
    /// A directory or file of the host. A trailing symbolic link is refused.
    Bind {
        /// Absolute host path.
        path: PathBuf,
    },
    /// An overlay of layer directories, e.g. another stage or the build context.
    Overlay {
        /// Layers, top first; at least one.
        lowers: Vec<PathBuf>,
        /// Where writes go; `None` makes the mount read-only.
        upper: Option<OverlayUpper>,
    },
    /// An empty memory file system, with the mode of the directory that it covers, or 1777.
    Tmpfs {
        /// Most bytes it holds; `None` is the kernel's default.
        size: Option<u64>,
    },
    /// A file with this content that exists nowhere on disk.
    File {
        /// The content.
        data: Vec<u8>,
        /// Permission bits.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
}

/// The writable part of a [`MountSource::Overlay`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverlayUpper {
    /// Takes the changes.
    pub upper: PathBuf,
    /// Empty directory on the same file system as `upper`.
    pub work: PathBuf,
}

/// Which of the command's streams some output came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// How the command ended.
    pub status: Status,
    /// Whether one of its processes was killed because the sandbox reached its memory limit.
    pub out_of_memory: bool,
    /// With a [`Recorder`]: whom symbolic links and fifos belong to, which can have no attribute. Each is the inode in the upper
    /// directory, the user and the group; what is not here belongs to [`Outcome::identity`] if the run made it.
    pub owners: Vec<(u64, u32, u32)>,
    /// With a [`Recorder`]: the user and the group that the command ran as, to whom belongs what it made and nobody gave away.
    pub identity: Option<(u32, u32)>,
    /// What the sandbox lacks that a command may need.
    pub warnings: Vec<String>,
}

/// How the command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// It exited with this code.
    Exited(i32),
    /// It was ended by this signal.
    Signaled(i32),
    /// It was ended because the sandbox reached its memory limit.
    OomKilled,
}

impl Status {
    /// Did the command exit with code 0?
    pub fn success(self) -> bool {
        self == Status::Exited(0)
    }

    /// The code that a shell would show: 128 + signal for a signal, 137 for lack of memory.
    pub fn code(self) -> i32 {
        match self {
            Status::Exited(code) => code,
            Status::Signaled(signal) => 128 + signal,
            Status::OomKilled => 137,
        }
    }
}
