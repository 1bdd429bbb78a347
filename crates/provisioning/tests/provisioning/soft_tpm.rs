//! A TPM's side of the mathematics, written from the specification and not from what it checks: two RSA keys, and what
//! `TPM2_ActivateCredential`, `TPM2_Import`, `TPM2_Load` and `TPM2_HMAC` do with them.

use std::sync::{Arc, OnceLock};

use aes::Aes128;
use bytes::Bytes;
use cfb_mode::cipher::KeyIvInit as _;
use crypto_bigint::modular::{FixedMontyForm, FixedMontyParams};
use crypto_bigint::rand_core::UnwrapErr;
use crypto_bigint::{NonZero, Odd, U1024, U2048};
use crypto_primes::hazmat::{SetBits, SmallFactorsSieveFactory};
use crypto_primes::{Flavor, is_prime, sieve_and_find};
use getrandom::SysRng;
use holdfast_ports::provisioning::TpmKeys;
use ring::{digest, hmac};

/// restricted, decrypt, sensitiveDataOrigin, adminWithPolicy, fixedParent, fixedTPM.
pub(crate) const EK_ATTRIBUTES: u32 = 0x0003_00b2;
/// The same with userWithAuth and noDA in place of adminWithPolicy.
pub(crate) const SRK_ATTRIBUTES: u32 = 0x0003_0472;

/// An RSA 2048 key pair.
pub(crate) struct Pair {
    pub(crate) modulus: Odd<U2048>,
    exponent: U2048,
}

impl Pair {
    fn generate() -> Self {
        let prime = || -> U1024 {
            let sieve = SmallFactorsSieveFactory::new(Flavor::Any, U1024::BITS, SetBits::TwoMsb);
            sieve_and_find(&mut UnwrapErr(SysRng), sieve.expect("a sieve"), |_, candidate| {
                is_prime(Flavor::Any, candidate)
            })
            .expect("searched")
            .expect("found")
        };
        loop {
            let (p, q) = (prime(), prime());
            let phi: U2048 = p
                .wrapping_sub(&U1024::ONE)
                .concatenating_mul(&q.wrapping_sub(&U1024::ONE));
            let phi = NonZero::new(phi).expect("not zero");
            // Otherwise a prime is one more than a multiple of 65537.
            if let Some(exponent) = U2048::from_u32(65_537).invert_mod(&phi).into_option() {
                let product: U2048 = p.concatenating_mul(&q);
                let modulus = Odd::new(product).expect("odd");
                return Pair { modulus, exponent };
            }
        }
    }

    /// Pairs that all tests share, since making one takes a while.
    pub(crate) fn shared(number: usize) -> Arc<Pair> {
        static PAIRS: [OnceLock<Arc<Pair>>; 4] = [const { OnceLock::new() }; 4];
        let pair = PAIRS[number].get_or_init(|| Arc::new(Pair::generate()));
        Arc::clone(pair)
    }

    /// RSAES-OAEP with SHA-256; `None` when the padding is wrong.
    fn decrypt(&self, ciphertext: &[u8], label: &[u8]) -> Option<Vec<u8>> {
        let base = U2048::from_be_slice(ciphertext.try_into().ok().map(|bytes: &[u8; 256]| bytes)?);
        let parameters = FixedMontyParams::new_vartime(self.modulus);
        let power = FixedMontyForm::new(&base, &parameters)
            .pow(&self.exponent)
            .retrieve();
        let encoded: Vec<u8> = power.to_be_bytes().as_ref().to_vec();
        let (salt, block) = encoded[1..].split_at(32);
        let salt = xor(salt, &mgf1(block, 32));
        let block = xor(block, &mgf1(&salt, block.len()));
        let rest = block.strip_prefix(sha256(label).as_slice())?;
        let start = rest.iter().position(|byte| *byte != 0)?;
        (encoded[0] == 0 && rest[start] == 1).then(|| rest[start + 1..].to_vec())
    }
}

/// `TPM2B_PUBLIC` of an RSA storage key.
pub(crate) fn public(modulus: &[u8], attributes: u32, policy: &[u8]) -> Vec<u8> {
    let mut area = vec![0x00, 0x01, 0x00, 0x0b];
    area.extend_from_slice(&attributes.to_be_bytes());
    area.extend_from_slice(&sized(policy));
    // AES, 128 bits, CFB; no scheme; 2048 bits, the default exponent.
    area.extend_from_slice(&[
        0x00, 0x06, 0x00, 0x80, 0x00, 0x43, 0x00, 0x10, 0x08, 0x00, 0, 0, 0, 0,
    ]);
    area.extend_from_slice(&sized(modulus));
    sized(&area)
}

pub(crate) struct SoftTpm {
    endorsement: Arc<Pair>,
    storage: Arc<Pair>,
    /// The HMAC key that was activated last.
    pub(crate) identity: Vec<u8>,
}

impl SoftTpm {
    /// One of two TPMs with different keys.
    pub(crate) fn number(number: usize) -> Self {
        SoftTpm {
            endorsement: Pair::shared(number * 2),
            storage: Pair::shared(number * 2 + 1),
            identity: Vec::new(),
        }
    }

    pub(crate) fn keys(&self) -> TpmKeys {
        let modulus = |pair: &Pair| pair.modulus.to_be_bytes().as_ref().to_vec();
        TpmKeys {
            endorsement_key: Bytes::from(public(&modulus(&self.endorsement), EK_ATTRIBUTES, &[7; 32])),
            storage_root_key: Bytes::from(public(&modulus(&self.storage), SRK_ATTRIBUTES, &[])),
        }
    }

    /// Takes an activation blob apart, as the SDKs do.
    pub(crate) fn activate(&mut self, blob: &[u8]) -> Result<(), &'static str> {
        let mut rest = blob;
        let mut part = || take(&mut rest).ok_or("a part is missing");
        let (credential, secret) = (part()?, part()?);
        let (private, outer_secret) = (part()?, part()?);
        let (public, data) = (part()?, part()?);
        if !rest.is_empty() || !data.is_empty() {
            return Err("the blob has more parts");
        }
        let storage_name = name(&self.keys().storage_root_key[2..]);
        let inner_key = unprotect(
            &self.endorsement,
            b"IDENTITY\0",
            credential,
            secret,
            &storage_name,
        )?;
        let inner_key = take(&mut &inner_key[..]).ok_or("no credential")?.to_vec();
        let wrapped = unprotect(
            &self.storage,
            b"DUPLICATE\0",
            private,
            outer_secret,
            &name(public),
        )?;
        let inner_key: [u8; 16] = inner_key.try_into().map_err(|_| "not an AES-128 key")?;
        let area = decrypt_cfb(&inner_key, &wrapped);
        let mut area = &area[..];
        let integrity = take(&mut area).ok_or("no inner integrity")?;
        if sha256(&[area, &name(public)].concat()) != integrity {
            return Err("the inner integrity is wrong");
        }
        let mut sensitive = take(&mut area).ok_or("no sensitive area")?;
        if sensitive.get(..2) != Some(&[0, 8]) {
            return Err("not a keyed hash");
        }
        sensitive = &sensitive[2..];
        let (authorization, obfuscation, key) =
            (take(&mut sensitive), take(&mut sensitive), take(&mut sensitive));
        let (Some([]), Some(obfuscation), Some(key)) = (authorization, obfuscation, key) else {
            return Err("a field of the sensitive area is missing");
        };
        if !public.ends_with(&sha256(&[obfuscation, key].concat())) {
            return Err("public and sensitive area do not belong together");
        }
        // keyed hash, SHA-256, sign | userWithAuth | noDA, no policy, HMAC with SHA-256, a digest.
        let begin = [0, 8, 0, 0x0b, 0, 4, 4, 0x40, 0, 0, 0, 5, 0, 0x0b, 0, 32];
        if public.len() != 48 || !public.starts_with(&begin) {
            return Err("not the public area of an HMAC key");
        }
        self.identity = key.to_vec();
        Ok(())
    }
}

/// What `TPM2_ActivateCredential` and the outer unwrapping of `TPM2_Import` have in common.
fn unprotect(
    parent: &Pair,
    label: &[u8],
    protected: &[u8],
    secret: &[u8],
    name: &[u8],
) -> Result<Vec<u8>, &'static str> {
    let seed = parent
        .decrypt(secret, label)
        .ok_or("the seed is not for this key")?;
    let mut encrypted = protected;
    let tag = take(&mut encrypted).ok_or("no integrity")?;
    let key = hmac::Key::new(hmac::HMAC_SHA256, &kdfa(&seed, b"INTEGRITY\0", &[], 256));
    hmac::verify(&key, &[encrypted, name].concat(), tag).map_err(|_| "the integrity is wrong")?;
    let key: [u8; 16] = kdfa(&seed, b"STORAGE\0", name, 128).try_into().expect("128 bits");
    Ok(decrypt_cfb(&key, encrypted))
}

fn kdfa(seed: &[u8], label: &[u8], context: &[u8], bits: u32) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, seed);
    let input = [&[0, 0, 0, 1], label, context, &bits.to_be_bytes()].concat();
    hmac::sign(&key, &input).as_ref()[..bits as usize / 8].to_vec()
}

fn decrypt_cfb(key: &[u8; 16], data: &[u8]) -> Vec<u8> {
    let mut data = data.to_vec();
    cfb_mode::Decryptor::<Aes128>::new(&(*key).into(), &[0; 16].into()).decrypt(&mut data);
    data
}

fn name(area: &[u8]) -> Vec<u8> {
    [&[0, 0x0b], sha256(area).as_slice()].concat()
}

fn sha256(data: &[u8]) -> Vec<u8> {
    digest::digest(&digest::SHA256, data).as_ref().to_vec()
}

fn mgf1(seed: &[u8], length: usize) -> Vec<u8> {
    let blocks = (0..length.div_ceil(32) as u32).flat_map(|n| sha256(&[seed, &n.to_be_bytes()].concat()));
    blocks.take(length).collect()
}

fn xor(left: &[u8], right: &[u8]) -> Vec<u8> {
    left.iter().zip(right).map(|(a, b)| a ^ b).collect()
}

fn sized(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes(), bytes].concat()
}

fn take<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (size, after) = rest.split_at_checked(2)?;
    let (part, after) = after.split_at_checked(usize::from(u16::from_be_bytes([size[0], size[1]])))?;
    *rest = after;
    Some(part)
}
