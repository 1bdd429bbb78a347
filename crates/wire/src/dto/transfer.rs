//! Import and export: lines of an export, errors of an import, jobs (REST contract, sections 5.4 and 11).

use holdfast_model::registry::{Authentication, IdentityRecord};
use holdfast_model::twin::Twin;
use holdfast_model::{Error, ErrorCode};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{
    AuthenticationDto, CapabilitiesDto, ErrorCodeDto, PropertiesDto, StatusDto, SymmetricKeyDto, TimeDto,
    invalid, read_any_case,
};
use crate::etag;

/// A line of an export: what [`super::ExportImportDevice`] reads, borrowed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExportLine<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    module_id: Option<&'a str>,
    #[serde(rename = "eTag")]
    etag: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<StatusDto>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status_reason: Option<&'a str>,
    authentication: AuthenticationDto,
    #[serde(rename = "twinETag")]
    twin_etag: String,
    #[serde(skip_serializing_if = "Map::is_empty")]
    tags: &'a Map<String, Value>,
    properties: PropertiesDto<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    capabilities: Option<CapabilitiesDto>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device_scope: Option<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    parent_scopes: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    managed_by: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model_id: Option<&'a str>,
}

impl<'a> ExportLine<'a> {
    /// The line of an identity and its twin; without its keys if `exclude_keys`.
    #[must_use]
    pub fn new(record: &'a IdentityRecord, twin: &'a Twin, exclude_keys: bool) -> Self {
        let mut authentication = AuthenticationDto::from_model(&record.authentication);
        if exclude_keys && matches!(record.authentication, Authentication::Sas { .. }) {
            authentication.symmetric_key = Some(SymmetricKeyDto::default());
        }
        let is_device = !record.identity.is_module();
        ExportLine {
            id: record.identity.device_id(),
            module_id: record.identity.module_id(),
            etag: etag::of_identity(record.version),
            status: is_device.then(|| record.status.into()),
            status_reason: record.status_reason.as_deref(),
            authentication,
            twin_etag: etag::of_twin(twin.version),
            tags: &twin.tags,
            properties: PropertiesDto::new(twin),
            capabilities: is_device.then_some(CapabilitiesDto {
                iot_edge: record.iot_edge,
            }),
            device_scope: record.device_scope.as_deref(),
            parent_scopes: &record.parent_scopes,
            managed_by: record.managed_by.as_deref(),
            model_id: twin.model_id.as_deref(),
        }
    }
}

/// A line of an import that was not carried out, as it stands in `importErrors.log` and in answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImportLineErrorDto {
    /// Number of the line, from 1.
    pub line: u64,
    /// Device id, when the line could be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Module id, for a module.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub module_id: Option<String>,
    /// Code.
    pub error_code: ErrorCodeDto,
    /// Text.
    pub error_status: String,
}

impl ImportLineErrorDto {
    /// What is wrong with a line.
    #[must_use]
    pub fn new(line: u64, id: Option<&str>, module_id: Option<&str>, error: &Error) -> Self {
        ImportLineErrorDto {
            line,
            id: id.map(str::to_owned),
            module_id: module_id.map(str::to_owned),
            error_code: error.code.into(),
            error_status: error.message.clone(),
        }
    }
}

/// Import or export.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum TransferTypeDto {
    /// Blob to hub.
    Import,
    /// Hub to blob.
    Export,
}

impl TransferTypeDto {
    const SPELLINGS: &'static [(&'static str, Self)] = &[
        ("import", TransferTypeDto::Import),
        ("export", TransferTypeDto::Export),
    ];
}
read_any_case!(TransferTypeDto);

/// An import or export job. A request has the members up to `configurationsBlobName`; the others come back.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct JobPropertiesDto {
    /// `import` or `export`.
    #[serde(rename = "type")]
    pub kind: Option<TransferTypeDto>,
    /// Import: container of the lines, a URI with a shared access signature, or `file:` with a folder below the one that
    /// the hub allows. Shown without signature.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input_blob_container_uri: Option<String>,
    /// Import: blob of the lines; default `devices.txt`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input_blob_name: Option<String>,
    /// Export: container for the lines. Import: container for `importErrors.log`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_blob_container_uri: Option<String>,
    /// Export: blob for the lines; default `devices.txt`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_blob_name: Option<String>,
    /// Export: leaves keys out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exclude_keys_in_export: Option<bool>,
    /// `keyBased`; the hub has no managed identity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage_authentication_type: Option<String>,
    /// Managed identity; refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub identity: Option<Value>,
    /// Refused when true: configurations are not part of imports and exports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub include_configurations: Option<bool>,
    /// Goes with `includeConfigurations`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub configurations_blob_name: Option<String>,
    /// Id, made by the hub.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job_id: Option<String>,
    /// `running`, `completed`, `failed` or `cancelled`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// 0 to 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<u8>,
    /// Begin.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time_utc: Option<TimeDto>,
    /// End.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_time_utc: Option<TimeDto>,
    /// Why it failed, or how many lines did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_reason: Option<String>,
}

impl JobPropertiesDto {
    /// Checks what a request asks for beyond the places of blobs; gives its type.
    ///
    /// # Errors
    /// [`ErrorCode::ArgumentInvalid`] for what the hub cannot do, [`ErrorCode::ArgumentNull`] without a type.
    pub fn check_request(&self) -> Result<TransferTypeDto, Error> {
        let key_based = self
            .storage_authentication_type
            .as_deref()
            .is_none_or(|kind| kind.eq_ignore_ascii_case("keyBased"));
        if !key_based || self.identity.as_ref().is_some_and(|identity| !identity.is_null()) {
            return Err(invalid(
                "storageAuthenticationType must be keyBased: the hub has no managed identity; give container URIs with a \
                 shared access signature",
            ));
        }
        if self.include_configurations == Some(true) {
            return Err(invalid(
                "includeConfigurations is not supported: imports and exports hold identities and twins; read and write \
                 configurations with /configurations",
            ));
        }
        self.kind
            .ok_or_else(|| Error::new(ErrorCode::ArgumentNull, "type is missing: import or export"))
    }
}
