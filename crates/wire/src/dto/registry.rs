//! Statistics, key regeneration, purged queues and feedback.

use holdfast_model::c2d::{FeedbackRecord, FeedbackStatus};
use holdfast_model::registry::RegistryStatistics;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{ErrorCodeDto, TimeDto, read_any_case};

/// Answer of `GET /statistics/devices`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RegistryStatisticsDto {
    /// Devices.
    pub total_device_count: u64,
    /// Devices that may connect.
    pub enabled_device_count: u64,
    /// The same number under the misspelt name that the Java SDK reads.
    #[serde(default)]
    pub enable_device_count: u64,
    /// Devices that may not connect.
    pub disabled_device_count: u64,
}

impl From<RegistryStatistics> for RegistryStatisticsDto {
    fn from(statistics: RegistryStatistics) -> Self {
        RegistryStatisticsDto {
            total_device_count: statistics.total,
            enabled_device_count: statistics.enabled,
            enable_device_count: statistics.enabled,
            disabled_device_count: statistics.disabled,
        }
    }
}

/// Answer of `GET /statistics/service`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceStatisticsDto {
    /// Devices connected now.
    pub connected_device_count: u64,
}

/// Answer of `DELETE /devices/{id}/commands`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PurgeResultDto {
    /// Device whose queue was emptied.
    pub device_id: String,
    /// Always `null`: modules have no queue.
    pub module_id: Option<String>,
    /// Messages removed.
    pub total_messages_purged: u64,
}

impl PurgeResultDto {
    /// The result for a device.
    #[must_use]
    pub fn new(device_id: &str, total_messages_purged: u64) -> Self {
        PurgeResultDto {
            device_id: device_id.to_owned(),
            module_id: None,
            total_messages_purged,
        }
    }
}

/// Which keys to regenerate.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum PolicyKeyDto {
    /// The first.
    PrimaryKey,
    /// The second.
    SecondaryKey,
    /// Both.
    Both,
}

impl PolicyKeyDto {
    const SPELLINGS: &'static [(&'static str, Self)] = &[
        ("primaryKey", PolicyKeyDto::PrimaryKey),
        ("secondaryKey", PolicyKeyDto::SecondaryKey),
        ("both", PolicyKeyDto::Both),
    ];
}
read_any_case!(PolicyKeyDto);

/// An identity whose keys are to be regenerated.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeyRegenerationDeviceDto {
    /// Device id.
    pub id: String,
    /// Module id, for a module.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module_id: Option<String>,
}

/// Body of `POST /devices/keys/regenerate`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeyRegenerationRequestDto {
    /// Which keys.
    pub policy_key: PolicyKeyDto,
    /// Whose, at most 100.
    pub devices: Vec<KeyRegenerationDeviceDto>,
}

/// New keys of an identity. `Debug` shows none.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RotatedKeyDto {
    /// Device id.
    pub id: String,
    /// Module id, for a module.
    pub module_id: Option<String>,
    /// First key, base64.
    pub primary_key: String,
    /// Second key, base64.
    pub secondary_key: String,
}

impl std::fmt::Debug for RotatedKeyDto {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RotatedKeyDto({:?}, {:?}, …)", self.id, self.module_id)
    }
}

/// An identity whose keys could not be regenerated.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeyRegenerationErrorDto {
    /// Device id.
    pub id: String,
    /// Module id, for a module.
    pub module_id: Option<String>,
    /// Code.
    pub error_code: ErrorCodeDto,
    /// Text.
    pub error_status: String,
}

/// Answer of `POST /devices/keys/regenerate`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeyRegenerationResultDto {
    /// Which keys.
    pub policy_key: PolicyKeyDto,
    /// Identities with new keys.
    pub rotated_keys: Vec<RotatedKeyDto>,
    /// Identities that failed.
    pub errors: Vec<KeyRegenerationErrorDto>,
}

impl KeyRegenerationResultDto {
    /// HTTP status of the answer: 200 when all went well, 207 when some did, 400 when none did.
    #[must_use]
    pub fn http_status(&self) -> u16 {
        match (self.rotated_keys.is_empty(), self.errors.is_empty()) {
            (_, true) => 200,
            (false, false) => 207,
            (true, false) => 400,
        }
    }
}

/// One feedback record (REST contract, section 8).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FeedbackRecordDto {
    /// Message id chosen by the sender.
    pub original_message_id: String,
    /// When the outcome came about.
    pub enqueued_time_utc: TimeDto,
    /// `Success`, `Expired`, `DeliveryCountExceeded`, `Rejected` or `Purged`.
    #[schema(value_type = String)]
    pub status_code: FeedbackStatus,
    /// The outcome in words.
    pub description: String,
    /// Device id.
    pub device_id: String,
    /// Generation of the device.
    pub device_generation_id: String,
}

impl From<&FeedbackRecord> for FeedbackRecordDto {
    fn from(record: &FeedbackRecord) -> Self {
        FeedbackRecordDto {
            original_message_id: record.original_message_id.clone(),
            enqueued_time_utc: TimeDto(record.enqueued_time_utc),
            status_code: record.status_code,
            description: record.description.clone(),
            device_id: record.device_id.clone(),
            device_generation_id: record.device_generation_id.clone(),
        }
    }
}

/// The body of a feedback batch: a JSON array of [`FeedbackRecordDto`]. Its content type is
/// [`crate::headers::FEEDBACK_BATCH`].
#[must_use]
pub fn feedback_json(records: &[FeedbackRecord]) -> Vec<u8> {
    let records: Vec<FeedbackRecordDto> = records.iter().map(Into::into).collect();
    // Serializing texts into memory cannot fail.
    serde_json::to_vec(&records).unwrap_or_default()
}
