//! What edge hubs ask about their scope, and do on behalf of their children (REST contract, section 14.1; edge contract,
//! section 9).

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{DeviceDto, ModuleDto, ModulePut, null_as_default};

/// Body of `POST …/devicesAndModulesInTargetDeviceScope`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TargetScopeRequest {
    /// Children at a time, 1 to 1000; anything else means 1000.
    #[serde(deserialize_with = "null_as_default")]
    pub page_size: i64,
    /// From the last page, for the next one.
    pub continuation_link: Option<String>,
    /// `{target};{parent};…;{actor}`; the target alone when it is the actor.
    #[serde(deserialize_with = "null_as_default")]
    pub auth_chain: String,
}

/// Body of `POST …/getDeviceAndModuleOnBehalfOf`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct IdentityOnBehalfOfRequest {
    /// Device asked for.
    #[serde(deserialize_with = "null_as_default")]
    pub target_device_id: String,
    /// Module asked for, when it is one.
    pub target_module_id: Option<String>,
    /// Leads to the edge device in whose scope it is looked for.
    #[serde(deserialize_with = "null_as_default")]
    pub auth_chain: String,
}

/// Body of `putModuleOnBehalfOf`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PutModuleOnBehalfOfRequest {
    /// Leads to the device of the module.
    #[serde(deserialize_with = "null_as_default")]
    pub auth_chain: String,
    /// The module.
    pub module: ModulePut,
}

/// Body of `getModuleOnBehalfOf`, `deleteModuleOnBehalfOf` and `getModulesOnTargetDevice`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ModuleOnBehalfOfRequest {
    /// Leads to the device of the module.
    #[serde(deserialize_with = "null_as_default")]
    pub auth_chain: String,
    /// The module, where it is read.
    pub target_module_id: Option<String>,
    /// The module, where it is deleted.
    pub module_id: Option<String>,
}

/// Identities in the scope of an edge device. All three members are always there.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScopeResult {
    /// Devices, with their keys.
    pub devices: Vec<DeviceDto>,
    /// Modules, with their keys.
    pub modules: Vec<ModuleDto>,
    /// Where the next page is; `null` on the last one.
    pub continuation_link: Option<String>,
}
