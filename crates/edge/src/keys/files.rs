//! Keys in files of mode 0600 below one folder of mode 0700.
//!
//! ```text
//! module-master.key       keys of modules derive from it
//! encryption-master.key   keys of encrypt and decrypt derive from it
//! ```
//!
//! The device's own key stays where the configuration says, and is read again at each start; or it is in a TPM.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use holdfast_model::credential::SymmetricKey;
use holdfast_ports::BoxFuture;
use holdfast_program::files::{self, PRIVATE};
use parking_lot::Mutex;
use zeroize::Zeroizing;

use super::tpm::TpmKey;
use super::{KeyStore, KeyStoreError, Purpose, Slot, derive};
use crate::config::KeySource;

const MODULE_MASTER: &str = "module-master.key";
const ENCRYPTION_MASTER: &str = "encryption-master.key";

/// What the device signs with.
#[derive(Clone)]
pub enum DeviceKey {
    /// A key that is known here.
    Known(SymmetricKey),
    /// A key in a TPM.
    Tpm(TpmKey),
}

/// Keys in files.
pub struct FileKeys {
    folder: PathBuf,
    device: Mutex<Option<DeviceKey>>,
    module_master: SymmetricKey,
    encryption_master: SymmetricKey,
}

impl FileKeys {
    /// Opens the keys below `folder`, making those that are missing. `encryption` replaces the one made here
    /// (`imported_master_encryption_key`).
    ///
    /// # Errors
    /// When a file cannot be read or written, or holds no key.
    pub fn open(folder: &Path, encryption: Option<&KeySource>) -> Result<Self, KeyStoreError> {
        let encryption_master = match encryption {
            Some(source) => read_key(source, "imported master encryption key")?,
            None => open_or_make(&folder.join(ENCRYPTION_MASTER))?,
        };
        Ok(FileKeys {
            device: Mutex::new(None),
            module_master: open_or_make(&folder.join(MODULE_MASTER))?,
            encryption_master,
            folder: folder.to_owned(),
        })
    }

    /// From now on the device signs with this key.
    pub fn set_device_key(&self, key: Option<DeviceKey>) {
        *self.device.lock() = key;
    }

    /// 32 bytes that only this device knows, the same at each start, another for each purpose.
    #[must_use]
    pub fn secret(&self, purpose: &str) -> [u8; 32] {
        self.encryption_master.sign(&[b"secret:", purpose.as_bytes()])
    }

    /// Encrypts what this daemon keeps for one purpose.
    ///
    /// # Errors
    /// [`KeyStoreError`].
    pub fn seal(&self, purpose: &str, plain: &[u8]) -> Result<Vec<u8>, KeyStoreError> {
        derive::encrypt(&self.encryption_master, own(purpose), plain)
    }

    /// Decrypts what [`FileKeys::seal`] made.
    ///
    /// # Errors
    /// [`KeyStoreError::NotOurs`] and others.
    pub fn open_sealed(&self, purpose: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, KeyStoreError> {
        derive::decrypt(&self.encryption_master, own(purpose), sealed)
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

/// A purpose of the daemon itself: no module id holds a slash.
const fn own(purpose: &str) -> Purpose<'_> {
    Purpose {
        module_id: "/",
        generation_id: purpose,
        vector: &[],
    }
}

/// Reads a key from where the configuration says.
///
/// # Errors
/// When the file cannot be read or holds no key.
pub fn read_key(source: &KeySource, name: &str) -> Result<SymmetricKey, KeyStoreError> {
    match source {
        KeySource::Value(key) => Ok(key.clone()),
        KeySource::File(path) => {
            let content = std::fs::read(path).map(Zeroizing::new);
            let content = content.map_err(|error| unusable(name, format!("{}: {error}", path.display())))?;
            key_of(&content).ok_or_else(|| {
                let cause = format!("{} holds neither base64 nor 16 to 64 bytes", path.display());
                unusable(name, cause)
            })
        }
    }
}

/// A key as base64 text, or as the bytes themselves.
fn key_of(content: &[u8]) -> Option<SymmetricKey> {
    let as_text = std::str::from_utf8(content)
        .ok()
        .and_then(|text| SymmetricKey::parse(text.trim()).ok());
    as_text.or_else(|| SymmetricKey::parse(&Zeroizing::new(STANDARD.encode(content))).ok())
}

fn open_or_make(path: &Path) -> Result<SymmetricKey, KeyStoreError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let failed = |error: std::io::Error| unusable(&name, format!("{}: {error}", path.display()));
    match files::read(path).map_err(failed)?.map(Zeroizing::new) {
        Some(content) => {
            // Never replaced: everything that was derived from it would be lost.
            key_of(&content).ok_or_else(|| unusable(&name, format!("{} is damaged", path.display())))
        }
        None => {
            let key = SymmetricKey::generate();
            files::write(path, key.reveal().as_bytes(), PRIVATE).map_err(failed)?;
            Ok(key)
        }
    }
}

fn unusable(name: &str, cause: String) -> KeyStoreError {
    KeyStoreError::Unusable {
        name: name.to_owned(),
        cause,
    }
}

impl KeyStore for FileKeys {
    fn sign_as_device<'a>(&'a self, text: &'a [u8]) -> BoxFuture<'a, Result<[u8; 32], KeyStoreError>> {
        let key = self.device.lock().clone();
        Box::pin(async move {
            match key.ok_or(KeyStoreError::NoDeviceKey)? {
                DeviceKey::Known(key) => Ok(key.sign(&[text])),
                DeviceKey::Tpm(key) => key.sign_text(text).await,
            }
        })
    }

    fn module_key<'a>(
        &'a self,
        module_id: &'a str,
        generation_id: &'a str,
        slot: Slot,
    ) -> BoxFuture<'a, Result<SymmetricKey, KeyStoreError>> {
        Box::pin(async move {
            Ok(derive::module_key(
                &self.module_master,
                module_id,
                generation_id,
                slot,
            ))
        })
    }

    fn sign_as_module<'a>(
        &'a self,
        module_id: &'a str,
        generation_id: &'a str,
        text: &'a [u8],
    ) -> BoxFuture<'a, Result<[u8; 32], KeyStoreError>> {
        Box::pin(async move {
            let key = derive::module_key(&self.module_master, module_id, generation_id, Slot::Primary);
            Ok(key.sign(&[text]))
        })
    }

    fn encrypt<'a>(
        &'a self,
        purpose: Purpose<'a>,
        plaintext: &'a [u8],
    ) -> BoxFuture<'a, Result<Vec<u8>, KeyStoreError>> {
        Box::pin(async move { derive::encrypt(&self.encryption_master, purpose, plaintext) })
    }

    fn decrypt<'a>(
        &'a self,
        purpose: Purpose<'a>,
        ciphertext: &'a [u8],
    ) -> BoxFuture<'a, Result<Zeroizing<Vec<u8>>, KeyStoreError>> {
        Box::pin(async move { derive::decrypt(&self.encryption_master, purpose, ciphertext) })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn keys_are_made_once_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let first = FileKeys::open(dir.path(), None).unwrap();
        let again = FileKeys::open(dir.path(), None).unwrap();
        assert!(
            first.module_master == again.module_master && first.encryption_master == again.encryption_master
        );
        assert!(first.module_master != first.encryption_master);
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let mode = entry.unwrap().metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[test]
    fn a_damaged_key_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        drop(FileKeys::open(dir.path(), None).unwrap());
        let path = dir.path().join(MODULE_MASTER);
        std::fs::write(&path, b"short").unwrap();
        let error = FileKeys::open(dir.path(), None).err().unwrap().to_string();
        assert!(error.contains("module-master.key is damaged"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"short");
    }

    #[test]
    fn keys_are_read_as_text_and_as_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let key = SymmetricKey::generate();
        let (text, bytes) = (dir.path().join("text"), dir.path().join("bytes"));
        std::fs::write(&text, format!("{}\n", key.reveal())).unwrap();
        std::fs::write(&bytes, STANDARD.decode(key.reveal()).unwrap()).unwrap();
        for path in [text, bytes] {
            assert!(read_key(&KeySource::File(path), "k").unwrap() == key);
        }
        assert!(read_key(&KeySource::File(dir.path().join("none")), "k").is_err());
    }
}
