//! Keys as a TPM writes them: the two that every device has, and the one that a service makes for it.

use crate::wire::{Fields, Malformed, Writer};

/// Longest public area of a key here, with its size. An RSA 2048 key has some 320 bytes.
pub(crate) const PUBLIC_BYTES_MAX: usize = 1_024;
/// Longest private area and longest encrypted secret.
pub(crate) const PRIVATE_BYTES_MAX: usize = 1_024;
/// Longest digest.
pub(crate) const DIGEST_BYTES_MAX: usize = 64;
/// What a service sends, all parts together.
const BLOB_BYTES_MAX: usize = 4_096;

pub(crate) const ALG_NULL: u16 = 0x0010;
pub(crate) const ALG_SHA256: u16 = 0x000b;
pub(crate) const ALG_AES: u16 = 0x0006;
pub(crate) const ALG_CFB: u16 = 0x0043;
const ALG_RSA: u16 = 0x0001;
const AES_BITS: u16 = 128;
const RSA_BITS: u16 = 2_048;

// TPM 2.0 Part 2, "TPMA_OBJECT".
const FIXED_TPM: u32 = 1 << 1;
const FIXED_PARENT: u32 = 1 << 4;
const SENSITIVE_DATA_ORIGIN: u32 = 1 << 5;
const USER_WITH_AUTH: u32 = 1 << 6;
const ADMIN_WITH_POLICY: u32 = 1 << 7;
const NO_DA: u32 = 1 << 10;
const RESTRICTED: u32 = 1 << 16;
const DECRYPT: u32 = 1 << 17;
const SIGN: u32 = 1 << 18;

/// Policy of endorsement keys: whoever knows the authorization value of the endorsement hierarchy may use them (TCG EK
/// Credential Profile, "PolicyA" with SHA-256).
const ENDORSEMENT_POLICY: [u8; 32] = [
    0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xb3, 0xf8, 0x1a, 0x90, 0xcc, 0x8d, 0x46, 0xa5, 0xd7, 0x24, 0xfd,
    0x52, 0xd7, 0x6e, 0x06, 0x52, 0x0b, 0x64, 0xf2, 0xa1, 0xda, 0x1b, 0x33, 0x14, 0x69, 0xaa,
];

/// The public parts of the keys by which a service knows a TPM, as `TPM2B_PUBLIC`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PublicKeys {
    /// Endorsement key: the TPM itself, for its life.
    pub endorsement: Vec<u8>,
    /// Storage root key: until the TPM is cleared.
    pub storage_root: Vec<u8>,
}

/// An HMAC key that only the TPM which took it can use: not secret, and worth nothing elsewhere.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SealedKey {
    /// `TPM2B_PUBLIC`.
    pub public: Vec<u8>,
    /// `TPM2B_PRIVATE`, encrypted by the TPM with its storage root key.
    pub private: Vec<u8>,
}

impl SealedKey {
    /// The two areas without their sizes, each at most as long as it can be.
    pub(crate) fn areas(&self) -> Result<(&[u8], &[u8]), Malformed> {
        let area = |bytes, max| {
            let mut fields = Fields(bytes);
            let area = fields.sized(max)?;
            fields.end().map(|()| area)
        };
        Ok((
            area(&self.public, PUBLIC_BYTES_MAX)?,
            area(&self.private, PRIVATE_BYTES_MAX)?,
        ))
    }
}

/// Which of the two keys of a TPM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Root {
    Endorsement,
    Storage,
}

impl Root {
    /// Where it is kept: the handles that the SDKs use, too (TCG Provisioning Guidance, "Reserved Handles").
    pub(crate) const fn handle(self) -> u32 {
        match self {
            Root::Endorsement => 0x8101_0001,
            Root::Storage => 0x8100_0001,
        }
    }

    /// The hierarchy that it is made in: `TPM_RH_ENDORSEMENT`, `TPM_RH_OWNER`.
    pub(crate) const fn hierarchy(self) -> u32 {
        match self {
            Root::Endorsement => 0x4000_000b,
            Root::Storage => 0x4000_0001,
        }
    }

    const fn attributes(self) -> u32 {
        let both = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | RESTRICTED | DECRYPT;
        match self {
            Root::Endorsement => both | ADMIN_WITH_POLICY,
            Root::Storage => both | USER_WITH_AUTH | NO_DA,
        }
    }

    const fn policy(self) -> &'static [u8] {
        match self {
            Root::Endorsement => &ENDORSEMENT_POLICY,
            Root::Storage => &[],
        }
    }

    /// `TPMT_PUBLIC` to make it with: RSA 2048 for storage with AES-128 in CFB mode, the default exponent. The same as the
    /// SDKs', since another template makes another key.
    pub(crate) fn template(self) -> Writer {
        let head = Writer::default().u16(ALG_RSA).u16(ALG_SHA256);
        let head = head.u32(self.attributes()).sized(self.policy());
        let symmetric = head.u16(ALG_AES).u16(AES_BITS).u16(ALG_CFB);
        symmetric.u16(ALG_NULL).u16(RSA_BITS).u32(0).sized(&[])
    }

    /// Whether a key that somebody keeps at the handle can be used here: `area` is its `TPMT_PUBLIC`.
    pub(crate) fn fits(self, area: &[u8]) -> bool {
        self.check(area).unwrap_or(false)
    }

    fn check(self, area: &[u8]) -> Result<bool, Malformed> {
        let mut fields = Fields(area);
        if (fields.u16()?, fields.u16()?) != (ALG_RSA, ALG_SHA256) {
            return Ok(false);
        }
        let attributes = fields.u32()?;
        let policy = fields.sized(DIGEST_BYTES_MAX)?;
        let symmetric = (fields.u16()?, fields.u16()?, fields.u16()?);
        let bits = (fields.u16()?, fields.u16()?);
        fields.u32()?;
        fields.sized(PUBLIC_BYTES_MAX)?;
        fields.end()?;
        let usable = match self {
            // Only this policy is satisfied here.
            Root::Endorsement => policy == self.policy(),
            Root::Storage => attributes & USER_WITH_AUTH != 0,
        };
        Ok(usable
            && attributes & (FIXED_TPM | RESTRICTED | DECRYPT | SIGN) == FIXED_TPM | RESTRICTED | DECRYPT
            && symmetric == (ALG_AES, AES_BITS, ALG_CFB)
            && bits == (ALG_NULL, RSA_BITS))
    }
}

/// The parts of what a service sends to be activated.
pub(crate) struct Blob<'a> {
    /// `TPMS_ID_OBJECT` without its size: the key of the inner wrapper, as a credential.
    pub(crate) credential: &'a [u8],
    /// Seed of the credential's protection, encrypted to the endorsement key.
    pub(crate) credential_secret: &'a [u8],
    /// The key, in inner and outer wrapper.
    pub(crate) duplicate: &'a [u8],
    /// Seed of the outer wrapper, encrypted to the storage root key.
    pub(crate) seed: &'a [u8],
    /// Public area of the key.
    pub(crate) public: &'a [u8],
}

impl<'a> Blob<'a> {
    /// Takes a blob apart. Data for the device may stand at its end, which nobody has a use for.
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Self, &'static str> {
        if bytes.len() > BLOB_BYTES_MAX {
            return Err("it is too long");
        }
        let mut fields = Fields(bytes);
        let mut part = |max| match fields.sized(max) {
            Ok([]) => Err("a part of it is empty"),
            Ok(part) => Ok(part),
            Err(Malformed::TooLong) => Err("a part of it is too long"),
            Err(_) => Err("it is cut off"),
        };
        Ok(Blob {
            credential: part(PRIVATE_BYTES_MAX)?,
            credential_secret: part(PRIVATE_BYTES_MAX)?,
            duplicate: part(PRIVATE_BYTES_MAX)?,
            seed: part(PRIVATE_BYTES_MAX)?,
            public: part(PUBLIC_BYTES_MAX)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A public area of a key made from a template.
    fn made(root: Root) -> Vec<u8> {
        let template = root.template();
        let head = &template.bytes()[..template.bytes().len() - 2];
        let whole = Writer::default().raw(head).sized(&[0xab; 256]);
        whole.bytes().to_vec()
    }

    /// Another template makes another key, which no enrollment knows: these are those of the SDKs.
    #[test]
    fn templates_are_those_of_the_sdks() {
        let rest = [0, 6, 0, 128, 0, 0x43, 0, 0x10, 8, 0, 0, 0, 0, 0, 0, 0];
        let endorsement = [
            &[0, 1, 0, 0x0b, 0, 3, 0, 0xb2, 0, 32][..],
            &ENDORSEMENT_POLICY,
            &rest,
        ];
        assert_eq!(Root::Endorsement.template().bytes(), endorsement.concat());
        let storage = [&[0, 1, 0, 0x0b, 0, 3, 4, 0x72, 0, 0][..], &rest];
        assert_eq!(Root::Storage.template().bytes(), storage.concat());
    }

    #[test]
    fn what_a_template_makes_fits() {
        for root in [Root::Endorsement, Root::Storage] {
            let area = made(root);
            assert!(root.fits(&area));
            for length in 0..area.len() {
                assert!(!root.fits(&area[..length]), "{length}");
            }
            assert!(!root.fits(&[area.as_slice(), &[0]].concat()));
        }
        assert_eq!(made(Root::Endorsement).len(), 314);
    }

    #[test]
    fn other_keys_do_not_fit() {
        let changed = |root, at: usize, bit: u8| {
            let mut area = made(root);
            area[at] ^= bit;
            root.fits(&area)
        };
        // Kind, name algorithm, cipher, its key size and mode, scheme, size.
        for at in [1, 3, 11, 13, 15, 17, 19] {
            assert!(!changed(Root::Storage, at, 1), "{at}");
        }
        let [_, signs, _, fixed_and_with_auth] = [4, 5, 6, 7];
        assert!(!changed(Root::Storage, signs, 0x04));
        assert!(!changed(Root::Storage, fixed_and_with_auth, 0x02));
        assert!(!changed(Root::Storage, fixed_and_with_auth, 0x40));
        // Whether guessing its authorization value is punished is nobody's concern here.
        assert!(changed(Root::Storage, 6, 0x04));
        assert!(!changed(Root::Endorsement, 10, 0x01), "another policy");
        assert!(!Root::Endorsement.fits(&made(Root::Storage)));
    }

    #[test]
    fn blobs_are_taken_apart_whatever_they_are() {
        let parts: [&[u8]; 6] = [b"id", b"secret", b"private", b"seed", b"public", b""];
        let whole = parts.iter().fold(Writer::default(), |out, part| out.sized(part));
        let whole = whole.bytes();
        let blob = Blob::read(whole).expect("a blob");
        assert_eq!(
            [
                blob.credential,
                blob.credential_secret,
                blob.duplicate,
                blob.seed,
                blob.public
            ],
            parts[..5]
        );
        // Without the data at its end it is whole, and with less not.
        for length in 0..whole.len() - 2 {
            assert!(Blob::read(&whole[..length]).is_err(), "{length}");
        }
        assert!(Blob::read(&whole[..whole.len() - 2]).is_ok());
        assert_eq!(Blob::read(&[0; 20]).err(), Some("a part of it is empty"));
        assert_eq!(Blob::read(&[0xff; 4_096]).err(), Some("a part of it is too long"));
        assert_eq!(Blob::read(&[1; 4_097]).err(), Some("it is too long"));
    }

    #[test]
    fn kept_keys_are_checked() {
        let key = SealedKey {
            public: b"\x00\x02pu".to_vec(),
            private: b"\x00\x03pri".to_vec(),
        };
        assert_eq!(key.areas(), Ok((&b"pu"[..], &b"pri"[..])));
        for (public, private) in [
            (&b""[..], &b"\x00\x00"[..]),
            (b"\x00\x02pux", b"\x00\x00"),
            (b"\x00\x00", b"\xff\xff"),
            (b"\x00\x00", b"\x00\x05ab"),
        ] {
            let damaged = SealedKey {
                public: public.to_vec(),
                private: private.to_vec(),
            };
            assert!(damaged.areas().is_err());
        }
    }
}
