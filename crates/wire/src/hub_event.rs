//! Events that the hub itself makes (languages.md section 3): the envelope that all of them have, and their bodies.
//!
//! Pure functions; whoever calls them appends the records to the event log or stores them for that.

use holdfast_model::event::{EventSource, Records};
use holdfast_model::job::Job;
use holdfast_model::message::SystemProperty;
use holdfast_model::registry::IdentityRecord;
use holdfast_model::twin::{Section, Twin};
use holdfast_model::{Identity, Timestamp};
use serde_json::{Map, Value, json};

use crate::dto::{JobResponseDto, TwinDto};
use crate::etag;
use crate::routed::time;

/// What has happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Parts of a twin changed.
    UpdateTwin,
    /// A service replaced a twin.
    ReplaceTwin,
    /// A device or module was created.
    CreateIdentity,
    /// A device or module was deleted.
    DeleteIdentity,
    /// A device or module connected.
    Connected,
    /// A device or module disconnected.
    Disconnected,
    /// The digital twin view of a device changed.
    UpdateDigitalTwin,
    /// A job was created. The contract has no schema of job events; this one and the next are our own.
    CreateJob,
    /// A job began or ended.
    UpdateJob,
}

impl Operation {
    /// Kind of event.
    #[must_use]
    pub const fn source(self) -> EventSource {
        match self {
            Operation::UpdateTwin | Operation::ReplaceTwin => EventSource::TwinChange,
            Operation::CreateIdentity | Operation::DeleteIdentity => EventSource::DeviceLifecycle,
            Operation::Connected | Operation::Disconnected => EventSource::ConnectionState,
            Operation::UpdateDigitalTwin => EventSource::DigitalTwinChange,
            Operation::CreateJob | Operation::UpdateJob => EventSource::JobLifecycle,
        }
    }

    /// Value of the property `opType`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Operation::UpdateTwin | Operation::UpdateDigitalTwin => "updateTwin",
            Operation::ReplaceTwin => "replaceTwin",
            Operation::CreateIdentity => "createDeviceIdentity",
            Operation::DeleteIdentity => "deleteDeviceIdentity",
            Operation::Connected => "deviceConnected",
            Operation::Disconnected => "deviceDisconnected",
            Operation::CreateJob => "createJob",
            Operation::UpdateJob => "updateJob",
        }
    }

    /// Value of the property `iothub-message-schema`.
    const fn schema(self) -> &'static str {
        match self.source() {
            EventSource::TwinChange => "twinChangeNotification",
            EventSource::ConnectionState => "deviceConnectionStateNotification",
            EventSource::DigitalTwinChange => "digitalTwinChangeNotification",
            EventSource::JobLifecycle => "deviceJobLifecycleNotification",
            _ => "deviceLifecycleNotification",
        }
    }
}

/// Whom an event is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Subject<'a> {
    /// A device or module.
    Identity(&'a Identity),
    /// A job, by its id.
    Job(&'a str),
}

/// What all events of the hub carry.
#[derive(Clone, Copy, Debug)]
pub struct Envelope<'a> {
    /// Name of the hub; becomes `hubName` and the user id.
    pub hub_name: &'a str,
    /// When it happened.
    pub at: Timestamp,
    /// A short hexadecimal id, the same for events of one cause.
    pub correlation_id: &'a str,
}

impl Envelope<'_> {
    /// The event as one record.
    #[must_use]
    pub fn record(&self, operation: Operation, subject: Subject<'_>, body: &Value) -> Records {
        let mut records = Records::new();
        let mut record = records.record();
        let digital = operation == Operation::UpdateDigitalTwin;
        let (content_type, at) = match digital {
            true => (
                "application/json-patch+json",
                time(self.at).replace('Z', "+00:00"),
            ),
            false => ("application/json", time(self.at)),
        };
        record.system(SystemProperty::ContentType, content_type);
        record.system(SystemProperty::ContentEncoding, "utf-8");
        record.system(SystemProperty::CorrelationId, self.correlation_id);
        record.system(SystemProperty::UserId, self.hub_name);
        record.property("hubName", Some(self.hub_name));
        match subject {
            Subject::Identity(identity) => {
                record.property("deviceId", Some(identity.device_id()));
                if let Some(module_id) = identity.module_id() {
                    record.property("moduleId", Some(module_id));
                }
            }
            Subject::Job(id) => record.property("jobId", Some(id)),
        }
        record.property("operationTimestamp", Some(&at));
        record.property("opType", Some(operation.as_str()));
        record.property("iothub-message-schema", Some(operation.schema()));
        let _ = record.finish(body.to_string().as_bytes());
        records
    }
}

/// Body of a changed twin: only what changed, with its metadata; `null` for what is gone. `None` when nothing of it
/// shows in the contract's twin.
#[must_use]
pub fn twin_update(before: &Twin, after: &Twin) -> Option<Value> {
    let mut body = Map::new();
    let tags = difference(&before.tags, &after.tags, None);
    if !tags.is_empty() {
        body.insert("tags".into(), Value::Object(tags));
    }
    let mut properties = Map::new();
    for (name, before, after) in [
        ("desired", &before.desired, &after.desired),
        ("reported", &before.reported, &after.reported),
    ] {
        if before != after {
            properties.insert(name.into(), section_update(before, after));
        }
    }
    if !properties.is_empty() {
        body.insert("properties".into(), Value::Object(properties));
    }
    if body.is_empty() && before.version == after.version {
        return None;
    }
    body.insert("version".into(), after.version.into());
    Some(Value::Object(body))
}

fn section_update(before: &Section, after: &Section) -> Value {
    let stamps = Some((&before.metadata, &after.metadata));
    let mut changed = difference(&before.properties, &after.properties, stamps);
    let metadata = metadata_of(&changed, &after.metadata);
    changed.insert("$metadata".into(), Value::Object(metadata));
    changed.insert("$version".into(), after.version.into());
    Value::Object(changed)
}

/// Metadata before and after.
type Stamps<'a> = (&'a Map<String, Value>, &'a Map<String, Value>);

/// Members that differ, or whose metadata differs: a value written again is a change.
fn difference(
    before: &Map<String, Value>,
    after: &Map<String, Value>,
    stamps: Option<Stamps<'_>>,
) -> Map<String, Value> {
    let mut changed = Map::new();
    for (key, new) in after {
        let old = before.get(key);
        let stamps = stamps.map(|(old, new)| (old.get(key), new.get(key)));
        if old == Some(new) && stamps.is_none_or(|(old, new)| old == new) {
            continue;
        }
        let value = match (old, new) {
            (Some(Value::Object(old)), Value::Object(new)) => {
                let inner = |stamp: Option<&Value>| stamp.and_then(Value::as_object).cloned();
                let stamps =
                    stamps.map(|(old, new)| (inner(old).unwrap_or_default(), inner(new).unwrap_or_default()));
                let stamps = stamps.as_ref().map(|(old, new)| (old, new));
                Value::Object(difference(old, new, stamps))
            }
            (_, new) => new.clone(),
        };
        changed.insert(key.clone(), value);
    }
    for key in before.keys().filter(|key| !after.contains_key(*key)) {
        changed.insert(key.clone(), Value::Null);
    }
    changed
}

/// The metadata of what a difference names.
fn metadata_of(changed: &Map<String, Value>, metadata: &Map<String, Value>) -> Map<String, Value> {
    let mut kept: Map<String, Value> = metadata
        .iter()
        .filter(|(key, _)| key.starts_with('$'))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    for (key, value) in changed {
        match (value, metadata.get(key)) {
            (Value::Object(inner), Some(Value::Object(metadata))) => {
                kept.insert(key.clone(), Value::Object(metadata_of(inner, metadata)));
            }
            (_, Some(metadata)) => drop(kept.insert(key.clone(), metadata.clone())),
            (_, None) => {}
        }
    }
    kept
}

/// Body of a replaced twin: all of it.
#[must_use]
pub fn twin_replacement(identity: &Identity, twin: &Twin) -> Value {
    let mut body = twin_document(identity, twin);
    body["tags"] = Value::Object(twin.tags.clone());
    body
}

/// The members that every twin has here.
fn twin_document(identity: &Identity, twin: &Twin) -> Value {
    let mut body = json!({
        "deviceId": identity.device_id(),
        "etag": etag::of_twin(twin.version),
        "version": twin.version,
        "properties": {
            "desired": twin.desired.to_service_json(),
            "reported": twin.reported.to_service_json(),
        },
    });
    if let Some(module_id) = identity.module_id() {
        body["moduleId"] = module_id.into();
    }
    body
}

/// Body of a created or deleted identity: its twin, with what the Event Grid schema (languages.md 3.3) asks of the
/// identity. Tags only if there are any.
#[must_use]
pub fn identity(record: &IdentityRecord, twin: &Twin) -> Value {
    let mut body = twin_document(&record.identity, twin);
    // No message waits for who is new, or gone.
    let shown = serde_json::to_value(TwinDto::new(record, twin, 0)).unwrap_or_default();
    for name in [
        "deviceEtag",
        "status",
        "statusUpdateTime",
        "connectionState",
        "lastActivityTime",
        "cloudToDeviceMessageCount",
        "authenticationType",
        "x509Thumbprint",
    ] {
        body[name] = shown[name].clone();
    }
    if !twin.tags.is_empty() {
        body["tags"] = Value::Object(twin.tags.clone());
    }
    body
}

/// Body of a connection that began or ended. 64 hexadecimal digits: zeros, the session's epoch, 1 for its begin or 2
/// for its end, and the time in ticks of 100 ns since 1601. Epochs grow with every session and over restarts, so the
/// texts of one device compare in the order in which things happened, whatever the clock does.
#[must_use]
pub fn connection_state(epoch: u64, connected: bool, at: Timestamp) -> Value {
    const TICKS_TO_1970: i64 = 116_444_736_000_000_000;
    let ticks = at.as_micros().saturating_mul(10).saturating_add(TICKS_TO_1970);
    let step = if connected { 1 } else { 2 };
    let ticks = u64::try_from(ticks).unwrap_or(0);
    json!({"sequenceNumber": format!("{:016X}{epoch:016X}{step:08X}{ticks:024X}", 0)})
}

/// Body of a job event: the job as the service API shows it.
#[must_use]
pub fn job(job: &Job) -> Value {
    serde_json::to_value(JobResponseDto::new(job)).unwrap_or_default()
}

#[cfg(test)]
mod tests;
