//! The JSON bodies of the service API (REST contract, sections 5 to 8).
//!
//! Reading follows the rules of section 1: unknown members are ignored, `null` is the same as absent but inside
//! twins, enumeration values are taken without regard to case. Writing uses the spellings of the contract.

mod authentication;
mod bulk;
mod configuration;
mod device;
mod file;
mod job;
mod method;
pub mod provisioning;
mod registry;
mod scope;
mod transfer;
mod twin;

#[cfg(test)]
mod tests;

use holdfast_model::{Error, ErrorCode, Timestamp};
use serde::de::{DeserializeOwned, Deserializer};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;
use utoipa::ToSchema;

pub use authentication::{
    AuthenticationChange, AuthenticationDto, AuthenticationTypeDto, SymmetricKeyDto, X509ThumbprintDto,
};
pub use bulk::{
    BulkRegistryErrorDto, BulkRegistryOperationResult, BulkRegistryWarningDto, ErrorCodeDto,
    ExportImportDevice, ImportMode, TwinPropertiesDto,
};
pub use configuration::{
    ConfigurationContentDto, ConfigurationDto, ConfigurationMetricsDto, ConfigurationPut,
    ConfigurationQueriesTestInput, ConfigurationQueriesTestResponse, MetricsPut,
};
pub use device::{
    CapabilitiesDto, ConnectionStateDto, DeviceChanges, DeviceDto, DevicePut, ModuleChanges, ModuleDto,
    ModulePut, StatusDto,
};
pub use file::{FileNotificationDto, UploadEndDto, UploadGrantDto, UploadRequestDto, file_notification_json};
pub use job::{DeviceJobStatisticsDto, JobRequestDto, JobResponseDto, parse_kind, parse_status};
pub use method::{MethodRequestDto, MethodResponseDto, method_response_json};
pub use registry::{
    FeedbackRecordDto, KeyRegenerationDeviceDto, KeyRegenerationErrorDto, KeyRegenerationRequestDto,
    KeyRegenerationResultDto, PolicyKeyDto, PurgeResultDto, RegistryStatisticsDto, RotatedKeyDto,
    ServiceStatisticsDto, feedback_json,
};
pub use scope::{
    IdentityOnBehalfOfRequest, ModuleOnBehalfOfRequest, PutModuleOnBehalfOfRequest, ScopeResult,
    TargetScopeRequest,
};
pub use transfer::{ExportLine, ImportLineErrorDto, JobPropertiesDto, TransferTypeDto};
pub use twin::{PropertiesDto, ReportedPatch, TwinDto, parse_reported_patch, parse_twin_change};

/// Reads a JSON body that is an object.
///
/// # Errors
/// [`ErrorCode::DeserializationError`] when the text is not JSON, [`ErrorCode::IotHubFormatError`] when the JSON has
/// another shape than the operation takes.
pub fn from_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Error> {
    // Derived readers take an array for a structure, member by member; `[]` would pass for a device without members.
    if body.trim_ascii_start().first() == Some(&b'[') {
        return Err(Error::new(
            ErrorCode::IotHubFormatError,
            "the body must be a JSON object, not an array",
        ));
    }
    serde_json::from_slice(body).map_err(|error| json_error(&error))
}

/// Reads a JSON body that is an array of objects, such as a bulk request.
///
/// # Errors
/// As [`from_json`]; [`ErrorCode::ArgumentInvalid`] for more than `max` items.
pub fn list_from_json<T: DeserializeOwned>(body: &[u8], max: usize) -> Result<Vec<T>, Error> {
    let items: Vec<&RawValue> = serde_json::from_slice(body).map_err(|error| json_error(&error))?;
    if items.len() > max {
        return Err(invalid(format!(
            "the list has {} items, at most {max} are allowed",
            items.len()
        )));
    }
    items
        .iter()
        .map(|item| from_json(item.get().as_bytes()))
        .collect()
}

fn json_error(error: &serde_json::Error) -> Error {
    let code = match error.classify() {
        serde_json::error::Category::Data => ErrorCode::IotHubFormatError,
        _ => ErrorCode::DeserializationError,
    };
    Error::new(code, format!("the body cannot be read: {error}"))
}

fn invalid(text: impl Into<String>) -> Error {
    Error::new(ErrorCode::ArgumentInvalid, text)
}

/// A point in time in a body. "Never" is `0001-01-01T00:00:00`; every other time is written as
/// `YYYY-MM-DDTHH:MM:SS[.fffffff]Z` and read with 0 to 7 fractional digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, ToSchema)]
#[schema(value_type = String, example = "2026-08-01T10:00:00.1234560Z")]
pub struct TimeDto(pub Timestamp);

impl Serialize for TimeDto {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0 == Timestamp::NEVER {
            serializer.serialize_str("0001-01-01T00:00:00")
        } else {
            serializer.collect_str(&self.0)
        }
    }
}

impl<'de> Deserialize<'de> for TimeDto {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Timestamp::parse(&text)
            .map(TimeDto)
            .ok_or_else(|| serde::de::Error::custom("not an ISO 8601 time"))
    }
}

/// Reads `null` as the default value; with `#[serde(default)]` an absent member is the same.
fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Implements reading without regard to case for an enumeration with `SPELLINGS: &[(&str, Self)]`.
macro_rules! read_any_case {
    ($name:ty) => {
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                let found = <$name>::SPELLINGS
                    .iter()
                    .find(|(spelling, _)| spelling.eq_ignore_ascii_case(&text));
                match found {
                    Some((_, value)) => Ok(*value),
                    None => Err(serde::de::Error::custom(format_args!(
                        "`{text}` is not one of {}",
                        <$name>::SPELLINGS
                            .iter()
                            .map(|(spelling, _)| *spelling)
                            .collect::<Vec<_>>()
                            .join(", ")
                    ))),
                }
            }
        }
    };
}
use read_any_case;
