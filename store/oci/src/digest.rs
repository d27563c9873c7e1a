//! Hides how a digest is computed and spelled; `Digest`, `DiffId` and `ChainId` are three types that never convert silently.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// There is no `algorithm:hex` form at all.
    #[error("`{0}` is not a digest: `sha256:` and 64 hexadecimal digits are expected")]
    Malformed(String),
    /// The algorithm is registered (image-spec descriptor.md, "Registered algorithms") but not one that kiln computes.
    #[error("digest algorithm `{0}` is not supported, only `sha256`")]
    UnsupportedAlgorithm(String),
}

/// The SHA-256 of some bytes, spelled `sha256:<64 lower-case hex digits>` (image-spec descriptor.md, "Digests").
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new();
        hasher.update(bytes);
        hasher.finish()
    }

    /// A digest that was computed elsewhere.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes of the hash.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 hexadecimal digits without the algorithm.
    pub fn hex(&self) -> String {
        let mut out = String::with_capacity(64);
        for byte in self.0 {
            for nibble in [byte >> 4, byte & 15] {
                out.push(char::from(b"0123456789abcdef"[usize::from(nibble)]));
            }
        }
        out
    }

    /// The first 12 hexadecimal digits, as listings show an id.
    pub fn short(&self) -> String {
        let mut hex = self.hex();
        hex.truncate(12);
        hex
    }

    /// Parses `sha256:<hex>`; the same as [`FromStr`].
    pub fn parse(text: &str) -> Result<Self, DigestError> {
        let malformed = || DigestError::Malformed(text.to_owned());
        let (algorithm, hex) = text.split_once(':').ok_or_else(malformed)?;
        if algorithm != "sha256" {
            let known = matches!(algorithm, "sha512" | "sha384" | "blake3");
            return Err(if known { DigestError::UnsupportedAlgorithm(algorithm.to_owned()) } else { malformed() });
        }
        Self::from_hex(hex).ok_or_else(malformed)
    }

    /// Parses 64 lower-case hexadecimal digits.
    pub fn from_hex(hex: &str) -> Option<Self> {
        let hex = hex.as_bytes();
        if hex.len() != 64 {
            return None;
        }
        let nibble = |c: u8| match c {
            b'0'..=b'9' => Some(c - b'0'),
            b'a'..=b'f' => Some(c - b'a' + 10),
            _ => None,
        };
        let mut out = [0; 32];
        for (byte, pair) in out.iter_mut().zip(hex.chunks_exact(2)) {
            *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        Some(Self(out))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = DigestError;
    fn from_str(text: &str) -> Result<Self, DigestError> {
        Self::parse(text)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

macro_rules! digest_newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Digest);

        impl $name {
            /// Says that this digest has this meaning.
            pub fn new(digest: Digest) -> Self {
                Self(digest)
            }
            /// The digest without its meaning.
            pub fn digest(&self) -> Digest {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

digest_newtype! {
    /// The digest of a layer's uncompressed tar (image-spec config.md, "Layer DiffID").
    DiffId
}
digest_newtype! {
    /// The identity of a stack of layers (image-spec config.md, "Layer ChainID").
    ChainId
}

impl ChainId {
    /// The chain id of `parent` with the layer `diff` on top: `SHA256(parent + " " + diff)`, or `diff` itself at the bottom.
    pub fn extend(parent: Option<ChainId>, diff: DiffId) -> Self {
        match parent {
            None => Self(diff.0),
            Some(parent) => Self(Digest::of(format!("{parent} {diff}").as_bytes())),
        }
    }
}

/// SHA-256 over bytes that arrive in pieces.
///
/// The implementation is the TLS provider's: without SHA extensions in the processor it is 1.4 to 1.7 times as fast as
/// `sha2` 0.11, and with them in the same class (figures in ARCHITECTURE.md, "Dependencies").
#[derive(Clone)]
pub struct Hasher(aws_lc_rs::digest::Context);

impl Hasher {
    /// A hasher that has seen nothing.
    pub fn new() -> Self {
        Self(aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256))
    }

    /// Adds `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all that was added.
    pub fn finish(self) -> Digest {
        let mut out = [0; 32];
        out.copy_from_slice(self.0.finish().as_ref());
        Digest(out)
    }
}

impl Default for Hasher {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hasher")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn digests_round_trip() {
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        assert_eq!(Digest::parse(EMPTY).unwrap(), Digest::of(b""));
        assert_eq!(serde_json::to_string(&Digest::of(b"")).unwrap(), format!("\"{EMPTY}\""));
    }

    #[test]
    fn malformed_digests_are_refused() {
        let upper = EMPTY.to_uppercase();
        let rows =
            ["", "sha256", "sha256:", "sha256:../../etc/passwd", &EMPTY[..70], &upper, "md5:d41d8cd98f00b204e9800998ecf8427e"];
        for row in rows {
            assert!(matches!(Digest::parse(row), Err(DigestError::Malformed(_))), "{row}");
        }
        assert!(matches!(Digest::parse("sha512:00"), Err(DigestError::UnsupportedAlgorithm(_))));
    }

    #[test]
    fn chain_ids_follow_the_specification() {
        let a = DiffId::new(Digest::of(b"a"));
        let b = DiffId::new(Digest::of(b"b"));
        let bottom = ChainId::extend(None, a);
        assert_eq!(bottom.digest(), a.digest());
        assert_eq!(ChainId::extend(Some(bottom), b).digest(), Digest::of(format!("{a} {b}").as_bytes()));
    }
}
