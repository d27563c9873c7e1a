//! Hides clap: what was typed, as plain data. What it means is decided elsewhere.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use kiln_runner::Isolation;

use super::attest::AttestArgs;
use super::progress::Mode;

mod manifest;
mod run;

pub(crate) use manifest::{CreateArgs, ManifestArgs, ManifestCommand, ManifestInspectArgs};
pub(crate) use run::RunArgs;

/// Builds container images from Dockerfiles, without a daemon.
#[derive(Debug, Parser)]
#[command(name = "kiln", version, disable_version_flag = true, args_override_self = true)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: Global,
    /// Print the version
    #[arg(short = 'v', long, action = clap::ArgAction::Version)]
    version: (),
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags of every command.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// Folder of the store [env: KILN_ROOT; default: /var/lib/kiln for root, else $XDG_DATA_HOME/kiln]
    #[arg(long, global = true, value_name = "DIR", display_order = 900)]
    pub(crate) root: Option<PathBuf>,
    /// How commands are kept apart from this machine: default, root, rootless, one-id or chroot [env: KILN_ISOLATION]
    #[arg(long, global = true, value_name = "MODE", display_order = 900)]
    pub(crate) isolation: Option<Isolation>,
    /// Say more: full lint explanations, whole error chains
    #[arg(short = 'D', long, global = true, display_order = 901)]
    pub(crate) debug: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Build an image from a Dockerfile
    Build(Box<BuildArgs>),
    /// Run a command in an image; what it changes is thrown away
    Run(Box<RunArgs>),
    /// Build once more and compare with an image: the first path that differs is named, and the exit code is 1
    Verify(Box<VerifyArgs>),
    /// Upload an image to a registry
    Push(PushArgs),
    /// Download an image from a registry
    Pull(PullArgs),
    /// List images
    #[command(visible_alias = "ls")]
    Images(ImagesArgs),
    /// Give an image another name
    Tag(TagArgs),
    /// Remove one or more images
    Rmi(RmiArgs),
    /// Show images in full, as JSON
    Inspect(InspectArgs),
    /// Show the history of an image
    History(HistoryArgs),
    /// Join images of several platforms, and look into what is joined
    Manifest(ManifestArgs),
    /// Save one or more images to a tar archive (streamed to STDOUT by default)
    Save(SaveArgs),
    /// Load images from a tar archive or STDIN
    Load(LoadArgs),
    /// Log in to a registry
    Login(LoginArgs),
    /// Log out from a registry
    Logout(LogoutArgs),
    /// Remove what no image needs
    Prune(PruneArgs),
    /// Show disk usage
    Du(DuArgs),
    /// Check everything in the store against its digests and checksums
    Fsck(FsckArgs),
    /// Show what this machine offers to commands, which mode kiln chooses, and what would enable a better one
    Doctor(DoctorArgs),
    /// Show the version
    Version(VersionArgs),
    /// Print the completion script for a shell
    Completion(CompletionArgs),
}

impl Command {
    /// Whether it opens the store, where files belong to whom the sandbox's ids say.
    pub(crate) fn uses_store(&self) -> bool {
        !matches!(self, Command::Login(_) | Command::Logout(_) | Command::Version(_) | Command::Completion(_))
    }
}

/// `kiln build`.
#[derive(Debug, Clone, Args, Default)]
pub(crate) struct BuildArgs {
    /// Folder of the build context, address of a git repository or an archive, or `-` to read a Dockerfile or an archive from
    /// standard input
    #[arg(value_name = "PATH | URL | -")]
    pub(crate) context: OsString,
    /// Image name and optionally tag (format: `name:tag`)
    #[arg(short, long, value_name = "NAME")]
    pub(crate) tag: Vec<String>,
    /// Name of the Dockerfile (default: `PATH/Dockerfile`)
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Option<OsString>,
    /// Set build-time variables
    #[arg(long, value_name = "KEY[=VALUE]")]
    pub(crate) build_arg: Vec<String>,
    /// Set the target build stage to build
    #[arg(long, value_name = "STAGE")]
    pub(crate) target: Option<String>,
    /// Additional build contexts (format: `name=PATH`, `name=URL`, `name=docker-image://REF`, `name=oci-layout://DIR[:TAG]`)
    #[arg(long, value_name = "NAME=SOURCE")]
    pub(crate) build_context: Vec<String>,
    /// Shared cache that steps may come from: NAME of an image or cache, or type=registry|local|s3|gha,KEY=VALUE...
    #[arg(long, value_name = "CACHE")]
    pub(crate) cache_from: Vec<String>,
    /// Shared cache that steps are written to: NAME, or type=inline|registry|local|s3|gha,mode=min|max,KEY=VALUE...
    #[arg(long, value_name = "CACHE")]
    pub(crate) cache_to: Vec<String>,
    /// Do not use cache when building the image
    #[arg(long)]
    pub(crate) no_cache: bool,
    /// Do not cache specified stages
    #[arg(long, value_name = "STAGE", value_delimiter = ',')]
    pub(crate) no_cache_filter: Vec<String>,
    /// Prove before the export that nothing changed the files of the layers in the store
    #[arg(long)]
    pub(crate) verify_layers: bool,
    /// Always ask the registry for the images that are referenced
    #[arg(long)]
    pub(crate) pull: bool,
    /// Set metadata for an image
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) label: Vec<String>,
    /// Add annotation to the image (format: `[TYPE[PLATFORM],...:]key=value`, where TYPE is manifest, manifest-descriptor, index or
    /// index-descriptor)
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) annotation: Vec<String>,
    /// Push the image to the registries of its names
    #[arg(long)]
    pub(crate) push: bool,
    /// Keep the image in the store, which kiln always does
    #[arg(long)]
    pub(crate) load: bool,
    /// Output destination (format: `type=image|registry|oci|docker|local|tar|cacheonly[,KEY=VALUE]`)
    #[arg(short, long, value_name = "SPEC")]
    pub(crate) output: Vec<String>,
    /// Write the image ID to a file
    #[arg(long, value_name = "FILE")]
    pub(crate) iidfile: Option<PathBuf>,
    /// Write build result metadata to a file
    #[arg(long, value_name = "FILE")]
    pub(crate) metadata_file: Option<PathBuf>,
    /// Set type of progress output (auto, plain, tty, quiet, rawjson) [env: KILN_PROGRESS, BUILDKIT_PROGRESS]
    #[arg(long, value_name = "MODE")]
    pub(crate) progress: Option<Mode>,
    /// Suppress the build output and print image ID on success
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Set the networking mode for RUN: default, host, none or private
    #[arg(long, value_name = "MODE")]
    pub(crate) network: Option<String>,
    /// Add a custom host-to-IP mapping (format: `host:ip`)
    #[arg(long, value_name = "HOST:IP", value_delimiter = ',')]
    pub(crate) add_host: Vec<String>,
    /// Set target platforms for build, separated by commas
    #[arg(long, value_name = "PLATFORM")]
    pub(crate) platform: Vec<String>,
    /// Shared memory size for RUN
    #[arg(long, value_name = "BYTES")]
    pub(crate) shm_size: Option<String>,
    /// Limit what a process of RUN may use (format: `nofile=1024:4096`)
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    pub(crate) ulimit: Vec<String>,
    /// Secret to expose to the build (format: `id=mysecret[,src=/local/secret]`)
    #[arg(long, value_name = "SPEC")]
    pub(crate) secret: Vec<String>,
    /// SSH agent socket or keys to expose to the build (format: `default|id[=SOCKET|KEY[,KEY]]`)
    #[arg(long, value_name = "SPEC")]
    pub(crate) ssh: Vec<String>,
    /// Allow extra privileged entitlement (security.insecure)
    #[arg(long, value_name = "ENTITLEMENT")]
    pub(crate) allow: Vec<String>,
    /// When a RUN fails: open a shell in its place, copy files out of it (format: `shell[=PROGRAM]`,
    /// `export=DIR[,path=PATH...]`)
    #[arg(long, value_name = "ACTION")]
    pub(crate) on_failure: Vec<String>,
    /// Set method for evaluating the Dockerfile: build, check, outline or targets (format: `METHOD[,format=json]`)
    #[arg(long, value_name = "METHOD")]
    pub(crate) call: Option<String>,
    /// Shorthand for `--call=check`
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    pub(crate) check: Option<bool>,
    #[command(flatten)]
    pub(crate) pins: PinArgs,
    #[command(flatten)]
    pub(crate) resources: ResourceArgs,
    #[command(flatten)]
    pub(crate) ignored: IgnoredBuildArgs,
    #[command(flatten)]
    pub(crate) attest: AttestArgs,
}

/// `kiln verify`.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// The image, by name or ID; one that the store doesn't have is fetched from its registry
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
    /// Pass over the times of files, of the image and of its history
    #[arg(long)]
    pub(crate) ignore_timestamps: bool,
    /// Take steps from the cache, where `kiln verify` would run each of them
    #[arg(long)]
    pub(crate) use_cache: bool,
    /// Format output: text or json
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<String>,
    #[command(flatten)]
    pub(crate) build: BuildArgs,
}

/// What names stand for.
#[derive(Debug, Clone, Args, Default)]
pub(crate) struct PinArgs {
    /// Write down what the images, addresses and repositories of the build stand for now (default: `kiln.lock` beside the Dockerfile)
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    pub(crate) lock: Option<OsString>,
    /// Build from what the lock file says they stand for, and from nothing else
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    pub(crate) locked: Option<OsString>,
}

/// Limits of all processes of a RUN together.
#[derive(Debug, Clone, Args, Default)]
pub(crate) struct ResourceArgs {
    /// Limit what all processes of a RUN may use together (format: `memory=1g,cpu-quota=50000`; also memory-swap, cpus,
    /// cpu-shares, cpu-period, cpuset-cpus, cpuset-mems, pids-limit)
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) resource: Vec<String>,
    /// Set the control group below which those of RUN are made
    #[arg(long, value_name = "PATH")]
    pub(crate) cgroup_parent: Option<String>,
    #[arg(short, long, hide = true)]
    pub(crate) memory: Option<String>,
    #[arg(long, hide = true, allow_hyphen_values = true)]
    pub(crate) memory_swap: Option<String>,
    #[arg(short = 'c', long, hide = true)]
    pub(crate) cpu_shares: Option<String>,
    #[arg(long, hide = true)]
    pub(crate) cpu_period: Option<String>,
    #[arg(long, hide = true, allow_hyphen_values = true)]
    pub(crate) cpu_quota: Option<String>,
    #[arg(long, hide = true)]
    pub(crate) cpuset_cpus: Option<String>,
    #[arg(long, hide = true)]
    pub(crate) cpuset_mems: Option<String>,
    #[arg(long, hide = true)]
    pub(crate) cpus: Option<String>,
    #[arg(long, hide = true, allow_hyphen_values = true)]
    pub(crate) pids_limit: Option<String>,
}

/// Flags of `docker build` that change nothing here, or nothing any more; each is answered with a warning.
#[derive(Debug, Clone, Args, Default)]
pub(crate) struct IgnoredBuildArgs {
    #[arg(long, hide = true)]
    pub(crate) rm: bool,
    #[arg(long, hide = true)]
    pub(crate) force_rm: bool,
    #[arg(long, hide = true)]
    pub(crate) compress: bool,
    #[arg(long, hide = true)]
    pub(crate) squash: bool,
    #[arg(long, hide = true)]
    pub(crate) security_opt: Vec<String>,
    #[arg(long, hide = true)]
    pub(crate) builder: Option<String>,
}

impl IgnoredBuildArgs {
    /// The flags that were given.
    pub(crate) fn given(&self) -> Vec<&'static str> {
        let rows = [
            ("--rm", self.rm),
            ("--force-rm", self.force_rm),
            ("--compress", self.compress),
            ("--squash", self.squash),
            ("--security-opt", !self.security_opt.is_empty()),
            ("--builder", self.builder.is_some()),
        ];
        rows.into_iter().filter(|(_, given)| *given).map(|(name, _)| name).collect()
    }
}

/// `kiln push`.
#[derive(Debug, Args)]
pub(crate) struct PushArgs {
    /// Name of the image
    #[arg(value_name = "NAME[:TAG]")]
    pub(crate) name: String,
    /// Push only the image for this platform
    #[arg(long, value_name = "PLATFORM")]
    pub(crate) platform: Option<String>,
    /// Push the images for all platforms, which is what happens unless one is named
    #[arg(long, conflicts_with = "platform")]
    pub(crate) all_platforms: bool,
    /// Suppress verbose output
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Set type of progress output (auto, plain, tty, quiet, rawjson)
    #[arg(long, value_name = "MODE")]
    pub(crate) progress: Option<Mode>,
}

/// `kiln pull`.
#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// Name of the image
    #[arg(value_name = "NAME[:TAG|@DIGEST]")]
    pub(crate) name: String,
    /// Choose the image for this platform
    #[arg(long, value_name = "PLATFORM")]
    pub(crate) platform: Option<String>,
    /// Pull the images for all platforms
    #[arg(long, conflicts_with = "platform")]
    pub(crate) all_platforms: bool,
    /// Suppress verbose output
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Set type of progress output (auto, plain, tty, quiet, rawjson)
    #[arg(long, value_name = "MODE")]
    pub(crate) progress: Option<Mode>,
}

/// `kiln images`.
#[derive(Debug, Args)]
pub(crate) struct ImagesArgs {
    /// Show only images of this name
    #[arg(value_name = "REPOSITORY[:TAG]")]
    pub(crate) name: Option<String>,
    /// Show all images (kiln keeps no intermediate ones, so this changes nothing)
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Show digests
    #[arg(long)]
    pub(crate) digests: bool,
    /// Filter output: `dangling=true`, `reference=PATTERN`
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub(crate) filter: Vec<String>,
    /// Format output: `table`, `table TEMPLATE`, `json` or a template such as `{{.ID}}`
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<String>,
    /// Don't truncate output
    #[arg(long)]
    pub(crate) no_trunc: bool,
    /// Only show image IDs
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// `kiln tag`.
#[derive(Debug, Args)]
pub(crate) struct TagArgs {
    /// An image, by name or ID
    #[arg(value_name = "SOURCE_IMAGE[:TAG]")]
    pub(crate) source: String,
    /// Its new name
    #[arg(value_name = "TARGET_IMAGE[:TAG]")]
    pub(crate) target: String,
}

/// `kiln rmi`.
#[derive(Debug, Args)]
pub(crate) struct RmiArgs {
    /// Images, by name or ID
    #[arg(value_name = "IMAGE", required = true)]
    pub(crate) images: Vec<String>,
    /// Remove an image by ID even if it has several names; don't complain of missing ones
    #[arg(short, long)]
    pub(crate) force: bool,
}

/// `kiln inspect`.
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Images, by name or ID
    #[arg(value_name = "IMAGE", required = true)]
    pub(crate) images: Vec<String>,
    /// Show the image for this platform
    #[arg(long, value_name = "PLATFORM")]
    pub(crate) platform: Option<String>,
    /// Format output: `json` or a template such as `{{.Id}}`
    #[arg(short, long, value_name = "FORMAT")]
    pub(crate) format: Option<String>,
}

/// `kiln history`.
#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    /// An image, by name or ID
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
    /// Show the image for this platform
    #[arg(long, value_name = "PLATFORM")]
    pub(crate) platform: Option<String>,
    /// Format output: `table`, `table TEMPLATE`, `json` or a template such as `{{.CreatedBy}}`
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<String>,
    /// Print sizes and dates in human readable format (default true)
    #[arg(short = 'H', long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true", action = clap::ArgAction::Set, hide_default_value = true, hide_possible_values = true)]
    pub(crate) human: bool,
    /// Don't truncate output
    #[arg(long)]
    pub(crate) no_trunc: bool,
    /// Only show image IDs
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// `kiln save`.
#[derive(Debug, Args)]
pub(crate) struct SaveArgs {
    /// Images, by name or ID
    #[arg(value_name = "IMAGE", required = true)]
    pub(crate) images: Vec<String>,
    /// Write to a file, instead of STDOUT
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Save only the image for this platform
    #[arg(long, value_name = "PLATFORM")]
    pub(crate) platform: Option<String>,
    /// Form of the archive: docker or oci
    #[arg(long, value_name = "FORMAT", default_value = "docker")]
    pub(crate) format: String,
}

/// `kiln load`.
#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// Read from a tar archive file, instead of STDIN
    #[arg(short, long, value_name = "FILE")]
    pub(crate) input: Option<PathBuf>,
    /// Suppress the load output
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// `kiln login`.
#[derive(Debug, Args)]
pub(crate) struct LoginArgs {
    /// The registry (default: Docker Hub)
    #[arg(value_name = "SERVER")]
    pub(crate) server: Option<String>,
    /// User name
    #[arg(short, long, value_name = "NAME")]
    pub(crate) username: Option<String>,
    /// Password or access token
    #[arg(short, long, value_name = "PASSWORD", allow_hyphen_values = true)]
    pub(crate) password: Option<String>,
    /// Take the password from STDIN
    #[arg(long, conflicts_with = "password")]
    pub(crate) password_stdin: bool,
}

/// `kiln logout`.
#[derive(Debug, Args)]
pub(crate) struct LogoutArgs {
    /// The registry (default: Docker Hub)
    #[arg(value_name = "SERVER")]
    pub(crate) server: Option<String>,
}

/// `kiln prune`.
#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// Remove everything that no image needs, however recently it was used
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Do not prompt for confirmation
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Remove only what all filters match (`until=24h`, `type=exec.cachemount`, `id~=9f3c`, `parents=ID`, `shared`, `private`,
    /// `mutable`, `immutable`, `inuse`)
    #[arg(long, value_name = "FILTER")]
    pub(crate) filter: Vec<String>,
    /// Amount of disk space that the cache may always keep; alone, all that it keeps (format: `10GB`, `10%`)
    #[arg(long, value_name = "BYTES", visible_alias = "keep-storage")]
    pub(crate) reserved_space: Option<String>,
    /// Maximum amount of disk space to keep for the cache
    #[arg(long, value_name = "BYTES")]
    pub(crate) max_used_space: Option<String>,
    /// Amount of disk space that should be free afterwards
    #[arg(long, value_name = "BYTES")]
    pub(crate) min_free_space: Option<String>,
    /// Only show what would be removed
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Format output: `table`, `table TEMPLATE`, `json` or a template such as `{{.ID}}`
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<String>,
}

/// `kiln du`.
#[derive(Debug, Args)]
pub(crate) struct DuArgs {
    /// Show only what all filters match (`type=layer`, `id~=9f3c`, `parents=ID`, `shared`, `inuse`, ...)
    #[arg(long, value_name = "FILTER")]
    pub(crate) filter: Vec<String>,
    /// Format output: `table`, `table TEMPLATE`, `json` or a template such as `{{.ID}}`
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<String>,
    /// Don't truncate output
    #[arg(long)]
    pub(crate) no_trunc: bool,
    /// Only show IDs
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// `kiln fsck`.
#[derive(Debug, Args)]
pub(crate) struct FsckArgs {
    /// Fetch again what a registry has, and remove what is broken and can be made again
    #[arg(long)]
    pub(crate) repair: bool,
    /// Format output: `text` or `json`
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<String>,
    /// Set type of progress output (auto, plain, tty, quiet, rawjson)
    #[arg(long, value_name = "MODE")]
    pub(crate) progress: Option<Mode>,
}

/// `kiln doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Format output: `json` or a template such as `{{.Mode}}`
    #[arg(short, long, value_name = "FORMAT")]
    pub(crate) format: Option<String>,
}

/// `kiln version`.
#[derive(Debug, Args)]
pub(crate) struct VersionArgs {
    /// Format output: `json` or a template such as `{{.Version}}`
    #[arg(short, long, value_name = "FORMAT")]
    pub(crate) format: Option<String>,
}

/// `kiln completion`.
#[derive(Debug, Args)]
pub(crate) struct CompletionArgs {
    /// bash, zsh, fish, elvish or powershell
    pub(crate) shell: clap_complete::Shell,
}

/// Switches that docker's parser also takes as `--switch=true` and `--switch=false`.
const SWITCHES: &[&str] = &[
    "no-cache",
    "pull",
    "push",
    "load",
    "quiet",
    "rm",
    "force-rm",
    "compress",
    "squash",
    "all",
    "digests",
    "no-trunc",
    "force",
    "debug",
    "password-stdin",
    "dry-run",
    "check",
    "all-platforms",
];

/// Understands the command line, the program's name first.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Arguments, clap::Error> {
    let matches = command().try_get_matches_from(plain_switches(args))?;
    Arguments::from_arg_matches(&matches)
}

/// The whole command, for help and completion.
pub(crate) fn command() -> clap::Command {
    // What an image was built from may stand in its provenance.
    Arguments::command().mut_subcommand("verify", |verify| {
        verify.mut_arg("context", |context| context.required(false).default_value("").hide_default_value(true))
    })
}

/// Turns `--switch=true` into `--switch` and takes `--switch=false` away, together with earlier ones: the last one counts.
fn plain_switches(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut out: Vec<OsString> = Vec::new();
    let mut args = args.into_iter();
    for arg in args.by_ref() {
        // What follows is not for kiln, or has its own say about switches.
        if arg == "--" || arg == "run" && only_global(&out) {
            out.push(arg);
            break;
        }
        let switch = arg.to_str().and_then(|text| text.strip_prefix("--")?.split_once('='));
        match switch.filter(|(name, _)| SWITCHES.contains(name)) {
            // Go's strconv.ParseBool.
            Some((name, "1" | "t" | "T" | "true" | "TRUE" | "True")) => out.push(format!("--{name}").into()),
            Some((name, "0" | "f" | "F" | "false" | "FALSE" | "False")) => out.retain(|earlier| *earlier != *format!("--{name}")),
            _ => out.push(arg),
        }
    }
    out.extend(args);
    out
}

/// Do only flags of every command follow the program's name?
fn only_global(args: &[OsString]) -> bool {
    let takes_value = |arg: &OsString| arg == "--root" || arg == "--isolation";
    let is_flag = |arg: &OsString| arg.as_encoded_bytes().starts_with(b"-");
    args.windows(2).all(|pair| is_flag(&pair[1]) || takes_value(&pair[0]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(line: &str) -> BuildArgs {
        let words = line.split_whitespace().map(OsString::from);
        match parse([OsString::from("kiln"), "build".into()].into_iter().chain(words)).map(|a| a.command) {
            Ok(Command::Build(args)) => *args,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn definition_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn switches_and_repetitions() {
        type Row = (&'static str, fn(&BuildArgs) -> bool);
        let rows: &[Row] = &[
            ("--no-cache .", |a| a.no_cache),
            ("--no-cache=true .", |a| a.no_cache),
            ("--no-cache --no-cache=false .", |a| !a.no_cache),
            ("--pull=0 --push=1 .", |a| !a.pull && a.push),
            ("-t a -t b:1 .", |a| a.tag == ["a", "b:1"]),
            ("-f one -f two .", |a| a.file.as_deref() == Some("two".as_ref())),
            ("-qt a .", |a| a.quiet && a.tag == ["a"]),
            (". --build-arg A=1 --build-arg B", |a| a.build_arg == ["A=1", "B"]),
            ("--rm=true --force-rm -m 512m --memory-swap -1 .", |a| {
                a.ignored.given() == ["--rm", "--force-rm"]
                    && (a.resources.memory.as_deref(), a.resources.memory_swap.as_deref()) == (Some("512m"), Some("-1"))
            }),
            ("--rm=false .", |a| a.ignored.given().is_empty()),
            ("--progress=plain -", |a| a.progress == Some(Mode::Plain) && a.context == "-"),
            ("-o type=oci,dest=x.tar .", |a| a.output == ["type=oci,dest=x.tar"]),
        ];
        for (line, holds) in rows {
            let args = build(line);
            assert!(holds(&args), "{line}: {args:?}");
        }
    }
}
