//! Answers: JSON with the headers every SDK expects, and errors in the shapes of the contract.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use holdfast_model::{Error, ErrorCode};
use holdfast_wire::error::{Info, TrackingId, flat_body, legacy_body, nested_body, row};
use holdfast_wire::headers;
use serde::Serialize;

/// A failed operation, in the form the client gets.
#[derive(Debug)]
pub(crate) struct Failure {
    error: Error,
    shape: Shape,
}

/// Which of the contract's error bodies to send (REST contract, section 4.1).
#[derive(Clone, Debug)]
enum Shape {
    /// `{"Message","ExceptionMessage"}`.
    Legacy,
    /// Legacy, with a JSON text inside: direct methods.
    Nested(Info),
    /// Legacy, with a member `details` besides: what is wrong with a route.
    Detailed(serde_json::Value),
}

/// An error on its way out, for [`Failure::flatten`].
#[derive(Clone)]
struct Sent(Error);

impl Failure {
    /// An error of a direct method.
    pub(crate) fn of_method(error: Error, info: Info) -> Self {
        Failure {
            error,
            shape: Shape::Nested(info),
        }
    }

    /// An error that says more than a sentence.
    pub(crate) fn with_details(error: Error, details: serde_json::Value) -> Self {
        Failure {
            error,
            shape: Shape::Detailed(details),
        }
    }
}

impl Failure {
    /// Gives a failed answer the shape of the provisioning service: the flat body, and its own header.
    pub(crate) fn flatten(response: Response) -> Response {
        let Some(Sent(error)) = response.extensions().get::<Sent>().cloned() else {
            return response;
        };
        let row = row(error.code);
        let tracking = TrackingId {
            id: uuid::Uuid::new_v4().as_u128(),
            node: 0,
            at: now(),
        };
        let body = flat_body(&error, tracking, Info::default());
        let mut response = (response.status(), body).into_response();
        let fields = response.headers_mut();
        fields.insert(header::CONTENT_TYPE, HeaderValue::from_static(headers::JSON));
        fields.insert(headers::DPS_ERROR_CODE, HeaderValue::from_static(row.name));
        response
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure {
            error,
            shape: Shape::Legacy,
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let row = row(self.error.code);
        let id = uuid::Uuid::new_v4().as_u128();
        let tracking = TrackingId {
            id,
            node: 0,
            at: now(),
        };
        if self.error.code == ErrorCode::ServerError {
            tracing::error!(tracking = %tracking, error = %self.error, "a service request failed inside the hub");
        }
        let body = match self.shape {
            Shape::Legacy => legacy_body(&self.error, tracking),
            Shape::Nested(info) => nested_body(&self.error, tracking, info),
            Shape::Detailed(details) => detailed_body(&self.error, tracking, details),
        };
        let status = StatusCode::from_u16(row.http_status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(headers::JSON));
        headers.insert(headers::ERROR_CODE, HeaderValue::from_static(row.name));
        response.extensions_mut().insert(Sent(self.error));
        response
    }
}

fn detailed_body(error: &Error, tracking: TrackingId, details: serde_json::Value) -> String {
    let body = legacy_body(error, tracking);
    match serde_json::from_str(&body) {
        Ok(serde_json::Value::Object(mut members)) => {
            members.insert("details".to_owned(), details);
            serde_json::Value::Object(members).to_string()
        }
        _ => body,
    }
}

fn now() -> holdfast_model::Timestamp {
    use holdfast_ports::clock::{Clock, SystemClock};
    SystemClock::new().now()
}

/// What handlers return.
pub(crate) type Reply = Result<Response, Failure>;

/// 200 with a JSON body.
pub(crate) fn json<T: Serialize>(value: &T) -> Reply {
    json_with(StatusCode::OK, value, None)
}

/// JSON with an entity tag, given without quotes.
pub(crate) fn json_tagged<T: Serialize>(value: &T, tag: &str) -> Reply {
    json_with(StatusCode::OK, value, Some(tag))
}

/// JSON with a status and perhaps an entity tag.
pub(crate) fn json_with<T: Serialize>(status: StatusCode, value: &T, tag: Option<&str>) -> Reply {
    let body = serde_json::to_vec(value).map_err(|error| {
        Error::new(
            ErrorCode::ServerError,
            format!("the answer cannot be written: {error}"),
        )
    })?;
    let mut response = (status, Body::from(body)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(headers::JSON));
    if let Some(tag) = tag.and_then(|tag| HeaderValue::from_str(&holdfast_wire::etag::quoted(tag)).ok()) {
        headers.insert(header::ETAG, tag);
    }
    Ok(response)
}

/// 204.
pub(crate) fn no_content() -> Reply {
    Ok(StatusCode::NO_CONTENT.into_response())
}
