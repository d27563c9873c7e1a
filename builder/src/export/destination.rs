//! Hides that a file is whole or not there at all: it is written beside its place and renamed.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::draft;
use crate::error::Error;

/// Has `write` write a file, or standard output without a `path`. What isn't a plain file (a pipe, a device) is written to as it is.
pub(crate) fn write(path: Option<&Path>, write: impl FnOnce(&mut dyn Write) -> Result<(), Error>) -> Result<(), Error> {
    let Some(path) = path else {
        return buffered(io::stdout().lock(), Path::new("-"), write);
    };
    if std::fs::metadata(path).is_ok_and(|meta| !meta.is_file() && !meta.is_dir()) {
        let file = File::options().write(true).open(path).map_err(Error::output(path))?;
        return buffered(file, path, write);
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    draft::sweep(folder);
    let draft = tempfile::Builder::new().prefix(&draft::prefix()).tempfile_in(folder).map_err(Error::output(path))?;
    buffered(draft.as_file(), path, write)?;
    // Temporary files are private; this one was asked for.
    let shared = std::fs::Permissions::from_mode(0o644);
    draft.as_file().set_permissions(shared).map_err(Error::output(path))?;
    draft.persist(path).map_err(|e| Error::output(path)(e.error))?;
    Ok(())
}

fn buffered(to: impl Write, path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<(), Error>) -> Result<(), Error> {
    let mut out = BufWriter::with_capacity(1 << 20, to);
    write(&mut out)?;
    out.flush().map_err(Error::output(path))
}
