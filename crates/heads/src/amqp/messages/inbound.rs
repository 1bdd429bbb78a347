//! What clients send.

use std::borrow::Cow;

use bytes::Bytes;
use holdfast_amqp::message::Body;
use holdfast_amqp::types::Value;
use holdfast_amqp::{DecodeError, Message};
use holdfast_model::c2d::AckMode;
use holdfast_model::event::Records;
use holdfast_model::message::{Message as HubMessage, SystemProperty};
use holdfast_model::{Error, ErrorCode, Identity, Timestamp};
use holdfast_wire::{annotations, links};

use super::{id_text, uuid_text};

/// Who sends an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::amqp) enum Source<'a> {
    /// A device or module: some of its application properties and annotations are the hub's.
    Device,
    /// A producer at the event endpoint, with the partition key of its batch.
    Producer(Option<&'a str>),
}

/// A message that cannot be taken.
#[derive(Debug, thiserror::Error)]
pub(in crate::amqp) enum Malformed {
    /// Not a message.
    #[error("the message cannot be decoded: {0}")]
    Decode(#[from] DecodeError),
    /// Its body is neither bytes nor text.
    #[error("the message body is neither data nor text")]
    Body,
    /// A property value that has no text.
    #[error("the value of the property `{0}` is a list, map or array")]
    Property(String),
}

/// Application properties that are system properties of a device's message.
const SYSTEM_PROPERTIES: [(&str, SystemProperty); 5] = [
    ("iothub-creation-time-utc", SystemProperty::CreationTimeUtc),
    ("iothub-message-schema", SystemProperty::MessageSchema),
    ("iothub-outputname", SystemProperty::OutputName),
    ("iothub-operation", SystemProperty::Operation),
    ("iothub-ack", SystemProperty::Ack),
];

/// Annotations that are system properties of a device's message.
const ANNOTATIONS: [(&str, SystemProperty); 4] = [
    (annotations::INTERFACE_ID, SystemProperty::InterfaceId),
    (annotations::SUBJECT, SystemProperty::Subject),
    ("Diagnostic-Id", SystemProperty::DiagnosticId),
    ("Correlation-Context", SystemProperty::DiagnosticContext),
];

/// The body in one piece; several Data sections are joined.
pub(in crate::amqp) fn body_of<'a>(message: &Message<'a>) -> Result<Cow<'a, [u8]>, Malformed> {
    if let Some(bytes) = message.body.as_bytes() {
        return Ok(Cow::Borrowed(bytes));
    }
    match &message.body {
        Body::Data(data) => Ok(Cow::Owned(data.iter().flatten().copied().collect())),
        _ => Err(Malformed::Body),
    }
}

/// Appends each message of a batch (message format 0x80013700) as a record; all of it or, with an error, a part that
/// the caller throws away. Returns the size of the largest.
pub(in crate::amqp) fn write_batch(
    envelope: &Message<'_>,
    source: Source<'_>,
    records: &mut Records,
) -> Result<usize, Malformed> {
    let Body::Data(data) = &envelope.body else {
        return Err(Malformed::Body);
    };
    let mut largest = 0;
    for encoded in data.iter() {
        largest = largest.max(write_record(&Message::decode(encoded)?, source, records)?);
    }
    Ok(largest)
}

/// Appends a message as a record; returns its size.
pub(in crate::amqp) fn write_record(
    message: &Message<'_>,
    source: Source<'_>,
    records: &mut Records,
) -> Result<usize, Malformed> {
    let body = body_of(message)?;
    let mut record = records.record();
    let mut size = body.len();
    let mut system = |property, value: &str| {
        size += value.len();
        record.system(property, value);
    };
    each_property(message, &mut system);
    let mut own_key = None;
    if let Some(map) = message.message_annotations {
        match source {
            Source::Device => {
                for (name, property) in ANNOTATIONS {
                    if let Some(value) = map.get(name).and_then(|value| value.as_str()) {
                        system(property, value);
                    }
                }
            }
            Source::Producer(_) => {
                own_key = map
                    .get(annotations::PARTITION_KEY)
                    .and_then(|value| value.as_str());
            }
        }
    }
    if let Source::Producer(key) = source
        && let Some(key) = own_key.or(key)
    {
        system(SystemProperty::PartitionKey, key);
    }
    for (key, value) in message.application_properties.iter().flat_map(|map| map.iter()) {
        let Some(key) = key.as_str() else { continue };
        if source == Source::Device {
            // Set from the link, never from the message.
            if key == annotations::CONNECTION_DEVICE_ID || key == annotations::CONNECTION_MODULE_ID {
                continue;
            }
            if let Some((_, property)) = SYSTEM_PROPERTIES.iter().find(|(name, _)| *name == key) {
                if let Some(value) = text_of(key, value)? {
                    record.system(*property, &value);
                }
                continue;
            }
        }
        let value = text_of(key, value)?;
        size += key.len() + value.as_ref().map_or(0, |value| value.len());
        record.property(key, value.as_deref());
    }
    let _ = record.finish(&body);
    Ok(size)
}

/// Calls `set` for each of the fixed properties that the hub keeps.
fn each_property(message: &Message<'_>, mut set: impl FnMut(SystemProperty, &str)) {
    let properties = &message.properties;
    if let Some(id) = properties.message_id {
        set(SystemProperty::MessageId, &id_text(id));
    }
    if let Some(id) = properties.correlation_id {
        set(SystemProperty::CorrelationId, &id_text(id));
    }
    if let Some(user) = properties.user_id {
        set(SystemProperty::UserId, &String::from_utf8_lossy(user));
    }
    if let Some(text) = properties.content_type {
        set(SystemProperty::ContentType, text);
    }
    if let Some(text) = properties.content_encoding {
        set(SystemProperty::ContentEncoding, text);
    }
    if let Some(millis) = properties.absolute_expiry_time {
        set(
            SystemProperty::ExpiryTimeUtc,
            &Timestamp::from_millis(millis).to_string(),
        );
    }
    if let Some(millis) = properties.creation_time {
        set(
            SystemProperty::CreationTimeUtc,
            &Timestamp::from_millis(millis).to_string(),
        );
    }
}

/// A property's value as text: the hub keeps no types. `None` for null.
fn text_of<'a>(key: &str, value: Value<'a>) -> Result<Option<Cow<'a, str>>, Malformed> {
    Ok(Some(match value {
        Value::Null => return Ok(None),
        Value::String(text) | Value::Symbol(text) => text.into(),
        Value::Bool(value) => value.to_string().into(),
        Value::Float(value) => value.to_string().into(),
        Value::Double(value) => value.to_string().into(),
        Value::Char(value) => value.to_string().into(),
        Value::Ulong(value) => value.to_string().into(),
        Value::Timestamp(millis) => Timestamp::from_millis(millis).to_string().into(),
        Value::Uuid(uuid) => uuid_text(&uuid).into(),
        Value::Binary(bytes) => String::from_utf8_lossy(bytes),
        Value::Described(described) => return text_of(key, described.value()),
        other => match other.as_i64() {
            Some(number) => number.to_string().into(),
            None => return Err(Malformed::Property(key.to_owned())),
        },
    }))
}

/// A cloud-to-device message as a service sends it.
pub(in crate::amqp) struct C2d {
    pub(in crate::amqp) target: Identity,
    pub(in crate::amqp) message: HubMessage,
    pub(in crate::amqp) ack: AckMode,
    pub(in crate::amqp) expires_at: Option<Timestamp>,
}

/// Reads a cloud-to-device message (AMQP contract, section 4.1).
pub(in crate::amqp) fn read_c2d(message: &Message<'_>) -> Result<C2d, Error> {
    let invalid = |text: String| Error::new(ErrorCode::ArgumentInvalid, text);
    let to = message
        .properties
        .to
        .ok_or_else(|| invalid("the property `to` names no device".to_owned()))?;
    let target = links::parse_to(to).map_err(|_| {
        invalid(format!(
            "`to` is not /devices/{{id}}/messages/deviceBound but {to}"
        ))
    })?;
    let body = body_of(message).map_err(|error| invalid(error.to_string()))?;
    let mut read = HubMessage {
        body: Bytes::copy_from_slice(&body),
        ..HubMessage::default()
    };
    each_property(message, |property, value| {
        if property != SystemProperty::ExpiryTimeUtc {
            read.set_system(property, value);
        }
    });
    let mut ack = AckMode::None;
    for (key, value) in message.application_properties.iter().flat_map(|map| map.iter()) {
        let Some(key) = key.as_str() else { continue };
        let value = text_of(key, value).map_err(|error| invalid(error.to_string()))?;
        if key.eq_ignore_ascii_case("iothub-ack") {
            let value = value.unwrap_or_default();
            ack = AckMode::parse(&value).ok_or_else(|| {
                invalid(format!(
                    "iothub-ack is {value}, not none, positive, negative or full"
                ))
            })?;
        } else {
            read.set_property(key, value.map(Cow::into_owned));
        }
    }
    Ok(C2d {
        target,
        message: read,
        ack,
        expires_at: message
            .properties
            .absolute_expiry_time
            .map(Timestamp::from_millis),
    })
}
