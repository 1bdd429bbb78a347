//! Twins (REST contract, section 6; MQTT contract, section 6.2).

use std::collections::BTreeMap;

use holdfast_model::Error;
use holdfast_model::registry::IdentityRecord;
use holdfast_model::twin::{Section, Twin, TwinChange, parse_object};
use serde::de::IgnoredAny;
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::authentication::{AuthenticationDto, AuthenticationTypeDto, X509ThumbprintDto};
use super::device::{CapabilitiesDto, ConnectionStateDto, StatusDto};
use super::{TimeDto, from_json};
use crate::etag;

/// A twin document in an answer of the service API.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TwinDto<'a> {
    /// Device id.
    pub device_id: &'a str,
    /// Module id, for a module.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub module_id: Option<&'a str>,
    /// Tag of the twin, not quoted; see [`crate::etag::of_twin`].
    pub etag: String,
    /// Tag of the identity.
    pub device_etag: String,
    /// Whether the device may connect.
    pub status: StatusDto,
    /// Free text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status_reason: Option<&'a str>,
    /// When `status` last changed.
    pub status_update_time: TimeDto,
    /// Whether the identity is connected.
    pub connection_state: ConnectionStateDto,
    /// Last time the identity was heard of.
    pub last_activity_time: TimeDto,
    /// Messages waiting for the device.
    pub cloud_to_device_message_count: u64,
    /// How the identity proves itself.
    pub authentication_type: AuthenticationTypeDto,
    /// Fingerprints.
    pub x509_thumbprint: X509ThumbprintDto,
    /// Model id the device announced; empty without one.
    pub model_id: &'a str,
    /// Raised with every change of tags or desired properties.
    pub version: u64,
    /// Tags.
    #[schema(value_type = Object)]
    pub tags: &'a Map<String, Value>,
    /// Desired and reported properties, each with `$metadata` and `$version`.
    #[schema(value_type = Object)]
    pub properties: PropertiesDto<'a>,
    /// Configurations that target the twin.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = Object)]
    pub configurations: BTreeMap<String, Value>,
    /// What the device is.
    pub capabilities: CapabilitiesDto,
    /// As in [`super::DeviceDto`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_scope: Option<&'a str>,
    /// As in [`super::DeviceDto`].
    pub parent_scopes: &'a [String],
}

/// Both property sections.
#[derive(Clone, Copy, Debug)]
pub struct PropertiesDto<'a> {
    twin: &'a Twin,
}

impl<'a> TwinDto<'a> {
    /// The document of an identity and its twin. `cloud_to_device_message_count` comes from the device's queue.
    #[must_use]
    pub fn new(record: &'a IdentityRecord, twin: &'a Twin, cloud_to_device_message_count: u64) -> Self {
        let authentication = AuthenticationDto::from_model(&record.authentication);
        TwinDto {
            device_id: record.identity.device_id(),
            module_id: record.identity.module_id(),
            etag: etag::of_twin(twin.version),
            device_etag: etag::of_identity(record.version),
            status: record.status.into(),
            status_reason: record.status_reason.as_deref(),
            status_update_time: TimeDto(record.status_updated_at),
            connection_state: ConnectionStateDto::from_connected(record.connected),
            last_activity_time: TimeDto(record.last_activity_at),
            cloud_to_device_message_count,
            authentication_type: authentication.kind.unwrap_or(AuthenticationTypeDto::None),
            x509_thumbprint: authentication.x509_thumbprint.unwrap_or_default(),
            model_id: twin.model_id.as_deref().unwrap_or_default(),
            version: twin.version,
            tags: &twin.tags,
            properties: PropertiesDto { twin },
            configurations: twin
                .configurations
                .iter()
                .map(|(id, status)| (id.clone(), serde_json::json!({ "status": status.name() })))
                .collect(),
            capabilities: CapabilitiesDto {
                iot_edge: record.iot_edge,
            },
            device_scope: record.device_scope.as_deref(),
            parent_scopes: &record.parent_scopes,
        }
    }
}

impl<'a> PropertiesDto<'a> {
    /// The sections of a twin.
    #[must_use]
    pub fn new(twin: &'a Twin) -> Self {
        PropertiesDto { twin }
    }
}

impl Serialize for PropertiesDto<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry("desired", &SectionDto(&self.twin.desired))?;
        map.serialize_entry("reported", &SectionDto(&self.twin.reported))?;
        map.end()
    }
}

/// A section with its `$` members, borrowed.
struct SectionDto<'a>(&'a Section);

impl Serialize for SectionDto<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let section = self.0;
        let mut map = serializer.serialize_map(Some(section.properties.len() + 2))?;
        for (key, value) in &section.properties {
            map.serialize_entry(key, value)?;
        }
        map.serialize_entry("$metadata", &section.metadata)?;
        map.serialize_entry("$version", &section.version)?;
        map.end()
    }
}

/// Reads the body of a PATCH or PUT of a twin: `{"tags":{…},"properties":{"desired":{…}}}`, each part optional.
///
/// Other members are ignored (the command line extension sends whole twins), and so are members of either section
/// whose name begins with `$`. What is left is checked when
/// [`Twin::apply`] takes it.
///
/// # Errors
/// [`holdfast_model::ErrorCode::DeserializationError`] for a body that is not JSON,
/// [`holdfast_model::ErrorCode::IotHubFormatError`] when a section is no object.
pub fn parse_twin_change(body: &[u8]) -> Result<TwinChange, Error> {
    #[derive(Deserialize)]
    struct Body {
        #[serde(default)]
        tags: Option<Map<String, Value>>,
        #[serde(default)]
        properties: Option<Properties>,
    }
    #[derive(Deserialize)]
    struct Properties {
        #[serde(default)]
        desired: Option<Map<String, Value>>,
        #[serde(default, rename = "reported")]
        _reported: Option<IgnoredAny>,
    }
    let body: Body = from_json(body)?;
    let mut change = TwinChange {
        tags: body.tags,
        desired: body.properties.and_then(|properties| properties.desired),
    };
    for section in [&mut change.tags, &mut change.desired].into_iter().flatten() {
        drop_reserved(section);
    }
    Ok(change)
}

/// A device's change of its reported properties.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ReportedPatch {
    /// The change; `null` deletes.
    pub properties: Map<String, Value>,
    /// `$version` inside the body: the version the change is based on.
    pub version: Option<u64>,
}

/// Reads the body of a change of reported properties. Other `$…` members are dropped.
///
/// # Errors
/// [`holdfast_model::ErrorCode::ArgumentInvalid`] (400004, as seen from the original service) for a body that is no
/// JSON object.
pub fn parse_reported_patch(body: &[u8]) -> Result<ReportedPatch, Error> {
    let mut properties = parse_object(body, "the reported properties")?;
    let version = properties.get("$version").and_then(Value::as_u64);
    drop_reserved(&mut properties);
    Ok(ReportedPatch { properties, version })
}

fn drop_reserved(section: &mut Map<String, Value>) {
    section.retain(|key, _| !key.starts_with('$'));
}
