//! Conversations with a provisioning service, and what is kept of them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use holdfast_observe::Repeats;
use holdfast_ports::clock::Clock;
use holdfast_program::failure::{Failure, Kind};
use holdfast_program::files::{self, PRIVATE};
use holdfast_tpm::TpmError;
use holdfast_upstream::port::{ClientCertificate, CloudError, Proof, TokenSigner};
use holdfast_upstream::provisioning::{Attestation, ProvisioningClient, ProvisioningConfig, Tpm};
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{Device, host_and_port};
use crate::config::{Credential, Provisioning, Settings};
use crate::keys::tpm::{self, DeviceTpm, KeptKey, Registering, TpmKey};
use crate::keys::{DeviceKey, FileKeys};
use crate::system::VERSION;
use crate::upstream;

/// Between two attempts while nothing is kept.
const RETRY: Duration = Duration::from_secs(5);
static NOT_REACHED: Repeats = Repeats::new();

/// How the device proves itself to the service.
pub(super) enum Means {
    /// With what it proves itself to the hub with, too.
    Own(RwLock<Attestation>),
    /// With its TPM, which gets the key for the hub from the service.
    Tpm(Arc<DeviceTpm>),
}

impl Means {
    pub(super) fn new(settings: &Settings, credential: &Credential, proof: &Proof) -> Result<Self, Failure> {
        Ok(match (credential, proof) {
            (Credential::Tpm, _) => Means::Tpm(Arc::new(DeviceTpm::new(&settings.tpm)?)),
            (_, Proof::Certificate(certificate)) => {
                Means::Own(RwLock::new(Attestation::Certificate(certificate.clone())))
            }
            (_, Proof::Key(signer)) => Means::Own(RwLock::new(Attestation::Key(
                Arc::clone(signer) as Arc<dyn TokenSigner>
            ))),
            (_, Proof::OnBehalf { .. }) => {
                return Err(Failure::usage("nobody can register on behalf of another"));
            }
        })
    }
}

/// What is kept of a service's answer, with the question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Kept {
    endpoint: String,
    id_scope: String,
    registration_id: String,
    pub(super) hub: String,
    pub(super) device_id: String,
    /// Of a device with a TPM: the key for the hub, of use for this TPM only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tpm_key: Option<KeptKey>,
}

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The service cannot be reached, or refuses the device.
    #[error(transparent)]
    Service(#[from] CloudError),
    /// The device's TPM does not do its part.
    #[error(transparent)]
    Tpm(#[from] TpmError),
}

/// Asks a provisioning service.
pub struct Registrar {
    client: ProvisioningClient,
    means: Means,
    registration_id: String,
    payload: Option<Box<RawValue>>,
    question: Kept,
    path: PathBuf,
    /// Where the key from a TPM is to be set; none for somebody who only looks.
    keys: Option<Arc<FileKeys>>,
}

impl Registrar {
    pub(super) async fn new(
        settings: &Settings,
        means: Means,
        keys: Option<Arc<FileKeys>>,
        clock: &Arc<dyn Clock>,
    ) -> Result<Self, Failure> {
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
        let registration_id = match registration_id {
            Some(id) => id.clone(),
            None => own_registration_id(&means, &settings.source).await?,
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
            means,
            payload: payload.as_deref().map(read_payload).transpose()?,
            question: Kept {
                endpoint: endpoint.clone(),
                id_scope: id_scope.clone(),
                registration_id: registration_id.clone(),
                hub: String::new(),
                device_id: String::new(),
                tpm_key: None,
            },
            registration_id,
            path: settings.identity_folder().join("provisioning.json"),
            keys,
        })
    }

    /// From now on the device has another certificate.
    pub fn set_certificate(&self, certificate: &ClientCertificate) {
        if let Means::Own(attestation) = &self.means {
            *attestation.write() = Attestation::Certificate(certificate.clone());
        }
    }

    /// As what the device registers.
    pub(super) fn registration_id(&self) -> &str {
        &self.registration_id
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

    /// The last answer, if the device can still use it. The key of a TPM is set.
    pub(super) async fn usable(&self) -> Result<Option<Kept>, Failure> {
        let Some(kept) = self.kept() else { return Ok(None) };
        let Means::Tpm(chip) = &self.means else {
            return Ok(Some(kept));
        };
        let Some(key) = kept.tpm_key.as_ref().and_then(KeptKey::open) else {
            return Ok(None);
        };
        match chip.check(&key).await {
            Ok(()) => {
                self.set_key(&TpmKey::new(Arc::clone(chip), key));
                Ok(Some(kept))
            }
            Err(error @ TpmError::ForeignKey { .. }) => {
                tracing::warn!(%error, "the TPM does not take the device's key; the device registers again");
                Ok(None)
            }
            Err(error) => Err(tpm::failure(&error)),
        }
    }

    /// The last answer with the key of the TPM, which is of this TPM.
    pub(super) async fn kept_for_tpm(&self) -> Result<Option<(String, String, TpmKey)>, Failure> {
        let (Means::Tpm(chip), Some(kept)) = (&self.means, self.kept()) else {
            return Ok(None);
        };
        let Some(key) = kept.tpm_key.as_ref().and_then(KeptKey::open) else {
            return Ok(None);
        };
        let checked = chip.check(&key).await;
        checked.map_err(|error| tpm::failure(&error))?;
        let key = TpmKey::new(Arc::clone(chip), key);
        Ok(Some((kept.hub, kept.device_id, key)))
    }

    fn set_key(&self, key: &TpmKey) {
        if let Some(keys) = &self.keys {
            keys.set_device_key(Some(DeviceKey::Tpm(key.clone())));
        }
    }

    /// Waits until the device's key is gone from its TPM, so that only a registration helps.
    pub async fn key_lost(&self) {
        match &self.means {
            Means::Own(_) => std::future::pending().await,
            Means::Tpm(chip) => chip.lost().await,
        }
    }

    /// Asks until there is an answer; with something kept, only once.
    pub(super) async fn wait(&self, proof: Proof, kept: Option<Device>) -> Result<Device, Failure> {
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
            match &error {
                AskError::Service(CloudError::Unreachable(_)) => {
                    if let Some(times) = NOT_REACHED.happened("") {
                        tracing::warn!(%error, times, "the provisioning service cannot be reached; trying again");
                    }
                }
                _ => return Err(self.failure(&error)),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// What a person can do about what the service answers, or the TPM.
    fn failure(&self, error: &AskError) -> Failure {
        let cause = match error {
            AskError::Service(cause) => cause,
            AskError::Tpm(cause) => return tpm::failure(cause),
        };
        let id = &self.registration_id;
        let (kind, words) = match cause {
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
        Failure::new(kind, words).hint(match self.means {
            _ if kind == Kind::Unavailable => "check the endpoint's name and port, the way to it, and the authority that it is trusted by (upstream.ca; holdfast.upstream.ca in a config.toml of the original)",
            Means::Own(_) => "check id scope, registration id and key or certificate; `holdfast dps registration show` tells what the service has",
            Means::Tpm(_) => "check id scope and registration id, and that the enrollment is enabled and has the endorsement key that `holdfast-edge tpm` prints; `holdfast dps enrollment show` tells what the service has",
        })
    }

    /// What the service last said, without registering. Not for TPMs.
    pub(super) async fn look_up(&self) -> Result<Option<(String, String)>, Failure> {
        let Means::Own(attestation) = &self.means else {
            return Ok(None);
        };
        let attestation = attestation.read().clone();
        let found = self.client.look_up(&self.registration_id, &attestation).await;
        let found = found.map_err(|error| self.failure(&error.into()))?;
        Ok(found.map(|assignment| (assignment.hub_host, assignment.device_id)))
    }

    /// Whether the service knows the TPM, and the TPM takes its keys.
    pub(super) async fn challenge(&self) -> Result<(), Failure> {
        let Means::Tpm(chip) = &self.means else {
            return Ok(());
        };
        let outcome = async {
            let registering = Registering::begin(chip).await?;
            let tpm = Arc::clone(&registering) as Arc<dyn Tpm>;
            let met = self.client.challenge(&self.registration_id, &tpm).await;
            met.map_err(|error| of_registration(&registering, error))
        };
        outcome.await.map_err(|error| self.failure(&error))
    }

    /// Asks once, and keeps the answer.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn ask(&self) -> Result<(String, String), AskError> {
        let (attestation, registering) = match &self.means {
            Means::Own(attestation) => (attestation.read().clone(), None),
            Means::Tpm(chip) => {
                let registering = Registering::begin(chip).await?;
                let tpm = Arc::clone(&registering) as Arc<dyn Tpm>;
                (Attestation::Tpm(tpm), Some(registering))
            }
        };
        let registered = self
            .client
            .register(&self.registration_id, &attestation, self.payload.as_deref())
            .await;
        let assigned = registered.map_err(|error| match &registering {
            Some(registering) => of_registration(registering, error),
            None => error.into(),
        })?;
        let key = registering.and_then(|registering| registering.key());
        let kept = Kept {
            hub: assigned.hub_host.clone(),
            device_id: assigned.device_id.clone(),
            tpm_key: key.as_ref().map(TpmKey::kept),
            ..self.question.clone()
        };
        let written = serde_json::to_vec_pretty(&kept)
            .map_err(std::io::Error::other)
            .and_then(|content| files::write(&self.path, &content, PRIVATE));
        if let Err(error) = written {
            tracing::error!(file = %self.path.display(), %error, "the assignment cannot be kept; a start without the service would fail");
        }
        if let Some(key) = &key {
            self.set_key(key);
        }
        Ok((assigned.hub_host, assigned.device_id))
    }
}

/// What the TPM has against a key counts more than that no request followed.
fn of_registration(registering: &Registering, error: CloudError) -> AskError {
    registering
        .failure()
        .map_or(AskError::Service(error), AskError::Tpm)
}

/// The registration id that nobody has to set: what the certificate or the endorsement key says.
async fn own_registration_id(means: &Means, source: &str) -> Result<String, Failure> {
    match means {
        Means::Own(attestation) => match &*attestation.read() {
            Attestation::Certificate(certificate) => common_name(certificate).ok_or_else(|| {
                Failure::usage(format!("{source}: the device's certificate has no common name"))
                    .hint("set the registration id")
            }),
            _ => Err(Failure::usage(format!(
                "{source}: the registration id is missing"
            ))),
        },
        Means::Tpm(chip) => {
            let keys = chip.public_keys().await.map_err(|error| tpm::failure(&error))?;
            Ok(tpm::registration_id(&keys.endorsement))
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_older_versions_kept_is_read() {
        let text = r#"{"endpoint":"https://d","idScope":"s","registrationId":"r","hub":"h","deviceId":"d"}"#;
        let kept: Kept = serde_json::from_str(text).unwrap();
        assert_eq!((kept.hub.as_str(), &kept.tpm_key), ("h", &None));
        assert_eq!(serde_json::to_string(&kept).unwrap(), text);
    }
}
