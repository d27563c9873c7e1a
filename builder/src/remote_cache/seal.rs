//! Hides how a document proves that nobody changed it: a sum against accidents, and an Ed25519 signature against people.
//!
//! Whoever may write to a cache may write anything into it, and a wrong record with the right key looks like a true one. Digests
//! can't tell; a key that only the writers have can. Key files are those of `openssl genpkey -algorithm ed25519`, `openssl pkey
//! -pubout` and `ssh-keygen -t ed25519`.

use std::fmt;

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::ops::agent::key::{Key, KeyError};

/// What is signed begins with this, so that no signature of anything else fits.
const DOMAIN: &[u8] = b"kiln shared cache 1\0";
/// The DER of a SubjectPublicKeyInfo of Ed25519 up to the key's 32 bytes (RFC 8410).
const SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// How ssh writes an Ed25519 public key, up to its 32 bytes; and a signature, up to its 64.
const SSH_KEY: &[u8] = b"\0\0\0\x0bssh-ed25519\0\0\0\x20";
const SSH_SIGNATURE: &[u8] = b"\0\0\0\x0bssh-ed25519\0\0\0\x40";

/// Why a file holds no key that signs or verifies a cache.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// It is no private key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A key of another kind.
    #[error("it is no Ed25519 key")]
    Kind,
    /// It holds no public key.
    #[error("it holds no Ed25519 public key in PEM or OpenSSH form")]
    NoPublic,
}

/// A key that signs.
#[derive(Debug)]
pub struct SigningKey(Key);

impl SigningKey {
    /// Reads the private key that a file holds.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn parse(file: &[u8]) -> Result<Self, SealError> {
        let key = Key::parse(file)?;
        match key.public().strip_prefix(SSH_KEY) {
            Some(_) => Ok(Self(key)),
            None => Err(SealError::Kind),
        }
    }

    /// The signature of a sum.
    pub fn sign(&self, sum: &str) -> Option<Signature> {
        let signed = self.0.sign(&message(sum), 0)?;
        let key = STANDARD.encode(self.0.public().strip_prefix(SSH_KEY)?);
        Some(Signature { key, signature: STANDARD.encode(signed.strip_prefix(SSH_SIGNATURE)?) })
    }
}

/// Who signed a document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// The public key's 32 bytes, base64.
    pub key: String,
    /// The signature's 64 bytes, base64.
    pub signature: String,
}

/// The keys of those who may write a cache.
pub struct VerifyingKeys(Vec<[u8; 32]>);

impl fmt::Debug for VerifyingKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|key| STANDARD.encode(key))).finish()
    }
}

impl VerifyingKeys {
    /// Reads the public keys that a file holds, each in PEM or as a line of OpenSSH.
    ///
    /// # Errors
    /// [`SealError::NoPublic`].
    pub fn parse(file: &[u8]) -> Result<Self, SealError> {
        let text = std::str::from_utf8(file).map_err(|_| SealError::NoPublic)?;
        let mut keys = Vec::new();
        let mut body: Option<String> = None;
        for line in text.lines().map(str::trim) {
            if line == "-----BEGIN PUBLIC KEY-----" {
                body = Some(String::new());
            } else if line == "-----END PUBLIC KEY-----" {
                keys.extend(body.take().and_then(|body| raw(&body, &SPKI)));
            } else if let Some(body) = &mut body {
                body.push_str(line);
            } else if let Some(rest) = line.strip_prefix("ssh-ed25519 ") {
                keys.extend(rest.split_whitespace().next().and_then(|body| raw(body, SSH_KEY)));
            }
        }
        match keys.is_empty() {
            true => Err(SealError::NoPublic),
            false => Ok(Self(keys)),
        }
    }

    /// Whether one of them made this signature of `sum`.
    pub fn accept(&self, sum: &str, signature: &Signature) -> bool {
        let Ok(bytes) = STANDARD.decode(&signature.signature) else { return false };
        self.0.iter().any(|key| UnparsedPublicKey::new(&ED25519, key).verify(&message(sum), &bytes).is_ok())
    }
}

fn message(sum: &str) -> Vec<u8> {
    [DOMAIN, sum.as_bytes()].concat()
}

fn raw(body: &str, prefix: &[u8]) -> Option<[u8; 32]> {
    STANDARD.decode(body).ok()?.strip_prefix(prefix)?.try_into().ok()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};

    /// What `openssl genpkey` and `openssl pkey -pubout` write.
    fn files() -> (String, String) {
        let pair = Ed25519KeyPair::generate().unwrap();
        let armoured = |label: &str, der: &[u8]| {
            format!("-----BEGIN {label} KEY-----\n{}\n-----END {label} KEY-----\n", STANDARD.encode(der))
        };
        let public = armoured("PUBLIC", &[&SPKI, pair.public_key().as_ref()].concat());
        (armoured("PRIVATE", pair.to_pkcs8v1().unwrap().as_ref()), public)
    }

    /// A key that signs, and the one that verifies.
    pub(in super::super) fn pair() -> (SigningKey, VerifyingKeys) {
        let (private, public) = files();
        (SigningKey::parse(private.as_bytes()).unwrap(), VerifyingKeys::parse(public.as_bytes()).unwrap())
    }

    #[test]
    fn a_signature_fits_its_sum_and_its_key_only() {
        let (private, public) = files();
        let key = SigningKey::parse(private.as_bytes()).unwrap();
        let signature = key.sign("sha256:1").unwrap();
        let own = VerifyingKeys::parse(public.as_bytes()).unwrap();
        assert!(own.accept("sha256:1", &signature));
        assert!(!own.accept("sha256:2", &signature));
        let ssh = format!("ssh-ed25519 {} somebody@here\n", STANDARD.encode([SSH_KEY, &own.0[0]].concat()));
        let other = format!("ssh-ed25519 {}\n", STANDARD.encode([SSH_KEY, &[7; 32]].concat()));
        assert!(VerifyingKeys::parse(ssh.as_bytes()).unwrap().accept("sha256:1", &signature));
        assert!(!VerifyingKeys::parse(other.as_bytes()).unwrap().accept("sha256:1", &signature));
        assert!(VerifyingKeys::parse((other + &public).as_bytes()).unwrap().accept("sha256:1", &signature));
        let mut cut = signature.clone();
        cut.signature.truncate(10);
        assert!(!own.accept("sha256:1", &cut));
        for file in ["", "ssh-ed25519 AAAA", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", &private] {
            assert!(matches!(VerifyingKeys::parse(file.as_bytes()), Err(SealError::NoPublic)), "{file}");
        }
        assert!(matches!(SigningKey::parse(public.as_bytes()), Err(SealError::Key(KeyError::None))));
    }
}
