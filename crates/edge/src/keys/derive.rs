//! Keys from keys, and encryption bound to a module.

use holdfast_model::credential::SymmetricKey;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom as _, SystemRandom};
use zeroize::{Zeroize as _, Zeroizing};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{KeyStoreError, Purpose, Slot};

/// First byte of a ciphertext.
const VERSION: u8 = 1;
/// Authentication tag of AES-GCM.
const TAG_BYTES: usize = 16;

/// The key of a module.
pub(super) fn module_key(
    master: &SymmetricKey,
    module_id: &str,
    generation_id: &str,
    slot: Slot,
) -> SymmetricKey {
    let slot = match slot {
        Slot::Primary => "primary",
        Slot::Secondary => "secondary",
    };
    master.derive(&format!("{module_id}:{generation_id}:{slot}"))
}

/// `version ∥ nonce ∥ ciphertext ∥ tag`. The key is the module's own, derived from the master key; the nonce is drawn here,
/// since modules use one initialization vector again and again, which AES-GCM would not forgive. The caller's vector is
/// authenticated instead, so that a wrong one does not decrypt.
pub(super) fn encrypt(
    master: &SymmetricKey,
    purpose: Purpose<'_>,
    plaintext: &[u8],
) -> Result<Vec<u8>, KeyStoreError> {
    let mut nonce = [0; NONCE_LEN];
    SystemRandom::new()
        .fill(&mut nonce)
        .map_err(|_| failed("the operating system's random source does not work"))?;
    let mut out = Vec::with_capacity(1 + NONCE_LEN + plaintext.len() + TAG_BYTES);
    out.push(VERSION);
    out.extend_from_slice(&nonce);
    out.extend_from_slice(plaintext);
    let tag = key(master, purpose)?
        .seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(purpose.vector),
            &mut out[1 + NONCE_LEN..],
        )
        .map_err(|_| failed("the text is too long"))?;
    out.extend_from_slice(tag.as_ref());
    Ok(out)
}

/// The way back.
pub(super) fn decrypt(
    master: &SymmetricKey,
    purpose: Purpose<'_>,
    ciphertext: &[u8],
) -> Result<Zeroizing<Vec<u8>>, KeyStoreError> {
    let Some((&VERSION, rest)) = ciphertext.split_first() else {
        return Err(KeyStoreError::NotOurs);
    };
    let Some((nonce, sealed)) = rest.split_first_chunk::<NONCE_LEN>() else {
        return Err(KeyStoreError::NotOurs);
    };
    let mut text = Zeroizing::new(sealed.to_vec());
    let length = key(master, purpose)?
        .open_in_place(
            Nonce::assume_unique_for_key(*nonce),
            Aad::from(purpose.vector),
            &mut text,
        )
        .map_err(|_| KeyStoreError::NotOurs)?
        .len();
    text.truncate(length);
    Ok(text)
}

fn key(master: &SymmetricKey, purpose: Purpose<'_>) -> Result<LessSafeKey, KeyStoreError> {
    let derived = master.derive(&format!(
        "encryption:{}:{}",
        purpose.module_id, purpose.generation_id
    ));
    let mut bytes = STANDARD
        .decode(derived.reveal())
        .map_err(|_| failed("a derived key is not base64"))?;
    let key = UnboundKey::new(&AES_256_GCM, &bytes).map_err(|_| failed("a derived key has not 32 bytes"));
    bytes.zeroize();
    Ok(LessSafeKey::new(key?))
}

fn failed(cause: &str) -> KeyStoreError {
    KeyStoreError::Unusable {
        name: "master encryption key".to_owned(),
        cause: cause.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn purpose<'a>(module_id: &'a str, vector: &'a [u8]) -> Purpose<'a> {
        Purpose {
            module_id,
            generation_id: "g",
            vector,
        }
    }

    #[test]
    fn decrypts_only_for_the_same_module_and_vector() {
        let master = SymmetricKey::generate();
        for length in [0, 1, 15, 16, 70_000] {
            let plain = vec![7; length];
            let sealed = encrypt(&master, purpose("m", b"vector"), &plain).unwrap();
            assert_eq!(
                *decrypt(&master, purpose("m", b"vector"), &sealed).unwrap(),
                plain
            );
            assert!(decrypt(&master, purpose("n", b"vector"), &sealed).is_err());
            assert!(decrypt(&master, purpose("m", b"other"), &sealed).is_err());
            for cut in [0, 1, 12, sealed.len() - 1] {
                assert!(decrypt(&master, purpose("m", b"vector"), &sealed[..cut]).is_err());
            }
        }
    }

    #[test]
    fn the_same_text_twice_looks_different() {
        let master = SymmetricKey::generate();
        let one = encrypt(&master, purpose("m", b"v"), b"text").unwrap();
        assert_ne!(one, encrypt(&master, purpose("m", b"v"), b"text").unwrap());
    }

    #[test]
    fn keys_of_modules_are_as_the_original_derives_them() {
        // HMAC-SHA256 with sixteen zero bytes, computed with openssl.
        let master = SymmetricKey::parse("AAAAAAAAAAAAAAAAAAAAAA==").unwrap();
        let key = module_key(&master, "m", "1", Slot::Primary);
        assert_eq!(key.reveal(), "WLYEBWFjnXOuzJmnVzHK5Da20wdnjk5DpMPMHnzQI28=");
        assert_ne!(key, module_key(&master, "m", "1", Slot::Secondary));
        assert_ne!(key, module_key(&master, "m", "2", Slot::Primary));
    }
}
