//! Keys of the device: what signs its tokens, derives keys of modules, encrypts for modules and signs certificates.
//!
//! Everything that needs a secret goes through [`KeyStore`]: files now, the device's own key also in a TPM; PKCS#11 tokens
//! behind the same trait later. No secret is ever printed.

mod derive;
mod files;
pub mod tpm;

use std::sync::Arc;

use holdfast_model::credential::SymmetricKey;
use holdfast_ports::BoxFuture;
use holdfast_upstream::port::{CloudError, TokenSigner};
use zeroize::Zeroizing;

pub use files::{DeviceKey, FileKeys, read_key};

/// Which of a module's two keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Slot {
    /// Signs the module's tokens.
    Primary,
    /// Spare.
    Secondary,
}

/// A key that cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum KeyStoreError {
    /// It cannot be read, written or made.
    #[error("the key {name} cannot be used: {cause}")]
    Unusable {
        /// Which.
        name: String,
        /// Why. Holds no secret.
        cause: String,
    },
    /// The device authenticates with a certificate, so it has no symmetric key.
    #[error("the device has no symmetric key")]
    NoDeviceKey,
    /// A text that was not encrypted here, for this module and with this initialization vector.
    #[error("the ciphertext was not made here for this module and initialization vector")]
    NotOurs,
}

/// Where secrets are.
///
/// Every call may be slow (a token, a TPM). Keys that do not exist are made on first use and are on the disk when the call
/// returns.
pub trait KeyStore: Send + Sync + 'static {
    /// HMAC-SHA256 with the device's own key.
    ///
    /// # Errors
    /// [`KeyStoreError::NoDeviceKey`] and others.
    fn sign_as_device<'a>(&'a self, text: &'a [u8]) -> BoxFuture<'a, Result<[u8; 32], KeyStoreError>>;

    /// The key of a module, derived from the device's master key and `<module>:<generation id>:primary|secondary`
    /// (edge.md section 3.5). It leaves the store, since the hub must know it.
    ///
    /// # Errors
    /// [`KeyStoreError`].
    fn module_key<'a>(
        &'a self,
        module_id: &'a str,
        generation_id: &'a str,
        slot: Slot,
    ) -> BoxFuture<'a, Result<SymmetricKey, KeyStoreError>>;

    /// HMAC-SHA256 with a module's primary key.
    ///
    /// # Errors
    /// [`KeyStoreError`].
    fn sign_as_module<'a>(
        &'a self,
        module_id: &'a str,
        generation_id: &'a str,
        text: &'a [u8],
    ) -> BoxFuture<'a, Result<[u8; 32], KeyStoreError>>;

    /// Encrypts for a module. The initialization vector may be of any length and may be used again.
    ///
    /// # Errors
    /// [`KeyStoreError`].
    fn encrypt<'a>(
        &'a self,
        purpose: Purpose<'a>,
        plaintext: &'a [u8],
    ) -> BoxFuture<'a, Result<Vec<u8>, KeyStoreError>>;

    /// Decrypts what [`KeyStore::encrypt`] made for the same purpose.
    ///
    /// # Errors
    /// [`KeyStoreError::NotOurs`] and others.
    fn decrypt<'a>(
        &'a self,
        purpose: Purpose<'a>,
        ciphertext: &'a [u8],
    ) -> BoxFuture<'a, Result<Zeroizing<Vec<u8>>, KeyStoreError>>;
}

/// What a ciphertext is bound to.
#[derive(Clone, Copy, Debug)]
pub struct Purpose<'a> {
    /// Module id.
    pub module_id: &'a str,
    /// Its generation id.
    pub generation_id: &'a str,
    /// The caller's initialization vector.
    pub vector: &'a [u8],
}

/// Signs tokens of the device.
pub struct DeviceSigner(pub Arc<dyn KeyStore>);

impl TokenSigner for DeviceSigner {
    fn sign<'a>(&'a self, text: &'a [u8]) -> BoxFuture<'a, Result<[u8; 32], CloudError>> {
        Box::pin(async move { self.0.sign_as_device(text).await.map_err(unsigned) })
    }
}

/// Signs tokens of a module.
pub struct ModuleSigner {
    /// Holder of the keys.
    pub keys: Arc<dyn KeyStore>,
    /// Module id.
    pub module_id: String,
    /// Its generation id.
    pub generation_id: String,
}

impl TokenSigner for ModuleSigner {
    fn sign<'a>(&'a self, text: &'a [u8]) -> BoxFuture<'a, Result<[u8; 32], CloudError>> {
        Box::pin(async move {
            self.keys
                .sign_as_module(&self.module_id, &self.generation_id, text)
                .await
                .map_err(unsigned)
        })
    }
}

/// A key that cannot be used now is tried again, like a hub that cannot be reached.
fn unsigned(error: KeyStoreError) -> CloudError {
    CloudError::Unreachable(format!("no token could be signed: {error}"))
}
