//! Twins as devices and services see them.

use bytes::Bytes;
use serde_json::{Map, Value};

use crate::twin::{ChangeMode, Section, Twin};

impl Section {
    /// The section as a service sees it: properties, `$metadata` and `$version` in one object (rest.md 6.1).
    #[must_use]
    pub fn to_service_json(&self) -> Map<String, Value> {
        let mut json = self.properties.clone();
        json.insert("$metadata".into(), Value::Object(self.metadata.clone()));
        json.insert("$version".into(), self.version.into());
        json
    }

    fn write_device_json(&self, out: &mut Vec<u8>) {
        write_with_version(&self.properties, self.version, out);
    }
}

impl Twin {
    /// The twin as its device sees it: `{"desired":{…,"$version":n},"reported":{…,"$version":m}}`, neither tags nor
    /// metadata (mqtt.md 6.2).
    #[must_use]
    pub fn device_json(&self) -> Bytes {
        let mut out = Vec::with_capacity(256);
        out.extend_from_slice(b"{\"desired\":");
        self.desired.write_device_json(&mut out);
        out.extend_from_slice(b",\"reported\":");
        self.reported.write_device_json(&mut out);
        out.push(b'}');
        out.into()
    }
}

/// What a device is told of a change of its desired properties: a JSON object of the changes with `$version`, where
/// null stands for a removed key (mqtt.md 6.2).
///
/// For a patch these are the patch's own members. For a replacement it is the whole new content (rest.md 6.3.5), and
/// null for each key that is gone, so that a device that merges what it is told ends with the right content too.
#[must_use]
pub fn desired_notification(
    mode: ChangeMode,
    change: &Map<String, Value>,
    before: &Map<String, Value>,
    version: u64,
) -> Bytes {
    let mut told: Map<String, Value> = change
        .iter()
        .filter(|(key, _)| !key.starts_with('$'))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    if mode == ChangeMode::Replace {
        drop_nulls(&mut told);
        add_removed(&mut told, before);
    }
    let mut out = Vec::with_capacity(128);
    write_with_version(&told, version, &mut out);
    out.into()
}

fn drop_nulls(object: &mut Map<String, Value>) {
    object.retain(|_, value| !value.is_null());
    for value in object.values_mut() {
        if let Value::Object(inner) = value {
            drop_nulls(inner);
        }
    }
}

/// Adds null for each key of `before` that `after` lacks. Both have passed the depth check.
fn add_removed(after: &mut Map<String, Value>, before: &Map<String, Value>) {
    for (key, old) in before {
        match (after.get_mut(key), old) {
            (None, _) => {
                after.insert(key.clone(), Value::Null);
            }
            (Some(Value::Object(after)), Value::Object(before)) => add_removed(after, before),
            _ => {}
        }
    }
}

/// Writes `object` with a further member `$version`, which no property can be named.
fn write_with_version(object: &Map<String, Value>, version: u64, out: &mut Vec<u8>) {
    // Writing JSON values to memory does not fail.
    let _ = serde_json::to_writer(&mut *out, object);
    out.pop();
    if !object.is_empty() {
        out.push(b',');
    }
    out.extend_from_slice(format!("\"$version\":{version}}}").as_bytes());
}
