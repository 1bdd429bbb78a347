//! From events to messages.

use bytes::Bytes;
use holdfast_ports::endpoint::Outbound;
use holdfast_wire::routed::storage;

use crate::endpoints::{device_of, routed};

/// The subject of an event.
pub(super) fn subject(format: &str, hub_name: &str, event: &Outbound<'_>) -> String {
    let view = event.event;
    format
        .replace("{partition}", &view.partition.to_string())
        .replace("{source}", view.source.as_str())
        .replace("{iothub}", &part(hub_name))
        .replace("{moduleid}", &part(view.module_id().unwrap_or("_")))
        .replace("{deviceid}", &part(device_of(&view).unwrap_or("_")))
}

/// A value as one part of a subject.
fn part(value: &str) -> String {
    let replaced = |c: char| matches!(c, '.' | '*' | '>' | '{' | '}') || c.is_whitespace() || c.is_control();
    if value.is_empty() {
        return "_".to_owned();
    }
    value.chars().map(|c| if replaced(c) { '_' } else { c }).collect()
}

/// The record of storage endpoints (languages.md 2.8).
pub(super) fn payload(event: &Outbound<'_>) -> Bytes {
    let mut out = Vec::with_capacity(event.event.body.len() + 512);
    storage::write(routed(event), &mut out);
    out.into()
}
