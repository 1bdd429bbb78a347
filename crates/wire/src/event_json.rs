//! An event as JSON, for `holdfast monitor` and the event stream of the REST API.
//!
//! ```text
//! {"partition":0,"sequenceNumber":7,"offset":"7","enqueuedTime":"2026-…Z","source":"Telemetry",
//!  "deviceId":"d1","moduleId":"m1","systemProperties":{"contentType":"application/json",…},
//!  "properties":{"level":"3","flag":null},"body":{"temperature":21.5}}
//! ```
//!
//! `moduleId` stands there for modules only. The body is JSON when it parses as JSON, else text when it is UTF-8,
//! else `{"base64":"…"}`. The whole text is one line.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use holdfast_model::event::{EventField, EventSource, EventView};
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize as _, Serialize};
use serde_json::value::RawValue;

use crate::annotations::{auth_method_json, system_property_name};

/// Serializes an event in the form of the [module's doc](self).
#[derive(Clone, Copy, Debug)]
pub struct EventJson<'a>(pub &'a EventView<'a>);

impl EventJson<'_> {
    /// The JSON text.
    #[must_use]
    pub fn text(&self) -> String {
        // Serializing texts and numbers into memory cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// The offset of an event in its partition, as text: its sequence number.
#[must_use]
pub fn offset(sequence_number: u64) -> String {
    sequence_number.to_string()
}

impl Serialize for EventJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let event = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("partition", &event.partition)?;
        map.serialize_entry("sequenceNumber", &event.sequence_number)?;
        map.serialize_entry("offset", &offset(event.sequence_number))?;
        map.serialize_entry("enqueuedTime", &event.enqueued_at.to_string())?;
        map.serialize_entry("source", event.source.as_str())?;
        // No device had a part in what a producer sent straight to the event endpoint, or in a job.
        if event.source.concerns_identity() {
            map.serialize_entry("deviceId", event.device_id())?;
            if let Some(module_id) = event.module_id() {
                map.serialize_entry("moduleId", module_id)?;
            }
        }
        map.serialize_entry("systemProperties", &SystemProperties(event))?;
        map.serialize_entry("properties", &ApplicationProperties(event))?;
        map.serialize_entry("body", &Body(event.body))?;
        map.end()
    }
}

struct SystemProperties<'a>(&'a EventView<'a>);

impl Serialize for SystemProperties<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let event = self.0;
        let mut map = serializer.serialize_map(None)?;
        for field in event.fields() {
            if let EventField::System(property, value) = field {
                map.serialize_entry(system_property_name(property), value)?;
            }
        }
        if event.source == EventSource::Producer {
            return map.end();
        }
        // Nobody has sent what the hub made.
        if let Some(method) = auth_method_json(event.auth, event.module_id().is_some()) {
            map.serialize_entry("connectionAuthMethod", method)?;
            map.serialize_entry("connectionDeviceGenerationId", &event.generation_id.to_string())?;
        }
        map.end()
    }
}

struct ApplicationProperties<'a>(&'a EventView<'a>);

impl Serialize for ApplicationProperties<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for field in self.0.fields() {
            if let EventField::Application(key, value) = field {
                map.serialize_entry(key, &value)?;
            }
        }
        map.end()
    }
}

struct Body<'a>(&'a [u8]);

impl Serialize for Body<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Ok(text) = std::str::from_utf8(self.0) else {
            let mut map = serializer.serialize_map(Some(1))?;
            map.serialize_entry("base64", &STANDARD.encode(self.0))?;
            return map.end();
        };
        match raw_json(&one_line(text)) {
            Some(json) => json.serialize(serializer),
            None => serializer.serialize_str(text),
        }
    }
}

/// Deepest nesting of a body that is shown as JSON; readers that recurse must be able to read the whole event.
const DEPTH_MAX: usize = 64;

/// The text as it stands, when it is one JSON value: numbers keep their digits, members their order.
pub(crate) fn raw_json(text: &str) -> Option<&RawValue> {
    if depth(text) > DEPTH_MAX {
        return None;
    }
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = <&RawValue>::deserialize(&mut deserializer).ok()?;
    deserializer.end().ok()?;
    Some(value)
}

/// Deepest nesting of brackets outside strings.
fn depth(text: &str) -> usize {
    let (mut depth, mut deepest) = (0usize, 0usize);
    let (mut in_string, mut escaped) = (false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// Replaces line breaks by spaces. Inside JSON they can only stand between tokens, since strings escape them, and
/// readers take one line for one event.
pub(crate) fn one_line(text: &str) -> Cow<'_, str> {
    if text.bytes().any(|byte| matches!(byte, b'\n' | b'\r')) {
        Cow::Owned(text.replace(['\n', '\r'], " "))
    } else {
        Cow::Borrowed(text)
    }
}

#[cfg(test)]
mod tests {
    use holdfast_model::Identity;
    use holdfast_model::Timestamp;
    use holdfast_model::event::{AuthMethod, EventBlock, EventSource, Origin, Records};
    use holdfast_model::message::SystemProperty;
    use serde_json::{Value, json};

    use super::*;

    fn block(identity: &str, records: &Records) -> EventBlock {
        let origin = Origin {
            source: EventSource::Telemetry,
            identity: Identity::parse(identity).expect("an identity"),
            generation_id: 42,
            auth: AuthMethod::IdentityKey,
        };
        let mut data = Vec::new();
        origin.encode(holdfast_model::event::EndpointSet::EVENTS, &mut data);
        data.extend_from_slice(records.as_bytes());
        EventBlock {
            partition: 1,
            first_sequence_number: 7,
            count: records.count(),
            enqueued_at: Timestamp::from_seconds(0),
            data: data.into(),
        }
    }

    fn body_of(body: &[u8]) -> (String, Value) {
        let mut records = Records::new();
        let _ = records.record().finish(body);
        let block = block("d1", &records);
        let event = block.events().next().expect("an event").expect("well formed");
        let text = EventJson(&event).text();
        let value: Value = serde_json::from_str(&text).expect("JSON");
        (text, value["body"].clone())
    }

    #[test]
    fn whole_event() {
        let mut records = Records::new();
        let mut record = records.record();
        record.system(SystemProperty::ContentType, "application/json");
        record.system(SystemProperty::Subject, "thermostat");
        record.property("level", Some("3"));
        record.property("flag", None);
        let _ = record.finish(br#"{"temperature":21.5}"#);
        let block = block("d1/m1", &records);
        let event = block.events().next().expect("an event").expect("well formed");
        let value: Value = serde_json::from_str(&EventJson(&event).text()).expect("JSON");
        assert_eq!(
            value,
            json!({
                "partition": 1, "sequenceNumber": 7, "offset": "7",
                "enqueuedTime": "1970-01-01T00:00:00Z", "source": "Telemetry",
                "deviceId": "d1", "moduleId": "m1",
                "systemProperties": {
                    "contentType": "application/json",
                    "dt-subject": "thermostat",
                    "connectionAuthMethod":
                        "{\"scope\":\"module\",\"type\":\"sas\",\"issuer\":\"iothub\",\"acceptingIpFilterRule\":null}",
                    "connectionDeviceGenerationId": "42",
                },
                "properties": {"level": "3", "flag": null},
                "body": {"temperature": 21.5},
            })
        );
    }

    #[test]
    fn bodies_of_every_kind() {
        assert_eq!(body_of(b"21.5").1, json!(21.5));
        assert_eq!(body_of(b"hello").1, json!("hello"));
        assert_eq!(body_of(b"").1, json!(""));
        assert_eq!(body_of(b"{\"a\":1} x").1, json!("{\"a\":1} x"));
        assert_eq!(body_of(&[0xff, 0x00]).1, json!({"base64": "/wA="}));
        assert_eq!(body_of("ä".as_bytes()).1, json!("ä"));
    }

    #[test]
    fn digits_are_kept_and_the_text_is_one_line() {
        let (text, _) = body_of(b"{\r\n  \"id\": 123456789012345678901234567890\r\n}\n");
        assert!(text.contains("123456789012345678901234567890"), "{text}");
        assert!(!text.contains(['\n', '\r']), "{text}");
        let (text, value) = body_of(b"line 1\nline 2");
        assert!(!text.contains('\n'), "{text}");
        assert_eq!(value, json!("line 1\nline 2"));
    }

    #[test]
    fn deep_bodies_do_no_harm() {
        let open = "[".repeat(100_000);
        for deep in [open.clone(), open + &"]".repeat(100_000)] {
            assert_eq!(body_of(deep.as_bytes()).1, json!(deep));
        }
        let brackets = format!("{{\"a\":\"{}\\\"\"}}", "[".repeat(100));
        assert!(body_of(brackets.as_bytes()).1.is_object());
    }
}
