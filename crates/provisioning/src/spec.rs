//! What an operator says about an enrollment, and what becomes of it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use holdfast_model::credential::SymmetricKey;
use holdfast_model::provisioning::{
    AllocationPolicy, Attestation, CustomAllocation, EnrolledCertificate, Enrollment, InitialTwin,
    RegistrationId, ReprovisionPolicy,
};
use holdfast_model::twin::{ChangeMode, Twin, TwinChange};
use holdfast_model::{Error, ErrorCode, Identity, Timestamp};
use serde_json::Value;

use crate::certificate;
use crate::failure::invalid;
use crate::tpm::public::{self, KeyError, StorageKey};

/// Decoded bytes of keys made for enrollments, as the original makes them.
const KEY_BYTES: usize = 64;
/// Most hubs an enrollment can name.
const HUBS_MAX: usize = 50;
/// Longest webhook URL.
const URL_LEN_MAX: usize = 2_048;

/// A certificate of an attestation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CertificateSpec {
    /// PEM, or base64 of DER.
    Text(String),
    /// The one that is enrolled already: operators read certificates without their content, and send them back so.
    Unchanged,
}

/// How devices are to prove themselves. Keys that are missing are made, or stay as they are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AttestationSpec {
    /// By key.
    SymmetricKey {
        /// First key.
        primary_key: Option<SymmetricKey>,
        /// Second key.
        secondary_key: Option<SymmetricKey>,
    },
    /// By just this certificate.
    ClientCertificates {
        /// First certificate.
        primary: Option<CertificateSpec>,
        /// Second certificate.
        secondary: Option<CertificateSpec>,
    },
    /// By a certificate issued under one of these.
    SigningCertificates {
        /// First certificate.
        primary: Option<CertificateSpec>,
        /// Second certificate.
        secondary: Option<CertificateSpec>,
    },
    /// By a certificate issued under a verified authority of this name.
    AuthorityReferences {
        /// First name.
        primary: Option<String>,
        /// Second name.
        secondary: Option<String>,
    },
    /// By the TPM with this endorsement key.
    Tpm {
        /// `TPM2B_PUBLIC` in base64.
        endorsement_key: String,
        /// The same of the storage root key, for the operator's information.
        storage_root_key: Option<String>,
    },
}

/// The writable members that enrollments and groups share. A PUT replaces all of them.
#[derive(Clone, PartialEq, Debug)]
pub struct EnrollmentSpec {
    /// How devices prove themselves.
    pub attestation: AttestationSpec,
    /// Whether devices may register.
    pub enabled: bool,
    /// What a repeated registration may change.
    pub reprovision: Option<ReprovisionPolicy>,
    /// How the hub is chosen.
    pub allocation: Option<AllocationPolicy>,
    /// The one hub of a static allocation.
    pub hub_host_name: Option<String>,
    /// Hubs to choose from.
    pub hubs: Vec<String>,
    /// For custom allocation.
    pub custom: Option<CustomAllocation>,
    /// What a new twin begins with.
    pub initial_twin: Option<InitialTwin>,
    /// Whether devices are IoT Edge devices.
    pub iot_edge: bool,
}

/// The writable members of an individual enrollment.
#[derive(Clone, PartialEq, Debug)]
pub struct IndividualSpec {
    /// Device id on the hub; the registration id when `None`.
    pub device_id: Option<String>,
    /// Free JSON for the operator.
    pub device_information: Option<Value>,
    /// The rest.
    pub enrollment: EnrollmentSpec,
}

impl EnrollmentSpec {
    /// The enrollment that this makes of the one that is there.
    pub(crate) fn make(
        self,
        is_group: bool,
        present: Option<&Enrollment>,
        version: u64,
        now: Timestamp,
    ) -> Result<Enrollment, Error> {
        self.check(now)?;
        let attestation = attestation(
            self.attestation,
            is_group,
            present.map(|present| &present.attestation),
        )?;
        Ok(Enrollment {
            attestation,
            enabled: self.enabled,
            reprovision: self.reprovision,
            allocation: self.allocation,
            hub_host_name: self.hub_host_name.filter(|name| !name.is_empty()),
            hubs: self.hubs,
            custom: self.custom,
            initial_twin: self.initial_twin,
            iot_edge: self.iot_edge,
            created_at: present.map_or(now, |present| present.created_at),
            updated_at: now,
            version,
        })
    }

    fn check(&self, now: Timestamp) -> Result<(), Error> {
        if self.hubs.len() > HUBS_MAX {
            return Err(invalid(format!("iotHubs can have {HUBS_MAX} entries at most")));
        }
        match self.allocation {
            Some(AllocationPolicy::Static) => {
                let one = match &self.hub_host_name {
                    Some(name) if !name.is_empty() => self.hubs.is_empty() || self.hubs == [name.clone()],
                    _ => self.hubs.len() == 1,
                };
                if !one {
                    return Err(invalid(
                        "a static allocation needs just one hub, in iotHubs or iotHubHostName",
                    ));
                }
            }
            Some(AllocationPolicy::Custom) => {
                let url = self.custom.as_ref().map_or("", |custom| &custom.webhook_url);
                let fits = url.starts_with("https://") || url.starts_with("http://");
                if !fits || url.len() > URL_LEN_MAX {
                    return Err(invalid(
                        "a custom allocation needs customAllocationDefinition.webhookUrl, http or https",
                    ));
                }
            }
            _ => {}
        }
        // Judged now by the rules of twins, and not by a hub when a device is waiting.
        if let Some(twin) = &self.initial_twin {
            let change = TwinChange {
                tags: Some(twin.tags.clone()),
                desired: Some(twin.desired.clone()),
            };
            Twin::new(now).apply(ChangeMode::Patch, &change, now)?;
        }
        Ok(())
    }
}

fn attestation(
    spec: AttestationSpec,
    is_group: bool,
    present: Option<&Attestation>,
) -> Result<Attestation, Error> {
    match (spec, is_group) {
        (
            AttestationSpec::SymmetricKey {
                primary_key,
                secondary_key,
            },
            _,
        ) => {
            let (old_primary, old_secondary) = match present {
                Some(Attestation::SymmetricKey {
                    primary_key,
                    secondary_key,
                }) => (Some(primary_key.clone()), Some(secondary_key.clone())),
                _ => (None, None),
            };
            Ok(Attestation::SymmetricKey {
                primary_key: or_new(primary_key.or(old_primary))?,
                secondary_key: or_new(secondary_key.or(old_secondary))?,
            })
        }
        (AttestationSpec::ClientCertificates { primary, secondary }, false) => {
            let (old_primary, old_secondary) = match present {
                Some(Attestation::ClientCertificates { primary, secondary }) => {
                    (primary.as_ref(), secondary.as_ref())
                }
                _ => (None, None),
            };
            let primary = enrolled(primary, old_primary)?;
            let secondary = enrolled(secondary, old_secondary)?;
            at_least_one(primary.is_some() || secondary.is_some())?;
            Ok(Attestation::ClientCertificates { primary, secondary })
        }
        (AttestationSpec::SigningCertificates { primary, secondary }, true) => {
            let (old_primary, old_secondary) = match present {
                Some(Attestation::SigningCertificates { primary, secondary }) => {
                    (primary.as_ref(), secondary.as_ref())
                }
                _ => (None, None),
            };
            let primary = enrolled(primary, old_primary)?;
            let secondary = enrolled(secondary, old_secondary)?;
            at_least_one(primary.is_some() || secondary.is_some())?;
            for certificate in [&primary, &secondary].into_iter().flatten() {
                certificate::check_authority(&certificate::der_of(certificate))?;
            }
            Ok(Attestation::SigningCertificates { primary, secondary })
        }
        (AttestationSpec::AuthorityReferences { primary, secondary }, _) => {
            let filled = |name: Option<String>| name.filter(|name| !name.is_empty());
            let (primary, secondary) = (filled(primary), filled(secondary));
            at_least_one(primary.is_some() || secondary.is_some())?;
            Ok(Attestation::AuthorityReferences { primary, secondary })
        }
        (
            AttestationSpec::Tpm {
                endorsement_key,
                storage_root_key,
            },
            false,
        ) => tpm(endorsement_key, storage_root_key, present),
        (AttestationSpec::Tpm { .. }, true) => Err(invalid(
            "a group cannot be attested by tpm: each TPM needs an individual enrollment",
        )),
        (AttestationSpec::ClientCertificates { .. }, true) => Err(invalid(
            "a group is attested by x509.signingCertificates or x509.caReferences, not by clientCertificates",
        )),
        (AttestationSpec::SigningCertificates { .. }, false) => Err(invalid(
            "an individual enrollment is attested by x509.clientCertificates or x509.caReferences, not by signingCertificates",
        )),
    }
}

/// The device's keys on its hub stay as long as its TPM is the same.
fn tpm(
    endorsement_key: String,
    storage_root_key: Option<String>,
    present: Option<&Attestation>,
) -> Result<Attestation, Error> {
    let wrong = |member: &str, error: KeyError| invalid(format!("attestation.tpm.{member}: {error}"));
    let bytes =
        |member: &str, text: &str| public::decode(text).ok_or_else(|| wrong(member, KeyError::NotBase64));
    let key = bytes("endorsementKey", &endorsement_key)?;
    StorageKey::endorsement(&key).map_err(|error| wrong("endorsementKey", error))?;
    let storage_root_key = storage_root_key.filter(|key| !key.is_empty());
    if let Some(key) = &storage_root_key {
        let key = bytes("storageRootKey", key)?;
        StorageKey::parse(&key).map_err(|error| wrong("storageRootKey", error))?;
    }
    let old = match present {
        Some(Attestation::Tpm {
            endorsement_key: old,
            primary_key,
            secondary_key,
            ..
        }) if public::decode(old).as_deref() == Some(&key) => {
            Some((primary_key.clone(), secondary_key.clone()))
        }
        _ => None,
    };
    // Short enough for every TPM: as long as a digest.
    let (primary_key, secondary_key) =
        old.unwrap_or_else(|| (SymmetricKey::generate(), SymmetricKey::generate()));
    Ok(Attestation::Tpm {
        endorsement_key,
        storage_root_key,
        primary_key,
        secondary_key,
    })
}

fn enrolled(
    spec: Option<CertificateSpec>,
    present: Option<&EnrolledCertificate>,
) -> Result<Option<EnrolledCertificate>, Error> {
    match spec {
        None => Ok(None),
        Some(CertificateSpec::Text(text)) => certificate::read(&text).map(Some),
        Some(CertificateSpec::Unchanged) => Ok(present.cloned()),
    }
}

fn at_least_one(there: bool) -> Result<(), Error> {
    match there {
        true => Ok(()),
        false => Err(invalid(
            "attestation.x509 needs a primary or a secondary certificate",
        )),
    }
}

fn or_new(key: Option<SymmetricKey>) -> Result<SymmetricKey, Error> {
    if let Some(key) = key {
        return Ok(key);
    }
    let broken = || Error::new(ErrorCode::ServerError, "the system's random source does not work");
    let mut bytes = [0u8; KEY_BYTES];
    getrandom::fill(&mut bytes).map_err(|_| broken())?;
    SymmetricKey::parse(&STANDARD.encode(bytes)).map_err(|_| broken())
}

/// Checks the device id that an enrollment gives.
pub(crate) fn check_device_id(device_id: Option<String>) -> Result<Option<String>, Error> {
    let device_id = device_id.filter(|id| !id.is_empty());
    if let Some(id) = &device_id {
        Identity::device(id)?;
    }
    Ok(device_id)
}

/// A group id follows the rules of registration ids, under a code of its own.
pub(crate) fn group_id(text: &str) -> Result<RegistrationId, Error> {
    RegistrationId::parse(text).map_err(|error| {
        Error::new(
            ErrorCode::InvalidEnrollmentGroupId,
            error
                .message
                .replace("a registration id", "an enrollment group id"),
        )
    })
}
