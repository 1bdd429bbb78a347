//! Device provisioning: what devices do before they know their hub (mqtt.md section 9, rest.md section 17).
//!
//! The sessions of [`mqtt`] begin in the MQTT head's log-in, which tells provisioning clients from hub devices by their
//! user name; [`https::ProvisioningHttps`] answers requests of the HTTPS port; over AMQP they have links of the AMQP head
//! (`amqp::registration`). All translate to
//! [`holdfast_ports::provisioning::ProvisioningGateway`]; a head for another protocol would do the same.

pub(crate) mod https;
pub(crate) mod mqtt;

pub use https::ProvisioningHttps;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use holdfast_model::provisioning::{Registration, RegistrationStatus};
use holdfast_model::{Error, ErrorCode, Timestamp};
use holdfast_ports::provisioning::{Proof, Registrant, TpmKeys};
use holdfast_wire::dto::provisioning::{
    DeviceRegistrationDto, TpmRegistrationDto, parse_device_registration,
};
use holdfast_wire::error::{self, Info, TrackingId};

use crate::tracking;

/// When a device should ask again, in seconds. All SDKs take it; C# waits for 2 at least.
const RETRY_AFTER_SECONDS: u64 = 2;

/// The body of a registration, checked against the id that was proven.
pub(crate) fn registration_body(
    registrant: &Registrant,
    body: &[u8],
) -> Result<DeviceRegistrationDto, Error> {
    let request = parse_device_registration(body)?;
    let proven = registrant.registration_id.as_str();
    match &request.registration_id {
        Some(other) if !other.eq_ignore_ascii_case(proven) => Err(Error::new(
            ErrorCode::InvalidRegistrationId,
            "the registration id of the body is not the one that was proven",
        )),
        _ => {
            check_tpm(registrant, request.tpm.as_ref())?;
            Ok(request)
        }
    }
}

/// A TPM says its keys again with its token. What it is sent is for those of the challenge, so others are a mix-up.
fn check_tpm(registrant: &Registrant, tpm: Option<&TpmRegistrationDto>) -> Result<(), Error> {
    let (Some(tpm), Proof::Tpm { keys, .. }) = (tpm, &registrant.proof) else {
        return Ok(());
    };
    let storage_root_key = tpm.storage_root_key.as_deref();
    let same = decode(&tpm.endorsement_key).as_ref() == Ok(&keys.endorsement_key)
        && storage_root_key.is_none_or(|key| decode(key).as_ref() == Ok(&keys.storage_root_key));
    match same {
        true => Ok(()),
        false => Err(Error::new(
            ErrorCode::IotHubUnauthorizedAccess,
            "the TPM is not the one that was challenged",
        )),
    }
}

/// The keys of a TPM that asks for a challenge.
fn tpm_keys(tpm: &TpmRegistrationDto) -> Result<TpmKeys, Error> {
    let key = |member: &str, text: &str| {
        decode(text).map_err(|()| {
            let text = format!("tpm.{member} is not base64");
            Error::new(ErrorCode::ArgumentInvalid, text)
        })
    };
    let storage_root_key = tpm.storage_root_key.as_deref().unwrap_or_default();
    Ok(TpmKeys {
        endorsement_key: key("endorsementKey", &tpm.endorsement_key)?,
        storage_root_key: key("storageRootKey", storage_root_key)?,
    })
}

fn decode(text: &str) -> Result<Bytes, ()> {
    STANDARD.decode(text).map(Bytes::from).map_err(|_| ())
}

/// HTTP status of a registration, also used in topics; and when to ask again.
pub(crate) fn standing(registration: &Registration) -> (u16, Option<u64>) {
    match registration.status {
        RegistrationStatus::Assigning => (202, Some(RETRY_AFTER_SECONDS)),
        _ => (200, None),
    }
}

/// The same of an error, with its body.
pub(crate) fn failure(error: &Error, now: Timestamp) -> (u16, Option<u64>, String) {
    let row = error::row(error.code);
    let tracking = TrackingId {
        id: tracking::random(),
        node: 0,
        at: now,
    };
    holdfast_observe::tracing::debug!(%tracking, code = row.name, %error, "provisioning request failed");
    let body = error::flat_body(error, tracking, Info::default());
    let retry_after = may_try_again(error.code).then_some(RETRY_AFTER_SECONDS);
    (row.http_status, retry_after, body)
}

/// Whether the same request may have another outcome later.
pub(crate) fn may_try_again(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::ThrottlingException | ErrorCode::ServiceUnavailable | ErrorCode::ServerError
    )
}
