//! Device provisioning: what devices do before they know their hub (mqtt.md section 9, rest.md section 17).
//!
//! The sessions of [`mqtt`] begin in the MQTT head's log-in, which tells provisioning clients from hub devices by their
//! user name; [`https::ProvisioningHttps`] answers requests of the HTTPS port. Both translate to
//! [`holdfast_ports::provisioning::ProvisioningGateway`]; a head for another protocol would do the same.

pub(crate) mod https;
pub(crate) mod mqtt;

pub use https::ProvisioningHttps;

use holdfast_model::provisioning::{Registration, RegistrationStatus};
use holdfast_model::{Error, ErrorCode, Timestamp};
use holdfast_ports::provisioning::Registrant;
use holdfast_wire::dto::provisioning::{DeviceRegistrationDto, parse_device_registration};
use holdfast_wire::error::{self, Info, TrackingId};

use crate::tracking;

/// When a device should ask again, in seconds. All SDKs take it; C# waits for 2 at least.
const RETRY_AFTER_SECONDS: u64 = 2;

/// The body of a registration, checked against the id that was proven.
fn registration_body(registrant: &Registrant, body: &[u8]) -> Result<DeviceRegistrationDto, Error> {
    let request = parse_device_registration(body)?;
    let proven = registrant.registration_id.as_str();
    match &request.registration_id {
        Some(other) if !other.eq_ignore_ascii_case(proven) => Err(Error::new(
            ErrorCode::InvalidRegistrationId,
            "the registration id of the body is not the one that was proven",
        )),
        _ => Ok(request),
    }
}

/// HTTP status of a registration, also used in topics; and when to ask again.
fn standing(registration: &Registration) -> (u16, Option<u64>) {
    match registration.status {
        RegistrationStatus::Assigning => (202, Some(RETRY_AFTER_SECONDS)),
        _ => (200, None),
    }
}

/// The same of an error, with its body.
fn failure(error: &Error, now: Timestamp) -> (u16, Option<u64>, String) {
    let row = error::row(error.code);
    let tracking = TrackingId {
        id: tracking::random(),
        node: 0,
        at: now,
    };
    holdfast_observe::tracing::debug!(%tracking, code = row.name, %error, "provisioning request failed");
    let again = matches!(
        error.code,
        ErrorCode::ThrottlingException | ErrorCode::ServiceUnavailable | ErrorCode::ServerError
    );
    let body = error::flat_body(error, tracking, Info::default());
    (row.http_status, again.then_some(RETRY_AFTER_SECONDS), body)
}
