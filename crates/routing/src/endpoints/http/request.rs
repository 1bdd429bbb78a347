//! From events to the body of a request.

use holdfast_ports::endpoint::Outbound;
use holdfast_wire::routed::{cloud_events, event_grid, storage};

use super::config::Format;
use crate::endpoints::routed;

/// How events become requests.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) format: Format,
    pub(super) batch: bool,
    /// `topic` or `source`.
    pub(super) topic: String,
    pub(super) hub_name: String,
}

impl Shape {
    pub(super) fn content_type(&self) -> &'static str {
        match (self.format, self.batch) {
            (Format::CloudEvents, true) => cloud_events::BATCH_MEDIA_TYPE,
            (Format::CloudEvents, false) => cloud_events::MEDIA_TYPE,
            (Format::EventGrid, _) => "application/json; charset=utf-8",
            (Format::Json, _) => "application/x-ndjson; charset=utf-8",
        }
    }

    /// The body for these events.
    pub(super) fn body(&self, events: &[Outbound<'_>]) -> Vec<u8> {
        let array = match self.format {
            Format::CloudEvents => self.batch,
            Format::EventGrid => true,
            Format::Json => false,
        };
        let mut out = Vec::with_capacity(events.len() * 1_024);
        if array {
            out.push(b'[');
        }
        for (at, event) in events.iter().enumerate() {
            if array && at > 0 {
                out.push(b',');
            }
            let event = routed(event);
            match self.format {
                Format::CloudEvents => cloud_events::write(event, &self.topic, &self.hub_name, &mut out),
                Format::EventGrid => event_grid::write(event, &self.topic, &self.hub_name, &mut out),
                Format::Json => {
                    storage::write(event, &mut out);
                    out.push(b'\n');
                }
            }
        }
        if array {
            out.push(b']');
        }
        out
    }
}
