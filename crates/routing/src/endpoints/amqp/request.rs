//! From events to messages (languages.md 3.1): what readers of the built-in endpoint get, without the annotations that
//! the receiving side sets itself.

use holdfast_amqp::message::{Header, MessageId, Properties, Writer};
use holdfast_amqp::types::Value;
use holdfast_model::Timestamp;
use holdfast_model::event::{EventField, EventSource, EventView};
use holdfast_model::message::SystemProperty;
use holdfast_ports::endpoint::Outbound;
use holdfast_wire::annotations;

use crate::endpoints::{device_of, routed};

/// Appends the encoded message.
pub(super) fn write(outbound: &Outbound<'_>, out: &mut Vec<u8>) {
    let event = &outbound.event;
    let header = Header {
        durable: true,
        ..Header::default()
    };
    let mut writer = Writer::new(out);
    writer
        .header(&header)
        .message_annotations(|map| {
            for (name, value) in annotations_of(event) {
                map.symbol(name, &value.as_value());
            }
        })
        .properties(&properties(event));
    let application = routed(outbound).properties();
    let creation = event.system(SystemProperty::CreationTimeUtc);
    let schema = event.system(SystemProperty::MessageSchema);
    if !application.is_empty() || creation.is_some() || schema.is_some() {
        writer.application_properties(|map| {
            for (key, value) in application {
                map.string(key, &Value::String(value.unwrap_or_default()));
            }
            if let Some(creation) = creation {
                map.string("iothub-creation-time-utc", &Value::String(creation));
            }
            if let Some(schema) = schema {
                map.string("iothub-message-schema", &Value::String(schema));
            }
        });
    }
    writer.data(event.body);
}

/// An annotation's value.
enum Annotation<'a> {
    Text(std::borrow::Cow<'a, str>),
    Time(Timestamp),
}

impl Annotation<'_> {
    fn as_value(&self) -> Value<'_> {
        match self {
            Annotation::Text(text) => Value::String(text),
            Annotation::Time(at) => Value::Timestamp(at.as_millis()),
        }
    }
}

fn annotations_of<'a>(event: &EventView<'a>) -> Vec<(&'static str, Annotation<'a>)> {
    let text = |text: &'a str| Annotation::Text(text.into());
    let mut all = Vec::with_capacity(10);
    let mut key = None;
    for field in event.fields() {
        if let EventField::System(property, value) = field {
            let name = match property {
                SystemProperty::Subject => annotations::SUBJECT,
                SystemProperty::InterfaceId => annotations::INTERFACE_ID,
                SystemProperty::DataSchema => annotations::DATA_SCHEMA,
                SystemProperty::DiagnosticId => "Diagnostic-Id",
                SystemProperty::DiagnosticContext => "Correlation-Context",
                SystemProperty::PartitionKey => {
                    key = Some(value);
                    continue;
                }
                _ => continue,
            };
            all.push((name, text(value)));
        }
    }
    if let Some(device_id) = device_of(event) {
        // Keeps the events of a device in order at a receiver with partitions.
        key = key.or(Some(device_id));
        all.push((annotations::CONNECTION_DEVICE_ID, text(device_id)));
        if let Some((_, module_id)) = event.identity.split_once('/') {
            all.push((annotations::CONNECTION_MODULE_ID, text(module_id)));
        }
        if let Some(method) = annotations::auth_method_json(event.auth, event.module_id().is_some()) {
            all.push((annotations::CONNECTION_AUTH_METHOD, text(method)));
            let generation = event.generation_id.to_string();
            all.push((
                annotations::CONNECTION_AUTH_GENERATION_ID,
                Annotation::Text(generation.into()),
            ));
        }
    }
    if event.source != EventSource::Producer {
        all.push((annotations::ENQUEUED_TIME, Annotation::Time(event.enqueued_at)));
        all.push((annotations::MESSAGE_SOURCE, text(event.source.as_str())));
    }
    if let Some(key) = key {
        all.push((annotations::PARTITION_KEY, text(key)));
    }
    all
}

fn properties<'a>(event: &EventView<'a>) -> Properties<'a> {
    let millis = |text: &str| Timestamp::parse(text).map(Timestamp::as_millis);
    let mut properties = Properties::default();
    for field in event.fields() {
        let EventField::System(property, value) = field else {
            continue;
        };
        match property {
            SystemProperty::MessageId => properties.message_id = Some(MessageId::String(value)),
            SystemProperty::CorrelationId => properties.correlation_id = Some(MessageId::String(value)),
            SystemProperty::UserId => properties.user_id = Some(value.as_bytes()),
            SystemProperty::To => properties.to = Some(value),
            SystemProperty::ContentType => properties.content_type = Some(value),
            SystemProperty::ContentEncoding => properties.content_encoding = Some(value),
            SystemProperty::ExpiryTimeUtc => properties.absolute_expiry_time = millis(value),
            SystemProperty::CreationTimeUtc => properties.creation_time = millis(value),
            _ => {}
        }
    }
    properties
}
