//! Hides the walk from stages, arguments and base images to a graph.

use std::collections::BTreeMap;

use kiln_oci::config::{HistoryEntry, ImageConfig};
use kiln_oci::digest::Digest;
use kiln_oci::platform::Platform;
use kiln_oci::reference::Reference;

use crate::Parsed;
use crate::diagnostic::Diagnostic;
use crate::graph::{Graph, NetworkMode, VertexId};
use crate::source::{Source, Span};

/// What a build asks for beside the text of the Dockerfile.
#[derive(Debug, Clone)]
pub struct LowerOptions {
    /// `--build-arg`; the last of equal names counts.
    pub build_args: Vec<(String, String)>,
    /// `--target`: the name of a stage, or its number.
    pub target: Option<String>,
    /// `--label`; they beat the Dockerfile's.
    pub labels: Vec<(String, String)>,
    /// The platform that the builder runs on.
    pub build_platform: Platform,
    /// The platform that the image is for.
    pub target_platform: Platform,
    /// Proxy variables of the client, as name and value; `build_args` beat them.
    pub proxy_args: Vec<(String, String)>,
    /// `--network`: what a `RUN` without `--network` gets.
    pub network: NetworkMode,
    /// `--no-cache-filter`: names of stages.
    pub no_cache_filter: Vec<String>,
    /// `--add-host`: name and address.
    pub extra_hosts: Vec<(String, String)>,
    /// The name of the machine that a `RUN` sees, unless `BUILDKIT_SANDBOX_HOSTNAME` is given.
    pub hostname: String,
    /// Whether `--allow security.insecure` was given.
    pub allow_insecure: bool,
}

impl Default for LowerOptions {
    fn default() -> LowerOptions {
        LowerOptions {
            build_args: Vec::new(),
            target: None,
            labels: Vec::new(),
            build_platform: Platform::host(),
            target_platform: Platform::host(),
            proxy_args: Vec::new(),
            network: NetworkMode::Default,
            no_cache_filter: Vec::new(),
            extra_hosts: Vec::new(),
            hostname: "buildkitsandbox".to_owned(),
            allow_insecure: false,
        }
    }
}

/// A base image whose manifest and configuration `lower` wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseRequest {
    /// As the Dockerfile names it, with defaults filled in (`docker.io/library/busybox:latest`).
    pub reference: Reference,
    /// For which platform.
    pub platform: Platform,
    /// The instruction that names it.
    pub span: Span,
}

/// What is known about a base image once it was resolved.
#[derive(Debug, Clone)]
pub struct BaseImage {
    /// Of the manifest (or index) that was found, to pin the build to it.
    pub digest: Digest,
    /// Its configuration.
    pub config: ImageConfig,
}

/// The base images that were resolved so far.
#[derive(Debug, Clone, Default)]
pub struct Bases {
    images: BTreeMap<(Reference, Platform), BaseImage>,
}

impl Bases {
    /// Hands in an image that a [`BaseRequest`] asked for.
    pub fn insert(&mut self, reference: Reference, platform: Platform, image: BaseImage) {
        self.images.insert((reference, platform), image);
    }

    /// The image, if it was handed in.
    #[must_use]
    pub fn get(&self, reference: &Reference, platform: &Platform) -> Option<&BaseImage> {
        self.images.get(&(reference.clone(), platform.clone()))
    }
}

/// What came of lowering.
#[derive(Debug, Clone)]
pub enum Lowered {
    /// These images must be handed in first; sorted, each once.
    Needs(Vec<BaseRequest>),
    /// The build.
    Build(Box<Build>),
}

/// Everything a solver needs to know.
#[derive(Debug, Clone)]
pub struct Build {
    /// What to do.
    pub graph: Graph,
    /// The root file system of the image; `None` is the empty one, with no layers.
    pub target: Option<VertexId>,
    /// What to write into the image's configuration.
    pub image: ImageTemplate,
    /// Build checks that fired, and other remarks; none stops the build.
    pub warnings: Vec<Diagnostic>,
}

/// The configuration of the image to be, without what only building can tell.
#[derive(Debug, Clone)]
pub struct ImageTemplate {
    /// The image that the target's chain of stages starts from; `None` for `scratch`.
    pub base: Option<(Reference, Platform)>,
    /// Final but for the new layers: `history` and `rootfs` hold the base's entries only, `created` is `None`.
    pub config: ImageConfig,
    /// The new entries, with `created` left `None`. Each without `empty_layer` stands for one vertex on the target's
    /// parent chain, in order.
    pub history: Vec<HistoryEntry>,
}

/// Turns a parsed Dockerfile into a graph, as far as the base images handed in allow.
///
/// # Errors
/// Every mistake that was found, parser mistakes first.
pub fn lower(_parsed: &Parsed, _source: &Source, _options: &LowerOptions, _bases: &Bases) -> Result<Lowered, Vec<Diagnostic>> {
    Err(vec![Diagnostic::error("not there yet")])
}
