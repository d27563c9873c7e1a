//! Hides what is typed after `kiln manifest`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::cli::progress::Mode;

/// `kiln manifest`.
#[derive(Debug, Args)]
pub(crate) struct ManifestArgs {
    #[command(subcommand)]
    pub(crate) command: ManifestCommand,
}

/// Its commands.
#[derive(Debug, Subcommand)]
pub(crate) enum ManifestCommand {
    /// Join images into one of several platforms, and push it
    Create(CreateArgs),
    /// Show a manifest or an index
    Inspect(ManifestInspectArgs),
}

/// `kiln manifest create`.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Its name, and then what it is made of: names, name@digest, or sha256:… of the target's repository. A name is looked for in
    /// its registry and then in the store; one without a registry in the store first
    #[arg(value_name = "NAME SOURCE")]
    pub(crate) names: Vec<String>,
    /// Set the name, or more of them; then only sources follow
    #[arg(short, long, value_name = "NAME")]
    pub(crate) tag: Vec<String>,
    /// Read a source from a file: a name, a descriptor, or --metadata-file of a build
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Vec<PathBuf>,
    /// Keep what the name stands for, and add to it
    #[arg(long, conflicts_with = "amend")]
    pub(crate) append: bool,
    /// Keep what the name stands for, if anything, but for platforms that are given anew
    #[arg(short, long)]
    pub(crate) amend: bool,
    /// Show the result instead of pushing it
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Add annotation (format: `[index|manifest-descriptor[PLATFORM]:]key=value`)
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) annotation: Vec<String>,
    /// Take only images for these platforms
    #[arg(short, long, value_name = "PLATFORM")]
    pub(crate) platform: Vec<String>,
    /// Make an index of a single image, too (default true)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true", action = clap::ArgAction::Set, hide_default_value = true, hide_possible_values = true)]
    pub(crate) prefer_index: bool,
    /// Write the result's descriptor to a file
    #[arg(long, value_name = "FILE")]
    pub(crate) metadata_file: Option<PathBuf>,
    /// Set type of progress output (auto, plain, tty, quiet, rawjson)
    #[arg(long, value_name = "MODE")]
    pub(crate) progress: Option<Mode>,
}

/// `kiln manifest inspect`.
#[derive(Debug, Args)]
pub(crate) struct ManifestInspectArgs {
    /// Name of an image
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// Show the document as it is
    #[arg(long, conflicts_with = "format")]
    pub(crate) raw: bool,
    /// Format output: `{{json .Manifest}}`, `{{json .Image}}` or another template
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<String>,
}
