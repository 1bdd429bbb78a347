//! Reading requests: bodies with a bound, ids of the path, `If-Match`.

use axum::body::Bytes;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use holdfast_hub::{IfMatch, ServiceCaller};
use holdfast_model::{Error, ErrorCode, Identity};
use holdfast_wire::{dto, etag};
use serde::de::DeserializeOwned;

use crate::reply::Failure;

/// Largest body of any service request; twins and bulk lists are well below (the bound of the HTTP layer is the same).
pub(crate) const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Who calls, as the access check found out.
#[derive(Debug)]
pub(crate) struct Caller(pub(crate) ServiceCaller);

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        // Only a route without the access check could lack it.
        let caller = parts.extensions.get::<ServiceCaller>().cloned();
        let missing = || Error::new(ErrorCode::IotHubUnauthorizedAccess, "Unauthorized");
        Ok(Caller(caller.ok_or_else(missing)?))
    }
}

/// The identity of a path, `/{device}` or `/{device}/modules/{module}`.
pub(crate) fn identity(device_id: &str, module_id: Option<&str>) -> Result<Identity, Failure> {
    Ok(Identity::new(device_id, module_id)?)
}

/// Reads a JSON body.
pub(crate) fn body<T: DeserializeOwned>(bytes: &Bytes) -> Result<T, Failure> {
    Ok(dto::from_json(bytes)?)
}

/// Reads a JSON body that is a list of at most `max` objects.
pub(crate) fn list_body<T: DeserializeOwned>(bytes: &Bytes, max: usize) -> Result<Vec<T>, Failure> {
    Ok(dto::list_from_json(bytes, max)?)
}

/// `If-Match` of a request about a device or module.
pub(crate) fn identity_match(headers: &HeaderMap) -> IfMatch {
    engine_match(&etag::IfMatch::identity(if_match(headers)))
}

/// `If-Match` of a request about a twin.
pub(crate) fn twin_match(headers: &HeaderMap) -> IfMatch {
    engine_match(&etag::IfMatch::twin(if_match(headers)))
}

/// Whether a request is to create something and to leave alone what is there: `If-None-Match: *` (RFC 9110, 13.1.2).
pub(crate) fn creates_only(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(header::IF_NONE_MATCH).iter();
    values.any(|value| value.as_bytes().trim_ascii() == b"*")
}

/// From the contract's form to the engine's.
pub(crate) fn engine_match(wanted: &etag::IfMatch) -> IfMatch {
    match wanted {
        etag::IfMatch::Absent => IfMatch::Absent,
        etag::IfMatch::Any => IfMatch::Any,
        etag::IfMatch::Version(version) => IfMatch::Version(*version),
        etag::IfMatch::Other(_) => IfMatch::Never,
    }
}

fn if_match(headers: &HeaderMap) -> Option<&str> {
    // A value that is not text is a tag that was never given out.
    headers
        .get(header::IF_MATCH)
        .map(|value| value.to_str().unwrap_or("?"))
}
