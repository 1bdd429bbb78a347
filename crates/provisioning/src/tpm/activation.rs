//! Activation blobs: an HMAC key that one TPM can read, and nobody else.
//!
//! The blob is what the SDKs take apart, six parts one after the other, each with its size in two bytes:
//!
//! | Part | What it is |
//! |---|---|
//! | `TPM2B_ID_OBJECT` | the inner wrapping key, as a credential for the storage root key |
//! | `TPM2B_ENCRYPTED_SECRET` | seed of the credential's protection, encrypted to the endorsement key |
//! | `TPM2B_PRIVATE` | the HMAC key, duplicated to the storage root key, with inner and outer wrapper |
//! | `TPM2B_ENCRYPTED_SECRET` | seed of the outer wrapper, encrypted to the storage root key |
//! | `TPM2B_PUBLIC` | public area of the HMAC key |
//! | `TPM2B_DATA` | data for the device; none |
//!
//! The device calls `TPM2_ActivateCredential` with the first two, which gives the inner wrapping key only if both the
//! endorsement key and the storage root key are loaded in the same TPM, then `TPM2_Import` with the next three.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use holdfast_model::credential::SymmetricKey;
use holdfast_model::{Error, ErrorCode};
use ring::digest::{SHA256, digest};
use zeroize::Zeroizing;

use super::cipher::{AES_KEY_BYTES, DIGEST_BYTES, encrypt_cfb, encrypt_oaep, hmac_sha256, kdfa};
use super::public::{ALG_HMAC, ALG_KEYEDHASH, ALG_SHA256, NO_DA, SIGN, StorageKey, USER_WITH_AUTH, name};

/// Makes a blob. Two of the same key have nothing in common.
///
/// # Errors
/// `ServerError` when the system has no random source.
pub(crate) fn blob(
    endorsement: &StorageKey,
    storage: &StorageKey,
    key: &SymmetricKey,
) -> Result<Vec<u8>, Error> {
    let key = Zeroizing::new(STANDARD.decode(key.reveal()).unwrap_or_default());
    let obfuscation = random::<DIGEST_BYTES>()?;
    let inner_key = random::<AES_KEY_BYTES>()?;
    let public = keyed_hash(&obfuscation, &key);
    let duplicated = name(&public);

    let mut out = Vec::with_capacity(1_024);
    // TPM 2.0 Part 1, "Credential Protection".
    let (credential, secret) = protect(endorsement, "IDENTITY", &storage.name, &sized(&inner_key[..]))?;
    put_sized(&mut out, &credential);
    put_sized(&mut out, &secret);
    // TPM 2.0 Part 1, "Duplication": the outer wrapper around the inner one.
    let sensitive = inner_wrapped(&obfuscation, &key, &duplicated, &inner_key);
    let (private, secret) = protect(storage, "DUPLICATE", &duplicated, &sensitive)?;
    put_sized(&mut out, &private);
    put_sized(&mut out, &secret);
    put_sized(&mut out, &public);
    put_sized(&mut out, &[]);
    Ok(out)
}

/// `TPMT_PUBLIC` of an HMAC key. Its unique field ties it to the sensitive area (TPM 2.0 Part 1, "Public Area for
/// keyedHash object").
fn keyed_hash(obfuscation: &[u8; DIGEST_BYTES], key: &[u8]) -> Vec<u8> {
    let mut unique = Zeroizing::new(obfuscation.to_vec());
    unique.extend_from_slice(key);
    let mut public = Vec::new();
    public.extend_from_slice(&ALG_KEYEDHASH.to_be_bytes());
    public.extend_from_slice(&ALG_SHA256.to_be_bytes());
    // Neither fixed to a TPM nor to a parent, as everything that is imported.
    public.extend_from_slice(&(SIGN | USER_WITH_AUTH | NO_DA).to_be_bytes());
    put_sized(&mut public, &[]);
    public.extend_from_slice(&ALG_HMAC.to_be_bytes());
    public.extend_from_slice(&ALG_SHA256.to_be_bytes());
    put_sized(&mut public, digest(&SHA256, &unique).as_ref());
    public
}

/// `TPM2B_SENSITIVE` in its inner wrapper: integrity digest and area, encrypted (TPM 2.0 Part 1, "Inner Duplication
/// Wrapper").
fn inner_wrapped(
    obfuscation: &[u8; DIGEST_BYTES],
    key: &[u8],
    name: &[u8],
    inner_key: &[u8; AES_KEY_BYTES],
) -> Zeroizing<Vec<u8>> {
    let mut area = Zeroizing::new(ALG_KEYEDHASH.to_be_bytes().to_vec());
    // No authorization value.
    put_sized(&mut area, &[]);
    put_sized(&mut area, obfuscation);
    put_sized(&mut area, key);
    let area = Zeroizing::new(sized(&area));
    let mut checked = Zeroizing::new(area.to_vec());
    checked.extend_from_slice(name);
    let mut wrapped = Zeroizing::new(sized(digest(&SHA256, &checked).as_ref()));
    wrapped.extend_from_slice(&area);
    encrypt_cfb(inner_key, &mut wrapped);
    wrapped
}

/// What credentials and outer wrappers have in common: encrypted and authenticated with keys from a seed that is
/// encrypted to `parent`. Returns HMAC and ciphertext, and the encrypted seed.
fn protect(
    parent: &StorageKey,
    label: &str,
    name: &[u8],
    content: &[u8],
) -> Result<(Vec<u8>, Vec<u8>), Error> {
    let seed = random::<DIGEST_BYTES>()?;
    let secret = encrypt_oaep(&parent.modulus, label, &seed, &*random::<DIGEST_BYTES>()?);
    let mut encrypted = content.to_vec();
    encrypt_cfb(&kdfa(&seed[..], "STORAGE", name), &mut encrypted);
    let integrity_key = kdfa::<DIGEST_BYTES>(&seed[..], "INTEGRITY", &[]);
    let tag = hmac_sha256(&integrity_key[..], [&encrypted, name]);
    let mut out = sized(tag.as_ref());
    out.extend_from_slice(&encrypted);
    Ok((out, secret.to_vec()))
}

fn random<const N: usize>() -> Result<Zeroizing<[u8; N]>, Error> {
    let mut bytes = Zeroizing::new([0; N]);
    getrandom::fill(&mut bytes[..])
        .map_err(|_| Error::new(ErrorCode::ServerError, "the system's random source does not work"))?;
    Ok(bytes)
}

fn sized(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(2 + bytes.len());
    put_sized(&mut out, bytes);
    out
}

/// Everything here is much shorter than 64 KiB.
fn put_sized(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
    out.extend_from_slice(bytes);
}
