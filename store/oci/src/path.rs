//! Hides the arithmetic of paths inside an image: an `ImagePath` is absolute, clean and made of bytes.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;

/// An absolute, clean path inside an image: no `.`, no `..`, no doubled or trailing slash; any bytes but NUL.
///
/// It says nothing about symbolic links: resolving it happens below a directory handle.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImagePath(Vec<u8>);

impl ImagePath {
    /// `/`.
    pub fn root() -> Self {
        Self(b"/".to_vec())
    }

    /// Cleans `path`; a relative one counts from `/`, and `..` stops at `/`.
    pub fn new(path: impl AsRef<[u8]>) -> Self {
        Self::root().join(path)
    }

    /// `path` seen from here: an absolute one replaces `self`; `..` stops at `/`.
    #[must_use]
    pub fn join(&self, path: impl AsRef<[u8]>) -> Self {
        let path = path.as_ref();
        let mut parts: Vec<&[u8]> = if path.first() == Some(&b'/') { Vec::new() } else { self.components().collect() };
        for part in path.split(|b| *b == b'/') {
            match part {
                b"" | b"." => {}
                b".." => {
                    parts.pop();
                }
                part => parts.push(part),
            }
        }
        let mut out = Vec::with_capacity(parts.iter().map(|p| p.len() + 1).sum::<usize>().max(1));
        for part in parts {
            out.push(b'/');
            out.extend_from_slice(part);
        }
        if out.is_empty() {
            out.push(b'/');
        }
        Self(out)
    }

    /// The bytes, beginning with `/`.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The path as the operating system takes it.
    pub fn as_os_str(&self) -> &OsStr {
        OsStr::from_bytes(&self.0)
    }

    /// The bytes without the leading `/`; empty for the root.
    pub fn relative(&self) -> &[u8] {
        &self.0[1..]
    }

    /// Whether this is `/`.
    pub fn is_root(&self) -> bool {
        self.0 == b"/"
    }

    /// The names from the root down; none for `/`.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|b| *b == b'/').filter(|p| !p.is_empty())
    }

    /// The path without its last name; `None` for `/`.
    pub fn parent(&self) -> Option<Self> {
        if self.is_root() {
            return None;
        }
        let cut = self.0.iter().rposition(|b| *b == b'/').unwrap_or(0);
        Some(Self(if cut == 0 { b"/".to_vec() } else { self.0[..cut].to_vec() }))
    }

    /// The last name; `None` for `/`.
    pub fn file_name(&self) -> Option<&[u8]> {
        self.components().next_back()
    }

    /// Whether this is `other` or lies below it.
    pub fn starts_with(&self, other: &ImagePath) -> bool {
        other.is_root() || self.0 == other.0 || (self.0.starts_with(&other.0) && self.0.get(other.0.len()) == Some(&b'/'))
    }
}

impl fmt::Display for ImagePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for ImagePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

impl From<&str> for ImagePath {
    fn from(path: &str) -> Self {
        Self::new(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_and_clamped() {
        for (base, path, expected) in [
            ("/", "", "/"),
            ("/", "a//b/./c/", "/a/b/c"),
            ("/a/b", "..", "/a"),
            ("/a/b", "../../../x", "/x"),
            ("/a/b", "/c", "/c"),
            ("/a", "b c", "/a/b c"),
        ] {
            assert_eq!(ImagePath::new(base).join(path), ImagePath(expected.as_bytes().to_vec()), "{base} {path}");
        }
        assert_eq!(ImagePath::new("/a/b").parent().unwrap().to_string(), "/a");
        assert_eq!(ImagePath::new("/a").parent().unwrap().to_string(), "/");
        assert!(ImagePath::root().parent().is_none());
        assert!(ImagePath::new("/ab").starts_with(&ImagePath::root()));
        assert!(!ImagePath::new("/ab").starts_with(&"/a".into()));
    }
}
