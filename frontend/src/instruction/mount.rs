//! Hides the comma-separated language of `RUN --mount` (BuildKit `commands_runmount.go`).

use crate::diagnostic::{Diagnostic, nearest};
use crate::graph::Sharing;

/// The kinds of mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountType {
    /// Files of the context, a stage or an image.
    Bind,
    /// A directory that lives from build to build.
    Cache,
    /// Memory.
    Tmpfs,
    /// A secret.
    Secret,
    /// An agent's socket.
    Ssh,
}

impl MountType {
    const ALL: [(&'static str, MountType); 5] = [
        ("bind", MountType::Bind),
        ("cache", MountType::Cache),
        ("tmpfs", MountType::Tmpfs),
        ("secret", MountType::Secret),
        ("ssh", MountType::Ssh),
    ];

    /// As it is written.
    #[must_use]
    pub fn name(self) -> &'static str {
        MountType::ALL[self as usize].0
    }
}

/// What a `--mount` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountSpec {
    /// `type`.
    pub kind: MountType,
    /// `from`; empty if not given.
    pub from: String,
    /// `source`; empty if not given.
    pub source: String,
    /// `target`; empty if not given.
    pub target: String,
    /// Whether the command may only read.
    pub readonly: bool,
    /// `size` in bytes.
    pub size: Option<u64>,
    /// `id`; empty if not given.
    pub id: String,
    /// `sharing`.
    pub sharing: Option<Sharing>,
    /// `required`.
    pub required: bool,
    /// `env`.
    pub env: Option<String>,
    /// `mode`.
    pub mode: Option<u32>,
    /// `uid`.
    pub uid: Option<u32>,
    /// `gid`.
    pub gid: Option<u32>,
}

const KEYS: [&str; 19] = [
    "type",
    "from",
    "source",
    "target",
    "readonly",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "src",
    "dst",
    "destination",
    "ro",
    "rw",
    "readwrite",
    "env",
];

/// Reads a `--mount` value. `expand` is applied to each value.
///
/// # Errors
/// A [`Diagnostic`] without a place.
pub fn parse_mount(text: &str, expand: &mut dyn FnMut(&str) -> Result<String, Diagnostic>) -> Result<MountSpec, Diagnostic> {
    let mut m = MountSpec {
        kind: MountType::Bind,
        from: String::new(),
        source: String::new(),
        target: String::new(),
        readonly: false,
        size: None,
        id: String::new(),
        sharing: None,
        required: false,
        env: None,
        mode: None,
        uid: None,
        gid: None,
    };
    let mut readonly = None;
    for field in fields(text)? {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key.to_lowercase(), Some(expand(value)?)),
            None => (field.to_lowercase(), None),
        };
        let flag = |value: &Option<String>| match value.as_deref() {
            None => Ok(true),
            Some("1" | "t" | "T" | "TRUE" | "true" | "True") => Ok(true),
            Some("0" | "f" | "F" | "FALSE" | "false" | "False") => Ok(false),
            Some(other) => Err(Diagnostic::error(format!("invalid value for {key}: {other}"))),
        };
        match key.as_str() {
            "readonly" | "ro" => {
                readonly = Some(flag(&value)?);
                continue;
            }
            "readwrite" | "rw" => {
                readonly = Some(!flag(&value)?);
                continue;
            }
            "required" => {
                if !matches!(m.kind, MountType::Secret | MountType::Ssh) {
                    return Err(unexpected(&key, m.kind));
                }
                m.required = flag(&value)?;
                continue;
            }
            _ => {}
        }
        let Some(value) = value else {
            return Err(Diagnostic::error(format!("invalid field '{field}' must be a key=value pair")));
        };
        match key.as_str() {
            "type" => {
                let lower = value.to_lowercase();
                let Some((_, kind)) = MountType::ALL.iter().find(|(name, _)| *name == lower) else {
                    let error = Diagnostic::error(format!("unsupported mount type {value:?}"));
                    return Err(suggest(error, &value, MountType::ALL.iter().map(|(name, _)| *name)));
                };
                m.kind = *kind;
            }
            "from" => m.from = value,
            "source" | "src" => m.source = value,
            "target" | "dst" | "destination" => m.target = value,
            "size" => {
                if m.kind != MountType::Tmpfs {
                    return Err(unexpected(&key, m.kind));
                }
                m.size = Some(bytes(&value).ok_or_else(|| Diagnostic::error(format!("invalid value for {key}: {value}")))?);
            }
            "id" => m.id = value,
            "sharing" => {
                m.sharing = Some(match value.to_lowercase().as_str() {
                    "shared" => Sharing::Shared,
                    "private" => Sharing::Private,
                    "locked" => Sharing::Locked,
                    _ => {
                        let error = Diagnostic::error(format!("unsupported sharing value {value:?}"));
                        return Err(suggest(error, &value, ["shared", "private", "locked"]));
                    }
                });
            }
            "mode" => m.mode = Some(number(&key, &value, 8)?),
            "uid" => m.uid = Some(number(&key, &value, 10)?),
            "gid" => m.gid = Some(number(&key, &value, 10)?),
            "env" => m.env = Some(value),
            _ => {
                let error = Diagnostic::error(format!("unexpected key '{key}' in '{field}'"));
                return Err(suggest(error, &key, KEYS));
            }
        }
    }
    check(&m)?;
    m.readonly = readonly.unwrap_or(!matches!(m.kind, MountType::Cache | MountType::Tmpfs));
    Ok(m)
}

fn check(m: &MountSpec) -> Result<(), Diagnostic> {
    let error = |message: String| Err(Diagnostic::error(message));
    if matches!(m.kind, MountType::Bind | MountType::Tmpfs) {
        for (key, set) in [("mode", m.mode.is_some()), ("uid", m.uid.is_some()), ("gid", m.gid.is_some())] {
            if set {
                return error(format!("{key} not allowed for {:?} type mounts", m.kind.name()));
            }
        }
    }
    if m.kind == MountType::Secret {
        if !m.from.is_empty() {
            return error("secret mount should not have a from".to_owned());
        }
        if m.sharing.is_some() {
            return error("secret mount should not define sharing".to_owned());
        }
        if m.source.is_empty() && m.target.is_empty() && m.id.is_empty() {
            return error("invalid secret mount. one of source, target required".to_owned());
        }
        if !m.source.is_empty() && !m.id.is_empty() {
            return error("both source and id can't be set".to_owned());
        }
    }
    if m.kind == MountType::Secret && m.env.as_deref() == Some("") {
        return error("invalid value for env: a variable needs a name".to_owned());
    }
    if m.kind == MountType::Ssh && !m.source.is_empty() {
        return error("ssh mount does not support source".to_owned());
    }
    if m.sharing.is_some() && m.kind != MountType::Cache {
        return error(format!("invalid cache sharing set for {} mount", m.kind.name()));
    }
    Ok(())
}

/// The `from` of a mount, which must be known before anything is expanded.
///
/// # Errors
/// A [`Diagnostic`] when it holds a variable.
pub(crate) fn mount_from(text: &str) -> Result<Option<String>, Diagnostic> {
    let mut from = None;
    for field in fields(text)? {
        let Some((key, value)) = field.split_once('=') else { continue };
        if !key.eq_ignore_ascii_case("from") {
            continue;
        }
        if value.find('$').is_some_and(|i| i + 1 != value.len()) {
            return Err(Diagnostic::error("'from' doesn't support variable expansion, define alias stage instead"));
        }
        from = (!value.is_empty()).then(|| value.to_owned());
    }
    Ok(from)
}

fn unexpected(key: &str, kind: MountType) -> Diagnostic {
    Diagnostic::error(format!("unexpected key '{key}' for mount type '{}'", kind.name()))
}

fn suggest<'a>(error: Diagnostic, word: &str, options: impl IntoIterator<Item = &'a str>) -> Diagnostic {
    match nearest(word, options) {
        Some(option) => error.with_hint(format!("did you mean `{option}`?")),
        None => error,
    }
}

fn number(key: &str, value: &str, radix: u32) -> Result<u32, Diagnostic> {
    u32::from_str_radix(value, radix).map_err(|_| Diagnostic::error(format!("invalid value {value} for {key}")))
}

/// Sizes such as `64m` (go-units `RAMInBytes`).
fn bytes(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let text = lower.strip_suffix('b').unwrap_or(&lower);
    let text = text.strip_suffix('i').unwrap_or(text);
    let (text, shift) = match text.as_bytes().last()? {
        b'k' => (&text[..text.len() - 1], 10),
        b'm' => (&text[..text.len() - 1], 20),
        b'g' => (&text[..text.len() - 1], 30),
        b't' => (&text[..text.len() - 1], 40),
        b'p' => (&text[..text.len() - 1], 50),
        _ => (text, 0),
    };
    let text = text.strip_suffix(' ').unwrap_or(text);
    if !text.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return None;
    }
    let value: f64 = text.parse().ok()?;
    Some((value * (1_u64 << shift) as f64) as u64)
}

/// The fields of one line of comma-separated values.
fn fields(text: &str) -> Result<Vec<String>, Diagnostic> {
    let bad = |what: &str| Diagnostic::error(format!("failed to parse csv mounts: {what}"));
    let mut out = Vec::new();
    let mut chars = text.chars().peekable();
    loop {
        let mut field = String::new();
        if chars.next_if_eq(&'"').is_some() {
            loop {
                match chars.next() {
                    None => return Err(bad("extraneous or missing \" in quoted-field")),
                    Some('"') if chars.next_if_eq(&'"').is_some() => field.push('"'),
                    Some('"') => break,
                    Some(c) => field.push(c),
                }
            }
            if chars.peek().is_some_and(|c| *c != ',') {
                return Err(bad("extraneous or missing \" in quoted-field"));
            }
        }
        while let Some(c) = chars.next_if(|c| *c != ',') {
            if c == '"' {
                return Err(bad("bare \" in non-quoted field"));
            }
            field.push(c);
        }
        out.push(field);
        if chars.next().is_none() {
            return Ok(out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<MountSpec, String> {
        parse_mount(text, &mut |v| Ok(v.to_owned())).map_err(|d| d.message)
    }

    #[test]
    fn mistakes() {
        let rows = [
            ("", "invalid field '' must be a key=value pair"),
            ("type=tmpf", "unsupported mount type \"tmpf\""),
            ("targt=/x", "unexpected key 'targt' in 'targt=/x'"),
            ("target", "invalid field 'target' must be a key=value pair"),
            ("ro=maybe", "invalid value for ro: maybe"),
            ("size=1m", "unexpected key 'size' for mount type 'bind'"),
            ("type=tmpfs,size=x", "invalid value for size: x"),
            ("type=cache,sharing=all", "unsupported sharing value \"all\""),
            ("sharing=locked", "invalid cache sharing set for bind mount"),
            ("type=cache,mode=9", "invalid value 9 for mode"),
            ("uid=1", "uid not allowed for \"bind\" type mounts"),
            ("type=cache,required", "unexpected key 'required' for mount type 'cache'"),
            ("type=secret", "invalid secret mount. one of source, target required"),
            ("type=secret,id=a,source=b", "both source and id can't be set"),
            ("type=secret,id=a,from=b", "secret mount should not have a from"),
            ("type=secret,id=a,env=", "invalid value for env: a variable needs a name"),
            ("type=ssh,source=b", "ssh mount does not support source"),
            ("\"target=/x", "failed to parse csv mounts: extraneous or missing \" in quoted-field"),
        ];
        for (text, want) in rows {
            assert_eq!(parse(text).unwrap_err(), want, "{text}");
        }
        assert_eq!(
            mount_from("from=$x").unwrap_err().message,
            "'from' doesn't support variable expansion, define alias stage instead"
        );
        assert_eq!(mount_from("from=a,target=$x").unwrap().as_deref(), Some("a"));
    }

    #[test]
    fn values() {
        let m = parse("type=cache,id=x,target=/c,sharing=LOCKED,mode=0700,uid=1,gid=2,ro").unwrap();
        assert_eq!((m.kind, m.readonly, m.mode, m.sharing), (MountType::Cache, true, Some(0o700), Some(Sharing::Locked)));
        assert!(parse("target=/x").unwrap().readonly);
        assert!(!parse("target=/x,rw").unwrap().readonly);
        assert!(parse("target=/x,rw=false").unwrap().readonly);
        assert_eq!(parse("\"target=/a,b\",source=c").unwrap().target, "/a,b");
        for (text, want) in [("64m", 64 << 20), ("1.5GiB", 3 << 29), ("100", 100), ("2kb", 2048)] {
            assert_eq!(parse(&format!("type=tmpfs,size={text}")).unwrap().size, Some(want), "{text}");
        }
    }
}
