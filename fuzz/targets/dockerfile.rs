//! Hides what must hold for any text as a Dockerfile: it is parsed and lowered with base images made up here, and all that is
//! said about it can be shown.
//!
//! The input is the Dockerfile, so a golden one is a seed and a finding can be read.
#![no_main]

use std::fmt::Write as _;

use kiln_frontend::graph::Op;
use kiln_frontend::heredoc::Heredoc;
use kiln_frontend::ignore::PatternMatcher;
use kiln_frontend::{
    BaseImage, Bases, Build, Diagnostic, LowerOptions, Lowered, NamedContext, NamedKind, Parsed, Source, Span, lower, parse,
    parser,
};
use kiln_oci::config::{HistoryEntry, ImageConfig};
use kiln_oci::digest::{DiffId, Digest};
use kiln_oci::platform::Platform;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| check(data));

fn check(data: &[u8]) {
    let Ok(source) = Source::new("Dockerfile", data.to_vec()) else { return };
    let parsed = parse(&source);
    shown(&source, &parsed.diagnostics);
    for line in parser::split(&source).lines {
        let again = parser::split_line(&line.original);
        assert_eq!((&again.keyword, &again.flags, &again.rest), (&line.keyword, &line.flags, &line.rest));
        line.heredocs.iter().for_each(reads_back);
    }
    for options in [plain(), everything()] {
        match lowered(&parsed, &source, &options) {
            Ok(build) => sound(&source, &build),
            Err(errors) => {
                assert!(
                    errors.iter().any(Diagnostic::is_error) || errors.iter().any(|e| e.rule.is_some()),
                    "refused without a reason"
                );
                shown(&source, &errors);
            }
        }
    }
}

/// Every place that is named exists and can be shown.
fn shown(source: &Source, diagnostics: &[Diagnostic]) {
    for diagnostic in diagnostics {
        assert!(!diagnostic.message.is_empty());
        assert!(diagnostic.render(source).contains(&diagnostic.message));
        diagnostic.span.into_iter().for_each(|span| lies_in(source, span));
    }
}

fn lies_in(source: &Source, span: Span) {
    let text = source.text();
    assert!(span.start <= span.end && span.end <= text.len(), "{span:?}");
    assert!(text.is_char_boundary(span.start) && text.is_char_boundary(span.end), "{span:?}");
    assert!(1 <= span.first_line && span.first_line <= span.last_line, "{span:?}");
    assert!(span.last_line as usize <= source.line_count(), "{span:?}");
}

/// A here-document that is written down again, in quotes, is the same.
fn reads_back(heredoc: &Heredoc) {
    let name = &heredoc.name;
    if name.contains(['\'', '\n', '\r', '<', '\\']) || name.trim() != name || name.is_empty() {
        return;
    }
    let dash = if heredoc.chomp { "-" } else { "" };
    let text = format!("FROM scratch\nRUN <<{dash}'{name}'\n{}{name}\n", heredoc.content);
    // The instruction itself must be read as one line.
    if name.len() > 1000 {
        return;
    }
    let lines = parser::split(&Source::from_text("again", text)).lines;
    let again = &lines[1].heredocs[0];
    assert_eq!((again.content.as_str(), again.body()), (heredoc.content.as_str(), heredoc.body()));
    assert!(!again.expand && again.name == *name && lines.len() == 2);
}

/// Inputs stand before what uses them; each layer has its entry in the history; a configuration can be written and read.
fn sound(source: &Source, build: &Build) {
    shown(source, &build.warnings);
    for (index, vertex) in build.graph.vertices.iter().enumerate() {
        assert!(vertex.op.inputs().iter().all(|id| id.0 < index), "inputs come first");
        vertex.span.into_iter().for_each(|span| lies_in(source, span));
        if let Op::Exec(op) = &vertex.op {
            assert!(!op.args.is_empty(), "a command has words");
        }
    }
    let layers = build.image.history.iter().filter(|entry| !entry.empty_layer).count();
    let (mut chain, mut at) = (0, build.target);
    while let Some(id) = at {
        let op = &build.graph.vertices[id.0].op;
        chain += usize::from(!matches!(op, Op::Image(_)));
        at = op.parent();
    }
    assert_eq!(layers, chain, "one entry for each layer");
    let mut text = String::new();
    write!(text, "{build:?}").expect("a string takes all");
}

fn lowered(parsed: &Parsed, source: &Source, options: &LowerOptions) -> Result<Build, Vec<Diagnostic>> {
    let mut bases = Bases::default();
    let mut options = options.clone();
    // The triggers of an image may ask for more, but nothing is asked for twice.
    loop {
        match lower(parsed, source, &options, &bases)? {
            Lowered::NeedsTime { span, .. } => {
                assert!(options.source_epoch.is_none(), "the time was handed in");
                span.into_iter().for_each(|span| lies_in(source, span));
                options.source_epoch = Some(None);
            }
            Lowered::Build(build) => return Ok(*build),
            Lowered::Needs { images, warnings } => {
                assert!(!images.is_empty());
                shown(source, &warnings);
                for need in images {
                    assert!(bases.get(&need.reference, &need.platform).is_none(), "{need:?} was handed in");
                    lies_in(source, need.span);
                    let image = base(&need.reference.familiar_repository(), &need.platform);
                    bases.insert(need.reference, need.platform, image);
                }
            }
        }
    }
}

/// An image of one layer; some names stand for an image with triggers or without a shell's variables.
fn base(name: &str, platform: &Platform) -> BaseImage {
    let mut config = ImageConfig::empty(platform);
    config.config.env = vec!["PATH=/bin".into(), "A=of the image".into()];
    config.rootfs.diff_ids = vec![DiffId::new(Digest::of(name.as_bytes()))];
    config.history = vec![HistoryEntry { created_by: "base".into(), ..HistoryEntry::default() }];
    match name {
        "onbuild" => config.config.on_build = vec!["COPY --from=tool:1 /z /".into(), "RUN t".into(), "ENV a=$b".into()],
        "broken" => config.config.on_build = vec!["FROM x".into(), "RUM".into(), String::new(), "RUN <<EOF".into()],
        "odd" => config.config.env = vec!["".into(), "=x".into(), "novalue".into()],
        "cmd" => config.config.cmd = Some(vec!["c".into()]),
        _ => {}
    }
    BaseImage { digest: Digest::of(name.as_bytes()), config }
}

fn platform(text: &str) -> Platform {
    Platform::parse(text).expect("a constant that is a platform")
}

fn plain() -> LowerOptions {
    let amd64 = platform("linux/amd64");
    LowerOptions { build_platform: amd64.clone(), target_platform: amd64, ..LowerOptions::default() }
}

/// As much as can be asked for beside the text.
fn everything() -> LowerOptions {
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    LowerOptions {
        build_args: vec![
            pair("A", "1"),
            pair("VERSION", "a b\n\"c\" $d"),
            pair("X", ""),
            pair("HTTP_PROXY", "http://proxy"),
            pair("BUILDKIT_DOCKERFILE_CHECK", "experimental=all"),
            pair("BUILDKIT_CACHE_MOUNT_NS", "ns"),
        ],
        labels: vec![pair("l", "1")],
        build_platform: platform("linux/amd64"),
        target_platform: platform("linux/arm/v7"),
        proxy_args: vec![pair("no_proxy", "x")],
        no_cache_filter: vec!["a".into(), "0".into()],
        extra_hosts: vec![pair("h", "1.2.3.4")],
        allow_insecure: true,
        contexts: vec![
            NamedContext { name: "ctx".into(), kind: NamedKind::Files },
            NamedContext {
                name: "busybox".into(),
                kind: NamedKind::Image("docker.io/library/tool:1".parse().expect("a reference")),
            },
        ],
        ignore: PatternMatcher::parse(b"*.log\n!keep\n").ok(),
        ..LowerOptions::default()
    }
}
