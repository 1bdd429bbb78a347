//! From bodies to what the engine takes.

use holdfast_model::credential::SymmetricKey;
use holdfast_model::provisioning::{CustomAllocation, InitialTwin, ReprovisionPolicy};
use holdfast_model::{Error, ErrorCode};
use holdfast_provisioning::{AttestationSpec, CertificateSpec, EnrollmentSpec, IndividualSpec};
use holdfast_wire::dto::StatusDto;
use holdfast_wire::dto::provisioning::{
    AttestationMechanismDto, AttestationTypeDto, CertificateDto, CertificatesDto, EnrollmentPut,
};

/// An individual enrollment.
pub(super) fn individual(body: EnrollmentPut) -> Result<IndividualSpec, Error> {
    Ok(IndividualSpec {
        device_id: body.device_id.clone(),
        device_information: body.optional_device_information.clone(),
        enrollment: enrollment(body)?,
    })
}

/// What individual enrollments and groups have in common.
pub(super) fn enrollment(body: EnrollmentPut) -> Result<EnrollmentSpec, Error> {
    Ok(EnrollmentSpec {
        attestation: attestation(body.attestation)?,
        enabled: body.provisioning_status.unwrap_or_default() == StatusDto::Enabled,
        reprovision: body.reprovision_policy.map(|policy| ReprovisionPolicy {
            update_hub_assignment: policy.update_hub_assignment,
            migrate_device_data: policy.migrate_device_data,
        }),
        allocation: body.allocation_policy.map(Into::into),
        hub_host_name: body.iot_hub_host_name,
        hubs: body.iot_hubs,
        custom: body.custom_allocation_definition.map(|custom| CustomAllocation {
            webhook_url: custom.webhook_url,
            api_version: custom.api_version,
        }),
        initial_twin: body.initial_twin.map(|twin| {
            let mut twin = InitialTwin {
                tags: twin.tags,
                desired: twin.properties.desired,
            };
            // Of a round trip.
            for section in [&mut twin.tags, &mut twin.desired] {
                section.retain(|name, _| !matches!(name.as_str(), "$version" | "$metadata"));
            }
            twin
        }),
        iot_edge: body.capabilities.iot_edge,
    })
}

fn attestation(body: AttestationMechanismDto) -> Result<AttestationSpec, Error> {
    match body.kind {
        AttestationTypeDto::SymmetricKey => {
            let keys = body.symmetric_key.unwrap_or_default();
            Ok(AttestationSpec::SymmetricKey {
                primary_key: key("primaryKey", keys.primary_key.as_deref())?,
                secondary_key: key("secondaryKey", keys.secondary_key.as_deref())?,
            })
        }
        AttestationTypeDto::X509 => {
            let x509 = body.x509.unwrap_or_default();
            let one_of_three = || {
                invalid(
                    "attestation.x509 must have one of clientCertificates, signingCertificates and caReferences",
                )
            };
            match (
                x509.client_certificates,
                x509.signing_certificates,
                x509.ca_references,
            ) {
                (Some(pair), None, None) => {
                    let (primary, secondary) = certificates(pair);
                    Ok(AttestationSpec::ClientCertificates { primary, secondary })
                }
                (None, Some(pair), None) => {
                    let (primary, secondary) = certificates(pair);
                    Ok(AttestationSpec::SigningCertificates { primary, secondary })
                }
                (None, None, Some(names)) => Ok(AttestationSpec::AuthorityReferences {
                    primary: names.primary,
                    secondary: names.secondary,
                }),
                _ => Err(one_of_three()),
            }
        }
        AttestationTypeDto::Tpm => {
            let tpm = body.tpm.unwrap_or_default();
            Ok(AttestationSpec::Tpm {
                endorsement_key: tpm.endorsement_key,
                storage_root_key: tpm.storage_root_key,
            })
        }
        AttestationTypeDto::None => Err(invalid("an enrollment needs an attestation")),
    }
}

fn certificates(pair: CertificatesDto) -> (Option<CertificateSpec>, Option<CertificateSpec>) {
    let one = |certificate: CertificateDto| match certificate.certificate {
        Some(text) => CertificateSpec::Text(text),
        None => CertificateSpec::Unchanged,
    };
    (pair.primary.map(one), pair.secondary.map(one))
}

/// A key that is missing or empty is one to be made.
pub(super) fn key(member: &str, text: Option<&str>) -> Result<Option<SymmetricKey>, Error> {
    text.filter(|text| !text.is_empty())
        .map(|text| SymmetricKey::parse(text).map_err(|error| invalid(&format!("{member}: {error}"))))
        .transpose()
}

/// A body may name the entry; another one than the path is a mix-up.
pub(super) fn check_id(path: &str, body: Option<&str>) -> Result<(), Error> {
    match body {
        Some(id) if !id.is_empty() && !id.eq_ignore_ascii_case(path) => {
            Err(invalid("the id of the body is not the one of the path"))
        }
        _ => Ok(()),
    }
}

pub(super) fn invalid(text: &str) -> Error {
    Error::new(ErrorCode::ArgumentInvalid, text)
}
