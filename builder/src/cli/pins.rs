//! Hides where the lock file of a build is: beside the Dockerfile, unless a flag says where.

use std::path::{Path, PathBuf};

use kiln::error::Error;
use kiln::pins::Pins;
use kiln::request::{ContextSource, DockerfileSource};

use super::args::PinArgs;
use super::report::Failure;

/// The usual Dockerfile's lock file.
const NAME: &str = "kiln.lock";

/// What `--lock` and `--locked` ask for.
pub(super) fn parse(args: &PinArgs, context: &ContextSource, dockerfile: &DockerfileSource) -> Result<Pins, Failure> {
    let (flag, asked) = match (&args.lock, &args.locked) {
        (None, None) => return Ok(Pins::off()),
        (Some(_), Some(_)) => {
            return Err(Failure::usage_hint(
                "--lock and --locked cannot be used together",
                "`--lock` writes the lock file, `--locked` keeps to it",
            ));
        }
        (Some(asked), None) => ("--lock", asked),
        (None, Some(asked)) => ("--locked", asked),
    };
    let (path, name) = match beside(context, dockerfile) {
        _ if !asked.is_empty() => (asked.into(), name(dockerfile)),
        Some(path) => (path, name(dockerfile)),
        None => {
            return Err(Failure::usage_hint(
                format!("{flag} needs the name of a file: the Dockerfile is not one of this machine's"),
                format!("write `{flag}={NAME}`"),
            ));
        }
    };
    let pins = match flag {
        "--lock" => Pins::write(path, &name),
        _ => Pins::enforce(path),
    };
    Ok(pins.map_err(Error::Pins)?)
}

/// `kiln.lock` for a Dockerfile of the usual name, `NAME.lock` for another: several Dockerfiles may lie in one folder.
fn beside(context: &ContextSource, dockerfile: &DockerfileSource) -> Option<PathBuf> {
    match (dockerfile, context) {
        (DockerfileSource::Default, ContextSource::Folder(folder)) => Some(folder.join(NAME)),
        (DockerfileSource::Path(path), _) => {
            let name = path.file_name()?;
            match name.to_str() {
                Some("Dockerfile" | "dockerfile") => Some(path.with_file_name(NAME)),
                _ => {
                    let mut name = name.to_owned();
                    name.push(".lock");
                    Some(path.with_file_name(name))
                }
            }
        }
        _ => None,
    }
}

/// What the header of the file calls the Dockerfile.
fn name(dockerfile: &DockerfileSource) -> String {
    let path = match dockerfile {
        DockerfileSource::Path(path) | DockerfileSource::InContext(path) => path.as_path(),
        _ => Path::new("Dockerfile"),
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    name.chars().map(|c| if c.is_control() { '_' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let folder = ContextSource::Folder("/c".into());
        let path = |text: &str| DockerfileSource::Path(text.into());
        for (context, dockerfile, want) in [
            (&folder, DockerfileSource::Default, Some("/c/kiln.lock")),
            (&folder, path("/d/Dockerfile"), Some("/d/kiln.lock")),
            (&folder, path("dockerfile"), Some("kiln.lock")),
            (&folder, path("/d/web.Dockerfile"), Some("/d/web.Dockerfile.lock")),
            (&folder, DockerfileSource::Bytes(Vec::new()), None),
            (&ContextSource::Empty, DockerfileSource::Bytes(Vec::new()), None),
            (&ContextSource::Git("https://h/r.git".into()), DockerfileSource::Default, None),
            (&ContextSource::Git("https://h/r.git".into()), DockerfileSource::InContext("x".into()), None),
        ] {
            assert_eq!(beside(context, &dockerfile), want.map(PathBuf::from), "{dockerfile:?}");
        }
    }
}
