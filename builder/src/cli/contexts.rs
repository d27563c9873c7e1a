//! Hides how the words that name build contexts are told apart: folders, addresses, archives, images.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use kiln::ops::git::{GitAddress, Origin};
use kiln::request::{ContextSource, DockerfileSource, LayoutImage, NamedSource};
use kiln_frontend::context_name;
use kiln_oci::digest::Digest;
use kiln_oci::reference::Reference;

use super::args::BuildArgs;
use super::report::Failure;

/// A Dockerfile on standard input may not be larger.
const LARGEST_DOCKERFILE: u64 = 16 << 20;
/// As much as tells an archive from a text: the header of a tar, whose magic is at byte 257.
const START: u64 = 512;

/// The build context, and where the Dockerfile is.
pub(super) fn main(args: &BuildArgs, stdin: &mut dyn Read) -> Result<(ContextSource, DockerfileSource), Failure> {
    let file = args.file.as_deref();
    if args.context == "-" {
        return from_stdin(file, stdin);
    }
    let folder = PathBuf::from(&args.context);
    let address = args.context.to_str().filter(|text| is_address(text) && !folder.exists());
    let context = match address {
        Some(address) => remote(address)?,
        None => ContextSource::Folder(existing(&folder)?),
    };
    let dockerfile = match file {
        None => DockerfileSource::Default,
        Some(file) if file == "-" => DockerfileSource::Bytes(text(stdin, Vec::new())?),
        Some(file) => match file.to_str().filter(|text| text.starts_with("http://") || text.starts_with("https://")) {
            Some(address) => DockerfileSource::Http(address.to_owned()),
            // Elsewhere there are no paths but those of the context.
            None if address.is_some() => DockerfileSource::InContext(file.into()),
            None => DockerfileSource::Path(file.into()),
        },
    };
    Ok((context, dockerfile))
}

fn from_stdin(file: Option<&OsStr>, stdin: &mut dyn Read) -> Result<(ContextSource, DockerfileSource), Failure> {
    let mut start = Vec::new();
    stdin.take(START).read_to_end(&mut start).map_err(read_error)?;
    let is_archive = is_archive(&start);
    match file {
        Some(file) if !is_archive || file == "-" => {
            let shown = Path::new(file).display();
            Err(Failure::usage(format!("cannot use `-f {shown}` when the Dockerfile comes from standard input")))
        }
        None if !is_archive => Ok((ContextSource::Empty, DockerfileSource::Bytes(text(stdin, start)?))),
        None => Ok((ContextSource::Archive { start }, DockerfileSource::Default)),
        Some(file) => Ok((ContextSource::Archive { start }, DockerfileSource::InContext(file.into()))),
    }
}

fn read_error(cause: io::Error) -> Failure {
    Failure::Read { what: "the Dockerfile from standard input", cause }
}

/// A Dockerfile, of which `bytes` were read.
fn text(stdin: &mut dyn Read, mut bytes: Vec<u8>) -> Result<Vec<u8>, Failure> {
    stdin.take(LARGEST_DOCKERFILE + 1).read_to_end(&mut bytes).map_err(read_error)?;
    match bytes.len() as u64 > LARGEST_DOCKERFILE {
        true => Err(read_error(io::ErrorKind::FileTooLarge.into())),
        false => Ok(bytes),
    }
}

/// Whether it begins as gzip, bzip2, xz, zstd or tar do.
fn is_archive(bytes: &[u8]) -> bool {
    let magics: [&[u8]; 4] = [b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"];
    magics.iter().any(|magic| bytes.starts_with(magic)) || bytes.get(257..262) == Some(b"ustar")
}

fn is_address(text: &str) -> bool {
    text.starts_with("http://") || text.starts_with("https://") || GitAddress::is_meant(text)
}

fn remote(address: &str) -> Result<ContextSource, Failure> {
    if !GitAddress::is_meant(address) {
        return Ok(ContextSource::Http(address.to_owned()));
    }
    // A mistake in it is told before anything is begun.
    GitAddress::parse(address, Origin::CommandLine).map_err(|error| Failure::usage(error.to_string()))?;
    Ok(ContextSource::Git(address.to_owned()))
}

fn existing(folder: &Path) -> Result<PathBuf, Failure> {
    let fail = |cause| Failure::Context { path: folder.to_owned(), cause };
    match std::fs::metadata(folder).map_err(fail)?.is_dir() {
        true => Ok(folder.to_owned()),
        false => Err(fail(io::ErrorKind::NotADirectory.into())),
    }
}

/// What each `--build-context` means; the last of equal names counts.
pub(super) fn named(texts: &[String]) -> Result<Vec<(String, NamedSource)>, Failure> {
    let mut out: Vec<(String, NamedSource)> = Vec::new();
    for text in texts {
        let invalid = |reason: &str| {
            Failure::usage_hint(
                format!("invalid --build-context `{}`: {reason}", kiln::ops::git::redact(text)),
                "write `name=PATH`, `name=URL`, `name=docker-image://NAME` or `name=oci-layout://FOLDER:TAG`",
            )
        };
        let (name, source) = text.split_once('=').ok_or_else(|| invalid("it has no value"))?;
        let name = context_name(name).ok_or_else(|| invalid("no stage or image can have this name"))?;
        let source = named_source(source, &invalid)?;
        out.retain(|(known, _)| *known != name);
        out.push((name, source));
    }
    Ok(out)
}

fn named_source(source: &str, invalid: &dyn Fn(&str) -> Failure) -> Result<NamedSource, Failure> {
    if let Some(name) = source.strip_prefix("docker-image://") {
        let reference = Reference::parse(name).map_err(|error| invalid(&error.to_string()))?;
        return Ok(NamedSource::Image(reference));
    }
    if let Some(path) = source.strip_prefix("oci-layout://") {
        let (folder, image) = match (path.rsplit_once('@'), path.rsplit_once(':')) {
            (Some((folder, digest)), _) => {
                let digest = Digest::parse(digest).map_err(|error| invalid(&error.to_string()))?;
                (folder, LayoutImage::Digest(digest))
            }
            (None, Some((folder, tag))) if !tag.contains('/') => (folder, LayoutImage::Tag(tag.to_owned())),
            _ => (path, LayoutImage::Default),
        };
        return Ok(NamedSource::Layout { folder: existing(Path::new(folder))?, image });
    }
    match source.split_once(':') {
        Some(("target", target)) => {
            let reason = format!(
                "`{target}` would be a target of a bake file; a stage of the Dockerfile needs no context to be named, \
                 and one of another Dockerfile can be built first and given as docker-image://NAME"
            );
            return Err(invalid(&reason));
        }
        Some((scheme @ ("docker-container" | "input"), _)) => return Err(invalid(&format!("`{scheme}:` is not supported"))),
        _ => {}
    }
    let folder = Path::new(source);
    match is_address(source) && !folder.exists() {
        true => remote(source).map(NamedSource::Files),
        false => existing(folder).map(|folder| NamedSource::Files(ContextSource::Folder(folder))),
    }
}
