//! Messages in the form the hub's device links have (AMQP contract, section 3).

use std::fmt::Write as _;

use bytes::Bytes;
use holdfast_amqp::Message as Encoded;
use holdfast_amqp::message::{MessageId, Properties, Writer};
use holdfast_amqp::types::Value;
use holdfast_model::Timestamp;
use holdfast_model::message::{Message, SystemProperty};
use holdfast_wire::annotations;

/// System properties that travel as application properties.
const AS_APPLICATION: &[(SystemProperty, &str)] = &[
    (SystemProperty::CreationTimeUtc, "iothub-creation-time-utc"),
    (SystemProperty::MessageSchema, "iothub-message-schema"),
    (SystemProperty::OutputName, "iothub-outputname"),
    (SystemProperty::Operation, "iothub-operation"),
    (SystemProperty::Ack, "iothub-ack"),
];
/// System properties that travel as annotations.
const AS_ANNOTATIONS: &[(SystemProperty, &str)] = &[
    (SystemProperty::InterfaceId, annotations::INTERFACE_ID),
    (SystemProperty::Subject, annotations::SUBJECT),
    (SystemProperty::DiagnosticId, "Diagnostic-Id"),
    (SystemProperty::DiagnosticContext, "Correlation-Context"),
];

/// Appends a telemetry message.
pub(super) fn write_telemetry(out: &mut Vec<u8>, message: &Message) {
    let system = |property| message.system(property);
    let mut writer = Writer::new(out);
    if AS_ANNOTATIONS
        .iter()
        .any(|(property, _)| system(*property).is_some())
    {
        writer.message_annotations(|map| {
            for (property, key) in AS_ANNOTATIONS {
                if let Some(value) = system(*property) {
                    map.symbol(key, &Value::String(value));
                }
            }
        });
    }
    writer.properties(&Properties {
        message_id: system(SystemProperty::MessageId).map(MessageId::String),
        user_id: system(SystemProperty::UserId).map(str::as_bytes),
        to: system(SystemProperty::To),
        correlation_id: system(SystemProperty::CorrelationId).map(MessageId::String),
        content_type: system(SystemProperty::ContentType),
        content_encoding: system(SystemProperty::ContentEncoding),
        absolute_expiry_time: system(SystemProperty::ExpiryTimeUtc)
            .and_then(Timestamp::parse)
            .map(Timestamp::as_millis),
        ..Properties::default()
    });
    let as_application = || {
        AS_APPLICATION
            .iter()
            .filter(|(property, _)| system(*property).is_some())
    };
    if !message.properties.is_empty() || as_application().next().is_some() {
        writer.application_properties(|map| {
            for (property, key) in as_application() {
                map.string(key, &Value::String(system(*property).unwrap_or_default()));
            }
            for (key, value) in &message.properties {
                map.string(key, &Value::String(value.as_deref().unwrap_or_default()));
            }
        });
    }
    writer.data(&message.body);
}

/// Reads a cloud-to-device message.
pub(super) fn read_message(encoded: &Encoded<'_>) -> Message {
    let mut message = Message {
        body: body(encoded),
        ..Message::default()
    };
    let properties = &encoded.properties;
    let texts = [
        (
            SystemProperty::MessageId,
            properties.message_id.as_ref().map(id_text),
        ),
        (
            SystemProperty::CorrelationId,
            properties.correlation_id.as_ref().map(id_text),
        ),
        (
            SystemProperty::UserId,
            properties
                .user_id
                .map(|id| String::from_utf8_lossy(id).into_owned()),
        ),
        (SystemProperty::To, properties.to.map(str::to_owned)),
        (
            SystemProperty::ContentType,
            properties.content_type.map(str::to_owned),
        ),
        (
            SystemProperty::ContentEncoding,
            properties.content_encoding.map(str::to_owned),
        ),
        (
            SystemProperty::ExpiryTimeUtc,
            properties
                .absolute_expiry_time
                .map(|at| Timestamp::from_millis(at).to_string()),
        ),
    ];
    for (property, text) in texts {
        if let Some(text) = text {
            message.set_system(property, text);
        }
    }
    for (key, value) in encoded.application_properties.iter().flat_map(|map| map.iter()) {
        let Some(key) = key.as_str() else { continue };
        let text = text_of(&value);
        match AS_APPLICATION.iter().find(|(_, known)| *known == key) {
            Some((property, _)) => message.set_system(*property, text.unwrap_or_default()),
            None => message.set_property(key, text),
        }
    }
    message
}

/// The content, of one section or more.
pub(super) fn body(encoded: &Encoded<'_>) -> Bytes {
    use holdfast_amqp::message::Body;
    match &encoded.body {
        Body::Data(data) if data.len() != 1 => {
            let sections: Vec<&[u8]> = data.iter().collect();
            sections.concat().into()
        }
        body => Bytes::copy_from_slice(body.as_bytes().unwrap_or_default()),
    }
}

pub(super) fn id_text(id: &MessageId<'_>) -> String {
    match id {
        MessageId::Ulong(number) => number.to_string(),
        MessageId::Uuid(bytes) => uuid_text(bytes),
        MessageId::Binary(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        MessageId::String(text) => (*text).to_owned(),
    }
}

fn uuid_text(bytes: &[u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (at, byte) in bytes.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn text_of(value: &Value<'_>) -> Option<String> {
    if value.is_null() {
        return None;
    }
    if let Some(text) = value.as_str() {
        return Some(text.to_owned());
    }
    match value {
        Value::Bool(value) => Some(value.to_string()),
        other => Some(
            other
                .as_i64()
                .map_or_else(|| format!("{other:?}"), |number| number.to_string()),
        ),
    }
}

/// What a twin request is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum TwinOperation {
    Get,
    PatchReported,
    Subscribe,
    Unsubscribe,
}

/// Appends a twin request.
pub(super) fn write_twin_request(out: &mut Vec<u8>, operation: TwinOperation, rid: &str, body: &[u8]) {
    let (name, resource) = match operation {
        TwinOperation::Get => ("GET", None),
        TwinOperation::PatchReported => ("PATCH", Some("/properties/reported")),
        TwinOperation::Subscribe => ("PUT", Some("/notifications/twin/properties/desired")),
        TwinOperation::Unsubscribe => ("DELETE", Some("/notifications/twin/properties/desired")),
    };
    let body = if body.is_empty() { b" " } else { body };
    Writer::new(out)
        .message_annotations(|map| {
            map.symbol("operation", &Value::String(name));
            if let Some(resource) = resource {
                map.symbol("resource", &Value::String(resource));
            }
        })
        .properties(&Properties {
            correlation_id: Some(MessageId::String(rid)),
            ..Properties::default()
        })
        .data(body);
}

/// Appends the answer to a method.
pub(super) fn write_method_answer(out: &mut Vec<u8>, id: MessageId<'_>, status: i64, body: &[u8]) {
    let status = i32::try_from(status).unwrap_or(i32::MAX);
    Writer::new(out)
        .properties(&Properties {
            correlation_id: Some(id),
            ..Properties::default()
        })
        .application_properties(|map| {
            map.string("IoThub-status", &Value::Int(status));
        })
        .data(body);
}

/// Appends a request that puts a token.
pub(super) fn write_put_token(out: &mut Vec<u8>, id: &str, audience: &str, token: &str) {
    Writer::new(out)
        .properties(&Properties {
            message_id: Some(MessageId::String(id)),
            to: Some("$cbs"),
            reply_to: Some("cbs"),
            ..Properties::default()
        })
        .application_properties(|map| {
            map.string("operation", &Value::String("put-token"));
            map.string("type", &Value::String("servicebus.windows.net:sastoken"));
            map.string("name", &Value::String(audience));
        })
        .value(&Value::String(token));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn telemetry_keeps_what_a_message_has() {
        let mut message = Message {
            body: Bytes::from_static(b"{}"),
            ..Message::default()
        };
        for (property, value) in [
            (SystemProperty::MessageId, "m-1"),
            (SystemProperty::ContentType, "application/json"),
            (SystemProperty::OutputName, "out"),
            (SystemProperty::Subject, "thermostat"),
        ] {
            message.set_system(property, value);
        }
        message.set_property("level", Some("3".to_owned()));
        let mut bytes = Vec::new();
        write_telemetry(&mut bytes, &message);
        let encoded = Encoded::decode(&bytes).expect("a message");
        let annotation = encoded.message_annotations.and_then(|map| map.get("dt-subject"));
        assert_eq!(annotation.and_then(|value| value.as_str()), Some("thermostat"));
        let read = read_message(&encoded);
        assert_eq!(read.system(SystemProperty::OutputName), Some("out"));
        assert_eq!(read.system(SystemProperty::MessageId), Some("m-1"));
        assert_eq!(read.properties, message.properties);
        assert_eq!(read.body, message.body);
    }

    #[test]
    fn ids_of_every_type_have_a_text() {
        let uuid: [u8; 16] = std::array::from_fn(|at| at as u8);
        assert_eq!(
            id_text(&MessageId::Uuid(uuid)),
            "00010203-0405-0607-0809-0a0b0c0d0e0f"
        );
        assert_eq!(id_text(&MessageId::Ulong(7)), "7");
    }
}
