//! An RSA-2048 key in PKCS#8, for the server certificate of clients that know no elliptic curves.
//!
//! `ring` signs with RSA keys but cannot make them. The primes come from `crypto-primes`; what is left is the
//! arithmetic of RFC 8017 section 3.2 and its DER form. Signing stays with `ring`, which blinds. See docs/adr/0020.

use anyhow::{Context as _, anyhow};
use crypto_bigint::rand_core::UnwrapErr;
use crypto_bigint::{NonZero, Odd, U1024, U2048};
use crypto_primes::hazmat::{SetBits, SmallFactorsSieveFactory};
use crypto_primes::{Flavor, is_prime, sieve_and_find};
use getrandom::SysRng;
use zeroize::Zeroizing;

/// 65537, what everyone uses.
const PUBLIC_EXPONENT: u32 = 65_537;

/// Makes a key; takes a few hundred milliseconds.
///
/// # Errors
/// When the result is not a key that `ring` accepts, which checks it thoroughly.
pub(super) fn generate_pkcs8() -> anyhow::Result<Zeroizing<Vec<u8>>> {
    // `ring` refuses keys by rules of FIPS 186-4 that a random pair meets nearly always (p and q far enough apart,
    // d large enough); the odd one out is simply drawn again.
    for _ in 0..8 {
        let Some(der) = attempt() else { continue };
        if ring::signature::RsaKeyPair::from_pkcs8(&der).is_ok() {
            return Ok(der);
        }
    }
    Err(anyhow!("no drawn RSA key was accepted")).context("cannot make an RSA key")
}

fn attempt() -> Option<Zeroizing<Vec<u8>>> {
    let (a, b) = (prime()?, prime()?);
    // ring wants p > q.
    let (p, q) = if a > b { (a, b) } else { (b, a) };
    let n: U2048 = p.concatenating_mul(&q);
    let p1 = p.wrapping_sub(&U1024::ONE);
    let q1 = q.wrapping_sub(&U1024::ONE);
    // Inverse modulo phi rather than lcm: equally valid, and ring takes both.
    let phi: U2048 = p1.concatenating_mul(&q1);
    let e = U2048::from_u32(PUBLIC_EXPONENT);
    let d: U2048 = e.invert_mod(&NonZero::new(phi).into_option()?).into_option()?;
    let dp = modulo(&d, &p1)?;
    let dq = modulo(&d, &q1)?;
    let q_inverse: U1024 = q.invert_odd_mod(&Odd::new(p).into_option()?).into_option()?;

    let mut key = Zeroizing::new(Vec::with_capacity(1300));
    integer(&mut key, &[0]);
    integer(&mut key, &bytes_2048(&n));
    integer(&mut key, &PUBLIC_EXPONENT.to_be_bytes());
    integer(&mut key, &bytes_2048(&d));
    for value in [&p, &q, &dp, &dq, &q_inverse] {
        integer(&mut key, &bytes_1024(value));
    }
    let mut rsa_private_key = Zeroizing::new(Vec::with_capacity(1300));
    tlv(&mut rsa_private_key, 0x30, &key);

    // PrivateKeyInfo: version 0, rsaEncryption with NULL parameters, the key in an octet string.
    const RSA_ENCRYPTION: &[u8] = &[
        0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00,
    ];
    let mut info = Zeroizing::new(Vec::with_capacity(1300));
    integer(&mut info, &[0]);
    info.extend_from_slice(RSA_ENCRYPTION);
    tlv(&mut info, 0x04, &rsa_private_key);
    let mut der = Zeroizing::new(Vec::with_capacity(1300));
    tlv(&mut der, 0x30, &info);
    Some(der)
}

/// With its two highest bits set, so that the product of two has 2048 bits (and both pass FIPS 186-4's lower bound).
fn prime() -> Option<U1024> {
    let sieve = SmallFactorsSieveFactory::new(Flavor::Any, U1024::BITS, SetBits::TwoMsb).ok()?;
    let found = sieve_and_find(&mut UnwrapErr(SysRng), sieve, |_, candidate| {
        is_prime(Flavor::Any, candidate)
    });
    found.ok()?
}

fn modulo(value: &U2048, modulus: &U1024) -> Option<U1024> {
    let wide: U2048 = modulus.resize();
    Some(value.rem(&NonZero::new(wide).into_option()?).resize())
}

fn bytes_2048(value: &U2048) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(value.to_be_bytes().as_ref().to_vec())
}

fn bytes_1024(value: &U1024) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(value.to_be_bytes().as_ref().to_vec())
}

/// INTEGER from big-endian bytes, without needless zeros and with the one that keeps it positive.
fn integer(out: &mut Vec<u8>, bytes: &[u8]) {
    let start = bytes
        .iter()
        .position(|byte| *byte != 0)
        .unwrap_or(bytes.len() - 1);
    let digits = &bytes[start..];
    let mut content = Zeroizing::new(Vec::with_capacity(digits.len() + 1));
    if digits[0] & 0x80 != 0 {
        content.push(0);
    }
    content.extend_from_slice(digits);
    tlv(out, 0x02, &content);
}

fn tlv(out: &mut Vec<u8>, tag: u8, content: &[u8]) {
    out.push(tag);
    let length = content.len();
    if length < 0x80 {
        out.push(length as u8);
    } else {
        let bytes = length.to_be_bytes();
        let significant = &bytes[bytes.iter().position(|byte| *byte != 0).unwrap_or(0)..];
        out.push(0x80 | significant.len() as u8);
        out.extend_from_slice(significant);
    }
    out.extend_from_slice(content);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makes_a_key_that_ring_and_rcgen_take() {
        let der = generate_pkcs8().unwrap();
        let pair = ring::signature::RsaKeyPair::from_pkcs8(&der).unwrap();
        assert_eq!(pair.public().modulus_len(), 256);
        let mut signature = vec![0; 256];
        pair.sign(
            &ring::signature::RSA_PKCS1_SHA256,
            &ring::rand::SystemRandom::new(),
            b"text",
            &mut signature,
        )
        .unwrap();
        ring::signature::UnparsedPublicKey::new(
            &ring::signature::RSA_PKCS1_2048_8192_SHA256,
            pair.public().as_ref(),
        )
        .verify(b"text", &signature)
        .unwrap();
    }
}
