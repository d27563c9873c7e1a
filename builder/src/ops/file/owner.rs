//! Hides where the names of `--chown` and `USER` are looked up: in the image as it was before the step.

use kiln_oci::path::ImagePath;
use kiln_store::owner::{Owner, OwnerError};
use kiln_store::view::{View, ViewError};

use super::FileError;

/// More than any honest list of users has; a hostile one is not read to its end.
const MAX_LIST: u64 = 1 << 20;

/// Whom `--chown` means in the image `view`. A user that the image doesn't list is 0, and a group that it doesn't list is the
/// user's own, as BuildKit has it (solver/llbsolver/ops readUser, checked against it); `warn` is told.
pub(super) fn of_chown(spec: &str, view: &View, warn: &mut dyn FnMut(String)) -> Result<Owner, FileError> {
    match listed(spec, view) {
        Err(error @ FileError::Owner { cause: OwnerError::UnknownUser(_), .. }) => {
            warn(format!("{}; 0 is taken", told(&error)));
            match spec.split_once(':') {
                Some((_, group)) => of_chown(&format!("0:{group}"), view, warn),
                None => Ok(Owner::ROOT),
            }
        }
        Err(error @ FileError::Owner { cause: OwnerError::UnknownGroup(_), .. }) => {
            warn(format!("{}; the user's own is taken", told(&error)));
            let user = spec.split(':').next().unwrap_or_default();
            of_chown(if user.is_empty() { "0" } else { user }, view, warn)
        }
        owner => owner,
    }
}

/// As [`of_chown`], but the image must list every name.
pub(super) fn listed(spec: &str, view: &View) -> Result<Owner, FileError> {
    // `name:` and `:group`: what is left out is 0 (BuildKit dockerfile2llb parseChownFlag, checked against it).
    let spelled = match spec.split_once(':') {
        Some((user, "")) if !user.is_empty() => format!("{user}:0"),
        Some(("", group)) if !group.is_empty() => format!("0:{group}"),
        _ => spec.to_owned(),
    };
    find(spec, &spelled, view)
}

/// Whom `USER` means in the image `view` for a WORKDIR; nothing is root. Only a RUN needs the user to exist.
pub(super) fn of_user(spec: &str, view: &View) -> Result<Owner, FileError> {
    if spec.is_empty() {
        return Ok(Owner::ROOT);
    }
    of_chown(spec, view, &mut |_| {})
}

fn told(error: &FileError) -> String {
    match error {
        FileError::Owner { spec, cause, hint: Some(hint) } => format!("--chown={spec}: {cause} ({hint})"),
        FileError::Owner { spec, cause, hint: None } => format!("--chown={spec}: {cause}"),
        other => other.to_string(),
    }
}

fn find(spec: &str, spelled: &str, view: &View) -> Result<Owner, FileError> {
    let (passwd, group) = if Owner::is_numeric(spelled) {
        (Vec::new(), Vec::new())
    } else {
        (list(view, "/etc/passwd")?, list(view, "/etc/group")?)
    };
    Owner::parse(spelled, &passwd, &group).map_err(|cause| {
        let hint = match &cause {
            OwnerError::UnknownUser(_) => Some(known("users", &passwd)),
            OwnerError::UnknownGroup(_) => Some(known("groups", &group)),
            _ => None,
        };
        FileError::Owner { spec: spec.to_owned(), cause, hint }
    })
}

fn list(view: &View, path: &str) -> Result<Vec<u8>, FileError> {
    match view.read_file(&ImagePath::new(path), MAX_LIST) {
        Ok(bytes) => Ok(bytes.unwrap_or_default()),
        // A directory or a device in its place lists nobody.
        Err(ViewError::NotAFile(_)) => Ok(Vec::new()),
        Err(e) => Err(e.into()),
    }
}

fn known(what: &str, list: &[u8]) -> String {
    let mut names: Vec<String> = list
        .split(|b| *b == b'\n')
        .filter_map(|line| line.split(|b| *b == b':').next())
        .filter(|name| !name.is_empty() && !name.starts_with(b"#"))
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect();
    if names.is_empty() {
        return format!("the image lists no {what} (nor does any image with --link): use a number");
    }
    let more = names.len().saturating_sub(12);
    names.truncate(12);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("the {what} of the image are {}{rest}", names.join(", "))
}
