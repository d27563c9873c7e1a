//! Hides what stands before the key of `--annotation`: to which documents of which platforms it belongs.

use kiln::request::{Annotations, Output, Scope};
use kiln_oci::platform::Platform;

use super::report::Failure;

/// Reads `[TYPE[PLATFORM],…:]KEY=VALUE` (buildx `util/buildflags/export.go`, BuildKit `exptypes/annotations.go`).
pub(super) fn parse(texts: &[String]) -> Result<Annotations, Failure> {
    let mut out = Annotations::default();
    for text in texts.iter().filter(|text| !text.is_empty()) {
        let Some((key, value)) = text.split_once('=') else {
            return Err(Failure::usage_hint(
                format!("parse annotations: invalid annotation {text:?}, expected key=value"),
                "write `--annotation KEY=VALUE`",
            ));
        };
        let (types, key) = key.split_once(':').unwrap_or(("", key));
        if key.is_empty() || key.contains(char::is_whitespace) {
            return Err(Failure::usage(format!("parse annotations: invalid annotation {text:?}: `{key}` can't be a key")));
        }
        for kind in types.split(',') {
            let (kind, platform) = kind_and_platform(kind)?;
            let scope = match kind {
                "" | "manifest" => Scope::Manifest,
                "manifest-descriptor" => Scope::ManifestDescriptor,
                "index" => Scope::Index,
                "index-descriptor" => Scope::IndexDescriptor,
                other => {
                    return Err(Failure::usage_hint(
                        format!("parse annotations: unknown annotation type {other:?}"),
                        "an annotation's type is manifest, manifest-descriptor, index or index-descriptor; write `manifest:` before \
                         a key with a colon",
                    ));
                }
            };
            out.add(scope, platform, key, value);
        }
    }
    Ok(out)
}

/// Refuses annotations for what there is none of: an index, which one platform alone may have none of (`has_none`), or a platform.
pub(super) fn check(outputs: &[Output], has_none: bool, platforms: &[Platform]) -> Result<(), Failure> {
    let items = || outputs.iter().filter_map(Output::options).flat_map(|options| &options.annotations.items);
    let missing = items().filter_map(|(_, platform, ..)| platform.as_ref()).find(|platform| !platforms.contains(platform));
    if let Some(platform) = missing.filter(|_| platforms.len() > 1) {
        return Err(Failure::usage(format!("invalid annotation: no platform {platform} found in source")));
    }
    if platforms.len() > 1 || !has_none {
        return Ok(());
    }
    let of_index = |scope: &Scope| matches!(scope, Scope::Index | Scope::IndexDescriptor);
    let mut items = items();
    match items.find(|(scope, ..)| of_index(scope)) {
        None => Ok(()),
        Some((_, _, key, value)) => Err(Failure::usage_hint(
            "index annotations not supported for single platform export",
            format!("write `--annotation manifest:{key}={value}`"),
        )),
    }
}

/// `manifest[linux/amd64]`.
fn kind_and_platform(text: &str) -> Result<(&str, Option<Platform>), Failure> {
    let invalid = || {
        Failure::usage(format!(
            "parse annotations: invalid annotation type {text:?}, expected type and optional platform in square brackets"
        ))
    };
    let (kind, platform) = match text.split_once('[') {
        None => (text, None),
        Some((kind, rest)) => {
            let platform = rest.strip_suffix(']').filter(|name| !name.is_empty() && !kind.is_empty()).ok_or_else(invalid)?;
            let parsed = Platform::parse(platform)
                .map_err(|error| Failure::usage(format!("parse annotations: invalid platform {platform:?}: {error}")))?;
            (kind, Some(parsed))
        }
    };
    match kind.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-') {
        true => Ok((kind, platform)),
        false => Err(invalid()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<String, String> {
        let platform = Platform::parse("linux/amd64").unwrap();
        let texts: Vec<String> = text.split('|').map(str::to_owned).collect();
        let found = parse(&texts).map_err(|error| error.to_string())?;
        let of = |scope| found.of(scope, Some(&platform));
        Ok(format!("{:?} {:?}", of(Scope::Manifest), of(Scope::ManifestDescriptor)))
    }

    #[test]
    fn places() {
        let rows = [
            ("", "{} {}"),
            ("a=1", r#"{"a": "1"} {}"#),
            ("a=b=c", r#"{"a": "b=c"} {}"#),
            ("a=", r#"{"a": ""} {}"#),
            ("a=1|a=2", r#"{"a": "2"} {}"#),
            ("manifest:com.example:x=1", r#"{"com.example:x": "1"} {}"#),
            ("manifest-descriptor:a=1", r#"{} {"a": "1"}"#),
            ("manifest,manifest-descriptor:a=1", r#"{"a": "1"} {"a": "1"}"#),
            ("manifest[linux/amd64]:a=1|manifest[linux/arm64]:b=2", r#"{"a": "1"} {}"#),
            ("x[y]=1", r#"{"x[y]": "1"} {}"#),
        ];
        for (text, want) in rows {
            assert_eq!(read(text).unwrap(), want, "{text}");
        }
    }

    #[test]
    fn mistakes() {
        let kind = |kind: &str| {
            format!("parse annotations: invalid annotation type {kind:?}, expected type and optional platform in square brackets")
        };
        let rows = [
            ("a", "parse annotations: invalid annotation \"a\", expected key=value".to_owned()),
            ("manifest:", "parse annotations: invalid annotation \"manifest:\", expected key=value".to_owned()),
            ("foo:a=1", "parse annotations: unknown annotation type \"foo\"".to_owned()),
            ("manifest,foo:a=1", "parse annotations: unknown annotation type \"foo\"".to_owned()),
            ("manifest[]:a=1", kind("manifest[]")),
            ("MANIFEST:a=1", kind("MANIFEST")),
            ("com.example:thing=1", kind("com.example")),
            ("manifest, index:a=1", kind(" index")),
            ("=1", "parse annotations: invalid annotation \"=1\": `` can't be a key".to_owned()),
            ("a b=1", "parse annotations: invalid annotation \"a b=1\": `a b` can't be a key".to_owned()),
        ];
        for (text, want) in rows {
            assert_eq!(read(text).unwrap_err(), want, "{text}");
        }
        assert!(read("manifest[a/b/c/d/e]:a=1").unwrap_err().starts_with("parse annotations: invalid platform \"a/b/c/d/e\""));
    }
}
