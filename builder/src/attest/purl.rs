//! Hides how a package URL is spelled (purl-spec: the parts, which characters are escaped, qualifiers in order).

use std::fmt::Write as _;

use kiln_oci::platform::Platform;
use kiln_oci::reference::Reference;

/// The address of a package in the words of its own ecosystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Purl<'a> {
    /// `deb`, `npm`, …
    pub kind: &'a str,
    /// What the name belongs to, with a `/` between its parts; may be empty.
    pub namespace: &'a str,
    /// The name.
    pub name: &'a str,
    /// The version; may be empty.
    pub version: &'a str,
    /// Keys with their values; empty values are left out.
    pub qualifiers: &'a [(&'a str, &'a str)],
}

impl std::fmt::Display for Purl<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "pkg:{}", self.kind)?;
        for part in self.namespace.split('/').filter(|part| !part.is_empty()) {
            write!(f, "/{}", Escaped(part))?;
        }
        write!(f, "/{}", Escaped(self.name))?;
        if !self.version.is_empty() {
            write!(f, "@{}", Escaped(self.version))?;
        }
        let mut qualifiers: Vec<_> = self.qualifiers.iter().filter(|(_, value)| !value.is_empty()).collect();
        qualifiers.sort_unstable();
        for (index, (key, value)) in qualifiers.into_iter().enumerate() {
            let mark = if index == 0 { '?' } else { '&' };
            write!(f, "{mark}{key}={}", Escaped(value))?;
        }
        Ok(())
    }
}

/// All but letters, digits and `.-_~:` in percent.
struct Escaped<'a>(&'a str);

impl std::fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for byte in self.0.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_' | b'~' | b':' => f.write_char(byte.into())?,
                _ => write!(f, "%{byte:02X}")?,
            }
        }
        Ok(())
    }
}

/// An image by its name: of a registry, or (`oci`) of a folder. As BuildKit writes them.
pub fn of_image(kind: &str, reference: &Reference, platform: &Platform) -> String {
    let familiar = reference.familiar();
    let name = familiar.split('@').next().unwrap_or_default();
    // A colon behind the last slash is that of a tag; one before it is that of a port.
    let at = name.rfind('/').map_or(0, |slash| slash + 1);
    let base = name[at..].split(':').next().unwrap_or_default();
    let digest = reference.digest().map(|digest| digest.to_string()).unwrap_or_default();
    let tag = match (reference.tag(), digest.is_empty()) {
        (Some(tag), _) => tag,
        (None, true) => "latest",
        (None, false) => "",
    };
    let platform = platform.to_string();
    let qualifiers = [("digest", digest.as_str()), ("platform", platform.as_str())];
    Purl { kind, namespace: &name[..at], name: base, version: tag, qualifiers: &qualifiers }.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages() {
        let purl = |kind, namespace, name, version, qualifiers| Purl { kind, namespace, name, version, qualifiers }.to_string();
        assert_eq!(
            purl("deb", "debian", "g++", "1:4.13+dfsg1-1", &[("distro", "debian-12"), ("arch", "amd64"), ("upstream", "")]),
            "pkg:deb/debian/g%2B%2B@1:4.13%2Bdfsg1-1?arch=amd64&distro=debian-12"
        );
        assert_eq!(purl("npm", "@types", "node", "20.1.0", &[]), "pkg:npm/%40types/node@20.1.0");
        assert_eq!(purl("golang", "github.com/a/b", "c", "v1.0.0", &[]), "pkg:golang/github.com/a/b/c@v1.0.0");
    }

    #[test]
    fn images_are_spelled_as_buildkit_spells_them() {
        let platform = Platform::parse("linux/amd64").unwrap();
        let zeros = "0".repeat(64);
        for (name, expected) in [
            ("busybox", "pkg:docker/busybox@latest?platform=linux%2Famd64".to_owned()),
            ("a.test/n:1", "pkg:docker/a.test/n@1?platform=linux%2Famd64".to_owned()),
            ("127.0.0.1:48229/x:art1", "pkg:docker/127.0.0.1:48229/x@art1?platform=linux%2Famd64".to_owned()),
            (&format!("me/n@sha256:{zeros}"), format!("pkg:docker/me/n?digest=sha256:{zeros}&platform=linux%2Famd64")),
        ] {
            assert_eq!(of_image("docker", &Reference::parse(name).unwrap(), &platform), expected);
        }
    }
}
