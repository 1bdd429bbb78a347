//! Which hub and device this is: told by the configuration, or by a device provisioning service, whose last answer is kept.
//!
//! A kept answer is used at once, so that a device starts without its service; the service is asked in the background and
//! the daemon starts anew when it says something else (modes in edge.md section 16).

mod registrar;

use std::sync::Arc;

use bytes::Bytes;
use holdfast_model::Identity;
use holdfast_model::credential::SymmetricKey;
use holdfast_observe::Registry;
use holdfast_ports::clock::{Clock, SystemClock};
use holdfast_program::failure::{Failure, Kind};
use holdfast_upstream::KeySigner;
use holdfast_upstream::port::{Account, ClientCertificate, CloudError, CloudRegistry as _, Proof};

use crate::certificates::pem;
use crate::config::{CertificateFiles, Credential, KeySource, Provisioning, Reprovisioning, Settings};
use crate::keys::tpm::DeviceTpm;
use crate::keys::{DeviceKey, DeviceSigner, FileKeys, KeyStore};
use crate::system::VERSION;
use crate::upstream;

use registrar::Means;
pub use registrar::{AskError, Registrar};

/// What to do when the hub does not accept the device.
pub const NOT_ACCEPTED: &str = "the device must exist at the hub, be enabled and an edge device, and have this key or the thumbprint of this certificate; `holdfast device show` tells what the hub has";

/// This device.
#[derive(Clone)]
pub struct Device {
    /// Host name of its hub.
    pub hub: String,
    /// Its id there.
    pub device_id: String,
    /// How it proves who it is.
    pub proof: Proof,
    /// The hub was kept from an earlier start, and the service is to be asked whether it still holds.
    pub from_memory: bool,
}

impl Device {
    /// The device as an account at its hub.
    ///
    /// # Errors
    /// When the device id is none.
    pub fn account(&self) -> Result<Account, Failure> {
        let identity = Identity::device(&self.device_id)
            .map_err(|_| Failure::usage(format!("{} is not a device id", self.device_id)))?;
        Ok(Account {
            identity,
            proof: self.proof.clone(),
            product_info: format!("holdfast-edge/{VERSION}"),
            model_id: None,
        })
    }
}

/// Finds out who this device is, and sets its key in the store. Waits for the service when nothing is kept.
///
/// # Errors
/// When credentials cannot be read, or the service refuses the device for good.
pub async fn provision(
    settings: &Settings,
    keys: &Arc<FileKeys>,
    clock: &Arc<dyn Clock>,
) -> Result<(Device, Option<Registrar>), Failure> {
    match &settings.provisioning {
        Provisioning::Manual {
            hub,
            device_id,
            credential,
        } => {
            let device = Device {
                hub: hub.clone(),
                device_id: device_id.clone(),
                proof: proof(credential, keys)?,
                from_memory: false,
            };
            Ok((device, None))
        }
        Provisioning::Dps { credential, .. } => {
            let proof = proof(credential, keys)?;
            let means = Means::new(settings, credential, &proof)?;
            let registrar = Registrar::new(settings, means, Some(Arc::clone(keys)), clock).await?;
            let kept = registrar.usable().await?;
            let patient = settings.reprovisioning != Reprovisioning::AlwaysOnStartup;
            let kept_device = kept.as_ref().map(|kept| Device {
                hub: kept.hub.clone(),
                device_id: kept.device_id.clone(),
                proof: proof.clone(),
                from_memory: settings.reprovisioning != Reprovisioning::OnErrorOnly,
            });
            if let (Some(device), true) = (&kept_device, patient) {
                return Ok((device.clone(), Some(registrar)));
            }
            let device = registrar.wait(proof, kept_device).await?;
            Ok((device, Some(registrar)))
        }
    }
}

/// Asks whether the provisioning service and the hub accept this device, and changes nothing there or here; what was
/// seen, in words.
///
/// # Errors
/// When credentials cannot be read, or somebody refuses the device or cannot be reached.
pub async fn verify(settings: &Settings) -> Result<String, Failure> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let (Provisioning::Manual { credential, .. } | Provisioning::Dps { credential, .. }) =
        &settings.provisioning;
    let proof = match credential {
        Credential::Key(source) => Some(Proof::Key(Arc::new(KeySigner::new(read_key(source)?)))),
        Credential::Certificate(given) => Some(Proof::Certificate(certificate(given)?)),
        // Its key is with the service's answer.
        Credential::Tpm => None,
    };
    let (hub, device_id, proof) = match (&settings.provisioning, proof) {
        (Provisioning::Manual { hub, device_id, .. }, Some(proof)) => (hub.clone(), device_id.clone(), proof),
        (_, Some(proof)) => {
            let means = Means::new(settings, credential, &proof)?;
            let registrar = Registrar::new(settings, means, None, &clock).await?;
            match registrar.look_up().await? {
                Some((hub, device_id)) => (hub, device_id, proof),
                None => return Ok(format!("{} has not registered yet", registrar.registration_id())),
            }
        }
        (_, None) => {
            let tpm = Arc::new(DeviceTpm::new(&settings.tpm)?);
            let registrar = Registrar::new(settings, Means::Tpm(tpm), None, &clock).await?;
            match registrar.kept_for_tpm().await? {
                Some((hub, device_id, key)) => (hub, device_id, Proof::Key(Arc::new(key))),
                None => {
                    registrar.challenge().await?;
                    let id = registrar.registration_id();
                    return Ok(format!("{id} has not registered yet; the service knows its TPM"));
                }
            }
        }
    };
    let metrics = holdfast_upstream::Metrics::register(&mut Registry::new());
    let upstream = upstream::open(settings, &hub, clock, metrics)?;
    let device = Device {
        hub,
        device_id,
        proof,
        from_memory: false,
    };
    let (hub, device_id) = (&device.hub, &device.device_id);
    match upstream.registry(device.account()?).modules().await {
        Ok(_) => Ok(format!("{device_id} at {hub}")),
        Err(CloudError::Unreachable(cause)) => {
            let words = format!("{hub} cannot be reached: {cause}");
            Err(Failure::new(Kind::Unavailable, words).hint("the checks of the connection tell more"))
        }
        Err(CloudError::Unauthorized(cause)) => Err(not_accepted(hub, device_id, &cause)),
        Err(CloudError::Refused { status, message }) => {
            Err(not_accepted(hub, device_id, &format!("{status} {message}")))
        }
    }
}

fn not_accepted(hub: &str, device_id: &str, cause: &str) -> Failure {
    let words = format!("the hub refuses the device {device_id} at {hub}: {cause}");
    Failure::new(Kind::Unauthorized, words).hint(NOT_ACCEPTED)
}

fn read_key(source: &KeySource) -> Result<SymmetricKey, Failure> {
    crate::keys::read_key(source, "of the device").map_err(|error| {
        Failure::usage(error.to_string()).hint("give the device's key as the hub shows it, in base64")
    })
}

/// The device's proof from its credential.
fn proof(credential: &Credential, keys: &Arc<FileKeys>) -> Result<Proof, Failure> {
    match credential {
        Credential::Key(source) => {
            keys.set_device_key(Some(DeviceKey::Known(read_key(source)?)));
            Ok(device_signer(keys))
        }
        Credential::Certificate(given) => Ok(Proof::Certificate(certificate(given)?)),
        // The key is set when it is known.
        Credential::Tpm => Ok(device_signer(keys)),
    }
}

fn device_signer(keys: &Arc<FileKeys>) -> Proof {
    Proof::Key(Arc::new(DeviceSigner(Arc::clone(keys) as Arc<dyn KeyStore>)))
}

pub(crate) fn certificate(given: &CertificateFiles) -> Result<ClientCertificate, Failure> {
    let identity = pem::read(given)?;
    Ok(ClientCertificate {
        chain: identity
            .chain
            .iter()
            .map(|der| Bytes::copy_from_slice(der))
            .collect(),
        private_key: identity.key.as_slice().into(),
    })
}

/// Splits `https://host[:port][/]`.
pub(crate) fn host_and_port(endpoint: &str) -> Option<(&str, u16)> {
    let rest = endpoint.strip_prefix("https://")?;
    let authority = rest.split('/').next()?;
    match authority.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() => Some((host, port.parse().ok()?)),
        Some(_) => None,
        None => (!authority.is_empty()).then_some((authority, 443)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_split() {
        assert_eq!(host_and_port("https://dps.test"), Some(("dps.test", 443)));
        assert_eq!(host_and_port("https://dps.test:8443/"), Some(("dps.test", 8443)));
        assert_eq!(host_and_port("https://:1"), None);
        assert_eq!(host_and_port("http://dps.test"), None);
    }
}
