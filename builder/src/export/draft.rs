//! Hides how the drafts that a killed kiln left beside an output are told from those that a living one is writing: their names say
//! which process of which pid namespace made them.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// How the names of this process's drafts begin; what follows is up to the caller.
pub(crate) fn prefix() -> String {
    format!("{MARK}{}-{}-", pid_namespace(), std::process::id())
}

/// Whether a name is that of a draft whose process has died.
pub(crate) fn is_abandoned(name: &[u8]) -> bool {
    let parts = std::str::from_utf8(name).ok().and_then(|name| name.strip_prefix(MARK)?.split_once('-'));
    let Some((namespace, rest)) = parts else { return false };
    let number = rest.split_once('-').and_then(|(number, _)| number.parse::<u32>().ok());
    // Of other namespaces' processes nothing can be known from here.
    number.is_some_and(|number| namespace == pid_namespace() && !Path::new("/proc").join(number.to_string()).exists())
}

/// Removes abandoned drafts of files from the folder, as far as that can be done: whoever killed kiln finds no gigabytes there later.
pub(crate) fn sweep(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if is_abandoned(entry.file_name().as_bytes()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

const MARK: &str = ".kiln-";

/// The number of this process's pid namespace; `unknown`, which no draft is believed of, without a proc file system.
fn pid_namespace() -> String {
    let link = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    let digits = |link: &OsStr| link.to_str()?.strip_prefix("pid:[")?.strip_suffix(']').map(str::to_owned);
    digits(link.as_os_str()).unwrap_or_else(|| format!("unknown{}", std::process::id()))
}

#[cfg(test)]
mod tests {
    use super::{is_abandoned, pid_namespace, prefix};

    #[test]
    fn drafts_of_the_dead_are_known() {
        let namespace = pid_namespace();
        for (name, abandoned) in [
            (format!("{}7", prefix()), false),
            // No process has such a number.
            (format!(".kiln-{namespace}-4294967295-7"), true),
            (format!(".kiln-{namespace}-1-AbCd12"), false),
            (".kiln-1-4294967295-7".to_owned(), false),
            (format!(".kiln-{namespace}-x-7"), false),
            (format!("kiln-{namespace}-4294967295-7"), false),
            (".kiln-".to_owned(), false),
            ("file".to_owned(), false),
        ] {
            assert_eq!(is_abandoned(name.as_bytes()), abandoned, "{name}");
        }
    }
}
