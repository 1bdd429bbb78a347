//! The Event Grid schema of hub events (languages.md 3.3). On delivery events stand in an array.
//!
//! Twin changes, jobs and digital twin changes have no Event Grid schema in the original service. They go out under
//! types of our own (`Holdfast.Devices.…`) with the data form of telemetry.

use holdfast_model::event::{EventField, EventSource};
use holdfast_model::message::SystemProperty;
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::json;

use super::{Properties, Routed, put, time};
use crate::annotations as names;

/// Type of the event by which a subscriber proves that it wants events.
pub const VALIDATION_TYPE: &str = "Microsoft.EventGrid.SubscriptionValidationEvent";

/// The topic of a hub when none is given: there are no subscriptions and resource groups here.
#[must_use]
pub fn topic(hub_name: &str) -> String {
    format!(
        "/SUBSCRIPTIONS/00000000-0000-0000-0000-000000000000/RESOURCEGROUPS/HOLDFAST/PROVIDERS/MICROSOFT.DEVICES/IOTHUBS/{}",
        hub_name.to_uppercase()
    )
}

/// Appends an event without a line break.
pub fn write(event: Routed<'_>, topic: &str, hub_name: &str, out: &mut Vec<u8>) {
    put(
        &Event {
            routed: event,
            topic,
            hub_name,
        },
        out,
    );
}

/// The event of the validation handshake, in its array.
#[must_use]
pub fn validation(topic: &str, id: &str, code: &str, now: holdfast_model::Timestamp) -> Vec<u8> {
    let event = json!([{
        "id": id,
        "topic": topic,
        "subject": "",
        "data": { "validationCode": code },
        "eventType": VALIDATION_TYPE,
        "eventTime": time(now),
        "metadataVersion": "1",
        "dataVersion": "2",
    }]);
    event.to_string().into_bytes()
}

/// Whether the answer to [`validation`] repeats the code.
#[must_use]
pub fn is_validated(answer: &[u8], code: &str) -> bool {
    serde_json::from_slice::<serde_json::Value>(answer)
        .is_ok_and(|answer| answer.get("validationResponse").and_then(|value| value.as_str()) == Some(code))
}

struct Event<'a> {
    routed: Routed<'a>,
    topic: &'a str,
    hub_name: &'a str,
}

impl Serialize for Event<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let event = self.routed.event;
        let data_version = match data_form(event.source) {
            Form::Message => "",
            Form::Twin | Form::Connection => "1",
        };
        let mut map = serializer.serialize_map(Some(8))?;
        map.serialize_entry("id", &self.routed.id())?;
        map.serialize_entry("topic", self.topic)?;
        map.serialize_entry("subject", &subject(self.routed))?;
        map.serialize_entry("eventType", event_type(self.routed))?;
        map.serialize_entry("eventTime", &time(event.enqueued_at))?;
        map.serialize_entry("data", &Data::of(self.routed, self.hub_name))?;
        map.serialize_entry("dataVersion", data_version)?;
        map.serialize_entry("metadataVersion", "1")?;
        map.end()
    }
}

/// What the event is about: `devices/<device>`, with `/modules/<module>` for modules; `jobs/<job>`; the hub itself has
/// no name here.
pub(super) fn subject(routed: Routed<'_>) -> String {
    let event = routed.event;
    match event.source {
        EventSource::Producer => return String::new(),
        EventSource::JobLifecycle => {
            return format!("jobs/{}", routed.property("jobId").unwrap_or_default());
        }
        _ => {}
    }
    match event.module_id() {
        None => format!("devices/{}", event.device_id()),
        Some(module_id) => format!("devices/{}/modules/{module_id}", event.device_id()),
    }
}

/// The type of an event.
pub(super) fn event_type(routed: Routed<'_>) -> &'static str {
    let operation = routed.property("opType").unwrap_or_default();
    match routed.event.source {
        EventSource::Telemetry => "Microsoft.Devices.DeviceTelemetry",
        EventSource::DeviceLifecycle if operation.starts_with("delete") => "Microsoft.Devices.DeviceDeleted",
        EventSource::DeviceLifecycle => "Microsoft.Devices.DeviceCreated",
        EventSource::ConnectionState if operation.ends_with("Disconnected") => {
            "Microsoft.Devices.DeviceDisconnected"
        }
        EventSource::ConnectionState => "Microsoft.Devices.DeviceConnected",
        EventSource::TwinChange => "Holdfast.Devices.TwinChanged",
        EventSource::JobLifecycle => "Holdfast.Devices.JobChanged",
        EventSource::DigitalTwinChange => "Holdfast.Devices.DigitalTwinChanged",
        EventSource::Producer => "Holdfast.Devices.ProducerEvent",
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Message,
    Twin,
    Connection,
}

const fn data_form(source: EventSource) -> Form {
    match source {
        EventSource::DeviceLifecycle => Form::Twin,
        EventSource::ConnectionState => Form::Connection,
        _ => Form::Message,
    }
}

/// The member `data`, the same in both schemas.
pub(super) struct Data<'a> {
    routed: Routed<'a>,
    hub_name: &'a str,
}

impl<'a> Data<'a> {
    pub(super) fn of(routed: Routed<'a>, hub_name: &'a str) -> Self {
        Data { routed, hub_name }
    }
}

impl Serialize for Data<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let routed = self.routed;
        let mut map = serializer.serialize_map(None)?;
        let body = match data_form(routed.event.source) {
            Form::Message => {
                map.serialize_entry("properties", &Properties(routed))?;
                map.serialize_entry("systemProperties", &SystemProperties(routed))?;
                map.serialize_entry("body", &routed.body())?;
                return map.end();
            }
            Form::Twin => "twin",
            Form::Connection => "deviceConnectionStateEventInfo",
        };
        map.serialize_entry(body, &routed.body())?;
        map.serialize_entry("hubName", self.hub_name)?;
        map.serialize_entry("deviceId", routed.event.device_id())?;
        if let Some(module_id) = routed.event.module_id() {
            map.serialize_entry("moduleId", module_id)?;
        }
        map.end()
    }
}

struct SystemProperties<'a>(Routed<'a>);

impl Serialize for SystemProperties<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let event = self.0.event;
        let mut map = serializer.serialize_map(None)?;
        for field in event.fields() {
            if let EventField::System(property, value) = field {
                map.serialize_entry(wire_name(property), value)?;
            }
        }
        if event.source.concerns_identity() {
            map.serialize_entry(names::CONNECTION_DEVICE_ID, event.device_id())?;
            if let Some(module_id) = event.module_id() {
                map.serialize_entry(names::CONNECTION_MODULE_ID, module_id)?;
            }
            if let Some(method) = names::auth_method_json(event.auth, event.module_id().is_some()) {
                map.serialize_entry(names::CONNECTION_AUTH_METHOD, method)?;
                let generation = event.generation_id.to_string();
                map.serialize_entry(names::CONNECTION_AUTH_GENERATION_ID, &generation)?;
            }
        }
        map.serialize_entry(names::ENQUEUED_TIME, &time(event.enqueued_at))?;
        map.serialize_entry(names::MESSAGE_SOURCE, event.source.as_str())?;
        map.end()
    }
}

/// Content type and encoding carry the prefix of the wire names (languages.md 3.3), the rest is named as elsewhere.
const fn wire_name(property: SystemProperty) -> &'static str {
    match property {
        SystemProperty::ContentType => "iothub-content-type",
        SystemProperty::ContentEncoding => "iothub-content-encoding",
        SystemProperty::MessageId => "iothub-messageid",
        SystemProperty::CorrelationId => "iothub-correlationid",
        SystemProperty::UserId => "iothub-userid",
        SystemProperty::To => "iothub-to",
        other => names::system_property_name(other),
    }
}
