//! The device's own certificate: what renews it replaces its files, and the daemon takes it up without a restart.

use parking_lot::Mutex;

use holdfast_program::failure::Failure;
use holdfast_upstream::port::ClientCertificate;

use crate::config::{CertificateFiles, Credential, Provisioning, Settings};
use crate::provisioning;

/// Knows which certificate is in use.
pub(super) struct DeviceCertificate {
    files: CertificateFiles,
    used: Mutex<Option<ClientCertificate>>,
}

impl DeviceCertificate {
    /// `None` when the device proves itself otherwise.
    pub(super) fn of(settings: &Settings) -> Option<Self> {
        let (Provisioning::Manual { credential, .. } | Provisioning::Dps { credential, .. }) =
            &settings.provisioning;
        let Credential::Certificate(files) = credential else {
            return None;
        };
        Some(DeviceCertificate {
            files: files.clone(),
            used: Mutex::new(provisioning::certificate(files).ok()),
        })
    }

    /// The certificate, if its files hold another one than that in use. Files that do not fit together (one has been
    /// replaced, the other will be) are an error, and looked at again.
    ///
    /// # Errors
    /// When the files cannot be used; the one in use stays.
    pub(super) fn renewed(&self) -> Result<Option<ClientCertificate>, Failure> {
        let found = provisioning::certificate(&self.files)?;
        let mut used = self.used.lock();
        if used.as_ref().is_some_and(|used| used.chain == found.chain) {
            return Ok(None);
        }
        *used = Some(found.clone());
        Ok(Some(found))
    }
}
