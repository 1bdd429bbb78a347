//! Answers to devices (rest.md sections 1, 4 and 15.3).

use axum::body::Body;
use holdfast_model::c2d::C2dDelivery;
use holdfast_model::{Error, ErrorCode, Timestamp};
use holdfast_wire::error::{self, TrackingId};
use holdfast_wire::{headers, http_device};
use http::header::{CONNECTION, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, Response, StatusCode};

use crate::tracking;

/// Seconds after which a throttled or refused client should try again.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("5");

pub(super) fn no_content() -> Response<Body> {
    with_status(StatusCode::NO_CONTENT, Body::empty())
}

/// A cloud-to-device message: its body, and everything else in headers.
pub(super) fn delivery(delivery: &C2dDelivery) -> Response<Body> {
    let mut response = with_status(StatusCode::OK, Body::from(delivery.message.message.body.clone()));
    for (name, value) in http_device::delivery_headers(delivery) {
        // `wire` writes only what headers can hold.
        if let (Ok(name), Ok(value)) = (
            HeaderName::from_bytes(name.as_bytes()),
            HeaderValue::from_str(&value),
        ) {
            response.headers_mut().append(name, value);
        }
    }
    response
}

/// A JSON document.
pub(super) fn json(document: Vec<u8>) -> Response<Body> {
    let mut response = with_status(StatusCode::OK, Body::from(document));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(headers::JSON));
    response
}

/// An error in the shape of the device endpoints.
pub(super) fn failure(error: &Error, now: Timestamp) -> Response<Body> {
    let row = error::row(error.code);
    let tracking = TrackingId {
        id: tracking::random(),
        node: 0,
        at: now,
    };
    holdfast_observe::tracing::debug!(tracking = %tracking, code = row.name, %error, "device request failed");
    let status = StatusCode::from_u16(row.http_status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = with_status(status, Body::from(error::legacy_body(error, tracking)));
    let fields = response.headers_mut();
    fields.insert(CONTENT_TYPE, HeaderValue::from_static(headers::JSON));
    fields.insert(headers::ERROR_CODE, HeaderValue::from_static(row.name));
    if matches!(
        error.code,
        ErrorCode::ThrottlingException | ErrorCode::ServiceUnavailable
    ) {
        fields.insert(headers::RETRY_AFTER, RETRY_AFTER_SECONDS);
    }
    if error.code == ErrorCode::MessageTooLarge {
        // The rest of the body is not read, so the connection is of no further use.
        fields.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// The client did not send its body in time. No error of the contract says that.
pub(crate) fn body_timeout() -> Response<Body> {
    let mut response = with_status(StatusCode::REQUEST_TIMEOUT, Body::empty());
    response
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Adds the id of the request, a GUID.
pub(super) fn add_request_id(response: &mut Response<Body>, id: u128) {
    let guid = format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        (id >> 96) as u32,
        (id >> 80) as u16,
        (id >> 64) as u16,
        (id >> 48) as u16,
        id & 0xffff_ffff_ffff
    );
    if let Ok(value) = HeaderValue::from_str(&guid) {
        response.headers_mut().insert(headers::REQUEST_ID, value);
    }
}

fn with_status(status: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}
