//! What devices and services receive.

use holdfast_amqp::message::{MessageId, Properties, Writer};
use holdfast_amqp::types::Value;
use holdfast_model::Timestamp;
use holdfast_model::c2d::{AckMode, C2dDelivery, FeedbackRecord, LockToken};
use holdfast_model::message::SystemProperty;
use holdfast_wire::{annotations, dto, headers, links};

/// The lock token as delivery tag: a GUID in the byte order of .NET, which takes no other length.
pub(in crate::amqp) fn delivery_tag(lock: LockToken) -> [u8; 16] {
    let mut tag = [0; 16];
    let [a, b, c, d, e, f, g, h] = lock.sequence_number.to_be_bytes();
    tag[..8].copy_from_slice(&[d, c, b, a, f, e, h, g]);
    tag[8..].copy_from_slice(&lock.nonce.to_be_bytes());
    tag
}

/// Writes a cloud-to-device message (AMQP contract, section 3.5).
pub(in crate::amqp) fn write_c2d(delivery: &C2dDelivery, out: &mut Vec<u8>) {
    let queued = &delivery.message;
    let message = &queued.message;
    let to = links::to_of(&queued.device);
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
    });
    let text = |property| message.system(property);
    writer.properties(&Properties {
        message_id: text(SystemProperty::MessageId).map(MessageId::String),
        correlation_id: text(SystemProperty::CorrelationId).map(MessageId::String),
        user_id: text(SystemProperty::UserId).map(str::as_bytes),
        to: Some(&to),
        content_type: text(SystemProperty::ContentType),
        content_encoding: text(SystemProperty::ContentEncoding),
        absolute_expiry_time: (queued.expires_at != Timestamp::MAX).then(|| queued.expires_at.as_millis()),
        creation_time: text(SystemProperty::CreationTimeUtc)
            .and_then(Timestamp::parse)
            .map(Timestamp::as_millis),
        ..Properties::default()
    });
    if queued.ack != AckMode::None || !message.properties.is_empty() {
        writer.application_properties(|map| {
            if queued.ack != AckMode::None {
                map.string("iothub-ack", &Value::String(queued.ack.as_str()));
            }
            for (key, value) in &message.properties {
                // Strings only: clients call string getters.
                map.string(key, &Value::String(value.as_deref().unwrap_or_default()));
            }
        });
    }
    writer.data(&message.body);
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
