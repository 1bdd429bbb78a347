//! Events as readers of the event endpoint get them (AMQP contract, section 5.6).
//!
//! Straight from the stored form into the output buffer: this is the hub's busiest way out.

use std::io::Write as _;

use holdfast_amqp::message::{MessageId, Properties, Writer};
use holdfast_amqp::types::Value;
use holdfast_model::Timestamp;
use holdfast_model::event::{EventField, EventSource, EventView};
use holdfast_model::message::SystemProperty;
use holdfast_ports::event_log::PartitionInfo;
use holdfast_wire::annotations;

/// What a reader that asked for it is told of its partition with each event.
#[derive(Clone, Copy, Debug)]
pub(in crate::amqp) struct Runtime {
    pub(in crate::amqp) info: PartitionInfo,
    pub(in crate::amqp) now: Timestamp,
}

/// A number as text, without allocation.
struct Digits {
    bytes: [u8; 20],
    len: usize,
}

impl Digits {
    fn new(number: u64) -> Self {
        let mut bytes = [0; 20];
        let mut rest = &mut bytes[..];
        // 20 digits hold every u64.
        let _ = write!(rest, "{number}");
        let len = 20 - rest.len();
        Digits { bytes, len }
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.len]).unwrap_or_default()
    }
}

/// What one walk over the fields finds.
#[derive(Default)]
struct Found<'a> {
    properties: Properties<'a>,
    annotations: [Option<(&'static str, &'a str)>; 6],
    annotation_count: usize,
    /// Application properties that stand for system properties.
    creation: Option<&'a str>,
    schema: Option<&'a str>,
    application: bool,
}

impl<'a> Found<'a> {
    fn annotation(&mut self, key: &'static str, value: &'a str) {
        if let Some(place) = self.annotations.get_mut(self.annotation_count) {
            *place = Some((key, value));
            self.annotation_count += 1;
        }
    }

    fn of(event: &EventView<'a>) -> Self {
        let mut found = Found::default();
        for field in event.fields() {
            let EventField::System(property, value) = field else {
                found.application = true;
                continue;
            };
            let properties = &mut found.properties;
            match property {
                SystemProperty::MessageId => properties.message_id = Some(MessageId::String(value)),
                SystemProperty::CorrelationId => properties.correlation_id = Some(MessageId::String(value)),
                SystemProperty::UserId => properties.user_id = Some(value.as_bytes()),
                SystemProperty::To => properties.to = Some(value),
                SystemProperty::ContentType => properties.content_type = Some(value),
                SystemProperty::ContentEncoding => properties.content_encoding = Some(value),
                SystemProperty::ExpiryTimeUtc => properties.absolute_expiry_time = millis(value),
                SystemProperty::CreationTimeUtc => {
                    properties.creation_time = millis(value);
                    found.creation = Some(value);
                }
                SystemProperty::MessageSchema => found.schema = Some(value),
                SystemProperty::Subject => found.annotation(annotations::SUBJECT, value),
                SystemProperty::InterfaceId => found.annotation(annotations::INTERFACE_ID, value),
                SystemProperty::DataSchema => found.annotation(annotations::DATA_SCHEMA, value),
                SystemProperty::DiagnosticId => found.annotation("Diagnostic-Id", value),
                SystemProperty::DiagnosticContext => found.annotation("Correlation-Context", value),
                SystemProperty::PartitionKey => found.annotation(annotations::PARTITION_KEY, value),
                // Between device and hub, or module and edge hub, only.
                SystemProperty::OutputName | SystemProperty::Ack | SystemProperty::Operation => {}
            }
        }
        found
    }
}

fn millis(text: &str) -> Option<i64> {
    Timestamp::parse(text).map(Timestamp::as_millis)
}

/// Writes an event.
pub(in crate::amqp) fn write_event(event: &EventView<'_>, runtime: Option<&Runtime>, out: &mut Vec<u8>) {
    let found = Found::of(event);
    let mut writer = Writer::new(out);
    if let Some(runtime) = runtime {
        write_runtime(runtime, &mut writer);
    }
    let enqueued_at = Value::Timestamp(event.enqueued_at.as_millis());
    writer.message_annotations(|map| {
        let number = Digits::new(event.sequence_number);
        map.symbol(
            annotations::SEQUENCE_NUMBER,
            &Value::Long(event.sequence_number.cast_signed()),
        );
        map.symbol(annotations::OFFSET, &Value::String(number.text()));
        map.symbol(annotations::STREAM_ENQUEUED_TIME, &enqueued_at);
        for (key, value) in found.annotations.iter().flatten() {
            map.symbol(key, &Value::String(value));
        }
        // No device had a part in what a producer sent.
        if event.source == EventSource::Producer {
            return;
        }
        if event.source.concerns_identity() {
            map.symbol(
                annotations::CONNECTION_DEVICE_ID,
                &Value::String(event.device_id()),
            );
            if let Some(module_id) = event.module_id() {
                map.symbol(annotations::CONNECTION_MODULE_ID, &Value::String(module_id));
            }
        }
        // Nobody has sent what the hub made.
        if let Some(method) = annotations::auth_method_json(event.auth, event.module_id().is_some()) {
            map.symbol(annotations::CONNECTION_AUTH_METHOD, &Value::String(method));
            let generation = Digits::new(event.generation_id);
            map.symbol(
                annotations::CONNECTION_AUTH_GENERATION_ID,
                &Value::String(generation.text()),
            );
        }
        map.symbol(annotations::ENQUEUED_TIME, &enqueued_at);
        map.symbol(annotations::MESSAGE_SOURCE, &Value::String(event.source.as_str()));
    });
    if found.properties != Properties::default() {
        writer.properties(&found.properties);
    }
    if found.application || found.creation.is_some() || found.schema.is_some() {
        writer.application_properties(|map| {
            for (key, value) in [
                ("iothub-creation-time-utc", found.creation),
                ("iothub-message-schema", found.schema),
            ] {
                if let Some(value) = value {
                    map.string(key, &Value::String(value));
                }
            }
            for field in event.fields() {
                if let EventField::Application(key, value) = field {
                    map.string(key, &value.map_or(Value::Null, Value::String));
                }
            }
        });
    }
    writer.data(event.body);
}

fn write_runtime(runtime: &Runtime, writer: &mut Writer<'_>) {
    let info = &runtime.info;
    writer.delivery_annotations(|map| {
        let last = info.next.checked_sub(1);
        let offset = last.map_or_else(|| "-1".to_owned(), |last| last.to_string());
        map.symbol(
            "last_enqueued_sequence_number",
            &Value::Long(last.map_or(-1, u64::cast_signed)),
        );
        map.symbol("last_enqueued_offset", &Value::String(&offset));
        map.symbol(
            "last_enqueued_time_utc",
            &Value::Timestamp(info.last_enqueued_at.as_millis()),
        );
        map.symbol(
            "runtime_info_retrieval_time_utc",
            &Value::Timestamp(runtime.now.as_millis()),
        );
    });
}
