//! Bodies of device provisioning (REST contract, sections 16 and 17; MQTT contract, 9.3 and 9.4).

#[cfg(test)]
mod tests;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use holdfast_model::Error;
use holdfast_model::provisioning::{
    AllocationPolicy, Attestation, CertificateInfo, EnrolledCertificate, Enrollment, EnrollmentGroup,
    IndividualEnrollment, Registration, RegistrationStatus,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::{CapabilitiesDto, StatusDto, TimeDto, from_json, null_as_default, read_any_case};
use crate::etag;

/// What a device sends to register.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceRegistrationDto {
    /// Its id; the C# SDK leaves it out.
    pub registration_id: Option<String>,
    /// For a webhook.
    pub payload: Option<Value>,
    /// Keys of a TPM, over HTTPS.
    pub tpm: Option<TpmRegistrationDto>,
}

/// Public areas of a TPM's keys, as a device sends them.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TpmRegistrationDto {
    /// Endorsement key, base64.
    pub endorsement_key: String,
    /// Storage root key, base64; the challenge needs it.
    pub storage_root_key: Option<String>,
}

/// Body of the 401 that challenges a TPM (REST contract, section 17).
#[must_use]
pub fn challenge_json(activation_blob: &[u8]) -> String {
    json!({
        "message": "Authorization required; resubmit request using the supplied authorization key.",
        "authenticationKey": STANDARD.encode(activation_blob),
        "keyName": "registration",
    })
    .to_string()
}

/// Reads what a device sends to register. An empty body is fine: the id is that of the connection or path.
///
/// # Errors
/// As [`from_json`].
pub fn parse_device_registration(body: &[u8]) -> Result<DeviceRegistrationDto, Error> {
    match body.trim_ascii() {
        b"" => Ok(DeviceRegistrationDto::default()),
        body => from_json(body),
    }
}

/// Answer to a device about an operation: operation id, status, and unless it has only begun the state.
#[must_use]
pub fn operation_json(registration: &Registration, with_state: bool) -> String {
    let mut body = json!({
        "operationId": registration.operation_id,
        "status": registration.status.as_str(),
    });
    if with_state {
        body["registrationState"] = device_state(registration);
    }
    body.to_string()
}

/// Answer to a device about its last registration.
#[must_use]
pub fn state_json(registration: &Registration) -> String {
    device_state(registration).to_string()
}

fn device_state(registration: &Registration) -> Value {
    let mut state = json!(DeviceRegistrationStateDto::from(registration));
    let group = registration.group_id.as_ref().map(|group| group.as_str());
    let mut proof = Map::new();
    if let Some(group) = group {
        proof.insert("enrollmentGroupId".into(), group.into());
    }
    let kind = match (&registration.certificate, &registration.authentication_key) {
        (Some(info), _) => {
            proof.insert("certificateInfo".into(), json!(CertificateInfoDto::from(info)));
            "x509"
        }
        (None, Some(key)) => {
            proof.insert("authenticationKey".into(), key.as_str().into());
            "tpm"
        }
        (None, None) => "symmetricKey",
    };
    state[kind] = Value::Object(proof);
    if registration.status != RegistrationStatus::Assigned
        && let Some(members) = state.as_object_mut()
    {
        // Where the device was is none of its business while it is on its way.
        members.remove("assignedHub");
        members.remove("deviceId");
    }
    state
}

/// The state of a device's registration.
#[derive(Clone, PartialEq, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeviceRegistrationStateDto {
    /// Registration id.
    pub registration_id: String,
    /// First registration.
    pub created_date_time_utc: TimeDto,
    /// Host name of the hub.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub assigned_hub: Option<String>,
    /// Id on the hub.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_id: Option<String>,
    /// `assigning`, `assigned`, `failed` or `disabled`.
    pub status: &'static str,
    /// `initialAssignment`, `deviceDataMigrated` or `deviceDataReset`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub substatus: Option<&'static str>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_code: Option<u32>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_message: Option<String>,
    /// Last change.
    pub last_updated_date_time_utc: TimeDto,
    /// Entity tag, not quoted.
    pub etag: String,
    /// From a webhook.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Object)]
    pub payload: Option<Value>,
}

impl From<&Registration> for DeviceRegistrationStateDto {
    fn from(registration: &Registration) -> Self {
        let (error_code, error_message) = match &registration.failure {
            Some((number, text)) => (Some(*number), Some(text.clone())),
            None => (None, None),
        };
        DeviceRegistrationStateDto {
            registration_id: registration.registration_id.as_str().to_owned(),
            created_date_time_utc: TimeDto(registration.created_at),
            assigned_hub: registration.hub.clone(),
            device_id: registration.device_id.clone(),
            status: registration.status.as_str(),
            substatus: registration.substatus.map(|substatus| substatus.as_str()),
            error_code,
            error_message,
            last_updated_date_time_utc: TimeDto(registration.updated_at),
            etag: etag::of_identity(registration.version),
            payload: registration.payload.clone(),
        }
    }
}

/// How devices prove themselves.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum AttestationTypeDto {
    /// Not at all.
    None,
    /// By TPM.
    Tpm,
    /// By certificate.
    X509,
    /// By key.
    SymmetricKey,
}

impl AttestationTypeDto {
    const SPELLINGS: &'static [(&'static str, Self)] = &[
        ("none", AttestationTypeDto::None),
        ("tpm", AttestationTypeDto::Tpm),
        ("x509", AttestationTypeDto::X509),
        ("symmetricKey", AttestationTypeDto::SymmetricKey),
    ];
}
read_any_case!(AttestationTypeDto);

/// How devices prove themselves, in full.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct AttestationMechanismDto {
    /// Which of the others counts.
    #[serde(rename = "type")]
    pub kind: AttestationTypeDto,
    /// Certificates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x509: Option<X509AttestationDto>,
    /// Keys.
    #[serde(default, rename = "symmetricKey", skip_serializing_if = "Option::is_none")]
    pub symmetric_key: Option<KeyAttestationDto>,
    /// Keys of a TPM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tpm: Option<TpmAttestationDto>,
}

/// Public areas of a TPM's keys. They are no secrets, so every answer has them.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TpmAttestationDto {
    /// Endorsement key: a `TPM2B_PUBLIC` in base64.
    #[serde(default)]
    pub endorsement_key: String,
    /// Storage root key, for the operator's information.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_root_key: Option<String>,
}

/// Keys of an enrollment; made by the service when they are missing. `Debug` shows none.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeyAttestationDto {
    /// First key, base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub primary_key: Option<String>,
    /// Second key, base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secondary_key: Option<String>,
}

impl std::fmt::Debug for KeyAttestationDto {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyAttestationDto(…)")
    }
}

/// Certificates of an enrollment: one of the three.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct X509AttestationDto {
    /// Individual enrollments: just these certificates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_certificates: Option<CertificatesDto>,
    /// Groups: issued under these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signing_certificates: Option<CertificatesDto>,
    /// Issued under verified authorities of these names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_references: Option<CaReferencesDto>,
}

/// Two certificates.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct CertificatesDto {
    /// First.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub primary: Option<CertificateDto>,
    /// Second, for rolling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secondary: Option<CertificateDto>,
}

/// A certificate: its content on the way in, what it says on the way out.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct CertificateDto {
    /// PEM, or base64 of DER; `null` in answers, and in a request for the one that is enrolled.
    #[serde(default)]
    pub certificate: Option<String>,
    /// Ignored in requests.
    #[serde(default, skip_deserializing, skip_serializing_if = "Option::is_none")]
    pub info: Option<CertificateInfoDto>,
}

/// What a certificate says. The SDKs need every member.
#[derive(Clone, PartialEq, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CertificateInfoDto {
    /// Distinguished name.
    pub subject_name: String,
    /// Hex.
    pub sha1_thumbprint: String,
    /// Hex.
    pub sha256_thumbprint: String,
    /// Distinguished name.
    pub issuer_name: String,
    /// First moment.
    pub not_before_utc: TimeDto,
    /// Last moment.
    pub not_after_utc: TimeDto,
    /// Hex.
    pub serial_number: String,
    /// 1 to 3.
    pub version: u32,
}

impl From<&CertificateInfo> for CertificateInfoDto {
    fn from(info: &CertificateInfo) -> Self {
        CertificateInfoDto {
            subject_name: info.subject_name.clone(),
            sha1_thumbprint: info.sha1_thumbprint.clone(),
            sha256_thumbprint: info.sha256_thumbprint.clone(),
            issuer_name: info.issuer_name.clone(),
            not_before_utc: TimeDto(info.not_before),
            not_after_utc: TimeDto(info.not_after),
            serial_number: info.serial_number.clone(),
            version: info.version,
        }
    }
}

/// Names of certificate authorities.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct CaReferencesDto {
    /// First.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub primary: Option<String>,
    /// Second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secondary: Option<String>,
}

impl AttestationMechanismDto {
    /// The mechanism of an enrollment; its keys only for those who may see them.
    #[must_use]
    pub fn of(attestation: &Attestation, with_keys: bool) -> Self {
        let x509 = |x509| AttestationMechanismDto {
            kind: AttestationTypeDto::X509,
            x509: Some(x509),
            symmetric_key: None,
            tpm: None,
        };
        match attestation {
            Attestation::SymmetricKey {
                primary_key,
                secondary_key,
            } => AttestationMechanismDto {
                kind: AttestationTypeDto::SymmetricKey,
                x509: None,
                tpm: None,
                symmetric_key: Some(match with_keys {
                    false => KeyAttestationDto::default(),
                    true => KeyAttestationDto {
                        primary_key: Some(primary_key.reveal().to_owned()),
                        secondary_key: Some(secondary_key.reveal().to_owned()),
                    },
                }),
            },
            Attestation::Tpm {
                endorsement_key,
                storage_root_key,
                ..
            } => AttestationMechanismDto {
                kind: AttestationTypeDto::Tpm,
                x509: None,
                symmetric_key: None,
                tpm: Some(TpmAttestationDto {
                    endorsement_key: endorsement_key.clone(),
                    storage_root_key: storage_root_key.clone(),
                }),
            },
            Attestation::ClientCertificates { primary, secondary } => x509(X509AttestationDto {
                client_certificates: Some(certificates(primary.as_ref(), secondary.as_ref())),
                ..X509AttestationDto::default()
            }),
            Attestation::SigningCertificates { primary, secondary } => x509(X509AttestationDto {
                signing_certificates: Some(certificates(primary.as_ref(), secondary.as_ref())),
                ..X509AttestationDto::default()
            }),
            Attestation::AuthorityReferences { primary, secondary } => x509(X509AttestationDto {
                ca_references: Some(CaReferencesDto {
                    primary: primary.clone(),
                    secondary: secondary.clone(),
                }),
                ..X509AttestationDto::default()
            }),
        }
    }
}

fn certificates(
    primary: Option<&EnrolledCertificate>,
    secondary: Option<&EnrolledCertificate>,
) -> CertificatesDto {
    let one = |enrolled: &EnrolledCertificate| CertificateDto {
        certificate: None,
        info: Some(CertificateInfoDto::from(&enrolled.info)),
    };
    CertificatesDto {
        primary: primary.map(one),
        secondary: secondary.map(one),
    }
}

/// What a repeated registration may change.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReprovisionPolicyDto {
    /// The hub is chosen again.
    #[serde(default = "yes")]
    pub update_hub_assignment: bool,
    /// The twin goes along.
    #[serde(default = "yes")]
    pub migrate_device_data: bool,
}

const fn yes() -> bool {
    true
}

/// How a hub is chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum AllocationPolicyDto {
    /// In proportion to the weights.
    Hashed,
    /// By latency.
    GeoLatency,
    /// The one hub.
    Static,
    /// A webhook says.
    Custom,
}

impl AllocationPolicyDto {
    const SPELLINGS: &'static [(&'static str, Self)] = &[
        ("hashed", AllocationPolicyDto::Hashed),
        ("geoLatency", AllocationPolicyDto::GeoLatency),
        ("static", AllocationPolicyDto::Static),
        ("custom", AllocationPolicyDto::Custom),
    ];
}
read_any_case!(AllocationPolicyDto);

impl From<AllocationPolicy> for AllocationPolicyDto {
    fn from(policy: AllocationPolicy) -> Self {
        match policy {
            AllocationPolicy::Hashed => AllocationPolicyDto::Hashed,
            AllocationPolicy::GeoLatency => AllocationPolicyDto::GeoLatency,
            AllocationPolicy::Static => AllocationPolicyDto::Static,
            AllocationPolicy::Custom => AllocationPolicyDto::Custom,
        }
    }
}

impl From<AllocationPolicyDto> for AllocationPolicy {
    fn from(policy: AllocationPolicyDto) -> Self {
        match policy {
            AllocationPolicyDto::Hashed => AllocationPolicy::Hashed,
            AllocationPolicyDto::GeoLatency => AllocationPolicy::GeoLatency,
            AllocationPolicyDto::Static => AllocationPolicy::Static,
            AllocationPolicyDto::Custom => AllocationPolicy::Custom,
        }
    }
}

/// Whom to ask for a hub.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CustomAllocationDto {
    /// `http` or `https`.
    pub webhook_url: String,
    /// Version of the request's schema.
    #[serde(default)]
    pub api_version: String,
}

/// What a twin begins with.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct InitialTwinDto {
    /// Tags.
    #[serde(default, deserialize_with = "null_as_default")]
    #[schema(value_type = Object)]
    pub tags: Map<String, Value>,
    /// Desired properties.
    #[serde(default, deserialize_with = "null_as_default")]
    pub properties: InitialPropertiesDto,
}

/// Properties a twin begins with.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct InitialPropertiesDto {
    /// Desired properties.
    #[serde(default, deserialize_with = "null_as_default")]
    #[schema(value_type = Object)]
    pub desired: Map<String, Value>,
}

/// An enrollment or group to create or replace.
#[derive(Clone, PartialEq, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct EnrollmentPut {
    /// Individual enrollments: the id, as in the path.
    pub registration_id: Option<String>,
    /// Groups: the id, as in the path.
    pub enrollment_group_id: Option<String>,
    /// Individual enrollments: device id on the hub.
    pub device_id: Option<String>,
    /// Individual enrollments: free JSON.
    #[schema(value_type = Object)]
    pub optional_device_information: Option<Value>,
    /// How devices prove themselves.
    pub attestation: AttestationMechanismDto,
    /// What they are.
    #[serde(default, deserialize_with = "null_as_default")]
    pub capabilities: CapabilitiesDto,
    /// The one hub of a static allocation.
    pub iot_hub_host_name: Option<String>,
    /// What a new twin begins with.
    pub initial_twin: Option<InitialTwinDto>,
    /// Entity tag, for bulk requests.
    pub etag: Option<String>,
    /// Whether devices may register; `enabled` by default.
    pub provisioning_status: Option<StatusDto>,
    /// What a repeated registration may change.
    pub reprovision_policy: Option<ReprovisionPolicyDto>,
    /// How the hub is chosen; `hashed` by default.
    pub allocation_policy: Option<AllocationPolicyDto>,
    /// Hubs to choose from; all linked ones by default.
    #[serde(default, deserialize_with = "null_as_default")]
    pub iot_hubs: Vec<String>,
    /// For `custom`.
    pub custom_allocation_definition: Option<CustomAllocationDto>,
}

/// An enrollment or group in an answer.
#[derive(Clone, PartialEq, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct EnrollmentDto {
    /// Individual enrollments: the id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registration_id: Option<String>,
    /// Groups: the id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enrollment_group_id: Option<String>,
    /// Individual enrollments: device id on the hub.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_id: Option<String>,
    /// Individual enrollments: where the device stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registration_state: Option<DeviceRegistrationStateDto>,
    /// Individual enrollments: free JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Object)]
    pub optional_device_information: Option<Value>,
    /// How devices prove themselves; keys only in the answer to a change.
    pub attestation: AttestationMechanismDto,
    /// What they are.
    pub capabilities: CapabilitiesDto,
    /// The one hub of a static allocation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iot_hub_host_name: Option<String>,
    /// What a new twin begins with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initial_twin: Option<InitialTwinDto>,
    /// Entity tag, not quoted.
    pub etag: String,
    /// Whether devices may register.
    pub provisioning_status: StatusDto,
    /// What a repeated registration may change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reprovision_policy: Option<ReprovisionPolicyDto>,
    /// When it was created.
    pub created_date_time_utc: TimeDto,
    /// When it last changed.
    pub last_updated_date_time_utc: TimeDto,
    /// How the hub is chosen.
    pub allocation_policy: AllocationPolicyDto,
    /// Hubs to choose from.
    pub iot_hubs: Vec<String>,
    /// For `custom`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub custom_allocation_definition: Option<CustomAllocationDto>,
}

impl EnrollmentDto {
    /// An individual enrollment with the state of its device.
    #[must_use]
    pub fn individual(
        enrollment: &IndividualEnrollment,
        state: Option<&Registration>,
        with_keys: bool,
    ) -> Self {
        EnrollmentDto {
            registration_id: Some(enrollment.registration_id.as_str().to_owned()),
            device_id: enrollment.device_id.clone(),
            registration_state: state.map(DeviceRegistrationStateDto::from),
            optional_device_information: enrollment.device_information.clone(),
            ..EnrollmentDto::common(&enrollment.enrollment, with_keys)
        }
    }

    /// A group.
    #[must_use]
    pub fn group(group: &EnrollmentGroup, with_keys: bool) -> Self {
        EnrollmentDto {
            enrollment_group_id: Some(group.group_id.as_str().to_owned()),
            ..EnrollmentDto::common(&group.enrollment, with_keys)
        }
    }

    fn common(enrollment: &Enrollment, with_keys: bool) -> Self {
        EnrollmentDto {
            registration_id: None,
            enrollment_group_id: None,
            device_id: None,
            registration_state: None,
            optional_device_information: None,
            attestation: AttestationMechanismDto::of(&enrollment.attestation, with_keys),
            capabilities: CapabilitiesDto {
                iot_edge: enrollment.iot_edge,
            },
            iot_hub_host_name: enrollment.hub_host_name.clone(),
            initial_twin: enrollment.initial_twin.as_ref().map(|twin| InitialTwinDto {
                tags: twin.tags.clone(),
                properties: InitialPropertiesDto {
                    desired: twin.desired.clone(),
                },
            }),
            etag: etag::of_identity(enrollment.version),
            provisioning_status: match enrollment.enabled {
                true => StatusDto::Enabled,
                false => StatusDto::Disabled,
            },
            reprovision_policy: enrollment.reprovision.map(|policy| ReprovisionPolicyDto {
                update_hub_assignment: policy.update_hub_assignment,
                migrate_device_data: policy.migrate_device_data,
            }),
            created_date_time_utc: TimeDto(enrollment.created_at),
            last_updated_date_time_utc: TimeDto(enrollment.updated_at),
            allocation_policy: enrollment.allocation.unwrap_or_default().into(),
            iot_hubs: enrollment.hubs.clone(),
            custom_allocation_definition: enrollment.custom.as_ref().map(|custom| CustomAllocationDto {
                webhook_url: custom.webhook_url.clone(),
                api_version: custom.api_version.clone(),
            }),
        }
    }
}

/// What a bulk request does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, ToSchema)]
pub enum BulkModeDto {
    /// Create.
    #[serde(rename = "create")]
    Create,
    /// Update.
    #[serde(rename = "update")]
    Update,
    /// Update if the tag matches.
    #[serde(rename = "updateIfMatchETag")]
    UpdateIfMatchETag,
    /// Delete.
    #[serde(rename = "delete")]
    Delete,
}

impl BulkModeDto {
    const SPELLINGS: &'static [(&'static str, Self)] = &[
        ("create", BulkModeDto::Create),
        ("update", BulkModeDto::Update),
        ("updateIfMatchETag", BulkModeDto::UpdateIfMatchETag),
        ("delete", BulkModeDto::Delete),
    ];
}
read_any_case!(BulkModeDto);

/// A bulk request. Entries are read one by one, so that one that is malformed does not take the others with it.
#[derive(Clone, PartialEq, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BulkEnrollmentsDto {
    /// What to do.
    pub mode: BulkModeDto,
    /// Individual enrollments.
    #[serde(default)]
    #[schema(value_type = Vec<EnrollmentPut>)]
    pub enrollments: Vec<Value>,
    /// Groups.
    #[serde(default)]
    #[schema(value_type = Vec<EnrollmentPut>)]
    pub enrollment_groups: Vec<Value>,
}

/// Answer to a bulk request.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BulkEnrollmentsResultDto {
    /// Whether every entry was carried out.
    pub is_successful: bool,
    /// Those that were not.
    pub errors: Vec<BulkEnrollmentErrorDto>,
}

/// An entry of a bulk request that was not carried out.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BulkEnrollmentErrorDto {
    /// Individual enrollments: the id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registration_id: Option<String>,
    /// Groups: the id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enrollment_group_id: Option<String>,
    /// Number.
    pub error_code: u32,
    /// Text.
    pub error_status: String,
}
