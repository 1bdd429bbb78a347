//! Devices and modules.

use holdfast_model::registry::{IdentityRecord, Status};
use holdfast_model::{Error, limits};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{AuthenticationChange, AuthenticationDto, TimeDto, invalid, null_as_default, read_any_case};
use crate::etag;

/// Longest `statusReason`, characters (REST contract, section 5.1).
const STATUS_REASON_MAX: usize = 128;

/// Whether a device may connect.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum StatusDto {
    /// May connect.
    #[default]
    Enabled,
    /// May not.
    Disabled,
}

impl StatusDto {
    const SPELLINGS: &'static [(&'static str, Self)] =
        &[("enabled", StatusDto::Enabled), ("disabled", StatusDto::Disabled)];
}
read_any_case!(StatusDto);

impl From<Status> for StatusDto {
    fn from(status: Status) -> Self {
        match status {
            Status::Enabled => StatusDto::Enabled,
            Status::Disabled => StatusDto::Disabled,
        }
    }
}

impl From<StatusDto> for Status {
    fn from(status: StatusDto) -> Self {
        match status {
            StatusDto::Enabled => Status::Enabled,
            StatusDto::Disabled => Status::Disabled,
        }
    }
}

/// Whether an identity is connected.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, ToSchema)]
pub enum ConnectionStateDto {
    /// Connected.
    Connected,
    /// Not connected.
    Disconnected,
}

impl ConnectionStateDto {
    const SPELLINGS: &'static [(&'static str, Self)] = &[
        ("Connected", ConnectionStateDto::Connected),
        ("Disconnected", ConnectionStateDto::Disconnected),
    ];

    /// From the registry's flag.
    #[must_use]
    pub const fn from_connected(connected: bool) -> Self {
        if connected {
            ConnectionStateDto::Connected
        } else {
            ConnectionStateDto::Disconnected
        }
    }
}
read_any_case!(ConnectionStateDto);

/// What a device is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct CapabilitiesDto {
    /// Whether it is an IoT Edge device.
    #[serde(deserialize_with = "null_as_default")]
    pub iot_edge: bool,
}

/// A device in an answer (REST contract, section 5.1).
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeviceDto {
    /// Id.
    pub device_id: String,
    /// New with every creation of the same id.
    pub generation_id: String,
    /// Entity tag, not quoted; see [`crate::etag::of_identity`].
    pub etag: String,
    /// Whether it is connected.
    pub connection_state: ConnectionStateDto,
    /// Whether it may connect.
    pub status: StatusDto,
    /// Free text.
    pub status_reason: Option<String>,
    /// When `connectionState` last changed.
    pub connection_state_updated_time: TimeDto,
    /// When `status` last changed.
    pub status_updated_time: TimeDto,
    /// Last time the device was heard of.
    pub last_activity_time: TimeDto,
    /// Messages waiting for the device.
    pub cloud_to_device_message_count: u64,
    /// How it proves itself.
    pub authentication: AuthenticationDto,
    /// What it is.
    pub capabilities: CapabilitiesDto,
    /// Edge device: its own scope; leaf: its parent's; absent when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_scope: Option<String>,
    /// Scopes of the parents, always there: the command line extension fails without it.
    #[serde(default)]
    pub parent_scopes: Vec<String>,
}

impl DeviceDto {
    /// The answer's form of a device. `cloud_to_device_message_count` comes from the device's queue.
    #[must_use]
    pub fn from_record(record: &IdentityRecord, cloud_to_device_message_count: u64) -> Self {
        DeviceDto {
            device_id: record.identity.device_id().to_owned(),
            generation_id: record.generation_id.to_string(),
            etag: etag::of_identity(record.version),
            connection_state: ConnectionStateDto::from_connected(record.connected),
            status: record.status.into(),
            status_reason: record.status_reason.clone(),
            connection_state_updated_time: TimeDto(record.connection_updated_at),
            status_updated_time: TimeDto(record.status_updated_at),
            last_activity_time: TimeDto(record.last_activity_at),
            cloud_to_device_message_count,
            authentication: AuthenticationDto::from_model(&record.authentication),
            capabilities: CapabilitiesDto {
                iot_edge: record.iot_edge,
            },
            device_scope: record.device_scope.clone(),
            parent_scopes: record.parent_scopes.clone(),
        }
    }
}

/// The writable members of a device in a PUT. Read-only members may be there and are ignored, whatever they hold.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DevicePut {
    /// Id; must equal the one in the path.
    pub device_id: Option<String>,
    /// Default `enabled`.
    pub status: Option<StatusDto>,
    /// At most 128 characters.
    pub status_reason: Option<String>,
    /// Default: generated keys.
    pub authentication: Option<AuthenticationDto>,
    /// Default: no edge device.
    pub capabilities: Option<CapabilitiesDto>,
    /// Leaf device: the parent's scope; `""` for no parent.
    pub device_scope: Option<String>,
    /// Edge device: the parent's scope; `[]` for no parent.
    pub parent_scopes: Option<Vec<String>>,
}

/// What a PUT makes of a device: a full replacement of everything that is writable (REST contract, section 5.3).
#[derive(Clone, PartialEq, Debug)]
pub struct DeviceChanges {
    /// Whether it may connect.
    pub status: Status,
    /// Free text.
    pub status_reason: Option<String>,
    /// How it proves itself.
    pub authentication: AuthenticationChange,
    /// Whether it is an edge device.
    pub iot_edge: bool,
    /// Scope of its parent edge device, for the hub to look up; `None` for no parent.
    pub parent_scope: Option<String>,
}

impl DevicePut {
    /// Checks the body of a PUT to `/devices/{path_id}`.
    ///
    /// The parent of a leaf device is named by `deviceScope`, or by `parentScopes` when that is absent; the parent
    /// of an edge device by `parentScopes` only, its `deviceScope` being its own.
    ///
    /// # Errors
    /// [`holdfast_model::ErrorCode::ArgumentInvalid`]: another id than the path's, a long `statusReason`, unusable
    /// authentication (see [`AuthenticationDto::change`]), more than one parent.
    pub fn changes(&self, path_id: &str) -> Result<DeviceChanges, Error> {
        same_id("deviceId", self.device_id.as_deref(), path_id)?;
        let status_reason = self.status_reason.clone().filter(|reason| !reason.is_empty());
        let too_long = |reason: &String| reason.chars().count() > STATUS_REASON_MAX;
        if status_reason.as_ref().is_some_and(too_long) {
            return Err(invalid(format!(
                "statusReason may have {STATUS_REASON_MAX} characters"
            )));
        }
        let iot_edge = self.capabilities.unwrap_or_default().iot_edge;
        Ok(DeviceChanges {
            status: self.status.unwrap_or_default().into(),
            status_reason,
            authentication: self.authentication.clone().unwrap_or_default().change()?,
            iot_edge,
            parent_scope: self.parent_scope(iot_edge)?,
        })
    }

    fn parent_scope(&self, iot_edge: bool) -> Result<Option<String>, Error> {
        let non_empty = |scope: &String| !scope.is_empty();
        if !iot_edge && let Some(scope) = &self.device_scope {
            return Ok(Some(scope.clone()).filter(non_empty));
        }
        let parents = self.parent_scopes.as_deref().unwrap_or_default();
        if parents.len() > 1 {
            return Err(invalid("parentScopes may name one parent"));
        }
        Ok(parents.first().cloned().filter(non_empty))
    }
}

/// A module in an answer (REST contract, section 5.2). A module has no status of its own.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModuleDto {
    /// Id.
    pub module_id: String,
    /// Who manages it.
    pub managed_by: Option<String>,
    /// Device it belongs to.
    pub device_id: String,
    /// New with every creation of the same id.
    pub generation_id: String,
    /// Entity tag, not quoted.
    pub etag: String,
    /// Whether it is connected.
    pub connection_state: ConnectionStateDto,
    /// When `connectionState` last changed.
    pub connection_state_updated_time: TimeDto,
    /// Last time the module was heard of.
    pub last_activity_time: TimeDto,
    /// Always 0: modules get no cloud-to-device messages.
    pub cloud_to_device_message_count: u64,
    /// How it proves itself.
    pub authentication: AuthenticationDto,
}

impl ModuleDto {
    /// The answer's form of a module.
    #[must_use]
    pub fn from_record(record: &IdentityRecord) -> Self {
        ModuleDto {
            module_id: record.identity.module_id().unwrap_or_default().to_owned(),
            managed_by: record.managed_by.clone(),
            device_id: record.identity.device_id().to_owned(),
            generation_id: record.generation_id.to_string(),
            etag: etag::of_identity(record.version),
            connection_state: ConnectionStateDto::from_connected(record.connected),
            connection_state_updated_time: TimeDto(record.connection_updated_at),
            last_activity_time: TimeDto(record.last_activity_at),
            cloud_to_device_message_count: 0,
            authentication: AuthenticationDto::from_model(&record.authentication),
        }
    }
}

/// The writable members of a module in a PUT.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ModulePut {
    /// Device id; must equal the one in the path.
    pub device_id: Option<String>,
    /// Module id; must equal the one in the path.
    pub module_id: Option<String>,
    /// Who manages it, free text.
    pub managed_by: Option<String>,
    /// Default: generated keys.
    pub authentication: Option<AuthenticationDto>,
}

/// What a PUT makes of a module.
#[derive(Clone, PartialEq, Debug)]
pub struct ModuleChanges {
    /// Who manages it.
    pub managed_by: Option<String>,
    /// How it proves itself.
    pub authentication: AuthenticationChange,
}

impl ModulePut {
    /// Checks the body of a PUT to `/devices/{path_device_id}/modules/{path_module_id}`.
    ///
    /// # Errors
    /// As [`DevicePut::changes`].
    pub fn changes(&self, path_device_id: &str, path_module_id: &str) -> Result<ModuleChanges, Error> {
        same_id("deviceId", self.device_id.as_deref(), path_device_id)?;
        same_id("moduleId", self.module_id.as_deref(), path_module_id)?;
        let managed_by = self.managed_by.clone().filter(|name| !name.is_empty());
        let too_long = |name: &String| name.len() > limits::ID_LEN_MAX;
        if managed_by.as_ref().is_some_and(too_long) {
            return Err(invalid(format!(
                "managedBy may have {} bytes",
                limits::ID_LEN_MAX
            )));
        }
        Ok(ModuleChanges {
            managed_by,
            authentication: self.authentication.clone().unwrap_or_default().change()?,
        })
    }
}

/// An id in a body may be left out, but must not differ from the path's.
fn same_id(member: &str, body_id: Option<&str>, path_id: &str) -> Result<(), Error> {
    match body_id {
        Some(id) if id != path_id => Err(invalid(format!(
            "{member} in the body is `{id}`, in the path `{path_id}`"
        ))),
        _ => Ok(()),
    }
}
