//! `/digitaltwins/…`: device twins as plug and play sees them (REST contract, section 13; languages.md 7.5).

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use holdfast_dtdl::patch::desired_change;
use holdfast_dtdl::view::{SectionView, digital_twin};
use holdfast_hub::IfMatch;
use holdfast_model::method::MethodCall;
use holdfast_model::twin::{ChangeMode, Section, Twin, TwinChange};
use holdfast_model::{Error, ErrorCode, Identity};
use holdfast_wire::dto::MethodRequestDto;
use holdfast_wire::error::Info;
use holdfast_wire::{etag, headers};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::Api;
use crate::extract::{Caller, identity, twin_match};
use crate::reply::{Failure, Reply, json_tagged};

/// Status that the device gave to a command.
const COMMAND_STATUS: HeaderName = HeaderName::from_static("x-ms-command-statuscode");
/// Times that a patch is tried against a twin that others change meanwhile.
const TRIES_MAX: usize = 8;

/// How long to wait for a command.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(rename_all = "camelCase", default)]
#[into_params(parameter_in = Query)]
pub(crate) struct CommandQuery {
    /// For the device to connect, seconds, 0 to 300; default 0.
    connect_timeout_in_seconds: Option<i64>,
    /// For its answer, seconds, 5 to 300; default 30.
    response_timeout_in_seconds: Option<i64>,
}

/// Reads a digital twin. Right: ServiceConnect.
#[utoipa::path(get, path = "/digitaltwins/{id}", tag = "Digital twins",
    responses((status = 200, description = "the digital twin"), (status = 404, description = "no such device")))]
pub(crate) async fn get(State(api): State<Api>, Path(device_id): Path<String>) -> Reply {
    let device = identity(&device_id, None)?;
    let twin = api.hub.twin(&device).await?;
    json_tagged(&view(&device, &twin), &etag::of_twin(twin.version))
}

/// Changes writable properties by JSON Patch: they become desired properties. Right: ServiceConnect.
#[utoipa::path(patch, path = "/digitaltwins/{id}", tag = "Digital twins", responses(
    (status = 202, description = "the properties are asked for"), (status = 400, description = "the patch is wrong"),
    (status = 412, description = "If-Match does not match")))]
pub(crate) async fn patch(
    State(api): State<Api>,
    Caller(caller): Caller,
    Path(device_id): Path<String>,
    request_headers: HeaderMap,
    body: Bytes,
) -> Reply {
    let device = identity(&device_id, None)?;
    let patch: Value = serde_json::from_slice(&body).map_err(|error| {
        Error::new(
            ErrorCode::DeserializationError,
            format!("the patch cannot be read: {error}"),
        )
    })?;
    let wanted = twin_match(&request_headers);
    for _ in 0..TRIES_MAX {
        let before = api.hub.twin(&device).await?;
        let desired = desired_change(&patch, &before.desired.properties, &before.reported.properties)
            .map_err(|error| Error::new(ErrorCode::ArgumentInvalid, error.to_string()))?;
        let change = TwinChange {
            tags: None,
            desired: Some(desired),
        };
        // The change was made for this version of the twin, whatever the client said.
        let if_match = match wanted {
            IfMatch::Absent | IfMatch::Any => IfMatch::Version(before.version),
            given => given,
        };
        let changed = api
            .hub
            .change_twin(&caller, &device, ChangeMode::Patch, change, if_match)
            .await;
        match changed {
            Ok(twin) => return Ok(accepted(&device, &twin)),
            Err(error) if error.code == ErrorCode::PreconditionFailed && wanted != if_match => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(Error::new(
        ErrorCode::ThrottlingException,
        "the twin is changed by others all the time; try again later",
    )
    .into())
}

fn accepted(device: &Identity, twin: &Twin) -> Response {
    let mut response = StatusCode::ACCEPTED.into_response();
    let fields = response.headers_mut();
    if let Ok(tag) = HeaderValue::from_str(&etag::quoted(&etag::of_twin(twin.version))) {
        fields.insert(header::ETAG, tag);
    }
    let id = percent_encoding::utf8_percent_encode(device.as_str(), percent_encoding::NON_ALPHANUMERIC);
    if let Ok(location) = HeaderValue::from_str(&format!("/digitaltwins/{id}")) {
        fields.insert(header::LOCATION, location);
    }
    response
}

/// Invokes a command of the default component. Right: ServiceConnect.
#[utoipa::path(post, path = "/digitaltwins/{id}/commands/{name}", tag = "Digital twins", params(CommandQuery),
    responses((status = 200, description = "the payload of the answer; its status is in x-ms-command-statuscode"),
    (status = 404, description = "not online"), (status = 504, description = "no answer in time")))]
pub(crate) async fn invoke(
    State(api): State<Api>,
    Path((device_id, name)): Path<(String, String)>,
    Query(query): Query<CommandQuery>,
    body: Bytes,
) -> Reply {
    command(&api, &device_id, name, &query, &body).await
}

/// Invokes a command of a component. Right: ServiceConnect.
#[utoipa::path(post, path = "/digitaltwins/{id}/components/{component}/commands/{name}", tag = "Digital twins",
    params(CommandQuery), responses((status = 200, description = "the payload of the answer")))]
pub(crate) async fn invoke_component(
    State(api): State<Api>,
    Path((device_id, component, name)): Path<(String, String, String)>,
    Query(query): Query<CommandQuery>,
    body: Bytes,
) -> Reply {
    // Plug and play devices take a component's command as this method (languages.md 7.4).
    command(&api, &device_id, format!("{component}*{name}"), &query, &body).await
}

async fn command(api: &Api, device_id: &str, method: String, query: &CommandQuery, body: &Bytes) -> Reply {
    let device = identity(device_id, None)?;
    let fail = |error| Failure::of_method(error, Info::Empty);
    let call = call(method, query, body).map_err(fail)?;
    let connect_timeout: Duration = call.connect_timeout;
    let outcome = api.hub.invoke_method(&device, call).await;
    let response = outcome.map_err(|error| {
        let info = Info::of_method(error.code, connect_timeout);
        Failure::of_method(error, info)
    })?;
    // The engine takes JSON or nothing from devices.
    let payload = match response.payload.trim_ascii() {
        [] => Bytes::from_static(b"null"),
        _ => response.payload,
    };
    let mut answer = Response::new(Body::from(payload));
    let fields = answer.headers_mut();
    fields.insert(header::CONTENT_TYPE, HeaderValue::from_static(headers::JSON));
    fields.insert(COMMAND_STATUS, HeaderValue::from(response.status));
    Ok(answer)
}

fn call(method: String, query: &CommandQuery, body: &Bytes) -> Result<MethodCall, Error> {
    let payload = match body.trim_ascii() {
        [] => None,
        text => Some(serde_json::from_slice::<Box<RawValue>>(text).map_err(|error| {
            Error::new(
                ErrorCode::DeserializationError,
                format!("the argument of the command is not JSON: {error}"),
            )
        })?),
    };
    MethodRequestDto {
        method_name: Some(method),
        payload,
        response_timeout_in_seconds: query.response_timeout_in_seconds,
        connect_timeout_in_seconds: query.connect_timeout_in_seconds,
    }
    .call()
}

fn view(device: &Identity, twin: &Twin) -> Value {
    fn section(section: &Section) -> SectionView<'_> {
        SectionView {
            properties: &section.properties,
            metadata: &section.metadata,
            version: section.version,
        }
    }
    digital_twin(
        device.device_id(),
        twin.model_id.as_deref(),
        section(&twin.desired),
        section(&twin.reported),
    )
}
