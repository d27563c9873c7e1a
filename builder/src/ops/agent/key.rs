//! Hides what private ssh keys look like in files, and what their signatures look like on the wire (OpenSSH `PROTOCOL.key`,
//! RFC 4253, 5656, 8332, 8709). All arithmetic that a signature depends on is aws-lc's.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPairComponents, PublicKeyComponents};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair,
    EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RSA_PKCS1_SHA512, RsaKeyPair,
};
use base64::Engine as _;

/// Why a file gives no key that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// There is no key in it.
    #[error("it holds no private key in OpenSSH or PEM form")]
    None,
    /// A passphrase is needed.
    #[error("the key is encrypted with a passphrase")]
    Encrypted,
    /// Of a kind that can't be used here.
    #[error("keys of the kind {0} are not supported")]
    Unsupported(String),
    /// It contradicts itself, or is too short.
    #[error("the key can't be used: {0}")]
    Damaged(&'static str),
}

/// A private key.
pub struct Key {
    public: Vec<u8>,
    private: Private,
}

/// The public part only.
impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({})", base64::engine::general_purpose::STANDARD.encode(&self.public))
    }
}

/// The public part says which key it is.
impl PartialEq for Key {
    fn eq(&self, other: &Key) -> bool {
        self.public == other.public
    }
}

enum Private {
    Ed25519(Ed25519KeyPair),
    Rsa(RsaKeyPair),
    Ecdsa(&'static Curve, EcdsaKeyPair),
}

#[derive(Debug)]
struct Curve {
    /// In `ecdsa-sha2-NAME`.
    name: &'static str,
    algorithm: &'static EcdsaSigningAlgorithm,
    /// The length of a private key, and of each half of a signature.
    length: usize,
}

static CURVES: [Curve; 3] = [
    Curve { name: "nistp256", algorithm: &ECDSA_P256_SHA256_FIXED_SIGNING, length: 32 },
    Curve { name: "nistp384", algorithm: &ECDSA_P384_SHA384_FIXED_SIGNING, length: 48 },
    Curve { name: "nistp521", algorithm: &ECDSA_P521_SHA512_FIXED_SIGNING, length: 66 },
];

/// Flags of a request to sign (draft-miller-ssh-agent): which hash an RSA key is to use.
const RSA_SHA2_256: u32 = 2;
const RSA_SHA2_512: u32 = 4;

impl Key {
    /// Reads the private key that a file holds.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn parse(file: &[u8]) -> Result<Key, KeyError> {
        let text = std::str::from_utf8(file).map_err(|_| KeyError::None)?;
        let (label, bytes) = armoured(text)?;
        match label {
            "OPENSSH PRIVATE KEY" => open_ssh(&bytes),
            "RSA PRIVATE KEY" => rsa(RsaKeyPair::from_der(&bytes)),
            "EC PRIVATE KEY" => {
                let curve = CURVES.iter().find_map(|c| Some((c, EcdsaKeyPair::from_private_key_der(c.algorithm, &bytes).ok()?)));
                curve.map(|(curve, pair)| ecdsa(curve, pair)).ok_or_else(|| KeyError::Unsupported("EC of that curve".to_owned()))
            }
            "PRIVATE KEY" => pkcs8(&bytes),
            "ENCRYPTED PRIVATE KEY" => Err(KeyError::Encrypted),
            other => Err(KeyError::Unsupported(other.trim_end_matches(" PRIVATE KEY").to_owned())),
        }
    }

    /// The public key, as ssh writes it.
    pub fn public(&self) -> &[u8] {
        &self.public
    }

    /// A signature of `data`, as ssh writes it; `None` when the key can't sign so.
    pub fn sign(&self, data: &[u8], flags: u32) -> Option<Vec<u8>> {
        let (name, bytes) = match &self.private {
            Private::Ed25519(pair) => ("ssh-ed25519".to_owned(), pair.try_sign(data).ok()?.as_ref().to_vec()),
            Private::Rsa(pair) => {
                let (name, padding) = match flags {
                    flags if flags & RSA_SHA2_512 != 0 => ("rsa-sha2-512", &RSA_PKCS1_SHA512),
                    flags if flags & RSA_SHA2_256 != 0 => ("rsa-sha2-256", &RSA_PKCS1_SHA256),
                    // SHA-1, which ssh has not asked for since 8.8.
                    _ => return None,
                };
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(padding, &SystemRandom::new(), data, &mut signature).ok()?;
                (name.to_owned(), signature)
            }
            Private::Ecdsa(curve, pair) => {
                let signature = pair.sign(&SystemRandom::new(), data).ok()?;
                let (r, s) = signature.as_ref().split_at_checked(curve.length)?;
                (format!("ecdsa-sha2-{}", curve.name), [number(r), number(s)].concat())
            }
        };
        Some([string(name.as_bytes()), string(&bytes)].concat())
    }
}

fn ed25519(pair: Ed25519KeyPair) -> Key {
    let public = [string(b"ssh-ed25519"), string(pair.public_key().as_ref())].concat();
    Key { public, private: Private::Ed25519(pair) }
}

fn rsa<E>(pair: Result<RsaKeyPair, E>) -> Result<Key, KeyError> {
    let pair = pair.map_err(|_| KeyError::Damaged("it is no RSA key of 2048 to 8192 bits"))?;
    let public = pair.public_key();
    let (n, e) = (public.modulus(), public.exponent());
    let public =
        [string(b"ssh-rsa"), number(e.big_endian_without_leading_zero()), number(n.big_endian_without_leading_zero())].concat();
    Ok(Key { public, private: Private::Rsa(pair) })
}

fn ecdsa(curve: &'static Curve, pair: EcdsaKeyPair) -> Key {
    let kind = format!("ecdsa-sha2-{}", curve.name);
    let public = [string(kind.as_bytes()), string(curve.name.as_bytes()), string(pair.public_key().as_ref())].concat();
    Key { public, private: Private::Ecdsa(curve, pair) }
}

fn pkcs8(bytes: &[u8]) -> Result<Key, KeyError> {
    if let Ok(pair) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(bytes) {
        return Ok(ed25519(pair));
    }
    let curve = CURVES.iter().find_map(|curve| Some((curve, EcdsaKeyPair::from_pkcs8(curve.algorithm, bytes).ok()?)));
    if let Some((curve, pair)) = curve {
        return Ok(ecdsa(curve, pair));
    }
    rsa(RsaKeyPair::from_pkcs8(bytes)).map_err(|_| KeyError::Damaged("it is no Ed25519, ECDSA or RSA key of 2048 to 8192 bits"))
}

/// The first private key between its lines `-----BEGIN …-----` and `-----END …-----`: its label and its bytes.
fn armoured(text: &str) -> Result<(&str, Vec<u8>), KeyError> {
    let mut lines = text.lines().map(str::trim);
    let label = lines
        .find_map(|line| line.strip_prefix("-----BEGIN ")?.strip_suffix("-----").filter(|label| label.ends_with("PRIVATE KEY")))
        .ok_or(KeyError::None)?;
    let mut body = String::new();
    for line in lines {
        if line.starts_with("-----END ") {
            let bytes = base64::engine::general_purpose::STANDARD.decode(body).map_err(|_| KeyError::Damaged("no base64"))?;
            return Ok((label, bytes));
        }
        match line.split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("Proc-Type") && value.contains("ENCRYPTED") => {
                return Err(KeyError::Encrypted);
            }
            Some(_) => {}
            None => body.push_str(line),
        }
    }
    Err(KeyError::Damaged("it has no end"))
}

/// The form that `ssh-keygen` writes.
fn open_ssh(bytes: &[u8]) -> Result<Key, KeyError> {
    let mut outer = Fields(bytes.strip_prefix(b"openssh-key-v1\0").ok_or(CUT)?);
    let cipher = outer.string()?;
    let _derivation = (outer.string()?, outer.string()?);
    if cipher != b"none" {
        return Err(KeyError::Encrypted);
    }
    if outer.word()? != 1 {
        return Err(KeyError::Damaged("it is not one key"));
    }
    let _public = outer.string()?;
    let mut fields = Fields(outer.string()?);
    if fields.word()? != fields.word()? {
        return Err(KeyError::Damaged("its check words differ"));
    }
    match fields.string()? {
        b"ssh-ed25519" => {
            let (public, both) = (fields.string()?, fields.string()?);
            let seed = both.get(..32).ok_or(CUT)?;
            Ed25519KeyPair::from_seed_and_public_key(seed, public).map(ed25519).map_err(|_| INCONSISTENT)
        }
        b"ssh-rsa" => {
            let [n, e, d, q_inverse, p, q] = [(); 6].map(|()| fields.string().map(positive));
            let (n, e, d, q_inverse, p, q) = (n?, e?, d?, q_inverse?, p?, q?);
            let components = KeyPairComponents {
                public_key: PublicKeyComponents { n, e },
                d,
                p,
                q,
                dP: &remainder(d, &less_one(p))[..],
                dQ: &remainder(d, &less_one(q))[..],
                qInv: q_inverse,
            };
            rsa(RsaKeyPair::from_components(&components))
        }
        kind => {
            let kind = String::from_utf8_lossy(kind).into_owned();
            let curve = CURVES.iter().find(|curve| kind.strip_prefix("ecdsa-sha2-") == Some(curve.name));
            let Some(curve) = curve else { return Err(KeyError::Unsupported(kind)) };
            let (_name, point, secret) = (fields.string()?, fields.string()?, positive(fields.string()?));
            let padding = curve.length.checked_sub(secret.len()).ok_or(INCONSISTENT)?;
            let secret = [vec![0; padding], secret.to_vec()].concat();
            let pair = EcdsaKeyPair::from_private_key_and_public_key(curve.algorithm, &secret, point);
            pair.map(|pair| ecdsa(curve, pair)).map_err(|_| INCONSISTENT)
        }
    }
}

const CUT: KeyError = KeyError::Damaged("it is cut off");
const INCONSISTENT: KeyError = KeyError::Damaged("its parts don't fit together");

/// What RFC 4251 calls `string` and `uint32`, one after another.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn word(&mut self) -> Result<u32, KeyError> {
        let (word, rest) = self.0.split_first_chunk::<4>().ok_or(CUT)?;
        self.0 = rest;
        Ok(u32::from_be_bytes(*word))
    }

    pub(super) fn string(&mut self) -> Result<&'a [u8], KeyError> {
        let length = self.word()? as usize;
        let (string, rest) = self.0.split_at_checked(length).ok_or(CUT)?;
        self.0 = rest;
        Ok(string)
    }
}

/// Bytes behind their length.
pub(super) fn string(bytes: &[u8]) -> Vec<u8> {
    // Nothing here is near 4 GiB long.
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    [&length.to_be_bytes(), bytes].concat()
}

/// A positive `mpint`: without needless zeros, with one where the first bit would be a sign.
fn number(big_endian: &[u8]) -> Vec<u8> {
    let digits = positive(big_endian);
    match digits.first() {
        Some(first) if *first >= 0x80 => string(&[&[0], digits].concat()),
        _ => string(digits),
    }
}

/// The digits of a positive number without leading zeros.
fn positive(big_endian: &[u8]) -> &[u8] {
    &big_endian[big_endian.iter().take_while(|byte| **byte == 0).count()..]
}

/// An odd number less one.
fn less_one(odd: &[u8]) -> Vec<u8> {
    let mut less = odd.to_vec();
    less.last_mut().into_iter().for_each(|last| *last &= 0xfe);
    less
}

/// `number` modulo `modulus`, as long as that: OpenSSH's form leaves out two numbers of an RSA key that follow from others. aws-lc
/// refuses the key if these don't fit.
fn remainder(number: &[u8], modulus: &[u8]) -> Vec<u8> {
    // One digit in front for what doubling carries out.
    let modulus = [&[0], modulus].concat();
    let mut rest = vec![0; modulus.len()];
    for bit in number.iter().flat_map(|byte| (0..8).rev().map(move |shift| byte >> shift & 1)) {
        let mut carry = bit;
        for digit in rest.iter_mut().rev() {
            (*digit, carry) = (*digit << 1 | carry, *digit >> 7);
        }
        if rest >= modulus {
            let mut borrow = false;
            for (digit, other) in rest.iter_mut().zip(&modulus).rev() {
                let (less, first) = digit.overflowing_sub(*other);
                let (less, second) = less.overflowing_sub(u8::from(borrow));
                (*digit, borrow) = (less, first || second);
            }
        }
    }
    rest
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::encoding::AsBigEndian as _;

    use super::*;

    #[test]
    fn remainders() {
        for (number, modulus) in [(0u64, 7u64), (6, 7), (7, 7), (0xffff_ffff, 0xff01), (12_345_678_901_234, 65_537), (5, 0xff)] {
            let digits = modulus.to_be_bytes();
            let got = remainder(&number.to_be_bytes(), positive(&digits));
            let got = got.iter().fold(0u64, |value, digit| value << 8 | u64::from(*digit));
            assert_eq!(got, number % modulus, "{number} % {modulus}");
        }
    }

    /// An Ed25519 key as `ssh-keygen` writes it.
    fn open_ssh_file(pair: &Ed25519KeyPair) -> Vec<u8> {
        let (seed, public) = (pair.seed().unwrap(), pair.public_key().as_ref());
        let both = [seed.as_be_bytes().unwrap().as_ref(), public].concat();
        let blob = [string(b"ssh-ed25519"), string(public)].concat();
        let private = [vec![7; 8], blob.clone(), string(&both), string(b"me@host"), vec![1, 2, 3]].concat();
        let one = 1u32.to_be_bytes().to_vec();
        [b"openssh-key-v1\0".to_vec(), string(b"none"), string(b"none"), string(b""), one, string(&blob), string(&private)]
            .concat()
    }

    #[test]
    fn damage_is_an_error() {
        let pair = Ed25519KeyPair::generate().unwrap();
        let file = open_ssh_file(&pair);
        let key = open_ssh(&file).unwrap();
        assert_eq!(key.public(), [string(b"ssh-ed25519"), string(pair.public_key().as_ref())].concat());
        let signature = key.sign(b"text", 0).unwrap();
        let mut fields = Fields(&signature);
        assert_eq!(fields.string().unwrap(), b"ssh-ed25519");
        let verifier = aws_lc_rs::signature::UnparsedPublicKey::new(&aws_lc_rs::signature::ED25519, pair.public_key().as_ref());
        verifier.verify(b"text", fields.string().unwrap()).unwrap();
        // Wherever it ends, and whatever a length in it says.
        for length in 0..file.len() {
            assert!(open_ssh(&file[..length]).is_err(), "{length}");
        }
        for at in 0..file.len() {
            let mut other = file.clone();
            other[at] ^= 0xff;
            let _ = open_ssh(&other);
        }
    }

    #[test]
    fn what_is_no_key() {
        let cut = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEA\n-----END OPENSSH PRIVATE KEY-----\n";
        let rows = [
            ("", KeyError::None),
            ("ssh-ed25519 AAAA x", KeyError::None),
            ("-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----", KeyError::None),
            ("-----BEGIN PRIVATE KEY-----\nAA==\n", KeyError::Damaged("it has no end")),
            ("-----BEGIN RSA PRIVATE KEY-----\n!\n-----END RSA PRIVATE KEY-----", KeyError::Damaged("no base64")),
            (cut, CUT),
            ("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAA==\n-----END ENCRYPTED PRIVATE KEY-----", KeyError::Encrypted),
            (
                "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: x\n\nAA==\n-----END RSA PRIVATE KEY-----",
                KeyError::Encrypted,
            ),
            ("-----BEGIN DSA PRIVATE KEY-----\nAA==\n-----END DSA PRIVATE KEY-----", KeyError::Unsupported("DSA".to_owned())),
        ];
        for (text, want) in rows {
            assert_eq!(Key::parse(text.as_bytes()).unwrap_err(), want, "{text}");
        }
    }
}
