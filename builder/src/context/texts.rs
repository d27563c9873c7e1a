//! Hides which files the Dockerfile and its ignore file are, and keeps a context from leading to files outside of it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use kiln_frontend::ignore::PatternMatcher;
use kiln_oci::path::ImagePath;
use kiln_store::rootdir::RootDir;
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::ContextError;
use crate::request::DockerfileSource;

/// A text is a text; what's larger is a mistake such as `-f /dev/zero`.
const MAX_TEXT: u64 = 16 << 20;

/// A Dockerfile as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DockerfileText {
    /// Where it was found; `None` if it was given as bytes.
    pub path: Option<PathBuf>,
    /// What messages call it: the name as the user gave it, `Dockerfile` if it has none.
    pub name: String,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// An ignore file as it was read.
#[derive(Debug, Clone)]
pub struct IgnoreText {
    /// Where it was found; `None` if there is none.
    pub path: Option<PathBuf>,
    /// What it says.
    pub matcher: PatternMatcher,
}

/// Reads the Dockerfile of the context `dir`. A path counts from the current directory; without one it's `Dockerfile` or else
/// `dockerfile` in `dir`, where a symbolic link may not lead out.
///
/// # Errors
/// [`ContextError::NoDockerfile`], [`ContextError::Text`], [`ContextError::Open`].
pub fn read_dockerfile(dir: &Path, source: &DockerfileSource) -> Result<DockerfileText, ContextError> {
    let what = "the Dockerfile";
    match source {
        // An address is fetched by whoever knows how; then it is bytes.
        DockerfileSource::Http(_) => Err(ContextError::NoDockerfile { dir: dir.to_owned() }),
        DockerfileSource::Bytes(bytes) => Ok(DockerfileText { path: None, name: "Dockerfile".to_owned(), bytes: bytes.clone() }),
        DockerfileSource::Path(path) => {
            let bytes = read_below(CWD, path, ResolveFlags::empty()).map_err(|cause| ContextError::Text {
                what,
                path: path.clone(),
                cause,
            })?;
            Ok(DockerfileText { path: Some(path.clone()), name: path.display().to_string(), bytes })
        }
        DockerfileSource::InContext(path) => {
            let root = RootDir::open(dir).map_err(ContextError::Open)?;
            let relative = ImagePath::new(path.as_os_str().as_encoded_bytes());
            let name = Path::new(OsStr::from_bytes(relative.relative()));
            let bytes = read_below(root.as_fd(), name, ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS)
                .map_err(|cause| ContextError::Text { what, path: path.clone(), cause })?;
            Ok(DockerfileText { path: None, name: path.display().to_string(), bytes })
        }
        DockerfileSource::Default => {
            let root = RootDir::open(dir).map_err(ContextError::Open)?;
            for name in ["Dockerfile", "dockerfile"] {
                match read_below(root.as_fd(), Path::new(name), ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS) {
                    Ok(bytes) => return Ok(DockerfileText { path: Some(dir.join(name)), name: name.to_owned(), bytes }),
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    Err(cause) => return Err(ContextError::Text { what, path: dir.join(name), cause }),
                }
            }
            Err(ContextError::NoDockerfile { dir: dir.to_owned() })
        }
    }
}

/// Reads the ignore file that goes with a Dockerfile: `<dockerfile>.dockerignore` beside it, else `.dockerignore` in `dir`,
/// else none.
///
/// # Errors
/// [`ContextError::Text`], [`ContextError::Ignore`], [`ContextError::Open`].
pub fn read_ignore(dir: &Path, dockerfile: Option<&Path>) -> Result<IgnoreText, ContextError> {
    let own = dockerfile.map(|path| {
        let mut name = OsString::from(path);
        name.push(".dockerignore");
        PathBuf::from(name)
    });
    if let Some(path) = own
        && let Some(text) = read_one(CWD, &path, &path, ResolveFlags::empty())?
    {
        return Ok(text);
    }
    let root = RootDir::open(dir).map_err(ContextError::Open)?;
    let name = Path::new(".dockerignore");
    let found = read_one(root.as_fd(), name, &dir.join(name), ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS)?;
    Ok(found.unwrap_or(IgnoreText { path: None, matcher: PatternMatcher::default() }))
}

fn read_one(dir: BorrowedFd<'_>, name: &Path, shown: &Path, resolve: ResolveFlags) -> Result<Option<IgnoreText>, ContextError> {
    let path = shown.to_owned();
    let bytes = match read_below(dir, name, resolve) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(ContextError::Text { what: "the ignore file", path, cause }),
    };
    match PatternMatcher::parse(&bytes) {
        Ok(matcher) => Ok(Some(IgnoreText { path: Some(path), matcher })),
        Err(cause) => Err(ContextError::Ignore { path, cause }),
    }
}

fn read_below(dir: BorrowedFd<'_>, name: &Path, resolve: ResolveFlags) -> io::Result<Vec<u8>> {
    // A path that the user typed may be a pipe (`-f <(generate)`), which is waited for; one found in a context may not.
    let typed = resolve.is_empty();
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | if typed { OFlags::empty() } else { OFlags::NONBLOCK };
    let mut opened = rustix::fs::openat2(dir, name, flags, Mode::empty(), resolve);
    // A rename or mount anywhere on the machine while a `..` is resolved makes the kernel unsure, for a moment (openat2(2)).
    for _ in 0..256 {
        if !matches!(opened, Err(Errno::AGAIN)) {
            break;
        }
        std::thread::yield_now();
        opened = rustix::fs::openat2(dir, name, flags, Mode::empty(), resolve);
    }
    let fd = opened.map_err(|e| match e {
        Errno::XDEV => io::Error::other("it is a symbolic link that leads out of the build context"),
        e => e.into(),
    })?;
    match FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) {
        FileType::RegularFile => {}
        FileType::Directory => return Err(io::ErrorKind::IsADirectory.into()),
        FileType::Fifo | FileType::CharacterDevice if typed => {}
        _ => return Err(io::Error::other("it is not a regular file")),
    }
    let mut bytes = Vec::new();
    File::from(fd).take(MAX_TEXT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_TEXT {
        return Err(io::Error::other("it is larger than 16 MiB"));
    }
    Ok(bytes)
}
