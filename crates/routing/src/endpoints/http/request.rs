//! From events to the body of a request.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use holdfast_model::Timestamp;
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

/// A body compressed with gzip.
pub(super) fn gzipped(body: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 4), Compression::fast());
    encoder
        .write_all(body)
        .and_then(|()| encoder.finish())
        .expect("writing to memory does not fail")
}

/// A date as headers have it (RFC 9110 5.6.7), such as `Wed, 21 Oct 2026 07:28:00 GMT`. The two obsolete forms are not
/// read.
pub(super) fn date(text: &str) -> Option<Timestamp> {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let (_, rest) = text.trim().split_once(", ")?;
    let mut parts = rest.split(' ');
    let (day, month, year, time) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let month = MONTHS.iter().position(|known| *known == month)? + 1;
    if parts.next() != Some("GMT") || parts.next().is_some() {
        return None;
    }
    Timestamp::parse(&format!("{year}-{month:02}-{day}T{time}Z"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_headers() {
        let at = date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        assert_eq!(at, Timestamp::from_seconds(784_111_777));
        for bad in [
            "",
            "7",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
            "Sun, 06 Nov 1994 08:49:37 CET",
            "Sun, 06 Foo 1994 08:49:37 GMT",
            "Sun, 66 Nov 1994 08:49:37 GMT",
        ] {
            assert_eq!(date(bad), None, "{bad}");
        }
    }
}
