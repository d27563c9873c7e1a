//! Hides the many spellings of an operating system and processor (containerd's `platforms`, image-spec image-index.md).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is not a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a platform: `os/arch` or `os/arch/variant` is expected, for instance `linux/arm64`")]
pub struct PlatformError(String);

/// An operating system and processor architecture, in Go's names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`, `windows`, …
    #[serde(default)]
    pub os: String,
    /// `amd64`, `arm64`, …
    #[serde(default)]
    pub architecture: String,
    /// `v7` for 32-bit ARM, and the like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// Windows' build number.
    #[serde(default, rename = "os.version", skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    /// Windows' features.
    #[serde(default, rename = "os.features", skip_serializing_if = "Vec::is_empty")]
    pub os_features: Vec<String>,
}

/// What Go calls operating systems: words that mean one when they stand alone (containerd `platforms/database.go`).
const SYSTEMS: [&str; 18] = [
    "aix",
    "android",
    "darwin",
    "dragonfly",
    "freebsd",
    "hurd",
    "illumos",
    "ios",
    "js",
    "linux",
    "macos",
    "nacl",
    "netbsd",
    "openbsd",
    "plan9",
    "solaris",
    "windows",
    "zos",
];

/// What Go calls processors.
const ARCHITECTURES: [&str; 24] = [
    "386",
    "amd64",
    "amd64p32",
    "arm",
    "arm64",
    "arm64be",
    "armbe",
    "loong64",
    "mips",
    "mips64",
    "mips64le",
    "mips64p32",
    "mips64p32le",
    "mipsle",
    "ppc",
    "ppc64",
    "ppc64le",
    "riscv",
    "riscv64",
    "s390",
    "s390x",
    "sparc",
    "sparc64",
    "wasm",
];

impl Platform {
    /// `os/architecture` with the spellings normalised (`x86_64` is `amd64`, `arm64/v8` is `arm64`).
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let os = match os.to_ascii_lowercase().as_str() {
            "macos" => "darwin".to_owned(),
            other => other.to_owned(),
        };
        let variant = variant.map(str::to_ascii_lowercase).filter(|v| !v.is_empty());
        let (architecture, variant) = match (architecture.to_ascii_lowercase().as_str(), variant.as_deref()) {
            ("i386", _) => ("386".to_owned(), None),
            ("x86_64" | "x86-64" | "amd64", v) => ("amd64".to_owned(), v.filter(|v| *v != "v1").map(str::to_owned)),
            ("aarch64" | "arm64", v) => ("arm64".to_owned(), v.filter(|v| *v != "8" && *v != "v8").map(str::to_owned)),
            ("armhf", _) => ("arm".to_owned(), Some("v7".to_owned())),
            ("armel", _) => ("arm".to_owned(), Some("v6".to_owned())),
            ("arm", None) => ("arm".to_owned(), Some("v7".to_owned())),
            ("arm", Some(v)) => {
                let v = if v.starts_with('v') { v.to_owned() } else { format!("v{v}") };
                ("arm".to_owned(), Some(v))
            }
            (other, v) => (other.to_owned(), v.map(str::to_owned)),
        };
        Self { os, architecture, variant, os_version: None, os_features: Vec::new() }
    }

    /// The platform that this program runs on.
    pub fn host() -> Self {
        let variant = if std::env::consts::ARCH == "arm" { Some("v7") } else { None };
        Self::new("linux", std::env::consts::ARCH, variant)
    }

    /// Parses `os/arch[/variant]`, or a lone architecture, which means linux, or a lone system, which means this architecture.
    pub fn parse(text: &str) -> Result<Self, PlatformError> {
        let bad = || PlatformError(text.to_owned());
        let parts: Vec<&str> = text.split('/').collect();
        let word = |p: &str| {
            !p.is_empty() && p.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'(' | b')'))
        };
        if !parts.iter().all(|p| word(p)) {
            return Err(bad());
        }
        // `windows(10.0.17763)` carries the version of the operating system in brackets.
        let (os, version) = match parts[0].split_once('(') {
            Some((os, rest)) => (os, Some(rest.strip_suffix(')').ok_or_else(bad)?.to_owned())),
            None => (parts[0], None),
        };
        let mut platform = match parts[..] {
            [_] if SYSTEMS.contains(&os.to_ascii_lowercase().as_str()) => {
                let host = Self::host();
                Self::new(os, &host.architecture, host.variant.as_deref())
            }
            [one] => {
                let platform = Self::new("linux", one, None);
                if !ARCHITECTURES.contains(&platform.architecture.as_str()) {
                    return Err(bad());
                }
                platform
            }
            [_, arch] => Self::new(os, arch, None),
            [_, arch, variant] => Self::new(os, arch, Some(variant)),
            _ => return Err(bad()),
        };
        platform.os_version = version;
        Ok(platform)
    }

    /// How well an image for `self` serves a host that asks for `wanted`: `None` not at all, higher is better.
    ///
    /// 32-bit ARM hosts run images of lower variants; everything else must agree (containerd `platforms/compare.go`).
    pub fn serves(&self, wanted: &Platform) -> Option<u32> {
        let have = Self::new(&self.os, &self.architecture, self.variant.as_deref());
        let want = Self::new(&wanted.os, &wanted.architecture, wanted.variant.as_deref());
        if have.os != want.os || have.architecture != want.architecture {
            return None;
        }
        let level = |v: &Option<String>| v.as_deref().and_then(|v| v.trim_start_matches('v').parse::<u32>().ok()).unwrap_or(0);
        match (level(&have.variant), level(&want.variant)) {
            (have, want) if have == want => Some(1000),
            (have, want) if have < want => Some(have),
            _ => None,
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Platform {
    type Err = PlatformError;
    fn from_str(text: &str) -> Result<Self, PlatformError> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_are_normalised() {
        for (text, shown) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/x86_64", "linux/amd64"),
            ("arm64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/arm/6", "linux/arm/v6"),
            ("linux/armhf", "linux/arm/v7"),
            ("windows/amd64", "windows/amd64"),
        ] {
            assert_eq!(Platform::parse(text).unwrap().to_string(), shown, "{text}");
        }
        assert_eq!(Platform::parse("Linux").unwrap(), Platform::host());
        for text in ["", "/", "linux/", "a/b/c/d", "linux/am d64", "bogus"] {
            assert!(Platform::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn lower_arm_variants_serve_higher_hosts() {
        let p = |t| Platform::parse(t).unwrap();
        assert_eq!(p("linux/amd64").serves(&p("linux/amd64")), Some(1000));
        assert_eq!(p("linux/arm/v6").serves(&p("linux/arm/v7")), Some(6));
        assert_eq!(p("linux/arm/v7").serves(&p("linux/arm/v6")), None);
        assert_eq!(p("linux/arm64").serves(&p("linux/amd64")), None);
    }
}
