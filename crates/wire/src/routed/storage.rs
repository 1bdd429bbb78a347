//! The record of storage endpoints (languages.md 2.8).
//!
//! ```text
//! {"EnqueuedTimeUtc":"2019-09-26T17:46:09.8870000Z","Properties":{…},
//!  "SystemProperties":{"connectionDeviceId":"d",…,"enqueuedTime":"2019-09-26T17:46:09.8870000Z"},"Body":{…}}
//! ```

use holdfast_model::event::EventField;
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::{Properties, Routed, put, time};
use crate::annotations::{auth_method_json, system_property_name};

/// Appends the record as one line, without a line break.
pub fn write(event: Routed<'_>, out: &mut Vec<u8>) {
    put(&Record(event), out);
}

/// System properties by the names of the record, in the order of the record.
#[must_use]
pub fn system_properties<'a>(routed: Routed<'a>) -> Vec<(&'static str, std::borrow::Cow<'a, str>)> {
    let event = routed.event;
    let mut all: Vec<(&'static str, std::borrow::Cow<'a, str>)> = Vec::with_capacity(8);
    // No device had a part in what a producer sent straight to the event endpoint, or in a job.
    if event.source.concerns_identity() {
        all.push(("connectionDeviceId", event.device_id().into()));
        if let Some(module_id) = event.module_id() {
            all.push(("connectionModuleId", module_id.into()));
        }
        if let Some(method) = auth_method_json(event.auth, event.module_id().is_some()) {
            all.push(("connectionAuthMethod", method.into()));
            let generation = event.generation_id.to_string();
            all.push(("connectionDeviceGenerationId", generation.into()));
        }
    }
    for field in event.fields() {
        if let EventField::System(property, value) = field {
            all.push((system_property_name(property), value.into()));
        }
    }
    all.push(("enqueuedTime", time(event.enqueued_at).into()));
    all
}

struct Record<'a>(Routed<'a>);

impl Serialize for Record<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let routed = self.0;
        let mut map = serializer.serialize_map(Some(4))?;
        map.serialize_entry("EnqueuedTimeUtc", &time(routed.event.enqueued_at))?;
        map.serialize_entry("Properties", &Properties(routed))?;
        map.serialize_entry("SystemProperties", &SystemProperties(routed))?;
        map.serialize_entry("Body", &routed.body())?;
        map.end()
    }
}

struct SystemProperties<'a>(Routed<'a>);

impl Serialize for SystemProperties<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (name, value) in system_properties(self.0) {
            map.serialize_entry(name, &value)?;
        }
        map.end()
    }
}
