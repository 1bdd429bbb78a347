//! HTTPS routes of the edge hub besides those of devices: methods between modules (edge.md section 11), and the registry of
//! child edge devices, whose calls are checked here and passed on to the hub on their behalf (sections 8 and 9).

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use holdfast_broker::Broker;
use holdfast_model::{Error, ErrorCode, Identity, limits};
use holdfast_ports::gateway::{AccessRequest, Admitted, Credential, DeviceGateway as _, Protocol};
use holdfast_upstream::HttpsRegistry;
use holdfast_upstream::port::{
    CloudError, CloudRegistry as _, ModuleIdentity, ScopeAuthentication, ScopeIdentity, ScopePage,
};
use holdfast_wire::dto::{MethodRequestDto, method_response_json};
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

/// Header with the caller of a method, `<edge device>/<module>`.
const CALLER: &str = "x-ms-edge-moduleid";
/// Id of an edge hub.
const EDGE_HUB: &str = "$edgeHub";
/// Largest body: a method's payload with its wrapping.
const BODY_BYTES_MAX: usize = limits::METHOD_BYTES_MAX + 16 * 1024;
/// For a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// Levels of edge devices below one another.
const CHAIN_MAX: usize = 6;

/// What answers.
#[derive(Clone)]
pub struct HubApi {
    /// The engine.
    pub broker: Arc<Broker>,
    /// This device.
    pub device_id: Arc<str>,
    /// The hub above, asked as this edge hub; there may be none.
    pub registry: Option<Arc<HttpsRegistry>>,
}

/// The routes.
pub fn router(api: HubApi) -> Router {
    Router::new()
        .route("/twins/{device}/methods", post(device_method))
        .route("/twins/{device}/modules/{module}/methods", post(module_method))
        .route("/devices/{device}/modules", get(list_modules))
        .route(
            "/devices/{device}/modules/{module}",
            get(get_module).put(put_module).delete(delete_module),
        )
        .route("/devices/{device}/modules/{module}/{operation}", post(on_behalf))
        .with_state(api)
}

/// An answer that is not a success.
struct Refusal {
    status: u16,
    message: String,
    /// Name of the member with the words.
    member: &'static str,
}

impl Refusal {
    fn new(status: u16, message: impl Into<String>) -> Self {
        Refusal {
            status,
            message: message.into(),
            member: "message",
        }
    }

    /// In the form of registry calls.
    fn of_registry(mut self) -> Self {
        self.member = "errorMessage";
        self
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = json!({ self.member: self.message }).to_string();
        answer(self.status, body.into())
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let status = match error.code {
            ErrorCode::DeviceNotOnline => 404,
            ErrorCode::DeviceConnectionClosedRemotely | ErrorCode::GatewayTimeout => 504,
            code => holdfast_wire::error::row(code).http_status,
        };
        Refusal::new(status, error.to_string())
    }
}

impl From<CloudError> for Refusal {
    fn from(error: CloudError) -> Self {
        let status = match &error {
            CloudError::Unreachable(_) => 503,
            CloudError::Unauthorized(_) => 401,
            CloudError::Refused { status, .. } => *status,
        };
        Refusal::new(status, error.to_string()).of_registry()
    }
}

fn answer(status: u16, body: Bytes) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (
        status,
        [(header::CONTENT_TYPE, "application/json; charset=utf-8")],
        body,
    )
        .into_response()
}

async fn read(body: Body) -> Result<Bytes, Refusal> {
    let reading = axum::body::to_bytes(body, BODY_BYTES_MAX);
    match tokio::time::timeout(BODY_TIMEOUT, reading).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(_)) => Err(Refusal::new(413, "the body is too large or broke off")),
        Err(_) => Err(Refusal::new(408, "the body did not come in time")),
    }
}

fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body)
        .map_err(|error| Refusal::new(400, format!("the body cannot be read: {error}")))
}

impl HubApi {
    /// Checks the token of a call.
    async fn admit(
        &self,
        device_id: &str,
        module_id: Option<&str>,
        headers: &HeaderMap,
    ) -> Result<Admitted, Refusal> {
        let token = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        let request = AccessRequest {
            device_id,
            module_id,
            credential: token.map_or(Credential::None, Credential::Sas),
            auth_chain: None,
            protocol: Protocol::Https,
        };
        self.broker
            .admit(request)
            .await
            .map_err(|error| Refusal::new(401, error.to_string()))
    }

    async fn method(&self, target: Identity, headers: &HeaderMap, body: Body) -> Result<Response, Refusal> {
        let caller = headers
            .get(CALLER)
            .and_then(|value| value.to_str().ok())
            .and_then(|text| percent_decode_str(text).decode_utf8().ok())
            .ok_or_else(|| Refusal::new(400, "the header x-ms-edge-moduleId is missing"))?;
        let (device_id, module_id) = caller
            .split_once('/')
            .filter(|(device, module)| !device.is_empty() && !module.is_empty() && !module.contains('/'))
            .ok_or_else(|| Refusal::new(400, "the header x-ms-edge-moduleId is not <device>/<module>"))?;
        if *device_id != *self.device_id {
            return Err(Refusal::new(
                401,
                "only modules of this edge device may call methods",
            ));
        }
        self.admit(device_id, Some(module_id), headers).await?;
        let body = read(body).await?;
        let call = parse::<MethodRequestDto>(&body)?.call()?;
        let response = self.broker.invoke_method(&caller, &target, call).await?;
        Ok(answer(200, method_response_json(&response)?.into()))
    }

    fn registry(&self) -> Result<&HttpsRegistry, Refusal> {
        let none = || Refusal::new(503, "there is no hub above this edge hub").of_registry();
        self.registry.as_deref().ok_or_else(none)
    }

    /// The chain of a child by which the hub is asked: `child;this device`.
    async fn child(&self, device_id: &str, headers: &HeaderMap) -> Result<String, Refusal> {
        let admitted = self
            .admit(device_id, None, headers)
            .await
            .map_err(Refusal::of_registry)?;
        let child = admitted.origin.identity.device_id();
        Ok(format!("{child};{}", self.device_id))
    }
}

async fn device_method(
    State(api): State<HubApi>,
    Path(device): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    api.method(Identity::device(&device)?, &headers, body).await
}

async fn module_method(
    State(api): State<HubApi>,
    Path((device, module)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    api.method(Identity::module(&device, &module)?, &headers, body)
        .await
}

async fn list_modules(
    State(api): State<HubApi>,
    Path(device): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let chain = api.child(&device, &headers).await?;
    let modules = api.registry()?.modules_on_behalf(&chain).await?;
    Ok(answer(200, modules_json(&device, &modules).to_string().into()))
}

async fn get_module(
    State(api): State<HubApi>,
    Path((device, module)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let chain = api.child(&device, &headers).await?;
    match api.registry()?.module_on_behalf(&chain, &module).await? {
        Some(text) => Ok(answer(200, text)),
        None => Err(Refusal::new(404, format!("there is no module {module}")).of_registry()),
    }
}

async fn put_module(
    State(api): State<HubApi>,
    Path((device, module)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let chain = api.child(&device, &headers).await?;
    let body = read(body).await.map_err(Refusal::of_registry)?;
    let given: &RawValue = parse(&body).map_err(Refusal::of_registry)?;
    check_names(given, &device, &module)?;
    let update = headers.contains_key(header::IF_MATCH);
    let text = api
        .registry()?
        .put_module_on_behalf(&chain, given, update)
        .await?;
    Ok(answer(200, text))
}

/// The module in the body must be the one of the path, for which the caller was checked.
fn check_names(given: &RawValue, device_id: &str, module_id: &str) -> Result<(), Refusal> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Names {
        device_id: String,
        module_id: String,
    }
    let names: Names = parse(given.get().as_bytes()).map_err(Refusal::of_registry)?;
    if names.device_id == device_id && names.module_id == module_id {
        return Ok(());
    }
    Err(Refusal::new(
        400,
        "deviceId and moduleId of the body are not those of the address",
    )
    .of_registry())
}

async fn delete_module(
    State(api): State<HubApi>,
    Path((device, module)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let chain = api.child(&device, &headers).await?;
    api.registry()?.delete_module_on_behalf(&chain, &module).await?;
    Ok(answer(204, Bytes::new()))
}

/// Body of calls that a child edge hub makes for itself or for what is below it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OnBehalf<'a> {
    auth_chain: String,
    #[serde(borrow)]
    module: Option<&'a RawValue>,
    #[serde(alias = "moduleId")]
    target_module_id: Option<String>,
    target_device_id: Option<String>,
    continuation_link: Option<String>,
}

/// Calls of a child's edge hub to its own hub, which is this device for it.
async fn on_behalf(
    State(api): State<HubApi>,
    Path((device, module, operation)): Path<(String, String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    if module != EDGE_HUB {
        return Err(Refusal::new(404, "not found").of_registry());
    }
    api.admit(&device, Some(EDGE_HUB), &headers)
        .await
        .map_err(Refusal::of_registry)?;
    let body = read(body).await.map_err(Refusal::of_registry)?;
    let call: OnBehalf<'_> = parse(&body).map_err(Refusal::of_registry)?;
    let chain = longer_chain(&call.auth_chain, &device, &api.device_id)?;
    let registry = api.registry()?;
    let needed = |name: &str| Refusal::new(400, format!("{name} is missing")).of_registry();
    let module_id = call
        .target_module_id
        .as_deref()
        .filter(|module| !module.is_empty());
    let target_device = chain.split(';').next().unwrap_or_default().to_owned();
    match operation.as_str() {
        "putModuleOnBehalfOf" => {
            let given = call.module.ok_or_else(|| needed("module"))?;
            let update = headers.contains_key(header::IF_MATCH);
            let text = registry.put_module_on_behalf(&chain, given, update).await?;
            Ok(answer(200, text))
        }
        "getModuleOnBehalfOf" => {
            let module_id = module_id.ok_or_else(|| needed("targetModuleId"))?;
            match registry.module_on_behalf(&chain, module_id).await? {
                Some(text) => Ok(answer(200, text)),
                None => Err(Refusal::new(404, format!("there is no module {module_id}")).of_registry()),
            }
        }
        "getModulesOnTargetDevice" => {
            let modules = registry.modules_on_behalf(&chain).await?;
            Ok(answer(
                200,
                modules_json(&target_device, &modules).to_string().into(),
            ))
        }
        "deleteModuleOnBehalfOf" => {
            let module_id = module_id.ok_or_else(|| needed("moduleId"))?;
            registry.delete_module_on_behalf(&chain, module_id).await?;
            Ok(answer(204, Bytes::new()))
        }
        "devicesAndModulesInTargetDeviceScope" => {
            let link = call.continuation_link.as_deref().filter(|link| !link.is_empty());
            let page = registry.scope_page(&target_device, &chain, link).await?;
            Ok(answer(200, scope_json(&page).to_string().into()))
        }
        "getDeviceAndModuleOnBehalfOf" => {
            let device_id = call.target_device_id.ok_or_else(|| needed("targetDeviceId"))?;
            let target = Identity::new(&device_id, module_id)?;
            let identities = registry.scope_identity(&target, &chain).await?;
            let page = ScopePage {
                identities,
                continuation: None,
            };
            Ok(answer(200, scope_json(&page).to_string().into()))
        }
        _ => Err(Refusal::new(404, "not found").of_registry()),
    }
}

/// `target;…;child` with this device behind. The last link must be the caller: nobody speaks for his neighbours.
fn longer_chain(chain: &str, caller: &str, own: &str) -> Result<String, Refusal> {
    let links: Vec<&str> = chain.split(';').collect();
    let sound = links.len() < CHAIN_MAX && links.iter().all(|link| !link.is_empty() && *link != own);
    if sound && links.last() == Some(&caller) {
        return Ok(format!("{chain};{own}"));
    }
    Err(Refusal::new(401, "the auth chain does not end with the caller").of_registry())
}

fn modules_json(device_id: &str, modules: &[ModuleIdentity]) -> Value {
    let tell = |module: &ModuleIdentity| {
        json!({
            "moduleId": module.module_id,
            "deviceId": device_id,
            "generationId": module.generation_id,
            "managedBy": module.managed_by,
            "etag": module.etag,
        })
    };
    modules.iter().map(tell).collect()
}

fn scope_json(page: &ScopePage) -> Value {
    let (modules, devices): (Vec<_>, Vec<_>) = page
        .identities
        .iter()
        .partition(|identity| identity.identity.is_module());
    json!({
        "devices": devices.into_iter().map(device_json).collect::<Value>(),
        "modules": modules.into_iter().map(module_json).collect::<Value>(),
        "continuationLink": page.continuation,
    })
}

fn device_json(device: &ScopeIdentity) -> Value {
    json!({
        "deviceId": device.identity.device_id(),
        "generationId": device.generation_id,
        "status": if device.enabled { "enabled" } else { "disabled" },
        "authentication": authentication_json(&device.authentication),
        "capabilities": { "iotEdge": device.iot_edge },
        "deviceScope": device.device_scope,
        "parentScopes": device.parent_scopes,
    })
}

fn module_json(module: &ScopeIdentity) -> Value {
    json!({
        "moduleId": module.identity.module_id(),
        "deviceId": module.identity.device_id(),
        "generationId": module.generation_id,
        "authentication": authentication_json(&module.authentication),
    })
}

fn authentication_json(authentication: &ScopeAuthentication) -> Value {
    match authentication {
        ScopeAuthentication::Keys { primary, secondary } => json!({
            "type": "sas",
            "symmetricKey": { "primaryKey": primary.reveal(), "secondaryKey": secondary.reveal() },
        }),
        ScopeAuthentication::Thumbprints { primary, secondary } => json!({
            "type": "selfSigned",
            "x509Thumbprint": { "primaryThumbprint": primary, "secondaryThumbprint": secondary },
        }),
        ScopeAuthentication::Authority => json!({ "type": "certificateAuthority" }),
        ScopeAuthentication::None => json!({ "type": "none" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_end_with_who_calls() {
        let grown = |chain| longer_chain(chain, "child", "own").map_err(|refusal| refusal.status);
        assert_eq!(grown("child"), Ok("child;own".to_owned()));
        assert_eq!(grown("leaf;child"), Ok("leaf;child;own".to_owned()));
        for bad in ["", "leaf", "child;leaf", ";child", "own;child", "a;b;c;d;e;child"] {
            assert_eq!(grown(bad), Err(401), "{bad}");
        }
    }
}
