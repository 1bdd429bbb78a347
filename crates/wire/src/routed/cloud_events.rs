//! CloudEvents 1.0 in the JSON format: one event, or several in an array.

use serde::ser::{Serialize, SerializeMap, Serializer};

use super::event_grid::{Data, event_type, subject};
use super::{Routed, put, time};

/// Media type of one event.
pub const MEDIA_TYPE: &str = "application/cloudevents+json; charset=utf-8";
/// Media type of an array of events.
pub const BATCH_MEDIA_TYPE: &str = "application/cloudevents-batch+json; charset=utf-8";

/// Appends an event without a line break. `source` is the topic of the Event Grid schema
/// ([`topic`](super::event_grid::topic)).
pub fn write(event: Routed<'_>, source: &str, hub_name: &str, out: &mut Vec<u8>) {
    put(
        &Event {
            routed: event,
            source,
            hub_name,
        },
        out,
    );
}

struct Event<'a> {
    routed: Routed<'a>,
    source: &'a str,
    hub_name: &'a str,
}

impl Serialize for Event<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("specversion", "1.0")?;
        map.serialize_entry("id", &self.routed.id())?;
        map.serialize_entry("source", self.source)?;
        map.serialize_entry("type", event_type(self.routed))?;
        let subject = subject(self.routed);
        // An attribute that is there may not be empty (CloudEvents 1.0, subject).
        if !subject.is_empty() {
            map.serialize_entry("subject", &subject)?;
        }
        map.serialize_entry("time", &time(self.routed.event.enqueued_at))?;
        map.serialize_entry("datacontenttype", "application/json")?;
        map.serialize_entry("data", &Data::of(self.routed, self.hub_name))?;
        map.end()
    }
}
