//! `/twins/…`: twins of devices and modules (REST contract, section 6).

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use holdfast_model::Identity;
use holdfast_model::twin::{ChangeMode, Twin};
use holdfast_wire::dto::{TwinDto, parse_twin_change};
use holdfast_wire::etag;

use crate::Api;
use crate::extract::{Caller, identity, twin_match};
use crate::reply::{Reply, json_tagged};

/// Reads the twin of a device. Right: ServiceConnect.
#[utoipa::path(get, path = "/twins/{id}", tag = "Twins", responses((status = 200, description = "the twin")))]
pub(crate) async fn get_device(State(api): State<Api>, Path(device_id): Path<String>) -> Reply {
    read(&api, identity(&device_id, None)?).await
}

/// Reads the twin of a module. Right: ServiceConnect.
#[utoipa::path(get, path = "/twins/{id}/modules/{mid}", tag = "Twins",
    responses((status = 200, description = "the twin")))]
pub(crate) async fn get_module(
    State(api): State<Api>,
    Path((device_id, module_id)): Path<(String, String)>,
) -> Reply {
    read(&api, identity(&device_id, Some(&module_id))?).await
}

/// Merges tags and desired properties into the twin of a device. Right: ServiceConnect.
#[utoipa::path(patch, path = "/twins/{id}", tag = "Twins", responses((status = 200, description = "the new twin"),
    (status = 412, description = "If-Match does not match")))]
pub(crate) async fn patch_device(
    State(api): State<Api>,
    caller: Caller,
    Path(device_id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Reply {
    change(
        &api,
        caller,
        identity(&device_id, None)?,
        ChangeMode::Patch,
        &headers,
        &body,
    )
    .await
}

/// Merges tags and desired properties into the twin of a module. Right: ServiceConnect.
#[utoipa::path(patch, path = "/twins/{id}/modules/{mid}", tag = "Twins",
    responses((status = 200, description = "the new twin")))]
pub(crate) async fn patch_module(
    State(api): State<Api>,
    caller: Caller,
    Path((device_id, module_id)): Path<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Reply {
    change(
        &api,
        caller,
        identity(&device_id, Some(&module_id))?,
        ChangeMode::Patch,
        &headers,
        &body,
    )
    .await
}

/// Replaces tags or desired properties of the twin of a device, those that the body has. Right: ServiceConnect.
#[utoipa::path(put, path = "/twins/{id}", tag = "Twins", responses((status = 200, description = "the new twin")))]
pub(crate) async fn put_device(
    State(api): State<Api>,
    caller: Caller,
    Path(device_id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Reply {
    change(
        &api,
        caller,
        identity(&device_id, None)?,
        ChangeMode::Replace,
        &headers,
        &body,
    )
    .await
}

/// Replaces tags or desired properties of the twin of a module. Right: ServiceConnect.
#[utoipa::path(put, path = "/twins/{id}/modules/{mid}", tag = "Twins",
    responses((status = 200, description = "the new twin")))]
pub(crate) async fn put_module(
    State(api): State<Api>,
    caller: Caller,
    Path((device_id, module_id)): Path<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Reply {
    change(
        &api,
        caller,
        identity(&device_id, Some(&module_id))?,
        ChangeMode::Replace,
        &headers,
        &body,
    )
    .await
}

async fn read(api: &Api, identity: Identity) -> Reply {
    let twin = api.hub.twin(&identity).await?;
    answer(api, &identity, &twin).await
}

async fn change(
    api: &Api,
    Caller(caller): Caller,
    identity: Identity,
    mode: ChangeMode,
    headers: &HeaderMap,
    body: &Bytes,
) -> Reply {
    let change = parse_twin_change(body)?;
    let twin = api
        .hub
        .change_twin(&caller, &identity, mode, change, twin_match(headers))
        .await?;
    answer(api, &identity, &twin).await
}

async fn answer(api: &Api, identity: &Identity, twin: &Twin) -> Reply {
    let record = api.hub.identity(identity).await?;
    let waiting = api.hub.c2d_depth(identity).await?;
    json_tagged(
        &TwinDto::new(&record, twin, waiting),
        &etag::of_twin(twin.version),
    )
}
