//! Hides the language of `--on-failure`.

use std::path::PathBuf;

use kiln::ops::failed::{Export, OnFailure};
use kiln_oci::path::ImagePath;

use super::csv::csv_fields;
use super::report::Failure;

/// The shell where none is named.
const SHELL: &str = "/bin/sh";

/// What the flags ask for, each at most once.
pub(super) fn on_failure(words: &[String]) -> Result<OnFailure, Failure> {
    let mut wish = OnFailure::default();
    for text in words {
        let invalid = |reason: &str| {
            let hint = "write `shell`, `shell=/bin/bash`, `export=DIR` or `export=DIR,path=/var/log`";
            Failure::usage_hint(format!("invalid --on-failure `{text}`: {reason}"), hint)
        };
        let fields = csv_fields(text);
        let pairs = fields.iter().map(|field| field.split_once('=').map_or((field.as_str(), ""), |(key, value)| (key, value)));
        let pairs: Vec<(&str, &str)> = pairs.collect();
        match pairs.as_slice() {
            [("shell", _)] if wish.shell.is_some() => return Err(invalid("there can be one shell only")),
            [("shell", "")] => wish.shell = Some(SHELL.to_owned()),
            [("shell", program)] => wish.shell = Some((*program).to_owned()),
            [("export", _), ..] if wish.export.is_some() => return Err(invalid("there can be one export only")),
            [("export", ""), ..] => return Err(invalid("it names no folder")),
            [("export", folder), paths @ ..] => {
                let folder = PathBuf::from(folder);
                let path = |(key, value): &(&str, &str)| match *key {
                    "path" if value.starts_with('/') => Ok(ImagePath::new(value)),
                    "path" => Err(invalid("a path in the step is absolute")),
                    _ => Err(invalid(&format!("there is no field `{key}`"))),
                };
                let paths = paths.iter().map(path).collect::<Result<_, _>>()?;
                match std::fs::read_dir(&folder).map(Iterator::count) {
                    Ok(1..) => return Err(invalid("the folder is not empty")),
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(invalid(&error.to_string())),
                    _ => {}
                }
                wish.export = Some(Export { folder, paths });
            }
            _ => return Err(invalid("it is neither a shell nor an export")),
        }
    }
    Ok(wish)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(words: &[&str]) -> Result<OnFailure, String> {
        on_failure(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>()).map_err(|failure| failure.to_string())
    }

    #[test]
    fn what_is_meant() {
        let export = |folder: &str, paths: &[&str]| {
            Some(Export { folder: folder.into(), paths: paths.iter().map(ImagePath::new).collect() })
        };
        let rows: &[(&[&str], OnFailure)] = &[
            (&[], OnFailure::default()),
            (&["shell"], OnFailure { shell: Some("/bin/sh".into()), export: None }),
            (&["shell=/bin/bash"], OnFailure { shell: Some("/bin/bash".into()), export: None }),
            (&["export=/no/such"], OnFailure { shell: None, export: export("/no/such", &[]) }),
            (
                &["export=out,path=/var/log,path=/a", "shell"],
                OnFailure { shell: Some("/bin/sh".into()), export: export("out", &["/var/log", "/a"]) },
            ),
        ];
        for (words, expected) in rows {
            assert_eq!(wish(words).as_ref(), Ok(expected), "{words:?}");
        }
        for (words, expected) in [
            (&["shell", "shell"][..], "one shell"),
            (&["export=a", "export=b"], "one export"),
            (&["export"], "no folder"),
            (&["export=a,path=var"], "absolute"),
            (&["export=a,paths=/var"], "no field `paths`"),
            (&["export=/etc"], "not empty"),
            (&["export=/etc/passwd"], "Not a directory"),
            (&["exec"], "neither"),
            (&["shell,path=/x"], "neither"),
        ] {
            let got = wish(words).unwrap_err();
            assert!(got.contains(expected), "{words:?}: {got}");
        }
    }
}
