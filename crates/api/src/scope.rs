//! What edge hubs ask and do: the identities below their edge device, and modules of edge devices below it (REST contract,
//! section 14.1; edge contract, sections 8 and 9). Only the module `$edgeHub` of the edge device in the path is let in.

use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::http::HeaderMap;
use holdfast_hub::{ScopePart, ServiceCaller};
use holdfast_model::{Error, ErrorCode, Identity};
use holdfast_wire::dto::{
    IdentityOnBehalfOfRequest, ModuleDto, ModuleOnBehalfOfRequest, PutModuleOnBehalfOfRequest, ScopeResult,
    TargetScopeRequest,
};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use crate::Api;
use crate::extract::{Caller, body, identity, identity_match};
use crate::identities::{answer_module, device_dto, module_spec};
use crate::reply::{Failure, Reply, json, no_content};

/// Which page of a scope.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PageQuery {
    /// Children at a time, 1 to 1000; anything else means 1000.
    device_count: Option<String>,
    /// From the last page's link.
    continuation_token: Option<String>,
    /// Repeated in links.
    #[serde(rename = "api-version")]
    api_version: Option<String>,
}

/// Which identity of a scope.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TargetQuery {
    /// Device.
    target_device_id: Option<String>,
    /// Module; empty for the device itself.
    target_module_id: Option<String>,
}

/// Lists what is in the scope of the calling edge device, with keys. Only its own `$edgeHub`.
#[utoipa::path(get, path = "/devices/{id}/modules/{mid}/devicesAndModulesInDeviceScope", tag = "Edge scope",
    params(PageQuery), responses((status = 200, body = ScopeResult)))]
pub(crate) async fn list_own(
    State(api): State<Api>,
    Caller(caller): Caller,
    Query(query): Query<PageQuery>,
) -> Reply {
    let edge = actor(&caller)?;
    let count = query.device_count.unwrap_or_default();
    let limit = count.parse().unwrap_or(0);
    let after = query.continuation_token.filter(|token| !token.is_empty());
    let part = api.hub.scope_of(&edge, after.as_deref(), limit).await?;
    let link = part.next.as_ref().map(|next| {
        let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        format!(
            "/devices/{}/modules/%24edgeHub/devicesAndModulesInDeviceScope?deviceCount={limit}&continuationToken={}&api-version={}",
            encoded(edge.device_id()),
            encoded(next),
            query.api_version.as_deref().unwrap_or_default(),
        )
    });
    answer(&api, part, link).await
}

/// One identity in the scope of the calling edge device. Only its own `$edgeHub`.
#[utoipa::path(get, path = "/devices/{id}/modules/{mid}/deviceAndModuleInDeviceScope", tag = "Edge scope",
    params(TargetQuery), responses((status = 200, body = ScopeResult, description = "empty when it is not there")))]
pub(crate) async fn get_own(
    State(api): State<Api>,
    Caller(caller): Caller,
    Query(query): Query<TargetQuery>,
) -> Reply {
    let edge = api
        .hub
        .edge_in_chain(&actor(&caller)?, actor(&caller)?.as_str())
        .await?;
    let target = target(
        query.target_device_id.as_deref(),
        query.target_module_id.as_deref(),
    )?;
    let part = api.hub.in_scope_of(&edge, &target).await?;
    answer(&api, part, None).await
}

/// Lists what is in the scope of an edge device at or below the calling one, with keys. Only its own `$edgeHub`.
#[utoipa::path(post, path = "/devices/{id}/modules/{mid}/devicesAndModulesInTargetDeviceScope",
    tag = "Edge scope", request_body = TargetScopeRequest, responses((status = 200, body = ScopeResult),
    (status = 401, description = "the chain does not lead from the target to the caller")))]
pub(crate) async fn list_target(State(api): State<Api>, Caller(caller): Caller, bytes: Bytes) -> Reply {
    let request: TargetScopeRequest = body(&bytes)?;
    let edge = edge_of(&api, &caller, &request.auth_chain).await?;
    let limit = usize::try_from(request.page_size).unwrap_or(0);
    let after = request.continuation_link.filter(|link| !link.is_empty());
    let part = api.hub.scope_of(&edge.identity, after.as_deref(), limit).await?;
    let link = part.next.clone();
    answer(&api, part, link).await
}

/// One identity in the scope of an edge device at or below the calling one. Only its own `$edgeHub`.
#[utoipa::path(post, path = "/devices/{id}/modules/{mid}/getDeviceAndModuleOnBehalfOf", tag = "Edge scope",
    request_body = IdentityOnBehalfOfRequest,
    responses((status = 200, body = ScopeResult, description = "empty when it is not there")))]
pub(crate) async fn get_on_behalf(State(api): State<Api>, Caller(caller): Caller, bytes: Bytes) -> Reply {
    let request: IdentityOnBehalfOfRequest = body(&bytes)?;
    let edge = edge_of(&api, &caller, &request.auth_chain).await?;
    let target = target(
        Some(&request.target_device_id),
        request.target_module_id.as_deref(),
    )?;
    let part = api.hub.in_scope_of(&edge, &target).await?;
    answer(&api, part, None).await
}

/// Creates a module of an edge device at or below the calling one, or changes it when If-Match is given. Only its own
/// `$edgeHub`.
#[utoipa::path(post, path = "/devices/{id}/modules/{mid}/putModuleOnBehalfOf", tag = "Edge scope",
    request_body = PutModuleOnBehalfOfRequest, responses((status = 200, body = ModuleDto)))]
pub(crate) async fn put_module(
    State(api): State<Api>,
    Caller(caller): Caller,
    headers: HeaderMap,
    bytes: Bytes,
) -> Reply {
    put_module_of(&api, &caller, &headers, &bytes).await
}

/// As the POST, for the edge hubs that send PUT.
#[utoipa::path(put, path = "/devices/{id}/modules/{mid}/putModuleOnBehalfOf", tag = "Edge scope",
    request_body = PutModuleOnBehalfOfRequest, responses((status = 200, body = ModuleDto)))]
pub(crate) async fn put_module_as_put(
    State(api): State<Api>,
    Caller(caller): Caller,
    headers: HeaderMap,
    bytes: Bytes,
) -> Reply {
    put_module_of(&api, &caller, &headers, &bytes).await
}

async fn put_module_of(api: &Api, caller: &ServiceCaller, headers: &HeaderMap, bytes: &Bytes) -> Reply {
    let request: PutModuleOnBehalfOfRequest = body(bytes)?;
    let edge = edge_of(api, caller, &request.auth_chain).await?;
    let device_id = edge.identity.device_id();
    let module_id = required("module.moduleId", request.module.module_id.as_deref())?;
    let module = identity(device_id, Some(module_id))?;
    let changes = request.module.changes(device_id, module_id)?;
    let caller = ServiceCaller::Device(edge.identity.clone());
    let record = api
        .hub
        .put_identity(&caller, &module, &module_spec(changes), identity_match(headers))
        .await?;
    answer_module(&record)
}

/// Reads a module of an edge device at or below the calling one, with its keys. Only its own `$edgeHub`.
#[utoipa::path(post, path = "/devices/{id}/modules/{mid}/getModuleOnBehalfOf", tag = "Edge scope",
    request_body = ModuleOnBehalfOfRequest, responses((status = 200, body = ModuleDto)))]
pub(crate) async fn get_module(State(api): State<Api>, Caller(caller): Caller, bytes: Bytes) -> Reply {
    let request: ModuleOnBehalfOfRequest = body(&bytes)?;
    let edge = edge_of(&api, &caller, &request.auth_chain).await?;
    let module_id = required("targetModuleId", request.target_module_id.as_deref())?;
    let module = identity(edge.identity.device_id(), Some(module_id))?;
    answer_module(&api.hub.identity(&module).await?)
}

/// Lists the modules of an edge device at or below the calling one, with their keys. Only its own `$edgeHub`.
#[utoipa::path(post, path = "/devices/{id}/modules/{mid}/getModulesOnTargetDevice", tag = "Edge scope",
    request_body = ModuleOnBehalfOfRequest, responses((status = 200, body = Vec<ModuleDto>)))]
pub(crate) async fn list_modules(State(api): State<Api>, Caller(caller): Caller, bytes: Bytes) -> Reply {
    let request: ModuleOnBehalfOfRequest = body(&bytes)?;
    let edge = edge_of(&api, &caller, &request.auth_chain).await?;
    let records = api.hub.list_modules(&edge.identity).await?;
    json(&records.iter().map(ModuleDto::from_record).collect::<Vec<_>>())
}

/// Deletes a module of an edge device at or below the calling one. Only its own `$edgeHub`.
#[utoipa::path(post, path = "/devices/{id}/modules/{mid}/deleteModuleOnBehalfOf", tag = "Edge scope",
    request_body = ModuleOnBehalfOfRequest, responses((status = 204, description = "deleted")))]
pub(crate) async fn delete_module(
    State(api): State<Api>,
    Caller(caller): Caller,
    headers: HeaderMap,
    bytes: Bytes,
) -> Reply {
    let request: ModuleOnBehalfOfRequest = body(&bytes)?;
    let edge = edge_of(&api, &caller, &request.auth_chain).await?;
    let module_id = required("moduleId", request.module_id.as_deref())?;
    let module = identity(edge.identity.device_id(), Some(module_id))?;
    api.hub.delete_identity(&module, identity_match(&headers)).await?;
    no_content()
}

/// The edge device whose edge hub calls.
fn actor(caller: &ServiceCaller) -> Result<Identity, Failure> {
    match caller {
        ServiceCaller::Device(device) => Ok(device.clone()),
        // The access check lets nobody else in.
        ServiceCaller::Policy { .. } | ServiceCaller::Local => {
            Err(Error::new(ErrorCode::IotHubUnauthorizedAccess, "Unauthorized").into())
        }
    }
}

async fn edge_of(
    api: &Api,
    caller: &ServiceCaller,
    chain: &str,
) -> Result<holdfast_model::registry::IdentityRecord, Failure> {
    let actor = actor(caller)?;
    Ok(api
        .hub
        .edge_in_chain(&actor, required("authChain", Some(chain))?)
        .await?)
}

fn required<'a>(member: &str, value: Option<&'a str>) -> Result<&'a str, Failure> {
    let missing = || Error::new(ErrorCode::ArgumentInvalid, format!("the body lacks {member}"));
    Ok(value.filter(|value| !value.is_empty()).ok_or_else(missing)?)
}

fn target(device_id: Option<&str>, module_id: Option<&str>) -> Result<Identity, Failure> {
    let device_id = required("targetDeviceId", device_id)?;
    identity(device_id, module_id.filter(|module_id| !module_id.is_empty()))
}

async fn answer(api: &Api, part: ScopePart, continuation_link: Option<String>) -> Reply {
    let mut devices = Vec::with_capacity(part.devices.len());
    for record in &part.devices {
        devices.push(device_dto(api, record).await?);
    }
    json(&ScopeResult {
        devices,
        modules: part.modules.iter().map(ModuleDto::from_record).collect(),
        continuation_link,
    })
}
