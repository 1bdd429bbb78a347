//! Provisioning over HTTPS (rest.md section 17).

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use holdfast_model::provisioning::{REQUEST_BYTES_MAX, Registration, RegistrationStatus};
use holdfast_model::{Error, ErrorCode};
use holdfast_ports::clock::Clock;
use holdfast_ports::gateway::{Credential, PeerCertificates, Protocol};
use holdfast_ports::provisioning::{ProvisioningGateway, Registrant, RegistrationAccess, TpmAccess, TpmKeys};
use holdfast_wire::dto::provisioning::{
    DeviceRegistrationDto, challenge_json, operation_json, parse_device_registration, state_json,
};
use holdfast_wire::{api_version, error, headers};
use http::header::{AUTHORIZATION, CONNECTION, CONTENT_TYPE, LOCATION};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use percent_encoding::percent_decode_str;

use crate::events::Metrics;

/// What every id scope begins with. A path is a device's if it begins so, whatever the service API has at the same
/// place.
const SCOPE_PREFIX: &str = "0ne";

/// A request of a provisioning device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Operation {
    id_scope: String,
    registration_id: String,
    action: Action,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Action {
    /// `PUT …/register`
    Register,
    /// `GET …/operations/{id}`
    Status { operation_id: String },
    /// `POST …`
    LastRegistration,
}

impl Operation {
    /// The operation behind method and path; `None` when they belong to somebody else.
    pub(crate) fn of(method: &Method, path: &str) -> Option<Self> {
        let path = path.strip_prefix('/')?;
        let path = path.strip_suffix('/').unwrap_or(path);
        let mut segments = path.split('/');
        let id_scope = decode(segments.next()?)?;
        let prefix = id_scope.get(..SCOPE_PREFIX.len())?;
        if !prefix.eq_ignore_ascii_case(SCOPE_PREFIX)
            || !segments.next()?.eq_ignore_ascii_case("registrations")
        {
            return None;
        }
        let registration_id = decode(segments.next()?)?;
        let rest: Vec<&str> = segments.collect();
        let action = match (method.as_str(), &rest[..]) {
            ("PUT", [register]) if register.eq_ignore_ascii_case("register") => Action::Register,
            ("GET", [operations, id]) if operations.eq_ignore_ascii_case("operations") => Action::Status {
                operation_id: decode(id)?,
            },
            ("POST", []) => Action::LastRegistration,
            _ => return None,
        };
        Some(Operation {
            id_scope,
            registration_id,
            action,
        })
    }
}

fn decode(segment: &str) -> Option<String> {
    let decoded = percent_decode_str(segment).decode_utf8().ok()?;
    (!decoded.is_empty()).then(|| decoded.into_owned())
}

/// The provisioning side of the HTTPS port. Cheap to clone.
#[derive(Clone)]
pub struct ProvisioningHttps {
    gateway: Arc<dyn ProvisioningGateway>,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
}

impl ProvisioningHttps {
    /// The device side of `gateway`.
    #[must_use]
    pub fn new(gateway: Arc<dyn ProvisioningGateway>, clock: Arc<dyn Clock>, metrics: Metrics) -> Self {
        ProvisioningHttps {
            gateway,
            clock,
            metrics,
        }
    }

    /// Answers a request. Every answer carries a request id.
    pub(crate) async fn serve(
        &self,
        operation: Operation,
        request: Request<Body>,
        body_timeout: Duration,
    ) -> Response<Body> {
        // Taken apart at once: a body cannot be shared between threads, and the head is borrowed over an await.
        let (head, body) = request.into_parts();
        let mut response = match self.perform(&operation, &head, body, body_timeout).await {
            Ok(response) => response,
            Err(error) => {
                self.metrics.requests_failed.inc();
                self.refuse(&error)
            }
        };
        crate::https::add_request_id(&mut response);
        response
    }

    async fn perform(
        &self,
        operation: &Operation,
        head: &Parts,
        body: Body,
        body_timeout: Duration,
    ) -> Result<Response<Body>, Error> {
        if !has_version(head.uri.query()) {
            let text = "the query must have an api-version such as 2019-03-31";
            return Err(Error::new(ErrorCode::InvalidProtocolVersion, text));
        }
        if operation.action == Action::Register && !has_credential(head) {
            let body = read_body(body, body_timeout).await;
            let keys = body.and_then(|body| challenged_keys(operation, &body));
            let keys = keys.inspect_err(|error| {
                self.gateway.note_refusal(&operation.registration_id, error);
            })?;
            return self.challenge(operation, &keys).await;
        }
        let registrant = self.admit(operation, head).await?;
        match &operation.action {
            Action::Register => {
                let request = self.request(&registrant, body, body_timeout).await?;
                let registration = self.gateway.register(&registrant, request.payload).await?;
                Ok(accepted(operation, &registrant, registration))
            }
            Action::Status { operation_id } => {
                let registration = self.gateway.operation(&registrant, operation_id).await?;
                let (status, retry_after) = super::standing(&registration);
                Ok(answer(status, retry_after, operation_json(&registration, true)))
            }
            Action::LastRegistration => {
                self.request(&registrant, body, body_timeout).await?;
                let registration = self.gateway.last_registration(&registrant).await?;
                Ok(answer(200, None, state_json(&registration)))
            }
        }
    }

    async fn request(
        &self,
        registrant: &Registrant,
        body: Body,
        body_timeout: Duration,
    ) -> Result<DeviceRegistrationDto, Error> {
        let read = read_body(body, body_timeout).await;
        read.and_then(|body| super::registration_body(registrant, &body))
            .inspect_err(|error| {
                self.gateway
                    .note_refusal(registrant.registration_id.as_str(), error);
            })
    }

    /// A device without any credential is asked for one: a TPM by a challenge.
    async fn challenge(&self, operation: &Operation, keys: &TpmKeys) -> Result<Response<Body>, Error> {
        let access = TpmAccess {
            id_scope: &operation.id_scope,
            registration_id: &operation.registration_id,
            keys,
        };
        let blob = self.gateway.challenge(access).await?;
        Ok(answer(401, None, challenge_json(&blob)))
    }

    async fn admit(&self, operation: &Operation, head: &Parts) -> Result<Registrant, Error> {
        let certificates = head.extensions.get::<PeerCertificates>();
        let credential = match (head.headers.get(AUTHORIZATION), certificates) {
            // Text that is not even ASCII is no token.
            (Some(token), _) => Credential::Sas(token.to_str().unwrap_or_default()),
            (None, Some(PeerCertificates(chain))) => Credential::Certificates(chain),
            (None, None) => Credential::None,
        };
        let access = RegistrationAccess {
            id_scope: &operation.id_scope,
            registration_id: &operation.registration_id,
            credential,
            protocol: Protocol::Https,
        };
        self.gateway.authenticate(access).await
    }

    fn refuse(&self, error: &Error) -> Response<Body> {
        let (status, retry_after, body) = super::failure(error, self.clock.now());
        let mut response = answer(status, retry_after, body);
        let name = HeaderValue::from_static(error::row(error.code).name);
        response.headers_mut().insert(headers::DPS_ERROR_CODE, name);
        if error.code == ErrorCode::MessageTooLarge || error.code == ErrorCode::GatewayTimeout {
            // The rest of the body is not read, so the connection is of no further use.
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(CONNECTION, close);
        }
        response
    }
}

impl std::fmt::Debug for ProvisioningHttps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProvisioningHttps").finish_non_exhaustive()
    }
}

/// The keys in the body of a device that gives nothing else.
fn challenged_keys(operation: &Operation, body: &[u8]) -> Result<TpmKeys, Error> {
    let request = parse_device_registration(body)?;
    let Some(tpm) = request.tpm else {
        let text = "a token, a client certificate or the keys of a TPM are needed";
        return Err(Error::new(ErrorCode::IotHubUnauthorizedAccess, text));
    };
    let names_itself = |id: &String| id.eq_ignore_ascii_case(&operation.registration_id);
    if !request.registration_id.as_ref().is_none_or(names_itself) {
        let text = "the registration id of the body is not the one of the path";
        return Err(Error::new(ErrorCode::InvalidRegistrationId, text));
    }
    super::tpm_keys(&tpm)
}

/// A PUT is answered with 202, also when the device is assigned already: C# and the edge's identity service take nothing
/// else. The first look at the operation tells the result.
fn accepted(
    operation: &Operation,
    registrant: &Registrant,
    mut registration: Registration,
) -> Response<Body> {
    let is_disabled = registration.status == RegistrationStatus::Disabled;
    if !is_disabled {
        registration.status = RegistrationStatus::Assigning;
    }
    // There is no operation to ask for behind a disabled enrollment, so its state comes at once.
    let body = operation_json(&registration, is_disabled);
    let mut response = answer(202, Some(super::RETRY_AFTER_SECONDS), body);
    let location = format!(
        "/{}/registrations/{}/operations/{}",
        operation.id_scope, registrant.registration_id, registration.operation_id
    );
    if let Ok(location) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

fn answer(status: u16, retry_after: Option<u64>, body: String) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let fields = response.headers_mut();
    fields.insert(CONTENT_TYPE, HeaderValue::from_static(headers::JSON));
    if let Some(seconds) = retry_after {
        fields.insert(headers::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

fn has_credential(head: &Parts) -> bool {
    let certificates = head.extensions.get::<PeerCertificates>();
    head.headers.contains_key(AUTHORIZATION) || certificates.is_some_and(|chain| !chain.0.is_empty())
}

fn has_version(query: Option<&str>) -> bool {
    query
        .into_iter()
        .flat_map(|query| query.split('&'))
        .filter_map(|pair| pair.split_once('='))
        .any(|(key, value)| {
            key.eq_ignore_ascii_case(api_version::PARAMETER) && api_version::is_date_shaped(value)
        })
}

async fn read_body(body: Body, timeout: Duration) -> Result<Bytes, Error> {
    let read = Limited::new(body, REQUEST_BYTES_MAX).collect();
    match tokio::time::timeout(timeout, read).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Error::new(
            ErrorCode::MessageTooLarge,
            "a request has at most 96 KB",
        )),
        Ok(Err(_)) => Err(Error::new(ErrorCode::ArgumentInvalid, "the body broke off")),
        Err(_) => Err(Error::new(
            ErrorCode::GatewayTimeout,
            "the body did not come in time",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_devices() {
        let of = |method: &str, path: &str| {
            let method = Method::from_bytes(method.as_bytes()).expect("a method");
            Operation::of(&method, path).map(|found| (found.registration_id, found.action))
        };
        let id = || "d:1".to_owned();
        assert_eq!(
            of("PUT", "/0neA/registrations/d%3A1/register"),
            Some((id(), Action::Register))
        );
        assert_eq!(
            of("PUT", "/0NEa/Registrations/d:1/Register/"),
            Some((id(), Action::Register))
        );
        let operation_id = "4.0.x".to_owned();
        assert_eq!(
            of("GET", "/0neA/registrations/d:1/operations/4.0.x"),
            Some((id(), Action::Status { operation_id }))
        );
        assert_eq!(
            of("POST", "/0neA/registrations/d:1"),
            Some((id(), Action::LastRegistration))
        );
        for (method, path) in [
            ("GET", "/0neA/registrations/d"),
            ("POST", "/registrations/registrations/query"),
            ("POST", "/twins/registrations/methods"),
            ("PUT", "/0neA/registrations//register"),
            ("PUT", "/0"),
            ("GET", "/"),
        ] {
            assert_eq!(of(method, path), None, "{method} {path}");
        }
    }
}
