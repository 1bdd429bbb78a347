//! Routed events as texts for other systems: the record of the storage endpoint ([`storage`], languages.md 2.8), the
//! Event Grid schema ([`event_grid`]) and CloudEvents 1.0 ([`cloud_events`], both languages.md 3.3).
//!
//! All of them are pure functions that append one line of JSON to a buffer.

pub mod cloud_events;
pub mod event_grid;
pub mod storage;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use holdfast_model::Timestamp;
use holdfast_model::event::{EventField, EventView};
use holdfast_model::message::SystemProperty;
use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::event_json::{one_line, raw_json};

/// An event on its way to one endpoint.
#[derive(Clone, Copy, Debug)]
pub struct Routed<'a> {
    /// The event as it stands in the log.
    pub event: &'a EventView<'a>,
    /// Application properties that are added; one that the event has too replaces the event's.
    pub enrichments: &'a [(&'a str, String)],
}

/// With more properties than this, doubles are found through a map.
const FEW: usize = 16;

impl<'a> Routed<'a> {
    /// Application properties, each name once: of two values the later one counts, and enrichments before all.
    #[must_use]
    pub fn properties(&self) -> Vec<(&'a str, Option<&'a str>)> {
        let own = self.event.fields().filter_map(|field| match field {
            EventField::Application(key, value) => Some((key, value)),
            EventField::System(..) => None,
        });
        let added = self.enrichments.iter();
        let all: Vec<_> = own
            .chain(added.map(|(key, value)| (*key, Some(value.as_str()))))
            .collect();
        if all.len() > FEW {
            return all.into_iter().collect::<BTreeMap<_, _>>().into_iter().collect();
        }
        let last =
            |(at, (key, _)): &(usize, &(&str, _))| !all[at + 1..].iter().any(|(later, _)| later == key);
        all.iter()
            .enumerate()
            .filter(last)
            .map(|(_, entry)| *entry)
            .collect()
    }

    /// An application property, as [`Routed::properties`] has it.
    #[must_use]
    pub fn property(&self, key: &str) -> Option<&'a str> {
        let added = self.enrichments.iter().rev().find(|(name, _)| *name == key);
        if let Some((_, value)) = added {
            return Some(value);
        }
        let values = self.event.fields().filter_map(|field| match field {
            EventField::Application(name, value) if name == key => Some(value),
            _ => None,
        });
        values.last().flatten()
    }

    /// The body as JSON: inline if the event says that it is JSON in UTF-8 and it is, else as a base64 text.
    #[must_use]
    pub fn body(&self) -> Body<'a> {
        Body {
            bytes: self.event.body,
            json: self.says_json(),
        }
    }

    /// Whether content type and encoding announce JSON in UTF-8.
    #[must_use]
    pub fn says_json(&self) -> bool {
        let content_type = self.event.system(SystemProperty::ContentType).unwrap_or_default();
        let encoding = self
            .event
            .system(SystemProperty::ContentEncoding)
            .unwrap_or_default();
        let media = content_type.split(';').next().unwrap_or_default().trim();
        let suffixed = media.len() > 5 && media.as_bytes()[media.len() - 5..].eq_ignore_ascii_case(b"+json");
        (media.eq_ignore_ascii_case("application/json") || suffixed)
            && (encoding.eq_ignore_ascii_case("utf-8") || encoding.eq_ignore_ascii_case("utf8"))
    }

    /// An id that stays the same when the event is delivered again, and that no other event of the hub has.
    #[must_use]
    pub fn id(&self) -> String {
        let event = self.event;
        let at = event.enqueued_at.as_micros();
        format!("{}-{}-{at:x}", event.partition, event.sequence_number)
    }
}

/// See [`Routed::body`].
#[derive(Clone, Copy, Debug)]
pub struct Body<'a> {
    bytes: &'a [u8],
    json: bool,
}

impl Serialize for Body<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.json
            && let Ok(text) = std::str::from_utf8(self.bytes)
            && let Some(json) = raw_json(&one_line(text))
        {
            return json.serialize(serializer);
        }
        serializer.serialize_str(&STANDARD.encode(self.bytes))
    }
}

struct Properties<'a>(Routed<'a>);

impl Serialize for Properties<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (key, value) in self.0.properties() {
            map.serialize_entry(key, &value)?;
        }
        map.end()
    }
}

/// A time with seven fractional digits always, as the original service writes it in these forms.
#[must_use]
pub fn time(at: Timestamp) -> String {
    let text = at.to_string();
    if text.contains('.') {
        return text;
    }
    format!("{}.0000000Z", text.trim_end_matches('Z'))
}

/// Appends a value as one line of JSON.
fn put(value: &impl Serialize, out: &mut Vec<u8>) {
    let start = out.len();
    if serde_json::to_writer(&mut *out, value).is_err() {
        // Serializing texts and numbers into memory cannot fail; half a value would be worse than none.
        out.truncate(start);
    }
}
