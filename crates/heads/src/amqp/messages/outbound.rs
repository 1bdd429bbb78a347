//! What devices and services receive.

use holdfast_amqp::message::{MessageId, Properties, Writer};
use holdfast_amqp::types::{MapWriter, Value};
use holdfast_model::Timestamp;
use holdfast_model::c2d::{AckMode, C2dDelivery, C2dMessage, FeedbackRecord, LockToken, ModuleInput};
use holdfast_model::file::FileNotificationDelivery;
use holdfast_model::message::{Message, SystemProperty};
use holdfast_wire::{annotations, dto, headers, links};

/// The lock token as delivery tag: a GUID in the byte order of .NET, which takes no other length.
pub(in crate::amqp) fn delivery_tag(lock: LockToken) -> [u8; 16] {
    let mut tag = [0; 16];
    let [a, b, c, d, e, f, g, h] = lock.sequence_number.to_be_bytes();
    tag[..8].copy_from_slice(&[d, c, b, a, f, e, h, g]);
    tag[8..].copy_from_slice(&lock.nonce.to_be_bytes());
    tag
}

/// Writes a cloud-to-device message (AMQP contract, section 3.5), or one for a module's input (edge contract, 7.4).
pub(in crate::amqp) fn write_c2d(delivery: &C2dDelivery, out: &mut Vec<u8>) {
    let queued = &delivery.message;
    let message = &queued.message;
    let text = |property| message.system(property);
    let device = links::to_of(&queued.device);
    let to = match &queued.input {
        None => Some(&*device),
        Some(_) => text(SystemProperty::To),
    };
    let lock = delivery.lock.to_string();
    let mut writer = Writer::new(out);
    writer.message_annotations(|map| {
        map.symbol(
            annotations::ENQUEUED_TIME,
            &Value::Timestamp(queued.enqueued_at.as_millis()),
        );
        map.symbol(
            annotations::DELIVERY_COUNT,
            &Value::Ubyte(u8::try_from(delivery.delivery_count).unwrap_or(u8::MAX)),
        );
        map.symbol(
            annotations::SEQUENCE_NUMBER,
            &Value::Ulong(delivery.lock.sequence_number),
        );
        map.symbol(annotations::LOCK_TOKEN, &Value::String(&lock));
        if let Some(to) = &queued.input {
            write_input(to, message, map);
        }
    });
    writer.properties(&Properties {
        message_id: text(SystemProperty::MessageId).map(MessageId::String),
        correlation_id: text(SystemProperty::CorrelationId).map(MessageId::String),
        user_id: text(SystemProperty::UserId).map(str::as_bytes),
        to,
        content_type: text(SystemProperty::ContentType),
        content_encoding: text(SystemProperty::ContentEncoding),
        absolute_expiry_time: (queued.expires_at != Timestamp::MAX).then(|| queued.expires_at.as_millis()),
        creation_time: text(SystemProperty::CreationTimeUtc)
            .and_then(Timestamp::parse)
            .map(Timestamp::as_millis),
        ..Properties::default()
    });
    write_applications(queued, &mut writer);
    writer.data(&message.body);
}

/// Annotations of a message for a module's input: which input, and whose message it is.
fn write_input(to: &ModuleInput, message: &Message, map: &mut MapWriter<'_>) {
    map.symbol(annotations::INPUT_NAME, &Value::String(&to.input));
    map.symbol(
        annotations::CONNECTION_DEVICE_ID,
        &Value::String(to.sender.device_id()),
    );
    if let Some(module_id) = to.sender.module_id() {
        map.symbol(annotations::CONNECTION_MODULE_ID, &Value::String(module_id));
    }
    for (name, property) in [
        (annotations::INTERFACE_ID, SystemProperty::InterfaceId),
        (annotations::SUBJECT, SystemProperty::Subject),
    ] {
        if let Some(value) = message.system(property) {
            map.symbol(name, &Value::String(value));
        }
    }
}

fn write_applications(queued: &C2dMessage, writer: &mut Writer<'_>) {
    let message = &queued.message;
    // What a sender over AMQP had put here, and a hub keeps to itself.
    let own = [
        ("iothub-creation-time-utc", SystemProperty::CreationTimeUtc),
        ("iothub-message-schema", SystemProperty::MessageSchema),
        ("iothub-operation", SystemProperty::Operation),
    ];
    let own = || {
        own.into_iter()
            .filter(|_| queued.input.is_some())
            .filter_map(|(name, property)| Some((name, message.system(property)?)))
    };
    if queued.ack == AckMode::None && message.properties.is_empty() && own().next().is_none() {
        return;
    }
    writer.application_properties(|map| {
        if queued.ack != AckMode::None {
            map.string("iothub-ack", &Value::String(queued.ack.as_str()));
        }
        for (name, value) in own() {
            map.string(name, &Value::String(value));
        }
        for (key, value) in &message.properties {
            // Strings only: clients call string getters.
            map.string(key, &Value::String(value.as_deref().unwrap_or_default()));
        }
    });
}

/// Writes a batch of feedback records (AMQP contract, section 4.2).
pub(in crate::amqp) fn write_feedback(
    records: &[FeedbackRecord],
    hub: &str,
    now: Timestamp,
    out: &mut Vec<u8>,
) {
    let enqueued_at = records.last().map_or(now, |record| record.enqueued_time_utc);
    Writer::new(out)
        .message_annotations(|map| {
            map.symbol(
                annotations::ENQUEUED_TIME,
                &Value::Timestamp(enqueued_at.as_millis()),
            );
        })
        .properties(&Properties {
            user_id: Some(hub.as_bytes()),
            content_type: Some(headers::FEEDBACK_BATCH),
            ..Properties::default()
        })
        .data(&dto::feedback_json(records));
}

/// Writes a notification of a file upload (AMQP contract, section 4.3).
pub(in crate::amqp) fn write_file_notification(
    delivery: &FileNotificationDelivery,
    hub: &str,
    out: &mut Vec<u8>,
) {
    let notification = &delivery.notification;
    Writer::new(out)
        .message_annotations(|map| {
            map.symbol(
                annotations::ENQUEUED_TIME,
                &Value::Timestamp(notification.enqueued_at.as_millis()),
            );
        })
        .properties(&Properties {
            user_id: Some(hub.as_bytes()),
            content_type: Some(headers::FILE_NOTIFICATION),
            ..Properties::default()
        })
        .data(&dto::file_notification_json(notification));
}
