//! Hides what `kiln run` was typed with, as plain data.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use super::ResourceArgs;
use crate::cli::progress::Mode;

/// `kiln run`.
#[derive(Debug, Args, Default)]
#[command(disable_help_flag = true, override_usage = "kiln run [OPTIONS] IMAGE [COMMAND [ARG...]]")]
pub(crate) struct RunArgs {
    /// Image, and the command with its arguments in the place of the image's own
    #[arg(value_name = "IMAGE [COMMAND [ARG", required = true, num_args = 1.., trailing_var_arg = true)]
    pub(crate) words: Vec<OsString>,
    /// Pass standard input on to the command
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Keep nothing of what the command changes, as always
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) rm: Option<bool>,
    /// Set an environment variable; without a value, as it is here
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<OsString>,
    /// Read environment variables from a file
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Vec<PathBuf>,
    /// Show a file or folder of this machine in the sandbox
    #[arg(short, long, value_name = "SOURCE:TARGET[:ro]")]
    pub(crate) volume: Vec<String>,
    /// Attach a mount (format: `type=bind|tmpfs,target=PATH[,source=PATH][,readonly][,tmpfs-size=BYTES]`)
    #[arg(long, value_name = "SPEC")]
    pub(crate) mount: Vec<String>,
    /// Mount an empty memory file system
    #[arg(long, value_name = "TARGET[:size=BYTES]")]
    pub(crate) tmpfs: Vec<String>,
    /// Working directory in the sandbox
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<PathBuf>,
    /// User (format: `name|uid[:group|gid]`)
    #[arg(short, long, value_name = "USER")]
    pub(crate) user: Option<String>,
    /// Program in the place of the image's entry point
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) entrypoint: Option<OsString>,
    /// Set the networking mode: host, none or private
    #[arg(long, visible_alias = "net", value_name = "MODE")]
    pub(crate) network: Option<String>,
    /// Add a custom host-to-IP mapping (format: `host:ip`)
    #[arg(long, value_name = "HOST:IP")]
    pub(crate) add_host: Vec<String>,
    /// Name of the run; no two of one name run at once
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Host name in the sandbox
    #[arg(short = 'h', long, value_name = "NAME")]
    pub(crate) hostname: Option<String>,
    /// Let nothing of the image's files be changed
    #[arg(long)]
    pub(crate) read_only: bool,
    /// Choose the image for this platform
    #[arg(long, value_name = "PLATFORM")]
    pub(crate) platform: Option<String>,
    /// Ask a registry for the image: missing, always or never
    #[arg(long, value_name = "WHEN")]
    pub(crate) pull: Option<String>,
    /// Shared memory size
    #[arg(long, value_name = "BYTES")]
    pub(crate) shm_size: Option<String>,
    /// Limit what a process may use (format: `nofile=1024:4096`)
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    pub(crate) ulimit: Vec<String>,
    #[command(flatten)]
    pub(crate) resources: ResourceArgs,
    /// Show no progress while the image is fetched
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Set type of progress output (auto, plain, tty, quiet, rawjson)
    #[arg(long, value_name = "MODE")]
    pub(crate) progress: Option<Mode>,
    /// Print help
    #[arg(long, action = clap::ArgAction::HelpLong)]
    help: Option<bool>,
}
