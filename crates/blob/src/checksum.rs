//! Checksums of bodies: MD5 and the CRC-64 of the Blob service, as clients announce them and answers tell them.

use axum::http::HeaderMap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use md5::{Digest as _, Md5};

use crate::error::BlobError;

/// Header of the MD5 of a body.
const MD5: &str = "content-md5";
/// Header of the CRC-64 of a body.
const CRC64: &str = "x-ms-content-crc64";

/// Bits reversed; this is the polynomial of CRC-64/NVME.
const POLYNOMIAL: u64 = 0x9a6c_9329_ac4b_c9b5;

/// For each place in a group of eight bytes, what a byte there adds.
static TABLES: [[u64; 256]; 8] = tables();

const fn tables() -> [[u64; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut value = byte as u64;
        let mut bit = 0;
        while bit < 8 {
            value = match value & 1 {
                1 => (value >> 1) ^ POLYNOMIAL,
                _ => value >> 1,
            };
            bit += 1;
        }
        tables[0][byte] = value;
        byte += 1;
    }
    let mut place = 1;
    while place < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[place - 1][byte];
            tables[place][byte] = tables[0][(before & 0xff) as usize] ^ (before >> 8);
            byte += 1;
        }
        place += 1;
    }
    tables
}

/// The CRC-64 of what has come so far.
#[derive(Clone, Copy)]
pub(crate) struct Crc64(u64);

impl Crc64 {
    pub(crate) const fn new() -> Self {
        Crc64(!0)
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        let mut value = self.0;
        let (groups, rest) = bytes.as_chunks::<8>();
        for group in groups {
            let mixed = (value ^ u64::from_le_bytes(*group)).to_le_bytes();
            value = 0;
            for (place, byte) in mixed.into_iter().enumerate() {
                value ^= TABLES[7 - place][usize::from(byte)];
            }
        }
        for byte in rest {
            value = TABLES[0][usize::from(value as u8 ^ byte)] ^ (value >> 8);
        }
        self.0 = value;
    }

    /// As it stands in headers and frames.
    pub(crate) fn finish(self) -> [u8; 8] {
        (!self.0).to_le_bytes()
    }
}

/// What a client says about its body.
#[derive(Clone, Copy, Default)]
pub(crate) struct Announced {
    md5: Option<[u8; 16]>,
    crc64: Option<[u8; 8]>,
}

impl Announced {
    /// # Errors
    /// `InvalidMd5`, `InvalidHeaderValue`, `BothCrc64AndMd5HeaderPresent`.
    pub(crate) fn read(headers: &HeaderMap) -> Result<Self, BlobError> {
        let read = |name: &str| headers.get(name).map(|value| STANDARD.decode(value.as_bytes()));
        let md5 = match read(MD5) {
            None => None,
            Some(decoded) => {
                let sum = decoded.ok().and_then(|bytes| bytes.try_into().ok());
                let message = "The value of the header Content-MD5 is not an MD5 in base64.";
                Some(sum.ok_or_else(|| BlobError::new(400, "InvalidMd5", message))?)
            }
        };
        let crc64 = match read(CRC64) {
            None => None,
            Some(decoded) => {
                let sum = decoded.ok().and_then(|bytes| bytes.try_into().ok());
                Some(sum.ok_or_else(|| BlobError::header(CRC64))?)
            }
        };
        if md5.is_some() && crc64.is_some() {
            let message = "A body is checked by Content-MD5 or by x-ms-content-crc64, not by both.";
            return Err(BlobError::new(400, "BothCrc64AndMd5HeaderPresent", message));
        }
        Ok(Announced { md5, crc64 })
    }
}

/// Checksums of a body that is coming.
pub(crate) struct Sums {
    announced: Announced,
    md5: Option<Md5>,
    crc64: Crc64,
}

impl Sums {
    /// `md5`: wanted though the client did not announce it.
    pub(crate) fn new(announced: Announced, md5: bool) -> Self {
        Sums {
            announced,
            md5: (md5 || announced.md5.is_some()).then(Md5::new),
            crc64: Crc64::new(),
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        if let Some(md5) = &mut self.md5 {
            md5.update(bytes);
        }
        self.crc64.update(bytes);
    }

    /// Compares with what the client announced; gives the headers of the answer.
    ///
    /// # Errors
    /// `Md5Mismatch`, `Crc64Mismatch`.
    pub(crate) fn finish(self) -> Result<Vec<(&'static str, String)>, BlobError> {
        let mut told = Vec::new();
        if let Some(md5) = self.md5 {
            let sum: [u8; 16] = md5.finalize().into();
            if self.announced.md5.is_some_and(|announced| announced != sum) {
                let message = "The body is not the one whose MD5 was announced: send it again.";
                return Err(BlobError::new(400, "Md5Mismatch", message));
            }
            told.push((MD5, STANDARD.encode(sum)));
        }
        let sum = self.crc64.finish();
        if self.announced.crc64.is_some_and(|announced| announced != sum) {
            let message = "The body is not the one whose CRC-64 was announced: send it again.";
            return Err(BlobError::new(400, "Crc64Mismatch", message));
        }
        told.push((CRC64, STANDARD.encode(sum)));
        Ok(told)
    }
}

/// The MD5 of some bytes, as it stands in headers.
pub(crate) fn md5_of(bytes: &[u8]) -> String {
    STANDARD.encode(Md5::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crc64(parts: &[&[u8]]) -> u64 {
        let mut crc = Crc64::new();
        for part in parts {
            crc.update(part);
        }
        u64::from_le_bytes(crc.finish())
    }

    #[test]
    fn the_crc_is_the_published_one() {
        // The check value of CRC-64/NVME.
        assert_eq!(crc64(&[b"123456789"]), 0xae8b_1486_0a79_9888);
        assert_eq!(crc64(&[]), 0);
        let long: Vec<u8> = (0..=255).cycle().take(1_000).collect();
        let whole = crc64(&[&long]);
        for split in [1, 7, 8, 9, 500, 999] {
            assert_eq!(crc64(&[&long[..split], &long[split..]]), whole, "{split}");
        }
    }

    #[test]
    fn announcements_are_checked() {
        let headers = |fields: &[(&'static str, &'static str)]| {
            let fields = fields
                .iter()
                .map(|(name, value)| (name.parse().expect("a name"), value.parse().expect("a value")));
            HeaderMap::from_iter(fields)
        };
        let check = |fields: &[(&'static str, &'static str)], body: &[u8]| {
            let mut sums = Sums::new(Announced::read(&headers(fields))?, false);
            sums.update(body);
            sums.finish()
        };
        let code = |fields: &[(&'static str, &'static str)], body: &[u8]| {
            check(fields, body).err().map(|error| error.code)
        };
        const MD5_OF_A: &str = "DMF1ucDxtqgxw5niaXcmYQ==";
        const CRC_OF_DIGITS: &str = "iJh5CoYUi64=";
        assert_eq!(
            check(&[(MD5, MD5_OF_A)], b"a").unwrap()[0],
            (MD5, MD5_OF_A.to_owned())
        );
        assert_eq!(code(&[(MD5, MD5_OF_A)], b"b"), Some("Md5Mismatch"));
        assert_eq!(code(&[(CRC64, CRC_OF_DIGITS)], b"123456789"), None);
        assert_eq!(
            code(&[(CRC64, CRC_OF_DIGITS)], b"12345678"),
            Some("Crc64Mismatch")
        );
        assert_eq!(code(&[(MD5, "x")], b""), Some("InvalidMd5"));
        assert_eq!(code(&[(CRC64, MD5_OF_A)], b""), Some("InvalidHeaderValue"));
        let both = [(MD5, MD5_OF_A), (CRC64, CRC_OF_DIGITS)];
        assert_eq!(code(&both, b"a"), Some("BothCrc64AndMd5HeaderPresent"));
    }
}
