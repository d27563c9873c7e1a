//! Hides the 512 bytes of a tar header: where its fields lie and how numbers are spelled in them. Pure.

/// The unit of a tar archive.
pub(super) const BLOCK: usize = 512;

/// A field: offset and length.
type Field = (usize, usize);

pub(super) const NAME: Field = (0, 100);
pub(super) const MODE: Field = (100, 8);
pub(super) const UID: Field = (108, 8);
pub(super) const GID: Field = (116, 8);
pub(super) const SIZE: Field = (124, 12);
pub(super) const MTIME: Field = (136, 12);
pub(super) const CHECKSUM: Field = (148, 8);
pub(super) const TYPE: usize = 156;
pub(super) const LINK: Field = (157, 100);
pub(super) const MAGIC: Field = (257, 8);
pub(super) const MAJOR: Field = (329, 8);
pub(super) const MINOR: Field = (337, 8);
pub(super) const PREFIX: Field = (345, 155);
/// Of old GNU sparse headers: four regions, then "more follows", then the size with holes.
pub(super) const SPARSE: Field = (386, 96);
pub(super) const SPARSE_MORE: usize = 482;
pub(super) const SPARSE_SIZE: Field = (483, 12);
/// Of a block of further regions.
pub(super) const MORE_SPARSE: Field = (0, 504);
pub(super) const MORE_SPARSE_MORE: usize = 504;

pub(super) const USTAR: &[u8; 8] = b"ustar\x0000";

/// One header block.
pub(super) struct Block(pub(super) [u8; BLOCK]);

impl Block {
    pub(super) fn zeroed() -> Self {
        Self([0; BLOCK])
    }

    pub(super) fn field(&self, (at, length): Field) -> &[u8] {
        &self.0[at..at + length]
    }

    pub(super) fn field_mut(&mut self, (at, length): Field) -> &mut [u8] {
        &mut self.0[at..at + length]
    }

    pub(super) fn is_zero(&self) -> bool {
        self.0.iter().all(|b| *b == 0)
    }

    /// Whether it is of POSIX 1988 or later, whose names have a prefix.
    pub(super) fn is_ustar(&self) -> bool {
        &self.field(MAGIC)[..6] == b"ustar\0"
    }

    /// A text field, up to its first NUL.
    pub(super) fn text(&self, field: Field) -> &[u8] {
        until_nul(self.field(field))
    }

    /// A number field: octal digits, or a binary number after a byte with the top bit set. `None` if it's neither.
    pub(super) fn number(&self, field: Field) -> Option<i64> {
        number(self.field(field))
    }

    /// Whether the checksum is right, counting bytes as unsigned or (as some old programs did) as signed.
    pub(super) fn is_sound(&self) -> bool {
        let Some(stored) = octal(self.field(CHECKSUM)) else { return false };
        let (mut unsigned, mut signed) = (0i64, 0i64);
        for (at, byte) in self.0.iter().enumerate() {
            let byte = if (CHECKSUM.0..CHECKSUM.0 + CHECKSUM.1).contains(&at) { b' ' } else { *byte };
            unsigned += i64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        stored == unsigned || stored == signed
    }

    /// Writes octal digits and a NUL; false (and zeros) if they don't fit.
    pub(super) fn set_octal(&mut self, field: Field, value: u64) -> bool {
        let digits = format!("{value:0width$o}", width = field.1 - 1);
        let fits = digits.len() == field.1 - 1;
        let out = self.field_mut(field);
        out.fill(b'0');
        if fits {
            out[..digits.len()].copy_from_slice(digits.as_bytes());
        }
        out[field.1 - 1] = 0;
        fits
    }

    /// Writes the checksum; the last thing to do.
    pub(super) fn seal(&mut self) {
        self.field_mut(CHECKSUM).fill(b' ');
        let sum: u64 = self.0.iter().map(|b| u64::from(*b)).sum();
        let digits = format!("{sum:06o}\0 ");
        self.field_mut(CHECKSUM).copy_from_slice(digits.as_bytes());
    }
}

pub(super) fn until_nul(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len())]
}

pub(super) fn number(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 == 0 {
        return octal(field);
    }
    // Two's complement, big-endian, without the top bit; its next one is the sign.
    let negative = first & 0x40 != 0;
    let mut value = i128::from(first & 0x3f) - if negative { 0x40 } else { 0 };
    for byte in &field[1..] {
        value = value.checked_mul(256)? + i128::from(*byte);
    }
    i64::try_from(value).ok()
}

/// Octal digits with spaces before, and a space or NULs after; nothing at all is 0. To Python a number that begins with a NUL is
/// 0, to Go it is what comes then, so it is none.
fn octal(field: &[u8]) -> Option<i64> {
    let start = field.iter().position(|b| *b != b' ').unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits.iter().position(|b| matches!(b, b' ' | 0)).unwrap_or(digits.len());
    if digits[end..].iter().any(|b| !matches!(b, b' ' | 0)) {
        return None;
    }
    digits[..end].iter().try_fold(0i64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}
