//! The mathematics that a TPM undoes: key derivation, CFB, OAEP.

use cfb_mode::cipher::KeyIvInit as _;
use crypto_bigint::modular::{FixedMontyForm, FixedMontyParams};
use crypto_bigint::{Odd, U64, U2048};
use ring::digest::{SHA256, digest};
use ring::hmac;
use zeroize::Zeroizing;

use super::public::MODULUS_BYTES;

/// Bytes of SHA-256, of seeds, and of HMAC keys.
pub(super) const DIGEST_BYTES: usize = 32;
/// Bytes of an AES-128 key.
pub(super) const AES_KEY_BYTES: usize = 16;
const EXPONENT: u32 = 65_537;
const EXPONENT_BITS: u32 = 17;

/// KDFa with SHA-256 (TPM 2.0 Part 1, "KDFa()"; SP 800-108 in counter mode): the first `N` bytes, at most one digest.
/// `context` is what the specification calls contextU; contextV is always empty here.
pub(super) fn kdfa<const N: usize>(seed: &[u8], label: &str, context: &[u8]) -> Zeroizing<[u8; N]> {
    const { assert!(N <= DIGEST_BYTES) };
    let mut mac = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, seed));
    mac.update(&1u32.to_be_bytes());
    mac.update(label.as_bytes());
    // The terminating zero counts (TPM 2.0 Part 1, "KDFa()").
    mac.update(&[0]);
    mac.update(context);
    mac.update(&(N as u32 * 8).to_be_bytes());
    let mut key = Zeroizing::new([0; N]);
    key.copy_from_slice(&mac.sign().as_ref()[..N]);
    key
}

pub(super) fn hmac_sha256(key: &[u8], parts: [&[u8]; 2]) -> hmac::Tag {
    let mut mac = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    for part in parts {
        mac.update(part);
    }
    mac.sign()
}

/// AES-128 in CFB mode with a zero vector, in place (TPM 2.0 Part 1, "Symmetric Block Cipher Modes": CFB-128).
pub(super) fn encrypt_cfb(key: &[u8; AES_KEY_BYTES], data: &mut [u8]) {
    cfb_mode::Encryptor::<aes::Aes128>::new(&(*key).into(), &[0; AES_KEY_BYTES].into()).encrypt(data);
}

/// RSAES_OAEP with SHA-256 (TPM 2.0 Part 1, annex B, "RSAES_OAEP"; RFC 8017 section 7.1.1). The label's terminating zero
/// is part of it. `salt` must be random.
pub(super) fn encrypt_oaep(
    modulus: &Odd<U2048>,
    label: &str,
    message: &[u8; DIGEST_BYTES],
    salt: &[u8; DIGEST_BYTES],
) -> [u8; MODULUS_BYTES] {
    const BLOCK: usize = MODULUS_BYTES - DIGEST_BYTES - 1;
    let mut labelled = label.as_bytes().to_vec();
    labelled.push(0);
    let mut encoded = Zeroizing::new([0u8; MODULUS_BYTES]);
    let (head, block) = encoded.split_at_mut(1 + DIGEST_BYTES);
    block[..DIGEST_BYTES].copy_from_slice(digest(&SHA256, &labelled).as_ref());
    block[BLOCK - DIGEST_BYTES - 1] = 1;
    block[BLOCK - DIGEST_BYTES..].copy_from_slice(message);
    mask(block, salt);
    head[1..].copy_from_slice(salt);
    mask(&mut head[1..], block);
    raise(modulus, &encoded)
}

/// Applies MGF1 of `seed` (RFC 8017, B.2.1).
fn mask(data: &mut [u8], seed: &[u8]) {
    let mut input = Zeroizing::new(seed.to_vec());
    input.extend_from_slice(&[0; 4]);
    for (counter, chunk) in data.chunks_mut(DIGEST_BYTES).enumerate() {
        input[seed.len()..].copy_from_slice(&(counter as u32).to_be_bytes());
        let block = digest(&SHA256, &input);
        for (byte, mask) in chunk.iter_mut().zip(block.as_ref()) {
            *byte ^= mask;
        }
    }
}

/// `message` to the public exponent, modulo `modulus`. Constant time in the message.
fn raise(modulus: &Odd<U2048>, message: &[u8; MODULUS_BYTES]) -> [u8; MODULUS_BYTES] {
    let parameters = FixedMontyParams::new_vartime(*modulus);
    let base = FixedMontyForm::new(&U2048::from_be_slice(message), &parameters);
    let power = base.pow_bounded_exp(&U64::from_u32(EXPONENT), EXPONENT_BITS);
    let mut bytes = [0; MODULUS_BYTES];
    bytes.copy_from_slice(power.retrieve().to_be_bytes().as_ref());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let digit = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("hex");
        (0..text.len()).step_by(2).map(digit).collect()
    }

    /// NIST SP 800-38A, F.3.13, whose vector is not zero: so its first block comes from the second one of ours.
    #[test]
    fn cfb_is_that_of_the_standard() {
        let key: [u8; 16] = hex("2b7e151628aed2a6abf7158809cf4f3c").try_into().expect("16");
        let mut data = hex("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51");
        let iv: [u8; 16] = hex("000102030405060708090a0b0c0d0e0f").try_into().expect("16");
        cfb_mode::Encryptor::<aes::Aes128>::new(&key.into(), &iv.into()).encrypt(&mut data);
        assert_eq!(
            data,
            hex("3b3fd92eb72dad20333449f8e83cfb4ac8a64537a0b3a93fcde3cdad9f1ce58b")
        );
        // A zero vector turns a zero block into AES of zero.
        let mut zeros = [0; 16];
        encrypt_cfb(&[0; 16], &mut zeros);
        assert_eq!(zeros.to_vec(), hex("66e94bd4ef8a2c3b884cfa59ca342b2e"));
    }

    #[test]
    fn raising_is_modular() {
        // 2^65537 mod (2^2047 + 1): 2^2047 is -1, and 65537 = 32 * 2047 + 33, so the result is 2^33.
        let mut modulus = [0; MODULUS_BYTES];
        modulus[0] = 0x80;
        modulus[MODULUS_BYTES - 1] = 1;
        let mut two = [0; MODULUS_BYTES];
        two[MODULUS_BYTES - 1] = 2;
        let mut wanted = [0; MODULUS_BYTES];
        wanted[MODULUS_BYTES - 5] = 2;
        let modulus = Odd::new(U2048::from_be_slice(&modulus)).expect("odd");
        assert_eq!(raise(&modulus, &two), wanted);
    }
}
