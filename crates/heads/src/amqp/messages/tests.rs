use holdfast_amqp::Message;
use holdfast_amqp::message::{Body, MessageId, Properties, Writer};
use holdfast_amqp::types::Value;
use holdfast_model::Identity;
use holdfast_model::Timestamp;
use holdfast_model::c2d::LockToken;
use holdfast_model::event::{AuthMethod, EventBlock, EventSource, Origin, Records};

use super::*;

fn block(records: &Records, source: EventSource) -> EventBlock {
    let origin = Origin {
        source,
        identity: Identity::parse("d1/m1").expect("an identity"),
        generation_id: 7,
        auth: AuthMethod::IdentityKey,
    };
    let mut data = Vec::new();
    origin.encode(holdfast_model::event::EndpointSet::EVENTS, &mut data);
    data.extend_from_slice(records.as_bytes());
    EventBlock {
        partition: 0,
        first_sequence_number: 41,
        count: records.count(),
        enqueued_at: Timestamp::from_seconds(5),
        data: data.into(),
    }
}

/// A message of a device, and what a reader of the event endpoint gets of it.
#[test]
fn telemetry_goes_in_and_comes_out() {
    let mut sent = Vec::new();
    Writer::new(&mut sent)
        .message_annotations(|map| {
            map.symbol("dt-subject", &Value::String("thermostat"));
        })
        .properties(&Properties {
            message_id: Some(MessageId::Uuid([0x0f; 16])),
            correlation_id: Some(MessageId::Ulong(9)),
            content_type: Some("application/json"),
            ..Properties::default()
        })
        .application_properties(|map| {
            map.string("level", &Value::Int(3));
            map.string("iothub-connection-device-id", &Value::String("somebody-else"));
            map.string("iothub-creation-time-utc", &Value::String("2026-01-01T00:00:00Z"));
        })
        .data(b"bo")
        .data(b"dy");
    let mut records = Records::new();
    let message = Message::decode(&sent).expect("a message");
    write_record(&message, Source::Device, &mut records).expect("taken");

    let block = block(&records, EventSource::Telemetry);
    let event = block.events().next().expect("an event").expect("well formed");
    let mut out = Vec::new();
    write_event(&event, None, &mut out);
    let read = Message::decode(&out).expect("a message");
    assert_eq!(read.body.as_bytes(), Some(&b"body"[..]));
    assert_eq!(read.delivery_annotations, None);
    let annotation = |key| read.message_annotations.and_then(|map| map.get(key));
    assert_eq!(annotation("x-opt-sequence-number"), Some(Value::Long(41)));
    assert_eq!(annotation("x-opt-offset"), Some(Value::String("41")));
    assert_eq!(annotation("x-opt-enqueued-time"), Some(Value::Timestamp(5_000)));
    assert_eq!(
        annotation("iothub-connection-device-id"),
        Some(Value::String("d1"))
    );
    assert_eq!(
        annotation("iothub-connection-module-id"),
        Some(Value::String("m1"))
    );
    assert_eq!(
        annotation("iothub-message-source"),
        Some(Value::String("Telemetry"))
    );
    assert_eq!(annotation("dt-subject"), Some(Value::String("thermostat")));
    assert_eq!(
        read.properties.message_id,
        Some(MessageId::String("0f0f0f0f-0f0f-0f0f-0f0f-0f0f0f0f0f0f"))
    );
    assert_eq!(read.properties.correlation_id, Some(MessageId::String("9")));
    assert_eq!(read.properties.creation_time, Some(1_767_225_600_000));
    let property = |key| read.application_properties.and_then(|map| map.get(key));
    assert_eq!(property("level"), Some(Value::String("3")));
    assert_eq!(property("iothub-connection-device-id"), None);
}

#[test]
fn events_of_producers_have_no_device() {
    let mut sent = Vec::new();
    Writer::new(&mut sent).data(b"x");
    let mut records = Records::new();
    let message = Message::decode(&sent).expect("a message");
    write_record(&message, Source::Producer(Some("k")), &mut records).expect("taken");
    let block = block(&records, EventSource::Producer);
    let event = block.events().next().expect("an event").expect("well formed");
    let mut out = Vec::new();
    write_event(&event, None, &mut out);
    let read = Message::decode(&out).expect("a message");
    let annotations = read.message_annotations.expect("annotations");
    assert_eq!(annotations.get("x-opt-partition-key"), Some(Value::String("k")));
    assert_eq!(annotations.get("iothub-connection-device-id"), None);
    assert_eq!(annotations.len(), 4);
}

/// Nobody has sent them: no authentication, no generation; and a job is no device.
#[test]
fn events_of_the_hub_have_no_sender() {
    let mut records = Records::new();
    let mut record = records.record();
    record.property("opType", Some("updateTwin"));
    let _ = record.finish(b"{}");
    let annotations = |source: EventSource| {
        let origin = Origin {
            source,
            identity: Identity::parse("d1/m1").expect("an identity"),
            generation_id: 0,
            auth: AuthMethod::Hub,
        };
        let mut data = Vec::new();
        origin.encode(holdfast_model::event::EndpointSet::EVENTS, &mut data);
        data.extend_from_slice(records.as_bytes());
        let block = EventBlock {
            data: data.into(),
            ..block(&records, source)
        };
        let event = block.events().next().expect("an event").expect("well formed");
        let mut out = Vec::new();
        write_event(&event, None, &mut out);
        let read = Message::decode(&out).expect("a message");
        let all = read.message_annotations.expect("annotations");
        let names = [
            "iothub-connection-device-id",
            "iothub-connection-module-id",
            "iothub-connection-auth-method",
            "iothub-connection-auth-generation-id",
            "iothub-enqueuedtime",
            "iothub-message-source",
        ];
        names.map(|name| all.get(name).is_some())
    };
    assert_eq!(
        annotations(EventSource::TwinChange),
        [true, true, false, false, true, true]
    );
    assert_eq!(
        annotations(EventSource::JobLifecycle),
        [false, false, false, false, true, true]
    );
}

#[test]
fn batches_are_taken_apart() {
    let mut sent = Vec::new();
    let mut writer = Writer::new(&mut sent);
    for body in [&b"one"[..], b"two"] {
        writer.data_message(|inner| {
            inner.data(body);
        });
    }
    let message = Message::decode(&sent).expect("a message");
    assert!(matches!(&message.body, Body::Data(data) if data.len() == 2));
    let mut records = Records::new();
    assert_eq!(write_batch(&message, Source::Device, &mut records).ok(), Some(3));
    assert_eq!(records.count(), 2);
}

#[test]
fn lock_tokens_are_guids_in_the_order_of_dotnet() {
    let lock = LockToken {
        sequence_number: 0x0123_4567_89ab_cdef,
        nonce: 0xfedc_ba98_7654_3210,
    };
    assert_eq!(lock.to_string(), "01234567-89ab-cdef-fedc-ba9876543210");
    assert_eq!(
        delivery_tag(lock),
        [
            0x67, 0x45, 0x23, 0x01, 0xab, 0x89, 0xef, 0xcd, 0xfe, 0xdc, 0xba, 0x98, 0x76, 0x54, 0x32, 0x10
        ]
    );
}
