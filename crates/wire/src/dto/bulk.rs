//! Bulk registry operations and import/export entries (REST contract, section 5.4).

use holdfast_model::{Error, ErrorCode};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{
    AuthenticationDto, CapabilitiesDto, DeviceChanges, DevicePut, ModuleChanges, ModulePut, StatusDto,
    null_as_default, read_any_case,
};
use crate::error;

/// What to do with an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum ImportMode {
    /// Create, or replace what exists.
    #[default]
    CreateOrUpdate,
    /// Create; an error when it exists.
    Create,
    /// Replace; an error when it does not exist.
    Update,
    /// Replace when `eTag` matches.
    #[serde(rename = "updateIfMatchETag")]
    UpdateIfMatchETag,
    /// Create, or replace when `eTag` matches.
    #[serde(rename = "createOrUpdateIfMatchETag")]
    CreateOrUpdateIfMatchETag,
    /// Delete.
    Delete,
    /// Delete when `eTag` matches.
    #[serde(rename = "deleteIfMatchETag")]
    DeleteIfMatchETag,
    /// Change the twin only.
    UpdateTwin,
    /// Change the twin when `twinETag` matches.
    #[serde(rename = "updateTwinIfMatchETag")]
    UpdateTwinIfMatchETag,
}

impl ImportMode {
    pub(super) const SPELLINGS: &'static [(&'static str, Self)] = &[
        ("createOrUpdate", ImportMode::CreateOrUpdate),
        ("create", ImportMode::Create),
        ("update", ImportMode::Update),
        ("updateIfMatchETag", ImportMode::UpdateIfMatchETag),
        ("createOrUpdateIfMatchETag", ImportMode::CreateOrUpdateIfMatchETag),
        ("delete", ImportMode::Delete),
        ("deleteIfMatchETag", ImportMode::DeleteIfMatchETag),
        ("updateTwin", ImportMode::UpdateTwin),
        ("updateTwinIfMatchETag", ImportMode::UpdateTwinIfMatchETag),
    ];
}
read_any_case!(ImportMode);

/// Initial twin properties of an entry. `$…` members of a round trip are dropped by the twin functions.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct TwinPropertiesDto {
    /// Desired properties.
    #[schema(value_type = Option<Object>)]
    pub desired: Option<Map<String, Value>>,
    /// Reported properties; written by exports, restored by imports of new identities, ignored by bulk requests.
    #[schema(value_type = Option<Object>)]
    pub reported: Option<Map<String, Value>>,
}

/// One entry of a bulk request, or one line of an import or export file.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ExportImportDevice {
    /// Device id.
    #[serde(deserialize_with = "null_as_default")]
    pub id: String,
    /// Module id, for a module.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub module_id: Option<String>,
    /// Tag of the identity, for the modes that compare it.
    #[serde(rename = "eTag", alias = "etag", skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
    /// What to do; default `createOrUpdate`.
    #[serde(deserialize_with = "null_as_default")]
    pub import_mode: ImportMode,
    /// Whether the device may connect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<StatusDto>,
    /// Free text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status_reason: Option<String>,
    /// How it proves itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authentication: Option<AuthenticationDto>,
    /// Tag of the twin, for the modes that compare it.
    #[serde(
        rename = "twinETag",
        alias = "twinEtag",
        skip_serializing_if = "Option::is_none"
    )]
    pub twin_etag: Option<String>,
    /// Twin tags.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub tags: Option<Map<String, Value>>,
    /// Twin properties.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub properties: Option<TwinPropertiesDto>,
    /// What the device is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<CapabilitiesDto>,
    /// As in [`DevicePut`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_scope: Option<String>,
    /// As in [`DevicePut`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent_scopes: Option<Vec<String>>,
    /// Who manages the module.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub managed_by: Option<String>,
    /// Holdfast: model id that the device announced last; restored by imports of new identities.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_id: Option<String>,
}

impl ExportImportDevice {
    /// What the entry makes of a device.
    ///
    /// # Errors
    /// As [`DevicePut::changes`].
    pub fn device_changes(&self) -> Result<DeviceChanges, Error> {
        let put = DevicePut {
            device_id: None,
            status: self.status,
            status_reason: self.status_reason.clone(),
            authentication: self.authentication.clone(),
            capabilities: self.capabilities,
            device_scope: self.device_scope.clone(),
            parent_scopes: self.parent_scopes.clone(),
        };
        put.changes(&self.id)
    }

    /// What the entry makes of a module.
    ///
    /// # Errors
    /// As [`ModulePut::changes`].
    pub fn module_changes(&self) -> Result<ModuleChanges, Error> {
        let put = ModulePut {
            device_id: None,
            module_id: None,
            managed_by: self.managed_by.clone(),
            authentication: self.authentication.clone(),
        };
        put.changes(&self.id, self.module_id.as_deref().unwrap_or_default())
    }
}

/// Error code in a bulk result: a name that the C# SDK knows, else the number. An unknown name breaks that SDK, an
/// unknown number does not.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum ErrorCodeDto {
    /// Name.
    Name(String),
    /// Number.
    Number(u32),
}

impl From<ErrorCode> for ErrorCodeDto {
    fn from(code: ErrorCode) -> Self {
        let row = error::row(code);
        if row.number_verified {
            ErrorCodeDto::Name(row.name.to_owned())
        } else {
            ErrorCodeDto::Number(row.number)
        }
    }
}

/// One failed entry.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BulkRegistryErrorDto {
    /// Device id.
    pub device_id: String,
    /// Module id, for a module.
    pub module_id: Option<String>,
    /// Code.
    pub error_code: ErrorCodeDto,
    /// Text.
    pub error_status: String,
    /// What was to be done.
    pub operation: ImportMode,
}

impl BulkRegistryErrorDto {
    /// The entry's failure.
    #[must_use]
    pub fn new(entry: &ExportImportDevice, error: &Error) -> Self {
        BulkRegistryErrorDto {
            device_id: entry.id.clone(),
            module_id: entry.module_id.clone(),
            error_code: error.code.into(),
            error_status: error.message.clone(),
            operation: entry.import_mode,
        }
    }
}

/// An entry that was done in part.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BulkRegistryWarningDto {
    /// Device id.
    pub device_id: String,
    /// Always `DeviceRegisteredWithoutTwin`.
    pub warning_code: String,
    /// Text.
    pub warning_status: String,
}

impl BulkRegistryWarningDto {
    /// The identity was created and its twin could not be written.
    #[must_use]
    pub fn without_twin(device_id: &str, text: impl Into<String>) -> Self {
        BulkRegistryWarningDto {
            device_id: device_id.to_owned(),
            warning_code: "DeviceRegisteredWithoutTwin".to_owned(),
            warning_status: text.into(),
        }
    }
}

/// Answer to a bulk request. Sent with status 200 also when entries failed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BulkRegistryOperationResult {
    /// Whether no entry failed.
    pub is_successful: bool,
    /// Failed entries.
    pub errors: Vec<BulkRegistryErrorDto>,
    /// Entries done in part.
    pub warnings: Vec<BulkRegistryWarningDto>,
}

impl BulkRegistryOperationResult {
    /// The result with these errors and warnings.
    #[must_use]
    pub fn new(errors: Vec<BulkRegistryErrorDto>, warnings: Vec<BulkRegistryWarningDto>) -> Self {
        BulkRegistryOperationResult {
            is_successful: errors.is_empty(),
            errors,
            warnings,
        }
    }
}
