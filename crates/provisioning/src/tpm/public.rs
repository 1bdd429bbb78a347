//! Public areas of storage keys: `TPM2B_PUBLIC` (TPM 2.0 Part 2, "TPM2B_PUBLIC" and what it is made of).

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use crypto_bigint::{Odd, U2048};
use ring::digest::{SHA256, digest};

/// Bytes of the modulus of a key.
pub(crate) const MODULUS_BYTES: usize = 256;
/// Longest `TPM2B_PUBLIC` that is looked at; the ones taken have 280 to 314 bytes.
pub(crate) const PUBLIC_BYTES_MAX: usize = 1_024;

pub(super) const ALG_RSA: u16 = 0x0001;
pub(super) const ALG_AES: u16 = 0x0006;
pub(super) const ALG_KEYEDHASH: u16 = 0x0008;
pub(super) const ALG_HMAC: u16 = 0x0005;
pub(super) const ALG_SHA256: u16 = 0x000b;
pub(super) const ALG_NULL: u16 = 0x0010;
pub(super) const ALG_CFB: u16 = 0x0043;
/// `TPMA_OBJECT` bits.
const FIXED_TPM: u32 = 1 << 1;
pub(super) const USER_WITH_AUTH: u32 = 1 << 6;
pub(super) const NO_DA: u32 = 1 << 10;
const RESTRICTED: u32 = 1 << 16;
const DECRYPT: u32 = 1 << 17;
pub(super) const SIGN: u32 = 1 << 18;
const AES_KEY_BITS: u16 = 128;
/// In place of 65537, and as such.
const EXPONENTS: [u32; 2] = [0, 65_537];
const DIGEST_BYTES_MAX: usize = 64;

/// Why bytes are no key that can be used. The text follows the name of a member.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum KeyError {
    NotBase64,
    TooLong,
    Truncated,
    TrailingBytes,
    NotRsa2048,
    NotSha256,
    NotAes128Cfb,
    NotStorageKey,
    NotFixed,
    BadModulus,
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            KeyError::NotBase64 => "not base64",
            KeyError::TooLong => "longer than the public area of a TPM key can be",
            KeyError::Truncated => "not a TPM2B_PUBLIC: it ends too early",
            KeyError::TrailingBytes => "not a TPM2B_PUBLIC: its size is not that of what it holds",
            KeyError::NotRsa2048 => "not an RSA key of 2048 bits with the exponent 65537",
            KeyError::NotSha256 => "the name algorithm is not SHA-256",
            KeyError::NotAes128Cfb => "the symmetric algorithm is not AES-128 in CFB mode",
            KeyError::NotStorageKey => "not a restricted decryption key",
            KeyError::NotFixed => "the key may leave its TPM, so it identifies none",
            KeyError::BadModulus => "the modulus is not one of an RSA key",
        })
    }
}

/// An RSA 2048 storage key: one that can be the parent of others, as endorsement keys and storage root keys are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct StorageKey {
    pub(super) modulus: Odd<U2048>,
    /// Name of the object: its name algorithm, and the digest of its public area (TPM 2.0 Part 1, "Names").
    pub(super) name: Vec<u8>,
    fixed: bool,
}

impl StorageKey {
    /// Reads a `TPM2B_PUBLIC` of a key that cannot leave its TPM.
    pub(crate) fn endorsement(bytes: &[u8]) -> Result<Self, KeyError> {
        match StorageKey::parse(bytes)? {
            key if key.fixed => Ok(key),
            _ => Err(KeyError::NotFixed),
        }
    }

    /// Reads a `TPM2B_PUBLIC`.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, KeyError> {
        if bytes.len() > PUBLIC_BYTES_MAX {
            return Err(KeyError::TooLong);
        }
        let mut outer = Fields(bytes);
        let area = outer.sized(PUBLIC_BYTES_MAX)?;
        outer.end()?;
        let mut fields = Fields(area);
        let kind = fields.u16()?;
        let name_algorithm = fields.u16()?;
        if kind != ALG_RSA {
            return Err(KeyError::NotRsa2048);
        }
        if name_algorithm != ALG_SHA256 {
            return Err(KeyError::NotSha256);
        }
        let attributes = fields.u32()?;
        if attributes & (RESTRICTED | DECRYPT | SIGN) != RESTRICTED | DECRYPT {
            return Err(KeyError::NotStorageKey);
        }
        fields.sized(DIGEST_BYTES_MAX)?;
        if (fields.u16()?, fields.u16()?, fields.u16()?) != (ALG_AES, AES_KEY_BITS, ALG_CFB) {
            return Err(KeyError::NotAes128Cfb);
        }
        // A storage key has no scheme of its own.
        if fields.u16()? != ALG_NULL {
            return Err(KeyError::NotStorageKey);
        }
        if usize::from(fields.u16()?) != MODULUS_BYTES * 8 || !EXPONENTS.contains(&fields.u32()?) {
            return Err(KeyError::NotRsa2048);
        }
        let modulus = fields.sized(MODULUS_BYTES)?;
        fields.end()?;
        let modulus: [u8; MODULUS_BYTES] = modulus.try_into().map_err(|_| KeyError::NotRsa2048)?;
        let is_full = modulus[0] & 0x80 != 0;
        let modulus = Odd::new(U2048::from_be_slice(&modulus)).into_option();
        let modulus = modulus.filter(|_| is_full).ok_or(KeyError::BadModulus)?;
        Ok(StorageKey {
            modulus,
            name: name(area),
            fixed: attributes & FIXED_TPM != 0,
        })
    }
}

/// Name of an object with SHA-256 as name algorithm; `area` is its `TPMT_PUBLIC`.
pub(super) fn name(area: &[u8]) -> Vec<u8> {
    let mut name = ALG_SHA256.to_be_bytes().to_vec();
    name.extend_from_slice(digest(&SHA256, area).as_ref());
    name
}

/// Bytes of a key in base64; `None` for what is none, or too long.
pub(crate) fn decode(text: &str) -> Option<Vec<u8>> {
    match text.len() <= PUBLIC_BYTES_MAX * 4 / 3 + 4 {
        true => STANDARD.decode(text).ok(),
        false => None,
    }
}

pub(crate) fn encode(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Reads big-endian fields from the front.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], KeyError> {
        let (front, rest) = self.0.split_at_checked(count).ok_or(KeyError::Truncated)?;
        self.0 = rest;
        Ok(front)
    }

    fn u16(&mut self) -> Result<u16, KeyError> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn u32(&mut self) -> Result<u32, KeyError> {
        let bytes = self.take(4)?;
        Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// A buffer with its size before it.
    fn sized(&mut self, max: usize) -> Result<&'a [u8], KeyError> {
        let size = usize::from(self.u16()?);
        match size <= max {
            true => self.take(size),
            false => Err(KeyError::TooLong),
        }
    }

    fn end(&self) -> Result<(), KeyError> {
        match self.0.is_empty() {
            true => Ok(()),
            false => Err(KeyError::TrailingBytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `TPM2B_PUBLIC` of an endorsement key.
    fn key() -> Vec<u8> {
        let mut area = vec![0, 1, 0, 0x0b, 0, 3, 0, 0xb2, 0, 2, 7, 7, 0, 6, 0, 128, 0, 0x43];
        area.extend_from_slice(&[0, 0x10, 8, 0, 0, 0, 0, 0, 1, 0]);
        area.extend_from_slice(&[0xff; MODULUS_BYTES]);
        let mut bytes = (area.len() as u16).to_be_bytes().to_vec();
        bytes.extend_from_slice(&area);
        bytes
    }

    #[test]
    fn a_key_and_its_name() {
        let bytes = key();
        let read = StorageKey::endorsement(&bytes).expect("a key");
        assert_eq!(read.name[..2], [0, 0x0b]);
        assert_eq!(read.name[2..], *digest(&SHA256, &bytes[2..]).as_ref());
        assert_eq!(decode(&encode(&bytes)), Some(bytes));
    }

    #[test]
    fn every_shorter_and_every_changed_one_is_read_safely() {
        let bytes = key();
        for length in 0..bytes.len() {
            assert!(StorageKey::parse(&bytes[..length]).is_err(), "{length}");
        }
        let (mut taken, modulus_at) = (0, bytes.len() - MODULUS_BYTES);
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut changed = bytes.clone();
                changed[at] ^= 1 << bit;
                // Only attributes that do not matter, the policy and the modulus may change.
                if StorageKey::parse(&changed).is_ok() {
                    assert!(at >= modulus_at || (6..=13).contains(&at), "byte {at} bit {bit}");
                    taken += 1;
                }
            }
        }
        assert!(taken > MODULUS_BYTES * 8 - 3);
        assert_eq!(decode(&"A".repeat(10_000)), None);
    }
}
