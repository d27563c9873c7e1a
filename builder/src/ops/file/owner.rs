//! Hides where the names of `--chown` and `USER` are looked up: in the image as it was before the step.

use kiln_oci::path::ImagePath;
use kiln_store::owner::{Owner, OwnerError};
use kiln_store::view::{View, ViewError};

use super::FileError;

/// More than any honest list of users has; a hostile one is not read to its end.
const MAX_LIST: u64 = 1 << 20;

/// Whom `--chown` means in the image `view`, which must list every name: BuildKit takes 0 for one that it doesn't find, so that
/// a misspelt name would give the files to root.
pub(super) fn of_chown(spec: &str, view: &View) -> Result<Owner, FileError> {
    // `name:` and `:group`: what is left out is 0 (BuildKit dockerfile2llb parseChownFlag, checked against it).
    let spelled = match spec.split_once(':') {
        Some((user, "")) if !user.is_empty() => format!("{user}:0"),
        Some(("", group)) if !group.is_empty() => format!("0:{group}"),
        _ => spec.to_owned(),
    };
    find(spec, &spelled, view)
}

/// Whom `USER` means in the image `view` for a WORKDIR; nothing is root. Only a RUN needs the user to exist: one that the image
/// doesn't list is 0 here, and a group that it doesn't list is the user's own, as BuildKit has it (solver/llbsolver/ops readUser,
/// checked against it).
pub(super) fn of_user(spec: &str, view: &View) -> Result<Owner, FileError> {
    if spec.is_empty() {
        return Ok(Owner::ROOT);
    }
    match of_chown(spec, view) {
        Err(FileError::Owner { cause: OwnerError::UnknownUser(_), .. }) => match spec.split_once(':') {
            Some((_, group)) => of_user(&format!("0:{group}"), view),
            None => Ok(Owner::ROOT),
        },
        Err(FileError::Owner { cause: OwnerError::UnknownGroup(_), .. }) => {
            let user = spec.split(':').next().unwrap_or_default();
            of_user(if user.is_empty() { "0" } else { user }, view)
        }
        owner => owner,
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
