//! Messages over device HTTPS (REST contract, sections 15.1 to 15.3).
//!
//! A single message is a request body with its properties in headers; a batch is a JSON array whose items carry the
//! same names as members of `properties`. A cloud-to-device message is a response body with headers.

mod batch;
mod delivery;

#[cfg(test)]
mod tests;

use holdfast_model::event::RecordWriter;
use holdfast_model::message::{Message, SystemProperty};

pub use batch::{BatchItem, parse_batch};
pub use delivery::delivery_headers;

/// Prefix of the headers that carry application properties.
pub const APPLICATION_PREFIX: &str = "iothub-app-";

/// Headers that carry system properties.
const SYSTEM_HEADERS: &[(&str, SystemProperty)] = &[
    ("iothub-messageid", SystemProperty::MessageId),
    ("iothub-correlationid", SystemProperty::CorrelationId),
    ("iothub-userid", SystemProperty::UserId),
    ("iothub-to", SystemProperty::To),
    ("iothub-expiry", SystemProperty::ExpiryTimeUtc),
    ("iothub-ack", SystemProperty::Ack),
    ("iothub-contenttype", SystemProperty::ContentType),
    ("iothub-contentencoding", SystemProperty::ContentEncoding),
    ("iothub-creationtimeutc", SystemProperty::CreationTimeUtc),
    ("iothub-messageschema", SystemProperty::MessageSchema),
    ("iothub-interface-id", SystemProperty::InterfaceId),
    ("dt-subject", SystemProperty::Subject),
    ("iothub-operation", SystemProperty::Operation),
];

/// What a header, or a member of a batch item's `properties`, means for the message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeaderKey<'a> {
    /// A system property.
    System(SystemProperty),
    /// An application property; prefix removed, case as received.
    Application(&'a str),
}

/// The meaning of a header name; `None` for headers that are not part of the message. Case of the name does not
/// count, but for what follows the prefix `iothub-app-`.
#[must_use]
pub fn header_key(name: &str) -> Option<HeaderKey<'_>> {
    let prefix = name.get(..APPLICATION_PREFIX.len());
    if prefix.is_some_and(|prefix| prefix.eq_ignore_ascii_case(APPLICATION_PREFIX)) {
        let key = &name[APPLICATION_PREFIX.len()..];
        return (!key.is_empty()).then_some(HeaderKey::Application(key));
    }
    SYSTEM_HEADERS
        .iter()
        .find(|(known, _)| known.eq_ignore_ascii_case(name))
        .map(|(_, property)| HeaderKey::System(*property))
}

/// Writes the properties among `headers` into an event record; the caller goes on with the body. Headers that are
/// not part of the message are passed over; of equal names the last one counts.
pub fn write_record<'a>(
    headers: impl IntoIterator<Item = (&'a str, &'a str)>,
    record: &mut RecordWriter<'_>,
) {
    let mut known: Vec<(HeaderKey<'a>, &'a str)> = headers
        .into_iter()
        .filter_map(|(name, value)| header_key(name).map(|key| (key, value)))
        .collect();
    keep_last(&mut known);
    for (key, value) in known {
        match key {
            HeaderKey::System(property) => record.system(property, value),
            HeaderKey::Application(name) => record.property(name, Some(value)),
        }
    }
}

/// Reads the properties among `headers`, and a body, into an owned message.
#[must_use]
pub fn read_message<'a>(
    headers: impl IntoIterator<Item = (&'a str, &'a str)>,
    body: bytes::Bytes,
) -> Message {
    let mut message = Message {
        body,
        ..Message::default()
    };
    for (name, value) in headers {
        match header_key(name) {
            Some(HeaderKey::System(property)) => message.set_system(property, value),
            Some(HeaderKey::Application(key)) => message.set_property(key, Some(value.to_owned())),
            None => {}
        }
    }
    message
}

/// Drops what a later entry replaces. Comparing all with all is enough: HTTP servers bound the number of headers.
fn keep_last(entries: &mut Vec<(HeaderKey<'_>, &str)>) {
    let keep: Vec<bool> = (0..entries.len())
        .map(|at| entries[at + 1..].iter().all(|later| later.0 != entries[at].0))
        .collect();
    let mut keep = keep.into_iter();
    entries.retain(|_| keep.next().unwrap_or(true));
}
