//! The hub's registry over HTTPS: module identities of an edge device, and the identities below it (edge.md 3.5, 8, 9).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use holdfast_model::Identity;
use holdfast_model::credential::SymmetricKey;
use holdfast_ports::BoxFuture;
use http::Method;
use percent_encoding::utf8_percent_encode;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::Core;
use crate::https::{Answer, Call, HttpsClient, cloud_error};
use crate::port::{
    Account, CloudError, CloudRegistry, ModuleIdentity, ScopeAuthentication, ScopeIdentity, ScopePage,
};
use crate::token::STRICT;

/// Of module identities.
const MODULES_VERSION: &str = "2017-11-08-preview";
/// Of the scope calls with an auth chain.
const NESTED_VERSION: &str = "2020-06-30-preview";
/// Of the scope calls without one.
const FLAT_VERSION: &str = "2018-08-30-preview";
/// Identities asked for at a time.
const PAGE_SIZE: usize = 100;
/// The edge hub's own module.
const EDGE_HUB: &str = "$edgeHub";

/// Implements [`CloudRegistry`].
pub struct HttpsRegistry {
    core: Arc<Core>,
    account: Account,
    client: Result<HttpsClient, CloudError>,
    /// The hub knows only the calls without an auth chain.
    flat: AtomicBool,
}

impl HttpsRegistry {
    pub(crate) fn new(core: Arc<Core>, account: Account) -> Self {
        let tls = core.tls.of(account.certificate());
        let timeout = core.config.tuning.request_timeout;
        let client = tls
            .map(|tls| HttpsClient::new(core.route.clone(), core.config.ports.https, tls, timeout))
            .map_err(CloudError::Unauthorized);
        HttpsRegistry {
            core,
            account,
            client,
            flat: AtomicBool::new(false),
        }
    }

    /// The modules of a child edge device, asked on its behalf (edge.md section 9).
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn modules_on_behalf(&self, auth_chain: &str) -> Result<Vec<ModuleIdentity>, CloudError> {
        let body = json!({ "authChain": auth_chain });
        let answer = self.on_behalf("getModulesOnTargetDevice", &body, false).await?;
        let modules: Vec<ModuleJson> = read(&expect(answer)?)?;
        Ok(modules.into_iter().map(ModuleIdentity::from).collect())
    }

    /// A module of a child edge device as the hub's JSON text; `None` when there is none.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn module_on_behalf(
        &self,
        auth_chain: &str,
        module_id: &str,
    ) -> Result<Option<Bytes>, CloudError> {
        let body = json!({ "authChain": auth_chain, "targetModuleId": module_id });
        let answer = self.on_behalf("getModuleOnBehalfOf", &body, false).await?;
        if answer.status == 404 {
            return Ok(None);
        }
        expect(answer).map(Some)
    }

    /// Creates or changes a module of a child edge device; `module` is JSON as the child sent it, `update` tells that it
    /// sent `If-Match`. Returns the hub's JSON text.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn put_module_on_behalf(
        &self,
        auth_chain: &str,
        module: &serde_json::value::RawValue,
        update: bool,
    ) -> Result<Bytes, CloudError> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Body<'a> {
            auth_chain: &'a str,
            module: &'a serde_json::value::RawValue,
        }
        let body = Body { auth_chain, module };
        expect(self.on_behalf("putModuleOnBehalfOf", &body, update).await?)
    }

    /// Deletes a module of a child edge device.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn delete_module_on_behalf(&self, auth_chain: &str, module_id: &str) -> Result<(), CloudError> {
        let body = json!({ "authChain": auth_chain, "moduleId": module_id });
        let answer = self.on_behalf("deleteModuleOnBehalfOf", &body, false).await?;
        if answer.status == 404 {
            return Ok(());
        }
        expect(answer).map(|_| ())
    }

    async fn on_behalf<T: Serialize>(
        &self,
        operation: &str,
        body: &T,
        if_match_any: bool,
    ) -> Result<Answer, CloudError> {
        let path = self.edge_hub_path(operation, NESTED_VERSION);
        self.call(Method::POST, path, Some(write(body)?), if_match_any)
            .await
    }

    /// `/devices/{edge device}/modules/$edgeHub/{operation}?api-version=…`
    fn edge_hub_path(&self, operation: &str, version: &str) -> String {
        let device_id = encoded(self.account.signer_identity().device_id());
        format!("/devices/{device_id}/modules/{EDGE_HUB}/{operation}?api-version={version}")
    }

    fn module_path(&self, module_id: &str) -> String {
        let device_id = encoded(self.account.identity.device_id());
        let module_id = encoded(module_id);
        format!("/devices/{device_id}/modules/{module_id}?api-version={MODULES_VERSION}")
    }

    async fn call(
        &self,
        method: Method,
        path: String,
        body: Option<Bytes>,
        if_match_any: bool,
    ) -> Result<Answer, CloudError> {
        let client = self.client.as_ref().map_err(CloudError::clone)?;
        let pass = self.account.pass(&self.core).await?;
        let call = Call {
            method,
            path,
            authorization: pass.map(|pass| pass.token),
            if_match_any,
            user_agent: self.account.product_info.clone(),
            body,
        };
        client
            .call_again(&call, self.core.config.tuning.request_retries)
            .await
    }

    async fn page(&self, auth_chain: &str, continuation: Option<&str>) -> Result<ScopePage, CloudError> {
        if self.flat.load(Ordering::Relaxed) {
            return self.flat_page(continuation).await;
        }
        let body =
            json!({ "pageSize": PAGE_SIZE, "continuationLink": continuation, "authChain": auth_chain });
        let path = self.edge_hub_path("devicesAndModulesInTargetDeviceScope", NESTED_VERSION);
        let answer = self.call(Method::POST, path, Some(write(&body)?), false).await?;
        if answer.status == 404 && self.is_own(auth_chain) && continuation.is_none() {
            let page = self.flat_page(None).await?;
            self.flat.store(true, Ordering::Relaxed);
            return Ok(page);
        }
        read::<ScopeJson>(&expect(answer)?)?.page()
    }

    async fn flat_page(&self, continuation: Option<&str>) -> Result<ScopePage, CloudError> {
        let path = match continuation {
            // A relative URL, fetched as it is (edge.md section 8).
            Some(link) => relative(link),
            None => {
                let path = self.edge_hub_path("devicesAndModulesInDeviceScope", FLAT_VERSION);
                format!("{path}&deviceCount={PAGE_SIZE}&continuationToken=")
            }
        };
        let answer = self.call(Method::GET, path, None, false).await?;
        read::<ScopeJson>(&expect(answer)?)?.page()
    }

    async fn one(&self, target: &Identity, auth_chain: &str) -> Result<Vec<ScopeIdentity>, CloudError> {
        let answer = if self.flat.load(Ordering::Relaxed) {
            self.one_flat(target).await?
        } else {
            let body = json!({
                "targetDeviceId": target.device_id(),
                "targetModuleId": target.module_id(),
                "authChain": auth_chain,
            });
            let path = self.edge_hub_path("getDeviceAndModuleOnBehalfOf", NESTED_VERSION);
            self.call(Method::POST, path, Some(write(&body)?), false).await?
        };
        if answer.status == 404 {
            return Ok(Vec::new());
        }
        Ok(read::<ScopeJson>(&expect(answer)?)?.page()?.identities)
    }

    async fn one_flat(&self, target: &Identity) -> Result<Answer, CloudError> {
        let path = self.edge_hub_path("deviceAndModuleInDeviceScope", FLAT_VERSION);
        let device_id = encoded(target.device_id());
        let module_id = encoded(target.module_id().unwrap_or_default());
        let path = format!("{path}&targetDeviceId={device_id}&targetModuleId={module_id}");
        self.call(Method::GET, path, None, false).await
    }

    /// Whether the chain is the edge device's own.
    fn is_own(&self, auth_chain: &str) -> bool {
        auth_chain == self.account.signer_identity().device_id()
    }

    async fn put_module(&self, module_id: &str, body: Bytes, update: bool) -> Result<Answer, CloudError> {
        self.call(Method::PUT, self.module_path(module_id), Some(body), update)
            .await
    }
}

impl CloudRegistry for HttpsRegistry {
    fn modules(&self) -> BoxFuture<'_, Result<Vec<ModuleIdentity>, CloudError>> {
        Box::pin(async {
            let device_id = encoded(self.account.identity.device_id());
            let path = format!("/devices/{device_id}/modules?api-version={MODULES_VERSION}");
            let answer = self.call(Method::GET, path, None, false).await?;
            let modules: Vec<ModuleJson> = read(&expect(answer)?)?;
            Ok(modules.into_iter().map(ModuleIdentity::from).collect())
        })
    }

    fn create_module<'a>(
        &'a self,
        module_id: &'a str,
        managed_by: &'a str,
    ) -> BoxFuture<'a, Result<ModuleIdentity, CloudError>> {
        Box::pin(async move {
            let body = json!({
                "moduleId": module_id,
                "deviceId": self.account.identity.device_id(),
                "managedBy": managed_by,
            });
            let mut answer = self.put_module(module_id, write(&body)?, false).await?;
            if answer.status == 409 {
                answer = self
                    .call(Method::GET, self.module_path(module_id), None, false)
                    .await?;
            }
            read::<ModuleJson>(&expect(answer)?).map(ModuleIdentity::from)
        })
    }

    fn set_module_keys<'a>(
        &'a self,
        module: &'a ModuleIdentity,
        primary: &'a SymmetricKey,
        secondary: &'a SymmetricKey,
    ) -> BoxFuture<'a, Result<ModuleIdentity, CloudError>> {
        Box::pin(async move {
            let body = json!({
                "moduleId": module.module_id,
                "deviceId": self.account.identity.device_id(),
                "generationId": module.generation_id,
                "managedBy": module.managed_by,
                "authentication": {
                    "type": "sas",
                    "symmetricKey": {
                        "primaryKey": primary.reveal(),
                        "secondaryKey": secondary.reveal(),
                    },
                },
            });
            let answer = self.put_module(&module.module_id, write(&body)?, true).await?;
            read::<ModuleJson>(&expect(answer)?).map(ModuleIdentity::from)
        })
    }

    fn delete_module<'a>(&'a self, module_id: &'a str) -> BoxFuture<'a, Result<(), CloudError>> {
        Box::pin(async move {
            let path = self.module_path(module_id);
            let answer = self.call(Method::DELETE, path, None, true).await?;
            if answer.status == 404 {
                return Ok(());
            }
            expect(answer).map(|_| ())
        })
    }

    fn scope_page<'a>(
        &'a self,
        _target: &'a str,
        auth_chain: &'a str,
        continuation: Option<&'a str>,
    ) -> BoxFuture<'a, Result<ScopePage, CloudError>> {
        Box::pin(self.page(auth_chain, continuation))
    }

    fn scope_identity<'a>(
        &'a self,
        target: &'a Identity,
        auth_chain: &'a str,
    ) -> BoxFuture<'a, Result<Vec<ScopeIdentity>, CloudError>> {
        Box::pin(self.one(target, auth_chain))
    }
}

fn encoded(id: &str) -> String {
    utf8_percent_encode(id, STRICT).to_string()
}

/// Path and query of a link, whatever host it names: links are followed at the host that gave them.
fn relative(link: &str) -> String {
    let rest = match link.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("/", |at| &rest[at..]),
        None => link,
    };
    if rest.starts_with('/') {
        rest.to_owned()
    } else {
        format!("/{rest}")
    }
}

fn expect(answer: Answer) -> Result<Bytes, CloudError> {
    match answer.status {
        200..=299 => Ok(answer.body),
        status => Err(cloud_error(status, &answer.body)),
    }
}

fn write<T: Serialize>(body: &T) -> Result<Bytes, CloudError> {
    let bytes = serde_json::to_vec(body).map_err(|error| CloudError::Refused {
        status: 400,
        message: error.to_string(),
    })?;
    Ok(bytes.into())
}

/// An answer that is no JSON of the expected shape is taken for a proxy's, so that it is asked for again later.
fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, CloudError> {
    serde_json::from_slice(body)
        .map_err(|error| CloudError::Unreachable(format!("the answer cannot be read: {error}")))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ModuleJson {
    module_id: String,
    #[serde(default)]
    generation_id: Option<String>,
    #[serde(default)]
    managed_by: Option<String>,
    #[serde(default)]
    etag: Option<String>,
}

impl From<ModuleJson> for ModuleIdentity {
    fn from(json: ModuleJson) -> Self {
        ModuleIdentity {
            module_id: json.module_id,
            generation_id: json.generation_id.unwrap_or_default(),
            managed_by: json.managed_by.unwrap_or_default(),
            etag: json.etag.unwrap_or_default(),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ScopeJson {
    #[serde(default)]
    devices: Option<Vec<DeviceJson>>,
    #[serde(default)]
    modules: Option<Vec<ScopeModuleJson>>,
    #[serde(default)]
    continuation_link: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DeviceJson {
    device_id: String,
    #[serde(default)]
    generation_id: Option<String>,
    #[serde(default)]
    status: Option<String>,
    #[serde(default)]
    authentication: Option<AuthenticationJson>,
    #[serde(default)]
    capabilities: Option<CapabilitiesJson>,
    #[serde(default)]
    device_scope: Option<String>,
    #[serde(default)]
    parent_scopes: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ScopeModuleJson {
    module_id: String,
    device_id: String,
    #[serde(default)]
    generation_id: Option<String>,
    #[serde(default)]
    authentication: Option<AuthenticationJson>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct CapabilitiesJson {
    iot_edge: bool,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct AuthenticationJson {
    #[serde(rename = "type")]
    kind: Option<String>,
    symmetric_key: Option<KeysJson>,
    x509_thumbprint: Option<ThumbprintsJson>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct KeysJson {
    primary_key: Option<SymmetricKey>,
    secondary_key: Option<SymmetricKey>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ThumbprintsJson {
    primary_thumbprint: Option<String>,
    secondary_thumbprint: Option<String>,
}

impl AuthenticationJson {
    fn into_model(self) -> ScopeAuthentication {
        let kind = self.kind.as_deref().unwrap_or("sas").to_ascii_lowercase();
        match (kind.as_str(), self.symmetric_key) {
            ("certificateauthority", _) => ScopeAuthentication::Authority,
            ("selfsigned", _) => {
                let thumbprints = self.x509_thumbprint.unwrap_or_default();
                ScopeAuthentication::Thumbprints {
                    primary: thumbprints.primary_thumbprint.unwrap_or_default(),
                    secondary: thumbprints.secondary_thumbprint.unwrap_or_default(),
                }
            }
            (
                "sas",
                Some(KeysJson {
                    primary_key: Some(primary),
                    secondary_key,
                }),
            ) => ScopeAuthentication::Keys {
                secondary: secondary_key.unwrap_or_else(|| primary.clone()),
                primary,
            },
            _ => ScopeAuthentication::None,
        }
    }
}

impl ScopeJson {
    fn page(self) -> Result<ScopePage, CloudError> {
        let unusable = |error: holdfast_model::Error| {
            CloudError::Unreachable(format!("the answer names an unusable id: {error}"))
        };
        let mut identities = Vec::new();
        for device in self.devices.unwrap_or_default() {
            identities.push(ScopeIdentity {
                identity: Identity::device(&device.device_id).map_err(unusable)?,
                generation_id: device.generation_id.unwrap_or_default(),
                enabled: device
                    .status
                    .is_none_or(|status| status.eq_ignore_ascii_case("enabled")),
                authentication: device.authentication.unwrap_or_default().into_model(),
                iot_edge: device.capabilities.unwrap_or_default().iot_edge,
                device_scope: device.device_scope.filter(|scope| !scope.is_empty()),
                parent_scopes: device.parent_scopes.unwrap_or_default(),
            });
        }
        for module in self.modules.unwrap_or_default() {
            identities.push(ScopeIdentity {
                identity: Identity::module(&module.device_id, &module.module_id).map_err(unusable)?,
                generation_id: module.generation_id.unwrap_or_default(),
                enabled: true,
                authentication: module.authentication.unwrap_or_default().into_model(),
                iot_edge: false,
                device_scope: None,
                parent_scopes: Vec::new(),
            });
        }
        Ok(ScopePage {
            identities,
            continuation: self.continuation_link.filter(|link| !link.is_empty()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_read() {
        let json = br#"{
            "devices": [
                {"deviceId":"e1","generationId":"7","status":"enabled","authentication":{"type":"sas",
                 "symmetricKey":{"primaryKey":"MDEyMzQ1Njc4OWFiY2RlZg==","secondaryKey":"MDEyMzQ1Njc4OWFiY2RlZg=="}},
                 "capabilities":{"iotEdge":true},"deviceScope":"ms-azure-iot-edge://e1-7","parentScopes":["p"]},
                {"deviceId":"l","status":"disabled","authentication":{"type":"selfSigned","symmetricKey":{"primaryKey":null},
                 "x509Thumbprint":{"primaryThumbprint":"AA","secondaryThumbprint":"BB"}}},
                {"deviceId":"c","authentication":{"type":"certificateAuthority"}}
            ],
            "modules": [{"moduleId":"m","deviceId":"e1","authentication":{"type":"none"}}],
            "continuationLink": ""
        }"#;
        let page = read::<ScopeJson>(json).expect("read").page().expect("a page");
        let [edge, leaf, signed, module] = page.identities.as_slice() else {
            panic!("{page:?}");
        };
        assert!(edge.iot_edge && edge.enabled);
        assert!(matches!(edge.authentication, ScopeAuthentication::Keys { .. }));
        assert_eq!(edge.parent_scopes, ["p"]);
        assert!(!leaf.enabled);
        assert!(
            matches!(&leaf.authentication, ScopeAuthentication::Thumbprints { primary, .. } if primary == "AA")
        );
        assert_eq!(signed.authentication, ScopeAuthentication::Authority);
        assert_eq!(module.identity.as_str(), "e1/m");
        assert_eq!(module.authentication, ScopeAuthentication::None);
        assert_eq!(page.continuation, None);
    }

    #[test]
    fn links_are_followed_where_they_came_from() {
        assert_eq!(relative("/devices/x?y"), "/devices/x?y");
        assert_eq!(relative("devices/x"), "/devices/x");
        assert_eq!(relative("https://elsewhere:1/devices/x"), "/devices/x");
    }
}
