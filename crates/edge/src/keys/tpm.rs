//! The device's key inside a TPM: a provisioning service puts it there, and this program never sees it.
//!
//! The TPM is opened for each call and closed again, so that other programs come to use it, too. Calls block, so they run
//! where blocking is allowed, one at a time: `swtpm` and `/dev/tpm0` serve one client at once.

use std::io;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use holdfast_ports::BoxFuture;
use holdfast_program::failure::{Failure, Kind};
use holdfast_tpm::{Config, Description, PublicKeys, SealedKey, Tpm, TpmError};
use holdfast_upstream::port::{CloudError, TokenSigner};
use parking_lot::Mutex;
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use zeroize::Zeroizing;

use super::KeyStoreError;
use crate::config::{HierarchyAuth, TpmSettings};

/// The machine's TPM.
pub struct DeviceTpm {
    config: Arc<Config>,
    turn: tokio::sync::Mutex<()>,
    lost: Notify,
}

impl DeviceTpm {
    /// The TPM of the settings. It is not opened yet.
    ///
    /// # Errors
    /// When a file with an authorization value cannot be read.
    pub fn new(settings: &TpmSettings) -> Result<Self, Failure> {
        Ok(DeviceTpm {
            config: Arc::new(Config {
                address: settings.address.clone(),
                owner_auth: authorization("tpm.owner_auth_file", &settings.owner_auth)?,
                endorsement_auth: authorization("tpm.endorsement_auth_file", &settings.endorsement_auth)?,
            }),
            turn: tokio::sync::Mutex::new(()),
            lost: Notify::new(),
        })
    }

    /// Waits until the TPM does not know the device's key any more, since it was cleared.
    pub async fn lost(&self) {
        self.lost.notified().await;
    }

    /// What the provisioning service must know. In a TPM without these keys they are made, which takes a while.
    ///
    /// # Errors
    /// [`TpmError`].
    pub async fn public_keys(&self) -> Result<PublicKeys, TpmError> {
        self.call(Tpm::public_keys).await
    }

    /// Who made it.
    ///
    /// # Errors
    /// [`TpmError`].
    pub async fn describe(&self) -> Result<Description, TpmError> {
        self.call(Tpm::describe).await
    }

    /// Takes a key from a provisioning service.
    ///
    /// # Errors
    /// [`TpmError`].
    pub async fn activate(&self, encrypted: &[u8]) -> Result<SealedKey, TpmError> {
        let encrypted = encrypted.to_vec();
        self.call(move |tpm| tpm.activate(&encrypted)).await
    }

    /// Checks that a key can be used.
    ///
    /// # Errors
    /// [`TpmError::ForeignKey`] and others.
    pub async fn check(&self, key: &SealedKey) -> Result<(), TpmError> {
        let key = key.clone();
        self.call(move |tpm| tpm.check(&key)).await
    }

    /// HMAC-SHA256.
    ///
    /// # Errors
    /// [`TpmError`].
    pub async fn sign(&self, key: &SealedKey, text: &[u8]) -> Result<[u8; 32], TpmError> {
        let (key, text) = (key.clone(), text.to_vec());
        self.call(move |tpm| tpm.sign(&key, &text)).await
    }

    async fn call<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Tpm) -> Result<R, TpmError> + Send + 'static,
    ) -> Result<R, TpmError> {
        let _turn = self.turn.lock().await;
        let config = Arc::clone(&self.config);
        let called = tokio::task::spawn_blocking(move || work(&mut Tpm::open(&config)?)).await;
        called.unwrap_or_else(|error| {
            Err(TpmError::Exchange {
                command: "the last command",
                cause: io::Error::other(error),
            })
        })
    }
}

fn authorization(key: &str, source: &HierarchyAuth) -> Result<Zeroizing<Vec<u8>>, Failure> {
    match source {
        HierarchyAuth::Empty => Ok(Zeroizing::default()),
        HierarchyAuth::Value(value) => Ok(Zeroizing::new(value.as_bytes().to_vec())),
        HierarchyAuth::File(path) => {
            let mut content = std::fs::read(path).map(Zeroizing::new).map_err(|error| {
                Failure::usage(format!("{key} = {}: {error}", path.display()))
                    .hint("put the authorization value there, readable by this user, or remove the key")
            })?;
            while content.last().is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
                content.pop();
            }
            Ok(content)
        }
    }
}

/// A key with the TPM that can use it.
#[derive(Clone)]
pub struct TpmKey {
    tpm: Arc<DeviceTpm>,
    key: Arc<SealedKey>,
}

impl TpmKey {
    /// A key of this TPM.
    #[must_use]
    pub fn new(tpm: Arc<DeviceTpm>, key: SealedKey) -> Self {
        TpmKey {
            tpm,
            key: Arc::new(key),
        }
    }

    /// Signs as the device.
    pub(super) async fn sign_text(&self, text: &[u8]) -> Result<[u8; 32], KeyStoreError> {
        let signed = self.tpm.sign(&self.key, text).await;
        signed.map_err(|error| {
            if let TpmError::ForeignKey { .. } = error {
                self.tpm.lost.notify_one();
            }
            KeyStoreError::Unusable {
                name: "of the device in its TPM".to_owned(),
                cause: error.to_string(),
            }
        })
    }
}

impl TokenSigner for TpmKey {
    fn sign<'a>(&'a self, text: &'a [u8]) -> BoxFuture<'a, Result<[u8; 32], CloudError>> {
        Box::pin(async move { self.sign_text(text).await.map_err(super::unsigned) })
    }
}

/// A sealed key as it is kept in a file: of use for its TPM only.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct KeptKey {
    public: String,
    private: String,
}

impl From<&SealedKey> for KeptKey {
    fn from(key: &SealedKey) -> Self {
        KeptKey {
            public: STANDARD.encode(&key.public),
            private: STANDARD.encode(&key.private),
        }
    }
}

impl KeptKey {
    /// The key; `None` when the file is damaged.
    #[must_use]
    pub fn open(&self) -> Option<SealedKey> {
        Some(SealedKey {
            public: STANDARD.decode(&self.public).ok()?,
            private: STANDARD.decode(&self.private).ok()?,
        })
    }
}

/// One registration of a TPM: the keys that the service sends for it replace nothing until it has succeeded.
pub struct Registering {
    tpm: Arc<DeviceTpm>,
    keys: PublicKeys,
    taken: Mutex<Option<TpmKey>>,
    failure: Mutex<Option<TpmError>>,
}

impl Registering {
    /// Reads the keys by which the service knows the TPM.
    ///
    /// # Errors
    /// [`TpmError`].
    pub async fn begin(tpm: &Arc<DeviceTpm>) -> Result<Arc<Self>, TpmError> {
        Ok(Arc::new(Registering {
            keys: tpm.public_keys().await?,
            tpm: Arc::clone(tpm),
            taken: Mutex::default(),
            failure: Mutex::default(),
        }))
    }

    /// The key that was taken last.
    pub fn key(&self) -> Option<TpmKey> {
        self.taken.lock().clone()
    }

    /// What the TPM had against a key, if that is why the registration failed.
    pub fn failure(&self) -> Option<TpmError> {
        self.failure.lock().take()
    }
}

impl TpmKey {
    /// For a file.
    #[must_use]
    pub fn kept(&self) -> KeptKey {
        KeptKey::from(self.key.as_ref())
    }
}

impl TokenSigner for Registering {
    fn sign<'a>(&'a self, text: &'a [u8]) -> BoxFuture<'a, Result<[u8; 32], CloudError>> {
        Box::pin(async move {
            match self.key() {
                Some(key) => key.sign(text).await,
                None => Err(super::unsigned(KeyStoreError::NoDeviceKey)),
            }
        })
    }
}

impl holdfast_upstream::provisioning::Tpm for Registering {
    fn endorsement_key(&self) -> Vec<u8> {
        self.keys.endorsement.clone()
    }

    fn storage_root_key(&self) -> Vec<u8> {
        self.keys.storage_root.clone()
    }

    fn import<'a>(&'a self, encrypted_key: &'a [u8]) -> BoxFuture<'a, Result<(), CloudError>> {
        Box::pin(async move {
            match self.tpm.activate(encrypted_key).await {
                Ok(key) => {
                    *self.taken.lock() = Some(TpmKey::new(Arc::clone(&self.tpm), key));
                    Ok(())
                }
                Err(error) => {
                    let words = error.to_string();
                    *self.failure.lock() = Some(error);
                    Err(CloudError::Unreachable(words))
                }
            }
        })
    }
}

/// The registration id that the SDKs make of an endorsement key: its SHA-256 in base 32, lower case, without padding.
#[must_use]
pub fn registration_id(endorsement_key: &[u8]) -> String {
    const DIGITS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let hash = digest(&SHA256, endorsement_key);
    let (mut text, mut bits, mut held) = (String::new(), 0u32, 0);
    let mut digit = |bits: u32| text.push(char::from(DIGITS[(bits & 31) as usize]));
    for byte in hash.as_ref() {
        bits = bits << 8 | u32::from(*byte);
        held += 8;
        while held >= 5 {
            held -= 5;
            digit(bits >> held);
        }
    }
    if held > 0 {
        digit(bits << (5 - held));
    }
    text
}

/// What a person can do about a TPM that does not do what it should.
#[must_use]
pub fn failure(error: &TpmError) -> Failure {
    let (kind, remedy) = match error {
        TpmError::Open { cause, .. } => match cause.kind() {
            io::ErrorKind::PermissionDenied => (
                Kind::Unauthorized,
                "run as root, or as a member of the device's group (tss)",
            ),
            io::ErrorKind::ResourceBusy => (
                Kind::Unavailable,
                "another program has it alone; use the resource manager, device:/dev/tpmrm0",
            ),
            _ => (
                Kind::Unavailable,
                "switch the TPM 2.0 on in the machine's firmware, pass it on to the virtual machine, or correct tpm.tcti",
            ),
        },
        TpmError::Exchange { .. } => (
            Kind::Unavailable,
            "look whether it is still there (dmesg | grep -i tpm), or restart the machine",
        ),
        TpmError::Answer { .. } => (
            Kind::Unavailable,
            "tpm.tcti must name a TPM 2.0; a TPM 1.2 cannot be used",
        ),
        TpmError::ForeignKey { .. } => (
            Kind::Unavailable,
            "the daemon registers the device again by itself, when it starts or needs the key",
        ),
        TpmError::Blob(_) => (
            Kind::Unauthorized,
            "check that provisioning.endpoint is a device provisioning service and the enrollment's attestation is tpm",
        ),
        TpmError::Refused { command, code } => refused(command, *code),
        TpmError::Random => (Kind::Failed, "restart the machine"),
    };
    Failure::new(kind, error.to_string()).hint(remedy)
}

fn refused(command: &str, code: holdfast_tpm::ResponseCode) -> (Kind, &'static str) {
    if code.is_wrong_authorization() {
        return (
            Kind::Unauthorized,
            "give the authorization values of its hierarchies: tpm.owner_auth_file and tpm.endorsement_auth_file (tpm.hierarchy_authorization in config.toml)",
        );
    }
    if code.is_lockout() {
        return (
            Kind::Unauthorized,
            "wait until it opens, or reset its lock with the lockout authorization (tpm2_dictionarylockout --clear-lockout)",
        );
    }
    if code.is_full() {
        return (
            Kind::Unavailable,
            "use the resource manager, device:/dev/tpmrm0, which makes room, or end the other programs",
        );
    }
    if command.contains("ActivateCredential") || command.contains("Import") {
        return (
            Kind::Unauthorized,
            "the key was made for another TPM: enroll the endorsement key that `holdfast-edge tpm` prints",
        );
    }
    (
        Kind::Unavailable,
        "`tpm2_rc_decode` tells more of the code; the owner and the endorsement hierarchy must be switched on",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registration_ids_are_those_of_the_sdks() {
        // RFC 4648 base 32 of the SHA-256 of nothing, e3b0c442 …
        assert_eq!(
            registration_id(b""),
            "4oymiquy7qobjgx36tejs35zeqt24qpemsnzgtfeswmrw6csxbkq"
        );
    }

    #[test]
    fn kept_keys_are_read_again() {
        let key = SealedKey {
            public: vec![0, 1, 2],
            private: vec![0, 1, 9],
        };
        let kept = KeptKey::from(&key);
        assert_eq!(kept.open(), Some(key));
        let damaged = KeptKey {
            private: "%".to_owned(),
            ..kept
        };
        assert_eq!(damaged.open(), None);
    }

    #[tokio::test]
    async fn a_tpm_that_is_not_there_is_told_with_a_remedy() {
        let settings = TpmSettings {
            address: "device:/nonexistent/tpm".parse().unwrap(),
            ..TpmSettings::default()
        };
        let error = DeviceTpm::new(&settings)
            .unwrap()
            .public_keys()
            .await
            .unwrap_err();
        let failure = failure(&error);
        assert_eq!(failure.kind, Kind::Unavailable);
        assert!(failure.message.contains("device:/nonexistent/tpm"), "{failure}");
        assert!(failure.hint.is_some_and(|hint| hint.contains("tpm.tcti")));
    }

    #[test]
    fn authorization_values_stand_in_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("auth");
        std::fs::write(&path, "secret\r\n").unwrap();
        let read = authorization("k", &HierarchyAuth::File(path)).unwrap();
        assert_eq!(read.as_slice(), b"secret");
        let missing = HierarchyAuth::File(dir.path().join("none"));
        assert!(authorization("tpm.owner_auth_file", &missing).is_err());
        assert!(authorization("k", &HierarchyAuth::Empty).unwrap().is_empty());
    }
}
