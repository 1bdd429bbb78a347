//! `/twins/…/methods`: direct methods (REST contract, section 7).

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use holdfast_model::Identity;
use holdfast_wire::dto::{MethodRequestDto, MethodResponseDto, from_json, method_response_json};
use holdfast_wire::error::Info;
use holdfast_wire::headers;

use crate::Api;
use crate::extract::identity;
use crate::reply::{Failure, Reply};

/// Calls a direct method of a device and waits for its answer. Right: ServiceConnect.
#[utoipa::path(post, path = "/twins/{id}/methods", tag = "Methods", request_body = MethodRequestDto,
    responses((status = 200, body = MethodResponseDto), (status = 404, description = "not online"),
    (status = 504, description = "no answer in time")))]
pub(crate) async fn invoke_device(
    State(api): State<Api>,
    Path(device_id): Path<String>,
    body: Bytes,
) -> Reply {
    invoke(&api, identity(&device_id, None)?, &body).await
}

/// Calls a direct method of a module and waits for its answer. Right: ServiceConnect.
#[utoipa::path(post, path = "/twins/{id}/modules/{mid}/methods", tag = "Methods", request_body = MethodRequestDto,
    responses((status = 200, body = MethodResponseDto)))]
pub(crate) async fn invoke_module(
    State(api): State<Api>,
    Path((device_id, module_id)): Path<(String, String)>,
    body: Bytes,
) -> Reply {
    invoke(&api, identity(&device_id, Some(&module_id))?, &body).await
}

async fn invoke(api: &Api, identity: Identity, body: &Bytes) -> Reply {
    let fail = |error| Failure::of_method(error, Info::Empty);
    let request: MethodRequestDto = from_json(body).map_err(fail)?;
    let call = request.call().map_err(fail)?;
    let connect_timeout: Duration = call.connect_timeout;
    let outcome = api.hub.invoke_method(&identity, call).await;
    let response = outcome.map_err(|error| {
        let info = Info::of_method(error.code, connect_timeout);
        Failure::of_method(error, info)
    })?;
    // The payload is passed on as the device wrote it, not parsed and written again.
    let mut answer = Response::new(Body::from(method_response_json(&response).map_err(fail)?));
    answer
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(headers::JSON));
    Ok(answer)
}
