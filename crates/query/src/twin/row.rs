//! Rows: documents whose members a query can reach without making the whole document.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use holdfast_model::Timestamp;
use holdfast_model::registry::{Authentication, IdentityRecord, Status};
use holdfast_model::twin::{ConfigurationStatus, Section, Twin};
use serde_json::{Map, Value as Json, json};

use super::ast::{Path, Root, Segment};

/// A document under a query.
pub trait Row {
    /// What stands at `path`; `None` if nothing does.
    fn get(&self, path: &Path) -> Option<Cow<'_, Json>>;
}

/// A twin with all that its document shows.
#[derive(Clone, Copy, Debug)]
pub struct TwinRow<'a> {
    /// The identity.
    pub record: &'a IdentityRecord,
    /// Its twin.
    pub twin: &'a Twin,
    /// Number of cloud-to-device messages that wait for it.
    pub waiting: u64,
}

impl Row for TwinRow<'_> {
    fn get(&self, path: &Path) -> Option<Cow<'_, Json>> {
        let rest = path.rest.as_slice();
        match path.root {
            Root::Tags => walk_map(&self.twin.tags, rest),
            Root::Properties => self.properties(rest),
            Root::Configurations => self.configuration(rest),
            root => walk_owned(self.member(root)?, rest),
        }
    }
}

impl TwinRow<'_> {
    /// Members that are the hub's own.
    fn member(&self, root: Root) -> Option<Json> {
        let record = self.record;
        Some(match root {
            Root::DeviceId => record.identity.device_id().into(),
            Root::ModuleId => record.identity.module_id()?.into(),
            Root::Etag => STANDARD.encode(self.twin.version.to_be_bytes()).into(),
            Root::DeviceEtag => STANDARD.encode(record.version.to_string()).into(),
            Root::Version => self.twin.version.into(),
            Root::Status => match record.status {
                Status::Enabled => "enabled".into(),
                Status::Disabled => "disabled".into(),
            },
            Root::StatusReason => record.status_reason.clone()?.into(),
            Root::StatusUpdateTime => time_text(record.status_updated_at).into(),
            Root::ConnectionState if record.connected => "Connected".into(),
            Root::ConnectionState => "Disconnected".into(),
            Root::LastActivityTime => time_text(record.last_activity_at).into(),
            Root::CloudToDeviceMessageCount => self.waiting.into(),
            Root::AuthenticationType => authentication_type(&record.authentication).into(),
            Root::X509Thumbprint => thumbprints(&record.authentication),
            Root::ModelId => self.twin.model_id.clone()?.into(),
            Root::DeviceScope => record.device_scope.clone()?.into(),
            Root::ParentScopes => record.parent_scopes.clone().into(),
            Root::Capabilities => json!({"iotEdge": record.iot_edge}),
            _ => return None,
        })
    }

    fn properties(&self, rest: &[Segment]) -> Option<Cow<'_, Json>> {
        let section = |name: &str| match name {
            "desired" => Some(&self.twin.desired),
            "reported" => Some(&self.twin.reported),
            _ => None,
        };
        match rest {
            [] => Some(Cow::Owned(json!({
                "desired": self.twin.desired.to_service_json(),
                "reported": self.twin.reported.to_service_json(),
            }))),
            [Segment::Name(name), rest @ ..] => walk_section(section(name)?, rest),
            _ => None,
        }
    }

    fn configuration(&self, rest: &[Segment]) -> Option<Cow<'_, Json>> {
        let shown = |status: &ConfigurationStatus| json!({"status": status.name()});
        match rest {
            [] if self.twin.configurations.is_empty() => None,
            [] => {
                let all: Map<String, Json> = self
                    .twin
                    .configurations
                    .iter()
                    .map(|(id, status)| (id.clone(), shown(status)))
                    .collect();
                Some(Cow::Owned(Json::Object(all)))
            }
            [Segment::Name(id), rest @ ..] => walk_owned(shown(self.twin.configurations.get(id)?), rest),
            _ => None,
        }
    }
}

/// A row of `devices.jobs`: its document.
#[derive(Clone, Copy, Debug)]
pub struct JobRow<'a>(pub &'a Map<String, Json>);

impl Row for JobRow<'_> {
    fn get(&self, path: &Path) -> Option<Cow<'_, Json>> {
        walk(self.0.get(path.root.name())?, &path.rest).map(Cow::Borrowed)
    }
}

/// A time as documents show it.
#[must_use]
pub fn time_text(time: Timestamp) -> String {
    if time == Timestamp::NEVER {
        "0001-01-01T00:00:00".to_owned()
    } else {
        time.to_string()
    }
}

/// An authentication type as documents show it.
#[must_use]
pub fn authentication_type(authentication: &Authentication) -> &'static str {
    match authentication {
        Authentication::Sas { .. } => "sas",
        Authentication::SelfSigned { .. } => "selfSigned",
        Authentication::CertificateAuthority => "certificateAuthority",
        Authentication::None => "none",
    }
}

fn thumbprints(authentication: &Authentication) -> Json {
    let (primary, secondary) = match authentication {
        Authentication::SelfSigned {
            primary_thumbprint,
            secondary_thumbprint,
        } => (primary_thumbprint.as_ref(), secondary_thumbprint.as_ref()),
        _ => (None, None),
    };
    json!({
        "primaryThumbprint": primary.map(|thumbprint| thumbprint.as_str()),
        "secondaryThumbprint": secondary.map(|thumbprint| thumbprint.as_str()),
    })
}

fn walk_section<'a>(section: &'a Section, rest: &[Segment]) -> Option<Cow<'a, Json>> {
    match rest {
        [] => Some(Cow::Owned(Json::Object(section.to_service_json()))),
        [Segment::Name(name), rest @ ..] if name == "$version" => walk_owned(section.version.into(), rest),
        [Segment::Name(name), rest @ ..] if name == "$metadata" => walk_map(&section.metadata, rest),
        _ => walk_map(&section.properties, rest),
    }
}

fn walk_map<'a>(map: &'a Map<String, Json>, rest: &[Segment]) -> Option<Cow<'a, Json>> {
    match rest {
        [] => Some(Cow::Owned(Json::Object(map.clone()))),
        [Segment::Name(name), rest @ ..] => walk(map.get(name)?, rest).map(Cow::Borrowed),
        _ => None,
    }
}

fn walk<'a>(json: &'a Json, rest: &[Segment]) -> Option<&'a Json> {
    rest.iter().try_fold(json, |json, segment| match segment {
        Segment::Name(name) => json.as_object()?.get(name),
        Segment::Index(index) => json.as_array()?.get(*index),
    })
}

fn walk_owned<'a>(json: Json, rest: &[Segment]) -> Option<Cow<'a, Json>> {
    if rest.is_empty() {
        return Some(Cow::Owned(json));
    }
    walk(&json, rest).cloned().map(Cow::Owned)
}
