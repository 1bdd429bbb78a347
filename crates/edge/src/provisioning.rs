//! Which hub and device this is: told by the configuration, or by a device provisioning service, whose last answer is kept.
//!
//! A kept answer is used at once, so that a device starts without its service; the service is asked in the background and
//! the daemon starts anew when it says something else (modes in edge.md section 16).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_model::Identity;
use holdfast_model::credential::SymmetricKey;
use holdfast_observe::Registry;
use holdfast_ports::clock::{Clock, SystemClock};
use holdfast_upstream::KeySigner;
use holdfast_upstream::port::{
    Account, ClientCertificate, CloudError, CloudRegistry as _, Proof, TokenSigner,
};
use holdfast_upstream::provisioning::{Attestation, ProvisioningClient, ProvisioningConfig};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::certificates::pem;
use crate::config::{CertificateFiles, Credential, KeySource, Provisioning, Reprovisioning, Settings};
use crate::failure::{Failure, Kind};
use crate::files::{self, PRIVATE};
use crate::keys::{DeviceSigner, FileKeys, KeyStore};
use crate::system::VERSION;
use crate::upstream;

/// Between two attempts while nothing is kept.
const RETRY: Duration = Duration::from_secs(5);

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

/// What is kept of a service's answer, with the question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kept {
    endpoint: String,
    id_scope: String,
    registration_id: String,
    hub: String,
    device_id: String,
}

/// Asks a provisioning service.
pub struct Registrar {
    client: ProvisioningClient,
    attestation: Attestation,
    registration_id: String,
    payload: Option<Box<RawValue>>,
    question: Kept,
    path: PathBuf,
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
            let registrar = Registrar::new(settings, &proof, clock)?;
            let kept = registrar.kept();
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
        Credential::Key(source) => Proof::Key(Arc::new(KeySigner::new(read_key(source)?))),
        Credential::Certificate(given) => Proof::Certificate(certificate(given)?),
    };
    let (hub, device_id) = match &settings.provisioning {
        Provisioning::Manual { hub, device_id, .. } => (hub.clone(), device_id.clone()),
        Provisioning::Dps { .. } => {
            let registrar = Registrar::new(settings, &proof, &clock)?;
            let id = &registrar.registration_id;
            let found = registrar.client.look_up(id, &registrar.attestation).await;
            match found.map_err(|error| registrar.refusal(&error))? {
                Some(assignment) => (assignment.hub_host, assignment.device_id),
                None => return Ok(format!("{id} has not registered yet")),
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
            keys.set_device_key(Some(read_key(source)?));
            Ok(Proof::Key(Arc::new(DeviceSigner(
                Arc::clone(keys) as Arc<dyn KeyStore>
            ))))
        }
        Credential::Certificate(given) => Ok(Proof::Certificate(certificate(given)?)),
    }
}

fn certificate(given: &CertificateFiles) -> Result<ClientCertificate, Failure> {
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

/// The common name of a certificate.
fn common_name(certificate: &ClientCertificate) -> Option<String> {
    let (_, parsed) = X509Certificate::from_der(certificate.chain.first()?).ok()?;
    let name = parsed
        .subject()
        .iter_common_name()
        .next()?
        .as_str()
        .ok()?
        .to_owned();
    Some(name)
}

impl Registrar {
    fn new(settings: &Settings, proof: &Proof, clock: &Arc<dyn Clock>) -> Result<Self, Failure> {
        let Provisioning::Dps {
            endpoint,
            id_scope,
            payload,
            registration_id,
            ..
        } = &settings.provisioning
        else {
            return Err(Failure::usage("the device is told its hub, no service is asked"));
        };
        let attestation = match proof {
            Proof::Certificate(certificate) => Attestation::Certificate(certificate.clone()),
            Proof::Key(signer) => Attestation::Key(Arc::clone(signer) as Arc<dyn TokenSigner>),
            Proof::OnBehalf { .. } => return Err(Failure::usage("nobody can register on behalf of another")),
        };
        let registration_id = match (registration_id, proof) {
            (Some(id), _) => id.clone(),
            (None, Proof::Certificate(certificate)) => common_name(certificate).ok_or_else(|| {
                Failure::usage(format!(
                    "{}: the device's certificate has no common name",
                    settings.source
                ))
                .hint("set the registration id")
            })?,
            (None, _) => {
                return Err(Failure::usage(format!(
                    "{}: the registration id is missing",
                    settings.source
                )));
            }
        };
        let (host, port) = host_and_port(endpoint).ok_or_else(|| {
            Failure::usage(format!("{}: {endpoint} is not an address", settings.source))
                .hint("write https://host[:port]")
        })?;
        let mut config = ProvisioningConfig::new(host, id_scope.clone());
        config.port = port;
        config.trust = upstream::trust(settings)?;
        config.proxy = upstream::proxy(settings)?;
        config.product_info = format!("holdfast-edge/{VERSION}");
        let client = ProvisioningClient::new(config, Arc::clone(clock)).map_err(Failure::usage)?;
        Ok(Registrar {
            client,
            attestation,
            payload: payload.as_deref().map(read_payload).transpose()?,
            question: Kept {
                endpoint: endpoint.clone(),
                id_scope: id_scope.clone(),
                registration_id: registration_id.clone(),
                hub: String::new(),
                device_id: String::new(),
            },
            registration_id,
            path: settings.identity_folder().join("provisioning.json"),
        })
    }

    /// The last answer to the same question.
    fn kept(&self) -> Option<Kept> {
        let content = files::read(&self.path).ok()??;
        let kept: Kept = serde_json::from_slice(&content).ok()?;
        let same = kept.endpoint == self.question.endpoint
            && kept.id_scope == self.question.id_scope
            && kept.registration_id == self.question.registration_id;
        same.then_some(kept)
    }

    /// Asks until there is an answer; with something kept, only once.
    async fn wait(&self, proof: Proof, kept: Option<Device>) -> Result<Device, Failure> {
        loop {
            let error = match self.ask().await {
                Ok((hub, device_id)) => {
                    return Ok(Device {
                        hub,
                        device_id,
                        proof,
                        from_memory: false,
                    });
                }
                Err(error) => error,
            };
            if let Some(mut kept) = kept {
                tracing::warn!(%error, "the provisioning service gave no answer; what it said last is used");
                kept.from_memory = false;
                return Ok(kept);
            }
            if !matches!(error, CloudError::Unreachable(_)) {
                return Err(self.refusal(&error));
            }
            tracing::warn!(%error, "the provisioning service cannot be reached; trying again");
            tokio::time::sleep(RETRY).await;
        }
    }

    /// What a person can do about what the service answers.
    fn refusal(&self, error: &CloudError) -> Failure {
        let id = &self.registration_id;
        let (kind, words) = match error {
            CloudError::Unreachable(cause) => (
                Kind::Unavailable,
                format!("the provisioning service cannot be reached: {cause}"),
            ),
            CloudError::Unauthorized(cause) => (
                Kind::Unauthorized,
                format!("the provisioning service refuses the registration id {id}: {cause}"),
            ),
            CloudError::Refused { status, message } => (
                Kind::Unauthorized,
                format!("the provisioning service refuses the registration id {id}: {status} {message}"),
            ),
        };
        Failure::new(kind, words).hint("check id scope, registration id and key or certificate; `holdfast dps registration show` tells what the service has")
    }

    /// Asks once, and keeps the answer.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn ask(&self) -> Result<(String, String), CloudError> {
        let assigned = self
            .client
            .register(&self.registration_id, &self.attestation, self.payload.as_deref())
            .await?;
        let kept = Kept {
            hub: assigned.hub_host.clone(),
            device_id: assigned.device_id.clone(),
            ..self.question.clone()
        };
        let written = serde_json::to_vec_pretty(&kept)
            .map_err(std::io::Error::other)
            .and_then(|content| files::write(&self.path, &content, PRIVATE));
        if let Err(error) = written {
            tracing::error!(file = %self.path.display(), %error, "the assignment cannot be kept; a start without the service would fail");
        }
        Ok((assigned.hub_host, assigned.device_id))
    }
}

fn read_payload(path: &Path) -> Result<Box<RawValue>, Failure> {
    let unusable = |error: &dyn std::fmt::Display| {
        Failure::usage(format!(
            "provisioning.payload: cannot use {}: {error}",
            path.display()
        ))
        .hint("give a file with a JSON object")
    };
    let text = std::fs::read_to_string(path).map_err(|error| unusable(&error))?;
    serde_json::from_str(&text).map_err(|error| unusable(&error))
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
